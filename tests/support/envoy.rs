//! An Envoy process of a test's own.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;

use super::client::Client;
use super::config::EnvoyConfig;
use super::prometheus::Metrics;
use super::{envoy_binary, holds_within, wait_for};

/// How long Envoy may take to be ready: a debug run of several on two cores is slow.
const STARTUP: Duration = Duration::from_secs(60);

/// A running Envoy; killed when dropped.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    config: EnvoyConfig,
    addr: SocketAddr,
    admin_addr: SocketAddr,
    admin: Client,
    version: u64,
}

/// What Envoy made of a new configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// It is in force for new connections; existing ones move as they drain.
    Applied,
    /// The one before stays; [`Envoy::logs`] says why.
    Refused,
}

impl Envoy {
    /// Starts an Envoy and waits until it serves. Panics with its log's tail if it does not.
    pub async fn start(config: EnvoyConfig) -> Self {
        Self::try_start(config)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts an Envoy and waits until it serves. `Err`: why it does not, with its log's tail.
    pub async fn try_start(config: EnvoyConfig) -> Result<Self, String> {
        let binary = envoy_binary()?;
        let dir = Dir::new().map_err(|error| format!("a directory for Envoy: {error}"))?;
        let write = |name: &str, text: String| {
            std::fs::write(dir.0.join(name), text).map_err(|error| format!("{name}: {error}"))
        };
        write("bootstrap.yaml", config.bootstrap(&dir.0.join("lds.json"))?)?;
        if let Some(discovery) = config.discovery(0)? {
            write("lds.json", discovery)?;
        }
        let mut process = Process::start(&binary, &config, dir)
            .map_err(|error| format!("starting Envoy: {error}"))?;
        let (mut admin_addr, mut addr, mut exited, mut refused) = (None, None, None, false);
        let up = holds_within(STARTUP, async || {
            exited = process.envoy.try_wait().ok().flatten();
            if exited.is_some() {
                return true;
            }
            let Some(at) = process.admin_addr().await else {
                return false;
            };
            admin_addr = Some(at);
            let admin = Client::h1_fresh(at);
            if !admin
                .get("/ready")
                .await
                .is_ok_and(|reply| reply.status == 200)
            {
                return false;
            }
            // A discovered listener may come a moment after, or never: Envoy runs on without it.
            addr = listener_addr(&admin).await;
            refused = addr.is_none()
                && lds_counters(&admin)
                    .await
                    .is_some_and(|(_, rejected)| rejected > 0);
            addr.is_some() || refused
        });
        let up = up.await;
        match (exited, admin_addr, addr) {
            (None, Some(admin_addr), Some(addr)) if up => Ok(Self {
                process,
                config,
                addr,
                admin_addr,
                admin: Client::h1_fresh(admin_addr),
                version: 0,
            }),
            _ if refused => Err(format!(
                "Envoy has refused the listener\n{}",
                process.tail()
            )),
            (Some(status), ..) => Err(format!("Envoy ended with {status}\n{}", process.tail())),
            _ => Err(format!(
                "Envoy is not ready after {STARTUP:?}\n{}",
                process.tail()
            )),
        }
    }

    /// Checks a configuration without serving it. `Err`: what Envoy says.
    pub fn validate(config: &EnvoyConfig) -> Result<(), String> {
        let binary = envoy_binary()?;
        let dir = Dir::new().map_err(|error| error.to_string())?;
        let path = dir.0.join("bootstrap.yaml");
        std::fs::write(&path, config.bootstrap(&dir.0.join("lds.json"))?)
            .map_err(|error| error.to_string())?;
        let output = Command::new(binary)
            .args([
                "--mode",
                "validate",
                "--disable-hot-restart",
                "--config-path",
            ])
            .arg(&path)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its admin page is.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// `http://addr` and this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.envoy.id()
    }

    /// A client of HTTP/1.1.
    pub fn h1(&self) -> Client {
        Client::h1(self.addr)
    }

    /// A client of HTTP/2.
    pub fn h2(&self) -> Client {
        Client::h2(self.addr)
    }

    /// A client of HTTP/2 that is told of an answer that breaks off. An Envoy before 1.37, with
    /// haven or without, resets such a stream with NO_ERROR, which looks like a good end: then a
    /// client of HTTP/1.1.
    pub fn h2_told_of_cuts(&self) -> Client {
        if super::since(
            [1, 37],
            "clients of HTTP/2 are told of answers that break off",
        ) {
            self.h2()
        } else {
            self.h1()
        }
    }

    /// A page of the admin interface.
    pub async fn admin_get(&self, path: &str) -> String {
        let reply = self
            .admin
            .get(path)
            .await
            .unwrap_or_else(|error| panic!("admin {path}: {error}"));
        assert_eq!(reply.status, 200, "admin {path}: {}", reply.text());
        reply.text()
    }

    /// All metrics, as Prometheus sees them.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin_get("/stats/prometheus").await)
    }

