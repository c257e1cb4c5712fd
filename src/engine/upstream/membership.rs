//! Endpoints that come and go while the worker runs.

use super::Upstream;
use super::endpoint::{Endpoint, Standing, id};
use super::layout::{Listed, layout};
use super::slots::{MOST, Slots, Spare};
use crate::base::time::{Moment, Nanos};
use crate::engine::discovery::{Discovery, changes_of_members, with_members_of};
use crate::host::Host;
use crate::policy::discovery::Verdict;
use crate::policy::discovery::record::{Known, SourceState};
use crate::policy::upstream::roster::Rules;
use crate::policy::upstream::slow_start;
use std::cell::Cell;
use std::rc::Rc;

/// What a worker keeps of an upstream whose endpoints a source names.
#[derive(Debug)]
pub(super) struct Following {
    discovery: Rc<Discovery>,
    /// The version of the endpoints that it has; 0: none are known yet.
    version: Cell<u64>,
    /// Up to which change of the endpoints it has read the record.
    seen: Cell<Option<u64>>,
    /// When it last made endpoints, with more still to make.
    made: Cell<Moment>,
    spare: Spare,
    /// Whether some are gone and may still have something in flight.
    leaving: Cell<bool>,
}

/// How many endpoints are made at once while requests wait: each defines some metrics, which costs a
/// host most in the first worker that does.
const MADE_AT_ONCE: usize = 32;

/// The same in a tick.
const MADE_IN_A_TICK: usize = 256;

/// How long requests have the worker for themselves in between.
const PAUSE: Nanos = Nanos::from_millis(10);

/// What became of a look at the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    /// The endpoints are the same.
    Same,
    /// Some of those that are new are made; the others are to follow.
    InPart,
    /// There are others now.
    Changed,
}

/// How a source does, for health documents.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct SourceView {
    pub(in crate::engine) state: SourceState,
    /// How old what it said is.
    pub(in crate::engine) age: Nanos,
    /// Whether it ever said anything that counts.
    pub(in crate::engine) is_known: bool,
}

impl Following {
    pub(super) fn new(discovery: &Rc<Discovery>) -> Self {
        Self {
            discovery: Rc::clone(discovery),
            version: Cell::new(0),
            seen: Cell::new(None),
            made: Cell::new(Moment::ZERO),
            spare: Spare::default(),
            leaving: Cell::new(false),
        }
    }
}

impl Upstream {
    /// The source that names its endpoints, for who asks it.
    pub(in crate::engine) fn discovery(&self) -> Option<&Rc<Discovery>> {
        Some(&self.following.as_ref()?.discovery)
    }

    /// How its source does, if it has one.
    pub(in crate::engine) fn source(&self, now: Moment) -> Option<SourceView> {
        let following = self.following.as_ref()?;
        let (state, age) = following.discovery.state(now);
        Some(SourceView {
            state,
            age,
            is_known: following.version.get() > 0,
        })
    }

