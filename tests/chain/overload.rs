//! Policies that meet in an overload: retries, timeouts, breakers, limits and the choice of
//! endpoints help each other, or keep still.

use super::{Proxy, merge};
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::engine::chain::Exchange;
use haven::host::sim::{SimStream, Worker};
use haven::policy::concurrency::fair::{ACTIVE, FairRecord, KeyCounts, SYNC, Standing};
use serde_json::{Value, json};
use std::rc::Rc;

const ROUTER: &str = "x-envoy-upstream-rq-timeout-ms";
const PER_TRY: &str = "x-envoy-upstream-rq-per-try-timeout-ms";
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";
const MAX_RETRIES: &str = "x-envoy-max-retries";

/// A route over three endpoints, and a limit of 20 that it may use: of its requests, which are
/// critical, 19 find room.
pub(super) fn config(route: &Value) -> Value {
    let endpoints = [1, 2, 3].map(|n| json!({"address": address(n)}));
    let mut config = json!({
        "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 20}},
        "upstreams": {"u": {"endpoints": endpoints}},
        "routes": [{"name": "r", "upstream": "u", "timeout": {"request": "1s"}}]});
    merge(&mut config["routes"][0], route);
    config
}

pub(super) fn address(n: u64) -> String {
    format!("10.0.0.{n}:80")
}

/// A request that is on its way.
pub(super) struct Flight {
    stream: SimStream,
    exchange: Exchange,
}

impl Flight {
    pub(super) fn begin(proxy: &Proxy, headers: &[(&str, &[u8])]) -> Self {
        Self::begin_at(proxy, "/api", headers)
    }

    fn begin_at(proxy: &Proxy, path: &str, headers: &[(&str, &[u8])]) -> Self {
        let stream = SimStream::request("GET", path, headers);
        let exchange = proxy.begin(&stream);
        Self { stream, exchange }
    }

    pub(super) fn is_refused(&self) -> bool {
        self.stream.replied().is_some()
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.stream.request_header(name)
    }

    /// The retries that it was granted.
    fn granted(&self) -> u64 {
        self.header(MAX_RETRIES)
            .map_or(0, |granted| granted.parse().unwrap())
    }

    /// The endpoint of this place in its list.
    pub(super) fn listed(&self, place: u64) -> String {
        let list = self.header("x-haven-upstream").unwrap();
        let place = usize::try_from(place).unwrap();
        list.split(',').nth(place).expect("it is listed").to_owned()
    }

    /// Its last try, after so many others, is answered with this status.
    pub(super) fn answer(mut self, proxy: &Proxy, before: u64, status: u16) {
        self.stream.answer(status, Some(&self.listed(before)), &[]);
        self.exchange.on_response(&proxy.worker, &self.stream);
        self.exchange.on_end(&proxy.worker);
    }

    /// Its last try, after so many others, is not answered in time.
    pub(super) fn time_out(mut self, proxy: &Proxy, before: u64) {
        let last = self.listed(before);
        let stream = &self.stream;
        stream.fail(504, "response_timeout", Some(&last), before + 1);
        self.exchange.on_response(&proxy.worker, stream);
        self.exchange.on_end(&proxy.worker);
    }

    /// Its client has gone.
    pub(super) fn cancel(mut self, proxy: &Proxy) {
        self.exchange.on_end(&proxy.worker);
    }
}

/// So many requests at once; those that are refused are over.
pub(super) fn hold(proxy: &Proxy, count: usize, headers: &[(&str, &[u8])]) -> Vec<Flight> {
    let flights = (0..count).map(|_| Flight::begin(proxy, headers));
    flights.filter(|flight| !flight.is_refused()).collect()
}

pub(super) fn pass(proxy: &Proxy, millis: u64) {
    proxy.machine.advance(Nanos::from_millis(millis));
}

/// Requests that are answered well at once: what they take is then known.
fn warm_up(proxy: &Proxy, count: usize) {
    for _ in 0..count {
        Flight::begin(proxy, &[]).answer(proxy, 0, 200);
        pass(proxy, 2);
    }
}

/// What a storm came to.
#[derive(Debug, Default)]
struct Storm {
    requests: u64,
    /// Requests that were granted all their attempts.
    granted: u64,
    retries: u64,
    good: u64,
}

/// 500 requests a second, one after the other, of which `fails(request, try)` says whether the try
/// fails. Counted from the second `from` on.
fn storm(proxy: &Proxy, from: u64, to: u64, fails: impl Fn(u64, u64) -> bool) -> Storm {
    let mut seen = Storm::default();
    for n in 0..to * 500 {
        let flight = Flight::begin(proxy, &[]);
        let granted = flight.granted();
        let tries = (0..=granted).find(|it| !fails(n, *it));
        let last = tries.unwrap_or(granted);
        flight.answer(proxy, last, if tries.is_some() { 200 } else { 503 });
        if n >= from * 500 {
            seen.requests += 1;
            seen.granted += u64::from(granted == 2);
            seen.retries += last;
            seen.good += u64::from(tries.is_some());
        }
        pass(proxy, 2);
    }
    seen
}

