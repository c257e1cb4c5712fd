//! The endpoints of a cluster as Envoy itself has them: what its admin interface answers to
//! `GET /clusters?format=json&filter=REGEX` (`envoy.admin.v3.Clusters`).
//!
//! The JSON and not the text: that is five times cheaper for Envoy, but its values are not quoted,
//! and it is nobody's promise. Fields that are zero or false are left out. An address may come
//! twice, for two hosts' names or in two priorities: the first one counts, and priorities come in
//! order. Endpoints without an IP address (pipes, internal listeners) are counted and left out: no
//! request can be steered to them.

use super::answer::{add, flaw, items, read, text, whole};
use super::{Builder, Cause, Failure, Membership, Named, Verdict, joined};
use crate::base::text::push_encoded;
use crate::schema::json::Json;
use crate::schema::names::Distinct;

/// The path that asks for one cluster, and no other: the filter is a regular expression (RE2) that
/// need not match the whole name.
#[must_use]
pub fn path(cluster: &str) -> String {
    let mut exact = String::from("^");
    for char in cluster.chars() {
        if char.is_ascii_punctuation() && char != '_' {
            exact.push('\\');
        }
        exact.push(char);
    }
    exact.push('$');
    let mut path = String::from("/clusters?format=json&filter=");
    push_encoded(&mut path, exact.as_bytes());
    path
}

const KEYS: [&str; 19] = [
    "active_hc_timeout",
    "address",
    "cluster_statuses",
    "eds_health_status",
    "envoy_internal_address",
    "failed_active_degraded_check",
    "failed_active_health_check",
    "failed_outlier_check",
    "health_status",
    "host_statuses",
    "locality",
    "name",
    "pending_dynamic_removal",
    "pipe",
    "port_value",
    "priority",
    "socket_address",
    "weight",
    "zone",
];

/// What Envoy has of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// Its endpoints.
    pub members: Membership,
    /// How many it has beside them that have no IP address.
    pub left_out: usize,
}

/// Reads an answer.
///
/// # Errors
/// Envoy has no such cluster; or the answer cannot be used: why, and of which endpoint.
pub fn parse(body: &[u8], cluster: &str) -> Result<Hosts, Failure> {
    let answer = read(body, &KEYS)?;
    let clusters = items(answer.get("cluster_statuses"), "cluster_statuses")?;
    let named = |it: &&Json| matches!(it.get("name"), Some(Json::String(name)) if name == cluster);
    let Some(found) = clusters.iter().find(named) else {
        return Err(Failure::Error(["Envoy has no cluster ", cluster].concat()));
    };
    let (mut builder, mut seen, mut left_out) = (Builder::default(), Distinct::default(), 0usize);
    let hosts = items(found.get("host_statuses"), "host_statuses")?;
    for (at, host) in hosts.iter().enumerate() {
        let Some(socket) = host.get("address").and_then(|it| it.get("socket_address")) else {
            if !is_addressed_otherwise(host) {
                return Err(flaw(at, &host.show(), " has no address"));
            }
            left_out = left_out.saturating_add(1);
            continue;
        };
        let address = joined(
            text(socket, "address", at)?,
            whole(socket, "port_value", 0, at)?,
        );
        if !seen.add(&address) {
            continue;
        }
        let zone = match host.get("locality") {
            Some(locality) => text(locality, "zone", at)?,
            None => "",
        };
        let named = Named {
            address: &address,
            weight: whole(host, "weight", 1, at)?,
            priority: whole(host, "priority", 0, at)?,
            zone,
            verdict: host.get("health_status").map_or(Verdict::Healthy, verdict),
        };
        add(&mut builder, at, named)?;
    }
    let members = builder.finish()?;
    Ok(Hosts { members, left_out })
}

fn is_addressed_otherwise(host: &Json) -> bool {
    host.get("address")
        .is_some_and(|it| it.get("pipe").is_some() || it.get("envoy_internal_address").is_some())
}

