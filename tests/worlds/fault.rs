//! What goes wrong in a world, and when.

use crate::draw::{Draw, MS, Time};
pub use crate::support::endpoint::Reach;

/// A fault, from its start to its end.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// Whose fault it is; what concerns a route or a client leaves it empty.
    pub endpoints: Vec<usize>,
    /// When it begins.
    pub from: Time,
    /// When it is over.
    pub until: Time,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Refuses connections; what it worked on is lost.
    Dead,
    /// Accepts requests and stands still.
    Hanging,
    /// Nothing reaches it, no connection is made.
    Unreachable,
    /// So many times slower.
    Slow(f64),
    /// Dead for half of each period.
    Flapping(Time),
    /// Fails this share of its answers at once.
    Failing(f64),
    /// Clients send so many times the capacity.
    Overload(f64),
    /// All requests of this route fail.
    BadRoute(usize),
    /// All endpoints are so many times slower.
    AllSlow(f64),
    /// All endpoints fail this share of their answers at once.
    AllFailing(f64),
    /// This client sends so many times what all others do.
    Abuser(usize, f64),
    /// The endpoints are dead one after the other, each for so long.
    Restart(Time),
    /// All are dead, or hang.
    Outage {
        /// They hang.
        hanging: bool,
    },
}

impl Kind {
    /// Its name in tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Hanging => "hanging",
            Self::Unreachable => "unreachable",
            Self::Slow(_) => "slow",
            Self::Flapping(_) => "flapping",
            Self::Failing(_) => "failing",
            Self::Overload(_) => "overload",
            Self::BadRoute(_) => "bad route",
            Self::AllSlow(_) => "all slow",
            Self::AllFailing(_) => "all failing",
            Self::Abuser(..) => "abuser",
            Self::Restart(_) => "restart",
            Self::Outage { .. } => "outage",
        }
    }

    /// A kind for a world of so many endpoints, routes and clients.
    pub fn draw(draw: &Draw, endpoints: usize, routes: usize, clients: usize) -> Self {
        loop {
            let kind = match draw.count(0, 13) {
                0 => Self::Dead,
                1 => Self::Hanging,
                2 => Self::Unreachable,
                3 => Self::Slow(draw.log_between(2.0, 100.0)),
                4 => Self::Flapping(draw.log_between(200.0, 3_000.0) as Time * MS),
                5 => Self::Failing(draw.between(0.2, 1.0)),
                6 | 7 => Self::Overload(draw.log_between(1.2, 6.0)),
                8 => Self::BadRoute(draw.count(0, routes - 1)),
                9 => Self::AllSlow(draw.log_between(1.5, 10.0)),
                10 => Self::AllFailing(draw.between(0.2, 0.9)),
                11 => Self::Abuser(draw.count(0, clients - 1), draw.log_between(3.0, 20.0)),
                12 => Self::Restart(draw.log_between(200.0, 1_500.0) as Time * MS),
                _ => Self::Outage {
                    hanging: draw.percent(50),
                },
            };
            let fits = match kind {
                Self::BadRoute(_) => routes > 1,
                Self::Abuser(..) => clients > 1,
                Self::Overload(_) | Self::AllSlow(_) | Self::AllFailing(_) => true,
                Self::Outage { .. } => true,
                // Of a single endpoint it is an outage.
                _ => endpoints > 1,
            };
            if fits {
                return kind;
            }
        }
    }
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// Whether it can be reached, and runs.
    pub reach: Reach,
    /// How fast it works; 1 = as ever.
    pub speed: f64,
    /// The share of answers that fail at once.
    pub failing: f64,
}

/// How an endpoint is at this moment.
pub fn state(faults: &[Fault], endpoint: usize, now: Time) -> State {
    let mut state = State {
        reach: Reach::Up,
        speed: 1.0,
        failing: 0.0,
    };
    for fault in faults
        .iter()
        .filter(|it| (it.from..it.until).contains(&now))
    {
        let Some(place) = fault.endpoints.iter().position(|at| *at == endpoint) else {
            continue;
        };
        match fault.kind {
            Kind::Dead | Kind::Outage { hanging: false } => state.reach = Reach::Dead,
            Kind::Hanging | Kind::Outage { hanging: true } => state.speed = 0.0,
            Kind::Unreachable => state.reach = Reach::Lost,
            Kind::Slow(times) | Kind::AllSlow(times) => state.speed /= times,
            Kind::Failing(share) | Kind::AllFailing(share) => {
                state.failing = 1.0 - (1.0 - state.failing) * (1.0 - share);
            }
            Kind::Flapping(period) if (now - fault.from) % period < period / 2 => {
                state.reach = Reach::Dead;
            }
            Kind::Restart(down) if restart(fault, place, down).contains(&now) => {
                state.reach = Reach::Dead;
            }
            _ => {}
        }
    }
    state
}

/// When a rolling restart takes the endpoint at this place down.
fn restart(fault: &Fault, place: usize, down: Time) -> std::ops::Range<Time> {
    let apart = (fault.until - fault.from) / fault.endpoints.len() as Time;
    let from = fault.from + apart * place as Time;
    from..(from + down).min(fault.until)
}

/// All moments at which an endpoint's state may change.
pub fn edges(faults: &[Fault]) -> Vec<Time> {
    let mut edges = Vec::new();
    for fault in faults {
        edges.extend([fault.from, fault.until]);
        match fault.kind {
            Kind::Flapping(period) => {
                edges.extend((fault.from..fault.until).step_by((period / 2) as usize));
                edges.extend((fault.from..fault.until).step_by(period as usize));
            }
            Kind::Restart(down) => {
                for place in 0..fault.endpoints.len() {
                    let range = restart(fault, place, down);
                    edges.extend([range.start, range.end]);
                }
            }
            _ => {}
        }
    }
    edges.sort_unstable();
    edges.dedup();
    edges
}
