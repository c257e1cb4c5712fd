//! Where a request comes from.

use crate::base::headers::Headers;
use crate::base::ip::Ip;
use crate::document::{ClientIp, IpSource};
use crate::host::{Property, Stream};

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
