//! An upstream's endpoints at run time: who may be used, what is in flight where, and what their
//! breakers say.
//!
//! Who is in rotation stands in a [`Roster`], which each worker makes anew when a breaker has
//! changed, or when time has changed something: an open time that is over, a ramp, a report that
//! fades. A request finds it ready, whatever the number of endpoints.

use super::breaker::{Breaker, Subject, Telling};
use super::checks::{self, Verdict};
use super::in_flight::InFlight;
use super::metrics::Names;
use crate::base::hash::{of_names, place as place_of};
use crate::base::headers::HeaderMap;
use crate::base::rng::Rng;
use crate::base::sort;
use crate::base::time::Nanos;
use crate::config::{self, BalancePolicy, LoadReport, Mode, Percent};
use crate::host::{Host, MetricId};
use crate::policy::Outcome;
use crate::policy::circuit_breaker::state::{Admission, CallResult, Phase, State};
use crate::policy::health_check::state::{EndpointHealth, Record};
use crate::policy::upstream::maglev::{self, MaglevTable};
use crate::policy::upstream::orca::{self, Load};
use crate::policy::upstream::peak_ewma::Latency;
use crate::policy::upstream::roster::{
    EndpointCounts, Member, Pool, Roster, RosterEntry, Rules, UNIT,
};
use crate::policy::upstream::rotation::Rotation;
use crate::policy::upstream::slow_start::{self, FirstSeen};
use crate::policy::upstream::{self, Availability, LIST, List, choice};
use crate::store::{self, RecordKey, RecordKind, Step};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Up to so many endpoints a change is seen by the very next request; beyond, reading all of them
/// again and again while many change at once would take the worker.
const SMALL: usize = 32;

/// How long a worker with more endpoints waits between two readings, for each endpoint: 1 % of its
/// time, 10 ms for 1,000.
const REFRESH_PAUSE: Nanos = Nanos(10_000);

/// How long a worker leaves a half-open endpoint alone that has no permit left, before it asks
/// again.
const PERMIT_RECHECK: Nanos = Nanos::from_millis(100);

/// Endpoints whose breakers are read anew in one tick.
const REFRESHED_PER_TICK: usize = 64;

/// An upstream.
#[derive(Debug)]
pub struct Upstream {
    endpoints: Vec<Endpoint>,
    in_flight: InFlight,
    policy: Policy,
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

/// How endpoints are picked, ready for use.
#[derive(Debug)]
enum Policy {
    RoundRobin(RefCell<Rotation>),
    LeastRequest,
    PeakEwma,
    /// A table for each level.
    ConsistentHash {
        tables: Vec<MaglevTable>,
        bounded_load: Percent,
    },
    Random,
    First,
}

#[derive(Debug)]
struct Endpoint {
    address: String,
    weight: u32,
    level: u16,
    zone: u16,
    /// When it was first seen, if it came after the proxy's start.
    first_seen: Nanos,
    healthy: MetricId,
    latency: MetricId,
    load: MetricId,
    breaker: Option<Breaker>,
    view: Cell<View>,
    /// What active checks have found.
    check: Option<checks::Cell>,
    verdict: Cell<Verdict>,
}

impl Endpoint {
    /// The one state of an endpoint: it is out if its breaker, which goes by its answers to
    /// requests, or an active check says so.
    fn availability(&self, now: Nanos) -> Availability {
        if self.verdict.get().status.is_usable() {
            self.view.get().availability(now)
        } else {
            Availability::Out
        }
    }

