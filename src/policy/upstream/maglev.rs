//! Maglev hashing: a table of which nearly nothing changes when an endpoint comes or goes (Eisenbud
//! et al., "Maglev: a fast and reliable software network load balancer", NSDI 2016, section 3.4),
//! with Envoy's weights: the same endpoints give the same table as in Envoy.
//!
//! A table is built once per configuration, from all configured endpoints, healthy or not. A key
//! whose owner is out of rotation goes to the next owner in the table that is in rotation. So all
//! other keys stay where they are, and the keys of an endpoint that is out are spread over all
//! others. 128 KiB for each level of an upstream, in each worker.
//!
//! **Bounded load** (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads",
//! 2018): an owner that already has `c` times its share of the requests in flight is passed over in
//! the same way, so that a hot key cannot overload its endpoint.

use super::EndpointList;
use super::choice::allowed;
use super::roster::{Pool, Roster, RosterEntry};
use crate::base::hash::{place, xxh64};
use crate::base::percent::Percent;
use crate::base::sort;
use std::cell::Cell;

/// Slots of a table, a prime: Envoy's default.
pub const SIZE: u32 = 65_537;

/// The most slots that a request reads; after that, the few endpoints in rotation are picked from
/// directly by the key.
const WALK: usize = 4_096;

/// The owners of slots, as indices of the upstream's endpoints.
#[derive(Clone, Debug, Default)]
pub struct MaglevTable {
    slots: Vec<u16>,
    /// By endpoint: the pick that found it full. A pick checks each endpoint once.
    full: Vec<Cell<u32>>,
    picks: Cell<u32>,
}

impl MaglevTable {
    /// The table of `endpoints`: name, index and weight. Those without a weight own nothing. `size`
    /// has to be a prime.
    #[must_use]
    pub fn new<'a>(endpoints: impl Iterator<Item = (&'a str, u16, u32)>, size: u32) -> Self {
        let size = u64::from(size);
        let mut owners: Vec<(&str, Owner)> = endpoints
            .filter(|(_, _, weight)| *weight > 0)
            .map(|(name, index, weight)| {
                let hash = |seed| xxh64(name.as_bytes(), seed);
                let next = hash(0).checked_rem(size).unwrap_or(0);
                let skip = hash(1)
                    .checked_rem(size.saturating_sub(1))
                    .unwrap_or(0)
                    .saturating_add(1);
                (
                    name,
                    Owner {
                        index,
                        weight: weight.into(),
                        target: 0,
                        next,
                        skip,
                    },
                )
            })
            .collect();
        // Sorted: the order decides which endpoint claims a slot first, and must not depend on the
        // order in the configuration.
        sort::by_key(&mut owners, |(name, _)| *name);
        let Some(most) = owners.iter().map(|(_, owner)| owner.weight).max() else {
            return Self::default();
        };
        let mut slots = vec![u16::MAX; usize::try_from(size).unwrap_or(0)];
        let mut left = slots.len();
        let mut round = 0u64;
        while left > 0 {
            round = round.saturating_add(1);
            for (_, owner) in &mut owners {
                if left == 0 || round.saturating_mul(owner.weight) < owner.target {
                    continue;
                }
                owner.target = owner.target.saturating_add(most);
                // The size is prime, so that the skip meets every slot, and one of them is free.
                while let Some(slot) = usize::try_from(owner.next)
                    .ok()
                    .and_then(|at| slots.get_mut(at))
                {
                    owner.next = owner
                        .next
                        .saturating_add(owner.skip)
                        .checked_rem(size)
                        .unwrap_or(0);
                    if *slot == u16::MAX {
                        *slot = owner.index;
                        left = left.saturating_sub(1);
                        break;
                    }
                }
            }
        }
        let endpoints = owners
            .iter()
            .map(|(_, owner)| usize::from(owner.index).saturating_add(1))
            .max()
            .unwrap_or(0);
        Self {
            slots,
            full: vec![Cell::new(0); endpoints],
            picks: Cell::new(0),
        }
    }

    /// The owners from the hash's slot on.
    fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = hash
            .checked_rem(self.slots.len() as u64)
            .and_then(|at| usize::try_from(at).ok())
            .unwrap_or(0);
        let (before, from) = self
            .slots
            .split_at_checked(start)
            .unwrap_or((&[], &self.slots));
        from.iter()
            .chain(before)
            .take(WALK)
            .map(|owner| usize::from(*owner))
    }

    /// Picks for a key: the first owner of the pool that has room, then the next ones.
    #[must_use]
    pub fn pick(
        &self,
        hash: u64,
        roster: &Roster,
        pool: &Pool,
        open: &dyn Fn(usize) -> bool,
        room: &dyn Fn(&RosterEntry) -> bool,
    ) -> EndpointList {
        let pick = self.picks.get().wrapping_add(1);
        self.picks.set(pick);
        let (mut list, mut own, mut last) = (EndpointList::default(), None, None);
        for at in self.walk(hash) {
            // Where weights differ, neighbouring slots mostly have the same owner.
            if last.replace(at) == Some(at) {
                continue;
            }
            let Some(entry) = roster.entry(pool, at) else {
                continue;
            };
            if list.first().is_none() && !entry.trial {
                let known = self.full.get(at).is_some_and(|full| full.get() == pick);
                if known || !room(entry) {
                    if let Some(full) = self.full.get(at) {
                        full.set(pick);
                    }
                    own.get_or_insert(at);
                    continue;
                }
            }
            if allowed(entry, &list, open) {
                list.push(at);
            }
            if list.is_full() {
                break;
            }
        }
        if let (None, Some(own)) = (list.first(), own) {
            // All that were met are full: the key's own is as good as any.
            list.push(own);
        }
        if list.first().is_none() {
            let entries = roster.entries(pool);
            let start = usize::try_from(place(hash, u32::try_from(entries.len()).unwrap_or(0)))
                .unwrap_or(0);
            let (before, from) = entries.split_at_checked(start).unwrap_or((entries, &[]));
            for entry in from.iter().chain(before) {
                if allowed(entry, &list, open) {
                    list.push(entry.at);
                }
                if list.is_full() {
                    break;
                }
            }
        }
        list
    }
}

struct Owner {
    index: u16,
    weight: u64,
    target: u64,
    next: u64,
    skip: u64,
}

/// How many requests may be in flight at an endpoint whatever the bound: a client's next request
/// may come before all workers have seen the end of its last one, and should go to the same
/// endpoint.
const ALWAYS: u64 = 2;

/// Whether an entry with `in_flight` requests has room for one more, with `total` in flight in the
/// pool: its share of them all, times `bound` (in hundredths), rounded up, and at least two.
#[must_use]
pub fn has_room(in_flight: u64, total: u64, weight: u32, all: u32, bound: Percent) -> bool {
    let has = u128::from(in_flight)
        .saturating_mul(all.into())
        .saturating_mul(100);
    let may = u128::from(total)
        .saturating_add(1)
        .saturating_mul(weight.into())
        .saturating_mul(bound.0.into());
    // With one more it is at most the share rounded up: without, it is below the share.
    in_flight < ALWAYS || has < may
}
