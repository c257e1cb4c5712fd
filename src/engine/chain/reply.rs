//! Answering in the upstream's place.

use super::{Action, CLUSTER_HEADER, Context, Exchange};
use crate::base::headers::parse_number;
use crate::base::text::push_all;
use crate::base::time::Nanos;
use crate::document::{FallbackStep, Mode, QuotaHeaders};
use crate::engine::metrics::MetricTable;
use crate::engine::route::{Effect, FallbackBinding};
use crate::host::{Host, Message, MetricId, Reply, Stream};
use crate::policy::fallback;
use crate::policy::rate_limit::{KeyQuota, quota_headers};
use crate::request::reply::{Protocol, ReplyDetails, RequestInfo};
use crate::request::{Reason, reply};

/// A refusal on its way to become a reply.
#[derive(Debug)]
pub(super) struct Refusal<'a> {
    reason: Reason,
    policy: &'a str,
    retry_after: Option<Nanos>,
}

impl<'a> Refusal<'a> {
    pub(super) const fn new(reason: Reason, policy: &'a str, retry_after: Option<Nanos>) -> Self {
        Self {
            reason,
            policy,
            retry_after,
        }
    }
}

/// What a fallback does.
pub(super) enum FallbackAction<'a> {
    /// Answers.
    Reply(Reply),
    /// Sends the request to another cluster; if that fails, the step `next` is tried.
    SendOn { cluster: &'a str, next: usize },
}

/// When a fallback is asked.
#[derive(Clone, Copy)]
pub(super) enum Phase {
    /// Before the request went to its upstream.
    Request,
    /// When it was answered, or not: there is nothing left to send on. The counter, if there is
    /// one, counts the answer as a decision of the fallback's own.
    Response(Option<MetricId>),
}

/// The policy's name in decisions that Envoy made by itself.
const ENVOY: &str = "envoy";

