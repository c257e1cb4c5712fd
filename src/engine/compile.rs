//! From a configuration to what requests work with: one small function for each policy.
//!
//! Names and references are resolved here, once. A route holds the policies that it uses
//! ([`Binding`]), with the mode in which each acts there and the metric that counts its refusals,
//! so that no request looks one up. Routes that use the same policy hold the same value.

mod bounds;

use super::breaker::{Breaker, TransitionCounters};
use super::chain;
use super::concurrency::Concurrency;
use super::discovery::Discovery;
use super::health_check;
use super::logs::LogLimiter;
use super::metrics::MetricTable;
use super::route::{
    Binding, Canary, Effect, Fallback, FallbackBinding, Limit, Retries, Route, Times,
};
use super::shared::Shared;
use super::stale::StaleStore;
use super::upstream::{Around, ComponentState, Upstream};
use crate::base::hash::Seed;
use crate::document::{
    self, BalancePolicy, Config, KeyPart, Mode, Outcomes, RejectBelow, RequestTimeout,
};
use crate::host::{Host, MetricId};
use crate::policy::retry::Budget;
use crate::policy::{canary, fallback};
use crate::request::Reason;
use std::cell::Cell;
use std::rc::Rc;

/// What is ready of a configuration.
pub(super) struct Compiler<'c, H> {
    config: &'c Config,
    host: &'c H,
    seed: Seed,
    pub(super) logs: Rc<LogLimiter>,
    counters: TransitionCounters,
    /// How many endpoints there are that sources have named.
    all_discovered: Rc<Cell<usize>>,
    pub(super) upstreams: Vec<Rc<Upstream>>,
    fallbacks: Vec<Rc<Fallback>>,
    /// By name and mode.
    limits: Vec<Rc<Limit>>,
    pub(super) concurrency: Vec<Rc<Concurrency>>,
    pub(super) breakers: Vec<Rc<Breaker>>,
}

/// A route, or what its canary has in its place.
struct Variant<'c> {
    route: &'c Rc<document::Route>,
    is_canary: bool,
    upstream: Option<&'c Rc<document::Upstream>>,
    circuit_breaker: Option<&'c Rc<document::CircuitBreaker>>,
}

impl<'c> Variant<'c> {
    fn stable(route: &'c Rc<document::Route>) -> Self {
        Self {
            route,
            is_canary: false,
            upstream: route.upstream.as_ref(),
            circuit_breaker: route.circuit_breaker.as_ref(),
        }
    }
}

impl<'c, H: Host> Compiler<'c, H> {
    /// Makes the upstreams and fallbacks of a configuration ready.
    #[inline(never)]
    pub(super) fn new(config: &'c Config, seed: Seed, host: &'c H) -> Self {
        let mut compiler = Self {
            config,
            host,
            seed,
            logs: Rc::default(),
            counters: TransitionCounters::default(),
            all_discovered: Rc::default(),
            upstreams: Vec::new(),
            fallbacks: Vec::new(),
            limits: Vec::new(),
            concurrency: Vec::new(),
            breakers: Vec::new(),
        };
        for upstream in &config.upstreams {
            let compiled = compiler.new_upstream(upstream);
            compiler.upstreams.push(Rc::new(compiled));
        }
        let fallbacks = config.fallbacks.iter().map(|fallback| {
            Rc::new(Fallback {
                stale: StaleStore::new(fallback, seed, host),
                config: Rc::clone(fallback),
            })
        });
        compiler.fallbacks = fallbacks.collect();
        compiler
    }

    /// The routes of the configuration, in its order.
    #[inline(never)]
    pub(super) fn routes(&mut self) -> Vec<Rc<Route>> {
        let routes = self.config.routes.iter();
        routes
            .map(|route| {
                let mut stable = self.route(&Variant::stable(route));
                self.add_canary(&mut stable, route);
                Rc::new(stable)
            })
            .collect()
    }

    #[inline(never)]
    fn new_upstream(&mut self, upstream: &Rc<document::Upstream>) -> Upstream {
        let routes = &self.config.routes;
        let is_it = |it: &Rc<document::Upstream>| Rc::ptr_eq(it, upstream);
        let is_of_route = routes
            .iter()
            .any(|route| route.upstream.as_ref().is_some_and(is_it));
        let is_of_canary = routes
            .iter()
            .filter_map(|route| route.canary.as_ref())
            .any(|canary| is_it(&canary.upstream));
        let passive = upstream.default_breaker().map(Rc::new);
        let discovery = self.new_discovery(upstream);
        let around = Around {
            breaker: upstream.circuit_breaker.as_ref().or(passive.as_ref()),
            is_passive: passive.is_some(),
            mode: self.config.mode,
            is_checked: health_check::is_checked(self.config, upstream),
            only_canary: is_of_canary && !is_of_route,
            logs: &self.logs,
            discovery: discovery.as_ref(),
        };
        Upstream::new(upstream, around, &mut self.counters, self.host)
    }

    fn new_discovery(&self, upstream: &document::Upstream) -> Option<Rc<Discovery>> {
        let source = upstream.source.as_ref()?;
        let (name, all) = (&upstream.name, &self.all_discovered);
        let discovery = Discovery::new(name, source.rules, all, &self.logs, self.host);
        Some(Rc::new(discovery))
    }

