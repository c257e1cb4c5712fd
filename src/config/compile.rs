//! From the document as written to the typed configuration: defaults that depend on other fields,
//! references, cross checks.
//!
//! Every check here spans fields. It is skipped where one of them has been refused already: its
//! complaint could only mislead.

use std::collections::BTreeSet;

use super::raw;
use super::sections::{
    CircuitBreakers, Components, ConcurrencyLimits, Fallbacks, RateLimits, Switches, Upstreams,
};
use super::text::segments;
use super::*;
use crate::base::ip::Ip;
use crate::schema::http::exact_host;
use crate::schema::json::show_text;
use crate::schema::units::{DAY, HOUR, SEC, hundredths, show_size, show_span};
use crate::schema::{DeclaredNames, Decode, Either, Errors, Int, Json, NamedSection, Path, Span};

/// The longest an empty bucket may take to fill.
const MAX_FILL: Nanos = Nanos(366 * DAY);

/// Compiles the document; whoever finds errors in the end has no use for the result.
pub(super) fn compile(raw: raw::Document, names: &DeclaredNames, errors: &mut Errors) -> Config {
    let root = Path::Root;
    let references = References {
        names,
        components: raw
            .upstreams
            .iter()
            .map(|(_, it)| component_names(it))
            .collect(),
        upstream_scoped: raw
            .circuit_breakers
            .iter()
            .map(|(_, it)| it.scope == BreakerScope::Upstream)
            .collect(),
        overrides: raw
            .upstreams
            .iter()
            .map(|(_, it)| it.r#override.header.clone())
            .collect(),
        sends_on: raw
            .fallbacks
            .iter()
            .map(|(_, it)| it.steps.iter().any(|step| step.cluster.is_some()))
            .collect(),
    };
    let client_ip = ClientIp {
        source: raw.client_ip.source,
        trusted_hops: raw.client_ip.trusted_hops,
        ipv4_prefix: small(raw.client_ip.ipv4_prefix),
        ipv6_prefix: small(raw.client_ip.ipv6_prefix),
    };
    Config {
        service: raw.service,
        mode: raw.mode,
        trust_client_retry_headers: raw.trust_client_retry_headers,
        upstreams: named(raw.upstreams, &root.key("upstreams"), |at, name, it| {
            upstream(at, name, it, &references, errors)
        }),
        rate_limits: named(raw.rate_limits, &root.key("rate_limits"), |at, name, it| {
            rate_limit(at, name, it, &client_ip, errors)
        }),
        circuit_breakers: named(
            raw.circuit_breakers,
            &root.key("circuit_breakers"),
            |at, name, it| circuit_breaker(at, name, it, errors),
        ),
        concurrency_limits: named(
            raw.concurrency_limits,
            &root.key("concurrency_limits"),
            |_, name, it| concurrency_limit(name, &it),
        ),
        fallbacks: named(raw.fallbacks, &root.key("fallbacks"), |at, name, it| {
            fallback(at, name, it, errors)
        }),
        switches: named(raw.switches, &root.key("switches"), |_, name, it| Switch {
            name,
            on: it == raw::Switch::On,
        }),
        routes: routes(raw.routes, &references, errors),
        health: health(raw.health, errors),
        client_ip,
    }
}

/// What references refer to. That it is there, the checker has seen to.
struct References<'a> {
    names: &'a DeclaredNames,
    /// By upstream: the components of its health check.
    components: Vec<Vec<String>>,
    /// By breaker: whether its scope is the upstream.
    upstream_scoped: Vec<bool>,
    /// By upstream: its override header.
    overrides: Vec<String>,
    /// By fallback: whether it has a cluster step.
    sends_on: Vec<bool>,
}

impl References<'_> {
    fn find<S: NamedSection>(&self, name: Option<&String>) -> Option<usize> {
        self.names.find(S::SECTION, name?)
    }
}

