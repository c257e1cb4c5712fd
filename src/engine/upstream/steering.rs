//! For which requests haven picks the endpoint: `"steer": "by_exception"`.
//!
//! While all endpoints are as good as another the proxy's own choice does: its counts of requests
//! in flight are of all workers, and cost nothing. haven steers while one is out, drained, on trial
//! or in its slow start: the roster says so, of which each worker learns within
//! [`VERSION_HOLDS`](crate::policy::circuit_breaker::VERSION_HOLDS) of its next request.
//!
//! **What breakers get to know.** A failure tells who has failed. Of good answers one in [`SAMPLE`]
//! is asked who gave it, and counts for as many, so that rates are right. That is too little to see
//! that failures are not in a row, and nothing shows who has failed before a retry. So after a
//! failure and a retry the next requests are steered: [`WATCHED`] for each endpoint. While steered,
//! all is known.
//!
//! **Requests in flight.** Those that were not steered are in no count of haven's: it does not know
//! where they are. When steering begins, all endpoints look idle, and draws decide. From then on
//! the counts differ by what haven has sent itself: the endpoint that answers slowly falls behind
//! with its first few requests. So the steered ones are spread evenly, and none is taken for idle
//! that was busy before while others are not.

use super::tries::Attempts;
use super::{Pick, Upstream};
use crate::base::rng::Rng;
use crate::base::time::Moment;
use crate::document::Steer;
use crate::host::Host;
use std::cell::Cell;

/// One in so many good answers is asked who gave it.
const SAMPLE: u32 = 16;

/// Requests steered after a failure, for each endpoint: one that fails more often than once in so
/// many is watched for as long as it does.
const WATCHED: usize = 8;

/// A worker's knowledge of it.
#[derive(Debug, Default)]
pub(super) struct Steering {
    by_exception: bool,
    /// An endpoint is not as the others.
    is_needed: Cell<bool>,
    /// The proxy's own choice was none of the endpoints that it may choose from.
    is_astray: Cell<bool>,
    /// How many more requests are steered.
    watched: Cell<usize>,
}

impl Steering {
    pub(super) fn new(steer: Steer) -> Self {
        Self {
            by_exception: steer == Steer::ByException,
            ..Self::default()
        }
    }

    /// Whether haven picks the next request's endpoint.
    fn take(&self) -> bool {
        let watched = self.watched.get();
        self.watched.set(watched.saturating_sub(1));
        !self.by_exception || self.is_needed.get() || self.is_astray.get() || watched > 0
    }

    /// The endpoints have changed.
    pub(super) fn need(&self, needed: bool) {
        self.is_needed.set(needed);
    }

    /// One of so many endpoints has failed.
    fn watch(&self, endpoints: usize) {
        self.watched.set(endpoints.saturating_mul(WATCHED));
    }

    /// The proxy has gone astray when it was free to choose: haven leaves it nothing more.
    pub(super) fn go_astray(&self) {
        self.is_astray.set(true);
    }
}

impl Upstream {
    /// Whether haven picks the endpoints of the next request, or leaves it to the proxy.
    pub(in crate::engine) fn steers<H: Host>(&self, host: &H, now: Moment) -> bool {
        if self.steering.by_exception {
            // What has changed decides.
            drop(self.roster(host, now));
        }
        self.steering.take()
    }

    /// Whether a request with this pick was left to the proxy's own choice.
    pub(in crate::engine) fn is_left(&self, pick: &Pick) -> bool {
        self.steering.by_exception && pick.list.first().is_none()
    }

    /// For how many good answers this one counts, if it is asked who gave it. Drawn: a proxy that
    /// takes endpoints in turn would show the same ones.
    pub(in crate::engine) fn sample(&self, pick: &Pick, rng: &Rng) -> Option<u32> {
        (self.is_left(pick) && rng.below(SAMPLE.into()) == 0).then_some(SAMPLE)
    }

    /// The endpoint of this address.
    pub(in crate::engine) fn named(&self, address: &[u8]) -> Option<Attempts> {
        let slots = self.slots();
        let mut all = slots.present();
        let (last, _) = all.find(|(_, it)| it.address.as_bytes() == address)?;
        Some(Attempts::one(slots.number(last)))
    }

    /// Something has failed: where haven steers by exception it does so now for a while.
    pub(in crate::engine) fn watch(&self) {
        self.steering.watch(self.len());
    }
}
