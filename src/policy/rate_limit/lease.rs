//! Leases make high rates cheap and keep them exact.
//!
//! A compare-and-swap per request costs more than all the rest of a rate limit. So a worker that
//! draws from a bucket again and again takes some more tokens than it needs, keeps them in its own
//! memory, and serves that key's next requests from them.
//!
//! **Why the bound holds at every instant.** On the axis of arrival times (see [`super::gcra`])
//! each token is an interval: a take moves the arrival time from a to b, and owns what lies
//! between. A bucket never gives out more than `burst` ahead of now. A leased interval counts as
//! long as it lies ahead of now; what time has passed over is gone, just as a full bucket does not
//! fill further. So at every instant the tokens still in the bucket and those in all leases
//! together are at most `burst`.
//!
//! **Where the line runs.** Leases come from the top sixteenth of a bucket only: all of them
//! together hold at most 1/16 of the burst, and below that, where the limit decides, every request
//! is a compare-and-swap of its own, exact over all workers. Limits below 2,000 per second are
//! never leased at all. A lease is meant for the next 64 requests at the pace of the last two, and
//! for at most 55 ms: after that, unused tokens lapse, like those of a bucket that is full. A bucket
//! of one second's burst gives so much to one worker at a time. To others it gives what is left of
//! the sixteenth, which lies further ahead and so lasts as long.
//!
//! **Refusals are remembered too**: until the promised time the worker refuses the key without
//! reading the bucket, since no tokens can come into it sooner. (Only a refund could, on a route
//! with several limits: there refusals are not remembered.) So a flood is cheaper than any other
//! traffic.
//!
//! The memory is a table of [`SLOTS`] keys per limit and worker, by hash; a key takes over a slot
//! that another one has.

use super::gcra::{Gcra, Wish};
use super::take::Verdict;
use crate::base::time::{Moment, Nanos};
use std::cell::Cell;

/// Keys remembered for each limit in each worker, 64 bytes each.
pub const SLOTS: usize = 256;

/// The longest lease, in time of the bucket's rate. A worker that comes back later starts over with
/// a single take.
const LONGEST: Nanos = Nanos::from_millis(55);

/// The shortest that is worth taking: workers under load come back within microseconds.
const SHORTEST: Nanos = Nanos(100_000);

/// How many requests a lease is meant to serve.
const SERVES: u64 = 64;

/// A worker's memory of keys.
#[derive(Debug)]
pub struct Leases {
    slots: Vec<Cell<Slot>>,
    /// Whether refusals may be remembered.
    remember_refusals: bool,
}

/// One key's memory.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    hash: u64,
    /// The leased interval of arrival times that is not used yet.
    from: u64,
    to: u64,
    /// When the bucket was last read, or the lease last drawn on.
    at: Moment,
    /// Requests that cost `refused_cost` are refused until then.
    refused_until: Moment,
    refused_cost: u64,
    refused_remaining: u64,
    /// When the bucket is full, as of the refusal.
    full_at: Moment,
}

/// A take from a lease, so that it can be undone within the same callback: where the lease began
/// before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undo(u64);

impl Leases {
    /// Memory for a limit with up to `max_keys` keys.
    #[must_use]
    pub fn new(max_keys: u32, remember_refusals: bool) -> Self {
        let slots = usize::try_from(max_keys)
            .unwrap_or(SLOTS)
            .clamp(1, SLOTS)
            .next_power_of_two();
        Self {
            slots: vec![Cell::default(); slots],
            remember_refusals,
        }
    }

    /// The verdict on this key, if the worker has it in memory.
    pub fn known(
        &self,
        hash: u64,
        bucket: Option<&Gcra>,
        now: Moment,
        cost: u64,
    ) -> Option<(Verdict, Undo)> {
        let cell = self.cell(hash)?;
        let mut slot = cell.get();
        // Remembered at a later time: the clock has stepped back.
        if slot.hash != hash || cost == 0 || now < slot.at {
            return None;
        }
        // With another cost the wait would differ.
        if now < slot.refused_until && cost == slot.refused_cost {
            let wait = Some(slot.refused_until.since(now));
            return Some((
                Verdict::Refused {
                    remaining: slot.refused_remaining,
                    reset: slot.full_at.since(now),
                    wait,
                },
                Undo(slot.from),
            ));
        }
        let (verdict, from) = bucket?.take_leased(slot.from, slot.to, now, cost)?;
        let undo = Undo(slot.from);
        slot.from = from;
        slot.at = now;
        cell.set(slot);
        Some((verdict, undo))
    }

    /// Whether the key's lease holds the cost.
    pub fn holds(&self, hash: u64, bucket: &Gcra, now: Moment, cost: u64) -> bool {
        let slot = self
            .cell(hash)
            .map(Cell::get)
            .filter(|slot| slot.hash == hash && now >= slot.at);
        slot.is_some_and(|slot| bucket.take_leased(slot.from, slot.to, now, cost).is_some())
    }

