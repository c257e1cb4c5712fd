//! Streams: answers that have begun well and go on. An adaptive limit counts them for a while, and
//! then no more.
//!
//! It is there for those that wait to be answered. Streams that go on for hours (a websocket,
//! events for a browser), and large answers that are read slowly, would hold all of its places
//! while the upstream is idle, and there would be no answer by which it could rise. For the first
//! moments they do count: where an upstream sends headers at once and does its work after, those
//! are its work.
//!
//! They are counted in two batches, a young and an old one. When a batch has been the young one for
//! the bound, what is left of the old one counts no more. So each counts for once to twice the
//! bound, without a timer or an entry of its own.

use crate::base::key_map::KeyMap;
use crate::base::time::{Moment, Nanos};

/// The bound; less where the deadline is shorter.
pub const COUNTED: Nanos = Nanos::from_secs(2);

/// Answers of a worker that go on, and count.
#[derive(Debug, Default)]
pub struct Streams {
    /// The number of the young batch; the old one has the number before.
    number: u32,
    since: Moment,
    young: Batch,
    old: Batch,
}

/// Streams that began at about the same time.
#[derive(Debug, Default)]
pub struct Batch {
    /// How many.
    pub count: u64,
    /// Whose they are, where there are fair shares.
    pub keys: KeyMap,
}

impl Streams {
    /// An answer goes on: the number of its batch.
    pub fn begin(&mut self, key: Option<u32>) -> u32 {
        self.young.count = self.young.count.saturating_add(1);
        if let Some(key) = key {
            self.young.keys.add(key, 1);
        }
        self.number
    }

    /// An answer of this batch has ended: whether it counted until now.
    pub fn end(&mut self, number: u32, key: Option<u32>) -> bool {
        let batch = match self.number.wrapping_sub(number) {
            0 => &mut self.young,
            1 => &mut self.old,
            _ => return false,
        };
        batch.count = batch.count.saturating_sub(1);
        if let Some(key) = key {
            batch.keys.take(key);
        }
        true
    }

    /// Those that count no more from now on.
    pub fn turn(&mut self, now: Moment, bound: Nanos) -> Batch {
        if self.since.is_within(bound, now) {
            return Batch::default();
        }
        self.since = now;
        self.number = self.number.wrapping_add(1);
        let young = std::mem::take(&mut self.young);
        std::mem::replace(&mut self.old, young)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_counts_for_once_to_twice_the_bound() {
        let at = |seconds| Moment::ZERO.plus(Nanos::from_secs(seconds));
        let bound = Nanos::from_secs(2);
        let mut streams = Streams::default();
        assert_eq!(streams.turn(at(10), bound).count, 0);
        let [first, second] = [7, 8].map(|key| streams.begin(Some(key)));
        assert_eq!(streams.turn(at(11), bound).count, 0);
        assert!(streams.end(first, Some(7)), "it counted");
        assert_eq!(streams.turn(at(12), bound).count, 0);
        let third = streams.begin(None);
        let mut over = streams.turn(at(14), bound);
        assert_eq!((over.count, over.keys.take(8)), (1, Some(0)));
        assert!(!streams.end(second, Some(8)), "it counts no more");
        assert!(streams.end(third, None));
        assert_eq!(streams.turn(at(99), bound).count, 0);
        // A clock that steps back.
        let fourth = streams.begin(None);
        let left: u64 = (0..2).map(|_| streams.turn(at(1), Nanos::ZERO).count).sum();
        assert_eq!((left, streams.end(fourth, None)), (1, false));
    }
}
