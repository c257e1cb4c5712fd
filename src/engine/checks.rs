//! Active checks at run time: who asks, what is asked, and what is done with the answers.
//!
//! A VM that ticks asks itself for each upstream whether the lease is its own ([`lease`]): one
//! reading of shared data in each tick that it acts in. Its holder starts what is due and ticks as
//! often as that needs; the others come back when the lease runs out. An answer costs a reading of
//! the endpoint's record, and a write only when something changes.

use super::breaker::Telling;
use super::metrics::Names;
use crate::base::hash::of_names;
use crate::base::headers::{HeaderMap, parse_number};
use crate::base::rng::Rng;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::config::{self, Ask, HealthCheck};
use crate::host::{Call, CallAnswer, CallId, Calls, Host, MetricId};
use crate::policy::health_check::lease::{Candidate, Lease, RENEW, Role};
use crate::policy::health_check::schedule::Schedule;
use crate::policy::health_check::state::{
    CheckReason, EndpointHealth, HealthChange, Record, Sample, Streaks, staleness,
};
use crate::policy::health_check::{grpc, report};
use crate::store::{self, RecordKey, RecordKind, Step};
use std::cell::RefCell;
use std::rc::Rc;

/// How long a call is waited for beyond its time: a host that has lost it must not keep its place
/// for ever.
const LOST: Nanos = Nanos::from_secs(1);

/// How long a cluster is left alone that is not there, or has nobody.
const NO_CLUSTER_PAUSE: Nanos = Nanos::from_secs(1);

/// How soon a lease is asked for again that could not be read for contention.
const CONTENDED_PAUSE: Nanos = Nanos::from_millis(50);

/// The most calls in flight from one VM, for all upstreams.
const MAX_CALLS: usize = 512;

