//! The endpoints in rotation: those of the levels and zones in use, with their present weights.
//!
//! **Levels.** An endpoint belongs to the level of its `priority`. A level whose share of available
//! endpoints is at least `panic_threshold` takes all requests, and levels with a higher number get
//! none. Below the threshold it keeps the part share / threshold of the requests (a third of its
//! endpoints left and a threshold of 50 %: two thirds), and the next level gets the rest. So the
//! load of an endpoint that is left in a failing level is never more than 1/threshold of what it is
//! in a whole one. (Envoy does the same with an overprovisioning factor of 1.4, which would move
//! load although more than the threshold is left.) A threshold of 0: a level is used while any
//! endpoint of it is available.
//!
//! **Panic.** If all levels together cannot take all requests, availability is ignored, and each
//! level gets requests by the number of its endpoints.
//!
//! **Zones.** If the proxy's own zone is known, its endpoints come first in each level. All zones
//! are assumed to have equally many clients, so that the own one should carry 1/zones of the
//! level's load. If its part of the level's available weight is at least that, requests stay in the
//! zone; otherwise the missing part goes to the other zones. Then no endpoint of the own zone
//! carries more than it would without zones (Envoy's zone aware routing, for zones of equal load).
//!
//! **Ejection.** Breakers take at most `max_ejection` of an upstream's endpoints out of rotation:
//! those that opened first. The others stay though their breakers are open. The decision depends on
//! the breakers' records alone, so that all workers that have read them agree and none ejects more.
//! Requests may still leave a level for the next one altogether: that is the failover which levels
//! are for.
//!
//! **Trials.** An endpoint on trial is in its own pool, or in the first one if its own is not in
//! use: otherwise a level without requests could never come back. Levels that get no requests have
//! no trials.

use super::Availability;
use crate::base::percent::Percent;
use crate::base::rng::Rng;
use crate::base::sort;
use crate::base::time::Moment;
use std::ops::Range;

/// What a weight of 1 is, so that a share of it is a whole number.
pub const UNIT: u32 = 1_024;

/// All requests.
const ALL: u32 = 1 << 16;

/// No pool.
const NONE: u16 = u16::MAX;

/// An endpoint as the roster sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Whether it may be used.
    pub availability: Availability,
    /// Whether it is out for another reason than its breaker.
    pub unwell: bool,
    /// Since when its breaker keeps it out.
    pub out_since: Moment,
    /// Its weight at the moment, in [`UNIT`]s; 0 = drained.
    pub weight: u32,
    /// Index of its level, the best first.
    pub level: u16,
    /// Index of its zone.
    pub zone: u16,
}

/// The rules by which the roster is built.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Below this share of available endpoints a level hands on load; if all levels are below it,
    /// there is panic.
    pub panic_threshold: Percent,
    /// The most that breakers may take out.
    pub max_ejection: Percent,
    /// The own zone.
    pub zone: Option<u16>,
    /// By level: how many zones have endpoints there.
    pub zones: Vec<u32>,
}

/// Numbers of endpoints, without drained ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    /// Endpoints with a weight.
    pub members: u32,
    /// Those that are available.
    pub available: u32,
    /// Those on trial.
    pub trial: u32,
}

impl EndpointCounts {
    fn count(&mut self, member: &Member) {
        self.members = self.members.saturating_add(1);
        match member.availability {
            Availability::Available => self.available = self.available.saturating_add(1),
            Availability::Trial => self.trial = self.trial.saturating_add(1),
            Availability::Out => {}
        }
    }

    /// The part of all requests that it can take.
    fn capacity(&self, threshold: Percent) -> u32 {
        let needed = u64::from(self.members).saturating_mul(threshold.0.into());
        let has = u64::from(self.available)
            .saturating_mul(10_000)
            .saturating_mul(ALL.into());
        let part = match has.checked_div(needed) {
            Some(part) => part,
            None if self.available > 0 => ALL.into(),
            None => 0,
        };
        u32::try_from(part).unwrap_or(ALL).min(ALL)
    }
}

/// An endpoint in rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterEntry {
    /// Its index in the upstream.
    pub at: usize,
    /// Its weight, more than zero.
    pub weight: u32,
    /// The weights up to and with this one.
    pub upto: u32,
    /// Whether it may only come first, with a permit.
    pub trial: bool,
    pool: u16,
}

/// Endpoints of one level that a policy picks from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Index of its level.
    pub level: u16,
    /// Its part of all requests, in 1/65536.
    pub share: u32,
    /// The weights together.
    pub weight: u32,
    entries: Range<usize>,
}

