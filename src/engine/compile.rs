//! From a configuration to what requests work with: one small function for each policy.
//!
//! Names and references are resolved here, once. A route holds the policies that it uses
//! ([`Binding`]), with the mode in which each acts there and the metric that counts its refusals,
//! so that no request looks one up. Routes that use the same policy hold the same value.

mod bounds;

use super::breaker::{Breaker, TransitionCounters};
use super::chain;
use super::concurrency::Concurrency;
use super::health_check;
use super::logs::LogLimiter;
use super::metrics::MetricTable;
use super::route::{
    Binding, Canary, Effect, Fallback, FallbackBinding, Limit, Retries, Route, Shared,
};
use super::stale::StaleStore;
use super::upstream::{Around, ComponentState, Upstream};
use crate::base::hash::Seed;
use crate::document::{
    self, BalancePolicy, Config, FallbackStep, KeyPart, Mode, RejectBelow, RequestTimeout,
};
use crate::host::{Host, MetricId};
use crate::policy::retry::Budget;
use crate::policy::{canary, fallback};
use crate::request::Reason;
use std::rc::Rc;

/// What is ready of a configuration.
pub(super) struct Compiler<'c, H> {
    config: &'c Config,
    host: &'c H,
    seed: Seed,
    pub(super) logs: Rc<LogLimiter>,
    counters: TransitionCounters,
    pub(super) upstreams: Vec<Rc<Upstream>>,
    fallbacks: Vec<Rc<Fallback>>,
    /// By name and mode.
    limits: Vec<Rc<Limit>>,
    pub(super) concurrency: Vec<Rc<Concurrency>>,
    pub(super) breakers: Vec<Rc<Breaker>>,
}

/// A route, or what its canary has in its place.
struct Variant<'c> {
    route: &'c document::Route,
    is_canary: bool,
    upstream: Option<usize>,
    circuit_breaker: Option<usize>,
    depends_on: Vec<usize>,
}

impl<'c> Variant<'c> {
    fn stable(route: &'c document::Route) -> Self {
        Self {
            route,
            is_canary: false,
            upstream: route.upstream,
            circuit_breaker: route.circuit_breaker,
            depends_on: route.depends_on.clone(),
        }
    }
}

impl<'c, H: Host> Compiler<'c, H> {
    /// Makes the upstreams and fallbacks of a configuration ready.
    pub(super) fn new(config: &'c Config, seed: Seed, host: &'c H) -> Self {
        let mut compiler = Self {
            config,
            host,
            seed,
            logs: Rc::default(),
            counters: TransitionCounters::default(),
            upstreams: Vec::new(),
            fallbacks: Vec::new(),
            limits: Vec::new(),
            concurrency: Vec::new(),
            breakers: Vec::new(),
        };
        for (at, upstream) in config.upstreams.iter().enumerate() {
            let compiled = compiler.new_upstream(at, upstream);
            compiler.upstreams.push(Rc::new(compiled));
        }
        let fallbacks = config.fallbacks.iter().map(|fallback| {
            Rc::new(Fallback {
                stale: StaleStore::new(fallback, seed, host),
                config: fallback.clone(),
            })
        });
        compiler.fallbacks = fallbacks.collect();
        compiler
    }

    /// The routes of the configuration, in its order.
    pub(super) fn routes(&mut self) -> Vec<Rc<Route>> {
        let config = self.config;
        config
            .routes
            .iter()
            .map(|route| {
                let shared = Rc::new(route.clone());
                let mut stable = self.route(&Variant::stable(route), &shared);
                self.add_canary(&mut stable, &shared);
                Rc::new(stable)
            })
            .collect()
    }

    fn new_upstream(&mut self, at: usize, upstream: &document::Upstream) -> Upstream {
        let routes = &self.config.routes;
        let is_of_route = routes.iter().any(|route| route.upstream == Some(at));
        let is_of_canary = routes
            .iter()
            .filter_map(|route| route.canary.as_ref())
            .any(|canary| canary.upstream == at);
        let around = Around {
            breaker: upstream
                .circuit_breaker
                .and_then(|at| self.config.circuit_breakers.get(at)),
            mode: self.config.mode,
            is_checked: health_check::is_checked(self.config, upstream),
            only_canary: is_of_canary && !is_of_route,
            logs: &self.logs,
        };
        Upstream::new(upstream, around, &mut self.counters, self.host)
    }

