//! A breaker of one subject, with its metrics and its log lines.

use super::logs::LogLimiter;
use super::metrics::MetricTable;
use crate::base::rng::Rng;
use crate::base::text::number;
use crate::base::time::Moment;
use crate::document::{self, Mode};
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::circuit_breaker::CircuitBreaker;
use crate::policy::circuit_breaker::{
    Admission, BreakerSettings, BreakerState, CallResult, Phase, Transition, TripReason,
};
use crate::store::Contended;
use std::rc::Rc;

/// The counters of all breakers of one configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counters {
    to: [MetricId; 3],
    causes: [MetricId; TripReason::ALL.len()],
    contention: MetricId,
}

/// The counters of an engine's breakers, by configuration: thousands of endpoints share theirs. A
/// host keeps each metric that was defined for as long as the VM lives.
#[derive(Debug, Default)]
pub(super) struct TransitionCounters(Vec<(String, Counters)>);

impl TransitionCounters {
    /// Those of a breaker's configuration.
    pub(super) fn of<H: Host>(&mut self, name: &str, host: &H) -> Counters {
        let metrics = MetricTable(host);
        if let Some((_, known)) = self.0.iter().find(|(known, _)| known == name) {
            return *known;
        }
        let counters = Counters {
            to: [Phase::Closed, Phase::Open, Phase::HalfOpen]
                .map(|phase| metrics.breaker_transitions(name, phase)),
            causes: TripReason::ALL.map(|reason| metrics.breaker_causes(name, reason)),
            contention: metrics.contention(name),
        };
        self.0.push((name.to_owned(), counters));
        counters
    }
}

#[derive(Debug)]
pub(super) struct Breaker {
    cell: CircuitBreaker,
    settings: BreakerSettings,
    key: String,
    shadow: bool,
    state: MetricId,
    changed: MetricId,
    counters: Counters,
    logs: Rc<LogLimiter>,
}

/// Whose breaker it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum BreakerSubject<'a> {
    /// A route's.
    Route(&'a str),
    /// All routes' of an upstream.
    Upstream(&'a str),
    /// Of what a route sends to its canary, by the names of both.
    Canary(&'a str, &'a str),
    /// An endpoint's, by upstream and address. The counter is the version that all of an upstream's
    /// share.
    Endpoint(&'a str, &'a str, SharedCounter),
}

impl<'a> BreakerSubject<'a> {
    /// What names its record: the kind of subject first.
    fn path(self) -> Vec<&'a str> {
        match self {
            Self::Route(name) => vec!["route", name],
            Self::Upstream(name) => vec!["upstream", name],
            Self::Canary(route, upstream) => vec!["canary", route, upstream],
            Self::Endpoint(upstream, address, _) => vec!["endpoint", upstream, address],
        }
    }

    /// Its name for people.
    fn key(self) -> String {
        match self {
            Self::Route(name) | Self::Upstream(name) => name.to_owned(),
            Self::Canary(route, upstream) => [route, "/", upstream].concat(),
            Self::Endpoint(_, address, _) => address.to_owned(),
        }
    }

    /// The labels of its counters.
    fn labels(self) -> Vec<(&'a str, &'a str)> {
        match self {
            Self::Route(name) | Self::Upstream(name) => vec![("key", name)],
            Self::Canary(route, upstream) => vec![("route", route), ("upstream", upstream)],
            Self::Endpoint(upstream, address, _) => {
                vec![("upstream", upstream), ("endpoint", address)]
            }
        }
    }

    /// The version that it shares with other subjects.
    const fn version(self) -> Option<SharedCounter> {
        match self {
            Self::Endpoint(_, _, version) => Some(version),
            _ => None,
        }
    }
}

impl Breaker {
    pub(super) fn new<H: Host>(
        config: &document::CircuitBreaker,
        subject: BreakerSubject<'_>,
        mode: Mode,
        logs: &Rc<LogLimiter>,
        counters: Counters,
        host: &H,
    ) -> Self {
        let metrics = MetricTable(host);
        let (path, key) = (subject.path(), subject.key());
        let mut config = config.clone();
        if let BreakerSubject::Endpoint(..) = subject {
            // An endpoint's traffic is a part of its upstream's: one call shows whether it is well.
            config.half_open_calls.get_or_insert(1);
        }
        let settings = BreakerSettings::new(config.clone());
        let meters = metrics.breaker_meters(&config, subject.labels(), subject.version(), mode);
        Self {
            cell: CircuitBreaker::new(&config.name, &path, mode.namespace())
                .metered(meters, &settings),
            shadow: mode == Mode::Shadow,
            state: metrics.breaker_state(&config.name, &key),
            changed: metrics.breaker_changed(&config.name, &key),
            counters,
            logs: Rc::clone(logs),
            key,
            settings,
        }
    }

