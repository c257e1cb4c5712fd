//! What becomes of an answer: one pure step from what is known to what is known then.
//!
//! **What if?** A worker is held up with an answer, and meanwhile another has asked: the later
//! question wins, whatever comes first. The clock steps back: moments that are still to come count
//! as none. A record that cannot be read: nothing is known, and the next answer counts as the first
//! one does.

use super::record::{Known, SourceState, SourceStatus};
use super::rules::{Judgement, Rules, judge};
use super::{Answer, Failure, MAX_ALL};
use crate::base::text::number;
use crate::base::time::Moment;

/// What a source has said, or has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When it was asked.
    pub asked: Moment,
    /// What it has answered.
    pub result: Result<Answer, Failure>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// Its endpoints are those of the upstream now; `changed`: they were not before.
    Counted {
        /// Whether they, or what is said of them, were others before.
        changed: bool,
    },
    /// It counts when the next answer says it again: whoever asks does so soon, and anew.
    Held,
    /// It cannot be used, or is empty.
    Refused,
    /// There was no answer, or an error.
    Failed,
    /// An answer to a later question has come before, or others kept writing: it changes nothing.
    Late,
}

impl Reported {
    /// What the metric calls it; `None`: it does not count it.
    #[must_use]
    pub const fn label(self) -> Option<&'static str> {
        match self {
            Self::Counted { .. } => Some("ok"),
            Self::Held | Self::Refused => Some("refused"),
            Self::Failed => Some("error"),
            Self::Late => None,
        }
    }
}

/// The moment at which a report is judged, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    /// When an answer counts.
    pub rules: Rules,
    /// Now.
    pub now: Moment,
    /// The same as Unix time in seconds: for people.
    pub unix: u64,
    /// How many endpoints all other upstreams with a source have.
    pub others: usize,
}

impl Report {
    /// What becomes of it, with what is known before; and what is known then, if that changes.
    #[must_use]
    pub fn step(&self, before: Known, around: Around) -> (Reported, Option<Known>) {
        let Around { now, unix, .. } = around;
        let past = |moment: Moment| moment <= now;
        if past(before.status.asked) && self.asked < before.status.asked {
            return (Reported::Late, None);
        }
        let (reported, state, reason, held) = self.judged(&before, around);
        let Known { status, .. } = &before;
        let is_news = state != status.state;
        let mut known = Known {
            status: SourceStatus {
                state,
                asked: self.asked,
                since_unix: if is_news { unix } else { status.since_unix },
                // An error says nothing of the endpoints: what the last answer said is still to be
                // confirmed.
                held: if reported == Reported::Failed {
                    status.held.clone()
                } else {
                    held.map(|missing| (now, missing))
                },
                reason,
                confirmed: if past(status.confirmed) {
                    status.confirmed
                } else {
                    Moment::ZERO
                },
                version: status.version,
                cursor: status.cursor,
            },
            ..before
        };
        if let (Reported::Counted { changed }, Ok(answer)) = (reported, &self.result) {
            known.status.confirmed = self.asked;
            known.status.cursor = answer.cursor;
            if changed {
                known = known.with(&answer.members, now);
            }
        }
        (reported, Some(known))
    }

    /// What it is, the state of the source by it, why, and what it lacks if it is held.
    fn judged(
        &self,
        before: &Known,
        around: Around,
    ) -> (Reported, SourceState, String, Option<Vec<u64>>) {
        let refused = |reason: String| (Reported::Refused, SourceState::Refused, reason, None);
        let answer = match &self.result {
            Ok(answer) => answer,
            Err(Failure::Error(reason)) => {
                return (Reported::Failed, SourceState::Error, reason.clone(), None);
            }
            Err(Failure::Refused(reason)) => return refused(reason.clone()),
        };
        // An answer to a question that was asked before is no second one.
        let held = before.status.held.as_ref();
        let held = held.filter(|(at, _)| *at <= self.asked || *at > around.now);
        let held = held.map(|(_, missing)| missing.as_slice());
        match judge(&before.members, &answer.members, held, around.rules) {
            Judgement::Empty => refused("the list is empty".into()),
            Judgement::Held(missing) => {
                let (lacks, known) = (missing.len() as u64, before.members.len() as u64);
                let counts = [number(lacks), number(known)];
                let [lacks, known] = counts.each_ref().map(String::as_str);
                let reason = [
                    "the list lacks ",
                    lacks,
                    " of ",
                    known,
                    " endpoints: it counts if it is said again",
                ];
                let reason = reason.concat();
                (Reported::Held, SourceState::Held, reason, Some(missing))
            }
            Judgement::Counts if self.is_too_much(answer, before, around.others) => {
                refused("all upstreams together would have more than 10000 endpoints".into())
            }
            Judgement::Counts => {
                let first = before.status.version == 0;
                let changed = first || before.members != answer.members;
                (
                    Reported::Counted { changed },
                    SourceState::Ok,
                    String::new(),
                    None,
                )
            }
        }
    }

