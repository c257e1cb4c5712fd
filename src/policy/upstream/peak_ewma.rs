//! Recent latency that follows peaks: the "peak EWMA" of Finagle and linkerd, of peaks that a
//! second request confirms.
//!
//! An answer slower than the average replaces it. Faster ones lower it slowly, and so does time
//! alone, so that an endpoint which was slow is tried again. A request goes to the endpoint with
//! the least product of latency and requests in flight; latencies up to twice the least one are the
//! same.
//!
//! A slower answer is only suspected to be a peak: it counts once a request that began after it was
//! slow as well, or if the endpoint was as slow before. (Bug avoided: every endpoint has a slow
//! answer now and then, a pause of its own or of the machine. One such answer took nearly all
//! requests from its endpoint for half-lives, and of equal endpoints the last to have one got them
//! all.) A failure that slow counts at once. Likewise what is known by one answer is known by
//! halves, which may have had a connection to wait for: the endpoint gets one request more, and an
//! answer to that which is faster takes the first's place. So is what has had no answer for sixteen
//! times as long as it is; each time that an answer then shows it to be right, it holds for four
//! times as long, up to a thousand times itself. An endpoint that is slow is so asked seldom, and
//! one that was slow by chance is soon back.
//!
//! The average is a gauge that all workers read and write: microseconds, what they are known by,
//! and the time of the last change. When two workers write at the same moment, one sample is lost;
//! the next corrects it. The average decays by half-lives, between them along a parabola, so that
//! no floats are needed: linkerd's time constant of 10 s is a half-life of 6.9 s.

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

/// An average holds without an answer for so many times itself, by how often it was confirmed.
const HOLDS: [u64; 4] = [16, 64, 256, 1_024];

/// The bit that tells of a suspected peak.
const SUSPECTED: u64 = 1 << STAMP;

/// The bit of what is known by one answer only.
const FIRST: u64 = 1 << (STAMP + 1);

/// Where it begins how often it was asked for again and shown to be right, from 0 to 3.
const CONFIRMED: u32 = STAMP + 2;

/// Where the average begins.
const AVERAGE: u32 = CONFIRMED + 2;

/// An average, packed: 1/64 microseconds above (67 s fit), then [`CONFIRMED`], [`FIRST`] and
/// [`SUSPECTED`], and the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency(pub u64);

impl Latency {
    fn new(parts: u64, now: Moment) -> Self {
        Self(parts.clamp(1, u64::MAX >> AVERAGE) << AVERAGE | stamp(now))
    }

    const fn parts(self) -> u64 {
        self.0 >> AVERAGE
    }

