//! A world: endpoints, clients, routes, faults and a configuration, all drawn from one seed.

use crate::config;
use crate::draw::{Draw, MS, SECOND, Service, Shape, Time};
use crate::fault::{Fault, Kind, State};
use serde_json::Value;

/// How long a connection may take to be made, in Envoy's cluster.
pub const CONNECT_TIMEOUT: Time = 250 * MS;

/// How many requests a world may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For `make test`.
    Small,
    /// For the report.
    Full,
}

impl Size {
    /// As `HAVEN_SIZE` says; for the report if it does not.
    pub fn asked() -> Self {
        match std::env::var("HAVEN_SIZE").as_deref() {
            Ok("small") => Self::Small,
            _ => Self::Full,
        }
    }
}

/// How many times as long faults are, by `HAVEN_LONGER`; once if it does not say.
pub fn longer() -> u64 {
    let times = std::env::var("HAVEN_LONGER");
    times.map_or(1, |times| times.parse().expect("HAVEN_LONGER is a number"))
}

/// A world.
#[derive(Clone, Debug)]
pub struct World {
    /// What it was drawn from.
    pub seed: u64,
    /// Workers of the proxy.
    pub workers: usize,
    /// Endpoints, each with so many slots.
    pub endpoints: usize,
    /// Requests that an endpoint works on at once.
    pub slots: usize,
    /// How long a request takes.
    pub service: Service,
    /// Places in an endpoint's queue; `None`: no bound.
    pub queue: Option<usize>,
    /// Work stops when its caller has gone.
    pub stops: bool,
    /// Health checks stand in the same queue as requests.
    pub checks_queue: bool,
    /// Health checks fail as requests do.
    pub checks_fail: bool,
    /// What a failing endpoint answers.
    pub failure: u16,
    /// Routes.
    pub routes: Vec<Route>,
    /// Clients.
    pub clients: Vec<Client>,
    /// What clients send without a fault, as a share of the capacity.
    pub load: f64,
    /// Faults, the first one within the span that is looked at.
    pub faults: Vec<Fault>,
    /// When the last request comes.
    pub end: Time,
    /// The configuration with everything on.
    pub config: Value,
}

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Whether it is for POST; GET otherwise.
    pub post: bool,
    /// Its criticality, as configured.
    pub criticality: &'static str,
    /// Its share of the requests.
    pub share: f64,
    /// Its `timeout.request`, also of the plain Envoy.
    pub timeout: Time,
}

/// A client, or many of one kind.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its share of the requests.
    pub share: f64,
    /// Its deadline as a multiple of the route's timeout.
    pub patience: f64,
    /// Whether its requests say their deadline.
    pub says: bool,
    /// Whether it hangs up when its deadline is over.
    pub hangs_up: bool,
    /// It has one connection, so that one worker has all of its requests.
    pub one_connection: bool,
}

/// A request that comes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When.
    pub at: Time,
    /// Whose.
    pub client: usize,
    /// Which way.
    pub route: usize,
}

/// What an endpoint that can be reached makes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It fails at once.
    Fails,
    /// It takes a slot for so many nanoseconds, at full speed.
    Works(f64),
    /// It takes so long, and no slot.
    Waits(Time),
    /// It is never answered.
    Hangs,
}

impl World {
    /// The world of this seed.
    pub fn draw(seed: u64, size: Size) -> Self {
        let requests = match size {
            Size::Small => 300.0..2_000.0,
            Size::Full => 1_000.0..12_000.0,
        };
        // Few draws have a number of requests that is worth it.
        let mut world = (0..)
            .map(|round| Self::draw_any(&Draw::of(&[seed, round]), seed, size))
            .find(|world| requests.contains(&world.requests()))
            .unwrap();
        world.config = config::draw(&Draw::of(&[seed]), &world);
        world.lengthen(longer());
        world
    }

    /// The same faults, so many times as long.
    fn lengthen(&mut self, times: u64) {
        let last = |faults: &[Fault]| faults.iter().map(|it| it.until).max().unwrap_or(0);
        let before = last(&self.faults);
        for fault in &mut self.faults {
            fault.until = fault.from + (fault.until - fault.from) * times;
        }
        self.end += last(&self.faults) - before;
    }

