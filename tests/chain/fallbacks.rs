//! Fallbacks that keep and that send on, and answers that are cut in their middle.

use super::*;

const STALE: &str = "haven_fallbacks_total;route=r;step=stale";

fn stale(more: &Value) -> Value {
    let mut config = json!({
        "circuit_breakers": {"b": {"consecutive_failures": 1, "failure_rate_threshold": 100, "open_duration": "50s",
            "half_open_calls": 1}},
        "upstreams": {"u": {"cluster": "main", "endpoints": [{"address": "10.0.0.9:80"}], "load_balancer": {"panic_threshold": 0}}},
        "fallbacks": {"f": {"on": ["rate_limited", "overload", "circuit_open", "no_endpoint", "deadline", "switched_off",
                "upstream_error", "timeout"],
            "steps": [{"stale": {"max_age": "5m", "max_body": "8B"}}, {"respond": {"status": 203, "body": "static"}}]}},
        "routes": [{"name": "r", "match": {"prefix": "/api"}, "fallback": "f"}]});
    merge(&mut config, more);
    config
}

impl Proxy {
    /// A response with a body that comes in pieces.
    fn serve(&self, method: &str, headers: &[(&str, &[u8])], pieces: &[&[u8]]) {
        let stream = SimStream::request(method, "/api", headers);
        let mut exchange = self.begin(&stream);
        assert!(stream.replied().is_none());
        self.answer(&mut exchange, &stream, pieces);
        exchange.on_end(&self.worker);
    }

    fn answer(&self, exchange: &mut Exchange, stream: &SimStream, pieces: &[&[u8]]) {
        stream.answer(
            200,
            Some("10.0.0.9:80"),
            &[
                ("content-type", b"text/good"),
                ("transfer-encoding", b"chunked"),
                ("connection", b"x-hop"),
                ("x-hop", b"1"),
            ],
        );
        assert_eq!(
            exchange.on_response_headers(&self.worker, stream, false),
            Action::Continue
        );
        for (at, piece) in pieces.iter().enumerate() {
            stream.piece(piece);
            exchange.on_response_body(&self.worker, stream, piece.len(), at + 1 == pieces.len());
        }
    }

    /// The answer to a GET of an upstream that fails with 500, if it is asked.
    fn failing(&self) -> (u16, Vec<u8>) {
        self.request("/api", &[], 500).sent()
    }
}

#[test]
fn the_last_good_response_is_answered_with_its_age_and_nothing_of_the_failure() {
    let proxy = Proxy::new(&stale(
        &json!({"rate_limits": {"l": {"limit": 9}}, "routes": [
        {"name": "r", "match": {"prefix": "/api"}, "fallback": "f", "rate_limits": ["l"]}]}),
    ));
    assert_eq!(proxy.failing(), (203, b"static".to_vec()));
    proxy.serve("GET", &[], &[b"go", b"", b"od"]);
    proxy.machine.advance(Nanos::from_millis(7_900));
    let failed = proxy.request("/api", &[], 500);
    let reply = failed.replied().unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"good"[..]));
    for (name, value) in [
        ("age", Some("7")),
        ("content-type", Some("text/good")),
        ("x-hop", None),
        ("x-secret", None),
        (
            "proxy-status",
            Some(
                "haven; error=http_response_incomplete; received-status=500; details=\"upstream_error f\"",
            ),
        ),
        ("ratelimit", Some("\"l\";r=8;t=1")),
    ] {
        assert_eq!(failed.response_header(name).as_deref(), value, "{name}");
    }
    assert_eq!(
        failed.decision().as_deref(),
        Some("upstream_error f enforce")
    );
    assert_eq!(proxy.machine.metric(STALE), 1);
    assert_eq!(
        proxy
            .machine
            .metric("haven_fallbacks_total;route=r;step=respond"),
        1
    );
    proxy.machine.advance(Nanos::from_secs(293));
    assert_eq!(proxy.failing().0, 203, "too old");
}

