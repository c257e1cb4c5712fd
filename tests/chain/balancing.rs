//! Balancing: who is in rotation with what share, over reloads and workers, and what it costs.

use super::{Proxy, merge};
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::engine::chain::Exchange;
use haven::host::sim::{SimStream, Worker};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// An upstream of `count` endpoints, 10.0.0.1 and so on, that has all requests.
pub(super) fn config(count: usize, extra: &Value) -> Value {
    let endpoints: Vec<Value> = (0..count)
        .map(|number| json!({"address": address(number)}))
        .collect();
    let mut config = json!({
        "upstreams": {"u": {"endpoints": endpoints}},
        "circuit_breakers": {"ep": {"consecutive_failures": 1, "open_duration": "1s", "half_open_calls": 1}},
        "routes": [{"name": "r", "upstream": "u"}]});
    merge(&mut config["upstreams"]["u"], extra);
    config
}

pub(super) fn address(number: usize) -> String {
    format!("10.0.{}.{}:80", number / 250, number % 250 + 1)
}

/// A worker more of the same proxy.
pub(super) fn another(proxy: &Proxy, config: &Value) -> Proxy {
    let worker = Worker(Rc::clone(&proxy.machine));
    let engine = Proxy::engine(&worker, config);
    Proxy {
        machine: Rc::clone(&proxy.machine),
        worker,
        engine,
    }
}

fn list(stream: &SimStream) -> Vec<String> {
    let header = stream
        .request_header("x-haven-upstream")
        .unwrap_or_default();
    header.split(',').map(str::to_owned).collect()
}

type Headers = Vec<(&'static str, Vec<u8>)>;

/// Sends `requests` one after the other, each answered with these headers by the first of its list.
/// Returns how many each endpoint got, in percent.
fn shares(
    proxy: &Proxy,
    requests: u64,
    headers: &dyn Fn(&str) -> Headers,
) -> BTreeMap<String, u64> {
    let mut got = BTreeMap::<String, u64>::new();
    for _ in 0..requests {
        let stream = SimStream::request("GET", "/", &[]);
        let mut exchange = proxy.begin(&stream);
        let first = list(&stream)[0].clone();
        let headers = headers(&first);
        let headers: Vec<(&str, &[u8])> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_slice()))
            .collect();
        stream.answer(200, Some(&first), &headers);
        exchange.on_response(&proxy.worker, &stream);
        assert_eq!(
            stream.response_header("endpoint-load-metrics"),
            None,
            "not for clients"
        );
        exchange.on_end(&proxy.worker);
        *got.entry(first).or_default() += 1;
    }
    got.into_iter()
        .map(|(address, got)| (address, (got * 100 + requests / 2) / requests))
        .collect()
}

fn plain_shares(proxy: &Proxy) -> BTreeMap<String, u64> {
    shares(proxy, 4_000, &|_| Vec::new())
}

/// One request that fails at this endpoint; with a breaker of one failure it is out.
fn fail_at(proxy: &Proxy, address: &str) {
    for _ in 0..500 {
        let stream = SimStream::request("GET", "/", &[]);
        let mut exchange = proxy.begin(&stream);
        let first = list(&stream)[0].clone();
        stream.answer(if first == address { 500 } else { 200 }, Some(&first), &[]);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        if first == address {
            return;
        }
    }
    panic!("{address} was not asked");
}

