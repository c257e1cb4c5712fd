//! What is valid and contradicts itself: a line for each, with its path.

use crate::support::good;
use serde_json::{Value, json};

fn warnings(config: &Value) -> Vec<String> {
    good(&config.to_string()).warnings()
}

/// A route to two endpoints, with these fields.
fn route(fields: Value) -> Value {
    let mut config = json!({
        "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]}},
        "routes": [{"name": "first"}, {"name": "r", "upstream": "u"}]});
    let route = config["routes"][1].as_object_mut().unwrap();
    route.extend(fields.as_object().unwrap().clone());
    config
}

#[test]
fn a_timeout_of_a_try_that_the_whole_never_leaves() {
    let timeout = |per_try: &str, request: Value| {
        warnings(&route(
            json!({"timeout": {"per_try": per_try, "request": request}}),
        ))
    };
    let dynamic = json!({"dynamic": {"quantile": 99, "min": "50ms", "max": "1s"}});
    let found = ["routes[1].timeout.per_try: does nothing: it is no shorter than timeout.request"];
    for request in [json!("1s"), dynamic] {
        assert_eq!(timeout("999ms", request.clone()), [""; 0]);
        assert_eq!(timeout("1s", request.clone()), found);
        assert_eq!(timeout("2s", request), found);
    }
    let alone = route(json!({"timeout": {"per_try": "1s"}}));
    assert_eq!(
        warnings(&alone),
        [""; 0],
        "Envoy's own timeout is not known"
    );
}

#[test]
fn a_retry_that_has_nowhere_to_go_or_is_never_granted() {
    assert_eq!(warnings(&route(json!({"retry": {}}))), [""; 0]);
    let mut one = route(json!({"retry": {}}));
    let endpoints = one["upstreams"]["u"]["endpoints"].as_array_mut().unwrap();
    endpoints.pop();
    assert_eq!(
        warnings(&one),
        [
            "routes[1].retry: has no other endpoint to go to: upstream \"u\" has 10.0.0.1:80 alone, \
             which gets each try"
        ]
    );
    one["routes"][1]["retry"] = json!({"attempts": 0});
    assert_eq!(warnings(&one), [""; 0], "it is switched off");
    one["upstreams"]["u"]["endpoints"] = json!([]);
    one["routes"][1]["retry"] = json!({});
    assert_eq!(warnings(&one), [""; 0], "Envoy knows the endpoints");
    let budget = |min: u32| route(json!({"retry": {"budget": 0, "min_per_second": min}}));
    assert_eq!(warnings(&budget(1)), [""; 0]);
    assert_eq!(
        warnings(&budget(0)),
        ["routes[1].retry: does nothing: a budget of 0 and a min_per_second of 0 allow no retry"]
    );
}

#[test]
fn fair_shares_of_a_limit_that_nothing_uses() {
    let mut config = route(json!({}));
    config["concurrency_limits"] = json!({"c": {"fair": ["client_ip"]}, "plain": {}});
    assert_eq!(
        warnings(&config),
        ["concurrency_limits.c.fair: does nothing: no route and no upstream names this limit"]
    );
    config["routes"][0]["concurrency_limit"] = json!("c");
    assert_eq!(warnings(&config), [""; 0]);
    config["routes"] = json!([{"name": "r", "upstream": "u"}]);
    config["upstreams"]["u"]["concurrency_limit"] = json!("c");
    assert_eq!(warnings(&config), [""; 0]);
}
