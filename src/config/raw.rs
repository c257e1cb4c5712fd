//! The document as it is written: every section of the contract, each field with its range and its
//! default.
//!
//! What is marked `@soon` is validated and then refused. The doc comments are the reference:
//! `docs/config.md` and `config.schema.json` are generated from them.

#![allow(
    dead_code,
    reason = "of what is to come, only the checker looks at the values"
)]

use super::compile::check_concurrency_limit;
use super::sections::{
    CircuitBreakers, Components, ConcurrencyLimits, Fallbacks, RateLimits, Switches, Upstreams,
};
use super::text::{Host, Pattern, Quantile, Template};
use super::{
    BreakerScope, Criticality, IpSource, LoadReport, MissingKey, Mode, OnContention, QuotaHeaders,
};
use crate::schema::json::parse;
use crate::schema::units::{DAY, HOUR, MIN, MS, SEC};
use crate::schema::{
    Address, Centi, Cidr, Decode, Either, HeaderName, HeaderValue, Int, Json, Label, List, Map,
    Method, Name, Named, Nullable, One, Pct, Reference, Schema, Set, Size, SomePct, Span, Statuses,
    Token, UrlPath, Value, choice, section,
};

/// The most routes, and the most policies of a kind.
pub const MAX_NAMED: u32 = 1000;

section! {
    /// The whole document.
    Document {
        /// The service's name in health documents.
        service: Label = Default("\"haven\"");
        /// What policies do with their verdicts; each policy and route may set its own, and the
        /// inner one wins. `enforce` acts, `shadow` decides, counts and logs what it would have
        /// done, `off` does not look.
        mode: Mode = Default("\"enforce\"");
        /// Where a client's address is taken from.
        client_ip: ClientIp = Default("{}");
        /// Sets of interchangeable endpoints.
        upstreams: Named<Upstreams, Upstream, MAX_NAMED> = Default("{}");
        /// Quotas.
        rate_limits: Named<RateLimits, RateLimit, MAX_NAMED> = Default("{}");
        /// When calls are stopped and tried again. Named on an upstream, a breaker has a state per
        /// endpoint; on a route, a state per route or per upstream (see `scope`).
        circuit_breakers: Named<CircuitBreakers, CircuitBreaker, MAX_NAMED> = Default("{}");
        /// Bounds of the requests in flight over all workers.
        concurrency_limits: Named<ConcurrencyLimits, ConcurrencyLimit, MAX_NAMED> = Default("{}");
        /// What is answered instead of a refusal or a failure.
        fallbacks: Named<Fallbacks, Fallback, MAX_NAMED> = Default("{}");
        /// Kill switches that routes name: `on`, or `off`, which answers those routes at once with
        /// `switched_off`.
        switches: Named<Switches, Switch, MAX_NAMED> = Default("{}");
        /// What is done with which requests; the first route that matches is taken. A request that
        /// matches none only gets header hygiene.
        routes: List<Route, 0, MAX_NAMED> = Default("[]");
        /// Paths of the health endpoints.
        health: Health = Default("{}");
        /// The dashboard and its API.
        @soon admin: Option<Admin> = Absent("none");
        /// Keep the `x-envoy-*` retry and timeout headers that clients send.
        trust_client_retry_headers: bool = Default("false");
    }
}

section! {
    /// Where a client's address is taken from.
    ClientIp {
        /// The connection's peer, or a header that a trusted proxy sets. `connection` is the peer
        /// as Envoy sees it: with its `use_remote_address: false`, or trusted hops, Envoy takes it
        /// from `X-Forwarded-For`, where clients can write.
        source: IpSource = Default("\"connection\"");
        /// Which entry of `X-Forwarded-For`, counted from the right, is the client's; a missing,
        /// short or malformed header means the connection's address.
        trusted_hops: Int<1, 32> = Default("1");
        /// Leading bits of an IPv4 address that tell clients apart.
        ipv4_prefix: Int<1, 32> = Default("32");
        /// Leading bits of an IPv6 address that tell clients apart.
        ipv6_prefix: Int<1, 128> = Default("64");
    }
}

