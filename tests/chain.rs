//! The chain on the simulated host: what a request meets, in which order, and what its client sees.

use haven::base::time::Nanos;
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use haven::host::{Message, Property, Stream};
use haven::policy::circuit_breaker::VERSION_HOLDS;
use serde_json::{Value, json};
use std::rc::Rc;

#[path = "chain/algorithms.rs"]
mod algorithms;
#[path = "chain/asking.rs"]
mod asking;
#[path = "chain/balancing.rs"]
mod balancing;
#[path = "chain/bodies.rs"]
mod bodies;
#[path = "chain/canary.rs"]
mod canary;
#[path = "chain/checks.rs"]
mod checks;
#[path = "chain/clients.rs"]
mod clients;
#[path = "chain/concurrency.rs"]
mod concurrency;
#[path = "chain/deadlines.rs"]
mod deadlines;
#[path = "chain/exceptions.rs"]
mod exceptions;
#[path = "chain/fallbacks.rs"]
mod fallbacks;
#[path = "chain/followed.rs"]
mod followed;
#[path = "chain/given_up.rs"]
mod given_up;
#[path = "chain/grpc_health.rs"]
mod grpc_health;
#[path = "chain/names.rs"]
mod names;
#[path = "chain/overload.rs"]
mod overload;
#[path = "chain/recipes.rs"]
mod recipes;
#[path = "chain/replaced.rs"]
mod replaced;
#[path = "chain/serving.rs"]
mod serving;
#[path = "chain/state.rs"]
mod state;
#[path = "chain/steering.rs"]
mod steering;
#[path = "chain/switches.rs"]
mod switches;

/// A proxy with one worker.
struct Proxy {
    machine: Rc<Machine>,
    worker: Worker,
    engine: Rc<Engine>,
}

impl Proxy {
    /// What it has written into the log.
    fn log_lines(&self) -> Vec<String> {
        let lines = self.machine.logs().into_iter();
        lines.map(|(_, line)| line).collect()
    }

    fn new(config: &Value) -> Self {
        let machine = Machine::new(HostKind::Envoy, 7);
        let worker = Worker(Rc::clone(&machine));
        let engine = Self::engine(&worker, config);
        Self {
            machine,
            worker,
            engine,
        }
    }

    fn engine(worker: &Worker, config: &Value) -> Rc<Engine> {
        let config = haven::document::parse(config.to_string().as_bytes())
            .unwrap_or_else(|errors| panic!("{errors}"));
        Rc::new(Engine::new(config, worker).unwrap())
    }

    fn reload(&mut self, config: &Value) {
        self.engine = Self::engine(&self.worker, config);
    }

    /// Sends a request as far as the router.
    fn begin(&self, stream: &SimStream) -> Exchange {
        let mut exchange = Exchange::new(Rc::clone(&self.engine));
        let action = exchange.on_request(&self.worker, stream);
        assert_eq!(action == Action::Stop, stream.replied().is_some());
        exchange
    }

    /// A whole request; an upstream that is reached answers with `status`.
    fn request(&self, path: &str, headers: &[(&str, &[u8])], status: u16) -> SimStream {
        let stream = SimStream::request("GET", path, headers);
        let mut exchange = self.begin(&stream);
        if stream.replied().is_none() {
            let first = stream
                .request_header("x-haven-upstream")
                .map(|list| list.split(',').next().unwrap().to_owned());
            stream.answer(
                status,
                Some(first.as_deref().unwrap_or("10.0.0.9:80")),
                &[("x-secret", b"upstream's own")],
            );
            exchange.on_response(&self.worker, &stream);
        }
        exchange.on_end(&self.worker);
        stream
    }

    fn status(&self, path: &str, headers: &[(&str, &[u8])]) -> u16 {
        let stream = self.request(path, headers, 200);
        stream.replied().map_or(200, |reply| reply.status)
    }
}

fn limited(limit: &Value) -> Value {
    json!({"rate_limits": {"l": limit}, "routes": [{"name": "r", "match": {"prefix": "/api"}, "rate_limits": ["l"]}]})
}

fn upstream(extra: &Value) -> Value {
    let mut config = json!({
        "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}], "circuit_breaker": "ep"}},
        "circuit_breakers": {
            "ep": {"consecutive_failures": 2, "open_duration": "1s", "half_open_calls": 1},
            "r": {"minimum_calls": 3, "open_duration": "5s", "half_open_calls": 1}},
        "fallbacks": {"f": {"steps": [{"respond": {"status": 200, "content_type": "text/plain", "body": "{{reason}} {{route}}"}}]}},
        "routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "circuit_breaker": "r"}]});
    merge(&mut config, extra);
    config
}

/// Gives the breaker `b` to the first route, or to the endpoints of the upstream `u`.
fn breaker_on(on: &str, config: &mut Value) {
    let at = if on == "route" {
        &mut config["routes"][0]
    } else {
        &mut config["upstreams"]["u"]
    };
    at["circuit_breaker"] = json!("b");
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => from
            .iter()
            .for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value)),
        (into, from) => *into = from.clone(),
    }
}

#[test]
fn a_request_that_matches_no_route_only_loses_reserved_headers() {
    let proxy = Proxy::new(&upstream(&json!({})));
    let stream = proxy.request(
        "/other",
        &[
            ("X-Haven-Upstream", b"6.6.6.6:1"),
            ("x-haven-cluster", b"evil"),
            ("x-mine", b"1"),
        ],
        200,
    );
    assert_eq!(stream.request_header("x-haven-upstream"), None);
    assert_eq!(stream.request_header("x-haven-cluster"), None);
    assert_eq!(stream.request_header("x-mine").as_deref(), Some("1"));
    assert_eq!(stream.decision(), None);
}

#[test]
fn clients_do_not_steer_the_proxys_retries_and_timeouts_unless_trusted() {
    let steering: &[(&str, &[u8])] = &[
        ("X-Envoy-Max-Retries", b"50"),
        ("x-envoy-retry-on", b"5xx"),
        ("x-envoy-retry-grpc-on", b"cancelled"),
        ("x-envoy-upstream-rq-timeout-ms", b"1"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", b"1"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", b"2"),
    ];
    for trusted in [false, true] {
        let proxy = Proxy::new(&upstream(&json!({"trust_client_retry_headers": trusted})));
        for path in ["/api", "/other"] {
            let stream = proxy.request(path, steering, 200);
            assert!(
                steering
                    .iter()
                    .all(|(name, _)| stream.request_header(name).is_some() == trusted),
                "{path} {trusted}"
            );
        }
    }
}

#[test]
fn an_empty_configuration_answers_health_only() {
    let proxy = Proxy::new(&json!({}));
    for path in ["/livez", "/readyz", "/startupz", "/health"] {
        assert_eq!(
            proxy.request(path, &[], 500).replied().unwrap().status,
            200,
            "{path}"
        );
    }
    assert!(proxy.request("/api", &[], 500).replied().is_none());
}

#[test]
fn a_refusal_tells_all_that_a_client_and_an_operator_need() {
    let proxy = Proxy::new(&limited(&json!({"limit": 2, "period": "10s"})));
    let first = proxy.request("/api", &[], 200);
    assert_eq!(
        first.response_header("ratelimit-policy").as_deref(),
        Some("\"l\";q=2;w=10")
    );
    assert_eq!(
        first.response_header("ratelimit").as_deref(),
        Some("\"l\";r=1;t=5")
    );
    proxy.request("/api", &[], 200);
    let refused = proxy.request("/api", &[], 200);
    let reply = refused.replied().unwrap();
    assert_eq!((reply.status, reply.grpc_status), (429, None));
    assert_eq!(refused.response_header("retry-after").as_deref(), Some("5"));
    assert_eq!(
        refused.response_header("ratelimit").as_deref(),
        Some("\"l\";r=0;t=5"),
        "never later than Retry-After"
    );
    assert_eq!(
        refused.response_header("content-type").as_deref(),
        Some("application/problem+json")
    );
    assert_eq!(
        refused.decision().as_deref(),
        Some("rate_limited l enforce")
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=r;policy=l;reason=rate_limited;mode=enforce"),
        1
    );
    proxy.machine.advance(Nanos(5_000_000_000 - 1));
    assert_eq!(proxy.status("/api", &[]), 429, "the promised wait is exact");
    proxy.machine.advance(Nanos(1));
    assert_eq!(proxy.status("/api", &[]), 200);
}

