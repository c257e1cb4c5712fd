//! One request on its way through the chain.
//!
//! What it was granted is given back exactly once: [`Exchange`] holds each grant as an `Option` and takes it out when it ends, so that a
//! second end (on_log and on_done, or our own reply and then the end of the stream) finds nothing.

mod limits;

use super::endpoints::{Pick, Tries};
use super::metrics::mode_word;
use super::{Engine, Route, Use};
use crate::base::headers::{HeaderMap, parse_number};
use crate::base::ip::Ip;
use crate::base::text::push_all;
use crate::base::time::Nanos;
use crate::config::{self, FailureOn, IpSource, Mode, QuotaHeaders};
use crate::host::{Host, Message, MetricId, Property, Reply, Stream};
use crate::policy::circuit_breaker::state::{Admission, Call};
use crate::policy::health::{self, Probe};
use crate::policy::rate_limit::KeyQuota;
use crate::policy::rate_limit::quota_headers;
use crate::policy::reply::{Cause, Subject};
use crate::policy::request::Request;
use crate::policy::{Outcome, Reason, fallback, reply, route};
use limits::Pause;
use std::rc::Rc;

/// What the host is to do with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass it on.
    Continue,
    /// Nothing more: we have answered.
    Stop,
    /// Keep the request until this moment of the monotonic clock and call [`Exchange::on_resume`] then, or, if there is no room for it,
    /// [`Exchange::on_no_room`] now.
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
    /// What it waits for, while it does.
    pause: Option<Pause>,
    grpc: bool,
    /// We have answered: what follows in the response phase is our own.
    replied: bool,
    request_id: Vec<u8>,
    /// Quotas to tell the client of, with the index of the limit.
    quotas: Vec<(usize, KeyQuota)>,
    /// Epoch of the route's breaker, while it waits for the outcome.
    breaker: Option<u32>,
    /// The endpoints picked, while in flight.
    pick: Option<Pick>,
    /// Whether the endpoints have been told the outcome.
    recorded: bool,
    /// A gRPC answer whose status is still to come, in its trailers.
    unsettled: Option<Settlement>,
    /// What goes into the access log.
    decisions: String,
}

/// How the upstream answered, or why it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// By itself.
    Answered,
    /// Not in time.
    Timeout,
    /// Reset, refused, cut, or nobody there.
    Reset,
    /// The proxy answered, and no upstream was to blame.
    Local,
}

/// What is known of an answer when its headers are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settlement {
    class: Class,
    status: u16,
    /// Who was asked; `None`: none of ours.
    tries: Option<Tries>,
    duration: Nanos,
    retry_after: Option<Nanos>,
}

