//! Corrects gauges of requests in flight when a VM is lost.
//!
//! A VM writes itself into a shared record before its first request is counted, and with every tick
//! how many of the requests in flight are its own: one record for a concurrency limit's gauge, one
//! for all gauges of an upstream's endpoints. It takes itself out when it has had none for a while.
//! So who is in the record and no longer writes was lost, and its requests may be in a gauge and in
//! no share.
//!
//! Only then are gauges corrected: the shares are up to a tick old, so that a gauge and the sum of
//! the shares differ under any traffic, and a difference in one direction, however long, proves no
//! loss (a load that grows; a look that always meets another worker's short request). After a loss,
//! if a gauge was above the sum at every look for [`PROOF`], the least difference seen is
//! subtracted from it; one look without a difference starts the time anew. The same rule puts a
//! correction right that took too much. Without a loss only a gauge below zero is corrected, up to
//! zero: no traffic explains that.
//!
//! So the places that a lost VM held are free again after some 20 s, under any load, and a limit
//! that it filled is not stuck.

use crate::base::hash::of_names;
use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::host::SharedData;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};

/// A VM that has not written its share for this time is lost: ten ticks.
pub const LOST: Nanos = Nanos::from_secs(10);

/// How long gauge and shares must differ in one direction.
pub const PROOF: Nanos = Nanos::from_secs(10);

/// For how long after a loss, or after the last correction, differences are taken for its doing.
const AFTERMATH: Nanos = Nanos::from_secs(60);

/// The most VMs that a record holds; with more, no gauge is corrected.
pub const MOST: usize = 256;

/// The most gauges in a record, and per VM: an upstream's endpoints, and as many that a reload has
/// removed.
const MOST_GAUGES: usize = 2_000;

/// A difference that no VM has checked for this time belongs to a gauge that is no longer in use.
const FORGOTTEN: Nanos = Nanos::from_secs(60);

/// Gauges above this have wrapped below zero, which no request does (a correction may have taken
/// too much), and count as 0.
const SANE: u64 = 1 << 40;

const VERSION: u8 = 3;

/// Requests in flight by the gauge's value.
#[must_use]
pub const fn in_flight(gauge: u64) -> u64 {
    if gauge > SANE { 0 } else { gauge }
}

/// Shares of all VMs, and how they differ from the gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// When a VM was last found lost, or a gauge corrected; zero: never.
    disturbed: Moment,
    drifts: Vec<Drift>,
    vms: Vec<Share>,
}

/// How a gauge differs from the shares, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drift {
    gauge: u64,
    since: Moment,
    /// The least by which it did: above the shares if positive.
    least: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Share {
    vm: u64,
    reported: Moment,
    /// Requests in flight by gauge, none of them zero.
    own: Vec<(u64, u64)>,
}

impl Shares {
    /// The VM `vm` is about to have requests in flight.
    pub fn announce(&mut self, now: Moment, vm: u64) {
        if self.vms.len() < MOST && self.vms.iter().all(|share| share.vm != vm) {
            self.vms.push(Share {
                vm,
                reported: now,
                own: Vec::new(),
            });
        }
    }

    /// Takes the report of the VM `vm`: for each of its `gauges`, in the order of their ids, the
    /// id, its own requests in flight and the gauge's value. For each gauge that is proven wrong it
    /// calls `correct` with the place in `gauges` and what to add. `present`: it reports again with
    /// its next tick; otherwise it takes itself out of the record.
    pub fn report(
        &mut self,
        now: Moment,
        vm: u64,
        present: bool,
        gauges: &[(u64, u64, u64)],
        mut correct: impl FnMut(usize, i64),
    ) {
        self.vms.retain(|share| share.vm != vm);
        let before = self.vms.len();
        // A report from the future: the clock has stepped back, and who is lost is not known.
        self.vms.retain(|share| share.reported.is_within(LOST, now));
        if self.vms.len() < before || self.disturbed > now {
            self.disturbed = now;
        }
        let disturbed = self.disturbed != Moment::ZERO && now.since(self.disturbed) < AFTERMATH;
        let own: Vec<_> = gauges
            .iter()
            .filter(|(_, own, _)| *own > 0)
            .map(|(id, own, _)| (*id, *own))
            .take(MOST_GAUGES)
            .collect();
        if present && self.vms.len() < MOST {
            self.vms.push(Share {
                vm,
                reported: now,
                own,
            });
        }
        let sums = self.sums();
        let full = self.vms.len() >= MOST;
        let mut before = std::mem::take(&mut self.drifts);
        sort::by_key(&mut before, |drift| drift.gauge);
        // Drifts of another configuration's gauges stay.
        let is_new = |id: u64| {
            gauges
                .binary_search_by_key(&id, |(known, ..)| *known)
                .is_err()
        };
        let others = before
            .iter()
            .filter(|drift| drift.since.is_within(FORGOTTEN, now));
        self.drifts
            .extend(others.filter(|drift| is_new(drift.gauge)));
        for (place, (id, _, gauge)) in gauges.iter().copied().enumerate() {
            let sum = find(&sums, id).unwrap_or(0);
            let gauge = gauge.cast_signed();
            let drift = if disturbed {
                gauge.saturating_sub(i64::try_from(sum).unwrap_or(i64::MAX))
            } else {
                gauge.min(0)
            };
            if drift == 0 || full || self.drifts.len() >= MOST_GAUGES {
                continue;
            }
            let known = before
                .binary_search_by_key(&id, |known| known.gauge)
                .ok()
                .and_then(|at| before.get(at));
            let known =
                known.filter(|known| known.least.signum() == drift.signum() && known.since <= now);
            match known {
                None => self.drifts.push(Drift {
                    gauge: id,
                    since: now,
                    least: drift,
                }),
                Some(known) => {
                    let least = if drift > 0 {
                        drift.min(known.least)
                    } else {
                        drift.max(known.least)
                    };
                    if now.since(known.since) < PROOF {
                        self.drifts.push(Drift { least, ..*known });
                    } else {
                        correct(place, least.saturating_neg());
                        self.disturbed = now;
                    }
                }
            }
        }
    }

