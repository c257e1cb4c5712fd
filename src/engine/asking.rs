//! Asking for endpoints: which VM asks the source of an upstream, when, and what it makes of the
//! answers.
//!
//! As for active checks, one VM asks for all, by a lease ([`crate::policy::lease`]); a VM that ticks
//! reads it once in each tick. An asker has one call in flight at most. A question may take several
//! calls: a token first, page after page.
//!
//! **What if?** A call fails: it is made once more at once, before the question counts as failed;
//! where a cluster has several members, another one answers. Then askers wait longer and longer,
//! with jitter, up to [`LONGEST_PAUSE`]. An answer never comes: it counts as failed a while after its
//! time. The asker is lost: the next holder of the lease begins anew, without a cursor, so that its
//! first question is answered at once. An answer comes when the lease is another's: it is dropped,
//! and those that write are ordered by when they asked. The clock steps back: what was to happen
//! later than a tick from now happens now.

mod question;

use super::TICK;
use super::logs::LogLimiter;
use crate::base::hash::of_names;
use crate::base::rng::Rng;
use crate::base::text::number;
use crate::base::time::{Moment, Nanos};
use crate::document::{Registry, Source, Upstream};
use crate::host::{CallAnswer, CallId, Calls, Host};
use crate::policy::discovery::Failure;
use crate::policy::discovery::report::{Report, Reported};
use crate::policy::lease::{Candidate, LeaseRecord, RENEW, Role};
use crate::store::RecordKind;
use question::{Asked, Question, Secret};
use std::cell::RefCell;
use std::rc::Rc;

/// How long a call is waited for beyond its time: a host that has lost it must not keep its place
/// for ever.
const LOST: Nanos = Nanos::from_secs(1);

/// How soon a lease is read again that stayed contended.
const CONTENDED_PAUSE: Nanos = Nanos::from_millis(50);

/// The longest pause after failures.
pub(super) const LONGEST_PAUSE: Nanos = Nanos::from_secs(8);

/// The most calls that one question may take: tokens and pages.
const MOST_CALLS: u32 = 8;

/// Who takes the reports: of the upstream of this number.
pub(super) type Sink<'s> = &'s dyn Fn(usize, Report) -> Reported;

/// The askers of an engine, one for each upstream with a source.
#[derive(Debug)]
pub(super) struct Asking {
    askers: Vec<Asker>,
    logs: Rc<LogLimiter>,
    rng: Rng,
}

/// Asks the source of an upstream.
#[derive(Debug)]
struct Asker {
    /// Its number in the configuration.
    at: usize,
    upstream: Rc<Upstream>,
    source: Source,
    secret: Secret,
    lease: LeaseRecord,
    owner: u64,
    fingerprint: u64,
    run: RefCell<Run>,
}

/// What an asker remembers.
#[derive(Debug, Default)]
struct Run {
    generation: Option<u32>,
    /// Until when the lease is its own.
    held: Option<Moment>,
    /// When it acts next.
    next: Moment,
    /// When the next call is due.
    due: Moment,
    waiting: Option<Waiting>,
    question: Question,
    /// When the question was asked first, if it has begun, and how many calls it has taken.
    begun: Option<(Moment, u32)>,
    /// How many calls have failed in a row.
    failures: u32,
    /// How many endpoints were left out of the last answer.
    left_out: usize,
}

/// A call that is not answered yet.
#[derive(Debug)]
struct Waiting {
    id: CallId,
    since: Moment,
    give_up: Moment,
}

