//! Random choice: every draw follows from the numbers that name it, so that two runs of a world
//! meet the same arrivals and the same service times, whatever its policies decide.

use haven::base::rng::Rng;

/// A moment or a span of simulated time, in nanoseconds.
pub type Time = u64;

/// A millisecond.
pub const MS: Time = 1_000_000;

/// A second.
pub const SECOND: Time = 1_000 * MS;

/// A stream of draws.
pub struct Draw(Rng);

impl Draw {
    /// The stream that these numbers name.
    pub fn of(name: &[u64]) -> Self {
        let mixed = name
            .iter()
            .fold(0x5eed, |state: u64, part| Rng::new(state ^ *part).bits());
        Self(Rng::new(mixed))
    }

    /// A number above 0 and below 1.
    pub fn unit(&self) -> f64 {
        (self.0.below(1 << 52) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// A number between two, each as likely.
    pub fn between(&self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A number between two, each order of magnitude as likely.
    pub fn log_between(&self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }

    /// A whole number from `low` to `high`.
    pub fn count(&self, low: usize, high: usize) -> usize {
        low + self.0.below((high - low + 1) as u64) as usize
    }

    /// Yes in so many of 100 cases.
    pub fn percent(&self, of_100: u64) -> bool {
        self.0.below(100) < of_100
    }

    /// One of the list.
    pub fn pick<T: Clone>(&self, list: &[T]) -> T {
        list[self.0.below(list.len() as u64) as usize].clone()
    }

    /// The time to the next event of a Poisson process of `rate` a second.
    pub fn gap(&self, rate: f64) -> Time {
        (-self.unit().ln() / rate * SECOND as f64) as Time
    }
}

/// How service times are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// All the same.
    Fixed,
    /// Exponential.
    Exponential,
    /// Half of the mean in any case, and the rest exponential.
    HalfFixed,
    /// Lognormal, with this standard deviation of the logarithm.
    Lognormal(f64),
}

/// The service time of an endpoint that is well.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// The mean.
    pub mean: Time,
    /// The spread.
    pub shape: Shape,
}

impl Service {
    /// One service time.
    pub fn take(&self, draw: &Draw) -> f64 {
        let mean = self.mean as f64;
        match self.shape {
            Shape::Fixed => mean,
            Shape::Exponential => -draw.unit().ln() * mean,
            Shape::HalfFixed => (1.0 - draw.unit().ln()) * mean / 2.0,
            Shape::Lognormal(sigma) => {
                // Box and Muller's normal draw; the shift keeps the mean.
                let angle = std::f64::consts::TAU * draw.unit();
                let normal = (-2.0 * draw.unit().ln()).sqrt() * angle.cos();
                mean * (sigma * normal - sigma * sigma / 2.0).exp()
            }
        }
    }

    /// The service times in order, thinned out to 2,000: a picture of the distribution.
    pub fn spread(&self) -> Vec<f64> {
        let draw = Draw::of(&[1]);
        let mut all: Vec<f64> = (0..2_000).map(|_| self.take(&draw)).collect();
        all.sort_by(f64::total_cmp);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        all.iter()
            .map(|time| time / mean * self.mean as f64)
            .collect()
    }

    /// What 99 of 100 take at most.
    pub fn usual_most(&self) -> Time {
        self.spread()[1_980] as Time
    }
}
