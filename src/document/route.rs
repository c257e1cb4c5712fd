//! Routes: what is done with which requests.

use std::collections::BTreeSet;

use crate::document::names::References;
use crate::policy::canary::config::{Canary, CanarySection};
use crate::policy::circuit_breaker::config::BreakerScope;
use crate::policy::concurrency::config::Criticality;
use crate::policy::deadline::config::Timeout;
use crate::policy::mode::Mode;
use crate::policy::retry::config::{Retry, RetrySection};
use crate::policy::route::config::{Match, MatchSection};
use crate::policy::sections::{
    CircuitBreakers, Components, ConcurrencyLimits, Fallbacks, RateLimits, Switches, Upstreams,
};
use crate::schema::{Errors, Name, Path, Reference, Set, section};

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

/// The routes, with the errors that span fields and routes; `at` is the list.
pub(crate) fn compile(
    sections: Vec<RouteSection>,
    at: &Path<'_>,
    references: &References<'_>,
    errors: &mut Errors,
) -> Vec<Route> {
    let mut seen = BTreeSet::new();
    let mut routes = Vec::new();
    for (i, section) in sections.into_iter().enumerate() {
        let at = at.index(i);
        let name = &section.name;
        if !name.is_empty() && !seen.insert(name.clone()) {
            errors.refuse_text(&at.key("name"), name, "each route's name only once");
        }
        routes.push(section.compile(&at, references, errors));
    }
    routes
}

impl RouteSection {
    fn compile(self, at: &Path<'_>, references: &References<'_>, errors: &mut Errors) -> Route {
        let upstream = references.find::<Upstreams>(self.upstream.as_ref());
        let rate_limits = self
            .rate_limits
            .iter()
            .filter_map(|name| references.find::<RateLimits>(Some(name)))
            .collect();
        let circuit_breaker = references.find::<CircuitBreakers>(self.circuit_breaker.as_ref());
        let fallback = references.find::<Fallbacks>(self.fallback.as_ref());
        let switch = references.find::<Switches>(self.switch.as_ref());
        if let (Some(i), Some(breaker), None) =
            (circuit_breaker, &self.circuit_breaker, &self.upstream)
            && references.breaker_scope(i) == BreakerScope::Upstream
        {
            let want = "a circuit breaker without \"scope\": \"upstream\", \
                        for the route has no upstream";
            errors.refuse_text(&at.key("circuit_breaker"), breaker, want);
        }
        if let (Some(i), Some(name), None) = (fallback, &self.fallback, &self.upstream)
            && references.sends_on(i)
        {
            let want = "a fallback without a cluster step, for the route has no upstream \
                        that names its own cluster";
            errors.refuse_text(&at.key("fallback"), name, want);
        }
        let depends_on = self.depends_on(at, upstream, references, errors);
        let canary = self.canary.map(|canary| {
            let upstream = references.find::<Upstreams>(Some(&canary.upstream));
            let own = references.find::<CircuitBreakers>(canary.circuit_breaker.as_ref());
            let (at, stable) = (at.key("canary"), self.upstream.as_deref());
            Canary {
                upstream: upstream.unwrap_or_default(),
                circuit_breaker: own.or(circuit_breaker),
                ..canary.compile(&at, stable, &references.override_headers, errors)
            }
        });
        let matcher = self.r#match.compile(&at.key("match"), errors);
        self.timeout.check(&at.key("timeout"), errors);
        Route {
            name: self.name,
            mode: self.mode,
            matcher,
            upstream,
            rate_limits,
            circuit_breaker,
            concurrency_limit: references
                .find::<ConcurrencyLimits>(self.concurrency_limit.as_ref()),
            criticality: self.criticality,
            fallback,
            switch,
            timeout: self.timeout,
            retry: self.retry.map(RetrySection::compile),
            depends_on,
            canary,
        }
    }

    /// The places of the components in the health check of its upstream.
    fn depends_on(
        &self,
        at: &Path<'_>,
        upstream: Option<usize>,
        references: &References<'_>,
        errors: &mut Errors,
    ) -> Vec<usize> {
        let known = upstream.map_or(&[][..], |upstream| references.components(upstream));
        let mut found = Vec::new();
        for (i, name) in self.depends_on.iter().enumerate() {
            match known.iter().position(|known| known == name) {
                _ if name.is_empty() => {}
                Some(component) => found.push(component),
                // One that no upstream has was rejected already.
                None if references.find::<Components>(Some(name)).is_none() => {}
                None => {
                    let want = "a component of the health_check of the route's own upstream";
                    errors.refuse_text(&at.key("depends_on").index(i), name, want);
                }
            }
        }
        found
    }
}
