//! A header map in the form in which proxy-wasm hosts hand it over, read in place.
//!
//! The form (proxy-wasm ABI 0.2.1, "Serialization"): the number of pairs, then for each pair the
//! length of name and value, all as little-endian u32, then each name and value with a NUL behind
//! it. One call returns all headers for the price of one, and nothing is copied again. Values are
//! bytes, since clients and upstreams may send anything.

mod watched;

pub use watched::{Headers, Kept, NameFilter};

/// All headers of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMap(Vec<u8>);

impl HeaderMap {
    /// Wraps the host's bytes. Malformed bytes are read as far as they make sense.
    #[must_use]
    pub const fn from_host(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Serialises pairs as a host does.
    #[must_use]
    pub fn from_pairs<N: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(N, V)]) -> Self {
        Self::of(pairs.iter().map(|(n, v)| (n.as_ref(), v.as_ref())))
    }

    /// The same of pairs that are not in one place.
    pub fn of<'p>(pairs: impl Iterator<Item = (&'p [u8], &'p [u8])> + Clone) -> Self {
        let room = |(name, value): (&[u8], &[u8])| {
            let data = name.len().saturating_add(value.len());
            data.saturating_add(10)
        };
        let room: usize = pairs.clone().map(room).sum();
        let mut bytes = Vec::with_capacity(room.saturating_add(4));
        let mut number =
            |n: usize| bytes.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
        number(pairs.clone().count());
        for (name, value) in pairs.clone() {
            number(name.len());
            number(value.len());
        }
        for (name, value) in pairs {
            bytes.extend_from_slice(name);
            bytes.push(0);
            bytes.extend_from_slice(value);
            bytes.push(0);
        }
        Self(bytes)
    }

    /// The serialised bytes, as a host takes them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many headers the host says that there are, whether or not all are here.
    #[must_use]
    pub fn said(&self) -> usize {
        let bytes = self.0.first_chunk().copied().unwrap_or_default();
        usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
    }

    /// The first value of `name`, which must be in lower case; the map's names match in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(n, _)| is_name(n, name.as_bytes()))
            .map(|(_, v)| v)
    }

    /// All values of `name` (lower case), in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |(n, _)| is_name(n, name.as_bytes()))
            .map(|(_, v)| v)
    }

    /// All pairs in order.
    #[must_use]
    pub fn iter(&self) -> Pairs<'_> {
        let (count, rest) = split_number(&self.0).unwrap_or((0, &[]));
        // A count that the bytes cannot hold is wrong: trust the bytes.
        let (lengths, data) = rest
            .split_at_checked(count.saturating_mul(8))
            .unwrap_or((&[], &[]));
        Pairs { lengths, data }
    }
}

/// Whether a message's name is this one, which is in lower case.
///
/// Length first: most names differ in it. Then as it stands: Envoy gives names in lower case, and to
/// compare letter by letter takes ten times as long.
#[must_use]
pub fn is_name(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len() && (name == known || name.eq_ignore_ascii_case(known))
}

/// Iterator over the pairs of a [`HeaderMap`].
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    lengths: &'a [u8],
    data: &'a [u8],
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // Both lengths with one look: this runs for each header of each message.
        let (lengths, rest) = self.lengths.split_first_chunk::<8>()?;
        let lengths = u64::from_le_bytes(*lengths);
        let name_len = usize::try_from(lengths & 0xffff_ffff).ok()?;
        let value_len = usize::try_from(lengths >> 32).ok()?;
        self.lengths = rest;
        let (name, data) = self.data.split_at_checked(name_len)?;
        let (value, data) = data.get(1..)?.split_at_checked(value_len)?;
        self.data = data.get(1..)?;
        Some((name, value))
    }
}

impl DoubleEndedIterator for Pairs<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let (rest, value_len) = split_number_back(self.lengths)?;
        let (rest, name_len) = split_number_back(rest)?;
        self.lengths = rest;
        let value_start = self.data.len().checked_sub(value_len)?.checked_sub(1)?;
        let (data, value) = self.data.split_at_checked(value_start)?;
        let name_start = data.len().checked_sub(name_len)?.checked_sub(1)?;
        let (data, name) = data.split_at_checked(name_start)?;
        self.data = data;
        Some((name.get(..name_len)?, value.get(..value_len)?))
    }
}

