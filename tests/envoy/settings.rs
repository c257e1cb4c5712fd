//! docs/envoy.md: its first step, and what a real Envoy does without each setting that the table
//! names. What it does with them is what all the other tests see.

use std::time::Duration;

use serde_json::{Value, json};

use crate::filter::{assert_sound, grpc};
use crate::recipes::{Kitchen, Prepared, Section, with_filter};
use crate::support::config::haven_filter;
use crate::support::{Client, Envoy, EnvoyConfig, checkout, haven_wasm, load, run, wait_for};

/// envoy.yaml with this filter, for all paths.
fn envoy_yaml(filter: &Value) -> String {
    let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
    let text = with_filter(&text, &serde_json::to_string_pretty(filter).unwrap());
    replaced(&text, "path_separated_prefix: /api/users", "prefix: /")
}

/// The text with other words at the only place that has these.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replacen(from, to, 1)
}

/// The text without what stands from here to there.
fn cut(text: &str, from: &str, to: &str) -> String {
    let begin = text.find(from).unwrap();
    let end = begin + text[begin..].find(to).unwrap();
    format!("{}{}", &text[..begin], &text[end..])
}

async fn start(text: String) -> Kitchen {
    Prepared::new(text).await.start().await
}

/// A filter that takes an endpoint out after five failures.
fn ejecting() -> Value {
    let endpoints = [11, 12, 13].map(|host| json!({"address": format!("10.77.0.{host}:8080")}));
    json!({
        "upstreams": {"users": {"endpoints": endpoints, "circuit_breaker": "endpoint",
                                "override": {"attempt_count": true}}},
        "circuit_breakers": {"endpoint": {"consecutive_failures": 5, "open_duration": "10m"}},
        "routes": [{"name": "all", "upstream": "users"}],
    })
}

async fn healthy(kitchen: &Kitchen, ip: &str) -> Option<f64> {
    let addr = kitchen.at(ip).addr().to_string();
    kitchen
        .envoy
        .metric("haven_endpoint_healthy", &[("endpoint", &addr)])
        .await
}

#[test]
fn a_copy_with_these_lines_changed_works_at_once() {
    run(async {
        let section = Section::of(
            "docs/envoy.md",
            "First: copy envoy.yaml and change these lines",
        );
        let mut kitchen = start(section.envoy_yaml()).await;
        let client = kitchen.client();
        // Fewer than the 50 that envoy.yaml lets a client send at once.
        assert_eq!(
            load(&client, 10, 1, "/api/orders", &[]).await.count(200),
            10
        );
        let write = client
            .request("POST", "/api/orders", &[], "{}")
            .await
            .unwrap();
        assert_eq!(write.status, 200);
        assert!(
            kitchen.requests().iter().all(|requests| *requests > 0),
            "both are used"
        );
        assert_eq!(client.get("/elsewhere").await.unwrap().status, 404);
        kitchen
            .at("192.0.2.21")
            .set(|faults| faults.close = true)
            .await;
        assert_eq!(
            load(&client, 30, 1, "/api/orders/7", &[]).await.count(200),
            30
        );
        kitchen
            .at("192.0.2.22")
            .set(|faults| faults.close = true)
            .await;
        let reply = client.get("/api/orders/new").await.unwrap();
        assert_eq!(
            reply.status, 503,
            "no answer of the user service: {reply:?}"
        );
        let reply = client.get("/api/orders/7").await.unwrap();
        assert_eq!(reply.status, 200, "the last good answer: {reply:?}");
        assert!(reply.header("proxy-status").is_some());
        assert_sound(&mut kitchen.envoy).await;
    });
}

