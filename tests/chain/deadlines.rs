//! Deadlines, timeouts and retries on the simulated host: which request is refused, and what the
//! proxy's router and the upstream get.

use super::{Proxy, merge, upstream};
use haven::base::time::Nanos;
use haven::engine::chain::{Action, Exchange};
use haven::host::sim::SimStream;
use haven::host::{Message, Property, Stream};
use serde_json::{Value, json};
use std::rc::Rc;

type Headers<'a> = &'a [(&'a str, &'a [u8])];

const ROUTER: &str = "x-envoy-upstream-rq-timeout-ms";
const PER_TRY: &str = "x-envoy-upstream-rq-per-try-timeout-ms";
const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";
const MAX_RETRIES: &str = "x-envoy-max-retries";
const GRPC: (&str, &[u8]) = ("content-type", b"application/grpc");

/// One route for all, with these fields.
fn one(route: &Value) -> Proxy {
    let mut config = json!({"routes": [{"name": "r"}]});
    merge(&mut config["routes"][0], route);
    Proxy::new(&config)
}

/// Sends a request that is on its way for so long before it is answered with this status.
fn take(proxy: &Proxy, method: &str, headers: Headers<'_>, millis: u64, status: u16) -> SimStream {
    let stream = SimStream::request(method, "/api", headers);
    let mut exchange = proxy.begin(&stream);
    if stream.replied().is_none() {
        proxy.machine.advance(Nanos::from_millis(millis));
        let listed = stream.request_header("x-haven-upstream");
        let first = listed
            .as_deref()
            .and_then(|list| list.split(',').next())
            .unwrap_or("10.0.0.9:80");
        stream.answer(status, Some(first), &[]);
        exchange.on_response(&proxy.worker, &stream);
    }
    exchange.on_end(&proxy.worker);
    stream
}

fn sent<'a>(stream: &SimStream, names: impl IntoIterator<Item = &'a str>) -> Vec<Option<String>> {
    names
        .into_iter()
        .map(|name| stream.request_header(name))
        .collect()
}

#[track_caller]
fn assert_told(stream: &SimStream, want: &[(&str, Option<&str>)]) {
    for (name, want) in want {
        assert_eq!(stream.request_header(name).as_deref(), *want, "{name}");
    }
}

#[test]
fn the_smaller_of_the_clients_deadline_and_the_routes_timeout_is_handed_on() {
    let proxy = one(&json!({"timeout": {"request": "1s", "deadline_header": "x-left"}}));
    type Case<'a> = (Headers<'a>, &'a str);
    let cases: &[Case<'_>] = &[
        (&[], "1000"),
        (&[("grpc-timeout", b"250m")], "250"),
        (&[("grpc-timeout", b"5S")], "1000"),
        (&[(EXPECTED, b"300"), ("X-Left", b"200")], "200"),
        (&[("x-left", b"\xff")], "1000"),
        (&[("x-left", b"-1"), ("grpc-timeout", b"1s")], "1000"),
        (&[("x-left", b"99999999999999999999")], "1000"),
        (&[("grpc-timeout", b"500u")], "1"),
        // Removed as every client's; it neither shortens nor lengthens.
        (&[(ROUTER, b"5")], "1000"),
    ];
    for (headers, want) in cases {
        let stream = take(&proxy, "GET", headers, 1, 200);
        assert!(stream.replied().is_none(), "{headers:?}");
        assert_told(
            &stream,
            &[
                (ROUTER, Some(want)),
                ("x-left", Some(want)),
                (PER_TRY, None),
            ],
        );
        assert!(
            stream
                .request_header(EXPECTED)
                .is_none_or(|left| left == *want),
            "{headers:?}"
        );
    }
}

#[test]
fn without_a_timeout_of_the_route_a_deadline_bounds_the_try_and_leaves_the_proxys_own_alone() {
    let proxy = one(&json!({}));
    assert_told(
        &take(&proxy, "GET", &[], 1, 200),
        &[
            (ROUTER, None),
            (PER_TRY, None),
            ("grpc-timeout", None),
            (EXPECTED, None),
        ],
    );
    let stream = take(&proxy, "GET", &[(EXPECTED, b"700")], 1, 200);
    assert_told(
        &stream,
        &[
            (ROUTER, None),
            (PER_TRY, Some("700")),
            (EXPECTED, Some("700")),
        ],
    );
    let stream = take(&proxy, "POST", &[GRPC, ("grpc-timeout", b"1S")], 1, 200);
    assert_told(
        &stream,
        &[
            (ROUTER, None),
            (PER_TRY, Some("1000")),
            ("grpc-timeout", Some("1S")),
        ],
    );
}

