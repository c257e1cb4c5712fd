//! The routes that a request may take, without a look at all the others.
//!
//! Each route stands in the index under the beginning of its path that is spelled out (all of an
//! exact path or a prefix, a pattern up to its first placeholder) together with its host, once for
//! each host that it names. A request is looked up under each part of its path that ends at a slash
//! or at its end, with its host, with each domain above, and without a host: every route that it may
//! match stands under one of these. [`matches`](super::matches) decides; the index only leaves out
//! what can't match. So two names with the same hash cost a comparison, and change nothing.
//!
//! The first route that matches is the one with the lowest number, wherever it stands. What a
//! request costs is bounded by the longest path and host that the configuration spells out.

use super::config::{HostMatch, Match, PathMatch};
use super::{Subject, matches};
use crate::base::sort;
use crate::request::Request;

/// The routes of a configuration.
#[derive(Debug, Default)]
pub struct RouteIndex {
    /// The key of a place, and the route that stands there; sorted.
    entries: Vec<(u64, u32)>,
    /// Lengths of the paths' beginnings, under no host and under one.
    paths: [Lengths; 2],
    /// Lengths of the domains (`.example.com`) of `*.example.com`.
    domains: Lengths,
    /// Whether any route asks for the host.
    by_host: bool,
}

/// Domains above a request's host that may be in the index. A host with more of them has all routes
/// looked at.
const MOST_DOMAINS: usize = 8;

/// No host.
const ANY: u64 = 0;

impl RouteIndex {
    /// Indexes the routes, in their order.
    #[must_use]
    pub fn new<'m>(routes: impl Iterator<Item = &'m Match>) -> Self {
        let mut it = Self::default();
        for (number, matcher) in routes.enumerate() {
            it.add(u32::try_from(number).unwrap_or(u32::MAX), matcher);
        }
        sort::by_key(&mut it.entries, |entry| *entry);
        it.entries.dedup();
        it
    }

    fn add(&mut self, number: u32, matcher: &Match) {
        let path = spelled_out(&matcher.path);
        let hash = path.bytes().fold(Hash::PATH, Hash::then);
        self.by_host |= !matcher.hosts.is_empty();
        let any = matcher.hosts.is_empty().then_some(None);
        for host in matcher.hosts.iter().map(Some).chain(any) {
            let host = match host {
                None => ANY,
                // Any host at all, but one.
                Some(HostMatch::Suffix(domain)) if domain.is_empty() => ANY,
                Some(HostMatch::Suffix(domain)) => {
                    self.domains.add(domain.len());
                    host_key(domain.as_bytes())
                }
                Some(HostMatch::Exact(name)) => host_key(name.as_bytes()),
            };
            let [under_none, under_one] = &mut self.paths;
            let lengths = if host == ANY { under_none } else { under_one };
            lengths.add(path.len());
            self.entries.push((hash.under(host), number));
        }
    }

    /// The number of the first route that the request matches. `path`: the request's, in its plain
    /// spelling ([`Request::plain_path`]). `route` gives a route by its number.
    pub fn find<'m>(
        &self,
        request: &Request<'_>,
        path: &[u8],
        route: impl Fn(usize) -> Option<&'m Match>,
    ) -> Option<usize> {
        let subject = &Subject {
            request,
            path,
            // Read once for all routes, and only where one asks for it.
            host: if self.by_host { request.host() } else { None },
        };
        let is_it = |number: usize| route(number).is_some_and(|it| matches(it, subject));
        let Some(hosts) = self.hosts(subject) else {
            return (0..)
                .take_while(|at| route(*at).is_some())
                .find(|at| is_it(*at));
        };
        let mut best = None;
        let mut look = |path: Hash, length: usize| {
            for (host, lengths) in hosts.places(&self.paths) {
                if !lengths.may_hold(length) {
                    continue;
                }
                let key = path.under(host);
                let start = self.entries.partition_point(|(other, _)| *other < key);
                let there = self.entries.get(start..).unwrap_or_default().iter();
                let there = there.take_while(|(other, _)| *other == key);
                let mut numbers = there.filter_map(|(_, number)| usize::try_from(*number).ok());
                let found = numbers.find(|at| best.is_some_and(|best| *at >= best) || is_it(*at));
                best = [best, found].into_iter().flatten().min();
            }
        };
        let [under_none, under_one] = &self.paths;
        let longest = under_none.longest.max(under_one.longest);
        // The beginnings that end at a slash, at the path's own end, or before its first byte.
        let mut hash = Hash::PATH;
        for at in 0..=longest.min(path.len()) {
            let byte = path.get(at);
            if at == 0 || byte.is_none_or(|byte| *byte == b'/') {
                look(hash, at);
            }
            hash = byte.map_or(hash, |byte| hash.then(*byte));
        }
        best
    }

    /// Under which hosts the request is to be looked up; `None`: there are too many.
    fn hosts(&self, subject: &Subject<'_>) -> Option<Hosts> {
        let mut hosts = Hosts::default();
        let [_, under_one] = &self.paths;
        let Some(host) = subject.host.filter(|_| under_one.any()) else {
            return Some(hosts);
        };
        hosts.add(host_key(host))?;
        // From the right: one walk for all domains above it.
        let mut hash = Hash::HOST;
        let bytes = host.iter().rev().enumerate().take(self.domains.longest);
        for (at, byte) in bytes {
            hash = Hash::then(hash, byte.to_ascii_lowercase());
            if *byte == b'.' && self.domains.may_hold(at.saturating_add(1)) {
                hosts.add(hash.host_key())?;
            }
        }
        Some(hosts)
    }
}

