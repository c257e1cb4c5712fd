//! The reference of a document, in Markdown. Native only.

use std::fmt::Write as _;

use crate::schema::declare::Section;
use crate::schema::shape::{Object, Presence, Schema, want_list, want_words};

/// The reference of the documents of `T`: `head`, and a table for each section.
#[must_use]
pub fn reference<T: Section>(head: &str) -> String {
    let mut out = String::from(head);
    section(&mut out, "", T::OBJECT);
    out
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
            Presence::Default(json) => format!("`{}`", cell(json)),
            Presence::Absent(text) => cell(text),
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
            cell(&allowed(field.schema)),
            cell(field.about)
        );
    }
    for field in object.fields {
        let at = if path.is_empty() {
            field.name.into()
        } else {
            format!("{path}.{}", field.name)
        };
        inside(out, &at, field.schema);
    }
}

/// Writes the sections inside a value.
fn inside(out: &mut String, at: &str, schema: &Schema) {
    match schema {
        Schema::Object(object) | Schema::One(object) => section(out, at, object),
        Schema::Either(first, second) => {
            inside(out, at, first);
            inside(out, at, second);
        }
        Schema::List { item, .. } => inside(out, &format!("{at}[]"), item),
        Schema::Map {
            item, placeholder, ..
        } => inside(out, &format!("{at}.{placeholder}"), item),
        _ => {}
    }
}

/// What is allowed, and what is to come.
fn allowed(schema: &Schema) -> String {
    match schema {
        Schema::Words(words) if words.iter().any(|word| word.soon) => {
            format!(
                "{}; not supported yet: {}",
                want_words(words, false),
                want_words(words, true).replace("one of ", "")
            )
        }
        Schema::List { item, min, max, .. } => want_list(*min, *max, &allowed(item)),
        Schema::Map {
            item, placeholder, ..
        } => {
            let item = match item {
                Schema::Object(_) => String::new(),
                _ => format!(", each {}", allowed(item)),
            };
            format!("{} by {}{item}", schema.want(), placeholder.to_lowercase())
        }
        _ => schema.want(),
    }
}

/// Text for a cell of a table: on one line, without bars.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}
