//! Buckets over all workers: never over the bound, and not a token lost without a fault.

use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::hash::Seed;
use haven::base::headers::HeaderMap;
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::document::{Algorithm, ClientIp, Config, Quota, RateLimit as Limit};
use haven::host::Clock;
use haven::host::sim::{HostKind, Machine, Worker};
use haven::policy::rate_limit::{LimitDecision, RateLimit};
use haven::request::Request;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

#[derive(Clone, Copy, Debug)]
struct Event {
    key: u64,
    at: Moment,
    cost: u64,
}

fn limit(quota: Quota, max_keys: u32) -> Limit {
    let json = br#"{"rate_limits": {"l": {"limit": 1, "key": [{"header": "x-key"}], "cost": {"header": "x-cost", "min": 0, "max": 100}}},
                    "routes": [{"name": "r", "rate_limits": ["l"]}]}"#;
    let config: Config = haven::document::parse(json).unwrap();
    Limit {
        quota,
        max_keys,
        ..config.rate_limits[0].as_ref().clone()
    }
}

fn take(policy: &RateLimit, worker: &Worker, key: u64, cost: u64, now: Moment) -> LimitDecision {
    let headers =
        HeaderMap::from_pairs(&[("x-key", key.to_string()), ("x-cost", cost.to_string())]);
    policy.take(worker, &Request::new(&headers), now)
}

fn quota_of(rng: &Rng) -> Quota {
    Quota {
        limit: 1 + rng.below(20),
        period: Nanos::from_millis(1 + rng.below(2_000)),
        burst: 1 + rng.below(8),
    }
}

fn rules_of(seed: u64) -> HostKind {
    if seed.is_multiple_of(2) {
        HostKind::Envoy
    } else {
        HostKind::Nginx
    }
}

/// No interval between two admissions of a key holds more than burst + rate·t.
fn check_bound(quota: Quota, events: &[Event]) {
    let mut events = events.to_vec();
    events.sort_by_key(|e| (e.key, e.at));
    for (i, first) in events.iter().enumerate() {
        let mut sum = 0u128;
        for last in events[i..].iter().take_while(|e| e.key == first.key) {
            sum += u128::from(last.cost);
            // cost ≤ burst + limit · t / period, without division
            let allowed = u128::from(quota.burst) * u128::from(quota.period.0)
                + u128::from(quota.limit) * u128::from(last.at.0 - first.at.0);
            assert!(
                sum * u128::from(quota.period.0) <= allowed,
                "{quota:?}: {sum} tokens from {first:?} to {last:?}"
            );
        }
    }
}

