//! Every reason of a refusal or a failure, end to end: as a problem document, by a fallback, and as
//! a gRPC status, on HTTP/1.1 and HTTP/2.

use crate::filter::{assert_sound, grpc, grpc_request, hanging};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Reply, Route, Upstream, run, wait_for};
use serde_json::{Value, json};

/// A reason, with the route that is there for it, and what its refusal says.
struct Case {
    reason: &'static str,
    policy: &'static str,
    status: u16,
    grpc: &'static str,
    retry_after: bool,
    headers: &'static [(&'static str, &'static str)],
}

const CASES: &[Case] = &[
    Case {
        reason: "switched_off",
        policy: "off",
        status: 503,
        grpc: "14",
        retry_after: false,
        headers: &[],
    },
    Case {
        reason: "deadline",
        policy: "timeout",
        status: 504,
        grpc: "4",
        retry_after: false,
        headers: &[("x-ms-left", "0")],
    },
    Case {
        reason: "rate_limited",
        policy: "one",
        status: 429,
        grpc: "8",
        retry_after: true,
        headers: &[],
    },
    Case {
        reason: "overload",
        policy: "one-at-a-time",
        status: 503,
        grpc: "14",
        retry_after: true,
        headers: &[],
    },
    Case {
        reason: "circuit_open",
        policy: "first-failure",
        status: 503,
        grpc: "14",
        retry_after: true,
        headers: &[],
    },
    Case {
        reason: "no_endpoint",
        policy: "drained",
        status: 503,
        grpc: "14",
        retry_after: false,
        headers: &[],
    },
];

/// The filter: for each reason a route `/<reason>`, and `/fb/<reason>` with a fallback for all of
/// them.
fn filter(endpoint: &Value) -> Value {
    let policies = |reason: &str| match reason {
        "switched_off" => json!({"switch": "off"}),
        "deadline" => json!({"timeout": {"deadline_header": "x-ms-left"}}),
        "rate_limited" => json!({"rate_limits": ["one"]}),
        "overload" => json!({"concurrency_limit": "one-at-a-time"}),
        "circuit_open" => json!({"circuit_breaker": "first-failure"}),
        "no_endpoint" => json!({"upstream": "drained"}),
        "timeout" => json!({"timeout": {"request": "200ms"}}),
        _ => json!({}),
    };
    let routes = CASES
        .iter()
        .map(|case| case.reason)
        .chain(["timeout", "upstream_error"])
        .flat_map(|reason| {
            ["", "/fb"].map(|prefix| {
                let mut route = policies(reason);
                // The prefix also tells the routes' breakers and limits apart from those without a
                // fallback.
                let path = format!("{prefix}/{reason}");
                route["name"] = path.trim_start_matches('/').replace('/', "-").into();
                route["match"] = json!({"prefix": path});
                if !prefix.is_empty() {
                    route["fallback"] = "answer".into();
                }
                route
            })
        });
    let mut drained = endpoint.clone();
    drained["weight"] = 0.into();
    json!({
        "switches": {"off": "off"},
        "rate_limits": {"one": {"limit": 1, "period": "1h", "key": ["route", "method"]}},
        "concurrency_limits": {"one-at-a-time": {"algorithm": "fixed", "limit": 1}},
        "circuit_breakers": {"first-failure": {"consecutive_failures": 1, "open_duration": "1h", "max_open_duration": "1h"}},
        "upstreams": {"drained": {"endpoints": [drained], "load_balancer": {"panic_threshold": 0}}},
        "fallbacks": {"answer": {
            "on": ["rate_limited", "overload", "circuit_open", "no_endpoint", "deadline", "switched_off", "upstream_error", "timeout"],
            "steps": [{"respond": {"status": 203, "content_type": "application/json", "body": "{\"why\":\"{{reason}}\",\"系统\":\"繁忙\"}"}}],
        }},
        "routes": routes.collect::<Vec<_>>(),
    })
}

/// An Envoy with an upstream that answers, one that fails, and one that hangs.
struct Setup {
    envoy: Envoy,
    good: Upstream,
    _others: [Upstream; 2],
}

async fn setup() -> Setup {
    let (good, bad, hung) = (
        Upstream::start("good").await,
        Upstream::start("bad").await,
        Upstream::start("hung").await,
    );
    bad.set(|faults| faults.status = Some(500)).await;
    hung.set(|faults| faults.hang = true).await;
    let to = |path: &str, cluster: &str| {
        ["", "/fb"].map(|prefix| Route::to(&format!("{prefix}{path}"), cluster))
    };
    let config = EnvoyConfig::empty()
        .cluster(Cluster::new("good", [good.addr()]))
        .cluster(Cluster::new("bad", [bad.addr()]))
        .cluster(Cluster::new("hung", [hung.addr()]));
    let routes = [
        to("/overload", "hung"),
        to("/timeout", "hung"),
        to("/circuit_open", "bad"),
        to("/upstream_error", "bad"),
        to("/", "good"),
    ];
    let config = routes
        .into_iter()
        .flatten()
        .fold(config, EnvoyConfig::route);
    let endpoint = json!({"address": good.addr().to_string()});
    let envoy = Envoy::start(config.haven(&filter(&endpoint))).await;
    Setup {
        envoy,
        good,
        _others: [bad, hung],
    }
}

