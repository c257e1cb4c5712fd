//! Concurrency limits: who is refused at which number in flight, and what gives a place back.

use super::{Proxy, merge};
use haven::base::time::Nanos;
use haven::engine::chain::Exchange;
use haven::host::Clock;
use haven::host::MetricKind;
use haven::host::Metrics;
use haven::host::sim::SimStream;
use serde_json::{Value, json};

const IN_FLIGHT: &str = "haven_concurrency_in_flight;policy=c;key=";
const LIMIT: &str = "haven_concurrency_limit;policy=c;key=";

/// A route for each criticality, all over one upstream with a limit of 10.
fn config(extra: &Value) -> Value {
    let routes: Vec<Value> = ["sheddable", "sheddable_plus", "critical", "critical_plus"]
        .map(|it| json!({"name": it, "match": {"path": format!("/{it}")}, "upstream": "u", "criticality": it}))
        .into();
    let mut config = json!({
        "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 10}},
        "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}], "concurrency_limit": "c"}},
        "fallbacks": {"f": {"on": ["overload"], "steps": [{"respond": {"status": 200, "body": "{{reason}} {{retry_after}}"}}]}},
        "routes": routes,
    });
    merge(&mut config, extra);
    config
}

/// Starts requests until one is refused.
fn fill(proxy: &Proxy, path: &str) -> Vec<Exchange> {
    let mut all = Vec::new();
    loop {
        let stream = SimStream::request("GET", path, &[]);
        let exchange = proxy.begin(&stream);
        if stream.replied().is_some() || all.len() == 50 {
            return all;
        }
        all.push(exchange);
    }
}

fn in_flight(proxy: &Proxy) -> u64 {
    proxy
        .machine
        .metrics_of(IN_FLIGHT)
        .iter()
        .map(|(_, n)| n)
        .sum()
}

#[test]
fn the_least_critical_are_refused_first() {
    let proxy = Proxy::new(&config(&json!({})));
    let mut held = Vec::new();
    for (path, total) in [
        ("/sheddable", 7),
        ("/sheddable_plus", 8),
        ("/critical", 10),
        ("/critical_plus", 10),
    ] {
        held.extend(fill(&proxy, path));
        assert_eq!(
            (held.len(), in_flight(&proxy)),
            (total, total as u64),
            "{path}"
        );
    }
    assert_eq!(
        proxy
            .machine
            .metric("haven_concurrency_limit;policy=c;key=u"),
        10
    );
    for (refused, total) in [
        ("sheddable", 1),
        ("sheddable_plus", 1),
        ("critical", 1),
        ("critical_plus", 1),
    ] {
        let name =
            format!("haven_decisions_total;route={refused};policy=c;reason=overload;mode=enforce");
        assert_eq!(proxy.machine.metric(&name), total);
    }
    for exchange in &mut held {
        exchange.on_end(&proxy.worker);
        exchange.on_end(&proxy.worker);
    }
    assert_eq!(in_flight(&proxy), 0, "given back once");
}

#[test]
fn an_overload_is_told_with_a_time_to_wait() {
    let proxy = Proxy::new(&config(&json!({"concurrency_limits": {"c": {"limit": 1}}})));
    let _held = fill(&proxy, "/critical");
    let stream = proxy.request("/critical", &[], 200);
    let reply = stream.replied().unwrap();
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(
        (reply.status, &body["reason"], &body["policy"]),
        (503, &"overload".into(), &"c".into())
    );
    assert_eq!(stream.response_header("retry-after").as_deref(), Some("1"));
    assert_eq!(
        stream.response_header("content-type").as_deref(),
        Some("application/problem+json")
    );
    assert!(
        stream
            .response_header("proxy-status")
            .unwrap()
            .ends_with("details=\"overload c\"")
    );
    assert_eq!(stream.decision().as_deref(), Some("overload c enforce"));
    let grpc = proxy
        .request("/critical", &[("content-type", b"application/grpc")], 200)
        .replied()
        .unwrap();
    assert_eq!(grpc.grpc_status, Some(14));
}

#[test]
fn a_fallback_answers_for_an_overload() {
    let mut config = config(&json!({"concurrency_limits": {"c": {"limit": 1}}}));
    config["routes"][2]["fallback"] = json!("f");
    let proxy = Proxy::new(&config);
    let _held = fill(&proxy, "/critical_plus");
    let reply = proxy.request("/critical", &[], 200).replied().unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (200, b"overload 1".as_slice())
    );
}

