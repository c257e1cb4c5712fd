//! Limits that pace or count by windows, in a real Envoy with four workers.

use std::time::Duration;

use crate::filter::{assert_sound, counted, grpc, hanging, nothing_in_flight};
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Reply, Route, Update, Upstream, load, run, wait_for,
};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A filter with one limit for all.
fn one_limit(limit: &Value) -> Value {
    json!({"rate_limits": {"l": limit}, "routes": [{"name": "all", "rate_limits": ["l"]}]})
}

/// An Envoy that answers by itself what the filter lets through.
async fn envoy(filter: &Value) -> Envoy {
    Envoy::start(EnvoyConfig::direct().haven(filter)).await
}

/// Sends `count` requests at once and says when each was answered, in order.
async fn at_once(clients: &[Client], count: usize, path: &str) -> Vec<(Duration, Reply)> {
    let begun = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..count {
        let (client, path) = (clients[number % clients.len()].clone(), path.to_owned());
        requests.spawn(async move {
            let reply = client.get(&path).await.unwrap();
            (begun.elapsed(), reply)
        });
    }
    let mut answers = requests.join_all().await;
    answers.sort_by_key(|(at, _)| *at);
    answers
}

fn statuses(answers: &[(Duration, Reply)], status: u16) -> usize {
    answers
        .iter()
        .filter(|(_, reply)| reply.status == status)
        .count()
}

