//! From a checked tree to typed values.
//!
//! Nothing is judged here: the checker ([`super::kind`]) has done that. What it has refused becomes
//! its type's default, and whoever sees that throws it away with the document.

use std::borrow::Cow;
use std::marker::PhantomData;

use super::json::{self, Json};
use super::kind::{Field, Kind, Object, Presence, Text};

/// A type of the document: what it may be, and what is taken from that.
pub(super) trait Take {
    /// What it may be.
    const KIND: &'static Kind;

    /// The value, without its range: `u32`, not "1 to 10".
    type Value;

    /// The value.
    fn take(json: &Json) -> Self::Value;
}

/// An object with known fields; see [`section!`].
pub(super) trait Section: Take {
    /// Its fields, in the order of the struct.
    const OBJECT: &'static Object;
}

/// Defines a section of the document: an object with known fields.
///
/// A field is `name: Type = Presence;`, with `@soon` before it if it is not built yet: then it is
/// only checked. `/ check` names a function for what spans fields.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $section:ident $(/ $check:path)? {
            $( $(#[doc = $doc:literal])* $(@ $soon:ident)? $field:ident: $type:ty = $presence:expr; )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, Default)]
        pub(in crate::config) struct $section {
            $( $(#[doc = $doc])* pub(in crate::config) $field: $crate::config::take::section!(@value $($soon)? $type), )*
        }

        impl $crate::config::take::Section for $section {
            const OBJECT: &'static $crate::config::kind::Object = &$crate::config::kind::Object {
                fields: &[
                    $( $crate::config::kind::Field {
                        name: $crate::config::take::plain(stringify!($field)),
                        kind: <$type as $crate::config::take::Take>::KIND,
                        presence: $presence,
                        soon: $crate::config::take::section!(@flag $($soon)?),
                        #[cfg(not(target_arch = "wasm32"))]
                        about: concat!($($doc),*),
                    }, )*
                ],
                check: $crate::config::take::section!(@check $($check)?),
            };
        }

        impl $crate::config::take::Take for $section {
            const KIND: &'static $crate::config::kind::Kind = &$crate::config::kind::Kind::Object(<Self as $crate::config::take::Section>::OBJECT);

            type Value = Self;

            fn take(json: &$crate::config::json::Json) -> Self {
                let mut fields = $crate::config::take::Fields::new(json, <Self as $crate::config::take::Section>::OBJECT.fields);
                // A struct literal evaluates its fields in the order they are written: that of
                // OBJECT.
                Self { $( $field: fields.next::<$crate::config::take::section!(@stored $($soon)? $type)>(), )* }
            }
        }
    };
    (@stored soon $type:ty) => { $crate::config::take::Unbuilt };
    (@stored $type:ty) => { $type };
    (@value soon $type:ty) => { () };
    (@value $type:ty) => { <$type as $crate::config::take::Take>::Value };
    (@flag soon) => { true };
    (@flag) => { false };
    (@check $check:path) => { Some($check) };
    (@check) => { None };
}
pub(super) use section;

/// Defines the words of an enum: `"word" => value`, those not built yet with `@soon` before them.
macro_rules! choice {
    ($type:ty { $( $(@ $soon:ident)? $word:literal => $value:expr, )* }) => {
        impl $crate::config::take::Take for $type {
            const KIND: &'static $crate::config::kind::Kind = &$crate::config::kind::Kind::Words(&[
                $( $crate::config::kind::Word { word: $word, soon: $crate::config::take::section!(@flag $($soon)?) }, )*
            ]);

            type Value = Self;

            fn take(json: &$crate::config::json::Json) -> Self {
                let values: &'static [Self] = &[$( $value ),*];
                $crate::config::take::word(Self::KIND, json).and_then(|i| values.get(i)).copied().unwrap_or_default()
            }
        }
    };
}
pub(super) use choice;

/// The place of the word that `json` is.
pub(super) fn word(kind: &Kind, json: &Json) -> Option<usize> {
    match (kind, json) {
        (Kind::Words(words), Json::String(text)) => words.iter().position(|word| word.word == text),
        _ => None,
    }
}

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

/// Stands for the type of a field that is not built yet.
pub(super) struct Unbuilt;

impl Take for Unbuilt {
    const KIND: &'static Kind = &Kind::Bool;

    type Value = ();

    fn take(_: &Json) {}
}

