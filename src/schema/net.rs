//! Networks and the addresses of endpoints.

use std::net::IpAddr;

use crate::base::ip::canonical_endpoint;
use crate::schema::decode::Decode;
use crate::schema::json::Json;
use crate::schema::shape::{Schema, Text};
use crate::schema::text::text_type;

text_type! {
    /// `ip:port`, in canonical form.
    Address(ADDRESS, "an address like \"192.168.1.10:8080\" or \"[::1]:8080\"",
        canonical_endpoint, r#"{"type": "string"}"#);
}

/// A network: an address and the number of leading bits that count; an address alone is a network
/// of one. IPv4 is kept as IPv4-mapped IPv6 (prefix + 96).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cidr {
    /// The network's address with the host bits cleared.
    pub address: u128,
    /// Bits that count, 0 to 128.
    pub prefix: u8,
}

impl Decode for Cidr {
    const SCHEMA: &'static Schema = &Schema::Text(&Text {
        want: "a network like \"10.0.0.0/8\" or \"2001:db8::/32\"",
        canon: |text| {
            net(text).map(|net| [&net.address.to_string(), "/", &net.prefix.to_string()].concat())
        },
        #[cfg(not(target_arch = "wasm32"))]
        json_schema: r#"{"type": "string"}"#,
    });

    type Value = Self;

    fn decode(json: &Json) -> Self {
        match json {
            Json::String(text) => net(text).unwrap_or_default(),
            _ => Self::default(),
        }
    }
}

fn net(text: &str) -> Option<Cidr> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
            (address, Some(prefix.parse::<u8>().ok()?))
        }
        Some(_) => return None,
        None => (text, None),
    };
    let (address, bits, offset) = match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 32, 96_u8),
        IpAddr::V6(v6) => (v6, 128, 0),
    };
    let prefix = prefix.unwrap_or(bits);
    if prefix > bits {
        return None;
    }
    let prefix = prefix.saturating_add(offset);
    let host = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Some(Cidr {
        address: u128::from(address) & !host,
        prefix,
    })
}
