//! Whole requests through whole engines, over several workers: what was granted is given back,
//! whatever happens.

use super::hosts;
use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::Platform;
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use haven::host::{Clock, Property};
use haven::policy::circuit_breaker::CircuitBreaker;
use haven::policy::circuit_breaker::Phase;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// All that grants something, on one route: tokens and moments to wait for, places in flight,
/// permits of half-open breakers, retries, and room for kept responses.
const FULL: &str = r#"{
    "upstreams": {"users": {"cluster": "main", "circuit_breaker": "ep", "concurrency_limit": "found",
        "endpoints": [{"address": "10.0.0.1:80", "weight": 2}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80"}]}},
    "rate_limits": {"per-key": {"limit": 20, "period": "1s", "key": [{"header": "x-key"}]},
        "pace": {"algorithm": "leaky_bucket", "limit": 20, "burst": 4, "max_wait": "300ms"}},
    "concurrency_limits": {"few": {"algorithm": "fixed", "limit": 6}, "found": {"min_limit": 2, "max_limit": 12, "initial_limit": 8}},
    "circuit_breakers": {
        "ep": {"consecutive_failures": 2, "open_duration": "500ms", "half_open_calls": 1, "half_open_max_wait": "10s"},
        "users": {"minimum_calls": 4, "open_duration": "500ms", "half_open_calls": 2, "half_open_max_wait": "10s",
            "slow_call_duration": "300ms", "slow_call_rate_threshold": 80, "scope": "upstream"}},
    "fallbacks": {
        "users": {"on": ["circuit_open", "no_endpoint", "upstream_error", "timeout", "overload", "deadline", "rate_limited"],
            "steps": [{"stale": {"max_age": "2s", "max_entries": 3, "max_body": "64B"}}, {"cluster": "spare"}, {"respond": {"body": "later"}}]},
        "plain": {"steps": [{"respond": {"status": 200, "body": "later"}}]}},
    "routes": [
        {"name": "shadow", "match": {"prefix": "/shadow"}, "upstream": "users", "mode": "shadow", "rate_limits": ["per-key"],
         "circuit_breaker": "users", "concurrency_limit": "few", "retry": {}, "timeout": {"request": "1s"}},
        {"name": "plain", "match": {"prefix": "/plain"}, "upstream": "users", "rate_limits": ["per-key"], "circuit_breaker": "users",
         "fallback": "plain", "criticality": "sheddable"},
        {"name": "users", "match": {"prefix": "/api"}, "upstream": "users", "rate_limits": ["per-key", "pace"], "circuit_breaker": "users",
         "concurrency_limit": "few", "fallback": "users", "criticality": "critical_plus",
         "timeout": {"request": {"dynamic": {"quantile": 99, "factor": 2, "min": "50ms", "max": "2s"}}, "per_try": "400ms",
            "reject_below": "p50", "deadline_header": "x-left"},
         "retry": {"attempts": 1, "budget": 100, "min_per_second": 1}}]
}"#;

const ENDPOINTS: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

/// The most requests that a worker has open at once.
const OPEN: usize = 6;

fn full(worker: &Worker) -> Rc<Engine> {
    hosts::engine(worker, FULL)
}

/// A request on its way.
struct Begun {
    stream: SimStream,
    exchange: Exchange,
    /// The moment that it waits for.
    until: Option<Moment>,
}

fn begin(engine: &Rc<Engine>, worker: &Worker, rng: &Rng) -> Option<Begun> {
    let (key, left) = (rng.below(6).to_string(), (rng.below(3) * 150).to_string());
    let path = [
        "/shadow/x",
        "/plain/x",
        "/api/a",
        "/api/b",
        "/api/c",
        "/api/d",
        "/api/e",
    ][rng.below(7) as usize];
    let odd: &[u8] = &[0xff, 0, b','];
    let mut headers = vec![
        ("x-key", key.as_bytes()),
        ("x-odd", odd),
        ("x-haven-upstream", b"6.6.6.6:1"),
        ("x-haven-cluster", b"evil"),
        ("x-envoy-max-retries", b"99"),
    ];
    if rng.below(4) == 0 {
        headers.push(("x-left", left.as_bytes()));
    }
    let grpc = rng.below(4) == 0;
    if grpc {
        headers.push(("content-type", b"application/grpc"));
    }
    let stream = SimStream::request(
        if grpc || rng.below(5) == 0 {
            "POST"
        } else {
            "GET"
        },
        path,
        &headers,
    )
    .on(worker.kind());
    let mut exchange = Exchange::new(Rc::clone(engine));
    match exchange.on_request(worker, &stream) {
        Action::Continue => Some(Begun {
            stream,
            exchange,
            until: None,
        }),
        Action::Wait { until, .. } => Some(Begun {
            stream,
            exchange,
            until: Some(until),
        }),
        Action::Stop | Action::Read => {
            // Hosts run the response callback for our own reply too.
            exchange.on_response(worker, &stream);
            exchange.on_end(worker);
            exchange.on_end(worker);
            None
        }
    }
}

/// Lets a request that waits go on, if it does.
fn resume(begun: &mut Begun, worker: &Worker, rng: &Rng) -> Action {
    let Some(until) = begun.until.take() else {
        return Action::Continue;
    };
    match rng.below(6) {
        // Its client goes away.
        0 => Action::Stop,
        1 => begun.exchange.on_no_room(worker, &begun.stream),
        // The proxy answers by itself.
        2 => {
            begun.stream.fail(408, "request_overall_timeout", None, 0);
            begun.exchange.on_response(worker, &begun.stream);
            Action::Stop
        }
        _ => {
            let machine = &worker.0;
            machine.advance(until.since(machine.now()));
            begun.exchange.on_resume(worker, &begun.stream)
        }
    }
}

/// Gives a request a random fate, and ends it twice as hosts do.
fn finish(mut begun: Begun, worker: &Worker, rng: &Rng) {
    if resume(&mut begun, worker, rng) == Action::Continue {
        answer(&mut begun, worker, rng);
    } else {
        begun.exchange.on_response(worker, &begun.stream);
    }
    begun.exchange.on_end(worker);
    begun.exchange.on_end(worker);
}

fn answer(begun: &mut Begun, worker: &Worker, rng: &Rng) {
    let Begun {
        stream, exchange, ..
    } = begun;
    let list = stream
        .request_header("x-haven-upstream")
        .unwrap_or_default();
    assert!(!list.contains("6.6.6.6"), "a client's own value is removed");
    assert_ne!(
        stream.request_header("x-haven-cluster").as_deref(),
        Some("evil")
    );
    assert_ne!(
        stream.request_header("x-envoy-max-retries").as_deref(),
        Some("99")
    );
    let elsewhere = stream.request_header("x-haven-cluster").as_deref() == Some("spare");
    let listed: Vec<&str> = list
        .split(',')
        .filter(|address| !address.is_empty())
        .collect();
    let tries = 1 + rng.below(listed.len().max(1) as u64);
    let by = listed.get(tries as usize - 1).copied();
    let by = if elsewhere {
        "10.9.9.9:80"
    } else {
        by.unwrap_or(ENDPOINTS[0])
    };
    let headers: &[(&str, &[u8])] = if rng.below(2) == 0 {
        &[("x-envoy-upstream-service-time", b"1")]
    } else {
        &[]
    };
    let streams = rng.below(3) == 0;
    match rng.below(12) {
        // The client goes away before any answer.
        0 => return,
        1 => stream.fail(
            503,
            "upstream_reset_before_response_started{connection_failure}",
            Some(by),
            tries,
        ),
        2 => stream.fail(504, "response_timeout", None, tries),
        3 => stream.fail(504, "upstream_per_try_timeout", Some(by), tries),
        4 => stream.answer(500, Some(by), &[("retry-after", b"1")]),
        5 => stream.answer(429, Some(by), headers),
        6 => stream.answer(404, None, &[]),
        7 => stream.answer(200, Some(by), &[("grpc-status", b"14")]),
        8 => stream.fail(503, "overflow", None, 1),
        _ => stream.answer(200, Some(by), headers),
    }
    stream.set_property(Property::AttemptCount, &tries.to_le_bytes());
    let action = exchange.on_response_headers(worker, stream, !streams);
    assert!(action == Action::Continue || stream.replied().is_some() || exchange.is_replacing());
    if !streams {
        return;
    }
    // Of our own reply the body comes too.
    for _ in 0..rng.below(4) {
        let piece = vec![b'x'; rng.below(40) as usize];
        stream.piece(&piece);
        exchange.on_response_body(worker, stream, piece.len(), false);
    }
    let cut = |details: &str, flag: u32| {
        stream.set_property(Property::ResponseCodeDetails, details.as_bytes());
        stream.set_property(Property::ResponseFlags, &(1u64 << flag).to_le_bytes());
    };
    match rng.below(8) {
        0 => cut(
            "upstream_reset_after_response_started{connection_termination}",
            6,
        ),
        1 => cut("response_timeout", 2),
        2 => cut("downstream_remote_disconnect", 14),
        // Its end is not shown.
        3 => {}
        4 | 5 => {
            stream.trail(&[("grpc-status", if rng.below(2) == 0 { b"0" } else { b"14" })]);
            exchange.on_response_trailers(worker, stream);
        }
        _ => {
            exchange.on_response_body(worker, stream, 0, true);
        }
    }
    if exchange.is_replacing() {
        exchange.on_resume(worker, stream);
        assert!(stream.replied().is_some());
    }
    if exchange.is_unsettled() && rng.below(8) > 0 {
        exchange.on_cut(worker, stream);
    }
}

/// A worker's requests, which overlap; its engines, which must have nothing left of them.
fn work(worker: &Worker, rng: &Rng) -> Vec<Rc<Engine>> {
    let mut engine = full(worker);
    let mut engines = vec![Rc::clone(&engine)];
    let (mut open, mut tick): (Vec<Begun>, _) = (Vec::new(), Moment::ZERO);
    for _ in 0..2 + rng.below(12) {
        if open.is_empty() || (open.len() < OPEN && rng.below(2) == 0) {
            open.extend(begin(&engine, worker, rng));
        } else {
            finish(
                open.swap_remove(rng.below(open.len() as u64) as usize),
                worker,
                rng,
            );
        }
        // A reload: a new engine in the same VM, over the same shared state. The old one goes on
        // ticking while it has requests.
        if rng.below(16) == 0 {
            engine = full(worker);
            engines.push(Rc::clone(&engine));
        }
        if worker.monotonic() >= tick || rng.below(16) == 0 {
            tick = worker.monotonic().plus(Nanos::from_secs(1));
            engines.iter().for_each(|engine| engine.tick(worker));
        }
    }
    // All streams are closed: their clients have gone.
    for mut begun in open {
        begun.exchange.on_end(worker);
    }
    engines.iter().for_each(|engine| engine.close(worker));
    engines
}

#[test]
fn nothing_that_was_granted_is_kept() {
    for_each_seed("nothing_that_was_granted_is_kept", 12_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(hosts::kind_of(seed), seed);
        machine.cas_failures.set([0, 0, 5][rng.below(3) as usize]);
        let losses = [0, 2][rng.below(2) as usize];
        let engines: Rc<RefCell<Vec<Rc<Engine>>>> = Rc::default();
        let tasks = (0..2 + rng.below(4)).map(|_| {
            let (worker, rng, engines) = (
                Worker(Rc::clone(&machine)),
                Rc::clone(&rng),
                Rc::clone(&engines),
            );
            // What a lost VM had is lost with it.
            Box::new(move || {
                let used = work(&worker, &rng);
                engines.borrow_mut().extend(used);
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 20,
            longest: Nanos::from_millis(700),
            lost_vm: losses,
            step_back: 0,
        };
        let begun = machine.now();
        let lost = run(&machine, &rng, faults, tasks.collect());

        let bound = (lost * OPEN) as u64;
        // In less time than it takes to prove a loss, no place in flight was taken for lost.
        if machine.now().since(begun) < Nanos::from_secs(10) {
            for gauges in ["haven_concurrency_in_flight", "haven_endpoint_in_flight"] {
                let places = machine.metrics_of(gauges);
                assert!(
                    places.iter().all(|(_, n)| *n <= bound),
                    "{lost} VMs were lost, {places:?}"
                );
            }
        }
        assert!(
            machine.metric("haven_stale_entries;policy=users") <= 3
                || lost > 0
                || machine.cas_failures.get() > 0
        );
        if machine.cas_failures.get() == 0 && lost == 0 {
            assert!(
                machine
                    .metrics_of("haven_store_contention_total")
                    .iter()
                    .all(|(_, n)| *n == 0)
            );
            let worker = Worker(Rc::clone(&machine));
            let endpoints = ENDPOINTS.map(|endpoint| ("ep", vec!["endpoint", "users", endpoint]));
            for (name, subject) in endpoints
                .into_iter()
                .chain([("users", vec!["upstream", "users"])])
            {
                for namespace in ["", "shadow"] {
                    let state = CircuitBreaker::new(name, &subject, namespace).peek(&worker);
                    // A permit of a call that was judged stays with its verdict until the round is
                    // over.
                    let held = state.permits.saturating_sub(state.trial.calls);
                    assert!(
                        state.phase != Phase::HalfOpen || held == 0,
                        "{name} of {subject:?}: {state:?}"
                    );
                }
            }
        }
        // A lost VM leaves its share of the endpoints' gauges behind, and least_request shuns these
        // endpoints until it is taken out.
        machine.cas_failures.set(0);
        let mut engines = engines.take();
        if engines.is_empty() {
            engines.push(full(&Worker(Rc::clone(&machine))));
        }
        for engine in engines.iter().take(3) {
            recovers(&machine, engine, &engines, 3);
        }
        let places = || -> Vec<_> {
            let gauges = ["haven_concurrency_in_flight", "haven_endpoint_in_flight"];
            gauges
                .iter()
                .flat_map(|gauges| machine.metrics_of(gauges))
                .collect()
        };
        let before = places();
        for _ in 0..40 {
            if places().iter().all(|(_, n)| *n == 0) {
                return;
            }
            machine.advance(Nanos::from_secs(1));
            engines
                .iter()
                .for_each(|engine| engine.tick(&Worker(Rc::clone(&machine))));
        }
        panic!(
            "places of {lost} lost VMs do not come back: {before:?}, {:?}",
            places()
        );
    });
}

/// With the upstream well again, requests are answered by at least `endpoints` of it, in bounded
/// time, and may be retried: of the engine's budget nothing is held by requests that are
/// over. (One retry in a second is all that there is of it, for one request.)
fn recovers(machine: &Rc<Machine>, engine: &Rc<Engine>, all: &[Rc<Engine>], endpoints: usize) {
    let worker = Worker(Rc::clone(machine));
    // On nginx haven asks for no retries.
    let (mut seen, mut retried) = (BTreeSet::new(), machine.kind() == HostKind::Nginx);
    for number in 0..400 {
        for _ in 0..2 {
            machine.advance(Nanos::from_millis(1_100));
            all.iter().for_each(|engine| engine.tick(&worker));
        }
        let stream = SimStream::request(
            "GET",
            "/api/users",
            &[("x-key", number.to_string().as_bytes())],
        );
        let mut exchange = Exchange::new(Rc::clone(engine));
        if exchange.on_request(&worker, &stream) == Action::Continue
            && stream.request_header("x-haven-cluster").as_deref() == Some("main")
        {
            let list = stream.request_header("x-haven-upstream").unwrap();
            let first = list.split(',').next().unwrap().to_owned();
            retried |= stream.request_header("x-envoy-max-retries").as_deref() == Some("1");
            stream.answer(200, Some(&first), &[]);
            exchange.on_response(&worker, &stream);
            seen.insert(first);
        }
        exchange.on_end(&worker);
        if seen.len() >= endpoints && retried {
            return;
        }
    }
    panic!(
        "only {seen:?}, retried: {retried}, at {:?}: {:?}",
        worker.monotonic(),
        machine.metrics_of("haven_")
    );
}

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
    hosts::engine(worker, CONFIG)
}

#[test]
fn a_request_costs_few_host_calls() {
    let machine = Machine::new(HostKind::Envoy, 1);
    let worker = Worker(Rc::clone(&machine));
    let engine = engine(&worker);
    let request = |key: &[u8]| {
        let before = machine.calls();
        let stream = SimStream::request("GET", "/api/users", &[("x-key", key)]).on(worker.kind());
        let mut exchange = Exchange::new(Rc::clone(&engine));
        assert_eq!(exchange.on_request(&worker, &stream), Action::Continue);
        let first = stream
            .request_header("x-haven-upstream")
            .unwrap()
            .split(',')
            .next()
            .unwrap()
            .to_owned();
        stream.answer(200, Some(&first), &[]);
        exchange.on_response(&worker, &stream);
        exchange.on_end(&worker);
        machine.calls() - before
    };
    // The first outcome in each of a breaker's buckets writes its record.
    let fewest = (0..5u8).map(|key| request(&[key])).min().unwrap();
    // Clock 3 · two buckets 2 + 2, two keys counted 2 · breaker 1, outcome 3 · endpoints: changes
    // 1, gauges 3, in flight 2, outcome 4 · duration 1.
    assert!(fewest <= 24, "{fewest} calls");
}
