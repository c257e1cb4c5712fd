//! The reasons of refusals, and what each is in HTTP, gRPC and `Proxy-Status`.

/// Why a request was refused, or an answer replaced. The words appear in metrics, headers, bodies
/// and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A rate limit's bucket is empty.
    RateLimited,
    /// A circuit breaker is open.
    CircuitOpen,
    /// No endpoint may be used.
    NoEndpoint,
    /// A concurrency limit is reached.
    Overload,
    /// The time that the request may take is over, or too short for an answer.
    Deadline,
    /// The route's switch is off.
    SwitchedOff,
    /// The upstream answered with a failure, or not at all.
    UpstreamError,
    /// The upstream did not answer in time.
    Timeout,
}

impl Reason {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::CircuitOpen => "circuit_open",
            Self::NoEndpoint => "no_endpoint",
            Self::Overload => "overload",
            Self::Deadline => "deadline",
            Self::SwitchedOff => "switched_off",
            Self::UpstreamError => "upstream_error",
            Self::Timeout => "timeout",
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::RateLimited => 429,
            Self::CircuitOpen
            | Self::NoEndpoint
            | Self::Overload
            | Self::SwitchedOff
            | Self::UpstreamError => 503,
            Self::Deadline | Self::Timeout => 504,
        }
    }

    /// The gRPC status of a refusal: RESOURCE_EXHAUSTED, UNAVAILABLE or DEADLINE_EXCEEDED.
    #[must_use]
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::RateLimited => 8,
            Self::CircuitOpen
            | Self::NoEndpoint
            | Self::Overload
            | Self::SwitchedOff
            | Self::UpstreamError => 14,
            Self::Deadline | Self::Timeout => 4,
        }
    }

    /// The error type of RFC 9209, 2.3, that a `Proxy-Status` header names.
    #[must_use]
    pub const fn proxy_error(self) -> &'static str {
        match self {
            Self::RateLimited => "http_request_denied",
            Self::CircuitOpen | Self::NoEndpoint | Self::SwitchedOff => "destination_unavailable",
            Self::Overload => "connection_limit_reached",
            Self::UpstreamError => "http_response_incomplete",
            Self::Deadline | Self::Timeout => "http_response_timeout",
        }
    }
}
