//! The window of outcomes that a breaker judges by: those of a span of time, or a number of calls.
//!
//! A time window is Hystrix's ring of buckets. The newest bucket is not in it: its outcomes are
//! counted in one number that all workers add to, a *tally* (a gauge of the host), and the ring
//! remembers what the tally was when the bucket began. So an outcome costs an atomic addition, and
//! the record is written once a bucket. A tally holds calls, failures and slow calls in one number,
//! so that one addition counts an outcome and one reading sees all three of the same moment: no
//! order of workers makes a rate look higher or lower than it was. Sums may run over; differences
//! of tallies stay right, as long as a field of the difference fits ([`FOLD`] ensures it).
//!
//! A count window is resilience4j's: the last `size` outcomes, the oldest goes when a new one
//! comes.

use crate::base::time::{Moment, Nanos};

/// Buckets of the ring: a time window is up to a tenth shorter than asked for.
pub const BUCKETS: usize = 10;

/// The longest count window.
pub const LONGEST: u32 = 1_024;

const WORDS: usize = LONGEST as usize / 64;

/// Bits of a tally that hold slow calls, and as many that hold failures; the rest holds calls.
const FIELD: u32 = 21;

/// Calls since the ring was last written after which it is written before its bucket is over: far
/// from where a field would run over.
pub const FOLD: u32 = 1 << (FIELD - 1);

/// Outcomes, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that ended with a verdict.
    pub calls: u32,
    /// Those that failed.
    pub failures: u32,
    /// Those that were slow, failed or not.
    pub slow: u32,
}

impl Counts {
    /// Adds one outcome.
    pub(super) fn count(&mut self, failed: bool, slow: bool) {
        *self = self.plus(Self {
            calls: 1,
            failures: failed.into(),
            slow: slow.into(),
        });
    }

    /// Both together.
    pub(super) const fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            failures: self.failures.saturating_add(other.failures),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

/// What one outcome adds to a tally.
#[must_use]
pub fn weight(failed: bool, slow: bool) -> i64 {
    (1i64 << (2 * FIELD)) | (i64::from(failed) << FIELD) | i64::from(slow)
}

/// The outcomes that were counted between two readings of a tally; `None` if the tally was set back
/// or overwritten in between.
#[must_use]
pub fn between(earlier: u64, later: u64) -> Option<Counts> {
    let difference = later.wrapping_sub(earlier);
    let field = |n: u64| u32::try_from(n & ((1 << FIELD) - 1)).unwrap_or(0);
    let counts = Counts {
        calls: u32::try_from(difference >> (2 * FIELD)).unwrap_or(u32::MAX),
        failures: field(difference >> FIELD),
        slow: field(difference),
    };
    let sound =
        counts.calls < 1 << FIELD && counts.failures <= counts.calls && counts.slow <= counts.calls;
    sound.then_some(counts)
}

/// A time window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Number of the newest bucket: its start divided by a bucket's length.
    pub head: u64,
    /// The tally up to which outcomes are in the buckets; `None`: there is no tally, or no worker
    /// has read it yet.
    pub base: Option<u64>,
    /// Bucket number n is at n modulo their number.
    pub buckets: [Counts; BUCKETS],
}

impl Ring {
    /// What the buckets hold.
    #[must_use]
    pub fn sum(&self) -> Counts {
        self.buckets
            .iter()
            .fold(Counts::default(), |sum, bucket| sum.plus(*bucket))
    }

    /// Whether the ring must move before an outcome of the bucket `target` is counted.
    #[must_use]
    pub const fn is_behind(head: u64, target: u64) -> bool {
        // So far ahead of the clock that it must have stepped back.
        target > head || head.saturating_sub(target) >= BUCKETS as u64
    }

    /// Adds the outcomes tallied until now to the newest bucket. After a tally was set back, its
    /// outcomes are unknown and the count begins anew.
    pub(super) fn fold(&mut self, tally: u64) {
        if let Some(counts) = self.base.and_then(|base| between(base, tally)) {
            self.add(counts);
        }
        self.base = Some(tally);
    }

    /// Moves on to the bucket `target` and empties the buckets passed over.
    pub(super) fn advance(&mut self, target: u64) {
        let length = BUCKETS as u64;
        // Far ahead, or so far back that the clock must have stepped: nothing of the window is
        // left.
        if target.saturating_sub(self.head) >= length || self.head.saturating_sub(target) >= length
        {
            self.buckets = Default::default();
            self.head = target;
        }
        while self.head < target {
            self.head = self.head.saturating_add(1);
            if let Some(bucket) = self.buckets.get_mut(slot(self.head)) {
                *bucket = Counts::default();
            }
        }
    }

    pub(super) fn add(&mut self, counts: Counts) {
        if let Some(bucket) = self.buckets.get_mut(slot(self.head)) {
            *bucket = bucket.plus(counts);
        }
    }
}

fn slot(number: u64) -> usize {
    number
        .checked_rem(BUCKETS as u64)
        .and_then(|rest| usize::try_from(rest).ok())
        .unwrap_or(0)
}

/// A count window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fifo {
    /// How many outcomes it can hold, 1 to [`LONGEST`].
    pub(super) size: u32,
    /// How many it holds; until it is full they are the first ones.
    pub(super) len: u32,
    /// Where the next goes.
    pub(super) next: u32,
    /// A bit for each outcome.
    pub(super) failed: [u64; WORDS],
    pub(super) slow: [u64; WORDS],
}

