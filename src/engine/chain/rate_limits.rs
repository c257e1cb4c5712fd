//! The part of the chain that asks the route's limits, and what becomes of a request that they have
//! wait.

use super::{Action, Context, Exchange, Refusal};
use crate::base::time::{Moment, Nanos};
use crate::document::{Mode, OnContention, QuotaHeaders};
use crate::engine::route::{Binding, Limit};
use crate::host::{Host, Stream};
use crate::policy::rate_limit::table::Placement;
use crate::policy::rate_limit::{KeyQuota, LimitDecision, TakenTokens};
use crate::request::{Reason, Request};
use std::rc::Rc;

/// A request's wait.
#[derive(Debug)]
pub(super) struct Pause {
    until: Moment,
    /// The limit that has it wait longest.
    by: Binding<Limit>,
    /// What all limits have charged.
    taken: Vec<(Rc<Limit>, TakenTokens)>,
}

impl Pause {
    pub(super) const fn until(&self) -> Moment {
        self.until
    }
}

/// What the limits that were asked so far have said.
#[derive(Default)]
struct Asked<'a> {
    taken: Vec<(Rc<Limit>, TakenTokens)>,
    /// The longest wait, and the limit that wants it.
    longest: Option<(Nanos, &'a Binding<Limit>)>,
}

/// A refusal by a limit: what is left for the key, and for how long the same request is refused;
/// `None` is for ever.
struct Refused {
    quota: Option<KeyQuota>,
    wait: Option<Nanos>,
}

