//! The demo upstream as a part of a process: the program `upstream` runs it, and so do the demo and
//! the tests.
//!
//! Two listeners: one for requests, which the faults strike, and one for the control of the faults,
//! which they never touch.
//!
//! | admin request | does |
//! |---|---|
//! | `GET /admin/state` | faults and counters as JSON |
//! | `POST /admin/faults` | sets the fields given (JSON; `null` = the default), refuses unknown ones |
//! | `POST /admin/reset` | all faults off, counters to zero |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

mod body;
pub mod faults;
mod gate;
mod wire;

use body::{Gone, Payload};
use faults::{Faults, HealthReport, header_map};
use gate::{Gate, Permit};
use wire::{Link, Wire};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16_384;
/// The longest request body that is read; more is answered 413.
const MAX_BODY: usize = 16 << 20;
/// The longest document that sets faults.
const MAX_PATCH: usize = 1 << 20;
/// Headers of a request, in bytes.
const MAX_HEADERS: u32 = 256 << 10;
/// How long requests in flight may take when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Where the upstream listens and what it calls itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where requests are served; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where faults are switched; port 0 picks a free one.
    pub admin: SocketAddr,
    /// Its name in answers.
    pub name: String,
}

impl Default for Options {
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: loopback,
            admin: loopback,
            name: "upstream".to_owned(),
        }
    }
}

/// What was seen so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Requests received, those to `/health` aside.
    pub requests: u64,
    /// Requests to `/health` received.
    pub health_requests: u64,
    /// Requests received and neither answered nor given up, those to `/health` aside.
    pub in_flight: u64,
    /// The most that were in flight at once.
    pub max_in_flight: u64,
    /// Requests that occupy a place of the capacity.
    pub serving: u64,
    /// The most that occupied a place at once.
    pub max_serving: u64,
    /// Requests that ended without an answer: reset, hung, cut off by the client.
    pub unanswered: u64,
    /// Answers by status, those of `/health` aside.
    pub answered: BTreeMap<u16, u64>,
    /// Connections accepted.
    pub connections: u64,
}

/// A running upstream. Dropped, it is gone at once; see [`Upstream::stop`] for a graceful end.
#[derive(Debug)]
pub struct Upstream {
    state: Arc<State>,
    addr: SocketAddr,
    admin_addr: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    name: String,
    faults: watch::Sender<Arc<Faults>>,
    listening: watch::Sender<Listening>,
    stop: watch::Sender<bool>,
    gate: Arc<Gate>,
    counters: Mutex<Counters>,
}

/// What the port of the requests does.
#[derive(Debug, PartialEq)]
enum Listening {
    Open,
    Closed,
    /// It was to open again and could not.
    Failed(String),
}

impl Upstream {
    /// Starts it; it serves from here on.
    pub async fn start(options: Options) -> io::Result<Self> {
        let reserved = bind(options.listen)?;
        let addr = local_addr(&reserved)?;
        let listener = listen(addr)?;
        let admin = TcpListener::bind(options.admin).await?;
        let admin_addr = admin.local_addr()?;
        let state = Arc::new(State {
            name: options.name,
            faults: watch::Sender::new(Arc::new(Faults::default())),
            listening: watch::Sender::new(Listening::Open),
            stop: watch::Sender::new(false),
            gate: Arc::default(),
            counters: Mutex::default(),
        });
        let tasks = vec![
            tokio::spawn(serve_requests(state.clone(), reserved, listener)),
            tokio::spawn(serve_admin(state.clone(), admin)),
        ];
        Ok(Self {
            state,
            addr,
            admin_addr,
            tasks,
        })
    }

    /// Where it serves requests.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its faults are switched.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// The present faults.
    pub fn faults(&self) -> Faults {
        Faults::clone(&self.state.faults.borrow())
    }

    /// Changes the faults. When it returns, they are in force: a closed port refuses, a reopened
    /// one accepts.
    pub async fn update(&self, change: impl FnOnce(&mut Faults)) -> Result<(), String> {
        let mut faults = self.faults();
        change(&mut faults);
        self.state.apply(faults).await
    }

    /// All faults off, counters to zero.
    pub async fn reset(&self) -> Result<(), String> {
        self.state.reset().await
    }

    /// What was seen so far.
    pub fn counters(&self) -> Counters {
        self.state.counters().clone()
    }

    /// Requests that wait for a place.
    pub fn waiting(&self) -> usize {
        self.state.gate.waiting()
    }

