//! What is wrong with a document: every error, each on one line with its path.

use std::fmt;

use crate::schema::json::{HIDDEN, Json, is_secret, show_text};

/// The most errors that are listed; a document that is wrong throughout is not repeated into the
/// log.
const LISTED: usize = 64;

/// The most characters of a path that are shown; keys may be as long as the document.
const PATH_SHOWN: usize = 256;

/// One error of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where: `routes[0].match.prefix`.
    pub path: String,
    /// What, and what is allowed instead.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        f.write_str(": ")?;
        f.write_str(&self.message)
    }
}

/// All errors of a document, in the order of its sections; displayed as one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors {
    list: Vec<ConfigError>,
    more: usize,
}

impl ConfigErrors {
    /// The errors that are listed: at most 64.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.list.iter()
    }

    /// How many errors were found, listed or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.len().saturating_add(self.more)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The place of a value, built while the reader descends and written out only for an error.
#[derive(Clone, Copy, Debug)]
pub enum Path<'a> {
    /// The document.
    Root,
    /// The value of a key.
    Key(&'a Path<'a>, &'a str),
    /// An item of a list.
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    /// The value of a key here.
    #[must_use]
    pub fn key<'a>(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    /// An item of the list here.
    #[must_use]
    pub fn index(&self, index: usize) -> Path<'_> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Key(parent, key) => {
                parent.fmt(f)?;
                // A name may hold dots; unquoted they would read as a path.
                if key.is_empty()
                    || key
                        .bytes()
                        .any(|byte| !byte.is_ascii_alphanumeric() && !b"_-:/".contains(&byte))
                {
                    f.write_str("[")?;
                    f.write_str(&show_text(key))?;
                    return f.write_str("]");
                }
                if !matches!(parent, Self::Root) {
                    f.write_str(".")?;
                }
                f.write_str(key)
            }
        }
    }
}

/// Collects errors while a document is read.
#[derive(Debug, Default)]
pub struct Errors {
    found: ConfigErrors,
    /// Paths of the listed errors but those that only say "not supported yet": their values are
    /// sound.
    unsound: Vec<String>,
}

impl Errors {
    /// What was read, or the document's errors if it has any.
    pub(crate) fn end<T>(self, read: Option<T>) -> Result<T, ConfigErrors> {
        match read {
            Some(read) if self.found.list.is_empty() => Ok(read),
            _ => Err(self.found),
        }
    }