    /// Since when checks find it well that was not; zero = it always was, as far as they know.
    fn well_since(&self) -> Nanos {
        let Verdict { status, since, .. } = self.verdict.get();
        if self.check.is_some() && status.is_usable() {
            since
        } else {
            Nanos::ZERO
        }
    }
}

/// What a worker knows of an endpoint without asking.
#[derive(Clone, Copy, Debug, Default)]
struct View {
    availability: Availability,
    /// When something that is out may be tried.
    trial_at: Nanos,
    epoch: u32,
    /// Since when it is out.
    out_since: Nanos,
    /// Since when it is well again, the latest of all that says so; zero = it always was.
    well_since: Nanos,
}

impl Endpoint {
    /// Reads its breaker anew, with the version of the upstream's changes that was read before, and
    /// sets its gauge right.
    fn refresh<H: Host>(&self, host: &H, now: Nanos, changes: u64, reports: &mut [(u32, u32)]) {
        let mut well = self.weight > 0;
        if let Some(breaker) = &self.breaker {
            let state = breaker.refresh(host, now, Some(changes));
            let view = view_of(&state, breaker, now);
            well &= view.availability(now) == Availability::Available;
            self.view.set(view);
        }
        if let Some(check) = &self.check {
            let record = check.read(host);
            let Record {
                status,
                reason,
                detail,
                since,
                ..
            } = record;
            self.verdict.set(Verdict {
                status,
                reason,
                detail,
                since,
            });
            well &= status.is_usable();
            for ((down, told), component) in reports.iter_mut().zip(record.components) {
                *told = told.saturating_add((component != EndpointHealth::Unchecked).into());
                *down = down.saturating_add(component.is_down().into());
            }
        }
        host.record(self.healthy, well.into());
    }
}

impl View {
    fn availability(self, now: Nanos) -> Availability {
        match self.availability {
            Availability::Out if now >= self.trial_at => Availability::Trial,
            known => known,
        }
    }
}

/// A choice of endpoints, and what was taken for it. It must be ended exactly once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pick {
    list: List,
    /// Epoch of each listed endpoint's breaker when it was chosen.
    epochs: [u32; LIST],
    /// Whether the first holds a half-open permit.
    trial: bool,
}

impl Pick {
    /// How many endpoints are listed.
    pub(super) fn listed(&self) -> usize {
        self.list.iter().count()
    }
}

/// Who was asked for a [`Pick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Index of the endpoint that was asked last.
    pub last: usize,
    /// How many tries there were before. They failed, or there would have been no next one.
    pub before: u64,
}

