//! Values made of other values: lists, sets, named sections, and choices between shapes.

use std::collections::BTreeSet;

use super::error::{Errors, Path};
use super::json::Json;
#[cfg(not(target_arch = "wasm32"))]
use super::read::{Part, below};
use super::read::{Read, Section, names};
use super::scalar::{Scalar, read_scalar};

/// `MIN` to `MAX` items, in order.
#[derive(Clone, Debug)]
pub(super) struct List<T, const MIN: usize, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MIN: usize, const MAX: usize> Default for List<T, MIN, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Read, const MIN: usize, const MAX: usize> Read for List<T, MIN, MAX> {
    fn want() -> String {
        want_items(MIN, MAX, &T::want())
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        let items = items(at, json, (MIN, MAX), &Self::want, errors);
        // What was refused keeps its place, so that later errors still have the right index.
        Self(items.iter().enumerate().map(|(i, item)| T::read(&at.index(i), item, errors)).collect())
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "type": "array", "items": T::schema(), "minItems": MIN, "maxItems": MAX })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn kind() -> String {
        want_items(MIN, MAX, &T::kind())
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        below("[]", T::parts())
    }
}

/// `MIN` to `MAX` items, none of them twice; what was refused is left out.
#[derive(Clone, Debug)]
pub(super) struct Set<T, const MIN: usize, const MAX: usize>(pub(super) Vec<(usize, T)>);

impl<T, const MIN: usize, const MAX: usize> Set<T, MIN, MAX> {
    /// The items without their places.
    pub(super) fn into_items(self) -> impl Iterator<Item = T> {
        self.0.into_iter().map(|(_, item)| item)
    }
}

impl<T, const MIN: usize, const MAX: usize> Default for Set<T, MIN, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Read + PartialEq, const MIN: usize, const MAX: usize> Read for Set<T, MIN, MAX> {
    fn want() -> String {
        want_items(MIN, MAX, &T::want())
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        let mut found: Vec<(usize, T)> = Vec::new();
        // Comparing each with each is only fit for short lists; more than may be there are not even looked at.
        for (i, item) in items(at, json, (MIN, MAX), &Self::want, errors).iter().enumerate().take(MAX) {
            let (at, before) = (at.index(i), errors.count());
            let value = T::read(&at, item, errors);
            if found.iter().any(|(_, other)| *other == value) && errors.count() == before {
                errors.refuse(&at, item, "each item only once");
            } else if errors.count() == before {
                found.push((i, value));
            }
        }
        Self(found)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({
            "type": "array", "items": T::schema(), "minItems": MIN, "maxItems": MAX, "uniqueItems": true
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn kind() -> String {
        want_items(MIN, MAX, &T::kind())
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        below("[]", T::parts())
    }
}

/// The items of an array of `bounds.0` to `bounds.1`; anything else is reported and has none.
fn items<'a>(
    at: &Path<'_>,
    json: &'a Json,
    bounds: (usize, usize),
    want: &dyn Fn() -> String,
    errors: &mut Errors,
) -> &'a [Json] {
    let Json::Array(items) = json else {
        errors.refuse(at, json, &want());
        return &[];
    };
    if !(bounds.0..=bounds.1).contains(&items.len()) {
        errors.refuse(at, json, &want());
    }
    items
}

fn want_items(min: usize, max: usize, item: &str) -> String {
    let count = if min == 0 { format!("at most {max}") } else { format!("{min} to {max}") };
    ["a list of ", &count, " items, each ", item].concat()
}

/// A string that can name an entry of a [`Map`].
pub(super) trait Key: Ord {
    /// Reads it; `None` if it is not allowed.
    fn key(text: &str) -> Option<Self>
    where
        Self: Sized;

    /// What is allowed.
    fn want() -> String;

    /// How the reference writes it.
    #[cfg(not(target_arch = "wasm32"))]
    const PLACEHOLDER: &'static str;

    /// The JSON schema of the key.
    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value;
}

/// At most `MAX` named entries, in the document's order; entries whose name is refused are left out.
#[derive(Clone, Debug)]
pub(super) struct Map<K, T, const MAX: usize>(pub(super) Vec<(K, T)>);

impl<K, T, const MAX: usize> Default for Map<K, T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Key + Clone, T: Read, const MAX: usize> Read for Map<K, T, MAX> {
    fn want() -> String {
        format!("an object with at most {MAX} entries")
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        let Json::Object(entries) = json else {
            errors.refuse(at, json, &Self::want());
            return Self::default();
        };
        if entries.len() > MAX {
            errors.refuse(at, json, &Self::want());
        }
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        // The very same key twice was reported for the whole document: here come those that only mean the same.
        let mut written = BTreeSet::new();
        for (name, value) in entries {
            let read = T::read(&at.key(name), value, errors);
            match K::key(name) {
                None => errors.refuse_text(at, name, &K::want()),
                Some(key) => {
                    if seen.insert(key.clone()) {
                        found.push((key, read));
                    } else if !written.contains(name) {
                        errors.refuse(&at.key(name), value, "this name only once, whatever its case");
                    }
                }
            }
            written.insert(name);
        }
        Self(found)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({
            "type": "object", "propertyNames": K::schema(), "additionalProperties": T::schema(), "maxProperties": MAX
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn kind() -> String {
        let value = T::kind();
        let value = if value == "an object" { String::new() } else { format!(", each {value}") };
        format!("{} by {}{value}", Self::want(), K::PLACEHOLDER.to_lowercase())
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        below(&format!(".{}", K::PLACEHOLDER), T::parts())
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

impl<T: Read> Read for Nullable<T> {
    fn want() -> String {
        [&T::want(), ", or null"].concat()
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        if *json == Json::Null { Self(None) } else { Self(Some(T::read(at, json, errors))) }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "anyOf": [T::schema(), { "type": "null" }] })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        T::parts()
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

impl<A: Scalar, B: Read> Read for Either<A, B> {
    fn want() -> String {
        [&A::want(), " or ", &B::want()].concat()
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        if let Json::Object(_) = json {
            return Self::Object(B::read(at, json, errors));
        }
        if let Some(plain) = A::parse(json) {
            return Self::Plain(plain);
        }
        errors.refuse(at, json, &Self::want());
        Self::default()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "anyOf": [A::schema(), B::schema()] })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        B::parts()
    }
}

/// A section of which exactly one field is set.
#[derive(Clone, Debug, Default)]
pub(super) struct One<T>(pub(super) T);

impl<T: Section> Read for One<T> {
    fn want() -> String {
        ["an object with one of ", &names(T::FIELDS)].concat()
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        if !matches!(json, Json::Object(entries) if entries.len() == 1) {
            errors.refuse(at, json, &Self::want());
            if !matches!(json, Json::Object(_)) {
                return Self::default();
            }
        }
        Self(T::read(at, json, errors))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        let mut schema = T::schema();
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("minProperties".into(), 1.into());
            schema.insert("maxProperties".into(), 1.into());
        }
        schema
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn parts() -> Vec<Part> {
        T::parts()
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

impl<A: Scalar, B: Scalar> Scalar for Or<A, B> {
    fn want() -> String {
        [&A::want(), ", or ", &B::want()].concat()
    }

    fn parse(json: &Json) -> Option<Self> {
        A::parse(json).map(Self::First).or_else(|| B::parse(json).map(Self::Second))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "anyOf": [A::schema(), B::schema()] })
    }
}

impl<A: Scalar, B: Scalar> Read for Or<A, B> {
    read_scalar!();
}
