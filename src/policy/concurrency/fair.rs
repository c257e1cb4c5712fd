//! Fair shares of a concurrency limit: while something is refused, who has more than an equal share
//! in flight is refused first.
//!
//! **The rule.** Each request in flight belongs to a key (a client, a tenant). An equal share is
//! what is in flight, divided by the number of keys that have something in flight. While the limit
//! refuses, and for [`ACTIVE`] after, a request whose key has more than that finds less room than
//! others of its criticality: nine tenths of their threshold. So what is left above it is there for
//! those who ask for little, and an abusive client fills the rest, which costs the others nothing:
//! the upstream is as busy as before. While nothing is refused the rule does nothing.
//!
//! **Who is far above.** With the same thresholds for all, a tenth is less than a place of a small
//! limit, and a client that calls all it sends critical would still come before what others may
//! lose. So a key with more than twice what the others have on average comes after all of them,
//! whatever the criticality: below the least critical threshold stays free what the others have had
//! in flight at the most, and what was refused of keys within their share, over the last second. So
//! what it may have is what they do not ask for. An adaptive limit keeps twice the square root of
//! it free as well ([`HEADROOM`]): by so much does vary what comes at random, and places of a queue
//! cost nothing while they are free, which those of a fixed limit do. The only key that asks is never above a share: it
//! may be all clients, behind a load balancer. Whether others ask is told by what they have in
//! flight, and by their requests of the last [`ACTIVE`], refused or not, or who has all would keep
//! all.
//!
//! **Over workers.** A worker counts its own requests by key, in its own memory: never more entries
//! than it has requests in flight. While the rule is active, workers exchange their counts in one
//! record, each at most once in [`SYNC`]. So a key's count is exact in its own worker, and what
//! other workers have let in or out since they last wrote is the error: at most what passes in
//! [`SYNC`]. A worker writes its [`LISTED`] largest keys and sums up the rest, which counts as keys
//! with one request each. Calm workers exchange nothing, and a request costs no host call.
//!
//! **What if?** A VM that is lost writes no more: its part is dropped after [`LOST`]. A clock that
//! steps back does the same for all, until they write again. Keys are told apart by 32 bits of a
//! secret hash: two in 10,000 collide about once in 90 proxies, and then share one share.
//!
//! The idea is that of max-min fairness (Bertsekas and Gallager, "Data Networks", 1992), with
//! equal shares of what is there instead of an allocation.

use crate::base::hash::{KeyHasher, Seed, high_half, of_names};
use crate::base::key_map::KeyMap;
use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::host::SharedData;
use crate::request::Request;
use crate::request::key::{self, KeyPart, MissingKey};
use crate::store::{self, Contended, RecordKey, RecordKind, Step};
use std::cell::RefCell;
use std::cmp::Reverse;

/// For so long after the limit has refused something the rule is in force.
pub const ACTIVE: Nanos = Nanos::from_secs(1);

/// How often a worker exchanges its counts, at most.
pub const SYNC: Nanos = Nanos::from_millis(20);

/// A worker that has not written for so long is lost.
pub const LOST: Nanos = Nanos::from_secs(2);

/// Keys that a worker writes one by one.
pub const LISTED: usize = 64;

/// The most workers whose counts are kept.
pub const MOST_WORKERS: usize = 64;

/// The share of the usual threshold that an overdrawn key finds, in percent.
pub const OVERDRAWN: u64 = 90;

/// What an adaptive limit keeps free for others beyond what they have asked for: so many times the
/// square root of it.
pub const HEADROOM: u64 = 2;

/// Who has fewer in flight is never far above a share.
pub const MANY: u64 = 2;

/// What others asked for is remembered for one to two of these.
const WINDOW: Nanos = Nanos::from_millis(500);

/// What a key has in flight, compared with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// No more than an equal share, or it is the only one that asks.
    #[default]
    Within,
    /// More than an equal share.
    Over,
    /// More than twice what the others have on average.
    FarOver {
        /// What is in flight, with the others at the most they asked for of late.
        among: u64,
    },
}

const VERSION: u8 = 2;

