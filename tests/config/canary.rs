//! Canaries.

use std::rc::Rc;

use haven::document::{Canary, Color, KeyPart, Marks, Mode, Percent, parse};

use crate::support::{FULL, errors, good, refused};

#[test]
fn the_full_document_is_read_as_it_is_meant() {
    let config = good(FULL);
    let mark = |name: &str, value: Option<&str>| vec![(name.to_owned(), value.map(str::to_owned))];
    let canary = config.routes[0].canary.as_ref().unwrap();
    assert!(Rc::ptr_eq(&canary.upstream, &config.upstreams[1]));
    let breaker = canary.circuit_breaker.as_ref().unwrap();
    assert!(Rc::ptr_eq(breaker, &config.circuit_breakers[1]));
    assert_eq!(
        canary.rules,
        Canary {
            mode: Some(Mode::Shadow),
            percent: Percent(250),
            sticky: vec![KeyPart::ClientIp, KeyPart::Cookie("Id".into())],
            forced: Marks {
                headers: mark("x-canary", Some("true")),
                cookies: mark("Version", Some("2"))
            },
            stable: Marks {
                headers: mark("x-canary", None),
                cookies: mark("version", Some("1"))
            },
            color: Some(Color {
                header: "x-color".into(),
                canary: "green".into(),
                stable: "blue".into()
            }),
        }
    );
}

#[test]
fn a_canary_takes_its_routes_breaker_and_its_upstreams_for_colours() {
    let route = |canary: &str| {
        let upstreams = r#""upstreams": {"v1": {}, "v2": {"override": {"header": "x-pick"}}}, "circuit_breakers": {"b": {}}"#;
        format!(
            r#"{{{upstreams}, "routes": [{{"name": "r", "upstream": "v1", "circuit_breaker": "b", "canary": {canary}}}]}}"#
        )
    };
    let config = parse(route(r#"{"upstream": "v2", "color_header": "x-c"}"#).as_bytes()).unwrap();
    let canary = config.routes[0].canary.clone().unwrap();
    assert_eq!(canary.rules.percent, Percent(0));
    let breaker = canary.circuit_breaker.as_ref().unwrap();
    assert!(Rc::ptr_eq(breaker, &config.circuit_breakers[0]));
    assert!(Rc::ptr_eq(&canary.upstream, &config.upstreams[1]));
    assert_eq!(
        canary.rules.color,
        Some(Color {
            header: "x-c".into(),
            canary: "v2".into(),
            stable: "v1".into()
        })
    );
    refused(
        &route(r#"{"upstream": "v1"}"#),
        &[
            "routes[0].canary.upstream: \"v1\" is not allowed, want another upstream than the \
             route's",
        ],
    );
    refused(
        &route(r#"{"upstream": "v2", "percent": 101, "color": "red"}"#),
        &[
            "routes[0].canary.percent: 101 is not allowed, want a number from 0 to 100 with at \
             most two decimals",
            "routes[0].canary.color: \"red\" is not allowed, want none: there is no color_header",
        ],
    );
    for header in [
        "color",
        "x-envoy-max-retries",
        "x-haven-cluster",
        "x-pick",
        "x-request-id",
    ] {
        let found = errors(&route(&format!(
            r#"{{"upstream": "v2", "color_header": "{header}"}}"#
        )));
        assert!(
            found.len() == 1 && found[0].contains("a header that says nothing else"),
            "{found:?}"
        );
    }
    refused(
        r#"{"upstreams": {"v2": {}}, "routes": [{"name": "r", "canary": {"upstream": "v2"}}]}"#,
        &[
            "routes[0].canary.upstream: \"v2\" is not allowed, want none: the route has no \
             upstream of its own",
        ],
    );
}
