//! An endpoint that plays its part in a drawn world for real: HTTP/1.1 before the slots and the
//! queue that simulated endpoints have too, and faults at their moments.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use haven_upstream::accept;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::slots::{Due, Job, Slots, Time};

/// The request header with a request's number, and the response header that repeats it: an answer
/// with another number, or without, did not come from here for this request.
pub const NUMBER: &str = "x-number";

/// Work that is finished, or a request that is sent, later than this was delayed by the machine.
pub const LATE: Duration = Duration::from_millis(5);

/// Time between two attempts to connect to a dead endpoint.
const PROBE: Duration = Duration::from_millis(250);

/// Whether an endpoint can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It can.
    Up,
    /// It refuses, and what it worked on is lost.
    Dead,
    /// What is sent is lost, and no connection is made.
    Lost,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// It is answered with this status at once.
    Answer(u16),
    /// It is answered after this time; no slot is held meanwhile.
    After(Duration, u16),
    /// It takes a slot for so long, at full speed, and is then answered.
    Work(Duration, u16),
    /// It is never answered.
    Never,
}

/// The part of one endpoint in a world. Its moments count from the world's beginning.
pub trait Script: Debug + Send + Sync + 'static {
    /// Requests that it works on at once.
    fn slots(&self) -> usize;
    /// Places in its queue; `None`: no bound.
    fn places(&self) -> Option<usize>;
    /// Whether work stops when its caller has gone.
    fn stops(&self) -> bool;
    /// Whether it can be reached, and how fast it works; 1 is as ever, 0 stands still.
    fn condition(&self, at: Duration) -> (Reach, f64);
    /// The next moment at which its condition may change.
    fn next_change(&self, after: Duration) -> Option<Duration>;
    /// What becomes of a request that has come at this moment; `None`: the world has not begun.
    fn order(&self, request: &Parts, at: Option<Duration>) -> Order;
    /// Work was finished at this moment.
    fn finished(&self, _at: Duration) {}
}

/// What an endpoint has counted, whatever its part is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests that were at work or in the queue when the endpoint was killed.
    pub killed: u64,
    /// Requests that arrived while the endpoint was to refuse.
    pub taken_while_dead: u64,
    /// Attempts of our own to connect while the endpoint was to refuse.
    pub probes: u64,
    /// Of them, those that were refused.
    pub refused: u64,
    /// Finished work in all.
    pub worked: u64,
    /// Of it, what was finished late by more than [`LATE`]: the machine was busy.
    pub late: u64,
}

/// A running endpoint; gone when dropped.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    addr: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug)]
struct Shared {
    script: Arc<dyn Script>,
    born: Instant,
    /// The beginning of the world's time, once it is known.
    begin: watch::Sender<Option<Instant>>,
    life: Mutex<Life>,
    /// There is a moment at which work will be done that was not known before.
    more: Notify,
}

#[derive(Debug)]
struct Life {
    slots: Slots<u64>,
    dues: BinaryHeap<Reverse<(Time, u64)>>,
    waiting: HashMap<u64, oneshot::Sender<()>>,
    next: u64,
    lost: bool,
    counts: Counts,
}

impl Endpoint {
    /// Starts an endpoint; it is well until the world begins.
    pub async fn start(script: Arc<dyn Script>) -> io::Result<Self> {
        let reserved = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = reserved
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("no IP address"))?;
        let listener = listen(addr)?;
        let shared = Arc::new(Shared {
            born: Instant::now(),
            begin: watch::Sender::new(None),
            life: Mutex::new(Life {
                slots: Slots::new(script.slots(), script.places()),
                dues: BinaryHeap::new(),
                waiting: HashMap::new(),
                next: 0,
                lost: false,
                counts: Counts::default(),
            }),
            more: Notify::new(),
            script,
        });
        let tasks = [
            tokio::spawn(run(shared.clone(), addr, reserved, listener)),
            tokio::spawn(pace(shared.clone())),
        ];
        Ok(Self {
            shared,
            addr,
            tasks,
        })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Begins the world's time.
    pub fn begin(&self, at: Instant) {
        self.shared.begin.send_replace(Some(at));
    }

    /// What it has counted so far.
    pub fn counts(&self) -> Counts {
        self.shared.life().counts
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    /// The world's time; `None` until it is known when it begins.
    fn now(&self) -> Option<Duration> {
        let begin = (*self.begin.borrow())?;
        // Zero until then: who waits for a moment is to know it beforehand.
        Some(Instant::now().saturating_duration_since(begin))
    }

    fn condition(&self) -> (Reach, f64) {
        self.now()
            .map_or((Reach::Up, 1.0), |now| self.script.condition(now))
    }

    /// The life as it is at this moment: all that is due is done.
    fn life(&self) -> MutexGuard<'_, Life> {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.time();
        for due in life.advance(now) {
            life.counts.worked += 1;
            life.counts.late += u64::from(now - due > LATE.as_nanos() as Time);
            let at = self.born + Duration::from_nanos(due);
            if let Some(begin) = *self.begin.borrow() {
                self.script.finished(at.saturating_duration_since(begin));
            }
        }
        life
    }

    fn time(&self) -> Time {
        self.born.elapsed().as_nanos() as Time
    }

    /// Hands out the moments at which work will be done.
    fn begun(&self, life: &mut Life, begun: &[Due<u64>]) {
        life.dues
            .extend(begun.iter().map(|(job, at)| Reverse((*at, *job))));
        self.more.notify_one();
    }
}

