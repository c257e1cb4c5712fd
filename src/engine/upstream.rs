//! An upstream's endpoints at run time: which may be used, what is in flight where, and the states
//! of their breakers.
//!
//! The endpoints in rotation are in a [`Roster`], which each worker makes anew when a breaker has
//! changed, or when time has changed something: an open time that is over, a ramp, a report that
//! fades. A request finds it ready, whatever the number of endpoints.

mod endpoint;
mod layout;
mod membership;
mod outcome;
mod pick;
mod slots;
mod steering;
mod tries;

use super::breaker::TransitionCounters;
use super::discovery::{Discovery, with_members_of};
use super::in_flight::{Gauge, InFlight};
use super::logs::LogLimiter;
use super::metrics::MetricTable;
use super::shared::Shared;
use crate::base::time::{Moment, Nanos};
use crate::document::{self, FailureOn, LoadReport, Mode};
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::circuit_breaker::VERSION_HOLDS;
use crate::policy::shares::SharesRecord;
use crate::policy::upstream::Availability;
use crate::policy::upstream::orca::{self, Load};
use crate::policy::upstream::peers::Peers;
use crate::policy::upstream::roster::{EndpointCounts, Member, Roster, Rules, UNIT};
use crate::policy::upstream::slow_start;
use endpoint::{CheckResult, Endpoint, Model};
use membership::Following;
pub(super) use outcome::Ended;
use pick::Balancer;
pub(super) use pick::Pick;
use slots::Slots;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use steering::Steering;
pub(super) use tries::{Attempts, Tried};

/// Up to this number of endpoints a change is seen within [`VERSION_HOLDS`]; beyond, reading all of
/// them again and again while many change at once would take the worker.
const SMALL: usize = 32;

/// How long a worker with more endpoints waits between two readings, for each endpoint: 1 % of its
/// time, 10 ms for 1,000.
const REFRESH_PAUSE: Nanos = Nanos(10_000);

/// Endpoints whose breakers are read anew in one tick.
const REFRESHED_PER_TICK: usize = 64;

/// An upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) config: Rc<document::Upstream>,
    /// Whether only canaries use it.
    pub(super) only_canary: bool,
    slots: RefCell<Rc<Slots>>,
    /// What makes a new endpoint.
    model: Model,
    /// Where its endpoints come from, if they do not stand in the configuration.
    following: Option<Following>,
    /// Whether it has a single endpoint.
    alone: Cell<bool>,
    in_flight: InFlight,
    /// The requests in flight at all endpoints, where a bounded load needs them.
    all_in_flight: Option<Rc<Gauge>>,
    balancer: Balancer,
    rules: RefCell<Rules>,
    load_report: bool,
    /// How the endpoints do against each other.
    peers: Shared<Peers>,
    /// Whether any endpoint has a breaker.
    has_breakers: bool,
    /// Whether it is the one that upstreams have by default: it looks at failures only.
    is_passive: bool,
    failure_on: Option<FailureOn>,
    /// Whether endpoints are checked. Without that, and without breakers, no view changes.
    is_checked: bool,
    check_duration: SharedCounter,
    components: Vec<Rc<ComponentState>>,
    /// Counts changes of any endpoint's breaker, over all workers.
    changes: SharedCounter,
    /// Its value when the views were read.
    seen_changes: Cell<u64>,
    /// When they were.
    refreshed: Cell<Moment>,
    /// When it was last looked whether there are changes.
    looked: Cell<Moment>,
    /// The endpoint that the next tick begins with.
    refresh_at: Cell<usize>,
    roster: RefCell<Rc<Roster>>,
    /// When the roster was made.
    built: Cell<Moment>,
    /// When it has to be made anew, at the latest.
    due: Cell<Moment>,
    panic: MetricId,
    /// Counts good answers of a first try, for a look at some of them.
    looks: Cell<u8>,
    steering: Steering,
}

