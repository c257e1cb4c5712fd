//! Draws from a seed: the same seed gives the same world.

use std::time::Duration;

use haven::base::rng::Rng;

/// A source of draws.
#[derive(Debug)]
pub struct Draw(Rng);

impl Draw {
    /// Draws that depend on `seed` and `purpose` only.
    pub fn new(seed: u64, purpose: u64) -> Self {
        // Neighbouring seeds of the generator below give streams that share nothing visible.
        Self(Rng::new(Rng::new(seed).bits() ^ purpose))
    }

    /// A number from 0 up to 1, without 1.
    pub fn unit(&self) -> f64 {
        self.0.below(1 << 53) as f64 / (1_u64 << 53) as f64
    }

    /// A number between two bounds.
    pub fn between(&self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A whole number from `low` to `high`, both included.
    pub fn whole(&self, low: usize, high: usize) -> usize {
        low + self.0.below((high - low + 1) as u64) as usize
    }

    /// An exponentially distributed number of mean 1.
    pub fn exponential(&self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// A duration between two numbers of milliseconds.
    pub fn millis(&self, low: f64, high: f64) -> Duration {
        Duration::from_secs_f64(self.between(low, high) / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let draws = |seed, purpose| {
            let draw = Draw::new(seed, purpose);
            [draw.unit(), draw.unit(), draw.unit()]
        };
        assert_eq!(draws(1, 2), draws(1, 2));
        assert_ne!(draws(1, 2), draws(2, 2));
        assert_ne!(draws(1, 2), draws(1, 3));
    }

    #[test]
    fn draws_keep_their_bounds_and_means() {
        let draw = Draw::new(7, 0);
        let mean = (0..20_000).map(|_| draw.exponential()).sum::<f64>() / 20_000.0;
        assert!((0.97..1.03).contains(&mean), "{mean}");
        let mut seen = [false; 3];
        for _ in 0..1_000 {
            seen[draw.whole(4, 6) - 4] = true;
            assert!((2.0..5.0).contains(&draw.between(2.0, 5.0)));
        }
        assert_eq!(seen, [true; 3]);
    }
}
