//! The common interface of the algorithms: a state of at most 16 bytes for each key, a pure step,
//! and a refund.
//!
//! | algorithm | state | bytes of a slot | in any interval of length t it admits at most |
//! |---|---|---|---|
//! | [`Gcra`] (`token_bucket`) | when the bucket is full again | 16 | burst + rate·t |
//! | [`WarmUp`] (with `warm_up`) | the same, and when it is warm | 24 | burst + rate·t |
//! | [`LeakyBucket`] | when the next may go | 16 | its greatest cost + rate·t, evenly spaced |
//! | [`SlidingWindow`] | end, current, previous | 24 | limit + rate·t |
//! | [`FixedWindow`] | end, current | 24 | 2·limit + rate·t |

use super::config::{self, Quota};
use super::fixed_window::FixedWindow;
use super::gcra::{self, Gcra, Wish};
use super::leaky_bucket::LeakyBucket;
use super::sliding_window::SlidingWindow;
use super::take::{BucketState, Take, Verdict};
use super::warm_up::WarmUp;
use crate::base::time::{Moment, Nanos};

/// An algorithm with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Refills evenly, allows bursts.
    TokenBucket(Gcra),
    /// A token bucket that starts at a third of its rate after a pause.
    WarmUp(WarmUp),
    /// Spaces requests evenly, delays what comes too early.
    LeakyBucket(LeakyBucket),
    /// Counts over the last period, by two windows.
    SlidingWindow(SlidingWindow),
    /// Counts from zero in each period.
    FixedWindow(FixedWindow),
}

impl Algorithm {
    /// Compiles a quota.
    #[must_use]
    pub fn new(algorithm: config::Algorithm, quota: &Quota) -> Self {
        match algorithm {
            config::Algorithm::TokenBucket { warm_up: None } => Self::TokenBucket(Gcra::new(quota)),
            config::Algorithm::TokenBucket {
                warm_up: Some(time),
            } => Self::WarmUp(WarmUp::new(quota, time)),
            config::Algorithm::LeakyBucket { max_wait } => {
                Self::LeakyBucket(LeakyBucket::new(quota, max_wait))
            }
            config::Algorithm::SlidingWindow => Self::SlidingWindow(SlidingWindow::new(quota)),
            config::Algorithm::FixedWindow => Self::FixedWindow(FixedWindow::new(quota)),
        }
    }

    /// Its name, a part of the name of its records: no algorithm can read the state of another.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::TokenBucket(_) => "token_bucket",
            Self::WarmUp(_) => "warm_up",
            Self::LeakyBucket(_) => "leaky_bucket",
            Self::SlidingWindow(_) => "sliding_window",
            Self::FixedWindow(_) => "fixed_window",
        }
    }

    /// Whether a state needs both of its numbers.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        !matches!(self, Self::TokenBucket(_) | Self::LeakyBucket(_))
    }

    /// Its quota.
    #[must_use]
    pub const fn quota(&self) -> &Quota {
        match self {
            Self::TokenBucket(it) => it.quota(),
            Self::WarmUp(it) => it.quota(),
            Self::LeakyBucket(it) => it.quota(),
            Self::SlidingWindow(it) => it.quota(),
            Self::FixedWindow(it) => it.quota(),
        }
    }

    /// The plain token bucket, if it is one: only that has leases.
    #[must_use]
    pub const fn bucket(&self) -> Option<&Gcra> {
        match self {
            Self::TokenBucket(it) => Some(it),
            _ => None,
        }
    }

    /// Takes `cost` tokens at `now`, and from a plain token bucket some beyond for a lease, if it has
    /// them. Returns the verdict, what was taken, and how many extra tokens it holds. A refusal
    /// spends nothing, nor does a `cost` of 0.
    #[must_use]
    pub fn take_with(
        &self,
        state: BucketState,
        now: Moment,
        cost: u64,
        wish: Wish,
    ) -> (Verdict, Take, u64) {
        let (verdict, take) = match self {
            Self::TokenBucket(it) => {
                let (verdict, take, extra) = it.take_with(state.until, now, cost, wish);
                let narrow = |until| BucketState { until, rest: 0 };
                return (
                    verdict,
                    Take {
                        before: narrow(take.before),
                        after: narrow(take.after),
                        spent: take.spent,
                    },
                    extra,
                );
            }
            Self::WarmUp(it) => it.take(state, now, cost),
            Self::LeakyBucket(it) => it.take(state, now, cost),
            Self::SlidingWindow(it) => it.take(state, now, cost),
            Self::FixedWindow(it) => it.take(state, now, cost),
        };
        (verdict, take, 0)
    }

    /// The state after a refund, when the key is now in state `current` and `elapsed` has passed
    /// since the take. The refund is never more than was taken, and never so much that the requests
    /// admitted since would exceed the algorithm's bound.
    #[must_use]
    pub fn refunded(&self, take: Take, current: BucketState, elapsed: Nanos) -> BucketState {
        match self {
            Self::TokenBucket(_) | Self::WarmUp(_) => {
                if current == take.after {
                    return take.before;
                }
                let take = gcra::GcraTake {
                    before: take.before.until,
                    after: take.after.until,
                    spent: take.spent,
                };
                BucketState {
                    until: take.refunded(current.until, elapsed),
                    rest: current.rest,
                }
            }
            Self::LeakyBucket(_) => LeakyBucket::refunded(take, current),
            Self::SlidingWindow(it) => it.refunded(take, current),
            Self::FixedWindow(_) => FixedWindow::refunded(take, current),
        }
    }

    /// Whether forgetting a key in this state changes nothing.
    #[must_use]
    pub fn owes_nothing(&self, state: BucketState, now: Moment) -> bool {
        match self {
            Self::TokenBucket(_) | Self::WarmUp(_) | Self::LeakyBucket(_) => {
                gcra::is_full(state.until, now)
            }
            Self::SlidingWindow(_) | Self::FixedWindow(_) => state.until <= now.0,
        }
    }
}