    /// The shares of all VMs together, by gauge, in their order.
    fn sums(&self) -> Vec<(u64, u64)> {
        let mut all: Vec<_> = self
            .vms
            .iter()
            .flat_map(|share| share.own.iter().copied())
            .collect();
        sort::by_key(&mut all, |share| *share);
        let mut sums: Vec<(u64, u64)> = Vec::new();
        for (id, own) in all {
            match sums.last_mut() {
                Some((known, sum)) if *known == id => *sum = sum.saturating_add(own),
                _ => sums.push((id, own)),
            }
        }
        sums
    }

    /// Reads a record; anything but a record of this version is an empty one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self::read(bytes).unwrap_or_default()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, mut rest) = bytes.split_first()? else {
            return None;
        };
        let mut next = || {
            let (first, others) = rest.split_first_chunk::<8>()?;
            rest = others;
            Some(u64::from_le_bytes(*first))
        };
        let mut shares = Self {
            disturbed: Moment(next()?),
            ..Self::default()
        };
        for _ in 0..next()?.min(MOST_GAUGES as u64) {
            shares.drifts.push(Drift {
                gauge: next()?,
                since: Moment(next()?),
                least: next()?.cast_signed(),
            });
        }
        for _ in 0..next()?.min(MOST as u64) {
            let mut share = Share {
                vm: next()?,
                reported: Moment(next()?),
                own: Vec::new(),
            };
            for _ in 0..next()?.min(MOST_GAUGES as u64) {
                share.own.push((next()?, next()?));
            }
            shares.vms.push(share);
        }
        Some(shares)
    }

    /// Writes the record.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.push(VERSION);
        let mut put = |number: u64| bytes.extend_from_slice(&number.to_le_bytes());
        put(self.disturbed.0);
        put(self.drifts.len() as u64);
        for drift in &self.drifts {
            [drift.gauge, drift.since.0, drift.least.cast_unsigned()]
                .into_iter()
                .for_each(&mut put);
        }
        put(self.vms.len() as u64);
        for share in &self.vms {
            [share.vm, share.reported.0, share.own.len() as u64]
                .into_iter()
                .for_each(&mut put);
            share
                .own
                .iter()
                .flat_map(|(id, own)| [*id, *own])
                .for_each(&mut put);
        }
    }
}

fn find(sums: &[(u64, u64)], id: u64) -> Option<u64> {
    let at = sums.binary_search_by_key(&id, |(id, _)| *id).ok()?;
    sums.get(at).map(|(_, sum)| *sum)
}

/// The record in which all VMs report their shares of some gauges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharesRecord(RecordKey);

impl SharesRecord {
    /// The record of what these names say.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        Self(RecordKey::new(RecordKind::Shares, of_names(names), 0))
    }

    /// Writes the VM `vm` into the record, before its first request is counted.
    ///
    /// # Errors
    /// [`Contended`]: it is not in the record before its next report.
    pub fn announce<H: SharedData>(&self, host: &H, now: Moment, vm: u64) -> Result<(), Contended> {
        store::update(host, &self.0, |bytes| {
            let before = Shares::decode(bytes);
            let mut after = before.clone();
            after.announce(now, vm);
            if after == before {
                return Step::Keep(());
            }
            after.encode(bytes);
            Step::Write(())
        })
    }

    /// Reports the shares of the VM `vm`, and returns what is to be added to gauges that are proven
    /// wrong: place in what `gauges` returns, and by how much. `gauges` reads them, in the order of
    /// [`Shares::report`]; each attempt reads them anew, so that shares and gauges are of one
    /// moment.
    ///
    /// # Errors
    /// [`Contended`]: nothing was reported, and nothing is proven.
    pub fn report<H: SharedData>(
        &self,
        host: &H,
        now: Moment,
        vm: u64,
        present: bool,
        gauges: impl Fn() -> Vec<(u64, u64, u64)>,
    ) -> Result<Vec<(usize, i64)>, Contended> {
        store::update(host, &self.0, |bytes| {
            let before = Shares::decode(bytes);
            let mut after = before.clone();
            let mut corrections = Vec::new();
            after.report(now, vm, present, &gauges(), |place, by| {
                corrections.push((place, by));
            });
            if after == before {
                return Step::Keep(corrections);
            }
            after.encode(bytes);
            Step::Write(corrections)
        })
    }
}

#[cfg(test)]
mod tests;
