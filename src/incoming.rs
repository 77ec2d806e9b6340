//! The body of a request as it comes, by whichever version of HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};

use crate::http1::{self, Arrival, Broken};

/// The body of a request that is still on the wire.
#[derive(Debug)]
pub enum Incoming {
    Http1(http1::Incoming),
    Http2(StreamBody),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2(body) => body.poll(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// The body of a request over HTTP/2 (RFC 9113, 8.1).
#[derive(Debug)]
pub struct StreamBody {
    stream: RecvStream,
    arrived: Arc<Arrival>,
    /// Of an announced length; `h2` sees to it that it is kept.
    left: Option<u64>,
    asked_for: Arc<AtomicBool>,
}

impl StreamBody {
    /// `asked_for` is set when somebody waits for the body. A request without one has arrived.
    #[must_use]
    pub fn new(
        stream: RecvStream,
        headers: &HeaderMap,
        arrived: Arc<Arrival>,
        asked_for: Arc<AtomicBool>,
    ) -> Self {
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|it| it.to_str().ok()?.parse().ok());
        let ended = stream.is_end_stream();
        if ended {
            arrived.took(0, true);
        }
        Self { stream, arrived, left: if ended { Some(0) } else { length }, asked_for }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let Poll::Ready(came) = self.stream.poll_data(cx) else {
            self.asked_for.store(true, Ordering::Relaxed);
            return Poll::Pending;
        };
        Poll::Ready(match came {
            Some(Ok(data)) => {
                // A stream that is over has no window to give back.
                let _ = self.stream.flow_control().release_capacity(data.len());
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                self.arrived.took(data.len(), self.stream.is_end_stream());
                Some(Ok(data))
            }
            Some(Err(error)) if error.is_library() => Some(Err(Broken::Stream)),
            Some(Err(_)) => {
                self.arrived.lost();
                Some(Err(Broken::Gone))
            }
            None => {
                self.arrived.took(0, true);
                None
            }
        })
    }
}
