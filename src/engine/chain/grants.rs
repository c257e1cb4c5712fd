//! What a request was granted, and must be given back exactly once: places in flight, permits of
//! breakers, retries.

use crate::base::rng::Rng;
use crate::base::time::{Moment, Nanos};
use crate::document::FailureOn;
use crate::engine::Engine;
use crate::engine::breaker::Breaker;
use crate::engine::concurrency::{Concurrency, Permit};
use crate::engine::lingering::Place;
use crate::engine::shared::Shared;
use crate::engine::upstream::{Pick, Upstream};
use crate::host::Host;
use crate::policy::circuit_breaker::{Admission, CallResult};
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
    /// In which it was admitted; `None`: it asks when it is whole.
    epoch: Option<u32>,
    /// Whether the breaker tries the upstream with the request.
    trial: bool,
    /// Whether it knows that the answer has begun well.
    begun: bool,
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
    client: u32,
    count: u32,
}

impl BreakerGrant {
    fn end<H: Host>(self, host: &H, now: Moment, call: CallResult, rng: &Rng) {
        let call = CallResult {
            begun: self.begun,
            ..call
        };
        if let Some(epoch) = self.epoch {
            self.breaker.end(host, now, epoch, call, rng);
        }
    }
}

impl Grants {
    /// The concurrency limit at `place` (0: the route's, 1: its upstream's) counts the request.
    pub(super) fn enter(&mut self, place: usize, limit: &Rc<Concurrency>, permit: Permit) {
        if let Some(held) = self.concurrency.get_mut(place) {
            *held = Some((Rc::clone(limit), permit));
        }
    }

