use super::*;
use crate::base::percent::Percent;
use config::{BreakerScope, FailureOn};

mod peers;
mod properties;

const SECOND: Nanos = Nanos::from_secs(1);
const START: Moment = Moment::from_secs(1_000);

fn config() -> config::CircuitBreaker {
    config::CircuitBreaker {
        name: "cb".into(),
        mode: None,
        scope: BreakerScope::Route,
        failure_rate_threshold: Percent(5_000),
        slow_call_rate_threshold: Percent(10_000),
        slow_call_duration: Nanos::from_secs(60),
        consecutive_failures: 0,
        minimum_calls: 5,
        window: config::WindowConfig::Time(Nanos::from_secs(20)),
        open_duration: Nanos::from_secs(5),
        backoff_multiplier_centi: 100,
        max_open_duration: Nanos::from_secs(60),
        jitter: Percent(0),
        half_open_calls: Some(4),
        half_open_max_wait: Nanos::from_secs(30),
        failure_on: FailureOn {
            status: vec![(500, 599)],
            grpc_status: vec![14],
            reset: true,
            timeout: true,
        },
        honour_retry_after: true,
        open_above: false,
    }
}

/// A breaker with a clock of its own.
struct Bench {
    settings: BreakerSettings,
    state: BreakerState,
    now: Moment,
}

impl Bench {
    fn new(config: config::CircuitBreaker) -> Self {
        let settings = BreakerSettings::new(config);
        Self {
            state: BreakerState::default().bounded(&settings),
            settings,
            now: START,
        }
    }

    fn acquire(&mut self) -> Result<u32, Nanos> {
        match self.state.acquire(&self.settings, self.now).0 {
            Admission::Admitted { epoch, .. } => Ok(epoch),
            Admission::Refused { wait } => Err(wait),
        }
    }

    fn end(&mut self, epoch: u32, outcome: Outcome, duration: Nanos) -> Option<Transition> {
        self.state.end(
            &self.settings,
            self.now,
            epoch,
            CallResult {
                outcome,
                duration,
                retry_after: None,
                begun: false,
            },
            0,
        )
    }

    /// One whole call.
    fn call(&mut self, outcome: Outcome) -> Option<Transition> {
        let epoch = self.acquire().expect("admitted");
        self.end(epoch, outcome, Nanos::ZERO)
    }

    fn calls(&mut self, outcomes: &str) {
        for outcome in outcomes.chars() {
            self.call(match outcome {
                'f' => Outcome::Failure,
                's' => Outcome::Success,
                _ => Outcome::Ignore,
            });
        }
    }

    fn trip(&mut self) {
        self.calls("fffff");
        assert_eq!(self.state.phase, Phase::Open);
    }

    fn half_open(&mut self) {
        self.trip();
        self.now = self.state.until;
    }
}

#[test]
fn cold_start_holds_until_minimum_calls() {
    let mut bench = Bench::new(config());
    bench.calls("ffff");
    assert_eq!(bench.state.phase, Phase::Closed);
    let change = bench.call(Outcome::Success).unwrap();
    assert_eq!(
        (change.to, change.reason, change.open_for),
        (Phase::Open, TripReason::FailureRate, Nanos::from_secs(5))
    );
    assert_eq!(bench.acquire(), Err(Nanos::from_secs(5)));
}

#[test]
fn it_opens_at_the_threshold_exactly_or_only_above_it() {
    for (open_above, phase) in [(false, Phase::Open), (true, Phase::Closed)] {
        let mut bench = Bench::new(config::CircuitBreaker {
            open_above,
            ..config()
        });
        bench.calls("sssfff");
        assert_eq!(bench.state.phase, phase);
    }
}

#[test]
fn failures_older_than_the_window_are_forgotten() {
    let mut bench = Bench::new(config());
    bench.calls("ffff");
    bench.now = bench.now.plus(Nanos::from_secs(21));
    bench.calls("sssss");
    assert_eq!(
        bench.state.window.sum(),
        Counts {
            calls: 5,
            failures: 0,
            slow: 0
        }
    );
}

#[test]
fn failures_in_a_row_open_at_once_and_a_success_ends_the_row() {
    let mut bench = Bench::new(config::CircuitBreaker {
        consecutive_failures: 3,
        minimum_calls: 100,
        ..config()
    });
    bench.calls("ffsff");
    assert_eq!(bench.state.phase, Phase::Closed);
    assert_eq!(
        bench.call(Outcome::Failure).unwrap().reason,
        TripReason::ConsecutiveFailures
    );
}

