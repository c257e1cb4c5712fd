//! Faults that people met elsewhere, as they meet them: a small configuration, a real Envoy, and what
//! its clients see.

use std::time::Duration;

use crate::filter::{assert_sound, endpoints, hanging, nothing_in_flight, transitions};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Route, Upstream, load, run, wait_for};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[test]
fn a_dead_endpoint_does_not_attract() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        for upstream in &upstreams {
            upstream.set(|faults| faults.delay_ms = 30).await;
        }
        // No breaker, no retry, nothing of the balancer's: what is there by default.
        let filter = json!({
            "upstreams": {"users": {"endpoints": endpoints(&addrs)}},
            "routes": [{"name": "all", "upstream": "users"}]});
        let mut envoy = Envoy::start(EnvoyConfig::proxy(addrs).haven(&filter)).await;
        let client = Client::h1_fresh(envoy.addr());
        assert_eq!(load(&client, 60, 6, "/", &[]).await.count(200), 60);
        upstreams[1].set(|faults| faults.close = true).await;
        let tally = load(&client, 600, 6, "/", &[]).await;
        // Least in flight because it fails at once: 76 % of all failed. Each of four workers finds
        // out by itself, and asks again now and then.
        let failed = tally.total() - tally.count(200);
        assert!(failed < 60, "{failed} of 600 failed: {tally:?}");
        upstreams[1].set(|faults| faults.close = false).await;
        wait_for("it serves again", async || {
            let before = upstreams[1].counters().requests;
            load(&client, 30, 6, "/", &[]).await;
            upstreams[1].counters().requests > before
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

/// An upstream whose answers begin and do not end: headers, an event, and then nothing.
async fn streaming() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut open = Vec::new();
        let mut failures = 2;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let answer: &[u8] = if failures > 0 {
                failures -= 1;
                b"HTTP/1.1 500 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            } else {
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata:\n\r\n"
            };
            let _ = stream.write_all(answer).await;
            open.push(stream);
        }
    });
    (addr, task)
}

