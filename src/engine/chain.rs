//! One request on its way through the chain.
//!
//! What it was granted is given back exactly once: [`Exchange`] holds each grant as an `Option` and
//! takes it out when it ends, so that a second end (on_log and on_done, or our own reply and then
//! the end of the stream) finds nothing.

mod breaker;
mod canary;
mod classify;
mod concurrency;
mod deadline;
mod endpoint;
mod probe;
mod rate_limits;
mod reply;
mod response;
mod stale;

use super::concurrency::Permit;
use super::route::Route;
use super::stale::StaleStore;
use super::upstream::Pick;
use super::{CLUSTER_HEADER, Engine};
use crate::base::headers::{HeaderMap, parse_number};
use crate::base::ip::Ip;
use crate::base::time::Nanos;
use crate::config::{self, IpSource, Mode};
use crate::host::{Host, Message, Property, Stream};
use crate::policy::circuit_breaker::CallResult;
use crate::policy::fallback::stale::{Draft, StaleRequest};
use crate::policy::probe::Probe;
use crate::policy::probe::grpc::{self, ProbeRequest};
use crate::policy::rate_limit::KeyQuota;
use crate::policy::rate_limit::quota_headers;
use crate::policy::{self, route};
use crate::request::{Reason, Request};
pub(super) use deadline::POLICY as DEADLINE;
use deadline::{Deadline, Timing};
use rate_limits::Pause;
use reply::Refusal;
use response::Settlement;
use std::cell::LazyCell;
use std::rc::Rc;

/// What the host is to do with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass it on.
    Continue,
    /// Nothing more: we have answered.
    Stop,
    /// Keep the request, and each piece of its body, until [`Exchange::on_request_body`] or
    /// [`Exchange::on_request_trailers`] says otherwise.
    Read,
    /// Keep the request until this moment of the monotonic clock and call [`Exchange::on_resume`]
    /// then, or, if there is no room for it, [`Exchange::on_no_room`] now.
    Wait {
        /// The moment.
        until: Nanos,
    },
}

/// A request, from its headers to its end.
#[derive(Debug)]
pub struct Exchange {
    engine: Rc<Engine>,
    /// Index of its route; `None`: none matched, or all is off.
    route: Option<usize>,
    /// When it came, or went on after a wait: what the upstream has to do with begins here.
    start: Nanos,
    /// How long it waited before `start`.
    waited: Nanos,
    /// The health check that it is, while its message is being read.
    health: Option<ProbeRequest>,
    /// What it waits for, while it does.
    pause: Option<Pause>,
    grpc: bool,
    deadline: Deadline,
    /// Whether what is asked for may be asked for again.
    retriable: bool,
    /// Whether the route's breaker tries the upstream with it.
    on_trial: bool,
    /// Retries that the proxy may make.
    granted: u32,
    timing: Timing,
    /// We have answered: what follows in the response phase is our own.
    replied: bool,
    request_id: Vec<u8>,
    /// Quotas to tell the client of, with the index of the limit.
    quotas: Vec<(usize, KeyQuota)>,
    /// In flight, at the route's limit and at its upstream's.
    permits: [Option<Permit>; 2],
    /// After what time the upstream began to answer, and did not fail.
    answered: Option<Nanos>,
    /// Epoch of the route's breaker, while it waits for the outcome.
    breaker: Option<u32>,
    /// Hash of what the endpoint is chosen by.
    key: Option<u64>,
    /// The same for where it goes if a canary does not take it.
    stable_key: Option<u64>,
    /// The endpoints picked, while in flight.
    pick: Option<Pick>,
    /// Whether the endpoints have been told the outcome.
    recorded: bool,
    /// An answer that is not at its end: a gRPC call tells its status there, and any may still be
    /// cut.
    unsettled: Option<Settlement>,
    /// What the fallback's stale step has to know of the request.
    asked: Option<Box<StaleRequest>>,
    /// A response that is kept when it is whole.
    draft: Option<Box<Draft>>,
    /// Sent to the fallback's cluster: the number of the step that answers if that fails.
    sent_on: Option<usize>,
    /// What goes into the access log.
    decisions: String,
}

