//! Reading a [`Json`] tree into typed values, described once.
//!
//! A section of the document is one [`section!`]: from its fields come the struct, the reader, the JSON schema and the reference in
//! `docs/config.md`, so that they cannot part. A value that is refused is reported and replaced by its type's default, and the reader goes
//! on: all errors of a document come at once, and whoever sees the values of a document with errors throws them away in the end.

use std::collections::BTreeSet;

use super::error::{Errors, Path};
use super::json::{self, Json};

#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::*;

/// A value that can be read from JSON and says what it wants.
pub(super) trait Read: Default {
    /// What is allowed, as messages and the reference put it: "an integer from 1 to 10".
    fn want() -> String;

    /// Reads the value; what is not allowed is reported, and replaced by the default.
    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self;

    /// The JSON schema of what is read.
    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value;

    /// For the reference: what is allowed, and what is to come.
    #[cfg(not(target_arch = "wasm32"))]
    fn kind() -> String {
        Self::want()
    }

    /// For the reference: the sections inside, with the path to them from here.
    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        Vec::new()
    }
}

/// What holds if a field is absent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Presence {
    /// It must be there.
    Required,
    /// This JSON is read in its place.
    Usual(&'static str),
    /// The type's default; what that means is said here, for the reference only.
    Else(#[cfg_attr(target_arch = "wasm32", allow(dead_code))] &'static str),
}

/// A field of a section.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) presence: Presence,
    /// Not built yet: validated, and then refused unless it is the default.
    pub(super) soon: bool,
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) about: About,
}

/// An object with known fields; see [`section!`].
pub(super) trait Section: Read {
    /// Its fields, in the order of the struct.
    const FIELDS: &'static [Field];
}

/// The names of `fields`, for a message.
pub(super) fn names(fields: &[Field]) -> String {
    fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ")
}

/// Defines a section: an object with known fields.
///
/// A field is `name: Type = Presence;`, with `@soon` before it if it is not built yet.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $section:ident {
            $( $(#[doc = $doc:literal])* $(@ $soon:ident)? $field:ident: $type:ty = $presence:expr; )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, Default)]
        pub(in crate::config) struct $section {
            $( $(#[doc = $doc])* pub(in crate::config) $field: $type, )*
        }

        impl $crate::config::read::Section for $section {
            const FIELDS: &'static [$crate::config::read::Field] = &[
                $( $crate::config::read::Field {
                    name: $crate::config::read::plain(stringify!($field)),
                    presence: $presence,
                    soon: $crate::config::read::section!(@flag $($soon)?),
                    #[cfg(not(target_arch = "wasm32"))]
                    about: $crate::config::read::About {
                        text: concat!($($doc),*),
                        kind: <$type as $crate::config::read::Read>::kind,
                        schema: <$type as $crate::config::read::Read>::schema,
                        parts: <$type as $crate::config::read::Read>::parts,
                    },
                }, )*
            ];
        }

        impl $crate::config::read::Read for $section {
            fn want() -> String {
                "an object".into()
            }

            fn read(
                at: &$crate::config::error::Path<'_>,
                json: &$crate::config::json::Json,
                errors: &mut $crate::config::error::Errors,
            ) -> Self {
                match $crate::config::read::Fields::open(at, json, <Self as $crate::config::read::Section>::FIELDS, errors) {
                    // A struct literal evaluates its fields in the order they are written: that of FIELDS.
                    Some(mut fields) => Self { $( $field: fields.next(errors), )* },
                    None => Self::default(),
                }
            }

            #[cfg(not(target_arch = "wasm32"))]
            fn schema() -> serde_json::Value {
                $crate::config::read::object_schema(<Self as $crate::config::read::Section>::FIELDS)
            }

            #[cfg(not(target_arch = "wasm32"))]
            fn parts() -> Vec<$crate::config::read::Part> {
                let fields = <Self as $crate::config::read::Section>::FIELDS;
                vec![$crate::config::read::Part { path: String::new(), fields }]
            }
        }
    };
    (@flag soon) => { true };
    (@flag) => { false };
}
pub(super) use section;

/// Defines the words of an enum: `"word" => Variant`, those not built yet with `@soon` before them.
macro_rules! choice {
    ($type:ty { $( $(@ $soon:ident)? $word:literal => $value:expr, )* }) => {
        impl $crate::config::read::Choice for $type {
            const WORDS: &'static [$crate::config::read::Word<Self>] = &[
                $( $crate::config::read::Word {
                    word: $word,
                    value: $value,
                    soon: $crate::config::read::section!(@flag $($soon)?),
                }, )*
            ];
        }

        impl $crate::config::read::Read for $type {
            fn want() -> String {
                $crate::config::read::want_words::<Self>(false)
            }

            fn read(
                at: &$crate::config::error::Path<'_>,
                json: &$crate::config::json::Json,
                errors: &mut $crate::config::error::Errors,
            ) -> Self {
                $crate::config::read::choose(at, json, errors)
            }

            #[cfg(not(target_arch = "wasm32"))]
            fn schema() -> serde_json::Value {
                $crate::config::read::choice_schema::<Self>()
            }

            #[cfg(not(target_arch = "wasm32"))]
            fn kind() -> String {
                $crate::config::read::choice_kind::<Self>()
            }
        }
    };
}
pub(super) use choice;

