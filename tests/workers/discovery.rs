//! Endpoints that a source names, over simulated workers: whoever asks, whatever is lost, comes late
//! or again, all workers end with the same endpoints, no request is lost, and nothing is counted
//! twice.

use super::hosts;
use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::headers::HeaderMap;
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use haven::host::{CallAnswer, Clock};
use haven::policy::discovery::record::{Known, SourceRecord};
use haven::policy::discovery::report::{Report, Reported};
use haven::policy::discovery::{Answer, Builder, Cause, Failure, Membership, Named, Verdict};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

const SEC: Nanos = Nanos::from_secs(1);

fn address(n: u64) -> String {
    format!("10.0.{}.{}:80", n / 250, 1 + n % 250)
}

fn members(numbers: impl IntoIterator<Item = u64>) -> Membership {
    with_verdicts(numbers.into_iter().map(|n| (n, Verdict::Healthy)))
}

fn with_verdicts(members: impl IntoIterator<Item = (u64, Verdict)>) -> Membership {
    let mut builder = Builder::default();
    for (n, verdict) in members {
        let named = Named {
            address: &address(n),
            weight: 1,
            verdict,
            ..Named::default()
        };
        builder.add(named).unwrap();
    }
    builder.finish().unwrap()
}

fn said(asked: Moment, members: Membership) -> Report {
    Report {
        asked,
        result: Ok(Answer { members, cursor: 0 }),
    }
}

/// An upstream `u` with a source, and what else is set there.
fn config(more: Value) -> Value {
    let mut upstream = json!({"endpoints": {"etcd": {"cluster": "etcd", "prefix": "/u/"}}});
    let fields = upstream.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    json!({
        "upstreams": {"u": upstream},
        "routes": [{"name": "r", "upstream": "u", "retry": {"attempts": 1}}]})
}

fn machine(seed: u64) -> Rc<Machine> {
    Machine::new(HostKind::Envoy, seed)
}

/// A worker that reads the configuration.
fn start(machine: &Rc<Machine>, config: &Value) -> (Worker, Rc<Engine>) {
    let worker = Worker(Rc::clone(machine));
    let engine = hosts::engine(&worker, &config.to_string());
    (worker, engine)
}

/// A request on its way, and who may get it.
struct Sent {
    exchange: Exchange,
    stream: SimStream,
    list: Vec<String>,
}

fn send(engine: &Rc<Engine>, worker: &Worker) -> Option<Sent> {
    let stream = SimStream::request("GET", "/", &[]);
    let mut exchange = Exchange::new(Rc::clone(engine));
    if exchange.on_request(worker, &stream) != Action::Continue {
        exchange.on_end(worker);
        return None;
    }
    let list = stream.request_header("x-haven-upstream");
    let list = list.iter().flat_map(|list| list.split(','));
    let list = list.map(str::to_owned).collect();
    Some(Sent {
        exchange,
        stream,
        list,
    })
}

/// The proxy sends it to this address, which answers well.
fn answer(mut sent: Sent, worker: &Worker, from: &str) {
    sent.stream.answer(200, Some(from), &[]);
    sent.exchange.on_response(worker, &sent.stream);
    sent.exchange.on_end(worker);
}

/// It ends in one of several ways.
fn end(mut sent: Sent, worker: &Worker, rng: &Rng) {
    let first = sent.list.first().cloned().unwrap_or_default();
    match rng.below(6) {
        0 => return sent.exchange.on_end(worker),
        1 => sent
            .stream
            .fail(504, "response_timeout", None, 1 + rng.below(2)),
        2 => {
            let reason = "upstream_reset_before_response_started{connection_failure}";
            sent.stream
                .fail(503, reason, Some(&first), 1 + rng.below(2));
        }
        3 => return answer(sent, worker, "10.9.9.9:80"),
        4 => {
            let last = sent.list.last().cloned().unwrap_or_default();
            return answer(sent, worker, &last);
        }
        _ => return answer(sent, worker, &first),
    }
    sent.exchange.on_response(worker, &sent.stream);
    sent.exchange.on_end(worker);
}

