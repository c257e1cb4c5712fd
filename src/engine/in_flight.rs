//! Gauges of requests in flight, and what a lost VM may have left in them.

use crate::base::sort;
use crate::base::time::Nanos;
use crate::host::{Host, MetricId};
use crate::policy::shares::{Shares, in_flight};
use crate::store::{self, RecordKey, Step};
use std::cell::Cell;

/// Gauges that one record tells of.
#[derive(Debug)]
pub(super) struct InFlight {
    shares: RecordKey,
    contention: MetricId,
    gauges: Vec<Gauge>,
    /// The gauges in the order of their ids.
    order: Vec<usize>,
    /// Requests in flight of this VM and configuration.
    total: Cell<u64>,
    /// Whether some were told last.
    told: Cell<bool>,
}

#[derive(Debug)]
struct Gauge {
    id: u64,
    metric: MetricId,
    own: Cell<u32>,
}

impl InFlight {
    /// Gauges by a number that is theirs in every configuration.
    pub(super) fn new(
        shares: RecordKey,
        contention: MetricId,
        gauges: impl Iterator<Item = (u64, MetricId)>,
    ) -> Self {
        let gauges: Vec<_> = gauges
            .map(|(id, metric)| Gauge {
                id,
                metric,
                own: Cell::new(0),
            })
            .collect();
        let mut order: Vec<_> = (0..gauges.len()).collect();
        sort::by_key(&mut order, |at| gauges.get(*at).map(|gauge| gauge.id));
        Self {
            shares,
            contention,
            gauges,
            order,
            total: Cell::new(0),
            told: Cell::new(false),
        }
    }

    /// Where the shares are told.
    pub(super) const fn key(&self) -> &RecordKey {
        &self.shares
    }

    /// Requests in flight over all workers.
    pub(super) fn value<H: Host>(&self, host: &H, at: usize) -> u64 {
        self.gauges
            .get(at)
            .map_or(0, |gauge| in_flight(host.value(gauge.metric)))
    }

    /// Counts one in, and not yet as its own: [`InFlight::confirm`] or [`InFlight::cancel`] follows.
    pub(super) fn enter<H: Host>(&self, host: &H, at: usize) {
        if let Some(gauge) = self.gauges.get(at) {
            host.add(gauge.metric, 1);
        }
    }

    /// The one that was counted in stays.
    pub(super) fn confirm(&self, at: usize) {
        if let Some(gauge) = self.gauges.get(at) {
            gauge.own.set(gauge.own.get().saturating_add(1));
            self.total.set(self.total.get().saturating_add(1));
        }
    }

    /// The one that was counted in does not stay.
    pub(super) fn cancel<H: Host>(&self, host: &H, at: usize) {
        if let Some(gauge) = self.gauges.get(at) {
            host.add(gauge.metric, -1);
        }
    }

    /// Counts one out again that was kept.
    pub(super) fn leave<H: Host>(&self, host: &H, at: usize) {
        if let Some(gauge) = self.gauges.get(at) {
            host.add(gauge.metric, -1);
            gauge.own.set(gauge.own.get().saturating_sub(1));
            self.total.set(self.total.get().saturating_sub(1));
        }
    }

    /// Whether it has something to tell, in every tick: a VM that tells nothing is taken for lost.
    pub(super) fn is_busy(&self) -> bool {
        self.total.get() > 0 || self.told.get()
    }

    /// Tells what is its own, and takes out of the gauges what is proven to be nobody's.
    pub(super) fn look_after<H: Host>(&self, host: &H, now: Nanos, vm: u64) {
        let busy = self.total.get() > 0;
        // Idle, and known to be.
        if !self.told.replace(busy)
            && !busy
            && self
                .gauges
                .iter()
                .all(|gauge| host.value(gauge.metric) == 0)
        {
            return;
        }
        let in_order = || self.order.iter().filter_map(|at| self.gauges.get(*at));
        let mut corrections: Vec<(MetricId, i64)> = Vec::new();
        let told = store::update(host, &self.shares, |bytes| {
            corrections.clear();
            let before = Shares::decode(bytes);
            let mut after = before.clone();
            // Within the loop, so that shares and gauges are of one moment.
            let gauges: Vec<_> = in_order()
                .map(|gauge| (gauge.id, gauge.own.get().into(), host.value(gauge.metric)))
                .collect();
            let metric = |place: usize| self.order.get(place).and_then(|at| self.gauges.get(*at));
            after.report(now, vm, &gauges, |place, by| {
                corrections.extend(metric(place).map(|gauge| (gauge.metric, by)));
            });
            if after == before {
                return Step::Keep(());
            }
            after.encode(bytes);
            Step::Write(())
        });
        match told {
            Ok(()) => corrections
                .iter()
                .for_each(|(metric, by)| host.add(*metric, *by)),
            Err(_) => host.add(self.contention, 1),
        }
    }
}
