//! The load that endpoints report: ORCA reports in the response header `endpoint-load-metrics`, or
//! in `endpoint-load-metrics-bin`, which gRPC's servers send in trailers.
//!
//! haven reads the TEXT form (`TEXT cpu_utilization=0.3,application_utilization=0.5`) and the JSON
//! form (`JSON {"cpu_utilization": 0.3}`), with or without the word in front, and the BIN form (the
//! message in base64). Of a report the named metric counts that the configuration chooses, or else
//! `application_utilization`, or else `cpu_utilization` (as in gRPC's A58, client-side weighted
//! round robin), from 0 to 1. More counts as 1; a value that is no number is
//! ignored.
//!
//! An endpoint's weight is multiplied by its free capacity (1 minus the utilisation), at least a
//! twentieth, so that it gets requests and can report again. Endpoints without reports count with
//! the mean of the others. A report counts in full for 5 s, then less and less, and is forgotten
//! after 30 s. All workers share it, in a gauge with the utilisation and its time. Of two reports
//! at the same moment one is lost.

use crate::base::base64;
use crate::base::protobuf::{Value, fields};
use crate::base::time::{Moment, Nanos};
use crate::schema::json::{self, Json};

/// The response header.
pub const HEADER: &str = "endpoint-load-metrics";

/// The one with a message of Protocol Buffers in base64.
pub const BINARY: &str = "endpoint-load-metrics-bin";

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

/// The utilisation in a report, in thousandths. `metric`: the named metric that counts.
#[must_use]
pub fn parse(report: &[u8], metric: Option<&str>) -> Option<u32> {
    let report = report.get(..LONGEST.min(report.len()))?.trim_ascii();
    let (word, rest) = report.split_at_checked(5).unwrap_or((report, &[]));
    let mut found = Report::of(metric);
    match (word, report.first()) {
        (b"TEXT ", _) => found.read_text(rest),
        (b"JSON ", _) => found.read_json(rest),
        (_, Some(b'{')) => found.read_json(report),
        _ if report.starts_with(b"BIN ") => found.read_binary(report.get(4..).unwrap_or_default()),
        _ => found.read_text(report),
    }
    found.utilization()
}

/// The utilisation in the value of [`BINARY`].
#[must_use]
pub fn parse_binary(value: &[u8], metric: Option<&str>) -> Option<u32> {
    let mut found = Report::of(metric);
    found.read_binary(value);
    found.utilization()
}

/// What counts of a report.
#[derive(Debug, Default)]
struct Report<'m> {
    /// The named metric that counts.
    metric: Option<&'m str>,
    named: Option<u32>,
    application: Option<u32>,
    cpu: Option<u32>,
}

impl<'m> Report<'m> {
    fn of(metric: Option<&'m str>) -> Self {
        Self {
            metric,
            ..Self::default()
        }
    }

    fn utilization(&self) -> Option<u32> {
        // An application that does not measure itself reports 0.
        let application = self.application.filter(|it| *it > 0);
        self.named.or(application).or(self.cpu).or(self.application)
    }

    fn is_named(&self, name: &[u8]) -> bool {
        self.metric.is_some_and(|metric| metric.as_bytes() == name)
    }

    /// The field of a name, as long as it has no value: the first one counts. Both spellings are in
    /// use, that of Protocol Buffers' text form and that of its JSON.
    fn missing(&mut self, name: &[u8]) -> Option<&mut Option<u32>> {
        let field = match name {
            b"application_utilization" | b"applicationUtilization" => &mut self.application,
            b"cpu_utilization" | b"cpuUtilization" => &mut self.cpu,
            _ => {
                let name = name.strip_prefix(b"named_metrics.")?;
                self.is_named(name).then_some(&mut self.named)?
            }
        };
        Some(field).filter(|field| field.is_none())
    }

    /// `name=value,name=value`; a colon will do, as in early drafts.
    fn read_text(&mut self, report: &[u8]) {
        for pair in report.split(|byte| *byte == b',') {
            if let Some(at) = pair.iter().position(|byte| matches!(byte, b'=' | b':'))
                && let (Some(name), Some(value)) =
                    (pair.get(..at), pair.get(at.saturating_add(1)..))
                && let Some(field) = self.missing(name.trim_ascii())
            {
                *field = json::parse(value).ok().as_ref().and_then(thousandths);
            }
        }
    }

    /// An object's numbers, and those of its named metrics; what is no JSON is no report.
    fn read_json(&mut self, report: &[u8]) {
        let Ok(Json::Object(fields)) = json::parse(report) else {
            return;
        };
        for (name, value) in &fields {
            if let (true, Json::Object(named)) =
                (matches!(&**name, "named_metrics" | "namedMetrics"), value)
            {
                let mut named = named.iter();
                let chosen = named.find(|(name, _)| self.is_named(name.as_bytes()));
                self.named = chosen.and_then(|(_, value)| thousandths(value));
            } else if let Some(field) = self.missing(name.as_bytes()) {
                *field = thousandths(value);
            }
        }
    }