#[test]
fn whatever_ends_a_request_gives_its_place_back() {
    let proxy = Proxy::new(&config(&json!({})));
    type End = fn(&SimStream);
    let ends: [End; 6] = [
        |_| {},
        |stream| stream.answer(200, Some("10.0.0.1:80"), &[]),
        |stream| stream.answer(500, Some("10.0.0.1:80"), &[]),
        |stream| stream.fail(504, "response_timeout", Some("10.0.0.1:80"), 1),
        |stream| {
            stream.fail(
                503,
                "upstream_reset_before_response_started{connection_failure}",
                Some("10.0.0.1:80"),
                1,
            )
        },
        |stream| stream.answer(302, None, &[]),
    ];
    for end in ends {
        let stream = SimStream::request("GET", "/critical", &[]);
        let mut exchange = proxy.begin(&stream);
        assert_eq!(in_flight(&proxy), 1);
        end(&stream);
        if stream.response_header(":status").is_some() {
            exchange.on_response(&proxy.worker, &stream);
            assert_eq!(in_flight(&proxy), 1, "the body is still to come");
        }
        exchange.on_end(&proxy.worker);
        assert_eq!(in_flight(&proxy), 0);
    }
}

#[test]
fn a_later_refusal_gives_the_place_back_at_once() {
    let mut config = config(
        &json!({"circuit_breakers": {"b": {"consecutive_failures": 1, "minimum_calls": 1}}}),
    );
    config["routes"][2]["circuit_breaker"] = json!("b");
    let proxy = Proxy::new(&config);
    proxy.request("/critical", &[], 500);
    let stream = SimStream::request("GET", "/critical", &[]);
    let _exchange = proxy.begin(&stream);
    assert!(stream.decision().unwrap().starts_with("circuit_open"));
    assert_eq!(in_flight(&proxy), 0);
}

#[test]
fn a_route_and_its_upstream_may_both_have_one() {
    let mut config =
        config(&json!({"concurrency_limits": {"r": {"algorithm": "fixed", "limit": 2}}}));
    config["routes"][2]["concurrency_limit"] = json!("r");
    let proxy = Proxy::new(&config);
    let mine = fill(&proxy, "/critical");
    assert_eq!(mine.len(), 2);
    assert_eq!(
        fill(&proxy, "/critical_plus").len(),
        8,
        "the upstream's counts both"
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_concurrency_in_flight;policy=r;key=critical"),
        2
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=critical;policy=r;reason=overload;mode=enforce"),
        1
    );
}

#[test]
fn routes_that_name_one_limit_have_their_own() {
    let routes = json!([
        {"name": "a", "match": {"path": "/a"}, "concurrency_limit": "c"},
        {"name": "b", "match": {"path": "/b"}, "concurrency_limit": "c"}]);
    let proxy = Proxy::new(&config(
        &json!({"routes": routes, "concurrency_limits": {"c": {"limit": 2}}}),
    ));
    assert_eq!((fill(&proxy, "/a").len(), fill(&proxy, "/b").len()), (2, 2));
}

#[test]
fn a_shadow_counts_and_refuses_none() {
    let proxy = Proxy::new(&config(
        &json!({"concurrency_limits": {"c": {"mode": "shadow", "limit": 2}}}),
    ));
    assert_eq!(fill(&proxy, "/critical").len(), 50);
    assert_eq!(in_flight(&proxy), 51);
    let name = "haven_decisions_total;route=critical;policy=c;reason=overload;mode=shadow";
    assert_eq!(proxy.machine.metric(name), 49);
    let off = Proxy::new(&config(
        &json!({"concurrency_limits": {"c": {"mode": "off", "limit": 2}}}),
    ));
    assert_eq!((fill(&off, "/critical").len(), in_flight(&off)), (50, 0));
}

