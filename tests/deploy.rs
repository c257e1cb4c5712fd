//! What stands in deploy/ and docs/ is of this version: filter configurations are valid, metrics
//! and labels exist, YAML is YAML.

#![cfg(not(target_arch = "wasm32"))]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below a folder with one of these endings.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut folders) = (
        Vec::new(),
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)],
    );
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The JSON object that follows the first `{` after `mark`, to its end.
fn object_after<'a>(text: &'a str, mark: &str) -> &'a str {
    let (_, rest) = text
        .split_once(mark)
        .unwrap_or_else(|| panic!("no {mark:?}"));
    let rest = &rest[rest.find('{').unwrap()..];
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<serde_json::Value>();
    values
        .next()
        .unwrap()
        .unwrap_or_else(|error| panic!("after {mark:?}: {error}"));
    &rest[..values.byte_offset()]
}

fn valid(config: &str) -> haven::document::Config {
    haven::document::parse(config.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn filter_configurations_are_valid() {
    let kubernetes = valid(object_after(
        &read("deploy/kubernetes/users.yaml"),
        "StringValue\n",
    ));
    assert_eq!(kubernetes.routes.len(), 1);
    let istio = valid(object_after(
        &read("deploy/istio/wasmplugin.yaml"),
        "pluginConfig:",
    ));
    assert!(
        istio
            .upstreams
            .iter()
            .all(|upstream| upstream.endpoints.is_empty()),
        "Istio's clusters follow no header"
    );
    let canary = valid(object_after(&read("docs/canary.md"), "```json\n"));
    assert!(canary.routes[0].canary.is_some());
}

/// What a word of an expression may go on with.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// All words in a text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty())
}

/// The expressions of rules and dashboards.
fn expressions() -> Vec<String> {
    let mut found = Vec::new();
    let alerts = read("deploy/monitoring/alerts.yaml");
    let mut lines = alerts.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.trim_start().strip_prefix("expr:") else {
            continue;
        };
        let mut expression = rest.trim().trim_start_matches('|').to_owned();
        let indent = |line: &str| line.len() - line.trim_start().len();
        while let Some(more) = lines.next_if(|more| indent(more) > indent(line)) {
            expression += more;
        }
        found.push(expression);
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/monitoring/dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().unwrap();
        found.extend(
            targets
                .iter()
                .map(|target| target["expr"].as_str().unwrap().to_owned()),
        );
    }
    found
}

#[test]
fn rules_and_dashboard_ask_for_what_there_is() {
    let source = read("src/engine/metrics.rs");
    let defined: BTreeSet<&str> = source
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("haven_"))
        .collect();
    let labels: BTreeSet<String> = read("envoy.yaml")
        .lines()
        .filter_map(|line| {
            Some(
                line.split_once("tag_name: ")?
                    .1
                    .split(',')
                    .next()?
                    .to_owned(),
            )
        })
        .collect();
    assert!(
        defined.len() > 20 && labels.len() >= 12,
        "{defined:?} {labels:?}"
    );
    let others = [
        "pod",
        "le",
        "container",
        "envoy_http_conn_manager_prefix",
        "envoy_response_code_class",
    ];
    let all = expressions();
    assert!(all.len() >= 18, "{all:?}");
    for expression in &all {
        for word in words(expression).filter(|word| word.starts_with("haven_")) {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| word.strip_suffix(end));
            assert!(
                defined.contains(word) || name.is_some_and(|name| defined.contains(name)),
                "{word} in {expression}"
            );
        }
        let by = expression
            .split("by (")
            .skip(1)
            .flat_map(|rest| words(rest.split(')').next().unwrap()));
        let selected = expression.split('{').skip(1).flat_map(|rest| {
            rest.split('}')
                .next()
                .unwrap()
                .split(',')
                .map(|pair| pair.split(['=', '!']).next().unwrap().trim())
        });
        for label in by.chain(selected) {
            assert!(
                labels.contains(label) || others.contains(&label),
                "the label {label} in {expression}"
            );
        }
        let open = |c: char| expression.matches(c).count();
        assert_eq!(
            (open('('), open('{'), open('[')),
            (open(')'), open('}'), open(']')),
            "{expression}"
        );
    }
}

#[test]
fn probes_are_those_of_the_mission() {
    let text = read("deploy/kubernetes/users.yaml");
    let probe = |name: &str| {
        let (_, rest) = text.split_once(&format!("        {name}:\n")).unwrap();
        rest.lines()
            .take_while(|line| line.starts_with("          "))
            .collect::<Vec<_>>()
            .join("\n")
    };
    for (name, path, delay) in [
        ("livenessProbe", "/livez", true),
        ("readinessProbe", "/readyz", false),
        ("startupProbe", "/startupz", true),
    ] {
        let probe = probe(name);
        for wanted in [
            &format!("path: {path},"),
            "periodSeconds: 10",
            "failureThreshold: 3",
        ] {
            assert!(probe.contains(wanted), "{name} lacks {wanted}");
        }
        assert_eq!(probe.contains("initialDelaySeconds: 30"), delay, "{name}");
    }
}

/// No parser of YAML is worth a dependency here: what people get wrong by hand is the indentation.
#[test]
fn yaml_is_indented_as_yaml() {
    let all = files("deploy", &["yaml", "yml"]);
    assert!(all.len() >= 5, "{all:?}");
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        let mut open = vec![0];
        let mut scalar: Option<usize> = None;
        for (number, line) in text.lines().enumerate() {
            let at = format!("{}:{}", path.display(), number + 1);
            assert!(
                !line.contains('\t') && line.trim_end() == line,
                "{at}: a tab, or spaces at the end"
            );
            let indent = line.len() - line.trim_start().len();
            let content = line.trim_start();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            if let Some(least) = scalar {
                // Inside of a block, or of JSON over several lines.
                if indent > least {
                    continue;
                }
                scalar = None;
            }
            if content == "---" {
                open = vec![0];
                continue;
            }
            while open.last().is_some_and(|last| indent < *last) {
                open.pop();
            }
            let last = *open.last().unwrap();
            assert!(
                indent == last || indent > last && indent % 2 == 0,
                "{at}: {indent} after {last}"
            );
            if indent > last {
                open.push(indent);
            }
            // Keys in an item of a list line up behind its dash.
            let dashes = content.len() - content.trim_start_matches("- ").len();
            if dashes > 0 {
                open.push(indent + dashes);
            }
            let key = content.split(": ").next().unwrap().trim_end_matches(':');
            assert!(!key.is_empty(), "{at}: no key");
            if content.ends_with('|') || content == "pluginConfig:" {
                scalar = Some(indent);
            }
        }
    }
}
