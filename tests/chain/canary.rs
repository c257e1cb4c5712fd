//! Canaries: which requests go where, what headers and metrics show of it, and what becomes of a
//! canary that fails.

use super::*;

const V2: &str = "10.0.1.1:80";

/// Two versions, each with endpoints of its own; `more` goes into the route's canary.
fn two_versions(more: &Value, route: &Value) -> Value {
    let mut config = json!({
        "upstreams": {
            "v1": {"cluster": "users", "endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]},
            "v2": {"cluster": "users", "endpoints": [{"address": V2}], "load_balancer": {"panic_threshold": 0}}},
        "circuit_breakers": {
            "r": {"minimum_calls": 3, "open_duration": "5s", "half_open_calls": 1},
            "ep": {"consecutive_failures": 2, "open_duration": "5s", "half_open_calls": 1}},
        "fallbacks": {"stale": {"steps": [{"stale": {}}]}, "other": {"steps": [{"cluster": "elsewhere"}]}},
        "concurrency_limits": {"one": {"algorithm": "fixed", "limit": 1}},
        "rate_limits": {"l": {"limit": 1, "period": "1h"}},
        "routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "v1", "circuit_breaker": "r",
                    "canary": {"upstream": "v2", "header": {"x-canary": "true"}, "color_header": "x-color"}}]});
    merge(&mut config["routes"][0]["canary"], more);
    merge(&mut config["routes"][0], route);
    config
}

const FORCED: &[(&str, &[u8])] = &[("x-canary", b"true")];

fn side(stream: &SimStream) -> &'static str {
    let list = stream.request_header("x-haven-upstream").unwrap();
    if list == V2 {
        "v2"
    } else {
        assert!(!list.contains(V2), "{list}: no retry mixes versions");
        "v1"
    }
}

fn sent(proxy: &Proxy, upstream: &str, mode: &str) -> u64 {
    proxy.machine.metric(&format!(
        "haven_canary_requests_total;route=r;upstream={upstream};mode={mode}"
    ))
}

#[test]
fn a_header_or_a_cookie_chooses_and_the_hops_behind_are_told() {
    let more = json!({"cookie": {"version": "2"}, "stable": {"header": {"x-canary": "false"}}, "percent": 0});
    let proxy = Proxy::new(&two_versions(&more, &json!({})));
    let lying = [("x-color", &b"v2"[..]), ("X-Color", b"red")];
    for (headers, wanted) in [
        (&[][..], "v1"),
        (FORCED, "v2"),
        (&[("cookie", &b"a=b; version=2"[..])], "v2"),
        (
            &[("cookie", &b"version=2"[..]), ("x-canary", b"false")],
            "v1",
        ),
        (&lying, "v1"),
    ] {
        let stream = proxy.request("/api", headers, 200);
        assert_eq!(
            (side(&stream), stream.request_header("x-color").as_deref()),
            (wanted, Some(wanted)),
            "{headers:?}"
        );
        assert_eq!(
            stream.request_header("x-haven-cluster"),
            None,
            "both are in one cluster"
        );
    }
    assert_eq!(
        (sent(&proxy, "v1", "enforce"), sent(&proxy, "v2", "enforce")),
        (3, 2)
    );
    assert_eq!(
        proxy
            .request("/other", &lying, 200)
            .request_header("x-color"),
        None,
        "only haven sets it"
    );
}

#[test]
fn a_colour_can_be_named_and_one_from_a_proxy_in_front_trusted() {
    let more = json!({"color": "green", "stable_color": "blue", "header": {"x-color": "green", "x-canary": null}});
    let mut config = two_versions(&more, &json!({}));
    config["routes"][0]["canary"]["header"]
        .as_object_mut()
        .unwrap()
        .remove("x-canary");
    let proxy = Proxy::new(&config);
    for (said, sent, wanted) in [(&b"green"[..], "green", "v2"), (b"red", "blue", "v1")] {
        let stream = proxy.request("/api", &[("x-color", said)], 200);
        assert_eq!(
            (side(&stream), stream.request_header("x-color").as_deref()),
            (wanted, Some(sent))
        );
    }
}

