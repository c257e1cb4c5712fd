//! Bodies: an upstream's time begins when it has the whole request, and ends when its answer has
//! begun. Who sends or reads slowly makes nobody else look slow.

use super::{Proxy, breaker_on, merge};
use haven::base::time::Nanos;
use haven::engine::chain::{Action, Exchange};
use haven::host::Property;
use haven::host::sim::SimStream;
use haven::policy::upstream::peak_ewma::Latency;
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
            let micros = Latency(proxy.machine.metric(&name)).at(proxy.machine.now());
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

/// A service whose breaker, of the route or of its endpoints, has two trials.
fn trying(on: &str) -> Proxy {
    let breaker = json!({"consecutive_failures": 2, "open_duration": "3s", "half_open_calls": 2, "half_open_max_wait": "30s"});
    let mut config = json!({
        "circuit_breakers": {"b": breaker},
        "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}], "load_balancer": {"panic_threshold": 0}}},
        "routes": [{"name": "r", "upstream": "u"}]});
    breaker_on(on, &mut config);
    let proxy = Proxy::new(&config);
    (0..2).for_each(|_| assert_eq!(proxy.request("/api", &[], 500).replied(), None));
    assert_eq!(proxy.status("/api", &[]), 503);
    pass(&proxy, 3_500);
    proxy.engine.tick(&proxy.worker);
    proxy
}

/// A stream that has begun to be answered well, if it was not refused.
fn stream(proxy: &Proxy) -> Option<Upload> {
    let mut stream = Upload::begin(proxy, "GET");
    if stream.is_refused() {
        return None;
    }
    stream.send(proxy, true);
    pass(proxy, 1);
    stream.answer(proxy, &[], false);
    Some(stream)
}

/// Whether requests pass at some time in a second.
fn passes(proxy: &Proxy) -> bool {
    (0..10).any(|_| {
        pass(proxy, 100);
        proxy.status("/api", &[]) == 200
    })
}

#[test]
fn a_trial_that_is_answered_well_and_lives_on_is_a_pass() {
    for on in ["route", "endpoint"] {
        let proxy = trying(on);
        let streams: Vec<_> = (0..2).map(|_| stream(&proxy).expect("a trial")).collect();
        assert_eq!(proxy.status("/api", &[]), 503, "{on}: not yet");
        assert!(passes(&proxy), "{on}");
        pass(&proxy, 10_000);
        // What is cut after that counts in the closed breaker.
        for stream in streams {
            stream.cut(&proxy, CUT, "upstream_reset_after_response_started");
        }
        assert_eq!(proxy.status("/api", &[]), 503, "{on}: open again");
    }
}

#[test]
fn a_trial_that_is_cut_before_it_has_passed_is_a_failure() {
    for on in ["route", "endpoint"] {
        let proxy = trying(on);
        let streams: Vec<_> = (0..2).map(|_| stream(&proxy).expect("a trial")).collect();
        for stream in streams {
            stream.cut(&proxy, CUT, "upstream_reset_after_response_started");
        }
        proxy.engine.tick(&proxy.worker);
        assert!(!passes(&proxy), "{on}: open for three seconds more");
    }
}

#[test]
fn a_trial_whose_client_leaves_gives_its_place_to_another() {
    for on in ["route", "endpoint"] {
        let proxy = trying(on);
        let [first, second] = [0, 1].map(|_| stream(&proxy).expect("a trial"));
        first.cut(&proxy, 1 << 14, "downstream_remote_disconnect");
        pass(&proxy, 5_000);
        proxy.engine.tick(&proxy.worker);
        // One is not enough.
        let third = stream(&proxy).expect("a trial");
        assert_eq!(proxy.status("/api", &[]), 503, "{on}");
        assert!(passes(&proxy), "{on}");
        second.end(&proxy);
        third.end(&proxy);
    }
}

