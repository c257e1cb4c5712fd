//! The real-Envoy harness: an Envoy of one's own on free ports, upstreams with switchable faults,
//! endpoints and clients of drawn worlds, HTTP clients, metrics.
//!
//! ```no_run
//! support::run(async {
//!     let a = Upstream::start("a").await;
//!     let envoy = Envoy::start(EnvoyConfig::proxy([a.addr()])).await;
//!     let reply = envoy.h1().get("/echo").await.unwrap();
//!     assert_eq!(reply.status, 200);
//!     a.set(|faults| faults.hang = true).await;
//! });
//! ```
//!
//! The Envoy binary is `HAVEN_ENVOY`, else `.tools/envoy` (`make envoy`); the filter is
//! `HAVEN_WASM`, else `dist/haven.wasm` (`make wasm`); gRPC's client for Python is in
//! `HAVEN_GRPCIO`, else `.tools/grpcio` (`scripts/grpcio.sh`). An Envoy dies with its handle, and
//! with the test process however that ends. When a test panics, the tail of its Envoy's log is
//! printed and its directory kept.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test crate, and the demo, uses a part of it"
)]

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

pub mod client;
pub mod config;
pub mod consul;
pub mod dns;
pub mod endpoint;
pub mod envoy;
pub mod etcd;
pub mod open_loop;
pub mod prometheus;
pub mod raw;
pub mod slots;
pub mod upstream;

pub use client::{Client, Reply, Tally, load};
pub use config::{Cluster, EnvoyConfig, Exceptions, Retry, Route};
pub use envoy::{Dir, Envoy, Update};
pub use haven_upstream;
pub use haven_upstream::faults::{Component, Faults, HealthReport};
pub use prometheus::Metrics;
pub use upstream::{Reserved, Upstream, dead_addr};

/// How long anything may take that is bound to happen.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Who has the machine: most tests share it, those that measure it have it to themselves.
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs a test on a runtime of several threads: upstreams, clients and the test make progress side
/// by side.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    // A test that failed has left nothing behind that another could trip over.
    let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    block_on(test)
}

/// Runs a test that asks how much is done in a time: no other test of the program runs meanwhile.
pub fn run_alone<T>(test: impl Future<Output = T>) -> T {
    let _whole = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    block_on(test)
}

fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a tokio runtime").block_on(test)
}

/// Waits until `condition` holds; panics, naming `what`, when it does not for [`PATIENCE`].
pub async fn wait_for(what: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(
        holds_within(PATIENCE, condition).await,
        "waited {PATIENCE:?} in vain until {what}"
    );
}

/// Polls `condition` until it holds, for `patience` at most; says whether it did.
pub async fn holds_within(patience: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let end = tokio::time::Instant::now() + patience;
    loop {
        if condition().await {
            return true;
        }
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A path in the checkout.
pub fn checkout(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The Envoy binary, or what to do to have one.
pub fn envoy_binary() -> Result<PathBuf, String> {
    from_env("HAVEN_ENVOY", ".tools/envoy", "make envoy")
}

/// The filter, or what to do to have it.
pub fn haven_wasm() -> Result<PathBuf, String> {
    from_env("HAVEN_WASM", "dist/haven.wasm", "make wasm")
}

/// The folder with gRPC's Python packages, or what to do to have it.
pub fn grpcio() -> Result<PathBuf, String> {
    from_env("HAVEN_GRPCIO", ".tools/grpcio", "scripts/grpcio.sh")
}

/// A server's program from the distribution, or what to do to have it.
pub fn server_program(name: &str) -> Result<PathBuf, String> {
    let variable = format!("HAVEN_{}", name.to_uppercase());
    if let Some(given) = std::env::var_os(&variable) {
        return Ok(PathBuf::from(given));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A Debian user's PATH lacks the places of servers.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    let mut programs = folders.map(|folder| folder.join(name));
    programs
        .find(|program| program.is_file())
        .ok_or_else(|| format!("{name} is missing: `scripts/servers.sh` says how to get it"))
}

/// Whether the Envoy under test is at least of this version. If not, a line on stderr says once what
/// is left out.
pub fn since(version: [u32; 2], left_out: &str) -> bool {
    static VERSION: OnceLock<[u32; 2]> = OnceLock::new();
    let is = VERSION.get_or_init(|| {
        let binary = envoy_binary().unwrap_or_else(|error| panic!("{error}"));
        let output = Command::new(&binary).arg("--version").output().unwrap();
        version_of(&String::from_utf8_lossy(&output.stdout))
            .unwrap_or_else(|| panic!("{} --version: {output:?}", binary.display()))
    });
    if *is >= version {
        return true;
    }
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let [major, minor] = version;
    let line = format!("skipped before Envoy {major}.{minor}: {left_out}\n");
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(line.clone()) {
        // Not by a macro: what those print is shown of failed tests only.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    false
}

/// Major and minor version in `/bin/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn version_of(line: &str) -> Option<[u32; 2]> {
    let (_, build) = line.split_once("version: ")?;
    let mut numbers = build.split('/').nth(1)?.split('.').map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?])
}

#[test]
fn the_version_of_an_envoy_is_read() {
    let line = "\n/a/b/envoy  version: 9e55809337/1.40.0/Clean/RELEASE/BoringSSL\n";
    assert_eq!(version_of(line), Some([1, 40]));
    for odd in [
        "",
        "envoy",
        "version: a/b/c",
        "version: a/1/c",
        "version: a/1.x/c",
    ] {
        assert_eq!(version_of(odd), None, "{odd}");
    }
}

fn from_env(variable: &str, default: &str, command: &str) -> Result<PathBuf, String> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let path = given.clone().unwrap_or_else(|| checkout(default));
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if given.is_some() => Err(format!("{variable}={}: {error}", path.display())),
        Err(_) => Err(format!(
            "{default} is missing: run `{command}`, or set {variable}"
        )),
    }
}
