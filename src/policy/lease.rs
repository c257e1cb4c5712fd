//! The lease that decides which worker does what one has to do for all: who checks an upstream's
//! endpoints, who asks where its endpoints are. A record in shared data; the step is pure, and
//! [`LeaseRecord`] runs it in a compare-and-swap.
//!
//! Every VM ticks, that of the main thread too, and after a reload the old configuration's root
//! contexts go on ticking beside the new ones. The holder renews its lease long before its end; one
//! that dies, or is held up for longer, is replaced within [`LEASE`]. A newer configuration takes
//! it over at once. Contexts that would do the same (their fingerprints are equal) share one lease,
//! whatever else their configurations say.

use crate::base::hash::of_names;
use crate::base::time::{Moment, Nanos};
use crate::host::SharedData;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};

/// How long a lease lasts. A holder that dies is replaced at the latest when its lease has run out:
/// the others read it again at that moment.
pub const LEASE: Nanos = Nanos::from_secs(2);

/// A holder renews its lease after this time: early enough that it may be held up for a while, late
/// enough to cost little.
pub const RENEW: Nanos = Nanos::from_millis(500);

/// How long an older configuration waits, beyond the lease, for a holder with the newer one. Then
/// it goes on again: if an update was withdrawn before it came into force, no other worker would.
pub const GRACE: Nanos = Nanos::from_secs(5);

/// How much later than a lease written now a lease may end. Beyond this the clock must have stepped
/// back; below, this worker read the clock, was held up, and then found a lease that was written
/// later.
const AHEAD: Nanos = Nanos::from_secs(10);

const VERSION: u8 = 1;
const SIZE: usize = 33;

/// The record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The highest generation there has been; 0 = none.
    pub newest: u32,
    /// The holder's generation.
    pub generation: u32,
    /// A hash of what is done, in the holder's configuration.
    pub fingerprint: u64,
    /// The holder.
    pub owner: u64,
    /// Until when it holds.
    pub expires: Moment,
}

/// A root context that could become the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Identifies it among all others.
    pub owner: u64,
    /// A hash of what is done, in its configuration.
    pub fingerprint: u64,
    /// Its generation, once it has one: configurations are numbered in the order in which their
    /// contexts first tick. Not in the order of `on_configure`: the host may discard a
    /// configuration before it ever runs.
    pub generation: Option<u32>,
}

/// Whether it is a candidate's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is, until this time.
    Holder(Moment),
    /// It is another one's; it has to read the lease again at this time.
    Standby(Moment),
}

impl Lease {
    /// The role of `me` at this moment, its generation, and the record to write if it changes.
    #[must_use]
    pub fn step(self, me: Candidate, now: Moment) -> (Role, u32, Option<Self>) {
        let generation =
            me.generation
                .unwrap_or(if self.newest > 0 && self.fingerprint == me.fingerprint {
                    self.generation
                } else {
                    self.newest.saturating_add(1)
                });
        let stepped_back = self.expires > now.plus(LEASE).plus(AHEAD);
        let left = if stepped_back {
            Nanos::ZERO
        } else {
            self.expires.since(now)
        };
        let mine = self.owner == me.owner && self.generation == generation && self.newest > 0;
        let older = generation < self.generation;
        let patience = if older { GRACE } else { Nanos::ZERO };
        let free = stepped_back || now >= self.expires.plus(patience);
        if mine && left > LEASE.minus(RENEW) {
            return (Role::Holder(self.expires), generation, None);
        }
        if mine || generation > self.generation || free {
            let expires = now.plus(LEASE);
            let newest = self.newest.max(generation);
            let taken = Self {
                newest,
                generation,
                fingerprint: me.fingerprint,
                owner: me.owner,
                expires,
            };
            return (Role::Holder(expires), generation, Some(taken));
        }
        (Role::Standby(self.expires.plus(patience)), generation, None)
    }

    /// Its bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.newest.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.fingerprint.to_le_bytes());
        bytes.extend_from_slice(&self.owner.to_le_bytes());
        bytes.extend_from_slice(&self.expires.0.to_le_bytes());
    }

    /// The record of these bytes; a lease without a holder if they are none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let known = || {
            let (version, rest) = bytes.split_first()?;
            let (newest, rest) = rest.split_first_chunk()?;
            let (generation, rest) = rest.split_first_chunk()?;
            let (fingerprint, rest) = rest.split_first_chunk()?;
            let (owner, rest) = rest.split_first_chunk()?;
            let (expires, _) = rest.split_first_chunk()?;
            (*version == VERSION && bytes.len() == SIZE).then_some(Self {
                newest: u32::from_le_bytes(*newest),
                generation: u32::from_le_bytes(*generation),
                fingerprint: u64::from_le_bytes(*fingerprint),
                owner: u64::from_le_bytes(*owner),
                expires: Moment(u64::from_le_bytes(*expires)),
            })
        };
        known().unwrap_or_default()
    }
}

/// The record of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord(RecordKey);

