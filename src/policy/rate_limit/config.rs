//! A rate limit as it is configured.

use crate::base::text::push_all;
use crate::base::time::Nanos;
use crate::policy::mode::Mode;
use crate::request::client_ip::ClientIp;
use crate::request::key::{KeyPart, KeyParts, MissingKey};
use crate::schema::json::show_text;
use crate::schema::names::Distinct;
use crate::schema::units::{DAY, HOUR, MS, SEC, show_span};
use crate::schema::{
    Cidr, Decode, Either, Errors, HeaderName, Int, Json, Label, List, Path, Schema, Set, Span,
    Value, choice, section,
};

/// The longest an empty bucket may take to fill.
const MAX_FILL: Nanos = Nanos(366 * DAY);

/// How long a request waits at a leaky bucket if `max_wait` is not given: a client that waits
/// longer is likely to have gone.
const DEFAULT_WAIT: Nanos = Nanos(SEC);

const NO_BURST: &str = "none: only token_bucket and leaky_bucket have a burst";

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
    /// What the key is made of; empty = one bucket for all.
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
    /// Which headers give the client its quota.
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

/// Tokens that a request takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cost {
    /// The same for every request; 0 only looks.
    Fixed(u64),
    /// Read from a request header (lower case): malformed or negative = `default`, below `min` =
    /// `min`, above `max` = `max`.
    Header {
        /// The header's name.
        name: String,
        /// Cost of a request without a usable value.
        default: u64,
        /// Lower bound of a value.
        min: u64,
        /// Upper bound.
        max: u64,
    },
}

choice! {
    /// What happens to a request whose bucket stays contended between workers.
    enum OnContention {
        /// It passes uncounted.
        Allow = "allow",
        /// It is refused.
        Deny = "deny",
    }
}

choice! {
    /// Which headers give the client its quota.
    enum QuotaHeaders {
        /// `RateLimit-Policy` and `RateLimit`.
        Ietf = "ietf",
        /// `X-RateLimit-Limit`, `-Remaining`, `-Reset`.
        X = "x",
        /// Both families.
        Both = "both",
        /// None.
        None = "none",
    }
}

section! {
    /// A quota per key.
    RateLimitSection {
        /// Its mode.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// The algorithm. In any interval of length t, `token_bucket` admits at most burst +
        /// limit/period × t, `sliding_window` (two counters, weighted) at most limit + limit/period
        /// × t, `fixed_window` at most 2 × limit + limit/period × t: twice the limit over the
        /// boundary of two windows. `leaky_bucket` spaces requests evenly: each but the first goes
        /// period/limit after the one before, and waits until then. Windows begin at multiples of
        /// the period since the machine's start. A reload that changes the algorithm starts afresh,
        /// one that changes other fields keeps what was counted.
        algorithm: RateAlgorithmName = Default("\"token_bucket\"");
        /// Tokens per period.
        limit: Int<1, 1_000_000_000> = Required;
        /// The period.
        period: Span<MS, { 366 * DAY }> = Default("\"1s\"");
        /// `token_bucket`: capacity of the bucket. It may take at most 366 days to fill: burst ×
        /// period / limit. `leaky_bucket`: the most requests that may wait. Not for windows.
        burst: Option<Int<1, 1_000_000_000>> = Absent("`limit`");
        /// What distinguishes clients; the parts together are the key, none = one bucket for all.
        key: KeyParts = Default("[]");
        /// A request that lacks a part of the key is not limited (`skip`), or all such requests
        /// share one bucket (`share`).
        missing_key: MissingKey = Default("\"skip\"");
        /// Tokens that a request takes; 0 only looks.
        cost: Cost = Default("1");
        /// Quotas of exact keys.
        overrides: List<QuotaOverride, 0, 10_000> = Default("[]");
        /// Client networks that are never limited.
        exempt: Set<Cidr, 0, 1000> = Default("[]");
        /// Keys tracked at once; memory is bounded by it and allocated as it is used.
        max_keys: Int<1, 10_000_000> = Default("65536");
        /// Headers that give the client its quota: `RateLimit-Policy` and `RateLimit`, the
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
        /// wait in each worker; beyond that the client with most of them gives a place to one with
        /// fewer.
        max_wait: Option<Span<0, HOUR>> = Absent("1s");
        /// One quota over many proxies through Envoy's RateLimitService.
        @soon global: Option<Global> = Absent("none");
    }
}

choice! {
    /// A rate limit's algorithm.
    enum RateAlgorithmName {
        TokenBucket = "token_bucket",
        LeakyBucket = "leaky_bucket",
        SlidingWindow = "sliding_window",
        FixedWindow = "fixed_window",
    }
}

section! {
    /// A cost that a request header gives.
    CostHeader {
        /// The header.
        header: HeaderName = Required;
        /// Cost of a request whose header is missing, malformed or negative.
        default: Int<0, 1_000_000_000> = Default("1");
        /// What a lower cost in the header counts as: with 0 a client may pass for free.
        min: Int<0, 1_000_000_000> = Default("1");
        /// What a higher cost is cut to.
        max: Int<1, 1_000_000_000> = Default("100");
    }
}

impl Decode for Cost {
    const SCHEMA: &'static Schema = <Either<Int<0, 1_000_000_000>, CostHeader>>::SCHEMA;

    type Value = Self;

