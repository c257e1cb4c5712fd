//! An upstream's endpoints at run time: who may be used, what is in flight where, and what their breakers say.

use super::breaker::{Breaker, Subject, Telling};
use super::checks::{self, Verdict};
use super::metrics::Names;
use crate::base::headers::HeaderMap;
use crate::base::rng::Rng;
use crate::base::time::Nanos;
use crate::config::{self, Mode};
use crate::host::{Host, MetricId};
use crate::policy::Outcome;
use crate::policy::circuit_breaker::state::{Admission, Call, Phase, State};
use crate::policy::health_check::state::{Record, Status};
use crate::policy::upstream::{self, Availability, Candidate, Census, LIST, List};
use std::cell::Cell;
use std::rc::Rc;

/// Up to so many endpoints a change is seen by the very next request; beyond, reading all of them again and again while many change at
/// once would take the worker.
const SMALL: usize = 32;

/// How long a worker with more endpoints waits between two readings, for each endpoint: 1 % of its time, 10 ms for 1,000.
const REFRESH_PAUSE: Nanos = Nanos(10_000);

/// How long a worker leaves a half-open endpoint alone that has no permit left, before it asks again.
const PERMIT_RECHECK: Nanos = Nanos::from_millis(100);

/// In-flight gauges above this have wrapped below zero (a metric reset, a share lost twice): taken as none.
const SANE_IN_FLIGHT: u64 = 1 << 40;

/// An upstream.
#[derive(Debug)]
pub struct Upstream {
    endpoints: Vec<Endpoint>,
    panic_threshold: config::Percent,
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
}

#[derive(Debug)]
struct Endpoint {
    address: String,
    weight: u32,
    in_flight: MetricId,
    healthy: MetricId,
    breaker: Option<Breaker>,
    view: Cell<View>,
    /// What active checks have found.
    check: Option<checks::Cell>,
    verdict: Cell<Verdict>,
}

impl Endpoint {
    /// The one state of an endpoint: it is out if its breaker, which goes by its answers to requests, or an active check says so.
    fn availability(&self, now: Nanos) -> Availability {
        if self.verdict.get().status.is_usable() { self.view.get().availability(now) } else { Availability::Out }
    }
}

