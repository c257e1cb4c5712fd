//! An endpoint as a worker sees it: its breaker, what checks have found, and the view of both.

use super::Around;
use crate::base::hash::of_names;
use crate::base::time::{Moment, Nanos};
use crate::document::{self, BalancePolicy, LoadReport, Mode};
use crate::engine::breaker::{Breaker, BreakerSubject, Counters, TransitionCounters};
use crate::engine::in_flight::Gauge;
use crate::engine::logs::LogLimiter;
use crate::engine::metrics::MetricTable;
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::circuit_breaker::{Admission, BreakerState, Phase};
use crate::policy::discovery::Verdict;
use crate::policy::health_check::EndpointRecord;
use crate::policy::health_check::{CheckReason, EndpointHealth, HealthRecord};
use crate::policy::upstream::Availability;
use std::cell::Cell;
use std::rc::Rc;

/// How long a worker leaves a half-open endpoint alone that has no permit left, before it tries to
/// get one again.
pub(super) const PERMIT_RECHECK: Nanos = Nanos::from_millis(100);

/// An endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) standing: Cell<Standing>,
    pub(super) healthy: MetricId,
    pub(super) in_flight: Rc<Gauge>,
    pub(super) latency: SharedCounter,
    pub(super) load: SharedCounter,
    pub(super) breaker: Option<Breaker>,
    pub(super) view: Cell<View>,
    /// Counts how often the proxy did not ask it when it should; where it is checked.
    pub(super) strays: SharedCounter,
    /// What active checks have found.
    pub(super) check: Option<EndpointRecord>,
    pub(super) check_result: Cell<CheckResult>,
    /// Until when it has asked for a pause, as this worker has heard.
    pub(super) paused: Cell<Moment>,
    /// Since when the proxy asks others in its place.
    pub(super) astray: Cell<Moment>,
}

/// What a list of endpoints says of one; a new list may say something else.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// 0: it is drained, or gone.
    pub(super) weight: u32,
    pub(super) level: u16,
    pub(super) zone: u16,
    /// When it was first seen, if it came after the proxy's start.
    pub(super) first_seen: Moment,
    /// What its source says of its health.
    pub(super) verdict: Verdict,
    /// It is in no list any more.
    pub(super) is_gone: bool,
}

impl Standing {
    /// That of an endpoint that no list has any more.
    pub(super) const GONE: Self = Self {
        weight: 0,
        level: 0,
        zone: 0,
        first_seen: Moment::ZERO,
        verdict: Verdict::Healthy,
        is_gone: true,
    };
}

impl Standing {
    /// Whether the endpoint's state may be another one by it.
    pub(super) fn differs(self, before: Self) -> bool {
        (self.weight, self.verdict, self.is_gone) != (before.weight, before.verdict, before.is_gone)
    }
}

/// What the gauge of an endpoint's health says of one that is gone: its series stays in the proxy.
const GONE: u64 = 2;

/// What all endpoints of an upstream have in common.
#[derive(Debug)]
pub(super) struct Model {
    config: Rc<document::Upstream>,
    /// With its mode and its counters.
    breaker: Option<(Rc<document::CircuitBreaker>, Mode, Counters)>,
    is_checked: bool,
    /// Counts the changes of all their breakers.
    changes: SharedCounter,
    logs: Rc<LogLimiter>,
}

impl Model {
    pub(super) fn new<H: Host>(
        config: &Rc<document::Upstream>,
        around: &Around<'_>,
        changes: SharedCounter,
        counters: &mut TransitionCounters,
        host: &H,
    ) -> Self {
        let breaker = around.breaker.and_then(|breaker| {
            let mode = breaker.mode.or(config.mode).unwrap_or(around.mode);
            (mode != Mode::Off)
                .then(|| (Rc::clone(breaker), mode, counters.of(&breaker.name, host)))
        });
        Self {
            breaker,
            is_checked: around.is_checked,
            changes,
            logs: Rc::clone(around.logs),
            config: Rc::clone(config),
        }
    }

    /// Whether endpoints have a breaker.
    pub(super) const fn has_breaker(&self) -> bool {
        self.breaker.is_some()
    }
}

/// A number for an endpoint, the same in all configurations.
pub(super) fn id(address: &str) -> u64 {
    of_names(&[address])
}

impl Endpoint {
    /// An endpoint of the upstream that `model` is of.
    pub(super) fn new<H: Host>(model: &Model, address: &str, standing: Standing, host: &H) -> Self {
        let metrics = MetricTable(host);
        let upstream = &*model.config;
        let name = &upstream.name;
        let breaker = model.breaker.as_ref().map(|(breaker, mode, counters)| {
            let subject = BreakerSubject::Endpoint(name, address, model.changes);
            Breaker::new(breaker, subject, *mode, &model.logs, *counters, host)
        });
        let shared = |wanted: bool, share: &dyn Fn() -> SharedCounter| {
            if wanted { share() } else { SharedCounter::NONE }
        };
        let check = upstream.health_check.as_ref().filter(|_| model.is_checked);
        Self {
            standing: Cell::new(standing),
            healthy: metrics.endpoint_healthy(name, address),
            in_flight: Gauge::new(id(address), metrics.endpoint_in_flight(name, address)),
            latency: shared(upstream.policy == BalancePolicy::PeakEwma, &|| {
                metrics.endpoint_latency(name, address)
            }),
            load: shared(upstream.load_report == LoadReport::Orca, &|| {
                metrics.endpoint_load(name, address)
            }),
            strays: shared(check.is_some(), &|| metrics.endpoint_strays(name, address)),
            breaker,
            view: Cell::default(),
            check: check.map(|check| EndpointRecord::new(name, address, check)),
            check_result: Cell::default(),
            paused: Cell::new(Moment::ZERO),
            astray: Cell::new(Moment::ZERO),
            address: address.to_owned(),
        }
    }

