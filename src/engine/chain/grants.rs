//! What a request was granted, and must be given back exactly once: places in flight, permits of
//! breakers, retries.

use crate::base::time::{Moment, Nanos};
use crate::engine::Engine;
use crate::engine::breaker::Breaker;
use crate::engine::concurrency::{Concurrency, Permit};
use crate::engine::lingering::Place;
use crate::engine::shared::Shared;
use crate::engine::upstream::{Pick, Upstream};
use crate::host::Host;
use crate::policy::circuit_breaker::CallResult;
use crate::policy::concurrency::Room;
use crate::policy::retry::Budget;
use std::rc::Rc;

/// The grants of a request that are not given back yet.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// In flight, at the route's limit and at its upstream's.
    concurrency: [Option<(Rc<Concurrency>, Permit)>; 2],
    breaker: Option<BreakerGrant>,
    endpoint: Option<EndpointGrant>,
    retries: Option<RetryGrant>,
}

/// Admission by the route's breaker, which waits for the outcome.
#[derive(Debug)]
struct BreakerGrant {
    breaker: Rc<Breaker>,
    epoch: u32,
    /// Whether the breaker tries the upstream with the request.
    trial: bool,
}

/// The endpoints picked, while in flight.
#[derive(Debug)]
struct EndpointGrant {
    upstream: Rc<Upstream>,
    pick: Pick,
    /// Whether the outcome was recorded.
    recorded: bool,
}

/// Retries that the proxy may make.
#[derive(Debug)]
struct RetryGrant {
    budget: Rc<Shared<Budget>>,
    count: u32,
}

impl Grants {
    /// The concurrency limit at `place` (0: the route's, 1: its upstream's) counts the request.
    pub(super) fn enter(&mut self, place: usize, limit: &Rc<Concurrency>, permit: Permit) {
        if let Some(held) = self.concurrency.get_mut(place) {
            *held = Some((Rc::clone(limit), permit));
        }
    }

    /// How much room its limits have for more than this request, the least of them; `None`: it has
    /// none.
    pub(super) fn room(&self, now: Moment) -> Option<Room> {
        let held = self.concurrency.iter().flatten();
        held.map(|(limit, permit)| limit.room(permit, now)).max()
    }

    /// Whether any of its limits has refused a request lately.
    pub(super) fn is_shedding(&self, now: Moment) -> bool {
        let mut held = self.concurrency.iter().flatten();
        held.any(|(limit, _)| limit.is_shedding(now))
    }

    /// Whether a try that takes long is better made at the next endpoint of the list. Where the
    /// proxy picks by itself, it may be.
    pub(super) fn has_faster_next(&self, now: Moment) -> bool {
        let granted = self.endpoint.as_ref();
        granted.is_none_or(|granted| granted.upstream.has_faster_next(&granted.pick, now))
    }

    /// The route's breaker admits the request. `trial`: only to try the upstream.
    pub(super) fn admit(&mut self, breaker: &Rc<Breaker>, epoch: u32, trial: bool) {
        self.breaker = Some(BreakerGrant {
            breaker: Rc::clone(breaker),
            epoch,
            trial,
        });
    }

    /// Endpoints were picked, and the request counts as in flight at the first.
    pub(super) fn pick(&mut self, upstream: &Rc<Upstream>, pick: Pick) {
        self.endpoint = Some(EndpointGrant {
            upstream: Rc::clone(upstream),
            pick,
            recorded: false,
        });
    }

    /// The proxy may make `count` retries of this budget.
    pub(super) fn retry(&mut self, budget: &Rc<Shared<Budget>>, count: u32) {
        self.retries = (count > 0).then(|| RetryGrant {
            budget: Rc::clone(budget),
            count,
        });
    }

    /// How many retries the proxy may make.
    pub(super) fn retries(&self) -> u32 {
        self.retries.as_ref().map_or(0, |granted| granted.count)
    }

    /// Whether the route's breaker only tries the upstream with the request.
    pub(super) fn is_trial(&self) -> bool {
        self.breaker.as_ref().is_some_and(|granted| granted.trial)
    }

    /// The endpoints picked; none of them where none were.
    pub(super) fn picked(&self) -> Pick {
        let granted = self.endpoint.as_ref();
        granted.map(|granted| granted.pick).unwrap_or_default()
    }

    /// The upstream has begun to answer well, after this time, if that is known.
    pub(super) fn answered<H: Host>(&mut self, host: &H, now: Moment, time: Option<Nanos>) {
        for (limit, permit) in self.concurrency.iter_mut().flatten() {
            limit.answered(host, permit, now, time);
        }
    }

    /// The retries are over: `spent` of them were made. `well`: whether the request was answered
    /// well, where that shows what they are good for.
    pub(super) fn settle_retries(&mut self, spent: u64, well: Option<bool>) {
        if let Some(granted) = self.retries.take() {
            granted
                .budget
                .with(|budget| budget.settle(granted.count, spent, well));
        }
    }

    /// Takes the admission by the route's breaker: its outcome is known.
    pub(super) fn take_breaker(&mut self) -> Option<(Rc<Breaker>, u32)> {
        let granted = self.breaker.take()?;
        Some((granted.breaker, granted.epoch))
    }

    /// The outcome at the endpoints is recorded; they stay in flight until the end.
    pub(super) const fn mark_recorded(&mut self) {
        if let Some(granted) = &mut self.endpoint {
            granted.recorded = true;
        }
    }

    /// Gives back all that is still held, without a verdict. `began`: when the upstream had the
    /// whole request. `now` is read only where a policy learns from it. `rest`: for how much longer
    /// its work may go on.
    pub(super) fn release<H: Host>(
        mut self,
        host: &H,
        began: Option<Moment>,
        now: impl Fn() -> Moment,
        engine: &Engine,
        rest: Nanos,
    ) {
        self.settle_retries(0, None);
        let rng = &engine.rng;
        let leave = |place: Place| {
            if rest == Nanos::ZERO {
                place.leave(host);
            } else {
                engine.lingering.add(host, now(), rest, place);
            }
        };
        if let Some(granted) = &self.endpoint
            && let Some(at) = granted.pick.counted()
        {
            leave(Place::Endpoint(Rc::clone(&granted.upstream), at));
        }
        let ending = || {
            let now = now();
            Some((now, now.since(began?)))
        };
        for (limit, permit) in self.concurrency.into_iter().flatten() {
            leave(Place::Limit(Rc::clone(&limit), permit.key));
            limit.ended(host, permit, ending);
        }
        if let Some(BreakerGrant { breaker, epoch, .. }) = self.breaker {
            breaker.end(host, now(), epoch, CallResult::IGNORED, rng);
        }
        if let Some(granted) = self.endpoint.filter(|granted| !granted.recorded) {
            granted.upstream.release(host, now(), &granted.pick, rng);
        }
    }
}
