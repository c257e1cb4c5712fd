//! The demo upstream in this process: faults are switched by a call.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use haven_upstream as server;
use haven_upstream::faults::Faults;

/// A running upstream on a free loopback port; gone when dropped.
#[derive(Debug)]
pub struct Upstream(server::Upstream);

impl Upstream {
    /// Starts one that calls itself `name`.
    pub async fn start(name: &str) -> Self {
        let options = server::Options {
            name: name.to_owned(),
            ..server::Options::default()
        };
        Self::start_with(options).await
    }

    /// Starts one with these options.
    pub async fn start_with(options: server::Options) -> Self {
        Self(
            server::Upstream::start(options)
                .await
                .expect("the demo upstream starts"),
        )
    }

    /// Starts one with these options, if its ports are free.
    pub async fn try_start_with(options: server::Options) -> std::io::Result<Self> {
        server::Upstream::start(options).await.map(Self)
    }

    /// Starts `count` of them, named `a`, `b`, `c`, …
    pub async fn start_many(count: u8) -> Vec<Self> {
        let mut all = Vec::new();
        for index in 0..count {
            all.push(Self::start(&char::from(b'a' + index).to_string()).await);
        }
        all
    }

    /// Changes the faults. When it returns, they are in force.
    pub async fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.0.update(change).await.expect("faults that can be set");
    }

    /// All faults off; the counters stay.
    pub async fn heal(&self) {
        self.set(|faults| *faults = Faults::default()).await;
    }

    /// All faults off, counters to zero.
    pub async fn reset(&self) {
        self.0.reset().await.expect("the upstream listens again");
    }
}

impl Deref for Upstream {
    type Target = server::Upstream;

    fn deref(&self) -> &server::Upstream {
        &self.0
    }
}

/// An address that refuses connections and stays free of others for as long as the socket is kept.
pub fn dead_addr() -> (SocketAddr, socket2::Socket) {
    let Reserved { addr, socket } = Reserved::new(Ipv4Addr::LOCALHOST.into());
    (addr, socket)
}

/// A free port that is kept for one server: whoever binds it with `SO_REUSEADDR`, as Envoy does, gets
/// it, and nobody is given it by chance.
#[derive(Debug)]
pub struct Reserved {
    /// The address.
    pub addr: SocketAddr,
    socket: socket2::Socket,
}

/// Those of [`Reserved::for_good`].
static KEPT: Mutex<Vec<Reserved>> = Mutex::new(Vec::new());

impl Reserved {
    /// One that is kept for as long as this process lives.
    pub fn for_good() -> SocketAddr {
        let one = Self::new(Ipv4Addr::LOCALHOST.into());
        let addr = one.addr;
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(one);
        addr
    }

    /// One at this IP.
    pub fn new(ip: IpAddr) -> Self {
        let domain = socket2::Domain::for_address(SocketAddr::new(ip, 0));
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option of Linux");
        socket
            .bind(&SocketAddr::new(ip, 0).into())
            .expect("a free port");
        let addr = socket.local_addr().ok().and_then(|addr| addr.as_socket());
        Self {
            addr: addr.expect("its address"),
            socket,
        }
    }
}