#[test]
fn a_grpc_upstream_learns_of_the_routes_timeout() {
    let proxy = one(&json!({"timeout": {"request": "1s", "per_try": "400ms"}}));
    for (deadline, router, per_try, upstream) in [
        (None, "1000", Some("400"), "400m"),
        (Some(&b"300m"[..]), "300", None, "300m"),
        (Some(b"9H"), "1000", Some("400"), "400m"),
    ] {
        let mut headers = vec![GRPC];
        headers.extend(deadline.map(|deadline| ("grpc-timeout", deadline)));
        let stream = take(&proxy, "POST", &headers, 1, 200);
        assert_told(
            &stream,
            &[
                (ROUTER, Some(router)),
                (PER_TRY, per_try),
                ("grpc-timeout", Some(upstream)),
            ],
        );
    }
}

#[test]
fn nothing_left_or_too_little_is_refused_at_once() {
    let proxy = one(&json!({"timeout": {"reject_below": "20ms", "deadline_header": "x-left"}}));
    for (header, refused) in [("0", true), ("19", true), ("20", false), ("soon", false)] {
        let stream = take(&proxy, "GET", &[("x-left", header.as_bytes())], 1, 200);
        assert_eq!(
            stream.replied().map(|reply| reply.status),
            refused.then_some(504),
            "{header}"
        );
    }
    let refused = take(&proxy, "GET", &[(EXPECTED, b"0")], 1, 200);
    assert_eq!(
        refused.decision().as_deref(),
        Some("deadline timeout enforce")
    );
    assert_eq!(
        refused.response_header("proxy-status").as_deref(),
        Some("haven; error=http_response_timeout; details=\"deadline timeout\"")
    );
    assert_eq!(refused.response_header("retry-after"), None);
    let refused = take(&proxy, "POST", &[GRPC, ("grpc-timeout", b"0m")], 1, 200)
        .replied()
        .unwrap();
    assert_eq!((refused.status, refused.grpc_status), (504, Some(4)));
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=r;policy=timeout;reason=deadline;mode=enforce"),
        4
    );
}

#[test]
fn shadow_counts_and_does_nothing_and_off_does_not_even_look() {
    for (mode, counted) in [("shadow", 1), ("off", 0)] {
        let proxy = one(
            &json!({"mode": mode, "timeout": {"request": "1s", "per_try": "1ms"}, "retry": {}}),
        );
        let stream = take(&proxy, "GET", &[("grpc-timeout", b"0m")], 1, 200);
        assert!(stream.replied().is_none());
        assert_told(
            &stream,
            &[
                (ROUTER, None),
                (PER_TRY, None),
                (MAX_RETRIES, None),
                ("grpc-timeout", Some("0m")),
            ],
        );
        let name =
            format!("haven_decisions_total;route=r;policy=timeout;reason=deadline;mode={mode}");
        assert_eq!(proxy.machine.metric(&name), counted);
    }
}

#[test]
fn the_limits_come_before_a_deadline_so_that_it_is_no_way_around_them() {
    let mut config = json!({"rate_limits": {"l": {"limit": 1, "period": "1h"}}, "routes": [{"name": "r", "rate_limits": ["l"]}]});
    let proxy = Proxy::new(&config);
    let status = |headers: Headers<'_>| {
        take(&proxy, "GET", headers, 1, 200)
            .replied()
            .map_or(200, |reply| reply.status)
    };
    assert_eq!(
        [
            status(&[(EXPECTED, b"0")]),
            status(&[]),
            status(&[]),
            status(&[(EXPECTED, b"0")])
        ],
        [504, 429, 429, 429]
    );
    // Its fallback answers for it.
    config["fallbacks"] =
        json!({"f": {"steps": [{"respond": {"status": 200, "body": "{{reason}}"}}]}});
    config["routes"][0]["fallback"] = json!("f");
    let reply = take(&Proxy::new(&config), "GET", &[(EXPECTED, b"0")], 1, 200)
        .replied()
        .unwrap();
    assert_eq!((reply.status, reply.body), (200, b"deadline".to_vec()));
}

