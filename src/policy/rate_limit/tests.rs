//! Test vectors of peers with the same algorithms, from `tests/vectors`.

use super::KeyQuota;
use super::algorithm::Algorithm;
use super::config::{self, Quota, QuotaHeaders};
use super::gcra::Wish;
use super::quota_headers;
use super::take::{BucketState, Verdict};
use crate::base::time::{Moment, Nanos};
use proptest::prelude::*;
use serde_json::Value;

/// Requests for a property test: the pause before each, in nanoseconds, and its cost.
pub(super) fn steps(costs: std::ops::Range<u64>) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let pause = prop_oneof![
        Just(0u64),
        1u64..10,
        1u64..2_000_000_000,
        Just(30 * 86_400_000_000_000)
    ];
    proptest::collection::vec((pause, costs), 1..200)
}

/// Whether a request that was refused at `now` passes after `wait` and not a nanosecond sooner.
pub(super) fn is_exact(now: u64, wait: Nanos, verdict_at: impl Fn(Moment) -> Verdict) -> bool {
    let passes = |at: u64| !matches!(verdict_at(Moment(at)), Verdict::Refused { .. });
    passes(now + wait.0) && !passes(now + wait.0 - 1)
}

/// One key of a limit.
struct Key {
    algorithm: Algorithm,
    state: BucketState,
}

impl Key {
    fn new(algorithm: config::Algorithm, quota: Quota) -> Self {
        Self {
            algorithm: Algorithm::new(algorithm, &quota),
            state: BucketState::default(),
        }
    }

    fn take(&mut self, ms: u64, cost: u64) -> Verdict {
        let (verdict, take, _) =
            self.algorithm
                .take_with(self.state, at(ms), cost, Wish::default());
        self.state = take.after;
        verdict
    }

    fn peek(&self, ms: u64, cost: u64) -> Verdict {
        self.algorithm
            .take_with(self.state, at(ms), cost, Wish::default())
            .0
    }
}

/// The clock does not begin at 0.
fn at(ms: u64) -> Moment {
    Moment::from_millis(1_000_000 + ms)
}

const TOKEN_BUCKET: config::Algorithm = config::Algorithm::TokenBucket { warm_up: None };
const LEAKY_BUCKET: config::Algorithm = config::Algorithm::LeakyBucket {
    max_wait: Nanos::from_secs(3_600),
};

/// A rate per second, also less than one.
fn quota(rate: f64, burst: u64) -> Quota {
    if rate >= 1.0 {
        return Quota {
            limit: rate as u64,
            period: Nanos::from_secs(1),
            burst,
        };
    }
    Quota {
        limit: 1,
        period: Nanos((1e9 / rate).round() as u64),
        burst,
    }
}

fn numbers(json: &Value) -> Vec<u64> {
    json.as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect()
}

const fn passes(verdict: Verdict) -> bool {
    !matches!(verdict, Verdict::Refused { .. })
}

fn delay(verdict: Verdict) -> Option<u64> {
    match verdict {
        Verdict::Admitted { .. } => Some(0),
        Verdict::Delayed { delay, .. } => Some(delay.as_millis()),
        Verdict::Refused { .. } => None,
    }
}

#[test]
fn throttled_and_redis_cell() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/01_gcra.json")).unwrap();
    let mut key = Key::new(TOKEN_BUCKET, quota(1.0, 5));
    let steps = vectors["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 16);
    for step in steps {
        let (verdict, wait) = match key.take(
            step["t_ms"].as_u64().unwrap(),
            step["volume"].as_u64().unwrap(),
        ) {
            Verdict::Admitted { remaining, reset } => ((false, remaining, reset), None),
            Verdict::Refused {
                remaining,
                reset,
                wait,
            } => ((true, remaining, reset), wait),
            Verdict::Delayed { .. } => panic!("a token bucket delays nothing"),
        };
        let expected = (
            step["limited"].as_bool().unwrap(),
            step["remaining"].as_u64().unwrap(),
            Nanos::from_millis(step["reset_after_ms"].as_u64().unwrap()),
        );
        assert_eq!(verdict, expected, "{step}");
        assert_eq!(
            wait.map_or(-1, |wait| wait.as_millis() as i64),
            step["retry_after_ms"].as_i64().unwrap(),
            "{step}"
        );
    }
    // CL.THROTTLE user123 15 30 60
    let mut key = Key::new(
        TOKEN_BUCKET,
        Quota {
            limit: 30,
            period: Nanos::from_secs(60),
            burst: 16,
        },
    );
    assert_eq!(
        key.take(0, 1),
        Verdict::Admitted {
            remaining: 15,
            reset: Nanos::from_secs(2)
        }
    );
}

