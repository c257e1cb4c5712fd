//! Time in nanoseconds, with arithmetic that saturates: a clock may step, an addition must not
//! wrap. Three types keep apart what must not be mixed:
//!
//! - [`Nanos`] is a length of time: a timeout, a period, how long an answer took.
//! - [`Moment`] is a point on the host's monotonic clock: what `now`, `since` and `until` hold.
//! - [`UnixTime`] is a point on the wall clock, for what people read: documents and timestamps.

/// A length of time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// The longest time.
    pub const MAX: Self = Self(u64::MAX);

    /// `n` milliseconds.
    #[must_use]
    pub const fn from_millis(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000))
    }

    /// `n` seconds.
    #[must_use]
    pub const fn from_secs(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000_000))
    }

    /// Whole milliseconds, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Whole seconds, rounded down: what `Age` speaks of.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// Whole seconds, rounded up: what `Retry-After` and `RateLimit` speak of.
    #[must_use]
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1_000_000_000)
    }

    /// `self + other`, at most [`Nanos::MAX`].
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// `self - other`, at least [`Nanos::ZERO`].
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * n`, at most [`Nanos::MAX`].
    #[must_use]
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

/// A point on the host's monotonic clock: nanoseconds since the clock began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The clock's beginning; records hold it for "never yet".
    pub const ZERO: Self = Self(0);
    /// The end of time; nothing is later.
    pub const MAX: Self = Self(u64::MAX);

    /// `n` milliseconds after the clock began.
    #[must_use]
    pub const fn from_millis(n: u64) -> Self {
        Self::ZERO.plus(Nanos::from_millis(n))
    }

    /// `n` seconds after the clock began.
    #[must_use]
    pub const fn from_secs(n: u64) -> Self {
        Self::ZERO.plus(Nanos::from_secs(n))
    }

    /// Whole milliseconds since the clock began, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The moment `time` later, at most [`Moment::MAX`].
    #[must_use]
    pub const fn plus(self, time: Nanos) -> Self {
        Self(self.0.saturating_add(time.0))
    }

    /// The moment `time` earlier, at least [`Moment::ZERO`].
    #[must_use]
    pub const fn minus(self, time: Nanos) -> Self {
        Self(self.0.saturating_sub(time.0))
    }

    /// The time from `earlier` to `self`; zero if the clock went back.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whether it was less than `time` ago. What is to come was not: the clock went back.
    #[must_use]
    pub const fn is_within(self, time: Nanos, now: Self) -> bool {
        self.0 <= now.0 && now.since(self).0 < time.0
    }
}

/// A point on the wall clock: nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The beginning of 1970.
    pub const EPOCH: Self = Self(0);
    /// The last time that fits, in 2554.
    pub const MAX: Self = Self(u64::MAX);

    /// `n` seconds after 1970 began.
    #[must_use]
    pub const fn from_secs(n: u64) -> Self {
        Self::EPOCH.plus(Nanos::from_secs(n))
    }

    /// Whole seconds, rounded down: what a `_timestamp_seconds` gauge holds.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// The time `time` later, at most [`UnixTime::MAX`].
    #[must_use]
    pub const fn plus(self, time: Nanos) -> Self {
        Self(self.0.saturating_add(time.0))
    }

    /// The time from `earlier` to `self`; zero if the clock went back.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}
