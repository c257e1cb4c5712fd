//! Windows and the leaky bucket's pace over all workers.

use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::hash::Seed;
use haven::base::headers::HeaderMap;
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::document::{Algorithm, ClientIp, Config, Quota, RateLimit as Limit};
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::engine::waiting::{CAPACITY, Line, Waiting};
use haven::host::Clock;
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use haven::policy::rate_limit::{LimitDecision, RateLimit};
use haven::request::Request;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

fn policy(algorithm: Algorithm, quota: Quota, max_keys: u32) -> RateLimit {
    let json = br#"{"rate_limits": {"l": {"limit": 1, "key": [{"header": "x-key"}], "cost": {"header": "x-cost", "min": 0, "max": 100}}}}"#;
    let config: Config = haven::document::parse(json).unwrap();
    let limit = Limit {
        algorithm,
        quota,
        max_keys,
        ..config.rate_limits[0].as_ref().clone()
    };
    RateLimit::new(limit, &ClientIp::default(), "", false, Seed(1, 2))
}

fn take(policy: &RateLimit, worker: &Worker, key: u64, cost: u64, now: Moment) -> LimitDecision {
    let headers =
        HeaderMap::from_pairs(&[("x-key", key.to_string()), ("x-cost", cost.to_string())]);
    policy.take(worker, &Request::new(&headers), now)
}

fn rules_of(seed: u64) -> HostKind {
    if seed.is_multiple_of(2) {
        HostKind::Envoy
    } else {
        HostKind::Nginx
    }
}

/// What was admitted, in the order in which it was written: key, the worker's reading of the clock,
/// the window it counted in, cost.
type Log = Rc<RefCell<Vec<(u64, u64, u64, u64)>>>;

