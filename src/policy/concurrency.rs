//! Bounds of the requests in flight. Nothing queues: haven refuses at once what finds no room, the
//! least critical requests first.
//!
//! The requests in flight are one gauge for all workers. A request counts itself in, reads the
//! gauge, and takes itself out again if the limit is exceeded. So the limit is never exceeded by
//! admitted requests: of two that come at once, each sees the other. The price is that both may be
//! refused where there was room for one: a refused request counts for as long as two host calls
//! take.
//!
//! [`adaptive`] finds the limit by itself; [`super::shares`] corrects the gauge when a VM is lost.

pub mod adaptive;
pub mod config;
pub mod fair;
pub mod streams;

use crate::base::time::Nanos;
use config::Criticality;
use fair::Standing;

/// The `Retry-After` of a refusal: a guess, since it is unknown how long the overload lasts.
pub const RETRY_AFTER: Nanos = Nanos::from_secs(1);

/// Whether there is room beside `others` in flight. The thresholds are shares of the limit,
/// compared without rounding: 2 of 3 are less than 70 %, so that a limit of 3 has room for three of
/// any kind, and one of 1 for one.
#[must_use]
pub const fn has_room(others: u64, limit: u64, criticality: Criticality) -> bool {
    others.saturating_mul(100) < limit.saturating_mul(share(criticality))
}

/// The same for a request whose key is so far above its fair share: see [`fair`].
#[must_use]
pub fn has_room_of(standing: Standing, others: u64, limit: u64, of: Criticality) -> bool {
    match standing {
        Standing::Within => has_room(others, limit, of),
        Standing::Over => {
            let percent = share(of).saturating_mul(fair::OVERDRAWN);
            others.saturating_mul(10_000) < limit.saturating_mul(percent)
        }
        Standing::FarOver { among } => has_room(others.max(among), limit, Criticality::Sheddable),
    }
}

/// What a limit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is room.
    Room,
    /// There is none.
    Full,
    /// Not for one who has more than a fair share of what is in flight: a higher limit would be of
    /// no use to those who ask for little. Who is far above a share is refused for that even where
    /// the limit is full: it is full of what such keys have.
    OverShare,
}

impl Answer {
    /// To a request of this criticality and standing, beside `others` in flight.
    #[must_use]
    pub fn of(standing: Standing, others: u64, limit: u64, criticality: Criticality) -> Self {
        let is_far = matches!(standing, Standing::FarOver { .. });
        if has_room_of(standing, others, limit, criticality) {
            Self::Room
        } else if is_far || has_room(others, limit, criticality) {
            Self::OverShare
        } else {
            Self::Full
        }
    }
}

/// The share of the limit, in percent, from which on a request is refused.
pub const fn share(criticality: Criticality) -> u64 {
    match criticality {
        Criticality::Sheddable => 70,
        Criticality::SheddablePlus => 80,
        Criticality::Critical => 95,
        Criticality::CriticalPlus => 100,
    }
}

/// For so long after it has refused something a limit counts as shedding.
pub const SHEDDING: Nanos = Nanos::from_secs(1);

/// How much room a limit has for more work than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Half of it is free, and nothing is refused.
    Spare,
    /// There is some.
    Scarce,
    /// None: four fifths are in use, or something was refused lately.
    Full,
}

impl Room {
    /// The room of a limit that has so many requests in flight.
    #[must_use]
    pub const fn of(in_flight: u64, limit: u64, is_shedding: bool) -> Self {
        if is_shedding || in_flight.saturating_mul(5) > limit.saturating_mul(4) {
            Self::Full
        } else if in_flight.saturating_mul(2) > limit {
            Self::Scarce
        } else {
            Self::Spare
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_a_share_of_the_limit_and_never_none() {
        use Criticality::{Critical, CriticalPlus, Sheddable, SheddablePlus};
        let room = |limit, criticality| {
            (0..)
                .take_while(|others| has_room(*others, limit, criticality))
                .count()
        };
        for (limit, rooms) in [
            (1, [1, 1, 1, 1]),
            (2, [2, 2, 2, 2]),
            (3, [3, 3, 3, 3]),
            (4, [3, 4, 4, 4]),
            (5, [4, 4, 5, 5]),
            (10, [7, 8, 10, 10]),
            (20, [14, 16, 19, 20]),
            (100, [70, 80, 95, 100]),
            (1_000_000, [700_000, 800_000, 950_000, 1_000_000]),
        ] {
            assert_eq!(
                [Sheddable, SheddablePlus, Critical, CriticalPlus].map(|c| room(limit, c)),
                rooms,
                "{limit}"
            );
        }
        assert!(!has_room(u64::MAX, u64::MAX, Sheddable));
    }
}
