//! A concurrency limit at run time: one for each route or upstream that names it.
//!
//! A request costs three calls of metrics to come in and one to go, of `adaptive` two more; shared
//! data is used once per tick, and by the first request after a while, for what a lost VM may have
//! left behind. Fair shares use it once in [`fair::SYNC`] and worker while the limit is nearly
//! full, and not at all otherwise.

use super::in_flight::{Gauge, InFlight};
use super::metrics::MetricTable;
use super::shared::Shared;
use super::shedding::Shedding;
use crate::base::hash::Seed;
use crate::base::time::{Moment, Nanos};
use crate::document::{self, ConcurrencyAlgorithm, Criticality, KeyPart};
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::concurrency::adaptive::{AdaptiveSettings, Observations};
use crate::policy::concurrency::fair::{self, FairShares, Standing};
use crate::policy::concurrency::streams::{self, Streams};
use crate::policy::concurrency::{Answer, Room, SHEDDING, has_room, share};
use crate::policy::shares::SharesRecord;
use crate::request::Request;
use std::cell::Cell;
use std::rc::Rc;

/// What others have refused within this time is going on.
const REFUSING: Nanos = Nanos::from_millis(100);

/// A limit of one subject.
#[derive(Debug)]
pub(super) struct Concurrency {
    name: String,
    bound: Cell<Bound>,
    gauge: Rc<Gauge>,
    in_flight: InFlight,
    limit: SharedCounter,
    seen: Cell<Observations>,
    shedding: Shedding,
    fair: Option<Fair>,
    /// Answers of this worker that go on.
    streams: Shared<Streams>,
}

/// Fair shares of a limit, with what belongs to them.
#[derive(Debug)]
struct Fair {
    shares: FairShares,
    /// Its name in decisions and replies.
    name: String,
    unkeyed: MetricId,
    contention: MetricId,
}

/// What a request asks a limit for.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceRequest {
    pub(super) now: Moment,
    pub(super) criticality: Criticality,
    /// Whose share it is of, where there are fair shares.
    pub(super) key: Option<u32>,
    /// Whether the limit acts.
    pub(super) enforce: bool,
    /// Whether the request is whole: an unfinished one finds out whether there is room, and takes
    /// none of it.
    pub(super) whole: bool,
    pub(super) vm: u64,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    Fixed(u64),
    Adaptive(AdaptiveSettings),
}

/// A request in flight, as its limit remembers it. It must leave exactly once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permit {
    /// How many were in flight when it came, itself included.
    among: u64,
    /// The limit at that moment.
    limit: u64,
    /// Whose share it counts to.
    pub(super) key: Option<u32>,
    /// Whether it has taken its place.
    entered: bool,
    /// Whether it was seen how long the upstream took, or that this says nothing.
    sampled: bool,
    /// The batch of streams that its answer is in, if that goes on.
    stream: Option<u32>,
}

impl Permit {
    /// Whether it has taken its place.
    pub(super) const fn has_entered(&self) -> bool {
        self.entered
    }
}

impl Concurrency {
    /// The limit `config` of a subject: its kind and name.
    pub(super) fn new<H: Host>(
        config: &document::ConcurrencyLimit,
        subject: [&str; 2],
        deadline: Nanos,
        criticality: Criticality,
        seed: Seed,
        host: &H,
    ) -> Self {
        let names = MetricTable(host);
        let [kind, key] = subject;
        let bound = match config.algorithm {
            ConcurrencyAlgorithm::Fixed { limit } => Bound::Fixed(limit.into()),
            ConcurrencyAlgorithm::Adaptive { min, max, initial } => {
                Bound::Adaptive(AdaptiveSettings {
                    min: min.into(),
                    max: max.into(),
                    initial: initial.into(),
                    deadline,
                    share: share(criticality),
                })
            }
        };
        let gauge = Gauge::new(0, names.concurrency_in_flight(&config.name, key));
        let new = Self {
            name: config.name.clone(),
            bound: Cell::new(bound),
            in_flight: InFlight::new(
                SharesRecord::new(&[&config.name, kind, key]),
                names.contention(&config.name),
                std::iter::once(Rc::clone(&gauge)),
            ),
            gauge,
            limit: names.concurrency_limit(&config.name, key),
            seen: Cell::new(Observations::default()),
            shedding: Shedding::new(names.concurrency_refused_at(&config.name, key)),
            streams: Shared::default(),
            fair: (!config.fair.is_empty()).then(|| Fair {
                shares: FairShares::new(
                    &config.fair,
                    &[&config.name, kind, key],
                    seed,
                    match bound {
                        Bound::Fixed(_) => 0,
                        Bound::Adaptive(_) => fair::HEADROOM,
                    },
                ),
                name: fair_name(&config.name),
                unkeyed: names.fair_unkeyed(&config.name),
                contention: names.contention(&config.name),
            }),
        };
        // What a former configuration found goes on, within the bounds of this one.
        host.store(new.limit, new.limit(host));
        new
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the limit of that subject: its gauges are.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.in_flight.shares() == other.in_flight.shares()
    }

