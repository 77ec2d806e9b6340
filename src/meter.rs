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

use crate::http1::FieldLines;
use crate::limit::Ticket;
use crate::pool::{Connection, Lease};
use crate::record::{Outcome, Record};
use crate::reject::{Dialect, Reject, Told};

mod events;
mod frame;
mod reader;
mod scan;
mod sieve;
mod template;

pub use reader::{Counts, Reader};
pub use sieve::Sieve;

/// The body of an answer: a backend's as it passes, or one of our own.
#[derive(Debug)]
pub enum Answer {
    Passing { metered: Box<Metered>, fields: FieldLines },
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
    /// Until its last byte has been read.
    connection: Option<Box<Connection>>,
    lease: Lease,
    ticket: Ticket,
    record: Box<Record>,
    idle: Duration,
    /// Since when a byte is waited for.
    waits_since: Option<Instant>,
    framing: Framing,
    dialect: Dialect,
    /// Up to two bytes that went last, to end a half line.
    tail: [u8; 2],
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// The error frame is on its way.
    Cutting,
    Ended,
}

/// What rides along with an answer.
#[derive(Debug)]
pub struct Riders {
    pub connection: Box<Connection>,
    pub lease: Lease,
    pub ticket: Ticket,
    pub record: Box<Record>,
}

impl Metered {
    /// `idle`: the longest silence between two bytes. `dialect`: of the path asked.
    #[must_use]
    pub fn around(fields: FieldLines, riders: Riders, idle: Duration, dialect: Dialect) -> Answer {
        let Riders { connection, lease, ticket, record } = riders;
        let known = connection.left().is_some();
        let framing = if known { Framing::Opaque } else { Framing::of(&fields) };
        let mut metered = Box::new(Self {
            connection: Some(connection),
            lease,
            ticket,
            record,
            idle,
            waits_since: None,
            framing,
            dialect,
            tail: [b'\n'; 2],
            state: State::Streaming,
        });
        metered.finish_if_past();
        Answer::Passing { metered, fields }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let connection = match (self.state, &mut self.connection) {
            (State::Cutting, _) => return Poll::Ready(Some(Err(Cut))),
            (State::Streaming, Some(connection)) => connection,
            (State::Ended | State::Streaming, _) => return Poll::Ready(None),
        };
        if let Poll::Ready(ended) = self.ticket.poll_ended(cx) {
            return self.broken(&ended);
        }
        match connection.poll_data(cx) {
            Poll::Ready(Ok(Some(data))) => {
                self.count(&data);
                self.finish_if_past();
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(Ok(None)) => {
                self.finish_if_past();
                Poll::Ready(None)
            }
            Poll::Ready(Err(cause)) => self.broken(&Reject::BackendFailed(cause)),
            Poll::Pending => {
                let since = *self.waits_since.get_or_insert_with(Instant::now);
                match connection.is_due(since + self.idle, cx) {
                    true => self.broken(&Reject::BackendTimeout),
                    false => Poll::Pending,
                }
            }
        }
    }

    fn left(&self) -> Option<u64> {
        self.connection.as_ref().map_or(Some(0), |connection| connection.left())
    }

    fn count(&mut self, data: &Bytes) {
        self.waits_since = None;
        self.record.sent(data.len());
        match data.as_ref() {
            [.., a, b] => self.tail = [*a, *b],
            [b] => self.tail = [self.tail[1], *b],
            [] => {}
        }
    }

    /// Gives the connection back with the last byte, so that the next request finds it.
    fn finish_if_past(&mut self) {
        if let Some(connection) = self.connection.take_if(|it| it.is_past()) {
            self.state = State::Ended;
            self.record.end(Outcome::Done);
            self.lease.give_back(connection, Instant::now());
        }
    }

    fn broken(&mut self, reject: &Reject) -> Poll<Option<Result<Bytes, Cut>>> {
        self.connection = None;
        self.record.break_off(reject);
        self.state = State::Cutting;
        let last_words = self.last_words(reject);
        Poll::Ready(Some(match last_words.is_empty() {
            true => Err(Cut),
            false => Ok(last_words.into()),
        }))
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
    fn of(fields: &FieldLines) -> Self {
        let kind = fields.kind();
        let is = |name: &[u8]| {
            kind.get(..name.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(name))
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

impl Answer {
    /// The fields of a backend's answer, once: they are gone when the head is.
    #[must_use]
    pub fn take_fields(&mut self) -> FieldLines {
        match self {
            Self::Passing { fields, .. } => std::mem::take(fields),
            Self::Own { .. } => FieldLines::default(),
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
            Self::Passing { metered, .. } => metered.poll(cx).map_ok(Frame::data),
            Self::Own { data, .. } if data.is_empty() => Poll::Ready(None),
            Self::Own { data, .. } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(data))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Passing { metered, .. } => metered.state == State::Ended,
            Self::Own { data, .. } => data.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Passing { metered, .. } => {
                metered.left().map_or_else(SizeHint::default, SizeHint::with_exact)
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