#[test]
fn it_answers_for_each_reason_that_is_known_before_a_request_is_sent() {
    let cases = [
        (
            json!({"switches": {"s": "off"}, "routes": [{"name": "r", "fallback": "f", "switch": "s"}]}),
            "switched_off",
            "s",
            &[][..],
        ),
        (
            json!({"rate_limits": {"l": {"limit": 1, "cost": {"header": "x-cost"}}}, "routes": [{"name": "r", "fallback": "f", "rate_limits": ["l"]}]}),
            "rate_limited",
            "l",
            &[("x-cost", &b"5"[..])],
        ),
        (
            json!({"upstreams": {"u": {"endpoints": [{"address": "10.0.0.9:80", "weight": 0}]}},
                "routes": [{"name": "r", "fallback": "f", "upstream": "u"}]}),
            "no_endpoint",
            "u",
            &[],
        ),
    ];
    for (config, reason, policy, headers) in cases {
        let mut config = stale(&config);
        config["trust_client_retry_headers"] = json!(true);
        let mut proxy = Proxy::new(&stale(&json!({"routes": [{"name": "r", "fallback": "f"}]})));
        proxy.serve("GET", &[], &[b"good"]);
        proxy.reload(&config);
        let stream = SimStream::request("GET", "/api", headers);
        assert_eq!(
            Exchange::new(Rc::clone(&proxy.engine)).on_request(&proxy.worker, &stream),
            Action::Stop,
            "{reason}"
        );
        assert_eq!(stream.replied().unwrap().body, b"good", "{reason}");
        let status = stream.response_header("proxy-status").unwrap();
        assert!(
            status.ends_with(&format!("details=\"{reason} {policy}\"")),
            "{status}"
        );
        let stream = SimStream::request("GET", "/api?other", headers);
        Exchange::new(Rc::clone(&proxy.engine)).on_request(&proxy.worker, &stream);
        assert_eq!(stream.replied().unwrap().body, b"static", "{reason}");
    }
}

#[test]
fn it_answers_for_an_open_breaker_and_for_what_the_proxy_says_of_its_upstream() {
    let proxy = Proxy::new(&stale(
        &json!({"routes": [{"name": "r", "match": {"prefix": "/api"}, "fallback": "f", "circuit_breaker": "b"}]}),
    ));
    proxy.serve("GET", &[], &[b"good"]);
    for (status, details) in [
        (504, "response_timeout"),
        (
            503,
            "upstream_reset_before_response_started{connection_failure}",
        ),
        (503, "no_healthy_upstream"),
    ] {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        if stream.replied().is_none() {
            stream.fail(status, details, None, 1);
            exchange.on_response(&proxy.worker, &stream);
        }
        exchange.on_end(&proxy.worker);
        assert_eq!(stream.replied().unwrap().body, b"good", "{details}");
    }
    let refused = proxy.request("/api", &[], 200);
    assert_eq!(
        refused.decision().as_deref(),
        Some("circuit_open b enforce")
    );
    assert_eq!(refused.replied().unwrap().body, b"good");
    let grpc = proxy
        .request("/api", &[("content-type", b"application/grpc")], 200)
        .replied()
        .unwrap();
    assert_eq!((grpc.grpc_status, grpc.body.len()), (Some(14), 0));
}

#[test]
fn what_a_clients_own_deadline_ends_gets_no_kept_answer_and_no_other_cluster() {
    let config = stale(&json!({
        "rate_limits": {"l": {"limit": 5, "period": "1h"}},
        "fallbacks": {"f": {"on": ["deadline", "upstream_error", "timeout"],
            "steps": [{"stale": {}}, {"cluster": "backup"}, {"respond": {"status": 203, "body": "static"}}]}},
        "routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "fallback": "f", "rate_limits": ["l"],
            "timeout": {"request": "1s"}}]}));
    let proxy = Proxy::new(&config);
    proxy.serve("GET", &[], &[b"good"]);
    let ask = |deadline: &[u8], failure: Option<(u16, &str)>| {
        let stream = SimStream::request("GET", "/api", &[("grpc-timeout", deadline)]);
        let mut exchange = proxy.begin(&stream);
        if let Some((status, details)) = failure.filter(|_| stream.replied().is_none()) {
            proxy.machine.advance(Nanos::from_millis(20));
            stream.fail(status, details, Some("10.0.0.9:80"), 1);
            exchange.on_response(&proxy.worker, &stream);
        }
        exchange.on_end(&proxy.worker);
        assert_ne!(
            stream.request_header("x-haven-cluster").as_deref(),
            Some("backup")
        );
        let reply = stream.replied().unwrap();
        (reply.status, reply.body)
    };
    let fixed = (203, b"static".to_vec());
    assert_eq!(ask(b"0m", None), fixed, "over before it began");
    assert_eq!(
        ask(b"20m", Some((504, "response_timeout"))),
        fixed,
        "cut by it"
    );
    assert_eq!(
        ask(b"20m", Some((504, "via_upstream"))),
        fixed,
        "refused for it"
    );
    assert_eq!(
        ask(b"5S", Some((504, "response_timeout"))),
        (200, b"good".to_vec()),
        "a timeout that is not its own"
    );
    assert_eq!(ask(b"0m", None).0, 429, "and it has used up its limit");
}