/// Makes a [`choice!`] of which all is built a [`Scalar`](super::scalar::Scalar) too.
macro_rules! scalar_choice {
    ($type:ty) => {
        impl $crate::config::scalar::Scalar for $type {
            fn want() -> String {
                $crate::config::read::want_words::<Self>(false)
            }

            fn parse(json: &$crate::config::json::Json) -> Option<Self> {
                $crate::config::read::find_word(json).map(|word| word.value)
            }

            #[cfg(not(target_arch = "wasm32"))]
            fn schema() -> serde_json::Value {
                $crate::config::read::choice_schema::<Self>()
            }
        }
    };
}
pub(super) use scalar_choice;

/// The name of a field whose identifier may be a raw one (`r#match`).
pub(super) const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', rest @ ..] => match std::str::from_utf8(rest) {
            Ok(rest) => rest,
            Err(_) => name,
        },
        _ => name,
    }
}

/// An object's entries on their way into the fields of a section.
pub(super) struct Fields<'a> {
    at: &'a Path<'a>,
    entries: &'a [(String, Json)],
    fields: std::slice::Iter<'static, Field>,
}

impl<'a> Fields<'a> {
    /// Begins to read a section; reports what is not an object and what has no field.
    pub(super) fn open(
        at: &'a Path<'a>,
        json: &'a Json,
        fields: &'static [Field],
        errors: &mut Errors,
    ) -> Option<Self> {
        let Json::Object(entries) = json else {
            errors.refuse(at, json, "an object");
            return None;
        };
        for (key, value) in entries {
            if !fields.iter().any(|field| field.name == key) {
                errors.unknown(&at.key(key), value, &["one of ", &names(fields)].concat());
            }
        }
        Some(Self { at, entries, fields: fields.iter() })
    }

    /// Reads the next field.
    pub(super) fn next<T: Read>(&mut self, errors: &mut Errors) -> T {
        let Some(field) = self.fields.next() else {
            return T::default();
        };
        let at = self.at.key(field.name);
        match (self.find(field.name), field.presence) {
            (Some(value), _) => {
                let read = T::read(&at, value, errors);
                if field.soon && !field.presence.is(value) {
                    errors.unsupported(&at, value, "");
                }
                read
            }
            (None, Presence::Required) => {
                errors.missing(&at, &T::want());
                T::default()
            }
            (None, Presence::Usual(text)) => match json::parse(text) {
                Ok(value) => T::read(&at, &value, errors),
                Err(_) => T::default(),
            },
            (None, Presence::Else(_)) => T::default(),
        }
    }

