//! The sliding window: a count over the last period, estimated from two counters.
//!
//! The window before counts for the share of it that the last period still covers: previous ·
//! (period − elapsed) / period + current. That assumes evenly spread requests. Source: Cloudflare,
//! "How we built rate limiting capable of scaling to millions of domains" (2017), who found 0.003 %
//! of 400 million requests judged otherwise than by an exact log.
//!
//! The worst case is bounded too: if all of a window's requests came at its very end, the estimate
//! forgets them faster than they age. In any interval of length t at most limit + limit/period·t
//! pass, as with a token bucket of that capacity. Proof: over two windows the estimate at the last
//! admission gives previous + current ≤ limit + limit·elapsed/period, and the interval is at least
//! that long; each whole window between adds at most the limit and a period.
//!
//! Windows begin at the multiples of the period on the monotonic clock, which starts with the
//! machine.
//!
//! State: `until` = the begin of the current window and two periods, in nanoseconds: then both
//! counts are void. `rest` = the current count above, the previous one below, 32 bits each. A clock
//! that reads earlier than the window's begin counts at its begin; one that has stepped back by
//! more than a period starts afresh. After a reload that changes the period, counts go on from
//! where their void puts them: with a longer period they count as the previous window, with a
//! shorter one as the current if that makes sense.

use super::fixed_window::OLDEST_READING;
use super::take::{BucketState, Take, Verdict};
use crate::base::time::{Moment, Nanos};
use crate::policy::rate_limit::config::Quota;

/// A window's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    quota: Quota,
    /// Counters have 32 bits.
    limit: u64,
    period: u64,
}

/// The two counters as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WindowCounts {
    /// Begin of the current window.
    start: u64,
    /// Time since then.
    elapsed: u64,
    previous: u64,
    current: u64,
}

impl SlidingWindow {
    /// Compiles a quota; its burst is not used.
    #[must_use]
    pub fn new(quota: &Quota) -> Self {
        Self {
            quota: *quota,
            limit: quota.limit.min(u32::MAX.into()),
            period: quota.period.0.max(1),
        }
    }

    /// Its quota.
    #[must_use]
    pub const fn quota(&self) -> &Quota {
        &self.quota
    }

    /// See [`super::algorithm::Algorithm::take`].
    #[must_use]
    pub fn take(&self, state: BucketState, now: Moment, cost: u64) -> (Verdict, Take) {
        let counts = self.counts(state, now);
        let nothing = Take::nothing(state);
        let (remaining, reset) = (self.remaining(&counts), self.reset(&counts, now));
        if cost == 0 {
            return (Verdict::Admitted { remaining, reset }, nothing);
        }
        if cost > self.limit {
            return nothing.refusal(remaining, reset, None);
        }
        if cost > remaining {
            // No later than both counts are void: after a reload that may be sooner than two of our
            // periods.
            let wait = Some(Nanos(
                self.room_at(&counts, cost)
                    .min(state.until)
                    .saturating_sub(now.0),
            ));
            return nothing.refusal(remaining, reset, wait);
        }
        let counts = WindowCounts {
            current: counts.current.saturating_add(cost),
            ..counts
        };
        let after = BucketState {
            until: counts
                .start
                .saturating_add(self.period)
                .saturating_add(self.period),
            rest: counts.current << 32 | counts.previous,
        };
        let verdict = Verdict::Admitted {
            remaining: self.remaining(&counts),
            reset: self.reset(&counts, now),
        };
        (
            verdict,
            Take {
                before: state,
                after,
                spent: cost,
            },
        )
    }

    fn counts(&self, state: BucketState, now: Moment) -> WindowCounts {
        let fresh = || {
            let elapsed = now.0.checked_rem(self.period).unwrap_or(0);
            WindowCounts {
                start: now.0.saturating_sub(elapsed),
                elapsed,
                previous: 0,
                current: 0,
            }
        };
        let (current, previous) = (state.rest >> 32, state.rest & u64::from(u32::MAX));
        let start = state.until.saturating_sub(self.period.saturating_mul(2));
        if now.0 >= state.until {
            return fresh();
        }
        match now.0.checked_sub(start) {
            Some(elapsed) if elapsed < self.period => WindowCounts {
                start,
                elapsed,
                previous,
                current,
            },
            Some(elapsed) => WindowCounts {
                start: start.saturating_add(self.period),
                elapsed: elapsed.saturating_sub(self.period),
                previous: current,
                current: 0,
            },
            None if start.saturating_sub(now.0) <= self.period.max(OLDEST_READING) => {
                WindowCounts {
                    start,
                    elapsed: 0,
                    previous,
                    current,
                }
            }
            None => fresh(),
        }
    }

    /// The most that may still pass now. Exact: the weighted part is rounded up, and what is left
    /// is whole.
    fn remaining(&self, counts: &WindowCounts) -> u64 {
        let weight = u128::from(self.period.saturating_sub(counts.elapsed));
        let weighted = u128::from(counts.previous)
            .saturating_mul(weight)
            .div_ceil(self.period.into());
        let used = u64::try_from(weighted)
            .unwrap_or(u64::MAX)
            .saturating_add(counts.current);
        self.limit.saturating_sub(used)
    }

