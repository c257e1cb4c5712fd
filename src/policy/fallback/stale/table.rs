//! The kept responses, in shared data of bounded size.
//!
//! A response's tag names a set. A set is one small record, its index, and a record for each of its
//! slots. The index lists for each response its tag, its variant, its slot, its size and when it
//! was kept and used; the slot's record holds the bytes. So a worker reads and writes only the body
//! that it needs.
//!
//! **The bound.** Each set may hold its share of the bytes. At every moment a slot's record holds
//! at most the bytes that the index lists for it, wherever a worker is interrupted. A worker that
//! puts a response first empties the slots that it takes and leaves its own ticket there, then
//! writes the index, and then writes the bytes only if its ticket is still there. A worker that
//! comes late finds another's ticket and gives up; the index then lists bytes that are not there,
//! until the response is kept again or evicted.
//!
//! A full set evicts a response of the client who holds most of the set: the least recently used of
//! those. A response is held by the client who had it kept first. So one client's made-up requests
//! push out its own. The time of use is written at most once a second.
//!
//! Records: an index is a version byte, 7 bytes of zero, and per response tag, variant, ticket,
//! times of keeping and use (little-endian u64 each), size (u32), slot (u8), client (a hash, u24). A
//! slot is a version byte, 1 if it is filled, the ticket (u64), and the bytes.

use crate::base::hash::{of_names, place};
use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::host::SharedData;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};
use std::cmp::Reverse;

/// The most slots of a set: its index is at most 3 KiB.
pub const WAYS: u32 = 64;
const SLOTS: std::ops::Range<u8> = 0..64;
/// The most variants of one response.
const VARIANTS: usize = 8;
/// The least slots of a set, if there is more than one set: with fewer, the evicted response would
/// soon be wanted again.
const LEAST_WAYS: u32 = 16;
/// How many of the largest responses fit into a set, if there is more than one set.
const LARGEST: usize = 4;

const VERSION: u8 = 1;
const INDEX_HEAD: usize = 8;
const ENTRY: usize = 48;
/// Bytes of a slot beside the response.
pub const SLOT_HEAD: usize = 10;
const EMPTY: u8 = 0;
const FILLED: u8 = 1;
/// What an index holds of a client's hash.
const CLIENT_BITS: u32 = 24;
/// The precision of the times of use.
const TOUCH: Nanos = Nanos::from_secs(1);

/// Where the responses of a fallback are kept.
#[derive(Clone, Copy, Debug)]
pub struct StaleTable {
    owner: u64,
    sets: u32,
    ways: usize,
    /// Bytes of a set.
    share: usize,
}

/// What keeping a response changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeChange {
    /// Responses more, or less.
    pub entries: i64,
    /// Bytes more, or less.
    pub bytes: i64,
    /// Other responses that were evicted.
    pub evicted: i64,
}

/// A response, as a set's index lists it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct StaleEntry {
    tag: u64,
    variant: u64,
    ticket: u64,
    kept: Moment,
    used: Moment,
    size: u32,
    slot: u8,
    /// A hash of the client who had it kept first, in 24 bits.
    client: u32,
}

/// What a response is found by, and who had it kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Hash of its request's key.
    pub tag: u64,
    /// Hash of what else it varies by.
    pub variant: u64,
    /// Hash of the client.
    pub client: u64,
}

impl StaleTable {
    /// A table for `entries` responses of at most `largest` bytes, and `bytes` in all.
    #[must_use]
    pub fn new(name: &str, entries: u32, bytes: usize, largest: usize) -> Self {
        let fitting = bytes
            .checked_div(largest.saturating_mul(LARGEST))
            .unwrap_or(0);
        let sets = u32::try_from(fitting)
            .unwrap_or(u32::MAX)
            .clamp(1, (entries / LEAST_WAYS).max(1));
        let ways = entries.checked_div(sets).unwrap_or(0).clamp(1, WAYS);
        let share = usize::try_from(sets)
            .ok()
            .and_then(|sets| bytes.checked_div(sets))
            .unwrap_or(0);
        Self {
            owner: of_names(&["stale", name]),
            sets,
            ways: usize::try_from(ways).unwrap_or(1),
            share,
        }
    }

