//! Several configurations in one Envoy: two listeners, twice in one chain, by route, by ECDS. State
//! belongs to a configuration's root id, or to the name that several share on purpose.

use std::net::SocketAddr;

use crate::filter::{assert_sound, endpoints, transitions};
use crate::support::config::haven_filter;
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Reply, Route, Upstream, haven_wasm, load, run, wait_for,
};
use serde_json::{Value, json};

/// The filter with this root id and this JSON.
fn filter(root_id: &str, json: &Value) -> Value {
    let wasm = haven_wasm().unwrap();
    let mut filter = haven_filter(wasm.to_str().unwrap(), &json.to_string(), false);
    filter["name"] = json!(root_id);
    let config = &mut filter["typed_config"]["config"];
    config["name"] = json!(root_id);
    config["root_id"] = json!(root_id);
    filter
}

/// What each configuration has, with the same names.
fn policies(endpoint: SocketAddr, name: Option<&str>) -> Value {
    let check = json!({"interval": "100ms", "timeout": "700ms"});
    let mut config = json!({
    "rate_limits": {"l": {"limit": 2, "period": "1h"}},
    "circuit_breakers": {"b": {"consecutive_failures": 2, "open_duration": "10m"}},
    "fallbacks": {"f": {"on": ["upstream_error"], "steps": [{"stale": {"public": true}}]}},
    "upstreams": {"users": {"cluster": "users", "endpoints": endpoints(&[endpoint]), "health_check": check}},
    "routes": [
        {"name": "limited", "match": {"prefix": "/limited"}, "rate_limits": ["l"]},
        {"name": "broken", "match": {"prefix": "/broken"}, "circuit_breaker": "b"},
        {"name": "kept", "match": {"prefix": "/kept"}, "fallback": "f"},
        {"name": "rest", "upstream": "users"},
    ]});
    if let Some(name) = name {
        config["state"] = json!(name);
    }
    config
}

/// An Envoy with two listeners, each with a filter of its own in the same VM; and the second one's
/// address.
async fn two_listeners(one: &Value, other: &Value, endpoint: SocketAddr) -> (Envoy, SocketAddr) {
    let config = EnvoyConfig::empty()
        .cluster(Cluster::new("users", [endpoint]))
        .route(Route::to("/", "users"))
        .filter_before(filter("one", one));
    let more = EnvoyConfig::empty()
        .route(Route::to("/", "users"))
        .filter_before(filter("other", other));
    let envoy = Envoy::start(config.listener(&more)).await;
    let page = envoy.admin_get("/listeners?format=json").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    let port = &page["listener_statuses"][1]["local_address"]["socket_address"]["port_value"];
    let port = u16::try_from(port.as_u64().unwrap()).unwrap();
    (envoy, SocketAddr::from(([127, 0, 0, 1], port)))
}

async fn statuses(client: &Client, path: &str, count: usize) -> Vec<u16> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(client.get(path).await.unwrap().status);
    }
    all
}

