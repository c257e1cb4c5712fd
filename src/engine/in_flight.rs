//! Counts of requests in flight over all workers, and what a lost VM may have left in them.

use crate::base::sort;
use crate::base::time::Moment;
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::shares::{SharesRecord, in_flight};
use std::cell::Cell;
use std::rc::Rc;

/// Gauges whose shares are in one record.
#[derive(Debug)]
pub(super) struct InFlight {
    shares: SharesRecord,
    contention: MetricId,
    /// In the order of their ids.
    gauges: Vec<Rc<Gauge>>,
    /// For how many more ticks without a request this VM stays in the record.
    stays: Cell<u8>,
}

/// How many ticks without a request a VM stays in the record: one that gets requests at all writes
/// itself into it once, not with each of them.
const STAYS: u8 = 10;

/// The requests in flight at one place.
#[derive(Debug)]
pub(super) struct Gauge {
    id: u64,
    counter: SharedCounter,
    /// Those of this VM and configuration.
    own: Cell<u32>,
}

impl Gauge {
    /// A gauge with a number that is its own in every configuration.
    pub(super) fn new(id: u64, counter: SharedCounter) -> Rc<Self> {
        Rc::new(Self {
            id,
            counter,
            own: Cell::new(0),
        })
    }

    /// Requests in flight over all workers.
    pub(super) fn value<H: Host>(&self, host: &H) -> u64 {
        in_flight(host.load(self.counter))
    }

    /// Counts one in, and not yet as its own: [`Gauge::confirm`] or [`Gauge::cancel`] follows.
    pub(super) fn enter<H: Host>(&self, host: &H) {
        host.increment(self.counter, 1);
    }

    /// The one that was counted in stays.
    pub(super) fn confirm(&self) {
        self.own.set(self.own.get().saturating_add(1));
    }

    /// The one that was counted in does not stay.
    pub(super) fn cancel<H: Host>(&self, host: &H) {
        host.increment(self.counter, -1);
    }

    /// Counts one out again that stayed.
    pub(super) fn leave<H: Host>(&self, host: &H) {
        host.increment(self.counter, -1);
        self.own.set(self.own.get().saturating_sub(1));
    }
}

impl InFlight {
    pub(super) fn new(
        shares: SharesRecord,
        contention: MetricId,
        gauges: impl Iterator<Item = Rc<Gauge>>,
    ) -> Self {
        let mut gauges: Vec<_> = gauges.collect();
        sort::by_key(&mut gauges, |gauge| gauge.id);
        Self {
            shares,
            contention,
            gauges,
            stays: Cell::new(0),
        }
    }

    /// Where the shares are reported.
    pub(super) const fn shares(&self) -> SharesRecord {
        self.shares
    }

    /// Whether any request of this VM is in flight.
    fn has_any(&self) -> bool {
        self.gauges.iter().any(|gauge| gauge.own.get() > 0)
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
        let stays = if self.has_any() {
            STAYS
        } else {
            self.stays.get().saturating_sub(1)
        };
        self.stays.set(stays);
        let shares = || {
            self.gauges
                .iter()
                .map(|gauge| (gauge.id, gauge.own.get().into(), host.load(gauge.counter)))
                .collect()
        };
        match self.shares.report(host, now, vm, stays > 0, shares) {
            Ok(corrections) => corrections.into_iter().for_each(|(place, by)| {
                if let Some(gauge) = self.gauges.get(place) {
                    host.increment(gauge.counter, by);
                }
            }),
            Err(_) => host.add(self.contention, 1),
        }
    }
}
