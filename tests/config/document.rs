//! The document as a whole.

use haven::document::{Config, IpSource, Mode, RequestHeaders};

use crate::support::{DESIGN, FULL, errors, good, refused, refuses};

#[test]
fn nothing_is_a_valid_configuration() {
    for document in ["", " \n\t", "{}", " { } "] {
        let config = good(document);
        assert_eq!(config.service, "haven");
        assert_eq!(config.health.livez.as_deref(), Some("/livez"));
        assert_eq!(config, Config::default());
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

    assert_eq!(config.health.livez.as_deref(), Some("/alive"));
    assert_eq!(config.health.readyz, None);
    assert_eq!(config.health.health.as_deref(), Some("/health"));
}

#[test]
fn the_design_is_refused_only_where_it_is_not_built_yet() {
    let errors = errors(DESIGN);
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
            "colour: unknown field, value \"red\" is not allowed, want one of service, state, serve_endpoints, mode, client_ip, path_parameters, outcomes, discovery, upstreams, rate_limits, \
             circuit_breakers, concurrency_limits, fallbacks, switches, routes, health, admin, trust_client_retry_headers, \
             request_headers",
            "service: 1 is not allowed, want a text of 1 to 255 bytes without control characters",
            "upstreams.users.endpoints[0].weight: 1001 is not allowed, want an integer from 0 to \
             1000",
            "upstreams.users.endpoints[1].address: \"1.2.3.4\" is not allowed, want an address \
             like \"192.168.1.10:8080\" or \"[::1]:8080\"",
            "rate_limits.per-client.limit: 0 is not allowed, want an integer from 1 to 1000000000",
            "rate_limits: \"b c\" is not allowed, want a name: 1 to 64 of A-Z a-z 0-9 . _ : / -",
            "rate_limits.x.limit: nothing is not allowed, want an integer from 1 to 1000000000 \
             (required)",
            "routes[0].retires: unknown field, value 3 is not allowed, want one of name, mode, match, upstream, rate_limits, \
             circuit_breaker, concurrency_limit, fallback, timeout, retry, criticality, switch, canary, depends_on",
            "routes[0].match.prefix: \"api\" is not allowed, want a path that starts with \"/\", \
             percent-encoded, without \"?\" and \"#\"",
            "routes[0].upstream: \"userz\" is not allowed, want one of the upstreams: \"users\"",
            "routes[0].rate_limits[0]: \"y\" is not allowed, want one of the rate_limits: \
             \"per-client\", \"x\"",
            "routes[1].circuit_breaker: \"none\" is not allowed, want one of the \
             circuit_breakers: there are none",
            "upstreams.users.endpoints[2].address: \"1.2.3.4:80\" is not allowed, want each \
             address only once",
            "routes[1].name: \"a\" is not allowed, want each route's name only once",
        ],
    );
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
fn what_is_not_built_is_validated_all_the_same() {
    refused(
        r#"{"concurrency_limits": {"c": {"algorithm": "fixed"}, "d": {"limit": 3}, "e": {"min_limit": 9, "max_limit": 8}},
            "routes": [{"name": "r", "concurrency_limit": "x", "retry": {"attempts": 11, "on": ["5xx", "bad"]}, "switch": "s", "depends_on": ["db"]}]}"#,
        &[
            "concurrency_limits.c.limit: nothing is not allowed, want an integer from 1 to \
             1000000 (required)",
            "concurrency_limits.d.limit: 3 is not allowed, want none: adaptive finds its limit",
            "concurrency_limits.e.max_limit: 8 is not allowed, want at least the min_limit of 9",
            "routes[0].concurrency_limit: \"x\" is not allowed, want one of the \
             concurrency_limits: \"c\", \"d\", \"e\"",
            "routes[0].retry.attempts: 11 is not allowed, want an integer from 0 to 10",
            "routes[0].retry.on[1]: \"bad\" is not allowed, want one of \"5xx\", \"gateway-error\", \"reset\", \"reset-before-request\", \
             \"connect-failure\", \"envoy-ratelimited\", \"retriable-4xx\", \"refused-stream\", \"retriable-status-codes\", \"retriable-headers\", \
             \"http3-post-connect-failure\", \"cancelled\", \"deadline-exceeded\", \"internal\", \"resource-exhausted\", \"unavailable\"",
            "routes[0].switch: \"s\" is not allowed, want one of the switches: there are none",
            "routes[0].depends_on[0]: \"db\" is not allowed, want one of the components: there \
             are none",
        ],
    );
}

#[test]
fn what_needs_every_answer_is_refused_where_only_exceptions_are_read() {
    let document = r#"{
        "outcomes": "by_exception",
        "upstreams": {"u": {"load_balancer": {"policy": "peak_ewma"}, "load_report": "orca"}, "v": {}},
        "rate_limits": {"a": {"limit": 1}, "b": {"limit": 1, "headers": "none"}},
        "concurrency_limits": {"found": {}, "set": {"algorithm": "fixed", "limit": 1}},
        "circuit_breakers": {"plain": {}, "slow": {"slow_call_duration": "1s", "slow_call_rate_threshold": 50}, "shy": {"failure_on": {"status": ["500-503", "408-511"]}}},
        "fallbacks": {"kept": {"steps": [{"stale": {}}]}},
        "routes": [
            {"name": "good", "upstream": "u", "rate_limits": ["b"], "circuit_breaker": "plain", "timeout": {"request": "1s"}},
            {"name": "bad", "upstream": "u", "fallback": "kept", "canary": {"upstream": "v", "percent": 1},
             "timeout": {"request": {"dynamic": {}}, "reject_below": "p50"}}]
    }"#;
    let found = errors(document);
    let paths = [
        "upstreams.u.load_report",
        "upstreams.u.load_balancer.policy",
        "rate_limits.a.headers",
        "concurrency_limits.found.algorithm",
        "circuit_breakers.slow.slow_call_rate_threshold",
        "circuit_breakers.slow.slow_call_duration",
        "circuit_breakers.shy.failure_on.status",
        "routes[1].canary.upstream",
        "routes[1].fallback",
        "routes[1].timeout.request",
        "routes[1].timeout.reject_below",
    ];
    for path in paths {
        let said = found
            .iter()
            .find(|line| line.starts_with(&format!("{path}: ")));
        let said = said.unwrap_or_else(|| panic!("{path}: {found:#?}"));
        assert!(said.contains("does not read every answer"), "{said}");
    }
    good(&document.replace("by_exception", "every"));
    assert_eq!(found.len(), paths.len(), "{found:#?}");
}

