//! Work that was given up and still counts as in flight.
//!
//! Many servers do not stop when their caller has gone: a request that was cut off by its timeout,
//! or left by its client, keeps its place there. So it goes on to count at its limits, in the share
//! of its key, and at its endpoint, for as long as such work usually lasts by what the route's
//! answers took; not at all where none took longer. A server that does stop loses nothing by it at
//! an adaptive limit, which finds that more may be in flight.
//!
//! Each VM keeps the list of its own. What is due goes with the next request or tick, and costs the
//! same host calls as at the request's end. What is on the list is part of the VM's share in the
//! gauges, so that a lost VM's is corrected as ever.

use super::concurrency::Concurrency;
use super::shared::Shared;
use super::upstream::Upstream;
use crate::base::time::{Moment, Nanos};
use crate::host::Host;
use std::rc::Rc;

/// The longest that anything lingers.
pub(super) const LONGEST: Nanos = Nanos::from_secs(5);

/// The most places that a VM holds so; beyond it the one that ends first goes.
pub(super) const CAPACITY: usize = 1024;

/// A place in flight.
#[derive(Debug)]
pub(super) enum Place {
    /// At a limit, in the share of a key.
    Limit(Rc<Concurrency>, Option<u32>),
    /// At an endpoint.
    Endpoint(Rc<Upstream>, usize),
}

impl Place {
    /// Counts it out.
    pub(super) fn leave<H: Host>(&self, host: &H) {
        match self {
            Self::Limit(limit, key) => limit.leave(host, *key),
            Self::Endpoint(upstream, at) => upstream.leave(host, *at),
        }
    }
}

/// A VM's list, and when each place is given back: latest first, so that the next one is taken from
/// the end.
#[derive(Debug, Default)]
pub(super) struct Lingering(Shared<Vec<(Moment, Place)>>);

impl Lingering {
    /// Keeps a place for this time, at most [`LONGEST`].
    pub(super) fn add<H: Host>(&self, host: &H, now: Moment, time: Nanos, place: Place) {
        let until = now.plus(time.min(LONGEST));
        let first = self.0.with(|list| {
            let at = list.partition_point(|(other, _)| *other > until);
            list.insert(at, (until, place));
            if list.len() > CAPACITY {
                list.pop()
            } else {
                None
            }
        });
        leave(host, first);
    }

    /// Gives back what is due.
    pub(super) fn release_due<H: Host>(&self, host: &H, now: Moment) {
        // Later than anything is kept for: the clock has stepped back.
        let last = now.plus(LONGEST);
        let due = |(until, _): &mut (Moment, Place)| *until <= now || *until > last;
        while let Some(next) = self.0.with(|list| list.pop_if(due)) {
            leave(host, Some(next));
        }
    }

    /// Gives back all.
    pub(super) fn release_all<H: Host>(&self, host: &H) {
        while let Some(next) = self.0.with(Vec::pop) {
            leave(host, Some(next));
        }
    }
}

/// Counts a place out; never while the list is in use.
fn leave<H: Host>(host: &H, place: Option<(Moment, Place)>) {
    if let Some((_, place)) = place {
        place.leave(host);
    }
}
