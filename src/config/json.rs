//! JSON as a tree that forgets nothing: duplicate keys stay, numbers keep their text.
//!
//! Both are needed for honest messages, and a general parser gives away both. Numbers as text also keep floats, and what formatting them
//! costs in the wasm, out of the filter.

use std::fmt::Write as _;

/// Deeper documents are refused: the reader recurses, and a worker's stack is small.
const MAX_DEPTH: u32 = 128;

/// The most characters of a value that a message shows.
const SHOWN: usize = 64;

/// The key of secrets, and what is shown in their place.
pub(super) const SECRET: &str = "token";
pub(super) const HIDDEN: &str = "\"***\"";

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As written in the document; [`scaled`] gives its value.
    Number(String),
    String(String),
    Array(Vec<Json>),
    /// In the document's order, duplicates included.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value of a key, if this is an object that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value as a message shows it: JSON on one line, shortened.
    pub(crate) fn show(&self) -> String {
        let mut out = Shown { text: String::new(), chars: 0 };
        out.value(self);
        out.end()
    }
}

/// `text` as a message shows it: a JSON string on one line, shortened.
pub(crate) fn show_text(text: &str) -> String {
    let mut out = Shown { text: String::new(), chars: 0 };
    out.string(text);
    out.end()
}

/// What is wrong with a document that is not JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Malformed {
    /// Byte where the reader stopped.
    pub(crate) offset: usize,
    /// What may stand there.
    pub(crate) want: &'static str,
}

/// Reads one JSON document (RFC 8259).
pub(crate) fn parse(text: &str) -> Result<Json, Malformed> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(MAX_DEPTH)?;
    parser.space();
    match parser.peek() {
        None => Ok(value),
        Some(_) => parser.want("the end of the document"),
    }
}

/// The value of a JSON number times 10^`places`, if that is an integer that fits: `scaled("2.5", 2)` is 250, `scaled("1e3", 0)` is 1000.
pub(crate) fn scaled(number: &str, places: u8) -> Option<i64> {
    let (negative, rest) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let digits = all.trim_end_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    let zeros = all.len().saturating_sub(digits.len());
    let exponent = exponent.parse::<i64>().ok()?;
    let shift = exponent
        .checked_add(i64::from(places))?
        .checked_add(i64::try_from(zeros).ok()?)?
        .checked_sub(i64::try_from(fraction.len()).ok()?)?;
    // A negative shift would leave digits behind the point.
    let factor = 10_i64.checked_pow(u32::try_from(shift).ok()?)?;
    let value = digits.parse::<i64>().ok()?.checked_mul(factor)?;
    if negative { value.checked_neg() } else { Some(value) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn value(&mut self, depth: u32) -> Result<Json, Malformed> {
        self.space();
        match self.peek() {
            Some(b'{') => self.object(self.deeper(depth)?),
            Some(b'[') => self.array(self.deeper(depth)?),
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            _ => self.want("a value"),
        }
    }

    fn deeper(&self, depth: u32) -> Result<u32, Malformed> {
        match depth.checked_sub(1) {
            Some(depth) => Ok(depth),
            None => self.want("at most 128 levels"),
        }
    }

    fn object(&mut self, depth: u32) -> Result<Json, Malformed> {
        let mut entries = Vec::new();
        self.skip();
        self.space();
        if self.take(b'}') {
            return Ok(Json::Object(entries));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return self.want("a key in double quotes");
            }
            let key = self.string()?;
            self.space();
            if !self.take(b':') {
                return self.want("\":\"");
            }
            entries.push((key, self.value(depth)?));
            self.space();
            if self.take(b'}') {
                return Ok(Json::Object(entries));
            }
            if !self.take(b',') {
                return self.want("\",\" or \"}\"");
            }
        }
    }

    fn array(&mut self, depth: u32) -> Result<Json, Malformed> {
        let mut items = Vec::new();
        self.skip();
        self.space();
        if self.take(b']') {
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value(depth)?);
            self.space();
            if self.take(b']') {
                return Ok(Json::Array(items));
            }
            if !self.take(b',') {
                return self.want("\",\" or \"]\"");
            }
        }
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let mut out = String::new();
        self.skip();
        loop {
            let start = self.at;
            while self.peek().is_some_and(|byte| byte != b'"' && byte != b'\\' && byte >= b' ') {
                self.skip();
            }
            out.push_str(self.text.get(start..self.at).unwrap_or_default());
            match self.peek() {
                Some(b'"') => {
                    self.skip();
                    return Ok(out);
                }
                Some(b'\\') => out.push(self.escape()?),
                _ => return self.want("a closing double quote"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Malformed> {
        self.skip();
        let char = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return self.want("an escape of JSON"),
        };
        self.skip();
        Ok(char)
    }

    fn unicode(&mut self) -> Result<char, Malformed> {
        let high = self.four_digits()?;
        let code = if (0xD800..0xDC00).contains(&high) {
            if !self.take(b'\\') || self.peek() != Some(b'u') {
                return self.want("the second half of a surrogate pair");
            }
            let low = self.four_digits()?;
            if !(0xDC00..0xE000).contains(&low) {
                return self.want("the second half of a surrogate pair");
            }
            0x1_0000_u32.saturating_add(((high & 0x3FF) << 10) | (low & 0x3FF))
        } else {
            high
        };
        match char::from_u32(code) {
            Some(char) => Ok(char),
            None => self.want("a code point"),
        }
    }

    /// The digits of `\uXXXX`; stands on the `u`.
    fn four_digits(&mut self) -> Result<u32, Malformed> {
        self.skip();
        let mut code = 0_u32;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16)) else {
                return self.want("four hexadecimal digits");
            };
            code = (code << 4) | digit;
            self.skip();
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<Json, Malformed> {
        let start = self.at;
        self.take(b'-');
        // A leading zero stands alone: what follows it is then not part of the number.
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            if !self.take(b'+') {
                self.take(b'-');
            }
            self.digits()?;
        }
        Ok(Json::Number(self.text.get(start..self.at).unwrap_or_default().into()))
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return self.want("a digit");
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.skip();
        }
        Ok(())
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json, Malformed> {
        for byte in word.bytes() {
            if !self.take(byte) {
                return self.want("a value");
            }
        }
        Ok(value)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.skip();
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.skip();
        }
        found
    }

    fn want<T>(&self, want: &'static str) -> Result<T, Malformed> {
        Err(Malformed { offset: self.at, want })
    }
}