    /// The limit is shared by a route with this deadline too: the shortest holds.
    pub(super) fn share(&self, deadline: Nanos, criticality: Criticality) {
        if let Bound::Adaptive(mut settings) = self.bound.get() {
            settings.deadline = settings.deadline.min(deadline);
            settings.share = settings.share.max(share(criticality));
            self.bound.set(Bound::Adaptive(settings));
        }
    }

    /// What its fair shares are by; none where there are none.
    pub(super) fn fair_parts(&self) -> &[KeyPart] {
        self.fair.as_ref().map_or(&[], |fair| fair.shares.parts())
    }

    /// Whose share of this limit a request is of.
    pub(super) fn fair_key(&self, request: &Request<'_>) -> Option<u32> {
        self.fair.as_ref()?.shares.key(request)
    }

    /// The name under which fair shares refuse.
    pub(super) fn fair_name(&self) -> &str {
        self.fair.as_ref().map_or("", |fair| &fair.name)
    }

    /// Counts a request in. No permit: it was refused, and the limit acts; otherwise it is in
    /// flight, or will be when it is whole.
    pub(super) fn enter<H: Host>(&self, host: &H, asks: &PlaceRequest) -> (Option<Permit>, Answer) {
        let PlaceRequest {
            now,
            criticality,
            key,
            whole,
            ..
        } = *asks;
        let among = if whole {
            self.in_flight.announce(host, now, asks.vm);
            self.gauge.enter(host, now, self.far())
        } else {
            self.gauge.value(host).saturating_add(1)
        };
        let limit = self.limit(host);
        self.shedding.look(host, now);
        let others = among.saturating_sub(1);
        // Asked even where there is no room: it is then that workers have to know of each other.
        let standing = self.standing(host, asks, others, limit);
        // A limit that only looks on decides once, when the request is whole.
        let answer = if whole || asks.enforce {
            Answer::of(standing, others, limit, criticality)
        } else {
            Answer::Room
        };
        let room = answer == Answer::Room;
        if whole || !room {
            let others_refuse = self.shedding.is_within(REFUSING, now);
            self.learn(host, now, limit, |seen, settings| {
                seen.arrived(settings, now, among, limit, answer);
                if others_refuse {
                    seen.refused_elsewhere(settings, now);
                }
            });
        }
        if !room {
            self.shedding.refused(host, now);
            if let Some(fair) = &self.fair {
                fair.shares.with(|shares| shares.refused(now, standing));
            }
            if asks.enforce {
                if whole {
                    self.gauge.cancel(host);
                }
                return (None, answer);
            }
        }
        let mut permit = Permit {
            among,
            limit,
            key,
            entered: false,
            sampled: false,
            stream: None,
        };
        if whole {
            self.confirm(&mut permit);
        }
        (Some(permit), answer)
    }

    /// The request that was counted in stays.
    fn confirm(&self, permit: &mut Permit) {
        permit.entered = true;
        self.gauge.confirm();
        if let (Some(fair), Some(key)) = (&self.fair, permit.key) {
            fair.shares.with(|shares| shares.enter(key));
        }
    }

    /// Counts a request in that is being answered before it is whole: it is too late to refuse it.
    pub(super) fn enter_late<H: Host>(&self, host: &H, now: Moment, vm: u64, permit: &mut Permit) {
        if !permit.entered {
            self.in_flight.announce(host, now, vm);
            self.gauge.enter(host, now, self.far());
            self.confirm(permit);
        }
    }

    /// What the request's key has of fair shares, while they are in force.
    fn standing<H: Host>(
        &self,
        host: &H,
        asks: &PlaceRequest,
        others: u64,
        limit: u64,
    ) -> Standing {
        let Some(fair) = &self.fair else {
            return Standing::Within;
        };
        let Some(key) = asks.key else {
            host.add(fair.unkeyed, asks.whole.into());
            return Standing::Within;
        };
        let nearly_full = !has_room(others, limit, Criticality::Sheddable);
        let refused_at = self.shedding.last();
        let due = |shares: &mut fair::KeyCounts| {
            shares.others_refused(refused_at);
            shares.is_due(asks.now, nearly_full)
        };
        if fair.shares.with(due) && fair.shares.exchange(host, asks.now, asks.vm).is_err() {
            host.add(fair.contention, 1);
        }
        fair.shares
            .with(|shares| {
                shares.asks(key, asks.now);
                let active = shares.is_active(asks.now);
                active.then(|| shares.standing(key, asks.now))
            })
            .unwrap_or_default()
    }

    /// How much room there was for more than this request.
    pub(super) fn room(&self, permit: &Permit, now: Moment) -> Room {
        Room::of(permit.among, permit.limit, self.is_shedding(now))
    }

    /// How long a request with this permit takes, where all that are in flight queue.
    pub(super) fn expected(&self, permit: &Permit) -> Nanos {
        self.seen.get().expected(permit.among)
    }

    /// Whether it has refused something lately, as far as this worker knows.
    pub(super) fn is_shedding(&self, now: Moment) -> bool {
        self.shedding.is_within(SHEDDING, now)
    }

