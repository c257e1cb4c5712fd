//! Balancing policies, levels and restarts in a real Envoy with four workers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{Steady, assert_sound, endpoints, nothing_in_flight};
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, PATIENCE, Route, Tally, Upstream, load, open_loop, raw,
    run, run_alone, wait_for,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

fn addrs(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.addr()).collect()
}

fn requests(upstreams: &[Upstream]) -> Vec<u64> {
    upstreams
        .iter()
        .map(|upstream| upstream.counters().requests)
        .collect()
}

/// All requests go to these upstreams, are tried again elsewhere, and each upstream has a breaker.
fn filter(upstreams: &[Upstream], balancer: &Value) -> Value {
    json!({
        "upstreams": {"users": {"endpoints": endpoints(&addrs(upstreams)), "load_balancer": balancer, "circuit_breaker": "ep"}},
        "circuit_breakers": {"ep": {"consecutive_failures": 2, "open_duration": "300ms", "half_open_calls": 1}},
        "routes": [{"name": "all", "upstream": "users", "retry": {"attempts": 2, "budget": 100, "min_per_second": 1000}}],
    })
}

async fn healthy(envoy: &Envoy, upstream: &Upstream) -> bool {
    let addr = upstream.addr().to_string();
    envoy
        .metric(
            "haven_endpoint_healthy",
            &[("upstream", "users"), ("endpoint", &addr)],
        )
        .await
        == Some(1.0)
}

