//! What an answer shows of the upstream, and which policies it is recorded at.

use super::answer::Answer;
use super::classify::{
    Class, Cut, classify, cut_by, fails, grpc_failure, is_grpc_failure, remove_claims, retry_after,
};
use super::deadline::Timing;
use super::reply::{FallbackAction, Phase};
use super::{Action, Context, Exchange};
use crate::base::headers::HeaderMap;
use crate::base::time::{Moment, Nanos};
use crate::document::FailureOn;
use crate::engine::upstream::{Attempts, Ended, Upstream};
use crate::host::{Host, Message, Property, Reply, Stream};
use crate::policy::Outcome;
use crate::policy::circuit_breaker::CallResult;
use crate::policy::upstream::peers::Try;
use crate::request::Reason;
use crate::request::reply::ReplyDetails;

/// Which endpoint answered, as far as it has to be known.
pub(super) struct Source<'a> {
    pub(super) class: Class,
    pub(super) upstream: Option<&'a Upstream>,
    /// Whether the endpoint matters.
    pub(super) matters: bool,
    /// The endpoint, if there was but one try.
    pub(super) first: Option<Attempts>,
    /// The number of tries, as the answer says it, if that is to be believed.
    pub(super) said: Option<u64>,
    pub(super) address: Option<Vec<u8>>,
    /// For how many good answers it counts.
    pub(super) calls: u32,
}

/// What is known of an answer when its headers are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settlement {
    pub(super) class: Class,
    pub(super) status: u16,
    /// The endpoints that the proxy tried; `None`: none of ours.
    pub(super) attempts: Option<Attempts>,
    /// How long the upstream took; `None`: it had not got the whole request.
    pub(super) duration: Option<Nanos>,
    pub(super) retry_after: Option<Nanos>,
}

impl Settlement {
    /// Of an answer that was good, as far as is known, of the endpoint that was asked for it.
    pub(super) const fn good(attempts: Option<Attempts>) -> Self {
        Self {
            class: Class::Answered,
            status: 200,
            attempts,
            duration: None,
            retry_after: None,
        }
    }

    /// The endpoints that the proxy tried.
    pub(super) const fn attempts(&self) -> Option<Attempts> {
        self.attempts
    }

    /// The trailers may ask for a pause too: gRPC's servers do it there.
    pub(super) fn with_trailers(self, trailers: &HeaderMap) -> Self {
        Self {
            retry_after: retry_after(trailers).or(self.retry_after),
            ..self
        }
    }

    /// How the call went, for a breaker that counts these as failures.
    fn result(&self, failure_on: &FailureOn, grpc_status: Option<u64>) -> CallResult {
        let outcome = if fails(failure_on, self.class, self.status, grpc_status) {
            Outcome::Failure
        } else {
            Outcome::Success
        };
        CallResult {
            outcome,
            // What is not known is not slow.
            duration: self.duration.unwrap_or(Nanos::ZERO),
            retry_after: self.retry_after,
            begun: false,
        }
    }

    /// How the last try ended, and those before it, where a try may take `per_try`; and how long
    /// they took, as far as that is known.
    fn tries(&self, per_try: Option<Nanos>, grpc_status: Option<u64>) -> [(Try, Option<Nanos>); 2] {
        let last = match self.class {
            Class::Timeout => Try::Cut,
            _ if !self.is_good(grpc_status) => Try::Failed,
            _ => Try::Good,
        };
        let cut = per_try.filter(|longest| self.duration.is_some_and(|it| it >= *longest));
        let before = self.attempts.map_or(0, |it| it.before);
        // Without the tries before it, if these were cut off; what fails, fails soon.
        let cut_off = cut.map_or(Nanos::ZERO, |longest| longest.times(before));
        let took = self.duration.map(|whole| whole.minus(cut_off));
        let earlier = if cut.is_some() { Try::Cut } else { Try::Failed };
        [(last, took), (earlier, cut)]
    }

    /// Whether the upstream did its work, if only to find the request wrong.
    fn is_good(&self, grpc_status: Option<u64>) -> bool {
        self.class == Class::Answered
            && self.status < 500
            && self.status != 429
            && !grpc_status.is_some_and(is_grpc_failure)
    }
}

