//! Circuit breakers of routes, and fallbacks, in a real Envoy with four workers.

use std::time::Duration;

use crate::filter::{
    Hanging, assert_sound, counted, decisions, endpoints, grpc, hanging, nothing_in_flight,
    transitions,
};
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Reply, Route, Upstream, dead_addr, load, raw, run,
    wait_for,
};
use serde_json::{Value, json};

/// A filter with one breaker on one route for all.
fn one_breaker(breaker: &Value) -> Value {
    json!({
        "circuit_breakers": {"users": breaker},
        "routes": [{"name": "all", "circuit_breaker": "users"}],
    })
}

/// An Envoy in front of `upstream`.
async fn envoy(upstream: &Upstream, filter: &Value) -> Envoy {
    Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(filter)).await
}

/// Whether this is the breaker's own refusal.
fn is_refusal(reply: &Reply) -> bool {
    reply.status == 503
        && reply
            .header("proxy-status")
            .is_some_and(|status| status.contains("circuit_open"))
}

/// The breaker's changes of state that stand in Envoy's log, e.g. `closed -> open`.
fn logged_changes(envoy: &Envoy) -> Vec<String> {
    let log = envoy.logs();
    let changes = log.lines().filter_map(|line| {
        line.split_once("circuit breaker users of all")?
            .1
            .strip_prefix(": ")
    });
    changes
        .map(|change| change.split(['(', ':']).next().unwrap().trim().to_owned())
        .collect()
}

async fn state(envoy: &Envoy) -> Option<f64> {
    envoy
        .metric(
            "haven_circuit_breaker_state",
            &[("circuit_breaker", "users"), ("key", "all")],
        )
        .await
}

