//! Circuit breakers: Closed, Open, Half-Open, shared by all workers.
//!
//! [`BreakerState`] is the pure state machine, [`window`] holds the outcomes that it judges by,
//! [`BreakerSettings`] its thresholds and times. [`CircuitBreaker`] keeps the record in shared
//! data, and a view of it in the VM.
//!
//! **What a request costs.** After a worker has written a change of phase it counts it in a
//! counter, the *version*; the others read the record again when the version has moved. So
//! admission by a Closed breaker, and refusal by an Open one, cost one reading of a counter. An
//! outcome of a Closed breaker with a time window costs that, an addition to the tally and a
//! reading of it; each worker reads the record once per bucket, and one of them writes it once per
//! bucket. Half-Open, where calls are few, and count windows, whose order matters, cost a
//! compare-and-swap for each call. On a host without counters an admission costs a read and an
//! outcome a compare-and-swap; the decisions are the same.
//!
//! **How late may it open?** A worker counts an outcome by one atomic addition, then reads the
//! tally and judges all outcomes in it. So the outcome that reaches a threshold opens the breaker
//! in its own callback; outcomes that other workers count in the microseconds between addition and
//! reading are judged with it. The other workers see the change when they read the version again,
//! at most [`VERSION_HOLDS`] later, and until then admit what comes. Good outcomes may wait for
//! others: [`batch`].
//!
//! **What if?** A compare-and-swap that loses too often: the outcome is dropped (and counted in
//! `haven_store_contention_total`), since a breaker judges by rates and one sample more or less
//! does not matter; a request is then admitted as in Closed, since a breaker that cannot be read is
//! no reason to refuse. A half-open permit that is lost this way, or with its VM, is missing until
//! `half_open_max_wait` ends the round. A VM that dies between a change and its version: the others
//! see the change when they read the record on their next tick. A tally that is set back: its
//! outcomes since the bucket began are forgotten. The outcome of a call that was admitted in an
//! older phase is not counted, unless its worker was stopped in the middle of counting it for
//! longer than the open time.

mod batch;
pub mod config;
mod settings;
mod state;
mod transition;
pub mod window;

use crate::base::hash::of_names;
use crate::base::rng::Rng;
use crate::base::time::{Moment, Nanos};
use crate::host::{SharedCounter, SharedCounters, SharedData};
use crate::policy::Outcome;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};
use batch::Batch;
pub use settings::{BreakerSettings, bucket};
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
    /// The version, and when it was read.
    looked: Cell<(Moment, u64)>,
    /// Good outcomes that wait.
    good: Cell<Batch>,
}

/// How long a worker believes the version that it has read: so much later it may see that another
/// one has opened or closed the breaker.
pub const VERSION_HOLDS: Nanos = Nanos::from_millis(1);

/// The shared counters that make a breaker's decisions cheap. All workers must use the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meters {
    /// A counter of changes of phase; breakers may share one.
    pub version: SharedCounter,
    /// The gauge with the tally (see [`window`]); only a time window needs it.
    pub tally: SharedCounter,
    /// The gauge of failures in a streak; only a time window with `consecutive_failures` needs it.
    pub consecutive: SharedCounter,
}

impl Meters {
    /// A host without counters.
    pub const NONE: Self = Self {
        version: SharedCounter::NONE,
        tally: SharedCounter::NONE,
        consecutive: SharedCounter::NONE,
    };
}

/// A VM's copy of the record.
#[derive(Clone, Copy, Debug)]
struct BreakerView {
    /// The version before the record was read: it moves with any later change.
    version: u64,
    phase: Phase,
    epoch: u32,
    since: Moment,
    until: Moment,
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

