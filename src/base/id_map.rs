//! A map by ascending numbers, such as those of a host's contexts.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// How many values have a place that their number alone leads to.
const NEAR: usize = 256;

/// The map. Ascending numbers that are alive together seldom share their last bits: most have a
/// place of their own, which takes a few instructions to find. A hash map holds those whose place
/// is taken.
#[derive(Debug)]
pub struct IdMap<V> {
    /// Empty until there is a first value: the module would otherwise contain the empty places.
    near: Vec<Option<(u32, V)>>,
    far: HashMap<u32, V, BuildHasherDefault<Spread>>,
}

impl<V> IdMap<V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            near: Vec::new(),
            far: HashMap::with_hasher(BuildHasherDefault::new()),
        }
    }

    /// The value of `id`.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&V> {
        match self.near.get(place(id)) {
            Some(Some((known, value))) if *known == id => Some(value),
            _ if self.far.is_empty() => None,
            _ => self.far.get(&id),
        }
    }

    /// Sets the value of `id`; the former one, if there was one.
    pub fn insert(&mut self, id: u32, value: V) -> Option<V> {
        if self.near.is_empty() {
            self.near.resize_with(NEAR, || None);
        }
        let former = self.remove(id);
        match self.near.get_mut(place(id)) {
            Some(free @ None) => *free = Some((id, value)),
            // Nothing is replaced here: what was there is removed.
            _ => drop(self.far.insert(id, value)),
        }
        former
    }

    /// Takes the value of `id` out.
    pub fn remove(&mut self, id: u32) -> Option<V> {
        match self.near.get_mut(place(id)) {
            Some(place) if place.as_ref().is_some_and(|(known, _)| *known == id) => {
                place.take().map(|(_, value)| value)
            }
            _ if self.far.is_empty() => None,
            _ => self.far.remove(&id),
        }
    }
}

impl<V> Default for IdMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

const fn place(id: u32) -> usize {
    // Lossless: only the last bits are kept.
    id as usize % NEAR
}

/// Spreads ascending numbers: no client chooses them, so nothing stronger is needed.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_map(
            steps in proptest::collection::vec(
                (0u32..4, 0u32..6, any::<u16>(), any::<bool>()), 0..200
            )
        ) {
            let (mut map, mut model) = (IdMap::new(), HashMap::new());
            for (round, low, value, add) in steps {
                // Few places, each wanted by several.
                let id = round * 256 + low;
                if add {
                    prop_assert_eq!(map.insert(id, value), model.insert(id, value));
                } else {
                    prop_assert_eq!(map.remove(id), model.remove(&id));
                }
                for id in (0..4).flat_map(|round| (0..6).map(move |low| round * 256 + low)) {
                    prop_assert_eq!(map.get(id), model.get(&id));
                }
            }
        }
    }
}
