//! The places of an upstream's endpoints in a worker.
//!
//! An endpoint keeps its place for as long as it is there. So what is kept by place stays right
//! while others come and go: what peers have done, tables of hashes, the roster. When it is gone
//! its place stays its own until nothing of it is in flight any more in any worker; then a new
//! endpoint may have the place. A request in flight holds a number, which is the place and how
//! often that has changed hands: with the number of an endpoint whose place is another's it finds
//! nothing.

use super::endpoint::Endpoint;
use crate::engine::shared::Shared;
use crate::policy::discovery::MAX_MEMBERS;
use std::rc::Rc;

/// The most places: as many as there may be endpoints, and as many that are gone and still have
/// something in flight. Beyond it these lose their place, and end uncounted.
pub(super) const MOST: usize = 2 * MAX_MEMBERS;

/// Bits of a number that are the place.
const PLACE_BITS: u32 = 16;

/// A place.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    hand: u16,
    pub(super) endpoint: Rc<Endpoint>,
}

/// The places, by number of the place. They are replaced as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(Vec<Slot>);

impl Slots {
    /// How many places there are.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The endpoint at this place.
    pub(super) fn at(&self, place: usize) -> Option<&Rc<Endpoint>> {
        self.0.get(place).map(|slot| &slot.endpoint)
    }

    /// The number of the endpoint at this place.
    pub(super) fn number(&self, place: usize) -> usize {
        let hand = self.0.get(place).map_or(0, |slot| slot.hand);
        place | usize::from(hand) << PLACE_BITS
    }

    /// The place of the endpoint of this number, if that is still its own.
    pub(super) fn place(&self, number: usize) -> Option<usize> {
        let place = number & ((1 << PLACE_BITS) - 1);
        (self.number(place) == number).then_some(place)
    }

    /// The endpoint of this number, if it still has its place.
    pub(super) fn named(&self, number: usize) -> Option<&Rc<Endpoint>> {
        self.at(self.place(number)?)
    }

    /// All, by place: those that are gone too.
    pub(super) fn all(&self) -> impl Iterator<Item = &Rc<Endpoint>> {
        self.0.iter().map(|slot| &slot.endpoint)
    }

    /// The endpoints that are there, with their places.
    pub(super) fn present(&self) -> impl Iterator<Item = (usize, &Rc<Endpoint>)> {
        let all = self.all().enumerate();
        all.filter(|(_, endpoint)| !endpoint.is_gone())
    }

    /// Gives an endpoint the next place.
    pub(super) fn push(&mut self, endpoint: Rc<Endpoint>) {
        self.0.push(Slot { hand: 0, endpoint });
    }

    /// Gives an endpoint a place that another had; that one.
    pub(super) fn hand_over(
        &mut self,
        place: usize,
        endpoint: Rc<Endpoint>,
    ) -> Option<Rc<Endpoint>> {
        let slot = self.0.get_mut(place)?;
        slot.hand = slot.hand.wrapping_add(1);
        Some(std::mem::replace(&mut slot.endpoint, endpoint))
    }
}

/// Endpoints without a place: new ones that wait until all are made, and former ones. An address
/// that comes back finds the metrics that were defined for it, which a host keeps for as long as the
/// VM lives.
#[derive(Debug, Default)]
pub(super) struct Spare(Shared<Shelf>);

/// In the order of their addresses, each with its number in the order in which they came.
#[derive(Debug, Default)]
struct Shelf {
    all: Vec<(Rc<Endpoint>, u64)>,
    count: u64,
}

impl Shelf {
    fn place(&self, address: &str) -> Result<usize, usize> {
        let all = &self.all;
        all.binary_search_by(|(endpoint, _)| endpoint.address.as_str().cmp(address))
    }
}

impl Spare {
    /// Whether there is one of this address.
    pub(super) fn has(&self, address: &str) -> bool {
        self.0.with(|shelf| shelf.place(address).is_ok())
    }

    /// Takes out the one of this address.
    pub(super) fn take(&self, address: &str) -> Option<Rc<Endpoint>> {
        self.0.with(|shelf| {
            let at = shelf.place(address).ok()?;
            Some(shelf.all.remove(at).0)
        })
    }

    /// Adds one; of more than [`MOST`] the one that came first goes.
    pub(super) fn add(&self, endpoint: Rc<Endpoint>) {
        self.0.with(|shelf| {
            shelf.count = shelf.count.saturating_add(1);
            if let Err(at) = shelf.place(&endpoint.address) {
                shelf.all.insert(at, (endpoint, shelf.count));
            }
            if shelf.all.len() > MOST {
                let oldest = shelf.all.iter().enumerate().min_by_key(|(_, it)| it.1);
                if let Some((oldest, _)) = oldest {
                    shelf.all.remove(oldest);
                }
            }
        });
    }
}
