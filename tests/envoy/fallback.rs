//! Fallbacks in a real Envoy: the last good response, another cluster, and answers that are cut in
//! their middle.

use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{
    assert_sound, counted, endpoints, grpc, hanging, nothing_in_flight, transitions,
};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Reply, Route, Upstream, run, wait_for};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An upstream that begins a long answer and then does nothing, until it is dropped: then it cuts
/// all connections.
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
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun")
                    .await;
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
            let config = EnvoyConfig::empty()
                .cluster(cluster)
                .route(Route::to("/", "users"));
            let mut envoy = Envoy::start(config.haven(&breakers(upstream.addr()))).await;
            for client in [envoy.h1(), envoy.h2_told_of_cuts(), envoy.h1()] {
                let reply = client.get("/").await.unwrap();
                assert!(reply.status == 200 && reply.cut.is_some(), "{reply:?}");
            }
            wait_for("the endpoint's breaker opens", async || {
                transitions(&envoy, "endpoint", "open").await == 1
            })
            .await;
            assert_eq!(transitions(&envoy, "route", "open").await, 0);
            let reply = envoy.h2_told_of_cuts().get("/").await.unwrap();
            assert!(reply.cut.is_some(), "in a panic it is asked all the same");
            wait_for("the route's breaker opens", async || {
                transitions(&envoy, "route", "open").await == 1
            })
            .await;
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn an_answer_that_takes_too_long_in_its_middle_is_nobodys_failure() {
    run(async {
        let upstream = Endless::start().await;
        let route = Route::to("/", "users").timeout(Duration::from_millis(300));
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [upstream.addr]))
            .route(route);
        let mut envoy = Envoy::start(config.haven(&breakers(upstream.addr))).await;
        for _ in 0..8 {
            let reply = envoy.h2_told_of_cuts().get("/").await.unwrap();
            assert!(reply.cut.is_some());
        }
        nothing_in_flight(&envoy).await;
        for kind in ["endpoint", "route"] {
            assert_eq!(transitions(&envoy, kind, "open").await, 0, "{kind}");
        }
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
                let client = if fresh {
                    Client::h1_fresh(envoy.addr())
                } else {
                    envoy.h2()
                };
                let call = hanging(async move { client.get("/").await });
                wait_for("it is in flight", async || {
                    crate::filter::in_flight(&envoy).await == 1.0
                })
                .await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                drop(call);
                nothing_in_flight(&envoy).await;
            }
        }
        assert_eq!(
            transitions(&envoy, "endpoint", "open").await
                + transitions(&envoy, "route", "open").await,
            0
        );
        assert_sound(&mut envoy).await;
    });
}

/// A filter with stale answers on one route for all, and a breaker if asked for.
fn stale(step: &Value, breaker: bool) -> Value {
    let mut filter = json!({
        "circuit_breakers": {"b": {"consecutive_failures": 1, "failure_rate_threshold": 100, "open_duration": "50s"}},
        "fallbacks": {"f": {"steps": [{"stale": step},
            {"respond": {"status": 203, "content_type": "text/plain", "body": "static {{reason}}"}}]}},
        "routes": [{"name": "all", "fallback": "f"}]});
    if breaker {
        filter["routes"][0]["circuit_breaker"] = json!("b");
    }
    filter
}

async fn answers(upstream: &Upstream, body: &str, headers: &[(&str, &str)]) {
    upstream
        .set(|faults| {
            faults.body = Some(body.into());
            faults.headers = headers
                .iter()
                .map(|(n, v)| ((*n).into(), (*v).into()))
                .collect();
        })
        .await;
}

async fn fallbacks(envoy: &Envoy, step: &str) -> f64 {
    envoy
        .metric("haven_fallbacks_total", &[("route", "all"), ("step", step)])
        .await
        .unwrap_or(0.0)
}

