//! The cases of peers: their test vectors, and what their names promise.

use super::*;

/// As those of peers: `tests/vectors/08_backoff.json`. The others there are of retries: full jitter
/// from zero, jitter above a base, and gRPC's A6.
#[test]
fn open_times_grow_and_spread_as_resilience4js_intervals_do() {
    let document: serde_json::Value =
        serde_json::from_str(include_str!("../../../../../tests/vectors/08_backoff.json")).unwrap();
    let capped = &document["r4j_exponential_capped"];
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let settings = BreakerSettings::new(config::CircuitBreaker {
        open_duration: Nanos::from_millis(number(&capped["initial"])),
        backoff_multiplier_centi: u32::try_from(number(&capped["mult"])).unwrap() * 100,
        max_open_duration: Nanos::from_millis(number(&capped["max"])),
        ..config()
    });
    for (rounds, time) in capped["out_attempt_1_to_13"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let open_for = settings
            .open_time(u32::try_from(rounds).unwrap(), None, 0)
            .as_millis();
        assert_eq!(open_for, number(time), "{rounds} failed rounds");
    }
    let randomized = &document["r4j_randomized"];
    let settings = BreakerSettings::new(config::CircuitBreaker {
        open_duration: Nanos::from_millis(number(&randomized["interval"])),
        jitter: Percent((randomized["factor"].as_f64().unwrap() * 10_000.0) as u32),
        ..config()
    });
    let bounds = [0, u64::MAX].map(|random| settings.open_time(0, None, random).as_millis());
    assert_eq!(
        bounds.as_slice(),
        randomized["range"]
            .as_array()
            .unwrap()
            .iter()
            .map(number)
            .collect::<Vec<_>>()
    );
}

/// "goresilience .5/10/30s" of `tests/vectors/31_seed_scenarios.json`; `tests/config` has the
/// preset's numbers.
#[test]
fn ten_calls_of_which_five_failed_open_it_for_goresiliences_thirty_seconds() {
    let mut bench = Bench::new(config::CircuitBreaker {
        minimum_calls: 10,
        window: config::WindowConfig::Time(Nanos::from_secs(10)),
        open_duration: Nanos::from_secs(30),
        ..config()
    });
    bench.calls("sssssffff");
    assert_eq!(bench.state.phase, Phase::Closed);
    assert_eq!(
        bench.call(Outcome::Failure).unwrap().open_for,
        Nanos::from_secs(30)
    );
}

/// resilience4j's CircuitBreakerStateMachineTest (Apache-2.0), as facts:
/// `tests/vectors/04_cb_resilience4j.json`.
#[test]
fn it_agrees_with_resilience4js_own_cases() {
    let document: serde_json::Value = serde_json::from_str(include_str!(
        "../../../../../tests/vectors/04_cb_resilience4j.json"
    ))
    .unwrap();
    let mut run = Vec::new();
    for case in document["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // There are no forced states: a breaker is there or `off`, and in `shadow` it goes through
        // its states as if it acted. A jump to a state that no calls led to cannot be asked for, so
        // that it need not be refused.
        let steps = case["steps"].as_array().unwrap();
        let forced = steps.iter().any(|s| {
            s[0] == "force_error"
                || (s[0] == "force" && !matches!(s[1].as_str(), Some("OPEN" | "HALF_OPEN")))
        });
        if forced {
            continue;
        }
        run.push(name);
        let mut bench = Bench::new(config::CircuitBreaker {
            slow_call_duration: Nanos::from_secs(4),
            slow_call_rate_threshold: Percent(5_000),
            half_open_max_wait: SECOND,
            backoff_multiplier_centi: if case["config_override"].is_null() {
                100
            } else {
                150
            },
            ..config()
        });
        let mut admitted: Vec<u32> = Vec::new();
        for step in steps {
            match step[0].as_str() {
                Some("force") if step[1] == "OPEN" => {
                    bench
                        .state
                        .open(&bench.settings, bench.now, TripReason::FailureRate, None, 0);
                }
                Some("force") => bench.state.enter(Phase::HalfOpen, bench.now, SECOND),
                Some("adv") => {
                    bench.now = bench
                        .now
                        .plus(Nanos::from_millis(step[1].as_u64().unwrap()))
                }
                Some("acq") => {
                    let answer = bench.acquire();
                    assert_eq!(answer.is_ok(), step[1].as_bool().unwrap(), "{name} {step}");
                    admitted.extend(answer.ok());
                }
                Some(word @ ("ok" | "err" | "ignored" | "release")) => {
                    let outcome = match word {
                        "ok" => Outcome::Success,
                        "err" => Outcome::Failure,
                        _ => Outcome::Ignore,
                    };
                    let epoch = admitted.pop().unwrap_or(bench.state.epoch);
                    bench.end(
                        epoch,
                        outcome,
                        Nanos::from_millis(step[1].as_u64().unwrap_or(0)),
                    );
                }
                _ => {
                    if name.starts_with("max wait") {
                        // Theirs has a timer; ours ends the round at the next request.
                        assert!(bench.acquire().is_err());
                    }
                    if let Some(state) = step["state"].as_str() {
                        assert_eq!(
                            bench.state.phase.word().to_uppercase(),
                            state,
                            "{name} {step}"
                        );
                    }
                    // What an open breaker counted before is forgotten.
                    let counts = match bench.state.phase {
                        Phase::Closed => bench.state.window.sum(),
                        Phase::HalfOpen => bench.state.trial,
                        Phase::Open => continue,
                    };
                    let count = |key: &str| step[key].as_u64().map(|n| n as u32);
                    assert_eq!(
                        count("buffered").unwrap_or(counts.calls),
                        counts.calls,
                        "{name} {step}"
                    );
                    assert_eq!(
                        count("failed").unwrap_or(counts.failures),
                        counts.failures,
                        "{name} {step}"
                    );
                }
            }
        }
    }
    assert_eq!(run.len(), 11, "{run:?}");
}