#[test]
fn a_client_stays_on_its_side_over_reloads_and_proxies() {
    let config = |percent: u32| {
        two_versions(
            &json!({"percent": percent, "sticky": ["client_ip"]}),
            &json!({}),
        )
    };
    let sides = |proxy: &Proxy| -> Vec<bool> {
        (0..=255u8)
            .map(|n| {
                let stream = SimStream::request("GET", "/api", &[]);
                stream.set_property(
                    Property::SourceAddress,
                    format!("192.0.2.{n}:4000").as_bytes(),
                );
                let mut exchange = proxy.begin(&stream);
                exchange.on_end(&proxy.worker);
                side(&stream) == "v2"
            })
            .collect()
    };
    let mut proxy = Proxy::new(&config(10));
    let low = sides(&proxy);
    assert_eq!(sides(&proxy), low);
    assert_eq!(sides(&Proxy::new(&config(10))), low, "another proxy");
    let count = low.iter().filter(|on| **on).count();
    assert!(
        (8..=50).contains(&count),
        "{count} of 256 are about a tenth"
    );
    proxy.reload(&config(40));
    let high = sides(&proxy);
    assert!(
        low.iter().zip(&high).all(|(low, high)| *high || !low),
        "none leaves the canary"
    );
    proxy.reload(&config(100));
    assert!(sides(&proxy).iter().all(|on| *on));
    proxy.reload(&config(0));
    assert!(!sides(&proxy).iter().any(|on| *on));
}

#[test]
fn a_canary_that_fails_gives_its_clients_back() {
    let proxy = Proxy::new(&two_versions(&json!({}), &json!({})));
    let mut errors = 0;
    for _ in 0..10 {
        let stream = proxy.request("/api", FORCED, 500);
        errors += u32::from(side(&stream) == "v2");
        assert!(stream.replied().is_none());
        // The route's own upstream is well.
        if side(&stream) == "v1" {
            assert_eq!(stream.request_header("x-color").as_deref(), Some("v1"));
            assert_eq!(stream.decision(), None, "nothing was refused");
            break;
        }
    }
    assert_eq!(errors, 3, "as many as open the breaker");
    assert_eq!(
        proxy
            .machine
            .metric("haven_circuit_breaker_state;circuit_breaker=r;key=r/v2"),
        1
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_circuit_breaker_state;circuit_breaker=r;key=r"),
        0
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_canary_returned_total;route=r;reason=circuit_open"),
        1
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=r;policy=r;reason=circuit_open;mode=enforce"),
        0
    );
    // It is tried again, and taken back.
    proxy.machine.advance(Nanos::from_secs(6));
    assert_eq!(side(&proxy.request("/api", FORCED, 200)), "v2");
    assert_eq!(side(&proxy.request("/api", FORCED, 200)), "v2");
    assert_eq!(
        proxy
            .machine
            .metric("haven_circuit_breaker_state;circuit_breaker=r;key=r/v2"),
        0
    );
    assert!(
        proxy
            .machine
            .metrics_of("haven_endpoint_in_flight")
            .iter()
            .all(|(_, value)| *value == 0)
    );
}

