//! From the configuration to what requests work with.

use super::breaker::{Breaker, BreakerSubject};
use super::chain;
use super::concurrency::Concurrency;
use super::metrics::MetricTable;
use super::route::{Binding, Canary, FallbackBinding, Limit, Retries, Route, Shared};
use super::{CLUSTER_HEADER, Engine};
use crate::base::hash::Seed;
use crate::base::headers::NameSet;
use crate::base::time::Nanos;
use crate::config::{
    self, BalancePolicy, BreakerScope, Config, FallbackStep, KeyPart, Mode, RejectBelow,
    RequestTimeout,
};
use crate::host::{Host, MetricId};
use crate::policy::concurrency::adaptive::USUAL_DEADLINE;
use crate::policy::rate_limit::RateLimit;
use crate::policy::retry::Budget;
use crate::policy::{self, fallback};
use crate::request::Reason;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};
use std::cell::RefCell;
use std::rc::Rc;

impl Engine {
    /// Compiles what becomes of the requests that a route's canary has, if it has one.
    pub(super) fn compile_canary<H: Host>(
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
        let counters = [upstream, other]
            .map(|it| MetricTable(host).canary_requests(&route.name, &it.name, mode));
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
    pub(super) fn compile_route<H: Host>(
        &mut self,
        config: &Config,
        route: &config::Route,
        at: [usize; 2],
        seed: Seed,
        instances: &mut Vec<((usize, bool), usize)>,
        host: &H,
    ) -> Route {
        let names = MetricTable(host);
        let route_mode = route.mode.unwrap_or(config.mode);
        let mode_of = |own: Option<Mode>| own.unwrap_or(route_mode);
        let switched_off = route.switch.and_then(|at| {
            let switch = config.switches.get(at).filter(|switch| !switch.on)?;
            (route_mode != Mode::Off).then(|| Binding {
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
            limits.push(Binding {
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
                    (BreakerScope::Upstream, Some(upstream)) => {
                        BreakerSubject::Upstream(&upstream.name)
                    }
                    (_, Some(upstream)) if is_canary => {
                        BreakerSubject::Canary(&route.name, &upstream.name)
                    }
                    _ => BreakerSubject::Route(&route.name),
                };
                let at = self.breaker(breaker, subject, mode, host);
                Some(Binding {
                    at,
                    mode,
                    refusals: refusals(&breaker.name, Reason::CircuitOpen, mode),
                })
            });
        let upstream = route.upstream.and_then(|at| {
            let upstream = config.upstreams.get(at)?;
            let mode = mode_of(upstream.mode);
            (mode != Mode::Off).then(|| Binding {
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
            let (Binding { mode, .. }, component) = (upstream?, check?.components.get(*at)?);
            Some(Binding {
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
            (mode != Mode::Off).then(|| FallbackBinding {
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
        let deadline = (route_mode != Mode::Off).then(|| Binding {
            at: 0,
            mode: route_mode,
            refusals: names.decisions(&route.name, chain::DEADLINE, Reason::Deadline, route_mode),
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
    pub(super) fn concurrency<H: Host>(
        &mut self,
        config: &Config,
        route: &config::Route,
        limit: Option<usize>,
        subject: [&str; 2],
        mode: Mode,
        host: &H,
    ) -> Option<Binding> {
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
        Some(Binding {
            at,
            mode,
            refusals: MetricTable(host).decisions(&route.name, &limit.name, Reason::Overload, mode),
        })
    }

    /// The breaker of this subject: routes of one upstream may share one.
    pub(super) fn breaker<H: Host>(
        &mut self,
        config: &config::CircuitBreaker,
        subject: BreakerSubject<'_>,
        mode: Mode,
        host: &H,
    ) -> usize {
        let breaker = Breaker::new(config, subject, mode, &self.logs, &mut self.counters, host);
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
pub(super) fn same_components(
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
pub(super) fn deadline(route: &config::Route) -> Nanos {
    route
        .timeout
        .request
        .map_or(USUAL_DEADLINE, RequestTimeout::longest)
}

/// Headers by which Envoy's router is steered. It drops a client's own only if it takes the client
/// for external, which one on the proxy's own machine is not.
pub(super) const ROUTER_HEADERS: &[&str] = &[
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
pub(super) fn cluster(config: &Config, route: &config::Route) -> Option<String> {
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

pub(super) fn reserved_headers(trust_client_retry_headers: bool) -> NameSet {
    let router_headers = if trust_client_retry_headers {
        &[]
    } else {
        ROUTER_HEADERS
    };
    let mut names = NameSet::default();
    [CLUSTER_HEADER]
        .iter()
        .chain(router_headers)
        .for_each(|name| names.add(name));
    names
}

/// Keeps the state of shadow uses apart from that of enforced ones.
pub(super) const fn namespace(mode: Mode) -> &'static str {
    match mode {
        Mode::Shadow => "shadow",
        Mode::Enforce | Mode::Off => "",
    }
}

/// The secret of key hashes, made by the first worker and shared by all.
pub(super) fn shared_seed<H: Host>(host: &H) -> Result<Seed, Contended> {
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
