//! Where a request comes from, and whose it is.

use super::{Context, Exchange};
use crate::base::hash::{KeyHasher, high_half};
use crate::base::headers::Headers;
use crate::base::ip::Ip;
use crate::document::{ClientIp, IpSource};
use crate::host::{Property, Stream};
use crate::request::Request;

/// Whose requests are of whom nothing is known: all of them are one client's.
pub const UNKNOWN: u32 = 0;

impl Exchange {
    /// Finds out whose request it is, where clients have shares: of the places in which requests
    /// wait, and of a retry budget.
    ///
    /// It is what the `fair` key of a concurrency limit of the route says, which the configuration
    /// names for this very purpose; else the client's address, by its prefix. Never the key of a
    /// rate limit: it may be a header, of which each request can have another.
    pub(super) fn identify<H, S>(&mut self, context: &Context<'_, H, S>, request: &Request<'_>) {
        if !context.route.has_shares {
            return;
        }
        // Not what a canary's upstream has: it shares the route's budget.
        let fair = if self.stable.is_some() {
            self.facts.stable_fair
        } else {
            self.facts.fair
        };
        let by_address = || {
            let mut hasher = KeyHasher::new(context.engine.seed);
            hasher.part(&request.client?.0.to_le_bytes());
            Some(high_half(hasher.finish()))
        };
        let key = fair.into_iter().flatten().next();
        self.facts.client = key.or_else(by_address).unwrap_or(UNKNOWN);
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) address: Option<Ip>,
    /// The request shows that clients can write what says so: the proxy in front does not.
    pub(super) forgeable: bool,
}

/// The client's address as configured. A header that is missing, short or malformed gives the
/// connection's.
pub(super) fn origin<S: Stream>(config: &ClientIp, headers: Headers<'_>, stream: &S) -> Origin {
    let (from_header, missing) = match config.source {
        IpSource::Connection => (None, false),
        IpSource::XRealIp => {
            let value = headers.get("x-real-ip");
            (value.and_then(Ip::parse), value.is_none())
        }
        IpSource::XForwardedFor => {
            // From the right: what stands left of the trusted hops is whatever the client wrote.
            let skip = usize::try_from(config.trusted_hops.saturating_sub(1)).unwrap_or(usize::MAX);
            let address = headers
                .all("x-forwarded-for")
                .rev()
                .flat_map(|value| value.rsplit(|b| *b == b','))
                .nth(skip)
                .and_then(Ip::parse);
            (address, headers.get("x-forwarded-for").is_none())
        }
    };
    if from_header.is_some() {
        return Origin {
            address: from_header,
            forgeable: false,
        };
    }
    let peer = stream.property(Property::SourceAddress);
    let peer = peer.as_deref();
    // Envoy has no port for an address that it read in a header.
    let read = config.source == IpSource::Connection && peer.is_some_and(|it| it.ends_with(b":0"));
    Origin {
        address: peer.and_then(Ip::parse),
        forgeable: missing || read,
    }
}

/// What is said of it, once.
pub(super) const fn forgeable(source: IpSource) -> &'static str {
    match source {
        IpSource::Connection => {
            "client_ip: Envoy takes the peer's address from X-Forwarded-For, where clients can write: \
             set use_remote_address: true on the connection manager, or any client picks its bucket"
        }
        IpSource::XForwardedFor => {
            "client_ip: a request came without X-Forwarded-For, so nothing in front writes it and \
             clients can: set use_remote_address: true on the connection manager, or any client picks \
             its bucket"
        }
        IpSource::XRealIp => {
            "client_ip: a request came without X-Real-IP, so the proxy in front does not always write \
             it and clients can: have it set on every request, or any client picks its bucket"
        }
    }
}
