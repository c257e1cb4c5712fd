//! Upstreams: their endpoints, and how one is picked.

use std::rc::Rc;

use haven::base::time::Nanos;
use haven::document::{BalancePolicy, Endpoint, KeyPart, LoadReport, Mode, Percent};

use crate::support::{FULL, errors, good, refused, refuses};

#[test]
fn the_full_document_is_read_as_it_is_meant() {
    let config = good(FULL);
    let [users, plain] = &config.upstreams[..] else {
        panic!()
    };
    assert_eq!(
        (users.name.as_str(), users.cluster.as_str()),
        ("users", "users-v1")
    );
    assert_eq!(
        users.endpoints,
        [
            Endpoint {
                address: "192.168.1.10:8080".into(),
                weight: 3,
                priority: 0,
                zone: Some("a".into())
            },
            Endpoint {
                address: "[2001:db8::1]:80".into(),
                weight: 1,
                priority: 1,
                zone: None
            },
        ]
    );
    assert_eq!(
        (users.panic_threshold, users.min_healthy),
        (Percent(3350), Some(Percent(5000)))
    );
    assert_eq!(users.override_header, "x-pick");
    let breaker = users.circuit_breaker.as_ref().unwrap();
    assert!(Rc::ptr_eq(breaker, &config.circuit_breakers[1]));
    assert_eq!(users.mode, Some(Mode::Enforce));
    assert_eq!(
        (plain.cluster.as_str(), plain.override_header.as_str()),
        ("plain", "x-haven-upstream")
    );
    assert_eq!(
        (plain.panic_threshold, plain.min_healthy, plain.mode),
        (Percent(5000), None, None)
    );
}

#[test]
fn upstreams_are_checked() {
    let address = "want an address like \"192.168.1.10:8080\" or \"[::1]:8080\"";
    for bad in [
        "localhost:80",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "::1:80",
        "[::1]",
        "[fe80::1%1]:80",
        "1.2.3:80",
        " 1.2.3.4:80",
        "",
    ] {
        refused(
            &format!(r#"{{"upstreams": {{"u": {{"endpoints": [{{"address": "{bad}"}}]}}}}}}"#),
            &[&format!(
                "upstreams.u.endpoints[0].address: \"{bad}\" is not allowed, {address}"
            )],
        );
    }
    let reserved = "want a header name that starts with \"x-\", none of Envoy's, none that tells who a client is, and none of x-forwarded-for, x-forwarded-proto, x-haven-cluster, \
                    x-real-ip, x-request-id";
    refuses(
        r#"{"upstreams": {"u": @}}"#,
        &[
            (
                r#"{"override": {"header": "host"}}"#,
                &format!("upstreams.u.override.header: \"host\" is not allowed, {reserved}"),
            ),
            (
                r#"{"override": {"header": "X-Real-IP"}}"#,
                &format!("upstreams.u.override.header: \"x-real-ip\" is not allowed, {reserved}"),
            ),
            (
                r#"{"override": {"header": "x-envoy-max-retries"}}"#,
                &format!(
                    "upstreams.u.override.header: \"x-envoy-max-retries\" is not allowed, {reserved}"
                ),
            ),
            (
                r#"{"override": {"header": "X-API-Key"}}"#,
                &format!("upstreams.u.override.header: \"x-api-key\" is not allowed, {reserved}"),
            ),
            (
                r#"{"override": {"header": ":path"}}"#,
                "upstreams.u.override.header: \":path\" is not allowed, want a header name",
            ),
            (
                r#"{"load_balancer": {"policy": "best"}}"#,
                "upstreams.u.load_balancer.policy: \"best\" is not allowed, want one of \
                 \"least_request\", \"round_robin\", \"peak_ewma\", \"consistent_hash\", \
                 \"random\", \"first\"",
            ),
            (
                r#"{"load_balancer": {"panic_threshold": 100.01}}"#,
                "upstreams.u.load_balancer.panic_threshold: 100.01 is not allowed, want a number \
                 from 0 to 100 with at most two decimals",
            ),
            (
                r#"{"min_healthy": 0.001}"#,
                "upstreams.u.min_healthy: 0.001 is not allowed, want a number from 0 to 100 with \
                 at most two decimals",
            ),
            (
                r#"{"endpoints": {}}"#,
                "upstreams.u.endpoints: {} is not allowed, want an object with one of envoy, consul, etcd",
            ),
            (
                r#"{"cluster": ""}"#,
                "upstreams.u.cluster: \"\" is not allowed, want a text of 1 to 255 bytes without \
                 control characters",
            ),
        ],
    );
    refused(
        r#"{"upstreams": {"u": {"circuit_breaker": "b"}}, "circuit_breakers": {"b": {"scope": "upstream"}}}"#,
        &[
            "upstreams.u.circuit_breaker: \"b\" is not allowed, want a circuit breaker without \"scope\": \"upstream\": on an upstream it \
           has a state per endpoint",
        ],
    );
    let many: Vec<_> = (0..1001)
        .map(|i| format!("{{\"address\": \"10.0.{}.{}:80\"}}", i / 250, i % 250))
        .collect();
    let errors = errors(&format!(
        r#"{{"upstreams": {{"u": {{"endpoints": [{}]}}}}}}"#,
        many.join(",")
    ));
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].ends_with("is not allowed, want a list of at most 1000 items, each an object")
    );
}

