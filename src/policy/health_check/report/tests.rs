use super::*;
use serde_json::{Value, json};

const NOW: &str = "2023-04-05T10:00:20Z";

fn check(components: &Value) -> HealthCheck {
    let config =
        json!({"upstreams": {"u": {"health_check": {"report": true, "components": components}}}});
    let config = crate::document::parse(config.to_string().as_bytes()).unwrap();
    config.upstreams[0].health_check.clone().unwrap()
}

fn judged(report: &Value, good: bool, components: &Value) -> Option<(EndpointHealth, CheckReason)> {
    judge(
        report.to_string().as_bytes(),
        good,
        if good { 200 } else { 503 },
        &check(components),
        rfc3339::parse(NOW).unwrap(),
    )
    .map(|sample| (sample.status, sample.reason))
}

fn status(report: &Value, good: bool, components: &Value) -> EndpointHealth {
    judged(report, good, components).unwrap().0
}

#[test]
fn the_mission_s_report_is_up_only_where_its_redis_is_not_critical() {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../../tests/vectors/29_health_json.json"
    ))
    .unwrap();
    let mut report = vectors["seed_example"].clone();
    report["timestamp"] = json!("2023-04-05T10:00:05Z");
    assert_eq!(
        judged(&report, true, &json!({})),
        Some((EndpointHealth::OutOfService, CheckReason::Component))
    );
    let redis = json!({"redis": {"critical": false}});
    assert_eq!(status(&report, true, &redis), EndpointHealth::Up);
    let sample = judge(
        report.to_string().as_bytes(),
        true,
        200,
        &check(&redis),
        rfc3339::parse(NOW).unwrap(),
    )
    .unwrap();
    assert_eq!(sample.components, [Some(EndpointHealth::Down)]);
    // Fifteen seconds after it was made it is three intervals old; a second is for rounding.
    report["timestamp"] = json!("2023-04-05T10:00:04Z");
    assert_eq!(status(&report, true, &redis), EndpointHealth::Up);
    report["timestamp"] = json!("2023-04-05T10:00:03Z");
    assert_eq!(
        judged(&report, true, &redis),
        Some((EndpointHealth::Inconclusive, CheckReason::Stale))
    );
}

#[test]
fn aggregation_is_that_of_the_vectors() {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../../tests/vectors/29_health_json.json"
    ))
    .unwrap();
    for case in vectors["aggregation"].as_array().unwrap() {
        let report = json!({"status": "UP", "details": case["details"]});
        let want = case.get("all_critical").or(case.get("out")).unwrap();
        let up = want == "UP";
        assert_eq!(
            status(&report, true, &json!({})) == EndpointHealth::Up,
            up,
            "{case}"
        );
        if case.get("b_noncritical").is_some() {
            assert_eq!(
                status(&report, true, &json!({"b": {"critical": false}})),
                EndpointHealth::Up
            );
        }
    }
}

#[test]
fn the_report_counts_for_more_than_the_http_status_and_less_than_the_configuration() {
    let down = |name: &str| {
        let details = json!({name: {"status": "DOWN"}, "x": {"status": "UP"}});
        json!({"status": "OUT_OF_SERVICE", "details": details})
    };
    let cache = json!({"cache": {"critical": false}, "database": {}});
    for (report, good, want) in [
        // Nothing but what the configuration excuses.
        (down("cache"), false, EndpointHealth::Up),
        (down("cache"), true, EndpointHealth::Up),
        (down("database"), true, EndpointHealth::OutOfService),
        (down("other"), true, EndpointHealth::OutOfService),
        (json!({"status": "DOWN"}), true, EndpointHealth::Down),
        (
            json!({"status": "UNKNOWN"}),
            true,
            EndpointHealth::Inconclusive,
        ),
        (json!({"status": "UP"}), false, EndpointHealth::Down),
        (
            json!({"status": "up", "details": []}),
            true,
            EndpointHealth::Up,
        ),
        (
            json!({"status": "pass", "details": {"database": "pass", "cache": "fail"}}),
            true,
            EndpointHealth::Up,
        ),
        (
            json!({"status": "UP", "details": {"database": {"status": "well"}}}),
            true,
            EndpointHealth::OutOfService,
        ),
        // A report's own word for a component that the configuration does not name.
        (
            json!({"status": "UP", "details": {"other": {"status": "DOWN", "critical": false}}}),
            true,
            EndpointHealth::Up,
        ),
        (
            json!({"status": "UP", "details": {"database": {"status": "DOWN", "critical": false}}}),
            true,
            EndpointHealth::OutOfService,
        ),
        (
            json!({
                "status": "OUT_OF_SERVICE",
                "details": {"other": {"status": "DOWN", "critical": false}}
            }),
            true,
            EndpointHealth::OutOfService,
        ),
    ] {
        assert_eq!(status(&report, good, &cache), want, "{report} {good}");
    }
}

