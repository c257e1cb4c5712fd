//! The key of a request: it decides from which bucket the request draws, and on which side of a
//! canary it is.
//!
//! [`hash`] reads each part of a key where it stands in the request, so that no key is ever copied.
//! Without one of its parts a request has no key.

use super::Request;
use super::client_ip::ClientIp;
use super::names::{decoded, unquoted, without_dot};
use crate::base::hash::{KeyHasher, Seed};
use crate::base::ip::Ip;
use crate::schema::http::exact_host;
use crate::schema::{
    Decode, Either, HeaderName, Int, Json, Label, One, Schema, Set, Token, choice, section,
};
use std::borrow::Cow;

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The client's address, cut to its prefix.
    ClientIp,
    /// The method.
    Method,
    /// The path without its query, decoded.
    Path,
    /// The host, lower case, without its port and the dot behind it.
    Host,
    /// The route's name.
    Route,
    /// A header's value; the name is lower case.
    Header(String),
    /// A cookie's value, without quotes; the first of several.
    Cookie(String),
    /// A query parameter's value, decoded.
    Query(String),
    /// A segment of the path, counted from 0, decoded.
    PathSegment(u32),
}

choice! {
    /// A part of a key that needs no name.
    KeyWord -> KeyPart {
        "client_ip" => KeyPart::ClientIp,
        "method" => KeyPart::Method,
        "path" => KeyPart::Path,
        "host" => KeyPart::Host,
        "route" => KeyPart::Route,
    }
}

section! {
    /// A part of a key that has a name.
    KeyField {
        /// A request header. All requests with several values that differ share one bucket, for
        /// the service may take any of them.
        header: Option<HeaderName> = Absent("");
        /// A cookie, without quotes; the first of several, as servers take it.
        cookie: Option<Token> = Absent("");
        /// A parameter of the query, decoded: `%61` is `a` in names and values, `+` a space.
        /// Several values as in `header`.
        query: Option<Label> = Absent("");
        /// A segment of the path, decoded, counted from 0.
        path_segment: Option<Int<0, 255>> = Absent("");
    }
}

impl Decode for KeyPart {
    const SCHEMA: &'static Schema = <Either<KeyWord, One<KeyField>>>::SCHEMA;

    type Value = Self;

    fn decode(json: &Json) -> Self {
        let field = match <Either<KeyWord, One<KeyField>>>::decode(json) {
            Either::First(part) => return part,
            Either::Second(field) => field,
        };
        // The proxy knows it as `:authority`: there is never a header of this name.
        let header = field.header.map(|name| match name.as_str() {
            "host" => Self::Host,
            _ => Self::Header(name),
        });
        let cookie = field.cookie.map(Self::Cookie);
        let query = field.query.map(Self::Query);
        let segment = Self::PathSegment(field.path_segment.unwrap_or_default());
        header.or(cookie).or(query).unwrap_or(segment)
    }
}

/// The parts of a key, each at most once.
pub type KeyParts = Set<KeyPart, 0, 16>;

/// The parts of a key that has some, each at most once.
pub type SomeKeyParts = Set<KeyPart, 1, 16>;

impl KeyPart {
    /// The form of a value of this part that all values of one meaning share.
    ///
    /// # Errors
    /// What is allowed, if no request can have `value`.
    pub(crate) fn canon(&self, value: &str, prefixes: &ClientIp) -> Result<String, &'static str> {
        match self {
            Self::ClientIp => match Ip::parse(value.as_bytes()) {
                Some(ip) => Ok(ip
                    .masked(prefixes.ipv4_prefix, prefixes.ipv6_prefix)
                    .0
                    .to_string()),
                None => Err("an IP address"),
            },
            Self::Host => exact_host(value).ok_or("a host without a port like \"example.com\""),
            Self::Path | Self::PathSegment(_) => {
                let value = decoded(value.as_bytes(), false);
                Ok(String::from_utf8_lossy(&value).into_owned())
            }
            Self::Cookie(_) => {
                let value = unquoted(value.as_bytes());
                Ok(String::from_utf8_lossy(value).into_owned())
            }
            _ => Ok(value.into()),
        }
    }
}