section! {
    /// A set of interchangeable endpoints.
    Upstream {
        /// Mode of what the upstream decides: its endpoints and their breaker.
        mode: Option<Mode> = Absent("the top level's");
        /// Envoy's cluster.
        cluster: Option<Label> = Absent("the upstream's name");
        /// Its endpoints, each address once.
        endpoints: List<Endpoint, 0, 1000> = Default("[]");
        /// How an endpoint is picked.
        load_balancer: LoadBalancer = Default("{}");
        /// How the pick reaches the proxy.
        r#override: Override = Default("{}");
        /// A circuit breaker, with a state per endpoint.
        circuit_breaker: Option<Reference<CircuitBreakers>> = Absent("none");
        /// A concurrency limit for all routes of the upstream together.
        concurrency_limit: Option<Reference<ConcurrencyLimits>> = Absent("none");
        /// Active checks of the endpoints.
        health_check: Option<HealthCheck> = Absent("none");
        /// The upstream is UP while at least this percentage of its endpoints is well.
        min_healthy: Option<Pct> = Absent("one endpoint");
        /// The most endpoints that their breakers take out of rotation, in percent; of what is not
        /// 0, one may always go. The first that opened are out, those beyond stay in use. A level
        /// of priorities may be left wholly for the next one.
        max_ejection_percent: Option<Pct> = Absent("100 less `panic_threshold`: 50");
        /// Whether endpoints report their load. `orca`: in the response header
        /// `endpoint-load-metrics`, `TEXT` or `JSON` (not `BIN`); `application_utilization`, else
        /// `cpu_utilization`, u: an endpoint's weight is multiplied with 1 - u, at least 0.05; one
        /// that does not report has the mean of the others. A report counts in full for 5 s and is
        /// forgotten after 30 s. Clients do not see the header. Not for `consistent_hash` and
        /// `first`.
        load_report: LoadReport = Default("\"none\"");
    }
}

section! {
    /// One instance of an upstream.
    Endpoint {
        /// IP address and port.
        address: Address = Required;
        /// Its share relative to the others; 0 = drained.
        weight: Int<0, 1000> = Default("1");
        /// Its level. Endpoints of a higher number are used when those of the lower ones are out:
        /// while at least `panic_threshold` percent of a level are available it gets all requests,
        /// below it keeps as much as its share is of the threshold, and the next level gets the
        /// rest.
        priority: Int<0, 127> = Default("0");
        /// Its zone.
        zone: Option<Label> = Absent("none");
    }
}

section! {
    /// How an endpoint is picked.
    LoadBalancer {
        /// The algorithm. `round_robin`: in turn, nginx's smooth weighted order. `least_request`:
        /// the fewest requests in flight over all workers, for its weight. `peak_ewma`: the least
        /// latency times requests in flight, over all workers, for its weight. `consistent_hash`:
        /// the endpoint that owns the request's `hash_key`. `random`: a draw by weight. `first`:
        /// the first of the list that may be used. Where more than 8 are in rotation,
        /// `least_request` and `peak_ewma` compare 8 drawn at random.
        policy: BalancePolicy = Default("\"least_request\"");
        /// Time over which an endpoint that is new, or whose breaker has closed again, gets its
        /// full share: its weight grows in a straight line from a tenth. Endpoints that were there
        /// when the proxy started are not new. With `consistent_hash` its keys come by and by. Not
        /// for `first`.
        slow_start: Option<Span<MS, HOUR>> = Absent("off");
        /// Below this percentage of available endpoints, in all levels of `priority` together, all
        /// are used again; 0 = never.
        panic_threshold: Pct = Default("50");
        /// What `consistent_hash` hashes: parts as in a rate limit's `key`. A request that lacks
        /// one goes to any endpoint.
        hash_key: Option<HashKey> = Absent("`[\"client_ip\"]`");
        /// With `consistent_hash`: the most requests in flight of an endpoint, as a multiple of its
        /// share of them all; a key whose endpoint has as many goes to the next one. Two are always
        /// allowed.
        bounded_load: Option<Centi<100, 1_000>> = Absent("1.25");
        /// The proxy's own zone: its endpoints are preferred. When they have less than 1/zones of
        /// the available weight, the part of the requests that they lack goes to the other zones.
        /// Every zone is taken to have as many clients.
        zone: Option<Label> = Absent("none");
    }
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum BalancePolicy {
    #[default]
    LeastRequest,
    RoundRobin,
    PeakEwma,
    ConsistentHash,
    Random,
    First,
}

choice! { BalancePolicy {
    "least_request" => Self::LeastRequest,
    "round_robin" => Self::RoundRobin,
    "peak_ewma" => Self::PeakEwma,
    "consistent_hash" => Self::ConsistentHash,
    "random" => Self::Random,
    "first" => Self::First,
} }

choice! { LoadReport { "none" => Self::None, "orca" => Self::Orca, } }

section! {
    /// How the pick reaches the proxy.
    Override {
        /// Request header with the picked endpoints, in Envoy's `override_host` policy; always
        /// stripped from clients. Starts with `x-`.
        header: HeaderName = Default("\"x-haven-upstream\"");
        /// Whether `x-envoy-attempt-count` in answers is this proxy's own:
        /// `include_attempt_count_in_response: true` on the virtual host. Then the first try's
        /// answers are known by it, which spares a host call of about 12,000 instructions for each.
        /// Without that option the header is whatever the endpoint sends, and must not be believed.
        attempt_count: bool = Default("false");
    }
}

section! {
    /// Active checks of endpoints: one worker of the proxy asks each endpoint by itself, and all
    /// workers heed what it finds. Until the first answer an endpoint is used like a healthy one.
    HealthCheck {
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
        components: Named<Components, Component, 256> = Default("{}");
    }
}

/// What a health check asks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum CheckProtocol {
    #[default]
    Http,
    Grpc,
    Tcp,
}