    /// Compiles a route, or what its canary has in its place. `shared`: the configuration that both
    /// hold.
    fn route(&mut self, variant: &Variant<'_>, shared: &Rc<document::Route>) -> Route {
        let metrics = MetricTable(self.host);
        let route = variant.route;
        let mode = self.route_mode(route);
        let limits = self.limits(route, mode);
        let concurrency = self.concurrency_limits(variant, mode);
        let breaker = self.breaker(variant, mode);
        let upstream = self.upstream(variant, mode);
        let fallback = self.fallback(route, mode);
        let deadline = self.deadline(route, mode);
        let retry = self.retries(route, mode);
        let observes = breaker.is_some()
            || self.breaks_endpoints(variant)
            || retry.is_some()
            || matches!(route.timeout.request, Some(RequestTimeout::Dynamic(_)))
            || matches!(route.timeout.reject_below, Some(RejectBelow::Quantile(_)));
        Route {
            config: Rc::clone(shared),
            canary: None,
            sent: MetricId::NONE,
            off: mode == Mode::Off
                && limits.is_empty()
                && concurrency.iter().all(Option::is_none)
                && breaker.is_none()
                && upstream.is_none()
                && fallback.is_none(),
            needs_client: limits
                .iter()
                .any(|limit| limit.policy.policy.needs_client())
                || upstream
                    .as_ref()
                    .is_some_and(|used| hashes_client(&used.policy)),
            needs_request_id: fallback
                .as_ref()
                .is_some_and(|used| fallback::needs_request_id(&used.policy.config)),
            switched_off: self.switch(route, mode),
            depends_on: self.depends_on(variant, upstream.as_ref()),
            limits,
            concurrency,
            breaker,
            upstream,
            fallback,
            cluster: self.cluster(route),
            duration: metrics.upstream_duration(&route.name),
            retries: metrics.retries(&route.name),
            seen: (observes && deadline.is_some()).then(Shared::default),
            deadline,
            retry,
        }
    }

    /// Gives a route its canary, if it has one.
    fn add_canary(&mut self, stable: &mut Route, shared: &Rc<document::Route>) {
        let (route, upstreams) = (Rc::clone(shared), &self.config.upstreams);
        let Some(config) = &route.canary else { return };
        let mode = config.mode.or(route.mode).unwrap_or(self.config.mode);
        let (Some(own), Some(other)) = (
            route.upstream.and_then(|at| upstreams.get(at)),
            upstreams.get(config.upstream),
        ) else {
            return;
        };
        if mode == Mode::Off {
            return;
        }
        let variant = Variant {
            route: &route,
            is_canary: true,
            upstream: Some(config.upstream),
            circuit_breaker: config.circuit_breaker,
            depends_on: same_components(own, other, &route.depends_on),
        };
        let mut its = self.route(&variant, shared);
        its.retry.clone_from(&stable.retry);
        its.cluster = stable.cluster.as_ref().map(|_| other.cluster.clone());
        let would = [own, other]
            .map(|it| MetricTable(self.host).canary_requests(&route.name, &it.name, mode));
        if mode == Mode::Enforce {
            [stable.sent, its.sent] = would;
        }
        stable.needs_client |= canary::needs_client(config) || its.needs_client;
        stable.off = false;
        stable.canary = Some(Canary {
            mode,
            config: config.clone(),
            upstream: other.name.clone(),
            route: Rc::new(its),
            would,
        });
    }

    fn route_mode(&self, route: &document::Route) -> Mode {
        route.mode.unwrap_or(self.config.mode)
    }

