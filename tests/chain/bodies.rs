//! Bodies: an upstream's time begins when it has the whole request, and ends when its answer has
//! begun. Who sends or reads slowly makes nobody else look slow.

use super::{Proxy, merge};
use haven::base::time::Nanos;
use haven::engine::chain::{Action, Exchange};
use haven::host::Property;
use haven::host::sim::SimStream;
use serde_json::{Value, json};

const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

/// A request whose body is still to come.
struct Upload {
    stream: SimStream,
    exchange: Exchange,
}

impl Upload {
    fn begin(proxy: &Proxy, method: &str) -> Self {
        let stream = SimStream::request(method, "/api", &[]);
        let mut exchange = Exchange::new(std::rc::Rc::clone(&proxy.engine));
        exchange.on_request_headers(&proxy.worker, &stream, false);
        Self { stream, exchange }
    }

    fn is_refused(&self) -> bool {
        self.stream.replied().is_some()
    }

    /// A piece of its body; `end`: the last.
    fn send(&mut self, proxy: &Proxy, end: bool) -> Action {
        self.exchange
            .on_request_body(&proxy.worker, &self.stream, end)
    }

    fn first(&self) -> String {
        let list = self.stream.request_header("x-haven-upstream");
        let list = list.unwrap_or_else(|| "10.0.0.1:80".to_owned());
        list.split(',').next().unwrap().to_owned()
    }

    /// Its answer begins; `end`: it is whole.
    fn answer(&mut self, proxy: &Proxy, headers: &[(&str, &[u8])], end: bool) {
        self.stream.answer(200, Some(&self.first()), headers);
        self.exchange
            .on_response_headers(&proxy.worker, &self.stream, end);
    }

    /// The answer is cut in its middle: Envoy's flags and details.
    fn cut(mut self, proxy: &Proxy, flag: u64, details: &str) {
        let stream = &self.stream;
        stream.set_property(Property::ResponseCodeDetails, details.as_bytes());
        stream.set_property(Property::ResponseFlags, &flag.to_le_bytes());
        if self.exchange.is_unsettled() {
            self.exchange.on_cut(&proxy.worker, stream);
        }
        self.exchange.on_end(&proxy.worker);
    }

    fn end(mut self, proxy: &Proxy) {
        self.exchange.on_end(&proxy.worker);
    }
}

fn pass(proxy: &Proxy, millis: u64) {
    proxy.machine.advance(Nanos::from_millis(millis));
}

/// A service on one endpoint.
fn service(extra: &Value) -> Proxy {
    let mut config = json!({
        "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]}},
        "routes": [{"name": "r", "upstream": "u"}]});
    merge(&mut config, extra);
    Proxy::new(&config)
}

/// An upload that takes so long is answered after a millisecond. `end`: the filter sees its end;
/// otherwise only the proxy tells when the upstream had all of it.
fn upload(proxy: &Proxy, millis: u64, end: bool) {
    let mut upload = Upload::begin(proxy, "POST");
    if end {
        pass(proxy, millis);
        upload.send(proxy, true);
        pass(proxy, 1);
        upload.answer(proxy, &[], true);
    } else {
        // A filter behind haven has held it.
        upload.send(proxy, true);
        pass(proxy, millis + 1);
        upload.answer(proxy, &[(SERVICE_TIME, b"1")], true);
    }
    upload.end(proxy);
}

fn state(proxy: &Proxy, breaker: &str, key: &str) -> u64 {
    let name = format!("haven_circuit_breaker_state;circuit_breaker={breaker};key={key}");
    proxy.machine.metric(&name)
}

fn get(proxy: &Proxy, deadline: &[u8]) -> u16 {
    let headers = [("x-envoy-expected-rq-timeout-ms", deadline)];
    proxy.status("/api", &headers)
}

#[test]
fn a_slow_upload_is_no_slow_call() {
    let slow =
        json!({"minimum_calls": 5, "slow_call_duration": "500ms", "slow_call_rate_threshold": 50});
    for end in [true, false] {
        let proxy = service(&json!({
            "circuit_breakers": {"b": slow},
            "upstreams": {"u": {"circuit_breaker": "b"}},
            "routes": [{"name": "r", "upstream": "u", "circuit_breaker": "b"}]}));
        (0..12).for_each(|_| upload(&proxy, 800, end));
        let states = ["r", "10.0.0.1:80", "10.0.0.2:80"].map(|key| state(&proxy, "b", key));
        assert_eq!(states, [0; 3], "{end}");
    }
}

#[test]
fn slow_uploads_lower_no_limit() {
    for end in [true, false] {
        let proxy = service(&json!({
            "concurrency_limits": {"c": {"algorithm": "adaptive", "initial_limit": 100, "min_limit": 5}},
            "upstreams": {"u": {"concurrency_limit": "c"}},
            "routes": [{"name": "r", "upstream": "u", "timeout": {"request": "1s"}}]}));
        for _ in 0..20 {
            (0..10).for_each(|_| upload(&proxy, 1_200, end));
        }
        let limit = proxy
            .machine
            .metric("haven_concurrency_limit;policy=c;key=u");
        assert!(limit >= 100, "{end}: {limit}");
        // Nor do those that are given up, or never end.
        for _ in 0..20 {
            let all: Vec<_> = (0..10).map(|_| Upload::begin(&proxy, "POST")).collect();
            pass(&proxy, 1_200);
            all.into_iter().for_each(|upload| upload.end(&proxy));
        }
        let limit = proxy
            .machine
            .metric("haven_concurrency_limit;policy=c;key=u");
        assert!(limit >= 100, "{end}: {limit}");
    }
}

