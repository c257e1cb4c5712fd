//! Documents in, a typed configuration or messages out.

use haven::document::{Config, parse};

/// Everything that is supported, at once.
pub const FULL: &str = include_str!("../data/config/full.json");

/// The example of the design: some of it is not built yet.
pub const DESIGN: &str = include_str!("../data/config/design.json");

pub fn good(document: &str) -> Config {
    parse(document.as_bytes()).unwrap_or_else(|errors| panic!("{document}\n{errors}"))
}

pub fn errors(document: &str) -> Vec<String> {
    match parse(document.as_bytes()) {
        Ok(_) => panic!("accepted: {document}"),
        Err(errors) => errors.to_string().lines().map(Into::into).collect(),
    }
}

#[track_caller]
pub fn refused(document: &str, expected: &[&str]) {
    assert_eq!(errors(document), expected, "{document}");
}

/// Documents whose only error is in one field, and the message.
#[track_caller]
pub fn refuses(template: &str, cases: &[(&str, &str)]) {
    for (value, expected) in cases {
        refused(&template.replace('@', value), &[expected]);
    }
}