#[test]
fn debts_from_before_a_reload_are_at_most_those_of_an_empty_bucket() {
    let mut proxy = Proxy::new(&limited(&json!({"limit": 1, "period": "1h", "burst": 2})));
    assert_eq!([(); 3].map(|()| proxy.status("/api", &[])), [200, 200, 429]);
    proxy.reload(&limited(&json!({"limit": 10, "period": "1s", "burst": 5})));
    assert_eq!(
        proxy.status("/api", &[]),
        429,
        "two hours of debt are an empty bucket"
    );
    proxy.machine.advance(Nanos::from_millis(100));
    assert_eq!(
        [(); 2].map(|()| proxy.status("/api", &[])),
        [200, 429],
        "which fills at the new rate"
    );
}

#[test]
fn a_reload_that_shortens_the_open_time_counts_for_an_open_breaker() {
    for (on, status) in [("route", 503), ("endpoint", 503)] {
        let config = |open: &str| {
            let breaker = json!({"consecutive_failures": 1, "open_duration": open, "max_open_duration": open});
            let mut config = json!({"circuit_breakers": {"b": breaker}, "routes": [{"name": "r"}]});
            if on == "route" {
                config["routes"][0]["circuit_breaker"] = json!("b");
            } else {
                config["routes"][0]["upstream"] = json!("u");
                config["upstreams"]["u"] = json!({"endpoints": [{"address": "10.0.0.9:80"}], "circuit_breaker": "b",
                    "load_balancer": {"panic_threshold": 0}});
            }
            config
        };
        let mut proxy = Proxy::new(&config("1d"));
        proxy.request("/api", &[], 500);
        proxy.machine.advance(Nanos::from_secs(1));
        assert_eq!(proxy.status("/api", &[]), status, "{on}: open");
        proxy.reload(&config("3s"));
        assert_eq!(proxy.status("/api", &[]), status, "{on}: still open");
        proxy.machine.advance(Nanos::from_secs(2));
        assert_eq!(
            proxy.status("/api", &[]),
            200,
            "{on}: three seconds after it opened it is tried"
        );
    }
}

#[test]
fn a_round_whose_trial_call_was_lost_ends_however_often_the_records_are_read() {
    let proxy = Proxy::new(&json!({
        "circuit_breakers": {"b": {"consecutive_failures": 1, "open_duration": "1s", "half_open_calls": 1, "half_open_max_wait": "5s"}},
        "upstreams": {"u": {"endpoints": [{"address": "10.0.0.9:80"}], "circuit_breaker": "b", "load_balancer": {"panic_threshold": 0}}},
        "routes": [{"name": "r", "upstream": "u"}]}));
    // Each change of any endpoint makes a worker read them all, as a tick does.
    let pause = |seconds| {
        proxy.machine.advance(Nanos::from_secs(seconds));
        proxy.engine.tick(&proxy.worker);
    };
    proxy.request("/api", &[], 500);
    pause(1);
    let lost = SimStream::request("GET", "/api", &[]);
    drop(proxy.begin(&lost));
    assert!(lost.replied().is_none(), "the trial call, lost with its VM");
    pause(4);
    assert_eq!(proxy.status("/api", &[]), 503, "its permit is missed");
    pause(1);
    assert_eq!(
        proxy.status("/api", &[]),
        503,
        "until the round times out, and it opens again"
    );
    pause(1);
    assert_eq!(proxy.status("/api", &[]), 200);
}

#[test]
fn debts_of_a_warming_bucket_from_before_a_reload_are_forgotten_too() {
    let mut proxy = Proxy::new(&limited(
        &json!({"limit": 1, "period": "1h", "burst": 2, "warm_up": "1s"}),
    ));
    assert_eq!(
        [(); 2].map(|()| proxy.status("/api", &[])),
        [200, 429],
        "cold, one request is three hours of debt"
    );
    proxy.reload(&limited(
        &json!({"limit": 10, "period": "1s", "burst": 5, "warm_up": "1s"}),
    ));
    assert_eq!(proxy.status("/api", &[]), 429);
    proxy.machine.advance(Nanos::from_secs(2));
    assert_eq!(
        proxy.status("/api", &[]),
        200,
        "the deepest debt of the new bucket is 1.5 s"
    );
}

#[test]
fn keys_are_told_apart_by_their_parts() {
    type Headers<'a> = &'a [(&'a str, &'a [u8])];
    let cases: &[(Value, &str, Headers<'_>, &str, Headers<'_>, bool)] = &[
        (
            json!([{"header": "X-Key"}]),
            "/api",
            &[("x-key", b"a")],
            "/api",
            &[("x-key", b"b")],
            false,
        ),
        (
            json!([{"header": "x-key"}]),
            "/api",
            &[("x-key", b"a")],
            "/api/other",
            &[("x-key", b"a")],
            true,
        ),
        (
            json!([{"header": "x-key"}]),
            "/api",
            &[("x-key", b"\xff")],
            "/api",
            &[("x-key", b"\xfe")],
            false,
        ),
        (
            json!([{"header": "a"}, {"header": "b"}]),
            "/api",
            &[("a", b"ab"), ("b", b"c")],
            "/api",
            &[("a", b"a"), ("b", b"bc")],
            false,
        ),
        (
            json!([{"cookie": "sid"}]),
            "/api",
            &[("cookie", b"x=1; sid=7")],
            "/api",
            &[("cookie", b"sid=7; y=2")],
            true,
        ),
        (
            json!([{"query": "user"}]),
            "/api?user=1",
            &[],
            "/api?a=b&user=1",
            &[],
            true,
        ),
        (
            json!([{"query": "user"}]),
            "/api?user=1",
            &[],
            "/api?user=2",
            &[],
            false,
        ),
        (json!(["path"]), "/api/a?x", &[], "/api/a?y", &[], true),
        (json!(["path"]), "/api/a", &[], "/api/b", &[], false),
        (
            json!([{"path_segment": 1}]),
            "/api/7/a",
            &[],
            "/api/7/b",
            &[],
            true,
        ),
        (
            json!(["host"]),
            "/api",
            &[(":authority", b"ignored")],
            "/api",
            &[],
            true,
        ),
        (json!(["method", "route"]), "/api", &[], "/api/x", &[], true),
    ];
    for (key, path, headers, other_path, other, same) in cases {
        let proxy = Proxy::new(&limited(&json!({"limit": 1, "period": "1h", "key": key})));
        assert_eq!(proxy.status(path, headers), 200);
        assert_eq!(proxy.status(path, headers), 429, "{key}: the same request");
        assert_eq!(
            proxy.status(other_path, other) == 429,
            *same,
            "{key} {path} {other_path}"
        );
    }
}

#[test]
fn a_missing_part_skips_the_limit_or_shares_one_bucket() {
    for (missing, expected) in [("skip", 200), ("share", 429)] {
        let proxy = Proxy::new(&limited(
            &json!({"limit": 1, "period": "1h", "key": [{"header": "x-key"}], "missing_key": missing}),
        ));
        proxy.status("/api", &[]);
        assert_eq!(proxy.status("/api", &[]), expected, "{missing}");
        assert_eq!(
            proxy.status("/api", &[("x-key", b"")]),
            200,
            "an empty value is a value"
        );
    }
}

