//! Floor 2: the filter's JSON as validated, typed values.
//!
//! What stands here is what the engine works with: every reference is an index, every default is
//! filled in, every range is kept. It can only be had from [`parse`], which reports all errors of a
//! document at once.

mod compile;
mod raw;
mod sections;
mod text;

use crate::base::time::Nanos;
use crate::schema;

pub use crate::base::percent::Percent;
pub use crate::schema::{Cidr, ConfigError, ConfigErrors};

/// Reads and validates a configuration. Nothing at all is as good as `{}`.
///
/// # Errors
/// All errors of the document, each with its path, the value, and what is allowed.
pub fn parse(document: &[u8]) -> Result<Config, ConfigErrors> {
    schema::read::<raw::Document, _>(document, compile::compile)
}

/// The JSON schema (draft 2020-12) of what [`parse`] accepts.
#[cfg(not(target_arch = "wasm32"))]
#[must_use]
pub fn schema() -> serde_json::Value {
    schema::json_schema::json_schema::<raw::Document>("haven filter configuration")
}

/// The reference of the configuration, in Markdown.
#[cfg(not(target_arch = "wasm32"))]
#[must_use]
pub fn reference() -> String {
    schema::reference::reference::<raw::Document>(HEAD)
}

#[cfg(not(target_arch = "wasm32"))]
const HEAD: &str = "# Configuration reference

Generated from the code that reads the configuration (`HAVEN_BLESS=1 cargo test --test config`); do not edit.

Durations are strings with a unit (`\"250ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"`; also `ns`, `us`, `d`), sizes are strings like `\"64KiB\"`
(also `B`, `MiB`), percentages are numbers from 0 to 100. Names are 1 to 64 of `A-Z a-z 0-9 . _ : / -`. Unknown fields, wrong types, bad
ranges, dangling and duplicate names are refused, all at once, each with its path. What is marked *not supported yet* is validated
and then refused, unless it is set to its default.
";

/// What a policy does with its verdict. The innermost mode that is set wins: policy, then route,
/// then the top level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Act on it.
    #[default]
    Enforce,
    /// Decide, count and log "would have", never act.
    Shadow,
    /// Not even look.
    Off,
}

/// A whole, valid configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Name in health documents; "haven" if not given.
    pub service: String,
    /// Mode of everything that does not set its own.
    pub mode: Mode,
    /// Where a client's address is taken from.
    pub client_ip: ClientIp,
    /// Upstreams, in the document's order.
    pub upstreams: Vec<Upstream>,
    /// Rate limits, in the document's order.
    pub rate_limits: Vec<RateLimit>,
    /// Circuit breakers, in the document's order.
    pub circuit_breakers: Vec<CircuitBreaker>,
    /// Concurrency limits, in the document's order.
    pub concurrency_limits: Vec<ConcurrencyLimit>,
    /// Fallbacks, in the document's order.
    pub fallbacks: Vec<Fallback>,
    /// Kill switches, in the document's order.
    pub switches: Vec<Switch>,
    /// Routes; the first that matches is taken.
    pub routes: Vec<Route>,
    /// The health endpoints.
    pub health: Health,
    /// Whether clients may steer the proxy's retries and timeouts by `x-envoy-*` headers.
    pub trust_client_retry_headers: bool,
}

/// Where a client's address is taken from, and how much of it tells clients apart.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientIp {
    /// The source.
    pub source: IpSource,
    /// Which entry of `X-Forwarded-For`, counted from the right, 1 to 32.
    pub trusted_hops: u32,
    /// Leading bits of an IPv4 address that count, 1 to 32.
    pub ipv4_prefix: u8,
    /// Leading bits of an IPv6 address that count, 1 to 128.
    pub ipv6_prefix: u8,
}

impl Default for ClientIp {
    fn default() -> Self {
        Self {
            source: IpSource::Connection,
            trusted_hops: 1,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
        }
    }
}

/// Sources of a client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpSource {
    /// The connection's peer.
    #[default]
    Connection,
    /// The `X-Forwarded-For` header.
    XForwardedFor,
    /// The `X-Real-IP` header.
    XRealIp,
}

