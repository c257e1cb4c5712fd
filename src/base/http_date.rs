//! Moments as HTTP writes them (RFC 9110, 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.

use super::text::split_once;
use super::time::UnixTime;

const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

/// The moment that a date names; `None` if it is none, or before 1970. The two obsolete forms,
/// which no server has written for decades, are none.
#[must_use]
pub fn parse(text: &[u8]) -> Option<UnixTime> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let (_, rest) = split_once(text, ", ")?;
    let number = |from: usize, to: usize| {
        let digits = rest.get(from..to)?;
        let all = digits.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| digits.parse::<u16>().ok())?
    };
    let bytes = rest.as_bytes();
    let is = |at: usize, wanted: u8| bytes.get(at) == Some(&wanted);
    if rest.len() != 24 || !rest.ends_with(" GMT") || !(is(14, b':') && is(17, b':')) {
        return None;
    }
    let name = rest.get(3..6)?;
    let month = MONTHS.chunks(3).position(|it| it == name.as_bytes())?;
    let month = time::Month::try_from(u8::try_from(month).ok()?.checked_add(1)?).ok()?;
    let day = u8::try_from(number(0, 2)?).ok()?;
    let date = time::Date::from_calendar_date(number(7, 11)?.into(), month, day).ok()?;
    let (hour, minute, second) = (number(12, 14)?, number(15, 17)?, number(18, 20)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = i64::from(date.to_julian_day())
        .checked_sub(i64::from(time::OffsetDateTime::UNIX_EPOCH.to_julian_day()))?;
    let minutes = u64::from(hour)
        .saturating_mul(60)
        .saturating_add(minute.into());
    let of_day = minutes.saturating_mul(60).saturating_add(second.into());
    let seconds = u64::try_from(days).ok()?.checked_mul(86_400)?;
    Some(UnixTime::from_secs(seconds.checked_add(of_day)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_are_read_and_what_is_none_is_not() {
        for (text, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Wed, 21 Oct 2115 07:28:00 GMT", Some(4_601_086_080)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun Nov  6 08:49:37 1994", None),
            ("Sun, 31 Feb 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1960 08:49:37 GMT", None),
            ("0", None),
            ("", None),
        ] {
            assert_eq!(
                parse(text.as_bytes()).map(UnixTime::as_secs),
                seconds,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn anything_is_taken_sanely(text: Vec<u8>, day: u8, year: u16) {
            let _ = parse(&text);
            let _ = parse(format!("Sun, {day:02} Nov {year:04} 08:49:37 GMT").as_bytes());
        }
    }
}