/// A limit's fair shares, as a worker keeps them.
#[derive(Debug)]
pub struct FairShares {
    parts: Vec<KeyPart>,
    seed: Seed,
    record: RecordKey,
    shares: RefCell<KeyCounts>,
}

impl FairShares {
    /// Fair shares by the key of these `parts`. `names` say whose they are; `seed` is the secret of
    /// the keys' hashes, one for all workers. `headroom`: [`HEADROOM`], or 0.
    #[must_use]
    pub fn new(parts: &[KeyPart], names: &[&str], seed: Seed, headroom: u64) -> Self {
        Self {
            parts: parts.to_vec(),
            seed,
            record: RecordKey::new(RecordKind::FairShares, of_names(names), 0),
            shares: RefCell::new(KeyCounts {
                headroom,
                ..KeyCounts::default()
            }),
        }
    }

    /// What is hashed.
    #[must_use]
    pub fn parts(&self) -> &[KeyPart] {
        &self.parts
    }

    /// The request's key; `None` if it lacks a part.
    #[must_use]
    pub fn key(&self, request: &Request<'_>) -> Option<u32> {
        let mut hasher = KeyHasher::new(self.seed);
        let whole = key::hash(&self.parts, MissingKey::Skip, request, &mut hasher);
        whole.then(|| high_half(hasher.finish()))
    }

    /// Reads and changes the shares. They are never held over a host call, so that they are always
    /// free; were they not, the rule would do nothing.
    pub fn with<R: Default>(&self, run: impl FnOnce(&mut KeyCounts) -> R) -> R {
        let mut shares = self.shares.try_borrow_mut();
        shares.as_deref_mut().map(run).unwrap_or_default()
    }

    /// Exchanges counts with the other workers.
    ///
    /// # Errors
    /// [`Contended`]: this worker's counts were not written; it goes on with what it knows.
    pub fn exchange<H: SharedData>(&self, host: &H, now: Moment, vm: u64) -> Result<(), Contended> {
        store::update(host, &self.record, |bytes| {
            let mut record = FairRecord::decode(bytes);
            self.with(|shares| shares.sync(&mut record, now, vm));
            record.encode(bytes);
            Step::Write(())
        })
    }
}

/// What the others asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Demand {
    /// The most in flight beside a key that is far above its share.
    peak: u64,
    /// Requests of keys within their share that were refused.
    missed: u32,
}

impl Demand {
    fn with(self, other: Self) -> Self {
        Self {
            peak: self.peak.max(other.peak),
            missed: self.missed.saturating_add(other.missed),
        }
    }
}

/// A worker's part of the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerPart {
    vm: u64,
    /// When it was written.
    at: Moment,
    /// When this worker refused something last; [`Moment::MAX`]: never.
    refused_at: Moment,
    /// Keys and their requests in flight; none for one that has asked lately and has none.
    listed: Vec<(u32, u32)>,
    /// Keys that are not listed, and their requests.
    rest: u32,
    /// Requests of keys within their share that it has refused of late.
    missed: u32,
}

/// The record: what all workers have in flight by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FairRecord {
    parts: Vec<WorkerPart>,
}

/// What a worker knows of the keys in flight.
#[derive(Debug, Default)]
pub struct KeyCounts {
    headroom: u64,
    own: KeyMap,
    /// Of the other workers, as they last wrote.
    others: KeyMap,
    /// Their requests, listed or not, and how many of these are not listed.
    others_total: u64,
    others_rest: u64,
    /// Keys that are in flight anywhere: of one worker or of several.
    keys: u64,
    own_total: u64,
    refused_at: Option<Moment>,
    synced: Option<Moment>,
    /// The two keys that asked last, the later one first.
    asked: [Option<(u32, Moment)>; 2],
    /// What others asked for in this window and the one before it.
    demand: [Demand; 2],
    window: Moment,
    /// What other workers missed.
    others_missed: u32,
}

impl KeyCounts {
    /// A request of this key has come, and may be refused.
    pub fn asks(&mut self, key: u32, now: Moment) {
        let [last, before] = &mut self.asked;
        if last.is_some_and(|(known, _)| known != key) {
            std::mem::swap(last, before);
        }
        *last = Some((key, now));
    }