#[test]
fn only_whole_good_responses_of_the_route_itself_are_kept() {
    let proxy = Proxy::new(&stale(&json!({})));
    let cut = |pieces: &[&[u8]]| {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        stream.answer(
            200,
            Some("10.0.0.9:80"),
            &[("transfer-encoding", b"chunked")],
        );
        exchange.on_response_headers(&proxy.worker, &stream, false);
        for piece in pieces {
            stream.piece(piece);
            exchange.on_response_body(&proxy.worker, &stream, piece.len(), false);
        }
        (stream, exchange)
    };
    let (_, mut exchange) = cut(&[b"go"]);
    exchange.on_end(&proxy.worker);
    assert_eq!(proxy.failing().0, 203, "it never came to its end");
    proxy.serve("GET", &[], &[b"12345678", b"9"]);
    assert_eq!(proxy.failing().0, 203, "too long");
    proxy.serve("HEAD", &[], &[b""]);
    assert_eq!(proxy.failing().0, 203, "no answer to a GET");
    proxy.serve("GET", &[("authorization", b"x")], &[b"good"]);
    assert_eq!(proxy.failing().0, 203, "for one alone");
    let (stream, mut exchange) = cut(&[b"trail"]);
    stream.trail(&[("x-checksum", b"1")]);
    exchange.on_response_trailers(&proxy.worker, &stream);
    exchange.on_end(&proxy.worker);
    assert_eq!(
        proxy.failing(),
        (200, b"trail".to_vec()),
        "trailers are an end"
    );
    let stream = SimStream::request("GET", "/api", &[]);
    let mut exchange = proxy.begin(&stream);
    stream.answer(200, Some("10.0.0.9:80"), &[]);
    exchange.on_response_headers(&proxy.worker, &stream, true);
    assert_eq!(proxy.failing(), (200, Vec::new()), "so is no body at all");

    let mut shadow = stale(&json!({}));
    shadow["fallbacks"]["f"]["mode"] = json!("shadow");
    let mut proxy = Proxy::new(&shadow);
    proxy.serve("GET", &[], &[b"good"]);
    assert!(proxy.request("/api", &[], 500).replied().is_none());
    proxy.reload(&stale(&json!({})));
    assert_eq!(proxy.failing().0, 203, "in shadow nothing is kept");
}

#[test]
fn what_was_kept_outlives_a_reload_and_its_route_does_not_answer_for_another() {
    let two = json!([{"name": "r", "match": {"prefix": "/api"}, "fallback": "f"}]);
    let mut proxy = Proxy::new(&stale(&json!({"routes": two})));
    proxy.serve("GET", &[], &[b"good"]);
    proxy.reload(&stale(&json!({"routes": two, "fallbacks": {"f": {"steps": [{"stale": {"max_entries": 5000, "max_bytes": "64MiB"}}]}}})));
    proxy.reload(&stale(&json!({"routes": two})));
    assert_eq!(proxy.failing(), (200, b"good".to_vec()));
    proxy.reload(&stale(
        &json!({"routes": [{"name": "s", "match": {"prefix": "/api"}, "fallback": "f"}]}),
    ));
    assert_eq!(proxy.failing().0, 203);
}

