//! The choice of endpoints in a real Envoy with four workers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{
    Steady, assert_sound, counted, endpoints, hanging, in_flight, nothing_in_flight, transitions,
};
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Faults, Retry, Route, Upstream, dead_addr, load, raw, run,
    wait_for,
};
use serde_json::{Value, json};

fn addrs(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.addr()).collect()
}

/// A filter that spreads all requests over these endpoints; each has a breaker.
fn filter(endpoints: &Value, breaker: &Value) -> Value {
    json!({
        "upstreams": {"users": {"endpoints": endpoints, "circuit_breaker": "endpoint"}},
        "circuit_breakers": {"endpoint": breaker},
        "routes": [{"name": "users", "upstream": "users"}],
    })
}

fn usual_breaker() -> Value {
    json!({"consecutive_failures": 3, "open_duration": "500ms", "half_open_calls": 1})
}

/// An Envoy that retries at the next endpoint of the list.
fn retrying(endpoints: &[SocketAddr], per_try: Duration) -> EnvoyConfig {
    let retry = Retry {
        per_try_timeout: Some(per_try),
        ..Retry::default()
    };
    EnvoyConfig::empty()
        .cluster(Cluster::new("users", endpoints.to_vec()))
        .route(Route::to("/", "users").retry(&retry))
}

async fn healthy(envoy: &Envoy, endpoint: SocketAddr) -> Option<f64> {
    envoy
        .metric(
            "haven_endpoint_healthy",
            &[("upstream", "users"), ("endpoint", &endpoint.to_string())],
        )
        .await
}

/// Four clients of HTTP/1.1 and four of HTTP/2, each on a connection of its own.
fn eight_clients(envoy: &Envoy) -> Vec<Client> {
    (0..8)
        .map(|number| {
            if number % 2 == 0 {
                envoy.h1()
            } else {
                envoy.h2()
            }
        })
        .collect()
}

#[test]
fn endpoints_get_their_share_by_weight() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        for upstream in &upstreams {
            upstream.set(|faults| faults.delay_ms = 20).await;
        }
        let mut endpoints = endpoints(&addrs(&upstreams));
        for (endpoint, weight) in endpoints.as_array_mut().unwrap().iter_mut().zip([3, 2, 1]) {
            endpoint["weight"] = json!(weight);
        }
        let config =
            EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter(&endpoints, &usual_breaker()));
        let mut envoy = Envoy::start(config).await;
        assert_eq!(load(&envoy.h2(), 1800, 24, "/", &[]).await.count(200), 1800);
        let seen: Vec<u64> = upstreams
            .iter()
            .map(|upstream| upstream.counters().requests)
            .collect();
        println!("{seen:?}");
        for (seen, want) in seen.iter().zip([900u64, 600, 300]) {
            assert!(
                seen.abs_diff(want) <= want / 5,
                "{seen} requests, about {want} wanted"
            );
        }
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn an_endpoint_that_is_slow_gets_fewer_requests_and_one_of_weight_zero_none() {
    run(async {
        let upstreams = Upstream::start_many(4).await;
        for (upstream, delay) in upstreams.iter().zip([20, 20, 200, 0]) {
            upstream.set(|faults| faults.delay_ms = delay).await;
        }
        let mut endpoints = endpoints(&addrs(&upstreams));
        endpoints[3]["weight"] = json!(0);
        let config =
            EnvoyConfig::proxy(addrs(&upstreams)).haven(&filter(&endpoints, &usual_breaker()));
        let envoy = Envoy::start(config).await;
        assert_eq!(load(&envoy.h1(), 900, 18, "/", &[]).await.count(200), 900);
        let seen: Vec<u64> = upstreams
            .iter()
            .map(|upstream| upstream.counters().requests)
            .collect();
        println!("{seen:?}");
        assert!(
            seen[2] * 3 < seen[0] && seen[2] * 3 < seen[1],
            "the slow one had its share: {seen:?}"
        );
        assert!(seen[2] > 0 && seen[3] == 0, "{seen:?}");
    });
}

