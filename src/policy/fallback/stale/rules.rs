//! Which responses may be kept, for how long, and which of their headers: RFC 9111 (HTTP Caching),
//! RFC 5861 (`stale-if-error`), and the rules of `docs/config.md`.

use crate::base::headers::{HeaderMap, NameSet, parse_number};
use crate::base::http_date;
use crate::base::sort;
use crate::base::time::UnixTime;
use crate::request::reserved::IDENTITIES;

/// The most headers of a kept response.
const MAX_HEADERS: usize = 100;

/// The most names in a `Vary`, and directives in a `Cache-Control`, of a response that is kept: one
/// with more is not worth the work of each request.
const MAX_WORDS: usize = 32;

/// Request headers by which a client asks a service for something else than method, host and path
/// say. (Bug avoided: an answer full of links to the host that one client made up, kept for all.)
const STEERING: &[&str] = &[
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// Response headers that hand their client something of its own: not kept, as with a cookie.
const OWN: &[&str] = &[
    "access-token",
    "authentication-info",
    "authorization",
    "content-range",
    "csrf-token",
    "set-cookie",
    "set-cookie2",
    "x-access-token",
    "x-api-key",
    "x-auth-token",
    "x-csrf-token",
    "x-id-token",
    "x-refresh-token",
    "x-session-id",
    "x-session-token",
    "x-xsrf-token",
];

/// Headers of the connection, of the exchange that is over, or of the message's framing: not kept.
/// So is all that `Connection` names.
const DROPPED: &[&str] = &[
    "age",
    "connection",
    "content-length",
    "endpoint-load-metrics",
    "grpc-retry-pushback-ms",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "proxy-status",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "server-timing",
    "set-cookie",
    "set-cookie2",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "warning",
    "x-request-id",
];

/// Fields like `Cache-Control` that speak to caches in front of haven (RFC 9213), and those that
/// vendors have made of them.
const TARGETED: &[&str] = &[
    "cdn-cache-control",
    "cloudflare-cdn-cache-control",
    "edge-control",
    "netlify-cdn-cache-control",
    "surrogate-control",
    "vercel-cdn-cache-control",
];

/// Families of such headers.
const DROPPED_FAMILIES: &[&str] = &[":", "x-envoy-", "x-haven-", "x-ratelimit-"];

/// Why an answer to a GET with status 200 is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unkept {
    /// The request's own headers or its body are not for others.
    Request,
    /// The answer's directives say so.
    Forbidden,
    /// It hands its client something of its own.
    Personal,
    /// It may be for one user alone.
    Cookie,
    /// It varies by anything, or by too much.
    Vary,
    /// It is too old already.
    Expired,
    /// Its headers are too many or too long, or no headers.
    Headers,
    /// Its body is too long.
    TooLarge,
    /// Too many are being copied.
    NoRoom,
    /// Where its body ends can't be told from where its upstream did.
    NoEnd,
    /// It was cut.
    Cut,
}

impl Unkept {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Request,
        Self::Forbidden,
        Self::Personal,
        Self::Cookie,
        Self::Vary,
        Self::Expired,
        Self::Headers,
        Self::TooLarge,
        Self::NoRoom,
        Self::NoEnd,
        Self::Cut,
    ];

    /// Its name in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Forbidden => "forbidden",
            Self::Personal => "personal",
            Self::Cookie => "cookie",
            Self::Vary => "vary",
            Self::Expired => "expired",
            Self::Headers => "headers",
            Self::TooLarge => "too_large",
            Self::NoRoom => "no_room",
            Self::NoEnd => "no_end",
            Self::Cut => "cut",
        }
    }
}

/// The longest time in seconds; what is longer is as good as unbounded (RFC 9111, 1.2.2).
const MOST: u32 = i32::MAX.unsigned_abs();

/// How a response may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its age when it came, in seconds.
    pub age: u32,
    /// The age in seconds up to which it may be used; `u32::MAX` = no bound of its own.
    pub limit: u32,
}

impl Terms {
    /// The same of an answer that is at least this old; `None`: it may not be used any more.
    #[must_use]
    pub fn aged(self, apparent: u32) -> Option<Self> {
        let age = self.age.max(apparent);
        (age < self.limit).then_some(Self { age, ..self })
    }
}

/// The request headers that tell kept responses apart without being named in a `Vary`. `public`: not
/// those that tell who the client is.
#[must_use]
pub fn telling(public: bool) -> NameSet {
    let mut names = NameSet::default();
    let identities = if public { &[] } else { IDENTITIES };
    // A cookie tells apart what the response or the configuration says that it does.
    let identities = identities.iter().filter(|name| **name != "cookie");
    for name in identities.chain(STEERING) {
        names.add(name);
    }
    names
}