    /// How many errors were found so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.found.count()
    }

    /// How many values have been refused, not counting those that are only not supported yet.
    #[must_use]
    pub fn unsound(&self) -> usize {
        self.unsound.len().saturating_add(self.found.more)
    }

    /// `value` is not `want`.
    pub fn refuse(&mut self, at: &Path<'_>, value: &Json, want: &str) {
        self.refuse_shown(at, &shown(at, value), want);
    }

    /// The string `value` is not `want`.
    pub fn refuse_text(&mut self, at: &Path<'_>, value: &str, want: &str) {
        self.refuse_shown(at, &show_text(value), want);
    }

    /// The number `value` is not `want`.
    pub fn refuse_number(&mut self, at: &Path<'_>, value: u64, want: &str) {
        self.refuse_shown(at, &value.to_string(), want);
    }

    /// The value that shows as `shown` is not `want`.
    pub fn refuse_shown(&mut self, at: &Path<'_>, shown: &str, want: &str) {
        self.list(at, true, &[shown, " is not allowed, want ", want]);
    }

    /// A required value is not there.
    pub fn missing(&mut self, at: &Path<'_>, want: &str) {
        self.list(
            at,
            true,
            &["nothing is not allowed, want ", want, " (required)"],
        );
    }

    /// A field that does not exist, and those that do.
    pub(crate) fn unknown(&mut self, at: &Path<'_>, value: &Json, fields: &str) {
        self.list(
            at,
            true,
            &[
                "unknown field, value ",
                &shown(at, value),
                " is not allowed, want ",
                fields,
            ],
        );
    }

    /// A valid value that the filter cannot act on yet; `hint` follows the fixed words.
    pub(crate) fn unsupported(&mut self, at: &Path<'_>, value: &Json, hint: &str) {
        self.list(
            at,
            false,
            &[&shown(at, value), " is not supported yet", hint],
        );
    }

    /// The document as a whole cannot be read.
    pub(crate) fn document(&mut self, message: String) {
        self.found.list.push(ConfigError {
            path: "the document".into(),
            message,
        });
    }

    /// `document` is not JSON.
    pub(crate) fn malformed(&mut self, document: &[u8], error: &serde_json::Error) {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let what = text.strip_suffix(&place).unwrap_or(&text);
        // The reader counts bytes; editors count characters.
        let line = document
            .split(|byte| *byte == b'\n')
            .nth(error.line().saturating_sub(1))
            .unwrap_or_default();
        let column = line
            .iter()
            .take(error.column())
            .filter(|byte| **byte & 0xC0 != 0x80)
            .count()
            .max(1);
        self.found.list.push(ConfigError {
            path: format!("line {}, column {column}", error.line()),
            message: ["the document is not JSON: ", what].concat(),
        });
    }

    /// Whether anything at or below `at` has been refused: what depends on it is then not judged,
    /// it could only mislead.
    #[must_use]
    pub fn touches(&self, at: &Path<'_>) -> bool {
        // Of errors that are not listed, the path is not known.
        if self.unsound.is_empty() || self.found.more > 0 {
            return self.found.more > 0;
        }
        let path = at.to_string();
        let below = |error: &String| {
            error
                .strip_prefix(&path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.unsound.iter().any(below)
    }

    /// Lists an error as long as there is room; `unsound`: the value cannot be relied on.
    fn list(&mut self, at: &Path<'_>, unsound: bool, message: &[&str]) {
        if self.found.list.len() >= LISTED {
            self.found.more = self.found.more.saturating_add(1);
            return;
        }
        let mut path = at.to_string();
        if unsound {
            self.unsound.push(path.clone());
        }
        if path.is_empty() {
            path.push_str("the document");
        }
        if let Some((end, _)) = path.char_indices().nth(PATH_SHOWN) {
            path.truncate(end);
            path.push_str("...");
        }
        self.found.list.push(ConfigError {
            path,
            message: message.concat(),
        });
    }
}

/// The value at `at`, unless it is a secret: errors end up in logs.
fn shown(at: &Path<'_>, value: &Json) -> String {
    if matches!(at, Path::Key(_, key) if is_secret(key)) {
        HIDDEN.into()
    } else {
        value.show()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_quote_what_would_be_misread() {
        let root = Path::Root;
        let (routes, odd) = (root.key("routes"), root.key("a.b"));
        let route = routes.index(3);
        assert_eq!(route.key("match").to_string(), "routes[3].match");
        assert_eq!(odd.key("limit").to_string(), "[\"a.b\"].limit");
        assert_eq!(routes.key("").to_string(), "routes[\"\"]");
        assert_eq!(
            routes.key("per-client:v1/x").to_string(),
            "routes.per-client:v1/x"
        );
    }

    #[test]
    fn at_most_64_errors_are_listed() {
        let mut errors = Errors::default();
        for i in 0..70 {
            errors.refuse(&Path::Root.index(i), &Json::Null, "a value");
        }
        let errors = errors.end(Some(())).unwrap_err();
        let text = errors.to_string();
        assert_eq!(errors.count(), 70);
        assert_eq!(errors.iter().count(), 64);
        assert_eq!(text.lines().count(), 65);
        assert!(text.starts_with("[0]: null is not allowed, want a value\n[1]: "));
        assert!(text.ends_with("\nand 6 more"));
    }

    #[test]
    fn a_part_is_touched_by_errors_at_and_below_it() {
        let mut errors = Errors::default();
        let root = Path::Root;
        errors.refuse(&root.key("ab").key("c"), &Json::Null, "x");
        errors.unsupported(&root.key("soon"), &Json::Null, "");
        assert!(errors.touches(&root.key("ab")));
        assert!(errors.touches(&root.key("ab").key("c")));
        assert!(!errors.touches(&root.key("a")));
        assert!(!errors.touches(&root.key("ab").key("d")));
        assert!(!errors.touches(&root.key("soon")));
    }

    #[test]
    fn malformed_json_has_a_line_and_a_column() {
        let document = "{\n \"é\" 1}".as_bytes();
        let mut errors = Errors::default();
        errors.malformed(document, &super::super::json::parse(document).unwrap_err());
        let errors = errors.end(Some(())).unwrap_err();
        assert_eq!(
            errors.to_string(),
            "line 2, column 6: the document is not JSON: expected `:`"
        );
    }
}
