//! Picking the endpoints of a request.

use super::endpoint::{Endpoint, PERMIT_RECHECK, View, admitted};
use super::slots::Slots;
use super::{Attempts, Upstream};
use crate::base::hash::place as place_of;
use crate::base::rng::Rng;
use crate::base::sort;
use crate::base::time::Moment;
use crate::document::{BalancePolicy, Percent};
use crate::host::Host;
use crate::policy::upstream::choice::Cost;
use crate::policy::upstream::maglev::{self, MaglevTable};
use crate::policy::upstream::peak_ewma::Latency;
use crate::policy::upstream::roster::{Pool, Roster, RosterEntry, UNIT};
use crate::policy::upstream::rotation::Rotation;
use crate::policy::upstream::{self, Availability, EndpointList, LIST, choice, peers};
use std::cell::RefCell;
use std::rc::Rc;

/// How endpoints are picked, ready for use.
#[derive(Debug)]
pub(super) enum Balancer {
    RoundRobin(RefCell<Rotation>),
    LeastRequest,
    PeakEwma,
    /// A table for each level.
    ConsistentHash {
        tables: RefCell<Rc<[MaglevTable]>>,
        bounded_load: Option<Percent>,
    },
    Random,
    /// The places in the order of the list.
    First(RefCell<Rc<[usize]>>),
}

impl Balancer {
    /// That of an upstream without endpoints: [`Balancer::fit`] follows.
    pub(super) fn new(config: &BalancePolicy) -> Self {
        match config {
            BalancePolicy::RoundRobin => Self::RoundRobin(RefCell::default()),
            BalancePolicy::LeastRequest => Self::LeastRequest,
            BalancePolicy::PeakEwma => Self::PeakEwma,
            BalancePolicy::Random => Self::Random,
            BalancePolicy::First => Self::First(RefCell::new(Rc::new([]))),
            BalancePolicy::ConsistentHash { bounded_load, .. } => Self::ConsistentHash {
                tables: RefCell::new(Rc::new([])),
                bounded_load: *bounded_load,
            },
        }
    }

    /// Makes ready what depends on the endpoints, which lie in so many levels. `named`: a source
    /// has named them, in no order but that of their addresses.
    pub(super) fn fit(&self, slots: &Slots, levels: usize, named: bool) {
        match self {
            // From a random start again: what each was short of, or beyond, it would not make up
            // for with others.
            Self::RoundRobin(rotation) => {
                if let Ok(mut rotation) = rotation.try_borrow_mut() {
                    *rotation = Rotation::new(slots.len());
                }
            }
            Self::ConsistentHash { tables, .. } => {
                let table = |level| {
                    let endpoints = slots.present();
                    let named = endpoints.filter_map(|(at, e)| {
                        let standing = e.standing.get();
                        (usize::from(standing.level) == level).then_some(())?;
                        Some((e.address.as_str(), u16::try_from(at).ok()?, standing.weight))
                    });
                    MaglevTable::new(named, maglev::SIZE)
                };
                if let Ok(mut tables) = tables.try_borrow_mut() {
                    *tables = (0..levels).map(table).collect();
                }
            }
            Self::First(order) => {
                let mut places: Vec<_> = slots.present().collect();
                if named {
                    sort::by_key(&mut places, |(_, endpoint)| endpoint.address.clone());
                }
                if let Ok(mut order) = order.try_borrow_mut() {
                    *order = places.into_iter().map(|(place, _)| place).collect();
                }
            }
            Self::LeastRequest | Self::PeakEwma | Self::Random => {}
        }
    }
}

/// A choice of endpoints, and what was taken for it. It must be ended exactly once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pick {
    pub(super) list: EndpointList,
    /// Epoch of each listed endpoint's breaker when it was chosen.
    pub(super) epochs: [u32; LIST],
    /// Whether the first holds a half-open permit.
    pub(super) trial: bool,
    /// Whether it asks for one when the request is whole.
    pub(super) pending: bool,
    /// Whether its breaker knows that it answers well.
    pub(super) begun: bool,
}

impl Pick {
    /// Where the request counts as in flight.
    pub(in crate::engine) fn counted(&self) -> Option<usize> {
        self.list.first()
    }

    /// Whether the first asks for a half-open permit when the request is whole.
    pub(in crate::engine) const fn is_pending(&self) -> bool {
        self.pending
    }

    /// Whether the first is on trial.
    pub(in crate::engine) const fn is_trial(&self) -> bool {
        self.trial || self.pending
    }

