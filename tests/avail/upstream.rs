//! The part of an endpoint in a scenario: the faults of its world at their moments, and counts of
//! what it got and what it did.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::http::request::Parts;

use super::draw::Draw;
use super::support::endpoint::{NUMBER, Order, Reach, Script};
use super::world::{Action, Path, World};

/// Time for a health check where nothing is wrong.
const CHECK: Duration = Duration::from_millis(1);

/// What an endpoint got and did, beside what each endpoint counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The number of the request of each try that arrived, since the world began.
    pub tries: Vec<usize>,
    /// Requests that a fault struck or could have struck.
    pub struck: u64,
    /// Of them, those to be answered 503.
    pub failed: u64,
    /// Of them, those that were never answered.
    pub hung: u64,
    /// Of them, those that took longer than they would have.
    pub slowed: u64,
    /// Work that was finished while the fault lasted.
    pub finished: u64,
}

/// The part of the endpoint of this number.
#[derive(Debug)]
pub struct Part {
    world: Arc<World>,
    index: usize,
    draw: Mutex<Draw>,
    seen: Mutex<Seen>,
}

impl Part {
    /// Of this world.
    pub fn new(world: &Arc<World>, index: usize) -> Self {
        Self {
            world: world.clone(),
            index,
            draw: Mutex::new(Draw::new(world.seed, 1_000 + index as u64)),
            seen: Mutex::default(),
        }
    }

    /// What it got and did so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) -> MutexGuard<'_, Draw> {
        self.draw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request takes in its slot: half of the mean in any case, the rest exponential.
    fn service_time(&self) -> Duration {
        let factor = 0.5 + 0.5 * self.draw().exponential();
        self.world.service.mul_f64(factor)
    }

    /// A health check takes no slot, and fares as a request does otherwise. What strikes one route
    /// only does not strike it.
    fn check(&self, action: Option<Action>) -> Order {
        match action {
            Some(Action::Hang) => Order::Never,
            Some(Action::Slow(times)) => Order::After(CHECK.mul_f64(times), 200),
            Some(Action::Fail {
                share,
                bad_route_only: false,
                ..
            }) if self.draw().unit() < share => Order::Answer(503),
            _ => Order::After(CHECK, 200),
        }
    }
}

impl Script for Part {
    fn slots(&self) -> usize {
        self.world.slots
    }

    fn places(&self) -> Option<usize> {
        None
    }

    fn stops(&self) -> bool {
        false
    }

    fn condition(&self, at: Duration) -> (Reach, f64) {
        match self.world.action(self.index, at) {
            Some(Action::Refuse) => (Reach::Dead, 1.0),
            _ => (Reach::Up, 1.0),
        }
    }

    fn next_change(&self, after: Duration) -> Option<Duration> {
        self.world.next_change(self.index, after)
    }

    fn order(&self, request: &Parts, at: Option<Duration>) -> Order {
        let action = at.and_then(|at| self.world.action(self.index, at));
        if request.uri.path() == "/health" {
            return self.check(action);
        }
        let bad = request.uri.path() == Path::Bad.text();
        let action = action.filter(|action| {
            let Action::Fail { bad_route_only, .. } = action else {
                return true;
            };
            bad || !bad_route_only
        });
        let number = || {
            request
                .headers
                .get(NUMBER)?
                .to_str()
                .ok()?
                .parse::<usize>()
                .ok()
        };
        let mut seen = self.seen();
        if at.is_some() {
            seen.tries.extend(number());
        }
        seen.struck += u64::from(action.is_some());
        let time = self.service_time();
        match action {
            Some(Action::Hang) => {
                seen.hung += 1;
                Order::Never
            }
            Some(Action::Slow(times)) => {
                seen.slowed += 1;
                Order::Work(time.mul_f64(times), 200)
            }
            Some(Action::Fail { share, at_once, .. }) => {
                let fails = self.draw().unit() < share;
                seen.failed += u64::from(fails);
                match (fails, at_once) {
                    (true, true) => Order::Answer(503),
                    (true, false) => Order::Work(time, 503),
                    _ => Order::Work(time, 200),
                }
            }
            Some(Action::Refuse) | None => Order::Work(time, 200),
        }
    }

    fn finished(&self, at: Duration) {
        self.seen().finished += u64::from(self.world.in_fault(at));
    }
}
