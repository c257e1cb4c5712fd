//! Requests in flight over all workers: never more than the limit, and none left behind.

use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::sim::{CasRules, Machine, SimStream, Worker};
use std::cell::Cell;
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
    Rc::new(Engine::new(haven::document::parse(CONFIG.as_bytes()).unwrap(), worker).unwrap())
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
            let stream = SimStream::request("GET", if plus { "/plus" } else { "/" }, &[]);
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
                    CasRules::Envoy
                } else {
                    CasRules::Nginx
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
                CasRules::Envoy
            } else {
                CasRules::Nginx
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
        let stream = SimStream::request("GET", "/plus", &[]);
        assert_eq!(
            Exchange::new(Rc::clone(&engines[1])).on_request(&worker, &stream),
            Action::Continue
        );
    });
}
