//! Where endpoints come from that stand in no list.

use haven::base::time::Nanos;
use haven::document::{Consul, Credential, Etcd, Registry, Source, parse};
use haven::policy::discovery::rules::Rules;
use haven::schema::SecretText;

use crate::support::{errors, good, refused, refuses};

fn source(document: &str) -> Option<Source> {
    good(document).upstreams[0].source.clone()
}

fn rules(empty_is_real: bool, max_removal: u32) -> Rules {
    Rules {
        empty_is_real,
        max_removal: haven::document::Percent(max_removal * 100),
    }
}

#[test]
fn with_an_admin_interface_endpoints_may_be_left_out() {
    let envoy = |cluster: &str| Registry::Envoy {
        admin: "haven-admin".into(),
        cluster: cluster.into(),
    };
    for (upstream, cluster) in [
        ("{}", "users"),
        (r#"{"cluster": "users-v2"}"#, "users-v2"),
        (r#"{"endpoints": {"envoy": {}}}"#, "users"),
        (
            r#"{"cluster": "a", "endpoints": {"envoy": {"cluster": "b"}}}"#,
            "b",
        ),
    ] {
        let document = format!(
            r#"{{"discovery": {{"envoy_admin": "haven-admin"}}, "upstreams": {{"users": {upstream}}}}}"#
        );
        let expected = Source {
            registry: envoy(cluster),
            interval: Nanos::from_secs(1),
            rules: rules(false, 50),
        };
        assert_eq!(source(&document), Some(expected), "{upstream}");
    }
    let listed = r#"{"discovery": {"envoy_admin": "a"}, "upstreams": {"u": {"endpoints": []}}}"#;
    assert_eq!(source(listed), None);
    assert_eq!(source(r#"{"upstreams": {"u": {}}}"#), None);
}

#[test]
fn registries_are_read_with_their_defaults_and_rules() {
    let consul = r#"{"discovery": {"interval": "2s", "empty_is_real": true, "max_removal_percent": 20},
        "upstreams": {"u": {"endpoints": {"consul": {"cluster": "consul", "service": "user-service"}}}}}"#;
    assert_eq!(
        source(consul),
        Some(Source {
            registry: Registry::Consul(Consul {
                cluster: "consul".into(),
                service: "user-service".into(),
                tag: None,
                datacenter: None,
                near: None,
                passing: true,
                token: None,
                wait: Nanos::from_secs(30),
            }),
            interval: Nanos::from_secs(2),
            rules: rules(true, 20),
        })
    );
    let etcd = r#"{"upstreams": {"u": {"endpoints": {"etcd": {"cluster": "etcd", "prefix": "/u/",
        "username": "haven", "password_env": "ETCD_PASSWORD", "interval": "500ms",
        "empty_is_real": true, "max_removal_percent": 100}}}}}"#;
    assert_eq!(
        source(etcd),
        Some(Source {
            registry: Registry::Etcd(Etcd {
                cluster: "etcd".into(),
                prefix: "/u/".into(),
                user: Some(("haven".into(), "ETCD_PASSWORD".into())),
            }),
            interval: Nanos::from_millis(500),
            rules: rules(true, 100),
        })
    );
}