fn named<T, U>(
    map: Vec<(String, T)>,
    at: &Path<'_>,
    mut compile: impl FnMut(&Path<'_>, String, T) -> U,
) -> Vec<U> {
    map.into_iter()
        .map(|(name, it)| compile(&at.key(&name.clone()), name, it))
        .collect()
}

fn upstream(
    at: &Path<'_>,
    name: String,
    raw: raw::Upstream,
    references: &References<'_>,
    errors: &mut Errors,
) -> Upstream {
    let mut seen = BTreeSet::new();
    for (i, endpoint) in raw.endpoints.iter().enumerate() {
        let address = &endpoint.address;
        if !address.is_empty() && !seen.insert(address) {
            errors.refuse_text(
                &at.key("endpoints").index(i).key("address"),
                address,
                "each address only once",
            );
        }
    }
    let circuit_breaker = references.find::<CircuitBreakers>(raw.circuit_breaker.as_ref());
    if let (Some(i), Some(breaker)) = (circuit_breaker, &raw.circuit_breaker)
        && references.upstream_scoped.get(i) == Some(&true)
    {
        let want = "a circuit breaker without \"scope\": \"upstream\": on an upstream it has a state per endpoint";
        errors.refuse_text(&at.key("circuit_breaker"), breaker, want);
    }
    let raw::Override {
        header,
        attempt_count,
    } = raw.r#override;
    if !header.is_empty() && (!header.starts_with("x-") || RESERVED.contains(&header.as_str())) {
        let want = [
            "a header name that starts with \"x-\" and is none of ",
            &RESERVED.join(", "),
        ]
        .concat();
        errors.refuse_text(&at.key("override").key("header"), &header, &want);
    }
    let health_check = raw
        .health_check
        .map(|it| health_check(&at.key("health_check"), it, errors));
    let endpoint = |it: raw::Endpoint| Endpoint {
        address: it.address,
        weight: it.weight,
        priority: it.priority,
        zone: it.zone,
    };
    let balancer = raw.load_balancer;
    if let (LoadReport::Orca, raw::BalancePolicy::ConsistentHash | raw::BalancePolicy::First) =
        (raw.load_report, balancer.policy)
    {
        let want = "\"none\": with consistent_hash and first there are no shares";
        errors.refuse_text(&at.key("load_report"), "orca", want);
    }
    let (panic_threshold, slow_start, zone) = (
        balancer.panic_threshold,
        balancer.slow_start,
        balancer.zone.clone(),
    );
    // What may be taken out is what may be missing before all are used again.
    let max_ejection = raw
        .max_ejection_percent
        .unwrap_or_else(|| Percent(10_000u32.saturating_sub(panic_threshold.0)));
    Upstream {
        mode: raw.mode,
        cluster: raw.cluster.unwrap_or_else(|| name.clone()),
        endpoints: raw.endpoints.into_iter().map(endpoint).collect(),
        policy: balance_policy(&at.key("load_balancer"), balancer, errors),
        panic_threshold,
        max_ejection,
        slow_start,
        zone,
        load_report: raw.load_report,
        min_healthy: raw.min_healthy,
        override_header: header,
        attempt_count,
        circuit_breaker,
        concurrency_limit: references.find::<ConcurrencyLimits>(raw.concurrency_limit.as_ref()),
        health_check,
        name,
    }
}

fn balance_policy(at: &Path<'_>, raw: raw::LoadBalancer, errors: &mut Errors) -> BalancePolicy {
    let hashes = raw.policy == raw::BalancePolicy::ConsistentHash;
    if let (Some(key), false) = (&raw.hash_key, hashes) {
        let shown = ["a list of ", &key.len().to_string()].concat();
        errors.refuse_shown(
            &at.key("hash_key"),
            &shown,
            "none: only consistent_hash has a key",
        );
    }
    if let (Some(bound), false) = (raw.bounded_load, hashes) {
        errors.refuse_shown(
            &at.key("bounded_load"),
            &hundredths(bound.0),
            "none: only consistent_hash bounds load",
        );
    }
    if let (Some(span), raw::BalancePolicy::First) = (raw.slow_start, raw.policy) {
        errors.refuse_text(
            &at.key("slow_start"),
            &show_span(span),
            "none: with first there are no shares",
        );
    }
    match raw.policy {
        raw::BalancePolicy::LeastRequest => BalancePolicy::LeastRequest,
        raw::BalancePolicy::RoundRobin => BalancePolicy::RoundRobin,
        raw::BalancePolicy::PeakEwma => BalancePolicy::PeakEwma,
        raw::BalancePolicy::Random => BalancePolicy::Random,
        raw::BalancePolicy::First => BalancePolicy::First,
        raw::BalancePolicy::ConsistentHash => BalancePolicy::ConsistentHash {
            key: raw.hash_key.map_or_else(
                || vec![KeyPart::ClientIp],
                |key| key.into_iter().map(key_part).collect(),
            ),
            bounded_load: raw.bounded_load.unwrap_or(USUAL_BOUND),
        },
    }
}

/// The most load of an endpoint, in hundredths of its share, if `bounded_load` is not given.
const USUAL_BOUND: Percent = Percent(125);

fn component_names(raw: &raw::Upstream) -> Vec<String> {
    let names = |check: &raw::HealthCheck| {
        check
            .components
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    };
    raw.health_check.as_ref().map(names).unwrap_or_default()
}

/// How often an endpoint is asked, at the least, while it is not clear what it is, if
/// `interval_changing` is not given.
const USUAL_CHANGING: Nanos = Nanos(SEC);

fn health_check(at: &Path<'_>, raw: raw::HealthCheck, errors: &mut Errors) -> HealthCheck {
    let http = raw.protocol == raw::CheckProtocol::Http;
    if raw.protocol == raw::CheckProtocol::Tcp {
        let want = "\"http\" or \"grpc\": a filter cannot open a bare connection; Envoy's own health_checks can, for the cluster";
        errors.refuse_text(&at.key("protocol"), "tcp", want);
    }
    if let (Some(host), false) = (&raw.host, http) {
        errors.refuse_text(&at.key("host"), host, "none: only an HTTP check has a host");
    }
    if let (Some(service), true) = (&raw.service, http) {
        errors.refuse_text(
            &at.key("service"),
            service,
            "none: only a gRPC check has a service",
        );
    }
    if raw.report && !http {
        errors.refuse_shown(
            &at.key("report"),
            "true",
            "false: only the answer to an HTTP check has a report",
        );
    }
    if let (Some((name, _)), false) = (raw.components.first(), raw.report) {
        errors.refuse_text(&at.key("components"), name, "none without \"report\": true");
    }
    if let Some(changing) = raw
        .interval_changing
        .filter(|it| *it > raw.interval && !errors.touches(at))
    {
        let want = ["at most the interval of ", &show_span(raw.interval)].concat();
        errors.refuse_text(&at.key("interval_changing"), &show_span(changing), &want);
    }
    let component = |(name, it): (String, raw::Component)| Component {
        name,
        critical: it.critical,
        period: it.period.unwrap_or(raw.interval),
        max_error_rate: it.max_error_rate,
    };
    HealthCheck {
        ask: match raw.protocol {
            raw::CheckProtocol::Grpc => Ask::Grpc {
                service: raw.service.unwrap_or_default(),
            },
            _ => Ask::Http {
                path: raw.path,
                host: raw.host,
                expected: raw.expected_status,
            },
        },
        interval: raw.interval,
        interval_changing: raw
            .interval_changing
            .unwrap_or(raw.interval.min(USUAL_CHANGING)),
        jitter: raw.jitter,
        initial_delay: raw.initial_delay,
        timeout: raw.timeout,
        healthy_threshold: raw.healthy_threshold,
        unhealthy_threshold: raw.unhealthy_threshold,
        report: raw.report,
        components: raw.components.into_iter().map(component).collect(),
    }
}

/// Headers that mean something else; the override header is stripped from clients and set by us.
const RESERVED: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-haven-cluster",
    "x-real-ip",
    "x-request-id",
];

