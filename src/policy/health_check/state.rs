//! What an endpoint is, from the answers to its checks: the record that all workers read, and the
//! rows of answers that its checker counts. Pure.

use crate::config::HealthCheck;

/// A state, of an endpoint or of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum EndpointHealth {
    /// Nobody has asked yet, or could ask lately. An endpoint is used.
    #[default]
    Unchecked = 0,
    /// Well.
    Up = 1,
    /// Not well.
    Down = 2,
    /// Alive, but not to be used.
    OutOfService = 3,
    /// It was asked, and what it says of itself is UNKNOWN or too old. An endpoint is not used.
    Inconclusive = 4,
}

impl EndpointHealth {
    const ALL: [Self; 5] = [
        Self::Unchecked,
        Self::Up,
        Self::Down,
        Self::OutOfService,
        Self::Inconclusive,
    ];

    pub(super) fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|status| *status as u8 == byte)
    }

    /// Whether an endpoint in this state gets requests.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Unchecked | Self::Up)
    }

    /// Whether it is known not to work.
    #[must_use]
    pub const fn is_down(self) -> bool {
        matches!(self, Self::Down | Self::OutOfService)
    }

    /// The word in health documents and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::Unchecked | Self::Inconclusive => "UNKNOWN",
        }
    }
}

/// Why an endpoint is in its state. The numbers are those of the metric, and never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckReason {
    /// Nobody has asked, or could ask lately.
    #[default]
    Unchecked = 0,
    /// Its answers are good.
    Passed = 1,
    /// It cannot be reached, or hangs up.
    Unreachable = 2,
    /// It does not answer in time.
    Timeout = 3,
    /// It answers with another status than expected.
    HttpStatus = 4,
    /// The gRPC call fails.
    GrpcStatus = 5,
    /// It answers, and says that it is not to be used.
    Report = 6,
    /// A critical component is not UP.
    Component = 7,
    /// What it says is too old.
    Stale = 8,
}

impl CheckReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unchecked,
        Self::Passed,
        Self::Unreachable,
        Self::Timeout,
        Self::HttpStatus,
        Self::GrpcStatus,
        Self::Report,
        Self::Component,
        Self::Stale,
    ];

    /// The word in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unchecked => "not_asked",
            Self::Passed => "ok",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::HttpStatus => "http_status",
            Self::GrpcStatus => "grpc_status",
            Self::Report => "report",
            Self::Component => "component",
            Self::Stale => "stale",
        }
    }

    /// In words, for people. `detail` as in [`HealthRecord::detail`].
    #[must_use]
    pub fn text(self, detail: u16, check: &HealthCheck) -> String {
        let number = || crate::base::text::number(detail.into());
        match self {
            Self::Unchecked => "not asked".to_owned(),
            Self::Passed => "answers well".to_owned(),
            Self::Unreachable => "cannot be reached".to_owned(),
            Self::Timeout => "no answer in time".to_owned(),
            Self::HttpStatus => ["answers with status ", &number()].concat(),
            Self::GrpcStatus => ["the call fails with gRPC status ", &number()].concat(),
            Self::Report => "says so".to_owned(),
            Self::Component => match check.components.get(usize::from(detail)) {
                Some(component) => ["its ", &component.name, " is not UP"].concat(),
                None => "a component is not UP that the configuration does not name".to_owned(),
            },
            Self::Stale => "what it says is too old".to_owned(),
        }
    }
}

/// What one answer says, or its absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of the endpoint.
    pub status: EndpointHealth,
    /// Why.
    pub reason: CheckReason,
    /// As [`HealthRecord::detail`].
    pub detail: u16,
    /// Of each component of the configuration, in its order; empty if the answer says nothing of
    /// them.
    pub components: Vec<Option<EndpointHealth>>,
}

impl Sample {
    /// An answer without a report.
    #[must_use]
    pub const fn new(status: EndpointHealth, reason: CheckReason, detail: u16) -> Self {
        Self {
            status,
            reason,
            detail,
            components: Vec::new(),
        }
    }

    /// A good answer.
    pub const GOOD: Self = Self::new(EndpointHealth::Up, CheckReason::Passed, 0);
}
