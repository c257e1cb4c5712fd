//! The dashboard and its API, which are not built yet.

use crate::schema::{Cidr, Label, Set, UrlPath, section};

section! {
    /// The dashboard and its API.
    Admin {
        /// Path below which it is served.
        prefix: UrlPath = Default("\"/haven\"");
        /// The secret that callers send.
        token: Option<Label> = Absent("none");
        /// The networks of the callers.
        allow: Set<Cidr, 0, 1000> = Default(r#"["127.0.0.1/32", "::1/128"]"#);
    }
}