/// A refusal on its way to become a reply.
struct Refusal<'a> {
    reason: Reason,
    policy: &'a str,
    retry_after: Option<Nanos>,
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
            pause: None,
            grpc: false,
            replied: false,
            request_id: Vec::new(),
            quotas: Vec::new(),
            breaker: None,
            pick: None,
            recorded: false,
            unsettled: None,
            decisions: String::new(),
        }
    }

    /// The request's headers are there: runs the chain.
    pub fn on_request<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        let engine = Rc::clone(&self.engine);
        // One call for all headers: most policies want some, and one header costs nearly as much as all.
        let headers = stream.headers(Message::Request);
        let mut request = Request::new(&headers);
        if let Some(probe) = health::probe(&engine.config.health, &request) {
            let reply = match probe {
                Probe::Plain => health::plain(),
                Probe::Document => engine.health_document(host, host.monotonic()),
            };
            return self.reply(stream, &reply);
        }
        // Looked for in the copy first, in one walk: the call that removes is paid only by those who try.
        for (name, _) in
            headers.iter().filter(|(name, _)| name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"x-")))
        {
            if let Some(reserved) = engine.reserved_headers.iter().find(|r| name.eq_ignore_ascii_case(r.as_bytes())) {
                stream.remove_header(Message::Request, reserved);
            }
        }
        let Some((at, config)) =
            engine.config.routes.iter().enumerate().find(|(_, r)| route::matches(&r.matcher, &request))
        else {
            return Action::Continue;
        };
        let Some(route) = engine.routes.get(at).filter(|r| !r.off) else { return Action::Continue };
        self.route = Some(at);
        self.start = host.monotonic();
        self.grpc = request.is_grpc();
        if route.needs_request_id {
            self.request_id = headers.get("x-request-id").unwrap_or_default().to_vec();
        }
        request.route = &config.name;
        if route.needs_client {
            request.client = client(&engine, &headers, stream);
        }
        if let Some(refusal) = self.rate_limits(&engine, route, &request, host) {
            return self.refuse(&engine, route, &config.name, &refusal, host, stream);
        }
        match &self.pause {
            Some(pause) => Action::Wait { until: pause.until() },
            None => self.proceed(&engine, route, &config.name, host, stream),
        }
    }

    /// The moment that [`Action::Wait`] named has come: the chain goes on.
    pub fn on_resume<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        let engine = Rc::clone(&self.engine);
        // Nothing waits: somebody else has answered meanwhile.
        let Some((route, config)) = self.pause.take().and_then(|_| self.route_of(&engine)) else { return Action::Stop };
        let now = host.monotonic();
        self.waited = now.since(self.start);
        self.start = now;
        for (_, quota) in &mut self.quotas {
            quota.reset = quota.reset.since(self.waited);
        }
        self.proceed(&engine, route, &config.name, host, stream)
    }

    /// There was no room for the request to wait: it is refused, and costs nothing.
    pub fn on_no_room<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        let engine = Rc::clone(&self.engine);
        let Some((pause, (route, config))) = self.pause.take().zip(self.route_of(&engine)) else { return Action::Stop };
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
        self.route.and_then(|at| engine.routes.get(at).zip(engine.config.routes.get(at)))
    }

    /// The part of the chain that follows the limits.
    fn proceed<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        name: &str,
        host: &H,
        stream: &S,
    ) -> Action {
        let refused = match self.breaker(engine, route, host) {
            None => self.endpoint(engine, route, host, stream),
            refused => refused,
        };
        if let Some(refusal) = refused {
            return self.refuse(engine, route, name, &refusal, host, stream);
        }
        self.store_decisions(stream);
        Action::Continue
    }

    /// Answers in the upstream's place.
    fn refuse<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        name: &str,
        refusal: &Refusal<'_>,
        host: &H,
        stream: &S,
    ) -> Action {
        self.release(engine, host);
        let cause = Cause {
            reason: refusal.reason,
            policy: refusal.policy,
            retry_after: refusal.retry_after,
            received_status: None,
        };
        let mut reply = match self.fallback(engine, route, cause, None, host) {
            Some(reply) => reply,
            None => reply::refusal(&self.subject(name), cause),
        };
        self.add_quotas(engine, &mut reply);
        self.store_decisions(stream);
        self.reply(stream, &reply)
    }

    /// The response's headers are there: judges the upstream, and answers in its place if it failed.
    pub fn on_response<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        if self.replied {
            return Action::Continue;
        }
        let engine = Rc::clone(&self.engine);
        // The proxy has answered a request that still waits: it goes nowhere any more.
        self.give_up(&engine, host);
        let Some(route) = self.route.and_then(|at| engine.routes.get(at)) else { return Action::Continue };
        if (route.breaker.is_some() || route.upstream.is_some() || route.fallback.is_some())
            && let Some(reply) = self.judge(&engine, route, host, stream)
        {
            return self.reply(stream, &reply);
        }
        for (name, value) in quota_headers::all(self.quotas_by_limit(&engine)) {
            stream.add_header(Message::Response, name, &value);
        }
        Action::Continue
    }

    /// The response's trailers are there: a gRPC call tells its status in them.
    pub fn on_response_trailers<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        let Some(settlement) = self.unsettled.take() else { return };
        let engine = Rc::clone(&self.engine);
        if let Some(route) = self.route.and_then(|at| engine.routes.get(at)) {
            let status = stream.headers(Message::ResponseTrailers).get("grpc-status").and_then(parse_number);
            self.settle(&engine, route, settlement, status, host);
        }
    }

    /// The exchange is over, however it ended. May be called again.
    pub fn on_end<H: Host>(&mut self, host: &H) {
        let engine = Rc::clone(&self.engine);
        self.release(&engine, host);
    }

    fn breaker<'e, H: Host>(&mut self, engine: &'e Engine, route: &Route, host: &H) -> Option<Refusal<'e>> {
        let used = route.breaker.as_ref()?;
        let breaker = engine.breakers.get(used.at)?;
        match breaker.acquire(host, self.start)? {
            Admission::Admitted { epoch } => {
                self.breaker = Some(epoch);
                None
            }
            Admission::Refused { wait } => {
                let name = &breaker.config().name;
                self.decide(host, used, Reason::CircuitOpen, name);
                (used.mode == Mode::Enforce).then_some(Refusal {
                    reason: Reason::CircuitOpen,
                    policy: name,
                    retry_after: Some(wait),
                })
            }
        }
    }

    fn endpoint<'e, H: Host, S: Stream>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        host: &H,
        stream: &S,
    ) -> Option<Refusal<'e>> {
        let used = route.upstream.as_ref()?;
        let (upstream, config) = engine.upstreams.get(used.at).zip(engine.config.upstreams.get(used.at))?;
        if config.endpoints.is_empty() {
            return None;
        }
        if used.mode == Mode::Shadow {
            // Only a look: no permit is taken, nothing is counted in flight, no header is written.
            let census = upstream.census(host, self.start);
            if census.available.saturating_add(census.trial) == 0 {
                self.decide(host, used, Reason::NoEndpoint, &config.name);
            }
            return None;
        }
        match upstream.pick(host, self.start, &engine.rng) {
            Some(pick) => {
                stream.set_header(Message::Request, &config.override_header, &upstream.addresses(&pick));
                self.pick = Some(pick);
                None
            }
            None => {
                self.decide(host, used, Reason::NoEndpoint, &config.name);
                Some(Refusal { reason: Reason::NoEndpoint, policy: &config.name, retry_after: None })
            }
        }
    }

    /// Judges the upstream by the response's headers; the reply that takes the place of a failure, if the route has one.
    fn judge<H: Host, S: Stream>(&mut self, engine: &Engine, route: &Route, host: &H, stream: &S) -> Option<Reply> {
        let headers = stream.headers(Message::Response);
        let status = headers.get(":status").and_then(parse_number).and_then(|s| u16::try_from(s).ok()).unwrap_or(0);
        let grpc_status = if self.grpc { headers.get("grpc-status").and_then(parse_number) } else { None };
        // Who answered matters only where endpoints are ours. That somebody did, Envoy's own header tells for nothing.
        let known = route.upstream.is_none() && headers.get("x-envoy-upstream-service-time").is_some();
        let address = if known { None } else { stream.property(Property::UpstreamAddress) };
        // On gRPC the proxy's own errors have status 200 too.
        let suspect = status >= 500 || grpc_status.is_some_and(|s| s != 0);
        let class = classify(suspect, known || address.is_some(), stream);
        if class == Class::Local {
            return None;
        }
        let duration = host.monotonic().since(self.start);
        host.record(route.duration, duration.as_millis());
        let tries = self.tries(engine, route, address.as_deref(), host, stream);
        let settlement = Settlement { class, status, tries, duration, retry_after: retry_after(&headers) };
        if self.grpc && class == Class::Answered && status == 200 && grpc_status.is_none() {
            self.unsettled = Some(settlement);
        } else {
            self.settle(engine, route, settlement, grpc_status, host);
        }
        let reason = match class {
            Class::Answered if status < 500 => return None,
            Class::Answered | Class::Reset => Reason::UpstreamError,
            Class::Timeout => Reason::Timeout,
            Class::Local => return None,
        };
        let used = route.fallback?;
        let policy = engine.config.fallbacks.get(used.at).map_or("", |f| f.name.as_str());
        let received_status = (class == Class::Answered).then_some(status);
        let cause = Cause { reason, policy, retry_after: None, received_status };
        let counter = if reason == Reason::Timeout { used.timeouts } else { used.errors };
        let reply = self.fallback(engine, route, cause, Some(counter), host);
        self.store_decisions(stream);
        let mut reply = reply?;
        self.add_quotas(engine, &mut reply);
        Some(reply)
    }

    /// Who was asked; counts the tries beyond the first.
    fn tries<H: Host, S: Stream>(
        &self,
        engine: &Engine,
        route: &Route,
        address: Option<&[u8]>,
        host: &H,
        stream: &S,
    ) -> Option<Tries> {
        let upstream = route.upstream.and_then(|used| engine.upstreams.get(used.at))?;
        let attempts = || Some(u64::from_le_bytes(stream.property(Property::AttemptCount)?.try_into().ok()?));
        let tries = upstream.tries(&self.pick.unwrap_or_default(), address, attempts)?;
        if tries.before > 0 {
            host.add(route.retries, i64::try_from(tries.before).unwrap_or(0));
        }
        Some(tries)
    }

    /// Tells breaker and endpoints how the call went.
    fn settle<H: Host>(
        &mut self,
        engine: &Engine,
        route: &Route,
        settlement: Settlement,
        grpc_status: Option<u64>,
        host: &H,
    ) {
        let Settlement { class, status, tries, duration, retry_after } = settlement;
        let now = host.monotonic();
        let call = |failure_on: &FailureOn| {
            let outcome =
                if fails(failure_on, class, status, grpc_status) { Outcome::Failure } else { Outcome::Success };
            Call { outcome, duration, retry_after }
        };
        if let Some((breaker, epoch)) =
            route.breaker.and_then(|used| engine.breakers.get(used.at)).zip(self.breaker.take())
        {
            let call = call(&breaker.config().failure_on);
            breaker.end(host, now, epoch, call, &engine.rng);
        }
        self.recorded = true;
        let Some((used, upstream)) = route.upstream.and_then(|used| Some((used, engine.upstreams.get(used.at)?)))
        else {
            return;
        };
        let breaker = engine
            .config
            .upstreams
            .get(used.at)
            .and_then(|u| u.circuit_breaker)
            .and_then(|at| engine.config.circuit_breakers.get(at));
        if let Some(breaker) = breaker {
            let call = call(&breaker.failure_on);
            upstream.record(host, now, &self.pick.unwrap_or_default(), tries, call, &engine.rng);
        }
    }

    /// Gives back all that is still held, without a verdict.
    fn release<H: Host>(&mut self, engine: &Engine, host: &H) {
        self.give_up(engine, host);
        let Some(route) = self.route.and_then(|at| engine.routes.get(at)) else { return };
        let (epoch, pick) = (self.breaker.take(), self.pick.take());
        if epoch.is_none() && pick.is_none() {
            return;
        }
        let now = host.monotonic();
        if let Some((breaker, epoch)) = route.breaker.and_then(|used| engine.breakers.get(used.at)).zip(epoch) {
            breaker.end(host, now, epoch, Call::IGNORED, &engine.rng);
        }
        if let Some((upstream, pick)) = route.upstream.and_then(|used| engine.upstreams.get(used.at)).zip(pick) {
            upstream.leave(host, &pick);
            if !self.recorded {
                upstream.release(host, now, &pick, &engine.rng);
            }
        }
    }

    /// The fallback's answer for this cause, if it has one. `counter` counts it as a decision of the fallback's own.
    fn fallback<H: Host>(
        &mut self,
        engine: &Engine,
        route: &Route,
        cause: Cause<'_>,
        counter: Option<MetricId>,
        host: &H,
    ) -> Option<Reply> {
        let used = route.fallback?;
        let fallback = engine.config.fallbacks.get(used.at).filter(|f| fallback::answers(f, cause.reason))?;
        if let Some(counter) = counter {
            self.decide(host, &Use { at: used.at, mode: used.mode, refusals: counter }, cause.reason, &fallback.name);
        }
        if used.mode == Mode::Shadow {
            return None;
        }
        let name = self.route.and_then(|at| engine.config.routes.get(at)).map_or("", |r| r.name.as_str());
        let reply = fallback::reply(fallback, &self.subject(name), cause)?;
        host.add(used.answers, 1);
        Some(reply)
    }

    fn subject<'a>(&'a self, route: &'a str) -> Subject<'a> {
        Subject { route, request_id: &self.request_id, grpc: self.grpc }
    }

    /// Counts a decision, and notes it for the access log: `<reason> <policy> <mode>`.
    fn decide<H: Host>(&mut self, host: &H, used: &Use, reason: Reason, policy: &str) {
        host.add(used.refusals, 1);
        if !self.decisions.is_empty() {
            self.decisions.push(',');
        }
        push_all(&mut self.decisions, &[reason.word(), " ", policy, " ", mode_word(used.mode)]);
    }

    fn store_decisions<S: Stream>(&self, stream: &S) {
        if !self.decisions.is_empty() {
            stream.set_state("haven.decision", self.decisions.as_bytes());
        }
    }

    fn add_quotas(&self, engine: &Engine, reply: &mut Reply) {
        reply.headers.extend(quota_headers::all(self.quotas_by_limit(engine)));
    }

    fn quotas_by_limit<'e>(&self, engine: &'e Engine) -> impl Iterator<Item = (&'e str, QuotaHeaders, KeyQuota)> {
        self.quotas.iter().filter_map(|(at, quota)| {
            let config = &engine.limits.get(*at)?.policy.config;
            Some((config.name.as_str(), config.headers, *quota))
        })
    }

    fn reply<S: Stream>(&mut self, stream: &S, reply: &Reply) -> Action {
        self.replied = true;
        stream.reply(reply);
        Action::Stop
    }
}