#[test]
fn without_override_host_a_failing_endpoint_keeps_its_share() {
    run(async {
        let text = envoy_yaml(&ejecting());
        let users = text.find("  - name: users\n").unwrap();
        let (before, cluster) = text.split_at(users);
        let cluster = cut(
            cluster,
            "    load_balancing_policy:",
            "    typed_extension_protocol",
        );
        let kitchen = start(format!("{before}{cluster}")).await;
        kitchen
            .at("10.77.0.11")
            .set(|faults| faults.status = Some(503))
            .await;
        for _ in 0..3 {
            let failed = load(&kitchen.client(), 60, 1, "/", &[]).await.count(503);
            assert!(
                (15..=25).contains(&failed),
                "{failed} of 60 are about a third"
            );
        }
    });
}

#[test]
fn without_the_removal_endpoints_see_the_choice() {
    run(async {
        let text = envoy_yaml(&ejecting());
        let kitchen = start(replaced(
            &text,
            "request_mutations:\n              - remove: x-haven-upstream",
            "request_mutations:\n              - remove: x-other",
        ))
        .await;
        let echo = kitchen.client().get("/echo").await.unwrap().json();
        let seen = echo["headers"]["x-haven-upstream"].as_str().unwrap();
        assert_eq!(seen.split(',').count(), 3, "{seen}");
    });
}

#[test]
fn an_address_that_the_cluster_has_not_is_never_dialled_and_looks_well() {
    run(async {
        let mut filter = ejecting();
        filter["upstreams"]["users"]["health_check"] = json!({"interval": "100ms"});
        let line = "- endpoint: { address: { socket_address: { address: 10.77.0.13, port_value: 8080 } } }";
        let kitchen = start(replaced(&envoy_yaml(&filter), line, "")).await;
        assert_eq!(
            load(&kitchen.client(), 60, 1, "/", &[]).await.count(200),
            60
        );
        wait_for("it is held to be well", async || {
            kitchen
                .envoy
                .logs()
                .contains("endpoint 10.77.0.13:8080 of users: UNKNOWN -> UP")
        })
        .await;
    });
}

#[test]
fn without_use_remote_address_clients_name_their_own() {
    run(async {
        for source in ["x-forwarded-for", "connection"] {
            let text = envoy_yaml(&json!({
                "client_ip": {"source": source},
                "rate_limits": {"two": {"limit": 2, "period": "1h", "key": ["client_ip"]}},
                "routes": [{"name": "all", "rate_limits": ["two"]}],
            }));
            let kitchen = start(replaced(&text, "use_remote_address: true", "")).await;
            for host in 0..10 {
                let forged = format!("198.51.100.{host}");
                let headers = [("x-forwarded-for", forged.as_str())];
                let reply = kitchen.client().get_with("/", &headers).await.unwrap();
                assert_eq!(reply.status, 200, "{source}");
            }
        }
    });
}

#[test]
fn without_normal_paths_a_limit_can_be_passed_by() {
    run(async {
        let mut text = envoy_yaml(&json!({
            "rate_limits": {"one": {"limit": 1, "period": "1h"}},
            "routes": [{"name": "api", "match": {"prefix": "/api"}, "rate_limits": ["one"]}],
        }));
        for line in [
            "normalize_path: true",
            "merge_slashes: true",
            "path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT",
        ] {
            text = replaced(&text, line, "");
        }
        let kitchen = start(text).await;
        let client = kitchen.client();
        assert_eq!(load(&client, 2, 1, "/api/users", &[]).await.count(429), 1);
        for path in ["//api/users", "/x/../api/users"] {
            assert_eq!(client.get(path).await.unwrap().status, 200, "{path}");
        }
    });
}

#[test]
fn without_envoys_own_attempt_count_retries_are_credited_to_who_failed() {
    run(async {
        let mut filter = ejecting();
        filter["routes"][0]["retry"] = json!({"min_per_second": 1000});
        let text = envoy_yaml(&filter);
        let kitchen = start(replaced(
            &text,
            "include_attempt_count_in_response: true",
            "",
        ))
        .await;
        let claim = ("x-envoy-attempt-count".to_owned(), "1".to_owned());
        kitchen
            .all(|faults| faults.headers.extend([claim.clone()]))
            .await;
        kitchen
            .at("10.77.0.11")
            .set(|faults| faults.status = Some(503))
            .await;
        assert_eq!(
            load(&kitchen.client(), 60, 1, "/", &[]).await.count(200),
            60
        );
        // Of 60 some 20 come to it, by chance: more than the five that would have taken it out.
        let failed = kitchen.at("10.77.0.11").counters().requests;
        assert!(failed > 5, "{failed}");
        assert_eq!(healthy(&kitchen, "10.77.0.11").await, Some(1.0));
    });
}

