//! MetricTable of the metrics. Labels are part of the name, as `;label=value`, and are taken out of
//! it by `stats_tags` in envoy.yaml; they come from the configuration only, so that their number is
//! bounded.
//!
//! What workers share through the host's gauges is here too ([`SharedCounters`]): under a name that
//! starts with `haven_internal_` where it means nothing to people.

use crate::base::text::push_all;
use crate::document::{self, Mode};
use crate::host::{MetricId, MetricKind, Metrics, SharedCounter, SharedCounters};
use crate::policy::circuit_breaker::Meters;
use crate::policy::circuit_breaker::{Phase, TripReason};
use crate::policy::fallback::stale::rules::Unkept;
use crate::request::Reason;

/// Defines metrics, and the counters that workers share.
pub(super) struct MetricTable<'h, H>(pub &'h H);

impl<H: Metrics + SharedCounters> MetricTable<'_, H> {
    pub(super) fn decisions(
        &self,
        route: &str,
        policy: &str,
        reason: Reason,
        mode: Mode,
    ) -> MetricId {
        let labels = [
            ("route", route),
            ("policy", policy),
            ("reason", reason.word()),
            ("mode", mode.word()),
        ];
        self.define(MetricKind::Counter, "haven_decisions_total", &labels)
    }

    pub(super) fn breaker_state(&self, breaker: &str, key: &str) -> MetricId {
        self.define(
            MetricKind::Gauge,
            "haven_circuit_breaker_state",
            &[("circuit_breaker", breaker), ("key", key)],
        )
    }

    pub(super) fn breaker_transitions(&self, breaker: &str, to: Phase) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_circuit_breaker_transitions_total",
            &[("circuit_breaker", breaker), ("to", to.word())],
        )
    }

    /// Unix time of the last change, in seconds.
    pub(super) fn breaker_changed(&self, breaker: &str, key: &str) -> MetricId {
        let labels = [("circuit_breaker", breaker), ("key", key)];
        self.define(
            MetricKind::Gauge,
            "haven_circuit_breaker_changed_timestamp_seconds",
            &labels,
        )
    }

    pub(super) fn breaker_causes(&self, breaker: &str, cause: TripReason) -> MetricId {
        let labels = [("circuit_breaker", breaker), ("cause", cause.label())];
        self.define(
            MetricKind::Counter,
            "haven_circuit_breaker_causes_total",
            &labels,
        )
    }

    /// What workers share of a breaker beside its record: `labels` tell subjects apart where those
    /// of metrics for people need not. `version`: one that it shares with other breakers.
    pub(super) fn breaker_meters<'a>(
        &self,
        breaker: &'a document::CircuitBreaker,
        mut labels: Vec<(&'a str, &'a str)>,
        version: Option<SharedCounter>,
        mode: Mode,
    ) -> Meters {
        labels.insert(0, ("circuit_breaker", &breaker.name));
        if mode == Mode::Shadow {
            labels.push(("mode", mode.word()));
        }
        let share = |name| self.share(name, &labels);
        let is_timed = matches!(breaker.window, document::WindowConfig::Time(_));
        Meters {
            version: version.unwrap_or_else(|| share("haven_internal_circuit_breaker_changes")),
            tally: if is_timed {
                share("haven_internal_circuit_breaker_tally")
            } else {
                SharedCounter::NONE
            },
            consecutive: if is_timed && breaker.consecutive_failures > 0 {
                share("haven_internal_circuit_breaker_consecutive_failures")
            } else {
                SharedCounter::NONE
            },
        }
    }

    pub(super) fn endpoint_in_flight(&self, upstream: &str, endpoint: &str) -> SharedCounter {
        self.share(
            "haven_endpoint_in_flight",
            &[("upstream", upstream), ("endpoint", endpoint)],
        )
    }

    pub(super) fn endpoint_healthy(&self, upstream: &str, endpoint: &str) -> MetricId {
        self.define(
            MetricKind::Gauge,
            "haven_endpoint_healthy",
            &[("upstream", upstream), ("endpoint", endpoint)],
        )
    }

    pub(super) fn endpoint_changes(&self, upstream: &str) -> SharedCounter {
        self.share("haven_internal_endpoint_changes", &[("upstream", upstream)])
    }

    /// What `peak_ewma` knows of an endpoint's latency, packed.
    pub(super) fn endpoint_latency(&self, upstream: &str, endpoint: &str) -> SharedCounter {
        self.keep(
            "haven_internal_endpoint_latency",
            &[("upstream", upstream), ("endpoint", endpoint)],
        )
    }

    /// What an endpoint has reported of its load, packed.
    pub(super) fn endpoint_load(&self, upstream: &str, endpoint: &str) -> SharedCounter {
        self.keep(
            "haven_internal_endpoint_load",
            &[("upstream", upstream), ("endpoint", endpoint)],
        )
    }

    /// How often the proxy did not ask an endpoint when it should.
    pub(super) fn endpoint_strays(&self, upstream: &str, endpoint: &str) -> SharedCounter {
        self.share(
            "haven_internal_endpoint_strays",
            &[("upstream", upstream), ("endpoint", endpoint)],
        )
    }

    pub(super) fn upstream_in_flight(&self, upstream: &str) -> SharedCounter {
        self.share("haven_upstream_in_flight", &[("upstream", upstream)])
    }

    pub(super) fn upstream_panic(&self, upstream: &str) -> MetricId {
        self.define(
            MetricKind::Gauge,
            "haven_upstream_panic",
            &[("upstream", upstream)],
        )
    }

    /// Why an active check takes an endpoint for what it does:
    /// [`crate::policy::health_check::Reason`]'s numbers.
    pub(super) fn endpoint_reason(&self, upstream: &str, endpoint: &str) -> MetricId {
        self.define(
            MetricKind::Gauge,
            "haven_endpoint_check_reason",
            &[("upstream", upstream), ("endpoint", endpoint)],
        )
    }

    /// Unix time of the last change by an active check, in seconds.
    pub(super) fn endpoint_changed(&self, upstream: &str, endpoint: &str) -> MetricId {
        self.define(
            MetricKind::Gauge,
            "haven_endpoint_changed_timestamp_seconds",
            &[("upstream", upstream), ("endpoint", endpoint)],
        )
    }

    pub(super) fn health_checks(&self, upstream: &str, reason: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_health_checks_total",
            &[("upstream", upstream), ("reason", reason)],
        )
    }

    /// What the last check took that was answered.
    pub(super) fn health_check_duration(&self, upstream: &str) -> SharedCounter {
        self.keep("haven_health_check_duration_ms", &[("upstream", upstream)])
    }

    pub(super) fn health_check_takeovers(&self, upstream: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_health_check_takeovers_total",
            &[("upstream", upstream)],
        )
    }

    /// How old what is known of an upstream's endpoints is, in seconds.
    pub(super) fn discovery_age(&self, upstream: &str) -> MetricId {
        let labels = [("upstream", upstream)];
        self.define(MetricKind::Gauge, "haven_discovery_age_seconds", &labels)
    }

    pub(super) fn discovery_updates(&self, upstream: &str, result: &str) -> MetricId {
        let labels = [("upstream", upstream), ("result", result)];
        self.define(
            MetricKind::Counter,
            "haven_discovery_updates_total",
            &labels,
        )
    }

    pub(super) fn rate_limit_keys(&self, policy: &str) -> MetricId {
        self.define(
            MetricKind::UpDownCounter,
            "haven_rate_limit_keys",
            &[("policy", policy)],
        )
    }

    pub(super) fn rate_limit_evictions(&self, policy: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_rate_limit_evictions_total",
            &[("policy", policy)],
        )
    }

    pub(super) fn concurrency_limit(&self, policy: &str, key: &str) -> SharedCounter {
        self.keep(
            "haven_concurrency_limit",
            &[("policy", policy), ("key", key)],
        )
    }

    /// When it last refused, by the host's clock.
    pub(super) fn concurrency_refused_at(&self, policy: &str, key: &str) -> SharedCounter {
        self.keep(
            "haven_internal_concurrency_refused_at",
            &[("policy", policy), ("key", key)],
        )
    }

    /// Requests that lack a part of the key of a limit's fair shares.
    pub(super) fn fair_unkeyed(&self, policy: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_fair_unkeyed_total",
            &[("policy", policy)],
        )
    }

    pub(super) fn concurrency_in_flight(&self, policy: &str, key: &str) -> SharedCounter {
        self.share(
            "haven_concurrency_in_flight",
            &[("policy", policy), ("key", key)],
        )
    }

    pub(super) fn contention(&self, policy: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_store_contention_total",
            &[("policy", policy)],
        )
    }

    pub(super) fn retries(&self, route: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_retries_total",
            &[("route", route)],
        )
    }

    /// Answers from elsewhere than the proxy was asked to send the request to.
    pub(super) fn not_followed(&self, route: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_not_followed_total",
            &[("route", route)],
        )
    }

    pub(super) fn retry_requests(&self, route: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_retry_budget_requests_total",
            &[("route", route)],
        )
    }

    pub(super) fn fallbacks(&self, route: &str, step: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_fallbacks_total",
            &[("route", route), ("step", step)],
        )
    }

    pub(super) fn canary_requests(&self, route: &str, upstream: &str, mode: Mode) -> MetricId {
        let labels = [
            ("route", route),
            ("upstream", upstream),
            ("mode", mode.word()),
        ];
        self.define(MetricKind::Counter, "haven_canary_requests_total", &labels)
    }

    pub(super) fn canary_returned(&self, route: &str, reason: Reason) -> MetricId {
        let labels = [("route", route), ("reason", reason.word())];
        self.define(MetricKind::Counter, "haven_canary_returned_total", &labels)
    }

    pub(super) fn switch_on(&self, switch: &str) -> MetricId {
        self.define(MetricKind::Gauge, "haven_switch_on", &[("switch", switch)])
    }

    pub(super) fn stale_entries(&self, policy: &str) -> MetricId {
        self.define(
            MetricKind::UpDownCounter,
            "haven_stale_entries",
            &[("policy", policy)],
        )
    }

    pub(super) fn stale_bytes(&self, policy: &str) -> MetricId {
        self.define(
            MetricKind::UpDownCounter,
            "haven_stale_bytes",
            &[("policy", policy)],
        )
    }

    pub(super) fn stale_evictions(&self, policy: &str) -> MetricId {
        self.define(
            MetricKind::Counter,
            "haven_stale_evictions_total",
            &[("policy", policy)],
        )
    }

    pub(super) fn stale_unkept(&self, policy: &str, why: Unkept) -> MetricId {
        let labels = [("policy", policy), ("reason", why.word())];
        self.define(MetricKind::Counter, "haven_stale_unkept_total", &labels)
    }

    pub(super) fn upstream_duration(&self, route: &str) -> MetricId {
        self.define(
            MetricKind::Histogram,
            "haven_upstream_duration_ms",
            &[("route", route)],
        )
    }

    fn define(&self, kind: MetricKind, base: &str, labels: &[(&str, &str)]) -> MetricId {
        self.0.define(kind, &labelled(base, labels))
    }

    fn share(&self, base: &str, labels: &[(&str, &str)]) -> SharedCounter {
        self.0.define_shared(&labelled(base, labels))
    }

    fn keep(&self, base: &str, labels: &[(&str, &str)]) -> SharedCounter {
        self.0.define_stored(&labelled(base, labels))
    }
}

fn labelled(base: &str, labels: &[(&str, &str)]) -> String {
    let mut name = String::with_capacity(128);
    name.push_str(base);
    for (label, value) in labels {
        push_all(&mut name, &[";", label, "=", value]);
    }
    name
}
