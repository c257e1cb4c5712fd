//! The breaker as a pure state machine over a small record.
//!
//! **When does it trip?** When a window holds at least `minimum_calls` and the share of failures
//! (or of slow calls) has reached its threshold, or after `consecutive_failures` in a row. **First
//! start:** Closed and empty; nothing trips below `minimum_calls`. **Recovery:** after the open
//! time the next request finds it Half-Open; `half_open_calls` are let through, and once as many
//! have ended the same thresholds over them close it (with an empty window) or open it again,
//! longer by `backoff_multiplier`. Calls that end without a verdict (cancelled, answered by haven)
//! give their permits back. A round that is undecided after `half_open_max_wait` opens the breaker
//! again, so that it is never stuck.
//!
//! **Streams:** the verdict on a trial does not wait for the end of a long answer. Once all trials
//! of a round have ended or are being answered well, those that are passes [`LIVES_ON`] later, for
//! the first request that asks. Should one be cut after that, it counts as a failure of the Closed
//! breaker.
//!
//! **Growth:** only failed half-open rounds lengthen the open time. A breaker that closes keeps its
//! grown open time until it has been Closed for a quiet spell: as long as it was open the last
//! time, and at least a time window's length. If it opens within this spell, it takes the grown
//! time again, no longer one; later, the configured one. (Bug avoided: an upstream that recovers
//! for a second at a time would be tried as often as one that fails for the first time.)
//!
//! **Stragglers:** each change of state begins a new epoch, and the outcome of a call admitted in
//! an older one is ignored. (Bug avoided: a slow failure from before the outage's end would open a
//! breaker that has just closed.)
//!
//! **Clock:** when the clock steps back by more than a second, the record's times move back with
//! it. Less is no step: workers read the clock at the start of a callback, and may write in another
//! order.
//!
//! States and thresholds are those of resilience4j's CircuitBreaker and Hystrix; the windows are in
//! [`super::window`].

use super::settings::BreakerSettings;
use super::transition::{Admission, CallResult, Phase, Transition, TripReason};
use super::window::{Counts, Window};
use crate::base::time::{Moment, Nanos};
use crate::policy::Outcome;
use crate::policy::circuit_breaker::config;

/// How long after the last of a round's trials has ended, or begun to be answered well, those that
/// live on are a pass. What fails at once has failed by then.
const LIVES_ON: Nanos = Nanos::from_secs(1);

/// How far a record may be ahead of a worker's reading of the clock.
const CLOCK_SLACK: Nanos = Nanos::from_secs(1);

/// A breaker's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BreakerState {
    /// Where it stands.
    pub phase: Phase,
    /// Counts changes of state.
    pub epoch: u32,
    /// When the phase began.
    pub since: Moment,
    /// Open: when it may be tried again. Half-Open: when the round ends undecided. Closed: when a
    /// grown open time is forgotten.
    pub until: Moment,
    /// The last open time.
    pub last_open: Nanos,
    /// Half-open rounds that failed since the open time was last the configured one.
    pub rounds: u32,
    /// Half-Open: permits granted and not given back.
    pub permits: u32,
    /// Failures in a row, where they are not counted in a gauge.
    pub consecutive: u32,
    /// Half-Open: the calls of the round.
    pub trial: Counts,
    /// Half-Open: those whose answer has begun well, and goes on.
    pub begun: u32,
    /// Half-Open: from when on these are passes; zero: more is to be seen first.
    pub passes_at: Moment,
    /// Closed: the calls that count.
    pub window: Window,
}

impl BreakerState {
    /// The state without times that these settings could not have set. (Bugs avoided: a reload that
    /// cuts an open time of a day would not count until the next day, and a broken record could
    /// keep a breaker open for ever.)
    #[must_use]
    pub fn bounded(self, settings: &BreakerSettings) -> Self {
        let last_open = self.last_open.min(settings.longest_open_time());
        let longest = match self.phase {
            Phase::Closed => settings.quiet_spell(last_open),
            Phase::Open => settings.longest_open_time(),
            Phase::HalfOpen => settings.config().half_open_max_wait,
        };
        let window = match (self.window, settings.config().window) {
            (Window::Time(_), config::WindowConfig::Time(_)) => self.window,
            (Window::Count(fifo), config::WindowConfig::Count(size)) if fifo.size == size => {
                self.window
            }
            // Another kind or size: an empty window.
            _ => settings.empty_window(),
        };
        Self {
            until: self.until.min(self.since.plus(longest)),
            last_open,
            window,
            ..self
        }
    }

