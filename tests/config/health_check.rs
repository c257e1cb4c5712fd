//! Active checks of endpoints.

use haven::base::time::Nanos;
use haven::document::{Ask, Percent};

use crate::support::{good, refused, refuses};

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
    assert_eq!(config.routes[0].depends_on, ["redis", "db"]);
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
                "upstreams.u.health_check.interval: \"99ms\" is not allowed, want a duration \
                 from 100ms to 1h like \"250ms\" or \"10s\"",
            ),
            (
                r#""interval": "1s", "interval_changing": "2s""#,
                "upstreams.u.health_check.interval_changing: \"2s\" is not allowed, want at most \
                 the interval of 1s",
            ),
            (
                r#""service": "x""#,
                "upstreams.u.health_check.service: \"x\" is not allowed, want none: only a gRPC \
                 check has a service",
            ),
            (
                r#""protocol": "grpc", "host": "x""#,
                "upstreams.u.health_check.host: \"x\" is not allowed, want none: only an HTTP \
                 check has a host",
            ),
            (
                r#""protocol": "grpc", "report": true"#,
                "upstreams.u.health_check.report: true is not allowed, want false: only the \
                 answer to an HTTP check has a report",
            ),
            (
                r#""components": {"db": {}}"#,
                "upstreams.u.health_check.components: \"db\" is not allowed, want none without \
                 \"report\": true",
            ),
        ],
    );
    refused(
        r#"{"upstreams": {"u": {}, "v": {"health_check": {"report": true, "components": {"db": {}}}}},
            "routes": [{"name": "a", "upstream": "u", "depends_on": ["db"]}, {"name": "b", "depends_on": ["db"]},
                       {"name": "c", "upstream": "v", "depends_on": ["db", "cache"]}]}"#,
        &[
            "routes[2].depends_on[1]: \"cache\" is not allowed, want one of the components: \"db\"",
            "routes[0].depends_on[0]: \"db\" is not allowed, want a component of the \
             health_check of the route's own upstream",
            "routes[1].depends_on[0]: \"db\" is not allowed, want a component of the \
             health_check of the route's own upstream",
        ],
    );
}
