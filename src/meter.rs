//! Counts the answer while it streams past, and holds on to everything that ends with it.
//!
//! The record, the ticket, the lease and the backend's connection ride in the body: when the stream
//! ends, breaks, or the caller leaves, dropping the body writes the line, settles the ticket, frees
//! the place and closes the connection.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep_until};

use crate::limit::Ticket;
use crate::pool::{Connection, Lease};
use crate::record::{Outcome, Record};
use crate::reject::{Dialect, Reject, Told};

/// The body of an answer: a backend's as it passes, or one of our own.
#[derive(Debug)]
pub enum Answer {
    Passing(Box<Metered>),
    Own { data: Bytes, record: Option<Box<Record>> },
}

/// The answer broke off; the connection is cut so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct Cut;

/// How a broken stream ends in its dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Ndjson,
    Sse,
    /// An answer with a length, or of another kind, is only cut.
    Opaque,
}

/// A backend's answer on its way to the caller.
pub struct Metered {
    body: Incoming,
    connection: Option<Connection>,
    lease: Lease,
    _ticket: Ticket,
    record: Record,
    idle: Duration,
    last_byte: Instant,
    due: Option<Pin<Box<Sleep>>>,
    framing: Framing,
    dialect: Dialect,
    /// Up to two bytes that went last, to end a half line.
    tail: [u8; 2],
    left: Option<u64>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// The error frame went out; hyper flushes before the connection is cut.
    Flushing,
    Cutting,
    Ended,
}

/// What rides along with an answer.
#[derive(Debug)]
pub struct Riders {
    pub connection: Connection,
    pub lease: Lease,
    pub ticket: Ticket,
    pub record: Record,
}

impl Metered {
    /// `idle`: the longest silence between two bytes. `dialect`: of the path asked.
    #[must_use]
    pub fn around(
        response: http::Response<Incoming>,
        riders: Riders,
        idle: Duration,
        dialect: Dialect,
    ) -> http::Response<Answer> {
        let Riders { connection, lease, ticket, record } = riders;
        let (parts, body) = response.into_parts();
        let left = body.size_hint().exact();
        let framing = if left.is_some() { Framing::Opaque } else { Framing::of(&parts.headers) };
        let mut metered = Self {
            body,
            connection: Some(connection),
            lease,
            _ticket: ticket,
            record,
            idle,
            last_byte: Instant::now(),
            due: None,
            framing,
            dialect,
            tail: [b'\n'; 2],
            left,
            state: State::Streaming,
        };
        if metered.body.is_end_stream() {
            // hyper never polls a body that is at its end.
            metered.finish(None);
        }
        http::Response::from_parts(parts, Answer::Passing(Box::new(metered)))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.state {
            State::Ended => return Poll::Ready(None),
            State::Cutting => return Poll::Ready(Some(Err(Cut))),
            State::Flushing => {
                self.state = State::Cutting;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            State::Streaming => {}
        }
        loop {
            match self.next(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers are dropped with the other hop-by-hop fields.
                    let Ok(data) = frame.into_data() else { continue };
                    self.count(&data, cx);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(None) => {
                    self.finish(Some(cx));
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(error))) => {
                    return self.broken(&Reject::BackendFailed(error.into()));
                }
                Poll::Pending if self.is_silent_too_long(cx) => {
                    return self.broken(&Reject::BackendTimeout);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The body knows nothing new until its connection has moved bytes.
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            return frame;
        }
        if let Some(connection) = &mut self.connection {
            connection.drive(cx);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn count(&mut self, data: &Bytes, cx: &mut Context<'_>) {
        self.last_byte = Instant::now();
        self.record.sent(data.len(), self.last_byte);
        match data.as_ref() {
            [.., a, b] => self.tail = [*a, *b],
            [b] => self.tail = [self.tail[1], *b],
            [] => {}
        }
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
        if self.left == Some(0) || self.body.is_end_stream() {
            // With a known length hyper does not ask again.
            self.finish(Some(cx));
        }
    }

    fn is_silent_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        let (last_byte, idle) = (self.last_byte, self.idle);
        let due = self.due.get_or_insert_with(|| Box::pin(sleep_until((last_byte + idle).into())));
        while due.as_mut().poll(cx).is_ready() {
            let deadline = last_byte + idle;
            if deadline <= Instant::now() {
                return true;
            }
            due.as_mut().reset(deadline.into());
        }
        false
    }

    fn finish(&mut self, cx: Option<&mut Context<'_>>) {
        self.state = State::Ended;
        self.record.end(Outcome::Done);
        let Some(mut connection) = self.connection.take() else { return };
        match cx {
            // One more step brings the connection to rest.
            Some(cx) => connection.drive(cx),
            None => connection.drive(&mut Context::from_waker(std::task::Waker::noop())),
        }
        self.lease.give_back(connection, Instant::now());
    }

    fn broken(&mut self, reject: &Reject) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.connection = None;
        self.record.break_off(reject);
        let last_words = self.last_words(reject);
        if last_words.is_empty() {
            self.state = State::Cutting;
            return Poll::Ready(Some(Err(Cut)));
        }
        self.state = State::Flushing;
        Poll::Ready(Some(Ok(Frame::data(last_words.into()))))
    }

    /// The status has gone long ago; what is left is an error in the stream's own form, after the
    /// end of a line that may have been cut in half.
    fn last_words(&self, reject: &Reject) -> String {
        let told = Told {
            dialect: self.dialect,
            request_id: self.record.line.id.as_str(),
            signin_url: "",
            challenges: crate::reject::Challenges::default(),
        };
        let error = self.dialect.stream_error(reject.row(), &reject.says(), &told);
        match (self.framing, self.tail) {
            (Framing::Opaque, _) => String::new(),
            (Framing::Ndjson, [_, b'\n']) => format!("{error}\n"),
            (Framing::Ndjson, _) => format!("\n{error}\n"),
            (Framing::Sse, [b'\n', b'\n']) => format!("event: error\ndata: {error}\n\n"),
            (Framing::Sse, _) => format!("\n\nevent: error\ndata: {error}\n\n"),
        }
    }
}

impl Framing {
    fn of(headers: &http::HeaderMap) -> Self {
        let kind = headers.get(http::header::CONTENT_TYPE).map(|kind| kind.as_bytes());
        let is = |name: &[u8]| {
            kind.and_then(|kind| kind.get(..name.len()))
                .is_some_and(|kind| kind.eq_ignore_ascii_case(name))
        };
        if is(b"application/x-ndjson") {
            Self::Ndjson
        } else if is(b"text/event-stream") {
            Self::Sse
        } else {
            Self::Opaque
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Passing(metered) => metered.poll(cx),
            Self::Own { data, .. } if data.is_empty() => Poll::Ready(None),
            Self::Own { data, .. } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(data))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Passing(metered) => metered.state == State::Ended,
            Self::Own { data, .. } => data.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Passing(metered) => {
                metered.left.map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Self::Own { data, .. } => SizeHint::with_exact(data.len() as u64),
        }
    }
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("state", &self.state).finish_non_exhaustive()
    }
}