choice! { CheckProtocol { "http" => Self::Http, "grpc" => Self::Grpc, "tcp" => Self::Tcp, } }

section! {
    /// A component of a health report.
    Component {
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

section! {
    /// A quota per key.
    RateLimit {
        /// Its mode.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// The algorithm. In any interval of length t, `token_bucket` admits at most burst +
        /// limit/period × t, `sliding_window` (two counters, weighted) at most limit + limit/period
        /// × t, `fixed_window` at most 2 × limit + limit/period × t: twice the limit over the
        /// boundary of two windows. `leaky_bucket` spaces requests evenly: each but the first goes
        /// period/limit after the one before, and waits until then. Windows begin at multiples of
        /// the period since the machine's start. A reload that changes the algorithm starts afresh,
        /// one that changes other fields keeps what was counted.
        algorithm: LimitAlgorithm = Default("\"token_bucket\"");
        /// Tokens per period.
        limit: Int<1, 1_000_000_000> = Required;
        /// The period.
        period: Span<MS, { 366 * DAY }> = Default("\"1s\"");
        /// `token_bucket`: capacity of the bucket. It may take at most 366 days to fill: burst ×
        /// period / limit. `leaky_bucket`: the most requests that may wait. Not for windows.
        burst: Option<Int<1, 1_000_000_000>> = Absent("`limit`");
        /// What tells clients apart; the parts together are the key, none = one bucket for all.
        key: Key = Default("[]");
        /// A request that lacks a part of the key is not limited (`skip`), or all such requests
        /// share one bucket (`share`).
        missing_key: MissingKey = Default("\"skip\"");
        /// Tokens that a request takes; 0 only looks.
        cost: Either<Int<0, 1_000_000_000>, CostHeader> = Default("1");
        /// Quotas of exact keys.
        overrides: List<QuotaOverride, 0, 10_000> = Default("[]");
        /// Client networks that are never limited.
        exempt: Set<Cidr, 0, 1000> = Default("[]");
        /// Keys tracked at once; memory is bounded by it and allocated as it is used.
        max_keys: Int<1, 10_000_000> = Default("65536");
        /// Headers that tell the client of its quota: `RateLimit-Policy` and `RateLimit`, the
        /// `X-RateLimit-` ones, both, or none.
        headers: QuotaHeaders = Default("\"ietf\"");
        /// What happens to a request whose bucket stays contended between workers.
        on_contention: OnContention = Default("\"allow\"");
        /// With `token_bucket`: time over which the rate grows from a third of `limit` to all of it
        /// after a pause. A key is cold at first, warms up while its bucket is not full, and cools
        /// down while it is, as fast. A cold request is charged three tokens, a warm one its own.
        warm_up: Option<Span<MS, HOUR>> = Absent("off");
        /// With `leaky_bucket`: the longest that a request waits; one that would wait longer is
        /// refused. Waiting is as exact as the proxy's timers, about 1 ms. At most 1024 requests
        /// wait in each worker.
        max_wait: Option<Span<0, HOUR>> = Absent("1s");
        /// One quota over many proxies through Envoy's RateLimitService.
        @soon global: Option<Global> = Absent("none");
    }
}

/// A rate limit's algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LimitAlgorithm {
    #[default]
    TokenBucket,
    LeakyBucket,
    SlidingWindow,
    FixedWindow,
}

choice! { LimitAlgorithm {
    "token_bucket" => Self::TokenBucket,
    "leaky_bucket" => Self::LeakyBucket,
    "sliding_window" => Self::SlidingWindow,
    "fixed_window" => Self::FixedWindow,
} }

choice! { MissingKey { "skip" => Self::Skip, "share" => Self::Share, } }
choice! { QuotaHeaders { "ietf" => Self::Ietf, "x" => Self::X, "both" => Self::Both, "none" => Self::None, } }
choice! { OnContention { "allow" => Self::Allow, "deny" => Self::Deny, } }
choice! { Mode { "enforce" => Self::Enforce, "shadow" => Self::Shadow, "off" => Self::Off, } }
choice! { IpSource {
    "connection" => Self::Connection,
    "x-forwarded-for" => Self::XForwardedFor,
    "x-real-ip" => Self::XRealIp,
} }

/// The parts of a key that has some, each at most once.
pub type HashKey = Set<KeyPart, 1, 16>;

/// The parts of a key, each at most once.
pub type Key = Set<KeyPart, 0, 16>;

/// A part of a key.
pub type KeyPart = Either<KeyWord, One<KeyField>>;

/// A part of a key that needs no name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum KeyWord {
    #[default]
    ClientIp,
    Method,
    Path,
    Host,
    Route,
}

