//! Floor 4: the engine joins the policies.
//!
//! An [`Engine`] is a configuration made ready, one for each VM and configuration;
//! [`exchange::Exchange`] takes one request through the chain, in this order: health → header
//! hygiene → route → canary → switch → deadline → rate limits → concurrency → breaker → endpoint →
//! timeout and retry headers. The first refusal wins. A limit may have a request wait before it
//! goes on: [`waiting`].
//!
//! | state | kept in | written by | after a reload | after a lost VM |
//! |---|---|---|---|---|
//! | buckets, breakers | shared data | compare-and-swap | kept by name | kept |
//! | outcomes since a breaker's record was written | gauges | atomic add | kept | kept |
//! | what checks found of endpoints | shared data | the one VM that checks | kept by name | kept |
//! | kept responses | shared data | compare-and-swap | kept by name | kept |
//! | requests in flight, of endpoints and concurrency limits | gauges | atomic add | kept | the VM's share is taken out after some 20 s |
//! | latency and reported load of endpoints | gauges | each worker, the last one wins | kept by name | kept |
//! | when endpoints were first seen | shared data | compare-and-swap, by a reload | kept | kept |
//! | where round robin stands | the VM | itself | starts anew | starts anew |
//! | concurrency limits that are found | gauges | each worker, by what it has seen | kept by name | kept |
//! | views of breakers and endpoints | the VM | itself, from shared data | read anew | read anew |
//!
//! Views make the request path independent of the number of endpoints, and cheap: they are read
//! again when a counter of changes (a metric, so atomic over all workers and cheap to read; of each
//! breaker, or of all in an upstream) has moved, and once per tick in case a VM died between
//! changing a record and counting it.

mod breaker;
mod checks;
mod concurrency;
pub mod endpoints;
pub mod exchange;
mod in_flight;
mod metrics;
pub mod waiting;

use crate::base::grpc_health::Serving;
use crate::base::hash::Seed;
use crate::base::headers::NameSet;
use crate::base::rng::Rng;
use crate::base::sketch::Sketch;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::config::{
    self, BalancePolicy, BreakerScope, Config, Criticality, FallbackStep, KeyPart, Mode,
    RejectBelow, RequestTimeout,
};
use crate::host::{CallAnswer, CallId, Calls, Host, MetricId};
use crate::policy::concurrency::adaptive::USUAL_DEADLINE;
use crate::policy::fallback::stale::Stale;
use crate::policy::fallback::stale::table::SizeChange;
use crate::policy::health_check::state::EndpointHealth;
use crate::policy::probe::{self, Component, HealthStatus};
use crate::policy::rate_limit::RateLimit;
use crate::policy::retry::{Budget, Totals};
use crate::policy::{self, fallback};
use crate::request::Reason;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};
use breaker::{Breaker, Subject, Telling};
use checks::Checks;
use concurrency::Concurrency;
use endpoints::Upstream;
use metrics::Names;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// How often [`Engine::tick`] wants to be called.
pub const TICK: Nanos = Nanos::from_secs(1);

/// Endpoints and breakers looked after in one tick: it holds up a worker's requests, at about 3 µs
/// for each.
const TICK_WORK: usize = 512;

/// A configuration, ready for requests.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    rng: Rng,
    /// Limits by use: an enforced and a shadow use of the same limit have buckets of their own.
    limits: Vec<Limit>,
    breakers: Vec<Breaker>,
    concurrency: Vec<Concurrency>,
    upstreams: Vec<Upstream>,
    /// By fallback: what its stale step keeps.
    kept: Vec<Option<Kept>>,
    /// One for each route of the configuration, in its order, and then one for each canary.
    routes: Vec<Route>,
    /// Request headers that only we may set, lower case.
    reserved_headers: NameSet,
    /// Tells this VM and configuration from all others.
    vm: u64,
    /// Where the next tick goes on: upstreams first, then breakers.
    tick_at: Cell<usize>,
    /// What breakers and checks share.
    telling: Rc<Telling>,
    /// Active checks of endpoints.
    checks: Option<Checks>,
}