/// Three tries of five fail.
fn three_of_five() -> impl Fn(u64, u64) -> bool {
    let rng = Rng::new(10);
    move |_, _| rng.below(5) < 3
}

fn retrying(extra: &Value) -> Proxy {
    let mut config = config(extra);
    let mut retry: Value = json!({"attempts": 2, "min_per_second": 0});
    merge(&mut retry, &config["routes"][0]["retry"]);
    config["routes"][0]["retry"] = retry;
    Proxy::new(&config)
}

#[test]
fn with_room_each_request_of_a_storm_has_its_attempts() {
    let proxy = retrying(&json!({"concurrency_limit": "c", "retry": {}}));
    warm_up(&proxy, 50);
    let seen = storm(&proxy, 0, 4, three_of_five());
    assert_eq!(seen.granted, seen.requests);
    assert!(
        seen.good * 100 >= seen.requests * 78,
        "1 - 0.6³ are answered: {seen:?}"
    );
}

#[test]
fn without_a_limit_or_with_little_room_a_fifth_is_tried_again() {
    let no_limit = json!({"retry": {}});
    let limit = json!({"concurrency_limit": "c", "retry": {"budget": "auto"}});
    for (route, held) in [(no_limit, 0), (limit, 10)] {
        let proxy = retrying(&route);
        warm_up(&proxy, 50);
        let flights = hold(&proxy, held, &[]);
        // The first second has the warm-up's few requests to compare with.
        let seen = storm(&proxy, 1, 4, three_of_five());
        assert!(
            (12..=25).contains(&(seen.retries * 100 / seen.requests)),
            "{held} held: {seen:?}"
        );
        flights.into_iter().for_each(|it| it.cancel(&proxy));
    }
}

#[test]
fn a_number_is_a_hard_cap_with_any_room() {
    let proxy = retrying(&json!({"concurrency_limit": "c", "retry": {"budget": 5}}));
    warm_up(&proxy, 50);
    let seen = storm(&proxy, 1, 4, three_of_five());
    assert!(seen.retries * 100 <= seen.requests * 6, "{seen:?}");
}

#[test]
fn a_limit_that_refuses_or_is_nearly_full_allows_no_retry_whatever_the_budget() {
    for budget in [json!("auto"), json!(100)] {
        let retry = json!({"budget": budget, "min_per_second": 1_000});
        let proxy = retrying(&json!({"concurrency_limit": "c", "retry": retry}));
        warm_up(&proxy, 500);
        let granted = || {
            let flight = Flight::begin(&proxy, &[]);
            let granted = flight.header(MAX_RETRIES);
            flight.cancel(&proxy);
            granted.unwrap()
        };
        let mut held = hold(&proxy, 15, &[]);
        assert_ne!(granted(), "0", "16 of 20");
        held.extend(hold(&proxy, 1, &[]));
        assert_eq!(granted(), "0", "17 of 20");
        held.extend(hold(&proxy, 10, &[]));
        assert_eq!(held.len(), 19, "the others were refused");
        held.into_iter().for_each(|flight| flight.cancel(&proxy));
        assert_eq!(granted(), "0", "it has just refused");
        pass(&proxy, 999);
        assert_eq!(granted(), "0");
        pass(&proxy, 1);
        assert_ne!(granted(), "0", "a second later");
    }
}

#[test]
fn retries_that_do_not_help_fall_back_to_a_fifth() {
    // Each request fails first; of those that are tried again so many in ten are answered.
    for (helped, rare) in [(1, true), (3, false)] {
        let proxy = retrying(&json!({"concurrency_limit": "c", "retry": {"attempts": 1}}));
        warm_up(&proxy, 50);
        let seen = storm(&proxy, 2, 6, |n, nth| nth == 0 || n % 10 >= helped);
        let retried = seen.retries * 100 / seen.requests;
        assert_eq!(retried <= 25, rare, "{helped} of 10: {retried} %");
        assert!(rare || retried == 100, "{retried} %");
    }
}

/// A route over endpoints in a fixed order, with a timeout of a try.
pub(super) fn cutting(endpoints: usize, route: &Value) -> Proxy {
    let mut config = config(route);
    config["routes"][0]["timeout"]["per_try"] = json!("100ms");
    let upstream = &mut config["upstreams"]["u"];
    upstream["load_balancer"] = json!({"policy": "first"});
    upstream["outlier"] = json!("off");
    let list = upstream["endpoints"].as_array_mut().unwrap();
    list.truncate(endpoints);
    Proxy::new(&config)
}

