//! Which endpoints the proxy tried, as far as an answer shows it.

use super::Upstream;
use super::pick::{Balancer, Pick};
use crate::base::headers::{HeaderMap, parse_number};
use crate::base::time::{Moment, Nanos};
use crate::host::Host;

/// The endpoints that the proxy tried of a [`Pick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// The number of the endpoint that it tried last.
    pub last: usize,
    /// How many tries there were before. They failed, or there would have been no next one.
    pub before: u64,
    /// For how many calls it counts if it was good: one that was asked stands for some that were
    /// not.
    pub calls: u32,
}

impl Attempts {
    /// One try.
    pub(super) const fn one(last: usize) -> Self {
        Self {
            last,
            before: 0,
            calls: 1,
        }
    }

    /// For how many more calls than itself it counts.
    pub(super) fn more(self) -> usize {
        usize::try_from(self.calls.saturating_sub(1)).unwrap_or(0)
    }
}

/// What an answer shows of the proxy's tries.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// The endpoints; `None`: none of ours.
    pub attempts: Option<Attempts>,
    /// How many tries there were beyond the first.
    pub retries: u64,
    /// Whether another endpoint answered than this number of tries leads to: the proxy does not
    /// follow the list.
    pub strayed: bool,
}

/// One in so many good answers is asked who gave it although the attempt count says that there was
/// one try: otherwise nothing would show that the proxy does not follow the list.
const LOOK: u8 = 64;

/// How long the proxy may know other endpoints than haven where a source names them: one of the two
/// hears first of a change.
const SETTLING: Nanos = Nanos::from_secs(5);

/// A stray so much later is not the same one that goes on.
const ANOTHER: Nanos = Nanos::from_secs(60);

impl Upstream {
    /// Whether it shows a fault in the proxy's wiring that it has not asked the endpoint that it
    /// was to ask first: where a source names endpoints it does if it goes on.
    pub(in crate::engine) fn strays_for_good(&self, pick: &Pick, now: Moment) -> bool {
        if self.discovery().is_none() {
            return true;
        }
        let first = pick.list.first().and_then(|at| self.endpoint(at));
        let Some(first) = first.filter(|first| !first.is_gone()) else {
            return false;
        };
        let since = first.astray.get();
        if !since.is_within(ANOTHER, now) {
            first.astray.set(now);
            return false;
        }
        now.since(since) >= SETTLING
    }

    /// Whether it matters which endpoint answered.
    pub(in crate::engine) const fn needs_endpoint(&self) -> bool {
        (self.has_breakers && !self.is_passive)
            || self.load_report
            || matches!(self.balancer, Balancer::PeakEwma)
    }

    /// The endpoint tried, if the answer's attempt count shows that there was but one try, or if
    /// there may be no other: then it is asked for only where endpoints have a breaker of the
    /// user's, to spare a host call for each answer. On a bad answer neither is enough: the address
    /// shows which endpoint is to blame. Nor on a trial, which another endpoint's answer must not
    /// decide, and on some others: [`LOOK`].
    pub(in crate::engine) fn first_try(
        &self,
        pick: &Pick,
        headers: &HeaderMap,
        retries: u32,
    ) -> Option<Attempts> {
        let last = pick.list.first().filter(|_| !pick.trial)?;
        let single = retries == 0 && !self.needs_endpoint();
        if !single && self.said_count(headers) != Some(1) {
            return None;
        }
        let turn = self.looks.get();
        self.looks.set(turn.wrapping_add(1) % LOOK);
        (turn < LOOK - 1).then_some(Attempts::one(last))
    }

    /// The number of tries as an answer says it, if that is to be believed.
    pub(in crate::engine) fn said_count(&self, headers: &HeaderMap) -> Option<u64> {
        if !self.config.attempt_count {
            return None;
        }
        headers.get("x-envoy-attempt-count").and_then(parse_number)
    }

    /// The tries, by the address of the last one and by their number. `said` is the number that an
    /// answer's header shows; `count` asks for it, which costs a host call: it is made only where
    /// the address is not the first's, or the tries may have run `beyond` the list.
    pub(in crate::engine) fn tried(
        &self,
        pick: &Pick,
        address: Option<&[u8]>,
        beyond: bool,
        said: Option<u64>,
        count: impl FnOnce() -> Option<u64>,
    ) -> Tried {
        let slots = self.slots();
        let is = |at: &usize| {
            let endpoint = slots.named(*at);
            endpoint.is_some_and(|e| Some(e.address.as_bytes()) == address)
        };
        let beyond_first = |count: u64| count.saturating_sub(1);
        let tries = |last, before| Attempts {
            before,
            ..Attempts::one(last)
        };
        let listed = pick.list.iter().enumerate().find(|(_, at)| is(at));
        if let Some((place, last)) = listed {
            let place = place as u64;
            let count = if place > 0 || beyond { count() } else { said };
            // A host that does not count (nginx) follows the list.
            let retries = count.map_or(place, beyond_first);
            let strayed = retries < place;
            // With a hedged try the first may have answered last. What was not tried has not
            // failed.
            let before = if strayed { 0 } else { place };
            return Tried {
                attempts: Some(tries(last, before)),
                retries,
                strayed,
            };
        }
        let count = said.or_else(count);
        let retries = count.map_or(0, beyond_first);
        let found = (0..slots.len()).map(|at| slots.number(at)).find(is);
        // Behind the list's end the proxy picks by itself, and where there is none (a shadow).
        let strayed = address.is_some()
            && if self.is_left(pick) {
                // It was free to, but for levels that are in reserve.
                let endpoint = found.and_then(|at| slots.named(at));
                endpoint.is_none_or(|endpoint| endpoint.standing.get().level > 0)
            } else {
                count.is_some() && retries < pick.list.iter().count() as u64
            };
        let attempts = if let Some(last) = found {
            Some(tries(last, if strayed { 0 } else { retries }))
        } else if strayed {
            None
        } else {
            // None answered: the last try was the last of the list that there was.
            let count = count.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
            let last = count.and_then(|count| pick.list.iter().take(count).last());
            last.map(|last| tries(last, retries))
        };
        Tried {
            attempts,
            retries,
            strayed,
        }
    }

    /// The proxy has not asked the endpoint that it was to ask first: the checks get to know. Or
    /// one that it was not to ask, where it was free to choose.
    pub(in crate::engine) fn note_stray<H: Host>(&self, host: &H, pick: &Pick) {
        if self.is_left(pick) {
            self.steering.go_astray();
        }
        if let Some(first) = pick.list.first().and_then(|at| self.endpoint(at)) {
            host.increment(first.strays, 1);
        }
    }

    /// The address of the endpoint that the proxy was to ask first.
    pub(in crate::engine) fn first_address(&self, pick: &Pick) -> String {
        let first = pick.list.first().and_then(|at| self.endpoint(at));
        first.map_or_else(
            || "an endpoint in use".into(),
            |first| first.address.clone(),
        )
    }
}
