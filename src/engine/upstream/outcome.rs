//! What an answer shows of the endpoints that the proxy tried, and where it is recorded.

use super::Upstream;
use super::endpoint::{Endpoint, admitted};
use super::pick::{Balancer, Pick};
use super::tries::Attempts;
use crate::base::headers::HeaderMap;
use crate::base::rng::Rng;
use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::host::Host;
use crate::policy::Outcome;
use crate::policy::circuit_breaker::CallResult;
use crate::policy::upstream::Availability;
use crate::policy::upstream::orca::{self, Load};
use crate::policy::upstream::peak_ewma::Latency;
use crate::policy::upstream::peers::Try;

/// How a call ended, as breakers of endpoints see it.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The last try.
    pub call: CallResult,
    /// It came too late while a limit refused.
    pub overloaded: bool,
    /// When the proxy got it.
    pub began: Moment,
}

impl Upstream {
    /// Counts how the tries ended, for the comparison of the endpoints: the last one, and those
    /// before it, and how long they took.
    pub(in crate::engine) fn compare(
        &self,
        now: Moment,
        pick: &Pick,
        attempts: Attempts,
        [last, earlier]: [(Try, Option<Nanos>); 2],
    ) {
        let before = usize::try_from(attempts.before).unwrap_or(usize::MAX);
        let slots = self.slots();
        self.peers.with(|peers| {
            let earlier_ones = pick.list.iter().take(before);
            for at in earlier_ones.filter(|at| *at != attempts.last) {
                if let Some(place) = slots.place(at) {
                    peers.record(place, now, earlier.0, earlier.1);
                }
            }
            let Some(place) = slots.place(attempts.last) else {
                return;
            };
            // One that stands for many shows how often they are good, and of one how long it takes.
            for took in std::iter::once(last.1).chain(std::iter::repeat_n(None, attempts.more())) {
                peers.record(place, now, last.0, took);
            }
        });
    }

    /// Whether an endpoint of the list that one of so many retries goes to answers well within the
    /// time that a try may take. `expected`: what is known of that without the endpoint.
    pub(in crate::engine) fn has_faster_next(
        &self,
        pick: &Pick,
        retries: u32,
        now: Moment,
        per_try: Nanos,
        expected: Nanos,
    ) -> bool {
        let retries = usize::try_from(retries).unwrap_or(usize::MAX);
        let slots = self.slots();
        self.peers.with(|peers| {
            let next = pick.list.iter().skip(1).take(retries);
            let mut places = next.filter_map(|at| slots.place(at));
            places.any(|at| !peers.is_slow(at, now, per_try, expected))
        })
    }

    /// Whether a level behind the endpoint's own has an endpoint of which nothing is known: then
    /// that all of its own level fail is no sign that there is no better place to go.
    fn has_untried_level(&self, at: usize, now: Moment) -> bool {
        let slots = self.slots();
        let level = |endpoint: &Endpoint| endpoint.standing.get().level;
        let Some(own) = slots.named(at).map(|endpoint| level(endpoint)) else {
            return false;
        };
        self.peers.with(|peers| {
            let mut all = slots.present();
            all.any(|(at, other)| level(other) > own && peers.is_unknown(at, now))
        })
    }

    /// What counts of an outcome at an endpoint: a failure that its peers share does not, and an
    /// answer that takes many times as long as theirs is one. A failure of a trial always counts.
    /// `overloaded`: a failure is the overload's unless its peers prove that it is its own.
    fn own_outcome(
        &self,
        at: usize,
        now: Moment,
        call: CallResult,
        trial: bool,
        overloaded: bool,
    ) -> CallResult {
        let place = self.slots().place(at).unwrap_or(usize::MAX);
        match (call.outcome, call.duration) {
            (Outcome::Failure, _) => {
                let late = overloaded.then_some(call.duration);
                let is_own = || {
                    self.peers
                        .with(|peers| peers.is_own_fault(place, now, late))
                };
                let excused = overloaded || !trial && !self.has_untried_level(at, now);
                let shared = excused && !is_own();
                if shared { CallResult::IGNORED } else { call }
            }
            (Outcome::Success, took)
                if self
                    .peers
                    .with(|peers| peers.is_outlier(place, now, took, trial)) =>
            {
                CallResult {
                    outcome: Outcome::Failure,
                    ..call
                }
            }
            _ => call,
        }
    }