/// Sends requests until the breaker refuses; how many it let through.
async fn open(client: &Client) -> u64 {
    for number in 0..1000 {
        if is_refusal(&client.get("/").await.unwrap()) {
            return number;
        }
        // A worker that has just looked at the breaker does so again after a millisecond.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it does not open");
}

#[test]
fn a_breaker_opens_at_the_failure_rate_of_all_workers_together_and_says_for_how_long() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = one_breaker(
            &json!({"minimum_calls": 20, "failure_rate_threshold": 50, "open_duration": "50s"}),
        );
        let mut envoy = envoy(&upstream, &filter).await;
        // A connection per request: all workers get some.
        let fresh = Client::h1_fresh(envoy.addr());
        assert_eq!(state(&envoy).await, Some(0.0));
        assert_eq!(load(&fresh, 10, 1, "/", &[]).await.count(200), 10);
        upstream.set(|faults| faults.status = Some(500)).await;
        // 10 good ones, then 10 bad ones: the 20th call makes it 50 %.
        assert_eq!(open(&fresh).await, 10);
        assert_eq!(upstream.counters().requests, 20);

        for client in [envoy.h1(), envoy.h2()] {
            let refused = client.get("/").await.unwrap();
            assert!(is_refusal(&refused), "{refused:?}");
            let of = |name: &str| {
                refused
                    .header(name)
                    .unwrap_or_else(|| panic!("no {name}: {refused:?}"))
            };
            let wait: u64 = of("retry-after").parse().unwrap();
            assert!((1..=50).contains(&wait), "{wait}");
            assert_eq!(
                of("proxy-status"),
                "haven; error=destination_unavailable; details=\"circuit_open users\""
            );
            assert_eq!(of("content-type"), "application/problem+json");
            let problem = refused.json();
            assert_eq!(
                (&problem["status"], &problem["reason"]),
                (&503.into(), &"circuit_open".into())
            );
            assert_eq!(problem["policy"], "users");
            assert!(
                problem["type"].is_string()
                    && problem["title"].is_string()
                    && problem["detail"].is_string()
            );
        }
        let tally = load(&fresh, 50, 8, "/", &[]).await;
        assert_eq!(
            (tally.count(503), upstream.counters().requests),
            (50, 20),
            "nothing reaches the upstream"
        );

        let (status, reply) = grpc(&envoy.h2(), envoy.addr(), "/users.Users/List").await;
        assert_eq!(
            (status.as_deref(), reply.status, reply.body.len()),
            (Some("14"), 200, 0)
        );
        assert!(reply.header("retry-after").is_some());

        wait_for("the gauge says open", async || {
            state(&envoy).await == Some(1.0)
        })
        .await;
        assert_eq!(
            (
                transitions(&envoy, "users", "open").await,
                transitions(&envoy, "users", "closed").await
            ),
            (1, 0)
        );
        assert_eq!(logged_changes(&envoy), ["closed -> open for 50000 ms"]);
        let labels = [
            ("route", "all"),
            ("policy", "users"),
            ("reason", "circuit_open"),
            ("mode", "enforce"),
        ];
        assert_eq!(counted(&envoy, &labels).await, 1 + 2 + 50 + 1);
        let said = decisions(&envoy.access_log_of(74).await);
        assert_eq!(
            said.iter()
                .filter(|d| *d == "circuit_open users enforce")
                .count(),
            54
        );
        assert_eq!(said.iter().filter(|d| *d == "-").count(), 20);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_count_window_judges_the_last_calls_of_all_workers_as_resilience4j_does() {
    run(async {
        let upstream = Upstream::start("a").await;
        let envoy = envoy(&upstream, &one_breaker(&json!({"preset": "resilience4j"}))).await;
        let fresh = Client::h1_fresh(envoy.addr());
        assert_eq!(load(&fresh, 60, 8, "/", &[]).await.count(200), 60);
        upstream.set(|faults| faults.status = Some(500)).await;
        // The 100th call makes it 40 of 100; then each takes the place of a good one.
        assert_eq!(open(&fresh).await, 50);
        assert_eq!(logged_changes(&envoy), ["closed -> open for 60000 ms"]);
        let labels = [("circuit_breaker", "users"), ("cause", "failure_rate")];
        assert_eq!(
            envoy
                .metric("haven_circuit_breaker_causes_total", &labels)
                .await,
            Some(1.0)
        );
    });
}

#[test]
fn retry_after_is_what_is_left_of_the_open_time() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream.set(|faults| faults.status = Some(503)).await;
        let filter = one_breaker(&json!({"consecutive_failures": 1, "open_duration": "4s"}));
        let envoy = envoy(&upstream, &filter).await;
        let client = envoy.h2();
        assert_eq!(open(&client).await, 1);
        upstream.heal().await;
        let mut waits: Vec<u64> = Vec::new();
        wait_for("it lets calls through again", async || {
            let reply = client.get("/").await.unwrap();
            if reply.status == 200 {
                return true;
            }
            waits.push(reply.header("retry-after").unwrap().parse().unwrap());
            false
        })
        .await;
        assert!(waits.is_sorted_by(|a, b| a >= b), "{waits:?}");
        assert!(waits[0] <= 4 && waits.last() == Some(&1), "{waits:?}");
        assert!(waits.contains(&3) && waits.contains(&2), "{waits:?}");
    });
}

#[test]
fn an_upstream_says_when_to_come_again() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream
            .set(|faults| {
                faults.status = Some(503);
                faults.headers.insert("retry-after".into(), "40".into());
            })
            .await;
        let filter = one_breaker(&json!({"consecutive_failures": 2, "open_duration": "100ms"}));
        let envoy = envoy(&upstream, &filter).await;
        assert_eq!(open(&envoy.h1()).await, 2);
        assert_eq!(logged_changes(&envoy), ["closed -> open for 40000 ms"]);
    });
}

