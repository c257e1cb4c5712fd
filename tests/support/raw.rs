//! Bytes on a TCP connection: requests that no well-behaved client sends, and very many of them.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::Tally;

/// How long an exchange may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    /// The first answer's status; 0 if what came is none.
    pub status: u16,
    /// All bytes until the server closed the connection.
    pub bytes: Vec<u8>,
}

impl RawReply {
    /// The bytes as text, lossy.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Sends `bytes` and reads until the server closes: a request that is to be answered should say
/// `connection: close`.
pub async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Result<RawReply, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr)
            .await
            .map_err(|error| error.to_string())?;
        // The server may answer and close before it has read all: what it said counts, not that it
        // hung up.
        let sent = stream.write_all(bytes).await;
        let mut received = Vec::new();
        match stream.read_to_end(&mut received).await {
            Err(error) if received.is_empty() => {
                return Err(sent.err().unwrap_or(error).to_string());
            }
            _ => {}
        }
        let status = head(&received).map_or(0, |head| head.status);
        Ok(RawReply {
            status,
            bytes: received,
        })
    };
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| format!("no end within {TIMEOUT:?}"))?
}

/// A GET request whose extra header lines stand as given, each ended by CRLF.
pub fn get(path: &[u8], header_lines: &[u8]) -> Vec<u8> {
    [
        b"GET ",
        path,
        b" HTTP/1.1\r\nhost: haven.test\r\nconnection: close\r\n",
        header_lines,
        b"\r\n",
    ]
    .concat()
}

/// Sends `total` requests over `connections` that are kept, one at a time on each, and counts the
/// answers: the cheapest way to have an Envoy see a million of them. (It tears down a connection on
/// which more than two wait for their answers.) `request(i)` is the whole request; it must not ask
/// for the connection's end, and its answer must have a content-length.
pub async fn flood(
    addr: SocketAddr,
    connections: u64,
    total: u64,
    request: impl Fn(u64) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> Tally {
    let mut workers = tokio::task::JoinSet::new();
    for connection in 0..connections {
        let request = request.clone();
        workers.spawn(async move {
            let (mut tally, mut stream) = (Tally::default(), None);
            for number in (connection..total).step_by(connections as usize) {
                match tokio::time::timeout(TIMEOUT, one(addr, &mut stream, &request(number))).await
                {
                    Ok(Ok(status)) => *tally.by_status.entry(status).or_default() += 1,
                    Ok(Err(error)) => *tally.errors.entry(error).or_default() += 1,
                    Err(_) => {
                        *tally
                            .errors
                            .entry("no answer in time".to_owned())
                            .or_default() += 1
                    }
                }
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

/// One request on a connection that is kept unless it fails or the server asks for its end.
async fn one(
    addr: SocketAddr,
    kept: &mut Option<TcpStream>,
    request: &[u8],
) -> Result<u16, String> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(addr)
                .await
                .map_err(|error| error.to_string())?;
            stream
                .set_nodelay(true)
                .map_err(|error| error.to_string())?;
            stream
        }
    };
    stream
        .write_all(request)
        .await
        .map_err(|error| error.to_string())?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        if stream
            .read_buf(&mut buffer)
            .await
            .map_err(|error| error.to_string())?
            == 0
        {
            return Err("closed without an answer".to_owned());
        }
        if let Some(head) = head(&buffer).filter(|head| buffer.len() >= head.length) {
            if !head.last {
                *kept = Some(stream);
            }
            return Ok(head.status);
        }
    }
}

struct Head {
    status: u16,
    /// Bytes of the answer, head and body.
    length: usize,
    /// The server closes the connection after it.
    last: bool,
}

/// The head of the answer that `bytes` begin with, once it is whole.
fn head(bytes: &[u8]) -> Option<Head> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..end]);
    let status = text.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let (mut length, mut last) = (end, false);
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length += value.trim().parse::<usize>().ok()?;
        }
        last |=
            name.eq_ignore_ascii_case("connection") && value.trim().eq_ignore_ascii_case("close");
    }
    Some(Head {
        status,
        length,
        last,
    })
}
