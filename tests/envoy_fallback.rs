//! Fallbacks in a real Envoy: the last good response, another cluster, and answers that are cut in their middle.

#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "test code: a failed assumption is to end the test at once; clippy only sees that in functions marked #[test]"
)]

#[path = "support/haven.rs"]
mod haven;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use haven::{assert_sound, counted, endpoints, grpc, hanging, nothing_in_flight, transitions};
use serde_json::{Value, json};
use support::{Client, Cluster, Envoy, EnvoyConfig, Reply, Route, Upstream, run, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An upstream that begins a long answer and then does nothing, until it is dropped: then it cuts all connections.
struct Endless {
    addr: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Endless {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun").await;
                open.push(stream);
            }
        });
        Self { addr, task }
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn breakers(upstream: SocketAddr) -> Value {
    json!({
        "circuit_breakers": {
            "route": {"minimum_calls": 4, "failure_rate_threshold": 100, "open_duration": "50s"},
            "endpoint": {"consecutive_failures": 3, "open_duration": "50s"}},
        "upstreams": {"users": {"endpoints": endpoints(&[upstream]), "circuit_breaker": "endpoint"}},
        "routes": [{"name": "all", "upstream": "users", "circuit_breaker": "route"}]})
}

#[test]
fn an_answer_cut_by_its_upstream_is_a_failure() {
    run(async {
        for http2 in [false, true] {
            let upstream = Upstream::start("a").await;
            upstream.set(|faults| faults.cut = true).await;
            let cluster = Cluster::new("users", [upstream.addr()]);
            let cluster = if http2 { cluster.http2() } else { cluster };
            let config = EnvoyConfig::empty().cluster(cluster).route(Route::to("/", "users"));
            let mut envoy = Envoy::start(config.haven(&breakers(upstream.addr()))).await;
            for client in [envoy.h1(), envoy.h2(), envoy.h1()] {
                let reply = client.get("/").await.unwrap();
                assert!(reply.status == 200 && reply.cut.is_some(), "{reply:?}");
            }
            wait_for("the endpoint's breaker opens", async || transitions(&envoy, "endpoint", "open").await == 1).await;
            assert_eq!(transitions(&envoy, "route", "open").await, 0);
            let reply = envoy.h2().get("/").await.unwrap();
            assert!(reply.cut.is_some(), "in a panic it is asked all the same");
            wait_for("the route's breaker opens", async || transitions(&envoy, "route", "open").await == 1).await;
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn an_answer_that_takes_too_long_in_its_middle_is_a_failure() {
    run(async {
        let upstream = Endless::start().await;
        let route = Route::to("/", "users").timeout(Duration::from_millis(300));
        let config = EnvoyConfig::empty().cluster(Cluster::new("users", [upstream.addr])).route(route);
        let mut envoy = Envoy::start(config.haven(&breakers(upstream.addr))).await;
        for _ in 0..4 {
            assert!(envoy.h2().get("/").await.unwrap().cut.is_some());
        }
        wait_for("both open", async || {
            transitions(&envoy, "endpoint", "open").await == 1 && transitions(&envoy, "route", "open").await == 1
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn an_answer_that_its_client_does_not_wait_for_is_nobodys_failure() {
    run(async {
        let upstream = Endless::start().await;
        let envoy = EnvoyConfig::proxy([upstream.addr]).haven(&breakers(upstream.addr));
        let mut envoy = Envoy::start(envoy).await;
        for fresh in [true, false] {
            for _ in 0..5 {
                let client = if fresh { Client::h1_fresh(envoy.addr()) } else { envoy.h2() };
                let call = hanging(async move { client.get("/").await });
                wait_for("it is in flight", async || haven::in_flight(&envoy).await == 1.0).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                drop(call);
                nothing_in_flight(&envoy).await;
            }
        }
        assert_eq!(transitions(&envoy, "endpoint", "open").await + transitions(&envoy, "route", "open").await, 0);
        assert_sound(&mut envoy).await;
    });
}
