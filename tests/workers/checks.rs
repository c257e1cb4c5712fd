//! Active checks over simulated workers: there is one checker, there is always one, and all workers
//! act on what it finds.

use super::hosts;
use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::headers::HeaderMap;
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::engine::Engine;
use haven::engine::chain::Exchange;
use haven::host::sim::{HostKind, Machine, Outgoing, SimStream, Worker};
use haven::host::{CallAnswer, Clock};
use haven::policy::lease::{Candidate, LEASE, Lease, Role};
use haven::store::{self, RecordKey, RecordKind, Step};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const LEASE_KEY: (RecordKind, u64, u32) = (RecordKind::HealthLease, 1, 0);

/// What a candidate held: by whose word, from when to when.
type Held = (u64, u32, Moment, Moment);

#[test]
fn of_one_configuration_no_two_hold_the_lease_at_once() {
    for_each_seed(
        "of_one_configuration_no_two_hold_the_lease_at_once",
        20_000,
        |seed| {
            let rng = Rng::new(seed);
            let machine = Machine::new(
                if seed.is_multiple_of(2) {
                    HostKind::Envoy
                } else {
                    HostKind::Nginx
                },
                seed,
            );
            machine.cas_failures.set([0, 20][rng.below(2) as usize]);
            let held: Rc<RefCell<Vec<Held>>> = Rc::default();
            let workers = 2 + rng.below(4);
            let tasks = (0..workers).map(|owner| {
                let (worker, held) = (Worker(Rc::clone(&machine)), Rc::clone(&held));
                let fingerprint = 1 + owner % (1 + seed % 2);
                Box::new(move || {
                    let mut me = Candidate {
                        owner: owner + 1,
                        fingerprint,
                        generation: None,
                    };
                    for _ in 0..8 {
                        let now = worker.monotonic();
                        let (kind, of, index) = LEASE_KEY;
                        let taken =
                            store::update(&worker, &RecordKey::new(kind, of, index), |bytes| {
                                let (role, generation, new) = Lease::decode(bytes).step(me, now);
                                match new {
                                    Some(lease) => {
                                        lease.encode(bytes);
                                        Step::Write((role, generation))
                                    }
                                    None => Step::Keep((role, generation)),
                                }
                            });
                        if let Ok((role, generation)) = taken {
                            me.generation = Some(generation);
                            if let Role::Holder(until) = role {
                                held.borrow_mut().push((me.owner, generation, now, until));
                            }
                        }
                    }
                }) as Box<dyn FnOnce()>
            });
            let faults = Faults {
                pause: 100,
                longest: Nanos::from_millis(900),
                lost_vm: 3,
                ..Faults::default()
            };
            run(&machine, &rng, faults, tasks.collect());
            let held = held.borrow();
            assert!(!held.is_empty());
            for (at, a) in held.iter().enumerate() {
                for b in &held[at + 1..] {
                    let apart = a.3 <= b.2 || b.3 <= a.2;
                    assert!(
                        a.0 == b.0 || a.1 != b.1 || apart,
                        "two hold it at once: {a:?} {b:?}"
                    );
                }
            }
        },
    );
}

const ENDPOINTS: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

fn config(path: &str) -> Value {
    let endpoints: Vec<Value> = ENDPOINTS
        .iter()
        .map(|address| json!({"address": address}))
        .collect();
    json!({
        "upstreams": {"u": {"endpoints": endpoints, "load_balancer": {"panic_threshold": 0},
            "health_check": {"path": path, "interval": "500ms", "timeout": "200ms"}}},
        "routes": [{"name": "r", "upstream": "u"}]})
}

/// A root context: an engine that ticks. An old one beside a newer one of the same VM is another.
struct Context {
    vm: usize,
    engine: Rc<Engine>,
    worker: Worker,
    next: Moment,
    look: Moment,
}

/// A network of endpoints that are well or dead, and the workers that ask them.
struct World {
    machine: Rc<Machine>,
    rng: Rng,
    contexts: Vec<Context>,
    /// Calls under way, with the place of their context and when the answer comes.
    under_way: Vec<(Moment, usize, Outgoing)>,
    dead: [bool; 3],
    /// Until when a VM stands still.
    stalled: BTreeMap<usize, Moment>,
    /// Who asked whom, when.
    asked: Vec<(Moment, usize, usize, String)>,
    lost: Vec<usize>,
    /// Contexts from this place on are deleted.
    deleted: usize,
}

impl World {
    fn new(seed: u64, vms: usize) -> Self {
        let rng = Rng::new(seed);
        let machine = Machine::new(
            if seed.is_multiple_of(2) {
                HostKind::Envoy
            } else {
                HostKind::Nginx
            },
            seed,
        );
        machine.cas_failures.set([0, 10][rng.below(2) as usize]);
        let mut world = Self {
            machine,
            rng,
            contexts: Vec::new(),
            under_way: Vec::new(),
            dead: [false; 3],
            stalled: BTreeMap::new(),
            asked: Vec::new(),
            lost: Vec::new(),
            deleted: usize::MAX,
        };
        (0..vms).for_each(|vm| world.add(vm, "/health"));
        world
    }

