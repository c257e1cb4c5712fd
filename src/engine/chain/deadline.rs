//! The parts of the chain that look at the clock: the request's deadline before its limits, and at
//! the end what the proxy's router is told of timeouts and retries.

use super::{Exchange, Refusal};
use crate::base::headers::HeaderMap;
use crate::base::sketch::Sketch;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::config::{self, Mode};
use crate::engine::Engine;
use crate::engine::route::Route;
use crate::host::{Host, Message, Stream};
use crate::policy::deadline::{self, Incoming, least, whole_millis};
use crate::policy::retry;
use crate::request::Reason;

/// Name of the policy in decisions and replies.
pub(in crate::engine) const POLICY: &str = "timeout";

/// The share of a route's requests that a client's deadline has to leave time for, or running into
/// it says nothing about the upstream.
const PATIENCE: u32 = 9_000;

/// What half of the requests take: less leaves no room for another try.
const HALF: u32 = 5_000;

/// What bounds a request's time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadline {
    incoming: Incoming,
    /// The route's timeout.
    own: Option<Nanos>,
    /// The route's timeout of a try.
    per_try: Option<Nanos>,
    /// A shadow has counted the request as late.
    told: bool,
}

impl Deadline {
    fn left(&self, waited: Nanos) -> Option<Nanos> {
        least(self.own, self.incoming.left()).map(|whole| whole.since(waited))
    }

    /// Whether there is any.
    pub(super) fn is_set(&self) -> bool {
        self.left(Nanos::ZERO).is_some()
    }

    fn incoming_left(&self, waited: Nanos) -> Option<Nanos> {
        self.incoming.left().map(|left| left.since(waited))
    }
}

/// Whether the time that a request takes is being observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Timing {
    /// It is not, or no more.
    #[default]
    No,
    /// It is on its way to the upstream.
    Sent,
    /// Its answer has begun well.
    Answered,
}