    /// Whether another key has asked lately.
    fn others_ask(&self, key: u32, now: Moment) -> bool {
        let mut asked = self.asked.iter().flatten();
        asked.any(|(other, at)| *other != key && at.is_within(ACTIVE, now))
    }

    /// A request of this key is in flight.
    pub fn enter(&mut self, key: u32) {
        if self.own.add(key, 1) == 0 && self.others.get(key) == 0 {
            self.keys = self.keys.saturating_add(1);
        }
        self.own_total = self.own_total.saturating_add(1);
    }

    /// Requests of these keys are no more.
    pub fn leave_all(&mut self, keys: &KeyMap) {
        for (key, count) in keys.iter() {
            (0..count).for_each(|_| self.leave(key));
        }
    }

    /// It is no more.
    pub fn leave(&mut self, key: u32) {
        let Some(left) = self.own.take(key) else {
            return;
        };
        if left == 0 && self.others.get(key) == 0 {
            self.keys = self.keys.saturating_sub(1);
        }
        self.own_total = self.own_total.saturating_sub(1);
    }

    /// The limit has refused something, of a key of this standing.
    pub fn refused(&mut self, now: Moment, standing: Standing) {
        self.refused_at = Some(now);
        if standing == Standing::Within {
            let missed = &mut self.demand(now).missed;
            *missed = missed.saturating_add(1);
        }
    }

    /// Another worker has refused something, at that time.
    pub fn others_refused(&mut self, at: Option<Moment>) {
        self.refused_at = self.refused_at.max(at);
    }

    /// What is asked for in the window of this moment.
    fn demand(&mut self, now: Moment) -> &mut Demand {
        if !self.window.is_within(WINDOW, now) {
            let [latest, _] = self.demand;
            let follows = self.window.is_within(WINDOW.plus(WINDOW), now);
            let before = if follows { latest } else { Demand::default() };
            self.demand = [Demand::default(), before];
            self.window = now;
        }
        let [latest, _] = &mut self.demand;
        latest
    }

    /// What is asked for in that window and the one before it.
    fn recent_demand(&mut self, now: Moment) -> Demand {
        self.demand(now);
        let [latest, before] = self.demand;
        latest.with(before)
    }

    /// Whether anything was refused lately, by any worker.
    #[must_use]
    pub fn is_active(&self, now: Moment) -> bool {
        self.refused_at.is_some_and(|at| at.is_within(ACTIVE, now))
    }

    /// Whether it is time to exchange counts: while the limit is nearly full or the rule in force.
    #[must_use]
    pub fn is_due(&self, now: Moment, nearly_full: bool) -> bool {
        (nearly_full || self.is_active(now))
            && self.synced.is_none_or(|at| !at.is_within(SYNC, now))
    }

    /// What this key has in flight, compared with others.
    #[must_use]
    pub fn standing(&mut self, key: u32, now: Moment) -> Standing {
        let own = u64::from(self.own.get(key)).saturating_add(self.others.get(key).into());
        let keys = self.keys.saturating_add(self.others_rest);
        // Who asks and has nothing in flight has a share too.
        let keys = keys.max(if self.others_ask(key, now) { 2 } else { 1 });
        let total = self.own_total.saturating_add(self.others_total);
        let of_others = total.saturating_sub(own);
        if own.saturating_mul(keys) <= total {
            return Standing::Within;
        }
        if own < MANY || own.saturating_mul(keys.saturating_sub(1)) <= of_others.saturating_mul(2) {
            return Standing::Over;
        }
        let demand = self.demand(now);
        demand.peak = demand.peak.max(of_others);
        let Demand { peak, missed } = self.recent_demand(now);
        let missed = missed.saturating_add(self.others_missed);
        let spare = peak.isqrt().saturating_mul(self.headroom);
        let others = peak.saturating_add(spare).saturating_add(missed.into());
        Standing::FarOver {
            among: own.saturating_add(others),
        }
    }

