//! The `grpc-timeout` header (gRPC over HTTP/2): at most eight digits and a unit.

use crate::base::headers::parse_number;
use crate::base::text::push_number;
use crate::base::time::Nanos;

/// The most digits that the protocol allows.
const DIGITS: usize = 8;

/// The largest number of that many digits.
const MOST: u64 = 99_999_999;

/// The time in the header; `None` if it is malformed.
#[must_use]
pub fn decode(value: &[u8]) -> Option<Nanos> {
    let (unit, digits) = value.split_last()?;
    let factor = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return None,
    };
    // Eight digits of hours fit into the u64: 3.6e20 ns do not, and are the end of time.
    let number = parse_number(digits).filter(|_| digits.len() <= DIGITS)?;
    Some(Nanos(factor).times(number))
}

/// The header's value for `millis`: the finest unit in which eight digits are enough, rounded down.
#[must_use]
pub fn encode(millis: u64) -> String {
    let units = [(1, 'm'), (1_000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let in_unit = |factor: u64| millis.checked_div(factor).unwrap_or(0);
    let (number, unit) = units
        .iter()
        .map(|(factor, unit)| (in_unit(*factor), *unit))
        .find(|(number, _)| *number <= MOST)
        .unwrap_or((MOST, 'H'));
    let mut text = String::with_capacity(9);
    push_number(&mut text, number);
    text.push(unit);
    text
}
