//! The architecture, kept by a test: a module uses only lower floors, policies never use each
//! other, and the core cannot name the host.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the crate's top level, from the ground up.
const FLOORS: &[(&str, u32)] = &[
    ("base", 0),
    ("host", 1),
    ("schema", 2),
    ("store", 2),
    ("request", 3),
    ("policy", 4),
    ("document", 5),
    ("engine", 6),
    ("wasm", 7),
];

/// What policies share: these are not policies.
const SHARED_BY_POLICIES: &[&str] = &["Outcome", "mode", "sections"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Each source with its module path ("policy/rate_limit/gcra.rs") and its text without tests and
/// comments.
fn modules() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let modules: Vec<_> = found
        .iter()
        .map(|path| {
            let name = path
                .strip_prefix(&root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(path).unwrap();
            let code = text
                .split("\n#[cfg(test)]\nmod tests")
                .next()
                .unwrap_or(&text);
            let code: Vec<_> = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            (name, code.join("\n"))
        })
        .filter(|(name, _)| !name.ends_with("tests.rs"))
        .collect();
    assert!(modules.len() > 20, "the sources were found");
    modules
}

fn floor(top: &str) -> Option<u32> {
    FLOORS
        .iter()
        .find(|(name, _)| *name == top)
        .map(|(_, floor)| *floor)
}

/// First segments of all `crate::…` paths, `{a, b}` groups included.
fn uses(code: &str, prefix: &str) -> Vec<String> {
    let word = |text: &str| {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    code.match_indices(prefix)
        .flat_map(|(at, _)| {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => group
                    .split('}')
                    .next()
                    .unwrap()
                    .split(',')
                    .map(word)
                    .collect(),
                None => vec![word(rest)],
            }
        })
        .filter(|w| !w.is_empty())
        .collect()
}

#[test]
fn a_module_uses_only_lower_floors() {
    let mut checked = 0;
    for (name, code) in modules() {
        let top = name.split(['/', '.']).next().unwrap();
        if top == "lib" {
            continue;
        }
        let own =
            floor(top).unwrap_or_else(|| panic!("src/{name} has no floor: give it one in FLOORS"));
        for used in uses(&code, "crate::") {
            let Some(other) = floor(&used) else { continue };
            assert!(
                used == top || other < own,
                "src/{name} (floor {own}) uses crate::{used} (floor {other})"
            );
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} uses were seen");
}

#[test]
fn policies_do_not_use_each_other() {
    for (name, code) in modules() {
        let Some(policy) = name
            .strip_prefix("policy/")
            .and_then(|n| n.split(['/', '.']).next())
        else {
            continue;
        };
        for used in uses(&code, "crate::policy::").into_iter().chain(
            uses(&code, "super::")
                .into_iter()
                .filter(|_| name.matches('/').count() == 1),
        ) {
            let allowed = used == policy
                || SHARED_BY_POLICIES.contains(&used.as_str())
                || !Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join(format!("src/policy/{used}.rs"))
                    .exists();
            assert!(allowed, "src/{name} uses the policy {used}");
        }
    }
}

#[test]
fn only_the_glue_names_the_proxy() {
    for (name, code) in modules() {
        for word in [
            "proxy_wasm",
            "proxy_get_",
            "std::time::Instant",
            "SystemTime",
        ] {
            assert!(
                name.starts_with("wasm") || name == "lib.rs" || !code.contains(word),
                "src/{name} names {word}"
            );
        }
    }
}
