//! The reference configuration `envoy.yaml`, as it stands but for addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::filter::{Steady, assert_sound, counted, nothing_in_flight};
use crate::support::config::reference_text;
use crate::support::{
    Client, Envoy, EnvoyConfig, Upstream, checkout, haven_wasm, load, raw, run, wait_for,
};

fn addrs(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.addr()).collect()
}

async fn reference() -> (Vec<Upstream>, Envoy) {
    let upstreams = Upstream::start_many(3).await;
    let envoy = Envoy::start(EnvoyConfig::reference(&addrs(&upstreams))).await;
    (upstreams, envoy)
}

#[test]
fn it_is_valid() {
    let nobody: Vec<SocketAddr> = (1..=3)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .collect();
    Envoy::validate(&EnvoyConfig::reference(&nobody)).unwrap();
}

/// The proxy of deploy/kubernetes answers its probes, and gives Prometheus its page.
#[test]
fn the_proxy_for_kubernetes_answers_its_probes() {
    run(async {
        let service = Upstream::start("a").await;
        let text = std::fs::read_to_string(checkout("deploy/kubernetes/users.yaml")).unwrap();
        let (_, text) = text.split_once("  envoy.yaml: |\n").unwrap();
        let (text, _) = text.split_once("\n---\n").unwrap();
        let mut text: String = text
            .lines()
            .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
            .collect();
        for (from, to) in [
            (
                "address: 0.0.0.0, port_value: 10000",
                "address: 127.0.0.1, port_value: 0".to_owned(),
            ),
            (
                "address: 0.0.0.0, port_value: 9902",
                "address: 127.0.0.1, port_value: 0".to_owned(),
            ),
            // The admin page's own cluster cannot know a port that is not fixed: the page is asked
            // for through the service's.
            (
                "address: 127.0.0.1, port_value: 9901",
                "address: 127.0.0.1, port_value: 0".to_owned(),
            ),
            (
                "port_value: 8080",
                format!("port_value: {}", service.addr().port()),
            ),
            ("127.0.0.1:8080", service.addr().to_string()),
            (
                "/haven/dist/haven.wasm",
                haven_wasm().unwrap().display().to_string(),
            ),
        ] {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, &to, 1);
        }
        let mut envoy = Envoy::start(EnvoyConfig::text(text)).await;
        let client = envoy.h1();
        for path in ["/livez", "/readyz", "/startupz"] {
            assert_eq!(client.get(path).await.unwrap().status, 200, "{path}");
        }
        let (status, reply) =
            crate::filter::grpc(&envoy.h2(), envoy.addr(), "/grpc.health.v1.Health/Check").await;
        assert_eq!(
            (status.as_deref(), &reply.body[..]),
            (Some("0"), &b"\0\0\0\0\x02\x08\x01"[..])
        );
        let reply = client.get("/api/user").await.unwrap();
        assert_eq!(
            (reply.status, reply.header("proxy-status")),
            (200, None),
            "{reply:?}"
        );
        assert!(
            envoy
                .metrics()
                .await
                .metric("haven_endpoint_healthy", &[("upstream", "users")])
                .is_some()
        );
        service.set(|faults| faults.close = true).await;
        wait_for("the pod is taken out of service", async || {
            load(&client, 5, 1, "/api/user/1", &[]).await;
            load(&client, 20, 5, "/readyz", &[]).await.count(503) == 20
        })
        .await;
        assert_eq!(
            client.get("/livez").await.unwrap().status,
            200,
            "and not restarted"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn it_limits_a_noisy_client_and_says_so_everywhere() {
    run(async {
        let (_upstreams, mut envoy) = reference().await;
        let noisy = Client::h2_from(envoy.addr(), "127.0.0.21".parse().unwrap());
        let quiet = Client::h1_from(envoy.addr(), "127.0.0.22".parse().unwrap());
        // Fewer at once than the concurrency limit begins with, which would have them answered by
        // the fallback.
        let tally = load(&noisy, 2000, 16, "/api/users", &[]).await;
        let (passed, refused) = (tally.count(200), tally.count(429));
        assert!(
            passed >= 50 && refused > 0 && passed + refused == 2000,
            "{tally:?}"
        );
        assert_eq!(
            load(&quiet, 20, 1, "/api/users", &[]).await.count(200),
            20,
            "others are not limited"
        );
        // No way around it by another spelling of the path, or by a forged address.
        load(&noisy, 200, 16, "/api/users", &[]).await;
        let mut forged = 0;
        for path in [
            "//api/users",
            "/x/../api/users",
            "/api//users",
            "/api/users/",
            "/api/users/7?x=1",
        ] {
            let again = load(
                &noisy,
                100,
                16,
                path,
                &[("x-forwarded-for", "198.51.100.7")],
            )
            .await;
            forged += again.count(429);
        }
        assert!(forged > 100, "{forged}");

        let metrics = envoy.metrics().await;
        let labels = |labels: &[(&str, &str)]| -> BTreeMap<String, String> {
            labels
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let series: Vec<_> = metrics
            .matching(
                "haven_decisions_total",
                &[("policy", "per-client"), ("route", "users")],
            )
            .collect();
        assert_eq!(series.len(), 1, "{series:?}");
        let want = [
            ("route", "users"),
            ("policy", "per-client"),
            ("reason", "rate_limited"),
            ("mode", "enforce"),
        ];
        assert_eq!(series[0].labels, labels(&want));
        assert!(series[0].value >= (refused + forged) as f64, "{series:?}");
        let one = |name: &str| {
            metrics
                .matching(name, &[])
                .map(|series| series.labels.clone())
                .collect::<Vec<_>>()
        };
        assert!(one("haven_rate_limit_keys").contains(&labels(&[("policy", "per-client")])));
        assert!(
            one("haven_circuit_breaker_state")
                .contains(&labels(&[("circuit_breaker", "users"), ("key", "users")]))
        );
        let to_open = labels(&[("circuit_breaker", "users"), ("to", "open")]);
        assert!(one("haven_circuit_breaker_transitions_total").contains(&to_open));
        for step in ["stale", "respond"] {
            assert!(
                one("haven_fallbacks_total")
                    .contains(&labels(&[("route", "users"), ("step", step)]))
            );
        }
        let limit = labels(&[("policy", "users"), ("key", "users")]);
        assert!(
            one("haven_concurrency_limit").contains(&limit),
            "one limit for all of the upstream's routes"
        );
        assert!(one("haven_switch_on").contains(&labels(&[("switch", "users-write")])));
        let by_rate = labels(&[("circuit_breaker", "users"), ("cause", "failure_rate")]);
        let causes = one("haven_circuit_breaker_causes_total");
        assert!(causes.contains(&by_rate), "{causes:?}");
        assert!(
            one("haven_endpoint_in_flight")
                .iter()
                .all(|labels| labels.len() == 2)
        );
        assert_eq!(one("haven_endpoint_in_flight").len(), 3);
        assert!(
            one("haven_upstream_duration_ms_count").contains(&labels(&[("route", "users")])),
            "a histogram"
        );
        let odd: Vec<_> = metrics
            .series
            .iter()
            .filter(|series| series.name.contains(';'))
            .collect();
        assert!(odd.is_empty(), "labels are left in names: {odd:?}");

        let log = envoy.access_log_of(2000).await;
        for line in &log {
            let limited = line["status"] == 429;
            let want = if limited {
                "rate_limited per-client enforce"
            } else {
                "-"
            };
            assert_eq!(line["decision"].as_str().unwrap_or("-"), want, "{line}");
            assert_eq!(
                line["upstream"]
                    .as_str()
                    .is_some_and(|upstream| upstream.contains(':')),
                !limited,
                "{line}"
            );
        }
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn an_upstream_sees_nothing_of_the_choice_and_no_client_sways_it() {
    run(async {
        let (upstreams, envoy) = reference().await;
        let foreign = Upstream::start("foreign").await;
        let claim = foreign.addr().to_string();
        let headers = [
            ("x-haven-upstream", claim.as_str()),
            ("x-haven-cluster", "other"),
        ];
        for _ in 0..10 {
            let reply = envoy.h1().get_with("/api/users", &headers).await.unwrap();
            assert!(
                reply.status == 200 && reply.text().contains("ada"),
                "no answer of an endpoint: {reply:?}"
            );
        }
        assert_eq!(foreign.counters().requests, 0);
        // What haven reads of the number of tries is Envoy's word, not the endpoint's.
        for upstream in &upstreams {
            upstream
                .set(|faults| {
                    drop(
                        faults
                            .headers
                            .insert("x-envoy-attempt-count".into(), "7".into()),
                    )
                })
                .await;
        }
        let reply = envoy.h1().get("/api/users").await.unwrap();
        assert_eq!(
            reply.header("x-envoy-attempt-count").as_deref(),
            Some("1"),
            "{reply:?}"
        );
        assert_eq!(
            upstreams
                .iter()
                .map(|upstream| upstream.counters().requests)
                .sum::<u64>(),
            11
        );
        let underscore = raw::exchange(
            envoy.addr(),
            &raw::get(b"/api/users", b"x_haven_upstream: 1.2.3.4:5\r\n"),
        )
        .await;
        assert_eq!(underscore.unwrap().status, 400);
        assert_eq!(envoy.h1().get("/elsewhere").await.unwrap().status, 404);
    });
}

/// Each try takes 100 ms: less time than that is what the client asks for.
async fn asks_for_less_time(from: &str) {
    let (upstreams, envoy) = reference().await;
    for upstream in &upstreams {
        upstream.set(|faults| faults.delay_ms = 100).await;
    }
    let client = Client::h1_from(envoy.addr(), from.parse().unwrap());
    for header in [
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-rq-per-try-timeout-ms",
    ] {
        let reply = client
            .get_with("/api/users", &[(header, "5")])
            .await
            .unwrap();
        assert!(
            reply.status == 200 && reply.text().contains("ada"),
            "{header} of {from} was obeyed: {reply:?}"
        );
    }
}

#[test]
fn no_client_sets_timeouts() {
    run(asks_for_less_time("127.0.0.41"));
}

#[test]
fn no_client_at_127_0_0_1_sets_timeouts_either() {
    run(asks_for_less_time("127.0.0.1"));
}

#[test]
fn it_survives_dead_and_hung_endpoints() {
    run(async {
        let (upstreams, mut envoy) = reference().await;
        // Each a client of its own, slower than its limit.
        let clients = (31..39)
            .map(|host| Client::h1_from(envoy.addr(), format!("127.0.0.{host}").parse().unwrap()));
        let clients: Vec<Client> = clients.collect();
        let steady = Steady::start(clients.clone(), "/api/users", Duration::from_millis(20));
        wait_for("all are used", async || {
            upstreams
                .iter()
                .all(|upstream| upstream.counters().requests > 10)
        })
        .await;
        let opened = async || {
            envoy.metrics().await.total(
                "haven_circuit_breaker_transitions_total",
                &[("circuit_breaker", "per-endpoint"), ("to", "open")],
            )
        };
        upstreams[0].set(|faults| faults.close = true).await;
        wait_for("the first is found dead", async || opened().await >= 1.0).await;
        // A request whose one retry is under way would otherwise meet the second failure too, and
        // rightly get the fallback.
        let dead = upstreams[0].addr().to_string();
        wait_for("nobody is on the way from it", async || {
            envoy
                .metrics()
                .await
                .total("haven_endpoint_in_flight", &[("endpoint", &dead)])
                == 0.0
        })
        .await;
        upstreams[1].set(|faults| faults.hang = true).await;
        wait_for("the second is found hanging", async || {
            opened().await >= 2.0
        })
        .await;
        let tally = steady.stop().await;
        assert_eq!(tally.total(), tally.count(200), "{tally:?}");
        let metrics = envoy.metrics().await;
        assert_eq!(
            metrics.total("haven_fallbacks_total", &[]),
            0.0,
            "all were real answers"
        );
        let retries = metrics.total("haven_retries_total", &[("route", "users")]);
        let log = envoy.access_log_of(tally.total() as usize).await;
        let logged: Vec<_> = log.iter().filter(|line| line["attempts"] != 1).collect();
        assert!(
            retries >= 2.0 && retries == logged.len() as f64,
            "{retries} retries counted, logged: {logged:?}"
        );
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_write_is_tried_again_only_if_it_was_not_begun() {
    run(async {
        let (upstreams, envoy) = reference().await;
        let client = envoy.h1();
        let write = async || {
            client
                .request("POST", "/api/users", &[], "{}")
                .await
                .unwrap()
        };
        upstreams[0].set(|faults| faults.close = true).await;
        for _ in 0..10 {
            assert_eq!(
                write().await.status,
                200,
                "a dead endpoint has begun nothing"
            );
        }
        for upstream in &upstreams {
            upstream.heal().await;
            upstream.set(|faults| faults.status = Some(503)).await;
        }
        let before: u64 = upstreams
            .iter()
            .map(|upstream| upstream.counters().requests)
            .sum();
        assert_eq!(write().await.status, 503);
        let after: u64 = upstreams
            .iter()
            .map(|upstream| upstream.counters().requests)
            .sum();
        assert_eq!(after - before, 1);
    });
}

#[test]
fn it_falls_back_to_the_last_good_answer_and_then_to_the_fixed_one() {
    run(async {
        let (upstreams, mut envoy) = reference().await;
        let client = envoy.h1();
        let real = client.get("/api/users/7?page=1").await.unwrap();
        assert!(
            real.header("proxy-status").is_none() && real.text().contains("ada"),
            "{real:?}"
        );
        assert_eq!(
            client
                .get_with("/api/users/8", &[("x-api-key", "one")])
                .await
                .unwrap()
                .status,
            200
        );
        let is_stale = async || {
            let stale = client.get("/api/users/7?page=1").await.unwrap();
            assert_eq!((stale.status, &stale.body), (200, &real.body), "{stale:?}");
            assert!(
                stale.header("age").is_some() && stale.header("proxy-status").is_some(),
                "{stale:?}"
            );
        };
        for upstream in &upstreams {
            upstream.set(|faults| faults.hang = true).await;
        }
        is_stale().await;
        // Not in time, then refused, and at last by an open circuit: the answer is the same.
        for upstream in &upstreams {
            upstream.heal().await;
            upstream.set(|faults| faults.close = true).await;
        }
        for _ in 0..30 {
            is_stale().await;
        }
        for (path, headers) in [
            ("/api/users/7", &[][..]),
            ("/api/users/7?page=2", &[]),
            ("/api/users/8", &[]),
            ("/api/users/8", &[("x-api-key", "two")]),
        ] {
            let fixed = client.get_with(path, headers).await.unwrap();
            assert_eq!(
                (fixed.status, fixed.text().as_str()),
                (200, "{\"users\":[]}"),
                "{path}: {fixed:?}"
            );
            assert!(
                fixed.header("age").is_none() && fixed.header("proxy-status").is_some(),
                "{fixed:?}"
            );
        }
        let known = client
            .get_with("/api/users/8", &[("x-api-key", "one")])
            .await
            .unwrap();
        assert!(
            known.header("age").is_some() && known.text().contains("ada"),
            "{known:?}"
        );
        let metrics = envoy.metrics().await;
        let fallbacks = |step| {
            metrics.total(
                "haven_fallbacks_total",
                &[("route", "users"), ("step", step)],
            )
        };
        assert_eq!((fallbacks("stale"), fallbacks("respond")), (32.0, 4.0));
        for reason in ["timeout", "upstream_error", "circuit_open"] {
            let labels = [("mode", "enforce"), ("policy", "users"), ("reason", reason)];
            assert!(counted(&envoy, &labels).await > 0, "{reason}");
        }
        // A write has no fallback.
        let write = client
            .request("POST", "/api/users", &[], "{}")
            .await
            .unwrap();
        assert!(write.status == 503 || write.status == 504, "{write:?}");

        for upstream in &upstreams {
            upstream.heal().await;
        }
        wait_for("the service is back", async || {
            client
                .get("/api/users/9")
                .await
                .unwrap()
                .header("proxy-status")
                .is_none()
        })
        .await;
        nothing_in_flight(&envoy).await;
        assert_eq!(
            envoy
                .metrics()
                .await
                .total("haven_concurrency_in_flight", &[]),
            0.0
        );
        assert_sound(&mut envoy).await;
    });
}

/// `envoy.yaml` with its listener in a file of its own, which Envoy watches: the bootstrap and the
/// listener.
fn discovered(reference: &str, listener: &Path) -> (String, String) {
    let (before, rest) = reference
        .split_once("  listeners:\n  - name: haven\n")
        .unwrap();
    let (listeners, clusters) = rest.split_once("\n  clusters:\n").unwrap();
    let kind = "type.googleapis.com/envoy.config.listener.v3.Listener";
    let listeners = listeners.replace(
        "  - name: haven-health",
        &format!("  - \"@type\": {kind}\n    name: haven-health"),
    );
    let path = listener.display();
    let source = format!(
        "\ndynamic_resources:\n  lds_config: {{ path_config_source: {{ path: {path} }} }}\n"
    );
    let node = "node: { id: reference, cluster: reference }\n";
    (
        format!("{node}{before}  clusters:\n{clusters}{source}"),
        format!("resources:\n  - \"@type\": {kind}\n    name: haven\n{listeners}\n"),
    )
}

#[test]
fn its_switch_makes_the_service_read_only() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
        let text = reference_text(&text, &addrs(&upstreams), &haven_wasm().unwrap());
        let dir = std::env::temp_dir().join(format!("haven-reference-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (bootstrap, on) = discovered(&text, &dir.join("listener.yaml"));
        std::fs::write(dir.join("listener.yaml"), &on).unwrap();
        let mut envoy = Envoy::start(EnvoyConfig::text(bootstrap)).await;
        // Each on a connection of its own: one of before belongs to the listener of before.
        let client = Client::h1_fresh(envoy.addr());
        let write = async || client.request("POST", "/api/users", &[], "{}").await;
        let turn = |listener: &str| {
            std::fs::write(dir.join("next"), listener).unwrap();
            std::fs::rename(dir.join("next"), dir.join("listener.yaml")).unwrap();
        };
        assert_eq!(write().await.unwrap().status, 200);

        let off = on.replace(r#""users-write": "on""#, r#""users-write": "off""#);
        assert_ne!(on, off);
        turn(&off);
        wait_for("writes are off", async || {
            write().await.is_ok_and(|reply| reply.status == 503)
        })
        .await;
        let asked: u64 = upstreams
            .iter()
            .map(|upstream| upstream.counters().requests)
            .sum();
        let refused = write().await.unwrap();
        assert_eq!(refused.json()["reason"], "switched_off", "{refused:?}");
        assert_eq!(
            upstreams
                .iter()
                .map(|upstream| upstream.counters().requests)
                .sum::<u64>(),
            asked
        );
        let read = client.get("/api/users").await.unwrap();
        assert!(
            read.status == 200 && read.header("proxy-status").is_none(),
            "reads go on: {read:?}"
        );
        assert_eq!(
            envoy
                .metric("haven_switch_on", &[("switch", "users-write")])
                .await,
            Some(0.0)
        );

        turn(&on);
        wait_for("writes are on", async || {
            write().await.is_ok_and(|reply| reply.status == 200)
        })
        .await;
        assert_sound(&mut envoy).await;
        std::fs::remove_dir_all(&dir).unwrap();
    });
}