choice! { KeyWord {
    "client_ip" => Self::ClientIp,
    "method" => Self::Method,
    "path" => Self::Path,
    "host" => Self::Host,
    "route" => Self::Route,
} }

section! {
    /// A part of a key that has a name.
    KeyField {
        /// A request header.
        header: Option<HeaderName> = Absent("");
        /// A cookie.
        cookie: Option<Token> = Absent("");
        /// A parameter of the query.
        query: Option<Label> = Absent("");
        /// A segment of the path, counted from 0.
        path_segment: Option<Int<0, 255>> = Absent("");
    }
}

section! {
    /// A cost that a request header tells.
    CostHeader {
        /// The header.
        header: HeaderName = Required;
        /// Cost of a request whose header is missing, malformed or negative.
        default: Int<0, 1_000_000_000> = Default("1");
        /// What a higher cost is cut to.
        max: Int<1, 1_000_000_000> = Default("100");
    }
}

section! {
    /// The quota of an exact key.
    QuotaOverride {
        /// The key: a value for each of its parts.
        key: List<Value, 1, 16> = Required;
        /// Tokens per period.
        limit: Int<1, 1_000_000_000> = Required;
        /// The period.
        period: Option<Span<MS, { 366 * DAY }>> = Absent("the rate limit's");
        /// Capacity of the bucket.
        burst: Option<Int<1, 1_000_000_000>> = Absent("`limit`");
    }
}

section! {
    /// One quota over many proxies.
    Global {
        /// Envoy's cluster of the rate limit service.
        cluster: Label = Required;
        /// The service's domain.
        domain: Label = Default("\"haven\"");
        /// Tokens fetched at once.
        batch: Either<Auto, Int<1, 1_000_000>> = Default("\"auto\"");
        /// What holds while the service does not answer.
        on_error: OnError = Default("\"local\"");
    }
}

/// `"auto"`
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Auto {
    #[default]
    Auto,
}

choice! { Auto { "auto" => Self::Auto, } }

/// What a global rate limit does while its service does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum OnError {
    #[default]
    Local,
    Allow,
    Deny,
}

choice! { OnError { "local" => Self::Local, "allow" => Self::Allow, "deny" => Self::Deny, } }

/// A circuit breaker with its preset filled in.
#[derive(Clone, Debug, Default)]
pub struct CircuitBreaker;

impl Decode for CircuitBreaker {
    const SCHEMA: &'static Schema = BreakerFields::SCHEMA;

    type Value = BreakerFields;

    fn decode(json: &Json) -> BreakerFields {
        let (Json::Object(entries), Some(Json::String(preset))) = (json, json.get("preset")) else {
            return BreakerFields::decode(json);
        };
        let mut filled = entries.clone();
        let known = PRESETS.iter().find(|(name, _)| name == preset);
        if let Some(Ok(Json::Object(usual))) = known.map(|(_, text)| parse(text.as_bytes())) {
            filled.extend(usual.into_iter().filter(|(key, _)| json.get(key).is_none()));
        }
        BreakerFields::decode(&Json::Object(filled))
    }
}

/// What the presets set; explicit fields override it.
pub const PRESETS: &[(&str, &str)] = &[
    (
        "hystrix",
        r#"{"failure_rate_threshold": 50, "minimum_calls": 10, "window": {"type": "time", "size": "10s"}, "open_duration": "5s",
            "half_open_calls": 1}"#,
    ),
    (
        "goresilience",
        r#"{"failure_rate_threshold": 50, "minimum_calls": 10, "open_duration": "30s"}"#,
    ),
    (
        "resilience4j",
        r#"{"failure_rate_threshold": 50, "minimum_calls": 100, "window": {"type": "count", "size": 100}, "open_duration": "60s",
            "half_open_calls": 10}"#,
    ),
    (
        "sentinel",
        r#"{"failure_rate_threshold": 50, "minimum_calls": 5, "window": {"type": "time", "size": "1s"}, "half_open_calls": 1}"#,
    ),
];

