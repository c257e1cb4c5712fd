//! One request on its way through the chain.
//!
//! What it was granted is given back exactly once: [`Grants`] holds each grant as an `Option` that
//! is taken out when it ends, so that a second end (our own reply, and then the end of the stream)
//! finds nothing.

mod answer;
mod breaker;
mod canary;
mod classify;
mod client;
mod concurrency;
mod context;
mod deadline;
mod endpoint;
mod exception;
mod followed;
mod grants;
mod probe;
mod rate_limits;
pub mod replace;
mod reply;
mod report;
mod response;
mod retries;
mod routing;
mod serving;
mod stale;
mod whole;

use super::route::{Limit, Route};
use super::{Engine, once, reserved};
use crate::base::headers::{HeaderMap, Kept, parse_number};
use crate::base::time::{Moment, Nanos};
use crate::host::{Host, Message, Stream};
use crate::policy::fallback::stale::{Draft, StaleRequest};
use crate::policy::probe::grpc::ProbeRequest;
use crate::policy::rate_limit::KeyQuota;
use crate::request::Request;
pub use client::UNKNOWN as UNKNOWN_CLIENT;
use context::{Context, Handles};
pub(super) use deadline::POLICY as DEADLINE;
use deadline::{Deadline, Timing};
use exception::Ending;
use grants::Grants;
use rate_limits::Pause;
use replace::Replacement;
use reply::Refusal;
use reserved::CLUSTER_HEADER;
use response::Settlement;
use serving::Asked;
use std::cell::LazyCell;
use std::rc::Rc;

/// What the host is to do with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass it on.
    Continue,
    /// Nothing more: we have answered.
    Stop,
    /// Keep the message, and each piece of its body, until a later callback of it says otherwise.
    Read,
    /// Keep the message until this moment of the monotonic clock and call [`Exchange::on_resume`]
    /// then, or, if there is no room for it, [`Exchange::on_no_room`] now. Of an answer the pieces
    /// of the body are wanted meanwhile, and the first that says otherwise ends the wait.
    Wait {
        /// The moment.
        until: Moment,
        /// Whose place it takes: [`super::waiting`] has shares.
        client: u32,
    },
}

/// A request, from its headers to its end.
#[derive(Debug)]
pub struct Exchange {
    engine: Rc<Engine>,
    /// `None`: no route matched, or all of it is off.
    route: Option<Rc<Route>>,
    /// Of a request that takes the route of a canary: the one that the canary is a part of.
    stable: Option<Rc<Route>>,
    /// When it came, or went on after a wait: what the upstream has to do with begins here.
    start: Moment,
    /// When it was whole, as far as is known: an upstream's time begins no sooner.
    whole: Option<Moment>,
    /// How long it waited before `start`.
    waited: Nanos,
    /// The probe that it is, while its message is being read.
    probe: Option<ProbeRequest>,
    /// The endpoints that it asks for, while the version is read that it shows.
    asked: Option<Asked>,
    /// It is a health check that goes on: a bridge is to answer it.
    bridged: bool,
    /// What it waits for, while it does.
    pause: Option<Pause>,
    facts: Facts,
    deadline: Deadline,
    timing: Timing,
    /// For how much longer work that was given up may go on.
    rest: Nanos,
    /// It is on its way to its upstream.
    passed_on: bool,
    /// For how much longer a request counts at its endpoint that failed there too soon.
    held: Nanos,
    /// We have answered: what follows in the response phase is our own.
    replied: bool,
    /// A failed answer that becomes ours when its body is whole.
    replacement: Option<Box<Replacement>>,
    /// Quotas that the client is to know of.
    quotas: Vec<(Rc<Limit>, KeyQuota)>,
    grants: Grants,
    /// An answer that is not at its end: a gRPC call has its status there, and any may still be
    /// cut.
    unsettled: Option<Settlement>,
    /// A response that is kept when it is whole.
    draft: Option<Box<Draft>>,
    /// Sent to the fallback's cluster: the number of the step that answers if that fails.
    sent_on: Option<usize>,
    /// The client's own deadline has ended it: nothing that a plain request would not get answers.
    hasty: bool,
    /// What is known of its end, where only exceptions are read.
    ending: Ending,
    /// It has ended.
    over: bool,
    /// What goes into the access log.
    decisions: String,
}

/// What later callbacks have to know of the request's headers.
#[derive(Debug, Default)]
struct Facts {
    grpc: bool,
    /// Its answer has no body.
    head: bool,
    get: bool,
    /// Whether the request may be tried again.
    retriable: bool,
    request_id: Vec<u8>,
    /// Hash of what the endpoint is chosen by.
    key: Option<u64>,
    /// The same for where it goes if a canary does not take it.
    stable_key: Option<u64>,
    /// Whose share of the route's limits it is of, and the same if a canary does not take it.
    fair: [Option<u32>; 2],
    stable_fair: [Option<u32>; 2],
    /// Whose it is, where clients have shares of something.
    client: u32,
    /// What the fallback's stale step has to know.
    asked: Option<Box<StaleRequest>>,
}

