//! The configuration as users meet it: documents in, a typed configuration or messages out.

#![cfg(not(target_arch = "wasm32"))]

use std::path::Path;

use haven::base::time::Nanos;
use haven::config::{
    Algorithm, Ask, BalancePolicy, BreakerScope, Canary, Cidr, Color, ConcurrencyAlgorithm, Config,
    Cost, Criticality, DynamicTimeout, Endpoint, FallbackStep, HostMatch, IpSource, KeyPart,
    LoadReport, Marks, MissingKey, Mode, OnContention, PathMatch, Percent, Quota, QuotaHeaders,
    RejectBelow, RequestTimeout, Retry, TemplatePart, Timeout, Window, parse, reference, schema,
};
use proptest::prelude::*;

/// Everything that is supported, at once.
const FULL: &str = include_str!("data/config/full.json");
/// The example of the contract.
const CONTRACT: &str = include_str!("data/config/contract.json");

fn good(document: &str) -> Config {
    parse(document.as_bytes()).unwrap_or_else(|errors| panic!("{document}\n{errors}"))
}

fn errors(document: &str) -> Vec<String> {
    match parse(document.as_bytes()) {
        Ok(_) => panic!("accepted: {document}"),
        Err(errors) => errors.to_string().lines().map(Into::into).collect(),
    }
}

#[track_caller]
fn refused(document: &str, expected: &[&str]) {
    assert_eq!(errors(document), expected, "{document}");
}

/// Documents whose only error is in one field, and the message.
#[track_caller]
fn refuses(template: &str, cases: &[(&str, &str)]) {
    for (value, expected) in cases {
        refused(&template.replace('@', value), &[expected]);
    }
}

#[test]
fn nothing_is_a_valid_configuration() {
    for document in ["", " \n\t", "{}", " { } "] {
        let config = good(document);
        assert_eq!(config.service, "haven");
        assert_eq!(config.health.livez.as_deref(), Some("/livez"));
        assert_eq!(
            Config {
                service: String::new(),
                ..config
            },
            Config::default()
        );
    }
}

#[test]
fn the_full_document_is_read_as_it_is_meant() {
    let config = good(FULL);
    assert_eq!(
        (config.service.as_str(), config.mode),
        ("user-service", Mode::Shadow)
    );
    assert_eq!(config.client_ip.source, IpSource::XForwardedFor);
    assert_eq!(
        (
            config.client_ip.trusted_hops,
            config.client_ip.ipv4_prefix,
            config.client_ip.ipv6_prefix
        ),
        (2, 24, 56)
    );

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
    assert_eq!(
        (users.override_header.as_str(), users.circuit_breaker),
        ("x-pick", Some(1))
    );
    assert_eq!(users.mode, Some(Mode::Enforce));
    assert_eq!(
        (plain.cluster.as_str(), plain.override_header.as_str()),
        ("plain", "x-haven-upstream")
    );
    assert_eq!(
        (plain.panic_threshold, plain.min_healthy, plain.mode),
        (Percent(5000), None, None)
    );

    let [client, usual] = &config.rate_limits[..] else {
        panic!()
    };
    assert_eq!(
        client.quota,
        Quota {
            limit: 100,
            period: Nanos::from_millis(1500),
            burst: 50
        }
    );
    assert_eq!(
        client.key,
        [
            KeyPart::ClientIp,
            KeyPart::Host,
            KeyPart::Header("x-tenant".into()),
            KeyPart::Cookie("Sid".into()),
            KeyPart::Query("Q".into()),
            KeyPart::PathSegment(0),
        ]
    );
    assert_eq!(
        client.cost,
        Cost::Header {
            name: "x-cost".into(),
            default: 2,
            max: 10
        }
    );
    assert_eq!(client.overrides.len(), 1);
    assert_eq!(
        client.overrides[0].1,
        Quota {
            limit: 5,
            period: Nanos::from_millis(1500),
            burst: 5
        }
    );
    assert_eq!(
        client.exempt,
        [
            Cidr {
                address: 0xffff_0a00_0000,
                prefix: 104
            },
            Cidr {
                address: 0x2001_0db8 << 96,
                prefix: 32
            },
            Cidr {
                address: 1,
                prefix: 128
            },
        ]
    );
    assert_eq!(
        (client.missing_key, client.max_keys, client.headers),
        (MissingKey::Share, 10, QuotaHeaders::Both)
    );
    assert_eq!(client.on_contention, OnContention::Deny);
    assert_eq!(
        usual.quota,
        Quota {
            limit: 7,
            period: Nanos::from_secs(1),
            burst: 7
        }
    );
    assert_eq!(
        (&usual.key, &usual.cost, usual.max_keys),
        (&vec![], &Cost::Fixed(1), 65_536)
    );
    assert_eq!(
        (usual.headers, usual.on_contention, usual.missing_key),
        (QuotaHeaders::Ietf, OnContention::Allow, MissingKey::Skip)
    );

    let breaker = &config.circuit_breakers[0];
    assert_eq!(
        (breaker.scope, breaker.consecutive_failures, breaker.window),
        (
            BreakerScope::Upstream,
            5,
            Window::Time(Nanos::from_secs(20))
        )
    );
    assert_eq!(
        (breaker.backoff_multiplier_centi, breaker.jitter),
        (150, Percent(1000))
    );
    assert_eq!(
        (breaker.open_duration, breaker.max_open_duration),
        (Nanos::from_secs(90), Nanos::from_secs(90))
    );
    assert_eq!(
        breaker.failure_on.status,
        [(500, 599), (429, 429), (408, 408)]
    );
    assert_eq!(breaker.failure_on.grpc_status, [14]);
    assert!(
        !breaker.failure_on.reset
            && breaker.failure_on.timeout
            && !breaker.honour_retry_after
            && !breaker.open_above
    );
    let usual = &config.circuit_breakers[1];
    assert_eq!(
        (usual.failure_rate_threshold, usual.slow_call_rate_threshold),
        (Percent(5000), Percent(10_000))
    );
    assert_eq!(
        (usual.minimum_calls, usual.window, usual.open_duration),
        (20, Window::Time(Nanos::from_secs(10)), Nanos::from_secs(5))
    );
    assert_eq!(
        (usual.half_open_calls, usual.half_open_max_wait),
        (5, Nanos::from_secs(30))
    );
    assert_eq!(
        (usual.max_open_duration, usual.backoff_multiplier_centi),
        (Nanos::from_secs(60), 100)
    );
    assert_eq!(
        (usual.slow_call_duration, usual.consecutive_failures),
        (Nanos::from_secs(60), 0)
    );
    assert_eq!(usual.failure_on.status, [(500, 599)]);
    assert_eq!(usual.failure_on.grpc_status, [2, 4, 8, 13, 14, 15]);
    assert!(usual.honour_retry_after && usual.failure_on.reset && usual.failure_on.timeout);

    let fallback = &config.fallbacks[0];
    assert!(fallback.on.rate_limited && fallback.on.timeout && !fallback.on.overload);
    let [
        FallbackStep::Stale(stale),
        FallbackStep::Cluster(cluster),
        FallbackStep::Respond(respond),
    ] = &fallback.steps[..]
    else {
        panic!("{:?}", fallback.steps)
    };
    assert_eq!(
        (stale.max_age, stale.max_body, stale.max_entries),
        (Nanos::from_secs(600), 32 << 10, 9)
    );
    assert_eq!(
        (stale.vary.as_slice(), stale.max_bytes),
        (&["accept".to_owned()][..], 1 << 20)
    );
    assert_eq!(cluster, "other");
    assert_eq!(
        (respond.status, respond.content_type.as_str()),
        (299, "application/json")
    );
    assert_eq!(respond.headers, [("x-a".into(), "ü".into())]);
    assert_eq!(
        respond.body,
        [
            TemplatePart::Literal("{\"id\":\"".into()),
            TemplatePart::RequestId,
            TemplatePart::Literal("\",\"é\":{\"x\":".into()),
            TemplatePart::RetryAfter,
            TemplatePart::Literal("}}".into()),
            TemplatePart::Reason,
            TemplatePart::Route,
        ]
    );
    let on = config.fallbacks[1].on;
    assert!(
        !on.rate_limited
            && on.overload
            && on.circuit_open
            && on.no_endpoint
            && on.deadline
            && on.switched_off
    );
    assert!(on.upstream_error && on.timeout);

    let [all, exact, prefix, pattern] = &config.routes[..] else {
        panic!()
    };
    assert_eq!(all.matcher.path, PathMatch::Prefix(String::new()));
    assert_eq!(all.matcher.methods, ["GET", "PURGE"]);
    assert_eq!(
        all.matcher.hosts,
        [
            HostMatch::Exact("example.com".into()),
            HostMatch::Suffix(".example.com".into()),
            HostMatch::Exact("[::1]".into()),
        ]
    );
    assert_eq!(
        all.matcher.headers,
        [("x-a".into(), Some("1".into())), ("x-b".into(), None)]
    );
    assert_eq!(
        (
            all.upstream,
            &all.rate_limits,
            all.circuit_breaker,
            all.fallback
        ),
        (Some(0), &vec![1, 0], Some(0), Some(1))
    );
    assert_eq!(all.mode, Some(Mode::Off));
    let mark = |name: &str, value: Option<&str>| vec![(name.to_owned(), value.map(str::to_owned))];
    assert_eq!(
        all.canary,
        Some(Canary {
            mode: Some(Mode::Shadow),
            upstream: 1,
            percent: Percent(250),
            sticky: vec![KeyPart::ClientIp, KeyPart::Cookie("Id".into())],
            forced: Marks {
                headers: mark("x-canary", Some("true")),
                cookies: mark("Version", Some("2"))
            },
            stable: Marks {
                headers: mark("x-canary", None),
                cookies: mark("version", Some("1"))
            },
            color: Some(Color {
                header: "x-color".into(),
                canary: "green".into(),
                stable: "blue".into()
            }),
            circuit_breaker: Some(1),
        })
    );
    assert_eq!(exact.matcher.path, PathMatch::Exact("/a/b".into()));
    assert_eq!(
        (
            exact.upstream,
            exact.circuit_breaker,
            exact.fallback,
            exact.mode
        ),
        (None, None, None, None)
    );
    assert_eq!(prefix.matcher.path, PathMatch::Prefix("/api/users".into()));
    assert_eq!(
        pattern.matcher.path,
        PathMatch::Pattern(vec![Some("users".into()), None, Some("orders".into())])
    );

    assert_eq!(config.health.livez.as_deref(), Some("/alive"));
    assert_eq!(config.health.readyz, None);
    assert_eq!(config.health.health.as_deref(), Some("/health"));
}