    /// `xds.data.orca.v3.OrcaLoadReport` in base64. What is malformed counts up to there.
    fn read_binary(&mut self, text: &[u8]) {
        let Some(message) = base64::decode(text.get(..LONGEST.min(text.len())).unwrap_or_default())
        else {
            return;
        };
        let _ = fields(&message, |number, value| match (number, value) {
            (1, Value::Eight(bytes)) => self.cpu = of_float(f64::from_le_bytes(bytes)),
            (9, Value::Eight(bytes)) => self.application = of_float(f64::from_le_bytes(bytes)),
            (8, Value::Bytes(entry)) => {
                let (mut chosen, mut used) = (false, None);
                let _ = fields(entry, |number, value| match (number, value) {
                    (1, Value::Bytes(name)) => chosen = self.is_named(name),
                    (2, Value::Eight(bytes)) => used = of_float(f64::from_le_bytes(bytes)),
                    _ => {}
                });
                if chosen {
                    self.named = used;
                }
            }
            _ => {}
        });
    }
}

/// A utilisation in thousandths, rounded down, at most [`FULL`]; `None` if it is no number, or
/// negative.
fn thousandths(value: &Json) -> Option<u32> {
    let Json::Number(number) = value else {
        return None;
    };
    of_float(number.as_f64()?)
}

fn of_float(utilization: f64) -> Option<u32> {
    // No number is neither.
    let utilization = Some(utilization).filter(|utilization| *utilization >= 0.0)?;
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
            ("BIN CZqZmZmZmbk/", Some(100)),
            ("", None),
        ] {
            assert_eq!(parse(report.as_bytes(), None), want, "{report}");
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

    /// As a server writes it: fields of doubles, and named metrics.
    fn message(doubles: &[(u8, f64)], named: &[(&str, f64)]) -> Vec<u8> {
        let mut bytes = vec![0x18, 7];
        for (number, value) in doubles {
            bytes.push(number << 3 | 1);
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        for (name, value) in named {
            let mut entry = vec![10, name.len() as u8];
            entry.extend_from_slice(name.as_bytes());
            entry.push(2 << 3 | 1);
            entry.extend_from_slice(&value.to_le_bytes());
            bytes.extend_from_slice(&[8 << 3 | 2, entry.len() as u8]);
            bytes.extend_from_slice(&entry);
        }
        bytes
    }

    fn in_base64(bytes: &[u8], padded: bool) -> Vec<u8> {
        let text = base64::encode(bytes);
        let bare = text.trim_end_matches('=');
        if padded { &text } else { bare }.into()
    }

    #[test]
    fn a_message_in_base64_is_a_report_too() {
        for (doubles, named, metric, want) in [
            (&[(1, 0.25)][..], &[][..], None, Some(250)),
            (&[(1, 0.25), (9, 0.5)], &[], None, Some(500)),
            (&[(1, 0.25), (9, 0.0)], &[], None, Some(250)),
            (
                &[(1, 0.25)],
                &[("queue", 0.75), ("other", 0.1)],
                Some("queue"),
                Some(750),
            ),
            (&[(1, 0.25)], &[("queue", 0.75)], Some("none"), Some(250)),
            (&[(1, 0.25)], &[("queue", 0.75)], None, Some(250)),
            (&[(1, -1.0)], &[], None, None),
            (&[(1, f64::NAN)], &[], None, None),
            (&[(1, 7.0)], &[], None, Some(1_000)),
            (&[(2, 0.5)], &[], None, None),
        ] {
            for padded in [true, false] {
                let text = in_base64(&message(doubles, named), padded);
                assert_eq!(parse_binary(&text, metric), want, "{doubles:?} {named:?}");
                assert_eq!(parse(&[b"BIN ", &text[..]].concat(), metric), want);
            }
        }
        for nonsense in [&b""[..], b"=", b"!", b"A", b"CQ"] {
            assert_eq!(parse_binary(nonsense, None), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_named_metric_counts_first_where_it_is_chosen() {
        for report in [
            "TEXT cpu_utilization=0.2,named_metrics.queue=0.6",
            "JSON {\"cpu_utilization\": 0.2, \"named_metrics\": {\"x\": 1, \"queue\": 0.6}}",
        ] {
            assert_eq!(
                parse(report.as_bytes(), Some("queue")),
                Some(600),
                "{report}"
            );
            assert_eq!(parse(report.as_bytes(), Some("que")), Some(200), "{report}");
            assert_eq!(parse(report.as_bytes(), None), Some(200), "{report}");
        }
    }

    proptest! {
        #[test]
        fn any_report_is_taken_sanely(report: Vec<u8>, packed: u64, weight: u32, now: u64) {
            let _ = parse_binary(&report, Some("x"));
            if let Some(utilization) = parse(&report, Some("x")) {
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
            prop_assert_eq!(parse(report.as_bytes(), None), Some(thousandth), "{}", number);
        }
    }
}