impl Exchange {
    /// A request that has just begun.
    #[must_use]
    pub fn new(engine: Rc<Engine>) -> Self {
        Self {
            engine,
            route: None,
            stable: None,
            start: Moment::ZERO,
            whole: None,
            waited: Nanos::ZERO,
            probe: None,
            asked: None,
            bridged: false,
            pause: None,
            facts: Facts::default(),
            deadline: Deadline::default(),
            timing: Timing::No,
            rest: Nanos::ZERO,
            passed_on: false,
            held: Nanos::ZERO,
            replied: false,
            replacement: None,
            quotas: Vec::new(),
            grants: Grants::default(),
            unsettled: None,
            draft: None,
            sent_on: None,
            hasty: false,
            ending: Ending::default(),
            over: false,
            decisions: String::new(),
        }
    }

    /// The engine and the route, if there is one.
    fn handles(&self) -> Option<Handles> {
        Some(Handles::new(&self.engine, self.route.as_ref()?))
    }

    /// The request's headers are there, and nothing follows: [`Exchange::on_request_headers`].
    pub fn on_request<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        self.on_request_headers(host, stream, true)
    }

    /// The request's headers are there: runs the chain. `end`: no body follows.
    pub fn on_request_headers<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        end: bool,
    ) -> Action {
        let engine = Rc::clone(&self.engine);
        if let Some(serving) = &engine.serving {
            return self.serve(serving, host, stream, end);
        }
        // One call for all headers: most policies want some, and one header costs nearly as much as
        // all.
        let (headers, mut kept) = (engine.request_headers(stream), Kept::default());
        let noted = kept.walk(&headers, &engine.watched);
        let seen = engine.read(noted, stream);
        if let Some(reply) = engine.unreadable(&headers, seen) {
            return self.reply(stream, &reply);
        }
        let request = engine.request(noted);
        if let Some(action) = self.on_probe(&request, end, host, stream) {
            return action;
        }
        self.take_route(host, stream, request, seen.twice, end)
    }

    /// The chain of a request that has a route.
    fn run<'a, H: Host, S: Stream>(
        &mut self,
        context: &Context<'a, H, S>,
        mut request: Request<'a>,
        end: bool,
    ) -> Action {
        self.read_facts(context, &mut request, end);
        let context = &context.on(self.choose_variant(context, &request));
        self.hash_key(context, &request);
        self.read_fair_keys(context, &request);
        self.identify(context, &request);
        if let Some(refusal) = self.check_limits(context, &request) {
            return self.refuse(context, &refusal);
        }
        let until = self.pause.as_ref().map(Pause::until);
        let wait = until.map_or(Nanos::ZERO, |until| until.since(self.start));
        // After the limits, or a deadline that is over would be a way around them. A request that
        // would wait in vain does not wait.
        if let Some(refusal) = self.check_deadline(context, wait) {
            return self.refuse(context, &refusal);
        }
        match until {
            Some(until) => Action::Wait {
                until,
                client: self.facts.client,
            },
            None => self.proceed(context),
        }
    }

    /// Reads what later stages and callbacks have to know of the headers.
    fn read_facts<'a, H: Host, S: Stream>(
        &mut self,
        context: &Context<'a, H, S>,
        request: &mut Request<'a>,
        end: bool,
    ) {
        let route = context.route;
        self.facts.grpc = request.is_grpc();
        self.facts.head = request.method == b"HEAD";
        self.facts.get = request.method == b"GET";
        if route.needs_request_id {
            let id = request.headers.get("x-request-id");
            self.facts.request_id = id.unwrap_or_default().to_vec();
        }
        request.route = &route.config.name;
        self.facts.asked = route
            .stale_store()
            .and_then(|store| {
                store
                    .policy
                    .ask(request, end || !context.engine.kind.tells_ends())
            })
            .map(Box::new);
        if route.needs_client {
            let config = &context.engine.client_ip;
            let origin = client::origin(config, request.headers, context.stream);
            if origin.forgeable && !context.engine.said_forgeable.replace(true) {
                once::warn(context.host, client::forgeable(config.source));
            }
            request.address = origin.address;
            request.client = request
                .address
                .map(|ip| ip.masked(config.ipv4_prefix, config.ipv6_prefix));
        }
    }

    /// Whether [`Exchange::on_resume`] is still to come.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether a failed answer's body is waited for, to put the fallback's in its place.
    #[must_use]
    pub const fn is_replacing(&self) -> bool {
        self.replacement.is_some()
    }

    /// How long the request has waited at its limits; a deadline counts it.
    #[must_use]
    pub const fn waited(&self) -> Nanos {
        self.waited
    }

    /// The part of the chain that follows the limits.
    fn proceed<H: Host, S: Stream>(&mut self, context: &Context<'_, H, S>) -> Action {
        let decided = self.decisions.len();
        let Some(refusal) = self.admit(context) else {
            return self.pass_on(context);
        };
        // What a canary does not take goes where the others go.
        let Some(stable) = self.stable.take() else {
            return self.refuse(context, &refusal);
        };
        self.release(context.host);
        self.decisions.truncate(decided);
        self.facts.key = self.facts.stable_key;
        self.facts.fair = self.facts.stable_fair;
        self.route = Some(Rc::clone(&stable));
        let context = &context.on(&stable);
        match self.admit(context) {
            Some(refusal) => self.refuse(context, &refusal),
            None => self.pass_on(context),
        }
    }

    fn admit<'a, H: Host, S: Stream>(
        &mut self,
        context: &Context<'a, H, S>,
    ) -> Option<Refusal<'a>> {
        let engine = context.engine;
        engine.lingering.release_due(context.host, self.start);
        let refused = self.check_concurrency(context);
        let refused = refused.or_else(|| self.check_breaker(context));
        refused.or_else(|| self.pick_endpoint(context))
    }

    /// The request goes to its upstream.
    fn pass_on<H: Host, S: Stream>(&mut self, context: &Context<'_, H, S>) -> Action {
        self.passed_on = true;
        self.mark_variant(context);
        self.set_timeouts(context);
        self.store_decisions(context.stream);
        Action::Continue
    }

    /// The response's headers are there, and nothing follows but, perhaps, trailers:
    /// [`Exchange::on_response_headers`].
    pub fn on_response<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        self.on_response_headers(host, stream, true)
    }

    /// The response's headers are there: judges the upstream, and answers in its place if it
    /// failed. `end`: no body follows.
    pub fn on_response_headers<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        end: bool,
    ) -> Action {
        if self.replied || (self.bridged && self.is_from_bridge(host, stream)) {
            return Action::Continue;
        }
        self.ending.shown = true;
        // The proxy has answered a request that still waits: it goes nowhere any more.
        self.end_wait(host);
        let Some(handles) = self.handles() else {
            return Action::Continue;
        };
        let context = &handles.context(host, stream);
        let wanted = context.route.judges_answers()
            || self.grants.retries() > 0
            || (self.facts.grpc && self.deadline.is_set());
        if wanted && let Some(action) = self.judge(context, end) {
            return action;
        }
        if end {
            self.keep_response(context);
        }
        if !self.quotas.is_empty() {
            self.add_quotas_to_answer(stream);
        }
        Action::Continue
    }

    /// A piece of the response's body is there, `size` bytes. `end`: it was the last, and no
    /// trailers follow.
    pub fn on_response_body<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        size: usize,
        end: bool,
    ) -> Action {
        if self.replacement.is_some() {
            return self.replace_piece(stream, size, end);
        }
        if self.replied || (self.draft.is_none() && !(end && self.unsettled.is_some())) {
            return Action::Continue;
        }
        let Some(handles) = self.handles() else {
            return Action::Continue;
        };
        let context = &handles.context(host, stream);
        self.copy_piece(context, size);
        if end {
            self.keep_response(context);
            self.settle_whole(context);
        }
        Action::Continue
    }

    /// The response's trailers are there: those of a gRPC call have its status.
    pub fn on_response_trailers<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        if self.replacement.is_some() {
            return self.replace_trailers(stream);
        }
        let Some(handles) = self.handles() else {
            return Action::Continue;
        };
        let context = &handles.context(host, stream);
        self.keep_response(context);
        if let Some(settlement) = self.unsettled.take() {
            let trailers = if self.facts.grpc {
                stream.headers(Message::ResponseTrailers)
            } else {
                HeaderMap::default()
            };
            let status = trailers.get("grpc-status").and_then(parse_number);
            let (settlement, now) = (settlement.with_trailers(&trailers), host.monotonic());
            Self::read_report(context, settlement.attempts(), &trailers, now);
            self.settle(context, settlement, status, now);
        }
        Action::Continue
    }

    /// Whether the end of the stream has to be looked at, by [`Exchange::on_cut`], before
    /// [`Exchange::on_end`].
    #[must_use]
    pub const fn is_unsettled(&self) -> bool {
        self.unsettled.is_some() || self.replacement.is_some()
    }

    /// The stream has ended before its response had: judges what has cut it.
    pub fn on_cut<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        self.end_replacing(host, stream);
        let Some(settlement) = self.unsettled.take() else {
            return;
        };
        if let Some(handles) = self.handles() {
            self.settle_cut(&handles.context(host, stream), settlement);
        }
    }

    /// The exchange is over, however it ended. May be called again.
    pub fn on_end<H: Host>(&mut self, host: &H) {
        if let Some(asked) = self.asked.take() {
            self.miss_body(&asked, host);
        }
        self.drop_response(host);
        if !std::mem::replace(&mut self.over, true) {
            self.engine.ended.set(self.deadline.until);
        }
        self.release(host);
    }

    /// Gives back all that is still held, without a verdict.
    fn release<H: Host>(&mut self, host: &H) {
        self.end_wait(host);
        // The usual end needs no time: all has been recorded. Reading the clock costs as much as
        // any host call.
        let now = LazyCell::new(|| host.monotonic());
        if self.timing != Timing::No {
            self.time_end(*now);
        }
        let Some(it) = self.grants.take() else { return };
        let rest = std::mem::take(&mut self.rest);
        let rests = [rest, std::mem::take(&mut self.held).max(rest)];
        it.release(host, self.began(), || *now, &self.engine, rests);
    }
}
