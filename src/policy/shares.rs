//! Corrects gauges of requests in flight when a VM is lost.
//!
//! With every tick each VM writes to a shared record how many of the requests in flight are its
//! own: one record for a concurrency limit's gauge, one for all gauges of an upstream's endpoints.
//! The shares add up to the gauges, apart from requests that came or ended between the ticks. A VM
//! that no longer writes is dropped from the record; its requests are then in a gauge and in no
//! share. If a gauge was above the sum of the shares at every check for [`PROOF`], the least
//! difference seen is subtracted from it. One check without a difference starts the time anew, so
//! that traffic is not mistaken for a loss: it would have to differ in one direction for dozens of
//! checks. Should that happen (a load that grows without a pause), the same rule corrects it
//! afterwards, since it works in both directions.
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

/// The most VMs that a record holds; with more, no gauge is corrected.
pub const MOST: usize = 256;

/// The most gauges in a record, and per VM: an upstream's endpoints, and as many that a reload has
/// removed.
const MOST_GAUGES: usize = 2_000;

/// A difference that no VM has checked for this time belongs to a gauge that is no longer in use.
const FORGOTTEN: Nanos = Nanos::from_secs(60);

/// Gauges above this have wrapped below zero (a metric was reset, or a share subtracted twice) and
/// count as 0.
const SANE: u64 = 1 << 40;

const VERSION: u8 = 2;

/// Requests in flight by the gauge's value.
#[must_use]
pub const fn in_flight(gauge: u64) -> u64 {
    if gauge > SANE { 0 } else { gauge }
}