/// Brings each policy to where it refuses.
async fn exhaust(client: &Client) {
    for prefix in ["", "/fb"] {
        for method in ["GET", "POST", "HEAD"] {
            client
                .request(method, &format!("{prefix}/rate_limited"), &[], "")
                .await
                .unwrap();
        }
        client.get(&format!("{prefix}/circuit_open")).await.unwrap();
    }
}

fn assert_problem(case: &Case, reply: &Reply) {
    let Case {
        reason,
        policy,
        status,
        ..
    } = case;
    assert_eq!(reply.status, *status, "{reason}: {reply:?}");
    assert_eq!(
        reply.header("content-type").as_deref(),
        Some("application/problem+json"),
        "{reason}"
    );
    let problem = reply.json();
    assert_eq!(
        (&problem["reason"], &problem["policy"], &problem["status"]),
        (&json!(reason), &json!(policy), &json!(status))
    );
    assert_eq!(
        reply.header("content-length"),
        Some(reply.body.len().to_string()),
        "{reason}"
    );
    let proxy_status = reply.header("proxy-status").unwrap();
    assert!(
        proxy_status.starts_with("haven; error=")
            && proxy_status.ends_with(&format!("details=\"{reason} {policy}\"")),
        "{proxy_status}"
    );
    assert_eq!(
        reply.header("retry-after").is_some(),
        case.retry_after,
        "{reason}: {reply:?}"
    );
    if let Some(wait) = reply.header("retry-after") {
        assert!(wait.parse::<u64>().unwrap() >= 1, "{reason}: {wait}");
    }
}

#[test]
fn each_reason_is_told_in_every_protocol_and_answered_by_the_fallback() {
    run(async {
        let mut setup = setup().await;
        let envoy = &setup.envoy;
        exhaust(&envoy.h2()).await;
        // One request each holds the only place of the limits.
        let held: Vec<_> = ["/overload", "/fb/overload"]
            .map(|path| {
                let client = envoy.h2();
                hanging(async move { client.get(path).await })
            })
            .into();
        wait_for("the places are taken", async || {
            envoy
                .metric(
                    "haven_concurrency_in_flight",
                    &[("policy", "one-at-a-time")],
                )
                .await
                .is_some_and(|n| n >= 2.0)
        })
        .await;
        let reached = setup.good.counters().requests;
        for client in [envoy.h1(), envoy.h2()] {
            for case in CASES {
                let path = format!("/{}", case.reason);
                let reply = client.get_with(&path, case.headers).await.unwrap();
                assert_problem(case, &reply);
                let head = client
                    .request("HEAD", &path, case.headers, "")
                    .await
                    .unwrap();
                assert_eq!(
                    (head.status, head.body.len()),
                    (case.status, 0),
                    "HEAD {path}"
                );

                let answer = client
                    .get_with(&format!("/fb{path}"), case.headers)
                    .await
                    .unwrap();
                let expected = format!("{{\"why\":\"{}\",\"系统\":\"繁忙\"}}", case.reason);
                assert_eq!((answer.status, answer.text()), (203, expected), "{path}");
                assert_eq!(
                    answer.header("content-type").as_deref(),
                    Some("application/json")
                );
                assert!(answer.header("proxy-status").unwrap().contains(case.reason));
            }
            for reason in ["timeout", "upstream_error"] {
                let answer = client.get(&format!("/fb/{reason}")).await.unwrap();
                assert_eq!(
                    (answer.status, answer.json()["why"].as_str().unwrap()),
                    (203, reason)
                );
            }
            assert_eq!(
                client.get("/timeout").await.unwrap().status,
                504,
                "without a fallback Envoy's own answer stays"
            );
            assert_eq!(
                client.get("/upstream_error").await.unwrap().status,
                500,
                "and the upstream's"
            );
        }
        assert_eq!(
            setup.good.counters().requests,
            reached,
            "nothing refused has reached an upstream"
        );

        for case in CASES {
            for prefix in ["", "/fb"] {
                let mut request = grpc_request(envoy.addr(), &format!("{prefix}/{}", case.reason));
                for (name, value) in case.headers {
                    request.headers_mut().insert(*name, value.parse().unwrap());
                }
                let reply = envoy.h2().send(request).await.unwrap();
                let status = reply.header("grpc-status");
                assert_eq!(
                    (reply.status, status.as_deref(), reply.body.len()),
                    (200, Some(case.grpc), 0),
                    "{}: {reply:?}",
                    case.reason
                );
            }
        }
        let (status, _) = grpc(&envoy.h2(), envoy.addr(), "/fb/timeout").await;
        assert_eq!(status.as_deref(), Some("4"));
        let (status, _) = grpc(&envoy.h2(), envoy.addr(), "/fb/upstream_error").await;
        assert!(
            matches!(status.as_deref(), Some("14" | "2" | "13")),
            "{status:?}"
        );
        drop(held);
        wait_for("the places are free again", async || {
            envoy
                .metric(
                    "haven_concurrency_in_flight",
                    &[("policy", "one-at-a-time")],
                )
                .await
                == Some(0.0)
        })
        .await;
        assert_sound(&mut setup.envoy).await;
    });
}