    /// Time until neither window counts.
    const fn reset(&self, counts: &WindowCounts, now: Moment) -> Nanos {
        let periods = if counts.current > 0 {
            2
        } else {
            (counts.previous > 0) as u64
        };
        let void = counts
            .start
            .saturating_add(self.period.saturating_mul(periods));
        Nanos(if periods == 0 {
            0
        } else {
            void.saturating_sub(now.0)
        })
    }

    /// The first moment at which `cost` fits, if nothing else passes until then.
    fn room_at(&self, counts: &WindowCounts, cost: u64) -> u64 {
        // In a window with these two counts: the elapsed time at which previous · (period −
        // elapsed) ≤ room · period.
        let within = |previous: u64, room: u64| {
            let share = u128::from(room)
                .saturating_mul(self.period.into())
                .checked_div(previous.into());
            let share = share
                .and_then(|share| u64::try_from(share).ok())
                .unwrap_or(self.period);
            self.period.saturating_sub(share)
        };
        match self.limit.checked_sub(counts.current.saturating_add(cost)) {
            Some(room) => counts.start.saturating_add(within(counts.previous, room)),
            None => {
                let next = counts.start.saturating_add(self.period);
                next.saturating_add(within(counts.current, self.limit.saturating_sub(cost)))
            }
        }
    }

