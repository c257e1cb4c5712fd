//! Counts of requests in flight over all workers, and what a lost VM may have left in them.

use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::shares::{SharesRecord, in_flight};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Gauges whose shares are in one record.
#[derive(Debug)]
pub(super) struct InFlight {
    shares: SharesRecord,
    contention: MetricId,
    /// In the order of their ids; replaced as a whole.
    gauges: RefCell<Rc<[Rc<Gauge>]>>,
    /// For how many more ticks without a request this VM stays in the record.
    stays: Cell<u8>,
}

/// How many ticks without a request a VM stays in the record: one that gets requests at all writes
/// itself into it once, not with each of them.
const STAYS: u8 = 10;

/// The requests in flight at one place.
///
/// A VM does not write each request into the gauge that all share. What it has counted there may
/// be more than its own requests at a limit ([`Gauge::enter`]), and one more or less at an endpoint
/// ([`Gauge::shift`]). Its own it knows exactly. With each tick it counts exactly what it has, and
/// so it reports what of the gauge is its own. What it has counted is never below zero, nor is,
/// then, the sum of all VMs.
#[derive(Debug)]
pub(super) struct Gauge {
    id: u64,
    counter: SharedCounter,
    /// Those of this VM and configuration.
    own: Cell<u32>,
    /// What of the gauge's value is of this VM and configuration.
    counted: Cell<u32>,
    /// What the gauge said when it was read last, and for how many more looks that holds.
    seen: Cell<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    at: Moment,
    value: u64,
    looks: u8,
}

/// The most places that a VM takes at a limit with one call.
const STEP: u32 = 8;

/// The most places that a VM keeps at a limit without a request, as a part of the limit.
const SPARE: u64 = 128;

/// How long a reading of a gauge is believed, far from any limit.
const READING: Nanos = Nanos::from_millis(20);

/// How long a reading of an endpoint's gauge is believed, and for how many requests.
const LOOK: (Nanos, u8) = (Nanos::from_millis(10), 4);

/// The part by which what others see of a VM's requests at an endpoint may be wrong; at least one
/// request.
const ERROR: u32 = 8;

impl Gauge {
    /// A gauge with a number that is its own in every configuration.
    pub(super) fn new(id: u64, counter: SharedCounter) -> Rc<Self> {
        Rc::new(Self {
            id,
            counter,
            own: Cell::new(0),
            counted: Cell::new(0),
            seen: Cell::default(),
        })
    }

    /// Its number.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// Requests in flight over all workers, and places that they keep ready.
    pub(super) fn value<H: Host>(&self, host: &H) -> u64 {
        in_flight(host.load(self.counter))
    }

    /// Sets what is counted of this VM.
    fn count<H: Host>(&self, host: &H, count: u32) {
        let by = i64::from(count).saturating_sub(self.counted.replace(count).into());
        if by != 0 {
            host.increment(self.counter, by);
        }
    }

    /// Counts exactly what there is.
    fn settle<H: Host>(&self, host: &H) {
        self.count(host, self.own.get());
    }

    /// Whether this VM has nothing there, nor, by the gauge, any other.
    pub(super) fn is_settled<H: Host>(&self, host: &H) -> bool {
        self.own.get().max(self.counted.get()) == 0 && self.value(host) == 0
    }

    /// Counts out all that this VM has there.
    pub(super) fn abandon<H: Host>(&self, host: &H) {
        self.own.set(0);
        self.settle(host);
    }

    /// Takes a place at a limit, and says how many are in flight with it, at the most; not yet as
    /// its own: [`Gauge::confirm`] or [`Gauge::cancel`] follows. `limit`: where places may be taken
    /// ahead.
    ///
    /// **Never one over the limit.** Whoever takes places adds them to the gauge, and then reads it.
    /// So of all that are in flight at a moment the reading for the place that was added last has
    /// seen all of them, also if that place was kept ready for a while.
    ///
    /// **Near a limit one by one.** Above half of the limit no place is taken ahead, and none is
    /// kept. What is not used is at most [`STEP`] places in each VM, and 1 in [`SPARE`] of the
    /// limit; a VM without requests keeps them until its next tick.
    pub(super) fn enter<H: Host>(&self, host: &H, now: Moment, limit: Option<u64>) -> u64 {
        let (seen, needed) = (self.seen.get(), self.own.get().saturating_add(1));
        let ready = self.counted.get() >= needed;
        if ready && seen.at.is_within(READING, now) && is_far(seen.value, limit) {
            return seen.value;
        }
        if !ready {
            let step = step(limit).max(1);
            let ahead = if is_far(seen.value, limit) { step } else { 1 };
            self.count(host, needed.saturating_add(ahead.saturating_sub(1)));
        }
        let mut value = self.value(host);
        if !is_far(value, limit) {
            let ahead = self.counted.get().saturating_sub(needed);
            value = value.saturating_sub(ahead.into());
            self.count(host, needed);
        }
        self.seen.set(Seen {
            at: now,
            value,
            looks: 0,
        });
        // At least itself, whatever the gauge holds.
        value.max(1)
    }

    /// The one that was counted in stays.
    pub(super) fn confirm(&self) {
        self.own.set(self.own.get().saturating_add(1));
    }

    /// The one that was counted in does not stay.
    pub(super) fn cancel<H: Host>(&self, host: &H) {
        self.settle(host);
    }

