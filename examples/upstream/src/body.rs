//! The bodies of answers: whole, or cut off in the middle.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::HeaderMap;

use crate::wire::Link;

/// The least length of a body that is cut in half.
const CUT_BODY: usize = 16 << 10;

/// No answer: the connection is, or is to be, closed.
#[derive(Debug)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no answer, by order")
    }
}

impl std::error::Error for Gone {}

/// The body of an answer.
pub enum Payload {
    Whole {
        data: Option<Bytes>,
        trailers: Option<HeaderMap>,
    },
    Cut {
        length: u64,
        half: Option<Bytes>,
        /// Tears the connection down once the half is on its way; never returns.
        cut: Pin<Box<dyn Future<Output = Infallible> + Send>>,
    },
}

impl Payload {
    /// All of it.
    pub fn whole(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self::Whole {
            data: Some(data).filter(|data| !data.is_empty()),
            trailers,
        }
    }

    /// Half of it, then the connection's end.
    pub fn cut(data: &Bytes, link: Arc<Link>) -> Self {
        // Padded, so that "so many bytes went out" cannot be the settings and acknowledgements of
        // HTTP/2 alone.
        let mut data = data.to_vec();
        data.resize(data.len().max(CUT_BODY), b' ');
        let length = data.len() as u64;
        let half = Bytes::from(data).slice(..(length / 2) as usize);
        let enough = link.written() + length / 2;
        let cut = Box::pin(async move {
            // A client that takes nothing must not keep it from being cut.
            let _ = tokio::time::timeout(Duration::from_secs(1), link.wrote(enough)).await;
            // An RST overtakes what its receiver has not read yet: give it the time to.
            tokio::time::sleep(Duration::from_millis(20)).await;
            link.reset();
            // The connection's task drops us now; an end from here could overtake it.
            std::future::pending().await
        });
        Self::Cut {
            length,
            half: Some(half),
            cut,
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Gone;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut *self {
            Self::Whole { data, trailers } => {
                let frame = data
                    .take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Self::Cut { half, cut, .. } => {
                if let Some(half) = half.take() {
                    return Poll::Ready(Some(Ok(Frame::data(half))));
                }
                match cut.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(never) => match never {},
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(
            self,
            Self::Whole {
                data: None,
                trailers: None
            }
        )
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole {
                data,
                trailers: None,
            } => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            // Trailers need a message without a length.
            Self::Whole { .. } => SizeHint::default(),
            Self::Cut { length, .. } => SizeHint::with_exact(*length),
        }
    }
}