    /// What its source says of all endpoints.
    pub(in crate::engine) fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        let slots = self.slots();
        let used = slots.present().map(|(_, it)| it.standing.get());
        let used = used.filter(|standing| standing.weight > 0);
        let verdicts: Vec<_> = used.map(|standing| standing.verdict).collect();
        verdicts.into_iter()
    }

    /// Whether it has more than one endpoint, or may get them.
    pub(in crate::engine) fn may_have_several(&self) -> bool {
        self.following.is_some() || self.config.endpoints.len() > 1
    }

    /// The version of its endpoints; it moves when others come or go.
    pub(in crate::engine) fn version(&self) -> u64 {
        let following = self.following.as_ref();
        following.map_or(0, |following| following.version.get())
    }

    /// The addresses of its endpoints.
    pub(in crate::engine) fn present(&self) -> Vec<String> {
        let slots = self.slots();
        let present = slots.present();
        present
            .map(|(_, endpoint)| endpoint.address.clone())
            .collect()
    }

    /// Whether it is not known who its endpoints are: then the proxy chooses among its own.
    pub(in crate::engine) fn is_unknown<H: Host>(&self, host: &H, now: Moment) -> bool {
        let Some(following) = &self.following else {
            return self.config.endpoints.is_empty();
        };
        if following.version.get() == 0 {
            drop(self.roster(host, now));
        }
        following.version.get() == 0
    }

    /// Reads the record if the endpoints have changed since; `changes`: the counter of changes, as
    /// it was read before.
    pub(super) fn follow_changes<H: Host>(&self, host: &H, now: Moment, changes: u64) {
        let Some(following) = &self.following else {
            return;
        };
        let moved = Some(changes_of_members(changes));
        if following.seen.get() == moved || following.made.get().is_within(PAUSE, now) {
            return;
        }
        // Whoever begins has no requests yet.
        let begins = following.seen.get().is_none() && following.version.get() == 0;
        let most = if begins { usize::MAX } else { MADE_AT_ONCE };
        let followed = self.follow(host, now, following, most);
        if followed != Followed::InPart {
            following.seen.set(moved);
            self.seen_changes
                .set(with_members_of(self.seen_changes.get(), changes));
        }
        if followed == Followed::Changed {
            self.build(host, now);
        }
    }

    /// The breakers are known as of this reading of the counter of changes.
    pub(super) fn see_breakers(&self, changes: u64) {
        let seen = self.seen_changes.get();
        self.seen_changes.set(match self.following {
            Some(_) => with_members_of(changes, seen),
            None => changes,
        });
    }

    /// Reads the record in any case: a VM may have died between a change and the note of it. And
    /// lets go of gauges in which nothing is left.
    pub(in crate::engine) fn follow_source<H: Host>(&self, host: &H, now: Moment) {
        let Some(following) = &self.following else {
            return;
        };
        if self.follow(host, now, following, MADE_IN_A_TICK) == Followed::Changed {
            self.build(host, now);
        }
        if following.leaving.get() {
            self.watch_gauges(host);
        }
    }

    /// Takes the endpoints out of the record if it has others. A record that is gone, or was
    /// overwritten, takes none away. At most so many are made at once; all change at once, when
    /// all are made.
    fn follow<H: Host>(
        &self,
        host: &H,
        now: Moment,
        following: &Following,
        most: usize,
    ) -> Followed {
        let (bytes, status) = following.discovery.read(host, now);
        if status.version == 0 || status.version == following.version.get() {
            return Followed::Same;
        }
        let known = Known::decode(&bytes);
        if known.status.version != status.version {
            return Followed::Same;
        }
        following.discovery.knows(known.members.len());
        let slots = self.slots();
        let mut has = vec![false; known.members.len()];
        let places = slots
            .all()
            .filter_map(|it| known.members.place(&it.address));
        for place in places {
            if let Some(has) = has.get_mut(place) {
                *has = true;
            }
        }
        let members = known.members.members().iter().zip(&has);
        let mut lacking = members.filter(|(it, has)| !**has && !following.spare.has(&it.address));
        for (member, _) in lacking.by_ref().take(most) {
            let address = &member.address;
            let new = Endpoint::new(&self.model, address, Standing::GONE, host);
            following.spare.add(Rc::new(new));
        }
        if lacking.next().is_some() {
            following.made.set(now);
            return Followed::InPart;
        }
        self.take_members(host, now, &known, &has, following);
        following.version.set(status.version);
        Followed::Changed
    }

    /// Has these endpoints from now on, of which those that it has not had are spare ones.
    fn take_members<H: Host>(
        &self,
        host: &H,
        now: Moment,
        known: &Known,
        has: &[bool],
        following: &Following,
    ) {
        let members = known.members.members();
        let listed: Vec<_> = members
            .iter()
            .map(|it| Listed {
                weight: it.weight,
                priority: it.priority,
                zone: it.zone.as_ref(),
            })
            .collect();
        let (rules, lies) = layout(&self.config, &listed);
        let standing = |at: usize| {
            let (member, lie) = members.get(at).zip(lies.get(at))?;
            Some(Standing {
                weight: member.weight,
                level: lie.0,
                zone: lie.1,
                first_seen: *known.first_seen.get(at)?,
                verdict: member.verdict,
                is_gone: false,
            })
        };
        let mut slots = Slots::clone(&self.slots());
        let mut changed = Vec::new();
        for (place, endpoint) in slots.all().enumerate() {
            let at = known.members.place(&endpoint.address);
            let standing = at.and_then(standing).unwrap_or(Standing::GONE);
            let before = endpoint.standing.replace(standing);
            if before.is_gone != standing.is_gone {
                self.peers.with(|peers| peers.forget(place));
                endpoint.note_gone(host);
            }
            if standing.differs(before) {
                changed.push(Rc::clone(endpoint));
            }
        }
        let is_free =
            |endpoint: &Endpoint| endpoint.is_gone() && endpoint.in_flight.is_settled(host);
        let mut next = 0usize;
        for (at, member) in members.iter().enumerate() {
            let (Some(false), Some(standing)) = (has.get(at), standing(at)) else {
                continue;
            };
            let Some(endpoint) = following.spare.take(&member.address) else {
                continue;
            };
            endpoint.standing.set(standing);
            changed.push(Rc::clone(&endpoint));
            let free = slots.all().skip(next).position(|it| is_free(it));
            let free = free.map(|past| next.saturating_add(past));
            next = free.map_or(slots.len(), |place| place.saturating_add(1));
            match free.or_else(|| self.taken_back(host, &slots)) {
                Some(place) => {
                    let former = slots.hand_over(place, endpoint);
                    former.into_iter().for_each(|it| following.spare.add(it));
                    self.peers.with(|peers| peers.forget(place));
                }
                None => slots.push(endpoint),
            }
        }
        self.install(slots, rules, true);
        self.watch_gauges(host);
        // Their own readings count as those of the last refresh: what has changed since then the
        // next one finds.
        let (changes, alone) = (self.seen_changes.get(), self.is_alone());
        for endpoint in changed {
            endpoint.refresh(host, now, changes, alone, &mut []);
        }
    }

    /// The place of an endpoint that is gone, when there is no room for another: what this worker
    /// has in flight there counts no more.
    fn taken_back<H: Host>(&self, host: &H, slots: &Slots) -> Option<usize> {
        if slots.len() < MOST {
            return None;
        }
        let (place, endpoint) = slots.all().enumerate().find(|(_, it)| it.is_gone())?;
        endpoint.in_flight.abandon(host);
        Some(place)
    }

    /// Has the endpoints that stand in the configuration.
    pub(super) fn take_list<H: Host>(&self, host: &H) {
        let config = &self.config;
        let listed: Vec<_> = config
            .endpoints
            .iter()
            .map(|it| Listed {
                weight: it.weight,
                priority: it.priority,
                zone: it.zone.as_ref(),
            })
            .collect();
        let (rules, lies) = layout(config, &listed);
        let ids = || config.endpoints.iter().map(|it| id(&it.address));
        let seen = config
            .slow_start
            .and_then(|_| slow_start::first_seen(host, &config.name, ids, host.monotonic()));
        let mut slots = Slots::default();
        for (endpoint, (level, zone)) in config.endpoints.iter().zip(lies) {
            let address = &endpoint.address;
            let seen = seen.as_ref().and_then(|seen| seen.of(id(address)));
            let standing = Standing {
                weight: endpoint.weight,
                level,
                zone,
                first_seen: seen.unwrap_or(Moment::ZERO),
                verdict: Verdict::Healthy,
                is_gone: false,
            };
            slots.push(Rc::new(Endpoint::new(&self.model, address, standing, host)));
        }
        self.install(slots, rules, false);
        self.watch_gauges(host);
    }

    /// Puts all in place that depends on who the endpoints are. `named`: by a source.
    fn install(&self, slots: Slots, rules: Rules, named: bool) {
        self.balancer.fit(&slots, rules.zones.len(), named);
        self.peers.with(|peers| peers.resize(slots.len()));
        self.alone
            .set(named && slots.present().filter(|(_, it)| it.weight() > 0).count() < 2);
        if let Ok(mut current) = self.rules.try_borrow_mut() {
            *current = rules;
        }
        if let Ok(mut current) = self.slots.try_borrow_mut() {
            *current = Rc::new(slots);
        }
    }

    /// Reports what is in flight at the endpoints that are there, and at those that are gone for as
    /// long as anything is: should a VM be lost meanwhile, somebody has to correct it.
    fn watch_gauges<H: Host>(&self, host: &H) {
        let slots = self.slots();
        let mut leaving = false;
        let watched = slots.all().filter(|endpoint| {
            let watched = !endpoint.is_gone() || !endpoint.in_flight.is_settled(host);
            leaving |= watched && endpoint.is_gone();
            watched
        });
        let gauges: Vec<_> = watched
            .map(|endpoint| Rc::clone(&endpoint.in_flight))
            .collect();
        self.in_flight
            .watch(gauges.into_iter().chain(self.all_in_flight.clone()));
        if let Some(following) = &self.following {
            following.leaving.set(leaving);
        }
    }
}