/// What the router is given for a request: for the whole and for a try.
fn timeouts(proxy: &Proxy, method: &str) -> [Option<String>; 2] {
    let stream = SimStream::request(method, "/api", &[]);
    let mut exchange = proxy.begin(&stream);
    exchange.on_end(&proxy.worker);
    [ROUTER, PER_TRY].map(|name| stream.request_header(name))
}

/// Retries enough, whatever the tests need.
pub(super) fn generous() -> Value {
    json!({"retry": {"budget": 100, "min_per_second": 1_000}})
}

const CUT: [Option<&str>; 2] = [Some("1000"), Some("100")];
const WHOLE: [Option<&str>; 2] = [Some("1000"), None];

#[track_caller]
fn assert_timeouts(proxy: &Proxy, method: &str, want: [Option<&str>; 2]) {
    assert_eq!(
        timeouts(proxy, method),
        want.map(|it| it.map(str::to_owned))
    );
}

#[test]
fn a_try_is_cut_off_only_for_another_one() {
    let proxy = cutting(2, &generous());
    assert_timeouts(&proxy, "GET", CUT);
    // It may not be tried again.
    assert_timeouts(&proxy, "POST", WHOLE);
    assert_timeouts(
        &cutting(2, &json!({"retry": {"attempts": 0}})),
        "GET",
        WHOLE,
    );
    // There is no other endpoint.
    assert_timeouts(&cutting(1, &generous()), "GET", WHOLE);
    // The proxy's own policy may retry.
    for endpoints in [1, 2] {
        let proxy = cutting(endpoints, &json!({}));
        assert_timeouts(&proxy, "GET", CUT);
        assert_timeouts(&proxy, "POST", CUT);
    }
}

#[test]
fn a_try_is_not_cut_off_for_an_endpoint_that_is_slow_too() {
    let proxy = cutting(2, &generous());
    for _ in 0..3 {
        let flight = Flight::begin(&proxy, &[]);
        pass(&proxy, 110);
        flight.answer(&proxy, 1, 200);
        assert_timeouts(&proxy, "GET", CUT);
    }
    for _ in 0..5 {
        let flight = Flight::begin(&proxy, &[]);
        pass(&proxy, 200);
        flight.time_out(&proxy, 1);
    }
    assert_timeouts(&proxy, "GET", WHOLE);
    pass(&proxy, 60_000);
    assert_timeouts(&proxy, "GET", CUT);
}

#[test]
fn where_there_is_no_retry_of_ours_a_slow_endpoint_changes_nothing() {
    let proxy = cutting(2, &json!({}));
    for _ in 0..5 {
        let flight = Flight::begin(&proxy, &[]);
        pass(&proxy, 200);
        flight.time_out(&proxy, 1);
    }
    assert_timeouts(&proxy, "GET", CUT);
}

/// An upstream of so many endpoints with a breaker each, and a route over it.
fn breaking(endpoints: usize, policy: &str, route: &Value) -> Proxy {
    let mut config = config(route);
    let breaker = json!({"consecutive_failures": 5, "minimum_calls": 1_000, "open_duration": "1h"});
    config["circuit_breakers"] = json!({"ep": breaker, "r": breaker});
    let upstream = &mut config["upstreams"]["u"];
    upstream["circuit_breaker"] = json!("ep");
    upstream["load_balancer"] = json!({"policy": policy});
    let list = upstream["endpoints"].as_array_mut().unwrap();
    list.truncate(endpoints);
    Proxy::new(&config)
}

/// The same with a breaker and a limit for the route.
fn bounded(endpoints: usize) -> Proxy {
    let route = json!({"circuit_breaker": "r", "concurrency_limit": "c"});
    breaking(endpoints, "first", &route)
}

pub(super) fn is_open(proxy: &Proxy, breaker: &str, key: &str) -> bool {
    let name = format!("haven_circuit_breaker_state;circuit_breaker={breaker};key={key}");
    proxy.machine.metric(&name) == 1
}

/// Which endpoints are out after 300 requests of which those at `failing` ones fail; `warm`: after
/// a time in which all were well.
fn ejected(endpoints: usize, policy: &str, warm: bool, failing: &[u64]) -> Vec<u64> {
    let proxy = breaking(endpoints, policy, &json!({}));
    if warm {
        warm_up(&proxy, 100);
    }
    for _ in 0..300 {
        let flight = Flight::begin(&proxy, &[]);
        let first = flight.listed(0);
        let fails = failing.iter().any(|n| address(*n) == first);
        flight.answer(&proxy, 0, if fails { 500 } else { 200 });
        pass(&proxy, 2);
    }
    (1..=endpoints as u64)
        .filter(|n| is_open(&proxy, "ep", &address(*n)))
        .collect()
}

