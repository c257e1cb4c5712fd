//! Where the endpoints of an upstream come from, if they do not stand in the configuration: what a
//! source (Envoy itself, a registry) says of them, and when that counts.
//!
//! | part | |
//! |---|---|
//! | [`Membership`] | the endpoints of an upstream, checked: each address once, in one spelling |
//! | [`rules`] | when an answer counts: it never takes away what works |
//! | [`report`] | what becomes of an answer |
//! | [`record`] | what all workers know: the endpoints, and how their source does |
//! | [`serve`] | how Envoy is told of them |
//!
//! One worker asks ([`super::lease`]), and writes into the record what becomes of each answer. All
//! workers read the endpoints there when they have changed; so does one that starts, and one whose
//! VM was lost.

pub mod answer;
pub mod config;
pub mod consul;
pub mod envoy;
pub mod etcd;
pub mod record;
pub mod report;
pub mod rules;
pub mod serve;

use crate::base::ip::canonical_endpoint;
use crate::base::sort;
use crate::base::text::number;
use crate::schema::json::show_text;

/// The most endpoints of an upstream.
pub const MAX_MEMBERS: usize = 1_000;

/// The most endpoints of all upstreams of an engine that have a source.
pub const MAX_ALL: usize = 10_000;

/// The largest weight, as in a configuration.
pub const MAX_WEIGHT: u64 = 1_000;

/// The largest priority, as in a configuration.
pub const MAX_PRIORITY: u64 = 127;

/// The longest name of a zone, in bytes.
const MAX_ZONE: usize = 255;

/// An endpoint as a source names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `ip:port`, in canonical spelling.
    pub address: String,
    /// Its share relative to the others, at most [`MAX_WEIGHT`]; 0 = drained.
    pub weight: u32,
    /// Its level, at most [`MAX_PRIORITY`]; 0 is the best.
    pub priority: u32,
    /// Its zone.
    pub zone: Option<String>,
    /// What the source says of its health.
    pub verdict: Verdict,
}

/// What a source says of an endpoint's health: one more reason for the endpoint's one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing against it.
    #[default]
    Healthy,
    /// It works, but not as well as it should: it is used like a healthy one.
    Degraded,
    /// It is out of rotation.
    Unhealthy(Cause),
    /// It ends what it has and gets nothing new: out of rotation.
    Draining,
}

/// Why a source takes an endpoint for unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An active check of the proxy's, or of the registry's, failed.
    Check,
    /// An active check of the proxy's took too long.
    CheckTimeout,
    /// The proxy's outlier detection has ejected it.
    Outlier,
    /// Whoever feeds the source says so.
    Told,
    /// It is about to be removed.
    Removal,
    /// It is under maintenance.
    Maintenance,
}

impl Verdict {
    /// All of them, by their numbers in records, which never change their meaning.
    const ALL: [Self; 9] = [
        Self::Healthy,
        Self::Degraded,
        Self::Draining,
        Self::Unhealthy(Cause::Check),
        Self::Unhealthy(Cause::CheckTimeout),
        Self::Unhealthy(Cause::Outlier),
        Self::Unhealthy(Cause::Told),
        Self::Unhealthy(Cause::Removal),
        Self::Unhealthy(Cause::Maintenance),
    ];

    /// Whether it leaves the endpoint in rotation.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }

    /// What health documents call it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Unhealthy(Cause::Check) => "check failed",
            Self::Unhealthy(Cause::CheckTimeout) => "check timed out",
            Self::Unhealthy(Cause::Outlier) => "outlier",
            Self::Unhealthy(Cause::Told) => "unhealthy",
            Self::Unhealthy(Cause::Removal) => "being removed",
            Self::Unhealthy(Cause::Maintenance) => "maintenance",
        }
    }

    fn code(self) -> u8 {
        let at = Self::ALL.iter().position(|it| *it == self);
        at.and_then(|at| u8::try_from(at).ok()).unwrap_or(0)
    }

    fn of(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// An endpoint as an answer has it, not checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named<'a> {
    /// `ip:port`, `[ip]:port`, in any spelling: [`joined`] makes it of two fields.
    pub address: &'a str,
    /// Its weight.
    pub weight: u64,
    /// Its priority.
    pub priority: u64,
    /// Its zone; empty is none.
    pub zone: &'a str,
    /// What the source says of its health.
    pub verdict: Verdict,
}

