//! A breaker of one subject, with its metrics and its log lines.

use super::metrics::Names;
use super::namespace;
use crate::base::rng::Rng;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::config::{self, Mode};
use crate::host::{Host, MetricId};
use crate::policy::circuit_breaker::state::{Admission, Call, Cause, Phase, Settings, State, Transition};
use crate::policy::circuit_breaker::{Change, CircuitBreaker};
use crate::store::Contended;
use std::cell::Cell;
use std::rc::Rc;

/// Lines that a VM logs of changes in a second. Each change has one, until so many breakers flap that the log would be nothing else.
const LINES_PER_SECOND: u32 = 50;

/// What is left of a second's lines; all breakers of an engine share it.
#[derive(Debug, Default)]
pub(super) struct Lines {
    second: Cell<u64>,
    written: Cell<u32>,
    withheld: Cell<u64>,
}

impl Lines {
    /// Writes a line, if there is room for it.
    fn write<H: Host>(&self, host: &H, level: log::Level, line: impl FnOnce() -> String) {
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
            host.log(log::Level::Warn, &["circuit breakers: ", &number(withheld), " more changes"].concat());
        }
    }
}

#[derive(Debug)]
pub(super) struct Breaker {
    cell: CircuitBreaker,
    settings: Settings,
    key: String,
    shadow: bool,
    state: MetricId,
    changed: MetricId,
    to: [MetricId; 3],
    causes: [MetricId; Cause::ALL.len()],
    contention: MetricId,
    lines: Rc<Lines>,
}

/// Whose breaker it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// A route's.
    Route(&'a str),
    /// All routes' of an upstream.
    Upstream(&'a str),
    /// An endpoint's, by upstream and address. The metric is the version that all of an upstream's share.
    Endpoint(&'a str, &'a str, MetricId),
}

impl Breaker {
    pub(super) fn new<H: Host>(
        config: &config::CircuitBreaker,
        subject: Subject<'_>,
        mode: Mode,
        lines: &Rc<Lines>,
        host: &H,
    ) -> Self {
        let names = Names(host);
        let (path, key): (&[&str], _) = match subject {
            Subject::Route(name) => (&["route", name], name),
            Subject::Upstream(name) => (&["upstream", name], name),
            Subject::Endpoint(upstream, address, _) => (&["endpoint", upstream, address], address),
        };
        let settings = Settings::new(config.clone());
        let meters = names.breaker_meters(config, subject, mode);
        Self {
            cell: CircuitBreaker::new(&config.name, path, namespace(mode)).metered(meters, &settings),
            key: key.to_owned(),
            shadow: mode == Mode::Shadow,
            state: names.breaker_state(&config.name, key),
            changed: names.breaker_changed(&config.name, key),
            to: [Phase::Closed, Phase::Open, Phase::HalfOpen]
                .map(|phase| names.breaker_transitions(&config.name, phase)),
            causes: Cause::ALL.map(|cause| names.breaker_causes(&config.name, cause)),
            contention: names.contention(&config.name),
            lines: Rc::clone(lines),
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

    /// Reads its record again and sets its gauge right: a VM may have died between a change and the note of it. `version` is the version
    /// that was read before, if it was.
    pub(super) fn refresh<H: Host>(&self, host: &H, now: Nanos, version: Option<u64>) -> State {
        let state = self.cell.refresh(host, &self.settings, version);
        host.record(self.state, state.phase_at(now).gauge());
        state
    }

    /// Whether it is closed, as far as the state's gauge tells all workers.
    pub(super) fn is_closed<H: Host>(&self, host: &H) -> bool {
        host.value(self.state) == Phase::Closed.gauge()
    }

    /// Asks for admission; `None` if nothing could be decided.
    pub(super) fn acquire<H: Host>(&self, host: &H, now: Nanos) -> Option<Admission> {
        let (admission, change) = self.decided(host, self.cell.acquire(host, &self.settings, now))?;
        self.announce(host, change);
        Some(admission)
    }

    /// Reports how an admitted call ended.
    pub(super) fn end<H: Host>(&self, host: &H, now: Nanos, epoch: u32, call: Call, rng: &Rng) {
        if let Some(change) = self.decided(host, self.cell.end(host, &self.settings, now, epoch, call, rng)) {
            self.announce(host, change);
        }
    }

    fn decided<H: Host, T>(&self, host: &H, result: Result<T, Contended>) -> Option<T> {
        if result.is_err() {
            host.add(self.contention, 1);
        }
        result.ok()
    }

    /// Tells the world of a change of state: gauges, counters, one log line.
    fn announce<H: Host>(&self, host: &H, change: Change) {
        let Some(Transition { from, to, cause, open_for }) = change else { return };
        host.record(self.state, to.gauge());
        host.record(self.changed, host.wall().as_millis() / 1_000);
        let [to_closed, to_open, to_half_open] = self.to;
        let (counter, level) = match to {
            Phase::Closed => (to_closed, log::Level::Info),
            Phase::Open => (to_open, log::Level::Warn),
            Phase::HalfOpen => (to_half_open, log::Level::Info),
        };
        host.add(counter, 1);
        if let Some((_, counter)) = Cause::ALL.iter().zip(self.causes).find(|(known, _)| **known == cause) {
            host.add(counter, 1);
        }
        self.lines.write(host, level, || {
            let shadow = if self.shadow { " (shadow)" } else { "" };
            let lasting = if to == Phase::Open {
                [" for ", &number(open_for.as_millis()), " ms"].concat()
            } else {
                String::new()
            };
            let name = &self.config().name;
            let (from, to, cause) = (from.word(), to.word(), cause.word());
            ["circuit breaker ", name, " of ", &self.key, shadow, ": ", from, " -> ", to, &lasting, ": ", cause]
                .concat()
        });
    }
}
