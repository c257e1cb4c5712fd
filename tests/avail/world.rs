//! The world of a scenario, drawn from a seed: the service, its load and its faults, each with its
//! moment. Nothing in it depends on what the proxy does.

use std::time::Duration;

use super::draw::Draw;
use super::kind::Kind;

/// The share of failing answers in a storm.
pub const STORM: f64 = 0.6;
/// What the surge asks for, as a multiple of the capacity.
pub const SURGE: f64 = 3.0;
/// What the abusive client sends, as a multiple of what the others send together.
pub const ABUSE: f64 = 10.0;

/// A service, its clients and what happens to it.
#[derive(Clone, Debug)]
pub struct World {
    /// What goes wrong.
    pub kind: Kind,
    /// The seed that it was drawn from.
    pub seed: u64,
    /// Endpoints of the service.
    pub endpoints: usize,
    /// Requests that an endpoint works on at once; the rest queue there.
    pub slots: usize,
    /// What a request takes in its slot, on average.
    pub service: Duration,
    /// How long a client waits.
    pub deadline: Duration,
    /// Requests per second while nothing is wrong.
    pub rate: f64,
    /// Clients with an address of their own; an abusive one comes on top, as number 0.
    pub clients: usize,
    /// When the fault begins.
    pub from: Duration,
    /// When it is over.
    pub to: Duration,
    /// When the last request is sent.
    pub end: Duration,
    /// What the endpoints do wrong.
    pub faults: Vec<Fault>,
    /// All requests, by their moment.
    pub arrivals: Vec<Arrival>,
}

/// What one endpoint does wrong for some time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// Which endpoint.
    pub endpoint: usize,
    /// Since when.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
    /// What.
    pub action: Action,
}

/// A wrong that an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Drops its connections with all that it works on, and refuses new ones.
    Refuse,
    /// Takes requests and never answers.
    Hang,
    /// Takes so many times as long.
    Slow(f64),
    /// Answers 503.
    Fail {
        /// The share of requests that get it.
        share: f64,
        /// Before they take a slot, or in place of the good answer after the work.
        at_once: bool,
        /// Strikes [`Path::Bad`] alone.
        bad_route_only: bool,
    },
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Of the critical route.
    Critical,
    /// Of the route that is shed first.
    Sheddable,
    /// Of the route that fails in [`Kind::BadRoute`].
    Bad,
}

impl Path {
    /// As it is sent.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Critical => "/api/orders",
            Self::Sheddable => "/api/feed",
            Self::Bad => "/api/reports",
        }
    }
}

/// A request that a client will send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When.
    pub at: Duration,
    /// Who.
    pub client: usize,
    /// What.
    pub path: Path,
    /// Whether the report's shares are of it: not the abuser's, and not those of the bad route.
    pub counted: bool,
}

impl World {
    /// The world of this kind and seed.
    pub fn draw(kind: Kind, seed: u64) -> Self {
        let draw = Draw::new(seed, kind as u64 + 1);
        let endpoints = draw.whole(3, 5);
        // Load and capacity of the kinds where neither is scarce: what is left without one
        // endpoint is enough.
        let mut rate = draw.between(150.0, 280.0);
        let mut service = draw.millis(8.0, 25.0);
        let mut used = draw.between(0.2, 0.4);
        let mut slots = None;
        let mut deadline = draw.millis(300.0, 900.0);
        match kind {
            Kind::Overload | Kind::Abuser => {
                let few = draw.whole(2, 5);
                let capacity = draw.between(90.0, 130.0);
                service = Duration::from_secs_f64((endpoints * few) as f64 / capacity);
                // Short against the fault, or much of it would pass before a queue is too long.
                deadline = service.mul_f64(draw.between(5.0, 8.0)).min(LONGEST);
                used = match kind {
                    Kind::Abuser => draw.between(0.3, 0.45),
                    _ => draw.between(0.4, 0.6),
                };
                rate = used * capacity;
                slots = Some(few);
            }
            Kind::AllSlower => {
                used = draw.between(0.12, 0.15);
                deadline = service.mul_f64(SLOWER * draw.between(2.5, 4.0));
            }
            Kind::StormWithRoom => used = draw.between(0.12, 0.2),
            Kind::StormWithoutRoom => {
                used = draw.between(0.82, 0.9);
                rate = draw.between(150.0, 220.0);
                service = draw.millis(60.0, 120.0);
                deadline = service.mul_f64(draw.between(5.0, 8.0));
            }
            _ => {}
        }
        let slots = slots.unwrap_or_else(|| {
            (rate * service.as_secs_f64() / (used * endpoints as f64)).ceil() as usize
        });
        let from = draw.millis(2_500.0, 3_500.0);
        let to = from + draw.millis(5_500.0, 7_500.0);
        let after = if kind == Kind::Outage { 8 } else { 5 };
        let mut world = Self {
            kind,
            seed,
            endpoints,
            slots,
            service,
            deadline,
            rate,
            clients: draw.whole(8, 12),
            from,
            to,
            end: to + Duration::from_secs(after),
            faults: Vec::new(),
            arrivals: Vec::new(),
        };
        world.faults = world.draw_faults(&draw);
        world.arrivals = world.draw_arrivals(&draw);
        world
    }