    /// Asks for admission at `now`.
    pub fn acquire(
        &mut self,
        settings: &BreakerSettings,
        now: Moment,
    ) -> (Admission, Option<Transition>) {
        self.follow_clock(now);
        let mut change = None;
        match self.phase {
            Phase::Closed => {
                return (
                    Admission::Admitted {
                        epoch: self.epoch,
                        trial: false,
                    },
                    None,
                );
            }
            Phase::Open if now < self.until => {
                return (
                    Admission::Refused {
                        wait: self.until.since(now),
                    },
                    None,
                );
            }
            Phase::Open => {
                self.enter(Phase::HalfOpen, now, settings.config().half_open_max_wait);
                change = Some(Transition {
                    from: Phase::Open,
                    to: Phase::HalfOpen,
                    reason: TripReason::OpenTimeOver,
                    open_for: Nanos::ZERO,
                });
            }
            Phase::HalfOpen if self.passes(settings, now) => {
                let change = self.close(settings, now);
                let epoch = self.epoch;
                let trial = false;
                return (Admission::Admitted { epoch, trial }, Some(change));
            }
            Phase::HalfOpen if now >= self.until => {
                // No jitter here: only outcomes bring a random number, and a lost round is rare.
                let change =
                    self.open(settings, now, TripReason::TrialTimedOut, None, u64::MAX / 2);
                return (
                    Admission::Refused {
                        wait: self.until.since(now),
                    },
                    Some(change),
                );
            }
            Phase::HalfOpen => {}
        }
        if self.permits >= settings.half_open_calls() {
            return (Admission::Refused { wait: Nanos::ZERO }, change);
        }
        self.permits = self.permits.saturating_add(1);
        (
            Admission::Admitted {
                epoch: self.epoch,
                trial: true,
            },
            change,
        )
    }

    /// The answer to a trial of this `epoch` has begun well, and goes on.
    pub fn begin(&mut self, settings: &BreakerSettings, now: Moment, epoch: u32) {
        if (self.phase, self.epoch) == (Phase::HalfOpen, epoch) {
            self.follow_clock(now);
            self.begun = self.begun.saturating_add(1);
            self.look(settings, now);
        }
    }

    /// The epoch in which a call counts that was admitted in `epoch`: a trial that passed while its
    /// answer went on counts on in the Closed breaker, if it fails.
    #[must_use]
    pub fn epoch_of(phase: Phase, current: u32, epoch: u32, call: CallResult) -> u32 {
        let goes_on = call.begun
            && call.outcome == Outcome::Failure
            && phase == Phase::Closed
            && epoch.wrapping_add(1) == current;
        if goes_on { current } else { epoch }
    }

    /// Counts the end of a call that was admitted in `epoch`.
    pub fn end(
        &mut self,
        settings: &BreakerSettings,
        now: Moment,
        epoch: u32,
        call: CallResult,
        random: u64,
    ) -> Option<Transition> {
        if Self::epoch_of(self.phase, self.epoch, epoch, call) != self.epoch {
            return None;
        }
        self.follow_clock(now);
        let half_open = match self.phase {
            // Nothing was admitted in this epoch.
            Phase::Open => return None,
            Phase::Closed => false,
            Phase::HalfOpen => true,
        };
        if half_open && call.begun {
            self.begun = self.begun.saturating_sub(1);
        }
        let failed = match call.outcome {
            Outcome::Ignore => {
                self.permits = self.permits.saturating_sub(u32::from(half_open));
                self.look(settings, now);
                return None;
            }
            Outcome::Success => false,
            Outcome::Failure => true,
        };
        self.consecutive = if failed {
            self.consecutive.saturating_add(1)
        } else {
            0
        };
        let slow = settings.is_slow(call);
        let reason = if half_open {
            self.trial.count(failed, slow);
            settings.tripped(self.trial, settings.half_open_calls(), self.consecutive)
        } else {
            self.window.count(settings.bucket_of(now), failed, slow);
            settings.trips(self.window.sum(), self.consecutive)
        };
        if let Some(reason) = reason {
            return Some(self.open(
                settings,
                now,
                reason,
                call.retry_after.filter(|_| failed),
                random,
            ));
        }
        if half_open && self.trial.calls >= settings.half_open_calls() {
            return Some(self.close(settings, now));
        }
        self.look(settings, now);
        None
    }

