//! Sections whose entries have names, and references to those.

use std::marker::PhantomData;

use crate::schema::decode::{Decode, MapKey, entries};
use crate::schema::json::Json;
use crate::schema::shape::Schema;
use crate::schema::text::{NAME, Name, canon};

/// A section whose entries have names that references may name.
pub trait NamedSection {
    /// The section's name.
    const SECTION: &'static str;
}

/// The entries of section `S`, at most `MAX`, in the document's order.
#[derive(Debug)]
pub struct Named<S, T, const MAX: u32>(PhantomData<(S, T)>);

impl<S: NamedSection, T: Decode, const MAX: u32> Decode for Named<S, T, MAX> {
    const SCHEMA: &'static Schema = &Schema::Map {
        key: NAME,
        item: T::SCHEMA,
        max: MAX,
        section: Some(S::SECTION),
        placeholder: Name::PLACEHOLDER,
    };

    type Value = Vec<(String, T::Value)>;

    fn decode(json: &Json) -> Self::Value {
        entries(json, NAME, T::decode)
    }
}

/// The name of an entry of section `S`.
#[derive(Debug)]
pub struct Reference<S>(PhantomData<S>);

impl<S: NamedSection> Decode for Reference<S> {
    const SCHEMA: &'static Schema = &Schema::Reference {
        section: S::SECTION,
        name: NAME,
    };

    type Value = String;

    fn decode(json: &Json) -> String {
        canon(NAME, json)
    }
}
