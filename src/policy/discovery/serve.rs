//! Endpoints as Envoy's own discovery over REST asks for them: haven is the server.
//!
//! Envoy asks again and again, for each of its clusters by itself, and shows the version that it
//! has at the very beginning of what it sends ([`held`]). So the answer depends on nothing but
//! that request and what is known of the endpoints: who has them already is told that nothing has
//! changed, and who does not gets them all. An answer that was lost or rejected, another Envoy and
//! one that was started anew all show another version, or none.
//!
//! The version is a hash of what is sent ([`version`]), and no count: two records of one name may
//! count alike and differ.

use super::{Cause, Member, Membership, Verdict};
use crate::base::hash::{KeyHasher, Seed, of_names};
use crate::base::sort;
use crate::base::text::{push_all, push_number};
use crate::host::SharedData;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};

/// Where Envoy asks.
pub const PATH: &[u8] = b"/v3/discovery:endpoints";

/// What the cluster by which Envoy asks is called: the upstream's name, and this.
const SUFFIX: &str = ".haven-eds";

/// How much of a request's body has to be seen: `{"version_info":"haven-0123456789abcdef"`.
pub const HEAD: usize = 64;

/// What each version begins with.
const VERSION: &str = "haven-";

/// The upstream whose endpoints are asked for, by the request's authority: Envoy writes the name
/// of the cluster there by which it asks. `None`: it is none of these.
#[must_use]
pub fn upstream(authority: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(authority).ok()?.strip_suffix(SUFFIX)?;
    (!name.is_empty()).then_some(name)
}

/// The version that whoever sent a request has, by the beginning of its body; `None`: it has none
/// of haven's.
#[must_use]
pub fn held(head: &[u8]) -> Option<u64> {
    let mut rest = head;
    // Envoy writes fields in the order of their numbers, of which the version's is the first, and
    // leaves out what is empty.
    for part in ["{", "\"version_info\"", ":", "\"haven-"] {
        rest = rest.trim_ascii_start().strip_prefix(part.as_bytes())?;
    }
    let (digits, rest) = rest.split_at_checked(16)?;
    rest.starts_with(b"\"").then_some(())?;
    let mut version = 0u64;
    for digit in digits {
        // No capitals: there is one spelling.
        let place = HEX.iter().position(|it| it == digit)?;
        version = version << 4 | u64::try_from(place).ok()?;
    }
    Some(version)
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The version of these endpoints of an upstream: equal if and, but for 1 in 2^64, only if the same
/// would be sent.
#[must_use]
pub fn version(upstream: &str, members: &Membership) -> u64 {
    let mut hasher = KeyHasher::new(Seed::default());
    hasher.part(upstream.as_bytes());
    for it in members.members() {
        hasher.part(it.address.as_bytes());
        hasher.part(&weight(it).to_le_bytes());
        hasher.part(&it.priority.to_le_bytes());
        hasher.part(it.zone.as_deref().unwrap_or_default().as_bytes());
        hasher.part(health(it).unwrap_or_default().as_bytes());
    }
    hasher.finish()
}

/// What Envoy is answered that does not have this version: a `DiscoveryResponse` with the one
/// `ClusterLoadAssignment`, of addresses, weights, priorities, zones and health, and nothing else.
///
/// It holds only what Envoy takes: one endpoint that it does not take has it reject all.
#[must_use]
pub fn response(upstream: &str, members: &Membership, version: u64) -> Vec<u8> {
    let mut json = String::with_capacity(members.len().saturating_mul(160).saturating_add(256));
    json.push_str("{\"version_info\":\"");
    json.push_str(VERSION);
    for shift in (0..16u32).rev() {
        let digit = version >> shift.saturating_mul(4) & 15;
        let digit = usize::try_from(digit).ok().and_then(|at| HEX.get(at));
        json.push(digit.copied().unwrap_or(b'0').into());
    }
    json.push_str(
        "\",\"resources\":[{\
         \"@type\":\"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\",\
         \"cluster_name\":",
    );
    push_string(&mut json, upstream);
    json.push_str(",\"endpoints\":[");
    // One group for each level and zone: Envoy takes no zone twice in a level.
    let mut sorted: Vec<&Member> = members.members().iter().collect();
    sort::by(&mut sorted, |one, other| {
        (group(one), &one.address) < (group(other), &other.address)
    });
    let mut last = None;
    for member in sorted {
        let group = group(member);
        if last == Some(group) {
            json.push(',');
        } else {
            if last.is_some() {
                json.push_str("]},");
            }
            push_group(&mut json, group);
            last = Some(group);
        }
        push_member(&mut json, member);
    }
    json.push_str(if last.is_some() { "]}]}]}" } else { "]}]}" });
    json.into_bytes()
}

/// Level and zone of an endpoint.
fn group(member: &Member) -> (u32, &str) {
    (member.priority, member.zone.as_deref().unwrap_or_default())
}

/// Opens a group.
fn push_group(json: &mut String, (priority, zone): (u32, &str)) {
    json.push_str("{\"priority\":");
    push_number(json, priority.into());
    if !zone.is_empty() {
        json.push_str(",\"locality\":{\"zone\":");
        push_string(json, zone);
        json.push('}');
    }
    json.push_str(",\"lb_endpoints\":[");
}

fn push_member(json: &mut String, member: &Member) {
    // A member's address has a port.
    let (host, port) = member.address.rsplit_once(':').unwrap_or_default();
    let host = host.strip_prefix('[').unwrap_or(host);
    let host = host.strip_suffix(']').unwrap_or(host);
    push_all(
        json,
        &[
            "{\"endpoint\":{\"address\":{\"socket_address\":{\"address\":\"",
            host,
            "\",\"port_value\":",
            port,
            "}}},\"load_balancing_weight\":",
        ],
    );
    push_number(json, weight(member).into());
    if let Some(health) = health(member) {
        push_all(json, &[",\"health_status\":\"", health, "\""]);
    }
    json.push('}');
}

/// Envoy rejects 0: haven sends nothing there, and says that it drains.
fn weight(member: &Member) -> u32 {
    member.weight.max(1)
}

/// Envoy's word for what the source says of an endpoint's health; `None`: it is healthy. Any other
/// word than these would mean the same.
fn health(member: &Member) -> Option<&'static str> {
    match member.verdict {
        Verdict::Unhealthy(Cause::CheckTimeout) => Some("TIMEOUT"),
        Verdict::Unhealthy(_) => Some("UNHEALTHY"),
        Verdict::Draining => Some("DRAINING"),
        _ if member.weight == 0 => Some("DRAINING"),
        Verdict::Degraded => Some("DEGRADED"),
        Verdict::Healthy => None,
    }
}

