//! The JSON schema of what the checker accepts. Native only.

use serde_json::{Map, Value, json};

use crate::schema::declare::Section;
use crate::schema::shape::{Object, Presence, Schema};

/// The JSON schema (draft 2020-12) of the documents of `T`, as far as a schema can say it:
/// references, duplicate keys and what spans fields are beyond it.
#[must_use]
pub fn json_schema<T: Section>(title: &str) -> Value {
    let mut schema = of_object(T::OBJECT);
    insert(
        &mut schema,
        "$schema",
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    insert(&mut schema, "title", json!(title));
    schema
}

fn of(schema: &Schema) -> Value {
    match schema {
        Schema::Bool => json!({ "type": "boolean" }),
        Schema::Int { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        // No "multipleOf": validators that count in binary refuse 0.07 as a multiple of 0.01.
        Schema::Centi { min, max } => {
            json!({ "type": "number", "minimum": bound(*min), "maximum": bound(*max) })
        }
        Schema::Span { .. } => {
            json!({ "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(ns|us|ms|s|m|h|d)$" })
        }
        Schema::Size { .. } => {
            json!({ "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(B|KiB|MiB)$" })
        }
        Schema::Text(text) => literal(text.json_schema),
        Schema::Scalar(scalar) => literal(scalar.json_schema),
        Schema::Words(words) => {
            let words: Vec<_> = words
                .iter()
                .filter(|word| !word.soon)
                .map(|word| word.word)
                .collect();
            json!({ "enum": words })
        }
        Schema::Template(_) => json!({ "type": "string", "maxLength": 65_536 }),
        Schema::Reference { name, .. } => literal(name.json_schema),
        Schema::Nullable(inner) => json!({ "anyOf": [of(inner), { "type": "null" }] }),
        Schema::Either(first, second) => json!({ "anyOf": [of(first), of(second)] }),
        Schema::List {
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
        Schema::Map { key, item, max, .. } => json!({
            "type": "object",
            "propertyNames": literal(key.json_schema),
            "additionalProperties": of(item),
            "maxProperties": max
        }),
        Schema::Object(object) => of_object(object),
        Schema::One(object) => {
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
            (false, _) => of(field.schema),
            (true, Presence::Default(text)) => json!({ "const": literal(text) }),
            (true, _) => continue,
        };
        insert(&mut schema, "description", json!(field.about.trim()));
        match field.presence {
            Presence::Default(text) => insert(&mut schema, "default", literal(text)),
            Presence::Required => required.push(field.name),
            Presence::Absent(_) => {}
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