/// What a worker knows of an endpoint's breaker without asking.
#[derive(Clone, Copy, Debug, Default)]
struct View {
    availability: Availability,
    /// When something that is out may be tried.
    trial_at: Nanos,
    epoch: u32,
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
        let endpoints = config.endpoints.iter().map(|endpoint| {
            let breaker = breaker.and_then(|breaker| {
                let mode = breaker.mode.or(config.mode).unwrap_or(mode);
                let subject = Subject::Endpoint(&config.name, &endpoint.address, changes);
                (mode != Mode::Off).then(|| Breaker::new(breaker, subject, mode, telling, host))
            });
            Endpoint {
                address: endpoint.address.clone(),
                weight: endpoint.weight,
                in_flight: names.endpoint_in_flight(&config.name, &endpoint.address),
                healthy: names.endpoint_healthy(&config.name, &endpoint.address),
                breaker,
                view: Cell::default(),
                check: check.map(|check| checks::Cell::new(&config.name, &endpoint.address, check)),
                verdict: Cell::default(),
            }
        });
        let endpoints: Vec<Endpoint> = endpoints.collect();
        Self {
            has_breakers: endpoints.iter().any(|endpoint| endpoint.breaker.is_some()),
            endpoints,
            is_checked,
            check_duration: if is_checked { names.health_check_duration(&config.name) } else { MetricId::NONE },
            down: check.map(|check| check.components.iter().map(|_| Cell::default()).collect()).unwrap_or_default(),
            panic_threshold: config.panic_threshold,
            attempt_count: config.attempt_count,
            changes,
            seen_changes: Cell::new(0),
            refreshed: Cell::new(Nanos::ZERO),
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
            let mut well = endpoint.weight > 0;
            if let Some(breaker) = &endpoint.breaker {
                let state = breaker.refresh(host, now, Some(changes));
                let view = view_of(&state, breaker, now);
                well &= view.availability(now) == Availability::Available;
                endpoint.view.set(view);
            }
            if let Some(check) = &endpoint.check {
                let record = check.read(host);
                let Record { status, reason, detail, since, .. } = record;
                endpoint.verdict.set(Verdict { status, reason, detail, since });
                well &= status.is_usable();
                for ((down, told), component) in reports.iter_mut().zip(record.components) {
                    *told = told.saturating_add((component != Status::Unknown).into());
                    *down = down.saturating_add(component.is_down().into());
                }
            }
            host.record(endpoint.healthy, well.into());
        }
        for (flag, (down, told)) in self.down.iter().zip(reports) {
            flag.set(told > 0 && down == told);
        }
    }

    /// How many endpoints there are, and may be used.
    pub(super) fn census<H: Host>(&self, host: &H, now: Nanos) -> Census {
        self.catch_up(host, now);
        Census::of(self.endpoints.iter().map(|e| (e.availability(now), e.weight)))
    }

    /// Whether this component of the check is down on all endpoints that report it. It costs no host call but the look whether anything has
    /// changed.
    pub(super) fn is_down<H: Host>(&self, host: &H, now: Nanos, component: usize) -> bool {
        self.catch_up(host, now);
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

    /// Picks endpoints for a request and counts it in flight at the first; `None` if there is none to use.
    pub(super) fn pick<H: Host>(&self, host: &H, now: Nanos, rng: &Rng) -> Option<Pick> {
        let panic = self.census(host, now).panics(self.panic_threshold);
        // Each round without success marks one endpoint as out, so there are at most as many rounds as trials in the sample.
        for _ in 0..=upstream::SAMPLE {
            let list = upstream::pick(self.endpoints.len(), |at| self.candidate(host, at, now), panic, rng);
            let first = self.endpoints.get(list.first()?)?;
            let mut pick = Pick { list, ..Pick::default() };
            for (epoch, at) in pick.epochs.iter_mut().zip(list.iter()) {
                let view = self.endpoints.get(at).map(|e| e.view.get()).unwrap_or_default();
                // In a panic one may be listed that is out, or on trial: without a permit its outcome must not count as a trial's.
                let counts = view.availability(now) == Availability::Available;
                *epoch = if counts { view.epoch } else { view.epoch.wrapping_sub(1) };
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
                    None if !panic => continue,
                    None => {}
                }
            }
            // Counted now, over all workers: the next choice, here or elsewhere, must see it.
            host.add(first.in_flight, 1);
            return Some(pick);
        }
        None
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
    pub(super) const fn has_breakers(&self) -> bool {
        self.has_breakers
    }

    /// Who was asked, if the answer's attempt count tells that there was but one try. On a bad answer it is not believed: who is to blame
    /// is asked.
    pub(super) fn first_try(&self, pick: &Pick, headers: &HeaderMap) -> Option<Tries> {
        let once = self.attempt_count && headers.get("x-envoy-attempt-count") == Some(b"1");
        Some(Tries { last: pick.list.first().filter(|_| once)?, before: 0 })
    }

    /// Who was asked, by the address of the last one, or else by the number of tries, which costs a host call: it is asked for only
    /// where the address does not tell.
    pub(super) fn tries(
        &self,
        pick: &Pick,
        address: Option<&[u8]>,
        attempts: impl FnOnce() -> Option<u64>,
    ) -> Option<Tries> {
        let is = |at: &usize| self.endpoints.get(*at).is_some_and(|e| Some(e.address.as_bytes()) == address);
        if let Some((before, last)) = pick.list.iter().enumerate().find(|(_, at)| is(at)) {
            return Some(Tries { last, before: before as u64 });
        }
        let attempts = attempts();
        let before = attempts.unwrap_or(0).saturating_sub(1);
        if let Some(last) = (0..self.endpoints.len()).find(is) {
            // The proxy left the list: at its end, or because it does not follow it (a shadow).
            return Some(Tries { last, before });
        }
        // Nobody answered: the last try was the last of the list that there was.
        let last = pick.list.iter().take(usize::try_from(attempts?).unwrap_or(usize::MAX)).last()?;
        Some(Tries { last, before })
    }

    /// Takes note of how the tries ended.
    pub(super) fn record<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        pick: &Pick,
        tries: Option<Tries>,
        call: Call,
        rng: &Rng,
    ) {
        let Some(Tries { last, before }) = tries else { return self.release(host, now, pick, rng) };
        let failed = Call { outcome: Outcome::Failure, retry_after: None, ..call };
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

    /// Gives back the permit of a pick whose call ended without a verdict.
    pub(super) fn release<H: Host>(&self, host: &H, now: Nanos, pick: &Pick, rng: &Rng) {
        if let (true, Some(at), Some(epoch)) = (pick.trial, pick.list.first(), pick.epochs.first()) {
            self.end(host, now, at, *epoch, Call::IGNORED, rng);
        }
    }

    /// Takes the request out of flight.
    pub(super) fn leave<H: Host>(&self, host: &H, pick: &Pick) {
        if let Some(first) = pick.list.first().and_then(|at| self.endpoints.get(at)) {
            host.add(first.in_flight, -1);
        }
    }

    fn candidate<H: Host>(&self, host: &H, at: usize, now: Nanos) -> Candidate {
        let Some(endpoint) = self.endpoints.get(at) else {
            return Candidate { availability: Availability::Out, weight: 0, in_flight: 0 };
        };
        let in_flight = host.value(endpoint.in_flight);
        Candidate {
            availability: endpoint.availability(now),
            weight: endpoint.weight,
            in_flight: if in_flight > SANE_IN_FLIGHT { 0 } else { in_flight },
        }
    }

    /// Reads the views anew if any endpoint's breaker, or what checks say of it, has changed, in whatever worker.
    fn catch_up<H: Host>(&self, host: &H, now: Nanos) {
        if !(self.has_breakers || self.is_checked) || host.value(self.changes) == self.seen_changes.get() {
            return;
        }
        let pause = if self.len() <= SMALL { Nanos::ZERO } else { REFRESH_PAUSE.times(self.len() as u64) };
        if now.since(self.refreshed.get()) >= pause || now < self.refreshed.get() {
            self.refresh(host, now);
        }
    }

    /// Asks for a half-open permit; without one the endpoint is out for a while.
    fn acquire<H: Host>(&self, host: &H, endpoint: &Endpoint, now: Nanos) -> Option<u32> {
        let breaker = endpoint.breaker.as_ref()?;
        if let Some(epoch) = admitted(breaker.acquire(host, now)) {
            return Some(epoch);
        }
        let epoch = endpoint.view.get().epoch;
        endpoint.view.set(View { availability: Availability::Out, trial_at: now.plus(PERMIT_RECHECK), epoch });
        None
    }

    /// The epoch in which a call counts that the proxy has made of its own accord (a shadow's). Where permits are needed it takes one for
    /// the moment, or its outcome would count as a trial's that nobody has allowed.
    fn unlisted<H: Host>(&self, host: &H, at: usize, now: Nanos) -> Option<u32> {
        let endpoint = self.endpoints.get(at)?;
        let view = endpoint.view.get();
        match view.availability(now) {
            Availability::Available => Some(view.epoch),
            Availability::Trial => self.acquire(host, endpoint, now),
            Availability::Out => None,
        }
    }

    fn end<H: Host>(&self, host: &H, now: Nanos, at: usize, epoch: u32, call: Call, rng: &Rng) {
        let Some(breaker) = self.endpoints.get(at).and_then(|e| e.breaker.as_ref()) else { return };
        // Nobody asks a shadow before a call; without being asked it would stay open for ever.
        let epoch = if breaker.is_shadow() { admitted(breaker.acquire(host, now)) } else { Some(epoch) };
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
    let epoch = state.epoch;
    let out = |trial_at| View { availability: Availability::Out, trial_at, epoch };
    if breaker.is_shadow() {
        return View { availability: Availability::Available, trial_at: Nanos::ZERO, epoch };
    }
    if state.is_from_the_future(now) {
        // The clock has stepped back: asking lets the record follow it.
        return View { availability: Availability::Trial, trial_at: now, epoch };
    }
    match state.phase {
        Phase::Closed => View { availability: Availability::Available, trial_at: Nanos::ZERO, epoch },
        Phase::Open => out(state.until),
        // At the round's end it is asked, or a permit lost with its VM would keep it out for as long as views are read anew all the time.
        Phase::HalfOpen if state.permits >= breaker.config().half_open_calls => {
            out(state.until.min(now.plus(PERMIT_RECHECK)))
        }
        Phase::HalfOpen => View { availability: Availability::Trial, trial_at: now, epoch },
    }
}
