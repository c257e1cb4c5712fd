//! The checks of one upstream: which VM makes them, when, and what becomes of the answers.

use super::target::{GONE, Target};
use super::{Checks, LOST, Pending};
use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::document::HealthCheck;
use crate::engine::TICK;
use crate::engine::metrics::MetricTable;
use crate::engine::upstream::Upstream;
use crate::host::{CallId, Calls, Host, MetricId, SharedCounter};
use crate::policy::health_check::Written;
use crate::policy::health_check::fingerprint;
use crate::policy::health_check::schedule::Schedule;
use crate::policy::health_check::{
    CheckReason, EndpointHealth, HealthChange, HealthRecord, Sample, staleness,
};
use crate::policy::lease::{Candidate, LeaseRecord, RENEW, Role};
use crate::store::RecordKind;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// How long a cluster is left alone that is not there, or has no endpoint.
const NO_CLUSTER_PAUSE: Nanos = Nanos::from_secs(1);

/// How soon a lease is read again that stayed contended.
const CONTENDED_PAUSE: Nanos = Nanos::from_millis(50);

/// The checks of an upstream.
#[derive(Debug)]
pub(super) struct Checker {
    pub(super) upstream: Rc<Upstream>,
    pub(super) check: HealthCheck,
    lease: LeaseRecord,
    owner: u64,
    fingerprint: u64,
    targets: RefCell<Vec<Rc<Target>>>,
    /// Of which version of the upstream's endpoints they are.
    version: Cell<u64>,
    run: RefCell<Run>,
    changes: SharedCounter,
    duration: SharedCounter,
    takeovers: MetricId,
    contention: MetricId,
    counters: Vec<(CheckReason, MetricId)>,
}

/// What a checker remembers.
#[derive(Debug, Default)]
struct Run {
    generation: Option<u32>,
    /// Until when the lease is its own.
    held: Option<Moment>,
    /// When it acts next.
    next: Moment,
    schedule: Option<Schedule>,
    /// Whether the last call could not be started.
    is_stuck: bool,
}

impl Checker {
    pub(super) fn new<H: Host>(upstream: &Rc<Upstream>, vm: u64, host: &H) -> Option<Self> {
        let config = &upstream.config;
        let (name, check) = (&config.name, config.health_check.clone()?);
        let metrics = MetricTable(host);
        let target = |(at, address): (usize, String)| Target::new(at, &address, name, &check, host);
        let present = upstream.present().into_iter().enumerate();
        Some(Self {
            targets: RefCell::new(present.map(target).collect()),
            version: Cell::new(upstream.version()),
            lease: LeaseRecord::new(RecordKind::HealthLease, name),
            owner: vm,
            fingerprint: fingerprint(
                &config.cluster,
                &config.override_header,
                &check,
                config.endpoints.iter().map(|it| it.address.as_str()),
            ),
            run: RefCell::default(),
            changes: metrics.endpoint_changes(name),
            duration: metrics.health_check_duration(name),
            takeovers: metrics.health_check_takeovers(name),
            contention: metrics.contention(name),
            counters: CheckReason::ALL
                .into_iter()
                .filter(|reason| *reason != CheckReason::Unchecked)
                .map(|reason| (reason, metrics.health_checks(name, reason.label())))
                .collect(),
            upstream: Rc::clone(upstream),
            check,
        })
    }

    /// Takes or renews the lease and starts what is due. Returns when it has to be called again.
    pub(super) fn act<H: Host + Calls>(
        self: &Rc<Self>,
        checks: &Checks,
        host: &H,
        now: Moment,
    ) -> Moment {
        let Ok(mut run) = self.run.try_borrow_mut() else {
            return now.plus(CONTENDED_PAUSE);
        };
        if now < run.next && run.next.since(now) <= TICK {
            return run.next;
        }
        self.follow(&mut run, checks, host, now);
        let former = run.held;
        match self.role(&mut run, host, now) {
            Some(Role::Standby(until)) => {
                run.held = None;
                // A little apart from the other VMs that wait for the same moment.
                let apart = Nanos(checks.rng.below(Nanos::from_millis(20).0));
                run.next = until.plus(apart).min(now.plus(TICK));
                return run.next;
            }
            // It may be ours: until the time that was written.
            None if former.is_none_or(|until| now >= until) => {
                run.held = None;
                run.next = now.plus(CONTENDED_PAUSE);
                return run.next;
            }
            None => {}
            Some(Role::Holder(until)) => {
                run.held = Some(until);
                if former.is_none() {
                    self.begin(&mut run, host, now);
                }
            }
        }
        self.start_due(&mut run, checks, host, now);
        let due = run.schedule.as_ref().map_or(Moment::MAX, Schedule::next);
        run.next = due
            .max(now.plus(Schedule::quantum(&self.check)))
            .min(now.plus(RENEW));
        run.next
    }

