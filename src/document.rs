//! Floor 5: the configuration as a whole. It composes the sections of the policies and resolves
//! their names; upstreams and routes live here.
//!
//! What stands in [`Config`] is what the engine works with: every reference is resolved, every
//! default is filled in, every range is kept. It can only be had from [`parse`], which reports all
//! errors of a document at once.

mod admin;
mod host;
mod names;
mod outcomes;
mod route;
mod serve;
mod switch;
mod unread;
mod upstream;
mod warnings;

use std::rc::Rc;

use crate::policy::circuit_breaker::config::WithPreset;
use crate::policy::concurrency::config::ConcurrencySection;
use crate::policy::discovery::config::Discovery;
use crate::policy::fallback::config::FallbackSection;
use crate::policy::rate_limit::config::RateLimitSection;
use crate::policy::sections::{
    CircuitBreakers, ConcurrencyLimits, Fallbacks, RateLimits, Switches, Upstreams,
};
use crate::schema::declare::empty;
use crate::schema::{self, DeclaredNames, Errors, Label, List, Named, Path, section};
use admin::Admin;
use names::Entries;
pub use outcomes::Outcomes;
use route::{Resolver, RouteSection};
use switch::SwitchState;
use upstream::UpstreamSection;

pub use crate::base::percent::Percent;
pub use crate::policy::canary::config::{Canary, Color, Marks};
pub use crate::policy::circuit_breaker::config::{
    BreakerScope, CircuitBreaker, FailureOn, WindowConfig,
};
pub use crate::policy::concurrency::config::{ConcurrencyAlgorithm, ConcurrencyLimit, Criticality};
pub use crate::policy::deadline::config::{DynamicTimeout, RejectBelow, RequestTimeout, Timeout};
pub use crate::policy::discovery::config::{Consul, Credential, Etcd, Registry, Source};
pub use crate::policy::fallback::config::{Fallback, FallbackStep, Respond, TemplatePart};
pub use crate::policy::fallback::stale::config::Stale;
pub use crate::policy::health_check::config::{Ask, HealthCheck, ReportComponent};
pub use crate::policy::mode::Mode;
pub use crate::policy::probe::config::Probes;
pub use crate::policy::rate_limit::config::{
    Algorithm, Cost, OnContention, Quota, QuotaHeaders, RateLimit,
};
pub use crate::policy::retry::config::{Retry, RetryBudget};
pub use crate::policy::route::config::{HostMatch, Match, PathMatch, PathParameters};
pub use crate::policy::upstream::config::{BalancePolicy, Endpoint, LoadReport, Steer};
pub use crate::request::client_ip::{ClientIp, IpSource};
pub use crate::request::key::{KeyPart, MissingKey};
pub use crate::schema::{Cidr, ConfigError, ConfigErrors};
pub use route::{Route, RouteCanary};
pub use switch::Switch;
pub use unread::RequestHeaders;
pub use upstream::Upstream;

/// The most routes, and the most policies of a kind.
const MAX_NAMED: u32 = 1000;

/// Reads and validates a configuration. Nothing at all is as good as `{}`.
///
/// # Errors
/// All errors of the document, each with its path, the value, and what is allowed.
pub fn parse(document: &[u8]) -> Result<Config, ConfigErrors> {
    schema::read::<Document, _>(document, Document::compile)
}

/// The JSON schema (draft 2020-12) of what [`parse`] accepts.
#[cfg(not(target_arch = "wasm32"))]
#[must_use]
pub fn schema() -> serde_json::Value {
    schema::json_schema::json_schema::<Document>("haven filter configuration")
}

/// The reference of the configuration, in Markdown.
#[cfg(not(target_arch = "wasm32"))]
#[must_use]
pub fn reference() -> String {
    schema::reference::reference::<Document>(HEAD)
}

#[cfg(not(target_arch = "wasm32"))]
const HEAD: &str = "# Configuration reference

Generated from the code that reads the configuration (`HAVEN_BLESS=1 cargo test --test config`); do
not edit.

