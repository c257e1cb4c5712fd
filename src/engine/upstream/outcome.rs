//! What an answer shows of the endpoints that the proxy tried.

use super::Upstream;
use super::endpoint::admitted;
use super::pick::{Balancer, Pick};
use crate::base::headers::HeaderMap;
use crate::base::rng::Rng;
use crate::base::time::{Moment, Nanos};
use crate::host::Host;
use crate::policy::Outcome;
use crate::policy::circuit_breaker::CallResult;
use crate::policy::upstream::Availability;
use crate::policy::upstream::orca::{self, Load};
use crate::policy::upstream::peak_ewma::Latency;
use crate::policy::upstream::peers::Try;

/// The endpoints that the proxy tried of a [`Pick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// Index of the endpoint that it tried last.
    pub last: usize,
    /// How many tries there were before. They failed, or there would have been no next one.
    pub before: u64,
}

impl Upstream {
    /// Whether it matters which endpoint answered.
    pub(in crate::engine) const fn needs_endpoint(&self) -> bool {
        self.has_breakers || self.load_report || matches!(self.balancer, Balancer::PeakEwma)
    }

    /// Whether it matters which endpoint failed, even where it does not matter which one answered.
    /// Where endpoints have breakers, these take out what fails; without, the choice has to.
    pub(in crate::engine) const fn minds_failures(&self) -> bool {
        !self.has_breakers && matches!(self.balancer, Balancer::LeastRequest)
    }

    /// The endpoint tried, if the answer's attempt count shows that there was but one try. On a bad
    /// answer the count is not enough: the address shows which endpoint is to blame.
    pub(in crate::engine) fn first_try(
        &self,
        pick: &Pick,
        headers: &HeaderMap,
    ) -> Option<Attempts> {
        let once = self.config.attempt_count && headers.get("x-envoy-attempt-count") == Some(b"1");
        Some(Attempts {
            last: pick.list.first().filter(|_| once)?,
            before: 0,
        })
    }

    /// The endpoints tried, by the address of the last one, or else by the number of tries, which
    /// costs a host call: it is made only where the address is of no endpoint on the list.
    pub(in crate::engine) fn attempts(
        &self,
        pick: &Pick,
        address: Option<&[u8]>,
        count: impl FnOnce() -> Option<u64>,
    ) -> Option<Attempts> {
        let is = |at: &usize| {
            self.endpoint(*at)
                .is_some_and(|e| Some(e.address.as_bytes()) == address)
        };
        if let Some((before, last)) = pick.list.iter().enumerate().find(|(_, at)| is(at)) {
            return Some(Attempts {
                last,
                before: before as u64,
            });
        }
        let count = count();
        let before = count.unwrap_or(0).saturating_sub(1);
        if let Some(last) = (0..self.endpoints.len()).find(is) {
            // The proxy left the list: at its end, or because it does not follow it (a shadow).
            return Some(Attempts { last, before });
        }
        // None answered: the last try was the last of the list that there was.
        let last = pick
            .list
            .iter()
            .take(usize::try_from(count?).unwrap_or(usize::MAX))
            .last()?;
        Some(Attempts { last, before })
    }

    /// Counts how the tries ended, for the comparison of the endpoints: the last one, and those
    /// before it.
    pub(in crate::engine) fn compare(
        &self,
        now: Moment,
        pick: &Pick,
        attempts: Attempts,
        last: Try,
        earlier: Try,
    ) {
        let before = usize::try_from(attempts.before).unwrap_or(usize::MAX);
        self.peers.with(|peers| {
            let earlier_ones = pick.list.iter().take(before);
            for at in earlier_ones.filter(|at| *at != attempts.last) {
                peers.record(at, now, earlier);
            }
            peers.record(attempts.last, now, last);
        });
    }

    /// Whether the second endpoint of the list answers faster than a try may take.
    pub(in crate::engine) fn has_faster_next(&self, pick: &Pick, now: Moment) -> bool {
        let next = pick.list.iter().nth(1);
        next.is_some_and(|next| !self.peers.with(|peers| peers.is_slow(next, now)))
    }

    /// What counts of an outcome at an endpoint: a failure that its peers share does not.
    fn own_outcome(&self, at: usize, now: Moment, call: CallResult) -> CallResult {
        let shared = call.outcome == Outcome::Failure
            && self.peers.with(|peers| !peers.is_own_fault(at, now));
        if shared { CallResult::IGNORED } else { call }
    }

    /// Records how the tries ended.
    pub(in crate::engine) fn record<H: Host>(
        &self,
        host: &H,
        now: Moment,
        pick: &Pick,
        tries: Option<Attempts>,
        call: CallResult,
        rng: &Rng,
    ) {
        let Some(Attempts { last, before }) = tries else {
            return self.release(host, now, pick, rng);
        };
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
                let failed = if place == 0 && pick.trial {
                    failed
                } else {
                    self.own_outcome(at, now, failed)
                };
                self.end(host, now, at, epoch, failed, rng);
                reported |= place == 0;
            }
        }
        if !reported && pick.list.first() != Some(last) {
            self.release(host, now, pick, rng);
        }
        if let Some(epoch) = own_epoch.or_else(|| self.unlisted(host, last, now)) {
            let trial = pick.trial && pick.list.first() == Some(last);
            let call = if trial {
                call
            } else {
                self.own_outcome(last, now, call)
            };
            self.end(host, now, last, epoch, call, rng);
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

    /// Records an endpoint's report on its load.
    pub(in crate::engine) fn report<H: Host>(
        &self,
        host: &H,
        now: Moment,
        at: usize,
        report: &[u8],
    ) {
        if let (Some(endpoint), Some(utilization)) = (self.endpoint(at), orca::parse(report)) {
            host.store(
                endpoint.load,
                Load(host.load(endpoint.load)).with(now, utilization).0,
            );
        }
    }

    /// Whether endpoints report their load.
    pub(in crate::engine) const fn has_reports(&self) -> bool {
        self.load_report
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
            self.end(host, now, at, *epoch, CallResult::IGNORED, rng);
        }
    }

    /// The epoch in which a call counts that the proxy has made of its own accord (a shadow's).
    /// Where permits are needed it takes one for the moment, or its outcome would count as a
    /// trial's without a permit.
    fn unlisted<H: Host>(&self, host: &H, at: usize, now: Moment) -> Option<u32> {
        let endpoint = self.endpoint(at)?;
        let view = endpoint.view.get();
        match view.availability(now) {
            Availability::Available => Some(view.epoch),
            Availability::Trial => self.acquire(host, endpoint, now),
            Availability::Out => None,
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
        let Some(breaker) = self.endpoint(at).and_then(|e| e.breaker.as_ref()) else {
            return;
        };
        // A shadow admits no calls beforehand; without this it would stay open for ever.
        let epoch = if breaker.is_shadow() {
            admitted(breaker.acquire(host, now))
        } else {
            Some(epoch)
        };
        if let Some(epoch) = epoch {
            breaker.end(host, now, epoch, call, rng);
        }
    }
}