    fn targets(&self) -> Vec<Rc<Target>> {
        let targets = self.targets.try_borrow();
        targets.map(|targets| targets.clone()).unwrap_or_default()
    }

    /// Follows the upstream's endpoints where those may change.
    fn follow<H: Host>(&self, run: &mut Run, checks: &Checks, host: &H, now: Moment) {
        let version = self.upstream.version();
        if self.version.replace(version) == version {
            return;
        }
        let mut before = self.targets();
        sort::by(&mut before, |one, other| one.address < other.address);
        // With the place that each had.
        let left = |target: Rc<Target>| (target.at.replace(GONE), target);
        let before: Vec<_> = before.into_iter().map(left).collect();
        let (mut from, mut targets) = (Vec::new(), Vec::new());
        for (at, address) in self.upstream.present().into_iter().enumerate() {
            let known = before.binary_search_by(|(_, target)| target.address.cmp(&address));
            let known = known.ok().and_then(|known| before.get(known));
            from.push(known.map(|(was, _)| *was));
            targets.push(if let Some((_, known)) = known {
                known.at.set(at);
                Rc::clone(known)
            } else {
                let name = &self.upstream.config.name;
                let target = Target::new(at, &address, name, &self.check, host);
                target.begin(host, now);
                if run.held.is_some() {
                    // What is known is of who had the address before.
                    self.forget(checks, host, &target, now);
                }
                target
            });
        }
        let schedule = run.schedule.as_ref();
        run.schedule = schedule.map(|schedule| schedule.rearranged(&from, now));
        if let Ok(mut current) = self.targets.try_borrow_mut() {
            *current = targets;
        }
    }

    /// Whether this VM holds the lease; `None` if that is not known.
    fn role<H: Host>(&self, run: &mut Run, host: &H, now: Moment) -> Option<Role> {
        let me = Candidate {
            owner: self.owner,
            fingerprint: self.fingerprint,
            generation: run.generation,
        };
        let (role, generation) = self.lease.step(host, me, now).ok()?;
        run.generation = Some(generation);
        Some(role)
    }

    /// The lease has become ours.
    fn begin<H: Host>(&self, run: &mut Run, host: &H, now: Moment) {
        let unchecked =
            |target: &Rc<Target>| target.record.read(host).status == EndpointHealth::Unchecked;
        // Only at the proxy's start: a VM that takes over goes on where another has ended.
        let targets = self.targets();
        let fresh = run.schedule.is_none() && targets.iter().all(unchecked);
        let delay = if fresh {
            self.check.initial_delay
        } else {
            Nanos::ZERO
        };
        let start = now.plus(delay);
        run.schedule = Some(Schedule::new(targets.len(), start));
        targets.iter().for_each(|target| target.begin(host, start));
        host.add(self.takeovers, 1);
    }

    fn start_due<H: Host + Calls>(
        self: &Rc<Self>,
        run: &mut Run,
        checks: &Checks,
        host: &H,
        now: Moment,
    ) {
        let Run {
            schedule: Some(schedule),
            is_stuck,
            ..
        } = run
        else {
            return;
        };
        let targets = self.targets();
        for at in schedule.take_due(&self.check, now) {
            let Some(target) = targets.get(at) else {
                continue;
            };
            let room = checks.has_room();
            if let Some(id) = room.then(|| self.ask(target, host)).flatten() {
                *is_stuck = false;
                checks.add(self.pending(id, target, now));
                continue;
            }
            let pause = if room {
                NO_CLUSTER_PAUSE
            } else {
                CONTENDED_PAUSE
            };
            schedule.put_off(at, now, pause);
            if room && !std::mem::replace(is_stuck, true) {
                self.log_stuck(checks, host);
            }
            if now.since(target.answered.get()) > staleness(self.check.interval) {
                self.forget(checks, host, target, now);
            }
        }
    }

    fn pending(self: &Rc<Self>, id: CallId, target: &Rc<Target>, now: Moment) -> Pending {
        Pending {
            id,
            checker: Rc::clone(self),
            target: Rc::clone(target),
            asked: now,
            give_up: now.plus(self.check.timeout).plus(LOST),
        }
    }

    /// A call has ended so; without a sample nobody was asked.
    pub(super) fn end<H: Host>(
        &self,
        checks: &Checks,
        host: &H,
        call: &Pending,
        sample: Option<&Sample>,
        now: Moment,
    ) {
        let Ok(mut run) = self.run.try_borrow_mut() else {
            return;
        };
        let run = &mut *run;
        let target = &call.target;
        let is_there = target.at.get() != GONE;
        let held = is_there && run.held.is_some_and(|until| now < until);
        let doubtful = held && target.is_doubtful(host, now);
        let unsettled = if let Some(sample) = sample.filter(|_| !doubtful) {
            target.answered.set(now);
            held && self.judge(checks, host, call, sample, now)
        } else {
            let silent = now.since(target.answered.get());
            if held && (doubtful || silent > staleness(self.check.interval)) {
                self.forget(checks, host, target, now);
            }
            false
        };
        if let Some(schedule) = &mut run.schedule {
            schedule.answered(
                target.at.get(),
                &self.check,
                unsettled,
                call.asked,
                now,
                checks.rng.bits(),
            );
            run.next = run.next.min(schedule.next());
        }
    }

