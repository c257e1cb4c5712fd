//! The checks of one upstream: who makes them, when, and what becomes of the answers.

use super::fingerprint::fingerprint;
use super::{Cell, Checks, LOST, MAX_CALLS, Pending};
use crate::base::hash::of_names;
use crate::base::time::Nanos;
use crate::config::{self, HealthCheck};
use crate::engine::TICK;
use crate::engine::metrics::MetricTable;
use crate::host::{Calls, Host, MetricId};
use crate::policy::health_check::lease::{Candidate, Lease, RENEW, Role};
use crate::policy::health_check::schedule::Schedule;
use crate::policy::health_check::{
    CheckReason, EndpointHealth, HealthChange, HealthRecord, Sample, Streaks, staleness,
};
use crate::store::{self, RecordKey, RecordKind, Step};
use std::cell::RefCell;

/// The checks of an upstream.
#[derive(Debug)]
pub(super) struct Checker {
    pub(super) upstream: String,
    pub(super) cluster: String,
    pub(super) override_header: String,
    pub(super) check: HealthCheck,
    pub(super) lease: RecordKey,
    pub(super) owner: u64,
    pub(super) fingerprint: u64,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) run: RefCell<Run>,
    pub(super) changes: MetricId,
    pub(super) duration: MetricId,
    pub(super) takeovers: MetricId,
    pub(super) contention: MetricId,
    pub(super) counters: Vec<(CheckReason, MetricId)>,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) cell: Cell,
    pub(super) reason: MetricId,
    pub(super) changed: MetricId,
}

/// What a checker remembers.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) generation: Option<u32>,
    /// Until when the lease is its own.
    pub(super) held: Option<Nanos>,
    /// When it acts next.
    pub(super) next: Nanos,
    pub(super) schedule: Option<Schedule>,
    pub(super) rows: Vec<Streaks>,
    /// When each endpoint's last answer came, or this checker began.
    pub(super) heard: Vec<Nanos>,
    /// Whether it was told that nobody can be asked.
    pub(super) is_stuck: bool,
}

/// How long a cluster is left alone that is not there, or has nobody.
pub(super) const NO_CLUSTER_PAUSE: Nanos = Nanos::from_secs(1);

/// How soon a lease is asked for again that could not be read for contention.
pub(super) const CONTENDED_PAUSE: Nanos = Nanos::from_millis(50);

impl Checker {
    pub(super) fn new<H: Host>(upstream: &config::Upstream, vm: u64, host: &H) -> Option<Self> {
        let check = upstream.health_check.clone()?;
        let names = MetricTable(host);
        let endpoint = |it: &config::Endpoint| Endpoint {
            address: it.address.clone(),
            cell: Cell::new(&upstream.name, &it.address, &check),
            reason: names.endpoint_reason(&upstream.name, &it.address),
            changed: names.endpoint_changed(&upstream.name, &it.address),
        };
        Some(Self {
            endpoints: upstream.endpoints.iter().map(endpoint).collect(),
            upstream: upstream.name.clone(),
            cluster: upstream.cluster.clone(),
            override_header: upstream.override_header.clone(),
            lease: RecordKey::new(RecordKind::HealthLease, of_names(&[&upstream.name]), 0),
            owner: vm,
            fingerprint: fingerprint(upstream, &check),
            run: RefCell::default(),
            changes: names.endpoint_changes(&upstream.name),
            duration: names.health_check_duration(&upstream.name),
            takeovers: names.health_check_takeovers(&upstream.name),
            contention: names.contention(&upstream.name),
            counters: CheckReason::ALL
                .into_iter()
                .filter(|reason| *reason != CheckReason::Unchecked)
                .map(|reason| (reason, names.health_checks(&upstream.name, reason.label())))
                .collect(),
            check,
        })
    }