    /// What a failed call says of a pause for all of the upstream: as long as more than half of the
    /// endpoints ask for, by what this worker has heard of each. One endpoint's word moves its own
    /// breaker, and no other. `at`: who has asked for `wait`, or for none.
    pub(in crate::engine) fn common_pause(
        &self,
        now: Moment,
        at: Option<usize>,
        wait: Option<Nanos>,
    ) -> Option<Nanos> {
        let slots = self.slots();
        if slots.len() == 0 {
            // Who there is behind the proxy's cluster is not known.
            return wait;
        }
        if let Some(endpoint) = at.and_then(|at| self.endpoint(at)) {
            endpoint.paused.set(wait.map_or(now, |wait| now.plus(wait)));
        }
        wait?;
        let left = |endpoint: &Endpoint| endpoint.paused.get().since(now);
        let mut pauses: Vec<Nanos> = slots.present().map(|(_, it)| left(it)).collect();
        sort::by(&mut pauses, |one, other| one > other);
        let most = pauses.get(pauses.len() / 2).copied();
        most.filter(|wait| *wait > Nanos::ZERO)
    }

    /// Records how the tries ended.
    pub(in crate::engine) fn record<H: Host>(
        &self,
        host: &H,
        now: Moment,
        pick: &Pick,
        tries: Option<Attempts>,
        Ended {
            call,
            overloaded,
            began,
        }: Ended,
        rng: &Rng,
    ) {
        let Some(tries) = tries else {
            return self.release(host, now, pick, rng);
        };
        let Attempts { last, before, .. } = tries;
        let failed = CallResult {
            outcome: Outcome::Failure,
            retry_after: None,
            ..call
        };
        let before = usize::try_from(before).unwrap_or(usize::MAX);
        let mut reported = false;
        let mut own_epoch = None;
        for (place, (at, epoch)) in pick.list.iter().zip(pick.epochs).enumerate() {
            if at == last {
                own_epoch = Some(epoch);
            } else if place < before {
                let trial = place == 0 && pick.trial;
                let failed = self.own_outcome(at, now, failed, trial, false);
                self.end(host, now, at, epoch, failed, rng);
                reported |= place == 0;
            }
        }
        if !reported && pick.list.first() != Some(last) {
            self.release(host, now, pick, rng);
        }
        if let Some(epoch) = own_epoch.or_else(|| self.unlisted(host, last, [began, now])) {
            let trial = pick.trial && pick.list.first() == Some(last);
            let begun = if trial { pick.begun } else { call.begun };
            let call = self.own_outcome(last, now, CallResult { begun, ..call }, trial, overloaded);
            self.end(host, now, last, epoch, call, rng);
            if call.outcome == Outcome::Success {
                (0..tries.more()).for_each(|_| self.end(host, now, last, epoch, call, rng));
            } else {
                self.watch();
            }
        }
    }

    /// Records what an answer, or its failure to come, shows of the endpoints tried: how long they
    /// took.
    pub(in crate::engine) fn learn<H: Host>(
        &self,
        host: &H,
        now: Moment,
        pick: &Pick,
        tries: Attempts,
        took: Nanos,
        failed: bool,
    ) {
        if !matches!(self.balancer, Balancer::PeakEwma) {
            return;
        }
        let note = |at: usize, failed: bool| {
            let Some(endpoint) = self.endpoint(at) else {
                return;
            };
            let before = Latency(host.load(endpoint.latency));
            let after = before.with(now, took, failed);
            if after != before {
                host.store(endpoint.latency, after.0);
            }
        };
        if tries.before == 0 {
            return note(tries.last, failed);
        }
        // How long each try took is not known: at most the whole. It counts against those that
        // failed.
        let before = usize::try_from(tries.before).unwrap_or(usize::MAX);
        pick.list
            .iter()
            .take(before)
            .filter(|at| *at != tries.last)
            .for_each(|at| note(at, true));
    }

