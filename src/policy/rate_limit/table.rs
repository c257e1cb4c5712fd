//! The buckets of all keys of a limit, in shared data of bounded size.
//!
//! A key's hash names a set of at most [`WAYS`] slots, which is one record; the whole hash is kept
//! in the slot as its tag. A record starts with one slot and grows by use, so that memory follows
//! the keys that are there, up to the bound.
//!
//! A key without a slot owes nothing. When it needs a slot and its set has none left, it replaces
//! the one that will owe nothing soonest: mostly one that owes nothing already, which is forgotten
//! for free. Of several that end at the same time, as windows do, it takes the one with the least
//! count. If it still owed something, its debt is lost, and the engine counts an eviction.
//!
//! The table has room for half as many keys again as asked for, so that sets seldom fill before the
//! table does: with `max_keys` keys in debt at once, under 1 % of them find their set full.
//!
//! Record: version, 7 bytes of zero, then per slot the tag and the state, little-endian u64 each.
//! Version 1 has states of one number (slots of 16 bytes), version 2 states of two (24 bytes). The
//! algorithm is part of the record's name, so that a limit whose algorithm changes in a reload
//! starts afresh, and one whose parameters change goes on.

use super::algorithm::Algorithm;
use super::gcra::Wish;
use super::take::{BucketState, Take, Verdict};
use crate::base::hash::{of_names, place};
use crate::base::time::Moment;
use crate::host::{Clock, SharedData};
use crate::store::{self, Contended, RecordKey, RecordKind, Step};

/// Slots of a set: a scan of 16 costs little beside the host call that fetches them.
pub const WAYS: u32 = 16;

const NARROW: u8 = 1;
const WIDE: u8 = 2;
const HEADER: usize = 8;
const NARROW_SLOT: usize = 16;
const WIDE_SLOT: usize = 24;

/// Where the buckets of a limit are.
#[derive(Clone, Copy, Debug)]
pub struct BucketTable {
    owner: u64,
    sets: u32,
    ways: u32,
    wide: bool,
}

/// The result of a take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeResult {
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
    /// A slot that owed nothing was reused.
    Reused,
    /// A key that still owed something was forgotten.
    Evicted,
}

impl BucketTable {
    /// The table of the limit `name`, for `max_keys` keys.
    #[must_use]
    pub fn new(name: &str, namespace: &str, algorithm: &Algorithm, max_keys: u32) -> Self {
        let max_keys = max_keys.max(1);
        let slots = if max_keys <= WAYS {
            max_keys
        } else {
            max_keys.saturating_add(max_keys.div_ceil(2))
        };
        // The size is part of the name: a table of another size has its keys in other sets.
        let owner = of_names(&[name, namespace, algorithm.word()])
            ^ u64::from(max_keys).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            owner,
            sets: slots.div_ceil(WAYS),
            ways: slots.min(WAYS),
            wide: algorithm.is_wide(),
        }
    }

    /// Takes `cost` tokens, and some beyond for a lease if there are enough, from the key with this
    /// hash.
    ///
    /// # Errors
    /// [`Contended`]: nothing was taken.
    pub fn take<H: SharedData>(
        &self,
        host: &H,
        hash: u64,
        algorithm: &Algorithm,
        now: Moment,
        cost: u64,
        wish: Wish,
    ) -> Result<TakeResult, Contended> {
        store::update(host, &self.record(hash), |bytes| {
            let mut set = SlotSet::of(bytes, self.wide);
            let before = set.state(hash).unwrap_or_default();
            let (verdict, take, extra) = algorithm.take_with(before, now, cost, wish);
            if take.after == before {
                return Step::Keep(TakeResult {
                    verdict,
                    take,
                    extra,
                    placement: Placement::Known,
                });
            }
            let placement = set.put(hash, take.after, self.ways, |state| {
                algorithm.owes_nothing(state, now)
            });
            Step::Write(TakeResult {
                verdict,
                take,
                extra,
                placement,
            })
        })
    }

    /// The verdict that [`BucketTable::take`] would return.
    pub fn peek<H: SharedData>(
        &self,
        host: &H,
        hash: u64,
        algorithm: &Algorithm,
        now: Moment,
        cost: u64,
    ) -> Verdict {
        let mut bytes = store::read(host, &self.record(hash)).unwrap_or_default();
        let state = SlotSet::of(&mut bytes, self.wide)
            .state(hash)
            .unwrap_or_default();
        algorithm.take_with(state, now, cost, Wish::default()).0
    }

    /// Undoes a take made at `then`. The bound of the algorithm holds throughout: takes in between
    /// may make the refund smaller.
    ///
    /// # Errors
    /// [`Contended`]: the tokens stay taken.
    pub fn refund<H: SharedData + Clock>(
        &self,
        host: &H,
        hash: u64,
        algorithm: &Algorithm,
        take: Take,
        then: Moment,
    ) -> Result<(), Contended> {
        if take.spent == 0 {
            return Ok(());
        }
        store::update(host, &self.record(hash), |bytes| {
            let mut set = SlotSet::of(bytes, self.wide);
            // The clock is read here, in the loop: what counts is how late the refund is really
            // written.
            let elapsed = host.monotonic().since(then);
            // Evicted meanwhile: its debt is forgotten, and with it ours.
            let Some(current) = set.state(hash) else {
                return Step::Keep(());
            };
            let refunded = algorithm.refunded(take, current, elapsed);
            if refunded == current {
                return Step::Keep(());
            }
            set.put(hash, refunded, self.ways, |_| false);
            Step::Write(())
        })
    }

    fn record(&self, hash: u64) -> RecordKey {
        RecordKey::new(RecordKind::RateLimit, self.owner, place(hash, self.sets))
    }
}