impl Upstream {
    pub(super) fn new<H: Host>(
        config: &config::Upstream,
        breaker: Option<&config::CircuitBreaker>,
        mode: Mode,
        is_checked: bool,
        telling: &Rc<Telling>,
        host: &H,
    ) -> Self {
        let check = config.health_check.as_ref().filter(|_| is_checked);
        let names = Names(host);
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
                    let subject = Subject::Endpoint(&config.name, &endpoint.address, changes);
                    (mode != Mode::Off).then(|| Breaker::new(breaker, subject, mode, telling, host))
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
                    check: check
                        .map(|check| checks::Cell::new(&config.name, &endpoint.address, check)),
                    verdict: Cell::default(),
                    address: endpoint.address.clone(),
                }
            });
        let endpoints: Vec<Endpoint> = endpoints.collect();
        let policy = Policy::new(&config.policy, &endpoints, rules.zones.len());
        let gauges = endpoints.iter().map(|e| {
            (
                id(&e.address),
                names.endpoint_in_flight(&config.name, &e.address),
            )
        });
        // Behind those of the endpoints: all together, which only a bounded load asks for.
        let total = matches!(policy, Policy::ConsistentHash { .. })
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
        self.roster(host, now).census
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
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (&str, Verdict)> {
        self.endpoints
            .iter()
            .filter(|e| e.weight > 0 && e.check.is_some())
            .map(|e| (e.address.as_str(), e.verdict.get()))
    }

    /// Picks endpoints for a request and counts it in flight at the first; `None` if there is none
    /// to use. `hash`: of its key, if it has one.
    pub(super) fn pick<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        rng: &Rng,
        hash: Option<u64>,
    ) -> Option<Pick> {
        let roster = self.roster(host, now);
        // Each round without success marks one endpoint as out, so there are at most as many rounds
        // as trials in the sample.
        for _ in 0..=upstream::SAMPLE {
            let list = self.list(host, now, &roster, rng, hash)?;
            let at = list.first()?;
            let first = self.endpoints.get(at)?;
            let mut pick = Pick {
                list,
                ..Pick::default()
            };
            for (epoch, at) in pick.epochs.iter_mut().zip(list.iter()) {
                let view = self
                    .endpoints
                    .get(at)
                    .map(|e| e.view.get())
                    .unwrap_or_default();
                // In a panic one may be listed that is out, or on trial: without a permit its
                // outcome must not count as a trial's.
                let counts = view.availability(now) == Availability::Available;
                *epoch = if counts {
                    view.epoch
                } else {
                    view.epoch.wrapping_sub(1)
                };
            }
            if first.availability(now) == Availability::Trial {
                match self.acquire(host, first, now) {
                    Some(epoch) => {
                        pick.trial = true;
                        if let Some(e) = pick.epochs.first_mut() {
                            *e = epoch;
                        }
                    }
                    // In a panic it is used all the same; its outcome then says nothing.
                    None if !roster.panic => continue,
                    None => {}
                }
            }
            // Counted now, over all workers: the next choice, here or elsewhere, must see it.
            self.enter(host, at);
            return Some(pick);
        }
        None
    }

    /// Endpoints in the policy's order.
    fn list<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        roster: &Roster,
        rng: &Rng,
        hash: Option<u64>,
    ) -> Option<List> {
        // The upper bits: the lower ones choose the slot. One key is to stay in one level and zone.
        let draw = match hash {
            _ if roster.is_simple() => 0,
            Some(hash) => hash >> 48,
            None => rng.bits() >> 48,
        };
        let pool = roster.pool(u16::try_from(draw).unwrap_or(0))?;
        let entries = roster.entries(pool);
        let endpoint = |at: usize| self.endpoints.get(at);
        let open =
            |at: usize| endpoint(at).is_some_and(|e| e.availability(now) == Availability::Trial);
        let mut list = match (&self.policy, hash) {
            (Policy::LeastRequest, _) => {
                choice::cheapest(entries, &open, &|at| self.in_flight.value(host, at), rng)
            }
            (Policy::PeakEwma, _) => {
                let latency = |at| Latency(endpoint(at).map_or(0, |e| host.value(e.latency)));
                let cost = |at| latency(at).cost(now, self.in_flight.value(host, at));
                choice::cheapest(entries, &open, &cost, rng)
            }
            (Policy::RoundRobin(rotation), _) => match rotation.try_borrow_mut() {
                Ok(mut rotation) => {
                    rotation.start(entries, rng);
                    rotation.next(entries, &open, rng)
                }
                // Nobody holds it over a host call.
                Err(_) => choice::random(entries, &open, rng),
            },
            (
                Policy::ConsistentHash {
                    tables,
                    bounded_load,
                },
                Some(hash),
            ) => {
                let table = tables.get(usize::from(pool.level))?;
                let room = |entry: &_| self.has_room(host, pool, entry, hash, *bounded_load);
                table.pick(hash, roster, pool, &open, &room)
            }
            (Policy::First, _) => choice::first(entries, &open),
            (Policy::Random | Policy::ConsistentHash { .. }, _) => {
                choice::random(entries, &open, rng)
            }
        };
        if !list.is_full() && !roster.is_simple() {
            roster
                .others(pool, rng)
                .take(LIST)
                .for_each(|at| list.push(at));
        }
        Some(list)
    }

    /// Whether the owner of a key may have it: it is not yet too busy, and, while it ramps, the key
    /// is one of those that have come to it.
    fn has_room<H: Host>(
        &self,
        host: &H,
        pool: &Pool,
        entry: &RosterEntry,
        hash: u64,
        bound: Percent,
    ) -> bool {
        let full = self
            .endpoints
            .get(entry.at)
            .map_or(0, |e| e.weight.saturating_mul(UNIT));
        // Other bits for each endpoint, so that keys which pass it over are not those that pass
        // over the next.
        let place = hash.rotate_left(20) ^ (entry.at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if entry.weight < full && place_of(place, full) >= entry.weight {
            return false;
        }
        let all = self.in_flight.value(host, self.endpoints.len());
        // This pool's part of them.
        let all = all.saturating_mul(pool.share.into()) >> 16;
        maglev::has_room(
            self.in_flight.value(host, entry.at),
            all,
            entry.weight,
            pool.weight,
            bound,
        )
    }

    fn enter<H: Host>(&self, host: &H, at: usize) {
        for at in [at, self.endpoints.len()] {
            self.in_flight.add(host, at);
            self.in_flight.keep(at);
        }
    }

    /// The override header's value.
    pub(super) fn addresses(&self, pick: &Pick) -> Vec<u8> {
        let mut value = Vec::with_capacity(64);
        for endpoint in pick.list.iter().filter_map(|at| self.endpoints.get(at)) {
            if !value.is_empty() {
                value.push(b',');
            }
            value.extend_from_slice(endpoint.address.as_bytes());
        }
        value
    }

    /// Whether it matters who answered.
    pub(super) const fn asks_who(&self) -> bool {
        self.has_breakers || self.load_report || matches!(self.policy, Policy::PeakEwma)
    }

    /// Who was asked, if the answer's attempt count tells that there was but one try. On a bad
    /// answer it is not believed: who is to blame is asked.
    pub(super) fn first_try(&self, pick: &Pick, headers: &HeaderMap) -> Option<Tries> {
        let once = self.attempt_count && headers.get("x-envoy-attempt-count") == Some(b"1");
        Some(Tries {
            last: pick.list.first().filter(|_| once)?,
            before: 0,
        })
    }

    /// Who was asked, by the address of the last one, or else by the number of tries, which costs a
    /// host call: it is asked for only where the address does not tell.
    pub(super) fn tries(
        &self,
        pick: &Pick,
        address: Option<&[u8]>,
        attempts: impl FnOnce() -> Option<u64>,
    ) -> Option<Tries> {
        let is = |at: &usize| {
            self.endpoints
                .get(*at)
                .is_some_and(|e| Some(e.address.as_bytes()) == address)
        };
        if let Some((before, last)) = pick.list.iter().enumerate().find(|(_, at)| is(at)) {
            return Some(Tries {
                last,
                before: before as u64,
            });
        }
        let attempts = attempts();
        let before = attempts.unwrap_or(0).saturating_sub(1);
        if let Some(last) = (0..self.endpoints.len()).find(is) {
            // The proxy left the list: at its end, or because it does not follow it (a shadow).
            return Some(Tries { last, before });
        }
        // Nobody answered: the last try was the last of the list that there was.
        let last = pick
            .list
            .iter()
            .take(usize::try_from(attempts?).unwrap_or(usize::MAX))
            .last()?;
        Some(Tries { last, before })
    }

    /// Takes note of how the tries ended.
    pub(super) fn record<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        pick: &Pick,
        tries: Option<Tries>,
        call: CallResult,
        rng: &Rng,
    ) {
        let Some(Tries { last, before }) = tries else {
            return self.release(host, now, pick, rng);
        };
        let failed = CallResult {
            outcome: Outcome::Failure,
            retry_after: None,
            ..call
        };
        let before = usize::try_from(before).unwrap_or(usize::MAX);
        let mut told = false;
        let mut own_epoch = None;
        for (place, (at, epoch)) in pick.list.iter().zip(pick.epochs).enumerate() {
            if at == last {
                own_epoch = Some(epoch);
            } else if place < before {
                self.end(host, now, at, epoch, failed, rng);
                told |= place == 0;
            }
        }
        if !told && pick.list.first() != Some(last) {
            self.release(host, now, pick, rng);
        }
        if let Some(epoch) = own_epoch.or_else(|| self.unlisted(host, last, now)) {
            self.end(host, now, last, epoch, call, rng);
        }
    }

    /// Takes note of what an answer, or its failure to come, says of who was asked: how long it
    /// took, and how busy it is.
    pub(super) fn learn<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        pick: &Pick,
        tries: Tries,
        took: Nanos,
        failed: bool,
    ) {
        if !matches!(self.policy, Policy::PeakEwma) {
            return;
        }
        let note = |at: usize, failed: bool| {
            let Some(endpoint) = self.endpoints.get(at) else {
                return;
            };
            let before = Latency(host.value(endpoint.latency));
            let after = before.with(now, took, failed);
            if after != before {
                host.record(endpoint.latency, after.0);
            }
        };
        if tries.before == 0 {
            return note(tries.last, failed);
        }
        // How long each try took is not known: at most the whole. It speaks against those that
        // failed.
        let before = usize::try_from(tries.before).unwrap_or(usize::MAX);
        pick.list
            .iter()
            .take(before)
            .filter(|at| *at != tries.last)
            .for_each(|at| note(at, true));
    }

    /// Takes note of an endpoint's report on its load.
    pub(super) fn report<H: Host>(&self, host: &H, now: Nanos, at: usize, report: &[u8]) {
        if let (Some(endpoint), Some(utilization)) = (self.endpoints.get(at), orca::parse(report)) {
            host.record(
                endpoint.load,
                Load(host.value(endpoint.load)).with(now, utilization).0,
            );
        }
    }

    /// Whether endpoints report their load.
    pub(super) const fn has_reports(&self) -> bool {
        self.load_report
    }

    /// Gives back the permit of a pick whose call ended without a verdict.
    pub(super) fn release<H: Host>(&self, host: &H, now: Nanos, pick: &Pick, rng: &Rng) {
        if let (true, Some(at), Some(epoch)) = (pick.trial, pick.list.first(), pick.epochs.first())
        {
            self.end(host, now, at, *epoch, CallResult::IGNORED, rng);
        }
    }

    /// Takes the request out of flight.
    pub(super) fn leave<H: Host>(&self, host: &H, pick: &Pick) {
        if let Some(first) = pick.list.first() {
            [first, self.endpoints.len()]
                .iter()
                .for_each(|at| self.in_flight.leave(host, *at));
        }
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
            let unwell = !endpoint.verdict.get().status.is_usable();
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

    /// Asks for a half-open permit; without one the endpoint is out for a while.
    fn acquire<H: Host>(&self, host: &H, endpoint: &Endpoint, now: Nanos) -> Option<u32> {
        let breaker = endpoint.breaker.as_ref()?;
        if let Some(epoch) = admitted(breaker.acquire(host, now)) {
            return Some(epoch);
        }
        let trial_at = now.plus(PERMIT_RECHECK);
        endpoint.view.set(View {
            availability: Availability::Out,
            trial_at,
            ..endpoint.view.get()
        });
        // The roster still has it; who comes there finds out. What it may become then, the next one
        // says.
        self.due.set(self.due.get().min(trial_at));
        None
    }

    /// The epoch in which a call counts that the proxy has made of its own accord (a shadow's).
    /// Where permits are needed it takes one for the moment, or its outcome would count as a
    /// trial's that nobody has allowed.
    fn unlisted<H: Host>(&self, host: &H, at: usize, now: Nanos) -> Option<u32> {
        let endpoint = self.endpoints.get(at)?;
        let view = endpoint.view.get();
        match view.availability(now) {
            Availability::Available => Some(view.epoch),
            Availability::Trial => self.acquire(host, endpoint, now),
            Availability::Out => None,
        }
    }

    fn end<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        at: usize,
        epoch: u32,
        call: CallResult,
        rng: &Rng,
    ) {
        let Some(breaker) = self.endpoints.get(at).and_then(|e| e.breaker.as_ref()) else {
            return;
        };
        // Nobody asks a shadow before a call; without being asked it would stay open for ever.
        let epoch = if breaker.is_shadow() {
            admitted(breaker.acquire(host, now))
        } else {
            Some(epoch)
        };
        if let Some(epoch) = epoch {
            breaker.end(host, now, epoch, call, rng);
        }
    }
}

