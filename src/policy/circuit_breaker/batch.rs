//! Good outcomes of a closed breaker, which its worker tallies in batches.
//!
//! A good outcome may wait in its worker for others, at most 16 of them, and for at most 10 ms as
//! long as outcomes come (an idle worker writes them with its next tick). What waits goes out before
//! the worker judges a failure, and before a new bucket begins.
//! It opens no breaker later: good outcomes wait only while the buckets alone hold `minimum_calls`,
//! and what is missing then makes a share of failures look higher, never lower. By how much is
//! bounded: each worker keeps at most 1 in 128 of the calls in the window. Slow calls do not wait,
//! and nothing does where `consecutive_failures` counts: there one good outcome changes all.

use super::window::{Ring, weight};
use super::{BreakerSettings, CallResult, CircuitBreaker, Phase};
use crate::base::time::{Moment, Nanos};
use crate::policy::Outcome;

/// Good outcomes of a closed breaker that its worker has not tallied yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch {
    epoch: u32,
    count: u32,
    /// When the first of them came.
    since: Moment,
}

/// The most good outcomes that a worker tallies with one call, and as a part of those that are in
/// the window; and how long it may keep them before its next outcome.
const BATCH: u32 = 16;
const BATCH_PART: u32 = 128;
const BATCH_TIME: Nanos = Nanos::from_millis(10);

impl Batch {
    pub(super) const fn is_waiting(self) -> bool {
        self.count > 0
    }
}

impl CircuitBreaker {
    /// Keeps a good outcome for the tally, if it can wait there.
    pub(super) fn keep(
        &self,
        settings: &BreakerSettings,
        now: Moment,
        epoch: u32,
        call: CallResult,
    ) -> bool {
        let Some(view) = self.view.get().filter(|_| self.is_metered()) else {
            return false;
        };
        let can_wait = call.outcome == Outcome::Success
            && (view.phase, view.epoch) == (Phase::Closed, epoch)
            && settings.is_timed()
            && settings.config().consecutive_failures == 0
            && view.base.is_some()
            && view.sum.calls >= settings.config().minimum_calls
            && !settings.is_slow(call)
            && !Ring::is_behind(view.head, settings.bucket_of(now));
        if !can_wait {
            return false;
        }
        let mut good = self.good.get();
        if good.count == 0 || good.epoch != epoch {
            (good.epoch, good.count, good.since) = (epoch, 0, now);
        }
        good.count = good.count.saturating_add(1);
        let most = (view.sum.calls / BATCH_PART).min(BATCH);
        let waits = good.count < most && good.since.is_within(BATCH_TIME, now);
        if waits {
            self.good.set(good);
        }
        waits
    }

    /// What [`CircuitBreaker::keep`] has kept, as far as it counts in this epoch; it is kept no
    /// more.
    pub(super) fn kept(&self, epoch: u32) -> i64 {
        let good = self.good.take();
        if good.epoch == epoch {
            weight(false, false).saturating_mul(good.count.into())
        } else {
            0
        }
    }
}