#[derive(Debug)]
struct Limit {
    policy: RateLimit,
    keys: MetricId,
    evictions: MetricId,
    contention: MetricId,
}

/// A route's policies; what is off is not there.
#[derive(Debug)]
struct Route {
    /// Index into the configuration's routes.
    config: usize,
    /// Of a canary's: the route that it is a part of, in [`Engine::routes`].
    stable: Option<usize>,
    canary: Option<Canary>,
    /// Counts what goes where a canary could have had it.
    sent: MetricId,
    off: bool,
    needs_client: bool,
    needs_request_id: bool,
    /// Its switch, while that is off.
    switched_off: Option<Use>,
    /// Enforced ones first: a shadow use may only draw for a request that passed.
    limits: Vec<Use>,
    /// Its own concurrency limit, and its upstream's.
    concurrency: [Option<Use>; 2],
    criticality: Criticality,
    breaker: Option<Use>,
    upstream: Option<Use>,
    /// Components of its upstream's check, `at` their index, without which it is refused.
    depends_on: Vec<Use>,
    fallback: Option<FallbackUse>,
    /// The cluster that the proxy has to be told, since the fallback or the canary may choose
    /// another.
    cluster: Option<String>,
    duration: MetricId,
    retries: MetricId,
    /// Where requests are refused that are late; `at` means nothing.
    deadline: Option<Use>,
    /// What its requests have lately taken in this VM, where somebody wants to know.
    seen: Option<Shared<Sketch>>,
    retry: Option<Retries>,
}

/// A route's canary.
#[derive(Clone, Copy, Debug)]
struct Canary {
    mode: Mode,
    /// What becomes of its requests, in [`Engine::routes`]: everything as on its route, but for the
    /// upstream, and with a breaker and a view of times of its own, so that nothing that it does is
    /// held against the route.
    at: usize,
    /// Counts what a shadow would have sent.
    would: [MetricId; 2],
}

/// A route's retries.
#[derive(Clone, Debug)]
struct Retries {
    /// Counts requests, over all workers.
    requests: MetricId,
    /// One for a route and its canary.
    budget: Rc<Shared<Budget>>,
}

impl Retries {
    fn totals<H: Host>(&self, route: &Route, host: &H) -> Totals {
        Totals {
            requests: host.value(self.requests),
            retries: host.value(route.retries),
        }
    }

    fn with<R: Default>(&self, run: impl FnOnce(&mut Budget) -> R) -> R {
        self.budget.with(run)
    }
}

/// What requests of a VM share. It is never held over a host call, so that nobody finds it in use;
/// were it so, nothing would happen.
#[derive(Debug)]
struct Shared<T>(RefCell<T>);

impl<T> Shared<T> {
    fn with<R: Default>(&self, run: impl FnOnce(&mut T) -> R) -> R {
        self.0
            .try_borrow_mut()
            .map(|mut it| run(&mut it))
            .unwrap_or_default()
    }
}

/// A policy's use on a route: where it is, whether it acts, and where its refusals are counted.
#[derive(Clone, Copy, Debug)]
struct Use {
    at: usize,
    mode: Mode,
    refusals: MetricId,
}

#[derive(Clone, Copy, Debug)]
struct FallbackUse {
    at: usize,
    mode: Mode,
    errors: MetricId,
    timeouts: MetricId,
    stale: MetricId,
    cluster: MetricId,
    respond: MetricId,
}

/// A fallback's kept responses, with their metrics.
#[derive(Debug)]
struct Kept {
    policy: Stale,
    entries: MetricId,
    bytes: MetricId,
    evictions: MetricId,
    contention: MetricId,
}

impl Kept {
    fn new<H: Host>(fallback: &config::Fallback, seed: Seed, host: &H) -> Option<Self> {
        let stale = fallback.steps.iter().find_map(|step| match step {
            FallbackStep::Stale(stale) => Some(stale),
            FallbackStep::Cluster(_) | FallbackStep::Respond(_) => None,
        })?;
        let names = Names(host);
        let kept = Self {
            policy: Stale::new(&fallback.name, stale.clone(), seed),
            entries: names.stale_entries(&fallback.name),
            bytes: names.stale_bytes(&fallback.name),
            evictions: names.stale_evictions(&fallback.name),
            contention: names.contention(&fallback.name),
        };
        kept.count(host, kept.policy.adopt(host).map(Some));
        Some(kept)
    }