const fn admitted(answer: Option<Admission>) -> Option<u32> {
    match answer {
        Some(Admission::Admitted { epoch, .. }) => Some(epoch),
        Some(Admission::Refused { .. }) | None => None,
    }
}

fn view_of(state: &State, breaker: &Breaker, now: Nanos) -> View {
    let view = View {
        availability: Availability::Available,
        trial_at: Nanos::ZERO,
        epoch: state.epoch,
        out_since: Nanos::ZERO,
        // A breaker that was never open is Closed since zero.
        well_since: if state.phase == Phase::Closed {
            state.since
        } else {
            Nanos::ZERO
        },
    };
    let out = |trial_at| View {
        availability: Availability::Out,
        trial_at,
        out_since: state.since,
        ..view
    };
    let trial = View {
        availability: Availability::Trial,
        trial_at: now,
        out_since: state.since,
        ..view
    };
    if breaker.is_shadow() {
        return View {
            well_since: Nanos::ZERO,
            ..view
        };
    }
    if state.is_from_the_future(now) {
        // The clock has stepped back: asking lets the record follow it.
        return trial;
    }
    match state.phase {
        Phase::Closed => view,
        Phase::Open => out(state.until),
        // At the round's end it is asked, or a permit lost with its VM would keep it out for as
        // long as views are read anew all the time.
        Phase::HalfOpen if state.permits >= breaker.config().half_open_calls => {
            out(state.until.min(now.plus(PERMIT_RECHECK)))
        }
        Phase::HalfOpen => trial,
    }
}

