//! Health reports: `{"service": …, "status": …, "details": {name: {"status": …, "rt": …, "error": …}}, "timestamp": …}`.
//!
//! Statuses are UP, DOWN, OUT_OF_SERVICE and UNKNOWN, in any case; `pass`, `warn` and `fail` of `application/health+json` are taken for
//! UP, UP and DOWN. What is no such report counts by its HTTP status alone, as does one longer than [`MAX_BYTES`]: a check is no way to
//! fill a worker's memory. Components are known by the names that the configuration has for them; of others it only matters whether
//! one is critical and not UP.
//!
//! **How it is judged.** An endpoint is UP if its report is. A report that says UP while a critical component is not UP is not UP; one
//! that is DOWN or OUT_OF_SERVICE for no other reason than components which the configuration calls not critical is UP, and its HTTP
//! status is not looked at. In all other cases the HTTP status has to be an expected one as well. A report that is too old
//! ([`staleness`]) is UNKNOWN; one without a time, or with one that cannot be read or lies ahead, is as old as it has been under way.

use super::state::{OTHER, Reason, Sample, Status, staleness};
use crate::base::time::Nanos;
use crate::config::HealthCheck;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// The longest report.
pub const MAX_BYTES: usize = 64 * 1024;

/// A report as it came.
#[derive(Debug, Default)]
struct Report {
    status: Option<Status>,
    details: Vec<(String, Entry)>,
    timestamp: Option<String>,
}

/// A component in it.
#[derive(Debug, Default)]
struct Entry {
    status: Option<Status>,
    critical: Option<bool>,
    timestamp: Option<String>,
    /// Percent.
    error_rate: Option<f64>,
}

/// What the body of an answer says of its endpoint; `None` if it is no report. `good`: whether its HTTP status is an expected one. `wall`:
/// the present time.
#[must_use]
pub fn judge(body: &[u8], good: bool, status: u16, check: &HealthCheck, wall: Nanos) -> Option<Sample> {
    if body.len() > MAX_BYTES {
        return None;
    }
    let report: Report = serde_json::from_slice(body).ok()?;
    let said = report.status?;
    let is_old = |timestamp: &Option<String>, interval| {
        let at = timestamp.as_deref().and_then(moment);
        at.is_some_and(|at| wall.since(at) > staleness(interval))
    };
    let mut components = vec![None; check.components.len()];
    // The first critical component that is not UP, those of the configuration before others.
    let mut fault: Option<(u16, Status)> = None;
    let mut excused = false;
    for (name, entry) in &report.details {
        let known = check.components.iter().position(|component| component.name == *name);
        let config = known.and_then(|at| check.components.get(at));
        let mut status = entry.status.unwrap_or(Status::Unsure);
        if let (Some(rate), Some(most)) = (entry.error_rate, config.and_then(|config| config.max_error_rate))
            && rate * 100.0 > f64::from(most.0)
        {
            status = Status::Down;
        }
        if is_old(&entry.timestamp, config.map_or(check.interval, |config| config.period)) {
            status = Status::Unsure;
        }
        if let Some(component) = known.and_then(|at| components.get_mut(at)) {
            *component = Some(status);
        }
        if status == Status::Up {
            continue;
        }
        if config.map_or(entry.critical.unwrap_or(true), |config| config.critical) {
            let at = known.and_then(|at| u16::try_from(at).ok()).unwrap_or(OTHER);
            if fault.is_none_or(|(first, _)| at < first) {
                fault = Some((at, status));
            }
        } else {
            // Only the configuration may excuse what the report itself holds against it.
            excused |= config.is_some();
        }
    }
    let verdict = if is_old(&report.timestamp, check.interval) {
        components.fill(None);
        (Status::Unsure, Reason::Stale, 0)
    } else if let Some((at, _)) = fault {
        (if said == Status::Up { Status::OutOfService } else { said }, Reason::Component, at)
    } else if said.is_down() && excused {
        (Status::Up, Reason::Answers, 0)
    } else if said != Status::Up {
        (said, Reason::Report, 0)
    } else if !good {
        (Status::Down, Reason::HttpStatus, status)
    } else {
        (Status::Up, Reason::Answers, 0)
    };
    let (status, reason, detail) = verdict;
    Some(Sample { status, reason, detail, components })
}