/// Whether the request's own headers let its response be kept.
#[must_use]
pub fn lets_keep(request: &HeaderMap) -> bool {
    request.get("authorization").is_none()
        && Directives::of(request).is_some_and(|directives| !directives.no_store)
}

/// On what terms this response to a GET may be kept. `vary`: what it varies by. `by_cookie`: the
/// configuration varies responses by cookie.
///
/// # Errors
/// Why it may not be kept at all.
pub fn terms(
    request: &HeaderMap,
    response: &HeaderMap,
    vary: &[String],
    by_cookie: bool,
) -> Result<Terms, Unkept> {
    let personal = OWN.iter().any(|name| response.get(name).is_some());
    let directives = Directives::of(response).ok_or(Unkept::Forbidden)?;
    let forbidden = |it: &Directives| it.no_store || it.private || it.no_cache;
    // What speaks to other caches only forbids.
    let targeted = TARGETED
        .iter()
        .any(|name| Directives::of_field(response, name).is_none_or(|it| forbidden(&it)));
    if personal {
        return Err(Unkept::Personal);
    }
    if forbidden(&directives) || targeted {
        return Err(Unkept::Forbidden);
    }
    let undirected = response.get("cache-control").is_none();
    if undirected && says_no_cache(response) {
        return Err(Unkept::Forbidden);
    }
    // RFC 9111, 4.2.1: `Expires` counts where `Cache-Control` has no age.
    let told = directives.s_maxage.or(directives.max_age);
    let by_date = told.map_or_else(|| expires_in(response), |_| None);
    if by_date == Some(0) {
        return Err(Unkept::Expired);
    }
    // Most sites recognise users by a cookie, and many omit `Vary: cookie`.
    let for_one =
        request.get("cookie").is_some() && !directives.public && directives.s_maxage.is_none();
    if for_one && !by_cookie && !vary.iter().any(|name| name == "cookie") {
        return Err(Unkept::Cookie);
    }
    let age = response
        .get("age")
        .map(<[u8]>::trim_ascii)
        .map_or(0, seconds);
    let fresh = told.or(by_date).unwrap_or(0);
    let limit = match directives.stale_if_error {
        _ if directives.must_revalidate => fresh,
        Some(more) => fresh.saturating_add(more),
        // RFC 9111, 5.2.2.10: `s-maxage` makes shared caches revalidate.
        None if directives.s_maxage.is_some() => fresh,
        None => u32::MAX,
    };
    if age < limit {
        Ok(Terms { age, limit })
    } else {
        Err(Unkept::Expired)
    }
}

/// `Pragma: no-cache`, which many servers send where they mean `Cache-Control` (RFC 9111, 5.4), and
/// nginx's `X-Accel-Expires: 0`.
fn says_no_cache(response: &HeaderMap) -> bool {
    let mut accel = response.all("x-accel-expires");
    accel.any(|value| value.trim_ascii() == b"0")
        || response.all("pragma").any(|value| {
            let mut words = value.split(|b| matches!(b, b',' | b';'));
            words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"no-cache"))
        })
}

/// For how long the answer is fresh by its `Expires`, in seconds, counted from its own `Date`: both
/// are of one clock. `None`: it has no `Expires`. 0: that is no date, such as `0`, or there is no
/// `Date` to count from, or it does not lie after that (RFC 9111, 4.2.1 and 5.3).
fn expires_in(response: &HeaderMap) -> Option<u32> {
    let expires = http_date::parse(response.get("expires")?);
    let sent = response.get("date").and_then(http_date::parse);
    let fresh = expires.zip(sent).map_or(0, |(expires, sent)| {
        expires.as_secs().saturating_sub(sent.as_secs())
    });
    Some(u32::try_from(fresh).unwrap_or(MOST).min(MOST))
}

/// How old the answer was when it came, by its own `Date`, in seconds: a cache on its way may have
/// said nothing of itself (RFC 9111, 4.2.3). A `Date` that is none, or that lies ahead, tells nothing;
/// an upstream whose clock is behind the proxy's has its answers taken for older than they are, and
/// none for younger.
#[must_use]
pub fn apparent_age(response: &HeaderMap, received: UnixTime) -> u32 {
    let sent = response.get("date").and_then(http_date::parse);
    let age = sent.map_or(0, |sent| received.as_secs().saturating_sub(sent.as_secs()));
    u32::try_from(age).unwrap_or(MOST).min(MOST)
}

/// Whether the message itself says where its body ends, though not how long it is.
#[must_use]
pub fn is_chunked(response: &HeaderMap) -> bool {
    response.get("transfer-encoding").is_some_and(|value| {
        value
            .trim_ascii()
            .to_ascii_lowercase()
            .ends_with(b"chunked")
    })
}

