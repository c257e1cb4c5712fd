//! Request headers that only the proxy and haven may set: a client's own are removed.

use super::single::SingleValues;
use crate::base::headers::{NameFilter, NameSet};
use crate::document::{Config, IpSource, Outcomes};
use crate::policy::deadline;
use crate::request::EVERY_REQUEST;

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

/// What is looked for in each request under this configuration: all that [`Exchange`] reads in its
/// notes of the headers must be here. A header that is missed here and looked for by name is found all
/// the same, for the price of another walk.
///
/// [`Exchange`]: super::chain::Exchange
pub(super) fn watched(config: &Config, reserved: &NameSet, single: &SingleValues) -> NameFilter {
    let mut names = NameFilter::default();
    let deadlines = config.routes.iter();
    let deadlines = deadlines.filter_map(|route| route.timeout.deadline_header.as_deref());
    let client = match config.client_ip.source {
        IpSource::Connection => None,
        IpSource::XForwardedFor => Some("x-forwarded-for"),
        IpSource::XRealIp => Some("x-real-ip"),
    };
    let all = EVERY_REQUEST.into_iter().chain(deadline::READ);
    let all = all.chain(deadlines).chain(client);
    for name in all.chain(reserved.iter()).chain(single.names()) {
        names.add(name);
    }
    names
}

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
    if config.outcomes == Outcomes::ByException {
        // By which the proxy's access log tells what was retried, and what nobody was asked for.
        names.add("x-envoy-attempt-count");
    }
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
