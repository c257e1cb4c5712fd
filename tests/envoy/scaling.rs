//! Scaling up and down under load: endpoints come and go, and no request is lost, whoever names
//! them.
//!
//! Each test goes from 3 endpoints to 30 and back; those that went are closed before the next turn.
//! `HAVEN_SCALING_SECONDS` has it go on for so long (`make test-envoy ONLY=scaling SCALING=120`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::filter::{assert_sound, nothing_in_flight};
use crate::support::config::socket_address;
use crate::support::consul::{Consul, instance};
use crate::support::dns::Dns;
use crate::support::etcd::Etcd;
use crate::support::open_loop::{self, Outcome};
use crate::support::{
    Client, Cluster, Dir, Envoy, EnvoyConfig, Retry, Route, Upstream, haven_upstream, run_alone,
    wait_for,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The most endpoints, and the fewest.
const MOST: usize = 30;
const FEWEST: usize = 3;

/// Requests a second.
const RATE: u32 = 500;

/// Whoever gets nothing for so long gets nothing any more: at this rate each of 30 endpoints is asked
/// every 60 ms.
const SILENCE: Duration = Duration::from_millis(800);

/// Endpoints at one port, as DNS wants them, each at an IP of its own.
struct Fleet(Vec<Upstream>);

impl Fleet {
    async fn start() -> Self {
        // Somebody may have the port at one of the IPs: then another is tried.
        for _ in 0..20 {
            let (mut all, mut port) = (Vec::new(), 0);
            while all.len() < MOST {
                let host = u8::try_from(all.len() + 1).unwrap();
                let options = haven_upstream::Options {
                    listen: SocketAddr::from((Ipv4Addr::new(127, 0, 7, host), port)),
                    name: host.to_string(),
                    ..haven_upstream::Options::default()
                };
                let Ok(upstream) = Upstream::try_start_with(options).await else {
                    break;
                };
                port = upstream.addr().port();
                all.push(upstream);
            }
            if all.len() == MOST {
                return Self(all);
            }
        }
        panic!("no port is free at {MOST} addresses");
    }

    fn addrs(&self, count: usize) -> Vec<SocketAddr> {
        self.0[..count].iter().map(|it| it.addr()).collect()
    }

    fn port(&self) -> u16 {
        self.0[0].addr().port()
    }

    fn requests(&self) -> Vec<u64> {
        let counters = self.0.iter().map(|it| it.counters());
        counters.map(|it| it.requests).collect()
    }

    /// Opens or closes all but the first.
    async fn close(&self, is_closed: bool) {
        for upstream in &self.0[FEWEST..] {
            upstream.set(|faults| faults.close = is_closed).await;
        }
    }
}

/// Who names the endpoints.
enum Registry {
    Dns(Dns),
    File(File),
    Etcd(Box<Etcd>, Vec<SocketAddr>),
    Consul(Consul, Vec<SocketAddr>),
}

impl Registry {
    async fn set(&mut self, endpoints: &[SocketAddr]) {
        match self {
            Self::Dns(dns) => dns.set(&ips(endpoints)).await,
            Self::File(file) => file.set(endpoints),
            Self::Etcd(etcd, known) => {
                for gone in known.iter().filter(|it| !endpoints.contains(it)) {
                    etcd.delete(&key(*gone)).await;
                }
                for new in endpoints.iter().filter(|it| !known.contains(it)) {
                    etcd.put(&key(*new), &new.to_string()).await;
                }
                *known = endpoints.to_vec();
            }
            Self::Consul(consul, known) => {
                for gone in known.iter().filter(|it| !endpoints.contains(it)) {
                    consul.deregister(&gone.to_string());
                }
                for new in endpoints.iter().filter(|it| !known.contains(it)) {
                    consul.register(&new.to_string(), &instance("users", *new));
                }
                *known = endpoints.to_vec();
            }
        }
    }

    /// In which time endpoints come and go, where the machine has nothing else to do.
    const fn promised(&self) -> Duration {
        match self {
            // Envoy asks DNS each second.
            Self::Dns(_) | Self::Etcd(..) | Self::Consul(..) => Duration::from_secs(3),
            Self::File(_) => Duration::from_secs(2),
        }
    }
}

fn ips(endpoints: &[SocketAddr]) -> Vec<IpAddr> {
    endpoints.iter().map(SocketAddr::ip).collect()
}

fn key(endpoint: SocketAddr) -> String {
    format!("/services/users/{endpoint}")
}

/// Endpoint discovery of Envoy's by a file.
struct File {
    dir: Dir,
    version: u64,
}

impl File {
    fn new(endpoints: &[SocketAddr]) -> Self {
        let mut it = Self {
            dir: Dir::new().unwrap(),
            version: 0,
        };
        it.set(endpoints);
        it
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("eds.json")
    }

    fn set(&mut self, endpoints: &[SocketAddr]) {
        self.version += 1;
        let members = endpoints.iter();
        let members: Vec<Value> = members
            .map(|it| json!({"endpoint": {"address": socket_address(*it)}}))
            .collect();
        let assignment = json!({
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "users",
            "endpoints": [{"lb_endpoints": members}],
        });
        let text = json!({"version_info": self.version.to_string(), "resources": [assignment]});
        let next = self.dir.path().join("next.json");
        std::fs::write(&next, text.to_string()).unwrap();
        std::fs::rename(next, self.path()).unwrap();
    }
}

/// Requests at the rate, until they are stopped.
struct Load {
    begin: Instant,
    clients: Vec<Client>,
    parts: Vec<JoinHandle<Vec<Outcome>>>,
    sent: u32,
}

impl Load {
    fn new(envoy: &Envoy) -> Self {
        let clients = (0..8).map(|number| {
            if number % 2 == 0 {
                envoy.h1()
            } else {
                envoy.h2()
            }
        });
        Self {
            begin: Instant::now(),
            clients: clients.collect(),
            parts: Vec::new(),
            sent: 0,
        }
    }

    /// Has it go on until so long after its beginning, at least.
    fn until(&mut self, end: Duration) {
        let first = self.sent;
        let last = u32::try_from(end.as_millis()).unwrap() * RATE / 1000;
        if last <= first {
            return;
        }
        self.sent = last;
        let (clients, begin) = (self.clients.clone(), self.begin);
        self.parts.push(tokio::spawn(async move {
            let requests = (first..last).map(|number| open_loop::Request {
                at: Duration::from_secs(1) / RATE * number,
                client: number as usize % clients.len(),
                method: "GET",
                path: "/".to_owned(),
                headers: Vec::new(),
                patience: Duration::from_secs(10),
            });
            open_loop::send(&clients, requests, begin).await
        }));
    }

    /// Keeps it going for another second.
    fn go_on(&mut self) {
        self.until(self.begin.elapsed() + Duration::from_secs(1));
    }

    /// Waits until it has ended; panics if a request was lost.
    async fn end(self, what: &str) {
        let mut lost = Vec::new();
        for part in self.parts {
            let outcomes = part.await.unwrap();
            lost.extend(outcomes.into_iter().filter(|it| !it.answered()));
        }
        assert!(
            lost.is_empty(),
            "{what}: {} of {} requests were lost: {:?}",
            lost.len(),
            self.sent,
            &lost[..lost.len().min(5)]
        );
        println!("{what}: all of {} requests were answered", self.sent);
    }
}

/// Waits until each of the first `count` endpoints has got requests, and none of the others gets any;
/// says when the last new one got its first, and the last other its last.
async fn follows(load: &mut Load, fleet: &Fleet, count: usize) -> [Duration; 2] {
    let began = Instant::now();
    let before = fleet.requests();
    let mut last = before.clone();
    let (mut all, mut silent_since) = (None, began);
    wait_for("the endpoints get what they are to get", async || {
        load.go_on();
        let now = fleet.requests();
        if now[count..] != last[count..] {
            silent_since = Instant::now();
        }
        let got = now[..count]
            .iter()
            .zip(&before)
            .all(|(now, before)| now > before);
        if got && all.is_none() {
            all = Some(began.elapsed());
        }
        last = now;
        all.is_some() && silent_since.elapsed() > SILENCE
    })
    .await;
    [all.unwrap(), silent_since - began]
}

/// The filter with these endpoints of its upstream.
fn filter(endpoints: &Value) -> Value {
    let mut users = json!({"circuit_breaker": "endpoint"});
    if !endpoints.is_null() {
        users["endpoints"] = endpoints.clone();
    }
    json!({
        "discovery": {"envoy_admin": "haven-admin"},
        "upstreams": {"users": users},
        "circuit_breakers": {"endpoint": {"consecutive_failures": 5, "open_duration": "2s"}},
        "routes": [{"name": "users", "upstream": "users", "timeout": {"request": "5s"},
                    "retry": {"attempts": 2, "min_per_second": 100}}],
    })
}

fn envoy(cluster: Cluster, endpoints: &Value) -> EnvoyConfig {
    let retry = Retry {
        back_off: Some([5, 20].map(Duration::from_millis)),
        ..Retry::default()
    };
    EnvoyConfig::empty()
        .cluster(cluster)
        .route(Route::to("/", "users").retry(&retry))
        .admin_cluster()
        .haven(&filter(endpoints))
}

async fn is_ready(envoy: &Envoy) {
    let client = Client::h1_fresh(envoy.addr());
    wait_for("it is ready", async || {
        client.get("/readyz").await.is_ok_and(|it| it.status == 200)
    })
    .await;
}

/// For how long the loop goes on.
fn patience() -> Duration {
    let seconds = std::env::var("HAVEN_SCALING_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|it| it.parse().ok()).unwrap_or(0))
}

/// Goes from the fewest endpoints to the most and back, at least once.
async fn scale(what: &str, registry: &mut Registry, fleet: &Fleet, envoy: &Envoy) {
    is_ready(envoy).await;
    let mut load = Load::new(envoy);
    follows(&mut load, fleet, FEWEST).await;
    let began = Instant::now();
    let (mut turns, mut worst) = (0, [Duration::ZERO; 2]);
    while turns == 0 || began.elapsed() < patience() {
        fleet.close(false).await;
        registry.set(&fleet.addrs(MOST)).await;
        let [new, _] = follows(&mut load, fleet, MOST).await;
        registry.set(&fleet.addrs(FEWEST)).await;
        let [_, gone] = follows(&mut load, fleet, FEWEST).await;
        fleet.close(true).await;
        worst = [worst[0].max(new), worst[1].max(gone)];
        turns += 1;
    }
    follows(&mut load, fleet, FEWEST).await;
    load.end(what).await;
    println!(
        "{what}: {turns} times from {FEWEST} to {MOST} endpoints and back; each new one had requests \
         after {:?} at the latest, the last gone one none after {:?}; promised are {:?}",
        worst[0],
        worst[1],
        registry.promised()
    );
}

#[test]
fn endpoints_from_dns_come_and_go() {
    run_alone(async {
        let fleet = Fleet::start().await;
        let dns = Dns::start("users.test", &ips(&fleet.addrs(FEWEST))).await;
        let name = json!({"socket_address": {"address": "users.test", "port_value": fleet.port()}});
        let resolver = json!({"name": "envoy.network.dns_resolver.cares", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [socket_address(dns.addr())]}});
        let cluster = Cluster::new("users", []).with(&json!({
            "type": null,
            "cluster_type": {"name": "envoy.cluster.dns", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster",
                "dns_refresh_rate": "1s",
                "dns_lookup_family": "V4_ONLY",
                "typed_dns_resolver_config": resolver}},
            "load_assignment": {"cluster_name": "users",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": name}}]}]},
        }));
        let mut envoy = Envoy::start(self::envoy(cluster, &Value::Null)).await;
        let mut registry = Registry::Dns(dns);
        scale("DNS", &mut registry, &fleet, &envoy).await;
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn endpoints_from_eds_by_a_file_come_and_go() {
    run_alone(async {
        let fleet = Fleet::start().await;
        let file = File::new(&fleet.addrs(FEWEST));
        let cluster = Cluster::new("users", []).with(&json!({
            "type": "EDS",
            "load_assignment": null,
            "eds_cluster_config": {"eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": file.path(),
                    "watched_directory": {"path": file.dir.path()}},
            }},
        }));
        let mut envoy = Envoy::start(self::envoy(cluster, &Value::Null)).await;
        let mut registry = Registry::File(file);
        scale("EDS by a file", &mut registry, &fleet, &envoy).await;
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

/// An etcd with the fewest endpoints, and an Envoy whose haven reads them there.
async fn with_etcd(fleet: &Fleet) -> (Registry, Envoy) {
    let etcd = Etcd::start().await;
    let cluster = Cluster::served("users", Duration::from_millis(500));
    let source = json!({"etcd": {"cluster": "etcd", "prefix": "/services/users/"}});
    let config = envoy(cluster, &source)
        .cluster(Cluster::new("etcd", [etcd.addr()]).plain())
        .serves_endpoints(&["users"]);
    let mut registry = Registry::Etcd(Box::new(etcd), Vec::new());
    registry.set(&fleet.addrs(FEWEST)).await;
    (registry, Envoy::start(config).await)
}

#[test]
fn endpoints_from_etcd_come_and_go() {
    run_alone(async {
        let fleet = Fleet::start().await;
        let (mut registry, mut envoy) = with_etcd(&fleet).await;
        scale("etcd", &mut registry, &fleet, &envoy).await;
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn endpoints_from_consul_come_and_go() {
    run_alone(async {
        let fleet = Fleet::start().await;
        let consul = Consul::start().await;
        let cluster = Cluster::served("users", Duration::from_millis(500));
        let source = json!({"consul": {"cluster": "consul", "service": "users"}});
        let config = envoy(cluster, &source)
            .cluster(Cluster::new("consul", [consul.addr()]).plain())
            .serves_endpoints(&["users"]);
        let mut registry = Registry::Consul(consul, Vec::new());
        registry.set(&fleet.addrs(FEWEST)).await;
        let mut envoy = Envoy::start(config).await;
        scale("Consul's stand-in", &mut registry, &fleet, &envoy).await;
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn etcd_may_go_and_come_back_and_endpoints_end_with_their_leases() {
    run_alone(async {
        let fleet = Fleet::start().await;
        let (registry, mut envoy) = with_etcd(&fleet).await;
        let Registry::Etcd(mut etcd, _) = registry else {
            unreachable!("with etcd");
        };
        is_ready(&envoy).await;
        let mut load = Load::new(&envoy);
        follows(&mut load, &fleet, FEWEST).await;
        // One more, for as long as somebody keeps its lease alive.
        let lease = etcd.lease(2).await;
        let leased = fleet.addrs(FEWEST + 1)[FEWEST];
        etcd.put_leased(&key(leased), &leased.to_string(), &lease)
            .await;
        let before = fleet.requests()[FEWEST];
        wait_for("the leased one gets requests", async || {
            load.go_on();
            fleet.requests()[FEWEST] > before
        })
        .await;
        follows(&mut load, &fleet, FEWEST).await;
        etcd.kill();
        let errors = async || {
            let labels = [("upstream", "users"), ("result", "error")];
            envoy
                .metrics()
                .await
                .total("haven_discovery_updates_total", &labels)
        };
        let known = errors().await;
        wait_for("haven has missed it", async || {
            load.go_on();
            errors().await >= known + 3.0
        })
        .await;
        follows(&mut load, &fleet, FEWEST).await;
        etcd.revive().await;
        etcd.put(&key(leased), &leased.to_string()).await;
        follows(&mut load, &fleet, FEWEST + 1).await;
        load.end("etcd lost").await;
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}
