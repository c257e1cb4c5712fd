//! Times and sizes as users write them: numbers with a unit.

use crate::base::time::Nanos;

/// A millisecond, in nanoseconds.
pub const MS: u64 = 1_000_000;
/// A second, in nanoseconds.
pub const SEC: u64 = 1_000 * MS;
/// A minute, in nanoseconds.
pub const MIN: u64 = 60 * SEC;
/// An hour, in nanoseconds.
pub const HOUR: u64 = 60 * MIN;
/// A day, in nanoseconds.
pub const DAY: u64 = 24 * HOUR;

/// A duration as a user would write it.
#[must_use]
pub fn show_span(span: Nanos) -> String {
    show_units(span.0, TIMES)
}

/// A size as a user would write it.
#[must_use]
pub fn show_size(bytes: usize) -> String {
    show_units(u64::try_from(bytes).unwrap_or(u64::MAX), SIZES)
}

/// Units with their factors, the largest first.
pub type Units = &'static [(&'static str, u64)];

/// Units of time, in nanoseconds.
pub const TIMES: Units = &[
    ("d", DAY),
    ("h", HOUR),
    ("m", MIN),
    ("s", SEC),
    ("ms", MS),
    ("us", 1_000),
    ("ns", 1),
];
/// Units of size, in bytes.
pub const SIZES: Units = &[("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads an exact number of the smallest unit: "1.5s" is 1,500,000,000 ns, "0.5ns" is nothing.
#[must_use]
pub fn parse_units(text: &str, units: Units) -> Option<u64> {
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
#[must_use]
pub fn show_units(value: u64, units: Units) -> String {
    let unit = units
        .iter()
        .find(|(_, factor)| value.checked_rem(*factor) == Some(0) && value >= *factor);
    let (name, factor) = unit.or(units.last()).copied().unwrap_or(("", 1));
    format!("{}{name}", value.checked_div(factor).unwrap_or_default())
}

/// A number of hundredths as a decimal.
#[must_use]
pub fn hundredths(value: u32) -> String {
    match (value / 100, value % 100) {
        (whole, 0) => whole.to_string(),
        (whole, part) => format!("{whole}.{part:02}").trim_end_matches('0').into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