    /// Counts one out again that stayed. `limit`: as it was for [`Gauge::enter`].
    pub(super) fn leave<H: Host>(&self, host: &H, limit: Option<u64>) {
        let own = self.own.get().saturating_sub(1);
        self.own.set(own);
        let spare = if is_far(self.seen.get().value, limit) {
            step(limit)
        } else {
            0
        };
        if self.counted.get().saturating_sub(own) > spare {
            self.count(host, own.saturating_add(spare / 2));
        }
    }

    /// Counts one more, or one less, at an endpoint. Others see it when the difference is more than
    /// one request and an eighth of what there is, when this VM looks at the gauge, or with its
    /// tick. `exact`: at once.
    pub(super) fn shift<H: Host>(&self, host: &H, more: bool, exact: bool) {
        let own = self.own.get();
        let own = if more {
            own.saturating_add(1)
        } else {
            own.saturating_sub(1)
        };
        self.own.set(own);
        let error = if exact { 0 } else { (own / ERROR).max(1) };
        if own.abs_diff(self.counted.get()) > error {
            self.settle(host);
        }
    }

    /// Requests in flight at an endpoint: this VM's own, and what others said when it was read last,
    /// at most [`LOOK`] ago.
    pub(super) fn load<H: Host>(&self, host: &H, now: Moment) -> u64 {
        let (time, looks) = LOOK;
        let mut seen = self.seen.get();
        if seen.looks == 0 || !seen.at.is_within(time, now) {
            self.settle(host);
            let others = self.value(host).saturating_sub(self.counted.get().into());
            seen = Seen {
                at: now,
                value: others,
                looks,
            };
        }
        seen.looks = seen.looks.saturating_sub(1);
        self.seen.set(seen);
        seen.value.saturating_add(self.own.get().into())
    }
}

/// How many places are taken ahead where this limit is far.
fn step(limit: Option<u64>) -> u32 {
    let part = limit.unwrap_or(0).checked_div(SPARE).unwrap_or(0);
    u32::try_from(part).unwrap_or(STEP).min(STEP)
}

/// Whether a limit is so far that places are taken ahead.
fn is_far(value: u64, limit: Option<u64>) -> bool {
    step(limit) > 0 && limit.is_some_and(|limit| value.saturating_mul(2) <= limit)
}

impl InFlight {
    pub(super) fn new(
        shares: SharesRecord,
        contention: MetricId,
        gauges: impl Iterator<Item = Rc<Gauge>>,
    ) -> Self {
        Self {
            shares,
            contention,
            gauges: RefCell::new(sorted(gauges)),
            stays: Cell::new(0),
        }
    }

    /// Replaces the gauges. One that is left out must be settled.
    pub(super) fn watch(&self, gauges: impl Iterator<Item = Rc<Gauge>>) {
        if let Ok(mut all) = self.gauges.try_borrow_mut() {
            *all = sorted(gauges);
        }
    }

    fn gauges(&self) -> Rc<[Rc<Gauge>]> {
        let all = self.gauges.try_borrow();
        all.map_or_else(|_| Rc::new([]) as _, |all| Rc::clone(&all))
    }

    /// Where the shares are reported.
    pub(super) const fn shares(&self) -> SharesRecord {
        self.shares
    }

    /// Counts exactly what there is of this VM.
    pub(super) fn settle<H: Host>(&self, host: &H) {
        self.gauges().iter().for_each(|gauge| gauge.settle(host));
    }

    /// Whether any request of this VM is in flight.
    fn has_any(&self) -> bool {
        self.gauges()
            .iter()
            .any(|gauge| gauge.own.get().max(gauge.counted.get()) > 0)
    }

    /// Whether it has a report to make in every tick: a VM without a report is taken for lost.
    pub(super) fn is_busy(&self) -> bool {
        self.stays.get() > 0
    }

    /// A request is about to be counted. The first after a while writes this VM into the record:
    /// otherwise, should it be lost before its next tick, nobody would know that it held anything.
    pub(super) fn announce<H: Host>(&self, host: &H, now: Moment, vm: u64) {
        if self.stays.replace(STAYS) == 0 && self.shares.announce(host, now, vm).is_err() {
            host.add(self.contention, 1);
        }
    }

    /// Reports what is its own, and takes out of the gauges what is proven to be of no VM. One that
    /// is idle looks too: what it sees may show that nothing is wrong.
    pub(super) fn reconcile<H: Host>(&self, host: &H, now: Moment, vm: u64) {
        self.settle(host);
        let stays = if self.has_any() {
            STAYS
        } else {
            self.stays.get().saturating_sub(1)
        };
        self.stays.set(stays);
        let gauges = self.gauges();
        let shares = || {
            gauges
                .iter()
                .map(|gauge| {
                    (
                        gauge.id,
                        gauge.counted.get().into(),
                        host.load(gauge.counter),
                    )
                })
                .collect()
        };
        match self.shares.report(host, now, vm, stays > 0, shares) {
            Ok(corrections) => corrections.into_iter().for_each(|(place, by)| {
                if let Some(gauge) = gauges.get(place) {
                    host.increment(gauge.counter, by);
                }
            }),
            Err(_) => host.add(self.contention, 1),
        }
    }
}

fn sorted(gauges: impl Iterator<Item = Rc<Gauge>>) -> Rc<[Rc<Gauge>]> {
    let mut gauges: Vec<_> = gauges.collect();
    sort::by_key(&mut gauges, |gauge| gauge.id);
    gauges.into()
}