#[test]
fn at_most_three_endpoints_are_listed_and_no_client_can_name_one() {
    run(async {
        let upstreams = Upstream::start_many(6).await;
        let mine = addrs(&upstreams[..5]);
        let foreign = upstreams[5].addr();
        // The cluster knows the sixth; the filter does not.
        let mut config = filter(&endpoints(&mine), &usual_breaker());
        config["routes"][0]["match"] = json!({"prefix": "/echo/users"});
        let cluster = Cluster::new("users", addrs(&upstreams)).show_override_header();
        let envoy = EnvoyConfig::empty()
            .cluster(cluster)
            .route(Route::to("/", "users"))
            .haven(&config);
        let mut envoy = Envoy::start(envoy).await;
        let known: BTreeSet<String> = mine.iter().map(ToString::to_string).collect();

        let claims: Vec<String> = vec![
            String::new(),
            format!("x-haven-upstream: {foreign}\r\n"),
            format!(
                "X-Haven-Upstream: {foreign}\r\nx-haven-upstream: {foreign}\r\nX-HAVEN-UPSTREAM: {foreign},{foreign}\r\n"
            ),
            format!(
                "x-haven-cluster: other\r\nX-Haven-Cluster: {foreign}\r\nx-haven-upstream:\r\n"
            ),
        ];
        for claim in &claims {
            for _ in 0..10 {
                let bytes = raw::get(b"/echo/users", claim.as_bytes());
                let reply = raw::exchange(envoy.addr(), &bytes).await.unwrap();
                assert_eq!(reply.status, 200, "{}", reply.text());
                let text = reply.text();
                let body = &text[text.find("\r\n\r\n").unwrap()..];
                let echo: Value =
                    serde_json::from_str(&body[body.find('{').unwrap()..=body.rfind('}').unwrap()])
                        .unwrap();
                let list: Vec<&str> = echo["headers"]["x-haven-upstream"]
                    .as_str()
                    .unwrap()
                    .split(',')
                    .collect();
                let distinct: BTreeSet<&str> = list.iter().copied().collect();
                assert!(list.len() == 3 && distinct.len() == 3, "{list:?}");
                assert!(
                    list.iter().all(|entry| known.contains(*entry)),
                    "{list:?} of {claim:?}"
                );
                assert_eq!(echo["headers"].get("x-haven-cluster"), None);
            }
        }
        assert_eq!(upstreams[5].counters().requests, 0);

        // A route that the filter does not know: the header goes all the same, and Envoy chooses.
        for claim in &claims {
            let reply = raw::exchange(envoy.addr(), &raw::get(b"/echo/none", claim.as_bytes()))
                .await
                .unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert!(!reply.text().contains("x-haven"), "{}", reply.text());
        }
        // By HTTP/2 too.
        let named = [
            ("x-haven-upstream", foreign.to_string()),
            ("x-haven-cluster", "other".to_owned()),
        ];
        let named: Vec<(&str, &str)> = named
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let before = upstreams[5].counters().requests;
        for _ in 0..20 {
            let echo = envoy
                .h2()
                .get_with("/echo/users", &named)
                .await
                .unwrap()
                .json();
            assert_ne!(echo["upstream"], "f");
            assert_eq!(echo["headers"].get("x-haven-cluster"), None);
        }
        assert_eq!(upstreams[5].counters().requests, before);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn no_endpoint_sees_the_list_it_was_picked_from() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let config = EnvoyConfig::proxy(addrs(&upstreams))
            .haven(&filter(&endpoints(&addrs(&upstreams)), &usual_breaker()));
        let envoy = Envoy::start(config).await;
        for client in [envoy.h1(), envoy.h2()] {
            let echo = client
                .get_with("/echo", &[("x-haven-upstream", "1.2.3.4:5")])
                .await
                .unwrap()
                .json();
            assert_eq!(echo["headers"].get("x-haven-upstream"), None, "{echo}");
        }
    });
}

