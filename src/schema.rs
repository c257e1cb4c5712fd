//! Floor 2: how a JSON document is declared, checked and decoded. Knows no section of the
//! configuration: those stand beside the policies that they configure, and [`crate::document`]
//! composes them.
//!
//! A section is declared once, with its fields, their ranges, defaults and meanings. From that come
//! the struct, the checker's messages, the JSON schema and the reference.
//!
//! ```
//! use haven::base::time::Nanos;
//! use haven::schema::units::{HOUR, MS};
//! use haven::schema::{self, Int, Span, choice, section};
//!
//! section! {
//!     /// A pool of connections.
//!     Pool {
//!         /// The most connections.
//!         size: Int<1, 100> = Required;
//!         /// How long one may be idle.
//!         idle: Span<MS, HOUR> = Default("\"30s\"");
//!         /// Which one is taken.
//!         order: Option<Order> = Absent("any");
//!     }
//! }
//!
//! choice! {
//!     /// Which connection is taken.
//!     enum Order {
//!         /// The one that was idle for the shortest time.
//!         Newest = "newest",
//!         /// The one that was idle for the longest time.
//!         Oldest = "oldest",
//!     }
//! }
//!
//! let read = |document: &str| schema::read::<Pool, _>(document.as_bytes(), |pool, _, _| pool);
//!
//! let pool = read(r#"{"size": 20, "order": "oldest"}"#)?;
//! assert_eq!((pool.size, pool.idle), (20, Nanos::from_secs(30)));
//! assert_eq!(pool.order, Some(Order::Oldest));
//!
//! let errors = read(r#"{"size": 0, "idle": "2h", "max": 5}"#).unwrap_err();
//! assert_eq!(
//!     errors.to_string(),
//!     "max: unknown field, value 5 is not allowed, want one of size, idle, order\n\
//!      size: 0 is not allowed, want an integer from 1 to 100\n\
//!      idle: \"2h\" is not allowed, want a duration from 1ms to 1h like \"250ms\" or \"10s\""
//! );
//! # Ok::<(), schema::ConfigErrors>(())
//! ```
//!
//! What spans fields is checked by the functions that [`read`] is given: after the checker, so that
//! all errors come at once, and only where the values that they need are sound
//! ([`Errors::touches`]).

pub mod check;
pub mod declare;
pub mod decode;
pub mod error;
pub mod http;
pub mod json;
#[cfg(not(target_arch = "wasm32"))]
pub mod json_schema;
pub mod named;
pub mod names;
pub mod net;
pub mod number;
#[cfg(not(target_arch = "wasm32"))]
pub mod reference;
pub mod shape;
pub mod template;
pub mod text;
pub mod units;

pub use crate::{__choice as choice, __section as section};
pub use declare::{One, Section};
pub use decode::{Decode, Either, List, Map, MapKey, Nullable, Set};
pub use error::{ConfigError, ConfigErrors, Errors, Path};
pub use http::{HeaderName, HeaderValue, Method, Statuses, Token, UrlPath};
pub use json::Json;
pub use named::{Named, NamedSection, Reference};
pub use names::DeclaredNames;
pub use net::{Address, Cidr};
pub use number::{Centi, Int, Int8, Int16, Pct, Size, SomePct, Span};
pub use shape::Schema;
pub use text::{Label, Name, Secret, SecretText, Value, VariableName};

/// The largest document: a configuration is written by hand, and what is larger is a mistake.
const MAX_BYTES: usize = 1 << 20;

/// Reads a document: checks it against the schema of `T`, decodes it, and has `finish` make of that
/// what the caller wants, with the errors that only `finish` can see. Nothing at all is as good as
/// `{}`.
///
/// # Errors
/// All errors of the document, each with its path, the value, and what is allowed.
pub fn read<T: Decode, U>(
    document: &[u8],
    finish: impl FnOnce(T::Value, &DeclaredNames, &mut Errors) -> U,
) -> Result<U, ConfigErrors> {
    let mut errors = Errors::default();
    let finished = tree(document, &mut errors).map(|json| {
        let names = DeclaredNames::of(T::SCHEMA, &json);
        check::check(T::SCHEMA, &json, &names, &mut errors);
        finish(T::decode(&json), &names, &mut errors)
    });
    errors.end(finished)
}

/// The document as JSON, if it is that.
fn tree(document: &[u8], errors: &mut Errors) -> Option<Json> {
    if document.len() > MAX_BYTES {
        errors.document(format!(
            "{} bytes are not allowed, want at most {MAX_BYTES}",
            document.len()
        ));
        return None;
    }
    if document.trim_ascii().is_empty() {
        return Some(Json::Object(Vec::new()));
    }
    json::parse(document)
        .map_err(|error| errors.malformed(document, &error))
        .ok()
}
