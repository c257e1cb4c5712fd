//! What calls took, and how many were in flight when they came.

use crate::base::time::Nanos;

/// Calls: how many, how many were in flight when they came, and how long they took, in ns.
///
/// The first two are in parts of a call, so that they age as evenly as the time does. (Bug avoided:
/// of whole numbers that age by a quarter, 23 stay 23 with eight new calls, where there should be
/// 32, and the mean is two fifths too long.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CallTotals {
    count: u64,
    in_flight: u64,
    time: u64,
}

/// Parts of a call.
const CALL: u64 = 1 << 12;

impl CallTotals {
    pub(super) const ZERO: Self = Self {
        count: 0,
        in_flight: 0,
        time: 0,
    };

    pub(super) const fn add(&mut self, in_flight: u64, elapsed: Nanos) {
        self.count = self.count.saturating_add(CALL);
        self.in_flight = self
            .in_flight
            .saturating_add(in_flight.saturating_mul(CALL));
        self.time = self.time.saturating_add(elapsed.0);
    }

    /// How many calls there are.
    pub(super) const fn count(&self) -> u64 {
        self.count / CALL
    }

    /// How many were in flight on average, with each of them; `None`: there are none.
    pub(super) fn among(&self) -> Option<u64> {
        self.in_flight.checked_div(self.count)
    }

    /// How long each takes of those that are in flight together.
    pub(super) fn each(&self) -> u64 {
        let time = u128::from(self.time).saturating_mul(CALL.into());
        saturated(time.checked_div(self.in_flight.into()).unwrap_or(0))
    }

    /// How many are answered within this time.
    pub(super) fn within(&self, time: u64) -> u64 {
        let product = u128::from(self.in_flight).saturating_mul(time.into());
        // Faster than the clock shows: as if it had taken a nanosecond.
        let time = u128::from(self.time.max(1)).saturating_mul(CALL.into());
        saturated(product.checked_div(time).unwrap_or(0))
    }

    pub(super) fn mean(&self) -> u64 {
        let time = u128::from(self.time).saturating_mul(CALL.into());
        saturated(time.checked_div(self.count.into()).unwrap_or(0))
    }

    /// Older calls count less.
    pub(super) fn aged(self) -> Self {
        let less = |n: u64| (n / 4).saturating_mul(3);
        Self {
            count: less(self.count),
            in_flight: less(self.in_flight),
            time: less(self.time),
        }
    }
}

fn saturated(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_calls_that_take_the_same_is_that_however_few_there_are() {
        for each in [1, 8, 9, 23] {
            let mut totals = CallTotals::ZERO;
            for _ in 0..100 {
                totals = totals.aged();
                (0..each).for_each(|_| totals.add(5, Nanos::from_millis(100)));
                let (mean, among) = (totals.mean(), totals.among());
                assert!(
                    (99_000_000..101_000_000).contains(&mean),
                    "{each} calls: {mean}"
                );
                // By the parts of a call that are cut off.
                assert!(matches!(among, Some(4 | 5)), "{each} calls: {among:?}");
            }
        }
    }
}