choice! {
    /// What happens to a request that lacks a part of the key.
    enum MissingKey {
        /// The limit does not apply to it.
        Skip = "skip",
        /// All such requests share one bucket.
        Share = "share",
    }
}

/// Hashes the request's key. `false`: a part is missing, and the configuration skips such requests.
pub fn hash(
    parts: &[KeyPart],
    missing: MissingKey,
    request: &Request<'_>,
    hasher: &mut KeyHasher,
) -> bool {
    for part in parts {
        match with_value(part, request, |value| hasher.part(value)) {
            Found::One => {}
            // Which of them the service takes is not known. Were the first one the key, who adds
            // another before it would have a new bucket each time; so all of these have one.
            Found::Several => {
                hasher.absent();
                hasher.absent();
            }
            Found::None if missing == MissingKey::Skip => return false,
            Found::None => hasher.absent(),
        }
    }
    true
}

/// The hash that [`hash`] gives the key which an override spells out.
#[must_use]
pub fn of_override(parts: &[KeyPart], values: &[String], prefixes: &ClientIp, seed: Seed) -> u64 {
    let mut hasher = KeyHasher::new(seed);
    for (part, value) in parts.iter().zip(values) {
        match part {
            KeyPart::ClientIp => match Ip::parse(value.as_bytes()) {
                Some(ip) => hasher.part(
                    &ip.masked(prefixes.ipv4_prefix, prefixes.ipv6_prefix)
                        .0
                        .to_be_bytes(),
                ),
                // Not an address: no client has it.
                None => hasher.part(value.as_bytes()),
            },
            KeyPart::Host => {
                let host = without_dot(value.as_bytes());
                hasher.part(&host.to_ascii_lowercase());
            }
            KeyPart::Path | KeyPart::PathSegment(_) => {
                hasher.part(&decoded(value.as_bytes(), false));
            }
            KeyPart::Cookie(_) => hasher.part(unquoted(value.as_bytes())),
            _ => hasher.part(value.as_bytes()),
        }
    }
    hasher.finish()
}

/// What a request has of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    None,
    One,
    /// Values that differ.
    Several,
}

/// Calls `found` with the part's value if the request has one.
fn with_value(part: &KeyPart, request: &Request<'_>, mut found: impl FnMut(&[u8])) -> Found {
    let value = match part {
        KeyPart::ClientIp => {
            let Some(ip) = request.client else {
                return Found::None;
            };
            // Without a copy: most keys are this one.
            found(&ip.0.to_be_bytes());
            return Found::One;
        }
        KeyPart::Host => request.host().map(|host| host.to_ascii_lowercase().into()),
        KeyPart::Method => Some(request.method.into()),
        KeyPart::Path => Some(request.decoded_path()),
        KeyPart::Route => Some(request.route.as_bytes().into()),
        KeyPart::Cookie(name) => request.cookie(name).map(Cow::Borrowed),
        KeyPart::PathSegment(index) => request.path_segment(*index),
        KeyPart::Header(name) => {
            return one_of(request.headers.all(name).map(Cow::Borrowed), found);
        }
        KeyPart::Query(name) => return one_of(request.query_parameters(name), found),
    };
    match value {
        Some(value) => {
            found(&value);
            Found::One
        }
        None => Found::None,
    }
}

/// The one value, if all are alike.
fn one_of<'a>(
    mut values: impl Iterator<Item = Cow<'a, [u8]>>,
    mut found: impl FnMut(&[u8]),
) -> Found {
    let Some(first) = values.next() else {
        return Found::None;
    };
    if values.any(|value| value != first) {
        return Found::Several;
    }
    found(&first);
    Found::One
}
