//! Which proxy this is, and what it lacks.
//!
//! Envoy and nginx (ngx_wasm_module) both load haven, and nginx has less. All that haven knows of
//! that stands here: [`Feature`] is what a configuration can ask for and not get there, with the
//! words that refuse it; the rest is what haven does in another way. docs/hosts.md is the same for
//! people, and a test compares the two.

use super::{MetricKind, Property};

/// A proxy that loads haven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostKind {
    /// Envoy, and what is built on it. Any proxy that is not known to be another.
    #[default]
    Envoy,
    /// nginx with ngx_wasm_module.
    Nginx,
}

/// What a configuration can ask for that not every proxy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Rate limits that let requests wait.
    LeakyBucket,
    /// `grpc.health.v1.Health/Check`, answered by haven.
    GrpcHealth,
    /// Active checks over gRPC.
    GrpcChecks,
    /// Other answers in place of those of a failed upstream.
    FallbackOnFailure,
    /// Retries.
    Retry,
    /// Timeouts that the proxy keeps.
    Timeout,
    /// `"outcomes": "by_exception"`.
    ByException,
    /// `"steer": "by_exception"`.
    SteerByException,
    /// Retry and timeout headers of clients.
    ClientRetryHeaders,
    /// The proxy's own count of tries in answers.
    AttemptCount,
    /// A route that looks at the header `host`.
    HostHeader,
    /// `"request_headers": "ignore"`.
    UnreadRequests,
    /// haven as Envoy's endpoint discovery.
    ServeEndpoints,
    /// Endpoints that somebody else names.
    Discovery,
}

impl Feature {
    /// All of them, in the order in which people read of them.
    pub const ALL: [Self; 14] = [
        Self::LeakyBucket,
        Self::GrpcHealth,
        Self::GrpcChecks,
        Self::FallbackOnFailure,
        Self::Retry,
        Self::Timeout,
        Self::ByException,
        Self::SteerByException,
        Self::ClientRetryHeaders,
        Self::AttemptCount,
        Self::HostHeader,
        Self::UnreadRequests,
        Self::ServeEndpoints,
        Self::Discovery,
    ];

    /// Its name: where it stands in a configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeakyBucket => "leaky_bucket",
            Self::GrpcHealth => "health.grpc",
            Self::GrpcChecks => "health_check.protocol grpc",
            Self::FallbackOnFailure => "fallbacks on upstream_error and timeout",
            Self::Retry => "retry",
            Self::Timeout => "timeout.request and timeout.per_try",
            Self::ByException => "outcomes by_exception",
            Self::SteerByException => "steer by_exception",
            Self::ClientRetryHeaders => "trust_client_retry_headers",
            Self::AttemptCount => "override.attempt_count",
            Self::HostHeader => "match.headers of host",
            Self::UnreadRequests => "request_headers ignore",
            Self::ServeEndpoints => "serve_endpoints",
            Self::Discovery => "endpoints from envoy, consul and etcd",
        }
    }

    /// What nginx can have in its place, and why.
    const fn on_nginx(self) -> &'static str {
        match self {
            Self::LeakyBucket => {
                "an algorithm that lets no request wait: nginx resumes none from a timer"
            }
            Self::GrpcHealth => {
                "false: nginx hands over no message of a call before the call goes on"
            }
            Self::GrpcChecks => "\"http\": nginx makes no gRPC calls for a filter",
            Self::FallbackOnFailure => {
                "reasons of haven's own: nginx keeps the headers of an answer that is replaced \
                 (error_page answers instead)"
            }
            Self::Retry => "none: on nginx proxy_next_upstream tries again",
            Self::Timeout => "none: on nginx proxy_read_timeout ends a request",
            Self::ByException => "\"every\": only Envoy's access log reports exceptions",
            Self::SteerByException => "\"always\": only Envoy picks while haven does not",
            Self::ClientRetryHeaders => "false: these headers mean nothing to nginx",
            Self::AttemptCount => "false: nginx does not count tries in answers",
            Self::HostHeader => "none of host, but hosts: nginx shows its own server_name instead",
            Self::UnreadRequests => "\"read\": nginx sends on what haven would remove",
            Self::ServeEndpoints => "false: nginx asks nobody for endpoints",
            Self::Discovery => {
                "a list: nginx sends requests to the addresses of its own configuration"
            }
        }
    }
}

