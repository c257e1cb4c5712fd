//! What a value may be, as data.
//!
//! Every type of a document has a [`Schema`]. Code that is generated per type would check just as
//! well, but weighs twice as much in the wasm; and the JSON schema and the reference come from the
//! same data, so that they always say what the checker accepts.

use crate::schema::error::{Errors, Path};
use crate::schema::json::{self, Json, scaled, show_text};
use crate::schema::units::{SIZES, TIMES, hundredths, parse_units, show_units};

/// What a value may be.
#[derive(Debug)]
pub enum Schema {
    /// `true` or `false`.
    Bool,
    /// An integer; `1.0` and `1e3` are integers too.
    Int {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// A number with at most two decimals.
    Centi {
        /// The least, in hundredths.
        min: u32,
        /// The most, in hundredths.
        max: u32,
    },
    /// A duration.
    Span {
        /// The least, in nanoseconds.
        min: u64,
        /// The most, in nanoseconds.
        max: u64,
    },
    /// A size.
    Size {
        /// The least, in bytes.
        min: u32,
        /// The most, in bytes.
        max: u32,
    },
    /// A string with a grammar.
    Text(&'static Text),
    /// A scalar with a grammar.
    Scalar(&'static Scalar),
    /// One of these words.
    Words(&'static [Word]),
    /// A text of at most 64 KiB with placeholders, of which there are these.
    Template(&'static [&'static str]),
    /// The name of an entry of a section.
    Reference {
        /// The section.
        section: &'static str,
        /// What its names may be.
        name: &'static Text,
    },
    /// That, or `null`.
    Nullable(&'static Schema),
    /// A scalar or a list of the first schema, or a value of the second.
    Either(&'static Schema, &'static Schema),
    /// Items.
    List {
        /// What an item may be.
        item: &'static Schema,
        /// The fewest.
        min: u32,
        /// The most.
        max: u32,
        /// Whether no two may mean the same.
        unique: bool,
    },
    /// Named entries.
    Map {
        /// What a name may be.
        key: &'static Text,
        /// What an entry may be.
        item: &'static Schema,
        /// The most entries.
        max: u32,
        /// The section whose names these are, if references may name them.
        section: Option<&'static str>,
        /// Stands for a name in the reference.
        placeholder: &'static str,
    },
    /// Known fields.
    Object(&'static Object),
    /// Known fields of which exactly one is set.
    One(&'static Object),
}

/// A string with a grammar.
#[derive(Debug)]
pub struct Text {
    /// What is allowed.
    pub want: &'static str,
    /// The form that all strings of one meaning share; `None` if the string is not allowed.
    pub canon: fn(&str) -> Option<String>,
    /// The JSON schema.
    #[cfg(not(target_arch = "wasm32"))]
    pub json_schema: &'static str,
}

/// A scalar with a grammar.
#[derive(Debug)]
pub struct Scalar {
    /// What is allowed.
    pub want: &'static str,
    /// The form that all scalars of one meaning share; `None` if the scalar is not allowed.
    pub canon: fn(&Json) -> Option<String>,
    /// The JSON schema.
    #[cfg(not(target_arch = "wasm32"))]
    pub json_schema: &'static str,
}

/// A word of an enum.
#[derive(Debug)]
pub struct Word {
    /// The word.
    pub word: &'static str,
    /// Not built yet: the checker rejects it.
    pub soon: bool,
}

/// An object with known fields.
#[derive(Debug)]
pub struct Object {
    /// The fields.
    pub fields: &'static [Field],
    /// Checks what spans fields; the checker calls it only if each of them is in order.
    pub check: Option<fn(&Path<'_>, &Json, &mut Errors)>,
}

/// A field of an object.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What its value may be.
    pub schema: &'static Schema,
    /// What holds if it is absent.
    pub presence: Presence,
    /// Not built yet: the checker validates it, and then rejects it unless it is the default.
    pub soon: bool,
    /// What it means, for the reference.
    #[cfg(not(target_arch = "wasm32"))]
    pub about: &'static str,
}

/// What holds if a field is absent.
#[derive(Clone, Copy, Debug)]
pub enum Presence {
    /// It must be there.
    Required,
    /// This JSON is its value.
    Default(&'static str),
    /// It has no value; the text says what that means, for the reference only.
    Absent(#[cfg_attr(target_arch = "wasm32", allow(dead_code))] &'static str),
}

impl Presence {
    /// Whether `value` is what holds anyway.
    #[must_use]
    pub fn is(self, value: &Json) -> bool {
        matches!(self, Self::Default(text)
            if json::parse(text.as_bytes()).is_ok_and(|default| default == *value))
    }
}

impl Schema {
    /// What is allowed, as messages and the reference put it: "an integer from 1 to 10".
    #[must_use]
    pub fn want(&self) -> String {
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
            Self::Template(_) => "a text of at most 65536 bytes".into(),
            Self::Reference { section, .. } => ["the name of one of the ", section].concat(),
            Self::Nullable(schema) => [&schema.want(), ", or null"].concat(),
            Self::Either(first, second) => [&first.want(), " or ", &second.want()].concat(),
            Self::List { item, min, max, .. } => want_list(*min, *max, &item.want()),
            Self::Map { max, .. } => {
                ["an object with at most ", &max.to_string(), " entries"].concat()
            }
            Self::Object(_) => "an object".into(),
            Self::One(object) => ["an object with one of ", &field_names(object.fields)].concat(),
        }
    }

    /// The form that all values of one meaning share; `None` if `json` is no such value.
    #[must_use]
    pub fn canon(&self, json: &Json) -> Option<String> {
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
            (Self::Reference { name, .. }, Json::String(text)) => return (name.canon)(text),
            (Self::Either(first, second), _) => {
                return first.canon(json).or_else(|| second.canon(json));
            }
            (Self::One(object), Json::Object(entries)) => {
                let (key, value) = entries.first()?;
                let field = object.fields.iter().find(|field| field.name == key)?;
                return Some([key, ":", &field.schema.canon(value)?].concat());
            }
            _ => return None,
        };
        Some(n.to_string())
    }
}

/// The names of `fields`, for a message.
#[must_use]
pub fn field_names(fields: &[Field]) -> String {
    let names: Vec<_> = fields.iter().map(|field| field.name).collect();
    names.join(", ")
}

/// The words that are built, or those that are not.
#[must_use]
pub fn want_words(words: &[Word], soon: bool) -> String {
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

/// "a list of 1 to 8 items, each …"
#[must_use]
pub fn want_list(min: u32, max: u32, item: &str) -> String {
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

fn range(what: &str, min: &str, max: &str, more: &str) -> String {
    [what, " from ", min, " to ", max, more].concat()
}

fn within(n: u32, min: u32, max: u32) -> Option<u64> {
    (min..=max).contains(&n).then(|| n.into())
}
