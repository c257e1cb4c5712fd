//! From a checked tree to values.
//!
//! Nothing is checked here: the checker has done that. What it has rejected becomes its type's
//! default, and the reader drops that with the document.

use std::marker::PhantomData;

use crate::schema::json::Json;
use crate::schema::shape::{Schema, Text};

/// A type of the document: what it may be, and the value decoded from that.
pub trait Decode {
    /// What it may be.
    const SCHEMA: &'static Schema;

    /// The value, without its range: `u32`, not "1 to 10".
    type Value;

    /// Decodes a value that the checker has accepted.
    fn decode(json: &Json) -> Self::Value;
}

impl<T: Decode> Decode for Option<T> {
    const SCHEMA: &'static Schema = T::SCHEMA;

    type Value = Option<T::Value>;

    fn decode(json: &Json) -> Self::Value {
        Some(T::decode(json))
    }
}

/// A value, or `null` for "none".
pub struct Nullable<T>(PhantomData<T>);

impl<T: Decode> Decode for Nullable<T> {
    const SCHEMA: &'static Schema = &Schema::Nullable(T::SCHEMA);

    type Value = Option<T::Value>;

    fn decode(json: &Json) -> Self::Value {
        (*json != Json::Null).then(|| T::decode(json))
    }
}

/// `MIN` to `MAX` items, in order.
pub struct List<T, const MIN: u32, const MAX: u32>(PhantomData<T>);

impl<T: Decode, const MIN: u32, const MAX: u32> Decode for List<T, MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::List {
        item: T::SCHEMA,
        min: MIN,
        max: MAX,
        unique: false,
    };

    type Value = Vec<T::Value>;

    fn decode(json: &Json) -> Self::Value {
        items(json, T::decode)
    }
}

/// `MIN` to `MAX` items, no two that mean the same.
pub struct Set<T, const MIN: u32, const MAX: u32>(PhantomData<T>);

impl<T: Decode, const MIN: u32, const MAX: u32> Decode for Set<T, MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::List {
        item: T::SCHEMA,
        min: MIN,
        max: MAX,
        unique: true,
    };

    type Value = Vec<T::Value>;

    fn decode(json: &Json) -> Self::Value {
        items(json, T::decode)
    }
}

/// The items of an array. Generic over the value alone, so that many types share it.
#[inline(never)]
fn items<V>(json: &Json, decode: fn(&Json) -> V) -> Vec<V> {
    match json {
        Json::Array(items) => items.iter().map(decode).collect(),
        _ => Vec::new(),
    }
}

/// A string that can name an entry of a [`Map`].
pub trait MapKey {
    /// What is allowed.
    const TEXT: &'static Text;
    /// How the reference writes it.
    const PLACEHOLDER: &'static str;
}

/// At most `MAX` named entries, in the document's order.
pub struct Map<K, T, const MAX: u32>(PhantomData<(K, T)>);

impl<K: MapKey, T: Decode, const MAX: u32> Decode for Map<K, T, MAX> {
    const SCHEMA: &'static Schema = &Schema::Map {
        key: K::TEXT,
        item: T::SCHEMA,
        max: MAX,
        section: None,
        placeholder: K::PLACEHOLDER,
    };

    type Value = Vec<(String, T::Value)>;

    fn decode(json: &Json) -> Self::Value {
        entries(json, K::TEXT, T::decode)
    }
}

/// The entries of an object, generic as [`items`] is.
#[inline(never)]
pub(crate) fn entries<V>(json: &Json, key: &Text, decode: fn(&Json) -> V) -> Vec<(String, V)> {
    match json {
        // A name that was rejected becomes an empty one.
        Json::Object(entries) => entries
            .iter()
            .map(|(name, value)| ((key.canon)(name).unwrap_or_default(), decode(value)))
            .collect(),
        _ => Vec::new(),
    }
}

/// Something short or a list, or an object; and of two scalars, the first or the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Either<A, B> {
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

impl<A: Decode, B: Decode> Decode for Either<A, B> {
    const SCHEMA: &'static Schema = &Schema::Either(A::SCHEMA, B::SCHEMA);

    type Value = Either<A::Value, B::Value>;

    fn decode(json: &Json) -> Self::Value {
        let is_list = matches!((A::SCHEMA, json), (Schema::List { .. }, Json::Array(_)));
        if is_list || A::SCHEMA.canon(json).is_some() {
            Either::First(A::decode(json))
        } else {
            Either::Second(B::decode(json))
        }
    }
}
