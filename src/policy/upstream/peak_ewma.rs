//! Recent latency that follows peaks at once: the "peak EWMA" of Finagle and linkerd.
//!
//! An answer slower than the average replaces it at once. Faster ones lower it slowly, and so does
//! time alone, so that an endpoint which was slow is tried again. A request goes to the endpoint
//! with the least product of latency and requests in flight; latencies up to twice the least one
//! are the same.
//!
//! The average is a gauge that all workers read and write: microseconds, and the time of the last
//! change. When two workers write at the same moment, one sample is lost; the next corrects it. The
//! average decays by half-lives, between them along a parabola, so that no floats are needed:
//! linkerd's time constant of 10 s is a half-life of 6.9 s.

use super::choice::Cost;
use crate::base::time::{Moment, Nanos};

/// The time in which an average falls by half.
pub const HALF_LIFE: Nanos = Nanos::from_millis(6_930);

/// The cost of an endpoint that has not answered yet while requests to it are in flight: more than
/// that of any other.
const UNKNOWN: u64 = 1 << 40;

/// Bits of the time, in milliseconds of the clock: three days, of which the older half counts as
/// the future.
const STAMP: u32 = 28;

/// Parts of a microsecond that are kept, so that small averages can fall in small steps.
const PARTS: u64 = 64;

/// Answers that come sooner than this after another do not lower the average: the step would be too
/// small to be kept.
const SPACING: u64 = 8;

/// An average, packed: 1/64 microseconds above, the moment below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency(pub u64);

impl Latency {
    fn new(parts: u64, now: Moment) -> Self {
        Self(parts.min(u64::MAX >> STAMP) << STAMP | stamp(now))
    }

    const fn parts(self) -> u64 {
        self.0 >> STAMP
    }

    /// Its value at `now`, in microseconds.
    #[must_use]
    pub fn at(self, now: Moment) -> u64 {
        decayed(self.parts(), age(self.0, now)) / PARTS
    }

    /// The average after an answer that took `took`. One that `failed` may raise it, but not lower
    /// it.
    #[must_use]
    pub fn with(self, now: Moment, took: Nanos, failed: bool) -> Self {
        let took = (took.0 / 1_000).saturating_mul(PARTS).max(1);
        let age = age(self.0, now);
        let before = decayed(self.parts(), age);
        if took >= before {
            let first = self.0 == 0 && failed;
            return if first { self } else { Self::new(took, now) };
        }
        if failed || age < SPACING {
            return self;
        }
        // The new sample has the weight that the old average has lost.
        const WHOLE: u64 = 1 << 24;
        let fresh = WHOLE.saturating_sub(decayed(WHOLE, age));
        Self::new(
            before
                .saturating_add(took.saturating_mul(fresh) / WHOLE)
                .max(1),
            now,
        )
    }

    /// The cost of a further request, with `in_flight` requests already there.
    #[must_use]
    pub fn cost(self, now: Moment, in_flight: u64) -> Cost {
        let count = in_flight.saturating_add(1);
        let each = match (self.0, in_flight) {
            (0, 0) => 0,
            (0, _) => UNKNOWN,
            _ => self.at(now).max(1),
        };
        Cost { each, count }
    }
}

/// The rest of `value` after `age` milliseconds.
fn decayed(value: u64, age: u64) -> u64 {
    let half_life = HALF_LIFE.as_millis();
    let halves = age.checked_div(half_life).unwrap_or(0);
    let rest = age.checked_rem(half_life).unwrap_or(0);
    let whole = u32::try_from(halves)
        .ok()
        .and_then(|halves| value.checked_shr(halves))
        .unwrap_or(0);
    // From 1 to 1/2 over one half-life: 2^-f is 1 - f (0.6931 - 0.1931 f), to two thousandths. `f`
    // in 65536ths.
    let f = (rest << 16).checked_div(half_life).unwrap_or(0);
    let lost = f.saturating_mul(45_426u64.saturating_sub(f.saturating_mul(12_658) >> 16)) >> 16;
    let lost = u128::from(whole).saturating_mul(lost.into()) >> 16;
    whole.saturating_sub(u64::try_from(lost).unwrap_or(whole))
}