/// Runs workers that draw from a window; a quarter of what they get they give back.
fn windows(
    name: &str,
    algorithm: Algorithm,
    periods: u64,
    check: impl Fn(Quota, &[(u64, u64, u64, u64)]),
) {
    for_each_seed(name, 10_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(rules_of(seed), seed);
        machine.cas_failures.set([0, 0, 20][rng.below(3) as usize]);
        let limit = 1 + rng.below(8);
        let quota = Quota {
            limit,
            period: Nanos::from_millis(1 + rng.below(500)),
            burst: limit,
        };
        let log: Log = Rc::default();
        let tasks = (0..2 + rng.below(7)).map(|_| {
            let (worker, log, rng) = (
                Worker(Rc::clone(&machine)),
                Rc::clone(&log),
                Rc::clone(&rng),
            );
            let policy = policy(algorithm, quota, 1_000);
            Box::new(move || {
                for _ in 0..1 + rng.below(4) {
                    let (key, cost, now) = (rng.below(2), 1 + rng.below(3), worker.monotonic());
                    if let LimitDecision::Admitted { quota, taken, .. } =
                        take(&policy, &worker, key, cost, now)
                    {
                        // No host call since it was written: the order of the log is that of the
                        // writes.
                        let window = now.0 + quota.reset.0 - periods * quota.period.0;
                        if rng.below(4) == 0 && policy.refund(&worker, taken, now).is_ok() {
                            continue;
                        }
                        log.borrow_mut().push((key, now.0, window, cost));
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 150,
            longest: Nanos::from_millis(100),
            lost_vm: 5,
            step_back: 0,
        };
        run(&machine, &rng, faults, tasks.collect());
        check(quota, &log.borrow());
    });
}

#[test]
fn no_fixed_window_admits_more_than_its_limit() {
    windows(
        "no_fixed_window_admits_more_than_its_limit",
        Algorithm::FixedWindow,
        1,
        |quota, log| {
            let mut sums: BTreeMap<(u64, u64), u64> = BTreeMap::new();
            for (key, _, window, cost) in log {
                assert_eq!(window % quota.period.0, 0, "windows are aligned");
                *sums.entry((*key, *window)).or_default() += cost;
            }
            assert!(
                sums.values().all(|sum| *sum <= quota.limit),
                "{quota:?} {sums:?}"
            );
        },
    );
}

#[test]
fn no_sliding_window_admits_more_than_its_limit_nor_two_more_than_their_bound() {
    let name = "no_sliding_window_admits_more_than_its_limit_nor_two_more_than_their_bound";
    windows(name, Algorithm::SlidingWindow, 2, |quota, log| {
        let period = quota.period.0;
        let mut last: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
        for (key, now, window, cost) in log {
            assert_eq!(window % period, 0, "windows are aligned");
            let (sum, latest) = last.entry((*key, *window)).or_default();
            *sum += cost;
            *latest = (*latest).max(now.saturating_sub(*window));
        }
        for ((key, window), (sum, elapsed)) in &last {
            assert!(*sum <= quota.limit, "{quota:?}");
            if let Some((before, _)) = window
                .checked_sub(period)
                .and_then(|window| last.get(&(*key, window)))
            {
                // previous + current ≤ limit + limit · elapsed / period
                assert!(
                    (before + sum - quota.limit.min(before + sum)) * period
                        <= quota.limit * elapsed,
                    "{quota:?}"
                );
            }
        }
    });
}

#[test]
fn without_faults_windows_admit_exactly_their_limit() {
    for_each_seed(
        "without_faults_windows_admit_exactly_their_limit",
        5_000,
        |seed| {
            let rng = Rng::new(seed);
            let machine = Machine::new(rules_of(seed), seed);
            let algorithm = if rng.below(2) == 0 {
                Algorithm::FixedWindow
            } else {
                Algorithm::SlidingWindow
            };
            let limit = 1 + rng.below(8);
            let quota = Quota {
                limit,
                period: Nanos::from_secs(1),
                burst: limit,
            };
            let admitted = Rc::new(RefCell::new(0u64));
            let (workers, each) = (2 + rng.below(5), 1 + rng.below(4));
            let tasks = (0..workers).map(|_| {
                let (worker, admitted) = (Worker(Rc::clone(&machine)), Rc::clone(&admitted));
                let policy = policy(algorithm, quota, 1_000);
                Box::new(move || {
                    let now = worker.monotonic();
                    for _ in 0..each {
                        if let LimitDecision::Admitted { .. } = take(&policy, &worker, 7, 1, now) {
                            *admitted.borrow_mut() += 1;
                        }
                    }
                }) as Box<dyn FnOnce()>
            });
            run(&machine, &rng, Faults::default(), tasks.collect());
            assert_eq!(
                *admitted.borrow(),
                limit.min(workers * each),
                "{algorithm:?}"
            );
        },
    );
}

#[test]
fn wide_slots_are_bounded_and_the_least_debtor_goes_first() {
    let quota = Quota {
        limit: 9,
        period: Nanos::from_secs(10),
        burst: 9,
    };
    for algorithm in [
        Algorithm::FixedWindow,
        Algorithm::SlidingWindow,
        Algorithm::TokenBucket {
            warm_up: Some(Nanos(9)),
        },
    ] {
        let machine = Machine::new(HostKind::Envoy, 1);
        let worker = Worker(Rc::clone(&machine));
        let policy_of = |max_keys| policy(algorithm, quota, max_keys);
        let large = policy_of(1_000);
        for key in 0..50_000 {
            take(&large, &worker, key, 1, machine.now());
        }
        let bound = 1_500 * 24 + (1_500 / 16 + 1) * 32;
        assert!(
            machine.shared_bytes() <= bound,
            "{algorithm:?}: {} > {bound}",
            machine.shared_bytes()
        );
        // Room for two: the one that has counted most stays.
        let small = policy_of(2);
        let left = |key: u64| match take(&small, &worker, key, 0, machine.now()) {
            LimitDecision::Admitted { quota, .. } => quota.remaining,
            other => panic!("{other:?}"),
        };
        take(&small, &worker, 1, 9, machine.now());
        for key in 2..9 {
            take(&small, &worker, key, 1, machine.now());
        }
        // Of a cold bucket a third of the burst is at hand.
        let all = if matches!(algorithm, Algorithm::TokenBucket { .. }) {
            3
        } else {
            9
        };
        assert_eq!((left(1), left(2)), (0, all), "{algorithm:?}");
    }
}

#[test]
fn broken_wide_records_are_empty_ones() {
    for bytes in [
        &b""[..],
        b"\0",
        &[0xff; 40],
        &[1; 9],
        &[2, 0, 0, 0, 0, 0, 0, 0],
        &[2; 24],
        &[1; 24],
    ] {
        let machine = Machine::new(HostKind::Envoy, 1);
        let worker = Worker(Rc::clone(&machine));
        let policy = policy(
            Algorithm::FixedWindow,
            Quota {
                limit: 1,
                period: Nanos::from_secs(10),
                burst: 1,
            },
            2,
        );
        take(&policy, &worker, 1, 1, machine.now());
        machine.corrupt(|_| true, bytes);
        assert!(
            matches!(
                take(&policy, &worker, 1, 1, machine.now()),
                LimitDecision::Admitted { .. }
            ),
            "{bytes:?}"
        );
        assert!(
            matches!(
                take(&policy, &worker, 1, 1, machine.now()),
                LimitDecision::Refused { .. }
            ),
            "it works again"
        );
    }
}

/// A worker's VM, as the glue has it: a queue, and what its streams hold.
#[derive(Default)]
struct Vm {
    queue: Waiting<Rc<(RefCell<Exchange>, SimStream, u64)>>,
    next: u32,
}

/// What all workers have seen.
#[derive(Default)]
struct Seen {
    /// Moments that were given out to wait for, less those of clients that went away.
    moments: Vec<u64>,
    released: usize,
    cancelled: usize,
}

#[test]
fn requests_are_paced_over_all_workers_whatever_happens() {
    let totals = Cell::new((0, 0, 0));
    for_each_seed(
        "requests_are_paced_over_all_workers_whatever_happens",
        10_000,
        |seed| {
            let rng = Rc::new(Rng::new(seed));
            // nginx has no such limit.
            let machine = Machine::new(HostKind::Envoy, seed);
            machine.cas_failures.set([0, 0, 20][rng.below(3) as usize]);
            let (pace, burst) = (1 + rng.below(50), 1 + rng.below(6));
            let config = move |version: u64| {
                format!(
                    r#"{{"service": "v{version}", "rate_limits": {{"l": {{"algorithm": "leaky_bucket", "limit": 1, "period": "{pace}ms",
                    "burst": {burst}, "max_wait": "1h", "on_contention": "deny"}}}}, "routes": [{{"name": "r", "rate_limits": ["l"]}}]}}"#
                )
            };
            let seen: Rc<RefCell<Seen>> = Rc::default();
            let cancels = rng.below(3) == 0;
            let tasks = (0..2 + rng.below(7)).map(|_| {
                let (worker, rng, seen) = (
                    Worker(Rc::clone(&machine)),
                    Rc::clone(&rng),
                    Rc::clone(&seen),
                );
                let machine = Rc::clone(&machine);
                let engine = move |worker: &Worker, version| {
                    Rc::new(
                        Engine::new(
                            haven::document::parse(config(version).as_bytes()).unwrap(),
                            worker,
                        )
                        .unwrap(),
                    )
                };
                Box::new(move || {
                    let mut current = engine(&worker, 0);
                    let mut vm = Vm::default();
                    let mut left = 1 + rng.below(6);
                    // Ends only when all have gone: none waits for ever, or the scheduler finds a
                    // livelock.
                    while left > 0 || vm.queue.len(Line::Limit) > 0 {
                        if left > 0 && rng.below(2) == 0 {
                            left -= 1;
                            let stream = SimStream::request("GET", "/", &[]);
                            let mut exchange = Exchange::new(Rc::clone(&current));
                            let action = exchange.on_request(&worker, &stream);
                            let now = machine.now();
                            match action {
                                Action::Continue | Action::Stop | Action::Read => {
                                    exchange.on_end(&worker)
                                }
                                Action::Wait { until, .. } => {
                                    let mut seen = seen.borrow_mut();
                                    seen.moments.push(until.0);
                                    let waiting =
                                        seen.moments
                                            .iter()
                                            .filter(|moment| **moment > now.0)
                                            .count() as u64;
                                    assert!(waiting <= burst, "{waiting} wait");
                                    drop(seen);
                                    vm.next += 1;
                                    let waiting =
                                        Rc::new((RefCell::new(exchange), stream, until.0));
                                    assert!(
                                        vm.queue
                                            .add(Line::Limit, until, vm.next, 0, waiting)
                                            .is_ok()
                                            && vm.queue.len(Line::Limit) <= CAPACITY
                                    );
                                }
                            }
                        }
                        match rng.below(12) {
                            0 if cancels => {
                                if let Some(gone) = vm.queue.remove(1 + rng.below(6) as u32) {
                                    seen.borrow_mut().moments.retain(|moment| *moment != gone.2);
                                    seen.borrow_mut().cancelled += 1;
                                    gone.0.borrow_mut().on_end(&worker);
                                }
                            }
                            // Requests that wait keep their engine, and the queue outlives it.
                            1 => current = engine(&worker, rng.below(9)),
                            _ => {}
                        }
                        let now = worker.monotonic();
                        while let Some((_, waiting, _)) = vm.queue.due(now) {
                            let action = waiting.0.borrow_mut().on_resume(&worker, &waiting.1);
                            assert_eq!(action, Action::Continue);
                            assert!(now.0 >= waiting.2, "none goes before its moment");
                            seen.borrow_mut().released += 1;
                            waiting.0.borrow_mut().on_end(&worker);
                        }
                        // The machine's time goes on while all sleep, by what the queue asks for.
                        if vm.queue.len(Line::Limit) > 0 && rng.below(4) == 0 {
                            machine.advance(vm.queue.tick_period(now, Moment::MAX));
                        }
                    }
                }) as Box<dyn FnOnce()>
            });
            let faults = Faults {
                pause: 50,
                longest: Nanos::from_millis(30),
                lost_vm: 3,
                step_back: 0,
            };
            let lost = run(&machine, &rng, faults, tasks.collect());
            let mut seen = seen.borrow_mut();
            seen.moments.sort_unstable();
            let close = seen
                .moments
                .windows(2)
                .find(|pair| pair[1] - pair[0] < pace * 1_000_000);
            assert_eq!(close, None, "{pace} ms: {:?}", seen.moments);
            assert!(
                lost > 0 || seen.released == seen.moments.len(),
                "none is forgotten"
            );
            totals.set((
                totals.get().0 + seen.released,
                totals.get().1 + seen.cancelled,
                totals.get().2 + lost,
            ));
        },
    );
    let (released, cancelled, lost) = totals.get();
    let alone = std::env::var_os("HAVEN_SEED").is_some();
    assert!(
        alone || (released > 1_000 && cancelled > 100 && lost > 100),
        "{released} {cancelled} {lost}"
    );
}
