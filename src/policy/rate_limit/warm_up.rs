//! A token bucket that warms up: after a pause its sustained rate is a third of the limit, and
//! grows to the limit over `warm_up`.
//!
//! Sources: Guava's `SmoothWarmingUp`, whose interval between permits falls in a line from three
//! times the stable one (`coldFactor` 3) to the stable one, and Sentinel's `WarmUpController`,
//! which took it over. Taken from them: the factor, the line, that `warm_up` of steady demand warms
//! a cold limiter, and that idleness as long as `warm_up` makes a warm one cold. What differs:
//! `burst` tokens may still pass at once, as far as they are there.
//!
//! Exactly: a key has a warmth from 0 to `warm_up`. While its bucket is not full (it is in use) the
//! warmth grows by the time that passes; while it is full the warmth falls likewise. A key that was
//! never seen is cold. A request is admitted when the bucket holds its cost, as in the plain
//! bucket, and is then charged cost · (3 − 2 · warmth / `warm_up`) tokens: the bucket goes into
//! debt by what a cold request costs more. Steady demand is thus served every three tokens' time
//! when cold, and every token's time when warm.
//!
//! Never more than the plain bucket: a sequence of requests that is admitted here pushes the
//! arrival time at least as far ahead as there, so that the plain bucket with the same parameters
//! admits this sequence too; burst + rate·t holds.
//!
//! State: `until` = the arrival time of [`super::gcra`], in 1/64 ns; `rest` = the moment at which
//! the key would be warm if its bucket stayed in use, in nanoseconds. From these two the warmth
//! follows at any later moment. After a reload that changes `warm_up` the time to full warmth is
//! kept.

use super::gcra::{FARTHEST_DEBT, Gcra, SCALE, nanos_ceil};
use super::take::{BucketState, Take, Verdict};
use crate::base::time::{Moment, Nanos};
use crate::policy::rate_limit::config::Quota;

/// How many times a token's time a request of a cold key is charged.
const COLD: u64 = 3;

/// A warming bucket's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmUp {
    quota: Quota,
    /// Time of one token, in 1/64 ns.
    token: u64,
    /// Time of a whole bucket, in 1/64 ns.
    capacity: u64,
    /// Time from cold to warm.
    time: Nanos,
}