const MASK: u64 = (1 << STAMP) - 1;

const fn stamp(now: Moment) -> u64 {
    now.as_millis() & MASK
}

/// Milliseconds since the stamp; none if the clock went back.
const fn age(packed: u64, now: Moment) -> u64 {
    let age = stamp(now).wrapping_sub(packed) & MASK;
    if age > MASK / 2 { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Nanos = Nanos::from_millis;

    #[test]
    fn a_peak_counts_at_once_and_wears_off_slowly() {
        let start = Moment::from_secs(1_000);
        let calm = Latency::default().with(start, MS(10), false);
        assert_eq!(calm.at(start), 10_000);
        let peak = calm.with(start.plus(MS(20)), MS(500), false);
        assert_eq!(peak.at(start.plus(MS(20))), 500_000);
        // Good answers, 100 a second, pull it down by half in a half-life.
        let (mut now, mut latency) = (start.plus(MS(20)), peak);
        for _ in 0..693 {
            now = now.plus(MS(10));
            latency = latency.with(now, MS(10), false);
        }
        assert!(
            (240_000..270_000).contains(&latency.at(now)),
            "{}",
            latency.at(now)
        );
        for _ in 0..10 * 693 {
            now = now.plus(MS(10));
            latency = latency.with(now, MS(10), false);
        }
        assert!(
            (10_000..11_000).contains(&latency.at(now)),
            "{}",
            latency.at(now)
        );
    }

    #[test]
    fn time_alone_wears_it_off_so_that_it_is_tried_again() {
        let start = Moment::from_secs(1_000);
        let slow = Latency::default().with(start, Nanos::from_secs(1), false);
        assert_eq!(slow.at(start.plus(HALF_LIFE)), 500_000);
        assert_eq!(slow.at(start.plus(HALF_LIFE.times(2))), 250_000);
        assert!(slow.cost(start.plus(HALF_LIFE.times(9)), 0).each < 2_000);
        assert_eq!(slow.cost(start.plus(Nanos::from_secs(3_600)), 0).each, 1);
    }

    #[test]
    fn a_quick_failure_makes_no_endpoint_attractive_and_a_slow_one_counts() {
        let start = Moment::from_secs(1_000);
        let known = Latency::default().with(start, MS(50), false);
        assert_eq!(known.with(start.plus(MS(100)), MS(1), true), known);
        assert_eq!(
            known
                .with(start.plus(MS(100)), MS(400), true)
                .at(start.plus(MS(100))),
            400_000
        );
        assert_eq!(
            Latency::default().with(start, MS(1), true),
            Latency::default()
        );
    }

    #[test]
    fn an_unknown_endpoint_gets_one_request_to_know_it_by() {
        let now = Moment::from_secs(1_000);
        let known = Latency::default().with(now, MS(5), false);
        assert_eq!(Latency::default().cost(now, 0).each, 0);
        assert!(
            Latency::default().cost(now, 1).each
                > known.cost(now, 1).each.saturating_mul(1_000_000)
        );
    }

    proptest! {
        #[test]
        fn it_stays_between_what_it_was_and_what_came(
            first in 1u64..100_000_000,
            second in 1u64..100_000_000,
            pause in 0u64..100_000,
        ) {
            let start = Moment::from_secs(5_000);
            let latency = Latency::default().with(start, Nanos(first * 1_000), false);
            let now = start.plus(Nanos::from_millis(pause));
            let next = latency.with(now, Nanos(second * 1_000), false).at(now);
            prop_assert!(next <= first.max(second), "{} {} {}", first, second, next);
            prop_assert!(
                next + 2 >= latency.at(now).min(second),
                "{} {} {}",
                first,
                second,
                next
            );
            prop_assert!(
                second < latency.at(now) || next == second,
                "a peak counts at once"
            );
        }

        #[test]
        fn any_gauge_and_clock_are_taken_sanely(
            packed: u64,
            now: u64,
            took: u64,
            failed: bool,
            in_flight: u64,
        ) {
            let latency = Latency(packed).with(Moment(now), Nanos(took), failed);
            let _ = latency.cost(Moment(now), in_flight);
        }
    }
}