/// A set of interchangeable endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// Envoy's cluster; the upstream's name if not given.
    pub cluster: String,
    /// Its endpoints, distinct.
    pub endpoints: Vec<Endpoint>,
    /// How one is picked.
    pub policy: BalancePolicy,
    /// Below this share of available endpoints all are used again; 0 = never.
    pub panic_threshold: Percent,
    /// Breakers take at most this share of the endpoints out of rotation.
    pub max_ejection: Percent,
    /// Time over which a new or recovered endpoint gets its full share.
    pub slow_start: Option<Nanos>,
    /// The proxy's own zone.
    pub zone: Option<String>,
    /// Which reports of endpoints count.
    pub load_report: LoadReport,
    /// The upstream is UP while at least this share of its endpoints is well; `None` = at least one
    /// endpoint.
    pub min_healthy: Option<Percent>,
    /// The request header (lower case) that carries the picked endpoints to the proxy.
    pub override_header: String,
    /// Whether `x-envoy-attempt-count` in answers is the proxy's own.
    pub attempt_count: bool,
    /// Index into [`Config::circuit_breakers`]: one state per endpoint.
    pub circuit_breaker: Option<usize>,
    /// Index into [`Config::concurrency_limits`]: one for all routes of the upstream together.
    pub concurrency_limit: Option<usize>,
    /// Active checks of its endpoints.
    pub health_check: Option<HealthCheck>,
}

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
    pub components: Vec<Component>,
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
pub struct Component {
    /// Its name.
    pub name: String,
    /// Whether an endpoint is of no use without it.
    pub critical: bool,
    /// How often the endpoint looks after it, 100 ms to 1 h.
    pub period: Nanos,
    /// Above this share of errors it is DOWN.
    pub max_error_rate: Option<Percent>,
}

/// One instance of an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// `ip:port` or `[ipv6]:port`, in canonical form.
    pub address: String,
    /// Relative capacity; 0 = drained.
    pub weight: u32,
    /// Those of a higher number are used when those of the lower ones are out, 0 to 127.
    pub priority: u32,
    /// Its zone.
    pub zone: Option<String>,
}

/// How an endpoint is picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BalancePolicy {
    /// In turn, by weight.
    RoundRobin,
    /// Least requests in flight for its weight.
    LeastRequest,
    /// Least latency times requests in flight, for its weight.
    PeakEwma,
    /// The owner of the request's key.
    ConsistentHash {
        /// What is hashed.
        key: Vec<KeyPart>,
        /// The most requests in flight of an endpoint, in hundredths of its share of them all.
        bounded_load: Percent,
    },
    /// A draw by weight.
    Random,
    /// The first that may be used.
    First,
}

/// Which reports of endpoints count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadReport {
    /// None.
    #[default]
    None,
    /// The header `endpoint-load-metrics`.
    Orca,
}

/// A quota per key.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// How requests are counted.
    pub algorithm: Algorithm,
    /// The quota of a key without an override.
    pub quota: Quota,
    /// What tells keys apart; empty = one bucket for all.
    pub key: Vec<KeyPart>,
    /// What happens to a request that lacks a part.
    pub missing_key: MissingKey,
    /// Tokens that a request takes.
    pub cost: Cost,
    /// Quotas of exact keys.
    pub overrides: Vec<(Vec<String>, Quota)>,
    /// Client networks that are never limited.
    pub exempt: Vec<Cidr>,
    /// Keys tracked at once, 1 to 10,000,000.
    pub max_keys: u32,
    /// Which headers tell the client of its quota.
    pub headers: QuotaHeaders,
    /// What happens to a request whose bucket stays contended between workers.
    pub on_contention: OnContention,
}

/// How a rate limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Refills evenly, lets bursts pass.
    TokenBucket {
        /// Time over which the rate grows to its full value after a pause, 1 ms to 1 h.
        warm_up: Option<Nanos>,
    },
    /// Spaces requests evenly.
    LeakyBucket {
        /// The longest a request waits, up to 1 h.
        max_wait: Nanos,
    },
    /// Counts over the last period, estimated from two windows.
    SlidingWindow,
    /// Counts from zero in each period.
    FixedWindow,
}

