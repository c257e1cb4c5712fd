//! How long a request may still take: the smaller of its client's deadline and the route's timeout,
//! less what was spent here.
//!
//! A deadline comes in as time left, by `grpc-timeout`, by `x-envoy-expected-rq-timeout-ms` or by a
//! header of the route's own. It counts from the moment when its headers were here. What is
//! malformed is ignored; `0` means that nothing is left. Clients write these headers, so that
//! nothing in them ever lengthens what the route allows.
//!
//! Times are handed on in whole milliseconds, rounded down, but at least 1: the proxy takes 0 for
//! "for ever".

pub mod grpc_timeout;

use crate::base::headers::{HeaderMap, parse_number};
use crate::base::sketch::Sketch;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::config::{DynamicTimeout, RejectBelow, RequestTimeout, Timeout};

/// gRPC's header.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What one Envoy tells the next of the time that it will wait.
pub const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";

/// What steers the timeout of Envoy's router.
pub const ROUTER: &str = "x-envoy-upstream-rq-timeout-ms";

/// What steers its timeout of a try.
pub const ROUTER_PER_TRY: &str = "x-envoy-upstream-rq-per-try-timeout-ms";

/// A route without a fresh sample for so long is no longer refused by a quantile. (Bug avoided:
/// once all deadlines are too short for what the upstream took when it was slow, nobody would ever
/// find out that it has recovered.)
const FRESH: Nanos = Nanos::from_secs(5);

/// What a request says of its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    grpc_timeout: Said,
    expected: Said,
    own: Said,
    router: Said,
}

/// What a header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    present: bool,
    /// The least of its values that make sense.
    left: Option<Nanos>,
}

impl Said {
    fn hear(&mut self, left: Option<Nanos>) {
        self.present = true;
        self.left = least(self.left, left);
    }
}

impl Incoming {
    /// Reads the headers of a request. `own` is the route's own header, lower case. With `trusted`
    /// a client's own header for Envoy's router counts too.
    #[must_use]
    pub fn read(headers: &HeaderMap, own: Option<&str>, trusted: bool) -> Self {
        let mut found = Self::default();
        // Few names have the length of one that counts.
        let lengths = [GRPC_TIMEOUT, EXPECTED, ROUTER, own.unwrap_or(GRPC_TIMEOUT)].map(str::len);
        for (name, value) in headers
            .iter()
            .filter(|(name, _)| lengths.contains(&name.len()))
        {
            let is = |known: &str| {
                name.len() == known.len() && name.eq_ignore_ascii_case(known.as_bytes())
            };
            let millis = || parse_number(value.trim_ascii()).map(Nanos::from_millis);
            if is(GRPC_TIMEOUT) {
                found.grpc_timeout.hear(grpc_timeout::decode(value));
            } else if is(EXPECTED) {
                found.expected.hear(millis());
            } else if trusted && is(ROUTER) {
                // 0 is Envoy's "for ever", and no deadline.
                found
                    .router
                    .hear(millis().filter(|left| *left > Nanos::ZERO));
            }
            if own.is_some_and(is) {
                found.own.hear(millis());
            }
        }
        found
    }

    /// What is left of the client's deadline; `None` if it has none.
    #[must_use]
    pub fn left(&self) -> Option<Nanos> {
        [self.expected, self.own, self.router]
            .iter()
            .fold(self.grpc_timeout.left, |all, said| least(all, said.left))
    }

    /// The headers with which `left` is passed on, where they do not say so already. The upstream
    /// learns of it as gRPC does, by the route's own header, and by Envoy's: that one Envoy writes
    /// itself, but one that is there it may heed, or pass on as it stands.
    pub fn pass_on(
        &self,
        left: Nanos,
        grpc: bool,
        own: Option<&str>,
        mut set: impl FnMut(&str, &[u8]),
    ) {
        let millis = whole_millis(left);
        let news = |said: Said| said.left != Some(Nanos::from_millis(millis));
        if (grpc || self.grpc_timeout.present) && news(self.grpc_timeout) {
            set(GRPC_TIMEOUT, grpc_timeout::encode(millis).as_bytes());
        }
        if self.expected.present && news(self.expected) {
            set(EXPECTED, number(millis).as_bytes());
        }
        if let Some(own) =
            own.filter(|own| news(self.own) && ![GRPC_TIMEOUT, EXPECTED, ROUTER].contains(own))
        {
            set(own, number(millis).as_bytes());
        }
    }
}

/// Whole milliseconds, at least 1.
#[must_use]
pub fn whole_millis(left: Nanos) -> u64 {
    left.as_millis().max(1)
}

/// The time that the route gives a request that begins now.
#[must_use]
pub fn request_timeout(config: RequestTimeout, now: Nanos, seen: &mut Sketch) -> Nanos {
    match config {
        RequestTimeout::Fixed(time) => time,
        RequestTimeout::Dynamic(DynamicTimeout {
            quantile,
            factor_centi,
            min,
            max,
        }) => {
            let Some(usual) = seen.quantile(now, quantile.0) else {
                return max;
            };
            let time = u128::from(usual.most.0).saturating_mul(factor_centi.into()) / 100;
            // Not `clamp`, which panics where `min` is above `max`.
            Nanos(u64::try_from(time).unwrap_or(u64::MAX))
                .max(min)
                .min(max)
        }
    }
}

/// Whether a client's deadline leaves too little to begin at all.
#[must_use]
pub fn is_hopeless(config: &Timeout, left: Nanos, now: Nanos, seen: &mut Sketch) -> bool {
    if left == Nanos::ZERO {
        return true;
    }
    match config.reject_below {
        None => false,
        Some(RejectBelow::Time(least)) => left < least,
        Some(RejectBelow::Quantile(quantile)) => {
            seen.silence(now) <= FRESH
                && seen
                    .quantile(now, quantile.0)
                    .is_some_and(|usual| left < usual.least)
        }
    }
}

/// The time of a try, where it is shorter than what is left of the whole.
#[must_use]
pub fn per_try(config: &Timeout, left: Option<Nanos>) -> Option<Nanos> {
    config
        .per_try
        .filter(|time| left.is_none_or(|left| *time < left))
}

/// The smaller of two where there are two.
#[must_use]
pub fn least(one: Option<Nanos>, other: Option<Nanos>) -> Option<Nanos> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
