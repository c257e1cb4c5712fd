//! Slow start: the share of an endpoint that is new, or has come back, grows step by step.
//!
//! Over the window its weight grows linearly from a tenth to the whole (Envoy's slow start with an
//! aggression of 1 and its minimum of 10 %). An endpoint is new if it was not in the previous
//! configuration; none is new when the proxy starts. It has come back when its breaker closes after
//! being open.
//!
//! One record per upstream holds when its endpoints were first seen, so that all workers agree and
//! a reload does not begin anew.

use crate::base::hash::of_names;
use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::host::SharedData;
use crate::store::{self, RecordKey, RecordKind, Step};

/// The least share of a weight, as its divisor.
const FLOOR: u64 = 10;

/// The most endpoints that a record holds.
const MOST: usize = 1_000;

const VERSION: u8 = 1;

/// How many steps a ramp has: the precision of its weights.
pub const STEPS: u64 = 128;

/// The weight at `now` of an endpoint that is healthy since `well_since`; zero = it always was.
#[must_use]
pub fn ramped(weight: u32, well_since: Moment, window: Nanos, now: Moment) -> u32 {
    if !ramps(well_since, window, now) {
        return weight;
    }
    let grown = u128::from(weight).saturating_mul(now.since(well_since).0.into());
    let grown = grown
        .checked_div(window.0.into())
        .and_then(|grown| u32::try_from(grown).ok())
        .unwrap_or(weight);
    let floor = u64::from(weight)
        .checked_div(FLOOR)
        .and_then(|floor| u32::try_from(floor).ok())
        .unwrap_or(0);
    grown.max(floor).clamp(weight.min(1), weight)
}

/// Whether it is below its full weight. A `well_since` in the future does not count: the clock has
/// stepped back.
#[must_use]
pub fn ramps(well_since: Moment, window: Nanos, now: Moment) -> bool {
    well_since > Moment::ZERO && well_since.is_within(window, now)
}

/// When the endpoints of an upstream were first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstSeen(Vec<(u64, Moment)>);

impl FirstSeen {
    /// The record for these endpoints now: known ones keep their time, others are new, unless there
    /// was no record yet. Endpoints that are gone are forgotten.
    #[must_use]
    pub fn now(before: Option<Self>, endpoints: impl Iterator<Item = u64>, now: Moment) -> Self {
        let known = |id: u64| match &before {
            None => Moment::ZERO,
            Some(before) => before.of(id).unwrap_or(now),
        };
        let mut seen: Vec<_> = endpoints.take(MOST).map(|id| (id, known(id))).collect();
        sort::by_key(&mut seen, |seen| *seen);
        Self(seen)
    }

    /// When this one was first seen; `None`: never.
    #[must_use]
    pub fn of(&self, id: u64) -> Option<Moment> {
        let at = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.0.get(at).map(|(_, since)| *since)
    }

    /// Reads a record; `None` if it has another version or length.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, rest) = bytes.split_first()? else {
            return None;
        };
        let (pairs, []) = rest.as_chunks::<8>() else {
            return None;
        };
        let pairs = pairs.as_chunks::<2>().0.iter().take(MOST);
        let mut seen: Vec<_> = pairs
            .map(|[id, since]| (u64::from_le_bytes(*id), Moment(u64::from_le_bytes(*since))))
            .collect();
        sort::by_key(&mut seen, |seen| *seen);
        Some(Self(seen))
    }

    /// Writes the record.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.push(VERSION);
        for number in self.0.iter().flat_map(|(id, since)| [*id, since.0]) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// When the endpoints `ids` of an upstream were first seen, over all workers and reloads. `None`:
/// the record stays contended, and no endpoint is taken for new.
pub fn first_seen<H: SharedData, I: Iterator<Item = u64>>(
    host: &H,
    upstream: &str,
    ids: impl Fn() -> I,
    now: Moment,
) -> Option<FirstSeen> {
    let key = RecordKey::new(RecordKind::FirstSeen, of_names(&[upstream]), 0);
    store::update(host, &key, |bytes| {
        let before = FirstSeen::decode(bytes);
        let seen = FirstSeen::now(before.clone(), ids(), now);
        if before.as_ref() == Some(&seen) {
            return Step::Keep(seen);
        }
        seen.encode(bytes);
        Step::Write(seen)
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ramp_is_a_straight_line_from_a_tenth() {
        let (since, window) = (Moment::from_secs(100), Nanos::from_secs(30));
        let at = |second: u64| ramped(1_000, since, window, since.plus(Nanos::from_secs(second)));
        assert_eq!(
            [0, 1, 3, 6, 15, 29, 30, 300].map(at),
            [100, 100, 100, 200, 500, 966, 1_000, 1_000]
        );
        assert_eq!(
            ramped(1_000, Moment::ZERO, window, Moment::from_secs(1)),
            1_000,
            "there from the start"
        );
        assert_eq!(
            ramped(1_000, since, window, Moment::from_secs(50)),
            1_000,
            "the clock has stepped back"
        );
        assert_eq!(ramped(0, since, window, since), 0, "drained is drained");
        assert_eq!(ramped(1, since, window, since), 1);
    }

    #[test]
    fn only_what_comes_later_is_new() {
        let (start, later) = (Moment::from_secs(10), Moment::from_secs(20));
        let first = FirstSeen::now(None, [1, 2].into_iter(), start);
        assert_eq!(
            (first.of(1), first.of(2)),
            (Some(Moment::ZERO), Some(Moment::ZERO))
        );
        let second = FirstSeen::now(Some(first), [2, 3].into_iter(), later);
        assert_eq!(
            (second.of(1), second.of(2), second.of(3)),
            (None, Some(Moment::ZERO), Some(later))
        );
        let last = Moment::from_secs(30);
        let third = FirstSeen::now(Some(second), [1, 3].into_iter(), last);
        assert_eq!(
            (third.of(1), third.of(3)),
            (Some(last), Some(later)),
            "who left and came back is new"
        );
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            seen in proptest::collection::btree_map(any::<u64>(), any::<u64>(), 0..20),
        ) {
            let seen = FirstSeen(
                seen.into_iter()
                    .map(|(id, since)| (id, Moment(since)))
                    .collect(),
            );
            let mut bytes = Vec::new();
            seen.encode(&mut bytes);
            prop_assert_eq!(FirstSeen::decode(&bytes), Some(seen));
        }

        #[test]
        fn any_bytes_are_read_sanely(bytes: Vec<u8>) {
            let _ = FirstSeen::decode(&bytes);
        }

        #[test]
        fn a_ramp_never_falls(
            weight in 0u32..1_024_000,
            window in 1u64..3_600_000,
            first in 0u64..4_000_000,
            more in 0u64..4_000_000,
        ) {
            let (since, window) = (Moment::from_secs(1), Nanos::from_millis(window));
            let at = |millis| {
                ramped(
                    weight,
                    since,
                    window,
                    since.plus(Nanos::from_millis(millis)),
                )
            };
            prop_assert!(at(first) <= at(first + more));
            prop_assert!(at(first) <= weight);
            prop_assert!(at(first) >= weight / 10);
        }
    }
}
