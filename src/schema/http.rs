//! What HTTP's messages are made of: header names, methods, paths, hosts, statuses.

use crate::schema::decode::{Decode, MapKey};
use crate::schema::json::{Json, scaled};
use crate::schema::shape::{Scalar, Schema, Text};
use crate::schema::text::{keep, text_type};

text_type! {
    /// A header's name, in lower case.
    HeaderName(HEADER_NAME, "a header name", |text| {
        is_token(text, 128).then(|| text.to_ascii_lowercase())
    }, r#"{"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$"}"#);

    /// A header's value. CR and LF would end the header and begin another.
    HeaderValue(
        HEADER_VALUE,
        "a header value: at most 4096 bytes without control characters",
        |text| {
            let ok = |char: char| !char.is_control() || char == '\t';
            keep(text, text.len() <= 4096 && text.chars().all(ok))
        },
        r#"{"type": "string", "maxLength": 4096}"#
    );

    /// A token of HTTP, in its own case: a cookie's name.
    Token(TOKEN, "a token of HTTP", |text| {
        keep(text, is_token(text, 128))
    }, r#"{"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$"}"#);

    /// A method, in upper case.
    Method(METHOD, "an HTTP method", |text| {
        is_token(text, 32).then(|| text.to_ascii_uppercase())
    }, r#"{"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}$"}"#);

    /// A path without a query.
    UrlPath(
        URL_PATH,
        "a path that starts with \"/\", percent-encoded, without \"?\" and \"#\"",
        |text| keep(text, is_path(text)),
        r#"{"type": "string", "pattern": "^/[!\"$->@-~]*$", "maxLength": 1024}"#
    );
}

impl MapKey for HeaderName {
    const TEXT: &'static Text = HEADER_NAME;
    const PLACEHOLDER: &'static str = "HEADER";
}

impl MapKey for Token {
    const TEXT: &'static Text = TOKEN;
    const PLACEHOLDER: &'static str = "COOKIE";
}

/// HTTP statuses: `"500-599"`, `"503"` or `503`.
#[derive(Debug)]
pub struct Statuses;

impl Decode for Statuses {
    const SCHEMA: &'static Schema = &Schema::Scalar(&Scalar {
        want: "a status or range from 100 to 599 like \"500-599\" or 503",
        canon: |json| {
            statuses(json).map(|range| [&range.0.to_string(), "-", &range.1.to_string()].concat())
        },
        #[cfg(not(target_arch = "wasm32"))]
        json_schema: r#"{"anyOf": [
            {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
            {"type": "integer", "minimum": 100, "maximum": 599}
        ]}"#,
    });

    /// The first and the last.
    type Value = (u16, u16);

    fn decode(json: &Json) -> Self::Value {
        statuses(json).unwrap_or_default()
    }
}

fn statuses(json: &Json) -> Option<(u16, u16)> {
    let status = |text: &str| {
        if text.len() == 3 {
            text.parse::<u16>().ok()
        } else {
            None
        }
    };
    let (low, high) = match json {
        Json::String(text) => match text.split_once('-') {
            Some((low, high)) => (status(low)?, status(high)?),
            None => (status(text)?, status(text)?),
        },
        Json::Number(number) => {
            let one = u16::try_from(scaled(number, 1)?).ok()?;
            (one, one)
        }
        _ => return None,
    };
    (100 <= low && low <= high && high <= 599).then_some((low, high))
}

/// A host, or `*.` and a domain, or `*`, in lower case.
pub(crate) fn host(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let ok = if let Some(suffix) = lower.strip_prefix('*') {
        suffix.is_empty() || suffix.strip_prefix('.').is_some_and(is_host)
    } else if let Some(literal) = lower
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        literal.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        is_host(&lower)
    };
    ok.then_some(lower)
}

/// A host without a star, in lower case.
pub(crate) fn exact_host(text: &str) -> Option<String> {
    host(text).filter(|host| !host.starts_with('*'))
}

fn is_token(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether this is a path without a query.
pub(crate) fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= 1024
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#')
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        })
}
