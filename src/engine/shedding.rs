//! When a limit last refused, as all workers know it.
//!
//! A client with one connection is one worker's. So one worker may refuse most of what comes while
//! another, which has only those who ask for little, refuses nothing: that one must not take the
//! upstream for idle. (Bug avoided: it doubled the limit again and again, beside an abusive client
//! of the other's.)
//!
//! Who refuses says so, and who is asked looks, each at most once in [`EVERY`]: a call of some
//! 1,000 instructions, in which the number is no older than that.

use crate::base::time::{Moment, Nanos};
use crate::host::{SharedCounter, SharedCounters};
use std::cell::Cell;

/// How often a worker says, and looks.
const EVERY: Nanos = Nanos::from_millis(20);

/// What a worker knows of when a limit refused.
#[derive(Debug)]
pub(super) struct Shedding {
    shared: SharedCounter,
    at: Cell<Option<Moment>>,
    told: Cell<Option<Moment>>,
    looked: Cell<Option<Moment>>,
}

impl Shedding {
    /// `shared`: where workers say it to each other.
    pub(super) const fn new(shared: SharedCounter) -> Self {
        Self {
            shared,
            at: Cell::new(None),
            told: Cell::new(None),
            looked: Cell::new(None),
        }
    }

    /// This worker has refused something.
    pub(super) fn refused<H: SharedCounters>(&self, host: &H, now: Moment) {
        self.at.set(Some(now));
        if is_due(&self.told, now) {
            host.store(self.shared, now.0);
        }
    }

    /// Learns of what others have refused.
    pub(super) fn look<H: SharedCounters>(&self, host: &H, now: Moment) {
        if is_due(&self.looked, now) {
            let said = Moment(host.load(self.shared));
            // From the future: the clock has stepped back.
            let said = Some(said).filter(|at| *at <= now && *at > Moment::ZERO);
            self.at.set(self.at.get().filter(|at| *at <= now).max(said));
        }
    }

    /// Whether anything was refused within this time, as far as was looked.
    pub(super) fn is_within(&self, time: Nanos, now: Moment) -> bool {
        self.at.get().is_some_and(|at| at.is_within(time, now))
    }

    /// When something was refused last, as far as was looked.
    pub(super) const fn last(&self) -> Option<Moment> {
        self.at.get()
    }
}

/// Whether it is time again; it counts as done.
fn is_due(last: &Cell<Option<Moment>>, now: Moment) -> bool {
    let due = last.get().is_none_or(|at| !at.is_within(EVERY, now));
    if due {
        last.set(Some(now));
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostKind;
    use crate::host::sim::{Machine, Worker};
    use std::rc::Rc;

    #[test]
    fn workers_know_of_each_other_what_they_refuse_and_a_clock_may_step_back() {
        let machine = Machine::new(HostKind::Envoy, 1);
        let worker = Worker(Rc::clone(&machine));
        let shared = worker.define_stored("refused_at");
        let [one, other] = [(); 2].map(|()| Shedding::new(shared));
        machine.advance(Nanos::from_secs(10));
        let second = Nanos::from_secs(1);
        let known = |by: &Shedding| {
            by.look(&worker, machine.now());
            by.is_within(second, machine.now())
        };
        assert!(!known(&one) && !known(&other));
        one.refused(&worker, machine.now());
        assert!(known(&one) && !known(&other), "it has just looked");
        machine.advance(EVERY);
        assert!(known(&other));
        machine.set_clock(Moment::from_secs(5));
        assert!(!known(&other), "what is to come is not known");
        one.refused(&worker, machine.now());
        machine.advance(EVERY);
        assert!(known(&one) && known(&other));
        machine.advance(second);
        assert!(!known(&one) && !known(&other));
    }
}
