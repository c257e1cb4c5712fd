//! `"steer": "by_exception"` in a real Envoy: its own least_request while all endpoints are well, and
//! haven's pick while one is not, by one cluster and by two.

use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{assert_sound, endpoints, nothing_in_flight, transitions};
use crate::support::{
    Cluster, Envoy, EnvoyConfig, Exceptions, Retry, Route, Upstream, dead_addr, load, run, wait_for,
};
use serde_json::{Value, json};

/// How Envoy follows: by one cluster whose fallback is its own choice, or by a route and a cluster
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wiring {
    One,
    Two,
}

/// Both wirings, and both ways to learn outcomes.
const ALL: [(Wiring, &str); 4] = [
    (Wiring::One, "every"),
    (Wiring::Two, "every"),
    (Wiring::One, "by_exception"),
    (Wiring::Two, "by_exception"),
];

fn filter(addrs: &[SocketAddr], outcomes: &str) -> Value {
    json!({
        "outcomes": outcomes,
        "upstreams": {"users": {"endpoints": endpoints(addrs), "steer": "by_exception"}},
        "routes": [{"name": "users", "upstream": "users"}],
    })
}

/// An Envoy of these endpoints, with one worker.
fn envoy(addrs: &[SocketAddr], (wiring, outcomes): (Wiring, &str)) -> EnvoyConfig {
    let cluster = |name| Cluster::new(name, addrs.to_vec()).least_request();
    // What is to be retried, and how often, haven says.
    let retry = Retry {
        on: String::new(),
        num_retries: 1,
        back_off: Some([Duration::from_millis(1), Duration::from_millis(2)]),
        ..Retry::default()
    };
    let route = |cluster| Route::to("/", cluster).retry(&retry);
    let mut config = EnvoyConfig::empty()
        .concurrency(1)
        .cluster(cluster("users"));
    config = match wiring {
        Wiring::One => config.route(route("users")),
        Wiring::Two => config
            .cluster(cluster("own").plain())
            .route(route("users").having("x-haven-upstream"))
            .route(route("own")),
    };
    if outcomes == "by_exception" {
        config = config.exceptions(Exceptions::Wired);
    }
    config
}

fn addrs(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.addr()).collect()
}

/// How many requests haven has steered, where that has a cluster of its own.
async fn steered(envoy: &Envoy) -> u64 {
    envoy.stat("cluster.users.upstream_rq_total").await
}

fn received(upstreams: &[Upstream]) -> Vec<u64> {
    let all = upstreams.iter();
    all.map(|upstream| upstream.counters().requests).collect()
}

async fn good(envoy: &Envoy, requests: u64) {
    let tally = load(&envoy.h2(), requests, 4, "/echo", &[]).await;
    assert_eq!(tally.count(200), requests, "{tally:?}");
}

