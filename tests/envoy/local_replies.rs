//! What Envoy answers by itself, one test for each row of the table in docs/troubleshooting.md: who
//! is blamed, what the client gets, and what the access log says.

use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{
    assert_sound, decisions, endpoints, hanging, in_flight, nothing_in_flight, transitions,
};
use crate::support::{
    Cluster, Envoy, EnvoyConfig, Reply, Route, Upstream, dead_addr, run, wait_for,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Two routes over the same upstream: the first has a fallback for everything, which answers 203
/// with the reason. One failure opens any breaker.
fn filter(addrs: &[SocketAddr]) -> Value {
    let once = json!({"consecutive_failures": 1, "open_duration": "10m"});
    json!({
        "circuit_breakers": {"endpoint": once, "route": once},
        "upstreams": {"users": {"endpoints": endpoints(addrs), "circuit_breaker": "endpoint"}},
        "fallbacks": {"f": {"on": ["overload", "no_endpoint", "upstream_error", "timeout", "circuit_open"],
            "steps": [{"respond": {"status": 203, "body": "{{reason}}"}}]}},
        "routes": [
            {"name": "calm", "match": {"prefix": "/echo/calm"}, "upstream": "users", "circuit_breaker": "route", "fallback": "f"},
            {"name": "bare", "upstream": "users", "circuit_breaker": "route"},
        ],
    })
}

async fn opened(envoy: &Envoy) -> u64 {
    transitions(envoy, "endpoint", "open").await + transitions(envoy, "route", "open").await
}

/// The last line of the access log's details, once it has so many lines.
async fn details(envoy: &Envoy, lines: usize) -> String {
    let log = envoy.access_log_of(lines).await;
    log[lines - 1]["details"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Sends a request on each route: nobody is blamed, and both are answered as a refusal for this
/// reason is.
async fn is_nobodys_fault(envoy: &mut Envoy, before: usize, known: &str, reason: &str) {
    let calm = envoy.h1().get("/echo/calm").await.unwrap();
    assert_eq!(
        (calm.status, calm.text().as_str()),
        (203, reason),
        "{known}"
    );
    let bare = envoy.h1().get("/echo/bare").await.unwrap();
    assert_eq!(bare.status, 503);
    assert!(details(envoy, before + 2).await.contains(known));
    let wanted = format!("{reason} envoy enforce");
    let log = envoy.access_log_of(before + 2).await;
    assert_eq!(decisions(&log)[before..], [wanted.clone(), wanted]);
    let told = bare.header("proxy-status").unwrap_or_default();
    assert!(told.contains(&format!("{reason} envoy")), "{told}");
    assert_eq!(bare.header("retry-after").is_some(), reason == "overload");
    assert_eq!(opened(envoy).await, 0);
    assert_sound(envoy).await;
}

#[test]
fn a_full_cluster_is_an_overload() {
    run(async {
        let upstream = Upstream::start("a").await;
        let cluster = Cluster::new("users", [upstream.addr()])
            .with(&json!({"circuit_breakers": {"thresholds": [{"max_requests": 1}]}}));
        let config = EnvoyConfig::empty()
            .cluster(cluster)
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter(&[upstream.addr()]))).await;
        upstream.set(|faults| faults.hang = true).await;
        let client = envoy.h2();
        let held = hanging(async move { client.get("/echo/bare").await });
        wait_for("one is in flight", async || in_flight(&envoy).await == 1.0).await;
        is_nobodys_fault(&mut envoy, 0, "overflow", "overload").await;
        drop(held);
        nothing_in_flight(&envoy).await;
    });
}

#[test]
fn a_cluster_in_maintenance_is_an_overload() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = EnvoyConfig::proxy([upstream.addr()])
            .runtime(&json!({"upstream.maintenance_mode.users": 100}));
        let mut envoy = Envoy::start(config.haven(&filter(&[upstream.addr()]))).await;
        is_nobodys_fault(&mut envoy, 0, "maintenance_mode", "overload").await;
    });
}

#[test]
fn a_cluster_with_nobody_in_it_has_no_endpoint() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", []).plain())
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter(&[upstream.addr()]))).await;
        is_nobodys_fault(&mut envoy, 0, "no_healthy_upstream", "no_endpoint").await;
    });
}

/// A request that Envoy ends by a timer while its upstream hangs.
async fn is_a_timeout(config: EnvoyConfig, route: Route, known: &str) {
    let upstream = Upstream::start("a").await;
    let config = config
        .cluster(Cluster::new("users", [upstream.addr()]))
        .route(route);
    let mut envoy = Envoy::start(config.haven(&filter(&[upstream.addr()]))).await;
    upstream.set(|faults| faults.hang = true).await;
    let reply: Reply = envoy.h1().get("/echo/calm").await.unwrap();
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (203, "timeout"),
        "{known}"
    );
    assert!(opened(&envoy).await > 0, "{known}: it is a failure");
    assert_sound(&mut envoy).await;
}

const TIMER: &str = "0.3s";