    /// Its configuration.
    pub(super) const fn config(&self) -> &document::CircuitBreaker {
        self.settings.config()
    }

    /// Calls let through while half-open.
    pub(super) fn half_open_calls(&self) -> u32 {
        self.settings.half_open_calls()
    }

    /// Whether it only looks on.
    pub(super) const fn is_shadow(&self) -> bool {
        self.shadow
    }

    /// Whether both have one state.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.cell.is_same(&other.cell)
    }

    /// Reads its record again and sets its gauge right: a VM may have died between a change and the
    /// note of it. `version` is the version that was read before, if it was.
    pub(super) fn refresh<H: Host>(
        &self,
        host: &H,
        now: Moment,
        version: Option<u64>,
    ) -> BreakerState {
        let state = self.cell.refresh(host, &self.settings, version);
        host.record(self.state, state.phase_at(now).gauge());
        state
    }

    /// What is known of admission without asking for it.
    pub(super) fn look<H: Host>(&self, host: &H, now: Moment) -> Option<Admission> {
        self.cell.look(host, &self.settings, now)
    }

    /// Asks for admission; `None` if nothing could be decided.
    pub(super) fn acquire<H: Host>(&self, host: &H, now: Moment) -> Option<Admission> {
        let (admission, change) =
            self.decided(host, self.cell.acquire(host, &self.settings, now))?;
        self.announce(host, change);
        Some(admission)
    }

    /// Reports that the answer to a trial has begun well, and goes on. `false`: it is not counted.
    pub(super) fn begin<H: Host>(&self, host: &H, now: Moment, epoch: u32) -> bool {
        self.decided(host, self.cell.begin(host, &self.settings, now, epoch))
            .is_some()
    }

    /// Writes the outcomes that are not written yet.
    pub(super) fn flush<H: Host>(&self, host: &H, now: Moment) {
        self.cell.flush(host, &self.settings, now);
    }

    /// Reports how an admitted call ended; whether that has changed the phase.
    pub(super) fn end<H: Host>(
        &self,
        host: &H,
        now: Moment,
        epoch: u32,
        call: CallResult,
        rng: &Rng,
    ) -> bool {
        let end = self.cell.end(host, &self.settings, now, epoch, call, rng);
        let change = self.decided(host, end).flatten();
        self.announce(host, change);
        change.is_some()
    }

    fn decided<H: Host, T>(&self, host: &H, result: Result<T, Contended>) -> Option<T> {
        if result.is_err() {
            host.add(self.counters.contention, 1);
        }
        result.ok()
    }

    /// Reports a change of state: gauges, counters, one log line.
    fn announce<H: Host>(&self, host: &H, change: Option<Transition>) {
        let Some(Transition {
            from,
            to,
            reason,
            open_for,
        }) = change
        else {
            return;
        };
        host.record(self.state, to.gauge());
        host.record(self.changed, host.wall().as_secs());
        let [to_closed, to_open, to_half_open] = self.counters.to;
        let (counter, level) = match to {
            Phase::Closed => (to_closed, log::Level::Info),
            Phase::Open => (to_open, log::Level::Warn),
            Phase::HalfOpen => (to_half_open, log::Level::Info),
        };
        host.add(counter, 1);
        if let Some((_, counter)) = TripReason::ALL
            .iter()
            .zip(self.counters.causes)
            .find(|(known, _)| **known == reason)
        {
            host.add(counter, 1);
        }
        self.logs.write(host, level, || {
            let shadow = if self.shadow { " (shadow)" } else { "" };
            let lasting = if to == Phase::Open {
                [" for ", &number(open_for.as_millis()), " ms"].concat()
            } else {
                String::new()
            };
            let name = &self.config().name;
            let (from, to, reason) = (from.word(), to.word(), reason.word());
            [
                "circuit breaker ",
                name,
                " of ",
                &self.key,
                shadow,
                ": ",
                from,
                " -> ",
                to,
                &lasting,
                ": ",
                reason,
            ]
            .concat()
        });
    }
}
