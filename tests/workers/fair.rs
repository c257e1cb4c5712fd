//! Fair shares over all workers: never more than the limit, and nothing left behind.

use super::hosts;
use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::Platform;
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use haven::policy::concurrency::fair::{ACTIVE, FairRecord, KeyCounts, LOST, SYNC, Standing};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const LIMIT: u64 = 10;

const CONFIG: &str = r#"{
    "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 10, "fair": [{"header": "x-tenant"}]}},
    "routes": [{"name": "r", "concurrency_limit": "c", "criticality": "critical_plus"}]
}"#;

/// The longest that time passes at once, and that the clock steps back.
const LONGEST: Nanos = Nanos::from_millis(30);

/// More than the clock steps back in a schedule.
const STEPS: Nanos = Nanos::from_secs(1);

/// What the workers of a schedule have in common.
#[derive(Default)]
struct Common {
    admitted: Cell<u64>,
    engines: RefCell<Vec<(Worker, Rc<Engine>)>>,
}

impl Common {
    fn engine(&self, worker: &Worker) -> Rc<Engine> {
        let engine = hosts::engine(worker, CONFIG);
        let mut engines = self.engines.borrow_mut();
        engines.push((worker.clone(), Rc::clone(&engine)));
        engine
    }
}

fn begin(worker: &Worker, engine: &Rc<Engine>, tenant: &[u8]) -> Option<Exchange> {
    let mut exchange = Exchange::new(Rc::clone(engine));
    let headers: &[(&str, &[u8])] = match tenant {
        b"" => &[],
        tenant => &[("x-tenant", tenant)],
    };
    let stream = SimStream::request("GET", "/", headers).on(worker.kind());
    let passes = exchange.on_request(worker, &stream) == Action::Continue;
    if !passes {
        exchange.on_response(worker, &stream);
        exchange.on_end(worker);
    }
    passes.then_some(exchange)
}

fn end(worker: &Worker, exchange: &mut Exchange, how: u64) {
    let stream = SimStream::request("GET", "/", &[]).on(worker.kind());
    match how {
        0 => {}
        1 => stream.fail(504, "response_timeout", None, 1),
        _ => stream.answer(200, Some("10.0.0.1:80"), &[]),
    }
    if how > 0 {
        exchange.on_response(worker, &stream);
    }
    exchange.on_end(worker);
    exchange.on_end(worker);
}

/// Requests of a worker, that overlap, of a tenant that sends much and others. `exact`: whether the
/// number of admitted ones is known, which it is not where a worker is lost.
fn work(worker: &Worker, rng: &Rng, common: &Common, exact: bool) {
    let mut engine = common.engine(worker);
    let mut open = Vec::new();
    let count = |more: bool| {
        let admitted = common.admitted.get();
        common
            .admitted
            .set(if more { admitted + 1 } else { admitted - 1 });
        assert!(!exact || common.admitted.get() <= LIMIT);
    };
    for _ in 0..2 + rng.below(30) {
        if open.is_empty() || rng.below(3) > 0 {
            let tenants: [&[u8]; 6] = [b"a", b"a", b"a", b"b", b"c", b""];
            if let Some(exchange) = begin(worker, &engine, tenants[rng.below(6) as usize]) {
                count(true);
                open.push(exchange);
            }
        } else {
            let mut exchange = open.swap_remove(rng.below(open.len() as u64) as usize);
            // From here on its place may be another's.
            count(false);
            end(worker, &mut exchange, rng.below(4));
        }
        match rng.below(16) {
            0 => engine.tick(worker),
            1 => engine = common.engine(worker),
            _ => {}
        }
    }
    for mut exchange in open {
        count(false);
        exchange.on_end(worker);
    }
}

fn in_flight(machine: &Machine) -> u64 {
    machine.metric("haven_concurrency_in_flight;policy=c;key=r")
}

