//! The part of the chain that asks the route's breaker.

use super::{Context, Exchange, Refusal};
use crate::host::Host;
use crate::policy::circuit_breaker::Admission;
use crate::request::Reason;

impl Exchange {
    pub(super) fn check_breaker<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
    ) -> Option<Refusal<'a>> {
        let used = context.route.breaker.as_ref()?;
        match used.policy.acquire(context.host, self.start)? {
            Admission::Admitted { epoch, trial } => {
                let trial = used.is_enforced() && trial;
                self.grants.admit(&used.policy, epoch, trial);
                None
            }
            Admission::Refused { wait } => {
                let name = &used.policy.config().name;
                self.decide(context.host, used.effect, Reason::CircuitOpen, name);
                used.is_enforced()
                    .then(|| Refusal::new(Reason::CircuitOpen, name, Some(wait)))
            }
        }
    }
}
