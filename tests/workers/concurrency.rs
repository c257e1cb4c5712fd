//! Requests in flight over all workers: never more than the limit, and none left behind.

use super::hosts;
use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::Platform;
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const LIMIT: u64 = 3;

const CONFIG: &str = r#"{
    "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 3}, "a": {"min_limit": 2, "max_limit": 6, "initial_limit": 4}},
    "circuit_breakers": {"b": {"minimum_calls": 4, "open_duration": "500ms", "half_open_calls": 2}},
    "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}], "concurrency_limit": "a"}},
    "routes": [
        {"name": "plus", "match": {"path": "/plus"}, "upstream": "u", "concurrency_limit": "c", "criticality": "critical_plus"},
        {"name": "other", "upstream": "u", "circuit_breaker": "b", "criticality": "sheddable"}]
}"#;

fn engine(worker: &Worker) -> Rc<Engine> {
    hosts::engine(worker, CONFIG)
}

fn in_flight(machine: &Machine) -> u64 {
    machine
        .metrics_of("haven_concurrency_in_flight")
        .iter()
        .fold(0, |sum, (_, n)| sum.wrapping_add(*n))
}

/// A few requests of a worker, that overlap, each with a fate of its own.
fn work(worker: &Worker, rng: &Rng, admitted: &Cell<u64>) {
    let mut engine = engine(worker);
    let mut open: Vec<(Exchange, SimStream, bool)> = Vec::new();
    for _ in 0..2 + rng.below(12) {
        if open.is_empty() || rng.below(2) == 0 {
            let plus = rng.below(2) == 0;
            let stream =
                SimStream::request("GET", if plus { "/plus" } else { "/" }, &[]).on(worker.kind());
            let mut exchange = Exchange::new(Rc::clone(&engine));
            if exchange.on_request(worker, &stream) == Action::Continue {
                if plus {
                    admitted.set(admitted.get() + 1);
                    assert!(admitted.get() <= LIMIT, "{} are in flight", admitted.get());
                }
                open.push((exchange, stream, plus));
            } else {
                exchange.on_response(worker, &stream);
                exchange.on_end(worker);
            }
        } else {
            let (mut exchange, stream, plus) =
                open.swap_remove(rng.below(open.len() as u64) as usize);
            match rng.below(5) {
                0 => {}
                1 => stream.fail(504, "response_timeout", None, 1),
                2 => stream.answer(500, Some("10.0.0.1:80"), &[]),
                _ => stream.answer(200, Some("10.0.0.1:80"), &[]),
            }
            if stream.response_header(":status").is_some() {
                exchange.on_response(worker, &stream);
            }
            // From here on its place may be another's.
            admitted.set(admitted.get() - u64::from(plus));
            exchange.on_end(worker);
            exchange.on_end(worker);
        }
        match rng.below(12) {
            0 => engine.tick(worker),
            1 => engine = self::engine(worker),
            _ => {}
        }
    }
    for (mut exchange, _, plus) in open {
        admitted.set(admitted.get() - u64::from(plus));
        exchange.on_end(worker);
    }
}

#[test]
fn never_more_than_the_limit_and_none_left_behind() {
    for_each_seed(
        "never_more_than_the_limit_and_none_left_behind",
        5_000,
        |seed| {
            let rng = Rc::new(Rng::new(seed));
            let machine = Machine::new(
                if seed % 2 == 0 {
                    HostKind::Envoy
                } else {
                    HostKind::Nginx
                },
                seed,
            );
            machine.cas_failures.set([0, 10][rng.below(2) as usize]);
            let admitted = Rc::new(Cell::new(0));
            let tasks = (0..2 + rng.below(7)).map(|_| {
                let (worker, rng, admitted) = (
                    Worker(Rc::clone(&machine)),
                    Rc::clone(&rng),
                    Rc::clone(&admitted),
                );
                Box::new(move || work(&worker, &rng, &admitted)) as Box<dyn FnOnce()>
            });
            let faults = Faults {
                pause: 20,
                longest: Nanos::from_millis(300),
                lost_vm: 0,
                step_back: [0, 5][rng.below(2) as usize],
            };
            run(&machine, &rng, faults, tasks.collect());
            assert_eq!(
                in_flight(&machine),
                0,
                "{:?}",
                machine.metrics_of("haven_concurrency")
            );
        },
    );
}

