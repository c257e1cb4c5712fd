//! The breaker as a pure machine over a small record.
//!
//! **When does it trip?** When a window holds at least `minimum_calls` and the share of failures (or of slow calls) has reached its threshold,
//! or after `consecutive_failures` in a row. **First start:** Closed and empty; nothing trips below `minimum_calls`. **Recovery:** after
//! the open time the next request finds it Half-Open; `half_open_calls` are let through, and once as many have ended the same
//! thresholds over them close it (all is forgotten) or open it again, longer by `backoff_multiplier`. Permits of calls that end
//! without a verdict (cancelled, answered by us) are given back. A round that is not decided within `half_open_max_wait` opens again:
//! it is never stuck.
//!
//! **Stragglers:** each change of state begins a new epoch, and the outcome of a call admitted in an older one is ignored. (Bug
//! avoided: a slow failure from before the outage's end would open a breaker that has just closed.)
//!
//! **Clock:** a step back by more than a second moves the record's times back with it. Less is no step: workers read the clock at the
//! start of a callback, and may come to write in another order.
//!
//! States and thresholds are those of resilience4j's CircuitBreaker and Hystrix; the window is Hystrix's ring of buckets.

use crate::base::time::Nanos;
use crate::config::{self, Percent};
use crate::policy::Outcome;

/// Buckets of the window's ring: the window is up to a tenth shorter than asked for.
pub const BUCKETS: usize = 10;

/// How far a record may be ahead of a worker's reading of the clock.
const CLOCK_SLACK: Nanos = Nanos::from_secs(1);

/// The breaker's parameters, ready for use.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    config: config::CircuitBreaker,
    bucket: Nanos,
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// All calls pass.
    #[default]
    Closed,
    /// None passes.
    Open,
    /// A few pass, to try.
    HalfOpen,
}

impl Phase {
    /// Value of the state gauge.
    #[must_use]
    pub const fn gauge(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open => 1,
            Self::HalfOpen => 2,
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why the state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Too many failures in the window.
    FailureRate,
    /// Too many slow calls in the window.
    SlowCallRate,
    /// Too many failures in a row.
    ConsecutiveFailures,
    /// The open time is over.
    OpenTimeOver,
    /// The trial calls went well.
    TrialPassed,
    /// The trial calls did not end in time.
    TrialTimedOut,
}

impl Cause {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::FailureRate => "failure rate",
            Self::SlowCallRate => "slow call rate",
            Self::ConsecutiveFailures => "consecutive failures",
            Self::OpenTimeOver => "open time over",
            Self::TrialPassed => "trial calls passed",
            Self::TrialTimedOut => "trial calls did not end in time",
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state left.
    pub from: Phase,
    /// The state entered.
    pub to: Phase,
    /// Why.
    pub cause: Cause,
    /// How long an opened breaker stays open.
    pub open_for: Nanos,
}

/// The answer to a call that asks for admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may pass, and must report its end with this epoch.
    Admitted {
        /// The epoch.
        epoch: u32,
    },
    /// It may not.
    Refused {
        /// What is left of the open time.
        wait: Nanos,
    },
}

/// An ended call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub duration: Nanos,
    /// The open time that the upstream asked for (`Retry-After`).
    pub retry_after: Option<Nanos>,
}

impl Call {
    /// A call that ended without a verdict.
    pub const IGNORED: Self = Self { outcome: Outcome::Ignore, duration: Nanos::ZERO, retry_after: None };
}

/// Calls of a bucket, or of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that ended with a verdict.
    pub calls: u32,
    /// Those that failed.
    pub failures: u32,
    /// Those that were slow, failed or not.
    pub slow: u32,
}

/// A breaker's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Where it stands.
    pub phase: Phase,
    /// Counts changes of state.
    pub epoch: u32,
    /// When the phase began.
    pub since: Nanos,
    /// Open: when it may be tried again. Half-Open: when the round ends undecided.
    pub until: Nanos,
    /// Half-open rounds that failed in a row.
    pub rounds: u32,
    /// Half-Open: permits granted and not given back.
    pub permits: u32,
    /// Failures in a row.
    pub consecutive: u32,
    /// Half-Open: the calls of the round.
    pub trial: Counts,
    /// Number of the newest bucket: its start divided by a bucket's length.
    head: u64,
    /// The ring; bucket number n is at n modulo its length.
    ring: [Counts; BUCKETS],
}

