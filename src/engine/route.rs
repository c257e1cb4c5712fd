//! A route, ready for requests: what its policies are, and how they act.

use crate::base::sketch::Sketch;
use crate::config::{Criticality, Mode};
use crate::host::{Host, MetricId};
use crate::policy::rate_limit::RateLimit;
use crate::policy::retry::{Budget, Totals};
use std::cell::RefCell;
use std::rc::Rc;

#[derive(Debug)]
pub(super) struct Limit {
    pub(super) policy: RateLimit,
    pub(super) keys: MetricId,
    pub(super) evictions: MetricId,
    pub(super) contention: MetricId,
}

/// A route's policies; what is off is not there.
#[derive(Debug)]
pub(super) struct Route {
    /// Index into the configuration's routes.
    pub(super) config: usize,
    /// Of a canary's: the route that it is a part of, in [`Engine::routes`].
    pub(super) stable: Option<usize>,
    pub(super) canary: Option<Canary>,
    /// Counts what goes where a canary could have had it.
    pub(super) sent: MetricId,
    pub(super) off: bool,
    pub(super) needs_client: bool,
    pub(super) needs_request_id: bool,
    /// Its switch, while that is off.
    pub(super) switched_off: Option<Binding>,
    /// Enforced ones first: a shadow use may only draw for a request that passed.
    pub(super) limits: Vec<Binding>,
    /// Its own concurrency limit, and its upstream's.
    pub(super) concurrency: [Option<Binding>; 2],
    pub(super) criticality: Criticality,
    pub(super) breaker: Option<Binding>,
    pub(super) upstream: Option<Binding>,
    /// Components of its upstream's check, `at` their index, without which it is refused.
    pub(super) depends_on: Vec<Binding>,
    pub(super) fallback: Option<FallbackBinding>,
    /// The cluster that the proxy has to be told, since the fallback or the canary may choose
    /// another.
    pub(super) cluster: Option<String>,
    pub(super) duration: MetricId,
    pub(super) retries: MetricId,
    /// Where requests are refused that are late; `at` means nothing.
    pub(super) deadline: Option<Binding>,
    /// What its requests have lately taken in this VM, where somebody wants to know.
    pub(super) seen: Option<Shared<Sketch>>,
    pub(super) retry: Option<Retries>,
}

/// A route's canary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Canary {
    pub(super) mode: Mode,
    /// What becomes of its requests, in [`Engine::routes`]: everything as on its route, but for the
    /// upstream, and with a breaker and a view of times of its own, so that nothing that it does is
    /// held against the route.
    pub(super) at: usize,
    /// Counts what a shadow would have sent.
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

    pub(super) fn with<R: Default>(&self, run: impl FnOnce(&mut Budget) -> R) -> R {
        self.budget.with(run)
    }
}

/// What requests of a VM share. It is never held over a host call, so that nobody finds it in use;
/// were it so, nothing would happen.
#[derive(Debug)]
pub(super) struct Shared<T>(pub(super) RefCell<T>);

impl<T> Shared<T> {
    pub(super) fn with<R: Default>(&self, run: impl FnOnce(&mut T) -> R) -> R {
        self.0
            .try_borrow_mut()
            .map(|mut it| run(&mut it))
            .unwrap_or_default()
    }
}

/// A policy's use on a route: where it is, whether it acts, and where its refusals are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding {
    pub(super) at: usize,
    pub(super) mode: Mode,
    pub(super) refusals: MetricId,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FallbackBinding {
    pub(super) at: usize,
    pub(super) mode: Mode,
    pub(super) errors: MetricId,
    pub(super) timeouts: MetricId,
    pub(super) stale: MetricId,
    pub(super) cluster: MetricId,
    pub(super) respond: MetricId,
}