    fn draw_any(draw: &Draw, seed: u64, size: Size) -> Self {
        let shapes = [Shape::Fixed, Shape::Exponential, Shape::Lognormal(0.8)];
        let service = Service {
            mean: draw.log_between(2.0, 1_000.0) as Time * MS,
            shape: draw.pick(&shapes),
        };
        let endpoints = draw.log_between(1.0, 20.99) as usize;
        let slots = draw.log_between(1.0, 64.99) as usize;
        // Nobody sets a timeout below what requests usually take.
        let least = match service.shape {
            Shape::Fixed => 2 * service.mean,
            _ => service.usual_most() * 5 / 4,
        };
        let timeout = draw
            .log_between(50.0, 5_000.0)
            .clamp((least / MS).clamp(50, 5_000) as f64, 5_000.0) as Time
            * MS;
        let criticalities = ["sheddable", "sheddable_plus", "critical", "critical_plus"];
        let routes = (0..draw.count(2, 3)).map(|at| Route {
            post: at == 1,
            criticality: draw.pick(&criticalities),
            share: draw.between(0.2, 1.0),
            timeout,
        });
        let routes: Vec<_> = routes.collect();
        // Of its own: what else is drawn of a seed stays as it was.
        let connections = Draw::of(&[seed, 0xc0]);
        let clients = (0..draw.count(1, 5)).map(|_| Client {
            share: draw.log_between(0.1, 1.0),
            patience: if draw.percent(70) {
                1.0
            } else {
                draw.between(0.5, 1.0)
            },
            says: draw.percent(40),
            hangs_up: draw.percent(50),
            one_connection: connections.percent(50),
        });
        let clients: Vec<_> = clients.collect();
        let (before, fault, after) = match size {
            Size::Small => (2.0, draw.between(2.0, 4.0), 2.5),
            Size::Full => (3.0, draw.between(3.0, 8.0), 5.0),
        };
        let seconds = |s: f64| (s * SECOND as f64) as Time;
        let from = seconds(before);
        let until = from + seconds(fault);
        let mut faults = Vec::new();
        for at in 0..=u64::from(draw.percent(25)) {
            let kind = Kind::draw(draw, endpoints, routes.len(), clients.len());
            // A second one begins during the first.
            let late = seconds(at as f64 * draw.between(0.0, fault / 2.0));
            faults.push(Fault {
                kind,
                endpoints: victims(draw, kind, endpoints),
                from: from + late,
                until,
            });
        }
        Self {
            seed,
            workers: draw.pick(&[1, 2, 4, 8]),
            endpoints,
            slots,
            service,
            queue: draw
                .percent(50)
                .then(|| (slots as f64 * draw.log_between(1.0, 20.0)) as usize),
            stops: draw.percent(30),
            checks_queue: draw.percent(50),
            checks_fail: draw.percent(50),
            failure: if draw.percent(70) { 503 } else { 500 },
            routes,
            clients,
            load: draw.between(0.1, 0.85),
            faults,
            end: until + seconds(after),
            config: Value::Null,
        }
    }

    /// Requests a second that all endpoints can do.
    pub fn capacity(&self) -> f64 {
        (self.endpoints * self.slots) as f64 * SECOND as f64 / self.service.mean as f64
    }

    /// The span of the faults, until `after` has passed since their end.
    pub fn span(&self, after: Time) -> std::ops::Range<Time> {
        self.faults[0].from..(self.faults[0].until + after).min(self.end)
    }

    /// Requests a second of this client at this moment.
    pub fn rate(&self, client: usize, now: Time) -> f64 {
        let all: f64 = self.clients.iter().map(|it| it.share).sum();
        let mut share = self.clients[client].share / all;
        let mut load = self.load;
        for fault in self
            .faults
            .iter()
            .filter(|it| (it.from..it.until).contains(&now))
        {
            match fault.kind {
                Kind::Overload(times) => load = load.max(times),
                Kind::Abuser(who, times) if who == client => share += times * (1.0 - share),
                _ => {}
            }
        }
        self.capacity() * load * share
    }

    /// Moments between which no rate changes.
    fn pieces(&self) -> Vec<Time> {
        let mut pieces = crate::fault::edges(&self.faults);
        pieces.extend([0, self.end]);
        pieces.retain(|at| *at <= self.end);
        pieces.sort_unstable();
        pieces.dedup();
        pieces
    }