#[test]
fn a_canary_takes_its_routes_breaker_and_its_upstreams_for_colours() {
    let route = |canary: &str| {
        let upstreams = r#""upstreams": {"v1": {}, "v2": {"override": {"header": "x-pick"}}}, "circuit_breakers": {"b": {}}"#;
        format!(
            r#"{{{upstreams}, "routes": [{{"name": "r", "upstream": "v1", "circuit_breaker": "b", "canary": {canary}}}]}}"#
        )
    };
    let config = parse(route(r#"{"upstream": "v2", "color_header": "x-c"}"#).as_bytes()).unwrap();
    let canary = config.routes[0].canary.clone().unwrap();
    assert_eq!(
        (canary.percent, canary.circuit_breaker, canary.upstream),
        (Percent(0), Some(0), 1)
    );
    assert_eq!(
        canary.color,
        Some(Color {
            header: "x-c".into(),
            canary: "v2".into(),
            stable: "v1".into()
        })
    );
    refused(
        &route(r#"{"upstream": "v1"}"#),
        &[
            "routes[0].canary.upstream: \"v1\" is not allowed, want another upstream than the route's",
        ],
    );
    refused(
        &route(r#"{"upstream": "v2", "percent": 101, "color": "red"}"#),
        &[
            "routes[0].canary.percent: 101 is not allowed, want a number from 0 to 100 with at most two decimals",
            "routes[0].canary.color: \"red\" is not allowed, want none: there is no color_header",
        ],
    );
    for header in [
        "color",
        "x-envoy-max-retries",
        "x-haven-cluster",
        "x-pick",
        "x-request-id",
    ] {
        let found = errors(&route(&format!(
            r#"{{"upstream": "v2", "color_header": "{header}"}}"#
        )));
        assert!(
            found.len() == 1 && found[0].contains("a header that says nothing else"),
            "{found:?}"
        );
    }
    refused(
        r#"{"upstreams": {"v2": {}}, "routes": [{"name": "r", "canary": {"upstream": "v2"}}]}"#,
        &[
            "routes[0].canary.upstream: \"v2\" is not allowed, want none: the route has no upstream of its own",
        ],
    );
}

#[test]
fn the_contract_is_refused_only_where_it_is_not_built_yet() {
    let errors = errors(CONTRACT);
    assert!(
        errors
            .iter()
            .all(|error| error.ends_with(" is not supported yet")),
        "{errors:#?}"
    );
}

#[test]
fn all_errors_come_at_once() {
    refused(
        r#"{
            "colour": "red",
            "service": 1,
            "upstreams": {"users": {"endpoints": [{"address": "1.2.3.4:80", "weight": 1001}, {"address": "1.2.3.4"}, {"address": "1.2.3.4:80"}]}},
            "rate_limits": {"per-client": {"limit": 0}, "b c": {"limit": 1}, "x": {}},
            "routes": [
                {"name": "a", "upstream": "userz", "match": {"prefix": "api"}, "retires": 3, "rate_limits": ["y"]},
                {"name": "a", "upstream": "users", "circuit_breaker": "none"}
            ]
        }"#,
        &[
            "colour: unknown field, value \"red\" is not allowed, want one of service, mode, client_ip, upstreams, rate_limits, \
             circuit_breakers, concurrency_limits, fallbacks, switches, routes, health, admin, trust_client_retry_headers",
            "service: 1 is not allowed, want a text of 1 to 255 bytes without control characters",
            "upstreams.users.endpoints[0].weight: 1001 is not allowed, want an integer from 0 to 1000",
            "upstreams.users.endpoints[1].address: \"1.2.3.4\" is not allowed, want an address like \"192.168.1.10:8080\" or \"[::1]:8080\"",
            "rate_limits.per-client.limit: 0 is not allowed, want an integer from 1 to 1000000000",
            "rate_limits: \"b c\" is not allowed, want a name: 1 to 64 of A-Z a-z 0-9 . _ : / -",
            "rate_limits.x.limit: nothing is not allowed, want an integer from 1 to 1000000000 (required)",
            "routes[0].retires: unknown field, value 3 is not allowed, want one of name, mode, match, upstream, rate_limits, \
             circuit_breaker, concurrency_limit, fallback, timeout, retry, criticality, switch, canary, depends_on",
            "routes[0].match.prefix: \"api\" is not allowed, want a path that starts with \"/\", percent-encoded, without \"?\" and \"#\"",
            "routes[0].upstream: \"userz\" is not allowed, want one of the upstreams: \"users\"",
            "routes[0].rate_limits[0]: \"y\" is not allowed, want one of the rate_limits: \"per-client\", \"x\"",
            "routes[1].circuit_breaker: \"none\" is not allowed, want one of the circuit_breakers: there are none",
            "upstreams.users.endpoints[2].address: \"1.2.3.4:80\" is not allowed, want each address only once",
            "routes[1].name: \"a\" is not allowed, want each route's name only once",
        ],
    );
}

#[test]
fn what_is_not_json_has_a_place() {
    for (document, expected) in [
        (
            &b"{"[..],
            "line 1, column 1: the document is not JSON: EOF while parsing an object",
        ),
        (
            b"{\n  \"mode\" \"off\"}",
            "line 2, column 10: the document is not JSON: expected `:`",
        ),
        (
            b"{\"\xc3\xa9\": }",
            "line 1, column 7: the document is not JSON: expected value",
        ),
        (
            b"{\n\"a\xff\": 1}",
            "line 2, column 3: the document is not JSON: invalid unicode code point",
        ),
        (
            b"{\"mode\": 1e400}",
            "line 1, column 14: the document is not JSON: number out of range",
        ),
        (b"[1]", "the document: [1] is not allowed, want an object"),
        (b"null", "the document: null is not allowed, want an object"),
    ] {
        assert_eq!(parse(document).unwrap_err().to_string(), expected);
    }
    let huge = vec![b' '; (1 << 20) + 1];
    assert_eq!(
        parse(&huge).unwrap_err().to_string(),
        "the document: 1048577 bytes are not allowed, want at most 1048576"
    );
    assert!(parse(&vec![b' '; 1 << 20]).is_ok());
}

#[test]
fn deep_documents_are_refused() {
    for open in ["[", "{\"a\":", "{\"routes\":[", "{\"upstreams\":{\"a\":"] {
        let errors = errors(&open.repeat(50_000));
        assert!(
            errors.len() == 1 && errors[0].contains("recursion limit exceeded"),
            "{errors:?}"
        );
    }
    let nested = format!("{}{}", "[".repeat(126), "]".repeat(126));
    assert!(errors(&format!("{{\"mode\": {nested}}}"))[0].starts_with("mode: [[["));
}

#[test]
fn duplicates_are_refused_wherever_they_are() {
    refused(
        r#"{"mode": "off", "mode": "off"}"#,
        &["mode: \"off\" is not allowed, want this key only once"],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1}, "a": {"limit": 2}}}"#,
        &["rate_limits.a: {\"limit\":2} is not allowed, want this key only once"],
    );
    refused(
        r#"{"rate_limits": {"a.b": {"limit": 1, "limit": 1}}}"#,
        &["rate_limits[\"a.b\"].limit: 1 is not allowed, want this key only once"],
    );
    refused(
        r#"{"upstreams": {"a": {"endpoints": [{"address": "[2001:DB8:0::1]:80"}, {"address": "[2001:db8::1]:80"}]}}}"#,
        &[
            "upstreams.a.endpoints[1].address: \"[2001:db8::1]:80\" is not allowed, want each address only once",
        ],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1}}, "routes": [{"name": "r", "rate_limits": ["a", "a"]}]}"#,
        &["routes[0].rate_limits[1]: \"a\" is not allowed, want each item only once"],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1, "key": [{"header": "X-A"}, "host", {"header": "x-a"}]}}}"#,
        &["rate_limits.a.key[2]: {\"header\":\"x-a\"} is not allowed, want each item only once"],
    );
    refused(
        r#"{"routes": [{"name": "r", "match": {"headers": {"X-A": "1", "x-a": "2"}, "methods": ["get", "GET"]}}]}"#,
        &[
            "routes[0].match.methods[1]: \"GET\" is not allowed, want each item only once",
            "routes[0].match.headers.x-a: \"2\" is not allowed, want this name only once, whatever its case",
        ],
    );
    refused(
        r#"{"health": {"livez": "/health", "readyz": null, "startupz": "/x"}}"#,
        &["health.health: \"/health\" is not allowed, want a path of its own"],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1, "key": ["client_ip"], "overrides": [
            {"key": ["2001:db8::1"], "limit": 1}, {"key": ["2001:DB8::2"], "limit": 2}]}}}"#,
        &[
            "rate_limits.a.overrides[1].key: \"2001:DB8::2\" is not allowed, want each key only once",
        ],
    );
}

