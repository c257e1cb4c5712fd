//! What the resources of deploy/ make of Envoy's cluster, in a real Envoy. The controllers that
//! apply them are not run: the tests put the patches where they say.

use crate::support::{Client, Envoy, EnvoyConfig, Upstream, checkout, haven_wasm, run};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The resources in a file.
fn resources(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(checkout(file)).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn kind<'a>(all: &'a [Value], kind: &str) -> &'a Value {
    all.iter().find(|one| one["kind"] == kind).unwrap()
}

fn cluster(name: &str, addrs: &[SocketAddr]) -> Value {
    let endpoint = |addr: &SocketAddr| json!({"endpoint": {"address": {"socket_address": {"address": addr.ip().to_string(), "port_value": addr.port()}}}});
    json!({
        "name": name, "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": addrs.iter().map(endpoint).collect::<Vec<_>>()}]},
    })
}

/// An Envoy with this filter before everything, and one cluster for all.
fn bootstrap(plugin: &Value, cluster: &Value, stats: &Value) -> EnvoyConfig {
    let local = json!({"socket_address": {"address": "127.0.0.1", "port_value": 0}});
    let config = json!({
        "admin": {"address": local},
        "stats_config": stats,
        "static_resources": {
            "clusters": [cluster],
            "listeners": [{"name": "main", "address": local, "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "main",
                    "use_remote_address": true,
                    "http_filters": [
                        {"name": "haven", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "config": plugin}},
                        {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
                    ],
                    "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": cluster["name"]}}]}]},
                },
            }]}]}],
        },
    });
    EnvoyConfig::text(config.to_string()).concurrency(1)
}

fn plugin(json: &str) -> Value {
    json!({
        "name": "haven", "root_id": "haven",
        "vm_config": {"vm_id": "haven", "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": haven_wasm().unwrap()}}},
        "configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": json},
    })
}

/// An upstream that speaks in haven's name.
async fn impostor(name: &str) -> Upstream {
    let upstream = Upstream::start(name).await;
    upstream
        .set(|faults| {
            for header in ["proxy-status", "x-haven-anything"] {
                faults.headers.insert(header.into(), "haven; forged".into());
            }
            faults.headers.insert("x-own".into(), "kept".into());
        })
        .await;
    upstream
}

async fn is_cleaned(client: &Client, path: &str) {
    let reply = client
        .get_with(path, &[("x-haven-upstream", "192.0.2.1:1")])
        .await
        .unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("x-own").as_deref(), Some("kept"));
    for forged in ["proxy-status", "x-haven-anything"] {
        assert_eq!(reply.header(forged), None, "{reply:?}");
    }
    let echo = reply.json();
    for hidden in ["x-haven-upstream", "x-haven-cluster"] {
        assert!(echo["headers"][hidden].is_null(), "{echo}");
    }
}

#[test]
fn envoy_gateway_makes_a_cluster_that_follows_haven() {
    run(async {
        let all = resources("deploy/envoy-gateway/users.yaml");
        let (a, b) = (impostor("a").await, impostor("b").await);
        // The list's second entry is nowhere: who gets a request is haven's doing.
        let mut config = kind(&all, "EnvoyExtensionPolicy")["spec"]["wasm"][0]["config"].clone();
        let users = &mut config["upstreams"]["users"];
        users["endpoints"] = json!([{"address": b.addr().to_string()}]);
        users.as_object_mut().unwrap().remove("health_check");
        let mut plugin = plugin(&config.to_string());
        let mut cluster = cluster("httproute/users/users/rule/0", &[a.addr(), b.addr()]);
        let policy = kind(&all, "EnvoyPatchPolicy");
        for patch in policy["spec"]["jsonPatches"].as_array().unwrap() {
            let operation = &patch["operation"];
            let target = if patch["type"].as_str().unwrap().ends_with(".Cluster") {
                assert_eq!(patch["name"], cluster["name"]);
                &mut cluster
            } else {
                &mut plugin
            };
            let field = operation["path"].as_str().unwrap().trim_start_matches('/');
            target[field] = operation["value"].clone();
        }
        let stats = kind(&all, "EnvoyProxy")["spec"]["bootstrap"]["value"].as_str();
        let stats: Value = serde_yaml_ng::from_str(stats.unwrap()).unwrap();
        let envoy = Envoy::start(bootstrap(&plugin, &cluster, &stats["stats_config"])).await;
        for _ in 0..6 {
            is_cleaned(&envoy.h1(), "/api/echo").await;
        }
        assert_eq!((a.counters().requests, b.counters().requests), (0, 6));
        assert_eq!(envoy.h1().get("/livez").await.unwrap().status, 200);
        let metrics = envoy.metrics().await;
        let limit = metrics.total("haven_rate_limit_keys", &[("policy", "per-client")]);
        assert_eq!(limit, 1.0, "labels are taken out of names");
    });
}

#[test]
fn istios_cluster_lets_no_service_speak_in_havens_name() {
    run(async {
        let all = resources("deploy/istio/wasmplugin.yaml");
        let json = kind(&all, "WasmPlugin")["spec"]["pluginConfig"].to_string();
        let upstream = impostor("a").await;
        let mut cluster = cluster("inbound", &[upstream.addr()]);
        let patches = all.iter().flat_map(|one| {
            let patches = one["spec"]["configPatches"].as_array();
            patches.map(Vec::as_slice).unwrap_or_default()
        });
        for patch in patches.filter(|patch| patch["applyTo"] == "CLUSTER") {
            let fields = patch["patch"]["value"].as_object().unwrap().clone();
            cluster.as_object_mut().unwrap().extend(fields);
        }
        let envoy = Envoy::start(bootstrap(&plugin(&json), &cluster, &json!({}))).await;
        is_cleaned(&envoy.h1(), "/api/echo").await;
        // haven's own refusals keep its header.
        let refused = async || envoy.h1().get("/api/echo").await.unwrap();
        let mut last = refused().await;
        for _ in 0..100 {
            if last.status == 429 {
                break;
            }
            last = refused().await;
        }
        let told = last.header("proxy-status").unwrap_or_default();
        assert!(told.contains("rate_limited per-client"), "{last:?}");
    });
}
