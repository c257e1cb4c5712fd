//! Strings with a grammar: names, headers, hosts, paths, addresses, templates.

use std::net::{IpAddr, SocketAddr};

use super::collect::Key;
use super::error::{Errors, Path};
use super::json::{Json, scaled};
use super::read::Read;
use super::scalar::{Scalar, read_scalar};
use super::{Cidr, HostMatch, TemplatePart};

/// A string with a grammar.
trait Text: Default {
    const WANT: &'static str;

    fn text(text: &str) -> Option<Self>;

    #[cfg(not(target_arch = "wasm32"))]
    fn pattern() -> serde_json::Value {
        serde_json::json!({ "type": "string" })
    }
}

macro_rules! read_text {
    ($($type:ty),*) => { $(
        impl Scalar for $type {
            fn want() -> String {
                <Self as Text>::WANT.into()
            }

            fn parse(json: &Json) -> Option<Self> {
                match json {
                    Json::String(text) => Self::text(text),
                    _ => None,
                }
            }

            #[cfg(not(target_arch = "wasm32"))]
            fn schema() -> serde_json::Value {
                Self::pattern()
            }
        }

        impl Read for $type {
            read_scalar!();
        }
    )* };
}

read_text!(Name, Label, Value, HeaderName, HeaderValue, Token, Method, Host, UrlPath, Pattern, Address, Net, Quantile);

macro_rules! string_type {
    ($($(#[doc = $doc:literal])* $type:ident;)*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) struct $type(pub(super) String);
    )* };
}

string_type! {
    /// The name of a policy, an upstream or a route.
    Name;
    /// Text on one line for people.
    Label;
    /// A piece of a request to compare with: any text.
    Value;
    /// A header's name, in lower case.
    HeaderName;
    /// A header's value.
    HeaderValue;
    /// A token of HTTP, in its own case: a cookie's name.
    Token;
    /// A method, in upper case.
    Method;
    /// A path without a query.
    UrlPath;
    /// A path in which `{name}` stands for any one segment.
    Pattern;
    /// `ip:port`, in canonical form.
    Address;
}

impl Text for Name {
    const WANT: &'static str = "a name: 1 to 64 of A-Z a-z 0-9 . _ : / -";

    fn text(text: &str) -> Option<Self> {
        let ok = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte));
        ok.then(|| Self(text.into()))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn pattern() -> serde_json::Value {
        serde_json::json!({ "type": "string", "pattern": "^[A-Za-z0-9._:/-]{1,64}$" })
    }
}

impl Key for Name {
    fn key(text: &str) -> Option<Self> {
        Self::text(text)
    }

    fn want() -> String {
        Self::WANT.into()
    }

    #[cfg(not(target_arch = "wasm32"))]
    const PLACEHOLDER: &'static str = "NAME";

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        Self::pattern()
    }
}

impl Text for Label {
    const WANT: &'static str = "a text of 1 to 255 bytes without control characters";

    fn text(text: &str) -> Option<Self> {
        let ok = (1..=255).contains(&text.len()) && !text.chars().any(char::is_control);
        ok.then(|| Self(text.into()))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn pattern() -> serde_json::Value {
        serde_json::json!({ "type": "string", "minLength": 1, "maxLength": 255 })
    }
}

impl Text for Value {
    const WANT: &'static str = "a text of at most 1024 bytes";

    fn text(text: &str) -> Option<Self> {
        (text.len() <= 1024).then(|| Self(text.into()))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn pattern() -> serde_json::Value {
        serde_json::json!({ "type": "string", "maxLength": 1024 })
    }
}

impl Text for HeaderName {
    const WANT: &'static str = "a header name";

    fn text(text: &str) -> Option<Self> {
        is_token(text, 128).then(|| Self(text.to_ascii_lowercase()))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn pattern() -> serde_json::Value {
        serde_json::json!({ "type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$" })
    }
}

impl Key for HeaderName {
    fn key(text: &str) -> Option<Self> {
        Self::text(text)
    }

    fn want() -> String {
        Self::WANT.into()
    }

    #[cfg(not(target_arch = "wasm32"))]
    const PLACEHOLDER: &'static str = "HEADER";

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        Self::pattern()
    }
}

impl Text for HeaderValue {
    const WANT: &'static str = "a header value: at most 4096 bytes without control characters";

    fn text(text: &str) -> Option<Self> {
        // CR and LF would end the header and begin another.
        let ok = text.len() <= 4096 && text.chars().all(|char| !char.is_control() || char == '\t');
        ok.then(|| Self(text.into()))
    }
}

impl Text for Token {
    const WANT: &'static str = "a token of HTTP";

    fn text(text: &str) -> Option<Self> {
        is_token(text, 128).then(|| Self(text.into()))
    }
}

impl Text for Method {
    const WANT: &'static str = "an HTTP method";

    fn text(text: &str) -> Option<Self> {
        is_token(text, 32).then(|| Self(text.to_ascii_uppercase()))
    }
}

impl Text for UrlPath {
    const WANT: &'static str = "a path that starts with \"/\", percent-encoded, without \"?\" and \"#\"";

    fn text(text: &str) -> Option<Self> {
        is_path(text).then(|| Self(text.into()))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn pattern() -> serde_json::Value {
        serde_json::json!({ "type": "string", "pattern": "^/[!\"$->@-~]*$", "maxLength": 1024 })
    }
}

impl Text for Pattern {
    const WANT: &'static str = "a path that starts with \"/\" like \"/users/{id}\", where each placeholder is a whole segment with a name \
                                of its own";

