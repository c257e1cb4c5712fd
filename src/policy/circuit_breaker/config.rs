//! A circuit breaker as it is configured.

use crate::base::percent::Percent;
use crate::base::time::Nanos;
use crate::policy::mode::Mode;
use crate::schema::json::parse;
use crate::schema::units::{DAY, HOUR, MS, SEC, show_span};
use crate::schema::{
    Centi, Decode, Either, Errors, Int, Int8, Json, Path, Pct, Schema, Set, SomePct, Span,
    Statuses, choice, section,
};

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
    /// Opens after this many failures in a row; 0 = off.
    pub consecutive_failures: u32,
    /// No rate is judged with fewer calls in the window; a count window that is smaller is judged
    /// when it is full.
    pub minimum_calls: u32,
    /// The calls that count.
    pub window: WindowConfig,
    /// How long it stays open the first time.
    pub open_duration: Nanos,
    /// Factor by which the open time grows with each failed half-open round, in hundredths (200 =
    /// doubles).
    pub backoff_multiplier_centi: u32,
    /// The most that the open time grows to.
    pub max_open_duration: Nanos,
    /// Random share by which an open time is lengthened or shortened.
    pub jitter: Percent,
    /// Calls let through while half-open; `None`: 5 on routes, 1 at endpoints.
    pub half_open_calls: Option<u32>,
    /// How long it may stay half-open before it opens again.
    pub half_open_max_wait: Nanos,
    /// The outcomes that count as failures.
    pub failure_on: FailureOn,
    /// An upstream's `Retry-After` sets the open time.
    pub honour_retry_after: bool,
    /// True: opens above the threshold only (Sentinel); false: at it.
    pub open_above: bool,
}

/// The calls that a breaker counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowConfig {
    /// Those of this time, 1 s to 1 h.
    Time(Nanos),
    /// The last calls, 1 to 1,024 of them.
    Count(u32),
}

choice! {
    /// Who shares a route's breaker.
    enum BreakerScope {
        /// A state per route.
        Route = "route",
        /// One state for all routes of an upstream that name this breaker.
        Upstream = "upstream",
    }
}

/// A circuit breaker with its preset filled in.
#[derive(Debug)]
pub struct WithPreset;

impl Decode for WithPreset {
    const SCHEMA: &'static Schema = BreakerSection::SCHEMA;

    type Value = BreakerSection;

    fn decode(json: &Json) -> BreakerSection {
        let (Json::Object(entries), Some(Json::String(preset))) = (json, json.get("preset")) else {
            return BreakerSection::decode(json);
        };
        let mut filled = entries.clone();
        let known = PRESETS.iter().find(|(name, _)| name == preset);
        if let Some(Ok(Json::Object(defaults))) = known.map(|(_, text)| parse(text.as_bytes())) {
            filled.extend(
                defaults
                    .into_iter()
                    .filter(|(key, _)| json.get(key).is_none()),
            );
        }
        BreakerSection::decode(&Json::Object(filled))
    }
}

/// What the presets set; explicit fields override it.
pub const PRESETS: &[(&str, &str)] = &[
    (
        "hystrix",
        r#"{
            "failure_rate_threshold": 50, "minimum_calls": 10,
            "window": {"type": "time", "size": "10s"},
            "open_duration": "5s", "half_open_calls": 1
        }"#,
    ),
    (
        "goresilience",
        r#"{"failure_rate_threshold": 50, "minimum_calls": 10, "open_duration": "30s"}"#,
    ),
    (
        "resilience4j",
        r#"{
            "failure_rate_threshold": 50, "minimum_calls": 100,
            "window": {"type": "count", "size": 100},
            "open_duration": "60s", "half_open_calls": 10
        }"#,
    ),
    (
        "sentinel",
        r#"{
            "failure_rate_threshold": 50, "minimum_calls": 5,
            "window": {"type": "time", "size": "1s"},
            "half_open_calls": 1
        }"#,
    ),
];

choice! {
    /// Another library's numbers.
    enum Preset {
        Hystrix = "hystrix",
        Goresilience = "goresilience",
        Resilience4j = "resilience4j",
        Sentinel = "sentinel",
    }
}

