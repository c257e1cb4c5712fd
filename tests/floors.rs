//! The architecture, kept by a test: a module uses only lower floors, policies never use each
//! other and make no host calls but for their records, no two modules import each other, and the
//! core cannot name the host.

use std::collections::{BTreeMap, BTreeSet};
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

/// The most lines of a source file, its tests included.
const MOST_LINES: usize = 500;

/// What policies share: these are not policies.
const SHARED_BY_POLICIES: &[&str] = &["Outcome", "mode", "sections"];

/// What a policy may use of the host: its record, and the reply that it returns. The engine makes
/// all other host calls.
const PORTS_OF_POLICIES: &[&str] = &["SharedData", "Reply"];

/// What these use beside that: within the write of a record, where only they know the moment.
const PORTS_BESIDE: &[(&str, &[&str])] = &[
    (
        "policy/circuit_breaker.rs",
        &["SharedCounter", "SharedCounters"],
    ),
    ("policy/rate_limit.rs", &["Clock"]),
    ("policy/rate_limit/table.rs", &["Clock"]),
];

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
        .filter(|(name, _)| !name.ends_with("tests.rs") && !name.contains("/tests/"))
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
fn policies_only_keep_records() {
    let mut checked = 0;
    for (name, code) in modules() {
        if !name.starts_with("policy/") {
            continue;
        }
        let beside = PORTS_BESIDE.iter().find(|(file, _)| *file == name);
        for path in imports(&path_of(&name), &code) {
            let [top, port, ..] = &path[..] else {
                continue;
            };
            if top != "host" {
                continue;
            }
            let port = port.as_str();
            checked += 1;
            assert!(
                PORTS_OF_POLICIES.contains(&port)
                    || beside.is_some_and(|(_, ports)| ports.contains(&port)),
                "src/{name} uses {port} of the host"
            );
        }
    }
    assert!(checked > 10, "only {checked} uses were seen");
}

/// A module's path: `policy/rate_limit/gcra.rs` is `[policy, rate_limit, gcra]`.
fn path_of(name: &str) -> Vec<String> {
    let name = name.trim_end_matches(".rs");
    name.split('/').map(str::to_owned).collect()
}

/// The paths of a tree of imports: `a::{b, c::{d, e}}` is `a::b`, `a::c::d`, `a::c::e`.
fn flatten(tree: &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = prefix.to_vec();
    let mut rest = tree;
    loop {
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end > 0 {
            path.push(rest[..end].to_owned());
        }
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(next) if next.starts_with(|c: char| c.is_alphanumeric() || "_{".contains(c)) => {
                rest = next;
            }
            _ => break,
        }
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut start) = (0, 0);
            for (at, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth > 0 => depth -= 1,
                    ',' | '}' if depth == 0 => {
                        let item = group[start..at].trim();
                        if !item.is_empty() {
                            flatten(item, &path, found);
                        }
                        start = at + 1;
                        if c == '}' {
                            return;
                        }
                    }
                    _ => {}
                }
            }
            return;
        }
    }
    found.push(path);
}

/// All paths in a module's code that begin with `crate` or `super`, from the crate's root.
fn imports(module: &[String], code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            // The middle of a path, or of a word.
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || "_:".contains(c)) {
                continue;
            }
            let mut paths = Vec::new();
            flatten(&code[at..], &[], &mut paths);
            for path in paths {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let base = match ups {
                    0 => &[],
                    _ => &module[..module.len().saturating_sub(ups)],
                };
                let rest = path.into_iter().skip(ups.max(1));
                found.push(base.iter().cloned().chain(rest).collect());
            }
        }
    }
    found
}

/// By parent: which of its modules uses which other, itself or in a module within.
type Uses = BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>>;

/// A module may use its parent and what is within it; so what is compared are neighbours.
fn uses_of_neighbours() -> Uses {
    let modules = modules();
    let known: BTreeSet<_> = modules.iter().map(|(name, _)| path_of(name)).collect();
    let mut uses = Uses::new();
    for (name, code) in &modules {
        let own = path_of(name);
        for mut used in imports(&own, code) {
            while !used.is_empty() && !known.contains(&used) {
                used.pop();
            }
            let common = own
                .iter()
                .zip(&used)
                .take_while(|(own, used)| own == used)
                .count();
            if let (Some(from), Some(to)) = (own.get(common), used.get(common)) {
                uses.entry(own[..common].to_vec())
                    .or_default()
                    .entry(from.clone())
                    .or_default()
                    .insert(to.clone());
            }
        }
    }
    uses
}

/// The way from a module back to itself, if there is one.
fn loop_from(
    at: &str,
    uses: &BTreeMap<String, BTreeSet<String>>,
    way: &mut Vec<String>,
    clear: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(start) = way.iter().position(|module| module == at) {
        return Some(way[start..].to_vec());
    }
    if clear.contains(at) {
        return None;
    }
    way.push(at.to_owned());
    let found = uses
        .get(at)
        .into_iter()
        .flatten()
        .find_map(|next| loop_from(next, uses, way, clear));
    way.pop();
    clear.insert(at.to_owned());
    found
}

#[test]
fn no_modules_import_each_other() {
    let all = uses_of_neighbours();
    let seen: usize = all
        .values()
        .flat_map(BTreeMap::values)
        .map(BTreeSet::len)
        .sum();
    assert!(seen > 100, "only {seen} uses were seen");
    for (parent, uses) in &all {
        let mut clear = BTreeSet::new();
        for module in uses.keys() {
            let found = loop_from(module, uses, &mut Vec::new(), &mut clear);
            assert!(
                found.is_none(),
                "in src/{}: {} and back",
                parent.join("/"),
                found.unwrap_or_default().join(" -> ")
            );
        }
    }
}

#[test]
fn paths_are_read_in_full() {
    let module = path_of("engine/chain/reply.rs");
    let code = "use crate::base::{sort, time::{Nanos, Wall}};\n\
                use super::super::{Engine, route::Route};\n\
                let it = super::Action::Stop; crate::host::x(y);";
    let found: BTreeSet<_> = imports(&module, code)
        .into_iter()
        .map(|path| path.join("::"))
        .collect();
    let want = [
        "base::sort",
        "base::time::Nanos",
        "base::time::Wall",
        "engine::Engine",
        "engine::chain::Action::Stop",
        "engine::route::Route",
        "host::x",
    ];
    assert_eq!(found, want.into_iter().map(str::to_owned).collect());
}

/// No file is too long to be read at once.
#[test]
fn files_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    for path in found {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MOST_LINES, "{}: {lines} lines", path.display());
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
