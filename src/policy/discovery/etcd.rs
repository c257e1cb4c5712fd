//! Endpoints as the values of keys in etcd: what the JSON gateway of its v3 API answers to
//! `POST /v3/kv/range`, page by page, and to `POST /v3/auth/authenticate`.
//!
//! In its JSON keys and values are base64, 64-bit numbers are texts, and what is empty or zero is
//! left out. A value is `ip:port`, or `{"address": …, "weight": …, "priority": …, "zone": …}`; the
//! entries of an object that are not known are left alone.

use super::answer::{add, flaw, items, read, text, whole};
use super::{Builder, Failure, Membership, Named, Verdict};
use crate::base::base64;
use crate::base::headers::parse_number;
use crate::base::text::{number, push_all, push_json};
use crate::schema::json::{Json, show_text};

/// The path of a range of keys.
pub const RANGE: &str = "/v3/kv/range";

/// The path that gives a token for a name and a password.
pub const AUTHENTICATE: &str = "/v3/auth/authenticate";

/// The most keys of a page.
pub const PAGE: u64 = 500;

/// OUT_OF_RANGE: the revision of an earlier page is compacted by now.
const COMPACTED: u64 = 11;

/// UNAUTHENTICATED: the token is none any more.
const UNAUTHENTICATED: u64 = 16;

/// A list of endpoints that comes in pages, all as of one revision.
#[derive(Debug, Default)]
pub struct Pages {
    builder: Builder,
    /// How many keys there were.
    count: usize,
    /// The revision of the first page.
    revision: u64,
    /// Where the next page begins.
    from: Vec<u8>,
}