#[test]
fn a_canary_may_have_a_breaker_of_its_own_and_none_of_its_endpoints_may_be_usable() {
    let mut config = two_versions(&json!({"circuit_breaker": "ep"}), &json!({}));
    let proxy = Proxy::new(&config);
    let sides: Vec<_> = (0..4)
        .map(|_| side(&proxy.request("/api", FORCED, 503)))
        .collect();
    // After the second failure all goes to v1, whose own failures count for v1.
    assert_eq!(sides, ["v2", "v2", "v1", "v1"]);

    config["routes"][0]["canary"]
        .as_object_mut()
        .unwrap()
        .remove("circuit_breaker");
    config["upstreams"]["v2"]["circuit_breaker"] = json!("ep");
    let proxy = Proxy::new(&config);
    let sides: Vec<_> = (0..3)
        .map(|_| side(&proxy.request("/api", FORCED, 503)))
        .collect();
    assert_eq!(sides, ["v2", "v2", "v1"]);
    assert_eq!(
        proxy
            .machine
            .metric("haven_canary_returned_total;route=r;reason=no_endpoint"),
        1
    );
    let ready = proxy.request("/readyz", &[], 200).replied().unwrap();
    let document: Value = serde_json::from_slice(&ready.body).unwrap();
    assert_eq!(
        (ready.status, &document["details"]["v2"]["status"]),
        (200, &"DOWN".into()),
        "not what all depends on"
    );
}

#[test]
fn a_full_canary_gives_back_and_a_full_route_refuses() {
    let mut config = two_versions(&json!({}), &json!({}));
    config["upstreams"]["v2"]["concurrency_limit"] = json!("one");
    let proxy = Proxy::new(&config);
    let (a, b) = (
        SimStream::request("GET", "/api", FORCED),
        SimStream::request("GET", "/api", FORCED),
    );
    let (mut first, mut second) = (proxy.begin(&a), proxy.begin(&b));
    assert_eq!((side(&a), side(&b)), ("v2", "v1"));
    first.on_end(&proxy.worker);
    second.on_end(&proxy.worker);
    assert_eq!(
        side(&proxy.request("/api", FORCED, 200)),
        "v2",
        "its place was given back"
    );

    let proxy = Proxy::new(&two_versions(
        &json!({}),
        &json!({"concurrency_limit": "one"}),
    ));
    let (a, b) = (
        SimStream::request("GET", "/api", FORCED),
        SimStream::request("GET", "/api", &[]),
    );
    let (mut first, mut second) = (proxy.begin(&a), proxy.begin(&b));
    assert_eq!(
        (side(&a), b.replied().map(|reply| reply.status)),
        ("v2", Some(503)),
        "the route's limit is for both"
    );
    let c = SimStream::request("GET", "/api", FORCED);
    let mut third = proxy.begin(&c);
    assert_eq!(c.replied().map(|reply| reply.status), Some(503));
    assert_eq!(
        c.decision().as_deref(),
        Some("overload one enforce"),
        "once"
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=r;policy=one;reason=overload;mode=enforce"),
        2
    );
    for exchange in [&mut first, &mut second, &mut third] {
        exchange.on_end(&proxy.worker);
    }
    assert_eq!(
        proxy
            .machine
            .metric("haven_concurrency_in_flight;policy=one;key=r"),
        0
    );
}

#[test]
fn both_sides_share_the_limits_and_not_the_answers_kept() {
    let proxy = Proxy::new(&two_versions(&json!({}), &json!({"rate_limits": ["l"]})));
    assert_eq!(proxy.status("/api", FORCED), 200);
    assert_eq!(proxy.status("/api", &[]), 429, "one quota for the route");

    let proxy = Proxy::new(&two_versions(&json!({}), &json!({"fallback": "stale"})));
    let ask = |headers: &[(&str, &[u8])], status: u16, body: &[u8]| {
        let stream = SimStream::request("GET", "/api", headers);
        let mut exchange = proxy.begin(&stream);
        stream.answer(
            status,
            Some("10.0.0.1:80"),
            &[("transfer-encoding", b"chunked")],
        );
        exchange.on_response_headers(&proxy.worker, &stream, false);
        stream.piece(body);
        exchange.on_response_body(&proxy.worker, &stream, body.len(), true);
        exchange.on_end(&proxy.worker);
        let (_, sent) = stream.sent();
        (sent != body).then(|| String::from_utf8(sent).unwrap())
    };
    assert_eq!(ask(FORCED, 200, b"new"), None);
    assert_eq!(
        ask(&[], 500, b""),
        None,
        "the canary's answer is no route's last good one"
    );
    assert_eq!(ask(&[], 200, b"old"), None);
    assert_eq!(ask(FORCED, 500, b"").as_deref(), Some("old"));
    assert_eq!(ask(&[], 500, b"").as_deref(), Some("old"));
}

