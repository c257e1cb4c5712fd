//! What an answer says of the upstream, and who is told.

use super::Exchange;
use super::classify::{
    Class, Cut, GRPC_FAILURES, classify, cut_by, fails, grpc_failure, retry_after,
};
use super::deadline::Timing;
use super::reply::FallbackAction;
use crate::base::headers::{HeaderMap, parse_number};
use crate::base::time::Nanos;
use crate::config::{FailureOn, Mode};
use crate::engine::Engine;
use crate::engine::route::Route;
use crate::engine::upstream::Attempts;
use crate::host::{Host, Message, Property, Reply, Stream};
use crate::policy::Outcome;
use crate::policy::circuit_breaker::CallResult;
use crate::policy::upstream::orca;
use crate::request::Reason;
use crate::request::reply::ReplyDetails;

/// What is known of an answer when its headers are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settlement {
    class: Class,
    status: u16,
    /// Who was asked; `None`: none of ours.
    tries: Option<Attempts>,
    duration: Nanos,
    retry_after: Option<Nanos>,
}

impl Settlement {
    /// The trailers may ask for a pause too: gRPC's servers do it there.
    pub(super) fn with_trailers(self, trailers: &HeaderMap) -> Self {
        Self {
            retry_after: retry_after(trailers).or(self.retry_after),
            ..self
        }
    }
}

