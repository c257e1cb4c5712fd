//! Deadlines and timeouts in a real Envoy: what its router makes of the headers that haven writes,
//! and what the upstream sees.

use std::time::Duration;

use crate::filter::{assert_sound, counted, decisions, grpc_request, nothing_in_flight};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Reply, Route, Upstream, run};
use hyper::header::HeaderValue;
use serde_json::{Value, json};
use tokio::time::Instant;

const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";

/// Longer than any timeout here, shorter than Envoy's own of 15 s: whoever takes it was cut off by
/// haven's.
const LONG: Duration = Duration::from_secs(12);

/// A filter with one route for all.
fn one(route: &Value) -> Value {
    let mut all = json!({"name": "all"});
    all.as_object_mut()
        .unwrap()
        .extend(route.as_object().unwrap().clone());
    json!({"routes": [all]})
}

async fn envoy(upstream: &Upstream, filter: &Value) -> Envoy {
    Envoy::start(
        EnvoyConfig::proxy([upstream.addr()])
            .internal_clients()
            .haven(filter),
    )
    .await
}

/// The headers that the upstream saw.
fn seen(reply: &Reply, name: &str) -> Option<String> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["headers"][name].as_str().map(str::to_owned)
}

/// Whether that was this timeout, and no other. Timers count in milliseconds, and haven rounds
/// down.
fn cut_off(took: Duration, millis: u64) -> bool {
    took >= Duration::from_millis(millis.saturating_sub(5)) && took < LONG
}

async fn timed(request: impl Future<Output = Result<Reply, String>>) -> (Reply, Duration) {
    let start = Instant::now();
    (request.await.unwrap(), start.elapsed())
}

/// A gRPC call with this deadline; its grpc-status, from wherever it stands.
async fn call(client: &Client, envoy: &Envoy, deadline: Option<&str>) -> (Option<String>, Reply) {
    let mut request = grpc_request(envoy.addr(), "/echo");
    if let Some(deadline) = deadline {
        request
            .headers_mut()
            .insert("grpc-timeout", HeaderValue::from_str(deadline).unwrap());
    }
    let reply = client.send(request).await.unwrap();
    let trailer = reply
        .trailers
        .as_ref()
        .and_then(|trailers| trailers.get("grpc-status").cloned());
    let status = reply
        .header("grpc-status")
        .or_else(|| trailer.map(|value| value.to_str().unwrap().to_owned()));
    (status, reply)
}

#[test]
fn a_hanging_upstream_is_cut_off_by_the_routes_timeout_or_a_clients_shorter_deadline() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = one(&json!({"timeout": {"request": "400ms", "deadline_header": "x-left"}}));
        let mut envoy = envoy(&upstream, &filter).await;
        upstream.set(|faults| faults.hang = true).await;
        let cases: [(&[(&str, &str)], u64); 6] = [
            (&[], 400),
            (&[("grpc-timeout", "100m")], 100),
            (&[(EXPECTED, "100")], 100),
            (&[("x-left", "100")], 100),
            (&[("x-left", "60000"), ("grpc-timeout", "1H")], 400),
            (
                &[
                    ("x-left", "soon"),
                    ("x-envoy-upstream-rq-timeout-ms", "60000"),
                ],
                400,
            ),
        ];
        for client in [envoy.h1(), envoy.h2()] {
            for (headers, least) in cases {
                let (reply, took) = timed(client.get_with("/", headers)).await;
                assert_eq!(reply.status, 504, "{headers:?}: {}", reply.text());
                assert!(cut_off(took, least), "{headers:?}: {took:?}");
            }
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn without_a_timeout_of_the_route_a_deadline_shortens_envoys_and_never_lengthens_it() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [upstream.addr()]))
            .route(Route::to("/", "users").timeout(Duration::from_secs(3)));
        let envoy = Envoy::start(config.haven(&one(&json!({})))).await;
        let client = envoy.h1();
        let reply = client
            .get_with("/echo", &[("grpc-timeout", "1H")])
            .await
            .unwrap();
        assert_eq!(
            seen(&reply, EXPECTED).as_deref(),
            Some("3000"),
            "Envoy's own is shorter"
        );
        let reply = client
            .get_with("/echo", &[("grpc-timeout", "2S")])
            .await
            .unwrap();
        assert_eq!(seen(&reply, EXPECTED).as_deref(), Some("2000"));
        assert_eq!(seen(&reply, "grpc-timeout").as_deref(), Some("2S"));
        upstream.set(|faults| faults.hang = true).await;
        for (deadline, least) in [("1H", 3_000), ("100m", 100)] {
            let (reply, took) = timed(client.get_with("/", &[("grpc-timeout", deadline)])).await;
            assert_eq!(reply.status, 504);
            assert!(cut_off(took, least), "{deadline}: {took:?}");
        }
    });
}

