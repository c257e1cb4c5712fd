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
//! **Whose budget it is.** All clients of a route have one budget, and each a part of it: [`shares`].
//!
//! **Spare capacity.** A share is a guess: with room at the upstream it gives up on requests that
//! another try would have answered, and without room every retry is one too many. Where a
//! concurrency limit shows which it is, the budget `auto` follows it: while half of the limit is
//! free, nothing is refused and answers are fast, every request gets its retries; else the share
//! of [`SHARE`] holds. Whatever the budget, a limit that refuses or is nearly full allows none:
//! the engine asks for none then.

pub mod config;
pub mod shares;

use crate::base::percent::Percent;
use crate::base::time::{Moment, Nanos};
use config::{Retry, RetryBudget};
use shares::Shares;

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
    /// Whose request it is.
    pub client: u32,
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
    /// What each client has of it.
    shares: Shares,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Own {
    requests: u64,
    /// Retries that happened.
    spent: u64,
    /// Of clients that do not stand out: retries granted whose requests are over, and those of them
    /// that happened.
    settled: u64,
    used: u64,
    /// Of the same: requests that were tried again, and those of them that were then answered well.
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
            shares: Shares::default(),
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
        let GrantRequest { wanted, client, .. } = request;
        self.sample(now, totals);
        self.own.requests = self.own.requests.saturating_add(1);
        self.shares.ask(now, client);
        let granted = if wanted == 0 {
            0
        } else if self.auto && request.spare && self.helps(now) {
            wanted
        } else {
            self.grant_of_budget(now, totals, wanted, client)
        };
        if granted > 0 {
            self.open = self.open.saturating_add(granted.into());
            self.shares.grant(client, granted);
        }
        granted
    }

    /// What the budget has left for so many retries of this client.
    fn grant_of_budget(&self, now: Moment, totals: Totals, wanted: u32, client: u32) -> u32 {
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
        let own_part = |whole| portion(whole, own_requests, requests);
        let left = budget.saturating_sub(spent);
        // This worker's part of what is left; of its part of the whole, if that is more, what
        // clients have not spent within their parts.
        let (own_budget, own_left) = (own_part(budget), own_part(left));
        let (left, own_left) = if left > budget / 2 {
            (left, own_left)
        } else if self.shares.has_spent_its_part(client, own_budget, WHOLE) {
            return 0;
        } else {
            let kept = own_budget.saturating_sub(self.shares.spent_within(own_budget, WHOLE));
            (left.max(kept), own_left.max(kept))
        };
        // Of what is left this worker may grant its share, by what grants are likely to cost.
        let weight = if self.shares.stands_out(client) {
            WHOLE
        } else {
            self.weight(base)
        };
        let room = own_left.checked_div(weight).unwrap_or(0);
        let (wanted, open) = if self.open <= room / 2 {
            (wanted.into(), self.open)
        } else if self.shares.has_filled_its_part(client, room) {
            return 0;
        } else {
            // Only half of it may go to further tries of one request, so that as many requests as
            // possible get one.
            (1, self.open.saturating_sub(self.shares.open_beyond(room)))
        };
        let free = room.saturating_sub(open).max(u64::from(open == 0));
        u32::try_from(wanted.min(left / WHOLE).min(free)).unwrap_or(u32::MAX)
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

    /// Ends a grant of this client: `spent` retries came of it. `well`: whether the request was
    /// answered well; `None`: it was not answered, or ran into its client's own deadline, which
    /// shows neither how likely a grant is used nor what retries are good for.
    pub fn settle(&mut self, client: u32, granted: u32, spent: u64, well: Option<bool>) {
        self.open = self.open.saturating_sub(granted.into());
        self.own.spent = self.own.spent.saturating_add(spent);
        let retries = u32::try_from(spent).unwrap_or(u32::MAX);
        self.shares.settle(client, granted, retries);
        let Some(well) = well.filter(|_| !self.shares.stands_out(client)) else {
            return;
        };
        self.own.settled = self.own.settled.saturating_add(granted.into());
        self.own.used = self.own.used.saturating_add(spent);
        if spent > 0 {
            self.own.retried = self.own.retried.saturating_add(1);
            self.own.helped = self.own.helped.saturating_add(well.into());
        }
    }

    /// What a retry that is granted is likely to cost, in ten thousandths.
    fn weight(&self, base: Reading) -> u64 {
        let settled = self.own.settled.saturating_sub(base.own.settled);
        let used = self.own.used.saturating_sub(base.own.used);
        let seen = used.saturating_mul(WHOLE).checked_div(settled).unwrap_or(0);
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