    fn add(&mut self, vm: usize, path: &str) {
        let worker = Worker(Rc::clone(&self.machine));
        let engine = hosts::engine(&worker, &config(path).to_string());
        let next = self.machine.now().plus(Nanos(self.rng.below(50_000_000)));
        self.contexts.push(Context {
            vm,
            engine,
            worker,
            next,
            look: next,
        });
    }

    fn is_gone(&self, at: usize) -> bool {
        at >= self.deleted || self.lost.contains(&self.contexts[at].vm)
    }

    fn stand_still(&self, vm: usize) -> Moment {
        self.stalled.get(&vm).copied().unwrap_or_default()
    }

    /// Lets all that happens until this moment happen.
    fn run_until(&mut self, end: Moment) {
        for _ in 0..1_000_000 {
            let tick = (0..self.contexts.len())
                .filter(|at| !self.is_gone(*at))
                .map(|at| {
                    (
                        self.contexts[at]
                            .next
                            .max(self.stand_still(self.contexts[at].vm)),
                        at,
                    )
                })
                .min();
            let answer = (0..self.under_way.len())
                .map(|at| {
                    (
                        self.under_way[at]
                            .0
                            .max(self.stand_still(self.contexts[self.under_way[at].1].vm)),
                        at,
                    )
                })
                .min();
            let tick_at = tick.map_or(Moment::MAX, |(at, _)| at);
            let answer_at = answer.map_or(Moment::MAX, |(at, _)| at);
            let at = tick_at.min(answer_at);
            if at > end {
                self.machine.advance(end.since(self.machine.now()));
                return;
            }
            self.machine.advance(at.since(self.machine.now()));
            if answer_at <= tick_at {
                self.answer(answer.unwrap().1);
            } else {
                self.tick(tick.unwrap().1);
            }
        }
        panic!("it ticks without end");
    }

    fn tick(&mut self, at: usize) {
        let now = self.machine.now();
        let context = &mut self.contexts[at];
        if now >= context.look {
            context.look = now.plus(Nanos::from_secs(1));
            context.engine.tick(&context.worker);
        }
        let next = context.engine.check(&context.worker, now).unwrap();
        context.next = next
            .max(now.plus(Nanos::from_millis(1)))
            .min(now.plus(Nanos::from_secs(1)));
        self.send(at);
    }

    /// What was started goes on its way.
    fn send(&mut self, at: usize) {
        let now = self.machine.now();
        for call in self.machine.take_outgoing() {
            let endpoint = ENDPOINTS
                .iter()
                .position(|it| call.header("x-haven-upstream") == Some(it))
                .unwrap();
            self.asked
                .push((now, at, endpoint, call.header(":path").unwrap().to_owned()));
            let takes = if self.dead[endpoint] {
                call.timeout
            } else {
                Nanos(self.rng.below(20_000_000))
            };
            self.under_way.push((now.plus(takes), at, call));
        }
    }

    fn answer(&mut self, at: usize) {
        let (_, context, call) = self.under_way.swap_remove(at);
        if self.is_gone(context) {
            return;
        }
        let it = &self.contexts[context];
        let now = self.machine.now();
        let late = now.since(call.at) >= call.timeout;
        let headers = if late {
            HeaderMap::from_pairs(&[(":status", "504")])
        } else {
            HeaderMap::from_pairs(&[(":status", "200"), ("x-envoy-upstream-service-time", "1")])
        };
        it.engine.answered(
            &it.worker,
            call.id,
            &CallAnswer::Http {
                headers,
                body: Vec::new(),
                size: 0,
            },
            now,
        );
        let next = it.engine.check(&it.worker, now).unwrap();
        self.contexts[context].next = self.contexts[context]
            .next
            .min(next.max(now.plus(Nanos::from_millis(1))));
        self.send(context);
    }

    fn run_for(&mut self, time: Nanos) {
        self.run_until(self.machine.now().plus(time));
    }

    /// Endpoints that a worker of this context gives requests to.
    fn used(&self, at: usize) -> Vec<bool> {
        let context = &self.contexts[at];
        let mut used = vec![false; 3];
        for _ in 0..60 {
            let stream = SimStream::request("GET", "/", &[]);
            let mut exchange = Exchange::new(Rc::clone(&context.engine));
            exchange.on_request(&context.worker, &stream);
            let list = stream
                .request_header("x-haven-upstream")
                .unwrap_or_default();
            for (used, address) in used.iter_mut().zip(ENDPOINTS) {
                *used |= list.split(',').any(|it| it == address);
            }
            exchange.on_end(&context.worker);
        }
        used
    }

    /// The context that has asked last.
    fn checker(&self) -> usize {
        self.asked.last().unwrap().1
    }

    /// No one goes back to a checker that was replaced before the lease of its successor has run
    /// out.
    fn assert_one_checker(&self) {
        let mut since: Vec<(usize, Moment)> = Vec::new();
        for (at, context, ..) in &self.asked {
            match since.last() {
                Some((last, _)) if last == context => {}
                _ => {
                    if let [.., (before, _), (_, taken)] = since[..] {
                        assert!(
                            before != *context || at.since(taken) >= LEASE,
                            "{context} asks again at {at:?}, replaced at {taken:?}"
                        );
                    }
                    since.push((*context, *at));
                }
            }
        }
    }

