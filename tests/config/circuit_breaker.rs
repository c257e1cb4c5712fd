//! Circuit breakers.

use haven::base::time::Nanos;
use haven::document::{BreakerScope, Percent, WindowConfig};

use crate::support::{FULL, good, refuses};

#[test]
fn the_full_document_is_read_as_it_is_meant() {
    let config = good(FULL);
    let breaker = &config.circuit_breakers[0];
    assert_eq!(
        (breaker.scope, breaker.consecutive_failures, breaker.window),
        (
            BreakerScope::Upstream,
            5,
            WindowConfig::Time(Nanos::from_secs(20))
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
        (
            20,
            WindowConfig::Time(Nanos::from_secs(10)),
            Nanos::from_secs(5)
        )
    );
    assert_eq!(
        (usual.half_open_calls, usual.half_open_max_wait),
        (None, Nanos::from_secs(30))
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
}

#[test]
fn circuit_breakers_are_checked() {
    refuses(
        r#"{"circuit_breakers": {"b": @}}"#,
        &[
            (
                r#"{"failure_rate_threshold": 0}"#,
                "circuit_breakers.b.failure_rate_threshold: 0 is not allowed, want a number from \
                 0.01 to 100 with at most two decimals",
            ),
            (
                r#"{"open_duration": "99ms"}"#,
                "circuit_breakers.b.open_duration: \"99ms\" is not allowed, want a duration from \
                 100ms to 1d like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"open_duration": "10s", "max_open_duration": "5s"}"#,
                "circuit_breakers.b.max_open_duration: \"5s\" is not allowed, want at least the \
                 open_duration of 10s",
            ),
            (
                r#"{"window": {"size": "999ms"}}"#,
                "circuit_breakers.b.window.size: \"999ms\" is not allowed, want a duration from 1s to 1h like \"250ms\" or \"10s\" or an \
             integer from 1 to 1024",
            ),
            (
                r#"{"window": {"size": 100}}"#,
                "circuit_breakers.b.window.size: 100 is not allowed, want a duration from 1s to \
                 1h like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"window": {"type": "count", "size": 1025}}"#,
                "circuit_breakers.b.window.size: 1025 is not allowed, want a duration from 1s to 1h like \"250ms\" or \"10s\" or an \
             integer from 1 to 1024",
            ),
            (
                r#"{"window": {"type": "count", "size": "10s"}}"#,
                "circuit_breakers.b.window.size: \"10s\" is not allowed, want an integer from 1 \
                 to 1024",
            ),
            (
                r#"{"preset": "x"}"#,
                "circuit_breakers.b.preset: \"x\" is not allowed, want one of \"hystrix\", \
                 \"goresilience\", \"resilience4j\", \"sentinel\"",
            ),
            (
                r#"{"backoff_multiplier": 0.99}"#,
                "circuit_breakers.b.backoff_multiplier: 0.99 is not allowed, want a number from \
                 1 to 100 with at most two decimals",
            ),
            (
                r#"{"failure_on": {"status": ["599-500"]}}"#,
                "circuit_breakers.b.failure_on.status[0]: \"599-500\" is not allowed, want a \
                 status or range from 100 to 599 like \"500-599\" or 503",
            ),
            (
                r#"{"failure_on": {"grpc_status": [17]}}"#,
                "circuit_breakers.b.failure_on.grpc_status[0]: 17 is not allowed, want an \
                 integer from 0 to 16",
            ),
            (
                r#"{"failure_on": {"grpc_status": [2, 2]}}"#,
                "circuit_breakers.b.failure_on.grpc_status[1]: 2 is not allowed, want each item \
                 only once",
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
        (7, Some(1), WindowConfig::Time(Nanos::from_secs(10)))
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
        (5, WindowConfig::Time(Nanos::from_secs(1)), Some(1))
    );
    assert!(sentinel.open_above && !hystrix.open_above && !go.open_above);
    let r4j = breaker(r#"{"preset": "resilience4j", "window": {"size": "2s"}}"#);
    assert_eq!(r4j.window, WindowConfig::Time(Nanos::from_secs(2)));
    let r4j = breaker(r#"{"preset": "resilience4j"}"#);
    assert_eq!(
        (r4j.minimum_calls, r4j.window, r4j.half_open_calls),
        (100, WindowConfig::Count(100), Some(10))
    );
    assert_eq!(
        (r4j.failure_rate_threshold, r4j.open_above),
        (Percent(5000), false)
    );
    let count = breaker(r#"{"window": {"type": "count"}}"#);
    assert_eq!(
        (count.minimum_calls, count.window),
        (20, WindowConfig::Count(100))
    );
    let count = breaker(r#"{"window": {"type": "count", "size": 1024}}"#);
    assert_eq!(count.window, WindowConfig::Count(1_024));
    assert_eq!(
        (r4j.open_duration, r4j.max_open_duration),
        (Nanos::from_secs(60), Nanos::from_secs(60))
    );
}
