//! Bounded logging: a VM writes at most a number of lines a second, and counts the rest.

use crate::host::Host;
use std::cell::Cell;

/// Lines about changes of state that a VM writes in a second. Each change has a line of its own,
/// until breakers flap so much that the log would hold nothing else.
const LINES_PER_SECOND: u32 = 50;

/// The room that the breakers and checks of an engine share in the log.
#[derive(Debug, Default)]
pub(super) struct LogLimiter {
    second: Cell<u64>,
    written: Cell<u32>,
    withheld: Cell<u64>,
}

impl LogLimiter {
    /// Writes a line, if there is room for it.
    pub(super) fn write<H: Host>(
        &self,
        host: &H,
        level: log::Level,
        line: impl FnOnce() -> String,
    ) {
        let second = host.monotonic().as_millis() / 1_000;
        if self.second.replace(second) != second {
            self.report_withheld();
            self.written.set(0);
        }
        if self.written.get() < LINES_PER_SECOND {
            self.written.set(self.written.get().saturating_add(1));
            log::log!(level, "{}", line());
        } else {
            self.withheld.set(self.withheld.get().saturating_add(1));
        }
    }

    /// Reports how many lines were withheld since the last report.
    pub(super) fn report_withheld(&self) {
        let withheld = self.withheld.replace(0);
        if withheld > 0 {
            log::warn!("circuit breakers and endpoints: {withheld} more changes");
        }
    }
}
