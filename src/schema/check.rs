//! The one checker that holds a document against its schema.
//!
//! It reports all errors of a document at once: it lists what it rejects, and goes on.

use crate::schema::error::{Errors, Path};
use crate::schema::json::Json;
use crate::schema::names::{DeclaredNames, Distinct};
use crate::schema::shape::{Object, Presence, Schema, Text, field_names};
use crate::schema::template;

/// Reports everything in `document` that the schema does not allow.
pub(crate) fn check(schema: &Schema, document: &Json, names: &DeclaredNames, errors: &mut Errors) {
    let mut validator = Validator { names, errors };
    validator.check_duplicates(&Path::Root, document);
    validator.check(schema, &Path::Root, document);
}

struct Validator<'a> {
    names: &'a DeclaredNames,
    errors: &'a mut Errors,
}

impl Validator<'_> {
    fn check(&mut self, schema: &Schema, at: &Path<'_>, json: &Json) {
        match (schema, json) {
            (Schema::Nullable(_), Json::Null) => {}
            (Schema::Nullable(inner), _) if !matches!(inner, Schema::Text(_)) => {
                self.check(inner, at, json)
            }
            (Schema::Nullable(inner), _) => self.scalar(inner, schema, at, json),
            (Schema::Either(_, object), Json::Object(_)) => self.check(object, at, json),
            (Schema::Either(list @ Schema::List { .. }, _), Json::Array(_)) => {
                self.check(list, at, json)
            }
            (Schema::Template(known), Json::String(text)) if text.len() <= template::MAX_BYTES => {
                template::check(known, at, text, self.errors)
            }
            (Schema::Words(words), _) => {
                self.scalar(schema, schema, at, json);
                if matches!(json, Json::String(text)
                    if words.iter().any(|word| word.soon && word.word == text))
                {
                    self.errors.unsupported(at, json, "");
                }
            }
            (Schema::Reference { section, name }, Json::String(text))
                if (name.canon)(text).is_some() =>
            {
                if self.names.find(section, text).is_none() {
                    let want = ["one of the ", section, ": ", &self.names.listed(section)].concat();
                    self.errors.refuse(at, json, &want);
                }
            }
            (Schema::Reference { name, .. }, _) => self.errors.refuse(at, json, name.want),
            (
                Schema::List {
                    item,
                    min,
                    max,
                    unique,
                },
                Json::Array(items),
            ) => {
                if items.len() < size(*min) || items.len() > size(*max) {
                    self.errors.refuse(at, json, &schema.want());
                }
                let mut seen = Distinct::default();
                for (i, value) in items.iter().take(size(*max)).enumerate() {
                    let at = at.index(i);
                    let before = self.errors.count();
                    self.check(item, &at, value);
                    if *unique
                        && self.errors.count() == before
                        && item.canon(value).is_some_and(|it| !seen.add(&it))
                    {
                        self.errors.refuse(&at, value, "each item only once");
                    }
                }
            }
            (Schema::Map { key, item, max, .. }, Json::Object(entries)) => {
                if entries.len() > size(*max) {
                    self.errors.refuse(at, json, &schema.want());
                }
                self.entries(key, item, at, entries.get(..size(*max)).unwrap_or(entries));
            }
            (Schema::Object(object), Json::Object(entries)) => {
                self.object(object, at, json, entries)
            }
            (Schema::One(object), Json::Object(entries)) => {
                if entries.len() != 1 {
                    self.errors.refuse(at, json, &schema.want());
                }
                self.object(object, at, json, entries);
            }
            _ => self.scalar(schema, schema, at, json),
        }
    }

    fn scalar(&mut self, schema: &Schema, wanted: &Schema, at: &Path<'_>, json: &Json) {
        if schema.canon(json).is_none() {
            self.errors.refuse(at, json, &wanted.want());
        }
    }

    fn entries(&mut self, key: &Text, item: &Schema, at: &Path<'_>, entries: &[(String, Json)]) {
        // The very same key twice is reported for the whole document: here come those that only
        // mean the same.
        let (mut seen, mut written) = (Distinct::default(), Distinct::default());
        for (name, value) in entries {
            self.check(item, &at.key(name), value);
            match (key.canon)(name) {
                None => self.errors.refuse_text(at, name, key.want),
                Some(canon) => {
                    if written.add(name) && !seen.add(&canon) {
                        let want = "this name only once, whatever its case";
                        self.errors.refuse(&at.key(name), value, want);
                    }
                }
            }
        }
    }

    fn object(&mut self, object: &Object, at: &Path<'_>, json: &Json, entries: &[(String, Json)]) {
        let before = self.errors.unsound();
        for (key, value) in entries {
            if !object.fields.iter().any(|field| field.name == key) {
                let want = ["one of ", &field_names(object.fields)].concat();
                self.errors.unknown(&at.key(key), value, &want);
            }
        }
        for field in object.fields {
            let at = at.key(field.name);
            match (json.get(field.name), field.presence) {
                (Some(value), presence) => {
                    self.check(field.schema, &at, value);
                    if field.soon && !presence.is(value) {
                        self.errors.unsupported(&at, value, "");
                    }
                }
                (None, Presence::Required) => self.errors.missing(&at, &field.schema.want()),
                (None, _) => {}
            }
        }
        if let (Some(check), true) = (object.check, self.errors.unsound() == before) {
            check(at, json, self.errors);
        }
    }

    /// Reports every key that an object anywhere in the document has twice.
    fn check_duplicates(&mut self, at: &Path<'_>, json: &Json) {
        match json {
            Json::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.check_duplicates(&at.index(i), item);
                }
            }
            Json::Object(entries) => {
                let mut seen = Distinct::default();
                for (key, value) in entries {
                    let at = at.key(key);
                    if !seen.add(key) {
                        self.errors.refuse(&at, value, "this key only once");
                    }
                    self.check_duplicates(&at, value);
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }
}

fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
