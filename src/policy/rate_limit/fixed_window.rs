//! The fixed window: counts from zero in each period.
//!
//! Simple, and coarse: at the end of one window and the start of the next twice the limit may pass
//! in an instant. In any interval of length t at most 2·limit + limit/period·t pass. Where that is
//! too much, a sliding window or a token bucket is the choice. Source of the name and of the
//! weakness: Redis' pattern "rate limiter" at the command `INCR`, and Cloudflare, "How we built
//! rate limiting capable of scaling to millions of domains" (2017).
//!
//! Windows begin at the multiples of the period on the monotonic clock, which starts with the
//! machine: not at the full minute of any wall clock.
//!
//! State: `until` = the window's end in nanoseconds, `rest` = what it has admitted. A request whose
//! reading of the clock is older than the window's begin counts in this window: another worker was
//! faster. If it is older by more than a period and [`OLDEST_READING`], the clock must have stepped
//! back, and the window starts afresh. After a reload that changes the period, the recorded window
//! runs to its recorded end, if that is within the same time.

use super::take::{BucketState, Take, Verdict};
use crate::base::time::{Moment, Nanos};
use crate::policy::rate_limit::config::Quota;

/// How old a reading of the clock may be: a worker reads it when a request comes, and may then wait
/// for its CPU.
pub(super) const OLDEST_READING: u64 = 10_000_000_000;

/// A window's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedWindow {
    quota: Quota,
    period: u64,
}

