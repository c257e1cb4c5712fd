//! The part of the chain that a canary has: which side a request is on, and what those behind are
//! told of it.
//!
//! A request that the canary has goes on as one of a route of its own ([`Route::stable`]). What the
//! canary itself refuses, by its breaker, its endpoints or its upstream's concurrency limit, goes
//! back to the route's own upstream: a new version that fails costs its clients no more than the
//! failures that open its breaker.

use super::Exchange;
use crate::config::{self, Mode};
use crate::engine::Engine;
use crate::engine::route::Route;
use crate::host::{Host, Message, Stream};
use crate::policy::canary;
use crate::request::Request;

impl Exchange {
    /// The route that the request is to take: its own, or its canary's.
    pub(super) fn choose_variant<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        route: &'e Route,
        config: &config::Route,
        request: &Request<'_>,
        host: &H,
    ) -> &'e Route {
        let (Some(used), Some(canary)) = (route.canary, &config.canary) else {
            return route;
        };
        let Some(upstream) = engine.config.upstreams.get(canary.upstream) else {
            return route;
        };
        let has = canary::selects(canary, &upstream.name, request, || engine.rng.bits());
        if used.mode != Mode::Enforce {
            let [stable, canary] = used.would;
            host.add(if has { canary } else { stable }, 1);
            return route;
        }
        match engine.routes.get(used.at).filter(|_| has) {
            Some(its) => {
                self.route = Some(used.at);
                its
            }
            None => route,
        }
    }

    /// Where a request goes that `route`, if it is a canary's, does not take: the number of the
    /// route, and itself.
    pub(super) fn stable_of<'e>(engine: &'e Engine, route: &Route) -> Option<(usize, &'e Route)> {
        let at = route.stable?;
        Some((at, engine.routes.get(at)?))
    }

    /// The request goes to this side: counts it, and tells the proxy and those behind. One header
    /// each, and only where a canary is.
    pub(super) fn mark_variant<H: Host, S: Stream>(
        &self,
        route: &Route,
        config: &config::Route,
        host: &H,
        stream: &S,
    ) {
        let Some(canary) = &config.canary else { return };
        let is_canary = route.stable.is_some();
        host.add(route.sent, 1);
        if let (true, Some(cluster)) = (is_canary, &route.cluster) {
            stream.set_header(Message::Request, super::CLUSTER_HEADER, cluster.as_bytes());
        }
        let acts = is_canary || route.canary.is_some_and(|used| used.mode == Mode::Enforce);
        if let (true, Some(color)) = (acts, &canary.color) {
            let value = if is_canary {
                &color.canary
            } else {
                &color.stable
            };
            // Added, not set: a client's own was removed.
            stream.add_header(Message::Request, &color.header, value.as_bytes());
        }
    }
}
