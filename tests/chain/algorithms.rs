//! Algorithms of rate limits in the chain, and requests that wait.

use super::*;

#[test]
fn windows_refuse_with_an_exact_promise_and_recover() {
    for (algorithm, wait, promised) in [
        ("fixed_window", 10_000, "10"),
        ("sliding_window", 15_000, "15"),
    ] {
        // One hour of uptime is the begin of a window. Of two that passed at its begin one still
        // counts halfway through the next.
        let proxy = Proxy::new(&limited(
            &json!({"algorithm": algorithm, "limit": 2, "period": "10s"}),
        ));
        let passed = proxy.request("/api", &[], 200);
        assert_eq!(
            passed.response_header("ratelimit-policy").as_deref(),
            Some("\"l\";q=2;w=10"),
            "{algorithm}"
        );
        proxy.request("/api", &[], 200);
        let refused = proxy.request("/api", &[], 200);
        assert_eq!(refused.replied().unwrap().status, 429);
        assert_eq!(
            refused.response_header("retry-after").as_deref(),
            Some(promised),
            "{algorithm}"
        );
        proxy.machine.advance(Nanos(wait * 1_000_000 - 1));
        assert_eq!(proxy.status("/api", &[]), 429, "{algorithm}");
        proxy.machine.advance(Nanos(1));
        assert_eq!(proxy.status("/api", &[]), 200, "{algorithm}");
    }
}

#[test]
fn a_refusal_by_one_algorithm_costs_the_others_nothing() {
    let limit = |algorithm: &str| json!({"algorithm": algorithm, "limit": 5, "period": "10s"});
    let mut warm = limit("token_bucket");
    warm["warm_up"] = json!("1ms");
    let proxy = Proxy::new(&json!({
        "rate_limits": {
            "token": limit("token_bucket"), "warm": warm, "leaky": limit("leaky_bucket"), "fixed": limit("fixed_window"),
            "sliding": limit("sliding_window"), "last": {"limit": 1, "period": "1h", "key": [{"header": "x-key"}]}},
        "routes": [{"name": "r", "rate_limits": ["token", "warm", "leaky", "fixed", "sliding", "last"]}]}));
    assert_eq!(proxy.status("/", &[("x-key", b"a")]), 200);
    for _ in 0..50 {
        assert_eq!(proxy.status("/", &[("x-key", b"a")]), 429);
    }
    proxy.machine.advance(Nanos::from_millis(2_100));
    let stream = proxy.request("/", &[("x-key", b"b")], 200);
    let left = shown(&stream);
    for item in [
        "\"token\";r=4",
        "\"fixed\";r=3",
        "\"sliding\";r=3",
        "\"leaky\";r=0",
    ] {
        assert!(left.contains(item), "{left}");
    }
}

