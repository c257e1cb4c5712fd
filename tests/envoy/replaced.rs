//! A fallback's answer, in place of a failed one, passes the filters that the failed one still had
//! to pass: those that stand before haven.

use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{Scripted, assert_sound, grpc_request};
use crate::support::{Cluster, Envoy, EnvoyConfig, Reply, Upstream, dead_addr, run, wait_for};
use serde_json::{Value, json};
use tokio::time::Instant;

const ORIGIN: &str = "https://page.example";
const BROWSER: &[(&str, &str)] = &[("origin", ORIGIN)];
const FROM_ELSEWHERE: &[(&str, &str)] = &[("origin", "https://other.example")];
const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http";

fn text() -> String {
    "instead ".repeat(30)
}

fn filter(step: Option<&Value>) -> Value {
    let respond =
        json!({"respond": {"status": 203, "content_type": "application/json", "body": text()}});
    let steps: Vec<_> = step.into_iter().chain([&respond]).collect();
    json!({
        "fallbacks": {"f": {"steps": steps}},
        "routes": [{"name": "all", "fallback": "f", "timeout": {"request": "400ms"}}]})
}

fn plain(name: &str, kind: &str, more: &Value) -> Value {
    let mut config = more.clone();
    config["@type"] = json!(format!("{TYPES}.{kind}"));
    json!({"name": format!("envoy.filters.http.{name}"), "typed_config": config})
}