fn rate_limit(
    at: &Path<'_>,
    name: String,
    raw: raw::RateLimit,
    client_ip: &ClientIp,
    errors: &mut Errors,
) -> RateLimit {
    let sound = !errors.touches(at);
    let algorithm = algorithm(at, &raw, errors);
    let windows = matches!(algorithm, Algorithm::SlidingWindow | Algorithm::FixedWindow);
    if let (Some(burst), true) = (raw.burst, windows) {
        errors.refuse_number(&at.key("burst"), u64::from(burst), NO_BURST);
    }
    let quota = quota(raw.limit, raw.period, raw.burst);
    if sound {
        check_fill(at, quota, errors);
    }
    let key: Vec<_> = raw.key.into_iter().map(key_part).collect();
    for (i, it) in raw.overrides.iter().enumerate() {
        if let (Some(burst), true) = (it.burst, windows) {
            errors.refuse_number(
                &at.key("overrides").index(i).key("burst"),
                u64::from(burst),
                NO_BURST,
            );
        }
    }
    let overrides = quota_overrides(at, &key, raw.period, raw.overrides, client_ip, errors);
    let cost = match raw.cost {
        Either::First(cost) => Cost::Fixed(u64::from(cost)),
        Either::Second(it) => Cost::Header {
            name: it.header,
            default: u64::from(it.default),
            max: u64::from(it.max),
        },
    };
    match cost {
        Cost::Fixed(cost) if sound && cost > quota.burst => {
            let want = [
                "at most the ",
                if windows { "limit" } else { "burst" },
                " of ",
                &quota.burst.to_string(),
                ", or no request would ever pass",
            ]
            .concat();
            errors.refuse_number(&at.key("cost"), cost, &want);
        }
        Cost::Header { default, max, .. } if sound && default > max => {
            let want = ["at most the max of ", &max.to_string()].concat();
            errors.refuse_number(&at.key("cost").key("default"), default, &want);
        }
        _ => {}
    }
    RateLimit {
        name,
        mode: raw.mode,
        algorithm,
        quota,
        key,
        missing_key: raw.missing_key,
        cost,
        overrides,
        exempt: raw.exempt,
        max_keys: raw.max_keys,
        headers: raw.headers,
        on_contention: raw.on_contention,
    }
}

const NO_BURST: &str = "none: only token_bucket and leaky_bucket have a burst";

/// How long a request waits at a leaky bucket if `max_wait` is not given: a client that waits
/// longer is likely to have gone.
const USUAL_WAIT: Nanos = Nanos(SEC);

