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
        if self.grants.is_admitted() {
            return None;
        }
        let (host, now) = (context.host, self.asked_at());
        let answer = if self.whole.is_some() {
            used.policy.acquire(host, now)?
        } else {
            // An unfinished request takes no permit. A shadow decides once, when it is whole.
            match used.policy.look(host, now) {
                Some(answer) if used.is_enforced() => answer,
                _ => {
                    self.grants.admit_later(&used.policy);
                    return None;
                }
            }
        };
        match answer {
            Admission::Admitted { epoch, trial } => {
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
