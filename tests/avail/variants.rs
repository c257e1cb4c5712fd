//! The three that are compared, each as an Envoy's bootstrap for a world.
//!
//! - Plain: round robin and the route's timeout.
//! - Native: what Envoy's own filters can do, tuned once for all scenarios. Its numbers come from
//!   the world's endpoints, slots, service time and deadline, as a careful operator would have
//!   measured them; what will go wrong it does not know.
//! - haven: `haven.json`, the same for all scenarios but for addresses and the deadline.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::config::{seconds, socket_address};
use super::support::haven_wasm;
use super::world::{Path, World};

/// Who stands in front of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Envoy as it comes.
    Plain,
    /// Envoy's own filters, tuned.
    Native,
    /// haven.
    Haven,
}

impl Variant {
    /// All three, in the order of the report.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Native, Self::Haven];

    /// Its name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Native => "native",
            Self::Haven => "haven",
        }
    }
}

/// The proxy's timeout: a little less than the client's, so that its answer still arrives.
const TIMEOUT: f64 = 0.95;
/// A try's share of it with haven, as in envoy.yaml.
const PER_TRY: f64 = 0.4;
/// The same with Envoy's own filters: with less, more tries of an overload are given up at work.
const NATIVE_PER_TRY: f64 = 0.5;

const HAVEN: &str = include_str!("haven.json");
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const BALANCING: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// The bootstrap, on free loopback ports.
pub fn bootstrap(variant: Variant, world: &World, endpoints: &[SocketAddr]) -> String {
    let mut cluster = cluster(endpoints);
    let mut filters = Vec::new();
    let mut routes = vec![json!({
        "match": {"prefix": "/"},
        "route": {"cluster": "service", "timeout": seconds(request_timeout(world))},
    })];
    match variant {
        Variant::Plain => {}
        Variant::Native => {
            merge(&mut cluster, native_cluster(world));
            filters.push(native_rate_limit(world));
            routes = native_routes(world);
        }
        Variant::Haven => {
            merge(&mut cluster, haven_cluster());
            filters.push(haven_filter(&filter_json(world, endpoints)));
            routes[0]["route"]["retry_policy"] = other_hosts();
        }
    }
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{FILTERS}.router.v3.Router")},
    }));
    let manager = json!({
        "@type": format!("{NETWORK}.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "ingress",
        "use_remote_address": true,
        // The client puts all of its requests on one connection: none may wait there.
        "http2_protocol_options": {"max_concurrent_streams": 4096},
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": routes,
            "include_attempt_count_in_response": true,
        }]},
    });
    let loopback = socket_address(SocketAddr::from(([127, 0, 0, 1], 0)));
    json!({
        "admin": {"address": loopback},
        "static_resources": {
            "listeners": [{
                "name": "avail",
                "address": loopback,
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager,
                }]}],
            }],
            "clusters": [cluster],
        },
    })
    .to_string()
}

/// haven's configuration for a world.
pub fn filter_json(world: &World, endpoints: &[SocketAddr]) -> String {
    let list: Vec<_> = endpoints
        .iter()
        .map(|endpoint| json!({"address": endpoint.to_string()}))
        .collect();
    let request = request_timeout(world);
    let text = |time: Duration| format!("{}ms", time.as_millis());
    HAVEN
        .replace("\"{{endpoints}}\"", &Value::from(list).to_string())
        .replace("{{request}}", &text(request))
        .replace("{{per_try}}", &text(request.mul_f64(PER_TRY)))
}

fn request_timeout(world: &World) -> Duration {
    world.deadline.mul_f64(TIMEOUT)
}

fn merge(into: &mut Value, fields: Value) {
    if let Value::Object(fields) = fields {
        for (name, value) in fields {
            into[name] = value;
        }
    }
}

/// What all three have: endpoints, a time to connect, and bounds that are no bounds.
fn cluster(endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|endpoint| json!({"endpoint": {"address": socket_address(*endpoint)}}))
        .collect();
    json!({
        "name": "service",
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192,
            "max_retries": 256,
        }]},
        "load_assignment": {"cluster_name": "service", "endpoints": [{"lb_endpoints": endpoints}]},
    })
}

// --- Envoy's own