/// Adds a JSON string.
fn push_string(json: &mut String, text: &str) {
    json.push('"');
    for letter in text.chars() {
        if letter.is_control() {
            // Names have none; one that has some would break the answer.
            continue;
        }
        if matches!(letter, '"' | '\\') {
            json.push('\\');
        }
        json.push(letter);
    }
    json.push('"');
}

/// Which version of an upstream's endpoints Envoy has, as it has shown itself: for whoever has to
/// know whether it knows any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRecord(RecordKey);

impl HeldRecord {
    /// The record of the upstream of this name.
    #[must_use]
    pub fn new(upstream: &str) -> Self {
        Self(RecordKey::new(RecordKind::Held, of_names(&[upstream]), 1))
    }

    /// The version; `None`: Envoy has none, or has never asked.
    pub fn read<H: SharedData>(&self, host: &H) -> Option<u64> {
        let bytes = store::read(host, &self.0)?;
        bytes.as_slice().try_into().ok().map(u64::from_le_bytes)
    }

    /// Envoy has shown this version, or none. Writes only what is new.
    ///
    /// # Errors
    /// [`Contended`]: nothing was written.
    pub fn write<H: SharedData>(&self, host: &H, held: Option<u64>) -> Result<(), Contended> {
        let new = held.map(u64::to_le_bytes);
        let new = new.as_ref().map_or(&[][..], |bytes| bytes);
        store::update(host, &self.0, |bytes| {
            if bytes == new {
                return Step::Keep(());
            }
            bytes.clear();
            bytes.extend_from_slice(new);
            Step::Write(())
        })
    }
}

