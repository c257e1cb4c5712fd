//! Strings with a grammar.

use crate::schema::decode::MapKey;
use crate::schema::json::Json;
use crate::schema::shape::Text;

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

    /// A piece of a request to compare with: any text.
    Value(VALUE, "a text of at most 1024 bytes", |text| {
        keep(text, text.len() <= 1024)
    }, r#"{"type": "string", "maxLength": 1024}"#);
}

impl MapKey for Name {
    const TEXT: &'static Text = NAME;
    const PLACEHOLDER: &'static str = "NAME";
}
