//! Bodies in a real Envoy: who sends or reads slowly makes nobody else look slow, and a filter that
//! holds requests behind haven does not either.

use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{endpoints, nothing_in_flight};
use crate::support::{Envoy, EnvoyConfig, Route, Upstream, run, wait_for};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A filter whose breakers open for calls that take a second, and for failures.
fn breaking(upstream: &Upstream) -> Value {
    json!({
        "upstreams": {"users": {"endpoints": endpoints(&[upstream.addr()]), "circuit_breaker": "b"}},
        "circuit_breakers": {"b": {"minimum_calls": 5, "failure_rate_threshold": 50,
            "slow_call_duration": "1s", "slow_call_rate_threshold": 50}},
        "routes": [{"name": "all", "upstream": "users", "circuit_breaker": "b", "timeout": {"request": "10s"}}],
    })
}

async fn assert_closed(envoy: &Envoy, upstream: &Upstream) {
    for key in ["all".to_owned(), upstream.addr().to_string()] {
        let labels = [("circuit_breaker", "b"), ("key", key.as_str())];
        let state = envoy.metric("haven_circuit_breaker_state", &labels).await;
        assert_eq!(state, Some(0.0), "{key}");
    }
}

/// A request that has begun: its connection.
pub async fn send(addr: SocketAddr, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// The status of its answer.
pub async fn status(stream: &mut TcpStream) -> String {
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    String::from_utf8_lossy(&status[9..]).into_owned()
}

pub const POST: &str = "POST /api/user HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na";
const GET: &str = "GET /api/user HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn slow_uploads_open_no_breaker() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = breaking(&upstream);
        let envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        let mut uploads = Vec::new();
        for _ in 0..12 {
            uploads.push(send(envoy.addr(), POST).await);
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        for upload in &mut uploads {
            upload.write_all(b"b").await.unwrap();
            assert_eq!(status(upload).await, "200");
        }
        nothing_in_flight(&envoy).await;
        assert_closed(&envoy, &upstream).await;
    });
}

#[test]
fn what_a_filter_behind_haven_holds_opens_no_breaker() {
    run(async {
        let upstream = Upstream::start("a").await;
        let delay = json!({"name": "envoy.filters.http.fault", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "delay": {"fixed_delay": "1.2s", "percentage": {"numerator": 100}}}});
        let config = EnvoyConfig::proxy([upstream.addr()]).haven(&breaking(&upstream));
        let envoy = Envoy::start(config.filter_after(delay)).await;
        let mut all = Vec::new();
        for _ in 0..12 {
            all.push(send(envoy.addr(), GET).await);
        }
        for one in &mut all {
            assert_eq!(status(one).await, "200");
        }
        nothing_in_flight(&envoy).await;
        assert_closed(&envoy, &upstream).await;
    });
}

#[test]
fn who_reads_slowly_until_envoy_cuts_it_off_opens_no_breaker() {
    run(async {
        let upstream = Upstream::start("a").await;
        let body = "x".repeat(30 << 20);
        upstream.set(|faults| faults.body = Some(body)).await;
        let mut filter = breaking(&upstream);
        filter["routes"][0]["timeout"] = json!({"request": "1s"});
        let config = EnvoyConfig::proxy([upstream.addr()])
            .without_routes()
            .route(Route::to("/", "users").timeout(Duration::from_secs(1)));
        let envoy = Envoy::start(config.haven(&filter)).await;
        let mut readers = Vec::new();
        for _ in 0..12 {
            readers.push(send(envoy.addr(), GET).await);
        }
        for reader in &mut readers {
            assert_eq!(status(reader).await, "200");
        }
        // They read no further.
        wait_for("all are cut off", async || {
            envoy.stat("cluster.users.upstream_rq_timeout").await == 12
        })
        .await;
        drop(readers);
        nothing_in_flight(&envoy).await;
        assert_closed(&envoy, &upstream).await;
    });
}

#[test]
fn a_request_that_is_whole_when_there_is_no_room_is_refused_and_nobody_is_blamed() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "upstreams": {"users": {"endpoints": endpoints(&[upstream.addr()]), "circuit_breaker": "b", "concurrency_limit": "c"}},
            "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 1}},
            "circuit_breakers": {"b": {"consecutive_failures": 1}},
            "routes": [{"name": "all", "upstream": "users", "circuit_breaker": "b"}],
        });
        let envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        let active = async |count| {
            wait_for("they are at the upstream", async || {
                envoy.stat("cluster.users.upstream_rq_active").await == count
            })
            .await;
        };
        let mut upload = send(envoy.addr(), POST).await;
        active(1).await;
        upstream.set(|faults| faults.hang = true).await;
        let hanging = send(envoy.addr(), GET).await;
        active(2).await;
        upload.write_all(b"b").await.unwrap();
        assert_eq!(status(&mut upload).await, "503");
        let early = envoy.h1().get("/api/user").await.unwrap();
        assert!(early.header("proxy-status").unwrap().contains("overload"));
        active(1).await;
        upstream.heal().await;
        drop(hanging);
        nothing_in_flight(&envoy).await;
        assert_closed(&envoy, &upstream).await;
        assert_eq!(envoy.h1().get("/api/user").await.unwrap().status, 200);
    });
}