impl Exchange {
    /// A request that has just begun.
    #[must_use]
    pub fn new(engine: Rc<Engine>) -> Self {
        Self {
            engine,
            route: None,
            start: Nanos::ZERO,
            waited: Nanos::ZERO,
            health: None,
            pause: None,
            grpc: false,
            deadline: Deadline::default(),
            retriable: false,
            on_trial: false,
            granted: 0,
            timing: Timing::No,
            replied: false,
            request_id: Vec::new(),
            quotas: Vec::new(),
            permits: [None; 2],
            answered: None,
            breaker: None,
            key: None,
            stable_key: None,
            pick: None,
            recorded: false,
            unsettled: None,
            asked: None,
            draft: None,
            sent_on: None,
            decisions: String::new(),
        }
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
        // One call for all headers: most policies want some, and one header costs nearly as much as
        // all.
        let headers = stream.headers(Message::Request);
        // Looked for in the copy: the call that removes is paid only by those who try.
        let mut request = Request::read(&headers, |name| {
            if let Some(reserved) = engine.reserved_headers.find(name) {
                stream.remove_header(Message::Request, reserved);
            }
        });
        if let Some(probe) = policy::probe::requested(&engine.config.health, &request) {
            let reply = match probe {
                Probe::Plain => policy::probe::plain(),
                Probe::Document => engine.health_document(host, host.monotonic()),
            };
            return self.reply(stream, &reply);
        }
        if let Some(call) = grpc::call(&engine.config.health, &request) {
            return self.on_health_call(&engine, call, end, host, stream);
        }
        let Some((at, config)) = engine
            .config
            .routes
            .iter()
            .enumerate()
            .find(|(_, r)| route::matches(&r.matcher, &request))
        else {
            return Action::Continue;
        };
        let Some(route) = engine.routes.get(at) else {
            return Action::Continue;
        };
        // Whatever is off: without it the proxy knows no way.
        if let Some(cluster) = &route.cluster {
            stream.set_header(Message::Request, CLUSTER_HEADER, cluster.as_bytes());
        }
        if route.off {
            return Action::Continue;
        }
        self.route = Some(at);
        self.start = host.monotonic();
        self.grpc = request.is_grpc();
        if route.needs_request_id {
            self.request_id = headers.get("x-request-id").unwrap_or_default().to_vec();
        }
        request.route = &config.name;
        self.asked = stale_store(&engine, route)
            .and_then(|kept| kept.policy.ask(&request))
            .map(Box::new);
        if route.needs_client {
            let config = &engine.config.client_ip;
            request.address = address(config, &headers, stream);
            request.client = request
                .address
                .map(|ip| ip.masked(config.ipv4_prefix, config.ipv6_prefix));
        }
        let route = self.choose_variant(&engine, route, config, &request, host);
        self.hash_key(&engine, route, &request);
        if let Some(refusal) = self.switch(&engine, route, host) {
            return self.refuse(&engine, route, &config.name, &refusal, host, stream);
        }
        self.retriable = self.is_retriable(config, request.method);
        if let Some(refusal) = self.deadline(&engine, route, config, &headers, host) {
            return self.refuse(&engine, route, &config.name, &refusal, host, stream);
        }
        if let Some(refusal) = self.rate_limits(&engine, route, &request, host) {
            return self.refuse(&engine, route, &config.name, &refusal, host, stream);
        }
        let Some(until) = self.pause.as_ref().map(Pause::until) else {
            return self.proceed(&engine, route, config, host, stream);
        };
        // Who would wait in vain is not kept waiting.
        if let Some(refusal) = self.check_deadline(route, config, until.since(self.start), host) {
            return self.refuse(&engine, route, &config.name, &refusal, host, stream);
        }
        Action::Wait { until }
    }