#[test]
fn numbers_are_judged_exactly() {
    let want = "is not allowed, want an integer from 1 to 1000000000";
    for (number, shown) in [
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("1e300", "1e+300"),
        ("1e-400", "0.0"),
        ("-0", "-0.0"),
        ("0", "0"),
        ("0.50", "0.5"),
        ("1.000001", "1.000001"),
        ("1000000001", "1000000001"),
        ("true", "true"),
        ("\"5\"", "\"5\""),
        ("null", "null"),
        ("{}", "{}"),
        ("[]", "[]"),
    ] {
        refused(
            &format!(r#"{{"rate_limits": {{"a": {{"limit": {number}}}}}}}"#),
            &[&format!("rate_limits.a.limit: {shown} {want}")],
        );
    }
    for (number, limit) in [("1", 1), ("1e9", 1_000_000_000), ("5.0", 5), ("1E+2", 100)] {
        assert_eq!(
            good(&format!(
                r#"{{"rate_limits": {{"a": {{"limit": {number}}}}}}}"#
            ))
            .rate_limits[0]
                .quota
                .limit,
            limit
        );
    }
}

#[test]
fn at_most_64_errors_are_listed() {
    let routes: Vec<_> = (0..100).map(|_| "{}").collect();
    let errors = errors(&format!("{{\"routes\": [{}]}}", routes.join(",")));
    assert_eq!(errors.len(), 65);
    assert_eq!(errors[64], "and 36 more");
}

#[test]
fn values_are_shown_short() {
    let error = &errors(&format!("{{\"mode\": \"{}\"}}", "ä".repeat(10_000)))[0];
    assert!(error.ends_with("ä... is not allowed, want one of \"enforce\", \"shadow\", \"off\""));
    assert_eq!(
        error.split(" is not").next().unwrap().chars().count(),
        "mode: ".len() + 64
    );
    let error = &errors(&format!("{{\"{}\": 1}}", "k".repeat(100_000)))[0];
    assert!(error.len() < 1000, "{}", error.len());
    assert_eq!(
        errors("{\"mode\": \"a\\nb\\u001b[31m\"}")[0]
            .lines()
            .count(),
        1
    );
}

#[test]
fn secrets_are_not_shown() {
    for document in [
        r#"{"admin": {"token": "geheim", "x": 1}}"#,
        r#"{"admin": {"token": ["geheim"]}}"#,
        r#"{"token": "geheim"}"#,
    ] {
        let errors = errors(document).join("\n");
        assert!(
            errors.contains("***") && !errors.contains("geheim"),
            "{errors}"
        );
    }
}

#[test]
fn modes_stand_everywhere() {
    let template = r#"{"mode": "@", "upstreams": {"u": {"mode": "@"}}, "rate_limits": {"l": {"limit": 1, "mode": "@"}},
        "circuit_breakers": {"b": {"mode": "@"}}, "fallbacks": {"f": {"mode": "@", "steps": [{"respond": {}}]}},
        "routes": [{"name": "r", "mode": "@"}]}"#;
    for (word, mode) in [
        ("enforce", Mode::Enforce),
        ("shadow", Mode::Shadow),
        ("off", Mode::Off),
    ] {
        let config = good(&template.replace('@', word));
        assert_eq!(config.mode, mode);
        let modes = [
            config.upstreams[0].mode,
            config.rate_limits[0].mode,
            config.circuit_breakers[0].mode,
            config.fallbacks[0].mode,
            config.routes[0].mode,
        ];
        assert_eq!(modes, [Some(mode); 5]);
    }
    assert_eq!(errors(&template.replace('@', "on")).len(), 6);
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
    let reserved = "want a header name that starts with \"x-\" and is none of x-forwarded-for, x-forwarded-proto, x-haven-cluster, \
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
                r#"{"override": {"header": ":path"}}"#,
                "upstreams.u.override.header: \":path\" is not allowed, want a header name",
            ),
            (
                r#"{"load_balancer": {"policy": "best"}}"#,
                "upstreams.u.load_balancer.policy: \"best\" is not allowed, want one of \"least_request\", \"round_robin\", \"peak_ewma\", \"consistent_hash\", \"random\", \"first\"",
            ),
            (
                r#"{"load_balancer": {"panic_threshold": 100.01}}"#,
                "upstreams.u.load_balancer.panic_threshold: 100.01 is not allowed, want a number from 0 to 100 with at most two decimals",
            ),
            (
                r#"{"min_healthy": 0.001}"#,
                "upstreams.u.min_healthy: 0.001 is not allowed, want a number from 0 to 100 with at most two decimals",
            ),
            (
                r#"{"endpoints": {}}"#,
                "upstreams.u.endpoints: {} is not allowed, want a list of at most 1000 items, each an object",
            ),
            (
                r#"{"cluster": ""}"#,
                "upstreams.u.cluster: \"\" is not allowed, want a text of 1 to 255 bytes without control characters",
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
fn rate_limits_are_checked() {
    refuses(
        r#"{"rate_limits": {"a": @}}"#,
        &[
            (
                r#"{"limit": 1, "burst": 367, "period": "1d"}"#,
                "rate_limits.a.burst: 367 is not allowed, want at most 366, or the bucket would take more than 366d to fill",
            ),
            (
                r#"{"limit": 1, "period": "1000us", "cost": 2}"#,
                "rate_limits.a.cost: 2 is not allowed, want at most the burst of 1, or no request would ever pass",
            ),
            (
                r#"{"limit": 1, "algorithm": "sliding_window", "burst": 5}"#,
                "rate_limits.a.burst: 5 is not allowed, want none: only token_bucket and leaky_bucket have a burst",
            ),
            (
                r#"{"limit": 1, "algorithm": "fixed_window", "key": ["path"], "overrides": [{"key": ["/"], "limit": 2, "burst": 2}]}"#,
                "rate_limits.a.overrides[0].burst: 2 is not allowed, want none: only token_bucket and leaky_bucket have a burst",
            ),
            (
                r#"{"limit": 1, "algorithm": "fixed_window", "cost": 2}"#,
                "rate_limits.a.cost: 2 is not allowed, want at most the limit of 1, or no request would ever pass",
            ),
            (
                r#"{"limit": 1, "algorithm": "leaky_bucket", "warm_up": "1m"}"#,
                "rate_limits.a.warm_up: \"1m\" is not allowed, want none: only token_bucket warms up",
            ),
            (
                r#"{"limit": 1, "max_wait": "0s"}"#,
                "rate_limits.a.max_wait: \"0ns\" is not allowed, want none: only leaky_bucket has requests wait",
            ),
            (
                r#"{"limit": 1, "algorithm": "leaky_bucket", "max_wait": "61m"}"#,
                "rate_limits.a.max_wait: \"61m\" is not allowed, want a duration from 0ns to 1h like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"limit": 1, "period": "999us"}"#,
                "rate_limits.a.period: \"999us\" is not allowed, want a duration from 1ms to 366d like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"limit": 1, "period": 5}"#,
                "rate_limits.a.period: 5 is not allowed, want a duration from 1ms to 366d like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"limit": 1, "key": ["ip"]}"#,
                "rate_limits.a.key[0]: \"ip\" is not allowed, want one of \"client_ip\", \"method\", \"path\", \"host\", \"route\" or an \
             object with one of header, cookie, query, path_segment",
            ),
            (
                r#"{"limit": 1, "key": [{"header": "a", "cookie": "b"}]}"#,
                "rate_limits.a.key[0]: {\"header\":\"a\",\"cookie\":\"b\"} is not allowed, want an object with one of header, cookie, query, \
             path_segment",
            ),
            (
                r#"{"limit": 1, "key": [{"header": "a b"}]}"#,
                "rate_limits.a.key[0].header: \"a b\" is not allowed, want a header name",
            ),
            (
                r#"{"limit": 1, "key": [{"path_segment": 256}]}"#,
                "rate_limits.a.key[0].path_segment: 256 is not allowed, want an integer from 0 to 255",
            ),
            (
                r#"{"limit": 1, "cost": -1}"#,
                "rate_limits.a.cost: -1 is not allowed, want an integer from 0 to 1000000000 or an object",
            ),
            (
                r#"{"limit": 1, "cost": {}}"#,
                "rate_limits.a.cost.header: nothing is not allowed, want a header name (required)",
            ),
            (
                r#"{"limit": 1, "cost": {"header": "a", "default": 5, "max": 4}}"#,
                "rate_limits.a.cost.default: 5 is not allowed, want at most the max of 4",
            ),
            (
                r#"{"limit": 1, "overrides": [{"key": ["a"], "limit": 1}]}"#,
                "rate_limits.a.overrides[0].key: [\"a\"] is not allowed, want a list of 0 values, one for each part of the rate limit's key",
            ),
            (
                r#"{"limit": 1, "key": ["client_ip"], "overrides": [{"key": ["me"], "limit": 1}]}"#,
                "rate_limits.a.overrides[0].key[0]: \"me\" is not allowed, want an IP address",
            ),
            (
                r#"{"limit": 1, "key": ["path"], "overrides": [{"key": ["/"], "limit": 1, "burst": 2, "period": "366d"}]}"#,
                "rate_limits.a.overrides[0].burst: 2 is not allowed, want at most 1, or the bucket would take more than 366d to fill",
            ),
            (
                r#"{"limit": 1, "exempt": ["10.0.0.0/33"]}"#,
                "rate_limits.a.exempt[0]: \"10.0.0.0/33\" is not allowed, want a network like \"10.0.0.0/8\" or \"2001:db8::/32\"",
            ),
            (
                r#"{"limit": 1, "exempt": ["::/+1"]}"#,
                "rate_limits.a.exempt[0]: \"::/+1\" is not allowed, want a network like \"10.0.0.0/8\" or \"2001:db8::/32\"",
            ),
            (
                r#"{"limit": 1, "max_keys": 0}"#,
                "rate_limits.a.max_keys: 0 is not allowed, want an integer from 1 to 10000000",
            ),
            (
                r#"{"limit": 1, "headers": "all"}"#,
                "rate_limits.a.headers: \"all\" is not allowed, want one of \"ietf\", \"x\", \"both\", \"none\"",
            ),
        ],
    );
    good(
        r#"{"rate_limits": {"a": {"limit": 1, "burst": 366, "period": "1d", "cost": 0, "exempt": ["0.0.0.0/0", "::/0"]}}}"#,
    );
    good(
        r#"{"rate_limits": {"a": {"limit": 1000000000, "burst": 1000000000, "period": "366d", "algorithm": "token_bucket"}}}"#,
    );
}

#[test]
fn circuit_breakers_are_checked() {
    refuses(
        r#"{"circuit_breakers": {"b": @}}"#,
        &[
            (
                r#"{"failure_rate_threshold": 0}"#,
                "circuit_breakers.b.failure_rate_threshold: 0 is not allowed, want a number from 0.01 to 100 with at most two decimals",
            ),
            (
                r#"{"open_duration": "99ms"}"#,
                "circuit_breakers.b.open_duration: \"99ms\" is not allowed, want a duration from 100ms to 1d like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"open_duration": "10s", "max_open_duration": "5s"}"#,
                "circuit_breakers.b.max_open_duration: \"5s\" is not allowed, want at least the open_duration of 10s",
            ),
            (
                r#"{"window": {"size": "999ms"}}"#,
                "circuit_breakers.b.window.size: \"999ms\" is not allowed, want a duration from 1s to 1h like \"250ms\" or \"10s\" or an \
             integer from 1 to 1024",
            ),
            (
                r#"{"window": {"size": 100}}"#,
                "circuit_breakers.b.window.size: 100 is not allowed, want a duration from 1s to 1h like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"window": {"type": "count", "size": 1025}}"#,
                "circuit_breakers.b.window.size: 1025 is not allowed, want a duration from 1s to 1h like \"250ms\" or \"10s\" or an \
             integer from 1 to 1024",
            ),
            (
                r#"{"window": {"type": "count", "size": "10s"}}"#,
                "circuit_breakers.b.window.size: \"10s\" is not allowed, want an integer from 1 to 1024",
            ),
            (
                r#"{"preset": "x"}"#,
                "circuit_breakers.b.preset: \"x\" is not allowed, want one of \"hystrix\", \"goresilience\", \"resilience4j\", \"sentinel\"",
            ),
            (
                r#"{"backoff_multiplier": 0.99}"#,
                "circuit_breakers.b.backoff_multiplier: 0.99 is not allowed, want a number from 1 to 100 with at most two decimals",
            ),
            (
                r#"{"failure_on": {"status": ["599-500"]}}"#,
                "circuit_breakers.b.failure_on.status[0]: \"599-500\" is not allowed, want a status or range from 100 to 599 like \"500-599\" or 503",
            ),
            (
                r#"{"failure_on": {"grpc_status": [17]}}"#,
                "circuit_breakers.b.failure_on.grpc_status[0]: 17 is not allowed, want an integer from 0 to 16",
            ),
            (
                r#"{"failure_on": {"grpc_status": [2, 2]}}"#,
                "circuit_breakers.b.failure_on.grpc_status[1]: 2 is not allowed, want each item only once",
            ),
            (
                r#"{"honour_retry_after": 1}"#,
                "circuit_breakers.b.honour_retry_after: 1 is not allowed, want true or false",
            ),
        ],
    );
}

#[test]
fn presets_fill_in_what_is_not_set() {
    let breaker = |text: &str| {
        good(&format!(r#"{{"circuit_breakers": {{"b": {text}}}}}"#))
            .circuit_breakers
            .remove(0)
    };
    let hystrix = breaker(r#"{"preset": "hystrix", "minimum_calls": 7}"#);
    assert_eq!(
        (
            hystrix.minimum_calls,
            hystrix.half_open_calls,
            hystrix.window
        ),
        (7, 1, Window::Time(Nanos::from_secs(10)))
    );
    assert_eq!(
        (hystrix.open_duration, hystrix.failure_rate_threshold),
        (Nanos::from_secs(5), Percent(5000))
    );
    let go = breaker(r#"{"preset": "goresilience"}"#);
    assert_eq!(
        (go.minimum_calls, go.open_duration, go.max_open_duration),
        (10, Nanos::from_secs(30), Nanos::from_secs(60))
    );
    let sentinel = breaker(r#"{"preset": "sentinel"}"#);
    assert_eq!(
        (
            sentinel.minimum_calls,
            sentinel.window,
            sentinel.half_open_calls
        ),
        (5, Window::Time(Nanos::from_secs(1)), 1)
    );
    assert!(sentinel.open_above && !hystrix.open_above && !go.open_above);
    let r4j = breaker(r#"{"preset": "resilience4j", "window": {"size": "2s"}}"#);
    assert_eq!(r4j.window, Window::Time(Nanos::from_secs(2)));
    let r4j = breaker(r#"{"preset": "resilience4j"}"#);
    assert_eq!(
        (r4j.minimum_calls, r4j.window, r4j.half_open_calls),
        (100, Window::Count(100), 10)
    );
    assert_eq!(
        (r4j.failure_rate_threshold, r4j.open_above),
        (Percent(5000), false)
    );
    let count = breaker(r#"{"window": {"type": "count"}}"#);
    assert_eq!(
        (count.minimum_calls, count.window),
        (20, Window::Count(100))
    );
    let count = breaker(r#"{"window": {"type": "count", "size": 1024}}"#);
    assert_eq!(count.window, Window::Count(1_024));
    assert_eq!(
        (r4j.open_duration, r4j.max_open_duration),
        (Nanos::from_secs(60), Nanos::from_secs(60))
    );
}

#[test]
fn fallbacks_are_checked() {
    let own = "connection, content-length, content-type, keep-alive, te, trailer, transfer-encoding, upgrade";
    refuses(
        r#"{"fallbacks": {"f": @}}"#,
        &[
            (
                "{}",
                "fallbacks.f.steps: nothing is not allowed, want a list of 1 to 8 items, each an object with one of stale, respond, cluster \
             (required)",
            ),
            (
                r#"{"steps": []}"#,
                "fallbacks.f.steps: [] is not allowed, want a list of 1 to 8 items, each an object with one of stale, respond, cluster",
            ),
            (
                r#"{"steps": [{}]}"#,
                "fallbacks.f.steps[0]: {} is not allowed, want an object with one of stale, respond, cluster",
            ),
            (
                r#"{"on": [], "steps": [{"respond": {}}]}"#,
                "fallbacks.f.on: [] is not allowed, want a list of 1 to 8 items, each one of \"rate_limited\", \"overload\", \
             \"circuit_open\", \"no_endpoint\", \"deadline\", \"switched_off\", \"upstream_error\", \"timeout\"",
            ),
            (
                r#"{"on": ["timeout", "timeout"], "steps": [{"respond": {}}]}"#,
                "fallbacks.f.on[1]: \"timeout\" is not allowed, want each item only once",
            ),
            (
                r#"{"steps": [{"cluster": "a"}, {"stale": {}}, {"cluster": "b"}]}"#,
                "fallbacks.f.steps[2].cluster: \"b\" is not allowed, want one cluster step only: a request is sent on once",
            ),
            (
                r#"{"steps": [{"stale": {}}, {"stale": {"max_age": "1h"}}]}"#,
                "fallbacks.f.steps[1].stale.max_age: \"1h\" is not allowed, want one stale step only",
            ),
            (
                r#"{"steps": [{"stale": {"max_age": "500ms"}}]}"#,
                "fallbacks.f.steps[0].stale.max_age: \"500ms\" is not allowed, want a duration from 1s to 7d like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"steps": [{"stale": {"max_bytes": "79KiB"}}]}"#,
                "fallbacks.f.steps[0].stale.max_bytes: \"79KiB\" is not allowed, want at least 80KiB: max_body and 16KiB",
            ),
            (
                r#"{"steps": [{"stale": {"max_entries": 0}}]}"#,
                "fallbacks.f.steps[0].stale.max_entries: 0 is not allowed, want an integer from 1 to 65536",
            ),
            (
                r#"{"steps": [{"respond": {"status": 201}}, {"respond": {}}]}"#,
                "fallbacks.f.steps[0].respond.status: 201 is not allowed, want a respond step only at the end: it always answers",
            ),
        ],
    );
    refuses(
        r#"{"fallbacks": {"f": {"steps": [{"respond": @}]}}}"#,
        &[
            (
                r#"{"status": 199}"#,
                "fallbacks.f.steps[0].respond.status: 199 is not allowed, want an integer from 200 to 599",
            ),
            (
                r#"{"status": 204, "body": "x"}"#,
                "fallbacks.f.steps[0].respond.status: 204 is not allowed, want a status that may have a body",
            ),
            (
                r#"{"body": "a {{now}} b"}"#,
                "fallbacks.f.steps[0].respond.body: \"{{now}}\" is not allowed, want one of the placeholders \
             {{request_id}}, {{retry_after}}, {{reason}}, {{route}}",
            ),
            (
                r#"{"body": "a {{reason"}"#,
                "fallbacks.f.steps[0].respond.body: \"{{reason\" is not allowed, want one of the placeholders \
             {{request_id}}, {{retry_after}}, {{reason}}, {{route}}",
            ),
            (
                r#"{"headers": {"x": "a\r\nb: c"}}"#,
                "fallbacks.f.steps[0].respond.headers.x: \"a\\r\\nb: c\" is not allowed, want a header value: at most 4096 bytes without \
             control characters",
            ),
            (
                r#"{"headers": {":status": "1"}}"#,
                "fallbacks.f.steps[0].respond.headers: \":status\" is not allowed, want a header name",
            ),
            (
                r#"{"headers": {"Content-Length": "1"}}"#,
                &format!(
                    "fallbacks.f.steps[0].respond.headers: \"content-length\" is not allowed, want a header name that is none of {own}"
                ),
            ),
        ],
    );
    let body = "x".repeat(65_536);
    good(&format!(
        r#"{{"fallbacks": {{"f": {{"steps": [{{"respond": {{"body": "{body}"}}}}]}}}}}}"#
    ));
    assert_eq!(
        errors(&format!(
            r#"{{"fallbacks": {{"f": {{"steps": [{{"respond": {{"body": "{body}x"}}}}]}}}}}}"#
        ))
        .len(),
        1
    );
}

#[test]
fn routes_are_checked() {
    let path = "want a path that starts with \"/\", percent-encoded, without \"?\" and \"#\"";
    let pattern = "want a path that starts with \"/\" like \"/users/{id}\", where each placeholder is a whole segment with a name of its own";
    let host = "want a host without a port like \"example.com\", \"*.example.com\" or \"*\"";
    for (field, values, want) in [
        ("path", &["", "a", "/a?b", "/a#b", "/ä", "/a b"][..], path),
        ("prefix", &["api", "*"], path),
        (
            "pattern",
            &["users", "/a{id}", "/{a}/{a}", "/{}", "/{a}b", "/{{a}}"],
            pattern,
        ),
    ] {
        for value in values {
            refused(
                &format!(r#"{{"routes": [{{"name": "r", "match": {{"{field}": "{value}"}}}}]}}"#),
                &[&format!(
                    "routes[0].match.{field}: \"{value}\" is not allowed, {want}"
                )],
            );
        }
    }
    for value in [
        "",
        "a:80",
        "a..b",
        ".a",
        "*a",
        "a.*",
        "*.",
        "ä.de",
        "a b",
        "[1.2.3.4]",
        "http://a",
    ] {
        refused(
            &format!(r#"{{"routes": [{{"name": "r", "match": {{"hosts": ["{value}"]}}}}]}}"#),
            &[&format!(
                "routes[0].match.hosts[0]: \"{value}\" is not allowed, {host}"
            )],
        );
    }
    refuses(
        r#"{"routes": [@]}"#,
        &[
            ("5", "routes[0]: 5 is not allowed, want an object"),
            (
                r#"{"name": ""}"#,
                "routes[0].name: \"\" is not allowed, want a name: 1 to 64 of A-Z a-z 0-9 . _ : / -",
            ),
            (
                "{}",
                "routes[0].name: nothing is not allowed, want a name: 1 to 64 of A-Z a-z 0-9 . _ : / - (required)",
            ),
            (
                r#"{"name": "r", "match": {"path": "/a", "prefix": "/b"}}"#,
                "routes[0].match.prefix: \"/b\" is not allowed, want no prefix besides the path",
            ),
            (
                r#"{"name": "r", "match": {"methods": ["GET POST"]}}"#,
                "routes[0].match.methods[0]: \"GET POST\" is not allowed, want an HTTP method",
            ),
            (
                r#"{"name": "r", "match": {"headers": {"a b": "c"}}}"#,
                "routes[0].match.headers: \"a b\" is not allowed, want a header name",
            ),
            (
                r#"{"name": "r", "fallback": "f"}"#,
                "routes[0].fallback: \"f\" is not allowed, want one of the fallbacks: there are none",
            ),
            (
                r#"{"name": "r", "criticality": "vital"}"#,
                "routes[0].criticality: \"vital\" is not allowed, want one of \"critical_plus\", \"critical\", \"sheddable_plus\", \"sheddable\"",
            ),
        ],
    );
    refused(
        r#"{"routes": [{"name": "r", "circuit_breaker": "b"}], "circuit_breakers": {"b": {"scope": "upstream"}}}"#,
        &[
            "routes[0].circuit_breaker: \"b\" is not allowed, want a circuit breaker without \"scope\": \"upstream\", for the route has no \
           upstream",
        ],
    );
    let many: Vec<_> = (0..1001)
        .map(|i| format!("{{\"name\": \"{i}\"}}"))
        .collect();
    assert!(
        errors(&format!("{{\"routes\": [{}]}}", many.join(",")))[0]
            .ends_with("want a list of at most 1000 items, each an object")
    );
    let many: Vec<_> = (0..1001).map(|i| format!("\"{i}\": {{}}")).collect();
    assert!(
        errors(&format!("{{\"upstreams\": {{{}}}}}", many.join(",")))[0]
            .ends_with("want an object with at most 1000 entries")
    );
}

#[test]
fn switches_are_on_or_off() {
    refused(
        r#"{"switches": {"s": true, "t": "of"}, "routes": [{"name": "r", "switch": "u"}]}"#,
        &[
            "switches.s: true is not allowed, want one of \"on\", \"off\"",
            "switches.t: \"of\" is not allowed, want one of \"on\", \"off\"",
            "routes[0].switch: \"u\" is not allowed, want one of the switches: \"s\", \"t\"",
        ],
    );
    let config =
        good(r#"{"switches": {"s": "off", "t": "on"}, "routes": [{"name": "r", "switch": "s"}]}"#);
    assert_eq!(
        config
            .switches
            .iter()
            .map(|s| (s.name.as_str(), s.on))
            .collect::<Vec<_>>(),
        [("s", false), ("t", true)]
    );
    assert_eq!(config.routes[0].switch, Some(0));
}

#[test]
fn concurrency_limits_are_read_with_their_bounds() {
    let config = good(
        r#"{"concurrency_limits": {"usual": {}, "small": {"max_limit": 10}, "large": {"algorithm": "adaptive", "min_limit": 50},
                                   "given": {"algorithm": "fixed", "limit": 7, "mode": "shadow"}},
            "upstreams": {"u": {"concurrency_limit": "given"}},
            "routes": [{"name": "r", "concurrency_limit": "usual", "criticality": "sheddable"}, {"name": "s", "upstream": "u"}]}"#,
    );
    let adaptive = |min, max, initial| ConcurrencyAlgorithm::Adaptive { min, max, initial };
    assert_eq!(
        config
            .concurrency_limits
            .iter()
            .map(|c| (c.name.as_str(), c.mode, c.algorithm))
            .collect::<Vec<_>>(),
        [
            ("usual", None, adaptive(3, 1000, 20)),
            ("small", None, adaptive(3, 10, 10)),
            ("large", None, adaptive(50, 1000, 50)),
            (
                "given",
                Some(Mode::Shadow),
                ConcurrencyAlgorithm::Fixed { limit: 7 }
            ),
        ]
    );
    assert_eq!(
        (
            config.upstreams[0].concurrency_limit,
            config.routes[0].concurrency_limit
        ),
        (Some(3), Some(0))
    );
    assert_eq!(
        config
            .routes
            .iter()
            .map(|r| r.criticality)
            .collect::<Vec<_>>(),
        [Criticality::Sheddable, Criticality::Critical]
    );
    refused(
        r#"{"concurrency_limits": {"a": {"initial_limit": 2}, "b": {"max_limit": 10, "initial_limit": 11}, "c": {"limit": 0}}}"#,
        &[
            "concurrency_limits.a.initial_limit: 2 is not allowed, want an integer from the min_limit of 3 to the max_limit of 1000",
            "concurrency_limits.b.initial_limit: 11 is not allowed, want an integer from the min_limit of 3 to the max_limit of 10",
            "concurrency_limits.c.limit: 0 is not allowed, want an integer from 1 to 1000000",
        ],
    );
}

#[test]
fn timeouts_and_retries_are_taken_with_their_defaults() {
    let route = |text: &str| {
        good(&format!(r#"{{"routes": [{{"name": "r"{text}}}]}}"#))
            .routes
            .remove(0)
    };
    let plain = route("");
    assert_eq!((plain.timeout, plain.retry), (Timeout::default(), None));
    let fixed = route(
        r#", "timeout": {"request": "1s", "per_try": "200ms", "deadline_header": "X-Left", "reject_below": "20ms"}"#,
    );
    assert_eq!(
        fixed.timeout,
        Timeout {
            request: Some(RequestTimeout::Fixed(Nanos::from_secs(1))),
            per_try: Some(Nanos::from_millis(200)),
            deadline_header: Some("x-left".into()),
            reject_below: Some(RejectBelow::Time(Nanos::from_millis(20))),
        }
    );
    let dynamic = DynamicTimeout {
        quantile: Percent(9_900),
        factor_centi: 200,
        min: Nanos::from_millis(50),
        max: Nanos::from_secs(2),
    };
    let usual =
        route(r#", "timeout": {"request": {"dynamic": {}}, "reject_below": "p50"}"#).timeout;
    assert_eq!(usual.request, Some(RequestTimeout::Dynamic(dynamic)));
    assert_eq!(
        usual.reject_below,
        Some(RejectBelow::Quantile(Percent(5_000)))
    );
    assert_eq!(
        [fixed.timeout.request, usual.request].map(|t| t.unwrap().longest().as_millis()),
        [1_000, 2_000]
    );
    let retry = route(r#", "retry": {}"#).retry.unwrap();
    assert_eq!(
        retry,
        Retry {
            attempts: 1,
            on: "connect-failure,reset,gateway-error".into(),
            grpc_on: String::new(),
            methods: ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
                .map(str::to_owned)
                .into(),
            budget: Percent(2_000),
            min_per_second: 3,
        }
    );
    let retry = route(r#", "retry": {"on": ["unavailable", "5xx", "internal"], "attempts": 0}"#)
        .retry
        .unwrap();
    assert_eq!(
        (retry.on.as_str(), retry.grpc_on.as_str(), retry.attempts),
        ("5xx", "unavailable,internal", 0)
    );
    refuses(
        r#"{"routes": [{"name": "r", @}]}"#,
        &[
            (
                r#""timeout": {"request": {"dynamic": {"min": "3s"}}}"#,
                "routes[0].timeout.request.dynamic.max: \"2s\" is not allowed, want at least the min of 3s",
            ),
            (
                r#""timeout": {"reject_below": "p100"}"#,
                "routes[0].timeout.reject_below: \"p100\" is not allowed, want a duration from 1ms to 1h like \"250ms\" or \"10s\" or a quantile from \"p1\" to \"p99\"",
            ),
            (
                r#""timeout": {"deadline_header": "Content-Length"}"#,
                "routes[0].timeout.deadline_header: \"content-length\" is not allowed, want a header that says nothing else: \
                 none that frames the message, not \"host\", none of Envoy's",
            ),
            (
                r#""retry": {"methods": []}"#,
                "routes[0].retry.methods: [] is not allowed, want a list of 1 to 32 items, each an HTTP method",
            ),
        ],
    );
}

#[test]
fn what_is_not_built_is_refused_unless_it_is_the_default() {
    refuses(
        "{@}",
        &[
            (r#""admin": {}"#, "admin: {} is not supported yet"),
            (
                r#""rate_limits": {"l": {"limit": 1, "global": {"cluster": "c"}}}"#,
                "rate_limits.l.global: {\"cluster\":\"c\"} is not supported yet",
            ),
        ],
    );
    good(
        r#"{"switches": {}, "concurrency_limits": {}, "trust_client_retry_headers": false,
            "upstreams": {"u": {"endpoints": [{"address": "1.2.3.4:5", "priority": 0}]}},
            "routes": [{"name": "r", "timeout": {}, "criticality": "critical", "depends_on": []}]}"#,
    );
}

#[test]
fn what_a_balancing_policy_does_not_heed_is_refused() {
    refuses(
        r#"{"upstreams": {"u": {@}}}"#,
        &[
            (
                r#""load_balancer": {"hash_key": ["path", "host"]}"#,
                "upstreams.u.load_balancer.hash_key: a list of 2 is not allowed, want none: only consistent_hash has a key",
            ),
            (
                r#""load_balancer": {"policy": "random", "bounded_load": 1.5}"#,
                "upstreams.u.load_balancer.bounded_load: 1.5 is not allowed, want none: only consistent_hash bounds load",
            ),
            (
                r#""load_balancer": {"policy": "first", "slow_start": "10s"}"#,
                "upstreams.u.load_balancer.slow_start: \"10s\" is not allowed, want none: with first there are no shares",
            ),
            (
                r#""load_balancer": {"policy": "consistent_hash"}, "load_report": "orca""#,
                "upstreams.u.load_report: \"orca\" is not allowed, want \"none\": with consistent_hash and first there are no shares",
            ),
            (
                r#""load_report": true"#,
                "upstreams.u.load_report: true is not allowed, want one of \"none\", \"orca\"",
            ),
        ],
    );
}

#[test]
fn a_health_check_is_taken_with_its_defaults() {
    let config = good(
        r#"{"upstreams": {
            "h": {"health_check": {}},
            "r": {"health_check": {"report": true, "interval": "10s", "interval_changing": "2s", "path": "/up", "host": "api.example",
                  "expected_status": ["200-299", 401], "jitter": 0, "components": {"db": {}, "redis": {"critical": false, "period": "30s",
                  "max_error_rate": 5}}}},
            "g": {"health_check": {"protocol": "grpc", "service": "user-service", "interval": "500ms"}}},
            "routes": [{"name": "a", "upstream": "r", "depends_on": ["redis", "db"]}]}"#,
    );
    let [usual, report, grpc] = &config.upstreams[..] else {
        panic!()
    };
    let usual = usual.health_check.as_ref().unwrap();
    assert_eq!(
        usual.ask,
        Ask::Http {
            path: "/health".into(),
            host: None,
            expected: vec![(200, 299)]
        }
    );
    assert_eq!(
        (usual.interval, usual.interval_changing),
        (Nanos::from_secs(5), Nanos::from_secs(1))
    );
    assert_eq!(
        (usual.timeout, usual.initial_delay, usual.jitter),
        (Nanos::from_secs(1), Nanos::ZERO, Percent(1_000))
    );
    assert_eq!(
        (
            usual.healthy_threshold,
            usual.unhealthy_threshold,
            usual.report
        ),
        (2, 3, false)
    );
    let report = report.health_check.as_ref().unwrap();
    let expected = vec![(200, 299), (401, 401)];
    assert_eq!(
        report.ask,
        Ask::Http {
            path: "/up".into(),
            host: Some("api.example".into()),
            expected
        }
    );
    let [db, redis] = &report.components[..] else {
        panic!()
    };
    assert_eq!(
        (db.critical, db.period, db.max_error_rate),
        (true, Nanos::from_secs(10), None)
    );
    assert_eq!(
        (redis.critical, redis.period, redis.max_error_rate),
        (false, Nanos::from_secs(30), Some(Percent(500)))
    );
    let grpc = grpc.health_check.as_ref().unwrap();
    assert_eq!(
        grpc.ask,
        Ask::Grpc {
            service: "user-service".into()
        }
    );
    assert_eq!(
        grpc.interval_changing,
        Nanos::from_millis(500),
        "no longer than the interval"
    );
    assert_eq!(config.routes[0].depends_on, [1, 0]);
}

#[test]
fn a_health_check_that_cannot_be_is_refused() {
    refuses(
        r#"{"upstreams": {"u": {"health_check": {@}}}}"#,
        &[
            (
                r#""protocol": "tcp""#,
                "upstreams.u.health_check.protocol: \"tcp\" is not allowed, want \"http\" or \"grpc\": a filter cannot open a bare \
                 connection; Envoy's own health_checks can, for the cluster",
            ),
            (
                r#""interval": "99ms""#,
                "upstreams.u.health_check.interval: \"99ms\" is not allowed, want a duration from 100ms to 1h like \"250ms\" or \"10s\"",
            ),
            (
                r#""interval": "1s", "interval_changing": "2s""#,
                "upstreams.u.health_check.interval_changing: \"2s\" is not allowed, want at most the interval of 1s",
            ),
            (
                r#""service": "x""#,
                "upstreams.u.health_check.service: \"x\" is not allowed, want none: only a gRPC check has a service",
            ),
            (
                r#""protocol": "grpc", "host": "x""#,
                "upstreams.u.health_check.host: \"x\" is not allowed, want none: only an HTTP check has a host",
            ),
            (
                r#""protocol": "grpc", "report": true"#,
                "upstreams.u.health_check.report: true is not allowed, want false: only the answer to an HTTP check has a report",
            ),
            (
                r#""components": {"db": {}}"#,
                "upstreams.u.health_check.components: \"db\" is not allowed, want none without \"report\": true",
            ),
        ],
    );
    refused(
        r#"{"upstreams": {"u": {}, "v": {"health_check": {"report": true, "components": {"db": {}}}}},
            "routes": [{"name": "a", "upstream": "u", "depends_on": ["db"]}, {"name": "b", "depends_on": ["db"]},
                       {"name": "c", "upstream": "v", "depends_on": ["db", "cache"]}]}"#,
        &[
            "routes[2].depends_on[1]: \"cache\" is not allowed, want one of the components: \"db\"",
            "routes[0].depends_on[0]: \"db\" is not allowed, want a component of the health_check of the route's own upstream",
            "routes[1].depends_on[0]: \"db\" is not allowed, want a component of the health_check of the route's own upstream",
        ],
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
        bounded_load: Percent(125),
    };
    assert_eq!(hash.policy, usual);
    let key = vec![KeyPart::Header("x-user".into()), KeyPart::Path];
    assert_eq!(
        all.policy,
        BalancePolicy::ConsistentHash {
            key,
            bounded_load: Percent(200)
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
fn what_is_not_built_is_validated_all_the_same() {
    refused(
        r#"{"concurrency_limits": {"c": {"algorithm": "fixed"}, "d": {"limit": 3}, "e": {"min_limit": 9, "max_limit": 8}},
            "routes": [{"name": "r", "concurrency_limit": "x", "retry": {"attempts": 11, "on": ["5xx", "bad"]}, "switch": "s", "depends_on": ["db"]}]}"#,
        &[
            "concurrency_limits.c.limit: nothing is not allowed, want an integer from 1 to 1000000 (required)",
            "concurrency_limits.d.limit: 3 is not allowed, want none: adaptive finds its limit",
            "concurrency_limits.e.max_limit: 8 is not allowed, want at least the min_limit of 9",
            "routes[0].concurrency_limit: \"x\" is not allowed, want one of the concurrency_limits: \"c\", \"d\", \"e\"",
            "routes[0].retry.attempts: 11 is not allowed, want an integer from 0 to 10",
            "routes[0].retry.on[1]: \"bad\" is not allowed, want one of \"5xx\", \"gateway-error\", \"reset\", \"reset-before-request\", \
             \"connect-failure\", \"envoy-ratelimited\", \"retriable-4xx\", \"refused-stream\", \"retriable-status-codes\", \"retriable-headers\", \
             \"http3-post-connect-failure\", \"cancelled\", \"deadline-exceeded\", \"internal\", \"resource-exhausted\", \"unavailable\"",
            "routes[0].switch: \"s\" is not allowed, want one of the switches: there are none",
            "routes[0].depends_on[0]: \"db\" is not allowed, want one of the components: there are none",
        ],
    );
}

#[test]
fn the_schema_is_up_to_date() {
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    up_to_date("config.schema.json", &text);
}

#[test]
fn the_reference_is_up_to_date() {
    up_to_date("docs/config.md", &reference());
}

/// Whether `value` fits `schema`, as far as the keywords go that ours uses; `pattern` and
/// `propertyNames` are left to parse.
fn fits(schema: &serde_json::Value, value: &serde_json::Value) -> bool {
    use serde_json::Value;
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let within = |n: f64, min: &str, max: &str| {
        bound(min).is_none_or(|min| n >= min) && bound(max).is_none_or(|max| n <= max)
    };
    let typed = match schema.get("type").and_then(Value::as_str) {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        Some(other) => panic!("{other}"),
    };
    let shaped = match value {
        Value::Number(n) => within(n.as_f64().unwrap(), "minimum", "maximum"),
        Value::String(text) => within(text.chars().count() as f64, "minLength", "maxLength"),
        Value::Array(items) => {
            let unique = schema.get("uniqueItems").is_none()
                || items
                    .iter()
                    .enumerate()
                    .all(|(i, item)| !items[..i].contains(item));
            unique
                && within(items.len() as f64, "minItems", "maxItems")
                && schema
                    .get("items")
                    .is_none_or(|schema| items.iter().all(|item| fits(schema, item)))
        }
        Value::Object(entries) => {
            let required = schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            within(entries.len() as f64, "minProperties", "maxProperties")
                && required
                    .into_iter()
                    .all(|name| entries.contains_key(name.as_str().unwrap()))
                && entries.iter().all(|(key, value)| {
                    match (
                        schema.get("properties").and_then(|all| all.get(key)),
                        schema.get("additionalProperties"),
                    ) {
                        (Some(schema), _) => fits(schema, value),
                        (None, Some(Value::Bool(allowed))) => *allowed,
                        (None, Some(schema)) => fits(schema, value),
                        (None, None) => true,
                    }
                })
        }
        _ => true,
    };
    typed
        && shaped
        && schema
            .get("enum")
            .is_none_or(|all| all.as_array().unwrap().contains(value))
        && schema.get("const").is_none_or(|only| only == value)
        && schema.get("anyOf").is_none_or(|all| {
            all.as_array()
                .unwrap()
                .iter()
                .any(|schema| fits(schema, value))
        })
        && schema
            .get("if")
            .is_none_or(|when| !fits(when, value) || fits(&schema["then"], value))
}

#[test]
fn each_algorithm_has_its_own_parameters() {
    let of = |fields: &str| {
        let document = format!(r#"{{"rate_limits": {{"a": {{"limit": 7, {fields}}}}}}}"#);
        let limit = good(&document).rate_limits[0].clone();
        (limit.algorithm, limit.quota.burst)
    };
    let ms = Nanos::from_millis;
    assert_eq!(
        of(r#""burst": 9"#),
        (Algorithm::TokenBucket { warm_up: None }, 9)
    );
    assert_eq!(
        of(r#""warm_up": "1m""#),
        (
            Algorithm::TokenBucket {
                warm_up: Some(ms(60_000))
            },
            7
        )
    );
    assert_eq!(
        of(r#""algorithm": "leaky_bucket""#),
        (
            Algorithm::LeakyBucket {
                max_wait: ms(1_000)
            },
            7
        )
    );
    let leaky = of(r#""algorithm": "leaky_bucket", "max_wait": "0s", "burst": 2"#);
    assert_eq!(leaky, (Algorithm::LeakyBucket { max_wait: ms(0) }, 2));
    assert_eq!(
        of(r#""algorithm": "sliding_window""#),
        (Algorithm::SlidingWindow, 7)
    );
    assert_eq!(
        of(r#""algorithm": "fixed_window""#),
        (Algorithm::FixedWindow, 7)
    );
}

#[test]
fn the_schema_says_what_parse_says() {
    let schema = schema();
    let fits = |document: &str| fits(&schema, &serde_json::from_str(document).unwrap());
    assert!(fits(FULL) && fits("{}") && !fits(CONTRACT));
    for bad in [
        "[]",
        r#"{"x": 1}"#,
        r#"{"mode": "on"}"#,
        r#"{"admin": {}}"#,
        r#"{"rate_limits": {"a": {}}}"#,
        r#"{"rate_limits": {"a": {"limit": 0}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1.5}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1, "key": [{}]}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1, "algorithm": "leaky"}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1, "global": {"cluster": "c"}}}}"#,
        r#"{"circuit_breakers": {"b": {"window": {"type": "count", "size": 1025}}}}"#,
        r#"{"circuit_breakers": {"b": {"failure_rate_threshold": 0}}}"#,
        r#"{"fallbacks": {"f": {"steps": []}}}"#,
        r#"{"fallbacks": {"f": {"steps": [{"cluster": 1}]}}}"#,
        r#"{"routes": [{}]}"#,
        r#"{"health": {"livez": 1}}"#,
        r#"{"routes": [{"name": "r", "timeout": {"per_try": 1}}]}"#,
        r#"{"routes": [{"name": "r", "retry": {"on": []}}]}"#,
        r#"{"upstreams": {"u": {"endpoints": [{"address": "1.2.3.4:5", "priority": 128}]}}}"#,
    ] {
        assert!(!fits(bad) && parse(bad.as_bytes()).is_err(), "{bad}");
    }
    for good in [
        r#"{"circuit_breakers": {"b": {"preset": "resilience4j"}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1e3, "cost": 0}}}"#,
        r#"{"circuit_breakers": {"b": {"window": {"type": "time"}}}}"#,
        r#"{"routes": [{"name": "r", "timeout": {}, "criticality": "critical"}]}"#,
        r#"{"fallbacks": {"f": {"steps": [{"stale": {"max_bytes": "1MiB"}}, {"cluster": "c"}, {"respond": {}}]}}}"#,
        r#"{"routes": [{"name": "r", "timeout": {"per_try": "1s", "request": {"dynamic": {}}}, "retry": {}}]}"#,
    ] {
        assert!(fits(good) && parse(good.as_bytes()).is_ok(), "{good}");
    }
}

/// Compares a generated file with what is checked in; `HAVEN_BLESS=1` writes it.
fn up_to_date(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("HAVEN_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == text,
        "{file} is out of date: run HAVEN_BLESS=1 cargo test --test config"
    );
}

/// The numbers, words and braces of the full document, each replaced by something else.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let junk = prop_oneof![
        Just("null"),
        Just("-1"),
        Just("1e400"),
        Just("\"\""),
        Just("[]"),
        Just("{}"),
        Just("\u{ff}"),
        Just("\""),
        Just("}"),
        Just(","),
        Just("18446744073709551616"),
        Just("\"{{\""),
        Just("\"*\""),
        Just("\"/\""),
        Just("true"),
        Just("\"count\""),
        Just("\\u0000"),
    ];
    let source = prop_oneof![Just(FULL), Just(CONTRACT)];
    (
        source,
        proptest::collection::vec((any::<prop::sample::Index>(), 0..30_usize, junk), 1..4),
    )
        .prop_map(|(source, changes)| {
            let mut bytes = source.as_bytes().to_vec();
            for (at, length, junk) in changes {
                let at = at.index(bytes.len());
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, junk.bytes());
            }
            bytes
        })
}

/// Every value of the full document, replaced by something of another type or range.
#[test]
fn no_value_can_be_replaced_by_nonsense() {
    fn paths(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(entries) => {
                entries.iter().for_each(|(key, value)| {
                    paths(value, format!("{at}/{}", key.replace('/', "~1")), found)
                });
            }
            serde_json::Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(i, value)| paths(value, format!("{at}/{i}"), found));
            }
            _ => {}
        }
        found.push(at);
    }
    let full: serde_json::Value = serde_json::from_str(FULL).unwrap();
    let mut all = Vec::new();
    paths(&full, String::new(), &mut all);
    assert!(all.len() > 100);
    for path in all {
        for nonsense in ["-1", "1e300", "\"\\u0000\"", "[[]]", "{\"\": 0}"] {
            let mut document = full.clone();
            *document.pointer_mut(&path).unwrap() = serde_json::from_str(nonsense).unwrap();
            let document = document.to_string();
            // The values of a key are free text.
            if path.contains("/overrides/0/key/") && nonsense.starts_with('"')
                || path.ends_with("/body") && nonsense.starts_with('"')
            {
                continue;
            }
            assert!(parse(document.as_bytes()).is_err(), "{path} = {nonsense}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn mutated_documents_never_panic_and_errors_stay_on_their_line(bytes in mutated()) {
        let parsed = parse(&bytes);
        if parsed.is_ok() && let Ok(value) = serde_json::from_slice(&bytes) {
            prop_assert!(fits(&schema(), &value));
        }
        if let Err(errors) = parsed {
            let lines = errors.to_string().lines().count();
            prop_assert_eq!(lines, errors.iter().count() + usize::from(errors.count() > errors.iter().count()));
            for error in errors.iter() {
                prop_assert!(!error.path.is_empty() && error.message.contains(" not "), "{}", error);
            }
        }
    }
}
