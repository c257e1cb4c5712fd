//! Active checks of an upstream's endpoints as they are configured.

use crate::base::percent::Percent;
use crate::base::time::Nanos;
use crate::policy::sections::Components;
use crate::schema::units::{HOUR, MIN, MS, SEC, show_span};
use crate::schema::{
    Centi, Errors, HeaderValue, Int, Label, Named, Path, Pct, Set, Span, Statuses, UrlPath, choice,
    section,
};

/// The most time between two checks of an endpoint of which it is not clear what it is, if
/// `interval_changing` is not given.
const DEFAULT_CHANGING: Nanos = Nanos(SEC);

/// Active checks of an upstream's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub ask: Ask,
    /// Time between two checks of an endpoint, 100 ms to 1 h.
    pub interval: Nanos,
    /// The same while it is not clear what an endpoint is, 100 ms to `interval`.
    pub interval_changing: Nanos,
    /// Random share by which each interval is lengthened or shortened, at most 50 %.
    pub jitter: Percent,
    /// How long endpoints are left alone at first.
    pub initial_delay: Nanos,
    /// Time an answer may take, 1 ms to 1 min.
    pub timeout: Nanos,
    /// Good answers in a row that make an unhealthy endpoint healthy.
    pub healthy_threshold: u32,
    /// Bad answers in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// Whether the report in the body is judged.
    pub report: bool,
    /// What is known of the report's components.
    pub components: Vec<ReportComponent>,
}

/// What an active check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A GET.
    Http {
        /// Path and query.
        path: String,
        /// Host; `None` = the endpoint's address.
        host: Option<String>,
        /// Inclusive ranges of good answers' statuses.
        expected: Vec<(u16, u16)>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service asked about; empty = the whole server.
        service: String,
    },
}

/// A component of health reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportComponent {
    /// Its name.
    pub name: String,
    /// Whether an endpoint is of no use without it.
    pub critical: bool,
    /// How often the endpoint looks after it, 100 ms to 1 h.
    pub period: Nanos,
    /// Above this share of errors it is DOWN.
    pub max_error_rate: Option<Percent>,
}

section! {
    /// Active checks of endpoints: one worker of the proxy asks each endpoint by itself, and all
    /// workers act on what it finds. Until the first answer an endpoint is used like a healthy one.
    HealthCheckSection {
        /// What is asked: `http`, a GET of `path`; `grpc`, `grpc.health.v1.Health/Check`.
        protocol: CheckProtocol = Default("\"http\"");
        /// Path of an HTTP check.
        path: UrlPath = Default("\"/health\"");
        /// Host that an HTTP check asks for.
        host: Option<HeaderValue> = Absent("the endpoint's address");
        /// Service name of a gRPC check.
        service: Option<Label> = Absent("all");
        /// Time between two checks of an endpoint.
        interval: Span<{ 100 * MS }, HOUR> = Default("\"5s\"");
        /// The same while an endpoint's answers are not what they were, until it is clear what it
        /// is; at most `interval`.
        interval_changing: Option<Span<{ 100 * MS }, HOUR>> = Absent("`interval`, at most 1s");
        /// Random percentage by which each interval is lengthened or shortened, so that many
        /// proxies do not ask at once.
        jitter: Centi<0, 5_000> = Default("10");
        /// How long endpoints are left alone after the proxy's start.
        initial_delay: Span<0, HOUR> = Default("\"0s\"");
        /// Time an answer may take.
        timeout: Span<MS, MIN> = Default("\"1s\"");
        /// Good answers in a row that make an unhealthy endpoint healthy.
        healthy_threshold: Int<1, 100> = Default("2");
        /// Bad answers in a row that make an endpoint unhealthy.
        unhealthy_threshold: Int<1, 100> = Default("3");
        /// Statuses of good answers to HTTP checks.
        expected_status: Set<Statuses, 1, 32> = Default("[\"200-299\"]");
        /// Judge endpoints by the health report in the body of an HTTP check. What is no such
        /// report, or longer than 64 KiB, counts by its status alone.
        report: bool = Default("false");
        /// What is known of the report's components. Those that are not named here are as critical
        /// as the report says, by default they are.
        components: Named<Components, ComponentSection, 256> = Default("{}");
    }
}

choice! {
    /// What a health check asks.
    enum CheckProtocol {
        Http = "http",
        Grpc = "grpc",
        Tcp = "tcp",
    }
}

section! {
    /// A component of a health report.
    ComponentSection {
        /// Whether an endpoint is of no use without it.
        critical: bool = Default("true");
        /// How often the endpoint looks after it. A state that is older than three times this is
        /// UNKNOWN.
        period: Option<Span<{ 100 * MS }, HOUR>> = Absent("the check's `interval`");
        /// Percentage of errors, in the report's `error_rate`, above which it is DOWN whatever its
        /// status.
        max_error_rate: Option<Pct> = Absent("not looked at");
    }
}

impl HealthCheckSection {
    /// The health check.
    #[inline(never)]
    pub(crate) fn compile(self) -> HealthCheck {
        let component = |(name, it): (String, ComponentSection)| ReportComponent {
            name,
            critical: it.critical,
            period: it.period.unwrap_or(self.interval),
            max_error_rate: it.max_error_rate,
        };
        HealthCheck {
            ask: match self.protocol {
                CheckProtocol::Grpc => Ask::Grpc {
                    service: self.service.unwrap_or_default(),
                },
                _ => Ask::Http {
                    path: self.path,
                    host: self.host,
                    expected: self.expected_status,
                },
            },
            interval: self.interval,
            interval_changing: self
                .interval_changing
                .unwrap_or(self.interval.min(DEFAULT_CHANGING)),
            jitter: self.jitter,
            initial_delay: self.initial_delay,
            timeout: self.timeout,
            healthy_threshold: self.healthy_threshold,
            unhealthy_threshold: self.unhealthy_threshold,
            report: self.report,
            components: self.components.into_iter().map(component).collect(),
        }
    }

    /// Reports the errors that span fields.
    #[inline(never)]
    pub(crate) fn check(&self, at: &Path<'_>, errors: &mut Errors) {
        let http = self.protocol == CheckProtocol::Http;
        if self.protocol == CheckProtocol::Tcp {
            let want = "\"http\" or \"grpc\": a filter cannot open a bare connection; \
                        Envoy's own health_checks can, for the cluster";
            errors.refuse_text(&at.key("protocol"), "tcp", want);
        }
        if let (Some(host), false) = (&self.host, http) {
            errors.refuse_text(&at.key("host"), host, "none: only an HTTP check has a host");
        }
        if let (Some(service), true) = (&self.service, http) {
            let want = "none: only a gRPC check has a service";
            errors.refuse_text(&at.key("service"), service, want);
        }
        if self.report && !http {
            let want = "false: only the answer to an HTTP check has a report";
            errors.refuse_shown(&at.key("report"), "true", want);
        }
        if let (Some((name, _)), false) = (self.components.first(), self.report) {
            errors.refuse_text(&at.key("components"), name, "none without \"report\": true");
        }
        if let Some(changing) = self.interval_changing
            && changing > self.interval
            && !errors.touches(at)
        {
            let want = ["at most the interval of ", &show_span(self.interval)].concat();
            errors.refuse_text(&at.key("interval_changing"), &show_span(changing), &want);
        }
    }
}