#[test]
fn never_over_the_bound() {
    for_each_seed("never_over_the_bound", 40_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(rules_of(seed), seed);
        machine.cas_failures.set([0, 0, 20][rng.below(3) as usize]);
        let quota = quota_of(&rng);
        // By the workers' readings of it, the bound holds even over a clock that steps back; only a
        // refund needs to know what time has passed.
        let step_back = [0, 0, 30][rng.below(3) as usize];
        // One that warms up keeps the same bound.
        let warm_up = (rng.below(4) == 0).then(|| Nanos::from_millis(1 + rng.below(1_000)));
        let events = Rc::new(RefCell::new(Vec::new()));
        let tasks = (0..2 + rng.below(7)).map(|_| {
            let (worker, events, rng) = (
                Worker(Rc::clone(&machine)),
                Rc::clone(&events),
                Rc::clone(&rng),
            );
            let limit = Limit {
                algorithm: Algorithm::TokenBucket { warm_up },
                ..limit(quota, 1_000)
            };
            let policy = RateLimit::new(limit, &ClientIp::default(), "", true, Seed(1, 2));
            Box::new(move || {
                for _ in 0..1 + rng.below(4) {
                    let (key, cost, now) = (rng.below(2), 1 + rng.below(3), worker.monotonic());
                    if let LimitDecision::Admitted { taken, .. } =
                        take(&policy, &worker, key, cost, now)
                    {
                        // Some are taken back, as when another limit of the route refuses.
                        if step_back == 0 && rng.below(4) == 0 {
                            let _ = policy.refund(&worker, taken, now);
                        } else {
                            events.borrow_mut().push(Event { key, at: now, cost });
                        }
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 150,
            longest: Nanos::from_millis(400),
            lost_vm: 5,
            step_back,
        };
        run(&machine, &rng, faults, tasks.collect());
        check_bound(quota, &events.borrow());
    });
}

#[test]
fn leases_never_go_over_the_bound_and_strand_little() {
    for_each_seed(
        "leases_never_go_over_the_bound_and_strand_little",
        4_000,
        |seed| {
            let rng = Rc::new(Rng::new(seed));
            let machine = Machine::new(rules_of(seed), seed);
            machine.cas_failures.set([0, 20][rng.below(2) as usize]);
            // High enough to be leased: 2,000 per second to as much as a configuration can say,
            // 10^9.
            let magnitude = 10u64.pow(rng.below(6) as u32);
            let quota = Quota {
                limit: (2 + rng.below(99)).saturating_mul(magnitude).min(1_000_000),
                period: Nanos::from_millis(1),
                burst: 32 + rng.below(200),
            };
            // Many short pauses; or few in which leases lapse and the bucket fills, and demand
            // enough to draw all of it then.
            let (pause, tokens, more) = [(100, 30, 0), (4, 300, 100)][rng.below(2) as usize];
            let events = Rc::new(RefCell::new(Vec::new()));
            let latest = Rc::new(Cell::new(Moment::ZERO));
            let workers = 2 + rng.below(4);
            let tasks = (0..workers).map(|n| {
                let (worker, events, rng) = (
                    Worker(Rc::clone(&machine)),
                    Rc::clone(&events),
                    Rc::clone(&rng),
                );
                let latest = Rc::clone(&latest);
                // Skewed: the first has most of the traffic.
                let requests = more + if n == 0 { 150 } else { 10 + rng.below(60) };
                // Some workers come, or come again, when the others are at it.
                let late = if n > 0 && rng.below(3) == 0 {
                    rng.below(200)
                } else {
                    0
                };
                Box::new(move || {
                    for _ in 0..late {
                        worker.monotonic();
                    }
                    let policy = RateLimit::new(
                        limit(quota, 1_000),
                        &ClientIp::default(),
                        "",
                        true,
                        Seed(1, 2),
                    );
                    for _ in 0..requests {
                        let (cost, now) = (1 + rng.below(2), worker.monotonic());
                        latest.set(latest.get().max(now));
                        if let LimitDecision::Admitted { taken, .. } =
                            take(&policy, &worker, 7, cost, now)
                        {
                            if rng.below(8) == 0 {
                                let _ = policy.refund(&worker, taken, now);
                            } else {
                                events.borrow_mut().push(Event {
                                    key: 7,
                                    at: now,
                                    cost,
                                });
                            }
                        }
                    }
                }) as Box<dyn FnOnce()>
            });
            let longest = Nanos((tokens * 1_000_000 / quota.limit).max(3));
            let step_back = [0, 0, 20][rng.below(3) as usize];
            let faults = Faults {
                pause,
                longest,
                lost_vm: 2,
                step_back,
            };
            run(&machine, &rng, faults, tasks.collect());
            check_bound(quota, &events.borrow());
            machine.advance(latest.get().since(machine.now()));
            // What is stranded in leases lapses: after the time of a whole bucket everything is
            // there again.
            machine.advance(Nanos(quota.burst * quota.period.0 / quota.limit + 1_000));
            let worker = Worker(Rc::clone(&machine));
            machine.cas_failures.set(0);
            let policy = RateLimit::new(
                limit(quota, 1_000),
                &ClientIp::default(),
                "",
                true,
                Seed(1, 2),
            );
            let now = worker.monotonic();
            let admitted = (0..quota.burst * 2)
                .filter(|_| {
                    matches!(
                        take(&policy, &worker, 7, 1, now),
                        LimitDecision::Admitted { .. }
                    )
                })
                .count();
            assert_eq!(admitted as u64, quota.burst, "{quota:?}");
        },
    );
}

#[test]
fn without_faults_not_a_token_is_lost() {
    for_each_seed("without_faults_not_a_token_is_lost", 20_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(rules_of(seed), seed);
        let quota = quota_of(&rng);
        let admitted = Rc::new(RefCell::new(0u64));
        let (workers, each) = (2 + rng.below(3), 1 + rng.below(4));
        let tasks = (0..workers).map(|_| {
            let (worker, admitted) = (Worker(Rc::clone(&machine)), Rc::clone(&admitted));
            let policy = RateLimit::new(
                limit(quota, 1_000),
                &ClientIp::default(),
                "",
                true,
                Seed(1, 2),
            );
            Box::new(move || {
                let now = worker.monotonic();
                for _ in 0..each {
                    match take(&policy, &worker, 7, 1, now) {
                        LimitDecision::Admitted { .. } => *admitted.borrow_mut() += 1,
                        LimitDecision::Refused { wait, .. } => assert!(wait.is_some()),
                        other => panic!("{other:?}"),
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        run(&machine, &rng, Faults::default(), tasks.collect());
        assert_eq!(
            *admitted.borrow(),
            quota.burst.min(workers * each),
            "{quota:?}"
        );
    });
}

#[test]
fn a_refund_restores_the_bucket() {
    for_each_seed("a_refund_restores_the_bucket", 5_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(rules_of(seed), seed);
        let quota = Quota {
            limit: 1,
            period: Nanos::from_secs(3_600),
            burst: 1 + rng.below(5),
        };
        let tasks = (0..2 + rng.below(4)).map(|_| {
            let worker = Worker(Rc::clone(&machine));
            let policy = RateLimit::new(
                limit(quota, 1_000),
                &ClientIp::default(),
                "",
                true,
                Seed(1, 2),
            );
            Box::new(move || {
                let now = worker.monotonic();
                if let LimitDecision::Admitted { taken, .. } = take(&policy, &worker, 7, 1, now) {
                    policy.refund(&worker, taken, now).unwrap();
                }
            }) as Box<dyn FnOnce()>
        });
        run(&machine, &rng, Faults::default(), tasks.collect());
        let worker = Worker(Rc::clone(&machine));
        let policy = RateLimit::new(
            limit(quota, 1_000),
            &ClientIp::default(),
            "",
            true,
            Seed(1, 2),
        );
        assert!(
            matches!(
                take(&policy, &worker, 7, quota.burst, worker.monotonic()),
                LimitDecision::Admitted { .. }
            ),
            "{quota:?}"
        );
    });
}

#[test]
fn contention_without_end_is_an_answer() {
    let machine = Machine::new(HostKind::Envoy, 1);
    machine.cas_failures.set(100);
    let worker = Worker(Rc::clone(&machine));
    let quota = Quota {
        limit: 5,
        period: Nanos::from_secs(1),
        burst: 5,
    };
    let policy = RateLimit::new(limit(quota, 10), &ClientIp::default(), "", true, Seed(1, 2));
    assert!(
        matches!(
            take(&policy, &worker, 7, 1, worker.monotonic()),
            LimitDecision::Admitted { .. }
        ),
        "the record does not exist yet"
    );
    assert_eq!(
        take(&policy, &worker, 7, 1, worker.monotonic()),
        LimitDecision::Contended
    );
    assert!(machine.calls() < 100, "bounded: {} calls", machine.calls());
}

#[test]
fn memory_is_bounded_by_max_keys_and_follows_use() {
    for (max_keys, keys) in [(1u32, 1_000u64), (10, 1_000), (1_000, 200_000)] {
        let machine = Machine::new(HostKind::Envoy, 1);
        let worker = Worker(Rc::clone(&machine));
        let quota = Quota {
            limit: 1,
            period: Nanos::from_secs(3_600),
            burst: 5,
        };
        let policy = RateLimit::new(
            limit(quota, max_keys),
            &ClientIp::default(),
            "",
            true,
            Seed(1, 2),
        );
        let now = worker.monotonic();
        take(&policy, &worker, 0, 1, now);
        assert!(
            machine.shared_bytes() < 64,
            "one key takes one slot: {}",
            machine.shared_bytes()
        );
        for key in 0..keys {
            take(&policy, &worker, key, 1, now);
        }
        // A slot is 16 bytes, a set of 16 has 8 + 15 bytes of header and key, and there is room for
        // half as many again.
        let bound = max_keys as usize * 3 / 2 * 16 + (max_keys as usize * 3 / 2 / 16 + 1) * 32;
        assert!(
            machine.shared_bytes() <= bound.max(64),
            "{max_keys}: {} > {bound}",
            machine.shared_bytes()
        );
    }
}

#[test]
fn below_max_keys_hardly_a_debtor_is_forgotten() {
    let machine = Machine::new(HostKind::Envoy, 1);
    let worker = Worker(Rc::clone(&machine));
    let quota = Quota {
        limit: 1,
        period: Nanos::from_secs(3_600),
        burst: 1,
    };
    let max_keys = 16_384;
    let policy = RateLimit::new(
        limit(quota, max_keys),
        &ClientIp::default(),
        "",
        true,
        Seed(1, 2),
    );
    let now = worker.monotonic();
    for key in 0..u64::from(max_keys) {
        take(&policy, &worker, key, 1, now);
    }
    let forgotten = (0..u64::from(max_keys))
        .filter(|key| {
            !matches!(
                take(&policy, &worker, *key, 1, now),
                LimitDecision::Refused { .. }
            )
        })
        .count();
    assert!(
        forgotten * 50 < max_keys as usize,
        "{forgotten} of {max_keys}"
    );
}

#[test]
fn a_key_that_owes_nothing_makes_room_before_one_that_owes() {
    let machine = Machine::new(HostKind::Envoy, 1);
    let worker = Worker(Rc::clone(&machine));
    let quota = Quota {
        limit: 1,
        period: Nanos::from_secs(10),
        burst: 1,
    };
    let policy = RateLimit::new(limit(quota, 2), &ClientIp::default(), "", true, Seed(1, 2));
    let at = |key: u64| take(&policy, &worker, key, 1, machine.now());
    let placed = |answer: LimitDecision| match answer {
        LimitDecision::Admitted { placement, .. } => placement,
        other => panic!("{other:?}"),
    };
    use haven::policy::rate_limit::table::Placement;
    assert_eq!(placed(at(1)), Placement::Added);
    machine.advance(Nanos::from_secs(11));
    assert_eq!(placed(at(2)), Placement::Added);
    assert_eq!(placed(at(3)), Placement::Reused, "key 1 owes nothing");
    assert!(
        matches!(at(2), LimitDecision::Refused { .. }),
        "key 2 still owes"
    );
    assert_eq!(
        placed(at(4)),
        Placement::Evicted,
        "now all owe, and the metric will show it"
    );
}

#[test]
fn a_broken_record_is_an_empty_one() {
    for bytes in [
        &b""[..],
        b"\0",
        &[0xff; 40],
        &[1; 9],
        &[1, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let machine = Machine::new(HostKind::Envoy, 1);
        let worker = Worker(Rc::clone(&machine));
        let quota = Quota {
            limit: 1,
            period: Nanos::from_secs(10),
            burst: 1,
        };
        let policy = RateLimit::new(limit(quota, 2), &ClientIp::default(), "", true, Seed(1, 2));
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
