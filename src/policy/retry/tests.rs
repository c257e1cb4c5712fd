use super::*;
use crate::base::percent::Percent;
use crate::base::rng::Rng;
use proptest::prelude::*;
use std::collections::VecDeque;

fn ask(wanted: u32) -> GrantRequest {
    GrantRequest {
        wanted,
        spare: false,
        client: 0,
    }
}

fn config(budget: u32, min_per_second: u32) -> Retry {
    Retry {
        attempts: 1,
        on: "reset".into(),
        grpc_on: String::new(),
        methods: vec!["GET".into()],
        budget: RetryBudget::Share(Percent(budget)),
        min_per_second,
    }
}

/// Workers that share a route's totals, and an upstream that fails by chance.
struct Proxy {
    budgets: Vec<Budget>,
    attempts: u32,
    totals: Totals,
    now: Moment,
    rng: Rng,
    /// When it ends, whose it is, what was granted.
    in_flight: VecDeque<(Moment, usize, u32)>,
    /// Of those that failed at first, how many had no retry.
    unaided: u64,
}

impl Proxy {
    fn new(config: &Retry, workers: usize) -> Self {
        Self {
            budgets: vec![Budget::new(config); workers],
            attempts: config.attempts,
            totals: Totals::default(),
            now: Moment::from_secs(100),
            rng: Rng::new(7),
            in_flight: VecDeque::new(),
            unaided: 0,
        }
    }

    /// `rate` requests per second for so long, of which `failing` percent fail at each try, each
    /// taking `latency`.
    fn run(&mut self, rate: u64, millis: u64, failing: u64, latency: Nanos) {
        let gap = Nanos(1_000_000_000 / rate);
        for _ in 0..rate * millis / 1_000 {
            self.now = self.now.plus(gap);
            self.end_due(failing);
            let worker = usize::try_from(self.rng.below(self.budgets.len() as u64)).unwrap();
            let granted = self.budgets[worker].grant(self.now, self.totals, ask(self.attempts));
            self.totals.requests += 1;
            self.in_flight
                .push_back((self.now.plus(latency), worker, granted));
        }
    }

    fn end_due(&mut self, failing: u64) {
        while let Some((end, worker, granted)) = self.in_flight.front().copied() {
            if end > self.now {
                break;
            }
            self.in_flight.pop_front();
            let mut failed = self.rng.below(100) < failing;
            self.unaided += u64::from(failed && granted == 0);
            let mut spent = 0;
            while failed && spent < granted {
                spent += 1;
                failed = self.rng.below(100) < failing;
            }
            self.totals.retries += u64::from(spent);
            if granted > 0 {
                self.budgets[worker].settle(0, granted, spent.into(), Some(true));
            }
        }
    }

    /// Upstream requests for each of the clients', in percent, since `before`.
    fn factor(&self, before: Totals) -> u64 {
        let requests = self.totals.requests - before.requests;
        (requests + self.totals.retries - before.retries) * 100 / requests
    }
}

#[test]
fn a_storm_costs_the_budget_and_little_more() {
    for workers in [1, 2, 8] {
        for (rate, latency) in [(50, 20), (200, 50), (1_000, 5), (1_000, 200), (3_000, 500)] {
            for attempts in [1, 3] {
                let mut proxy = Proxy::new(
                    &Retry {
                        attempts,
                        ..config(2_000, 3)
                    },
                    workers,
                );
                proxy.run(rate, 3_000, 0, Nanos::from_millis(latency));
                let before = proxy.totals;
                proxy.run(rate, 8_000, 60, Nanos::from_millis(latency));
                let factor = proxy.factor(before);
                let case = format!(
                    "{workers} workers, {rate}/s, {latency} ms, {attempts} attempts: {factor} %"
                );
                assert!(factor < 125, "{case}");
                assert!(factor >= 110, "the budget is there to be used: {case}");
            }
        }
    }
}

