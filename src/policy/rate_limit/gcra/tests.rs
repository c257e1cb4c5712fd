use super::*;
use crate::policy::rate_limit::tests::{is_exact, steps};
use proptest::prelude::*;

fn quota(limit: u64, period: Nanos, burst: u64) -> Quota {
    Quota {
        limit,
        period,
        burst,
    }
}

const SECOND: Nanos = Nanos::from_secs(1);
const START: Moment = Moment::from_secs(1);

#[test]
fn five_per_second_means_five() {
    let bucket = Gcra::new(&quota(5, SECOND, 5));
    let mut arrival = 0;
    let mut admitted = |t: Moment| {
        let (verdict, take) = bucket.take(arrival, t, 1);
        arrival = take.after;
        matches!(verdict, Verdict::Admitted { .. })
    };
    assert!((0..5).all(|_| admitted(START)));
    assert!(!admitted(START));
    assert!(!admitted(Moment(1_199_999_999)));
    assert!(admitted(Moment(1_200_000_000)));
    assert!(!admitted(Moment(1_200_000_001)));
}

#[test]
fn a_cost_above_the_burst_is_refused_for_good_and_costs_nothing() {
    let bucket = Gcra::new(&quota(5, SECOND, 5));
    let (verdict, take) = bucket.take(0, START, 6);
    assert_eq!(
        verdict,
        Verdict::Refused {
            remaining: 5,
            reset: Nanos::ZERO,
            wait: None
        }
    );
    assert_eq!((take.after, take.spent), (0, 0));
}

#[test]
fn cost_zero_only_looks() {
    let bucket = Gcra::new(&quota(1, SECOND, 1));
    let arrival = bucket.take(0, START, 1).1.after;
    let (verdict, take) = bucket.take(arrival, START, 0);
    assert_eq!(
        (verdict, take.after),
        (
            Verdict::Admitted {
                remaining: 0,
                reset: SECOND
            },
            arrival
        )
    );
}

#[test]
fn a_clock_that_steps_back_empties_the_bucket_at_worst() {
    let bucket = Gcra::new(&quota(1, SECOND, 1));
    let arrival = bucket.take(0, Moment::from_secs(1_000_000), 1).1.after;
    let (verdict, _) = bucket.take(arrival, START, 1);
    assert_eq!(
        verdict,
        Verdict::Refused {
            remaining: 0,
            reset: SECOND,
            wait: Some(SECOND)
        }
    );
}

#[test]
fn a_refund_never_gives_more_than_was_taken() {
    let bucket = Gcra::new(&quota(1, SECOND, 5));
    // The bucket had been full since time 0; meanwhile another call draws one token too.
    let (_, first) = bucket.take(0, Moment::from_secs(1_000), 1);
    let (_, second) = bucket.take(first.after, Moment::from_secs(1_000), 1);
    let (_, alone) = bucket.take(0, Moment::from_secs(1_000), 1);
    assert_eq!(first.refunded(second.after, Nanos::ZERO), alone.after);
    assert_eq!(first.refunded(first.after, SECOND), 0, "no take in between");
}

/// Tokens as exact fractions: the textbook bucket.
struct Naive {
    limit: u128,
    period: u128,
    burst: u128,
    /// Tokens times `period`.
    level: u128,
    at: u64,
}

impl Naive {
    fn take(&mut self, now: u64, cost: u64) -> bool {
        self.level =
            (self.level + u128::from(now - self.at) * self.limit).min(self.burst * self.period);
        self.at = now;
        let cost = u128::from(cost) * self.period;
        if cost > self.level {
            return false;
        }
        self.level -= cost;
        true
    }
}

fn quotas() -> impl Strategy<Value = Quota> {
    (
        1u64..2_000,
        prop_oneof![
            1_000_000u64..5_000_000_000,
            Just(1_000_000_000),
            Just(86_400_000_000_000)
        ],
        1u64..50,
    )
        .prop_map(|(limit, period, burst)| quota(limit, Nanos(period), burst))
}

proptest! {
    #[test]
    fn it_never_admits_what_the_naive_bucket_refuses(
        quota in quotas(),
        steps in steps(0u64..60),
    ) {
        let bucket = Gcra::new(&quota);
        let mut naive = Naive {
            limit: quota.limit.into(),
            period: quota.period.0.into(),
            burst: quota.burst.into(),
            level: u128::from(quota.burst) * u128::from(quota.period.0),
            at: 0,
        };
        let (mut now, mut arrival) = (0u64, 0);
        for (pause, cost) in steps {
            now += pause;
            let (verdict, take) = bucket.take(arrival, Moment(now), cost);
            match verdict {
                Verdict::Admitted { .. } => {
                    prop_assert!(naive.take(now, cost), "the naive bucket refuses")
                }
                Verdict::Delayed { .. } => prop_assert!(false),
                Verdict::Refused { wait, .. } => {
                    prop_assert_eq!(take.after, arrival, "a refusal writes nothing");
                    // A token's time is rounded up by less than 1/64 ns, and at most 2,000
                    // tokens were taken since the bucket was full.
                    let mut probe = Naive { ..naive };
                    if probe.take(now, cost) {
                        prop_assert!(
                            wait.is_some_and(|wait| wait.0 <= 1 + 12_000 / 64),
                            "{:?}",
                            wait
                        );
                    }
                }
            }
            arrival = take.after;
        }
    }

    #[test]
    fn the_promised_wait_is_exact(
        quota in quotas(),
        takes in 1usize..60,
        cost in 1u64..50,
        now in 0u64..u64::MAX / 256,
    ) {
        let bucket = Gcra::new(&quota);
        let mut arrival = 0;
        for _ in 0..takes {
            arrival = bucket.take(arrival, Moment(now), 1).1.after;
        }
        if let (
            Verdict::Refused {
                wait: Some(wait), ..
            },
            _,
        ) = bucket.take(arrival, Moment(now), cost)
        {
            prop_assert!(is_exact(now, wait, |at| bucket.take(arrival, at, cost).0));
        }
    }

    #[test]
    fn the_promised_wait_is_exact_whatever_the_record_says(
        quota in quotas(),
        arrival: u64,
        now in 0u64..u64::MAX / 256,
    ) {
        let bucket = Gcra::new(&quota);
        if let (
            Verdict::Refused {
                wait: Some(wait), ..
            },
            take,
        ) = bucket.take(arrival, Moment(now), 1)
        {
            prop_assert!(is_exact(now, wait, |at| bucket.take(take.after, at, 1).0));
        }
    }

    #[test]
    fn no_input_panics(
        limit: u64,
        period: u64,
        burst: u64,
        arrival: u64,
        now: u64,
        cost: u64,
        other: u64,
    ) {
        let bucket = Gcra::new(&quota(limit, Nanos(period), burst));
        let (_, take) = bucket.take(arrival, Moment(now), cost);
        let _ = take.refunded(other, Nanos(cost));
    }
}