#[test]
fn a_new_endpoint_gets_its_share_by_and_by_in_all_workers_and_over_reloads() {
    let balancer = json!({"load_balancer": {"policy": "random", "slow_start": "100s"}});
    let (two, three) = (config(2, &balancer), config(3, &balancer));
    let mut proxy = Proxy::new(&two);
    assert!(
        plain_shares(&proxy)[&address(1)] > 45,
        "those of the start do not ramp"
    );
    proxy.reload(&three);
    let mut other = another(&proxy, &three);
    let near = |proxy: &Proxy, want: u64| {
        let got = plain_shares(proxy)[&address(2)];
        assert!(got.abs_diff(want) <= 2, "{got} %, about {want} wanted");
    };
    // 0.1 of 2.1; half of 2.5.
    near(&proxy, 5);
    proxy.machine.advance(Nanos::from_secs(50));
    near(&proxy, 20);
    near(&other, 20);
    // What began goes on.
    proxy.reload(&three);
    other.reload(&three);
    near(&proxy, 20);
    near(&other, 20);
    proxy.machine.advance(Nanos::from_secs(51));
    near(&proxy, 33);
    near(&other, 33);
    // A worker that comes later finds the same.
    near(&another(&proxy, &three), 33);
}

#[test]
fn a_recovered_endpoint_gets_its_share_by_and_by() {
    for policy in ["random", "round_robin", "least_request"] {
        let extra = json!({"load_balancer": {"policy": policy, "slow_start": "100s"}, "circuit_breaker": "ep"});
        let proxy = Proxy::new(&config(2, &extra));
        let other = another(&proxy, &config(2, &extra));
        fail_at(&proxy, &address(0));
        assert_eq!(plain_shares(&other).get(&address(0)), None);
        proxy.machine.advance(Nanos::from_millis(1_001));
        // The trial closes it.
        for proxy in [&proxy, &other] {
            let got = plain_shares(proxy)[&address(0)];
            assert!(
                (7..=12).contains(&got),
                "{policy}: a tenth of 1.1, not {got} %"
            );
        }
        proxy.machine.advance(Nanos::from_secs(100));
        let got = plain_shares(&proxy)[&address(0)];
        assert!((47..=53).contains(&got), "{policy}: {got} %");
    }
}

#[test]
fn reported_load_counts_in_all_workers_and_fades() {
    for policy in ["round_robin", "random"] {
        let config = config(
            2,
            &json!({"load_balancer": {"policy": policy}, "load_report": "orca"}),
        );
        let (proxy, other) = (Proxy::new(&config), Proxy::new(&config));
        let other = Proxy {
            machine: Rc::clone(&proxy.machine),
            worker: proxy.worker.clone(),
            ..other
        };
        let other = another(&other, &config);
        let report = |first: &str| {
            let load = if first == address(0) {
                "TEXT cpu_utilization=0.75"
            } else {
                "JSON {\"cpu_utilization\": 0.0}"
            };
            vec![("endpoint-load-metrics", load.as_bytes().to_vec())]
        };
        shares(&proxy, 100, &report);
        proxy.machine.advance(Nanos::from_millis(101));
        // A quarter is left of one, all of the other.
        for proxy in [&proxy, &other] {
            let got = shares(proxy, 4_000, &report)[&address(0)];
            assert!((18..=22).contains(&got), "{policy}: {got} %");
        }
        proxy.machine.advance(Nanos::from_secs(31));
        let got = shares(&proxy, 4_000, &|_| vec![("x-other", b"1".to_vec())])[&address(0)];
        assert!((47..=53).contains(&got), "{policy}: {got} %");
        // What no report is, is none.
        let hostile = |_: &str| {
            vec![(
                "endpoint-load-metrics",
                b"TEXT cpu_utilization=-1,\xff\xfe==,application_utilization=NaN".to_vec(),
            )]
        };
        let got = shares(&proxy, 4_000, &hostile)[&address(0)];
        assert!((47..=53).contains(&got), "{policy}: {got} %");
    }
}