#[test]
fn across_clusters_the_proxy_is_told_and_clients_have_no_say() {
    let mut config = two_versions(&json!({}), &json!({}));
    config["upstreams"]["v2"]["cluster"] = json!("users-v2");
    let proxy = Proxy::new(&config);
    let cluster = |stream: &SimStream| stream.request_header("x-haven-cluster").unwrap();
    assert_eq!(
        cluster(&proxy.request("/api", &[("x-haven-cluster", b"users-v2")], 200)),
        "users"
    );
    for _ in 0..3 {
        assert_eq!(cluster(&proxy.request("/api", FORCED, 500)), "users-v2");
    }
    assert_eq!(
        cluster(&proxy.request("/api", FORCED, 200)),
        "users",
        "back"
    );
    // Off or not, the header has to be set.
    config["routes"][0]["canary"]["mode"] = json!("off");
    let stream = Proxy::new(&config).request("/api", FORCED, 200);
    assert_eq!((side(&stream), cluster(&stream).as_str()), ("v1", "users"));
    assert_eq!(stream.request_header("x-color"), None);
    // A fallback's cluster comes last: when neither side takes the request.
    config["routes"][0]["canary"]["mode"] = json!("enforce");
    config["routes"][0]["fallback"] = json!("other");
    config["circuit_breakers"]["r"]["minimum_calls"] = json!(1);
    let proxy = Proxy::new(&config);
    for wanted in ["users-v2", "users", "elsewhere"] {
        assert_eq!(cluster(&proxy.request("/api", FORCED, 500)), wanted);
    }
}

#[test]
fn a_shadow_counts_and_sends_none() {
    for (canary, route) in [
        (json!({"mode": "shadow"}), json!({})),
        (json!({}), json!({"mode": "shadow"})),
    ] {
        let proxy = Proxy::new(&two_versions(&canary, &route));
        for headers in [FORCED, &[], FORCED] {
            let stream = proxy.request("/api", headers, 200);
            assert_eq!(stream.request_header("x-color"), None);
            assert!(
                stream
                    .request_header("x-haven-upstream")
                    .is_none_or(|list| !list.contains(V2))
            );
        }
        assert_eq!(
            (sent(&proxy, "v1", "shadow"), sent(&proxy, "v2", "shadow")),
            (1, 2)
        );
    }
    let proxy = Proxy::new(&two_versions(
        &json!({"mode": "enforce"}),
        &json!({"mode": "off"}),
    ));
    assert_eq!(
        proxy
            .request("/api", FORCED, 200)
            .request_header("x-color")
            .as_deref(),
        Some("v2"),
        "the inner one wins"
    );
}

#[test]
fn retries_of_a_canary_are_the_routes_and_come_out_of_its_budget() {
    let retry = json!({"retry": {"attempts": 2, "budget": 0, "min_per_second": 1}});
    let proxy = Proxy::new(&two_versions(&json!({}), &retry));
    let granted = |headers: &[(&str, &[u8])]| {
        let stream = SimStream::request("GET", "/api", headers);
        let mut exchange = proxy.begin(&stream);
        let said = stream.request_header("x-envoy-max-retries").unwrap();
        let list = stream.request_header("x-haven-upstream").unwrap();
        let address = list.split(',').next().unwrap();
        stream.fail(
            503,
            "upstream_reset_before_response_started{connection_termination}",
            Some(address),
            2,
        );
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        said
    };
    assert_eq!(granted(FORCED), "1");
    assert_eq!(proxy.machine.metric("haven_retries_total;route=r"), 1);
    assert_eq!(granted(&[]), "0", "the canary has spent it");
}