impl Exchange {
    /// Answers in the upstream's place, or sends the request elsewhere.
    pub(super) fn refuse<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        refusal: &Refusal<'_>,
    ) -> Action {
        self.release(context.host);
        let details = ReplyDetails {
            reason: refusal.reason,
            policy: refusal.policy,
            retry_after: refusal.retry_after,
            received_status: None,
        };
        let mut reply = match self.fall_back(context, details, Phase::Request) {
            Some(FallbackAction::Reply(reply)) => reply,
            Some(FallbackAction::SendOn { cluster, next }) => {
                let stream = context.stream;
                stream.set_header(Message::Request, CLUSTER_HEADER, cluster.as_bytes());
                self.sent_on = Some(next);
                self.set_timeouts(context);
                self.store_decisions(stream);
                return Action::Continue;
            }
            None => reply::refusal(&self.info(context), details, |cause| {
                context.engine.ready.document(cause)
            }),
        };
        self.add_quotas(&mut reply);
        reply.details = self.details();
        // A note is a call of its own: not where nothing else is asked of a request.
        if !context.engine.blind {
            self.store_decisions(context.stream);
        }
        self.reply(context.stream, &reply)
    }

    /// The proxy has sent the request to nobody, by limits of its own: that is answered as haven's
    /// own refusal for this reason is, and nobody is blamed for it.
    pub(super) fn answer_unsent<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        reason: Reason,
    ) -> Option<Reply> {
        let (route, stream) = (context.route, context.stream);
        // Made when it is needed, which is seldom: a route has no metric for it otherwise.
        let refusals = || {
            let metrics = MetricTable(context.host);
            metrics.decisions(&route.config.name, ENVOY, reason, Mode::Enforce)
        };
        if reason != Reason::UpstreamError {
            let effect = Effect {
                mode: Mode::Enforce,
                refusals: refusals(),
            };
            self.decide(context.host, effect, reason, ENVOY);
        }
        let details = ReplyDetails {
            reason,
            policy: ENVOY,
            retry_after: (reason == Reason::Overload).then_some(Nanos::from_secs(1)),
            received_status: None,
        };
        let counter = route.fallback.as_ref().map(|used| used.errors);
        let counter = counter.filter(|_| reason == Reason::UpstreamError);
        let action = self.fall_back(context, details, Phase::Response(counter));
        self.store_decisions(stream);
        if let Some(FallbackAction::Reply(mut reply)) = action {
            self.add_quotas(&mut reply);
            return Some(reply);
        }
        if route.acts && reason != Reason::UpstreamError {
            stream.set_header(Message::Response, "proxy-status", &details.proxy_status());
            if details.retry_after.is_some() {
                stream.set_header(Message::Response, "retry-after", b"1");
            }
        }
        None
    }

    /// What the fallback does for this cause, if it does anything.
    pub(super) fn fall_back<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
        details: ReplyDetails<'_>,
        phase: Phase,
    ) -> Option<FallbackAction<'a>> {
        let used = context.route.fallback.as_ref()?;
        let config = &used.policy.config;
        if !fallback::answers(config, details.reason) {
            return None;
        }
        if let Phase::Response(Some(refusals)) = phase {
            let effect = Effect {
                mode: used.mode,
                refusals,
            };
            self.decide(context.host, effect, details.reason, &config.name);
        }
        if used.mode == Mode::Shadow {
            return None;
        }
        // What a client brings about by its own deadline opens no way that its request would not
        // have had: a kept answer that the service would refuse it, or another cluster.
        let hasty = self.hasty || details.reason == Reason::Deadline;
        let steps = config.steps.iter().enumerate();
        for (at, step) in steps.skip(self.sent_on.unwrap_or(0)) {
            let action = match step {
                FallbackStep::Cluster(_)
                    if hasty || self.passed_on || matches!(phase, Phase::Response(_)) =>
                {
                    None
                }
                FallbackStep::Stale(_) if hasty => None,
                FallbackStep::Cluster(cluster) => Some(FallbackAction::SendOn {
                    cluster,
                    next: at.saturating_add(1),
                }),
                FallbackStep::Stale(_) => self.find_stale(context, used, details),
                FallbackStep::Respond(respond) => {
                    let info = self.info(context);
                    let reply = fallback::respond(respond, &info, details);
                    Some(FallbackAction::Reply(reply))
                }
            };
            if action.is_some() {
                context.host.add(used.counter(step), 1);
                return action;
            }
        }
        None
    }

    fn find_stale<'a, H: Host, S>(
        &self,
        context: &Context<'a, H, S>,
        used: &FallbackBinding,
        details: ReplyDetails<'_>,
    ) -> Option<FallbackAction<'a>> {
        let store = used.policy.stale.as_ref()?;
        let (host, asked) = (context.host, self.facts.asked.as_ref()?);
        let found = store.policy.find(host, asked, host.monotonic())?;
        Some(FallbackAction::Reply(fallback::stale(found, details)))
    }

    fn info<'a, H, S>(&'a self, context: &Context<'a, H, S>) -> RequestInfo<'a> {
        RequestInfo {
            route: &context.route.config.name,
            request_id: &self.facts.request_id,
            grpc: match (context.engine.blind, self.facts.grpc) {
                (true, _) => Protocol::Unknown,
                (false, true) => Protocol::Grpc,
                (false, false) => Protocol::Http,
            },
        }
    }

    /// Counts a decision, for the access log too: `<reason> <policy> <mode>`.
    pub(super) fn decide<H: Host>(
        &mut self,
        host: &H,
        effect: Effect,
        reason: Reason,
        policy: &str,
    ) {
        host.add(effect.refusals, 1);
        if !self.decisions.is_empty() {
            self.decisions.push(',');
        }
        push_all(
            &mut self.decisions,
            &[reason.word(), " ", policy, " ", effect.mode.word()],
        );
    }

    /// Notes for the access log what was decided.
    pub(super) fn store_decisions<S: Stream>(&self, stream: &S) {
        if !self.decisions.is_empty() {
            stream.set_state("haven.decision", self.decisions.as_bytes());
        }
    }

    pub(super) fn add_quotas(&self, reply: &mut Reply) {
        reply
            .headers
            .extend(quota_headers::all(self.named_quotas()));
    }

    /// Adds the quotas to an upstream's answer. `RateLimit` and its policy are lists, and go on that
    /// of a service with a limit of its own; of `X-RateLimit-*` the tighter one stands alone.
    pub(super) fn add_quotas_to_answer<S: Stream>(&self, stream: &S) {
        let headers = quota_headers::all(self.named_quotas());
        let is_ours = |name: &str| name.starts_with("x-ratelimit-");
        let ours = headers
            .iter()
            .find(|(name, _)| *name == quota_headers::REMAINING);
        // Looked for only where haven writes such headers itself.
        let its = ours.and_then(|_| {
            let answer = stream.headers(Message::Response);
            answer.get(quota_headers::REMAINING).map(parse_number)
        });
        let tighter = match (its, ours.and_then(|(_, left)| parse_number(left))) {
            (Some(Some(its)), Some(ours)) => its < ours,
            _ => false,
        };
        for (name, value) in headers {
            if !is_ours(name) {
                stream.add_header(Message::Response, name, &value);
            } else if !tighter {
                stream.set_header(Message::Response, name, &value);
            }
        }
    }

    /// The quotas that the client is to know of, with the names of their limits.
    pub(super) fn named_quotas(&self) -> impl Iterator<Item = (&str, QuotaHeaders, KeyQuota)> {
        self.quotas
            .iter()
            .map(|(limit, quota)| (limit.name(), limit.policy.config.headers, *quota))
    }

    /// What was decided, in the form of Envoy's details, which have no spaces.
    fn details(&self) -> String {
        let mut details = Vec::new();
        if !self.decisions.is_empty() {
            details.reserve_exact(self.decisions.len().saturating_add(7));
            details.extend_from_slice(b"haven{");
            // As bytes: letter by letter costs three times as much.
            let joined = |byte| if byte == b' ' { b':' } else { byte };
            details.extend(self.decisions.bytes().map(joined));
            details.push(b'}');
        }
        String::from_utf8(details).unwrap_or_default()
    }

    pub(super) fn reply<S: Stream>(&mut self, stream: &S, reply: &Reply) -> Action {
        self.replied = true;
        stream.reply(reply);
        Action::Stop
    }
}