impl WarmUp {
    /// Compiles a quota and the time from cold to warm.
    #[must_use]
    pub fn new(quota: &Quota, time: Nanos) -> Self {
        let token = Gcra::new(quota).token();
        Self {
            quota: *quota,
            token,
            capacity: token.saturating_mul(quota.burst),
            time: time.max(Nanos(1)),
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
        let warmth = self.warmth(state, now);
        let charge = self.charge(warmth);
        let at = now.0.saturating_mul(SCALE);
        // Further ahead than a bucket in the deepest debt: the clock stepped back, or the quota was
        // cut by a reload. As in the plain bucket it is forgotten for good, or the key would be
        // refused until the old debt is over.
        let deepest = at.saturating_add(self.capacity.saturating_mul(COLD));
        let is_error = state.until > deepest.saturating_add(FARTHEST_DEBT);
        let kept = if is_error {
            BucketState {
                until: deepest,
                ..state
            }
        } else {
            state
        };
        let nothing = Take {
            before: state,
            after: kept,
            spent: 0,
        };
        // Not cut to the deepest debt, so that the wait is exact.
        let arrival = kept.until.max(at);
        let (full_ahead, ahead) = (at.saturating_add(self.capacity), arrival.saturating_sub(at));
        let remaining = |arrival: u64| {
            let more = full_ahead.saturating_sub(arrival).checked_sub(self.token);
            more.map_or(0, |more| {
                more.checked_div(charge).unwrap_or(0).saturating_add(1)
            })
            .min(self.quota.burst)
        };
        if cost == 0 {
            return (
                Verdict::Admitted {
                    remaining: remaining(arrival),
                    reset: nanos_ceil(ahead),
                },
                nothing,
            );
        }
        let refused = |wait| nothing.refusal(remaining(arrival), nanos_ceil(ahead), wait);
        if cost > self.quota.burst {
            return refused(None);
        }
        let needs = arrival.saturating_add(self.token.saturating_mul(cost));
        let after = arrival.saturating_add(charge.saturating_mul(cost));
        if needs > full_ahead || after == u64::MAX {
            return refused(Some(nanos_ceil(needs.saturating_sub(full_ahead))));
        }
        let warm_at = now.0.saturating_add(self.time.0.saturating_sub(warmth.0));
        let verdict = Verdict::Admitted {
            remaining: remaining(after),
            reset: nanos_ceil(after.saturating_sub(at)),
        };
        let take = Take {
            before: state,
            after: BucketState {
                until: after,
                rest: warm_at,
            },
            spent: after.saturating_sub(arrival),
        };
        (verdict, take)
    }

    /// How warm the key is at `now`, from 0 to `time`.
    fn warmth(&self, state: BucketState, now: Moment) -> Nanos {
        if state == BucketState::default() {
            return Nanos::ZERO;
        }
        let idle_from = Moment(state.until.div_ceil(SCALE));
        let in_use_until = now.min(idle_from);
        let then = self.time.minus(Moment(state.rest).since(in_use_until));
        then.minus(now.since(idle_from))
    }

    /// What a token costs at this warmth, rounded up.
    fn charge(&self, warmth: Nanos) -> u64 {
        let cold = u128::from(self.time.minus(warmth).0);
        let more = u128::from(self.token)
            .saturating_mul(COLD.saturating_sub(1).into())
            .saturating_mul(cold);
        self.token.saturating_add(
            u64::try_from(more.div_ceil(self.time.0.max(1).into())).unwrap_or(u64::MAX),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rate_limit::gcra;
    use crate::policy::rate_limit::tests::{is_exact, steps};
    use proptest::prelude::*;

    const SECOND: Nanos = Nanos::from_secs(1);
    const MS: u64 = 1_000_000;

    fn limiter(limit: u64, burst: u64, time: Nanos) -> WarmUp {
        WarmUp::new(
            &Quota {
                limit,
                period: SECOND,
                burst,
            },
            time,
        )
    }

    /// Requests admitted from `from` to `to` when one comes every ms.
    fn served(limiter: &WarmUp, state: &mut BucketState, from: u64, to: u64) -> u64 {
        let mut passed = 0;
        for ms in from..to {
            let (verdict, take) = limiter.take(*state, Moment(ms * MS), 1);
            passed += u64::from(matches!(verdict, Verdict::Admitted { .. }));
            *state = take.after;
        }
        passed
    }

    #[test]
    fn a_cold_limiter_serves_a_third_and_warms_up_in_the_time_given() {
        // Five at once, so that what the bucket gathers between two tries is not lost.
        let limiter = limiter(100, 5, Nanos::from_secs(10));
        let mut state = BucketState::default();
        let each: Vec<u64> = (100..112)
            .map(|s| served(&limiter, &mut state, s * 1_000, (s + 1) * 1_000))
            .collect();
        assert!((33..=36).contains(&each[0]), "{each:?}");
        assert!(
            each.windows(2).all(|pair| pair[0] <= pair[1]),
            "it only gets faster: {each:?}"
        );
        // The interval falls in a line: half warm it is two tokens' time.
        assert!(
            (44..=54).contains(&each[4]) && (48..=58).contains(&each[5]),
            "{each:?}"
        );
        assert!((80..=99).contains(&each[9]), "{each:?}");
        assert!(each[10] >= 97 && each[11] == 100, "{each:?}");
    }

    #[test]
    fn idleness_makes_cold_again_bit_by_bit() {
        let warm = |idle: u64| {
            let limiter = limiter(100, 5, Nanos::from_secs(10));
            let mut state = BucketState::default();
            served(&limiter, &mut state, 100_000, 120_000);
            served(&limiter, &mut state, 120_000 + idle, 121_000 + idle)
        };
        assert_eq!(warm(0), 100, "without a pause");
        assert!((48..=60).contains(&warm(5_000)), "{}", warm(5_000));
        assert!((33..=36).contains(&warm(10_000)), "{}", warm(10_000));
        assert_eq!(warm(10_000), warm(1_000_000), "not colder than cold");
    }

    #[test]
    fn the_smallest_bucket_can_be_used_when_cold() {
        let limiter = limiter(1, 1, SECOND);
        let (verdict, take) = limiter.take(BucketState::default(), Moment::from_secs(9), 1);
        assert_eq!(
            verdict,
            Verdict::Admitted {
                remaining: 0,
                reset: Nanos::from_secs(3)
            }
        );
        let (verdict, _) = limiter.take(take.after, Moment::from_secs(9), 1);
        assert_eq!(
            verdict,
            Verdict::Refused {
                remaining: 0,
                reset: Nanos::from_secs(3),
                wait: Some(Nanos::from_secs(3))
            }
        );
    }

    #[test]
    fn a_cold_burst_is_a_third_of_a_warm_one() {
        let limiter = limiter(100, 30, Nanos::from_secs(10));
        let burst = |state: &mut BucketState, ms: u64| {
            (0..100)
                .filter(|_| {
                    let (verdict, take) = limiter.take(*state, Moment(ms * MS), 1);
                    *state = take.after;
                    matches!(verdict, Verdict::Admitted { .. })
                })
                .count()
        };
        let mut state = BucketState::default();
        assert_eq!(burst(&mut state, 100_000), 10);
        served(&limiter, &mut state, 100_000, 120_000);
        assert!(
            (29..=30).contains(&burst(&mut state, 120_300)),
            "it has been full for a moment, and cools"
        );
    }

    proptest! {
        #[test]
        fn the_plain_bucket_admits_what_is_admitted_here(
            limit in 1u64..2_000,
            burst in 1u64..50,
            time in prop_oneof![1u64..1_000_000, 1_000_000u64..3_600_000_000_000],
            steps in steps(0u64..60),
        ) {
            let quota = Quota {
                limit,
                period: SECOND,
                burst,
            };
            let (warm, plain) = (WarmUp::new(&quota, Nanos(time)), Gcra::new(&quota));
            let (mut now, mut state, mut arrival) = (0u64, BucketState::default(), 0);
            for (pause, cost) in steps {
                now += pause;
                let (verdict, take) = warm.take(state, Moment(now), cost);
                match verdict {
                    Verdict::Admitted { .. } => {
                        let (verdict, take) = plain.take(arrival, Moment(now), cost);
                        let admitted = matches!(verdict, Verdict::Admitted { .. });
                        prop_assert!(admitted, "the plain bucket refuses: {:?}", verdict);
                        arrival = take.after;
                    }
                    Verdict::Refused { wait, .. } => {
                        prop_assert_eq!(take.after, state, "a refusal writes nothing");
                        prop_assert_eq!(wait.is_none(), cost > burst);
                        if let Some(wait) = wait {
                            prop_assert!(
                                is_exact(now, wait, |at| warm.take(state, at, cost).0),
                                "the wait is exact"
                            );
                        }
                    }
                    Verdict::Delayed { .. } => prop_assert!(false),
                }
                state = take.after;
                prop_assert!(
                    state.until >= arrival,
                    "never less in debt than the plain bucket"
                );
                let charge = warm.charge(warm.warmth(state, Moment(now)));
                prop_assert!((warm.token..=3 * warm.token).contains(&charge));
            }
        }

        #[test]
        fn demand_without_end_is_served_at_full_rate_after_the_time_given(
            limit in 1u64..500,
            burst in 1u64..20,
            time in 1_000_000u64..20_000_000_000,
        ) {
            let limiter = WarmUp::new(
                &Quota {
                    limit,
                    period: SECOND,
                    burst,
                },
                Nanos(time),
            );
            let (mut state, mut now) = (BucketState::default(), 1_000_000_000_000u64);
            let mut last = now;
            // Each request comes as soon as it is promised to pass.
            while now < 1_000_000_000_000 + time + 4_000_000_000 {
                let (verdict, take) = limiter.take(state, Moment(now), 1);
                match verdict {
                    Verdict::Refused {
                        wait: Some(wait), ..
                    } => now += wait.0,
                    _ => {
                        last = now;
                        state = take.after;
                    }
                }
            }
            let (verdict, _) = limiter.take(state, Moment(last), 1);
            let Verdict::Refused {
                wait: Some(wait), ..
            } = verdict
            else {
                return Err(TestCaseError::fail("no pace"));
            };
            let token = gcra::nanos_ceil(limiter.token).0;
            prop_assert!(
                wait.0 <= token + 1 && wait.0 + 2 >= token,
                "{} {}",
                wait.0,
                token
            );
        }

        #[test]
        fn no_input_panics(
            limit: u64,
            period: u64,
            burst: u64,
            time: u64,
            until: u64,
            rest: u64,
            now: u64,
            cost: u64,
        ) {
            let limiter = WarmUp::new(
                &Quota {
                    limit,
                    period: Nanos(period),
                    burst,
                },
                Nanos(time),
            );
            let _ = limiter.take(BucketState { until, rest }, Moment(now), cost);
        }
    }
}
