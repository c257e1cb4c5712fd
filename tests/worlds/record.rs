//! What is written down of a run, and what is counted in it.

use crate::draw::{MS, Time};
use crate::fault::Kind;
use crate::proxy::Reply;
use crate::world::{Arrival, World};
use std::ops::Range;

/// How a request ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has not.
    Open,
    /// An endpoint's good answer came in time.
    Useful,
    /// It came too late.
    Late,
    /// An endpoint or Envoy answered with an error.
    Failed(u16),
    /// haven gave a good answer in an endpoint's place, for this reason.
    Fallback(&'static str),
    /// haven refused, for this reason.
    Refused(&'static str),
    /// The client had gone.
    Gone,
}

/// The reasons of haven's own answers.
pub const REASONS: [&str; 7] = [
    "overload",
    "circuit_open",
    "no_endpoint",
    "deadline",
    "upstream_error",
    "timeout",
    "rate_limited",
];

impl End {
    /// The end that an answer of haven's own makes.
    pub fn of_reply(reply: &Reply) -> Self {
        let known = REASONS.iter().find(|word| **word == reply.reason);
        let reason = known.unwrap_or_else(|| panic!("the reason {:?}", reply.reason));
        if reply.status < 300 {
            Self::Fallback(reason)
        } else {
            Self::Refused(reason)
        }
    }

    /// haven's reason, if the answer was its own.
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Fallback(reason) | Self::Refused(reason) => Some(reason),
            _ => None,
        }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it came.
    pub at: Time,
    /// Whose it was.
    pub client: usize,
    /// Its route.
    pub route: usize,
    /// Whether it was a POST.
    pub post: bool,
    /// How long its client waits.
    pub deadline: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// How.
    pub end: End,
    /// How often Envoy tried.
    pub tries: u32,
    /// How many endpoints may have begun it.
    pub begun: u32,
}

impl Record {
    /// A request that has just come.
    pub const fn new(arrival: Arrival, deadline: Time, post: bool) -> Self {
        Self {
            at: arrival.at,
            client: arrival.client,
            route: arrival.route,
            post,
            deadline,
            ended: None,
            end: End::Open,
            tries: 0,
            begun: 0,
        }
    }
}

/// A picture of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Time,
    /// The concurrency limit.
    pub limit: u64,
    /// What it counts in flight.
    pub in_flight: u64,
    /// Breakers of endpoints that are not closed.
    pub open_endpoints: u64,
    /// Breakers of routes that are not closed.
    pub open_routes: u64,
    /// Endpoints that are out of rotation.
    pub unwell: u64,
    /// What endpoints work on or hold in their queues.
    pub held: usize,
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// All requests.
    pub records: Vec<Record>,
    /// Pictures, if they were taken.
    pub samples: Vec<Sample>,
    /// What is left in the gauges of requests in flight.
    pub left: Vec<(String, u64)>,
}

/// What came of the requests of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Requests.
    pub offered: u64,
    /// Useful ones, in percent of them, as all that follows but the tries.
    pub useful: f64,
    /// Useful ones among those of routes that are `critical` or above.
    pub critical: f64,
    /// Useful ones among those of clients that abuse nothing.
    pub others: f64,
    /// Answered by fallbacks.
    pub fallback: f64,
    /// Refused.
    pub refused: f64,
    /// Tries a request.
    pub tries: f64,
    /// POSTs that two endpoints may have begun.
    pub twice: u64,
}

impl Run {
    /// Counts the requests that came in this span and that `which` lets through.
    pub fn tally(
        &self,
        world: &World,
        span: &Range<Time>,
        which: impl Fn(&Record) -> bool,
    ) -> Tally {
        let all: Vec<_> = self
            .records
            .iter()
            .filter(|it| span.contains(&it.at) && which(it))
            .collect();
        let percent = |of: &[&&Record], is: fn(&Record) -> bool| {
            let count = of.iter().filter(|it| is(it)).count();
            if of.is_empty() {
                100.0
            } else {
                count as f64 * 100.0 / of.len() as f64
            }
        };
        let every: Vec<_> = all.iter().collect();
        let critical: Vec<_> = every
            .iter()
            .copied()
            .filter(|it| is_critical(world, it))
            .collect();
        let others: Vec<_> = every
            .iter()
            .copied()
            .filter(|it| !is_abuse(world, it))
            .collect();
        let useful = |it: &Record| it.end == End::Useful;
        let sent: u32 = all.iter().map(|it| it.tries).sum();
        Tally {
            offered: all.len() as u64,
            useful: percent(&every, useful),
            critical: percent(&critical, useful),
            others: percent(&others, useful),
            fallback: percent(&every, |it| matches!(it.end, End::Fallback(_))),
            refused: percent(&every, |it| matches!(it.end, End::Refused(_))),
            tries: f64::from(sent) / all.len().max(1) as f64,
            twice: all.iter().filter(|it| it.post && it.begun > 1).count() as u64,
        }
    }

    /// How long after the end of the faults it takes until in two fifths of a second on end at
    /// least 95 % as many requests are useful as before them; `None`: not in this run.
    pub fn recovery(&self, world: &World) -> Option<Time> {
        let over = world.faults.iter().map(|fault| fault.until).max()?;
        let step = 200 * MS;
        let useful = |span: Range<Time>| self.tally(world, &span, |_| true).useful;
        let before = useful(world.faults[0].from / 2..world.faults[0].from);
        let good = |from: Time| useful(from..from + step) >= 0.95 * before;
        let last = world.end.checked_sub(over + 2 * step)?;
        (0..=last)
            .step_by(step as usize)
            .find(|after| good(over + after) && good(over + after + step))
    }
}

/// Whether a request is on a route that is critical.
pub fn is_critical(world: &World, record: &Record) -> bool {
    world.routes[record.route]
        .criticality
        .starts_with("critical")
}

/// Whether a request is of a client that at some time sends far more than all others.
pub fn is_abuse(world: &World, record: &Record) -> bool {
    let mut kinds = world.faults.iter().map(|fault| fault.kind);
    kinds.any(|kind| matches!(kind, Kind::Abuser(client, _) if client == record.client))
}