fn algorithm(at: &Path<'_>, raw: &raw::RateLimit, errors: &mut Errors) -> Algorithm {
    if let (Some(span), true) = (
        raw.warm_up,
        raw.algorithm != raw::LimitAlgorithm::TokenBucket,
    ) {
        errors.refuse_text(
            &at.key("warm_up"),
            &show_span(span),
            "none: only token_bucket warms up",
        );
    }
    if let (Some(span), true) = (
        raw.max_wait,
        raw.algorithm != raw::LimitAlgorithm::LeakyBucket,
    ) {
        errors.refuse_text(
            &at.key("max_wait"),
            &show_span(span),
            "none: only leaky_bucket has requests wait",
        );
    }
    match raw.algorithm {
        raw::LimitAlgorithm::TokenBucket => Algorithm::TokenBucket {
            warm_up: raw.warm_up,
        },
        raw::LimitAlgorithm::LeakyBucket => Algorithm::LeakyBucket {
            max_wait: raw.max_wait.unwrap_or(USUAL_WAIT),
        },
        raw::LimitAlgorithm::SlidingWindow => Algorithm::SlidingWindow,
        raw::LimitAlgorithm::FixedWindow => Algorithm::FixedWindow,
    }
}

fn quota(limit: u32, period: Nanos, burst: Option<u32>) -> Quota {
    Quota {
        limit: u64::from(limit),
        period,
        burst: u64::from(burst.unwrap_or(limit)),
    }
}

/// A bucket that takes ages to fill would overflow its record's clock.
fn check_fill(at: &Path<'_>, quota: Quota, errors: &mut Errors) {
    let product = u128::from(quota.burst).saturating_mul(u128::from(quota.period.0));
    let most = u128::from(MAX_FILL.0).saturating_mul(u128::from(quota.limit));
    if product > most {
        let most = most
            .checked_div(u128::from(quota.period.0))
            .unwrap_or_default();
        let want = [
            "at most ",
            &most.to_string(),
            ", or the bucket would take more than 366d to fill",
        ]
        .concat();
        errors.refuse_number(&at.key("burst"), quota.burst, &want);
    }
}

fn quota_overrides(
    at: &Path<'_>,
    key: &[KeyPart],
    period: Nanos,
    raw: Vec<raw::QuotaOverride>,
    client_ip: &ClientIp,
    errors: &mut Errors,
) -> Vec<(Vec<String>, Quota)> {
    let list_at = at.key("overrides");
    let key_sound = !errors.touches(&at.key("key"));
    let period_sound = !errors.touches(&at.key("period"));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (i, it) in raw.into_iter().enumerate() {
        let at = list_at.index(i);
        let sound = !errors.touches(&at);
        let quota = quota(it.limit, it.period.unwrap_or(period), it.burst);
        if sound && (period_sound || it.period.is_some()) {
            check_fill(&at, quota, errors);
        }
        let values = it.key;
        if sound && key_sound {
            let key_at = at.key("key");
            if values.len() != key.len() {
                let shown = [
                    "[",
                    &values
                        .iter()
                        .map(|value| show_text(value))
                        .collect::<Vec<_>>()
                        .join(","),
                    "]",
                ]
                .concat();
                let want = [
                    "a list of ",
                    &key.len().to_string(),
                    " values, one for each part of the rate limit's key",
                ];
                errors.refuse_shown(&key_at, &shown, &want.concat());
                continue;
            }
            let mut meant = Vec::new();
            for (j, (part, value)) in key.iter().zip(&values).enumerate() {
                match same_value(part, value, client_ip) {
                    Ok(value) => meant.push(value),
                    Err(want) => errors.refuse_text(&key_at.index(j), value, want),
                }
            }
            if meant.len() == values.len() && !seen.insert(meant) {
                errors.refuse_text(&key_at, &values.join(","), "each key only once");
            }
        }
        found.push((values, quota));
    }
    found
}

/// A form of a key part's value that is the same for all values that mean the same; what a request
/// can never have is refused.
fn same_value(part: &KeyPart, value: &str, client_ip: &ClientIp) -> Result<String, &'static str> {
    match part {
        KeyPart::ClientIp => match Ip::parse(value.as_bytes()) {
            Some(ip) => Ok(ip
                .masked(client_ip.ipv4_prefix, client_ip.ipv6_prefix)
                .0
                .to_string()),
            None => Err("an IP address"),
        },
        KeyPart::Host => exact_host(value).ok_or("a host without a port like \"example.com\""),
        _ => Ok(value.into()),
    }
}