#[test]
fn in_calm_times_nearly_all_failures_are_retried() {
    for workers in [1, 4] {
        for (rate, latency) in [(20, 10), (500, 10), (500, 200), (2_000, 400)] {
            let mut proxy = Proxy::new(&config(2_000, 3), workers);
            proxy.run(rate, 2_000, 0, Nanos::from_millis(latency));
            proxy.run(rate, 10_000, 5, Nanos::from_millis(latency));
            let (unaided, requests) = (proxy.unaided, proxy.totals.requests);
            assert!(
                unaided * 200 <= requests,
                "{unaided} of {requests} without a retry: {workers} workers, {rate}/s, {latency} ms"
            );
        }
    }
}

#[test]
fn the_floor_holds_where_requests_are_few_and_zero_is_none() {
    let mut budget = Budget::new(&config(0, 3));
    let mut totals = Totals::default();
    let mut now = Moment::from_secs(5);
    let mut retries = 0u64;
    for _ in 0..100 {
        now = now.plus(Nanos::from_millis(100));
        let granted = budget.grant(now, totals, ask(1));
        totals.requests += 1;
        if granted > 0 {
            totals.retries += 1;
            retries += 1;
            budget.settle(0, granted, 1, Some(true));
        }
    }
    assert!((24..=33).contains(&retries), "{retries} in 10 s");
    let mut none = Budget::new(&config(0, 0));
    assert_eq!(none.grant(now, totals, ask(1)), 0);
    let mut plenty = Budget::new(&config(10_000, 10));
    assert_eq!(
        [
            plenty.grant(now, totals, ask(0)),
            plenty.grant(now, totals, ask(10))
        ],
        [0, 10]
    );
}

#[test]
fn grants_of_a_lost_worker_cost_the_others_nothing() {
    let mut proxy = Proxy::new(&config(2_000, 3), 2);
    proxy.run(1_000, 2_000, 0, Nanos::from_millis(50));
    // The first worker dies with its grants; a new one takes its place, with an empty memory.
    proxy.budgets[0] = Budget::new(&config(2_000, 3));
    proxy.in_flight.retain(|(_, worker, _)| *worker == 1);
    proxy.run(1_000, 2_000, 0, Nanos::from_millis(50));
    let before = proxy.unaided;
    proxy.run(1_000, 2_000, 5, Nanos::from_millis(50));
    assert!(proxy.unaided - before < 10, "{}", proxy.unaided - before);
}

#[test]
fn a_host_without_metrics_still_has_a_bound() {
    let mut budget = Budget::new(&config(2_000, 3));
    let mut now = Moment::from_secs(5);
    let mut granted = 0;
    for _ in 0..1_000 {
        now = now.plus(Nanos::from_millis(5));
        if budget.grant(now, Totals::default(), ask(1)) > 0 {
            granted += 1;
            budget.settle(0, 1, 1, Some(true));
        }
    }
    assert!((150..=250).contains(&granted), "{granted}");
}

#[test]
fn a_worker_that_was_idle_takes_no_average_of_its_sleep() {
    let mut budget = Budget::new(&config(2_000, 3));
    let mut totals = Totals {
        requests: 5,
        retries: 0,
    };
    let _ = budget.grant(Moment::from_secs(1), totals, ask(0));
    let mut now = Moment::from_secs(61);
    totals.requests = 60_000;
    let mut granted = 0u64;
    for _ in 0..100 {
        now = now.plus(Nanos::from_millis(9));
        if budget.grant(now, totals, ask(1)) > 0 {
            totals.retries += 1;
            granted += 1;
            budget.settle(0, 1, 1, Some(true));
        }
        totals.requests += 1;
    }
    assert!(granted <= 25, "{granted} in the first second");
}

