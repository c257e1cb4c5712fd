//! How haven learns how requests ended, and what cannot be had with that.

use super::{BalancePolicy, RejectBelow, RequestTimeout};
use super::{ConcurrencyAlgorithm, Config, FallbackStep, LoadReport, QuotaHeaders};
use crate::base::percent::Percent;
use crate::base::time::Nanos;
use crate::schema::json::show_text;
use crate::schema::units::{hundredths, show_span};
use crate::schema::{Errors, Path, choice};

choice! {
    /// How haven learns how requests ended.
    enum Outcomes {
        /// It reads every answer.
        Every = "every",
        /// Envoy shows it the exceptions.
        ByException = "by_exception",
    }
}

/// How slow a slow call is that the configuration does not speak of.
const NEVER: Nanos = Nanos::from_secs(60);

/// What every error ends with.
const WHY: &str = ", for \"outcomes\": \"by_exception\" does not read every answer";

/// Reports what needs every answer, where only exceptions are read.
#[inline(never)]
pub(super) fn check(config: &Config, errors: &mut Errors) {
    if config.outcomes == Outcomes::Every {
        return;
    }
    let mut refuse = |at: &Path<'_>, shown: &str, want: &str| {
        errors.refuse_shown(at, shown, &[want, WHY].concat());
    };
    let upstreams = Path::Root.key("upstreams");
    for it in &config.upstreams {
        let at = upstreams.key(&it.name);
        if it.load_report == LoadReport::Orca {
            refuse(&at.key("load_report"), "\"orca\"", "\"none\"");
        }
        if it.policy == BalancePolicy::PeakEwma {
            let at = at.key("load_balancer");
            refuse(&at.key("policy"), "\"peak_ewma\"", "another policy");
        }
    }
    let limits = Path::Root.key("rate_limits");
    for it in &config.rate_limits {
        let shown = match it.headers {
            QuotaHeaders::Ietf => "\"ietf\"",
            QuotaHeaders::X => "\"x\"",
            QuotaHeaders::Both => "\"both\"",
            QuotaHeaders::None => continue,
        };
        refuse(&limits.key(&it.name).key("headers"), shown, "\"none\"");
    }
    let limits = Path::Root.key("concurrency_limits");
    for it in &config.concurrency_limits {
        if let ConcurrencyAlgorithm::Adaptive { .. } = it.algorithm {
            let at = limits.key(&it.name);
            refuse(&at.key("algorithm"), "\"adaptive\"", "\"fixed\"");
        }
    }
    let breakers = Path::Root.key("circuit_breakers");
    for it in &config.circuit_breakers {
        let at = breakers.key(&it.name);
        if it.slow_call_rate_threshold < Percent(10_000) {
            let shown = hundredths(it.slow_call_rate_threshold.0);
            refuse(&at.key("slow_call_rate_threshold"), &shown, "100");
        }
        if it.slow_call_duration < NEVER {
            let shown = show_span(it.slow_call_duration);
            refuse(&at.key("slow_call_duration"), &shown, "at least \"60s\"");
        }
        // Answers below 500 are what Envoy does not show.
        if let Some((from, _)) = it.failure_on.status.iter().find(|(from, _)| *from < 500) {
            let at = at.key("failure_on");
            refuse(
                &at.key("status"),
                &from.to_string(),
                "only statuses from 500 on",
            );
        }
    }
    let routes = Path::Root.key("routes");
    for (i, it) in config.routes.iter().enumerate() {
        let at = routes.index(i);
        if let Some(canary) = &it.canary {
            let at = at.key("canary");
            let name = &canary.upstream.name;
            refuse(&at.key("upstream"), &show_text(name), "no canary");
        }
        if let Some(fallback) = &it.fallback
            && fallback
                .steps
                .iter()
                .any(|step| matches!(step, FallbackStep::Stale(_)))
        {
            let want = "a fallback without a stale step";
            refuse(&at.key("fallback"), &show_text(&fallback.name), want);
        }
        let at = at.key("timeout");
        if let Some(RequestTimeout::Dynamic(_)) = it.timeout.request {
            refuse(&at.key("request"), "a dynamic timeout", "a duration");
        }
        if let Some(RejectBelow::Quantile(_)) = it.timeout.reject_below {
            refuse(&at.key("reject_below"), "a quantile", "a duration");
        }
    }
}