/// Under steady load one of three endpoints fails in this way, is found out, left alone, and
/// recovers.
async fn one_of_three_fails(fail: fn(&mut Faults)) {
    let upstreams = Upstream::start_many(3).await;
    let all = addrs(&upstreams);
    let config = retrying(&all, Duration::from_millis(400))
        .haven(&filter(&endpoints(&all), &usual_breaker()));
    let mut envoy = Envoy::start(config).await;
    let b = &upstreams[1];
    let steady = Steady::start(eight_clients(&envoy), "/", Duration::from_millis(2));
    wait_for("all are used", async || {
        upstreams
            .iter()
            .all(|upstream| upstream.counters().requests > 50)
    })
    .await;

    b.set(fail).await;
    wait_for("it is found out", async || {
        healthy(&envoy, b.addr()).await == Some(0.0)
    })
    .await;
    // From here on one call per round of half-open may go there: a permit each.
    wait_for("those that were under way are done", async || {
        let before = b.counters().in_flight;
        before == 0 || transitions(&envoy, "endpoint", "half_open").await >= 1
    })
    .await;
    let rounds = transitions(&envoy, "endpoint", "half_open").await;
    let (seen, retries) = (
        b.counters().requests,
        envoy.metrics().await.total("haven_retries_total", &[]),
    );
    let others: u64 = upstreams[0].counters().requests + upstreams[2].counters().requests;
    wait_for("three more trials have failed", async || {
        transitions(&envoy, "endpoint", "half_open").await >= rounds + 3
    })
    .await;
    let metrics = envoy.metrics().await;
    let (seen_now, retries_now) = (
        b.counters().requests,
        metrics.total("haven_retries_total", &[]),
    );
    let rounds = transitions(&envoy, "endpoint", "half_open").await - rounds;
    let others = upstreams[0].counters().requests + upstreams[2].counters().requests - others;
    println!(
        "{rounds} rounds: {} requests there, {} retries, {others} elsewhere",
        seen_now - seen,
        retries_now - retries
    );
    // One may have begun before the first look, or be under way at the second.
    assert!(
        seen_now - seen <= rounds + 2,
        "{} requests in {rounds} rounds",
        seen_now - seen
    );
    assert!(
        retries_now - retries <= rounds as f64 + 2.0,
        "{} retries in {rounds} rounds",
        retries_now - retries
    );
    assert!(others > 20 * rounds, "the load goes on: {others}");

    b.heal().await;
    let before = b.counters().requests;
    wait_for("it is well again", async || {
        healthy(&envoy, b.addr()).await == Some(1.0)
    })
    .await;
    wait_for("it is used again", async || {
        b.counters().requests > before + 100
    })
    .await;
    let tally = steady.stop().await;
    println!("{tally:?}");
    assert_eq!(
        tally.total(),
        tally.count(200),
        "an error was seen: {tally:?}"
    );
    nothing_in_flight(&envoy).await;
    assert_sound(&mut envoy).await;
}

#[test]
fn no_client_notices_an_endpoint_that_is_killed_and_comes_back() {
    run(one_of_three_fails(|faults| faults.close = true));
}

#[test]
fn no_client_notices_an_endpoint_that_hangs_and_comes_back() {
    run(one_of_three_fails(|faults| faults.hang = true));
}

#[test]
fn no_client_notices_an_endpoint_that_answers_503_and_comes_back() {
    run(one_of_three_fails(|faults| faults.status = Some(503)));
}

#[test]
fn no_client_notices_an_endpoint_that_resets_and_comes_back() {
    run(one_of_three_fails(|faults| faults.reset = true));
}

#[test]
fn an_endpoint_that_fails_grpc_calls_is_found_out() {
    run(async {
        let upstream = Upstream::start("a").await;
        let (dead, _reserved) = dead_addr();
        let all = [upstream.addr(), dead];
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", all).http2())
            .route(Route::to("/", "users"))
            .haven(&filter(
                &endpoints(&all),
                &json!({"consecutive_failures": 3, "open_duration": "10m"}),
            ));
        let envoy = Envoy::start(config).await;
        let client = envoy.h2();
        let mut failed = 0;
        for _ in 0..100 {
            let (status, reply) = crate::filter::grpc(&client, envoy.addr(), "/").await;
            failed += u64::from(status.is_some());
            assert_eq!(reply.status, 200);
        }
        assert_eq!(
            failed, 3,
            "the dead one gets no more after its third failure"
        );
    });
}