fn status_of(word: &str) -> Option<Status> {
    let words = [
        ("up", Status::Up),
        ("down", Status::Down),
        ("out_of_service", Status::OutOfService),
        ("unknown", Status::Unsure),
        ("pass", Status::Up),
        ("warn", Status::Up),
        ("fail", Status::Down),
    ];
    words.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(word)).map(|(_, status)| status)
}

/// A moment of RFC 3339; `None` if the text is none, or is before 1970. Leap seconds count as the second that follows.
fn moment(text: &str) -> Option<Nanos> {
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u32>().ok())?
    };
    let small = |from, to| number(from, to).and_then(|n| u8::try_from(n).ok());
    let is = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|byte| wanted.contains(byte));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let year = i32::try_from(number(0, 4)?).ok()?;
    let month = time::Month::try_from(small(5, 7)?).ok()?;
    let date = time::Date::from_calendar_date(year, month, small(8, 10)?).ok()?;
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0u64;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let used = fraction.get(..digits.min(9)).filter(|used| !used.is_empty())?;
        let scale = 10u64.checked_pow(9u32.saturating_sub(u32::try_from(used.len()).ok()?))?;
        nanos = used.parse::<u64>().ok()?.checked_mul(scale)?;
        rest = fraction.get(digits..)?;
    }
    // Minutes east of Greenwich.
    let zone = match rest.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let digit = |byte: &u8| byte.is_ascii_digit().then(|| i64::from(byte.saturating_sub(b'0')));
            let two = |high, low| Some(digit(high)?.saturating_mul(10).saturating_add(digit(low)?));
            let (hours, minutes) = (two(h1, h2)?, two(m1, m2)?);
            let east = hours.saturating_mul(60).saturating_add(minutes);
            if *sign == b'-' { east.saturating_neg() } else { east }
        }
        _ => return None,
    };
    let days = i64::from(date.to_julian_day()).saturating_sub(i64::from(time::OffsetDateTime::UNIX_EPOCH.to_julian_day()));
    let minutes = days
        .saturating_mul(1_440)
        .saturating_add(i64::from(hour).saturating_mul(60))
        .saturating_add(i64::from(minute))
        .saturating_sub(zone);
    let seconds = minutes.saturating_mul(60).saturating_add(second.into());
    Some(Nanos::from_secs(u64::try_from(seconds).ok()?).plus(Nanos(nanos)))
}

impl<'de> Deserialize<'de> for Report {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Report;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a health report")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Report, A::Error> {
                let mut report = Report::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "status" => report.status = map.next_value::<Lenient>()?.text().and_then(|word| status_of(&word)),
                        "timestamp" => report.timestamp = map.next_value::<Lenient>()?.text(),
                        "details" => report.details = map.next_value::<Details>()?.0,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(report)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// The components; anything but an object has none.
struct Details(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Details {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Lenient::deserialize(deserializer)? {
            Lenient::Object(entries) => entries.into_iter().map(|(name, it)| (name, it.entry())).collect(),
            _ => Vec::new(),
        }))
    }
}

/// Any value, to the depth that a report has; what is deeper is read past.
enum Lenient {
    Text(String),
    Number(f64),
    Bool(bool),
    Object(Vec<(String, Lenient)>),
    Other,
}

impl Lenient {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A component: an object with a status, or the status alone.
    fn entry(self) -> Entry {
        let mut entry = Entry::default();
        match self {
            Self::Text(word) => entry.status = status_of(&word),
            Self::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("status", Self::Text(word)) => entry.status = status_of(&word),
                        ("critical", Self::Bool(critical)) => entry.critical = Some(critical),
                        ("timestamp", Self::Text(at)) => entry.timestamp = Some(at),
                        ("error_rate", Self::Number(rate)) => entry.error_rate = Some(rate),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        entry
    }
}

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Lenient;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Lenient, E> {
                Ok(Lenient::Text(text.to_owned()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Lenient, E> {
                Ok(Lenient::Bool(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Lenient, E> {
                Ok(Lenient::Number(value))
            }

            #[allow(clippy::cast_precision_loss, reason = "a percentage")]
            fn visit_u64<E>(self, value: u64) -> Result<Lenient, E> {
                Ok(Lenient::Number(value as f64))
            }

            #[allow(clippy::cast_precision_loss, reason = "a percentage")]
            fn visit_i64<E>(self, value: i64) -> Result<Lenient, E> {
                Ok(Lenient::Number(value as f64))
            }

            fn visit_unit<E>(self) -> Result<Lenient, E> {
                Ok(Lenient::Other)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Lenient, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Lenient::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lenient, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Lenient::Object(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
