//! Numbers, times and sizes that carry their range in their type.

use crate::base::percent::Percent;
use crate::base::time::Nanos;
use crate::schema::decode::Decode;
use crate::schema::json::{Json, scaled};
use crate::schema::shape::Schema;
use crate::schema::units::{SIZES, TIMES, Units, parse_units};

impl Decode for bool {
    const SCHEMA: &'static Schema = &Schema::Bool;

    type Value = Self;

    fn decode(json: &Json) -> Self {
        *json == Json::Bool(true)
    }
}

/// An integer from `MIN` to `MAX`.
pub struct Int<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Decode for Int<MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::Int { min: MIN, max: MAX };

    type Value = u32;

    fn decode(json: &Json) -> Self::Value {
        number(json, 1)
    }
}

/// An integer from `MIN` to `MAX` that is kept in 8 bits.
pub struct Int8<const MIN: u8, const MAX: u8>;

impl<const MIN: u8, const MAX: u8> Decode for Int8<MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::Int {
        min: MIN as u32,
        max: MAX as u32,
    };

    type Value = u8;

    fn decode(json: &Json) -> Self::Value {
        u8::try_from(number(json, 1)).unwrap_or_default()
    }
}

/// An integer from `MIN` to `MAX` that is kept in 16 bits.
pub struct Int16<const MIN: u16, const MAX: u16>;

impl<const MIN: u16, const MAX: u16> Decode for Int16<MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::Int {
        min: MIN as u32,
        max: MAX as u32,
    };

    type Value = u16;

    fn decode(json: &Json) -> Self::Value {
        u16::try_from(number(json, 1)).unwrap_or_default()
    }
}

/// A number with at most two decimals, in hundredths as a percentage is: `Centi<1, 250>` is 0.01 to
/// 2.5.
pub struct Centi<const MIN: u32, const MAX: u32>;

/// A percentage.
pub type Pct = Centi<0, 10_000>;

/// A percentage that is not zero.
pub type SomePct = Centi<1, 10_000>;

impl<const MIN: u32, const MAX: u32> Decode for Centi<MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::Centi { min: MIN, max: MAX };

    type Value = Percent;

    fn decode(json: &Json) -> Self::Value {
        Percent(number(json, 100))
    }
}

/// A duration from `MIN` to `MAX` nanoseconds.
pub struct Span<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Decode for Span<MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::Span { min: MIN, max: MAX };

    type Value = Nanos;

    fn decode(json: &Json) -> Self::Value {
        Nanos(amount(json, TIMES))
    }
}

/// A size from `MIN` to `MAX` bytes.
pub struct Size<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Decode for Size<MIN, MAX> {
    const SCHEMA: &'static Schema = &Schema::Size { min: MIN, max: MAX };

    type Value = usize;

    fn decode(json: &Json) -> Self::Value {
        usize::try_from(amount(json, SIZES)).unwrap_or(usize::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::units::{DAY, HOUR, MIN, MS, SEC};

    fn taken<T: Decode>(json: &Json) -> Option<T::Value> {
        T::SCHEMA.canon(json).map(|_| T::decode(json))
    }

    fn number_of<T: Decode>(text: &str) -> Option<T::Value> {
        taken::<T>(&Json::Number(serde_json::from_str(text).unwrap()))
    }

    fn string_of<T: Decode>(text: &str) -> Option<T::Value> {
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
        assert_eq!(Port::SCHEMA.want(), "an integer from 1 to 65535");
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
            <Centi<1, 250>>::SCHEMA.want(),
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
        assert_eq!(Body::SCHEMA.want(), "a size from 1B to 1MiB like \"64KiB\"");
    }
}
