//! Routes: what is done with which requests.

use std::rc::Rc;

use crate::document::names::Entries;
use crate::document::switch::Switch;
use crate::document::upstream::Upstream;
use crate::policy::canary::config::{Canary, CanarySection};
use crate::policy::circuit_breaker::config::{BreakerScope, CircuitBreaker};
use crate::policy::concurrency::config::{ConcurrencyLimit, Criticality};
use crate::policy::deadline::config::Timeout;
use crate::policy::fallback::config::Fallback;
use crate::policy::mode::Mode;
use crate::policy::rate_limit::config::RateLimit;
use crate::policy::retry::config::{Retry, RetrySection};
use crate::policy::route::config::{Match, MatchSection};
use crate::policy::sections::{
    CircuitBreakers, Components, ConcurrencyLimits, Fallbacks, RateLimits, Switches, Upstreams,
};
use crate::schema::names::Distinct;
use crate::schema::{DeclaredNames, Errors, Name, NamedSection, Path, Reference, Set, section};

/// What is done with requests that match.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// Which requests it is for.
    pub matcher: Match,
    /// Where they go.
    pub upstream: Option<Rc<Upstream>>,
    /// Its rate limits.
    pub rate_limits: Vec<Rc<RateLimit>>,
    /// Its circuit breaker.
    pub circuit_breaker: Option<Rc<CircuitBreaker>>,
    /// Its concurrency limit: one for this route, besides that of its upstream.
    pub concurrency_limit: Option<Rc<ConcurrencyLimit>>,
    /// When it is shed.
    pub criticality: Criticality,
    /// What is answered instead of a refusal or a failure.
    pub fallback: Option<Rc<Fallback>>,
    /// Its kill switch.
    pub switch: Option<Rc<Switch>>,
    /// How long its requests may take.
    pub timeout: Timeout,
    /// Which of them are tried again.
    pub retry: Option<Retry>,
    /// Components of its upstream's [`HealthCheck`](crate::document::HealthCheck): it is refused
    /// while one of them is down.
    pub depends_on: Vec<String>,
    /// A share of them that goes elsewhere.
    pub canary: Option<RouteCanary>,
}

/// The canary of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteCanary {
    /// Which requests it has.
    pub rules: Canary,
    /// Where they go; not where the route's own go.
    pub upstream: Rc<Upstream>,
    /// Its circuit breaker.
    pub circuit_breaker: Option<Rc<CircuitBreaker>>,
}

section! {
    /// What is done with the requests that match.
    RouteSection {
        /// Its name, which no other route has.
        name: Name = Required;
        /// Mode of its policies that do not set their own.
        mode: Option<Mode> = Absent("the top level's");
        /// The requests it is for: all conditions must hold, none = all requests.
        r#match: MatchSection = Default("{}");
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
        retry: Option<RetrySection> = Absent("none");
        /// What is shed first under load, by the route's and its upstream's concurrency limit:
        /// `sheddable` is refused while 70 % of the limit are in flight, `sheddable_plus` from 80 %
        /// on, `critical` from 95 % on, `critical_plus` at the limit.
        criticality: Criticality = Default("\"critical\"");
        /// A kill switch; while it is off, the route's requests are answered at once.
        switch: Option<Reference<Switches>> = Absent("none");
        /// A share of the requests for another upstream.
        canary: Option<CanarySection> = Absent("none");
        /// Components of its upstream's health reports (`health_check.components`) without which
        /// the route is useless: while one of them is DOWN on all endpoints that report it, its
        /// requests are refused with `no_endpoint`, policy = the component.
        depends_on: Set<Reference<Components>, 0, 32> = Default("[]");
    }
}

/// What routes refer to.
pub(crate) struct Resolver<'a> {
    pub(crate) names: &'a DeclaredNames,
    pub(crate) upstreams: Entries<'a, Upstreams, Rc<Upstream>>,
    pub(crate) rate_limits: Entries<'a, RateLimits, Rc<RateLimit>>,
    pub(crate) circuit_breakers: Entries<'a, CircuitBreakers, Rc<CircuitBreaker>>,
    pub(crate) concurrency_limits: Entries<'a, ConcurrencyLimits, Rc<ConcurrencyLimit>>,
    pub(crate) fallbacks: Entries<'a, Fallbacks, Rc<Fallback>>,
    pub(crate) switches: Entries<'a, Switches, Rc<Switch>>,
}

