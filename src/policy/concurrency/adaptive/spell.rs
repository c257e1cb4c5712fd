//! Times in which something keeps happening.

use crate::base::time::{Moment, Nanos};

/// A time in which something happens again and again, without a pause of a deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spell {
    since: Moment,
    /// When it happened last; `None`: never.
    last: Option<Moment>,
}

impl Spell {
    pub(super) fn goes_on(&mut self, pause: Nanos, now: Moment) {
        if self.last.is_none_or(|last| now.since(last) > pause) {
            self.since = now;
        }
        self.last = Some(now);
    }

    pub(super) fn is_recent(&self, pause: Nanos, now: Moment) -> bool {
        self.last.is_some_and(|last| now.since(last) < pause)
    }

    /// How long it has been going on; `None`: it does not.
    pub(super) fn lasts(&self, pause: Nanos, now: Moment) -> Option<Nanos> {
        let goes_on = self.is_recent(pause, now);
        goes_on.then(|| now.since(self.since))
    }
}
