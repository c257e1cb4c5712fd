//! What a bootstrap of Envoy says that the filter's JSON cannot: here, routes that go round haven.

use serde_json::Value;
use std::collections::BTreeSet;

/// The header that names the cluster, for routes of Envoy that take it from there.
const CLUSTER_HEADER: &str = "x-haven-cluster";

/// Lines for whoever wrote the bootstrap, each with a path: a route where haven is switched off,
/// while a client's own value of a header by which haven speaks to Envoy stays. `overrides`: the
/// override headers of the configuration; those of configurations within the bootstrap are found.
pub fn warnings(bootstrap: &Value, overrides: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    walk(bootstrap, "", &mut |path, value| {
        if is_type(value, "HttpConnectionManager") {
            Manager::new(value, overrides).check(path, &mut lines);
        }
    });
    lines
}

/// Calls `visit` with each value and its path.
fn walk(value: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, value);
    match value {
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{at}]"), visit);
            }
        }
        Value::Object(fields) => {
            let dot = if path.is_empty() { "" } else { "." };
            for (name, field) in fields {
                walk(field, &format!("{path}{dot}{name}"), visit);
            }
        }
        _ => {}
    }
}

fn is_type(value: &Value, name: &str) -> bool {
    let of = value["@type"].as_str().unwrap_or_default();
    of.rsplit('.').next() == Some(name)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn texts(value: &Value) -> impl Iterator<Item = String> {
    items(value).filter_map(|it| Some(it.as_str()?.to_ascii_lowercase()))
}

/// A connection manager, and the filters of haven in it.
struct Manager<'a> {
    config: &'a Value,
    /// Their names, and whether each is off unless a route switches it on.
    filters: Vec<(&'a str, bool)>,
    /// What a client must not set.
    headers: BTreeSet<String>,
}

impl<'a> Manager<'a> {
    fn new(config: &'a Value, overrides: &[String]) -> Self {
        let mut headers: BTreeSet<String> = overrides.iter().cloned().collect();
        let mut filters = Vec::new();
        for filter in items(&config["http_filters"]) {
            let name = filter["name"].as_str().unwrap_or_default();
            let mut found = false;
            // Also within a matcher's extension_config.
            walk(&filter["typed_config"], "", &mut |_, value| {
                if is_type(value, "Wasm") {
                    let own = &value["config"];
                    let json = own["configuration"]["value"].as_str().unwrap_or_default();
                    let parsed = haven::document::parse(json.as_bytes()).ok();
                    let known = |it: &Value| it.as_str().is_some_and(|it| it.contains("haven"));
                    found |=
                        known(&own["name"]) || known(&own["root_id"]) || name.contains("haven");
                    if let Some(parsed) = parsed.filter(|_| !json.is_empty()) {
                        let upstreams = parsed.upstreams.iter();
                        headers.extend(upstreams.map(|it| it.override_header.clone()));
                    }
                }
            });
            if found {
                filters.push((name, filter["disabled"] == true));
            }
        }
        headers.insert(CLUSTER_HEADER.to_owned());
        for early in items(&config["early_header_mutation_extensions"]) {
            let mutations = &early["typed_config"]["mutations"];
            headers.retain(|header| !items(mutations).any(|it| removes(it, header)));
        }
        Self {
            config,
            filters,
            headers,
        }
    }

    fn check(&self, path: &str, lines: &mut Vec<String>) {
        if self.filters.is_empty() || self.headers.is_empty() {
            return;
        }
        if self.config.get("rds").is_some() || self.config.get("scoped_routes").is_some() {
            lines.push(format!(
                "{path}: its routes are not in this file: {}, on each where haven is switched off",
                Self::remedy(&self.headers)
            ));
        }
        let routes = &self.config["route_config"];
        for (at, host) in items(&routes["virtual_hosts"]).enumerate() {
            for (number, route) in items(&host["routes"]).enumerate() {
                let path = format!("{path}.route_config.virtual_hosts[{at}].routes[{number}]");
                self.check_route([routes, host, route], &path, lines);
                let clusters = &route["route"]["weighted_clusters"]["clusters"];
                for (number, cluster) in items(clusters).enumerate() {
                    // What the route says is said already.
                    if cluster.get("typed_per_filter_config").is_some() {
                        let path = format!("{path}.route.weighted_clusters.clusters[{number}]");
                        self.check_route([host, route, cluster], &path, lines);
                    }
                }
            }
        }
    }

    /// `levels`: the route, and what stands around it, the innermost last.
    fn check_route(&self, levels: [&Value; 3], path: &str, lines: &mut Vec<String>) {
        let [.., route] = levels;
        if route.get("direct_response").is_some() || route.get("redirect").is_some() {
            return;
        }
        let off = self.filters.iter().any(|(name, off_by_default)| {
            let said = levels.iter().rev().find_map(|level| {
                let config = level["typed_per_filter_config"].get(*name)?;
                Some(config["disabled"] == true)
            });
            said.unwrap_or(*off_by_default)
        });
        let removed: BTreeSet<_> = levels
            .iter()
            .flat_map(|level| texts(&level["request_headers_to_remove"]))
            .collect();
        let left: BTreeSet<_> = self.headers.difference(&removed).cloned().collect();
        if off && !left.is_empty() {
            lines.push(format!(
                "{path}: haven is switched off here, and clients can choose the endpoint or the \
                 cluster: {}",
                Self::remedy(&left)
            ));
        }
    }

    fn remedy(headers: &BTreeSet<String>) -> String {
        let names: Vec<_> = headers.iter().map(String::as_str).collect();
        format!(
            "remove {} by early_header_mutation_extensions of the connection manager, or by \
             request_headers_to_remove",
            names.join(" and ")
        )
    }
}

/// Whether a header mutation takes away a client's own value of this header.
fn removes(mutation: &Value, header: &str) -> bool {
    let is = |value: &Value| {
        value
            .as_str()
            .is_some_and(|it| it.eq_ignore_ascii_case(header))
    };
    let matcher = &mutation["remove_on_match"]["key_matcher"];
    is(&mutation["remove"])
        || is(&matcher["exact"])
        || matcher["prefix"]
            .as_str()
            .is_some_and(|it| header.starts_with(it))
}