#[test]
fn methods_and_grpc_words_say_who_may() {
    let plain = config(2_000, 3);
    let grpc = Retry {
        grpc_on: "unavailable".into(),
        ..plain.clone()
    };
    let only_grpc = Retry {
        on: String::new(),
        ..grpc.clone()
    };
    let post = Retry {
        methods: vec!["POST".into()],
        ..plain.clone()
    };
    let never = Retry {
        attempts: 0,
        ..plain.clone()
    };
    for (config, method, is_grpc, want) in [
        (&plain, &b"GET"[..], false, true),
        (&plain, b"get", false, false),
        (&plain, b"POST", false, false),
        (&plain, b"", false, false),
        (&plain, b"POST", true, false),
        (&grpc, b"POST", true, true),
        (&grpc, b"POST", false, false),
        (&only_grpc, b"GET", false, false),
        (&only_grpc, b"POST", true, true),
        (&post, b"POST", true, true),
        (&post, b"POST", false, true),
        (&never, b"GET", false, false),
    ] {
        assert_eq!(
            is_eligible(config, method, is_grpc),
            want,
            "{config:?} {method:?} {is_grpc}"
        );
    }
}

proptest! {
    #[test]
    fn no_totals_and_no_clock_break_it(
        steps in proptest::collection::vec(
            (
                any::<u64>(),
                any::<u64>(),
                any::<u64>(),
                any::<u32>(),
                any::<Option<u64>>(),
            ),
            0..50,
        ),
        share in 0u32..=10_000,
        floor in 0u32..=10_000,
    ) {
        let mut budget = Budget::new(&config(share, floor));
        for (now, requests, retries, wanted, settled) in steps {
            let granted = budget.grant(Moment(now), Totals { requests, retries }, ask(wanted));
            prop_assert!(granted <= wanted);
            settled
                .iter()
                .for_each(|spent| budget.settle(0, wanted, *spent, Some(true)));
        }
    }
}

#[test]
fn auto_spends_what_is_spare_and_else_a_fifth() {
    let auto = Retry {
        budget: RetryBudget::Auto,
        ..config(0, 0)
    };
    let spare = GrantRequest {
        wanted: 2,
        spare: true,
        client: 0,
    };
    // 1,000 requests in 2 s, of which each needs both of its retries.
    let storm = |config: &Retry, request: GrantRequest| {
        let (mut budget, mut totals) = (Budget::new(config), Totals::default());
        for n in 0..1_000 {
            let now = Moment::from_millis(10_000 + n * 2);
            let granted = budget.grant(now, totals, request);
            budget.settle(0, granted, granted.into(), Some(true));
            totals.requests += 1;
            totals.retries += u64::from(granted);
        }
        totals.retries
    };
    assert_eq!(storm(&auto, spare), 2_000, "there is room for all");
    let scarce = GrantRequest {
        spare: false,
        client: 0,
        ..spare
    };
    assert!((100..=200).contains(&storm(&auto, scarce)), "a fifth");
    assert!(storm(&config(2_000, 0), spare) <= 200, "a number is a cap");
}

#[test]
fn what_was_spare_is_no_debt_when_room_is_scarce_but_counts_as_spent() {
    let auto = Retry {
        budget: RetryBudget::Auto,
        ..config(0, 0)
    };
    let (mut budget, mut totals) = (Budget::new(&auto), Totals::default());
    let mut granted_at = |ms: u64, spare| {
        let granted = budget.grant(
            Moment::from_millis(ms),
            totals,
            GrantRequest {
                wanted: 1,
                spare,
                client: 0,
            },
        );
        budget.settle(0, granted, granted.into(), Some(true));
        totals.requests += 1;
        totals.retries += u64::from(granted);
        granted
    };
    let first: u32 = (0..500).map(|n| granted_at(10_000 + n * 2, true)).sum();
    assert_eq!(first, 500);
    // In the second that follows the retries of the last one are more than a fifth.
    let next: u32 = (0..250).map(|n| granted_at(11_000 + n * 2, false)).sum();
    assert_eq!(next, 0);
    let later: u32 = (0..500).map(|n| granted_at(13_000 + n * 2, false)).sum();
    assert!((50..=100).contains(&later), "{later}");
}