#[test]
fn a_fault_that_all_endpoints_share_ejects_none_and_an_outlier_goes() {
    const NONE: [u64; 0] = [];
    for policy in ["round_robin", "random", "least_request"] {
        for warm in [false, true] {
            let out = |failing: &[u64]| ejected(3, policy, warm, failing);
            // A proxy that has just started knows too little of the others to spare the first one.
            let spared = out(&[1, 2, 3]).len() <= usize::from(!warm);
            assert!(spared, "{policy} {warm}: all fail alike");
            assert_eq!(out(&[2]), [2], "{policy} {warm}");
            assert_eq!(out(&[1, 3]), [1, 3], "{policy} {warm}: two of three");
            assert_eq!(out(&[]), NONE, "{policy} {warm}");
        }
    }
}

#[test]
fn a_single_endpoint_has_no_peers_to_share_a_fault_with() {
    assert_eq!(ejected(1, "least_request", true, &[1]), [1]);
    assert_eq!(ejected(1, "least_request", false, &[1]), [1]);
}

#[test]
fn what_times_out_while_the_limit_refuses_opens_no_breaker() {
    for (sheds, endpoints) in [(true, 1), (true, 3), (false, 1)] {
        let proxy = bounded(endpoints);
        let held = hold(&proxy, if sheds { 25 } else { 19 }, &[]);
        assert_eq!(held.len(), 19);
        pass(&proxy, 900);
        held.into_iter().for_each(|it| it.time_out(&proxy, 0));
        let open = [
            is_open(&proxy, "r", "r"),
            is_open(&proxy, "ep", &address(1)),
        ];
        assert_eq!(open, [!sheds; 2], "{sheds} {endpoints}");
        assert_eq!(Flight::begin(&proxy, &[]).is_refused(), !sheds);
    }
}

#[test]
fn an_endpoint_that_is_late_where_its_peers_are_not_is_ejected_though_the_limit_refuses() {
    for others_late in [false, true] {
        let route = json!({"circuit_breaker": "r", "concurrency_limit": "c"});
        let proxy = breaking(3, "round_robin", &route);
        warm_up(&proxy, 30);
        let held = hold(&proxy, 25, &[]);
        pass(&proxy, 900);
        let is_first = |it: &Flight| it.listed(0) == address(1);
        let (first, others): (Vec<_>, Vec<_>) = held.into_iter().partition(is_first);
        for it in others {
            if others_late {
                it.time_out(&proxy, 0);
            } else {
                it.answer(&proxy, 0, 200);
            }
        }
        first.into_iter().for_each(|it| it.time_out(&proxy, 0));
        assert_eq!(is_open(&proxy, "ep", &address(1)), !others_late);
        assert!(!is_open(&proxy, "r", "r"));
    }
}

#[test]
fn failures_while_the_limit_refuses_count_as_ever() {
    let proxy = bounded(1);
    let held = hold(&proxy, 25, &[]);
    held.into_iter().for_each(|it| it.answer(&proxy, 0, 500));
    assert!(is_open(&proxy, "r", "r") && is_open(&proxy, "ep", &address(1)));
}

/// A limit of 40, with fair shares of tenants: 38 requests find room, and of these 35 where their
/// tenant has more than others.
pub(super) fn fair(extra: &Value) -> Value {
    let mut config = config(&json!({"concurrency_limit": "c"}));
    let fair = json!([{"header": "x-tenant"}]);
    config["concurrency_limits"]["c"] = json!({"algorithm": "fixed", "limit": 40, "fair": fair});
    merge(&mut config, extra);
    config
}

pub(super) fn tenant(name: &str) -> [(&str, &[u8]); 1] {
    [("x-tenant", name.as_bytes())]
}

/// Begins requests of a tenant until one is refused, of which the policy is returned.
fn fill(proxy: &Proxy, headers: &[(&str, &[u8])], held: &mut Vec<Flight>) -> String {
    fill_at(proxy, "/api", headers, held)
}

fn fill_at(proxy: &Proxy, path: &str, headers: &[(&str, &[u8])], held: &mut Vec<Flight>) -> String {
    for _ in 0..50 {
        let flight = Flight::begin_at(proxy, path, headers);
        if let Some(reply) = flight.stream.replied() {
            let body: Value = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!((reply.status, &body["reason"]), (503, &json!("overload")));
            return body["policy"].as_str().unwrap().to_owned();
        }
        held.push(flight);
    }
    "none".to_owned()
}

/// Requests in flight: one tenant has 20 of them and another 14, and the limit has just refused.
fn crowded(proxy: &Proxy) -> Vec<Flight> {
    let mut held = Vec::new();
    assert_eq!(fill(proxy, &tenant("a"), &mut held), "c");
    assert_eq!(held.len(), 38, "while nothing is refused one may have all");
    held.drain(20..).for_each(|flight| flight.cancel(proxy));
    held.extend(hold(proxy, 14, &tenant("b")));
    held
}

