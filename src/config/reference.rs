//! `config.schema.json` and `docs/config.md`, from the same kinds that the checker holds documents
//! against. Native only.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::kind::{Kind, Object, Presence, list, want_words};
use super::raw::Document;
use super::take::Section;

/// The JSON schema (draft 2020-12) of what [`parse`](super::parse) accepts, as far as a schema can
/// tell: references, duplicate keys and what spans fields are beyond it.
#[must_use]
pub fn schema() -> Value {
    let mut schema = of_object(Document::OBJECT);
    insert(
        &mut schema,
        "$schema",
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    insert(&mut schema, "title", json!("haven filter configuration"));
    schema
}

/// The reference of the configuration, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(HEAD);
    section(&mut out, "", Document::OBJECT);
    out
}

const HEAD: &str = "# Configuration reference

Generated from the code that reads the configuration (`HAVEN_BLESS=1 cargo test --test config`); do not edit.

Durations are strings with a unit (`\"250ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"`; also `ns`, `us`, `d`), sizes are strings like `\"64KiB\"`
(also `B`, `MiB`), percentages are numbers from 0 to 100. Names are 1 to 64 of `A-Z a-z 0-9 . _ : / -`. Unknown fields, wrong types, bad
ranges, dangling and duplicate names are refused, all at once, each with its path. What is marked *not supported yet* is validated
and then refused, unless it is set to its default.
";

fn of(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        // No "multipleOf": validators that count in binary refuse 0.07 as a multiple of 0.01.
        Kind::Centi { min, max } => {
            json!({ "type": "number", "minimum": bound(*min), "maximum": bound(*max) })
        }
        Kind::Span { .. } => {
            json!({ "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(ns|us|ms|s|m|h|d)$" })
        }
        Kind::Size { .. } => {
            json!({ "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(B|KiB|MiB)$" })
        }
        Kind::Text(text) => literal(text.schema),
        Kind::Scalar(scalar) => literal(scalar.schema),
        Kind::Words(words) => {
            let words: Vec<_> = words
                .iter()
                .filter(|word| !word.soon)
                .map(|word| word.word)
                .collect();
            json!({ "enum": words })
        }
        Kind::Template => json!({ "type": "string", "maxLength": 65_536 }),
        Kind::Reference(_) => literal(super::text::NAME.schema),
        Kind::Nullable(kind) => json!({ "anyOf": [of(kind), { "type": "null" }] }),
        Kind::Either(first, second) => json!({ "anyOf": [of(first), of(second)] }),
        Kind::List {
            item,
            min,
            max,
            unique,
        } => {
            let mut schema =
                json!({ "type": "array", "items": of(item), "minItems": min, "maxItems": max });
            if *unique {
                insert(&mut schema, "uniqueItems", json!(true));
            }
            schema
        }
        Kind::Map { key, item, max, .. } => json!({
            "type": "object", "propertyNames": literal(key.schema), "additionalProperties": of(item), "maxProperties": max
        }),
        Kind::Object(object) => of_object(object),
        Kind::One(object) => {
            let mut schema = of_object(object);
            insert(&mut schema, "minProperties", json!(1));
            insert(&mut schema, "maxProperties", json!(1));
            schema
        }
    }
}

/// What is accepted today, so no field that is to come.
fn of_object(object: &Object) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in object.fields {
        let mut schema = match (field.soon, field.presence) {
            (false, _) => of(field.kind),
            (true, Presence::Usual(text)) => json!({ "const": literal(text) }),
            (true, _) => continue,
        };
        insert(&mut schema, "description", json!(field.about.trim()));
        match field.presence {
            Presence::Usual(text) => insert(&mut schema, "default", literal(text)),
            Presence::Required => required.push(field.name),
            Presence::Else(_) => {}
        }
        properties.insert(field.name.into(), schema);
    }
    let mut schema =
        json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if !required.is_empty() {
        insert(&mut schema, "required", json!(required));
    }
    schema
}

fn insert(schema: &mut Value, key: &str, value: Value) {
    if let Some(schema) = schema.as_object_mut() {
        schema.insert(key.into(), value);
    }
}

fn literal(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn bound(hundredths: u32) -> Value {
    if hundredths.is_multiple_of(100) {
        json!(hundredths / 100)
    } else {
        json!(f64::from(hundredths) / 100.0)
    }
}

/// Writes a section's table, then the sections inside it.
fn section(out: &mut String, path: &str, object: &Object) {
    let title = if path.is_empty() {
        "The document".into()
    } else {
        format!("`{path}`")
    };
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "\n## {title}\n\n| field | allowed | default | meaning |\n|---|---|---|---|\n"
    );
    for field in object.fields {
        let default = match field.presence {
            Presence::Required => "required".into(),
            Presence::Usual(json) => format!("`{}`", cell(json)),
            Presence::Else(text) => cell(text),
        };
        let soon = if field.soon {
            " *Not supported yet.*"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "| `{}` | {} | {default} | {}{soon} |",
            field.name,
            cell(&allowed(field.kind)),
            cell(field.about)
        );
    }
    for field in object.fields {
        let at = if path.is_empty() {
            field.name.into()
        } else {
            format!("{path}.{}", field.name)
        };
        inside(out, &at, field.kind);
    }
}

/// Writes the sections inside a value.
fn inside(out: &mut String, at: &str, kind: &Kind) {
    match kind {
        Kind::Object(object) | Kind::One(object) => section(out, at, object),
        Kind::Either(_, object) => inside(out, at, object),
        Kind::List { item, .. } => inside(out, &format!("{at}[]"), item),
        Kind::Map {
            item, placeholder, ..
        } => inside(out, &format!("{at}.{placeholder}"), item),
        _ => {}
    }
}

/// What is allowed, and what is to come.
fn allowed(kind: &Kind) -> String {
    match kind {
        Kind::Words(words) if words.iter().any(|word| word.soon) => {
            format!(
                "{}; not supported yet: {}",
                want_words(words, false),
                want_words(words, true).replace("one of ", "")
            )
        }
        Kind::List { item, min, max, .. } => list(*min, *max, &allowed(item)),
        Kind::Map {
            item, placeholder, ..
        } => {
            let item = match item {
                Kind::Object(_) => String::new(),
                _ => format!(", each {}", allowed(item)),
            };
            format!("{} by {}{item}", kind.want(), placeholder.to_lowercase())
        }
        _ => kind.want(),
    }
}

/// Text for a cell of a table: on one line, without bars.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}
