//! `make worlds REAL=10`: worlds played for real, beside the simulation: the same arrivals, the
//! same work for the same try, the same configuration, in a real Envoy with and without haven.

use crate::draw::{Draw, MS, SECOND, Time};
use crate::envoy::PAUSES;
use crate::fault::{Fault, edges, state};
use crate::record::{End, Record, Run, Tally};
use crate::sim::run_by_chance;
use crate::support::endpoint::{Endpoint, LATE, NUMBER, Order, Reach, Script};
use crate::support::open_loop::{self, Request};
use crate::support::{self, Client, Cluster, Envoy, EnvoyConfig, Retry, Route};
use crate::world::{CONNECT_TIMEOUT, Fate, Size, World};
use hyper::http::request::Parts;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often each world is played, each time with other requests.
const REPEATS: u64 = 3;
/// How often each of them is simulated, with other chance.
const CHANCES: u64 = 8;
/// How often a run is repeated in which the machine was too busy, and the share of what is late
/// above which it was.
const RETRIES: u32 = 4;
const LAG: f64 = 0.01;
/// Points within which the two are to be.
const WITHIN: f64 = 3.0;
/// From the clients' first answers to the world's beginning.
const SETTLE: Duration = Duration::from_millis(1_500);
/// Connections for each worker.
const CONNECTIONS: usize = 8;
/// How long the proxy may take beyond its timeout before its client gives up for good.
const GRACE: Time = 2 * SECOND;

/// Whether this machine can play a world, with and without haven at once, beside the clients and
/// the endpoints, and whether its clocks are fine enough.
fn is_playable(world: &World) -> bool {
    let peak = edges(&world.faults).into_iter().map(|at| {
        let clients = 0..world.clients.len();
        clients.map(|client| world.rate(client, at)).sum::<f64>()
    });
    peak.fold(0.0, f64::max) < 350.0
        && world.service.mean >= 10 * MS
        && world.workers <= 4
        && world.endpoints <= 10
}

/// The first worlds of as many kinds.
fn drawn(many: usize) -> Vec<World> {
    let mut kinds = BTreeSet::new();
    let worlds = (0..).map(|seed| World::draw(seed, Size::Small));
    let worlds = worlds.filter(is_playable);
    let kind = |world: &World| {
        let faults = world.faults.iter();
        faults.map(|it| it.kind.word()).collect::<Vec<_>>()
    };
    worlds
        .filter(|world| kinds.insert(kind(world)))
        .take(many)
        .collect()
}

#[test]
#[ignore = "minutes long, and wants the machine for itself: make worlds REAL=10"]
fn compare() {
    let many = std::env::var("HAVEN_REAL").map_or(10, |it| it.parse().expect("a number"));
    let only = std::env::var("HAVEN_WORLD").ok();
    let worlds = match &only {
        Some(seed) => vec![World::draw(seed.parse().expect("a number"), Size::Small)],
        None => drawn(many),
    };
    let seeds: Vec<_> = worlds.iter().map(|world| world.seed).collect();
    eprintln!("worlds {seeds:?}, {REPEATS} times each");
    println!(
        "| seed | fault | load, 1/s | plain, simulated | real | haven, simulated | real \
         | tries with haven, simulated | real |\n|---|---|---|---|---|---|---|---|---|"
    );
    let (mut within, mut all) = (0, 0);
    for world in worlds {
        let world = Arc::new(world);
        eprintln!("world {}: {}", world.seed, world.describe());
        let mut cells = String::new();
        let mut sums: [Vec<Tally>; 4] = Default::default();
        for noise in 0..REPEATS {
            let real = quiet(&world, noise);
            for (at, config) in [None, Some(&world.config)].into_iter().enumerate() {
                let simulated: Vec<Run> = (0..CHANCES)
                    .map(|chance| {
                        let mut run = run_by_chance(&world, config, [noise, chance], false);
                        // What an endpoint never got is no try of which it knows.
                        run.records.iter_mut().for_each(|it| it.tries = it.begun);
                        run
                    })
                    .collect();
                if only.is_some() {
                    let name = ["plain", "haven"][at];
                    println!("{name}\n{}", halves(&world, &simulated[0], &real[at]));
                }
                let tally = |run: &Run| run.tally(&world, &world.span(2 * SECOND), |_| true);
                sums[2 * at].extend(simulated.iter().map(tally));
                sums[2 * at + 1].push(tally(&real[at]));
            }
        }
        let useful = sums.each_ref().map(|all| mean(all, |it| it.useful));
        for pair in useful.chunks(2) {
            all += 1;
            within += u32::from((pair[0] - pair[1]).abs() <= WITHIN);
        }
        for (of, mean) in sums.iter().zip(useful) {
            cells += &format!(" {mean:.1} ± {:.1} |", spread(of, mean));
        }
        let tries = |at: usize| mean(&sums[at], |it| it.tries);
        let faults = world.faults.iter().map(|it| it.kind.word());
        println!(
            "| {} | {} | {:.0} of {:.0} |{cells} {:.2} | {:.2} |",
            world.seed,
            faults.collect::<Vec<_>>().join(" + "),
            world.capacity() * world.load,
            world.capacity(),
            tries(2),
            tries(3),
        );
    }
    println!("\nUseful, in percent: {within} of {all} within {WITHIN} points.");
}

