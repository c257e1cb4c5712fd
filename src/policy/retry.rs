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
//!
//! **Spare capacity.** A share is a guess: with room at the upstream it gives up on requests that
//! another try would have answered, and without room every retry is one too many. Where a
//! concurrency limit shows which it is, the budget `auto` follows it: while half of the limit is
//! free, nothing is refused and answers are fast, every request gets its retries; else the share
//! of [`SHARE`] holds. Whatever the budget, a limit that refuses or is nearly full allows none:
//! the engine asks for none then.

pub mod config;

use crate::base::percent::Percent;
use crate::base::time::{Moment, Nanos};
use config::{Retry, RetryBudget};

/// The share of recent requests that `auto` may retry where it is not known that there is room.
pub const SHARE: Percent = Percent(2_000);

/// The span of time that counts as recent.
pub const WINDOW: Nanos = Nanos::from_secs(1);

/// Time between two readings.
const STEP: Nanos = Nanos::from_millis(200);

/// Readings kept: the window, and two that lie around its ends.
const READINGS: usize = 7;

/// The whole, in hundredths of a percent.
const WHOLE: u64 = 10_000;

/// Fewer requests that were tried again prove nothing.
const PROOF: u64 = 10;

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

/// What a request asks of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantRequest {
    /// Retries, at the most.
    pub wanted: u32,
    /// Whether the upstream is known to have room for all of them.
    pub spare: bool,
}

/// A worker's view of a route's budget.
#[derive(Clone, Debug)]
pub struct Budget {
    /// In hundredths of a percent.
    share: u64,
    /// Whether spare capacity may be spent beyond the share.
    auto: bool,
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
    /// Requests that were tried again, and those of them that were then answered well.
    retried: u64,
    helped: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Moment,
    totals: Totals,
    own: Own,
}

impl Budget {
    /// A budget of which nothing is spent.
    #[must_use]
    pub fn new(config: &Retry) -> Self {
        let (share, auto) = match config.budget {
            RetryBudget::Auto => (SHARE, true),
            RetryBudget::Share(share) => (share, false),
        };
        Self {
            share: share.0.into(),
            auto,
            floor: u64::from(config.min_per_second)
                .saturating_mul(WHOLE)
                .saturating_mul(WINDOW.as_secs_ceil()),
            own: Own::default(),
            open: 0,
            readings: [None; READINGS],
        }
    }

    /// Takes a reading if one is due. `totals`: before the present request.
    pub fn sample(&mut self, now: Moment, totals: Totals) {
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

    /// Counts a request, and grants it retries. The caller settles each grant exactly once.
    pub fn grant(&mut self, now: Moment, totals: Totals, request: GrantRequest) -> u32 {
        let wanted = request.wanted;
        self.sample(now, totals);
        self.own.requests = self.own.requests.saturating_add(1);
        if wanted == 0 {
            return 0;
        }
        if self.auto && request.spare && self.helps(now) {
            self.open = self.open.saturating_add(wanted.into());
            return wanted;
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

    /// Whether retries have lately helped: a fifth of the requests that were tried again were then
    /// answered well. Where nearly none was, there is no spare capacity, whatever a limit shows:
    /// the upstream is down, or refuses by itself what it has no room for.
    fn helps(&self, now: Moment) -> bool {
        let Some(base) = self.base(now) else {
            return true;
        };
        let retried = self.own.retried.saturating_sub(base.own.retried);
        let helped = self.own.helped.saturating_sub(base.own.helped);
        retried < PROOF || helped.saturating_mul(5) >= retried
    }

    /// Ends a grant: `spent` retries came of it. `well`: the request was answered well.
    pub fn settle(&mut self, granted: u32, spent: u64, well: Option<bool>) {
        self.open = self.open.saturating_sub(granted.into());
        self.own.settled = self.own.settled.saturating_add(granted.into());
        self.own.spent = self.own.spent.saturating_add(spent);
        if let Some(well) = well.filter(|_| spent > 0) {
            self.own.retried = self.own.retried.saturating_add(1);
            self.own.helped = self.own.helped.saturating_add(well.into());
        }
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
    fn base(&self, now: Moment) -> Option<Reading> {
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
mod tests;