#[test]
fn a_refused_request_goes_to_the_other_cluster_and_tells_nothing_of_the_first() {
    let steps = json!([{"stale": {}}, {"cluster": "spare"}, {"respond": {"status": 203, "body": "{{reason}}"}}]);
    let route = json!({"name": "r", "match": {"prefix": "/api"}, "fallback": "f", "upstream": "u", "circuit_breaker": "b"});
    let proxy = Proxy::new(&stale(
        &json!({"fallbacks": {"f": {"steps": steps}}, "routes": [route]}),
    ));
    let usual = proxy.request("/api", &[("x-haven-cluster", b"evil")], 500);
    assert_eq!(
        usual.request_header("x-haven-cluster").as_deref(),
        Some("main")
    );
    assert_eq!(
        usual.replied().unwrap().body,
        b"upstream_error",
        "it has been sent: the step is passed over"
    );
    let send_on = |status: u16| {
        let stream = SimStream::request("GET", "/api/new", &[]);
        let mut exchange = proxy.begin(&stream);
        assert!(stream.replied().is_none());
        assert_eq!(
            stream.request_header("x-haven-cluster").as_deref(),
            Some("spare")
        );
        assert_eq!(
            stream.request_header("x-haven-upstream"),
            None,
            "no endpoint of the first"
        );
        assert_eq!(stream.decision().as_deref(), Some("circuit_open b enforce"));
        stream.answer(status, Some("10.0.1.1:80"), &[]);
        exchange.on_response_headers(&proxy.worker, &stream, false);
        exchange.on_response_body(&proxy.worker, &stream, 0, true);
        exchange.on_end(&proxy.worker);
        stream
    };
    for _ in 0..20 {
        assert!(send_on(200).replied().is_none());
    }
    let failed = send_on(500);
    assert_eq!(
        failed.sent().1,
        b"upstream_error",
        "then the steps that follow, with nothing kept of it"
    );
    assert_eq!(
        failed.decision().as_deref(),
        Some("circuit_open b enforce,upstream_error f enforce")
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_fallbacks_total;route=r;step=cluster"),
        21
    );
    assert_eq!(
        proxy
            .machine
            .metric("haven_endpoint_in_flight;upstream=u;endpoint=10.0.0.9:80"),
        0
    );
    assert_eq!(
        proxy.machine.metric("haven_upstream_duration_ms;route=r"),
        1,
        "only what its own upstream took"
    );
    proxy.machine.advance(Nanos::from_secs(51));
    assert_eq!(
        proxy
            .request("/api", &[], 200)
            .request_header("x-haven-cluster")
            .as_deref(),
        Some("main"),
        "tried again"
    );
    assert_eq!(proxy.status("/api", &[]), 200, "and closed");
}

#[test]
fn the_cluster_is_named_whatever_is_off() {
    for (what, mode) in [
        ("routes", "off"),
        ("routes", "shadow"),
        ("fallbacks", "off"),
        ("fallbacks", "shadow"),
    ] {
        let mut config = stale(
            &json!({"fallbacks": {"f": {"steps": [{"cluster": "spare"}]}},
            "routes": [{"name": "r", "match": {"prefix": "/api"}, "fallback": "f", "upstream": "u"}]}),
        );
        let at = if what == "routes" {
            &mut config["routes"][0]
        } else {
            &mut config["fallbacks"]["f"]
        };
        at["mode"] = json!(mode);
        let stream = Proxy::new(&config).request("/api", &[("x-haven-cluster", b"evil")], 200);
        assert_eq!(
            stream.request_header("x-haven-cluster").as_deref(),
            Some("main"),
            "{what} {mode}"
        );
    }
}

/// How an answer ends after its headers and some of its body.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Whole,
    Cut(&'static str, u64),
}

const BY_UPSTREAM: End = End::Cut(
    "upstream_reset_after_response_started{connection_termination}",
    1 << 6,
);
const TOO_LATE: End = End::Cut("response_timeout", 1 << 2);
const BY_CLIENT: End = End::Cut("downstream_remote_disconnect", 1 << 14);
const BY_CLIENT_ON_H2: End = End::Cut("http2.remote_reset", 1 << 28);

fn ended(proxy: &Proxy, headers: &[(&str, &[u8])], end: End) -> SimStream {
    let stream = SimStream::request("GET", "/api", headers);
    let mut exchange = proxy.begin(&stream);
    if stream.replied().is_some() {
        return stream;
    }
    stream.answer(200, Some("10.0.0.9:80"), &[]);
    exchange.on_response_headers(&proxy.worker, &stream, false);
    exchange.on_response_body(&proxy.worker, &stream, 5, false);
    match end {
        End::Whole => {
            exchange.on_response_body(&proxy.worker, &stream, 5, true);
        }
        End::Cut(details, flags) => {
            stream.set_property(Property::ResponseCodeDetails, details.as_bytes());
            stream.set_property(Property::ResponseFlags, &u64::to_le_bytes(flags));
        }
    }
    assert_eq!(exchange.is_unsettled(), end != End::Whole);
    if exchange.is_unsettled() {
        exchange.on_cut(&proxy.worker, &stream);
    }
    exchange.on_end(&proxy.worker);
    exchange.on_end(&proxy.worker);
    stream
}

