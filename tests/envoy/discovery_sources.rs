//! Who names endpoints, asked by the filter in a real Envoy: Envoy itself over a unix socket, a real
//! etcd, a stand-in for Consul. Envoy's own cluster has all endpoints here, so that it shows which
//! ones haven knows: it steers to no others.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::support::config::haven_filter;
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::{
    Client, Cluster, Dir, Envoy, EnvoyConfig, Reserved, Route, Upstream, haven_wasm, run, wait_for,
};
use serde_json::{Value, json};

/// An Envoy that has all endpoints, and a filter that is to hear of them.
struct World {
    /// They end with it.
    _upstreams: Vec<Upstream>,
    envoy: Envoy,
    clients: Vec<Client>,
}

fn filter(source: &Value) -> Value {
    json!({
        "discovery": {"envoy_admin": "haven-admin"},
        "upstreams": {"users": {"endpoints": source, "load_balancer": {"policy": "round_robin"}}},
        "routes": [{"name": "users", "upstream": "users"}],
    })
}

impl World {
    async fn start(upstreams: Vec<Upstream>, source: &Value, cluster: Cluster) -> Self {
        let all: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        let config = EnvoyConfig::proxy(all).cluster(cluster).balanced();
        let envoy = Envoy::start(config.haven(&filter(source))).await;
        Self::of(upstreams, envoy)
    }

    fn of(upstreams: Vec<Upstream>, envoy: Envoy) -> Self {
        let clients = (0..8).map(|_| envoy.h1()).collect();
        Self {
            _upstreams: upstreams,
            envoy,
            clients,
        }
    }

    /// Waits until all workers send to exactly these.
    async fn send_to(&self, wanted: &[&str]) {
        wait_for(&format!("all workers send to {wanted:?}"), async || {
            served(&self.clients).await == wanted.iter().map(|it| (*it).to_owned()).collect()
        })
        .await;
    }

    async fn updates(&self, result: &str) -> f64 {
        let labels = [("upstream", "users"), ("result", result)];
        let found = self.envoy.metric("haven_discovery_updates_total", &labels);
        found.await.unwrap_or(0.0)
    }

    async fn counts(&self, result: &str) {
        let before = self.updates(result).await;
        wait_for(result, async || self.updates(result).await > before).await;
    }
}

/// Who answers, over all connections: each worker has two.
async fn served(clients: &[Client]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for client in clients {
        for _ in 0..8 {
            let reply = client.get("/echo").await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            names.insert(reply.json()["upstream"].as_str().unwrap().to_owned());
        }
    }
    names
}

async fn four() -> Vec<Upstream> {
    let mut all = Vec::new();
    for name in ["a", "b", "c", "d"] {
        all.push(Upstream::start(name).await);
    }
    all
}

#[test]
fn keys_of_etcd_are_followed_as_they_come_and_go() {
    run(async {
        let mut etcd = Etcd::start().await;
        let upstreams = four().await;
        let addr = |at: usize| upstreams[at].addr().to_string();
        let (a, b, c, d) = (addr(0), addr(1), addr(2), addr(3));
        etcd.put("/users/1", &a).await;
        etcd.put(
            "/users/2",
            &json!({"address": b, "weight": 2, "zone": "z"}).to_string(),
        )
        .await;
        etcd.put("/users0", "not.one.of:them").await;
        let source = json!({"etcd": {"cluster": "etcd", "prefix": "/users/"}});
        let cluster = Cluster::new("etcd", [etcd.addr()]).plain();
        let world = World::start(upstreams, &source, cluster).await;
        world.send_to(&["a", "b"]).await;
        etcd.put("/users/3", &c).await;
        world.send_to(&["a", "b", "c"]).await;
        etcd.delete("/users/1").await;
        world.send_to(&["b", "c"]).await;
        // A lease that is not renewed.
        let lease = etcd.lease(2).await;
        etcd.put_leased("/users/4", &d, &lease).await;
        world.send_to(&["b", "c", "d"]).await;
        world.send_to(&["b", "c"]).await;
        // One that cannot be used changes nothing, and the log says where.
        etcd.put("/users/5", "users.local:80").await;
        world.counts("refused").await;
        let log = world.envoy.logs();
        assert!(log.contains("key \"/users/5\""), "{log}");
        world.send_to(&["b", "c"]).await;
        etcd.delete("/users/5").await;
        // Killed, and back with what it had.
        etcd.kill();
        world.counts("error").await;
        world.send_to(&["b", "c"]).await;
        etcd.revive().await;
        etcd.put("/users/1", &a).await;
        world.send_to(&["a", "b", "c"]).await;
        // All older revisions are compacted away.
        let found = etcd.ask("/v3/kv/range", &json!({"key": "AA=="})).await;
        let revision = found["header"]["revision"].clone();
        etcd.ask("/v3/kv/compaction", &json!({"revision": revision}))
            .await;
        etcd.put("/users/4", &d).await;
        world.send_to(&["a", "b", "c", "d"]).await;
    });
}

