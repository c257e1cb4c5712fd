//! The load that endpoints report: ORCA reports in the response header `endpoint-load-metrics`.
//!
//! haven reads the TEXT form (`TEXT cpu_utilization=0.3,application_utilization=0.5`) and the JSON
//! form (`JSON {"cpu_utilization": 0.3}`), with or without the word in front, and ignores BIN. Of a
//! report `application_utilization` counts, or else `cpu_utilization` (as in gRPC's A58,
//! client-side weighted round robin), from 0 to 1. More counts as 1; a value that is no number is
//! ignored.
//!
//! An endpoint's weight is multiplied by its free capacity (1 minus the utilisation), at least a
//! twentieth, so that it gets requests and can report again. Endpoints without reports count with
//! the mean of the others. A report counts in full for 5 s, then less and less, and is forgotten
//! after 30 s. All workers share it, in a gauge with the utilisation and its time. Of two reports
//! at the same moment one is lost.

use crate::base::time::{Moment, Nanos};
use crate::schema::json::{self, Json};

/// The response header.
pub const HEADER: &str = "endpoint-load-metrics";

/// The part of a report that is read: of a longer one the text is cut, the JSON is none.
const LONGEST: usize = 4_096;

/// How long a report counts in full, in milliseconds.
const FRESH: u64 = 5_000;

/// When it is forgotten, in milliseconds.
const GONE: u64 = 30_000;

/// A utilisation of 1.
pub const FULL: u32 = 1_000;

/// The least free capacity.
const FLOOR: u32 = 50;

/// How often workers read the reports anew.
pub const PERIOD: Nanos = Nanos::from_millis(100);

/// An endpoint's utilisation, packed: thousandths plus one above, milliseconds of the clock below.
/// Zero = none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load(pub u64);

impl Load {
    /// The load after a report at `now`. Half of the old value stays, since a single report may be
    /// a peak.
    #[must_use]
    pub fn with(self, now: Moment, utilization: u32) -> Self {
        let smooth = match self.left(now) {
            Some((left, _)) => FULL.saturating_sub(left).saturating_add(utilization) / 2,
            None => utilization,
        };
        Self(u64::from(smooth.min(FULL).saturating_add(1)) << 32 | now.as_millis() & 0xffff_ffff)
    }

    /// The free capacity in thousandths, and the weight of the report; `None`: there is none.
    fn left(self, now: Moment) -> Option<(u32, u32)> {
        let used = u32::try_from(self.0 >> 32).ok()?.checked_sub(1)?.min(FULL);
        let age = now.as_millis().wrapping_sub(self.0) & 0xffff_ffff;
        let counts = GONE
            .checked_sub(age.max(FRESH))?
            .saturating_mul(FULL.into())
            .checked_div(GONE - FRESH)?;
        let counts = u32::try_from(counts).ok().filter(|counts| *counts > 0)?;
        Some((FULL.saturating_sub(used).max(FLOOR), counts))
    }
}

/// The mean free capacity in thousandths; `None`: no endpoint reports.
#[must_use]
pub fn mean(loads: impl Iterator<Item = Load>, now: Moment) -> Option<u32> {
    let (sum, count) = loads
        .filter_map(|load| load.left(now))
        .fold((0u64, 0u64), |(sum, count), (left, _)| {
            (sum.saturating_add(left.into()), count.saturating_add(1))
        });
    sum.checked_div(count)
        .and_then(|mean| u32::try_from(mean).ok())
}

/// The weight of an endpoint by its report, where the mean free capacity is `mean`.
#[must_use]
pub fn weighed(weight: u32, load: Load, mean: u32, now: Moment) -> u32 {
    let (left, counts) = load.left(now).unwrap_or((mean, FULL));
    let [left, counts, mean] = [left, counts, mean].map(u64::from);
    const WHOLE: u64 = FULL as u64;
    let part = left
        .saturating_mul(counts)
        .saturating_add(mean.saturating_mul(WHOLE.saturating_sub(counts)))
        / WHOLE;
    let weight_now = u64::from(weight).saturating_mul(part) / WHOLE;
    u32::try_from(weight_now)
        .unwrap_or(weight)
        .clamp(weight.min(1), weight)
}

/// The utilisation in a report, in thousandths.
#[must_use]
pub fn parse(report: &[u8]) -> Option<u32> {
    let report = report.get(..LONGEST.min(report.len()))?.trim_ascii();
    let (word, rest) = report.split_at_checked(5).unwrap_or((report, &[]));
    let Report { application, cpu } = match (word, report.first()) {
        (b"TEXT ", _) => Report::from_text(rest),
        (b"JSON ", _) => Report::from_json(rest),
        (_, Some(b'{')) => Report::from_json(report),
        _ => Report::from_text(report),
    };
    // An application that does not measure itself reports 0.
    application.filter(|it| *it > 0).or(cpu).or(application)
}

/// What counts of a report.
#[derive(Debug, Default)]
struct Report {
    application: Option<u32>,
    cpu: Option<u32>,
}

impl Report {
    /// The field of a name, as long as it has no value: the first one counts. Both spellings are in
    /// use, that of Protocol Buffers' text form and that of its JSON.
    fn missing(&mut self, name: &[u8]) -> Option<&mut Option<u32>> {
        let field = match name {
            b"application_utilization" | b"applicationUtilization" => &mut self.application,
            b"cpu_utilization" | b"cpuUtilization" => &mut self.cpu,
            _ => return None,
        };
        Some(field).filter(|field| field.is_none())
    }

