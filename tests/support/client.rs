//! HTTP clients that keep their connections: HTTP/1.1, and HTTP/2 without the upgrade ("prior
//! knowledge").

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one server. Its clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    addr: SocketAddr,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers, values as bytes.
    pub headers: HeaderMap,
    /// The body, or as much of it as came.
    pub body: Bytes,
    /// The trailers, if any came.
    pub trailers: Option<HeaderMap>,
    /// Why the body ended before its end.
    pub cut: Option<String>,
}

impl Reply {
    /// The first value of a header, lossy.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// The body as text, lossy.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON: {error}: {:?}", self.text()))
    }
}

impl Client {
    /// HTTP/1.1: as many connections as there are requests at once.
    pub fn h1(addr: SocketAddr) -> Self {
        Self::build(addr, None, |_| {})
    }

    /// HTTP/1.1 with a connection per request.
    pub fn h1_fresh(addr: SocketAddr) -> Self {
        Self::build(addr, None, |builder| {
            builder.pool_max_idle_per_host(0);
        })
    }

    /// HTTP/1.1 from a given local address: on Linux all of 127.0.0.0/8 can be had. Of a peer at
    /// 127.0.0.1, and only of that, Envoy writes the machine's own address into `x-forwarded-for`.
    pub fn h1_from(addr: SocketAddr, local: IpAddr) -> Self {
        Self::build(addr, Some(local), |_| {})
    }

    /// HTTP/2 with prior knowledge, all requests on one connection.
    pub fn h2(addr: SocketAddr) -> Self {
        Self::build(addr, None, |builder| {
            builder.http2_only(true);
        })
    }

    /// As [`Client::h2`], from a given local address.
    pub fn h2_from(addr: SocketAddr, local: IpAddr) -> Self {
        Self::build(addr, Some(local), |builder| {
            builder.http2_only(true);
        })
    }

    fn build(
        addr: SocketAddr,
        local: Option<IpAddr>,
        options: impl FnOnce(&mut legacy::Builder),
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(TIMEOUT));
        connector.set_local_address(local);
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        // A request that was never sent is sent on another connection; one that was is not.
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(true);
        options(&mut builder);
        Self {
            http: builder.build(connector),
            addr,
        }
    }

    /// Sends a GET.
    pub async fn get(&self, path: &str) -> Result<Reply, String> {
        self.request("GET", path, &[], "").await
    }

    /// Sends a GET with headers.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Result<Reply, String> {
        self.request("GET", path, headers, "").await
    }

    /// Sends a request. `Err`: no headers came back.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, String> {
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| error.to_string())?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(
            request
                .body(Full::new(body.into()))
                .map_err(|error| error.to_string())?,
        )
        .await
    }

    /// Sends a request as it stands. Its URI is to name the server.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, String> {
        let exchange = async {
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| causes(&error))?;
            let (parts, mut body) = response.into_parts();
            let (mut data, mut trailers, mut cut) = (Vec::new(), None, None);
            while let Some(frame) = body.frame().await {
                match frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers())) {
                    Ok(Ok(bytes)) => data.extend_from_slice(&bytes),
                    Ok(Err(fields)) => trailers = fields.ok(),
                    Err(error) => {
                        cut = Some(causes(&error));
                        break;
                    }
                }
            }
            Ok(Reply {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: data.into(),
                trailers,
                cut,
            })
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .map_err(|_| format!("no answer within {TIMEOUT:?}"))?
    }
}

/// An error with its causes: hyper's own words for most are "client error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What a load of requests came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests without a whole answer, by cause.
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Answers with this status.
    pub fn count(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or(0)
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.by_status.values().chain(self.errors.values()).sum()
    }

    /// Requests without a whole answer.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Counts one in.
    pub fn add(&mut self, outcome: &Result<Reply, String>) {
        match outcome {
            Ok(Reply {
                status, cut: None, ..
            }) => *self.by_status.entry(*status).or_default() += 1,
            Ok(Reply {
                cut: Some(error), ..
            })
            | Err(error) => *self.errors.entry(error.clone()).or_default() += 1,
        }
    }

    /// Both together.
    pub fn merge(&mut self, other: Self) {
        for (status, count) in other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }
}

/// Sends `requests` GETs, `concurrency` at once, and counts what comes back.
pub async fn load(
    client: &Client,
    requests: u64,
    concurrency: u64,
    path: &str,
    headers: &[(&str, &str)],
) -> Tally {
    let left = Arc::new(AtomicU64::new(requests));
    let headers: Vec<(String, String)> = headers
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (client, left, path, headers) = (
            client.clone(),
            left.clone(),
            path.to_owned(),
            headers.clone(),
        );
        workers.spawn(async move {
            let headers: Vec<(&str, &str)> = headers
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            let mut tally = Tally::default();
            let take = || {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
            };
            while take().is_ok() {
                tally.add(&client.get_with(&path, &headers).await);
            }
            tally
        });
    }
    let mut tally = Tally::default();
    for part in workers.join_all().await {
        tally.merge(part);
    }
    tally
}