#[test]
fn envoys_token_bucket() {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../tests/vectors/02_token_bucket_envoy.json"
    ))
    .unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        // Slower than a token a year Envoy does not go; here the configuration refuses it.
        let rate = case["rate"].as_f64().unwrap().max(1.0 / (365.0 * 86_400.0));
        let mut key = Key::new(TOKEN_BUCKET, quota(rate, case["max"].as_u64().unwrap()));
        for step in case["steps"].as_array().unwrap() {
            let ms = step["t_ms"].as_u64().unwrap();
            let (wanted, got) = (
                step["consume"].as_u64().unwrap(),
                step["got"].as_u64().unwrap(),
            );
            // Envoy can also take fewer tokens than wanted; haven takes all or nothing, so that no
            // more may be there.
            if got < wanted {
                let too_many = if case["partial"] == true {
                    got + 1
                } else {
                    wanted
                };
                assert!(!passes(key.peek(ms, too_many)), "{} {step}", case["name"]);
            }
            assert!(passes(key.take(ms, got)), "{} {step}", case["name"]);
            if let Some(next) = step["next_token_ms"].as_u64() {
                let wait = match key.peek(ms, 1) {
                    Verdict::Refused { wait, .. } => wait.unwrap().0.div_ceil(1_000_000),
                    _ => 0,
                };
                // Envoy rounds a token's time up, not what is left of it.
                assert!(
                    wait == next || wait + 1 == next,
                    "{} {step}: {wait}",
                    case["name"]
                );
            }
        }
    }
}

#[test]
fn leaky_buckets_of_nginx_openresty_and_apisix() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/23_leaky_bucket.json")).unwrap();
    let of = |case: &Value, burst: f64| {
        Key::new(
            LEAKY_BUCKET,
            quota(case["rate"].as_f64().unwrap(), burst as u64),
        )
    };
    for case in vectors["nginx"].as_array().unwrap() {
        let mut key = of(case, case["burst"].as_f64().unwrap());
        let token = (1_000.0 / case["rate"].as_f64().unwrap()) as u64;
        // What nginx lets pass of the queue without a delay haven has wait.
        let undelayed = if case["nodelay"] == true {
            u64::MAX
        } else {
            case["delay"].as_u64().unwrap_or(0) * token
        };
        for (ms, out) in numbers(&case["t_ms"])
            .into_iter()
            .zip(case["out"].as_array().unwrap())
        {
            let given = delay(key.take(ms, 1));
            if let Some(status) = out.as_u64() {
                assert_eq!(given.is_some(), status == 200, "{case} at {ms}");
                continue;
            }
            let expected = (out[0] == 200).then(|| out[1].as_u64().unwrap());
            assert_eq!(
                given.map(|given| given.saturating_sub(undelayed)),
                expected,
                "{case} at {ms}"
            );
        }
    }
    let openresty = &vectors["openresty"];
    let mut keys = [of(&openresty[0], 10.0), of(&openresty[0], 10.0)];
    for (number, seconds) in openresty[0]["delay_s"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let expected = (seconds.as_f64().unwrap() * 1e3) as u64;
        assert_eq!(delay(keys[number / 2].take(0, 1)), Some(expected));
    }
    for (burst, rejected) in numbers(&openresty[1]["burst"])
        .into_iter()
        .zip(numbers(&openresty[1]["rejected_at_request"]))
    {
        let mut key = of(&openresty[1], burst as f64);
        let first = (1..9).find(|_| !passes(key.take(0, 1)));
        assert_eq!(first, Some(rejected), "burst {burst}");
    }
    // One after the other, each when the one before has been served.
    let in_turn = |key: &mut Key, count: u64| -> (u64, Vec<bool>) {
        let mut now = 0;
        let served = (0..count).map(|_| {
            let delay = delay(key.take(now, 1));
            now += delay.unwrap_or(0);
            delay.is_some()
        });
        let served = served.collect();
        (now, served)
    };
    let (elapsed, served) = in_turn(&mut of(&openresty[2], 40.0), 80);
    assert!(
        served.iter().all(|s| *s) && (1_960..=1_990).contains(&elapsed),
        "{elapsed}"
    );
    for case in vectors["apisix"].as_array().unwrap() {
        let (_, served) = in_turn(
            &mut of(case, case["burst"].as_f64().unwrap()),
            case["n"].as_u64().unwrap(),
        );
        let expected: Vec<_> = numbers(&case["out"])
            .iter()
            .map(|status| *status == 200)
            .collect();
        assert_eq!(served, expected, "{case}");
    }
}

#[test]
fn guavas_five_per_second() {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../tests/vectors/31_seed_scenarios.json"
    ))
    .unwrap();
    let case = &vectors["scenarios"][0];
    for (burst, out) in [(1, "guava_out"), (5, "token_bucket_burst5_out")] {
        let mut key = Key::new(TOKEN_BUCKET, quota(5.0, burst));
        let given: Vec<_> = numbers(&case["t_ms"])
            .into_iter()
            .map(|ms| passes(key.take(ms, 1)))
            .collect();
        let expected: Vec<_> = case[out]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| b.as_bool().unwrap())
            .collect();
        assert_eq!(given, expected, "burst {burst}");
    }
}

