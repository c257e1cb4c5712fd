//! The generic cell rate algorithm, a token bucket in one number.
//!
//! Source: ITU-T I.371 (virtual scheduling), and Brandur Leach, "Rate limiting, cells, and GCRA"
//! (2015). The number is the theoretical arrival time: the moment at which the bucket will be full
//! again. A token is the time in which one is refilled; the bucket holds `burst` of them, so a
//! request may push the arrival time at most `burst` tokens ahead of now.
//!
//! Times are kept in 1/64 ns, and a token's time is rounded up: the bucket never admits more than
//! its rate, and less by 3 parts in 10^11 at 3 per second, by 1.6 % at worst at 10^9 per second. A
//! u64 of such units lasts nine years of uptime; after that the arrival time saturates and the
//! bucket refuses.

use crate::base::time::{Moment, Nanos};
use crate::policy::rate_limit::config::Quota;

use super::take::Verdict;

/// Units per nanosecond.
pub const SCALE: u64 = 64;

/// How far an arrival time may lie beyond that of an empty bucket before it counts as an error: a
/// minute. No reading of the clock is that old when it is used, so that no worker ever gives back
/// what another has taken.
pub(super) const FARTHEST_DEBT: u64 = 60 * 1_000_000_000 * SCALE;

/// Tokens that take longer to be refilled are never leased: 2,000 per second.
const LARGEST_LEASED_TOKEN: Nanos = Nanos(500_000);

/// A moment at which a bucket is full again, in 1/64 ns of the monotonic clock. 0 = a bucket never
/// used.
pub type Arrival = u64;

/// What a lease is to be good for; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// For how long.
    pub time: Nanos,
    /// For how many tokens at the least.
    pub tokens: u64,
}

/// A bucket's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    quota: Quota,
    /// Time of one token.
    token: u64,
    /// Time of a whole bucket.
    capacity: u64,
}

impl Gcra {
    /// Compiles a quota. Its limit must not be 0 (the configuration rejects 0; here it counts as
    /// 1).
    #[must_use]
    pub fn new(quota: &Quota) -> Self {
        let per_token = u128::from(quota.period.0)
            .saturating_mul(u128::from(SCALE))
            .div_ceil(u128::from(quota.limit.max(1)));
        let token = u64::try_from(per_token).unwrap_or(u64::MAX).max(1);
        Self {
            quota: *quota,
            token,
            capacity: token.saturating_mul(quota.burst),
        }
    }

    /// Its quota.
    #[must_use]
    pub const fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Time of one token, in 1/64 ns.
    #[must_use]
    pub const fn token(&self) -> u64 {
        self.token
    }

    /// Takes `cost` tokens at `now`. A refusal spends nothing, nor does a `cost` of 0.
    ///
    /// Debt that lies a minute beyond an empty bucket is forgotten even after a refusal. (Bug
    /// avoided: a quota of 1 per hour, emptied and by a reload turned into 10 per second, would
    /// promise a wait of 100 ms again and again for hours.)
    #[must_use]
    pub fn take(&self, arrival: Arrival, now: Moment, cost: u64) -> (Verdict, GcraTake) {
        let now = now.0.saturating_mul(SCALE);
        let full_ahead = now.saturating_add(self.capacity);
        // A little further ahead than an empty bucket is no error: another worker's reading of the
        // clock was fresher, or a reload has cut the quota. Far ahead, the clock has stepped back
        // or the record is broken: then it is an empty bucket.
        let known = if arrival > full_ahead.saturating_add(FARTHEST_DEBT) {
            full_ahead
        } else {
            arrival
        };
        let nothing = GcraTake {
            before: arrival,
            after: known,
            spent: 0,
        };
        let arrival_now = known.max(now);
        let refused = |wait| {
            let remaining = full_ahead
                .saturating_sub(arrival_now)
                .checked_div(self.token)
                .unwrap_or(0);
            (
                Verdict::Refused {
                    remaining,
                    reset: nanos_ceil(arrival_now.saturating_sub(now)),
                    wait,
                },
                nothing,
            )
        };
        if cost > self.quota.burst {
            return refused(None);
        }
        let spent = self.token.saturating_mul(cost);
        let new = arrival_now.saturating_add(spent);
        // A cost of 0 passes even if a reload has left more debt than the bucket can hold.
        if cost > 0 && (new > full_ahead || new == u64::MAX) {
            return refused(Some(nanos_ceil(new.saturating_sub(full_ahead))));
        }
        let remaining = full_ahead
            .saturating_sub(new)
            .checked_div(self.token)
            .unwrap_or(0);
        let verdict = Verdict::Admitted {
            remaining,
            reset: nanos_ceil(new.saturating_sub(now)),
        };
        (
            verdict,
            if cost == 0 {
                nothing
            } else {
                GcraTake {
                    before: arrival,
                    after: new,
                    spent,
                }
            },
        )
    }
}