    fn find(&self, name: &str) -> Option<&'a Json> {
        self.entries.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

impl Presence {
    /// Whether `value` is what holds anyway.
    fn is(self, value: &Json) -> bool {
        matches!(self, Self::Usual(text) if json::parse(text).as_ref() == Ok(value))
    }
}

/// Reports every key that an object anywhere in the document has twice.
pub(super) fn refuse_duplicates(at: &Path<'_>, json: &Json, errors: &mut Errors) {
    match json {
        Json::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                refuse_duplicates(&at.index(i), item, errors);
            }
        }
        Json::Object(entries) => {
            let mut seen = BTreeSet::new();
            for (key, value) in entries {
                let at = at.key(key);
                if !seen.insert(key) {
                    errors.refuse(&at, value, "this key only once");
                }
                refuse_duplicates(&at, value, errors);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// An enum that is written as one word.
pub(super) trait Choice: Copy + Default + 'static {
    /// Its words.
    const WORDS: &'static [Word<Self>];
}

/// A word, and the value it stands for.
pub(super) struct Word<T> {
    pub(super) word: &'static str,
    pub(super) value: T,
    pub(super) soon: bool,
}

/// Reads one of the words of `T`.
pub(super) fn choose<T: Choice>(at: &Path<'_>, json: &Json, errors: &mut Errors) -> T {
    match find_word::<T>(json) {
        Some(word) => {
            if word.soon {
                errors.unsupported(at, json, "");
            }
            word.value
        }
        None => {
            errors.refuse(at, json, &want_words::<T>(false));
            T::default()
        }
    }
}

/// The word of `T` that `json` is.
pub(super) fn find_word<T: Choice>(json: &Json) -> Option<&'static Word<T>> {
    match json {
        Json::String(text) => T::WORDS.iter().find(|word| word.word == text),
        _ => None,
    }
}

/// The words of `T`: those that are built, or those that are not.
pub(super) fn want_words<T: Choice>(soon: bool) -> String {
    let words: Vec<_> =
        T::WORDS.iter().filter(|word| word.soon == soon).map(|word| json::show_text(word.word)).collect();
    if words.len() == 1 { words.concat() } else { ["one of ", &words.join(", ")].concat() }
}

impl<T: Read> Read for Option<T> {
    fn want() -> String {
        T::want()
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        Some(T::read(at, json, errors))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        T::schema()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn kind() -> String {
        T::kind()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        T::parts()
    }
}

/// What the reference and the schema need, and the filter does not.
#[cfg(not(target_arch = "wasm32"))]
mod native {
    use serde_json::{Map, Value, json};

    use super::{Choice, Field, Presence, want_words};

    /// What is known of a field besides how it is read.
    pub(in crate::config) struct About {
        pub(in crate::config) text: &'static str,
        pub(in crate::config) kind: fn() -> String,
        pub(in crate::config) schema: fn() -> Value,
        pub(in crate::config) parts: fn() -> Vec<Part>,
    }

    /// A section inside a value.
    pub(in crate::config) struct Part {
        /// The way to it: `[]` for the items of a list, `.NAME` for the entries of a map.
        pub(in crate::config) path: String,
        pub(in crate::config) fields: &'static [Field],
    }

    /// `parts`, one step further away.
    pub(in crate::config) fn below(step: &str, parts: Vec<Part>) -> Vec<Part> {
        parts.into_iter().map(|part| Part { path: format!("{step}{}", part.path), ..part }).collect()
    }

    /// The schema of a section: what is accepted today, so no field that is to come.
    pub(in crate::config) fn object_schema(fields: &'static [Field]) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in fields {
            let mut schema = match (field.soon, field.presence) {
                (false, _) => (field.about.schema)(),
                (true, Presence::Usual(text)) => json!({ "const": literal(text) }),
                (true, _) => continue,
            };
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("description".into(), field.about.text.trim().into());
                if let Presence::Usual(text) = field.presence {
                    schema.insert("default".into(), literal(text));
                }
            }
            if matches!(field.presence, Presence::Required) {
                required.push(field.name);
            }
            properties.insert(field.name.into(), schema);
        }
        let mut schema = json!({ "type": "object", "additionalProperties": false, "properties": properties });
        if let (Some(schema), false) = (schema.as_object_mut(), required.is_empty()) {
            schema.insert("required".into(), required.into());
        }
        schema
    }

    /// The schema of an enum: the words that are built.
    pub(in crate::config) fn choice_schema<T: Choice>() -> Value {
        let words: Vec<_> = T::WORDS.iter().filter(|word| !word.soon).map(|word| word.word).collect();
        json!({ "enum": words })
    }

    /// For the reference: all words, and which are to come.
    pub(in crate::config) fn choice_kind<T: Choice>() -> String {
        if T::WORDS.iter().any(|word| word.soon) {
            format!("{}; not supported yet: {}", want_words::<T>(false), want_words::<T>(true))
        } else {
            want_words::<T>(false)
        }
    }

    fn literal(text: &str) -> Value {
        serde_json::from_str(text).unwrap_or_default()
    }
}