/// What an upstream takes from the rest of the configuration.
#[derive(Clone, Copy)]
pub(super) struct Around<'c> {
    /// The breaker of its endpoints.
    pub(super) breaker: Option<&'c Rc<document::CircuitBreaker>>,
    /// Whether that is the default one.
    pub(super) is_passive: bool,
    /// The mode of what does not set its own.
    pub(super) mode: Mode,
    pub(super) is_checked: bool,
    /// Whether only canaries use it.
    pub(super) only_canary: bool,
    pub(super) logs: &'c Rc<LogLimiter>,
    /// What names its endpoints, if they do not stand in the configuration.
    pub(super) discovery: Option<&'c Rc<Discovery>>,
}

/// A component of the reports that an upstream's endpoints make.
#[derive(Debug)]
pub(super) struct ComponentState {
    pub(super) name: String,
    /// Whether it is down on all endpoints that report it.
    down: Cell<bool>,
}

/// The number of the gauge of all requests in flight; no endpoint's is, but by chance.
const TOTAL: u64 = 0;

impl Upstream {
    pub(super) fn new<H: Host>(
        config: &Rc<document::Upstream>,
        around: Around<'_>,
        counters: &mut TransitionCounters,
        host: &H,
    ) -> Self {
        let metrics = MetricTable(host);
        let name = &config.name;
        let changes = metrics.endpoint_changes(name);
        let model = Model::new(config, &around, changes, counters, host);
        let balancer = Balancer::new(&config.policy);
        let all_in_flight = matches!(
            balancer,
            Balancer::ConsistentHash {
                bounded_load: Some(_),
                ..
            }
        )
        .then(|| Gauge::new(TOTAL, metrics.upstream_in_flight(name)));
        let check = config.health_check.as_ref().filter(|_| around.is_checked);
        let components = check.map_or(&[][..], |check| &check.components);
        let upstream = Self {
            in_flight: InFlight::new(
                SharesRecord::new(&["endpoints", name]),
                metrics.contention(name),
                std::iter::empty(),
            ),
            all_in_flight,
            balancer,
            rules: RefCell::default(),
            load_report: config.load_report == LoadReport::Orca,
            peers: Shared::new(Peers::default()),
            has_breakers: model.has_breaker()
                && (around.discovery.is_some() || !config.endpoints.is_empty()),
            slots: RefCell::default(),
            model,
            following: around.discovery.map(Following::new),
            alone: Cell::new(false),
            is_passive: around.is_passive,
            failure_on: around.breaker.map(|breaker| breaker.failure_on.clone()),
            is_checked: around.is_checked,
            check_duration: if around.is_checked {
                metrics.health_check_duration(name)
            } else {
                SharedCounter::NONE
            },
            components: components.iter().map(ComponentState::new).collect(),
            changes,
            seen_changes: Cell::new(0),
            refreshed: Cell::new(Moment::ZERO),
            looked: Cell::new(Moment::ZERO),
            refresh_at: Cell::new(0),
            roster: RefCell::default(),
            built: Cell::new(Moment::ZERO),
            due: Cell::new(Moment::ZERO),
            panic: metrics.upstream_panic(name),
            looks: Cell::new(0),
            steering: Steering::new(config.steer),
            only_canary: around.only_canary,
            config: Rc::clone(config),
        };
        if upstream.following.is_none() {
            upstream.take_list(host);
        }
        upstream
    }

    /// The places of its endpoints, as they are now.
    fn slots(&self) -> Rc<Slots> {
        let slots = self.slots.try_borrow();
        slots.map(|slots| Rc::clone(&slots)).unwrap_or_default()
    }

    /// The endpoint of this number, if it still has its place.
    fn endpoint(&self, number: usize) -> Option<Rc<Endpoint>> {
        self.slots().named(number).map(Rc::clone)
    }

    /// Whether what breakers have by default leaves its endpoint alone: it has no other.
    fn is_alone(&self) -> bool {
        self.is_passive && self.alone.get()
    }

    /// What counts as a failure of an endpoint, if endpoints have a breaker.
    pub(super) const fn failure_on(&self) -> Option<&FailureOn> {
        self.failure_on.as_ref()
    }

    /// Whether active checks run.
    pub(super) const fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// The component of this name, if its endpoints' reports have it.
    pub(super) fn component(&self, name: &str) -> Option<Rc<ComponentState>> {
        let mut components = self.components.iter();
        components.find(|it| it.name == name).map(Rc::clone)
    }