    /// The upstream has begun to answer well, after this time; `None`: how long it took is not
    /// known, since it answered before it had the whole request. What follows, a long body, a slow
    /// reader, a stream, says nothing of how soon a request is answered. `goes_on`: there is more.
    pub(super) fn answered<H: Host>(
        &self,
        host: &H,
        permit: &mut Permit,
        now: Moment,
        time: Option<Nanos>,
        goes_on: bool,
    ) {
        if goes_on && permit.stream.is_none() && self.streams_bound().is_some() {
            permit.stream = Some(self.streams.with(|streams| streams.begin(permit.key)));
        }
        if let (false, Some(time)) = (std::mem::replace(&mut permit.sampled, true), time) {
            self.sample(host, permit.among, now, time);
        }
    }

    /// Counts a request of this key's share out again.
    pub(super) fn leave<H: Host>(&self, host: &H, key: Option<u32>) {
        self.gauge.leave(host, self.far());
        if let (Some(fair), Some(key)) = (&self.fair, key) {
            fair.shares.with(|shares| shares.leave(key));
        }
    }

    /// Whether a request that ends still counts: it has taken its place, and is no stream that
    /// counts no more.
    pub(super) fn counts_still(&self, permit: &Permit) -> bool {
        let ends = |batch| self.streams.with(|streams| streams.end(batch, permit.key));
        permit.entered && permit.stream.is_none_or(ends)
    }

    /// Learns from how a request ended. `ending`: when, and how long the upstream had the whole
    /// request; `None`: it never had.
    pub(super) fn ended<H: Host>(
        &self,
        host: &H,
        permit: Permit,
        ending: impl FnOnce() -> Option<(Moment, Nanos)>,
    ) {
        // It was not answered, or failed.
        if let (false, Bound::Adaptive(settings)) = (permit.sampled, self.bound.get())
            && let Some((now, elapsed)) = ending()
            && settings.is_late(elapsed)
        {
            self.sample(host, permit.among, now, elapsed);
        }
    }

    /// A request that came when `among` were in flight took so long.
    fn sample<H: Host>(&self, host: &H, among: u64, now: Moment, time: Nanos) {
        if let Bound::Adaptive(_) = self.bound.get() {
            let (in_flight, limit) = (self.gauge.value(host), self.limit(host));
            self.learn(host, now, limit, |seen, settings| {
                // One that hung for long must not outweigh all others.
                let time = time.min(settings.deadline.times(2));
                seen.ended(settings, now, among, time, in_flight, limit);
            });
        }
    }

    /// Sets the gauges right: the limit's, and what a lost VM has left in the other.
    pub(super) fn maintain<H: Host>(&self, host: &H, now: Moment, vm: u64) {
        host.store(self.limit, self.limit(host));
        self.release_streams(host, now);
        self.in_flight.reconcile(host, now, vm);
    }

    /// How long streams count, if that is bounded.
    fn streams_bound(&self) -> Option<Nanos> {
        match self.bound.get() {
            Bound::Fixed(_) => None,
            Bound::Adaptive(settings) => Some(settings.deadline.min(streams::COUNTED)),
        }
    }

    /// Streams that have gone on for long count no more.
    fn release_streams<H: Host>(&self, host: &H, now: Moment) {
        let Some(bound) = self.streams_bound() else {
            return;
        };
        let over = self.streams.with(|streams| streams.turn(now, bound));
        (0..over.count).for_each(|_| self.gauge.leave(host, None));
        if let Some(fair) = &self.fair {
            fair.shares.with(|shares| shares.leave_all(&over.keys));
        }
    }

    /// Where places may be taken ahead: what learns from the number in flight, and fair shares, have
    /// to know it exactly.
    fn far(&self) -> Option<u64> {
        match self.bound.get() {
            Bound::Fixed(limit) if self.fair.is_none() => Some(limit),
            Bound::Fixed(_) | Bound::Adaptive(_) => None,
        }
    }

    /// Gives back the places that are kept ready.
    pub(super) fn close<H: Host>(&self, host: &H) {
        self.in_flight.settle(host);
    }

    fn limit<H: Host>(&self, host: &H) -> u64 {
        match self.bound.get() {
            Bound::Fixed(limit) => limit,
            Bound::Adaptive(settings) => settings.limit(host.load(self.limit)),
        }
    }

    fn learn<H: Host>(
        &self,
        host: &H,
        now: Moment,
        limit: u64,
        learn: impl FnOnce(&mut Observations, &AdaptiveSettings),
    ) {
        let Bound::Adaptive(settings) = &self.bound.get() else {
            return;
        };
        let mut seen = self.seen.take();
        learn(&mut seen, settings);
        let found = seen.next_limit(settings, now, limit);
        self.seen.set(seen);
        if let Some(found) = found {
            host.store(self.limit, found);
        }
    }
}

/// The name under which the fair shares of a limit refuse.
pub(super) fn fair_name(limit: &str) -> String {
    [limit, "/fair"].concat()
}
