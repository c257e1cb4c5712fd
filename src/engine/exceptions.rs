//! What is known of the wiring by which the proxy shows exceptions: `"outcomes": "by_exception"`.
//!
//! An answer whose callbacks the proxy leaves out was good, unless the proxy's access log reports
//! the stream. That the log is there, and reports all that it has to, no configuration tells. So a
//! worker reads the end of every stream itself until it has seen an exception of each kind reported
//! too; after that it reads one in [`SAMPLE`], and goes back to all of them when one is not
//! reported. (Bug avoided: with half of the wiring failures count as successes.)

use super::once;
use crate::document::Outcomes;
use crate::host::SharedData;
use std::cell::Cell;

/// The proxy has noted that something went wrong: cut, reset, timed out, left.
pub(super) const FLAGS: u8 = 1;
/// Not one try, but several or none.
pub(super) const TRIES: u8 = 2;
/// A gRPC status that is not OK.
pub(super) const GRPC: u8 = 4;

/// One in so many ends of streams is read although the wiring is known.
const SAMPLE: u8 = 64;

/// Said where an exception was not reported.
const MISSING: &str = "outcomes by_exception: the access log of Envoy does not report what fails, \
                       and every answer is read: see docs/cost.md";

/// Said where nothing is left out.
const UNSKIPPED: &str = "outcomes by_exception: Envoy shows every answer, and each is read: the \
                         matcher around the filter is missing, see docs/cost.md";

/// A worker's knowledge of it.
#[derive(Debug, Default)]
pub(super) struct Exceptions {
    /// Kinds that were reported.
    proven: Cell<u8>,
    turn: Cell<u8>,
    /// Whether each of the two lines was written.
    told: [Cell<bool>; 2],
}

/// Whether a stream's end is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It is not.
    No,
    /// It is, since the proxy would not show an exception.
    Needed,
    /// It is, as one of many.
    Sample,
}

impl Exceptions {
    pub(super) fn new(outcomes: Outcomes) -> Option<Self> {
        (outcomes == Outcomes::ByException).then(Self::default)
    }

    /// Whether the end of a stream is read.
    pub(super) fn look(&self, grpc: bool) -> Look {
        let needed = FLAGS | TRIES | if grpc { GRPC } else { 0 };
        if self.proven.get() & needed != needed {
            return Look::Needed;
        }
        let turn = self.turn.get().wrapping_add(1) % SAMPLE;
        self.turn.set(turn);
        if turn == 0 { Look::Sample } else { Look::No }
    }

    /// A stream that was an exception of these kinds has been reported.
    pub(super) fn note_report(&self, kinds: u8) {
        // Of several it is not known which has brought the report.
        if kinds.is_power_of_two() {
            self.proven.set(self.proven.get() | kinds);
        }
    }

    /// A stream that was an exception of these kinds has not been reported.
    pub(super) fn note_silence<H: SharedData>(&self, host: &H, kinds: u8) {
        let [missing, _] = &self.told;
        self.proven.set(self.proven.get() & !kinds);
        if !missing.replace(true) {
            once::warn(host, MISSING);
        }
    }

    /// A good answer was shown.
    pub(super) fn note_good<H: SharedData>(&self, host: &H) {
        let [_, unskipped] = &self.told;
        if !unskipped.replace(true) {
            once::warn(host, UNSKIPPED);
        }
    }
}