impl Exchange {
    /// Judges the upstream by the response's headers; what is to be done with a failure that the
    /// fallback's reply takes the place of, if the route has one.
    pub(super) fn judge<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        end: bool,
    ) -> Option<Action> {
        let answer = Answer::read(context.stream, self.facts.grpc, end);
        let source = self.source(context, &answer);
        let class = source.class;
        if let Some(exceptions) = &context.engine.exceptions
            && class == Class::Answered
            && answer.is_good()
            && !(self.facts.grpc || answer.status == 101)
        {
            exceptions.note_good(context.host);
        }
        if class == Class::Local {
            self.timing = Timing::No;
            return None;
        }
        if let Class::Unsent(reason) = class {
            self.timing = Timing::No;
            let reply = self.answer_unsent(context, reason)?;
            return Some(self.replace(context, reply, &answer.headers, end, true));
        }
        let now = context.engine.now(context.host);
        self.grants.enter_late(context.host, now, context.engine.vm);
        self.hasty = self.is_own_haste(class, answer.status, answer.grpc_status, now);
        // Another cluster's answer shows nothing of this upstream.
        let strayed = self.has_strayed(context);
        if self.sent_on.is_none() && !strayed {
            self.observe(context, &answer, &source, now);
        }
        if class == Class::Answered {
            remove_claims(context.stream, &answer.headers);
            self.draft_response(context, &answer.headers, now);
        }
        let reply = self.replace_failure(context, class, answer.status)?;
        let own = class != Class::Answered;
        Some(self.replace(context, reply, &answer.headers, end, own))
    }

    /// Finds out whether an upstream answered, and which of its endpoints.
    pub(super) fn source<'a, H: Host, S: Stream>(
        &self,
        context: &Context<'a, H, S>,
        answer: &Answer,
    ) -> Source<'a> {
        let suspect = answer.is_suspect();
        // The endpoint matters only where something is known of each (a breaker, latency, load), or
        // retries were granted. That one answered, Envoy's own header shows for nothing.
        let used = context.route.upstream.as_ref();
        let upstream = used
            .filter(|_| self.sent_on.is_none())
            .map(|used| &*used.policy);
        let retries = self.grants.retries();
        let pick = self.grants.picked();
        if !context.engine.kind.tells_sources() {
            return Source::assumed(upstream, &pick);
        }
        let first = upstream
            .filter(|_| !suspect)
            .and_then(|upstream| upstream.first_try(&pick, &answer.headers, retries));
        // A trial, and some other answers, are asked for what others need not tell.
        let is_asked = first.is_none() && pick.listed() > 0;
        let sampled = upstream
            .filter(|_| !suspect)
            .and_then(|upstream| upstream.sample(&pick, &context.engine.rng));
        let wants_address = upstream.is_some_and(|upstream| {
            if upstream.is_left(&pick) {
                suspect || sampled.is_some()
            } else {
                retries > 0 || upstream.needs_endpoint() || suspect || is_asked
            }
        });
        let timed = answer.service_time.is_some();
        let reached = (first.is_some() || !wants_address) && timed;
        let address = if reached {
            None
        } else {
            context.stream.property(Property::UpstreamAddress)
        };
        // An answer that says how long the upstream took is the upstream's.
        let class = classify(
            !suspect && timed,
            suspect,
            reached || address.is_some(),
            answer.status,
            context.stream,
        );
        Source {
            class,
            upstream,
            matters: wants_address || (upstream.is_some() && self.ending.is_reported()),
            first: first.filter(|_| reached),
            said: upstream.and_then(|upstream| upstream.said_count(&answer.headers)),
            address,
            calls: sampled.unwrap_or(1),
        }
    }

    /// Records the answer at the policies: how long it took, and how the call went.
    fn observe<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        answer: &Answer,
        source: &Source<'_>,
        now: Moment,
    ) {
        let (route, class) = (context.route, source.class);
        let duration = self.upstream_time(answer, now);
        if let Some(duration) = duration {
            context.host.record(route.duration, duration.as_millis());
        }
        let good = class == Class::Answered && answer.is_good();
        let attempts = self.attempts(context, source, (!self.hasty).then_some(good));
        if let Some((upstream, attempts)) = source.upstream.zip(attempts) {
            if let Some(duration) = duration.filter(|_| !self.hasty) {
                let pick = self.grants.picked();
                upstream.learn(context.host, now, &pick, attempts, duration, !good);
            }
            if upstream.has_reports() && class == Class::Answered {
                let report = upstream.report(context.host, now, attempts.last, &answer.headers);
                if let Some(header) = report {
                    // How busy a service is, its clients need not know.
                    context.stream.remove_header(Message::Response, header);
                }
            }
        }
        match class {
            Class::Timeout => {
                self.give_up(now, duration);
                if self.hasty {
                    self.timing = Timing::No;
                } else {
                    self.time_cut_off(now, duration);
                }
            }
            _ => {
                if !good && answer.status != 429 {
                    self.hold_place(now, duration);
                }
                self.time_answer(now, good, duration);
            }
        }
        if good {
            self.grants
                .answered(context.host, now, duration, !answer.end);
        }
        let settlement = Settlement {
            class,
            status: answer.status,
            attempts,
            duration,
            retry_after: retry_after(&answer.headers),
        };
        if self.is_open(class, answer) {
            self.unsettled = Some(settlement);
            let last = attempts.map(|attempts| attempts.last);
            let is_well = |failure_on: &FailureOn| {
                settlement.result(failure_on, None).outcome == Outcome::Success
            };
            self.grants.begin_trials(context.host, now, last, is_well);
        } else {
            self.settle(context, settlement, answer.grpc_status, now);
        }
    }

    /// How long the upstream took to begin its answer, from the moment at which it had the whole
    /// request; `None`: it answered sooner.
    ///
    /// Envoy's router begins to count when it has the whole request: later than haven, where a
    /// filter between them holds it (an authorisation, a buffer). It tells whole milliseconds,
    /// rounded down.
    fn upstream_time(&self, answer: &Answer, now: Moment) -> Option<Nanos> {
        let told = answer.service_time.flatten();
        let told = told.map(|millis| Nanos::from_millis(millis.saturating_add(1)));
        Some(self.elapsed(now)?.min(told.unwrap_or(Nanos(u64::MAX))))
    }

    /// Whether the end of an answer decides how the call went.
    fn is_open(&self, class: Class, answer: &Answer) -> bool {
        let status = answer.status;
        // A 101 is whole: what follows is no response any more.
        let open = class == Class::Answered && status < 500 && status != 101 && !answer.end;
        let status_follows = self.facts.grpc && class == Class::Answered && status == 200;
        answer.grpc_status.is_none() && (open || status_follows)
    }

    /// The fallback's reply in place of a failure, if it has one.
    fn replace_failure<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        class: Class,
        status: u16,
    ) -> Option<Reply> {
        let reason = match class {
            Class::Answered if status < 500 => return None,
            Class::Answered | Class::Reset => Reason::UpstreamError,
            Class::Timeout => Reason::Timeout,
            Class::Unsent(_) | Class::Local => return None,
        };
        let (route, stream) = (context.route, context.stream);
        if self.facts.grpc && class == Class::Timeout && route.enforces_deadline() {
            // Envoy makes each of its 504s UNAVAILABLE, upon which clients try again.
            stream.set_header(Message::Response, "grpc-status", b"4");
        }
        let used = route.fallback.as_ref()?;
        let details = ReplyDetails {
            reason,
            policy: &used.policy.config.name,
            retry_after: None,
            received_status: (class == Class::Answered).then_some(status),
        };
        let counter = if reason == Reason::Timeout {
            used.timeouts
        } else {
            used.errors
        };
        let action = self.fall_back(context, details, Phase::Response(Some(counter)));
        self.store_decisions(stream);
        let Some(FallbackAction::Reply(mut reply)) = action else {
            return None;
        };
        self.add_quotas(&mut reply);
        Some(reply)
    }

    /// Judges an answer that was cut: by its upstream, which counts as a reset, or by its client or
    /// a timeout, which count as nothing: the answer had begun, and who reads it slowly runs into
    /// the same timeout as who waits for an upstream that hangs in its middle.
    pub(super) fn settle_cut<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        settlement: Settlement,
    ) {
        let now = context.host.monotonic();
        let class = match cut_by(context.stream) {
            Cut::Upstream => {
                self.timing = Timing::No;
                Class::Reset
            }
            Cut::Time if self.is_own_haste(Class::Timeout, settlement.status, None, now) => {
                self.timing = Timing::No;
                return;
            }
            Cut::Client => {
                self.timing = Timing::No;
                return;
            }
            Cut::Time => return self.time_cut_off(now, self.elapsed(now)),
            Cut::Unknown => settlement.class,
        };
        let settlement = Settlement {
            class,
            ..settlement
        };
        self.settle(context, settlement, None, now);
    }

    /// The body has come whole, and no trailers follow: records how the call went.
    pub(super) fn settle_whole<H: Host, S: Stream>(&mut self, context: &Context<'_, H, S>) {
        if let Some(settlement) = self.unsettled.take() {
            let now = self.end_time(context, &settlement);
            self.settle(context, settlement, None, now);
        }
    }

    /// When a call ended.
    ///
    /// Of one that ended well a window whose buckets are no shorter than a tick need not know it
    /// exactly: the newest reading of this worker's clock does, made since the request came by it,
    /// by another, or by a tick. So most requests go without another call. By the clock go what may
    /// be a failure, shorter windows, trials, what may yet be made one, and a timing that is
    /// observed up to the end.
    pub(super) fn end_time<H: Host, S>(
        &self,
        context: &Context<'_, H, S>,
        settlement: &Settlement,
    ) -> Moment {
        let engine = context.engine;
        let well = settlement.class == Class::Answered
            && (200..300).contains(&settlement.status)
            && !self.facts.grpc;
        let unlisted = settlement.attempts.is_some() && self.grants.picked().listed() == 0;
        let exact = !well
            || unlisted
            || engine.dates_exactly
            || self.timing == Timing::Answered
            || self.grants.is_any_trial()
            || self.grants.are_pending();
        if exact {
            engine.now(context.host)
        } else {
            engine.newest.get()
        }
    }

    /// Records at the breaker and the endpoints how the call went.
    pub(super) fn settle<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        settlement: Settlement,
        grpc_status: Option<u64>,
        now: Moment,
    ) {
        let (host, rng) = (context.host, &context.engine.rng);
        if self.is_own_haste(settlement.class, settlement.status, grpc_status, now) {
            // Its permits are given back at its end, without a verdict.
            self.timing = Timing::No;
            return;
        }
        let of_status = || {
            let grpc = self.facts.grpc.then_some(settlement.status);
            grpc.and_then(grpc_failure)
        };
        let grpc_status = grpc_status.or_else(of_status);
        // The answer is at its end, or as good as: what it took is known with this reading of the
        // clock.
        if self.timing == Timing::Answered {
            self.time_end(now);
        }
        // What comes too late while a limit refuses is the overload's: to open a breaker for it
        // would take away capacity. Of an endpoint it may still be a fault of its own, which makes
        // the overload.
        let overloaded = settlement.class == Class::Timeout && self.grants.is_shedding(now);
        let of_route = |failure_on: &FailureOn| {
            if overloaded {
                return CallResult::IGNORED;
            }
            let mut result = settlement.result(failure_on, grpc_status);
            if let Some(used) = context.route.upstream.as_ref()
                && result.outcome == Outcome::Failure
            {
                let at = settlement.attempts.map(|attempts| attempts.last);
                result.retry_after = used.policy.common_pause(now, at, result.retry_after);
            }
            result
        };
        self.grants.end_breaker(host, now, of_route, rng);
        self.grants.mark_recorded();
        let Some(used) = &context.route.upstream else {
            return;
        };
        let pick = self.grants.picked();
        let tries = settlement.tries(context.route.config.timeout.per_try, grpc_status);
        let call = used.policy.failure_on();
        let call = call.map(|failure_on| settlement.result(failure_on, grpc_status));
        let mut attempts = settlement.attempts;
        if !matches!(tries, [(Try::Good, _), _])
            || call.is_some_and(|call| call.outcome == Outcome::Failure)
        {
            used.policy.watch();
            if attempts.is_none() && used.policy.is_left(&pick) {
                let address = context.stream.property(Property::UpstreamAddress);
                attempts = address.and_then(|address| used.policy.named(&address));
            }
            // Every failure counts for itself.
            attempts = attempts.map(|it| Attempts { calls: 1, ..it });
        }
        if let Some(attempts) = attempts {
            if attempts.before > 0 && matches!(tries, [_, (Try::Cut, _)]) {
                // The endpoint that was tried first may still be at it.
                self.give_up(now, settlement.duration);
            }
            used.policy.compare(now, &pick, attempts, tries);
        }
        if let Some(call) = call {
            let ended = Ended {
                call,
                overloaded,
                began: self.start,
            };
            used.policy.record(host, now, &pick, attempts, ended, rng);
        }
    }
}