#[test]
fn a_half_open_breaker_admits_a_few_at_once_and_clients_that_leave_take_no_permit_with_them() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream.set(|faults| faults.status = Some(500)).await;
        let breaker = json!({
            "minimum_calls": 4, "open_duration": "300ms", "half_open_calls": 3, "half_open_max_wait": "10m",
        });
        let mut envoy = envoy(&upstream, &one_breaker(&breaker)).await;
        let (addr, h2) = (envoy.addr(), envoy.h2());
        assert_eq!(open(&Client::h1_fresh(addr)).await, 4);
        upstream.reset().await;
        upstream.set(|faults| faults.hang = true).await;

        // Again and again: a permit that leaked would be missed.
        for round in 0..4 {
            // Half by HTTP/1.1, hanging up with their connection; half by HTTP/2, resetting their
            // stream.
            let mut clients: Vec<Hanging> = Vec::new();
            let before = upstream.counters().requests;
            wait_for("three calls hang in the upstream", async || {
                if clients.len() < 100 {
                    let client = if clients.len().is_multiple_of(2) {
                        Client::h1_fresh(addr)
                    } else {
                        h2.clone()
                    };
                    clients.push(hanging(async move { client.get("/").await }));
                }
                upstream.counters().in_flight == 3
            })
            .await;
            for number in 0..12 {
                let client = if number % 2 == 0 {
                    Client::h1_fresh(addr)
                } else {
                    h2.clone()
                };
                assert!(
                    is_refusal(&client.get("/").await.unwrap()),
                    "round {round}: there are three already"
                );
            }
            wait_for("all but three have been refused", async || {
                clients.iter().filter(|client| !client.is_done()).count() == 3
            })
            .await;
            assert_eq!(upstream.counters().requests - before, 3, "round {round}");
            assert_eq!(state(&envoy).await, Some(2.0));
            drop(clients);
            wait_for("the upstream is rid of them", async || {
                upstream.counters().in_flight == 0
            })
            .await;
        }
        assert_eq!(
            logged_changes(&envoy),
            ["closed -> open for 300 ms", "open -> half_open"]
        );
        // Recovered: three good calls close it.
        upstream.heal().await;
        let tally = load(&Client::h1_fresh(addr), 3, 1, "/", &[]).await;
        assert_eq!(tally.count(200), 3, "{tally:?}");
        wait_for("the gauge says closed", async || {
            state(&envoy).await == Some(0.0)
        })
        .await;
        assert_eq!(load(&h2, 40, 10, "/", &[]).await.count(200), 40);
        for (to, count) in [("open", 1), ("half_open", 1), ("closed", 1)] {
            assert_eq!(transitions(&envoy, "users", to).await, count, "{to}");
        }
        assert_eq!(
            logged_changes(&envoy).last().unwrap(),
            "half_open -> closed"
        );
        assert_eq!(logged_changes(&envoy).len(), 3, "one line per change");
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_trial_that_fails_opens_again_for_longer() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream.set(|faults| faults.status = Some(500)).await;
        let breaker = json!({
            "minimum_calls": 2, "open_duration": "200ms", "half_open_calls": 2, "backoff_multiplier": 3,
        });
        let envoy = envoy(&upstream, &one_breaker(&breaker)).await;
        let client = Client::h1_fresh(envoy.addr());
        wait_for("it has opened four times", async || {
            client.get("/").await.unwrap();
            transitions(&envoy, "users", "open").await >= 4
        })
        .await;
        let opened: Vec<String> = logged_changes(&envoy)
            .into_iter()
            .filter(|change| change.contains("-> open"))
            .collect();
        let want = [
            "closed -> open for 200 ms",
            "half_open -> open for 600 ms",
            "half_open -> open for 1800 ms",
            "half_open -> open for 5400 ms",
        ];
        assert_eq!(opened, want);
        assert_eq!(upstream.counters().requests, 2 * 4, "two calls per round");
    });
}

/// What an upstream does to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    Reset,
    Hang,
    Refuse,
    GrpcStatus,
    GrpcTrailer,
}

