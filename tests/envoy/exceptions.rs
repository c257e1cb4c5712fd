//! Outcomes by exception in a real Envoy: each kind of answer, and each that Envoy makes by itself,
//! opens the breakers that it opens where every answer is read, also while the wiring is not known
//! yet, and where half of it is missing.

use std::net::SocketAddr;
use std::time::Duration;

use crate::filter::{assert_sound, endpoints, hanging, nothing_in_flight, transitions};
use crate::support::{
    Cluster, Envoy, EnvoyConfig, Exceptions, Retry, Route, Upstream, checkout, dead_addr,
    haven_wasm, run, wait_for,
};
use serde_json::{Value, json};

/// One failure opens any breaker.
fn filter(addrs: &[SocketAddr], outcomes: &str) -> Value {
    let once = json!({"consecutive_failures": 1, "open_duration": "10m"});
    json!({
        "outcomes": outcomes,
        "circuit_breakers": {"endpoint": once, "route": once},
        "rate_limits": {"none": {"limit": 1, "period": "1h", "headers": "none"}},
        "upstreams": {"users": {"endpoints": endpoints(addrs), "circuit_breaker": "endpoint", "load_balancer": {"policy": "first"}}},
        "routes": [
            {"name": "refused", "match": {"prefix": "/refused"}, "rate_limits": ["none"]},
            {"name": "left", "match": {"prefix": "/echo/left"}},
            {"name": "all", "upstream": "users", "circuit_breaker": "route"},
        ],
    })
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    NotFound,
    Failed,
    Reset,
    Cut,
    Refused,
    TimedOut,
    /// A timeout that is answered as a 404.
    Dressed,
    Overflow,
    LeftBefore,
    /// The first try fails, the second answers.
    Retried,
}

/// Whether it opens the breaker of an endpoint, and of the route.
fn opens(fate: Fate) -> [u64; 2] {
    match fate {
        Fate::Good | Fate::NotFound | Fate::Overflow | Fate::LeftBefore => [0, 0],
        Fate::Retried => [1, 0],
        _ => [1, 1],
    }
}

/// How Envoy is wired, and whether it has shown that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wiring {
    Every,
    Known,
    Unknown,
    Half,
}

async fn opened(fate: Fate, wiring: Wiring) -> [u64; 2] {
    let (good, bad) = (Upstream::start("good").await, Upstream::start("bad").await);
    let (dead, _kept) = dead_addr();
    let first = match fate {
        Fate::Refused | Fate::Retried => dead,
        _ => bad.addr(),
    };
    let mut cluster = Cluster::new("users", [first, good.addr()]);
    if fate == Fate::Overflow {
        cluster = cluster.with(&json!({"circuit_breakers": {"thresholds": [{"max_requests": 1}]}}));
    }
    let mut route = Route::to("/", "users").timeout(Duration::from_secs(2));
    if fate == Fate::Retried {
        route = route.retry(&Retry {
            on: "connect-failure".to_owned(),
            num_retries: 1,
            ..Retry::default()
        });
    }
    let mapper = json!({
        "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 504, "runtime_key": "none"}}}},
        "status_code": 404});
    let mut config = EnvoyConfig::empty()
        .cluster(cluster)
        .cluster(Cluster::new("other", [good.addr()]).plain())
        .route(Route::to("/echo/left", "other"))
        .route(route)
        .concurrency(1);
    if fate == Fate::Dressed {
        config = config.manager(&json!({"local_reply_config": {"mappers": [mapper]}}));
    }
    let (outcomes, exceptions) = match wiring {
        Wiring::Every => ("every", None),
        Wiring::Known | Wiring::Unknown => ("by_exception", Some(Exceptions::Wired)),
        Wiring::Half => ("by_exception", Some(Exceptions::Half)),
    };
    if let Some(exceptions) = exceptions {
        config = config.exceptions(exceptions);
    }
    let filter = filter(&[first, good.addr()], outcomes);
    let mut envoy = Envoy::start(config.haven(&filter)).await;
    if wiring == Wiring::Known {
        // A request that haven refuses, and one whose client leaves.
        for _ in 0..2 {
            envoy.h1().get("/refused").await.unwrap();
        }
        good.set(|faults| faults.hang = true).await;
        let client = envoy.h2();
        let left = hanging(async move { client.get("/echo/left").await });
        wait_for("it hangs", async || good.counters().in_flight > 0).await;
        drop(left);
        wait_for("it has left", async || envoy.access_log().len() >= 3).await;
        good.heal().await;
    }
    let set = |faults: &mut crate::support::Faults| match fate {
        Fate::NotFound => faults.status = Some(404),
        Fate::Failed => faults.status = Some(500),
        Fate::Reset => faults.reset = true,
        Fate::Cut => faults.cut = true,
        Fate::TimedOut | Fate::Dressed | Fate::LeftBefore | Fate::Overflow => faults.hang = true,
        _ => {}
    };
    bad.set(set).await;
    let mut held = None;
    if matches!(fate, Fate::Overflow | Fate::LeftBefore) {
        let client = envoy.h2();
        held = Some(hanging(async move { client.get("/echo").await }));
        wait_for("one is there", async || bad.counters().in_flight > 0).await;
    }
    if fate != Fate::LeftBefore {
        let _ = envoy.h1().get("/echo").await;
    }
    drop(held);
    nothing_in_flight(&envoy).await;
    let found = [
        transitions(&envoy, "endpoint", "open").await,
        transitions(&envoy, "route", "open").await,
    ];
    assert_sound(&mut envoy).await;
    found
}

