//! One reading of what a client may send twice.
//!
//! A limit that counts by the first of two header lines, before a service that goes by the last, is
//! no limit. So the headers and cookies that the configuration reads as one value are one for all
//! that follow: haven joins repeated lines of such a header to the list that they are (RFC 9110,
//! 5.3), keeps the first of repeated cookies of one name, and the upstream gets no other.

use crate::base::headers::{HeaderMap, NameSet};
use crate::document::{BalancePolicy, Config, Cost, IpSource, KeyPart, Marks};
use crate::host::{Message, Stream};

const COOKIE: &str = "cookie";

/// The headers and cookies that the configuration reads as one value.
#[derive(Debug, Default)]
pub(super) struct SingleValues {
    headers: NameSet,
    cookies: Vec<String>,
}

/// What a request has had so far: a bit for each header. The last stands for all beyond, for which
/// a repetition is then looked for in vain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    lines: u64,
    /// Something stands twice.
    pub(super) twice: bool,
    reserved: u64,
    /// A header stands twice, and not only a cookie in it.
    pub(super) repeated: bool,
}

impl Seen {
    /// Notes a reserved header, by its place among these.
    pub(super) fn note_reserved(&mut self, at: usize) {
        let bit = 1u64 << at.min(63);
        self.repeated |= self.reserved & bit != 0;
        self.reserved |= bit;
    }
}

impl SingleValues {
    /// Those of this configuration.
    pub(super) fn new(config: &Config) -> Self {
        let mut it = Self::default();
        if config.client_ip.source == IpSource::XRealIp {
            it.headers.add("x-real-ip");
        }
        for limit in &config.rate_limits {
            it.add_parts(&limit.key);
            if let Cost::Header { name, .. } = &limit.cost {
                it.headers.add(name);
            }
        }
        for limit in &config.concurrency_limits {
            it.add_parts(&limit.fair);
        }
        for upstream in &config.upstreams {
            if let BalancePolicy::ConsistentHash { key, .. } = &upstream.policy {
                it.add_parts(key);
            }
        }
        for route in &config.routes {
            for (name, _) in &route.matcher.headers {
                it.headers.add(name);
            }
            if let Some(canary) = &route.canary {
                it.add_parts(&canary.rules.sticky);
                it.add_marks(&canary.rules.forced);
                it.add_marks(&canary.rules.stable);
            }
        }
        if !it.cookies.is_empty() {
            it.headers.add(COOKIE);
        }
        it
    }

    fn add_parts(&mut self, parts: &[KeyPart]) {
        for part in parts {
            match part {
                KeyPart::Header(name) => self.headers.add(name),
                KeyPart::Cookie(name) => self.add_cookie(name),
                _ => {}
            }
        }
    }

    fn add_marks(&mut self, marks: &Marks) {
        for (name, _) in &marks.headers {
            self.headers.add(name);
        }
        for (name, _) in &marks.cookies {
            self.add_cookie(name);
        }
    }

    fn add_cookie(&mut self, name: &str) {
        if !self.cookies.iter().any(|known| known == name) {
            self.cookies.push(name.to_owned());
        }
    }

    /// The names of the headers.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.headers.iter()
    }

    /// Notes a line of the request.
    pub(super) fn note(&self, name: &[u8], value: &[u8], seen: &mut Seen) {
        let Some(at) = self.headers.position(name) else {
            return;
        };
        let bit = 1u64 << at.min(63);
        let repeated = seen.lines & bit != 0;
        seen.repeated |= repeated;
        seen.twice |= repeated
            || (name.eq_ignore_ascii_case(COOKIE.as_bytes()) && self.repeats_cookie(value));
        seen.lines |= bit;
    }

    fn repeats_cookie(&self, line: &[u8]) -> bool {
        self.cookies.iter().any(|name| {
            let its = pairs(line).filter(|pair| cookie_name(pair) == name.as_bytes());
            its.count() > 1
        })
    }

    /// The headers with one value each, which the proxy gets as well.
    pub(super) fn unify<S: Stream>(&self, headers: &HeaderMap, stream: &S) -> HeaderMap {
        let mut left: Vec<(&[u8], Vec<u8>)> = Vec::new();
        for (name, value) in headers.iter() {
            let known = self.headers.find(name).and_then(|known| {
                let is_it =
                    |(name, _): &(&[u8], Vec<u8>)| name.eq_ignore_ascii_case(known.as_bytes());
                Some((known, left.iter().position(is_it)?))
            });
            match known {
                Some((known, at)) => {
                    if let Some((_, line)) = left.get_mut(at) {
                        let between: &[u8] = if known == COOKIE { b"; " } else { b", " };
                        line.extend_from_slice(between);
                        line.extend_from_slice(value);
                    }
                }
                None => left.push((name, value.to_vec())),
            }
        }
        for (name, value) in &mut left {
            let Some(known) = self.headers.find(name) else {
                continue;
            };
            if known == COOKIE {
                *value = self.first_cookies(value);
            }
            let before = headers.all(known).collect::<Vec<_>>();
            if before != [value.as_slice()] {
                stream.set_header(Message::Request, known, value);
            }
        }
        HeaderMap::from_pairs(&left)
    }

    /// The cookies without those that stand in the list a second time.
    fn first_cookies(&self, line: &[u8]) -> Vec<u8> {
        let mut kept: Vec<&[u8]> = Vec::new();
        for pair in pairs(line) {
            let name = cookie_name(pair);
            let watched = self.cookies.iter().any(|known| known.as_bytes() == name);
            if !watched || !kept.iter().any(|other| cookie_name(other) == name) {
                kept.push(pair);
            }
        }
        kept.join(&b"; "[..])
    }
}

fn pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b';').map(<[u8]>::trim_ascii)
}

fn cookie_name(pair: &[u8]) -> &[u8] {
    let name = pair.split(|b| *b == b'=').next().unwrap_or(pair);
    name.trim_ascii()
}