section! {
    /// When calls are stopped, for how long, and how they are tried again.
    BreakerSection {
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
        /// Opens at once after this many failures in a row; 0 = off.
        consecutive_failures: Int<0, 1_000_000> = Default("0");
        /// No percentage is judged with fewer calls in the window. A count window that is smaller
        /// is judged when it is full.
        minimum_calls: Int<1, 1_000_000> = Default("20");
        /// The calls that count. A window of time is the cheaper one: workers add to common
        /// counters, where a window of calls is written for each call.
        window: WindowSection = Default(r#"{"type": "time", "size": "10s"}"#);
        /// How long it stays open.
        open_duration: Span<{ 100 * MS }, DAY> = Default("\"5s\"");
        /// Factor by which the open time grows with each failed half-open round. What it has grown
        /// to is forgotten once the breaker has stayed closed for as long as it was open the last
        /// time, and at least for a time window's length; until then it opens for as long again.
        backoff_multiplier: Centi<100, 10_000> = Default("1");
        /// The most that the open time grows to.
        max_open_duration: Option<Span<{ 100 * MS }, DAY>> =
            Absent("`60s`, or `open_duration` if that is longer");
        /// Random percentage by which an open time is lengthened or shortened: 20 makes 4 to 6 s of
        /// 5 s. It stays within `max_open_duration`.
        jitter: Pct = Default("0");
        /// At most this many calls are in flight or counted while half-open; the same thresholds
        /// over them close or open it.
        half_open_calls: Option<Int<1, 10_000>> = Absent("5; 1 at endpoints");
        /// After this time half-open it opens again, so that it is never stuck.
        half_open_max_wait: Span<{ 100 * MS }, DAY> = Default("\"30s\"");
        /// The outcomes that are failures. Client cancels and replies of the filter are neither
        /// success nor failure.
        failure_on: FailureOn = Default("{}");
        /// An upstream's `Retry-After` or `grpc-retry-pushback-ms` sets the open time, at most
        /// `max_open_duration`. That of one endpoint moves the endpoint's own breaker; a route's
        /// only if more than half of its upstream's endpoints ask for a pause.
        honour_retry_after: bool = Default("true");
    }
}

section! {
    /// The calls that count.
    WindowSection {
        /// The calls of a time, or a number of calls.
        r#type: WindowType = Default("\"time\"");
        /// A duration for `time`, a number of calls for `count`.
        size: Option<WindowSize> = Absent("`10s` or 100");
    }
}

/// A time window's length, or a count window's.
pub type WindowSize = Either<Span<SEC, HOUR>, CallCount>;

/// A count window's size: it lies in one record, a bit or two for each call.
pub type CallCount = Int<1, 1_024>;

choice! {
    /// What a window measures.
    enum WindowType {
        Time = "time",
        Count = "count",
    }
}

section! {
    /// The outcomes that are failures.
    FailureOn {
        /// HTTP statuses.
        status: Set<Statuses, 0, 32> = Default("[\"500-599\"]");
        /// gRPC statuses.
        grpc_status: Set<Int8<0, 16>, 0, 17> = Default("[2, 4, 8, 13, 14, 15]");
        /// Resets and refused connections.
        reset: bool = Default("true");
        /// Timeouts.
        timeout: bool = Default("true");
    }
}

impl WindowSection {
    fn compile(self, at: &Path<'_>, errors: &mut Errors) -> WindowConfig {
        let size_at = at.key("size");
        match (self.r#type, self.size) {
            (WindowType::Time, Some(Either::First(span))) => WindowConfig::Time(span),
            (WindowType::Count, Some(Either::Second(calls))) => WindowConfig::Count(calls),
            (WindowType::Count, None) => WindowConfig::Count(100),
            (WindowType::Time, size) => {
                if let (Some(Either::Second(calls)), false) = (size, errors.touches(at)) {
                    let want = <Span<SEC, HOUR>>::SCHEMA.want();
                    errors.refuse_number(&size_at, u64::from(calls), &want);
                }
                WindowConfig::Time(Nanos(10 * SEC))
            }
            (WindowType::Count, Some(Either::First(span))) => {
                if !errors.touches(at) {
                    errors.refuse_text(&size_at, &show_span(span), &CallCount::SCHEMA.want());
                }
                WindowConfig::Count(100)
            }
        }
    }
}

impl BreakerSection {
    /// The circuit breaker of this name, with the errors that span its fields.
    #[inline(never)]
    pub(crate) fn compile(
        self,
        at: &Path<'_>,
        name: String,
        errors: &mut Errors,
    ) -> CircuitBreaker {
        let window = self.window.compile(&at.key("window"), errors);
        let open = self.open_duration;
        let max_open = self.max_open_duration.unwrap_or(Nanos(60 * SEC).max(open));
        if max_open < open && !errors.touches(at) {
            let want = ["at least the open_duration of ", &show_span(open)].concat();
            errors.refuse_text(&at.key("max_open_duration"), &show_span(max_open), &want);
        }
        CircuitBreaker {
            name,
            mode: self.mode,
            scope: self.scope,
            failure_rate_threshold: self.failure_rate_threshold,
            slow_call_rate_threshold: self.slow_call_rate_threshold,
            slow_call_duration: self.slow_call_duration,
            consecutive_failures: self.consecutive_failures,
            minimum_calls: self.minimum_calls,
            window,
            open_duration: open,
            backoff_multiplier_centi: self.backoff_multiplier.0,
            max_open_duration: max_open,
            jitter: self.jitter,
            half_open_calls: self.half_open_calls,
            half_open_max_wait: self.half_open_max_wait,
            failure_on: self.failure_on,
            honour_retry_after: self.honour_retry_after,
            open_above: self.preset == Some(Preset::Sentinel),
        }
    }
}

/// The breaker that endpoints have if nothing else is said: only failures in a row count.
pub(crate) fn outlier(name: String) -> CircuitBreaker {
    let open_duration = Nanos(SEC);
    CircuitBreaker {
        name,
        mode: None,
        scope: BreakerScope::Route,
        failure_rate_threshold: Percent(10_000),
        slow_call_rate_threshold: Percent(10_000),
        slow_call_duration: Nanos::MAX,
        consecutive_failures: 3,
        minimum_calls: u32::MAX,
        window: WindowConfig::Time(Nanos(SEC)),
        open_duration,
        backoff_multiplier_centi: 200,
        max_open_duration: open_duration.times(8),
        jitter: Percent(2_000),
        half_open_calls: None,
        half_open_max_wait: Nanos(5 * SEC),
        failure_on: FailureOn {
            status: vec![(502, 504)],
            grpc_status: vec![14],
            reset: true,
            timeout: true,
        },
        honour_retry_after: false,
        open_above: false,
    }
}