/// The endpoints in rotation.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// All endpoints together.
    pub counts: EndpointCounts,
    /// Whether availability is ignored.
    pub panic: bool,
    members: Vec<Member>,
    entries: Vec<RosterEntry>,
    pools: Vec<Pool>,
    /// By endpoint: its pool.
    pool_of: Vec<u16>,
    levels: Vec<Level>,
    ejected: Vec<(Moment, usize)>,
    own_zone: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Level {
    counts: EndpointCounts,
    share: u32,
    /// Whether one is kept in rotation though its breaker is open.
    kept: bool,
    /// Available weight, and that of the own zone.
    weight: u64,
    own: u64,
}

impl Roster {
    /// Rebuilds it, and reuses its allocations.
    pub fn build(&mut self, rules: &Rules, members: impl Iterator<Item = Member>) {
        self.members.clear();
        self.members.extend(members);
        self.own_zone = rules.zone;
        self.count(rules);
        self.eject(rules);
        self.share(rules);
        self.open_pools(rules);
        self.fill_pools();
    }

    /// Whether there is one pool only, so that no draw is needed.
    #[must_use]
    pub const fn is_simple(&self) -> bool {
        self.pools.len() == 1
    }

    /// The pool that a draw of 16 bits leads to.
    #[must_use]
    pub fn pool(&self, draw: u16) -> Option<&Pool> {
        let mut upto = 0u32;
        let found = self.pools.iter().find(|pool| {
            upto = upto.saturating_add(pool.share);
            u32::from(draw) < upto
        });
        // Shares are rounded down: the rest is the first's.
        found.or_else(|| self.pools.iter().find(|pool| pool.share > 0))
    }

    /// The endpoints of a pool, in the upstream's order.
    #[must_use]
    pub fn entries(&self, pool: &Pool) -> &[RosterEntry] {
        self.entries.get(pool.entries.clone()).unwrap_or(&[])
    }

    /// The place of an endpoint in a pool; `None`: it is not there.
    #[must_use]
    pub fn entry(&self, pool: &Pool, at: usize) -> Option<&RosterEntry> {
        let index = self.pool_of.get(at)?;
        if self.pools.get(usize::from(*index)) != Some(pool) {
            return None;
        }
        let entries = self.entries(pool);
        entries.get(entries.binary_search_by_key(&at, |entry| entry.at).ok()?)
    }

