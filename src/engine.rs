//! Floor 6: the engine joins the policies.
//!
//! An [`Engine`] is a configuration made ready, one for each VM and configuration;
//! [`chain::Exchange`] takes one request through the chain, in this order: reserved
//! headers are removed → probes are answered → route → canary → switch → rate limits → deadline →
//! concurrency → breaker → endpoint → timeout and retry headers. The first refusal wins. A limit
//! may have a request wait before it goes on: [`waiting`].
//!
//! | module | its job |
//! |---|---|
//! | `compile` | from the configuration to [`Engine`] and routes |
//! | `route` | what a route holds: policies, with mode and metric |
//! | [`chain`] | a request: `chain/` has a file for each stage, `grants` what must be given back |
//! | `upstream`, `health_check` | endpoints: picking, outcomes, active checks |
//! | `discovery` | endpoints that a source names: what becomes of its answers |
//! | `breaker`, `concurrency`, `stale` | policies with their metrics and log lines |
//! | `single` | one reading of what a client may send twice |
//! | `in_flight` | counts of requests in flight over all workers |
//! | `lingering` | what was given up, and still counts |
//! | `serving` | haven as Envoy's endpoint discovery |
//! | `readiness`, `bridge` | what haven reports of the service, and by which way |
//! | `metrics`, `logs`, `once` | names of metrics; bounded logging; warnings |
//!
//! | state | kept in | written by | after a reload | after a lost VM |
//! |---|---|---|---|---|
//! | buckets, breakers | shared data | compare-and-swap | kept by name | kept |
//! | outcomes since a breaker's record was written | gauges | atomic add | kept | kept |
//! | what checks found of endpoints | shared data | the one VM that checks | kept by name | kept |
//! | endpoints that a source has named | shared data | the one VM that asks | kept by name | kept |
//! | kept responses | shared data | compare-and-swap | kept by name | kept |
//! | requests in flight | gauges | atomic add | kept | corrected after some 20 s |
//! | latency and load of endpoints | gauges | each worker, the last wins | kept by name | kept |
//! | when endpoints were first seen | shared data | compare-and-swap, by a reload | kept | kept |
//! | where round robin stands | the VM | itself | starts anew | starts anew |
//! | found concurrency limits | gauges | each worker, by what it saw | kept by name | kept |
//! | views of breakers and endpoints | the VM | itself, from shared data | read anew | read anew |
//!
//! A policy reads and writes its own shared state beside its step: records through
//! [`crate::store`], and the counters of a breaker. The engine makes every other host call:
//! headers, replies, metrics, gauges, log, clock, calls out.
//!
//! Views make the request path independent of the number of endpoints, and cheap: they are read
//! again when a counter of changes (a shared counter, so atomic over all workers and cheap to read;
//! of each breaker, or of all in an upstream) has moved, and once per tick in case a VM died
//! between changing a record and counting it.

mod asking;
mod breaker;
mod bridge;
pub mod chain;
mod compile;
mod concurrency;
mod discovery;
mod exceptions;
mod health_check;
mod in_flight;
mod lingering;
mod logs;
mod metrics;
mod once;
mod readiness;
mod ready;
mod reserved;
mod route;
mod seed;
mod serving;
mod shared;
mod shedding;
mod single;
mod stale;
mod upstream;
pub mod waiting;

use crate::base::hash::Seed;
use crate::base::headers::{NameFilter, NameSet};
use crate::base::rng::Rng;
use crate::base::time::{Moment, Nanos};
use crate::document::{ClientIp, Config, PathParameters, Probes, RequestHeaders};
use crate::host::{CallAnswer, CallId, Calls, Host, HostKind};
use crate::policy::circuit_breaker;
use crate::policy::discovery::answer;
use crate::policy::discovery::report::{Report, Reported};
use crate::policy::health_check::report;
use crate::policy::route::index::RouteIndex;
use crate::store::Contended;
use asking::Asking;
use breaker::Breaker;
use bridge::Bridge;
use chain::replace::Bodies;
use compile::Compiler;
use concurrency::Concurrency;
use exceptions::Exceptions;
use health_check::Checks;
use lingering::Lingering;
use logs::LogLimiter;
use metrics::MetricTable;
use ready::ReadyReplies;
use route::Route;
use serving::Serving;
use single::SingleValues;
use std::cell::Cell;
use std::rc::Rc;
use upstream::Upstream;

/// How often [`Engine::tick`] has to be called.
pub const TICK: Nanos = Nanos::from_secs(1);

/// Endpoints and breakers that one tick reads anew: it holds up a worker's requests, at about 3 µs
/// for each.
const TICK_WORK: usize = 512;

