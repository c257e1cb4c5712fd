//! An endpoint of the service: slots with a queue in front, work that goes on when the caller has
//! gone, and the faults of its world at their moments. It counts what it got and what it did.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::draw::Draw;
use super::stats::LATE;
use super::world::{Action, Path, World};

/// The request header with a request's number, and the response header that repeats it: an answer
/// with another number, or without, did not come from here for this request.
pub const NUMBER: &str = "x-avail-number";

/// Time for a health check where nothing is wrong.
const CHECK: Duration = Duration::from_millis(1);

/// What an endpoint got and did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The number of the request of each try that arrived, since the world began.
    pub tries: Vec<usize>,
    /// Requests that a fault struck or could have struck.
    pub struck: u64,
    /// Of them, those answered 503.
    pub failed: u64,
    /// Of them, those that were never answered.
    pub hung: u64,
    /// Of them, those that took longer than they would have.
    pub slowed: u64,
    /// Work that was finished while the fault lasted.
    pub finished: u64,
    /// Requests that were at work or in the queue when the endpoint was killed.
    pub killed: u64,
    /// Requests that arrived while the endpoint was to refuse.
    pub taken_while_dead: u64,
    /// Attempts of our own to connect while the endpoint was to refuse.
    pub probes: u64,
    /// Of them, those that were refused.
    pub refused: u64,
    /// Work that took longer than it should have by more than [`LATE`]: the machine was busy.
    pub late: u64,
    /// Finished work in all.
    pub worked: u64,
}

/// A running endpoint; gone when dropped.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    addr: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    world: Arc<World>,
    index: usize,
    /// The beginning of the world's time, once it is known.
    begin: watch::Sender<Option<Instant>>,
    /// Replaced when the endpoint is killed: its work is gone with it.
    life: Mutex<Arc<Semaphore>>,
    draw: Mutex<Draw>,
    seen: Mutex<Seen>,
    /// Requests at work or in the queue now.
    busy: AtomicU64,
}

impl Upstream {
    /// Starts the endpoint of this number; it is well until the world begins.
    pub async fn start(world: &Arc<World>, index: usize) -> io::Result<Self> {
        let reserved = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = reserved
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("no IP address"))?;
        let listener = listen(addr)?;
        let shared = Arc::new(Shared {
            world: world.clone(),
            index,
            begin: watch::Sender::new(None),
            life: Mutex::new(Arc::new(Semaphore::new(world.slots))),
            draw: Mutex::new(Draw::new(world.seed, 1_000 + index as u64)),
            seen: Mutex::default(),
            busy: AtomicU64::new(0),
        });
        let task = tokio::spawn(run(shared.clone(), addr, reserved, listener));
        Ok(Self { shared, addr, task })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Begins the world's time.
    pub fn begin(&self, at: Instant) {
        self.shared.begin.send_replace(Some(at));
    }