    /// How many places for endpoints there are.
    fn len(&self) -> usize {
        self.slots().len()
    }

    /// Reads all endpoints' breakers and what checks have found anew, and sets their gauges right.
    pub(super) fn refresh<H: Host>(&self, host: &H, now: Moment) {
        // Before the records: a change that comes between is then read again, never missed.
        let changes = host.load(self.changes);
        self.refreshed.set(now);
        self.follow_changes(host, now, changes);
        self.see_breakers(changes);
        // By component: how many report it down, and how many report it at all.
        let mut reports = vec![(0u32, 0u32); self.components.len()];
        let alone = self.is_alone();
        for endpoint in self.slots().all() {
            endpoint.refresh(host, now, changes, alone, &mut reports);
        }
        for (component, (down, known)) in self.components.iter().zip(reports) {
            component.down.set(known > 0 && down == known);
        }
        self.build(host, now);
    }

    /// Reads some of them anew, in turn, with every tick: a VM may have died between a change and
    /// the note of it. How many.
    pub(super) fn refresh_some<H: Host>(&self, host: &H, now: Moment) -> usize {
        if self.is_checked || self.len() <= REFRESHED_PER_TICK {
            self.refresh(host, now);
            return self.len();
        }
        let changes = host.load(self.changes);
        let slots = self.slots();
        let (from, alone) = (self.refresh_at.get(), self.is_alone());
        let some = slots.all().skip(from).take(REFRESHED_PER_TICK);
        some.for_each(|endpoint| endpoint.refresh(host, now, changes, alone, &mut []));
        let next = from.saturating_add(REFRESHED_PER_TICK);
        self.refresh_at
            .set(if next < slots.len() { next } else { 0 });
        self.build(host, now);
        REFRESHED_PER_TICK
    }

    /// A request of this VM is about to be counted.
    pub(super) fn announce<H: Host>(&self, host: &H, now: Moment, vm: u64) {
        self.in_flight.announce(host, now, vm);
    }

    /// Writes what this VM has not written yet of its endpoints' outcomes.
    pub(super) fn flush<H: Host>(&self, host: &H, now: Moment) {
        // The breakers that there are by default are told of failures only.
        if self.has_breakers && !self.is_passive {
            let slots = self.slots();
            let breakers = slots.all().filter_map(|it| it.breaker.as_ref());
            breakers.for_each(|breaker| breaker.flush(host, now));
        }
    }

    /// The configuration is in use no more: nothing of it stays behind.
    pub(super) fn close<H: Host>(&self, host: &H, now: Moment) {
        self.flush(host, now);
        self.in_flight.settle(host);
    }

    /// Reports what is in flight, and takes out what a lost VM has left: with every tick where
    /// there is anything, otherwise when it is `due`.
    pub(super) fn report_in_flight<H: Host>(&self, host: &H, now: Moment, vm: u64, due: bool) {
        if due || self.in_flight.is_busy() {
            self.in_flight.reconcile(host, now, vm);
        }
    }

    /// How many endpoints there are, and may be used.
    pub(super) fn counts<H: Host>(&self, host: &H, now: Moment) -> EndpointCounts {
        self.roster(host, now).counts
    }

    /// Whether this component is down on all endpoints that report it. It costs no host call but
    /// the look whether anything has changed.
    pub(super) fn is_down<H: Host>(
        &self,
        host: &H,
        now: Moment,
        component: &ComponentState,
    ) -> bool {
        drop(self.roster(host, now));
        component.down.get()
    }

    /// What the last check took that was answered, in milliseconds; `None` if there are no checks.
    pub(super) fn response_time<H: Host>(&self, host: &H) -> Option<u64> {
        self.is_checked.then(|| host.load(self.check_duration))
    }

    /// What checks have found of all endpoints.
    pub(super) fn check_results(&self) -> impl Iterator<Item = CheckResult> {
        let slots = self.slots();
        let checked = slots.all().filter(|e| e.weight() > 0 && e.check.is_some());
        let results: Vec<_> = checked.map(|e| e.check_result.get()).collect();
        results.into_iter()
    }