#[test]
fn latency_is_known_in_all_workers() {
    let config = config(3, &json!({"load_balancer": {"policy": "peak_ewma"}}));
    let proxy = Proxy::new(&config);
    let other = another(&proxy, &config);
    // How often the slow one is asked.
    let ask = |proxy: &Proxy, requests: u64| {
        let mut asked = 0;
        for _ in 0..requests {
            let stream = SimStream::request("GET", "/", &[]);
            let mut exchange = proxy.begin(&stream);
            let first = list(&stream)[0].clone();
            let slow = first == address(1);
            asked += u64::from(slow);
            proxy
                .machine
                .advance(Nanos::from_millis(if slow { 500 } else { 5 }));
            stream.answer(200, Some(&first), &[]);
            exchange.on_response(&proxy.worker, &stream);
            exchange.on_end(&proxy.worker);
        }
        asked
    };
    assert_eq!(ask(&proxy, 30), 2, "to know it by");
    assert_eq!((ask(&other, 300), ask(&proxy, 300)), (0, 0));
    // In a minute it is forgotten, and tried again: by one of them.
    proxy.machine.advance(Nanos::from_secs(60));
    assert_eq!((ask(&other, 30), ask(&proxy, 30)), (1, 0));
}

/// Requests that come every so many microseconds, to endpoints that take so long: how many each
/// got of a thousand.
fn open_loop(proxy: &Proxy, pause: u64, took: &dyn Fn(usize, u64) -> u64) -> Vec<u64> {
    let mut flights: Vec<(u64, Exchange, SimStream, String)> = Vec::new();
    let mut got = vec![0; 3];
    let count = (10_000_000 / pause).max(2_000);
    for number in 0..count {
        let now = number * pause;
        let mut at = now;
        loop {
            // The next that ends before the request comes.
            let next = flights.iter().enumerate().min_by_key(|(_, it)| it.0);
            let Some((place, ends)) = next
                .map(|(place, it)| (place, it.0))
                .filter(|it| it.1 <= now + pause)
            else {
                break;
            };
            let (_, mut exchange, stream, first) = flights.swap_remove(place);
            proxy
                .machine
                .advance(Nanos(ends.saturating_sub(at) * 1_000));
            at = at.max(ends);
            stream.answer(200, Some(&first), &[]);
            exchange.on_response(&proxy.worker, &stream);
            exchange.on_end(&proxy.worker);
        }
        proxy.machine.advance(Nanos((now + pause - at) * 1_000));
        let stream = SimStream::request("GET", "/", &[]);
        let exchange = proxy.begin(&stream);
        let first = list(&stream)[0].clone();
        let which = (0..3).find(|which| address(*which) == first).unwrap();
        got[which] += 1;
        flights.push((now + pause + took(which, number), exchange, stream, first));
    }
    for (_, mut exchange, ..) in flights {
        exchange.on_end(&proxy.worker);
    }
    got.into_iter().map(|got| got * 1_000 / count).collect()
}

#[test]
fn peak_ewma_shares_evenly_among_equals_at_any_load_and_avoids_the_slow_one() {
    let config = config(3, &json!({"load_balancer": {"policy": "peak_ewma"}}));
    for pause in [100_000, 50_000, 10_000, 2_000, 500] {
        // Equal ones differ a little from answer to answer.
        let took = |which: usize, number: u64| match which {
            2 => 200_000,
            which => 5_000 + (number * 7_919 + which as u64 * 31) % 1_500,
        };
        let got = open_loop(&Proxy::new(&config), pause, &took);
        let both = got[0] + got[1];
        assert!(got[0].min(got[1]) * 100 >= both * 40, "{pause}: {got:?}");
        // Time alone makes a slow one worth a try: seldom.
        assert!(got[2] <= 60, "{pause}: {got:?}");
    }
}

