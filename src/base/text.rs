//! Text without the standard formatter: it is large in wasm, and slow on the request path.

/// Adds `number` in decimal.
pub fn push_number(text: &mut String, number: u64) {
    // Digits come out last first; 20 are the most that a u64 has.
    let mut digits = [0u8; 20];
    let mut rest = number;
    let mut used = 0usize;
    for digit in digits.iter_mut().rev() {
        *digit = b'0'.wrapping_add(u8::try_from(rest % 10).unwrap_or(0));
        rest /= 10;
        used = used.saturating_add(1);
        if rest == 0 {
            break;
        }
    }
    let digits = digits
        .get(digits.len().saturating_sub(used)..)
        .unwrap_or_default();
    text.push_str(std::str::from_utf8(digits).unwrap_or_default());
}

/// `number` in decimal.
#[must_use]
pub fn number(number: u64) -> String {
    let mut text = String::with_capacity(20);
    push_number(&mut text, number);
    text
}

/// Adds several pieces.
pub fn push_all(text: &mut String, pieces: &[&str]) {
    text.reserve(pieces.iter().map(|piece| piece.len()).sum());
    pieces.iter().for_each(|piece| text.push_str(piece));
}

/// What stands before and after the first `mark`; the standard search for text in text is 5 KB of
/// wasm, to be fast where it does not matter here.
#[must_use]
pub fn split_once<'t>(text: &'t str, mark: &str) -> Option<(&'t str, &'t str)> {
    text.char_indices().find_map(|(at, _)| {
        let (before, rest) = text.split_at_checked(at)?;
        Some((before, rest.strip_prefix(mark)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_is_split_as_the_standard_library_does(text in "[ab{é}]{0,12}", mark in "[ab{é}]{1,2}") {
            prop_assert_eq!(split_once(&text, &mark), text.split_once(&*mark));
        }
    }

    #[test]
    fn numbers_are_those_of_the_standard_formatter() {
        for n in [
            0,
            1,
            9,
            10,
            99,
            100,
            12_345,
            u64::from(u32::MAX),
            u64::MAX - 1,
            u64::MAX,
        ] {
            assert_eq!(number(n), n.to_string());
        }
    }
}
