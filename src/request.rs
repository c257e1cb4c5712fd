//! Floor 3: a request, borrowed from the header map and parsed on demand; the keys that are made
//! from it, the reasons to refuse it, and haven's own replies.

pub mod client_ip;
pub mod key;
mod names;
mod reason;
pub mod reply;
pub(crate) mod reserved;

pub use reason::Reason;

use crate::base::headers::{Headers, is_name};
use crate::base::ip::Ip;
use names::{decoded, plain, unquoted, without_dot};
use std::borrow::Cow;

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// All its headers.
    pub headers: Headers<'a>,
    /// The method; empty if the host gave none.
    pub method: &'a [u8],
    /// The path without its query.
    pub path: &'a [u8],
    /// What follows the path's `?`.
    pub query: &'a [u8],
    /// The `content-type` of its body.
    pub content_type: Option<&'a [u8]>,
    /// Its `:authority`, or its `host`.
    pub authority: Option<&'a [u8]>,
    /// The client's address; `None` if it is unknown or not needed.
    pub address: Option<Ip>,
    /// The same, cut to the prefix that identifies a client.
    pub client: Option<Ip>,
    /// Name of its route; empty until one is chosen.
    pub route: &'a str,
}

/// The names of what [`Request::new`] reads.
pub const EVERY_REQUEST: [&str; 5] = [":path", ":method", ":authority", "host", "content-type"];

impl<'a> Request<'a> {
    /// Reads the parts that every request has.
    #[must_use]
    pub fn new(headers: impl Into<Headers<'a>>) -> Self {
        let headers = headers.into();
        let (mut method, mut target, mut content_type) = (&[][..], &[][..], None);
        let (mut authority, mut host) = (None, None);
        for (name, value) in headers.watched() {
            // Length first: one comparison rules out most names.
            match name.len() {
                5 if name == b":path" && target.is_empty() => target = value,
                7 if name == b":method" && method.is_empty() => method = value,
                10 if authority.is_none() && is_name(name, b":authority") => {
                    authority = Some(value);
                }
                4 if host.is_none() && is_name(name, b"host") => host = Some(value),
                12 if content_type.is_none() && is_name(name, b"content-type") => {
                    content_type = Some(value);
                }
                _ => {}
            }
        }
        // A fragment never belongs in a request target. A client that sends one must not dodge a
        // path match with it.
        let end = target
            .iter()
            .position(|b| matches!(b, b'?' | b'#'))
            .unwrap_or(target.len());
        let (path, rest) = target.split_at_checked(end).unwrap_or((target, &[]));
        let query = rest
            .strip_prefix(b"?")
            .map_or(&[][..], |query| split(query, b'#').0);
        Self {
            headers,
            method,
            path,
            query,
            content_type,
            authority: authority.or(host),
            address: None,
            client: None,
            route: "",
        }
    }

    /// The path in one spelling of what is the same: `/%61` is `/a`.
    #[must_use]
    pub fn plain_path(&self) -> Cow<'a, [u8]> {
        plain(self.path)
    }

    /// The path as a service reads it.
    #[must_use]
    pub fn decoded_path(&self) -> Cow<'a, [u8]> {
        decoded(self.path, false)
    }

    /// The authority: the host, and its port if there is one.
    fn authority(&self) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        let authority = self.authority?;
        // `[v6]:port`, `host:port`, `host`: a port follows the last colon outside of brackets.
        let port_at = authority.iter().rposition(|b| matches!(b, b':' | b']'));
        match port_at {
            Some(at) if authority.get(at) == Some(&b':') => {
                let (host, port) = authority.split_at_checked(at)?;
                Some((host, port.get(1..)))
            }
            _ => Some((authority, None)),
        }
    }

    /// The port that the request names.
    #[must_use]
    pub fn port(&self) -> Option<&'a [u8]> {
        self.authority()?.1
    }

    /// The host without its port, and without the dot of a complete name; case as sent.
    #[must_use]
    pub fn host(&self) -> Option<&'a [u8]> {
        Some(without_dot(self.authority()?.0))
    }

    /// All values of a header. The proxy shows `Host` as `:authority`.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let name = if name == "host" { ":authority" } else { name };
        self.headers.all(name)
    }

    /// The value of a cookie (RFC 6265, 4.2.1) without quotes, from any of the `Cookie` headers;
    /// the first if there are several, as servers take it.
    #[must_use]
    pub fn cookie(&self, name: &str) -> Option<&'a [u8]> {
        self.headers.all("cookie").find_map(|cookies| {
            cookies.split(|b| *b == b';').find_map(|pair| {
                let (key, value) = split_once(pair.trim_ascii(), b'=')?;
                (key == name.as_bytes()).then_some(unquoted(value))
            })
        })
    }

    /// The values of a query parameter, decoded, names too: `%61` and `+` are what they stand for.
    pub fn query_parameters(&self, name: &str) -> impl Iterator<Item = Cow<'a, [u8]>> {
        let pairs = self.query.split(|b| *b == b'&');
        pairs
            .filter(|pair| !pair.is_empty())
            .filter_map(move |pair| {
                let (key, value) = split(pair, b'=');
                (*decoded(key, true) == *name.as_bytes()).then(|| decoded(value, true))
            })
    }

    /// A non-empty segment of the path, counted from 0, decoded.
    #[must_use]
    pub fn path_segment(&self, index: u32) -> Option<Cow<'a, [u8]>> {
        let path = self.path.strip_prefix(b"/").unwrap_or(self.path);
        let segment = path
            .split(|b| *b == b'/')
            .nth(usize::try_from(index).ok()?)
            .filter(|segment| !segment.is_empty())?;
        Some(decoded(segment, false))
    }

    /// Whether this is a gRPC call (not gRPC-Web): its errors travel in `grpc-status`.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        const GRPC: &[u8] = b"application/grpc";
        self.content_type.is_some_and(|value| {
            value
                .get(..GRPC.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
                && matches!(value.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
        })
    }
}