/// All whom a worker gives requests to.
fn used(engine: &Rc<Engine>, worker: &Worker) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for _ in 0..300 {
        let Some(sent) = send(engine, worker) else {
            continue;
        };
        used.extend(sent.list.iter().cloned());
        let first = sent.list.first().cloned().unwrap_or_default();
        answer(sent, worker, &first);
    }
    used
}

fn addresses(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<String> {
    numbers.into_iter().map(address).collect()
}

/// Says a list until it counts.
fn report(machine: &Machine, engine: &Engine, worker: &Worker, members: &Membership) -> Reported {
    for _ in 0..3 {
        machine.advance(Nanos::from_millis(200));
        let asked = worker.monotonic();
        let reported = engine.report(worker, "u", &said(asked, members.clone()));
        if reported != Some(Reported::Held) {
            return reported.unwrap();
        }
    }
    panic!("it is held again and again");
}

fn in_flight(machine: &Machine) -> Vec<(String, u64)> {
    let all = machine.metrics_of("haven_endpoint_in_flight");
    all.into_iter().filter(|(_, n)| *n != 0).collect()
}

#[test]
fn all_workers_end_with_what_was_said_last_and_nothing_stays_in_flight() {
    for_each_seed(
        "all_workers_end_with_what_was_said_last_and_nothing_stays_in_flight",
        1_500,
        |seed| {
            let rng = Rc::new(Rng::new(seed));
            let machine = machine(seed);
            machine.cas_failures.set([0, 20][rng.below(2) as usize]);
            let policy = [
                "least_request",
                "round_robin",
                "consistent_hash",
                "random",
                "first",
            ][rng.below(5) as usize];
            let outlier = ["default", "off"][rng.below(2) as usize];
            let config = config(json!({"load_balancer": {"policy": policy},
                "outlier": outlier}));
            let workers = 1 + rng.below(4);
            // What the source says, which changes; and all that it has ever said.
            let truth = Rc::new(RefCell::new((members(0..4), addresses(0..4))));
            let (worker, engine) = start(&machine, &config);
            report(&machine, &engine, &worker, &members(0..4));
            let tasks = (0..workers).map(|_| {
                let (machine, rng) = (Rc::clone(&machine), Rc::clone(&rng));
                let (truth, config) = (Rc::clone(&truth), config.clone());
                Box::new(move || work(&machine, &config, &truth, &rng)) as Box<dyn FnOnce()>
            });
            let faults = Faults {
                pause: 30,
                // All of them are less than the time after which a VM without a tick is taken for lost.
                longest: Nanos::from_millis(60),
                ..Faults::default()
            };
            run(&machine, &rng, faults, tasks.collect());
            machine.cas_failures.set(0);
            assert_eq!(in_flight(&machine), [], "{policy}");
            machine.advance(Nanos::from_secs(60));
            let last = truth.borrow().0.clone();
            report(&machine, &engine, &worker, &last);
            machine.advance(SEC);
            let wanted: BTreeSet<_> = last.members().iter().map(|it| it.address.clone()).collect();
            let (late, engine_of_late) = start(&machine, &config);
            for (worker, engine) in [(&worker, &engine), (&late, &engine_of_late)] {
                engine.tick(worker);
                let used = used(engine, worker);
                assert!(used.is_subset(&wanted), "{policy}: {used:?} of {wanted:?}");
                assert!(!used.is_empty());
                assert!(policy == "first" || policy == "consistent_hash" || used == wanted);
                engine.close(worker);
            }
            assert_eq!(in_flight(&machine), []);
        },
    );
}

/// A worker that sends requests, asks, ticks, and reads a new configuration now and then.
fn work(
    machine: &Rc<Machine>,
    config: &Value,
    truth: &RefCell<(Membership, BTreeSet<String>)>,
    rng: &Rng,
) {
    let (worker, mut engine) = start(machine, config);
    let mut engines = vec![Rc::clone(&engine)];
    let mut open: Vec<Sent> = Vec::new();
    // Answers that are not reported yet.
    let mut heard: Vec<Report> = Vec::new();
    for _ in 0..8 + rng.below(30) {
        match rng.below(12) {
            0..4 => {
                let sent = send(&engine, &worker);
                let sent = sent.expect("no request is refused while endpoints are known");
                let all = truth.borrow();
                assert!(!sent.list.is_empty(), "known from the start");
                assert!(
                    sent.list.iter().all(|it| all.1.contains(it)),
                    "{:?}",
                    sent.list
                );
                drop(all);
                open.push(sent);
            }
            4..7 if !open.is_empty() => {
                let sent = open.swap_remove(rng.below(open.len() as u64) as usize);
                end(sent, &worker, rng);
            }
            7 => engine.tick(&worker),
            8 => {
                let asked = worker.monotonic();
                heard.push(match rng.below(6) {
                    0 => Report {
                        asked,
                        result: Err(Failure::Error("no answer".into())),
                    },
                    1 => said(asked, Membership::default()),
                    _ => said(asked, truth.borrow().0.clone()),
                });
            }
            9 if !heard.is_empty() => {
                let at = rng.below(heard.len() as u64) as usize;
                let heard = heard.swap_remove(at);
                engine.report(&worker, "u", &heard);
            }
            10 => {
                let first = rng.below(30);
                let now = members(first..first + 1 + rng.below(8));
                let mut truth = truth.borrow_mut();
                truth
                    .1
                    .extend(now.members().iter().map(|it| it.address.clone()));
                truth.0 = now;
            }
            // What is under way ends under the old one.
            11 if rng.below(3) == 0 => {
                engine = hosts::engine(&worker, &config.to_string());
                engines.push(Rc::clone(&engine));
            }
            _ => {}
        }
    }
    open.into_iter().for_each(|sent| end(sent, &worker, rng));
    engines.iter().for_each(|engine| engine.close(&worker));
}

#[test]
fn up_and_down_again_loses_no_request_and_keeps_no_place() {
    for policy in [
        "least_request",
        "round_robin",
        "peak_ewma",
        "consistent_hash",
        "random",
    ] {
        let machine = machine(1);
        let config = config(json!({"load_balancer": {"policy": policy}}));
        let workers: Vec<_> = (0..3).map(|_| start(&machine, &config)).collect();
        let rng = Rng::new(7);
        let mut open: Vec<(usize, Sent)> = Vec::new();
        let mut bytes = 0;
        for round in 0..60u64 {
            // 3 → 30 → 3, by the same addresses and, each third time, by others.
            let from = if round % 3 == 2 {
                100 + round * 30 % 400
            } else {
                0
            };
            let count = if round % 2 == 0 { 30 } else { 3 };
            let list = members(from..from + count);
            let (asker, engine) = &workers[rng.below(3) as usize];
            assert_eq!(
                report(&machine, engine, asker, &list),
                Reported::Counted { changed: true }
            );
            for step in 0..40 {
                machine.advance(Nanos::from_millis(50));
                let at = rng.below(3) as usize;
                let (worker, engine) = &workers[at];
                if step % 20 == 19 {
                    workers
                        .iter()
                        .for_each(|(worker, engine)| engine.tick(worker));
                }
                let sent = send(engine, worker).expect("no request is refused");
                // Seen at once: the note of the change costs no more than a look at it.
                assert!(
                    sent.list.iter().all(|it| list.find(it).is_some()),
                    "{policy} {round}: {:?}",
                    sent.list
                );
                open.push((at, sent));
                // Some last for many rounds.
                while open.len() > 200
                    || (!open.is_empty() && rng.below(20) > 0 && open.len() > 100)
                {
                    let (at, sent) = open.swap_remove(rng.below(open.len() as u64) as usize);
                    let first = sent.list[0].clone();
                    answer(sent, &workers[at].0, &first);
                }
            }
            if round == 30 {
                bytes = machine.shared_bytes();
            }
        }
        assert!(
            machine.shared_bytes() < bytes + 40_000,
            "{bytes} {}",
            machine.shared_bytes()
        );
        for (at, sent) in open {
            let first = sent.list[0].clone();
            answer(sent, &workers[at].0, &first);
        }
        for _ in 0..3 {
            machine.advance(SEC);
            workers
                .iter()
                .for_each(|(worker, engine)| engine.tick(worker));
        }
        assert_eq!(in_flight(&machine), [], "{policy}");
        let refused = machine.metrics_of("haven_decisions_total");
        assert!(refused.iter().all(|(_, n)| *n == 0), "{refused:?}");
    }
}

#[test]
fn what_a_lost_vm_had_in_flight_at_an_endpoint_that_is_gone_is_taken_back() {
    let machine = machine(2);
    let config = config(json!({}));
    let (a, b) = (start(&machine, &config), start(&machine, &config));
    report(&machine, &a.1, &a.0, &members(0..2));
    [&a, &b]
        .into_iter()
        .for_each(|(worker, engine)| engine.tick(worker));
    // One of its own, and many of the worker's that is lost.
    let own = send(&a.1, &a.0).unwrap();
    let lost: Vec<_> = (0..40).map(|_| send(&b.1, &b.0).unwrap()).collect();
    [&a, &b]
        .into_iter()
        .for_each(|(worker, engine)| engine.tick(worker));
    report(&machine, &a.1, &a.0, &members(2..4));
    drop(lost);
    drop(b.1);
    for _ in 0..40 {
        machine.advance(SEC);
        a.1.tick(&a.0);
    }
    let first = own.list[0].clone();
    answer(own, &a.0, &first);
    machine.advance(SEC);
    a.1.tick(&a.0);
    assert_eq!(in_flight(&machine), []);
}

#[test]
fn an_address_that_moves_to_another_upstream_is_counted_where_it_was_sent() {
    let machine = machine(3);
    let etcd = |prefix: &str| json!({"endpoints": {"etcd": {"cluster": "etcd", "prefix": prefix}}});
    let config = json!({
        "upstreams": {"u": etcd("/u/"), "v": etcd("/v/")},
        "routes": [
            {"name": "v", "match": {"prefix": "/v"}, "upstream": "v"},
            {"name": "r", "upstream": "u"}]});
    let (worker, engine) = start(&machine, &config);
    let say = |upstream: &str, members: Membership| {
        for _ in 0..2 {
            machine.advance(SEC);
            engine.report(
                &worker,
                upstream,
                &said(worker.monotonic(), members.clone()),
            );
        }
    };
    say("u", members([1, 2]));
    say("v", members([3]));
    let before: Vec<_> = (0..20).map(|_| send(&engine, &worker).unwrap()).collect();
    say("u", members([2]));
    say("v", members([1]));
    engine.tick(&worker);
    assert_eq!(used(&engine, &worker), addresses([2]));
    let gauge = |upstream: &str, n: u64| {
        let name = "haven_endpoint_in_flight";
        machine.metric(&format!(
            "{name};upstream={upstream};endpoint={}",
            address(n)
        ))
    };
    assert!(gauge("u", 1) > 0 && gauge("v", 1) == 0);
    for sent in before {
        let first = sent.list[0].clone();
        answer(sent, &worker, &first);
    }
    engine.tick(&worker);
    assert_eq!((gauge("u", 1), gauge("v", 1)), (0, 0));
    assert_eq!(in_flight(&machine), []);
}

#[test]
fn errors_and_empty_lists_take_nothing_away_and_are_shown_once() {
    let machine = machine(4);
    let config = config(json!({}));
    let (worker, engine) = start(&machine, &config);
    let fail = |failure: Option<Failure>| {
        machine.advance(SEC);
        let result = failure.map_or_else(
            || {
                Ok(Answer {
                    members: Membership::default(),
                    cursor: 0,
                })
            },
            Err,
        );
        let asked = worker.monotonic();
        engine
            .report(&worker, "u", &Report { asked, result })
            .unwrap()
    };
    report(&machine, &engine, &worker, &members(0..3));
    let lines = || {
        let logs = machine.logs();
        logs.into_iter()
            .filter(|(_, line)| line.starts_with("source of"))
            .map(|(_, line)| line)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(), ["source of u: unasked -> ok; endpoints known: 3"]);
    for _ in 0..5 {
        let down = Failure::Error("status 500".into());
        assert_eq!(fail(Some(down)), Reported::Failed);
    }
    for _ in 0..5 {
        assert_eq!(fail(None), Reported::Refused);
    }
    engine.tick(&worker);
    assert_eq!(used(&engine, &worker), addresses(0..3));
    assert_eq!(
        lines()[1..],
        [
            "source of u: ok -> error: status 500; endpoints known: 3",
            "source of u: error -> refused: the list is empty; endpoints known: 3"
        ]
    );
    assert_eq!(machine.metric("haven_discovery_age_seconds;upstream=u"), 10);
    let updates = |result: &str| {
        machine.metric(&format!(
            "haven_discovery_updates_total;upstream=u;result={result}"
        ))
    };
    assert_eq!(["ok", "error", "refused"].map(updates), [1, 5, 5]);
    let document = document(&engine, &worker);
    let u = &document["details"]["u"];
    assert_eq!(
        (&u["source"], &u["source_age"]),
        (&json!("refused"), &json!(10))
    );
    assert_eq!(u["status"], "UP");
    report(&machine, &engine, &worker, &members(0..3));
    assert_eq!(lines().len(), 4);
    // A record that something overwrites takes nothing away either.
    machine.corrupt(|key| key[2] == b'd', b"rubbish");
    engine.tick(&worker);
    assert_eq!(used(&engine, &worker), addresses(0..3));
    report(&machine, &engine, &worker, &members(1..4));
    engine.tick(&worker);
    assert_eq!(used(&engine, &worker), addresses(1..4));
}

fn document(engine: &Rc<Engine>, worker: &Worker) -> Value {
    let stream = SimStream::request("GET", "/readyz", &[]);
    let mut exchange = Exchange::new(Rc::clone(engine));
    exchange.on_request(worker, &stream);
    exchange.on_end(worker);
    let reply = stream.replied().unwrap();
    serde_json::from_slice(reply.body()).unwrap()
}

#[test]
fn with_no_endpoint_known_the_proxy_chooses_and_is_not_ready() {
    let machine = machine(5);
    let config = config(json!({}));
    let (worker, engine) = start(&machine, &config);
    let sent = send(&engine, &worker).unwrap();
    assert_eq!(sent.list, [""; 0]);
    let unready = document(&engine, &worker);
    let u = &unready["details"]["u"];
    assert_eq!(unready["status"], "OUT_OF_SERVICE");
    assert_eq!(
        (&u["status"], &u["source"]),
        (&json!("UNKNOWN"), &json!("unasked"))
    );
    assert_eq!(u["error"], "0 of 0 endpoints available; none is known yet");
    let failed = Failure::Error("no answer".into());
    let asked = worker.monotonic();
    engine.report(
        &worker,
        "u",
        &Report {
            asked,
            result: Err(failed),
        },
    );
    assert_eq!(
        document(&engine, &worker)["details"]["u"]["source"],
        "error"
    );
    report(&machine, &engine, &worker, &members(0..2));
    assert_eq!(used(&engine, &worker), addresses(0..2));
    answer(sent, &worker, "10.0.0.1:80");
    engine.tick(&worker);
    assert_eq!(document(&engine, &worker)["status"], "UP");
    assert_eq!(in_flight(&machine), []);
}

#[test]
fn what_the_source_takes_for_unwell_is_out_and_in_a_panic_is_used() {
    let machine = machine(6);
    let config = config(json!({}));
    let (worker, engine) = start(&machine, &config);
    let verdicts = |list: &[Verdict]| {
        let list = list
            .iter()
            .enumerate()
            .map(|(n, verdict)| (n as u64, *verdict));
        report(&machine, &engine, &worker, &with_verdicts(list));
        used(&engine, &worker)
    };
    let (well, degraded, draining) = (Verdict::Healthy, Verdict::Degraded, Verdict::Draining);
    let outlier = Verdict::Unhealthy(Cause::Outlier);
    assert_eq!(
        verdicts(&[well, outlier, degraded, draining]),
        addresses([0, 2])
    );
    let healthy = |n| {
        machine.metric(&format!(
            "haven_endpoint_healthy;upstream=u;endpoint={}",
            address(n)
        ))
    };
    assert_eq!([0, 1, 2, 3].map(healthy), [1, 0, 1, 0]);
    // Less than half of them: all are used again, as with checks and breakers.
    assert_eq!(
        verdicts(&[well, outlier, outlier, draining]),
        addresses(0..4)
    );
    assert_eq!(machine.metric("haven_upstream_panic;upstream=u"), 1);
    assert_eq!(verdicts(&[outlier, outlier]), addresses(0..2));
    let u = &document(&engine, &worker)["details"]["u"];
    assert_eq!(
        u["error"],
        "0 of 2 endpoints available; outlier, by its source"
    );
    assert_eq!(verdicts(&[well, well]), addresses(0..2));
    assert_eq!([0, 1, 2, 3].map(healthy), [1, 1, 2, 2], "2: it is gone");
}

#[test]
fn a_request_costs_no_host_call_more_than_with_a_list() {
    let list: Vec<_> = (0..3).map(|n| json!({"address": address(n)})).collect();
    for policy in [
        "least_request",
        "round_robin",
        "consistent_hash",
        "random",
        "first",
    ] {
        let calls = |named: bool| {
            let machine = machine(8);
            let mut config = config(json!({"load_balancer": {"policy": policy}}));
            if !named {
                config["upstreams"]["u"]["endpoints"] = json!(list);
            }
            let (worker, engine) = start(&machine, &config);
            if named {
                report(&machine, &engine, &worker, &members(0..3));
            } else {
                machine.advance(Nanos::from_millis(200));
                worker.monotonic();
            }
            engine.tick(&worker);
            let before = machine.calls();
            for _ in 0..1_000 {
                machine.advance(Nanos::from_millis(1));
                let sent = send(&engine, &worker).unwrap();
                let first = sent.list[0].clone();
                answer(sent, &worker, &first);
            }
            machine.calls() - before
        };
        let (named, listed) = (calls(true), calls(false));
        assert!(
            named <= listed,
            "{policy}: {named} calls, with a list {listed}"
        );
    }
}

#[test]
fn what_is_new_ramps_and_what_was_there_from_the_start_does_not() {
    let machine = machine(9);
    let config = config(json!({"load_balancer": {"policy": "random", "slow_start": "60s"}}));
    let (a, b) = (start(&machine, &config), start(&machine, &config));
    report(&machine, &a.1, &a.0, &members(0..4));
    let share = |(worker, engine): &(Worker, Rc<Engine>), n: u64| {
        engine.tick(worker);
        let mut hits = 0;
        for _ in 0..2_000 {
            let sent = send(engine, worker).unwrap();
            hits += u32::from(sent.list[0] == address(n));
            let first = sent.list[0].clone();
            answer(sent, worker, &first);
        }
        hits
    };
    assert!((400..600).contains(&share(&a, 3)));
    machine.advance(SEC);
    report(&machine, &a.1, &a.0, &members(0..5));
    // A tenth of a fifth, for whoever reads the record, and whenever it began.
    let late = start(&machine, &config);
    for worker in [&a, &b, &late] {
        let new = share(worker, 4);
        assert!((20..80).contains(&new), "{new}");
    }
    machine.advance(Nanos::from_secs(60));
    for worker in [&a, &b, &late] {
        let grown = share(worker, 4);
        assert!((330..470).contains(&grown), "{grown}");
    }
}

#[test]
fn all_workers_lead_a_key_to_the_same_endpoint_whatever_came_first() {
    let machine = machine(10);
    let config = config(json!({"load_balancer": {"policy": "consistent_hash",
        "hash_key": [{"header": "x-key"}]}}));
    let early = start(&machine, &config);
    for list in [
        members(5..15),
        members(0..12),
        members([3, 20, 7, 8, 9, 10, 11]),
    ] {
        report(&machine, &early.1, &early.0, &list);
        early.1.tick(&early.0);
    }
    let late = start(&machine, &config);
    let owner = |(worker, engine): &(Worker, Rc<Engine>), key: u32| {
        let key = key.to_string();
        let stream = SimStream::request("GET", "/", &[("x-key", key.as_bytes())]);
        let mut exchange = Exchange::new(Rc::clone(engine));
        exchange.on_request(worker, &stream);
        exchange.on_end(worker);
        stream.request_header("x-haven-upstream").unwrap()
    };
    let mut owners = BTreeSet::new();
    for key in 0..200 {
        let (one, other) = (owner(&early, key), owner(&late, key));
        assert_eq!(one.split(',').next(), other.split(',').next(), "{key}");
        owners.extend(one.split(',').next().map(str::to_owned));
    }
    assert_eq!(owners, addresses([3, 20, 7, 8, 9, 10, 11]));
}

#[test]
fn the_first_is_the_same_in_all_workers() {
    let machine = machine(11);
    let config = config(json!({"load_balancer": {"policy": "first"}}));
    let early = start(&machine, &config);
    for list in [members(5..9), members(3..7), members(1..5)] {
        report(&machine, &early.1, &early.0, &list);
        early.1.tick(&early.0);
    }
    let late = start(&machine, &config);
    for (worker, engine) in [&early, &late] {
        let sent = send(engine, worker).unwrap();
        assert_eq!(sent.list, [1, 2, 3].map(address));
    }
}

#[test]
fn who_was_held_up_changes_nothing_and_a_clock_that_steps_back_stops_nothing() {
    let machine = machine(12);
    let config = config(json!({}));
    let (worker, engine) = start(&machine, &config);
    let early = worker.monotonic();
    report(&machine, &engine, &worker, &members(0..3));
    let late = engine.report(&worker, "u", &said(early, members(0..6)));
    assert_eq!(late, Some(Reported::Late));
    engine.tick(&worker);
    assert_eq!(used(&engine, &worker), addresses(0..3));
    machine.set_clock(Moment::from_secs(5));
    let counted = report(&machine, &engine, &worker, &members(0..4));
    assert_eq!(counted, Reported::Counted { changed: true });
    engine.tick(&worker);
    assert_eq!(used(&engine, &worker), addresses(0..4));
    assert_eq!(machine.metric("haven_discovery_age_seconds;upstream=u"), 0);
}

#[test]
fn ten_thousand_are_the_most_of_all_upstreams() {
    let machine = machine(13);
    let upstreams: serde_json::Map<_, _> = (0..11)
        .map(|n| {
            let source = json!({"etcd": {"cluster": "etcd", "prefix": format!("/{n}/")}});
            (
                format!("u{n}"),
                json!({"endpoints": source, "outlier": "off"}),
            )
        })
        .collect();
    let config = json!({"upstreams": upstreams, "routes": []});
    let (worker, engine) = start(&machine, &config);
    for n in 0..11u64 {
        let list = members(0..if n == 9 { 999 } else { 1_000 });
        let asked = worker.monotonic();
        let reported = engine.report(&worker, &format!("u{n}"), &said(asked, list));
        let wanted = if n < 10 {
            Reported::Counted { changed: true }
        } else {
            Reported::Refused
        };
        assert_eq!(reported, Some(wanted), "{n}");
    }
    let logs = machine.logs();
    let line = &logs.last().unwrap().1;
    assert!(line.contains("more than 10000 endpoints"), "{line}");
    let one = engine.report(&worker, "u10", &said(worker.monotonic(), members(0..1)));
    assert_eq!(one, Some(Reported::Counted { changed: true }));
}

#[test]
fn a_reader_of_the_record_alone_knows_what_all_workers_know() {
    let machine = machine(14);
    let config = config(json!({}));
    let (worker, engine) = start(&machine, &config);
    report(&machine, &engine, &worker, &members(0..3));
    machine.advance(SEC);
    report(&machine, &engine, &worker, &members(1..4));
    let other = Worker(Rc::clone(&machine));
    let Known {
        status,
        members: known,
        ..
    } = SourceRecord::new("u").read(&other);
    assert_eq!((status.version, known), (machine.now().0, members(1..4)));
}

#[test]
fn many_new_ones_are_taken_in_steps_and_all_at_once() {
    let machine = machine(16);
    let config = config(json!({"load_balancer": {"policy": "round_robin"}}));
    let (a, b) = (start(&machine, &config), start(&machine, &config));
    report(&machine, &a.1, &a.0, &members(0..3));
    assert_eq!(used(&a.1, &a.0).len(), 3);
    let all = members(0..1_000);
    report(&machine, &a.1, &a.0, &all);
    let (mut metrics, mut steps, mut before) = (3, 0, BTreeSet::new());
    for _ in 0..1_000 {
        machine.advance(Nanos::from_millis(1));
        let sent = send(&a.1, &a.0).unwrap();
        before.extend(sent.list.iter().cloned());
        let first = sent.list[0].clone();
        answer(sent, &a.0, &first);
        let defined = machine.metrics_of("haven_endpoint_healthy").len();
        assert!(defined - metrics <= 32, "{defined}");
        steps += u32::from(defined > metrics);
        metrics = defined;
        if defined == 1_000 {
            break;
        }
        assert!(before.len() <= 3, "none before all");
    }
    assert!((31..40).contains(&steps), "{steps}");
    for _ in 0..400 {
        machine.advance(Nanos::from_millis(10));
        let sent = send(&a.1, &a.0).unwrap();
        before.extend(sent.list.iter().cloned());
        let first = sent.list[0].clone();
        answer(sent, &a.0, &first);
    }
    assert!(before.len() > 400, "{}", before.len());
    // One without requests takes some seconds.
    (0..4).for_each(|_| b.1.tick(&b.0));
    assert!(used(&b.1, &b.0).len() > 400);
    // And one that begins, none.
    let late = start(&machine, &config);
    assert!(used(&late.1, &late.0).len() > 400);
}

#[test]
fn checks_follow_the_endpoints() {
    let machine = machine(17);
    let config = config(json!({"load_balancer": {"panic_threshold": 0},
        "health_check": {"interval": "500ms", "timeout": "200ms"}}));
    let (worker, engine) = start(&machine, &config);
    // Who is checked within three seconds; the fifth answers badly.
    let checked = || {
        let mut checked = BTreeSet::new();
        for _ in 0..150 {
            machine.advance(Nanos::from_millis(20));
            engine.check(&worker, machine.now());
            for call in machine.take_outgoing() {
                let Some(address) = call.header("x-haven-upstream").map(str::to_owned) else {
                    continue;
                };
                let status = if address == self::address(4) {
                    "503"
                } else {
                    "200"
                };
                let headers = [(":status", status), ("x-envoy-upstream-service-time", "1")];
                let answer = CallAnswer::Http {
                    headers: HeaderMap::from_pairs(&headers),
                    body: Vec::new(),
                    size: 0,
                };
                engine.answered(&worker, call.id, &answer, machine.now());
                checked.insert(address);
            }
        }
        engine.tick(&worker);
        checked
    };
    assert_eq!(checked(), BTreeSet::new());
    report(&machine, &engine, &worker, &members(0..3));
    engine.tick(&worker);
    assert_eq!(checked(), addresses(0..3));
    report(&machine, &engine, &worker, &members(2..5));
    engine.tick(&worker);
    assert_eq!(checked(), addresses(2..5));
    assert_eq!(used(&engine, &worker), addresses(2..4));
    // Who has an address again is not who had it.
    report(&machine, &engine, &worker, &members(2..4));
    engine.tick(&worker);
    checked();
    report(&machine, &engine, &worker, &members(2..5));
    engine.tick(&worker);
    engine.check(&worker, machine.now());
    engine.tick(&worker);
    assert_eq!(used(&engine, &worker), addresses(2..5));
    assert_eq!(checked(), addresses(2..5));
    assert_eq!(used(&engine, &worker), addresses(2..4));
}