#[test]
fn a_reload_keeps_those_in_flight_and_the_limit_found() {
    let adaptive =
        config(&json!({"concurrency_limits": {"c": {"algorithm": "adaptive", "limit": null}}}));
    let mut adaptive = adaptive;
    adaptive["concurrency_limits"]["c"] = json!({"min_limit": 5});
    let mut proxy = Proxy::new(&adaptive);
    assert_eq!(
        proxy
            .machine
            .metric("haven_concurrency_limit;policy=c;key=u"),
        20
    );
    let mut held = fill(&proxy, "/sheddable");
    assert_eq!(held.len(), 14);
    proxy.machine.advance(Nanos::from_millis(200));
    for exchange in &mut held[4..] {
        exchange_answered(&proxy, exchange);
    }
    let found = proxy
        .machine
        .metric("haven_concurrency_limit;policy=c;key=u");
    assert!(found > 20, "{found}");
    adaptive["concurrency_limits"]["c"]["max_limit"] = json!(25);
    proxy.reload(&adaptive);
    assert_eq!(in_flight(&proxy), 4);
    assert_eq!(
        proxy
            .machine
            .metric("haven_concurrency_limit;policy=c;key=u"),
        25,
        "within the new bounds"
    );
    for exchange in &mut held {
        exchange.on_end(&proxy.worker);
    }
    assert_eq!(in_flight(&proxy), 0);
}

fn exchange_answered(proxy: &Proxy, exchange: &mut Exchange) {
    let stream = SimStream::request("GET", "/sheddable", &[]);
    stream.answer(200, Some("10.0.0.1:80"), &[]);
    exchange.on_response(&proxy.worker, &stream);
    exchange.on_end(&proxy.worker);
}

#[test]
fn what_a_lost_worker_held_comes_back() {
    let mut proxy = Proxy::new(&config(&json!({})));
    let held = fill(&proxy, "/critical");
    let config = config(&json!({}));
    proxy.engine.tick(&proxy.worker);
    // The VM is gone: nothing it held is ever given back, and a new one takes its place.
    drop(held);
    proxy.reload(&config);
    let mut waited = 0;
    while proxy.status("/sheddable", &[]) != 200 {
        proxy.machine.advance(Nanos::from_secs(1));
        proxy.engine.tick(&proxy.worker);
        waited += 1;
        assert!(waited < 30, "still refused");
    }
    assert!(
        waited >= 10,
        "a worker that is merely slow is given time: {waited}"
    );
    assert_eq!(in_flight(&proxy), 0);
}

#[test]
fn a_gauge_gone_wrong_does_not_refuse_for_ever() {
    let proxy = Proxy::new(&config(&json!({})));
    let gauge = proxy.worker.define(
        MetricKind::Gauge,
        "haven_concurrency_in_flight;policy=c;key=u",
    );
    for wrong in [u64::MAX, u64::MAX - 7, 1_000, 1 << 39] {
        proxy.worker.record(gauge, wrong);
        for _ in 0..40 {
            proxy.machine.advance(Nanos::from_secs(1));
            proxy.engine.tick(&proxy.worker);
        }
        assert_eq!(
            (proxy.status("/critical", &[]), in_flight(&proxy)),
            (200, 0),
            "{wrong} at {:?}",
            proxy.worker.monotonic()
        );
    }
}

#[test]
fn the_limit_is_found() {
    let mut config = config(&json!({}));
    config["concurrency_limits"]["c"] = json!({});
    let proxy = Proxy::new(&config);
    // Ten at a time are answered in 100 ms; with 15 s to spend there is room for far more.
    for _ in 0..30 {
        let mut all: Vec<Exchange> = (0..10)
            .map(|_| proxy.begin(&SimStream::request("GET", "/critical", &[])))
            .collect();
        proxy.machine.advance(Nanos::from_millis(100));
        all.iter_mut()
            .for_each(|exchange| exchange_answered(&proxy, exchange));
    }
    assert_eq!(
        proxy
            .machine
            .metric("haven_concurrency_limit;policy=c;key=u"),
        1000,
        "{LIMIT}"
    );
    // Then nothing is answered any more: what hangs until the proxy's timeout proves that it is too
    // much.
    for _ in 0..30 {
        let mut all = fill(&proxy, "/critical_plus");
        proxy.machine.advance(Nanos::from_secs(15));
        all.iter_mut()
            .for_each(|exchange| exchange.on_end(&proxy.worker));
    }
    let limit = proxy
        .machine
        .metric("haven_concurrency_limit;policy=c;key=u");
    assert!(limit <= 4, "{limit}");
    // And well again: it doubles twice a second.
    for _ in 0..60 {
        let mut all = fill(&proxy, "/critical_plus");
        proxy.machine.advance(Nanos::from_millis(100));
        all.iter_mut()
            .for_each(|exchange| exchange_answered(&proxy, exchange));
    }
    assert!(
        proxy
            .machine
            .metric("haven_concurrency_limit;policy=c;key=u")
            > 100
    );
}
