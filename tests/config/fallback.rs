//! Fallbacks.

use haven::base::time::Nanos;
use haven::document::{FallbackStep, TemplatePart};
use haven::request::Reason;

use crate::support::{FULL, errors, good, refuses};

#[test]
fn the_full_document_is_read_as_it_is_meant() {
    let config = good(FULL);
    let fallback = &config.fallbacks[0];
    assert!(
        fallback.on.contains(&Reason::RateLimited)
            && fallback.on.contains(&Reason::Timeout)
            && !fallback.on.contains(&Reason::Overload)
    );
    let [
        FallbackStep::Stale(stale),
        FallbackStep::Cluster(cluster),
        FallbackStep::Respond(respond),
    ] = &fallback.steps[..]
    else {
        panic!("{:?}", fallback.steps)
    };
    assert_eq!(
        (stale.max_age, stale.max_body, stale.max_entries),
        (Nanos::from_secs(600), 32 << 10, 9)
    );
    assert_eq!(
        (stale.vary.as_slice(), stale.max_bytes),
        (&["accept".to_owned()][..], 1 << 20)
    );
    assert_eq!(cluster, "other");
    assert_eq!(
        (respond.status, respond.content_type.as_str()),
        (299, "application/json")
    );
    assert_eq!(respond.headers, [("x-a".into(), "ü".into())]);
    assert_eq!(
        respond.body,
        [
            TemplatePart::Literal("{\"id\":\"".into()),
            TemplatePart::RequestId,
            TemplatePart::Literal("\",\"é\":{\"x\":".into()),
            TemplatePart::RetryAfter,
            TemplatePart::Literal("}}".into()),
            TemplatePart::Reason,
            TemplatePart::Route,
        ]
    );
    let on = &config.fallbacks[1].on;
    assert!(
        !on.contains(&Reason::RateLimited)
            && on.contains(&Reason::Overload)
            && on.contains(&Reason::CircuitOpen)
            && on.contains(&Reason::NoEndpoint)
            && on.contains(&Reason::Deadline)
            && on.contains(&Reason::SwitchedOff)
    );
    assert!(on.contains(&Reason::UpstreamError) && on.contains(&Reason::Timeout));
}

#[test]
fn fallbacks_are_checked() {
    let own = "connection, content-length, content-type, keep-alive, te, trailer, transfer-encoding, upgrade";
    refuses(
        r#"{"fallbacks": {"f": @}}"#,
        &[
            (
                "{}",
                "fallbacks.f.steps: nothing is not allowed, want a list of 1 to 8 items, each an object with one of stale, respond, cluster \
             (required)",
            ),
            (
                r#"{"steps": []}"#,
                "fallbacks.f.steps: [] is not allowed, want a list of 1 to 8 items, each an \
                 object with one of stale, respond, cluster",
            ),
            (
                r#"{"steps": [{}]}"#,
                "fallbacks.f.steps[0]: {} is not allowed, want an object with one of stale, \
                 respond, cluster",
            ),
            (
                r#"{"on": [], "steps": [{"respond": {}}]}"#,
                "fallbacks.f.on: [] is not allowed, want a list of 1 to 8 items, each one of \"rate_limited\", \"overload\", \
             \"circuit_open\", \"no_endpoint\", \"deadline\", \"switched_off\", \"upstream_error\", \"timeout\"",
            ),
            (
                r#"{"on": ["timeout", "timeout"], "steps": [{"respond": {}}]}"#,
                "fallbacks.f.on[1]: \"timeout\" is not allowed, want each item only once",
            ),
            (
                r#"{"steps": [{"cluster": "a"}, {"stale": {}}, {"cluster": "b"}]}"#,
                "fallbacks.f.steps[2].cluster: \"b\" is not allowed, want one cluster step only: \
                 a request is sent on once",
            ),
            (
                r#"{"steps": [{"stale": {}}, {"stale": {"max_age": "1h"}}]}"#,
                "fallbacks.f.steps[1].stale.max_age: \"1h\" is not allowed, want one stale step \
                 only",
            ),
            (
                r#"{"steps": [{"stale": {"max_age": "500ms"}}]}"#,
                "fallbacks.f.steps[0].stale.max_age: \"500ms\" is not allowed, want a duration \
                 from 1s to 7d like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"steps": [{"stale": {"max_bytes": "79KiB"}}]}"#,
                "fallbacks.f.steps[0].stale.max_bytes: \"79KiB\" is not allowed, want at least \
                 80KiB: max_body and 16KiB",
            ),
            (
                r#"{"steps": [{"stale": {"max_entries": 0}}]}"#,
                "fallbacks.f.steps[0].stale.max_entries: 0 is not allowed, want an integer from \
                 1 to 65536",
            ),
            (
                r#"{"steps": [{"respond": {"status": 201}}, {"respond": {}}]}"#,
                "fallbacks.f.steps[0].respond.status: 201 is not allowed, want a respond step \
                 only at the end: it always answers",
            ),
        ],
    );
    refuses(
        r#"{"fallbacks": {"f": {"steps": [{"respond": @}]}}}"#,
        &[
            (
                r#"{"status": 199}"#,
                "fallbacks.f.steps[0].respond.status: 199 is not allowed, want an integer from \
                 200 to 599",
            ),
            (
                r#"{"status": 204, "body": "x"}"#,
                "fallbacks.f.steps[0].respond.status: 204 is not allowed, want a status that may \
                 have a body",
            ),
            (
                r#"{"body": "a {{now}} b"}"#,
                "fallbacks.f.steps[0].respond.body: \"{{now}}\" is not allowed, want one of the placeholders \
             {{request_id}}, {{retry_after}}, {{reason}}, {{route}}",
            ),
            (
                r#"{"body": "a {{reason"}"#,
                "fallbacks.f.steps[0].respond.body: \"{{reason\" is not allowed, want one of the placeholders \
             {{request_id}}, {{retry_after}}, {{reason}}, {{route}}",
            ),
            (
                r#"{"headers": {"x": "a\r\nb: c"}}"#,
                "fallbacks.f.steps[0].respond.headers.x: \"a\\r\\nb: c\" is not allowed, want a header value: at most 4096 bytes without \
             control characters",
            ),
            (
                r#"{"headers": {":status": "1"}}"#,
                "fallbacks.f.steps[0].respond.headers: \":status\" is not allowed, want a header \
                 name",
            ),
            (
                r#"{"headers": {"Content-Length": "1"}}"#,
                &format!(
                    "fallbacks.f.steps[0].respond.headers: \"content-length\" is not allowed, \
                     want a header name that is none of {own}"
                ),
            ),
        ],
    );
    let body = "x".repeat(65_536);
    good(&format!(
        r#"{{"fallbacks": {{"f": {{"steps": [{{"respond": {{"body": "{body}"}}}}]}}}}}}"#
    ));
    assert_eq!(
        errors(&format!(
            r#"{{"fallbacks": {{"f": {{"steps": [{{"respond": {{"body": "{body}x"}}}}]}}}}}}"#
        ))
        .len(),
        1
    );
}