#[test]
fn the_upstream_sees_what_is_left_and_none_of_the_clients_steering() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = one(
            &json!({"timeout": {"request": "20s", "per_try": "7s", "deadline_header": "x-left"}}),
        );
        let envoy = envoy(&upstream, &filter).await;
        let client = envoy.h1();
        let names = [EXPECTED, "x-left", "grpc-timeout"];
        let sees = async |headers: &[(&str, &str)]| {
            let reply = client.get_with("/echo", headers).await.unwrap();
            for name in [
                "x-envoy-upstream-rq-timeout-ms",
                "x-envoy-upstream-rq-per-try-timeout-ms",
                "x-envoy-max-retries",
            ] {
                assert_eq!(seen(&reply, name), None, "{name}");
            }
            names.map(|name| seen(&reply, name))
        };
        let some = |texts: [&str; 3]| {
            texts.map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()))
        };
        assert_eq!(sees(&[]).await, some(["7000", "7000", ""]));
        assert_eq!(
            sees(&[("x-left", "3000")]).await,
            some(["3000", "3000", ""])
        );
        assert_eq!(
            sees(&[("grpc-timeout", "3000m"), ("x-left", "4000")]).await,
            some(["3000", "3000", "3000m"])
        );
        assert_eq!(
            sees(&[(EXPECTED, "3000"), ("x-envoy-upstream-rq-timeout-ms", "5")]).await,
            some(["3000", "3000", ""])
        );
        assert_eq!(
            sees(&[("x-left", "9999999"), ("x-envoy-max-retries", "9")]).await,
            some(["7000", "7000", ""])
        );
    });
}

#[test]
fn too_little_is_refused_at_once_and_the_upstream_untouched() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter =
            one(&json!({"timeout": {"reject_below": "50ms", "deadline_header": "x-left"}}));
        let mut envoy = envoy(&upstream, &filter).await;
        for client in [envoy.h1(), envoy.h2()] {
            for headers in [
                [("x-left", "0")],
                [("x-left", "49")],
                [(EXPECTED, "0")],
                [("grpc-timeout", "0n")],
            ] {
                let reply = client.get_with("/", &headers).await.unwrap();
                assert_eq!(reply.status, 504, "{headers:?}");
                assert_eq!(reply.json()["reason"], "deadline");
                assert_eq!(
                    reply.header("proxy-status").as_deref(),
                    Some("haven; error=http_response_timeout; details=\"deadline timeout\"")
                );
            }
        }
        let (status, reply) = call(&envoy.h2(), &envoy, Some("10m")).await;
        assert_eq!((status.as_deref(), reply.status), (Some("4"), 200));
        assert_eq!(upstream.counters().requests, 0);
        assert_eq!(
            envoy
                .h1()
                .get_with("/", &[("x-left", "5000")])
                .await
                .unwrap()
                .status,
            200
        );
        let labels = [
            ("route", "all"),
            ("policy", "timeout"),
            ("reason", "deadline"),
            ("mode", "enforce"),
        ];
        assert_eq!(counted(&envoy, &labels).await, 9);
        let said = decisions(&envoy.access_log_of(10).await);
        assert_eq!(
            said.iter()
                .filter(|d| *d == "deadline timeout enforce")
                .count(),
            9
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn grpc_calls_end_with_deadline_exceeded_and_their_servers_know_the_deadline() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "upstreams": {"users": {"endpoints": crate::filter::endpoints(&[upstream.addr()])}},
            "routes": [{"name": "all", "upstream": "users", "timeout": {"request": "2s"}}]});
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [upstream.addr()]).http2())
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let client = envoy.h2();
        for (deadline, want) in [
            (None, "2000m"),
            (Some("5S"), "2000m"),
            (Some("1500m"), "1500m"),
            (Some("1900000u"), "1900000u"),
        ] {
            let (_, reply) = call(&client, &envoy, deadline).await;
            let body: Value = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!(body["headers"]["grpc-timeout"], want, "{deadline:?}");
        }
        upstream.set(|faults| faults.hang = true).await;
        for (deadline, least) in [(None, 2_000), (Some("100m"), 100)] {
            let start = Instant::now();
            let (status, reply) = call(&client, &envoy, deadline).await;
            assert!(cut_off(start.elapsed(), least));
            assert_eq!(
                (status.as_deref(), reply.status),
                (Some("4"), 200),
                "{deadline:?} {reply:?}"
            );
        }
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_fallback_answers_for_timeouts_and_a_breaker_counts_them() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream.set(|faults| faults.hang = true).await;
        let filter = json!({
            "circuit_breakers": {"b": {"consecutive_failures": 3, "open_duration": "50s"}},
            "fallbacks": {"f": {"on": ["timeout", "deadline"], "steps": [{"respond": {"status": 203, "body": "{{reason}}"}}]}},
            "routes": [{"name": "all", "circuit_breaker": "b", "fallback": "f", "timeout": {"request": "100ms"}}]});
        let envoy = envoy(&upstream, &filter).await;
        let client = envoy.h1();
        for _ in 0..3 {
            let reply = client.get("/").await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (203, "timeout"));
        }
        assert_eq!(client.get("/").await.unwrap().status, 503, "it is open");
        let reply = client.get_with("/", &[(EXPECTED, "0")]).await.unwrap();
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (203, "deadline"),
            "the deadline comes before the breaker"
        );
        assert_eq!(upstream.counters().requests, 3);
    });
}