/// The request headers in the response's `Vary`: lower case, sorted, each once; and that by which a
/// service picks an encoding, if it has one. `None`: `*`, too many, or a value that is no list of
/// names.
#[must_use]
pub fn varied(response: &HeaderMap) -> Option<Vec<String>> {
    let mut names = Vec::new();
    if response.get("content-encoding").is_some() {
        names.push("accept-encoding".to_owned());
    }
    for name in response
        .all("vary")
        .flat_map(|value| value.split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
    {
        if name == b"*" || !name.iter().all(|b| is_token(*b)) {
            return None;
        }
        if !name.is_empty() {
            if names.len() >= MAX_WORDS {
                return None;
            }
            names.push(String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
    sort::by(&mut names, |one, other| one < other);
    names.dedup();
    Some(names)
}

/// The headers to keep; `None`: there are too many, or a host would not accept them.
#[must_use]
pub fn kept(response: &HeaderMap) -> Option<HeaderMap> {
    let named: Vec<&[u8]> = response
        .all("connection")
        .flat_map(|value| value.split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty())
        .collect();
    let is = |name: &[u8], other: &[u8]| name.eq_ignore_ascii_case(other);
    let begins = |name: &[u8], family: &str| {
        name.get(..family.len())
            .is_some_and(|n| is(n, family.as_bytes()))
    };
    let pairs: Vec<_> = response
        .iter()
        .filter(|(name, _)| {
            !DROPPED.iter().any(|dropped| is(name, dropped.as_bytes()))
                && !DROPPED_FAMILIES.iter().any(|family| begins(name, family))
                && !named.iter().any(|other| is(name, other))
        })
        .collect();
    let map = HeaderMap::from_pairs(&pairs);
    are_sound(&map).then_some(map)
}

/// Whether a host can send these headers as they are.
#[must_use]
pub fn are_sound(headers: &HeaderMap) -> bool {
    let mut number = 0usize;
    headers.iter().all(|(name, value)| {
        number = number.saturating_add(1);
        number <= MAX_HEADERS
            && !name.is_empty()
            && name.iter().all(|b| is_token(*b))
            && !value.iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127))
    })
}

/// RFC 9110, 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// What a `Cache-Control` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Directives {
    no_store: bool,
    private: bool,
    no_cache: bool,
    public: bool,
    must_revalidate: bool,
    max_age: Option<u32>,
    s_maxage: Option<u32>,
    stale_if_error: Option<u32>,
}

impl Directives {
    /// `None`: it cannot be parsed, so that it may forbid anything.
    fn of(headers: &HeaderMap) -> Option<Self> {
        Self::of_field(headers, "cache-control")
    }

    fn of_field(headers: &HeaderMap, field: &str) -> Option<Self> {
        let (mut it, mut words) = (Self::default(), 0usize);
        for line in headers.all(field) {
            let mut rest = line;
            while !rest.is_empty() {
                words = words.saturating_add(1);
                if words > MAX_WORDS {
                    return None;
                }
                let directive;
                (directive, rest) = next(rest)?;
                it.add(directive);
            }
        }
        Some(it)
    }

    fn add(&mut self, directive: &[u8]) {
        let (name, value) = match directive.iter().position(|b| *b == b'=') {
            Some(at) => directive.split_at(at),
            None => (directive, &[][..]),
        };
        let value = value.get(1..).unwrap_or(&[]).trim_ascii();
        let value = value
            .strip_prefix(b"\"")
            .and_then(|value| value.strip_suffix(b"\""))
            .unwrap_or(value);
        let name = name.trim_ascii();
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        // A value that is no number makes a response stale at once (RFC 9111, 4.2.1); of several
        // values the least counts.
        let least = |known: Option<u32>| {
            let new = seconds(value);
            Some(known.map_or(new, |known| known.min(new)))
        };
        if is("no-store") {
            self.no_store = true;
        } else if is("private") {
            self.private = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") || is("proxy-revalidate") {
            self.must_revalidate = true;
        } else if is("max-age") {
            self.max_age = least(self.max_age);
        } else if is("s-maxage") {
            self.s_maxage = least(self.s_maxage);
        } else if is("stale-if-error") {
            self.stale_if_error = least(self.stale_if_error);
        }
    }
}

/// Splits off a directive at its comma, or at the semicolon that some write for it; neither counts
/// in quotes. `None`: a quote does not end.
fn next(list: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in list.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' | b';' if !quoted => {
                return Some((list.get(..at)?, list.get(at.saturating_add(1)..)?));
            }
            _ => {}
        }
    }
    (!quoted).then_some((list, &[]))
}

/// Seconds; 0 if it is no number. From 68 years on it counts as unbounded (RFC 9111, 1.2.2).
fn seconds(text: &[u8]) -> u32 {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    match parse_number(text) {
        Some(number) => u32::try_from(number).unwrap_or(MOST).min(MOST),
        None if digits => MOST,
        None => 0,
    }
}