/// Writes until a little more than a message shows, so that a huge value costs no more than a small one.
struct Shown {
    text: String,
    chars: usize,
}

impl Shown {
    fn value(&mut self, json: &Json) {
        match json {
            Json::Null => self.plain("null"),
            Json::Bool(true) => self.plain("true"),
            Json::Bool(false) => self.plain("false"),
            Json::Number(text) => self.plain(text),
            Json::String(text) => self.string(text),
            Json::Array(items) => {
                self.plain("[");
                for (i, item) in items.iter().enumerate() {
                    if self.full() {
                        return;
                    }
                    self.plain(if i == 0 { "" } else { "," });
                    self.value(item);
                }
                self.plain("]");
            }
            Json::Object(entries) => {
                self.plain("{");
                for (i, (key, value)) in entries.iter().enumerate() {
                    if self.full() {
                        return;
                    }
                    self.plain(if i == 0 { "" } else { "," });
                    self.string(key);
                    self.plain(":");
                    if key == SECRET {
                        self.plain(HIDDEN);
                    } else {
                        self.value(value);
                    }
                }
                self.plain("}");
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.plain("\"");
        for char in text.chars() {
            match char {
                '"' => self.plain("\\\""),
                '\\' => self.plain("\\\\"),
                '\n' => self.plain("\\n"),
                '\r' => self.plain("\\r"),
                '\t' => self.plain("\\t"),
                // What could forge or break a line of the log; all of these are in the first plane.
                '\u{2028}' | '\u{2029}' => self.code(char),
                char if char.is_control() => self.code(char),
                char => self.push(char),
            }
            if self.full() {
                return;
            }
        }
        self.plain("\"");
    }

    fn code(&mut self, char: char) {
        let mut code = String::new();
        // Writing to a String cannot fail.
        let _ = write!(code, "\\u{:04x}", u32::from(char));
        self.plain(&code);
    }

    fn plain(&mut self, text: &str) {
        for char in text.chars() {
            self.push(char);
        }
    }

    fn push(&mut self, char: char) {
        if !self.full() {
            self.text.push(char);
            self.chars = self.chars.saturating_add(1);
        }
    }

    fn full(&self) -> bool {
        self.chars > SHOWN
    }

    fn end(mut self) -> String {
        if self.full() {
            let keep = self.text.char_indices().nth(SHOWN.saturating_sub(3)).map_or(0, |(at, _)| at);
            self.text.truncate(keep);
            self.text.push_str("...");
        }
        self.text
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(entries: &[(&str, Json)]) -> Json {
        Json::Object(entries.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
    }

    #[test]
    fn keeps_duplicates_order_and_the_text_of_numbers() {
        let json = parse(r#" {"b": 1e400, "a": [true, null, -0], "b": 18446744073709551616} "#).unwrap();
        assert_eq!(
            json,
            object(&[
                ("b", Json::Number("1e400".into())),
                ("a", Json::Array(vec![Json::Bool(true), Json::Null, Json::Number("-0".into())])),
                ("b", Json::Number("18446744073709551616".into())),
            ])
        );
    }

    #[test]
    fn names_the_place_of_an_error() {
        for (text, offset, want) in [
            ("", 0, "a value"),
            ("{", 1, "a key in double quotes"),
            ("{\"a\" 1}", 5, "\":\""),
            ("{\"a\":1,}", 7, "a key in double quotes"),
            ("[1 2]", 3, "\",\" or \"]\""),
            ("[1,]", 3, "a value"),
            ("01", 1, "the end of the document"),
            ("1.", 2, "a digit"),
            ("-", 1, "a digit"),
            ("1e+", 3, "a digit"),
            ("nul", 3, "a value"),
            ("\"a\nb\"", 2, "a closing double quote"),
            ("\"\\x\"", 2, "an escape of JSON"),
            ("\"\\u12\"", 5, "four hexadecimal digits"),
            ("\"\\ud800\"", 7, "the second half of a surrogate pair"),
            ("\"\\udc00\"", 7, "a code point"),
            ("{} {}", 3, "the end of the document"),
        ] {
            assert_eq!(parse(text), Err(Malformed { offset, want }), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(&nested(128)).is_ok());
        assert_eq!(parse(&nested(129)), Err(Malformed { offset: 128, want: "at most 128 levels" }));
        assert!(parse(&"[{\"a\":".repeat(100_000)).is_err());
    }

    #[test]
    fn numbers_scale_exactly_or_not_at_all() {
        for (number, places, want) in [
            ("0", 0, Some(0)),
            ("-0", 0, Some(0)),
            ("-0.0e99999999999999999999", 0, Some(0)),
            ("12", 0, Some(12)),
            ("-12", 0, Some(-12)),
            ("1e3", 0, Some(1000)),
            ("1.0", 0, Some(1)),
            ("100e-2", 0, Some(1)),
            ("1.5", 0, None),
            ("99.99", 2, Some(9999)),
            ("99.999", 2, None),
            ("0.1", 2, Some(10)),
            ("1e400", 0, None),
            ("1e99999999999999999999", 0, None),
            ("9223372036854775807", 0, Some(i64::MAX)),
            ("9223372036854775808", 0, None),
            ("18446744073709551616", 0, None),
            ("1.00000000000000000000000000000000000000", 0, Some(1)),
        ] {
            assert_eq!(scaled(number, places), want, "{number}");
        }
    }

    #[test]
    fn values_are_shown_short_and_on_one_line() {
        let show = |text: &str| parse(text).unwrap().show();
        assert_eq!(show(r#"{"a": [1, "x\n\u0001\u2028é"], "b": {}}"#), r#"{"a":[1,"x\n\u0001\u2028é"],"b":{}}"#);
        let long = show(&format!("\"{}\"", "é".repeat(100)));
        assert_eq!(long.chars().count(), 64);
        assert!(long.ends_with("é..."));
        assert_eq!(show(r#"{"token": "geheim"}"#), r#"{"token":"***"}"#);
        let exact = show(&format!("\"{}\"", "x".repeat(62)));
        assert_eq!(exact.len(), 64);
        assert!(exact.ends_with("x\""));
    }

    fn same(ours: &Json, theirs: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (ours, theirs) {
            (Json::Null, Value::Null) => true,
            (Json::Bool(a), Value::Bool(b)) => a == b,
            (Json::Number(a), Value::Number(b)) => scaled(a, 0).map_or_else(
                || a.parse::<f64>().ok() == b.as_f64(),
                |a| b.as_i64() == Some(a) || b.as_f64() == Some(a as f64),
            ),
            (Json::String(a), Value::String(b)) => a == b,
            (Json::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
            // Of duplicates, serde_json keeps the last.
            (Json::Object(a), Value::Object(b)) => {
                b.iter().all(|(key, b)| a.iter().rev().find(|(name, _)| name == key).is_some_and(|(_, a)| same(a, b)))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in r#"([\[\]{}:, ]|"[a-c]"|"\\\\(u[dD8][8cC]00|u00e9|n|x)"|-|0|12|\.5|e3|E-1|true|null|é){0,12}"#) {
            match (parse(&text), serde_json::from_str::<serde_json::Value>(&text)) {
                (Ok(ours), Ok(theirs)) => prop_assert!(same(&ours, &theirs), "{ours:?} {theirs:?}"),
                (Err(_), Err(_)) => {}
                (ours, theirs) => prop_assert!(false, "{text}: {ours:?} {theirs:?}"),
            }
        }
    }
}
