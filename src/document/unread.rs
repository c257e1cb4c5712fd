//! `"request_headers": "ignore"`: what then can't be in a configuration.

use super::{Config, Cost, IpSource, KeyPart, Match, Route, Timeout};
use crate::schema::{Errors, Path, choice};

choice! {
    /// Whether requests are looked at.
    enum RequestHeaders {
        /// Their headers are read.
        Read = "read",
        /// They are not.
        Ignore = "ignore",
    }
}

/// What is wanted in place of all that looks at a request.
const NONE: &str = "none with \"request_headers\": \"ignore\": it looks at the request";

/// How a value shows that is not repeated.
const LIST: &str = "[…]";
const OBJECT: &str = "{…}";

/// Reports all that looks at requests in a configuration that says that nothing does.
#[inline(never)]
pub(super) fn check(config: &Config, errors: &mut Errors) {
    if config.request_headers == RequestHeaders::Read {
        return;
    }
    let root = Path::Root;
    let health = root.key("health");
    for (name, path) in [
        ("livez", &config.health.livez),
        ("readyz", &config.health.readyz),
        ("startupz", &config.health.startupz),
        ("health", &config.health.health),
    ] {
        if let Some(path) = path {
            errors.refuse_text(&health.key(name), path, NONE);
        }
    }
    let mut refuse = |at: &Path<'_>, is_there: bool, shown: &str| {
        if is_there {
            errors.refuse_shown(at, shown, NONE);
        }
    };
    refuse(&health.key("grpc"), config.health.grpc, "true");
    let trusts = config.trust_client_retry_headers;
    refuse(&root.key("trust_client_retry_headers"), trusts, "true");
    let client = root.key("client_ip");
    let by_header = config.client_ip.source != IpSource::Connection;
    refuse(&client.key("source"), by_header, "a header");
    let limits = root.key("rate_limits");
    for limit in &config.rate_limits {
        let at = limits.key(&limit.name);
        refuse(&at.key("key"), reads(&limit.key), LIST);
        let by_header = matches!(limit.cost, Cost::Header { .. });
        refuse(&at.key("cost"), by_header, OBJECT);
    }
    let limits = root.key("concurrency_limits");
    for limit in &config.concurrency_limits {
        refuse(
            &limits.key(&limit.name).key("fair"),
            reads(&limit.fair),
            LIST,
        );
    }
    let routes = root.key("routes");
    for (number, route) in config.routes.iter().enumerate() {
        let at = routes.index(number);
        // The first takes all requests.
        refuse(&at, number > 0, OBJECT);
        for (field, is_there) in of_route(route) {
            refuse(&at.key(field), is_there && number == 0, OBJECT);
        }
    }
}

/// The fields of a route that look at its requests, or need to know whether they are gRPC, and
/// whether they are there.
fn of_route(route: &Route) -> [(&'static str, bool); 7] {
    [
        ("match", route.matcher != Match::default()),
        ("upstream", route.upstream.is_some()),
        ("circuit_breaker", route.circuit_breaker.is_some()),
        ("fallback", route.fallback.is_some()),
        ("timeout", route.timeout != Timeout::default()),
        ("retry", route.retry.is_some()),
        ("canary", route.canary.is_some()),
    ]
}

/// Whether a key has parts that stand in a request.
fn reads(parts: &[KeyPart]) -> bool {
    let mut parts = parts.iter();
    !parts.all(|part| matches!(part, KeyPart::ClientIp | KeyPart::Route))
}
