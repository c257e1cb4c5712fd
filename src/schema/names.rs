//! The names that a document declares, for the references to them.

use std::collections::BTreeMap;

use crate::schema::json::{Json, show_text};
use crate::schema::shape::Schema;

/// The names that came so far. One map for all of them: each other type of a map is 3 KB of wasm.
#[derive(Debug, Default)]
pub struct Distinct(BTreeMap<String, usize>);

impl Distinct {
    /// Whether `name` is a new one.
    pub fn add(&mut self, name: &str) -> bool {
        self.0.insert(name.to_owned(), 0).is_none()
    }
}

/// The most names that a message lists.
const LISTED: usize = 16;

/// The names that references may name, and where in their section they stand.
pub struct DeclaredNames(BTreeMap<String, usize>);

impl DeclaredNames {
    /// The names in a document: those of each map that is a section, wherever it stands.
    #[must_use]
    pub fn of(schema: &Schema, document: &Json) -> Self {
        let mut names = Self(BTreeMap::new());
        names.add(schema, document);
        names
    }

    /// The place of the entry of `section` with this name.
    #[must_use]
    pub fn find(&self, section: &str, name: &str) -> Option<usize> {
        self.0.get(&[section, " ", name].concat()).copied()
    }

    fn add(&mut self, schema: &Schema, json: &Json) {
        match (schema, json) {
            (Schema::Object(object), Json::Object(_)) => {
                for field in object.fields {
                    if let Some(value) = json.get(field.name) {
                        self.add(field.schema, value);
                    }
                }
            }
            (
                Schema::Map {
                    key, item, section, ..
                },
                Json::Object(entries),
            ) => {
                for (place, (name, value)) in entries.iter().enumerate() {
                    if let Some(section) = section
                        && (key.canon)(name).is_some()
                    {
                        self.0.insert([section, " ", name].concat(), place);
                    }
                    self.add(item, value);
                }
            }
            _ => {}
        }
    }

    /// The names of a section, as a message lists them.
    pub(crate) fn listed(&self, section: &str) -> String {
        let prefix = [section, " "].concat();
        let mut names: Vec<_> = self
            .0
            .range(prefix.clone()..)
            .map_while(|(name, _)| name.strip_prefix(&prefix))
            .take(LISTED.saturating_add(1))
            .map(show_text)
            .collect();
        if names.is_empty() {
            return "there are none".into();
        }
        if let Some(last) = names.get_mut(LISTED) {
            *last = "...".into();
        }
        names.join(", ")
    }
}
