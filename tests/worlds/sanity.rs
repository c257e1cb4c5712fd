//! The simulator itself: queues as queueing theory has them, tries as Envoy makes them.

use crate::config::address;
use crate::draw::{MS, SECOND, Service, Shape, Time};
use crate::envoy::PAUSES;
use crate::fault::{Fault, Kind};
use crate::record::{End, Run};
use crate::sim::{HOP, run};
use crate::world::{Client, Route, World};
use serde_json::{Value, json};

/// One endpoint, one route, one client that waits for ever, nothing goes wrong.
fn calm(slots: usize, load: f64, requests: usize) -> World {
    let mean = 10 * MS;
    World {
        seed: 1,
        workers: 1,
        endpoints: 1,
        slots,
        service: Service {
            mean,
            shape: Shape::Exponential,
        },
        queue: None,
        stops: false,
        checks_queue: false,
        checks_fail: false,
        failure: 503,
        routes: vec![Route {
            post: false,
            criticality: "critical",
            share: 1.0,
            timeout: 1_000 * SECOND,
        }],
        clients: vec![Client {
            share: 1.0,
            patience: 1.0,
            says: false,
            hangs_up: false,
            one_connection: false,
        }],
        load,
        faults: Vec::new(),
        end: (requests as f64 / load / slots as f64) as Time * mean,
        config: Value::Null,
    }
}

/// The mean wait before the service, in mean service times.
fn mean_wait(world: &World) -> f64 {
    let run = run(world, None, 0, false);
    // Without what came while the queue was still to build up.
    let settled = &run.records[run.records.len() / 10..];
    let time = |it: &crate::record::Record| (it.ended.unwrap() - it.at) as f64;
    let mean = settled.iter().map(time).sum::<f64>() / settled.len() as f64;
    (mean - HOP as f64) / world.service.mean as f64 - 1.0
}

/// Erlang's loss formula: the share of calls that find all `slots` taken and are lost.
fn erlang_b(slots: usize, offered: f64) -> f64 {
    (1..=slots).fold(1.0, |b, n| offered * b / (n as f64 + offered * b))
}

/// Erlang's delay formula: the share of calls that have to wait.
fn erlang_c(slots: usize, offered: f64) -> f64 {
    let (b, load) = (erlang_b(slots, offered), offered / slots as f64);
    b / (1.0 - load * (1.0 - b))
}

#[test]
fn exponential_service_waits_as_erlang_has_it() {
    for (slots, load) in [(1, 0.5), (4, 0.8), (16, 0.9)] {
        let offered = load * slots as f64;
        let want = erlang_c(slots, offered) / (slots as f64 - offered);
        let have = mean_wait(&calm(slots, load, 100_000));
        assert!(
            (have / want - 1.0).abs() < 0.1,
            "{slots} {load}: {have} {want}"
        );
    }
}

#[test]
fn fixed_service_waits_half_as_long() {
    let mut world = calm(1, 0.8, 100_000);
    world.service.shape = Shape::Fixed;
    let (have, want) = (mean_wait(&world), 0.8 / (2.0 * 0.2));
    assert!((have / want - 1.0).abs() < 0.1, "{have} {want}");
}

#[test]
fn a_bounded_queue_refuses_as_erlang_has_it() {
    for (slots, load) in [(1, 0.5), (8, 1.0), (20, 1.5)] {
        let mut world = calm(slots, load, 50_000);
        world.queue = Some(0);
        let run = run(&world, None, 0, false);
        let refused = run
            .records
            .iter()
            .filter(|it| it.end == End::Failed(503))
            .count();
        let have = refused as f64 / run.records.len() as f64;
        let want = erlang_b(slots, load * slots as f64);
        assert!(
            (have / want - 1.0).abs() < 0.05,
            "{slots} {load}: {have} {want}"
        );
    }
}

#[test]
fn lognormal_service_has_its_mean() {
    let service = Service {
        mean: 20 * MS,
        shape: Shape::Lognormal(0.8),
    };
    let draw = crate::draw::Draw::of(&[7]);
    let mean = (0..100_000).map(|_| service.take(&draw)).sum::<f64>() / 1e5;
    assert!((mean / (20 * MS) as f64 - 1.0).abs() < 0.02, "{mean}");
}