/// What Envoy's `HostHealthStatus` means. A host waits for its first check as one that has failed.
fn verdict(status: &Json) -> Verdict {
    let is = |key| status.get(key) == Some(&Json::Bool(true));
    let told = match status.get("eds_health_status") {
        Some(Json::String(word)) => word,
        _ => "",
    };
    if is("pending_dynamic_removal") {
        Verdict::Unhealthy(Cause::Removal)
    } else if told == "DRAINING" {
        Verdict::Draining
    } else if matches!(told, "UNHEALTHY" | "TIMEOUT") {
        Verdict::Unhealthy(Cause::Told)
    } else if is("failed_active_health_check") {
        let late = is("active_hc_timeout");
        Verdict::Unhealthy(if late {
            Cause::CheckTimeout
        } else {
            Cause::Check
        })
    } else if is("failed_outlier_check") {
        Verdict::Unhealthy(Cause::Outlier)
    } else if told == "DEGRADED" || is("failed_active_degraded_check") {
        Verdict::Degraded
    } else {
        Verdict::Healthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::discovery::Member;
    use serde_json::{Value, json};

    fn answer(hosts: Value) -> Vec<u8> {
        let other = json!({"name": "users2", "host_statuses": [{"address": {"pipe": {}}}]});
        let users = json!({"name": "users", "added_via_api": true, "host_statuses": hosts});
        json!({"cluster_statuses": [other, users]})
            .to_string()
            .into()
    }

    fn host(ip: &str, port: u16, extra: Value) -> Value {
        let mut host = json!({"address": {"socket_address": {"address": ip, "port_value": port}},
            "stats": [{"name": "cx_total", "value": "18446744073709551615"}, {"type": "GAUGE"}],
            "weight": 1});
        let (to, from) = (host.as_object_mut().unwrap(), extra.as_object().unwrap());
        to.extend(from.clone());
        host
    }

    fn members(hosts: Value) -> Vec<Member> {
        parse(&answer(hosts), "users")
            .unwrap()
            .members
            .members()
            .to_vec()
    }

    fn refusal(hosts: Value) -> String {
        match parse(&answer(hosts), "users") {
            Err(Failure::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_filter_names_one_cluster_whatever_it_is_called() {
        let path = path("outbound|80|v1.2|users_x.svc-a");
        let want = "/clusters?format=json&filter=%5Eoutbound%5C%7C80%5C%7Cv1%5C.2%5C%7C\
                    users_x%5C.svc%5C-a%24";
        assert_eq!(path, want);
        assert_eq!(
            super::path("é"),
            "/clusters?format=json&filter=%5E%C3%A9%24"
        );
    }

    #[test]
    fn hosts_are_read_with_all_that_is_said_of_them() {
        let found = members(json!([
            host(
                "10.0.0.2",
                80,
                json!({"weight": 3, "priority": 1, "hostname": "b.example",
                "locality": {"region": "r", "zone": "a", "sub_zone": "s"}})
            ),
            host(
                "10.0.0.1",
                8080,
                json!({"locality": {}, "health_status": {}})
            ),
            host("2001:db8::1", 80, json!({})),
        ]));
        let texts: Vec<_> = found
            .iter()
            .map(|it| {
                (
                    it.address.as_str(),
                    it.weight,
                    it.priority,
                    it.zone.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            texts,
            [
                ("10.0.0.1:8080", 1, 0, None),
                ("10.0.0.2:80", 3, 1, Some("a")),
                ("[2001:db8::1]:80", 1, 0, None),
            ]
        );
    }

    #[test]
    fn verdicts_are_envoys() {
        for (status, want) in [
            (json!({}), Verdict::Healthy),
            (json!({"eds_health_status": "HEALTHY"}), Verdict::Healthy),
            (json!({"eds_health_status": "UNKNOWN"}), Verdict::Healthy),
            (json!({"eds_health_status": "DEGRADED"}), Verdict::Degraded),
            (json!({"eds_health_status": "DRAINING"}), Verdict::Draining),
            (
                json!({"eds_health_status": "UNHEALTHY"}),
                Verdict::Unhealthy(Cause::Told),
            ),
            (
                json!({"eds_health_status": "TIMEOUT"}),
                Verdict::Unhealthy(Cause::Told),
            ),
            (
                json!({"failed_active_health_check": true}),
                Verdict::Unhealthy(Cause::Check),
            ),
            (
                json!({"failed_active_health_check": true, "pending_active_hc": true}),
                Verdict::Unhealthy(Cause::Check),
            ),
            (
                json!({"failed_active_health_check": true, "active_hc_timeout": true}),
                Verdict::Unhealthy(Cause::CheckTimeout),
            ),
            (
                json!({"failed_outlier_check": true}),
                Verdict::Unhealthy(Cause::Outlier),
            ),
            (
                json!({"failed_active_degraded_check": true}),
                Verdict::Degraded,
            ),
            (
                json!({"pending_dynamic_removal": true, "eds_health_status": "HEALTHY"}),
                Verdict::Unhealthy(Cause::Removal),
            ),
        ] {
            let found = members(json!([host(
                "10.0.0.1",
                80,
                json!({"health_status": status})
            )]));
            assert_eq!(found[0].verdict, want, "{status}");
        }
    }

    #[test]
    fn an_address_that_comes_twice_is_one_and_what_has_none_is_left_out() {
        let hosts = json!([
            {"address": {"pipe": {"path": "/run/x.sock"}}},
            host("10.0.0.1", 80, json!({"weight": 2})),
            {"address": {"envoy_internal_address": {"server_listener_name": "l"}}},
            host("10.0.0.1", 80, json!({"weight": 9, "priority": 1})),
        ]);
        let found = parse(&answer(hosts), "users").unwrap();
        assert_eq!((found.left_out, found.members.len()), (2, 1));
        assert_eq!(found.members.members()[0].weight, 2);
    }

    #[test]
    fn a_cluster_without_hosts_is_not_one_that_is_missing() {
        let none = json!({"cluster_statuses": [{"name": "users"}]}).to_string();
        assert!(parse(none.as_bytes(), "users").unwrap().members.is_empty());
        for gone in [
            "{}",
            r#"{"cluster_statuses": []}"#,
            &none.replace("users", "users1"),
        ] {
            let want = Failure::Error("Envoy has no cluster users".into());
            assert_eq!(parse(gone.as_bytes(), "users"), Err(want));
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_place() {
        let good = || host("10.0.0.1", 80, json!({}));
        for (bad, want) in [
            (
                host("users.local", 80, json!({})),
                "\"users.local:80\" is no IP address with a port from 1 to 65535",
            ),
            (
                host("10.0.0.2", 0, json!({})),
                "\"10.0.0.2:0\" is no IP address with a port from 1 to 65535",
            ),
            (
                host("10.0.0.2", 80, json!({"weight": 1_000_000_000})),
                "\"1000000000\" is no weight from 0 to 1000",
            ),
            (
                host("10.0.0.2", 80, json!({"priority": 128})),
                "\"128\" is no priority from 0 to 127",
            ),
            (
                host("10.0.0.2", 80, json!({"weight": -1})),
                "\"weight\": no whole number: -1",
            ),
            (
                host("10.0.0.2", 80, json!({"weight": "3"})),
                "\"weight\": no whole number: \"3\"",
            ),
            (
                host("10.0.0.2", 80, json!({"locality": {"zone": 7}})),
                "\"zone\": no text: 7",
            ),
            (
                json!({"address": {}}),
                "\"{\\\"address\\\":{}}\" has no address",
            ),
            (json!(7), "\"7\" has no address"),
        ] {
            assert_eq!(refusal(json!([good(), bad])), format!("endpoint 1: {want}"));
        }
        assert_eq!(refusal(json!({})), "host_statuses is no list: {}");
        let many: Vec<_> = (0..=1000u32)
            .map(|n| host(&format!("10.0.{}.{}", n / 256, n % 256), 80, json!({})))
            .collect();
        assert!(refusal(json!(many)).starts_with("endpoint 1000: \"10.0.3.232:80\" is one more"));
        let cut = answer(json!([good()]));
        for end in 0..cut.len() {
            assert!(parse(&cut[..end], "users").is_err());
        }
    }
}
