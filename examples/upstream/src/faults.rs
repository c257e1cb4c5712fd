//! What the upstream does wrong: the switches, as JSON and as a struct.

use std::collections::BTreeMap;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The switches. All off (the default) is a healthy, fast upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Answer with this status, 200 to 599. `/health` is not touched: see [`Faults::health`].
    pub status: Option<u16>,
    /// Milliseconds of latency before the answer.
    pub delay_ms: u64,
    /// Accept requests and never answer them. Those caught stay so until their connection or stream
    /// ends.
    pub hang: bool,
    /// RST the connection in place of an answer.
    pub reset: bool,
    /// Refuse new connections and drop the existing ones, like a process that is gone.
    pub close: bool,
    /// Send the headers and half of the body (padded with spaces to 16 KiB), then RST the
    /// connection.
    pub cut: bool,
    /// The most requests that are served at once; the rest wait in the order of their arrival.
    pub capacity: Option<u32>,
    /// Milliseconds for which a request occupies one place of the capacity.
    pub service_time_ms: u64,
    /// `status`, `delay_ms`, `hang`, `reset` and `cut` strike each so-manieth request: 1 = all, 2 =
    /// every other.
    pub every: u64,
    /// The report served at `/health`.
    pub health: HealthReport,
    /// Headers of every answer, e.g. `retry-after`; they win over those it has anyway.
    pub headers: BTreeMap<String, String>,
    /// Trailers of every answer, e.g. `grpc-status`.
    pub trailers: BTreeMap<String, String>,
    /// The body of every answer in place of the usual JSON.
    pub body: Option<String>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            status: None,
            delay_ms: 0,
            hang: false,
            reset: false,
            close: false,
            cut: false,
            capacity: None,
            service_time_ms: 0,
            every: 1,
            health: HealthReport::default(),
            headers: BTreeMap::new(),
            trailers: BTreeMap::new(),
            body: None,
        }
    }
}

/// The health report: `{"service":…,"status":…,"details":{…},"timestamp":…}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthReport {
    /// UP, DOWN, OUT_OF_SERVICE or UNKNOWN; worked out from the components if not given.
    pub status: Option<String>,
    /// The report's `details`.
    pub components: BTreeMap<String, Component>,
    /// HTTP status of the answer; 200 if UP, else 503, if not given.
    pub http_status: Option<u16>,
    /// The report's `timestamp`; now if not given.
    pub timestamp: Option<String>,
    /// The body as it stands, in place of a report: to serve a malformed one.
    pub raw: Option<String>,
}

/// A component in a health report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// UP, DOWN, OUT_OF_SERVICE or UNKNOWN.
    pub status: String,
    /// Milliseconds it took to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rt: Option<u64>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the whole falls with it; true if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<bool>,
}

impl HealthReport {
    /// The status of the whole.
    pub fn overall(&self) -> &str {
        match &self.status {
            Some(status) => status,
            None if self
                .components
                .values()
                .any(|c| c.status != "UP" && c.critical != Some(false)) =>
            {
                "OUT_OF_SERVICE"
            }
            None => "UP",
        }
    }
}

impl Faults {
    /// These faults with the fields of `patch` in place of theirs; a field of `null` goes back to
    /// its default.
    pub fn patched(&self, patch: &[u8]) -> Result<Self, String> {
        let patch: Map<String, Value> =
            serde_json::from_slice(patch).map_err(|error| format!("not a JSON object: {error}"))?;
        let object = |faults: &Self| match serde_json::to_value(faults) {
            Ok(Value::Object(fields)) => Ok(fields),
            other => Err(format!("faults are no object: {other:?}")),
        };
        let (mut fields, mut defaults) = (object(self)?, object(&Self::default())?);
        for (name, value) in patch {
            let Some(field) = fields.get_mut(&name) else {
                let known: Vec<&str> = defaults.keys().map(String::as_str).collect();
                return Err(format!(
                    "{name}: unknown field, want one of {}",
                    known.join(", ")
                ));
            };
            *field = if value.is_null() {
                defaults.remove(&name).unwrap_or_default()
            } else {
                value
            };
        }
        let faults: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
        faults.check()?;
        Ok(faults)
    }

    /// Whether every value can be sent.
    pub fn check(&self) -> Result<(), String> {
        for (name, status) in [
            ("status", self.status),
            ("health.http_status", self.health.http_status),
        ] {
            if let Some(status) = status.filter(|status| !(200..=599).contains(status)) {
                return Err(format!(
                    "{name}: {status} is not allowed, want an integer from 200 to 599"
                ));
            }
        }
        if self.capacity == Some(0) {
            return Err(
                "capacity: 0 is not allowed, want an integer from 1 on; \"hang\" serves nobody"
                    .to_owned(),
            );
        }
        if self.every == 0 {
            return Err("every: 0 is not allowed, want an integer from 1 on".to_owned());
        }
        header_map("headers", &self.headers)?;
        header_map("trailers", &self.trailers)?;
        Ok(())
    }
}

/// `fields` as headers; names that frame the message are refused.
pub fn header_map(what: &str, fields: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let key = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{what}: {name:?} is not the name of a header"))?;
        if [
            "connection",
            "content-length",
            "te",
            "transfer-encoding",
            "upgrade",
        ]
        .contains(&key.as_str())
        {
            return Err(format!(
                "{what}: {name:?} is not allowed, the server frames its messages itself"
            ));
        }
        let value = HeaderValue::from_str(value)
            .map_err(|_| format!("{what}.{name}: {value:?} is not the value of a header"))?;
        map.insert(key, value);
    }
    Ok(map)
}
