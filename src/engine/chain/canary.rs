//! The part of the chain that a canary has: which variant a request takes, and how the proxy and
//! the hops behind it get to know.
//!
//! A request that the canary has goes on as one of a route of its own
//! ([`Canary::route`](crate::engine::route::Canary::route)). What the canary itself refuses, by its
//! breaker, its endpoints or its upstream's concurrency limit, goes back to the route's own
//! upstream: a new version that fails costs its clients no more than the failures that open its
//! breaker.

use super::{CLUSTER_HEADER, Context, Exchange};
use crate::document::Mode;
use crate::engine::route::Route;
use crate::host::{Host, Message, Stream};
use crate::policy::canary;
use crate::request::Request;
use std::rc::Rc;

impl Exchange {
    /// The route that the request takes: its own, or its canary's.
    pub(super) fn choose_variant<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
        request: &Request<'_>,
    ) -> &'a Route {
        let route = context.route;
        let Some(used) = &route.canary else {
            return route;
        };
        let random = || context.engine.rng.bits();
        let has = canary::selects(&used.config, &used.upstream, request, random);
        if used.mode != Mode::Enforce {
            let [stable, canary] = used.would;
            context.host.add(if has { canary } else { stable }, 1);
            return route;
        }
        if !has {
            return route;
        }
        self.stable = self.route.replace(Rc::clone(&used.route));
        &used.route
    }

    /// Counts a request that takes this variant, and marks it for the proxy and for the hops
    /// behind. One header each, and only where a canary is.
    pub(super) fn mark_variant<H: Host, S: Stream>(&self, context: &Context<'_, H, S>) {
        let (route, stream) = (context.route, context.stream);
        let is_canary = self.stable.is_some();
        let stable = self.stable.as_deref().unwrap_or(route);
        let Some(used) = &stable.canary else { return };
        context.host.add(route.sent, 1);
        if let (true, Some(cluster)) = (is_canary, &route.cluster) {
            stream.set_header(Message::Request, CLUSTER_HEADER, cluster.as_bytes());
        }
        let acts = is_canary || used.mode == Mode::Enforce;
        if let (true, Some(color)) = (acts, &used.config.color) {
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