/// What checks say of an endpoint: what a worker keeps of its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
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
    pub(super) fn read<H: Host>(&self, host: &H) -> Record {
        Record::decode(
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
    telling: Rc<Telling>,
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

/// The checks of an upstream.
#[derive(Debug)]
struct Checker {
    upstream: String,
    cluster: String,
    override_header: String,
    check: HealthCheck,
    lease: RecordKey,
    owner: u64,
    fingerprint: u64,
    endpoints: Vec<Endpoint>,
    run: RefCell<Run>,
    changes: MetricId,
    duration: MetricId,
    takeovers: MetricId,
    contention: MetricId,
    counters: Vec<(CheckReason, MetricId)>,
}

#[derive(Debug)]
struct Endpoint {
    address: String,
    cell: Cell,
    reason: MetricId,
    changed: MetricId,
}

/// What a checker remembers.
#[derive(Debug, Default)]
struct Run {
    generation: Option<u32>,
    /// Until when the lease is its own.
    held: Option<Nanos>,
    /// When it acts next.
    next: Nanos,
    schedule: Option<Schedule>,
    rows: Vec<Streaks>,
    /// When each endpoint's last answer came, or this checker began.
    heard: Vec<Nanos>,
    /// Whether it was told that nobody can be asked.
    is_stuck: bool,
}

impl Checks {
    /// The checks of these upstreams. `vm` tells this engine from all others.
    pub(super) fn new<H: Host>(
        config: &config::Config,
        vm: u64,
        telling: &Rc<Telling>,
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
            telling: Rc::clone(telling),
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

impl Checker {
    fn new<H: Host>(upstream: &config::Upstream, vm: u64, host: &H) -> Option<Self> {
        let check = upstream.health_check.clone()?;
        let names = Names(host);
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
    fn act<H: Host + Calls>(&self, checks: &Checks, own: usize, host: &H, now: Nanos) -> Nanos {
        let Ok(mut run) = self.run.try_borrow_mut() else {
            return now.plus(CONTENDED_PAUSE);
        };
        if now < run.next && run.next.since(now) <= super::TICK {
            return run.next;
        }
        let former = run.held;
        match self.role(&mut run, host, now) {
            Some(Role::Standby(until)) => {
                run.held = None;
                // A little apart from the others who wait for the same moment.
                let apart = Nanos(checks.rng.below(Nanos::from_millis(20).0));
                run.next = until.plus(apart).min(now.plus(super::TICK));
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
    fn role<H: Host>(&self, run: &mut Run, host: &H, now: Nanos) -> Option<Role> {
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
    fn begin<H: Host>(&self, run: &mut Run, host: &H, now: Nanos) {
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

    fn start_due<H: Host + Calls>(
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
                        checks.telling.write(host, log::Level::Warn, || {
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

    /// Asks an endpoint.
    fn ask<H: Calls>(&self, endpoint: &Endpoint, host: &H) -> Option<CallId> {
        let timeout = self.check.timeout;
        let chosen = (self.override_header.as_str(), endpoint.address.as_str());
        let call = match &self.check.ask {
            Ask::Http {
                path,
                host: authority,
                ..
            } => {
                let authority = authority.as_deref().unwrap_or(&endpoint.address);
                let headers = [
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":path", path),
                    (":authority", authority),
                    ("accept", "application/json, */*;q=0.5"),
                    ("user-agent", "haven-health-check"),
                    chosen,
                ];
                host.call(&Call::Http {
                    cluster: &self.cluster,
                    headers: &headers,
                    timeout,
                })
            }
            Ask::Grpc { service } => host.call(&Call::Grpc {
                cluster: &self.cluster,
                service: grpc::SERVICE,
                method: grpc::METHOD,
                metadata: &[chosen],
                message: &grpc::request(service),
                timeout,
            }),
        };
        call.ok()
    }

    /// What an answer says.
    fn sample<H: Host>(&self, answer: &CallAnswer, took: Nanos, host: &H) -> Sample {
        let late = took >= self.check.timeout;
        match (answer, &self.check.ask) {
            (
                CallAnswer::Http {
                    headers,
                    body,
                    size,
                },
                Ask::Http { expected, .. },
            ) => {
                let Some(status) = headers
                    .get(":status")
                    .and_then(parse_number)
                    .and_then(|s| u16::try_from(s).ok())
                else {
                    return failed(late);
                };
                if is_the_proxys(headers, status) {
                    return failed(late || status == 504);
                }
                let good = expected
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&status));
                let report = (self.check.report && *size <= report::MAX_BYTES)
                    .then(|| report::judge(body, good, status, &self.check, host.wall()))
                    .flatten();
                report.unwrap_or_else(|| {
                    if good {
                        Sample::GOOD
                    } else {
                        Sample::new(EndpointHealth::Down, CheckReason::HttpStatus, status)
                    }
                })
            }
            (CallAnswer::GrpcMessage(message), Ask::Grpc { .. }) => match grpc::response(message) {
                Some(EndpointHealth::Up) => Sample::GOOD,
                Some(status) => Sample::new(status, CheckReason::Report, 0),
                None => Sample::new(EndpointHealth::Down, CheckReason::Report, 0),
            },
            // DEADLINE_EXCEEDED; UNAVAILABLE.
            (CallAnswer::GrpcStatus(4), Ask::Grpc { .. }) => failed(true),
            (CallAnswer::GrpcStatus(14), Ask::Grpc { .. }) => failed(late),
            (CallAnswer::GrpcStatus(status), Ask::Grpc { .. }) => Sample::new(
                EndpointHealth::Down,
                CheckReason::GrpcStatus,
                u16::try_from(*status).unwrap_or(u16::MAX),
            ),
            _ => failed(late),
        }
    }

    /// A call has ended so.
    fn end<H: Host>(&self, checks: &Checks, host: &H, call: &Pending, sample: &Sample, now: Nanos) {
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
    fn forget<H: Host>(&self, checks: &Checks, host: &H, at: usize, now: Nanos) {
        let Some(endpoint) = self.endpoints.get(at) else {
            return;
        };
        self.write(checks, host, endpoint, |record| {
            let known = record.status != EndpointHealth::Unchecked;
            let since_unix = host.wall().as_millis() / 1_000;
            let unknown = Record {
                names: record.names,
                components: vec![EndpointHealth::Unchecked; record.components.len()],
                since: now,
                since_unix,
                ..Record::default()
            };
            HealthChange {
                record: known.then_some(unknown),
                is_new_state: known,
                is_new_component: known,
            }
        });
    }

    /// Changes an endpoint's record, and tells of it; what it is then.
    fn write<H: Host>(
        &self,
        checks: &Checks,
        host: &H,
        endpoint: &Endpoint,
        step: impl Fn(&Record) -> HealthChange,
    ) -> Option<Record> {
        let cell = &endpoint.cell;
        let written = store::update(host, &cell.key, |bytes| {
            let record = Record::decode(bytes, cell.names, cell.count);
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
            checks.telling.write(host, level, || {
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
                checks.telling.write(host, level, || {
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

/// No answer came.
const fn failed(late: bool) -> Sample {
    Sample::new(
        EndpointHealth::Down,
        if late {
            CheckReason::Timeout
        } else {
            CheckReason::Unreachable
        },
        0,
    )
}

/// Whether the proxy has answered because nobody else did. Envoy's router says how long an endpoint
/// took in each answer that is an endpoint's, and in no other.
fn is_the_proxys(headers: &HeaderMap, status: u16) -> bool {
    matches!(status, 503 | 504) && headers.get("x-envoy-upstream-service-time").is_none()
}

/// Tells contexts apart that would ask differently.
fn fingerprint(upstream: &config::Upstream, check: &HealthCheck) -> u64 {
    let mut parts: Vec<String> = vec![upstream.cluster.clone(), upstream.override_header.clone()];
    match &check.ask {
        Ask::Http {
            path,
            host,
            expected,
        } => {
            parts.extend([path.clone(), host.clone().unwrap_or_default()]);
            parts.extend(
                expected
                    .iter()
                    .flat_map(|(low, high)| [number((*low).into()), number((*high).into())]),
            );
        }
        Ask::Grpc { service } => parts.extend(["grpc".to_owned(), service.clone()]),
    }
    let times = [
        check.interval,
        check.interval_changing,
        check.initial_delay,
        check.timeout,
    ];
    parts.extend(times.iter().map(|time| number(time.0)));
    let counts = [
        check.jitter.0,
        check.healthy_threshold,
        check.unhealthy_threshold,
        check.report.into(),
    ];
    parts.extend(counts.iter().map(|count| number((*count).into())));
    for it in &check.components {
        let rate = it.max_error_rate.map_or(u64::MAX, |rate| rate.0.into());
        parts.extend([
            it.name.clone(),
            number(it.critical.into()),
            number(it.period.0),
            number(rate),
        ]);
    }
    parts.extend(
        upstream
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address.clone()),
    );
    of_names(&parts.iter().map(String::as_str).collect::<Vec<_>>())
}
