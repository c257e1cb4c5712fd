//! Counts, and their rows: one set of columns for the lines while an act runs and for the table at
//! its end.

use std::time::Duration;

use crate::NAMES;
use crate::traffic::{Outcome, Sample};

/// What a number of requests came to.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub requests: u64,
    pub real: u64,
    pub stale: u64,
    pub fixed: u64,
    pub limited: u64,
    pub failed: u64,
    pub errors: u64,
    pub by_upstream: [u64; NAMES.len()],
    /// Of what was answered with 200, in order.
    latencies: Vec<Duration>,
}

impl Counts {
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let mut counts = Self::default();
        for sample in samples {
            counts.requests += 1;
            match sample.outcome {
                Outcome::Real(upstream) => {
                    counts.real += 1;
                    if let Some(served) = counts.by_upstream.get_mut(upstream) {
                        *served += 1;
                    }
                }
                Outcome::Stale => counts.stale += 1,
                Outcome::Fixed => counts.fixed += 1,
                Outcome::Limited => counts.limited += 1,
                Outcome::Failed => counts.failed += 1,
                Outcome::Error => counts.errors += 1,
            }
            if matches!(
                sample.outcome,
                Outcome::Real(_) | Outcome::Stale | Outcome::Fixed
            ) {
                counts.latencies.push(sample.latency());
            }
        }
        counts.latencies.sort_unstable();
        counts
    }

    /// Answers by haven in place of an upstream.
    pub const fn fallback(&self) -> u64 {
        self.stale + self.fixed
    }

    /// The latency that `percent` of the 200s did not exceed.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.latencies.len() * percent).div_ceil(100);
        self.latencies.get(rank.saturating_sub(1)).copied()
    }

    /// An upstream's share of the real answers, in percent.
    pub fn share(&self, upstream: usize) -> f64 {
        let served = self.by_upstream.get(upstream).copied().unwrap_or(0);
        if self.real == 0 {
            0.0
        } else {
            served as f64 * 100.0 / self.real as f64
        }
    }

    /// The shares, as `70 / 23 / 7 %`.
    pub fn shares(&self) -> String {
        let shares: Vec<String> = (0..NAMES.len())
            .map(|at| format!("{:.0}", self.share(at)))
            .collect();
        format!("{} %", shares.join(" / "))
    }

    pub fn row(&self, label: &str) -> String {
        let share = |at| {
            if self.real == 0 {
                "-".to_owned()
            } else {
                format!("{:.0} %", self.share(at))
            }
        };
        let cells = [
            self.requests.to_string(),
            self.real.to_string(),
            self.stale.to_string(),
            self.fixed.to_string(),
            self.limited.to_string(),
            self.failed.to_string(),
            self.errors.to_string(),
            milliseconds(self.percentile(50)),
            milliseconds(self.percentile(99)),
            share(0),
            share(1),
            share(2),
        ];
        line(label, &cells)
    }
}

/// The names of the columns.
pub fn columns(label: &str) -> String {
    let cells = [
        "requests", "200 real", "stale", "fixed", "429", "5xx", "errors", "p50", "p99", "a", "b",
        "c",
    ];
    line(label, &cells.map(str::to_owned))
}

pub fn milliseconds(duration: Option<Duration>) -> String {
    duration.map_or_else(
        || "-".to_owned(),
        |duration| format!("{} ms", duration.as_millis()),
    )
}

pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn line(label: &str, cells: &[String; 12]) -> String {
    const WIDTHS: [usize; 12] = [9, 9, 7, 7, 6, 5, 7, 8, 8, 6, 6, 6];
    let mut text = format!("{label:<16}");
    for (cell, width) in cells.iter().zip(WIDTHS) {
        text.push_str(&format!("{cell:>width$}"));
    }
    text
}