#[test]
fn headers_of_the_draft_and_the_older_ones() {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../tests/vectors/22_ratelimit_headers_problem.json"
    ))
    .unwrap();
    let case = &vectors["from_gcra_example"];
    let quota = KeyQuota {
        burst: case["limit"].as_u64().unwrap(),
        period: Nanos::from_secs(case["period_s"].as_u64().unwrap()),
        remaining: case["remaining"].as_u64().unwrap(),
        reset: Nanos::from_millis(case["reset_ms"].as_u64().unwrap()),
        partition: None,
    };
    let given = quota_headers::all([("p", QuotaHeaders::Both, quota)].into_iter());
    let expected = case["headers"].as_object().unwrap();
    assert_eq!(given.len(), expected.len());
    for (name, value) in expected {
        let given = given
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice());
        assert_eq!(given, value.as_str().map(str::as_bytes), "{name}");
    }
}

/// A pause before the step, limit, period in nanoseconds, cost, and the state that it finds if
/// another has broken the record.
type Stumble = (i64, u64, u64, u64, Option<(u64, u64)>);

fn keeps_its_promises(kind: usize, steps: Vec<Stumble>) -> Result<(), TestCaseError> {
    let warm = config::Algorithm::TokenBucket {
        warm_up: Some(Nanos::from_secs(9)),
    };
    let kind = [
        config::Algorithm::FixedWindow,
        config::Algorithm::SlidingWindow,
        LEAKY_BUCKET,
        TOKEN_BUCKET,
        warm,
    ][kind];
    let (mut now, mut state) = (3_600_000_000_000_000u64, BucketState::default());
    for (pause, limit, period, cost, broken) in steps {
        now = now.saturating_add_signed(pause);
        // And some find another record.
        if let Some((until, rest)) = broken {
            state = BucketState { until, rest };
        }
        // Each step finds another quota: a reload in between.
        let algorithm = Algorithm::new(
            kind,
            &Quota {
                limit,
                period: Nanos(period),
                burst: limit,
            },
        );
        let (verdict, take, _) = algorithm.take_with(state, Moment(now), cost, Wish::default());
        let passes_at = |t: u64| {
            passes(
                algorithm
                    .take_with(take.after, Moment(t), cost, Wish::default())
                    .0,
            )
        };
        match verdict {
            Verdict::Refused { wait: None, .. } => prop_assert!(cost > limit),
            Verdict::Refused {
                wait: Some(wait),
                remaining,
                ..
            } => {
                // What is further ahead than a bucket can owe is forgotten.
                let forgets = !matches!(
                    kind,
                    config::Algorithm::FixedWindow | config::Algorithm::SlidingWindow
                ) && take.after < state;
                prop_assert!(take.after == state || forgets, "a refusal writes nothing");
                prop_assert!(remaining < cost || kind == LEAKY_BUCKET);
                prop_assert!(
                    passes_at(now + wait.0) && !passes_at(now + wait.0 - 1),
                    "the wait is exact"
                );
            }
            Verdict::Admitted { remaining, .. } | Verdict::Delayed { remaining, .. } => {
                prop_assert!(remaining <= limit && (cost == 0 || cost <= limit));
                // Taken and given back at once: as if it had never been.
                let refunded = algorithm.refunded(take, take.after, Nanos::ZERO);
                let again = algorithm
                    .take_with(refunded, Moment(now), cost, Wish::default())
                    .0;
                prop_assert_eq!(again, verdict);
            }
        }
        state = take.after;
    }
    Ok(())
}

#[test]
fn a_queue_found_after_the_clock_stepped_back_a_month_is_cut_to_what_one_can_owe() {
    const MONTH_BACK: i64 = -30 * 86_400_000_000_000;
    for steps in [
        [(0, 7, 1, 1, None), (MONTH_BACK, 6, 1, 1, None)],
        [(0, 4, 1, 1, None), (MONTH_BACK, 10, 1, 1, None)],
    ] {
        keeps_its_promises(2, steps.to_vec()).unwrap();
    }
}

proptest! {
    #[test]
    fn clocks_that_step_and_reloads_break_no_promise(
        kind in 0usize..5,
        steps in proptest::collection::vec(
            (
                prop_oneof![
                    Just(0i64),
                    -5_000_000_000i64..5_000_000_000,
                    Just(30 * 86_400_000_000_000),
                    Just(-30 * 86_400_000_000_000)
                ],
                1u64..20,
                prop_oneof![1u64..1_000_000, 1_000_000u64..2_000_000_000],
                0u64..25,
                prop_oneof![9 => Just(None), 1 => (any::<u64>(), any::<u64>()).prop_map(Some)],
            ),
            1..60,
        ),
    ) {
        keeps_its_promises(kind, steps)?;
    }
}
