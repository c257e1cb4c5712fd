//! What the documents show is what there is: configurations are valid, metrics and reasons exist,
//! links lead somewhere, and each document is on the map.

#![cfg(not(target_arch = "wasm32"))]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use haven::request::Reason;

const README: &str = include_str!("../README.md");
const METRICS: &str = include_str!("../docs/metrics.md");
const TROUBLESHOOTING: &str = include_str!("../docs/troubleshooting.md");

const REASONS: [Reason; 8] = [
    Reason::RateLimited,
    Reason::CircuitOpen,
    Reason::NoEndpoint,
    Reason::Overload,
    Reason::Deadline,
    Reason::SwitchedOff,
    Reason::UpstreamError,
    Reason::Timeout,
];

/// A page is read in a few minutes.
const README_WORDS: usize = 1_500;

/// The longest line of prose.
const COLUMNS: usize = 100;

/// The longest line of an example: what a program prints stands as it is.
const EXAMPLE_COLUMNS: usize = 110;

/// The longest row of a table: it cannot be broken.
const TABLE_COLUMNS: usize = 330;

fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All documents, with their paths from the top of the checkout and their texts.
fn documents() -> Vec<(PathBuf, String)> {
    let found: Vec<_> = ["", "docs"]
        .iter()
        .flat_map(|folder| fs::read_dir(checkout().join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(checkout()).unwrap().to_path_buf();
            (name, text)
        })
        .collect();
    assert!(found.len() > 15, "the documents were found");
    found
}

/// The lines of a text, each with whether it belongs to a block of code.
fn lines(text: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut in_code = false;
    text.lines().map(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (in_code || is_fence, line)
    })
}

/// The targets of all links in a text, code left out.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (_, line) in lines(text).filter(|(in_code, _)| !in_code) {
        let prose: String = line.split('`').step_by(2).collect();
        found.extend(
            prose
                .match_indices("](")
                .map(|(at, _)| prose[at + 2..].split(')').next().unwrap().to_owned()),
        );
    }
    found
}

/// The anchors that a reader's browser knows: headings in lower case, blanks as hyphens, without
/// punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    lines(text)
        .filter(|(in_code, line)| !in_code && line.starts_with('#'))
        .map(|(_, line)| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    _ if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect()
        })
        .collect()
}

#[test]
fn its_configuration_is_valid() {
    let (_, rest) = README.split_once("```json\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let config =
        haven::document::parse(example.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.routes.len(), 1);
}

#[test]
fn it_is_one_page() {
    let words = README.split_whitespace().count();
    assert!(
        words <= README_WORDS,
        "{words} words, {README_WORDS} at most"
    );
}

/// The names of metrics in a text: `haven_` and all lower-case letters, digits and underscores that
/// follow, with nothing before.
fn metrics(text: &str) -> Vec<&str> {
    let mut names: Vec<_> = text
        .match_indices("haven_")
        .filter(|(at, _)| {
            text[..*at]
                .chars()
                .next_back()
                .is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_')
        })
        .map(|(at, _)| {
            let end = text[at..]
                .find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
            &text[at..end.map_or(text.len(), |end| at + end)]
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The names of all metrics in the source, but for those that mean nothing to people.
fn defined_metrics() -> Vec<&'static str> {
    let source = include_str!("../src/engine/metrics.rs");
    let mut defined: Vec<_> = source
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("haven_"))
        .flat_map(metrics)
        .filter(|name| !is_internal(name))
        .collect();
    defined.sort_unstable();
    defined.dedup();
    assert!(defined.len() > 20, "{defined:?}");
    defined
}

/// What workers share with each other, and no dashboard shows.
fn is_internal(metric: &str) -> bool {
    metric.starts_with("haven_internal_")
}

#[test]
fn its_metrics_are_those_that_there_are() {
    let mut documented = metrics(METRICS);
    documented.retain(|name| !is_internal(name));
    assert_eq!(documented, defined_metrics());
}

/// Any document may name a metric, but no metric that there is not.
#[test]
fn no_document_names_a_metric_that_is_not_there() {
    let defined = defined_metrics();
    for (path, text) in documents() {
        for name in metrics(&text) {
            // A name in full, or what all names of a kind begin with. `haven_internal_` is no
            // metric; without `stats_tags` labels become a part of the name.
            let is_known = defined.iter().any(|metric| metric.starts_with(name))
                || is_internal(name)
                || name.starts_with("haven_decisions_total_");
            assert!(is_known, "{}: {name}", path.display());
        }
    }
}

#[test]
fn each_reason_is_explained() {
    for reason in REASONS {
        let (word, status) = (reason.word(), reason.status().to_string());
        let named = format!("`{word}`");
        let row = README
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&named));
        let row = row.unwrap_or_else(|| panic!("the README has no row for {word}"));
        let is_fallbacks = matches!(reason, Reason::UpstreamError | Reason::Timeout);
        assert!(is_fallbacks || row.contains(&status), "{row}");
        assert!(row.contains(&reason.grpc_status().to_string()), "{row}");
        let is_headed = TROUBLESHOOTING
            .lines()
            .any(|line| line.starts_with("### ") && line.contains(&named));
        assert!(is_headed, "docs/troubleshooting.md has no {word}");
    }
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for (path, text) in documents() {
        for link in links(&text) {
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                checkout().join(&path)
            } else {
                checkout()
                    .join(path.parent().unwrap_or(Path::new("")))
                    .join(file)
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&target).unwrap());
                assert!(there.contains(anchor), "{}: {link}", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 60, "only {checked} links were seen");
}