#[test]
fn a_dynamic_timeout_follows_the_upstream() {
    run(async {
        let upstream = Upstream::start("a").await;
        let dynamic =
            json!({"dynamic": {"quantile": 90, "factor": 2, "min": "150ms", "max": "20s"}});
        // One worker: each observes its own.
        let config = EnvoyConfig::proxy([upstream.addr()]).concurrency(1);
        let envoy =
            Envoy::start(config.haven(&one(&json!({"timeout": {"request": dynamic}})))).await;
        let client = envoy.h1();
        let timeout = async || {
            seen(&client.get("/echo").await.unwrap(), EXPECTED)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        assert_eq!(timeout().await, 20_000, "while little is known");
        upstream.set(|faults| faults.delay_ms = 300).await;
        let slow = (0..60).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/").await.unwrap().status })
        });
        for request in slow.collect::<Vec<_>>() {
            assert_eq!(request.await.unwrap(), 200);
        }
        upstream.heal().await;
        let found = timeout().await;
        assert!((600..20_000).contains(&found), "{found}");
        upstream.set(|faults| faults.hang = true).await;
        let (reply, took) = timed(client.get("/")).await;
        assert_eq!(reply.status, 504);
        assert!(took >= Duration::from_millis(found / 2), "{took:?}");
    });
}

#[test]
fn an_internal_redirect_goes_on_with_the_clients_deadline() {
    run(async {
        let (first, second) = (
            Upstream::start("first").await,
            Upstream::start("second").await,
        );
        first
            .set(|faults| {
                (faults.status, faults.delay_ms) = (Some(302), 300);
                let location = "http://haven.example/echo/second".to_owned();
                faults.headers.insert("location".to_owned(), location);
            })
            .await;
        let filter = json!({"routes": [{"name": "r", "timeout": {"request": "10s", "deadline_header": "x-deadline"}}]});
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("first", [first.addr()]).plain())
            .cluster(Cluster::new("second", [second.addr()]).plain())
            .route(Route::to("/echo/second", "second"))
            .route(Route::to("/", "first").with(&json!({"internal_redirect_policy": {}})))
            .haven(&filter);
        let mut envoy = Envoy::start(config).await;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client
                .get_with("/echo", &[("x-deadline", "5000")])
                .await
                .unwrap();
            assert_eq!(reply.json()["upstream"], "second", "{reply:?}");
            let left = reply.json()["headers"]["x-deadline"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap();
            assert!(left <= 4_700, "{left}");
            let reply = client.get("/echo").await.unwrap();
            assert_eq!(
                reply.json()["headers"]["x-deadline"],
                "10000",
                "haven's own is no client's"
            );
        }
        assert_sound(&mut envoy).await;
    });
}