#[test]
fn without_max_retries_envoy_cuts_them_off() {
    run(async {
        let mut filter = ejecting();
        filter["routes"][0]["retry"] = json!({"min_per_second": 1000});
        let kitchen = start(replaced(&envoy_yaml(&filter), "max_retries: 256", "")).await;
        kitchen.all(|faults| faults.delay_ms = 300).await;
        kitchen
            .at("10.77.0.11")
            .set(|faults| faults.status = Some(503))
            .await;
        let tally = load(&kitchen.client(), 30, 30, "/", &[]).await;
        assert!(tally.count(503) > 0, "{tally:?}");
        assert!(
            kitchen
                .envoy
                .stat("cluster.users.upstream_rq_retry_overflow")
                .await
                > 0
        );
    });
}

#[test]
fn without_cluster_header_the_stable_side_serves_the_canary() {
    run(async {
        let filter = json!({
            "upstreams": {"users": {"endpoints": [{"address": "10.77.0.11:8080"}]},
                          "users-v2": {"endpoints": [{"address": "10.77.0.21:8080"}]}},
            "routes": [{"name": "all", "match": {"prefix": "/echo"}, "upstream": "users",
                        "canary": {"upstream": "users-v2", "percent": 100}}],
        });
        let text = envoy_yaml(&filter);
        let endpoint = "{ address: { socket_address: { address: 10.77.0.21, port_value: 8080 } } }";
        let text = format!(
            "{text}  - name: users-v2
    load_assignment:
      cluster_name: users-v2
      endpoints:
      - lb_endpoints:
        - endpoint: {endpoint}
"
        );
        let canary = [
            ("route", "all"),
            ("upstream", "users-v2"),
            ("mode", "enforce"),
        ];
        let kitchen = start(text.clone()).await;
        let echo = kitchen.client().get("/echo").await.unwrap().json();
        assert_ne!(echo["upstream"], "10.77.0.21:8080");
        assert_eq!(
            kitchen
                .envoy
                .metric("haven_canary_requests_total", &canary)
                .await,
            Some(1.0)
        );

        let named = "                  cluster_header: x-haven-cluster\n";
        let kitchen = start(replaced(&text, "                  cluster: users\n", named)).await;
        let echo = kitchen.client().get("/echo").await.unwrap().json();
        assert_eq!(echo["upstream"], "10.77.0.21:8080");
        let reply = kitchen.client().get("/elsewhere").await.unwrap();
        assert_eq!((reply.status, reply.header("proxy-status")), (503, None));
        let log = kitchen.envoy.access_log_of(2).await;
        assert_eq!(log[1]["details"], "cluster_not_found");
    });
}

#[test]
fn without_http2_grpc_checks_fail() {
    run(async {
        let recipe = Section::recipe("gRPC with health checks");
        let filter = serde_json::from_str(&recipe.blocks("json")[0]).unwrap();
        let kitchen = start(envoy_yaml(&filter)).await;
        wait_for("all are down", async || {
            let metrics = kitchen.envoy.metrics().await;
            metrics.total("haven_endpoint_check_reason", &[]) == 15.0
                && metrics.total("haven_endpoint_healthy", &[]) == 0.0
        })
        .await;
    });
}

/// A gRPC health check of the proxy: its status.
async fn check(kitchen: &Kitchen) -> Option<String> {
    let client = Client::h2(kitchen.envoy.addr());
    grpc(
        &client,
        kitchen.envoy.addr(),
        "/grpc.health.v1.Health/Check",
    )
    .await
    .0
}

