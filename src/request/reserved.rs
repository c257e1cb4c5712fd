//! Headers that a configuration may not use for something of its own.

/// Headers that already have a meaning between proxies.
pub(crate) const RESERVED: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-haven-cluster",
    "x-real-ip",
    "x-request-id",
];

/// Request headers by which services know their clients: credentials, and what a filter in front
/// makes of them.
pub(crate) const IDENTITIES: &[&str] = &[
    "api-key",
    "apikey",
    "authorization",
    "cookie",
    "proxy-authorization",
    "remote-user",
    "x-access-token",
    "x-amzn-oidc-data",
    "x-amzn-oidc-identity",
    "x-api-key",
    "x-auth-request-email",
    "x-auth-request-user",
    "x-auth-token",
    "x-csrf-token",
    "x-forwarded-client-cert",
    "x-forwarded-email",
    "x-forwarded-user",
    "x-goog-authenticated-user-id",
    "x-id-token",
    "x-jwt-assertion",
    "x-jwt-payload",
    "x-ms-client-principal-id",
    "x-remote-user",
    "x-session-id",
    "x-session-token",
    "x-sub",
    "x-tenant",
    "x-tenant-id",
    "x-user",
    "x-user-id",
    "x-xsrf-token",
];

/// Whether a header already means something between proxies or to a service, so that haven is not to
/// write it: one of Envoy's, one of [`RESERVED`], or an identity.
pub(crate) fn is_taken(header: &str) -> bool {
    header.starts_with("x-envoy-") || RESERVED.contains(&header) || IDENTITIES.contains(&header)
}

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
