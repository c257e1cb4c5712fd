//! The states of an endpoint, the reasons for them, and the result of one check.

use crate::policy::health_check::config::HealthCheck;

/// The state of an endpoint or of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum EndpointHealth {
    /// There is no result yet, or no recent one. An endpoint in this state is used.
    #[default]
    Unchecked = 0,
    /// Healthy.
    Up = 1,
    /// Not healthy.
    Down = 2,
    /// It runs, but is out of service.
    OutOfService = 3,
    /// It answered, and its report is UNKNOWN or too old. An endpoint in this state is not used.
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

/// Why an endpoint is in its state. The numbers are the values of a metric, and never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckReason {
    /// There is no result, or no recent one.
    #[default]
    Unchecked = 0,
    /// Its check passed.
    Passed = 1,
    /// It cannot be reached, or closes the connection.
    Unreachable = 2,
    /// It does not answer in time.
    Timeout = 3,
    /// It answers with another status than expected.
    HttpStatus = 4,
    /// The gRPC call fails.
    GrpcStatus = 5,
    /// It reports that it is not UP.
    Report = 6,
    /// A critical component is not UP.
    Component = 7,
    /// Its report is too old.
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

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The state of the endpoint.
    pub status: EndpointHealth,
    /// The reason for it.
    pub reason: CheckReason,
    /// As [`HealthRecord::detail`].
    pub detail: u16,
    /// The state of each component, in the configuration's order; empty if the answer has none.
    pub components: Vec<Option<EndpointHealth>>,
}

impl Sample {
    /// A result without components.
    #[must_use]
    pub const fn new(status: EndpointHealth, reason: CheckReason, detail: u16) -> Self {
        Self {
            status,
            reason,
            detail,
            components: Vec::new(),
        }
    }

    /// A passed check.
    pub const GOOD: Self = Self::new(EndpointHealth::Up, CheckReason::Passed, 0);
}
