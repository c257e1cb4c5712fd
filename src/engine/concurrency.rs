//! A concurrency limit at run time: one for each route or upstream that names it.
//!
//! A request costs three calls of metrics to come in and one to go, of `adaptive` two more; shared
//! data is used once per tick, for what a lost VM may have left behind.

use super::in_flight::{Gauge, InFlight};
use super::metrics::MetricTable;
use crate::base::time::Nanos;
use crate::document::{self, ConcurrencyAlgorithm, Criticality};
use crate::host::{Host, SharedCounter};
use crate::policy::concurrency::adaptive::{AdaptiveSettings, Observations};
use crate::policy::concurrency::has_room;
use crate::policy::shares::SharesRecord;
use std::cell::Cell;
use std::rc::Rc;

/// A limit of one subject.
#[derive(Debug)]
pub(super) struct Concurrency {
    name: String,
    bound: Cell<Bound>,
    gauge: Rc<Gauge>,
    in_flight: InFlight,
    limit: SharedCounter,
    seen: Cell<Observations>,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    Fixed(u64),
    Adaptive(AdaptiveSettings),
}

/// A request in flight, as its limit remembers it. It must be given back exactly once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permit {
    /// How many were in flight when it came, itself included.
    among: u64,
}

/// How a request ended, for a limit that learns from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) now: Nanos,
    /// How long it was in flight.
    pub(super) elapsed: Nanos,
    /// When its answer began, after so long; `None`: it failed, or was not answered.
    pub(super) answered: Option<Nanos>,
}

impl Concurrency {
    /// The limit `config` of a subject: its kind and name.
    pub(super) fn new<H: Host>(
        config: &document::ConcurrencyLimit,
        subject: [&str; 2],
        deadline: Nanos,
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
    pub(super) fn share(&self, deadline: Nanos) {
        if let Bound::Adaptive(mut settings) = self.bound.get() {
            settings.deadline = settings.deadline.min(deadline);
            self.bound.set(Bound::Adaptive(settings));
        }
    }

    /// Counts a request in. `None`: there was no room, and it was `enforce`d; otherwise it is in
    /// flight, and true if there was room.
    pub(super) fn enter<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        criticality: Criticality,
        enforce: bool,
    ) -> (Option<Permit>, bool) {
        self.gauge.enter(host);
        // At least itself, whatever the gauge holds.
        let among = self.gauge.value(host).max(1);
        let limit = self.limit(host);
        let room = has_room(among.saturating_sub(1), limit, criticality);
        self.learn(host, now, limit, |seen, settings| {
            seen.arrived(settings, now, among, limit, room)
        });
        if !room && enforce {
            self.gauge.cancel(host);
            return (None, false);
        }
        self.gauge.confirm();
        (Some(Permit { among }), room)
    }

    /// Counts it out again.
    pub(super) fn leave<H: Host>(&self, host: &H, permit: Permit, ending: impl FnOnce() -> Ending) {
        self.gauge.leave(host);
        let Bound::Adaptive(settings) = self.bound.get() else {
            return;
        };
        let Ending {
            now,
            elapsed,
            answered,
        } = ending();
        // What goes on long after it was answered in time is a stream; its end says nothing of how
        // soon a request is answered.
        let streams =
            |time: Nanos| time < settings.deadline && elapsed > settings.deadline.times(2);
        let counts = answered.map_or_else(|| settings.is_late(elapsed), |time| !streams(time));
        if counts {
            let (among, limit) = (self.gauge.value(host), self.limit(host));
            self.learn(host, now, limit, |seen, settings| {
                // One that hung for long must not outweigh all others.
                let elapsed = elapsed.min(settings.deadline.times(2));
                seen.ended(settings, now, permit.among, elapsed, among, limit);
            });
        }
    }

    /// Sets the gauges right: the limit's, and what a lost VM has left in the other.
    pub(super) fn maintain<H: Host>(&self, host: &H, now: Nanos, vm: u64) {
        host.store(self.limit, self.limit(host));
        self.in_flight.reconcile(host, now, vm);
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
        now: Nanos,
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