    /// Compiles a route, or what its canary has in its place.
    #[inline(never)]
    fn route(&mut self, variant: &Variant<'_>) -> Route {
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
        let has_shares = retry.is_some() || limits.iter().any(|limit| limit.policy.policy.delays());
        let mut fair_parts = concurrency
            .iter()
            .flatten()
            .flat_map(|used| used.limit.policy.fair_parts());
        let needs_client = limits
            .iter()
            .any(|limit| limit.policy.policy.needs_client())
            || upstream
                .as_ref()
                .is_some_and(|used| hashes_client(&used.policy))
            || fair_parts.clone().any(|part| *part == KeyPart::ClientIp)
            // Without the address one client could use up what all have; where it has to be asked
            // of the host (`connection`), that is a call for each request of such a route.
            || (has_shares && fair_parts.next().is_none());
        // Where only exceptions are read, what is slow would be known and what is fast would not.
        let all = self.config.outcomes == Outcomes::Every;
        let observes = breaker.is_some()
            || concurrency.iter().any(Option::is_some)
            || upstream
                .as_ref()
                .is_some_and(|used| used.policy.may_have_several())
            || retry.is_some()
            || matches!(route.timeout.request, Some(RequestTimeout::Dynamic(_)))
            || matches!(route.timeout.reject_below, Some(RejectBelow::Quantile(_)));
        Route {
            config: Rc::clone(route),
            canary: None,
            sent: MetricId::NONE,
            acts: mode == Mode::Enforce,
            off: mode == Mode::Off
                && limits.is_empty()
                && concurrency.iter().all(Option::is_none)
                && breaker.is_none()
                && upstream.is_none()
                && fallback.is_none(),
            needs_client,
            has_shares,
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
            cluster: cluster(route),
            duration: metrics.upstream_duration(&route.name),
            retries: metrics.retries(&route.name),
            not_followed: metrics.not_followed(&route.name),
            told: Cell::default(),
            seen: (all && observes && deadline.is_some()).then(|| Times::new(&route.timeout)),
            deadline,
            retry,
        }
    }

    /// Gives a route its canary, if it has one.
    #[inline(never)]
    fn add_canary(&mut self, stable: &mut Route, route: &Rc<document::Route>) {
        let (Some(own), Some(canary)) = (&route.upstream, &route.canary) else {
            return;
        };
        let (rules, other) = (&canary.rules, &canary.upstream);
        let mode = rules.mode.or(route.mode).unwrap_or(self.config.mode);
        if mode == Mode::Off {
            return;
        }
        let mut its = self.route(&Variant {
            route,
            is_canary: true,
            upstream: Some(other),
            circuit_breaker: canary.circuit_breaker.as_ref(),
        });
        its.retry.clone_from(&stable.retry);
        its.cluster = stable.cluster.as_ref().map(|_| other.cluster.clone());
        let would = [own, other]
            .map(|it| MetricTable(self.host).canary_requests(&route.name, &it.name, mode));
        if mode == Mode::Enforce {
            [stable.sent, its.sent] = would;
        }
        stable.needs_client |= canary::needs_client(rules) || its.needs_client;
        stable.off = false;
        stable.canary = Some(Canary {
            mode,
            config: rules.clone(),
            upstream: other.name.clone(),
            route: Rc::new(its),
            would,
        });
    }

    fn route_mode(&self, route: &document::Route) -> Mode {
        route.mode.unwrap_or(self.config.mode)
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
        let switch = route.switch.as_ref()?;
        if switch.on || mode == Mode::Off {
            return None;
        }
        let refusals =
            MetricTable(self.host).decisions(&route.name, &switch.name, Reason::SwitchedOff, mode);
        Some(Binding::new(Rc::clone(switch), mode, refusals))
    }

    fn upstream(&self, variant: &Variant<'_>, mode: Mode) -> Option<Binding<Upstream>> {
        let config = variant.upstream?;
        let mut upstreams = self.upstreams.iter();
        let policy = upstreams.find(|known| Rc::ptr_eq(&known.config, config))?;
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
        let components = variant.route.depends_on.iter().filter_map(|name| {
            let component = upstream.policy.component(name)?;
            let refusals = self.refusals(variant, &component.name, Reason::NoEndpoint, mode);
            Some(Binding::new(component, mode, refusals))
        });
        components.collect()
    }

    fn fallback(&self, route: &document::Route, mode: Mode) -> Option<FallbackBinding> {
        let config = route.fallback.as_ref()?;
        let mut fallbacks = self.fallbacks.iter();
        let policy = fallbacks.find(|known| Rc::ptr_eq(&known.config, config))?;
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
            torn: Cell::default(),
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
}

/// The cluster that a route's requests have to name to the proxy: that of its upstream, if its
/// fallback or its canary may choose another.
fn cluster(route: &document::Route) -> Option<String> {
    let own = &route.upstream.as_ref()?.cluster;
    let sends_on = route.fallback.as_ref().is_some_and(|it| it.sends_on());
    let canary = route.canary.as_ref().map(|canary| &canary.upstream.cluster);
    (sends_on || canary.is_some_and(|canary| canary != own)).then(|| own.clone())
}

fn hashes_client(upstream: &Upstream) -> bool {
    match &upstream.config.policy {
        BalancePolicy::ConsistentHash { key, .. } => key.contains(&KeyPart::ClientIp),
        _ => false,
    }
}