#[test]
fn without_stopping_at_the_headers_grpc_health_checks_hang() {
    run(async {
        let text = envoy_yaml(&json!({}));
        let text = replaced(&text, "request_timeout: 60s", "request_timeout: 1s");
        let kitchen = start(text.clone()).await;
        assert_eq!(check(&kitchen).await.as_deref(), Some("0"));
        let kitchen = start(replaced(&text, "allow_on_headers_stop_iteration: true", "")).await;
        assert_eq!(check(&kitchen).await.as_deref(), Some("14"));
    });
}

#[test]
fn without_the_bridge_grpc_health_checks_are_unimplemented() {
    run(async {
        let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
        let bridge = "          - name: envoy.filters.http.grpc_http1_reverse_bridge";
        let text = cut(&with_filter(&text, "{}"), bridge, "          - &router");
        let text = cut(
            &text,
            "              typed_per_filter_config:",
            "              routes:",
        );
        let route = "              - match: { path: /grpc.health.v1.Health/Check }";
        let text = cut(
            &text,
            route,
            "              - match: { path_separated_prefix",
        );
        assert_eq!(check(&start(text).await).await.as_deref(), Some("12"));
    });
}

#[test]
fn with_a_body_held_back_a_waiting_request_has_a_bound() {
    run(async {
        let text = envoy_yaml(&json!({
            "rate_limits": {"even": {"algorithm": "leaky_bucket", "limit": 5, "max_wait": "10s"}},
            "routes": [{"name": "all", "rate_limits": ["even"]}],
        }));
        let large = "x".repeat(100_000);
        let twice = async |kitchen: &Kitchen| {
            let client = kitchen.client();
            client.request("POST", "/", &[], "").await.unwrap();
            client
                .request("POST", "/", &[], large.clone())
                .await
                .unwrap()
                .status
        };
        let kitchen = start(text.clone()).await;
        assert_eq!(twice(&kitchen).await, 413);
        let kitchen = start(replaced(&text, "allow_on_headers_stop_iteration: true", "")).await;
        assert_eq!(twice(&kitchen).await, 200);
    });
}

#[test]
fn without_stats_tags_metrics_have_no_labels() {
    run(async {
        let mut filter = ejecting();
        filter["rate_limits"] = json!({"two": {"limit": 2}});
        filter["routes"][0]["rate_limits"] = json!(["two"]);
        let text = cut(&envoy_yaml(&filter), "stats_config:", "overload_manager:");
        let kitchen = start(text).await;
        let page = kitchen.envoy.admin_get("/stats/prometheus").await;
        assert!(
            page.contains("\nhaven_decisions_total_route_all_policy_two_"),
            "{page}"
        );
    });
}

/// A filter whose VM fails at a request with more than twelve headers: `(func (export
/// "proxy_on_request_headers") (param i32 i32 i32) (result i32) (if (i32.gt_s (local.get 1)
/// (i32.const 12)) (then unreachable)) (i32.const 0))`, and what a host needs to start it.
const FAILING: &[u8] = b"\
\x00\x61\x73\x6d\x01\x00\x00\x00\x01\x1b\x05\x60\x00\x00\x60\x01\x7f\x01\x7f\x60\
\x02\x7f\x7f\x00\x60\x02\x7f\x7f\x01\x7f\x60\x03\x7f\x7f\x7f\x01\x7f\x03\x08\x07\
\x00\x00\x01\x02\x03\x03\x04\x05\x03\x01\x00\x01\x07\x99\x01\x08\x06\x6d\x65\x6d\
\x6f\x72\x79\x02\x00\x17\x70\x72\x6f\x78\x79\x5f\x61\x62\x69\x5f\x76\x65\x72\x73\
\x69\x6f\x6e\x5f\x30\x5f\x32\x5f\x31\x00\x00\x0b\x5f\x69\x6e\x69\x74\x69\x61\x6c\
\x69\x7a\x65\x00\x01\x06\x6d\x61\x6c\x6c\x6f\x63\x00\x02\x17\x70\x72\x6f\x78\x79\
\x5f\x6f\x6e\x5f\x63\x6f\x6e\x74\x65\x78\x74\x5f\x63\x72\x65\x61\x74\x65\x00\x03\
\x11\x70\x72\x6f\x78\x79\x5f\x6f\x6e\x5f\x76\x6d\x5f\x73\x74\x61\x72\x74\x00\x04\
\x12\x70\x72\x6f\x78\x79\x5f\x6f\x6e\x5f\x63\x6f\x6e\x66\x69\x67\x75\x72\x65\x00\
\x05\x18\x70\x72\x6f\x78\x79\x5f\x6f\x6e\x5f\x72\x65\x71\x75\x65\x73\x74\x5f\x68\
\x65\x61\x64\x65\x72\x73\x00\x06\x0a\x28\x07\x02\x00\x0b\x02\x00\x0b\x05\x00\x41\
\x80\x08\x0b\x02\x00\x0b\x04\x00\x41\x01\x0b\x04\x00\x41\x01\x0b\x0d\x00\x20\x01\
\x41\x0c\x4a\x04\x40\x00\x0b\x41\x00\x0b";