    /// What a lease for this key would have to be good for.
    pub fn wish(&self, hash: u64, now: Moment, cost: u64) -> Wish {
        let Some(slot) = self.cell(hash).map(Cell::get) else {
            return Wish::default();
        };
        let pause = now.since(slot.at);
        if slot.hash != hash || pause > LONGEST {
            return Wish::default();
        }
        Wish {
            time: pause.times(SERVES).clamp(SHORTEST, LONGEST),
            tokens: cost.saturating_mul(SERVES),
        }
    }

    /// Remembers a take of `cost` tokens and `extra` ones beyond that ended at `to`. A take with
    /// extra tokens is undone here, not in the bucket.
    pub fn grant(
        &self,
        hash: u64,
        bucket: &Gcra,
        now: Moment,
        cost: u64,
        extra: u64,
        to: u64,
    ) -> Option<Undo> {
        let cell = self.cell(hash)?;
        cell.set(Slot {
            hash,
            from: bucket.begin_of(to, extra),
            to,
            at: now,
            ..Slot::default()
        });
        (extra > 0).then(|| Undo(bucket.begin_of(to, extra.saturating_add(cost))))
    }

    /// Remembers a refusal.
    pub fn refuse(&self, hash: u64, now: Moment, cost: u64, verdict: Verdict) {
        let (
            Verdict::Refused {
                remaining,
                reset,
                wait: Some(wait),
            },
            true,
            Some(cell),
        ) = (verdict, self.remember_refusals, self.cell(hash))
        else {
            return;
        };
        cell.set(Slot {
            hash,
            at: now,
            refused_until: now.plus(wait),
            refused_cost: cost,
            refused_remaining: remaining,
            full_at: now.plus(reset),
            ..Slot::default()
        });
    }

    /// Gives back a take from a lease. Nothing may have come between.
    pub fn undo(&self, hash: u64, undo: Undo) {
        if let Some(cell) = self.cell(hash) {
            let mut slot = cell.get();
            if slot.hash == hash {
                slot.from = undo.0;
                cell.set(slot);
            }
        }
    }

