//! The kept responses of a fallback, with their metrics.

use super::metrics::MetricTable;
use crate::base::hash::Seed;
use crate::document::{self, FallbackStep};
use crate::host::{Host, MetricId};
use crate::policy::fallback::stale::rules::Unkept;
use crate::policy::fallback::stale::table::SizeChange;
use crate::policy::fallback::stale::{Draft, Stale};
use crate::store::Contended;

/// A fallback's kept responses, with their metrics.
#[derive(Debug)]
pub(super) struct StaleStore {
    pub(super) policy: Stale,
    pub(super) entries: MetricId,
    pub(super) bytes: MetricId,
    pub(super) evictions: MetricId,
    /// Answers that were not kept, in the order of [`Unkept::ALL`].
    unkept: [MetricId; Unkept::ALL.len()],
    pub(super) contention: MetricId,
}

impl StaleStore {
    pub(super) fn new<H: Host>(
        fallback: &document::Fallback,
        seed: Seed,
        host: &H,
    ) -> Option<Self> {
        let stale = fallback.steps.iter().find_map(|step| match step {
            FallbackStep::Stale(stale) => Some(stale),
            FallbackStep::Cluster(_) | FallbackStep::Respond(_) => None,
        })?;
        let names = MetricTable(host);
        let store = Self {
            policy: Stale::new(&fallback.name, stale.clone(), seed),
            entries: names.stale_entries(&fallback.name),
            bytes: names.stale_bytes(&fallback.name),
            evictions: names.stale_evictions(&fallback.name),
            unkept: Unkept::ALL.map(|why| names.stale_unkept(&fallback.name, why)),
            contention: names.contention(&fallback.name),
        };
        store.count(host, store.policy.adopt(host).map(Some));
        Some(store)
    }

    /// Counts an answer that is not kept.
    pub(super) fn skip<H: Host>(&self, host: &H, why: Unkept) {
        let known = Unkept::ALL.iter().position(|known| *known == why);
        if let Some(metric) = known.and_then(|at| self.unkept.get(at)) {
            host.add(*metric, 1);
        }
    }

    /// The copy, if there is one; counts why there is none.
    pub(super) fn drafted<H: Host>(
        &self,
        host: &H,
        copy: Result<Option<Draft>, Unkept>,
    ) -> Option<Draft> {
        copy.unwrap_or_else(|why| {
            self.skip(host, why);
            None
        })
    }

    pub(super) fn count<H: Host>(&self, host: &H, changed: Result<Option<SizeChange>, Contended>) {
        match changed {
            Ok(Some(change)) => {
                let all = [
                    (self.entries, change.entries),
                    (self.bytes, change.bytes),
                    (self.evictions, change.evicted),
                ];
                for (metric, change) in all.into_iter().filter(|(_, change)| *change != 0) {
                    host.add(metric, change);
                }
            }
            Ok(None) => {}
            Err(Contended) => host.add(self.contention, 1),
        }
    }
}
