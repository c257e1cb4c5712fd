//! The part of the chain that picks the endpoints.

use super::{Exchange, Refusal};
use crate::base::hash::{KeyHasher, Seed};
use crate::config::{BalancePolicy, MissingKey, Mode};
use crate::engine::Engine;
use crate::engine::route::Route;
use crate::host::{Host, Message, Stream};
use crate::request::{Reason, Request, key};

impl Exchange {
    /// Hashes what the endpoint is to be chosen by, if that is so; a request that lacks a part is
    /// like one without a key.
    ///
    /// Not under the proxy's secret: all proxies, and each after a restart, are to lead a key to
    /// the same endpoint. Who aims at one endpoint finds that its load is bounded.
    pub(super) fn hash_key(&mut self, engine: &Engine, route: &Route, request: &Request<'_>) {
        let key_for = |route: &Route| {
            let used = route.upstream.as_ref()?;
            let BalancePolicy::ConsistentHash { key, .. } =
                &engine.config.upstreams.get(used.at)?.policy
            else {
                return None;
            };
            let mut hasher = KeyHasher::new(Seed::default());
            key::hash(key, MissingKey::Skip, request, &mut hasher).then(|| hasher.finish())
        };
        self.key = key_for(route);
        self.stable_key = Self::stable_of(engine, route).and_then(|(_, stable)| key_for(stable));
    }

    pub(super) fn endpoint<'e, H: Host, S: Stream>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        host: &H,
        stream: &S,
    ) -> Option<Refusal<'e>> {
        let used = route.upstream.as_ref()?;
        let (upstream, config) = engine
            .upstreams
            .get(used.at)
            .zip(engine.config.upstreams.get(used.at))?;
        if config.endpoints.is_empty() {
            return None;
        }
        if let Some(needed) = route
            .depends_on
            .iter()
            .find(|needed| upstream.is_down(host, self.start, needed.at))
        {
            let components = config
                .health_check
                .as_ref()
                .map(|check| check.components.as_slice())
                .unwrap_or_default();
            let policy = components
                .get(needed.at)
                .map_or("", |component| component.name.as_str());
            self.decide(host, needed, Reason::NoEndpoint, policy);
            if needed.mode == Mode::Enforce {
                return Some(Refusal {
                    reason: Reason::NoEndpoint,
                    policy,
                    retry_after: None,
                });
            }
        }
        if used.mode == Mode::Shadow {
            // Only a look: no permit is taken, nothing is counted in flight, no header is written.
            let census = upstream.census(host, self.start);
            if census.available.saturating_add(census.trial) == 0 {
                self.decide(host, used, Reason::NoEndpoint, &config.name);
            }
            return None;
        }
        match upstream.pick(host, self.start, &engine.rng, self.key) {
            Some(pick) => {
                // Added, not set, which costs a third less: a client's own was removed.
                stream.add_header(
                    Message::Request,
                    &config.override_header,
                    &upstream.addresses(&pick),
                );
                self.pick = Some(pick);
                None
            }
            None => {
                self.decide(host, used, Reason::NoEndpoint, &config.name);
                Some(Refusal {
                    reason: Reason::NoEndpoint,
                    policy: &config.name,
                    retry_after: None,
                })
            }
        }
    }
}
