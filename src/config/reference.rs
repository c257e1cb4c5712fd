//! `config.schema.json` and `docs/config.md`, from the same fields that the reader reads. Native only.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::raw::Document;
use super::read::{Field, Presence, Read, Section};

/// The JSON schema (draft 2020-12) of what [`parse`](super::parse) accepts, as far as a schema can tell: references, duplicate keys and
/// what spans fields are beyond it.
#[must_use]
pub fn schema() -> Value {
    let mut schema = Document::schema();
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        schema.insert("title".into(), json!("haven filter configuration"));
    }
    schema
}

/// The reference of the configuration, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(HEAD);
    section(&mut out, "", Document::FIELDS);
    out
}

const HEAD: &str = "# Configuration reference

Generated from the code that reads the configuration (`HAVEN_BLESS=1 cargo test --test config`); do not edit.

Durations are strings with a unit (`\"250ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"`; also `ns`, `us`, `d`), sizes are strings like `\"64KiB\"`
(also `B`, `MiB`), percentages are numbers from 0 to 100. Names are 1 to 64 of `A-Z a-z 0-9 . _ : / -`. Unknown fields, wrong types, bad
ranges, dangling and duplicate names are refused, all at once, each with its path. What is marked *not supported yet* is validated
and then refused, unless it is set to its default.
";

/// Writes a section's table, then the sections inside it.
fn section(out: &mut String, path: &str, fields: &'static [Field]) {
    let title = if path.is_empty() { "The document".into() } else { format!("`{path}`") };
    // Writing to a String cannot fail.
    let _ = write!(out, "\n## {title}\n\n| field | allowed | default | meaning |\n|---|---|---|---|\n");
    for field in fields {
        let default = match field.presence {
            Presence::Required => "required".into(),
            Presence::Usual(json) => format!("`{}`", cell(json)),
            Presence::Else(text) => cell(text),
        };
        let soon = if field.soon { " *Not supported yet.*" } else { "" };
        let (kind, text) = (cell(&(field.about.kind)()), cell(field.about.text));
        let _ = writeln!(out, "| `{}` | {kind} | {default} | {text}{soon} |", field.name);
    }
    for field in fields {
        let at = if path.is_empty() { field.name.into() } else { format!("{path}.{}", field.name) };
        for part in (field.about.parts)() {
            section(out, &format!("{at}{}", part.path), part.fields);
        }
    }
}

/// Text for a cell of a table: on one line, without bars.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