#[test]
fn streams_do_not_hold_the_places_of_an_adaptive_limit_for_good() {
    for fair in [false, true] {
        let mut limit = json!({"algorithm": "adaptive", "initial_limit": 20, "max_limit": 20});
        if fair {
            limit["fair"] = json!(["client_ip"]);
        }
        let proxy = service(&json!({
            "concurrency_limits": {"c": limit},
            "upstreams": {"u": {"concurrency_limit": "c"}}}));
        let in_flight = || {
            proxy
                .machine
                .metric("haven_concurrency_in_flight;policy=c;key=u")
        };
        let streams: Vec<_> = std::iter::from_fn(|| stream(&proxy)).take(40).collect();
        assert_eq!(streams.len(), 19);
        assert_eq!(proxy.status("/api", &[]), 503);
        let tick = || {
            pass(&proxy, 1_000);
            proxy.engine.tick(&proxy.worker);
        };
        (0..5).for_each(|_| tick());
        assert_eq!((proxy.status("/api", &[]), in_flight()), (200, 0));
        // Quick requests are bounded as ever.
        let mut quick: Vec<_> = (0..30).map(|_| Upload::begin(&proxy, "GET")).collect();
        for one in &mut quick {
            one.send(&proxy, true);
        }
        assert_eq!(quick.iter().filter(|one| one.is_refused()).count(), 11);
        streams.into_iter().for_each(|stream| stream.end(&proxy));
        assert_eq!(in_flight(), 19);
        quick.into_iter().for_each(|one| one.end(&proxy));
        // What was given up may go on for a moment.
        tick();
        assert_eq!(in_flight(), 0);
        (0..30).for_each(|_| tick());
        assert_eq!(in_flight(), 0);
    }
}

#[test]
fn a_fixed_limit_counts_streams_to_their_end() {
    let proxy = service(&json!({
        "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 20}},
        "upstreams": {"u": {"concurrency_limit": "c"}}}));
    let streams: Vec<_> = std::iter::from_fn(|| stream(&proxy)).take(40).collect();
    for _ in 0..30 {
        pass(&proxy, 1_000);
        proxy.engine.tick(&proxy.worker);
    }
    assert_eq!((streams.len(), proxy.status("/api", &[])), (19, 503));
}

fn bounded(limit: &Value) -> Proxy {
    service(&json!({
        "concurrency_limits": {"c": limit},
        "upstreams": {"u": {"concurrency_limit": "c"}}}))
}

fn in_flight(proxy: &Proxy) -> u64 {
    let name = "haven_concurrency_in_flight;policy=c;key=u";
    proxy.machine.metric(name)
}

#[test]
fn unfinished_requests_take_no_places() {
    for limit in [
        json!({"algorithm": "fixed", "limit": 20}),
        json!({"algorithm": "adaptive", "initial_limit": 20, "max_limit": 20}),
        json!({"algorithm": "fixed", "limit": 20, "fair": ["client_ip"]}),
    ] {
        let proxy = bounded(&limit);
        let mut uploads: Vec<_> = (0..99).map(|_| Upload::begin(&proxy, "POST")).collect();
        for upload in &mut uploads {
            assert!(!upload.is_refused());
            upload.send(&proxy, false);
        }
        assert_eq!(in_flight(&proxy), 0);
        let mut honest: Vec<_> = (0..19).map(|_| Upload::begin(&proxy, "POST")).collect();
        for upload in &mut honest {
            assert_eq!(upload.send(&proxy, true), Action::Continue);
        }
        assert_eq!(in_flight(&proxy), 19);
        // Now it is full: for what is whole by now, and for what comes.
        assert_eq!(uploads[0].send(&proxy, true), Action::Stop);
        let refused = uploads[0].stream.replied().expect("it is refused");
        assert_eq!(refused.status, 503);
        assert!(
            uploads[0]
                .stream
                .decision()
                .unwrap()
                .starts_with("overload c")
        );
        assert_eq!(proxy.status("/api", &[]), 503);
        assert!(Upload::begin(&proxy, "POST").is_refused(), "early");
        assert_eq!(in_flight(&proxy), 19);
        honest.drain(..).for_each(|upload| upload.end(&proxy));
        assert_eq!(in_flight(&proxy), 0);
        for upload in uploads.drain(1..20) {
            let mut upload = upload;
            assert_eq!(upload.send(&proxy, true), Action::Continue);
            upload.answer(&proxy, &[], true);
            upload.end(&proxy);
        }
        uploads.into_iter().for_each(|upload| upload.end(&proxy));
        assert_eq!(in_flight(&proxy), 0);
    }
}

