//! What is not JSON, or not what a value may be, and how messages show it.

use haven::document::parse;

use crate::support::{errors, good, refused};

#[test]
fn what_is_not_json_has_a_place() {
    for (document, expected) in [
        (
            &b"{"[..],
            "line 1, column 1: the document is not JSON: EOF while parsing an object",
        ),
        (
            b"{\n  \"mode\" \"off\"}",
            "line 2, column 10: the document is not JSON: expected `:`",
        ),
        (
            b"{\"\xc3\xa9\": }",
            "line 1, column 7: the document is not JSON: expected value",
        ),
        (
            b"{\n\"a\xff\": 1}",
            "line 2, column 3: the document is not JSON: invalid unicode code point",
        ),
        (
            b"{\"mode\": 1e400}",
            "line 1, column 14: the document is not JSON: number out of range",
        ),
        (b"[1]", "the document: [1] is not allowed, want an object"),
        (b"null", "the document: null is not allowed, want an object"),
    ] {
        assert_eq!(parse(document).unwrap_err().to_string(), expected);
    }
    let huge = vec![b' '; (1 << 20) + 1];
    assert_eq!(
        parse(&huge).unwrap_err().to_string(),
        "the document: 1048577 bytes are not allowed, want at most 1048576"
    );
    assert!(parse(&vec![b' '; 1 << 20]).is_ok());
}

#[test]
fn deep_documents_are_refused() {
    for open in ["[", "{\"a\":", "{\"routes\":[", "{\"upstreams\":{\"a\":"] {
        let errors = errors(&open.repeat(50_000));
        assert!(
            errors.len() == 1 && errors[0].contains("recursion limit exceeded"),
            "{errors:?}"
        );
    }
    let nested = format!("{}{}", "[".repeat(126), "]".repeat(126));
    assert!(errors(&format!("{{\"mode\": {nested}}}"))[0].starts_with("mode: [[["));
}

#[test]
fn duplicates_are_refused_wherever_they_are() {
    refused(
        r#"{"mode": "off", "mode": "off"}"#,
        &["mode: \"off\" is not allowed, want this key only once"],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1}, "a": {"limit": 2}}}"#,
        &["rate_limits.a: {\"limit\":2} is not allowed, want this key only once"],
    );
    refused(
        r#"{"rate_limits": {"a.b": {"limit": 1, "limit": 1}}}"#,
        &["rate_limits[\"a.b\"].limit: 1 is not allowed, want this key only once"],
    );
    refused(
        r#"{"upstreams": {"a": {"endpoints": [{"address": "[2001:DB8:0::1]:80"}, {"address": "[2001:db8::1]:80"}]}}}"#,
        &[
            "upstreams.a.endpoints[1].address: \"[2001:db8::1]:80\" is not allowed, want each \
             address only once",
        ],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1}}, "routes": [{"name": "r", "rate_limits": ["a", "a"]}]}"#,
        &["routes[0].rate_limits[1]: \"a\" is not allowed, want each item only once"],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1, "key": [{"header": "X-A"}, "host", {"header": "x-a"}]}}}"#,
        &["rate_limits.a.key[2]: {\"header\":\"x-a\"} is not allowed, want each item only once"],
    );
    refused(
        r#"{"routes": [{"name": "r", "match": {"headers": {"X-A": "1", "x-a": "2"}, "methods": ["get", "GET"]}}]}"#,
        &[
            "routes[0].match.methods[1]: \"GET\" is not allowed, want each item only once",
            "routes[0].match.headers.x-a: \"2\" is not allowed, want this name only once, \
             whatever its case",
        ],
    );
    refused(
        r#"{"health": {"livez": "/health", "readyz": null, "startupz": "/x"}}"#,
        &["health.health: \"/health\" is not allowed, want a path of its own"],
    );
    refused(
        r#"{"rate_limits": {"a": {"limit": 1, "key": ["client_ip"], "overrides": [
            {"key": ["2001:db8::1"], "limit": 1}, {"key": ["2001:DB8::2"], "limit": 2}]}}}"#,
        &[
            "rate_limits.a.overrides[1].key: \"2001:DB8::2\" is not allowed, want each key only \
             once",
        ],
    );
}

#[test]
fn numbers_are_judged_exactly() {
    let want = "is not allowed, want an integer from 1 to 1000000000";
    for (number, shown) in [
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("1e300", "1e+300"),
        ("1e-400", "0.0"),
        ("-0", "-0.0"),
        ("0", "0"),
        ("0.50", "0.5"),
        ("1.000001", "1.000001"),
        ("1000000001", "1000000001"),
        ("true", "true"),
        ("\"5\"", "\"5\""),
        ("null", "null"),
        ("{}", "{}"),
        ("[]", "[]"),
    ] {
        refused(
            &format!(r#"{{"rate_limits": {{"a": {{"limit": {number}}}}}}}"#),
            &[&format!("rate_limits.a.limit: {shown} {want}")],
        );
    }
    for (number, limit) in [("1", 1), ("1e9", 1_000_000_000), ("5.0", 5), ("1E+2", 100)] {
        assert_eq!(
            good(&format!(
                r#"{{"rate_limits": {{"a": {{"limit": {number}}}}}}}"#
            ))
            .rate_limits[0]
                .quota
                .limit,
            limit
        );
    }
}

#[test]
fn at_most_64_errors_are_listed() {
    let routes: Vec<_> = (0..100).map(|_| "{}").collect();
    let errors = errors(&format!("{{\"routes\": [{}]}}", routes.join(",")));
    assert_eq!(errors.len(), 65);
    assert_eq!(errors[64], "and 36 more");
}

#[test]
fn values_are_shown_short() {
    let error = &errors(&format!("{{\"mode\": \"{}\"}}", "ä".repeat(10_000)))[0];
    assert!(error.ends_with("ä... is not allowed, want one of \"enforce\", \"shadow\", \"off\""));
    assert_eq!(
        error.split(" is not").next().unwrap().chars().count(),
        "mode: ".len() + 64
    );
    let error = &errors(&format!("{{\"{}\": 1}}", "k".repeat(100_000)))[0];
    assert!(error.len() < 1000, "{}", error.len());
    assert_eq!(
        errors("{\"mode\": \"a\\nb\\u001b[31m\"}")[0]
            .lines()
            .count(),
        1
    );
}

#[test]
fn secrets_are_not_shown() {
    for document in [
        r#"{"admin": {"token": "geheim", "x": 1}}"#,
        r#"{"admin": {"token": ["geheim"]}}"#,
        r#"{"token": "geheim"}"#,
    ] {
        let errors = errors(document).join("\n");
        assert!(
            errors.contains("***") && !errors.contains("geheim"),
            "{errors}"
        );
    }
}