    /// All that is to be given back, if there is anything: most requests that only limits are asked
    /// for hold nothing.
    pub(super) fn take(&mut self) -> Option<Self> {
        let empty = self.concurrency.iter().all(Option::is_none)
            && self.breaker.is_none()
            && self.endpoint.is_none()
            && self.retries.is_none();
        (!empty).then(|| std::mem::take(self))
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
    pub(super) fn has_faster_next(&self, now: Moment, per_try: Nanos) -> bool {
        let held = self.concurrency.iter().flatten();
        let expected = held.map(|(limit, permit)| limit.expected(permit)).max();
        let expected = expected.unwrap_or_default();
        let granted = self.endpoint.as_ref();
        granted.is_none_or(|it| {
            it.upstream
                .has_faster_next(&it.pick, self.retries(), now, per_try, expected)
        })
    }

    /// The route's breaker admits the request. `trial`: only to try the upstream.
    pub(super) fn admit(&mut self, breaker: &Rc<Breaker>, epoch: u32, trial: bool) {
        self.breaker = Some(BreakerGrant {
            breaker: Rc::clone(breaker),
            epoch: Some(epoch),
            trial,
            begun: false,
        });
    }

    /// The route's breaker admits the request or not when it is whole: perhaps as a trial.
    pub(super) fn admit_later(&mut self, breaker: &Rc<Breaker>) {
        self.breaker = Some(BreakerGrant {
            breaker: Rc::clone(breaker),
            epoch: None,
            trial: true,
            begun: false,
        });
    }

    /// Whether the route's breaker has admitted the request.
    pub(super) fn is_admitted(&self) -> bool {
        let granted = self.breaker.as_ref();
        granted.is_some_and(|granted| granted.epoch.is_some())
    }

    /// Whether it has taken its place at this limit.
    pub(super) fn has_entered(&self, place: usize) -> bool {
        let held = self.concurrency.get(place).and_then(Option::as_ref);
        held.is_some_and(|(_, permit)| permit.has_entered())
    }

    /// Whether there is anything that it only takes when it is whole.
    pub(super) fn are_pending(&self) -> bool {
        let mut places = self.concurrency.iter().flatten();
        places.any(|(_, permit)| !permit.has_entered())
            || (self.breaker.is_some() && !self.is_admitted())
            || self.picked().is_pending()
    }

    /// The request is whole, or is being answered: its endpoint's trial begins, if it is to be one.
    pub(super) fn begin_endpoint<H: Host>(&mut self, host: &H, now: Moment) {
        if let Some(EndpointGrant { upstream, pick, .. }) = &mut self.endpoint {
            upstream.try_pending(host, now, pick);
        }
    }

    /// The request is being answered: if it is not whole, it takes now what it only takes when it is,
    /// and nothing refuses it.
    pub(super) fn enter_late<H: Host>(&mut self, host: &H, now: Moment, vm: u64) {
        for (limit, permit) in self.concurrency.iter_mut().flatten() {
            limit.enter_late(host, now, vm, permit);
        }
        if let Some(granted) = self.breaker.as_mut().filter(|it| it.epoch.is_none())
            && let Some(Admission::Admitted { epoch, trial }) = granted.breaker.acquire(host, now)
        {
            (granted.epoch, granted.trial) = (Some(epoch), trial);
        }
        self.begin_endpoint(host, now);
    }

    /// Endpoints were picked, and the request counts as in flight at the first.
    pub(super) fn pick(&mut self, upstream: &Rc<Upstream>, pick: Pick) {
        self.endpoint = Some(EndpointGrant {
            upstream: Rc::clone(upstream),
            pick,
            recorded: false,
        });
    }

    /// The proxy may make `count` retries of this budget for the client.
    pub(super) fn retry(&mut self, budget: &Rc<Shared<Budget>>, client: u32, count: u32) {
        self.retries = (count > 0).then(|| RetryGrant {
            budget: Rc::clone(budget),
            client,
            count,
        });
    }

    /// How many retries the proxy may make.
    pub(super) fn retries(&self) -> u32 {
        self.retries.as_ref().map_or(0, |granted| granted.count)
    }

    /// Whether the route's breaker only tries the upstream with the request.
    pub(super) fn is_trial(&self) -> bool {
        let granted = self.breaker.as_ref();
        granted.is_some_and(|granted| granted.trial && !granted.breaker.is_shadow())
    }

    /// Whether the request tries its route's breaker, or the endpoint picked.
    pub(super) fn is_any_trial(&self) -> bool {
        self.breaker.as_ref().is_some_and(|granted| granted.trial) || self.picked().is_trial()
    }

    /// The answer has begun well, by what each breaker counts as a failure, and goes on: trials
    /// need not wait for its end. `last`: the endpoint that answers.
    pub(super) fn begin_trials<H: Host>(
        &mut self,
        host: &H,
        now: Moment,
        last: Option<usize>,
        is_well: impl Fn(&FailureOn) -> bool,
    ) {
        if let Some(granted) = self.breaker.as_mut().filter(|granted| granted.trial)
            && let Some(epoch) = granted.epoch
            && is_well(&granted.breaker.config().failure_on)
        {
            granted.begun = granted.breaker.begin(host, now, epoch);
        }
        if let Some(EndpointGrant { upstream, pick, .. }) = &mut self.endpoint
            && upstream.failure_on().is_some_and(is_well)
        {
            upstream.begin(host, now, pick, last);
        }
    }

    /// The endpoints picked; none of them where none were.
    pub(super) fn picked(&self) -> Pick {
        let granted = self.endpoint.as_ref();
        granted.map(|granted| granted.pick).unwrap_or_default()
    }

    /// The upstream has begun to answer well, after this time, if that is known.
    /// `goes_on`: its end is still to come.
    pub(super) fn answered<H: Host>(
        &mut self,
        host: &H,
        now: Moment,
        time: Option<Nanos>,
        goes_on: bool,
    ) {
        for (limit, permit) in self.concurrency.iter_mut().flatten() {
            limit.answered(host, permit, now, time, goes_on);
        }
    }

    /// The retries are over: `spent` of them were made. `well`: whether the request was answered
    /// well; `None`: that is not known, or its client has seen to it.
    pub(super) fn settle_retries(&mut self, spent: u64, well: Option<bool>) {
        if let Some(granted) = self.retries.take() {
            granted
                .budget
                .with(|budget| budget.settle(granted.client, granted.count, spent, well));
        }
    }

    /// The outcome at the route's breaker is known.
    pub(super) fn end_breaker<H: Host>(
        &mut self,
        host: &H,
        now: Moment,
        result: impl FnOnce(&FailureOn) -> CallResult,
        rng: &Rng,
    ) {
        if let Some(granted) = self.breaker.take() {
            let result = result(&granted.breaker.config().failure_on);
            granted.end(host, now, result, rng);
        }
    }

    /// The outcome at the endpoints is recorded; they stay in flight until the end.
    pub(super) const fn mark_recorded(&mut self) {
        if let Some(granted) = &mut self.endpoint {
            granted.recorded = true;
        }
    }

    /// Gives back all that is still held, without a verdict. `began`: when the upstream had the
    /// whole request. `now` is read only where a policy learns from it. `rests`: for how
    /// much longer it counts at its limits, and at its endpoint.
    pub(super) fn release<H: Host>(
        mut self,
        host: &H,
        began: Option<Moment>,
        now: impl Fn() -> Moment,
        engine: &Engine,
        [at_limits, at_endpoint]: [Nanos; 2],
    ) {
        self.settle_retries(0, None);
        let rng = &engine.rng;
        let leave = |place: Place, rest: Nanos| {
            if rest == Nanos::ZERO {
                place.leave(host);
            } else {
                engine.lingering.add(host, now(), rest, place);
            }
        };
        if let Some(granted) = &self.endpoint
            && let Some(at) = granted.pick.counted()
        {
            leave(
                Place::Endpoint(Rc::clone(&granted.upstream), at),
                at_endpoint,
            );
        }
        let ending = || {
            let now = now();
            Some((now, now.since(began?)))
        };
        for (limit, permit) in self.concurrency.into_iter().flatten() {
            if limit.counts_still(&permit) {
                leave(Place::Limit(Rc::clone(&limit), permit.key), at_limits);
            }
            limit.ended(host, permit, ending);
        }
        if let Some(granted) = self.breaker {
            granted.end(host, now(), CallResult::IGNORED, rng);
        }
        if let Some(granted) = self.endpoint.filter(|granted| !granted.recorded) {
            granted.upstream.release(host, now(), &granted.pick, rng);
        }
    }
}
