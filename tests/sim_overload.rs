//! The adaptive concurrency limit against simulated upstreams that queue: what is answered in time, and what is shed.
//!
//! A discrete-event simulation in simulated time: open-loop clients (Poisson arrivals), workers that share two gauges as the proxy's workers do,
//! endpoints that serve so many at a time and queue the rest first come first served. The clients give up, as far as counting goes, at the deadline; the
//! upstream does not know and serves on.

#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "tests"
)]

use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::config::Criticality;
use haven::policy::concurrency::adaptive::{Seen, Settings};
use haven::policy::concurrency::has_room;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const MS: u64 = 1_000_000;
const DEADLINE: u64 = 500 * MS;

/// The one configuration of all scenarios: the contract's defaults, a deadline of 500 ms.
const SETTINGS: Settings = Settings { min: 3, max: 1000, initial: 20, deadline: Nanos(DEADLINE) };

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

const FAST: Service = Service { time: 40 * MS, random: false, broken: false };
const SLOW: Service = Service { time: 200 * MS, random: false, broken: false };

/// Arrivals per second of each criticality, from a moment on.
type Load = [(Criticality, f64); 4];

fn load(total: f64, sheddable: f64) -> Load {
    use Criticality::{Critical, CriticalPlus, Sheddable, SheddablePlus};
    [(Sheddable, total * sheddable), (SheddablePlus, 0.0), (Critical, total * (1.0 - sheddable)), (CriticalPlus, 0.0)]
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
    Done { endpoint: usize, request: usize },
    /// The proxy's timeout.
    Cut(usize),
}