    fn count<H: Host>(&self, host: &H, changed: Result<Option<SizeChange>, Contended>) {
        match changed {
            Ok(Some(change)) => {
                let all = [
                    (self.entries, change.entries),
                    (self.bytes, change.bytes),
                    (self.evictions, change.evicted),
                ];
                for (metric, change) in all.into_iter().filter(|(_, change)| *change != 0) {
                    host.add(metric, change);
                }
            }
            Ok(None) => {}
            Err(Contended) => host.add(self.contention, 1),
        }
    }
}

impl Engine {
    /// Makes a configuration ready: defines its metrics, and reads what a former configuration or
    /// another worker left.
    ///
    /// # Errors
    /// A message, if shared data could not be used.
    pub fn new<H: Host>(config: Config, host: &H) -> Result<Self, String> {
        let seed = shared_seed(host).map_err(|Contended| {
            "shared data could not be written: all attempts were contended".to_owned()
        })?;
        let mut engine = Self {
            rng: Rng::new(host.entropy()),
            limits: Vec::new(),
            breakers: Vec::new(),
            concurrency: Vec::new(),
            vm: host.entropy(),
            upstreams: Vec::new(),
            kept: Vec::new(),
            routes: Vec::new(),
            reserved_headers: reserved_headers(config.trust_client_retry_headers),
            tick_at: Cell::new(0),
            telling: Rc::default(),
            checks: None,
            config: Config::default(),
        };
        for upstream in &config.upstreams {
            let breaker = upstream
                .circuit_breaker
                .and_then(|at| config.circuit_breakers.get(at));
            let checked = checks::is_checked(&config, upstream);
            engine.upstreams.push(Upstream::new(
                upstream,
                breaker,
                config.mode,
                checked,
                &engine.telling,
                host,
            ));
            engine.reserved_headers.add(&upstream.override_header);
        }
        engine.kept = config
            .fallbacks
            .iter()
            .map(|fallback| Kept::new(fallback, seed, host))
            .collect();
        // Uses of one limit share its buckets: (index of the limit, shadow) -> index of its
        // instance.
        let mut instances: Vec<((usize, bool), usize)> = Vec::new();
        for (at, route) in config.routes.iter().enumerate() {
            let compiled =
                engine.compile_route(&config, route, [at, at], seed, &mut instances, host);
            engine.routes.push(compiled);
        }
        let checks = Checks::new(&config, engine.vm, &engine.telling, host);
        engine.checks = (!checks.is_empty()).then_some(checks);
        for (at, route) in config.routes.iter().enumerate() {
            engine.compile_canary(&config, route, at, seed, &mut instances, host);
        }
        engine.config = config;
        for switch in &engine.config.switches {
            host.record(Names(host).switch_on(&switch.name), switch.on.into());
        }
        let now = host.monotonic();
        engine
            .upstreams
            .iter()
            .for_each(|upstream| upstream.refresh(host, now));
        engine
            .breakers
            .iter()
            .for_each(|breaker| _ = breaker.refresh(host, now, None));
        Ok(engine)
    }

    /// Looks after what no request does: views and gauges that a lost VM may have left wrong. Where
    /// there is too much for one tick the next goes on.
    pub fn tick<H: Host>(&self, host: &H) {
        let now = host.monotonic();
        // All of them in each tick: a VM that tells nothing is taken for lost.
        for limit in &self.concurrency {
            limit.look_after(host, now, self.vm);
        }
        for upstream in &self.upstreams {
            upstream.look_after(host, now, self.vm, false);
        }
        for (route, retry) in self
            .routes
            .iter()
            .filter_map(|route| Some((route, route.retry.as_ref()?)))
        {
            let totals = retry.totals(route, host);
            retry.with(|budget| budget.look(now, totals));
        }
        self.telling.tell_withheld(host);
        let things = self.things();
        let mut work = 0usize;
        for _ in 0..things {
            let at = self.tick_at.get();
            work = work.saturating_add(self.look_after(at, host, now));
            let next = at.saturating_add(1);
            self.tick_at.set(if next < things { next } else { 0 });
            if work >= TICK_WORK {
                break;
            }
        }
    }