/// Shares of all VMs, and how they differ from the gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
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
    /// Takes the report of the VM `vm`: for each of its `gauges`, in the order of their ids, the
    /// id, its own requests in flight and the gauge's value. For each gauge that is proven wrong it
    /// calls `correct` with the place in `gauges` and what to add.
    pub fn report(
        &mut self,
        now: Moment,
        vm: u64,
        gauges: &[(u64, u64, u64)],
        mut correct: impl FnMut(usize, i64),
    ) {
        // A report from the future: the clock has stepped back.
        self.vms.retain(|share| {
            share.vm != vm && share.reported <= now && now.since(share.reported) < LOST
        });
        let own: Vec<_> = gauges
            .iter()
            .filter(|(_, own, _)| *own > 0)
            .map(|(id, own, _)| (*id, *own))
            .take(MOST_GAUGES)
            .collect();
        if !own.is_empty() && self.vms.len() < MOST {
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
            .filter(|drift| drift.since <= now && now.since(drift.since) < FORGOTTEN);
        self.drifts
            .extend(others.filter(|drift| is_new(drift.gauge)));
        for (place, (id, _, gauge)) in gauges.iter().copied().enumerate() {
            let sum = find(&sums, id).unwrap_or(0);
            let drift = gauge
                .cast_signed()
                .saturating_sub(i64::try_from(sum).unwrap_or(i64::MAX));
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
        let mut shares = Self::default();
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
        gauges: impl Fn() -> Vec<(u64, u64, u64)>,
    ) -> Result<Vec<(usize, i64)>, Contended> {
        store::update(host, &self.0, |bytes| {
            let before = Shares::decode(bytes);
            let mut after = before.clone();
            let mut corrections = Vec::new();
            after.report(now, vm, &gauges(), |place, by| {
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: Nanos = Nanos::from_secs(1);

    impl Shares {
        /// Of a single gauge.
        fn report_one(&mut self, now: Moment, vm: u64, own: u64, gauge: u64) -> i64 {
            let mut correction = 0;
            self.report(now, vm, &[(7, own, gauge)], |_, by| correction = by);
            correction
        }
    }

    #[test]
    fn what_a_lost_vm_left_is_taken_out() {
        let (mut shares, mut gauge, mut now) = (Shares::default(), 12i64, Moment::from_secs(100));
        // VM 2 reports once, with 5 in flight, and is lost.
        assert_eq!(shares.report_one(now, 2, 5, 12), 0);
        for second in 0..40 {
            now = now.plus(TICK);
            gauge += shares.report_one(now, 1, 7, gauge as u64);
            assert!(
                gauge == 12 || second >= 19,
                "not before it is proven: {second}"
            );
        }
        assert_eq!(gauge, 7);
    }

    #[test]
    fn a_gauge_that_is_too_low_is_put_right_too() {
        let (mut shares, mut gauge, mut now) = (Shares::default(), -3i64, Moment::from_secs(100));
        for _ in 0..30 {
            now = now.plus(TICK);
            gauge = gauge.wrapping_add(shares.report_one(now, 1, 4, gauge as u64));
        }
        assert_eq!(gauge, 4);
    }

    #[test]
    fn one_look_that_agrees_starts_anew() {
        let (mut shares, mut now) = (Shares::default(), Moment::from_secs(100));
        for second in 0..100u64 {
            now = now.plus(TICK);
            // Mostly above, but never for long.
            let gauge = if second % 9 == 8 { 4 } else { 7 };
            assert_eq!(shares.report_one(now, 1, 4, gauge), 0);
        }
    }

    #[test]
    fn a_clock_that_steps_back_proves_nothing() {
        let mut shares = Shares::default();
        shares.report_one(Moment::from_secs(1_000), 2, 5, 6);
        assert_eq!(shares.report_one(Moment::from_secs(10), 1, 1, 2), 0);
        assert_eq!(shares.report_one(Moment::from_secs(15), 1, 1, 2), 0);
        assert_eq!(
            shares.report_one(Moment::from_secs(20), 1, 1, 2),
            -1,
            "counted from the step on"
        );
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            drifts in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<i64>()), 0..5),
            vms in proptest::collection::vec(
                (
                    any::<u64>(),
                    any::<u64>(),
                    proptest::collection::vec((any::<u64>(), any::<u64>()), 0..5),
                ),
                0..5,
            ),
        ) {
            let drifts = drifts.into_iter().map(|(gauge, since, least)| Drift {
                gauge,
                since: Moment(since),
                least,
            });
            let vms = vms.into_iter().map(|(vm, reported, own)| Share {
                vm,
                reported: Moment(reported),
                own,
            });
            let shares = Shares {
                drifts: drifts.collect(),
                vms: vms.collect(),
            };
            let mut bytes = Vec::new();
            shares.encode(&mut bytes);
            prop_assert_eq!(Shares::decode(&bytes), shares);
        }

        #[test]
        fn any_bytes_and_numbers_are_taken_sanely(bytes: Vec<u8>, now: u64, own: u64, gauge: u64) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let mut shares = Shares::decode(&bytes);
            shares.report_one(Moment(now), 1, own, gauge);
            prop_assert!(shares.vms.len() <= MOST);
        }
    }

    #[test]
    fn each_gauge_is_judged_by_itself() {
        let (mut shares, mut gauges, mut now) =
            (Shares::default(), [9i64, 4, 0], Moment::from_secs(100));
        // VM 2 held two at the first gauge and one at the third, which VM 1 does not have.
        shares.report(now, 2, &[(1, 2, 9), (3, 1, 1)], |_, _| {
            panic!("nothing is proven")
        });
        for _ in 0..40 {
            now = now.plus(TICK);
            let reported: Vec<_> = [(1, 7), (2, 4), (4, 0)]
                .into_iter()
                .zip(gauges)
                .map(|((id, own), gauge)| (id, own, gauge as u64))
                .collect();
            shares.report(now, 1, &reported, |place, by| gauges[place] += by);
        }
        assert_eq!(gauges, [7, 4, 0]);
    }

    #[test]
    fn a_gauge_below_zero_is_empty() {
        assert_eq!([0, 7, u64::MAX, u64::MAX - 3].map(in_flight), [0, 7, 0, 0]);
    }
}