fn mean(all: &[Tally], of: fn(&Tally) -> f64) -> f64 {
    all.iter().map(of).sum::<f64>() / all.len() as f64
}

/// The standard deviation of what is useful in one run.
fn spread(all: &[Tally], mean: f64) -> f64 {
    let squares = all.iter().map(|it| (it.useful - mean).powi(2));
    (squares.sum::<f64>() / (all.len() - 1) as f64).sqrt()
}

/// What came in each half of a second and what came of it, simulated and real; `!`: a fault.
fn halves(world: &World, simulated: &Run, real: &Run) -> String {
    let mut text = String::from(
        "     ms   came | simulated: useful answered tries | real: useful answered tries\n",
    );
    for from in (0..world.end).step_by((SECOND / 2) as usize) {
        let span = from..from + SECOND / 2;
        let [a, b] = [simulated, real].map(|run| run.tally(world, &span, |_| true));
        let is_on = |it: &Fault| span.start < it.until && span.end > it.from;
        let mark = if world.faults.iter().any(is_on) {
            '!'
        } else {
            ' '
        };
        let cells = [a, b].map(|it| {
            let answered = it.useful + it.fallback;
            format!("{:>17.1} {answered:>8.1} {:>5.2}", it.useful, it.tries)
        });
        text += &format!(
            "{:>6}{mark} {:>6} |{} |{}\n",
            from / MS,
            a.offered,
            cells[0],
            cells[1]
        );
    }
    text
}

/// A run of plain Envoy and of haven, side by side, in which the machine kept up; or the last try.
fn quiet(world: &Arc<World>, noise: u64) -> [Run; 2] {
    let mut tries = 0;
    loop {
        let (runs, late) = support::run_alone(async {
            let (plain, haven) = tokio::join!(
                Side::start(world, noise, None),
                Side::start(world, noise, Some(&world.config)),
            );
            sleep(SETTLE).await;
            let begin = Instant::now() + Duration::from_millis(50);
            let (plain, haven) = tokio::join!(plain.play(begin), haven.play(begin));
            ([plain.0, haven.0], plain.1.max(haven.1))
        });
        tries += 1;
        eprintln!("  late: {:.1} %", late * 100.0);
        if late <= LAG || tries == RETRIES {
            return runs;
        }
    }
}

/// An Envoy, its endpoints and its clients.
struct Side {
    world: Arc<World>,
    noise: u64,
    begun: Arc<Begun>,
    endpoints: Vec<Endpoint>,
    clients: Vec<Client>,
    _envoy: Envoy,
}

impl Side {
    async fn start(world: &Arc<World>, noise: u64, config: Option<&Value>) -> Self {
        let begun = Arc::new(Begun::default());
        let mut endpoints = Vec::new();
        for index in 0..world.endpoints {
            let part = Part {
                world: world.clone(),
                index,
                noise,
                checks: AtomicU64::new(0),
                begun: begun.clone(),
            };
            let endpoint = Endpoint::start(Arc::new(part)).await;
            endpoints.push(endpoint.expect("an endpoint starts"));
        }
        let addresses: Vec<_> = endpoints.iter().map(Endpoint::addr).collect();
        let mut proxy = EnvoyConfig::empty()
            .attempt_counts()
            .balanced()
            .concurrency(world.workers as u32)
            .cluster(
                Cluster::new("u", addresses.iter().copied())
                    .connect_timeout(nanos(CONNECT_TIMEOUT)),
            );
        for (at, route) in world.routes.iter().enumerate() {
            // haven says in each request what is retried, and how often.
            let retry = Retry {
                on: String::new(),
                num_retries: 0,
                back_off: Some(PAUSES.map(nanos)),
                ..Retry::default()
            };
            let to = Route::to(&format!("/r{at}"), "u").timeout(nanos(route.timeout));
            proxy = proxy.route(to.retry(&retry));
        }
        // Health checks of haven's own go to the cluster, not through a route.
        if let Some(config) = config {
            let mut config = config.clone();
            for (at, address) in addresses.iter().enumerate() {
                config["upstreams"]["u"]["endpoints"][at]["address"] = address.to_string().into();
            }
            proxy = proxy.haven(&config);
        }
        let envoy = Envoy::start(proxy).await;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS * world.workers {
            let client = Client::h2(envoy.addr());
            // An answer from Envoy itself: there is a connection.
            let _ = client.get("/").await;
            clients.push(client);
        }
        Self {
            world: world.clone(),
            noise,
            begun,
            endpoints,
            clients,
            _envoy: envoy,
        }
    }

