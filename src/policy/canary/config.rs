//! A canary as it is configured.

use crate::base::percent::Percent;
use crate::policy::mode::Mode;
use crate::policy::sections::{CircuitBreakers, Upstreams};
use crate::request::key::{KeyPart, KeyParts};
use crate::request::reserved::RESERVED;
use crate::schema::{Errors, HeaderName, HeaderValue, Map, Path, Pct, Reference, Token, section};

/// A share of a route's requests that goes to another upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Its own mode.
    pub mode: Option<Mode>,
    /// Its share of the requests that nothing else decides for.
    pub percent: Percent,
    /// What distinguishes clients; empty = each request is drawn anew.
    pub sticky: Vec<KeyPart>,
    /// Requests that go to it.
    pub forced: Marks,
    /// Requests that do not.
    pub stable: Marks,
    /// How requests are coloured.
    pub color: Option<Color>,
}

/// What marks a request. Nothing given marks none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Headers that it has all of: lower-case name and the exact value, or `None` = present.
    pub headers: Vec<(String, Option<String>)>,
    /// Or cookies that it has all of.
    pub cookies: Vec<(String, Option<String>)>,
}

/// A header that says to the hops behind it which side a request is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Color {
    /// Its name, lower case.
    pub header: String,
    /// What it says of the canary's requests.
    pub canary: String,
    /// What it says of the others.
    pub stable: String,
}

section! {
    /// A share of the requests for another upstream. First come the headers that a request has,
    /// then its cookies, then its share.
    CanarySection {
        /// Its mode. `shadow` counts which requests it would take, and sends all of them to the
        /// route's own upstream.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// The other upstream.
        upstream: Reference<Upstreams> = Required;
        /// Its share of the requests that nothing else decides for.
        percent: Pct = Default("0");
        /// What distinguishes clients: parts as in a rate limit's `key`. One client is always on one
        /// side, on every proxy and on all routes to this canary; a higher `percent` only moves
        /// clients to the canary. A request that lacks a part goes to the route's own upstream.
        /// Without parts each request is drawn anew.
        sticky: KeyParts = Default("[]");
        /// Headers with their exact values (`*` = present): a request that has all of them goes to
        /// the canary.
        header: Map<HeaderName, HeaderValue, 8> = Default("{}");
        /// Cookies with their exact values (`*` = present): likewise.
        cookie: Map<Token, HeaderValue, 8> = Default("{}");
        /// Requests that go to the route's own upstream; in case of doubt this is what holds.
        stable: CanaryStable = Default("{}");
        /// Request header that says to the hops behind it which side a request is on; starts with
        /// `x-`. A client's own value is removed, on all routes: to trust a colour that a proxy in
        /// front has given, name the header in `header`.
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

impl CanarySection {
    /// The canary, with the errors that span its fields. `stable` is the route's own upstream,
    /// `is_override` says whether a header is an upstream's override header.
    #[inline(never)]
    pub(crate) fn compile(
        self,
        at: &Path<'_>,
        stable: Option<&str>,
        is_override: &dyn Fn(&str) -> bool,
        errors: &mut Errors,
    ) -> Canary {
        self.check(at, stable, is_override, errors);
        let color = self.color_header.map(|header| Color {
            header,
            canary: self.color.unwrap_or(self.upstream),
            stable: self
                .stable_color
                .unwrap_or_else(|| stable.unwrap_or_default().into()),
        });
        Canary {
            mode: self.mode,
            percent: self.percent,
            sticky: self.sticky,
            forced: marks(self.header, self.cookie),
            stable: marks(self.stable.header, self.stable.cookie),
            color,
        }
    }

    fn check(
        &self,
        at: &Path<'_>,
        stable: Option<&str>,
        is_override: &dyn Fn(&str) -> bool,
        errors: &mut Errors,
    ) {
        let upstream = self.upstream.as_str();
        if stable.is_none_or(|stable| stable == upstream) && !upstream.is_empty() {
            let want = if stable.is_none() {
                "none: the route has no upstream of its own"
            } else {
                "another upstream than the route's"
            };
            errors.refuse_text(&at.key("upstream"), upstream, want);
        }
        if let Some(header) = &self.color_header
            && !header.is_empty()
            && (!header.starts_with("x-")
                || header.starts_with("x-envoy-")
                || RESERVED.contains(&header.as_str())
                || is_override(header))
        {
            let want = [
                "a header that says nothing else: it starts with \"x-\", not with \"x-envoy-\", \
                 and is no override header and none of ",
                &RESERVED.join(", "),
            ];
            errors.refuse_text(&at.key("color_header"), header, &want.concat());
        }
        for (name, value) in [("color", &self.color), ("stable_color", &self.stable_color)] {
            if let (Some(value), None) = (value, &self.color_header) {
                errors.refuse_text(&at.key(name), value, "none: there is no color_header");
            }
        }
    }
}

fn marks(headers: Vec<(String, String)>, cookies: Vec<(String, String)>) -> Marks {
    let wanted = |(name, value): (String, String)| (name, (value != "*").then_some(value));
    Marks {
        headers: headers.into_iter().map(wanted).collect(),
        cookies: cookies.into_iter().map(wanted).collect(),
    }
}