    /// Writes this worker's part into the record, drops those of lost ones, and takes note of the
    /// others.
    pub fn sync(&mut self, record: &mut FairRecord, now: Moment, vm: u64) {
        self.synced = Some(now);
        record
            .parts
            .retain(|part| part.vm != vm && part.at.is_within(LOST, now));
        (self.others_total, self.others_rest) = (0, 0);
        self.others.clear();
        self.others_missed = 0;
        let mut heard = Vec::new();
        for part in &record.parts {
            if part.at.is_within(ACTIVE, now) {
                self.others_missed = self.others_missed.saturating_add(part.missed);
            }
            for (key, count) in &part.listed {
                if *count == 0 {
                    heard.push((*key, part.at));
                } else {
                    self.others.add(*key, *count);
                    self.others_total = self.others_total.saturating_add((*count).into());
                }
            }
            self.others_rest = self.others_rest.saturating_add(part.rest.into());
            if part.refused_at <= now {
                self.refused_at = self.refused_at.max(Some(part.refused_at));
            }
        }
        heard.into_iter().for_each(|(key, at)| self.asks(key, at));
        self.others_total = self.others_total.saturating_add(self.others_rest);
        let own = self.own.iter();
        let only_own = own.filter(|(key, _)| self.others.get(*key) == 0).count();
        self.keys = (only_own as u64).saturating_add(self.others.len() as u64);
        if record.parts.len() < MOST_WORKERS {
            record.parts.push(self.part(now, vm));
        }
    }

    fn part(&mut self, now: Moment, vm: u64) -> WorkerPart {
        let mut listed: Vec<_> = self.own.iter().collect();
        if listed.len() > LISTED {
            sort::by_key(&mut listed, |(_, count)| Reverse(*count));
        }
        let unlisted = listed.get(LISTED..).unwrap_or_default();
        let rest = unlisted
            .iter()
            .fold(0u32, |sum, (_, count)| sum.saturating_add(*count));
        listed.truncate(LISTED);
        let asked = self.asked.iter().flatten();
        let waiting =
            asked.filter(|(key, at)| self.own.get(*key) == 0 && at.is_within(ACTIVE, now));
        for (key, _) in waiting.take(LISTED.saturating_sub(listed.len())) {
            listed.push((*key, 0));
        }
        let refused_at = self.refused_at.unwrap_or(Moment::MAX);
        WorkerPart {
            vm,
            at: now,
            refused_at,
            listed,
            rest,
            missed: self.recent_demand(now).missed,
        }
    }
}

impl FairRecord {
    /// Reads a record; what is none of this version is empty.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self::read(bytes).unwrap_or_default()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, mut rest) = bytes.split_first()? else {
            return None;
        };
        let mut parts = Vec::new();
        while !rest.is_empty() && parts.len() < MOST_WORKERS {
            let mut next = || {
                let (first, others) = rest.split_first_chunk::<8>()?;
                rest = others;
                Some(u64::from_le_bytes(*first))
            };
            let (vm, at, refused_at) = (next()?, Moment(next()?), Moment(next()?));
            let (unlisted, count) = halves(next()?);
            let (_, missed) = halves(next()?);
            let mut listed = Vec::new();
            for _ in 0..count.min(LISTED as u32) {
                listed.push(halves(next()?));
            }
            parts.push(WorkerPart {
                vm,
                at,
                refused_at,
                listed,
                rest: unlisted,
                missed,
            });
        }
        Some(Self { parts })
    }

    /// Writes the record.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.push(VERSION);
        let mut put = |number: u64| bytes.extend_from_slice(&number.to_le_bytes());
        for part in &self.parts {
            [part.vm, part.at.0, part.refused_at.0]
                .into_iter()
                .for_each(&mut put);
            put(joined(
                part.rest,
                u32::try_from(part.listed.len()).unwrap_or(0),
            ));
            put(part.missed.into());
            part.listed
                .iter()
                .for_each(|(key, count)| put(joined(*key, *count)));
        }
    }
}

fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the lower half of the number"
)]
const fn halves(number: u64) -> (u32, u32) {
    (high_half(number), number as u32)
}

#[cfg(test)]
mod tests;
