//! The harness itself, with a real Envoy and no filter: what a test of haven sees is then haven's
//! doing.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::support::config::{LABELS, label_regex, reference_text};
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Retry, Route, Tally, Update, Upstream, checkout,
    dead_addr, load, raw, run, wait_for,
};

#[test]
fn an_envoy_that_answers_by_itself_speaks_both_versions_of_http() {
    run(async {
        let envoy = Envoy::start(EnvoyConfig::direct()).await;
        for client in [envoy.h1(), envoy.h2()] {
            let reply = client.get("/").await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
        }
        let log = envoy.access_log_of(2).await;
        let versions: Vec<&str> = log
            .iter()
            .filter_map(|line| line["protocol"].as_str())
            .collect();
        assert_eq!(versions, ["HTTP/1.1", "HTTP/2"]);
        assert_eq!(
            (&log[0]["status"], &log[0]["details"]),
            (&200.into(), &"direct_response".into())
        );
        assert!(envoy.memory_allocated().await > 0 && envoy.memory_resident() > 0);
    });
}

#[test]
fn requests_arrive_at_the_upstream_whole() {
    run(async {
        let a = Upstream::start("a").await;
        for (cluster, protocol) in [
            (Cluster::new("users", [a.addr()]), "HTTP/1.1"),
            (Cluster::new("users", [a.addr()]).http2(), "HTTP/2.0"),
        ] {
            let envoy = Envoy::start(
                EnvoyConfig::empty()
                    .cluster(cluster)
                    .route(Route::to("/", "users")),
            )
            .await;
            // Not from 127.0.0.1: of that one Envoy writes the machine's own address into
            // x-forwarded-for.
            let from = "127.0.0.9";
            let local = from.parse().unwrap();
            for client in [
                Client::h1_from(envoy.addr(), local),
                Client::h2_from(envoy.addr(), local),
            ] {
                let reply = client
                    .request("POST", "/echo/x?y=1", &[("x-test", "1")], "hello")
                    .await
                    .unwrap();
                let echo = reply.json();
                assert_eq!(reply.status, 200);
                assert_eq!(
                    (&echo["upstream"], &echo["method"]),
                    (&"a".into(), &"POST".into())
                );
                assert_eq!(
                    (&echo["path"], &echo["query"]),
                    (&"/echo/x".into(), &"y=1".into())
                );
                assert_eq!(
                    (&echo["protocol"], &echo["body_bytes"]),
                    (&protocol.into(), &5.into())
                );
                assert_eq!(
                    (
                        &echo["headers"]["x-test"],
                        &echo["headers"]["x-forwarded-for"]
                    ),
                    (&"1".into(), &from.into())
                );
            }
        }
        assert_eq!(a.counters().answered.get(&200), Some(&4));
    });
}