    /// `name=value,name=value`; a colon will do, as in early drafts.
    fn from_text(report: &[u8]) -> Self {
        let mut found = Self::default();
        for pair in report.split(|byte| *byte == b',') {
            if let Some(at) = pair.iter().position(|byte| matches!(byte, b'=' | b':'))
                && let (Some(name), Some(value)) =
                    (pair.get(..at), pair.get(at.saturating_add(1)..))
                && let Some(field) = found.missing(name.trim_ascii())
            {
                *field = json::parse(value).ok().as_ref().and_then(thousandths);
            }
        }
        found
    }

    /// An object's numbers, not those of objects inside; what is no JSON is no report.
    fn from_json(report: &[u8]) -> Self {
        let mut found = Self::default();
        if let Ok(Json::Object(fields)) = json::parse(report) {
            for (name, value) in &fields {
                if let Some(field) = found.missing(name.as_bytes()) {
                    *field = thousandths(value);
                }
            }
        }
        found
    }
}

/// A utilisation in thousandths, rounded down, at most [`FULL`]; `None` if it is no number, or
/// negative.
fn thousandths(value: &Json) -> Option<u32> {
    let Json::Number(number) = value else {
        return None;
    };
    let utilization = number.as_f64().filter(|utilization| *utilization >= 0.0)?;
    // A float can be a little less than the decimal that was written: 1e-6 makes up for it.
    let thousandths = utilization.min(1.0) * f64::from(FULL) + 1e-6;
    Some(thousandths as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reports_are_read_in_both_forms() {
        for (report, want) in [
            ("TEXT cpu_utilization=0.3,mem_utilization=0.8", Some(300)),
            (
                "TEXT cpu_utilization=0.3,application_utilization=0.55,named_metrics.x=1",
                Some(550),
            ),
            (
                "TEXT cpu_utilization=0.3,application_utilization=0",
                Some(300),
            ),
            ("cpu_utilization:0.25", Some(250)),
            (
                "JSON {\"cpu_utilization\": 0.3, \"application_utilization\":0.9}",
                Some(900),
            ),
            (
                "JSON {\"named_metrics\": {\"cpu_utilization\": 0.9}, \"cpuUtilization\": 1e-1}",
                Some(100),
            ),
            (
                "{\"a\\\"cpu_utilization\": 0.5, \"cpu_utilization\": 0.75}",
                Some(750),
            ),
            ("TEXT cpu_utilization=7.5", Some(1_000)),
            ("TEXT cpu_utilization=1e300", Some(1_000)),
            ("TEXT cpu_utilization=1e-300", Some(0)),
            ("TEXT cpu_utilization=0.0004", Some(0)),
            ("TEXT cpu_utilization=0", Some(0)),
            ("TEXT cpu_utilization=-0.5", None),
            ("TEXT cpu_utilization=NaN", None),
            ("TEXT cpu_utilization=inf", None),
            ("TEXT cpu_utilization=", None),
            ("TEXT mem_utilization=0.5", None),
            ("JSON {\"cpu_utilization\": \"0.3\"}", None),
            ("JSON {\"cpu_utilization", None),
            ("BIN CZqZmZmZmbk/", None),
            ("", None),
        ] {
            assert_eq!(parse(report.as_bytes()), want, "{report}");
        }
    }

    #[test]
    fn a_report_fades_to_the_mean() {
        let start = Moment::from_secs(1_000);
        let busy = Load::default().with(start, 800);
        let at = |second: u64| weighed(1_000, busy, 600, start.plus(Nanos::from_secs(second)));
        assert_eq!([0, 5, 30, 3_000].map(at), [200, 200, 600, 600]);
        assert!((390..410).contains(&at(17)), "{}", at(17));
        assert_eq!(
            mean(
                [busy, Load::default(), Load::default().with(start, 0)].into_iter(),
                start
            ),
            Some(600)
        );
        assert_eq!(
            mean([busy].into_iter(), start.plus(Nanos::from_secs(40))),
            None
        );
        assert_eq!(
            weighed(1_000, Load::default().with(start, 1_000), 600, start),
            50,
            "it has to report on"
        );
    }

    proptest! {
        #[test]
        fn any_report_is_taken_sanely(report: Vec<u8>, packed: u64, weight: u32, now: u64) {
            if let Some(utilization) = parse(&report) {
                prop_assert!(utilization <= FULL);
            }
            let load = Load(packed).with(Moment(now), 500);
            prop_assert!(weighed(weight, load, 700, Moment(now)) <= weight);
            prop_assert!(weight == 0 || weighed(weight, Load(packed), 700, Moment(now)) > 0);
        }

        #[test]
        fn decimals_are_read_as_they_are(thousandth in 0u32..=1_000, form in 0usize..3) {
            let number = match form {
                0 => format!("{}.{:03}", thousandth / 1_000, thousandth % 1_000),
                1 => format!("{thousandth}e-3"),
                _ => format!("0.00{thousandth:04}e3"),
            };
            let report = format!("cpu_utilization={number}");
            prop_assert_eq!(parse(report.as_bytes()), Some(thousandth), "{}", number);
        }
    }
}
