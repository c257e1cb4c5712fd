//! Upstreams: sets of interchangeable endpoints.

use std::rc::Rc;

use crate::base::percent::Percent;
use crate::base::time::Nanos;
use crate::document::names::Entries;
use crate::policy::circuit_breaker::config::{
    BreakerScope, BreakerSection, CircuitBreaker, outlier,
};
use crate::policy::concurrency::config::ConcurrencyLimit;
use crate::policy::discovery::config::{AnySource, Discovery, Source};
use crate::policy::health_check::config::{HealthCheck, HealthCheckSection};
use crate::policy::mode::Mode;
use crate::policy::sections::{CircuitBreakers, ConcurrencyLimits};
use crate::policy::upstream::config::{
    BalancePolicy, Endpoint, LoadBalancer, LoadReport, Outlier, Override, Steer, check_endpoints,
    own_choice_lacks,
};
use crate::schema::{Either, Errors, Label, List, Path, Pct, Reference, section};

/// A set of interchangeable endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// Envoy's cluster; the upstream's name if not given.
    pub cluster: String,
    /// Its endpoints, distinct; none where a source names them.
    pub endpoints: Vec<Endpoint>,
    /// Who names its endpoints, where they do not stand in the configuration.
    pub source: Option<Source>,
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
    /// The named metric of a report that counts in place of the utilisations.
    pub load_metric: Option<String>,
    /// The upstream is UP while at least this share of its endpoints is well; `None` = at least one
    /// endpoint.
    pub min_healthy: Option<Percent>,
    /// Whether the proxy is ready only while it is UP.
    pub critical: bool,
    /// For which requests haven picks the endpoint.
    pub steer: Steer,
    /// The request header (lower case) that carries the picked endpoints to the proxy.
    pub override_header: String,
    /// Whether `x-envoy-attempt-count` in answers is the proxy's own.
    pub attempt_count: bool,
    /// Its circuit breaker: one state per endpoint.
    pub circuit_breaker: Option<Rc<CircuitBreaker>>,
    /// Whether endpoints that fail are left alone where there is no circuit breaker.
    pub outlier: Outlier,
    /// Its concurrency limit: one for all routes of the upstream together.
    pub concurrency_limit: Option<Rc<ConcurrencyLimit>>,
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
        /// Its endpoints, each address once; or who names them: Envoy itself, Consul or etcd.
        endpoints: Option<Either<List<Endpoint, 0, 1000>, AnySource>> =
            Absent("`{\"envoy\": {}}` with `discovery.envoy_admin`, else `[]`");
        /// How an endpoint is picked.
        load_balancer: LoadBalancer = Default("{}");
        /// For which requests haven picks the endpoint. `by_exception`: only while an endpoint is
        /// out, on trial, drained or in its slow start, and for a while after a failure or a retry.
        /// All others Envoy sends by its own `least_request`, which the cluster has to have. Only
        /// with `policy` `least_request`, one weight for all endpoints but 0, and neither `zone`
        /// nor `load_report`.
        steer: Steer = Default("\"always\"");
        /// How the pick reaches the proxy.
        r#override: Override = Default("{}");
        /// A circuit breaker, with a state per endpoint.
        circuit_breaker: Option<Reference<CircuitBreakers>> = Absent("`outlier`");
        /// What takes endpoints out of rotation where there is no `circuit_breaker`. `default`: an
        /// endpoint that fails three times in a row (a status of 502 to 504, gRPC's UNAVAILABLE, a
        /// reset, a timeout), and more often than its peers, is left alone for 1 s, then for 2, 4
        /// and at most 8 s while a trial fails; one call in between tries it. As with any circuit
        /// breaker of endpoints, answers that take five times as long as the peers' count as
        /// failures. With a single endpoint it does nothing.
        outlier: Outlier = Default("\"default\"");
        /// A concurrency limit for all routes of the upstream together.
        concurrency_limit: Option<Reference<ConcurrencyLimits>> = Absent("none");
        /// Active checks of the endpoints.
        health_check: Option<HealthCheckSection> = Absent("none");
        /// The upstream is UP while at least this percentage of its endpoints is well; with 0 it
        /// always is.
        min_healthy: Option<Pct> = Absent("one endpoint");
        /// Whether the proxy is out of service while the upstream is not UP. With `false` it only
        /// shows in the document.
        critical: bool = Default("true");
        /// The most endpoints that their breakers take out of rotation, in percent; of what is not
        /// 0, one may always go. The first that opened are out, those beyond stay in use. A level
        /// of priorities may be left wholly for the next one.
        max_ejection_percent: Option<Pct> = Absent("100 less `panic_threshold`: 50");
        /// Whether endpoints report their load. `orca`: in the response header
        /// `endpoint-load-metrics` (`TEXT`, `JSON` or `BIN`) or, as gRPC's servers do, in the
        /// header or trailer `endpoint-load-metrics-bin`; `application_utilization`, else
        /// `cpu_utilization`, u: an endpoint's weight is multiplied with 1 - u, at least 0.05; one
        /// that does not report has the mean of the others. A report counts in full for 5 s and is
        /// forgotten after 30 s. Clients do not see the header. Not for `consistent_hash` and
        /// `first`.
        load_report: LoadReport = Default("\"none\"");
        /// With `orca`: the metric among a report's `named_metrics` that counts first, from 0 to 1.
        load_metric: Option<Label> = Absent("none");
    }
}