    /// One try, at the endpoint that is asked first.
    pub(in crate::engine) fn first(&self) -> Option<Attempts> {
        let last = self.list.first()?;
        Some(Attempts::one(last))
    }

    /// How many endpoints are listed.
    pub(in crate::engine) fn listed(&self) -> usize {
        self.list.iter().count()
    }
}

impl Upstream {
    /// Picks endpoints for a request and counts it in flight at the first; `None` if there is none
    /// to use. `hash`: of its key, if it has one. An unfinished request takes no permit of a trial:
    /// it asks when it is `whole`.
    pub(in crate::engine) fn pick<H: Host>(
        &self,
        host: &H,
        now: Moment,
        rng: &Rng,
        hash: Option<u64>,
        whole: bool,
    ) -> Option<Pick> {
        let roster = self.roster(host, now);
        let slots = self.slots();
        // Each round without success marks one endpoint as out, so there are at most as many rounds
        // as trials in the sample.
        for _ in 0..=upstream::SAMPLE {
            let list = self.list(host, now, &slots, &roster, rng, hash)?;
            let first = slots.at(list.first()?)?;
            let mut pick = Pick::default();
            for (epoch, at) in pick.epochs.iter_mut().zip(list.iter()) {
                let view = slots.at(at).map(|endpoint| endpoint.view.get());
                *epoch = view.unwrap_or_default().epoch_at(now);
                pick.list.push(slots.number(at));
            }
            pick.pending = !whole && first.availability(now) == Availability::Trial;
            if whole && first.availability(now) == Availability::Trial {
                match self.acquire(host, first, now) {
                    Some(epoch) => {
                        pick.trial = true;
                        if let Some(e) = pick.epochs.first_mut() {
                            *e = epoch;
                        }
                    }
                    // In a panic it is used all the same; its outcome then counts for nothing.
                    None if !roster.panic => continue,
                    None => {}
                }
            }
            // Counted now: the next choice must see it.
            self.shift(host, first, true);
            return Some(pick);
        }
        None
    }

    /// The request is whole: a pick that waited for that asks for its permit. Without one its
    /// outcome counts for nothing, as the endpoint has the request already.
    pub(in crate::engine) fn try_pending<H: Host>(&self, host: &H, now: Moment, pick: &mut Pick) {
        if std::mem::take(&mut pick.pending)
            && let Some(first) = pick.list.first().and_then(|at| self.endpoint(at))
            && let Some(epoch) = self.acquire(host, &first, now)
        {
            pick.trial = true;
            if let Some(first) = pick.epochs.first_mut() {
                *first = epoch;
            }
        }
    }

    /// Endpoints in the policy's order, by their places.
    fn list<H: Host>(
        &self,
        host: &H,
        now: Moment,
        slots: &Slots,
        roster: &Roster,
        rng: &Rng,
        hash: Option<u64>,
    ) -> Option<EndpointList> {
        // The upper bits: the lower ones choose the slot. One key is to stay in one level and zone.
        let draw = match hash {
            _ if roster.is_simple() => 0,
            Some(hash) => hash >> 48,
            None => rng.bits() >> 48,
        };
        let pool = roster.pool(u16::try_from(draw).unwrap_or(0))?;
        let entries = roster.entries(pool);
        let endpoint = |at: usize| slots.at(at);
        let in_flight = |at| endpoint(at).map_or(0, |e| e.in_flight.load(host, now));
        // With breakers these take out what fails, and what fails soon counts as in flight for as
        // long as others take; see `give_up` of the chain.
        let failed = |at| match self.has_breakers {
            true => 0,
            false => u64::from(self.peers.with(|peers| peers.failed(at, now))),
        };
        let open =
            |at: usize| endpoint(at).is_some_and(|e| e.availability(now) == Availability::Trial);
        let mut list = match (&self.balancer, hash) {
            (Balancer::LeastRequest, _) => {
                let call = u64::from(peers::CALL);
                let cost = |at| {
                    let load = in_flight(at).saturating_mul(call);
                    Cost::of(load.saturating_add(failed(at)))
                };
                choice::cheapest(entries, &open, &cost, rng)
            }
            (Balancer::PeakEwma, _) => {
                let latency = |at| Latency(endpoint(at).map_or(0, |e| host.load(e.latency)));
                let load =
                    |at| in_flight(at).saturating_add(failed(at).div_ceil(peers::CALL.into()));
                let cost = |at| latency(at).cost(now, load(at));
                choice::cheapest(entries, &open, &cost, rng)
            }
            (Balancer::RoundRobin(rotation), _) => match rotation.try_borrow_mut() {
                Ok(mut rotation) => {
                    rotation.start(entries, rng);
                    rotation.next(entries, &open, rng)
                }
                // It is not held over a host call, and so always free.
                Err(_) => choice::random(entries, &open, rng),
            },
            (
                Balancer::ConsistentHash {
                    tables,
                    bounded_load,
                },
                Some(hash),
            ) => {
                let tables = Rc::clone(&*tables.try_borrow().ok()?);
                let table = tables.get(usize::from(pool.level))?;
                let room = |entry: &RosterEntry| {
                    let failed = failed(entry.at).div_ceil(peers::CALL.into());
                    let endpoint = slots.at(entry.at);
                    endpoint.is_some_and(|endpoint| {
                        self.has_room(host, pool, entry, endpoint, (hash, failed), *bounded_load)
                    })
                };
                table.pick(hash, roster, pool, &open, &room)
            }
            (Balancer::First(order), _) => {
                let order = Rc::clone(&*order.try_borrow().ok()?);
                let entries = order.iter().filter_map(|at| roster.entry(pool, *at));
                choice::first(entries, &open)
            }
            (Balancer::Random | Balancer::ConsistentHash { .. }, _) => {
                choice::random(entries, &open, rng)
            }
        };
        if !list.is_full() && !roster.is_simple() {
            roster
                .others(pool, rng)
                .take(LIST)
                .for_each(|at| list.push(at));
        }
        Some(list)
    }

