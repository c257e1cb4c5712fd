//! The key of a request: it decides from which bucket the request draws, and on which side of a
//! canary it is.
//!
//! [`hash`] reads each part of a key where it stands in the request, so that no key is ever copied.
//! Without one of its parts a request has no key.

use super::Request;
use super::client_ip::ClientIp;
use crate::base::hash::{KeyHasher, Seed};
use crate::base::ip::Ip;
use crate::schema::http::exact_host;
use crate::schema::{
    Decode, Either, HeaderName, Int, Json, Label, One, Schema, Set, Token, choice, section,
};

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The client's address, cut to its prefix.
    ClientIp,
    /// The method.
    Method,
    /// The path without its query.
    Path,
    /// The host, lower case, without its port.
    Host,
    /// The route's name.
    Route,
    /// A header's value; the name is lower case.
    Header(String),
    /// A cookie's value.
    Cookie(String),
    /// A query parameter's value.
    Query(String),
    /// A segment of the path, counted from 0.
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
        /// A request header.
        header: Option<HeaderName> = Absent("");
        /// A cookie.
        cookie: Option<Token> = Absent("");
        /// A parameter of the query.
        query: Option<Label> = Absent("");
        /// A segment of the path, counted from 0.
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
        let header = field.header.map(Self::Header);
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
        let found = with_value(part, request, |value| hasher.part(value));
        if !found {
            match missing {
                MissingKey::Skip => return false,
                MissingKey::Share => hasher.absent(),
            }
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
            KeyPart::Host => hasher.part(value.to_ascii_lowercase().as_bytes()),
            _ => hasher.part(value.as_bytes()),
        }
    }
    hasher.finish()
}

/// Calls `found` with the part's value if the request has it, and returns whether it has.
fn with_value(part: &KeyPart, request: &Request<'_>, mut found: impl FnMut(&[u8])) -> bool {
    let value = match part {
        KeyPart::ClientIp => {
            return request
                .client
                .map(|ip| found(&ip.0.to_be_bytes()))
                .is_some();
        }
        KeyPart::Host => {
            return request
                .host()
                .map(|host| found(&host.to_ascii_lowercase()))
                .is_some();
        }
        KeyPart::Method => Some(request.method),
        KeyPart::Path => Some(request.path),
        KeyPart::Route => Some(request.route.as_bytes()),
        KeyPart::Header(name) => request.headers.get(name),
        KeyPart::Cookie(name) => request.cookie(name),
        KeyPart::Query(name) => request.query_parameter(name),
        KeyPart::PathSegment(index) => request.path_segment(*index),
    };
    value.map(&mut found).is_some()
}
