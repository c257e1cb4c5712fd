//! Circuit breakers: Closed, Open, Half-Open, shared by all workers.
//!
//! [`state`] is the pure machine, [`window`] what it judges by; [`CircuitBreaker`] keeps the record
//! in shared data and a [`BreakerView`] of it in the VM.
//!
//! **What a request costs.** A change of phase is counted in a metric, the *version*, after it was
//! written; a worker reads the record again when the version has moved. So admission by a Closed
//! breaker, and refusal by an Open one, cost one reading of a metric. An outcome of a Closed
//! breaker with a time window costs that, an addition to the tally and a reading of it; the record
//! is read once a bucket by each worker, and written once a bucket by one. Half-Open, where calls
//! are few, and count windows, whose order matters, cost a compare-and-swap for each call. A host
//! without metrics costs a read for each admission and a compare-and-swap for each outcome; what is
//! decided is the same.
//!
//! **How late may it open?** An outcome is counted by one atomic addition, and judged together with
//! all that were counted before the reading that follows. So the outcome that reaches a threshold
//! opens the breaker in its own callback; only when others are counted in the microseconds between
//! the two are they judged together. The other workers know as soon as the version has moved: what
//! they admit in between is what they admit in these microseconds.
//!
//! **What if?** A compare-and-swap that is lost too often: the outcome is dropped (and counted in
//! `haven_store_contention_total`): a breaker judges by rates, one sample more or less does not
//! matter; a request is then admitted as in Closed, since a breaker that cannot be read is no
//! reason to refuse. A half-open permit that is lost this way, or with its VM, is missed until
//! `half_open_max_wait` ends the round. A VM that dies between a change and its version: the others
//! see it when they read the record on their next tick. A tally that is set back: what it held
//! since the bucket began is forgotten. An outcome that was admitted in an older phase is not
//! counted; that of a worker which was stopped in the middle of counting it for longer than the
//! open time may be.

mod settings;
mod state;
mod transition;
pub mod window;

use crate::base::hash::of_names;
use crate::base::rng::Rng;
use crate::base::time::Nanos;
use crate::host::{SharedCounter, SharedCounters, SharedData};
use crate::policy::Outcome;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};
pub use settings::BreakerSettings;
pub use state::BreakerState;
use std::cell::Cell;
pub use transition::{Admission, CallResult, Phase, Transition, TripReason};
use window::{Counts, FOLD, Ring, Window, between, weight};

/// A breaker of one route, upstream or endpoint.
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    key: RecordKey,
    meters: Meters,
    view: Cell<Option<BreakerView>>,
}

/// The metrics that carry a breaker's cheap paths. All workers must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meters {
    /// A counter of changes of phase; breakers may share one.
    pub version: SharedCounter,
    /// A gauge that is the tally (see [`window`]); needed only for a time window.
    pub tally: SharedCounter,
    /// A gauge of failures in a row; needed only for a time window where `consecutive_failures` is
    /// set.
    pub consecutive: SharedCounter,
}

impl Meters {
    /// A host without metrics.
    pub const NONE: Self = Self {
        version: SharedCounter::NONE,
        tally: SharedCounter::NONE,
        consecutive: SharedCounter::NONE,
    };
}

/// What a VM knows of the record.
#[derive(Clone, Copy, Debug)]
struct BreakerView {
    /// The version before the record was read: what has changed since, makes it move.
    version: u64,
    phase: Phase,
    epoch: u32,
    since: Nanos,
    until: Nanos,
    /// Of a time window: its newest bucket, the tally up to which its buckets hold outcomes, and
    /// what they hold.
    head: u64,
    base: Option<u64>,
    sum: Counts,
}

impl BreakerView {
    fn of(state: &BreakerState, version: u64) -> Self {
        let BreakerState {
            phase,
            epoch,
            since,
            until,
            ..
        } = *state;
        let (head, base, sum) = match &state.window {
            Window::Time(ring) => (ring.head, ring.base, ring.sum()),
            Window::Count(_) => (0, None, Counts::default()),
        };
        Self {
            version,
            phase,
            epoch,
            since,
            until,
            head,
            base,
            sum,
        }
    }

