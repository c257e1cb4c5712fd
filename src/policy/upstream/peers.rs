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
//! calls) a failure counts as ever. What comes too late while a limit refuses is the overload's,
//! unless such a peer answers in half of the time: in a queue that all share chance decides whose
//! requests are cut off first.
//!
//! | what happens | what the peers say | the failure |
//! |---|---|---|
//! | one endpoint dies, hangs or fails often | none fails like it | counts |
//! | two of three die at once | the third is clearly better | counts at both |
//! | all fail alike, all or a share of their answers | none is clearly better | does not count |
//! | a single endpoint | it has no peers | counts |
//! | few calls | no evidence | counts |
//!
//! **Slow** is a fault too, if it is an endpoint's own: one whose answers take [`OUTLIER`] times as
//! long as those of one in four of its peers, and at least one, and [`NOTABLE`] longer. Where all
//! are slow none is.
//!
//! The same times say whether an endpoint is slow for a try that may be cut off: where queues grow
//! everywhere, answers take half of the time of a try long before the first one is cut off. Where
//! they do so without a fault, a half more than usual counts, at most seven eighths.
//!
//! Counts fade, halved every [`HALF_LIFE`]. Each worker counts what it has seen itself, in 32 bytes
//! an endpoint; a lost VM starts anew, and so does a new configuration. The clock's steps back
//! change nothing but how long a count lives.

use crate::base::time::{Moment, Nanos};

/// The time in which what was seen loses half of its weight.
pub const HALF_LIFE: Nanos = Nanos::from_secs(2);

/// The same for what an upstream's answers usually take.
const LONG: Nanos = Nanos::from_secs(60);

/// Answers that take as many times as long as the peers' are slow.
pub const OUTLIER: u64 = 5;

/// At least so much longer: below it nobody minds.
pub const NOTABLE: Nanos = Nanos::from_millis(10);

/// A call's weight when it is new.
pub const CALL: u32 = 256;

/// Peers with fewer calls are no evidence.
const EVIDENCE: u32 = 3 * CALL;

/// The most peers that one failure is compared with: the next ones in the list, around its end. A
/// failure costs as much with 1,000 endpoints as with 32.
const COMPARED: usize = 32;

/// How a try at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Try {
    /// Well.
    Good,
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
    /// Those of which it is known how long they took, at least, and what they took, in
    /// microseconds.
    timed: u32,
    time: u64,
}

impl TryCounts {
    /// What is left of it now.
    fn faded(self, now: Moment) -> Self {
        self.fading(now, HALF_LIFE)
    }

    fn fading(self, now: Moment, half_life: Nanos) -> Self {
        let age = now.since(self.at).0;
        let halvings = u32::try_from(age.checked_div(half_life.0).unwrap_or(0)).unwrap_or(u32::MAX);
        let rest = age.checked_rem(half_life.0).unwrap_or(0);
        // Between two halvings in a straight line: from all to half. In 1024ths, so that no product
        // is too large.
        let lost = rest
            .saturating_mul(512)
            .checked_div(half_life.0)
            .unwrap_or(0);
        let part = 1_024u64.saturating_sub(lost);
        let fade = |n: u64| {
            let whole = n.checked_shr(halvings).unwrap_or(0);
            (whole / 1_024)
                .saturating_mul(part)
                .saturating_add((whole % 1_024).saturating_mul(part) / 1_024)
        };
        let fade32 = |n: u32| u32::try_from(fade(n.into())).unwrap_or(u32::MAX);
        Self {
            at: now,
            calls: fade32(self.calls),
            failures: fade32(self.failures),
            timed: fade32(self.timed),
            time: fade(self.time),
        }
    }

    fn add_time(&mut self, took: Nanos) {
        let micros = (took.0 / 1_000).min(1 << 32);
        self.timed = self.timed.saturating_add(CALL);
        self.time = self.time.saturating_add(micros.saturating_mul(CALL.into()));
    }