/// A configuration, ready for requests.
#[derive(Debug)]
pub struct Engine {
    /// The name of the service in health documents.
    service: String,
    probes: Probes,
    client_ip: ClientIp,
    /// The secret of key hashes.
    seed: Seed,
    trust_client_retry_headers: bool,
    /// Nothing looks at requests.
    blind: bool,
    /// In the order of the configuration: the first that matches is taken.
    routes: Vec<Rc<Route>>,
    route_index: RouteIndex,
    upstreams: Vec<Rc<Upstream>>,
    breakers: Vec<Rc<Breaker>>,
    concurrency: Vec<Rc<Concurrency>>,
    /// Request headers that only we may set, lower case.
    reserved_headers: NameSet,
    single: SingleValues,
    /// What is looked for in each request's headers.
    watched: NameFilter,
    path_parameters: PathParameters,
    bridge: Bridge,
    /// Whether bodies of answers come while their headers are kept.
    bodies: Cell<Bodies>,
    /// Where only exceptions are read: what is known of the proxy's wiring.
    exceptions: Option<Exceptions>,
    /// Whether it was said that clients can write what tells them apart.
    said_forgeable: Cell<bool>,
    rng: Rng,
    /// Which proxy this is.
    kind: HostKind,
    /// The number of this VM and configuration, and of no other.
    vm: u64,
    /// Where the next tick goes on: upstreams first, then breakers.
    tick_at: Cell<usize>,
    /// The room in the log that breakers and checks share.
    logs: Rc<LogLimiter>,
    /// Active checks of endpoints.
    checks: Option<Checks>,
    /// Who asks for endpoints.
    asking: Option<Asking>,
    /// Work that was given up.
    lingering: Lingering,
    /// Where haven is Envoy's endpoint discovery.
    serving: Option<Serving>,
    /// Replies kept ready.
    ready: ReadyReplies,
    /// Until when the client of the request that ended last waits, for a redirect that the proxy
    /// follows itself: it has a second stream.
    ended: Cell<Option<Option<Moment>>>,
    /// The newest reading of the clock, at most a tick ago.
    newest: Cell<Moment>,
    /// Whether a breaker's window is so short that a tick matters to it.
    dates_exactly: bool,
}

impl Engine {
    /// Makes a configuration ready: defines its metrics, and reads what a former configuration or
    /// another worker left.
    ///
    /// # Errors
    /// Messages, a line each: what the configuration asks for and this proxy lacks; or that shared
    /// data could not be used.
    #[inline(never)]
    pub fn new<H: Host>(config: Config, host: &H) -> Result<Self, String> {
        let kind = host.kind();
        config
            .check_host(kind)
            .map_err(|errors| errors.to_string())?;
        let seed = seed::shared_seed(host).map_err(|Contended| {
            "shared data could not be written: all attempts were contended".to_owned()
        })?;
        for line in kind.limits().into_iter().chain(config.warnings()) {
            once::warn(host, &line);
        }
        let (rng, vm) = (Rng::new(host.entropy()), host.entropy());
        let mut compiler = Compiler::new(&config, seed, host);
        let routes = compiler.routes();
        let Compiler {
            logs,
            upstreams,
            concurrency,
            breakers,
            ..
        } = compiler;
        let checks = Checks::new(&upstreams, vm, &logs, host);
        let asking = Asking::new(&config.upstreams, vm, &logs, host)?;
        let metrics = MetricTable(host);
        for switch in &config.switches {
            host.record(metrics.switch_on(&switch.name), switch.on.into());
        }
        let now = host.monotonic();
        upstreams
            .iter()
            .for_each(|upstream| upstream.refresh(host, now));
        breakers
            .iter()
            .for_each(|breaker| _ = breaker.refresh(host, now, None));
        let reserved_headers = reserved::reserved_headers(&config);
        let single = SingleValues::new(&config);
        Ok(Self {
            watched: reserved::watched(&config, &reserved_headers, &single),
            reserved_headers,
            single,
            path_parameters: config.path_parameters,
            bridge: Bridge::new(seed),
            bodies: Cell::new(Bodies::Unknown(0)),
            exceptions: Exceptions::new(config.outcomes),
            said_forgeable: Cell::new(false),
            service: config.service,
            probes: config.health,
            client_ip: config.client_ip,
            seed,
            trust_client_retry_headers: config.trust_client_retry_headers,
            blind: config.request_headers == RequestHeaders::Ignore,
            ready: ReadyReplies::default(),
            route_index: RouteIndex::new(routes.iter().map(|route| &route.config.matcher)),
            routes,
            upstreams,
            breakers,
            concurrency,
            rng,
            kind,
            vm,
            tick_at: Cell::new(0),
            logs,
            checks: (!checks.is_empty()).then_some(checks),
            asking: (!asking.is_empty()).then_some(asking),
            lingering: Lingering::default(),
            serving: config.serve_endpoints.then(|| Serving::new(host)),
            ended: Cell::new(None),
            newest: Cell::new(now),
            dates_exactly: config
                .circuit_breakers
                .iter()
                .any(|it| circuit_breaker::bucket(it.window) < TICK),
        })
    }