/// A slow answer now and then, to all that an endpoint has at that moment or to one alone, makes no
/// endpoint the worse one: each has them, at times of its own.
#[test]
fn peak_ewma_shares_evenly_among_equals_that_pause_now_and_then() {
    let config = config(3, &json!({"load_balancer": {"policy": "peak_ewma"}}));
    let rng = Rng::new(18);
    for round in 0..40 {
        let pause = [100_000, 20_000, 10_000, 5_000, 2_000][round % 5];
        // Microseconds: from a pause's begin to the next, and how long it lasts.
        let (every, lasts) = (600_000 + rng.below(3_000_000), 8_000 + rng.below(60_000));
        let offsets = [rng.below(every), rng.below(every)];
        let alone = round % 2 == 0;
        // A connection has to be made first, at both or at one.
        let warm = [Cell::new(false), Cell::new(rng.below(2) == 0)];
        let took = |which: usize, number: u64| {
            let Some(offset) = offsets.get(which) else {
                return 200_000;
            };
            let usual = 5_000 + (number * 7_919 + which as u64 * 31) % 1_500;
            let since = (number * pause + offset) % every;
            match alone {
                _ if !warm[which].replace(true) => usual + lasts,
                true if since < pause => usual + lasts,
                false if since < lasts => usual + lasts - since,
                _ => usual,
            }
        };
        let got = open_loop(&Proxy::new(&config), pause, &took);
        let both = got[0] + got[1];
        assert!(
            got[0].min(got[1]) * 100 >= both * 40 && got[2] <= 60,
            "a request every {pause} us, {lasts} us longer every {every}, {offsets:?}: {got:?}"
        );
    }
}

