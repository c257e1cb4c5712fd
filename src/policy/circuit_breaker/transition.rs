//! The phases of a breaker, what moves it between them, and what it answers.

use crate::base::time::Nanos;
use crate::policy::Outcome;

/// The phase of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// All calls pass.
    #[default]
    Closed,
    /// No call passes.
    Open,
    /// A few trial calls pass.
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
pub enum TripReason {
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

impl TripReason {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::FailureRate,
        Self::SlowCallRate,
        Self::ConsecutiveFailures,
        Self::OpenTimeOver,
        Self::TrialPassed,
        Self::TrialTimedOut,
    ];

    /// Its value as a metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::SlowCallRate => "slow_call_rate",
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::OpenTimeOver => "open_time_over",
            Self::TrialPassed => "trial_passed",
            Self::TrialTimedOut => "trial_timed_out",
        }
    }

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
    pub reason: TripReason,
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
        /// Whether it is a trial call: the breaker is Half-Open.
        trial: bool,
    },
    /// It may not.
    Refused {
        /// What is left of the open time.
        wait: Nanos,
    },
}

/// An ended call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallResult {
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub duration: Nanos,
    /// The open time that the upstream asked for (`Retry-After`).
    pub retry_after: Option<Nanos>,
    /// Whether it was reported before that its answer had begun well.
    pub begun: bool,
}

impl CallResult {
    /// A call that ended without a verdict.
    pub const IGNORED: Self = Self {
        outcome: Outcome::Ignore,
        duration: Nanos::ZERO,
        retry_after: None,
        begun: false,
    };
}
