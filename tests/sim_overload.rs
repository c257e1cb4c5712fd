//! The adaptive concurrency limit against simulated upstreams that queue: what is answered in time,
//! and what is shed.
//!
//! A discrete-event simulation in simulated time: open-loop clients (Poisson arrivals), workers
//! that share two gauges as the proxy's workers do, endpoints that serve a few at a time and
//! queue the rest first come first served. The clients give up, as far as counting goes, at the
//! deadline; the upstream does not know and serves on.

#![cfg(not(target_arch = "wasm32"))]

use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::document::Criticality;
use haven::policy::concurrency::adaptive::{AdaptiveSettings, Observations};
use haven::policy::concurrency::{Answer, has_room};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const MS: u64 = 1_000_000;
const DEADLINE: u64 = 500 * MS;

/// The one configuration of all scenarios: the defaults, a deadline of 500 ms.
const SETTINGS: AdaptiveSettings = AdaptiveSettings {
    min: 3,
    max: 1000,
    initial: 20,
    deadline: Nanos(DEADLINE),
    share: 100,
};

/// What an endpoint does, from a moment on.
#[derive(Clone, Copy)]
struct Service {
    /// Mean service time.
    time: u64,
    /// Exponential instead of fixed.
    random: bool,
    /// Answers with an error, at once.
    broken: bool,
}

const FAST: Service = Service {
    time: 40 * MS,
    random: false,
    broken: false,
};
const SLOW: Service = Service {
    time: 200 * MS,
    random: false,
    broken: false,
};

/// Arrivals per second of each criticality, from a moment on.
type Load = [(Criticality, f64); 4];

fn load(total: f64, sheddable: f64) -> Load {
    use Criticality::{Critical, CriticalPlus, Sheddable, SheddablePlus};
    [
        (Sheddable, total * sheddable),
        (SheddablePlus, 0.0),
        (Critical, total * (1.0 - sheddable)),
        (CriticalPlus, 0.0),
    ]
}

struct World {
    workers: usize,
    endpoints: usize,
    slots: usize,
    /// Moments and what changes then, in order.
    loads: Vec<(u64, Load)>,
    services: Vec<(u64, Service)>,
    /// The proxy ends requests at the deadline (its timeout): the permit is given back then.
    cuts: bool,
    limited: bool,
    until: u64,
    seed: u64,
}

impl Default for World {
    fn default() -> Self {
        Self {
            workers: 4,
            endpoints: 3,
            slots: 8,
            loads: Vec::new(),
            services: vec![(0, FAST)],
            cuts: true,
            limited: true,
            until: 20_000 * MS,
            seed: 1,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Arrival(usize),
    /// An endpoint has done a request.
    Done {
        endpoint: usize,
        request: usize,
    },
    /// The proxy's timeout.
    Cut(usize),
}

struct Request {
    at: u64,
    worker: usize,
    admitted_at: u64,
    endpoint: usize,
    /// The proxy still waits for it.
    open: bool,
    failed: bool,
}

/// What came of the requests that arrived in a span of time, by criticality.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    offered: [u64; 4],
    refused: [u64; 4],
    in_time: [u64; 4],
}

impl Outcome {
    fn good(&self) -> f64 {
        self.in_time.iter().sum::<u64>() as f64
    }
    fn shed(&self) -> u64 {
        self.refused.iter().sum()
    }
    fn critical_share(&self) -> f64 {
        (self.in_time[2] + self.in_time[3]) as f64 / self.good()
    }
}

struct Run {
    /// By arrival, criticality, refused, time of the good answer.
    log: Vec<(u64, Criticality, bool, Option<u64>)>,
    limits: Vec<(u64, u64, u64)>,
}

impl Run {
    fn of(&self, from: u64, to: u64) -> Outcome {
        let mut outcome = Outcome::default();
        for (at, criticality, refused, answered) in &self.log {
            let k = *criticality as usize;
            if (from * MS..to * MS).contains(at) {
                outcome.offered[k] += 1;
                outcome.refused[k] += u64::from(*refused);
            }
            // Work done in the span counts, whenever it was asked for.
            if answered.is_some_and(|t| (from * MS..to * MS).contains(&t) && t - at <= DEADLINE) {
                outcome.in_time[k] += 1;
            }
        }
        outcome
    }