/// `limit` tokens per `period`, at most `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Tokens per period, 1 to 1,000,000,000.
    pub limit: u64,
    /// The period, 1 ms to 366 days.
    pub period: Nanos,
    /// Capacity, 1 to 1,000,000,000; of a leaky bucket the most that may wait, of a window the
    /// limit.
    pub burst: u64,
}

/// A part of a rate limit's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The client's address, cut to its prefix.
    ClientIp,
    /// The method.
    Method,
    /// The path without its query.
    Path,
    /// The host, lower case, without its port.
    Host,
    /// The route's name.
    Route,
    /// A header's value; the name is lower case.
    Header(String),
    /// A cookie's value.
    Cookie(String),
    /// A query parameter's value.
    Query(String),
    /// A segment of the path, counted from 0.
    PathSegment(u32),
}

/// What happens to a request that lacks a part of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingKey {
    /// The limit does not apply to it.
    #[default]
    Skip,
    /// All such requests share one bucket.
    Share,
}

/// Tokens that a request takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cost {
    /// The same for every request; 0 only looks.
    Fixed(u64),
    /// Read from a request header (lower case): malformed or negative = `default`, above `max` =
    /// `max`.
    Header {
        /// The header's name.
        name: String,
        /// Cost of a request without a usable value.
        default: u64,
        /// Upper bound.
        max: u64,
    },
}

/// What happens to a request whose bucket stays contended between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnContention {
    /// It passes uncounted.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

/// Which headers tell the client of its quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuotaHeaders {
    /// `RateLimit-Policy` and `RateLimit`.
    #[default]
    Ietf,
    /// `X-RateLimit-Limit`, `-Remaining`, `-Reset`.
    X,
    /// Both families.
    Both,
    /// None.
    None,
}

/// When calls are stopped, for how long, and how they are tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitBreaker {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// On a route: one state per route, or one for all routes of the upstream.
    pub scope: BreakerScope,
    /// Opens at this share of failures, or above it if `open_above`.
    pub failure_rate_threshold: Percent,
    /// Opens at this share of slow calls; 100 % = all of them.
    pub slow_call_rate_threshold: Percent,
    /// A call that takes at least this long is slow.
    pub slow_call_duration: Nanos,
    /// Opens after so many failures in a row; 0 = off.
    pub consecutive_failures: u32,
    /// No rate is judged below so many calls in the window; a count window that is smaller is
    /// judged when it is full.
    pub minimum_calls: u32,
    /// The calls that count.
    pub window: Window,
    /// How long it stays open the first time.
    pub open_duration: Nanos,
    /// Factor by which the open time grows with each failed half-open round, in hundredths (200 =
    /// doubles).
    pub backoff_multiplier_centi: u32,
    /// The most that the open time grows to.
    pub max_open_duration: Nanos,
    /// Random share by which an open time is lengthened or shortened.
    pub jitter: Percent,
    /// Calls let through while half-open.
    pub half_open_calls: u32,
    /// How long it may stay half-open before it opens again.
    pub half_open_max_wait: Nanos,
    /// The outcomes that count as failures.
    pub failure_on: FailureOn,
    /// An upstream's `Retry-After` sets the open time.
    pub honour_retry_after: bool,
    /// True: opens above the threshold only (Sentinel); false: at it.
    pub open_above: bool,
}

/// The calls that a breaker judges by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Those of the last so long, 1 s to 1 h.
    Time(Nanos),
    /// The last so many, 1 to 1,024.
    Count(u32),
}

/// Who shares a route's breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerScope {
    /// A state per route.
    #[default]
    Route,
    /// One state for all routes of an upstream that name this breaker.
    Upstream,
}

/// The outcomes that count as failures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureOn {
    /// Inclusive ranges of HTTP statuses.
    pub status: Vec<(u16, u16)>,
    /// gRPC statuses.
    pub grpc_status: Vec<u8>,
    /// Resets and refused connections.
    pub reset: bool,
    /// Timeouts.
    pub timeout: bool,
}

/// A bound of the requests in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimit {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// How the bound is found.
    pub algorithm: ConcurrencyAlgorithm,
}

