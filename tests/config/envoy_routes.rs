//! What the checker warns of in a bootstrap of Envoy.

#[path = "../../examples/check_config/envoy.rs"]
mod envoy;

#[path = "../../examples/check_config/endpoints.rs"]
mod endpoints;

use serde_json::{Value, json};

const OFF: &str = r#"
                typed_per_filter_config:
                  haven: { "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true }
"#;

fn reference() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/envoy.yaml")).unwrap()
}

fn parsed(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

/// The reference with one more route, `{at} {and}`, and these lines taken out.
fn with_route(and: &str, without: &[&str]) -> Vec<String> {
    let place = "              - match: { path_separated_prefix: /api/users }\n";
    let mut text = reference();
    assert!(text.contains(place));
    let route =
        "              - match: { prefix: /bypass }\n                route: { cluster: users }";
    text = text.replace(place, &[route, and, place].concat());
    for line in without {
        assert!(text.contains(line), "{line}");
        text = text.replacen(line, "", 1);
    }
    envoy::warnings(&parsed(&text), &[])
}

const EARLY: [&str; 2] = [
    "              - remove: x-haven-upstream\n",
    "              - remove: x-haven-cluster\n",
];

#[test]
fn the_reference_is_closed_whatever_route_switches_haven_off() {
    assert!(with_route("\n", &EARLY).is_empty(), "no route does");
    assert!(
        with_route(OFF, &[]).is_empty(),
        "it removes the headers early"
    );
}

#[test]
fn a_route_that_switches_haven_off_is_named_with_what_is_left_open() {
    let lines = with_route(OFF, &EARLY);
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert!(
        line.contains(".virtual_hosts[0].routes[1]: haven is switched off"),
        "{line}"
    );
    assert!(
        line.contains("remove x-haven-cluster and x-haven-upstream by"),
        "{line}"
    );
    let lines = with_route(OFF, &EARLY[..1]);
    assert!(lines[0].contains("remove x-haven-upstream by"), "{lines:?}");
    let removed =
        "                request_headers_to_remove: [X-Haven-Upstream, x-haven-cluster]\n";
    assert!(with_route(&[OFF, removed].concat(), &EARLY).is_empty());
    let prefix = reference().replacen(
        EARLY[0],
        "              - remove_on_match: { key_matcher: { prefix: x-haven- } }\n",
        1,
    );
    assert!(envoy::warnings(&parsed(&prefix), &["x-haven-other".to_owned()]).is_empty());
}

/// A bootstrap with one connection manager: haven's filter entry, and the route configuration.
fn small(filter: &Value, routes: &Value) -> Vec<String> {
    let wasm = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {"root_id": "haven", "configuration": {"value":
            json!({"upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}], "override": {"header": "x-mine"}}}}).to_string()}}});
    let mut entry = json!({"name": "limits", "typed_config": wasm});
    for (name, value) in filter.as_object().unwrap() {
        entry[name] = value.clone();
    }
    let manager = json!({"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "http_filters": [{"name": "other", "typed_config": {}}, entry], "route_config": routes});
    envoy::warnings(&json!({"a": [manager]}), &[])
}

#[test]
fn the_innermost_word_counts_and_headers_are_those_of_the_configuration() {
    let set = |off: bool| json!({"limits": {"disabled": off}});
    let routes = |all: bool, host: bool, route: Value| json!({"typed_per_filter_config": set(all), "virtual_hosts": [{"typed_per_filter_config": set(host), "routes": [route]}]});
    let route = json!({"route": {"cluster": "c"}});
    let plain = json!({"virtual_hosts": [{"routes": [route]}]});
    assert!(small(&json!({}), &plain).is_empty());
    let lines = small(&json!({"disabled": true}), &plain);
    assert!(
        lines[0].starts_with("a[0].route_config.virtual_hosts[0].routes[0]: "),
        "{lines:?}"
    );
    assert!(
        lines[0].contains("remove x-haven-cluster and x-mine by"),
        "{lines:?}"
    );
    assert_eq!(
        small(&json!({}), &routes(true, true, route.clone())).len(),
        1
    );
    assert_eq!(
        small(&json!({}), &routes(true, false, route.clone())).len(),
        0
    );
    let mut on = route.clone();
    on["typed_per_filter_config"] = set(false);
    assert_eq!(
        small(&json!({"disabled": true}), &routes(true, true, on)).len(),
        0
    );
    let answered =
        json!({"direct_response": {"status": 200}, "typed_per_filter_config": set(true)});
    assert_eq!(small(&json!({}), &routes(false, false, answered)).len(), 0);
    let weighted = json!({"route": {"weighted_clusters": {"clusters": [{"name": "a"}, {"name": "b", "typed_per_filter_config": set(true)}]}}});
    let lines = small(&json!({}), &routes(false, false, weighted));
    assert!(
        lines[0].contains(".route.weighted_clusters.clusters[1]: "),
        "{lines:?}"
    );
    let rds = envoy::warnings(
        &json!({"@type": "x.HttpConnectionManager", "rds": {}, "http_filters": [
        {"name": "haven", "typed_config": {"@type": "x.Wasm"}}]}),
        &["x-mine".to_owned()],
    );
    assert!(rds[0].contains("not in this file"), "{rds:?}");
}

#[test]
fn no_document_is_too_odd() {
    for odd in [
        "",
        "a",
        "[]",
        "{\"@type\": 1}",
        "http_filters: 3",
        "{\"@type\": a.HttpConnectionManager, http_filters: [1, {name: 2}]}",
    ] {
        assert!(envoy::warnings(&parsed(odd), &[]).is_empty(), "{odd}");
    }
}

#[test]
fn a_list_and_a_cluster_that_disagree_are_named() {
    let config = |endpoints: &str| {
        let json =
            format!(r#"{{"upstreams": {{"u": {{"cluster": "c", "endpoints": {endpoints}}}}}}}"#);
        haven::document::parse(json.as_bytes()).unwrap()
    };
    let cluster = |kind: &str, hosts: &[&str]| {
        let endpoint = |host: &&str| {
            json!({"endpoint": {"address":
            {"socket_address": {"address": host, "port_value": 80}}}})
        };
        let hosts: Vec<_> = hosts.iter().map(endpoint).collect();
        json!({"static_resources": {"clusters": [{"name": "other"}, {"name": "c", "type": kind,
            "load_assignment": {"endpoints": [{"lb_endpoints": hosts}]}}]}})
    };
    let listed = r#"[{"address": "10.0.0.1:80"}, {"address": "[::1]:80"}]"#;
    let of = |bootstrap: &Value, endpoints| endpoints::warnings(bootstrap, &config(endpoints));
    assert_eq!(
        of(&cluster("STATIC", &["10.0.0.2", "0:0::1"]), listed),
        [
            "upstreams.u.endpoints: 10.0.0.1:80 is not in Envoy's cluster c",
            "upstreams.u.endpoints: 10.0.0.2:80 is missing: it is in Envoy's cluster c",
        ]
    );
    for (bootstrap, endpoints) in [
        (cluster("STATIC", &["10.0.0.1", "::1"]), listed),
        (cluster("STRICT_DNS", &["users.local"]), listed),
        (cluster("STATIC", &["users.local"]), listed),
        (cluster("STATIC", &["10.0.0.9"]), "[]"),
        (json!({}), listed),
        (json!([1]), listed),
    ] {
        assert!(of(&bootstrap, endpoints).is_empty(), "{bootstrap}");
    }
    // The reference agrees with itself.
    let text = reference();
    let json = envoy_json(&parsed(&text));
    let config = haven::document::parse(json.as_bytes()).unwrap();
    assert!(endpoints::warnings(&parsed(&text), &config).is_empty());
}

/// The filter's JSON in a bootstrap.
fn envoy_json(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let own = &value["configuration"]["value"];
            let inside = || fields.values().map(envoy_json).find(|it| !it.is_empty());
            own.as_str()
                .map(str::to_owned)
                .or_else(inside)
                .unwrap_or_default()
        }
        Value::Array(items) => items
            .iter()
            .map(envoy_json)
            .find(|it| !it.is_empty())
            .unwrap_or_default(),
        _ => String::new(),
    }
}