const FATES: [Fate; 11] = [
    Fate::Good,
    Fate::NotFound,
    Fate::Failed,
    Fate::Reset,
    Fate::Cut,
    Fate::Refused,
    Fate::TimedOut,
    Fate::Dressed,
    Fate::Overflow,
    Fate::LeftBefore,
    Fate::Retried,
];

async fn opens_what_it_should(wiring: Wiring) {
    for fate in FATES {
        assert_eq!(
            opened(fate, wiring).await,
            opens(fate),
            "{fate:?} {wiring:?}"
        );
    }
}

#[test]
fn every_answer_opens_what_it_should_where_all_are_read() {
    run(opens_what_it_should(Wiring::Every));
}

#[test]
fn exceptions_open_the_same_once_the_wiring_is_known() {
    run(opens_what_it_should(Wiring::Known));
}

#[test]
fn exceptions_open_the_same_while_the_wiring_is_not_known() {
    run(opens_what_it_should(Wiring::Unknown));
}

#[test]
fn exceptions_open_the_same_where_the_access_log_is_missing() {
    run(opens_what_it_should(Wiring::Half));
}

/// A third of many requests at once fail, and the fallback's answer is written in place of theirs:
/// nobody gets another's answer, or a part of the failed one, and no place is kept.
#[test]
fn answers_are_replaced_in_place_for_many_at_once() {
    const ROUND: u64 = 200;
    const AT_ONCE: u64 = 32;
    run(async {
        for exceptions in [Exceptions::Wired, Exceptions::Half] {
            let upstream = Upstream::start("a").await;
            let filter = json!({
                "outcomes": "by_exception",
                "upstreams": {"users": {"endpoints": endpoints(&[upstream.addr()]), "concurrency_limit": "many"}},
                "concurrency_limits": {"many": {"algorithm": "fixed", "limit": 1_000}},
                "fallbacks": {"f": {"steps": [{"respond": {"status": 203, "body": "instead of {{request_id}}"}}]}},
                "routes": [{"name": "all", "upstream": "users", "fallback": "f"}],
            });
            let config = EnvoyConfig::proxy([upstream.addr()])
                .internal_clients()
                .exceptions(exceptions)
                .concurrency(2)
                .haven(&filter);
            let mut envoy = Envoy::start(config).await;
            // At first the wiring is not known; the clients that leave make it known.
            for round in 0..2 {
                upstream.reset().await;
                upstream
                    .set(|faults| {
                        faults.status = Some(500);
                        faults.every = 3;
                        faults.service_time_ms = 10;
                        faults.headers.insert("x-upstream".into(), "1".into());
                    })
                    .await;
                let mut tasks = tokio::task::JoinSet::new();
                for first in 0..AT_ONCE {
                    let client = if first % 2 == 0 {
                        envoy.h1()
                    } else {
                        envoy.h2()
                    };
                    tasks.spawn(async move {
                        let mut replaced = 0;
                        for number in (first..ROUND).step_by(AT_ONCE as usize) {
                            // Bodies of many sizes, up to several of Envoy's pieces.
                            let path =
                                format!("/echo/{number}/{}", "x".repeat(number as usize * 40));
                            let id = format!("{number:08}-0000-4000-8000-{round:012}");
                            let headers = [("x-request-id", id.as_str())];
                            let reply = client.get_with(&path, &headers).await.unwrap();
                            assert_eq!(reply.cut, None, "{reply:?}");
                            let length = reply.header("content-length");
                            assert_eq!(length, Some(reply.body.len().to_string()), "{reply:?}");
                            if reply.status == 203 {
                                replaced += 1;
                                assert_eq!(reply.text(), format!("instead of {id}"));
                                assert_eq!(reply.header("x-upstream"), None, "{reply:?}");
                            } else {
                                assert_eq!(reply.status, 200, "{reply:?}");
                                assert_eq!(reply.json()["path"], path, "{reply:?}");
                            }
                        }
                        replaced
                    });
                }
                let replaced: u64 = tasks.join_all().await.iter().sum();
                wait_for("the upstream is done", async || {
                    upstream.counters().in_flight == 0
                })
                .await;
                let answered = upstream.counters().answered;
                let of = |status: u16| answered.get(&status).copied().unwrap_or(0);
                println!("{exceptions:?} {round}: {replaced} of {ROUND} replaced");
                assert_eq!((replaced, of(500) + of(200)), (of(500), ROUND));
                assert!(replaced * 4 > ROUND, "{replaced}");
                for name in ["haven_endpoint_in_flight", "haven_concurrency_in_flight"] {
                    wait_for("nothing is in flight", async || {
                        envoy.metrics().await.total(name, &[]) == 0.0
                    })
                    .await;
                }
                upstream.reset().await;
                upstream.set(|faults| faults.hang = true).await;
                for _ in 0..4 {
                    envoy.h1().get("/livez").await.unwrap();
                    let client = envoy.h2();
                    let left = hanging(async move { client.get("/echo").await });
                    wait_for("it hangs", async || upstream.counters().in_flight > 0).await;
                    drop(left);
                    wait_for("it has left", async || upstream.counters().in_flight == 0).await;
                }
                nothing_in_flight(&envoy).await;
            }
            assert_sound(&mut envoy).await;
        }
    });
}