#[test]
fn sources_are_checked() {
    let ranges = r#"{"discovery": {@}}"#;
    refuses(
        ranges,
        &[
            (
                r#""interval": "199ms""#,
                "discovery.interval: \"199ms\" is not allowed, want a duration from 200ms to 1m like \"250ms\" or \"10s\"",
            ),
            (
                r#""max_removal_percent": 101"#,
                "discovery.max_removal_percent: 101 is not allowed, want a number from 0 to 100 with at most two decimals",
            ),
            (
                r#""envoy_admin": """#,
                "discovery.envoy_admin: \"\" is not allowed, want a text of 1 to 255 bytes without control characters",
            ),
        ],
    );
    let one = r#"{"upstreams": {"u": {"endpoints": @}}}"#;
    refuses(
        one,
        &[
            (
                r#"{"envoy": {}}"#,
                "upstreams.u.endpoints.envoy: {…} is not allowed, want the cluster of Envoy's admin interface at the top level: \"discovery\": {\"envoy_admin\": …}",
            ),
            (
                r#"{"consul": {"cluster": "c", "service": "s"}, "etcd": {"cluster": "c", "prefix": "p"}}"#,
                "upstreams.u.endpoints: {\"consul\":{\"cluster\":\"c\",\"service\":\"s\"},\"etcd\":{\"cluster\":\"c\"... is not allowed, want an object with one of envoy, consul, etcd",
            ),
            (
                "{}",
                "upstreams.u.endpoints: {} is not allowed, want an object with one of envoy, consul, etcd",
            ),
            (
                r#"{"etcd": {"cluster": "c"}}"#,
                "upstreams.u.endpoints.etcd.prefix: nothing is not allowed, want a text of 1 to 1024 bytes (required)",
            ),
            (
                r#"{"etcd": {"cluster": "c", "prefix": "p", "username": "u"}}"#,
                "upstreams.u.endpoints.etcd.password_env: nothing is not allowed, want the variable with the password of \"username\" (required)",
            ),
            (
                r#"{"etcd": {"cluster": "c", "prefix": "p", "password_env": "P"}}"#,
                "upstreams.u.endpoints.etcd.username: nothing is not allowed, want the user of \"password_env\" (required)",
            ),
            (
                r#"{"consul": {"cluster": "c", "service": "s", "wait": "999ms"}}"#,
                "upstreams.u.endpoints.consul.wait: \"999ms\" is not allowed, want a duration from 1s to 10m like \"250ms\" or \"10s\"",
            ),
            (
                r#"[{"address": "localhost:80"}]"#,
                "upstreams.u.endpoints[0].address: \"localhost:80\" is not allowed, want an address like \"192.168.1.10:8080\" or \"[::1]:8080\"",
            ),
        ],
    );
    let unknown = errors(&one.replace('@', r#"{"zookeeper": {}}"#)).join("\n");
    let text = "upstreams.u.endpoints.zookeeper: unknown field, value {} is not allowed, \
                want one of envoy, consul, etcd";
    assert_eq!(unknown, text);
    let word = &errors(&one.replace('@', "\"consul\""))[0];
    assert!(
        word.contains("or an object with one of envoy, consul, etcd"),
        "{word}"
    );
}

#[test]
fn what_needs_a_list_refuses_a_source() {
    refused(
        r#"{"discovery": {"envoy_admin": "a"}, "upstreams": {"u": {"steer": "by_exception"}}}"#,
        &[
            "upstreams.u.steer: \"by_exception\" is not allowed, want \"always\", for Envoy's own choice among endpoints needs a list of endpoints: a source may change their weights",
        ],
    );
}

/// Whatever is wrong with a document, and wherever the secret stands by mistake.
#[test]
fn secrets_are_in_no_message_and_no_debug_output() {
    let secret = "b1gs3cret";
    for consul in [
        r#""token": "b1gs3cret ""#,
        r#""token": ["b1gs3cret"]"#,
        r#""token": "b1gs3cret", "token_env": "X""#,
        r#""token": "X", "token_env": "b1gs3cret-x""#,
        r#""token_env": "b1gs3cret-x""#,
        r#""password": "b1gs3cret""#,
        r#""token": "b1gs3cret", "wait": "1d""#,
    ] {
        let document = format!(
            r#"{{"upstreams": {{"u": {{"endpoints": {{"consul": {{"cluster": "c", "service": "s", {consul}}}}}}}}}}}"#
        );
        let found = errors(&document).join("\n");
        assert!(!found.contains(secret), "{found}");
        assert!(found.contains("upstreams.u.endpoints.consul."), "{found}");
        let text = document.replace("{\"consul\": {", "{\"etcd\": {}, \"consul\": {");
        assert!(!errors(&text).join("\n").contains(secret));
    }
    let config = parse(
        br#"{"upstreams": {"u": {"endpoints": {"consul": {"cluster": "c", "service": "s",
            "token": "b1gs3cret"}}}}}"#,
    )
    .unwrap();
    assert!(!format!("{config:?}").contains(secret));
    let source = config.upstreams[0].source.clone().unwrap();
    let Registry::Consul(consul) = source.registry else {
        panic!()
    };
    let token = Credential::Given(SecretText(secret.into()));
    assert_eq!(consul.token, Some(token));
}
