//! A breaker's parameters and what follows from them alone: when it trips, how long it stays open.

use super::transition::{CallResult, TripReason};
use super::window::{self, Counts, Fifo, Window};
use crate::base::percent::Percent;
use crate::base::time::{Moment, Nanos};
use crate::policy::circuit_breaker::config;

/// Half-open calls if nothing is said.
const HALF_OPEN_CALLS: u32 = 5;

/// The shortest open time that an upstream may ask for; the configuration has the same minimum.
const SHORTEST: Nanos = Nanos::from_millis(100);

/// The breaker's parameters, ready for use.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerSettings {
    config: config::CircuitBreaker,
    bucket: Nanos,
}

/// How long a bucket of a window is: moments in one are not told apart.
#[must_use]
pub fn bucket(window: config::WindowConfig) -> Nanos {
    match window {
        config::WindowConfig::Time(length) => Nanos(
            length
                .0
                .checked_div(window::BUCKETS as u64)
                .unwrap_or(0)
                .max(1),
        ),
        config::WindowConfig::Count(_) => Nanos::MAX,
    }
}

impl BreakerSettings {
    /// Prepares a breaker's configuration.
    #[must_use]
    pub fn new(config: config::CircuitBreaker) -> Self {
        let bucket = bucket(config.window);
        Self { config, bucket }
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &config::CircuitBreaker {
        &self.config
    }

    /// Calls let through while half-open.
    #[must_use]
    pub fn half_open_calls(&self) -> u32 {
        self.config.half_open_calls.unwrap_or(HALF_OPEN_CALLS)
    }

    /// Whether the window is one of time.
    pub(super) const fn is_timed(&self) -> bool {
        matches!(self.config.window, config::WindowConfig::Time(_))
    }

    /// The number of the bucket that `now` is in.
    pub(super) fn bucket_of(&self, now: Moment) -> u64 {
        window::bucket_of(now, self.bucket)
    }

    /// Whether the call was slow.
    pub(super) fn is_slow(&self, call: CallResult) -> bool {
        call.duration >= self.config.slow_call_duration
    }

    /// Whether these counts open a closed breaker, and why. A count window never holds more than
    /// its size: it is judged when it is full, as resilience4j does.
    pub(super) fn trips(&self, counts: Counts, consecutive: u32) -> Option<TripReason> {
        let minimum = match self.config.window {
            config::WindowConfig::Time(_) => self.config.minimum_calls,
            config::WindowConfig::Count(size) => self.config.minimum_calls.min(size),
        };
        self.tripped(counts, minimum, consecutive)
    }

    /// How long a breaker has to stay closed for a grown open time to be forgotten.
    pub(super) fn quiet_spell(&self, last_open: Nanos) -> Nanos {
        match self.config.window {
            config::WindowConfig::Time(length) => last_open.max(length),
            config::WindowConfig::Count(_) => last_open,
        }
    }

    pub(super) fn empty_window(&self) -> Window {
        match self.config.window {
            config::WindowConfig::Time(_) => Window::default(),
            config::WindowConfig::Count(size) => Window::Count(Fifo::new(size)),
        }
    }

    pub(super) fn tripped(
        &self,
        counts: Counts,
        minimum: u32,
        consecutive: u32,
    ) -> Option<TripReason> {
        if self.config.consecutive_failures > 0 && consecutive >= self.config.consecutive_failures {
            return Some(TripReason::ConsecutiveFailures);
        }
        if counts.calls == 0 || counts.calls < minimum {
            return None;
        }
        let reached = |part: u32, threshold: Percent| {
            let (part, whole) = (
                u64::from(part).saturating_mul(10_000),
                u64::from(counts.calls).saturating_mul(threshold.0.into()),
            );
            // A share above 100 % is impossible: there the threshold itself counts as reached.
            part > whole || (part == whole && (!self.config.open_above || threshold.0 >= 10_000))
        };
        if reached(counts.failures, self.config.failure_rate_threshold) {
            return Some(TripReason::FailureRate);
        }
        reached(counts.slow, self.config.slow_call_rate_threshold)
            .then_some(TripReason::SlowCallRate)
    }

    pub(super) fn longest_open_time(&self) -> Nanos {
        self.config.max_open_duration.max(self.config.open_duration)
    }

    /// The open time of the opening after `rounds` failed rounds.
    pub(super) fn open_time(&self, rounds: u32, retry_after: Option<Nanos>, random: u64) -> Nanos {
        let config = &self.config;
        let longest = self.longest_open_time();
        if let Some(retry_after) = retry_after.filter(|_| config.honour_retry_after) {
            return retry_after.max(SHORTEST).min(longest);
        }
        let mut time = config.open_duration;
        for _ in 0..rounds {
            if time >= longest || config.backoff_multiplier_centi <= 100 {
                break;
            }
            let grown =
                u128::from(time.0).saturating_mul(config.backoff_multiplier_centi.into()) / 100;
            time = Nanos(u64::try_from(grown).unwrap_or(u64::MAX)).min(longest);
        }
        let share = u128::from(time.0).saturating_mul(config.jitter.0.into()) / 10_000;
        let share = Nanos(u64::try_from(share).unwrap_or(u64::MAX));
        // Where the longest open time cuts off the upper part, the draw is even over the rest:
        // breakers that have all grown to it spread too.
        let (least, most) = (
            time.minus(share).max(Nanos::from_millis(1)),
            time.plus(share).min(longest),
        );
        let spread = u128::from(most.minus(least).0).saturating_add(1);
        let drawn = u128::from(random).saturating_mul(spread) >> 64;
        least.plus(Nanos(u64::try_from(drawn).unwrap_or(0)))
    }
}