    /// The answer to a request, where it needs no permit.
    fn answer(&self, now: Nanos) -> Option<Admission> {
        match self.phase {
            Phase::Closed => Some(Admission::Admitted {
                epoch: self.epoch,
                trial: false,
            }),
            Phase::Open if now < self.until && !state::is_ahead(self.since, now) => {
                Some(Admission::Refused {
                    wait: self.until.since(now),
                })
            }
            Phase::Open | Phase::HalfOpen => None,
        }
    }
}

impl CircuitBreaker {
    /// The breaker `name` for `subject` (a route, an upstream, an endpoint). `namespace` keeps
    /// shadow uses apart.
    #[must_use]
    pub fn new(name: &str, subject: &[&str], namespace: &str) -> Self {
        let mut names = vec![name, namespace];
        names.extend_from_slice(subject);
        Self {
            key: RecordKey::new(RecordKind::CircuitBreaker, of_names(&names), 0),
            meters: Meters::NONE,
            view: Cell::new(None),
        }
    }

    /// The same with cheap paths, if the host has all metrics that they need.
    #[must_use]
    pub fn metered(self, meters: Meters, settings: &BreakerSettings) -> Self {
        let rows = settings.config().consecutive_failures > 0;
        let missing = meters.version == SharedCounter::NONE
            || (settings.is_timed()
                && (meters.tally == SharedCounter::NONE
                    || (rows && meters.consecutive == SharedCounter::NONE)));
        Self {
            meters: if missing { Meters::NONE } else { meters },
            ..self
        }
    }