/// The circuit breakers as they are written.
pub(crate) type BreakerSections<'a> = Entries<'a, CircuitBreakers, (String, BreakerSection)>;

impl UpstreamSection {
    /// Reports the errors that span fields.
    #[inline(never)]
    pub(crate) fn check(
        &self,
        at: &Path<'_>,
        breakers: &BreakerSections<'_>,
        admin: Option<&str>,
        errors: &mut Errors,
    ) {
        let is_named = match &self.endpoints {
            Some(Either::First(_)) => false,
            Some(Either::Second(_)) => true,
            None => admin.is_some(),
        };
        match &self.endpoints {
            Some(Either::First(list)) => check_endpoints(&at.key("endpoints"), list, errors),
            Some(Either::Second(source)) => source.check(&at.key("endpoints"), admin, errors),
            None => {}
        }
        if let Some(name) = &self.circuit_breaker
            && let Some((_, breaker)) = breakers.named(name)
            && breaker.scope == BreakerScope::Upstream
        {
            let want = "a circuit breaker without \"scope\": \"upstream\": on an upstream \
                        it has a state per endpoint";
            errors.refuse_text(&at.key("circuit_breaker"), name, want);
        }
        self.r#override.check(&at.key("override"), errors);
        if let Some(check) = &self.health_check {
            check.check(&at.key("health_check"), errors);
        }
        let balancer = &self.load_balancer;
        balancer.check_report(&at.key("load_report"), self.load_report, errors);
        if let (Some(metric), LoadReport::None) = (&self.load_metric, self.load_report) {
            let want = "none: only reports (\"load_report\": \"orca\") have metrics";
            errors.refuse_text(&at.key("load_metric"), metric, want);
        }
        balancer.check(&at.key("load_balancer"), errors);
        let list = match &self.endpoints {
            Some(Either::First(list)) => list.as_slice(),
            _ => &[],
        };
        let lacks = own_choice_lacks(balancer, self.load_report, list);
        let lacks = if is_named {
            Some("a list of endpoints: a source may change their weights")
        } else {
            lacks
        };
        if self.steer == Steer::ByException
            && let Some(lacks) = lacks
        {
            let want = "\"always\", for Envoy's own choice among endpoints needs ";
            errors.refuse_text(&at.key("steer"), "by_exception", &[want, lacks].concat());
        }
    }

    /// The upstream of this name.
    #[inline(never)]
    pub(crate) fn compile(
        self,
        name: String,
        discovery: &Discovery,
        breakers: &Entries<'_, CircuitBreakers, Rc<CircuitBreaker>>,
        limits: &Entries<'_, ConcurrencyLimits, Rc<ConcurrencyLimit>>,
    ) -> Upstream {
        let balancer = self.load_balancer;
        let panic_threshold = balancer.panic_threshold;
        // What may be taken out is what may be missing before all are used again.
        let max_ejection = self
            .max_ejection_percent
            .unwrap_or_else(|| Percent(10_000u32.saturating_sub(panic_threshold.0)));
        let cluster = self.cluster.unwrap_or_else(|| name.clone());
        let (endpoints, source) = match self.endpoints {
            Some(Either::First(list)) => (list, None),
            Some(Either::Second(given)) => (Vec::new(), discovery.source(Some(given), &cluster)),
            None => (Vec::new(), discovery.source(None, &cluster)),
        };
        Upstream {
            mode: self.mode,
            cluster,
            endpoints,
            source,
            panic_threshold,
            max_ejection,
            slow_start: balancer.slow_start,
            zone: balancer.zone.clone(),
            policy: balancer.compile(),
            load_report: self.load_report,
            load_metric: self.load_metric,
            min_healthy: self.min_healthy,
            critical: self.critical,
            steer: self.steer,
            override_header: self.r#override.header,
            attempt_count: self.r#override.attempt_count,
            circuit_breaker: breakers.get(self.circuit_breaker.as_ref()),
            outlier: self.outlier,
            concurrency_limit: limits.get(self.concurrency_limit.as_ref()),
            health_check: self.health_check.map(HealthCheckSection::compile),
            name,
        }
    }
}

impl Upstream {
    /// The breaker that its endpoints have if the configuration names none.
    pub(crate) fn default_breaker(&self) -> Option<CircuitBreaker> {
        let used = self.endpoints.iter().filter(|it| it.weight > 0).count();
        let some = used > 1 || self.source.is_some();
        let wanted = self.circuit_breaker.is_none() && self.outlier == Outlier::Default && some;
        wanted.then(|| outlier([&self.name, "/outlier"].concat()))
    }

    /// Whether the reports of its endpoints have this component.
    pub(crate) fn has_component(&self, name: &str) -> bool {
        let components = self.health_check.iter().flat_map(|check| &check.components);
        components
            .into_iter()
            .any(|component| component.name == name)
    }
}
