//! How the endpoints of an upstream have done lately, each against its peers.
//!
//! A breaker judges an endpoint by itself. That is right for a fault of its own, and wrong for one
//! that all endpoints share: an overload, a bad route, a dead dependency. To eject one endpoint
//! after the other then takes away capacity and mends nothing. So before a failure counts against
//! an endpoint, its peers are looked at: it counts if there is a clearly better place to go.
//!
//! **Clearly better** is a peer that fails less than half as often. One in four of the peers that
//! have evidence must be, and at least one: a single lucky peer among many proves nothing, and two
//! dead endpoints beside a good one must both go. Without evidence (no peer, or none with enough
//! calls) a failure counts as ever.
//!
//! | what happens | what the peers say | the failure |
//! |---|---|---|
//! | one endpoint dies, hangs or fails often | none fails like it | counts |
//! | two of three die at once | the third is clearly better | counts at both |
//! | all fail alike, all or a share of their answers | none is clearly better | does not count |
//! | a single endpoint | it has no peers | counts |
//! | few calls | no evidence | counts |
//!
//! The same counts say whether an endpoint is slow: whether tries there have lately taken longer
//! than a try may.
//!
//! Counts fade, halved every [`HALF_LIFE`]. Each worker counts what it has seen itself, in 16 bytes
//! an endpoint; a lost VM starts anew, and so does a new configuration. The clock's steps back
//! change nothing but how long a count lives.

use crate::base::time::{Moment, Nanos};

/// The time in which what was seen loses half of its weight.
pub const HALF_LIFE: Nanos = Nanos::from_secs(2);

/// A call's weight when it is new.
const CALL: u32 = 256;

/// Peers with fewer calls are no evidence.
const EVIDENCE: u32 = 3 * CALL;

/// The most peers that one failure is compared with: the next ones in the list, around its end. A
/// failure costs as much with 1,000 endpoints as with 32.
const COMPARED: usize = 32;

/// How a try at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Try {
    /// Well, within the time that a try may take.
    Good,
    /// Well, but later than a try may.
    Late,
    /// Without an answer in the time that a try may take.
    Cut,
    /// It failed before.
    Failed,
}

/// What was seen of an endpoint, in fractions of a call.
#[derive(Clone, Copy, Debug, Default)]
struct TryCounts {
    at: Moment,
    calls: u32,
    failures: u32,
    late: u32,
}

impl TryCounts {
    /// What is left of it now.
    fn faded(self, now: Moment) -> Self {
        let age = now.since(self.at).0;
        let halvings = u32::try_from(age.checked_div(HALF_LIFE.0).unwrap_or(0)).unwrap_or(u32::MAX);
        let rest = age.checked_rem(HALF_LIFE.0).unwrap_or(0);
        // Between two halvings in a straight line: from all to half.
        let part = HALF_LIFE.0.saturating_mul(2).saturating_sub(rest);
        let fade = |n: u32| {
            let whole = u64::from(n.checked_shr(halvings).unwrap_or(0));
            let left = whole
                .saturating_mul(part)
                .checked_div(HALF_LIFE.0.saturating_mul(2))
                .unwrap_or(0);
            u32::try_from(left).unwrap_or(u32::MAX)
        };
        Self {
            at: now,
            calls: fade(self.calls),
            failures: fade(self.failures),
            late: fade(self.late),
        }
    }

    /// Whether it fails less than half as often as the other.
    fn is_clearly_better(self, other: Self) -> bool {
        let [its, others] = [(self, other), (other, self)]
            .map(|(a, b)| u64::from(a.failures).saturating_mul(b.calls.into()));
        its.saturating_mul(2) < others
    }
}

/// The endpoints of an upstream, as one worker has seen them.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    counts: Vec<TryCounts>,
}

impl Peers {
    /// So many endpoints, of which nothing is known.
    #[must_use]
    pub fn new(endpoints: usize) -> Self {
        Self {
            counts: vec![TryCounts::default(); endpoints],
        }
    }

