//! From a checked tree to typed values.
//!
//! Nothing is judged here: the checker ([`super::kind`]) has done that. What it has refused becomes its type's default, and whoever sees
//! that throws it away with the document.

use std::borrow::Cow;

use super::json::{self, Json};
use super::kind::{Field, Kind, Object, Presence, Text};

/// A type of the document: what it may be, and how it is taken from that.
pub(super) trait Take: Default {
    /// What it may be.
    const KIND: &'static Kind;

    /// The value.
    fn take(json: &Json) -> Self;
}

/// An object with known fields; see [`section!`].
pub(super) trait Section: Take {
    /// Its fields, in the order of the struct.
    const OBJECT: &'static Object;
}

/// Defines a section of the document: an object with known fields.
///
/// A field is `name: Type = Presence;`, with `@soon` before it if it is not built yet: then it is only checked. `/ check` names a function
/// for what spans fields.
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
            $( $(#[doc = $doc])* pub(in crate::config) $field: $crate::config::take::section!(@stored $($soon)? $type), )*
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

            fn take(json: &$crate::config::json::Json) -> Self {
                let mut fields = $crate::config::take::Fields::new(json, <Self as $crate::config::take::Section>::OBJECT.fields);
                // A struct literal evaluates its fields in the order they are written: that of FIELDS.
                Self { $( $field: fields.next(), )* }
            }
        }
    };
    (@stored soon $type:ty) => { $crate::config::take::Unbuilt };
    (@stored $type:ty) => { $type };
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

/// Stands for the value of a field that is not built yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unbuilt;

impl Take for Unbuilt {
    const KIND: &'static Kind = &Kind::Bool;

    fn take(_: &Json) -> Self {
        Self
    }
}

/// An object on its way into the fields of a section.
pub(super) struct Fields<'a> {
    object: &'a Json,
    fields: std::slice::Iter<'static, Field>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Json, fields: &'static [Field]) -> Self {
        Self { object, fields: fields.iter() }
    }

    /// Takes the next field, or its default.
    pub(super) fn next<T: Take>(&mut self) -> T {
        self.value().map_or_else(T::default, |json| T::take(&json))
    }

    fn value(&mut self) -> Option<Cow<'a, Json>> {
        let field = self.fields.next()?;
        match (self.object.get(field.name), field.presence) {
            (Some(value), _) => Some(Cow::Borrowed(value)),
            (None, Presence::Usual(text)) => json::parse(text).ok().map(Cow::Owned),
            (None, _) => None,
        }
    }
}

impl<T: Take> Take for Option<T> {
    const KIND: &'static Kind = T::KIND;

    fn take(json: &Json) -> Self {
        Some(T::take(json))
    }
}

/// A value, or `null` for "none".
#[derive(Clone, Debug)]
pub(super) struct Nullable<T>(pub(super) Option<T>);

impl<T> Default for Nullable<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Take> Take for Nullable<T> {
    const KIND: &'static Kind = &Kind::Nullable(T::KIND);

    fn take(json: &Json) -> Self {
        Self((*json != Json::Null).then(|| T::take(json)))
    }
}

/// `MIN` to `MAX` items, in order.
#[derive(Clone, Debug)]
pub(super) struct List<T, const MIN: u32, const MAX: u32>(pub(super) Vec<T>);

impl<T, const MIN: u32, const MAX: u32> Default for List<T, MIN, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Take, const MIN: u32, const MAX: u32> Take for List<T, MIN, MAX> {
    const KIND: &'static Kind = &Kind::List { item: T::KIND, min: MIN, max: MAX, unique: false };

    fn take(json: &Json) -> Self {
        Self(items(json))
    }
}

/// `MIN` to `MAX` items, no two that mean the same.
#[derive(Clone, Debug)]
pub(super) struct Set<T, const MIN: u32, const MAX: u32>(pub(super) Vec<T>);

impl<T, const MIN: u32, const MAX: u32> Default for Set<T, MIN, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Take, const MIN: u32, const MAX: u32> Take for Set<T, MIN, MAX> {
    const KIND: &'static Kind = &Kind::List { item: T::KIND, min: MIN, max: MAX, unique: true };

    fn take(json: &Json) -> Self {
        Self(items(json))
    }
}

fn items<T: Take>(json: &Json) -> Vec<T> {
    match json {
        Json::Array(items) => items.iter().map(T::take).collect(),
        _ => Vec::new(),
    }
}

/// A string that can name an entry of a [`Map`].
pub(super) trait Key {
    /// What is allowed.
    const TEXT: &'static Text;
    /// How the reference writes it.
    const PLACEHOLDER: &'static str;

    /// The name of that canonical form.
    fn new(canon: String) -> Self;
}

/// At most `MAX` named entries, in the document's order.
#[derive(Clone, Debug)]
pub(super) struct Map<K, T, const MAX: u32>(pub(super) Vec<(K, T)>);

impl<K, T, const MAX: u32> Default for Map<K, T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Key, T: Take, const MAX: u32> Take for Map<K, T, MAX> {
    const KIND: &'static Kind = &Kind::Map { key: K::TEXT, item: T::KIND, max: MAX, placeholder: K::PLACEHOLDER };

    fn take(json: &Json) -> Self {
        let Json::Object(entries) = json else { return Self::default() };
        // A name that is refused is an empty one.
        let name = |name: &str| K::new((K::TEXT.canon)(name).unwrap_or_default());
        Self(entries.iter().map(|(key, value)| (name(key), T::take(value))).collect())
    }
}

/// Something short, or an object.
#[derive(Clone, Debug)]
pub(super) enum Either<A, B> {
    /// Anything but an object.
    Plain(A),
    /// An object.
    Object(B),
}

impl<A: Default, B> Default for Either<A, B> {
    fn default() -> Self {
        Self::Plain(A::default())
    }
}

impl<A: Take, B: Take> Take for Either<A, B> {
    const KIND: &'static Kind = &Kind::Either(A::KIND, B::KIND);

    fn take(json: &Json) -> Self {
        match json {
            Json::Object(_) => Self::Object(B::take(json)),
            _ => Self::Plain(A::take(json)),
        }
    }
}

/// A section of which exactly one field is set.
#[derive(Clone, Debug, Default)]
pub(super) struct One<T>(pub(super) T);

impl<T: Section> Take for One<T> {
    const KIND: &'static Kind = &Kind::One(T::OBJECT);

    fn take(json: &Json) -> Self {
        Self(T::take(json))
    }
}

/// One of two kinds of scalars.
#[derive(Clone, Copy, Debug)]
pub(super) enum Or<A, B> {
    /// The first kind.
    First(A),
    /// The second kind.
    Second(B),
}

impl<A: Default, B> Default for Or<A, B> {
    fn default() -> Self {
        Self::First(A::default())
    }
}

impl<A: Take, B: Take> Take for Or<A, B> {
    const KIND: &'static Kind = &Kind::Or(A::KIND, B::KIND);

    fn take(json: &Json) -> Self {
        if A::KIND.canon(json).is_some() { Self::First(A::take(json)) } else { Self::Second(B::take(json)) }
    }
}