    /// The sum over the series of a metric that carry all of `labels`; `None` if there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.metrics().await.metric(name, labels)
    }

    /// A counter or gauge under Envoy's own name, e.g. `listener_manager.lds.update_success`; 0 if
    /// there is none.
    pub async fn stat(&self, name: &str) -> u64 {
        let page = self.admin_get("/stats").await;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Bytes that Envoy's allocator has handed out. The memory of wasm is not among them: see
    /// [`Envoy::memory_resident`].
    pub async fn memory_allocated(&self) -> u64 {
        let page: Value =
            serde_json::from_str(&self.admin_get("/memory").await).expect("JSON at /memory");
        page["allocated"]
            .as_str()
            .and_then(|bytes| bytes.parse().ok())
            .expect("allocated bytes at /memory")
    }

    /// Bytes of the process that are in memory, wasm's included.
    pub fn memory_resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the process is there");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS in /proc");
        let kilobytes: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number of kB");
        kilobytes << 10
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.envoy.try_wait(), Ok(None))
    }

    /// What Envoy, and the filter in it, have logged.
    pub fn logs(&self) -> String {
        self.process.read("envoy.log")
    }

    /// The access log's lines so far. They are written some 50 ms after the request's end: see
    /// [`Envoy::access_log_of`].
    pub fn access_log(&self) -> Vec<Value> {
        let text = self.process.read("stdout.log");
        // The last line may be half written.
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The access log once it has at least `count` lines.
    pub async fn access_log_of(&self, count: usize) -> Vec<Value> {
        wait_for(&format!("the access log has {count} lines"), async || {
            self.access_log().len() >= count
        })
        .await;
        self.access_log()
    }

    /// Gives the filter another JSON through the listener's discovery, and waits until Envoy has
    /// applied or refused it.
    pub async fn update_filter_config(&mut self, filter: &Value) -> Update {
        let config = self.config.clone().haven(filter);
        self.update(config).await
    }

    /// Changes the listener (filter, routes and all but clusters) through its discovery, and waits
    /// until Envoy has applied or refused it.
    pub async fn update(&mut self, config: EnvoyConfig) -> Update {
        assert!(
            self.config.is_discovered() && config.is_discovered(),
            "only a listener of EnvoyConfig::lds can change"
        );
        let before = self.lds_counters().await;
        self.version += 1;
        let discovery = config
            .discovery(self.version)
            .expect("a filter to load")
            .expect("a discovered listener");
        let dir = &self.process.dir.0;
        std::fs::write(dir.join("lds.next"), discovery)
            .expect("the listener's document is written");
        std::fs::rename(dir.join("lds.next"), dir.join("lds.json"))
            .expect("the listener's document is replaced");
        let mut now = before;
        wait_for("Envoy has applied or refused the listener", async || {
            now = self.lds_counters().await;
            now != before
        })
        .await;
        if now.1 != before.1 {
            return Update::Refused;
        }
        wait_for("no listener is warming", async || {
            self.stat("listener_manager.total_listeners_warming").await == 0
        })
        .await;
        self.config = config;
        Update::Applied
    }

    async fn lds_counters(&self) -> (u64, u64) {
        lds_counters(&self.admin)
            .await
            .expect("the counters of the listener's discovery")
    }
}

/// How often the listener's discovery succeeded and was refused.
async fn lds_counters(admin: &Client) -> Option<(u64, u64)> {
    let page = admin
        .get("/stats?filter=listener_manager.lds.update")
        .await
        .ok()?
        .text();
    let of = |name: &str| {
        let line = page.lines().find_map(|line| {
            line.strip_prefix("listener_manager.lds.")?
                .strip_prefix(name)
        });
        line.and_then(|value| value.strip_prefix(": ")?.parse().ok())
            .unwrap_or(0)
    };
    Some((of("update_success"), of("update_rejected")))
}

