//! What haven reports of the service: health documents, and gRPC health checks.

use super::Engine;
use super::upstream::Upstream;
use crate::base::grpc_health::Serving;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::config;
use crate::host::{Host, Reply};
use crate::policy::health_check::EndpointHealth;
use crate::policy::probe::{self, Component, HealthStatus};

impl Engine {
    /// The service's health document.
    pub(super) fn health_document<H: Host>(&self, host: &H, now: Nanos) -> Reply {
        probe::document(
            &self.config.service,
            &self.components(host, now),
            host.wall(),
        )
    }

    /// The state of what a gRPC health check names; `None`: there is no such thing.
    pub(super) fn serving<H: Host>(&self, host: &H, now: Nanos, service: &str) -> Option<Serving> {
        probe::grpc::serving(&self.components(host, now), service)
    }

    /// Whether a gRPC health check can ask for this.
    pub(super) fn has_service(&self, service: &str) -> bool {
        service.is_empty()
            || self
                .config
                .upstreams
                .iter()
                .any(|upstream| upstream.name == service)
    }

    /// All upstreams, as health documents show them.
    pub(super) fn components<H: Host>(&self, host: &H, now: Nanos) -> Vec<Component<'_>> {
        self.upstreams
            .iter()
            .zip(&self.config.upstreams)
            .enumerate()
            .map(|(at, (upstream, config))| {
                let census = upstream.census(host, now);
                // An endpoint that may be tried counts: were it not, a proxy taken out of traffic
                // would never try it, and stay out.
                let usable = census.available.saturating_add(census.trial);
                let up = config.endpoints.is_empty()
                    || match config.min_healthy {
                        None => usable > 0,
                        Some(least) => {
                            usable > 0
                                && u64::from(usable).saturating_mul(10_000)
                                    >= u64::from(census.members).saturating_mul(least.0.into())
                        }
                    };
                let (status, why) = self.upstream_status(upstream, config, up);
                let error = (status != HealthStatus::Up).then(|| {
                    let counts = [
                        &number(usable.into()),
                        " of ",
                        &number(census.members.into()),
                        " endpoints available",
                    ];
                    [
                        counts.concat().as_str(),
                        if why.is_empty() { "" } else { "; " },
                        why.as_str(),
                    ]
                    .concat()
                });
                let of = |used: &dyn Fn(&config::Route) -> Option<usize>| {
                    self.config
                        .routes
                        .iter()
                        .filter_map(used)
                        .any(|used| used == at)
                };
                let only_canary = !of(&|route| route.upstream)
                    && of(&|route| Some(route.canary.as_ref()?.upstream));
                Component {
                    name: &config.name,
                    status,
                    rt: upstream.response_time(host),
                    error,
                    // Without a canary its requests go where the others go.
                    critical: !only_canary,
                }
            })
            .collect()
    }

    /// What an upstream is in the health document, and the reason of the first endpoint that checks
    /// have taken out. Its endpoints' states are those of the last reading: nothing is asked here.
    pub(super) fn upstream_status(
        &self,
        upstream: &Upstream,
        config: &config::Upstream,
        up: bool,
    ) -> (HealthStatus, String) {
        let Some(check) = &config.health_check else {
            return (
                if up {
                    HealthStatus::Up
                } else {
                    HealthStatus::Down
                },
                String::new(),
            );
        };
        let mut worst: Option<HealthStatus> = None;
        let mut why = String::new();
        for (address, check_result) in upstream.check_results() {
            if check_result.status.is_usable() {
                continue;
            }
            if why.is_empty() {
                why = [
                    address,
                    ": ",
                    check_result.status.word(),
                    ", ",
                    &check_result.reason.text(check_result.detail, check),
                ]
                .concat();
            }
            worst = match (worst, check_result.status) {
                (Some(HealthStatus::Down), _) | (_, EndpointHealth::Down) => {
                    Some(HealthStatus::Down)
                }
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
}