#[test]
fn a_wait_is_part_of_the_time() {
    let pace = json!({
        "rate_limits": {"l": {"algorithm": "leaky_bucket", "limit": 10, "max_wait": "1s"}},
        "routes": [{"name": "r", "rate_limits": ["l"], "timeout": {"request": "500ms"}}]});
    let proxy = Proxy::new(&pace);
    let begin = |headers: Headers<'_>| {
        let stream = SimStream::request("POST", "/api", headers);
        let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
        let action = exchange.on_request(&proxy.worker, &stream);
        (stream, exchange, action)
    };
    assert_eq!(begin(&[]).2, Action::Continue);
    let (first, mut waiting, action) = begin(&[GRPC, ("grpc-timeout", b"300m")]);
    assert!(matches!(action, Action::Wait { .. }));
    // Its moment would come in 200 ms: then it would be late.
    let (late, _, action) = begin(&[("grpc-timeout", b"150m")]);
    assert_eq!(
        (action, late.replied().map(|reply| reply.status)),
        (Action::Stop, Some(504))
    );
    let (second, mut slow, action) = begin(&[("grpc-timeout", b"250m")]);
    assert!(
        matches!(action, Action::Wait { .. }),
        "the late one has given its moment back: {action:?}"
    );
    proxy.machine.advance(Nanos::from_millis(100));
    assert_eq!(waiting.on_resume(&proxy.worker, &first), Action::Continue);
    assert_told(
        &first,
        &[(ROUTER, Some("200")), ("grpc-timeout", Some("200m"))],
    );
    // A host that is late itself.
    proxy.machine.advance(Nanos::from_millis(160));
    assert_eq!(slow.on_resume(&proxy.worker, &second), Action::Stop);
    assert_eq!(second.replied().map(|reply| reply.status), Some(504));
}

#[test]
fn a_shadow_counts_a_request_that_waits_and_is_late_once() {
    let proxy = Proxy::new(
        &json!({"rate_limits": {"l": {"algorithm": "leaky_bucket", "limit": 1, "max_wait": "9s", "mode": "enforce"}},
        "routes": [{"name": "r", "mode": "shadow", "rate_limits": ["l"], "timeout": {"request": "10ms"}}]}),
    );
    take(&proxy, "GET", &[], 0, 200);
    let late = "haven_decisions_total;route=r;policy=timeout;reason=deadline;mode=shadow";
    for (headers, total) in [(&[][..], 1), (&[("grpc-timeout", &b"0m"[..])], 2)] {
        let stream = SimStream::request("GET", "/api", headers);
        let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
        let Action::Wait { until, .. } = exchange.on_request(&proxy.worker, &stream) else {
            panic!("it is to wait")
        };
        proxy.machine.advance(until.since(proxy.machine.now()));
        assert_eq!(exchange.on_resume(&proxy.worker, &stream), Action::Continue);
        exchange.on_end(&proxy.worker);
        assert_eq!(proxy.machine.metric(late), total);
        assert_eq!(
            stream.decision().as_deref(),
            Some("deadline timeout shadow")
        );
    }
}

#[test]
fn a_dynamic_timeout_follows_what_the_upstream_takes() {
    let dynamic = json!({"dynamic": {"quantile": 99, "factor": 2, "min": "50ms", "max": "2s"}});
    let proxy = one(&json!({"timeout": {"request": dynamic}}));
    let timeout = || -> u64 {
        take(&proxy, "GET", &[], 0, 500)
            .request_header(ROUTER)
            .unwrap()
            .parse()
            .unwrap()
    };
    assert_eq!(timeout(), 2_000, "while little is known");
    (0..30).for_each(|_| drop(take(&proxy, "GET", &[], 100, 200)));
    assert!((200..=226).contains(&timeout()), "{}", timeout());
    // Failures that come quickly do not show how long an answer takes.
    (0..300).for_each(|_| drop(take(&proxy, "GET", &[], 1, 503)));
    (0..300).for_each(|_| drop(take(&proxy, "GET", &[], 1, 429)));
    assert!(timeout() >= 200);
    // The upstream turns slow: each timeout counts for at least as long, and the next gives more
    // time.
    for _ in 0..40 {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = proxy.begin(&stream);
        let given: u64 = stream.request_header(ROUTER).unwrap().parse().unwrap();
        proxy.machine.advance(Nanos::from_millis(given));
        stream.fail(504, "response_timeout", Some("10.0.0.1:80"), 1);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
    }
    assert_eq!(timeout(), 2_000);
    for _ in 0..30 {
        (0..20).for_each(|_| drop(take(&proxy, "GET", &[], 10, 200)));
        proxy.machine.advance(Nanos::from_secs(1));
    }
    assert_eq!(timeout(), 50, "and back");
    // The body counts: what the timeout cuts off is the whole answer.
    for _ in 0..30 {
        for _ in 0..20 {
            let stream = SimStream::request("GET", "/api", &[]);
            let mut exchange = proxy.begin(&stream);
            stream.answer(200, Some("10.0.0.1:80"), &[]);
            exchange.on_response_headers(&proxy.worker, &stream, false);
            proxy.machine.advance(Nanos::from_millis(200));
            exchange.on_response_body(&proxy.worker, &stream, 0, true);
            exchange.on_end(&proxy.worker);
        }
    }
    assert!(timeout() >= 400);
}

