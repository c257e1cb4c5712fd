//! Request headers that only the proxy and haven may set: a client's own are removed.

use crate::base::headers::NameSet;
use crate::document::Config;

/// The request header that names the cluster, for routes of the proxy that take it from there.
pub(super) const CLUSTER_HEADER: &str = "x-haven-cluster";

/// Headers that Envoy's router acts on. It drops a client's own only if it takes the client for
/// external, which one on the proxy's own machine is not.
const ROUTER_HEADERS: &[&str] = &[
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-max-retries",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
];

/// The reserved headers under this configuration, lower case.
pub(super) fn reserved_headers(config: &Config) -> NameSet {
    let router_headers = if config.trust_client_retry_headers {
        &[]
    } else {
        ROUTER_HEADERS
    };
    let mut names = NameSet::default();
    [CLUSTER_HEADER]
        .iter()
        .chain(router_headers)
        .for_each(|name| names.add(name));
    for upstream in &config.upstreams {
        names.add(&upstream.override_header);
    }
    for route in &config.routes {
        if let Some(color) = route.canary.as_ref().and_then(|it| it.rules.color.as_ref()) {
            names.add(&color.header);
        }
    }
    names
}
