//! Counts by key: of a client's requests in flight, of its places, of its retries.

/// Counts by key, in the order of the keys: a few hundred at the most, which the caller sees to, by
/// what it counts or by [`KeyMap::add_bounded`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyMap(Vec<(u32, u32)>);

impl KeyMap {
    /// No counts.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    fn place(&self, key: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&key, |(known, _)| *known)
    }

    /// A key's count.
    #[must_use]
    pub fn get(&self, key: u32) -> u32 {
        let at = self.place(key).ok();
        at.and_then(|at| self.0.get(at))
            .map_or(0, |(_, count)| *count)
    }

    /// Adds to a key's count; what it was before.
    pub fn add(&mut self, key: u32, count: u32) -> u32 {
        match self.place(key) {
            Ok(at) => self.0.get_mut(at).map_or(0, |(_, known)| {
                let before = *known;
                *known = known.saturating_add(count);
                before
            }),
            Err(at) => {
                self.0.insert(at, (key, count));
                0
            }
        }
    }

    /// Adds to a key's count, and keeps at most so many keys: a new one for which there is no room
    /// takes as much from each that is there instead (Misra and Gries, "Finding repeated elements",
    /// 1982). No count is too large by it, nor too small by more than all counts together divided
    /// by the number of keys kept; and the work of it was paid for by what was added before.
    pub fn add_bounded(&mut self, key: u32, count: u32, most: usize) {
        if self.0.len() < most || self.place(key).is_ok() {
            self.add(key, count);
            return;
        }
        let least = self.0.iter().map(|(_, known)| *known).min().unwrap_or(0);
        let taken = least.min(count);
        self.reduce(|known| known.saturating_sub(taken));
        if count > taken && self.0.len() < most {
            self.add(key, count.saturating_sub(taken));
        }
    }

    /// Takes so much from a key's count, as far as there is any.
    pub fn subtract(&mut self, key: u32, count: u32) {
        if let Ok(at) = self.place(key)
            && let Some((_, known)) = self.0.get_mut(at)
        {
            *known = known.saturating_sub(count);
            if *known == 0 {
                self.0.remove(at);
            }
        }
    }

    /// Takes one from a key's count; what is left of it, or `None` if there was none.
    pub fn take(&mut self, key: u32) -> Option<u32> {
        let left = self.get(key).checked_sub(1)?;
        self.subtract(key, 1);
        Some(left)
    }

    fn reduce(&mut self, to: impl Fn(u32) -> u32) {
        self.0.iter_mut().for_each(|(_, known)| *known = to(*known));
        self.0.retain(|(_, known)| *known > 0);
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Keys and counts, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }

    /// The key with the largest count, and that count.
    #[must_use]
    pub fn largest(&self) -> Option<(u32, u32)> {
        self.iter().max_by_key(|(_, count)| *count)
    }

    /// How many keys there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use std::collections::BTreeMap;

    #[test]
    fn counts_are_those_of_a_plain_map() {
        let (mut map, mut model) = (KeyMap::new(), BTreeMap::<u32, u32>::new());
        let rng = Rng::new(3);
        for _ in 0..20_000 {
            let key = u32::try_from(rng.below(40)).unwrap();
            let known = model.get(&key).copied().unwrap_or(0);
            match rng.below(5) {
                0 | 1 => assert_eq!(map.add(key, 1), known),
                2 => assert_eq!(map.take(key), known.checked_sub(1)),
                3 => map.subtract(key, 2),
                _ => map.add_bounded(key, 3, 1_000),
            }
            let now = map.get(key);
            let wanted = [
                known + 1,
                known.saturating_sub(1),
                known.saturating_sub(2),
                known + 3,
            ];
            assert!(wanted.contains(&now));
            model.insert(key, now);
            model.retain(|_, count| *count > 0);
            assert_eq!(
                map.iter().collect::<Vec<_>>(),
                model.iter().map(|(k, c)| (*k, *c)).collect::<Vec<_>>()
            );
            assert_eq!(
                map.largest().map(|(_, count)| count),
                model.values().max().copied()
            );
        }
    }

    /// Whatever order they come in: what is heavy stays, at no more than its true count.
    #[test]
    fn among_too_many_keys_the_heavy_ones_are_known() {
        for seed in 0..50 {
            let rng = Rng::new(seed);
            let (mut map, mut truth, mut all) = (KeyMap::new(), BTreeMap::<u32, u32>::new(), 0);
            for _ in 0..5_000 {
                let key = if rng.below(4) == 0 {
                    7
                } else {
                    u32::try_from(rng.below(100_000)).unwrap()
                };
                let count = 1 + u32::try_from(rng.below(2)).unwrap();
                map.add_bounded(key, count, 16);
                *truth.entry(key).or_default() += count;
                all += count;
                assert!(map.len() <= 16);
            }
            for (key, count) in truth {
                let known = map.get(key);
                assert!(
                    known <= count && known + all / 17 >= count,
                    "{key}: {known} of {count}"
                );
            }
        }
    }
}
