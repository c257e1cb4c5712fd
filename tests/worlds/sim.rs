//! The run of a world: one event after the other, in simulated time.

use crate::draw::{Draw, MS, SECOND, Time};
use crate::envoy::Flight;
use crate::fault::{Reach, State, edges, state};
use crate::proxy::{Haven, Steer, Verdict};
use crate::record::{End, Record, Run, Sample};
use crate::support::slots::{Job, Slots};
use crate::world::{Arrival, CONNECT_TIMEOUT, Fate, World};
use haven::host::sim::Outgoing;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The way from the proxy to an endpoint, or back.
pub const HOP: Time = MS / 10;

/// How far samples of a watched run are apart.
pub const SAMPLE: Time = 100 * MS;

/// Whose work an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A try of a request: the request's number, the try's.
    Try(usize, u32),
    /// A health check: the number of the call.
    Check(usize),
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The next request comes.
    Arrive,
    /// A try has its connection, or has found none.
    Connected(usize, u32, bool),
    /// A try has had its time.
    PerTry(usize, u32),
    /// A request has had its time.
    Whole(usize),
    /// The pause after a try is over.
    Again(usize, u32),
    /// An endpoint has done some work.
    Done(usize, Owner),
    /// An answer to a try has come back.
    Answered(usize, u32, u16),
    /// The endpoint of a try has gone away.
    Reset(usize, u32),
    /// A client hangs up.
    HangUp(usize),
    /// A fault begins or ends.
    Edge,
    /// A VM's periodic look.
    Tick(usize),
    /// A VM looks for checks that are due.
    Look(usize),
    /// A check is answered, with this status, by the endpoint or by the proxy.
    Checked(usize, u16, bool),
    /// A picture is taken.
    Sample,
}

/// A health check under way.
struct Check {
    vm: usize,
    call: Option<Outgoing>,
    endpoint: usize,
}

/// A world in motion.
pub struct Sim<'w> {
    /// The world.
    pub world: &'w World,
    /// Tells repetitions apart.
    pub noise: u64,
    /// Tells apart what chance makes of the same requests.
    chance: u64,
    /// The moment.
    pub now: Time,
    /// Without haven: plain Envoy.
    pub haven: Option<Haven>,
    /// Requests, by number.
    pub flights: Vec<Flight>,
    /// The endpoints.
    pub servers: Vec<Slots<Owner>>,
    /// How they are.
    pub states: Vec<State>,
    /// Connections to each that are free.
    pub idle: Vec<usize>,
    /// Where each worker's round robin stands.
    pub rotation: Vec<usize>,
    /// Requests that Envoy has sent on.
    pub sent: usize,
    /// What came of the requests.
    pub run: Run,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    serial: u64,
    arrivals: Vec<Arrival>,
    open: usize,
    checks: Vec<Check>,
    looks: Vec<Time>,
}

/// Runs a world; without a configuration it is plain Envoy. `watch` takes samples.
pub fn run(world: &World, config: Option<&Value>, noise: u64, watch: bool) -> Run {
    run_by_chance(world, config, [noise, noise], watch)
}

/// The same with another chance: which worker gets a request, where round robin stands, when
/// timers run and what haven draws.
pub fn run_by_chance(
    world: &World,
    config: Option<&Value>,
    [noise, chance]: [u64; 2],
    watch: bool,
) -> Run {
    let arrivals = world.arrivals(noise);
    let haven = config
        .map(|config| Haven::new(config, world.workers, world.endpoints, world.seed ^ chance));
    let draw = Draw::of(&[world.seed, chance, 3]);
    let start = |_| draw.count(0, world.endpoints - 1);
    let mut sim = Sim {
        world,
        noise,
        chance,
        now: 0,
        flights: Vec::with_capacity(arrivals.len()),
        servers: (0..world.endpoints)
            .map(|_| Slots::new(world.slots, world.queue))
            .collect(),
        states: (0..world.endpoints)
            .map(|at| state(&world.faults, at, 0))
            .collect(),
        idle: vec![0; world.endpoints],
        rotation: (0..world.workers).map(start).collect(),
        sent: 0,
        run: Run::default(),
        events: BinaryHeap::new(),
        serial: 0,
        open: 0,
        checks: Vec::new(),
        looks: vec![Time::MAX; haven.as_ref().map_or(0, Haven::vms)],
        arrivals,
        haven,
    };
    if let Some(first) = sim.arrivals.first() {
        sim.at(first.at, Event::Arrive);
    }
    edges(&world.faults)
        .iter()
        .for_each(|at| sim.at(*at, Event::Edge));
    // The proxy has run for long: any moment between two checks may be the world's first.
    let interval = |config: &Value| {
        let text = config["upstreams"]["u"]["health_check"]["interval"].as_str()?;
        text.strip_suffix('s')?.parse::<Time>().ok()
    };
    let interval = config.and_then(interval).unwrap_or(0) * SECOND;
    let first = (draw.unit() * interval as f64) as Time;
    for vm in 0..sim.looks.len() {
        // Timers of workers do not run in step.
        sim.at(1 + draw.gap(20.0) % (500 * MS), Event::Tick(vm));
        sim.look_at(vm, 1 + first + draw.gap(20.0) % (500 * MS));
    }
    if watch {
        sim.at(SAMPLE, Event::Sample);
    }
    while let Some(Reverse((at, _, event))) = sim.events.pop() {
        if sim.open == 0 && sim.flights.len() == sim.arrivals.len() && at > world.end {
            break;
        }
        sim.now = at;
        if let Some(haven) = &sim.haven {
            haven.set_clock(at);
        }
        sim.on(event);
    }
    if let Some(haven) = &sim.haven {
        // Work that was given up counts for a while.
        haven.set_clock(sim.now + 6 * SECOND);
        for vm in 0..haven.vms() {
            haven.tick(vm);
        }
        let gauges = ["haven_endpoint_in_flight", "haven_concurrency_in_flight"];
        sim.run.left = gauges.iter().flat_map(|name| haven.metrics(name)).collect();
    }
    sim.run
}

