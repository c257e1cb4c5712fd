//! An upstream's endpoints at run time: who may be used, what is in flight where, and what their
//! breakers say.
//!
//! Who is in rotation stands in a [`Roster`], which each worker makes anew when a breaker has
//! changed, or when time has changed something: an open time that is over, a ramp, a report that
//! fades. A request finds it ready, whatever the number of endpoints.

mod endpoint;
mod layout;
mod outcome;
mod pick;

use super::breaker::{Breaker, BreakerSubject, TransitionCounters};
use super::health_check::{self, CheckResult};
use super::in_flight::InFlight;
use super::logs::LogLimiter;
use super::metrics::MetricTable;
use crate::base::hash::of_names;
use crate::base::time::Nanos;
use crate::config::{self, BalancePolicy, LoadReport, Mode};
use crate::host::{Host, MetricId};
use crate::policy::upstream::Availability;
use crate::policy::upstream::orca::{self, Load};
use crate::policy::upstream::roster::{EndpointCounts, Member, Roster, Rules, UNIT};
use crate::policy::upstream::slow_start::{self, FirstSeen};
use crate::store::{self, RecordKey, RecordKind, Step};
use endpoint::Endpoint;
use layout::layout;
pub(super) use outcome::Attempts;
use pick::Balancer;
pub(super) use pick::Pick;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Up to so many endpoints a change is seen by the very next request; beyond, reading all of them
/// again and again while many change at once would take the worker.
const SMALL: usize = 32;

/// How long a worker with more endpoints waits between two readings, for each endpoint: 1 % of its
/// time, 10 ms for 1,000.
const REFRESH_PAUSE: Nanos = Nanos(10_000);

/// Endpoints whose breakers are read anew in one tick.
const REFRESHED_PER_TICK: usize = 64;

/// An upstream.
#[derive(Debug)]
pub struct Upstream {
    endpoints: Vec<Endpoint>,
    in_flight: InFlight,
    policy: Balancer,
    rules: Rules,
    slow_start: Option<Nanos>,
    load_report: bool,
    /// Whether any endpoint has a breaker: without, nobody has to know who answered.
    has_breakers: bool,
    /// Whether endpoints are checked. Without that, and without breakers, no view changes.
    is_checked: bool,
    check_duration: MetricId,
    /// By component of the check: whether it is down on all endpoints that report it.
    down: Vec<Cell<bool>>,
    /// Whether the answers' own attempt count is the proxy's.
    attempt_count: bool,
    /// Counts changes of any endpoint's breaker, over all workers.
    changes: MetricId,
    /// Its value when the views were read.
    seen_changes: Cell<u64>,
    /// When they were.
    refreshed: Cell<Nanos>,
    /// The endpoint that the next tick begins with.
    refresh_at: Cell<usize>,
    roster: RefCell<Rc<Roster>>,
    /// When the roster was made.
    built: Cell<Nanos>,
    /// When it has to be made anew, at the latest.
    due: Cell<Nanos>,
    panic: MetricId,
}