/// The client's address as configured, cut to its prefix. A header that is missing, short or malformed gives the connection's.
fn client<S: Stream>(engine: &Engine, headers: &HeaderMap, stream: &S) -> Option<Ip> {
    let config = &engine.config.client_ip;
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
    let ip = from_header.or_else(|| stream.property(Property::SourceAddress).as_deref().and_then(Ip::parse))?;
    Some(ip.masked(config.ipv4_prefix, config.ipv6_prefix))
}

/// Tells an upstream's answer from what the proxy made up. Of an answer that is not suspect nothing is asked beyond whether an upstream
/// was reached: a reply without one (a redirect, a direct response) is the proxy's own.
fn classify<S: Stream>(suspect: bool, reached: bool, stream: &S) -> Class {
    if !suspect {
        return if reached { Class::Answered } else { Class::Local };
    }
    let Some(details) = stream.property(Property::ResponseCodeDetails) else {
        // A host that does not say (nginx): an upstream that was reached is taken at its word.
        return if reached { Class::Answered } else { Class::Reset };
    };
    let starts = |prefix: &str| details.starts_with(prefix.as_bytes());
    let holds = |part: &str| details.windows(part.len()).any(|window| window == part.as_bytes());
    if starts("via_upstream") {
        Class::Answered
    } else if holds("overflow") {
        // Envoy's own connection or request limits: no upstream was asked.
        Class::Local
    } else if starts("response_timeout")
        || starts("upstream_per_try")
        || starts("upstream_response_timeout")
        || starts("request_overall_timeout")
    {
        Class::Timeout
    } else if starts("upstream_reset")
        || starts("no_healthy_upstream")
        || starts("cluster_not_found")
        || starts("upstream_")
    {
        Class::Reset
    } else {
        Class::Local
    }
}

fn fails(on: &FailureOn, class: Class, status: u16, grpc_status: Option<u64>) -> bool {
    match class {
        Class::Timeout => on.timeout,
        Class::Reset => on.reset,
        Class::Local => false,
        Class::Answered => {
            on.status.iter().any(|(from, to)| (*from..=*to).contains(&status))
                || grpc_status.is_some_and(|status| on.grpc_status.iter().any(|s| u64::from(*s) == status))
        }
    }
}

/// The wait that an upstream asks for: `grpc-retry-pushback-ms`, or `Retry-After` in seconds (a date is left alone: it would need a
/// clock that agrees with the upstream's).
fn retry_after(headers: &HeaderMap) -> Option<Nanos> {
    let number = |name: &str| headers.get(name).map(<[u8]>::trim_ascii).and_then(parse_number);
    number("grpc-retry-pushback-ms").map(Nanos::from_millis).or_else(|| number("retry-after").map(Nanos::from_secs))
}
