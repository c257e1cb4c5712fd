//! The part of the chain that bounds the requests in flight.

use super::{Context, Exchange, Refusal};
use crate::engine::concurrency::PlaceRequest;
use crate::engine::route::Route;
use crate::host::Host;
use crate::policy::concurrency::{self, Answer};
use crate::request::{Reason, Request};

impl Exchange {
    /// Finds out whose share of its limits the request is of, where there are fair shares.
    pub(super) fn read_fair_keys<H, S>(
        &mut self,
        context: &Context<'_, H, S>,
        request: &Request<'_>,
    ) {
        self.facts.fair = fair_keys(context.route, request);
        let stable = self.stable.as_ref();
        self.facts.stable_fair = stable.map_or([None; 2], |stable| fair_keys(stable, request));
    }

    /// Enters at the route's limit and its upstream's. What one has granted goes back if the other,
    /// or a later stage, refuses.
    pub(super) fn check_concurrency<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
    ) -> Option<Refusal<'a>> {
        let route = context.route;
        let places = route.concurrency.iter().zip(self.facts.fair);
        for (place, (used, key)) in places.enumerate() {
            let Some(used) = used else { continue };
            if self.grants.has_entered(place) {
                continue;
            }
            let (limit, enforce) = (&used.limit.policy, used.limit.is_enforced());
            let asks = PlaceRequest {
                now: self.asked_at(),
                whole: self.whole.is_some(),
                criticality: route.config.criticality,
                key,
                enforce,
                vm: context.engine.vm,
            };
            let (permit, answer) = limit.enter(context.host, &asks);
            if let Some(permit) = permit {
                self.grants.enter(place, limit, permit);
            }
            let (effect, name) = match answer {
                Answer::Room => continue,
                Answer::Full => (used.limit.effect, limit.name()),
                Answer::OverShare => (used.over_share, limit.fair_name()),
            };
            self.decide(context.host, effect, Reason::Overload, name);
            if enforce {
                let retry_after = Some(concurrency::RETRY_AFTER);
                return Some(Refusal::new(Reason::Overload, name, retry_after));
            }
        }
        None
    }
}

/// Whose share of the route's limits the request is of.
fn fair_keys(route: &Route, request: &Request<'_>) -> [Option<u32>; 2] {
    let key = |at: usize| {
        let used = route.concurrency.get(at)?.as_ref()?;
        used.limit.policy.fair_key(request)
    };
    [key(0), key(1)]
}