    /// Its weight by the list; 0: it is drained, or gone.
    pub(super) fn weight(&self) -> u32 {
        self.standing.get().weight
    }

    /// Whether no list has it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.standing.get().is_gone
    }

    /// Shows in its gauge that it is gone, if it is.
    pub(super) fn note_gone<H: Host>(&self, host: &H) {
        if self.is_gone() {
            host.record(self.healthy, GONE);
        }
    }

    /// Whether neither checks nor its source have taken it out.
    pub(super) fn is_well(&self) -> bool {
        self.check_result.get().status.is_usable() && self.standing.get().verdict.is_usable()
    }

    /// The one state of an endpoint: it is out if its breaker, which goes by its answers to
    /// requests, an active check, or who has named it has taken it out.
    pub(super) fn availability(&self, now: Moment) -> Availability {
        if self.is_well() {
            self.view.get().availability(now)
        } else {
            Availability::Out
        }
    }

    /// Since when checks find it well that was not; zero = it always was, as far as they know.
    pub(super) fn well_since(&self) -> Moment {
        let CheckResult { status, since, .. } = self.check_result.get();
        if self.check.is_some() && status.is_usable() {
            since
        } else {
            Moment::ZERO
        }
    }

    /// Reads its breaker anew, with the version of the upstream's changes that was read before, and
    /// sets its gauge right. `alone`: there is no other, and what breakers have by default leaves it
    /// alone.
    pub(super) fn refresh<H: Host>(
        &self,
        host: &H,
        now: Moment,
        changes: u64,
        alone: bool,
        reports: &mut [(u32, u32)],
    ) {
        let standing = self.standing.get();
        if standing.is_gone {
            return;
        }
        let mut well = standing.weight > 0 && standing.verdict.is_usable();
        if alone {
            self.view.set(View::default());
        } else if let Some(breaker) = &self.breaker {
            let state = breaker.refresh(host, now, Some(changes));
            let view = view_of(&state, breaker, now);
            well &= view.availability(now) == Availability::Available;
            self.view.set(view);
        }
        if let Some(check) = &self.check {
            let record = check.read(host);
            let HealthRecord {
                status,
                reason,
                detail,
                since,
                ..
            } = record;
            self.check_result.set(CheckResult {
                status,
                reason,
                detail,
                since,
            });
            well &= status.is_usable();
            for ((down, known), component) in reports.iter_mut().zip(record.components) {
                *known = known.saturating_add((component != EndpointHealth::Unchecked).into());
                *down = down.saturating_add(component.is_down().into());
            }
        }
        host.record(self.healthy, well.into());
    }
}

/// What checks say of an endpoint: what a worker keeps of its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct CheckResult {
    pub status: EndpointHealth,
    pub reason: CheckReason,
    pub detail: u16,
    /// Since when, on the monotonic clock.
    pub since: Moment,
}

/// What a worker knows of an endpoint without asking.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    pub(super) availability: Availability,
    /// When something that is out may be tried.
    pub(super) trial_at: Moment,
    pub(super) epoch: u32,
    /// Since when it is out.
    pub(super) out_since: Moment,
    /// Since when it is well again, by its breaker; zero = it always was.
    pub(super) well_since: Moment,
}

impl View {
    /// The epoch in which a call counts that begins now. In a panic an endpoint may be picked that
    /// is out, or on trial: without a permit its outcome must not count as a trial's.
    pub(super) fn epoch_at(self, now: Moment) -> u32 {
        if self.availability(now) == Availability::Available {
            self.epoch
        } else {
            self.epoch.wrapping_sub(1)
        }
    }

    pub(super) fn availability(self, now: Moment) -> Availability {
        match self.availability {
            Availability::Out if now >= self.trial_at => Availability::Trial,
            known => known,
        }
    }
}

pub(super) fn view_of(state: &BreakerState, breaker: &Breaker, now: Moment) -> View {
    let view = View {
        availability: Availability::Available,
        trial_at: Moment::ZERO,
        epoch: state.epoch,
        out_since: Moment::ZERO,
        // A breaker that was never open is Closed since zero.
        well_since: if state.phase == Phase::Closed {
            state.since
        } else {
            Moment::ZERO
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
            well_since: Moment::ZERO,
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
        // At the round's end it gets a request, or a permit lost with its VM would keep it out for
        // as long as views are read anew all the time.
        Phase::HalfOpen if state.permits >= breaker.half_open_calls() => {
            out(state.until.min(now.plus(PERMIT_RECHECK)))
        }
        Phase::HalfOpen => trial,
    }
}

pub(super) const fn admitted(answer: Option<Admission>) -> Option<u32> {
    match answer {
        Some(Admission::Admitted { epoch, .. }) => Some(epoch),
        Some(Admission::Refused { .. }) | None => None,
    }
}
