//! The leaky bucket: spaces requests evenly, delays what comes too early, refuses what would wait
//! too long.
//!
//! Source: Turner, "New directions in communications" (1986), as a meter in ITU-T I.371's virtual
//! scheduling; the form is nginx' `limit_req` without `nodelay`: the first request goes at once,
//! each further one a token's time (period / limit) after the one before it, at most `burst` wait.
//! Beside that `max_wait`, inclusive.
//!
//! State: the moment at which the next request may go, in 1/64 ns as in [`super::gcra`]; each
//! request takes this moment for itself and moves it by the time of its cost. So no two requests
//! over all workers are given moments closer than the pace. A request that costs several tokens
//! goes at its moment, and delays the next one by its whole cost; a request that costs more than
//! `burst` is never admitted.
//!
//! A moment is given back only if no request has queued behind it. Otherwise it stays unused:
//! moving the queue's end back would put the next request beside the last one that waits.
//!
//! A moment that lies a minute beyond any that this queue can have given out counts as an error, as
//! in [`super::gcra`]: the queue is full then, and the next request may come after a token's time.
//! (Bug avoided: a broken record, or a pace of 1 per hour turned into 10 per second by a reload,
//! would refuse everything for hours, or for years.)
//!
//! A token's time is rounded up to 1/64 ns. `max_wait` is measured in tokens of exact time, so that
//! 1 s at 3 per second is three tokens.

use super::gcra::{FARTHEST_DEBT, Gcra, SCALE, nanos_ceil};
use super::take::{BucketState, Take, Verdict};
use crate::base::time::{Moment, Nanos};
use crate::policy::rate_limit::config::Quota;

/// A leaky bucket's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakyBucket {
    quota: Quota,
    /// Time of one token.
    token: u64,
    /// The furthest ahead that a request's moment may lie.
    furthest: u64,
    /// The time of the greatest cost: how much further ahead the moment after that may lie.
    greatest: u64,
}