/// Who reads where a change goes finds the file.
#[test]
fn files_that_documents_name_are_there() {
    let mut checked = 0;
    for (path, text) in documents() {
        for (_, line) in lines(&text).filter(|(in_code, _)| !in_code) {
            for code in line.split('`').skip(1).step_by(2) {
                let is_file = ["src/", "tests/", "docs/", "deploy/", "scripts/", "fuzz/"]
                    .iter()
                    .any(|folder| code.starts_with(folder));
                // A pattern, a command, or a policy that is to be written.
                let is_literal = !code.contains(['*', ' ', '<']) && !code.contains("/X");
                if is_file && is_literal {
                    let there = checkout().join(code).exists();
                    assert!(there, "{}: {code}", path.display());
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 15, "only {checked} files were seen");
}

#[test]
fn each_document_is_on_the_map() {
    let map = links(include_str!("../docs/README.md"));
    for (path, _) in documents() {
        let name = match path.strip_prefix("docs") {
            Ok(name) => name.display().to_string(),
            Err(_) => format!("../{}", path.display()),
        };
        assert!(
            name == "README.md" || map.contains(&name),
            "docs/README.md does not have {name}"
        );
    }
}

#[test]
fn no_line_is_longer_than_a_screen() {
    for (path, text) in documents() {
        // Generated, in long rows.
        if path.ends_with("config.md") {
            continue;
        }
        for (number, (in_code, line)) in (1..).zip(lines(&text)) {
            let most = match in_code {
                true => EXAMPLE_COLUMNS,
                false if line.trim_start().starts_with('|') => TABLE_COLUMNS,
                false => COLUMNS,
            };
            let columns = line.chars().count();
            // A link cannot be broken.
            let is_one_word = !line.trim().contains(' ');
            assert!(
                columns <= most || is_one_word,
                "{}:{number}: {columns} columns, {most} at most",
                path.display()
            );
        }
    }
}

/// Lines that the filter writes stand in the document that explains them.
#[test]
fn log_lines_are_explained() {
    for line in [
        "configuration refused: ",
        "circuit breaker ",
        "circuit breakers and endpoints: ",
        " more changes",
        ": nobody can be asked in the cluster ",
        "shared data could not be written: all attempts were contended",
        "client_ip: a request came without X-Forwarded-For, so nothing in front writes it",
        "client_ip: Envoy takes the peer's address from X-Forwarded-For",
        "client_ip: a request came without X-Real-IP",
        "gRPC health checks are not answered by haven: ",
        "gRPC health checks: the message of a call did not come",
        "serve_endpoints: a request ended before its body came",
        "serve_endpoints: a request that did not come in on the loopback was refused",
        "outcomes by_exception: the access log of Envoy does not report what fails",
    ] {
        assert!(TROUBLESHOOTING.contains(line), "{line:?}");
        let is_written = sources().iter().any(|source| source.contains(line));
        assert!(is_written, "no source writes {line:?}");
    }
}

/// The texts of all files in `src`.
fn sources() -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![checkout().join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}