/// The reply is the kept one, whole and marked.
fn assert_stale(reply: &Reply, body: &str, error: &str) {
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (200, body),
        "{reply:?}"
    );
    let of = |name: &str| {
        reply
            .header(name)
            .unwrap_or_else(|| panic!("no {name}: {reply:?}"))
    };
    assert!(
        of("proxy-status").starts_with(&format!("haven; error={error};")),
        "{reply:?}"
    );
    assert!(of("age").parse::<u64>().unwrap() < 60);
    assert_eq!(
        (of("content-type"), of("content-length")),
        ("application/good".into(), body.len().to_string())
    );
    assert_eq!(
        (of("etag"), reply.headers.get_all("link").iter().count()),
        ("\"1\"".into(), 1)
    );
    for name in [
        "x-failed",
        "x-envoy-upstream-service-time",
        "keep-alive",
        "retry-after",
    ] {
        assert_eq!(reply.header(name), None, "{name}: {reply:?}");
    }
}

const GOOD: &[(&str, &str)] = &[
    ("content-type", "application/good"),
    ("etag", "\"1\""),
    ("link", "<a>"),
    ("x-hop", "1"),
];

#[test]
fn the_last_good_response_stands_in_for_every_failure() {
    run(async {
        for http2 in [false, true] {
            let upstream = Upstream::start("a").await;
            let cluster = Cluster::new("users", [upstream.addr()]);
            let cluster = if http2 { cluster.http2() } else { cluster };
            let route = Route::to("/", "users").timeout(Duration::from_millis(400));
            let config = EnvoyConfig::empty()
                .cluster(cluster)
                .route(route)
                .haven(&stale(&json!({}), false));
            let mut envoy = Envoy::start(config).await;
            answers(&upstream, "one", GOOD).await;
            assert_eq!(envoy.h1().get("/x?q=1").await.unwrap().text(), "one");
            answers(&upstream, "two", GOOD).await;
            // Another worker, perhaps: the last one counts, whoever has seen it.
            assert_eq!(
                Client::h1_fresh(envoy.addr())
                    .get("/x?q=1")
                    .await
                    .unwrap()
                    .text(),
                "two"
            );

            let failed: &[(&str, &str)] = &[
                ("content-type", "application/bad"),
                ("x-failed", "1"),
                ("retry-after", "7"),
            ];
            for (error, fault) in [
                ("http_response_incomplete", json!({"status": 500})),
                ("http_response_incomplete", json!({"status": 599})),
                ("http_response_timeout", json!({"hang": true})),
                ("http_response_incomplete", json!({"reset": true})),
                ("http_response_incomplete", json!({"close": true})),
            ] {
                answers(&upstream, "failed", failed).await;
                upstream
                    .set(|faults| {
                        let mut all = serde_json::to_value(&*faults).unwrap();
                        fault
                            .as_object()
                            .unwrap()
                            .iter()
                            .for_each(|(k, v)| all[k] = v.clone());
                        *faults = serde_json::from_value(all).unwrap();
                    })
                    .await;
                for client in [envoy.h1(), envoy.h2(), Client::h1_fresh(envoy.addr())] {
                    assert_stale(&client.get("/x?q=1").await.unwrap(), "two", error);
                }
                let head = envoy.h1().request("HEAD", "/x?q=1", &[], "").await.unwrap();
                assert_eq!((head.status, head.body.len()), (200, 0));
                assert_eq!(
                    head.header("content-length").as_deref(),
                    Some("3"),
                    "{fault}"
                );
                let head = envoy.h2().request("HEAD", "/x?q=1", &[], "").await.unwrap();
                assert_eq!(
                    (
                        head.status,
                        head.body.len(),
                        head.header("content-length").as_deref()
                    ),
                    (200, 0, Some("3"))
                );
                for (method, path) in [("GET", "/x?q=2"), ("GET", "/x"), ("POST", "/x?q=1")] {
                    let reply = envoy.h2().request(method, path, &[], "").await.unwrap();
                    assert_eq!(reply.status, 203, "{method} {path}");
                    assert!(reply.text().starts_with("static") && reply.header("age").is_none());
                }
                upstream.heal().await;
            }
            assert_eq!(
                (
                    fallbacks(&envoy, "stale").await,
                    fallbacks(&envoy, "respond").await
                ),
                (25.0, 15.0)
            );
            assert_eq!(
                envoy
                    .metric("haven_stale_entries", &[("policy", "f")])
                    .await,
                Some(1.0)
            );
            let bytes = envoy
                .metric("haven_stale_bytes", &[("policy", "f")])
                .await
                .unwrap();
            assert!((100.0..1000.0).contains(&bytes), "{bytes}");
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn the_last_good_response_stands_in_for_a_refusal() {
    run(async {
        let upstream = Upstream::start("a").await;
        let mut filter = stale(&json!({}), true);
        let on = [
            "circuit_open",
            "rate_limited",
            "switched_off",
            "no_endpoint",
            "upstream_error",
        ];
        filter["fallbacks"]["f"]["on"] = json!(on);
        let mut envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        answers(&upstream, "good", GOOD).await;
        for client in [envoy.h1(), envoy.h2()] {
            assert_eq!(client.get("/").await.unwrap().text(), "good");
        }
        upstream.set(|faults| faults.status = Some(503)).await;
        assert_stale(
            &envoy.h1().get("/").await.unwrap(),
            "good",
            "http_response_incomplete",
        );
        let asked = upstream.counters().requests;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client.get("/").await.unwrap();
            assert_stale(&reply, "good", "destination_unavailable");
            let said = reply.header("proxy-status").unwrap();
            assert!(said.ends_with("details=\"circuit_open b\""), "{said}");
            assert_eq!(
                client.get("/other").await.unwrap().text(),
                "static circuit_open"
            );
        }
        let (status, reply) = grpc(&envoy.h2(), envoy.addr(), "/").await;
        assert_eq!(
            (status.as_deref(), reply.body.len(), reply.header("age")),
            (Some("14"), 0, None)
        );
        assert_eq!(
            upstream.counters().requests,
            asked,
            "the upstream is left alone"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn what_is_not_for_others_is_not_kept() {
    run(async {
        let upstream = Upstream::start("a").await;
        let step = json!({"max_body": "1KiB", "vary": ["x-tenant"]});
        let mut envoy =
            Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&stale(&step, false))).await;
        let client = envoy.h1();
        let long = "x".repeat(1025);
        let authorized: &[(&str, &str)] = &[("authorization", "Bearer x")];
        type Case<'a> = (
            &'a str,
            &'a str,
            &'a [(&'a str, &'a str)],
            &'a [(&'a str, &'a str)],
            &'a [(&'a str, &'a str)],
            bool,
        );
        let cases: &[Case<'_>] = &[
            ("/plain", "a", &[], &[], &[], true),
            ("/cookie", "a", &[("set-cookie", "a=b")], &[], &[], false),
            (
                "/private",
                "a",
                &[("cache-control", "private, max-age=60")],
                &[],
                &[],
                false,
            ),
            (
                "/no-store",
                "a",
                &[("cache-control", "no-store")],
                &[],
                &[],
                false,
            ),
            ("/authorized", "a", &[], authorized, &[], false),
            ("/anonymous", "a", &[], &[], authorized, false),
            ("/vary-all", "a", &[("vary", "*")], &[], &[], false),
            (
                "/vary-same",
                "a",
                &[("vary", "accept-language")],
                &[("accept-language", "de")],
                &[("accept-language", "de")],
                true,
            ),
            (
                "/vary-other",
                "a",
                &[("vary", "accept-language")],
                &[("accept-language", "de")],
                &[("accept-language", "fr")],
                false,
            ),
            (
                "/tenant-same",
                "a",
                &[],
                &[("x-tenant", "1")],
                &[("x-tenant", "1")],
                true,
            ),
            (
                "/tenant-other",
                "a",
                &[],
                &[("x-tenant", "1")],
                &[("x-tenant", "2")],
                false,
            ),
            ("/long", &long, &[], &[], &[], false),
            ("/just", &long[1..], &[], &[], &[], true),
        ];
        for (path, body, response, request, _, _) in cases {
            answers(&upstream, body, response).await;
            let reply = client.get_with(path, request).await.unwrap();
            assert_eq!(
                (reply.status, reply.text().as_str()),
                (200, *body),
                "it passes as it is: {path}"
            );
        }
        upstream.set(|faults| faults.status = Some(500)).await;
        for (path, body, _, _, request, kept) in cases {
            let reply = client.get_with(path, request).await.unwrap();
            assert_eq!(
                (reply.status == 200, reply.text() == *body),
                (*kept, *kept),
                "{path}: {reply:?}"
            );
        }
        let elsewhere = client
            .get_with("/plain", &[("host", "other.example")])
            .await
            .unwrap();
        assert_eq!(elsewhere.status, 203, "another host's is another's");
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn bodies_pass_untouched_and_at_once_while_they_are_copied() {
    run(async {
        // Chunked, with a pause: what has come is passed before the rest is there.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (go, gone) = tokio::sync::watch::channel(false);
        let serve = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut gone = gone.clone();
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..read]).into_owned();
                    if head.starts_with("GET /large") {
                        let _ = stream
                            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                            .await;
                        for piece in 0..64u8 {
                            let _ = stream.write_all(b"10000\r\n").await;
                            let _ = stream.write_all(&vec![piece; 1 << 16]).await;
                            let _ = stream.write_all(b"\r\n").await;
                        }
                    } else {
                        let zip: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-encoding: gzip\r\n\r\n3\r\n\x1f\x8b\x00\r\n";
                        let _ = stream.write_all(zip).await;
                        let _ = gone.wait_for(|gone| *gone).await;
                        let _ = stream.write_all(b"2\r\n\xff\xfe\r\n").await;
                    }
                    let _ = stream.write_all(b"0\r\n\r\n").await;
                });
            }
        });
        let step = json!({"max_body": "64KiB"});
        let mut envoy = Envoy::start(EnvoyConfig::proxy([addr]).haven(&stale(&step, false))).await;
        let mut stream = tokio::net::TcpStream::connect(envoy.addr()).await.unwrap();
        stream
            .write_all(b"GET /zip HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut got = Vec::new();
        while !got.windows(3).any(|three| three == b"\x1f\x8b\x00") {
            assert_ne!(
                stream.read_buf(&mut got).await.unwrap(),
                0,
                "the first piece comes before the last is sent"
            );
        }
        go.send(true).unwrap();
        stream.read_to_end(&mut got).await.unwrap();
        assert!(got.windows(2).any(|two| two == b"\xff\xfe"));
        for client in [envoy.h1(), envoy.h2()] {
            let large = client.get("/large").await.unwrap();
            assert_eq!(large.body.len(), 64 << 16);
            assert!(
                large
                    .body
                    .chunks(1 << 16)
                    .zip(0..)
                    .all(|(chunk, piece)| chunk.iter().all(|b| *b == piece))
            );
        }
        let zip = envoy.h2().get_with("/zip", &[("host", "x")]).await.unwrap();
        assert_eq!(zip.body.as_ref(), b"\x1f\x8b\x00\xff\xfe");
        serve.abort();
        drop(go);
        wait_for("the upstream is gone", async || {
            tokio::net::TcpStream::connect(addr).await.is_err()
        })
        .await;
        let mut kept = Vec::new();
        wait_for("the fallback answers", async || {
            let mut stream = tokio::net::TcpStream::connect(envoy.addr()).await.unwrap();
            stream
                .write_all(b"GET /zip HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            kept.clear();
            stream.read_to_end(&mut kept).await.unwrap();
            kept.starts_with(b"HTTP/1.1 200")
        })
        .await;
        let text = String::from_utf8_lossy(&kept).to_lowercase();
        assert!(
            text.contains("content-encoding: gzip\r\n") && text.contains("content-length: 5\r\n"),
            "{text}"
        );
        assert!(
            !text.contains("transfer-encoding") && text.contains("age: "),
            "{text}"
        );
        assert!(kept.ends_with(b"\r\n\r\n\x1f\x8b\x00\xff\xfe"), "{text}");
        assert_eq!(
            envoy.h1().get("/large").await.unwrap().status,
            203,
            "too large to be kept"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn age_grows_until_it_is_too_old() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = stale(&json!({"max_age": "3s"}), false);
        let mut envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        answers(&upstream, "good", &[("age", "1")]).await;
        assert_eq!(envoy.h1().get("/").await.unwrap().status, 200);
        upstream.set(|faults| faults.status = Some(500)).await;
        let mut ages: Vec<u64> = Vec::new();
        wait_for("it is too old", async || {
            let reply = envoy.h1().get("/").await.unwrap();
            if reply.status == 200 {
                ages.push(reply.header("age").unwrap().parse().unwrap());
            }
            reply.status == 203
        })
        .await;
        assert!(
            ages.is_sorted() && ages[0] >= 1 && *ages.last().unwrap() <= 3 && ages.contains(&2),
            "{ages:?}"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn another_cluster_stands_in_for_a_refusal() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let [a, b] = [0, 1].map(|at: usize| &upstreams[at]);
        let filter = json!({
            "circuit_breakers": {"b": {"consecutive_failures": 1, "failure_rate_threshold": 100, "open_duration": "50s"}},
            "upstreams": {"users": {"cluster": "main", "endpoints": endpoints(&[a.addr()])}},
            "fallbacks": {"f": {"steps": [{"stale": {}}, {"cluster": "spare"}, {"respond": {"status": 203, "body": "{{reason}}"}}]}},
            "routes": [{"name": "off", "mode": "off", "match": {"prefix": "/echo/off"}, "upstream": "users", "fallback": "f"},
                {"name": "all", "upstream": "users", "circuit_breaker": "b", "fallback": "f"}]});
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("main", [a.addr()]))
            .cluster(Cluster::new("spare", [b.addr()]))
            .route(Route::to_named_by("/", "x-haven-cluster"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        for client in [envoy.h1(), envoy.h2()] {
            for path in ["/echo", "/echo/off"] {
                let reply = client
                    .get_with(path, &[("x-haven-cluster", "spare")])
                    .await
                    .unwrap();
                assert_eq!(reply.status, 200, "{reply:?}");
                assert_eq!(reply.json()["upstream"], "a", "the client does not choose");
            }
        }
        a.set(|faults| faults.status = Some(500)).await;
        assert_eq!(
            envoy.h1().get("/a").await.unwrap().text(),
            "upstream_error",
            "what was sent is not sent again"
        );
        let asked = a.counters().requests;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client
                .request("POST", "/echo/b", &[], "body")
                .await
                .unwrap();
            let echo = reply.json();
            assert_eq!(
                (reply.status, &echo["upstream"], &echo["body_bytes"]),
                (200, &"b".into(), &4.into())
            );
            assert_eq!(client.get("/echo/b").await.unwrap().json()["upstream"], "b");
            assert_eq!(
                client.get("/echo").await.unwrap().json()["upstream"],
                "a",
                "stale comes first"
            );
        }
        b.set(|faults| faults.status = Some(500)).await;
        assert_eq!(
            envoy.h2().get("/echo/b").await.unwrap().text(),
            "upstream_error",
            "then the last step, and nothing kept of it"
        );
        assert_eq!(a.counters().requests, asked);
        assert_eq!(
            (
                fallbacks(&envoy, "cluster").await,
                fallbacks(&envoy, "stale").await
            ),
            (5.0, 2.0)
        );
        let labels = [("route", "all"), ("reason", "circuit_open")];
        assert_eq!(counted(&envoy, &labels).await, 7);
        assert_eq!(transitions(&envoy, "b", "open").await, 1);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn the_largest_body_is_answered_whole() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = stale(&json!({"max_body": "1MiB"}), false);
        let mut envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        let body: String = (0..1 << 20)
            .map(|n: u32| char::from(b'a' + (n % 23) as u8))
            .collect();
        answers(&upstream, &body, &[]).await;
        assert_eq!(envoy.h1().get("/").await.unwrap().body.len(), 1 << 20);
        upstream.set(|faults| faults.status = Some(500)).await;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client.get("/").await.unwrap();
            assert!(
                reply.status == 200 && reply.text() == body,
                "{} bytes",
                reply.body.len()
            );
            assert!(reply.header("age").is_some());
        }
        assert_sound(&mut envoy).await;
    });
}
