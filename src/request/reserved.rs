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
    "access-token",
    "api-key",
    "apikey",
    "authorization",
    "cf-access-jwt-assertion",
    "cookie",
    "proxy-authorization",
    "remote-user",
    "ssl-client-cert",
    "x-access-token",
    "x-account-id",
    "x-amzn-oidc-accesstoken",
    "x-amzn-oidc-data",
    "x-amzn-oidc-identity",
    "x-api-key",
    "x-apigateway-api-userinfo",
    "x-apikey",
    "x-auth-request-access-token",
    "x-auth-request-email",
    "x-auth-request-preferred-username",
    "x-auth-request-user",
    "x-auth-token",
    "x-authenticated-userid",
    "x-authentik-username",
    "x-consumer-id",
    "x-consumer-username",
    "x-credential-identifier",
    "x-csrf-token",
    "x-endpoint-api-userinfo",
    "x-forwarded-access-token",
    "x-forwarded-client-cert",
    "x-forwarded-email",
    "x-forwarded-preferred-username",
    "x-forwarded-user",
    "x-goog-api-key",
    "x-goog-authenticated-user-email",
    "x-goog-authenticated-user-id",
    "x-goog-iap-jwt-assertion",
    "x-id-token",
    "x-jwt-assertion",
    "x-jwt-payload",
    "x-ms-client-principal",
    "x-ms-client-principal-id",
    "x-ms-client-principal-name",
    "x-org-id",
    "x-pomerium-jwt-assertion",
    "x-remote-user",
    "x-scope-orgid",
    "x-session-id",
    "x-session-token",
    "x-ssl-client-cert",
    "x-sub",
    "x-tenant",
    "x-tenant-id",
    "x-user",
    "x-user-id",
    "x-userinfo",
    "x-vouch-user",
    "x-webauth-user",
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