impl Sim<'_> {
    /// Lets an event happen at this moment.
    pub fn at(&mut self, at: Time, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, event)));
    }

    /// Lets an event happen after this time.
    pub fn after(&mut self, time: Time, event: Event) {
        self.at(self.now + time, event);
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Connected(id, of, well) => self.connected(id, of, well),
            Event::PerTry(id, of) => self.try_is_over(id, of),
            Event::Whole(id) => self.time_is_over(id),
            Event::Again(id, of) => self.again(id, of),
            Event::Answered(id, of, status) => self.answered(id, of, status),
            Event::Reset(id, of) => self.reset(id, of),
            Event::HangUp(id) => self.hang_up(id),
            Event::Done(endpoint, owner) => self.done(endpoint, owner),
            Event::Edge => self.edge(),
            Event::Tick(vm) => {
                let next = self.haven.as_ref().unwrap().tick(vm);
                self.after(next, Event::Tick(vm));
            }
            Event::Look(vm) => self.look(vm),
            Event::Checked(check, status, own) => self.checked(check, status, own),
            Event::Sample => self.sample(),
        }
    }

    /// A request comes, and runs through the chain.
    fn arrive(&mut self) {
        let id = self.flights.len();
        let arrival = self.arrivals[id];
        if let Some(next) = self.arrivals.get(id + 1) {
            self.at(next.at, Event::Arrive);
        }
        let (route, client) = (
            &self.world.routes[arrival.route],
            &self.world.clients[arrival.client],
        );
        let deadline = self.world.deadline(&arrival);
        let by = if client.one_connection {
            [arrival.client as u64, 4]
        } else {
            [id as u64, 1]
        };
        let worker = Draw::of(&[self.world.seed, self.chance, by[0], by[1]])
            .count(0, self.world.workers - 1);
        let (post, timeout) = (route.post, route.timeout);
        if client.hangs_up {
            // The proxy hears of it a little later.
            self.after(deadline + HOP, Event::HangUp(id));
        }
        self.open += 1;
        self.flights.push(Flight::new(worker));
        self.run.records.push(Record::new(arrival, deadline, post));
        let Some(haven) = &self.haven else {
            let steer = Steer {
                timeout: Some(timeout),
                ..Steer::default()
            };
            return self.send(id, steer);
        };
        let path = format!("/r{}/{}", arrival.route, id % 20);
        let left = client.says.then_some(deadline);
        let (held, verdict) = haven.request(worker, post, &path, arrival.client, left);
        self.flights[id].held = Some(held);
        match verdict {
            Verdict::Send(mut steer) => {
                steer.timeout.get_or_insert(timeout);
                self.send(id, steer);
            }
            Verdict::Reply(reply) => self.end(id, End::of_reply(&reply)),
        }
    }

    /// A request is over.
    pub fn end(&mut self, id: usize, end: End) {
        let flight = &mut self.flights[id];
        if let Some((haven, held)) = self.haven.as_ref().zip(flight.held.take()) {
            haven.end(held);
        }
        assert!(!flight.over, "request {id} has ended twice");
        flight.over = true;
        self.open -= 1;
        let record = &mut self.run.records[id];
        record.ended = Some(self.now);
        record.end = match end {
            End::Useful if self.now + HOP > record.at + record.deadline => End::Late,
            other => other,
        };
        record.tries = flight.tries;
        if !flight.tried.is_empty() {
            self.sent -= 1;
        }
    }

    /// Work that endpoints have begun will be done.
    pub fn begun(&mut self, endpoint: usize, begun: &[(Owner, Time)]) {
        for (owner, at) in begun {
            self.at(*at, Event::Done(endpoint, *owner));
        }
    }

    fn done(&mut self, endpoint: usize, owner: Owner) {
        let mut begun = Vec::new();
        if !self.servers[endpoint].finish(self.now, owner, &mut begun) {
            return;
        }
        self.begun(endpoint, &begun);
        if self.states[endpoint].reach == Reach::Lost {
            return;
        }
        match owner {
            Owner::Try(id, of) => self.after(HOP, Event::Answered(id, of, 200)),
            Owner::Check(check) => self.after(HOP, Event::Checked(check, 200, true)),
        }
    }

    fn edge(&mut self) {
        for endpoint in 0..self.world.endpoints {
            let new = state(&self.world.faults, endpoint, self.now);
            let old = std::mem::replace(&mut self.states[endpoint], new);
            if new.reach == Reach::Dead && old.reach != Reach::Dead {
                self.idle[endpoint] = 0;
                for owner in self.servers[endpoint].kill() {
                    match owner {
                        Owner::Try(id, of) => self.after(HOP, Event::Reset(id, of)),
                        Owner::Check(check) => self.after(HOP, Event::Checked(check, 503, false)),
                    }
                }
            }
            let mut begun = Vec::new();
            self.servers[endpoint].set_speed(self.now, new.speed, &mut begun);
            self.begun(endpoint, &begun);
        }
    }

    /// A VM looks for checks that are due, and starts them.
    fn look(&mut self, vm: usize) {
        if self.looks[vm] != self.now {
            return;
        }
        self.looks[vm] = Time::MAX;
        let haven = self.haven.as_ref().unwrap();
        let (calls, next) = haven.check(vm);
        for call in calls {
            let endpoint = self.haven.as_ref().unwrap().called(&call);
            self.after(
                call.timeout.0,
                Event::Checked(self.checks.len(), 504, false),
            );
            self.checks.push(Check {
                vm,
                call: Some(call),
                endpoint,
            });
            self.ask(self.checks.len() - 1);
        }
        if let Some(next) = next {
            self.look_at(vm, next.max(self.now + MS));
        }
    }

    fn look_at(&mut self, vm: usize, at: Time) {
        if at < self.looks[vm] {
            self.looks[vm] = at;
            self.at(at, Event::Look(vm));
        }
    }

    /// A check reaches its endpoint, or does not.
    fn ask(&mut self, check: usize) {
        let endpoint = self.checks[check].endpoint;
        let state = self.states[endpoint];
        let draw = Draw::of(&[self.world.seed, self.noise, check as u64, 4]);
        match state.reach {
            Reach::Dead => return self.after(2 * HOP, Event::Checked(check, 503, false)),
            Reach::Lost => return self.after(CONNECT_TIMEOUT, Event::Checked(check, 503, false)),
            Reach::Up => {}
        }
        match self.world.fate_of_check(&state, &draw) {
            Fate::Fails => self.after(2 * HOP, Event::Checked(check, self.world.failure, true)),
            Fate::Works(work) => {
                let mut begun = Vec::new();
                let job = Job::new(Owner::Check(check), work);
                let room = self.servers[endpoint].offer(self.now, job, &mut begun);
                self.begun(endpoint, &begun);
                if !room {
                    self.after(2 * HOP, Event::Checked(check, 503, true));
                }
            }
            Fate::Waits(time) => self.after(time, Event::Checked(check, 200, true)),
            Fate::Hangs => {}
        }
    }

    fn checked(&mut self, check: usize, status: u16, own: bool) {
        let Some(call) = self.checks[check].call.take() else {
            return;
        };
        let vm = self.checks[check].vm;
        self.haven.as_ref().unwrap().checked(vm, &call, status, own);
        // What follows from it may be due sooner than what was known before.
        self.look_at(vm, self.now + 1);
    }

    fn sample(&mut self) {
        let haven = self.haven.as_ref();
        let sum = |name: &str, text: &str, is: fn(u64) -> u64| {
            let all = haven.map(|haven| haven.metrics(name)).unwrap_or_default();
            let counted = all.iter().filter(|(name, _)| name.contains(text));
            counted.map(|(_, value)| is(*value)).sum::<u64>()
        };
        let open = |value| u64::from(value != 0);
        self.run.samples.push(Sample {
            at: self.now,
            limit: sum("haven_concurrency_limit", "", |value| value),
            in_flight: sum("haven_concurrency_in_flight", "", |value| value),
            open_endpoints: sum("haven_circuit_breaker_state", "=endpoint", open),
            open_routes: sum("haven_circuit_breaker_state", "=route", open),
            unwell: sum("haven_endpoint_healthy", "", |value| u64::from(value == 0)),
            held: self.servers.iter().map(Slots::held).sum(),
        });
        if self.now < self.world.end {
            self.after(SAMPLE, Event::Sample);
        }
    }
}
