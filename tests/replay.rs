//! The fuzz targets' checks over the kept corpus, and over some mutations of it: what fuzzing found
//! once stays found. To fuzz for longer: `make fuzz`.

#[path = "../fuzz/checks.rs"]
mod checks;

use haven::base::rng::Rng;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// Each target, its check, and how many mutations are tried.
type Target = (&'static str, fn(&[u8]), u32);

const TARGETS: [Target; 13] = [
    ("client_ip", checks::check_client_ip, 10_000),
    ("config", checks::check_config, 50_000),
    ("consul", checks::check_consul, 5_000),
    ("cost", checks::check_cost, 20_000),
    ("envoy_hosts", checks::check_envoy_hosts, 5_000),
    ("etcd", checks::check_etcd, 5_000),
    ("exchange", checks::check_exchange, 5_000),
    ("grpc_health", checks::check_grpc_health, 20_000),
    ("hostile", checks::check_hostile, 300),
    ("records", checks::check_records, 5_000),
    ("report", checks::check_report, 5_000),
    ("request_key", checks::check_request_key, 10_000),
    ("stale_key", checks::check_stale_key, 5_000),
];

/// The kept corpora together.
const MAX_BYTES: usize = 320_000;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(path)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found: Vec<_> = list.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = entries(&folder("corpus").join(target));
    assert!(files.len() >= 5, "{target} has a corpus");
    files
        .iter()
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                fs::read(path).unwrap(),
            )
        })
        .collect()
}

fn run(check: fn(&[u8]), input: &[u8], target: &str, what: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
        eprintln!(
            "{target} fails on {what}, which is b\"{}\"",
            input.escape_ascii()
        );
        resume_unwind(panic);
    }
}

fn replay(target: &str) {
    let (_, check, mutations) = TARGETS
        .into_iter()
        .find(|(name, ..)| *name == target)
        .unwrap();
    let corpus = corpus(target);
    for (name, input) in &corpus {
        run(check, input, target, name);
    }
    let rng = Rng::new(1);
    for i in 0..mutations {
        let at = below(&rng, corpus.len());
        let mut input = corpus[at].1.clone();
        for _ in 0..=below(&rng, 4) {
            mutate(&mut input, &corpus[below(&rng, corpus.len())].1, &rng);
        }
        input.truncate(8 * 1024);
        run(
            check,
            &input,
            target,
            &format!("mutation {i}, of {}", corpus[at].0),
        );
    }
}

fn below(rng: &Rng, n: usize) -> usize {
    usize::try_from(rng.below(n as u64)).unwrap()
}

/// One step of what fuzzers do: bits, bytes, pieces of itself and of another input.
fn mutate(input: &mut Vec<u8>, other: &[u8], rng: &Rng) {
    const WORDS: [&[u8]; 8] = [
        b"\xff",
        b"\0",
        b"\n",
        b",",
        b":",
        b"0",
        b"18446744073709551616",
        b"\xff\xff\xff\xff",
    ];
    let from = below(rng, input.len() + 1);
    let to = from + below(rng, (input.len() - from).min(16) + 1);
    match rng.below(7) {
        0 if from < input.len() => input[from] ^= 1 << rng.below(8),
        1 if from < input.len() => input[from] = rng.bits().to_le_bytes()[0],
        2 => drop(input.drain(from..to)),
        3 => drop(input.splice(from..to, WORDS[below(rng, WORDS.len())].iter().copied())),
        4 => {
            let piece = input[from..to].to_vec();
            let at = below(rng, input.len() + 1);
            input.splice(at..at, piece);
        }
        5 => {
            let start = below(rng, other.len() + 1);
            let end = start + below(rng, (other.len() - start).min(64) + 1);
            input.splice(from..to, other[start..end].iter().copied());
        }
        _ => input.truncate(from),
    }
}

#[test]
fn client_addresses() {
    replay("client_ip");
}

#[test]
fn configurations() {
    replay("config");
}

#[test]
fn costs() {
    replay("cost");
}

#[test]
fn endpoints_as_consul_names_them() {
    replay("consul");
}

#[test]
fn endpoints_as_envoy_names_them() {
    replay("envoy_hosts");
}

#[test]
fn endpoints_as_etcd_names_them() {
    replay("etcd");
}

#[test]
fn exchanges() {
    replay("exchange");
}

#[test]
fn grpc_health_messages() {
    replay("grpc_health");
}

#[test]
fn health_reports() {
    replay("report");
}

/// A world of honest and hostile clients, drawn at random: what the honest ones get does not show
/// that there are others.
#[test]
fn hostile_clients() {
    replay("hostile");
    let rng = Rng::new(2);
    for i in 0..300 {
        let acts: Vec<u8> = (0..180).map(|_| rng.bits().to_le_bytes()[0]).collect();
        run(
            checks::check_hostile,
            &acts,
            "hostile",
            &format!("world {i}"),
        );
    }
}

#[test]
fn keys_of_kept_answers() {
    replay("stale_key");
}

#[test]
fn records() {
    replay("records");
}

#[test]
fn request_keys() {
    replay("request_key");
}

#[test]
fn every_target_is_replayed_and_the_corpus_stays_small() {
    let targets: Vec<_> = entries(&folder("fuzz_targets"))
        .iter()
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(targets, TARGETS.map(|(name, ..)| name.to_owned()));
    let sizes: Vec<(&str, usize)> = TARGETS
        .map(|(name, ..)| {
            (
                name,
                corpus(name).iter().map(|(_, input)| input.len()).sum(),
            )
        })
        .into();
    assert!(
        sizes.iter().map(|(_, size)| size).sum::<usize>() <= MAX_BYTES,
        "{sizes:?}"
    );
}