impl Exchange {
    /// Reads the request's deadline, and refuses one that leaves too little.
    pub(super) fn deadline<'e, H: Host>(
        &mut self,
        engine: &Engine,
        route: &Route,
        config: &config::Route,
        headers: &HeaderMap,
        host: &H,
    ) -> Option<Refusal<'e>> {
        route.deadline?;
        let own = config.timeout.deadline_header.as_deref();
        self.deadline.incoming =
            Incoming::read(headers, own, engine.config.trust_client_retry_headers);
        self.deadline.per_try = config.timeout.per_try;
        let now = self.start;
        self.deadline.own = config.timeout.request.map(|timeout| match &route.seen {
            Some(seen) => seen.with(|seen| deadline::request_timeout(timeout, now, seen)),
            None => timeout.longest(),
        });
        self.check_deadline(route, config, Nanos::ZERO, host)
    }

    /// Refuses a request that would be late by then, or is late after a wait.
    pub(super) fn check_deadline<'e, H: Host>(
        &mut self,
        route: &Route,
        config: &config::Route,
        waited: Nanos,
        host: &H,
    ) -> Option<Refusal<'e>> {
        let used = route.deadline?;
        let now = self.start;
        let late = self.deadline.left(waited) == Some(Nanos::ZERO)
            || self
                .deadline
                .incoming_left(waited)
                .is_some_and(|left| match &route.seen {
                    Some(seen) => {
                        seen.with(|seen| deadline::is_hopeless(&config.timeout, left, now, seen))
                    }
                    None => {
                        deadline::is_hopeless(&config.timeout, left, now, &mut Sketch::default())
                    }
                });
        // It is asked again before and after a wait, and one request is one decision.
        if !late || std::mem::replace(&mut self.deadline.told, true) {
            return None;
        }
        self.decide(host, &used, Reason::Deadline, POLICY);
        (used.mode == Mode::Enforce).then_some(Refusal {
            reason: Reason::Deadline,
            policy: POLICY,
            retry_after: None,
        })
    }

    /// Tells the proxy's router how long it may take and how often it may try, and the upstream how
    /// long it has.
    pub(super) fn set_timeouts<H: Host, S: Stream>(
        &mut self,
        route: &Route,
        config: &config::Route,
        host: &H,
        stream: &S,
    ) {
        let Some(used) = route.deadline else { return };
        // What another cluster takes is none of this route's, nor are tries there.
        let elsewhere = self.sent_on.is_some();
        if route.seen.is_some() && !elsewhere {
            self.timing = Timing::Sent;
        }
        if used.mode != Mode::Enforce {
            return;
        }
        let left = self.deadline.left(self.waited);
        let set = |name: &str, value: &[u8]| stream.set_header(Message::Request, name, value);
        let set_millis = |name: &str, time: Nanos| set(name, number(whole_millis(time)).as_bytes());
        let mut per_try = deadline::per_try(&config.timeout, left);
        let whole = least(per_try, left);
        match (self.deadline.own, left) {
            (Some(_), Some(left)) => set_millis(deadline::ROUTER, left),
            // The proxy's own timeout for the route is not known here, and a header for the whole
            // would put itself in its place, a client's long deadline for an operator's short
            // timeout. One for the try bounds, and lengthens nothing.
            _ => per_try = whole,
        }
        if let Some(time) = per_try {
            set_millis(deadline::ROUTER_PER_TRY, time);
        }
        if let Some(time) = whole {
            self.deadline.incoming.pass_on(
                time,
                self.grpc,
                config.timeout.deadline_header.as_deref(),
                set,
            );
        }
        if !elsewhere {
            self.set_retries(route, config, left, host, stream);
        }
    }

    fn set_retries<H: Host, S: Stream>(
        &mut self,
        route: &Route,
        config: &config::Route,
        left: Option<Nanos>,
        host: &H,
        stream: &S,
    ) {
        let Some((used, config)) = route.retry.as_ref().zip(config.retry.as_ref()) else {
            return;
        };
        let now = self.start;
        let has_room = |left: Nanos| {
            let half = route
                .seen
                .as_ref()
                .and_then(|seen| seen.with(|seen| seen.quantile(now, HALF)));
            half.is_none_or(|half| half.least <= left)
        };
        let may = self.retriable && !self.on_trial && left.is_none_or(has_room);
        let wanted = if may { config.attempts } else { 0 };
        let totals = used.totals(route, host);
        self.granted = used.with(|budget| budget.grant(now, totals, wanted));
        host.add(used.requests, 1);
        let set =
            |name: &str, value: &str| stream.set_header(Message::Request, name, value.as_bytes());
        // Also when it is 0: then the proxy's own policy for the route has no say either.
        set("x-envoy-max-retries", &number(self.granted.into()));
        if self.granted > 0 && !config.on.is_empty() {
            set("x-envoy-retry-on", &config.on);
        }
        if self.granted > 0 && self.grpc && !config.grpc_on.is_empty() {
            set("x-envoy-retry-grpc-on", &config.grpc_on);
        }
    }

    /// Whether the request may be tried again for what it is.
    pub(super) fn is_retriable(&self, config: &config::Route, method: &[u8]) -> bool {
        config
            .retry
            .as_ref()
            .is_some_and(|retry| retry::is_eligible(retry, method, self.grpc))
    }

    /// What was granted is over: so many retries came of it.
    pub(super) fn settle_retries(&mut self, route: &Route, spent: u64) {
        let granted = std::mem::take(&mut self.granted);
        if let (Some(used), true) = (&route.retry, granted > 0) {
            used.with(|budget| budget.settle(granted, spent));
        }
    }

    /// The upstream's answer has begun, or it is clear that there is none.
    pub(super) fn time_answer(&mut self, answered_well: bool) {
        if self.timing == Timing::Sent {
            self.timing = if answered_well {
                Timing::Answered
            } else {
                Timing::No
            };
        }
    }

    /// The request was given up after `duration`: it would have taken longer than that.
    pub(super) fn time_cut_off(
        &mut self,
        engine: &Engine,
        route: &Route,
        now: Nanos,
        duration: Nanos,
    ) {
        self.timing = Timing::No;
        if let Some(seen) = &route.seen {
            seen.with(|seen| seen.add_cut_off(now, duration, engine.rng.bits()));
        }
    }

    /// The request is over: what it took is counted.
    pub(super) fn time_end(&mut self, engine: &Engine, route: &Route, timing: Timing, now: Nanos) {
        let duration = now.since(self.start);
        match (timing, &route.seen) {
            (Timing::Answered, Some(seen)) => seen.with(|seen| seen.add(now, duration)),
            // Nobody has answered, nor was it refused: its client has gone.
            (Timing::Sent, _) => self.time_cut_off(engine, route, now, duration),
            (Timing::Answered, None) | (Timing::No, _) => {}
        }
    }

    /// Whether a timeout was the client's impatience: its own deadline, not the route's, and
    /// shorter than what most requests take. As when it hangs up, no breaker is to hold that
    /// against the upstream; or any client could open it for all others.
    pub(super) fn hit_client_deadline(&self, route: &Route, now: Nanos) -> bool {
        let acted = route
            .deadline
            .is_some_and(|used| used.mode == Mode::Enforce);
        let Some(given) = self.deadline.incoming_left(self.waited).filter(|_| acted) else {
            return false;
        };
        let most = |seen: &mut Sketch| seen.quantile(now, PATIENCE);
        least(self.deadline.own, self.deadline.per_try).is_none_or(|own| given < own)
            && route
                .seen
                .as_ref()
                .and_then(|seen| seen.with(most))
                .is_some_and(|most| given < most.least)
    }
}
