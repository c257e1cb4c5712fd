//! How a section of a document is declared: its fields, or the words of an enum.

use std::marker::PhantomData;

use crate::schema::decode::Decode;
use crate::schema::json::{self, Json};
use crate::schema::shape::{Field, Object, Presence, Schema};

/// An object with known fields; [`section!`](crate::schema::section) declares one.
pub trait Section: Decode {
    /// Its fields, in the order of the struct.
    const OBJECT: &'static Object;
}

/// Declares a section of a document: a struct of that name, with the value of each field.
///
/// A field is `name: Type = Presence;` with a [`Presence`], and `@soon` before it if it is not
/// built yet: then the checker validates it, and the struct has no value of it. `/ check` after the
/// section's name names a function for what spans fields. The doc comments are the reference.
#[doc(hidden)]
#[macro_export]
macro_rules! __section {
    (
        $(#[doc = $about:literal])*
        $(#[derive($($derive:ident),*)])?
        $section:ident $(/ $check:path)? {
            $(
                $(#[doc = $doc:literal])*
                $(@ $soon:ident)? $field:ident: $type:ty = $presence:expr;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq $($(, $derive)*)?)]
        pub struct $section {
            $(
                $(#[doc = $doc])*
                pub $field: $crate::__section!(@value $($soon)? $type),
            )*
        }

        impl $crate::schema::declare::Section for $section {
            const OBJECT: &'static $crate::schema::shape::Object =
                &$crate::schema::shape::Object {
                    fields: &[
                        $( $crate::schema::shape::Field {
                            name: $crate::schema::declare::plain(stringify!($field)),
                            schema: <$type as $crate::schema::decode::Decode>::SCHEMA,
                            presence: {
                                use $crate::schema::shape::Presence::*;
                                $presence
                            },
                            soon: $crate::__section!(@flag $($soon)?),
                            #[cfg(not(target_arch = "wasm32"))]
                            about: concat!($($doc),*),
                        }, )*
                    ],
                    check: $crate::__section!(@check $($check)?),
                };
        }

        impl $crate::schema::decode::Decode for $section {
            const SCHEMA: &'static $crate::schema::shape::Schema =
                &$crate::schema::shape::Schema::Object(
                    <Self as $crate::schema::declare::Section>::OBJECT,
                );

            type Value = Self;

            fn decode(json: &$crate::schema::json::Json) -> Self {
                let mut fields = $crate::schema::declare::Fields::new(
                    json,
                    <Self as $crate::schema::declare::Section>::OBJECT.fields,
                );
                // A struct literal evaluates its fields in the order they are written: that of
                // OBJECT.
                Self {
                    $(
                        $field: fields
                            .decode_next::<$crate::__section!(@stored $($soon)? $type)>(),
                    )*
                }
            }
        }

        /// The section as it is where nothing is given.
        impl Default for $section {
            fn default() -> Self {
                $crate::schema::declare::empty()
            }
        }
    };
    (@stored soon $type:ty) => { $crate::schema::declare::Unbuilt };
    (@stored $type:ty) => { $type };
    (@value soon $type:ty) => { () };
    (@value $type:ty) => { <$type as $crate::schema::decode::Decode>::Value };
    (@flag soon) => { true };
    (@flag) => { false };
    (@check $check:path) => { Some($check) };
    (@check) => { None };
}

/// Declares words. `choice! { enum Name { Variant = "word", } }` is an enum, of which the first is
/// the default; `choice! { Words -> Type { "word" => value, } }` is a type `Words` of words that
/// are decoded into another type; `choice! { Type { … } }` gives words to a type that is there.
/// Words that are not built yet have `@soon` before them. A word that was rejected becomes the
/// first one.
#[doc(hidden)]
#[macro_export]
macro_rules! __choice {
    (
        $(#[doc = $about:literal])*
        enum $type:ident {
            $(#[doc = $first_about:literal])* $first:ident = $first_word:literal,
            $( $(#[doc = $doc:literal])* $variant:ident = $word:literal, )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $type {
            #[doc = concat!("`", $first_word, "`")]
            $(#[doc = $first_about])*
            #[default]
            $first,
            $(
                #[doc = concat!("`", $word, "`")]
                $(#[doc = $doc])*
                $variant,
            )*
        }

        $crate::__choice!(@decode $type, Self {
            $first_word => Self::$first,
            $( $word => Self::$variant, )*
        });
    };
    ($type:ident { $($words:tt)* }) => {
        $crate::__choice!(@decode $type, Self { $($words)* });
    };
    ($(#[doc = $doc:literal])* $type:ident -> $value_type:ty { $($words:tt)* }) => {
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub struct $type;

        $crate::__choice!(@decode $type, $value_type { $($words)* });
    };
    (@decode $type:ty, $value_type:ty {
        $( $(@ $soon:ident)? $word:literal => $value:expr, )*
    }) => {
        impl $crate::schema::decode::Decode for $type {
            const SCHEMA: &'static $crate::schema::shape::Schema =
                &$crate::schema::shape::Schema::Words(&[
                    $( $crate::schema::shape::Word {
                        word: $word,
                        soon: $crate::__section!(@flag $($soon)?),
                    }, )*
                ]);

            type Value = $value_type;

            fn decode(json: &$crate::schema::json::Json) -> Self::Value {
                let values = &[$( $value ),*];
                let [first, ..] = values;
                $crate::schema::declare::word(Self::SCHEMA, json)
                    .and_then(|i| values.get(i))
                    .unwrap_or(first)
                    .clone()
            }
        }
    };
}

/// A section of which nothing is given.
#[must_use]
pub fn empty<T: Decode<Value = T>>() -> T {
    T::decode(&Json::Object(Vec::new()))
}

/// The place of the word that `json` is.
#[must_use]
pub fn word(schema: &Schema, json: &Json) -> Option<usize> {
    match (schema, json) {
        (Schema::Words(words), Json::String(text)) => {
            words.iter().position(|word| word.word == text)
        }
        _ => None,
    }
}

/// The name of a field whose identifier may be a raw one (`r#match`).
#[must_use]
pub const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', rest @ ..] => match std::str::from_utf8(rest) {
            Ok(rest) => rest,
            Err(_) => name,
        },
        _ => name,
    }
}

/// Stands for the type of a field that is not built yet.
#[derive(Debug)]
pub struct Unbuilt;

impl Decode for Unbuilt {
    const SCHEMA: &'static Schema = &Schema::Bool;

    type Value = ();

    fn decode(_: &Json) {}
}

/// An object on its way into the fields of a section.
#[derive(Debug)]
pub struct Fields<'a> {
    object: &'a Json,
    fields: std::slice::Iter<'static, Field>,
    /// The last default that was read. It stands here, and not in the code of each field.
    default: Json,
}

impl<'a> Fields<'a> {
    /// Starts at the first of `fields`.
    #[must_use]
    pub fn new(object: &'a Json, fields: &'static [Field]) -> Self {
        Self {
            object,
            fields: fields.iter(),
            default: Json::Null,
        }
    }

    /// Decodes the next field, or its default.
    pub fn decode_next<T: Decode<Value: Default>>(&mut self) -> T::Value {
        self.value().map_or_else(T::Value::default, T::decode)
    }

    fn value(&mut self) -> Option<&Json> {
        let field = self.fields.next()?;
        match (self.object.get(field.name), field.presence) {
            (Some(value), _) => Some(value),
            (None, Presence::Default(text)) => {
                self.default = json::parse(text.as_bytes()).ok()?;
                Some(&self.default)
            }
            (None, _) => None,
        }
    }
}

/// A section of which exactly one field is set.
#[derive(Debug)]
pub struct One<T>(PhantomData<T>);

impl<T: Section> Decode for One<T> {
    const SCHEMA: &'static Schema = &Schema::One(T::OBJECT);

    type Value = T::Value;

    fn decode(json: &Json) -> Self::Value {
        T::decode(json)
    }
}