impl Upstream {
    pub(super) fn new<H: Host>(
        config: &config::Upstream,
        breaker: Option<&config::CircuitBreaker>,
        mode: Mode,
        is_checked: bool,
        logs: &Rc<LogLimiter>,
        counters: &mut TransitionCounters,
        host: &H,
    ) -> Self {
        let check = config.health_check.as_ref().filter(|_| is_checked);
        let names = MetricTable(host);
        let changes = names.endpoint_changes(&config.name);
        let (rules, places) = layout(config);
        let peak_ewma = config.policy == BalancePolicy::PeakEwma;
        let load_report = config.load_report == LoadReport::Orca;
        let seen = config.slow_start.and_then(|_| first_seen(config, host));
        let endpoints = config
            .endpoints
            .iter()
            .zip(places)
            .map(|(endpoint, (level, zone))| {
                let breaker = breaker.and_then(|breaker| {
                    let mode = breaker.mode.or(config.mode).unwrap_or(mode);
                    let subject =
                        BreakerSubject::Endpoint(&config.name, &endpoint.address, changes);
                    (mode != Mode::Off)
                        .then(|| Breaker::new(breaker, subject, mode, logs, counters, host))
                });
                Endpoint {
                    weight: endpoint.weight,
                    level,
                    zone,
                    first_seen: seen
                        .as_ref()
                        .and_then(|seen| seen.of(id(&endpoint.address)))
                        .unwrap_or(Nanos::ZERO),
                    healthy: names.endpoint_healthy(&config.name, &endpoint.address),
                    latency: if peak_ewma {
                        names.endpoint_latency(&config.name, &endpoint.address)
                    } else {
                        MetricId::NONE
                    },
                    load: if load_report {
                        names.endpoint_load(&config.name, &endpoint.address)
                    } else {
                        MetricId::NONE
                    },
                    breaker,
                    view: Cell::default(),
                    check: check.map(|check| {
                        health_check::Cell::new(&config.name, &endpoint.address, check)
                    }),
                    check_result: Cell::default(),
                    address: endpoint.address.clone(),
                }
            });
        let endpoints: Vec<Endpoint> = endpoints.collect();
        let policy = Balancer::new(&config.policy, &endpoints, rules.zones.len());
        let gauges = endpoints.iter().map(|e| {
            (
                id(&e.address),
                names.endpoint_in_flight(&config.name, &e.address),
            )
        });
        // Behind those of the endpoints: all together, which only a bounded load asks for.
        let total = matches!(policy, Balancer::ConsistentHash { .. })
            .then(|| (TOTAL, names.upstream_in_flight(&config.name)));
        Self {
            in_flight: InFlight::new(
                RecordKey::new(
                    RecordKind::Shares,
                    of_names(&["endpoints", &config.name]),
                    0,
                ),
                names.contention(&config.name),
                gauges.chain(total),
            ),
            policy,
            rules,
            slow_start: config.slow_start,
            load_report,
            has_breakers: endpoints.iter().any(|endpoint| endpoint.breaker.is_some()),
            endpoints,
            is_checked,
            check_duration: if is_checked {
                names.health_check_duration(&config.name)
            } else {
                MetricId::NONE
            },
            down: check
                .map(|check| check.components.iter().map(|_| Cell::default()).collect())
                .unwrap_or_default(),
            attempt_count: config.attempt_count,
            changes,
            seen_changes: Cell::new(0),
            refreshed: Cell::new(Nanos::ZERO),
            refresh_at: Cell::new(0),
            roster: RefCell::default(),
            built: Cell::new(Nanos::ZERO),
            due: Cell::new(Nanos::ZERO),
            panic: names.upstream_panic(&config.name),
        }
    }

    /// Number of endpoints.
    pub(super) const fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Reads all endpoints' breakers and what checks have found anew, and sets their gauges right.
    pub(super) fn refresh<H: Host>(&self, host: &H, now: Nanos) {
        // Before the records: a change that comes between is then read again, never missed.
        let changes = host.value(self.changes);
        self.seen_changes.set(changes);
        self.refreshed.set(now);
        // By component: how many report it down, and how many report it at all.
        let mut reports = vec![(0u32, 0u32); self.down.len()];
        for endpoint in &self.endpoints {
            endpoint.refresh(host, now, changes, &mut reports);
        }
        for (flag, (down, told)) in self.down.iter().zip(reports) {
            flag.set(told > 0 && down == told);
        }
        self.build(host, now);
    }

    /// Reads some of them anew, in turn, with every tick: a VM may have died between a change and
    /// the note of it. How many.
    pub(super) fn refresh_some<H: Host>(&self, host: &H, now: Nanos) -> usize {
        if self.is_checked || self.endpoints.len() <= REFRESHED_PER_TICK {
            self.refresh(host, now);
            return self.endpoints.len();
        }
        let changes = host.value(self.changes);
        let from = self.refresh_at.get();
        let some = self.endpoints.iter().skip(from).take(REFRESHED_PER_TICK);
        some.for_each(|endpoint| endpoint.refresh(host, now, changes, &mut []));
        let next = from.saturating_add(REFRESHED_PER_TICK);
        self.refresh_at
            .set(if next < self.endpoints.len() { next } else { 0 });
        self.build(host, now);
        REFRESHED_PER_TICK
    }

    /// Tells what is in flight, and takes out what a lost VM has left: with every tick where there
    /// is anything, otherwise when it is `due`.
    pub(super) fn look_after<H: Host>(&self, host: &H, now: Nanos, vm: u64, due: bool) {
        if due || self.in_flight.is_busy() {
            self.in_flight.look_after(host, now, vm);
        }
    }

    /// How many endpoints there are, and may be used.
    pub(super) fn census<H: Host>(&self, host: &H, now: Nanos) -> EndpointCounts {
        self.roster(host, now).counts
    }

    /// Whether this component of the check is down on all endpoints that report it. It costs no
    /// host call but the look whether anything has changed.
    pub(super) fn is_down<H: Host>(&self, host: &H, now: Nanos, component: usize) -> bool {
        drop(self.roster(host, now));
        self.down.get(component).is_some_and(Cell::get)
    }