#[test]
fn slow_calls_open_it_though_they_succeed() {
    let mut bench = Bench::new(config::CircuitBreaker {
        slow_call_rate_threshold: Percent(5_000),
        slow_call_duration: SECOND,
        ..config()
    });
    for duration in [1_000, 999, 1_000, 999] {
        assert_eq!(
            bench.end(0, Outcome::Success, Nanos::from_millis(duration)),
            None
        );
    }
    assert_eq!(
        bench.end(0, Outcome::Success, SECOND).unwrap().reason,
        TripReason::SlowCallRate
    );
}

#[test]
fn half_open_permits_are_bounded_and_given_back() {
    let mut bench = Bench::new(config());
    bench.half_open();
    let epochs: Vec<_> = (0..4).map(|_| bench.acquire().unwrap()).collect();
    assert_eq!(bench.acquire(), Err(Nanos::ZERO));
    assert_eq!(bench.end(epochs[0], Outcome::Ignore, Nanos::ZERO), None);
    assert!(bench.acquire().is_ok());
    assert!(bench.acquire().is_err());
}

#[test]
fn a_trial_that_goes_well_closes_it_with_an_empty_window() {
    let mut bench = Bench::new(config());
    bench.half_open();
    bench.calls("fsss");
    assert_eq!(bench.state.phase, Phase::Closed);
    assert_eq!(bench.state.window.sum(), Counts::default());
}

#[test]
fn a_trial_that_fails_opens_it_for_longer_each_time_up_to_the_cap() {
    let mut bench = Bench::new(config::CircuitBreaker {
        backoff_multiplier_centi: 200,
        max_open_duration: Nanos::from_secs(15),
        ..config()
    });
    bench.half_open();
    let mut open_for = Vec::new();
    for _ in 0..4 {
        bench.calls("fff");
        open_for.push(bench.call(Outcome::Success).unwrap().open_for.0 / 1_000_000_000);
        bench.now = bench.state.until;
    }
    assert_eq!(open_for, [10, 15, 15, 15]);
}

#[test]
fn a_grown_open_time_is_kept_over_a_short_recovery_and_forgotten_after_a_quiet_spell() {
    // Which is a window's length, or the last open time if that is longer.
    for (grown, spell) in [(10, 20), (40, 40)] {
        let mut bench = Bench::new(config::CircuitBreaker {
            backoff_multiplier_centi: grown * 20,
            ..config()
        });
        bench.half_open();
        bench.calls("ffff");
        let grown = Nanos::from_secs(grown.into());
        assert_eq!(bench.state.until.since(bench.now), grown);
        for _ in 0..3 {
            bench.now = bench.state.until;
            bench.calls("ssss");
            bench.now = bench.now.plus(Nanos(spell * SECOND.0 - 1));
            bench.trip();
            assert_eq!(
                bench.state.until.since(bench.now),
                grown,
                "as long as the last time, and no longer"
            );
        }
        bench.now = bench.state.until;
        bench.calls("ssss");
        bench.now = bench.now.plus(Nanos::from_secs(spell));
        bench.trip();
        assert_eq!(
            bench.state.until.since(bench.now),
            Nanos::from_secs(5),
            "after a quiet spell it starts over"
        );
    }
}

#[test]
fn a_count_window_judges_the_last_calls_whenever_they_were() {
    let mut bench = Bench::new(config::CircuitBreaker {
        window: config::WindowConfig::Count(6),
        ..config()
    });
    bench.calls("ssss");
    bench.now = bench.now.plus(Nanos::from_secs(86_400));
    bench.calls("ff");
    assert_eq!(
        bench.state.window.sum(),
        Counts {
            calls: 6,
            failures: 2,
            slow: 0
        }
    );
    bench.calls("s");
    assert_eq!(bench.state.phase, Phase::Closed);
    assert_eq!(
        bench.call(Outcome::Failure).unwrap().reason,
        TripReason::FailureRate,
        "3 of the last 6"
    );
}

#[test]
fn a_count_window_smaller_than_minimum_calls_is_judged_when_it_is_full() {
    let mut bench = Bench::new(config::CircuitBreaker {
        window: config::WindowConfig::Count(3),
        minimum_calls: 100,
        ..config()
    });
    bench.calls("ff");
    assert_eq!(bench.state.phase, Phase::Closed);
    bench.calls("f");
    assert_eq!(bench.state.phase, Phase::Open);
}