impl LeakyBucket {
    /// Compiles a quota and the longest wait.
    #[must_use]
    pub fn new(quota: &Quota, max_wait: Nanos) -> Self {
        let token = Gcra::new(quota).token();
        // max_wait · (token as rounded / token as it is)
        let exact = u128::from(quota.period.0).max(1);
        let rounded = u128::from(token).saturating_mul(quota.limit.into());
        let wait = u128::from(max_wait.0)
            .saturating_mul(rounded)
            .checked_div(exact)
            .unwrap_or(0);
        let wait = u64::try_from(wait).unwrap_or(u64::MAX);
        let capacity = token.saturating_mul(quota.burst);
        Self {
            quota: *quota,
            token,
            furthest: capacity.min(wait),
            greatest: capacity.max(token),
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
        let now = now.0.saturating_mul(SCALE);
        let latest = now
            .saturating_add(self.furthest)
            .saturating_add(self.greatest)
            .saturating_add(FARTHEST_DEBT);
        let known = if state.until > latest {
            BucketState {
                until: now.saturating_add(self.furthest).saturating_add(self.token),
                rest: 0,
            }
        } else {
            state
        };
        let nothing = Take {
            before: state,
            after: known,
            spent: 0,
        };
        let ahead = known.until.saturating_sub(now);
        let (remaining, reset) = (self.remaining(ahead), nanos_ceil(ahead));
        if cost == 0 {
            return (Verdict::Admitted { remaining, reset }, nothing);
        }
        if cost > self.quota.burst.max(1) {
            return nothing.refusal(remaining, reset, None);
        }
        let until = known
            .until
            .max(now)
            .saturating_add(self.token.saturating_mul(cost));
        if ahead > self.furthest || until == u64::MAX {
            let wait = nanos_ceil(ahead.saturating_sub(self.furthest));
            return nothing.refusal(remaining, reset, Some(wait));
        }
        let take = Take {
            before: state,
            after: BucketState { until, rest: 0 },
            spent: cost,
        };
        let left = until.saturating_sub(now);
        let (remaining, reset) = (self.remaining(left), nanos_ceil(left));
        let verdict = match nanos_ceil(ahead) {
            Nanos::ZERO => Verdict::Admitted { remaining, reset },
            delay => Verdict::Delayed {
                remaining,
                reset,
                delay,
            },
        };
        (verdict, take)
    }

    /// How many requests of one token would still be admitted: one at the next moment, and those
    /// behind it.
    fn remaining(&self, ahead: u64) -> u64 {
        let behind = self
            .furthest
            .checked_sub(ahead)
            .and_then(|room| room.checked_div(self.token));
        behind
            .map_or(0, |behind| behind.saturating_add(1))
            .min(self.quota.burst.max(1))
    }

    /// Gives the moment back if no request has queued behind it.
    #[must_use]
    pub fn refunded(take: Take, current: BucketState) -> BucketState {
        if current == take.after {
            take.before
        } else {
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rate_limit::tests::{is_exact, steps};
    use proptest::prelude::*;

    const SECOND: Nanos = Nanos::from_secs(1);
    const START: Moment = Moment::from_secs(1);

    fn bucket(limit: u64, period: Nanos, burst: u64, max_wait: Nanos) -> LeakyBucket {
        LeakyBucket::new(
            &Quota {
                limit,
                period,
                burst,
            },
            max_wait,
        )
    }

    /// The wait of a request, in whole ms; `None`: refused.
    fn wait_of(bucket: &LeakyBucket, state: &mut BucketState, now: Moment) -> Option<u64> {
        let (verdict, take) = bucket.take(*state, now, 1);
        *state = take.after;
        match verdict {
            Verdict::Admitted { .. } => Some(0),
            Verdict::Delayed { delay, .. } => Some(delay.as_millis()),
            Verdict::Refused { .. } => None,
        }
    }

    #[test]
    fn requests_are_spaced_from_the_second_on() {
        let bucket = bucket(2, SECOND, 3, Nanos::from_secs(60));
        let mut state = BucketState::default();
        let now = Moment::from_secs(9);
        let waits: Vec<_> = (0..5).map(|_| wait_of(&bucket, &mut state, now)).collect();
        assert_eq!(
            waits,
            [Some(0), Some(500), Some(1_000), Some(1_500), None],
            "three may wait"
        );
        assert_eq!(wait_of(&bucket, &mut state, Moment(9_499_999_999)), None);
        assert_eq!(
            wait_of(&bucket, &mut state, Moment(9_500_000_000)),
            Some(1_500),
            "one has gone, one may queue"
        );
        assert_eq!(wait_of(&bucket, &mut state, Moment::from_secs(60)), Some(0));
    }

    #[test]
    fn max_wait_is_inclusive_even_where_the_pace_is_no_whole_number() {
        for limit in [1u64, 2, 3, 7, 1_000, 3_000, 999_999] {
            let (mut state, bucket) = (
                BucketState::default(),
                bucket(limit, SECOND, limit * 9, SECOND),
            );
            let passed = (0..limit * 3)
                .filter(|_| wait_of(&bucket, &mut state, START).is_some())
                .count() as u64;
            assert_eq!(passed, limit + 1, "one at once, and those of a second");
        }
    }

    #[test]
    fn the_smallest_wait_is_none_at_all() {
        let bucket = bucket(1, SECOND, 9, Nanos::ZERO);
        let mut state = BucketState::default();
        assert_eq!(wait_of(&bucket, &mut state, START), Some(0));
        assert_eq!(wait_of(&bucket, &mut state, Moment(1_999_999_999)), None);
        assert_eq!(wait_of(&bucket, &mut state, Moment::from_secs(2)), Some(0));
    }

    #[test]
    fn costs_move_the_ones_behind() {
        let bucket = bucket(10, SECOND, 9, SECOND);
        let (verdict, take) = bucket.take(BucketState::default(), START, 9);
        assert_eq!(
            verdict,
            Verdict::Admitted {
                remaining: 1,
                reset: Nanos(900_000_000)
            }
        );
        assert_eq!(
            bucket.take(take.after, START, 10),
            (
                Verdict::Refused {
                    remaining: 1,
                    reset: Nanos(900_000_000),
                    wait: None
                },
                Take::nothing(take.after)
            )
        );
        assert!(
            matches!(
                bucket.take(take.after, START, 0).0,
                Verdict::Admitted { .. }
            ),
            "a look passes"
        );
        assert!(matches!(
            bucket.take(take.after, START, 1).0,
            Verdict::Delayed {
                delay: Nanos(900_000_000),
                ..
            }
        ));
    }

    #[test]
    fn a_moment_is_given_back_only_by_the_last() {
        let bucket = bucket(1, SECOND, 9, Nanos::from_secs(9));
        let (_, first) = bucket.take(BucketState::default(), START, 1);
        let (_, second) = bucket.take(first.after, START, 1);
        let (_, third) = bucket.take(second.after, START, 1);
        assert_eq!(LeakyBucket::refunded(second, third.after), third.after);
        let left = LeakyBucket::refunded(third, third.after);
        assert_eq!(LeakyBucket::refunded(second, left), first.after);
    }

    #[test]
    fn a_clock_that_steps_back_fills_the_queue_at_worst() {
        let bucket = bucket(1, SECOND, 3, Nanos::from_secs(9));
        let mut state = BucketState::default();
        assert_eq!(
            wait_of(&bucket, &mut state, Moment::from_secs(3_600)),
            Some(0)
        );
        let (verdict, take) = bucket.take(state, START, 1);
        assert_eq!(
            verdict,
            Verdict::Refused {
                remaining: 0,
                reset: Nanos::from_secs(4),
                wait: Some(SECOND)
            }
        );
        state = take.after;
        assert_eq!(wait_of(&bucket, &mut state, Moment(1_999_999_999)), None);
        assert_eq!(
            wait_of(&bucket, &mut state, Moment::from_secs(2)),
            Some(3_000),
            "what it was is forgotten for good"
        );
    }

    #[test]
    fn what_the_greatest_cost_may_leave_is_no_error() {
        let bucket = bucket(1, Nanos::from_secs(3_600), 5, Nanos::from_secs(3_600));
        let (_, first) = bucket.take(BucketState::default(), START, 1);
        let (verdict, second) = bucket.take(first.after, START, 5);
        assert!(matches!(
            verdict,
            Verdict::Delayed {
                delay: Nanos(3_600_000_000_000),
                ..
            }
        ));
        let (verdict, third) = bucket.take(second.after, START, 1);
        let five_hours = Some(Nanos::from_secs(5 * 3_600));
        assert!(matches!(verdict, Verdict::Refused { wait, .. } if wait == five_hours));
        assert_eq!(third.after, second.after);
    }

    proptest! {
        #[test]
        fn the_promised_wait_is_exact_and_short_whatever_the_record_says(
            limit in 1u64..2_000,
            period in prop_oneof![1_000_000u64..5_000_000_000, Just(86_400_000_000_000)],
            burst in 1u64..50,
            max_wait in 0u64..10_000_000_000,
            until: u64,
            near in 0u64..300_000_000_000,
            now in 0u64..u64::MAX / 256,
        ) {
            let bucket = bucket(limit, Nanos(period), burst, Nanos(max_wait));
            for until in [until, (now + near) * SCALE] {
                if let (
                    Verdict::Refused {
                        wait: Some(wait), ..
                    },
                    take,
                ) = bucket.take(BucketState { until, rest: 0 }, Moment(now), 1)
                {
                    prop_assert!(
                        wait <= nanos_ceil(bucket.greatest + FARTHEST_DEBT),
                        "{:?}",
                        wait
                    );
                    prop_assert!(
                        is_exact(now, wait, |at| bucket.take(take.after, at, 1).0),
                        "the wait is exact"
                    );
                }
            }
        }

        #[test]
        fn it_is_the_naive_queue(
            limit in 1u64..2_000,
            period in prop_oneof![
                1_000_000u64..5_000_000_000,
                Just(1_000_000_000),
                Just(86_400_000_000_000)
            ],
            burst in 1u64..40,
            max_wait in prop_oneof![Just(0u64), 0u64..10_000_000_000],
            steps in steps(0u64..5),
        ) {
            let bucket = bucket(limit, Nanos(period), burst, Nanos(max_wait));
            // Moments given out, as tokens of exact time: numerators over `limit`.
            let (mut moments, mut next, mut state): (Vec<u128>, u128, _) =
                (Vec::new(), 0, BucketState::default());
            let mut now = 0u64;
            let l = u128::from(limit);
            for (pause, cost) in steps {
                now += pause;
                let (verdict, take) = bucket.take(state, Moment(now), cost);
                let moment = next.max(u128::from(now) * l);
                // A token is rounded up by less than 1/64 ns: over 200 tokens by less than 4 ns,
                // less than 13 · cost.
                let slack = 20 * l;
                match verdict {
                    Verdict::Refused { wait, .. } => {
                        prop_assert_eq!(take.after, state, "a refusal writes nothing");
                        match wait {
                            None => prop_assert!(cost > burst),
                            Some(wait) => {
                                prop_assert!(
                                    is_exact(now, wait, |at| bucket.take(state, at, cost).0),
                                    "the wait is exact"
                                );
                                let ahead = moment - u128::from(now) * l;
                                prop_assert!(
                                    ahead + slack
                                        > (u128::from(max_wait) * l)
                                            .min(u128::from(burst * period)),
                                    "refused without need"
                                );
                            }
                        }
                    }
                    Verdict::Admitted { .. } | Verdict::Delayed { .. } if cost == 0 => {
                        prop_assert_eq!(take.spent, 0)
                    }
                    Verdict::Admitted { .. } | Verdict::Delayed { .. } => {
                        let delay = if let Verdict::Delayed { delay, .. } = verdict {
                            delay.0
                        } else {
                            0
                        };
                        let given = (u128::from(now) + u128::from(delay)) * l;
                        prop_assert!(
                            given >= moment && given < moment + slack,
                            "{} {}",
                            given,
                            moment
                        );
                        prop_assert!(
                            u128::from(delay) * l
                                <= (u128::from(max_wait) * l).min(u128::from(burst * period))
                                    + slack
                        );
                        let waiting = moments
                            .iter()
                            .filter(|m| **m > u128::from(now) * l + slack)
                            .count() as u64;
                        prop_assert!(waiting <= burst, "{} wait", waiting);
                        moments.push(moment);
                        next = moment + u128::from(cost * period);
                    }
                }
                state = take.after;
            }
        }

        #[test]
        fn no_input_panics(
            limit: u64,
            period: u64,
            burst: u64,
            max_wait: u64,
            until: u64,
            now: u64,
            cost: u64,
        ) {
            let bucket = bucket(limit, Nanos(period), burst, Nanos(max_wait));
            let (_, take) = bucket.take(BucketState { until, rest: 0 }, Moment(now), cost);
            let _ = LeakyBucket::refunded(
                take,
                BucketState {
                    until: cost,
                    rest: 0,
                },
            );
        }
    }
}