Durations are strings with a unit (`\"250ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"`; also `ns`, `us`,
`d`), sizes are strings like `\"64KiB\"` (also `B`, `MiB`), percentages are numbers from 0 to 100.
Names are 1 to 64 of `A-Z a-z 0-9 . _ : / -`. Unknown fields, wrong types, bad ranges, dangling and
duplicate names are refused, all at once, each with its path. What is marked *not supported yet* is
validated and then refused, unless it is set to its default.
";

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name in health documents; "haven" if not given.
    pub service: String,
    /// Whose state it has; `None`: that of the plugin's root id, or name.
    pub state: Option<String>,
    /// Whether it is Envoy's endpoint discovery, and nothing else.
    pub serve_endpoints: bool,
    /// Mode of everything that does not set its own.
    pub mode: Mode,
    /// Where a client's address is taken from.
    pub client_ip: ClientIp,
    /// What becomes of path parameters.
    pub path_parameters: PathParameters,
    /// How outcomes are learned.
    pub outcomes: Outcomes,
    /// Upstreams, in the document's order.
    pub upstreams: Vec<Rc<Upstream>>,
    /// Rate limits, in the document's order.
    pub rate_limits: Vec<Rc<RateLimit>>,
    /// Circuit breakers, in the document's order.
    pub circuit_breakers: Vec<Rc<CircuitBreaker>>,
    /// Concurrency limits, in the document's order.
    pub concurrency_limits: Vec<Rc<ConcurrencyLimit>>,
    /// Fallbacks, in the document's order.
    pub fallbacks: Vec<Rc<Fallback>>,
    /// Kill switches, in the document's order.
    pub switches: Vec<Rc<Switch>>,
    /// Routes; the first that matches is taken.
    pub routes: Vec<Rc<Route>>,
    /// The health endpoints.
    pub health: Probes,
    /// Whether clients may set the proxy's retries and timeouts by `x-envoy-*` headers.
    pub trust_client_retry_headers: bool,
    /// Whether anything looks at requests.
    pub request_headers: RequestHeaders,
}

section! {
    /// The whole document.
    Document {
        /// The service's name in health documents.
        service: Label = Default("\"haven\"");
        /// Configurations of the same name in one proxy, with the same `vm_id`, share their state:
        /// buckets, breakers, requests in flight, kept answers, what checks have found. Those of
        /// another name share nothing. Metrics have it as the label `state`, unless it is `haven`.
        state: Option<Label> = Absent("the plugin's `root_id`, or its `name` if that is empty");
        /// haven is Envoy's endpoint discovery on this listener, and nothing else: it answers
        /// `POST /v3/discovery:endpoints` of loopback peers with what the sources of the upstreams of
        /// the same `state` have named. Only with `state`, that of the haven that has these upstreams;
        /// docs/discovery.md has Envoy's part.
        serve_endpoints: bool = Default("false");
        /// What policies do with their decisions; each policy and route may set its own, and the
        /// inner one wins. `enforce` acts, `shadow` decides, counts and logs what it would have
        /// done, `off` does not look.
        mode: Mode = Default("\"enforce\"");
        /// Where a client's address is taken from.
        client_ip: ClientIp = Default("{}");
        /// What routes and keys make of the parameters in a path: `strip` takes `/api/pay;x`,
        /// `/;/api/pay` and `/x/..;/api/pay` for `/api/pay`, as services do that know them; `keep`
        /// for other paths. Envoy's routes and the upstream get the path as it came.
        path_parameters: PathParameters = Default("\"strip\"");
        /// How haven learns how requests ended. `every`: it reads every answer. `by_exception`:
        /// Envoy shows it the exceptions, and what has none was good; that costs less, and needs
        /// what docs/cost.md says in Envoy's configuration. Where that is missing haven says so once
        /// and reads every answer. Not with what needs them all: a rate limit's `headers`, `stale`,
        /// `load_report`, `peak_ewma`, an `adaptive` limit, slow calls, timeouts that are found, a
        /// canary.
        outcomes: Outcomes = Default("\"every\"");
        /// Where upstreams have their endpoints from whose `endpoints` are no list.
        discovery: Discovery = Default("{}");
        /// Sets of interchangeable endpoints.
        upstreams: Named<Upstreams, UpstreamSection, MAX_NAMED> = Default("{}");
        /// Quotas.
        rate_limits: Named<RateLimits, RateLimitSection, MAX_NAMED> = Default("{}");
        /// When calls are stopped and tried again. Named on an upstream, a breaker has a state per
        /// endpoint; on a route, a state per route or per upstream (see `scope`).
        circuit_breakers: Named<CircuitBreakers, WithPreset, MAX_NAMED> = Default("{}");
        /// Bounds of the requests in flight over all workers.
        concurrency_limits: Named<ConcurrencyLimits, ConcurrencySection, MAX_NAMED> = Default("{}");
        /// What is answered instead of a refusal or a failure.
        fallbacks: Named<Fallbacks, FallbackSection, MAX_NAMED> = Default("{}");
        /// Kill switches that routes name: `on`, or `off`, which answers those routes at once with
        /// `switched_off`.
        switches: Named<Switches, SwitchState, MAX_NAMED> = Default("{}");
        /// What is done with which requests; the first route that matches is taken. A request that
        /// matches none only has its reserved headers removed.
        routes: List<RouteSection, 0, MAX_NAMED> = Default("[]");
        /// Paths of the health endpoints.
        health: Probes = Default("{}");
        /// The dashboard and its API.
        @soon admin: Option<Admin> = Absent("none");
        /// Keep the `x-envoy-*` retry and timeout headers that clients send.
        trust_client_retry_headers: bool = Default("false");
        /// `ignore` is for limits alone, and takes a third off their cost: haven then reads no header
        /// of any request. Everything that would is refused: health paths (`null`) and
        /// `health.grpc` (`false`), a second route, a route's `match`, `upstream`,
        /// `circuit_breaker`, `fallback`, `timeout`, `retry` and `canary`, and keys but `client_ip`
        /// (the connection's) and `route`. Envoy has to remove the headers that haven would
        /// (docs/envoy.md); a client's own deadline is not known.
        request_headers: RequestHeaders = Default("\"read\"");
    }
}

