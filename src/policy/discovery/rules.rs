//! When an answer counts: it never takes away what works.
//!
//! | an answer | counts |
//! |---|---|
//! | names endpoints, and lacks few of those that are known | at once |
//! | lacks more than `max_removal_percent` of them | when the next answer lacks them too |
//! | is empty | never; with `empty_is_real` like any other |
//! | cannot be read, is an error, or does not come | never |
//!
//! **The next answer lacks them too** if the last one lacked all that it lacks, but for as many as
//! any answer may lack. So a list that goes on changing is believed, and each endpoint that goes
//! with many others is lacking twice.

use super::Membership;
use crate::base::hash::of_names;
use crate::base::percent::Percent;
use crate::base::sort;

/// When an answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether an empty list may be true.
    pub empty_is_real: bool,
    /// The most of the known endpoints that an answer may lack and count at once.
    pub max_removal: Percent,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            empty_is_real: false,
            max_removal: Percent(5_000),
        }
    }
}

/// Whether an answer counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It does.
    Counts,
    /// It does when the next one lacks these endpoints too: hashes of their addresses, in order.
    Held(Vec<u64>),
    /// It is empty.
    Empty,
}

/// Judges an answer. `held`: what the last answer lacked, if that was [`Judgement::Held`].
#[must_use]
pub fn judge(
    known: &Membership,
    answer: &Membership,
    held: Option<&[u64]>,
    rules: Rules,
) -> Judgement {
    if answer.is_empty() && !rules.empty_is_real {
        return Judgement::Empty;
    }
    let missing = missing(known, answer);
    let may_lack = |count: usize| {
        let part = (count as u64).saturating_mul(10_000);
        part <= (known.len() as u64).saturating_mul(rules.max_removal.0.into())
    };
    let unsaid = missing.iter().filter(|id| {
        let said = held.is_some_and(|held| held.binary_search(id).is_ok());
        !said
    });
    if may_lack(missing.len()) || (held.is_some() && may_lack(unsaid.count())) {
        Judgement::Counts
    } else {
        Judgement::Held(missing)
    }
}

/// Hashes of the addresses that are known and not named any more, in order.
fn missing(known: &Membership, answer: &Membership) -> Vec<u64> {
    let known = known.members().iter();
    let gone = known.filter(|it| answer.find(&it.address).is_none());
    let mut missing: Vec<_> = gone.map(|it| of_names(&[&it.address])).collect();
    sort::by_key(&mut missing, |id| *id);
    missing
}

#[cfg(test)]
mod tests {
    use super::super::tests::membership;
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules {
        empty_is_real: false,
        max_removal: Percent(5_000),
    };

    fn held(known: &Membership, answer: &Membership, before: Option<&[u64]>) -> Option<Vec<u64>> {
        match judge(known, answer, before, RULES) {
            Judgement::Held(missing) => Some(missing),
            _ => None,
        }
    }

    #[test]
    fn what_lacks_more_than_half_counts_when_it_is_said_again() {
        let (known, some) = (membership(0..10), membership(0..4));
        let first = held(&known, &some, None).unwrap();
        assert_eq!(first.len(), 6);
        assert_eq!(held(&known, &some, Some(&first)), None);
        // Half of them may go at once, and new ones come whenever.
        assert_eq!(
            judge(&known, &membership(5..200), None, RULES),
            Judgement::Counts
        );
        // A further one goes in between.
        assert_eq!(held(&known, &membership(0..3), Some(&first)), None);
    }

    #[test]
    fn two_fragments_of_a_list_do_not_confirm_each_other() {
        let tight = Rules {
            max_removal: Percent(1_000),
            ..RULES
        };
        let known = membership(0..100);
        let Judgement::Held(first) = judge(&known, &membership(0..60), None, tight) else {
            panic!("40 of 100 are lacking");
        };
        let second = membership(40..100);
        assert_eq!(
            judge(&known, &second, Some(&first), tight),
            Judgement::Held(missing(&known, &second))
        );
        // As many as any answer may lack may go beside them.
        let second = membership(10..60);
        assert_eq!(
            judge(&known, &second, Some(&first), tight),
            Judgement::Counts
        );
    }

    #[test]
    fn an_empty_list_counts_only_where_it_may_be_true() {
        let (known, none) = (membership(0..2), Membership::default());
        for known in [&known, &none] {
            assert_eq!(judge(known, &none, None, RULES), Judgement::Empty);
            assert_eq!(judge(known, &none, Some(&[]), RULES), Judgement::Empty);
        }
        let real = Rules {
            empty_is_real: true,
            ..RULES
        };
        let Judgement::Held(missing) = judge(&known, &none, None, real) else {
            panic!("it lacks all");
        };
        assert_eq!(
            judge(&known, &none, Some(&missing), real),
            Judgement::Counts
        );
        assert_eq!(judge(&none, &none, None, real), Judgement::Counts);
    }

    fn some() -> impl Strategy<Value = Membership> {
        proptest::collection::btree_set(0u32..40, 0..40).prop_map(membership)
    }

    proptest! {
        /// Whatever answers come: what is known loses more than half at once only if two answers in
        /// a row lacked it, and it is never empty again.
        #[test]
        fn what_works_is_not_taken_away_by_one_answer(
            answers in proptest::collection::vec(some(), 1..30),
            percent in 0u32..=10_000,
            empty_is_real: bool,
        ) {
            let rules = Rules { empty_is_real, max_removal: Percent(percent) };
            let (mut known, mut before) = (Membership::default(), None::<Vec<u64>>);
            for answer in answers {
                let lacks = missing(&known, &answer);
                match judge(&known, &answer, before.as_deref(), rules) {
                    Judgement::Empty => {
                        prop_assert!(answer.is_empty() && !empty_is_real);
                    }
                    Judgement::Held(missing) => {
                        prop_assert_eq!(&missing, &lacks);
                        prop_assert!(missing.len() * 10_000 > known.len() * percent as usize);
                        // Said again it counts.
                        let again = judge(&known, &answer, Some(&missing), rules);
                        prop_assert_eq!(again, Judgement::Counts);
                        before = Some(missing);
                    }
                    Judgement::Counts => {
                        prop_assert!(empty_is_real || !answer.is_empty());
                        let said = |id: &&u64| {
                            before.as_ref().is_some_and(|before| before.contains(id))
                        };
                        let unsaid = lacks.iter().filter(|id| !said(id)).count();
                        prop_assert!(unsaid * 10_000 <= known.len() * percent as usize);
                        (known, before) = (answer, None);
                    }
                }
            }
        }
    }
}
