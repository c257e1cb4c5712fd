//! Numbers, times and sizes that carry their range in their type.

use super::Percent;
use super::json::{Json, scaled};
use super::kind::Kind;
use super::take::Take;
use crate::base::time::Nanos;

pub(super) const MS: u64 = 1_000_000;
pub(super) const SEC: u64 = 1_000 * MS;
pub(super) const MIN: u64 = 60 * SEC;
pub(super) const HOUR: u64 = 60 * MIN;
pub(super) const DAY: u64 = 24 * HOUR;

impl Take for bool {
    const KIND: &'static Kind = &Kind::Bool;

    type Value = Self;

    fn take(json: &Json) -> Self {
        *json == Json::Bool(true)
    }
}

/// An integer from `MIN` to `MAX`.
pub(super) struct Int<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Take for Int<MIN, MAX> {
    const KIND: &'static Kind = &Kind::Int { min: MIN, max: MAX };

    type Value = u32;

    fn take(json: &Json) -> Self::Value {
        number(json, 1)
    }
}

/// A number with at most two decimals, in hundredths as a percentage is: `Centi<1, 250>` is 0.01 to
/// 2.5.
pub(super) struct Centi<const MIN: u32, const MAX: u32>;

/// A percentage.
pub(super) type Pct = Centi<0, 10_000>;

/// A percentage that is not zero.
pub(super) type SomePct = Centi<1, 10_000>;

impl<const MIN: u32, const MAX: u32> Take for Centi<MIN, MAX> {
    const KIND: &'static Kind = &Kind::Centi { min: MIN, max: MAX };

    type Value = Percent;

    fn take(json: &Json) -> Self::Value {
        Percent(number(json, 100))
    }
}

/// A duration from `MIN` to `MAX` nanoseconds.
pub(super) struct Span<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Take for Span<MIN, MAX> {
    const KIND: &'static Kind = &Kind::Span { min: MIN, max: MAX };

    type Value = Nanos;

    fn take(json: &Json) -> Self::Value {
        Nanos(amount(json, TIMES))
    }
}

/// A size from `MIN` to `MAX` bytes.
pub(super) struct Size<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Take for Size<MIN, MAX> {
    const KIND: &'static Kind = &Kind::Size { min: MIN, max: MAX };

    type Value = u64;

    fn take(json: &Json) -> Self::Value {
        amount(json, SIZES)
    }
}

fn number(json: &Json, factor: u32) -> u32 {
    match json {
        Json::Number(number) => scaled(number, factor).unwrap_or_default(),
        _ => 0,
    }
}

fn amount(json: &Json, units: Units) -> u64 {
    match json {
        Json::String(text) => parse_units(text, units).unwrap_or_default(),
        _ => 0,
    }
}

/// A duration as a user would write it.
pub(super) fn show_span(span: Nanos) -> String {
    show_units(span.0, TIMES)
}

/// A size as a user would write it.
pub(super) fn show_size(bytes: usize) -> String {
    show_units(u64::try_from(bytes).unwrap_or(u64::MAX), SIZES)
}

/// Units, the largest first.
pub(super) type Units = &'static [(&'static str, u64)];