/// What an answer makes of the pages before it.
#[derive(Debug)]
pub enum Page {
    /// One more has to be asked for.
    More(Pages),
    /// That was the last one: the endpoints, and the revision of which they are.
    Last(Membership, u64),
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The pages have to be asked for anew, from the first on.
    Compacted,
    /// The token is none any more.
    Unauthenticated,
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Pages {
    /// The body that asks for the next page of the keys that start with `prefix`.
    #[must_use]
    pub fn request(&self, prefix: &str) -> String {
        let from = if self.from.is_empty() {
            prefix.as_bytes()
        } else {
            &self.from
        };
        let mut body = String::new();
        let (from, end) = (base64::encode(from), base64::encode(&end(prefix)));
        push_all(
            &mut body,
            &[r#"{"key":""#, &from, r#"","range_end":""#, &end],
        );
        push_all(&mut body, &[r#"","limit":""#, &number(PAGE), "\""]);
        if self.revision > 0 {
            push_all(
                &mut body,
                &[r#","revision":""#, &number(self.revision), "\""],
            );
        }
        body.push('}');
        body
    }

    /// Reads the next page. `status`: of HTTP.
    ///
    /// # Errors
    /// It is an error, or cannot be used: why, and of which key.
    pub fn read(mut self, status: u64, body: &[u8]) -> Result<Page, Trouble> {
        let answer = read(body, &KEYS);
        if status != 200 {
            return Err(trouble(status, answer.ok().as_ref()));
        }
        let answer = answer?;
        let header = answer.get("header").unwrap_or(&Json::Null);
        if self.revision == 0 {
            self.revision = int64(header, "revision").unwrap_or(0);
        }
        for entry in items(answer.get("kvs"), "kvs")? {
            self.add(entry)?;
        }
        if answer.get("more") == Some(&Json::Bool(true)) && !self.from.is_empty() {
            return Ok(Page::More(self));
        }
        let members = self.builder.finish().map_err(Failure::from)?;
        Ok(Page::Last(members, self.revision))
    }

    fn add(&mut self, entry: &Json) -> Result<(), Failure> {
        let at = self.count;
        self.count = self.count.saturating_add(1);
        let bytes = |name: &str| {
            let coded = text(entry, name, at)?;
            let bytes = base64::decode(coded.as_bytes());
            bytes.ok_or_else(|| flaw(at, coded, &[" is no base64: ", name].concat()))
        };
        let (key, value) = (bytes("key")?, bytes("value")?);
        let shown = show_text(&String::from_utf8_lossy(&key));
        // The first key behind this one.
        self.from = key;
        self.from.push(0);
        let builder = &mut self.builder;
        value_of(&value, at, |named| add(builder, at, named)).map_err(|failure| match failure {
            Failure::Refused(why) => Failure::Refused([why.as_str(), ", key ", &shown].concat()),
            error @ Failure::Error(_) => error,
        })
    }
}

/// The endpoint that a value is.
fn value_of(
    value: &[u8],
    at: usize,
    then: impl FnOnce(Named<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let value = value.trim_ascii();
    if !value.starts_with(b"{") {
        return match std::str::from_utf8(value) {
            Ok(address) => then(Named {
                address,
                weight: 1,
                ..Named::default()
            }),
            Err(_) => Err(flaw(at, "", " is no text")),
        };
    }
    let Ok(value) = read(value, &["address", "weight", "priority", "zone"]) else {
        return Err(flaw(at, "{", "…: no JSON that can be read"));
    };
    then(Named {
        address: text(&value, "address", at)?,
        weight: whole(&value, "weight", 1, at)?,
        priority: whole(&value, "priority", 0, at)?,
        zone: text(&value, "zone", at)?,
        verdict: Verdict::Healthy,
    })
}

const KEYS: [&str; 8] = [
    "code", "error", "header", "key", "kvs", "more", "revision", "value",
];

/// What an error means. Its words are etcd's own and name no secret; no more than its code is shown
/// all the same.
fn trouble(status: u64, answer: Option<&Json>) -> Trouble {
    let code = answer.and_then(|it| match it.get("code")? {
        Json::Number(code) => code.as_u64(),
        _ => None,
    });
    match code {
        Some(COMPACTED) => Trouble::Compacted,
        Some(UNAUTHENTICATED) => Trouble::Unauthenticated,
        _ if status == 401 => Trouble::Unauthenticated,
        _ => {
            let code = code.map_or_else(String::new, |code| [", code ", &number(code)].concat());
            Trouble::Failed(Failure::Error(
                ["etcd answers with status ", &number(status), &code].concat(),
            ))
        }
    }
}

/// A number of 64 bits, which is a text in etcd's JSON.
fn int64(of: &Json, key: &str) -> Option<u64> {
    match of.get(key)? {
        Json::String(text) => parse_number(text.as_bytes()),
        Json::Number(number) => number.as_u64(),
        _ => None,
    }
}

/// The first key behind all that start with `prefix`.
fn end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of a text is 255.
    if let Some(last) = end.last_mut() {
        *last = last.wrapping_add(1);
    }
    end
}

/// The body that asks for a token.
#[must_use]
pub fn credentials(name: &str, password: &str) -> String {
    let mut body = String::from(r#"{"name":"#);
    push_json(&mut body, name);
    body.push_str(r#","password":"#);
    push_json(&mut body, password);
    body.push('}');
    body
}

/// The token that an answer has, as the header `authorization` carries it.
///
/// # Errors
/// Name or password are wrong, or it is another error.
pub fn token(status: u64, body: &[u8]) -> Result<String, Failure> {
    let error = || {
        let status = number(status);
        Failure::Error(["etcd does not let the user in: status ", &status].concat())
    };
    if status != 200 {
        return Err(error());
    }
    let answer = read(body, &["token"]).map_err(|_| error())?;
    match answer.get("token") {
        Some(Json::String(token)) if crate::schema::text::is_secret(token) => Ok(token.clone()),
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn page(values: &[&str]) -> Vec<u8> {
        let entry = |value: &&str| json!({"key": base64::encode(b"/u/a"), "value": base64::encode(value.as_bytes())});
        let kvs: Vec<_> = values.iter().map(entry).collect();
        json!({"header": {"cluster_id": "14841639068965178418", "revision": "9"}, "kvs": kvs})
            .to_string()
            .into()
    }

    fn members(values: &[&str]) -> Result<Membership, Trouble> {
        match Pages::default().read(200, &page(values))? {
            Page::Last(members, 9) => Ok(members),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_value_is_an_address_or_an_object() {
        let found = members(&[
            " 10.0.0.1:80\n",
            "[2001:db8:0::1]:80",
            r#"{"address": "10.0.0.2:80", "weight": 3, "priority": 1, "zone": "a", "Metadata": {"x": [1]}}"#,
            r#"{"address": "10.0.0.3:80", "zone": null}"#,
        ])
        .unwrap();
        let texts: Vec<_> = found
            .members()
            .iter()
            .map(|it| {
                (
                    it.address.as_str(),
                    it.weight,
                    it.priority,
                    it.zone.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            texts,
            [
                ("10.0.0.1:80", 1, 0, None),
                ("10.0.0.2:80", 3, 1, Some("a")),
                ("10.0.0.3:80", 1, 0, None),
                ("[2001:db8::1]:80", 1, 0, None),
            ]
        );
        assert!(members(&[]).unwrap().is_empty());
    }

    #[test]
    fn errors_are_told_by_their_codes() {
        let of = |status, body: &str| Pages::default().read(status, body.as_bytes()).unwrap_err();
        assert_eq!(of(400, r#"{"error":"x","code":11}"#), Trouble::Compacted);
        assert_eq!(
            of(401, r#"{"error":"x","code":16}"#),
            Trouble::Unauthenticated
        );
        assert_eq!(of(401, "<html>"), Trouble::Unauthenticated);
        for (status, body, why) in [
            (
                503,
                r#"{"error":"etcdserver: leader changed","code":14}"#,
                "etcd answers with status 503, code 14",
            ),
            (404, "not found", "etcd answers with status 404"),
        ] {
            assert_eq!(
                of(status, body),
                Trouble::Failed(Failure::Error(why.into()))
            );
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        for (prefix, want) in [("/u/", &b"/u0"[..]), ("a", b"b"), ("é", &[0xc3, 0xaa])] {
            assert_eq!(end(prefix), want);
        }
    }

    #[test]
    fn a_token_is_taken_only_from_a_good_answer() {
        assert_eq!(
            token(200, br#"{"header": {}, "token": "a.1"}"#),
            Ok("a.1".into())
        );
        for (status, body) in [
            (200, "{}"),
            (200, r#"{"token": ""}"#),
            (200, r#"{"token": "a\r\nb"}"#),
            (200, "geheim"),
            (400, r#"{"token": "a.1"}"#),
        ] {
            let Err(Failure::Error(why)) = token(status, body.as_bytes()) else {
                panic!("{body}");
            };
            assert_eq!(
                why,
                format!("etcd does not let the user in: status {status}")
            );
        }
        assert_eq!(
            credentials("a", "b\"c"),
            r#"{"name":"a","password":"b\"c"}"#
        );
    }

    /// A page that says that there are more, and has none, is the last one: no question is endless.
    #[test]
    fn pages_end() {
        let empty = br#"{"more": true}"#;
        assert!(matches!(
            Pages::default().read(200, empty),
            Ok(Page::Last(..))
        ));
    }
}