#[test]
fn a_request_waits_for_its_moment_and_goes_on_where_it_stopped() {
    let proxy = Proxy::new(&upstream(&json!({
        "rate_limits": {"l": {"algorithm": "leaky_bucket", "limit": 2, "burst": 2, "max_wait": "1m"}},
        "routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "circuit_breaker": "r", "rate_limits": ["l"]}]})));
    assert_eq!(proxy.status("/api", &[]), 200);
    let begin = proxy.machine.now();
    let stream = SimStream::request("GET", "/api", &[]);
    let mut exchange = proxy.begin(&stream);
    assert!(
        exchange.is_waiting() && stream.request_header("x-haven-upstream").is_none(),
        "nothing is picked yet"
    );
    assert_eq!(
        proxy
            .machine
            .metrics_of("haven_endpoint_in_flight")
            .iter()
            .map(|(_, n)| n)
            .sum::<u64>(),
        0
    );
    let mut second = Exchange::new(Rc::clone(&proxy.engine));
    let other = SimStream::request("GET", "/api", &[]);
    let action = second.on_request(&proxy.worker, &other);
    let at = begin.plus(Nanos::from_secs(1));
    assert!(matches!(action, Action::Wait { until, .. } if until == at));
    let refused = proxy.request("/api", &[], 200);
    assert_eq!(refused.replied().unwrap().status, 429, "two wait already");
    assert_eq!(refused.response_header("retry-after").as_deref(), Some("1"));
    proxy.machine.advance(Nanos::from_millis(500));
    assert_eq!(exchange.on_resume(&proxy.worker, &stream), Action::Continue);
    assert_eq!(
        (exchange.waited(), exchange.is_waiting()),
        (Nanos::from_millis(500), false)
    );
    assert!(stream.request_header("x-haven-upstream").is_some());
    assert_eq!(
        exchange.on_resume(&proxy.worker, &stream),
        Action::Stop,
        "only once"
    );
    stream.answer(200, Some("10.0.0.1:80"), &[]);
    exchange.on_response(&proxy.worker, &stream);
    assert_eq!(
        stream.response_header("ratelimit").as_deref(),
        Some("\"l\";r=1;t=1")
    );
    exchange.on_end(&proxy.worker);
    second.on_end(&proxy.worker);
    assert_eq!(
        proxy
            .machine
            .metrics_of("haven_endpoint_in_flight")
            .iter()
            .map(|(_, n)| n)
            .sum::<u64>(),
        0
    );
}

#[test]
fn a_wait_is_no_slow_call_of_the_upstream() {
    let proxy = Proxy::new(&json!({
        "rate_limits": {"l": {"algorithm": "leaky_bucket", "limit": 1, "period": "10s", "max_wait": "1m", "burst": 3}},
        "circuit_breakers": {"b": {"slow_call_rate_threshold": 1, "slow_call_duration": "1s", "minimum_calls": 1}},
        "routes": [{"name": "r", "rate_limits": ["l"], "circuit_breaker": "b"}]}));
    proxy.status("/", &[]);
    let stream = SimStream::request("GET", "/", &[]);
    let mut exchange = proxy.begin(&stream);
    proxy.machine.advance(Nanos::from_secs(10));
    assert_eq!(exchange.on_resume(&proxy.worker, &stream), Action::Continue);
    stream.answer(200, Some("10.0.0.1:80"), &[]);
    exchange.on_response(&proxy.worker, &stream);
    exchange.on_end(&proxy.worker);
    assert_eq!(
        proxy
            .machine
            .metric("haven_circuit_breaker_state;circuit_breaker=b;key=r"),
        0
    );
}

#[test]
fn a_client_that_stops_waiting_gives_the_moment_back_if_none_queued_behind() {
    let config = json!({
        "rate_limits": {"l": {"algorithm": "leaky_bucket", "limit": 1, "burst": 9, "max_wait": "1m"}, "plain": {"limit": 100, "period": "1h"}},
        "routes": [{"name": "r", "rate_limits": ["l", "plain"]}]});
    let proxy = Proxy::new(&config);
    let wait = |exchange: &mut Exchange| match exchange
        .on_request(&proxy.worker, &SimStream::request("GET", "/", &[]))
    {
        Action::Wait { until, .. } => until.since(proxy.machine.now()).as_millis(),
        other => panic!("{other:?}"),
    };
    let exchange = || Exchange::new(Rc::clone(&proxy.engine));
    proxy.status("/", &[]);
    let (mut a, mut b, mut c) = (exchange(), exchange(), exchange());
    assert_eq!((wait(&mut a), wait(&mut b)), (1_000, 2_000));
    // The client hangs up; hosts report it twice.
    b.on_end(&proxy.worker);
    b.on_end(&proxy.worker);
    assert_eq!(wait(&mut c), 2_000, "none was behind");
    a.on_end(&proxy.worker);
    let mut d = exchange();
    assert_eq!(
        wait(&mut d),
        3_000,
        "one is behind: the moment stays unused"
    );
    // The proxy answers by itself, as when the stream has idled too long.
    let stream = SimStream::request("GET", "/", &[]);
    stream.fail(504, "stream_idle_timeout", None, 0);
    d.on_response(&proxy.worker, &stream);
    assert_eq!(d.on_resume(&proxy.worker, &stream), Action::Stop);
    assert_eq!(wait(&mut exchange()), 3_000);
}

#[test]
fn what_finds_no_room_to_wait_is_refused_and_costs_nothing() {
    let proxy = Proxy::new(&json!({
        "rate_limits": {"l": {"algorithm": "leaky_bucket", "limit": 1, "burst": 9, "max_wait": "1m"}, "plain": {"limit": 5, "period": "1h"}},
        "routes": [{"name": "r", "rate_limits": ["l", "plain"]}]}));
    proxy.status("/", &[]);
    for _ in 0..20 {
        let stream = SimStream::request("GET", "/", &[]);
        let mut exchange = proxy.begin(&stream);
        assert!(exchange.is_waiting());
        assert_eq!(exchange.on_no_room(&proxy.worker, &stream), Action::Stop);
        assert_eq!(stream.replied().unwrap().status, 429);
        assert_eq!(stream.response_header("retry-after").as_deref(), Some("1"));
        assert_eq!(stream.decision().as_deref(), Some("rate_limited l enforce"));
        exchange.on_end(&proxy.worker);
    }
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=r;policy=l;reason=rate_limited;mode=enforce"),
        20
    );
    proxy.machine.advance(Nanos::from_secs(1));
    assert!(shown(&proxy.request("/", &[], 200)).contains("\"plain\";r=3"));
}

#[test]
fn a_refusal_after_the_wait_is_a_whole_reply() {
    let proxy = Proxy::new(&upstream(&json!({
        "rate_limits": {"l": {"algorithm": "leaky_bucket", "limit": 1, "burst": 9, "max_wait": "1m"}},
        "routes": [{"name": "r", "match": {"prefix": "/api"}, "circuit_breaker": "r", "rate_limits": ["l"]}]})));
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let stream = SimStream::request("GET", "/api", &[]);
        let exchange = proxy.begin(&stream);
        waiting.push((exchange, stream));
    }
    let mut ends = Vec::new();
    for (exchange, stream) in &mut waiting {
        if exchange.is_waiting() {
            proxy.machine.advance(Nanos::from_secs(1));
            exchange.on_resume(&proxy.worker, stream);
        }
        if stream.replied().is_none() {
            stream.answer(500, Some("10.0.0.1:80"), &[]);
            exchange.on_response(&proxy.worker, stream);
        }
        exchange.on_end(&proxy.worker);
        ends.push(stream.replied().map_or(500, |reply| reply.status));
    }
    assert_eq!(
        ends,
        [500, 500, 500, 503, 503],
        "the breaker opened while they waited"
    );
    assert_eq!(
        waiting[4].1.decision().as_deref(),
        Some("circuit_open r enforce")
    );
    assert!(waiting[4].1.response_header("ratelimit").is_some());
}

#[test]
fn of_several_limits_the_longest_wait_counts_and_a_shadow_delays_none() {
    let leaky = |period: &str| json!({"algorithm": "leaky_bucket", "limit": 1, "period": period, "burst": 9, "max_wait": "1m"});
    let mut shadow = leaky("30s");
    shadow["mode"] = json!("shadow");
    let proxy = Proxy::new(&json!({
        "rate_limits": {"a": leaky("1s"), "b": leaky("3s"), "c": leaky("2s"), "s": shadow},
        "routes": [{"name": "r", "rate_limits": ["s", "a", "b", "c"]}]}));
    proxy.status("/", &[]);
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    let at = proxy.machine.now().plus(Nanos::from_secs(3));
    let action = exchange.on_request(&proxy.worker, &SimStream::request("GET", "/", &[]));
    assert!(matches!(action, Action::Wait { until, .. } if until == at));
}

#[test]
fn a_reload_keeps_what_was_counted_unless_the_algorithm_changes() {
    for algorithm in [
        "token_bucket",
        "leaky_bucket",
        "sliding_window",
        "fixed_window",
    ] {
        let of = |algorithm: &str, limit: u64| {
            let mut limit = json!({"algorithm": algorithm, "limit": limit, "period": "1h"});
            if algorithm == "leaky_bucket" {
                limit["max_wait"] = json!("0s");
            }
            limited(&limit)
        };
        let mut proxy = Proxy::new(&of(algorithm, 1));
        assert_eq!(
            (proxy.status("/api", &[]), proxy.status("/api", &[])),
            (200, 429),
            "{algorithm}"
        );
        proxy.reload(&of(algorithm, 2));
        let again = proxy.status("/api", &[]);
        // A bucket that was empty is empty still; a window has room for one more.
        assert_eq!(
            again,
            if algorithm.ends_with("window") {
                200
            } else {
                429
            },
            "{algorithm}"
        );
        assert_eq!(proxy.status("/api", &[]), 429, "{algorithm}");
        let other = if algorithm == "fixed_window" {
            "token_bucket"
        } else {
            "fixed_window"
        };
        proxy.reload(&of(other, 1));
        assert_eq!(proxy.status("/api", &[]), 200, "{algorithm} -> {other}");
    }
}

#[test]
fn the_busy_body_of_a_fallback_is_sent_as_it_stands() {
    let vectors: Value =
        serde_json::from_str(include_str!("../vectors/31_seed_scenarios.json")).unwrap();
    let busy = vectors["scenarios"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["name"] == "busy body")
        .unwrap();
    let mut config = limited(&json!({"limit": 1, "period": "1h"}));
    config["fallbacks"] = json!({"f": {"on": ["rate_limited"], "steps": [
        {"respond": {"status": busy["status"], "content_type": "text/plain; charset=utf-8", "body": busy["body"]}}]}});
    config["routes"][0]["fallback"] = json!("f");
    let proxy = Proxy::new(&config);
    proxy.status("/api", &[]);
    let reply = proxy.request("/api", &[], 200).replied().unwrap();
    assert_eq!(
        (
            reply.status,
            String::from_utf8(reply.body).unwrap().as_str()
        ),
        (429, busy["body"].as_str().unwrap())
    );
}