pub(super) fn metric(proxy: &Proxy, name: &str) -> u64 {
    proxy.machine.metric(name)
}

pub(super) fn in_flight(proxy: &Proxy) -> u64 {
    metric(proxy, "haven_concurrency_in_flight;policy=c;key=r")
}

/// Whether the workers' shared counts show nothing in flight.
fn is_forgotten(proxy: &Proxy) -> bool {
    let records = proxy.machine.records(|key| key.get(2) == Some(&b'f'));
    let [bytes] = records.as_slice() else {
        panic!("one limit, one record: {records:?}")
    };
    let (mut record, mut probe) = (FairRecord::decode(bytes), KeyCounts::default());
    probe.sync(&mut record, proxy.machine.now(), 0);
    // Alone, a key may have everything.
    (0..1_000).for_each(|_| probe.enter(0));
    probe.standing(0, proxy.machine.now().plus(ACTIVE)) == Standing::Within
}

#[test]
fn once_something_is_refused_who_has_most_is_refused_first() {
    let proxy = Proxy::new(&fair(&json!({})));
    let mut held = crowded(&proxy);
    assert_eq!(fill(&proxy, &tenant("a"), &mut held), "c/fair");
    assert_eq!(held.len(), 35, "nine tenths of what others find");
    let refused = Flight::begin(&proxy, &tenant("a")).stream;
    assert_eq!(refused.response_header("retry-after").as_deref(), Some("1"));
    let status = refused.response_header("proxy-status").unwrap();
    assert!(status.ends_with("details=\"overload c/fair\""), "{status}");
    let note = refused.decision();
    assert_eq!(note.as_deref(), Some("overload c/fair enforce"));
    let counted = "haven_decisions_total;route=r;policy=c/fair;reason=overload;mode=enforce";
    assert_eq!(metric(&proxy, counted), 2);
    // Those who have little find room until there is none for anyone.
    held.extend(hold(&proxy, 1, &tenant("b")));
    held.extend(hold(&proxy, 1, &tenant("c")));
    held.extend(hold(&proxy, 1, &tenant("d")));
    assert_eq!(held.len(), 38);
    assert_eq!(fill(&proxy, &tenant("e"), &mut held), "c");
    assert_eq!(metric(&proxy, counted), 2);
    // A second after the last refusal it is over.
    held.drain(..4).for_each(|flight| flight.cancel(&proxy));
    assert_eq!(in_flight(&proxy), 34);
    pass(&proxy, 1_000);
    assert_eq!(hold(&proxy, 4, &tenant("a")).len(), 4);
}

#[test]
fn who_has_far_more_than_others_leaves_them_what_they_ask_for_whatever_its_criticality() {
    let routes = json!({
        "upstreams": {"u": {"concurrency_limit": "c"}},
        "routes": [
            {"name": "vital", "match": {"path": "/vital"}, "upstream": "u"},
            {"name": "r", "upstream": "u", "criticality": "sheddable"}]});
    let proxy = Proxy::new(&fair(&routes));
    let mut held = Vec::new();
    let abuse = |held: &mut Vec<Flight>| fill_at(&proxy, "/vital", &tenant("a"), held);
    assert_eq!(abuse(&mut held), "c");
    assert_eq!(held.len(), 38, "alone it may have all");
    let honest = |count| {
        let begun = (0..count).map(|_| Flight::begin(&proxy, &tenant("b")));
        let (refused, held): (Vec<_>, Vec<_>) = begun.partition(Flight::is_refused);
        (held, refused.len())
    };
    assert_eq!(honest(6).1, 6, "all places below 70 % are taken");
    // It is not let in again until six places of the 28 are free for those that were refused.
    for _ in 0..17 {
        held.drain(..1).for_each(|flight| flight.cancel(&proxy));
        assert_eq!(abuse(&mut held), "c/fair");
    }
    assert_eq!(held.len(), 21);
    let (others, refused) = honest(6);
    assert_eq!(refused, 0);
    // What was refused is forgotten, and as many as they have are kept for them.
    for _ in 0..20 {
        held.drain(..1).for_each(|flight| flight.cancel(&proxy));
        pass(&proxy, 60);
        abuse(&mut held);
        assert_eq!(abuse(&mut held), "c/fair");
    }
    assert_eq!(held.len(), 22);
    drop(others);
}