fn split_number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*number)).ok()?, rest))
}

fn split_number_back(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (rest, number) = bytes.split_last_chunk::<4>()?;
    Some((rest, usize::try_from(u32::from_le_bytes(*number)).ok()?))
}

/// Names that the filter looks for in every request and hardly ever finds: nearly all names are
/// ruled out by their length.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    names: Vec<String>,
    /// Bit n: there is a name of n bytes; the highest stands for all that are longer.
    lengths: u64,
}

impl NameSet {
    /// Adds a name, in lower case.
    pub fn add(&mut self, name: &str) {
        if self.find(name.as_bytes()).is_none() {
            self.lengths |= Self::length(name.len());
            self.names.push(name.to_owned());
        }
    }

    /// All names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The name that this one is, in any case.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<&str> {
        self.entry(name).map(|(_, known)| known)
    }

    /// The name that this one is, in any case, and its number.
    #[must_use]
    pub fn entry(&self, name: &[u8]) -> Option<(usize, &str)> {
        let at = self.position(name)?;
        Some((at, self.names.get(at)?))
    }

    /// The number of the name that this one is, in any case.
    #[must_use]
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        if self.lengths & Self::length(name.len()) == 0 {
            return None;
        }
        self.names
            .iter()
            .position(|known| is_name(name, known.as_bytes()))
    }

    const fn length(bytes: usize) -> u64 {
        1 << if bytes < 63 { bytes } else { 63 }
    }
}

/// A decimal number without sign, space or leading plus; `None` if it is none or does not fit.
#[must_use]
pub fn parse_number(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0u64, |n, b| match b {
        b'0'..=b'9' => n
            .checked_mul(10)?
            .checked_add(u64::from(b.wrapping_sub(b'0'))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_match_in_any_case_and_values_are_bytes() {
        let map =
            HeaderMap::from_pairs(&[("X-Key", &b"\xff\x00"[..]), ("x-key", b"2"), ("other", b"")]);
        assert_eq!(map.get("x-key"), Some(&b"\xff\x00"[..]));
        assert_eq!(
            map.all("x-key").collect::<Vec<_>>(),
            [&b"\xff\x00"[..], b"2"]
        );
        assert_eq!(map.all("x-key").next_back(), Some(&b"2"[..]));
        assert_eq!(map.get("other"), Some(&b""[..]));
        assert_eq!(map.get("missing"), None);
    }

    #[test]
    fn names_are_found_in_any_case_and_of_any_length() {
        let long = "x-".repeat(50);
        let mut names = NameSet::default();
        assert_eq!(names.find(b""), None);
        for name in ["x-a", "x-b", "x-a", &long] {
            names.add(name);
        }
        assert_eq!(names.names, ["x-a", "x-b", &long]);
        assert_eq!(
            (names.find(b"X-B"), names.find(b"x-c"), names.find(b"x-")),
            (Some("x-b"), None, None)
        );
        assert_eq!(
            (
                names.find(long.as_bytes()),
                names.find("y".repeat(100).as_bytes())
            ),
            (Some(long.as_str()), None)
        );
    }

    #[test]
    fn numbers_are_plain_decimals() {
        for (text, number) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
        ] {
            assert_eq!(parse_number(text.as_bytes()), number);
        }
        for bad in ["", "-1", "+1", " 1", "1.0", "0x1"] {
            assert_eq!(parse_number(bad.as_bytes()), None, "{bad}");
        }
    }

    fn bytes(fewer_than: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..fewer_than)
    }

    proptest! {
        #[test]
        fn what_a_host_serialises_is_read_back_from_both_ends(
            pairs in proptest::collection::vec((bytes(9), bytes(9)), 0..6)
        ) {
            let map = HeaderMap::from_pairs(&pairs);
            let read: Vec<_> = map.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(&read, &pairs);
            let back = map.iter().rev();
            let mut back: Vec<_> = back.map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            back.reverse();
            prop_assert_eq!(&back, &pairs);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in bytes(64)) {
            let map = HeaderMap::from_host(bytes);
            prop_assert!(map.iter().count() <= 64);
            prop_assert!(map.iter().rev().count() <= 64);
        }
    }
}