    /// What the service can do, in requests per second.
    pub fn capacity(&self) -> f64 {
        (self.endpoints * self.slots) as f64 / self.service.as_secs_f64()
    }

    /// Whether a moment lies in the time of the fault.
    pub fn in_fault(&self, at: Duration) -> bool {
        (self.from..self.to).contains(&at)
    }

    /// What an endpoint does wrong at a moment.
    pub fn action(&self, endpoint: usize, at: Duration) -> Option<Action> {
        let mut faults = self.faults.iter();
        let strikes =
            |fault: &&Fault| fault.endpoint == endpoint && (fault.from..fault.to).contains(&at);
        faults.find(strikes).map(|fault| fault.action)
    }

    /// The next moment at which an endpoint's wrong begins or ends.
    pub fn next_change(&self, endpoint: usize, at: Duration) -> Option<Duration> {
        let own = self.faults.iter().filter(|f| f.endpoint == endpoint);
        own.flat_map(|fault| [fault.from, fault.to])
            .filter(|moment| *moment > at)
            .min()
    }

    fn draw_faults(&self, draw: &Draw) -> Vec<Fault> {
        let victim = draw.whole(0, self.endpoints - 1);
        let on = |endpoint, from, to, action| Fault {
            endpoint,
            from,
            to,
            action,
        };
        let one = |action| vec![on(victim, self.from, self.to, action)];
        let all = |action| -> Vec<Fault> {
            let each = 0..self.endpoints;
            each.map(|endpoint| on(endpoint, self.from, self.to, action))
                .collect()
        };
        let fail = |share, at_once, bad_route_only| Action::Fail {
            share,
            at_once,
            bad_route_only,
        };
        match self.kind {
            Kind::Dead => one(Action::Refuse),
            Kind::Hanging => one(Action::Hang),
            Kind::Slow => one(Action::Slow(100.0)),
            Kind::HalfFailing => one(fail(0.5, true, false)),
            Kind::AllSlower => all(Action::Slow(SLOWER)),
            Kind::StormWithRoom => all(fail(STORM, true, false)),
            Kind::StormWithoutRoom => all(fail(STORM, false, false)),
            Kind::BadRoute => all(fail(1.0, true, true)),
            Kind::Outage => all(Action::Refuse),
            Kind::Overload | Kind::Abuser => Vec::new(),
            Kind::Flapping => {
                let mut faults = Vec::new();
                let mut at = self.from;
                while at < self.to {
                    let back = (at + draw.millis(300.0, 1_200.0)).min(self.to);
                    faults.push(on(victim, at, back, Action::Refuse));
                    at = back + draw.millis(300.0, 1_200.0);
                }
                faults
            }
            Kind::RollingRestart => {
                let turn = (self.to - self.from) / self.endpoints as u32;
                let gone = turn.mul_f64(draw.between(0.5, 0.8));
                let each = 0..self.endpoints;
                each.map(|endpoint| {
                    let from = self.from + turn * endpoint as u32;
                    on(endpoint, from, from + gone, Action::Refuse)
                })
                .collect()
            }
        }
    }

    fn draw_arrivals(&self, draw: &Draw) -> Vec<Arrival> {
        let bad = match self.kind {
            Kind::BadRoute => draw.between(0.3, 0.5),
            _ => 0.0,
        };
        let mut arrivals = Vec::new();
        for at in poisson(draw, self.rate, Duration::ZERO, self.end) {
            let path = match draw.unit() {
                part if part < bad => Path::Bad,
                _ => critical_or_not(draw),
            };
            arrivals.push(Arrival {
                at,
                client: draw.whole(1, self.clients),
                path,
                counted: path != Path::Bad,
            });
        }
        let (more, abuser) = match self.kind {
            Kind::Overload => (SURGE * self.capacity() - self.rate, false),
            Kind::Abuser => (ABUSE * self.rate, true),
            _ => return arrivals,
        };
        for at in poisson(draw, more, self.from, self.to) {
            arrivals.push(Arrival {
                at,
                client: if abuser {
                    0
                } else {
                    draw.whole(1, self.clients)
                },
                path: critical_or_not(draw),
                counted: !abuser,
            });
        }
        arrivals.sort_by_key(|arrival| arrival.at);
        arrivals
    }
}

