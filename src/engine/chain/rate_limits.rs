//! The part of the chain that asks a route's limits, and what becomes of a request that they have
//! wait.

use super::{Exchange, Refusal};
use crate::base::time::Nanos;
use crate::config::{Mode, OnContention, QuotaHeaders};
use crate::engine::Engine;
use crate::engine::route::{Binding, Limit, Route};
use crate::host::Host;
use crate::policy::rate_limit::table::Placement;
use crate::policy::rate_limit::{KeyQuota, LimitDecision, TakenTokens};
use crate::request::{Reason, Request};

/// A request's wait.
#[derive(Debug)]
pub(super) struct Pause {
    until: Nanos,
    /// The limit that has it wait longest.
    by: Binding,
    /// What all limits have charged, with the index of each.
    taken: Vec<(usize, TakenTokens)>,
}

impl Pause {
    pub(super) const fn until(&self) -> Nanos {
        self.until
    }
}

impl Exchange {
    /// Asks the route's limits: all admit, or none is charged.
    pub(super) fn rate_limits<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        route: &Route,
        request: &Request<'_>,
        host: &H,
    ) -> Option<Refusal<'e>> {
        let mut taken: Vec<(usize, TakenTokens)> = Vec::new();
        let mut longest: Option<(Nanos, Binding)> = None;
        for (place, used) in route.limits.iter().enumerate() {
            let Some(limit) = engine.limits.get(used.at) else {
                continue;
            };
            let config = &limit.policy.config;
            let (quota, wait) = match limit.policy.take(host, request, self.start) {
                LimitDecision::NotApplicable => continue,
                LimitDecision::Admitted {
                    quota,
                    taken: tokens,
                    placement,
                    delay,
                } => {
                    match placement {
                        Placement::Known | Placement::Reused => {}
                        Placement::Added => host.add(limit.keys, 1),
                        Placement::Evicted => host.add(limit.evictions, 1),
                    }
                    if used.mode == Mode::Enforce {
                        // Only another limit's refusal, or a wait, can have them back.
                        if route.limits.len() > 1 || delay > Nanos::ZERO {
                            taken.push((used.at, tokens));
                        }
                        if config.headers != QuotaHeaders::None {
                            self.quotas.push((used.at, quota));
                        }
                        if delay > longest.map_or(Nanos::ZERO, |(delay, _)| delay) {
                            longest = Some((delay, *used));
                        }
                    }
                    continue;
                }
                LimitDecision::Refused { quota, wait } => (Some(quota), wait),
                LimitDecision::Contended => {
                    host.add(limit.contention, 1);
                    if config.on_contention == OnContention::Allow {
                        continue;
                    }
                    (None, Some(Nanos::ZERO))
                }
            };
            if used.mode == Mode::Shadow {
                self.decide(host, used, Reason::RateLimited, &config.name);
                continue;
            }
            self.refund(engine, &taken, host, |_| true);
            let rest = route
                .limits
                .get(place.saturating_add(1)..)
                .unwrap_or_default();
            return Some(self.tightest(engine, (used, quota, wait), rest, request, host));
        }
        self.pause = longest.map(|(delay, by)| Pause {
            until: self.start.plus(delay),
            by,
            taken,
        });
        None
    }

    /// The refusal, by the limit that has the request wait longest: this one, or one of those that
    /// have not been asked yet. What it promises is what holds. (Bug avoided: a client that is told
    /// to wait a second by one limit, and a day by the other.)
    fn tightest<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        first: (&Binding, Option<KeyQuota>, Option<Nanos>),
        rest: &[Binding],
        request: &Request<'_>,
        host: &H,
    ) -> Refusal<'e> {
        let (mut used, mut quota, mut wait) = first;
        for other in rest.iter().filter(|other| other.mode == Mode::Enforce) {
            let looked = engine
                .limits
                .get(other.at)
                .and_then(|limit| limit.policy.peek(host, request, self.start));
            // `None` is never.
            if let Some((its_quota, its_wait)) =
                looked.filter(|(_, its)| wait.is_some_and(|wait| its.is_none_or(|its| its > wait)))
            {
                (used, quota, wait) = (other, Some(its_quota), its_wait);
            }
        }
        let config = engine.limits.get(used.at).map(|limit| &limit.policy.config);
        let policy = config.map_or("", |config| config.name.as_str());
        self.decide(host, used, Reason::RateLimited, policy);
        // What the others said no longer holds: their tokens are back.
        self.quotas.clear();
        if config.is_some_and(|config| config.headers != QuotaHeaders::None) {
            self.quotas
                .extend(quota.map(|quota| (used.at, quota.for_refusal(wait))));
        }
        Refusal {
            reason: Reason::RateLimited,
            policy,
            retry_after: wait,
        }
    }

    /// The refusal of a request that would have to wait where there is no room.
    pub(super) fn no_room<'e, H: Host>(
        &mut self,
        engine: &'e Engine,
        pause: Pause,
        host: &H,
    ) -> Refusal<'e> {
        let name = engine
            .limits
            .get(pause.by.at)
            .map_or("", |limit| limit.policy.config.name.as_str());
        self.refund(engine, &pause.taken, host, |_| true);
        self.quotas.retain(|(at, _)| *at == pause.by.at);
        self.decide(host, &pause.by, Reason::RateLimited, name);
        let wait = pause.until.since(self.start);
        for (_, quota) in &mut self.quotas {
            *quota = quota.for_refusal(Some(wait));
        }
        Refusal {
            reason: Reason::RateLimited,
            policy: name,
            retry_after: Some(wait),
        }
    }

    /// Ends the wait of a request that goes nowhere any more. Its moments go back to the pace, if
    /// nobody has queued behind; tokens of other limits stay spent, as those of any request whose
    /// client goes away.
    pub(super) fn give_up<H: Host>(&mut self, engine: &Engine, host: &H) {
        if let Some(pause) = self.pause.take() {
            self.refund(engine, &pause.taken, host, |limit| limit.policy.delays());
        }
    }

    fn refund<H: Host>(
        &self,
        engine: &Engine,
        taken: &[(usize, TakenTokens)],
        host: &H,
        which: impl Fn(&Limit) -> bool,
    ) {
        for (at, tokens) in taken {
            let Some(limit) = engine.limits.get(*at).filter(|limit| which(limit)) else {
                continue;
            };
            if limit.policy.refund(host, *tokens, self.start).is_err() {
                host.add(limit.contention, 1);
            }
        }
    }
}
