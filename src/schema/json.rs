//! JSON as a tree that keeps duplicate keys: a general one drops them, and then no message can
//! name them.

use std::cell::Cell;
use std::fmt::{self, Write as _};

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::Number;

/// The most characters of a value that a message shows.
const SHOWN: usize = 64;

/// The keys of secrets. A variable's name is none; but who writes the secret itself there is not to
/// find it in a log.
const SECRETS: [&str; 4] = ["token", "password", "token_env", "password_env"];

/// What is shown in the place of secrets.
pub(crate) const HIDDEN: &str = "\"***\"";

/// Whether a key's value may be a secret.
pub(crate) fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key)
}

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// [`scaled`] gives its value.
    Number(Number),
    /// A string.
    String(String),
    /// A list.
    Array(Vec<Json>),
    /// An object: its entries in the document's order, duplicates included.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value of a key, if this is an object that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value as a message shows it: JSON on one line, shortened.
    #[must_use]
    pub fn show(&self) -> String {
        let mut out = Shown {
            text: String::new(),
            chars: 0,
        };
        out.value(self);
        out.end()
    }
}

/// `text` as a message shows it: a JSON string on one line, shortened.
#[must_use]
pub fn show_text(text: &str) -> String {
    let mut out = Shown {
        text: String::new(),
        chars: 0,
    };
    out.string(text);
    out.end()
}

/// Reads one JSON document (RFC 8259), at most 127 levels deep.
///
/// # Errors
/// What is not JSON, and where.
pub fn parse(document: &[u8]) -> serde_json::Result<Json> {
    serde_json::from_slice(document)
}

/// Reads of a JSON document only the entries of objects whose keys are among `keys`, wherever they
/// stand: what others write may be long, and little of it matters. At most `most` values.
///
/// # Errors
/// What is not JSON, and where; or that there is too much of it.
pub fn parse_part(document: &[u8], keys: &[&str], most: usize) -> serde_json::Result<Json> {
    let part = Tree {
        keys: Some(keys),
        left: &Cell::new(most),
    };
    let mut reader = serde_json::Deserializer::from_slice(document);
    let json = part.deserialize(&mut reader)?;
    reader.end()?;
    Ok(json)
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Tree {
            keys: None,
            left: &Cell::new(usize::MAX),
        };
        whole.deserialize(deserializer)
    }
}

/// What is read of a document.
#[derive(Clone, Copy)]
struct Tree<'k> {
    /// The keys whose values are; `None`: of all.
    keys: Option<&'k [&'k str]>,
    /// How many values still may be.
    left: &'k Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or_else(|| D::Error::custom("too many values"))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        // JSON has no number that is not finite.
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = from.next_key_seed(Key(self.keys))? {
            match key {
                Some(key) => entries.push((key, from.next_value_seed(self)?)),
                None => _ = from.next_value::<IgnoredAny>()?,
            }
        }
        Ok(Json::Object(entries))
    }
}

/// A key, if its value is read.
struct Key<'k>(Option<&'k [&'k str]>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        let wanted = self.0.is_none_or(|keys| keys.contains(&key));
        Ok(wanted.then(|| key.to_owned()))
    }
}

/// A number times `factor`, if that is an integer that fits: 250 for 2.5 and 100, 1000 for 1e3 and
/// 1.
#[must_use]
pub fn scaled(number: &Number, factor: u32) -> Option<u32> {
    let exact = number.as_f64()? * f64::from(factor);
    let whole = exact.round();
    // In binary, 12.34 is only almost 1234 hundredths. What has a further decimal is off by more
    // than a few last bits.
    let near = (exact - whole).abs() <= whole.abs() * 4.0 * f64::EPSILON;
    (near && (0.0..=f64::from(u32::MAX)).contains(&whole)).then_some(whole as u32)
}

/// Writes until a little more than a message shows, so that a huge value costs no more than a small
/// one.
struct Shown {
    text: String,
    chars: usize,
}