    /// Gives back to the window that was drawn from, whether it is now the current or the previous
    /// one.
    #[must_use]
    pub const fn refunded(&self, take: Take, current: BucketState) -> BucketState {
        if current.until == take.after.until {
            let count = (current.rest >> 32).saturating_sub(take.spent);
            return BucketState {
                until: current.until,
                rest: count << 32 | current.rest & u32::MAX as u64,
            };
        }
        if current.until == take.after.until.saturating_add(self.period) {
            let previous = (current.rest & u32::MAX as u64).saturating_sub(take.spent);
            return BucketState {
                until: current.until,
                rest: current.rest >> 32 << 32 | previous,
            };
        }
        current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rate_limit::tests::is_exact;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SECOND: Nanos = Nanos::from_secs(1);
    const START: Moment = Moment::from_secs(1);
    const MS: u64 = 1_000_000;

    fn window(limit: u64, period: Nanos) -> SlidingWindow {
        SlidingWindow::new(&Quota {
            limit,
            period,
            burst: limit,
        })
    }

    #[test]
    fn cloudflares_own_example() {
        // 50 a minute: 42 in the window before, 18 in this one, 15 s into it: 42 · 45/60 + 18 =
        // 49.5.
        let window = window(50, Nanos::from_secs(60));
        let state = BucketState {
            until: 180_000_000_000,
            rest: 18 << 32 | 42,
        };
        let at = Moment::from_secs(75);
        assert!(
            matches!(
                window.take(state, at, 1).0,
                Verdict::Refused { remaining: 0, .. }
            ),
            "49.5 + 1 is above 50"
        );
        let state = BucketState {
            rest: 17 << 32 | 42,
            ..state
        };
        assert!(
            matches!(
                window.take(state, at, 1).0,
                Verdict::Admitted { remaining: 0, .. }
            ),
            "48.5 + 1 is not"
        );
    }

    #[test]
    fn what_was_spent_at_once_comes_back_evenly_in_the_next_window() {
        let window = window(10, SECOND);
        let state = window.take(BucketState::default(), Moment(0), 10).1.after;
        let wait = |t: u64, cost| match window.take(state, Moment(t), cost).0 {
            Verdict::Refused { wait, .. } => wait.map(|w| w.0),
            _ => None,
        };
        assert_eq!(wait(0, 1), Some(1_100 * MS));
        assert_eq!(wait(500 * MS, 10), Some(1_500 * MS));
        assert_eq!(wait(1_099 * MS, 1), Some(MS));
        assert_eq!(wait(1_100 * MS, 1), None);
    }

    #[test]
    fn readings_that_are_older_than_the_window_count_at_its_begin_and_far_ones_start_afresh() {
        let window = window(2, SECOND);
        let state = window
            .take(BucketState::default(), Moment(6_000 * MS), 2)
            .1
            .after;
        let (verdict, _) = window.take(state, Moment(5_999 * MS), 1);
        assert_eq!(
            verdict,
            Verdict::Refused {
                remaining: 0,
                reset: Nanos(2_001 * MS),
                wait: Some(Nanos(1_501 * MS))
            }
        );
        let state = window
            .take(BucketState::default(), Moment(60_000 * MS), 2)
            .1
            .after;
        assert!(matches!(
            window.take(state, Moment(1), 2).0,
            Verdict::Admitted { remaining: 0, .. }
        ));
    }

    #[test]
    fn a_refund_finds_its_window() {
        let window = window(10, SECOND);
        let (_, first) = window.take(BucketState::default(), Moment(0), 4);
        let (_, second) = window.take(first.after, Moment(1), 3);
        assert_eq!(window.refunded(first, second.after).rest, 3 << 32);
        let (_, later) = window.take(second.after, Moment(1_900 * MS), 5);
        assert_eq!(later.after.rest, 5 << 32 | 7);
        assert_eq!(window.refunded(first, later.after).rest, 5 << 32 | 3);
        let (_, last) = window.take(later.after, Moment(2_900 * MS), 1);
        assert_eq!(
            window.refunded(first, last.after),
            last.after,
            "forgotten by now"
        );
    }

    #[test]
    fn a_cost_above_the_limit_is_refused_for_good_and_zero_only_looks() {
        let window = window(5, SECOND);
        assert!(matches!(
            window.take(BucketState::default(), START, 6),
            (Verdict::Refused { wait: None, .. }, Take { spent: 0, .. })
        ));
        let full = window.take(BucketState::default(), START, 5).1.after;
        assert!(matches!(
            window.take(full, START, 0).0,
            Verdict::Admitted { remaining: 0, .. }
        ));
    }

    proptest! {
        #[test]
        fn it_is_the_naive_estimate_and_keeps_the_bound(
            limit in 1u64..50,
            period in prop_oneof![1u64..1_000, Just(1_000_000_000), Just(86_400_000_000_000)],
            start: u32,
            steps in proptest::collection::vec(
                (
                    prop_oneof![
                        4 => Just(0u64),
                        1 => 1u64..10,
                        4 => 1u64..700_000_000,
                        1 => Just(30 * 86_400_000_000_000)
                    ],
                    0u64..60,
                ),
                1..200,
            ),
        ) {
            let window = window(limit, Nanos(period));
            let mut counts: BTreeMap<u64, u128> = BTreeMap::new();
            let mut passed: Vec<(u64, u64)> = Vec::new();
            let (mut now, mut state) = (u64::from(start), BucketState::default());
            for (pause, cost) in steps {
                now += pause;
                let (verdict, take) = window.take(state, Moment(now), cost);
                let (index, elapsed) = (now / period, now % period);
                let before = index
                    .checked_sub(1)
                    .and_then(|i| counts.get(&i))
                    .copied()
                    .unwrap_or(0);
                let here = counts.get(&index).copied().unwrap_or(0);
                // All times the period, so that nothing is rounded.
                let estimate = before * u128::from(period - elapsed)
                    + (here + u128::from(cost)) * u128::from(period);
                let fits = cost == 0 || estimate <= u128::from(limit) * u128::from(period);
                prop_assert_eq!(
                    matches!(verdict, Verdict::Admitted { .. }),
                    fits,
                    "{} {}",
                    before,
                    here
                );
                match verdict {
                    Verdict::Admitted { .. } => {
                        *counts.entry(index).or_default() += u128::from(cost);
                        passed.push((now, cost));
                        let mut sum = 0u128;
                        for (at, cost) in passed.iter().rev() {
                            sum += u128::from(*cost);
                            let most = u128::from(limit) * u128::from(period)
                                + u128::from(limit) * u128::from(now - at);
                            prop_assert!(sum * u128::from(period) <= most, "over limit + rate · t");
                        }
                    }
                    Verdict::Refused {
                        wait: Some(wait), ..
                    } => {
                        prop_assert_eq!(take.after, state, "a refusal writes nothing");
                        prop_assert!(
                            is_exact(now, wait, |at| window.take(state, at, cost).0),
                            "the wait is exact"
                        );
                    }
                    Verdict::Refused { wait: None, .. } => prop_assert!(cost > limit),
                    Verdict::Delayed { .. } => prop_assert!(false),
                }
                state = take.after;
            }
        }

        #[test]
        fn the_wait_is_exact_whatever_the_reload(
            limit in 1u64..100,
            period in 1u64..2_000_000_000,
            until in 0u64..8_000_000_000,
            current in 0u64..200,
            previous in 0u64..200,
            now in 0u64..8_000_000_000,
            cost in 1u64..100,
        ) {
            let window = window(limit, Nanos(period));
            let state = BucketState {
                until,
                rest: current << 32 | previous,
            };
            let at = |t: u64| {
                matches!(
                    window.take(state, Moment(t), cost).0,
                    Verdict::Admitted { .. }
                )
            };
            if let Verdict::Refused {
                wait: Some(wait), ..
            } = window.take(state, Moment(now), cost).0
            {
                prop_assert!(at(now + wait.0), "{:?}", wait);
                prop_assert!(!at(now + wait.0 - 1), "{:?}", wait);
            }
        }

        #[test]
        fn no_input_panics(
            limit: u64,
            period: u64,
            until: u64,
            rest: u64,
            now: u64,
            cost: u64,
            other: u64,
        ) {
            let window = window(limit, Nanos(period));
            let (_, take) = window.take(BucketState { until, rest }, Moment(now), cost);
            let _ = window.refunded(
                take,
                BucketState {
                    until: other,
                    rest: cost,
                },
            );
        }
    }
}