    /// The moment that [`Action::Wait`] named has come: the chain goes on.
    pub fn on_resume<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        let engine = Rc::clone(&self.engine);
        // Nothing waits: somebody else has answered meanwhile.
        let Some((route, config)) = self.pause.take().and_then(|_| self.route_of(&engine)) else {
            return Action::Stop;
        };
        let now = host.monotonic();
        self.waited = now.since(self.start);
        self.start = now;
        for (_, quota) in &mut self.quotas {
            quota.reset = quota.reset.since(self.waited);
        }
        // The wait may have been longer than it was to be.
        if let Some(refusal) = self.check_deadline(route, config, self.waited, host) {
            return self.refuse(&engine, route, &config.name, &refusal, host, stream);
        }
        self.proceed(&engine, route, config, host, stream)
    }

    /// There was no room for the request to wait: it is refused, and costs nothing.
    pub fn on_no_room<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        let engine = Rc::clone(&self.engine);
        let Some((pause, (route, config))) = self.pause.take().zip(self.route_of(&engine)) else {
            return Action::Stop;
        };
        let refusal = self.no_room(&engine, pause, host);
        self.refuse(&engine, route, &config.name, &refusal, host, stream)
    }

    /// Whether [`Exchange::on_resume`] is still to come.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.pause.is_some()
    }

    /// How long the request has waited at its limits; a deadline counts it.
    #[must_use]
    pub const fn waited(&self) -> Nanos {
        self.waited
    }

    fn route_of<'e>(&self, engine: &'e Engine) -> Option<(&'e Route, &'e config::Route)> {
        let route = engine.routes.get(self.route?)?;
        Some((route, engine.config.routes.get(route.config)?))
    }

    /// Refuses if the route's switch is off.
    fn switch<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        host: &H,
    ) -> Option<Refusal<'e>> {
        let used = route.switched_off.as_ref()?;
        let policy = engine
            .config
            .switches
            .get(used.at)
            .map_or("", |switch| switch.name.as_str());
        self.decide(host, used, Reason::SwitchedOff, policy);
        (used.mode == Mode::Enforce).then_some(Refusal {
            reason: Reason::SwitchedOff,
            policy,
            retry_after: None,
        })
    }

    /// The part of the chain that follows the limits.
    fn proceed<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        config: &config::Route,
        host: &H,
        stream: &S,
    ) -> Action {
        let mut route = route;
        let decided = self.decisions.len();
        let mut refused = self.admit(engine, route, host, stream);
        // What a canary does not take goes where the others go.
        if refused.is_some()
            && let Some((at, stable)) = Self::stable_of(engine, route)
        {
            self.release(engine, host);
            self.decisions.truncate(decided);
            (self.route, route) = (Some(at), stable);
            self.key = self.stable_key;
            refused = self.admit(engine, route, host, stream);
        }
        if let Some(refusal) = refused {
            return self.refuse(engine, route, &config.name, &refusal, host, stream);
        }
        self.mark_variant(route, config, host, stream);
        self.set_timeouts(route, config, host, stream);
        self.store_decisions(stream);
        Action::Continue
    }

    fn admit<'e, H: Host, S: Stream>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        host: &H,
        stream: &S,
    ) -> Option<Refusal<'e>> {
        let refused = self.concurrency(engine, route, host);
        let refused = refused.or_else(|| self.breaker(engine, route, host));
        refused.or_else(|| self.endpoint(engine, route, host, stream))
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
        if self.replied {
            return Action::Continue;
        }
        let engine = Rc::clone(&self.engine);
        // The proxy has answered a request that still waits: it goes nowhere any more.
        self.give_up(&engine, host);
        let Some(route) = self.route.and_then(|at| engine.routes.get(at)) else {
            return Action::Continue;
        };
        let wanted = route.breaker.is_some()
            || route.upstream.is_some()
            || route.fallback.is_some()
            || route.seen.is_some()
            || route.concurrency.iter().any(Option::is_some)
            || self.granted > 0
            || (self.grpc && self.deadline.is_set());
        if wanted && let Some(reply) = self.judge(&engine, route, end, host, stream) {
            return self.reply(stream, &reply);
        }
        if end {
            self.keep(&engine, route, host);
        }
        if !self.quotas.is_empty() {
            for (name, value) in quota_headers::all(self.quotas_by_limit(&engine)) {
                stream.add_header(Message::Response, name, &value);
            }
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
    ) {
        if self.replied || (self.draft.is_none() && !(end && self.unsettled.is_some())) {
            return;
        }
        let engine = Rc::clone(&self.engine);
        let Some(route) = self.route.and_then(|at| engine.routes.get(at)) else {
            return;
        };
        self.copy(&engine, route, size, stream);
        if end {
            self.keep(&engine, route, host);
            if let Some(settlement) = self.unsettled.take() {
                self.settle(&engine, route, settlement, None, host.monotonic(), host);
            }
        }
    }

    /// The response's trailers are there: a gRPC call tells its status in them.
    pub fn on_response_trailers<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        let engine = Rc::clone(&self.engine);
        let Some(route) = self.route.and_then(|at| engine.routes.get(at)) else {
            return;
        };
        self.keep(&engine, route, host);
        if let Some(settlement) = self.unsettled.take() {
            let trailers = if self.grpc {
                stream.headers(Message::ResponseTrailers)
            } else {
                HeaderMap::default()
            };
            let status = trailers.get("grpc-status").and_then(parse_number);
            let settlement = settlement.with_trailers(&trailers);
            self.settle(&engine, route, settlement, status, host.monotonic(), host);
        }
    }

    /// Whether the end of the stream has to be looked at, by [`Exchange::on_cut`], before
    /// [`Exchange::on_end`].
    #[must_use]
    pub const fn is_unsettled(&self) -> bool {
        self.unsettled.is_some()
    }

    /// The stream has ended before its response had: judges who has cut it.
    pub fn on_cut<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        let Some(settlement) = self.unsettled.take() else {
            return;
        };
        let engine = Rc::clone(&self.engine);
        if let Some(route) = self.route.and_then(|at| engine.routes.get(at)) {
            self.settle_cut(&engine, route, settlement, host, stream);
        }
    }

    /// The exchange is over, however it ended. May be called again.
    pub fn on_end<H: Host>(&mut self, host: &H) {
        let engine = Rc::clone(&self.engine);
        self.release(&engine, host);
    }

    /// Gives back all that is still held, without a verdict.
    fn release<H: Host>(&mut self, engine: &Engine, host: &H) {
        self.give_up(engine, host);
        let Some(route) = self.route.and_then(|at| engine.routes.get(at)) else {
            return;
        };
        self.settle_retries(route, 0);
        let (timing, epoch, pick) = (
            std::mem::take(&mut self.timing),
            self.breaker.take(),
            self.pick.take(),
        );
        let upstream = route
            .upstream
            .and_then(|used| engine.upstreams.get(used.at))
            .zip(pick);
        if let Some((upstream, pick)) = &upstream {
            upstream.leave(host, pick);
        }
        let unrecorded = upstream.filter(|_| !self.recorded);
        // The usual end asks for no time: all has been told. Reading the clock costs as much as any
        // host call.
        let now = LazyCell::new(|| host.monotonic());
        if timing != Timing::No {
            self.time_end(engine, route, timing, *now);
        }
        self.leave_concurrency(engine, host, || *now);
        if let Some((breaker, epoch)) = route
            .breaker
            .and_then(|used| engine.breakers.get(used.at))
            .zip(epoch)
        {
            breaker.end(host, *now, epoch, CallResult::IGNORED, &engine.rng);
        }
        if let Some((upstream, pick)) = unrecorded {
            upstream.release(host, *now, &pick, &engine.rng);
        }
    }
}

/// The kept responses of the route's fallback, if it acts.
fn stale_store<'e>(engine: &'e Engine, route: &Route) -> Option<&'e StaleStore> {
    let used = route.fallback.filter(|used| used.mode == Mode::Enforce)?;
    engine.stale.get(used.at)?.as_ref()
}

/// The client's address as configured. A header that is missing, short or malformed gives the
/// connection's.
fn address<S: Stream>(config: &config::ClientIp, headers: &HeaderMap, stream: &S) -> Option<Ip> {
    let from_header = match config.source {
        IpSource::Connection => None,
        IpSource::XRealIp => headers.get("x-real-ip").and_then(Ip::parse),
        IpSource::XForwardedFor => {
            // From the right: what stands left of the trusted hops is whatever the client wrote.
            let skip = usize::try_from(config.trusted_hops.saturating_sub(1)).unwrap_or(usize::MAX);
            headers
                .all("x-forwarded-for")
                .rev()
                .flat_map(|value| value.rsplit(|b| *b == b','))
                .nth(skip)
                .and_then(Ip::parse)
        }
    };
    from_header.or_else(|| {
        stream
            .property(Property::SourceAddress)
            .as_deref()
            .and_then(Ip::parse)
    })
}
