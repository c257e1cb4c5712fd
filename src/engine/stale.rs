//! The kept responses of a fallback, with their metrics.

use super::metrics::MetricTable;
use crate::base::hash::Seed;
use crate::document::{self, FallbackStep};
use crate::host::{Host, MetricId};
use crate::policy::fallback::stale::Stale;
use crate::policy::fallback::stale::table::SizeChange;
use crate::store::Contended;

/// A fallback's kept responses, with their metrics.
#[derive(Debug)]
pub(super) struct StaleStore {
    pub(super) policy: Stale,
    pub(super) entries: MetricId,
    pub(super) bytes: MetricId,
    pub(super) evictions: MetricId,
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
            contention: names.contention(&fallback.name),
        };
        store.count(host, store.policy.adopt(host).map(Some));
        Some(store)
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
