//! The instances of a service as Consul has them: what its HTTP API answers to
//! `GET /v1/health/service/NAME`, and the rules of its blocking queries.
//!
//! An instance's address is that of its service, or else of its node. Its checks, and its node's,
//! say how it is: the worst one counts. `critical` takes it out of rotation; with `warning` it has
//! the weight that Consul has for that. `zone` and `priority` may stand in the service's metadata,
//! or else in a tag, `zone=a`.

use super::answer::{add, flaw, items, read, text, whole};
use super::config::Consul;
use super::{Builder, Cause, Failure, Membership, Named, Verdict, joined};
use crate::base::headers::parse_number;
use crate::base::text::{number, push_all, push_encoded};
use crate::base::time::Nanos;
use crate::schema::json::Json;

/// The header with the index of an answer.
pub const INDEX: &str = "x-consul-index";

/// The path of a query. `index`: of the last answer, after which a change is waited for; 0: it is to
/// be answered at once.
#[must_use]
pub fn path(config: &Consul, index: u64, wait: Nanos) -> String {
    let mut path = String::from("/v1/health/service/");
    push_encoded(&mut path, config.service.as_bytes());
    let mut mark = "?";
    let parameters = [
        ("dc=", &config.datacenter),
        ("tag=", &config.tag),
        ("near=", &config.near),
    ];
    for (name, value) in parameters {
        if let Some(value) = value {
            push_all(&mut path, &[mark, name]);
            push_encoded(&mut path, value.as_bytes());
            mark = "&";
        }
    }
    if config.passing {
        push_all(&mut path, &[mark, "passing=1"]);
        mark = "&";
    }
    if index > 0 {
        let (index, wait) = (number(index), number(wait.as_millis()));
        push_all(&mut path, &[mark, "index=", &index, "&wait=", &wait, "ms"]);
    }
    path
}

/// The index for the next query, after an answer with this one to a query with `asked`: 0, which
/// does not wait, where Consul's documentation wants a new start, if the index has gone back or is
/// none.
#[must_use]
pub fn next_index(asked: u64, answered: Option<&[u8]>) -> u64 {
    let answered = answered.and_then(parse_number).unwrap_or(0);
    if answered < asked { 0 } else { answered }
}

const KEYS: [&str; 14] = [
    "Address", "CheckID", "Checks", "Meta", "Node", "Passing", "Port", "Service", "Status", "Tags",
    "Warning", "Weights", "priority", "zone",
];

/// Reads an answer.
///
/// # Errors
/// It cannot be used: why, and of which instance.
pub fn parse(body: &[u8]) -> Result<Membership, Failure> {
    let answer = read(body, &KEYS)?;
    let mut builder = Builder::default();
    for (at, instance) in items(Some(&answer), "the answer")?.iter().enumerate() {
        let none = Json::Null;
        let part = |key| instance.get(key).unwrap_or(&none);
        let (service, node) = (part("Service"), part("Node"));
        let host = match text(service, "Address", at)? {
            "" => text(node, "Address", at)?,
            host => host,
        };
        let address = joined(host, whole(service, "Port", 0, at)?);
        let verdict = verdict(items(instance.get("Checks"), "Checks")?, at)?;
        let weights = service.get("Weights").unwrap_or(&none);
        let state = match verdict {
            Verdict::Degraded => "Warning",
            _ => "Passing",
        };
        let priority = match said(service, "priority", at)? {
            "" => 0,
            text => match parse_number(text.as_bytes()) {
                Some(priority) => priority,
                None => return Err(flaw(at, text, " is no priority from 0 to 127")),
            },
        };
        let named = Named {
            address: &address,
            weight: whole(weights, state, 1, at)?,
            priority,
            zone: said(service, "zone", at)?,
            verdict,
        };
        add(&mut builder, at, named)?;
    }
    Ok(builder.finish()?)
}

/// What the metadata of a service says under `key`, or else a tag `key=…`; empty if nothing does.
fn said<'j>(service: &'j Json, key: &str, at: usize) -> Result<&'j str, Failure> {
    if let Some(meta) = service.get("Meta") {
        let text = text(meta, key, at)?;
        if !text.is_empty() {
            return Ok(text);
        }
    }
    let tags = items(service.get("Tags"), "Tags")?;
    let value = tags.iter().find_map(|tag| match tag {
        Json::String(tag) => tag.strip_prefix(key)?.strip_prefix('='),
        _ => None,
    });
    Ok(value.unwrap_or_default())
}