#[test]
fn p50_refuses_what_half_of_the_requests_would_not_make_until_the_sample_is_too_old() {
    let proxy = one(&json!({"timeout": {"reject_below": "p50"}}));
    let status = |left: &[u8]| {
        take(&proxy, "GET", &[(EXPECTED, left)], 100, 200)
            .replied()
            .map_or(200, |r| r.status)
    };
    assert_eq!(status(b"5"), 200, "nothing is known yet");
    (0..40).for_each(|_| drop(take(&proxy, "GET", &[], 100, 200)));
    assert_eq!(
        [status(b"50"), status(b"150"), status(b"50")],
        [504, 200, 504]
    );
    proxy.machine.advance(Nanos::from_secs(6));
    assert_eq!(
        [status(b"50"), status(b"50")],
        [200, 504],
        "one finds out how it is now"
    );
}

#[test]
fn impatient_clients_open_no_breaker_and_slow_upstreams_do() {
    let outage = |known: usize, request: Option<&str>, deadline: Option<&[u8]>, given: u64| {
        let mut config = upstream(&json!({"circuit_breakers": {"r": {"minimum_calls": 10}}}));
        if let Some(request) = request {
            config["routes"][0]["timeout"] = json!({"request": request});
        }
        let proxy = Proxy::new(&config);
        (0..known).for_each(|_| drop(take(&proxy, "GET", &[], 100, 200)));
        for _ in 0..60 {
            let headers: Vec<_> = deadline
                .map(|deadline| (EXPECTED, deadline))
                .into_iter()
                .collect();
            let stream = SimStream::request("GET", "/api", &headers);
            let mut exchange = proxy.begin(&stream);
            if let Some(list) = stream.request_header("x-haven-upstream") {
                proxy.machine.advance(Nanos::from_millis(given));
                stream.fail(504, "upstream_per_try_timeout", list.split(',').next(), 1);
                exchange.on_response(&proxy.worker, &stream);
            }
            exchange.on_end(&proxy.worker);
        }
        // Work that was given up may go on for as long as the first ones took.
        proxy.machine.advance(Nanos::from_millis(100));
        proxy.engine.tick(&proxy.worker);
        let in_flight = proxy.machine.metrics_of("haven_endpoint_in_flight");
        assert!(in_flight.iter().all(|(_, n)| *n == 0));
        let breakers = [
            "circuit_breaker=r;key=r",
            "circuit_breaker=ep;key=10.0.0.1:80",
            "circuit_breaker=ep;key=10.0.0.2:80",
        ];
        breakers.map(|breaker| {
            proxy
                .machine
                .metric(&format!("haven_circuit_breaker_state;{breaker}"))
                != 0
        })
    };
    // Whatever was seen before, and however long the client gave it: it was the client's to say.
    for known in [0, 40] {
        assert_eq!(outage(known, None, Some(b"5"), 5), [false; 3]);
        assert_eq!(outage(known, Some("1s"), Some(b"5"), 5), [false; 3]);
        assert_eq!(outage(known, None, Some(b"1000"), 1_000), [false; 3]);
        assert_eq!(outage(known, Some("1s"), Some(b"2000"), 1_000), [true; 3]);
        assert_eq!(outage(known, None, None, 1_000), [true; 3]);
        assert_eq!(
            outage(known, None, Some(b"60000"), 1_000),
            [true; 3],
            "the proxy's own timeout for the route"
        );
    }
}