/// An address of a host and a port that stand apart: an IPv6 one gets its brackets.
#[must_use]
pub fn joined(host: &str, port: u64) -> String {
    let (open, close) = if host.contains(':') && !host.starts_with('[') {
        ("[", "]:")
    } else {
        ("", ":")
    };
    [open, host, close, &number(port)].concat()
}

/// Why a list of endpoints cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Which endpoint of the list it is: its index.
    pub at: usize,
    /// What is wrong, with what stands there.
    pub reason: String,
}

impl Flaw {
    fn new(at: usize, found: &str, reason: &str) -> Self {
        Self {
            at,
            reason: [&show_text(found), reason].concat(),
        }
    }

    /// Place and reason, for a log line: `endpoint 3: "users.local:80" is no IP address with a
    /// port`. Endpoints are counted from 0, as in JSON's paths.
    #[must_use]
    pub fn text(&self) -> String {
        ["endpoint ", &number(self.at as u64), ": ", &self.reason].concat()
    }
}

/// The endpoints of an upstream, sorted by address: each once, at most [`MAX_MEMBERS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership(Vec<Member>);

impl Membership {
    /// The endpoints, in the order of their addresses.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.0
    }

    /// The endpoint of this address.
    #[must_use]
    pub fn find(&self, address: &str) -> Option<&Member> {
        self.0.get(self.place(address)?)
    }

    /// Its place in their order.
    #[must_use]
    pub fn place(&self, address: &str) -> Option<usize> {
        let by_address = |it: &Member| it.address.as_str().cmp(address);
        self.0.binary_search_by(by_address).ok()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Checks the endpoints of an answer, one by one.
#[derive(Debug, Default)]
pub struct Builder(Vec<(Member, usize)>);

impl Builder {
    /// Adds the next endpoint.
    ///
    /// # Errors
    /// It cannot be used, and with it the whole answer.
    pub fn add(&mut self, named: Named<'_>) -> Result<(), Flaw> {
        let at = self.0.len();
        let flaw = |found: &str, reason| Flaw::new(at, found, reason);
        if at >= MAX_MEMBERS {
            let reason = " is one more than the 1000 that an upstream may have";
            return Err(flaw(named.address, reason));
        }
        let Some(address) = canonical_endpoint(named.address) else {
            let reason = " is no IP address with a port from 1 to 65535";
            return Err(flaw(named.address, reason));
        };
        let ranged = |found: u64, most: u64| u32::try_from(found).ok().filter(|_| found <= most);
        let Some(weight) = ranged(named.weight, MAX_WEIGHT) else {
            return Err(flaw(&number(named.weight), " is no weight from 0 to 1000"));
        };
        let Some(priority) = ranged(named.priority, MAX_PRIORITY) else {
            return Err(flaw(
                &number(named.priority),
                " is no priority from 0 to 127",
            ));
        };
        if named.zone.len() > MAX_ZONE || named.zone.chars().any(char::is_control) {
            return Err(flaw(named.zone, " is no name of a zone"));
        }
        let zone = (!named.zone.is_empty()).then(|| named.zone.to_owned());
        let member = Member {
            address,
            weight,
            priority,
            zone,
            verdict: named.verdict,
        };
        self.0.push((member, at));
        Ok(())
    }

    /// The list.
    ///
    /// # Errors
    /// An address stands twice.
    pub fn finish(self) -> Result<Membership, Flaw> {
        let Self(mut named) = self;
        sort::by(&mut named, |(one, at), (other, then)| {
            (&one.address, at) < (&other.address, then)
        });
        let twice = named.iter().zip(named.iter().skip(1));
        let mut twice = twice.filter(|((one, _), (other, _))| one.address == other.address);
        if let Some((_, (member, at))) = twice.next() {
            return Err(Flaw::new(*at, &member.address, " stands twice"));
        }
        Ok(Membership(
            named.into_iter().map(|(member, _)| member).collect(),
        ))
    }
}

/// What a source has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The endpoints that it names.
    pub members: Membership,
    /// Where the source is in its own count of changes (Consul's index, etcd's revision), which all
    /// workers see; 0 if it has none.
    pub cursor: u64,
}

/// Why a source has no answer that could count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It gave none, or one that says that it cannot: what went wrong, without secrets.
    Error(String),
    /// It gave one that cannot be used: where and why.
    Refused(String),
}

impl From<Flaw> for Failure {
    fn from(flaw: Flaw) -> Self {
        Self::Refused(flaw.text())
    }
}

#[cfg(test)]
mod tests;
