//! What the README shows is what there is.

#![cfg(not(target_arch = "wasm32"))]

const README: &str = include_str!("../README.md");

#[test]
fn its_configuration_is_valid() {
    let (_, rest) = README.split_once("```json\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let config =
        haven::config::parse(example.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.routes.len(), 1);
}

/// The names of metrics in a text: `haven_` and all lower-case letters, digits and underscores that
/// follow, with nothing before.
fn metrics(text: &str) -> Vec<&str> {
    let mut names: Vec<_> = text
        .match_indices("haven_")
        .filter(|(at, _)| {
            text[..*at]
                .chars()
                .next_back()
                .is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_')
        })
        .map(|(at, _)| {
            let end = text[at..]
                .find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
            &text[at..end.map_or(text.len(), |end| at + end)]
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn its_metrics_are_those_that_there_are() {
    let source = include_str!("../src/engine/metrics.rs");
    let defined: Vec<_> = source
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("haven_"))
        .collect();
    let mut defined: Vec<_> = defined.into_iter().flat_map(metrics).collect();
    defined.sort_unstable();
    defined.dedup();
    assert!(defined.len() > 20, "{defined:?}");
    let told = metrics(README);
    assert_eq!(told, defined);
}
