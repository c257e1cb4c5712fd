//! The policies that need no state of their own.
//!
//! An entry on trial may only come first: a trial is one call, and a retry must not land there
//! without a permit. `open` says whether such an entry may still be tried.

use super::roster::RosterEntry;
use super::{EndpointList, LIST, SAMPLE};
use crate::base::rng::Rng;
use std::cmp::Ordering;

/// What a further request would cost at an endpoint: what each costs there, times their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// What each costs.
    pub each: u64,
    /// How many there are.
    pub count: u64,
}

impl Cost {
    /// Each request costs the same everywhere.
    #[must_use]
    pub const fn of(count: u64) -> Self {
        Self { each: 1, count }
    }

    /// The whole, where at the best of the endpoints each costs `least`. Up to twice as much is the
    /// same: that is noise. (Bug avoided: with few requests in flight the endpoint that has been
    /// the fastest by a hair gets them all, and of the others nothing is known any more.)
    const fn whole(self, least: u64) -> u64 {
        let each = if self.each <= least.saturating_mul(2) && self.each > 0 {
            least
        } else {
            self.each
        };
        each.saturating_mul(self.count)
    }
}

/// The entries with the least `cost` for their weight. Among equals one is drawn by weight (nginx's
/// `least_conn` breaks ties by weighted round robin; a draw needs no state that workers would have
/// to share).
///
/// Of more than [`SAMPLE`] entries a random sample is compared: with two choices already the
/// fullest endpoint holds O(log log n) more than the mean (Mitzenmacher, "The power of two choices
/// in randomized load balancing", 2001), and the cost of a request does not grow with the number of
/// endpoints.
pub fn cheapest(
    entries: &[RosterEntry],
    open: &dyn Fn(usize) -> bool,
    cost: &dyn Fn(usize) -> Cost,
    rng: &Rng,
) -> EndpointList {
    // The only one costs what it costs.
    if let [_] = entries {
        return first(entries.iter(), open);
    }
    let mut sample = [None; SAMPLE];
    let count = entries.len() as u64;
    // A walk from a random start in a random stride meets distinct entries.
    let (mut at, stride) = if entries.len() <= SAMPLE {
        (0, 1)
    } else {
        (rng.below(count), stride(count, rng))
    };
    for place in sample.iter_mut().take(entries.len()) {
        let entry = usize::try_from(at).ok().and_then(|at| entries.get(at));
        *place = entry
            .filter(|entry| !entry.trial || open(entry.at))
            .map(|entry| (entry, cost(entry.at)));
        at = at.saturating_add(stride).checked_rem(count).unwrap_or(0);
    }
    let each = sample.iter().flatten().map(|(_, cost)| cost.each);
    let least = each.filter(|each| *each > 0).min().unwrap_or(0);
    let mut list = EndpointList::default();
    for first in [true, false, false] {
        let mut best: Option<(usize, &RosterEntry, u64)> = None;
        let mut drawn_from = 0u64;
        for (place, (entry, cost)) in sample
            .iter()
            .enumerate()
            .filter_map(|(place, it)| Some((place, (*it)?)))
            .map(|(place, (entry, cost))| (place, (entry, cost.whole(least))))
        {
            if entry.trial && !first {
                continue;
            }
            let weight = u64::from(entry.weight);
            let order = best.map_or(Ordering::Less, |(_, best, least)| {
                cost.saturating_mul(best.weight.into())
                    .cmp(&least.saturating_mul(weight))
            });
            match order {
                Ordering::Greater => {}
                Ordering::Less => (best, drawn_from) = (Some((place, entry, cost)), weight),
                // A draw among equals by weight, in one pass (reservoir sampling).
                Ordering::Equal => {
                    drawn_from = drawn_from.saturating_add(weight);
                    if rng.below(drawn_from) < weight {
                        best = Some((place, entry, cost));
                    }
                }
            }
        }
        let Some((place, entry, _)) = best else { break };
        list.push(entry.at);
        if let Some(taken) = sample.get_mut(place) {
            *taken = None;
        }
    }
    list
}

/// How often a draw is repeated when it hits a listed endpoint.
const DRAWS: usize = 8;

/// A draw by weight.
#[must_use]
pub fn random(entries: &[RosterEntry], open: &dyn Fn(usize) -> bool, rng: &Rng) -> EndpointList {
    let total = entries.last().map_or(0, |entry| entry.upto);
    let draw = || {
        let at = rng.below(total.into());
        entries.get(entries.partition_point(|entry| u64::from(entry.upto) <= at))
    };
    let mut list = EndpointList::default();
    for _ in 0..DRAWS.saturating_add(LIST) {
        match draw() {
            Some(entry) if allowed(entry, &list, open) => list.push(entry.at),
            Some(_) => {}
            None => break,
        }
        if list.is_full() {
            return list;
        }
    }
    // A few heavy ones may hide the others.
    let start = usize::try_from(rng.below(entries.len() as u64)).unwrap_or(0);
    let (before, from) = entries.split_at_checked(start).unwrap_or((entries, &[]));
    in_order(list, from.iter().chain(before), open)
}

/// The first ones in the order in which they come.
#[must_use]
pub fn first<'a>(
    entries: impl Iterator<Item = &'a RosterEntry>,
    open: &dyn Fn(usize) -> bool,
) -> EndpointList {
    in_order(EndpointList::default(), entries, open)
}

fn in_order<'a>(
    mut list: EndpointList,
    entries: impl Iterator<Item = &'a RosterEntry>,
    open: &dyn Fn(usize) -> bool,
) -> EndpointList {
    for entry in entries {
        if list.is_full() {
            break;
        }
        if allowed(entry, &list, open) {
            list.push(entry.at);
        }
    }
    list
}

/// Whether the entry may take the list's next place.
pub(super) fn allowed(
    entry: &RosterEntry,
    list: &EndpointList,
    open: &dyn Fn(usize) -> bool,
) -> bool {
    !entry.trial || (list.first().is_none() && open(entry.at))
}

/// A stride that meets all of `count` places before it comes round.
fn stride(count: u64, rng: &Rng) -> u64 {
    let stride = rng.below(count.saturating_sub(1)).saturating_add(1);
    if gcd(stride, count) == 1 { stride } else { 1 }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while let Some(rest) = a.checked_rem(b) {
        (a, b) = (b, rest);
    }
    a
}
