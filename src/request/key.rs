//! The key of a request: it decides from which bucket the request draws, and on which side of a
//! canary it is.
//!
//! [`hash`] reads each part of a key where it stands in the request, so that no key is ever copied.
//! Without one of its parts a request has no key.

use super::Request;
use crate::base::hash::{KeyHasher, Seed};
use crate::base::ip::Ip;
use crate::config::{ClientIp, KeyPart, MissingKey};

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
