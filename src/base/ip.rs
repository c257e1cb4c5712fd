//! Addresses of clients and networks, in one form: IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2), so
//! that case, brackets, ports, zero compression and mapping never split a client in two.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address as an IPv6 number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub u128);

impl Ip {
    /// Reads `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]`, `[::1]:80`, with spaces around. A port of any
    /// digits is ignored.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text.trim_ascii()).ok()?;
        if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            is_port_or_nothing(port).then_some(())?;
            return address.parse::<Ipv6Addr>().ok().map(Self::from_v6);
        }
        match text.split_once(':') {
            // One colon: IPv4 with a port. More: IPv6 without one.
            Some((address, port)) if !port.contains(':') => {
                (!port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())).then_some(())?;
                address.parse().ok().map(Self::from_v4)
            }
            Some(_) => text.parse().ok().map(Self::from_v6),
            None => text.parse().ok().map(Self::from_v4),
        }
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.0 >> 32 == 0xffff
    }

    /// The address with only the leading bits kept: `v4` of an IPv4 address, `v6` of an IPv6
    /// address.
    #[must_use]
    pub fn masked(self, v4: u8, v6: u8) -> Self {
        let bits = if self.is_v4() {
            v4.saturating_add(96)
        } else {
            v6
        };
        Self(self.0 & mask(bits))
    }

    /// Whether the address lies in the network of `prefix` bits at `network`. An IPv6 network wider
    /// than the IPv4-mapped one holds no IPv4 address: whoever writes `::/0` means all of IPv6, and
    /// not IPv4.
    #[must_use]
    pub fn is_in(self, network: u128, prefix: u8) -> bool {
        (self.0 ^ network) & mask(prefix) == 0 && (prefix >= 96 || !self.is_v4())
    }

    fn from_v4(v4: Ipv4Addr) -> Self {
        Self(v4.to_ipv6_mapped().to_bits())
    }

    const fn from_v6(v6: Ipv6Addr) -> Self {
        Self(v6.to_bits())
    }
}

/// The canonical spelling of `ip:port`: the one that Envoy has of it too. `None`: it is none, a
/// host's name for one, or has port 0, or a scope (`fe80::1%eth0`).
#[must_use]
pub fn canonical_endpoint(text: &str) -> Option<String> {
    let address = text.parse::<SocketAddr>().ok()?;
    let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    (address.port() != 0 && !scoped).then(|| address.to_string())
}

fn is_port_or_nothing(text: &str) -> bool {
    text.is_empty()
        || text
            .strip_prefix(':')
            .is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

fn mask(bits: u8) -> u128 {
    u128::MAX
        .checked_shl(128u32.saturating_sub(u32::from(bits)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_one_form() {
        for group in [
            &[
                "192.0.2.1",
                "192.0.2.1:80",
                " 192.0.2.1\t",
                "::ffff:192.0.2.1",
                "::FFFF:C000:0201",
                "[::ffff:192.0.2.1]:1",
            ][..],
            &[
                "2001:db8::1",
                "2001:DB8:0:0:0:0:0:1",
                "[2001:db8::1]",
                "[2001:db8::1]:443",
            ],
        ] {
            let first = Ip::parse(group[0].as_bytes()).unwrap();
            for text in group {
                assert_eq!(Ip::parse(text.as_bytes()), Some(first), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "unknown",
            "_hidden",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.4:",
            "1.2.3.4:x",
            "[::1",
            "[::1]x",
            "[1.2.3.4]:1",
            "fe80::1%eth0",
            "::1:",
            "256.1.1.1",
        ] {
            assert_eq!(Ip::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Ip::parse(b"\xff"), None);
    }

    #[test]
    fn prefixes_keep_leading_bits() {
        let ip = |t: &str| Ip::parse(t.as_bytes()).unwrap();
        assert_eq!(ip("192.0.2.77").masked(24, 64), ip("192.0.2.0"));
        assert_eq!(ip("192.0.2.77").masked(32, 1), ip("192.0.2.77"));
        assert_eq!(ip("2001:db8:1:2:3::").masked(8, 64), ip("2001:db8:1:2::"));
        assert_eq!(ip("2001:db8::1").masked(32, 0), Ip(0));
        assert!(ip("10.1.2.3").is_in(ip("10.0.0.0").0, 104));
        assert!(!ip("11.1.2.3").is_in(ip("10.0.0.0").0, 104));
        assert!(
            ip("2001:db8::1").is_in(0, 0) && !ip("1.1.1.1").is_in(0, 0),
            "::/0 is IPv6 only"
        );
        assert!(
            ip("1.1.1.1").is_in(ip("0.0.0.0").0, 96) && !ip("::1").is_in(ip("0.0.0.0").0, 96),
            "0.0.0.0/0 is IPv4 only"
        );
    }
}