#[test]
fn what_is_in_flight_comes_back_to_nothing_however_it_ends() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let all = addrs(&upstreams);
        let mut filter = filter(
            &endpoints(&all),
            &json!({"consecutive_failures": 1_000_000, "minimum_calls": 1_000_000}),
        );
        filter["rate_limits"] = json!({"few": {"limit": 5, "period": "1h"}});
        filter["fallbacks"] = json!({"calm": {"steps": [{"respond": {"body": "calm"}}]}});
        filter["routes"] = json!([
            {"name": "limited", "match": {"prefix": "/limited"}, "upstream": "users", "rate_limits": ["few"]},
            {"name": "calm", "match": {"prefix": "/calm"}, "upstream": "users", "fallback": "calm"},
            {"name": "direct", "match": {"prefix": "/direct"}, "upstream": "users"},
            {"name": "users", "upstream": "users"},
        ]);
        let retry = Retry {
            num_retries: 1,
            ..Retry::default()
        };
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", all))
            .route(Route::direct("/direct", 200, "ok"))
            .route(
                Route::to("/retry", "users")
                    .retry(&retry)
                    .timeout(Duration::from_millis(300)),
            )
            .route(Route::to("/patient", "users").timeout(Duration::from_secs(100)))
            .route(Route::to("/", "users").timeout(Duration::from_millis(300)))
            .haven(&filter);
        let mut envoy = Envoy::start(config).await;
        let set = async |change: fn(&mut Faults)| {
            for upstream in &upstreams {
                upstream.reset().await;
                upstream.set(change).await;
            }
        };
        let clients = [envoy.h1(), envoy.h2()];
        let faults: [fn(&mut Faults); 8] = [
            |_| {},
            |faults| faults.status = Some(500),
            |faults| faults.reset = true,
            |faults| faults.hang = true,
            |faults| faults.cut = true,
            |faults| faults.close = true,
            |faults| faults.body = Some("x".repeat(1 << 20)),
            |faults| {
                faults.status = Some(503);
                faults.body = Some("x".repeat(1 << 20));
            },
        ];
        for fault in faults {
            set(fault).await;
            for client in &clients {
                for path in ["/", "/retry", "/calm", "/limited", "/direct", "/readyz"] {
                    load(client, 6, 6, path, &[]).await;
                }
            }
        }
        nothing_in_flight(&envoy).await;

        // Clients that leave: while the upstream hangs, and in the middle of a body.
        set(|faults| faults.hang = true).await;
        let mut clients = Vec::new();
        for number in 0..20 {
            let client = if number % 2 == 0 {
                envoy.h1()
            } else {
                envoy.h2()
            };
            clients.push(hanging(async move { client.get("/patient").await }));
        }
        wait_for("all hang", async || in_flight(&envoy).await == 20.0).await;
        let per_endpoint: Vec<f64> = envoy
            .metrics()
            .await
            .matching("haven_endpoint_in_flight", &[])
            .map(|series| series.value)
            .collect();
        // Counted over all workers, so spread evenly, but for a request that each of the four tells
        // late.
        assert!(
            per_endpoint.iter().all(|it| (8.0..=12.0).contains(it)),
            "{per_endpoint:?}"
        );
        drop(clients);
        nothing_in_flight(&envoy).await;

        set(|faults| faults.body = Some("x".repeat(4 << 20))).await;
        for _ in 0..10 {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = tokio::net::TcpStream::connect(envoy.addr()).await.unwrap();
            stream
                .write_all(b"GET /patient HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            stream.read_exact(&mut [0; 1000]).await.unwrap();
        }
        nothing_in_flight(&envoy).await;
        set(|_| {}).await;
        assert_eq!(load(&envoy.h2(), 100, 10, "/", &[]).await.count(200), 100);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_client_that_leaves_gives_back_the_trial_of_an_endpoint() {
    run(async {
        let upstream = Upstream::start("a").await;
        let all = [upstream.addr()];
        let breaker = json!({
            "consecutive_failures": 1, "open_duration": "200ms", "half_open_calls": 1, "half_open_max_wait": "10m",
        });
        let mut filter = filter(&endpoints(&all), &breaker);
        filter["upstreams"]["users"]["load_balancer"] = json!({"panic_threshold": 0});
        let mut envoy = Envoy::start(EnvoyConfig::proxy(all).haven(&filter)).await;
        let fresh = Client::h1_fresh(envoy.addr());
        upstream.set(|faults| faults.status = Some(500)).await;
        assert_eq!(fresh.get("/").await.unwrap().status, 500);
        upstream.heal().await;
        upstream.set(|faults| faults.hang = true).await;
        for _ in 0..4 {
            let mut clients = Vec::new();
            wait_for("a trial hangs", async || {
                let client = fresh.clone();
                if clients.len() < 500 {
                    clients.push(hanging(async move { client.get("/").await }));
                }
                upstream.counters().in_flight == 1
            })
            .await;
            assert_eq!(fresh.get("/").await.unwrap().status, 503, "one at a time");
            drop(clients);
            wait_for("the upstream is rid of it", async || {
                upstream.counters().in_flight == 0
            })
            .await;
        }
        upstream.heal().await;
        wait_for("it is used again", async || {
            fresh.get("/").await.unwrap().status == 200
        })
        .await;
        assert_eq!(load(&fresh, 20, 4, "/", &[]).await.count(200), 20);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn readiness_follows_the_endpoints_and_liveness_does_not() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let all = addrs(&upstreams);
        let breaker =
            json!({"consecutive_failures": 1, "open_duration": "2s", "half_open_calls": 1});
        let mut filter = filter(&endpoints(&all), &breaker);
        filter["service"] = json!("user-service");
        filter["upstreams"]["users"]["load_balancer"] = json!({"panic_threshold": 0});
        let mut envoy = Envoy::start(EnvoyConfig::proxy(all.clone()).haven(&filter)).await;
        let client = envoy.h1();
        let ready = async || client.get("/readyz").await.unwrap();
        let well = ready().await;
        assert_eq!((well.status, &well.json()["status"]), (200, &"UP".into()));
        assert_eq!(well.json()["details"]["users"]["status"], "UP");

        upstreams[0].set(|faults| faults.close = true).await;
        wait_for("one is known to be dead", async || {
            client.get("/").await.unwrap();
            healthy(&envoy, all[0]).await == Some(0.0)
        })
        .await;
        assert_eq!(ready().await.status, 200, "one is left");

        upstreams[1].set(|faults| faults.close = true).await;
        let mut down = None;
        wait_for("it is out of service", async || {
            let refused = client.get("/").await.unwrap();
            assert_eq!(refused.status, 503);
            down = Some(ready().await).filter(|reply| reply.status == 503);
            down.is_some()
        })
        .await;
        let reply = down.unwrap();
        let document = reply.json();
        assert_eq!(
            reply.header("content-type").as_deref(),
            Some("application/json")
        );
        assert_eq!(
            (&document["service"], &document["status"]),
            (&"user-service".into(), &"OUT_OF_SERVICE".into())
        );
        let users = &document["details"]["users"];
        assert_eq!(
            (&users["status"], &users["critical"]),
            (&"DOWN".into(), &true.into())
        );
        assert_eq!(users["error"], "0 of 2 endpoints available");
        assert!(
            document["timestamp"]
                .as_str()
                .is_some_and(|at| at.ends_with('Z') && at.contains('T')),
            "{document}"
        );
        for path in ["/livez", "/startupz", "/health"] {
            assert_eq!(client.get(path).await.unwrap().status, 200, "{path}");
        }
        // Refused by us, in our words, with no endpoint tried.
        let mut refused = None;
        wait_for("there is no endpoint", async || {
            let reply = client.get("/").await.unwrap();
            refused = Some(reply).filter(|reply| reply.header("proxy-status").is_some());
            refused.is_some()
        })
        .await;
        let refused = refused.unwrap();
        assert_eq!(
            (refused.status, &refused.json()["reason"]),
            (503, &"no_endpoint".into())
        );
        assert!(
            refused
                .header("proxy-status")
                .unwrap()
                .contains("details=\"no_endpoint users\""),
            "{refused:?}"
        );
        assert!(counted(&envoy, &[("reason", "no_endpoint"), ("policy", "users")]).await >= 1);

        for upstream in &upstreams {
            upstream.heal().await;
        }
        wait_for("it is ready again", async || {
            client.get("/").await.unwrap();
            ready().await.status == 200 && healthy(&envoy, all[0]).await == Some(1.0)
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}