    /// Counts a try at the endpoint of this place.
    pub fn record(&mut self, at: usize, now: Moment, ended: Try) {
        let Some(counts) = self.counts.get_mut(at) else {
            return;
        };
        *counts = counts.faded(now);
        counts.calls = counts.calls.saturating_add(CALL);
        if matches!(ended, Try::Failed | Try::Cut) {
            counts.failures = counts.failures.saturating_add(CALL);
        }
        if matches!(ended, Try::Late | Try::Cut) {
            counts.late = counts.late.saturating_add(CALL);
        }
    }

    /// Whether a failure of this endpoint, counted before, is its own and not one that its peers
    /// share.
    #[must_use]
    pub fn is_own_fault(&self, at: usize, now: Moment) -> bool {
        let Some(own) = self.counts.get(at).map(|counts| counts.faded(now)) else {
            return true;
        };
        let around = self.counts.iter().skip(at.saturating_add(1));
        let around = around.chain(self.counts.iter().take(at)).take(COMPARED);
        let (mut known, mut better) = (0u32, 0u32);
        for peer in around.map(|peer| peer.faded(now)) {
            if peer.calls >= EVIDENCE {
                known = known.saturating_add(1);
                better = better.saturating_add(peer.is_clearly_better(own).into());
            }
        }
        known == 0 || (better > 0 && better.saturating_mul(4) >= known)
    }

    /// The cost of one more request at an endpoint that has so many in flight, for who picks the
    /// least: what has failed lately counts as if it were in flight, for as long as it lives.
    ///
    /// An endpoint that fails at once never has anything in flight. (Bug avoided: it looks the
    /// least loaded, and gets nearly all requests.) A single failure is forgotten after two
    /// half-lives.
    #[must_use]
    pub fn cost(&self, at: usize, now: Moment, in_flight: u64) -> u64 {
        let failures = self.counts.get(at).map_or(0, |counts| {
            if counts.failures == 0 {
                return 0;
            }
            let failures = counts.faded(now).failures;
            if failures < CALL / 4 { 0 } else { failures }
        });
        in_flight
            .saturating_mul(CALL.into())
            .saturating_add(failures.into())
    }