/// How a server says that the time was over.
#[derive(Clone, Copy, Debug)]
enum TooLate {
    Status504,
    TrailersOnly,
    Trailers,
}

#[test]
fn an_upstream_that_keeps_a_clients_short_deadline_is_not_held_to_have_failed() {
    let outage = |how: TooLate, request: &str, deadline: &[u8], millis: u64| {
        let mut config = upstream(&json!({"circuit_breakers": {"r": {"minimum_calls": 10}}}));
        config["routes"][0]["timeout"] = json!({"request": request});
        let proxy = Proxy::new(&config);
        for _ in 0..40 {
            let stream = SimStream::request("POST", "/api", &[GRPC, ("grpc-timeout", deadline)]);
            let mut exchange = proxy.begin(&stream);
            if let Some(list) = stream.request_header("x-haven-upstream") {
                proxy.machine.advance(Nanos::from_millis(millis));
                let first = list.split(',').next();
                match how {
                    TooLate::Status504 => {
                        stream.answer(504, first, &[]);
                        exchange.on_response(&proxy.worker, &stream);
                    }
                    TooLate::TrailersOnly => {
                        stream.answer(200, first, &[("grpc-status", b"4")]);
                        exchange.on_response(&proxy.worker, &stream);
                    }
                    TooLate::Trailers => {
                        stream.answer(200, first, &[]);
                        exchange.on_response_headers(&proxy.worker, &stream, false);
                        stream.trail(&[("grpc-status", b"4")]);
                        exchange.on_response_trailers(&proxy.worker, &stream);
                    }
                }
            }
            exchange.on_end(&proxy.worker);
        }
        let states = proxy.machine.metrics_of("haven_circuit_breaker_state");
        states.iter().any(|(_, state)| *state != 0)
    };
    for how in [TooLate::Status504, TooLate::TrailersOnly, TooLate::Trailers] {
        assert!(!outage(how, "1s", b"20m", 20), "{how:?}");
        assert!(!outage(how, "1s", b"20m", 1), "it refuses at once: {how:?}");
        assert!(outage(how, "1s", b"2S", 900), "the route's time: {how:?}");
    }
}

#[test]
fn a_short_deadline_teaches_a_dynamic_timeout_nothing() {
    let dynamic = json!({"dynamic": {"quantile": 99, "factor": 2, "min": "50ms", "max": "2s"}});
    let proxy = one(&json!({"timeout": {"request": dynamic}}));
    (0..30).for_each(|_| drop(take(&proxy, "GET", &[], 100, 200)));
    let timeout = || take(&proxy, "GET", &[], 0, 500).request_header(ROUTER);
    let before = timeout();
    for n in 0..3_000 {
        let stream = SimStream::request("POST", "/api", &[GRPC, ("grpc-timeout", b"2m")]);
        let mut exchange = proxy.begin(&stream);
        proxy.machine.advance(Nanos::from_millis(2));
        if n % 2 == 0 {
            stream.fail(504, "response_timeout", Some("10.0.0.1:80"), 1);
            exchange.on_response(&proxy.worker, &stream);
        } else {
            stream.answer(200, Some("10.0.0.1:80"), &[]);
            exchange.on_response_headers(&proxy.worker, &stream, false);
            stream.trail(&[("grpc-status", b"4")]);
            exchange.on_response_trailers(&proxy.worker, &stream);
        }
        exchange.on_end(&proxy.worker);
    }
    assert_eq!(timeout(), before);
}