#[test]
fn a_breaker_is_closed_by_streams_that_live_on() {
    run(async {
        let (addr, server) = streaming().await;
        let breaker = json!({"consecutive_failures": 2, "open_duration": "300ms",
            "half_open_calls": 2, "half_open_max_wait": "1s"});
        let filter = json!({
            "circuit_breakers": {"b": breaker},
            "routes": [{"name": "all", "circuit_breaker": "b"}]});
        let route = Route::to("/", "users").timeout(Duration::ZERO);
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [addr]))
            .route(route);
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        for _ in 0..2 {
            assert_eq!(envoy.h1().get("/").await.unwrap().status, 500);
        }
        assert_eq!(envoy.h1().get("/").await.unwrap().status, 503);
        // Streams that are held for longer than the wait of the half-open state.
        let mut held: Vec<TcpStream> = Vec::new();
        let mut begun = async || {
            let mut stream = TcpStream::connect(envoy.addr()).await.unwrap();
            let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut head = [0; 16];
            stream.read_exact(&mut head).await.unwrap();
            let good = head.starts_with(b"HTTP/1.1 200");
            if good {
                held.push(stream);
            }
            good
        };
        wait_for("the trials begin", async || begun().await && begun().await).await;
        // The next one that comes finds that they live on.
        wait_for("the breaker is closed", async || {
            begun().await;
            transitions(&envoy, "b", "closed").await == 1
        })
        .await;
        for _ in 0..5 {
            assert!(begun().await, "and lets all through");
        }
        assert_eq!(transitions(&envoy, "b", "open").await, 1);
        server.abort();
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn another_spelling_is_no_new_bucket_and_no_way_round_a_route() {
    run(async {
        let limit = |key: Value| json!({"limit": 1, "period": "1h", "key": key});
        let filter = json!({
        "rate_limits": {
            "user": limit(json!([{"query": "user"}])),
            "host": limit(json!(["host"])),
        },
        "routes": [
            {"name": "users", "match": {"prefix": "/users"}, "rate_limits": ["user"]},
            {"name": "hosts", "match": {"hosts": ["example.com"]}, "rate_limits": ["host"]},
        ]});
        let mut envoy = Envoy::start(EnvoyConfig::direct().haven(&filter)).await;
        let client = envoy.h1();
        let mut statuses = Vec::new();
        for path in [
            "/users?user=alice",
            "/users?user=%61lice",
            "/users?%75ser=alice",
            "/users?user=bob",
        ] {
            statuses.push(client.get(path).await.unwrap().status);
        }
        assert_eq!(statuses, [200, 429, 429, 200]);
        let mut statuses = Vec::new();
        for host in [
            "example.com",
            "example.com.",
            "EXAMPLE.com:80",
            "other.example",
        ] {
            let request = format!("GET /x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let reply = crate::support::raw::exchange(envoy.addr(), request.as_bytes()).await;
            statuses.push(reply.unwrap().status);
        }
        assert_eq!(statuses, [200, 429, 429, 200]);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_hedged_try_is_counted_and_fails_nobody() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        for upstream in &upstreams {
            upstream.set(|faults| faults.delay_ms = 300).await;
        }
        let filter = json!({
            "circuit_breakers": {"endpoint": {"consecutive_failures": 3, "open_duration": "10m"}},
            "upstreams": {"users": {"endpoints": endpoints(&addrs), "circuit_breaker": "endpoint",
                "override": {"attempt_count": true}}},
            "routes": [{"name": "all", "upstream": "users"}]});
        let hedged = json!({
            "hedge_policy": {"hedge_on_per_try_timeout": true},
            "retry_policy": {"retry_on": "reset", "num_retries": 1, "per_try_timeout": "0.1s"},
        });
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", addrs))
            .route(Route::to("/", "users").with(&hedged))
            .attempt_counts();
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let tally = load(&envoy.h1(), 20, 4, "/", &[]).await;
        assert_eq!(tally.count(200), 20, "{tally:?}");
        let asked: u64 = upstreams.iter().map(|it| it.counters().requests).sum();
        assert!(asked > 20, "{asked}: no try was hedged");
        nothing_in_flight(&envoy).await;
        let metrics = envoy.metrics().await;
        assert_eq!(
            metrics.total("haven_retries_total", &[]),
            (asked - 20) as f64,
            "each try is counted, whoever answered"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn load_that_a_grpc_server_reports_in_its_trailers_counts() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        // cpu_utilization (field 1, a double) of 0.9 and 0.1, in base64.
        for (upstream, report) in upstreams.iter().zip(["Cc3MzMzMzOw/", "CZqZmZmZmbk/"]) {
            upstream
                .set(|faults| {
                    faults
                        .headers
                        .insert("content-type".into(), "application/grpc".into());
                    faults.trailers.insert("grpc-status".into(), "0".into());
                    faults
                        .trailers
                        .insert("endpoint-load-metrics-bin".into(), report.into());
                })
                .await;
        }
        let filter = json!({
            "upstreams": {"users": {"endpoints": endpoints(&addrs),
                "load_report": "orca"}},
            "routes": [{"name": "all", "upstream": "users"}]});
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", addrs).http2())
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let client = envoy.h2();
        let ask = async || {
            let call = crate::filter::grpc_request(envoy.addr(), "/a.B/C");
            let reply = client.send(call).await.unwrap();
            assert_eq!(reply.status, 200);
        };
        // Workers look at the reports anew every 100 ms.
        wait_for("the busy one gets far less", async || {
            let count = || upstreams.iter().map(|it| it.counters().requests);
            let before: Vec<u64> = count().collect();
            for _ in 0..100 {
                ask().await;
            }
            let got: Vec<u64> = count().zip(before).map(|(now, then)| now - then).collect();
            got[0] * 3 < got[1]
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn an_upstream_that_is_not_critical_takes_nothing_out() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let check = json!({"interval": "100ms", "timeout": "700ms"});
        let filter = json!({
        "upstreams": {
            "payments": {"cluster": "users", "endpoints": endpoints(&[upstreams[0].addr()]), "health_check": check},
            "hints": {"cluster": "hints", "endpoints": endpoints(&[upstreams[1].addr()]), "health_check": check,
                "critical": false},
        },
        "routes": [
            {"name": "hints", "match": {"prefix": "/hints"}, "upstream": "hints"},
            {"name": "all", "upstream": "payments"},
        ]});
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [upstreams[0].addr()]))
            .cluster(Cluster::new("hints", [upstreams[1].addr()]))
            .route(Route::to("/hints", "hints"))
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let ready = async || envoy.h1().get("/readyz").await.unwrap();
        let down = async |which: usize, yes: bool| {
            upstreams[which]
                .set(|faults| faults.health.http_status = yes.then_some(503))
                .await;
        };
        down(1, true).await;
        wait_for("it shows", async || {
            ready().await.json()["details"]["hints"]["status"] == "DOWN"
        })
        .await;
        let reply = ready().await;
        assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("UP")));
        down(0, true).await;
        wait_for("it is out", async || ready().await.status == 503).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_kept_answer_is_missed_for_a_reason_that_is_told() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "fallbacks": {"f": {"steps": [{"stale": {"public": true}}]}},
            "routes": [{"name": "all", "fallback": "f"}]});
        let mut envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        upstream
            .set(|faults| {
                faults
                    .headers
                    .insert("cache-control".into(), "private".into());
            })
            .await;
        for _ in 0..3 {
            assert_eq!(envoy.h1().get("/").await.unwrap().status, 200);
        }
        let of = async |reason: &str| {
            let labels = [("policy", "f"), ("reason", reason)];
            envoy.metric("haven_stale_unkept_total", &labels).await
        };
        assert_eq!(of("forbidden").await, Some(3.0));
        let key = [("authorization", "Bearer x")];
        assert_eq!(envoy.h1().get_with("/", &key).await.unwrap().status, 200);
        assert_eq!(of("request").await, Some(1.0));
        upstream.set(|faults| faults.cut = true).await;
        upstream.set(|faults| faults.headers.clear()).await;
        let client = envoy.h1();
        let mut cut = hanging(async move { client.get("/").await });
        assert!(cut.reply().await.unwrap().cut.is_some());
        wait_for("it is counted", async || of("cut").await == Some(1.0)).await;
        assert_sound(&mut envoy).await;
    });
}