#[test]
fn who_cuts_an_answer_off_is_told_apart() {
    for (on, grpc) in [
        ("route", false),
        ("endpoint", false),
        ("route", true),
        ("endpoint", true),
    ] {
        let config = |more: &Value| {
            let mut breaker =
                json!({"consecutive_failures": 2, "open_duration": "1s", "half_open_calls": 1});
            merge(&mut breaker, more);
            let mut config = json!({"circuit_breakers": {"b": breaker},
                "upstreams": {"u": {"endpoints": [{"address": "10.0.0.9:80"}], "load_balancer": {"panic_threshold": 0}}},
                "routes": [{"name": "r", "upstream": "u"}]});
            breaker_on(on, &mut config);
            config
        };
        let headers: &[(&str, &[u8])] = if grpc {
            &[("content-type", b"application/grpc")]
        } else {
            &[]
        };
        let opens = |more: &Value, ends: &[End]| {
            let proxy = Proxy::new(&config(more));
            for end in ends {
                assert!(
                    ended(&proxy, headers, *end).replied().is_none(),
                    "{on} {ends:?}"
                );
            }
            let open = ended(&proxy, headers, End::Whole).replied().is_some();
            (open, proxy)
        };
        let usual = json!({});
        assert!(opens(&usual, &[BY_UPSTREAM, BY_UPSTREAM]).0, "{on} {grpc}");
        assert!(
            opens(
                &usual,
                &[
                    BY_UPSTREAM,
                    BY_CLIENT,
                    BY_CLIENT_ON_H2,
                    TOO_LATE,
                    BY_UPSTREAM
                ]
            )
            .0,
            "{on} {grpc}"
        );
        assert!(
            !opens(&usual, &[BY_UPSTREAM, End::Whole, BY_UPSTREAM]).0,
            "{on} {grpc}"
        );
        assert!(!opens(&usual, &[BY_CLIENT; 9]).0, "{on} {grpc}");
        // A slow reader as likely as an upstream that hangs.
        assert!(!opens(&usual, &[TOO_LATE; 9]).0, "{on} {grpc}");
        assert!(
            !opens(&json!({"failure_on": {"reset": false}}), &[BY_UPSTREAM; 9]).0,
            "{on} {grpc}"
        );
        assert!(
            !opens(&json!({"failure_on": {"timeout": false}}), &[TOO_LATE; 9]).0,
            "{on} {grpc}"
        );
        // A trial call that its client ends gives its permit back.
        let (_, proxy) = opens(&usual, &[TOO_LATE, TOO_LATE]);
        proxy.machine.advance(Nanos::from_secs(2));
        proxy.engine.tick(&proxy.worker);
        assert!(
            ended(&proxy, headers, BY_CLIENT).replied().is_none(),
            "{on} {grpc}: tried"
        );
        assert!(
            ended(&proxy, headers, End::Whole).replied().is_none(),
            "{on} {grpc}: tried again"
        );
        proxy.engine.tick(&proxy.worker);
        assert!(
            ended(&proxy, headers, End::Whole).replied().is_none(),
            "{on} {grpc}: closed"
        );
        assert!(
            proxy
                .machine
                .metrics_of("haven_endpoint_in_flight")
                .iter()
                .all(|(_, value)| *value == 0)
        );
    }
}

#[test]
fn kept_answers_without_a_word_on_who_may_see_them_are_warned_of_once() {
    let warned = |step: &Value| {
        let mut config = stale(&json!({}));
        config["fallbacks"]["f"]["steps"][0] = step.clone();
        let mut proxy = Proxy::new(&config);
        proxy.reload(&config);
        Proxy::engine(&Worker(Rc::clone(&proxy.machine)), &config);
        let lines = proxy.machine.logs();
        let is_it = |(_, line): &&(log::Level, String)| line.contains("was kept for others");
        lines.iter().filter(is_it).count()
    };
    assert_eq!(warned(&json!({"stale": {}})), 1);
    assert_eq!(warned(&json!({"stale": {"vary": ["x-sub"]}})), 0);
    assert_eq!(warned(&json!({"stale": {"public": true}})), 0);
}