#[test]
fn an_impatient_client_gives_the_permits_of_a_trial_back() {
    // At the headers, and in the middle of the answer.
    for cut in [false, true] {
        let slow = json!({"open_duration": "1s", "half_open_max_wait": "1h"});
        let proxy = Proxy::new(&upstream(
            &json!({"circuit_breakers": {"r": slow, "ep": slow}}),
        ));
        (0..40).for_each(|_| drop(take(&proxy, "GET", &[], 100, 200)));
        assert!(
            (0..100).any(|_| take(&proxy, "GET", &[], 1, 500).replied().is_some()),
            "it opens"
        );
        proxy.machine.advance(Nanos::from_millis(1_100));
        proxy.engine.tick(&proxy.worker);
        for _ in 0..5 {
            let stream = SimStream::request("GET", "/api", &[(EXPECTED, b"5")]);
            let mut exchange = proxy.begin(&stream);
            assert!(
                stream.replied().is_none(),
                "it is a trial: {cut} {:?}",
                stream.decision()
            );
            let list = stream.request_header("x-haven-upstream").unwrap();
            proxy.machine.advance(Nanos::from_millis(5));
            if cut {
                stream.answer(200, list.split(',').next(), &[]);
                exchange.on_response_headers(&proxy.worker, &stream, false);
                stream.set_property(Property::ResponseCodeDetails, b"response_timeout");
                stream.set_property(Property::ResponseFlags, &(1u64 << 2).to_le_bytes());
                exchange.on_cut(&proxy.worker, &stream);
            } else {
                stream.fail(504, "upstream_per_try_timeout", list.split(',').next(), 1);
                exchange.on_response(&proxy.worker, &stream);
            }
            exchange.on_end(&proxy.worker);
        }
        assert_eq!(
            proxy
                .machine
                .metric("haven_circuit_breaker_state;circuit_breaker=r;key=r"),
            2,
            "still half-open"
        );
        take(&proxy, "GET", &[], 100, 200);
        assert_eq!(
            proxy
                .machine
                .metric("haven_circuit_breaker_state;circuit_breaker=r;key=r"),
            0,
            "and well again"
        );
    }
}

fn retrying(retry: &Value) -> Proxy {
    Proxy::new(&upstream(
        &json!({"routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "circuit_breaker": "r",
        "retry": retry}]}),
    ))
}

#[test]
fn idempotent_requests_may_be_tried_again_and_others_not() {
    let proxy = retrying(&json!({"attempts": 2, "budget": 100}));
    let names = [MAX_RETRIES, "x-envoy-retry-on", "x-envoy-retry-grpc-on"];
    let yes = ["2", "connect-failure,reset,gateway-error"];
    for (method, headers, want) in [
        ("GET", &[][..], true),
        ("DELETE", &[], true),
        ("POST", &[], false),
        ("get", &[], false),
        ("POST", &[GRPC], false),
        (
            "GET",
            &[(MAX_RETRIES, &b"50"[..]), ("x-envoy-retry-on", b"5xx")],
            true,
        ),
        (
            "POST",
            &[
                ("x-envoy-retry-on", b"5xx"),
                ("x-envoy-retry-grpc-on", b"internal"),
            ],
            false,
        ),
    ] {
        let stream = take(&proxy, method, headers, 1, 200);
        let want = if want {
            [Some(yes[0]), Some(yes[1]), None]
        } else {
            [Some("0"), None, None]
        };
        assert_eq!(
            sent(&stream, names),
            want.map(|v| v.map(str::to_owned)),
            "{method} {headers:?}"
        );
    }
    let proxy = retrying(&json!({"on": ["reset", "unavailable", "cancelled"]}));
    let stream = take(&proxy, "POST", &[GRPC], 1, 200);
    assert_eq!(
        sent(&stream, names),
        [
            Some("1".into()),
            Some("reset".into()),
            Some("unavailable,cancelled".into())
        ]
    );
    assert_eq!(
        sent(&take(&proxy, "GET", &[], 1, 200), names),
        [Some("1".into()), Some("reset".into()), None]
    );
}

#[test]
fn there_is_no_retry_while_the_breaker_tries_the_upstream() {
    let proxy = retrying(&json!({}));
    let fail = |status: u16| take(&proxy, "GET", &[], 1, status);
    (0..3).for_each(|_| drop(fail(500)));
    assert_eq!(
        fail(500).replied().map(|reply| reply.status),
        Some(503),
        "it is open"
    );
    proxy.machine.advance(Nanos::from_secs(6));
    assert_told(&fail(200), &[(MAX_RETRIES, Some("0"))]);
    assert_told(&fail(200), &[(MAX_RETRIES, Some("1"))]);
}

#[test]
fn there_is_no_retry_where_the_deadline_has_no_room() {
    let proxy = retrying(&json!({}));
    (0..40).for_each(|_| drop(take(&proxy, "GET", &[], 100, 200)));
    assert_told(
        &take(&proxy, "GET", &[(EXPECTED, b"50")], 100, 200),
        &[(MAX_RETRIES, Some("0")), (PER_TRY, Some("50"))],
    );
    assert_told(
        &take(&proxy, "GET", &[(EXPECTED, b"200")], 100, 200),
        &[(MAX_RETRIES, Some("1"))],
    );
}

