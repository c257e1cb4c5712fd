//! Endpoints that a source names: what becomes of its answers, for all workers.
//!
//! The one worker that asks reports what it has heard ([`Discovery::report`]); what counts goes into
//! the upstream's record, and a note of it into the upstream's counter of changes, which every
//! worker looks at anyway. So each follows with its next request or tick, and no request makes a
//! host call more than one to an upstream whose endpoints stand in the configuration.

use super::logs::LogLimiter;
use super::metrics::MetricTable;
use crate::base::text::number;
use crate::base::time::{Moment, Nanos};
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::discovery::record::{SourceRecord, SourceState, SourceStatus};
use crate::policy::discovery::report::{Around, Report, Reported};
use crate::policy::discovery::rules::Rules;
use std::cell::Cell;
use std::rc::Rc;

/// What a change of the endpoints adds to their upstream's counter of changes, in which each change
/// of a breaker counts as one: so a worker sees by the counter whether it has to read the record.
const CHANGE: u64 = 1 << 32;

/// Which changes of the endpoints a counter of changes holds.
pub(super) const fn changes_of_members(changes: u64) -> u64 {
    changes / CHANGE
}

/// The same counter with the changes of the endpoints that another reading of it had.
pub(super) const fn with_members_of(changes: u64, other: u64) -> u64 {
    (changes % CHANGE) | changes_of_members(other).wrapping_mul(CHANGE)
}

/// The source of an upstream's endpoints.
#[derive(Debug)]
pub(super) struct Discovery {
    name: String,
    record: SourceRecord,
    rules: Rules,
    changes: SharedCounter,
    age: MetricId,
    ok: MetricId,
    error: MetricId,
    refused: MetricId,
    contention: MetricId,
    logs: Rc<LogLimiter>,
    /// How many endpoints this worker knows here, and in all upstreams.
    own: Cell<usize>,
    all: Rc<Cell<usize>>,
    /// When this worker began: what was never confirmed is so old.
    began: Moment,
    /// The state of the source when it was last read, and when its last good answer was asked for.
    seen: Cell<(SourceState, Moment)>,
}

impl Discovery {
    /// That of the upstream of this name. `all` counts the endpoints of all of them.
    pub(super) fn new<H: Host>(
        name: &str,
        rules: Rules,
        all: &Rc<Cell<usize>>,
        logs: &Rc<LogLimiter>,
        host: &H,
    ) -> Self {
        let metrics = MetricTable(host);
        let updates = |result| metrics.discovery_updates(name, result);
        Self {
            record: SourceRecord::new(name),
            rules,
            changes: metrics.endpoint_changes(name),
            age: metrics.discovery_age(name),
            ok: updates("ok"),
            error: updates("error"),
            refused: updates("refused"),
            contention: metrics.contention(name),
            logs: Rc::clone(logs),
            own: Cell::new(0),
            all: Rc::clone(all),
            began: host.monotonic(),
            seen: Cell::default(),
            name: name.to_owned(),
        }
    }

    /// Takes what the source has said, or has not: changes what all workers know if it counts,
    /// counts it, and writes a line if the state of the source is another one than before.
    pub(super) fn report<H: Host>(&self, host: &H, now: Moment, report: &Report) -> Reported {
        let around = Around {
            rules: self.rules,
            now,
            unix: host.wall().as_secs(),
            others: self.all.get().saturating_sub(self.own.get()),
        };
        let written = self.record.update(host, |before| {
            let former = before.status.state;
            let (reported, after) = report.step(before, around);
            let news = after.as_ref();
            let news = news.map(|it| (former, it.status.clone(), it.members.len()));
            ((reported, news), after)
        });
        let Ok((reported, news)) = written else {
            // The next answer says it again.
            host.add(self.contention, 1);
            return Reported::Late;
        };
        if let Reported::Counted { changed: true } = reported {
            // After the record: a worker that sees the count move finds what has changed.
            host.increment(self.changes, CHANGE.cast_signed());
        }
        match reported.label() {
            Some("ok") => host.add(self.ok, 1),
            Some("error") => host.add(self.error, 1),
            Some(_) => host.add(self.refused, 1),
            None => {}
        }
        if let Some((former, status, members)) = news {
            if former != status.state {
                self.log(host, former, &status, members);
            }
            self.knows(members);
            self.note(host, now, &status);
        }
        reported
    }

    /// Reads the record: its bytes, and how the source does.
    pub(super) fn read<H: Host>(&self, host: &H, now: Moment) -> (Vec<u8>, SourceStatus) {
        let bytes = self.record.bytes(host);
        let status = SourceStatus::decode(&bytes);
        self.note(host, now, &status);
        (bytes, status)
    }

    /// This worker knows so many endpoints here.
    pub(super) fn knows(&self, endpoints: usize) {
        let others = self.all.get().saturating_sub(self.own.replace(endpoints));
        self.all.set(others.saturating_add(endpoints));
    }

    /// How the source does, and how old what is known is; as it was last read.
    pub(super) fn state(&self, now: Moment) -> (SourceState, Nanos) {
        let (state, confirmed) = self.seen.get();
        (state, self.age_since(confirmed, now))
    }

    fn age_since(&self, confirmed: Moment, now: Moment) -> Nanos {
        now.since(if confirmed == Moment::ZERO {
            self.began
        } else {
            confirmed
        })
    }

    fn note<H: Host>(&self, host: &H, now: Moment, status: &SourceStatus) {
        self.seen.set((status.state, status.confirmed));
        host.record(self.age, self.age_since(status.confirmed, now).as_secs());
    }

    fn log<H: Host>(&self, host: &H, before: SourceState, status: &SourceStatus, members: usize) {
        let level = if status.state == SourceState::Ok {
            log::Level::Info
        } else {
            log::Level::Warn
        };
        self.logs.write(host, level, || {
            let members = number(members as u64);
            let mut parts = vec![
                "source of ",
                &self.name,
                ": ",
                before.word(),
                " -> ",
                status.state.word(),
            ];
            if !status.reason.is_empty() {
                parts.extend([": ", &status.reason]);
            }
            parts.extend(["; endpoints known: ", &members]);
            parts.concat()
        });
    }
}
