//! Which requests may be tried again, and how many of them.
//!
//! **Why a budget and not just a number of attempts?** While everything fails, two attempts for
//! each request double the load of an upstream that is down already. A share of the recent requests
//! bounds what retries add, whatever fails; few failures are all retried.
//!
//! haven grants retries before it knows whether they will be needed: the proxy needs the number
//! together with the request. So two things count:
//! - **Spent:** retries that happened in the last second, over all workers, against the requests of
//!   that second. Both are totals that only grow, so that nothing is lost with a worker; each
//!   worker keeps a few earlier readings to compare with.
//! - **Granted and still open:** each worker knows its own, and holds them against its share of the
//!   budget, weighted by the part of recent grants that became retries. In calm times a grant
//!   weighs little and every request gets one; in a retry storm it weighs a whole retry, so that
//!   the grants in flight cannot exceed the budget when all are used. Open grants end with their
//!   worker and need no cleaning up.
//!
//! The idea of a budget by share with a floor is Finagle's RetryBudget.

pub mod config;

use crate::base::time::Nanos;
use config::Retry;

/// The span of time that counts as recent.
pub const WINDOW: Nanos = Nanos::from_secs(1);

/// Time between two readings.
const STEP: Nanos = Nanos::from_millis(200);

/// Readings kept: the window, and two that lie around its ends.
const READINGS: usize = 7;

/// The whole, in hundredths of a percent.
const WHOLE: u64 = 10_000;

/// The least that an open grant weighs.
const LEAST_WEIGHT: u64 = 1_000;

/// Whether a request may be tried again at all. A gRPC call is a POST, and a list of methods cannot
/// single it out: it may be tried again where the route lists gRPC statuses or POST.
#[must_use]
pub fn is_eligible(config: &Retry, method: &[u8], grpc: bool) -> bool {
    let by_method = || {
        !config.on.is_empty()
            && config
                .methods
                .iter()
                .any(|known| known.as_bytes() == method)
    };
    config.attempts > 0 && ((grpc && !config.grpc_on.is_empty()) || by_method())
}

/// A route's totals over all workers, which only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests sent to the upstream.
    pub requests: u64,
    /// Tries beyond the first.
    pub retries: u64,
}

/// A worker's view of a route's budget.
#[derive(Clone, Debug)]
pub struct Budget {
    /// In hundredths of a percent.
    share: u64,
    /// Retries that are allowed in a window in any case, in ten thousandths.
    floor: u64,
    /// This worker's own totals.
    own: Own,
    /// Retries that are granted and not settled.
    open: u64,
    /// Newest first.
    readings: [Option<Reading>; READINGS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Own {
    requests: u64,
    /// Retries granted whose requests are over, and those of them that happened.
    settled: u64,
    spent: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Nanos,
    totals: Totals,
    own: Own,
}

impl Budget {
    /// A budget of which nothing is spent.
    #[must_use]
    pub fn new(config: &Retry) -> Self {
        Self {
            share: config.budget.0.into(),
            floor: u64::from(config.min_per_second)
                .saturating_mul(WHOLE)
                .saturating_mul(WINDOW.as_secs_ceil()),
            own: Own::default(),
            open: 0,
            readings: [None; READINGS],
        }
    }

    /// Takes a reading if one is due. `totals`: before the present request.
    pub fn sample(&mut self, now: Nanos, totals: Totals) {
        match self.readings.first().copied().flatten() {
            // The clock has stepped back: older readings cannot be compared.
            Some(newest) if now < newest.at => self.readings = [None; READINGS],
            Some(newest) if now.since(newest.at) < STEP => return,
            _ => {}
        }
        self.readings.rotate_right(1);
        if let Some(first) = self.readings.first_mut() {
            *first = Some(Reading {
                at: now,
                totals,
                own: self.own,
            });
        }
    }

    /// Counts a request, and grants it up to `wanted` retries. The caller settles each grant
    /// exactly once.
    pub fn grant(&mut self, now: Nanos, totals: Totals, wanted: u32) -> u32 {
        self.sample(now, totals);
        self.own.requests = self.own.requests.saturating_add(1);
        if wanted == 0 {
            return 0;
        }
        let Some(base) = self.base(now) else { return 0 };
        // On a host without metrics there are no totals: then this worker's own count.
        let own_requests = self.own.requests.saturating_sub(base.own.requests);
        let requests = totals
            .requests
            .saturating_add(1)
            .saturating_sub(base.totals.requests)
            .max(own_requests);
        let own_spent = self.own.spent.saturating_sub(base.own.spent);
        let retries = totals
            .retries
            .saturating_sub(base.totals.retries)
            .max(own_spent);
        // Of a span longer than the window only the part counts that a window would have seen.
        let age = now.since(base.at).max(WINDOW);
        let in_window = |n: u64, per: u64| portion(n.saturating_mul(per), WINDOW.0, age.0);
        let budget = in_window(requests, self.share).max(self.floor);
        let spent = in_window(retries, WHOLE);
        let left = budget.saturating_sub(spent);
        // Of what is left this worker may grant its share, by what grants are likely to cost.
        let room = portion(left, own_requests, requests)
            .checked_div(self.weight(base))
            .unwrap_or(0);
        // Only half of it may go to further tries of one request, so that as many requests as
        // possible get one.
        let wanted = if self.open > room / 2 {
            1
        } else {
            u64::from(wanted)
        };
        let grant = wanted.min(left / WHOLE).min(
            room.saturating_sub(self.open)
                .max(u64::from(self.open == 0)),
        );
        self.open = self.open.saturating_add(grant);
        u32::try_from(grant).unwrap_or(u32::MAX)
    }

    /// Ends a grant: `spent` retries came of it.
    pub fn settle(&mut self, granted: u32, spent: u64) {
        self.open = self.open.saturating_sub(granted.into());
        self.own.settled = self.own.settled.saturating_add(granted.into());
        self.own.spent = self.own.spent.saturating_add(spent);
    }

    /// What a retry that is granted is likely to cost, in ten thousandths.
    fn weight(&self, base: Reading) -> u64 {
        let settled = self.own.settled.saturating_sub(base.own.settled);
        let spent = self.own.spent.saturating_sub(base.own.spent);
        let seen = spent
            .saturating_mul(WHOLE)
            .checked_div(settled)
            .unwrap_or(0);
        seen.max(self.share).max(LEAST_WEIGHT)
    }

    /// The reading to compare with: the newest that is at least a window old; if that is older than
    /// two windows, the one after it, since the time between may have been idle.
    fn base(&self, now: Nanos) -> Option<Reading> {
        let mut after = None;
        for reading in self.readings.iter().flatten() {
            let age = now.since(reading.at);
            if age >= WINDOW {
                return if age >= WINDOW.times(2) {
                    after.or(Some(*reading))
                } else {
                    Some(*reading)
                };
            }
            after = Some(*reading);
        }
        after
    }
}

/// `n` × `part` / `whole`.
fn portion(n: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(n).saturating_mul(part.into());
    u64::try_from(product.checked_div(whole.into()).unwrap_or(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[cfg(test)]
mod tests;
