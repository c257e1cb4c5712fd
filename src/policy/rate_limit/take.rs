//! The state that an algorithm keeps of a key, its verdict on a request, and the tokens that it
//! took.

use crate::base::time::Nanos;

/// The state of a key. A key that was never seen has the default.
///
/// States of one algorithm compare by their debt: if one must be forgotten, the lesser is the
/// smaller loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BucketState {
    /// The moment from which nothing is owed any more, in the algorithm's unit: a slot in this
    /// state may be forgotten then.
    pub until: u64,
    /// The algorithm's own, 0 for those of one number.
    pub rest: u64,
}

/// The verdict on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Admitted {
        /// Whole tokens left.
        remaining: u64,
        /// Time until nothing is owed.
        reset: Nanos,
    },
    /// It may pass after a wait: its place is reserved.
    Delayed {
        /// Whole tokens left.
        remaining: u64,
        /// Time until nothing is owed.
        reset: Nanos,
        /// How long it is to wait, more than 0.
        delay: Nanos,
    },
    /// It may not.
    Refused {
        /// Whole tokens left.
        remaining: u64,
        /// Time until nothing is owed.
        reset: Nanos,
        /// When it would be admitted, to the nanosecond; `None` = never.
        wait: Option<Nanos>,
    },
}

/// Tokens that were taken, so that they can be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// The state before.
    pub before: BucketState,
    /// The state after.
    pub after: BucketState,
    /// What was spent, in the algorithm's unit; 0: there is nothing to give back.
    pub spent: u64,
}

impl Take {
    /// Nothing was taken from a key in this state.
    #[must_use]
    pub const fn nothing(state: BucketState) -> Self {
        Self {
            before: state,
            after: state,
            spent: 0,
        }
    }

    /// A refusal, where `self` took nothing.
    pub(super) const fn refusal(
        self,
        remaining: u64,
        reset: Nanos,
        wait: Option<Nanos>,
    ) -> (Verdict, Self) {
        let verdict = Verdict::Refused {
            remaining,
            reset,
            wait,
        };
        (verdict, self)
    }
}
