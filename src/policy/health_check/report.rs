//! Health reports: `{"service": …, "status": …, "details": {name: {"status": …, "rt": …, "error":
//! …}}, "timestamp": …}`.
//!
//! Statuses are UP, DOWN, OUT_OF_SERVICE and UNKNOWN, in any case; `pass`, `warn` and `fail` of
//! `application/health+json` count as UP, UP and DOWN. A body that is no such report counts by its
//! HTTP status alone, as does one longer than [`MAX_BYTES`], so that a check cannot fill a worker's
//! memory. haven knows components by their names in the configuration; of other components it only
//! matters whether one is critical and not UP.
//!
//! **How it is judged.** An endpoint is UP if its report is. A report with status UP and a critical
//! component that is not UP counts as OUT_OF_SERVICE; one that is DOWN or OUT_OF_SERVICE only
//! because of components which the configuration calls not critical counts as UP, whatever its HTTP
//! status. In all other cases the HTTP status has to be an expected one as well. A report that is
//! too old ([`staleness`]) is UNKNOWN; one without a time, or whose time cannot be read or is in
//! the future, counts as new.

use super::record::OTHER;
use super::state::{CheckReason, EndpointHealth, Sample};
use super::streaks::staleness;
use crate::base::rfc3339;
use crate::base::time::{Nanos, UnixTime};
use crate::policy::health_check::config::{HealthCheck, ReportComponent};
use crate::schema::json::{self, Json};

/// The longest report.
pub const MAX_BYTES: usize = 64 * 1024;

/// A component in a report.
#[derive(Debug, Default)]
struct ReportEntry<'a> {
    status: Option<EndpointHealth>,
    critical: Option<bool>,
    timestamp: Option<&'a str>,
    /// Percent.
    error_rate: Option<f64>,
}

impl<'a> ReportEntry<'a> {
    /// An object with a status, or the status alone. Fields of another type than expected count as
    /// missing.
    fn of(json: &'a Json) -> Self {
        if let Json::String(word) = json {
            return Self {
                status: status_of(word),
                ..Self::default()
            };
        }
        Self {
            status: text(json, "status").and_then(status_of),
            critical: match field(json, "critical") {
                Some(Json::Bool(critical)) => Some(*critical),
                _ => None,
            },
            timestamp: text(json, "timestamp"),
            error_rate: match field(json, "error_rate") {
                Some(Json::Number(rate)) => rate.as_f64(),
                _ => None,
            },
        }
    }

    /// The state of a component. Without one in the configuration, `interval` is how often it is
    /// reported.
    fn judge(
        &self,
        config: Option<&ReportComponent>,
        interval: Nanos,
        wall: UnixTime,
    ) -> EndpointHealth {
        let period = config.map_or(interval, |config| config.period);
        if is_old(self.timestamp, period, wall) {
            return EndpointHealth::Inconclusive;
        }
        match (
            self.error_rate,
            config.and_then(|config| config.max_error_rate),
        ) {
            (Some(rate), Some(most)) if rate * 100.0 > f64::from(most.0) => EndpointHealth::Down,
            _ => self.status.unwrap_or(EndpointHealth::Inconclusive),
        }
    }
}

/// The value of a key; if it comes twice the last one counts, as in most parsers.
fn field<'a>(json: &'a Json, name: &str) -> Option<&'a Json> {
    match json {
        Json::Object(fields) => fields
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value),
        _ => None,
    }
}

fn text<'a>(json: &'a Json, name: &str) -> Option<&'a str> {
    match field(json, name) {
        Some(Json::String(text)) => Some(text),
        _ => None,
    }
}

/// The result that the body of an answer reports; `None` if it is no report. `good`: whether its
/// HTTP status is an expected one. `wall`: the present time.
#[must_use]
pub fn judge(
    body: &[u8],
    good: bool,
    status: u16,
    check: &HealthCheck,
    wall: UnixTime,
) -> Option<Sample> {
    if body.len() > MAX_BYTES {
        return None;
    }
    let report = json::parse(body).ok()?;
    let reported = text(&report, "status").and_then(status_of)?;
    let mut components = vec![None; check.components.len()];
    // The first critical component that is not UP; those in the configuration come before others.
    let mut fault: Option<u16> = None;
    let mut excused = false;
    let details = match field(&report, "details") {
        Some(Json::Object(details)) => details.as_slice(),
        _ => &[],
    };
    for (name, entry) in details {
        let entry = ReportEntry::of(entry);
        let known = check
            .components
            .iter()
            .position(|component| component.name == *name);
        let config = known.and_then(|at| check.components.get(at));
        let status = entry.judge(config, check.interval, wall);
        if let Some(component) = known.and_then(|at| components.get_mut(at)) {
            *component = Some(status);
        }
        if status == EndpointHealth::Up {
            continue;
        }
        if config.map_or(entry.critical.unwrap_or(true), |config| config.critical) {
            let at = known.and_then(|at| u16::try_from(at).ok()).unwrap_or(OTHER);
            if fault.is_none_or(|first| at < first) {
                fault = Some(at);
            }
        } else {
            // Only the configuration may excuse a component that the report counts.
            excused |= config.is_some();
        }
    }
    let (status, reason, detail) = if is_old(text(&report, "timestamp"), check.interval, wall) {
        components.fill(None);
        (EndpointHealth::Inconclusive, CheckReason::Stale, 0)
    } else if let Some(at) = fault {
        let status = match reported {
            EndpointHealth::Up => EndpointHealth::OutOfService,
            worse => worse,
        };
        (status, CheckReason::Component, at)
    } else if reported.is_down() && excused {
        (EndpointHealth::Up, CheckReason::Passed, 0)
    } else if reported != EndpointHealth::Up {
        (reported, CheckReason::Report, 0)
    } else if !good {
        (EndpointHealth::Down, CheckReason::HttpStatus, status)
    } else {
        (EndpointHealth::Up, CheckReason::Passed, 0)
    };
    Some(Sample {
        status,
        reason,
        detail,
        components,
    })
}

/// Whether what happens once in an `interval` was reported too long ago.
fn is_old(timestamp: Option<&str>, interval: Nanos, wall: UnixTime) -> bool {
    let at = timestamp.and_then(rfc3339::parse);
    at.is_some_and(|at| wall.since(at) > staleness(interval))
}

fn status_of(word: &str) -> Option<EndpointHealth> {
    let words = [
        ("up", EndpointHealth::Up),
        ("down", EndpointHealth::Down),
        ("out_of_service", EndpointHealth::OutOfService),
        ("unknown", EndpointHealth::Inconclusive),
        ("pass", EndpointHealth::Up),
        ("warn", EndpointHealth::Up),
        ("fail", EndpointHealth::Down),
    ];
    words
        .into_iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(word))
        .map(|(_, status)| status)
}

#[cfg(test)]
mod tests;
