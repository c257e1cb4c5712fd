//! Failed answers that become the fallback's in their own headers and bodies.

use super::*;
use haven::base::rng::Rng;
use haven::engine::chain::replace::{PATIENCE, WARY};
use haven::host::Clock;

const GRPC: &[(&str, &[u8])] = &[("content-type", b"application/grpc")];

fn config(respond: &Value) -> Value {
    json!({
        "fallbacks": {"f": {"steps": [{"respond": respond}]}},
        "routes": [{"name": "r", "match": {"prefix": "/api"}, "fallback": "f"}]})
}

fn plain() -> Value {
    config(&json!({"status": 203, "content_type": "text/plain", "body": "instead"}))
}

/// A failed answer of an upstream's.
fn fail(stream: &SimStream) {
    let headers: &[(&str, &[u8])] = &[
        ("content-type", b"text/failed"),
        ("content-encoding", b"gzip"),
        ("transfer-encoding", b"chunked"),
        ("set-cookie", b"a=b"),
        ("x-secret", b"1"),
        ("vary", b"origin"),
        ("access-control-allow-origin", b"https://a.example"),
    ];
    stream.answer(500, Some("10.0.0.1:80"), headers);
}

/// What Envoy says of an upstream that has not answered.
fn fail_at_envoy(stream: &SimStream) {
    let headers: &[(&str, &[u8])] = &[
        ("content-type", b"text/plain"),
        ("content-length", b"6"),
        ("x-envoy-overloaded", b"true"),
        ("x-of-the-route", b"1"),
    ];
    stream.answer(503, None, headers);
    let details = b"upstream_reset_before_response_started{connection_failure}";
    stream.set_property(Property::ResponseCodeDetails, details);
}

