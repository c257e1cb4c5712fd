//! The generated files, and that the JSON schema and the reader agree.

use std::path::Path;

use haven::document::{parse, reference, schema};

use crate::support::{DESIGN, FULL};

#[test]
fn the_schema_is_up_to_date() {
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    up_to_date("config.schema.json", &text);
}

#[test]
fn the_reference_is_up_to_date() {
    up_to_date("docs/config.md", &reference());
}

/// Compares a generated file with what is checked in; `HAVEN_BLESS=1` writes it.
fn up_to_date(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("HAVEN_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == text,
        "{file} is out of date: run HAVEN_BLESS=1 cargo test --test config"
    );
}

#[test]
fn the_schema_says_what_parse_says() {
    let schema = schema();
    let fits = |document: &str| fits(&schema, &serde_json::from_str(document).unwrap());
    assert!(fits(FULL) && fits("{}") && !fits(DESIGN));
    for bad in [
        "[]",
        r#"{"x": 1}"#,
        r#"{"mode": "on"}"#,
        r#"{"admin": {}}"#,
        r#"{"rate_limits": {"a": {}}}"#,
        r#"{"rate_limits": {"a": {"limit": 0}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1.5}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1, "key": [{}]}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1, "algorithm": "leaky"}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1, "global": {"cluster": "c"}}}}"#,
        r#"{"circuit_breakers": {"b": {"window": {"type": "count", "size": 1025}}}}"#,
        r#"{"circuit_breakers": {"b": {"failure_rate_threshold": 0}}}"#,
        r#"{"fallbacks": {"f": {"steps": []}}}"#,
        r#"{"fallbacks": {"f": {"steps": [{"cluster": 1}]}}}"#,
        r#"{"routes": [{}]}"#,
        r#"{"health": {"livez": 1}}"#,
        r#"{"routes": [{"name": "r", "timeout": {"per_try": 1}}]}"#,
        r#"{"routes": [{"name": "r", "retry": {"on": []}}]}"#,
        r#"{"upstreams": {"u": {"endpoints": [{"address": "1.2.3.4:5", "priority": 128}]}}}"#,
    ] {
        assert!(!fits(bad) && parse(bad.as_bytes()).is_err(), "{bad}");
    }
    for good in [
        r#"{"circuit_breakers": {"b": {"preset": "resilience4j"}}}"#,
        r#"{"rate_limits": {"a": {"limit": 1e3, "cost": 0}}}"#,
        r#"{"circuit_breakers": {"b": {"window": {"type": "time"}}}}"#,
        r#"{"routes": [{"name": "r", "timeout": {}, "criticality": "critical"}]}"#,
        r#"{"fallbacks": {"f": {"steps": [{"stale": {"max_bytes": "1MiB"}}, {"cluster": "c"}, {"respond": {}}]}}}"#,
        r#"{"routes": [{"name": "r", "timeout": {"per_try": "1s", "request": {"dynamic": {}}}, "retry": {}}]}"#,
    ] {
        assert!(fits(good) && parse(good.as_bytes()).is_ok(), "{good}");
    }
}

/// Whether `value` fits `schema`, as far as the keywords go that ours uses; `pattern` and
/// `propertyNames` are left to parse.
pub fn fits(schema: &serde_json::Value, value: &serde_json::Value) -> bool {
    use serde_json::Value;
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let within = |n: f64, min: &str, max: &str| {
        bound(min).is_none_or(|min| n >= min) && bound(max).is_none_or(|max| n <= max)
    };
    let typed = match schema.get("type").and_then(Value::as_str) {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        Some(other) => panic!("{other}"),
    };
    let shaped = match value {
        Value::Number(n) => within(n.as_f64().unwrap(), "minimum", "maximum"),
        Value::String(text) => within(text.chars().count() as f64, "minLength", "maxLength"),
        Value::Array(items) => {
            let unique = schema.get("uniqueItems").is_none()
                || items
                    .iter()
                    .enumerate()
                    .all(|(i, item)| !items[..i].contains(item));
            unique
                && within(items.len() as f64, "minItems", "maxItems")
                && schema
                    .get("items")
                    .is_none_or(|schema| items.iter().all(|item| fits(schema, item)))
        }
        Value::Object(entries) => {
            let required = schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            within(entries.len() as f64, "minProperties", "maxProperties")
                && required
                    .into_iter()
                    .all(|name| entries.contains_key(name.as_str().unwrap()))
                && entries.iter().all(|(key, value)| {
                    match (
                        schema.get("properties").and_then(|all| all.get(key)),
                        schema.get("additionalProperties"),
                    ) {
                        (Some(schema), _) => fits(schema, value),
                        (None, Some(Value::Bool(allowed))) => *allowed,
                        (None, Some(schema)) => fits(schema, value),
                        (None, None) => true,
                    }
                })
        }
        _ => true,
    };
    typed
        && shaped
        && schema
            .get("enum")
            .is_none_or(|all| all.as_array().unwrap().contains(value))
        && schema.get("const").is_none_or(|only| only == value)
        && schema.get("anyOf").is_none_or(|all| {
            all.as_array()
                .unwrap()
                .iter()
                .any(|schema| fits(schema, value))
        })
        && schema
            .get("if")
            .is_none_or(|when| !fits(when, value) || fits(&schema["then"], value))
}