#[test]
fn a_hang_that_a_timer_of_the_stream_ends_is_a_timeout() {
    run(async {
        let route = || Route::to("/", "users").timeout(Duration::ZERO);
        let plain = EnvoyConfig::empty;
        is_a_timeout(
            plain(),
            route().with(&json!({"idle_timeout": TIMER})),
            "stream_idle_timeout",
        )
        .await;
        let most = json!({"max_stream_duration": {"max_stream_duration": TIMER}});
        is_a_timeout(plain(), route().with(&most), "max_duration_timeout").await;
        let manager = plain().manager(&json!({"stream_idle_timeout": TIMER}));
        is_a_timeout(manager, route(), "stream_idle_timeout").await;
        let manager = plain()
            .manager(&json!({"common_http_protocol_options": {"max_stream_duration": TIMER}}));
        is_a_timeout(manager, route(), "max_duration_timeout").await;
    });
}

#[test]
fn a_client_that_does_not_send_its_request_is_nobodys_fault() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config =
            EnvoyConfig::proxy([upstream.addr()]).manager(&json!({"stream_idle_timeout": TIMER}));
        let mut envoy = Envoy::start(config.haven(&filter(&[upstream.addr()]))).await;
        let mut stream = tokio::net::TcpStream::connect(envoy.addr()).await.unwrap();
        stream
            .write_all(b"POST /echo/calm HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
            .await
            .unwrap();
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await.unwrap();
        assert!(
            answer[..read].starts_with(b"HTTP/1.1 408"),
            "{}",
            String::from_utf8_lossy(&answer[..read])
        );
        nothing_in_flight(&envoy).await;
        assert_eq!(opened(&envoy).await, 0);
        assert_eq!(envoy.h1().get("/echo/calm").await.unwrap().status, 200);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_failure_in_another_dress_is_a_failure() {
    run(async {
        let upstream = Upstream::start("a").await;
        let (dead, _kept) = dead_addr();
        let mapper = |status: u16, to: u16| {
            json!({
                "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": "none"}}}},
                "status_code": to,
            })
        };
        for (addr, reason) in [(dead, "upstream_error"), (upstream.addr(), "timeout")] {
            let config = EnvoyConfig::empty()
                .cluster(Cluster::new("users", [addr]))
                .route(Route::to("/", "users").timeout(Duration::from_millis(300)))
                .manager(&json!({"local_reply_config": {"mappers": [mapper(503, 404), mapper(504, 200)]}}));
            upstream.set(|faults| faults.hang = true).await;
            let mut envoy = Envoy::start(config.haven(&filter(&[addr]))).await;
            let reply = envoy.h1().get("/echo/calm").await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (203, reason));
            assert!(opened(&envoy).await > 0);
            assert_sound(&mut envoy).await;
        }
    });
}

/// A server of HTTP/2 in bare frames: it answers a connection's first request with 200, and each
/// further one with these bytes.
async fn bare_http2(further: fn(u32) -> Vec<u8>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_http2(stream, further));
        }
    });
    (addr, task)
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

async fn serve_http2(
    mut stream: tokio::net::TcpStream,
    further: fn(u32) -> Vec<u8>,
) -> std::io::Result<()> {
    stream.read_exact(&mut [0; 24]).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, number @ ..] = head;
        let number = u32::from_be_bytes(number);
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        let answer = match kind {
            SETTINGS | PING if flags & 1 == 0 => {
                let echo: &[u8] = if kind == PING { &payload } else { &[] };
                frame(kind, 1, 0, echo)
            }
            // `:status: 200` is a single byte of HPACK; the flags end headers and stream.
            HEADERS if number == 1 => frame(HEADERS, 5, number, &[0x88]),
            HEADERS => further(number),
            _ => continue,
        };
        stream.write_all(&answer).await?;
    }
}

/// The server takes no more streams, and has not begun this one: its last is the one before.
fn goaway(number: u32) -> Vec<u8> {
    let last = (number - 2).to_be_bytes();
    frame(GOAWAY, 0, 0, &[last, [0; 4]].concat())
}

fn refuse(number: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, number, &7u32.to_be_bytes())
}

#[test]
fn a_stream_that_an_endpoint_has_not_begun_is_nobodys_failure() {
    run(async {
        for further in [goaway as fn(u32) -> Vec<u8>, refuse] {
            let (addr, server) = bare_http2(further).await;
            let config = EnvoyConfig::empty()
                .cluster(Cluster::new("users", [addr]).http2())
                .route(Route::to("/", "users"))
                .concurrency(1);
            let mut envoy = Envoy::start(config.haven(&filter(&[addr]))).await;
            let (mut unbegun, mut lines) = (0, 0);
            for _ in 0..6 {
                for (path, instead) in [("/echo/calm", 203), ("/echo/bare", 503)] {
                    let reply = envoy.h1().get(path).await.unwrap();
                    lines += 1;
                    if reply.status == 200 {
                        continue;
                    }
                    unbegun += 1;
                    assert_eq!(reply.status, instead, "{reply:?}");
                    let known = details(&envoy, lines).await;
                    assert!(known.contains("remote_refused_stream_reset"), "{known}");
                    let text = if instead == 203 {
                        "upstream_error"
                    } else {
                        "reset before"
                    };
                    assert!(reply.text().contains(text), "{reply:?}");
                }
            }
            assert!(unbegun >= 5, "{unbegun}");
            assert_eq!(opened(&envoy).await, 0, "one failure would open each");
            assert_sound(&mut envoy).await;
            server.abort();
        }
    });
}