#[test]
fn whatever_the_failed_answer_looks_like_the_client_gets_one_whole_answer() {
    for seed in 0..4_000 {
        let rng = Rng::new(seed);
        let odds = |of: u64| rng.below(of) == 0;
        let status = [200, 203, 404, 503][rng.below(4) as usize];
        let body = if odds(4) { "" } else { "instead" };
        let respond = json!({"status": status, "content_type": "text/plain", "body": body});
        let proxy = Proxy::new(&config(&respond));
        let (method, headers) = match rng.below(4) {
            0 => ("HEAD", &[][..]),
            1 => ("POST", GRPC),
            _ => ("GET", &[][..]),
        };
        let grpc = method == "POST";
        let stream = SimStream::request(method, "/api", headers);
        let mut exchange = proxy.begin(&stream);
        let own = odds(2);
        if own {
            fail_at_envoy(&stream);
        } else {
            fail(&stream);
        }
        let mut end = method == "HEAD" || odds(4);
        let mut action = exchange.on_response_headers(&proxy.worker, &stream, end);
        let waits = matches!(action, Action::Wait { .. });
        assert_eq!(waits, !end, "{seed}");
        let hangs = odds(5);
        for _ in 0..rng.below(4) {
            if end || action == Action::Stop || action == Action::Continue {
                break;
            }
            end = !hangs && odds(3);
            stream.piece(b"failed");
            action = exchange.on_response_body(&proxy.worker, &stream, 6, end);
            let is_held = action == Action::Read && stream.sent().1.is_empty();
            assert!(end || is_held, "{seed}: a failure's body does not pass");
        }
        if !end && !hangs {
            stream.trail(&[("grpc-status", b"0"), ("x-secret", b"1")]);
            action = exchange.on_response_trailers(&proxy.worker, &stream);
            assert_eq!(stream.trailer("x-secret"), None, "{seed}");
        } else if hangs && exchange.is_replacing() {
            proxy.machine.advance(PATIENCE);
            action = if odds(4) {
                exchange.on_no_room(&proxy.worker, &stream)
            } else {
                exchange.on_resume(&proxy.worker, &stream)
            };
        }
        let replied = stream.replied().is_some();
        assert_eq!(action == Action::Stop, replied, "{seed}");
        assert!(replied || action == Action::Continue, "{seed}: it goes on");
        assert!(!exchange.is_replacing(), "{seed}");
        let of = |name: &str| stream.response_header(name);
        let (sent, text) = stream.sent();
        assert_eq!(sent, if grpc { 200 } else { status }, "{seed}");
        let bare = grpc || method == "HEAD";
        if !replied {
            assert_eq!(text, if bare { b"" } else { body.as_bytes() }, "{seed}");
            let length = (!grpc).then(|| body.len().to_string());
            assert_eq!(of("content-length"), length, "{seed}");
            let shown = of("grpc-status").or_else(|| stream.trailer("grpc-status"));
            assert_eq!(shown.as_deref(), grpc.then_some("14"), "{seed}");
            assert_eq!(of("x-of-the-route").is_some(), own, "{seed}");
            let keeps_site = of("access-control-allow-origin").is_some() && of("vary").is_some();
            assert_eq!(keeps_site, !own, "{seed}");
        }
        assert!(of("proxy-status").is_some(), "{seed}");
        for name in [
            "set-cookie",
            "x-secret",
            "content-encoding",
            "transfer-encoding",
            "x-envoy-overloaded",
        ] {
            assert_eq!(of(name), None, "{seed}: {name}");
        }
        // What follows is nobody's any more.
        exchange.on_response_body(&proxy.worker, &stream, 3, true);
        exchange.on_resume(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        assert_eq!(stream.sent(), (sent, text), "{seed}");
    }
}

#[test]
fn a_host_that_holds_bodies_back_is_known_after_a_few_and_told_once() {
    for by_envoy in [false, true] {
        let proxy = Proxy::new(&plain());
        let mut waited = 0;
        for _ in 0..20 {
            let stream = SimStream::request("GET", "/api", &[]);
            let mut exchange = proxy.begin(&stream);
            if by_envoy {
                fail_at_envoy(&stream);
            } else {
                fail(&stream);
            }
            if exchange.on_response_headers(&proxy.worker, &stream, false) != Action::Stop {
                waited += 1;
                proxy.machine.advance(PATIENCE);
                exchange.on_resume(&proxy.worker, &stream);
            }
            assert_eq!(stream.sent(), (203, b"instead".to_vec()));
            exchange.on_end(&proxy.worker);
        }
        assert_eq!(waited, if by_envoy { 1 } else { 3 });
        let told = proxy.log_lines();
        let told = told
            .iter()
            .filter(|line| line.contains("allow_on_headers_stop_iteration"));
        assert_eq!(told.count(), 1);
    }
}

#[test]
fn upstreams_that_hang_in_their_bodies_do_not_change_what_is_known() {
    let proxy = Proxy::new(&plain());
    let ask = |comes: bool| {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        fail(&stream);
        exchange.on_response_headers(&proxy.worker, &stream, false);
        if comes {
            stream.piece(b"failed");
            exchange.on_response_body(&proxy.worker, &stream, 6, true);
        } else {
            proxy.machine.advance(PATIENCE);
            exchange.on_resume(&proxy.worker, &stream);
        }
        assert_eq!(stream.sent(), (203, b"instead".to_vec()));
        stream.replied().is_none()
    };
    assert!(ask(true), "in place");
    for _ in 0..10 {
        assert!(!ask(false), "a reply of its own");
    }
    assert!(ask(true), "in place");
}

#[test]
fn a_failure_that_announces_more_than_has_come_is_answered_at_once() {
    for (announced, in_place) in [(6, true), (7, false), (100_000, false)] {
        let proxy = Proxy::new(&plain());
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        let announced = announced.to_string();
        let length = [("content-length", announced.as_bytes())];
        stream.answer(500, Some("10.0.0.1:80"), &length);
        exchange.on_response_headers(&proxy.worker, &stream, false);
        stream.piece(b"failed");
        let action = exchange.on_response_body(&proxy.worker, &stream, 6, false);
        let wanted = if in_place { Action::Read } else { Action::Stop };
        assert_eq!(action, wanted);
        if in_place {
            exchange.on_response_body(&proxy.worker, &stream, 0, true);
        }
        assert_eq!(stream.sent(), (203, b"instead".to_vec()));
        assert_eq!(stream.replied().is_none(), in_place);
    }
}

/// The failed answer has begun, and is kept; `false`: it was answered at its headers.
fn begin_failing(proxy: &Proxy, path: &str) -> (Exchange, SimStream, bool) {
    let stream = SimStream::request("GET", path, &[]);
    let mut exchange = proxy.begin(&stream);
    fail(&stream);
    let action = exchange.on_response_headers(&proxy.worker, &stream, false);
    (exchange, stream, action != Action::Stop)
}

/// The stream ends in the middle of a failed answer that is kept.
fn break_off(proxy: &Proxy, path: &str, flag: u64, details: &str) {
    let (mut exchange, stream, kept) = begin_failing(proxy, path);
    assert!(kept);
    stream.piece(b"failed");
    exchange.on_response_body(&proxy.worker, &stream, 6, false);
    stream.set_property(Property::ResponseCodeDetails, details.as_bytes());
    stream.set_property(Property::ResponseFlags, &flag.to_le_bytes());
    assert!(exchange.is_unsettled(), "its end has to be looked at");
    exchange.on_cut(&proxy.worker, &stream);
    exchange.on_end(&proxy.worker);
}

#[test]
fn where_an_upstream_breaks_its_failures_off_the_next_are_not_waited_for() {
    let mut config = plain();
    config["routes"] = json!([
        {"name": "r", "match": {"prefix": "/api"}, "fallback": "f"},
        {"name": "other", "match": {"prefix": "/other"}, "fallback": "f"}]);
    let proxy = Proxy::new(&config);
    // A client that gives up changes nothing for the others.
    break_off(&proxy, "/api", 0x800, "http1.codec_error");
    assert!(begin_failing(&proxy, "/api").2);
    let torn = "upstream_reset_after_response_started{connection_termination}";
    break_off(&proxy, "/api", 0x40, torn);
    let (_exchange, stream, kept) = begin_failing(&proxy, "/api");
    assert!(!kept);
    assert_eq!(stream.sent(), (203, b"instead".to_vec()));
    assert!(
        begin_failing(&proxy, "/other").2,
        "another route's upstream"
    );
    // The proxy's own answers are whole.
    let stream = SimStream::request("GET", "/api", &[]);
    let mut exchange = proxy.begin(&stream);
    fail_at_envoy(&stream);
    let action = exchange.on_response_headers(&proxy.worker, &stream, false);
    assert!(action != Action::Stop);
    proxy.machine.advance(WARY);
    assert!(begin_failing(&proxy, "/api").2, "it is tried again");
}

#[test]
fn no_failure_is_kept_until_the_proxys_own_timeout_cuts_it_off() {
    for (taken, longest) in [(0, Some(100)), (300, Some(75)), (374, Some(1)), (375, None)] {
        let mut config = plain();
        config["routes"][0]["timeout"] = json!({"request": "400ms"});
        let proxy = Proxy::new(&config);
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        proxy.machine.advance(Nanos::from_millis(taken));
        fail(&stream);
        let now = proxy.worker.monotonic();
        let action = exchange.on_response_headers(&proxy.worker, &stream, false);
        let until = match action {
            Action::Wait { until, .. } => Some(until.since(now)),
            _ => None,
        };
        assert_eq!(until, longest.map(Nanos::from_millis), "after {taken} ms");
        assert_eq!(until.is_none(), stream.replied().is_some());
    }
}