/// A path without the parameters of its segments: `/a;x=1/b;y` is `/a/b` (RFC 3986, 3.3). Services
/// that know them take them off before they look who is meant, and before they resolve `.` and `..`
/// and merge slashes. So that is done here too: the proxy, which did it before, took `..;` for a
/// name. (Bug avoided: `/;/pay` and `/x/%2e%2e;/pay` passed the limits of `/pay`.)
#[must_use]
pub fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut plain: Vec<&[u8]> = Vec::new();
    let mut rest = path.split(|b| *b == b'/').peekable();
    let mut first = true;
    while let Some(segment) = rest.next() {
        let last = rest.peek().is_none();
        let name = split(segment, b';').0;
        match name {
            // What stands before the first slash is no segment, and a path that ends with a slash
            // keeps it.
            _ if first => plain.push(name),
            b"" | b"." if !last => {}
            b"." => plain.push(b""),
            b".." => {
                if plain.len() > 1 {
                    plain.pop();
                }
                if last {
                    plain.push(b"");
                }
            }
            name => plain.push(name),
        }
        first = false;
    }
    plain.join(&b'/')
}

/// The bytes before and after the first `at`; nothing after if there is none.
fn split(bytes: &[u8], at: u8) -> (&[u8], &[u8]) {
    split_once(bytes, at).unwrap_or((bytes, &[]))
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = bytes.iter().position(|b| *b == at)?;
    let (before, from) = bytes.split_at_checked(position)?;
    Some((before, from.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::headers::HeaderMap;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        HeaderMap::from_pairs(pairs)
    }

    #[test]
    fn parameters_of_segments_are_cut_off() {
        for (path, plain) in [
            ("/api/pay;x", "/api/pay"),
            ("/a;x=1;y=/b;/;z/c", "/a/b/c"),
            ("/;/api/pay", "/api/pay"),
            ("/api/pay/;x", "/api/pay/"),
            ("/x/..;/api/.;y/pay", "/api/pay"),
            ("/..;/..;x/pay;", "/pay"),
            ("/a/b;/..;", "/a/"),
            ("/a/.;", "/a/"),
            ("/..;", "/"),
            ("/;", "/"),
            ("..;/a", "../a"),
            ("/a", "/a"),
            (";", ""),
            ("", ""),
        ] {
            assert_eq!(without_parameters(path.as_bytes()), plain.as_bytes());
        }
    }

    #[test]
    fn path_query_and_segments() {
        let headers = map(&[(":method", "GET"), (":path", "/a/b//d?x=1&y&x=2#f?z=3")]);
        let request = Request::new(&headers);
        assert_eq!(
            (request.method, request.path, request.query),
            (&b"GET"[..], &b"/a/b//d"[..], &b"x=1&y&x=2"[..])
        );
        let segments: Vec<_> = (0..5).map(|i| request.path_segment(i)).collect();
        assert_eq!(
            segments,
            [Some("a"), Some("b"), None, Some("d"), None]
                .map(|segment| segment.map(|segment| Cow::Borrowed(segment.as_bytes())))
        );
        let values = |name: &str| -> Vec<_> {
            let values = request.query_parameters(name);
            values
                .map(|value| String::from_utf8(value.into_owned()).unwrap())
                .collect()
        };
        assert_eq!(values("x"), ["1", "2"]);
        assert_eq!(values("y"), [""]);
        assert!(values("z").is_empty() && values("").is_empty());
        for (target, path, query) in [
            ("/a#f?x", "/a", ""),
            ("/a?", "/a", ""),
            ("?x#", "", "x"),
            ("#", "", ""),
            ("", "", ""),
        ] {
            let headers = map(&[(":path", target)]);
            let request = Request::new(&headers);
            assert_eq!(
                (request.path, request.query),
                (path.as_bytes(), query.as_bytes()),
                "{target}"
            );
        }
    }

    #[test]
    fn hosts_lose_their_port_only() {
        for (authority, host) in [
            ("a.example:80", "a.example"),
            ("a.example", "a.example"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("a.example.", "a.example"),
            ("a.example.:80", "a.example"),
            (".", "."),
            ("", ""),
        ] {
            let headers = map(&[(":authority", authority)]);
            assert_eq!(
                Request::new(&headers).host(),
                Some(host.as_bytes()),
                "{authority}"
            );
        }
        assert_eq!(Request::new(&map(&[])).host(), None);
    }

    #[test]
    fn cookies_are_found_in_any_header() {
        let headers = map(&[("cookie", "a=1; b=x=y;c"), ("cookie", "  d=\"4\"")]);
        let request = Request::new(&headers);
        assert_eq!(request.cookie("b"), Some(&b"x=y"[..]));
        assert_eq!(request.cookie("d"), Some(&b"4"[..]));
        assert_eq!((request.cookie("c"), request.cookie("x")), (None, None));
    }

    #[test]
    fn grpc_is_distinguished_from_grpc_web() {
        for (value, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc+", true),
            ("Application/GRPC;charset=x", true),
            ("application/grpc-", false),
            ("application/grpc-web", false),
            ("application/grpc-web+foo", false),
            ("application/text", false),
            ("", false),
        ] {
            assert_eq!(
                Request::new(&map(&[("content-type", value)])).is_grpc(),
                grpc,
                "{value}"
            );
        }
    }
}
