//! The part of the chain that bounds the requests in flight.

use super::{Exchange, Refusal};
use crate::base::time::Nanos;
use crate::config::Mode;
use crate::engine::Engine;
use crate::engine::concurrency::Ending;
use crate::engine::route::Route;
use crate::host::Host;
use crate::policy::concurrency;
use crate::request::Reason;

impl Exchange {
    /// Asks the route's limit and its upstream's. What one has granted goes back if the other, or a
    /// later stage, refuses.
    pub(super) fn concurrency<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        host: &H,
    ) -> Option<Refusal<'e>> {
        for (place, used) in route.concurrency.iter().enumerate() {
            let Some((used, limit)) = used
                .as_ref()
                .and_then(|used| Some((used, engine.concurrency.get(used.at)?)))
            else {
                continue;
            };
            let enforce = used.mode == Mode::Enforce;
            let (permit, room) = limit.enter(used.at, host, self.start, route.criticality, enforce);
            if let Some(kept) = self.permits.get_mut(place) {
                *kept = permit;
            }
            if room {
                continue;
            }
            self.decide(host, used, Reason::Overload, limit.name());
            if enforce {
                let retry_after = Some(concurrency::RETRY_AFTER);
                return Some(Refusal {
                    reason: Reason::Overload,
                    policy: limit.name(),
                    retry_after,
                });
            }
        }
        None
    }

    /// Takes the request out of flight. `now` is asked for only if a limit learns from it.
    pub(super) fn leave_concurrency<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        now: impl Fn() -> Nanos,
    ) {
        let (start, answered) = (self.start, self.answered);
        let ending = || {
            let now = now();
            Ending {
                now,
                elapsed: now.since(start),
                answered,
            }
        };
        for permit in &mut self.permits {
            if let Some(permit) = permit.take()
                && let Some(limit) = engine.concurrency.get(permit.at)
            {
                limit.leave(host, permit, ending);
            }
        }
    }

    /// The upstream answered well, after this time.
    pub(super) const fn note_answer(&mut self, time: Nanos) {
        self.answered = Some(time);
    }
}
