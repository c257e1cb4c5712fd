//! What the tests of the filter have in common: its configuration in few words, its metrics, and
//! whether it is still sound.

#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haven::host::sim::decision_of;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{Client, Envoy, Reply, Tally, wait_for};

/// The filter's `endpoints`, each of weight 1.
pub fn endpoints(addrs: &[SocketAddr]) -> Value {
    addrs
        .iter()
        .map(|addr| json!({"address": addr.to_string()}))
        .collect()
}

/// The decision in each line of the access log, in its order.
pub fn decisions(log: &[Value]) -> Vec<String> {
    log.iter().map(decision).collect()
}

/// What a line of the access log says that haven decided: its note, or else the details of haven's
/// own reply, in the form of a note.
pub fn decision(line: &Value) -> String {
    if let Some(noted) = line["decision"].as_str().filter(|it| *it != "-") {
        return noted.to_owned();
    }
    let details = line["details"].as_str().unwrap_or_default();
    decision_of(details).unwrap_or_else(|| "-".to_owned())
}

/// Refusals that were counted with these labels.
pub async fn counted(envoy: &Envoy, labels: &[(&str, &str)]) -> u64 {
    envoy.metrics().await.total("haven_decisions_total", labels) as u64
}

/// Requests that haven holds to be in flight, over all endpoints.
pub async fn in_flight(envoy: &Envoy) -> f64 {
    envoy.metrics().await.total("haven_endpoint_in_flight", &[])
}

/// Waits until nothing is in flight any more, as haven sees it.
pub async fn nothing_in_flight(envoy: &Envoy) {
    wait_for("nothing is in flight", async || {
        in_flight(envoy).await == 0.0
    })
    .await;
}

/// Changes to this state, of this breaker.
pub async fn transitions(envoy: &Envoy, breaker: &str, to: &str) -> u64 {
    let labels = [("circuit_breaker", breaker), ("to", to)];
    envoy
        .metrics()
        .await
        .total("haven_circuit_breaker_transitions_total", &labels) as u64
}

/// The filter has neither panicked nor been reloaded in any worker, and Envoy still runs.
pub async fn assert_sound(envoy: &mut Envoy) {
    assert!(envoy.is_running(), "Envoy has ended");
    let log = envoy.logs();
    for bad in [
        "panicked",
        "Wasm VM failed",
        "unreachable",
        "Function: proxy_on",
        "[critical]",
    ] {
        let line = log.lines().find(|line| line.contains(bad));
        assert_eq!(line, None, "in Envoy's log");
    }
    let page = envoy.admin_get("/stats?filter=vm_reload").await;
    let reloads: Vec<&str> = page.lines().filter(|line| !line.ends_with(": 0")).collect();
    assert!(reloads.is_empty(), "{reloads:?}");
}

/// A gRPC call (its headers and an empty message).
pub fn grpc_request(addr: SocketAddr, path: &str) -> Request<Full<hyper::body::Bytes>> {
    Request::builder()
        .method("POST")
        .uri(format!("http://{addr}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(vec![0; 5].into()))
        .unwrap()
}

/// Sends a gRPC call and says what its status was, from the headers or the trailers.
pub async fn grpc(client: &Client, addr: SocketAddr, path: &str) -> (Option<String>, Reply) {
    let reply = client.send(grpc_request(addr, path)).await.unwrap();
    let from_trailers = || {
        let value = reply.trailers.as_ref()?.get("grpc-status")?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    (reply.header("grpc-status").or_else(from_trailers), reply)
}

/// A steady load: requests one after the other on each of its clients, until it is stopped.
pub struct Steady {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Steady {
    /// Starts it: each client sends GETs to `path`, with `pause` between them.
    pub fn start(clients: impl IntoIterator<Item = Client>, path: &str, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = clients.into_iter().map(|client| {
            let (stop, path) = (stop.clone(), path.to_owned());
            tokio::spawn(async move {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    tally.add(&client.get(&path).await);
                    tokio::time::sleep(pause).await;
                }
                tally
            })
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    /// Stops it, and says what came back.
    pub async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for client in self.clients {
            tally.merge(client.await.unwrap());
        }
        tally
    }
}

/// An upstream that answers each request with bytes as they stand, and then closes the connection.
pub struct Scripted {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Scripted {
    /// Starts one; `answer` gets the request's head.
    pub async fn start(answer: impl Fn(&[u8]) -> Vec<u8> + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    // Whoever asked may have gone: that is its affair.
                    let _ = stream.write_all(&answer(&head)).await;
                    let _ = stream.shutdown().await;
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                });
            }
        });
        Self { addr, task }
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a request and keeps it going: dropped, the client hangs up.
pub fn hanging(request: impl Future<Output = Result<Reply, String>> + Send + 'static) -> Hanging {
    Hanging(tokio::spawn(request))
}

/// A request of [`hanging`].
pub struct Hanging(JoinHandle<Result<Reply, String>>);

impl Hanging {
    /// Whether it has been answered.
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// The answer.
    pub async fn reply(&mut self) -> Result<Reply, String> {
        (&mut self.0).await.unwrap()
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.abort();
    }
}