/// Another library's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Preset {
    #[default]
    Hystrix,
    Goresilience,
    Resilience4j,
    Sentinel,
}

choice! { Preset {
    "hystrix" => Self::Hystrix,
    "goresilience" => Self::Goresilience,
    "resilience4j" => Self::Resilience4j,
    "sentinel" => Self::Sentinel,
} }

section! {
    /// When calls are stopped, for how long, and how they are tried again.
    BreakerFields {
        /// Its mode.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// On a route: a state per route, or one for all routes of the upstream that name it.
        scope: BreakerScope = Default("\"route\"");
        /// The numbers of another library; explicit fields override them. `hystrix`: 10 requests,
        /// 50 %, 10 s window, 5 s open, 1 probe. `goresilience`: 10 requests, 50 %, 30 s open.
        /// `resilience4j`: the last 100 calls, 50 %, 60 s open, 10 half-open calls. `sentinel`: 5
        /// calls, 1 s window, 1 probe, opens above the threshold instead of at it.
        preset: Option<Preset> = Absent("none");
        /// Opens at this percentage of failures.
        failure_rate_threshold: SomePct = Default("50");
        /// Opens at this percentage of slow calls.
        slow_call_rate_threshold: SomePct = Default("100");
        /// A call that takes at least this long is slow.
        slow_call_duration: Span<MS, HOUR> = Default("\"60s\"");
        /// Opens at once after so many failures in a row; 0 = off.
        consecutive_failures: Int<0, 1_000_000> = Default("0");
        /// No percentage is judged below so many calls in the window. A count window that is
        /// smaller is judged when it is full.
        minimum_calls: Int<1, 1_000_000> = Default("20");
        /// The calls that count. A window of time is the cheaper one: workers add to common
        /// counters, where a window of calls is written for each call.
        window: Window = Default(r#"{"type": "time", "size": "10s"}"#);
        /// How long it stays open.
        open_duration: Span<{ 100 * MS }, DAY> = Default("\"5s\"");
        /// Factor by which the open time grows with each failed half-open round. What it has grown
        /// to is forgotten once the breaker has stayed closed for as long as it was open the last
        /// time, and at least for a time window's length; until then it opens for as long again.
        backoff_multiplier: Centi<100, 10_000> = Default("1");
        /// The most that the open time grows to.
        max_open_duration: Option<Span<{ 100 * MS }, DAY>> = Absent("`60s`, or `open_duration` if that is longer");
        /// Random percentage by which an open time is lengthened or shortened: 20 makes 4 to 6 s of
        /// 5 s. It stays within `max_open_duration`.
        jitter: Pct = Default("0");
        /// At most this many calls are in flight or counted while half-open; the same thresholds
        /// over them close or open it.
        half_open_calls: Int<1, 10_000> = Default("5");
        /// After this time half-open it opens again, so that it is never stuck.
        half_open_max_wait: Span<{ 100 * MS }, DAY> = Default("\"30s\"");
        /// The outcomes that are failures. Client cancels and replies of the filter are neither
        /// success nor failure.
        failure_on: FailureOn = Default("{}");
        /// An upstream's `Retry-After` or `grpc-retry-pushback-ms` sets the open time, at most
        /// `max_open_duration`.
        honour_retry_after: bool = Default("true");
    }
}

choice! { BreakerScope { "route" => Self::Route, "upstream" => Self::Upstream, } }

section! {
    /// The calls that count.
    Window {
        /// The calls of a time, or a number of calls.
        r#type: WindowType = Default("\"time\"");
        /// A duration for `time`, a number of calls for `count`.
        size: Option<WindowSize> = Absent("`10s` or 100");
    }
}

/// A time window's length, or a count window's.
pub type WindowSize = Either<Span<SEC, HOUR>, Calls>;

/// A count window's size: it lies in one record, a bit or two for each call.
pub type Calls = Int<1, 1_024>;

/// What a window measures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum WindowType {
    #[default]
    Time,
    Count,
}

choice! { WindowType { "time" => Self::Time, "count" => Self::Count, } }

section! {
    /// The outcomes that are failures.
    FailureOn {
        /// HTTP statuses.
        status: Set<Statuses, 0, 32> = Default("[\"500-599\"]");
        /// gRPC statuses.
        grpc_status: Set<Int<0, 16>, 0, 17> = Default("[2, 4, 8, 13, 14, 15]");
        /// Resets and refused connections.
        reset: bool = Default("true");
        /// Timeouts.
        timeout: bool = Default("true");
    }
}

