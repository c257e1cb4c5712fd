//! The log of a simulated proxy.
//!
//! A process has one logger for all its threads; tests run in several, each with its own proxies.
//! So the logger gives a line to the proxy whose worker made the last host call in that thread.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::cell::RefCell;
use std::rc::Rc;

/// How many lines a proxy keeps.
const MOST: usize = 1_000;

type Lines = Rc<RefCell<Vec<(Level, String)>>>;

thread_local! {
    static COLLECTING: RefCell<Option<Lines>> = const { RefCell::new(None) };
}

/// The lines of one proxy.
#[derive(Debug)]
pub(super) struct LogLines(Lines);

impl LogLines {
    /// No lines; the next ones of this thread go here.
    pub(super) fn new() -> Self {
        // Refused from the second time on, or where a test has a logger of its own.
        if log::set_logger(&Logger).is_ok() {
            log::set_max_level(LevelFilter::Info);
        }
        let lines = Self(Lines::default());
        lines.collect();
        lines
    }

    /// From now on the lines of this thread go here.
    pub(super) fn collect(&self) {
        COLLECTING.with_borrow_mut(|collecting| match collecting {
            Some(lines) if Rc::ptr_eq(lines, &self.0) => {}
            _ => *collecting = Some(Rc::clone(&self.0)),
        });
    }

    /// A copy of them.
    pub(super) fn lines(&self) -> Vec<(Level, String)> {
        self.0.borrow().clone()
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        COLLECTING.with_borrow(|collecting| {
            if let Some(lines) = collecting {
                let mut lines = lines.borrow_mut();
                if lines.len() < MOST {
                    lines.push((record.level(), record.args().to_string()));
                }
            }
        });
    }

    fn flush(&self) {}
}
