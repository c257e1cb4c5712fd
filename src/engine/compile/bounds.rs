//! What bounds the requests of a route: rate limits, concurrency limits and its breaker.

use super::{Compiler, Variant};
use crate::base::time::Nanos;
use crate::document::{self, BreakerScope, Mode, RequestTimeout};
use crate::engine::breaker::{Breaker, BreakerSubject};
use crate::engine::concurrency::Concurrency;
use crate::engine::metrics::MetricTable;
use crate::engine::route::{Binding, ConcurrencyBinding, Effect, Limit};
use crate::host::{Host, MetricId};
use crate::policy::concurrency::adaptive::DEFAULT_DEADLINE;
use crate::policy::rate_limit::RateLimit;
use crate::request::Reason;
use std::rc::Rc;

impl<H: Host> Compiler<'_, H> {
    /// The route's rate limits, enforced ones first.
    pub(super) fn limits(&mut self, route: &document::Route, mode: Mode) -> Vec<Binding<Limit>> {
        let mut limits = Vec::new();
        for limit in &route.rate_limits {
            let mode = limit.mode.unwrap_or(mode);
            if mode == Mode::Off {
                continue;
            }
            let refusals = MetricTable(self.host).decisions(
                &route.name,
                &limit.name,
                Reason::RateLimited,
                mode,
            );
            limits.push(Binding::new(self.limit(limit, mode), mode, refusals));
        }
        let (mut limits, shadows): (Vec<_>, Vec<_>) =
            limits.into_iter().partition(Binding::is_enforced);
        limits.extend(shadows);
        limits
    }

    /// This rate limit, enforced or as a shadow; all uses share its buckets.
    fn limit(&mut self, limit: &Rc<document::RateLimit>, mode: Mode) -> Rc<Limit> {
        let is_shadow = mode == Mode::Shadow;
        let known = self
            .limits
            .iter()
            .find(|known| known.name() == limit.name && known.is_shadow == is_shadow);
        if let Some(known) = known {
            return Rc::clone(known);
        }
        let is_it = |it: &Rc<document::RateLimit>| Rc::ptr_eq(it, limit);
        let alone = self
            .config
            .routes
            .iter()
            .filter(|route| route.rate_limits.iter().any(is_it))
            .all(|route| route.rate_limits.len() == 1);
        let metrics = MetricTable(self.host);
        let new = Rc::new(Limit {
            policy: RateLimit::new(
                limit.as_ref().clone(),
                &self.config.client_ip,
                mode.namespace(),
                alone,
                self.seed,
            ),
            is_shadow,
            keys: metrics.rate_limit_keys(&limit.name),
            evictions: metrics.rate_limit_evictions(&limit.name),
            contention: metrics.contention(&limit.name),
        });
        self.limits.push(Rc::clone(&new));
        new
    }

    /// The concurrency limits of the route and of its upstream.
    pub(super) fn concurrency_limits(
        &mut self,
        variant: &Variant<'_>,
        mode: Mode,
    ) -> [Option<ConcurrencyBinding>; 2] {
        let route = variant.route;
        let own = self.concurrency_limit(
            variant,
            route.concurrency_limit.as_ref(),
            ["route", &route.name],
            mode,
        );
        let shared = variant.upstream.and_then(|upstream| {
            self.concurrency_limit(
                variant,
                upstream.concurrency_limit.as_ref(),
                ["upstream", &upstream.name],
                upstream.mode.unwrap_or(mode),
            )
        });
        [own, shared]
    }

    /// A concurrency limit as the route uses it; all routes of an upstream share one.
    fn concurrency_limit(
        &mut self,
        variant: &Variant<'_>,
        limit: Option<&Rc<document::ConcurrencyLimit>>,
        subject: [&str; 2],
        mode: Mode,
    ) -> Option<ConcurrencyBinding> {
        let limit = limit?;
        let mode = limit.mode.unwrap_or(mode);
        if mode == Mode::Off {
            return None;
        }
        let deadline = longest(variant.route);
        let criticality = variant.route.criticality;
        let new = Concurrency::new(limit, subject, deadline, criticality, self.seed, self.host);
        let known = self.concurrency.iter().find(|known| known.is(&new));
        let policy = known.map_or_else(|| Rc::new(new), Rc::clone);
        if known.is_none() {
            self.concurrency.push(Rc::clone(&policy));
        }
        policy.share(deadline, criticality);
        let refusals = |name: &str| self.refusals(variant, name, Reason::Overload, mode);
        let over_share = match policy.fair_name() {
            "" => MetricId::NONE,
            name => refusals(name),
        };
        Some(ConcurrencyBinding {
            over_share: Effect {
                mode,
                refusals: over_share,
            },
            limit: Binding::new(policy, mode, refusals(&limit.name)),
        })
    }

    pub(super) fn breaker(
        &mut self,
        variant: &Variant<'_>,
        mode: Mode,
    ) -> Option<Binding<Breaker>> {
        let config = variant.circuit_breaker?;
        let mode = config.mode.unwrap_or(mode);
        if mode == Mode::Off {
            return None;
        }
        let route = &variant.route.name;
        let subject = match (config.scope, variant.upstream) {
            (BreakerScope::Upstream, Some(upstream)) => BreakerSubject::Upstream(&upstream.name),
            (_, Some(upstream)) if variant.is_canary => {
                BreakerSubject::Canary(route, &upstream.name)
            }
            _ => BreakerSubject::Route(route),
        };
        let policy = self.breaker_of(config, subject, mode);
        let refusals = self.refusals(variant, &config.name, Reason::CircuitOpen, mode);
        Some(Binding::new(policy, mode, refusals))
    }

    /// The breaker of this subject: routes of one upstream may share one.
    fn breaker_of(
        &mut self,
        config: &document::CircuitBreaker,
        subject: BreakerSubject<'_>,
        mode: Mode,
    ) -> Rc<Breaker> {
        let new = Breaker::new(
            config,
            subject,
            mode,
            &self.logs,
            self.counters.of(&config.name, self.host),
            self.host,
        );
        if let Some(known) = self.breakers.iter().find(|known| known.is_same(&new)) {
            return Rc::clone(known);
        }
        let new = Rc::new(new);
        self.breakers.push(Rc::clone(&new));
        new
    }
}

/// In what time a route's requests are to be answered, at the most.
fn longest(route: &document::Route) -> Nanos {
    route
        .timeout
        .request
        .map_or(DEFAULT_DEADLINE, RequestTimeout::longest)
}