/// The number of the gauge of all requests in flight; no endpoint's is, but by chance.
const TOTAL: u64 = 0;

/// A number for an endpoint, the same in all configurations.
fn id(address: &str) -> u64 {
    of_names(&[address])
}

/// How levels and zones lie: the rules, and level and zone of each endpoint.
fn layout(config: &config::Upstream) -> (Rules, Vec<(u16, u16)>) {
    let mut priorities: Vec<u32> = config
        .endpoints
        .iter()
        .map(|endpoint| endpoint.priority)
        .collect();
    sort::by_key(&mut priorities, |priority| *priority);
    priorities.dedup();
    let mut zones: Vec<Option<&String>> = config
        .endpoints
        .iter()
        .map(|endpoint| endpoint.zone.as_ref())
        .collect();
    zones.push(config.zone.as_ref());
    sort::by_key(&mut zones, |zone| *zone);
    zones.dedup();
    let place = |found: Result<usize, usize>| {
        found
            .ok()
            .and_then(|at| u16::try_from(at).ok())
            .unwrap_or(u16::MAX)
    };
    let zone_of = |zone: Option<&String>| place(zones.binary_search(&zone));
    let places: Vec<(u16, u16)> = config
        .endpoints
        .iter()
        .map(|it| {
            (
                place(priorities.binary_search(&it.priority)),
                zone_of(it.zone.as_ref()),
            )
        })
        .collect();
    let mut present: Vec<_> = config
        .endpoints
        .iter()
        .zip(&places)
        .filter(|(it, _)| it.weight > 0)
        .map(|(_, place)| *place)
        .collect();
    sort::by_key(&mut present, |present| *present);
    present.dedup();
    let of_level = |level: usize| {
        present
            .iter()
            .filter(|(of, _)| usize::from(*of) == level)
            .count()
    };
    let rules = Rules {
        panic_threshold: config.panic_threshold,
        max_ejection: config.max_ejection,
        zone: config.zone.as_ref().map(|zone| zone_of(Some(zone))),
        zones: (0..priorities.len())
            .map(|level| u32::try_from(of_level(level)).unwrap_or(u32::MAX))
            .collect(),
    };
    (rules, places)
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

impl Policy {
    fn new(config: &BalancePolicy, endpoints: &[Endpoint], levels: usize) -> Self {
        match config {
            BalancePolicy::RoundRobin => {
                Self::RoundRobin(RefCell::new(Rotation::new(endpoints.len())))
            }
            BalancePolicy::LeastRequest => Self::LeastRequest,
            BalancePolicy::PeakEwma => Self::PeakEwma,
            BalancePolicy::Random => Self::Random,
            BalancePolicy::First => Self::First,
            BalancePolicy::ConsistentHash { bounded_load, .. } => {
                let table = |level| {
                    let endpoints = endpoints
                        .iter()
                        .enumerate()
                        .filter(|(_, e)| usize::from(e.level) == level);
                    let named = endpoints.filter_map(|(at, e)| {
                        Some((e.address.as_str(), u16::try_from(at).ok()?, e.weight))
                    });
                    MaglevTable::new(named, maglev::SIZE)
                };
                Self::ConsistentHash {
                    tables: (0..levels).map(table).collect(),
                    bounded_load: *bounded_load,
                }
            }
        }
    }
}