    /// Whether [`Engine::check`] has anything to do.
    #[must_use]
    pub const fn has_checks(&self) -> bool {
        self.checks.is_some()
    }

    /// Asks endpoints how they are, if this is the VM that does and they are due. When it wants to
    /// be called again; `None`: never.
    pub fn check<H: Host + Calls>(&self, host: &H, now: Nanos) -> Option<Nanos> {
        Some(self.checks.as_ref()?.run(host, now))
    }

    /// A call that [`Engine::check`] has made was answered.
    pub fn answered<H: Host>(&self, host: &H, id: CallId, answer: &CallAnswer, now: Nanos) {
        if let Some(checks) = &self.checks {
            checks.answered(host, id, answer, now);
        }
    }

    /// How many things there are to look after: upstreams, then routes' breakers.
    const fn things(&self) -> usize {
        self.upstreams.len().saturating_add(self.breakers.len())
    }

    /// Sets the views and gauges of one of them right; how much work it was.
    fn look_after<H: Host>(&self, at: usize, host: &H, now: Nanos) -> usize {
        if let Some(upstream) = self.upstreams.get(at) {
            upstream.look_after(host, now, self.vm, true);
            return upstream.refresh_some(host, now);
        }
        if let Some(breaker) = self.breakers.get(at.saturating_sub(self.upstreams.len())) {
            breaker.refresh(host, now, None);
        }
        1
    }

    /// The service's health document.
    fn health_document<H: Host>(&self, host: &H, now: Nanos) -> crate::host::Reply {
        probe::document(
            &self.config.service,
            &self.components(host, now),
            host.wall(),
        )
    }

    /// The state of what a gRPC health check names; `None`: there is no such thing.
    fn serving<H: Host>(&self, host: &H, now: Nanos, service: &str) -> Option<Serving> {
        probe::grpc::serving(&self.components(host, now), service)
    }

    /// Whether a gRPC health check can ask for this.
    fn has_service(&self, service: &str) -> bool {
        service.is_empty()
            || self
                .config
                .upstreams
                .iter()
                .any(|upstream| upstream.name == service)
    }