/// Lets calls fail in this way until the breaker, which wants three failures in a row, refuses one;
/// how many it let through.
async fn failures_until_open(failure: Failure, is_grpc: bool) -> u64 {
    let upstream = Upstream::start("a").await;
    let (dead, _reserved) = dead_addr();
    upstream
        .set(|faults| {
            let grpc = || ("content-type".into(), "application/grpc".into());
            match failure {
                Failure::Reset => faults.reset = true,
                Failure::Hang => faults.hang = true,
                Failure::GrpcStatus => {
                    faults.body = Some(String::new());
                    faults.headers = [grpc(), ("grpc-status".into(), "14".into())].into();
                }
                Failure::GrpcTrailer => {
                    faults.headers = [grpc()].into();
                    faults.trailers.insert("grpc-status".into(), "14".into());
                }
                Failure::Refuse => {}
            }
        })
        .await;
    let addrs = match failure {
        Failure::Refuse => vec![dead],
        _ => vec![upstream.addr()],
    };
    let cluster = Cluster::new("users", addrs);
    let cluster = if is_grpc { cluster.http2() } else { cluster };
    let config = EnvoyConfig::empty()
        .cluster(cluster)
        .route(Route::to("/", "users").timeout(Duration::from_millis(200)))
        .haven(&one_breaker(
            &json!({"consecutive_failures": 3, "open_duration": "10m"}),
        ));
    let mut envoy = Envoy::start(config).await;
    let client = envoy.h2();
    for failed in 0..10 {
        let (status, reply) = if is_grpc {
            grpc(&client, envoy.addr(), "/").await
        } else {
            (None, client.get("/").await.unwrap())
        };
        if reply.header("proxy-status").is_some() {
            assert_sound(&mut envoy).await;
            return failed;
        }
        let status = status.and_then(|status| status.parse().ok()).unwrap_or(0);
        assert!(
            reply.status >= 500 || [4, 14].contains(&status),
            "{failure:?}: {reply:?}"
        );
    }
    panic!("ten calls of {failure:?} (gRPC: {is_grpc}) do not open the breaker");
}

#[test]
fn resets_timeouts_and_refused_connections_are_failures() {
    run(async {
        for failure in [Failure::Reset, Failure::Hang, Failure::Refuse] {
            assert_eq!(failures_until_open(failure, false).await, 3, "{failure:?}");
        }
    });
}

#[test]
fn resets_timeouts_and_refused_connections_of_grpc_calls_are_failures() {
    run(async {
        for failure in [Failure::Reset, Failure::Hang, Failure::Refuse] {
            assert_eq!(failures_until_open(failure, true).await, 3, "{failure:?}");
        }
    });
}

#[test]
fn a_grpc_status_in_the_headers_is_a_failure() {
    run(async {
        assert_eq!(failures_until_open(Failure::GrpcStatus, true).await, 3);
    });
}

#[test]
fn a_grpc_status_in_the_trailers_is_a_failure() {
    run(async {
        assert_eq!(failures_until_open(Failure::GrpcTrailer, true).await, 3);
    });
}

#[test]
fn a_shadow_breaker_stops_nobody() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream.set(|faults| faults.status = Some(500)).await;
        let envoy = envoy(
            &upstream,
            &one_breaker(
                &json!({"consecutive_failures": 5, "open_duration": "10m", "mode": "shadow"}),
            ),
        )
        .await;
        let tally = load(&envoy.h1(), 20, 1, "/", &[]).await;
        assert_eq!((tally.count(500), upstream.counters().requests), (20, 20));
        assert_eq!(
            counted(&envoy, &[("mode", "shadow"), ("reason", "circuit_open")]).await,
            15
        );
        let said = decisions(&envoy.access_log_of(20).await);
        assert_eq!(said[5..], ["circuit_open users shadow"; 15]);
    });
}

// --- Fallbacks

const BODY: &str = r#"{"users":[],"why":"{{reason}}","route":"{{route}}","wait":"{{retry_after}}","id":"{{request_id}}"}"#;

/// What must not be seen of a failed response.
const SECRETS: [(&str, &str); 9] = [
    ("set-cookie", "session=secret"),
    ("x-secret", "secret"),
    ("content-type", "text/html"),
    ("retry-after", "4711"),
    ("etag", "\"secret\""),
    ("cache-control", "secret"),
    ("content-encoding", "gzip"),
    ("www-authenticate", "secret"),
    ("location", "http://secret"),
];