/// How a concurrency limit finds its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConcurrencyAlgorithm {
    /// It is given.
    Fixed {
        /// The bound, 1 to 1,000,000.
        limit: u32,
    },
    /// It is found from what is answered in time. 1 <= `min` <= `initial` <= `max` <= 1,000,000.
    Adaptive {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
        /// Where it begins.
        initial: u32,
    },
}

/// What is shed first under load, from first to last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Criticality {
    /// May be shed at once.
    Sheddable,
    /// May be shed.
    SheddablePlus,
    /// Is shed when the limit is all but reached.
    #[default]
    Critical,
    /// Is shed last.
    CriticalPlus,
}

/// What is answered instead of a refusal or a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// When it is used.
    pub on: FallbackOn,
    /// Tried in this order.
    pub steps: Vec<FallbackStep>,
}

/// The causes a fallback answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FallbackOn {
    /// A refusal by a rate limit.
    pub rate_limited: bool,
    /// A refusal by a concurrency limit.
    pub overload: bool,
    /// A refusal by an open breaker.
    pub circuit_open: bool,
    /// No endpoint is left.
    pub no_endpoint: bool,
    /// The deadline has passed.
    pub deadline: bool,
    /// The route is switched off.
    pub switched_off: bool,
    /// 5xx, reset, refused, cut.
    pub upstream_error: bool,
    /// The upstream did not answer in time.
    pub timeout: bool,
}

/// One step of a fallback.
#[derive(Clone, Debug, PartialEq)]
pub enum FallbackStep {
    /// The last good response.
    Stale(Stale),
    /// Another of Envoy's clusters.
    Cluster(String),
    /// A fixed answer.
    Respond(Respond),
}

/// Which last good responses are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// How old one may be, 1 s to 7 days.
    pub max_age: Nanos,
    /// The most bytes of a body, 1 to 1 MiB.
    pub max_body: usize,
    /// Request headers (lower case) that tell responses apart.
    pub vary: Vec<String>,
    /// The most responses kept, 1 to 65,536.
    pub max_entries: u32,
    /// The most bytes kept, [`Stale::HEAD`] and `max_body` to 1 GiB.
    pub max_bytes: usize,
}

impl Stale {
    /// The most bytes that a response takes beside its body: its key, its headers and those that it
    /// varies by.
    pub const HEAD: usize = 16 * 1024;
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Respond {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Further headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Content type of the body.
    pub content_type: String,
    /// The body: literal text and placeholders.
    pub body: Vec<TemplatePart>,
}

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Itself.
    Literal(String),
    /// `{{request_id}}`
    RequestId,
    /// `{{retry_after}}`, whole seconds.
    RetryAfter,
    /// `{{reason}}`
    Reason,
    /// `{{route}}`
    Route,
}

/// A kill switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Its name.
    pub name: String,
    /// Whether the routes that name it are served.
    pub on: bool,
}

/// What is done with requests that match.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// Which requests it is for.
    pub matcher: Match,
    /// Index into [`Config::upstreams`].
    pub upstream: Option<usize>,
    /// Indices into [`Config::rate_limits`].
    pub rate_limits: Vec<usize>,
    /// Index into [`Config::circuit_breakers`].
    pub circuit_breaker: Option<usize>,
    /// Index into [`Config::concurrency_limits`]: one for this route, besides that of its upstream.
    pub concurrency_limit: Option<usize>,
    /// When it is shed.
    pub criticality: Criticality,
    /// Index into [`Config::fallbacks`].
    pub fallback: Option<usize>,
    /// Index into [`Config::switches`].
    pub switch: Option<usize>,
    /// How long its requests may take.
    pub timeout: Timeout,
    /// Which of them are tried again.
    pub retry: Option<Retry>,
    /// Indices into the components of its upstream's [`HealthCheck`]: it is refused while one of
    /// them is down.
    pub depends_on: Vec<usize>,
    /// A share of them that goes elsewhere.
    pub canary: Option<Canary>,
}