    /// Endpoints in the other pools of the same level, from a random one on: for the places of a
    /// list that this pool cannot fill.
    pub fn others<'a>(&'a self, pool: &'a Pool, rng: &'a Rng) -> impl Iterator<Item = usize> + 'a {
        let others = self
            .pools
            .iter()
            .filter(move |other| other.level == pool.level && *other != pool);
        let entries = others.flat_map(|other| {
            let entries = self.entries(other);
            let start = usize::try_from(rng.below(entries.len() as u64)).unwrap_or(0);
            let (before, from) = entries.split_at_checked(start).unwrap_or((entries, &[]));
            from.iter().chain(before)
        });
        entries.filter(|entry| !entry.trial).map(|entry| entry.at)
    }

    /// Counts endpoints, by level.
    fn count(&mut self, rules: &Rules) {
        self.counts = EndpointCounts::default();
        self.levels.clear();
        self.levels.resize(rules.zones.len(), Level::default());
        for member in self.members.iter().filter(|member| member.weight > 0) {
            let Some(level) = self.levels.get_mut(usize::from(member.level)) else {
                continue;
            };
            self.counts.count(member);
            level.counts.count(member);
            if member.availability == Availability::Available {
                level.weight = level.weight.saturating_add(member.weight.into());
                if rules.zone == Some(member.zone) {
                    level.own = level.own.saturating_add(member.weight.into());
                }
            }
        }
    }

    /// Decides the share of each level.
    fn share(&mut self, rules: &Rules) {
        let mut left = ALL;
        for level in &mut self.levels {
            level.share = level.counts.capacity(rules.panic_threshold).min(left);
            left = left.saturating_sub(level.share);
        }
        self.panic = rules.panic_threshold.0 > 0 && left > 0 && self.counts.members > 0;
        if self.panic {
            for level in &mut self.levels {
                let part = u64::from(level.counts.members).saturating_mul(ALL.into());
                let part = part.checked_div(self.counts.members.into()).unwrap_or(0);
                level.share = u32::try_from(part).unwrap_or(ALL);
            }
        } else if left == ALL
            && let Some(level) = self
                .levels
                .iter_mut()
                .find(|level| level.counts.trial > 0 || level.kept)
        {
            // No endpoint is available: use those on trial, and those that may not be ejected.
            level.share = ALL;
        }
    }

    /// Opens the pools: one for each level in use, or two where the own zone comes first.
    fn open_pools(&mut self, rules: &Rules) {
        self.pools.clear();
        for (index, level) in self
            .levels
            .iter()
            .enumerate()
            .filter(|(_, level)| level.share > 0)
        {
            let index = u16::try_from(index).unwrap_or(NONE);
            let new = |share| Pool {
                level: index,
                share,
                ..Pool::default()
            };
            if level.own == 0 || level.own == level.weight || self.panic {
                self.pools.push(new(level.share));
                continue;
            }
            let zones = rules.zones.get(usize::from(index)).copied().unwrap_or(1);
            let wanted = u128::from(level.own)
                .saturating_mul(zones.into())
                .saturating_mul(level.share.into());
            let own = wanted.checked_div(level.weight.into()).unwrap_or(0);
            let own = u32::try_from(own).unwrap_or(level.share).min(level.share);
            self.pools
                .extend([new(own), new(level.share.saturating_sub(own))]);
        }
    }

    /// Keeps in rotation what breakers may not take out: the endpoints whose breakers opened last.
    fn eject(&mut self, rules: &Rules) {
        self.ejected.clear();
        let most = match u64::from(self.counts.members).saturating_mul(rules.max_ejection.0.into())
        {
            0 => 0,
            // One may always be ejected.
            some => usize::try_from(some / 10_000).unwrap_or(usize::MAX).max(1),
        };
        let by_breaker = |member: &Member| {
            member.weight > 0 && !member.unwell && member.availability != Availability::Available
        };
        let taken = self
            .members
            .iter()
            .filter(|member| by_breaker(member))
            .count();
        let excess = taken.saturating_sub(most);
        if excess == 0 {
            return;
        }
        let members = self.members.iter().enumerate();
        let out = members
            .filter(|(_, member)| by_breaker(member) && member.availability == Availability::Out);
        self.ejected
            .extend(out.map(|(at, member)| (member.out_since, at)));
        sort::by_key(&mut self.ejected, |ejected| *ejected);
        let stay = self.ejected.len().saturating_sub(excess);
        for (_, at) in self.ejected.drain(..).skip(stay) {
            let Some(member) = self.members.get_mut(at) else {
                continue;
            };
            member.availability = Availability::Available;
            if let Some(level) = self.levels.get_mut(usize::from(member.level)) {
                level.kept = true;
            }
        }
    }

    /// Puts each endpoint into its pool.
    fn fill_pools(&mut self) {
        self.entries.clear();
        self.pool_of.clear();
        let last = self.pools.iter().map(|pool| pool.level).max();
        let first = self.pools.iter().position(|pool| pool.share > 0);
        for (at, member) in self.members.iter().enumerate() {
            let trial = member.availability == Availability::Trial && !self.panic;
            let usable =
                member.weight > 0 && (self.panic || member.availability != Availability::Out);
            let mut pools = self
                .pools
                .iter()
                .enumerate()
                .filter(|(_, pool)| pool.level == member.level);
            let pool = match (pools.next(), pools.next()) {
                // The own zone's pool comes first.
                (Some(own), Some(other)) => Some(if Some(member.zone) == self.own_zone {
                    own
                } else {
                    other
                }),
                (pool, _) => pool,
            };
            let pool = match pool.filter(|(_, pool)| pool.share > 0 || !trial) {
                Some((index, _)) => Some(index),
                None => first.filter(|_| trial && Some(member.level) <= last),
            };
            let pool = pool
                .filter(|_| usable)
                .and_then(|index| u16::try_from(index).ok());
            self.pool_of.push(pool.unwrap_or(NONE));
            if let Some(pool) = pool {
                self.entries.push(RosterEntry {
                    at,
                    weight: member.weight,
                    upto: 0,
                    trial,
                    pool,
                });
            }
        }
        if !self.is_simple() {
            sort::by_key(&mut self.entries, |entry| (entry.pool, entry.at));
        }
        let mut from = 0usize;
        for (index, pool) in self.pools.iter_mut().enumerate() {
            let mut to = from;
            pool.weight = 0;
            while let Some(entry) = self
                .entries
                .get_mut(to)
                .filter(|entry| usize::from(entry.pool) == index)
            {
                pool.weight = pool.weight.saturating_add(entry.weight);
                entry.upto = pool.weight;
                to = to.saturating_add(1);
            }
            pool.entries = from..to;
            from = to;
        }
    }
}