fn key_part(raw: Either<raw::KeyWord, raw::KeyField>) -> KeyPart {
    match raw {
        Either::First(raw::KeyWord::ClientIp) => KeyPart::ClientIp,
        Either::First(raw::KeyWord::Method) => KeyPart::Method,
        Either::First(raw::KeyWord::Path) => KeyPart::Path,
        Either::First(raw::KeyWord::Host) => KeyPart::Host,
        Either::First(raw::KeyWord::Route) => KeyPart::Route,
        Either::Second(raw::KeyField {
            header: Some(name), ..
        }) => KeyPart::Header(name),
        Either::Second(raw::KeyField {
            cookie: Some(name), ..
        }) => KeyPart::Cookie(name),
        Either::Second(raw::KeyField {
            query: Some(name), ..
        }) => KeyPart::Query(name),
        Either::Second(raw::KeyField { path_segment, .. }) => {
            KeyPart::PathSegment(path_segment.unwrap_or_default())
        }
    }
}

fn circuit_breaker(
    at: &Path<'_>,
    name: String,
    raw: raw::BreakerFields,
    errors: &mut Errors,
) -> CircuitBreaker {
    let window_at = at.key("window");
    let size_at = window_at.key("size");
    let window = match (raw.window.r#type, raw.window.size) {
        (raw::WindowType::Time, Some(Either::First(span))) => Window::Time(span),
        (raw::WindowType::Count, Some(Either::Second(calls))) => Window::Count(calls),
        (raw::WindowType::Count, None) => Window::Count(100),
        (raw::WindowType::Time, size) => {
            if let (Some(Either::Second(calls)), false) = (size, errors.touches(&window_at)) {
                errors.refuse_number(
                    &size_at,
                    u64::from(calls),
                    &<Span<SEC, HOUR>>::SCHEMA.want(),
                );
            }
            Window::Time(Nanos(10 * SEC))
        }
        (raw::WindowType::Count, Some(Either::First(span))) => {
            if !errors.touches(&window_at) {
                errors.refuse_text(&size_at, &show_span(span), &raw::Calls::SCHEMA.want());
            }
            Window::Count(100)
        }
    };
    let open = raw.open_duration;
    let max_open = raw.max_open_duration.unwrap_or(Nanos(60 * SEC).max(open));
    if max_open < open && !errors.touches(at) {
        let want = ["at least the open_duration of ", &show_span(open)].concat();
        errors.refuse_text(&at.key("max_open_duration"), &show_span(max_open), &want);
    }
    CircuitBreaker {
        name,
        mode: raw.mode,
        scope: raw.scope,
        failure_rate_threshold: raw.failure_rate_threshold,
        slow_call_rate_threshold: raw.slow_call_rate_threshold,
        slow_call_duration: raw.slow_call_duration,
        consecutive_failures: raw.consecutive_failures,
        minimum_calls: raw.minimum_calls,
        window,
        open_duration: open,
        backoff_multiplier_centi: raw.backoff_multiplier.0,
        max_open_duration: max_open,
        jitter: raw.jitter,
        half_open_calls: raw.half_open_calls,
        half_open_max_wait: raw.half_open_max_wait,
        failure_on: FailureOn {
            status: raw.failure_on.status,
            grpc_status: raw.failure_on.grpc_status.into_iter().map(small).collect(),
            reset: raw.failure_on.reset,
            timeout: raw.failure_on.timeout,
        },
        honour_retry_after: raw.honour_retry_after,
        open_above: raw.preset == Some(raw::Preset::Sentinel),
    }
}

/// Checks what spans the fields of a concurrency limit.
pub(super) fn check_concurrency_limit(at: &Path<'_>, json: &Json, errors: &mut Errors) {
    let raw = raw::ConcurrencyLimit::decode(json);
    let adaptive = raw.algorithm == raw::ConcurrencyAlgorithm::Adaptive;
    match raw.limit {
        None if !adaptive => errors.missing(&at.key("limit"), &<Int<1, 1_000_000>>::SCHEMA.want()),
        Some(limit) if adaptive => {
            errors.refuse_number(
                &at.key("limit"),
                u64::from(limit),
                "none: adaptive finds its limit",
            );
        }
        _ => {}
    }
    let (low, high, first) = bounds(&raw);
    if low > high {
        let want = ["at least the min_limit of ", &low.to_string()].concat();
        errors.refuse_number(&at.key("max_limit"), u64::from(high), &want);
    } else if raw.initial_limit.is_some() && !(low..=high).contains(&first) {
        let want = [
            "an integer from the min_limit of ",
            &low.to_string(),
            " to the max_limit of ",
            &high.to_string(),
        ];
        errors.refuse_number(&at.key("initial_limit"), u64::from(first), &want.concat());
    }
}

/// Bounds of `adaptive` and where it begins, which by default is what is usual within the bounds.
fn bounds(raw: &raw::ConcurrencyLimit) -> (u32, u32, u32) {
    let (low, high) = (raw.min_limit.unwrap_or(3), raw.max_limit.unwrap_or(1000));
    (
        low,
        high,
        raw.initial_limit.unwrap_or_else(|| 20.min(high).max(low)),
    )
}

