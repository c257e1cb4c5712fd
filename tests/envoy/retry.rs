//! Retries in a real Envoy: who gets them, where they go, and what they add to a storm.

use std::time::Duration;

use crate::filter::{Steady, assert_sound, endpoints, grpc, nothing_in_flight};
use crate::support::{Cluster, Envoy, EnvoyConfig, Route, Upstream, load, run};
use serde_json::{Value, json};

/// One route for all, to these upstreams.
fn filter(upstreams: &[Upstream], retry: &Value) -> Value {
    let addrs: Vec<_> = upstreams.iter().map(|upstream| upstream.addr()).collect();
    json!({
        "upstreams": {"users": {"endpoints": endpoints(&addrs)}},
        "routes": [{"name": "all", "upstream": "users", "retry": retry}],
    })
}

async fn envoy(upstreams: &[Upstream], filter: &Value) -> Envoy {
    Envoy::start(
        EnvoyConfig::proxy(upstreams.iter().map(|upstream| upstream.addr()))
            .internal_clients()
            .haven(filter),
    )
    .await
}

fn requests(upstreams: &[Upstream]) -> u64 {
    upstreams
        .iter()
        .map(|upstream| upstream.counters().requests)
        .sum()
}

async fn retries(envoy: &Envoy) -> u64 {
    envoy
        .metrics()
        .await
        .total("haven_retries_total", &[("route", "all")]) as u64
}

#[test]
fn a_killed_endpoint_is_no_clients_business() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let mut filter = filter(&upstreams, &json!({"min_per_second": 100}));
        filter["circuit_breakers"] =
            json!({"ep": {"consecutive_failures": 3, "open_duration": "300ms"}});
        filter["upstreams"]["users"]["circuit_breaker"] = json!("ep");
        let mut envoy = envoy(&upstreams, &filter).await;
        let clients = (0..4).map(|_| envoy.h1()).collect::<Vec<_>>();
        let steady = Steady::start(clients, "/", Duration::from_millis(10));
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        upstreams[1].set(|faults| faults.close = true).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let tally = steady.stop().await;
        assert_eq!(tally.count(200), tally.total(), "{tally:?}");
        assert!(retries(&envoy).await > 0);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn only_what_may_be_sent_twice_is_and_whatever_clients_ask_for() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        for upstream in &upstreams {
            upstream.set(|faults| faults.status = Some(503)).await;
        }
        let envoy = envoy(
            &upstreams,
            &filter(&upstreams, &json!({"budget": 100, "min_per_second": 100})),
        )
        .await;
        let client = envoy.h1();
        for (method, headers, tries) in [
            ("GET", &[][..], 2),
            ("PUT", &[], 2),
            ("POST", &[], 1),
            ("PATCH", &[], 1),
            (
                "POST",
                &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "9")],
                1,
            ),
            (
                "GET",
                &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "9")],
                2,
            ),
        ] {
            let before = requests(&upstreams);
            assert_eq!(
                client
                    .request(method, "/", headers, "")
                    .await
                    .unwrap()
                    .status,
                503
            );
            assert_eq!(requests(&upstreams) - before, tries, "{method} {headers:?}");
        }
        assert_eq!(retries(&envoy).await, 3);
        let counters = upstreams
            .iter()
            .map(|upstream| upstream.counters().requests)
            .collect::<Vec<_>>();
        assert!(
            counters.iter().all(|n| *n >= 3),
            "each try goes to another: {counters:?}"
        );
    });
}

#[test]
fn envoys_own_retries_have_no_say_on_a_route_with_ours() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        for upstream in &upstreams {
            upstream.set(|faults| faults.status = Some(503)).await;
        }
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new(
                "users",
                upstreams.iter().map(|upstream| upstream.addr()),
            ))
            .route(Route::to("/", "users").retry(&crate::support::Retry::default()));
        let envoy = Envoy::start(config.haven(&filter(&upstreams, &json!({"budget": 100})))).await;
        let client = envoy.h1();
        client.request("POST", "/", &[], "").await.unwrap();
        assert_eq!(requests(&upstreams), 1);
        client.get("/").await.unwrap();
        assert_eq!(requests(&upstreams), 3);
    });
}

#[test]
fn grpc_calls_are_tried_again_where_the_route_speaks_of_their_statuses() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        for upstream in &upstreams {
            upstream
                .set(|faults| {
                    faults
                        .headers
                        .insert("content-type".into(), "application/grpc".into());
                    faults.headers.insert("grpc-status".into(), "14".into());
                })
                .await;
        }
        for (on, tries) in [
            (json!(["unavailable"]), 2),
            (json!(["internal"]), 1),
            (json!(["reset", "gateway-error"]), 1),
        ] {
            let config = EnvoyConfig::empty()
                .cluster(
                    Cluster::new("users", upstreams.iter().map(|upstream| upstream.addr())).http2(),
                )
                .route(Route::to("/", "users"));
            let envoy = Envoy::start(config.haven(&filter(&upstreams, &json!({"on": on})))).await;
            let before = requests(&upstreams);
            let (status, _) = grpc(&envoy.h2(), envoy.addr(), "/users.Users/List").await;
            assert_eq!(status.as_deref(), Some("14"));
            assert_eq!(requests(&upstreams) - before, tries, "{on}");
        }
    });
}

#[test]
fn a_storm_is_not_made_worse_than_its_budget() {
    run(async {
        // Three of five fail: 60 % of all tries.
        let upstreams = Upstream::start_many(5).await;
        // A floor that no machine is slow enough to come down to.
        let retry = json!({"on": ["5xx"], "attempts": 3, "min_per_second": 1});
        let mut config = filter(&upstreams, &retry);
        // least_request would soon avoid those that fail.
        config["upstreams"]["users"]["load_balancer"] = json!({"policy": "round_robin"});
        let mut envoy = envoy(&upstreams, &config).await;
        let clients: Vec<_> = (0..16).map(|_| envoy.h1()).collect();
        let calm = Steady::start(clients.clone(), "/", Duration::from_millis(40));
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(calm.stop().await.count(200), requests(&upstreams));
        for upstream in &upstreams[..3] {
            upstream.set(|faults| faults.status = Some(500)).await;
        }
        let before = requests(&upstreams);
        let storm = Steady::start(clients, "/", Duration::from_millis(40));
        tokio::time::sleep(Duration::from_secs(8)).await;
        let tally = storm.stop().await;
        let (sent, tried) = (tally.total(), requests(&upstreams) - before);
        assert!(tally.count(500) > 0 && tally.count(200) > 0, "{tally:?}");
        assert!(tried * 100 < sent * 125, "{tried} for {sent}");
        assert!(
            tried * 100 > sent * 110,
            "the budget is there to be used: {tried} for {sent}"
        );
        assert_eq!(retries(&envoy).await, tried - sent);
        println!(
            "{tried} upstream requests for {sent}: {} %",
            tried * 100 / sent
        );
        // It is over: single failures are tried again as before.
        for upstream in &upstreams {
            upstream.heal().await;
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(load(&envoy.h1(), 100, 4, "/", &[]).await.count(200), 100);
        assert_sound(&mut envoy).await;
    });
}
