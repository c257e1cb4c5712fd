//! What a value may be, as data, and the one checker that holds a document against it.
//!
//! Every type of the raw document has a [`Kind`]. Code that is generated per type would check just
//! as well, but weighs twice as much in the wasm; and from the same data come the JSON schema and
//! the reference (`reference.rs`), so that they cannot part.
//!
//! All errors of a document come at once: what is refused is reported, and the checker goes on.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{Errors, Path};
use super::json::{self, Json, scaled, show_text};
use super::scalar::{SIZES, TIMES, hundredths, parse_units, show_units};
use super::text::{NAME, SECTIONS, placeholders};

/// What a value may be.
#[derive(Debug)]
pub(super) enum Kind {
    /// `true` or `false`.
    Bool,
    /// An integer; `1.0` and `1e3` are integers too.
    Int { min: u32, max: u32 },
    /// A number with at most two decimals, bounded in hundredths.
    Centi { min: u32, max: u32 },
    /// A duration, bounded in nanoseconds.
    Span { min: u64, max: u64 },
    /// A size, bounded in bytes.
    Size { min: u32, max: u32 },
    /// A string with a grammar.
    Text(&'static Text),
    /// A scalar with a grammar.
    Scalar(&'static Scalar),
    /// One of these words.
    Words(&'static [Word]),
    /// A text with placeholders.
    Template,
    /// The name of an entry of this section.
    Reference(&'static str),
    /// That, or `null`.
    Nullable(&'static Kind),
    /// Of the first kind, a scalar, or of the second.
    Either(&'static Kind, &'static Kind),
    /// Items; `unique`: no two that mean the same.
    List {
        item: &'static Kind,
        min: u32,
        max: u32,
        unique: bool,
    },
    /// Named entries; `placeholder` stands for a name in the reference.
    Map {
        key: &'static Text,
        item: &'static Kind,
        max: u32,
        #[cfg_attr(target_arch = "wasm32", allow(dead_code))]
        placeholder: &'static str,
    },
    /// Known fields.
    Object(&'static Object),
    /// Known fields of which exactly one is set.
    One(&'static Object),
}

/// A string with a grammar.
#[derive(Debug)]
pub(super) struct Text {
    /// What is allowed.
    pub(super) want: &'static str,
    /// The form that all strings of one meaning share; `None` if not allowed.
    pub(super) canon: fn(&str) -> Option<String>,
    /// As a JSON schema.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) schema: &'static str,
}

/// A scalar with a grammar; fields as of [`Text`].
#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) want: &'static str,
    pub(super) canon: fn(&Json) -> Option<String>,
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) schema: &'static str,
}

/// A word of an enum.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) word: &'static str,
    /// Not built yet: refused.
    pub(super) soon: bool,
}

/// An object with known fields.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) fields: &'static [Field],
    /// Checks what spans fields; asked only if each of them is in order.
    pub(super) check: Option<fn(&Path<'_>, &Json, &mut Errors)>,
}

/// A field of an object.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) kind: &'static Kind,
    pub(super) presence: Presence,
    /// Not built yet: validated, and then refused unless it is the default.
    pub(super) soon: bool,
    /// For the reference.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) about: &'static str,
}

/// What holds if a field is absent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Presence {
    /// It must be there.
    Required,
    /// This JSON is taken in its place.
    Usual(&'static str),
    /// No value; what that means is said here, for the reference only.
    Else(#[cfg_attr(target_arch = "wasm32", allow(dead_code))] &'static str),
}

impl Presence {
    /// Whether `value` is what holds anyway.
    fn is(self, value: &Json) -> bool {
        matches!(self, Self::Usual(text) if json::parse(text.as_bytes()).is_ok_and(|usual| usual == *value))
    }
}

impl Kind {
    /// What is allowed, as messages and the reference put it: "an integer from 1 to 10".
    pub(super) fn want(&self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Int { min, max } => range("an integer", &min.to_string(), &max.to_string(), ""),
            Self::Centi { min, max } => range(
                "a number",
                &hundredths(*min),
                &hundredths(*max),
                " with at most two decimals",
            ),
            Self::Span { min, max } => range(
                "a duration",
                &show_units(*min, TIMES),
                &show_units(*max, TIMES),
                " like \"250ms\" or \"10s\"",
            ),
            Self::Size { min, max } => {
                let (min, max) = (u64::from(*min), u64::from(*max));
                range(
                    "a size",
                    &show_units(min, SIZES),
                    &show_units(max, SIZES),
                    " like \"64KiB\"",
                )
            }
            Self::Text(text) => text.want.into(),
            Self::Scalar(scalar) => scalar.want.into(),
            Self::Words(words) => want_words(words, false),
            Self::Template => "a text of at most 65536 bytes".into(),
            Self::Reference(section) => ["the name of one of the ", section].concat(),
            Self::Nullable(kind) => [&kind.want(), ", or null"].concat(),
            Self::Either(first, second) => [&first.want(), " or ", &second.want()].concat(),
            Self::List { item, min, max, .. } => list(*min, *max, &item.want()),
            Self::Map { max, .. } => {
                ["an object with at most ", &max.to_string(), " entries"].concat()
            }
            Self::Object(_) => "an object".into(),
            Self::One(object) => ["an object with one of ", &names(object.fields)].concat(),
        }
    }

    /// The form that all values of one meaning share; `None` if `json` is no such value.
    pub(super) fn canon(&self, json: &Json) -> Option<String> {
        let n = match (self, json) {
            (Self::Bool, Json::Bool(_)) => return Some(json.show()),
            (Self::Int { min, max }, Json::Number(number)) => {
                within(scaled(number, 1)?, *min, *max)?
            }
            (Self::Centi { min, max }, Json::Number(number)) => {
                within(scaled(number, 100)?, *min, *max)?
            }
            (Self::Span { min, max }, Json::String(text)) => {
                parse_units(text, TIMES).filter(|n| (*min..=*max).contains(n))?
            }
            (Self::Size { min, max }, Json::String(text)) => parse_units(text, SIZES)
                .filter(|n| (u64::from(*min)..=u64::from(*max)).contains(n))?,
            (Self::Text(kind), Json::String(text)) => return (kind.canon)(text),
            (Self::Scalar(kind), _) => return (kind.canon)(json),
            (Self::Words(words), Json::String(text)) => {
                return words
                    .iter()
                    .any(|word| word.word == text)
                    .then(|| text.clone());
            }
            (Self::Reference(_), Json::String(text)) => return (NAME.canon)(text),
            (Self::Either(first, second), _) => {
                return first.canon(json).or_else(|| second.canon(json));
            }
            (Self::One(object), Json::Object(entries)) => {
                let (key, value) = entries.first()?;
                let field = object.fields.iter().find(|field| field.name == key)?;
                return Some([key, ":", &field.kind.canon(value)?].concat());
            }
            _ => return None,
        };
        Some(n.to_string())
    }
}

/// The names that references may name, and where in their section they stand.
pub(super) struct Names(BTreeMap<String, usize>);

impl Names {
    /// The names in a document.
    pub(super) fn of(document: &Json) -> Self {
        let mut names = Self(BTreeMap::new());
        for section in SECTIONS {
            names.add(section, document.get(section));
        }
        if let Some(Json::Object(upstreams)) = document.get("upstreams") {
            let checks = upstreams
                .iter()
                .filter_map(|(_, upstream)| upstream.get("health_check"));
            checks.for_each(|check| names.add("components", check.get("components")));
        }
        names
    }

    /// The place of the entry of `section` with this name.
    pub(super) fn find(&self, section: &str, name: &str) -> Option<usize> {
        self.0.get(&[section, " ", name].concat()).copied()
    }

    fn add(&mut self, section: &str, map: Option<&Json>) {
        let Some(Json::Object(entries)) = map else {
            return;
        };
        for (place, (name, _)) in entries.iter().enumerate() {
            if (NAME.canon)(name).is_some() {
                self.0.insert([section, " ", name].concat(), place);
            }
        }
    }

    /// The names of a section, as a message lists them.
    fn listed(&self, section: &str) -> String {
        let prefix = [section, " "].concat();
        let mut names: Vec<_> = self
            .0
            .range(prefix.clone()..)
            .map_while(|(name, _)| name.strip_prefix(&prefix))
            .take(17)
            .map(show_text)
            .collect();
        if names.is_empty() {
            return "there are none".into();
        }
        if let Some(last) = names.get_mut(16) {
            *last = "...".into();
        }
        names.join(", ")
    }
}

/// Reports everything in `document` that is not of the kind.
pub(super) fn check(kind: &Kind, document: &Json, names: &Names, errors: &mut Errors) {
    let mut checker = Checker { names, errors };
    checker.check_duplicates(&Path::Root, document);
    checker.check(kind, &Path::Root, document);
}

struct Checker<'a> {
    names: &'a Names,
    errors: &'a mut Errors,
}

impl Checker<'_> {
    /// Reports everything in `json` that is not of the kind.
    fn check(&mut self, kind: &Kind, at: &Path<'_>, json: &Json) {
        match (kind, json) {
            (Kind::Nullable(_), Json::Null) => {}
            (Kind::Nullable(inner), _) if !matches!(inner, Kind::Text(_)) => {
                self.check(inner, at, json)
            }
            (Kind::Nullable(inner), _) => self.scalar(inner, kind, at, json),
            (Kind::Either(_, object), Json::Object(_)) => self.check(object, at, json),
            (Kind::Template, Json::String(text)) if text.len() <= 65_536 => {
                placeholders(at, text, self.errors)
            }
            (Kind::Words(words), _) => {
                self.scalar(kind, kind, at, json);
                if matches!(json, Json::String(text) if words.iter().any(|word| word.soon && word.word == text))
                {
                    self.errors.unsupported(at, json, "");
                }
            }
            (Kind::Reference(section), Json::String(name)) if (NAME.canon)(name).is_some() => {
                if self.names.find(section, name).is_none() {
                    let want = ["one of the ", section, ": ", &self.names.listed(section)].concat();
                    self.errors.refuse(at, json, &want);
                }
            }
            (Kind::Reference(_), _) => self.errors.refuse(at, json, NAME.want),
            (
                Kind::List {
                    item,
                    min,
                    max,
                    unique,
                },
                Json::Array(items),
            ) => {
                if items.len() < size(*min) || items.len() > size(*max) {
                    self.errors.refuse(at, json, &kind.want());
                }
                let mut seen = BTreeSet::new();
                for (i, value) in items.iter().take(size(*max)).enumerate() {
                    let at = at.index(i);
                    let before = self.errors.count();
                    self.check(item, &at, value);
                    if *unique
                        && self.errors.count() == before
                        && item.canon(value).is_some_and(|it| !seen.insert(it))
                    {
                        self.errors.refuse(&at, value, "each item only once");
                    }
                }
            }
            (Kind::Map { key, item, max, .. }, Json::Object(entries)) => {
                if entries.len() > size(*max) {
                    self.errors.refuse(at, json, &kind.want());
                }
                self.entries(key, item, at, entries.get(..size(*max)).unwrap_or(entries));
            }
            (Kind::Object(object), Json::Object(entries)) => self.object(object, at, json, entries),
            (Kind::One(object), Json::Object(entries)) => {
                if entries.len() != 1 {
                    self.errors.refuse(at, json, &kind.want());
                }
                self.object(object, at, json, entries);
            }
            _ => self.scalar(kind, kind, at, json),
        }
    }

    fn scalar(&mut self, kind: &Kind, wanted: &Kind, at: &Path<'_>, json: &Json) {
        if kind.canon(json).is_none() {
            self.errors.refuse(at, json, &wanted.want());
        }
    }

    fn entries(&mut self, key: &Text, item: &Kind, at: &Path<'_>, entries: &[(String, Json)]) {
        // The very same key twice is reported for the whole document: here come those that only
        // mean the same.
        let (mut seen, mut written) = (BTreeSet::new(), BTreeSet::new());
        for (name, value) in entries {
            self.check(item, &at.key(name), value);
            match (key.canon)(name) {
                None => self.errors.refuse_text(at, name, key.want),
                Some(canon) => {
                    if written.insert(name.clone()) && !seen.insert(canon) {
                        self.errors.refuse(
                            &at.key(name),
                            value,
                            "this name only once, whatever its case",
                        );
                    }
                }
            }
        }
    }

    fn object(&mut self, object: &Object, at: &Path<'_>, json: &Json, entries: &[(String, Json)]) {
        let before = self.errors.unsound();
        for (key, value) in entries {
            if !object.fields.iter().any(|field| field.name == key) {
                self.errors.unknown(
                    &at.key(key),
                    value,
                    &["one of ", &names(object.fields)].concat(),
                );
            }
        }
        for field in object.fields {
            let at = at.key(field.name);
            match (json.get(field.name), field.presence) {
                (Some(value), presence) => {
                    self.check(field.kind, &at, value);
                    if field.soon && !presence.is(value) {
                        self.errors.unsupported(&at, value, "");
                    }
                }
                (None, Presence::Required) => self.errors.missing(&at, &field.kind.want()),
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
                let mut seen = BTreeSet::new();
                for (key, value) in entries {
                    let at = at.key(key);
                    if !seen.insert(key.clone()) {
                        self.errors.refuse(&at, value, "this key only once");
                    }
                    self.check_duplicates(&at, value);
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }
}

/// The names of `fields`, for a message.
fn names(fields: &[Field]) -> String {
    fields
        .iter()
        .map(|field| field.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The words that are built, or those that are not.
pub(super) fn want_words(words: &[Word], soon: bool) -> String {
    let words: Vec<_> = words
        .iter()
        .filter(|word| word.soon == soon)
        .map(|word| show_text(word.word))
        .collect();
    if words.len() == 1 {
        words.concat()
    } else {
        ["one of ", &words.join(", ")].concat()
    }
}

fn range(what: &str, min: &str, max: &str, more: &str) -> String {
    [what, " from ", min, " to ", max, more].concat()
}

/// "a list of 1 to 8 items, each …"
pub(super) fn list(min: u32, max: u32, item: &str) -> String {
    let (min, max) = (
        if min == 0 {
            "at most ".into()
        } else {
            [&min.to_string(), " to "].concat()
        },
        max.to_string(),
    );
    ["a list of ", &min, &max, " items, each ", item].concat()
}

fn within(n: u32, min: u32, max: u32) -> Option<u64> {
    (min..=max).contains(&n).then(|| n.into())
}

fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