#[test]
fn balancing_is_read_as_it_is_meant() {
    let config = good(
        r#"{"upstreams": {
            "plain": {},
            "bold": {"load_balancer": {"panic_threshold": 0}},
            "hash": {"load_balancer": {"policy": "consistent_hash"}},
            "all": {"load_balancer": {"policy": "consistent_hash", "hash_key": [{"header": "X-User"}, "path"], "bounded_load": 2, "slow_start": "30s", "zone": "a"},
                    "max_ejection_percent": 10},
            "orca": {"load_balancer": {"policy": "round_robin"}, "load_report": "orca"}}}"#,
    );
    let [plain, bold, hash, all, orca] = &config.upstreams[..] else {
        panic!()
    };
    assert_eq!(
        (&plain.policy, plain.slow_start, &plain.zone),
        (&BalancePolicy::LeastRequest, None, &None)
    );
    assert_eq!(
        (plain.max_ejection, bold.max_ejection, all.max_ejection),
        (Percent(5_000), Percent(10_000), Percent(1_000))
    );
    let usual = BalancePolicy::ConsistentHash {
        key: vec![KeyPart::ClientIp],
        bounded_load: None,
    };
    assert_eq!(hash.policy, usual);
    let key = vec![KeyPart::Header("x-user".into()), KeyPart::Path];
    assert_eq!(
        all.policy,
        BalancePolicy::ConsistentHash {
            key,
            bounded_load: Some(Percent(200))
        }
    );
    assert_eq!(
        (all.slow_start, all.zone.as_deref()),
        (Some(Nanos::from_secs(30)), Some("a"))
    );
    assert_eq!(
        (orca.load_report, plain.load_report),
        (LoadReport::Orca, LoadReport::None)
    );
}

#[test]
fn what_a_balancing_policy_does_not_use_is_refused() {
    refuses(
        r#"{"upstreams": {"u": {@}}}"#,
        &[
            (
                r#""load_balancer": {"hash_key": ["path", "host"]}"#,
                "upstreams.u.load_balancer.hash_key: a list of 2 is not allowed, want none: only \
                 consistent_hash has a key",
            ),
            (
                r#""load_balancer": {"policy": "random", "bounded_load": 1.5}"#,
                "upstreams.u.load_balancer.bounded_load: 1.5 is not allowed, want none: only \
                 consistent_hash bounds load",
            ),
            (
                r#""load_balancer": {"policy": "first", "slow_start": "10s"}"#,
                "upstreams.u.load_balancer.slow_start: \"10s\" is not allowed, want none: with \
                 first there are no shares",
            ),
            (
                r#""load_balancer": {"policy": "consistent_hash"}, "load_report": "orca""#,
                "upstreams.u.load_report: \"orca\" is not allowed, want \"none\": with \
                 consistent_hash and first there are no shares",
            ),
            (
                r#""load_metric": "queue""#,
                "upstreams.u.load_metric: \"queue\" is not allowed, want none: only reports \
                 (\"load_report\": \"orca\") have metrics",
            ),
            (
                r#""load_report": true"#,
                "upstreams.u.load_report: true is not allowed, want one of \"none\", \"orca\"",
            ),
        ],
    );
}

#[test]
fn steering_by_exception_needs_what_the_proxys_own_choice_does() {
    let refused = |lacks: &str| {
        format!(
            "upstreams.u.steer: \"by_exception\" is not allowed, want \"always\", for Envoy's own \
             choice among endpoints needs {lacks}"
        )
    };
    let two = |weights: [u32; 2]| {
        let [a, b] = weights;
        format!(
            r#""endpoints": [{{"address": "10.0.0.1:80", "weight": {a}}},
                {{"address": "10.0.0.2:80", "weight": {b}}}]"#
        )
    };
    let equal = two([2, 2]);
    for (with, lacks) in [
        (String::new(), "endpoints of which haven could pick one"),
        (two([0, 0]), "endpoints of which haven could pick one"),
        (two([1, 2]), "one weight for all endpoints, but 0"),
        (
            format!(r#"{equal}, "load_balancer": {{"policy": "round_robin"}}"#),
            "\"policy\": \"least_request\"",
        ),
        (
            format!(r#"{equal}, "load_balancer": {{"policy": "peak_ewma"}}"#),
            "\"policy\": \"least_request\"",
        ),
        (
            format!(r#"{equal}, "load_balancer": {{"zone": "a"}}"#),
            "no zone",
        ),
        (
            format!(r#"{equal}, "load_report": "orca""#),
            "no load_report",
        ),
    ] {
        let comma = if with.is_empty() { "" } else { ", " };
        let with = format!(r#"{with}{comma}"steer": "by_exception""#);
        refuses(r#"{"upstreams": {"u": {@}}}"#, &[(&with, &refused(lacks))]);
    }
    for weights in [[2, 2], [0, 2], [1, 0]] {
        let endpoints = two(weights);
        good(&format!(
            r#"{{"upstreams": {{"u": {{{endpoints}, "steer": "by_exception"}}}}}}"#
        ));
    }
}
