//! Routes and their switches.

use std::rc::Rc;

use haven::document::{HostMatch, Mode, PathMatch};

use crate::support::{FULL, errors, good, refused, refuses};

#[test]
fn the_full_document_is_read_as_it_is_meant() {
    let config = good(FULL);
    let [all, exact, prefix, pattern] = &config.routes[..] else {
        panic!()
    };
    assert_eq!(all.matcher.path, PathMatch::Prefix(String::new()));
    assert_eq!(all.matcher.methods, ["GET", "PURGE"]);
    assert_eq!(
        all.matcher.hosts,
        [
            HostMatch::Exact("example.com".into()),
            HostMatch::Suffix(".example.com".into()),
            HostMatch::Exact("[::1]".into()),
        ]
    );
    assert_eq!(
        all.matcher.headers,
        [("x-a".into(), Some("1".into())), ("x-b".into(), None)]
    );
    let (upstream, fallback) = (all.upstream.as_ref(), all.fallback.as_ref());
    assert!(Rc::ptr_eq(upstream.unwrap(), &config.upstreams[0]));
    assert!(Rc::ptr_eq(fallback.unwrap(), &config.fallbacks[1]));
    let breaker = all.circuit_breaker.as_ref().unwrap();
    assert!(Rc::ptr_eq(breaker, &config.circuit_breakers[0]));
    let [first, second] = &all.rate_limits[..] else {
        panic!()
    };
    assert!(Rc::ptr_eq(first, &config.rate_limits[1]));
    assert!(Rc::ptr_eq(second, &config.rate_limits[0]));
    assert_eq!(all.mode, Some(Mode::Off));

    assert_eq!(exact.matcher.path, PathMatch::Exact("/a/b".into()));
    assert_eq!((&exact.upstream, &exact.circuit_breaker), (&None, &None));
    assert_eq!((&exact.fallback, exact.mode), (&None, None));
    assert_eq!(prefix.matcher.path, PathMatch::Prefix("/api/users".into()));
    assert_eq!(
        pattern.matcher.path,
        PathMatch::Pattern(vec![Some("users".into()), None, Some("orders".into())])
    );
}

#[test]
fn routes_are_checked() {
    let path = "want a path that starts with \"/\", percent-encoded, without \"?\" and \"#\"";
    let pattern = "want a path that starts with \"/\" like \"/users/{id}\", where each placeholder is a whole segment with a name of its own";
    let host = "want a host without a port like \"example.com\", \"*.example.com\" or \"*\"";
    for (field, values, want) in [
        ("path", &["", "a", "/a?b", "/a#b", "/ä", "/a b"][..], path),
        ("prefix", &["api", "*"], path),
        (
            "pattern",
            &["users", "/a{id}", "/{a}/{a}", "/{}", "/{a}b", "/{{a}}"],
            pattern,
        ),
    ] {
        for value in values {
            refused(
                &format!(r#"{{"routes": [{{"name": "r", "match": {{"{field}": "{value}"}}}}]}}"#),
                &[&format!(
                    "routes[0].match.{field}: \"{value}\" is not allowed, {want}"
                )],
            );
        }
    }
    for value in [
        "",
        "a:80",
        "a..b",
        ".a",
        "*a",
        "a.*",
        "*.",
        "ä.de",
        "a b",
        "[1.2.3.4]",
        "http://a",
    ] {
        refused(
            &format!(r#"{{"routes": [{{"name": "r", "match": {{"hosts": ["{value}"]}}}}]}}"#),
            &[&format!(
                "routes[0].match.hosts[0]: \"{value}\" is not allowed, {host}"
            )],
        );
    }
    refuses(
        r#"{"routes": [@]}"#,
        &[
            ("5", "routes[0]: 5 is not allowed, want an object"),
            (
                r#"{"name": ""}"#,
                "routes[0].name: \"\" is not allowed, want a name: 1 to 64 of A-Z a-z 0-9 . _ : \
                 / -",
            ),
            (
                "{}",
                "routes[0].name: nothing is not allowed, want a name: 1 to 64 of A-Z a-z 0-9 . _ \
                 : / - (required)",
            ),
            (
                r#"{"name": "r", "match": {"path": "/a", "prefix": "/b"}}"#,
                "routes[0].match.prefix: \"/b\" is not allowed, want no prefix besides the path",
            ),
            (
                r#"{"name": "r", "match": {"methods": ["GET POST"]}}"#,
                "routes[0].match.methods[0]: \"GET POST\" is not allowed, want an HTTP method",
            ),
            (
                r#"{"name": "r", "match": {"headers": {"a b": "c"}}}"#,
                "routes[0].match.headers: \"a b\" is not allowed, want a header name",
            ),
            (
                r#"{"name": "r", "fallback": "f"}"#,
                "routes[0].fallback: \"f\" is not allowed, want one of the fallbacks: there are \
                 none",
            ),
            (
                r#"{"name": "r", "criticality": "vital"}"#,
                "routes[0].criticality: \"vital\" is not allowed, want one of \"critical_plus\", \
                 \"critical\", \"sheddable_plus\", \"sheddable\"",
            ),
        ],
    );
    refused(
        r#"{"routes": [{"name": "r", "circuit_breaker": "b"}], "circuit_breakers": {"b": {"scope": "upstream"}}}"#,
        &[
            "routes[0].circuit_breaker: \"b\" is not allowed, want a circuit breaker without \"scope\": \"upstream\", for the route has no \
           upstream",
        ],
    );
    let many: Vec<_> = (0..1001)
        .map(|i| format!("{{\"name\": \"{i}\"}}"))
        .collect();
    assert!(
        errors(&format!("{{\"routes\": [{}]}}", many.join(",")))[0]
            .ends_with("want a list of at most 1000 items, each an object")
    );
    let many: Vec<_> = (0..1001).map(|i| format!("\"{i}\": {{}}")).collect();
    assert!(
        errors(&format!("{{\"upstreams\": {{{}}}}}", many.join(",")))[0]
            .ends_with("want an object with at most 1000 entries")
    );
}

#[test]
fn switches_are_on_or_off() {
    refused(
        r#"{"switches": {"s": true, "t": "of"}, "routes": [{"name": "r", "switch": "u"}]}"#,
        &[
            "switches.s: true is not allowed, want one of \"on\", \"off\"",
            "switches.t: \"of\" is not allowed, want one of \"on\", \"off\"",
            "routes[0].switch: \"u\" is not allowed, want one of the switches: \"s\", \"t\"",
        ],
    );
    let config =
        good(r#"{"switches": {"s": "off", "t": "on"}, "routes": [{"name": "r", "switch": "s"}]}"#);
    assert_eq!(
        config
            .switches
            .iter()
            .map(|s| (s.name.as_str(), s.on))
            .collect::<Vec<_>>(),
        [("s", false), ("t", true)]
    );
    let switch = config.routes[0].switch.as_ref().unwrap();
    assert!(Rc::ptr_eq(switch, &config.switches[0]));
}