fn concurrency_limit(name: String, raw: &raw::ConcurrencyLimit) -> ConcurrencyLimit {
    let (min, max, initial) = bounds(raw);
    let algorithm = match raw.algorithm {
        raw::ConcurrencyAlgorithm::Adaptive => ConcurrencyAlgorithm::Adaptive { min, max, initial },
        raw::ConcurrencyAlgorithm::Fixed => ConcurrencyAlgorithm::Fixed {
            limit: raw.limit.unwrap_or(1),
        },
    };
    ConcurrencyLimit {
        name,
        mode: raw.mode,
        algorithm,
    }
}

fn fallback(at: &Path<'_>, name: String, raw: raw::Fallback, errors: &mut Errors) -> Fallback {
    let mut on = FallbackOn {
        rate_limited: false,
        overload: false,
        circuit_open: false,
        no_endpoint: false,
        deadline: false,
        switched_off: false,
        upstream_error: false,
        timeout: false,
    };
    for cause in raw.on {
        match cause {
            raw::Cause::RateLimited => on.rate_limited = true,
            raw::Cause::Overload => on.overload = true,
            raw::Cause::CircuitOpen => on.circuit_open = true,
            raw::Cause::NoEndpoint => on.no_endpoint = true,
            raw::Cause::Deadline => on.deadline = true,
            raw::Cause::SwitchedOff => on.switched_off = true,
            raw::Cause::UpstreamError => on.upstream_error = true,
            raw::Cause::Timeout => on.timeout = true,
        }
    }
    let steps_at = at.key("steps");
    let last = raw.steps.len().saturating_sub(1);
    let mut steps: Vec<FallbackStep> = Vec::new();
    for (i, step) in raw.steps.into_iter().enumerate() {
        let step_at = steps_at.index(i);
        if let Some(it) = step.stale {
            let at = step_at.key("stale");
            let max_age = it.max_age;
            steps.push(FallbackStep::Stale(stale(&at, it, errors)));
            if steps
                .iter()
                .filter(|step| matches!(step, FallbackStep::Stale(_)))
                .nth(1)
                .is_some()
            {
                errors.refuse_text(
                    &at.key("max_age"),
                    &show_span(max_age),
                    "one stale step only",
                );
            }
        } else if let Some(cluster) = step.cluster {
            if steps
                .iter()
                .any(|step| matches!(step, FallbackStep::Cluster(_)))
            {
                errors.refuse_text(
                    &step_at.key("cluster"),
                    &cluster,
                    "one cluster step only: a request is sent on once",
                );
            }
            steps.push(FallbackStep::Cluster(cluster));
        } else if let Some(it) = step.respond {
            let at = step_at.key("respond");
            if i < last {
                let status = u64::from(it.status);
                errors.refuse_number(
                    &at.key("status"),
                    status,
                    "a respond step only at the end: it always answers",
                );
            }
            steps.push(FallbackStep::Respond(respond(&at, it, errors)));
        }
    }
    Fallback {
        name,
        mode: raw.mode,
        on,
        steps,
    }
}

fn stale(at: &Path<'_>, raw: raw::Stale, errors: &mut Errors) -> Stale {
    let it = Stale {
        max_age: raw.max_age,
        max_body: raw.max_body,
        vary: raw.vary,
        max_entries: raw.max_entries,
        max_bytes: raw.max_bytes,
    };
    let least = it.max_body.saturating_add(Stale::HEAD);
    // Where one of them was refused, it is zero.
    if it.max_body > 0 && it.max_bytes > 0 && it.max_bytes < least {
        let want = ["at least ", &show_size(least), ": max_body and 16KiB"].concat();
        errors.refuse_text(&at.key("max_bytes"), &show_size(it.max_bytes), &want);
    }
    it
}

fn respond(at: &Path<'_>, raw: raw::Respond, errors: &mut Errors) -> Respond {
    for (name, _) in &raw.headers {
        if OWN_HEADERS.contains(&name.as_str()) {
            let want = ["a header name that is none of ", &OWN_HEADERS.join(", ")].concat();
            errors.refuse_text(&at.key("headers"), name, &want);
        }
    }
    if let (204 | 205 | 304, false) = (raw.status, raw.body.is_empty()) {
        errors.refuse_number(
            &at.key("status"),
            u64::from(raw.status),
            "a status that may have a body",
        );
    }
    Respond {
        status: u16::try_from(raw.status).unwrap_or(u16::MAX),
        headers: raw.headers,
        content_type: raw.content_type,
        body: raw.body,
    }
}

/// Headers of an answer that are not the user's to set: they frame the message, or have a field of
/// their own.
const OWN_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn routes(raw: Vec<raw::Route>, references: &References<'_>, errors: &mut Errors) -> Vec<Route> {
    let list_at = Path::Root.key("routes");
    let mut seen = BTreeSet::new();
    let mut routes = Vec::new();
    for (i, it) in raw.into_iter().enumerate() {
        let at = list_at.index(i);
        if !it.name.is_empty() && !seen.insert(it.name.clone()) {
            errors.refuse_text(&at.key("name"), &it.name, "each route's name only once");
        }
        routes.push(route(&at, it, references, errors));
    }
    routes
}

