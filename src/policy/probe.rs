//! The health endpoints that haven answers, before all policies and without limits.
//!
//! Liveness: the proxy can answer at all. Readiness: it has somewhere to send requests. The two
//! must stay apart: if liveness followed the upstreams, an orchestrator would restart healthy
//! proxies.
//!
//! [`grpc`] answers the same over gRPC.

pub mod config;
pub mod grpc;

use crate::base::rfc3339;
use crate::base::time::UnixTime;
use crate::host::Reply;
use crate::request::Request;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// The kinds of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Liveness or startup; the answer is a plain OK.
    Plain,
    /// Readiness; the answer is a document of the upstreams, with status 200 or 503.
    Document,
}

/// State of a component, and of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HealthStatus {
    /// Well.
    Up,
    /// Not well.
    Down,
    /// It runs, but is not to be used: a critical component is not UP.
    OutOfService,
    /// Nothing is known.
    Unknown,
}

/// A component as the document shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Component<'a> {
    /// Its name.
    #[serde(skip)]
    pub name: &'a str,
    /// Its state.
    pub status: HealthStatus,
    /// How long its last check took, in milliseconds, if it is checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rt: Option<u64>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How the last answer was of who names its endpoints, if they do not stand in the
    /// configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'static str>,
    /// How old what that says is, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_age: Option<u64>,
    /// Whether the whole is out of service without it.
    pub critical: bool,
}

#[derive(Serialize)]
struct HealthDocument<'a> {
    service: &'a str,
    status: HealthStatus,
    #[serde(serialize_with = "by_name")]
    details: &'a [Component<'a>],
    timestamp: String,
}

/// The probe that the request is, if it is one.
#[must_use]
pub fn requested(paths: &config::Probes, request: &Request<'_>) -> Option<Probe> {
    let is = |path: &Option<String>| path.as_ref().is_some_and(|p| p.as_bytes() == request.path);
    if !matches!(request.method, b"GET" | b"HEAD") {
        return None;
    }
    if is(&paths.readyz) {
        return Some(Probe::Document);
    }
    if is(&paths.health) {
        return Some(if wants_json(request) {
            Probe::Document
        } else {
            Probe::Plain
        });
    }
    (is(&paths.livez) || is(&paths.startupz)).then_some(Probe::Plain)
}

/// The answer to [`Probe::Plain`].
#[must_use]
pub fn plain() -> Reply {
    reply(200, b"text/plain", b"OK".to_vec())
}

/// Whether the whole is well: all that is critical is.
#[must_use]
pub fn is_well(components: &[Component<'_>]) -> bool {
    components
        .iter()
        .all(|c| c.status == HealthStatus::Up || !c.critical)
}

/// The answer to [`Probe::Document`].
#[must_use]
pub fn document(service: &str, components: &[Component<'_>], wall: UnixTime) -> Reply {
    let well = is_well(components);
    let status = if well {
        HealthStatus::Up
    } else {
        HealthStatus::OutOfService
    };
    let document = HealthDocument {
        service,
        status,
        details: components,
        timestamp: rfc3339::format(wall),
    };
    match serde_json::to_vec(&document) {
        Ok(body) => reply(if well { 200 } else { 503 }, b"application/json", body),
        // Strings and enums always serialise; should they not, the status is still right.
        Err(_) => reply(if well { 200 } else { 503 }, b"text/plain", Vec::new()),
    }
}

fn reply(status: u16, content_type: &[u8], body: Vec<u8>) -> Reply {
    let headers = vec![
        ("content-type", content_type.to_vec()),
        ("cache-control", b"no-store".to_vec()),
    ];
    Reply {
        status,
        headers,
        body,
        ..Reply::default()
    }
}

fn wants_json(request: &Request<'_>) -> bool {
    request.headers.all("accept").any(|accept| {
        accept.split(|b| *b == b',').any(|range| {
            let media = range.split(|b| *b == b';').next().unwrap_or(range);
            media.trim_ascii().eq_ignore_ascii_case(b"application/json")
        })
    })
}

fn by_name<S: Serializer>(components: &&[Component<'_>], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(components.len()))?;
    for component in *components {
        map.serialize_entry(component.name, component)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::headers::HeaderMap;

    fn probe_of(method: &str, path: &str, accept: &str) -> Option<Probe> {
        let headers =
            HeaderMap::from_pairs(&[(":method", method), (":path", path), ("accept", accept)]);
        requested(&config::Probes::default(), &Request::new(&headers))
    }

    #[test]
    fn paths_and_accept_choose_the_probe() {
        assert_eq!(
            probe_of("GET", "/livez", "application/json"),
            Some(Probe::Plain)
        );
        assert_eq!(
            probe_of("HEAD", "/startupz?verbose", ""),
            Some(Probe::Plain)
        );
        assert_eq!(probe_of("GET", "/readyz", ""), Some(Probe::Document));
        assert_eq!(probe_of("GET", "/health", "*/*"), Some(Probe::Plain));
        assert_eq!(
            probe_of("GET", "/health", "text/html, Application/JSON;q=0.9"),
            Some(Probe::Document)
        );
        assert_eq!(probe_of("POST", "/livez", ""), None);
        assert_eq!(probe_of("GET", "/livez/", ""), None);
    }

    #[test]
    fn a_path_that_is_null_is_no_probe() {
        let headers = HeaderMap::from_pairs(&[(":method", "GET"), (":path", "/health")]);
        let paths = config::Probes {
            health: None,
            ..config::Probes::default()
        };
        assert_eq!(requested(&paths, &Request::new(&headers)), None);
    }

    fn component(name: &str, status: HealthStatus, critical: bool) -> Component<'_> {
        Component {
            name,
            status,
            rt: None,
            error: (status != HealthStatus::Up).then(|| "0 of 2 endpoints".into()),
            source: None,
            source_age: None,
            critical,
        }
    }

    fn document_of(components: &[Component<'_>]) -> (u16, serde_json::Value) {
        let reply = document(
            "user-service",
            components,
            UnixTime::from_secs(1_680_688_800),
        );
        (reply.status, serde_json::from_slice(&reply.body).unwrap())
    }

    #[test]
    fn one_critical_component_takes_the_whole_out_of_service() {
        let (status, body) = document_of(&[
            component("a", HealthStatus::Up, true),
            component("b", HealthStatus::Down, true),
        ]);
        assert_eq!(status, 503);
        assert_eq!(
            body,
            serde_json::json!({
                "service": "user-service",
                "status": "OUT_OF_SERVICE",
                "timestamp": "2023-04-05T10:00:00Z",
                "details": {
                    "a": {"status": "UP", "critical": true},
                    "b": {"status": "DOWN", "error": "0 of 2 endpoints", "critical": true}
                }
            })
        );
        assert_eq!(
            document_of(&[component("a", HealthStatus::Unknown, true)]).0,
            503
        );
    }

    #[test]
    fn others_only_show() {
        let (status, body) = document_of(&[
            component("a", HealthStatus::Up, true),
            component("b", HealthStatus::Down, false),
        ]);
        assert_eq!(
            (status, &body["status"], &body["details"]["b"]["status"]),
            (200, &"UP".into(), &"DOWN".into())
        );
        assert_eq!(document_of(&[]).0, 200);
    }
}