/// An Envoy whose routes all fall back. Of `/open` the breaker opens with the first failure;
/// `/none` has only dead endpoints.
async fn with_fallbacks(upstream: &Upstream, dead: std::net::SocketAddr) -> Envoy {
    let respond = json!({
        "status": 203, "content_type": "application/json", "headers": {"x-fallback": "yes", "cache-control": "no-store"},
        "body": BODY,
    });
    let breaker = json!({"consecutive_failures": 1, "open_duration": "10m"});
    let filter = json!({
        "upstreams": {
            "dead": {
                "endpoints": endpoints(&[dead]), "circuit_breaker": "endpoint", "load_balancer": {"panic_threshold": 0},
            },
        },
        "circuit_breakers": {"users": breaker, "endpoint": breaker},
        "fallbacks": {"calm": {"steps": [{"respond": respond}]}},
        "routes": [
            {"name": "open", "match": {"prefix": "/open"}, "circuit_breaker": "users", "fallback": "calm"},
            {"name": "none", "match": {"prefix": "/none"}, "upstream": "dead", "fallback": "calm"},
            {"name": "all", "fallback": "calm"},
        ],
    });
    let config = EnvoyConfig::empty()
        .cluster(Cluster::new("users", [upstream.addr()]))
        .cluster(Cluster::new("dead", [dead]))
        .route(Route::to("/none", "dead"))
        .route(Route::to("/refused", "dead"))
        .route(Route::to("/", "users").timeout(Duration::from_millis(500)))
        .haven(&filter);
    Envoy::start(config).await
}

/// That it is the fallback, whole, and nothing else.
fn assert_calm(reply: &Reply, reason: &str, policy: &str, route: &str) {
    assert_eq!(reply.status, 203, "{reply:?}");
    assert_eq!(reply.cut, None);
    let body = reply.json();
    assert_eq!(
        (&body["users"], &body["why"], &body["route"]),
        (&json!([]), &reason.into(), &route.into())
    );
    assert!(
        body["id"].as_str().is_some_and(|id| !id.is_empty()),
        "Envoy makes ids: {body}"
    );
    assert_eq!(
        body["wait"].as_str().is_some_and(|wait| !wait.is_empty()),
        reason == "circuit_open",
        "{body}"
    );
    assert_headers(reply, reason, policy, reply.body.len());
}

fn assert_headers(reply: &Reply, reason: &str, policy: &str, length: usize) {
    let of = |name: &str| {
        reply
            .header(name)
            .unwrap_or_else(|| panic!("no {name}: {reply:?}"))
    };
    assert_eq!(
        (of("content-type"), of("x-fallback")),
        ("application/json".into(), "yes".into())
    );
    assert_eq!(of("content-length"), length.to_string());
    assert!(
        of("proxy-status").contains(&format!("details=\"{reason} {policy}\"")),
        "{reply:?}"
    );
    assert_eq!(of("cache-control"), "no-store");
    assert_eq!(reply.headers.get_all("content-type").iter().count(), 1);
    let known = [
        "content-type",
        "content-length",
        "x-fallback",
        "proxy-status",
        "cache-control",
        "date",
        "server",
        "connection",
    ];
    let others: Vec<_> = reply
        .headers
        .keys()
        .filter(|name| !known.contains(&name.as_str()))
        .collect();
    assert!(others.is_empty(), "{others:?} of {reply:?}");
}