    /// All upstreams, as health documents show them.
    fn components<H: Host>(&self, host: &H, now: Nanos) -> Vec<Component<'_>> {
        self.upstreams
            .iter()
            .zip(&self.config.upstreams)
            .enumerate()
            .map(|(at, (upstream, config))| {
                let census = upstream.census(host, now);
                // An endpoint that may be tried counts: were it not, a proxy taken out of traffic
                // would never try it, and stay out.
                let usable = census.available.saturating_add(census.trial);
                let up = config.endpoints.is_empty()
                    || match config.min_healthy {
                        None => usable > 0,
                        Some(least) => {
                            usable > 0
                                && u64::from(usable).saturating_mul(10_000)
                                    >= u64::from(census.members).saturating_mul(least.0.into())
                        }
                    };
                let (status, why) = self.upstream_status(upstream, config, up);
                let error = (status != HealthStatus::Up).then(|| {
                    let counts = [
                        &number(usable.into()),
                        " of ",
                        &number(census.members.into()),
                        " endpoints available",
                    ];
                    [
                        counts.concat().as_str(),
                        if why.is_empty() { "" } else { "; " },
                        why.as_str(),
                    ]
                    .concat()
                });
                let of = |used: &dyn Fn(&config::Route) -> Option<usize>| {
                    self.config
                        .routes
                        .iter()
                        .filter_map(used)
                        .any(|used| used == at)
                };
                let only_canary = !of(&|route| route.upstream)
                    && of(&|route| Some(route.canary.as_ref()?.upstream));
                Component {
                    name: &config.name,
                    status,
                    rt: upstream.response_time(host),
                    error,
                    // Without a canary its requests go where the others go.
                    critical: !only_canary,
                }
            })
            .collect()
    }

    /// What an upstream is in the health document, and the reason of the first endpoint that checks
    /// have taken out. Its endpoints' states are those of the last reading: nothing is asked here.
    fn upstream_status(
        &self,
        upstream: &Upstream,
        config: &config::Upstream,
        up: bool,
    ) -> (HealthStatus, String) {
        let Some(check) = &config.health_check else {
            return (
                if up {
                    HealthStatus::Up
                } else {
                    HealthStatus::Down
                },
                String::new(),
            );
        };
        let mut worst: Option<HealthStatus> = None;
        let mut why = String::new();
        for (address, verdict) in upstream.verdicts() {
            if verdict.status.is_usable() {
                continue;
            }
            if why.is_empty() {
                why = [
                    address,
                    ": ",
                    verdict.status.word(),
                    ", ",
                    &verdict.reason.text(verdict.detail, check),
                ]
                .concat();
            }
            worst = match (worst, verdict.status) {
                (Some(HealthStatus::Down), _) | (_, EndpointHealth::Down) => {
                    Some(HealthStatus::Down)
                }
                (Some(HealthStatus::OutOfService), _) | (_, EndpointHealth::OutOfService) => {
                    Some(HealthStatus::OutOfService)
                }
                _ => Some(HealthStatus::Unknown),
            };
        }
        match worst {
            _ if up => (HealthStatus::Up, why),
            Some(worst) => (worst, why),
            None => (HealthStatus::Down, why),
        }
    }

    /// Compiles what becomes of the requests that a route's canary has, if it has one.
    fn compile_canary<H: Host>(
        &mut self,
        config: &Config,
        route: &config::Route,
        at: usize,
        seed: Seed,
        instances: &mut Vec<((usize, bool), usize)>,
        host: &H,
    ) {
        let Some(canary) = &route.canary else { return };
        let mode = canary.mode.or(route.mode).unwrap_or(config.mode);
        let (Some(upstream), Some(other)) = (
            route.upstream.and_then(|at| config.upstreams.get(at)),
            config.upstreams.get(canary.upstream),
        ) else {
            return;
        };
        if let Some(color) = &canary.color {
            self.reserved_headers.add(&color.header);
        }
        if mode == Mode::Off {
            return;
        }
        let its = config::Route {
            upstream: Some(canary.upstream),
            circuit_breaker: canary.circuit_breaker,
            depends_on: same_components(upstream, other, &route.depends_on),
            canary: None,
            ..route.clone()
        };
        let number = self.routes.len();
        let mut compiled = self.compile_route(config, &its, [number, at], seed, instances, host);
        compiled.stable = Some(at);
        compiled.retry = self.routes.get(at).and_then(|route| route.retry.clone());
        compiled.cluster = self
            .routes
            .get(at)
            .and_then(|route| route.cluster.as_ref())
            .map(|_| other.cluster.clone());
        let counters =
            [upstream, other].map(|it| Names(host).canary_requests(&route.name, &it.name, mode));
        if mode == Mode::Enforce {
            compiled.sent = counters[1];
        }
        let needs_client = policy::canary::needs_client(canary) || compiled.needs_client;
        self.routes.push(compiled);
        if let Some(route) = self.routes.get_mut(at) {
            route.needs_client |= needs_client;
            route.off = false;
            if mode == Mode::Enforce {
                route.sent = counters[0];
            }
            route.canary = Some(Canary {
                mode,
                at: number,
                would: counters,
            });
        }
    }

    /// Compiles a route. `at`: its number here, and in the configuration; where they are not the
    /// same, it is a canary's.
    fn compile_route<H: Host>(
        &mut self,
        config: &Config,
        route: &config::Route,
        at: [usize; 2],
        seed: Seed,
        instances: &mut Vec<((usize, bool), usize)>,
        host: &H,
    ) -> Route {
        let names = Names(host);
        let route_mode = route.mode.unwrap_or(config.mode);
        let mode_of = |own: Option<Mode>| own.unwrap_or(route_mode);
        let switched_off = route.switch.and_then(|at| {
            let switch = config.switches.get(at).filter(|switch| !switch.on)?;
            (route_mode != Mode::Off).then(|| Use {
                at,
                mode: route_mode,
                refusals: names.decisions(
                    &route.name,
                    &switch.name,
                    Reason::SwitchedOff,
                    route_mode,
                ),
            })
        });
        let mut limits = Vec::new();
        for at in &route.rate_limits {
            let Some(limit) = config.rate_limits.get(*at) else {
                continue;
            };
            let mode = mode_of(limit.mode);
            if mode == Mode::Off {
                continue;
            }
            let id = (*at, mode == Mode::Shadow);
            let instance = match instances.iter().find(|(known, _)| *known == id) {
                Some((_, instance)) => *instance,
                None => {
                    let alone = config
                        .routes
                        .iter()
                        .filter(|r| r.rate_limits.contains(at))
                        .all(|r| r.rate_limits.len() == 1);
                    let policy = RateLimit::new(
                        limit.clone(),
                        &config.client_ip,
                        namespace(mode),
                        alone,
                        seed,
                    );
                    self.limits.push(Limit {
                        policy,
                        keys: names.rate_limit_keys(&limit.name),
                        evictions: names.rate_limit_evictions(&limit.name),
                        contention: names.contention(&limit.name),
                    });
                    let instance = self.limits.len().saturating_sub(1);
                    instances.push((id, instance));
                    instance
                }
            };
            limits.push(Use {
                at: instance,
                mode,
                refusals: names.decisions(&route.name, &limit.name, Reason::RateLimited, mode),
            });
        }
        limits.sort_by_key(|limit| limit.mode != Mode::Enforce);
        let is_canary = at[0] != at[1];
        // What a canary refuses goes back to where the others go, and is no refusal.
        let refusals = |policy: &str, reason, mode| match mode {
            Mode::Enforce if is_canary => names.canary_returned(&route.name, reason),
            _ => names.decisions(&route.name, policy, reason, mode),
        };
        let mut concurrency = [
            self.concurrency(
                config,
                route,
                route.concurrency_limit,
                ["route", &route.name],
                route_mode,
                host,
            ),
            route
                .upstream
                .and_then(|at| config.upstreams.get(at))
                .and_then(|upstream| {
                    let mode = mode_of(upstream.mode);
                    self.concurrency(
                        config,
                        route,
                        upstream.concurrency_limit,
                        ["upstream", &upstream.name],
                        mode,
                        host,
                    )
                }),
        ];
        if is_canary {
            for used in concurrency.iter_mut().flatten() {
                let name = self
                    .concurrency
                    .get(used.at)
                    .map_or("", |limit| limit.name());
                used.refusals = refusals(name, Reason::Overload, used.mode);
            }
        }
        let breaker = route
            .circuit_breaker
            .and_then(|at| config.circuit_breakers.get(at))
            .and_then(|breaker| {
                let mode = mode_of(breaker.mode);
                if mode == Mode::Off {
                    return None;
                }
                let upstream = route.upstream.and_then(|at| config.upstreams.get(at));
                let subject = match (breaker.scope, upstream) {
                    (BreakerScope::Upstream, Some(upstream)) => Subject::Upstream(&upstream.name),
                    (_, Some(upstream)) if is_canary => {
                        Subject::Canary(&route.name, &upstream.name)
                    }
                    _ => Subject::Route(&route.name),
                };
                let at = self.breaker(breaker, subject, mode, host);
                Some(Use {
                    at,
                    mode,
                    refusals: refusals(&breaker.name, Reason::CircuitOpen, mode),
                })
            });
        let upstream = route.upstream.and_then(|at| {
            let upstream = config.upstreams.get(at)?;
            let mode = mode_of(upstream.mode);
            (mode != Mode::Off).then(|| Use {
                at,
                mode,
                refusals: refusals(&upstream.name, Reason::NoEndpoint, mode),
            })
        });
        let check = route
            .upstream
            .and_then(|at| config.upstreams.get(at))
            .and_then(|u| u.health_check.as_ref());
        let depends_on = route.depends_on.iter().filter_map(|at| {
            let (Use { mode, .. }, component) = (upstream?, check?.components.get(*at)?);
            Some(Use {
                at: *at,
                mode,
                refusals: refusals(&component.name, Reason::NoEndpoint, mode),
            })
        });
        let depends_on = depends_on.collect();
        let fallback = route.fallback.and_then(|at| {
            let fallback = config.fallbacks.get(at)?;
            let mode = mode_of(fallback.mode);
            let answers = |word: &str| {
                let has = fallback
                    .steps
                    .iter()
                    .any(|step| fallback::word(step) == word);
                if has {
                    names.fallbacks(&route.name, word)
                } else {
                    MetricId::NONE
                }
            };
            (mode != Mode::Off).then(|| FallbackUse {
                at,
                mode,
                errors: names.decisions(&route.name, &fallback.name, Reason::UpstreamError, mode),
                timeouts: names.decisions(&route.name, &fallback.name, Reason::Timeout, mode),
                stale: answers("stale"),
                cluster: answers("cluster"),
                respond: answers("respond"),
            })
        });
        let hashes_client = upstream.as_ref().and_then(|used| config.upstreams.get(used.at)).is_some_and(|upstream| {
            matches!(&upstream.policy, BalancePolicy::ConsistentHash { key, .. } if key.contains(&KeyPart::ClientIp))
        });
        let needs_client = hashes_client
            || limits.iter().any(|l| {
                self.limits
                    .get(l.at)
                    .is_some_and(|l| l.policy.needs_client())
            });
        let needs_request_id = fallback
            .and_then(|f| config.fallbacks.get(f.at))
            .is_some_and(fallback::needs_request_id);
        let deadline = (route_mode != Mode::Off).then(|| Use {
            at: 0,
            mode: route_mode,
            refusals: names.decisions(
                &route.name,
                exchange::DEADLINE,
                Reason::Deadline,
                route_mode,
            ),
        });
        let retry = route
            .retry
            .as_ref()
            .filter(|_| route_mode == Mode::Enforce)
            .map(|retry| Retries {
                requests: names.retry_requests(&route.name),
                budget: Rc::new(Shared(RefCell::new(Budget::new(retry)))),
            });
        let has_breaker = breaker.is_some()
            || route
                .upstream
                .and_then(|at| config.upstreams.get(at))
                .is_some_and(|u| u.circuit_breaker.is_some());
        let observes = has_breaker
            || retry.is_some()
            || matches!(route.timeout.request, Some(RequestTimeout::Dynamic(_)))
            || matches!(route.timeout.reject_below, Some(RejectBelow::Quantile(_)));
        Route {
            config: at[1],
            stable: None,
            canary: None,
            sent: MetricId::NONE,
            off: route_mode == Mode::Off
                && limits.is_empty()
                && concurrency.iter().all(Option::is_none)
                && breaker.is_none()
                && upstream.is_none()
                && fallback.is_none(),
            needs_client,
            needs_request_id,
            switched_off,
            limits,
            concurrency,
            criticality: route.criticality,
            breaker,
            upstream,
            depends_on,
            fallback,
            cluster: cluster(config, route),
            duration: names.upstream_duration(&route.name),
            retries: names.retries(&route.name),
            seen: (observes && deadline.is_some()).then(|| Shared(RefCell::default())),
            deadline,
            retry,
        }
    }

    /// The use of this concurrency limit on a route; routes of one upstream share one limit.
    fn concurrency<H: Host>(
        &mut self,
        config: &Config,
        route: &config::Route,
        limit: Option<usize>,
        subject: [&str; 2],
        mode: Mode,
        host: &H,
    ) -> Option<Use> {
        let limit = config.concurrency_limits.get(limit?)?;
        let mode = limit.mode.unwrap_or(mode);
        if mode == Mode::Off {
            return None;
        }
        let deadline = deadline(route);
        let new = Concurrency::new(limit, subject, deadline, host);
        let at = match self.concurrency.iter().position(|known| known.is(&new)) {
            Some(at) => at,
            None => {
                self.concurrency.push(new);
                self.concurrency.len().saturating_sub(1)
            }
        };
        if let Some(known) = self.concurrency.get_mut(at) {
            known.share(deadline);
        }
        Some(Use {
            at,
            mode,
            refusals: Names(host).decisions(&route.name, &limit.name, Reason::Overload, mode),
        })
    }

    /// The breaker of this subject: routes of one upstream may share one.
    fn breaker<H: Host>(
        &mut self,
        config: &config::CircuitBreaker,
        subject: Subject<'_>,
        mode: Mode,
        host: &H,
    ) -> usize {
        let breaker = Breaker::new(config, subject, mode, &self.telling, host);
        match self
            .breakers
            .iter()
            .position(|known| known.is_same(&breaker))
        {
            Some(at) => at,
            None => {
                self.breakers.push(breaker);
                self.breakers.len().saturating_sub(1)
            }
        }
    }
}