#[test]
fn the_budget_is_spent_by_what_was_tried_and_all_workers_share_it() {
    let config = json!({
        "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]}},
        "routes": [{"name": "r", "upstream": "u", "retry": {"budget": 20, "min_per_second": 0}}]});
    let proxy = Proxy::new(&config);
    let engines = [
        Rc::clone(&proxy.engine),
        Proxy::engine(&proxy.worker, &config),
    ];
    let mut granted = 0u64;
    // Every request that may be tried again needs it.
    for n in 0..4_000 {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = Exchange::new(Rc::clone(&engines[n % 2]));
        exchange.on_request(&proxy.worker, &stream);
        let list = stream.request_header("x-haven-upstream").unwrap();
        let may = stream.request_header(MAX_RETRIES).as_deref() == Some("1");
        granted += u64::from(may);
        stream.answer(200, list.split(',').nth(usize::from(may)), &[]);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        proxy.machine.advance(Nanos::from_millis(2));
    }
    assert_eq!(proxy.machine.metric("haven_retries_total;route=r"), granted);
    assert_eq!(
        proxy
            .machine
            .metric("haven_retry_budget_requests_total;route=r"),
        4_000
    );
    assert!((700..=850).contains(&granted), "{granted}");
}

#[test]
fn without_endpoints_of_ours_the_proxys_count_of_tries_is_asked() {
    let proxy = one(&json!({"retry": {}}));
    let stream = SimStream::request("GET", "/api", &[]);
    let mut exchange = proxy.begin(&stream);
    stream.answer(
        200,
        Some("10.0.0.9:80"),
        &[("x-envoy-upstream-service-time", b"1")],
    );
    stream.set_property(Property::AttemptCount, &2u64.to_le_bytes());
    exchange.on_response(&proxy.worker, &stream);
    exchange.on_end(&proxy.worker);
    assert_eq!(proxy.machine.metric("haven_retries_total;route=r"), 1);
}

#[test]
fn where_clients_are_trusted_they_shorten_and_never_lengthen() {
    let mut config = json!({"trust_client_retry_headers": true, "routes": [{"name": "r", "timeout": {"request": "1s"}, "retry": {}}]});
    let proxy = Proxy::new(&config);
    for (client, want) in [
        (&b"5"[..], "5"),
        (b"5000", "1000"),
        (b"0", "1000"),
        (b"x", "1000"),
    ] {
        assert_told(
            &take(&proxy, "GET", &[(ROUTER, client)], 1, 200),
            &[(ROUTER, Some(want))],
        );
    }
    let stream = take(
        &proxy,
        "POST",
        &[(MAX_RETRIES, b"50"), ("x-envoy-retry-on", b"5xx")],
        1,
        200,
    );
    assert_told(&stream, &[(MAX_RETRIES, Some("0"))]);
    config["routes"][0] = json!({"name": "r"});
    let proxy = Proxy::new(&config);
    let stream = take(
        &proxy,
        "POST",
        &[(ROUTER, b"0"), (MAX_RETRIES, b"50")],
        1,
        200,
    );
    assert_told(
        &stream,
        &[
            (ROUTER, Some("0")),
            (MAX_RETRIES, Some("50")),
            (PER_TRY, None),
        ],
    );
}

#[test]
fn a_grpc_call_that_the_proxy_cuts_off_ends_with_deadline_exceeded() {
    for (mode, want) in [("enforce", "4"), ("shadow", "14")] {
        let proxy = one(&json!({"timeout": {"request": "1s"}, "mode": mode}));
        for (details, want) in [
            ("response_timeout", want),
            ("upstream_reset_before_response_started{reset}", "14"),
        ] {
            let stream = SimStream::request("POST", "/api", &[GRPC]);
            let mut exchange = proxy.begin(&stream);
            stream.answer(200, Some("10.0.0.9:80"), &[("grpc-status", b"14")]);
            stream.set_property(Property::ResponseCodeDetails, details.as_bytes());
            exchange.on_response(&proxy.worker, &stream);
            assert_eq!(
                stream.response_header("grpc-status").as_deref(),
                Some(want),
                "{mode} {details}"
            );
        }
    }
}