    /// Records an endpoint's report on its load, if there is one; the header that it is in.
    pub(in crate::engine) fn report<H: Host>(
        &self,
        host: &H,
        now: Moment,
        at: usize,
        headers: &HeaderMap,
    ) -> Option<&'static str> {
        let metric = self.config.load_metric.as_deref();
        let (header, utilization) = if let Some(report) = headers.get(orca::HEADER) {
            (orca::HEADER, orca::parse(report, metric))
        } else {
            let report = headers.get(orca::BINARY)?;
            (orca::BINARY, orca::parse_binary(report, metric))
        };
        if let (Some(endpoint), Some(utilization)) = (self.endpoint(at), utilization) {
            host.store(
                endpoint.load,
                Load(host.load(endpoint.load)).with(now, utilization).0,
            );
        }
        Some(header)
    }

    /// Whether endpoints report their load.
    pub(in crate::engine) const fn has_reports(&self) -> bool {
        self.load_report
    }

    /// The endpoint `last` has begun to answer well, and goes on: if that is a trial, it need not
    /// wait for the end.
    pub(in crate::engine) fn begin<H: Host>(
        &self,
        host: &H,
        now: Moment,
        pick: &mut Pick,
        last: Option<usize>,
    ) {
        let first = pick.list.first();
        if pick.trial
            && first == last
            && let (Some(epoch), Some(endpoint)) =
                (pick.epochs.first(), first.and_then(|at| self.endpoint(at)))
            && let Some(breaker) = &endpoint.breaker
        {
            pick.begun = breaker.begin(host, now, *epoch);
            self.look_again();
        }
    }

    /// This VM has changed something itself: its next request sees it.
    pub(super) fn look_again(&self) {
        self.looked.set(Moment::ZERO);
    }

    /// Gives back the permit of a pick whose call ended without an outcome.
    pub(in crate::engine) fn release<H: Host>(
        &self,
        host: &H,
        now: Moment,
        pick: &Pick,
        rng: &Rng,
    ) {
        if let (true, Some(at), Some(epoch)) = (pick.trial, pick.list.first(), pick.epochs.first())
        {
            let call = CallResult {
                begun: pick.begun,
                ..CallResult::IGNORED
            };
            self.end(host, now, at, *epoch, call, rng);
        }
    }

    /// The epoch in which a call counts that the proxy has made of its own accord: a shadow's, or
    /// one that was left to it. Where permits are needed it takes one for the moment, or its outcome
    /// would count as a trial's without a permit. What `began` before the endpoint was taken out, or
    /// came back, shows nothing of it as it is now.
    fn unlisted<H: Host>(&self, host: &H, at: usize, [began, now]: [Moment; 2]) -> Option<u32> {
        let endpoint = self.endpoint(at)?;
        let view = endpoint.view.get();
        match view.availability(now) {
            Availability::Available if began >= view.well_since => Some(view.epoch),
            Availability::Trial if began >= view.out_since => self.acquire(host, &endpoint, now),
            _ => None,
        }
    }

    fn end<H: Host>(
        &self,
        host: &H,
        now: Moment,
        at: usize,
        epoch: u32,
        call: CallResult,
        rng: &Rng,
    ) {
        let slots = self.slots();
        let Some((place, endpoint)) = slots.place(at).zip(slots.named(at)) else {
            return;
        };
        let Some(breaker) = endpoint.breaker.as_ref().filter(|_| !self.is_alone()) else {
            return;
        };
        // What is well costs nothing: without failures there is nothing to end.
        let is_calm = self.is_passive
            && call.outcome == Outcome::Success
            && self.peers.with(|peers| peers.failed(place, now)) == 0
            && endpoint.view.get().availability(now) == Availability::Available;
        if is_calm {
            return;
        }
        // A shadow admits no calls beforehand; without this it would stay open for ever.
        let epoch = if breaker.is_shadow() {
            admitted(breaker.acquire(host, now))
        } else {
            Some(epoch)
        };
        if let Some(epoch) = epoch
            && breaker.end(host, now, epoch, call, rng)
        {
            self.look_again();
        }
    }
}
