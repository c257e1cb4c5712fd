//! Configurations that change under a running Envoy with four workers, and ones that are refused.

use std::time::Duration;

use crate::filter::{Steady, assert_sound, hanging, in_flight, nothing_in_flight, transitions};
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Route, Update, Upstream, load, run, wait_for,
};
use serde_json::{Value, json};

/// A filter with a bucket of three, a breaker that opens with the second failure and lets two calls
/// through when half-open, an upstream; `/only` is limited as well when `version` is 2 or more.
fn filter(upstream: &Upstream, version: u32) -> Value {
    let mut filter = json!({
        "upstreams": {"users": {"endpoints": crate::filter::endpoints(&[upstream.addr()]), "circuit_breaker": "endpoint"}},
        "rate_limits": {"three": {"limit": 3, "period": "1h", "key": [{"header": "x-key"}]}},
        "circuit_breakers": {
            "users": {"consecutive_failures": 2, "open_duration": "10m", "half_open_calls": 2},
            "endpoint": {"minimum_calls": 1_000_000},
            "quick": {"minimum_calls": 2, "open_duration": "200ms", "half_open_calls": 2, "half_open_max_wait": "10m"},
        },
        "routes": [
            {"name": "limited", "match": {"prefix": "/limited"}, "rate_limits": ["three"]},
            {"name": "broken", "match": {"prefix": "/broken"}, "circuit_breaker": "users"},
            {"name": "quick", "match": {"prefix": "/quick"}, "circuit_breaker": "quick"},
            {"name": "all", "upstream": "users"},
        ],
    });
    if version >= 2 {
        filter["rate_limits"]["version"] = json!({"limit": 1_000_000 + version, "period": "1s"});
        filter["routes"][3]["rate_limits"] = json!(["version"]);
    }
    filter
}

fn config(upstream: &Upstream) -> EnvoyConfig {
    EnvoyConfig::empty()
        .lds()
        .cluster(Cluster::new("users", [upstream.addr()]))
        .route(Route::to("/", "users").timeout(Duration::from_secs(100)))
}

/// Waits until new connections get this version of [`filter`].
async fn in_force(envoy: &Envoy, version: u32) {
    let fresh = Client::h1_fresh(envoy.addr());
    let want = format!("q={}", 1_000_000 + version);
    wait_for("the update is in force", async || {
        let mut all = true;
        // Each worker changes by itself.
        for _ in 0..8 {
            let reply = fresh.get("/").await.unwrap();
            all &= reply
                .header("ratelimit-policy")
                .is_some_and(|policy| policy.contains(&want));
        }
        all
    })
    .await;
}

