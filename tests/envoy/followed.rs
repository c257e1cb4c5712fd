//! An Envoy that does not do what haven asks it for, since a setting is missing: it is noticed,
//! counted and told, and blamed on nobody.

use crate::filter::{assert_sound, endpoints, nothing_in_flight, transitions};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Route, Upstream, load, run, wait_for};
use serde_json::{Value, json};

fn filter(upstreams: &[Upstream], check: Option<&Value>) -> Value {
    let addrs: Vec<_> = upstreams.iter().map(|upstream| upstream.addr()).collect();
    let mut filter = json!({
        "circuit_breakers": {"endpoint": {"consecutive_failures": 3, "open_duration": "10m"}},
        "upstreams": {"users": {"endpoints": endpoints(&addrs), "circuit_breaker": "endpoint"}},
        "routes": [{"name": "users", "upstream": "users", "retry": {"attempts": 2}}],
    });
    if let Some(check) = check {
        filter["upstreams"]["users"]["health_check"] = check.clone();
    }
    filter
}

async fn not_followed(envoy: &Envoy) -> f64 {
    envoy.metrics().await.total("haven_not_followed_total", &[])
}

/// Whether the log has this of a route, once for each worker at most.
fn is_told(envoy: &Envoy, text: &str) -> bool {
    let told = envoy
        .logs()
        .lines()
        .filter(|line| line.contains(text))
        .count();
    assert!(told <= 4, "{told} times");
    told > 0
}

/// 300 good answers: no retry, no breaker open.
async fn all_is_well(envoy: &Envoy) {
    let tally = load(&Client::h1_fresh(envoy.addr()), 300, 4, "/echo", &[]).await;
    assert_eq!(tally.count(200), 300, "{tally:?}");
    let metrics = envoy.metrics().await;
    assert_eq!(metrics.total("haven_retries_total", &[]), 0.0);
    assert_eq!(transitions(envoy, "endpoint", "open").await, 0);
    assert_eq!(envoy.h1().get("/readyz").await.unwrap().status, 200);
    assert!(not_followed(envoy).await > 0.0);
    assert!(is_told(envoy, "Envoy's cluster lacks override_host"));
}

#[test]
fn a_cluster_without_override_host_fails_nobody() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let cluster = Cluster::new("users", upstreams.iter().map(|it| it.addr())).plain();
        let config = EnvoyConfig::empty()
            .cluster(cluster)
            .route(Route::to("/", "users"));
        let mut envoy = Envoy::start(config.haven(&filter(&upstreams, None))).await;
        all_is_well(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn an_endpoint_that_envoy_does_not_know_is_neither_failed_nor_well() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let known = upstreams.iter().take(2).map(|it| it.addr());
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", known))
            .route(Route::to("/", "users"));
        let check = json!({"path": "/health", "interval": "200ms", "timeout": "150ms"});
        let mut envoy = Envoy::start(config.haven(&filter(&upstreams, Some(&check)))).await;
        all_is_well(&envoy).await;
        let third = upstreams[2].addr().to_string();
        let labels = [("upstream", "users"), ("endpoint", third.as_str())];
        // Its checks are answered well, by others.
        wait_for("nothing is known of the third", async || {
            let reason = envoy.metric("haven_endpoint_check_reason", &labels);
            reason.await == Some(0.0)
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_canary_without_cluster_header_is_told_and_not_judged() {
    run(async {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        one.set(|faults| faults.status = Some(500)).await;
        let filter = json!({
            "circuit_breakers": {"canary": {"consecutive_failures": 2, "open_duration": "10m"}},
            "upstreams": {
                "v1": {"cluster": "one", "endpoints": endpoints(&[one.addr()])},
                "v2": {"cluster": "two", "endpoints": endpoints(&[two.addr()])},
            },
            "routes": [{"name": "users", "upstream": "v1", "canary": {"upstream": "v2", "percent": 100, "circuit_breaker": "canary"}}],
        });
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("one", [one.addr()]))
            .cluster(Cluster::new("two", [two.addr()]))
            .route(Route::to("/", "one"));
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let tally = load(&envoy.h1(), 20, 2, "/echo", &[]).await;
        assert_eq!(tally.count(500), 20);
        assert_eq!(not_followed(&envoy).await, 20.0);
        assert!(is_told(
            &envoy,
            "one answered where two was asked for: Envoy's route lacks cluster_header"
        ));
        assert_eq!(transitions(&envoy, "canary", "open").await, 0);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}