/// Says that endpoints are served from this state.
///
/// # Errors
/// [`Contended`]: it is not known.
pub fn announce<H: SharedData>(host: &H) -> Result<(), Contended> {
    store::update(host, &announced(), |bytes| {
        if !bytes.is_empty() {
            return Step::Keep(());
        }
        bytes.push(1);
        Step::Write(())
    })
}

/// Whether [`announce`] was called.
pub fn is_announced<H: SharedData>(host: &H) -> bool {
    store::read(host, &announced()).is_some()
}

fn announced() -> RecordKey {
    RecordKey::new(RecordKind::Held, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::super::Builder;
    use super::super::Named;
    use super::super::tests::any_membership;
    use super::*;
    use crate::host::sim::{HostKind, Machine, Worker};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn members(list: &[(&str, u64, u64, &str, Verdict)]) -> Membership {
        let mut builder = Builder::default();
        for &(address, weight, priority, zone, verdict) in list {
            let named = Named {
                address,
                weight,
                priority,
                zone,
                verdict,
            };
            builder.add(named).unwrap();
        }
        builder.finish().unwrap()
    }

    fn answer(members: &Membership) -> Value {
        let version = version("users", members);
        serde_json::from_slice(&response("users", members, version)).unwrap()
    }

    #[test]
    fn the_answer_has_what_envoy_takes_and_nothing_else() {
        let healthy = Verdict::Healthy;
        let value = answer(&members(&[
            ("10.0.0.2:8080", 3, 0, "a", healthy),
            ("10.0.0.1:80", 1, 0, "a", Verdict::Unhealthy(Cause::Check)),
            ("[2001:DB8::1]:443", 1, 1, "b\"\\", Verdict::Degraded),
            ("10.0.0.3:80", 0, 0, "", healthy),
            ("10.0.0.4:80", 2, 0, "", Verdict::Draining),
            (
                "10.0.0.5:80",
                2,
                0,
                "",
                Verdict::Unhealthy(Cause::CheckTimeout),
            ),
        ]));
        let endpoint = |host: &str, port: u16, weight: u32, health: Option<&str>| {
            let socket = json!({"address": host, "port_value": port});
            let mut it = json!({"endpoint": {"address": {"socket_address": socket}},
                "load_balancing_weight": weight});
            if let Some(health) = health {
                it["health_status"] = health.into();
            }
            it
        };
        let want = json!([
            {"priority": 0, "lb_endpoints": [
                endpoint("10.0.0.3", 80, 1, Some("DRAINING")),
                endpoint("10.0.0.4", 80, 2, Some("DRAINING")),
                endpoint("10.0.0.5", 80, 2, Some("TIMEOUT"))]},
            {"priority": 0, "locality": {"zone": "a"}, "lb_endpoints": [
                endpoint("10.0.0.1", 80, 1, Some("UNHEALTHY")),
                endpoint("10.0.0.2", 8080, 3, None)]},
            {"priority": 1, "locality": {"zone": "b\"\\"}, "lb_endpoints": [
                endpoint("2001:db8::1", 443, 1, Some("DEGRADED"))]},
        ]);
        let resource = &value["resources"][0];
        assert_eq!(resource["endpoints"], want);
        assert_eq!(resource["cluster_name"], "users");
        assert_eq!(resource.as_object().unwrap().len(), 3);
        assert_eq!(value.as_object().unwrap().len(), 2);
    }

    #[test]
    fn no_endpoints_are_an_empty_list_and_not_an_answer_without_the_cluster() {
        let value = answer(&Membership::default());
        assert_eq!(value["resources"][0]["endpoints"], json!([]));
    }

    #[test]
    fn the_cluster_by_which_envoy_asks_names_the_upstream() {
        for (authority, want) in [
            ("users.haven-eds", Some("users")),
            ("a.b:c_d-1.haven-eds", Some("a.b:c_d-1")),
            (".haven-eds", None),
            ("haven-eds", None),
            ("users", None),
            ("users.haven-eds:80", None),
            ("users.HAVEN-EDS", None),
            ("", None),
        ] {
            assert_eq!(upstream(authority.as_bytes()), want, "{authority}");
        }
        assert_eq!(upstream(b"\xff.haven-eds"), None);
    }

    #[test]
    fn only_a_version_of_havens_at_the_beginning_counts() {
        let ours = |text: &str| held(text.as_bytes());
        let body = "{\"version_info\":\"haven-00000000000000af\",\"node\":{\"id\":\"n\"}}";
        assert_eq!(ours(body), Some(0xaf));
        assert_eq!(
            ours("{ \"version_info\" : \"haven-ffffffffffffffff\" }"),
            Some(u64::MAX)
        );
        for other in [
            "",
            "{",
            "{\"version_info\":\"haven-00000000000000af",
            "{\"version_info\":\"haven-00000000000000AF\"",
            "{\"version_info\":\"haven-00000000000000a\"",
            "{\"version_info\":\"haven-00000000000000aff\"",
            "{\"version_info\":\"haven-+0000000000000af\"",
            "{\"version_info\":\"1\"",
            "{\"node\":{\"id\":\"haven-00000000000000af\"}}",
            "[{\"version_info\":\"haven-00000000000000af\"}]",
            "{\"type_url\":\"x\",\"version_info\":\"haven-00000000000000af\"}",
        ] {
            assert_eq!(ours(other), None, "{other}");
        }
    }

    #[test]
    fn what_envoy_has_is_known_until_it_shows_that_it_has_it_no_more() {
        let worker = Worker(Machine::new(HostKind::Envoy, 1));
        let record = HeldRecord::new("users");
        assert_eq!(record.read(&worker), None);
        record.write(&worker, Some(7)).unwrap();
        assert_eq!(record.read(&worker), Some(7));
        assert_eq!(HeldRecord::new("others").read(&worker), None);
        record.write(&worker, None).unwrap();
        assert_eq!(record.read(&worker), None);
        assert!(!is_announced(&worker));
        announce(&worker).unwrap();
        announce(&worker).unwrap();
        assert!(is_announced(&worker));
    }

    proptest! {
        /// Whatever the record holds, Envoy gets JSON that it takes, and shows the version back.
        #[test]
        fn any_endpoints_make_an_answer_that_envoy_takes(
            known in any_membership(), name in "\\PC{1,20}",
        ) {
            let version = version(&name, &known);
            let bytes = response(&name, &known, version);
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            let shown = json!({"version_info": value["version_info"]}).to_string();
            prop_assert!(shown.len() <= HEAD);
            prop_assert_eq!(held(shown.as_bytes()), Some(version));
            let resource = &value["resources"][0];
            prop_assert_eq!(resource["cluster_name"].as_str(), Some(name.as_str()));
            let mut groups = std::collections::BTreeSet::new();
            let mut addresses = std::collections::BTreeSet::new();
            for group in resource["endpoints"].as_array().unwrap() {
                let zone = group["locality"]["zone"].as_str().map(str::to_owned);
                prop_assert!(zone.as_deref() != Some(""));
                prop_assert!(groups.insert((group["priority"].as_u64().unwrap(), zone)));
                let list = group["lb_endpoints"].as_array().unwrap();
                prop_assert!(!list.is_empty());
                for it in list {
                    let socket = &it["endpoint"]["address"]["socket_address"];
                    let ip: std::net::IpAddr =
                        socket["address"].as_str().unwrap().parse().unwrap();
                    let port = u16::try_from(socket["port_value"].as_u64().unwrap()).unwrap();
                    prop_assert!(port > 0);
                    let address = std::net::SocketAddr::new(ip, port);
                    prop_assert!(known.find(&address.to_string()).is_some());
                    prop_assert!(addresses.insert(address));
                    prop_assert!(it["load_balancing_weight"].as_u64().unwrap() >= 1);
                }
            }
            prop_assert_eq!(addresses.len(), known.len());
        }

        #[test]
        fn any_bytes_are_read_sanely(bytes: Vec<u8>) {
            let _ = (upstream(&bytes), held(&bytes));
        }

        /// The version is that of what is sent.
        #[test]
        fn versions_differ_as_answers_do(one in any_membership(), other in any_membership()) {
            let same = version("u", &one) == version("u", &other);
            prop_assert_eq!(same, response("u", &one, 0) == response("u", &other, 0));
            prop_assert_ne!(version("u", &one), version("v", &one));
        }
    }
}