    /// Counts an answer, and judges its endpoint by it. Returns whether it does not fit what the
    /// endpoint is held to be.
    fn judge<H: Host>(
        &self,
        checks: &Checks,
        host: &H,
        call: &Pending,
        sample: &Sample,
        now: Moment,
    ) -> bool {
        let Ok(mut streaks) = call.target.streaks.try_borrow_mut() else {
            return false;
        };
        streaks.count(sample, &self.check, now);
        let mut counters = self.counters.iter();
        if let Some((_, counter)) = counters.find(|(reason, _)| *reason == sample.reason) {
            host.add(*counter, 1);
        }
        if !matches!(
            sample.reason,
            CheckReason::Timeout | CheckReason::Unreachable
        ) {
            host.store(self.duration, now.since(call.asked).as_millis());
        }
        let record = self.write(checks, host, &call.target, |record| {
            let wall = host.wall().as_secs();
            streaks.judge(record, sample, &self.check, now, wall)
        });
        record.is_some_and(|record| streaks.are_unsettled(&record, &self.check))
    }

    /// An endpoint could not be checked for too long: its state is unknown again.
    fn forget<H: Host>(&self, checks: &Checks, host: &H, target: &Target, now: Moment) {
        self.write(checks, host, target, |record| {
            let known = record.status != EndpointHealth::Unchecked;
            let since_unix = host.wall().as_secs();
            let unknown = HealthRecord {
                names: record.names,
                components: vec![EndpointHealth::Unchecked; record.components.len()],
                since: now,
                since_unix,
                ..HealthRecord::default()
            };
            HealthChange {
                record: known.then_some(unknown),
                is_new_state: known,
                is_new_component: known,
            }
        });
    }

    /// Changes an endpoint's record, and reports what has changed; what it is then.
    fn write<H: Host>(
        &self,
        checks: &Checks,
        host: &H,
        target: &Target,
        step: impl Fn(&HealthRecord) -> HealthChange,
    ) -> Option<HealthRecord> {
        let Ok(written) = target.record.update(host, step) else {
            host.add(self.contention, 1);
            return None;
        };
        let change = &written.change;
        if change.is_new_state || change.is_new_component {
            // After the record: a worker that sees the count move finds what has changed.
            host.increment(self.changes, 1);
        }
        if change.record.is_some() {
            host.record(target.reason, written.new.reason as u64);
        }
        if change.is_new_state {
            host.record(target.changed, written.new.since_unix);
            self.log_state(checks, host, target, &written);
        }
        if change.is_new_component {
            self.log_components(checks, host, target, &written);
        }
        Some(written.new)
    }

    fn log_stuck<H: Host>(&self, checks: &Checks, host: &H) {
        checks.logs.write(host, log::Level::Warn, || {
            [
                "health check of ",
                &self.upstream.config.name,
                ": nobody can be asked in the cluster ",
                &self.upstream.config.cluster,
            ]
            .concat()
        });
    }

    fn log_state<H: Host>(&self, checks: &Checks, host: &H, target: &Target, written: &Written) {
        let (old, new) = (&written.old, &written.new);
        let level = if new.status.is_usable() {
            log::Level::Info
        } else {
            log::Level::Warn
        };
        checks.logs.write(host, level, || {
            [
                "endpoint ",
                &target.address,
                " of ",
                &self.upstream.config.name,
                ": ",
                old.status.word(),
                " -> ",
                new.status.word(),
                ": ",
                &new.reason.text(new.detail, &self.check),
            ]
            .concat()
        });
    }

    fn log_components<H: Host>(
        &self,
        checks: &Checks,
        host: &H,
        target: &Target,
        written: &Written,
    ) {
        let states = written.old.components.iter().zip(&written.new.components);
        for (component, (from, to)) in self.check.components.iter().zip(states) {
            if from == to {
                continue;
            }
            let level = if to.is_down() {
                log::Level::Warn
            } else {
                log::Level::Info
            };
            checks.logs.write(host, level, || {
                [
                    "component ",
                    &component.name,
                    " of ",
                    &target.address,
                    " of ",
                    &self.upstream.config.name,
                    ": ",
                    from.word(),
                    " -> ",
                    to.word(),
                ]
                .concat()
            });
        }
    }
}