    /// How many requests are to be expected.
    fn requests(&self) -> f64 {
        let pieces = self.pieces();
        let all = pieces.windows(2).map(|piece| {
            let rate: f64 = (0..self.clients.len())
                .map(|it| self.rate(it, piece[0]))
                .sum();
            rate * (piece[1] - piece[0]) as f64 / SECOND as f64
        });
        all.sum()
    }

    /// All requests in the order in which they come; `noise` tells repetitions apart.
    pub fn arrivals(&self, noise: u64) -> Vec<Arrival> {
        let mut all = Vec::new();
        let shares: f64 = self.routes.iter().map(|route| route.share).sum();
        for client in 0..self.clients.len() {
            let draw = Draw::of(&[self.seed, noise, client as u64]);
            for piece in self.pieces().windows(2) {
                let rate = self.rate(client, piece[0]);
                let mut at = piece[0];
                loop {
                    // A rate of zero: never.
                    at = at.saturating_add(draw.gap(rate));
                    if at >= piece[1] {
                        break;
                    }
                    let mut left = draw.unit() * shares;
                    let route = self.routes.iter().position(|route| {
                        left -= route.share;
                        left <= 0.0
                    });
                    all.push(Arrival {
                        at,
                        client,
                        route: route.unwrap_or(0),
                    });
                }
            }
        }
        all.sort_by_key(|arrival| (arrival.at, arrival.client));
        all
    }

    /// How long the client of a request waits for its answer.
    pub fn deadline(&self, arrival: &Arrival) -> Time {
        let route = &self.routes[arrival.route];
        // In whole milliseconds, as a header says it.
        (route.timeout as f64 * self.clients[arrival.client].patience) as Time / MS * MS
    }

    /// What an endpoint in this state makes of a try.
    pub fn fate(&self, state: &State, route: usize, now: Time, draw: &Draw) -> Fate {
        let is_on = |it: &&Fault| (it.from..it.until).contains(&now);
        let mut faults = self.faults.iter().filter(is_on);
        let is_bad = |it: &Fault| it.kind == Kind::BadRoute(route);
        if state.speed > 0.0 && (draw.unit() < state.failing || faults.any(is_bad)) {
            Fate::Fails
        } else {
            Fate::Works(self.service.take(draw))
        }
    }

    /// What an endpoint in this state makes of a health check.
    pub fn fate_of_check(&self, state: &State, draw: &Draw) -> Fate {
        if self.checks_fail && draw.unit() < state.failing {
            Fate::Fails
        } else if self.checks_queue {
            Fate::Works(MS as f64)
        } else if state.speed > 0.0 {
            Fate::Waits((MS as f64 / state.speed) as Time)
        } else {
            Fate::Hangs
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let faults: Vec<String> = self
            .faults
            .iter()
            .map(|fault| {
                let (from, until) = (fault.from / MS, fault.until / MS);
                let who = match fault.endpoints.len() {
                    0 => String::new(),
                    all if all == self.endpoints => " of all".into(),
                    _ => format!(" of {:?}", fault.endpoints),
                };
                format!("{:?}{who} {from}..{until} ms", fault.kind)
            })
            .collect();
        format!(
            "{} workers, {} x {} slots, {} ms {:?}, queue {:?}, work {}, {:.0}/s capacity, \
             load {:.2}, timeout {} ms, {} clients; {}",
            self.workers,
            self.endpoints,
            self.slots,
            self.service.mean / MS,
            self.service.shape,
            self.queue,
            if self.stops { "stops" } else { "goes on" },
            self.capacity(),
            self.load,
            self.routes[0].timeout / MS,
            self.clients.len(),
            faults.join(" + ")
        )
    }
}

/// The endpoints that a fault is of: one, or up to a third of them.
fn victims(draw: &Draw, kind: Kind, endpoints: usize) -> Vec<usize> {
    match kind {
        Kind::Overload(_) | Kind::BadRoute(_) | Kind::Abuser(..) => Vec::new(),
        Kind::AllSlow(_) | Kind::AllFailing(_) | Kind::Restart(_) | Kind::Outage { .. } => {
            (0..endpoints).collect()
        }
        _ => {
            let many = draw.count(1, (endpoints / 3).max(1));
            let first = draw.count(0, endpoints - 1);
            (0..many).map(|at| (first + at) % endpoints).collect()
        }
    }
}