#[test]
fn what_lost_workers_held_comes_back() {
    for_each_seed("what_lost_workers_held_comes_back", 1_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(
            if seed % 2 == 0 {
                HostKind::Envoy
            } else {
                HostKind::Nginx
            },
            seed,
        );
        let tasks = (0..2 + rng.below(7)).map(|_| {
            let (worker, rng) = (Worker(Rc::clone(&machine)), Rc::clone(&rng));
            // Each has a count of its own: what a lost one held, its limit still counts.
            Box::new(move || work(&worker, &rng, &Cell::new(0))) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 20,
            longest: Nanos::from_millis(300),
            lost_vm: 5,
            step_back: 0,
        };
        run(&machine, &rng, faults, tasks.collect());
        // Those that are left tick on, with a request in flight: the gauge comes to what is really
        // there.
        let worker = Worker(Rc::clone(&machine));
        let engines = [engine(&worker), engine(&worker)];
        let mut held = None;
        for second in 0..40 {
            machine.advance(Nanos::from_secs(1));
            engines.iter().for_each(|engine| engine.tick(&worker));
            if second == 5 {
                let mut exchange = Exchange::new(Rc::clone(&engines[0]));
                let passes = exchange.on_request(&worker, &SimStream::request("GET", "/plus", &[]))
                    == Action::Continue;
                held = passes.then_some(exchange);
            }
        }
        let expected = if held.is_some() { 2 } else { 0 };
        assert_eq!(
            in_flight(&machine),
            expected,
            "{:?}",
            machine.metrics_of("haven_concurrency")
        );
        held.iter_mut()
            .for_each(|exchange| exchange.on_end(&worker));
        assert_eq!(in_flight(&machine), 0);
        let stream = SimStream::request("GET", "/plus", &[]).on(worker.kind());
        assert_eq!(
            Exchange::new(Rc::clone(&engines[1])).on_request(&worker, &stream),
            Action::Continue
        );
    });
}

/// Traffic without any fault, over some workers that tick, and reload.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    workers: u64,
    /// Requests a second at the beginning, and how many more with every second.
    rate: u64,
    growth: u64,
    seconds: u64,
}

const STEADY: &str = r#"{
    "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 3}, "wide": {"algorithm": "fixed", "limit": 10000}},
    "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}], "concurrency_limit": "wide"}},
    "routes": [
        {"name": "three", "match": {"path": "/three"}, "concurrency_limit": "c", "criticality": "critical_plus"},
        {"name": "other", "upstream": "u"}]
}"#;

impl Traffic {
    /// Runs it; at every step each gauge is what really is in flight, but for what workers take
    /// ahead at a limit that is far, and for one request of each at an endpoint.
    fn run(self, seed: u64) {
        let rng = Rng::new(seed);
        let machine = Machine::new(HostKind::Envoy, seed);
        let worker = Worker(Rc::clone(&machine));
        let engine = || hosts::engine(&worker, STEADY);
        let start = machine.now();
        // One more: the main thread's, which ticks and sees no request.
        let mut vms: Vec<_> = (0..=self.workers).map(|_| engine()).collect();
        let mut ticks: Vec<_> = vms
            .iter()
            .map(|_| start.plus(Nanos(rng.below(1_000_000_000))))
            .collect();
        let mut open: Vec<(Moment, bool, Exchange)> = Vec::new();
        let (mut arrival, mut reload) = (start, start.plus(Nanos::from_secs(7)));
        let until = start.plus(Nanos::from_secs(self.seconds));
        loop {
            let end = open.iter().map(|(end, ..)| *end).min();
            let tick = *ticks.iter().min().unwrap();
            let next = arrival.min(tick).min(reload).min(end.unwrap_or(arrival));
            if next >= until {
                return;
            }
            machine.advance(next.since(machine.now()));
            if Some(next) == end {
                let at = open.iter().position(|(end, ..)| *end == next).unwrap();
                open.swap_remove(at).2.on_end(&worker);
            } else if next == tick {
                for (vm, tick) in vms
                    .iter()
                    .zip(&mut ticks)
                    .filter(|(_, tick)| **tick == next)
                {
                    vm.tick(&worker);
                    *tick = tick.plus(Nanos::from_secs(1));
                }
            } else if next == reload {
                // What is under way ends under the old configuration, which goes on to tick.
                if vms.len() < 40 {
                    (0..=self.workers).for_each(|at| {
                        let old = std::mem::replace(&mut vms[at as usize], engine());
                        ticks.push(ticks[at as usize]);
                        vms.push(old);
                    });
                }
                reload = reload.plus(Nanos::from_secs(7));
            } else {
                let three = rng.below(2) == 0;
                let stream = SimStream::request("GET", if three { "/three" } else { "/" }, &[])
                    .on(worker.kind());
                let mut exchange = Exchange::new(Rc::clone(&vms[rng.below(self.workers) as usize]));
                if exchange.on_request(&worker, &stream) == Action::Continue {
                    open.push((next.plus(Nanos(1 + rng.below(30_000_000))), three, exchange));
                }
                let rate = self.rate + self.growth * next.since(start).as_millis() / 1_000;
                arrival = next.plus(Nanos(1 + rng.below(2_000_000_000 / rate)));
            }
            let three = open.iter().filter(|(_, three, _)| *three).count();
            let other = open.len() - three;
            assert!(three <= 3, "{three} are in flight, {self:?}");
            let [c, wide, endpoint] = [
                "haven_concurrency_in_flight;policy=c",
                "haven_concurrency_in_flight;policy=wide",
                "haven_endpoint_in_flight",
            ]
            .map(|name| {
                machine
                    .metrics_of(name)
                    .iter()
                    .map(|(_, n)| n.cast_signed())
                    .sum::<i64>()
            });
            let (three, other, vms) = (three as i64, other as i64, vms.len() as i64);
            let most = other / 8 + vms;
            assert!(
                c == three
                    && (other..=other + 8 * vms).contains(&wide)
                    && (0.max(other - most)..=other + most).contains(&endpoint),
                "{:?}, in flight {three} and {other}: {self:?} after {:?}",
                [c, wide, endpoint],
                next.since(start)
            );
        }
    }
}

