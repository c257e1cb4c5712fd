//! Strings with a grammar: names, headers, hosts, paths, addresses, templates.

use std::net::{IpAddr, SocketAddr};

use super::error::{Errors, Path};
use super::json::{Json, scaled};
use super::kind::{Kind, Scalar, Text};
use super::take::{Key, Take};
use super::{Cidr, HostMatch, TemplatePart};

/// Defines strings that are kept in their canonical form: what is allowed, the form, and the JSON
/// schema.
macro_rules! string_type {
    ($( $(#[doc = $doc:literal])* $type:ident($const:ident, $want:expr, $canon:expr, $schema:expr); )*) => { $(
        $(#[doc = $doc])*
        pub(super) struct $type;

        pub(super) const $const: &Text = &Text {
            want: $want,
            canon: $canon,
            #[cfg(not(target_arch = "wasm32"))]
            schema: $schema,
        };

        impl Take for $type {
            const KIND: &'static Kind = &Kind::Text($const);

            type Value = String;

            fn take(json: &Json) -> String {
                canon($const, json)
            }
        }
    )* };
}

fn canon(text: &Text, json: &Json) -> String {
    match json {
        Json::String(string) => (text.canon)(string).unwrap_or_default(),
        _ => String::new(),
    }
}

string_type! {
    /// The name of a policy, an upstream or a route.
    Name(NAME, "a name: 1 to 64 of A-Z a-z 0-9 . _ : / -", |text| {
        let ok = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
        keep(text, (1..=64).contains(&text.len()) && text.bytes().all(ok))
    }, r#"{"type": "string", "pattern": "^[A-Za-z0-9._:/-]{1,64}$"}"#);

    /// Text on one line for people.
    Label(LABEL, "a text of 1 to 255 bytes without control characters", |text| {
        keep(text, (1..=255).contains(&text.len()) && !text.chars().any(char::is_control))
    }, r#"{"type": "string", "minLength": 1, "maxLength": 255}"#);

    /// A piece of a request to compare with: any text.
    Value(VALUE, "a text of at most 1024 bytes", |text| keep(text, text.len() <= 1024), r#"{"type": "string", "maxLength": 1024}"#);

    /// A header's name, in lower case.
    HeaderName(HEADER_NAME, "a header name", |text| {
        is_token(text, 128).then(|| text.to_ascii_lowercase())
    }, r#"{"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$"}"#);

    /// A header's value. CR and LF would end the header and begin another.
    HeaderValue(HEADER_VALUE, "a header value: at most 4096 bytes without control characters", |text| {
        keep(text, text.len() <= 4096 && text.chars().all(|char| !char.is_control() || char == '\t'))
    }, r#"{"type": "string", "maxLength": 4096}"#);

    /// A token of HTTP, in its own case: a cookie's name.
    Token(TOKEN, "a token of HTTP", |text| {
        keep(text, is_token(text, 128))
    }, r#"{"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$"}"#);

    /// A method, in upper case.
    Method(METHOD, "an HTTP method", |text| {
        is_token(text, 32).then(|| text.to_ascii_uppercase())
    }, r#"{"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}$"}"#);

    /// A path without a query.
    UrlPath(URL_PATH, "a path that starts with \"/\", percent-encoded, without \"?\" and \"#\"", |text| {
        keep(text, is_path(text))
    }, r#"{"type": "string", "pattern": "^/[!\"$->@-~]*$", "maxLength": 1024}"#);

    /// A path in which `{name}` stands for any one segment.
    Pattern(
        PATTERN,
        "a path that starts with \"/\" like \"/users/{id}\", where each placeholder is a whole segment with a name of its own",
        |text| keep(text, is_path(text) && is_pattern(text)),
        r#"{"type": "string", "pattern": "^/[!\"$->@-~]*$", "maxLength": 1024}"#
    );

    /// `ip:port`, in canonical form.
    Address(ADDRESS, "an address like \"192.168.1.10:8080\" or \"[::1]:8080\"", |text| {
        let address = text.parse::<SocketAddr>().ok()?;
        let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        (address.port() != 0 && !scoped).then(|| address.to_string())
    }, r#"{"type": "string"}"#);

    /// `p50`: a quantile of what was observed.
    Quantile(QUANTILE, "a quantile from \"p1\" to \"p99\"", |text| {
        let digits = text.strip_prefix('p').filter(|digits| !digits.starts_with(['0', '+']))?;
        let n = digits.parse::<u8>().ok()?;
        keep(text, n <= 99)
    }, r#"{"type": "string", "pattern": "^p[1-9][0-9]?$"}"#);
}

/// The name of an entry of section `SECTION` (see [`SECTIONS`]).
pub(super) struct Reference<const SECTION: usize>;

/// What references may name.
pub(super) const SECTIONS: [&str; 7] = [
    "upstreams",
    "rate_limits",
    "circuit_breakers",
    "concurrency_limits",
    "fallbacks",
    "switches",
    "components",
];
pub(super) const UPSTREAM: usize = 0;
pub(super) const RATE_LIMIT: usize = 1;
pub(super) const BREAKER: usize = 2;
pub(super) const CONCURRENCY_LIMIT: usize = 3;
pub(super) const FALLBACK: usize = 4;
pub(super) const SWITCH: usize = 5;
pub(super) const COMPONENT: usize = 6;

impl<const SECTION: usize> Take for Reference<SECTION> {
    const KIND: &'static Kind = {
        #[allow(
            clippy::indexing_slicing,
            reason = "in a constant the index is checked at compile time"
        )]
        &Kind::Reference(SECTIONS[SECTION])
    };

    type Value = String;

    fn take(json: &Json) -> String {
        canon(NAME, json)
    }
}

impl Key for Name {
    const TEXT: &'static Text = NAME;
    const PLACEHOLDER: &'static str = "NAME";
}

impl Key for HeaderName {
    const TEXT: &'static Text = HEADER_NAME;
    const PLACEHOLDER: &'static str = "HEADER";
}

impl Key for Token {
    const TEXT: &'static Text = TOKEN;
    const PLACEHOLDER: &'static str = "COOKIE";
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
pub(super) fn segments(pattern: &str) -> Vec<Option<String>> {
    let literal = |segment: &str| placeholder(segment).is_none().then(|| segment.into());
    pattern.split('/').skip(1).map(literal).collect()
}

fn placeholder(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

/// A network; its address alone is a network of one.
pub(super) struct Net;

impl Take for Net {
    const KIND: &'static Kind = &Kind::Text(&Text {
        want: "a network like \"10.0.0.0/8\" or \"2001:db8::/32\"",
        canon: |text| {
            net(text).map(|net| [&net.address.to_string(), "/", &net.prefix.to_string()].concat())
        },
        #[cfg(not(target_arch = "wasm32"))]
        schema: r#"{"type": "string"}"#,
    });

    type Value = Cidr;

    fn take(json: &Json) -> Cidr {
        match json {
            Json::String(text) => net(text).unwrap_or_default(),
            _ => Cidr::default(),
        }
    }
}

fn net(text: &str) -> Option<Cidr> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
            (address, Some(prefix.parse::<u8>().ok()?))
        }
        Some(_) => return None,
        None => (text, None),
    };
    let (address, bits, offset) = match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 32, 96_u8),
        IpAddr::V6(v6) => (v6, 128, 0),
    };
    let prefix = prefix.unwrap_or(bits);
    if prefix > bits {
        return None;
    }
    let prefix = prefix.saturating_add(offset);
    let host = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Some(Cidr {
        address: u128::from(address) & !host,
        prefix,
    })
}

/// A host, or all hosts below a domain.
pub(super) struct Host;

impl Take for Host {
    const KIND: &'static Kind = &Kind::Text(&Text {
        want: "a host without a port like \"example.com\", \"*.example.com\" or \"*\"",
        canon: host,
        #[cfg(not(target_arch = "wasm32"))]
        schema: r#"{"type": "string"}"#,
    });

    type Value = HostMatch;

    fn take(json: &Json) -> HostMatch {
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

fn host(text: &str) -> Option<String> {
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
pub(super) fn exact_host(text: &str) -> Option<String> {
    host(text).filter(|host| !host.starts_with('*'))
}

/// A body of at most 64 KiB with placeholders.
pub(super) struct Template;

impl Take for Template {
    const KIND: &'static Kind = &Kind::Template;

    type Value = Vec<TemplatePart>;

    fn take(json: &Json) -> Self::Value {
        let mut parts = Vec::new();
        if let Json::String(text) = json {
            split(text, |piece| match piece {
                Piece::Literal("") => {}
                Piece::Literal(text) => parts.push(TemplatePart::Literal(text.into())),
                Piece::Placeholder(part, _) => parts.extend(part),
            });
        }
        parts
    }
}

/// Reports the placeholders of `text` that do not exist.
pub(super) fn placeholders(at: &Path<'_>, text: &str, errors: &mut Errors) {
    split(text, |piece| {
        if let Piece::Placeholder(None, text) = piece {
            let want =
                "one of the placeholders {{request_id}}, {{retry_after}}, {{reason}}, {{route}}";
            errors.refuse_text(at, text, want);
        }
    });
}

enum Piece<'a> {
    Literal(&'a str),
    Placeholder(Option<TemplatePart>, &'a str),
}

fn split<'a>(mut text: &'a str, mut found: impl FnMut(Piece<'a>)) {
    while let Some((literal, tail)) = text.split_once("{{") {
        let (name, tail) = tail
            .split_once("}}")
            .map_or((None, ""), |(name, tail)| (Some(name.trim()), tail));
        let part = match name {
            Some("request_id") => Some(TemplatePart::RequestId),
            Some("retry_after") => Some(TemplatePart::RetryAfter),
            Some("reason") => Some(TemplatePart::Reason),
            Some("route") => Some(TemplatePart::Route),
            _ => None,
        };
        found(Piece::Literal(literal));
        let end = text.len().saturating_sub(tail.len());
        found(Piece::Placeholder(
            part,
            text.get(literal.len()..end).unwrap_or_default(),
        ));
        text = tail;
    }
    found(Piece::Literal(text));
}

/// HTTP statuses: `"500-599"`, `"503"` or `503`.
pub(super) struct Statuses;

impl Take for Statuses {
    const KIND: &'static Kind = &Kind::Scalar(&Scalar {
        want: "a status or range from 100 to 599 like \"500-599\" or 503",
        canon: |json| {
            statuses(json).map(|range| [&range.0.to_string(), "-", &range.1.to_string()].concat())
        },
        #[cfg(not(target_arch = "wasm32"))]
        schema: r#"{"anyOf": [
            {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
            {"type": "integer", "minimum": 100, "maximum": 599}
        ]}"#,
    });

    /// The first and the last.
    type Value = (u16, u16);

    fn take(json: &Json) -> Self::Value {
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

fn keep(text: &str, ok: bool) -> Option<String> {
    ok.then(|| text.into())
}

fn is_token(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn is_path(text: &str) -> bool {
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