#[test]
fn where_no_header_is_read_nothing_may_read_one() {
    const QUIET: &str = r#"{"request_headers": "ignore",
        "health": {"livez": null, "readyz": null, "startupz": null, "health": null, "grpc": false},
        "rate_limits": {"all": {"limit": 1}, "each": {"limit": 1, "key": ["client_ip", "route"],
                        "exempt": ["10.0.0.0/8"]}},
        "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 5, "fair": ["client_ip"]}},
        "switches": {"s": "on"},
        "routes": [{"name": "r", "rate_limits": ["all", "each"], "concurrency_limit": "c",
                    "switch": "s", "criticality": "sheddable", "mode": "shadow"}]}"#;
    let config = good(QUIET);
    assert_eq!(config.request_headers, RequestHeaders::Ignore);
    const WHY: &str = "is not allowed, want none with \"request_headers\": \"ignore\": it looks at \
                       the request";
    for (from, to, path, value) in [
        (
            r#""livez": null"#,
            r#""livez": "/l""#,
            "health.livez",
            "\"/l\"",
        ),
        (
            r#""health": null"#,
            r#""health": "/h""#,
            "health.health",
            "\"/h\"",
        ),
        (r#""grpc": false"#, r#""grpc": true"#, "health.grpc", "true"),
        (
            r#""key": ["client_ip", "route"]"#,
            r#""key": [{"header": "x-a"}]"#,
            "rate_limits.each.key",
            "[…]",
        ),
        (
            r#""all": {"limit": 1}"#,
            r#""all": {"limit": 1, "cost": {"header": "x-c"}}"#,
            "rate_limits.all.cost",
            "{…}",
        ),
        (
            r#""fair": ["client_ip"]"#,
            r#""fair": ["path"]"#,
            "concurrency_limits.c.fair",
            "[…]",
        ),
        (
            r#""name": "r","#,
            r#""name": "r", "match": {"prefix": "/"},"#,
            "routes[0].match",
            "{…}",
        ),
        (
            r#""name": "r","#,
            r#""name": "r", "timeout": {"request": "1s"},"#,
            "routes[0].timeout",
            "{…}",
        ),
        (
            r#""name": "r","#,
            r#""name": "r", "retry": {},"#,
            "routes[0].retry",
            "{…}",
        ),
        (
            r#""mode": "shadow"}"#,
            r#""mode": "shadow"}, {"name": "two"}"#,
            "routes[1]",
            "{…}",
        ),
        (
            r#"{"request_headers""#,
            r#"{"client_ip": {"source": "x-forwarded-for"}, "request_headers""#,
            "client_ip.source",
            "a header",
        ),
        (
            r#"{"request_headers""#,
            r#"{"trust_client_retry_headers": true, "request_headers""#,
            "trust_client_retry_headers",
            "true",
        ),
    ] {
        assert_eq!(QUIET.matches(from).count(), 1, "{from}");
        refused(
            &QUIET.replace(from, to),
            &[&format!("{path}: {value} {WHY}")],
        );
    }
}

/// What serves endpoints does nothing else, and says whose it serves.
#[test]
fn a_configuration_that_serves_endpoints_has_a_state_and_nothing_else() {
    let config = good(r#"{"serve_endpoints": true, "state": "haven", "service": "eds"}"#);
    assert!(config.serve_endpoints && config.state.as_deref() == Some("haven"));
    assert!(!good("{}").serve_endpoints);
    refused(
        r#"{"serve_endpoints": true}"#,
        &[
            "state: nothing is not allowed, want the state of the haven whose endpoints are served, \
           with \"serve_endpoints\" (required)",
        ],
    );
    let template = r#"{"serve_endpoints": true, "state": "haven", @}"#;
    let refusal = |section: &str| {
        format!(
            "{section}: {{…}} is not allowed, want none with \"serve_endpoints\": it answers nothing \
             else"
        )
    };
    for (field, section) in [
        (r#""upstreams": {"u": {}}"#, "upstreams"),
        (r#""rate_limits": {"l": {"limit": 1}}"#, "rate_limits"),
        (r#""circuit_breakers": {"b": {}}"#, "circuit_breakers"),
        (r#""concurrency_limits": {"c": {}}"#, "concurrency_limits"),
        (
            r#""fallbacks": {"f": {"steps": [{"respond": {}}]}}"#,
            "fallbacks",
        ),
        (r#""switches": {"s": "on"}"#, "switches"),
        (r#""routes": [{"name": "r"}]"#, "routes"),
        (r#""health": {"livez": null}"#, "health"),
    ] {
        refuses(template, &[(field, &refusal(section))]);
    }
}