    /// What the last check took that was answered, in milliseconds; `None` if there are no checks.
    pub(super) fn response_time<H: Host>(&self, host: &H) -> Option<u64> {
        self.is_checked.then(|| host.value(self.check_duration))
    }

    /// What checks have found of all endpoints, with their addresses.
    pub(super) fn check_results(&self) -> impl Iterator<Item = (&str, CheckResult)> {
        self.endpoints
            .iter()
            .filter(|e| e.weight > 0 && e.check.is_some())
            .map(|e| (e.address.as_str(), e.check_result.get()))
    }

    /// Who is in rotation at this moment.
    fn roster<H: Host>(&self, host: &H, now: Nanos) -> Rc<Roster> {
        let pause = if self.len() <= SMALL {
            Nanos::ZERO
        } else {
            REFRESH_PAUSE.times(self.len() as u64)
        };
        let may = |last: Nanos| now < last || now.since(last) >= pause;
        let changing = self.has_breakers || self.is_checked;
        if changing
            && host.value(self.changes) != self.seen_changes.get()
            && may(self.refreshed.get())
        {
            self.refresh(host, now);
        } else if (now >= self.due.get() || now < self.built.get()) && may(self.built.get()) {
            self.build(host, now);
        }
        self.roster
            .try_borrow()
            .map(|roster| Rc::clone(&roster))
            .unwrap_or_default()
    }

    /// Makes the roster anew, of the views as they are.
    fn build<H: Host>(&self, host: &H, now: Nanos) {
        let mut due = Nanos::MAX;
        let loads: Vec<Load> = if self.load_report {
            self.endpoints
                .iter()
                .map(|e| Load(host.value(e.load)))
                .collect()
        } else {
            Vec::new()
        };
        let mean = orca::mean(loads.iter().copied(), now);
        if self.load_report {
            due = now.plus(orca::PERIOD);
        }
        let mut members = Vec::with_capacity(self.endpoints.len());
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let view = endpoint.view.get();
            let mut weight = endpoint.weight.saturating_mul(UNIT);
            if let Some(window) = self.slow_start {
                let since = endpoint
                    .well_since()
                    .max(view.well_since)
                    .max(endpoint.first_seen);
                weight = slow_start::ramped(weight, since, window, now);
                if slow_start::ramps(since, window, now) {
                    due = due.min(now.plus(Nanos(window.0 / slow_start::STEPS)));
                }
            }
            if let (Some(mean), Some(load)) = (mean, loads.get(at)) {
                weight = orca::weighed(weight, *load, mean, now);
            }
            if view.availability(now) == Availability::Out {
                due = due.min(view.trial_at);
            }
            let (level, zone, out_since) = (endpoint.level, endpoint.zone, view.out_since);
            let unwell = !endpoint.check_result.get().status.is_usable();
            members.push(Member {
                availability: endpoint.availability(now),
                unwell,
                out_since,
                weight,
                level,
                zone,
            });
        }
        let Ok(mut current) = self.roster.try_borrow_mut() else {
            return;
        };
        let mut roster = Rc::try_unwrap(std::mem::take(&mut *current)).unwrap_or_default();
        roster.build(&self.rules, members.into_iter());
        let panic = roster.panic;
        *current = Rc::new(roster);
        drop(current);
        self.built.set(now);
        self.due.set(due);
        host.record(self.panic, panic.into());
    }
}

/// The number of the gauge of all requests in flight; no endpoint's is, but by chance.
const TOTAL: u64 = 0;

/// A number for an endpoint, the same in all configurations.
fn id(address: &str) -> u64 {
    of_names(&[address])
}

/// When the endpoints were first seen, over all workers and reloads.
fn first_seen<H: Host>(config: &config::Upstream, host: &H) -> Option<FirstSeen> {
    let now = host.monotonic();
    let key = RecordKey::new(RecordKind::FirstSeen, of_names(&[&config.name]), 0);
    let ids = || {
        config
            .endpoints
            .iter()
            .map(|endpoint| id(&endpoint.address))
    };
    // Without an answer none is taken for new.
    store::update(host, &key, |bytes| {
        let before = FirstSeen::decode(bytes);
        let seen = FirstSeen::now(before.clone(), ids(), now);
        if before.as_ref() == Some(&seen) {
            return Step::Keep(seen);
        }
        seen.encode(bytes);
        Step::Write(seen)
    })
    .ok()
}
