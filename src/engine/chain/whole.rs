//! The moment at which a request is whole. Only then it takes places in limits and is a trial, and
//! only then its upstream's time begins: a client that never ends its bodies takes from nobody.
//!
//! At its headers an unfinished request finds out whether there is room, and is refused early if
//! there is none. When it is whole it asks as any other; the upstream has its headers by then and
//! perhaps some of its body, but has nothing to begin with.

use super::{Action, Context, Exchange, Refusal};
use crate::base::time::{Moment, Nanos};
use crate::host::{Host, Stream};

impl Exchange {
    /// The last piece of the request is there.
    pub(super) fn on_whole<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        let Some(handles) = self.handles().filter(|_| self.whole.is_none()) else {
            return Action::Continue;
        };
        // One reading of the clock for a request with a body: nothing else tells when the
        // upstream's time begins.
        self.whole = Some(host.monotonic());
        if self.replied || !self.grants.are_pending() {
            return Action::Continue;
        }
        let context = &handles.context(host, stream);
        match self.take_places(context) {
            Some(refusal) => self.refuse(context, &refusal),
            None => Action::Continue,
        }
    }

    fn take_places<'a, H: Host, S: Stream>(
        &mut self,
        context: &Context<'a, H, S>,
    ) -> Option<Refusal<'a>> {
        let refused = self.check_concurrency(context);
        let refused = refused.or_else(|| self.check_breaker(context));
        if refused.is_none() {
            self.grants.begin_endpoint(context.host, self.asked_at());
        }
        refused
    }

    /// When it asks for its places: at its headers, or when it is whole.
    pub(super) fn asked_at(&self) -> Moment {
        self.began().unwrap_or(self.start)
    }

    /// When the upstream's time begins, if it has.
    pub(super) fn began(&self) -> Option<Moment> {
        self.whole.map(|whole| whole.max(self.start))
    }

    /// How long the upstream has had the whole request; `None`: it has not got it yet. A client
    /// that sends slowly, or for as long as it receives, makes nobody else look slow.
    pub(super) fn elapsed(&self, now: Moment) -> Option<Nanos> {
        Some(now.since(self.began()?))
    }
}