/// The example that docs/cost.md explains, with an upstream, a filter and ports of the test's own.
#[test]
fn the_example_starts_and_is_wired() {
    run(async {
        let upstream = Upstream::start("a").await;
        let other = Upstream::start("b").await;
        let [addr, second] = [upstream.addr(), other.addr()];
        let mut text = std::fs::read_to_string(checkout("examples/by_exception.yaml")).unwrap();
        for (from, to) in [
            ("10.77.0.11:8080", addr.to_string()),
            (
                "address: 10.77.0.11, port_value: 8080",
                format!("address: {}, port_value: {}", addr.ip(), addr.port()),
            ),
            ("10.77.0.12:8080", second.to_string()),
            (
                "address: 10.77.0.12, port_value: 8080",
                format!("address: {}, port_value: {}", second.ip(), second.port()),
            ),
            ("port_value: 9901", "port_value: 0".to_owned()),
            ("port_value: 10000", "port_value: 0".to_owned()),
            (
                "dist/haven.wasm",
                haven_wasm().unwrap().display().to_string(),
            ),
        ] {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, &to);
        }
        let mut envoy = Envoy::start(EnvoyConfig::text(text).concurrency(1)).await;
        assert_eq!(envoy.h1().get("/echo").await.unwrap().status, 200);
        // Envoy picks the endpoint.
        assert_eq!(envoy.stat("cluster.users-own.upstream_rq_total").await, 1);
        // Reported: an answer that is cut, one that nobody was asked for.
        for it in [&upstream, &other] {
            it.set(|faults| faults.cut = true).await;
        }
        let _ = envoy.h1().get("/echo").await;
        upstream.heal().await;
        other.heal().await;
        // haven does, for a while after a failure.
        assert_eq!(envoy.h1().get("/echo").await.unwrap().status, 200);
        assert_eq!(envoy.stat("cluster.users.upstream_rq_total").await, 1);
        assert_eq!(envoy.h1().get("/livez").await.unwrap().status, 200);
        nothing_in_flight(&envoy).await;
        assert!(!envoy.logs().contains("by_exception"), "{}", envoy.logs());
        assert_sound(&mut envoy).await;
    });
}