    /// Sees to the lease and starts what is due; when it wants to be called again.
    pub(super) fn act<H: Host + Calls>(
        &self,
        checks: &Checks,
        own: usize,
        host: &H,
        now: Nanos,
    ) -> Nanos {
        let Ok(mut run) = self.run.try_borrow_mut() else {
            return now.plus(CONTENDED_PAUSE);
        };
        if now < run.next && run.next.since(now) <= TICK {
            return run.next;
        }
        let former = run.held;
        match self.role(&mut run, host, now) {
            Some(Role::Standby(until)) => {
                run.held = None;
                // A little apart from the others who wait for the same moment.
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
        self.start_due(&mut run, checks, own, host, now);
        let due = run.schedule.as_ref().map_or(Nanos::MAX, Schedule::next);
        run.next = due
            .max(now.plus(Schedule::quantum(&self.check)))
            .min(now.plus(RENEW));
        run.next
    }

    /// Whether the lease is ours; `None` if that cannot be said.
    pub(super) fn role<H: Host>(&self, run: &mut Run, host: &H, now: Nanos) -> Option<Role> {
        let me = Candidate {
            owner: self.owner,
            fingerprint: self.fingerprint,
            generation: run.generation,
        };
        let (role, generation) = store::update(host, &self.lease, |bytes| {
            let (role, generation, new) = Lease::decode(bytes).step(me, now);
            match new {
                None => Step::Keep((role, generation)),
                Some(lease) => {
                    lease.encode(bytes);
                    Step::Write((role, generation))
                }
            }
        })
        .ok()?;
        run.generation = Some(generation);
        Some(role)
    }

    /// The lease has become ours.
    pub(super) fn begin<H: Host>(&self, run: &mut Run, host: &H, now: Nanos) {
        let count = self.endpoints.len();
        let first = run.schedule.is_none();
        // Only at the proxy's start: who takes over goes on where another has ended.
        let fresh = first
            && self
                .endpoints
                .iter()
                .all(|endpoint| endpoint.cell.read(host).status == EndpointHealth::Unchecked);
        let delay = if fresh {
            self.check.initial_delay
        } else {
            Nanos::ZERO
        };
        run.schedule = Some(Schedule::new(count, now.plus(delay)));
        run.rows = vec![Streaks::default(); count];
        run.heard = vec![now.plus(delay); count];
        host.add(self.takeovers, 1);
    }

    pub(super) fn start_due<H: Host + Calls>(
        &self,
        run: &mut Run,
        checks: &Checks,
        own: usize,
        host: &H,
        now: Nanos,
    ) {
        let Run {
            schedule: Some(schedule),
            heard,
            is_stuck,
            ..
        } = run
        else {
            return;
        };
        for at in schedule.take_due(&self.check, now) {
            let room = checks
                .pending
                .try_borrow()
                .is_ok_and(|all| all.len() < MAX_CALLS);
            let asked = self
                .endpoints
                .get(at)
                .filter(|_| room)
                .and_then(|endpoint| self.ask(endpoint, host));
            match asked {
                Some(id) => {
                    *is_stuck = false;
                    let give_up = now.plus(self.check.timeout).plus(LOST);
                    if let Ok(mut all) = checks.pending.try_borrow_mut() {
                        all.push(Pending {
                            id,
                            checker: own,
                            endpoint: at,
                            asked: now,
                            give_up,
                        });
                    }
                }
                None => {
                    schedule.put_off(
                        at,
                        now,
                        if room {
                            NO_CLUSTER_PAUSE
                        } else {
                            CONTENDED_PAUSE
                        },
                    );
                    if room && !std::mem::replace(is_stuck, true) {
                        checks.logs.write(host, log::Level::Warn, || {
                            let cluster = &self.cluster;
                            [
                                "health check of ",
                                &self.upstream,
                                ": nobody can be asked in the cluster ",
                                cluster,
                            ]
                            .concat()
                        });
                    }
                    if heard
                        .get(at)
                        .is_some_and(|heard| now.since(*heard) > staleness(self.check.interval))
                    {
                        self.forget(checks, host, at, now);
                    }
                }
            }
        }
    }

    /// A call has ended so.
    pub(super) fn end<H: Host>(
        &self,
        checks: &Checks,
        host: &H,
        call: &Pending,
        sample: &Sample,
        now: Nanos,
    ) {
        let Ok(mut run) = self.run.try_borrow_mut() else {
            return;
        };
        let run = &mut *run;
        let at = call.endpoint;
        let held = run.held.is_some_and(|until| now < until);
        let (Some(endpoint), Some(rows)) = (self.endpoints.get(at), run.rows.get_mut(at)) else {
            return;
        };
        let mut unsettled = false;
        if held {
            rows.count(sample, &self.check, now);
            if let Some((_, counter)) = self
                .counters
                .iter()
                .find(|(reason, _)| *reason == sample.reason)
            {
                host.add(*counter, 1);
            }
            if !matches!(
                sample.reason,
                CheckReason::Timeout | CheckReason::Unreachable
            ) {
                host.record(self.duration, now.since(call.asked).as_millis());
            }
            let rows = &*rows;
            let record = self.write(checks, host, endpoint, |record| {
                rows.judge(
                    record,
                    sample,
                    &self.check,
                    now,
                    host.wall().as_millis() / 1_000,
                )
            });
            unsettled = record.is_some_and(|record| rows.are_unsettled(&record, &self.check));
        }
        if let Some(heard) = run.heard.get_mut(at) {
            *heard = now;
        }
        if let Some(schedule) = &mut run.schedule {
            schedule.answered(
                at,
                &self.check,
                unsettled,
                call.asked,
                now,
                checks.rng.bits(),
            );
            run.next = run.next.min(schedule.next());
        }
    }

    /// Nobody could ask an endpoint for too long: nothing is known of it any more.
    pub(super) fn forget<H: Host>(&self, checks: &Checks, host: &H, at: usize, now: Nanos) {
        let Some(endpoint) = self.endpoints.get(at) else {
            return;
        };
        self.write(checks, host, endpoint, |record| {
            let known = record.status != EndpointHealth::Unchecked;
            let since_unix = host.wall().as_millis() / 1_000;
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

    /// Changes an endpoint's record, and tells of it; what it is then.
    pub(super) fn write<H: Host>(
        &self,
        checks: &Checks,
        host: &H,
        endpoint: &Endpoint,
        step: impl Fn(&HealthRecord) -> HealthChange,
    ) -> Option<HealthRecord> {
        let cell = &endpoint.cell;
        let written = store::update(host, &cell.key, |bytes| {
            let record = HealthRecord::decode(bytes, cell.names, cell.count);
            let change = step(&record);
            match &change.record {
                None => Step::Keep((record.clone(), record, HealthChange::default())),
                Some(new) => {
                    new.encode(bytes);
                    Step::Write((record, new.clone(), change))
                }
            }
        });
        let Ok((old, new, change)) = written else {
            host.add(self.contention, 1);
            return None;
        };
        if change.is_new_state || change.is_new_component {
            // After the record: who sees the count move finds what has changed.
            host.add(self.changes, 1);
        }
        if change.record.is_some() {
            host.record(endpoint.reason, new.reason as u64);
        }
        if change.is_new_state {
            host.record(endpoint.changed, new.since_unix);
            let level = if new.status.is_usable() {
                log::Level::Info
            } else {
                log::Level::Warn
            };
            checks.logs.write(host, level, || {
                let why = new.reason.text(new.detail, &self.check);
                let (from, to) = (old.status.word(), new.status.word());
                [
                    "endpoint ",
                    &endpoint.address,
                    " of ",
                    &self.upstream,
                    ": ",
                    from,
                    " -> ",
                    to,
                    ": ",
                    &why,
                ]
                .concat()
            });
        }
        for ((component, from), to) in self
            .check
            .components
            .iter()
            .zip(&old.components)
            .zip(&new.components)
        {
            if change.is_new_component && from != to {
                let level = if to.is_down() {
                    log::Level::Warn
                } else {
                    log::Level::Info
                };
                checks.logs.write(host, level, || {
                    let (name, from, to) = (&component.name, from.word(), to.word());
                    [
                        "component ",
                        name,
                        " of ",
                        &endpoint.address,
                        " of ",
                        &self.upstream,
                        ": ",
                        from,
                        " -> ",
                        to,
                    ]
                    .concat()
                });
            }
        }
        Some(new)
    }
}