#[test]
fn two_listeners_of_one_vm_share_nothing_by_accident() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = policies(upstream.addr(), None);
        let (mut envoy, second) = two_listeners(&config, &config, upstream.addr()).await;
        let (one, other) = (envoy.h1(), Client::h1(second));
        assert_eq!(statuses(&one, "/limited", 3).await, [200, 200, 429]);
        assert_eq!(statuses(&other, "/limited", 3).await, [200, 200, 429]);

        let kept = async |client: &Client| -> Reply { client.get("/kept").await.unwrap() };
        assert_eq!(kept(&one).await.status, 200);
        upstream.set(|faults| faults.status = Some(500)).await;
        assert!(kept(&one).await.header("age").is_some());
        assert_eq!(kept(&other).await.status, 500, "another's answer");

        assert_eq!(statuses(&one, "/broken", 3).await, [500, 500, 503]);
        upstream.heal().await;
        assert_eq!(statuses(&other, "/broken", 3).await, [200; 3]);
        assert_eq!(transitions(&envoy, "b", "open").await, 1);

        // Both check the endpoint they both have.
        for state in ["one", "other"] {
            let labels = [("state", state), ("upstream", "users")];
            wait_for("both have checked it", async || {
                envoy.metric("haven_endpoint_healthy", &labels).await == Some(1.0)
            })
            .await;
        }
        upstream
            .set(|faults| faults.health.http_status = Some(503))
            .await;
        for state in ["one", "other"] {
            let labels = [("state", state), ("upstream", "users")];
            wait_for("both see that it is down", async || {
                envoy.metric("haven_endpoint_healthy", &labels).await == Some(0.0)
            })
            .await;
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn two_listeners_share_what_both_name() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = policies(upstream.addr(), Some("both"));
        let (mut envoy, second) = two_listeners(&config, &config, upstream.addr()).await;
        let (one, other) = (envoy.h1(), Client::h1(second));
        assert_eq!(statuses(&one, "/limited", 1).await, [200]);
        assert_eq!(statuses(&other, "/limited", 2).await, [200, 429]);
        assert_eq!(statuses(&one, "/limited", 1).await, [429]);
        upstream.set(|faults| faults.status = Some(500)).await;
        assert_eq!(statuses(&one, "/broken", 2).await, [500, 500]);
        wait_for("the other sees it open", async || {
            other.get("/broken").await.unwrap().status == 503
        })
        .await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_route_has_a_filter_of_its_own_by_switching_the_others_off() {
    let limited = |limit: u32| {
        json!({
            "rate_limits": {"l": {"limit": limit, "period": "1h"}},
            "routes": [{"name": "all", "rate_limits": ["l"]}]})
    };
    let route = |prefix: &str, others: &[(&str, Value)]| {
        let own: serde_json::Map<_, _> = others
            .iter()
            .map(|(name, config)| ((*name).to_owned(), config.clone()))
            .collect();
        json!({
            "match": {"prefix": prefix},
            "direct_response": {"status": 200},
            "typed_per_filter_config": own,
        })
    };
    let chain = |routes: Value| {
        let hosts = json!([{"name": "all", "domains": ["*"], "routes": routes}]);
        EnvoyConfig::empty()
            .filter_before(filter("few", &limited(1)))
            .filter_before(filter("many", &limited(3)))
            .manager(&json!({"route_config": {"name": "routes", "virtual_hosts": hosts}}))
    };
    // Envoy's wasm filter has no configuration of a route.
    let own = filter("few", &limited(9))["typed_config"].clone();
    let refused = Envoy::validate(&chain(json!([route("/", &[("few", own)])])));
    let told = refused.unwrap_err();
    assert!(
        told.contains("doesn't support virtual host or route specific configurations"),
        "{told}"
    );
    run(async {
        let off = json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true});
        let routes = json!([
            route("/few", &[("many", off.clone())]),
            route("/many", &[("few", off.clone())]),
            route("/none", &[("few", off.clone()), ("many", off)]),
            route("/", &[]),
        ]);
        let mut envoy = Envoy::start(chain(routes)).await;
        let client = envoy.h1();
        assert_eq!(statuses(&client, "/few", 2).await, [200, 429]);
        assert_eq!(statuses(&client, "/many", 2).await, [200; 2]);
        assert_eq!(statuses(&client, "/none", 9).await, [200; 9]);
        // Both: the first refuses, and the other has not been asked.
        assert_eq!(statuses(&client, "/", 2).await, [429; 2]);
        assert_eq!(statuses(&client, "/many", 2).await, [200, 429]);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn what_ecds_delivers_has_the_state_of_its_name() {
    run(async {
        let dir = std::env::temp_dir().join(format!("haven-ecds-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let put = |name: &str, version: u32, state: Option<&str>| {
            let mut limited = json!({
                "service": format!("v{version}"),
                "rate_limits": {"l": {"limit": 2, "period": "1h"}},
                "routes": [{"name": "all", "rate_limits": ["l"]}]});
            if let Some(state) = state {
                limited["state"] = json!(state);
            }
            let mut resource = filter(name, &limited);
            resource["@type"] =
                json!("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
            let text = json!({"version_info": version.to_string(), "resources": [resource]});
            // Envoy looks when a file is moved into its place.
            std::fs::write(dir.join("next"), text.to_string()).unwrap();
            std::fs::rename(dir.join("next"), dir.join(format!("{name}.json"))).unwrap();
        };
        let discovered = |name: &str| {
            let path = dir.join(format!("{name}.json"));
            json!({"name": name, "config_discovery": {
                "config_source": {"path_config_source": {"path": path}},
                "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
            }})
        };
        for name in ["one", "other"] {
            put(name, 1, None);
        }
        let config = EnvoyConfig::direct()
            .filter_before(discovered("one"))
            .filter_before(discovered("other"));
        let mut envoy = Envoy::start(config).await;
        let client = envoy.h1();
        let refused = async |state: &str| {
            let labels = [("state", state), ("policy", "l")];
            let refused = envoy.metric("haven_decisions_total", &labels).await;
            refused.unwrap_or(0.0)
        };
        // In the one chain each takes from its own bucket.
        assert_eq!(statuses(&client, "/", 3).await, [200, 200, 429]);
        assert_eq!([refused("one").await, refused("other").await], [1.0, 0.0]);
        let updates = async || {
            let of = |name| format!("extension_config_discovery.http_filter.{name}.update_success");
            envoy.stat(&of("one")).await + envoy.stat(&of("other")).await
        };
        // A new version of the same name keeps the bucket.
        let before = updates().await;
        put("one", 2, None);
        wait_for("it is taken", async || updates().await > before).await;
        assert_eq!(statuses(&client, "/", 2).await, [429, 429]);
        // By a name of both a request takes two of two.
        for name in ["one", "other"] {
            let before = updates().await;
            put(name, 3, Some("both"));
            wait_for("it is taken", async || updates().await > before).await;
        }
        assert_eq!(load(&client, 3, 1, "/", &[]).await.count(200), 1);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_sound(&mut envoy).await;
    });
}
