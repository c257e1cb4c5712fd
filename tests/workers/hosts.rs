//! Engines on either proxy: what a configuration asks for and nginx lacks is left out there.

use haven::engine::Engine;
use haven::host::sim::{HostKind, Worker};
use haven::host::{Feature, Platform};
use serde_json::{Value, json};
use std::rc::Rc;

/// The engine of this configuration in a worker.
pub fn engine(worker: &Worker, config: &str) -> Rc<Engine> {
    let parse = |config: &str| {
        haven::document::parse(config.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
    };
    let kind = worker.kind();
    let mut parsed = parse(config);
    if parsed.check_host(kind).is_err() {
        let mut config: Value = serde_json::from_str(config).unwrap();
        fit(&mut config);
        parsed = parse(&config.to_string());
    }
    Rc::new(Engine::new(parsed, worker).unwrap_or_else(|errors| panic!("{errors}")))
}

/// Either proxy, in turn.
pub fn kind_of(seed: u64) -> HostKind {
    [HostKind::Envoy, HostKind::Nginx][(seed % 2) as usize]
}

/// Leaves out what nginx lacks.
fn fit(config: &mut Value) {
    assert_eq!(Feature::ALL.len(), 14, "another one: leave it out here");
    config["health"]["grpc"] = json!(false);
    config["trust_client_retry_headers"] = json!(false);
    config["serve_endpoints"] = json!(false);
    config["discovery"] = json!({});
    for (_, limit) in entries(config, "rate_limits") {
        if limit["algorithm"] == "leaky_bucket" {
            let limit = limit.as_object_mut().unwrap();
            limit.remove("algorithm");
            limit.remove("max_wait");
        }
    }
    for (_, fallback) in entries(config, "fallbacks") {
        let on = [
            "rate_limited",
            "overload",
            "circuit_open",
            "no_endpoint",
            "deadline",
        ];
        fallback["on"] = json!(on);
    }
    for (_, upstream) in entries(config, "upstreams") {
        if let Some(upstream) = upstream.as_object_mut() {
            upstream.remove("steer");
            if upstream.get("endpoints").is_some_and(Value::is_object) {
                upstream.remove("endpoints");
            }
        }
        if upstream["override"].is_object() {
            upstream["override"]["attempt_count"] = json!(false);
        }
    }
    let routes = config.get_mut("routes").and_then(Value::as_array_mut);
    for route in routes.into_iter().flatten() {
        let route = route.as_object_mut().unwrap();
        route.remove("retry");
        if let Some(Value::Object(timeout)) = route.get_mut("timeout") {
            timeout.remove("request");
            timeout.remove("per_try");
        }
    }
}

fn entries<'v>(
    config: &'v mut Value,
    section: &str,
) -> impl Iterator<Item = (&'v String, &'v mut Value)> {
    let section = config.get_mut(section).and_then(Value::as_object_mut);
    section.into_iter().flatten()
}