section! {
    /// A bound of the requests in flight.
    ConcurrencyLimit / check_concurrency_limit {
        /// Its mode.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// `fixed`: a bound that is given. `adaptive`: a bound that is found, so that what is
        /// admitted is answered within the deadline (`timeout.request`, else 15 s; the shortest of
        /// the routes that share it).
        algorithm: ConcurrencyAlgorithm = Default("\"adaptive\"");
        /// The bound of `fixed`, which needs it.
        limit: Option<Int<1, 1_000_000>> = Absent("none");
        /// The least that `adaptive` finds.
        min_limit: Option<Int<1, 1_000_000>> = Absent("3");
        /// The most that `adaptive` finds.
        max_limit: Option<Int<1, 1_000_000>> = Absent("1000");
        /// Where `adaptive` begins.
        initial_limit: Option<Int<1, 1_000_000>> = Absent("20, within the bounds");
    }
}

/// How a concurrency limit finds its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ConcurrencyAlgorithm {
    #[default]
    Adaptive,
    Fixed,
}

choice! { ConcurrencyAlgorithm { "adaptive" => Self::Adaptive, "fixed" => Self::Fixed, } }

/// A kill switch: whether the routes that name it are served.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Switch {
    #[default]
    On,
    Off,
}

choice! { Switch { "on" => Self::On, "off" => Self::Off, } }

section! {
    /// What is answered instead of a refusal or a failure.
    Fallback {
        /// Its mode.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// The reasons it answers for; `upstream_error` is a 5xx, a reset, a refused or a cut
        /// connection.
        on: Set<Cause, 1, 8> = Default(
            r#"["overload", "circuit_open", "no_endpoint", "deadline", "switched_off", "upstream_error", "timeout"]"#
        );
        /// Tried in this order.
        steps: List<One<Step>, 1, 8> = Required;
    }
}

/// A reason for a fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Cause {
    #[default]
    RateLimited,
    Overload,
    CircuitOpen,
    NoEndpoint,
    Deadline,
    SwitchedOff,
    UpstreamError,
    Timeout,
}

choice! { Cause {
    "rate_limited" => Self::RateLimited,
    "overload" => Self::Overload,
    "circuit_open" => Self::CircuitOpen,
    "no_endpoint" => Self::NoEndpoint,
    "deadline" => Self::Deadline,
    "switched_off" => Self::SwitchedOff,
    "upstream_error" => Self::UpstreamError,
    "timeout" => Self::Timeout,
} }

section! {
    /// One step of a fallback.
    Step {
        /// The last good response of this route to the same GET, for GET and HEAD. At most one such
        /// step.
        stale: Option<Stale> = Absent("");
        /// A fixed answer; it always answers, so it stands last.
        respond: Option<Respond> = Absent("");
        /// Another of Envoy's clusters, for a request that has not been sent yet; if it fails as
        /// well, the steps that follow answer. At most one such step. The routes that use it need
        /// an `upstream`, and in Envoy `cluster_header: x-haven-cluster`, which then carries the
        /// upstream's `cluster` or this one.
        cluster: Option<Label> = Absent("");
    }
}

section! {
    /// The last good response: status 200 to a GET, kept for each route, scheme, host, path and
    /// query. Never one with `Set-Cookie`, `Vary: *` or a `Cache-Control` of `no-store`, `private`
    /// or `no-cache`, and never one to a request with `Authorization` or `Cache-Control: no-store`,
    /// which is not answered from here either; to a request with a `Cookie` only if it is `public`
    /// or varies by it. `must-revalidate`, `s-maxage` and `stale-if-error` bound its age. A
    /// response that is asked for often is kept anew at most about once a second by each worker.
    Stale {
        /// How old it may be, as its `Age` says.
        max_age: Span<SEC, { 7 * DAY }> = Default("\"5m\"");
        /// Larger bodies are not kept; they pass as they come.
        max_body: Size<1, 1_048_576> = Default("\"64KiB\"");
        /// Request headers that tell responses apart, besides those of the response's own `Vary`.
        vary: Set<HeaderName, 0, 16> = Default("[]");
        /// The most responses kept; the least recently used goes first.
        max_entries: Int<1, 65_536> = Default("1024");
        /// The most bytes kept, headers and keys included, over all workers: at least `max_body`
        /// and 16 KiB.
        max_bytes: Size<1, { 1 << 30 }> = Default("\"16MiB\"");
    }
}