    /// Limit and in flight, thinned out.
    fn trace(&self, every: u64) -> String {
        let mut next = 0;
        let mut text = String::new();
        for (at, limit, in_flight) in &self.limits {
            if *at >= next {
                text += &format!("{}:{}/{} ", at / MS, in_flight, limit);
                next = at + every * MS;
            }
        }
        text
    }
}

fn current<T: Copy>(list: &[(u64, T)], now: u64) -> T {
    list.iter().rev().find(|(at, _)| *at <= now).unwrap().1
}

fn exponential(rng: &Rng, mean: f64) -> u64 {
    let uniform = (rng.below(1 << 53) + 1) as f64 / (1_u64 << 53) as f64;
    (-uniform.ln() * mean) as u64
}

fn run(world: &World) -> Run {
    let rng = Rng::new(world.seed);
    // A stream of their own, so that runs with and without a limit meet the same arrivals.
    let arrivals: Vec<Rng> = (0..4).map(|k| Rng::new(world.seed * 4 + k + 99)).collect();
    let mut events: BinaryHeap<Reverse<(u64, u64, Event)>> = BinaryHeap::new();
    let mut number = 0u64;
    let mut push = |events: &mut BinaryHeap<_>, at: u64, event: Event| {
        number += 1;
        events.push(Reverse((at, number, event)));
    };
    let mut requests: Vec<Request> = Vec::new();
    let mut log = Vec::new();
    let mut limits = Vec::new();
    let mut seen = vec![Observations::default(); world.workers];
    let (mut in_flight, mut gauge) = (0u64, 0u64);
    let mut busy = vec![0usize; world.endpoints];
    let mut queues: Vec<VecDeque<usize>> = vec![VecDeque::new(); world.endpoints];
    let mut at_endpoint = vec![0u64; world.endpoints];
    for k in 0..4 {
        push(&mut events, 0, Event::Arrival(k));
    }
    let serve_time = |now: u64, rng: &Rng| {
        let service = current(&world.services, now);
        (
            if service.random {
                exponential(rng, service.time as f64)
            } else {
                service.time
            },
            service.broken,
        )
    };
    while let Some(Reverse((now, _, event))) = events.pop() {
        if now >= world.until {
            break;
        }
        match event {
            Event::Arrival(k) => {
                let (criticality, rate) = current(&world.loads, now)[k];
                if rate <= 0.0 {
                    push(&mut events, now + 10 * MS, Event::Arrival(k));
                    continue;
                }
                push(
                    &mut events,
                    now + exponential(&arrivals[k], 1e9 / rate),
                    Event::Arrival(k),
                );
                if now == 0 {
                    continue;
                }
                let id = requests.len();
                let worker = rng.below(world.workers as u64) as usize;
                in_flight += 1;
                let limit = SETTINGS.limit(gauge);
                let admitted = !world.limited || has_room(in_flight - 1, limit, criticality);
                seen[worker].arrived(
                    &SETTINGS,
                    Moment(now + 1),
                    in_flight,
                    limit,
                    if admitted { Answer::Room } else { Answer::Full },
                );
                if let Some(new) = seen[worker].next_limit(&SETTINGS, Moment(now + 1), limit) {
                    gauge = new;
                }
                limits.push((now, limit, in_flight));
                log.push((now, criticality, !admitted, None));
                let endpoint = (0..world.endpoints)
                    .min_by_key(|e| (at_endpoint[*e], rng.bits()))
                    .unwrap();
                requests.push(Request {
                    at: now,
                    worker,
                    admitted_at: in_flight,
                    endpoint,
                    open: admitted,
                    failed: false,
                });
                if !admitted {
                    in_flight -= 1;
                    continue;
                }
                at_endpoint[endpoint] += 1;
                if world.cuts {
                    push(&mut events, now + DEADLINE, Event::Cut(id));
                }
                if current(&world.services, now).broken {
                    requests[id].failed = true;
                    push(
                        &mut events,
                        now + MS,
                        Event::Done {
                            endpoint: usize::MAX,
                            request: id,
                        },
                    );
                } else if busy[endpoint] < world.slots {
                    busy[endpoint] += 1;
                    push(
                        &mut events,
                        now + serve_time(now, &rng).0,
                        Event::Done {
                            endpoint,
                            request: id,
                        },
                    );
                } else {
                    queues[endpoint].push_back(id);
                }
            }
            Event::Done {
                endpoint,
                request: id,
            } => {
                if let Some(queue) = queues.get_mut(endpoint) {
                    match queue.pop_front() {
                        Some(next) => {
                            push(
                                &mut events,
                                now + serve_time(now, &rng).0,
                                Event::Done {
                                    endpoint,
                                    request: next,
                                },
                            );
                        }
                        None => busy[endpoint] -= 1,
                    }
                }
                let request = &mut requests[id];
                if std::mem::take(&mut request.open) {
                    in_flight -= 1;
                    at_endpoint[request.endpoint] -= 1;
                    if !request.failed {
                        log[id].3 = Some(now);
                        end(&mut seen, request, now, in_flight, &mut gauge);
                    }
                }
            }
            Event::Cut(id) => {
                let request = &mut requests[id];
                if std::mem::take(&mut request.open) {
                    in_flight -= 1;
                    at_endpoint[request.endpoint] -= 1;
                    end(&mut seen, request, now, in_flight, &mut gauge);
                }
            }
        }
    }
    Run { log, limits }
}

fn end(seen: &mut [Observations], request: &Request, now: u64, in_flight: u64, gauge: &mut u64) {
    let limit = SETTINGS.limit(*gauge);
    let seen = &mut seen[request.worker];
    let elapsed = Nanos(now - request.at);
    seen.ended(
        &SETTINGS,
        Moment(now + 1),
        request.admitted_at,
        elapsed,
        in_flight,
        limit,
    );
    if let Some(new) = seen.next_limit(&SETTINGS, Moment(now + 1), limit) {
        *gauge = new;
    }
}

/// What three endpoints of 8 slots at 40 ms do in a span of milliseconds.
fn capacity(from: u64, to: u64) -> f64 {
    0.6 * (to - from) as f64
}

/// Each scenario for every number of workers, with and without a proxy that cuts requests off at
/// the deadline, and with several seeds.
fn for_all(mut check: impl FnMut(World)) {
    for workers in [1, 4, 16] {
        for cuts in [true, false] {
            for seed in 1..=3 {
                check(World {
                    workers,
                    cuts,
                    seed,
                    ..World::default()
                });
            }
        }
    }
}

#[test]
fn under_three_times_the_load_as_much_as_ever_is_answered_in_time_and_it_is_the_critical() {
    for_all(|world| {
        let world = World {
            loads: vec![(0, load(1_800.0, 0.5))],
            ..world
        };
        let run = run(&world);
        let all = run.of(0, 20_000);
        assert!(
            all.good() >= 0.95 * capacity(0, 20_000),
            "from a cold start on: {all:?} {}",
            run.trace(500)
        );
        assert!(all.critical_share() >= 0.9, "{all:?}");
        let steady = run.of(4_000, 20_000);
        assert!(
            steady.good() >= 0.99 * capacity(4_000, 20_000),
            "no idle capacity: {steady:?}"
        );
        assert!(steady.critical_share() >= 0.99, "{steady:?}");
        // Without a limit next to nothing is in time: this was an overload.
        let plain = self::run(&World {
            limited: false,
            ..world
        })
        .of(4_000, 20_000);
        assert!(plain.good() < 0.1 * capacity(4_000, 20_000), "{plain:?}");
    });
}

#[test]
fn endpoints_that_turn_five_times_slower_and_still_fit_shed_nothing() {
    for_all(|world| {
        for (before, after) in [(100.0, 100.0), (50.0, 105.0), (20.0, 20.0)] {
            let world = World {
                loads: vec![(0, load(before, 0.5)), (5_000 * MS, load(after, 0.5))],
                services: vec![(0, FAST), (5_000 * MS, SLOW)],
                ..world
            };
            let run = run(&world);
            let (ours, plain) = (
                run.of(0, 20_000),
                self::run(&World {
                    limited: false,
                    ..world
                })
                .of(0, 20_000),
            );
            assert_eq!(
                (ours.shed(), ours.in_time),
                (0, plain.in_time),
                "{before} -> {after}: {}",
                run.trace(500)
            );
        }
    });
}

#[test]
fn service_times_of_any_length_are_as_good() {
    let fast = Service {
        random: true,
        ..FAST
    };
    for_all(|world| {
        let world = World {
            loads: vec![(0, load(1_800.0, 0.5))],
            services: vec![(0, fast)],
            ..world
        };
        let run = run(&world);
        let steady = run.of(2_000, 20_000);
        assert!(
            steady.good() >= 0.95 * capacity(2_000, 20_000),
            "{steady:?} {}",
            run.trace(500)
        );
        assert!(steady.critical_share() >= 0.95, "{steady:?}");
        // Close to capacity, where a queue may well grow beyond the deadline, it answers as many as
        // plain does, or more.
        let world = World {
            loads: vec![(0, load(108.0, 0.5))],
            services: vec![
                (0, fast),
                (
                    5_000 * MS,
                    Service {
                        random: true,
                        ..SLOW
                    },
                ),
            ],
            ..world
        };
        let (ours, plain) = (
            self::run(&world).of(0, 20_000),
            self::run(&World {
                limited: false,
                ..world
            })
            .of(0, 20_000),
        );
        assert!(ours.good() >= 0.97 * plain.good(), "{ours:?} {plain:?}");
        assert!(ours.shed() <= 100, "5 %: {ours:?}");
    });
}

#[test]
fn a_step_in_the_load_is_met() {
    for_all(|world| {
        for before in [10.0, 100.0, 500.0] {
            let loads = vec![
                (0, load(before, 0.5)),
                (5_000 * MS, load(1_800.0, 0.5)),
                (10_000 * MS, load(before, 0.5)),
            ];
            let run = run(&World {
                loads,
                ..world_of(&world)
            });
            let first = run.of(5_000, 6_500);
            assert!(
                first.good() >= 0.75 * capacity(5_000, 6_500),
                "{before}: {first:?} {}",
                run.trace(100)
            );
            let then = run.of(6_500, 10_000);
            assert!(
                then.good() >= 0.99 * capacity(6_500, 10_000),
                "{before}: {then:?} {}",
                run.trace(100)
            );
            assert!(then.critical_share() >= 0.98, "{before}: {then:?}");
            let after = run.of(11_000, 20_000);
            assert_eq!(
                after.shed(),
                0,
                "and what fits again passes: {before}: {}",
                run.trace(500)
            );
        }
    });
}

#[test]
fn it_recovers_from_an_outage() {
    for_all(|world| {
        // Errors at once: a breaker's matter. The limit stays.
        let broken = Service {
            broken: true,
            ..FAST
        };
        let run_ = run(&World {
            loads: vec![(0, load(400.0, 0.5))],
            services: vec![(0, FAST), (5_000 * MS, broken), (8_000 * MS, FAST)],
            ..world_of(&world)
        });
        assert_eq!(run_.of(3_000, 20_000).shed(), 0, "{}", run_.trace(500));
        // Hung for 3 s: the endpoints' own queue takes as long again.
        let hung = Service {
            time: 1_000 * MS,
            ..FAST
        };
        let run_ = run(&World {
            loads: vec![(0, load(400.0, 0.5))],
            services: vec![(0, FAST), (5_000 * MS, hung), (8_000 * MS, FAST)],
            ..world_of(&world)
        });
        let after = run_.of(10_500, 20_000);
        assert!(
            after.good() >= 0.98 * 0.4 * 9_500.0,
            "{after:?} {}",
            run_.trace(500)
        );
        assert!(after.shed() <= 20, "{after:?} {}", run_.trace(500));
    });
}

#[test]
fn all_four_criticalities_go_in_their_order() {
    use Criticality::{Critical, CriticalPlus, Sheddable, SheddablePlus};
    // Each could fill half of the capacity: two of the four fit, nearly.
    let loads = vec![(
        0,
        [
            (Sheddable, 300.0),
            (SheddablePlus, 300.0),
            (Critical, 300.0),
            (CriticalPlus, 300.0),
        ],
    )];
    for_all(|world| {
        let steady = run(&World {
            loads: loads.clone(),
            ..world
        })
        .of(4_000, 20_000);
        let share = |k: usize| steady.in_time[k] as f64 / steady.offered[k] as f64;
        assert!(share(3) > 0.98 && share(2) > 0.85, "{steady:?}");
        assert!(share(0) < 0.05 && share(1) < 0.15, "{steady:?}");
        assert!(
            steady.good() >= 0.99 * capacity(4_000, 20_000),
            "no idle capacity: {steady:?}"
        );
    });
}

fn world_of(world: &World) -> World {
    World {
        workers: world.workers,
        cuts: world.cuts,
        seed: world.seed,
        ..World::default()
    }
}
