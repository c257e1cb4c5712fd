//! A route, ready for requests: the policies that it uses, and how each acts there.

use super::breaker::Breaker;
use super::concurrency::Concurrency;
use super::shared::Shared;
use super::stale::StaleStore;
use super::upstream::{ComponentState, Upstream};
use crate::base::sketch::Sketch;
use crate::base::time::Moment;
use crate::document::{self, FallbackStep, Mode, RequestTimeout, Timeout};
use crate::host::{Host, MetricId};
use crate::policy::rate_limit::RateLimit;
use crate::policy::retry::{Budget, Totals};
use std::cell::Cell;
use std::rc::Rc;

/// A route's policies; what is off is not there.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) config: Rc<document::Route>,
    pub(super) canary: Option<Canary>,
    /// Counts the requests that go to its upstream, where a canary could have had them.
    pub(super) sent: MetricId,
    pub(super) off: bool,
    /// Whether it acts by its own mode.
    pub(super) acts: bool,
    pub(super) needs_client: bool,
    /// Whether clients have shares of something: of a retry budget, or of places in which to wait.
    pub(super) has_shares: bool,
    pub(super) needs_request_id: bool,
    /// Its switch, while that is off.
    pub(super) switched_off: Option<Binding<document::Switch>>,
    /// Enforced ones first: a shadow use may only draw for a request that passed.
    pub(super) limits: Vec<Binding<Limit>>,
    /// Its own concurrency limit, and its upstream's.
    pub(super) concurrency: [Option<ConcurrencyBinding>; 2],
    pub(super) breaker: Option<Binding<Breaker>>,
    pub(super) upstream: Option<Binding<Upstream>>,
    /// Components of its upstream's check without which it is refused.
    pub(super) depends_on: Vec<Binding<ComponentState>>,
    pub(super) fallback: Option<FallbackBinding>,
    /// The cluster that each request names to the proxy, since the fallback or the canary may
    /// choose another.
    pub(super) cluster: Option<String>,
    pub(super) duration: MetricId,
    pub(super) retries: MetricId,
    /// Counts answers from elsewhere than the proxy was asked to send the request to.
    pub(super) not_followed: MetricId,
    /// What of it this VM has logged, a bit for each kind.
    pub(super) told: Cell<u8>,
    /// What happens to requests that are late.
    pub(super) deadline: Option<Effect>,
    /// What its requests have lately taken in this VM, where a policy uses it.
    pub(super) seen: Option<Shared<Times>>,
    pub(super) retry: Option<Retries>,
}

/// What a policy's refusal leads to: whether it acts, and where it is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effect {
    pub(super) mode: Mode,
    pub(super) refusals: MetricId,
}

/// What the requests of a route have lately taken, from the moment at which they were whole.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// Until the answer began: what shows how fast the upstream is.
    pub(super) begun: Sketch,
    /// Until its end, where a timeout follows it: that cuts off the body too.
    pub(super) whole: Option<Sketch>,
}

impl Times {
    pub(super) fn new(timeout: &Timeout) -> Shared<Self> {
        let dynamic = matches!(timeout.request, Some(RequestTimeout::Dynamic(_)));
        let times = Shared::<Self>::default();
        times.with(|times| times.whole = dynamic.then(Sketch::default));
        times
    }

    /// What a dynamic timeout follows.
    pub(super) fn whole(&mut self) -> &mut Sketch {
        self.whole.as_mut().unwrap_or(&mut self.begun)
    }
}

impl Effect {
    pub(super) fn is_enforced(self) -> bool {
        self.mode == Mode::Enforce
    }
}

/// A policy as a route uses it.
#[derive(Debug)]
pub(super) struct Binding<T> {
    pub(super) policy: Rc<T>,
    pub(super) effect: Effect,
}

impl<T> Binding<T> {
    pub(super) const fn new(policy: Rc<T>, mode: Mode, refusals: MetricId) -> Self {
        let effect = Effect { mode, refusals };
        Self { policy, effect }
    }