impl FixedWindow {
    /// Compiles a quota; its burst is not used.
    #[must_use]
    pub const fn new(quota: &Quota) -> Self {
        let period = if quota.period.0 == 0 {
            1
        } else {
            quota.period.0
        };
        Self {
            quota: *quota,
            period,
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
        let left = state.until.saturating_sub(now.0);
        let lasts = left > 0 && left <= self.period.saturating_add(self.period.max(OLDEST_READING));
        let (until, count) = if lasts {
            (state.until, state.rest)
        } else {
            (self.end_at(now), 0)
        };
        let nothing = Take::nothing(state);
        let reset = Nanos(if count == 0 {
            0
        } else {
            until.saturating_sub(now.0)
        });
        let room = self.quota.limit.saturating_sub(count);
        if cost == 0 {
            return (
                Verdict::Admitted {
                    remaining: room,
                    reset,
                },
                nothing,
            );
        }
        if cost > self.quota.limit {
            return nothing.refusal(room, reset, None);
        }
        if cost > room {
            return nothing.refusal(room, reset, Some(reset));
        }
        let after = BucketState {
            until,
            rest: count.saturating_add(cost),
        };
        let reset = Nanos(until.saturating_sub(now.0));
        (
            Verdict::Admitted {
                remaining: room.saturating_sub(cost),
                reset,
            },
            Take {
                before: state,
                after,
                spent: cost,
            },
        )
    }

    /// The end of the window that holds `now`.
    fn end_at(&self, now: Moment) -> u64 {
        let into = now.0.checked_rem(self.period).unwrap_or(0);
        now.0.saturating_sub(into).saturating_add(self.period)
    }

    /// Gives back to the window that was drawn from, while it lasts: the next one counts from zero
    /// anyway.
    #[must_use]
    pub const fn refunded(take: Take, current: BucketState) -> BucketState {
        if current.until != take.after.until {
            return current;
        }
        BucketState {
            until: current.until,
            rest: current.rest.saturating_sub(take.spent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rate_limit::tests::{is_exact, steps};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SECOND: Nanos = Nanos::from_secs(1);
    const START: Moment = Moment::from_secs(1);

    fn window(limit: u64, period: Nanos) -> FixedWindow {
        FixedWindow::new(&Quota {
            limit,
            period,
            burst: limit,
        })
    }

    #[test]
    fn it_counts_from_zero_in_each_period() {
        let window = window(3, SECOND);
        let mut state = BucketState::default();
        let mut admitted = |t: u64| {
            let (verdict, take) = window.take(state, Moment(t), 1);
            state = take.after;
            matches!(verdict, Verdict::Admitted { .. })
        };
        assert!((0..3).all(|_| admitted(5_999_999_999)));
        assert!(!admitted(5_999_999_999));
        assert!(
            (0..3).all(|_| admitted(6_000_000_000)),
            "twice the limit over a boundary: as documented"
        );
        assert!(!admitted(6_000_000_000));
    }

    #[test]
    fn a_reading_older_than_the_window_counts_in_it() {
        let window = window(2, SECOND);
        let (_, take) = window.take(BucketState::default(), Moment(6_000_000_000), 2);
        let (verdict, _) = window.take(take.after, Moment(5_999_999_990), 1);
        assert_eq!(
            verdict,
            Verdict::Refused {
                remaining: 0,
                reset: Nanos(1_000_000_010),
                wait: Some(Nanos(1_000_000_010))
            }
        );
    }

    #[test]
    fn a_worker_that_was_kept_from_its_cpu_does_not_bring_an_old_window_back() {
        let window = window(1, Nanos::from_millis(1));
        let (_, take) = window.take(BucketState::default(), Moment(6_000_000_000), 1);
        let (verdict, _) = window.take(take.after, Moment(1_000_000_000), 1);
        let wait = Nanos(5_001_000_000);
        assert_eq!(
            verdict,
            Verdict::Refused {
                remaining: 0,
                reset: wait,
                wait: Some(wait)
            }
        );
    }

    #[test]
    fn a_clock_that_stepped_far_back_starts_afresh() {
        let window = window(1, SECOND);
        let (_, take) = window.take(BucketState::default(), Moment::from_secs(1_000_000), 1);
        let (verdict, take) = window.take(take.after, Moment(1), 1);
        assert_eq!(
            verdict,
            Verdict::Admitted {
                remaining: 0,
                reset: Nanos(999_999_999)
            }
        );
        assert_eq!(
            take.after,
            BucketState {
                until: 1_000_000_000,
                rest: 1
            }
        );
    }

    #[test]
    fn a_cost_above_the_limit_is_refused_for_good_and_zero_only_looks() {
        let window = window(5, SECOND);
        let (verdict, take) = window.take(BucketState::default(), START, 6);
        assert_eq!(
            (verdict, take.spent),
            (
                Verdict::Refused {
                    remaining: 5,
                    reset: Nanos::ZERO,
                    wait: None
                },
                0
            )
        );
        let full = window.take(BucketState::default(), START, 5).1.after;
        assert_eq!(
            window.take(full, START, 0),
            (
                Verdict::Admitted {
                    remaining: 0,
                    reset: SECOND
                },
                Take::nothing(full)
            )
        );
    }

    #[test]
    fn a_refund_goes_to_the_window_that_was_drawn_from() {
        let window = window(5, SECOND);
        let (_, first) = window.take(BucketState::default(), START, 2);
        let (_, second) = window.take(first.after, START, 1);
        assert_eq!(FixedWindow::refunded(first, second.after).rest, 1);
        let (_, later) = window.take(second.after, Moment::from_secs(2), 4);
        assert_eq!(
            FixedWindow::refunded(first, later.after),
            later.after,
            "its window is over"
        );
    }

    proptest! {
        #[test]
        fn it_is_the_naive_counter(
            limit in 1u64..50,
            period in prop_oneof![1u64..1_000, Just(1_000_000_000), Just(86_400_000_000_000)],
            start: u32,
            steps in steps(0u64..60),
        ) {
            let window = window(limit, Nanos(period));
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut now, mut state) = (u64::from(start), BucketState::default());
            for (pause, cost) in steps {
                now += pause;
                let (verdict, take) = window.take(state, Moment(now), cost);
                let count = counts.entry(now / period).or_default();
                let fits = *count + cost <= limit || cost == 0;
                prop_assert_eq!(matches!(verdict, Verdict::Admitted { .. }), fits);
                match verdict {
                    Verdict::Refused {
                        wait: Some(wait),
                        remaining,
                        ..
                    } => {
                        prop_assert_eq!(take.after, state, "a refusal writes nothing");
                        prop_assert_eq!(remaining, limit - *count);
                        prop_assert!(
                            is_exact(now, wait, |at| window.take(state, at, cost).0),
                            "the wait is exact"
                        );
                    }
                    Verdict::Refused { wait: None, .. } => prop_assert!(cost > limit),
                    Verdict::Admitted { remaining, .. } => {
                        *count += cost;
                        prop_assert_eq!(remaining, limit - *count);
                    }
                    Verdict::Delayed { .. } => prop_assert!(false),
                }
                state = take.after;
            }
        }

        #[test]
        fn no_input_panics(limit: u64, period: u64, until: u64, rest: u64, now: u64, cost: u64) {
            let window = window(limit, Nanos(period));
            let (_, take) = window.take(BucketState { until, rest }, Moment(now), cost);
            let _ = FixedWindow::refunded(take, BucketState { until: now, rest: cost });
        }
    }
}
