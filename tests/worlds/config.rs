//! What a sensible user would write for a world, in the manner of envoy.yaml.

use crate::draw::{Draw, MS, SECOND, Time};
use crate::world::World;
use serde_json::{Value, json};

/// A protective policy that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Retries.
    Retry,
    /// Timeouts of a try.
    PerTry,
    /// The endpoints' breakers.
    EndpointBreaker,
    /// The routes' breakers.
    RouteBreaker,
    /// The concurrency limit.
    Limit,
    /// Active health checks.
    Checks,
    /// Fair shares of the concurrency limit.
    Fair,
}

impl Policy {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::Retry,
        Self::PerTry,
        Self::EndpointBreaker,
        Self::RouteBreaker,
        Self::Limit,
        Self::Checks,
        Self::Fair,
    ];

    /// Its name in tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::PerTry => "per_try",
            Self::EndpointBreaker => "ep_breaker",
            Self::RouteBreaker => "rt_breaker",
            Self::Limit => "limit",
            Self::Checks => "checks",
            Self::Fair => "fair",
        }
    }

    /// The configuration without it; `None`: it is not in it.
    pub fn removed_from(self, config: &Value) -> Option<Value> {
        let mut without = config.clone();
        let upstream = |without: &mut Value, field: &str| {
            without["upstreams"]["u"].as_object_mut()?.remove(field)
        };
        match self {
            Self::EndpointBreaker => _ = upstream(&mut without, "circuit_breaker"),
            Self::Limit => _ = upstream(&mut without, "concurrency_limit"),
            Self::Checks => _ = upstream(&mut without, "health_check"),
            Self::Fair => {
                _ = without["concurrency_limits"]["limit"]
                    .as_object_mut()?
                    .remove("fair")
            }
            Self::Retry | Self::PerTry | Self::RouteBreaker => {
                for route in without["routes"].as_array_mut()? {
                    let route = route.as_object_mut()?;
                    match self {
                        Self::Retry => _ = route.remove("retry"),
                        Self::RouteBreaker => _ = route.remove("circuit_breaker"),
                        _ => _ = route.get_mut("timeout")?.as_object_mut()?.remove("per_try"),
                    }
                }
            }
        }
        (without != *config).then_some(without)
    }
}

/// The address of an endpoint.
pub fn address(endpoint: usize) -> String {
    format!("10.0.0.{}:80", endpoint + 1)
}

fn millis(time: Time) -> String {
    format!("{}ms", time / MS)
}

/// Everything on.
pub fn draw(draw: &Draw, world: &World) -> Value {
    let endpoints: Vec<Value> = (0..world.endpoints)
        .map(|at| json!({"address": address(at)}))
        .collect();
    let policies = [
        "least_request",
        "least_request",
        "least_request",
        "peak_ewma",
        "round_robin",
    ];
    let of_endpoint = [
        json!({"consecutive_failures": 5, "open_duration": "10s", "backoff_multiplier": 2}),
        json!({"consecutive_failures": 5, "open_duration": "2s", "backoff_multiplier": 2}),
        json!({"failure_rate_threshold": 50, "minimum_calls": 10, "open_duration": "5s"}),
    ];
    let of_route = json!({"failure_rate_threshold": 90, "minimum_calls": 20,
        "window": {"type": "time", "size": "2s"}, "open_duration": "100ms",
        "half_open_calls": draw.pick(&[1, 2])});
    let limit = if draw.percent(85) {
        json!({"algorithm": "adaptive", "max_limit": 4000, "fair": [{"header": "x-client"}]})
    } else {
        // What is answered in time, as who knows his service would reckon.
        let in_time = world.capacity() * world.routes[0].timeout as f64 / SECOND as f64;
        let limit = (in_time * draw.between(0.5, 0.9)).max((world.endpoints * world.slots) as f64);
        json!({"algorithm": "fixed", "limit": limit.ceil() as u64,
            "fair": [{"header": "x-client"}]})
    };
    let interval = draw.pick(&["1s", "2s", "5s"]);
    let check = json!({"protocol": "http", "path": "/health", "interval": interval,
        "timeout": draw.pick(&["500ms", "1s"]), "healthy_threshold": 2, "unhealthy_threshold": 3});
    let every = json!([
        "overload",
        "circuit_open",
        "no_endpoint",
        "deadline",
        "upstream_error",
        "timeout"
    ]);
    let empty =
        json!({"respond": {"status": 200, "content_type": "application/json", "body": "[]"}});
    let steps = if draw.percent(15) {
        json!([{"stale": {"max_age": "5m"}}, empty])
    } else {
        json!([empty])
    };
    let attempts = draw.pick(&[1, 1, 2]);
    let on = draw.pick(&[
        json!(["connect-failure", "reset", "gateway-error"]),
        json!(["connect-failure", "reset", "5xx"]),
    ]);
    let post_retry = draw.percent(50);
    let share = if attempts == 2 {
        0.3
    } else {
        draw.between(0.35, 0.45)
    };
    let has_fallback = draw.percent(80);
    let routes: Vec<Value> = world
        .routes
        .iter()
        .enumerate()
        .map(|(at, route)| {
            let per_try = (route.timeout as f64 * share) as Time;
            let mut timeout =
                json!({"request": millis(route.timeout), "deadline_header": "x-deadline"});
            // Who sets a timeout of a try leaves it what tries usually take.
            if per_try > world.service.usual_most() && !route.post {
                timeout["per_try"] = millis(per_try).into();
            }
            let mut made = json!({"name": format!("r{at}"), "match": {"prefix": format!("/r{at}")},
                "upstream": "u", "circuit_breaker": "route", "criticality": route.criticality,
                "timeout": timeout});
            if !route.post {
                made["retry"] = json!({"attempts": attempts, "on": on,
                    "min_per_second": 10});
            } else if post_retry {
                made["retry"] = json!({"attempts": attempts, "min_per_second": 10,
                    "on": ["connect-failure", "refused-stream", "reset-before-request"],
                    "methods": ["POST"]});
            }
            if has_fallback && !route.post {
                made["fallback"] = json!("f");
            }
            made
        })
        .collect();
    json!({
        "upstreams": {"u": {
            "endpoints": endpoints,
            "load_balancer": {"policy": draw.pick(&policies),
                "panic_threshold": draw.pick(&[50, 30])},
            "override": {"attempt_count": draw.percent(70)},
            "circuit_breaker": "endpoint", "concurrency_limit": "limit", "health_check": check}},
        "circuit_breakers": {"endpoint": draw.pick(&of_endpoint), "route": of_route},
        "concurrency_limits": {"limit": limit},
        "fallbacks": {"f": {"on": every, "steps": steps}},
        "routes": routes})
}
