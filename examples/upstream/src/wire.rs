//! A connection that can be torn down from within a request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

/// What a request knows of its connection.
#[derive(Debug)]
pub struct Link {
    /// Bytes handed to the kernel so far.
    written: watch::Sender<u64>,
    closed: watch::Sender<bool>,
    torn: Notify,
    with_rst: AtomicBool,
}

impl Link {
    /// The link of a fresh connection.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            written: watch::Sender::new(0),
            closed: watch::Sender::new(false),
            torn: Notify::new(),
            with_rst: AtomicBool::new(false),
        })
    }

    /// Has the connection dropped with an RST.
    pub fn reset(&self) {
        self.with_rst.store(true, Ordering::Release);
        self.torn.notify_one();
    }

    /// Returns once [`Link::reset`] was called: for the task that owns the connection.
    pub async fn torn(&self) {
        self.torn.notified().await;
    }

    /// Returns once the connection is gone.
    pub async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // An error says that the sender is gone, and the connection with it.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Bytes handed to the kernel so far.
    pub fn written(&self) -> u64 {
        *self.written.borrow()
    }

    /// Returns once `total` bytes were handed to the kernel.
    pub async fn wrote(&self, total: u64) {
        let mut written = self.written.subscribe();
        let _ = written.wait_for(|written| *written >= total).await;
    }
}

/// The connection itself.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    link: Arc<Link>,
}

impl Wire {
    /// `stream`, watched by `link`.
    pub fn new(stream: TcpStream, link: Arc<Link>) -> Self {
        Self { stream, link }
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &result {
            self.link
                .written
                .send_modify(|written| *written += *count as u64);
        }
        result
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.link.with_rst.load(Ordering::Acquire) {
            // With a linger time of zero the close that follows sends an RST. Should it fail, the
            // peer sees a plain end.
            let _ = self.stream.set_zero_linger();
        }
        self.link.closed.send_replace(true);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