    fn text(text: &str) -> Option<Self> {
        if !is_path(text) {
            return None;
        }
        let mut names = Vec::new();
        for segment in text.split('/') {
            match placeholder(segment) {
                Some(name) if name.is_empty() || name.contains(['{', '}']) || names.contains(&name) => return None,
                Some(name) => names.push(name),
                None if segment.contains(['{', '}']) => return None,
                None => {}
            }
        }
        Some(Self(text.into()))
    }
}

impl Pattern {
    /// Its segments; `None` stands for a placeholder.
    pub(super) fn segments(&self) -> Vec<Option<String>> {
        let literal = |segment: &str| placeholder(segment).is_none().then(|| segment.into());
        self.0.split('/').skip(1).map(literal).collect()
    }
}

fn placeholder(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

impl Text for Address {
    const WANT: &'static str = "an address like \"192.168.1.10:8080\" or \"[::1]:8080\"";

    fn text(text: &str) -> Option<Self> {
        let address = text.parse::<SocketAddr>().ok()?;
        let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        (address.port() != 0 && !scoped).then(|| Self(address.to_string()))
    }
}

/// A network; its address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Net(pub(super) Cidr);

impl Default for Net {
    fn default() -> Self {
        Self(Cidr { address: 0, prefix: 128 })
    }
}

impl Text for Net {
    const WANT: &'static str = "a network like \"10.0.0.0/8\" or \"2001:db8::/32\"";

    fn text(text: &str) -> Option<Self> {
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
        Some(Self(Cidr { address: u128::from(address) & !host, prefix }))
    }
}

/// A host, or all hosts below a domain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Host(pub(super) HostMatch);

impl Default for Host {
    fn default() -> Self {
        Self(HostMatch::Exact(String::new()))
    }
}

impl Text for Host {
    const WANT: &'static str = "a host without a port like \"example.com\", \"*.example.com\" or \"*\"";

    fn text(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        if let Some(suffix) = lower.strip_prefix('*') {
            let ok = suffix.is_empty() || suffix.strip_prefix('.').is_some_and(is_host);
            return ok.then(|| Self(HostMatch::Suffix(suffix.into())));
        }
        let literal = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let ok = match literal {
            Some(literal) => literal.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host(&lower),
        };
        ok.then_some(Self(HostMatch::Exact(lower)))
    }
}

/// `p50`: a quantile of what was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Quantile(pub(super) u8);

impl Text for Quantile {
    const WANT: &'static str = "a quantile from \"p1\" to \"p99\"";

    fn text(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('p').filter(|rest| !rest.starts_with(['0', '+']))?;
        digits.parse().ok().filter(|n| (1..=99).contains(n)).map(Self)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn pattern() -> serde_json::Value {
        serde_json::json!({ "type": "string", "pattern": "^p[1-9][0-9]?$" })
    }
}

/// A body of at most 64 KiB with placeholders.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Template(pub(super) Vec<TemplatePart>);

impl Read for Template {
    fn want() -> String {
        "a text of at most 65536 bytes".into()
    }

    fn read(at: &Path<'_>, json: &Json, errors: &mut Errors) -> Self {
        let mut rest = match json {
            Json::String(text) if text.len() <= 65_536 => text.as_str(),
            _ => {
                errors.refuse(at, json, &Self::want());
                return Self::default();
            }
        };
        let mut parts = Vec::new();
        while let Some((literal, tail)) = rest.split_once("{{") {
            let (name, tail) = tail.split_once("}}").map_or((None, ""), |(name, tail)| (Some(name.trim()), tail));
            let part = match name {
                Some("request_id") => TemplatePart::RequestId,
                Some("retry_after") => TemplatePart::RetryAfter,
                Some("reason") => TemplatePart::Reason,
                Some("route") => TemplatePart::Route,
                _ => {
                    let shown = rest.get(literal.len()..rest.len().saturating_sub(tail.len())).unwrap_or_default();
                    let want = "{{request_id}}, {{retry_after}}, {{reason}}, {{route}}";
                    errors.refuse_text(at, shown, &["one of the placeholders ", want].concat());
                    TemplatePart::Literal(String::new())
                }
            };
            if !literal.is_empty() {
                parts.push(TemplatePart::Literal(literal.into()));
            }
            parts.push(part);
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Literal(rest.into()));
        }
        Self(parts)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "type": "string", "maxLength": 65_536 })
    }
}

/// HTTP statuses: `"500-599"`, `"503"` or `503`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Statuses(pub(super) u16, pub(super) u16);

impl Scalar for Statuses {
    fn want() -> String {
        "a status or range from 100 to 599 like \"500-599\" or 503".into()
    }

    fn parse(json: &Json) -> Option<Self> {
        let status = |text: &str| text.parse().ok().filter(|n| text.len() == 3 && (100..=599).contains(n));
        let (low, high) = match json {
            Json::String(text) => match text.split_once('-') {
                Some((low, high)) => (status(low)?, status(high)?),
                None => (status(text)?, status(text)?),
            },
            Json::Number(text) => {
                let one = u16::try_from(scaled(text, 0)?).ok().filter(|n| (100..=599).contains(n))?;
                (one, one)
            }
            _ => return None,
        };
        (low <= high).then_some(Self(low, high))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "anyOf": [
            { "type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$" },
            { "type": "integer", "minimum": 100, "maximum": 599 }
        ] })
    }
}

impl Read for Statuses {
    read_scalar!();
}

fn is_token(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= 1024
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#')
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        })
}
