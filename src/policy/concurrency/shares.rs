//! What a lost VM has left behind in the gauge of requests in flight, and how it is found.
//!
//! Each VM tells a shared record, with every tick, how many of the requests in flight are its own. Together they are what the gauge says, give or take
//! what has come and gone between the ticks. A VM that does not tell any more is dropped from the record; what it had is then in the gauge and in nobody's
//! share. If the gauge has been above the shares, each time that anybody looked, for [`PROOF`], then the least that it was above is taken out of it. One look
//! at which they agree starts the time anew, so that traffic is not taken for a loss: it would have to be wrong in one direction for dozens of looks. Should
//! that happen (a load that grows without a pause), the same rule puts it right afterwards: it works in both directions.
//!
//! So permits of a lost VM come back after some 20 s, under any load, and a limit that they fill is not stuck.

use crate::base::time::Nanos;

/// A VM that has not told for so long is lost: ten ticks.
pub const LOST: Nanos = Nanos::from_secs(10);

/// How long gauge and shares must differ in one direction.
pub const PROOF: Nanos = Nanos::from_secs(10);

/// The most VMs that a record holds; beyond, nothing is taken out of the gauge.
pub const MOST: usize = 256;

const VERSION: u8 = 1;

/// Shares of all VMs, and how they differ from the gauge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Since when the gauge has differed in one direction; zero = it does not.
    since: Nanos,
    /// The least by which it did: above the shares if positive.
    drift: i64,
    vms: Vec<Share>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    vm: u64,
    own: u64,
    told: Nanos,
}

impl Shares {
    /// The VM `vm` has `own` requests in flight, and the gauge says `gauge`. What is to be added to the gauge, if it is proven wrong.
    pub fn tell(&mut self, now: Nanos, vm: u64, own: u64, gauge: u64) -> i64 {
        // Told at a time to come: the clock has stepped back.
        self.vms.retain(|share| share.vm != vm && share.told <= now && now.since(share.told) < LOST);
        if own > 0 && self.vms.len() < MOST {
            self.vms.push(Share { vm, own, told: now });
        }
        let drift = if self.vms.len() < MOST { self.drift(gauge) } else { 0 };
        let same_direction = drift.signum() == self.drift.signum() && self.since <= now;
        if drift == 0 || !same_direction {
            (self.since, self.drift) = (if drift == 0 { Nanos::ZERO } else { now }, drift);
            return 0;
        }
        self.drift = if drift > 0 { drift.min(self.drift) } else { drift.max(self.drift) };
        if now.since(self.since) < PROOF {
            return 0;
        }
        let correction = self.drift.saturating_neg();
        (self.since, self.drift) = (Nanos::ZERO, 0);
        correction
    }

    /// How far the gauge is above the shares; a gauge below zero is seen as such.
    fn drift(&self, gauge: u64) -> i64 {
        let sum = self.vms.iter().fold(0u64, |sum, share| sum.saturating_add(share.own));
        gauge.cast_signed().saturating_sub(i64::try_from(sum).unwrap_or(i64::MAX))
    }

    /// Reads a record; what is no record of this version is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let Some((&VERSION, mut rest)) = bytes.split_first() else { return Self::default() };
        let mut next = || {
            let (first, others) = rest.split_first_chunk::<8>()?;
            rest = others;
            Some(u64::from_le_bytes(*first))
        };
        let (Some(since), Some(drift)) = (next(), next()) else { return Self::default() };
        let mut vms = Vec::new();
        while let (Some(vm), Some(own), Some(told)) = (next(), next(), next()) {
            if vms.len() < MOST {
                vms.push(Share { vm, own, told: Nanos(told) });
            }
        }
        Self { since: Nanos(since), drift: drift.cast_signed(), vms }
    }

    /// Writes the record.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.push(VERSION);
        let head = [self.since.0, self.drift.cast_unsigned()];
        let shares = self.vms.iter().flat_map(|share| [share.vm, share.own, share.told.0]);
        for number in head.into_iter().chain(shares) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: Nanos = Nanos::from_secs(1);

    #[test]
    fn what_a_lost_vm_left_is_taken_out() {
        let (mut shares, mut gauge, mut now) = (Shares::default(), 12i64, Nanos::from_secs(100));
        // VM 2 tells once, with 5 in flight, and is lost.
        assert_eq!(shares.tell(now, 2, 5, 12), 0);
        for second in 0..40 {
            now = now.plus(TICK);
            gauge += shares.tell(now, 1, 7, gauge as u64);
            assert!(gauge == 12 || second >= 19, "not before it is proven: {second}");
        }
        assert_eq!(gauge, 7);
    }

    #[test]
    fn a_gauge_that_is_too_low_is_put_right_too() {
        let (mut shares, mut gauge, mut now) = (Shares::default(), -3i64, Nanos::from_secs(100));
        for _ in 0..30 {
            now = now.plus(TICK);
            gauge = gauge.wrapping_add(shares.tell(now, 1, 4, gauge as u64));
        }
        assert_eq!(gauge, 4);
    }

    #[test]
    fn one_look_that_agrees_starts_anew() {
        let (mut shares, mut now) = (Shares::default(), Nanos::from_secs(100));
        for second in 0..100u64 {
            now = now.plus(TICK);
            // Mostly above, never lastingly.
            let gauge = if second % 9 == 8 { 4 } else { 7 };
            assert_eq!(shares.tell(now, 1, 4, gauge), 0);
        }
    }

    #[test]
    fn a_clock_that_steps_back_proves_nothing() {
        let mut shares = Shares::default();
        shares.tell(Nanos::from_secs(1_000), 2, 5, 6);
        assert_eq!(shares.tell(Nanos::from_secs(10), 1, 1, 2), 0);
        assert_eq!(shares.tell(Nanos::from_secs(15), 1, 1, 2), 0);
        assert_eq!(shares.tell(Nanos::from_secs(20), 1, 1, 2), -1, "counted from the step on");
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(since: u64, drift: i64, vms in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..5)) {
            let vms = vms.into_iter().map(|(vm, own, told)| Share { vm, own, told: Nanos(told) }).collect();
            let shares = Shares { since: Nanos(since), drift, vms };
            let mut bytes = Vec::new();
            shares.encode(&mut bytes);
            prop_assert_eq!(Shares::decode(&bytes), shares);
        }

        #[test]
        fn any_bytes_and_numbers_are_taken_sanely(bytes: Vec<u8>, now: u64, own: u64, gauge: u64) {
            let mut shares = Shares::decode(&bytes);
            shares.tell(Nanos(now), 1, own, gauge);
            prop_assert!(shares.vms.len() <= MOST);
        }
    }
}