    /// Empties the sets that a former configuration of the same name had beyond those of today.
    /// Returns what changed.
    ///
    /// # Errors
    /// [`Contended`]: some of them are not empty yet.
    pub fn adopt<H: SharedData>(&self, host: &H) -> Result<SizeChange, Contended> {
        let size = RecordKey::new(RecordKind::StaleSize, self.owner, 0);
        let known = store::read(host, &size)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_le_bytes);
        let mut change = SizeChange::default();
        // More sets than there can be: haven did not write this.
        for set in self.sets..known.min(1 << 16) {
            let key = RecordKey::new(RecordKind::StaleIndex, self.owner, set);
            if store::read(host, &key).is_none_or(|bytes| bytes.len() <= INDEX_HEAD) {
                continue;
            }
            let gone = store::update(host, &key, |bytes| match self.clear(host, set, bytes) {
                Ok(change) => {
                    write(bytes, &[]);
                    Step::Write(Ok(change))
                }
                Err(Contended) => Step::Keep(Err(Contended)),
            })??;
            change.entries = change.entries.saturating_add(gone.entries);
            change.bytes = change.bytes.saturating_add(gone.bytes);
        }
        store::update(host, &size, |bytes| {
            if bytes.as_slice() == self.sets.to_le_bytes() {
                return Step::Keep(());
            }
            bytes.clear();
            bytes.extend_from_slice(&self.sets.to_le_bytes());
            Step::Write(())
        })?;
        Ok(change)
    }

    /// Keeps `bytes` for this place, instead of what was there. `ticket` is random, and
    /// used by this call alone. `None`: it does not fit, or another worker was faster.
    ///
    /// # Errors
    /// [`Contended`]: nothing was kept.
    pub fn put<H: SharedData>(
        &self,
        host: &H,
        place_of: Place,
        bytes: &[u8],
        ticket: u64,
        now: Moment,
    ) -> Result<Option<SizeChange>, Contended> {
        let size = bytes.len().saturating_add(SLOT_HEAD);
        let Some(listed) = u32::try_from(size).ok().filter(|_| size <= self.share) else {
            return Ok(None);
        };
        let Place {
            tag,
            variant,
            client,
        } = place_of;
        let set = place(tag, self.sets);
        let (slot, change) = store::update(
            host,
            &RecordKey::new(RecordKind::StaleIndex, self.owner, set),
            |index| match self.list(
                host,
                set,
                index,
                StaleEntry {
                    tag,
                    variant,
                    ticket,
                    kept: now,
                    used: now,
                    size: listed,
                    slot: 0,
                    client: place(client, 1 << CLIENT_BITS),
                },
            ) {
                Ok(done) => Step::Write(Ok(done)),
                Err(Contended) => Step::Keep(Err(Contended)),
            },
        )??;
        let filled = store::update(host, &self.slot(set, slot), |record| {
            if record.as_slice() != head(EMPTY, ticket) {
                return Step::Keep(());
            }
            record.clear();
            record.extend_from_slice(&head(FILLED, ticket));
            record.extend_from_slice(bytes);
            Step::Write(())
        });
        filled.map(|()| Some(change))
    }

    /// The newest response kept for this tag that `accept` takes.
    pub fn find<H: SharedData, T>(
        &self,
        host: &H,
        tag: u64,
        now: Moment,
        mut accept: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let set = place(tag, self.sets);
        let index = RecordKey::new(RecordKind::StaleIndex, self.owner, set);
        let mut entries = read(&store::read(host, &index)?)?;
        entries.retain(|e| e.tag == tag);
        sort::by_key(&mut entries, |e| Reverse(e.kept));
        for entry in entries {
            let Some(record) = store::read(host, &self.slot(set, entry.slot)) else {
                continue;
            };
            let Some((&[VERSION, FILLED, ..], bytes)) = record.split_first_chunk::<SLOT_HEAD>()
            else {
                continue;
            };
            let Some(found) = accept(bytes) else { continue };
            if now.since(entry.used) > TOUCH {
                // If this write loses, the entry keeps a slightly older time of use.
                let _ = store::update(host, &index, |bytes| {
                    let mut entries = read(bytes).unwrap_or_default();
                    let Some(own) = entries.iter_mut().find(|e| e.ticket == entry.ticket) else {
                        return Step::Keep(());
                    };
                    own.used = now;
                    write(bytes, &entries);
                    Step::Write(())
                });
            }
            return Some(found);
        }
        None
    }

    /// Lists a response: makes room, and takes a slot for it.
    fn list<H: SharedData>(
        &self,
        host: &H,
        set: u32,
        index: &mut Vec<u8>,
        mut new: StaleEntry,
    ) -> Result<(u8, SizeChange), Contended> {
        let mut entries = self.entries(host, set, index, new.ticket)?;
        let before = totals(&entries);
        let mut evicted = 0i64;
        if let Some(own) = entries
            .iter()
            .position(|e| (e.tag, e.variant) == (new.tag, new.variant))
        {
            let former = entries.swap_remove(own);
            new.client = former.client;
            self.vacate(host, set, former.slot, new.ticket)?;
        }
        let size = usize::try_from(new.size).unwrap_or(usize::MAX);
        loop {
            let crowded = entries.len() >= self.ways;
            let full = crowded || totals(&entries).1.saturating_add(size) > self.share;
            let many = entries.iter().filter(|e| e.tag == new.tag).count() >= VARIANTS;
            let may_go = |e: &StaleEntry| full || (many && e.tag == new.tag);
            let weight = |e: &StaleEntry| if full && !crowded { e.size } else { 1 };
            let held_by = |client: u32| {
                let its = entries.iter().filter(|e| may_go(e)).chain([&new]);
                let its = its.filter(|e| e.client == client);
                its.map(weight).fold(0, u32::saturating_add)
            };
            let goes = entries.iter().enumerate().filter(|(_, e)| may_go(e));
            let Some((at, _)) = goes.min_by_key(|(_, e)| (Reverse(held_by(e.client)), e.used))
            else {
                break;
            };
            self.vacate(host, set, entries.swap_remove(at).slot, new.ticket)?;
            evicted = evicted.saturating_add(1);
        }
        let slot = SLOTS
            .into_iter()
            .find(|slot| entries.iter().all(|e| e.slot != *slot))
            .ok_or(Contended)?;
        self.vacate(host, set, slot, new.ticket)?;
        entries.push(StaleEntry { slot, ..new });
        write(index, &entries);
        let after = totals(&entries);
        let change = SizeChange {
            entries: count(after.0).saturating_sub(count(before.0)),
            bytes: count(after.1).saturating_sub(count(before.1)),
            evicted,
        };
        Ok((slot, change))
    }

    /// Empties all slots that a set's index lists. Returns what changed.
    fn clear<H: SharedData>(
        &self,
        host: &H,
        set: u32,
        index: &[u8],
    ) -> Result<SizeChange, Contended> {
        let entries = self.entries(host, set, index, 0)?;
        for entry in &entries {
            self.vacate(host, set, entry.slot, 0)?;
        }
        let (entries, bytes) = totals(&entries);
        Ok(SizeChange {
            entries: count(entries).saturating_neg(),
            bytes: count(bytes).saturating_neg(),
            evicted: 0,
        })
    }

    /// The entries of the index. If it cannot be read there are none, and all slots are emptied,
    /// since their contents are unknown.
    fn entries<H: SharedData>(
        &self,
        host: &H,
        set: u32,
        index: &[u8],
        ticket: u64,
    ) -> Result<Vec<StaleEntry>, Contended> {
        if index.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(entries) = read(index) {
            return Ok(entries);
        }
        for slot in SLOTS {
            self.vacate(host, set, slot, ticket)?;
        }
        Ok(Vec::new())
    }

    /// Empties a slot and leaves the ticket there.
    fn vacate<H: SharedData>(
        &self,
        host: &H,
        set: u32,
        slot: u8,
        ticket: u64,
    ) -> Result<(), Contended> {
        store::update(host, &self.slot(set, slot), |record| {
            record.clear();
            record.extend_from_slice(&head(EMPTY, ticket));
            Step::Write(())
        })
    }

    fn slot(&self, set: u32, slot: u8) -> RecordKey {
        RecordKey::new(
            RecordKind::StaleSlot,
            self.owner,
            set.wrapping_mul(WAYS).wrapping_add(slot.into()),
        )
    }
}

