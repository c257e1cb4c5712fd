//! A breaker of one subject, with its metrics and its log lines.

use super::metrics::Names;
use super::namespace;
use crate::base::rng::Rng;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::config::{self, Mode};
use crate::host::{Host, MetricId};
use crate::policy::circuit_breaker::CircuitBreaker;
use crate::policy::circuit_breaker::state::{
    Admission, BreakerSettings, CallResult, Phase, State, Transition, TripReason,
};
use crate::store::Contended;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Lines that a VM logs of changes in a second. Each change has one, until so many breakers flap
/// that the log would be nothing else.
const LINES_PER_SECOND: u32 = 50;

/// What all breakers of an engine share: the room in the log, and the counters of each
/// configuration.
#[derive(Debug, Default)]
pub(super) struct Telling {
    second: Cell<u64>,
    written: Cell<u32>,
    withheld: Cell<u64>,
    /// A host keeps what was defined for as long as the VM lives: thousands of endpoints do not
    /// define the same again.
    counters: RefCell<Vec<(String, Counters)>>,
}

/// The counters of all breakers of one configuration.
#[derive(Clone, Copy, Debug)]
struct Counters {
    to: [MetricId; 3],
    causes: [MetricId; TripReason::ALL.len()],
    contention: MetricId,
}

impl Telling {
    fn counters<H: Host>(&self, name: &str, names: &Names<'_, H>) -> Counters {
        let mut all = self.counters.borrow_mut();
        if let Some((_, known)) = all.iter().find(|(known, _)| known == name) {
            return *known;
        }
        let counters = Counters {
            to: [Phase::Closed, Phase::Open, Phase::HalfOpen]
                .map(|phase| names.breaker_transitions(name, phase)),
            causes: TripReason::ALL.map(|cause| names.breaker_causes(name, cause)),
            contention: names.contention(name),
        };
        all.push((name.to_owned(), counters));
        counters
    }

    /// Writes a line, if there is room for it.
    pub(super) fn write<H: Host>(
        &self,
        host: &H,
        level: log::Level,
        line: impl FnOnce() -> String,
    ) {
        let second = host.monotonic().as_millis() / 1_000;
        if self.second.replace(second) != second {
            self.tell_withheld(host);
            self.written.set(0);
        }
        if self.written.get() < LINES_PER_SECOND {
            self.written.set(self.written.get().saturating_add(1));
            host.log(level, &line());
        } else {
            self.withheld.set(self.withheld.get().saturating_add(1));
        }
    }

    /// Says how many lines were not written.
    pub(super) fn tell_withheld<H: Host>(&self, host: &H) {
        let withheld = self.withheld.replace(0);
        if withheld > 0 {
            host.log(
                log::Level::Warn,
                &[
                    "circuit breakers and endpoints: ",
                    &number(withheld),
                    " more changes",
                ]
                .concat(),
            );
        }
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
    telling: Rc<Telling>,
}

/// Whose breaker it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// A route's.
    Route(&'a str),
    /// All routes' of an upstream.
    Upstream(&'a str),
    /// Of what a route sends to its canary, by the names of both.
    Canary(&'a str, &'a str),
    /// An endpoint's, by upstream and address. The metric is the version that all of an upstream's
    /// share.
    Endpoint(&'a str, &'a str, MetricId),
}

impl Breaker {
    pub(super) fn new<H: Host>(
        config: &config::CircuitBreaker,
        subject: Subject<'_>,
        mode: Mode,
        telling: &Rc<Telling>,
        host: &H,
    ) -> Self {
        let names = Names(host);
        let both;
        let (path, key): (&[&str], _) = match subject {
            Subject::Route(name) => (&["route", name], name),
            Subject::Upstream(name) => (&["upstream", name], name),
            Subject::Canary(route, upstream) => {
                both = [route, "/", upstream].concat();
                (&["canary", route, upstream], both.as_str())
            }
            Subject::Endpoint(upstream, address, _) => (&["endpoint", upstream, address], address),
        };
        let settings = BreakerSettings::new(config.clone());
        let meters = names.breaker_meters(config, subject, mode);
        Self {
            cell: CircuitBreaker::new(&config.name, path, namespace(mode))
                .metered(meters, &settings),
            key: key.to_owned(),
            shadow: mode == Mode::Shadow,
            state: names.breaker_state(&config.name, key),
            changed: names.breaker_changed(&config.name, key),
            counters: telling.counters(&config.name, &names),
            telling: Rc::clone(telling),
            settings,
        }
    }

    /// Its configuration.
    pub(super) const fn config(&self) -> &config::CircuitBreaker {
        self.settings.config()
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
    pub(super) fn refresh<H: Host>(&self, host: &H, now: Nanos, version: Option<u64>) -> State {
        let state = self.cell.refresh(host, &self.settings, version);
        host.record(self.state, state.phase_at(now).gauge());
        state
    }

    /// Asks for admission; `None` if nothing could be decided.
    pub(super) fn acquire<H: Host>(&self, host: &H, now: Nanos) -> Option<Admission> {
        let (admission, change) =
            self.decided(host, self.cell.acquire(host, &self.settings, now))?;
        self.announce(host, change);
        Some(admission)
    }

    /// Reports how an admitted call ended.
    pub(super) fn end<H: Host>(
        &self,
        host: &H,
        now: Nanos,
        epoch: u32,
        call: CallResult,
        rng: &Rng,
    ) {
        if let Some(change) = self.decided(
            host,
            self.cell.end(host, &self.settings, now, epoch, call, rng),
        ) {
            self.announce(host, change);
        }
    }

    fn decided<H: Host, T>(&self, host: &H, result: Result<T, Contended>) -> Option<T> {
        if result.is_err() {
            host.add(self.counters.contention, 1);
        }
        result.ok()
    }

    /// Tells the world of a change of state: gauges, counters, one log line.
    fn announce<H: Host>(&self, host: &H, change: Option<Transition>) {
        let Some(Transition {
            from,
            to,
            cause,
            open_for,
        }) = change
        else {
            return;
        };
        host.record(self.state, to.gauge());
        host.record(self.changed, host.wall().as_millis() / 1_000);
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
            .find(|(known, _)| **known == cause)
        {
            host.add(counter, 1);
        }
        self.telling.write(host, level, || {
            let shadow = if self.shadow { " (shadow)" } else { "" };
            let lasting = if to == Phase::Open {
                [" for ", &number(open_for.as_millis()), " ms"].concat()
            } else {
                String::new()
            };
            let name = &self.config().name;
            let (from, to, cause) = (from.word(), to.word(), cause.word());
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
                cause,
            ]
            .concat()
        });
    }
}