    fn upstream_config(&self, variant: &Variant<'_>) -> Option<&'c document::Upstream> {
        self.config.upstreams.get(variant.upstream?)
    }

    /// Whether the endpoints of the route have breakers.
    fn breaks_endpoints(&self, variant: &Variant<'_>) -> bool {
        self.upstream_config(variant)
            .is_some_and(|upstream| upstream.circuit_breaker.is_some())
    }

    /// Counts refusals. What a canary refuses goes back to where the others go, and is no refusal.
    fn refusals(
        &self,
        variant: &Variant<'_>,
        policy: &str,
        reason: Reason,
        mode: Mode,
    ) -> MetricId {
        let (metrics, route) = (MetricTable(self.host), &variant.route.name);
        match mode {
            Mode::Enforce if variant.is_canary => metrics.canary_returned(route, reason),
            _ => metrics.decisions(route, policy, reason, mode),
        }
    }

    fn switch(&self, route: &document::Route, mode: Mode) -> Option<Binding<document::Switch>> {
        let switch = self.config.switches.get(route.switch?)?;
        if switch.on || mode == Mode::Off {
            return None;
        }
        let refusals =
            MetricTable(self.host).decisions(&route.name, &switch.name, Reason::SwitchedOff, mode);
        Some(Binding::new(Rc::new(switch.clone()), mode, refusals))
    }

    fn upstream(&self, variant: &Variant<'_>, mode: Mode) -> Option<Binding<Upstream>> {
        let policy = self.upstreams.get(variant.upstream?)?;
        let mode = policy.config.mode.unwrap_or(mode);
        if mode == Mode::Off {
            return None;
        }
        let refusals = self.refusals(variant, &policy.config.name, Reason::NoEndpoint, mode);
        Some(Binding::new(Rc::clone(policy), mode, refusals))
    }

    fn depends_on(
        &self,
        variant: &Variant<'_>,
        upstream: Option<&Binding<Upstream>>,
    ) -> Vec<Binding<ComponentState>> {
        let Some(upstream) = upstream else {
            return Vec::new();
        };
        let mode = upstream.effect.mode;
        let components = variant.depends_on.iter().filter_map(|at| {
            let component = upstream.policy.component(*at)?;
            let refusals = self.refusals(variant, &component.name, Reason::NoEndpoint, mode);
            Some(Binding::new(component, mode, refusals))
        });
        components.collect()
    }

    fn fallback(&self, route: &document::Route, mode: Mode) -> Option<FallbackBinding> {
        let policy = self.fallbacks.get(route.fallback?)?;
        let mode = policy.config.mode.unwrap_or(mode);
        if mode == Mode::Off {
            return None;
        }
        let metrics = MetricTable(self.host);
        let (name, steps) = (&policy.config.name, &policy.config.steps);
        let answers = |word: &str| {
            if steps.iter().any(|step| fallback::word(step) == word) {
                metrics.fallbacks(&route.name, word)
            } else {
                MetricId::NONE
            }
        };
        Some(FallbackBinding {
            policy: Rc::clone(policy),
            mode,
            errors: metrics.decisions(&route.name, name, Reason::UpstreamError, mode),
            timeouts: metrics.decisions(&route.name, name, Reason::Timeout, mode),
            stale: answers("stale"),
            cluster: answers("cluster"),
            respond: answers("respond"),
        })
    }

    fn deadline(&self, route: &document::Route, mode: Mode) -> Option<Effect> {
        if mode == Mode::Off {
            return None;
        }
        let refusals =
            MetricTable(self.host).decisions(&route.name, chain::DEADLINE, Reason::Deadline, mode);
        Some(Effect { mode, refusals })
    }

    fn retries(&self, route: &document::Route, mode: Mode) -> Option<Retries> {
        let retry = route.retry.as_ref().filter(|_| mode == Mode::Enforce)?;
        Some(Retries {
            requests: MetricTable(self.host).retry_requests(&route.name),
            budget: Rc::new(Shared::new(Budget::new(retry))),
        })
    }

    /// The cluster that a route's requests have to name to the proxy: that of its upstream, if its
    /// fallback or its canary may choose another.
    fn cluster(&self, route: &document::Route) -> Option<String> {
        let upstream = |at: usize| self.config.upstreams.get(at);
        let own = &upstream(route.upstream?)?.cluster;
        let fallback = route.fallback.and_then(|at| self.fallbacks.get(at));
        let sends_on = fallback.is_some_and(|fallback| {
            let steps = &fallback.config.steps;
            steps
                .iter()
                .any(|step| matches!(step, FallbackStep::Cluster(_)))
        });
        let canary = route.canary.as_ref().and_then(|it| upstream(it.upstream));
        (sends_on || canary.is_some_and(|canary| canary.cluster != *own)).then(|| own.clone())
    }
}

fn hashes_client(upstream: &Upstream) -> bool {
    match &upstream.config.policy {
        BalancePolicy::ConsistentHash { key, .. } => key.contains(&KeyPart::ClientIp),
        _ => false,
    }
}

/// The components of `other` that have the names of these components of `upstream`.
fn same_components(
    upstream: &document::Upstream,
    other: &document::Upstream,
    components: &[usize],
) -> Vec<usize> {
    let (Some(check), Some(others)) = (&upstream.health_check, &other.health_check) else {
        return Vec::new();
    };
    let same = |at: &usize| {
        let name = &check.components.get(*at)?.name;
        others
            .components
            .iter()
            .position(|component| component.name == *name)
    };
    components.iter().filter_map(same).collect()
}