/// The hosts under which a request is looked up, beside none.
#[derive(Default)]
struct Hosts {
    keys: [u64; MOST_DOMAINS],
    count: usize,
}

impl Hosts {
    fn add(&mut self, key: u64) -> Option<()> {
        *self.keys.get_mut(self.count)? = key;
        self.count = self.count.saturating_add(1);
        Some(())
    }

    /// All hosts, no host among them, each with the lengths of the paths under it.
    fn places<'l>(&self, paths: &'l [Lengths; 2]) -> impl Iterator<Item = (u64, &'l Lengths)> {
        let [under_none, under_one] = paths;
        let named = self.keys.iter().take(self.count);
        [(ANY, under_none)]
            .into_iter()
            .chain(named.map(move |key| (*key, under_one)))
    }
}

/// A set of lengths, by which most are ruled out.
#[derive(Debug, Default)]
struct Lengths {
    /// Bit n: there is one of n bytes; the highest stands for all that are longer.
    set: u64,
    longest: usize,
}

impl Lengths {
    fn add(&mut self, length: usize) {
        self.set |= 1 << length.min(63);
        self.longest = self.longest.max(length);
    }

    fn may_hold(&self, length: usize) -> bool {
        self.set & (1 << length.min(63)) != 0
    }

    const fn any(&self) -> bool {
        self.set != 0
    }
}

/// FNV-1a (Fowler, Noll and Vo, draft-eastlake-fnv): what is hashed comes from the configuration, and a
/// collision that a client finds costs it a comparison.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const PATH: Self = Self(0xcbf2_9ce4_8422_2325);
    const HOST: Self = Self(0x9ae1_6a3b_2f90_404f);

    const fn then(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x0100_0000_01b3))
    }

    /// The key of a path's beginning under a host.
    const fn under(self, host: u64) -> u64 {
        self.0 ^ host.rotate_left(32)
    }

    /// Never that of no host.
    const fn host_key(self) -> u64 {
        self.0 | 1
    }
}

fn host_key(host: &[u8]) -> u64 {
    let letters = host.iter().rev();
    letters
        .fold(Hash::HOST, |hash, byte| {
            hash.then(byte.to_ascii_lowercase())
        })
        .host_key()
}

/// The part of a path that every request which matches begins with, up to a slash or its end.
fn spelled_out(path: &PathMatch) -> String {
    match path {
        PathMatch::Any => String::new(),
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path.clone(),
        PathMatch::Pattern(segments) => {
            let literal = segments.iter().map_while(Option::as_deref);
            literal.flat_map(|segment| ["/", segment]).collect()
        }
    }
}

#[cfg(test)]
mod tests;
