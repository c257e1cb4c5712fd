//! The parts of the chain that look at the clock: the request's deadline before its limits, and at
//! the end the timeouts that the proxy's router and the upstream get to know.

use super::classify::Class;
use super::{Context, Exchange, Refusal};
use crate::base::headers::Headers;
use crate::base::sketch::Sketch;
use crate::base::text::number;
use crate::base::time::{Moment, Nanos};
use crate::engine::route::{Route, Times};
use crate::engine::shared::Shared;
use crate::host::{Host, Message, Stream};
use crate::policy::deadline::{self, Incoming, least, whole_millis};
use crate::request::Reason;

/// Name of the policy in decisions and replies.
pub(in crate::engine) const POLICY: &str = "timeout";

/// How much sooner than it should a proxy's timer may fire, besides an eighth of its time: it counts
/// from the last turn of an event loop.
const EARLY: Nanos = Nanos::from_millis(10);

/// What a route without a timeout of its own is taken to allow, where an upstream says that there
/// was too little time: as Envoy's default.
const USUAL: Nanos = Nanos::from_secs(15);

/// DEADLINE_EXCEEDED.
const GRPC_TOO_LATE: u64 = 4;

/// What bounds a request's time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadline {
    incoming: Incoming,
    /// What the client allows.
    client: Option<Nanos>,
    /// The route's timeout.
    own: Option<Nanos>,
    /// The route's timeout of a try.
    per_try: Option<Nanos>,
    /// The request was counted as late.
    counted: bool,
    /// Until when the client waits; `None`: the request has no deadline of any kind.
    pub(super) until: Option<Option<Moment>>,
}

impl Deadline {
    fn left(&self, waited: Nanos) -> Option<Nanos> {
        least(self.own, self.client).map(|whole| whole.minus(waited))
    }

    /// Whether there is any.
    pub(super) fn is_set(&self) -> bool {
        self.left(Nanos::ZERO).is_some()
    }

    fn incoming_left(&self, waited: Nanos) -> Option<Nanos> {
        self.client.map(|left| left.minus(waited))
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
    /// Its answer has begun well, and is observed up to its end.
    Answered,
}

impl Exchange {
    /// Reads the request's deadline.
    pub(super) fn read_deadline<H: Host, S>(
        &mut self,
        context: &Context<'_, H, S>,
        headers: Headers<'_>,
    ) {
        let route = context.route;
        if route.deadline.is_none() {
            return;
        }
        let config = &route.config.timeout;
        let trusted = context.engine.trust_client_retry_headers;
        self.deadline.incoming =
            Incoming::read(headers, config.deadline_header.as_deref(), trusted);
        let redirected = self.deadline.incoming.is_redirected();
        // The first stream of a redirected request has ended just before, in the same callback of
        // the proxy. Its headers now hold what haven wrote for the first upstream.
        self.deadline.client = match context.engine.ended.take().filter(|_| redirected) {
            Some(until) => until.map(|until| until.since(self.start)),
            None => self.deadline.incoming.left(),
        };
        self.deadline.until = Some(self.deadline.client.map(|left| self.start.plus(left)));
        self.deadline.per_try = config.per_try;
        let now = self.start;
        self.deadline.own = config.request.map(|timeout| match &route.seen {
            Some(seen) => seen.with(|seen| deadline::request_timeout(timeout, now, seen.whole())),
            None => timeout.longest(),
        });
    }

