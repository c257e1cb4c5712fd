//! Texts with placeholders: `{{name}}`, with spaces around the name if one likes.

use crate::base::text::split_once;
use crate::schema::error::{Errors, Path};

/// The longest text.
pub const MAX_BYTES: usize = 65_536;

/// A piece of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text that stands for itself.
    Literal(&'a str),
    /// A placeholder.
    Placeholder {
        /// Its name; `None` if it does not end.
        name: Option<&'a str>,
        /// The placeholder as it is written.
        written: &'a str,
    },
}

/// The pieces of `text`, in order; literals may be empty.
#[must_use]
pub fn pieces(mut text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    while let Some((literal, tail)) = split_once(text, "{{") {
        let (name, tail) =
            split_once(tail, "}}").map_or((None, ""), |(name, tail)| (Some(name.trim()), tail));
        found.push(Piece::Literal(literal));
        let end = text.len().saturating_sub(tail.len());
        let written = text.get(literal.len()..end).unwrap_or_default();
        found.push(Piece::Placeholder { name, written });
        text = tail;
    }
    found.push(Piece::Literal(text));
    found
}

/// Reports the placeholders of `text` that are none of `known`.
pub(crate) fn check(known: &[&str], at: &Path<'_>, text: &str, errors: &mut Errors) {
    for piece in pieces(text) {
        if let Piece::Placeholder { name, written } = piece
            && name.is_none_or(|name| !known.contains(&name))
        {
            let known: Vec<_> = known
                .iter()
                .map(|name| ["{{", name, "}}"].concat())
                .collect();
            let want = ["one of the placeholders ", &known.join(", ")].concat();
            errors.refuse_text(at, written, &want);
        }
    }
}