impl Asking {
    /// The askers of these upstreams. `vm`: the number of this engine, in this VM, and no other's.
    ///
    /// # Errors
    /// Variables that are not set, a line each.
    pub(super) fn new<H: Host>(
        upstreams: &[Rc<Upstream>],
        vm: u64,
        logs: &Rc<LogLimiter>,
        host: &H,
    ) -> Result<Self, String> {
        let (mut askers, mut errors) = (Vec::new(), Vec::new());
        for (at, upstream) in upstreams.iter().enumerate() {
            let Some(source) = upstream.source.clone() else {
                continue;
            };
            let secret = Secret::of(&source, host).unwrap_or_else(|why| {
                errors.push(["upstreams.", &upstream.name, ".endpoints.", &why].concat());
                Secret::None
            });
            askers.push(Asker {
                at,
                lease: LeaseRecord::new(RecordKind::SourceLease, &upstream.name),
                owner: vm,
                fingerprint: fingerprint(&source),
                upstream: Rc::clone(upstream),
                source,
                secret,
                run: RefCell::default(),
            });
        }
        if !errors.is_empty() {
            return Err(errors.join("\n"));
        }
        Ok(Self {
            askers,
            logs: Rc::clone(logs),
            rng: Rng::new(vm),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.askers.is_empty()
    }

    /// Does what is due. Returns when it has to be called again.
    pub(super) fn run<H: Host + Calls>(&self, host: &H, now: Moment, sink: Sink<'_>) -> Moment {
        let next = self
            .askers
            .iter()
            .map(|asker| asker.act(self, host, now, sink));
        next.min().unwrap_or(Moment::MAX)
    }

    /// Whether this call is one of an asker.
    pub(super) fn has_asked(&self, id: CallId) -> bool {
        self.askers.iter().any(|asker| asker.waits_for(id))
    }

    /// A call was answered.
    pub(super) fn answered<H: Host>(
        &self,
        host: &H,
        id: CallId,
        answer: &CallAnswer,
        now: Moment,
        sink: Sink<'_>,
    ) {
        if let Some(asker) = self.askers.iter().find(|asker| asker.waits_for(id)) {
            asker.answered(self, host, answer, now, sink);
        }
    }

    /// `time`, a tenth longer or shorter at most.
    fn jittered(&self, time: Nanos) -> Nanos {
        let tenth = time.0 / 10;
        let random = self.rng.below(tenth.saturating_mul(2).saturating_add(1));
        time.minus(Nanos(tenth)).plus(Nanos(random))
    }
}

impl Asker {
    fn waits_for(&self, id: CallId) -> bool {
        self.run
            .try_borrow()
            .is_ok_and(|run| run.waiting.as_ref().is_some_and(|it| it.id == id))
    }

    /// Takes or renews the lease and asks if that is due. Returns when it has to be called again.
    fn act<H: Host + Calls>(
        &self,
        asking: &Asking,
        host: &H,
        now: Moment,
        sink: Sink<'_>,
    ) -> Moment {
        let Ok(mut run) = self.run.try_borrow_mut() else {
            return now.plus(CONTENDED_PAUSE);
        };
        let run = &mut *run;
        if now < run.next && run.next.since(now) <= TICK {
            return run.next;
        }
        let former = run.held;
        match self.role(run, host, now) {
            Some(Role::Standby(until)) => {
                run.lose();
                // A little apart from the other VMs that wait for the same moment.
                let apart = Nanos(asking.rng.below(Nanos::from_millis(20).0));
                run.next = until.plus(apart).min(now.plus(TICK));
                return run.next;
            }
            // It may be ours: until the time that was written.
            None if former.is_none_or(|until| now >= until) => {
                run.lose();
                run.next = now.plus(CONTENDED_PAUSE);
                return run.next;
            }
            None => {}
            Some(Role::Holder(until)) => {
                run.held = Some(until);
                if former.is_none() {
                    *run = Run {
                        generation: run.generation,
                        held: run.held,
                        due: now,
                        ..Run::default()
                    };
                }
            }
        }
        if let Some(call) = &run.waiting
            && (now >= call.give_up || now < call.since)
        {
            run.waiting = None;
            let none = Failure::Error("no answer came in time".into());
            self.failed(run, asking, none, now, sink);
        }
        let is_due = now >= run.due || run.due.since(now) > self.source.longest();
        if run.waiting.is_none() && is_due {
            self.ask(run, asking, host, now, sink);
        }
        let next = run.waiting.as_ref().map_or(run.due, |call| call.give_up);
        run.next = next.min(now.plus(RENEW));
        run.next
    }

    /// Whether this VM holds the lease; `None` if that is not known.
    fn role<H: Host>(&self, run: &mut Run, host: &H, now: Moment) -> Option<Role> {
        let me = Candidate {
            owner: self.owner,
            fingerprint: self.fingerprint,
            generation: run.generation,
        };
        let (role, generation) = self.lease.step(host, me, now).ok()?;
        run.generation = Some(generation);
        Some(role)
    }

    /// Makes the next call of the question.
    fn ask<H: Host + Calls>(
        &self,
        run: &mut Run,
        asking: &Asking,
        host: &H,
        now: Moment,
        sink: Sink<'_>,
    ) {
        let (since, calls) = run.begun.unwrap_or((now, 0));
        run.begun = Some((since, calls.saturating_add(1)));
        let wait = match &self.source.registry {
            Registry::Consul(consul) => asking.jittered(consul.wait),
            _ => Nanos::ZERO,
        };
        let asked = run.question.ask(&self.source, &self.secret, wait, host);
        match asked {
            Ok((id, timeout)) => {
                run.waiting = Some(Waiting {
                    id,
                    since: now,
                    give_up: now.plus(timeout).plus(LOST),
                });
            }
            Err(_) => {
                let cluster = self.source.asked_cluster();
                let why = ["nobody can be asked in the cluster ", cluster];
                self.failed(run, asking, Failure::Error(why.concat()), now, sink);
            }
        }
    }

    /// The call that is waited for was answered.
    fn answered<H: Host>(
        &self,
        asking: &Asking,
        host: &H,
        answer: &CallAnswer,
        now: Moment,
        sink: Sink<'_>,
    ) {
        let Ok(mut run) = self.run.try_borrow_mut() else {
            return;
        };
        let run = &mut *run;
        let Some(call) = run.waiting.take() else {
            return;
        };
        // What belongs to another's lease by now is another's to say.
        if run.held.is_none_or(|until| now >= until) {
            run.lose();
            return;
        }
        let (begun, calls) = run.begun.unwrap_or((call.since, 1));
        let asked = if run.question.waits() { now } else { begun };
        let read = run.question.read(&self.source, answer);
        match read {
            Asked::Again if calls < MOST_CALLS => run.due = now,
            Asked::Again => {
                let why = Failure::Error("one question takes too many calls".into());
                self.failed(run, asking, why, now, sink);
            }
            Asked::Failed(failure) => self.failed(run, asking, failure, now, sink),
            Asked::Answered { answer, left_out } => {
                if std::mem::replace(&mut run.left_out, left_out) != left_out && left_out > 0 {
                    self.log_left_out(asking, host, left_out);
                }
                let report = Report {
                    asked,
                    result: Ok(answer),
                };
                self.end(run, asking, begun, now, report, sink);
            }
        }
        run.next = run.next.min(run.due);
    }

    /// The question that was `begun` then has its answer.
    fn end(
        &self,
        run: &mut Run,
        asking: &Asking,
        begun: Moment,
        now: Moment,
        report: Report,
        sink: Sink<'_>,
    ) {
        run.begun = None;
        run.failures = 0;
        let held = sink(self.at, report) == Reported::Held;
        run.question.answered(held);
        // Never sooner after another question than this; an answer that has taken longer has had
        // its pause.
        let due = begun.plus(asking.jittered(self.source.interval));
        run.due = due.max(now);
    }

    /// A call of the question has failed.
    fn failed(
        &self,
        run: &mut Run,
        asking: &Asking,
        failure: Failure,
        now: Moment,
        sink: Sink<'_>,
    ) {
        let (asked, _) = run.begun.take().unwrap_or((now, 0));
        run.question.restart();
        run.failures = run.failures.saturating_add(1);
        if run.failures == 1 && matches!(failure, Failure::Error(_)) {
            run.due = now;
            return;
        }
        let result = Err(failure);
        sink(self.at, Report { asked, result });
        let doublings = run.failures.saturating_sub(1).min(8);
        let pause = self.source.interval.times(1 << doublings);
        let pause = pause.min(LONGEST_PAUSE.max(self.source.interval));
        run.due = now.plus(asking.jittered(pause));
    }

    fn log_left_out<H: Host>(&self, asking: &Asking, host: &H, count: usize) {
        asking.logs.write(host, log::Level::Info, || {
            [
                "discovery of ",
                &self.upstream.name,
                ": endpoints without an IP address are left out: ",
                &number(count as u64),
            ]
            .concat()
        });
    }
}

impl Run {
    /// The lease is another's.
    fn lose(&mut self) {
        self.held = None;
        self.waiting = None;
    }
}

/// A hash of all that is asked: contexts with the same one share a lease.
fn fingerprint(source: &Source) -> u64 {
    of_names(&[
        source.kind(),
        source.asked_cluster(),
        &source.identity().join("\n"),
        &number(source.interval.0),
        &number(source.rules.empty_is_real.into()),
        &number(source.rules.max_removal.0.into()),
    ])
}
