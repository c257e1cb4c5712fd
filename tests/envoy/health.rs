//! The health endpoints in a real Envoy.

use crate::filter::{assert_sound, counted};
use crate::support::{Client, Envoy, EnvoyConfig, Route, Upstream, load, raw, run, wait_for};
use serde_json::json;

#[test]
fn each_endpoint_answers_in_text_or_as_a_document() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "service": "user-service",
            "upstreams": {"users": {"endpoints": crate::filter::endpoints(&[upstream.addr()])}},
        });
        let mut envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        for client in [envoy.h1(), envoy.h2()] {
            for path in ["/livez", "/startupz", "/health", "/livez?x=1"] {
                let reply = client.get(path).await.unwrap();
                assert_eq!((reply.status, reply.text().as_str()), (200, "OK"), "{path}");
                assert_eq!(reply.header("content-type").as_deref(), Some("text/plain"));
            }
            let accept = [("accept", "text/html, application/json;q=0.9")];
            for (path, headers) in [
                ("/readyz", &[][..]),
                ("/readyz", &accept),
                ("/health", &accept),
            ] {
                let reply = client.get_with(path, headers).await.unwrap();
                assert_eq!(
                    (reply.status, reply.header("content-type").as_deref()),
                    (200, Some("application/json"))
                );
                let document = reply.json();
                assert_eq!(
                    (&document["service"], &document["status"]),
                    (&"user-service".into(), &"UP".into())
                );
                assert_eq!(
                    document["details"],
                    json!({"users": {"status": "UP", "critical": true}})
                );
                let at = document["timestamp"].as_str().unwrap();
                assert!(
                    at.len() == 20 && at.starts_with("20") && at.ends_with('Z'),
                    "{at}"
                );
            }
            for path in ["/livez", "/readyz", "/startupz", "/health"] {
                let (get, head) = (
                    client.get(path).await.unwrap(),
                    client.request("HEAD", path, &[], "").await.unwrap(),
                );
                assert_eq!((head.status, head.body.len()), (200, 0));
                assert_eq!(
                    head.header("content-length").unwrap(),
                    get.body.len().to_string(),
                    "{path}"
                );
                assert_eq!(head.header("content-type"), get.header("content-type"));
                assert_eq!(head.header("cache-control").as_deref(), Some("no-store"));
            }
        }
        let bytes = raw::exchange(
            envoy.addr(),
            b"HEAD /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await;
        assert!(
            bytes.unwrap().bytes.ends_with(b"\r\n\r\n"),
            "no byte after the head"
        );
        assert_eq!(
            upstream.counters().requests + upstream.counters().health_requests,
            0,
            "we answer by ourselves"
        );
        // What is no probe is the upstream's.
        for (method, path) in [
            ("POST", "/livez"),
            ("GET", "/livez/"),
            ("GET", "/Livez"),
            ("DELETE", "/readyz"),
        ] {
            let reply = envoy.h1().request(method, path, &[], "").await.unwrap();
            assert!(reply.text().contains("ada"), "{method} {path}: {reply:?}");
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn paths_can_be_changed_and_switched_off() {
    run(async {
        let filter = json!({"health": {"livez": "/-/alive", "readyz": null, "startupz": null}});
        let envoy = Envoy::start(EnvoyConfig::direct().haven(&filter)).await;
        let client = envoy.h1();
        for (path, want) in [
            ("/-/alive", "OK"),
            ("/health", "OK"),
            ("/livez", "ok"),
            ("/readyz", "ok"),
            ("/startupz", "ok"),
        ] {
            assert_eq!(client.get(path).await.unwrap().text(), want, "{path}");
        }
    });
}

#[test]
fn health_is_answered_when_nothing_else_is() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "upstreams": {
                "users": {"endpoints": crate::filter::endpoints(&[upstream.addr()]), "circuit_breaker": "breaker",
                          "load_balancer": {"panic_threshold": 0}},
            },
            "rate_limits": {"one": {"limit": 1, "period": "1h"}},
            "circuit_breakers": {"breaker": {"consecutive_failures": 1, "open_duration": "10m"}},
            "fallbacks": {"calm": {"steps": [{"respond": {"body": "calm"}}]}},
            "routes": [
                {"name": "broken", "match": {"prefix": "/broken"}, "upstream": "users", "circuit_breaker": "breaker"},
                {"name": "all", "rate_limits": ["one"], "fallback": "calm"},
            ],
        });
        let config = EnvoyConfig::proxy([upstream.addr()])
            .route(Route::direct("/x", 200, "ok"))
            .haven(&filter);
        let mut envoy = Envoy::start(config).await;
        let client = envoy.h2();
        // A probe draws from no bucket.
        assert_eq!(load(&client, 50, 5, "/livez", &[]).await.count(200), 50);
        assert_eq!(load(&client, 10, 1, "/", &[]).await.count(429), 9);
        upstream.set(|faults| faults.close = true).await;
        load(&client, 3, 1, "/broken", &[]).await;
        assert!(counted(&envoy, &[("reason", "circuit_open")]).await > 0);
        for path in ["/livez", "/startupz", "/health"] {
            assert_eq!(
                load(&client, 20, 5, path, &[]).await.count(200),
                20,
                "{path}"
            );
        }
        wait_for("each worker knows that nobody is ready", async || {
            load(&envoy.h1(), 20, 5, "/readyz", &[]).await.count(503) == 20
        })
        .await;
        let document = client.get("/readyz").await.unwrap().json();
        assert_eq!(
            (&document["status"], &document["details"]["users"]["status"]),
            (&"OUT_OF_SERVICE".into(), &"DOWN".into())
        );
        let said = envoy.access_log_of(1).await;
        assert!(
            said.iter()
                .filter(|line| line["path"] == "/readyz")
                .all(|line| line["decision"] == "-" || line["decision"].is_null())
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_proxy_that_is_told_to_fail_is_not_ready() {
    run(async {
        let upstream = Upstream::start("a").await;
        // As docs/operations.md has it.
        let own = json!({
            "name": "envoy.filters.http.health_check",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck",
                "pass_through_mode": true,
                "headers": [{"name": ":path", "string_match": {"exact": "/readyz"}}],
            },
        });
        let filter = json!({"upstreams": {"users": {"endpoints": crate::filter::endpoints(&[upstream.addr()])}}});
        let config = EnvoyConfig::proxy([upstream.addr()])
            .filter_before(own)
            .haven(&filter);
        let mut envoy = Envoy::start(config).await;
        let admin = Client::h1(envoy.admin_addr());
        let ready = async || envoy.h1().get("/readyz").await.unwrap();
        assert_eq!(ready().await.json()["status"], "UP", "haven's own answer");
        admin
            .request("POST", "/healthcheck/fail", &[], "")
            .await
            .unwrap();
        wait_for("it is not ready", async || ready().await.status == 503).await;
        assert_eq!(envoy.h1().get("/livez").await.unwrap().status, 200);
        assert_eq!(
            envoy.h1().get("/echo").await.unwrap().status,
            200,
            "and serves on"
        );
        admin
            .request("POST", "/healthcheck/ok", &[], "")
            .await
            .unwrap();
        wait_for("it is ready", async || ready().await.status == 200).await;
        assert_sound(&mut envoy).await;
    });
}
