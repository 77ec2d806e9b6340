//! Counts the answer while it streams past, and holds on to everything that ends with it.
//!
//! The record, the ticket, the lease and the backend's connection ride in the body: when the stream
//! ends, breaks, or the caller leaves, dropping the body writes the line, settles the ticket, frees
//! the place and closes the connection.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use crate::admin::Flow;
use crate::http1::FieldLines;
use crate::limit::Ticket;
use crate::pool::{Connection, Lease};
use crate::record::{Outcome, Record};
use crate::reject::{Dialect, Reject, Told};
use crate::store::Written;

mod early;
mod events;
mod frame;
mod gathered;
mod held;
mod reader;
mod scan;
mod sieve;
mod template;

pub use early::{Early, Promise};
pub use gathered::{Began, Gathered, Questioned, Speaking, Voice};
pub use reader::{Counts, Reader};
pub use sieve::Sieve;

use held::Held;

/// The body of an answer: a backend's as it passes, or one of our own.
#[derive(Debug)]
pub enum Answer {
    Passing {
        metered: Box<Metered>,
        fields: FieldLines,
    },
    Own {
        data: Bytes,
        record: Option<Box<Record>>,
    },
    /// One of our own that is made while it goes.
    Flowing {
        flow: Box<Flow>,
        record: Box<Record>,
    },
    /// Of several backends.
    Gathered {
        gathered: Box<Gathered>,
        record: Box<Record>,
    },
    /// Begun while its request waits.
    Early(Box<Early>),
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
    /// Reads what it cost, where a model is at work.
    reader: Option<Box<Reader>>,
    /// Takes out what the backend was asked for and the caller did not ask for.
    sieve: Option<Box<Sieve>>,
    is_settled: bool,
    /// The last of the answer, which waits for its row.
    held: Option<Held>,
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
    /// The backend was asked for an event that the caller does not expect.
    pub sifts: bool,
}

