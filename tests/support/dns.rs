//! A real DNS server (dnsmasq) of a test's own, whose answers change.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use super::{Dir, wait_for};

/// A running server; ended when dropped.
#[derive(Debug)]
pub struct Dns {
    server: Child,
    addr: SocketAddr,
    name: String,
    dir: Dir,
}

impl Dns {
    /// Starts a server that knows one name, with these addresses.
    pub async fn start(name: &str, addresses: &[IpAddr]) -> Self {
        let program = super::server_program("dnsmasq").unwrap_or_else(|error| panic!("{error}"));
        let dir = Dir::new().expect("a directory for dnsmasq");
        let addr = free_udp_addr();
        // There before it starts: a signal that came too soon would end it.
        write(&dir, name, addresses);
        let it = Self {
            server: serve(&program, addr, &dir.path().join(HOSTS)),
            addr,
            name: name.to_owned(),
            dir,
        };
        wait_for("dnsmasq answers", async || it.answers(addresses.len())).await;
        it
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Gives the name these addresses, and waits until they are answered.
    pub async fn set(&mut self, addresses: &[IpAddr]) {
        write(&self.dir, &self.name, addresses);
        self.reload();
        wait_for("dnsmasq answers", async || self.answers(addresses.len())).await;
    }

    fn reload(&self) {
        let id = self.server.id().to_string();
        let status = Command::new("kill").args(["-HUP", &id]).status();
        assert!(status.is_ok_and(|it| it.success()), "dnsmasq has ended");
    }

    /// Whether it answers with so many addresses.
    fn answers(&self, count: usize) -> bool {
        let query = query(&self.name);
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
        let timeout = std::time::Duration::from_millis(200);
        socket.set_read_timeout(Some(timeout)).expect("a timeout");
        let mut answer = [0; 4096];
        let read = socket
            .send_to(&query, self.addr)
            .and_then(|_| socket.recv(&mut answer));
        // RFC 1035, 4.1.1: the count of answers.
        read.is_ok_and(|size| {
            size >= 12 && usize::from(u16::from_be_bytes([answer[6], answer[7]])) == count
        })
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The file of addresses.
const HOSTS: &str = "hosts";

fn write(dir: &Dir, name: &str, addresses: &[IpAddr]) {
    let mut text = String::new();
    for address in addresses {
        let _ = writeln!(text, "{address} {name}");
    }
    let next = dir.path().join("hosts.next");
    std::fs::write(&next, text).expect("the addresses are written");
    std::fs::rename(next, dir.path().join(HOSTS)).expect("the addresses are replaced");
}

fn serve(program: &std::path::Path, addr: SocketAddr, hosts: &std::path::Path) -> Child {
    Command::new(program)
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
        ])
        .args([
            "--bind-interfaces",
            "--cache-size=0",
            "--local-ttl=1",
            "--pid-file",
        ])
        .arg(format!("--listen-address={}", addr.ip()))
        .arg(format!("--port={}", addr.port()))
        .arg(format!("--addn-hosts={}", hosts.display()))
        .arg("--log-facility=-")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dnsmasq starts")
}

/// A port that is free for UDP, and for TCP beside it.
fn free_udp_addr() -> SocketAddr {
    loop {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let tcp = std::net::TcpListener::bind(loopback).expect("a free port");
        let addr = tcp.local_addr().expect("its address");
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// A question for the IPv4 addresses of a name, with room for many (RFC 6891).
fn query(name: &str) -> Vec<u8> {
    let mut bytes = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01".to_vec();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(b"\0\0\x01\0\x01");
    bytes.extend_from_slice(b"\0\0\x29\x10\0\0\0\0\0\0\0");
    bytes
}
