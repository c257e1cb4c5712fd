//! Active health checks in a real Envoy with four workers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::filter::{Steady, assert_sound, counted, endpoints, hanging};
use crate::support::{
    Client, Cluster, Component, Envoy, EnvoyConfig, Retry, Route, Update, Upstream, load, run,
    run_alone, wait_for,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

fn addrs(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.addr()).collect()
}

/// A check that is quick, and patient enough for a machine that is busy.
fn quick(fields: &Value) -> Value {
    let mut check = json!({"interval": "100ms", "timeout": "700ms", "healthy_threshold": 2, "unhealthy_threshold": 3});
    for (name, value) in fields.as_object().unwrap() {
        check[name] = value.clone();
    }
    check
}

/// A filter that knows of its endpoints by checks alone.
fn filter(addrs: &[SocketAddr], check: &Value) -> Value {
    json!({
        "upstreams": {"users": {"endpoints": endpoints(addrs), "health_check": quick(check),
                                "load_balancer": {"panic_threshold": 0}}},
        "routes": [{"name": "users", "upstream": "users"}],
    })
}

async fn healthy(envoy: &Envoy, endpoint: SocketAddr) -> Option<f64> {
    envoy
        .metric(
            "haven_endpoint_healthy",
            &[("upstream", "users"), ("endpoint", &endpoint.to_string())],
        )
        .await
}

async fn reason(envoy: &Envoy, endpoint: SocketAddr) -> Option<f64> {
    envoy
        .metric(
            "haven_endpoint_check_reason",
            &[("upstream", "users"), ("endpoint", &endpoint.to_string())],
        )
        .await
}

async fn ready(envoy: &Envoy) -> (u16, Value) {
    let reply = envoy.h1().get("/readyz").await.unwrap();
    (reply.status, reply.json())
}

/// Waits until `count` endpoints have answered.
async fn all_are_known(envoy: &Envoy, count: usize) {
    wait_for("the endpoints are known", async || {
        envoy.logs().matches("UNKNOWN -> UP").count() >= count
    })
    .await;
}

/// Which endpoints get at least one of some requests.
async fn reached(envoy: &Envoy, upstreams: &[Upstream]) -> Vec<bool> {
    let before: Vec<u64> = upstreams
        .iter()
        .map(|upstream| upstream.counters().requests)
        .collect();
    load(&Client::h1_fresh(envoy.addr()), 40, 8, "/", &[]).await;
    upstreams
        .iter()
        .zip(before)
        .map(|(upstream, before)| upstream.counters().requests > before)
        .collect()
}

fn component(status: &str, critical: Option<bool>) -> Component {
    Component {
        status: status.into(),
        rt: None,
        error: None,
        critical,
    }
}

