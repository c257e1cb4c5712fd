//! What the readers of answers share: an answer that cannot be used is refused with the place of
//! what is wrong, never read in part.

use super::{Builder, Failure, Flaw, Named};
use crate::base::text::number;
use crate::schema::json::{self, Json};

/// The longest answer, in bytes. A thousand endpoints are 800 KB in Envoy's words, and as many in
/// Consul's if their services have long metadata.
pub const MAX_BYTES: usize = 4 << 20;

/// The most values of an answer that are kept while it is read.
const MAX_VALUES: usize = 100_000;

/// Reads the entries of an answer that are named in `keys`.
///
/// # Errors
/// It is too long, or no JSON.
pub(super) fn read(body: &[u8], keys: &[&str]) -> Result<Json, Failure> {
    if body.len() > MAX_BYTES {
        let size = number(body.len() as u64);
        return Err(refused(&[
            "the answer has ",
            &size,
            " bytes, more than 4 MiB",
        ]));
    }
    json::parse_part(body, keys, MAX_VALUES).map_err(|error| {
        let (line, column) = (number(error.line() as u64), number(error.column() as u64));
        refused(&[
            "the answer is no JSON that can be read: line ",
            &line,
            ", column ",
            &column,
        ])
    })
}

/// An answer that cannot be used, and why.
pub(super) fn refused(why: &[&str]) -> Failure {
    Failure::Refused(why.concat())
}

/// The endpoint of this number cannot be used.
pub(super) fn flaw(at: usize, found: &str, reason: &str) -> Failure {
    Flaw::new(at, found, reason).into()
}

/// Adds an endpoint of this number in the answer.
pub(super) fn add(builder: &mut Builder, at: usize, named: Named<'_>) -> Result<(), Failure> {
    let added = builder.add(named);
    added.map_err(|flaw| Flaw { at, ..flaw }.into())
}

/// The text under a key; empty if there is none.
///
/// # Errors
/// It is no text.
pub(super) fn text<'j>(of: &'j Json, key: &str, at: usize) -> Result<&'j str, Failure> {
    match of.get(key) {
        None | Some(Json::Null) => Ok(""),
        Some(Json::String(text)) => Ok(text),
        Some(other) => Err(flaw(at, key, &[": no text: ", &other.show()].concat())),
    }
}

/// The whole number under a key; `absent` if there is none.
///
/// # Errors
/// It is no whole number, or below 0.
pub(super) fn whole(of: &Json, key: &str, absent: u64, at: usize) -> Result<u64, Failure> {
    let found = match of.get(key) {
        None | Some(Json::Null) => return Ok(absent),
        Some(found) => found,
    };
    let value = match found {
        Json::Number(number) => number.as_u64(),
        _ => None,
    };
    value.ok_or_else(|| flaw(at, key, &[": no whole number: ", &found.show()].concat()))
}

/// The items of a list; none if it is not there.
///
/// # Errors
/// It is no list.
pub(super) fn items<'j>(of: Option<&'j Json>, what: &str) -> Result<&'j [Json], Failure> {
    match of {
        None | Some(Json::Null) => Ok(&[]),
        Some(Json::Array(items)) => Ok(items),
        Some(other) => Err(refused(&[what, " is no list: ", &other.show()])),
    }
}
