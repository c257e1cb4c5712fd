//! Which requests a route is for, as it is configured.

use crate::schema::http::{host, is_path};
use crate::schema::shape::Text;
use crate::schema::text::{keep, text_type};
use crate::schema::{
    Decode, Errors, HeaderName, HeaderValue, Json, Map, Method, Path, Schema, Set, UrlPath, choice,
    section,
};

/// Which requests a route is for: all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Condition on the path without its query.
    pub path: PathMatch,
    /// Methods, upper case; empty = any.
    pub methods: Vec<String>,
    /// Hosts, lower case, without port; empty = any.
    pub hosts: Vec<HostMatch>,
    /// Headers: lower-case name and the exact value, or `None` = present.
    pub headers: Vec<(String, Option<String>)>,
}

/// Condition on a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PathMatch {
    /// Any path.
    #[default]
    Any,
    /// This very path.
    Exact(String),
    /// This path and all below it: whole segments, without a trailing slash; empty = every path.
    Prefix(String),
    /// Segment by segment; `None` stands for one segment of any non-empty value.
    Pattern(Vec<Option<String>>),
}

choice! {
    /// What becomes of the parameters in a path.
    enum PathParameters {
        /// They are cut off before a path is compared or counted.
        Strip = "strip",
        /// They are a part of it.
        Keep = "keep",
    }
}

section! {
    /// The requests a route is for; at most one of `path`, `prefix` and `pattern`.
    MatchSection {
        /// This very path, without its query.
        path: Option<UrlPath> = Absent("any");
        /// This path and all below it: `/api` matches `/api` and `/api/users`, not `/apis`.
        prefix: Option<UrlPath> = Absent("any");
        /// A path where `{name}` stands for any one segment: `/users/{id}/orders`.
        pattern: Option<Pattern> = Absent("any");
        /// Methods.
        methods: Set<Method, 0, 32> = Default("[]");
        /// Hosts without port; `*.example.com` is every host below it.
        hosts: Set<HostMatch, 0, 256> = Default("[]");
        /// Headers with their exact values; `*` = present.
        headers: Map<HeaderName, HeaderValue, 32> = Default("{}");
    }
}

text_type! {
    /// A path in which `{name}` stands for any one segment.
    Pattern(
        PATTERN,
        "a path that starts with \"/\" like \"/users/{id}\", where each placeholder is a whole \
         segment with a name of its own",
        |text| keep(text, is_path(text) && is_pattern(text)),
        r#"{"type": "string", "pattern": "^/[!\"$->@-~]*$", "maxLength": 1024}"#
    );
}

/// A host, or all hosts below a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// This very host.
    Exact(String),
    /// Any host that ends in this (`*.example.com` is kept as `.example.com`).
    Suffix(String),
}

impl Decode for HostMatch {
    const SCHEMA: &'static Schema = &Schema::Text(&Text {
        want: "a host without a port like \"example.com\", \"*.example.com\" or \"*\"",
        canon: host,
        #[cfg(not(target_arch = "wasm32"))]
        json_schema: r#"{"type": "string"}"#,
    });

    type Value = Self;

    fn decode(json: &Json) -> Self {
        let host = match json {
            Json::String(text) => host(text).unwrap_or_default(),
            _ => String::new(),
        };
        match host.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.into()),
            None => Self::Exact(host),
        }
    }
}

impl MatchSection {
    fn check(&self, at: &Path<'_>, errors: &mut Errors) {
        let fields = [
            ("path", &self.path),
            ("prefix", &self.prefix),
            ("pattern", &self.pattern),
        ];
        let mut given = fields
            .into_iter()
            .filter_map(|(field, value)| Some((field, value.as_ref()?)));
        let Some((first, _)) = given.next() else {
            return;
        };
        for (field, value) in given {
            let want = ["no ", field, " besides the ", first].concat();
            errors.refuse_text(&at.key(field), value, &want);
        }
    }

    /// The conditions, with the errors that span the fields.
    #[inline(never)]
    pub(crate) fn compile(self, at: &Path<'_>, errors: &mut Errors) -> Match {
        self.check(at, errors);
        let path = match (self.path, self.prefix, self.pattern) {
            (Some(path), _, _) => PathMatch::Exact(path),
            // Without the slash at its end, "/" is the prefix of every path, and "/api/" the same
            // as "/api".
            (_, Some(prefix), _) => PathMatch::Prefix(prefix.trim_end_matches('/').into()),
            (_, _, Some(pattern)) => PathMatch::Pattern(segments(&pattern)),
            (None, None, None) => PathMatch::Any,
        };
        let header = |(name, value): (String, String)| (name, (value != "*").then_some(value));
        Match {
            path,
            methods: self.methods,
            hosts: self.hosts,
            headers: self.headers.into_iter().map(header).collect(),
        }
    }
}

fn is_pattern(text: &str) -> bool {
    let mut names = Vec::new();
    for segment in text.split('/') {
        match placeholder(segment) {
            Some(name) if name.is_empty() || name.contains(['{', '}']) || names.contains(&name) => {
                return false;
            }
            Some(name) => names.push(name),
            None if segment.contains(['{', '}']) => return false,
            None => {}
        }
    }
    true
}

/// The segments of a pattern; `None` stands for a placeholder.
pub fn segments(pattern: &str) -> Vec<Option<String>> {
    let literal = |segment: &str| placeholder(segment).is_none().then(|| segment.into());
    pattern.split('/').skip(1).map(literal).collect()
}

fn placeholder(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}