/// The worst of an instance's checks.
fn verdict(checks: &[Json], at: usize) -> Result<Verdict, Failure> {
    let mut worst = Verdict::Healthy;
    for check in checks {
        match text(check, "Status", at)? {
            "critical" | "maintenance" => {
                let id = text(check, "CheckID", at)?;
                let by_hand = id == "_node_maintenance" || id.starts_with("_service_maintenance");
                if by_hand {
                    return Ok(Verdict::Unhealthy(Cause::Maintenance));
                }
                worst = Verdict::Unhealthy(Cause::Check);
            }
            "warning" if worst.is_usable() => worst = Verdict::Degraded,
            _ => {}
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::discovery::Member;
    use crate::schema::SecretText;
    use serde_json::{Value, json};

    fn instance(service: Value, checks: Value) -> Value {
        let node =
            json!({"ID": "1", "Node": "n1", "Address": "10.1.0.1", "Meta": {"zone": "node"}});
        json!({"Node": node, "Service": service, "Checks": checks})
    }

    fn members(instances: Value) -> Vec<Member> {
        parse(instances.to_string().as_bytes())
            .unwrap()
            .members()
            .to_vec()
    }

    fn refusal(instances: Value) -> String {
        match parse(instances.to_string().as_bytes()) {
            Err(Failure::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_instance_has_its_services_address_or_else_its_nodes() {
        let found = members(json!([
            instance(json!({"Address": "", "Port": 8080}), json!([])),
            instance(
                json!({"Address": "10.0.0.1", "Port": 8080, "Weights": {"Passing": 5, "Warning": 2},
                "Meta": {"zone": "a", "priority": "1", "other": "x"}, "Tags": ["zone=b", "v1"]}),
                json!([])
            ),
            instance(
                json!({"Address": "2001:DB8::1", "Port": 80, "Meta": null, "Tags": ["zone=b", "priority=2"]}),
                json!(null)
            ),
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
                ("10.0.0.1:8080", 5, 1, Some("a")),
                ("10.1.0.1:8080", 1, 0, None),
                ("[2001:db8::1]:80", 1, 2, Some("b")),
            ]
        );
    }

    #[test]
    fn the_worst_check_counts() {
        let check =
            |status: &str, id: &str| json!({"CheckID": id, "Status": status, "Output": "…"});
        let (passing, warning) = (check("passing", "serfHealth"), check("warning", "c"));
        let critical = check("critical", "c");
        for (checks, verdict, weight) in [
            (json!([]), Verdict::Healthy, 5),
            (json!([passing]), Verdict::Healthy, 5),
            (json!([passing, warning]), Verdict::Degraded, 2),
            (
                json!([critical, warning]),
                Verdict::Unhealthy(Cause::Check),
                5,
            ),
            (
                json!([critical, check("critical", "_node_maintenance")]),
                Verdict::Unhealthy(Cause::Maintenance),
                5,
            ),
            (
                json!([check("critical", "_service_maintenance:web1")]),
                Verdict::Unhealthy(Cause::Maintenance),
                5,
            ),
        ] {
            let service =
                json!({"Address": "10.0.0.1", "Port": 80, "Weights": {"Passing": 5, "Warning": 2}});
            let found = members(json!([instance(service, checks.clone())]));
            assert_eq!(
                (found[0].verdict, found[0].weight),
                (verdict, weight),
                "{checks}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_place() {
        let good = instance(json!({"Address": "10.0.0.1", "Port": 80}), json!([]));
        let bad = |service: Value| refusal(json!([good, instance(service, json!([]))]));
        for (service, want) in [
            (
                json!({"Address": "db.local", "Port": 80}),
                "\"db.local:80\" is no IP address with a port from 1 to 65535",
            ),
            (
                json!({"Address": "10.0.0.2"}),
                "\"10.0.0.2:0\" is no IP address with a port from 1 to 65535",
            ),
            (
                json!({"Address": "10.0.0.2", "Port": "80"}),
                "\"Port\": no whole number: \"80\"",
            ),
            (
                json!({"Address": "10.0.0.1", "Port": 80}),
                "\"10.0.0.1:80\" stands twice",
            ),
            (
                json!({"Address": "10.0.0.2", "Port": 80, "Meta": {"priority": "high"}}),
                "\"high\" is no priority from 0 to 127",
            ),
            (
                json!({"Address": "10.0.0.2", "Port": 80, "Weights": {"Passing": 65535}}),
                "\"65535\" is no weight from 0 to 1000",
            ),
        ] {
            assert_eq!(bad(service), format!("endpoint 1: {want}"));
        }
        assert_eq!(
            refusal(json!({"Node": {}})),
            "the answer is no list: {\"Node\":{}}"
        );
        assert!(members(json!([])).is_empty());
    }

    #[test]
    fn a_query_has_what_is_configured_and_never_the_token() {
        let mut config = Consul {
            cluster: "c".into(),
            service: "a/b".into(),
            tag: None,
            datacenter: None,
            near: None,
            passing: false,
            token: Some(super::super::config::Credential::Given(SecretText(
                "t0ken".into(),
            ))),
            wait: Nanos::from_secs(30),
        };
        let path = |config: &Consul, index| super::path(config, index, Nanos::from_secs(30));
        assert_eq!(path(&config, 0), "/v1/health/service/a%2Fb");
        config.near = Some("_agent".into());
        assert_eq!(
            path(&config, 4),
            "/v1/health/service/a%2Fb?near=_agent&index=4&wait=30000ms"
        );
    }

    #[test]
    fn an_index_that_goes_back_or_is_none_begins_anew() {
        for (asked, answered, next) in [
            (0, Some("7"), 7),
            (7, Some("7"), 7),
            (7, Some("9"), 9),
            (7, Some("6"), 0),
            (7, Some("0"), 0),
            (7, Some("-1"), 0),
            (7, Some("x"), 0),
            (7, None, 0),
            (0, None, 0),
        ] {
            let answered = answered.map(str::as_bytes);
            assert_eq!(next_index(asked, answered), next, "{asked} {answered:?}");
        }
    }
}