#[test]
fn a_window_of_another_kind_or_size_begins_anew_and_nothing_else_does() {
    let windows = [
        config::WindowConfig::Time(Nanos::from_secs(20)),
        config::WindowConfig::Count(100),
        config::WindowConfig::Count(64),
    ];
    for (from, to) in windows
        .iter()
        .flat_map(|from| windows.iter().map(move |to| (from, to)))
    {
        let mut bench = Bench::new(config::CircuitBreaker {
            window: *from,
            ..config()
        });
        bench.half_open();
        bench.calls("ssssff");
        let mut bytes = Vec::new();
        bench.state.encode(&mut bytes);
        let settings = BreakerSettings::new(config::CircuitBreaker {
            window: *to,
            ..config()
        });
        let state = BreakerState::decode(&bytes).bounded(&settings);
        assert_eq!(
            (state.phase, state.epoch),
            (Phase::Closed, bench.state.epoch)
        );
        assert_eq!(
            state.window.sum().calls,
            if from == to { 2 } else { 0 },
            "{from:?} {to:?}"
        );
    }
}

#[test]
fn jitter_stays_within_its_share() {
    let settings = BreakerSettings::new(config::CircuitBreaker {
        jitter: Percent(2_000),
        ..config()
    });
    for (random, millis) in [(0, 4_000), (u64::MAX / 2, 5_000), (u64::MAX, 6_000)] {
        assert_eq!(settings.open_time(0, None, random).as_millis(), millis);
    }
}

#[test]
fn jitter_neither_goes_beyond_the_longest_open_time_nor_below_the_shortest() {
    let (least, most) = (Nanos::from_millis(1), Nanos::from_secs(6));
    for (open, jitter, bounds) in [
        (5, 100, (least, most)),
        (6, 50, (Nanos::from_secs(3), most)),
        (6, 0, (most, most)),
    ] {
        let settings = BreakerSettings::new(config::CircuitBreaker {
            open_duration: Nanos::from_secs(open),
            max_open_duration: most,
            jitter: Percent(jitter * 100),
            ..config()
        });
        let drawn = [0, u64::MAX].map(|random| settings.open_time(0, None, random));
        assert_eq!((drawn[0], drawn[1]), bounds, "{open} s, {jitter} %");
        let middle = settings.open_time(0, None, u64::MAX / 2);
        assert!(
            jitter == 0 || middle < most,
            "not all at once at the longest"
        );
    }
}

#[test]
fn an_upstreams_retry_after_sets_the_open_time_within_bounds() {
    for (asked, honoured, open_for) in [(7, true, 7), (3_600, true, 60), (7, false, 5)] {
        let mut bench = Bench::new(config::CircuitBreaker {
            honour_retry_after: honoured,
            consecutive_failures: 1,
            ..config()
        });
        let call = CallResult {
            outcome: Outcome::Failure,
            duration: Nanos::ZERO,
            retry_after: Some(Nanos::from_secs(asked)),
            begun: false,
        };
        let change = bench
            .state
            .end(&bench.settings, bench.now, 0, call, 0)
            .unwrap();
        assert_eq!(change.open_for, Nanos::from_secs(open_for));
    }
}

#[test]
fn stragglers_of_an_older_epoch_are_ignored() {
    let mut bench = Bench::new(config());
    let old = bench.acquire().unwrap();
    bench.half_open();
    let new = bench.acquire().unwrap();
    assert_ne!(old, new);
    for _ in 0..10 {
        assert_eq!(bench.end(old, Outcome::Failure, Nanos::ZERO), None);
        assert_eq!(bench.end(old, Outcome::Ignore, Nanos::ZERO), None);
    }
    assert_eq!(
        (bench.state.permits, bench.state.trial),
        (1, Counts::default())
    );
}

#[test]
fn permits_lost_with_their_vm_do_not_keep_it_half_open() {
    let mut bench = Bench::new(config());
    bench.half_open();
    for _ in 0..4 {
        bench.acquire().unwrap();
    }
    bench.now = bench.now.plus(Nanos::from_secs(30));
    let (admission, change) = bench.state.acquire(&bench.settings, bench.now);
    assert!(matches!(admission, Admission::Refused { .. }));
    assert_eq!(change.unwrap().reason, TripReason::TrialTimedOut);
    bench.now = bench.state.until;
    assert!(bench.acquire().is_ok());
}

#[test]
fn a_clock_that_steps_back_does_not_keep_it_open() {
    let mut bench = Bench::new(config());
    bench.trip();
    bench.now = Moment::from_secs(1);
    assert_eq!(
        bench.acquire(),
        Err(Nanos::from_secs(5)),
        "the length stays"
    );
    bench.now = Moment::from_secs(6);
    assert!(bench.acquire().is_ok());
}
