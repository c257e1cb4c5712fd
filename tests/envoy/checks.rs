//! Active health checks in a real Envoy with four workers.

use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{assert_sound, counted, endpoints};
use crate::support::{Component, Envoy, EnvoyConfig, Upstream, dead_addr, load, run, wait_for};
use serde_json::{Value, json};

fn addrs(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.addr()).collect()
}

/// A filter that checks these endpoints often, and has no other way to know of them.
fn filter(addrs: &[SocketAddr], check: &Value) -> Value {
    let mut usual = json!({"interval": "100ms", "timeout": "100ms", "healthy_threshold": 2, "unhealthy_threshold": 3});
    for (name, value) in check.as_object().unwrap() {
        usual[name] = value.clone();
    }
    json!({
        "upstreams": {"users": {"endpoints": endpoints(addrs), "health_check": usual,
                                "load_balancer": {"panic_threshold": 0}}},
        "routes": [{"name": "users", "upstream": "users"}],
    })
}

async fn healthy(envoy: &Envoy, endpoint: SocketAddr) -> Option<f64> {
    envoy.metric("haven_endpoint_healthy", &[("upstream", "users"), ("endpoint", &endpoint.to_string())]).await
}

async fn reason(envoy: &Envoy, endpoint: SocketAddr) -> Option<f64> {
    envoy.metric("haven_endpoint_check_reason", &[("upstream", "users"), ("endpoint", &endpoint.to_string())]).await
}

/// Endpoints that got one of so many requests.
async fn reached(envoy: &Envoy, upstreams: &[Upstream]) -> Vec<bool> {
    let before: Vec<u64> = upstreams.iter().map(|upstream| upstream.counters().requests).collect();
    load(&envoy.h1(), 60, 6, "/", &[]).await;
    upstreams.iter().zip(before).map(|(upstream, before)| upstream.counters().requests > before).collect()
}

#[test]
fn an_endpoint_leaves_and_comes_back_without_any_traffic() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let (all, bad) = (addrs(&upstreams), &upstreams[1]);
        let filter = filter(&all, &json!({"report": true}));
        let mut envoy = Envoy::start(EnvoyConfig::proxy(all.clone()).haven(&filter)).await;
        wait_for("all are known", async || envoy.h1().get("/readyz").await.unwrap().status == 200).await;
        let each = upstreams.iter().map(|upstream| upstream.counters().health_requests).collect::<Vec<_>>();
        assert!(each.iter().all(|requests| *requests > 0), "each was asked: {each:?}");
        // What goes wrong, and the number of the reason that is told.
        for (fault, want) in [("close", 2.0), ("hang", 3.0), ("report", 7.0), ("status", 4.0)] {
            bad.set(|faults| match fault {
                "close" => faults.close = true,
                "hang" => faults.hang = true,
                "report" => drop(faults.health.components.insert("database".into(), component("DOWN", None))),
                _ => {
                    faults.health.http_status = Some(500);
                    faults.health.raw = Some("broken".into());
                }
            })
            .await;
            wait_for("it is out", async || healthy(&envoy, bad.addr()).await == Some(0.0)).await;
            assert_eq!(reason(&envoy, bad.addr()).await, Some(want), "{fault}");
            wait_for("no worker sends it a request", async || reached(&envoy, &upstreams).await == [true, false, true])
                .await;
            let status = load(&envoy.h1(), 40, 8, "/", &[]).await;
            assert_eq!(status.count(200), 40, "{fault}");
            bad.heal().await;
            wait_for("it is back", async || healthy(&envoy, bad.addr()).await == Some(1.0)).await;
            wait_for("it gets requests", async || reached(&envoy, &upstreams).await == [true, true, true]).await;
        }
        // One checks for all: 3 endpoints, 10 times a second.
        let before: u64 = upstreams.iter().map(|upstream| upstream.counters().health_requests).sum();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let asked = upstreams.iter().map(|upstream| upstream.counters().health_requests).sum::<u64>() - before;
        assert!((20..=72).contains(&asked), "{asked} checks in 2 s, where one checker makes 60");
        println!("{}", envoy.logs().lines().filter(|line| line.contains("endpoint ")).collect::<Vec<_>>().join("\n"));
        assert_sound(&mut envoy).await;
    });
}

fn component(status: &str, critical: Option<bool>) -> Component {
    Component { status: status.into(), rt: None, error: None, critical }
}
