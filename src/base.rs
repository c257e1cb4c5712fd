//! Floor 0: small pure parts without a dependency on the rest of the crate.

pub mod base64;
pub mod grpc_health;
pub mod hash;
pub mod headers;
pub mod http_date;
pub mod id_map;
pub mod ip;
pub mod key_map;
pub mod percent;
pub mod protobuf;
pub mod rfc3339;
pub mod rng;
pub mod sketch;
pub mod sort;
pub mod text;
pub mod time;