impl LeaseRecord {
    /// The record of this kind of lease of this upstream.
    #[must_use]
    pub fn new(kind: RecordKind, upstream: &str) -> Self {
        Self(RecordKey::new(kind, of_names(&[upstream]), 0))
    }

    /// What `me` is at this moment, and its generation; takes or renews the lease if it may.
    ///
    /// # Errors
    /// [`Contended`]: the lease may be held by `me` or by another.
    pub fn step<H: SharedData>(
        &self,
        host: &H,
        me: Candidate,
        now: Moment,
    ) -> Result<(Role, u32), Contended> {
        store::update(host, &self.0, |bytes| {
            let (role, generation, new) = Lease::decode(bytes).step(me, now);
            match new {
                None => Step::Keep((role, generation)),
                Some(lease) => {
                    lease.encode(bytes);
                    Step::Write((role, generation))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Moment = Moment::from_secs(100);

    fn candidate(owner: u64, fingerprint: u64) -> Candidate {
        Candidate {
            owner,
            fingerprint,
            generation: None,
        }
    }

    /// Runs a step and stores the lease that it returns.
    fn step(lease: &mut Lease, me: &mut Candidate, now: Moment) -> Role {
        let (role, generation, new) = lease.step(*me, now);
        me.generation = Some(generation);
        if let Some(new) = new {
            *lease = new;
        }
        role
    }

    #[test]
    fn one_holds_it_and_the_next_takes_it_when_it_runs_out() {
        let (mut lease, mut a, mut b) = (Lease::default(), candidate(1, 7), candidate(2, 7));
        assert_eq!(step(&mut lease, &mut a, T), Role::Holder(T.plus(LEASE)));
        assert_eq!(step(&mut lease, &mut b, T), Role::Standby(T.plus(LEASE)));
        assert_eq!(
            (a.generation, b.generation),
            (Some(1), Some(1)),
            "one configuration"
        );
        // Renewed in time, but not all the time.
        assert!(lease.step(a, T.plus(Nanos::from_millis(400))).2.is_none());
        assert_eq!(
            step(&mut lease, &mut a, T.plus(RENEW)),
            Role::Holder(T.plus(RENEW).plus(LEASE))
        );
        let end = T.plus(RENEW).plus(LEASE);
        assert_eq!(
            step(&mut lease, &mut b, end.minus(Nanos(1))),
            Role::Standby(end)
        );
        assert_eq!(step(&mut lease, &mut b, end), Role::Holder(end.plus(LEASE)));
        assert_eq!(
            step(&mut lease, &mut a, end),
            Role::Standby(end.plus(LEASE)),
            "the stalled one sees it"
        );
    }

    #[test]
    fn a_newer_configuration_takes_it_at_once_and_the_older_waits_longer() {
        let (mut lease, mut old, mut new) = (Lease::default(), candidate(1, 7), candidate(2, 8));
        step(&mut lease, &mut old, T);
        assert_eq!(step(&mut lease, &mut new, T), Role::Holder(T.plus(LEASE)));
        assert_eq!(new.generation, Some(2));
        let end = T.plus(LEASE).plus(GRACE);
        assert_eq!(
            step(&mut lease, &mut old, T.plus(LEASE)),
            Role::Standby(end)
        );
        // No candidate with the newer configuration is left.
        assert_eq!(
            step(&mut lease, &mut old, end),
            Role::Holder(end.plus(LEASE))
        );
        assert_eq!((lease.generation, lease.newest), (1, 2));
        // Back again after all, and then a third.
        assert_eq!(
            step(&mut lease, &mut new, end),
            Role::Holder(end.plus(LEASE))
        );
        let mut third = candidate(3, 7);
        assert_eq!(
            step(&mut lease, &mut third, end),
            Role::Holder(end.plus(LEASE))
        );
        assert_eq!(
            third.generation,
            Some(3),
            "the same text as the first, and newer all the same"
        );
    }

    #[test]
    fn a_clock_that_steps_back_frees_it() {
        let (mut lease, mut a, mut b) = (Lease::default(), candidate(1, 7), candidate(2, 7));
        step(&mut lease, &mut a, T);
        step(&mut lease, &mut b, T);
        let back = Moment::from_secs(1);
        assert_eq!(
            step(&mut lease, &mut b, back),
            Role::Holder(back.plus(LEASE))
        );
    }

    #[test]
    fn records_are_read_as_they_were_written_and_others_have_no_holder() {
        let lease = Lease {
            newest: 9,
            generation: 8,
            fingerprint: 7,
            owner: 6,
            expires: Moment(5),
        };
        let mut bytes = vec![1, 2, 3];
        lease.encode(&mut bytes);
        assert_eq!((bytes.len(), Lease::decode(&bytes)), (SIZE, lease));
        for end in 0..SIZE {
            assert_eq!(Lease::decode(&bytes[..end]), Lease::default());
        }
        bytes[0] = 2;
        assert_eq!(Lease::decode(&bytes), Lease::default());
    }
}