    /// What calls took; `None`: fewer than so many are known.
    fn mean(self, calls: u32) -> Option<Nanos> {
        let known = self.timed >= calls.max(1);
        let micros = self.time.checked_div(self.timed.into())?;
        known.then(|| Nanos(micros.saturating_mul(1_000)))
    }

    /// Whether enough is known to compare it with others.
    const fn is_evidence(self) -> bool {
        self.calls >= EVIDENCE
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
    /// What all of them together usually take.
    usual: TryCounts,
}

impl Peers {
    /// So many endpoints, of which nothing is known.
    #[must_use]
    pub fn new(endpoints: usize) -> Self {
        Self {
            counts: vec![TryCounts::default(); endpoints],
            usual: TryCounts::default(),
        }
    }

    /// There are so many endpoints from now on.
    pub fn resize(&mut self, endpoints: usize) {
        self.counts.resize(endpoints, TryCounts::default());
    }

    /// Another endpoint has this place, of which nothing is known.
    pub fn forget(&mut self, at: usize) {
        if let Some(counts) = self.counts.get_mut(at) {
            *counts = TryCounts::default();
        }
    }

    /// Counts a try at the endpoint of this place. `took`: how long, if that is known; what failed
    /// shows nothing of that.
    pub fn record(&mut self, at: usize, now: Moment, ended: Try, took: Option<Nanos>) {
        let Some(counts) = self.counts.get_mut(at) else {
            return;
        };
        *counts = counts.faded(now);
        counts.calls = counts.calls.saturating_add(CALL);
        if ended != Try::Good {
            counts.failures = counts.failures.saturating_add(CALL);
        }
        if let Some(took) = took.filter(|_| ended != Try::Failed) {
            counts.add_time(took);
            if ended == Try::Good {
                self.usual = self.usual.fading(now, LONG);
                self.usual.add_time(took);
            }
        }
    }

    /// The others, as they are now: the next ones in the list, around its end.
    fn others(&self, at: usize, now: Moment) -> impl Iterator<Item = TryCounts> {
        let around = self.counts.iter().skip(at.saturating_add(1));
        let around = around.chain(self.counts.iter().take(at)).take(COMPARED);
        around.map(move |peer| peer.faded(now))
    }

    /// Whether a failure of this endpoint, counted before, is its own and not one that its peers
    /// share. `overload`: for so long it gave no answer while a limit refused. Then it is its own
    /// only if peers prove it, that fail less and answer in half of that time; otherwise it is
    /// where nothing is known of them.
    #[must_use]
    pub fn is_own_fault(&self, at: usize, now: Moment, overload: Option<Nanos>) -> bool {
        let presumed = overload.is_none();
        let Some(own) = self.counts.get(at).map(|counts| counts.faded(now)) else {
            return presumed;
        };
        let known = self.others(at, now).filter(|peer| peer.is_evidence());
        let in_time = |peer: TryCounts| match (overload, peer.mean(CALL)) {
            (Some(late), Some(mean)) => mean < Nanos(late.0 / 2),
            _ => true,
        };
        let better = |peer: TryCounts| peer.is_clearly_better(own) && in_time(peer);
        are_enough(known.map(better)).unwrap_or(presumed)
    }

    /// Whether too little is known of this endpoint to say that it is no better than others.
    #[must_use]
    pub fn is_unknown(&self, at: usize, now: Moment) -> bool {
        let counts = self.counts.get(at);
        counts.is_some_and(|counts| !counts.faded(now).is_evidence())
    }

    /// Whether an answer of this endpoint that took so long is slow for a fault of its own. `trial`:
    /// it is a single one, with nothing known of the endpoint; otherwise what was counted has to be
    /// slow as well.
    #[must_use]
    pub fn is_outlier(&self, at: usize, now: Moment, took: Nanos, trial: bool) -> bool {
        let own = self.counts.get(at).map(|counts| counts.faded(now));
        let Some(own) = own.and_then(|own| {
            if trial {
                Some(took)
            } else {
                own.mean(EVIDENCE)
            }
        }) else {
            return false;
        };
        let own = own.min(took);
        if own < NOTABLE {
            return false;
        }
        let known = self.others(at, now).filter_map(|peer| peer.mean(EVIDENCE));
        let faster = |peer: Nanos| peer.times(OUTLIER).max(peer.plus(NOTABLE)) <= own;
        are_enough(known.map(faster)) == Some(true)
    }

