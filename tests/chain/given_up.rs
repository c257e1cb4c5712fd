//! Work that was given up, and may still go on at the server: it counts for as long as such work
//! usually lasts.

use super::Proxy;
use super::overload::{
    Flight, config, cutting, fair, generous, hold, in_flight, metric, pass, tenant,
};
use serde_json::json;

/// A proxy with a limit of 20, 19 for these requests, that has seen so many answers of 500 ms.
fn proxy(answers: usize) -> Proxy {
    let proxy = Proxy::new(&config(&json!({"concurrency_limit": "c"})));
    slow_answers(&proxy, answers);
    proxy
}

/// Requests that are answered after 500 ms, ten at once.
fn slow_answers(proxy: &Proxy, answers: usize) {
    for _ in 0..answers / 10 {
        let flights = hold(proxy, 10, &[]);
        pass(proxy, 500);
        flights.into_iter().for_each(|it| it.answer(proxy, 0, 200));
    }
}

/// What all endpoints have in flight.
fn at_endpoints(proxy: &Proxy) -> u64 {
    let gauges = proxy.machine.metrics_of("haven_endpoint_in_flight");
    gauges.iter().map(|(_, count)| count).sum()
}

/// What counts at the limit, and at all endpoints, as a tick sets it right.
fn counts(proxy: &Proxy) -> (u64, u64) {
    proxy.engine.tick(&proxy.worker);
    (in_flight(proxy), at_endpoints(proxy))
}

fn give_up_all(proxy: &Proxy, flights: Vec<Flight>) {
    flights.into_iter().for_each(|it| it.cancel(proxy));
}

/// How many requests find room; they are answered at once.
fn admitted(proxy: &Proxy) -> usize {
    let flights = hold(proxy, 20, &[]);
    let count = flights.len();
    flights.into_iter().for_each(|it| it.answer(proxy, 0, 200));
    count
}

#[test]
fn what_its_client_has_left_counts_for_as_long_as_such_work_lasts() {
    let proxy = proxy(30);
    let flights = hold(&proxy, 20, &[]);
    pass(&proxy, 100);
    give_up_all(&proxy, flights);
    assert_eq!(counts(&proxy), (19, 19));
    assert_eq!(admitted(&proxy), 0);
    // A time is known to an eighth of itself.
    pass(&proxy, 335);
    assert_eq!(admitted(&proxy), 0);
    pass(&proxy, 65);
    assert_eq!(admitted(&proxy), 19);
    assert_eq!(counts(&proxy), (0, 0));
}

#[test]
fn where_nothing_is_known_and_beyond_what_is_nothing_lingers() {
    let new = proxy(0);
    give_up_all(&new, hold(&new, 20, &[]));
    assert_eq!(counts(&new), (0, 0));
    // Nothing has ever taken so long: it hangs.
    let proxy = proxy(30);
    let flights = hold(&proxy, 20, &[]);
    pass(&proxy, 600);
    give_up_all(&proxy, flights);
    assert_eq!(admitted(&proxy), 19);
}

#[test]
fn what_has_timed_out_lingers_too_and_what_has_failed_at_its_endpoint_only() {
    for (timed_out, left) in [(true, (1, 1)), (false, (0, 1))] {
        let proxy = proxy(30);
        let flight = Flight::begin(&proxy, &[]);
        pass(&proxy, 100);
        if timed_out {
            flight.time_out(&proxy, 0);
        } else {
            flight.answer(&proxy, 0, 503);
        }
        assert_eq!(counts(&proxy), left);
        // An idle worker's go with its tick.
        pass(&proxy, 500);
        assert_eq!(counts(&proxy), (0, 0));
    }
}

#[test]
fn it_stays_in_the_share_of_who_gave_it_up() {
    let proxy = Proxy::new(&fair(&json!({})));
    slow_answers(&proxy, 30);
    give_up_all(&proxy, hold(&proxy, 30, &tenant("a")));
    assert_eq!(in_flight(&proxy), 30);
    // The limit refuses, so that shares are in force: 35 is the most for who has more than others.
    let mut held = hold(&proxy, 9, &tenant("b"));
    assert_eq!(held.len(), 8);
    held.drain(5..).for_each(|it| it.cancel(&proxy));
    assert_eq!(hold(&proxy, 1, &tenant("a")).len(), 0);
    pass(&proxy, 600);
    assert_eq!(hold(&proxy, 1, &tenant("a")).len(), 1);
}

#[test]
fn a_try_that_was_cut_off_lingers_at_its_endpoint_and_the_limit() {
    let mut route = generous();
    route["concurrency_limit"] = json!("c");
    let proxy = cutting(3, &route);
    slow_answers(&proxy, 30);
    let flight = Flight::begin(&proxy, &[]);
    let first = flight.listed(0);
    pass(&proxy, 120);
    flight.answer(&proxy, 1, 200);
    let at_first = format!("haven_endpoint_in_flight;upstream=u;endpoint={first}");
    assert_eq!((counts(&proxy), metric(&proxy, &at_first)), ((1, 1), 1));
    // A failed try does not.
    let flight = Flight::begin(&proxy, &[]);
    pass(&proxy, 20);
    flight.answer(&proxy, 1, 200);
    assert_eq!(in_flight(&proxy), 1);
    pass(&proxy, 500);
    assert_eq!(admitted(&proxy), 19);
    assert_eq!((counts(&proxy), metric(&proxy, &at_first)), ((0, 0), 0));
}

#[test]
fn a_configuration_that_is_no_longer_in_use_holds_nothing() {
    let proxy = proxy(30);
    give_up_all(&proxy, hold(&proxy, 10, &[]));
    assert_eq!(in_flight(&proxy), 10);
    proxy.engine.close(&proxy.worker);
    assert_eq!((in_flight(&proxy), at_endpoints(&proxy)), (0, 0));
}

#[test]
fn its_number_is_bounded() {
    let mut config = config(&json!({"concurrency_limit": "c"}));
    config["concurrency_limits"]["c"]["limit"] = json!(10_000);
    let proxy = Proxy::new(&config);
    slow_answers(&proxy, 30);
    give_up_all(&proxy, hold(&proxy, 3_000, &[]));
    // 1,024 places, one at the limit and one at an endpoint for each.
    assert_eq!(counts(&proxy), (512, 512));
    pass(&proxy, 600);
    assert_eq!(counts(&proxy), (0, 0));
}
