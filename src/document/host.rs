//! What a configuration asks for and the proxy that loads it lacks.

use super::{Algorithm, Ask, Config, ConfigErrors, Outcomes, RequestHeaders, RequestTimeout};
use crate::host::{Feature, HostKind};
use crate::policy::upstream::config::Steer;
use crate::request::Reason;
use crate::schema::json::show_text;
use crate::schema::units::show_span;
use crate::schema::{Errors, Path};

impl Config {
    /// Refuses what this proxy lacks: nothing is silently weaker there than it says.
    ///
    /// # Errors
    /// All of it, each with its path and the reason.
    pub fn check_host(&self, kind: HostKind) -> Result<(), ConfigErrors> {
        let mut refusals = Refusals {
            kind,
            errors: Errors::default(),
        };
        if kind.is_nginx() {
            self.refuse_all(&mut refusals);
        }
        refusals.errors.end(Some(()))
    }

    fn refuse_all(&self, refusals: &mut Refusals) {
        let mut refuse = |at: &Path<'_>, shown: &str, it| refusals.refuse(at, shown, it);
        let root = Path::Root;
        let at = |key| root.key(key);
        if self.outcomes == Outcomes::ByException {
            refuse(&at("outcomes"), "\"by_exception\"", Feature::ByException);
        }
        if self.request_headers == RequestHeaders::Ignore {
            let at = at("request_headers");
            refuse(&at, "\"ignore\"", Feature::UnreadRequests);
        }
        if self.serve_endpoints {
            let at = at("serve_endpoints");
            refuse(&at, "true", Feature::ServeEndpoints);
        }
        if self.trust_client_retry_headers {
            let at = at("trust_client_retry_headers");
            refuse(&at, "true", Feature::ClientRetryHeaders);
        }
        if self.health.grpc {
            refuse(&at("health").key("grpc"), "true", Feature::GrpcHealth);
        }
        for limit in &self.rate_limits {
            if let Algorithm::LeakyBucket { .. } = limit.algorithm {
                let section = at("rate_limits");
                let at = section.key(&limit.name);
                refuse(
                    &at.key("algorithm"),
                    "\"leaky_bucket\"",
                    Feature::LeakyBucket,
                );
            }
        }
        for fallback in &self.fallbacks {
            for (i, reason) in fallback.on.iter().enumerate() {
                if matches!(reason, Reason::UpstreamError | Reason::Timeout) {
                    let section = at("fallbacks");
                    let at = section.key(&fallback.name);
                    let (at, word) = (at.key("on"), show_text(reason.word()));
                    refuse(&at.index(i), &word, Feature::FallbackOnFailure);
                }
            }
        }
        for upstream in &self.upstreams {
            let section = at("upstreams");
            let at = section.key(&upstream.name);
            if upstream.attempt_count {
                let at = at.key("override");
                refuse(&at.key("attempt_count"), "true", Feature::AttemptCount);
            }
            if upstream.steer == Steer::ByException {
                let at = at.key("steer");
                refuse(&at, "\"by_exception\"", Feature::SteerByException);
            }
            if let Some(source) = &upstream.source {
                let at = at.key("endpoints");
                refuse(&at.key(source.kind()), "{…}", Feature::Discovery);
            }
            let ask = upstream.health_check.as_ref().map(|check| &check.ask);
            if let Some(Ask::Grpc { .. }) = ask {
                let at = at.key("health_check");
                refuse(&at.key("protocol"), "\"grpc\"", Feature::GrpcChecks);
            }
        }
        for (i, route) in self.routes.iter().enumerate() {
            let section = at("routes");
            let at = section.index(i);
            if route.retry.is_some() {
                refuse(&at.key("retry"), "{…}", Feature::Retry);
            }
            let timeout = at.key("timeout");
            if let Some(request) = route.timeout.request {
                let shown = match request {
                    RequestTimeout::Fixed(time) => show_text(&show_span(time)),
                    RequestTimeout::Dynamic(_) => "a dynamic timeout".to_owned(),
                };
                refuse(&timeout.key("request"), &shown, Feature::Timeout);
            }
            if let Some(per_try) = route.timeout.per_try {
                let shown = show_text(&show_span(per_try));
                refuse(&timeout.key("per_try"), &shown, Feature::Timeout);
            }
            if route.matcher.headers.iter().any(|(name, _)| name == "host") {
                let at = at.key("match");
                refuse(&at.key("headers"), "\"host\"", Feature::HostHeader);
            }
        }
    }
}

struct Refusals {
    kind: HostKind,
    errors: Errors,
}

impl Refusals {
    #[inline(never)]
    fn refuse(&mut self, at: &Path<'_>, shown: &str, feature: Feature) {
        if let Some(want) = self.kind.lacks(feature) {
            self.errors.refuse_shown(at, shown, want);
        }
    }
}
