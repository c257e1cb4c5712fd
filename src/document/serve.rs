//! `"serve_endpoints": true`: what then can't be in a configuration.

use super::{Config, Probes};
use crate::schema::{Errors, Path};

/// Reports what a configuration lacks, or has too much, that serves endpoints.
#[inline(never)]
pub(super) fn check(config: &Config, errors: &mut Errors) {
    if !config.serve_endpoints {
        return;
    }
    let root = Path::Root;
    if config.state.is_none() {
        let want = "the state of the haven whose endpoints are served, with \"serve_endpoints\"";
        errors.missing(&root.key("state"), want);
    }
    // Nothing asks over gRPC, whatever stands there.
    let probes = Probes {
        grpc: config.health.grpc,
        ..Probes::default()
    };
    let sections = [
        ("upstreams", config.upstreams.len()),
        ("rate_limits", config.rate_limits.len()),
        ("circuit_breakers", config.circuit_breakers.len()),
        ("concurrency_limits", config.concurrency_limits.len()),
        ("fallbacks", config.fallbacks.len()),
        ("switches", config.switches.len()),
        ("routes", config.routes.len()),
        ("health", usize::from(config.health != probes)),
    ];
    for (section, count) in sections {
        if count > 0 {
            let want = "none with \"serve_endpoints\": it answers nothing else";
            errors.refuse_shown(&root.key(section), "{…}", want);
        }
    }
}