impl Document {
    /// The typed configuration, with the errors that span sections and fields.
    fn compile(self, names: &DeclaredNames, errors: &mut Errors) -> Config {
        let client_ip = self.client_ip;
        let at = |key| Path::Root.key(key);
        let breakers = Entries::new(names, &self.circuit_breakers);
        for (name, upstream) in &self.upstreams {
            let admin = self.discovery.envoy_admin.as_deref();
            upstream.check(&at("upstreams").key(name), &breakers, admin, errors);
        }
        let rate_limits = named(self.rate_limits, "rate_limits", |at, name, it| {
            it.compile(at, name, &client_ip, errors)
        });
        let circuit_breakers = named(self.circuit_breakers, "circuit_breakers", |at, name, it| {
            it.compile(at, name, errors)
        });
        let concurrency_limits = named(
            self.concurrency_limits,
            "concurrency_limits",
            |_, name, it| it.compile(name),
        );
        let fallbacks = named(self.fallbacks, "fallbacks", |at, name, it| {
            it.compile(at, name, errors)
        });
        let switches = named(self.switches, "switches", |_, name, on| Switch { name, on });
        let breakers = Entries::new(names, &circuit_breakers);
        let limits = Entries::new(names, &concurrency_limits);
        let upstreams = named(self.upstreams, "upstreams", |_, name, it| {
            it.compile(name, &self.discovery, &breakers, &limits)
        });
        let resolver = Resolver {
            names,
            upstreams: Entries::new(names, &upstreams),
            rate_limits: Entries::new(names, &rate_limits),
            circuit_breakers: breakers,
            concurrency_limits: limits,
            fallbacks: Entries::new(names, &fallbacks),
            switches: Entries::new(names, &switches),
        };
        let routes = route::compile(self.routes, &at("routes"), &resolver, errors);
        let config = Config {
            service: self.service,
            state: self.state,
            serve_endpoints: self.serve_endpoints,
            mode: self.mode,
            client_ip,
            path_parameters: self.path_parameters,
            outcomes: self.outcomes,
            routes,
            health: self.health.checked(&at("health"), errors),
            trust_client_retry_headers: self.trust_client_retry_headers,
            request_headers: self.request_headers,
            upstreams,
            rate_limits,
            circuit_breakers,
            concurrency_limits,
            fallbacks,
            switches,
        };
        outcomes::check(&config, errors);
        serve::check(&config, errors);
        unread::check(&config, errors);
        config
    }
}

#[inline(never)]
fn named<T, U>(
    entries: Vec<(String, T)>,
    section: &str,
    mut compile: impl FnMut(&Path<'_>, String, T) -> U,
) -> Vec<Rc<U>> {
    let at = Path::Root.key(section);
    entries
        .into_iter()
        .map(|(name, it)| Rc::new(compile(&at.key(&name.clone()), name, it)))
        .collect()
}

/// The configuration of an empty document.
impl Default for Config {
    fn default() -> Self {
        let names = DeclaredNames::of(&schema::Schema::Bool, &schema::Json::Null);
        empty::<Document>().compile(&names, &mut Errors::default())
    }
}