/// The components of `other` that have the names of these components of `upstream`.
fn same_components(
    upstream: &config::Upstream,
    other: &config::Upstream,
    components: &[usize],
) -> Vec<usize> {
    let (Some(check), Some(others)) = (&upstream.health_check, &other.health_check) else {
        return Vec::new();
    };
    let same = |at: &usize| {
        let name = &check.components.get(*at)?.name;
        others
            .components
            .iter()
            .position(|component| component.name == *name)
    };
    components.iter().filter_map(same).collect()
}

/// In what time a route's requests are to be answered, at the most.
fn deadline(route: &config::Route) -> Nanos {
    route
        .timeout
        .request
        .map_or(USUAL_DEADLINE, RequestTimeout::longest)
}

/// The request header that names the cluster, for routes of the proxy that take it from there.
const CLUSTER_HEADER: &str = "x-haven-cluster";

/// Headers by which Envoy's router is steered. It drops a client's own only if it takes the client
/// for external, which one on the proxy's own machine is not.
const STEERING: &[&str] = &[
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-max-retries",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
];

/// The cluster that a route's requests have to name to the proxy: that of its upstream, if its
/// fallback or its canary may choose another.
fn cluster(config: &Config, route: &config::Route) -> Option<String> {
    let upstream = |at: usize| config.upstreams.get(at);
    let own = &upstream(route.upstream?)?.cluster;
    let sends_on = route
        .fallback
        .and_then(|at| config.fallbacks.get(at))
        .is_some_and(|fallback| {
            fallback
                .steps
                .iter()
                .any(|step| matches!(step, FallbackStep::Cluster(_)))
        });
    let canary = route
        .canary
        .as_ref()
        .and_then(|canary| upstream(canary.upstream));
    (sends_on || canary.is_some_and(|canary| canary.cluster != *own)).then(|| own.clone())
}

