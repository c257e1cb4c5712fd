//! The retries that the proxy's router may make.

use super::{Context, Exchange};
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::engine::route::Route;
use crate::host::{Host, Message, Stream};
use crate::policy::concurrency::Room;
use crate::policy::retry::{self, GrantRequest};

/// What half of the requests take: less leaves no room for another try.
const HALF: u32 = 5_000;

/// Answers are fast while half of them take no more than this part of the time that is left.
const FAST: u64 = 4;

impl Exchange {
    /// Whether the request may be tried again for what it is.
    pub(super) fn is_retriable(&self, route: &Route, method: &[u8]) -> bool {
        let retry = route.config.retry.as_ref();
        retry.is_some_and(|retry| retry::is_eligible(retry, method, self.facts.grpc))
    }

    /// Sets the headers by which the proxy's router learns how often it may try. `left`: the time
    /// that the request has.
    pub(super) fn set_retries<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        left: Option<Nanos>,
    ) {
        let (route, host) = (context.route, context.host);
        let Some((used, config)) = route.retry.as_ref().zip(route.config.retry.as_ref()) else {
            return;
        };
        let now = self.start;
        let half = route
            .seen
            .as_ref()
            .and_then(|seen| seen.with(|seen| seen.begun.quantile(now, HALF)));
        let in_time = |left: Nanos, times| half.is_none_or(|half| half.least.times(times) <= left);
        let room = self.grants.room(now);
        let may = self.facts.retriable
            && !self.grants.is_trial()
            && room != Some(Room::Full)
            && left.is_none_or(|left| in_time(left, 1));
        let ask = GrantRequest {
            wanted: if may { config.attempts } else { 0 },
            spare: room == Some(Room::Spare)
                && half.is_some()
                && left.is_none_or(|left| in_time(left, FAST)),
            client: self.facts.client,
        };
        let totals = used.totals(route, host);
        let granted = used.budget.with(|budget| budget.grant(now, totals, ask));
        self.grants.retry(&used.budget, ask.client, granted);
        host.add(used.requests, 1);
        let set = |name: &str, value: &str| {
            context
                .stream
                .set_header(Message::Request, name, value.as_bytes());
        };
        // Also when it is 0: then the proxy's own policy for the route has no say either.
        set("x-envoy-max-retries", &number(granted.into()));
        if granted > 0 && !config.on.is_empty() {
            set("x-envoy-retry-on", &config.on);
        }
        if granted > 0 && self.facts.grpc && !config.grpc_on.is_empty() {
            set("x-envoy-retry-grpc-on", &config.grpc_on);
        }
    }
}