#[test]
fn each_fault_is_seen_through_envoy_and_can_be_taken_back() {
    run(async {
        let a = Upstream::start("a").await;
        for cluster in [
            Cluster::new("users", [a.addr()]),
            Cluster::new("users", [a.addr()]).http2(),
        ] {
            let config = EnvoyConfig::empty()
                .cluster(cluster)
                .route(Route::to("/", "users").timeout(Duration::from_secs(1)));
            let envoy = Envoy::start(config).await;
            let client = envoy.h1();

            a.set(|faults| {
                faults.status = Some(503);
                faults.headers.insert("retry-after".into(), "7".into());
                faults.body = Some("gone".into());
            })
            .await;
            let reply = client.get("/").await.unwrap();
            assert_eq!(
                (reply.status, reply.header("retry-after"), reply.text()),
                (503, Some("7".into()), "gone".into())
            );

            a.heal().await;
            a.set(|faults| faults.delay_ms = 300).await;
            let begun = tokio::time::Instant::now();
            assert_eq!(client.get("/").await.unwrap().status, 200);
            assert!(begun.elapsed() >= Duration::from_millis(300));

            a.heal().await;
            a.set(|faults| faults.hang = true).await;
            let reply = client.get("/").await.unwrap();
            assert_eq!(
                (reply.status, reply.text()),
                (504, "upstream request timeout".into())
            );
            wait_for("the hung request is let go", async || {
                a.counters().in_flight == 0
            })
            .await;

            a.heal().await;
            a.set(|faults| faults.reset = true).await;
            let reply = client.get("/").await.unwrap();
            assert_eq!(reply.status, 503);
            assert!(
                reply.text().contains("reset before headers"),
                "{}",
                reply.text()
            );

            a.heal().await;
            a.set(|faults| faults.cut = true).await;
            let reply = client.get("/").await.unwrap();
            assert_eq!(reply.status, 200);
            assert!(
                reply.cut.is_some() && reply.body.len() < 16 << 10,
                "{} bytes",
                reply.body.len()
            );

            a.heal().await;
            a.set(|faults| faults.close = true).await;
            let reply = client.get("/").await.unwrap();
            assert_eq!(reply.status, 503);
            a.set(|faults| faults.close = false).await;
            assert_eq!(
                client.get("/").await.unwrap().status,
                200,
                "open again on its old port"
            );

            a.set(|faults| faults.every = 2).await;
            a.set(|faults| faults.status = Some(500)).await;
            let tally = load(&client, 10, 1, "/", &[]).await;
            assert_eq!((tally.count(500), tally.count(200)), (5, 5));
            a.reset().await;
        }
    });
}

#[test]
fn trailers_come_through() {
    run(async {
        let a = Upstream::start("a").await;
        let cluster = Cluster::new("users", [a.addr()]).http2();
        let envoy = Envoy::start(
            EnvoyConfig::empty()
                .cluster(cluster)
                .route(Route::to("/", "users")),
        )
        .await;
        a.set(|faults| {
            faults
                .headers
                .insert("content-type".into(), "application/grpc".into());
            faults.trailers.insert("grpc-status".into(), "14".into());
        })
        .await;
        let reply = envoy.h2().get("/").await.unwrap();
        assert_eq!(
            reply.header("content-type").as_deref(),
            Some("application/grpc")
        );
        assert_eq!(reply.trailers.unwrap()["grpc-status"], "14");
    });
}

#[test]
fn a_capacity_lets_so_many_in_and_the_rest_wait() {
    run(async {
        let a = Upstream::start("a").await;
        a.set(|faults| {
            faults.capacity = Some(2);
            faults.service_time_ms = 20;
        })
        .await;
        let tally = load(&Client::h1(a.addr()), 20, 10, "/", &[]).await;
        assert_eq!((tally.count(200), tally.total()), (20, 20));
        let counters = a.counters();
        assert_eq!(
            (counters.max_serving, counters.serving, counters.in_flight),
            (2, 0, 0)
        );
        assert!(counters.max_in_flight > 2);
        assert_eq!(a.waiting(), 0);

        // Who gives up while it waits takes no place, and more capacity lets in who waits.
        a.set(|faults| {
            faults.capacity = Some(1);
            faults.service_time_ms = 200;
        })
        .await;
        let client = Client::h1(a.addr());
        let first = tokio::spawn({
            let client = client.clone();
            async move { client.get("/").await.unwrap().status }
        });
        wait_for("one is served", async || a.counters().serving == 1).await;
        let gives_up = tokio::spawn({
            let client = client.clone();
            async move { client.get("/").await }
        });
        let waits = tokio::spawn(async move { client.get("/").await.unwrap().status });
        wait_for("two wait", async || a.waiting() == 2).await;
        gives_up.abort();
        wait_for("one waits", async || a.waiting() == 1).await;
        a.set(|faults| faults.capacity = Some(8)).await;
        wait_for("nobody waits", async || a.waiting() == 0).await;
        assert_eq!((first.await.unwrap(), waits.await.unwrap()), (200, 200));
        wait_for("nobody is served", async || a.counters().serving == 0).await;
    });
}

