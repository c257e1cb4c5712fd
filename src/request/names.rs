//! Spellings that mean the same: percent encoding, quotes, the dot behind a host.

use std::borrow::Cow;

/// The value that percent encoding stands for; `plus`: a plus is a space, as in a query. What is no
/// encoding stays as it is.
pub(super) fn decoded(bytes: &[u8], plus: bool) -> Cow<'_, [u8]> {
    unescape(bytes, plus, |_| true)
}

/// The path with what RFC 3986 (6.2.2.2) holds to be the same in one spelling: letters, digits and
/// `-._~` bare. Other encoded bytes may mean something else than the bare ones, such as a slash.
pub(super) fn plain(path: &[u8]) -> Cow<'_, [u8]> {
    unescape(path, false, |byte| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
    })
}

fn unescape(bytes: &[u8], plus: bool, wanted: impl Fn(u8) -> bool) -> Cow<'_, [u8]> {
    if !bytes
        .iter()
        .any(|byte| *byte == b'%' || (plus && *byte == b'+'))
    {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let encoded = (*first == b'%').then(|| byte_of(tail)).flatten();
        match encoded.filter(|byte| wanted(*byte)) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None if plus && *first == b'+' => out.push(b' '),
            None => out.push(*first),
        }
    }
    Cow::Owned(out)
}

/// The byte of two hexadecimal digits.
fn byte_of(digits: &[u8]) -> Option<u8> {
    let digits = digits
        .get(..2)
        .filter(|two| two.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A cookie's value without the quotes around it (RFC 6265, 4.1.1).
pub(super) fn unquoted(value: &[u8]) -> &[u8] {
    let inner = value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    inner.unwrap_or(value)
}

/// A host without the dot of a name that is complete.
pub(super) fn without_dot(host: &[u8]) -> &[u8] {
    host.strip_suffix(b".")
        .filter(|rest| !rest.is_empty())
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_decoded_and_what_is_none_stays() {
        for (given, value, name) in [
            ("alice", "alice", "alice"),
            ("%61lice", "alice", "alice"),
            ("%61%6Cice", "alice", "alice"),
            ("a+b", "a+b", "a b"),
            ("a%2Bb%20", "a+b ", "a+b "),
            ("%", "%", "%"),
            ("%4", "%4", "%4"),
            ("%zz%+1", "%zz%+1", "%zz% 1"),
            ("%25%36%31", "%61", "%61"),
            ("%e4", "\u{e4}", "\u{e4}"),
            ("", "", ""),
        ] {
            let latin = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<_>>();
            assert_eq!(decoded(given.as_bytes(), false), latin(value), "{given}");
            assert_eq!(decoded(given.as_bytes(), true), latin(name), "{given}");
        }
    }

    #[test]
    fn a_plain_path_keeps_what_may_mean_something_else() {
        for (given, path) in [
            ("/a/b", "/a/b"),
            ("/%61/%7Eb%2e", "/a/~b."),
            ("/a%2Fb%3f%25", "/a%2Fb%3f%25"),
        ] {
            assert_eq!(plain(given.as_bytes()), path.as_bytes(), "{given}");
        }
    }

    #[test]
    fn quotes_come_in_pairs_and_dots_alone_stay() {
        for (given, value) in [
            ("\"a\"", "a"),
            ("\"a", "\"a"),
            ("a", "a"),
            ("\"\"", ""),
            ("\"", "\""),
        ] {
            assert_eq!(unquoted(given.as_bytes()), value.as_bytes(), "{given}");
        }
        for (given, host) in [
            ("a.b.", "a.b"),
            ("a.b", "a.b"),
            (".", "."),
            ("a..", "a."),
            ("", ""),
        ] {
            assert_eq!(without_dot(given.as_bytes()), host.as_bytes(), "{given}");
        }
    }
}