#[test]
fn slow_uploads_and_slow_readers_move_no_quantile_that_refuses() {
    let timeout = json!({"request": "5s", "reject_below": "p50"});
    for kind in 0..4 {
        let proxy = service(&json!({
            "routes": [{"name": "r", "upstream": "u", "timeout": timeout}]}));
        for _ in 0..60 {
            match kind {
                0 => upload(&proxy, 800, true),
                1 => upload(&proxy, 800, false),
                // Given up before it was whole.
                2 => {
                    let upload = Upload::begin(&proxy, "POST");
                    pass(&proxy, 800);
                    upload.end(&proxy);
                }
                // Read for long.
                _ => {
                    let mut reader = Upload::begin(&proxy, "GET");
                    reader.send(&proxy, true);
                    reader.answer(&proxy, &[], false);
                    pass(&proxy, 800);
                    let (exchange, stream) = (&mut reader.exchange, &reader.stream);
                    exchange.on_response_body(&proxy.worker, stream, 0, true);
                    reader.end(&proxy);
                }
            }
        }
        assert_eq!(get(&proxy, b"100"), 200, "{kind}");
    }
}

#[test]
fn a_dynamic_timeout_does_not_follow_slow_uploads() {
    let dynamic = json!({"dynamic": {"quantile": 99, "factor": 2, "min": "50ms", "max": "5s"}});
    let proxy = service(&json!({
        "routes": [{"name": "r", "upstream": "u", "timeout": {"request": dynamic}}]}));
    (0..60).for_each(|_| upload(&proxy, 800, true));
    let stream = proxy.request("/api", &[], 200);
    let timeout = stream.request_header("x-envoy-upstream-rq-timeout-ms");
    assert_eq!(timeout.as_deref(), Some("50"));
}

#[test]
fn slow_uploads_drive_no_request_from_their_endpoint() {
    let proxy = service(&json!({"upstreams": {"u": {"load_balancer": {"policy": "peak_ewma"}}}}));
    for end in [true, false] {
        (0..20).for_each(|_| upload(&proxy, 800, end));
        for address in ["10.0.0.1:80", "10.0.0.2:80"] {
            let name = format!("haven_internal_endpoint_latency;upstream=u;endpoint={address}");
            let micros = proxy.machine.metric(&name) >> 28 >> 6;
            assert!((1..=2_001).contains(&micros), "{end} {address}: {micros}");
        }
    }
}

#[test]
fn what_answers_before_it_has_the_whole_request_has_no_time() {
    let slow =
        json!({"minimum_calls": 5, "slow_call_duration": "500ms", "slow_call_rate_threshold": 50});
    let proxy = service(&json!({
        "circuit_breakers": {"b": slow},
        "concurrency_limits": {"c": {"algorithm": "adaptive", "initial_limit": 100, "min_limit": 5}},
        "upstreams": {"u": {"load_balancer": {"policy": "peak_ewma"}, "concurrency_limit": "c"}},
        "routes": [{"name": "r", "upstream": "u", "circuit_breaker": "b", "timeout": {"request": "1s", "reject_below": "p50"}}]}));
    for _ in 0..60 {
        // A chat: its first message comes late, and its end never.
        let mut chat = Upload::begin(&proxy, "POST");
        pass(&proxy, 700);
        chat.send(&proxy, false);
        chat.answer(&proxy, &[], false);
        pass(&proxy, 700);
        chat.end(&proxy);
    }
    assert_eq!(state(&proxy, "b", "r"), 0);
    assert_eq!(get(&proxy, b"100"), 200);
    let limit = proxy
        .machine
        .metric("haven_concurrency_limit;policy=c;key=u");
    assert!(limit >= 100, "{limit}");
}

#[test]
fn an_upstream_that_is_slow_to_answer_an_upload_is_slow() {
    let slow =
        json!({"minimum_calls": 5, "slow_call_duration": "500ms", "slow_call_rate_threshold": 50});
    let proxy = service(&json!({
        "circuit_breakers": {"b": slow},
        "routes": [{"name": "r", "upstream": "u", "circuit_breaker": "b"}]}));
    for _ in 0..5 {
        let mut upload = Upload::begin(&proxy, "POST");
        pass(&proxy, 800);
        upload.send(&proxy, true);
        pass(&proxy, 600);
        upload.answer(&proxy, &[(SERVICE_TIME, b"600")], true);
        upload.end(&proxy);
    }
    assert_eq!(state(&proxy, "b", "r"), 1);
}

/// UT and UC among Envoy's flags.
const TIMEOUT: u64 = 1 << 2;
const CUT: u64 = 1 << 6;

#[test]
fn who_is_too_slow_to_read_opens_no_breaker() {
    let breaking = || {
        service(&json!({
            "circuit_breakers": {"b": {"minimum_calls": 5, "consecutive_failures": 5}},
            "upstreams": {"u": {"circuit_breaker": "b"}},
            "routes": [{"name": "r", "upstream": "u", "circuit_breaker": "b"}]}))
    };
    let read = |proxy: &Proxy, flag| {
        for _ in 0..24 {
            let mut reader = Upload::begin(proxy, "GET");
            if reader.is_refused() {
                break;
            }
            reader.send(proxy, true);
            reader.answer(proxy, &[], false);
            pass(proxy, 100);
            reader.cut(proxy, flag, "via_upstream");
        }
        ["r", "10.0.0.1:80", "10.0.0.2:80"].map(|key| state(proxy, "b", key))
    };
    assert_eq!(read(&breaking(), TIMEOUT), [0; 3]);
    assert_eq!(read(&breaking(), CUT)[0], 1, "what the upstream cuts does");
}