/// The mission's own definition: name, address, port, a check each 10 s.
fn definition(addr: SocketAddr) -> Value {
    json!({"Name": "user-service", "Address": addr.ip().to_string(), "Port": addr.port(),
        "Tags": ["v1"], "Meta": {"zone": "a"},
        "Check": {"HTTP": format!("http://{addr}/health"), "Interval": "10s"}})
}

#[test]
fn instances_in_consul_are_followed_by_blocking_queries() {
    run(async {
        let mut consul = Consul::start().await;
        consul.demand("s3cret-token");
        let upstreams = four().await;
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        for (id, addr) in ["1", "2", "3"].into_iter().zip(&addrs) {
            consul.register(id, &definition(*addr));
        }
        let source = json!({"consul": {"cluster": "consul", "service": "user-service", "tag": "v1",
            "token_env": "CONSUL_TOKEN", "wait": "5s"}});
        let cluster = Cluster::new("consul", [consul.addr()]).plain();
        let all: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        let config = EnvoyConfig::proxy(all).cluster(cluster).balanced();
        let config = config.variable("CONSUL_TOKEN", "s3cret-token");
        let envoy = Envoy::start(config.haven(&filter(&source))).await;
        let world = World::of(upstreams, envoy);
        world.send_to(&["a", "b", "c"]).await;
        consul.register("4", &definition(addrs[3]));
        world.send_to(&["a", "b", "c", "d"]).await;
        consul.deregister("1");
        world.send_to(&["b", "c", "d"]).await;
        consul.set_check("2", "critical");
        world.send_to(&["c", "d"]).await;
        consul.set_check("2", "passing");
        world.send_to(&["b", "c", "d"]).await;
        consul.break_with(Some((500, "s3cret-token")));
        world.counts("error").await;
        world.send_to(&["b", "c", "d"]).await;
        consul.break_with(None);
        consul.kill();
        world.counts("error").await;
        // Its index begins anew.
        consul.revive().await;
        consul.register("1", &definition(addrs[0]));
        world.send_to(&["a", "b", "c", "d"]).await;
        let queries = consul.queries();
        let waiting = queries.iter().filter(|it| it.contains("index=")).count();
        assert!(waiting > 3, "{queries:?}");
        let log = world.envoy.logs();
        let metrics = world.envoy.admin_get("/stats").await;
        assert!(
            !log.contains("s3cret") && !metrics.contains("s3cret"),
            "{log}"
        );
    });
}