#[test]
fn an_update_keeps_buckets_and_breakers_and_loses_no_request() {
    run(async {
        let upstream = Upstream::start("a").await;
        let mut envoy = Envoy::start(config(&upstream).haven(&filter(&upstream, 1))).await;
        let fresh = Client::h1_fresh(envoy.addr());
        let key = [("x-key", "spent")];
        assert_eq!(load(&fresh, 5, 1, "/limited", &key).await.count(200), 3);
        assert_eq!(
            load(&fresh, 1, 1, "/limited", &[("x-key", "two-left")])
                .await
                .count(200),
            1
        );
        upstream.set(|faults| faults.status = Some(500)).await;
        assert_eq!(load(&fresh, 5, 1, "/broken", &[]).await.count(500), 2);
        upstream.heal().await;

        let clients = (0..8).map(|number| {
            if number % 2 == 0 {
                envoy.h1()
            } else {
                envoy.h2()
            }
        });
        let mut clients: Vec<Client> = clients.collect();
        clients.push(Client::h1_fresh(envoy.addr()));
        let steady = Steady::start(clients, "/steady", Duration::from_millis(2));
        for version in 2..=4 {
            assert_eq!(
                envoy
                    .update_filter_config(&filter(&upstream, version))
                    .await,
                Update::Applied
            );
            in_force(&envoy, version).await;
            assert_eq!(
                load(&fresh, 8, 1, "/limited", &key).await.count(429),
                8,
                "the bucket is empty still"
            );
            let before = upstream.counters().requests;
            let tally = load(&fresh, 8, 1, "/broken", &[]).await;
            assert_eq!(tally.count(503), 8, "the breaker is open still: {tally:?}");
            assert!(before <= upstream.counters().requests);
        }
        assert_eq!(
            load(&fresh, 5, 1, "/limited", &[("x-key", "two-left")])
                .await
                .count(200),
            2
        );
        assert_eq!(transitions(&envoy, "users", "open").await, 1);
        let state = [("circuit_breaker", "users"), ("key", "broken")];
        assert_eq!(
            envoy.metric("haven_circuit_breaker_state", &state).await,
            Some(1.0)
        );
        let tally = steady.stop().await;
        assert!(
            tally.total() > 100 && tally.total() == tally.count(200),
            "{tally:?}"
        );
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn what_was_granted_before_an_update_is_given_back_after_it() {
    run(async {
        let upstream = Upstream::start("a").await;
        let mut envoy = Envoy::start(config(&upstream).haven(&filter(&upstream, 1))).await;
        let fresh = Client::h1_fresh(envoy.addr());
        upstream.set(|faults| faults.status = Some(500)).await;
        load(&fresh, 3, 1, "/quick", &[]).await;
        assert_eq!(transitions(&envoy, "quick", "open").await, 1);
        upstream.heal().await;
        upstream.set(|faults| faults.hang = true).await;

        // Five in flight at the endpoint, and both permits of the half-open breaker.
        let hang = |path: &'static str| {
            let client = fresh.clone();
            hanging(async move { client.get(path).await })
        };
        let plain: Vec<_> = (0..5).map(|_| hang("/")).collect();
        let mut trials = Vec::new();
        wait_for("all hang", async || {
            if trials.len() < 200 {
                trials.push(hang("/quick"));
            }
            upstream.counters().in_flight == 7
        })
        .await;
        // A worker shows a difference of one request with its tick.
        wait_for("all are counted", async || in_flight(&envoy).await == 5.0).await;

        assert_eq!(
            envoy.update_filter_config(&filter(&upstream, 2)).await,
            Update::Applied
        );
        assert_eq!(in_flight(&envoy).await, 5.0, "they are still there");
        assert!(plain.iter().all(|request| !request.is_done()));
        let refused = fresh.get("/quick").await.unwrap();
        assert_eq!(refused.status, 503, "both permits are taken still");
        drop((plain, trials));
        nothing_in_flight(&envoy).await;
        wait_for("the upstream is rid of them", async || {
            upstream.counters().in_flight == 0
        })
        .await;
        upstream.heal().await;
        in_force(&envoy, 2).await;
        assert_eq!(
            load(&fresh, 2, 1, "/quick", &[]).await.count(200),
            2,
            "both permits are back"
        );
        assert_eq!(transitions(&envoy, "quick", "closed").await, 1);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_refused_update_leaves_everything_as_it_was_and_says_why() {
    run(async {
        let upstream = Upstream::start("a").await;
        let mut envoy = Envoy::start(config(&upstream).haven(&filter(&upstream, 2))).await;
        let fresh = Client::h1_fresh(envoy.addr());
        assert_eq!(
            load(&fresh, 5, 1, "/limited", &[("x-key", "a")])
                .await
                .count(200),
            3
        );
        let steady = Steady::start(
            [envoy.h1(), envoy.h2()],
            "/steady",
            Duration::from_millis(2),
        );

        let mut broken = filter(&upstream, 3);
        broken["rate_limits"]["three"]["limit"] = json!(0);
        broken["routes"][1]["circuit_breaker"] = json!("nobody");
        broken["typo"] = json!(1);
        assert_eq!(envoy.update_filter_config(&broken).await, Update::Refused);
        let next = config(&upstream).haven_text("{\"routes\": [");
        assert_eq!(envoy.update(next).await, Update::Refused);
        assert_eq!(envoy.stat("listener_manager.lds.update_rejected").await, 2);

        let log = envoy.logs();
        for line in [
            "configuration refused: rate_limits.three.limit: 0 is not allowed, want an integer from 1 to 1000000000",
            "configuration refused: routes[1].circuit_breaker: \"nobody\"",
            "configuration refused: typo",
        ] {
            assert!(log.contains(line), "{line:?} is not in\n{log}");
        }
        in_force(&envoy, 2).await;
        assert_eq!(
            load(&fresh, 4, 1, "/limited", &[("x-key", "a")])
                .await
                .count(429),
            4
        );
        assert_eq!(
            load(&fresh, 4, 1, "/limited", &[("x-key", "b")])
                .await
                .count(200),
            3
        );
        let tally = steady.stop().await;
        assert!(
            tally.total() > 10 && tally.total() == tally.count(200),
            "{tally:?}"
        );
        // And a good one is taken again.
        assert_eq!(
            envoy.update_filter_config(&filter(&upstream, 4)).await,
            Update::Applied
        );
        in_force(&envoy, 4).await;
        assert!(envoy.is_running() && !envoy.logs().contains("panicked"));
    });
}

#[test]
fn an_envoy_does_not_start_with_a_configuration_that_is_refused() {
    run(async {
        for (filter, want) in [
            (
                "{\"rate_limits\": {\"a\": {\"limit\": 0}}}",
                "configuration refused: rate_limits.a.limit: 0 is not allowed",
            ),
            (
                "{\"routes\": [{\"name\": \"a\", \"rate_limits\": [\"b\"]}]}",
                "configuration refused: routes[0].rate_limits[0]: \"b\"",
            ),
            ("not JSON", "configuration refused: "),
        ] {
            let error = Envoy::try_start(EnvoyConfig::direct().haven_text(filter))
                .await
                .unwrap_err();
            assert!(
                error.contains("Envoy ended with") && error.contains(want),
                "{filter}: {error}"
            );
        }
    });
}

#[test]
fn an_empty_configuration_is_one() {
    run(async {
        for filter in ["", "{}"] {
            let mut envoy = Envoy::start(EnvoyConfig::direct().haven_text(filter)).await;
            let client = envoy.h2();
            assert_eq!(client.get("/livez").await.unwrap().text(), "OK");
            assert_eq!(client.get("/x").await.unwrap().text(), "ok");
            let ready = client.get("/readyz").await.unwrap();
            assert_eq!((ready.status, &ready.json()["status"]), (200, &"UP".into()));
            assert_sound(&mut envoy).await;
        }
    });
}