#[test]
fn the_override_header_picks_endpoints_in_order_and_is_not_seen_by_them() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let (dead, _reserved) = dead_addr();
        let [a, b, c] = [0, 1, 2].map(|index: usize| upstreams[index].addr());
        let cluster = Cluster::new("users", [a, b, c, dead]);
        let route = Route::to("/", "users").retry(&Retry::default());
        let envoy = Envoy::start(EnvoyConfig::empty().cluster(cluster).route(route)).await;
        let client = envoy.h1();
        for (list, want) in [
            (format!("{b}"), "b"),
            (format!("{c},{a}"), "c"),
            (format!("{dead},{b},{a}"), "b"),
        ] {
            let reply = client
                .get_with("/echo", &[("x-haven-upstream", &list)])
                .await
                .unwrap();
            let echo = reply.json();
            assert_eq!(echo["upstream"], want, "{list}");
            assert_eq!(echo["headers"].get("x-haven-upstream"), None);
        }
        upstreams[1].set(|faults| faults.hang = true).await;
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [a, b, c]).show_override_header())
            .route(Route::to("/", "users").retry(&Retry {
                per_try_timeout: Some(Duration::from_millis(200)),
                ..Retry::default()
            }));
        let envoy = Envoy::start(config).await;
        let list = format!("{b},{c}");
        let echo = envoy
            .h2()
            .get_with("/echo", &[("x-haven-upstream", &list)])
            .await
            .unwrap()
            .json();
        assert_eq!(
            (&echo["upstream"], &echo["headers"]["x-haven-upstream"]),
            (&"c".into(), &list.into())
        );
        assert_eq!(envoy.access_log_of(1).await[0]["attempts"], 2);
    });
}

#[test]
fn a_discovered_listener_is_replaced_on_its_port_without_losing_a_request() {
    run(async {
        let first = EnvoyConfig::empty()
            .lds()
            .route(Route::direct("/", 200, "first"));
        let mut envoy = Envoy::start(first.clone()).await;
        let addr = envoy.addr();
        let client = Client::h1(addr);
        assert_eq!(client.get("/").await.unwrap().text(), "first");

        let steady = tokio::spawn(async move { load(&Client::h1(addr), 3000, 4, "/", &[]).await });
        let second = first
            .clone()
            .without_routes()
            .route(Route::direct("/", 200, "second"));
        assert_eq!(envoy.update(second).await, Update::Applied);
        let fresh = Client::h1_fresh(addr);
        wait_for("new connections see the new routes", async || {
            fresh.get("/").await.unwrap().text() == "second"
        })
        .await;
        let tally = steady.await.unwrap();
        assert_eq!(
            tally,
            Tally {
                by_status: [(200, 3000)].into(),
                ..Tally::default()
            }
        );

        let broken = first
            .without_routes()
            .route(Route::to("/", "no-such-cluster"));
        assert_eq!(envoy.update(broken).await, Update::Refused);
        assert_eq!(Client::h1(addr).get("/").await.unwrap().text(), "second");
        assert!(envoy.logs().contains("no-such-cluster"));
        assert!(envoy.is_running());
    });
}

#[test]
fn the_metrics_page_is_read() {
    run(async {
        let a = Upstream::start("a").await;
        let envoy = Envoy::start(EnvoyConfig::proxy([a.addr()])).await;
        let tally = load(&envoy.h2(), 50, 10, "/", &[]).await;
        assert_eq!(tally.count(200), 50);
        let users = ("envoy_cluster_name", "users");
        assert_eq!(
            envoy
                .metric("envoy_cluster_upstream_rq_total", &[users])
                .await,
            Some(50.0)
        );
        assert_eq!(
            envoy
                .metric(
                    "envoy_cluster_upstream_rq_total",
                    &[("envoy_cluster_name", "none")]
                )
                .await,
            None
        );
        assert_eq!(envoy.stat("cluster.users.upstream_rq_total").await, 50);
    });
}

