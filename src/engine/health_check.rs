//! Active checks at run time: who asks, what is asked, and what is done with the answers.
//!
//! A VM that ticks asks itself for each upstream whether the lease is its own ([`lease`]): one
//! reading of shared data in each tick that it acts in. Its holder starts what is due and ticks as
//! often as that needs; the others come back when the lease runs out. An answer costs a reading of
//! the endpoint's record, and a write only when something changes.

mod call;
mod checker;
mod fingerprint;

use super::logs::LogLimiter;
use crate::base::hash::of_names;
use crate::base::rng::Rng;
use crate::base::time::Nanos;
use crate::config::{self, HealthCheck};
use crate::host::{CallAnswer, CallId, Calls, Host};
use crate::policy::health_check::{CheckReason, EndpointHealth, HealthRecord, Sample};
use crate::store::{self, RecordKey, RecordKind};
use checker::Checker;
use std::cell::RefCell;
use std::rc::Rc;

/// How long a call is waited for beyond its time: a host that has lost it must not keep its place
/// for ever.
pub(super) const LOST: Nanos = Nanos::from_secs(1);

/// The most calls in flight from one VM, for all upstreams.
pub(super) const MAX_CALLS: usize = 512;

/// What checks say of an endpoint: what a worker keeps of its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CheckResult {
    pub status: EndpointHealth,
    pub reason: CheckReason,
    pub detail: u16,
    /// Since when, on the monotonic clock.
    pub since: Nanos,
}

/// Where an endpoint's record is, and how it is read.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    key: RecordKey,
    names: u32,
    count: usize,
}

impl Cell {
    /// The record of an endpoint of this upstream.
    pub(super) fn new(upstream: &str, endpoint: &str, check: &HealthCheck) -> Self {
        let names: Vec<&str> = check
            .components
            .iter()
            .map(|component| component.name.as_str())
            .collect();
        #[allow(clippy::cast_possible_truncation, reason = "a hash")]
        let hash = of_names(&names) as u32;
        Self {
            key: RecordKey::new(RecordKind::Health, of_names(&[upstream, endpoint]), 0),
            names: hash,
            count: names.len(),
        }
    }

    /// What is known of it.
    pub(super) fn read<H: Host>(&self, host: &H) -> HealthRecord {
        HealthRecord::decode(
            &store::read(host, &self.key).unwrap_or_default(),
            self.names,
            self.count,
        )
    }
}

/// All checks of an engine.
#[derive(Debug)]
pub(super) struct Checks {
    upstreams: Vec<Checker>,
    pending: RefCell<Vec<Pending>>,
    logs: Rc<LogLimiter>,
    rng: Rng,
}

/// A call that is not answered yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    id: CallId,
    /// Index of its checker, and of the endpoint there.
    checker: usize,
    endpoint: usize,
    asked: Nanos,
    give_up: Nanos,
}

impl Checks {
    /// The checks of these upstreams. `vm` tells this engine from all others.
    pub(super) fn new<H: Host>(
        config: &config::Config,
        vm: u64,
        logs: &Rc<LogLimiter>,
        host: &H,
    ) -> Self {
        let upstreams = config
            .upstreams
            .iter()
            .filter(|upstream| is_checked(config, upstream));
        Self {
            upstreams: upstreams
                .filter_map(|upstream| Checker::new(upstream, vm, host))
                .collect(),
            pending: RefCell::default(),
            logs: Rc::clone(logs),
            rng: Rng::new(host.entropy()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.upstreams.is_empty()
    }

    /// Does what is due; when it wants to be called again.
    pub(super) fn run<H: Host + Calls>(&self, host: &H, now: Nanos) -> Nanos {
        self.give_up(host, now);
        let mut next = Nanos::MAX;
        for (at, checker) in self.upstreams.iter().enumerate() {
            next = next.min(checker.act(self, at, host, now));
        }
        next.min(
            self.pending
                .try_borrow()
                .ok()
                .and_then(|all| all.iter().map(|call| call.give_up).min())
                .unwrap_or(Nanos::MAX),
        )
    }

    /// A call was answered.
    pub(super) fn answered<H: Host>(&self, host: &H, id: CallId, answer: &CallAnswer, now: Nanos) {
        let found = self.pending.try_borrow_mut().ok().and_then(|mut all| {
            let at = all.iter().position(|call| call.id == id)?;
            Some(all.swap_remove(at))
        });
        let Some(call) = found else { return };
        if let Some(checker) = self.upstreams.get(call.checker) {
            let sample = checker.sample(answer, now.since(call.asked), host);
            checker.end(self, host, &call, &sample, now);
        }
    }

    /// Gives up calls of which nothing was heard.
    fn give_up<H: Host>(&self, host: &H, now: Nanos) {
        loop {
            let lost = self.pending.try_borrow_mut().ok().and_then(|mut all| {
                let at = all.iter().position(|call| call.give_up <= now)?;
                Some(all.swap_remove(at))
            });
            let Some(call) = lost else { return };
            if let Some(checker) = self.upstreams.get(call.checker) {
                checker.end(
                    self,
                    host,
                    &call,
                    &Sample::new(EndpointHealth::Down, CheckReason::Timeout, 0),
                    now,
                );
            }
        }
    }
}

/// Whether an upstream's endpoints are checked.
pub(super) fn is_checked(config: &config::Config, upstream: &config::Upstream) -> bool {
    upstream.health_check.is_some() && upstream.mode.unwrap_or(config.mode) != config::Mode::Off
}