    /// The decision on a request, if it needs no permit.
    fn answer(&self, now: Moment) -> Option<Admission> {
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
            looked: Cell::default(),
            good: Cell::default(),
        }
    }

    /// The same with counters, if the host has all that are needed.
    #[must_use]
    pub fn metered(self, meters: Meters, settings: &BreakerSettings) -> Self {
        let counts_streak = settings.config().consecutive_failures > 0;
        let missing = meters.version == SharedCounter::NONE
            || (settings.is_timed()
                && (meters.tally == SharedCounter::NONE
                    || (counts_streak && meters.consecutive == SharedCounter::NONE)));
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
        now: Moment,
    ) -> Result<(Admission, Option<Transition>), Contended> {
        let version = self.version(host, now);
        if self.is_metered()
            && let Some(answer) = self.view(host, settings, version).answer(now)
        {
            return Ok((answer, None));
        }
        self.step(host, settings, version, |state| {
            state.acquire(settings, now)
        })
    }

    /// What is known of admission without asking for it; `None`: only who asks finds out. It
    /// changes nothing.
    pub fn look<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Moment,
    ) -> Option<Admission> {
        let version = self.version(host, now);
        let view = if self.is_metered() {
            self.view(host, settings, version)
        } else {
            self.read(host, settings, version)
        };
        view.answer(now)
    }

    /// Reports that the answer to a trial has begun well, and goes on.
    ///
    /// # Errors
    /// [`Contended`]: the report is lost; the trial counts at its end.
    pub fn begin<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Moment,
        epoch: u32,
    ) -> Result<(), Contended> {
        let version = self.version(host, now);
        let begin = |state: &mut BreakerState| (state.begin(settings, now, epoch), None);
        self.step(host, settings, version, begin).map(|_| ())
    }

    /// Reports how an admitted call ended.
    ///
    /// # Errors
    /// [`Contended`]: the outcome is lost.
    pub fn end<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Moment,
        epoch: u32,
        call: CallResult,
        rng: &Rng,
    ) -> Result<Option<Transition>, Contended> {
        if self.keep(settings, now, epoch, call) {
            return Ok(None);
        }
        let random = rng.bits();
        let version = self.version(host, now);
        if self.is_metered() {
            let mut view = self.view(host, settings, version);
            if is_newer(epoch, view.epoch) {
                // Another worker admitted it and knew a newer record.
                view = self.read(host, settings, version);
            }
            if BreakerState::epoch_of(view.phase, view.epoch, epoch, call) != view.epoch
                || (view.phase == Phase::Closed && call.outcome == Outcome::Ignore)
            {
                return Ok(None);
            }
            if view.phase == Phase::Closed && settings.is_timed() {
                return self.tally(host, settings, now, view, call, random);
            }
            if self.meters.consecutive != SharedCounter::NONE {
                // A breaker that closes begins without failures in a row: no worker counts in this
                // gauge before it is closed.
                host.clear(self.meters.consecutive);
            }
        }
        let (_, change) = self.step(host, settings, version, |state| {
            // A new window has no tally yet: the worker that counts first takes the value at that
            // moment.
            ((), state.end(settings, now, epoch, call, random))
        })?;
        Ok(change)
    }

    /// Tallies the good outcomes that this worker has kept.
    pub fn flush<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Moment,
    ) {
        if self.good.get().is_waiting() {
            let view = self.view(host, settings, self.version(host, now));
            if view.phase == Phase::Closed {
                host.increment(self.meters.tally, self.kept(view.epoch));
            }
        }
    }

    /// Reads the record; changes nothing.
    pub fn peek<H: SharedData>(&self, host: &H) -> BreakerState {
        store::read(host, &self.key)
            .map_or_else(BreakerState::default, |bytes| BreakerState::decode(&bytes))
    }

    /// Reads the record again, bounded by the settings. `version`: as read before the call; `None`
    /// reads it here.
    pub fn refresh<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        version: Option<u64>,
    ) -> BreakerState {
        let version = version.unwrap_or_else(|| self.read_version(host));
        let state = self.peek(host).bounded(settings);
        self.looked.set((self.looked.get().0, version));
        self.view.set(Some(BreakerView::of(&state, version)));
        state
    }

    /// The version, as it was read at most [`VERSION_HOLDS`] ago.
    fn version<H: SharedCounters>(&self, host: &H, now: Moment) -> u64 {
        let (at, version) = self.looked.get();
        if at.is_within(VERSION_HOLDS, now) {
            return version;
        }
        let version = self.read_version(host);
        self.looked.set((now, version));
        version
    }

    fn read_version<H: SharedCounters>(&self, host: &H) -> u64 {
        if self.is_metered() {
            host.load(self.meters.version)
        } else {
            0
        }
    }

    fn is_metered(&self) -> bool {
        self.meters != Meters::NONE
    }

    /// The view, read again if the version has moved.
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

    /// Counts an outcome of a closed breaker in its tally, and judges the tally.
    fn tally<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Moment,
        mut view: BreakerView,
        call: CallResult,
        random: u64,
    ) -> Result<Option<Transition>, Contended> {
        let epoch = view.epoch;
        let failed = call.outcome == Outcome::Failure;
        let mut kept = self.kept(epoch);
        // Before the outcome is counted, since it belongs to the new bucket.
        if view.base.is_none() || Ring::is_behind(view.head, settings.bucket_of(now)) {
            if kept != 0 {
                host.increment(self.meters.tally, std::mem::take(&mut kept));
            }
            view = self.roll(host, settings, now, view)?;
            if (view.phase, view.epoch) != (Phase::Closed, epoch) {
                return Ok(None);
            }
        }
        let slow = settings.is_slow(call);
        let all = kept.saturating_add(weight(failed, slow));
        host.increment(self.meters.tally, all);
        let streak = self.streak(host, settings, failed);
        let tally = host.load(self.meters.tally);
        let recent = match view.base.and_then(|base| between(base, tally)) {
            Some(recent) => recent,
            None => {
                view = self.roll(host, settings, now, view)?;
                // Only this outcome is known; the failures in a streak are known as always.
                Counts {
                    calls: 1,
                    failures: failed.into(),
                    slow: slow.into(),
                }
            }
        };
        if let Some(reason) = settings.trips(view.sum.plus(recent), streak) {
            let retry_after = call.retry_after.filter(|_| failed);
            let (_, change) = self.step(host, settings, view.version, |state| {
                (
                    (),
                    state.trip(settings, now, epoch, reason, retry_after, random),
                )
            })?;
            return Ok(change);
        }
        if recent.calls >= FOLD {
            self.roll(host, settings, now, view)?;
        }
        Ok(None)
    }

    /// Counts the failures in a row.
    fn streak<H: SharedCounters>(&self, host: &H, settings: &BreakerSettings, failed: bool) -> u32 {
        if settings.config().consecutive_failures == 0 {
            return 0;
        }
        if failed {
            host.increment(self.meters.consecutive, 1);
            return u32::try_from(host.load(self.meters.consecutive)).unwrap_or(0);
        }
        if host.load(self.meters.consecutive) != 0 {
            host.clear(self.meters.consecutive);
        }
        0
    }

    /// Takes the tally into the record, and moves that on to the bucket of `now`.
    fn roll<H: SharedData + SharedCounters>(
        &self,
        host: &H,
        settings: &BreakerSettings,
        now: Moment,
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