#[test]
fn a_vm_that_fails_comes_back_with_fail_reload_alone() {
    run(async {
        let path = std::env::temp_dir().join(format!("haven-failing-{}.wasm", std::process::id()));
        std::fs::write(&path, FAILING).unwrap();
        let text = envoy_yaml(&json!({}));
        let text = text.replace("dist/haven.wasm", &path.display().to_string());
        let many: Vec<(String, &str)> = (0..20).map(|n| (format!("x-{n}"), "1")).collect();
        let many: Vec<(&str, &str)> = many
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        for (policy, soon, late) in [
            ("failure_policy: FAIL_RELOAD", 503, 200),
            ("", 503, 503),
            ("failure_policy: FAIL_OPEN", 200, 200),
        ] {
            let recipe =
                Prepared::new(replaced(&text, "failure_policy: FAIL_RELOAD", policy)).await;
            let bootstrap = recipe.local(&recipe.text);
            let envoy = Envoy::start(EnvoyConfig::text(bootstrap).concurrency(1)).await;
            let client = envoy.h1();
            let status = async || client.get("/").await.unwrap().status;
            assert_eq!(status().await, 200);
            assert_eq!(
                client.get_with("/", &many).await.unwrap().status,
                503,
                "{policy:?}"
            );
            assert_eq!(status().await, soon, "{policy:?}");
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(status().await, late, "{policy:?}");
            let log = envoy.access_log_of(2).await;
            assert_eq!(log[1]["details"], "wasm_fail_stream");
        }
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn two_filters_of_one_chain_share_state_only_where_both_name_it() {
    run(async {
        for name in [None, Some("shared")] {
            let mut limited = json!({
                "rate_limits": {"l": {"limit": 2, "period": "1h"}},
                "routes": [{"name": "all", "rate_limits": ["l"]}]});
            if let Some(name) = name {
                limited["state"] = json!(name);
            }
            let wasm = haven_wasm().unwrap();
            let mut other = haven_filter(wasm.to_str().unwrap(), &limited.to_string(), false);
            other["typed_config"]["config"]["root_id"] = json!("other");
            let envoy =
                Envoy::start(EnvoyConfig::direct().filter_before(other).haven(&limited)).await;
            let client = envoy.h1();
            // Where it is shared, a request takes two of two.
            let passed = if name.is_some() { 1 } else { 2 };
            for _ in 0..passed {
                assert_eq!(client.get("/").await.unwrap().status, 200, "{name:?}");
            }
            assert_eq!(client.get("/").await.unwrap().status, 429, "{name:?}");
            let state = name.unwrap_or("other");
            let labels = [("state", state), ("policy", "l")];
            assert_eq!(
                envoy.metric("haven_decisions_total", &labels).await,
                Some(1.0),
                "{name:?}"
            );
        }
    });
}
