//! Canaries in a real Envoy: two versions in one cluster, and in two.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::filter::{assert_sound, endpoints, nothing_in_flight};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Route, Upstream, run};

/// The most failures that the canary's clients see before its breaker opens.
const THRESHOLD: usize = 4;

fn filter(v1: &Upstream, v2: &Upstream, clusters: [&str; 2]) -> Value {
    let [one, two] = clusters;
    json!({
        "upstreams": {
            "users-v1": {"cluster": one, "endpoints": endpoints(&[v1.addr()])},
            "users-v2": {"cluster": two, "endpoints": endpoints(&[v2.addr()])},
        },
        "circuit_breakers": {"users": {"consecutive_failures": THRESHOLD, "open_duration": "10m"}},
        "routes": [{
            "name": "users", "upstream": "users-v1", "circuit_breaker": "users",
            "retry": {"attempts": 0},
            "canary": {"upstream": "users-v2", "percent": 20, "sticky": [{"header": "x-user"}],
                       "header": {"x-canary": "true"}, "cookie": {"version": "2"}, "stable": {"header": {"x-canary": "false"}},
                       "color_header": "x-traffic-color"},
        }],
    })
}

/// Who has answered, and the colour that reached it.
async fn asked(client: &Client, headers: &[(&str, &str)]) -> (String, String) {
    let reply = client.get_with("/echo", headers).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    let echo = reply.json();
    for name in ["x-haven-cluster", "x-haven-upstream"] {
        let seen = echo["headers"].get(name);
        assert!(
            seen.is_none_or(|value| value
                .as_str()
                .is_some_and(|value| value.starts_with("users"))),
            "{name}: {seen:?}"
        );
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (
        text(&echo["upstream"]),
        text(&echo["headers"]["x-traffic-color"]),
    )
}

async fn two_versions(clusters: [&str; 2]) {
    let (v1, v2) = (Upstream::start("v1").await, Upstream::start("v2").await);
    let config = if clusters[0] == clusters[1] {
        EnvoyConfig::proxy([v1.addr(), v2.addr()])
    } else {
        let named = Route::to_named_by("/", "x-haven-cluster");
        let [one, two] = clusters;
        EnvoyConfig::empty()
            .cluster(Cluster::new(one, [v1.addr()]))
            .cluster(Cluster::new(two, [v2.addr()]))
            .route(named)
    };
    let mut envoy = Envoy::start(config.haven(&filter(&v1, &v2, clusters))).await;
    let (h1, h2) = (envoy.h1(), envoy.h2());
    let (stable, canary) = (
        ("v1".to_owned(), "users-v1".to_owned()),
        ("v2".to_owned(), "users-v2".to_owned()),
    );
    let lies = [
        ("x-traffic-color", "users-v2"),
        ("x-haven-cluster", "users-v2"),
        ("x-haven-upstream", &v2.addr().to_string()),
    ];
    for client in [&h1, &h2] {
        for (headers, wanted) in [
            (&[][..], &stable),
            (&lies, &stable),
            (&[("x-canary", "true")], &canary),
            (
                &[("X-Canary", "true"), ("x-traffic-color", "users-v1")],
                &canary,
            ),
            (&[("cookie", "a=b; version=2")], &canary),
            (&[("cookie", "version=2"), ("x-canary", "false")], &stable),
        ] {
            assert_eq!(&asked(client, headers).await, wanted, "{headers:?}");
        }
    }

    // The share of users: always the same ones, on all workers and over both versions of HTTP.
    let mut sides = BTreeMap::new();
    for client in [&h1, &h2] {
        for user in 0..150 {
            let side = asked(client, &[("x-user", &user.to_string())]).await.0;
            let known = sides.entry(user).or_insert_with(|| side.clone());
            assert_eq!(*known, side, "user {user} has changed sides");
        }
    }
    let on = sides.values().filter(|side| *side == "v2").count();
    assert!((15..=45).contains(&on), "{on} of 150 are about a fifth");

    // The canary breaks: as many failures as open its breaker, and then none.
    v2.set(|faults| faults.status = Some(500)).await;
    let mut failed = 0;
    for _ in 0..60 {
        let reply = h1.get_with("/echo", &[("x-canary", "true")]).await.unwrap();
        failed += usize::from(reply.status != 200);
    }
    assert!((1..=THRESHOLD).contains(&failed), "{failed} failures");
    assert_eq!(
        asked(&h2, &[("x-canary", "true")]).await,
        stable,
        "with the colour of those who answer"
    );
    let metrics = envoy.metrics().await;
    let state = |key: &str| {
        metrics.total(
            "haven_circuit_breaker_state",
            &[("circuit_breaker", "users"), ("key", key)],
        )
    };
    assert_eq!(
        (state("users/users-v2"), state("users")),
        (1.0, 0.0),
        "nothing is held against v1"
    );
    assert_eq!(
        metrics.total(
            "haven_canary_returned_total",
            &[("route", "users"), ("reason", "circuit_open")]
        ),
        (60 - failed + 1) as f64
    );
    let sent = |upstream: &str| {
        let labels = [
            ("route", "users"),
            ("upstream", upstream),
            ("mode", "enforce"),
        ];
        metrics.total("haven_canary_requests_total", &labels)
    };
    assert_eq!(sent("users-v2"), v2.counters().requests as f64);
    assert_eq!(sent("users-v1"), v1.counters().requests as f64);
    assert_eq!(
        metrics.total("haven_decisions_total", &[]),
        0.0,
        "nobody was refused"
    );
    nothing_in_flight(&envoy).await;
    assert_sound(&mut envoy).await;
}

#[test]
fn a_canary_in_the_same_cluster() {
    run(two_versions(["users", "users"]));
}

#[test]
fn a_canary_in_a_cluster_of_its_own() {
    run(two_versions(["users-v1", "users-v2"]));
}