impl Settings {
    /// Prepares a breaker's configuration.
    #[must_use]
    pub fn new(config: config::CircuitBreaker) -> Self {
        let bucket = Nanos((config.window.0 / 10).max(1));
        Self { config, bucket }
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &config::CircuitBreaker {
        &self.config
    }

    fn tripped(&self, counts: Counts, minimum: u32, consecutive: u32) -> Option<Cause> {
        if self.config.consecutive_failures > 0 && consecutive >= self.config.consecutive_failures {
            return Some(Cause::ConsecutiveFailures);
        }
        if counts.calls == 0 || counts.calls < minimum {
            return None;
        }
        let reached = |part: u32, threshold: Percent| {
            let (part, whole) =
                (u64::from(part).saturating_mul(10_000), u64::from(counts.calls).saturating_mul(threshold.0.into()));
            part > whole || (part == whole && !self.config.open_above)
        };
        if reached(counts.failures, self.config.failure_rate_threshold) {
            return Some(Cause::FailureRate);
        }
        reached(counts.slow, self.config.slow_call_rate_threshold).then_some(Cause::SlowCallRate)
    }

    fn longest_plain_open_time(&self) -> Nanos {
        self.config.max_open_duration.max(self.config.open_duration)
    }

    /// With all its jitter.
    fn longest_open_time(&self) -> Nanos {
        let plain = self.longest_plain_open_time();
        let spread = self.spread(plain);
        plain.plus(Nanos(spread.saturating_sub(spread / 2)))
    }

    /// The jitter of an open time: from its least to its most.
    fn spread(&self, time: Nanos) -> u64 {
        u64::try_from(u128::from(time.0).saturating_mul(self.config.jitter.0.into()) / 10_000).unwrap_or(0)
    }

    /// The open time of the opening after `rounds` failed rounds.
    fn open_time(&self, rounds: u32, asked: Option<Nanos>, random: u64) -> Nanos {
        let config = &self.config;
        let longest = self.longest_plain_open_time();
        if let Some(asked) = asked.filter(|_| config.honour_retry_after) {
            return asked.clamp(Nanos::from_millis(100), longest);
        }
        let mut time = config.open_duration;
        for _ in 0..rounds {
            if time >= longest || config.backoff_multiplier_centi <= 100 {
                break;
            }
            let grown = u128::from(time.0).saturating_mul(config.backoff_multiplier_centi.into()) / 100;
            time = Nanos(u64::try_from(grown).unwrap_or(u64::MAX)).min(longest);
        }
        // Half of the jitter below, half above: the mean stays what was asked for.
        let spread = self.spread(time);
        let drawn =
            u64::try_from(u128::from(random).saturating_mul(u128::from(spread).saturating_add(1)) >> 64).unwrap_or(0);
        Nanos(time.0.saturating_sub(spread / 2).saturating_add(drawn))
    }
}

impl State {
    /// The state with no end that these settings could not have set. (Bugs avoided: a reload that cuts an open time of a day would not
    /// count until the next day, and a broken record could keep a breaker open for ever.)
    #[must_use]
    pub fn bounded(self, settings: &Settings) -> Self {
        let longest = match self.phase {
            Phase::Closed => return self,
            Phase::Open => settings.longest_open_time(),
            Phase::HalfOpen => settings.config.half_open_max_wait,
        };
        Self { until: self.until.min(self.since.plus(longest)), ..self }
    }

    /// Asks for admission at `now`.
    pub fn acquire(&mut self, settings: &Settings, now: Nanos) -> (Admission, Option<Transition>) {
        self.follow_clock(now);
        let mut change = None;
        match self.phase {
            Phase::Closed => return (Admission::Admitted { epoch: self.epoch }, None),
            Phase::Open if now < self.until => return (Admission::Refused { wait: self.until.since(now) }, None),
            Phase::Open => {
                self.enter(Phase::HalfOpen, now, settings.config.half_open_max_wait);
                change = Some(Transition {
                    from: Phase::Open,
                    to: Phase::HalfOpen,
                    cause: Cause::OpenTimeOver,
                    open_for: Nanos::ZERO,
                });
            }
            Phase::HalfOpen if now >= self.until => {
                // No jitter here: the random number belongs to outcomes, and a lost round is rare.
                let change = self.open(settings, now, Cause::TrialTimedOut, None, u64::MAX / 2);
                return (Admission::Refused { wait: self.until.since(now) }, Some(change));
            }
            Phase::HalfOpen => {}
        }
        if self.permits >= settings.config.half_open_calls {
            return (Admission::Refused { wait: Nanos::ZERO }, change);
        }
        self.permits = self.permits.saturating_add(1);
        (Admission::Admitted { epoch: self.epoch }, change)
    }