    /// Plays the world; also the share of what was late.
    async fn play(self, begin: Instant) -> (Run, f64) {
        for endpoint in &self.endpoints {
            endpoint.begin(begin);
        }
        let world = &self.world;
        let arrivals = world.arrivals(self.noise);
        let draw = Draw::of(&[world.seed, self.noise, 6]);
        let requests: Vec<Request> = arrivals
            .iter()
            .enumerate()
            .map(|(id, arrival)| {
                let (client, route) =
                    (&world.clients[arrival.client], &world.routes[arrival.route]);
                let deadline = world.deadline(arrival);
                let mut headers = vec![("x-client", arrival.client.to_string())];
                if client.says {
                    headers.push(("x-deadline", (deadline / MS).to_string()));
                }
                Request {
                    at: nanos(arrival.at),
                    client: draw.count(0, self.clients.len() - 1),
                    method: if route.post { "POST" } else { "GET" },
                    path: format!("/r{}/{}", arrival.route, id % 20),
                    headers,
                    patience: nanos(if client.hangs_up {
                        deadline
                    } else {
                        route.timeout + GRACE
                    }),
                }
            })
            .collect();
        let outcomes = open_loop::send(&self.clients, requests.into_iter(), begin).await;
        let begun = self.begun.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = Run::default();
        let mut late = 0;
        for (id, (arrival, outcome)) in arrivals.iter().zip(&outcomes).enumerate() {
            let (route, deadline) = (&world.routes[arrival.route], world.deadline(arrival));
            let mut record = Record::new(*arrival, deadline, route.post);
            record.begun = begun.get(id).copied().unwrap_or(0);
            record.tries = record.begun;
            let took = outcome.took.as_nanos() as Time;
            record.ended = Some(arrival.at + took);
            record.end = match outcome.status {
                0 => End::Gone,
                _ if outcome.useful() && took > deadline => End::Late,
                _ if outcome.useful() => End::Useful,
                _ if outcome.answered() => End::Fallback("overload"),
                status => End::Failed(status),
            };
            run.records.push(record);
            late += usize::from(outcome.late > LATE);
        }
        let counts = self.endpoints.iter().map(Endpoint::counts);
        let (work, of) = counts.fold((0, 0), |(late, all), it| (late + it.late, all + it.worked));
        let share = |late: f64, all: f64| late / all.max(1.0);
        let late = share(late as f64, outcomes.len() as f64).max(share(work as f64, of as f64));
        (run, late)
    }
}

/// How many endpoints have begun each request.
#[derive(Debug, Default)]
struct Begun(Mutex<Vec<u32>>);

impl Begun {
    fn add(&self, id: usize) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() <= id {
            all.resize(id + 1, 0);
        }
        all[id] += 1;
    }
}

/// The part of one endpoint.
#[derive(Debug)]
struct Part {
    world: Arc<World>,
    index: usize,
    noise: u64,
    checks: AtomicU64,
    begun: Arc<Begun>,
}

impl Script for Part {
    fn slots(&self) -> usize {
        self.world.slots
    }

    fn places(&self) -> Option<usize> {
        self.world.queue
    }

    fn stops(&self) -> bool {
        self.world.stops
    }

    fn condition(&self, at: Duration) -> (Reach, f64) {
        let state = state(&self.world.faults, self.index, at.as_nanos() as Time);
        (state.reach, state.speed)
    }

    fn next_change(&self, after: Duration) -> Option<Duration> {
        let edges = edges(&self.world.faults);
        let mut later = edges.into_iter().map(nanos);
        later.find(|at| *at > after)
    }

    fn order(&self, request: &Parts, at: Option<Duration>) -> Order {
        let (world, now) = (&self.world, at.unwrap_or_default().as_nanos() as Time);
        let state = state(&world.faults, self.index, now);
        let part = [world.seed, self.noise];
        let path = request.uri.path();
        let fate = if path == "/health" {
            let check = self.checks.fetch_add(1, Ordering::Relaxed);
            let draw = Draw::of(&[part[0], part[1], check, self.index as u64, 4]);
            world.fate_of_check(&state, &draw)
        } else {
            let number = |name: &str| request.headers.get(name)?.to_str().ok()?.parse().ok();
            let id: u64 = number(NUMBER).expect("a request's number");
            let of: u64 = number("x-envoy-attempt-count").expect("a try's number");
            let route = path.strip_prefix("/r").and_then(|it| it.split('/').next());
            let route = route.and_then(|it| it.parse().ok()).expect("a route");
            self.begun.add(id as usize);
            let draw = Draw::of(&[part[0], part[1], id, of, 2]);
            world.fate(&state, route, now, &draw)
        };
        match fate {
            Fate::Fails => Order::Answer(world.failure),
            Fate::Works(time) => Order::Work(nanos(time as Time), 200),
            Fate::Waits(time) => Order::After(nanos(time), 200),
            Fate::Hangs => Order::Never,
        }
    }
}

fn nanos(time: Time) -> Duration {
    Duration::from_nanos(time)
}