    fn cell(&self, hash: u64) -> Option<&Cell<Slot>> {
        // Not the bits that choose the set: otherwise all keys of a set would share a slot here.
        let at =
            usize::try_from(hash & 0xffff_ffff).unwrap_or(0) & self.slots.len().saturating_sub(1);
        self.slots.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::policy::rate_limit::config::Quota;
    use crate::policy::rate_limit::gcra::SCALE;

    const START: Moment = Moment::from_secs(1_000);

    fn bucket(limit: u64, burst: u64) -> Gcra {
        Gcra::new(&Quota {
            limit,
            period: Nanos::from_secs(1),
            burst,
        })
    }

    /// One worker over a bucket of its own: the number admitted, and how often the bucket was
    /// reads.
    struct Worker {
        bucket: Gcra,
        leases: Leases,
        arrival: u64,
        reads: u64,
    }

    impl Worker {
        fn new(bucket: Gcra) -> Self {
            Self {
                bucket,
                leases: Leases::new(1, true),
                arrival: 0,
                reads: 0,
            }
        }

        fn admits(&mut self, now: Moment) -> bool {
            let verdict = match self.leases.known(7, Some(&self.bucket), now, 1) {
                Some((verdict, _)) => verdict,
                None => {
                    self.reads += 1;
                    let wish = self.leases.wish(7, now, 1);
                    let (verdict, take, extra) = self.bucket.take_with(self.arrival, now, 1, wish);
                    self.arrival = take.after;
                    match verdict {
                        Verdict::Admitted { .. } => {
                            let _ = self
                                .leases
                                .grant(7, &self.bucket, now, 1, extra, take.after);
                        }
                        _ => self.leases.refuse(7, now, 1, verdict),
                    }
                    verdict
                }
            };
            matches!(verdict, Verdict::Admitted { .. })
        }
    }

    fn tokens(tokens: u64) -> Wish {
        Wish {
            time: Nanos::ZERO,
            tokens,
        }
    }

    /// Tokens that a full bucket leases.
    fn leased(bucket: &Gcra, time: Nanos, tokens: u64) -> u64 {
        bucket.take_with(0, START, 1, Wish { time, tokens }).2
    }

    #[test]
    fn low_rates_are_never_leased() {
        let millisecond = Nanos::from_millis(1);
        assert_eq!(leased(&bucket(100, 1_000_000), millisecond, 64), 0);
        assert_eq!(leased(&bucket(1_999, 1_000_000), LONGEST, 64), 0);
        assert_eq!(leased(&bucket(2_000, 1_000_000), millisecond, 1), 1);
        assert_eq!(leased(&bucket(20_000, 20_000), millisecond, 1), 19);
        assert_eq!(leased(&bucket(20_000, 20_000), millisecond, 64), 64);
        assert_eq!(
            leased(&bucket(1_000_000, 64), millisecond, 64),
            3,
            "a small burst bounds it too"
        );
    }

    #[test]
    fn all_leases_together_hold_no_more_than_a_sixteenth() {
        let rng = Rng::new(7);
        let rng = || rng.bits();
        for _ in 0..2_000 {
            let (limit, burst) = (2_000 + rng() % 1_000_000, 1 + rng() % 100_000);
            let bucket = bucket(limit, burst);
            let (mut arrival, mut now) = (0, START);
            let mut ends: Vec<(u64, u64)> = Vec::new();
            for _ in 0..20 {
                now = now.plus(Nanos(rng() % 20_000_000));
                let wish = Wish {
                    time: Nanos(rng() % LONGEST.0),
                    tokens: rng() % 100,
                };
                let cost = 1 + rng() % 3;
                let (_, take, extra) = bucket.take_with(arrival, now, cost, wish);
                arrival = take.after;
                ends.push((bucket.begin_of(arrival, extra), arrival));
                // What time has passed over is gone.
                let begun = now.0 * SCALE;
                let held = ends
                    .iter()
                    .map(|(from, to)| to.saturating_sub(*from.max(&begun)));
                assert!(held.sum::<u64>() <= bucket.token() * (burst / 16));
            }
        }
    }

    #[test]
    fn workers_share_the_sixteenth() {
        // One request a millisecond in each of four workers, of a limit that does not decide.
        let bucket = bucket(100_000, 100_000);
        let (mut arrival, mut reads) = (0, 0);
        let workers: Vec<_> = (0..4).map(|_| Leases::new(1, true)).collect();
        for i in 0..40_000u64 {
            let (leases, now) = (&workers[i as usize % 4], START.plus(Nanos(i * 250_000)));
            if leases.known(7, Some(&bucket), now, 1).is_none() {
                let wish = leases.wish(7, now, 1);
                let (_, take, extra) = bucket.take_with(arrival, now, 1, wish);
                let _ = leases.grant(7, &bucket, now, 1, extra, take.after);
                (arrival, reads) = (take.after, reads + 1);
            }
        }
        assert!(reads < 40_000 / 20, "{reads} reads");
    }

    #[test]
    fn a_busy_worker_seldom_asks_while_the_limit_does_not_decide() {
        let mut worker = Worker::new(bucket(1_000_000, 1_000_000));
        let admitted = (0..50_000u64)
            .filter(|i| worker.admits(START.plus(Nanos(i * 10_000))))
            .count();
        assert_eq!(admitted, 50_000);
        assert!(worker.reads < 50_000 / 12, "{} reads", worker.reads);
    }

    #[test]
    fn where_the_limit_decides_it_is_exact() {
        let mut worker = Worker::new(bucket(20_000, 20_000));
        assert_eq!((0..40_000).filter(|_| worker.admits(START)).count(), 20_000);
        let later = START.plus(Nanos::from_millis(100));
        assert_eq!((0..40_000).filter(|_| worker.admits(later)).count(), 2_000);
        // The last 15 sixteenths were taken one by one.
        assert!(worker.reads > 18_000, "{} reads", worker.reads);
    }

    #[test]
    fn what_time_has_passed_over_is_gone() {
        let mut worker = Worker::new(bucket(20_000, 20_000));
        for _ in 0..50 {
            worker.admits(START);
        }
        // The bucket is full again, and so the lease is worth nothing: together they hold the
        // burst, not more.
        let later = START.plus(Nanos::from_secs(10));
        assert_eq!((0..60_000).filter(|_| worker.admits(later)).count(), 20_000);
    }

    #[test]
    fn a_worker_with_little_traffic_takes_single_tokens() {
        let mut worker = Worker::new(bucket(20_000, 20_000));
        for n in 0..50 {
            assert!(worker.admits(START.plus(Nanos::from_millis(n * 56))));
        }
        assert_eq!(worker.reads, 50);
    }

    #[test]
    fn a_refused_key_is_refused_without_asking_until_its_time() {
        let mut worker = Worker::new(bucket(5, 5));
        let admitted = (0..1_000).filter(|_| worker.admits(START)).count();
        assert_eq!((admitted, worker.reads), (5, 6));
        assert!(!worker.admits(START.plus(Nanos(199_999_999))));
        assert_eq!(worker.reads, 6);
        assert!(worker.admits(START.plus(Nanos(200_000_000))));
    }

    #[test]
    fn keys_that_share_a_slot_do_not_share_tokens() {
        let (bucket, leases) = (bucket(20_000, 20_000), Leases::new(1, true));
        let (_, take, extra) = bucket.take_with(0, START, 1, tokens(10));
        assert!(
            leases
                .grant(1, &bucket, START, 1, extra, take.after)
                .is_some()
        );
        assert!(leases.known(2, Some(&bucket), START, 1).is_none());
        assert!(leases.known(1, Some(&bucket), START, 1).is_some());
    }

    #[test]
    fn an_undone_take_can_be_taken_again() {
        let (bucket, leases) = (bucket(20_000, 20_000), Leases::new(1, true));
        let (_, take, extra) = bucket.take_with(0, START, 1, tokens(4));
        let whole = leases
            .grant(1, &bucket, START, 1, extra, take.after)
            .unwrap();
        leases.undo(1, whole);
        let admitted = (0..10)
            .filter(|_| leases.known(1, Some(&bucket), START, 1).is_some())
            .count();
        assert_eq!(admitted, 5);
    }
}