#[test]
fn a_get_with_a_body_gets_no_kept_answer() {
    let proxy = Proxy::new(&stale(&json!({})));
    proxy.serve("GET", &[], &[b"good"]);
    let ask = |end: bool| {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
        exchange.on_request_headers(&proxy.worker, &stream, end);
        stream.fail(503, "via_upstream", Some("10.0.0.9:80"), 1);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        stream.replied().unwrap().body
    };
    assert_eq!(ask(false), b"static");
    assert_eq!(ask(true), b"good");
}

#[test]
fn why_an_answer_was_not_kept_is_counted() {
    type Pairs<'a> = &'a [(&'a str, &'a [u8])];
    let cases: &[(&str, Pairs<'_>, Pairs<'_>, &[u8])] = &[
        ("request", &[("authorization", b"x")], &[], b"a"),
        ("request", &[("cache-control", b"no-store")], &[], b"a"),
        ("forbidden", &[], &[("cache-control", b"private")], b"a"),
        ("forbidden", &[], &[("pragma", b"no-cache")], b"a"),
        ("personal", &[], &[("set-cookie", b"a=b")], b"a"),
        ("cookie", &[("cookie", b"a=b")], &[], b"a"),
        ("vary", &[], &[("vary", b"*")], b"a"),
        ("expired", &[], &[("expires", b"0")], b"a"),
        ("expired", &[], &[("age", b"301")], b"a"),
        ("headers", &[], &[("content-length", b"x")], b"a"),
        ("too_large", &[], &[("content-length", b"9")], b"123456789"),
        ("too_large", &[], &[], b"123456789"),
        ("cut", &[], &[("content-length", b"2")], b"a"),
    ];
    for (reason, request, response, body) in cases {
        let proxy = Proxy::new(&stale(&json!({})));
        let stream = SimStream::request("GET", "/api", request);
        let mut exchange = proxy.begin(&stream);
        let framing: (&str, &[u8]) = ("transfer-encoding", b"chunked");
        let all = [&[framing], *response].concat();
        stream.answer(200, Some("10.0.0.9:80"), &all);
        exchange.on_response_headers(&proxy.worker, &stream, false);
        stream.piece(body);
        exchange.on_response_body(&proxy.worker, &stream, body.len(), true);
        exchange.on_end(&proxy.worker);
        exchange.on_end(&proxy.worker);
        let told = proxy.machine.metrics_of("haven_stale_unkept_total");
        let told: Vec<_> = told.into_iter().filter(|(_, count)| *count > 0).collect();
        let wanted = format!("haven_stale_unkept_total;policy=f;reason={reason}");
        assert_eq!(told, [(wanted, 1)], "{request:?} {response:?}");
        assert_eq!(proxy.failing().0, 203);
    }
    // Neither length nor chunks; and a stream that ends in the middle.
    for (reason, end) in [("no_end", true), ("cut", false)] {
        let proxy = Proxy::new(&stale(&json!({})));
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        let framed: Pairs<'_> = if end {
            &[]
        } else {
            &[("transfer-encoding", b"chunked")]
        };
        stream.answer(200, Some("10.0.0.9:80"), framed);
        exchange.on_response_headers(&proxy.worker, &stream, false);
        stream.piece(b"a");
        exchange.on_response_body(&proxy.worker, &stream, 1, end);
        exchange.on_end(&proxy.worker);
        let name = format!("haven_stale_unkept_total;policy=f;reason={reason}");
        assert_eq!(proxy.machine.metric(&name), 1, "{reason}");
    }
    // What nobody would want kept is no matter of reasons.
    let proxy = Proxy::new(&stale(&json!({})));
    proxy.serve("HEAD", &[], &[b""]);
    proxy.serve("POST", &[], &[b"a"]);
    proxy.serve("GET", &[], &[b"a"]);
    let told = proxy.machine.metrics_of("haven_stale_unkept_total");
    assert!(told.iter().all(|(_, count)| *count == 0), "{told:?}");
}