/// Five endpoints of which so many have this fault for good, two retries of 100 ms each.
fn faulty(kind: Kind, faulty: usize, timeout: Time) -> Run {
    faulty_from(0, kind, faulty, timeout)
}

/// The same, from a moment on.
fn faulty_from(from: Time, kind: Kind, faulty: usize, timeout: Time) -> Run {
    let mut world = calm(8, 0.02, 400);
    world.endpoints = 5;
    world.routes[0].timeout = timeout;
    world.faults = vec![Fault {
        kind,
        endpoints: (0..faulty).collect(),
        from,
        until: 10_000 * SECOND,
    }];
    let endpoints: Vec<Value> = (0..5).map(|at| json!({"address": address(at)})).collect();
    let config = json!({
        "upstreams": {"u": {"endpoints": endpoints, "outlier": "off"}},
        "routes": [{"name": "r0", "upstream": "u",
            "timeout": {"request": format!("{}ms", timeout / MS), "per_try": "100ms"},
            "retry": {"attempts": 2, "budget": 100, "min_per_second": 10000}}]});
    run(&world, Some(&config), 0, false)
}

/// Whether this time is that of so many tries and the pauses between them.
fn is_time_of(time: Time, each: Time, tries: Time) -> bool {
    let [first, most] = PAUSES;
    let pauses: Time = (1..tries).map(|n| (first << (n - 1)).min(most)).sum();
    (tries * each..=tries * (each + 4 * HOP) + pauses).contains(&time)
}

#[test]
fn a_try_that_is_cut_off_leads_to_exactly_the_tries_that_envoy_makes() {
    // The first second's retries are few: the budget has seen no request yet.
    let settled = |run: &Run| run.records[200..].to_vec();
    // A try is cut off until haven knows that the next endpoint is as slow; then it has the whole.
    let hanging = |timeout: Time| {
        let run = faulty_from(3 * SECOND, Kind::Hanging, 5, timeout);
        let records = run.records.into_iter();
        records
            .filter(|it| it.at >= 3 * SECOND)
            .partition::<Vec<_>, _>(|it| it.tries > 1)
    };
    for timeout in [900 * MS, 250 * MS] {
        let (cut, whole) = hanging(timeout);
        assert!(!cut.is_empty() && whole.len() > cut.len(), "{timeout}");
        for it in cut {
            let took = it.ended.unwrap() - it.at;
            assert_eq!(it.end, End::Failed(504));
            // The whole cuts off the last try, or the pause before it.
            let all_three = it.tries == 3 && is_time_of(took, 100 * MS, 3);
            assert!(all_three || took == timeout, "{it:?}");
        }
        for it in whole {
            assert_eq!((it.tries, it.end), (1, End::Failed(504)));
            assert_eq!(it.ended.unwrap() - it.at, timeout);
        }
    }
    // No connection: its own time runs, not the try's.
    for it in settled(&faulty(Kind::Unreachable, 5, 2 * SECOND)) {
        assert_eq!((it.tries, it.end), (3, End::Failed(503)));
        assert!(is_time_of(it.ended.unwrap() - it.at, 250 * MS, 3), "{it:?}");
    }
    for it in settled(&faulty(Kind::Dead, 5, 900 * MS)) {
        assert_eq!((it.tries, it.end, it.begun), (3, End::Failed(503), 0));
    }
}

#[test]
fn a_retry_goes_to_another_endpoint() {
    for kind in [Kind::Hanging, Kind::Dead, Kind::Failing(1.0)] {
        let run = faulty(kind, 2, 900 * MS);
        let settled = &run.records[200..];
        assert!(settled.iter().all(|it| it.end == End::Useful), "{kind:?}");
        assert!(settled.iter().any(|it| it.tries == 3), "{kind:?}");
    }
}

#[test]
fn work_stops_or_goes_on_when_its_caller_has_gone() {
    // Twice the capacity, and none is waited for longer than ten service times.
    let most_held = |stops| {
        let mut world = calm(4, 2.0, 20_000);
        world.stops = stops;
        world.routes[0].timeout = 100 * MS;
        let run = run(&world, None, 0, true);
        run.samples.iter().map(|it| it.held).max().unwrap()
    };
    assert!(
        most_held(true) < 120,
        "800/s for 100 ms: {}",
        most_held(true)
    );
    assert!(
        most_held(false) > 8_000,
        "half of all: {}",
        most_held(false)
    );
}
