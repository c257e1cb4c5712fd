//! How long a route's requests may take, as it is configured.

use crate::base::percent::Percent;
use crate::base::time::Nanos;
use crate::request::reserved::{FRAMING, is_taken};
use crate::schema::text::{keep, text_type};
use crate::schema::units::{HOUR, MS, show_span};
use crate::schema::{
    Centi, Decode, Either, Errors, HeaderName, Json, One, Path, Schema, Span, section,
};

section! {
    /// Deadlines.
    Timeout {
        /// Time for the whole request, waiting here included. A deadline that comes with a request
        /// shortens it, and never lengthens it.
        request: Option<RequestTimeout> = Absent("Envoy's");
        /// Time for a try, where a retry at an endpoint that is not slow follows; otherwise the try
        /// has the rest of the whole. One that is no shorter than what is left of the whole does
        /// nothing. On a route without `retry`, time for each try.
        per_try: Option<Span<MS, HOUR>> = Absent("none");
        /// A request header with the milliseconds left, read and passed on to the upstream.
        /// `grpc-timeout` and `x-envoy-expected-rq-timeout-ms` are always read; `0` in any of them
        /// means that nothing is left, what is malformed is ignored.
        deadline_header: Option<HeaderName> = Absent("none");
        /// Refuse a request at once whose own deadline leaves less; `p50` is what half of the
        /// route's recent requests took.
        reject_below: Option<RejectBelow> = Absent("off");
    }
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
    #[derive(Copy, Eq)]
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

/// Below what a deadline is hopeless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectBelow {
    /// A time.
    Time(Nanos),
    /// What this share of the route's requests take.
    Quantile(Percent),
}

text_type! {
    /// `p50`: a quantile of what was observed.
    Quantile(QUANTILE, "a quantile from \"p1\" to \"p99\"", |text| {
        let digits = text.strip_prefix('p').filter(|digits| !digits.starts_with(['0', '+']))?;
        let n = digits.parse::<u8>().ok()?;
        keep(text, n <= 99)
    }, r#"{"type": "string", "pattern": "^p[1-9][0-9]?$"}"#);
}

impl Decode for RequestTimeout {
    const SCHEMA: &'static Schema = <Either<Span<MS, HOUR>, One<Dynamic>>>::SCHEMA;

    type Value = Self;

    fn decode(json: &Json) -> Self {
        match <Either<Span<MS, HOUR>, One<Dynamic>>>::decode(json) {
            Either::First(time) => Self::Fixed(time),
            Either::Second(it) => Self::Dynamic(it.dynamic.unwrap_or_default()),
        }
    }
}

impl Decode for RejectBelow {
    const SCHEMA: &'static Schema = <Either<Span<MS, HOUR>, Quantile>>::SCHEMA;

    type Value = Self;

    fn decode(json: &Json) -> Self {
        match <Either<Span<MS, HOUR>, Quantile>>::decode(json) {
            Either::First(time) => Self::Time(time),
            Either::Second(text) => {
                let percent = text
                    .strip_prefix('p')
                    .and_then(|text| text.parse::<u32>().ok());
                Self::Quantile(Percent(percent.unwrap_or_default().saturating_mul(100)))
            }
        }
    }
}

impl Timeout {
    /// Itself, with the errors that span fields and a header that means something else.
    #[inline(never)]
    pub(crate) fn checked(self, at: &Path<'_>, errors: &mut Errors) -> Self {
        if let Some(RequestTimeout::Dynamic(DynamicTimeout { min, max, .. })) = self.request {
            let request_at = at.key("request");
            let at = request_at.key("dynamic");
            if max < min && !errors.touches(&at) {
                let want = ["at least the min of ", &show_span(min)].concat();
                errors.refuse_text(&at.key("max"), &show_span(max), &want);
            }
        }
        if let Some(header) = &self.deadline_header
            && (FRAMING.contains(&header.as_str()) || header == "host" || is_taken(header))
        {
            let want = "a header that says nothing else: none that frames the message, \
                        not \"host\", none of Envoy's, none that tells who a client is";
            errors.refuse_text(&at.key("deadline_header"), header, want);
        }
        self
    }
}