section! {
    /// A fixed answer.
    Respond {
        /// HTTP status.
        status: Int<200, 599> = Default("200");
        /// Headers besides `content-type`.
        headers: Map<HeaderName, HeaderValue, 64> = Default("{}");
        /// Type of the body.
        content_type: HeaderValue = Default("\"text/plain; charset=utf-8\"");
        /// The body, with `{{request_id}}`, `{{retry_after}}`, `{{reason}}` and `{{route}}`; what
        /// does not apply is empty.
        body: Template = Default("\"\"");
    }
}

section! {
    /// What is done with the requests that match.
    Route {
        /// Its name, which no other route has.
        name: Name = Required;
        /// Mode of its policies that do not set their own.
        mode: Option<Mode> = Absent("the top level's");
        /// The requests it is for: all conditions must hold, none = all requests.
        r#match: Match = Default("{}");
        /// Where they go.
        upstream: Option<Reference<Upstreams>> = Absent("not chosen here");
        /// Rate limits, all or nothing: a refusal by one refunds the others.
        rate_limits: Set<Reference<RateLimits>, 0, 16> = Default("[]");
        /// A circuit breaker.
        circuit_breaker: Option<Reference<CircuitBreakers>> = Absent("none");
        /// A concurrency limit.
        concurrency_limit: Option<Reference<ConcurrencyLimits>> = Absent("none");
        /// What is answered instead of a refusal or a failure.
        fallback: Option<Reference<Fallbacks>> = Absent("none");
        /// Deadlines.
        timeout: Timeout = Default("{}");
        /// Retries by Envoy.
        retry: Option<Retry> = Absent("none");
        /// What is shed first under load, by the route's and its upstream's concurrency limit:
        /// `sheddable` is refused while 70 % of the limit are in flight, `sheddable_plus` from 80 %
        /// on, `critical` from 95 % on, `critical_plus` at the limit.
        criticality: Criticality = Default("\"critical\"");
        /// A kill switch; while it is off, the route's requests are answered at once.
        switch: Option<Reference<Switches>> = Absent("none");
        /// A share of the requests for another upstream.
        canary: Option<Canary> = Absent("none");
        /// Components of its upstream's health reports (`health_check.components`) without which
        /// the route is useless: while one of them is DOWN on all endpoints that report it, its
        /// requests are refused with `no_endpoint`, policy = the component.
        depends_on: Set<Reference<Components>, 0, 32> = Default("[]");
    }
}

choice! { Criticality {
    "critical_plus" => Self::CriticalPlus,
    "critical" => Self::Critical,
    "sheddable_plus" => Self::SheddablePlus,
    "sheddable" => Self::Sheddable,
} }

section! {
    /// The requests a route is for; at most one of `path`, `prefix` and `pattern`.
    Match {
        /// This very path, without its query.
        path: Option<UrlPath> = Absent("any");
        /// This path and all below it: `/api` matches `/api` and `/api/users`, not `/apis`.
        prefix: Option<UrlPath> = Absent("any");
        /// A path where `{name}` stands for any one segment: `/users/{id}/orders`.
        pattern: Option<Pattern> = Absent("any");
        /// Methods.
        methods: Set<Method, 0, 32> = Default("[]");
        /// Hosts without port; `*.example.com` is every host below it.
        hosts: Set<Host, 0, 256> = Default("[]");
        /// Headers with their exact values; `*` = present.
        headers: Map<HeaderName, HeaderValue, 32> = Default("{}");
    }
}

section! {
    /// Deadlines.
    Timeout {
        /// Time for the whole request, waiting here included. A deadline that comes with a request
        /// shortens it, and never lengthens it.
        request: Option<Either<Span<MS, HOUR>, One<Dynamic>>> = Absent("Envoy's");
        /// Time for each try; one that is no shorter than what is left of the whole does nothing.
        per_try: Option<Span<MS, HOUR>> = Absent("none");
        /// A request header with the milliseconds left, read and passed on to the upstream.
        /// `grpc-timeout` and `x-envoy-expected-rq-timeout-ms` are always read; `0` in any of them
        /// means that nothing is left, what is malformed is ignored.
        deadline_header: Option<HeaderName> = Absent("none");
        /// Refuse a request at once whose own deadline leaves less; `p50` is what half of the
        /// route's recent requests took.
        reject_below: Option<Either<Span<MS, HOUR>, Quantile>> = Absent("off");
    }
}

section! {
    /// A timeout that is found.
    Dynamic {
        /// From what the upstream takes.
        dynamic: Option<DynamicTimeout> = Absent("");
    }
}

section! {
    /// A timeout from what the route's requests have taken in the last 10 to 60 seconds: `quantile`
    /// times `factor`. Each worker observes its own; until it has seen 20 requests the timeout is
    /// `max`.
    DynamicTimeout {
        /// The percentage of requests that are faster.
        quantile: Centi<100, 9_999> = Default("99");
        /// What it is multiplied by.
        factor: Centi<10, 10_000> = Default("2");
        /// The least.
        min: Span<MS, HOUR> = Default("\"50ms\"");
        /// The most.
        max: Span<MS, HOUR> = Default("\"2s\"");
    }
}

