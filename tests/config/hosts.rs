//! What each proxy lacks: refused in a configuration, and told in docs/hosts.md.

use haven::document::parse;
use haven::host::{Feature, HostKind};
use serde_json::{Value, json};

/// For each feature a configuration that asks for it, and where.
fn asks() -> [(Feature, Value, &'static str); 16] {
    let upstream = |it: Value| json!({"upstreams": {"u": it}});
    let route = |it: Value| {
        let mut route = json!({"name": "r"});
        route
            .as_object_mut()
            .unwrap()
            .extend(it.as_object().unwrap().clone());
        json!({"routes": [route]})
    };
    let fallback = |on: &str| json!({"fallbacks": {"f": {"on": [on], "steps": [{"respond": {}}]}}});
    [
        (
            Feature::LeakyBucket,
            json!({"rate_limits": {"l": {"limit": 1, "algorithm": "leaky_bucket"}}}),
            "rate_limits.l.algorithm",
        ),
        (
            Feature::GrpcHealth,
            json!({"health": {"grpc": true}}),
            "health.grpc",
        ),
        (
            Feature::GrpcChecks,
            upstream(json!({"health_check": {"protocol": "grpc"}})),
            "upstreams.u.health_check.protocol",
        ),
        (
            Feature::FallbackOnFailure,
            fallback("upstream_error"),
            "fallbacks.f.on[0]",
        ),
        (
            Feature::FallbackOnFailure,
            fallback("timeout"),
            "fallbacks.f.on[0]",
        ),
        (
            Feature::Retry,
            route(json!({"retry": {}})),
            "routes[0].retry",
        ),
        (
            Feature::Timeout,
            route(json!({"timeout": {"request": "1s"}})),
            "routes[0].timeout.request",
        ),
        (
            Feature::Timeout,
            route(json!({"timeout": {"per_try": "1s"}})),
            "routes[0].timeout.per_try",
        ),
        (
            Feature::ByException,
            json!({"outcomes": "by_exception"}),
            "outcomes",
        ),
        (
            Feature::ClientRetryHeaders,
            json!({"trust_client_retry_headers": true}),
            "trust_client_retry_headers",
        ),
        (
            Feature::AttemptCount,
            upstream(json!({"override": {"attempt_count": true}})),
            "upstreams.u.override.attempt_count",
        ),
        (
            Feature::SteerByException,
            upstream(json!({"steer": "by_exception", "endpoints": [{"address": "192.0.2.7:80"}]})),
            "upstreams.u.steer",
        ),
        (
            Feature::HostHeader,
            route(json!({"match": {"headers": {"host": "a"}}})),
            "routes[0].match.headers",
        ),
        (
            Feature::UnreadRequests,
            json!({"request_headers": "ignore", "health": {"livez": null, "readyz": null,
                   "startupz": null, "health": null}}),
            "request_headers",
        ),
        (
            Feature::ServeEndpoints,
            json!({"serve_endpoints": true, "state": "haven"}),
            "serve_endpoints",
        ),
        (
            Feature::Discovery,
            upstream(json!({"endpoints": {"etcd": {"cluster": "etcd", "prefix": "/u/"}}})),
            "upstreams.u.endpoints.etcd",
        ),
    ]
}

#[test]
fn what_a_proxy_lacks_is_refused_with_its_path_and_the_reason() {
    let asks = asks();
    for feature in Feature::ALL {
        assert!(
            asks.iter().any(|(asked, ..)| *asked == feature),
            "{feature:?}"
        );
        assert_eq!(HostKind::Envoy.lacks(feature), None);
    }
    for (feature, mut config, path) in asks {
        if feature != Feature::GrpcHealth {
            config["health"]["grpc"] = json!(false);
        }
        let config = parse(config.to_string().as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        config.check_host(HostKind::Envoy).unwrap();
        let errors = config.check_host(HostKind::Nginx).unwrap_err();
        assert_eq!(errors.count(), 1, "{errors}");
        let reason = HostKind::Nginx.lacks(feature).unwrap();
        let error = errors.to_string();
        assert!(
            error.starts_with(&format!("{path}: ")) && error.ends_with(reason),
            "{error}"
        );
    }
    let empty = parse(br#"{"health": {"grpc": false}}"#).unwrap();
    empty.check_host(HostKind::Nginx).unwrap();
}

/// The table of docs/hosts.md: its head, and its rows.
fn table() -> (Vec<String>, Vec<Vec<String>>) {
    let page = include_str!("../../docs/hosts.md");
    let mut rows = page
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        });
    let head = rows.next().unwrap();
    (head, rows.skip(1).collect())
}

#[test]
fn the_table_of_hosts_is_that_of_the_code() {
    let (head, rows) = table();
    let nginx = head
        .iter()
        .position(|cell| cell.starts_with("nginx"))
        .unwrap();
    for row in &rows {
        assert_eq!(row.len(), head.len(), "{row:?}");
        for cell in &row[1..] {
            let word = cell.split(['¹', '²', '³', '⁴', '⁵']).next().unwrap();
            assert!(["seen", "refused", "not tried"].contains(&word), "{row:?}");
        }
        // What Envoy has nothing is refused for.
        let refused: Vec<_> = (1..row.len()).filter(|at| row[*at] == "refused").collect();
        let lacks = Feature::ALL
            .iter()
            .any(|it| row[0] == format!("`{}`", it.name()));
        let expected = if lacks { vec![nginx] } else { Vec::new() };
        assert_eq!(refused, expected, "{row:?}");
    }
    for feature in Feature::ALL {
        let name = format!("`{}`", feature.name());
        assert_eq!(
            rows.iter().filter(|row| row[0] == name).count(),
            1,
            "{name}"
        );
    }
    let limits = HostKind::Nginx.limits().unwrap();
    assert!(
        Feature::ALL.iter().all(|it| limits.contains(it.name())),
        "{limits}"
    );
    assert_eq!(HostKind::Envoy.limits(), None);
}

/// The configuration within nginx's, as nginx reads a parameter in single quotes.
#[test]
fn the_example_for_nginx_is_one_that_nginx_can_have() {
    let conf = include_str!("../../examples/nginx/nginx.conf");
    let (_, rest) = conf.split_once("proxy_wasm haven '").unwrap();
    let (document, _) = rest.split_once("';").unwrap();
    assert!(
        document.len() < 4096 && !document.contains(['\'', '\\']),
        "escapes"
    );
    let config = parse(document.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    config.check_host(HostKind::Nginx).unwrap();
    assert_eq!(config.warnings(), Vec::<String>::new());
    // Each endpoint that haven can pick is an entry of the map, and each cluster.
    for upstream in &config.upstreams {
        let mut endpoints = upstream.endpoints.iter();
        assert!(endpoints.all(|it| {
            let pattern = it.address.replace('.', "\\.");
            conf.contains(&format!("\"~^{pattern}\" {};", it.address))
        }));
        assert!(conf.contains(&format!("upstream {} {{", upstream.name)));
    }
    for needed in [
        "shm_kv * ",
        "large_client_header_buffers 4 8k;",
        "proxy_read_timeout ",
    ] {
        assert!(conf.contains(needed), "{needed}");
    }
}