fn native_cluster(world: &World) -> Value {
    // What is in work and half as much in the queues: nothing of it waits for a try's time. One
    // bound for all routes: Envoy counts its two priorities apart, and with a bound of its own the
    // route that may be shed is refused in ordinary times too where slots are few.
    let requests = world.endpoints * world.slots * 3 / 2;
    let threshold = json!({
        "max_connections": 8192, "max_pending_requests": 8192, "max_requests": requests,
        "retry_budget": {"budget_percent": {"value": 20.0}, "min_retry_concurrency": 10},
    });
    // Two drawn at random, Envoy's default. A scan of all hosts finds a dead one, which has nothing
    // in flight, again and again: no retry would get past it.
    let least_request = format!("{BALANCING}.least_request.v3.LeastRequest");
    json!({
        "load_balancing_policy": {"policies": [{"typed_extension_config": {
            "name": "envoy.load_balancing_policies.least_request",
            "typed_config": {"@type": least_request},
        }}]},
        "common_lb_config": {"healthy_panic_threshold": {"value": 30.0}},
        "circuit_breakers": {"thresholds": [threshold]},
        "health_checks": [{
            "timeout": "0.5s", "interval": "1s", "no_traffic_interval": "1s",
            "unhealthy_threshold": 2, "healthy_threshold": 1,
            "http_health_check": {"path": "/health"},
        }],
        // The failure percentage is for an endpoint that fails now and then; a single one of three
        // is never out by the success rate's standard deviation. Not of timeouts: they are shared
        // in an overload.
        "outlier_detection": {
            "interval": "0.5s", "base_ejection_time": "3s", "max_ejection_time": "10s",
            "max_ejection_percent": 34,
            "split_external_local_origin_errors": true,
            "consecutive_5xx": 5, "enforcing_consecutive_5xx": 100,
            "consecutive_gateway_failure": 5, "enforcing_consecutive_gateway_failure": 100,
            "consecutive_local_origin_failure": 5,
            "enforcing_consecutive_local_origin_failure": 100,
            "failure_percentage_threshold": 35, "failure_percentage_minimum_hosts": 2,
            "failure_percentage_request_volume": 10,
            "enforcing_failure_percentage": 100,
            "enforcing_failure_percentage_local_origin": 0,
        },
    })
}

fn native_routes(world: &World) -> Vec<Value> {
    let route = |path: Path| {
        let mut retry = other_hosts();
        merge(
            &mut retry,
            json!({
                "retry_on": "connect-failure,refused-stream,reset,gateway-error",
                "num_retries": 2,
                "per_try_timeout": seconds(request_timeout(world).mul_f64(NATIVE_PER_TRY)),
            }),
        );
        json!({
            "match": {"prefix": path.text()},
            "route": {
                "cluster": "service", "timeout": seconds(request_timeout(world)),
                "retry_policy": retry,
            },
        })
    };
    [Path::Critical, Path::Sheddable, Path::Bad]
        .map(route)
        .into()
}

/// A quarter of the capacity for each client: of what comes in ordinary times, several times as
/// much as any client sends.
fn native_rate_limit(world: &World) -> Value {
    let tokens = (world.capacity() / 4.0 / 4.0).ceil().max(1.0);
    let of_client = json!({
        "max_tokens": 2.0 * tokens, "tokens_per_fill": tokens, "fill_interval": "0.25s",
    });
    let of_all = json!({
        "max_tokens": 1_000_000, "tokens_per_fill": 1_000_000, "fill_interval": "1s",
    });
    json!({
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": format!("{FILTERS}.local_ratelimit.v3.LocalRateLimit"),
            "stat_prefix": "per_client",
            "token_bucket": of_all,
            "filter_enabled": {"default_value": {"numerator": 100}},
            "filter_enforced": {"default_value": {"numerator": 100}},
            "max_dynamic_descriptors": 1024,
            "descriptors": [{"entries": [{"key": "remote_address"}], "token_bucket": of_client}],
            "rate_limits": [{"actions": [{"remote_address": {}}]}],
        },
    })
}

fn other_hosts() -> Value {
    let kind =
        "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    json!({
        "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": kind},
        }],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
    })
}

// --- haven, as envoy.yaml has it

fn haven_cluster() -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "load_balancing_policy": {"policies": [{"typed_extension_config": {
            "name": "envoy.load_balancing_policies.override_host",
            "typed_config": {
                "@type": format!("{BALANCING}.override_host.v3.OverrideHost"),
                "override_host_sources": [{"header": "x-haven-upstream"}],
                "fallback_policy": {"policies": [{"typed_extension_config": {
                    "name": "envoy.load_balancing_policies.round_robin",
                    "typed_config": {"@type": format!("{BALANCING}.round_robin.v3.RoundRobin")},
                }}]},
            },
        }}]},
        "typed_extension_protocol_options": {options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http_protocol_options": {}},
            "http_filters": [
                {
                    "name": "envoy.filters.http.header_mutation",
                    "typed_config": {
                        "@type": format!("{FILTERS}.header_mutation.v3.HeaderMutation"),
                        "mutations": {"request_mutations": [{"remove": "x-haven-upstream"}]},
                    },
                },
                {
                    "name": "envoy.filters.http.upstream_codec",
                    "typed_config": {"@type": format!("{FILTERS}.upstream_codec.v3.UpstreamCodec")},
                },
            ],
        }},
    })
}

fn haven_filter(filter: &str) -> Value {
    let wasm = haven_wasm().unwrap_or_else(|error| panic!("{error}"));
    json!({
        "name": "haven",
        "typed_config": {
            "@type": format!("{FILTERS}.wasm.v3.Wasm"),
            "config": {
                "name": "haven",
                "root_id": "haven",
                "failure_policy": "FAIL_RELOAD",
                "allow_on_headers_stop_iteration": true,
                "vm_config": {
                    "vm_id": "haven",
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": wasm}},
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue", "value": filter,
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    #[test]
    fn haven_takes_its_configuration_in_every_world() {
        let endpoints = [SocketAddr::from(([127, 0, 0, 1], 8_080))];
        for kind in Kind::ALL {
            let text = filter_json(&World::draw(kind, 1), &endpoints);
            let config =
                haven::document::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(config.routes.len(), 3);
        }
    }
}