pub(super) const TIMES: Units = &[
    ("d", DAY),
    ("h", HOUR),
    ("m", MIN),
    ("s", SEC),
    ("ms", MS),
    ("us", 1_000),
    ("ns", 1),
];
pub(super) const SIZES: Units = &[("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads an exact number of the smallest unit: "1.5s" is 1,500,000,000 ns, "0.5ns" is nothing.
pub(super) fn parse_units(text: &str, units: Units) -> Option<u64> {
    let end = text.find(|char: char| !char.is_ascii_digit() && char != '.')?;
    let (number, unit) = text.split_at_checked(end)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    let mut value = whole.parse::<u64>().ok()?.checked_mul(*factor)?;
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let places = u32::try_from(fraction.len()).ok()?;
        let part = fraction.parse::<u64>().ok()?.checked_mul(*factor)?;
        let divisor = 10_u64.checked_pow(places)?;
        if part.checked_rem(divisor)? != 0 {
            return None;
        }
        value = value.checked_add(part.checked_div(divisor)?)?;
    }
    Some(value)
}
/// In the largest unit of which it is a whole number.
pub(super) fn show_units(value: u64, units: Units) -> String {
    let unit = units
        .iter()
        .find(|(_, factor)| value.checked_rem(*factor) == Some(0) && value >= *factor);
    let (name, factor) = unit.or(units.last()).copied().unwrap_or(("", 1));
    format!("{}{name}", value.checked_div(factor).unwrap_or_default())
}

/// A number of hundredths as a decimal.
pub(super) fn hundredths(value: u32) -> String {
    match (value / 100, value % 100) {
        (whole, 0) => whole.to_string(),
        (whole, part) => format!("{whole}.{part:02}").trim_end_matches('0').into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken<T: Take>(json: &Json) -> Option<T::Value> {
        T::KIND.canon(json).map(|_| T::take(json))
    }

    fn number_of<T: Take>(text: &str) -> Option<T::Value> {
        taken::<T>(&Json::Number(serde_json::from_str(text).unwrap()))
    }

    fn string_of<T: Take>(text: &str) -> Option<T::Value> {
        taken::<T>(&Json::String(text.into()))
    }

    #[test]
    fn integers_have_bounds_and_no_fraction() {
        type Port = Int<1, 65_535>;
        for (text, want) in [
            ("0", None),
            ("1", Some(1)),
            ("65535", Some(65_535)),
            ("65536", None),
            ("-1", None),
            ("1.5", None),
            ("1e3", Some(1000)),
        ] {
            assert_eq!(number_of::<Port>(text), want, "{text}");
        }
        assert_eq!(string_of::<Port>("1"), None);
        assert_eq!(Port::KIND.want(), "an integer from 1 to 65535");
    }

    #[test]
    fn percentages_are_exact_hundredths() {
        for (text, want) in [
            ("0", Some(0)),
            ("0.01", Some(1)),
            ("12.5", Some(1250)),
            ("100", Some(10_000)),
            ("100.01", None),
            ("0.001", None),
        ] {
            assert_eq!(number_of::<Pct>(text).map(|n| n.0), want, "{text}");
        }
        assert_eq!(
            <Centi<1, 250>>::KIND.want(),
            "a number from 0.01 to 2.5 with at most two decimals"
        );
    }

    #[test]
    fn durations_have_units() {
        type Any = Span<0, { 366 * DAY }>;
        for (text, want) in [
            ("250ms", Some(250 * MS)),
            ("10s", Some(10 * SEC)),
            ("1.5s", Some(1500 * MS)),
            ("5m", Some(5 * MIN)),
            ("1h", Some(HOUR)),
            ("366d", Some(366 * DAY)),
            ("7ns", Some(7)),
            ("7us", Some(7000)),
            ("0s", Some(0)),
            ("00.50s", Some(500 * MS)),
            ("367d", None),
            ("99999999999999999999s", None),
            ("0.5ns", None),
            ("1.s", None),
            (".5s", None),
            ("1.2.3s", None),
            ("-1s", None),
            ("+1s", None),
            ("1e3s", None),
            ("10", None),
            ("s", None),
            ("", None),
            ("10 s", None),
            ("10S", None),
            ("１s", None),
        ] {
            assert_eq!(string_of::<Any>(text).map(|span| span.0), want, "{text}");
        }
        assert_eq!(number_of::<Any>("10"), None);
    }

    #[test]
    fn sizes_have_units() {
        type Body = Size<1, { 1 << 20 }>;
        for (text, want) in [
            ("64KiB", Some(65_536)),
            ("1MiB", Some(1 << 20)),
            ("7B", Some(7)),
            ("0B", None),
            ("2MiB", None),
            ("64KB", None),
            ("64", None),
        ] {
            assert_eq!(string_of::<Body>(text), want, "{text}");
        }
        assert_eq!(Body::KIND.want(), "a size from 1B to 1MiB like \"64KiB\"");
    }

    #[test]
    fn durations_show_as_they_are_written() {
        for (n, want) in [
            (MS, "1ms"),
            (1500 * MS, "1500ms"),
            (MIN, "1m"),
            (366 * DAY, "366d"),
            (0, "0ns"),
            (1, "1ns"),
        ] {
            assert_eq!(show_span(Nanos(n)), want);
        }
    }
}
