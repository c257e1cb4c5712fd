//! Keeping good responses for the fallback's stale step, while they pass.

use super::{Exchange, stale_store};
use crate::base::headers::HeaderMap;
use crate::base::time::Nanos;
use crate::engine::Engine;
use crate::engine::route::Route;
use crate::host::{Host, Stream};

impl Exchange {
    /// A good response begins: it is copied if it may be kept. What another cluster answered is not
    /// this route's, and a canary's version is not for those who are not on it.
    pub(super) fn draft(
        &mut self,
        engine: &Engine,
        route: &Route,
        headers: &HeaderMap,
        now: Nanos,
    ) {
        if route.stable.is_some() {
            return;
        }
        if let (Some(kept), Some(asked), None) =
            (stale_store(engine, route), &self.asked, self.sent_on)
        {
            self.draft = kept.policy.begin(asked, headers, now).map(Box::new);
        }
    }

    /// Copies a piece of it; given up when it has become too long.
    pub(super) fn copy<S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        size: usize,
        stream: &S,
    ) {
        let (Some(draft), Some(kept)) = (self.draft.take(), stale_store(engine, route)) else {
            return;
        };
        if size == 0 {
            self.draft = Some(draft);
        } else if kept.policy.has_room(&draft, size) {
            let piece = stream.body(size).filter(|piece| piece.len() == size);
            self.draft = piece
                .and_then(|piece| kept.policy.add(*draft, &piece))
                .map(Box::new);
        }
    }

    /// It has come to its end.
    pub(super) fn keep<H: Host>(&mut self, engine: &Engine, route: &Route, host: &H) {
        let (Some(draft), Some(asked), Some(kept)) = (
            self.draft.take(),
            self.asked.take(),
            stale_store(engine, route),
        ) else {
            return;
        };
        kept.count(
            host,
            kept.policy.keep(host, &asked, &draft, engine.rng.bits()),
        );
    }
}