#[test]
fn vectors_what_is_grpc_and_what_haven_answers_to_it() {
    let vectors: Value =
        serde_json::from_str(include_str!("../vectors/14_grpc_status_timeout.json")).unwrap();
    use haven::request::Reason::{
        CircuitOpen, Deadline, NoEndpoint, Overload, RateLimited, SwitchedOff, Timeout,
        UpstreamError,
    };
    for reason in [
        CircuitOpen,
        Deadline,
        NoEndpoint,
        Overload,
        RateLimited,
        SwitchedOff,
        Timeout,
        UpstreamError,
    ] {
        let (status, grpc) = (reason.status(), reason.grpc_status());
        assert_eq!(
            vectors["grpc_to_http"][grpc.to_string()],
            status,
            "{reason:?}"
        );
    }
    assert_eq!(
        vectors["http_429_as_resource_exhausted_option"],
        RateLimited.grpc_status()
    );
    let proxy = one(&json!({"timeout": {"deadline_header": "x-left"}}));
    for case in vectors["content_type"].as_array().unwrap() {
        let (content_type, grpc) = (case[0].as_str().unwrap(), case[1].as_bool().unwrap());
        let headers: Headers<'_> = &[("content-type", content_type.as_bytes()), ("x-left", b"0")];
        let reply = take(&proxy, "POST", headers, 1, 200).replied().unwrap();
        // 4 is what 504 is in gRPC, and the other way round.
        assert_eq!(reply.grpc_status, grpc.then_some(4), "{content_type}");
        assert_eq!(vectors["grpc_to_http"]["4"], reply.status, "{content_type}");
        assert_eq!(
            reply
                .headers
                .iter()
                .any(|(name, _)| *name == "content-type"),
            !grpc,
            "{content_type}"
        );
    }
}

/// Sends the request of `first` again, as Envoy does when it follows a redirect itself.
fn redirected(proxy: &Proxy, first: &SimStream) -> SimStream {
    let headers = first.headers(Message::Request);
    let again = SimStream::request("GET", "/api", &[]);
    for (name, value) in headers.iter().filter(|(name, _)| !name.starts_with(b":")) {
        again.add_header(Message::Request, std::str::from_utf8(name).unwrap(), value);
    }
    again.add_header(
        Message::Request,
        "x-envoy-original-url",
        b"http://api.example/api",
    );
    let mut exchange = proxy.begin(&again);
    exchange.on_end(&proxy.worker);
    again
}

/// A request that is on its way for so long before its stream ends without an answer.
fn unanswered(proxy: &Proxy, headers: Headers<'_>, millis: u64) -> SimStream {
    let stream = SimStream::request("GET", "/api", headers);
    let mut exchange = proxy.begin(&stream);
    proxy.machine.advance(Nanos::from_millis(millis));
    exchange.on_end(&proxy.worker);
    stream
}

#[test]
fn an_internal_redirect_does_not_start_a_clients_deadline_anew() {
    let proxy = one(&json!({"timeout": {"request": "5s", "deadline_header": "x-deadline"}}));
    let first = unanswered(&proxy, &[("x-deadline", b"600")], 210);
    assert_told(&first, &[("x-deadline", Some("600"))]);
    let second = redirected(&proxy, &first);
    assert_told(
        &second,
        &[("x-deadline", Some("390")), (ROUTER, Some("390"))],
    );
    // Its time is over.
    let first = unanswered(&proxy, &[("x-deadline", b"600")], 700);
    assert_eq!(redirected(&proxy, &first).replied().unwrap().status, 504);
    // What haven wrote for the first upstream is no client's deadline.
    let first = unanswered(&proxy, &[GRPC], 1_000);
    assert_told(&first, &[("grpc-timeout", Some("5000m"))]);
    let second = redirected(&proxy, &first);
    assert_told(
        &second,
        &[("grpc-timeout", Some("5000m")), (ROUTER, Some("5000"))],
    );
    // Another request has ended since: not this one's.
    let first = unanswered(&proxy, &[("x-deadline", b"600")], 210);
    take(&proxy, "GET", &[], 10, 200);
    let second = redirected(&proxy, &first);
    assert_told(&second, &[(ROUTER, Some("5000"))]);
    // Nor does anything of it touch what comes after.
    assert_told(
        &take(&proxy, "GET", &[("x-deadline", b"600")], 10, 200),
        &[(ROUTER, Some("600"))],
    );
}