#[test]
fn round_robin_keeps_to_its_weights_over_all_workers() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let mut filter = filter(&upstreams, &json!({"policy": "round_robin"}));
        filter["upstreams"]["users"]["endpoints"][0]["weight"] = json!(3);
        let mut envoy = Envoy::start(EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter)).await;
        let request =
            |number: u64| format!("GET /{number} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes();
        let tally = raw::flood(envoy.addr(), 16, 40_000, request).await;
        assert_eq!(
            tally,
            Tally {
                by_status: [(200, 40_000)].into(),
                ..Tally::default()
            }
        );
        let seen = requests(&upstreams);
        println!("{seen:?} of weights 3 and 1");
        assert!(
            seen[0].abs_diff(30_000) <= 900 && seen[1].abs_diff(10_000) <= 300,
            "{seen:?}"
        );
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

/// How each policy did: mean, 99th percentile, and the requests that each upstream got.
#[derive(Debug)]
struct Lane {
    name: &'static str,
    mean: Duration,
    p99: Duration,
    seen: Vec<u64>,
}

/// A closed loop of clients, for a time.
async fn measure(name: &'static str, envoy: &Envoy, upstreams: &[Upstream]) -> Lane {
    const CLIENTS: usize = 24;
    let before = requests(upstreams);
    let mut tasks = JoinSet::new();
    let end = Instant::now() + Duration::from_secs(4);
    for _ in 0..CLIENTS {
        let (client, path) = (envoy.h1(), format!("/{name}"));
        tasks.spawn(async move {
            // What is not known at first is learned in the first half second.
            let (warm, mut times) = (Instant::now() + Duration::from_millis(500), Vec::new());
            while Instant::now() < end {
                let sent = Instant::now();
                assert_eq!(client.get(&path).await.unwrap().status, 200);
                if sent > warm {
                    times.push(sent.elapsed());
                }
            }
            times
        });
    }
    let mut times = tasks.join_all().await.concat();
    times.sort_unstable();
    let mean = times.iter().sum::<Duration>() / times.len() as u32;
    let seen = requests(upstreams)
        .iter()
        .zip(before)
        .map(|(now, before)| now - before)
        .collect();
    Lane {
        name,
        mean,
        p99: times[times.len() * 99 / 100],
        seen,
    }
}

#[test]
fn slow_endpoints_cost_no_more_than_with_envoys_own_policies() {
    run_alone(async {
        let upstreams = Upstream::start_many(3).await;
        // 1, 2 and 10 times as slow; each serves eight at a time.
        for (upstream, time) in upstreams.iter().zip([10, 20, 100]) {
            upstream
                .set(|faults| {
                    faults.capacity = Some(8);
                    faults.service_time_ms = time;
                })
                .await;
        }
        let all = addrs(&upstreams);
        let own = |name: &str, policy: &str, message: &str| {
            let kind = format!(
                "type.googleapis.com/envoy.extensions.load_balancing_policies.{policy}.v3.{message}"
            );
            Cluster::new(name, all.clone()).plain().with(&json!({"load_balancing_policy": {"policies": [{
                "typed_extension_config": {
                    "name": format!("envoy.load_balancing_policies.{policy}"), "typed_config": {"@type": kind},
                },
            }]}}))
        };
        let upstream = |policy: &str| json!({"cluster": policy, "endpoints": endpoints(&all), "load_balancer": {"policy": policy}});
        let route = |name: &str| json!({"name": name, "match": {"prefix": format!("/{name}")}, "upstream": name});
        let filter = json!({
            "upstreams": {"least_request": upstream("least_request"), "peak_ewma": upstream("peak_ewma")},
            "routes": [route("least_request"), route("peak_ewma")],
        });
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("least_request", all.clone()))
            .cluster(Cluster::new("peak_ewma", all.clone()))
            .cluster(own("envoy_least_request", "least_request", "LeastRequest"))
            .cluster(own("envoy_round_robin", "round_robin", "RoundRobin"))
            .route(Route::to("/least_request", "least_request"))
            .route(Route::to("/peak_ewma", "peak_ewma"))
            .route(Route::to("/envoy_least_request", "envoy_least_request"))
            .route(Route::to("/envoy_round_robin", "envoy_round_robin"))
            .haven(&filter);
        let mut envoy = Envoy::start(config).await;
        let mut lanes = Vec::new();
        for name in [
            "least_request",
            "peak_ewma",
            "envoy_least_request",
            "envoy_round_robin",
        ] {
            lanes.push(measure(name, &envoy, &upstreams).await);
        }
        for Lane {
            name,
            mean,
            p99,
            seen,
        } in &lanes
        {
            println!("{name:20} mean {mean:>10.1?}  p99 {p99:>10.1?}  requests {seen:?}");
        }
        let [least, ewma, envoys_least, envoys_turn] = &lanes[..] else {
            unreachable!("all were started")
        };
        // Both least_requests balance the same by another count; a busy machine sets them apart by
        // chance alone.
        let best = envoys_least.p99.min(envoys_turn.p99);
        for lane in [least, ewma] {
            assert!(
                lane.p99 <= best.mul_f64(1.2) + Duration::from_millis(10),
                "{}: {:?}, {best:?}",
                lane.name,
                lane.p99
            );
            assert!(
                lane.mean < envoys_turn.mean,
                "{}: {:?}",
                lane.name,
                lane.mean
            );
        }
        assert_sound(&mut envoy).await;
    });
}

/// Which upstream answers each of these keys.
async fn owners(client: &Client, keys: u32) -> BTreeMap<u32, String> {
    let mut owners = BTreeMap::new();
    for key in 0..keys {
        let reply = client
            .get_with("/echo", &[("x-user", &key.to_string())])
            .await
            .unwrap();
        assert_eq!(reply.status, 200);
        owners.insert(key, reply.json()["upstream"].as_str().unwrap().to_owned());
    }
    owners
}

