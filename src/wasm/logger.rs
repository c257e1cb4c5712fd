//! What the macros of `log` write to: the proxy's log.

use super::abi::log_level;
use super::bindings;
use log::{LevelFilter, Log, Metadata, Record};

/// Installs the logger. What is less than `info` never leaves the VM.
pub fn install() {
    if log::set_logger(&ProxyLog).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

struct ProxyLog;

impl Log for ProxyLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        bindings::log(log_level(record.level()), &record.args().to_string());
    }

    fn flush(&self) {}
}
