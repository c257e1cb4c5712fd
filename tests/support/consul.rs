//! A stand-in for Consul, written from the documentation of its HTTP API: `/v1/health/service/NAME`
//! with blocking queries, `passing`, `tag`, and tokens. The real server was never run against haven.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Reserved;

/// A running stand-in; ended when dropped.
#[derive(Debug)]
pub struct Consul {
    at: Reserved,
    state: Arc<State>,
    server: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    catalog: Mutex<Catalog>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Catalog {
    /// Instances of services by their ids.
    instances: BTreeMap<String, Instance>,
    /// Counts changes, from 1 on.
    index: u64,
    token: Option<String>,
    /// What is answered in place of everything.
    broken: Option<(u16, String)>,
    /// The queries so far.
    queries: Vec<String>,
}

#[derive(Clone, Debug)]
struct Instance {
    service: String,
    definition: Value,
    status: String,
}

/// An instance's definition that says where it is, and nothing else.
pub fn instance(service: &str, addr: SocketAddr) -> Value {
    json!({"Name": service, "Address": addr.ip().to_string(), "Port": addr.port()})
}

impl State {
    fn with<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        change(&mut self.catalog.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Consul {
    /// Starts one without services.
    pub async fn start() -> Self {
        let mut it = Self {
            at: Reserved::new(Ipv4Addr::LOCALHOST.into()),
            state: Arc::default(),
            server: None,
        };
        it.state.with(|catalog| catalog.index = 1);
        it.revive().await;
        it
    }

    /// Where its clients reach it.
    pub fn addr(&self) -> SocketAddr {
        self.at.addr
    }

    /// Only who shows this token is answered.
    pub fn demand(&self, token: &str) {
        self.state
            .with(|catalog| catalog.token = Some(token.to_owned()));
    }

    /// Registers an instance by its definition, with the fields of `/v1/agent/service/register`.
    pub fn register(&self, id: &str, definition: &Value) {
        self.change(|catalog| {
            let instance = Instance {
                service: definition["Name"].as_str().expect("a name").to_owned(),
                definition: definition.clone(),
                status: "passing".to_owned(),
            };
            catalog.instances.insert(id.to_owned(), instance);
        });
    }

    /// Takes an instance out.
    pub fn deregister(&self, id: &str) {
        self.change(|catalog| _ = catalog.instances.remove(id));
    }

    /// Sets the state of an instance's check: `passing`, `warning`, `critical`.
    pub fn set_check(&self, id: &str, status: &str) {
        self.change(|catalog| {
            let instance = catalog.instances.get_mut(id).expect("an instance");
            instance.status = status.to_owned();
        });
    }

    /// Answers so, whatever it is asked; `None`: as it should.
    pub fn break_with(&self, answer: Option<(u16, &str)>) {
        let answer = answer.map(|(status, body)| (status, body.to_owned()));
        self.change(|catalog| catalog.broken = answer);
    }

    /// The queries so far.
    pub fn queries(&self) -> Vec<String> {
        self.state.with(|catalog| catalog.queries.clone())
    }

    /// Ends it, and all its connections.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }

    /// Starts it again with what was registered, and counting from 1 again, as after a restore.
    pub async fn revive(&mut self) {
        self.state.with(|catalog| catalog.index = 1);
        let listener = TcpListener::bind(self.at.addr).await;
        let listener = listener.expect("the address is its own");
        let state = Arc::clone(&self.state);
        self.server = Some(tokio::spawn(async move {
            // Ended with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    let answer = service_fn(|request| answer(Arc::clone(&state), request));
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer);
                    let _ = served.await;
                });
            }
        }));
    }

    fn change(&self, change: impl FnOnce(&mut Catalog)) {
        self.state.with(|catalog| {
            change(catalog);
            catalog.index += 1;
        });
        self.state.changed.notify_waiters();
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    let shown = request.headers().get("x-consul-token").cloned();
    let parameter = |name: &str| {
        let mut pairs = query.split('&').filter_map(|it| it.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then(|| value.to_owned()))
    };
    state.with(|catalog| catalog.queries.push(format!("{path}?{query}")));
    let known: u64 = parameter("index").map_or(0, |it| it.parse().unwrap_or(0));
    let wait = parameter("wait").map_or(300_000, |it| {
        it.trim_end_matches("ms").parse().expect("milliseconds")
    });
    // Until something has changed, or the time is over, and a sixteenth of it at most.
    let end = tokio::time::Instant::now() + Duration::from_millis(wait + wait / 32);
    loop {
        let changed = state.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let waits = known > 0 && state.with(|it| it.index == known && it.broken.is_none());
        if !waits || tokio::time::timeout_at(end, changed).await.is_err() {
            break;
        }
    }
    let (status, index, body) = state.with(|catalog| {
        let demanded = catalog.token.as_deref();
        let allowed = demanded.is_none_or(|it| shown.as_ref().is_some_and(|shown| shown == it));
        match (&catalog.broken, path.strip_prefix("/v1/health/service/")) {
            (Some((status, body)), _) => (*status, catalog.index, body.clone()),
            _ if !allowed => (403, catalog.index, "Permission denied".to_owned()),
            (None, Some(service)) => {
                let tag = parameter("tag");
                let list = catalog.list(service, tag.as_deref(), parameter("passing").is_some());
                (200, catalog.index, json!(list).to_string())
            }
            (None, None) => (404, catalog.index, String::new()),
        }
    });
    let response = Response::builder()
        .status(status)
        .header("x-consul-index", index)
        .header("content-type", "application/json");
    Ok(response.body(Full::from(body)).expect("a response"))
}

impl Catalog {
    fn list(&self, service: &str, tag: Option<&str>, passing: bool) -> Vec<Value> {
        let instances = self.instances.iter().filter(|(_, it)| {
            let tags = it.definition["Tags"].as_array();
            let tagged =
                tag.is_none_or(|tag| tags.is_some_and(|all| all.iter().any(|it| it == tag)));
            it.service == service && tagged && (!passing || it.status == "passing")
        });
        let shown = instances.map(|(id, it)| {
            let weights = json!({"Passing": 1, "Warning": 1});
            let or = |value: &Value, other: Value| if value.is_null() { other } else { value.clone() };
            let of = &it.definition;
            json!({
                "Node": {"ID": "", "Node": "node1", "Address": "127.0.0.1", "Datacenter": "dc1"},
                "Service": {"ID": id, "Service": it.service, "Tags": or(&of["Tags"], json!([])),
                    "Address": or(&of["Address"], json!("")), "Port": of["Port"],
                    "Meta": or(&of["Meta"], json!({})), "Weights": or(&of["Weights"], weights)},
                "Checks": [
                    {"CheckID": "serfHealth", "Status": "passing", "Output": "Agent alive and reachable"},
                    {"CheckID": format!("service:{id}"), "Status": it.status, "ServiceID": id},
                ],
            })
        });
        shown.collect()
    }
}