impl Fifo {
    /// An empty one.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self {
            size: size.clamp(1, LONGEST),
            ..Self::default()
        }
    }

    /// Words of each kind that a window of this size needs.
    pub(super) const fn words(size: u32) -> usize {
        (size as usize).div_ceil(64)
    }

    /// Repairs a window that was read from bytes: values out of range are cut to the nearest valid
    /// ones.
    pub(super) fn repaired(mut self) -> Self {
        self.size = self.size.clamp(1, LONGEST);
        self.len = self.len.min(self.size);
        if self.len < self.size || self.next >= self.size {
            self.next = self.len.checked_rem(self.size).unwrap_or(0);
        }
        for (at, (failed, slow)) in self.failed.iter_mut().zip(&mut self.slow).enumerate() {
            let held = (self.len as usize)
                .saturating_sub(at.saturating_mul(64))
                .min(64);
            let mask = u32::try_from(held)
                .ok()
                .and_then(|held| u64::MAX.checked_shr(64u32.saturating_sub(held)));
            *failed &= mask.unwrap_or(0);
            *slow &= mask.unwrap_or(0);
        }
        self
    }

    pub(super) fn push(&mut self, failed: bool, slow: bool) {
        let (word, bit) = ((self.next / 64) as usize, 1u64 << (self.next % 64));
        for (words, is) in [(&mut self.failed, failed), (&mut self.slow, slow)] {
            if let Some(word) = words.get_mut(word) {
                *word = if is { *word | bit } else { *word & !bit };
            }
        }
        self.len = self.len.saturating_add(1).min(self.size);
        self.next = self
            .next
            .saturating_add(1)
            .checked_rem(self.size)
            .unwrap_or(0);
    }

    /// What it holds.
    #[must_use]
    pub fn sum(&self) -> Counts {
        let ones = |words: &[u64]| {
            words
                .iter()
                .fold(0u32, |sum, word| sum.saturating_add(word.count_ones()))
        };
        Counts {
            calls: self.len,
            failures: ones(&self.failed),
            slow: ones(&self.slow),
        }
    }
}

/// A breaker's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The calls of a time.
    Time(Ring),
    /// A number of calls.
    Count(Fifo),
}

impl Default for Window {
    fn default() -> Self {
        Self::Time(Ring::default())
    }
}

impl Window {
    /// An empty window of the same kind.
    pub(super) fn emptied(&self) -> Self {
        match self {
            Self::Time(_) => Self::default(),
            Self::Count(fifo) => Self::Count(Fifo::new(fifo.size)),
        }
    }

    /// Adds an outcome, in the bucket `bucket` if there are such.
    pub(super) fn count(&mut self, bucket: u64, failed: bool, slow: bool) {
        match self {
            Self::Time(ring) => {
                ring.advance(bucket);
                let mut one = Counts::default();
                one.count(failed, slow);
                ring.add(one);
            }
            Self::Count(fifo) => fifo.push(failed, slow),
        }
    }

    /// What the record holds of it.
    #[must_use]
    pub fn sum(&self) -> Counts {
        match self {
            Self::Time(ring) => ring.sum(),
            Self::Count(fifo) => fifo.sum(),
        }
    }
}

/// The number of the bucket that `now` is in.
pub(super) fn bucket_of(now: Moment, length: Nanos) -> u64 {
    now.0.checked_div(length.0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tallys_differences_are_what_was_counted(
            start: u64,
            outcomes in proptest::collection::vec(any::<(bool, bool)>(), 0..300),
        ) {
            let mut tally = start;
            let mut counts = Counts::default();
            for (failed, slow) in outcomes {
                tally = tally.wrapping_add_signed(weight(failed, slow));
                counts.count(failed, slow);
                prop_assert_eq!(between(start, tally), Some(counts));
            }
        }

        #[test]
        fn a_count_window_is_a_list_of_the_last_calls(
            size in 1u32..200,
            noise: u64,
            outcomes in proptest::collection::vec(any::<(bool, bool)>(), 0..500),
        ) {
            let mut fifo = Fifo {
                failed: [noise; WORDS],
                slow: [!noise; WORDS],
                ..Fifo::new(size)
            }
            .repaired();
            let mut list = Vec::new();
            for (failed, slow) in outcomes {
                fifo.push(failed, slow);
                list.push((failed, slow));
                let last = &list[list.len().saturating_sub(size as usize)..];
                let expected = Counts {
                    calls: last.len() as u32,
                    failures: last.iter().filter(|(failed, _)| *failed).count() as u32,
                    slow: last.iter().filter(|(_, slow)| *slow).count() as u32,
                };
                prop_assert_eq!(fifo.sum(), expected);
                prop_assert_eq!(fifo.repaired(), fifo, "what it writes needs no repair");
            }
        }
    }

    #[test]
    fn a_tally_that_was_set_back_says_nothing() {
        let start = (0..7).fold(0u64, |tally, n| {
            tally.wrapping_add_signed(weight(n < 3, false))
        });
        assert_eq!(between(start, 0), None);
        assert_eq!(between(start, u64::MAX), None);
        let full = (1u64 << FIELD) - 1;
        assert_eq!(
            between(5, 5 + (full << (2 * FIELD))),
            Some(Counts {
                calls: full as u32,
                failures: 0,
                slow: 0
            })
        );
        assert_eq!(between(5, 5 + ((full + 1) << (2 * FIELD))), None);
    }
}
