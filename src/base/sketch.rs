//! What times have been like lately: a histogram of bounded size, from which quantiles are read.
//!
//! Buckets are eight to an octave, from 65 µs to 73 minutes, as in HdrHistogram (Tene) with three
//! significant bits: a quantile is known to an eighth of itself. Counts are kept for two windows, a
//! running one and the one before it. A window ends after [`WINDOW`] if it has counted [`ENOUGH`],
//! otherwise once it has, and after [`STALE`] at the latest. So the quantiles of a busy subject
//! follow within seconds, and a quiet one still has some; times older than two minutes are
//! forgotten.
//!
//! A time that was cut off (a timeout, a client that went away) is known only as "longer than".
//! Counted as it stands it would pull the quantiles down, and a timeout that is made from them
//! would shrink with every request that it cuts off. It counts as one of the longer times seen,
//! drawn at random, or as itself if there is none: Efron, "The two sample problem with censored
//! data" (1967), redistribution to the right.

use super::time::{Moment, Nanos};

/// Buckets of an octave, as a power of 2.
const BITS: u32 = 3;

/// Where the first bucket ends, as a power of 2 in nanoseconds.
const FIRST: u32 = 16;

/// Octaves above the first bucket; what is longer counts in the last.
const OCTAVES: u32 = 26;

/// Number of buckets.
const BUCKETS: usize = 1 + ((OCTAVES << BITS) as usize);

/// The times that a quantile needs; with fewer there is none.
pub const ENOUGH: u64 = 20;

/// The shortest window.
pub const WINDOW: Nanos = Nanos::from_secs(10);

/// The longest window.
pub const STALE: Nanos = Nanos::from_secs(60);

/// Times seen lately.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    running: SketchWindow,
    before: SketchWindow,
    /// When the running window began.
    since: Moment,
    /// When a time was last counted.
    last: Moment,
    /// The quantile that was asked for last, and what it was.
    known: Option<Known>,
}

/// Where a quantile lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between {
    /// It is no less.
    pub least: Nanos,
    /// It is no more.
    pub most: Nanos,
}

/// Counts of a window; nothing is allocated before the first.
#[derive(Clone, Debug, Default)]
struct SketchWindow {
    counts: Vec<u32>,
    total: u64,
    /// Behind the longest time that was not cut off.
    whole: usize,
}

/// A quantile that was worked out, good until the counts have changed by a sixteenth.
#[derive(Clone, Copy, Debug)]
struct Known {
    centi: u32,
    value: Between,
    good_for: u64,
}

impl SketchWindow {
    fn add(&mut self, bucket: usize) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count = count.saturating_add(1);
            self.total = self.total.saturating_add(1);
        }
    }

    fn count(&self, bucket: usize) -> u64 {
        self.counts.get(bucket).copied().unwrap_or(0).into()
    }

    fn clear(&mut self) {
        self.counts.fill(0);
        (self.total, self.whole) = (0, 0);
    }
}

impl Sketch {
    /// Counts a time.
    pub fn add(&mut self, now: Moment, time: Nanos) {
        let at = bucket(time);
        self.count(now, at);
        self.running.whole = self.running.whole.max(at.saturating_add(1));
    }

    /// Counts a time that was cut off at `time`. `random` picks the longer one that stands for it.
    pub fn add_cut_off(&mut self, now: Moment, time: Nanos, random: u64) {
        let least = bucket(time);
        let longer = || (least.saturating_add(1)..BUCKETS).map(|at| (at, self.total_of(at)));
        let all = longer().fold(0u64, |sum, (_, count)| sum.saturating_add(count));
        let mut drawn =
            u64::try_from(u128::from(random).saturating_mul(all.into()) >> 64).unwrap_or(0);
        let found = longer().find(|(_, count)| {
            let here = drawn < *count;
            drawn = drawn.saturating_sub(*count);
            here
        });
        self.count(now, found.map_or(least, |(at, _)| at));
    }

    /// Where the quantile `centi` (hundredths of a percent) lies; `None` while too little is known.
    pub fn quantile(&mut self, now: Moment, centi: u32) -> Option<Between> {
        self.advance(now);
        if let Some(known) = self
            .known
            .filter(|known| known.centi == centi && known.good_for > 0)
        {
            return Some(known.value);
        }
        let total = self.running.total.saturating_add(self.before.total);
        if total < ENOUGH {
            return None;
        }
        // The rank in the sorted times, rounded up, at least the first.
        let rank = u128::from(total)
            .saturating_mul(centi.into())
            .div_ceil(10_000);
        let mut sum = 0u128;
        let at = (0..BUCKETS).find(|at| {
            sum = sum.saturating_add(self.total_of(*at).into());
            sum >= rank.max(1)
        });
        let at = at.unwrap_or(BUCKETS);
        let value = Between {
            least: at.checked_sub(1).map_or(Nanos::ZERO, end),
            most: end(at),
        };
        self.known = Some(Known {
            centi,
            value,
            good_for: (total / 16).max(1),
        });
        Some(value)
    }