    /// Refuses a request that would be late by then, or is late after a wait.
    pub(super) fn check_deadline<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
        waited: Nanos,
    ) -> Option<Refusal<'a>> {
        let effect = context.route.deadline?;
        let late = self.deadline.left(waited) == Some(Nanos::ZERO)
            || self
                .deadline
                .incoming_left(waited)
                .is_some_and(|left| self.is_hopeless(context.route, left));
        // It is checked again before and after a wait, and one request is one decision.
        if !late || std::mem::replace(&mut self.deadline.counted, true) {
            return None;
        }
        self.decide(context.host, effect, Reason::Deadline, POLICY);
        effect
            .is_enforced()
            .then(|| Refusal::new(Reason::Deadline, POLICY, None))
    }

    /// How much is left until the proxy's timeout for the whole request, where haven has set it.
    pub(super) fn left_at_proxy(&self, now: Moment) -> Option<Nanos> {
        self.deadline.own?;
        let left = self.deadline.left(self.waited)?;
        // The proxy's time begins when it has the whole request.
        Some(left.minus(self.elapsed(now)?))
    }

    /// Whether an answer within what is left is not to be expected.
    fn is_hopeless(&self, route: &Route, left: Nanos) -> bool {
        let (config, now) = (&route.config.timeout, self.start);
        match &route.seen {
            Some(seen) => {
                seen.with(|seen| deadline::is_hopeless(config, left, now, &mut seen.begun))
            }
            None => deadline::is_hopeless(config, left, now, &mut Sketch::default()),
        }
    }

    /// Sets the headers by which the proxy's router learns how long it may take and how often it
    /// may try, and the upstream how long it has.
    pub(super) fn set_timeouts<H: Host, S: Stream>(&mut self, context: &Context<'_, H, S>) {
        let route = context.route;
        let Some(effect) = route.deadline else { return };
        // What another cluster takes is none of this route's, nor are tries there.
        let elsewhere = self.sent_on.is_some();
        if route.seen.is_some() && !elsewhere {
            self.timing = Timing::Sent;
        }
        if !effect.is_enforced() {
            return;
        }
        let config = &route.config.timeout;
        let left = self.deadline.left(self.waited);
        if !elsewhere {
            self.set_retries(context, left);
        }
        let set =
            |name: &str, value: &[u8]| context.stream.set_header(Message::Request, name, value);
        let set_millis = |name: &str, time: Nanos| set(name, number(whole_millis(time)).as_bytes());
        let mut per_try =
            deadline::per_try(config, left).filter(|time| self.may_cut_try(route, *time));
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
            let own = config.deadline_header.as_deref();
            self.deadline
                .incoming
                .pass_on(time, self.facts.grpc, own, set);
        }
    }

    /// Whether a try is cut off at `per_try`: only if there is another one for the request, at an
    /// endpoint that is not as slow. Otherwise the try has the rest of the deadline. (Bug avoided:
    /// where all endpoints are slow a second try doubles the load, while the upstream still works
    /// on the first.) Without `retry` the proxy's own policy may retry.
    fn may_cut_try(&self, route: &Route, per_try: Nanos) -> bool {
        route.retry.is_none()
            || (self.grants.retries() > 0 && self.grants.has_faster_next(self.start, per_try))
    }

    /// The upstream's answer has begun, well or not, or it is clear that there is none. `time`: how
    /// long it took.
    pub(super) fn time_answer(&mut self, now: Moment, well: bool, time: Option<Nanos>) {
        if self.timing != Timing::Sent {
            return;
        }
        let seen = self.route.as_ref().and_then(|route| route.seen.as_ref());
        let goes_on = seen.filter(|_| well).is_some_and(|seen| {
            seen.with(|seen| {
                if let Some(time) = time {
                    seen.begun.add(now, time);
                }
                seen.whole.is_some()
            })
        });
        self.timing = if goes_on {
            Timing::Answered
        } else {
            Timing::No
        };
    }

    /// What the upstream had for `duration` is given up. Its work may go on for as long as such work
    /// usually lasts: many servers do not stop when their caller has gone.
    pub(super) fn give_up(&mut self, now: Moment, duration: Option<Nanos>) {
        self.rest = self.rest.max(self.usual_rest(now, duration));
    }

    /// What the upstream had for `duration` has failed. It counts at its endpoint for as long as it
    /// would have taken there. (Bug avoided: what fails at once never has anything in flight, looks
    /// the least loaded, and gets nearly all requests.)
    pub(super) fn hold_place(&mut self, now: Moment, duration: Option<Nanos>) {
        self.held = self.usual_rest(now, duration);
    }

    /// How much longer it would usually have taken.
    fn usual_rest(&self, now: Moment, duration: Option<Nanos>) -> Nanos {
        let seen = self.route.as_ref().and_then(|route| route.seen.as_ref());
        let rest = |(seen, duration): (&Shared<Times>, Nanos)| {
            seen.with(|seen| seen.begun.rest(now, duration))
        };
        seen.zip(duration).map_or(Nanos::ZERO, rest)
    }

    /// The request was given up, `duration` after it was whole: it would have taken longer.
    pub(super) fn time_cut_off(&mut self, now: Moment, duration: Option<Nanos>) {
        let timing = std::mem::take(&mut self.timing);
        let seen = self.route.as_ref().and_then(|route| route.seen.as_ref());
        let (Some(seen), Some(duration)) = (seen, duration) else {
            return;
        };
        let random = self.engine.rng.bits();
        seen.with(|seen| {
            if timing == Timing::Sent {
                seen.begun.add_cut_off(now, duration, random);
            }
            if let Some(whole) = &mut seen.whole {
                whole.add_cut_off(now, duration, random);
            }
        });
    }

    /// The answer is at its end, or its client has gone.
    pub(super) fn time_end(&mut self, now: Moment) {
        let duration = self.elapsed(now);
        // A client that has gone before the answer teaches nothing of how long it takes. (Bug
        // avoided: one that gives up all the time has others refused by a quantile, or cut off by a
        // timeout that follows it.)
        if self.timing == Timing::Sent {
            self.give_up(now, duration);
        }
        let timing = std::mem::take(&mut self.timing);
        let seen = self.route.as_ref().and_then(|route| route.seen.as_ref());
        if let (Timing::Answered, Some(seen), Some(duration)) = (timing, seen, duration) {
            seen.with(|seen| {
                if let Some(whole) = &mut seen.whole {
                    whole.add(now, duration);
                }
            });
        }
    }

    /// Whether a failure to answer in time came of the client's own deadline: it shows nothing of
    /// the upstream, and is neither success nor failure in any policy. (Bug avoided: a client with
    /// deadlines that are too short for a service opens its breakers for all others.)
    ///
    /// A timeout does if the client's deadline was over by then, and shorter than the route's own.
    /// So does an upstream's own word for it, a 504 or DEADLINE_EXCEEDED, whenever it comes: who
    /// gets the deadline may refuse at once what it can't do in time, as another haven would.
    pub(super) fn is_own_haste(
        &self,
        class: Class,
        status: u16,
        grpc_status: Option<u64>,
        now: Moment,
    ) -> bool {
        let Some(given) = self.deadline.incoming_left(self.waited) else {
            return false;
        };
        let own = self.deadline.own.map(|own| own.minus(self.waited));
        match class {
            Class::Timeout => {
                let taken = now.since(self.start).plus(EARLY).plus(Nanos(given.0 / 8));
                own.is_none_or(|own| given < own) && taken >= given
            }
            Class::Answered => {
                (status == 504 || grpc_status == Some(GRPC_TOO_LATE))
                    && given < own.unwrap_or(USUAL)
            }
            Class::Reset | Class::Unsent(_) | Class::Local => false,
        }
    }
}
