//! Lines in the log that a proxy writes once, whatever the number of its workers and reloads.

use crate::base::hash::of_names;
use crate::host::SharedData;
use crate::store::{self, RecordKey, RecordKind};

/// Writes the line, unless a worker of this proxy has. The lines come from the configuration and
/// from haven, never from a request: so their number is bounded.
pub(super) fn warn<H: SharedData>(host: &H, line: &str) {
    let said = RecordKey::new(RecordKind::Said, of_names(&[line]), 0);
    if store::read(host, &said).is_none() && store::insert(host, &said, b"1").is_ok() {
        log::warn!("{line}");
    }
}
