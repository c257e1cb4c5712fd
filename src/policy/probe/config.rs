//! The health endpoints as they are configured.

use crate::schema::{Errors, Nullable, Path, UrlPath, section};

section! {
    /// Paths of the health endpoints; `null` switches one off.
    Probes {
        /// Liveness.
        livez: Nullable<UrlPath> = Default("\"/livez\"");
        /// Readiness: are the upstreams up?
        readyz: Nullable<UrlPath> = Default("\"/readyz\"");
        /// Has the filter started?
        startupz: Nullable<UrlPath> = Default("\"/startupz\"");
        /// `OK`, or with `Accept: application/json` the health document.
        health: Nullable<UrlPath> = Default("\"/health\"");
        /// Answer `/grpc.health.v1.Health/Check` for the whole (the empty name) and for each
        /// upstream by its name. What Envoy needs for it stands in `envoy.yaml`. `false` leaves
        /// these calls to the routes, as where the service behind answers them.
        grpc: bool = Default("true");
    }
}

impl Probes {
    /// Reports two endpoints of one path.
    #[inline(never)]
    pub(crate) fn checked(self, at: &Path<'_>, errors: &mut Errors) -> Self {
        let mut seen: Vec<&str> = Vec::new();
        for (name, path) in [
            ("livez", &self.livez),
            ("readyz", &self.readyz),
            ("startupz", &self.startupz),
            ("health", &self.health),
        ] {
            let Some(path) = path.as_ref().filter(|path| !path.is_empty()) else {
                continue;
            };
            if seen.contains(&path.as_str()) {
                errors.refuse_text(&at.key(name), path, "a path of its own");
            }
            seen.push(path);
        }
        self
    }
}
