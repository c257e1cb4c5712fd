//! Each client's part of a retry budget, as a worker sees it.
//!
//! **The rule.** A client's part is as large as its part of the requests that were seen lately, and
//! at least one retry. While there is plenty, nobody asks whose it is. Once half of the budget is
//! spent (or of the grants that may be open are), who has had its part gets no more, and what it
//! had beyond that counts against nobody else. So one client, whatever it sends, leaves to the
//! others what their own requests bring in.
//!
//! **What its failures show.** A client of which far more is retried than of others (more than twice
//! its part of the requests, and more than [`FEW`]) sends what fails of itself. How likely others'
//! grants are to be used, and whether retries help, is not learned from it.
//!
//! Counts are of the last second: of this one, and as much of the one before as a second's window
//! still covers. At most [`MOST`] clients are told apart, the heavy ones surely; the others are
//! within their parts. A worker knows its own requests only: a client that spreads over workers has
//! a part in each, by what it sends there.

use super::{WINDOW, portion};
use crate::base::key_map::KeyMap;
use crate::base::time::Moment;

/// The most clients that are told apart.
const MOST: usize = 256;

/// Fewer retries of a client prove nothing.
const FEW: u32 = 5;

/// What clients have lately sent, and what of it was tried again.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    requests: Recent,
    retries: Recent,
    /// Retries granted and not settled.
    open: KeyMap,
    /// When the present slot of the counts began.
    since: Option<Moment>,
    /// How much of the slot before it counts still, in [`FULL`]ths.
    weight: u64,
}

/// The weight of what counts in full.
const FULL: u64 = 1 << 10;

/// Counts of the present slot and of the one before.
#[derive(Clone, Debug, Default)]
struct Recent {
    slots: [(KeyMap, u64); 2],
}

impl Recent {
    fn add(&mut self, client: u32, count: u32) {
        let [(now, all), _] = &mut self.slots;
        now.add_bounded(client, count, MOST);
        *all = all.saturating_add(count.into());
    }

    fn turn(&mut self) {
        self.slots.rotate_right(1);
        let [now, _] = &mut self.slots;
        *now = Default::default();
    }

    /// A client's count, in units of a [`FULL`]th.
    fn get(&self, client: u32, weight: u64) -> u64 {
        let [(now, _), (before, _)] = &self.slots;
        weighted(now.get(client).into(), before.get(client).into(), weight)
    }

    /// That of all clients.
    fn all(&self, weight: u64) -> u64 {
        let [(_, now), (_, before)] = &self.slots;
        weighted(*now, *before, weight)
    }

    /// Each client once.
    fn clients(&self) -> impl Iterator<Item = u32> {
        let [(now, _), (before, _)] = &self.slots;
        let older = before.iter().filter(|(client, _)| now.get(*client) == 0);
        now.iter().chain(older).map(|(client, _)| client)
    }
}

fn weighted(now: u64, before: u64, weight: u64) -> u64 {
    let now = now.saturating_mul(FULL);
    now.saturating_add(before.saturating_mul(weight))
}

impl Shares {
    /// A request of this client has come.
    pub fn ask(&mut self, now: Moment, client: u32) {
        let since = *self.since.get_or_insert(now);
        if !since.is_within(WINDOW, now) {
            let follows = since.is_within(WINDOW.times(2), now);
            // Long ago, or in the future: the clock has stepped back.
            let turns = if follows { 1 } else { 2 };
            for _ in 0..turns {
                self.requests.turn();
                self.retries.turn();
            }
            self.since = Some(if follows { since.plus(WINDOW) } else { now });
        }
        let into = self.since.map_or(0, |since| now.since(since).0);
        self.weight = portion(FULL, WINDOW.0.saturating_sub(into), WINDOW.0);
        self.requests.add(client, 1);
    }

    /// So many retries were granted to it.
    pub fn grant(&mut self, client: u32, granted: u32) {
        self.open.add_bounded(client, granted, MOST);
    }

    /// A grant is over: so many retries came of it.
    pub fn settle(&mut self, client: u32, granted: u32, spent: u32) {
        self.open.subtract(client, granted);
        if spent > 0 {
            self.retries.add(client, spent);
        }
    }

    /// Its part of `whole`, and at least `least`.
    fn part(&self, client: u32, whole: u64, least: u64) -> u64 {
        let its = self.requests.get(client, self.weight);
        portion(whole, its, self.requests.all(self.weight)).max(least)
    }

    /// What it has spent, in units of `one` retry.
    fn spent(&self, client: u32, one: u64) -> u64 {
        portion(one, self.retries.get(client, self.weight), FULL)
    }

    /// Whether it has spent its part of this worker's budget. `budget` in units of `one` retry.
    pub fn has_spent_its_part(&self, client: u32, budget: u64, one: u64) -> bool {
        self.spent(client, one) >= self.part(client, budget, one)
    }

    /// What all clients have spent within their parts of this worker's budget.
    pub fn spent_within(&self, budget: u64, one: u64) -> u64 {
        self.retries.clients().fold(0, |sum, client| {
            let its = self.spent(client, one);
            sum.saturating_add(its.min(self.part(client, budget, one)))
        })
    }

    /// Whether its open grants are its part of the `room` for them.
    pub fn has_filled_its_part(&self, client: u32, room: u64) -> bool {
        u64::from(self.open.get(client)) >= self.part(client, room, 1)
    }

    /// How many open grants clients have beyond their parts.
    pub fn open_beyond(&self, room: u64) -> u64 {
        self.open.iter().fold(0, |sum, (client, count)| {
            let beyond = u64::from(count).saturating_sub(self.part(client, room, 1));
            sum.saturating_add(beyond)
        })
    }

    /// Whether far more of its requests than of others' are tried again.
    pub fn stands_out(&self, client: u32) -> bool {
        let retries = self.retries.get(client, self.weight);
        let requests = self.requests.get(client, self.weight);
        let (all_requests, all_retries) = (
            self.requests.all(self.weight),
            self.retries.all(self.weight),
        );
        retries > u64::from(FEW).saturating_mul(FULL)
            && u128::from(retries).saturating_mul(all_requests.into())
                > u128::from(requests)
                    .saturating_mul(all_retries.into())
                    .saturating_mul(2)
    }
}

#[cfg(test)]
mod tests;
