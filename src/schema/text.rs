//! Strings with a grammar.

use std::fmt;

use crate::schema::decode::{Decode, MapKey};
use crate::schema::json::{HIDDEN, Json};
use crate::schema::shape::{Schema, Text};

/// Declares types of strings that are kept in their canonical form: what is allowed, the form, and
/// the JSON schema. The constant is the same as data.
macro_rules! text_type {
    ($(
        $(#[doc = $doc:literal])*
        $type:ident($const:ident, $want:expr, $canon:expr, $json_schema:expr);
    )*) => { $(
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub struct $type;

        $(#[doc = $doc])*
        pub const $const: &$crate::schema::shape::Text = &$crate::schema::shape::Text {
            want: $want,
            canon: $canon,
            #[cfg(not(target_arch = "wasm32"))]
            json_schema: $json_schema,
        };

        impl $crate::schema::decode::Decode for $type {
            const SCHEMA: &'static $crate::schema::shape::Schema =
                &$crate::schema::shape::Schema::Text($const);

            type Value = String;

            fn decode(json: &$crate::schema::json::Json) -> String {
                $crate::schema::text::canon($const, json)
            }
        }
    )* };
}
pub(crate) use text_type;

/// The canonical form of a string; empty if it is not allowed.
pub(crate) fn canon(text: &Text, json: &Json) -> String {
    match json {
        Json::String(string) => (text.canon)(string).unwrap_or_default(),
        _ => String::new(),
    }
}

/// The text itself, if it is `ok`.
pub(crate) fn keep(text: &str, ok: bool) -> Option<String> {
    ok.then(|| text.into())
}

text_type! {
    /// The name of a policy, an upstream or a route.
    Name(NAME, "a name: 1 to 64 of A-Z a-z 0-9 . _ : / -", |text| {
        let ok = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
        keep(text, (1..=64).contains(&text.len()) && text.bytes().all(ok))
    }, r#"{"type": "string", "pattern": "^[A-Za-z0-9._:/-]{1,64}$"}"#);

    /// Text on one line for people.
    Label(LABEL, "a text of 1 to 255 bytes without control characters", |text| {
        keep(text, (1..=255).contains(&text.len()) && !text.chars().any(char::is_control))
    }, r#"{"type": "string", "minLength": 1, "maxLength": 255}"#);

    /// What keys in a store start with: any text but none.
    KeyPrefix(KEY_PREFIX, "a text of 1 to 1024 bytes", |text| {
        keep(text, (1..=1024).contains(&text.len()))
    }, r#"{"type": "string", "minLength": 1, "maxLength": 1024}"#);

    /// The name of an environment variable.
    VariableName(VARIABLE_NAME, "the name of a variable: A-Z a-z 0-9 _, no digit first", |text| {
        let ok = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let first = text.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        keep(text, first && text.len() <= 128 && text.bytes().all(ok))
    }, r#"{"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}"#);

    /// A piece of a request to compare with: any text.
    Value(VALUE, "a text of at most 1024 bytes", |text| {
        keep(text, text.len() <= 1024)
    }, r#"{"type": "string", "maxLength": 1024}"#);
}

/// A secret, as a header carries it.
#[derive(Debug)]
pub struct Secret;

const SECRET: &Text = &Text {
    want: "a secret of 1 to 4096 visible ASCII characters",
    canon: |text| keep(text, is_secret(text)),
    #[cfg(not(target_arch = "wasm32"))]
    json_schema: r#"{"type": "string", "pattern": "^[!-~]{1,4096}$"}"#,
};

/// Whether this may be a secret that a header carries.
#[must_use]
pub fn is_secret(text: &str) -> bool {
    (1..=4096).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Decode for Secret {
    const SCHEMA: &'static Schema = &Schema::Text(SECRET);

    type Value = SecretText;

    fn decode(json: &Json) -> SecretText {
        SecretText(canon(SECRET, json))
    }
}

/// A secret that no message shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl MapKey for Name {
    const TEXT: &'static Text = NAME;
    const PLACEHOLDER: &'static str = "NAME";
}