#[test]
fn the_reference_configuration_makes_the_same_labels() {
    let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
    for label in LABELS {
        let tag = format!("{{ tag_name: {label}, regex: \"{}\" }}", label_regex(label));
        assert!(text.contains(&tag), "envoy.yaml lacks {tag}");
    }
}

#[test]
fn the_reference_configuration_can_be_moved_to_other_addresses() {
    let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
    let addrs = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let moved = reference_text(&text, &addrs, Path::new("/elsewhere/haven.wasm"));
    let left: Vec<&str> = moved
        .lines()
        .filter(|line| {
            ["10.77.", "10000", "9901"]
                .iter()
                .any(|old| line.contains(old))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(moved.matches("port_value: 0 ").count(), 2);
    assert_eq!(
        (
            moved.matches("127.0.0.1:3").count(),
            moved.matches("127.0.0.1, port_value: 3").count()
        ),
        (1, 1)
    );
}

#[test]
fn odd_bytes_get_an_answer_and_harm_nobody() {
    run(async {
        let a = Upstream::start("a").await;
        let envoy = Envoy::start(EnvoyConfig::proxy([a.addr()])).await;
        let odd = raw::exchange(envoy.addr(), &raw::get(b"/echo", b"x-odd: \xff\r\n"))
            .await
            .unwrap();
        assert_eq!(odd.status, 200, "{}", odd.text());
        assert!(odd.text().contains("\u{fffd}"), "{}", odd.text());
        let long = [b"x-long: ".as_slice(), &b"a".repeat(60 << 10), b"\r\n"].concat();
        assert_eq!(
            raw::exchange(envoy.addr(), &raw::get(b"/", &long))
                .await
                .unwrap()
                .status,
            431
        );
        assert_eq!(
            raw::exchange(envoy.addr(), b"\0\x01 nonsense\r\n\r\n")
                .await
                .unwrap()
                .status,
            400
        );
        assert_eq!(envoy.h1().get("/").await.unwrap().status, 200);
    });
}

#[test]
fn a_flood_of_requests_is_answered_in_full() {
    run(async {
        let envoy = Envoy::start(EnvoyConfig::direct()).await;
        let request =
            |number: u64| format!("GET /{number} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes();
        let tally = raw::flood(envoy.addr(), 4, 20_000, request).await;
        assert_eq!(
            tally,
            Tally {
                by_status: [(200, 20_000)].into(),
                ..Tally::default()
            }
        );
        assert_eq!(
            envoy
                .metric(
                    "envoy_http_downstream_rq_total",
                    &[("envoy_http_conn_manager_prefix", "ingress")]
                )
                .await,
            Some(20_000.0)
        );
    });
}

#[test]
fn an_envoy_that_cannot_start_says_why_and_leaves_nothing() {
    run(async {
        let broken = EnvoyConfig::empty().route(Route::to("/", "no-such-cluster"));
        let error = Envoy::try_start(broken.clone()).await.unwrap_err();
        assert!(error.contains("no-such-cluster"), "{error}");
        assert!(
            Envoy::validate(&broken)
                .unwrap_err()
                .contains("no-such-cluster")
        );
        Envoy::validate(&EnvoyConfig::direct()).unwrap();

        let error = Envoy::try_start(broken.lds()).await.unwrap_err();
        assert!(
            error.contains("refused the listener") && error.contains("no-such-cluster"),
            "{error}"
        );

        let envoy = Envoy::start(EnvoyConfig::direct()).await;
        let process = format!("/proc/{}", envoy.pid());
        assert!(std::fs::exists(&process).unwrap());
        drop(envoy);
        assert!(!std::fs::exists(&process).unwrap());
    });
}