    /// No endpoint goes unasked for longer than this, from then on.
    fn assert_no_gap(&self, from: Moment, longest: Nanos) {
        for endpoint in 0..3 {
            let mut last = from;
            let moments = self
                .asked
                .iter()
                .filter(|(_, _, asked, _)| *asked == endpoint)
                .map(|(at, ..)| *at);
            for at in moments.chain([self.machine.now()]).filter(|at| *at >= from) {
                assert!(
                    at.since(last) <= longest,
                    "endpoint {endpoint}: no check from {last:?} to {at:?}"
                );
                last = at;
            }
        }
    }
}

/// Three seconds to be taken over, and an interval with its jitter.
const LONGEST_GAP: Nanos = Nanos::from_millis(3_600);

#[test]
fn checks_go_on_when_the_checker_is_lost_or_stands_still() {
    for_each_seed(
        "checks_go_on_when_the_checker_is_lost_or_stands_still",
        400,
        |seed| {
            let mut world = World::new(seed, 2 + (seed % 4) as usize);
            let from = world.machine.now();
            world.run_for(Nanos::from_secs(3));
            let checker = world.checker();
            let vm = world.contexts[checker].vm;
            if world.rng.below(2) == 0 {
                world.lost.push(vm);
            } else {
                let until = world
                    .machine
                    .now()
                    .plus(Nanos(world.rng.below(8_000_000_000)));
                world.stalled.insert(vm, until);
            }
            let victim = world.rng.below(3) as usize;
            world.dead[victim] = true;
            world.run_for(Nanos::from_secs(12));
            world.assert_one_checker();
            world.assert_no_gap(from, LONGEST_GAP);
            for at in (0..world.contexts.len()).filter(|at| !world.is_gone(*at)) {
                let used = world.used(at);
                assert!(
                    !used[victim] && used.iter().filter(|used| **used).count() == 2,
                    "worker {at}: {used:?}"
                );
            }
            world.dead[victim] = false;
            world.run_for(Nanos::from_secs(5));
            for at in (0..world.contexts.len()).filter(|at| !world.is_gone(*at)) {
                assert_eq!(world.used(at), [true; 3], "worker {at}");
            }
            // One at a time: each of three every 450 ms at the most.
            let last = world.machine.now().minus(Nanos::from_secs(3));
            let asked = world.asked.iter().filter(|(at, ..)| *at > last).count();
            assert!((12..=21).contains(&asked), "{asked} checks in 3 s");
        },
    );
}

#[test]
fn a_newer_configuration_takes_over_and_the_older_does_not_come_back() {
    for_each_seed(
        "a_newer_configuration_takes_over_and_the_older_does_not_come_back",
        300,
        |seed| {
            let vms = 2 + (seed % 4) as usize;
            let mut world = World::new(seed, vms);
            let from = world.machine.now();
            world.run_for(Nanos::from_secs(2));
            for vm in 0..vms {
                world.add(vm, "/new");
                let pause = Nanos(world.rng.below(30_000_000));
                world.run_for(pause);
            }
            world.run_for(Nanos::from_secs(1));
            let updated = world.machine.now();
            // The new checker's VM is lost, with both of its contexts: the next is of the newer
            // kind again.
            let vm = world.contexts[world.checker()].vm;
            world.lost.push(vm);
            world.run_for(Nanos::from_secs(10));
            world.assert_no_gap(from, LONGEST_GAP);
            let old = world
                .asked
                .iter()
                .filter(|(at, .., path)| *at > updated && path == "/health")
                .count();
            assert_eq!(old, 0, "the old configuration asks");
            // An update that was taken back before it ran: all newer contexts are gone, and the
            // older ones go on after a while.
            world.deleted = vms;
            world.run_for(Nanos::from_secs(10));
            assert_eq!(world.asked.last().unwrap().3, "/health");
            assert!(world.machine.now().since(world.asked.last().unwrap().0) < Nanos::from_secs(1));
        },
    );
}

#[test]
fn a_cluster_that_is_not_there_is_asked_for_again_and_nothing_is_known_meanwhile() {
    let mut world = World::new(4, 2);
    world.machine.no_clusters.set(true);
    world.dead = [false, true, false];
    world.run_for(Nanos::from_secs(5));
    assert_eq!((world.asked.len(), world.used(0)), (0, vec![true; 3]));
    let lines_written = world
        .machine
        .logs()
        .iter()
        .filter(|(_, line)| line.contains("nobody can be asked"))
        .count();
    assert_eq!(lines_written, 1, "once, not in each tick");
    world.machine.no_clusters.set(false);
    world.run_for(Nanos::from_secs(3));
    assert_eq!(world.used(0), [true, false, true]);
    assert_eq!(world.used(1), [true, false, true]);
    // Gone again: what was known is too old after three intervals.
    world.machine.no_clusters.set(true);
    world.run_for(Nanos::from_secs(6));
    assert_eq!(world.used(0), [true; 3]);
}
