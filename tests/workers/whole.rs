//! All stages at once: whatever a request was granted by any of them comes back exactly once,
//! whoever ends it, and where.

use super::hosts;
use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::Platform;
use haven::host::Property;
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use serde_json::{Value, json};
use std::rc::Rc;

/// Breakers wait for a lost trial call for an hour: a permit that is not given back keeps its
/// breaker half-open.
fn config(rng: &Rng) -> Value {
    let any_mode =
        |rng: &Rng| ["enforce", "enforce", "enforce", "shadow", "off"][rng.below(5) as usize];
    let every = json!([
        "rate_limited",
        "overload",
        "circuit_open",
        "no_endpoint",
        "deadline",
        "switched_off",
        "upstream_error",
        "timeout"
    ]);
    let any_steer = |rng: &Rng| ["always", "by_exception"][rng.below(2) as usize];
    let route = |name: &str, rng: &Rng| {
        json!({"name": name, "match": {"prefix": format!("/{name}")}, "mode": any_mode(rng), "upstream": "u", "rate_limits": ["pace", "all"],
            "concurrency_limit": "own", "circuit_breaker": "r", "fallback": name, "timeout": {"request": "1s", "per_try": "400ms"},
            "retry": {"attempts": 2, "on": ["connect-failure", "reset", "unavailable"]}, "switch": "s",
            "canary": {"upstream": "v2", "percent": 40, "mode": any_mode(rng), "color_header": "x-color"}})
    };
    json!({
        "trust_client_retry_headers": true,
        "switches": {"s": if rng.below(8) == 0 { "off" } else { "on" }},
        "rate_limits": {
            "pace": {"algorithm": "leaky_bucket", "limit": 20, "burst": 4, "max_wait": "150ms"},
            "all": {"limit": 30, "mode": any_mode(rng)}},
        "concurrency_limits": {
            "up": {"algorithm": "fixed", "limit": 3, "mode": any_mode(rng)},
            "own": {"min_limit": 2, "max_limit": 6, "initial_limit": 4, "mode": any_mode(rng)}},
        "circuit_breakers": {
            "ep": {"consecutive_failures": 2, "open_duration": "300ms", "half_open_calls": 1, "half_open_max_wait": "1h", "mode": any_mode(rng)},
            "r": {"minimum_calls": 3, "open_duration": "300ms", "half_open_calls": 2, "half_open_max_wait": "1h", "mode": any_mode(rng)}},
        "upstreams": {"v2": {"cluster": "next", "circuit_breaker": "ep", "concurrency_limit": "up", "load_balancer": {"panic_threshold": 0},
            "steer": any_steer(rng), "endpoints": [{"address": "10.0.1.1:80"}]},
            "u": {"cluster": "main", "circuit_breaker": "ep", "concurrency_limit": "up", "load_balancer": {"panic_threshold": 0},
            "mode": any_mode(rng), "steer": any_steer(rng),
            "endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]}},
        "fallbacks": {
            "a": {"on": every, "mode": any_mode(rng), "steps": [{"stale": {}}, {"cluster": "spare"}, {"respond": {"status": 203, "body": "x"}}]},
            "b": {"on": every, "mode": any_mode(rng), "steps": [{"respond": {"status": 203, "body": "x"}}]}},
        "routes": [route("a", rng), route("b", rng)]})
}

fn engine(worker: &Worker, config: &Value) -> Rc<Engine> {
    hosts::engine(worker, &config.to_string())
}

/// A request that is on its way to an upstream.
struct Sent {
    exchange: Exchange,
    stream: SimStream,
}

/// Sends a request through the request phase; `None`: it has ended there.
fn begin(engine: &Rc<Engine>, worker: &Worker, rng: &Rng) -> Option<Sent> {
    let path = ["/a", "/b", "/a?x", "/none"][rng.below(4) as usize];
    let method = ["GET", "GET", "HEAD", "POST"][rng.below(4) as usize];
    let mut headers: Vec<(&str, &[u8])> = vec![("x-haven-cluster", b"evil")];
    if rng.below(4) == 0 {
        headers.push(("content-type", b"application/grpc"));
    }
    if rng.below(3) == 0 {
        headers.push((
            "grpc-timeout",
            [&b"0m"[..], b"30m", b"200m", b"9S"][rng.below(4) as usize],
        ));
    }
    let stream = SimStream::request(method, path, &headers).on(worker.kind());
    let mut exchange = Exchange::new(Rc::clone(engine));
    let mut action = exchange.on_request(worker, &stream);
    if let Action::Wait { until, .. } = action {
        assert!(exchange.is_waiting());
        action = match rng.below(5) {
            0 => exchange.on_no_room(worker, &stream),
            // Its client goes, or the proxy answers it, while it waits.
            1 => Action::Stop,
            2 => {
                stream.fail(504, "stream_idle_timeout", None, 0);
                exchange.on_response(worker, &stream);
                Action::Stop
            }
            _ => {
                let now = worker.0.now();
                worker.0.advance(until.since(now));
                exchange.on_resume(worker, &stream)
            }
        };
    }
    if action == Action::Continue {
        return Some(Sent { exchange, stream });
    }
    if stream.replied().is_some() && rng.below(2) == 0 {
        // Some hosts run the response callbacks for our own reply too.
        exchange.on_response_headers(worker, &stream, false);
        exchange.on_response_body(worker, &stream, 1, true);
    }
    finish(exchange, &stream, worker);
    None
}

fn finish(mut exchange: Exchange, stream: &SimStream, worker: &Worker) {
    if exchange.is_unsettled() {
        exchange.on_cut(worker, stream);
    }
    exchange.on_end(worker);
    exchange.on_end(worker);
    // A tick that comes too late.
    assert_eq!(exchange.on_resume(worker, stream), Action::Stop);
}

/// Lets it be answered, or not, in one of many ways.
fn answer(sent: Sent, worker: &Worker, rng: &Rng) {
    let Sent {
        mut exchange,
        stream,
    } = sent;
    let list = stream
        .request_header("x-haven-upstream")
        .unwrap_or_default();
    let listed: Vec<&str> = list.split(',').filter(|it| !it.is_empty()).collect();
    let other = ["10.0.0.1:80", "10.0.9.9:80"][rng.below(2) as usize];
    let address = if listed.is_empty() {
        other
    } else {
        listed[rng.below(listed.len() as u64) as usize]
    };
    match rng.below(16) {
        // The client goes away before any answer.
        0 => {}
        1 => stream.fail(
            503,
            "upstream_reset_before_response_started{connection_failure}",
            Some(address),
            1 + rng.below(3),
        ),
        2 => stream.fail(504, "response_timeout", None, 1 + rng.below(3)),
        3 => stream.fail(
            503,
            "upstream_reset_before_response_started{overflow}",
            None,
            1,
        ),
        4 => stream.fail(503, "no_healthy_upstream", None, 1),
        5 => stream.answer(302, None, &[]),
        6 => stream.answer(101, Some(address), &[]),
        7 => stream.fail(200, "response_timeout", Some(address), 1),
        8 | 9 => stream.answer(500, Some(address), &[("retry-after", b"1")]),
        10 => stream.answer(200, Some(address), &[("grpc-status", b"14")]),
        _ => stream.answer(200, Some(address), &[("content-type", b"text/plain")]),
    }
    let grpc = stream.request_header("content-type").is_some();
    if stream.response_header(":status").is_some() {
        if grpc && stream.response_header(":status").as_deref() == Some("200") && rng.below(3) == 0
        {
            stream.set_property(Property::ResponseCodeDetails, b"via_upstream");
        }
        let end = rng.below(3) == 0;
        exchange.on_response_headers(worker, &stream, end);
        if !end {
            stream.piece(b"abc");
            exchange.on_response_body(worker, &stream, 3, false);
            match rng.below(6) {
                0 => {
                    stream.set_property(
                        Property::ResponseCodeDetails,
                        b"upstream_reset_after_response_started",
                    );
                    stream.set_property(Property::ResponseFlags, &u64::to_le_bytes(1 << 6));
                }
                1 => {
                    stream.set_property(
                        Property::ResponseCodeDetails,
                        b"downstream_remote_disconnect",
                    );
                    stream.set_property(Property::ResponseFlags, &u64::to_le_bytes(1 << 14));
                }
                2 => stream.set_property(Property::ResponseFlags, &u64::to_le_bytes(1 << 2)),
                3 => {
                    let status: &[u8] = if rng.below(2) == 0 { b"14" } else { b"0" };
                    stream.trail(&[("grpc-status", status)]);
                    exchange.on_response_trailers(worker, &stream);
                }
                _ => {
                    exchange.on_response_body(worker, &stream, 3, true);
                }
            }
        }
    }
    finish(exchange, &stream, worker);
}

fn work(worker: &Worker, rng: &Rng) {
    let mut engine = engine(worker, &config(rng));
    let mut engines = vec![Rc::clone(&engine)];
    let mut open = Vec::new();
    for _ in 0..4 + rng.below(20) {
        match rng.below(8) {
            0..4 => open.extend(begin(&engine, worker, rng)),
            4..6 if !open.is_empty() => {
                let sent = open.swap_remove(rng.below(open.len() as u64) as usize);
                answer(sent, worker, rng);
            }
            6 => engine.tick(worker),
            // What is under way ends under the old one.
            7 if rng.below(3) == 0 => {
                engine = self::engine(worker, &config(rng));
                engines.push(Rc::clone(&engine));
            }
            _ => {}
        }
    }
    open.into_iter().for_each(|sent| answer(sent, worker, rng));
    engines.iter().for_each(|engine| engine.close(worker));
}

#[test]
fn what_any_stage_has_granted_comes_back_once() {
    for_each_seed(
        "what_any_stage_has_granted_comes_back_once",
        2_500,
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
            let tasks = (0..1 + rng.below(4)).map(|_| {
                let (worker, rng) = (Worker(Rc::clone(&machine)), Rc::clone(&rng));
                Box::new(move || work(&worker, &rng)) as Box<dyn FnOnce()>
            });
            let faults = Faults {
                pause: 30,
                longest: Nanos::from_millis(300),
                lost_vm: 0,
                step_back: 0,
            };
            run(&machine, &rng, faults, tasks.collect());

            for gauges in ["haven_endpoint_in_flight", "haven_concurrency_in_flight"] {
                let left = machine.metrics_of(gauges);
                assert!(left.iter().all(|(_, n)| *n == 0), "{left:?}");
            }
            let contention = machine.metrics_of("haven_store_contention_total");
            assert!(contention.iter().all(|(_, n)| *n == 0), "{contention:?}");
            recovers(&machine);
        },
    );
}

/// With the upstream well again, all breakers close.
fn recovers(machine: &Rc<Machine>) {
    let worker = Worker(Rc::clone(machine));
    let mut config = config(&Rng::new(1));
    config.as_object_mut().unwrap().remove("switches");
    for section in [
        "rate_limits",
        "concurrency_limits",
        "circuit_breakers",
        "fallbacks",
        "upstreams",
    ] {
        for (_, policy) in config[section].as_object_mut().unwrap() {
            policy["mode"] = json!("enforce");
        }
    }
    for route in config["routes"].as_array_mut().unwrap() {
        route["mode"] = json!("enforce");
        route["canary"]["mode"] = json!("enforce");
        route.as_object_mut().unwrap().remove("switch");
    }
    let engine = engine(&worker, &config);
    for round in 0..400 {
        machine.advance(Nanos::from_millis(400));
        engine.tick(&worker);
        let stream = SimStream::request("GET", ["/a", "/b"][round % 2], &[]);
        let mut exchange = Exchange::new(Rc::clone(&engine));
        if exchange.on_request(&worker, &stream) == Action::Continue {
            let list = stream
                .request_header("x-haven-upstream")
                .unwrap_or_default();
            stream.answer(200, list.split(',').next(), &[]);
            exchange.on_response(&worker, &stream);
        }
        finish(exchange, &stream, &worker);
        engine.tick(&worker);
        if round > 20
            && machine
                .metrics_of("haven_circuit_breaker_state")
                .iter()
                .all(|(_, state)| *state == 0)
        {
            return;
        }
    }
    panic!("{:?}", machine.metrics_of("haven_"));
}