/// An object on its way into the fields of a section.
pub(super) struct Fields<'a> {
    object: &'a Json,
    fields: std::slice::Iter<'static, Field>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Json, fields: &'static [Field]) -> Self {
        Self {
            object,
            fields: fields.iter(),
        }
    }

    /// Takes the next field, or its default.
    pub(super) fn next<T: Take<Value: Default>>(&mut self) -> T::Value {
        self.value()
            .map_or_else(T::Value::default, |json| T::take(&json))
    }

    fn value(&mut self) -> Option<Cow<'a, Json>> {
        let field = self.fields.next()?;
        match (self.object.get(field.name), field.presence) {
            (Some(value), _) => Some(Cow::Borrowed(value)),
            (None, Presence::Usual(text)) => json::parse(text.as_bytes()).ok().map(Cow::Owned),
            (None, _) => None,
        }
    }
}

impl<T: Take> Take for Option<T> {
    const KIND: &'static Kind = T::KIND;

    type Value = Option<T::Value>;

    fn take(json: &Json) -> Self::Value {
        Some(T::take(json))
    }
}

/// A value, or `null` for "none".
pub(super) struct Nullable<T>(PhantomData<T>);

impl<T: Take> Take for Nullable<T> {
    const KIND: &'static Kind = &Kind::Nullable(T::KIND);

    type Value = Option<T::Value>;

    fn take(json: &Json) -> Self::Value {
        (*json != Json::Null).then(|| T::take(json))
    }
}

/// `MIN` to `MAX` items, in order.
pub(super) struct List<T, const MIN: u32, const MAX: u32>(PhantomData<T>);

impl<T: Take, const MIN: u32, const MAX: u32> Take for List<T, MIN, MAX> {
    const KIND: &'static Kind = &Kind::List {
        item: T::KIND,
        min: MIN,
        max: MAX,
        unique: false,
    };

    type Value = Vec<T::Value>;

    fn take(json: &Json) -> Self::Value {
        items(json, T::take)
    }
}

/// `MIN` to `MAX` items, no two that mean the same.
pub(super) struct Set<T, const MIN: u32, const MAX: u32>(PhantomData<T>);

impl<T: Take, const MIN: u32, const MAX: u32> Take for Set<T, MIN, MAX> {
    const KIND: &'static Kind = &Kind::List {
        item: T::KIND,
        min: MIN,
        max: MAX,
        unique: true,
    };

    type Value = Vec<T::Value>;

    fn take(json: &Json) -> Self::Value {
        items(json, T::take)
    }
}

/// The items of an array. Generic over the value alone, so that many kinds share it.
#[inline(never)]
fn items<V>(json: &Json, take: fn(&Json) -> V) -> Vec<V> {
    match json {
        Json::Array(items) => items.iter().map(take).collect(),
        _ => Vec::new(),
    }
}

/// A string that can name an entry of a [`Map`].
pub(super) trait Key {
    /// What is allowed.
    const TEXT: &'static Text;
    /// How the reference writes it.
    const PLACEHOLDER: &'static str;
}

/// At most `MAX` named entries, in the document's order.
pub(super) struct Map<K, T, const MAX: u32>(PhantomData<(K, T)>);

impl<K: Key, T: Take, const MAX: u32> Take for Map<K, T, MAX> {
    const KIND: &'static Kind = &Kind::Map {
        key: K::TEXT,
        item: T::KIND,
        max: MAX,
        placeholder: K::PLACEHOLDER,
    };

    type Value = Vec<(String, T::Value)>;

    fn take(json: &Json) -> Self::Value {
        entries(json, K::TEXT, T::take)
    }
}

#[inline(never)]
fn entries<V>(json: &Json, key: &Text, take: fn(&Json) -> V) -> Vec<(String, V)> {
    match json {
        // A name that is refused is an empty one.
        Json::Object(entries) => entries
            .iter()
            .map(|(name, value)| ((key.canon)(name).unwrap_or_default(), take(value)))
            .collect(),
        _ => Vec::new(),
    }
}

/// Something short, or an object; and of two scalars, the first or the second.
#[derive(Clone, Copy, Debug)]
pub(super) enum Either<A, B> {
    /// The first.
    First(A),
    /// The second.
    Second(B),
}

impl<A: Default, B> Default for Either<A, B> {
    fn default() -> Self {
        Self::First(A::default())
    }
}

impl<A: Take, B: Take> Take for Either<A, B> {
    const KIND: &'static Kind = &Kind::Either(A::KIND, B::KIND);

    type Value = Either<A::Value, B::Value>;

    fn take(json: &Json) -> Self::Value {
        if A::KIND.canon(json).is_some() {
            Either::First(A::take(json))
        } else {
            Either::Second(B::take(json))
        }
    }
}

/// A section of which exactly one field is set.
pub(super) struct One<T>(PhantomData<T>);

impl<T: Section> Take for One<T> {
    const KIND: &'static Kind = &Kind::One(T::OBJECT);

    type Value = T::Value;

    fn take(json: &Json) -> Self::Value {
        T::take(json)
    }
}