#[test]
fn a_key_keeps_its_endpoint_until_that_dies() {
    run(async {
        let upstreams = Upstream::start_many(4).await;
        let filter = filter(
            &upstreams,
            &json!({"policy": "consistent_hash", "hash_key": [{"header": "x-user"}], "slow_start": "200ms"}),
        );
        let mut envoy = Envoy::start(EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter)).await;
        let before = owners(&envoy.h1(), 200).await;
        // From connections of their own: other workers.
        for _ in 0..3 {
            assert_eq!(owners(&envoy.h1(), 200).await, before);
        }
        let of = |owners: &BTreeMap<u32, String>, name: &str| {
            owners.values().filter(|owner| *owner == name).count()
        };
        for name in ["a", "b", "c", "d"] {
            assert!(
                (25..80).contains(&of(&before, name)),
                "{name}: {} of 200",
                of(&before, name)
            );
        }
        upstreams[1].set(|faults| faults.close = true).await;
        let client = envoy.h1();
        wait_for("it is found out", async || {
            owners(&client, 20).await;
            !healthy(&envoy, &upstreams[1]).await
        })
        .await;
        let after = owners(&client, 200).await;
        for (key, owner) in &before {
            assert!(
                after[key] == *owner || owner == "b",
                "key {key} went from {owner} to {}",
                after[key]
            );
        }
        assert_eq!(of(&after, "b"), 0);
        for name in ["a", "c", "d"] {
            assert!(
                of(&after, name) > of(&before, name),
                "what b had is spread: {name}"
            );
        }
        upstreams[1].heal().await;
        wait_for("all keys are back", async || {
            owners(&client, 200).await == before
        })
        .await;
        // Who has no key goes anywhere.
        let seen = requests(&upstreams);
        assert_eq!(load(&envoy.h1(), 200, 4, "/", &[]).await.count(200), 200);
        assert!(
            requests(&upstreams)
                .iter()
                .zip(seen)
                .all(|(now, before)| now - before > 20)
        );
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

/// Equal endpoints share what the slow one is spared, with two requests in flight: the one that is
/// faster by a hair does not get all, nor does a slow answer now and then, of which a busy machine
/// makes some, take all from its endpoint.
#[test]
fn equal_endpoints_share_alike_with_little_in_flight() {
    const REQUESTS: u32 = 500;
    // What other tests keep the machine busy with would make peaks of its own.
    run_alone(async {
        let upstreams = Upstream::start_many(3).await;
        for (upstream, time) in upstreams.iter().zip([5, 5, 200]) {
            upstream.set(|faults| faults.delay_ms = time).await;
        }
        let filter = filter(&upstreams, &json!({"policy": "peak_ewma"}));
        let mut envoy = Envoy::start(EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter)).await;
        let clients: Vec<_> = (0..8).map(|_| envoy.h2()).collect();
        let request = |number: u32| open_loop::Request {
            at: Duration::from_millis(10) * number,
            client: number as usize % clients.len(),
            method: "GET",
            path: "/".to_owned(),
            headers: Vec::new(),
            patience: PATIENCE,
        };
        let outcomes = open_loop::send(&clients, (0..REQUESTS).map(request), Instant::now()).await;
        assert!(outcomes.iter().all(|outcome| outcome.status == 200));
        let seen = requests(&upstreams);
        println!("{seen:?} at 5, 5 and 200 ms");
        let [one, other, slow] = seen[..] else {
            unreachable!("three were started")
        };
        let equal = one + other;
        assert!(one * 10 >= equal * 4 && other * 10 >= equal * 4, "{seen:?}");
        assert!(slow * 10 <= u64::from(REQUESTS), "{seen:?}");
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

/// Requests away from the endpoint of their key: 2,000 of 200 keys, 32 at once.
async fn away(envoy: &Envoy, owners: &BTreeMap<u32, String>) -> u64 {
    const AT_ONCE: u32 = 32;
    let owners = std::sync::Arc::new(owners.clone());
    let mut tasks = JoinSet::new();
    for first in 0..AT_ONCE {
        let (client, owners) = (envoy.h1(), owners.clone());
        tasks.spawn(async move {
            let mut away = 0;
            for number in (first..2_000).step_by(AT_ONCE as usize) {
                // In another order than they were asked for first.
                let key = number * 77 % 200;
                let headers = [("x-user", &*key.to_string())];
                let reply = client.get_with("/echo", &headers).await.unwrap();
                assert_eq!(reply.status, 200);
                away += u64::from(reply.json()["upstream"] != owners[&key]);
            }
            away
        });
    }
    tasks.join_all().await.iter().sum()
}

#[test]
fn keys_stay_at_their_endpoint_with_many_requests_at_once_unless_a_bound_is_set() {
    run(async {
        for bounded in [false, true] {
            let upstreams = Upstream::start_many(4).await;
            let mut balancer =
                json!({"policy": "consistent_hash", "hash_key": [{"header": "x-user"}]});
            if bounded {
                balancer["bounded_load"] = json!(1.25);
            }
            let filter = filter(&upstreams, &balancer);
            let mut envoy =
                Envoy::start(EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter)).await;
            // One after the other: nothing is in flight that could move a key.
            let owners = owners(&envoy.h1(), 200).await;
            for upstream in &upstreams {
                upstream.set(|faults| faults.delay_ms = 20).await;
            }
            let away = away(&envoy, &owners).await;
            let at_once: u64 = upstreams
                .iter()
                .map(|upstream| upstream.counters().max_in_flight)
                .sum();
            println!(
                "bounded: {bounded}: {away} of 2,000 away from their endpoint, {at_once} at once"
            );
            assert!(at_once >= 16, "{at_once} at once");
            assert_eq!(away > 0, bounded, "{away} of 2,000");
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn a_rolling_restart_of_all_endpoints_loses_nothing() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let filter = filter(
            &upstreams,
            &json!({"policy": "round_robin", "slow_start": "1s"}),
        );
        let mut envoy = Envoy::start(EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter)).await;
        // At least 500 requests a second, if the machine can: twelve clients, one in 20 ms each.
        let clients = (0..12).map(|number| {
            if number % 2 == 0 {
                envoy.h1()
            } else {
                envoy.h2()
            }
        });
        let begun = Instant::now();
        let steady = Steady::start(clients, "/", Duration::from_millis(18));
        for upstream in &upstreams {
            wait_for("it is used", async || upstream.counters().requests > 30).await;
            upstream.set(|faults| faults.close = true).await;
            wait_for("it is found out", async || !healthy(&envoy, upstream).await).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            upstream.heal().await;
            wait_for("it is back", async || healthy(&envoy, upstream).await).await;
        }
        let tally = steady.stop().await;
        println!("{tally:?} in {:?}", begun.elapsed());
        assert_eq!(tally.count(200), tally.total(), "{tally:?}");
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn the_second_level_serves_while_the_first_is_down() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let mut filter = filter(&upstreams, &json!({"policy": "random"}));
        filter["upstreams"]["users"]["endpoints"][2]["priority"] = json!(1);
        let mut envoy = Envoy::start(EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter)).await;
        let clients: Vec<Client> = (0..8).map(|_| envoy.h1()).collect();
        let steady = Steady::start(clients, "/", Duration::from_millis(4));
        let [a, b, cold] = &upstreams[..] else {
            unreachable!("all were started")
        };
        wait_for("the first level serves", async || {
            a.counters().requests > 200 && b.counters().requests > 200
        })
        .await;
        assert_eq!(cold.counters().requests, 0);

        a.set(|faults| faults.close = true).await;
        wait_for("one is found out", async || !healthy(&envoy, a).await).await;
        let before = b.counters().requests;
        wait_for("the other carries on", async || {
            b.counters().requests > before + 200
        })
        .await;
        assert_eq!(cold.counters().requests, 0, "half of the level is enough");

        b.set(|faults| faults.close = true).await;
        wait_for("the second level serves", async || {
            cold.counters().requests > 200
        })
        .await;
        for upstream in [a, b] {
            upstream.heal().await;
            wait_for("it is back", async || healthy(&envoy, upstream).await).await;
        }
        // What was on its way may still come.
        let mut last = u64::MAX;
        wait_for("the second level rests again", async || {
            let before = (
                a.counters().requests,
                std::mem::replace(&mut last, cold.counters().requests),
            );
            wait_for("the first one works", async || {
                a.counters().requests > before.0 + 100
            })
            .await;
            before.1 == cold.counters().requests
        })
        .await;
        let tally = steady.stop().await;
        // Both of the first level were dead before all workers knew: a list has no more than these
        // two.
        println!("{tally:?}");
        assert!(
            tally.count(503) * 100 <= tally.total() && tally.failed() == 0,
            "{tally:?}"
        );
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}