    const fn is(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    const fn confirmed(self) -> u64 {
        self.0 >> CONFIRMED & 3
    }

    /// Whether it has been long without an answer, for what it is.
    const fn is_old(self, now: Moment) -> bool {
        let [once, twice, often, always] = HOLDS;
        let holds = match self.confirmed() {
            0 => once,
            1 => twice,
            2 => often,
            _ => always,
        };
        age(self.0, now).saturating_mul(1_000 * PARTS) >= self.parts().saturating_mul(holds)
    }

    const fn and(self, bit: u64) -> Self {
        Self(self.0 | bit)
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
        let parts = (took.0 / 1_000).saturating_mul(PARTS).max(1);
        let age = age(self.0, now);
        let before = decayed(self.parts(), age);
        let new = Self::new(parts, now);
        // Whether it began after the answer that the stamp tells of.
        let later = age >= took.as_millis();
        let old = self.is_old(now);
        if self.0 == 0 {
            return if failed { self } else { new.and(FIRST) };
        }
        if parts >= before {
            // As it was, not as it has worn off: what was about that slow is no surprise.
            let known = self.parts().saturating_add(self.parts() / 4) >= parts;
            return if failed || (later && (known || self.is(SUSPECTED))) {
                let times = self.confirmed().saturating_add(old.into()).min(3);
                new.and(times << CONFIRMED)
            } else if known || self.is(SUSPECTED) {
                // It was on its way at the same time, which shows nothing new.
                self
            } else {
                let times = self.confirmed() << CONFIRMED;
                Self::new(before, now).and(SUSPECTED | times)
            };
        }
        if failed {
            return self;
        }
        if old || self.is(FIRST) {
            return if later && !old { new } else { new.and(FIRST) };
        }
        if age < SPACING && !self.is(SUSPECTED) {
            return self;
        }
        // The new sample has the weight that the old average has lost.
        const WHOLE: u64 = 1 << 24;
        let fresh = WHOLE.saturating_sub(decayed(WHOLE, age));
        Self::new(
            before
                .saturating_add(parts.saturating_mul(fresh) / WHOLE)
                .max(1),
            now,
        )
    }

    /// The cost of a further request, with `in_flight` requests already there.
    #[must_use]
    pub fn cost(self, now: Moment, in_flight: u64) -> Cost {
        let count = in_flight.saturating_add(1);
        let each = match (self.0, in_flight) {
            // It gets a request to know it by.
            (0, 0) => 0,
            (_, 0) if self.is(FIRST) || self.is_old(now) => 0,
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
    fn a_peak_counts_when_a_second_request_confirms_it_and_wears_off_slowly() {
        let start = Moment::from_secs(1_000);
        let at = |ms: u64| start.plus(MS(ms));
        let calm = Latency::default().with(start, MS(10), false);
        assert_eq!(calm.at(start), 10_000);
        let once = calm.with(at(600), MS(500), false);
        assert!(once.at(at(600)) <= 10_000);
        // One that was on its way at the same time shows nothing new, nor do several.
        let same = once
            .with(at(620), MS(500), false)
            .with(at(1_000), MS(500), false);
        assert_eq!(same, once);
        // A good one in between ends the suspicion, however soon it comes.
        let good = same.with(at(1_002), MS(9), false);
        assert!(good.with(at(1_600), MS(500), false).at(at(1_600)) <= 10_000);
        let peak = same.with(at(1_100), MS(500), false);
        assert_eq!(peak.at(at(1_100)), 500_000);
        let start = at(1_080);
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
    fn what_was_slow_and_is_so_still_counts_at_once() {
        let start = Moment::from_secs(1_000);
        let slow = Latency::default().with(start, MS(200), false);
        let later = start.plus(HALF_LIFE.times(5));
        assert!(slow.at(later) < 7_000);
        assert_eq!(slow.with(later, MS(240), false).at(later), 240_000);
        assert!(slow.with(later, MS(260), false).at(later) < 7_000);
    }

    #[test]
    fn time_alone_wears_it_off_so_that_it_is_tried_again() {
        let start = Moment::from_secs(1_000);
        let second = Nanos::from_secs(1);
        let slow = Latency::default().with(start.minus(second), second, false);
        let slow = slow.with(start, second, false);
        assert_eq!(slow.at(start.plus(HALF_LIFE)), 500_000);
        assert_eq!(slow.at(start.plus(HALF_LIFE.times(2))), 250_000);
        assert!(slow.cost(start.plus(HALF_LIFE.times(9)), 1).each < 2_000);
        assert_eq!(slow.cost(start.plus(Nanos::from_secs(3_600)), 1).each, 1);
    }

    #[test]
    fn an_endpoint_that_is_slow_is_asked_ever_more_seldom() {
        let mut now = Moment::from_secs(1_000);
        let mut slow = Latency::default().with(now, MS(200), false);
        let mut asked = Vec::new();
        for _ in 0..200_000 {
            now = now.plus(MS(10));
            if slow.cost(now, 0).each < 1_000 {
                asked.push(now.since(Moment::from_secs(1_000)).as_millis() / 1_000);
                now = now.plus(MS(200));
                slow = slow.with(now, MS(200), false);
            }
        }
        assert_eq!(asked.get(..5), Some(&[0, 3, 16, 67, 120][..]), "{asked:?}");
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
    fn an_unknown_endpoint_gets_two_requests_to_know_it_by() {
        let now = Moment::from_secs(1_000);
        let first = Latency::default().with(now, MS(80), false);
        assert_eq!(
            (first.cost(now, 0).each, first.cost(now, 1).each),
            (0, 80_000)
        );
        let soon = now.plus(MS(3));
        assert_eq!(first.with(soon, MS(7), false).cost(soon, 0).each, 0);
        let later = now.plus(MS(7));
        let known = first.with(later, MS(7), false);
        assert_eq!(known.cost(later, 0).each, 7_000, "the faster one counts");
        let slow = first.with(now.plus(MS(90)), MS(90), false);
        assert_eq!(slow.cost(now.plus(MS(90)), 0).each, 90_000);
        assert_eq!(Latency::default().cost(now, 0).each, 0);
        assert!(
            Latency::default().cost(now, 1).each
                > known.cost(now, 1).each.saturating_mul(1_000_000)
        );
    }

    proptest! {
        #[test]
        fn it_stays_between_what_it_was_and_what_came(
            first in 1u64..60_000_000,
            second in 1u64..60_000_000,
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
            let slower = second >= latency.at(now) && second <= first;
            prop_assert!(
                !slower || second / 1_000 > pause || next == second,
                "slower, and no slower than it was: it counts at once"
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