#[test]
fn without_a_fault_no_gauge_is_ever_wrong() {
    for_each_seed("without_a_fault_no_gauge_is_ever_wrong", 4, |seed| {
        for workers in [1, 2, 4, 8] {
            let quiet = Traffic {
                workers,
                rate: 30,
                growth: 0,
                seconds: 120,
            };
            quiet.run(seed);
            Traffic {
                rate: 1_500,
                seconds: 25,
                ..quiet
            }
            .run(seed);
            // It grows without a pause: each look finds more than was reported.
            Traffic {
                growth: 60,
                seconds: 40,
                ..quiet
            }
            .run(seed);
        }
    });
}

/// What of a limit a worker may keep without a request.
fn step(limit: u64) -> u64 {
    (limit / 128).min(8)
}

/// What all workers have in flight, as plain numbers.
#[derive(Default)]
struct Tally {
    in_flight: Cell<u64>,
    /// The most in flight since the worker at this place has asked.
    most: RefCell<Vec<u64>>,
    engines: Cell<u64>,
}

impl Tally {
    fn add(&self, by: i64) {
        let now = self.in_flight.get().strict_add_signed(by);
        self.in_flight.set(now);
        let mut most = self.most.borrow_mut();
        most.iter_mut().for_each(|most| *most = now.max(*most));
    }
}

/// A worker whose requests pile up and go, at a limit where places are taken ahead.
fn pile(worker: &Worker, rng: &Rng, config: &str, limit: u64, tally: &Tally) {
    let new = || {
        tally.engines.set(tally.engines.get() + 1);
        hosts::engine(worker, config)
    };
    let own = tally.most.borrow().len();
    tally.most.borrow_mut().push(0);
    let mut all = vec![new()];
    let mut open: Vec<Exchange> = Vec::new();
    for _ in 0..1 + rng.below(6) {
        let target = rng.below(limit);
        while (open.len() as u64) < target {
            let plus = rng.below(2) == 0;
            let stream =
                SimStream::request("GET", if plus { "/plus" } else { "/" }, &[]).on(worker.kind());
            let mut exchange = Exchange::new(Rc::clone(all.last().unwrap()));
            tally.most.borrow_mut()[own] = tally.in_flight.get();
            if exchange.on_request(worker, &stream) == Action::Continue {
                tally.add(1);
                let count = tally.in_flight.get();
                assert!(count <= limit, "{count} of {limit}");
                open.push(exchange);
                continue;
            }
            // Who is refused has found each place taken, kept ready, or asked for by others.
            let most = tally.most.borrow()[own];
            let share = if plus { limit } else { limit * 95 / 100 };
            let kept = tally.engines.get() * (step(limit) + 1);
            assert!(most + kept >= share, "refused beside {most} of {limit}");
            exchange.on_response(worker, &stream);
            exchange.on_end(worker);
            break;
        }
        while open.len() as u64 > target {
            // From here on its place may be another's.
            tally.add(-1);
            let at = rng.below(open.len() as u64) as usize;
            open.swap_remove(at).on_end(worker);
        }
        match rng.below(6) {
            0 => all.iter().for_each(|engine| engine.tick(worker)),
            1 => all.push(new()),
            _ => {}
        }
    }
    for mut exchange in open {
        tally.add(-1);
        exchange.on_end(worker);
    }
    all.iter().for_each(|engine| engine.close(worker));
}

#[test]
fn places_taken_ahead_are_never_one_too_many() {
    for_each_seed("places_taken_ahead_are_never_one_too_many", 300, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(HostKind::Envoy, seed);
        let limit = [100, 128, 200, 256, 300, 520][rng.below(6) as usize];
        let config = Rc::new(format!(
            r#"{{"concurrency_limits": {{"c": {{"algorithm": "fixed", "limit": {limit}}}}},
                "upstreams": {{"u": {{"concurrency_limit": "c"}}}},
                "routes": [{{"name": "plus", "match": {{"path": "/plus"}}, "upstream": "u", "criticality": "critical_plus"}},
                    {{"name": "other", "upstream": "u"}}]}}"#
        ));
        let tally = Rc::new(Tally::default());
        let tasks = (0..1 + rng.below(5)).map(|_| {
            let worker = Worker(Rc::clone(&machine));
            let (rng, config, tally) = (Rc::clone(&rng), Rc::clone(&config), Rc::clone(&tally));
            Box::new(move || pile(&worker, &rng, &config, limit, &tally)) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 5,
            longest: Nanos::from_millis(50),
            lost_vm: 0,
            step_back: [0, 1][rng.below(2) as usize],
        };
        run(&machine, &rng, faults, tasks.collect());
        let left = machine.metrics_of("haven_concurrency_in_flight");
        assert!(left.iter().all(|(_, n)| *n == 0), "{left:?}");
    });
}
