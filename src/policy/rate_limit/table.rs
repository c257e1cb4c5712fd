//! The buckets of all keys of a limit, in shared data of bounded size.
//!
//! A key's hash names a set of at most [`WAYS`] slots, which is one record; the whole hash is kept in the slot as its tag. A record
//! starts with one slot and grows by use, so that memory follows the keys that are there, up to the bound.
//!
//! A key without a slot has a full bucket. When it needs a slot and its set has none left, it replaces the slot whose bucket will be
//! full soonest: mostly one that is full already, which is forgotten for free. If it still owed tokens, its debt is lost, and the
//! caller counts that.
//!
//! The table has room for half as many keys again as asked for, so that sets seldom fill before the table does: with `max_keys` keys
//! in debt at once, under 1 % of them find their set full.
//!
//! Record: version, 7 bytes of zero, then per slot the tag and the arrival time, little-endian u64 each.

use super::gcra::{self, Arrival, Gcra, Take, Verdict};
use crate::base::hash::{of_names, place};
use crate::base::time::Nanos;
use crate::host::{Clock, SharedData};
use crate::store::{self, Contended, Key, Kind, Step};

/// Slots of a set: a scan of 16 costs little beside the host call that fetches them.
pub const WAYS: u32 = 16;

const VERSION: u8 = 1;
const HEADER: usize = 8;
const SLOT: usize = 16;

/// Where the buckets of a limit are.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    owner: u64,
    sets: u32,
    ways: u32,
}

/// A request to a bucket, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taking {
    /// The verdict on the cost.
    pub verdict: Verdict,
    /// What was taken, the extra tokens included.
    pub take: Take,
    /// Tokens taken beyond the cost.
    pub extra: u64,
    /// What the key did to the table.
    pub placement: Placement,
}

/// What a new key did to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The key had its slot, or needed none.
    Known,
    /// A slot was added.
    Added,
    /// A slot whose bucket was full was reused.
    Reused,
    /// A key that still owed tokens was forgotten.
    Evicted,
}

impl Table {
    /// The table of the limit `name`, for `max_keys` keys.
    #[must_use]
    pub fn new(name: &str, namespace: &str, max_keys: u32) -> Self {
        let max_keys = max_keys.max(1);
        let slots = if max_keys <= WAYS { max_keys } else { max_keys.saturating_add(max_keys.div_ceil(2)) };
        // The size is part of the name: a table of another size files its keys elsewhere.
        let owner = of_names(&[name, namespace]) ^ u64::from(max_keys).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { owner, sets: slots.div_ceil(WAYS), ways: slots.min(WAYS) }
    }

    /// The most keys that it can hold.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.sets.saturating_mul(self.ways)
    }

    /// Takes `cost` tokens, and `extra` ones beyond if there are as many, from the bucket of the key with this hash.
    ///
    /// # Errors
    /// [`Contended`]: nothing was taken.
    pub fn take<H: SharedData>(
        &self,
        host: &H,
        hash: u64,
        bucket: &Gcra,
        now: Nanos,
        cost: u64,
        extra: u64,
    ) -> Result<Taking, Contended> {
        store::update(host, &self.record(hash), |bytes| {
            let mut set = Set::of(bytes);
            let before = set.arrival(hash).unwrap_or(0);
            let (verdict, take, extra) = bucket.take_with(before, now, cost, extra);
            if take.after == before {
                return Step::Keep(Taking { verdict, take, extra, placement: Placement::Known });
            }
            let placement = set.put(hash, take.after, self.ways, now);
            Step::Write(Taking { verdict, take, extra, placement })
        })
    }

    /// Undoes a take made at `then`. The bound of the bucket holds throughout: what others drew meanwhile may make the refund smaller
    /// by the tokens that would have flowed over.
    ///
    /// # Errors
    /// [`Contended`]: the tokens stay taken.
    pub fn refund<H: SharedData + Clock>(&self, host: &H, hash: u64, take: Take, then: Nanos) -> Result<(), Contended> {
        if take.spent == 0 {
            return Ok(());
        }
        store::update(host, &self.record(hash), |bytes| {
            let mut set = Set::of(bytes);
            // The clock is read here, in the loop: what counts is how late the refund is really written.
            let elapsed = host.monotonic().since(then);
            match set.arrival(hash) {
                Some(current) => {
                    set.put(hash, take.refunded(current, elapsed), self.ways, then);
                    Step::Write(())
                }
                // Evicted meanwhile: its debt is forgotten, and with it ours.
                None => Step::Keep(()),
            }
        })
    }

    fn record(&self, hash: u64) -> Key {
        Key::new(Kind::RateLimit, self.owner, place(hash, self.sets))
    }
}

/// A set of slots, over the record's bytes.
struct Set<'a>(&'a mut Vec<u8>);

impl<'a> Set<'a> {
    /// Anything but a whole record of this version is an empty set.
    fn of(bytes: &'a mut Vec<u8>) -> Self {
        let whole = bytes.len().checked_sub(HEADER).is_some_and(|n| n.is_multiple_of(SLOT));
        if !whole || bytes.first() != Some(&VERSION) {
            bytes.clear();
            bytes.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0]);
        }
        Self(bytes)
    }

    fn slots(&self) -> impl Iterator<Item = (u64, Arrival)> {
        let (slots, _) = self.0.get(HEADER..).unwrap_or(&[]).as_chunks::<SLOT>();
        slots.iter().map(|slot| {
            let both = u128::from_le_bytes(*slot);
            #[allow(clippy::cast_possible_truncation, reason = "the halves of the slot")]
            (both as u64, (both >> 64) as u64)
        })
    }

    fn arrival(&self, tag: u64) -> Option<Arrival> {
        self.slots().find(|(t, _)| *t == tag).map(|(_, arrival)| arrival)
    }

    fn put(&mut self, tag: u64, arrival: Arrival, ways: u32, now: Nanos) -> Placement {
        let mut victim: Option<(usize, Arrival)> = None;
        let mut count = 0u32;
        let mut own = None;
        for (at, (t, a)) in self.slots().enumerate() {
            if t == tag {
                own = Some(at);
                break;
            }
            if victim.is_none_or(|(_, least)| a < least) {
                victim = Some((at, a));
            }
            count = count.saturating_add(1);
        }
        let bytes = u128::to_le_bytes(u128::from(arrival) << 64 | u128::from(tag));
        let (at, placement) = match (own, victim) {
            (Some(at), _) => (at, Placement::Known),
            (None, Some((at, owed))) if count >= ways => {
                (at, if gcra::is_full(owed, now) { Placement::Reused } else { Placement::Evicted })
            }
            _ => {
                self.0.extend_from_slice(&bytes);
                return Placement::Added;
            }
        };
        let (slots, _) = self.0.get_mut(HEADER..).unwrap_or(&mut []).as_chunks_mut::<SLOT>();
        if let Some(slot) = slots.get_mut(at) {
            *slot = bytes;
        }
        placement
    }
}