    /// The endpoints in rotation at this moment.
    fn roster<H: Host>(&self, host: &H, now: Moment) -> Rc<Roster> {
        let pause = if self.len() <= SMALL {
            Nanos::ZERO
        } else {
            REFRESH_PAUSE.times(self.len() as u64)
        };
        let may = |last: Moment| !last.is_within(pause, now);
        let changing = self.has_breakers || self.is_checked;
        let looks = changing && !self.looked.get().is_within(VERSION_HOLDS, now);
        if looks {
            self.looked.set(now);
        }
        let seen = self.seen_changes.get();
        let changes = if looks { host.load(self.changes) } else { seen };
        if changes != seen && may(self.refreshed.get()) {
            if self.following.is_some() && with_members_of(changes, seen) == seen {
                self.follow_changes(host, now, changes);
            } else {
                self.refresh(host, now);
            }
        } else if (now >= self.due.get() || now < self.built.get()) && may(self.built.get()) {
            self.build(host, now);
        }
        self.roster
            .try_borrow()
            .map(|roster| Rc::clone(&roster))
            .unwrap_or_default()
    }

    /// An endpoint as the roster has it, and when time changes it. `load`: the mean of all, and its
    /// own.
    fn member(
        &self,
        endpoint: &Endpoint,
        load: Option<(u32, Load)>,
        now: Moment,
    ) -> (Member, Moment) {
        let view = endpoint.view.get();
        let mut changes_at = Moment::MAX;
        let standing = endpoint.standing.get();
        let mut weight = standing.weight.saturating_mul(UNIT);
        if let Some(window) = self.config.slow_start {
            let since = endpoint
                .well_since()
                .max(view.well_since)
                .max(standing.first_seen);
            weight = slow_start::ramped(weight, since, window, now);
            if slow_start::ramps(since, window, now) {
                changes_at = now.plus(Nanos(window.0 / slow_start::STEPS));
            }
        }
        if let Some((mean, load)) = load {
            weight = orca::weighed(weight, load, mean, now);
        }
        if view.availability(now) == Availability::Out {
            changes_at = changes_at.min(view.trial_at);
        }
        let member = Member {
            availability: endpoint.availability(now),
            unwell: !endpoint.is_well(),
            out_since: view.out_since,
            weight,
            level: standing.level,
            zone: standing.zone,
        };
        (member, changes_at)
    }

    /// Makes the roster anew, of the views as they are.
    fn build<H: Host>(&self, host: &H, now: Moment) {
        let mut due = Moment::MAX;
        let slots = self.slots();
        let loads: Vec<Load> = if self.load_report {
            slots.all().map(|e| Load(host.load(e.load))).collect()
        } else {
            Vec::new()
        };
        let present = slots.present().filter_map(|(at, _)| loads.get(at));
        let mean = orca::mean(present.copied(), now);
        if self.load_report {
            due = now.plus(orca::PERIOD);
        }
        let mut members = Vec::with_capacity(slots.len());
        let mut steers = false;
        for (at, endpoint) in slots.all().enumerate() {
            let load = mean.zip(loads.get(at).copied());
            let (member, changes_at) = self.member(endpoint, load, now);
            due = due.min(changes_at);
            // The first level is enough while it is whole.
            let full = endpoint.weight();
            steers |= member.level == 0
                && (member.availability != Availability::Available
                    || full == 0
                    || member.weight < full.saturating_mul(UNIT));
            members.push(member);
        }
        self.steering.need(steers);
        let Ok(mut current) = self.roster.try_borrow_mut() else {
            return;
        };
        let mut roster = Rc::try_unwrap(std::mem::take(&mut *current)).unwrap_or_default();
        if let Ok(rules) = self.rules.try_borrow() {
            roster.build(&rules, members.into_iter());
        }
        let panic = roster.panic;
        *current = Rc::new(roster);
        drop(current);
        self.built.set(now);
        self.due.set(due);
        host.record(self.panic, panic.into());
    }
}

impl ComponentState {
    fn new(config: &document::ReportComponent) -> Rc<Self> {
        Rc::new(Self {
            name: config.name.clone(),
            down: Cell::new(false),
        })
    }
}