    /// Whether at least half of the tries at this endpoint have lately taken longer than a try may.
    #[must_use]
    pub fn is_slow(&self, at: usize, now: Moment) -> bool {
        self.counts.get(at).is_some_and(|counts| {
            let counts = counts.faded(now);
            counts.calls >= CALL && counts.late.saturating_mul(2) >= counts.calls
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use proptest::prelude::*;

    fn ms(n: u64) -> Moment {
        Moment::from_millis(n)
    }

    /// Plays `rounds` of calls, one to each endpoint every 10 ms, each failing with its own chance
    /// in percent. How many of the failures of each counted, and how many there were.
    fn play(failing: &[u64], rounds: u64, seed: u64) -> Vec<(u32, u32)> {
        let (rng, mut peers) = (Rng::new(seed), Peers::new(failing.len()));
        let mut seen = vec![(0, 0); failing.len()];
        for round in 0..rounds {
            let now = ms(1_000 + round * 10);
            for (at, chance) in failing.iter().enumerate() {
                let failed = rng.below(100) < *chance;
                peers.record(at, now, if failed { Try::Failed } else { Try::Good });
                if failed {
                    seen[at].0 += u32::from(peers.is_own_fault(at, now));
                    seen[at].1 += 1;
                }
            }
        }
        seen
    }

    #[test]
    fn a_single_endpoint_has_no_peers_to_blame() {
        assert_eq!(play(&[100], 50, 1), [(50, 50)]);
    }

    #[test]
    fn what_one_endpoint_does_alone_counts() {
        for n in [2, 3, 10, 100] {
            let mut failing = vec![0; n];
            failing[n / 2] = 100;
            let (counted, all) = play(&failing, 50, 2)[n / 2];
            assert_eq!((counted, all), (50, 50), "{n} endpoints");
        }
    }

    #[test]
    fn of_three_two_may_die_at_once() {
        let seen = play(&[100, 0, 100], 100, 3);
        assert_eq!([seen[0], seen[2]], [(100, 100); 2]);
    }

    #[test]
    fn an_endpoint_that_dies_after_a_long_good_time_is_seen_at_once() {
        let mut peers = Peers::new(3);
        for n in 0..10_000 {
            (0..3).for_each(|at| peers.record(at, ms(n), Try::Good));
        }
        peers.record(1, ms(10_000), Try::Failed);
        assert!(peers.is_own_fault(1, ms(10_000)));
    }

    #[test]
    fn what_has_failed_costs_as_much_as_what_is_in_flight() {
        let mut peers = Peers::new(2);
        let cost = |peers: &Peers, at, ms_now, in_flight| peers.cost(at, ms(ms_now), in_flight);
        assert_eq!(cost(&peers, 0, 0, 0), cost(&peers, 1, 0, 0));
        (0..5).for_each(|_| peers.record(0, ms(0), Try::Failed));
        assert_eq!(cost(&peers, 0, 0, 0), cost(&peers, 1, 0, 5));
        assert!(
            cost(&peers, 0, 2_000, 0) > cost(&peers, 1, 2_000, 2),
            "half of them"
        );
        assert!(cost(&peers, 0, 2_000, 0) < cost(&peers, 1, 2_000, 3));
        assert_eq!(cost(&peers, 0, 20_000, 0), 0, "forgotten");
        assert_eq!(peers.cost(9, ms(0), u64::MAX), u64::MAX, "no such endpoint");
    }

    #[test]
    fn slow_is_who_was_late_half_of_the_time_and_only_lately() {
        let mut peers = Peers::new(2);
        assert!(!peers.is_slow(0, ms(0)), "nothing is known");
        peers.record(0, ms(0), Try::Cut);
        assert!(peers.is_slow(0, ms(0)) && !peers.is_slow(1, ms(0)));
        peers.record(0, ms(0), Try::Good);
        assert!(peers.is_slow(0, ms(0)), "half");
        peers.record(0, ms(2), Try::Good);
        assert!(!peers.is_slow(0, ms(2)));
        peers.record(1, ms(3), Try::Late);
        assert!(peers.is_slow(1, ms(3)));
        assert!(
            !peers.is_slow(1, ms(60_000)),
            "a minute later nothing is left of it"
        );
        assert!(!peers.is_slow(7, ms(3)), "no such endpoint");
    }

    proptest! {
        /// Faults that all share are held against few, at any rate of failure and traffic.
        #[test]
        fn what_all_share_is_not_an_endpoints_fault(
            n in 2usize..20, chance in 20u64..=100, seed: u64,
        ) {
            let seen = play(&vec![chance; n], 300, seed);
            let (counted, all) = seen.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
            // The first calls are no evidence yet, and rare failures are uneven.
            prop_assert!(counted * 4 <= all, "{counted} of {all}");
        }

        /// What fails clearly more often than its peers is held against it.
        #[test]
        fn an_outlier_is_blamed(n in 2usize..20, chance in 50u64..=100, seed: u64) {
            let mut failing = vec![chance / 6; n];
            failing[0] = chance;
            let (counted, all) = play(&failing, 300, seed)[0];
            prop_assert!(counted * 10 >= all * 8, "{counted} of {all}");
        }

        /// No order of times or places is dangerous.
        #[test]
        fn anything_goes(events in prop::collection::vec((0usize..5, any::<u64>(), 0u8..4), 0..60)) {
            let mut peers = Peers::new(4);
            for (at, now, what) in events {
                let ended = [Try::Good, Try::Late, Try::Cut, Try::Failed][usize::from(what)];
                peers.record(at, Moment(now), ended);
                let _ = (peers.is_own_fault(at, Moment(now)), peers.is_slow(at, Moment(now / 2)));
            }
        }
    }
}