section! {
    /// Retries by Envoy.
    Retry {
        /// Retries after the first try.
        attempts: Int<0, 10> = Default("1");
        /// What is tried again, in Envoy's words. gRPC calls are tried again if gRPC's words
        /// (`cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`) are
        /// among them, or if `methods` has POST.
        on: Set<RetryOn, 1, 16> = Default(r#"["connect-failure", "reset", "gateway-error"]"#);
        /// The methods that are tried again; for gRPC see `on`.
        methods: Set<Method, 1, 32> = Default(r#"["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]"#);
        /// Retries as a percentage of the route's recent requests, over all workers.
        budget: Pct = Default("20");
        /// Retries per second that are allowed in any case.
        min_per_second: Int<0, 10_000> = Default("3");
    }
}

/// Envoy's words for what is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RetryOn {
    /// One of `x-envoy-retry-on`.
    Any(&'static str),
    /// One of `x-envoy-retry-grpc-on`.
    Grpc(&'static str),
}

impl Default for RetryOn {
    fn default() -> Self {
        Self::Any("")
    }
}

choice! { RetryOn {
    "5xx" => Self::Any("5xx"),
    "gateway-error" => Self::Any("gateway-error"),
    "reset" => Self::Any("reset"),
    "reset-before-request" => Self::Any("reset-before-request"),
    "connect-failure" => Self::Any("connect-failure"),
    "envoy-ratelimited" => Self::Any("envoy-ratelimited"),
    "retriable-4xx" => Self::Any("retriable-4xx"),
    "refused-stream" => Self::Any("refused-stream"),
    "retriable-status-codes" => Self::Any("retriable-status-codes"),
    "retriable-headers" => Self::Any("retriable-headers"),
    "http3-post-connect-failure" => Self::Any("http3-post-connect-failure"),
    "cancelled" => Self::Grpc("cancelled"),
    "deadline-exceeded" => Self::Grpc("deadline-exceeded"),
    "internal" => Self::Grpc("internal"),
    "resource-exhausted" => Self::Grpc("resource-exhausted"),
    "unavailable" => Self::Grpc("unavailable"),
} }

section! {
    /// A share of the requests for another upstream. First come the headers that a request has,
    /// then its cookies, then its share.
    Canary {
        /// Its mode. `shadow` counts which requests it would take, and sends all of them to the
        /// route's own upstream.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// The other upstream.
        upstream: Reference<Upstreams> = Required;
        /// Its share of the requests that nothing else decides for.
        percent: Pct = Default("0");
        /// What tells clients apart: parts as in a rate limit's `key`. One client is always on one
        /// side, on every proxy and on all routes to this canary; a higher `percent` only moves
        /// clients to the canary. A request that lacks a part goes to the route's own upstream.
        /// Without parts each request is drawn anew.
        sticky: Key = Default("[]");
        /// Headers with their exact values (`*` = present): a request that has all of them goes to
        /// the canary.
        header: Map<HeaderName, HeaderValue, 8> = Default("{}");
        /// Cookies with their exact values (`*` = present): likewise.
        cookie: Map<Token, HeaderValue, 8> = Default("{}");
        /// Requests that go to the route's own upstream; in case of doubt this is what holds.
        stable: CanaryStable = Default("{}");
        /// Request header that tells the hops behind which side a request is on; starts with `x-`.
        /// A client's own value is removed, on all routes: to trust a colour that a proxy in front
        /// has given, name the header in `header`.
        color_header: Option<HeaderName> = Absent("none");
        /// What it says of the canary's requests.
        color: Option<HeaderValue> = Absent("the canary's upstream");
        /// What it says of the others.
        stable_color: Option<HeaderValue> = Absent("the route's upstream");
        /// The canary's own breaker, with a state of its own. While it is open, requests go to the
        /// route's own upstream.
        circuit_breaker: Option<Reference<CircuitBreakers>> = Absent("the route's");
    }
}

section! {
    /// Requests that a canary does not get.
    CanaryStable {
        /// Headers with their exact values (`*` = present): a request that has all of them.
        header: Map<HeaderName, HeaderValue, 8> = Default("{}");
        /// Cookies with their exact values (`*` = present): likewise.
        cookie: Map<Token, HeaderValue, 8> = Default("{}");
    }
}

section! {
    /// Paths of the health endpoints; `null` switches one off.
    Health {
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
