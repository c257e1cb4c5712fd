//! The reference configuration `envoy.yaml`, as it stands but for addresses.

#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "test code: a failed assumption is to end the test at once; clippy only sees that in functions marked #[test]"
)]

#[path = "support/haven.rs"]
mod haven;
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use haven::{Steady, assert_sound, counted, nothing_in_flight};
use support::{Client, Envoy, EnvoyConfig, Upstream, load, raw, run, wait_for};

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
    let nobody: Vec<SocketAddr> = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
    Envoy::validate(&EnvoyConfig::reference(&nobody)).unwrap();
}

#[test]
fn it_limits_a_noisy_client_and_says_so_everywhere() {
    run(async {
        let (_upstreams, mut envoy) = reference().await;
        let noisy = Client::h2_from(envoy.addr(), "127.0.0.21".parse().unwrap());
        let quiet = Client::h1_from(envoy.addr(), "127.0.0.22".parse().unwrap());
        let tally = load(&noisy, 2000, 32, "/api/users", &[]).await;
        let (passed, refused) = (tally.count(200), tally.count(429));
        assert!(passed >= 50 && refused > 0 && passed + refused == 2000, "{tally:?}");
        assert_eq!(load(&quiet, 20, 1, "/api/users", &[]).await.count(200), 20, "others are not limited");
        // No way around it by another spelling of the path, or by a forged address.
        load(&noisy, 200, 16, "/api/users", &[]).await;
        let mut forged = 0;
        for path in ["//api/users", "/x/../api/users", "/api//users", "/api/users/", "/api/users/7?x=1"] {
            let again = load(&noisy, 100, 16, path, &[("x-forwarded-for", "198.51.100.7")]).await;
            forged += again.count(429);
        }
        assert!(forged > 100, "{forged}");

        let metrics = envoy.metrics().await;
        let labels = |labels: &[(&str, &str)]| -> BTreeMap<String, String> {
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let series: Vec<_> =
            metrics.matching("haven_decisions_total", &[("policy", "per-client"), ("route", "users")]).collect();
        assert_eq!(series.len(), 1, "{series:?}");
        let want = [("route", "users"), ("policy", "per-client"), ("reason", "rate_limited"), ("mode", "enforce")];
        assert_eq!(series[0].labels, labels(&want));
        assert!(series[0].value >= (refused + forged) as f64, "{series:?}");
        let one = |name: &str| metrics.matching(name, &[]).map(|series| series.labels.clone()).collect::<Vec<_>>();
        assert!(one("haven_rate_limit_keys").contains(&labels(&[("policy", "per-client")])));
        assert!(
            one("haven_circuit_breaker_state").contains(&labels(&[("circuit_breaker", "users"), ("key", "users")]))
        );
        let to_open = labels(&[("circuit_breaker", "users"), ("to", "open")]);
        assert!(one("haven_circuit_breaker_transitions_total").contains(&to_open));
        assert!(one("haven_fallbacks_total").contains(&labels(&[("route", "users"), ("step", "respond")])));
        assert!(one("haven_endpoint_in_flight").iter().all(|labels| labels.len() == 2));
        assert_eq!(one("haven_endpoint_in_flight").len(), 3);
        assert!(one("haven_upstream_duration_ms_count").contains(&labels(&[("route", "users")])), "a histogram");
        let odd: Vec<_> = metrics.series.iter().filter(|series| series.name.contains(';')).collect();
        assert!(odd.is_empty(), "labels are left in names: {odd:?}");

        let log = envoy.access_log_of(2000).await;
        for line in &log {
            let limited = line["status"] == 429;
            let want = if limited { "rate_limited per-client enforce" } else { "-" };
            assert_eq!(line["decision"].as_str().unwrap_or("-"), want, "{line}");
            assert_eq!(line["upstream"].as_str().is_some_and(|upstream| upstream.contains(':')), !limited, "{line}");
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
        let headers = [("x-haven-upstream", claim.as_str()), ("x-haven-cluster", "other")];
        for _ in 0..10 {
            let reply = envoy.h1().get_with("/api/users", &headers).await.unwrap();
            assert!(reply.status == 200 && reply.text().contains("ada"), "no answer of an endpoint: {reply:?}");
        }
        assert_eq!(foreign.counters().requests, 0);
        assert_eq!(upstreams.iter().map(|upstream| upstream.counters().requests).sum::<u64>(), 10);
        let underscore =
            raw::exchange(envoy.addr(), &raw::get(b"/api/users", b"x_haven_upstream: 1.2.3.4:5\r\n")).await;
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
    for header in ["x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms"] {
        let reply = client.get_with("/api/users", &[(header, "5")]).await.unwrap();
        assert!(reply.status == 200 && reply.text().contains("ada"), "{header} of {from} was obeyed: {reply:?}");
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
fn it_survives_dead_and_hung_endpoints_and_falls_back_when_none_is_left() {
    run(async {
        let (upstreams, mut envoy) = reference().await;
        // Each a client of its own, slower than its limit.
        let clients = (31..39).map(|host| Client::h1_from(envoy.addr(), format!("127.0.0.{host}").parse().unwrap()));
        let clients: Vec<Client> = clients.collect();
        let steady = Steady::start(clients.clone(), "/api/users", Duration::from_millis(20));
        wait_for("all are used", async || upstreams.iter().all(|upstream| upstream.counters().requests > 10)).await;
        let opened = async || {
            envoy.metrics().await.total(
                "haven_circuit_breaker_transitions_total",
                &[("circuit_breaker", "per-endpoint"), ("to", "open")],
            )
        };
        upstreams[0].set(|faults| faults.close = true).await;
        wait_for("the first is found dead", async || opened().await >= 1.0).await;
        upstreams[1].set(|faults| faults.hang = true).await;
        wait_for("the second is found hanging", async || opened().await >= 2.0).await;
        let tally = steady.stop().await;
        assert_eq!(tally.total(), tally.count(200), "{tally:?}");
        let fallbacks = async || envoy.metrics().await.total("haven_fallbacks_total", &[("route", "users")]);
        assert_eq!(fallbacks().await, 0.0, "all were real answers");

        upstreams[1]
            .set(|faults| {
                faults.hang = false;
                faults.close = true;
            })
            .await;
        upstreams[2].set(|faults| faults.close = true).await;
        let tally = load(&clients[0], 40, 2, "/api/users", &[]).await;
        assert_eq!(tally.count(200), 40, "{tally:?}");
        let reply = clients[1].get("/api/users").await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "{\"users\":[]}"), "{reply:?}");
        assert!(reply.header("proxy-status").is_some());
        assert!(fallbacks().await > 0.0);
        assert!(counted(&envoy, &[("mode", "enforce")]).await > 0);
        // A write has no fallback.
        let write = clients[2].request("POST", "/api/users", &[], "{}").await.unwrap();
        assert_eq!(write.status, 503);

        for upstream in &upstreams {
            upstream.heal().await;
        }
        wait_for("the service is back", async || clients[3].get("/api/users").await.unwrap().text().contains("ada"))
            .await;
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}
