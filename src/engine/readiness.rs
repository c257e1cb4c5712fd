//! What haven reports of the service: health documents, and gRPC health checks.

use super::Engine;
use super::serving::awaits_envoy;
use super::upstream::Upstream;
use crate::base::grpc_health::Serving;
use crate::base::text::number;
use crate::base::time::Moment;
use crate::document::{self, Percent};
use crate::host::{Host, Reply};
use crate::policy::health_check::EndpointHealth;
use crate::policy::probe::{self, Component, HealthStatus};

impl Engine {
    /// The service's health document.
    pub(super) fn health_document<H: Host>(&self, host: &H, now: Moment) -> Reply {
        probe::document(&self.service, &self.components(host, now), host.wall())
    }

    /// The state of what a gRPC health check names; `None`: there is no such thing.
    pub(super) fn serving<H: Host>(&self, host: &H, now: Moment, service: &str) -> Option<Serving> {
        probe::grpc::serving(&self.components(host, now), service)
    }

    /// Whether a gRPC health check can ask for this.
    pub(super) fn has_service(&self, service: &str) -> bool {
        let mut upstreams = self.upstreams.iter();
        service.is_empty() || upstreams.any(|upstream| upstream.config.name == service)
    }

    /// All upstreams, as health documents show them.
    fn components<H: Host>(&self, host: &H, now: Moment) -> Vec<Component<'_>> {
        self.upstreams
            .iter()
            .map(|upstream| component(upstream, host, now))
            .collect()
    }
}

/// An upstream, as health documents show it.
fn component<'u, H: Host>(upstream: &'u Upstream, host: &H, now: Moment) -> Component<'u> {
    let counts = upstream.counts(host, now);
    // An endpoint that may be tried counts: were it not, a proxy taken out of traffic would never
    // try it, and stay out.
    let usable = counts.available.saturating_add(counts.trial);
    let source = upstream.source(now);
    let is_known = source.is_none_or(|source| source.is_known);
    let up = is_up(&upstream.config, usable, counts.members);
    let (status, why) = if !is_known && !up {
        (HealthStatus::Unknown, "none is known yet".into())
    } else if up && usable > 0 && awaits_envoy(&upstream.config, host) {
        (HealthStatus::Unknown, "Envoy has none of them yet".into())
    } else {
        status(upstream, up)
    };
    let error = (status != HealthStatus::Up).then(|| {
        let (usable, members) = (number(usable.into()), number(counts.members.into()));
        let parts = [
            usable.as_str(),
            " of ",
            members.as_str(),
            " endpoints available",
            if why.is_empty() { "" } else { "; " },
            why.as_str(),
        ];
        parts.concat()
    });
    Component {
        name: &upstream.config.name,
        status,
        rt: upstream.response_time(host),
        error,
        source: source.map(|source| source.state.word()),
        source_age: source.map(|source| source.age.as_secs()),
        // Without a canary its requests go where the others go.
        critical: upstream.config.critical && !upstream.only_canary,
    }
}

/// Whether enough of an upstream's endpoints are well.
fn is_up(upstream: &document::Upstream, usable: u32, members: u32) -> bool {
    let enough = |least: Percent| {
        u64::from(usable).saturating_mul(10_000)
            >= u64::from(members).saturating_mul(least.0.into())
    };
    let least = upstream.min_healthy;
    let wants_none = least.is_some_and(|least| least.0 == 0);
    let has_none = upstream.endpoints.is_empty() && upstream.source.is_none();
    has_none || wants_none || (usable > 0 && least.is_none_or(enough))
}

/// What an upstream is in the health document, and the reason of the first endpoint that its source
/// or checks have taken out. Its endpoints' states are those of the last reading: this makes no host
/// call.
fn status(upstream: &Upstream, up: bool) -> (HealthStatus, String) {
    let verdict = upstream.verdicts().find(|verdict| !verdict.is_usable());
    let mut why = verdict.map_or_else(String::new, |verdict| {
        [verdict.word(), ", by its source"].concat()
    });
    let Some(check) = &upstream.config.health_check else {
        return (
            if up {
                HealthStatus::Up
            } else {
                HealthStatus::Down
            },
            why,
        );
    };
    let mut worst: Option<HealthStatus> = None;
    for check_result in upstream.check_results() {
        if check_result.status.is_usable() {
            continue;
        }
        if why.is_empty() {
            // Not its address: anyone may ask.
            why = [
                check_result.status.word(),
                ", ",
                &check_result.reason.text(check_result.detail, check),
            ]
            .concat();
        }
        worst = match (worst, check_result.status) {
            (Some(HealthStatus::Down), _) | (_, EndpointHealth::Down) => Some(HealthStatus::Down),
            (Some(HealthStatus::OutOfService), _) | (_, EndpointHealth::OutOfService) => {
                Some(HealthStatus::OutOfService)
            }
            _ => Some(HealthStatus::Unknown),
        };
    }
    match worst {
        _ if up => (HealthStatus::Up, why),
        Some(worst) => (worst, why),
        None => (HealthStatus::Down, why),
    }
}
