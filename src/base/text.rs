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

/// Adds bytes as a URL's query or a piece of its path has them (RFC 3986): all but the unreserved
/// ones percent-encoded.
pub fn push_encoded(text: &mut String, bytes: &[u8]) {
    let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            text.push(digit(byte >> 4).to_ascii_uppercase());
            text.push(digit(byte & 15).to_ascii_uppercase());
        }
    }
}

/// Adds a text as JSON has it, in quotes.
pub fn push_json(text: &mut String, value: &str) {
    text.push('"');
    for char in value.chars() {
        match char {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            char if char < ' ' => {
                let code = u32::from(char);
                text.push_str("\\u00");
                text.push(char::from_digit(code >> 4, 16).unwrap_or('0'));
                text.push(char::from_digit(code & 15, 16).unwrap_or('0'));
            }
            char => text.push(char),
        }
    }
    text.push('"');
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

    proptest! {
        #[test]
        fn json_is_read_back(text in "\\PC{0,20}|[\\x00-\\x7f]{0,20}") {
            let mut json = String::new();
            push_json(&mut json, &text);
            let read: String = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read, text);
        }
    }

    #[test]
    fn what_a_url_would_misread_is_encoded() {
        let mut text = String::new();
        push_encoded(&mut text, "a-Z_0.~^$\\|/?&=é ".as_bytes());
        assert_eq!(text, "a-Z_0.~%5E%24%5C%7C%2F%3F%26%3D%C3%A9%20");
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