impl Gcra {
    /// Takes `cost` tokens and, for a lease, as many of the wanted ones beyond as leave 15/16 of the
    /// burst: the verdict on `cost`, what was taken, and how many extra tokens it holds. They are
    /// the interval of arrival times that ends at [`GcraTake::after`]; see [`super::lease`].
    #[must_use]
    pub fn take_with(
        &self,
        arrival: Arrival,
        now: Moment,
        cost: u64,
        wish: Wish,
    ) -> (Verdict, GcraTake, u64) {
        let (verdict, take) = self.take(arrival, now, cost);
        let extra = match verdict {
            Verdict::Admitted { .. } if cost > 0 => self.leasable(take.after, now, wish),
            _ => 0,
        };
        if extra > 0
            && let (Verdict::Admitted { remaining, reset }, take) =
                self.take(arrival, now, cost.saturating_add(extra))
        {
            return (
                Verdict::Admitted {
                    remaining: remaining.saturating_add(extra),
                    reset,
                },
                take,
                extra,
            );
        }
        (verdict, take, 0)
    }

    /// Tokens for a lease from a bucket that stands at `arrival`; none of a limit below 2,000 per
    /// second. The interval is at the bucket's far end: the more others hold, the longer it lasts,
    /// and the shorter it may be.
    fn leasable(&self, arrival: Arrival, now: Moment, wish: Wish) -> u64 {
        if wish == Wish::default() || self.token > LARGEST_LEASED_TOKEN.0.saturating_mul(SCALE) {
            return 0;
        }
        let ahead = arrival.saturating_sub(now.0.saturating_mul(SCALE));
        let top = self.token.saturating_mul(self.quota.burst / 16);
        let time = wish.time.0.saturating_mul(SCALE).saturating_sub(ahead);
        let work = self.token.saturating_mul(wish.tokens);
        let length = time.max(work).min(top.saturating_sub(ahead));
        length.checked_div(self.token).unwrap_or(0)
    }

    /// Takes `cost` tokens from the leased interval, if that many still lie ahead of now: the
    /// verdict, and where the rest begins.
    #[must_use]
    pub fn take_leased(
        &self,
        from: Arrival,
        to: Arrival,
        now: Moment,
        cost: u64,
    ) -> Option<(Verdict, Arrival)> {
        let now = now.0.saturating_mul(SCALE);
        let rest = from
            .max(now)
            .saturating_add(self.token.saturating_mul(cost));
        if rest > to {
            return None;
        }
        // An estimate, since this worker does not know what others have drawn; never less than it
        // can still admit itself.
        let remaining = now
            .saturating_add(self.capacity)
            .saturating_sub(rest)
            .checked_div(self.token)
            .unwrap_or(0);
        Some((
            Verdict::Admitted {
                remaining,
                reset: nanos_ceil(to.saturating_sub(now)),
            },
            rest,
        ))
    }

    /// Where the interval of `tokens` tokens that ends at `to` begins.
    #[must_use]
    pub fn begin_of(&self, to: Arrival, tokens: u64) -> Arrival {
        to.saturating_sub(self.token.saturating_mul(tokens))
    }
}

/// Whether a bucket with this arrival time is full: forgetting it changes nothing.
#[must_use]
pub const fn is_full(arrival: Arrival, now: Moment) -> bool {
    arrival <= now.0.saturating_mul(SCALE)
}

/// Tokens that were taken, so that they can be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcraTake {
    /// Arrival time before.
    pub before: Arrival,
    /// Arrival time after.
    pub after: Arrival,
    /// Time of the tokens. Not the difference of the two: a bucket that had been full for long was
    /// brought up to now first.
    pub spent: u64,
}

impl GcraTake {
    /// The arrival time after a refund, when the bucket now stands at `current` and `elapsed` has
    /// passed since the take.
    ///
    /// Without a take in between it is exactly what it was before. Otherwise the tokens are given
    /// back less `elapsed`: had they not been taken, the bucket could have run full in that time,
    /// and a full bucket does not fill further.
    #[must_use]
    pub fn refunded(&self, current: Arrival, elapsed: Nanos) -> Arrival {
        if current == self.after {
            return self.before;
        }
        current.saturating_sub(self.spent.saturating_sub(elapsed.0.saturating_mul(SCALE)))
    }
}

/// Whole nanoseconds of a time in 1/64 ns, rounded up.
#[must_use]
pub const fn nanos_ceil(units: u64) -> Nanos {
    Nanos(units.div_ceil(SCALE))
}

#[cfg(test)]
mod tests;
