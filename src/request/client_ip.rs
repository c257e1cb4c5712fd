//! Where a client's address is taken from.

use crate::schema::{Int, Int8, choice, section};

section! {
    /// Where a client's address is taken from.
    ClientIp {
        /// The connection's peer, or a header that a trusted proxy sets. `connection` is the peer
        /// as Envoy sees it: with its `use_remote_address: false`, or trusted hops, Envoy takes it
        /// from `X-Forwarded-For`, where clients can write.
        source: IpSource = Default("\"connection\"");
        /// Which entry of `X-Forwarded-For`, counted from the right, is the client's; a missing,
        /// short or malformed header means the connection's address.
        trusted_hops: Int<1, 32> = Default("1");
        /// Leading bits of an IPv4 address that distinguish clients.
        ipv4_prefix: Int8<1, 32> = Default("32");
        /// Leading bits of an IPv6 address that distinguish clients.
        ipv6_prefix: Int8<1, 128> = Default("64");
    }
}

choice! {
    /// Sources of a client's address.
    enum IpSource {
        /// The connection's peer.
        Connection = "connection",
        /// The `X-Forwarded-For` header.
        XForwardedFor = "x-forwarded-for",
        /// The `X-Real-IP` header.
        XRealIp = "x-real-ip",
    }
}