/// The first listener's address.
async fn listener_addr(admin: &Client) -> Option<SocketAddr> {
    let reply = admin.get("/listeners?format=json").await.ok()?;
    let page: Value = serde_json::from_slice(&reply.body).ok()?;
    let socket = &page["listener_statuses"][0]["local_address"]["socket_address"];
    let ip = socket["address"].as_str()?.parse().ok()?;
    Some(SocketAddr::new(
        ip,
        u16::try_from(socket["port_value"].as_u64()?).ok()?,
    ))
}

/// The processes and their directory.
#[derive(Debug)]
struct Process {
    envoy: Child,
    /// Kills Envoy when this process is gone without having done so: its stdin is a pipe that ends
    /// with us. (`PR_SET_PDEATHSIG` needs unsafe code, and strikes when the thread that started
    /// Envoy ends.)
    watchdog: Child,
    /// To an admin page on a unix socket.
    passage: Option<Passage>,
    dir: Dir,
}

const WATCHDOG: &str = r#"read -r _; [ "$(readlink "/proc/$1/exe")" = "$2" ] && kill -9 "$1""#;

impl Process {
    fn start(binary: &Path, config: &EnvoyConfig, dir: Dir) -> io::Result<Self> {
        let mut envoy = Command::new(binary)
            .arg("--config-path")
            .arg(dir.0.join("bootstrap.yaml"))
            .arg("--admin-address-path")
            .arg(dir.0.join("admin.txt"))
            .args([
                "--disable-hot-restart",
                "--log-level",
                "info",
                "--component-log-level",
                "main:warning",
                "--file-flush-interval-msec",
                "50",
            ])
            .args(["--concurrency", &config.concurrency.to_string()])
            .args(["--drain-time-s", &config.drain_seconds.to_string()])
            .args(&config.args)
            .stdin(Stdio::null())
            .stdout(File::create(dir.0.join("stdout.log"))?)
            .stderr(File::create(dir.0.join("envoy.log"))?)
            .spawn()?;
        let watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "watchdog", &envoy.id().to_string()])
            .arg(binary)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match watchdog {
            Ok(watchdog) => Ok(Self {
                envoy,
                watchdog,
                passage: None,
                dir,
            }),
            Err(error) => {
                let _ = envoy.kill();
                let _ = envoy.wait();
                Err(error)
            }
        }
    }

    /// Where the admin page is; one on a unix socket is given a port.
    async fn admin_addr(&mut self) -> Option<SocketAddr> {
        let at = self.read("admin.txt");
        let at = at.trim();
        if !at.starts_with('/') {
            return at.parse().ok();
        }
        if self.passage.is_none() {
            self.passage = Some(Passage::open(at).await);
        }
        self.passage.as_ref().map(|it| it.addr)
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.dir.0.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn tail(&self) -> String {
        let log = self.read("envoy.log");
        let lines: Vec<String> = log.lines().map(shortened).collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("--- the end of Envoy's log\n{tail}\n---")
    }
}

/// A port that leads to a unix socket.
#[derive(Debug)]
struct Passage {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Passage {
    async fn open(path: &str) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(loopback).await.expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let path = path.to_owned();
        let task = tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                if let Ok(mut to) = UnixStream::connect(&path).await {
                    tokio::spawn(async move {
                        // Whoever hangs up has what it wanted.
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    });
                }
            }
        });
        Self { addr, task }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A line without its middle: Envoy quotes the whole configuration in an error.
fn shortened(line: &str) -> String {
    let chars: Vec<char> = line.chars().collect();
    match chars.len() {
        0..=800 => line.to_owned(),
        length => chars[..400]
            .iter()
            .chain(&[' ', '…', ' '])
            .chain(&chars[length - 400..])
            .collect(),
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The watchdog first: once Envoy is waited for, its id may be another's. Errors say that
        // they are gone already.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
        if std::thread::panicking() {
            self.dir.1 = true;
            eprintln!("{}\nmore in {}", self.tail(), self.dir.0.display());
        }
    }
}

/// A directory of its own, removed when dropped unless it is to be kept.
#[derive(Debug)]
pub struct Dir(PathBuf, bool);

impl Dir {
    /// Makes one.
    pub fn new() -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("haven-envoy-{}-{count}", std::process::id()));
        // What stands there is of a dead process with our id.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path)?;
        Ok(Self(path, false))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if !self.1 {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
