//! How long a request may still take: the smaller of its client's deadline and the route's timeout,
//! minus the time already spent here.
//!
//! A client sends its deadline as time left: in `grpc-timeout`, in `x-envoy-expected-rq-timeout-ms`
//! or in a header that the route names. The time runs from the arrival of the headers. A malformed
//! value is ignored; `0` means that no time is left. Since clients write these headers, no value
//! ever lengthens what the route allows.
//!
//! haven forwards times in whole milliseconds, rounded down but at least 1: the proxy reads 0 as
//! "no timeout".

pub mod config;
pub mod grpc_timeout;

use crate::base::headers::{Headers, parse_number};
use crate::base::sketch::Sketch;
use crate::base::text::number;
use crate::base::time::{Moment, Nanos};
use config::{DynamicTimeout, RejectBelow, RequestTimeout, Timeout};

/// gRPC's header.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The time that one Envoy will wait, as it announces it to the next.
pub const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";

/// Sets the timeout of Envoy's router.
pub const ROUTER: &str = "x-envoy-upstream-rq-timeout-ms";

/// Sets its timeout per try.
pub const ROUTER_PER_TRY: &str = "x-envoy-upstream-rq-per-try-timeout-ms";

/// After this time without a fresh sample a route no longer refuses by a quantile. (Bug avoided:
/// when all deadlines are too short for an upstream that was slow, no request would reach it, and
/// haven would never see that it has recovered.)
const FRESH: Nanos = Nanos::from_secs(5);

/// The names of what [`Incoming::read`] reads, beside the route's own.
pub const READ: [&str; 4] = [GRPC_TIMEOUT, EXPECTED, ROUTER, ORIGINAL];

/// A request's deadline, as its headers give it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    grpc_timeout: HeaderDeadline,
    expected: HeaderDeadline,
    own: HeaderDeadline,
    router: HeaderDeadline,
    /// Whether Envoy sends the request a second time, where an answer of its upstream has led it.
    redirected: bool,
}

/// Envoy writes it when it follows a redirect itself; it removes a client's.
const ORIGINAL: &str = "x-envoy-original-url";

/// The values of one header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct HeaderDeadline {
    present: bool,
    /// The least of its valid values.
    left: Option<Nanos>,
}

impl HeaderDeadline {
    fn add(&mut self, left: Option<Nanos>) {
        self.present = true;
        self.left = least(self.left, left);
    }
}

impl Incoming {
    /// Reads the headers of a request. `own` is the route's own header, lower case. If `trusted`, a
    /// client's own header for Envoy's router counts too.
    #[must_use]
    pub fn read<'a>(headers: impl Into<Headers<'a>>, own: Option<&str>, trusted: bool) -> Self {
        let mut found = Self::default();
        // By length first: few names have the length of one that counts.
        let own_name = own.unwrap_or(GRPC_TIMEOUT);
        let lengths = [GRPC_TIMEOUT, EXPECTED, ROUTER, ORIGINAL, own_name].map(str::len);
        for (name, value) in headers
            .into()
            .watched()
            .filter(|(name, _)| lengths.contains(&name.len()))
        {
            let is = |known: &str| {
                name.len() == known.len() && name.eq_ignore_ascii_case(known.as_bytes())
            };
            let millis = || parse_number(value.trim_ascii()).map(Nanos::from_millis);
            if is(GRPC_TIMEOUT) {
                found.grpc_timeout.add(grpc_timeout::decode(value));
            } else if is(EXPECTED) {
                found.expected.add(millis());
            } else if trusted && is(ROUTER) {
                // Envoy reads 0 as "no timeout": it is no deadline.
                found
                    .router
                    .add(millis().filter(|left| *left > Nanos::ZERO));
            }
            if own.is_some_and(is) {
                found.own.add(millis());
            }
            found.redirected |= is(ORIGINAL);
        }
        found
    }

    /// Whether Envoy sends it a second time, after an internal redirect: then the headers are what
    /// was written for the first upstream.
    #[must_use]
    pub const fn is_redirected(&self) -> bool {
        self.redirected
    }

    /// What is left of the client's deadline; `None` if it has none.
    #[must_use]
    pub fn left(&self) -> Option<Nanos> {
        [self.expected, self.own, self.router]
            .iter()
            .fold(self.grpc_timeout.left, |all, said| least(all, said.left))
    }

    /// The headers that forward `left`, except those that already have this value. The upstream
    /// gets it in `grpc-timeout`, in the route's own header and in Envoy's. Envoy writes its own
    /// header itself, but it may act on or forward one that is already there.
    pub fn pass_on(
        &self,
        left: Nanos,
        grpc: bool,
        own: Option<&str>,
        mut set: impl FnMut(&str, &[u8]),
    ) {
        let millis = whole_millis(left);
        let differs = |header: HeaderDeadline| header.left != Some(Nanos::from_millis(millis));
        if (grpc || self.grpc_timeout.present) && differs(self.grpc_timeout) {
            set(GRPC_TIMEOUT, grpc_timeout::encode(millis).as_bytes());
        }
        if self.expected.present && differs(self.expected) {
            set(EXPECTED, number(millis).as_bytes());
        }
        if let Some(own) =
            own.filter(|own| differs(self.own) && ![GRPC_TIMEOUT, EXPECTED, ROUTER].contains(own))
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

/// The route's timeout for a request that begins now.
#[must_use]
pub fn request_timeout(config: RequestTimeout, now: Moment, seen: &mut Sketch) -> Nanos {
    match config {
        RequestTimeout::Fixed(time) => time,
        RequestTimeout::Dynamic(DynamicTimeout {
            quantile,
            factor,
            min,
            max,
        }) => {
            let Some(usual) = seen.quantile(now, quantile.0) else {
                return max;
            };
            let time = u128::from(usual.most.0).saturating_mul(factor.0.into()) / 100;
            // Not `clamp`, which panics where `min` is above `max`.
            Nanos(u64::try_from(time).unwrap_or(u64::MAX))
                .max(min)
                .min(max)
        }
    }
}

/// Whether a client's deadline leaves too little to begin at all.
#[must_use]
pub fn is_hopeless(config: &Timeout, left: Nanos, now: Moment, seen: &mut Sketch) -> bool {
    if left == Nanos::ZERO {
        return true;
    }
    match config.reject_below {
        None => false,
        Some(RejectBelow::Time(least)) => left < least,
        Some(RejectBelow::Quantile(quantile)) => {
            seen.since_last(now) <= FRESH
                && seen
                    .quantile(now, quantile.0)
                    .is_some_and(|usual| left < usual.least)
        }
    }
}

/// The timeout of a try, if it is shorter than the time left for the request.
#[must_use]
pub fn per_try(config: &Timeout, left: Option<Nanos>) -> Option<Nanos> {
    config
        .per_try
        .filter(|time| left.is_none_or(|left| *time < left))
}

/// The smaller of the values that are there.
#[must_use]
pub fn least(one: Option<Nanos>, other: Option<Nanos>) -> Option<Nanos> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
