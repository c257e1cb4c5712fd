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

use crate::base::time::Nanos;

/// The response header.
pub const HEADER: &str = "endpoint-load-metrics";

/// The longest report that is read.
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
    pub fn with(self, now: Nanos, utilization: u32) -> Self {
        let smooth = match self.left(now) {
            Some((left, _)) => FULL.saturating_sub(left).saturating_add(utilization) / 2,
            None => utilization,
        };
        Self(u64::from(smooth.min(FULL).saturating_add(1)) << 32 | now.as_millis() & 0xffff_ffff)
    }

    /// The free capacity in thousandths, and the weight of the report; `None`: there is none.
    fn left(self, now: Nanos) -> Option<(u32, u32)> {
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
pub fn mean(loads: impl Iterator<Item = Load>, now: Nanos) -> Option<u32> {
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
pub fn weighed(weight: u32, load: Load, mean: u32, now: Nanos) -> u32 {
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
    let (application, cpu) = match (word, report.first()) {
        (b"TEXT ", _) => text(rest),
        (b"JSON ", _) => json(rest),
        (_, Some(b'{')) => json(report),
        _ => text(report),
    };
    // An application that does not measure itself says 0.
    application.filter(|it| *it > 0).or(cpu).or(application)
}

type Both = (Option<u32>, Option<u32>);

fn take(name: &[u8], value: &[u8], found: &mut Both) {
    match name {
        b"application_utilization" | b"applicationUtilization" => {
            found.0 = found.0.or(thousandths(value))
        }
        b"cpu_utilization" | b"cpuUtilization" => found.1 = found.1.or(thousandths(value)),
        _ => {}
    }
}

/// `name=value,name=value`; a colon will do, as in early drafts.
fn text(report: &[u8]) -> Both {
    let mut found = (None, None);
    for pair in report.split(|byte| *byte == b',') {
        if let Some(at) = pair.iter().position(|byte| matches!(byte, b'=' | b':'))
            && let (Some(name), Some(value)) = (pair.get(..at), pair.get(at.saturating_add(1)..))
        {
            take(name.trim_ascii(), value.trim_ascii(), &mut found);
        }
    }
    found
}

/// An object's numbers; what is inside of others is skipped. Not a checker: what is no JSON yields
/// what looks like fields.
fn json(report: &[u8]) -> Both {
    let mut found = (None, None);
    let (mut depth, mut name, mut rest) = (0u32, None, report);
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'{' | b'[' => (depth, name) = (depth.saturating_add(1), None),
            b'}' | b']' => (depth, name) = (depth.saturating_sub(1), None),
            b'"' => {
                let mut escaped = false;
                let end = rest.iter().position(|byte| {
                    let ends = *byte == b'"' && !escaped;
                    escaped = *byte == b'\\' && !escaped;
                    ends
                });
                let Some((string, after)) = end.and_then(|end| rest.split_at_checked(end)) else {
                    break;
                };
                rest = after.get(1..).unwrap_or(&[]);
                name = Some(string);
            }
            b':' if depth == 1 => {
                let end = rest
                    .iter()
                    .position(|byte| matches!(byte, b',' | b'}'))
                    .unwrap_or(rest.len());
                if let (Some(name), Some(value)) = (name.take(), rest.get(..end)) {
                    take(name, value.trim_ascii(), &mut found);
                }
            }
            _ => {}
        }
    }
    found
}

/// A decimal number as thousandths, rounded down, at most [`FULL`]; `None`: it is no number, or
/// negative.
fn thousandths(number: &[u8]) -> Option<u32> {
    let (mantissa, exponent) = match number.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (
            number.get(..at)?,
            exponent(number.get(at.saturating_add(1)..)?)?,
        ),
        None => (number, 0),
    };
    let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
        Some(at) => (mantissa.get(..at)?, mantissa.get(at.saturating_add(1)..)?),
        None => (mantissa, &[][..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    // Digits up to the third place behind the point, wherever the exponent puts it.
    let places = i64::try_from(whole.len())
        .ok()?
        .saturating_add(exponent)
        .saturating_add(3);
    let mut value = 0u32;
    for (_, digit) in (0..places.clamp(0, 4_400))
        .zip(whole.iter().chain(fraction).chain(std::iter::repeat(&b'0')))
    {
        value = value
            .saturating_mul(10)
            .saturating_add(u32::from(digit.saturating_sub(b'0')));
    }
    Some(value.min(FULL))
}

fn exponent(digits: &[u8]) -> Option<i64> {
    let (negative, digits) = match digits.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0i64, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(i64::from(digit.saturating_sub(b'0')))
    });
    Some(if negative {
        value.saturating_neg()
    } else {
        value
    })
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
        let start = Nanos::from_secs(1_000);
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
            let load = Load(packed).with(Nanos(now), 500);
            prop_assert!(weighed(weight, load, 700, Nanos(now)) <= weight);
            prop_assert!(weight == 0 || weighed(weight, Load(packed), 700, Nanos(now)) > 0);
        }

        #[test]
        fn decimals_are_read_as_they_are(thousandth in 0u32..=1_000, form in 0usize..3) {
            let number = match form {
                0 => format!("{}.{:03}", thousandth / 1_000, thousandth % 1_000),
                1 => format!("{thousandth}e-3"),
                _ => format!("0.00{thousandth:04}e3"),
            };
            prop_assert_eq!(thousandths(number.as_bytes()), Some(thousandth), "{}", number);
        }
    }
}