fn head(state: u8, ticket: u64) -> [u8; SLOT_HEAD] {
    let mut head = [VERSION, state, 0, 0, 0, 0, 0, 0, 0, 0];
    head.iter_mut()
        .skip(2)
        .zip(ticket.to_le_bytes())
        .for_each(|(to, from)| *to = from);
    head
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Responses and bytes.
fn totals(entries: &[StaleEntry]) -> (usize, usize) {
    let size = |e: &StaleEntry| usize::try_from(e.size).unwrap_or(usize::MAX);
    (
        entries.len(),
        entries.iter().map(size).fold(0, usize::saturating_add),
    )
}

fn read(index: &[u8]) -> Option<Vec<StaleEntry>> {
    let (&[VERSION, 0, 0, 0, 0, 0, 0, 0], list) = index.split_first_chunk::<INDEX_HEAD>()? else {
        return None;
    };
    let (entries, []) = list.as_chunks::<ENTRY>() else {
        return None;
    };
    let mut slots = 0u64;
    let mut read = Vec::with_capacity(entries.len());
    for entry in entries {
        let (numbers, _) = entry.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || numbers.next().unwrap_or(0);
        let (tag, variant, ticket, kept, used, rest) =
            (next(), next(), next(), next(), next(), next());
        let slot = u8::try_from(rest >> 32 & 0xff)
            .ok()
            .filter(|slot| u32::from(*slot) < WAYS)?;
        let client = u32::try_from(rest >> 40).ok()?;
        let bit = 1u64.checked_shl(slot.into())?;
        if slots & bit != 0 {
            return None;
        }
        slots |= bit;
        #[allow(clippy::cast_possible_truncation, reason = "the lower half")]
        let size = rest as u32;
        read.push(StaleEntry {
            tag,
            variant,
            ticket,
            kept: Moment(kept),
            used: Moment(used),
            size,
            slot,
            client,
        });
    }
    Some(read)
}

fn write(index: &mut Vec<u8>, entries: &[StaleEntry]) {
    index.clear();
    index.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0]);
    for e in entries {
        let rest = u64::from(e.size) | u64::from(e.slot) << 32 | u64::from(e.client) << 40;
        index.extend(
            [e.tag, e.variant, e.ticket, e.kept.0, e.used.0, rest]
                .into_iter()
                .flat_map(u64::to_le_bytes),
        );
    }
}