    pub(super) fn is_enforced(&self) -> bool {
        self.effect.is_enforced()
    }
}

impl<T> Clone for Binding<T> {
    fn clone(&self) -> Self {
        Self {
            policy: Rc::clone(&self.policy),
            effect: self.effect,
        }
    }
}

/// A concurrency limit as a route uses it.
#[derive(Debug)]
pub(super) struct ConcurrencyBinding {
    pub(super) limit: Binding<Concurrency>,
    /// Of what its fair shares refuse.
    pub(super) over_share: Effect,
}

/// A rate limit with its metrics. An enforced and a shadow use of the same limit have buckets of
/// their own.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) policy: RateLimit,
    pub(super) is_shadow: bool,
    pub(super) keys: MetricId,
    pub(super) evictions: MetricId,
    pub(super) contention: MetricId,
}

impl Limit {
    pub(super) fn name(&self) -> &str {
        &self.policy.config.name
    }
}

/// A route's canary.
#[derive(Debug)]
pub(super) struct Canary {
    pub(super) mode: Mode,
    pub(super) config: document::Canary,
    /// The name of its upstream.
    pub(super) upstream: String,
    /// The route that its requests take: as the route itself, but for the upstream, and with a
    /// breaker and a view of times of its own, so that a failure of the canary is not held against
    /// the route.
    pub(super) route: Rc<Route>,
    /// Counts what a shadow would have sent to the route's upstream, and to the canary's.
    pub(super) would: [MetricId; 2],
}

/// A route's retries.
#[derive(Clone, Debug)]
pub(super) struct Retries {
    /// Counts requests, over all workers.
    pub(super) requests: MetricId,
    /// One for a route and its canary.
    pub(super) budget: Rc<Shared<Budget>>,
}

impl Retries {
    pub(super) fn totals<H: Host>(&self, route: &Route, host: &H) -> Totals {
        Totals {
            requests: host.value(self.requests),
            retries: host.value(route.retries),
        }
    }
}

/// A fallback, ready for use.
#[derive(Debug)]
pub(super) struct Fallback {
    pub(super) config: Rc<document::Fallback>,
    /// What its stale step keeps.
    pub(super) stale: Option<StaleStore>,
}

/// A fallback as a route uses it.
#[derive(Clone, Debug)]
pub(super) struct FallbackBinding {
    pub(super) policy: Rc<Fallback>,
    pub(super) mode: Mode,
    /// Count its answers in place of failures, and of timeouts.
    pub(super) errors: MetricId,
    pub(super) timeouts: MetricId,
    /// Count its answers by step.
    pub(super) stale: MetricId,
    pub(super) cluster: MetricId,
    pub(super) respond: MetricId,
    /// When the upstream broke a failed answer off while it was kept, last.
    pub(super) torn: Cell<Option<Moment>>,
}

impl FallbackBinding {
    /// What counts the answers of this step.
    pub(super) const fn counter(&self, step: &FallbackStep) -> MetricId {
        match step {
            FallbackStep::Stale(_) => self.stale,
            FallbackStep::Cluster(_) => self.cluster,
            FallbackStep::Respond(_) => self.respond,
        }
    }
}

impl Route {
    /// The kept responses of its fallback, if that acts.
    pub(super) fn stale_store(&self) -> Option<&StaleStore> {
        let used = self.fallback.as_ref()?;
        if used.mode != Mode::Enforce {
            return None;
        }
        used.policy.stale.as_ref()
    }

    /// Whether its deadlines act.
    pub(super) fn enforces_deadline(&self) -> bool {
        self.deadline.is_some_and(Effect::is_enforced)
    }

    /// Whether anything is to be learned from an answer.
    pub(super) fn judges_answers(&self) -> bool {
        self.breaker.is_some()
            || self.upstream.is_some()
            || self.fallback.is_some()
            || self.seen.is_some()
            || self.concurrency.iter().any(Option::is_some)
    }
}
