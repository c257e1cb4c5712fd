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

use crate::base::hash::{KeyHasher, Seed, of_names};
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

const VERSION: u8 = 1;

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
    /// the keys' hashes, one for all workers.
    #[must_use]
    pub fn new(parts: &[KeyPart], names: &[&str], seed: Seed) -> Self {
        Self {
            parts: parts.to_vec(),
            seed,
            record: RecordKey::new(RecordKind::FairShares, of_names(names), 0),
            shares: RefCell::default(),
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
        whole.then(|| halves(hasher.finish()).0)
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

/// A worker's part of the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerPart {
    vm: u64,
    /// When it was written.
    at: Moment,
    /// When this worker refused something last; [`Moment::MAX`]: never.
    refused_at: Moment,
    /// Keys and their requests in flight.
    listed: Vec<(u32, u32)>,
    /// Keys that are not listed, and their requests.
    rest: u32,
}

/// The record: what all workers have in flight by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FairRecord {
    parts: Vec<WorkerPart>,
}

/// Counts by key, in the order of the keys: a few hundred at the most.
#[derive(Debug, Default)]
pub struct KeyMap(Vec<(u32, u32)>);

impl KeyMap {
    fn place(&self, key: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&key, |(known, _)| *known)
    }

    fn get(&self, key: u32) -> u32 {
        let at = self.place(key).ok();
        at.and_then(|at| self.0.get(at))
            .map_or(0, |(_, count)| *count)
    }

    /// Adds to a key's count; what it was before.
    pub fn add(&mut self, key: u32, count: u32) -> u32 {
        match self.place(key) {
            Ok(at) => self.0.get_mut(at).map_or(0, |(_, known)| {
                let before = *known;
                *known = known.saturating_add(count);
                before
            }),
            Err(at) => {
                self.0.insert(at, (key, count));
                0
            }
        }
    }

    /// Takes one from a key's count; what is left of it, or `None` if there was none.
    pub fn take(&mut self, key: u32) -> Option<u32> {
        let at = self.place(key).ok()?;
        let (_, count) = self.0.get_mut(at)?;
        *count = count.saturating_sub(1);
        let left = *count;
        if left == 0 {
            self.0.remove(at);
        }
        Some(left)
    }
}

/// What a worker knows of the keys in flight.
#[derive(Debug, Default)]
pub struct KeyCounts {
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
}

impl KeyCounts {
    /// A request of this key is in flight.
    pub fn enter(&mut self, key: u32) {
        if self.own.add(key, 1) == 0 && self.others.get(key) == 0 {
            self.keys = self.keys.saturating_add(1);
        }
        self.own_total = self.own_total.saturating_add(1);
    }

    /// Requests of these keys are no more.
    pub fn leave_all(&mut self, keys: &KeyMap) {
        for (key, count) in &keys.0 {
            (0..*count).for_each(|_| self.leave(*key));
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

    /// The limit has refused something.
    pub fn refused(&mut self, now: Moment) {
        self.refused_at = Some(now);
    }

    /// Whether anything was refused lately, by any worker.
    #[must_use]
    pub fn is_active(&self, now: Moment) -> bool {
        self.refused_at
            .is_some_and(|at| at <= now && now.since(at) < ACTIVE)
    }

    /// Whether it is time to exchange counts: while the limit is nearly full or the rule in force.
    #[must_use]
    pub fn is_due(&self, now: Moment, nearly_full: bool) -> bool {
        (nearly_full || self.is_active(now))
            && self
                .synced
                .is_none_or(|at| now < at || now.since(at) >= SYNC)
    }

    /// Whether this key has more than an equal share in flight.
    #[must_use]
    pub fn is_over(&self, key: u32) -> bool {
        let own = u64::from(self.own.get(key)).saturating_add(self.others.get(key).into());
        let keys = self.keys.saturating_add(self.others_rest);
        let total = self.own_total.saturating_add(self.others_total);
        own.saturating_mul(keys) > total
    }

    /// Writes this worker's part into the record, drops those of lost ones, and takes note of the
    /// others.
    pub fn sync(&mut self, record: &mut FairRecord, now: Moment, vm: u64) {
        self.synced = Some(now);
        record
            .parts
            .retain(|part| part.vm != vm && part.at <= now && now.since(part.at) < LOST);
        (self.others_total, self.others_rest) = (0, 0);
        self.others.0.clear();
        for part in &record.parts {
            // A count of zero is noise: no worker writes one.
            for (key, count) in part.listed.iter().filter(|(_, count)| *count > 0) {
                self.others.add(*key, *count);
                self.others_total = self.others_total.saturating_add((*count).into());
            }
            self.others_rest = self.others_rest.saturating_add(part.rest.into());
            if part.refused_at <= now {
                self.refused_at = self.refused_at.max(Some(part.refused_at));
            }
        }
        self.others_total = self.others_total.saturating_add(self.others_rest);
        let own = self.own.0.iter();
        let only_own = own.filter(|(key, _)| self.others.get(*key) == 0).count();
        self.keys = (only_own as u64).saturating_add(self.others.0.len() as u64);
        if record.parts.len() < MOST_WORKERS {
            record.parts.push(self.part(now, vm));
        }
    }

    fn part(&self, now: Moment, vm: u64) -> WorkerPart {
        let mut listed = self.own.0.clone();
        if listed.len() > LISTED {
            sort::by_key(&mut listed, |(_, count)| Reverse(*count));
        }
        let unlisted = listed.get(LISTED..).unwrap_or_default();
        let rest = unlisted
            .iter()
            .fold(0u32, |sum, (_, count)| sum.saturating_add(*count));
        listed.truncate(LISTED);
        let refused_at = self.refused_at.unwrap_or(Moment::MAX);
        WorkerPart {
            vm,
            at: now,
            refused_at,
            listed,
            rest,
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
            part.listed
                .iter()
                .for_each(|(key, count)| put(joined(*key, *count)));
        }
    }
}

fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[allow(clippy::cast_possible_truncation, reason = "the halves of the number")]
const fn halves(number: u64) -> (u32, u32) {
    ((number >> 32) as u32, number as u32)
}

#[cfg(test)]
mod tests;