/// An Envoy with cors, header_mutation and compressor before haven, one of them at least as people
/// have them.
fn before(upstream: SocketAddr, http2: bool, filter: &Value) -> EnvoyConfig {
    let policy = json!({
        "@type": format!("{TYPES}.cors.v3.CorsPolicy"),
        "allow_origin_string_match": [{"exact": ORIGIN}],
        "expose_headers": "proxy-status",
    });
    let added = json!([{"header": {"key": "x-route-added", "value": "1"}}]);
    let routes = json!({
        "name": "routes",
        "response_headers_to_add": added,
        "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "typed_per_filter_config": {"envoy.filters.http.cors": policy},
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "users"}}],
        }],
    });
    let mutation = json!({"mutations": {"response_mutations": [
        {"append": {"header": {"key": "x-mutated", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}]}});
    let gzip = "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip";
    let compressor =
        json!({"compressor_library": {"name": "gzip", "typed_config": {"@type": gzip}}});
    let cluster = Cluster::new("users", [upstream]);
    EnvoyConfig::empty()
        .cluster(if http2 { cluster.http2() } else { cluster })
        .filter_before(plain("cors", "cors.v3.Cors", &json!({})))
        .filter_before(plain(
            "header_mutation",
            "header_mutation.v3.HeaderMutation",
            &mutation,
        ))
        .filter_before(plain("compressor", "compressor.v3.Compressor", &compressor))
        .filter_before(plain("grpc_web", "grpc_web.v3.GrpcWeb", &json!({})))
        .manager(&json!({"route_config": routes}))
        .haven(filter)
}

/// The reply is the fallback's, whole, and has passed the other filters.
fn assert_passed(reply: &Reply, known: &str) {
    assert_eq!(
        (reply.status, reply.text(), &reply.cut),
        (203, text(), &None),
        "{known}: {reply:?}"
    );
    let all = |name: &str| reply.headers.get_all(name).iter().count();
    let of = |name: &str| reply.header(name);
    assert_eq!(
        of("access-control-allow-origin").as_deref(),
        Some(ORIGIN),
        "{known}: {reply:?}"
    );
    for name in [
        "access-control-allow-origin",
        "access-control-expose-headers",
        "x-mutated",
        "proxy-status",
        "content-type",
        "content-length",
        "date",
    ] {
        assert_eq!(all(name), 1, "{known}: {name} in {reply:?}");
    }
    for name in ["x-failed", "set-cookie", "x-envoy-upstream-service-time"] {
        assert_eq!(of(name), None, "{known}: {reply:?}");
    }
    assert_eq!(
        of("content-length"),
        Some(text().len().to_string()),
        "{known}: {reply:?}"
    );
}

/// The fallback's answer, without a trace of the failed one.
fn assert_fallback(reply: &Reply) {
    assert_eq!(
        (reply.status, reply.text(), reply.header("x-failed")),
        (203, text(), None)
    );
}

#[test]
fn whatever_failed_the_fallback_passes_the_filters_before_haven() {
    run(async {
        for http2 in [false, true] {
            let upstream = Upstream::start("a").await;
            let mut envoy = Envoy::start(before(upstream.addr(), http2, &filter(None))).await;
            let headers = [
                ("x-failed", "1"),
                ("set-cookie", "a=b"),
                ("content-type", "text/html"),
            ];
            let mut asked = 0;
            for (fault, details) in [
                (json!({"status": 500}), "via_upstream"),
                (
                    json!({"status": 503, "trailers": {"x-trailer": "1"}}),
                    "via_upstream",
                ),
                (
                    json!({"reset": true}),
                    "upstream_reset_before_response_started",
                ),
                (json!({"hang": true}), "response_timeout"),
                (
                    json!({"close": true}),
                    "upstream_reset_before_response_started",
                ),
            ] {
                upstream
                    .set(|faults| {
                        *faults = serde_json::from_value(fault.clone()).unwrap();
                        faults.body = Some("failed".repeat(500));
                        faults.headers = headers
                            .iter()
                            .map(|(n, v)| ((*n).into(), (*v).into()))
                            .collect();
                    })
                    .await;
                for client in [envoy.h1(), envoy.h2()] {
                    let known = format!("{fault}, HTTP/2 to the upstream: {http2}");
                    let reply = client.get_with("/", BROWSER).await.unwrap();
                    assert_passed(&reply, &known);
                    assert!(reply.trailers.is_none_or(|trailers| trailers.is_empty()));
                    let other = client.get_with("/", FROM_ELSEWHERE).await.unwrap();
                    assert_eq!(
                        (other.status, other.header("access-control-allow-origin")),
                        (203, None),
                        "{known}"
                    );
                    // A HEAD's failure has no body.
                    let head = client.request("HEAD", "/", BROWSER, "").await.unwrap();
                    assert_eq!(
                        (
                            head.status,
                            head.header("access-control-allow-origin").as_deref(),
                            head.header("content-length")
                        ),
                        (203, Some(ORIGIN), Some(text().len().to_string())),
                        "{known}: {head:?}"
                    );
                    asked += 3;
                    let log = envoy.access_log_of(asked).await;
                    for line in &log[asked - 3..] {
                        let said = line["details"].as_str().unwrap_or_default();
                        assert!(said.starts_with(details), "{known}: {line}");
                        assert_eq!(line["status"], 203, "{line}");
                        assert!(!line["decision"].is_null(), "{line}");
                    }
                }
                upstream.heal().await;
            }
            assert_sound(&mut envoy).await;
        }
    });
}

/// Many requests wait at a limit: no failed answer goes round the other filters for it.
#[test]
fn requests_that_wait_take_no_places_from_answers() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream
            .set(|faults| {
                faults.status = Some(500);
                faults.body = Some("failed".repeat(500));
            })
            .await;
        let mut paced = filter(None);
        paced["rate_limits"] = json!({"pace": {"algorithm": "leaky_bucket", "limit": 6, "period": "1m",
            "burst": 2_000, "max_wait": "1h"}});
        let waits =
            json!({"name": "waits", "match": {"prefix": "/waits"}, "rate_limits": ["pace"]});
        paced["routes"].as_array_mut().unwrap().insert(0, waits);
        let config = before(upstream.addr(), false, &paced).concurrency(1);
        let mut envoy = Envoy::start(config).await;
        let client = envoy.h2();
        // Envoy hands over bodies: that is known from now on.
        assert_passed(&client.get_with("/", BROWSER).await.unwrap(), "alone");
        let mut evil = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let client = envoy.h2();
            for _ in 0..80 {
                let client = client.clone();
                evil.spawn(async move { client.get("/waits").await });
            }
        }
        wait_for("they wait", async || {
            envoy.stat("http.ingress.downstream_rq_active").await >= 310
        })
        .await;
        for _ in 0..20 {
            let reply = client.get_with("/", BROWSER).await.unwrap();
            assert_passed(&reply, "beside those that wait");
        }
        evil.shutdown().await;
        drop(client);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_fallback_is_compressed_as_any_answer() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream
            .set(|faults| {
                faults.status = Some(500);
                faults
                    .headers
                    .insert("content-encoding".into(), "br".into());
            })
            .await;
        let mut envoy = Envoy::start(before(upstream.addr(), false, &filter(None))).await;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client
                .get_with("/", &[("accept-encoding", "gzip")])
                .await
                .unwrap();
            assert_eq!(
                (
                    reply.status,
                    reply.header("content-encoding").as_deref(),
                    &reply.cut
                ),
                (203, Some("gzip"), &None),
                "{reply:?}"
            );
            assert!(reply.body.starts_with(&[0x1f, 0x8b]) && reply.body.len() < 100);
            assert_eq!(reply.header("content-length"), None, "{reply:?}");
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_kept_answer_has_one_origin_and_its_own_vary() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = before(upstream.addr(), false, &filter(Some(&json!({"stale": {}}))));
        let mut envoy = Envoy::start(config).await;
        let long = "kept ".repeat(10_000);
        let answers = async |body: &str, status: Option<u16>| {
            upstream
                .set(|faults| {
                    faults.body = Some(body.to_owned());
                    faults.status = status;
                    let own = [
                        ("access-control-allow-origin", "https://its.own"),
                        ("vary", "Origin"),
                        ("content-type", "text/plain"),
                        ("x-own", "1"),
                    ];
                    faults.headers = own
                        .iter()
                        .map(|(n, v)| ((*n).into(), (*v).into()))
                        .collect();
                })
                .await;
        };
        answers(&long, None).await;
        let good = envoy.h1().get_with("/", BROWSER).await.unwrap();
        assert_eq!((good.status, good.body.len()), (200, long.len()));
        answers("failed", Some(500)).await;
        for client in [envoy.h1(), envoy.h2()] {
            let kept = client.get_with("/", BROWSER).await.unwrap();
            assert_eq!((kept.status, kept.text() == long), (200, true));
            assert!(kept.header("age").is_some());
            let all = |name: &str| kept.headers.get_all(name).iter().count();
            assert_eq!(
                kept.header("access-control-allow-origin").as_deref(),
                Some(ORIGIN)
            );
            for name in ["access-control-allow-origin", "x-own", "date", "x-mutated"] {
                assert_eq!(all(name), 1, "{name}: {kept:?}");
            }
            let vary: Vec<_> = kept.headers.get_all("vary").iter().collect();
            // The compressor's name is added to it.
            assert_eq!(vary, ["Origin, Accept-Encoding"]);
            // Another origin has another answer, and none is kept of it.
            let other = client.get_with("/", FROM_ELSEWHERE).await.unwrap();
            assert_eq!(other.status, 203);
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn envoys_own_headers_of_the_route_stay() {
    run(async {
        let (dead, _kept) = dead_addr();
        let mut envoy = Envoy::start(before(dead, false, &filter(None))).await;
        let reply = envoy.h1().get_with("/", BROWSER).await.unwrap();
        assert_passed(&reply, "dead");
        assert_eq!(reply.header("x-route-added").as_deref(), Some("1"));
        assert_sound(&mut envoy).await;
    });
}

/// What an upstream sends as it stands, and what a browser gets in its place.
async fn scripted(answer: &'static [u8], filter: &Value) -> (Envoy, Scripted) {
    let upstream = Scripted::start(move |_| answer.to_vec()).await;
    let envoy = Envoy::start(before(upstream.addr(), false, filter)).await;
    (envoy, upstream)
}

#[test]
fn a_failure_that_hangs_in_its_body_is_answered_soon() {
    run(async {
        let mut slow = filter(None);
        slow["routes"][0]["timeout"]["request"] = json!("20s");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let hangs = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = b"HTTP/1.1 500 x\r\ncontent-length: 1000\r\nx-failed: 1\r\n\r\nbegun";
                let _ = stream.write_all(head).await;
                open.push(stream);
            }
        });
        let mut envoy = Envoy::start(before(addr, false, &slow)).await;
        for _ in 0..5 {
            for client in [envoy.h1(), envoy.h2()] {
                let begun = Instant::now();
                let reply = client.get_with("/", BROWSER).await.unwrap();
                assert_fallback(&reply);
                // Of the 20 s that it could have waited for the rest.
                assert!(begun.elapsed() < Duration::from_secs(10));
            }
        }
        hangs.abort();
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_failure_without_a_body_has_the_fallbacks_all_the_same() {
    run(async {
        let answer = b"HTTP/1.1 500 x\r\ncontent-length: 0\r\nx-failed: 1\r\n\r\n";
        let (mut envoy, _upstream) = scripted(answer, &filter(None)).await;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client.get_with("/", BROWSER).await.unwrap();
            assert_fallback(&reply);
            // The ABI has no call that begins a body: docs/fallbacks.md.
            assert_eq!(reply.header("access-control-allow-origin"), None);
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_grpc_call_ends_with_the_status_of_the_reason() {
    run(async {
        let bodies: [&[u8]; 2] = [
            b"HTTP/1.1 503 x\r\ncontent-length: 6\r\ncontent-type: text/html\r\n\r\nfailed",
            b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n",
        ];
        let (dead, _kept) = dead_addr();
        for answer in bodies.into_iter().map(Some).chain([None]) {
            let (mut envoy, _upstream) = match answer {
                Some(answer) => {
                    let (envoy, upstream) = scripted(answer, &filter(None)).await;
                    (envoy, Some(upstream))
                }
                None => (Envoy::start(before(dead, false, &filter(None))).await, None),
            };
            let call = grpc_request(envoy.addr(), "/a.B/C");
            let reply = envoy.h2().send(call).await.unwrap();
            let trailers = reply.trailers.clone().unwrap_or_default();
            let status = reply.header("grpc-status").or_else(|| {
                let value = trailers.get("grpc-status")?;
                Some(value.to_str().unwrap().to_owned())
            });
            assert_eq!(
                (reply.status, status.as_deref(), reply.body.len()),
                (200, Some("14"), 0),
                "{reply:?}"
            );
            assert_eq!(
                reply.header("content-type").as_deref(),
                Some("application/grpc")
            );
            assert_eq!(reply.header("content-length"), None, "{reply:?}");
            // A browser's call, through grpc_web.
            let headers = [("content-type", "application/grpc-web"), ("origin", ORIGIN)];
            let message = vec![0; 5];
            let web = envoy
                .h1()
                .request("POST", "/a.B/C", &headers, message)
                .await
                .unwrap();
            let in_body = web.text().contains("grpc-status:14");
            let status = web.header("grpc-status");
            assert!(in_body || status.as_deref() == Some("14"), "{web:?}");
            let said = web.header("content-type").unwrap_or_default();
            assert!(said.starts_with("application/grpc"), "{web:?}");
            if answer != Some(bodies[1]) {
                assert!(said.starts_with("application/grpc-web"), "{web:?}");
                assert_eq!(
                    web.header("access-control-allow-origin").as_deref(),
                    Some(ORIGIN),
                    "{web:?}"
                );
            }
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn a_failure_that_is_cut_in_its_body_has_the_fallbacks_all_the_same() {
    run(async {
        let answer = b"HTTP/1.1 500 x\r\ncontent-length: 100000\r\nx-failed: 1\r\n\r\nshort";
        let (mut envoy, _upstream) = scripted(answer, &filter(None)).await;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client.get_with("/", BROWSER).await.unwrap();
            assert_fallback(&reply);
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_failure_that_is_broken_off_costs_its_worker_one_fallback() {
    run(async {
        // Without a length, and without an end.
        let answer = b"HTTP/1.1 500 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n";
        let upstream = Scripted::start(move |_| answer.to_vec()).await;
        let config = before(upstream.addr(), false, &filter(None));
        let mut envoy = Envoy::start(config.concurrency(1)).await;
        let lost = envoy.h1().get_with("/", BROWSER).await.unwrap();
        // The ABI shows a filter nothing of what Envoy answers then: docs/fallbacks.md.
        assert_eq!(lost.status, 502, "{lost:?}");
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client.get_with("/", BROWSER).await.unwrap();
            assert_eq!((reply.status, reply.text()), (203, text()), "{reply:?}");
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn where_envoy_holds_bodies_back_it_is_answered_and_told() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream.set(|faults| faults.status = Some(500)).await;
        let config = before(upstream.addr(), false, &filter(None)).stop_all();
        let mut envoy = Envoy::start(config.concurrency(1)).await;
        for _ in 0..8 {
            let reply = envoy.h1().get_with("/", BROWSER).await.unwrap();
            assert_eq!((reply.status, reply.text()), (203, text()), "{reply:?}");
        }
        let told = envoy.logs();
        let told = told
            .lines()
            .filter(|line| line.contains("fallbacks go round the filters"));
        assert_eq!(told.count(), 1);
        assert_sound(&mut envoy).await;
    });
}