    /// What it got and did so far.
    pub fn seen(&self) -> Seen {
        self.shared.seen().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// The world's time; `None` until it is known when it begins.
    fn now(&self) -> Option<Duration> {
        let begin = (*self.begin.borrow())?;
        // Zero until then: who waits for a moment is to know it beforehand.
        Some(Instant::now().saturating_duration_since(begin))
    }

    fn action(&self) -> Option<Action> {
        self.world.action(self.index, self.now()?)
    }

    fn in_fault(&self) -> bool {
        self.now().is_some_and(|now| self.world.in_fault(now))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) -> MutexGuard<'_, Draw> {
        self.draw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> MutexGuard<'_, Arc<Semaphore>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// --- Connections

fn bind(addr: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(addr)?;
    socket.listen(4_096)?;
    TcpListener::from_std(socket.into())
}

/// Serves, dies and comes back as the world has it. `_reserved` is bound and never listens: it
/// keeps the port ours while the endpoint is dead.
async fn run(
    shared: Arc<Shared>,
    addr: SocketAddr,
    _reserved: socket2::Socket,
    listener: TcpListener,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    let mut begin = shared.begin.subscribe();
    loop {
        let dead = shared.action() == Some(Action::Refuse);
        if dead && listener.take().is_some() {
            connections.shutdown().await;
            *shared.life() = Arc::new(Semaphore::new(shared.world.slots));
            let killed = shared.busy.swap(0, Ordering::Relaxed);
            shared.seen().killed += killed;
        } else if !dead && listener.is_none() {
            // The port is ours: only a lack of descriptors keeps it closed, and may pass.
            listener = listen(addr).ok();
        }
        if dead {
            let refused = TcpStream::connect(addr).await.is_err();
            let mut seen = shared.seen();
            seen.probes += 1;
            seen.refused += u64::from(refused);
        }
        let change = shared.now().and_then(|now| {
            let next = shared.world.next_change(shared.index, now)?;
            // While it is dead, now and then a look whether it really is.
            let pause = if dead { PROBE } else { Duration::MAX };
            Some(Instant::now() + (next - now).min(pause))
        });
        tokio::select! {
            biased;
            _ = begin.changed() => {}
            () = at(change) => {}
            Some(_) = connections.join_next() => {}
            stream = accept(listener.as_ref()) => {
                connections.spawn(serve(shared.clone(), stream));
            }
        }
    }
}

/// Time between two attempts to connect to a dead endpoint.
const PROBE: Duration = Duration::from_millis(250);

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    // Without it answers come late, but they come.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(shared.clone(), request));
    // However the connection ends, it ends.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

// --- Requests

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let action = shared.action();
    if request.uri().path() == "/health" {
        return Ok(check(&shared, action).await);
    }
    let number = request.headers().get(NUMBER).cloned();
    let bad = request.uri().path() == Path::Bad.text();
    let action = action.filter(|action| {
        let Action::Fail { bad_route_only, .. } = action else {
            return true;
        };
        bad || !bad_route_only
    });
    let begun = shared.now().is_some();
    {
        let mut seen = shared.seen();
        let parsed = number
            .as_ref()
            .and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
        if begun {
            seen.tries.extend(parsed);
        }
        seen.struck += u64::from(action.is_some());
        seen.taken_while_dead += u64::from(action == Some(Action::Refuse));
    }
    let (mut factor, mut fail_after) = (1.0, false);
    match action {
        Some(Action::Hang) => {
            shared.seen().hung += 1;
            std::future::pending::<()>().await;
        }
        Some(Action::Slow(times)) => {
            shared.seen().slowed += 1;
            factor = times;
        }
        Some(Action::Fail { share, at_once, .. }) => {
            fail_after = shared.draw().unit() < share;
            if fail_after && at_once {
                shared.seen().failed += 1;
                return Ok(reply(503, None));
            }
        }
        Some(Action::Refuse) | None => {}
    }
    let time = service_time(&shared).mul_f64(factor);
    let (done, finished) = oneshot::channel();
    tokio::spawn(work(shared.clone(), time, done));
    // An error: the endpoint was killed meanwhile, and this connection with it.
    if finished.await.is_err() {
        std::future::pending::<()>().await;
    }
    if fail_after {
        shared.seen().failed += 1;
        return Ok(reply(503, None));
    }
    Ok(reply(200, number))
}

/// What a request takes in its slot: half of the mean in any case, the rest exponential.
fn service_time(shared: &Shared) -> Duration {
    let factor = 0.5 + 0.5 * shared.draw().exponential();
    shared.world.service.mul_f64(factor)
}

/// Waits for a slot and holds it for so long, whether anybody still waits for the answer or not.
async fn work(shared: Arc<Shared>, time: Duration, done: oneshot::Sender<()>) {
    let life = shared.life().clone();
    shared.busy.fetch_add(1, Ordering::Relaxed);
    let Ok(_slot) = life.acquire().await else {
        return;
    };
    let begun = Instant::now();
    sleep(time).await;
    // Killed meanwhile: the work is of a life that is over.
    if !Arc::ptr_eq(&life, &shared.life()) {
        return;
    }
    let in_fault = shared.in_fault();
    shared.busy.fetch_sub(1, Ordering::Relaxed);
    let mut seen = shared.seen();
    seen.worked += 1;
    seen.finished += u64::from(in_fault);
    seen.late += u64::from(begun.elapsed() > time + LATE);
    let _ = done.send(());
}

/// A health check takes no slot, and fares as a request does otherwise. What strikes one route only
/// does not strike it.
async fn check(shared: &Shared, action: Option<Action>) -> Response<Full<Bytes>> {
    match action {
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Slow(times)) => sleep(CHECK.mul_f64(times)).await,
        Some(Action::Fail {
            share,
            bad_route_only: false,
            ..
        }) if shared.draw().unit() < share => return reply(503, None),
        _ => sleep(CHECK).await,
    }
    reply(200, None)
}

fn reply(status: u16, number: Option<hyper::header::HeaderValue>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"items\":[]}")));
    *response.status_mut() = status.try_into().expect("a status");
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    if let Some(number) = number {
        headers.insert(NUMBER, number);
    }
    response
}