fn route(
    at: &Path<'_>,
    raw: raw::Route,
    references: &References<'_>,
    errors: &mut Errors,
) -> Route {
    let upstream = references.find::<Upstreams>(raw.upstream.as_ref());
    let rate_limits = raw
        .rate_limits
        .iter()
        .filter_map(|name| references.find::<RateLimits>(Some(name)))
        .collect();
    let circuit_breaker = references.find::<CircuitBreakers>(raw.circuit_breaker.as_ref());
    let fallback = references.find::<Fallbacks>(raw.fallback.as_ref());
    let switch = references.find::<Switches>(raw.switch.as_ref());
    if let (Some(i), Some(breaker), None) = (circuit_breaker, &raw.circuit_breaker, &raw.upstream)
        && references.upstream_scoped.get(i) == Some(&true)
    {
        let want =
            "a circuit breaker without \"scope\": \"upstream\", for the route has no upstream";
        errors.refuse_text(&at.key("circuit_breaker"), breaker, want);
    }
    if let (Some(i), Some(name), None) = (fallback, &raw.fallback, &raw.upstream)
        && references.sends_on.get(i) == Some(&true)
    {
        let want = "a fallback without a cluster step, for the route has no upstream that names its own cluster";
        errors.refuse_text(&at.key("fallback"), name, want);
    }
    let known = upstream
        .and_then(|i| references.components.get(i))
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut depends_on = Vec::new();
    for (i, name) in raw
        .depends_on
        .iter()
        .enumerate()
        .filter(|(_, name)| !name.is_empty())
    {
        match known.iter().position(|known| known == name) {
            Some(component) => depends_on.push(component),
            // One that no upstream has was refused already.
            None if references.find::<Components>(Some(name)).is_none() => {}
            None => {
                let want = "a component of the health_check of the route's own upstream";
                errors.refuse_text(&at.key("depends_on").index(i), name, want);
            }
        }
    }
    let canary = raw.canary.map(|it| {
        let stable = raw.upstream.as_deref();
        Canary {
            circuit_breaker: references
                .find::<CircuitBreakers>(it.circuit_breaker.as_ref())
                .or(circuit_breaker),
            ..canary(&at.key("canary"), it, stable, references, errors)
        }
    });
    Route {
        name: raw.name,
        mode: raw.mode,
        matcher: matcher(&at.key("match"), raw.r#match, errors),
        upstream,
        rate_limits,
        circuit_breaker,
        concurrency_limit: references.find::<ConcurrencyLimits>(raw.concurrency_limit.as_ref()),
        criticality: raw.criticality,
        fallback,
        switch,
        timeout: timeout(&at.key("timeout"), raw.timeout, errors),
        retry: raw.retry.map(retry),
        depends_on,
        canary,
    }
}

fn canary(
    at: &Path<'_>,
    raw: raw::Canary,
    stable: Option<&str>,
    references: &References<'_>,
    errors: &mut Errors,
) -> Canary {
    if stable.is_none_or(|stable| stable == raw.upstream) && !raw.upstream.is_empty() {
        let want = if stable.is_none() {
            "none: the route has no upstream of its own"
        } else {
            "another upstream than the route's"
        };
        errors.refuse_text(&at.key("upstream"), &raw.upstream, want);
    }
    if let Some(header) = &raw.color_header
        && !header.is_empty()
        && (!header.starts_with("x-")
            || header.starts_with("x-envoy-")
            || RESERVED.contains(&header.as_str())
            || references.overrides.iter().any(|known| known == header))
    {
        let want = [
            "a header that says nothing else: it starts with \"x-\", not with \"x-envoy-\", and is no override header and none of ",
            &RESERVED.join(", "),
        ];
        errors.refuse_text(&at.key("color_header"), header, &want.concat());
    }
    for (name, value) in [("color", &raw.color), ("stable_color", &raw.stable_color)] {
        if let (Some(value), None) = (value, &raw.color_header) {
            errors.refuse_text(&at.key(name), value, "none: there is no color_header");
        }
    }
    let color = |given: Option<String>, upstream: &str| given.unwrap_or_else(|| upstream.into());
    let (canary_color, stable_color) = (
        color(raw.color, &raw.upstream),
        color(raw.stable_color, stable.unwrap_or_default()),
    );
    let wanted = |(name, value): (String, String)| (name, (value != "*").then_some(value));
    let marks = |headers: Vec<(String, String)>, cookies: Vec<(String, String)>| Marks {
        headers: headers.into_iter().map(wanted).collect(),
        cookies: cookies.into_iter().map(wanted).collect(),
    };
    Canary {
        mode: raw.mode,
        upstream: references
            .find::<Upstreams>(Some(&raw.upstream))
            .unwrap_or_default(),
        percent: raw.percent,
        sticky: raw.sticky.into_iter().map(key_part).collect(),
        forced: marks(raw.header, raw.cookie),
        stable: marks(raw.stable.header, raw.stable.cookie),
        color: raw.color_header.map(|header| Color {
            header,
            canary: canary_color,
            stable: stable_color,
        }),
        circuit_breaker: None,
    }
}

fn timeout(at: &Path<'_>, raw: raw::Timeout, errors: &mut Errors) -> Timeout {
    let request = raw.request.map(|request| match request {
        Either::First(time) => RequestTimeout::Fixed(time),
        Either::Second(it) => {
            let it = it.dynamic.unwrap_or_default();
            let request_at = at.key("request");
            let at = request_at.key("dynamic");
            if it.max < it.min && !errors.touches(&at) {
                let want = ["at least the min of ", &show_span(it.min)].concat();
                errors.refuse_text(&at.key("max"), &show_span(it.max), &want);
            }
            let (quantile, factor_centi) = (it.quantile, it.factor.0);
            RequestTimeout::Dynamic(DynamicTimeout {
                quantile,
                factor_centi,
                min: it.min,
                max: it.max,
            })
        }
    });
    let reject_below = raw.reject_below.map(|it| match it {
        Either::First(time) => RejectBelow::Time(time),
        Either::Second(text) => {
            let percent = text
                .strip_prefix('p')
                .and_then(|digits| digits.parse::<u32>().ok())
                .unwrap_or_default();
            RejectBelow::Quantile(Percent(percent.saturating_mul(100)))
        }
    });
    if let Some(header) = &raw.deadline_header
        && (OWN_HEADERS.contains(&header.as_str())
            || header == "host"
            || header.starts_with("x-envoy-"))
    {
        let want = "a header that says nothing else: none that frames the message, not \"host\", none of Envoy's";
        errors.refuse_text(&at.key("deadline_header"), header, want);
    }
    Timeout {
        request,
        per_try: raw.per_try,
        deadline_header: raw.deadline_header,
        reject_below,
    }
}

fn retry(raw: raw::Retry) -> Retry {
    let (mut on, mut grpc_on) = (Vec::new(), Vec::new());
    for word in raw.on {
        match word {
            raw::RetryOn::Any(word) => on.push(word),
            raw::RetryOn::Grpc(word) => grpc_on.push(word),
        }
    }
    Retry {
        attempts: raw.attempts,
        on: on.join(","),
        grpc_on: grpc_on.join(","),
        methods: raw.methods,
        budget: raw.budget,
        min_per_second: raw.min_per_second,
    }
}

fn matcher(at: &Path<'_>, raw: raw::Match, errors: &mut Errors) -> Match {
    let mut given: Vec<(&str, &str)> = Vec::new();
    given.extend(raw.path.iter().map(|path| ("path", path.as_str())));
    given.extend(raw.prefix.iter().map(|prefix| ("prefix", prefix.as_str())));
    given.extend(
        raw.pattern
            .iter()
            .map(|pattern| ("pattern", pattern.as_str())),
    );
    if let Some(((first, _), others)) = given.split_first() {
        for (field, value) in others {
            errors.refuse_text(
                &at.key(field),
                value,
                &["no ", field, " besides the ", first].concat(),
            );
        }
    }
    let path = match (raw.path, raw.prefix, raw.pattern) {
        (Some(path), _, _) => PathMatch::Exact(path),
        // Without the slash at its end, "/" is the prefix of every path, and "/api/" the same as
        // "/api".
        (_, Some(prefix), _) => PathMatch::Prefix(prefix.trim_end_matches('/').into()),
        (_, _, Some(pattern)) => PathMatch::Pattern(segments(&pattern)),
        (None, None, None) => PathMatch::Any,
    };
    let header = |(name, value): (String, String)| (name, (value != "*").then_some(value));
    Match {
        path,
        methods: raw.methods,
        hosts: raw.hosts,
        headers: raw.headers.into_iter().map(header).collect(),
    }
}

fn health(raw: raw::Health, errors: &mut Errors) -> Health {
    let at = Path::Root.key("health");
    let mut seen: Vec<&str> = Vec::new();
    for (name, path) in [
        ("livez", &raw.livez),
        ("readyz", &raw.readyz),
        ("startupz", &raw.startupz),
        ("health", &raw.health),
    ] {
        let Some(path) = path.as_ref().filter(|path| !path.is_empty()) else {
            continue;
        };
        if seen.contains(&path.as_str()) {
            errors.refuse_text(&at.key(name), path, "a path of its own");
        }
        seen.push(path);
    }
    Health {
        livez: raw.livez,
        readyz: raw.readyz,
        startupz: raw.startupz,
        health: raw.health,
        grpc: raw.grpc,
    }
}

/// Numbers whose type bounds them to 255.
fn small(n: u32) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}
