//! One walk over a header map for all that is looked for in it.
//!
//! The names that a configuration asks for are few, and known beforehand; a request may have many
//! more. So the map is walked once, and what may have one of these names is noted ([`Kept`]); each
//! look-up then goes over the notes ([`Headers`]). A name that was not asked for beforehand is still
//! found, by a walk of its own.

use super::{HeaderMap, Pairs, is_name};
use std::slice;

/// Names that are looked for in every request: by the length and two letters of a name it is known,
/// without a comparison, that it is none of them. It errs on one side only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameFilter([u64; 4]);

impl NameFilter {
    /// Adds a name, in any case.
    pub fn add(&mut self, name: &str) {
        let (word, bit) = place(name.as_bytes());
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    /// Whether the name, in any case, may be one of those that were added. `false` is certain.
    #[must_use]
    pub fn may_hold(&self, name: &[u8]) -> bool {
        let (word, bit) = place(name);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }
}

/// The place of a name among 256: of names that differ in case alone it is the same.
fn place(name: &[u8]) -> (usize, u64) {
    let letter = |byte: Option<&u8>| usize::from(byte.copied().unwrap_or(0) | 0x20);
    let (first, last) = (letter(name.first()), letter(name.last()));
    let at = name.len() ^ (last << 1) ^ (first << 4);
    ((at >> 6) & 3, 1 << (at & 63))
}

/// Pairs that are noted. A request with more of them is walked for each look-up.
const MOST: usize = 16;

/// A pair of name and value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// Room for what a walk over a header map notes. It is made where it stays, and then filled: to be
/// handed over it would have to be copied.
#[derive(Debug, Default)]
pub struct Kept<'a>([Pair<'a>; MOST]);

impl<'a> Kept<'a> {
    /// Walks the map, and notes the pairs whose names may be among `names`.
    pub fn walk(&mut self, map: &'a HeaderMap, names: &'a NameFilter) -> Headers<'_> {
        let mut rooms = self.0.iter_mut();
        let (mut count, mut fits) = (0usize, true);
        for pair in map.iter().filter(|(name, _)| names.may_hold(name)) {
            let Some(room) = rooms.next() else {
                fits = false;
                break;
            };
            *room = pair;
            count = count.saturating_add(1);
        }
        let notes = self.0.get(..count).filter(|_| fits);
        Headers {
            map,
            notes: notes.map(|pairs| (names, pairs)),
        }
    }
}

/// A header map, with what one walk has noted of it, if it was walked.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    map: &'a HeaderMap,
    notes: Option<(&'a NameFilter, &'a [Pair<'a>])>,
}

impl<'a> From<&'a HeaderMap> for Headers<'a> {
    fn from(map: &'a HeaderMap) -> Self {
        Self { map, notes: None }
    }
}

impl<'a> Headers<'a> {
    /// The whole map.
    #[must_use]
    pub const fn map(&self) -> &'a HeaderMap {
        self.map
    }

    /// The first value of `name`, which must be in lower case; the map's names match in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// All values of `name` (lower case), in order.
    pub fn all(self, name: &str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let noted = self
            .notes
            .filter(|(names, _)| names.may_hold(name.as_bytes()));
        let pairs = noted.map_or_else(
            || Walk::Whole(self.map.iter()),
            |(_, pairs)| Walk::Noted(pairs.iter()),
        );
        pairs
            .filter(move |(n, _)| is_name(n, name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// All pairs whose names may be among those that the walk was for, in order; all pairs if there
    /// was no walk.
    pub fn watched(self) -> impl Iterator<Item = Pair<'a>> {
        match self.notes {
            Some((_, pairs)) => Walk::Noted(pairs.iter()),
            None => Walk::Whole(self.map.iter()),
        }
    }
}

enum Walk<'a> {
    Noted(slice::Iter<'a, Pair<'a>>),
    Whole(Pairs<'a>),
}

impl<'a> Iterator for Walk<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Noted(pairs) => pairs.next().copied(),
            Self::Whole(pairs) => pairs.next(),
        }
    }
}

impl DoubleEndedIterator for Walk<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Self::Noted(pairs) => pairs.next_back().copied(),
            Self::Whole(pairs) => pairs.next_back(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Names of few lengths and letters, so that many have the same place.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-cA-C]{0,3}",
            "x-[a-d]{1,2}",
            "X-[a-dA-D]{1,2}",
            Just("x-client".to_owned())
        ]
    }

    fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
        proptest::collection::vec((name(), "[a-z]{0,4}"), 0..60)
    }

    proptest! {
        #[test]
        fn notes_say_what_the_map_says(
            asked in proptest::collection::vec(name(), 0..8),
            looked in proptest::collection::vec(name(), 1..8),
            pairs in pairs(),
        ) {
            let map = HeaderMap::from_pairs(&pairs);
            let mut names = NameFilter::default();
            asked.iter().for_each(|name| names.add(name));
            let mut kept = Kept::default();
            let (noted, whole) = (kept.walk(&map, &names), Headers::from(&map));
            for name in asked.iter().chain(&looked) {
                let name = name.to_ascii_lowercase();
                let all = |headers: Headers<'_>| {
                    headers.all(&name).map(<[u8]>::to_vec).collect::<Vec<_>>()
                };
                let back = |headers: Headers<'_>| {
                    headers.all(&name).rev().map(<[u8]>::to_vec).collect::<Vec<_>>()
                };
                let plain: Vec<_> = map.all(&name).map(<[u8]>::to_vec).collect();
                prop_assert_eq!(&all(noted), &plain);
                prop_assert_eq!(&all(whole), &plain);
                prop_assert_eq!(back(noted), plain.iter().rev().cloned().collect::<Vec<_>>());
                prop_assert_eq!(noted.get(&name), map.get(&name));
            }
            // What was asked for is seen, however much else there is.
            let is_asked = |n: &[u8]| asked.iter().any(|name| n.eq_ignore_ascii_case(name.as_bytes()));
            let seen: Vec<_> = noted.watched().filter(|(n, _)| is_asked(n)).collect();
            let there: Vec<_> = map.iter().filter(|(n, _)| is_asked(n)).collect();
            prop_assert_eq!(seen, there);
        }
    }

    #[test]
    fn most_other_names_are_ruled_out_unseen() {
        let mut names = NameFilter::default();
        for name in [
            ":path",
            ":method",
            ":authority",
            "content-type",
            "x-client",
            "x-haven-upstream",
        ] {
            names.add(name);
        }
        let others: Vec<_> = (0..60).map(|i| format!("x-more-{i:02}")).collect();
        let kept = others.iter().filter(|name| names.may_hold(name.as_bytes()));
        assert!(kept.count() < 6);
        assert!(names.may_hold(b"X-Client") && !names.may_hold(b""));
    }
}