    /// Looks whether all trials of the round have ended or are being answered well.
    fn look(&mut self, settings: &BreakerSettings, now: Moment) {
        let known = self.trial.calls.saturating_add(self.begun);
        if self.begun == 0 || known < settings.half_open_calls() {
            self.passes_at = Moment::ZERO;
        } else if self.passes_at == Moment::ZERO {
            // No later than the round's end.
            self.passes_at = now.plus(LIVES_ON).min(self.until);
        }
    }

    /// Whether the round is a pass by the trials that live on.
    fn passes(&self, settings: &BreakerSettings, now: Moment) -> bool {
        let half_open_calls = settings.half_open_calls();
        let calls = self.trial.calls.saturating_add(self.begun);
        let counts = Counts {
            calls,
            ..self.trial
        };
        self.passes_at != Moment::ZERO
            && now >= self.passes_at
            && calls >= half_open_calls
            && settings
                .tripped(counts, half_open_calls, self.consecutive)
                .is_none()
    }

    fn close(&mut self, settings: &BreakerSettings, now: Moment) -> Transition {
        self.enter(Phase::Closed, now, settings.quiet_spell(self.last_open));
        Transition {
            from: Phase::HalfOpen,
            to: Phase::Closed,
            reason: TripReason::TrialPassed,
            open_for: Nanos::ZERO,
        }
    }

    /// Opens it if it is still Closed as in `epoch`: the tally outside of the record holds the
    /// outcome that reached the threshold.
    pub fn trip(
        &mut self,
        settings: &BreakerSettings,
        now: Moment,
        epoch: u32,
        reason: TripReason,
        retry_after: Option<Nanos>,
        random: u64,
    ) -> Option<Transition> {
        if (self.phase, self.epoch) != (Phase::Closed, epoch) {
            return None;
        }
        self.follow_clock(now);
        Some(self.open(settings, now, reason, retry_after, random))
    }

    /// Adds the tally to the ring and advances the ring to the bucket of `now`, if it is still
    /// Closed as in `epoch`.
    pub fn roll(&mut self, settings: &BreakerSettings, now: Moment, epoch: u32, tally: u64) {
        if let (Window::Time(ring), true) = (
            &mut self.window,
            (self.phase, self.epoch) == (Phase::Closed, epoch),
        ) {
            ring.fold(tally);
            ring.advance(settings.bucket_of(now));
        }
    }

    /// The phase at `now`, for readers of the record: an Open breaker whose time is over counts as
    /// Half-Open.
    #[must_use]
    pub fn phase_at(&self, now: Moment) -> Phase {
        match self.phase {
            Phase::Open if now >= self.until => Phase::HalfOpen,
            phase => phase,
        }
    }

    fn open(
        &mut self,
        settings: &BreakerSettings,
        now: Moment,
        reason: TripReason,
        retry_after: Option<Nanos>,
        random: u64,
    ) -> Transition {
        let from = self.phase;
        self.rounds = match from {
            Phase::HalfOpen => self.rounds.saturating_add(1),
            // It was Closed for long enough.
            Phase::Closed if now >= self.until => 0,
            // A short recovery does not count: the open time stays as it was.
            Phase::Closed | Phase::Open => self.rounds,
        };
        let open_for = settings.open_time(self.rounds, retry_after, random);
        self.last_open = open_for;
        self.enter(Phase::Open, now, open_for);
        Transition {
            from,
            to: Phase::Open,
            reason,
            open_for,
        }
    }

    fn enter(&mut self, phase: Phase, now: Moment, lasting: Nanos) {
        *self = Self {
            phase,
            epoch: self.epoch.wrapping_add(1),
            since: now,
            until: now.plus(lasting),
            last_open: self.last_open,
            rounds: self.rounds,
            window: self.window.emptied(),
            ..Self::default()
        };
    }

    /// Whether the clock has stepped back since the record was written.
    #[must_use]
    pub fn is_from_the_future(&self, now: Moment) -> bool {
        is_ahead(self.since, now)
    }

    /// The record's times follow a clock that has stepped back; lengths stay.
    fn follow_clock(&mut self, now: Moment) {
        if self.is_from_the_future(now) {
            self.until = now.plus(self.until.since(self.since));
            if self.passes_at != Moment::ZERO {
                self.passes_at = now.plus(LIVES_ON).min(self.until);
            }
            self.since = now;
        }
    }
}

/// Whether the moment `since` is so far ahead of a reading of the clock that this must have stepped
/// back.
pub(super) fn is_ahead(since: Moment, now: Moment) -> bool {
    now.plus(CLOCK_SLACK) < since
}

mod codec;

#[cfg(test)]
mod tests;
