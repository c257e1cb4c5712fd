//! Upstreams: sets of interchangeable endpoints.

use crate::base::percent::Percent;
use crate::base::time::Nanos;
use crate::document::names::References;
use crate::policy::circuit_breaker::config::BreakerScope;
use crate::policy::health_check::config::{HealthCheck, HealthCheckSection};
use crate::policy::mode::Mode;
use crate::policy::sections::{CircuitBreakers, ConcurrencyLimits};
use crate::policy::upstream::config::{
    BalancePolicy, Endpoint, LoadBalancer, LoadReport, Override, check_endpoints,
};
use crate::schema::{Errors, Label, List, Path, Pct, Reference, section};

/// A set of interchangeable endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// Envoy's cluster; the upstream's name if not given.
    pub cluster: String,
    /// Its endpoints, distinct.
    pub endpoints: Vec<Endpoint>,
    /// How one is picked.
    pub policy: BalancePolicy,
    /// Below this share of available endpoints all are used again; 0 = never.
    pub panic_threshold: Percent,
    /// Breakers take at most this share of the endpoints out of rotation.
    pub max_ejection: Percent,
    /// Time over which a new or recovered endpoint gets its full share.
    pub slow_start: Option<Nanos>,
    /// The proxy's own zone.
    pub zone: Option<String>,
    /// Which reports of endpoints count.
    pub load_report: LoadReport,
    /// The upstream is UP while at least this share of its endpoints is well; `None` = at least one
    /// endpoint.
    pub min_healthy: Option<Percent>,
    /// The request header (lower case) that carries the picked endpoints to the proxy.
    pub override_header: String,
    /// Whether `x-envoy-attempt-count` in answers is the proxy's own.
    pub attempt_count: bool,
    /// Index into [`Config::circuit_breakers`]: one state per endpoint.
    pub circuit_breaker: Option<usize>,
    /// Index into [`Config::concurrency_limits`]: one for all routes of the upstream together.
    pub concurrency_limit: Option<usize>,
    /// Active checks of its endpoints.
    pub health_check: Option<HealthCheck>,
}

section! {
    /// A set of interchangeable endpoints.
    UpstreamSection {
        /// Mode of what the upstream decides: its endpoints and their breaker.
        mode: Option<Mode> = Absent("the top level's");
        /// Envoy's cluster.
        cluster: Option<Label> = Absent("the upstream's name");
        /// Its endpoints, each address once.
        endpoints: List<Endpoint, 0, 1000> = Default("[]");
        /// How an endpoint is picked.
        load_balancer: LoadBalancer = Default("{}");
        /// How the pick reaches the proxy.
        r#override: Override = Default("{}");
        /// A circuit breaker, with a state per endpoint.
        circuit_breaker: Option<Reference<CircuitBreakers>> = Absent("none");
        /// A concurrency limit for all routes of the upstream together.
        concurrency_limit: Option<Reference<ConcurrencyLimits>> = Absent("none");
        /// Active checks of the endpoints.
        health_check: Option<HealthCheckSection> = Absent("none");
        /// The upstream is UP while at least this percentage of its endpoints is well.
        min_healthy: Option<Pct> = Absent("one endpoint");
        /// The most endpoints that their breakers take out of rotation, in percent; of what is not
        /// 0, one may always go. The first that opened are out, those beyond stay in use. A level
        /// of priorities may be left wholly for the next one.
        max_ejection_percent: Option<Pct> = Absent("100 less `panic_threshold`: 50");
        /// Whether endpoints report their load. `orca`: in the response header
        /// `endpoint-load-metrics`, `TEXT` or `JSON` (not `BIN`); `application_utilization`, else
        /// `cpu_utilization`, u: an endpoint's weight is multiplied with 1 - u, at least 0.05; one
        /// that does not report has the mean of the others. A report counts in full for 5 s and is
        /// forgotten after 30 s. Clients do not see the header. Not for `consistent_hash` and
        /// `first`.
        load_report: LoadReport = Default("\"none\"");
    }
}

impl UpstreamSection {
    /// The upstream of this name, with the errors that span its fields.
    pub(crate) fn compile(
        self,
        at: &Path<'_>,
        name: String,
        references: &References<'_>,
        errors: &mut Errors,
    ) -> Upstream {
        check_endpoints(&at.key("endpoints"), &self.endpoints, errors);
        let circuit_breaker = references.find::<CircuitBreakers>(self.circuit_breaker.as_ref());
        if let (Some(i), Some(breaker)) = (circuit_breaker, &self.circuit_breaker)
            && references.breaker_scope(i) == BreakerScope::Upstream
        {
            let want = "a circuit breaker without \"scope\": \"upstream\": on an upstream \
                        it has a state per endpoint";
            errors.refuse_text(&at.key("circuit_breaker"), breaker, want);
        }
        self.r#override.check(&at.key("override"), errors);
        let health_check = self
            .health_check
            .map(|check| check.compile(&at.key("health_check"), errors));
        let balancer = self.load_balancer;
        balancer.check_report(&at.key("load_report"), self.load_report, errors);
        let panic_threshold = balancer.panic_threshold;
        // What may be taken out is what may be missing before all are used again.
        let max_ejection = self
            .max_ejection_percent
            .unwrap_or_else(|| Percent(10_000u32.saturating_sub(panic_threshold.0)));
        Upstream {
            mode: self.mode,
            cluster: self.cluster.unwrap_or_else(|| name.clone()),
            endpoints: self.endpoints,
            panic_threshold,
            max_ejection,
            slow_start: balancer.slow_start,
            zone: balancer.zone.clone(),
            policy: balancer.compile(&at.key("load_balancer"), errors),
            load_report: self.load_report,
            min_healthy: self.min_healthy,
            override_header: self.r#override.header,
            attempt_count: self.r#override.attempt_count,
            circuit_breaker,
            concurrency_limit: references
                .find::<ConcurrencyLimits>(self.concurrency_limit.as_ref()),
            health_check,
            name,
        }
    }

    /// The components of its health check.
    pub(crate) fn components(&self) -> Vec<String> {
        let components = self.health_check.iter().flat_map(|check| &check.components);
        components.map(|(name, _)| name.clone()).collect()
    }
}