#[test]
fn envoy_chooses_while_all_are_well() {
    run(async {
        for case in ALL {
            let upstreams = Upstream::start_many(3).await;
            let addrs = addrs(&upstreams);
            let config = envoy(&addrs, case).haven(&filter(&addrs, case.1));
            let mut envoy = Envoy::start(config).await;
            good(&envoy, 600).await;
            if case.0 == Wiring::Two {
                assert_eq!(steered(&envoy).await, 0, "{case:?}");
            }
            let received = received(&upstreams);
            assert!(received.iter().all(|n| *n > 100), "{case:?}: {received:?}");
            assert!(!envoy.logs().contains("answered where"), "{}", envoy.logs());
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn a_drained_endpoint_gets_nothing() {
    run(async {
        for case in ALL {
            let upstreams = Upstream::start_many(3).await;
            let addrs = addrs(&upstreams);
            let mut filter = filter(&addrs, case.1);
            filter["upstreams"]["users"]["endpoints"][1]["weight"] = json!(0);
            let mut envoy = Envoy::start(envoy(&addrs, case).haven(&filter)).await;
            good(&envoy, 300).await;
            let received = received(&upstreams);
            assert_eq!(received[1], 0, "{case:?}");
            // Evenly: haven's own pick, by what is in flight.
            assert!(received[0] > 100 && received[2] > 100, "{received:?}");
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn what_fails_is_steered_round_tried_and_given_back_to_envoy() {
    run(async {
        for case in ALL {
            let upstreams = Upstream::start_many(3).await;
            let addrs = addrs(&upstreams);
            let mut filter = filter(&addrs, case.1);
            filter["upstreams"]["users"]["load_balancer"] = json!({"slow_start": "1s"});
            let mut envoy = Envoy::start(envoy(&addrs, case).haven(&filter)).await;
            good(&envoy, 60).await;
            upstreams[1].set(|faults| faults.status = Some(503)).await;
            let tally = load(&envoy.h2(), 300, 1, "/echo", &[]).await;
            // Three in a row, and at most a trial each second that this takes.
            let failed = tally.count(503);
            assert!((3..10).contains(&failed), "{case:?}: {tally:?}");
            assert_eq!(transitions(&envoy, "users/outlier", "closed").await, 0);
            upstreams[1].heal().await;
            wait_for("a trial is well", async || {
                good(&envoy, 10).await;
                transitions(&envoy, "users/outlier", "closed").await == 1
            })
            .await;
            // It ramps, and is then as the others: Envoy chooses again.
            let before = steered(&envoy).await;
            good(&envoy, 20).await;
            if case.0 == Wiring::Two {
                assert_eq!(steered(&envoy).await, before + 20, "{case:?}");
                wait_for("Envoy chooses again", async || {
                    let before = steered(&envoy).await;
                    good(&envoy, 10).await;
                    steered(&envoy).await == before
                })
                .await;
            }
            assert!(!envoy.logs().contains("answered where"), "{}", envoy.logs());
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

/// Each request is tried once more, at the other endpoint, steered or not; and the one that refuses
/// is found out though every request is answered well.
#[test]
fn a_retry_goes_elsewhere_and_shows_who_fails() {
    run(async {
        for case in ALL {
            let upstream = Upstream::start("good").await;
            let (dead, _kept) = dead_addr();
            let addrs = [upstream.addr(), dead];
            let mut filter = filter(&addrs, case.1);
            filter["routes"][0]["retry"] =
                json!({"attempts": 1, "budget": 100, "min_per_second": 1000});
            // Without a breaker nothing is taken out, and every failure is a retry.
            let open = filter.clone();
            filter["upstreams"]["users"]["outlier"] = json!("off");
            let mut never = Envoy::start(envoy(&addrs, case).haven(&filter)).await;
            good(&never, 300).await;
            assert!(never.stat("cluster.users.upstream_cx_connect_fail").await > 0);
            assert_sound(&mut never).await;
            let mut found = Envoy::start(envoy(&addrs, case).haven(&open)).await;
            good(&found, 300).await;
            assert_eq!(transitions(&found, "users/outlier", "closed").await, 0);
            assert!(
                transitions(&found, "users/outlier", "open").await >= 1,
                "{case:?}"
            );
            assert_sound(&mut found).await;
        }
    });
}

#[test]
fn all_workers_steer_once_one_knows() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let addrs = addrs(&upstreams);
        let config = envoy(&addrs, (Wiring::Two, "by_exception")).concurrency(4);
        let mut filter = filter(&addrs, "by_exception");
        let once = json!({"consecutive_failures": 1, "open_duration": "10m"});
        filter["circuit_breakers"] = json!({"endpoint": once});
        filter["upstreams"]["users"]["circuit_breaker"] = json!("endpoint");
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        upstreams[1].set(|faults| faults.status = Some(500)).await;
        let client = envoy.h2();
        wait_for("it has opened", async || {
            let _ = client.get("/echo").await;
            transitions(&envoy, "endpoint", "open").await == 1
        })
        .await;
        // Each on a connection of its own, and so by chance at each worker.
        let before = upstreams[1].counters().requests;
        for _ in 0..60 {
            assert_eq!(envoy.h2().get("/echo").await.unwrap().status, 200);
        }
        assert_eq!(upstreams[1].counters().requests, before);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn missing_wiring_is_told() {
    run(async {
        for outcomes in ["every", "by_exception"] {
            // No cluster follows the header: the one that fails goes on getting requests.
            let upstreams = Upstream::start_many(3).await;
            let addrs = addrs(&upstreams);
            upstreams[1].set(|faults| faults.status = Some(503)).await;
            let plain = Cluster::new("users", addrs.clone()).least_request().plain();
            let mut config = EnvoyConfig::empty().concurrency(1).cluster(plain);
            if outcomes == "by_exception" {
                config = config.exceptions(Exceptions::Wired);
            }
            let config = config.route(Route::to("/", "users"));
            let mut envoy = Envoy::start(config.haven(&filter(&addrs, outcomes))).await;
            load(&envoy.h2(), 300, 2, "/echo", &[]).await;
            assert!(
                envoy.logs().contains("Envoy's cluster lacks override_host"),
                "{}",
                envoy.logs()
            );
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn an_endpoint_that_only_envoy_has_is_told_and_left_alone() {
    run(async {
        for case in ALL {
            let upstreams = Upstream::start_many(3).await;
            let addrs = addrs(&upstreams);
            let config = envoy(&addrs, case).haven(&filter(&addrs[..2], case.1));
            let mut envoy = Envoy::start(config).await;
            let third = &upstreams[2];
            wait_for("it is noticed", async || {
                good(&envoy, 50).await;
                envoy.logs().contains("Envoy chooses")
            })
            .await;
            let before = third.counters().requests;
            good(&envoy, 100).await;
            assert_eq!(third.counters().requests, before, "{case:?}");
            assert_sound(&mut envoy).await;
        }
    });
}
