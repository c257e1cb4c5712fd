//! A concurrency limit as it is configured, and what is shed first.

use crate::policy::mode::Mode;
use crate::request::key::{KeyPart, SomeKeyParts};
use crate::schema::{Decode, Errors, Int, Json, Path, choice, section};

/// A bound of the requests in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimit {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// How the bound is found.
    pub algorithm: ConcurrencyAlgorithm,
    /// What fair shares are by; empty: none.
    pub fair: Vec<KeyPart>,
}

/// How a concurrency limit finds its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConcurrencyAlgorithm {
    /// It is given.
    Fixed {
        /// The bound, 1 to 1,000,000.
        limit: u32,
    },
    /// It is found from what is answered in time. 1 <= `min` <= `initial` <= `max` <= 1,000,000.
    Adaptive {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
        /// Where it begins.
        initial: u32,
    },
}

/// What is shed first under load, from first to last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Criticality {
    /// May be shed at once.
    Sheddable,
    /// May be shed.
    SheddablePlus,
    /// Is shed when the limit is all but reached.
    #[default]
    Critical,
    /// Is shed last.
    CriticalPlus,
}

choice! { Criticality {
    "critical_plus" => Self::CriticalPlus,
    "critical" => Self::Critical,
    "sheddable_plus" => Self::SheddablePlus,
    "sheddable" => Self::Sheddable,
} }

section! {
    /// A bound of the requests in flight.
    ConcurrencySection / check {
        /// Its mode.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// `fixed`: a bound that is given. `adaptive`: a bound that is found, so that what is
        /// admitted is answered within the deadline (`timeout.request`, else 15 s; the shortest of
        /// the routes that share it).
        algorithm: AlgorithmName = Default("\"adaptive\"");
        /// The bound of `fixed`, which needs it.
        limit: Option<Int<1, 1_000_000>> = Absent("none");
        /// The least that `adaptive` finds.
        min_limit: Option<Int<1, 1_000_000>> = Absent("3");
        /// The most that `adaptive` finds.
        max_limit: Option<Int<1, 1_000_000>> = Absent("1000");
        /// Where `adaptive` begins.
        initial_limit: Option<Int<1, 1_000_000>> = Absent("20, within the bounds");
        /// A key as a rate limit's, by which shares are fair: while the limit refuses anything, a
        /// request of who has more than an equal share of what is in flight is refused first,
        /// within each criticality. A request that lacks a part of the key is not counted to
        /// anyone.
        fair: Option<SomeKeyParts> = Absent("none");
    }
}

choice! {
    /// How a concurrency limit finds its bound.
    enum AlgorithmName {
        Adaptive = "adaptive",
        Fixed = "fixed",
    }
}

fn check(at: &Path<'_>, json: &Json, errors: &mut Errors) {
    ConcurrencySection::decode(json).check(at, errors);
}

impl ConcurrencySection {
    /// The concurrency limit of this name.
    #[inline(never)]
    pub(crate) fn compile(self, name: String) -> ConcurrencyLimit {
        let (min, max, initial) = self.bounds();
        let algorithm = match self.algorithm {
            AlgorithmName::Adaptive => ConcurrencyAlgorithm::Adaptive { min, max, initial },
            AlgorithmName::Fixed => ConcurrencyAlgorithm::Fixed {
                limit: self.limit.unwrap_or(1),
            },
        };
        ConcurrencyLimit {
            name,
            mode: self.mode,
            algorithm,
            fair: self.fair.unwrap_or_default(),
        }
    }

    fn check(&self, at: &Path<'_>, errors: &mut Errors) {
        let adaptive = self.algorithm == AlgorithmName::Adaptive;
        match self.limit {
            None if !adaptive => {
                errors.missing(&at.key("limit"), &<Int<1, 1_000_000>>::SCHEMA.want());
            }
            Some(limit) if adaptive => {
                let want = "none: adaptive finds its limit";
                errors.refuse_number(&at.key("limit"), u64::from(limit), want);
            }
            _ => {}
        }
        let (low, high, first) = self.bounds();
        if low > high {
            let want = ["at least the min_limit of ", &low.to_string()].concat();
            errors.refuse_number(&at.key("max_limit"), u64::from(high), &want);
        } else if self.initial_limit.is_some() && !(low..=high).contains(&first) {
            let want = [
                "an integer from the min_limit of ",
                &low.to_string(),
                " to the max_limit of ",
                &high.to_string(),
            ];
            errors.refuse_number(&at.key("initial_limit"), u64::from(first), &want.concat());
        }
    }

    /// Bounds of `adaptive` and where it begins, by default 20, or the bound that is nearer.
    fn bounds(&self) -> (u32, u32, u32) {
        let (low, high) = (self.min_limit.unwrap_or(3), self.max_limit.unwrap_or(1000));
        let first = self.initial_limit.unwrap_or_else(|| 20.min(high).max(low));
        (low, high, first)
    }
}
