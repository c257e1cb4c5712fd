//! What calls took, and how many were in flight when they came.

use crate::base::time::Nanos;

/// Calls: how many, how many were in flight when they came, and how long they took, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CallTotals {
    pub(super) count: u64,
    pub(super) in_flight: u64,
    pub(super) time: u64,
}

impl CallTotals {
    pub(super) const ZERO: Self = Self {
        count: 0,
        in_flight: 0,
        time: 0,
    };

    pub(super) const fn add(&mut self, in_flight: u64, elapsed: Nanos) {
        self.count = self.count.saturating_add(1);
        self.in_flight = self.in_flight.saturating_add(in_flight);
        self.time = self.time.saturating_add(elapsed.0);
    }

    /// How many are answered within this time.
    pub(super) fn within(&self, time: u64) -> u64 {
        let product = u128::from(self.in_flight).saturating_mul(time.into());
        // Faster than the clock shows: as if it had taken a nanosecond.
        u64::try_from(product.checked_div(self.time.max(1).into()).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    pub(super) fn mean(&self) -> u64 {
        self.time.checked_div(self.count).unwrap_or(0)
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