#[test]
fn clients_are_known_by_the_trusted_entry() {
    let with = |client_ip: Value| {
        let mut config = limited(&json!({"limit": 1, "period": "1h", "key": ["client_ip"]}));
        config["client_ip"] = client_ip;
        Proxy::new(&config)
    };
    // The connection (192.0.2.1) stands in where the header is missing, short or malformed.
    let xff = |hops: u32, headers: &[(&str, &[u8])], again: &[(&str, &[u8])]| {
        let proxy = with(json!({"source": "x-forwarded-for", "trusted_hops": hops}));
        proxy.status("/api", headers);
        proxy.status("/api", again) == 429
    };
    assert!(xff(
        1,
        &[("x-forwarded-for", b"1.1.1.1, 2.2.2.2")],
        &[("x-forwarded-for", b"9.9.9.9,2.2.2.2:80")]
    ));
    assert!(!xff(
        1,
        &[("x-forwarded-for", b"1.1.1.1, 2.2.2.2")],
        &[("x-forwarded-for", b"1.1.1.1, 3.3.3.3")]
    ));
    assert!(xff(
        2,
        &[("x-forwarded-for", b"1.1.1.1, 2.2.2.2")],
        &[("x-forwarded-for", b"1.1.1.1, 3.3.3.3")]
    ));
    assert!(
        xff(
            2,
            &[
                ("x-forwarded-for", b"1.1.1.1"),
                ("x-forwarded-for", b"2.2.2.2")
            ],
            &[("x-forwarded-for", b"1.1.1.1, 3.3.3.3")]
        ),
        "lines are one list"
    );
    for broken in [&b""[..], b"unknown", b"\xff", b"2.2.2.2,", b",,,,"] {
        assert!(xff(1, &[("x-forwarded-for", broken)], &[]), "{broken:?}");
    }
    assert!(
        xff(3, &[("x-forwarded-for", b"1.1.1.1, 2.2.2.2")], &[]),
        "too short"
    );
    assert!(
        xff(
            1,
            &[("x-forwarded-for", b"2001:DB8::1")],
            &[("x-forwarded-for", b"[2001:db8:0:0::2]:443")]
        ),
        "one /64 is one client"
    );
    let proxy = with(json!({"source": "x-real-ip", "ipv4_prefix": 24}));
    proxy.status("/api", &[("x-real-ip", b"7.7.7.1")]);
    assert_eq!(proxy.status("/api", &[("x-real-ip", b"7.7.7.200")]), 429);
    assert_eq!(proxy.status("/api", &[("x-real-ip", b"7.7.8.1")]), 200);
    let proxy = with(json!({"source": "connection"}));
    proxy.status("/api", &[("x-forwarded-for", b"1.1.1.1")]);
    assert_eq!(
        proxy.status("/api", &[("x-forwarded-for", b"2.2.2.2")]),
        429
    );
}

#[test]
fn costs_overrides_and_exemptions() {
    let proxy = Proxy::new(&limited(&json!({
        "limit": 10, "period": "1h", "key": [{"header": "x-key"}], "cost": {"header": "x-cost", "default": 1, "max": 6},
        "overrides": [{"key": ["vip"], "limit": 100, "period": "1h"}]})));
    let cost =
        |key: &[u8], cost: &[u8]| proxy.request("/api", &[("x-key", key), ("x-cost", cost)], 200);
    let remaining = |stream: &SimStream| {
        stream
            .response_header("ratelimit")
            .unwrap()
            .split(';')
            .nth(1)
            .unwrap()
            .to_owned()
    };
    assert_eq!(remaining(&cost(b"a", b"0")), "r=9", "the least");
    assert_eq!(remaining(&cost(b"a", b"2")), "r=7");
    assert_eq!(
        remaining(&cost(b"a", b"-5")),
        "r=6",
        "negative: the default"
    );
    assert_eq!(
        remaining(&cost(b"a", b"\xff")),
        "r=5",
        "malformed: the default"
    );
    assert!(
        cost(b"a", b"99999999999999999999999").replied().is_some(),
        "capped at 6, and 5 are left"
    );
    assert_eq!(remaining(&cost(b"vip", b"1")), "r=99");
    let mut config = limited(&json!({"limit": 1, "period": "1h", "exempt": ["192.0.2.0/24"]}));
    let proxy = Proxy::new(&config);
    assert!((0..5).all(|_| proxy.status("/api", &[]) == 200));
    config["rate_limits"]["l"]["exempt"] = json!(["198.51.100.0/24", "::/0"]);
    let proxy = Proxy::new(&config);
    proxy.status("/api", &[]);
    assert_eq!(
        proxy.status("/api", &[]),
        429,
        "an IPv4 client is neither in the other network nor in ::/0"
    );
}

#[test]
fn exemptions_speak_of_whole_addresses_whatever_the_prefixes_of_keys() {
    let passes = |exempt: &str, client: &str| {
        let mut config =
            limited(&json!({"limit": 1, "period": "1h", "key": ["client_ip"], "exempt": [exempt]}));
        config["client_ip"] = json!({"source": "x-forwarded-for", "ipv4_prefix": 24});
        let proxy = Proxy::new(&config);
        (0..3).all(|_| proxy.status("/api", &[("x-forwarded-for", client.as_bytes())]) == 200)
    };
    assert!(
        passes("::1/128", "::1") && passes("2001:db8::5", "2001:db8::5"),
        "one host of a /64"
    );
    assert!(
        !passes("2001:db8::5", "2001:db8::6") && !passes("2001:db8::/128", "2001:db8::6"),
        "and no other"
    );
    assert!(passes("10.0.0.5/32", "10.0.0.5") && !passes("10.0.0.0/32", "10.0.0.5"));
    assert!(passes("10.0.0.4/30", "10.0.0.5") && !passes("10.0.0.0/30", "10.0.0.5"));
}

#[test]
fn a_cost_above_the_burst_is_refused_without_a_promise() {
    let proxy = Proxy::new(&limited(
        &json!({"limit": 2, "period": "1s", "cost": {"header": "x-cost", "max": 50}}),
    ));
    let stream = proxy.request("/api", &[("x-cost", b"3")], 200);
    assert_eq!(
        (
            stream.replied().unwrap().status,
            stream.response_header("retry-after")
        ),
        (429, None)
    );
}