    /// Whether the owner of a key may have it: it is not yet too busy, what has `failed` there
    /// lately included, and, while it ramps, the key is one of those that have come to it.
    fn has_room<H: Host>(
        &self,
        host: &H,
        pool: &Pool,
        entry: &RosterEntry,
        endpoint: &Endpoint,
        (hash, failed): (u64, u64),
        bound: Option<Percent>,
    ) -> bool {
        let full = endpoint.weight().saturating_mul(UNIT);
        // Other bits for each endpoint, the same in all workers, so that keys which pass it over are not those that pass
        // over the next.
        let place =
            hash.rotate_left(20) ^ endpoint.in_flight.id().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if entry.weight < full && place_of(place, full) >= entry.weight {
            return false;
        }
        let Some(bound) = bound else { return true };
        let all = self.all_in_flight.as_ref().map_or(0, |all| all.value(host));
        // This pool's part of them.
        let all = all.saturating_mul(pool.share.into()) >> 16;
        maglev::has_room(
            endpoint.in_flight.value(host).saturating_add(failed),
            all,
            entry.weight,
            pool.weight,
            bound,
        )
    }

    /// Counts a request in at this endpoint, or out. A bounded load has to know it at once.
    fn shift<H: Host>(&self, host: &H, endpoint: &Endpoint, more: bool) {
        let exact = self.all_in_flight.is_some();
        let gauges = std::iter::once(&endpoint.in_flight).chain(&self.all_in_flight);
        gauges.for_each(|gauge| gauge.shift(host, more, exact));
    }

    /// The override header's value.
    pub(in crate::engine) fn addresses(&self, pick: &Pick) -> Vec<u8> {
        let mut value = Vec::with_capacity(64);
        let slots = self.slots();
        for endpoint in pick.list.iter().filter_map(|at| slots.named(at)) {
            if !value.is_empty() {
                value.push(b',');
            }
            value.extend_from_slice(endpoint.address.as_bytes());
        }
        value
    }

    /// Asks for a half-open permit; without one the endpoint is out for a while.
    pub(super) fn acquire<H: Host>(
        &self,
        host: &H,
        endpoint: &Endpoint,
        now: Moment,
    ) -> Option<u32> {
        let breaker = endpoint.breaker.as_ref()?;
        self.look_again();
        if let Some(epoch) = admitted(breaker.acquire(host, now)) {
            return Some(epoch);
        }
        let trial_at = now.plus(PERMIT_RECHECK);
        endpoint.view.set(View {
            availability: Availability::Out,
            trial_at,
            ..endpoint.view.get()
        });
        // The roster still has it: a request that picks it finds it out. The next roster has what
        // it may be by then.
        self.due.set(self.due.get().min(trial_at));
        None
    }

    /// Takes a request out of flight at this endpoint.
    pub(in crate::engine) fn leave<H: Host>(&self, host: &H, at: usize) {
        if let Some(endpoint) = self.endpoint(at) {
            self.shift(host, &endpoint, false);
        }
    }
}