    /// What has failed lately, in fractions of a call: it counts as if it were in flight, for as
    /// long as it lives.
    ///
    /// An endpoint that fails at once never has anything in flight. (Bug avoided: it looks the
    /// least loaded, and gets nearly all requests.) A single failure is forgotten after two
    /// half-lives.
    #[must_use]
    pub fn failed(&self, at: usize, now: Moment) -> u32 {
        self.counts.get(at).map_or(0, |counts| {
            if counts.failures == 0 {
                return 0;
            }
            let failures = counts.faded(now).failures;
            if failures < CALL / 4 { 0 } else { failures }
        })
    }

    /// Whether no other try is better to be cut off after `per_try` for one at this endpoint.
    /// `expected`: what a try takes there at least, for what else is known: answers tell of a queue
    /// as it was when they were asked for.
    #[must_use]
    pub fn is_slow(&self, at: usize, now: Moment, per_try: Nanos, expected: Nanos) -> bool {
        let counts = self.counts.get(at).map(|counts| counts.faded(now));
        let mean = counts.and_then(|counts| counts.mean(CALL));
        let mean = mean.unwrap_or_default().max(expected);
        let usual = self
            .usual
            .fading(now, LONG)
            .mean(EVIDENCE)
            .unwrap_or_default();
        let tight = Nanos((per_try.0 / 8).saturating_mul(7).max(1));
        mean >= usual
            .plus(Nanos(usual.0 / 2))
            .clamp(Nanos(per_try.0 / 2).min(tight), tight)
    }
}

/// Whether one in four of the peers of which something is known is better, and at least one; `None`:
/// nothing is known.
fn are_enough(better: impl Iterator<Item = bool>) -> Option<bool> {
    let (known, better) = better.fold((0u32, 0u32), |(known, all), better| {
        (known.saturating_add(1), all.saturating_add(better.into()))
    });
    (known > 0).then(|| better > 0 && better.saturating_mul(4) >= known)
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
                let ended = if failed { Try::Failed } else { Try::Good };
                peers.record(at, now, ended, None);
                if failed {
                    seen[at].0 += u32::from(peers.is_own_fault(at, now, None));
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
    fn what_is_late_in_an_overload_is_its_own_only_beside_peers_that_are_quick() {
        let own = |answers: u64| {
            let mut peers = Peers::new(2);
            for n in 0..9 {
                peers.record(1, ms(n), Try::Good, Some(Nanos::from_millis(answers)));
            }
            let late = Some(Nanos::from_millis(1_000));
            (0..3)
                .map(|n| {
                    peers.record(0, ms(10 + n), Try::Cut, late);
                    peers.is_own_fault(0, ms(10 + n), late)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(own(499), [true; 3]);
        assert_eq!(own(501), [false; 3]);
        // Of a peer of which nothing is known, and without an overload.
        let mut peers = Peers::new(2);
        peers.record(0, ms(0), Try::Cut, None);
        assert!(!peers.is_own_fault(0, ms(0), Some(Nanos::from_millis(1_000))));
        assert!(peers.is_own_fault(0, ms(0), None));
    }

    #[test]
    fn an_endpoint_that_dies_after_a_long_good_time_is_seen_at_once() {
        let mut peers = Peers::new(3);
        for n in 0..10_000 {
            (0..3).for_each(|at| peers.record(at, ms(n), Try::Good, None));
        }
        peers.record(1, ms(10_000), Try::Failed, None);
        assert!(peers.is_own_fault(1, ms(10_000), None));
    }

    #[test]
    fn what_has_failed_counts_until_it_is_forgotten() {
        let mut peers = Peers::new(2);
        assert_eq!(peers.failed(0, ms(0)), 0);
        (0..5).for_each(|_| peers.record(0, ms(0), Try::Failed, None));
        assert_eq!(
            [0, 2_000].map(|now| peers.failed(0, ms(now)) * 2 / CALL),
            [10, 5]
        );
        assert_eq!(peers.failed(0, ms(20_000)), 0, "forgotten");
        assert_eq!([peers.failed(1, ms(0)), peers.failed(9, ms(0))], [0; 2]);
    }

    /// So many answers of each, after these milliseconds.
    fn timed(times: &[u64], answers: u64) -> Peers {
        let mut peers = Peers::new(times.len());
        for _ in 0..answers {
            for (at, time) in times.iter().enumerate() {
                let took = Some(Nanos::from_millis(*time));
                peers.record(at, ms(0), Try::Good, took);
            }
        }
        peers
    }

    #[test]
    fn slow_for_a_try_is_what_takes_half_of_it_and_more_than_usual() {
        let slow = |peers: &Peers, at, now| {
            peers.is_slow(at, ms(now), Nanos::from_millis(100), Nanos::ZERO)
        };
        assert!(!slow(&Peers::new(2), 0, 0), "nothing is known");
        let mut peers = timed(&[10, 10], 20);
        assert!(!slow(&peers, 0, 0));
        (0..30).for_each(|_| {
            peers.record(0, ms(5_000), Try::Cut, Some(Nanos::from_millis(100)));
        });
        assert!(slow(&peers, 0, 5_000) && !slow(&peers, 1, 5_000));
        assert!(
            !slow(&peers, 0, 60_000),
            "a minute later nothing is left of it"
        );
        assert!(!slow(&peers, 7, 0), "no such endpoint");
        // Answers usually take most of a try.
        let mut peers = timed(&[60, 60], 20);
        assert!(!slow(&peers, 0, 0));
        (0..30).for_each(|_| peers.record(0, ms(10_000), Try::Cut, Some(Nanos::from_millis(100))));
        assert!(slow(&peers, 0, 10_000));
    }

    #[test]
    fn an_outlier_is_many_times_as_slow_as_its_peers() {
        let outlier = |times: &[u64], took| {
            timed(times, 5).is_outlier(0, ms(0), Nanos::from_millis(took), false)
        };
        assert!(outlier(&[100, 20, 20], 100));
        assert!(outlier(&[100, 100, 20], 100), "two of three");
        assert!(!outlier(&[99, 20, 20], 99), "not as slow");
        assert!(!outlier(&[100, 20, 20], 90), "this answer was not");
        assert!(
            !outlier(&[20, 20, 20], 100),
            "the others of its answers were not"
        );
        assert!(!outlier(&[100, 100, 100], 100), "all are");
        assert!(!outlier(&[9, 1, 1], 9), "nobody minds");
        assert!(!outlier(&[100], 100), "no peers");
        // A trial is judged by itself.
        let trial =
            |took| timed(&[20, 20, 20], 5).is_outlier(0, ms(0), Nanos::from_millis(took), true);
        assert!(trial(100) && !trial(99));
        assert!(!timed(&[100, 20], 2).is_outlier(0, ms(0), Nanos::from_millis(100), false));
    }

    proptest! {
        /// Faults that all share are held against few, at any rate of failure and traffic.
        #[test]
        fn what_all_share_is_not_an_endpoints_fault(
            n in 2usize..20, chance in 30u64..=100, seed: u64,
        ) {
            let seen = play(&vec![chance; n], 300, seed);
            let (counted, all) = seen.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
            // The first calls are no evidence yet, and rare failures are uneven.
            prop_assert!(counted * 3 <= all, "{counted} of {all}");
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
                let ended = [Try::Good, Try::Good, Try::Cut, Try::Failed][usize::from(what)];
                let (now, took) = (Moment(now), Nanos(now));
                peers.record(at, now, ended, (what > 0).then_some(took));
                let _ = (peers.is_own_fault(at, now, None), peers.is_slow(at, now, took, took));
                let _ = (peers.is_outlier(at, now, took, what > 1), peers.failed(at, now));
            }
        }
    }
}