impl Shown {
    fn value(&mut self, json: &Json) {
        match json {
            Json::Null => self.plain("null"),
            Json::Bool(true) => self.plain("true"),
            Json::Bool(false) => self.plain("false"),
            // By serde_json's own formatter: the standard one for floats weighs 19 KB in the wasm.
            Json::Number(number) => self.plain(&number.to_string()),
            Json::String(text) => self.string(text),
            Json::Array(items) => {
                self.plain("[");
                for (i, item) in items.iter().enumerate() {
                    if self.full() {
                        return;
                    }
                    self.plain(if i == 0 { "" } else { "," });
                    self.value(item);
                }
                self.plain("]");
            }
            Json::Object(entries) => {
                self.plain("{");
                for (i, (key, value)) in entries.iter().enumerate() {
                    if self.full() {
                        return;
                    }
                    self.plain(if i == 0 { "" } else { "," });
                    self.string(key);
                    self.plain(":");
                    if is_secret(key) {
                        self.plain(HIDDEN);
                    } else {
                        self.value(value);
                    }
                }
                self.plain("}");
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.plain("\"");
        for char in text.chars() {
            match char {
                '"' => self.plain("\\\""),
                '\\' => self.plain("\\\\"),
                '\n' => self.plain("\\n"),
                '\r' => self.plain("\\r"),
                '\t' => self.plain("\\t"),
                // What could forge or break a line of the log; all of these are in the first plane.
                '\u{2028}' | '\u{2029}' => self.code(char),
                char if char.is_control() => self.code(char),
                char => self.push(char),
            }
            if self.full() {
                return;
            }
        }
        self.plain("\"");
    }

    fn code(&mut self, char: char) {
        let mut code = String::new();
        // Writing to a String cannot fail.
        let _ = write!(code, "\\u{:04x}", u32::from(char));
        self.plain(&code);
    }

    fn plain(&mut self, text: &str) {
        for char in text.chars() {
            self.push(char);
        }
    }

    fn push(&mut self, char: char) {
        if !self.full() {
            self.text.push(char);
            self.chars = self.chars.saturating_add(1);
        }
    }

    fn full(&self) -> bool {
        self.chars > SHOWN
    }

    fn end(mut self) -> String {
        if self.full() {
            let keep = self
                .text
                .char_indices()
                .nth(SHOWN.saturating_sub(3))
                .map_or(0, |(at, _)| at);
            self.text.truncate(keep);
            self.text.push_str("...");
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(entries: &[(&str, Json)]) -> Json {
        Json::Object(
            entries
                .iter()
                .map(|(key, value)| ((*key).into(), value.clone()))
                .collect(),
        )
    }

    #[test]
    fn keeps_duplicates_and_their_order() {
        let json =
            parse(br#" {"b": 1.5, "a": [true, null, -1, "\u00e9"], "b": 18446744073709551615} "#)
                .unwrap();
        assert_eq!(
            json,
            object(&[
                ("b", Json::Number(Number::from_f64(1.5).unwrap())),
                (
                    "a",
                    Json::Array(vec![
                        Json::Bool(true),
                        Json::Null,
                        Json::Number((-1).into()),
                        Json::String("é".into())
                    ])
                ),
                ("b", Json::Number(u64::MAX.into())),
            ])
        );
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(127).as_bytes()).is_ok());
        assert!(parse(nested(128).as_bytes()).is_err());
        assert!(parse("[{\"a\":".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn a_part_is_what_the_whole_has_under_the_keys() {
        let text =
            br#"{"a": [{"b": 1, "junk": {"a": [1, 2, {"x": []}]}}, 2], "junk": "a", "a": null}"#;
        let part = parse_part(text, &["a", "b"], 6).unwrap();
        assert_eq!(part.show(), r#"{"a":[{"b":1},2],"a":null}"#);
        assert!(parse_part(text, &["a", "b"], 5).is_err());
        assert!(parse_part(b"{} {}", &[], 9).is_err());
        let deep = "[".repeat(100_000);
        assert!(parse_part(deep.as_bytes(), &[], 1_000_000).is_err());
        let aside = format!("{{\"junk\": {}{}}}", deep, "]".repeat(100_000));
        assert_eq!(parse_part(aside.as_bytes(), &[], 9).unwrap().show(), "{}");
    }

    #[test]
    fn numbers_scale_exactly_or_not_at_all() {
        let scaled = |text: &str, factor| scaled(&serde_json::from_str(text).unwrap(), factor);
        for (text, factor, want) in [
            ("0", 1, Some(0)),
            ("-0", 1, Some(0)),
            ("-0.0e99999999999999999999", 1, Some(0)),
            ("12", 1, Some(12)),
            ("-12", 1, None),
            ("1e3", 1, Some(1000)),
            ("1.0", 1, Some(1)),
            ("100e-2", 1, Some(1)),
            ("1.5", 1, None),
            ("12.34", 100, Some(1234)),
            ("12.345", 100, None),
            ("99.99", 100, Some(9999)),
            ("99.999", 100, None),
            ("99.999999999", 100, None),
            ("0.1", 100, Some(10)),
            ("0.07", 100, Some(7)),
            ("1e300", 1, None),
            ("-1e300", 100, None),
            ("4294967295", 1, Some(u32::MAX)),
            ("4294967296", 1, None),
            ("18446744073709551616", 1, None),
            ("1.00000000000000000000000000000000000000", 1, Some(1)),
        ] {
            assert_eq!(scaled(text, factor), want, "{text}");
        }
        for n in 0..=1_000_000 {
            assert_eq!(scaled(&format!("{}.{:02}", n / 100, n % 100), 100), Some(n));
            assert_eq!(scaled(&format!("{}.{:02}4", n / 100, n % 100), 100), None);
        }
    }

    #[test]
    fn values_are_shown_short_and_on_one_line() {
        let show = |text: &str| parse(text.as_bytes()).unwrap().show();
        assert_eq!(
            show(r#"{"a": [1, "x\n\u0001\u2028é"], "b": {}}"#),
            r#"{"a":[1,"x\n\u0001\u2028é"],"b":{}}"#
        );
        let long = show(&format!("\"{}\"", "é".repeat(100)));
        assert_eq!(long.chars().count(), 64);
        assert!(long.ends_with("é..."));
        assert_eq!(show(r#"{"token": "geheim"}"#), r#"{"token":"***"}"#);
        assert_eq!(show(r#"[{"password": ["x"]}]"#), r#"[{"password":"***"}]"#);
        let exact = show(&format!("\"{}\"", "x".repeat(62)));
        assert_eq!(exact.len(), 64);
        assert!(exact.ends_with("x\""));
    }
}
