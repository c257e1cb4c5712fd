//! Faults that people met elsewhere, as they meet them: a small configuration, a real Envoy, and what
//! its clients see.

use crate::filter::{assert_sound, endpoints, hanging, nothing_in_flight};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Route, Upstream, load, run, wait_for};
use serde_json::json;

#[test]
fn a_dead_endpoint_does_not_attract() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        for upstream in &upstreams {
            upstream.set(|faults| faults.delay_ms = 30).await;
        }
        // No breaker, no retry, nothing of the balancer's: what is there by default.
        let filter = json!({
            "upstreams": {"users": {"endpoints": endpoints(&addrs)}},
            "routes": [{"name": "all", "upstream": "users"}]});
        let mut envoy = Envoy::start(EnvoyConfig::proxy(addrs).haven(&filter)).await;
        let client = Client::h1_fresh(envoy.addr());
        assert_eq!(load(&client, 60, 6, "/", &[]).await.count(200), 60);
        upstreams[1].set(|faults| faults.close = true).await;
        let tally = load(&client, 600, 6, "/", &[]).await;
        // Least in flight because it fails at once: 76 % of all failed. Each of four workers finds
        // out by itself, and asks again now and then.
        let failed = tally.total() - tally.count(200);
        assert!(failed < 60, "{failed} of 600 failed: {tally:?}");
        upstreams[1].set(|faults| faults.close = false).await;
        wait_for("it serves again", async || {
            let before = upstreams[1].counters().requests;
            load(&client, 30, 6, "/", &[]).await;
            upstreams[1].counters().requests > before
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_hedged_try_is_counted_and_fails_nobody() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        for upstream in &upstreams {
            upstream.set(|faults| faults.delay_ms = 300).await;
        }
        let filter = json!({
            "circuit_breakers": {"endpoint": {"consecutive_failures": 3, "open_duration": "10m"}},
            "upstreams": {"users": {"endpoints": endpoints(&addrs), "circuit_breaker": "endpoint",
                "override": {"attempt_count": true}}},
            "routes": [{"name": "all", "upstream": "users"}]});
        let hedged = json!({
            "hedge_policy": {"hedge_on_per_try_timeout": true},
            "retry_policy": {"retry_on": "reset", "num_retries": 1, "per_try_timeout": "0.1s"},
        });
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", addrs))
            .route(Route::to("/", "users").with(&hedged))
            .attempt_counts();
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let tally = load(&envoy.h1(), 20, 4, "/", &[]).await;
        assert_eq!(tally.count(200), 20, "{tally:?}");
        let asked: u64 = upstreams.iter().map(|it| it.counters().requests).sum();
        assert!(asked > 20, "{asked}: no try was hedged");
        nothing_in_flight(&envoy).await;
        let metrics = envoy.metrics().await;
        assert_eq!(
            metrics.total("haven_retries_total", &[]),
            (asked - 20) as f64,
            "each try is counted, whoever answered"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn an_upstream_that_is_not_critical_takes_nothing_out() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let check = json!({"interval": "100ms", "timeout": "700ms"});
        let filter = json!({
        "upstreams": {
            "payments": {"cluster": "users", "endpoints": endpoints(&[upstreams[0].addr()]), "health_check": check},
            "hints": {"cluster": "hints", "endpoints": endpoints(&[upstreams[1].addr()]), "health_check": check,
                "critical": false},
        },
        "routes": [
            {"name": "hints", "match": {"prefix": "/hints"}, "upstream": "hints"},
            {"name": "all", "upstream": "payments"},
        ]});
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [upstreams[0].addr()]))
            .cluster(Cluster::new("hints", [upstreams[1].addr()]))
            .route(Route::to("/hints", "hints"))
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let ready = async || envoy.h1().get("/readyz").await.unwrap();
        let down = async |which: usize, yes: bool| {
            upstreams[which]
                .set(|faults| faults.health.http_status = yes.then_some(503))
                .await;
        };
        down(1, true).await;
        wait_for("it shows", async || {
            ready().await.json()["details"]["hints"]["status"] == "DOWN"
        })
        .await;
        let reply = ready().await;
        assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("UP")));
        down(0, true).await;
        wait_for("it is out", async || ready().await.status == 503).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_kept_answer_is_missed_for_a_reason_that_is_told() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "fallbacks": {"f": {"steps": [{"stale": {"public": true}}]}},
            "routes": [{"name": "all", "fallback": "f"}]});
        let mut envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        upstream
            .set(|faults| {
                faults
                    .headers
                    .insert("cache-control".into(), "private".into());
            })
            .await;
        for _ in 0..3 {
            assert_eq!(envoy.h1().get("/").await.unwrap().status, 200);
        }
        let of = async |reason: &str| {
            let labels = [("policy", "f"), ("reason", reason)];
            envoy.metric("haven_stale_unkept_total", &labels).await
        };
        assert_eq!(of("forbidden").await, Some(3.0));
        let key = [("authorization", "Bearer x")];
        assert_eq!(envoy.h1().get_with("/", &key).await.unwrap().status, 200);
        assert_eq!(of("request").await, Some(1.0));
        upstream.set(|faults| faults.cut = true).await;
        upstream.set(|faults| faults.headers.clear()).await;
        let client = envoy.h1();
        let mut cut = hanging(async move { client.get("/").await });
        assert!(cut.reply().await.unwrap().cut.is_some());
        wait_for("it is counted", async || of("cut").await == Some(1.0)).await;
        assert_sound(&mut envoy).await;
    });
}