/// The `RateLimit` header without partition keys.
fn shown(stream: &SimStream) -> String {
    let header = stream.response_header("ratelimit").unwrap();
    let items = header
        .split(", ")
        .map(|item| item.split(";pk=").next().unwrap());
    items.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_key_is_told_apart_in_the_headers_and_not_told() {
    let limit = json!({"limit": 9, "period": "1h", "key": [{"header": "x-key"}]});
    let proxy = Proxy::new(&limited(&limit));
    let partition = |proxy: &Proxy, key: &[u8], name: &str| {
        let header = proxy
            .request("/api", &[("x-key", key)], 200)
            .response_header(name)
            .unwrap();
        header
            .split_once(";pk=:")
            .unwrap()
            .1
            .strip_suffix(":")
            .unwrap()
            .to_owned()
    };
    let of_a = partition(&proxy, b"a", "ratelimit");
    assert_eq!(
        (of_a.len(), partition(&proxy, b"a", "ratelimit-policy")),
        (12, of_a.clone())
    );
    assert_ne!(partition(&proxy, b"b", "ratelimit"), of_a);
    let mut other = Proxy::new(&limited(&limit));
    other.machine = Machine::new(HostKind::Envoy, 8);
    other.worker = Worker(Rc::clone(&other.machine));
    other.reload(&limited(&limit));
    assert_ne!(
        partition(&other, b"a", "ratelimit"),
        of_a,
        "the secret is each proxy's own"
    );
}

#[test]
fn several_limits_are_all_or_nothing() {
    let proxy = Proxy::new(&json!({
        "rate_limits": {"wide": {"limit": 10, "period": "1h"}, "narrow": {"limit": 1, "period": "1h", "key": [{"header": "x-key"}]}},
        "routes": [{"name": "r", "rate_limits": ["wide", "narrow"]}]}));
    proxy.status("/", &[("x-key", b"a")]);
    for _ in 0..20 {
        let refused = proxy.request("/", &[("x-key", b"a")], 200);
        assert_eq!(shown(&refused), "\"narrow\";r=0;t=3600");
    }
    let other = proxy.request("/", &[("x-key", b"b")], 200);
    assert_eq!(
        shown(&other),
        "\"narrow\";r=0;t=3600, \"wide\";r=8;t=720",
        "refusals cost the wide limit nothing"
    );
}

#[test]
fn of_several_limits_that_refuse_the_one_with_the_longest_wait_is_told() {
    let limits = json!({
        "second": {"limit": 2, "period": "10s", "burst": 2},
        "day": {"algorithm": "fixed_window", "limit": 2, "period": "1h"},
        "costly": {"limit": 100, "burst": 5, "period": "1s", "cost": {"header": "x-cost"}},
        "tried": {"limit": 1, "period": "365d", "mode": "shadow"}});
    for order in [
        ["second", "day", "costly", "tried"],
        ["tried", "costly", "day", "second"],
    ] {
        let proxy = Proxy::new(
            &json!({"rate_limits": &limits, "routes": [{"name": "r", "match": {}, "rate_limits": order}]}),
        );
        assert_eq!([(); 2].map(|()| proxy.status("/", &[])), [200, 200]);
        let refused = proxy.request("/", &[], 200);
        assert!(
            shown(&refused).starts_with("\"day\";r=0;t="),
            "{order:?}: {}",
            shown(&refused)
        );
        assert!(
            refused
                .decision()
                .unwrap()
                .contains("rate_limited day enforce")
        );
        assert!(
            !refused.decision().unwrap().contains("second"),
            "one refusal is one decision"
        );
        let wait: u64 = refused
            .response_header("retry-after")
            .unwrap()
            .parse()
            .unwrap();
        assert!(wait > 3_000, "{wait}");
        let never = proxy.request("/", &[("x-cost", b"6")], 200);
        assert_eq!(
            shown(&never),
            "\"costly\";r=3;t=1",
            "what is never admitted waits longest"
        );
        assert_eq!(never.response_header("retry-after"), None);
        proxy.machine.advance(Nanos::from_secs(wait));
        assert_eq!(proxy.status("/", &[]), 200, "the promise holds");
    }
}

#[test]
fn shadow_counts_and_never_acts_nor_spends() {
    let config = json!({
        "rate_limits": {"l": {"limit": 1, "period": "1h"}},
        "routes": [{"name": "try", "match": {"prefix": "/try"}, "rate_limits": ["l"], "mode": "shadow"}, {"name": "real", "rate_limits": ["l"]}]});
    let proxy = Proxy::new(&config);
    let streams: Vec<_> = (0..3).map(|_| proxy.request("/try", &[], 200)).collect();
    assert!(streams.iter().all(|s| s.replied().is_none()));
    assert_eq!(
        streams[2].decision().as_deref(),
        Some("rate_limited l shadow")
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=try;policy=l;reason=rate_limited;mode=shadow"),
        2
    );
    assert_eq!(
        proxy.status("/", &[]),
        200,
        "the enforced bucket is untouched"
    );
    assert_eq!(proxy.status("/", &[]), 429);
}

#[test]
fn the_innermost_mode_wins() {
    for (top, route, policy, refused) in [
        (None, None, None, true),
        (Some("off"), None, None, false),
        (Some("off"), Some("enforce"), None, true),
        (Some("enforce"), Some("shadow"), None, false),
        (Some("shadow"), Some("off"), Some("enforce"), true),
        (None, None, Some("off"), false),
    ] {
        let mut config = limited(&json!({"limit": 1, "period": "1h"}));
        let mut set = |at: &str, mode: Option<&str>| {
            if let Some(mode) = mode {
                *config.pointer_mut(at).unwrap() = merged(config.pointer(at).unwrap(), mode);
            }
        };
        set("", top);
        set("/routes/0", route);
        set("/rate_limits/l", policy);
        let proxy = Proxy::new(&config);
        proxy.status("/api", &[]);
        assert_eq!(
            proxy.status("/api", &[]) == 429,
            refused,
            "{top:?} {route:?} {policy:?}"
        );
    }
}

fn merged(value: &Value, mode: &str) -> Value {
    let mut value = value.clone();
    value["mode"] = mode.into();
    value
}

#[test]
fn buckets_and_breakers_survive_a_reload() {
    let mut config = upstream(
        &json!({"rate_limits": {"l": {"limit": 10, "period": "1h"}}, "routes": [{
        "name": "r", "match": {"prefix": "/api"}, "upstream": "u", "circuit_breaker": "r", "rate_limits": ["l"]}]}),
    );
    let mut proxy = Proxy::new(&config);
    for _ in 0..3 {
        proxy.request("/api", &[], 500);
    }
    assert_eq!(proxy.status("/api", &[]), 503, "the breaker is open");
    config["service"] = "renamed".into();
    proxy.reload(&config);
    let stream = proxy.request("/api", &[], 200);
    assert_eq!(stream.replied().unwrap().status, 503, "still open");
    assert_eq!(
        stream
            .response_header("ratelimit")
            .as_deref()
            .map(|h| h.split(';').nth(1).unwrap().to_owned())
            .as_deref(),
        Some("r=5")
    );
}

#[test]
fn an_open_breaker_says_how_long_and_recovers_by_one_trial() {
    let proxy = Proxy::new(&upstream(&json!({})));
    for _ in 0..3 {
        proxy.request("/api", &[], 500);
    }
    proxy.machine.advance(Nanos::from_millis(1_500));
    let refused = proxy.request("/api", &[], 200);
    assert_eq!(
        refused.response_header("retry-after").as_deref(),
        Some("4"),
        "3.5 s are left"
    );
    assert_eq!(
        refused.response_header("proxy-status").as_deref(),
        Some("haven; error=destination_unavailable; details=\"circuit_open r\"")
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_circuit_breaker_state;circuit_breaker=r;key=r"),
        1
    );
    proxy.machine.advance(Nanos::from_millis(3_500));
    // One trial in flight: everybody else is still refused.
    let trial = SimStream::request("GET", "/api", &[]);
    let mut exchange = proxy.begin(&trial);
    assert_eq!(proxy.status("/api", &[]), 503);
    // The client of the trial goes away: the permit is given back.
    exchange.on_end(&proxy.worker);
    assert_eq!(proxy.request("/api", &[], 200).replied(), None);
    assert_eq!(
        proxy
            .machine
            .metric("haven_circuit_breaker_state;circuit_breaker=r;key=r"),
        0
    );
    let lines = proxy
        .machine
        .logs()
        .into_iter()
        .filter(|(_, line)| line.contains("circuit breaker r of r"))
        .count();
    assert_eq!(
        lines,
        3,
        "one line for each change: {:?}",
        proxy.machine.logs()
    );
}

#[test]
fn a_failed_response_is_replaced_and_nothing_of_it_leaks() {
    let fallback = json!({"routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "fallback": "f"}]});
    let proxy = Proxy::new(&upstream(&fallback));
    let stream = proxy.request("/api", &[], 500);
    let reply = stream.replied().unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (200, &b"upstream_error r"[..])
    );
    assert_eq!(stream.response_header("x-secret"), None);
    assert_eq!(
        stream.response_header("proxy-status").as_deref(),
        Some(
            "haven; error=http_response_incomplete; received-status=500; details=\"upstream_error f\""
        )
    );
    assert_eq!(
        stream.decision().as_deref(),
        Some("upstream_error f enforce")
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_fallbacks_total;route=r;step=respond"),
        1
    );
    // What is no failure passes untouched.
    for status in [200, 302, 404, 429] {
        assert!(
            proxy.request("/api", &[], status).replied().is_none(),
            "{status}"
        );
    }
}

#[test]
fn timeouts_and_resets_are_told_apart_from_answers() {
    let fallback = json!({"routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "fallback": "f"}]});
    let proxy = Proxy::new(&upstream(&fallback));
    for (status, details, body) in [
        (504, "response_timeout", Some("timeout r")),
        (504, "upstream_per_try_timeout", Some("timeout r")),
        (
            503,
            "upstream_reset_before_response_started{connection_failure}",
            Some("upstream_error r"),
        ),
        (
            504,
            "upstream_max_stream_duration_reached",
            Some("timeout r"),
        ),
        (504, "stream_idle_timeout", Some("timeout r")),
        (504, "max_duration_timeout", Some("timeout r")),
        (408, "stream_idle_timeout", None),
        // In another dress.
        (200, "response_timeout", Some("timeout r")),
        (
            404,
            "upstream_reset_before_response_started{connection_failure}",
            Some("upstream_error r"),
        ),
        (503, "no_healthy_upstream", Some("no_endpoint r")),
        (503, "cluster_not_found", Some("no_endpoint r")),
        (503, "maintenance_mode", Some("overload r")),
        (
            503,
            "upstream_reset_before_response_started{overflow}",
            Some("overload r"),
        ),
        (
            503,
            "upstream_reset_before_response_started{remote_refused_stream_reset}",
            Some("upstream_error r"),
        ),
        (404, "direct_response", None),
        (200, "direct_response", None),
        (500, "ext_authz_error", None),
        (503, "direct_response", None),
    ] {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        stream.fail(status, details, Some("10.0.0.1:80"), 1);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        assert_eq!(
            stream
                .replied()
                .map(|r| String::from_utf8(r.body).unwrap())
                .as_deref(),
            body,
            "{details}"
        );
    }
}

#[test]
fn a_client_that_is_slow_to_send_says_nothing_of_the_upstream() {
    let breaker = json!({"consecutive_failures": 2, "minimum_calls": 100});
    let proxy = Proxy::new(
        &json!({"circuit_breakers": {"b": breaker}, "routes": [{"name": "r", "circuit_breaker": "b"}]}),
    );
    let cut_off = |headers: &[(&str, &[u8])], status: u16| {
        let stream = SimStream::request("POST", "/api", headers);
        let mut exchange = proxy.begin(&stream);
        stream.answer(
            status,
            Some("10.0.0.9:80"),
            if status == 200 {
                &[("grpc-status", b"14")]
            } else {
                &[]
            },
        );
        stream.set_property(Property::ResponseCodeDetails, b"request_overall_timeout");
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
    };
    for _ in 0..5 {
        cut_off(&[("content-type", b"application/grpc")], 200);
    }
    assert_eq!(proxy.status("/api", &[]), 200, "no failure");
    proxy.request("/api", &[], 500);
    cut_off(&[], 408);
    proxy.request("/api", &[], 500);
    assert_eq!(proxy.status("/api", &[]), 503, "nor a success");
}

#[test]
fn fallbacks_answer_refusals_only_for_their_causes() {
    let mut config = upstream(&json!({"rate_limits": {"l": {"limit": 4, "period": "1h"}}}));
    config["routes"] = json!([{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "circuit_breaker": "r", "rate_limits": ["l"], "fallback": "f"}]);
    let proxy = Proxy::new(&config);
    for _ in 0..3 {
        proxy.request("/api", &[], 500);
    }
    assert_eq!(
        proxy.request("/api", &[], 200).replied().unwrap().body,
        b"circuit_open r"
    );
    assert_eq!(
        proxy.request("/api", &[], 200).replied().unwrap().status,
        429,
        "rate_limited is not answered unless asked for"
    );
    config["fallbacks"]["f"]["on"] = json!(["rate_limited"]);
    let proxy = Proxy::new(&config);
    for _ in 0..4 {
        assert!(proxy.request("/api", &[], 200).replied().is_none());
    }
    assert_eq!(
        proxy.request("/api", &[], 200).replied().unwrap().body,
        b"rate_limited r"
    );
}

#[test]
fn grpc_gets_its_statuses() {
    let proxy = Proxy::new(&limited(&json!({"limit": 1, "period": "1h"})));
    let grpc: &[(&str, &[u8])] = &[("content-type", b"application/grpc+proto")];
    proxy.status("/api", grpc);
    assert_eq!(
        proxy
            .request("/api", grpc, 200)
            .replied()
            .unwrap()
            .grpc_status,
        Some(8)
    );
}

#[test]
fn a_grpc_call_is_judged_by_its_status_wherever_it_stands() {
    let grpc: &[(&str, &[u8])] = &[("content-type", b"application/grpc")];
    let call = |proxy: &Proxy, answer: &dyn Fn(&SimStream), trailers: Option<&[u8]>| {
        let stream = SimStream::request("POST", "/api", grpc);
        let mut exchange = proxy.begin(&stream);
        if stream.replied().is_none() {
            answer(&stream);
            exchange.on_response(&proxy.worker, &stream);
            if let Some(status) = trailers {
                stream.trail(&[("grpc-status", status)]);
                exchange.on_response_trailers(&proxy.worker, &stream);
            }
        }
        exchange.on_end(&proxy.worker);
        stream
    };
    let answered = |stream: &SimStream| stream.answer(200, Some("10.0.0.1:80"), &[]);
    let alone =
        |stream: &SimStream| stream.answer(200, Some("10.0.0.1:80"), &[("grpc-status", b"14")]);
    // What Envoy makes of a refused connection for a gRPC client.
    let local = |stream: &SimStream| {
        stream.answer(200, Some("10.0.0.1:80"), &[("grpc-status", b"14")]);
        stream.set_property(
            Property::ResponseCodeDetails,
            b"upstream_reset_before_response_started{connection_failure}",
        );
    };
    for (answer, trailers, opens) in [
        (&answered as &dyn Fn(&SimStream), Some(&b"0"[..]), false),
        (&answered, Some(b"5"), false),
        (&answered, Some(b"14"), true),
        (&answered, Some(b"\xff"), false),
        (&answered, None, false),
        (&alone, None, true),
        (&local, None, true),
    ] {
        let proxy = Proxy::new(&upstream(&json!({})));
        for _ in 0..3 {
            call(&proxy, answer, trailers);
        }
        let refused = call(&proxy, &answered, None).replied().is_some();
        assert_eq!(refused, opens, "{trailers:?}");
        assert!(
            proxy
                .machine
                .metrics_of("haven_endpoint_in_flight")
                .iter()
                .all(|(_, n)| *n == 0)
        );
    }
    let fallback = json!({"routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "fallback": "f"}]});
    let proxy = Proxy::new(&upstream(&fallback));
    let replaced = call(&proxy, &local, None);
    assert_eq!(replaced.sent(), (200, Vec::new()));
    let status = replaced.response_header("grpc-status");
    assert_eq!(status.as_deref(), Some("14"));
    assert!(replaced.response_header("proxy-status").is_some());
    assert_eq!(
        call(&proxy, &alone, None).response_header("proxy-status"),
        None,
        "an upstream's own gRPC status is its answer"
    );
}

#[test]
fn a_grpc_call_that_fails_without_a_grpc_status_has_the_one_that_its_client_makes_of_it() {
    let vectors: Value =
        serde_json::from_str(include_str!("vectors/14_grpc_status_timeout.json")).unwrap();
    let mapped = vectors["http_to_grpc"].as_object().unwrap();
    assert_eq!(mapped.len(), 12);
    for (status, code) in mapped {
        let (status, code) = (status.parse().unwrap_or(599), code.as_u64().unwrap());
        // Whoever says `application/grpc` to a service of another kind gets what else it answers:
        // that must open no breaker for others.
        for (listed, opens) in [(code, status >= 500), ((code + 1) % 17, false)] {
            let on = json!({"status": [], "grpc_status": [listed]});
            let proxy = Proxy::new(&json!({
                "circuit_breakers": {"b": {"consecutive_failures": 1, "failure_on": on}}, "routes": [{"name": "r", "circuit_breaker": "b"}]}));
            let stream =
                SimStream::request("POST", "/s/m", &[("content-type", b"application/grpc")]);
            let mut exchange = proxy.begin(&stream);
            stream.answer(
                status,
                Some("10.0.0.1:80"),
                &[("content-type", b"text/html")],
            );
            exchange.on_response_headers(&proxy.worker, &stream, false);
            exchange.on_response_body(&proxy.worker, &stream, 0, true);
            exchange.on_end(&proxy.worker);
            assert_eq!(proxy.status("/s/m", &[]) == 503, opens, "{status} {listed}");
        }
    }
}

#[test]
fn a_pushback_counts_wherever_it_stands() {
    let grpc: &[(&str, &[u8])] = &[("content-type", b"application/grpc")];
    let retry_after = |headers: &[(&str, &[u8])], trailers: &[(&str, &[u8])]| {
        let proxy = Proxy::new(&json!({
            "circuit_breakers": {"b": {"consecutive_failures": 1, "open_duration": "5s"}},
            "routes": [{"name": "r", "circuit_breaker": "b"}]}));
        let stream = SimStream::request("POST", "/s/m", grpc);
        let mut exchange = proxy.begin(&stream);
        stream.answer(200, Some("10.0.0.1:80"), headers);
        exchange.on_response_headers(&proxy.worker, &stream, false);
        stream.trail(trailers);
        exchange.on_response_trailers(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        let refused = proxy.request("/s/m", &[], 200);
        refused
            .response_header("retry-after")
            .map(|seconds| seconds.parse::<u64>().unwrap())
    };
    let failed = ("grpc-status", &b"14"[..]);
    assert_eq!(retry_after(&[], &[failed]), Some(5));
    assert_eq!(
        retry_after(&[], &[failed, ("grpc-retry-pushback-ms", b"20000")]),
        Some(20),
        "as gRPC sends it"
    );
    assert_eq!(
        retry_after(&[("grpc-retry-pushback-ms", b"9000")], &[failed]),
        Some(9)
    );
    for malformed in [&b"-1"[..], b"soon", b"1.5", b""] {
        assert_eq!(
            retry_after(&[], &[failed, ("grpc-retry-pushback-ms", malformed)]),
            Some(5),
            "{malformed:?}"
        );
    }
}

#[test]
fn a_retry_after_may_be_a_date() {
    let opens_for = |headers: &[(&str, &[u8])]| {
        let proxy = Proxy::new(&json!({
            "circuit_breakers": {"b": {"consecutive_failures": 1, "open_duration": "5s"}},
            "routes": [{"name": "r", "circuit_breaker": "b"}]}));
        let stream = SimStream::request("GET", "/", &[]);
        let mut exchange = proxy.begin(&stream);
        stream.answer(503, Some("10.0.0.1:80"), headers);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        let refused = proxy.request("/", &[], 200);
        let seconds = refused.response_header("retry-after").unwrap();
        seconds.parse::<u64>().unwrap()
    };
    // By the upstream's own clock, however wrong that is.
    let date = ("date", &b"Sun, 06 Nov 1994 08:49:37 GMT"[..]);
    for (until, seconds) in [
        (&b"Sun, 06 Nov 1994 08:49:57 GMT"[..], 20),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 1),
        (b"Sun, 06 Nov 1994 08:00:00 GMT", 5),
        (b"Sun, 99 Nov 1994 08:49:57 GMT", 5),
    ] {
        assert_eq!(opens_for(&[date, ("retry-after", until)]), seconds);
    }
    let alone = [("retry-after", &b"Sun, 06 Nov 1994 08:49:57 GMT"[..])];
    assert_eq!(opens_for(&alone), 5, "without a clock to compare with");
}

#[test]
fn of_two_quotas_the_tighter_one_stands_and_once() {
    let answered = |headers: &str, its: &[(&str, &[u8])]| {
        let proxy = Proxy::new(&limited(
            &json!({"limit": 10, "period": "1h", "headers": headers}),
        ));
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        stream.answer(200, Some("10.0.0.1:80"), its);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        let all = stream.headers(Message::Response);
        ["limit", "remaining"].map(|name| {
            let name = format!("x-ratelimit-{name}");
            let values: Vec<_> = all.all(&name).map(String::from_utf8_lossy).collect();
            values.join(" and ")
        })
    };
    let its = |left: &'static [u8]| {
        [
            ("X-RateLimit-Limit", &b"100"[..]),
            ("x-ratelimit-remaining", left),
            ("x-ratelimit-reset", b"1"),
        ]
    };
    for headers in ["x", "both"] {
        assert_eq!(answered(headers, &[]), ["10", "9"]);
        assert_eq!(
            answered(headers, &its(b"3")),
            ["100", "3"],
            "the service's is tighter"
        );
        assert_eq!(answered(headers, &its(b"50")), ["10", "9"]);
        assert_eq!(answered(headers, &its(b"many")), ["10", "9"]);
    }
    assert_eq!(
        answered("ietf", &its(b"50")),
        ["100", "50"],
        "not written by haven"
    );
}

#[test]
fn a_threshold_of_all_calls_can_be_reached_where_above_opens() {
    for (breaker, slow) in [
        (
            json!({"preset": "sentinel", "failure_rate_threshold": 100}),
            false,
        ),
        (
            json!({"preset": "sentinel", "slow_call_duration": "1s"}),
            true,
        ),
    ] {
        let proxy = Proxy::new(
            &json!({"circuit_breakers": {"b": breaker}, "routes": [{"name": "r", "circuit_breaker": "b"}]}),
        );
        let end = |exchange: &mut Exchange, stream: &SimStream| {
            stream.answer(if slow { 200 } else { 500 }, Some("10.0.0.9:80"), &[]);
            exchange.on_response(&proxy.worker, stream);
            exchange.on_end(&proxy.worker);
        };
        // All at once: the window is as short as a slow call.
        let streams: Vec<_> = (0..5)
            .map(|_| {
                let stream = SimStream::request("GET", "/", &[]);
                (proxy.begin(&stream), stream)
            })
            .collect();
        proxy.machine.advance(Nanos::from_secs(1));
        for (mut exchange, stream) in streams {
            end(&mut exchange, &stream);
        }
        assert_eq!(proxy.status("/", &[]), 503, "it is open");
        proxy.machine.advance(Nanos::from_secs(5));
        let probe = SimStream::request("GET", "/", &[]);
        let mut exchange = proxy.begin(&probe);
        assert!(probe.replied().is_none());
        proxy.machine.advance(Nanos::from_secs(1));
        end(&mut exchange, &probe);
        assert_eq!(proxy.status("/", &[]), 503, "the probe failed as all do");
    }
}

#[test]
fn a_dead_endpoint_is_left_alone_and_tried_again_later() {
    let proxy = Proxy::new(&upstream(
        &json!({"upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80"}]}}}),
    ));
    let lists = |n: usize, dead: Option<&str>| -> Vec<String> {
        (0..n)
            .map(|_| {
                let stream = SimStream::request("GET", "/api", &[]);
                let mut exchange = proxy.begin(&stream);
                let list = stream
                    .request_header("x-haven-upstream")
                    .expect("not refused");
                // The proxy tries in order: a dead first entry costs a retry.
                let answering = list.split(',').find(|a| Some(*a) != dead).unwrap();
                stream.answer(200, Some(answering), &[]);
                exchange.on_response(&proxy.worker, &stream);
                exchange.on_end(&proxy.worker);
                list
            })
            .collect()
    };
    assert!(
        lists(60, None).iter().all(|l| l.split(',').count() == 3),
        "all are well: three are listed"
    );
    let dead = "10.0.0.2:80";
    lists(60, Some(dead));
    assert_eq!(
        proxy
            .machine
            .metric("haven_endpoint_healthy;upstream=u;endpoint=10.0.0.2:80"),
        0
    );
    assert!(
        lists(60, Some(dead)).iter().all(|l| !l.contains(dead)),
        "left alone"
    );
    assert!(proxy.machine.metric("haven_retries_total;route=r") >= 2);
    proxy.machine.advance(Nanos::from_millis(1_001));
    let trial = lists(60, Some(dead));
    assert_eq!(
        trial.iter().filter(|l| l.contains(dead)).count(),
        1,
        "one trial, first on its list: {trial:?}"
    );
    assert!(
        trial
            .iter()
            .all(|l| !l.contains(dead) || l.starts_with(dead))
    );
    proxy.machine.advance(Nanos::from_millis(1_001));
    lists(60, None);
    assert!(
        lists(60, None).iter().any(|l| l.starts_with(dead)),
        "and back in use"
    );
}

#[test]
fn an_endpoints_breaker_in_shadow_opens_and_closes_and_takes_none_out() {
    let state = "haven_circuit_breaker_state;circuit_breaker=ep;key=10.0.0.1:80";
    for what in ["breaker", "upstream", "route"] {
        let mut config = upstream(
            &json!({"upstreams": {"u": {"load_balancer": {"panic_threshold": 0},
            "endpoints": [{"address": "10.0.0.1:80"}]}}}),
        );
        config["routes"][0]
            .as_object_mut()
            .unwrap()
            .remove("circuit_breaker");
        match what {
            "breaker" => config["circuit_breakers"]["ep"]["mode"] = json!("shadow"),
            "upstream" => config["upstreams"]["u"]["mode"] = json!("shadow"),
            _ => config["routes"][0]["mode"] = json!("shadow"),
        }
        let proxy = Proxy::new(&config);
        let call = |status| {
            let stream = SimStream::request("GET", "/api", &[]);
            let mut exchange = proxy.begin(&stream);
            stream.answer(status, Some("10.0.0.1:80"), &[]);
            exchange.on_response(&proxy.worker, &stream);
            exchange.on_end(&proxy.worker);
            proxy.engine.tick(&proxy.worker);
            assert!(stream.replied().is_none());
            proxy.machine.metric(state)
        };
        assert_eq!([500, 500, 200].map(call), [0, 1, 1], "{what}");
        proxy.machine.advance(Nanos::from_secs(1));
        assert_eq!([500, 200].map(call), [1, 1], "{what}: tried in vain");
        proxy.machine.advance(Nanos::from_secs(1));
        assert_eq!(call(200), 0, "{what}: closed");
    }
}

#[test]
fn what_a_shadow_sees_takes_no_trial_calls_place() {
    let mut config = upstream(
        &json!({"upstreams": {"u": {"load_balancer": {"panic_threshold": 0},
        "endpoints": [{"address": "10.0.0.1:80"}]}}}),
    );
    config["routes"] = json!([{"name": "s", "match": {"path": "/shadow"}, "upstream": "u", "mode": "shadow"}, {"name": "r", "upstream": "u"}]);
    let proxy = Proxy::new(&config);
    let state = || {
        proxy
            .machine
            .metric("haven_circuit_breaker_state;circuit_breaker=ep;key=10.0.0.1:80")
    };
    for _ in 0..2 {
        proxy.request("/api", &[], 500);
    }
    proxy.machine.advance(Nanos::from_secs(1));
    let stream = SimStream::request("GET", "/api", &[]);
    let mut trial = proxy.begin(&stream);
    assert_eq!((stream.replied().is_none(), state()), (true, 2));
    proxy.engine.tick(&proxy.worker);
    let shadow = SimStream::request("GET", "/shadow", &[]);
    let mut exchange = proxy.begin(&shadow);
    shadow.answer(200, Some("10.0.0.1:80"), &[]);
    exchange.on_response(&proxy.worker, &shadow);
    exchange.on_end(&proxy.worker);
    assert_eq!(state(), 2, "the trial call is not over");
    stream.answer(500, Some("10.0.0.1:80"), &[]);
    trial.on_response(&proxy.worker, &stream);
    trial.on_end(&proxy.worker);
    assert_eq!(state(), 1, "and it decides");
}

#[test]
fn each_endpoint_that_was_asked_in_vain_is_told() {
    let three = json!([{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80"}, {"address": "10.0.0.4:80"}]);
    let once = json!({"upstreams": {"u": {"endpoints": three}}, "circuit_breakers": {"ep": {"consecutive_failures": 1}}});
    // Who answered, after how many tries, and how many of the listed are then out.
    for (answering, attempts, out) in [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 3), (3, 1, 0)] {
        let proxy = Proxy::new(&upstream(&once));
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        let list = stream.request_header("x-haven-upstream").unwrap();
        let unlisted = (1..=4)
            .map(|n| format!("10.0.0.{n}:80"))
            .find(|a| !list.contains(a))
            .unwrap();
        let order: Vec<_> = list.split(',').chain([unlisted.as_str()]).collect();
        stream.answer(200, Some(order[answering]), &[]);
        stream.set_property(Property::AttemptCount, &u64::to_le_bytes(attempts));
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        let healthy: u64 = proxy
            .machine
            .metrics_of("haven_circuit_breaker_state;circuit_breaker=ep")
            .iter()
            .map(|(_, state)| *state)
            .sum();
        assert_eq!(healthy, out, "{answering} {attempts}");
        assert_eq!(
            proxy.machine.metric("haven_retries_total;route=r"),
            attempts - 1
        );
    }
    // No endpoint answered: the number of tries shows it.
    let proxy = Proxy::new(&upstream(&once));
    let stream = SimStream::request("GET", "/api", &[]);
    let mut exchange = proxy.begin(&stream);
    stream.fail(
        503,
        "upstream_reset_before_response_started{connection_failure}",
        None,
        2,
    );
    exchange.on_response(&proxy.worker, &stream);
    exchange.on_end(&proxy.worker);
    let out: u64 = proxy
        .machine
        .metrics_of("haven_circuit_breaker_state;circuit_breaker=ep")
        .iter()
        .map(|(_, state)| *state)
        .sum();
    assert_eq!(out, 2);
}

#[test]
fn a_panic_uses_all_and_never_panicking_refuses() {
    let mut config = upstream(&json!({}));
    config["routes"][0]
        .as_object_mut()
        .unwrap()
        .remove("circuit_breaker");
    let outage = |proxy: &Proxy| {
        for _ in 0..10 {
            let stream = SimStream::request("GET", "/api", &[]);
            let mut exchange = proxy.begin(&stream);
            if let Some(list) = stream.request_header("x-haven-upstream") {
                stream.fail(
                    503,
                    "upstream_reset_before_response_started{connection_failure}",
                    list.rsplit(',').next(),
                    list.split(',').count() as u64,
                );
                exchange.on_response(&proxy.worker, &stream);
            }
            exchange.on_end(&proxy.worker);
        }
    };
    let proxy = Proxy::new(&config);
    outage(&proxy);
    assert!(
        proxy
            .request("/api", &[], 200)
            .request_header("x-haven-upstream")
            .is_some(),
        "in a panic the list is still written"
    );
    let ready = proxy.request("/readyz", &[], 200).replied().unwrap();
    assert_eq!(ready.status, 503);
    let body: Value = serde_json::from_slice(&ready.body).unwrap();
    assert_eq!(
        (&body["status"], &body["details"]["u"]["status"]),
        (&"OUT_OF_SERVICE".into(), &"DOWN".into())
    );
    config["upstreams"]["u"]["load_balancer"] = json!({"panic_threshold": 0});
    let proxy = Proxy::new(&config);
    outage(&proxy);
    let refused = proxy.request("/api", &[], 200);
    assert_eq!(refused.decision().as_deref(), Some("no_endpoint u enforce"));
    // The outage ends: what may be tried makes ready again, or nothing would ever come to try it.
    proxy.machine.advance(Nanos::from_millis(1_001));
    assert_eq!(
        proxy.request("/readyz", &[], 200).replied().unwrap().status,
        200
    );
}

#[test]
fn health_is_answered_while_everything_else_is_refused() {
    let mut config = limited(&json!({"limit": 1, "period": "1h"}));
    config["routes"][0]["match"] = json!({});
    let proxy = Proxy::new(&config);
    proxy.status("/x", &[]);
    assert_eq!(proxy.status("/x", &[]), 429);
    assert!(
        (0..50).all(|_| proxy.status("/health", &[]) == 200 && proxy.status("/readyz", &[]) == 200)
    );
}

#[test]
fn an_unknown_client_is_not_everybody() {
    let proxy = Proxy::new(&limited(
        &json!({"limit": 1, "period": "1h", "key": ["client_ip"]}),
    ));
    for _ in 0..3 {
        let stream = SimStream::request("GET", "/api", &[]);
        stream.set_property(Property::SourceAddress, b"pipe:/tmp/socket");
        proxy.begin(&stream).on_end(&proxy.worker);
        assert!(
            stream.replied().is_none(),
            "without an address the key is missing, and the limit is skipped"
        );
    }
}

#[test]
fn unbounded_contention_has_the_configured_answer() {
    for (on_contention, status) in [("allow", 200), ("deny", 429)] {
        let proxy = Proxy::new(&limited(
            &json!({"limit": 5, "period": "1h", "on_contention": on_contention}),
        ));
        proxy.status("/api", &[]);
        proxy.machine.cas_failures.set(100);
        assert_eq!(proxy.status("/api", &[]), status);
        assert_eq!(
            proxy
                .machine
                .metric("haven_store_contention_total;policy=l"),
            1
        );
    }
}

#[test]
fn what_one_worker_finds_out_about_an_upstream_all_know() {
    for no_metrics in [false, true] {
        let mut proxy = Proxy::new(&upstream(&json!({})));
        proxy.machine.no_metrics.set(no_metrics);
        let config = upstream(
            &json!({"circuit_breakers": {"r": {"window": {"type": "time", "size": "1s"}}}}),
        );
        let workers = [(); 3].map(|()| {
            proxy.reload(&config);
            Rc::clone(&proxy.engine)
        });
        let ask = |worker: usize, status: u16| {
            let proxy = Proxy {
                machine: Rc::clone(&proxy.machine),
                worker: proxy.worker.clone(),
                engine: Rc::clone(&workers[worker]),
            };
            proxy
                .request("/api", &[], status)
                .replied()
                .map(|reply| reply.status)
        };
        assert_eq!(
            [(0, 500), (1, 500), (2, 200)].map(|(worker, status)| ask(worker, status)),
            [None; 3]
        );
        proxy.machine.advance(VERSION_HOLDS);
        assert_eq!(
            [0, 1, 2].map(|worker| ask(worker, 200)),
            [Some(503); 3],
            "two of three failed"
        );
        proxy.machine.advance(Nanos::from_secs(5));
        assert_eq!(ask(1, 200), None, "one trial");
        assert_eq!(
            [0, 1, 2].map(|worker| ask(worker, 500)),
            [None; 3],
            "closed for all, with an empty window"
        );
        proxy.machine.advance(VERSION_HOLDS);
        assert_eq!([0, 1, 2].map(|worker| ask(worker, 200)), [Some(503); 3]);
        // Calls leave the window with time, whoever counted them.
        proxy.machine.advance(Nanos::from_secs(5));
        assert_eq!([2, 0, 1, 0].map(|worker| ask(worker, 200)), [None; 4]);
        assert_eq!(
            [0, 1].map(|worker| ask(worker, 500)),
            [None; 2],
            "two of five"
        );
        proxy.machine.advance(Nanos::from_secs(2));
        assert_eq!(
            [2, 1].map(|worker| ask(worker, 500)),
            [None; 2],
            "two of two are too few"
        );
        assert_eq!(ask(0, 200), None);
        assert_eq!(ask(0, 200), Some(503), "two of three are not");
    }
}

#[test]
fn a_count_window_opens_by_the_last_calls() {
    let proxy = Proxy::new(&upstream(&json!({"circuit_breakers": {
        "ep": {"consecutive_failures": 0},
        "r": {"minimum_calls": 2, "window": {"type": "count", "size": 4}}}})));
    for status in [200, 200, 500, 200, 200, 200, 500] {
        assert_eq!(proxy.request("/api", &[], status).replied(), None);
    }
    assert_eq!(
        proxy.request("/api", &[], 500).replied(),
        None,
        "two of the last four"
    );
    assert_eq!(proxy.status("/api", &[]), 503);
}

#[test]
fn each_change_of_a_breaker_has_its_cause_its_time_and_one_log_line() {
    let proxy = Proxy::new(&upstream(&json!({})));
    let seconds = |proxy: &Proxy| {
        proxy
            .machine
            .metric("haven_circuit_breaker_changed_timestamp_seconds;circuit_breaker=r;key=r")
    };
    for _ in 0..3 {
        proxy.request("/api", &[], 500);
    }
    assert_eq!(seconds(&proxy), 1_800_000_000);
    proxy.machine.advance(Nanos::from_secs(7));
    proxy.request("/api", &[], 200);
    assert_eq!(seconds(&proxy), 1_800_000_007);
    let of = |cause| {
        proxy.machine.metric(&format!(
            "haven_circuit_breaker_causes_total;circuit_breaker=r;cause={cause}"
        ))
    };
    assert_eq!(
        [
            "failure_rate",
            "open_time_over",
            "trial_passed",
            "trial_timed_out"
        ]
        .map(of),
        [1, 1, 1, 0]
    );
    let lines = proxy.log_lines();
    let written: Vec<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("circuit breaker r of r: "))
        .collect();
    assert_eq!(
        written,
        [
            "closed -> open for 5000 ms: failure rate",
            "open -> half_open: open time over",
            "half_open -> closed: trial calls passed"
        ]
    );
}

#[test]
fn many_breakers_that_flap_do_not_flood_the_log() {
    let routes: Vec<_> = (0..80)
        .map(|n| json!({"name": format!("r{n}"), "match": {"prefix": format!("/{n}")}, "circuit_breaker": "b"}))
        .collect();
    let proxy = Proxy::new(
        &json!({"circuit_breakers": {"b": {"consecutive_failures": 1}}, "routes": routes}),
    );
    for n in 0..80 {
        proxy.request(&format!("/{n}"), &[], 500);
    }
    assert_eq!(proxy.machine.logs().len(), 50, "in one second");
    proxy.engine.tick(&proxy.worker);
    assert_eq!(
        proxy.machine.logs().last().unwrap().1,
        "circuit breakers and endpoints: 30 more changes"
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_circuit_breaker_transitions_total;circuit_breaker=b;to=open"),
        80
    );
    proxy.machine.advance(Nanos::from_secs(5));
    proxy.request("/7", &[], 200);
    assert_eq!(proxy.machine.logs().len(), 52);
}

#[test]
fn the_proxys_own_attempt_count_spares_asking_who_answered_and_is_not_believed_of_a_failure() {
    let mut config = upstream(&json!({}));
    config["upstreams"]["u"]["override"] = json!({"attempt_count": true});
    let answer = |config: &Value, status, count: &[u8], from: usize| {
        let proxy = Proxy::new(config);
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        let list = stream.request_header("x-haven-upstream").unwrap();
        let said = [
            ("x-envoy-upstream-service-time", &b"1"[..]),
            ("x-envoy-attempt-count", count),
        ];
        stream.answer(status, list.split(',').nth(from), &said);
        stream.set_property(Property::AttemptCount, &u64::to_le_bytes(from as u64 + 1));
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        let asked = stream.asked(Property::UpstreamAddress);
        (asked, proxy.machine.metric("haven_retries_total;route=r"))
    };
    assert_eq!(answer(&config, 200, b"1", 0), (0, 0));
    assert_eq!(
        answer(&config, 200, b"2", 1),
        (1, 1),
        "more than one try: the address shows which"
    );
    assert_eq!(
        answer(&config, 500, b"1", 0).0,
        1,
        "who is to blame is asked"
    );
    for nonsense in [&b"0"[..], b"", b"\xff", b"1,1"] {
        assert_eq!(answer(&config, 200, nonsense, 1), (1, 1));
    }
    config["upstreams"]["u"]["override"] = json!({});
    assert_eq!(
        answer(&config, 200, b"1", 1),
        (1, 1),
        "not said to be the proxy's: whatever an endpoint sends"
    );
}