impl Life {
    /// Does what is due until this moment, each at its own; these moments.
    fn advance(&mut self, now: Time) -> Vec<Time> {
        let mut done = Vec::new();
        while let Some(Reverse((due, job))) = self.dues.peek().copied()
            && due <= now
        {
            self.dues.pop();
            let mut begun = Vec::new();
            if self.slots.finish(due, job, &mut begun) {
                done.push(due);
                let waits = self.waiting.remove(&job).filter(|_| !self.lost);
                // Who has gone does not wait.
                let _ = waits.map(|waits| waits.send(()));
            }
            self.dues
                .extend(begun.iter().map(|(job, at)| Reverse((*at, *job))));
        }
        done
    }
}

/// Does work at its moments, whether a request comes or not.
async fn pace(shared: Arc<Shared>) {
    loop {
        let next = shared.life().dues.peek().map(|Reverse((at, _))| *at);
        let next = next.map(|at| shared.born + Duration::from_nanos(at));
        tokio::select! {
            () = shared.more.notified() => {}
            () = at(next) => {}
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
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
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

const BACKLOG: i32 = 4_096;

/// Serves, dies and comes back as the world has it. `_reserved` is bound and never listens: it
/// keeps the port ours while the endpoint is dead.
async fn run(
    shared: Arc<Shared>,
    addr: SocketAddr,
    _reserved: socket2::Socket,
    listener: TcpListener,
) {
    let mut listener = Some(listener);
    let mut plug = None;
    let mut connections = JoinSet::new();
    let mut begin = shared.begin.subscribe();
    loop {
        let (reach, speed) = shared.condition();
        {
            let mut life = shared.life();
            life.lost = reach == Reach::Lost;
            let mut begun = Vec::new();
            life.slots.set_speed(shared.time(), speed, &mut begun);
            shared.begun(&mut life, &begun);
        }
        let dead = reach == Reach::Dead;
        if dead && listener.take().is_some() {
            connections.shutdown().await;
            let mut life = shared.life();
            life.counts.killed += life.slots.kill().len() as u64;
            life.waiting.clear();
        } else if !dead && listener.is_none() {
            // The port is ours: only a lack of descriptors keeps it closed, and may pass.
            listener = listen(addr).ok();
        }
        if let Some(listener) = &listener {
            if reach == Reach::Lost && plug.is_none() {
                // Behind a full backlog the kernel drops what asks for a connection.
                let _ = socket2::SockRef::from(listener).listen(0);
                plug = TcpStream::connect(addr).await.ok();
            } else if reach == Reach::Up && plug.take().is_some() {
                let _ = socket2::SockRef::from(listener).listen(BACKLOG);
            }
        }
        if dead {
            let refused = TcpStream::connect(addr).await.is_err();
            let mut life = shared.life();
            life.counts.probes += 1;
            life.counts.refused += u64::from(refused);
        }
        let change = shared.now().and_then(|now| {
            let next = shared.script.next_change(now)?;
            // While it is dead, now and then a look whether it really is.
            let pause = if dead { PROBE } else { Duration::MAX };
            Some(Instant::now() + (next - now).min(pause))
        });
        tokio::select! {
            biased;
            _ = begin.changed() => {}
            () = at(change) => {}
            Some(_) = connections.join_next() => {}
            stream = accept(listener.as_ref().filter(|_| reach == Reach::Up)) => {
                connections.spawn(serve(shared.clone(), stream));
            }
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
    let (parts, _) = request.into_parts();
    let number = parts.headers.get(NUMBER).cloned();
    match shared.condition().0 {
        Reach::Up => {}
        Reach::Dead => shared.life().counts.taken_while_dead += 1,
        Reach::Lost => std::future::pending::<()>().await,
    }
    let status = match shared.script.order(&parts, shared.now()) {
        Order::Answer(status) => status,
        Order::After(time, status) => {
            sleep(time).await;
            status
        }
        Order::Work(time, status) => {
            let room = work(&shared, time).await;
            if room { status } else { 503 }
        }
        Order::Never => std::future::pending().await,
    };
    Ok(reply(status, number.filter(|_| status < 300)))
}

/// Waits until this work is done; false: the queue is full.
async fn work(shared: &Arc<Shared>, time: Duration) -> bool {
    let (done, finished) = oneshot::channel();
    let job = {
        let mut life = shared.life();
        life.next += 1;
        let (job, mut begun) = (life.next, Vec::new());
        let work = Job::new(job, time.as_nanos() as f64);
        if !life.slots.offer(shared.time(), work, &mut begun) {
            return false;
        }
        life.waiting.insert(job, done);
        shared.begun(&mut life, &begun);
        job
    };
    let _caller = Caller { shared, job };
    // An error: the endpoint was killed or lost meanwhile, and this connection with it.
    if finished.await.is_err() {
        std::future::pending::<()>().await;
    }
    true
}

/// Who waits for work: gone when dropped.
struct Caller<'a> {
    shared: &'a Shared,
    job: u64,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let mut life = self.shared.life();
        if life.waiting.remove(&self.job).is_some() && self.shared.script.stops() {
            let mut begun = Vec::new();
            life.slots.stop(self.shared.time(), self.job, &mut begun);
            self.shared.begun(&mut life, &begun);
        }
    }
}

fn reply(status: u16, number: Option<HeaderValue>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"items\":[]}")));
    *response.status_mut() = status.try_into().expect("a status");
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    if let Some(number) = number {
        headers.insert(NUMBER, number);
    }
    response
}