impl HostKind {
    /// Whether it is nginx. The module for Envoy has none of what follows from that: it is not to
    /// pay for it.
    #[must_use]
    pub const fn is_nginx(self) -> bool {
        cfg!(any(feature = "portable", not(target_arch = "wasm32"))) && matches!(self, Self::Nginx)
    }

    /// What is to stand in the place of a feature that this proxy lacks, and why; `None`: it has
    /// it.
    #[must_use]
    pub const fn lacks(self, feature: Feature) -> Option<&'static str> {
        if self.is_nginx() {
            Some(feature.on_nginx())
        } else {
            None
        }
    }

    /// One line on all that does not work here; `None`: all works.
    #[must_use]
    pub fn limits(self) -> Option<String> {
        if !self.is_nginx() {
            return None;
        }
        let lacks = |it: &Feature| self.lacks(*it).is_some();
        let names: Vec<_> = Feature::ALL.into_iter().filter(lacks).collect();
        let names: Vec<_> = names.into_iter().map(Feature::name).collect();
        let parts = [
            "the proxy is nginx; not here, and refused in a configuration: ",
            &names.join(", "),
            " (docs/hosts.md)",
        ];
        Some(parts.concat())
    }

    /// Whether it says where a message without a body ends. nginx does not, and has read a request's
    /// body before it sends the request on.
    #[must_use]
    pub const fn tells_ends(self) -> bool {
        !self.is_nginx()
    }

    /// Whether it says who answered, and in whose place it answered itself. Where it does not, the
    /// endpoint did that the request was sent to, and the proxy's own 502 and 504 are its.
    #[must_use]
    pub const fn tells_sources(self) -> bool {
        !self.is_nginx()
    }

    /// Whether a property can be read. nginx has no more than the client's address: of the others
    /// it logs an error for each answer, and its worker may not survive `upstream.address`.
    #[must_use]
    pub const fn tells(self, property: Property) -> bool {
        !self.is_nginx() || matches!(property, Property::SourceAddress)
    }

    /// Whether a number that goes up and down by what is added is a gauge, which can be set as well.
    /// nginx adds to counters alone, and sets none.
    #[must_use]
    pub const fn counts_in_gauges(self) -> bool {
        !self.is_nginx()
    }

    /// As which of its own kinds it takes a metric: a counter, a gauge or a histogram.
    #[must_use]
    pub const fn metric(self, kind: MetricKind) -> MetricKind {
        match kind {
            MetricKind::UpDownCounter if self.counts_in_gauges() => MetricKind::Gauge,
            MetricKind::UpDownCounter => MetricKind::Counter,
            kind => kind,
        }
    }

    /// Whether calls go to clusters, by name, with endpoints by header. On nginx they go to an
    /// address.
    #[must_use]
    pub const fn has_clusters(self) -> bool {
        !self.is_nginx()
    }

    /// How many calls out a VM may have open at once. nginx ends the worker when two overlap.
    #[must_use]
    pub const fn most_calls(self) -> usize {
        if self.is_nginx() { 1 } else { usize::MAX }
    }

    /// Whether `:authority` is what the client has asked for. On nginx it is its own `server_name`,
    /// and `host` is the client's.
    #[must_use]
    pub const fn shows_authority(self) -> bool {
        !self.is_nginx()
    }

    /// How many headers of a request it shows at most, its own included; what is beyond goes to the
    /// upstream unseen.
    #[must_use]
    pub const fn most_headers(self) -> usize {
        if self.is_nginx() { 100 } else { usize::MAX }
    }

    /// Whether a header that stands twice can be set, or removed. nginx sends the second line on,
    /// whatever it was told.
    #[must_use]
    pub const fn sets_repeated(self) -> bool {
        !self.is_nginx()
    }

    /// The longest name of a metric. nginx puts the module's before it, and lets no more than 256
    /// bytes pass together; a longer one ends the worker.
    #[must_use]
    pub const fn longest_metric(self) -> usize {
        if self.is_nginx() { 200 } else { usize::MAX }
    }

    /// Whether the period of ticks can be changed. nginx takes one, and ends the VM over the second:
    /// there ticks come often, and what is due is done in them alone, calls included.
    #[must_use]
    pub const fn changes_ticks(self) -> bool {
        !self.is_nginx()
    }
}

/// Says which proxy it is.
pub trait Platform {
    /// Which proxy it is.
    fn kind(&self) -> HostKind;
}