impl Exchange {
    /// The part of the chain that may end in a wait: the switch and the rate limits.
    pub(super) fn check_limits<'a, H: Host, S: Stream>(
        &mut self,
        context: &Context<'a, H, S>,
        request: &Request<'_>,
    ) -> Option<Refusal<'a>> {
        if let Some(refusal) = self.check_switch(context) {
            return Some(refusal);
        }
        self.facts.retriable = self.is_retriable(context.route, request.method);
        self.read_deadline(context, request.headers);
        self.check_rate_limits(context, request)
    }

    /// Refuses if the route's switch is off.
    fn check_switch<'a, H: Host, S>(&mut self, context: &Context<'a, H, S>) -> Option<Refusal<'a>> {
        let used = context.route.switched_off.as_ref()?;
        let policy = &used.policy.name;
        self.decide(context.host, used.effect, Reason::SwitchedOff, policy);
        used.is_enforced()
            .then(|| Refusal::new(Reason::SwitchedOff, policy, None))
    }

    /// The moment that [`Action::Wait`] named has come: the chain goes on.
    pub fn on_resume<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        if self.probe.take().is_some() {
            return self.give_up_reading(host, stream);
        }
        if let Some(asked) = self.asked.take() {
            return self.give_up_version(&asked, host, stream);
        }
        if self.replacement.is_some() {
            return self.give_up_replacing(host, stream, true);
        }
        // Nothing waits: the proxy has answered meanwhile.
        let Some((_, handles)) = self.pause.take().zip(self.handles()) else {
            return Action::Stop;
        };
        let context = &handles.context(host, stream);
        let now = host.monotonic();
        self.waited = now.since(self.start);
        self.start = now;
        for (_, quota) in &mut self.quotas {
            quota.reset = quota.reset.minus(self.waited);
        }
        // The wait may have been longer than it was to be.
        if let Some(refusal) = self.check_deadline(context, self.waited) {
            return self.refuse(context, &refusal);
        }
        self.proceed(context)
    }

    /// There was no room for the request to wait: it is refused, and costs nothing. Of an answer: it
    /// is replaced at once.
    pub fn on_no_room<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        if self.replacement.is_some() {
            return self.give_up_replacing(host, stream, false);
        }
        let Some((pause, handles)) = self.pause.take().zip(self.handles()) else {
            return Action::Stop;
        };
        let context = &handles.context(host, stream);
        let refusal = self.refuse_to_wait(context, &pause);
        self.refuse(context, &refusal)
    }

    /// Asks the route's limits: all admit, or none is charged.
    pub(super) fn check_rate_limits<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
        request: &Request<'_>,
    ) -> Option<Refusal<'a>> {
        let limits = &context.route.limits;
        let alone = limits.len() == 1;
        let mut asked = Asked::default();
        let mut rest = limits.iter();
        while let Some(used) = rest.next() {
            let Some(refused) = self.ask_limit(context, used, alone, request, &mut asked) else {
                continue;
            };
            if used.effect.mode == Mode::Shadow {
                let name = used.policy.name();
                self.decide(context.host, used.effect, Reason::RateLimited, name);
                continue;
            }
            self.refund(context.host, &asked.taken, |_| true);
            return Some(self.tightest(context, (used, refused), rest.as_slice(), request));
        }
        self.pause = asked.longest.map(|(delay, by)| Pause {
            until: self.start.plus(delay),
            by: by.clone(),
            taken: asked.taken,
        });
        None
    }

    /// Asks one limit. `None`: it admits the request, or does not apply.
    fn ask_limit<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
        used: &'a Binding<Limit>,
        alone: bool,
        request: &Request<'_>,
        asked: &mut Asked<'a>,
    ) -> Option<Refused> {
        let (host, limit) = (context.host, &used.policy);
        let config = &limit.policy.config;
        match limit.policy.take(host, request, self.start) {
            LimitDecision::NotApplicable => None,
            LimitDecision::Admitted {
                quota,
                taken,
                placement,
                delay,
            } => {
                match placement {
                    Placement::Known | Placement::Reused => {}
                    Placement::Added => host.add(limit.keys, 1),
                    Placement::Evicted => host.add(limit.evictions, 1),
                }
                if !used.is_enforced() {
                    return None;
                }
                // Only another limit's refusal, or a wait, can have them back.
                if !alone || delay > Nanos::ZERO {
                    asked.taken.push((Rc::clone(limit), taken));
                }
                if config.headers != QuotaHeaders::None {
                    self.quotas.push((Rc::clone(limit), quota));
                }
                if delay > asked.longest.map_or(Nanos::ZERO, |(delay, _)| delay) {
                    asked.longest = Some((delay, used));
                }
                None
            }
            LimitDecision::Refused { quota, wait } => Some(Refused {
                quota: Some(quota),
                wait,
            }),
            LimitDecision::Contended => {
                host.add(limit.contention, 1);
                (config.on_contention != OnContention::Allow).then_some(Refused {
                    quota: None,
                    wait: Some(Nanos::ZERO),
                })
            }
        }
    }

    /// The refusal, by the limit that has the request wait longest: this one, or one of those that
    /// have not been asked yet. What it promises is what holds. (Bug avoided: a client that one
    /// limit asks to wait a second, and the other a day.)
    fn tightest<'a, H: Host, S>(
        &mut self,
        context: &Context<'a, H, S>,
        first: (&'a Binding<Limit>, Refused),
        rest: &'a [Binding<Limit>],
        request: &Request<'_>,
    ) -> Refusal<'a> {
        let (
            mut used,
            Refused {
                mut quota,
                mut wait,
            },
        ) = first;
        for other in rest.iter().filter(|other| other.is_enforced()) {
            let policy = &other.policy.policy;
            let looked = policy.peek(context.host, request, self.start);
            // `None` is never.
            if let Some((its_quota, its_wait)) =
                looked.filter(|(_, its)| wait.is_some_and(|wait| its.is_none_or(|its| its > wait)))
            {
                (used, quota, wait) = (other, Some(its_quota), its_wait);
            }
        }
        let limit = &used.policy;
        self.decide(context.host, used.effect, Reason::RateLimited, limit.name());
        // What the others said no longer holds: their tokens are back.
        self.quotas.clear();
        if limit.policy.config.headers != QuotaHeaders::None {
            let quota = quota.map(|quota| quota.for_refusal(wait));
            self.quotas
                .extend(quota.map(|quota| (Rc::clone(limit), quota)));
        }
        Refusal::new(Reason::RateLimited, limit.name(), wait)
    }

    /// The refusal of a request that would have to wait where there is no room.
    pub(super) fn refuse_to_wait<'p, H: Host, S>(
        &mut self,
        context: &Context<'_, H, S>,
        pause: &'p Pause,
    ) -> Refusal<'p> {
        let (limit, effect) = (&pause.by.policy, pause.by.effect);
        self.refund(context.host, &pause.taken, |_| true);
        self.quotas.retain(|(other, _)| Rc::ptr_eq(other, limit));
        self.decide(context.host, effect, Reason::RateLimited, limit.name());
        let wait = pause.until.since(self.start);
        for (_, quota) in &mut self.quotas {
            *quota = quota.for_refusal(Some(wait));
        }
        Refusal::new(Reason::RateLimited, limit.name(), Some(wait))
    }

    /// Ends the wait of a request that goes nowhere any more. Its moments go back to the pace,
    /// unless another has queued behind; tokens of other limits stay spent, as those of any request
    /// whose client goes away.
    pub(super) fn end_wait<H: Host>(&mut self, host: &H) {
        if let Some(pause) = self.pause.take() {
            self.refund(host, &pause.taken, |limit| limit.policy.delays());
        }
    }

    fn refund<H: Host>(
        &self,
        host: &H,
        taken: &[(Rc<Limit>, TakenTokens)],
        which: impl Fn(&Limit) -> bool,
    ) {
        for (limit, tokens) in taken.iter().filter(|(limit, _)| which(limit)) {
            if limit.policy.refund(host, *tokens, self.start).is_err() {
                host.add(limit.contention, 1);
            }
        }
    }
}