    /// Whether there are too many endpoints with it, and more than without it.
    fn is_too_much(&self, answer: &Answer, before: &Known, others: usize) -> bool {
        let count = answer.members.len();
        count > before.members.len() && count.saturating_add(others) > MAX_ALL
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::membership;
    use super::super::{Membership, Verdict};
    use super::*;
    use crate::base::percent::Percent;
    use proptest::prelude::*;

    const T: u64 = 1_000;

    fn around(now: u64) -> Around {
        Around {
            rules: Rules::default(),
            now: Moment::from_secs(now),
            unix: 1_700_000_000 + now,
            others: 0,
        }
    }

    fn said(asked: u64, members: Membership) -> Report {
        Report {
            asked: Moment::from_secs(asked),
            result: Ok(Answer {
                members,
                cursor: asked,
            }),
        }
    }

    fn failed(asked: u64, failure: Failure) -> Report {
        Report {
            asked: Moment::from_secs(asked),
            result: Err(failure),
        }
    }

    fn play(known: &mut Known, report: &Report, now: u64) -> Reported {
        let (reported, new) = report.step(known.clone(), around(now));
        if let Some(new) = new {
            *known = new;
        }
        reported
    }

    #[test]
    fn what_counts_is_known_and_what_does_not_changes_no_endpoint() {
        let mut known = Known::default();
        let counted = |changed| Reported::Counted { changed };
        assert_eq!(
            play(&mut known, &said(T, membership(0..3)), T),
            counted(true)
        );
        assert_eq!(
            play(&mut known, &said(T + 1, membership(0..3)), T + 1),
            counted(false)
        );
        let at = |known: &Known| {
            (
                known.status.version / 1_000_000_000,
                known.status.confirmed.as_millis() / 1_000,
            )
        };
        assert_eq!(
            (at(&known), known.status.since_unix),
            ((T, T + 1), 1_700_001_000)
        );
        for (failure, state) in [
            (Failure::Error("status 500".into()), SourceState::Error),
            (Failure::Refused("endpoint 3".into()), SourceState::Refused),
        ] {
            play(&mut known, &failed(T + 2, failure), T + 2);
            assert_eq!((at(&known), known.members.len()), ((T, T + 1), 3));
            assert_eq!((known.status.state, known.status.cursor), (state, T + 1));
        }
        let empty = said(T + 3, Membership::default());
        assert_eq!(play(&mut known, &empty, T + 3), Reported::Refused);
        assert_eq!(
            (known.members.len(), &*known.status.reason),
            (3, "the list is empty")
        );
        // A verdict, a weight is a change too.
        let mut members = membership(0..3);
        members.0[1].verdict = Verdict::Draining;
        assert_eq!(
            play(&mut known, &said(T + 4, members), T + 4),
            counted(true)
        );
        assert_eq!((at(&known), &*known.status.reason), ((T + 4, T + 4), ""));
        // What comes later is new from then on, and what comes back as well.
        play(&mut known, &said(T + 5, membership(1..5)), T + 5);
        play(&mut known, &said(T + 6, membership(0..5)), T + 6);
        let seen = known.first_seen.iter();
        let seen: Vec<_> = seen.map(|it| it.as_millis() / 1_000).collect();
        assert_eq!(seen, [T + 6, 0, 0, T + 5, T + 5]);
    }

    #[test]
    fn a_large_removal_counts_when_a_later_question_has_the_same_answer() {
        let mut known = Known::default();
        play(&mut known, &said(T, membership(0..10)), T);
        assert_eq!(
            play(&mut known, &said(T + 1, membership(0..2)), T + 2),
            Reported::Held
        );
        assert_eq!(
            known.status.reason,
            "the list lacks 8 of 10 endpoints: it counts if it is said again"
        );
        // Asked by another worker before the first answer had come: it proves nothing.
        assert_eq!(
            play(&mut known, &said(T + 1, membership(0..2)), T + 3),
            Reported::Held
        );
        play(
            &mut known,
            &failed(T + 4, Failure::Error("no answer".into())),
            T + 4,
        );
        assert_eq!(known.members.len(), 10);
        let again = said(T + 5, membership(0..2));
        assert_eq!(
            play(&mut known, &again, T + 5),
            Reported::Counted { changed: true }
        );
        assert_eq!((known.members.len(), &known.status.held), (2, &None));
    }

    #[test]
    fn who_was_held_up_loses_to_who_asked_later() {
        let mut known = Known::default();
        play(&mut known, &said(T + 1, membership(0..3)), T + 2);
        let before = known.clone();
        assert_eq!(
            play(&mut known, &said(T, membership(0..9)), T + 2),
            Reported::Late
        );
        let error = failed(T, Failure::Error("timeout".into()));
        assert_eq!(play(&mut known, &error, T + 2), Reported::Late);
        assert_eq!(known, before);
    }

    #[test]
    fn a_clock_that_steps_back_stops_nothing() {
        let mut known = Known::default();
        play(&mut known, &said(T, membership(0..10)), T);
        play(&mut known, &said(T, membership(0..2)), T);
        let reported = play(&mut known, &failed(1, Failure::Error("x".into())), 1);
        assert_eq!(
            (reported, known.status.confirmed),
            (Reported::Failed, Moment::ZERO)
        );
        assert_eq!(
            play(&mut known, &said(2, membership(0..2)), 2),
            Reported::Counted { changed: true }
        );
        assert_eq!(known.status.confirmed, Moment::from_secs(2));
    }

    #[test]
    fn what_is_too_much_for_all_upstreams_is_refused_and_less_never() {
        let mut known = Known::default();
        let crowded = Around {
            others: 9_995,
            ..around(T)
        };
        let (reported, new) = said(T, membership(0..6)).step(known.clone(), crowded);
        let reason = new.unwrap().status.reason;
        assert_eq!(reported, Reported::Refused);
        assert!(reason.ends_with("more than 10000 endpoints"), "{reason}");
        assert_eq!(
            said(T, membership(0..5)).step(known.clone(), crowded).0,
            Reported::Counted { changed: true }
        );
        play(&mut known, &said(T, membership(0..8)), T);
        assert_eq!(
            said(T, membership(0..6)).step(known, crowded).0,
            Reported::Counted { changed: true }
        );
    }

    proptest! {
        /// Whatever is reported in whatever order by whatever clock: endpoints change only by an
        /// answer, to what it says; versions count up; what lacks too much does not count at once.
        #[test]
        fn endpoints_are_always_those_of_an_answer(
            reports in proptest::collection::vec(
                (0u8..8, proptest::collection::btree_set(0u32..20, 0..20), 0u64..40, 0u64..40),
                1..40,
            ),
        ) {
            let mut known = Known::default();
            for (kind, numbers, asked, more) in reports {
                let members = membership(numbers);
                let report = match kind {
                    0 => failed(asked, Failure::Error("x".into())),
                    1 => failed(asked, Failure::Refused("x".into())),
                    _ => said(asked, members.clone()),
                };
                let before = known.clone();
                let reported = play(&mut known, &report, asked + more);
                let same = known.members == before.members;
                prop_assert!(same || known.members == members);
                let step = u64::from(matches!(reported, Reported::Counted { changed: true }));
                prop_assert_eq!(known.status.version > before.status.version, step == 1);
                prop_assert!(step == 1 || known.status.version == before.status.version);
                prop_assert!(same || step == 1);
                prop_assert!(!known.members.is_empty() || before.members.is_empty());
                let is_held = known.status.held.is_some();
                prop_assert!(!is_held || matches!(reported, Reported::Held | Reported::Failed | Reported::Late));
                let kept = before.members.members().iter()
                    .filter(|it| known.members.find(&it.address).is_some()).count();
                let most = Percent(5_000).0 as usize;
                let lost = before.members.len() - kept;
                prop_assert!(lost * 10_000 <= before.members.len() * most || before.status.held.is_some());
            }
        }
    }
}
