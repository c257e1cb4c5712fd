//! Active checks at run time: which VM checks, what it sends, and what becomes of the answers.
//!
//! A VM that ticks reads for each upstream whether it holds the lease
//! ([`crate::policy::lease`]): one reading of shared data in each tick that it acts
//! in. The holder starts what is due and ticks as often as that needs; the others come back when
//! the lease runs out. An answer costs a reading of the endpoint's record, and a write only when
//! the record changes.

mod call;
mod checker;
mod target;

use super::logs::LogLimiter;
use super::upstream::Upstream;
use crate::base::rng::Rng;
use crate::base::time::{Moment, Nanos};
use crate::document;
use crate::host::{CallAnswer, CallId, Calls, Host};
use crate::policy::health_check::{CheckReason, EndpointHealth, Sample};
use call::was_refused;
use checker::Checker;
use std::cell::RefCell;
use std::rc::Rc;
use target::Target;

/// How long a call is waited for beyond its time: a host that has lost it must not keep its place
/// for ever.
const LOST: Nanos = Nanos::from_secs(1);

/// The most calls in flight from one VM, for all upstreams.
const MAX_CALLS: usize = 512;

/// All checks of an engine.
#[derive(Debug)]
pub(super) struct Checks {
    checkers: Vec<Rc<Checker>>,
    pending: RefCell<Vec<Pending>>,
    /// How many may be in flight at once.
    most: usize,
    logs: Rc<LogLimiter>,
    rng: Rng,
}

/// A call that is not answered yet.
#[derive(Debug)]
struct Pending {
    id: CallId,
    checker: Rc<Checker>,
    target: Rc<Target>,
    asked: Moment,
    give_up: Moment,
}

impl Checks {
    /// The checks of those of these upstreams that are checked. `vm` is the number of this engine,
    /// in this VM, and no other's.
    pub(super) fn new<H: Host>(
        upstreams: &[Rc<Upstream>],
        vm: u64,
        logs: &Rc<LogLimiter>,
        host: &H,
    ) -> Self {
        let checkers = upstreams
            .iter()
            .filter(|upstream| upstream.is_checked())
            .filter_map(|upstream| Checker::new(upstream, vm, host).map(Rc::new));
        Self {
            checkers: checkers.collect(),
            pending: RefCell::default(),
            most: MAX_CALLS.min(host.kind().most_calls()),
            logs: Rc::clone(logs),
            rng: Rng::new(host.entropy()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.checkers.is_empty()
    }

    /// Does what is due. Returns when it has to be called again.
    pub(super) fn run<H: Host + Calls>(&self, host: &H, now: Moment) -> Moment {
        self.give_up(host, now);
        let mut next = Moment::MAX;
        for checker in &self.checkers {
            next = next.min(checker.act(self, host, now));
        }
        next.min(
            self.pending
                .try_borrow()
                .ok()
                .and_then(|all| all.iter().map(|call| call.give_up).min())
                .unwrap_or(Moment::MAX),
        )
    }

    /// A call was answered.
    pub(super) fn answered<H: Host>(&self, host: &H, id: CallId, answer: &CallAnswer, now: Moment) {
        if let Some(call) = self.take(|call| call.id == id) {
            let took = now.since(call.asked);
            let sample = call.checker.sample(answer, took, host);
            let sample = (!was_refused(answer)).then_some(&sample);
            call.checker.end(self, host, &call, sample, now);
        }
    }

    /// Gives up calls without an answer.
    fn give_up<H: Host>(&self, host: &H, now: Moment) {
        let lost = Sample::new(EndpointHealth::Down, CheckReason::Timeout, 0);
        while let Some(call) = self.take(|call| call.give_up <= now) {
            call.checker.end(self, host, &call, Some(&lost), now);
        }
    }

    /// Takes out the first pending call that is `wanted`.
    fn take(&self, wanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let mut all = self.pending.try_borrow_mut().ok()?;
        let at = all.iter().position(wanted)?;
        Some(all.swap_remove(at))
    }

    /// Whether one more call may be in flight.
    fn has_room(&self) -> bool {
        self.pending
            .try_borrow()
            .is_ok_and(|all| all.len() < self.most)
    }

    fn add(&self, call: Pending) {
        if let Ok(mut all) = self.pending.try_borrow_mut() {
            all.push(call);
        }
    }
}

/// Whether an upstream's endpoints are checked.
pub(super) fn is_checked(config: &document::Config, upstream: &document::Upstream) -> bool {
    upstream.health_check.is_some() && upstream.mode.unwrap_or(config.mode) != document::Mode::Off
}