    /// Refuses new connections, answers the requests in flight (for 5 s at most) and ends.
    pub async fn stop(mut self) {
        self.state.stop.send_replace(true);
        for task in std::mem::take(&mut self.tasks) {
            // An error says that the task was cancelled: it has ended all the same.
            let _ = task.await;
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl State {
    async fn apply(&self, faults: Faults) -> Result<(), String> {
        faults.check()?;
        let want = if faults.close {
            Listening::Closed
        } else {
            Listening::Open
        };
        self.gate.resize(faults.capacity);
        let mut listening = self.listening.subscribe();
        self.faults.send_replace(Arc::new(faults));
        let settled = listening.wait_for(|now| *now == want || matches!(now, Listening::Failed(_)));
        match tokio::time::timeout(GRACE, settled).await {
            Ok(Ok(now)) => match &*now {
                Listening::Failed(error) => Err(format!("cannot listen again: {error}")),
                Listening::Open | Listening::Closed => Ok(()),
            },
            _ => Err("the listener does not follow".to_owned()),
        }
    }

    async fn reset(&self) -> Result<(), String> {
        self.apply(Faults::default()).await?;
        let mut counters = self.counters();
        let (in_flight, serving) = (counters.in_flight, counters.serving);
        *counters = Counters {
            in_flight,
            max_in_flight: in_flight,
            serving,
            max_serving: serving,
            ..Counters::default()
        };
        Ok(())
    }

    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn as_json(&self) -> Value {
        let counters = self.counters().clone();
        let answered: BTreeMap<String, u64> = counters
            .answered
            .iter()
            .map(|(k, v)| (k.to_string(), *v))
            .collect();
        json!({
            "name": self.name,
            "faults": **self.faults.borrow(),
            "counters": {
                "requests": counters.requests,
                "health_requests": counters.health_requests,
                "in_flight": counters.in_flight,
                "max_in_flight": counters.max_in_flight,
                "serving": counters.serving,
                "max_serving": counters.max_serving,
                "waiting": self.gate.waiting(),
                "unanswered": counters.unanswered,
                "answered": answered,
                "connections": counters.connections,
            },
        })
    }
}

// --- Sockets

fn bind(addr: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(addr),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn local_addr(socket: &socket2::Socket) -> io::Result<SocketAddr> {
    socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("bound to something that is no IP address"))
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(addr)?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// `_reserved` is bound but never listens: it keeps the port ours while the listener is closed.
async fn serve_requests(state: Arc<State>, _reserved: socket2::Socket, listener: TcpListener) {
    let addr = listener.local_addr();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    let mut faults = state.faults.subscribe();
    let mut stop = state.stop.subscribe();
    loop {
        let close = faults.borrow_and_update().close;
        if close && listener.take().is_some() {
            connections.shutdown().await;
            state.listening.send_replace(Listening::Closed);
        } else if !close && listener.is_none() {
            match addr
                .as_ref()
                .map_err(io::Error::to_string)
                .and_then(|a| listen(*a).map_err(|e| e.to_string()))
            {
                Ok(fresh) => {
                    listener = Some(fresh);
                    state.listening.send_replace(Listening::Open);
                }
                Err(error) => {
                    state.listening.send_replace(Listening::Failed(error));
                }
            }
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            changed = faults.changed() => if changed.is_err() { break },
            Some(_) = connections.join_next() => {}
            stream = accept(listener.as_ref()), if connections.len() < MAX_CONNECTIONS => {
                state.counters().connections += 1;
                connections.spawn(serve_connection(state.clone(), stream));
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // What is not done by then is dropped with the set.
    let _ = tokio::time::timeout(GRACE, all).await;
}

/// The next connection; never returns without a listener.
pub async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // The peer has gone already, or we are out of descriptors: leave the machine some time
            // to recover.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Requests with odd names and many fields are what the tests send: they are to arrive.
    builder.http1().max_headers(1000);
    builder
        .http2()
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(10_000);
    builder
}

async fn serve_connection(state: Arc<State>, stream: TcpStream) {
    // Without it answers come late, but they come.
    let _ = stream.set_nodelay(true);
    let mut stop = state.stop.subscribe();
    let link = Link::new();
    let io = TokioIo::new(Wire::new(stream, link.clone()));
    let service = service_fn(|request| answer(state.clone(), link.clone(), request));
    let builder = protocol();
    let connection = builder.serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            () = link.torn() => return,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            // However it ended, it ended.
            _ = connection.as_mut() => return,
        }
    }
}

// --- Requests

/// Counts a request while it is in flight.
struct InFlight {
    state: Arc<State>,
    status: Option<u16>,
}

impl InFlight {
    /// Counts the request in; also says which one it is, from 1 on.
    fn new(state: &Arc<State>) -> (Self, u64) {
        let mut counters = state.counters();
        counters.requests += 1;
        counters.in_flight += 1;
        counters.max_in_flight = counters.max_in_flight.max(counters.in_flight);
        (
            Self {
                state: state.clone(),
                status: None,
            },
            counters.requests,
        )
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut counters = self.state.counters();
        counters.in_flight = counters.in_flight.saturating_sub(1);
        match self.status {
            Some(status) => *counters.answered.entry(status).or_default() += 1,
            None => counters.unanswered += 1,
        }
    }
}

/// Counts a request while it has a place.
struct Serving {
    state: Arc<State>,
    _permit: Permit,
}

impl Serving {
    async fn enter(state: &Arc<State>) -> Self {
        let permit = state.gate.enter().await;
        let mut counters = state.counters();
        counters.serving += 1;
        counters.max_serving = counters.max_serving.max(counters.serving);
        Self {
            state: state.clone(),
            _permit: permit,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut counters = self.state.counters();
        counters.serving = counters.serving.saturating_sub(1);
    }
}

async fn answer(
    state: Arc<State>,
    link: Arc<Link>,
    request: Request<Incoming>,
) -> Result<Response<Payload>, Gone> {
    let mut faults = Faults::clone(&state.faults.borrow());
    let health = request.uri().path() == "/health";
    let mut in_flight = None;
    if health {
        state.counters().health_requests += 1;
        faults.status = None;
    } else {
        let (guard, number) = InFlight::new(&state);
        in_flight = Some(guard);
        if !number.is_multiple_of(faults.every) {
            faults = Faults {
                status: None,
                delay_ms: 0,
                hang: false,
                reset: false,
                cut: false,
                ..faults
            };
        }
    }
    if faults.reset {
        link.reset();
    }
    if faults.hang || faults.reset {
        link.closed().await;
        return Err(Gone);
    }
    let method = request.method().clone();
    let (parts, body) = request.into_parts();
    let received = match drain(body).await {
        Ok(received) => received,
        Err(status) => {
            let reply = plain(status, "the request's body is too long or was cut off\n");
            return Ok(finish(reply, &method, in_flight));
        }
    };
    {
        let _serving = Serving::enter(&state).await;
        pause(faults.service_time_ms).await;
    }
    pause(faults.delay_ms).await;

    let path = parts.uri.path();
    let (status, content_type, body) = if health {
        let (status, body) = report(&state.name, &faults.health);
        (status, "application/json", body)
    } else if path == "/echo" || path.starts_with("/echo/") {
        (
            StatusCode::OK,
            "application/json",
            echo(&state.name, &parts, received).to_string(),
        )
    } else {
        let users = json!({"users": ["ada", "grace", "linus"], "served_by": state.name});
        (StatusCode::OK, "application/json", users.to_string())
    };
    let status = faults
        .status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(status);
    let body = Bytes::from(faults.body.filter(|_| !health).unwrap_or(body));
    // Both were checked when they were set.
    let trailers = Some(header_map("trailers", &faults.trailers).unwrap_or_default())
        .filter(|map| !map.is_empty());
    let payload = if faults.cut {
        Payload::cut(&body, link)
    } else {
        Payload::whole(body, trailers)
    };
    let mut response = Response::new(payload);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
        .headers_mut()
        .extend(header_map("headers", &faults.headers).unwrap_or_default());
    Ok(finish(response, &method, in_flight))
}

fn finish(
    mut response: Response<Payload>,
    method: &Method,
    in_flight: Option<InFlight>,
) -> Response<Payload> {
    if method == Method::HEAD {
        if let Some(length) = response.body().size_hint().exact() {
            response
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        *response.body_mut() = Payload::whole(Bytes::new(), None);
    }
    if let Some(mut guard) = in_flight {
        guard.status = Some(response.status().as_u16());
    }
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Payload> {
    let mut response = Response::new(Payload::whole(Bytes::from_static(text.as_bytes()), None));
    *response.status_mut() = status;
    response
}

async fn pause(milliseconds: u64) {
    if milliseconds > 0 {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

/// Reads the body to its end and says how long it was.
async fn drain(mut body: Incoming) -> Result<usize, StatusCode> {
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        received += frame.data_ref().map_or(0, Bytes::len);
        if received > MAX_BODY {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
    }
    Ok(received)
}

fn echo(name: &str, request: &hyper::http::request::Parts, received: usize) -> Value {
    let mut headers: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in &request.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    json!({
        "upstream": name,
        "method": request.method.as_str(),
        "path": request.uri.path(),
        "query": request.uri.query(),
        "protocol": format!("{:?}", request.version),
        "headers": headers,
        "body_bytes": received,
    })
}

fn report(name: &str, health: &HealthReport) -> (StatusCode, String) {
    let overall = health.overall();
    let usual = if overall == "UP" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let status = health
        .http_status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(usual);
    let body = health.raw.clone().unwrap_or_else(|| {
        let timestamp = health.timestamp.clone().unwrap_or_else(now);
        json!({
            "service": name,
            "status": overall,
            "details": health.components,
            "timestamp": timestamp,
        })
        .to_string()
    });
    (status, body)
}

/// The present time as RFC 3339, in UTC.
fn now() -> String {
    #[allow(
        clippy::disallowed_methods,
        reason = "a native program: the lint guards the filter"
    )]
    let since_epoch = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    rfc3339(since_epoch)
}

fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, in years that begin in March: a leap day is then
    // the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second % 3600 / 60,
        second % 60,
        since_epoch.subsec_millis()
    )
}

// --- Control

async fn serve_admin(state: Arc<State>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut stop = state.stop.subscribe();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Some(_) = connections.join_next() => {}
            stream = accept(Some(&listener)), if connections.len() < MAX_CONNECTIONS => {
                let state = state.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| admin(state.clone(), request));
                    // However it ended, it ended.
                    let _ = protocol().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }
    }
}

async fn admin(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let (status, reply) = match (parts.method.as_str(), parts.uri.path()) {
        ("GET", "/admin/state") => (StatusCode::OK, state.as_json()),
        ("POST", "/admin/faults") => match set(&state, body).await {
            Ok(()) => (StatusCode::OK, state.as_json()),
            Err((status, message)) => (status, json!({"error": message})),
        },
        ("POST", "/admin/reset") => match state.reset().await {
            Ok(()) => (StatusCode::OK, state.as_json()),
            Err(message) => (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": message})),
        },
        (_, "/admin/state" | "/admin/faults" | "/admin/reset") => (
            StatusCode::METHOD_NOT_ALLOWED,
            json!({"error": "GET /admin/state, POST /admin/faults, POST /admin/reset"}),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            json!({"error": "want /admin/state, /admin/faults or /admin/reset"}),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(format!("{reply}\n"))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn set(state: &State, body: Incoming) -> Result<(), (StatusCode, String)> {
    let patch = match Limited::new(body, MAX_PATCH).collect().await {
        Ok(patch) => patch.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err((
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("at most {MAX_PATCH} bytes are read"),
            ));
        }
        Err(error) => return Err((StatusCode::BAD_REQUEST, error.to_string())),
    };
    let faults = Faults::clone(&state.faults.borrow())
        .patched(&patch)
        .map_err(|e| (StatusCode::BAD_REQUEST, e))?;
    state
        .apply(faults)
        .await
        .map_err(|e| (StatusCode::BAD_REQUEST, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_of_the_gregorian_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, want) in cases {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn a_patch_changes_what_it_names_and_refuses_what_it_cannot_mean() {
        let faults = Faults {
            hang: true,
            ..Faults::default()
        };
        let patched = faults.patched(br#"{"status":503,"hang":null}"#).unwrap();
        assert_eq!(
            patched,
            Faults {
                status: Some(503),
                ..Faults::default()
            }
        );
        for (patch, want) in [
            (r#"{"statsu":503}"#, "statsu: unknown field, want one of"),
            (r#"{"status":99}"#, "status: 99 is not allowed"),
            (r#"{"capacity":0}"#, "capacity: 0 is not allowed"),
            (
                r#"{"headers":{"content-length":"1"}}"#,
                "\"content-length\" is not allowed",
            ),
            (r#"{"health":{"x":1}}"#, "unknown field"),
            ("[]", "not a JSON object"),
        ] {
            let error = faults.patched(patch.as_bytes()).unwrap_err();
            assert!(error.contains(want), "{patch}: {error}");
        }
    }
}