/// The routes, with the errors that span fields and routes; `at` is the list.
pub(crate) fn compile(
    sections: Vec<RouteSection>,
    at: &Path<'_>,
    resolver: &Resolver<'_>,
    errors: &mut Errors,
) -> Vec<Rc<Route>> {
    let mut seen = Distinct::default();
    let mut routes = Vec::new();
    for (i, section) in sections.into_iter().enumerate() {
        let at = at.index(i);
        let name = &section.name;
        if !name.is_empty() && !seen.add(name) {
            errors.refuse_text(&at.key("name"), name, "each route's name only once");
        }
        routes.push(Rc::new(section.compile(&at, resolver, errors)));
    }
    routes
}

impl RouteSection {
    #[inline(never)]
    fn compile(self, at: &Path<'_>, resolver: &Resolver<'_>, errors: &mut Errors) -> Route {
        let upstream = resolver.upstreams.get(self.upstream.as_ref());
        let names = self.rate_limits.iter();
        let rate_limits = names.filter_map(|name| resolver.rate_limits.get(Some(name)));
        let circuit_breaker = resolver.circuit_breakers.get(self.circuit_breaker.as_ref());
        let fallback = resolver.fallbacks.get(self.fallback.as_ref());
        if let (Some(breaker), None) = (&circuit_breaker, &self.upstream)
            && breaker.scope == BreakerScope::Upstream
        {
            let want = "a circuit breaker without \"scope\": \"upstream\", \
                        for the route has no upstream";
            errors.refuse_text(&at.key("circuit_breaker"), &breaker.name, want);
        }
        if let (Some(fallback), None) = (&fallback, &self.upstream)
            && fallback.sends_on()
        {
            let want = "a fallback without a cluster step, for the route has no upstream \
                        that names its own cluster";
            errors.refuse_text(&at.key("fallback"), &fallback.name, want);
        }
        self.check_depends_on(at, upstream.as_deref(), resolver, errors);
        Route {
            rate_limits: rate_limits.collect(),
            canary: self.canary.and_then(|section| {
                let (at, own) = (at.key("canary"), self.upstream.as_deref());
                canary(
                    section,
                    &at,
                    own,
                    circuit_breaker.as_ref(),
                    resolver,
                    errors,
                )
            }),
            matcher: self.r#match.compile(&at.key("match"), errors),
            timeout: self.timeout.checked(&at.key("timeout"), errors),
            name: self.name,
            mode: self.mode,
            upstream,
            circuit_breaker,
            concurrency_limit: resolver
                .concurrency_limits
                .get(self.concurrency_limit.as_ref()),
            criticality: self.criticality,
            fallback,
            switch: resolver.switches.get(self.switch.as_ref()),
            retry: self.retry.map(RetrySection::compile),
            depends_on: self.depends_on,
        }
    }
    fn check_depends_on(
        &self,
        at: &Path<'_>,
        upstream: Option<&Upstream>,
        resolver: &Resolver<'_>,
        errors: &mut Errors,
    ) {
        for (i, name) in self.depends_on.iter().enumerate() {
            // One that no upstream has was rejected already.
            if resolver.names.find(Components::SECTION, name).is_some()
                && !upstream.is_some_and(|upstream| upstream.has_component(name))
            {
                let want = "a component of the health_check of the route's own upstream";
                errors.refuse_text(&at.key("depends_on").index(i), name, want);
            }
        }
    }
}

/// The canary of a route to the upstream `stable` with the breaker `own`.
#[inline(never)]
fn canary(
    section: CanarySection,
    at: &Path<'_>,
    stable: Option<&str>,
    own: Option<&Rc<CircuitBreaker>>,
    resolver: &Resolver<'_>,
    errors: &mut Errors,
) -> Option<RouteCanary> {
    let upstream = resolver.upstreams.get(Some(&section.upstream));
    let circuit_breaker = resolver
        .circuit_breakers
        .get(section.circuit_breaker.as_ref());
    let is_override = |header: &str| {
        let mut upstreams = resolver.upstreams.iter();
        upstreams.any(|upstream| upstream.override_header == header)
    };
    Some(RouteCanary {
        rules: section.compile(at, stable, &is_override, errors),
        upstream: upstream?,
        circuit_breaker: circuit_breaker.or_else(|| own.map(Rc::clone)),
    })
}