/// Whether the shared record shows a request in flight.
fn is_known(machine: &Machine) -> bool {
    let records = machine.records(|key| key.get(2) == Some(&b'f'));
    records.iter().any(|bytes| {
        let (mut record, mut probe) = (FairRecord::decode(bytes), KeyCounts::default());
        probe.sync(&mut record, machine.now(), 0);
        // Alone, a key may have everything.
        (0..1_000).for_each(|_| probe.enter(0));
        probe.standing(0, machine.now().plus(ACTIVE)) > Standing::Within
    })
}

/// Runs a schedule. Returns how often a fair share was refused.
fn schedule(seed: u64, lost_vm: u64) -> (Rc<Machine>, Rc<Common>, u64) {
    let rng = Rc::new(Rng::new(seed));
    let rules = if seed.is_multiple_of(2) {
        HostKind::Envoy
    } else {
        HostKind::Nginx
    };
    let machine = Machine::new(rules, seed);
    machine.cas_failures.set([0, 10][rng.below(2) as usize]);
    let common = Rc::new(Common::default());
    let tasks = (0..2 + rng.below(7)).map(|_| {
        let worker = Worker(Rc::clone(&machine));
        let (rng, common) = (Rc::clone(&rng), Rc::clone(&common));
        Box::new(move || work(&worker, &rng, &common, lost_vm == 0)) as Box<dyn FnOnce()>
    });
    let faults = Faults {
        pause: 20,
        longest: LONGEST,
        lost_vm,
        step_back: [0, 5][rng.below(2) as usize],
    };
    run(&machine, &rng, faults, tasks.collect());
    let refused = "haven_decisions_total;route=r;policy=c/fair;reason=overload;mode=enforce";
    let refused = machine.metric(refused);
    (machine, common, refused)
}

#[test]
fn fair_shares_never_admit_more_than_the_limit_and_leave_nothing_behind() {
    let (schedules, refused) = (Cell::new(0u64), Cell::new(0u64));
    for_each_seed(
        "fair_shares_never_admit_more_than_the_limit_and_leave_nothing_behind",
        2_000,
        |seed| {
            let (machine, common, shares) = schedule(seed, 0);
            schedules.set(schedules.get() + 1);
            refused.set(refused.get() + u64::from(shares > 0));
            // What was given up counts for a while.
            for (worker, engine) in common.engines.borrow().iter() {
                engine.close(worker);
            }
            assert_eq!((in_flight(&machine), common.admitted.get()), (0, 0));
            machine.advance(LOST.plus(STEPS));
            assert!(!is_known(&machine), "what is not written again is dropped");
            // Each worker writes what it has: nothing.
            for (worker, engine) in common.engines.borrow().iter() {
                let all = [b"p"; 11].map(|tenant| {
                    // At most once in this time.
                    machine.advance(SYNC);
                    begin(worker, engine, tenant)
                });
                assert!(all[9].is_some() && all[10].is_none() && is_known(&machine));
                for mut exchange in all.into_iter().flatten() {
                    exchange.on_end(worker);
                }
                engine.close(worker);
                machine.advance(SYNC);
                begin(worker, engine, b"q").unwrap().on_end(worker);
                engine.close(worker);
                assert!(!is_known(&machine));
            }
            assert_eq!(in_flight(&machine), 0);
        },
    );
    let (schedules, refused) = (schedules.get(), refused.get());
    assert!(
        schedules == 0 || refused * 10 > schedules,
        "{refused} of {schedules} refuse a share"
    );
}

#[test]
fn fair_shares_of_lost_workers_are_dropped() {
    for_each_seed("fair_shares_of_lost_workers_are_dropped", 1_000, |seed| {
        let (machine, common, _) = schedule(seed, 5);
        machine.advance(LOST.plus(STEPS));
        assert!(!is_known(&machine));
        // The limit's gauge comes back as well, and all of it may be one tenant's.
        let worker = Worker(Rc::clone(&machine));
        let engine = common.engine(&worker);
        for _ in 0..40 {
            machine.advance(Nanos::from_secs(1));
            engine.tick(&worker);
        }
        assert_eq!(in_flight(&machine), 0);
        let all: Vec<_> = (0..LIMIT)
            .filter_map(|_| begin(&worker, &engine, b"a"))
            .collect();
        assert_eq!(all.len() as u64, LIMIT);
    });
}
