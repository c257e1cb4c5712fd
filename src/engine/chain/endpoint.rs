//! The part of the chain that picks the endpoints.

use super::{Context, Exchange, Refusal};
use crate::base::hash::{KeyHasher, Seed};
use crate::document::{BalancePolicy, MissingKey, Mode};
use crate::engine::route::{Binding, Route};
use crate::engine::upstream::Upstream;
use crate::host::{Host, Message, Stream};
use crate::request::{Reason, Request, key};

impl Exchange {
    /// Hashes what the endpoint is to be chosen by, if that is so; a request that lacks a part is
    /// like one without a key.
    pub(super) fn hash_key<H, S>(&mut self, context: &Context<'_, H, S>, request: &Request<'_>) {
        self.facts.key = key_for(context.route, request);
        let stable = self.stable.as_ref();
        self.facts.stable_key = stable.and_then(|stable| key_for(stable, request));
    }

    pub(super) fn pick_endpoint<'a, H: Host, S: Stream>(
        &mut self,
        context: &Context<'a, H, S>,
    ) -> Option<Refusal<'a>> {
        let used = context.route.upstream.as_ref()?;
        let upstream = &used.policy;
        if upstream.is_unknown(context.host, self.start) {
            return None;
        }
        if let Some(refusal) = self.check_components(context, upstream) {
            return Some(refusal);
        }
        if used.effect.mode == Mode::Shadow {
            self.look_for_endpoint(context, used);
            return None;
        }
        let (host, rng) = (context.host, &context.engine.rng);
        if !upstream.steers(host, self.start) {
            return None;
        }
        upstream.announce(host, self.start, context.engine.vm);
        match upstream.pick(host, self.start, rng, self.facts.key, self.whole.is_some()) {
            Some(pick) => {
                // Added, not set, which costs a third less: a client's own was removed.
                context.stream.add_header(
                    Message::Request,
                    &upstream.config.override_header,
                    &upstream.addresses(&pick),
                );
                self.grants.pick(upstream, pick);
                None
            }
            None => {
                let name = &upstream.config.name;
                self.decide(host, used.effect, Reason::NoEndpoint, name);
                Some(Refusal::new(Reason::NoEndpoint, name, None))
            }
        }
    }

    /// Refuses while a component is down on which the route depends.
    fn check_components<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
        upstream: &Upstream,
    ) -> Option<Refusal<'a>> {
        let mut needed = context.route.depends_on.iter();
        let down = needed.find(|it| upstream.is_down(context.host, self.start, &it.policy))?;
        let name = &down.policy.name;
        self.decide(context.host, down.effect, Reason::NoEndpoint, name);
        down.is_enforced()
            .then(|| Refusal::new(Reason::NoEndpoint, name, None))
    }

    /// Only a look: no permit is taken, no request counted in flight, no header written.
    fn look_for_endpoint<H: Host, S>(
        &mut self,
        context: &Context<'_, H, S>,
        used: &Binding<Upstream>,
    ) {
        let counts = used.policy.counts(context.host, self.start);
        if counts.available.saturating_add(counts.trial) == 0 {
            let name = &used.policy.config.name;
            self.decide(context.host, used.effect, Reason::NoEndpoint, name);
        }
    }
}

/// The hash of a request's key on this route.
///
/// Not under the proxy's secret: all proxies, and each after a restart, are to lead a key to the
/// same endpoint. A bounded load, where one is set, protects an endpoint that a client aims at.
fn key_for(route: &Route, request: &Request<'_>) -> Option<u64> {
    let used = route.upstream.as_ref()?;
    let BalancePolicy::ConsistentHash { key, .. } = &used.policy.config.policy else {
        return None;
    };
    let mut hasher = KeyHasher::new(Seed::default());
    key::hash(key, MissingKey::Skip, request, &mut hasher).then(|| hasher.finish())
}