    fn decode(json: &Json) -> Self {
        match <Either<Int<0, 1_000_000_000>, CostHeader>>::decode(json) {
            Either::First(cost) => Self::Fixed(u64::from(cost)),
            Either::Second(it) => Self::Header {
                name: it.header,
                default: u64::from(it.default),
                min: u64::from(it.min),
                max: u64::from(it.max),
            },
        }
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self::Fixed(1)
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

choice! {
    /// `"auto"`
    enum Auto {
        Auto = "auto",
    }
}

choice! {
    /// What a global rate limit does while its service does not answer.
    enum OnError {
        Local = "local",
        Allow = "allow",
        Deny = "deny",
    }
}

impl RateLimitSection {
    /// The rate limit of this name, with the errors that span its fields.
    #[inline(never)]
    pub(crate) fn compile(
        self,
        at: &Path<'_>,
        name: String,
        client_ip: &ClientIp,
        errors: &mut Errors,
    ) -> RateLimit {
        let sound = !errors.touches(at);
        let algorithm = self.algorithm(at, errors);
        let windows = matches!(algorithm, Algorithm::SlidingWindow | Algorithm::FixedWindow);
        let quota = quota(self.limit, self.period, self.burst);
        if let (Some(burst), true) = (self.burst, windows) {
            errors.refuse_number(&at.key("burst"), u64::from(burst), NO_BURST);
        }
        if sound {
            check_fill(at, quota, errors);
        }
        if windows {
            check_no_bursts(at, &self.overrides, errors);
        }
        let key = self.key;
        let overrides = overrides(at, &key, self.period, self.overrides, client_ip, errors);
        if sound {
            check_cost(at, &self.cost, quota, windows, errors);
        }
        RateLimit {
            name,
            mode: self.mode,
            algorithm,
            quota,
            key,
            missing_key: self.missing_key,
            cost: self.cost,
            overrides,
            exempt: self.exempt,
            max_keys: self.max_keys,
            headers: self.headers,
            on_contention: self.on_contention,
        }
    }

    fn algorithm(&self, at: &Path<'_>, errors: &mut Errors) -> Algorithm {
        let (warm_up, max_wait) = (self.warm_up, self.max_wait);
        if let (Some(span), true) = (warm_up, self.algorithm != RateAlgorithmName::TokenBucket) {
            let want = "none: only token_bucket warms up";
            errors.refuse_text(&at.key("warm_up"), &show_span(span), want);
        }
        if let (Some(span), true) = (max_wait, self.algorithm != RateAlgorithmName::LeakyBucket) {
            let want = "none: only leaky_bucket has requests wait";
            errors.refuse_text(&at.key("max_wait"), &show_span(span), want);
        }
        match self.algorithm {
            RateAlgorithmName::TokenBucket => Algorithm::TokenBucket { warm_up },
            RateAlgorithmName::LeakyBucket => Algorithm::LeakyBucket {
                max_wait: max_wait.unwrap_or(DEFAULT_WAIT),
            },
            RateAlgorithmName::SlidingWindow => Algorithm::SlidingWindow,
            RateAlgorithmName::FixedWindow => Algorithm::FixedWindow,
        }
    }
}

fn check_no_bursts(at: &Path<'_>, overrides: &[QuotaOverride], errors: &mut Errors) {
    for (i, it) in overrides.iter().enumerate() {
        if let Some(burst) = it.burst {
            let at = at.key("overrides");
            errors.refuse_number(&at.index(i).key("burst"), u64::from(burst), NO_BURST);
        }
    }
}

fn check_cost(at: &Path<'_>, cost: &Cost, quota: Quota, windows: bool, errors: &mut Errors) {
    match *cost {
        Cost::Fixed(cost) if cost > quota.burst => {
            let want = [
                "at most the ",
                if windows { "limit" } else { "burst" },
                " of ",
                &quota.burst.to_string(),
                ", or no request would ever pass",
            ];
            errors.refuse_number(&at.key("cost"), cost, &want.concat());
        }
        Cost::Header { default, max, .. } if default > max => {
            let want = ["at most the max of ", &max.to_string()].concat();
            errors.refuse_number(&at.key("cost").key("default"), default, &want);
        }
        Cost::Header { min, max, .. } if min > max => {
            let want = ["at most the max of ", &max.to_string()].concat();
            errors.refuse_number(&at.key("cost").key("min"), min, &want);
        }
        _ => {}
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

/// The quotas of exact keys. A key that no request can have, or that stands twice, is an error.
fn overrides(
    at: &Path<'_>,
    key: &[KeyPart],
    period: Nanos,
    list: Vec<QuotaOverride>,
    client_ip: &ClientIp,
    errors: &mut Errors,
) -> Vec<(Vec<String>, Quota)> {
    let list_at = at.key("overrides");
    let key_sound = !errors.touches(&at.key("key"));
    let period_sound = !errors.touches(&at.key("period"));
    let mut seen = Distinct::default();
    let mut found = Vec::new();
    for (i, it) in list.into_iter().enumerate() {
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
                let shown: Vec<_> = values.iter().map(|value| show_text(value)).collect();
                let want = [
                    "a list of ",
                    &key.len().to_string(),
                    " values, one for each part of the rate limit's key",
                ];
                let shown = ["[", &shown.join(","), "]"].concat();
                errors.refuse_shown(&key_at, &shown, &want.concat());
                continue;
            }
            // All parts in one text, each after its length: they never run together.
            let (mut meant, mut is_valid) = (String::new(), true);
            for (j, (part, value)) in key.iter().zip(&values).enumerate() {
                match part.canon(value, client_ip) {
                    Ok(value) => push_all(&mut meant, &[&value.len().to_string(), ":", &value]),
                    Err(want) => {
                        is_valid = false;
                        errors.refuse_text(&key_at.index(j), value, want);
                    }
                }
            }
            if is_valid && !seen.add(&meant) {
                errors.refuse_text(&key_at, &values.join(","), "each key only once");
            }
        }
        found.push((values, quota));
    }
    found
}