/// A share of a route's requests that goes to another upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Its own mode.
    pub mode: Option<Mode>,
    /// Index into [`Config::upstreams`]; not the route's.
    pub upstream: usize,
    /// Its share of the requests that nothing else decides for.
    pub percent: Percent,
    /// What tells clients apart; empty = each request is drawn anew.
    pub sticky: Vec<KeyPart>,
    /// Requests that go to it.
    pub forced: Marks,
    /// Requests that do not.
    pub stable: Marks,
    /// How requests are coloured.
    pub color: Option<Color>,
    /// Index into [`Config::circuit_breakers`].
    pub circuit_breaker: Option<usize>,
}

/// What marks a request. Nothing given marks none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Headers that it has all of: lower-case name and the exact value, or `None` = present.
    pub headers: Vec<(String, Option<String>)>,
    /// Or cookies that it has all of.
    pub cookies: Vec<(String, Option<String>)>,
}

/// A header that tells the hops behind which side a request is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Color {
    /// Its name, lower case.
    pub header: String,
    /// What it says of the canary's requests.
    pub canary: String,
    /// What it says of the others.
    pub stable: String,
}

/// How long a request may take.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeout {
    /// Time for the whole request; `None` = the proxy's own.
    pub request: Option<RequestTimeout>,
    /// Time for each try.
    pub per_try: Option<Nanos>,
    /// A request header (lower case) with the milliseconds left.
    pub deadline_header: Option<String>,
    /// A request whose deadline leaves less is refused.
    pub reject_below: Option<RejectBelow>,
}

/// Time for a whole request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestTimeout {
    /// Always the same.
    Fixed(Nanos),
    /// Found from what the route's requests take.
    Dynamic(DynamicTimeout),
}

impl RequestTimeout {
    /// The most that it can be.
    #[must_use]
    pub const fn longest(self) -> Nanos {
        match self {
            Self::Fixed(time) => time,
            Self::Dynamic(dynamic) => dynamic.max,
        }
    }
}

/// `quantile` of what the route's requests take, times `factor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicTimeout {
    /// The share of requests that are faster, 1 % to 99.99 %.
    pub quantile: Percent,
    /// What it is multiplied by, in hundredths (200 = doubled).
    pub factor_centi: u32,
    /// The least.
    pub min: Nanos,
    /// The most, and what holds while too little is known.
    pub max: Nanos,
}

/// Below what a deadline is hopeless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectBelow {
    /// A time.
    Time(Nanos),
    /// What this share of the route's requests take.
    Quantile(Percent),
}

/// Which requests are tried again, how often, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// Envoy's words for `x-envoy-retry-on`, joined by commas.
    pub on: String,
    /// Its words for `x-envoy-retry-grpc-on`, joined by commas.
    pub grpc_on: String,
    /// Methods, upper case.
    pub methods: Vec<String>,
    /// Retries as a share of recent requests.
    pub budget: Percent,
    /// Retries per second that the budget has in any case.
    pub min_per_second: u32,
}

/// Which requests a route is for: all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Condition on the path without its query.
    pub path: PathMatch,
    /// Methods, upper case; empty = any.
    pub methods: Vec<String>,
    /// Hosts, lower case, without port; empty = any.
    pub hosts: Vec<HostMatch>,
    /// Headers: lower-case name and the exact value, or `None` = present.
    pub headers: Vec<(String, Option<String>)>,
}

/// Condition on a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PathMatch {
    /// Any path.
    #[default]
    Any,
    /// This very path.
    Exact(String),
    /// This path and all below it: whole segments, without a trailing slash; empty = every path.
    Prefix(String),
    /// Segment by segment; `None` stands for one segment of any non-empty value.
    Pattern(Vec<Option<String>>),
}

/// Condition on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// This very host.
    Exact(String),
    /// Any host that ends in this (`*.example.com` is kept as `.example.com`).
    Suffix(String),
}

/// Paths of the health endpoints; `None` = switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Liveness.
    pub livez: Option<String>,
    /// Readiness.
    pub readyz: Option<String>,
    /// Start-up.
    pub startupz: Option<String>,
    /// The simple health page.
    pub health: Option<String>,
    /// Whether `grpc.health.v1.Health` is answered.
    pub grpc: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            livez: Some("/livez".into()),
            readyz: Some("/readyz".into()),
            startupz: Some("/startupz".into()),
            health: Some("/health".into()),
            grpc: true,
        }
    }
}