    /// Does what no request does: corrects views and gauges that a lost VM may have left wrong.
    /// What is too much for one tick is left to the next.
    pub fn tick<H: Host>(&self, host: &H) {
        let now = self.now(host);
        self.lingering.release_due(host, now);
        // All of them in each tick: a VM without a report is taken for lost.
        for limit in &self.concurrency {
            limit.maintain(host, now, self.vm);
        }
        self.breakers.iter().for_each(|it| it.flush(host, now));
        for upstream in &self.upstreams {
            upstream.flush(host, now);
            upstream.report_in_flight(host, now, self.vm, false);
            upstream.follow_source(host, now);
        }
        for route in &self.routes {
            if let Some(retry) = &route.retry {
                let totals = retry.totals(route, host);
                retry.budget.with(|budget| budget.sample(now, totals));
            }
        }
        self.logs.report_withheld();
        self.refresh_some(host, now);
    }

    /// Reads the clock.
    fn now<H: Host>(&self, host: &H) -> Moment {
        let now = host.monotonic();
        self.newest.set(now);
        now
    }

    /// Gives back what is held without a request. The configuration is in use no more.
    pub fn close<H: Host>(&self, host: &H) {
        self.lingering.release_all(host);
        let now = host.monotonic();
        self.breakers.iter().for_each(|it| it.flush(host, now));
        self.concurrency.iter().for_each(|it| it.close(host));
        self.upstreams.iter().for_each(|it| it.close(host, now));
    }

    /// Reads some of the upstreams and breakers anew, in turn.
    fn refresh_some<H: Host>(&self, host: &H, now: Moment) {
        let upstreams = self.upstreams.iter().map(Refreshed::Upstream);
        let breakers = self.breakers.iter().map(Refreshed::Breaker);
        let all = upstreams.chain(breakers).enumerate();
        let count = self.upstreams.len().saturating_add(self.breakers.len());
        let mut work = 0usize;
        for (at, it) in all.cycle().skip(self.tick_at.get()).take(count) {
            let done = match it {
                Refreshed::Upstream(upstream) => {
                    upstream.report_in_flight(host, now, self.vm, true);
                    upstream.refresh_some(host, now)
                }
                Refreshed::Breaker(breaker) => {
                    breaker.refresh(host, now, None);
                    1
                }
            };
            let next = at.saturating_add(1);
            self.tick_at.set(if next < count { next } else { 0 });
            work = work.saturating_add(done);
            if work >= TICK_WORK {
                break;
            }
        }
    }

    /// Takes what the source of an upstream's endpoints has said, or has not. `None`: no upstream
    /// of this name has a source.
    pub fn report<H: Host>(&self, host: &H, upstream: &str, report: &Report) -> Option<Reported> {
        let mut upstreams = self.upstreams.iter();
        self.hear(
            host,
            upstreams.position(|it| it.config.name == upstream)?,
            report,
        )
    }

    /// The same for the upstream of this place.
    fn hear<H: Host>(&self, host: &H, at: usize, report: &Report) -> Option<Reported> {
        let discovery = self.upstreams.get(at)?.discovery()?;
        Some(discovery.report(host, self.now(host), report))
    }

    /// Whether [`Engine::check`] has anything to do.
    #[must_use]
    pub const fn has_checks(&self) -> bool {
        self.checks.is_some() || self.asking.is_some()
    }

    /// Checks the endpoints that are due, and asks for them, if this is the VM that does. Returns
    /// when it has to be called again; `None`: never.
    pub fn check<H: Host + Calls>(&self, host: &H, now: Moment) -> Option<Moment> {
        let checks = self.checks.as_ref().map(|checks| checks.run(host, now));
        let sink = |at, report: Report| {
            let heard = self.hear(host, at, &report);
            heard.unwrap_or(Reported::Late)
        };
        let asking = self.asking.as_ref().map(|it| it.run(host, now, &sink));
        checks.into_iter().chain(asking).min()
    }

    /// How much of an answer to a call of [`Engine::check`] is wanted at most, in bytes.
    #[must_use]
    pub fn longest_answer(&self, id: CallId) -> usize {
        match &self.asking {
            Some(asking) if asking.has_asked(id) => answer::MAX_BYTES,
            _ => report::MAX_BYTES,
        }
    }

    /// A call that [`Engine::check`] has made was answered.
    pub fn answered<H: Host>(&self, host: &H, id: CallId, answer: &CallAnswer, now: Moment) {
        if let Some(checks) = &self.checks {
            checks.answered(host, id, answer, now);
        }
        if let Some(asking) = &self.asking {
            let sink = |at, report: Report| {
                let heard = self.hear(host, at, &report);
                heard.unwrap_or(Reported::Late)
            };
            asking.answered(host, id, answer, now, &sink);
        }
    }
}

/// What a tick reads anew.
#[derive(Clone, Copy)]
enum Refreshed<'e> {
    Upstream(&'e Rc<Upstream>),
    Breaker(&'e Rc<Breaker>),
}