#[test]
fn an_endpoint_leaves_and_comes_back_without_any_traffic() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let (all, bad) = (addrs(&upstreams), &upstreams[1]);
        let filter = filter(&all, &json!({"report": true}));
        let mut envoy = Envoy::start(EnvoyConfig::proxy(all.clone()).haven(&filter)).await;
        all_are_known(&envoy, 3).await;
        let asked = async || {
            let each: Vec<u64> = upstreams
                .iter()
                .map(|upstream| upstream.counters().health_requests)
                .collect();
            each.iter().all(|requests| *requests > 0)
        };
        wait_for("each is asked, and not one for all", asked).await;
        // What goes wrong, and the number of the reason that is reported.
        for (fault, want) in [
            ("close", 2.0),
            ("hang", 3.0),
            ("report", 7.0),
            ("status", 4.0),
        ] {
            bad.set(|faults| match fault {
                "close" => faults.close = true,
                "hang" => faults.hang = true,
                "report" => drop(
                    faults
                        .health
                        .components
                        .insert("database".into(), component("DOWN", None)),
                ),
                _ => {
                    faults.health.http_status = Some(500);
                    faults.health.raw = Some("broken".into());
                }
            })
            .await;
            wait_for("it is out, and the reason is reported", async || {
                healthy(&envoy, bad.addr()).await == Some(0.0)
                    && reason(&envoy, bad.addr()).await == Some(want)
            })
            .await;
            wait_for("no worker sends it a request", async || {
                reached(&envoy, &upstreams).await == [true, false, true]
            })
            .await;
            assert_eq!(
                load(&envoy.h1(), 40, 8, "/", &[]).await.count(200),
                40,
                "{fault}"
            );
            let (status, document) = ready(&envoy).await;
            assert_eq!(
                (status, &document["details"]["users"]["status"]),
                (200, &"UP".into()),
                "one of three"
            );
            bad.heal().await;
            wait_for("it is back", async || {
                healthy(&envoy, bad.addr()).await == Some(1.0)
            })
            .await;
            wait_for("it gets requests", async || {
                reached(&envoy, &upstreams).await == [true, true, true]
            })
            .await;
        }
        // One asks for all: a second checker would show as twice as many.
        let total = || {
            upstreams
                .iter()
                .map(|upstream| upstream.counters().health_requests)
                .sum::<u64>()
        };
        let (before, begun) = (total(), Instant::now());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (asked, most) = (
            total() - before,
            begun.elapsed().as_secs_f64() * 3.0 * 10.0 / 0.9 + 6.0,
        );
        assert!(
            asked > 3 && (asked as f64) < most,
            "{asked} checks, where one checker makes at most {most}"
        );
        for upstream in &upstreams {
            upstream
                .set(|faults| faults.health.status = Some("DOWN".into()))
                .await;
        }
        wait_for("nothing is left", async || ready(&envoy).await.0 == 503).await;
        wait_for("the reason is reported", async || {
            ready(&envoy).await.1["details"]["users"]["status"] == "DOWN"
        })
        .await;
        let users = ready(&envoy).await.1["details"]["users"].clone();
        let error = users["error"].as_str().unwrap();
        assert!(
            error.contains("0 of 3 endpoints available") && error.contains("DOWN, says so"),
            "{error}"
        );
        assert!(users["rt"].is_u64(), "{users}");
        for upstream in &upstreams {
            upstream
                .set(|faults| {
                    faults.health.status = None;
                    faults.health.timestamp = Some("2023-04-05T10:00:00Z".into());
                })
                .await;
        }
        wait_for("what is too old is unknown", async || {
            let (status, document) = ready(&envoy).await;
            status == 503 && document["details"]["users"]["status"] == "UNKNOWN"
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_component_is_critical_or_not_and_routes_can_depend_on_it() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let all = addrs(&upstreams);
        let check = quick(&json!({
            "report": true,
            "components": {"cache": {"critical": false}, "search": {"critical": false}, "database": {}},
        }));
        let filter = json!({
            "upstreams": {"users": {"endpoints": endpoints(&all), "health_check": check,
                                    "load_balancer": {"panic_threshold": 0}}},
            "fallbacks": {"calm": {"steps": [{"respond": {"body": "calm {{reason}}"}}]}},
            "routes": [
                {"name": "search", "match": {"prefix": "/search"}, "upstream": "users", "fallback": "calm",
                 "depends_on": ["search"]},
                {"name": "bare", "match": {"prefix": "/bare"}, "upstream": "users", "depends_on": ["cache", "search"]},
                {"name": "users", "upstream": "users"},
            ],
        });
        let mut envoy = Envoy::start(EnvoyConfig::proxy(all.clone()).haven(&filter)).await;
        all_are_known(&envoy, 2).await;
        let report = async |upstream: &Upstream, name: &str, status: &str| {
            let component = component(status, None);
            upstream
                .set(|faults| drop(faults.health.components.insert(name.into(), component)))
                .await;
        };
        // On one endpoint: the route goes on, for the other has it.
        for upstream in &upstreams {
            report(upstream, "search", "UP").await;
            report(upstream, "cache", "UP").await;
        }
        report(&upstreams[0], "search", "DOWN").await;
        wait_for("it is logged", async || {
            envoy.logs().contains("component search of")
        })
        .await;
        assert_eq!(
            load(&envoy.h1(), 20, 4, "/search", &[]).await.count(200),
            20
        );
        assert_eq!(envoy.h1().get("/bare").await.unwrap().status, 200);
        // On all: only those who need it notice.
        report(&upstreams[1], "search", "DOWN").await;
        wait_for("each worker refuses the route", async || {
            load(&Client::h1_fresh(envoy.addr()), 20, 4, "/bare", &[])
                .await
                .count(503)
                == 20
        })
        .await;
        let refused = envoy.h1().get("/bare").await.unwrap();
        assert_eq!(
            (&refused.json()["reason"], &refused.json()["policy"]),
            (&"no_endpoint".into(), &"search".into())
        );
        assert_eq!(
            envoy.h1().get("/search").await.unwrap().text(),
            "calm no_endpoint"
        );
        assert!(
            counted(
                &envoy,
                &[
                    ("route", "search"),
                    ("policy", "search"),
                    ("reason", "no_endpoint")
                ]
            )
            .await
                > 0
        );
        assert_eq!(
            load(&envoy.h1(), 20, 4, "/", &[]).await.count(200),
            20,
            "503 and OUT_OF_SERVICE, and yet of use"
        );
        assert_eq!(ready(&envoy).await.0, 200);
        // A critical one takes the endpoint out.
        report(&upstreams[0], "database", "DOWN").await;
        wait_for("it is out", async || {
            healthy(&envoy, all[0]).await == Some(0.0)
        })
        .await;
        wait_for("no worker sends it a request", async || {
            reached(&envoy, &upstreams).await == [false, true]
        })
        .await;
        for upstream in &upstreams {
            upstream.heal().await;
            report(upstream, "search", "UP").await;
        }
        wait_for("all is well", async || {
            load(&Client::h1_fresh(envoy.addr()), 20, 4, "/bare", &[])
                .await
                .count(200)
                == 20
                && healthy(&envoy, all[0]).await == Some(1.0)
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

/// A gRPC server that knows the health service alone.
struct GrpcHealth {
    addr: SocketAddr,
    /// The status that it answers; above 100, a gRPC status and 100.
    status: Arc<AtomicU8>,
    asked: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl GrpcHealth {
    async fn start() -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let addr = listener.local_addr().unwrap();
        let (status, asked) = (
            Arc::new(AtomicU8::new(1)),
            Arc::new(std::sync::Mutex::new(Vec::new())),
        );
        let (served_status, served_asked) = (status.clone(), asked.clone());
        let task = tokio::spawn(async move {
            // Dropped with the server: one that is gone keeps no connection.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (status, asked) = (served_status.clone(), served_asked.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, asked) = (status.clone(), asked.clone());
                    async move { Ok::<_, Infallible>(grpc_answer(request, &status, &asked).await) }
                });
                connections.spawn(async move {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    // However it ended, it ended.
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            addr,
            status,
            asked,
            task,
        }
    }
}

impl Drop for GrpcHealth {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Frames = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn grpc_answer(
    request: Request<Incoming>,
    status: &AtomicU8,
    asked: &std::sync::Mutex<Vec<Vec<u8>>>,
) -> Response<Frames> {
    let health = request.uri().path() == "/grpc.health.v1.Health/Check";
    let message = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes().to_vec())
        .unwrap_or_default();
    let status = status.load(Ordering::Relaxed);
    let answer = Response::builder().header("content-type", "application/grpc");
    if !health {
        let body = Full::new(Bytes::new()).boxed_unsync();
        return answer.header("grpc-status", "12").body(body).unwrap();
    }
    asked.lock().unwrap().push(message);
    if status > 100 {
        let body = Full::new(Bytes::new()).boxed_unsync();
        return answer
            .header("grpc-status", (status - 100).to_string())
            .body(body)
            .unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [
        Ok(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]))),
        Ok(Frame::trailers(trailers)),
    ];
    answer
        .body(Ready(frames.into_iter().collect()).boxed_unsync())
        .unwrap()
}

/// Frames that are all there.
struct Ready(std::collections::VecDeque<Result<Frame<Bytes>, Infallible>>);

impl hyper::body::Body for Ready {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.pop_front())
    }
}

#[test]
fn a_grpc_check_asks_each_server_for_the_service() {
    run(async {
        let (a, b) = (GrpcHealth::start().await, GrpcHealth::start().await);
        let all = [a.addr, b.addr];
        let filter = filter(
            &all,
            &json!({"protocol": "grpc", "service": "user-service"}),
        );
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", all).http2())
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        all_are_known(&envoy, 2).await;
        wait_for("both are asked", async || {
            [&a, &b]
                .iter()
                .all(|server| server.asked.lock().unwrap().len() > 2)
        })
        .await;
        let frame = [&[0, 0, 0, 0, 14, 0x0a, 12][..], b"user-service"].concat();
        assert!([&a, &b].iter().all(|server| {
            server
                .asked
                .lock()
                .unwrap()
                .iter()
                .all(|message| *message == frame)
        }));
        for (status, want) in [(2, 6.0), (0, 6.0), (3, 6.0), (105, 5.0), (112, 5.0)] {
            b.status.store(status, Ordering::Relaxed);
            wait_for("it is out", async || {
                healthy(&envoy, b.addr).await == Some(0.0)
                    && reason(&envoy, b.addr).await == Some(want)
            })
            .await;
            assert_eq!(healthy(&envoy, a.addr).await, Some(1.0), "the other is not");
            b.status.store(1, Ordering::Relaxed);
            wait_for("it is back", async || {
                healthy(&envoy, b.addr).await == Some(1.0)
            })
            .await;
        }
        let gone = b.addr;
        drop(b);
        wait_for("one that is gone is out", async || {
            healthy(&envoy, gone).await == Some(0.0)
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_newer_configuration_checks_and_the_older_stops() {
    run(async {
        let upstream = Upstream::start("a").await;
        let all = [upstream.addr()];
        let config =
            |path: &str| filter(&all, &json!({"path": path, "expected_status": ["200-599"]}));
        let mut envoy = Envoy::start(EnvoyConfig::proxy(all).haven(&config("/old")).lds()).await;
        all_are_known(&envoy, 1).await;
        // `/new` and `/old` are requests to the upstream like any others; it counts both, so the
        // paths show who asks.
        wait_for("the old one asks", async || {
            upstream.counters().requests > 3
        })
        .await;
        // Keeps the old listener's connections, and with them its contexts.
        let idle = envoy.h1();
        idle.get("/echo").await.unwrap();
        assert_eq!(
            envoy.update_filter_config(&config("/health")).await,
            Update::Applied
        );
        wait_for("the new one asks", async || {
            upstream.counters().health_requests > 0
        })
        .await;
        wait_for("the old one has stopped", async || {
            let before = upstream.counters().requests;
            tokio::time::sleep(Duration::from_millis(700)).await;
            upstream.counters().requests == before
        })
        .await;
        // Nor does it come back, though its contexts go on ticking: the lease is renewed.
        let (old, new) = (
            upstream.counters().requests,
            upstream.counters().health_requests,
        );
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(upstream.counters().requests, old);
        assert!(upstream.counters().health_requests > new + 5);
        assert_eq!(ready(&envoy).await.0, 200);
        assert_sound(&mut envoy).await;
    });
}

/// What happens to an endpoint under load: how long it goes on getting requests, and what clients
/// see of it.
#[test]
fn how_long_a_bad_endpoint_harms() {
    run_alone(async {
        println!(
            "interval 500ms, changing 100ms, timeout 300ms, 3 bad answers; 8 clients, a GET each 10 ms; route timeout 1s, per try 400ms"
        );
        println!(
            "fault    retries  gets no more after   answers  errors (a 500 is not what `retry.on` names by default)"
        );
        for retries in [false, true] {
            let upstreams = Upstream::start_many(3).await;
            let all = addrs(&upstreams);
            let check = json!({"interval": "500ms", "interval_changing": "100ms", "timeout": "300ms", "report": true});
            let mut filter = filter(&all, &check);
            filter["routes"][0]["timeout"] = json!({"request": "1s", "per_try": "400ms"});
            if retries {
                filter["routes"][0]["retry"] =
                    json!({"attempts": 1, "budget": 100, "min_per_second": 1000});
            }
            let policy = Retry {
                on: String::new(),
                num_retries: 0,
                ..Retry::default()
            };
            let config = EnvoyConfig::empty()
                .cluster(Cluster::new("users", all))
                .route(Route::to("/", "users").retry(&policy));
            let mut envoy = Envoy::start(config.haven(&filter)).await;
            all_are_known(&envoy, 3).await;
            for fault in ["killed", "hangs", "DOWN", "500"] {
                let bad = &upstreams[0];
                let clients = (0..8).map(|_| envoy.h1());
                let steady = Steady::start(clients, "/", Duration::from_millis(10));
                let begun = bad.counters().requests;
                wait_for("it is under load", async || {
                    bad.counters().requests > begun + 20
                })
                .await;
                let at = Instant::now();
                bad.set(|faults| match fault {
                    "killed" => faults.close = true,
                    "hangs" => faults.hang = true,
                    "DOWN" => faults.health.status = Some("DOWN".into()),
                    _ => {
                        faults.status = Some(500);
                        faults.health.http_status = Some(500);
                        faults.health.raw = Some("broken".into());
                    }
                })
                .await;
                wait_for("it is out", async || {
                    healthy(&envoy, bad.addr()).await == Some(0.0)
                })
                .await;
                let out = at.elapsed();
                tokio::time::sleep(Duration::from_millis(300)).await;
                let before = bad.counters().requests;
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(
                    bad.counters().requests,
                    before,
                    "{fault}: out is out, in every worker"
                );
                let tally = steady.stop().await;
                let errors = tally.total() - tally.count(200);
                println!(
                    "{fault:8} {retries:7}  {:>7} ms  {:>17}  {errors:6}",
                    out.as_millis(),
                    tally.total()
                );
                if fault == "DOWN" || (retries && fault == "killed") {
                    assert_eq!(errors, 0, "{fault}, retries {retries}: {tally:?}");
                }
                bad.heal().await;
                // What traffic has ejected comes back by a trial.
                let trials = Steady::start([envoy.h1()], "/", Duration::from_millis(10));
                wait_for("it is back", async || {
                    healthy(&envoy, bad.addr()).await == Some(1.0)
                })
                .await;
                trials.stop().await;
                wait_for("it gets requests", async || {
                    reached(&envoy, &upstreams).await == [true; 3]
                })
                .await;
            }
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn a_check_that_envoy_refuses_by_its_own_limits_says_nothing_of_the_endpoint() {
    run(async {
        let bounds = json!({"max_requests": 1});
        let upstream = Upstream::start("a").await;
        let addr = upstream.addr();
        let cluster = Cluster::new("users", [addr])
            .with(&json!({"circuit_breakers": {"thresholds": [bounds]}}));
        let config = EnvoyConfig::empty()
            .cluster(cluster)
            .route(Route::to("/", "users"));
        let filter = filter(&[addr], &json!({}));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        all_are_known(&envoy, 1).await;
        upstream.set(|faults| faults.hang = true).await;
        // A check may have the only place just then.
        let mut held = Vec::new();
        wait_for("a request holds the place", async || {
            let client = envoy.h1();
            held.push(hanging(async move { client.get("/").await }));
            tokio::time::sleep(Duration::from_millis(100)).await;
            upstream.counters().in_flight > 0
        })
        .await;
        // For longer than the three failures that would take it out.
        wait_for("nothing is known of it", async || {
            envoy.logs().contains("UP -> UNKNOWN: not asked")
        })
        .await;
        assert!(!envoy.logs().contains("-> DOWN"));
        assert_eq!(ready(&envoy).await.0, 200);
        drop(held);
        upstream.heal().await;
        wait_for("it serves", async || {
            envoy.h1().get("/").await.unwrap().status == 200
        })
        .await;
        assert!(!envoy.logs().contains("-> DOWN"));
        assert_sound(&mut envoy).await;
    });
}
