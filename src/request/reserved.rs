//! Headers that a configuration may not use for something of its own.

/// Headers that already have a meaning between proxies.
pub(crate) const RESERVED: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-haven-cluster",
    "x-real-ip",
    "x-request-id",
];

/// Headers of a message that are not the user's to set: they frame it, or have a field of their
/// own.
pub(crate) const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