/// Endpoints by a file that Envoy watches.
fn eds_file(dir: &Dir, hosts: &[(SocketAddr, &str)]) {
    let endpoint = |(addr, health): &(SocketAddr, &str)| {
        json!({"health_status": health, "endpoint": {"address": {"socket_address":
            {"address": addr.ip().to_string(), "port_value": addr.port()}}}})
    };
    let hosts: Vec<_> = hosts.iter().map(endpoint).collect();
    let text = json!({"resources": [{
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "users", "endpoints": [{"lb_endpoints": hosts}]}]});
    let (new, path) = (dir.path().join("new"), dir.path().join("eds.json"));
    std::fs::write(&new, text.to_string()).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn what_feeds_envoys_own_cluster_feeds_haven() {
    run(async {
        let upstreams = four().await;
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        let dir = Dir::new().unwrap();
        let of = |at: usize| (addrs[at], "HEALTHY");
        eds_file(&dir, &[of(0), of(1)]);
        let source = json!({"resource_api_version": "V3",
            "path_config_source": {"path": dir.path().join("eds.json")}});
        let users = Cluster::new("users", []).with(&json!({"type": "EDS", "load_assignment": null,
            "eds_cluster_config": {"eds_config": source}}));
        let config = EnvoyConfig::empty()
            .cluster(users)
            .route(Route::to("/", "users"))
            .admin_cluster()
            .balanced();
        let mut filter = filter(&json!({}));
        filter["upstreams"]["users"]
            .as_object_mut()
            .unwrap()
            .remove("endpoints");
        let world = World::of(upstreams, Envoy::start(config.haven(&filter)).await);
        world.send_to(&["a", "b"]).await;
        eds_file(&dir, &[of(0), of(1), of(2), of(3)]);
        world.send_to(&["a", "b", "c", "d"]).await;
        eds_file(
            &dir,
            &[
                of(1),
                (addrs[2], "DRAINING"),
                (addrs[3], "UNHEALTHY"),
                of(0),
            ],
        );
        world.send_to(&["a", "b"]).await;
        eds_file(&dir, &[of(2), of(3), of(1)]);
        world.send_to(&["b", "c", "d"]).await;
    });
}

/// No port is open for the admin interface, and none is needed.
#[test]
fn the_admin_interface_is_asked_over_a_unix_socket() {
    run(async {
        let upstreams = four().await;
        let dir = Dir::new().unwrap();
        let (socket, at) = (
            dir.path().join("admin.sock"),
            Reserved::new([127, 0, 0, 1].into()),
        );
        let endpoint = |it: &Upstream| {
            json!({"endpoint": {"address": {"socket_address":
                {"address": it.addr().ip().to_string(), "port_value": it.addr().port()}}}})
        };
        let hosts: Vec<_> = upstreams.iter().map(endpoint).collect();
        let pipe = json!({"pipe": {"path": &socket}});
        let wasm = haven_wasm().unwrap().display().to_string();
        let filter =
            json!({"discovery": {"envoy_admin": "haven-admin"}, "upstreams": {"users": {}}});
        let haven = haven_filter(&wasm, &filter.to_string(), false);
        let router = json!({"name": "router", "typed_config": {"@type":
            "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
        let manager = json!({"name": "hcm", "typed_config": {"@type":
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in", "http_filters": [haven, router], "route_config": {"virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "users"}}]}]}}});
        let cluster = |name: &str, hosts: &[Value]| {
            json!({"name": name, "load_assignment":
            {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}})
        };
        let admin = json!({"endpoint": {"address": pipe}});
        let config = json!({"admin": {"address": pipe}, "static_resources": {
            "listeners": [{"name": "in", "filter_chains": [{"filters": [manager]}],
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": at.addr.port()}}}],
            "clusters": [cluster("users", &hosts), cluster("haven-admin", &[admin])]}});
        let path = dir.path().join("bootstrap.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut envoy = std::process::Command::new(crate::support::envoy_binary().unwrap())
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "2",
                "--log-level",
                "error",
                "-c",
            ])
            .arg(&path)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let client = Client::h1_fresh(at.addr);
        wait_for("the source of the endpoints has answered", async || {
            let reply = client.get("/readyz").await;
            reply
                .is_ok_and(|it| it.status == 200 && it.json()["details"]["users"]["source"] == "ok")
        })
        .await;
        let _ = (envoy.kill(), envoy.wait());
    });
}