#[test]
fn each_criticality_has_fair_shares_of_its_own_threshold() {
    let proxy = Proxy::new(&fair(&json!({"routes": [
        {"name": "r", "upstream": "u", "concurrency_limit": "c", "criticality": "sheddable"}]})));
    let mut held = Vec::new();
    assert_eq!(fill(&proxy, &tenant("a"), &mut held), "c");
    assert_eq!(held.len(), 28, "70 %");
    held.drain(12..).for_each(|flight| flight.cancel(&proxy));
    held.extend(hold(&proxy, 9, &tenant("b")));
    assert_eq!(fill(&proxy, &tenant("a"), &mut held), "c/fair");
    assert_eq!(held.len(), 26, "nine tenths of 28");
    assert_eq!(hold(&proxy, 1, &tenant("b")).len(), 1);
    assert_eq!(hold(&proxy, 1, &tenant("z")).len(), 1);
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

#[test]
fn workers_count_a_tenant_together() {
    let config = fair(&json!({}));
    let proxy = Proxy::new(&config);
    let other = another(&proxy, &config);
    let mut held = crowded(&proxy);
    pass(&proxy, 20);
    assert_eq!(fill(&proxy, &tenant("a"), &mut held), "c/fair");
    // The other worker has neither refused anything nor a request of this tenant.
    assert_eq!(fill(&other, &tenant("a"), &mut Vec::new()), "c/fair");
    assert_eq!(hold(&other, 1, &tenant("b")).len(), 1);
    assert_eq!(hold(&other, 1, &tenant("c")).len(), 1);
}

#[test]
fn requests_without_the_key_are_counted_and_not_refused_by_it() {
    let proxy = Proxy::new(&fair(&json!({})));
    let mut held = crowded(&proxy);
    assert_eq!(metric(&proxy, "haven_fair_unkeyed_total;policy=c"), 0);
    assert_eq!(fill(&proxy, &[], &mut held), "c");
    assert_eq!(held.len(), 38);
    // Those that were admitted, and the one that found no room.
    assert_eq!(metric(&proxy, "haven_fair_unkeyed_total;policy=c"), 5);
}

#[test]
fn a_shadow_decides_and_counts_and_admits() {
    let mode = json!({"concurrency_limits": {"c": {"mode": "shadow"}}});
    let proxy = Proxy::new(&fair(&mode));
    let counted = |policy| {
        let name =
            format!("haven_decisions_total;route=r;policy={policy};reason=overload;mode=shadow");
        metric(&proxy, &name)
    };
    let mut held = hold(&proxy, 39, &tenant("a"));
    assert_eq!((held.len(), counted("c"), counted("c/fair")), (39, 1, 0));
    held.drain(..4).for_each(|flight| flight.cancel(&proxy));
    held.extend(hold(&proxy, 1, &tenant("b")));
    let over = Flight::begin(&proxy, &tenant("a"));
    let note = over.stream.decision();
    assert_eq!(note.as_deref(), Some("overload c/fair shadow"));
    assert!(!over.is_refused());
    assert_eq!((counted("c"), counted("c/fair")), (1, 1));
    over.cancel(&proxy);
    held.into_iter().for_each(|flight| flight.cancel(&proxy));
    assert_eq!(in_flight(&proxy), 0);
}

#[test]
fn gauges_and_shares_come_back_to_nothing() {
    let proxy = Proxy::new(&fair(&json!({})));
    let mut held = crowded(&proxy);
    fill(&proxy, &tenant("a"), &mut held);
    held.extend(hold(&proxy, 1, &tenant("c")));
    pass(&proxy, 20);
    held.extend(hold(&proxy, 1, &tenant("d")));
    assert!(!is_forgotten(&proxy));
    for (n, flight) in held.into_iter().enumerate() {
        match n % 4 {
            0 => flight.cancel(&proxy),
            1 => flight.answer(&proxy, 0, 200),
            2 => flight.answer(&proxy, 0, 503),
            _ => flight.time_out(&proxy, 0),
        }
    }
    // What was given up after less than the others took may still go on for as long as they did.
    pass(&proxy, 20);
    proxy.engine.tick(&proxy.worker);
    assert_eq!(in_flight(&proxy), 0);
    proxy.machine.advance(SYNC);
    Flight::begin(&proxy, &tenant("e")).cancel(&proxy);
    assert!(is_forgotten(&proxy));
}

#[test]
fn fair_shares_cost_no_host_call_while_there_is_room() {
    let calls = |config: &Value| {
        let proxy = Proxy::new(config);
        warm_up(&proxy, 5);
        let before = proxy.machine.calls();
        let held = hold(&proxy, 28, &tenant("a"));
        held.into_iter().for_each(|it| it.answer(&proxy, 0, 200));
        proxy.machine.calls() - before
    };
    let with = fair(&json!({}));
    let mut without = with.clone();
    let limit = without["concurrency_limits"]["c"].as_object_mut();
    limit.unwrap().remove("fair");
    assert_eq!(
        calls(&with),
        calls(&without),
        "up to seven tenths of the limit"
    );
}

/// How many of 600 requests, one in 1 ms, go to the first of three endpoints; it fails at once, or
/// answers as the others do, after 20 ms.
fn at_the_first(proxy: &Proxy, dead: bool) -> u64 {
    let (mut flights, mut count) = (Vec::<(u64, Flight)>::new(), 0);
    for now in 0..600 {
        let over = flights.iter().take_while(|(end, _)| *end <= now).count();
        for (_, flight) in flights.drain(..over) {
            flight.answer(proxy, 0, 200);
        }
        let flight = Flight::begin(proxy, &[]);
        let is_first = flight.listed(0) == address(1);
        count += u64::from(is_first);
        if is_first && dead {
            flight.answer(proxy, 0, 503);
        } else {
            flights.push((now + 20, flight));
        }
        pass(proxy, 1);
    }
    for (_, flight) in flights {
        flight.answer(proxy, 0, 200);
    }
    count
}

#[test]
fn an_endpoint_that_fails_at_once_does_not_look_idle() {
    let proxy = Proxy::new(&config(&json!({})));
    let dead = at_the_first(&proxy, true);
    assert!(dead < 60, "{dead} of 600");
    pass(&proxy, 5_000);
    let well = at_the_first(&proxy, false);
    assert!((150..=250).contains(&well), "{well} of 600");
}

/// What came of 200 requests a second for some seconds over three endpoints of 30 ms, of which one
/// is `odd`: it answers with this status after this time.
struct Round {
    failed: u64,
    at_odd: u64,
}

fn round(proxy: &Proxy, seconds: u64, odd: (u16, u64)) -> Round {
    let mut flights: Vec<(u64, u16, Flight)> = Vec::new();
    let mut round = Round {
        failed: 0,
        at_odd: 0,
    };
    for now in 0..seconds * 1_000 + 1_000 {
        let (over, open): (Vec<_>, Vec<_>) = flights.into_iter().partition(|(end, ..)| *end <= now);
        flights = open;
        for (_, status, flight) in over {
            flight.answer(proxy, 0, status);
        }
        if now % 1_000 == 0 {
            proxy.engine.tick(&proxy.worker);
        }
        if now % 5 == 0 && now < seconds * 1_000 {
            let flight = Flight::begin(proxy, &[]);
            let is_odd = flight.listed(0) == address(1);
            let (status, took) = if is_odd { odd } else { (200, 30) };
            round.at_odd += u64::from(is_odd);
            round.failed += u64::from(status >= 500);
            flights.push((now + took, status, flight));
        }
        pass(proxy, 1);
    }
    round
}

const POLICIES: [&str; 5] = [
    "least_request",
    "peak_ewma",
    "round_robin",
    "random",
    "consistent_hash",
];

#[test]
fn without_a_word_an_endpoint_that_fails_is_left_alone_and_tried_again() {
    for policy in POLICIES {
        let mut config = config(&json!({}));
        config["upstreams"]["u"]["load_balancer"] = json!({"policy": policy});
        let proxy = Proxy::new(&config);
        round(&proxy, 2, (200, 30));
        let dead = round(&proxy, 3, (503, 1));
        assert!(dead.failed <= 12, "{policy}: {} of 600", dead.failed);
        // Well again, it is in use after its next trial.
        round(&proxy, 4, (200, 30));
        let well = round(&proxy, 1, (200, 30));
        let hashed = policy == "consistent_hash";
        assert!(well.at_odd >= 40 || hashed, "{policy}: {}", well.at_odd);
    }
}

#[test]
fn a_trial_is_asked_for_its_endpoint_where_other_answers_are_not() {
    let proxy = Proxy::new(&config(&json!({})));
    round(&proxy, 2, (200, 30));
    round(&proxy, 1, (503, 1));
    let state = "haven_circuit_breaker_state;circuit_breaker=u/outlier;key=10.0.0.1:80";
    assert_eq!(metric(&proxy, state), 1, "it is out");
    for _ in 0..60 {
        pass(&proxy, 50);
        proxy.engine.tick(&proxy.worker);
        // Envoy says that an upstream answered, and not which.
        let mut flight = Flight::begin(&proxy, &[]);
        let (listed, told) = (flight.listed(0), [(SERVICE_TIME, b"1".as_slice())]);
        flight.stream.answer(200, Some(&listed), &told);
        flight.exchange.on_response(&proxy.worker, &flight.stream);
        flight.exchange.on_end(&proxy.worker);
    }
    assert_eq!(metric(&proxy, state), 0, "and back");
}

#[test]
fn with_the_outlier_off_a_dead_endpoint_attracts_nothing_and_stays() {
    for policy in POLICIES {
        let mut config = config(&json!({}));
        config["upstreams"]["u"]["outlier"] = json!("off");
        config["upstreams"]["u"]["load_balancer"] = json!({"policy": policy});
        let proxy = Proxy::new(&config);
        round(&proxy, 2, (200, 30));
        let dead = round(&proxy, 3, (503, 1));
        let most = if policy == "consistent_hash" {
            600
        } else {
            260
        };
        assert!(dead.failed <= most, "{policy}: {} of 600", dead.failed);
        assert!(
            proxy
                .machine
                .metrics_of("haven_circuit_breaker_state")
                .is_empty()
        );
    }
}

#[test]
fn in_a_panic_what_fails_at_once_attracts_nothing() {
    for policy in ["least_request", "peak_ewma"] {
        let mut config = config(&json!({}));
        config["upstreams"]["u"]["load_balancer"] =
            json!({"policy": policy, "panic_threshold": 100});
        let proxy = Proxy::new(&config);
        round(&proxy, 2, (200, 30));
        let dead = round(&proxy, 2, (503, 1));
        assert_eq!(metric(&proxy, "haven_upstream_panic;upstream=u"), 1);
        assert!(dead.failed <= 160, "{policy}: {} of 400", dead.failed);
    }
}

#[test]
fn an_endpoint_that_is_only_slow_gets_little_but_trials() {
    for policy in ["round_robin", "random", "least_request"] {
        for breaker in [false, true] {
            let mut config = config(&json!({}));
            config["upstreams"]["u"]["load_balancer"] = json!({"policy": policy});
            if breaker {
                config["upstreams"]["u"]["circuit_breaker"] = json!("ep");
                config["circuit_breakers"] = json!({"ep": {"consecutive_failures": 5}});
            }
            let proxy = Proxy::new(&config);
            round(&proxy, 2, (200, 30));
            // Until it is seen it gets a third.
            round(&proxy, 2, (200, 400));
            let slow = round(&proxy, 3, (200, 400));
            assert!(
                slow.at_odd <= 20,
                "{policy} {breaker}: {} of 600",
                slow.at_odd
            );
            // Four times as slow is not many times.
            round(&proxy, 10, (200, 30));
            let tolerated = round(&proxy, 3, (200, 120));
            assert!(
                tolerated.at_odd > 40,
                "{policy} {breaker}: {}",
                tolerated.at_odd
            );
        }
    }
}

#[test]
fn where_all_are_slow_none_is_ejected() {
    let proxy = Proxy::new(&config(&json!({})));
    round(&proxy, 2, (200, 30));
    for _ in 0..10 {
        let flights = hold(&proxy, 15, &[]);
        pass(&proxy, 600);
        flights.into_iter().for_each(|it| it.answer(&proxy, 0, 200));
    }
    let healthy = proxy.machine.metrics_of("haven_endpoint_healthy");
    assert!(healthy.iter().all(|(_, well)| *well == 1), "{healthy:?}");
}

/// Requests, 200 a second for 3 s from the end of a total outage of so many seconds on: when the
/// last one failed or was refused, and how many did from a second on.
fn after_outage(proxy: &Proxy, seconds: u64) -> (u64, u64) {
    let mut open: Vec<(u64, u16, Flight)> = Vec::new();
    let (mut last, mut late) = (0, 0);
    let ends = seconds * 1_000;
    for now in 0..ends + 3_000 {
        let (over, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(|(end, ..)| *end <= now);
        open = rest;
        for (_, status, flight) in over {
            flight.answer(proxy, 0, status);
        }
        if now % 1_000 == 0 {
            proxy.engine.tick(&proxy.worker);
        }
        if now % 5 == 0 {
            let flight = Flight::begin(proxy, &[]);
            let (status, took) = if now < ends { (503, 1) } else { (200, 30) };
            if flight.is_refused() && now >= ends {
                last = now - ends;
                late += u64::from(last >= 1_000);
            }
            if !flight.is_refused() {
                open.push((now + took, status, flight));
            }
        }
        pass(proxy, 1);
    }
    (last, late)
}

#[test]
fn after_a_total_outage_all_is_well_within_a_second_and_stays_so() {
    let endpoints = [
        json!({}),
        json!({"consecutive_failures": 5, "open_duration": "10s", "backoff_multiplier": 2}),
    ];
    for breaker in endpoints {
        for seconds in [1, 5, 20] {
            let mut config = config(&json!({"circuit_breaker": "r"}));
            config["circuit_breakers"] = json!({"r": {
                "failure_rate_threshold": 90, "minimum_calls": 20,
                "window": {"type": "time", "size": "2s"},
                "open_duration": "100ms", "half_open_calls": 1}});
            if breaker != json!({}) {
                config["circuit_breakers"]["ep"] = breaker.clone();
                config["upstreams"]["u"]["circuit_breaker"] = json!("ep");
            }
            let proxy = Proxy::new(&config);
            round(&proxy, 2, (200, 30));
            let (last, late) = after_outage(&proxy, seconds);
            assert!(
                last < 1_000 && late == 0,
                "{breaker} {seconds} s: {last} ms"
            );
        }
    }
}