#[test]
fn a_leaky_bucket_paces_requests_over_four_workers() {
    run(async {
        let limit =
            json!({"algorithm": "leaky_bucket", "limit": 50, "burst": 100, "max_wait": "10s"});
        let mut envoy = envoy(&one_limit(&limit)).await;
        let pace = Duration::from_millis(20);
        for of in [Envoy::h1 as fn(&Envoy) -> Client, Envoy::h2] {
            let clients: Vec<_> = (0..16).map(|_| of(&envoy)).collect();
            let answers = at_once(&clients, 61, "/").await;
            assert_eq!(statuses(&answers, 200), 61);
            let times: Vec<_> = answers.iter().map(|(at, _)| *at).collect();
            println!("{times:?}");
            // What is measured here is late by whatever the machine is busy with, and never early.
            for (number, at) in times.iter().enumerate() {
                let moment = pace * u32::try_from(number).unwrap();
                assert!(
                    *at + Duration::from_millis(5) >= moment,
                    "{number} is early: {at:?}"
                );
            }
            let last = times[60];
            assert!(
                last >= pace * 60 && last < pace * 60 + Duration::from_millis(300),
                "{last:?}"
            );
            tokio::time::sleep(pace * 2).await;
        }
        assert_eq!(counted(&envoy, &[]).await, 0);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn what_would_wait_too_long_is_refused_with_the_time_to_come_again() {
    run(async {
        let many = json!({"algorithm": "leaky_bucket", "limit": 2, "burst": 3, "max_wait": "1m"});
        let long = json!({"algorithm": "leaky_bucket", "limit": 1, "burst": 100, "max_wait": "1s"});
        let filter = json!({"rate_limits": {"many": many, "long": long}, "routes": [
            {"name": "many", "match": {"prefix": "/many"}, "rate_limits": ["many"]},
            {"name": "long", "match": {"prefix": "/long"}, "rate_limits": ["long"]}]});
        let mut envoy = envoy(&filter).await;
        let clients: Vec<_> = (0..8).map(|_| envoy.h1()).collect();
        let answers = at_once(&clients, 10, "/many").await;
        assert_eq!(
            (statuses(&answers, 200), statuses(&answers, 429)),
            (4, 6),
            "one goes at once, three wait"
        );
        let refused = &answers
            .iter()
            .find(|(_, reply)| reply.status == 429)
            .unwrap()
            .1;
        assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
        assert_eq!(refused.json()["reason"], "rate_limited");
        let answers = at_once(&clients, 5, "/long").await;
        assert_eq!(
            (statuses(&answers, 200), statuses(&answers, 429)),
            (2, 3),
            "one second is not too long"
        );
        assert_eq!(counted(&envoy, &[("reason", "rate_limited")]).await, 9);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_client_that_goes_away_gives_its_moment_back_and_the_others_go_on() {
    run(async {
        let limit = json!({"algorithm": "leaky_bucket", "limit": 1, "period": "2s", "burst": 5, "max_wait": "1m"});
        let mut envoy = envoy(&one_limit(&limit)).await;
        let begun = Instant::now();
        for client in [envoy.h1(), envoy.h2()] {
            let _ = client.get("/").await;
            // Its moment is 2 s away; nobody is behind it.
            let waiting = hanging({
                let client = client.clone();
                async move { client.get("/").await }
            });
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!waiting.is_done());
            drop(waiting);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The second client's first request took the moment that the first one gave up, at 2 s; the
        // next is at 4 s.
        assert_eq!(envoy.h1().get("/").await.unwrap().status, 200);
        let elapsed = begun.elapsed();
        assert!(
            elapsed >= Duration::from_millis(3_950) && elapsed < Duration::from_millis(4_600),
            "{elapsed:?}"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn an_update_lets_those_that_wait_end_under_the_old_configuration() {
    run(async {
        let limit = json!({"algorithm": "leaky_bucket", "limit": 2, "burst": 10, "max_wait": "1m"});
        let config = EnvoyConfig::empty()
            .lds()
            .route(Route::direct("/", 200, "ok"))
            .drain_seconds(60);
        let mut envoy = Envoy::start(config.haven(&one_limit(&limit))).await;
        let begun = Instant::now();
        let mut waiting: Vec<_> = (0..6)
            .map(|number| {
                let client = if number % 2 == 0 {
                    envoy.h1()
                } else {
                    envoy.h2()
                };
                hanging(async move { client.get("/").await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut other = one_limit(&json!({"limit": 1_000_000}));
        other["service"] = json!("updated");
        assert_eq!(envoy.update_filter_config(&other).await, Update::Applied);
        let fresh = Client::h1_fresh(envoy.addr());
        wait_for("the update is in force", async || {
            fresh.get("/").await.is_ok_and(|reply| {
                reply
                    .header("ratelimit-policy")
                    .is_some_and(|policy| policy.contains("q=1000000"))
            })
        })
        .await;
        for one in &mut waiting {
            assert_eq!(one.reply().await.unwrap().status, 200);
        }
        let elapsed = begun.elapsed();
        assert!(
            elapsed >= Duration::from_millis(2_450) && elapsed < Duration::from_millis(3_500),
            "{elapsed:?}"
        );
        assert_eq!(fresh.get("/").await.unwrap().status, 200);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_refusal_after_the_wait_reaches_the_client_from_the_tick() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "rate_limits": {"pace": {"algorithm": "leaky_bucket", "limit": 2, "burst": 20, "max_wait": "1m"}},
            "circuit_breakers": {"b": {"consecutive_failures": 1, "open_duration": "10m"}},
            "fallbacks": {"f": {"on": ["circuit_open"], "steps": [{"respond": {"status": 200, "body": "系统繁忙"}}]}},
            "routes": [
                {"name": "plain", "match": {"prefix": "/plain"}, "rate_limits": ["pace"], "circuit_breaker": "b"},
                {"name": "fallback", "match": {"prefix": "/fallback"}, "rate_limits": ["pace"], "circuit_breaker": "b", "fallback": "f"}],
        });
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [upstream.addr()]))
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        upstream.set(|faults| faults.status = Some(500)).await;
        for path in ["/plain", "/fallback"] {
            assert_eq!(
                envoy.h1().get(path).await.unwrap().status,
                500,
                "it opens the breaker of {path}"
            );
        }
        let begun = Instant::now();
        for client in [envoy.h1(), envoy.h2()] {
            let refused = client.get("/plain").await.unwrap();
            assert_eq!(
                (refused.status, refused.json()["reason"].as_str()),
                (503, Some("circuit_open"))
            );
            assert!(
                refused.header("retry-after").is_some() && refused.header("ratelimit").is_some(),
                "{refused:?}"
            );
            let replaced = client.get("/fallback").await.unwrap();
            assert_eq!(
                (replaced.status, replaced.text().as_str()),
                (200, "系统繁忙")
            );
        }
        let (status, reply) = grpc(&envoy.h2(), envoy.addr(), "/plain").await;
        assert_eq!(status.as_deref(), Some("14"), "{reply:?}");
        assert!(
            begun.elapsed() >= Duration::from_millis(1_900),
            "five that had to wait: {:?}",
            begun.elapsed()
        );
        // A body that comes while its request waits.
        let upload = envoy
            .h1()
            .request("POST", "/plain", &[], vec![b'x'; 200_000])
            .await;
        assert!(upload.is_err() || upload.unwrap().status == 503);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn uploads_wait_like_all_others_and_arrive_whole() {
    run(async {
        for stop_all in [false, true] {
            let upstream = Upstream::start("a").await;
            let limit =
                json!({"algorithm": "leaky_bucket", "limit": 5, "burst": 20, "max_wait": "1m"});
            let config = EnvoyConfig::empty();
            let config = if stop_all { config.stop_all() } else { config };
            let config = config
                .cluster(Cluster::new("users", [upstream.addr()]))
                .route(Route::to("/", "users"));
            let mut envoy = Envoy::start(config.haven(&one_limit(&limit))).await;
            let begun = Instant::now();
            let mut uploads: Vec<_> = (0..6)
                .map(|number| {
                    let client = if number % 2 == 0 {
                        envoy.h1()
                    } else {
                        envoy.h2()
                    };
                    hanging(
                        async move { client.request("POST", "/", &[], vec![b'x'; 300_000]).await },
                    )
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(
                upstream.counters().requests,
                1,
                "a body does not push its request on"
            );
            for upload in &mut uploads {
                assert_eq!(upload.reply().await.unwrap().status, 200);
            }
            assert!(
                begun.elapsed() >= Duration::from_millis(990),
                "{:?}",
                begun.elapsed()
            );
            assert_eq!(upstream.counters().requests, 6);
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn windows_refuse_and_recover() {
    run(async {
        let limit = |algorithm: &str| json!({"algorithm": algorithm, "limit": 10, "period": "2s"});
        let filter = json!({"rate_limits": {"fixed": limit("fixed_window"), "sliding": limit("sliding_window")}, "routes": [
            {"name": "fixed", "match": {"prefix": "/fixed"}, "rate_limits": ["fixed"]},
            {"name": "sliding", "match": {"prefix": "/sliding"}, "rate_limits": ["sliding"]}]});
        let mut envoy = envoy(&filter).await;
        let fresh = Client::h1_fresh(envoy.addr());
        // From the begin of a window, which its first refusal's promise shows.
        loop {
            let reply = fresh.get("/fixed").await.unwrap();
            if reply.status == 429 {
                break;
            }
        }
        wait_for("the next window", async || {
            fresh.get("/fixed").await.unwrap().status == 200
        })
        .await;
        assert_eq!(
            load(&fresh, 40, 4, "/fixed", &[]).await.count(200),
            9,
            "one has been asked for already"
        );
        assert_eq!(load(&fresh, 40, 4, "/sliding", &[]).await.count(200), 10);
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(load(&fresh, 40, 4, "/fixed", &[]).await.count(200), 10);
        // A quarter into the next window three quarters of the last still count.
        let sliding = load(&fresh, 40, 4, "/sliding", &[]).await.count(200);
        assert!((1..=6).contains(&sliding), "{sliding}");
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(load(&fresh, 40, 4, "/sliding", &[]).await.count(200), 10);
        let policy = fresh
            .get("/sliding")
            .await
            .unwrap()
            .header("ratelimit-policy");
        assert_eq!(policy.as_deref(), Some("\"sliding\";q=10;w=2"));
        assert_sound(&mut envoy).await;
    });
}