/// A set of slots, over the record's bytes.
struct SlotSet<'a> {
    bytes: &'a mut Vec<u8>,
    wide: bool,
}

impl<'a> SlotSet<'a> {
    /// Anything but a whole record of this version is an empty set.
    fn of(bytes: &'a mut Vec<u8>, wide: bool) -> Self {
        let (version, slot) = if wide {
            (WIDE, WIDE_SLOT)
        } else {
            (NARROW, NARROW_SLOT)
        };
        let whole = bytes
            .len()
            .checked_sub(HEADER)
            .is_some_and(|n| n.is_multiple_of(slot));
        if !whole || bytes.first() != Some(&version) {
            bytes.clear();
            bytes.extend_from_slice(&[version, 0, 0, 0, 0, 0, 0, 0]);
        }
        Self { bytes, wide }
    }

    const fn slot_size(&self) -> usize {
        if self.wide { WIDE_SLOT } else { NARROW_SLOT }
    }

    /// The tags and states of all slots.
    fn slots(&self) -> impl Iterator<Item = (u64, BucketState)> {
        let slots = self
            .bytes
            .get(HEADER..)
            .unwrap_or(&[])
            .chunks_exact(self.slot_size());
        slots.map(|slot| {
            let (numbers, _) = slot.as_chunks::<8>();
            let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
            let mut next = || numbers.next().unwrap_or(0);
            (
                next(),
                BucketState {
                    until: next(),
                    rest: next(),
                },
            )
        })
    }

    fn state(&self, tag: u64) -> Option<BucketState> {
        self.slots()
            .find(|(t, _)| *t == tag)
            .map(|(_, state)| state)
    }

    fn put(
        &mut self,
        tag: u64,
        state: BucketState,
        ways: u32,
        owes_nothing: impl Fn(BucketState) -> bool,
    ) -> Placement {
        let mut victim: Option<(usize, BucketState)> = None;
        let mut count = 0u32;
        let mut own = None;
        for (at, (t, s)) in self.slots().enumerate() {
            if t == tag {
                own = Some(at);
                break;
            }
            if victim.is_none_or(|(_, least)| s < least) {
                victim = Some((at, s));
            }
            count = count.saturating_add(1);
        }
        let mut bytes = [0; WIDE_SLOT];
        let numbers = [tag, state.until, state.rest]
            .into_iter()
            .flat_map(u64::to_le_bytes);
        bytes
            .iter_mut()
            .zip(numbers)
            .for_each(|(to, from)| *to = from);
        let size = self.slot_size();
        let bytes = bytes.get(..size).unwrap_or(&[]);
        let (at, placement) = match (own, victim) {
            (Some(at), _) => (at, Placement::Known),
            (None, Some((at, owed))) if count >= ways => (
                at,
                if owes_nothing(owed) {
                    Placement::Reused
                } else {
                    Placement::Evicted
                },
            ),
            _ => {
                self.bytes.extend_from_slice(bytes);
                return Placement::Added;
            }
        };
        let slots = self.bytes.get_mut(HEADER..).unwrap_or(&mut []);
        if let Some(slot) = slots.chunks_exact_mut(size).nth(at) {
            slot.copy_from_slice(bytes);
        }
        placement
    }
}