fn reserved_headers(trust_client_retry_headers: bool) -> NameSet {
    let steering = if trust_client_retry_headers {
        &[]
    } else {
        STEERING
    };
    let mut names = NameSet::default();
    [CLUSTER_HEADER]
        .iter()
        .chain(steering)
        .for_each(|name| names.add(name));
    names
}

/// Keeps the state of shadow uses apart from that of enforced ones.
const fn namespace(mode: Mode) -> &'static str {
    match mode {
        Mode::Shadow => "shadow",
        Mode::Enforce | Mode::Off => "",
    }
}

/// The secret of key hashes, made by the first worker and shared by all.
fn shared_seed<H: Host>(host: &H) -> Result<Seed, Contended> {
    let key = RecordKey::new(RecordKind::Seed, 0, 0);
    store::update(host, &key, |bytes| {
        if let Ok(known) = <[u8; 16]>::try_from(bytes.as_slice()) {
            return Step::Keep(u128::from_le_bytes(known));
        }
        let fresh = u128::from(host.entropy()) << 64 | u128::from(host.entropy());
        bytes.clear();
        bytes.extend_from_slice(&fresh.to_le_bytes());
        Step::Write(fresh)
    })
    .map(|seed| {
        #[allow(clippy::cast_possible_truncation, reason = "the halves of the seed")]
        Seed((seed >> 64) as u64, seed as u64)
    })
}
