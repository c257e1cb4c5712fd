//! Documents that are wrong in every place.

use haven::document::{parse, schema};
use proptest::prelude::*;

use crate::schema::fits;
use crate::support::{DESIGN, FULL};

/// The numbers, words and braces of the full document, each replaced by something else.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let junk = prop_oneof![
        Just("null"),
        Just("-1"),
        Just("1e400"),
        Just("\"\""),
        Just("[]"),
        Just("{}"),
        Just("\u{ff}"),
        Just("\""),
        Just("}"),
        Just(","),
        Just("18446744073709551616"),
        Just("\"{{\""),
        Just("\"*\""),
        Just("\"/\""),
        Just("true"),
        Just("\"count\""),
        Just("\\u0000"),
    ];
    let source = prop_oneof![Just(FULL), Just(DESIGN)];
    (
        source,
        proptest::collection::vec((any::<prop::sample::Index>(), 0..30_usize, junk), 1..4),
    )
        .prop_map(|(source, changes)| {
            let mut bytes = source.as_bytes().to_vec();
            for (at, length, junk) in changes {
                let at = at.index(bytes.len());
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, junk.bytes());
            }
            bytes
        })
}

/// Every value of the full document, replaced by something of another type or range.
#[test]
fn no_value_can_be_replaced_by_nonsense() {
    fn paths(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(entries) => {
                entries.iter().for_each(|(key, value)| {
                    paths(value, format!("{at}/{}", key.replace('/', "~1")), found)
                });
            }
            serde_json::Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(i, value)| paths(value, format!("{at}/{i}"), found));
            }
            _ => {}
        }
        found.push(at);
    }
    let full: serde_json::Value = serde_json::from_str(FULL).unwrap();
    let mut all = Vec::new();
    paths(&full, String::new(), &mut all);
    assert!(all.len() > 100);
    for path in all {
        for nonsense in ["-1", "1e300", "\"\\u0000\"", "[[]]", "{\"\": 0}"] {
            let mut document = full.clone();
            *document.pointer_mut(&path).unwrap() = serde_json::from_str(nonsense).unwrap();
            let document = document.to_string();
            // The values of a key are free text.
            if path.contains("/overrides/0/key/") && nonsense.starts_with('"')
                || path.ends_with("/body") && nonsense.starts_with('"')
            {
                continue;
            }
            assert!(parse(document.as_bytes()).is_err(), "{path} = {nonsense}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn mutated_documents_never_panic_and_errors_stay_on_their_line(bytes in mutated()) {
        let parsed = parse(&bytes);
        if parsed.is_ok() && let Ok(value) = serde_json::from_slice(&bytes) {
            prop_assert!(fits(&schema(), &value));
        }
        if let Err(errors) = parsed {
            let lines = errors.to_string().lines().count();
            let listed = errors.iter().count();
            prop_assert_eq!(lines, listed + usize::from(errors.count() > listed));
            for error in errors.iter() {
                let says_what = error.message.contains(" not ");
                prop_assert!(!error.path.is_empty() && says_what, "{}", error);
            }
        }
    }
}