#[test]
fn a_fallback_answers_every_kind_of_failure_and_nothing_of_the_failed_response_is_seen() {
    run(async {
        let upstream = Upstream::start("a").await;
        let (dead, _reserved) = dead_addr();
        let mut envoy = with_fallbacks(&upstream, dead).await;
        let failing = async |change: fn(&mut crate::support::Faults)| {
            upstream.reset().await;
            upstream
                .set(|faults| {
                    faults.headers = SECRETS
                        .iter()
                        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                        .collect();
                    change(faults);
                })
                .await;
        };
        for client in [envoy.h1(), envoy.h2()] {
            failing(|faults| faults.status = Some(500)).await;
            for method in ["GET", "POST", "DELETE"] {
                let reply = client.request(method, "/x", &[], "hello").await.unwrap();
                assert_calm(&reply, "upstream_error", "calm", "all");
                assert!(
                    reply
                        .header("proxy-status")
                        .unwrap()
                        .contains("received-status=500"),
                    "{reply:?}"
                );
            }
            // A large body, still on its way when the answer is replaced.
            failing(|faults| {
                faults.status = Some(503);
                faults.body = Some("secret".repeat(400_000));
            })
            .await;
            for _ in 0..5 {
                assert_calm(
                    &client.get("/x").await.unwrap(),
                    "upstream_error",
                    "calm",
                    "all",
                );
            }
            failing(|faults| faults.reset = true).await;
            assert_calm(
                &client.get("/x").await.unwrap(),
                "upstream_error",
                "calm",
                "all",
            );
            assert_calm(
                &client.get("/refused").await.unwrap(),
                "upstream_error",
                "calm",
                "all",
            );
            failing(|faults| faults.hang = true).await;
            assert_calm(&client.get("/x").await.unwrap(), "timeout", "calm", "all");
            // The first call finds that nothing is there; from then on it is known.
            let mut reason = String::new();
            wait_for("there is no endpoint", async || {
                let reply = client.get("/none").await.unwrap();
                reason = reply.json()["why"].as_str().unwrap().to_owned();
                assert_calm(
                    &reply,
                    &reason,
                    if reason == "no_endpoint" {
                        "dead"
                    } else {
                        "calm"
                    },
                    "none",
                );
                reason == "no_endpoint"
            })
            .await;
            failing(|faults| faults.status = Some(599)).await;
            wait_for("the breaker is open", async || {
                let reply = client.get("/open").await.unwrap();
                reason = reply.json()["why"].as_str().unwrap().to_owned();
                assert_calm(
                    &reply,
                    &reason,
                    if reason == "circuit_open" {
                        "users"
                    } else {
                        "calm"
                    },
                    "open",
                );
                reason == "circuit_open"
            })
            .await;
            // What is no failure of the upstream comes through as it is.
            failing(|faults| faults.status = Some(404)).await;
            let reply = client.get("/x").await.unwrap();
            assert_eq!(
                (reply.status, reply.header("x-secret").as_deref()),
                (404, Some("secret"))
            );
        }
        assert!(
            envoy.metrics().await.total(
                "haven_fallbacks_total",
                &[("route", "all"), ("step", "respond")]
            ) >= 22.0
        );
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_fallback_to_head_has_the_length_and_no_body() {
    run(async {
        let upstream = Upstream::start("a").await;
        let (dead, _reserved) = dead_addr();
        let envoy = with_fallbacks(&upstream, dead).await;
        upstream
            .set(|faults| {
                faults.status = Some(500);
                faults.headers.insert("x-secret".into(), "1".into());
            })
            .await;
        let id = ("x-request-id", "11111111-2222-4333-8444-555555555555");
        for path in ["/x", "/open", "/open", "/refused", "/none"] {
            let (h1, h2) = (envoy.h1(), envoy.h2());
            let length = h1.get_with(path, &[id]).await.unwrap().body.len();
            for client in [&h1, &h2] {
                let head = client.request("HEAD", path, &[id], "").await.unwrap();
                let why = head.header("proxy-status").unwrap();
                assert_eq!(
                    (head.status, head.body.len(), head.header("x-secret")),
                    (203, 0, None),
                    "{path}: {why}"
                );
                assert_eq!(
                    head.header("content-type").as_deref(),
                    Some("application/json")
                );
                // `/none` may have answered the GET for another reason, with another length.
                if why.contains("upstream_error") || path == "/open" {
                    assert!(head.header("content-length").is_some(), "{path}: {head:?}");
                } else {
                    assert_ne!(length, 0);
                }
            }
            let request = format!("HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let bytes = raw::exchange(envoy.addr(), request.as_bytes())
                .await
                .unwrap();
            assert!(
                bytes.bytes.ends_with(b"\r\n\r\n"),
                "no byte after the head: {}",
                bytes.text()
            );
        }
    });
}

/// Makes a gRPC call that is to fall back; the status it got.
async fn calm_grpc(envoy: &Envoy, client: &Client, path: &str) -> String {
    let (status, reply) = grpc(client, envoy.addr(), path).await;
    assert_eq!(
        (reply.status, reply.body.len()),
        (200, 0),
        "{path}: {reply:?}"
    );
    assert_eq!(
        reply.header("content-type").as_deref(),
        Some("application/grpc"),
        "{path}: {reply:?}"
    );
    assert_eq!(
        (
            reply.header("x-secret"),
            reply.header("set-cookie"),
            reply.header("etag")
        ),
        (None, None, None)
    );
    assert!(reply.header("proxy-status").is_some(), "{path}: {reply:?}");
    status.unwrap()
}

#[test]
fn a_fallback_to_grpc_is_a_status() {
    run(async {
        let upstream = Upstream::start("a").await;
        let (dead, _reserved) = dead_addr();
        let mut envoy = with_fallbacks(&upstream, dead).await;
        upstream
            .set(|faults| {
                faults.status = Some(500);
                faults.headers = SECRETS
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect();
            })
            .await;
        let client = envoy.h2();
        // Known from here on to have nothing there.
        assert_eq!(client.get("/none").await.unwrap().status, 203);
        for path in ["/x", "/none", "/none", "/open", "/open", "/open"] {
            assert_eq!(calm_grpc(&envoy, &client, path).await, "14", "{path}");
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_fallback_to_grpc_answers_what_never_reached_the_upstream_or_hangs_there() {
    run(async {
        let upstream = Upstream::start("a").await;
        let (dead, _reserved) = dead_addr();
        let mut envoy = with_fallbacks(&upstream, dead).await;
        let client = envoy.h2();
        assert_eq!(calm_grpc(&envoy, &client, "/refused").await, "14");
        upstream.set(|faults| faults.reset = true).await;
        assert_eq!(calm_grpc(&envoy, &client, "/x").await, "14");
        upstream.heal().await;
        upstream.set(|faults| faults.hang = true).await;
        assert_eq!(calm_grpc(&envoy, &client, "/x").await, "4");
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_fallback_answers_only_for_what_it_names() {
    run(async {
        let upstream = Upstream::start("a").await;
        let step = json!([{"respond": {"status": 200, "body": "calm"}}]);
        let filter = json!({
            "rate_limits": {"one": {"limit": 1, "period": "1h"}},
            "fallbacks": {
                "timeouts": {"on": ["timeout"], "steps": step},
                "limits": {"on": ["rate_limited"], "steps": step},
                "usual": {"steps": step},
                "shadow": {"mode": "shadow", "steps": step},
            },
            "routes": [
                {"name": "timeouts", "match": {"prefix": "/timeouts"}, "fallback": "timeouts"},
                {"name": "limits", "match": {"prefix": "/limits"}, "rate_limits": ["one"], "fallback": "limits"},
                {"name": "usual", "match": {"prefix": "/usual"}, "rate_limits": ["one"], "fallback": "usual"},
                {"name": "shadow", "match": {"prefix": "/shadow"}, "fallback": "shadow"},
            ],
        });
        let envoy = envoy(&upstream, &filter).await;
        let client = envoy.h1();
        assert_eq!(client.get("/limits").await.unwrap().status, 200);
        let limited = client.get("/limits").await.unwrap();
        assert_eq!((limited.status, limited.text().as_str()), (200, "calm"));
        assert_eq!(
            client.get("/usual").await.unwrap().status,
            429,
            "not of its own accord"
        );
        upstream.set(|faults| faults.status = Some(502)).await;
        for path in ["/timeouts", "/shadow"] {
            let reply = client.get(path).await.unwrap();
            assert_eq!(reply.status, 502);
            assert!(
                reply.text().contains("ada"),
                "the upstream's own body: {reply:?}"
            );
        }
        let shadow = [
            ("policy", "shadow"),
            ("reason", "upstream_error"),
            ("mode", "shadow"),
        ];
        assert_eq!(counted(&envoy, &shadow).await, 1);
        let said = decisions(&envoy.access_log_of(5).await);
        assert_eq!(said[4], "upstream_error shadow shadow");
    });
}