    /// How much longer what has lasted for `time` usually lasts: half of the times seen that were
    /// longer take at least as much. Zero where none was, or too little is known; a time that was
    /// cut off is none.
    pub fn rest(&mut self, now: Moment, time: Nanos) -> Nanos {
        self.advance(now);
        if self.running.total.saturating_add(self.before.total) < ENOUGH {
            return Nanos::ZERO;
        }
        let whole = self.running.whole.max(self.before.whole);
        let longer = || (bucket(time).saturating_add(1)..whole).map(|at| (at, self.total_of(at)));
        let all = longer().fold(0u64, |sum, (_, count)| sum.saturating_add(count));
        let mut left = all.div_ceil(2);
        let half = longer().find(|(_, count)| {
            let here = left <= *count;
            left = left.saturating_sub(*count);
            here
        });
        let half = half.and_then(|(at, _)| at.checked_sub(1)).map(end);
        half.map_or(Nanos::ZERO, |half| half.minus(time))
    }

    /// How long ago a time was last counted.
    #[must_use]
    pub const fn since_last(&self, now: Moment) -> Nanos {
        now.since(self.last)
    }

    fn count(&mut self, now: Moment, bucket: usize) {
        self.advance(now);
        self.last = now;
        self.running.add(bucket);
        if let Some(known) = &mut self.known {
            known.good_for = known.good_for.saturating_sub(1);
        }
    }

    fn total_of(&self, bucket: usize) -> u64 {
        self.running
            .count(bucket)
            .saturating_add(self.before.count(bucket))
    }

    /// Ends the running window if it is time.
    fn advance(&mut self, now: Moment) {
        if now < self.since {
            // The clock has stepped back.
            (self.since, self.last) = (now, self.last.min(now));
        }
        let age = now.since(self.since);
        if age < WINDOW || (age < STALE && self.running.total < ENOUGH) {
            return;
        }
        std::mem::swap(&mut self.running, &mut self.before);
        self.running.clear();
        if age >= STALE.times(2) {
            self.before.clear();
        }
        self.since = now;
        self.known = None;
    }
}

/// The bucket of a time.
fn bucket(time: Nanos) -> usize {
    let log = time.0.max(1).ilog2();
    let Some(octave) = log.checked_sub(FIRST) else {
        return 0;
    };
    let part = time.0 >> log.saturating_sub(BITS) & ((1 << BITS) - 1);
    let at = u64::from(octave << BITS)
        .saturating_add(part)
        .saturating_add(1);
    usize::try_from(at)
        .unwrap_or(BUCKETS)
        .min(BUCKETS.saturating_sub(1))
}

