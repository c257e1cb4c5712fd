//! Whole requests through whole engines, over several workers: what was granted is given back, whatever happens.

use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::engine::Engine;
use haven::engine::exchange::{Action, Exchange};
use haven::host::Clock;
use haven::host::sim::{CasRules, Machine, SimStream, Worker};
use std::rc::Rc;

const CONFIG: &str = r#"{
    "upstreams": {"users": {"endpoints": [{"address": "10.0.0.1:80", "weight": 2}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80"}], "circuit_breaker": "ep"}},
    "rate_limits": {"per-key": {"limit": 3, "period": "1s", "key": [{"header": "x-key"}]}, "all": {"limit": 5, "period": "1s"}},
    "circuit_breakers": {
        "ep": {"consecutive_failures": 2, "open_duration": "500ms", "half_open_calls": 1, "half_open_max_wait": "2s"},
        "users": {"minimum_calls": 4, "open_duration": "500ms", "half_open_calls": 2, "half_open_max_wait": "2s", "scope": "upstream"}},
    "fallbacks": {"users": {"steps": [{"respond": {"status": 200, "body": "later"}}]}},
    "routes": [
        {"name": "shadow", "match": {"prefix": "/shadow"}, "upstream": "users", "mode": "shadow", "rate_limits": ["per-key"], "circuit_breaker": "users"},
        {"name": "users", "match": {"prefix": "/api"}, "upstream": "users", "rate_limits": ["per-key", "all"], "circuit_breaker": "users", "fallback": "users"}]
}"#;

fn engine(worker: &Worker) -> Rc<Engine> {
    Rc::new(Engine::new(haven::config::parse(CONFIG.as_bytes()).unwrap(), worker).unwrap())
}

/// One request with a random fate, ended once or twice as hosts do.
fn request(engine: &Rc<Engine>, worker: &Worker, rng: &Rng) {
    let key = rng.below(6).to_string();
    let path = if rng.below(5) == 0 { "/shadow/x" } else { "/api/users" };
    let odd: &[u8] = &[0xff, 0, b','];
    let stream = SimStream::request(
        "GET",
        path,
        &[("x-key", key.as_bytes()), ("x-odd", odd), ("x-haven-upstream", b"6.6.6.6:1")],
    );
    let mut exchange = Exchange::new(Rc::clone(engine));
    if exchange.on_request(worker, &stream) == Action::Continue {
        let list = stream.request_header("x-haven-upstream").unwrap_or_default();
        assert!(!list.contains("6.6.6.6"), "a client's own value is removed");
        let first = list.split(',').next().unwrap_or_default().to_owned();
        let first = if first.is_empty() { "10.0.0.1:80".to_owned() } else { first };
        let last = list.rsplit(',').next().unwrap_or_default().to_owned();
        match rng.below(8) {
            // The client goes away before any answer.
            0 => {}
            1 => stream.fail(503, "upstream_reset_before_response_started{connection_failure}", Some(&first), 1),
            2 => stream.fail(504, "response_timeout", None, 2),
            3 => stream.answer(500, Some(&first), &[("retry-after", b"1")]),
            4 if !last.is_empty() => stream.answer(200, Some(&last), &[]),
            5 => stream.answer(404, None, &[]),
            _ => stream.answer(200, Some(&first), &[]),
        }
        if stream.response_header(":status").is_some() {
            exchange.on_response(worker, &stream);
        }
    } else {
        // Hosts run the response callback for our own reply too.
        exchange.on_response(worker, &stream);
    }
    exchange.on_end(worker);
    exchange.on_end(worker);
}

#[test]
fn nothing_that_was_granted_is_kept() {
    for_each_seed("nothing_that_was_granted_is_kept", 12_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(if seed % 2 == 0 { CasRules::Envoy } else { CasRules::Nginx }, seed);
        machine.cas_failures.set([0, 0, 5][rng.below(3) as usize]);
        let losses = [0, 2][rng.below(2) as usize];
        let tasks = (0..2 + rng.below(4)).map(|_| {
            let (worker, rng) = (Worker(Rc::clone(&machine)), Rc::clone(&rng));
            Box::new(move || {
                let mut engine = engine(&worker);
                for _ in 0..1 + rng.below(6) {
                    request(&engine, &worker, &rng);
                    match rng.below(8) {
                        0 => engine.tick(&worker),
                        // A reload: a new engine in the same VM, over the same shared state.
                        1 => engine = self::engine(&worker),
                        _ => {}
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults { pause: 40, longest: Nanos::from_millis(700), lost_vm: losses, step_back: 0 };
        let lost = run(&machine, &rng, faults, tasks.collect());

        let in_flight = machine.metrics_of("haven_endpoint_in_flight");
        let total = in_flight.iter().fold(0u64, |sum, (_, n)| sum.wrapping_add(*n));
        assert!(total <= lost as u64, "{lost} VMs were lost, {in_flight:?}");
        if machine.cas_failures.get() == 0 && lost == 0 {
            assert!(machine.metrics_of("haven_store_contention_total").iter().all(|(_, n)| *n == 0));
        }
        // A lost VM leaves its share of the in-flight gauges behind, and least_request then shuns these endpoints while there is a
        // better one: so without losses all endpoints must come back, with losses the service must.
        recovers(&machine, &rng, if lost == 0 { 3 } else { 1 });
    });
}

/// With the upstream well again, requests are answered by it, from so many endpoints at least, in bounded time.
fn recovers(machine: &Rc<Machine>, rng: &Rng, endpoints: usize) {
    machine.cas_failures.set(0);
    let worker = Worker(Rc::clone(machine));
    let engine = engine(&worker);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..400 {
        machine.advance(Nanos::from_millis(400));
        engine.tick(&worker);
        let stream = SimStream::request("GET", "/api/users", &[("x-key", rng.below(9).to_string().as_bytes())]);
        let mut exchange = Exchange::new(Rc::clone(&engine));
        if exchange.on_request(&worker, &stream) == Action::Continue {
            let list = stream.request_header("x-haven-upstream").unwrap();
            let first = list.split(',').next().unwrap().to_owned();
            stream.answer(200, Some(&first), &[]);
            exchange.on_response(&worker, &stream);
            seen.insert(first);
        }
        exchange.on_end(&worker);
        if seen.len() >= endpoints {
            return;
        }
    }
    panic!("only {seen:?} at {:?}: {:?}", worker.monotonic(), machine.metrics_of("haven_"));
}

#[test]
fn a_request_costs_few_host_calls() {
    let machine = Machine::new(CasRules::Envoy, 1);
    let worker = Worker(Rc::clone(&machine));
    let engine = engine(&worker);
    let request = |key: &[u8]| {
        let before = machine.calls();
        let stream = SimStream::request("GET", "/api/users", &[("x-key", key)]);
        let mut exchange = Exchange::new(Rc::clone(&engine));
        assert_eq!(exchange.on_request(&worker, &stream), Action::Continue);
        let first = stream.request_header("x-haven-upstream").unwrap().split(',').next().unwrap().to_owned();
        stream.answer(200, Some(&first), &[]);
        exchange.on_response(&worker, &stream);
        exchange.on_end(&worker);
        machine.calls() - before
    };
    // The first outcome in each of a breaker's buckets writes its record.
    let fewest = (0..5u8).map(|key| request(&[key])).min().unwrap();
    // Clock 3 · two buckets 2 + 2, two keys counted 2 · breaker 1, outcome 3 · endpoints: changes 1, gauges 3, in flight 2, outcome 4 · duration 1.
    assert!(fewest <= 24, "{fewest} calls");
}
