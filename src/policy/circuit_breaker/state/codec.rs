//! The record: version, phase, kind of window, a byte of zero, then the fields as little-endian
//! numbers.

use super::BreakerState;
use crate::base::time::{Moment, Nanos};
use crate::policy::circuit_breaker::transition::Phase;
use crate::policy::circuit_breaker::window::{BUCKETS, Counts, Fifo, LONGEST, Ring, Window};

pub const VERSION: u8 = 3;

/// All but the window.
const FIXED: usize = 4 + 4 + 3 * 8 + 3 * 4 + 3 * 4 + 4 + 8;
const RING: usize = 8 + 8 + 12 * BUCKETS;

/// Kinds of window: a ring without and with a tally, and a count window.
const RING_ALONE: u8 = 0;
const RING_AND_TALLY: u8 = 1;
const FIFO: u8 = 2;

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u32(&mut self) -> u32 {
        self.0.split_first_chunk().map_or(0, |(n, rest)| {
            self.0 = rest;
            u32::from_le_bytes(*n)
        })
    }

    fn u64(&mut self) -> u64 {
        self.0.split_first_chunk().map_or(0, |(n, rest)| {
            self.0 = rest;
            u64::from_le_bytes(*n)
        })
    }

    fn counts(&mut self) -> Counts {
        Counts {
            calls: self.u32(),
            failures: self.u32(),
            slow: self.u32(),
        }
    }

    fn window(&mut self, kind: u8) -> Option<Window> {
        if kind == FIFO {
            let mut fifo = Fifo {
                size: self.u32(),
                len: self.u32(),
                next: self.u32(),
                ..Fifo::default()
            };
            let words = Fifo::words(fifo.size);
            if !(1..=LONGEST).contains(&fifo.size) || self.0.len() != words.saturating_mul(16) {
                return None;
            }
            for words in [
                fifo.failed.iter_mut().take(words),
                fifo.slow.iter_mut().take(words),
            ] {
                words.for_each(|word| *word = self.u64());
            }
            return Some(Window::Count(fifo.repaired()));
        }
        if self.0.len() != RING {
            return None;
        }
        let (head, base) = (self.u64(), self.u64());
        let mut ring = Ring {
            head,
            base: (kind == RING_AND_TALLY).then_some(base),
            ..Ring::default()
        };
        ring.buckets
            .iter_mut()
            .for_each(|bucket| *bucket = self.counts());
        Some(Window::Time(ring))
    }
}

impl BreakerState {
    /// Reads a record; anything but a whole one of this version is a fresh breaker.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let Some(([VERSION, phase, kind @ RING_ALONE..=FIFO, 0], fields)) =
            bytes.split_first_chunk()
        else {
            return Self::default();
        };
        let phase = match phase {
            0 => Phase::Closed,
            1 => Phase::Open,
            2 => Phase::HalfOpen,
            _ => return Self::default(),
        };
        let mut reader = Reader(fields);
        let state = Self {
            phase,
            epoch: reader.u32(),
            since: Moment(reader.u64()),
            until: Moment(reader.u64()),
            last_open: Nanos(reader.u64()),
            rounds: reader.u32(),
            permits: reader.u32(),
            consecutive: reader.u32(),
            trial: reader.counts(),
            begun: reader.u32(),
            passes_at: Moment(reader.u64()),
            window: Window::default(),
        };
        reader
            .window(*kind)
            .map_or_else(Self::default, |window| Self { window, ..state })
    }

    /// Writes the record.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the gauge of a phase is 0 to 2"
    )]
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.reserve(FIXED.saturating_add(RING));
        let kind = match &self.window {
            Window::Time(Ring { base: None, .. }) => RING_ALONE,
            Window::Time(_) => RING_AND_TALLY,
            Window::Count(_) => FIFO,
        };
        bytes.extend_from_slice(&[VERSION, self.phase.gauge() as u8, kind, 0]);
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        let mut long = |numbers: &[u64]| {
            numbers
                .iter()
                .for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()))
        };
        long(&[self.since.0, self.until.0, self.last_open.0]);
        let mut short = |numbers: &[u32]| {
            numbers
                .iter()
                .for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()))
        };
        short(&[self.rounds, self.permits, self.consecutive]);
        let trial = self.trial;
        short(&[trial.calls, trial.failures, trial.slow, self.begun]);
        bytes.extend_from_slice(&self.passes_at.0.to_le_bytes());
        match &self.window {
            Window::Time(ring) => {
                bytes.extend_from_slice(&ring.head.to_le_bytes());
                bytes.extend_from_slice(&ring.base.unwrap_or(0).to_le_bytes());
                for n in ring
                    .buckets
                    .iter()
                    .flat_map(|b| [b.calls, b.failures, b.slow])
                {
                    bytes.extend_from_slice(&n.to_le_bytes());
                }
            }
            Window::Count(fifo) => {
                for n in [fifo.size, fifo.len, fifo.next] {
                    bytes.extend_from_slice(&n.to_le_bytes());
                }
                let words = Fifo::words(fifo.size);
                for word in fifo
                    .failed
                    .iter()
                    .take(words)
                    .chain(fifo.slow.iter().take(words))
                {
                    bytes.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
}