#[test]
fn what_is_answered_before_it_is_whole_has_a_place_from_then_on() {
    let proxy = bounded(&json!({"algorithm": "fixed", "limit": 20}));
    let mut chats: Vec<_> = (0..25).map(|_| Upload::begin(&proxy, "POST")).collect();
    for chat in &mut chats {
        chat.answer(&proxy, &[], false);
        assert_eq!(chat.send(&proxy, false), Action::Continue);
    }
    assert_eq!((in_flight(&proxy), proxy.status("/api", &[])), (25, 503));
    for mut chat in chats {
        assert_eq!(chat.send(&proxy, true), Action::Continue);
        chat.end(&proxy);
    }
    assert_eq!((in_flight(&proxy), proxy.status("/api", &[])), (0, 200));
}

#[test]
fn a_shadow_decides_once_on_a_request_with_a_body() {
    let proxy = bounded(&json!({"algorithm": "fixed", "limit": 1, "mode": "shadow"}));
    let decided = || {
        let name = "haven_decisions_total;route=r;policy=c;reason=overload;mode=shadow";
        proxy.machine.metric(name)
    };
    let mut uploads: Vec<_> = (0..3).map(|_| Upload::begin(&proxy, "POST")).collect();
    for upload in &mut uploads {
        assert_eq!(upload.send(&proxy, true), Action::Continue);
    }
    assert_eq!((in_flight(&proxy), decided()), (3, 2));
    uploads.push(Upload::begin(&proxy, "POST"));
    assert_eq!((in_flight(&proxy), decided()), (3, 2));
    uploads.into_iter().for_each(|upload| upload.end(&proxy));
    assert_eq!(in_flight(&proxy), 0);
}

#[test]
fn unfinished_requests_are_no_trials() {
    for on in ["route", "endpoint"] {
        let proxy = trying(on);
        let unfinished: Vec<_> = (0..40).map(|_| Upload::begin(&proxy, "GET")).collect();
        assert!(unfinished.iter().all(|one| !one.is_refused()), "{on}");
        // Two that are whole close it, be it with a body.
        let mut post = Upload::begin(&proxy, "POST");
        assert_eq!(post.send(&proxy, true), Action::Continue, "{on}");
        post.answer(&proxy, &[], true);
        post.end(&proxy);
        assert_eq!(proxy.status("/api", &[]), 200, "{on}");
        let breaker = if on == "route" { "r" } else { "10.0.0.1:80" };
        assert_eq!(state(&proxy, "b", breaker), 0, "{on}: closed");
        unfinished.into_iter().for_each(|one| one.end(&proxy));
        assert_eq!(proxy.status("/api", &[]), 200, "{on}");
    }
}

#[test]
fn a_request_that_is_whole_when_the_trials_are_taken_is_refused() {
    let proxy = trying("route");
    let mut uploads: Vec<_> = (0..3).map(|_| Upload::begin(&proxy, "POST")).collect();
    let actions: Vec<_> = uploads
        .iter_mut()
        .map(|upload| upload.send(&proxy, true))
        .collect();
    assert_eq!(actions, [Action::Continue, Action::Continue, Action::Stop]);
    let decision = uploads[2].stream.decision().unwrap();
    assert!(decision.starts_with("circuit_open b"), "{decision}");
    // A failure to reach the upstream counts though the request is not whole.
    let mut late = Upload::begin(&proxy, "POST");
    late.stream.fail(
        503,
        "upstream_reset_before_response_started{connection_failure}",
        None,
        1,
    );
    late.exchange
        .on_response_headers(&proxy.worker, &late.stream, true);
    late.end(&proxy);
    uploads.into_iter().for_each(|upload| upload.end(&proxy));
}

#[test]
fn a_failure_before_a_request_is_whole_is_a_failed_trial() {
    for on in ["route", "endpoint"] {
        let proxy = trying(on);
        for _ in 0..2 {
            let mut post = Upload::begin(&proxy, "POST");
            let first = post.first();
            let details = "upstream_reset_before_response_started{connection_failure}";
            post.stream.fail(503, details, Some(&first), 1);
            post.exchange
                .on_response_headers(&proxy.worker, &post.stream, true);
            post.end(&proxy);
        }
        proxy.engine.tick(&proxy.worker);
        let refused = Upload::begin(&proxy, "POST").is_refused();
        assert!(refused, "{on}: open again");
    }
}
