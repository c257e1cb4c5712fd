//! Floor 4: the engine joins the policies.
//!
//! An [`Engine`] is a configuration made ready, one for each VM and configuration;
//! [`chain::Exchange`] takes one request through the chain, in this order: health → header
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
pub mod chain;
mod compile;
mod concurrency;
mod health_check;
mod in_flight;
mod logs;
mod metrics;
mod readiness;
mod route;
mod stale;
mod upstream;
pub mod waiting;

use crate::base::headers::NameSet;
use crate::base::rng::Rng;
use crate::base::time::Nanos;
use crate::config::Config;
use crate::host::{CallAnswer, CallId, Calls, Host};
use crate::store::Contended;
use breaker::{Breaker, TransitionCounters};
pub use chain::{Action, Exchange};
use compile::{reserved_headers, shared_seed};
use concurrency::Concurrency;
use health_check::Checks;
use logs::LogLimiter;
use metrics::MetricTable;
use route::{Limit, Route};
use stale::StaleStore;
use std::cell::Cell;
use std::rc::Rc;
use upstream::Upstream;

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
    stale: Vec<Option<StaleStore>>,
    /// One for each route of the configuration, in its order, and then one for each canary.
    routes: Vec<Route>,
    /// Request headers that only we may set, lower case.
    reserved_headers: NameSet,
    /// Tells this VM and configuration from all others.
    vm: u64,
    /// Where the next tick goes on: upstreams first, then breakers.
    tick_at: Cell<usize>,
    /// What breakers and checks share.
    logs: Rc<LogLimiter>,
    /// The counters of breakers, by configuration.
    counters: TransitionCounters,
    /// Active checks of endpoints.
    checks: Option<Checks>,
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
            stale: Vec::new(),
            routes: Vec::new(),
            reserved_headers: reserved_headers(config.trust_client_retry_headers),
            tick_at: Cell::new(0),
            logs: Rc::default(),
            counters: TransitionCounters::default(),
            checks: None,
            config: Config::default(),
        };
        for upstream in &config.upstreams {
            let breaker = upstream
                .circuit_breaker
                .and_then(|at| config.circuit_breakers.get(at));
            let checked = health_check::is_checked(&config, upstream);
            engine.upstreams.push(Upstream::new(
                upstream,
                breaker,
                config.mode,
                checked,
                &engine.logs,
                &mut engine.counters,
                host,
            ));
            engine.reserved_headers.add(&upstream.override_header);
        }
        engine.stale = config
            .fallbacks
            .iter()
            .map(|fallback| StaleStore::new(fallback, seed, host))
            .collect();
        // Uses of one limit share its buckets: (index of the limit, shadow) -> index of its
        // instance.
        let mut instances: Vec<((usize, bool), usize)> = Vec::new();
        for (at, route) in config.routes.iter().enumerate() {
            let compiled =
                engine.compile_route(&config, route, [at, at], seed, &mut instances, host);
            engine.routes.push(compiled);
        }
        let checks = Checks::new(&config, engine.vm, &engine.logs, host);
        engine.checks = (!checks.is_empty()).then_some(checks);
        for (at, route) in config.routes.iter().enumerate() {
            engine.compile_canary(&config, route, at, seed, &mut instances, host);
        }
        engine.config = config;
        for switch in &engine.config.switches {
            host.record(MetricTable(host).switch_on(&switch.name), switch.on.into());
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
            retry.with(|budget| budget.sample(now, totals));
        }
        self.logs.report_withheld();
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
}

/// The request header that names the cluster, for routes of the proxy that take it from there.
const CLUSTER_HEADER: &str = "x-haven-cluster";
