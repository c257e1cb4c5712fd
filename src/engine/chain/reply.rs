//! Answering in the upstream's place.

use super::{Action, Exchange};
use crate::base::text::push_all;
use crate::base::time::Nanos;
use crate::config::{FallbackStep, Mode, QuotaHeaders};
use crate::engine::metrics::mode_word;
use crate::engine::route::{Binding, Route};
use crate::engine::{CLUSTER_HEADER, Engine};
use crate::host::{Host, Message, MetricId, Reply, Stream};
use crate::policy::fallback;
use crate::policy::rate_limit::KeyQuota;
use crate::policy::rate_limit::quota_headers;
use crate::request::reply::{ReplyDetails, RequestInfo};
use crate::request::{Reason, reply};

/// A refusal on its way to become a reply.
pub(super) struct Refusal<'a> {
    pub(super) reason: Reason,
    pub(super) policy: &'a str,
    pub(super) retry_after: Option<Nanos>,
}

/// What a fallback does.
pub(super) enum FallbackAction<'a> {
    /// Answers.
    Reply(Reply),
    /// Sends the request to another cluster; if that fails, the step `next` is tried.
    SendOn { cluster: &'a str, next: usize },
}

impl Exchange {
    /// Answers in the upstream's place, or sends the request elsewhere.
    pub(super) fn refuse<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        route: &Route,
        name: &str,
        refusal: &Refusal<'_>,
        host: &H,
        stream: &S,
    ) -> Action {
        self.release(engine, host);
        let cause = ReplyDetails {
            reason: refusal.reason,
            policy: refusal.policy,
            retry_after: refusal.retry_after,
            received_status: None,
        };
        let mut reply = match self.fallback(engine, route, cause, None, host) {
            Some(FallbackAction::Reply(reply)) => reply,
            Some(FallbackAction::SendOn { cluster, next }) => {
                stream.set_header(Message::Request, CLUSTER_HEADER, cluster.as_bytes());
                self.sent_on = Some(next);
                // A deadline that is over bounds nothing: zero would mean no timeout at all.
                if let (Some((_, config)), true) =
                    (self.route_of(engine), refusal.reason != Reason::Deadline)
                {
                    self.set_timeouts(route, config, host, stream);
                }
                self.store_decisions(stream);
                return Action::Continue;
            }
            None => reply::refusal(&self.subject(name), cause),
        };
        self.add_quotas(engine, &mut reply);
        self.store_decisions(stream);
        self.reply(stream, &reply)
    }

    /// The fallback's answer for this cause, if it has one. `counter` counts it as a decision of
    /// the fallback's own: then the response has failed, and there is nothing left to send on.
    pub(super) fn fallback<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        cause: ReplyDetails<'_>,
        counter: Option<MetricId>,
        host: &H,
    ) -> Option<FallbackAction<'e>> {
        let used = route.fallback?;
        let fallback = engine
            .config
            .fallbacks
            .get(used.at)
            .filter(|f| fallback::answers(f, cause.reason))?;
        if let Some(counter) = counter {
            self.decide(
                host,
                &Binding {
                    at: used.at,
                    mode: used.mode,
                    refusals: counter,
                },
                cause.reason,
                &fallback.name,
            );
        }
        if used.mode == Mode::Shadow {
            return None;
        }
        for (at, step) in fallback
            .steps
            .iter()
            .enumerate()
            .skip(self.sent_on.unwrap_or(0))
        {
            let (answer, counted) = match step {
                FallbackStep::Stale(_) => {
                    let kept = engine.stale.get(used.at).and_then(Option::as_ref);
                    let Some((kept, asked)) = kept.zip(self.asked.as_ref()) else {
                        continue;
                    };
                    let Some(found) = kept.policy.find(host, asked, host.monotonic()) else {
                        continue;
                    };
                    (
                        FallbackAction::Reply(fallback::stale(found, cause)),
                        used.stale,
                    )
                }
                FallbackStep::Cluster(cluster) if counter.is_none() => (
                    FallbackAction::SendOn {
                        cluster,
                        next: at.saturating_add(1),
                    },
                    used.cluster,
                ),
                FallbackStep::Cluster(_) => continue,
                FallbackStep::Respond(respond) => {
                    let name = self
                        .route
                        .and_then(|at| engine.config.routes.get(at))
                        .map_or("", |r| r.name.as_str());
                    (
                        FallbackAction::Reply(fallback::respond(
                            respond,
                            &self.subject(name),
                            cause,
                        )),
                        used.respond,
                    )
                }
            };
            host.add(counted, 1);
            return Some(answer);
        }
        None
    }

    pub(super) fn subject<'a>(&'a self, route: &'a str) -> RequestInfo<'a> {
        RequestInfo {
            route,
            request_id: &self.request_id,
            grpc: self.grpc,
        }
    }

    /// Counts a decision, and notes it for the access log: `<reason> <policy> <mode>`.
    pub(super) fn decide<H: Host>(
        &mut self,
        host: &H,
        used: &Binding,
        reason: Reason,
        policy: &str,
    ) {
        host.add(used.refusals, 1);
        if !self.decisions.is_empty() {
            self.decisions.push(',');
        }
        push_all(
            &mut self.decisions,
            &[reason.word(), " ", policy, " ", mode_word(used.mode)],
        );
    }

    pub(super) fn store_decisions<S: Stream>(&self, stream: &S) {
        if !self.decisions.is_empty() {
            stream.set_state("haven.decision", self.decisions.as_bytes());
        }
    }

    pub(super) fn add_quotas(&self, engine: &Engine, reply: &mut Reply) {
        reply
            .headers
            .extend(quota_headers::all(self.quotas_by_limit(engine)));
    }

    pub(super) fn quotas_by_limit<'e>(
        &self,
        engine: &'e Engine,
    ) -> impl Iterator<Item = (&'e str, QuotaHeaders, KeyQuota)> {
        self.quotas.iter().filter_map(|(at, quota)| {
            let config = &engine.limits.get(*at)?.policy.config;
            Some((config.name.as_str(), config.headers, *quota))
        })
    }

    pub(super) fn reply<S: Stream>(&mut self, stream: &S, reply: &Reply) -> Action {
        self.replied = true;
        stream.reply(reply);
        Action::Stop
    }
}
