//! Where a request comes from.

use crate::base::headers::HeaderMap;
use crate::base::ip::Ip;
use crate::document::{ClientIp, IpSource};
use crate::host::{Property, Stream};

/// The client's address as configured. A header that is missing, short or malformed gives the
/// connection's.
pub(super) fn address<S: Stream>(config: &ClientIp, headers: &HeaderMap, stream: &S) -> Option<Ip> {
    let from_header = match config.source {
        IpSource::Connection => None,
        IpSource::XRealIp => headers.get("x-real-ip").and_then(Ip::parse),
        IpSource::XForwardedFor => {
            // From the right: what stands left of the trusted hops is whatever the client wrote.
            let skip = usize::try_from(config.trusted_hops.saturating_sub(1)).unwrap_or(usize::MAX);
            headers
                .all("x-forwarded-for")
                .rev()
                .flat_map(|value| value.rsplit(|b| *b == b','))
                .nth(skip)
                .and_then(Ip::parse)
        }
    };
    from_header.or_else(|| {
        stream
            .property(Property::SourceAddress)
            .as_deref()
            .and_then(Ip::parse)
    })
}
