//! Moments as RFC 3339 writes them, both ways. The calendar is that of the `time` crate; its own
//! parser and formatter would add 6 KB to the filter.

use super::time::{Nanos, UnixTime};

/// A moment as text with seconds, in UTC. A moment after the year 9999 is written as the epoch.
#[must_use]
pub fn format(wall: UnixTime) -> String {
    let seconds = i64::try_from(wall.as_secs()).unwrap_or(0);
    let at = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second) = at.to_hms();
    format!(
        "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day()
    )
}

/// The moment that a text names; `None` if it is not RFC 3339, or before 1970. A leap second counts
/// as the second that follows.
#[must_use]
pub fn parse(text: &str) -> Option<UnixTime> {
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse::<u32>().ok())?
    };
    let small = |from, to| number(from, to).and_then(|n| u8::try_from(n).ok());
    let is = |at: usize, wanted: &[u8]| {
        text.as_bytes()
            .get(at)
            .is_some_and(|byte| wanted.contains(byte))
    };
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
        let used = fraction
            .get(..digits.min(9))
            .filter(|used| !used.is_empty())?;
        let scale = 10u64.checked_pow(9u32.saturating_sub(u32::try_from(used.len()).ok()?))?;
        nanos = used.parse::<u64>().ok()?.checked_mul(scale)?;
        rest = fraction.get(digits..)?;
    }
    // Minutes east of Greenwich.
    let zone = match rest.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let digit = |byte: &u8| {
                byte.is_ascii_digit()
                    .then(|| i64::from(byte.saturating_sub(b'0')))
            };
            let two = |high, low| Some(digit(high)?.saturating_mul(10).saturating_add(digit(low)?));
            let (hours, minutes) = (two(h1, h2)?, two(m1, m2)?);
            let east = hours.saturating_mul(60).saturating_add(minutes);
            if *sign == b'-' {
                east.saturating_neg()
            } else {
                east
            }
        }
        _ => return None,
    };
    let days = i64::from(date.to_julian_day())
        .saturating_sub(i64::from(time::OffsetDateTime::UNIX_EPOCH.to_julian_day()));
    let minutes = days
        .saturating_mul(1_440)
        .saturating_add(i64::from(hour).saturating_mul(60))
        .saturating_add(i64::from(minute))
        .saturating_sub(zone);
    let seconds = minutes.saturating_mul(60).saturating_add(second.into());
    Some(UnixTime::from_secs(u64::try_from(seconds).ok()?).plus(Nanos(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timestamps_far_off_do_no_harm() {
        assert_eq!(format(UnixTime::MAX), "2554-07-21T23:34:33Z");
        assert_eq!(format(UnixTime::EPOCH), "1970-01-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0..u64::MAX / 1_000_000_000) {
            let moment = UnixTime::from_secs(seconds);
            prop_assert_eq!(parse(&format(moment)), Some(moment));
        }
    }
}
