//! The part of the chain that asks the route's breaker, and tells it how the call ended.

use super::{Exchange, Refusal};
use crate::base::time::Nanos;
use crate::config::Mode;
use crate::engine::{Breaker, Engine, Route};
use crate::host::Host;
use crate::policy::Reason;
use crate::policy::circuit_breaker::state::{Admission, Call};

impl Exchange {
    pub(super) fn breaker<'e, H: Host>(&mut self, engine: &'e Engine, route: &Route, host: &H) -> Option<Refusal<'e>> {
        let used = route.breaker.as_ref()?;
        let breaker = engine.breakers.get(used.at)?;
        let (admission, change) = match breaker.cell.acquire(host, &breaker.settings, self.start) {
            Ok(answer) => answer,
            Err(_) => {
                host.add(breaker.contention, 1);
                return None;
            }
        };
        if let Some(change) = change {
            breaker.announce(host, change);
        }
        match admission {
            Admission::Admitted { epoch } => {
                self.breaker = Some(epoch);
                self.on_trial = used.mode == Mode::Enforce && route.retry.is_some() && !breaker.is_closed(host);
                None
            }
            Admission::Refused { wait } => {
                let name = &breaker.settings.config().name;
                self.decide(host, used, Reason::CircuitOpen, name);
                (used.mode == Mode::Enforce).then_some(Refusal {
                    reason: Reason::CircuitOpen,
                    policy: name,
                    retry_after: Some(wait),
                })
            }
        }
    }

    pub(super) fn end_breaker<H: Host>(
        &self,
        engine: &Engine,
        breaker: &Breaker,
        now: Nanos,
        epoch: u32,
        call: Call,
        host: &H,
    ) {
        match breaker.cell.end(host, &breaker.settings, now, epoch, call, &engine.rng) {
            Ok(Some(change)) => breaker.announce(host, change),
            Ok(None) => {}
            Err(_) => host.add(breaker.contention, 1),
        }
    }
}
