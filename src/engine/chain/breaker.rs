//! The part of the chain that asks the route's breaker.

use super::{Exchange, Refusal};
use crate::config::Mode;
use crate::engine::Engine;
use crate::engine::route::Route;
use crate::host::Host;
use crate::policy::circuit_breaker::Admission;
use crate::request::Reason;

impl Exchange {
    pub(super) fn breaker<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        host: &H,
    ) -> Option<Refusal<'e>> {
        let used = route.breaker.as_ref()?;
        let breaker = engine.breakers.get(used.at)?;
        match breaker.acquire(host, self.start)? {
            Admission::Admitted { epoch, trial } => {
                self.breaker = Some(epoch);
                self.on_trial = used.mode == Mode::Enforce && trial;
                None
            }
            Admission::Refused { wait } => {
                let name = &breaker.config().name;
                self.decide(host, used, Reason::CircuitOpen, name);
                (used.mode == Mode::Enforce).then_some(Refusal {
                    reason: Reason::CircuitOpen,
                    policy: name,
                    retry_after: Some(wait),
                })
            }
        }
    }
}