impl Metered {
    /// `idle`: the longest silence between two bytes. `dialect`: of the path asked.
    #[must_use]
    pub fn around(fields: FieldLines, riders: Riders, idle: Duration, dialect: Dialect) -> Answer {
        let Riders { connection, lease, ticket, record, sifts } = riders;
        let reader = reader_of(&record, &fields);
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
            reader,
            sieve: (sifts && framing == Framing::Sse).then(Box::default),
            is_settled: false,
            held: None,
        });
        metered.finish_if_past();
        Answer::Passing { metered, fields }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            let polled = self.poll_piece(cx);
            let is_empty = matches!(&polled, Poll::Ready(Some(Ok(data))) if data.is_empty());
            // Of a piece with nothing for the caller the next one is read at once.
            if !is_empty {
                return polled;
            }
        }
    }

    /// The next piece, of which nothing may be left.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.held.is_some() {
            return self.poll_held(cx);
        }
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
                let is_usual = self.read(&data);
                let mut data = self.sifted(data, is_usual);
                self.finish_if_past();
                if self.state == State::Ended {
                    data = self.with_rest(data);
                }
                match self.is_over() {
                    true => self.hold(data, cx),
                    false => Poll::Ready(Some(Ok(data))),
                }
            }
            Poll::Ready(Ok(None)) => {
                self.finish_if_past();
                self.state = State::Ended;
                let rest = self.with_rest(Bytes::new());
                self.hold(rest, cx)
            }
            Poll::Ready(Err(cause)) => self.broken_by_backend(&Reject::BackendFailed(cause)),
            Poll::Pending => {
                let since = *self.waits_since.get_or_insert_with(Instant::now);
                match connection.is_due(since + self.idle, cx) {
                    true => self.broken_by_backend(&Reject::BackendTimeout),
                    false => Poll::Pending,
                }
            }
        }
    }

    /// With what was held back because the stream might have gone on.
    fn with_rest(&mut self, data: Bytes) -> Bytes {
        let rest = self.sieve.as_mut().map(|sieve| sieve.finish()).unwrap_or_default();
        if rest.is_empty() {
            return data;
        }
        self.record.sent(rest.len());
        [data, rest].concat().into()
    }

    /// Whether these are the last bytes, by the answer's own word or by its framing.
    fn is_over(&self) -> bool {
        self.state == State::Ended || self.reader.as_ref().is_some_and(|reader| reader.is_over())
    }

    /// Keeps the last bytes until the row is written; others go at once.
    fn hold(&mut self, data: Bytes, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if let Some(written) = self.settle(Outcome::Done) {
            self.held = Some(Held::new(data, written));
            return self.poll_held(cx);
        }
        Poll::Ready(Some(Ok(data)))
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let Some(held) = &mut self.held else { return Poll::Ready(None) };
        let data = ready!(held.poll(&self.record, cx));
        self.held = None;
        Poll::Ready(Some(Ok(data)))
    }

    /// Charges what the request came to, once.
    fn settle(&mut self, outcome: Outcome) -> Option<Written> {
        if std::mem::replace(&mut self.is_settled, true) {
            return None;
        }
        let usage = self.reader.take().map(|reader| reader.finish()).unwrap_or_default();
        self.ticket.settle(&usage, self.record.backend_time(), Instant::now);
        self.record.post(outcome, usage)
    }

    fn left(&self) -> Option<u64> {
        self.connection.as_ref().map_or(Some(0), |connection| connection.left())
    }

    /// True if these are a token more and nothing else.
    fn read(&mut self, data: &Bytes) -> bool {
        self.waits_since = None;
        let Some(reader) = &mut self.reader else { return false };
        let is_usual = reader.see(data);
        self.ticket.course().counts(reader.so_far());
        // before any usual one came one that was not
        if !is_usual && reader.has_begun() {
            self.record.first_token();
        }
        is_usual
    }

    /// What of it goes on, counted. A token passes, whatever is asked for besides.
    fn sifted(&mut self, mut data: Bytes, is_usual: bool) -> Bytes {
        if let Some(sieve) = &mut self.sieve
            && !(is_usual && sieve.is_between())
        {
            data = sieve.pass(data);
        }
        self.record.sent(data.len());
        match data.as_ref() {
            [.., a, b] => self.tail = [*a, *b],
            [b] => self.tail = [self.tail[1], *b],
            [] => {}
        }
        data
    }

    /// Gives the connection back with the last byte, so that the next request finds it.
    fn finish_if_past(&mut self) {
        if let Some(connection) = self.connection.take_if(|it| it.is_past()) {
            self.state = State::Ended;
            self.record.end(Outcome::Done);
            self.lease.give_back(connection, Instant::now());
            self.lease.frees_its_slot();
        }
    }

    #[cold]
    fn broken_by_backend(&mut self, reject: &Reject) -> Poll<Option<Result<Bytes, Cut>>> {
        self.lease.broke_off();
        self.broken(reject)
    }

    fn broken(&mut self, reject: &Reject) -> Poll<Option<Result<Bytes, Cut>>> {
        self.connection = None;
        self.lease.frees_its_slot();
        self.record.break_off(reject);
        self.state = State::Cutting;
        let last_words = self.last_words(reject);
        Poll::Ready(Some(match last_words.is_empty() {
            true => Err(Cut),
            false => Ok(last_words.into()),
        }))
    }

    /// Whether it has to end, asked while the caller takes nothing of it: then there are no last words.
    fn has_to_end(&mut self, cx: &Context<'_>) -> bool {
        if self.state != State::Streaming {
            return false;
        }
        let ended = match self.ticket.poll_ended(cx) {
            Poll::Ready(ended) => ended,
            Poll::Pending => return false,
        };
        self.record.break_off(&ended);
        true
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

/// What counts an answer of this kind, where a model is at work on it.
fn reader_of(record: &Record, fields: &FieldLines) -> Option<Box<Reader>> {
    let prompt = record.prompt_estimate()?;
    let mut counts = Counts::of(record.line.operation?, record.line.status, fields.kind())?;
    if fields.is_encoded() {
        counts = counts.by_length();
    }
    Some(Box::new(Reader::new(counts, prompt)))
}

impl Framing {
    fn of(fields: &FieldLines) -> Self {
        let kind = fields.kind();
        let is = |name: &[u8]| {
            !fields.is_encoded()
                && kind.get(..name.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(name))
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
            Self::Own { .. } | Self::Flowing { .. } | Self::Gathered { .. } | Self::Early(_) => {
                FieldLines::default()
            }
        }
    }
}

impl Answer {
    /// The row of what is over before anything of it goes out, as an answer without a body: nobody asks
    /// it for its last bytes.
    pub fn settle_if_over(&mut self) -> Option<Written> {
        match self {
            Self::Passing { metered, .. } if metered.state == State::Ended => {
                metered.settle(Outcome::Done)
            }
            Self::Own { record: Some(record), .. } => record.post_untold(),
            Self::Passing { .. }
            | Self::Own { .. }
            | Self::Flowing { .. }
            | Self::Gathered { .. }
            | Self::Early(_) => None,
        }
    }

    /// What is over goes behind its row.
    pub async fn behind(row: Written, mut answer: Response<Self>) -> Response<Self> {
        let record = match answer.body_mut() {
            Self::Passing { metered, .. } => Some(&mut metered.record),
            Self::Own { record, .. } => record.as_mut(),
            Self::Flowing { .. } | Self::Gathered { .. } | Self::Early(_) => None,
        };
        if let Some(record) = record {
            Held::new(Bytes::new(), row).ends(record).await;
        }
        answer
    }

    /// Its last bytes are here, and go as soon as its row is written.
    #[must_use]
    pub fn waits_for_its_row(&self) -> bool {
        matches!(self, Self::Passing { metered, .. } if metered.held.is_some())
    }

    /// Whether it has to end, asked while the caller takes nothing of it; then it is to be dropped.
    pub fn has_to_end(&mut self, cx: &Context<'_>) -> bool {
        match self {
            Self::Passing { metered, .. } => metered.has_to_end(cx),
            Self::Gathered { gathered, record } => gathered.has_to_end(record, cx),
            Self::Early(early) => early.has_to_end(cx),
            Self::Own { .. } | Self::Flowing { .. } => false,
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
            Self::Flowing { flow, record } => flowing(flow, record, cx),
            Self::Gathered { gathered, record } => gathered.poll(record, cx).map_ok(Frame::data),
            Self::Early(early) => early.poll(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Passing { metered, .. } => {
                metered.state == State::Ended && metered.held.is_none()
            }
            Self::Own { data, .. } => data.is_empty(),
            Self::Early(early) => early.is_end_stream(),
            Self::Flowing { .. } | Self::Gathered { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Passing { metered, .. } => {
                metered.left().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Self::Own { data, .. } => SizeHint::with_exact(data.len() as u64),
            Self::Flowing { .. } | Self::Gathered { .. } | Self::Early(_) => SizeHint::default(),
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        let outcome = self.record.outcome();
        // Nobody is left to wait for it.
        drop(self.settle(outcome));
    }
}

/// Counts the pieces on their way; one that cannot be made cuts the answer.
fn flowing(
    flow: &mut Flow,
    record: &mut Record,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
    flow.poll(cx).map(|piece| match piece {
        Some(Ok(data)) => {
            record.sent(data.len());
            Some(Ok(Frame::data(data)))
        }
        Some(Err(reject)) => {
            record.break_off(&reject);
            Some(Err(Cut))
        }
        None => {
            record.end(Outcome::Done);
            None
        }
    })
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("state", &self.state).finish_non_exhaustive()
    }
}