    /// Takes note of the end of a call that was admitted in `epoch`.
    pub fn end(&mut self, settings: &Settings, now: Nanos, epoch: u32, call: Call, random: u64) -> Option<Transition> {
        if epoch != self.epoch {
            return None;
        }
        self.follow_clock(now);
        let half_open = match self.phase {
            // Nothing was admitted in this epoch.
            Phase::Open => return None,
            Phase::Closed => false,
            Phase::HalfOpen => true,
        };
        let failed = match call.outcome {
            Outcome::Ignore => {
                self.permits = self.permits.saturating_sub(u32::from(half_open));
                return None;
            }
            Outcome::Success => false,
            Outcome::Failure => true,
        };
        self.consecutive = if failed { self.consecutive.saturating_add(1) } else { 0 };
        let slow = call.duration >= settings.config.slow_call_duration;
        let (cause, minimum) = if half_open {
            self.trial.count(failed, slow);
            let minimum = settings.config.half_open_calls;
            (settings.tripped(self.trial, minimum, self.consecutive), minimum)
        } else {
            self.advance(now, settings.bucket);
            if let Some(bucket) = self.ring.get_mut(slot(self.head)) {
                bucket.count(failed, slow);
            }
            (settings.tripped(self.window(), settings.config.minimum_calls, self.consecutive), 0)
        };
        if let Some(cause) = cause {
            return Some(self.open(settings, now, cause, call.retry_after.filter(|_| failed), random));
        }
        if half_open && self.trial.calls >= minimum {
            self.rounds = 0;
            self.enter(Phase::Closed, now, Nanos::ZERO);
            return Some(Transition {
                from: Phase::HalfOpen,
                to: Phase::Closed,
                cause: Cause::TrialPassed,
                open_for: Nanos::ZERO,
            });
        }
        None
    }

    /// What the window holds; it ends with the newest bucket.
    #[must_use]
    pub fn window(&self) -> Counts {
        self.ring.iter().fold(Counts::default(), |sum, b| Counts {
            calls: sum.calls.saturating_add(b.calls),
            failures: sum.failures.saturating_add(b.failures),
            slow: sum.slow.saturating_add(b.slow),
        })
    }

    /// Where it stands at `now`, for those who only look: an Open breaker whose time is over is as good as Half-Open.
    #[must_use]
    pub fn phase_at(&self, now: Nanos) -> Phase {
        match self.phase {
            Phase::Open if now >= self.until => Phase::HalfOpen,
            phase => phase,
        }
    }

    fn open(&mut self, settings: &Settings, now: Nanos, cause: Cause, asked: Option<Nanos>, random: u64) -> Transition {
        let from = self.phase;
        let open_for = settings.open_time(self.rounds, asked, random);
        // Counted after use: the first opening has the plain open time.
        self.rounds = self.rounds.saturating_add(1);
        self.enter(Phase::Open, now, open_for);
        Transition { from, to: Phase::Open, cause, open_for }
    }

    fn enter(&mut self, phase: Phase, now: Nanos, lasting: Nanos) {
        *self = Self {
            phase,
            epoch: self.epoch.wrapping_add(1),
            since: now,
            until: now.plus(lasting),
            rounds: self.rounds,
            ..Self::default()
        };
    }

    /// Whether the clock has stepped back since the record was written.
    #[must_use]
    pub fn is_from_the_future(&self, now: Nanos) -> bool {
        now.plus(CLOCK_SLACK) < self.since
    }

    /// The record's times follow a clock that has stepped back; lengths stay.
    fn follow_clock(&mut self, now: Nanos) {
        if self.is_from_the_future(now) {
            self.until = now.plus(self.until.since(self.since));
            self.since = now;
        }
    }

