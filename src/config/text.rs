//! Strings with a grammar of their own.

use super::{HostMatch, TemplatePart};
use crate::schema::decode::Decode;
use crate::schema::http::{host, is_path};
use crate::schema::json::Json;
use crate::schema::shape::{Schema, Text};
use crate::schema::template::{self, Piece};
use crate::schema::text::{keep, text_type};

text_type! {
    /// A path in which `{name}` stands for any one segment.
    Pattern(
        PATTERN,
        "a path that starts with \"/\" like \"/users/{id}\", where each placeholder is a whole segment with a name of its own",
        |text| keep(text, is_path(text) && is_pattern(text)),
        r#"{"type": "string", "pattern": "^/[!\"$->@-~]*$", "maxLength": 1024}"#
    );

    /// `p50`: a quantile of what was observed.
    Quantile(QUANTILE, "a quantile from \"p1\" to \"p99\"", |text| {
        let digits = text.strip_prefix('p').filter(|digits| !digits.starts_with(['0', '+']))?;
        let n = digits.parse::<u8>().ok()?;
        keep(text, n <= 99)
    }, r#"{"type": "string", "pattern": "^p[1-9][0-9]?$"}"#);
}

fn is_pattern(text: &str) -> bool {
    let mut names = Vec::new();
    for segment in text.split('/') {
        match placeholder(segment) {
            Some(name) if name.is_empty() || name.contains(['{', '}']) || names.contains(&name) => {
                return false;
            }
            Some(name) => names.push(name),
            None if segment.contains(['{', '}']) => return false,
            None => {}
        }
    }
    true
}

/// The segments of a pattern; `None` stands for a placeholder.
pub fn segments(pattern: &str) -> Vec<Option<String>> {
    let literal = |segment: &str| placeholder(segment).is_none().then(|| segment.into());
    pattern.split('/').skip(1).map(literal).collect()
}

fn placeholder(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

/// A host, or all hosts below a domain.
#[derive(Debug)]
pub struct Host;

impl Decode for Host {
    const SCHEMA: &'static Schema = &Schema::Text(&Text {
        want: "a host without a port like \"example.com\", \"*.example.com\" or \"*\"",
        canon: host,
        #[cfg(not(target_arch = "wasm32"))]
        json_schema: r#"{"type": "string"}"#,
    });

    type Value = HostMatch;

    fn decode(json: &Json) -> HostMatch {
        let host = match json {
            Json::String(text) => host(text).unwrap_or_default(),
            _ => String::new(),
        };
        match host.strip_prefix('*') {
            Some(suffix) => HostMatch::Suffix(suffix.into()),
            None => HostMatch::Exact(host),
        }
    }
}

/// A body of at most 64 KiB with placeholders.
#[derive(Debug)]
pub struct Template;

impl Decode for Template {
    const SCHEMA: &'static Schema =
        &Schema::Template(&["request_id", "retry_after", "reason", "route"]);

    type Value = Vec<TemplatePart>;

    fn decode(json: &Json) -> Self::Value {
        let Json::String(text) = json else {
            return Vec::new();
        };
        let part = |piece| match piece {
            Piece::Literal("") => None,
            Piece::Literal(text) => Some(TemplatePart::Literal(text.into())),
            Piece::Placeholder { name, .. } => match name? {
                "request_id" => Some(TemplatePart::RequestId),
                "retry_after" => Some(TemplatePart::RetryAfter),
                "reason" => Some(TemplatePart::Reason),
                "route" => Some(TemplatePart::Route),
                _ => None,
            },
        };
        template::pieces(text)
            .into_iter()
            .filter_map(part)
            .collect()
    }
}