#[test]
fn what_is_not_critical_shows_and_takes_nothing_out() {
    let mut config = config(1, &json!({"circuit_breaker": "ep"}));
    let ready = |config: &Value| {
        let proxy = Proxy::new(config);
        fail_at(&proxy, &address(0));
        let reply = proxy.request("/readyz", &[], 200).replied().unwrap();
        (reply.status, String::from_utf8(reply.body).unwrap())
    };
    assert_eq!(ready(&config).0, 503);
    config["upstreams"]["u"]["critical"] = json!(false);
    let (status, body) = ready(&config);
    assert_eq!(status, 200, "{body}");
    assert!(
        body.contains(r#""status":"DOWN""#) && body.contains(r#""critical":false"#),
        "{body}"
    );
    config["upstreams"]["u"]["critical"] = json!(true);
    config["upstreams"]["u"]["min_healthy"] = json!(0);
    let (status, body) = ready(&config);
    assert!(status == 200 && body.contains(r#""status":"UP""#), "{body}");
    config["upstreams"]["u"]["min_healthy"] = json!(1);
    assert_eq!(ready(&config).0, 503);
}

#[test]
fn a_key_keeps_its_endpoint_however_many_requests_are_in_flight() {
    let hash =
        json!({"load_balancer": {"policy": "consistent_hash", "hash_key": [{"header": "x-user"}]}});
    for (bound, stays) in [(None, true), (Some(1.25), false)] {
        let mut config = config(4, &hash);
        if let Some(bound) = bound {
            config["upstreams"]["u"]["load_balancer"]["bounded_load"] = json!(bound);
        }
        let proxy = Proxy::new(&config);
        let flights: Vec<_> = (0..32)
            .map(|_| {
                let stream = SimStream::request("GET", "/", &[("x-user", b"ann")]);
                (proxy.begin(&stream), list(&stream)[0].clone())
            })
            .collect();
        assert_eq!(
            flights.iter().all(|(_, at)| *at == flights[0].1),
            stays,
            "{bound:?}"
        );
        for (mut exchange, _) in flights {
            exchange.on_end(&proxy.worker);
        }
    }
}

#[test]
fn the_own_zone_is_preferred_and_others_stand_behind_it() {
    let mut config = config(
        4,
        &json!({"load_balancer": {"policy": "random", "zone": "a"}, "circuit_breaker": "ep"}),
    );
    for (number, zone) in ["a", "b", "a", "b"].iter().enumerate() {
        config["upstreams"]["u"]["endpoints"][number]["zone"] = json!(zone);
    }
    let proxy = Proxy::new(&config);
    for _ in 0..50 {
        let stream = proxy.request("/", &[], 200);
        let list = list(&stream);
        assert_eq!(list.len(), 3);
        assert!(
            [address(0), address(2)].contains(&list[0])
                && [address(0), address(2)].contains(&list[1]),
            "{list:?}"
        );
    }
    fail_at(&proxy, &address(0));
    // A third of the weight is left for half of the clients: it keeps two thirds.
    let got = plain_shares(&proxy);
    assert!((64..=70).contains(&got[&address(2)]), "{got:?}");
    assert!(
        got[&address(1)].abs_diff(17) <= 3 && got[&address(3)].abs_diff(17) <= 3,
        "{got:?}"
    );
}

#[test]
fn addresses_of_ipv6_are_listed_as_the_proxy_has_them() {
    let mut config = config(1, &json!({"load_balancer": {"policy": "first"}}));
    config["upstreams"]["u"]["endpoints"] = json!([{"address": "[2001:DB8:0::1]:8080"}, {"address": "192.0.2.1:80", "weight": 0}, {"address": "[::1]:80"}]);
    let proxy = Proxy::new(&config);
    assert_eq!(
        list(&proxy.request("/", &[], 200)),
        ["[2001:db8::1]:8080", "[::1]:80"]
    );
}

#[test]
fn requests_at_endpoints_that_a_reload_drains_or_removes_end_well() {
    let balancer = json!({"load_balancer": {"policy": "first"}, "circuit_breaker": "ep"});
    let mut proxy = Proxy::new(&config(2, &balancer));
    let in_flight = |proxy: &Proxy| {
        let name = |number| {
            format!(
                "haven_endpoint_in_flight;upstream=u;endpoint={}",
                address(number)
            )
        };
        [0, 1].map(|number| proxy.machine.metric(&name(number)))
    };
    let begin = |proxy: &Proxy| -> (SimStream, Exchange) {
        let stream = SimStream::request("GET", "/", &[]);
        let exchange = proxy.begin(&stream);
        (stream, exchange)
    };
    let (first, second) = (begin(&proxy), begin(&proxy));
    assert_eq!(
        (list(&first.0)[0].clone(), in_flight(&proxy)),
        (address(0), [2, 0])
    );

    let old = Rc::clone(&proxy.engine);
    let mut drained = config(2, &balancer);
    drained["upstreams"]["u"]["endpoints"][0]["weight"] = json!(0);
    proxy.reload(&drained);
    assert_eq!(list(&proxy.request("/", &[], 200)), [address(1)]);
    assert_eq!(in_flight(&proxy), [2, 0], "they go on");
    let end = |(stream, mut exchange): (SimStream, Exchange), proxy: &Proxy| {
        stream.answer(200, Some(&address(0)), &[]);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        assert!(stream.replied().is_none());
    };
    end(first, &proxy);
    old.tick(&proxy.worker);
    assert_eq!(in_flight(&proxy), [1, 0]);

    let mut removed = config(2, &balancer);
    removed["upstreams"]["u"]["endpoints"]
        .as_array_mut()
        .unwrap()
        .remove(0);
    proxy.reload(&removed);
    for _ in 0..40 {
        proxy.machine.advance(Nanos::from_secs(1));
        proxy.engine.tick(&proxy.worker);
    }
    end(second, &proxy);
    old.close(&proxy.worker);
    assert_eq!(in_flight(&proxy), [0, 0]);
    // Those that stay keep what is known of them: one that is out stays out.
    fail_at(&proxy, &address(1));
    proxy.reload(&config(2, &balancer));
    assert_eq!(list(&proxy.request("/", &[], 200)), [address(0)]);
}

#[test]
fn breakers_take_no_more_out_than_they_may() {
    let extra = json!({"load_balancer": {"policy": "random", "panic_threshold": 0}, "circuit_breaker": "ep", "max_ejection_percent": 50});
    let proxy = Proxy::new(&config(4, &extra));
    for number in [2, 0, 3, 1] {
        fail_at(&proxy, &address(number));
        proxy.machine.advance(Nanos::from_millis(10));
    }
    // All are open; the first two that opened are left alone.
    let got = plain_shares(&proxy);
    assert_eq!(
        got.keys().cloned().collect::<Vec<_>>(),
        [address(1), address(3)],
        "{got:?}"
    );
    // Another worker, another look at the same records, the same two.
    let got = plain_shares(&another(&proxy, &config(4, &extra)));
    assert_eq!(
        got.keys().cloned().collect::<Vec<_>>(),
        [address(1), address(3)],
        "{got:?}"
    );
}

#[test]
fn what_a_lost_worker_had_in_flight_is_written_off() {
    let config = config(3, &json!({"load_balancer": {"policy": "first"}}));
    let proxy = Proxy::new(&config);
    let lost = another(&proxy, &config);
    let held: Vec<_> = (0..5)
        .map(|_| lost.begin(&SimStream::request("GET", "/", &[])))
        .collect();
    let mut own = proxy.begin(&SimStream::request("GET", "/", &[]));
    let gauge = || {
        proxy.machine.metric(&format!(
            "haven_endpoint_in_flight;upstream=u;endpoint={}",
            address(0)
        ))
    };
    lost.engine.tick(&lost.worker);
    drop((held, lost));
    proxy.engine.tick(&proxy.worker);
    assert_eq!(gauge(), 6);
    for _ in 0..25 {
        proxy.machine.advance(Nanos::from_secs(1));
        proxy.engine.tick(&proxy.worker);
    }
    assert_eq!(gauge(), 1, "one is still there");
    own.on_end(&proxy.worker);
    proxy.engine.tick(&proxy.worker);
    assert_eq!(gauge(), 0);
}

#[test]
fn a_request_makes_no_more_host_calls_where_there_are_many_endpoints() {
    for policy in [
        "round_robin",
        "least_request",
        "peak_ewma",
        "consistent_hash",
        "random",
        "first",
    ] {
        let calls = |count: usize| {
            let proxy = Proxy::new(&config(
                count,
                &json!({"load_balancer": {"policy": policy}, "circuit_breaker": "ep"}),
            ));
            let mut fewest = u64::MAX;
            for _ in 0..20 {
                let before = proxy.machine.calls();
                proxy.request("/", &[], 200);
                fewest = fewest.min(proxy.machine.calls() - before);
            }
            fewest
        };
        // Eight are compared at the most. With many, each is often asked for the first time in a
        // breaker's bucket, a record more, and the gauge of each that is compared was last read
        // long ago.
        let (few, many) = (calls(8), calls(1_000));
        assert!(
            many <= few + 16,
            "{policy}: {few} calls with 8 endpoints, {many} with 1,000"
        );
    }
}

/// Requests one in 1 ms for some time, of which the first `dead` endpoints fail at once. Returns how
/// many fail.
fn failures(proxy: &Proxy, millis: u64, dead: usize) -> u64 {
    let mut failed = 0;
    for _ in 0..millis {
        let stream = SimStream::request("GET", "/", &[]);
        let mut exchange = proxy.begin(&stream);
        let first = list(&stream)[0].clone();
        let is_dead = (0..dead).any(|number| first == address(number));
        failed += u64::from(is_dead);
        stream.answer(if is_dead { 503 } else { 200 }, Some(&first), &[]);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        proxy.machine.advance(Nanos::from_millis(1));
    }
    failed
}

#[test]
fn a_level_that_fails_one_after_the_other_is_left_for_one_of_which_nothing_is_known() {
    let mut config = config(3, &json!({"circuit_breaker": "ep"}));
    config["upstreams"]["u"]["endpoints"][2]["priority"] = json!(1);
    config["circuit_breakers"]["ep"] =
        json!({"consecutive_failures": 2, "open_duration": "100ms", "half_open_calls": 1});
    let proxy = Proxy::new(&config);
    assert_eq!(failures(&proxy, 500, 0), 0);
    let one = failures(&proxy, 350, 1);
    assert!((2..=8).contains(&one), "{one}: two, and some trials");
    let both = failures(&proxy, 500, 2);
    assert!(both <= 20, "{both} of 500");
}