    /// Whether both keep their state in the same record.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Asks for admission.
    ///
    /// # Errors
    /// [`Contended`]: nothing was decided.
    pub fn acquire<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Nanos,
    ) -> Result<(Admission, Option<Transition>), Contended> {
        let version = self.version(host);
        if self.is_metered()
            && let Some(answer) = self.view(host, settings, version).answer(now)
        {
            return Ok((answer, None));
        }
        self.step(host, settings, version, |state| {
            state.acquire(settings, now)
        })
    }

    /// Reports how an admitted call ended.
    ///
    /// # Errors
    /// [`Contended`]: the outcome is lost.
    pub fn end<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Nanos,
        epoch: u32,
        call: CallResult,
        rng: &Rng,
    ) -> Result<Option<Transition>, Contended> {
        let random = rng.bits();
        let version = self.version(host);
        if self.is_metered() {
            let mut view = self.view(host, settings, version);
            if is_newer(epoch, view.epoch) {
                // Admitted by another who knew more.
                view = self.read(host, settings, version);
            }
            if epoch != view.epoch
                || (view.phase == Phase::Closed && call.outcome == Outcome::Ignore)
            {
                return Ok(None);
            }
            if view.phase == Phase::Closed && settings.is_timed() {
                return self.tally(host, settings, now, view, call, random);
            }
            if self.meters.consecutive != SharedCounter::NONE {
                // The row that a closing breaker begins with: nobody counts in it before it is
                // closed.
                host.store(self.meters.consecutive, 0);
            }
        }
        let (_, change) = self.step(host, settings, version, |state| {
            // A window that begins has no tally yet: whoever counts first begins with what it is by
            // then.
            ((), state.end(settings, now, epoch, call, random))
        })?;
        Ok(change)
    }

    /// Reads the record; changes nothing.
    pub fn peek<H: SharedData>(&self, host: &H) -> BreakerState {
        store::read(host, &self.key)
            .map_or_else(BreakerState::default, |bytes| BreakerState::decode(&bytes))
    }

    /// Reads the record again, as the settings allow, at this `version` (read before, or none).
    pub fn refresh<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        version: Option<u64>,
    ) -> BreakerState {
        let version = version.unwrap_or_else(|| self.version(host));
        let state = self.peek(host).bounded(settings);
        self.view.set(Some(BreakerView::of(&state, version)));
        state
    }

    fn version<H: SharedCounters>(&self, host: &H) -> u64 {
        if self.is_metered() {
            host.load(self.meters.version)
        } else {
            0
        }
    }

    fn is_metered(&self) -> bool {
        self.meters != Meters::NONE
    }

    /// What is known, read again if the version has moved.
    fn view<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        version: u64,
    ) -> BreakerView {
        match self.view.get() {
            Some(view) if view.version == version => view,
            _ => self.read(host, settings, version),
        }
    }

    fn read<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        version: u64,
    ) -> BreakerView {
        BreakerView::of(&self.refresh(host, settings, Some(version)), version)
    }

    /// Counts an outcome of a closed breaker in its tally, and judges what is counted there by now.
    fn tally<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Nanos,
        mut view: BreakerView,
        call: CallResult,
        random: u64,
    ) -> Result<Option<Transition>, Contended> {
        let epoch = view.epoch;
        let failed = call.outcome == Outcome::Failure;
        // Before the outcome is counted: it belongs to the new bucket.
        if view.base.is_none() || Ring::is_behind(view.head, settings.bucket_of(now)) {
            view = self.roll(host, settings, now, view)?;
            if (view.phase, view.epoch) != (Phase::Closed, epoch) {
                return Ok(None);
            }
        }
        let slow = settings.is_slow(call);
        host.increment(self.meters.tally, weight(failed, slow));
        let row = self.row(host, settings, failed);
        let tally = host.load(self.meters.tally);
        let recent = match view.base.and_then(|base| between(base, tally)) {
            Some(recent) => recent,
            None => {
                view = self.roll(host, settings, now, view)?;
                // All that is known, and the row is known as ever.
                Counts {
                    calls: 1,
                    failures: failed.into(),
                    slow: slow.into(),
                }
            }
        };
        if let Some(cause) = settings.trips(view.sum.plus(recent), row) {
            let asked = call.retry_after.filter(|_| failed);
            let (_, change) = self.step(host, settings, view.version, |state| {
                ((), state.trip(settings, now, epoch, cause, asked, random))
            })?;
            return Ok(change);
        }
        if recent.calls >= FOLD {
            self.roll(host, settings, now, view)?;
        }
        Ok(None)
    }

    /// Counts the failures in a row.
    fn row<H: SharedCounters>(&self, host: &H, settings: &BreakerSettings, failed: bool) -> u32 {
        if settings.config().consecutive_failures == 0 {
            return 0;
        }
        if failed {
            host.increment(self.meters.consecutive, 1);
            return u32::try_from(host.load(self.meters.consecutive)).unwrap_or(0);
        }
        if host.load(self.meters.consecutive) != 0 {
            host.store(self.meters.consecutive, 0);
        }
        0
    }

    /// Takes the tally into the record, and moves that on to the bucket of `now`.
    fn roll<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Nanos,
        view: BreakerView,
    ) -> Result<BreakerView, Contended> {
        self.step(host, settings, view.version, |state| {
            // Read after the record, whose own reading is then never the newer one.
            state.roll(settings, now, view.epoch, host.load(self.meters.tally));
            ((), None)
        })?;
        Ok(self.view.get().unwrap_or(view))
    }

    fn step<H: SharedData + SharedCounters, A>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        version: u64,
        mut step: impl FnMut(&mut BreakerState) -> (A, Option<Transition>),
    ) -> Result<(A, Option<Transition>), Contended> {
        let (answer, change, state) = store::update(host, &self.key, |bytes| {
            let before = BreakerState::decode(bytes).bounded(settings);
            let mut after = before;
            let (answer, change) = step(&mut after);
            if after == before {
                return Step::Keep((answer, change, after));
            }
            after.encode(bytes);
            Step::Write((answer, change, after))
        })?;
        if self.is_metered() {
            self.view.set(Some(BreakerView::of(&state, version)));
            if change.is_some() {
                host.increment(self.meters.version, 1);
            }
        }
        Ok((answer, change))
    }
}

/// Epochs count up, and may run over.
fn is_newer(epoch: u32, than: u32) -> bool {
    (1..=u32::MAX / 2).contains(&epoch.wrapping_sub(than))
}