/// The longest deadline under a surge.
const LONGEST: Duration = Duration::from_millis(1_200);
/// How many times as long a request takes in [`Kind::AllSlower`].
const SLOWER: f64 = 5.0;

fn critical_or_not(draw: &Draw) -> Path {
    if draw.unit() < 0.5 {
        Path::Critical
    } else {
        Path::Sheddable
    }
}

/// Moments of a Poisson process.
fn poisson(draw: &Draw, rate: f64, from: Duration, to: Duration) -> Vec<Duration> {
    let mut moments = Vec::new();
    let mut at = from;
    loop {
        at += Duration::from_secs_f64(draw.exponential() / rate);
        if at >= to {
            return moments;
        }
        moments.push(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(world: &World, from: Duration, to: Duration, counted: Option<bool>) -> f64 {
        let all = world.arrivals.iter();
        let hits = all.filter(|arrival| (from..to).contains(&arrival.at));
        let hits = hits.filter(|arrival| counted.is_none_or(|c| arrival.counted == c));
        hits.count() as f64 / (to - from).as_secs_f64()
    }

    #[test]
    fn a_seed_gives_one_world_and_another_seed_another() {
        for kind in Kind::ALL {
            let text = |seed| format!("{:?}", World::draw(kind, seed));
            assert_eq!(text(1), text(1));
            assert_ne!(text(1), text(2));
        }
    }

    #[test]
    fn loads_and_capacities_are_those_of_their_kinds() {
        for seed in 1..=40 {
            for kind in Kind::ALL {
                let world = World::draw(kind, seed);
                let fault = rate(&world, world.from, world.to, None);
                let calm = rate(&world, world.to, world.end, None);
                let offered = fault / world.capacity();
                assert!(fault < 650.0, "{kind:?} {seed}: {fault}");
                assert!(
                    (calm / world.rate - 1.0).abs() < 0.35,
                    "{kind:?} {seed}: {calm} of {}",
                    world.rate
                );
                match kind {
                    Kind::Overload => assert!((offered - SURGE).abs() < 0.4, "{offered}"),
                    Kind::Abuser => {
                        let others = rate(&world, world.from, world.to, Some(true));
                        assert!(fault - others > 6.0 * others, "{fault} {others}");
                        assert!(offered > 2.5, "{offered}");
                    }
                    Kind::AllSlower => {
                        assert!(offered * SLOWER < 0.95, "{offered}");
                        assert!(world.service.mul_f64(2.0 * SLOWER) < world.deadline);
                    }
                    Kind::StormWithRoom => assert!(offered < 0.3, "{offered}"),
                    Kind::StormWithoutRoom => assert!(offered > 0.65, "{offered}"),
                    _ => {
                        // What is left without one endpoint is enough.
                        let left = (world.endpoints - 1) as f64 / world.endpoints as f64;
                        assert!(offered < 0.8 * left, "{kind:?} {seed}: {offered}");
                    }
                }
            }
        }
    }

    #[test]
    fn moments_are_in_order_and_faults_within_theirs() {
        for seed in 1..=10 {
            for kind in Kind::ALL {
                let world = World::draw(kind, seed);
                assert!(world.arrivals.is_sorted_by_key(|arrival| arrival.at));
                assert!(world.arrivals.iter().all(|arrival| arrival.at < world.end));
                for fault in &world.faults {
                    assert!(world.from <= fault.from && fault.from < fault.to);
                    assert!(fault.to <= world.to && fault.endpoint < world.endpoints);
                    let action = world.action(fault.endpoint, fault.from);
                    assert_eq!(action, Some(fault.action));
                    assert_eq!(world.action(fault.endpoint, world.end), None);
                }
                let surges = matches!(kind, Kind::Overload | Kind::Abuser);
                assert_eq!(world.faults.is_empty(), surges);
            }
        }
    }

    #[test]
    fn changes_come_one_after_the_other() {
        let world = World::draw(Kind::Flapping, 3);
        let endpoint = world.faults[0].endpoint;
        let mut changes = Vec::new();
        let mut at = Duration::ZERO;
        while let Some(next) = world.next_change(endpoint, at) {
            changes.push(next);
            at = next;
        }
        assert_eq!(changes.len(), 2 * world.faults.len());
        assert_eq!(changes.first(), Some(&world.faults[0].from));
    }
}