#[test]
fn a_component_has_its_own_age_and_errors() {
    let api = json!({"api": {"period": "30s", "max_error_rate": 5}});
    for (entry, want) in [
        (json!({"status": "UP", "error_rate": 5}), EndpointHealth::Up),
        (
            json!({"status": "UP", "error_rate": 5.01}),
            EndpointHealth::Down,
        ),
        (
            json!({"status": "UP", "timestamp": "2023-04-05T09:58:50Z"}),
            EndpointHealth::Up,
        ),
        (
            json!({"status": "UP", "timestamp": "2023-04-05T09:58:48Z"}),
            EndpointHealth::Inconclusive,
        ),
    ] {
        let report = json!({"status": "UP", "details": {"api": entry}, "timestamp": NOW});
        let sample = judge(
            report.to_string().as_bytes(),
            true,
            200,
            &check(&api),
            rfc3339::parse(NOW).unwrap(),
        )
        .unwrap();
        assert_eq!(sample.components, [Some(want)], "{report}");
        assert_eq!(
            sample.status == EndpointHealth::Up,
            want == EndpointHealth::Up
        );
    }
}

#[test]
fn what_is_no_report_says_nothing() {
    let long = format!(
        "{{\"status\": \"DOWN\", \"x\": \"{}\"}}",
        "x".repeat(MAX_BYTES)
    );
    let deep = format!(
        "{{\"status\": \"DOWN\", \"x\": {}1{}}}",
        "[".repeat(1_000),
        "]".repeat(1_000)
    );
    for body in [
        b"".as_slice(),
        b"OK",
        b"[]",
        b"{}",
        b"{\"status\": 1}",
        b"{\"status\": \"fine\"}",
        b"{\"status\": \"DOWN\"",
        b"{\"status\": \"DOWN\", \"x\": \"\xff\"}",
        long.as_bytes(),
        deep.as_bytes(),
    ] {
        assert_eq!(
            judge(body, true, 200, &check(&json!({})), UnixTime::EPOCH),
            None
        );
    }
}

#[test]
fn moments_are_those_of_rfc_3339() {
    let seconds = |text: &str| rfc3339::parse(text).map(|at| at.0);
    for (text, want) in [
        ("1970-01-01T00:00:00Z", Some(0)),
        ("2023-04-05T10:00:00Z", Some(1_680_688_800_000_000_000)),
        (
            "2023-04-05t12:30:00.25+02:30",
            Some(1_680_688_800_250_000_000),
        ),
        (
            "2023-04-05 05:00:00.1234567891-05:00",
            Some(1_680_688_800_123_456_789),
        ),
        ("2024-02-29T23:59:60Z", Some(1_709_251_200_000_000_000)),
        ("2023-02-29T00:00:00Z", None),
        ("1969-12-31T23:59:59Z", None),
        ("2023-04-05T24:00:00Z", None),
        ("2023-04-05T10:00:00", None),
        ("2023-04-05T10:00:00.Z", None),
        ("2023-04-05T10:00Z", None),
        ("+023-04-05T10:00:00Z", None),
        ("2023-04-05T10:00:00+2:30", None),
        ("１023-04-05T10:00:00Z", None),
        ("", None),
    ] {
        assert_eq!(seconds(text), want, "{text}");
    }
}

#[test]
fn a_clock_that_is_ahead_or_no_clock_at_all_is_no_fault() {
    for at in [
        json!("2050-01-01T00:00:00Z"),
        json!("yesterday"),
        json!(5),
        json!(null),
    ] {
        assert_eq!(
            status(&json!({"status": "UP", "timestamp": at}), true, &json!({})),
            EndpointHealth::Up,
            "{at}"
        );
    }
}