    /// Moves the ring on to the bucket of `now` and empties the buckets passed over.
    fn advance(&mut self, now: Nanos, bucket: Nanos) {
        let target = now.0.checked_div(bucket.0).unwrap_or(0);
        let length = BUCKETS as u64;
        // Far ahead, or so far back that the clock must have stepped: nothing of the window is left.
        if target.saturating_sub(self.head) >= length || self.head.saturating_sub(target) >= length {
            self.ring = Default::default();
            self.head = target;
        }
        while self.head < target {
            self.head = self.head.saturating_add(1);
            if let Some(bucket) = self.ring.get_mut(slot(self.head)) {
                *bucket = Counts::default();
            }
        }
    }
}

impl Counts {
    fn count(&mut self, failed: bool, slow: bool) {
        self.calls = self.calls.saturating_add(1);
        self.failures = self.failures.saturating_add(failed.into());
        self.slow = self.slow.saturating_add(slow.into());
    }
}

fn slot(number: u64) -> usize {
    number.checked_rem(BUCKETS as u64).and_then(|rest| usize::try_from(rest).ok()).unwrap_or(0)
}

/// The record: version, phase, two bytes of zero, then the fields as little-endian numbers.
mod codec {
    use super::{Counts, Phase, State};
    use crate::base::time::Nanos;

    pub const VERSION: u8 = 1;
    pub const LENGTH: usize = 4 + 4 + 8 + 8 + 4 + 4 + 4 + 12 + 8 + 12 * super::BUCKETS;

    struct Reader<'a>(&'a [u8]);

    impl Reader<'_> {
        fn u32(&mut self) -> u32 {
            self.0.split_first_chunk().map_or(0, |(n, rest)| {
                self.0 = rest;
                u32::from_le_bytes(*n)
            })
        }

        fn u64(&mut self) -> u64 {
            self.0.split_first_chunk().map_or(0, |(n, rest)| {
                self.0 = rest;
                u64::from_le_bytes(*n)
            })
        }

        fn counts(&mut self) -> Counts {
            Counts { calls: self.u32(), failures: self.u32(), slow: self.u32() }
        }
    }

    impl State {
        /// Reads a record; anything but a whole one of this version is a fresh breaker.
        #[must_use]
        pub fn decode(bytes: &[u8]) -> Self {
            let phase = match bytes {
                [VERSION, 0, 0, 0, ..] => Phase::Closed,
                [VERSION, 1, 0, 0, ..] => Phase::Open,
                [VERSION, 2, 0, 0, ..] => Phase::HalfOpen,
                _ => return Self::default(),
            };
            if bytes.len() != LENGTH {
                return Self::default();
            }
            let mut reader = Reader(bytes.get(4..).unwrap_or(&[]));
            let mut state = Self {
                phase,
                epoch: reader.u32(),
                since: Nanos(reader.u64()),
                until: Nanos(reader.u64()),
                rounds: reader.u32(),
                permits: reader.u32(),
                consecutive: reader.u32(),
                trial: reader.counts(),
                head: reader.u64(),
                ring: Default::default(),
            };
            for bucket in &mut state.ring {
                *bucket = reader.counts();
            }
            state
        }

        /// Writes the record.
        #[allow(clippy::cast_possible_truncation, reason = "the gauge of a phase is 0 to 2")]
        pub fn encode(&self, bytes: &mut Vec<u8>) {
            bytes.clear();
            bytes.reserve(LENGTH);
            bytes.extend_from_slice(&[VERSION, self.phase.gauge() as u8, 0, 0]);
            bytes.extend_from_slice(&self.epoch.to_le_bytes());
            bytes.extend_from_slice(&self.since.0.to_le_bytes());
            bytes.extend_from_slice(&self.until.0.to_le_bytes());
            for n in
                [self.rounds, self.permits, self.consecutive, self.trial.calls, self.trial.failures, self.trial.slow]
            {
                bytes.extend_from_slice(&n.to_le_bytes());
            }
            bytes.extend_from_slice(&self.head.to_le_bytes());
            for n in self.ring.iter().flat_map(|b| [b.calls, b.failures, b.slow]) {
                bytes.extend_from_slice(&n.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests;
