//! A real etcd of a test's own: one member, whose keys are changed over its JSON gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{Client, Dir, Reserved, wait_for};

/// A running etcd; ended when dropped.
#[derive(Debug)]
pub struct Etcd {
    server: Option<Child>,
    program: PathBuf,
    /// Go's listeners set `SO_REUSEADDR`.
    clients: Reserved,
    peers: Reserved,
    client: Client,
    dir: Dir,
}

impl Etcd {
    /// Starts one without keys.
    pub async fn start() -> Self {
        let program = super::server_program("etcd").unwrap_or_else(|error| panic!("{error}"));
        let loopback = || Reserved::new(Ipv4Addr::LOCALHOST.into());
        let clients = loopback();
        let mut it = Self {
            server: None,
            program,
            client: Client::h1(clients.addr),
            clients,
            peers: loopback(),
            dir: Dir::new().expect("a directory for etcd"),
        };
        it.revive().await;
        it
    }

    /// Where its clients reach it.
    pub fn addr(&self) -> SocketAddr {
        self.clients.addr
    }

    /// Ends it at once, as a lost machine does. Its keys stay.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Starts it again, with the keys that it had.
    pub async fn revive(&mut self) {
        let (client, peer) = (url(&self.clients), url(&self.peers));
        let server = Command::new(&self.program)
            .args(["--name", "one", "--log-level", "error"])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("one={peer}")])
            // Elects itself within half a second.
            .args(["--heartbeat-interval", "50", "--election-timeout", "250"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.server = Some(server.expect("etcd starts"));
        wait_for("etcd answers", async || {
            let health = self.client.get("/health").await;
            health.is_ok_and(|it| it.status == 200 && it.text().contains("true"))
        })
        .await;
    }

    /// Asks the gateway.
    pub async fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self
            .client
            .request("POST", path, &[], body.to_string())
            .await;
        let reply = reply.unwrap_or_else(|error| panic!("etcd {path}: {error}"));
        assert_eq!(reply.status, 200, "etcd {path}: {}", reply.text());
        reply.json()
    }

    /// Sets a key.
    pub async fn put(&self, key: &str, value: &str) {
        let body = json!({"key": base64(key), "value": base64(value)});
        self.ask("/v3/kv/put", &body).await;
    }

    /// Sets a key that goes when its lease ends.
    pub async fn put_leased(&self, key: &str, value: &str, lease: &str) {
        let body = json!({"key": base64(key), "value": base64(value), "lease": lease});
        self.ask("/v3/kv/put", &body).await;
    }

    /// A lease of so many seconds.
    pub async fn lease(&self, seconds: u32) -> String {
        let answer = self.ask("/v3/lease/grant", &json!({"TTL": seconds})).await;
        answer["ID"].as_str().expect("a lease").to_owned()
    }

    /// Removes a key.
    pub async fn delete(&self, key: &str) {
        self.ask("/v3/kv/deleterange", &json!({"key": base64(key)}))
            .await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn url(at: &Reserved) -> String {
    format!("http://{}", at.addr)
}

/// In base64, as the gateway has it.
pub fn base64(text: &str) -> String {
    haven::base::base64::encode(text.as_bytes())
}
