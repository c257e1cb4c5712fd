//! Endpoints that stand twice: in the filter's JSON, and in the cluster of an Envoy's bootstrap.

use haven::base::ip::canonical_endpoint;
use haven::document::Config;
use serde_json::Value;
use std::collections::BTreeSet;

/// Lines for whoever wrote both, each with a path: an upstream whose list and whose cluster disagree.
/// Only where both name addresses: what DNS or a discovery service will say is not in the file.
pub fn warnings(bootstrap: &Value, config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let clusters = &bootstrap["static_resources"]["clusters"];
    let clusters = clusters.as_array().map_or(&[][..], Vec::as_slice);
    for upstream in &config.upstreams {
        let named = |it: &&Value| it["name"] == upstream.cluster.as_str();
        let Some(found) = clusters.iter().find(named).and_then(addresses) else {
            continue;
        };
        let listed: BTreeSet<_> = upstream
            .endpoints
            .iter()
            .map(|it| it.address.clone())
            .collect();
        if listed.is_empty() {
            continue;
        }
        for (these, those, what) in [
            (&listed, &found, "is not in Envoy's cluster"),
            (&found, &listed, "is missing: it is in Envoy's cluster"),
        ] {
            lines.extend(these.difference(those).map(|address| {
                format!(
                    "upstreams.{}.endpoints: {address} {what} {}",
                    upstream.name, upstream.cluster
                )
            }));
        }
    }
    lines
}

/// The addresses of a cluster's endpoints; `None`: they are not all in the file.
fn addresses(cluster: &Value) -> Option<BTreeSet<String>> {
    if !matches!(cluster["type"].as_str(), None | Some("STATIC")) {
        return None;
    }
    let localities = cluster["load_assignment"]["endpoints"].as_array()?;
    let mut found = BTreeSet::new();
    for endpoint in localities
        .iter()
        .filter_map(|it| it["lb_endpoints"].as_array())
        .flatten()
    {
        let socket = &endpoint["endpoint"]["address"]["socket_address"];
        let (host, port) = (socket["address"].as_str()?, socket["port_value"].as_u64()?);
        found.insert(canonical_endpoint(&haven::policy::discovery::joined(
            host, port,
        ))?);
    }
    Some(found)
}