impl Exchange {
    /// Judges the upstream by the response's headers; the reply that takes the place of a failure,
    /// if the route has one.
    pub(super) fn judge<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        end: bool,
        host: &H,
        stream: &S,
    ) -> Option<Reply> {
        let headers = stream.headers(Message::Response);
        let status = headers
            .get(":status")
            .and_then(parse_number)
            .and_then(|s| u16::try_from(s).ok())
            .unwrap_or(0);
        let grpc_status = if self.grpc {
            headers.get("grpc-status").and_then(parse_number)
        } else {
            None
        };
        // On gRPC the proxy's own errors have status 200 too.
        let suspect = status >= 500 || grpc_status.is_some_and(|s| s != 0);
        // Who answered matters only where something is known of each endpoint (a breaker, latency,
        // load), or retries were granted. That somebody did, Envoy's own header tells for nothing.
        let elsewhere = self.sent_on.is_some();
        let upstream = route
            .upstream
            .filter(|_| !elsewhere)
            .and_then(|used| engine.upstreams.get(used.at));
        let matters =
            upstream.is_some_and(|upstream| self.granted > 0 || upstream.needs_endpoint());
        let pick = self.pick.unwrap_or_default();
        let first = upstream
            .filter(|_| !suspect)
            .and_then(|upstream| upstream.first_try(&pick, &headers));
        let reached =
            (first.is_some() || !matters) && headers.get("x-envoy-upstream-service-time").is_some();
        let address = if reached {
            None
        } else {
            stream.property(Property::UpstreamAddress)
        };
        // The proxy's 408 blames a client that was slow to send, whoever had been reached by then.
        let class = classify(
            suspect || status == 408,
            reached || address.is_some(),
            stream,
        );
        if class == Class::Local {
            self.time_answer(false);
            return None;
        }
        let now = host.monotonic();
        let hit_client_deadline = class == Class::Timeout && self.hit_client_deadline(route, now);
        // Another cluster's answer says nothing of this upstream.
        if !elsewhere {
            let duration = now.since(self.start);
            host.record(route.duration, duration.as_millis());
            let tries = match first.filter(|_| reached) {
                Some(first) => {
                    self.settle_retries(route, 0);
                    Some(first)
                }
                None if matters || self.granted > 0 || address.is_some() => {
                    self.tries(engine, route, address.as_deref(), host, stream)
                }
                None => None,
            };
            if let Some((upstream, tries)) = upstream.zip(tries) {
                let good = class == Class::Answered && !suspect && status != 429;
                upstream.learn(host, now, &pick, tries, duration, !good);
                if upstream.has_reports()
                    && class == Class::Answered
                    && let Some(report) = headers.get(orca::HEADER)
                {
                    upstream.report(host, now, tries.last, report);
                    // How busy a service is, its clients need not know.
                    stream.remove_header(Message::Response, orca::HEADER);
                }
            }
            match class {
                Class::Timeout => self.time_cut_off(engine, route, now, duration),
                // A refusal is soon said: it tells nothing of how long an answer takes.
                _ => self.time_answer(!suspect && status != 429),
            }
            let settlement = Settlement {
                class,
                status,
                tries,
                duration,
                retry_after: retry_after(&headers),
            };
            // A 101 is whole: what follows is no response any more.
            let open = class == Class::Answered && status < 500 && status != 101 && !end;
            let status_follows = self.grpc && class == Class::Answered && status == 200;
            if grpc_status.is_none() && (open || status_follows) {
                self.unsettled = Some(settlement);
            } else if !hit_client_deadline {
                // Otherwise its permits are given back at its end, without a verdict.
                self.settle(engine, route, settlement, grpc_status, now, host);
            }
        }
        if class == Class::Answered {
            self.draft(engine, route, &headers, now);
        }
        let reason = match class {
            Class::Answered if status < 500 => return None,
            Class::Answered | Class::Reset => Reason::UpstreamError,
            Class::Timeout => Reason::Timeout,
            Class::Local => return None,
        };
        if self.grpc
            && class == Class::Timeout
            && route
                .deadline
                .is_some_and(|used| used.mode == Mode::Enforce)
        {
            // Envoy says UNAVAILABLE to all of its 504s, which tells a client to try again.
            stream.set_header(Message::Response, "grpc-status", b"4");
        }
        let used = route.fallback?;
        let policy = engine
            .config
            .fallbacks
            .get(used.at)
            .map_or("", |f| f.name.as_str());
        let received_status = (class == Class::Answered).then_some(status);
        let cause = ReplyDetails {
            reason,
            policy,
            retry_after: None,
            received_status,
        };
        let counter = if reason == Reason::Timeout {
            used.timeouts
        } else {
            used.errors
        };
        let reply = self.fallback(engine, route, cause, Some(counter), host);
        self.store_decisions(stream);
        let Some(FallbackAction::Reply(mut reply)) = reply else {
            return None;
        };
        self.add_quotas(engine, &mut reply);
        Some(reply)
    }

    /// Who was asked; counts the tries beyond the first.
    fn tries<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        address: Option<&[u8]>,
        host: &H,
        stream: &S,
    ) -> Option<Attempts> {
        let upstream = route
            .upstream
            .and_then(|used| engine.upstreams.get(used.at));
        let attempts = || {
            Some(u64::from_le_bytes(
                stream.property(Property::AttemptCount)?.try_into().ok()?,
            ))
        };
        let pick = self.pick.unwrap_or_default();
        let tries = upstream.and_then(|upstream| upstream.tries(&pick, address, attempts));
        // The place on the list tells how many tries there were, unless they may have run beyond
        // its end, and back to its beginning.
        let beyond =
            usize::try_from(self.granted).is_ok_and(|granted| granted >= pick.listed().max(1));
        let retries = match tries {
            Some(tries) if !beyond => tries.before,
            _ if self.granted > 0 => attempts().unwrap_or(0).saturating_sub(1),
            tries => tries.map_or(0, |tries| tries.before),
        };
        if retries > 0 {
            host.add(route.retries, i64::try_from(retries).unwrap_or(0));
        }
        self.settle_retries(route, retries);
        tries
    }

    /// Judges an answer that was cut: by its upstream, which counts as a reset, or by its client,
    /// which counts as nothing.
    pub(super) fn settle_cut<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        settlement: Settlement,
        host: &H,
        stream: &S,
    ) {
        let now = host.monotonic();
        let class = match cut_by(stream) {
            Cut::Upstream => {
                self.timing = Timing::No;
                Class::Reset
            }
            Cut::Time => {
                let hit_client_deadline = self.hit_client_deadline(route, now);
                self.time_cut_off(engine, route, now, now.since(self.start));
                if hit_client_deadline {
                    return;
                }
                Class::Timeout
            }
            Cut::Client => {
                self.timing = if self.timing == Timing::Answered {
                    Timing::Sent
                } else {
                    self.timing
                };
                return;
            }
            Cut::Nobody => settlement.class,
        };
        self.settle(
            engine,
            route,
            Settlement {
                class,
                ..settlement
            },
            None,
            now,
            host,
        );
    }

    /// Tells breaker and endpoints how the call went.
    pub(super) fn settle<H: Host>(
        &mut self,
        engine: &Engine,
        route: &Route,
        settlement: Settlement,
        grpc_status: Option<u64>,
        now: Nanos,
        host: &H,
    ) {
        let Settlement {
            class,
            status,
            tries,
            duration,
            retry_after,
        } = settlement;
        let grpc_status = grpc_status.or_else(|| {
            if self.grpc {
                grpc_failure(status)
            } else {
                None
            }
        });
        if class == Class::Answered
            && status < 500
            && status != 429
            && grpc_status.is_none_or(|s| !GRPC_FAILURES.contains(&s))
        {
            self.note_answer(duration);
        }
        // The answer is at its end, or as good as: what it took is told with this reading of the
        // clock.
        if self.timing == Timing::Answered {
            self.timing = Timing::No;
            self.time_end(engine, route, Timing::Answered, now);
        }
        let call = |failure_on: &FailureOn| {
            let outcome = if fails(failure_on, class, status, grpc_status) {
                Outcome::Failure
            } else {
                Outcome::Success
            };
            CallResult {
                outcome,
                duration,
                retry_after,
            }
        };
        if let Some((breaker, epoch)) = route
            .breaker
            .and_then(|used| engine.breakers.get(used.at))
            .zip(self.breaker.take())
        {
            let call = call(&breaker.config().failure_on);
            breaker.end(host, now, epoch, call, &engine.rng);
        }
        self.recorded = true;
        let Some((used, upstream)) = route
            .upstream
            .and_then(|used| Some((used, engine.upstreams.get(used.at)?)))
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
            upstream.record(
                host,
                now,
                &self.pick.unwrap_or_default(),
                tries,
                call,
                &engine.rng,
            );
        }
    }
}