/// Where a bucket ends.
fn end(bucket: usize) -> Nanos {
    let at = u32::try_from(bucket)
        .unwrap_or(u32::MAX)
        .min(OCTAVES << BITS);
    let (octave, part) = (at >> BITS, at & ((1 << BITS) - 1));
    let eighths = u64::from(part).saturating_add(1 << BITS);
    Nanos(
        eighths
            .checked_shl(octave.saturating_add(FIRST).saturating_sub(BITS))
            .unwrap_or(u64::MAX),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P50: u32 = 5_000;
    const P99: u32 = 9_900;

    fn ms(n: u64) -> Nanos {
        Nanos::from_millis(n)
    }

    fn at_ms(n: u64) -> Moment {
        Moment::from_millis(n)
    }

    fn filled(times: impl IntoIterator<Item = u64>) -> Sketch {
        let mut sketch = Sketch::default();
        times
            .into_iter()
            .for_each(|time| sketch.add(at_ms(1), ms(time)));
        sketch
    }

    #[test]
    fn buckets_join_without_a_gap() {
        for at in 1..BUCKETS {
            let start = end(at - 1);
            assert_eq!(
                (bucket(start), bucket(Nanos(start.0 - 1))),
                (at, at - 1),
                "{at}"
            );
            assert!(end(at).0 - start.0 <= start.0 / 8 + 1, "{at}");
        }
        assert_eq!([bucket(Nanos(0)), bucket(Nanos::MAX)], [0, BUCKETS - 1]);
        assert_eq!(end(usize::MAX), Nanos(1 << 42));
    }

    #[test]
    fn there_is_no_quantile_before_there_is_enough() {
        let mut sketch = filled(std::iter::repeat_n(5, 19));
        assert_eq!(sketch.quantile(at_ms(1), P50), None);
        sketch.add(at_ms(1), ms(5));
        let p50 = sketch.quantile(at_ms(1), P50).unwrap();
        assert!(p50.least <= ms(5) && ms(5) < p50.most);
    }

    #[test]
    fn a_busy_subject_is_followed_within_two_windows() {
        let mut sketch = filled(std::iter::repeat_n(5, 100));
        let mut now = at_ms(1);
        for _ in 0..21 {
            now = now.plus(Nanos::from_secs(1));
            (0..10).for_each(|_| sketch.add(now, ms(50)));
        }
        assert!(
            sketch.quantile(now, 100).unwrap().least >= ms(40),
            "the old times are forgotten"
        );
    }

    #[test]
    fn a_quiet_subject_still_has_numbers_and_loses_them_in_the_end() {
        let mut sketch = filled(std::iter::repeat_n(5, 30));
        for second in [20, 50, 75] {
            assert!(
                sketch.quantile(Moment::from_secs(second), P50).is_some(),
                "{second}"
            );
        }
        assert_eq!(sketch.quantile(Moment::from_secs(150), P50), None);
        let mut sketch = filled(std::iter::repeat_n(5, 30));
        assert_eq!(sketch.quantile(Moment::from_secs(1_000), P50), None);
    }

    #[test]
    fn a_clock_that_steps_back_loses_nothing_and_stops_nothing() {
        let mut sketch = Sketch::default();
        (0..30).for_each(|_| sketch.add(Moment::from_secs(1_000), ms(5)));
        assert!(sketch.quantile(Moment::from_secs(5), P50).is_some());
        assert_eq!(sketch.since_last(Moment::from_secs(7)), Nanos::from_secs(2));
        assert!(sketch.quantile(Moment::from_secs(200), P50).is_none());
    }

    #[test]
    fn what_was_cut_off_pulls_no_quantile_down() {
        let times = || (0..1_000).map(|n| 10 + n / 10);
        let mut sketch = filled(times());
        let (p50, p99) = (
            sketch.quantile(at_ms(1), P50).unwrap(),
            sketch.quantile(at_ms(1), P99).unwrap(),
        );
        let mut random = 1u64;
        for _ in 0..5_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            sketch.add_cut_off(at_ms(1), ms(1), random);
        }
        assert!(sketch.quantile(at_ms(1), P50).unwrap().most >= p50.least);
        assert!(
            sketch.quantile(at_ms(1), P99).unwrap().most >= p99.least,
            "an impatient client hides no slow tail"
        );
    }

    #[test]
    fn what_has_lasted_for_long_lasts_as_much_longer_as_others_did() {
        let mut sketch = filled(10..110);
        let mut rest = |time| sketch.rest(at_ms(1), ms(time)).as_millis();
        // Of 10 to 109 ms; a bucket is an eighth of itself.
        assert!((50..=60).contains(&rest(0)), "{}", rest(0));
        assert!((20..=30).contains(&rest(55)), "{}", rest(55));
        assert_eq!([rest(108), rest(500), rest(u64::MAX / 1_000_000)], [0; 3]);
        for n in 0..1_000 {
            sketch.add_cut_off(at_ms(1), ms(500), n);
        }
        assert_eq!(
            sketch.rest(at_ms(1), ms(200)),
            Nanos::ZERO,
            "it never ended"
        );
        assert_eq!(
            filled([5; 19]).rest(at_ms(1), ms(1)),
            Nanos::ZERO,
            "too few"
        );
    }

    proptest! {
        #[test]
        fn a_quantile_lies_where_the_sorted_list_has_it(
            times in proptest::collection::vec(0u64..=u64::MAX / 2, 20..200), centi in 1u32..=10_000
        ) {
            let mut sketch = Sketch::default();
            times.iter().for_each(|time| sketch.add(at_ms(1), Nanos(time >> (time % 60))));
            let mut sorted: Vec<_> = times.iter().map(|time| time >> (time % 60)).collect();
            sorted.sort_unstable();
            let rank = (sorted.len() * centi as usize).div_ceil(10_000).max(1);
            let exact = sorted[rank - 1].min((1 << 42) - 1);
            let found = sketch.quantile(at_ms(1), centi).unwrap();
            prop_assert!((found.least.0..found.most.0).contains(&exact), "{exact} {found:?}");
        }

        #[test]
        fn no_times_and_no_clock_break_it(
            steps in proptest::collection::vec(any::<(u64, u64, u64, bool)>(), 0..60)
        ) {
            let mut sketch = Sketch::default();
            for (now, time, random, cut) in steps {
                if cut {
                    sketch.add_cut_off(Moment(now), Nanos(time), random);
                } else {
                    sketch.add(Moment(now), Nanos(time));
                }
                let _ = sketch.quantile(Moment(now), P99);
                let _ = sketch.rest(Moment(now), Nanos(time));
            }
        }
    }
}