struct Request {
    at: u64,
    worker: usize,
    criticality: Criticality,
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
    let mut seen = vec![Seen::default(); world.workers];
    let (mut in_flight, mut gauge) = (0u64, 0u64);
    let mut busy = vec![0usize; world.endpoints];
    let mut queues: Vec<VecDeque<usize>> = vec![VecDeque::new(); world.endpoints];
    let mut at_endpoint = vec![0u64; world.endpoints];
    for k in 0..4 {
        push(&mut events, 0, Event::Arrival(k));
    }
    let serve_time = |now: u64, rng: &Rng| {
        let service = current(&world.services, now);
        (if service.random { exponential(rng, service.time as f64) } else { service.time }, service.broken)
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
                push(&mut events, now + exponential(&arrivals[k], 1e9 / rate), Event::Arrival(k));
                if now == 0 {
                    continue;
                }
                let id = requests.len();
                let worker = rng.below(world.workers as u64) as usize;
                in_flight += 1;
                let limit = SETTINGS.limit(gauge);
                let admitted = !world.limited || has_room(in_flight - 1, limit, criticality);
                seen[worker].came(&SETTINGS, Nanos(now + 1), in_flight, limit, admitted);
                if let Some(new) = seen[worker].turn(&SETTINGS, Nanos(now + 1), limit) {
                    gauge = new;
                }
                limits.push((now, limit, in_flight));
                log.push((now, criticality, !admitted, None));
                let endpoint = (0..world.endpoints).min_by_key(|e| (at_endpoint[*e], rng.bits())).unwrap();
                requests.push(Request {
                    at: now,
                    worker,
                    criticality,
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
                    push(&mut events, now + MS, Event::Done { endpoint: usize::MAX, request: id });
                } else if busy[endpoint] < world.slots {
                    busy[endpoint] += 1;
                    push(&mut events, now + serve_time(now, &rng).0, Event::Done { endpoint, request: id });
                } else {
                    queues[endpoint].push_back(id);
                }
            }
            Event::Done { endpoint, request: id } => {
                if let Some(queue) = queues.get_mut(endpoint) {
                    match queue.pop_front() {
                        Some(next) => {
                            push(&mut events, now + serve_time(now, &rng).0, Event::Done { endpoint, request: next });
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
    let _ = requests.iter().map(|r| r.criticality).max();
    Run { log, limits }
}

fn end(seen: &mut [Seen], request: &Request, now: u64, in_flight: u64, gauge: &mut u64) {
    let limit = SETTINGS.limit(*gauge);
    let seen = &mut seen[request.worker];
    let elapsed = Nanos(now - request.at);
    seen.ended(&SETTINGS, Nanos(now + 1), request.admitted_at, elapsed, in_flight, limit);
    if let Some(new) = seen.turn(&SETTINGS, Nanos(now + 1), limit) {
        *gauge = new;
    }
}

#[test]
fn explore() {
    let world = World { loads: vec![(0, load(500.0, 0.5)), (5_000 * MS, load(108.0, 0.5))], services: vec![(0, FAST), (5_000 * MS, SLOW)], until: 9_000 * MS, ..World::default() };
    let r = run(&world);
    let shed: Vec<u64> = r.log.iter().filter(|l| l.2).map(|l| l.0 / MS).collect();
    println!("shed {shed:?}");
    let t: Vec<_> = r.limits.iter().filter(|l| l.0 / MS > 4950 && l.0 / MS < 7000).map(|l| (l.0/MS, l.1, l.2)).step_by(4).collect();
    println!("trace {t:?}");
}

#[test]
fn explore2() {
    for workers in [1, 4, 16] {
        for random in [false, true] {
            for cuts in [true, false] {
                let fast = Service { random, ..FAST };
                let slow = Service { random, ..SLOW };
                println!("== workers {workers} random {random} cuts {cuts}");
                let world = World { workers, cuts, loads: vec![(0, load(1800.0, 0.5))], services: vec![(0, fast)], ..World::default() };
                let r = run(&world);
                for (from, to) in [(0, 2_000), (2_000, 4_000), (4_000, 20_000)] {
                    let o = r.of(from, to);
                    println!("a {from}-{to}: good {:.3} of capacity, critical {:.3}", o.good() / (0.6 * (to - from) as f64), o.critical_share());
                }
                println!("  {}", r.trace(1500));
                for (before, after) in [(100.0, 100.0), (108.0, 108.0), (500.0, 108.0), (50.0, 114.0)] {
                    let world = World {
                        workers, cuts, loads: vec![(0, load(before, 0.5)), (5_000 * MS, load(after, 0.5))], services: vec![(0, fast), (5_000 * MS, slow)], ..World::default()
                    };
                    let r = run(&world);
                    let plain = run(&World { limited: false, ..world });
                    let (o, p) = (r.of(0, 20_000), plain.of(0, 20_000));
                    println!("b {before}->{after}: shed {:?} of {:?}; in time {} plain {}", o.refused, o.offered, o.good(), p.good());
                }
                let world = World { workers, cuts, loads: vec![(0, load(100.0, 0.5)), (5_000 * MS, load(1800.0, 0.5)), (10_000 * MS, load(500.0, 0.5)), (13_000 * MS, load(1800.0, 0.5))], services: vec![(0, fast)], ..World::default() };
                let r = run(&world);
                for (from, to) in [(5_000, 6_000), (6_000, 10_000), (10_500, 13_000), (13_000, 14_000), (14_000, 20_000)] {
                    let o = r.of(from, to);
                    println!("steps {from}-{to}: good {:.3} of capacity, critical {:.3} shed {}", o.good() / (0.6 * (to - from) as f64), o.critical_share(), o.shed());
                }
                let world = World { workers, cuts, loads: vec![(0, load(400.0, 0.5))], services: vec![(0, fast), (5_000*MS, Service { time: 5_000 * MS, ..FAST}), (8_000*MS, fast)], ..World::default() };
                let r = run(&world);
                for (from, to) in [(5_000, 8_000), (8_000, 13_000), (13_000, 14_000), (14_000, 20_000)] {
                    let o = r.of(from, to);
                    println!("outage {from}-{to}: good {:.3} of offered, shed {}", o.good() / (0.4 * (to - from) as f64), o.shed());
                }
                println!("  {}", r.trace(1000));
            }
        }
    }
}
