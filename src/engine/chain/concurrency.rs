//! The part of the chain that bounds the requests in flight.

use super::{Context, Exchange, Refusal};
use crate::host::Host;
use crate::policy::concurrency;
use crate::request::Reason;

impl Exchange {
    /// Enters at the route's limit and its upstream's. What one has granted goes back if the other,
    /// or a later stage, refuses.
    pub(super) fn check_concurrency<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
    ) -> Option<Refusal<'a>> {
        let route = context.route;
        for (place, used) in route.concurrency.iter().enumerate() {
            let Some(used) = used else { continue };
            let (limit, enforce) = (&used.policy, used.is_enforced());
            let criticality = route.config.criticality;
            let (permit, room) = limit.enter(context.host, self.start, criticality, enforce);
            if let Some(permit) = permit {
                self.grants.enter(place, limit, permit);
            }
            if room {
                continue;
            }
            self.decide(context.host, used.effect, Reason::Overload, limit.name());
            if enforce {
                let retry_after = Some(concurrency::RETRY_AFTER);
                return Some(Refusal::new(Reason::Overload, limit.name(), retry_after));
            }
        }
        None
    }
}
