//! A caller's socket, shared by the connection that reads heads, the body that is being read, and
//! the answer that is being written: all one task.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{BadFraming, Framing, Inbox, Malformed, Outbox, Piece, RequestHead};
use crate::socket::Socket;

/// Bytes that may be read aside behind a request that is being answered; a caller who sends more
/// than this ahead is noticed at the next write only.
const MOST_ASIDE: usize = 64 * 1024;

/// One caller's socket, with what came over it.
#[derive(Debug)]
pub struct Wire(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    socket: Socket,
    inbox: Inbox,
    /// Of the request that is being answered.
    framing: Framing,
    /// The caller waits for a 100 before it sends the body.
    owes_continue: bool,
}

impl Wire {
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        let inbox = Inbox::default();
        Self(Mutex::new(Inner { socket, inbox, framing: Framing::NOTHING, owes_continue: false }))
    }

    /// The next request's head; `None` when the caller has sent its last.
    ///
    /// # Errors
    /// See [`HeadError`].
    pub fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Result<Option<RequestHead>, HeadError>> {
        let inner = &mut *self.inner();
        loop {
            if let Some(head) = RequestHead::take(&mut inner.inbox)? {
                inner.framing = head.framing;
                inner.owes_continue = head.expects_continue;
                return Poll::Ready(Ok(Some(head)));
            }
            if ready!(inner.fill(cx)).unwrap_or(0) == 0 {
                return Poll::Ready(match inner.inbox.is_empty() {
                    true => Ok(None),
                    false => Err(HeadError::Half),
                });
            }
        }
    }

    /// Part of a head has come.
    #[must_use]
    pub fn has_half_a_head(&self) -> bool {
        !self.inner().inbox.is_empty()
    }

    /// Looks for a caller who left while its request, which is here whole, is being answered. What
    /// else came is kept for later.
    pub fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        let inner = &mut *self.inner();
        while inner.framing.is_past() && inner.inbox.held().len() < MOST_ASIDE {
            match inner.fill(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(0) | Err(_)) => return true,
                Poll::Ready(Ok(_)) => {}
            }
        }
        false
    }

    /// # Errors
    /// What the socket says; then the caller is gone.
    pub fn poll_flush(&self, outbox: &mut Outbox, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        outbox.poll_flush(&mut self.inner().socket, cx)
    }

    /// Sends what there is room for, and tells whether that was anything: see [`Socket::send_now`].
    pub fn nudge(&self, outbox: &mut Outbox) -> bool {
        let inner = &mut *self.inner();
        inner.socket.send_records_now() || outbox.offer(|bytes| inner.socket.send_now(bytes))
    }

    /// How far sending has come: the same twice in a row where nothing went in between.
    #[must_use]
    pub fn progress(&self, outbox: &Outbox) -> (usize, u64) {
        (outbox.left(), self.inner().socket.records_sent())
    }

    /// The request that is being answered has been read to its end.
    #[must_use]
    pub fn is_past_body(&self) -> bool {
        self.inner().framing.is_past()
    }

    /// The whole request has been read, and nothing of another one.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let inner = self.inner();
        inner.framing.is_past() && inner.inbox.is_empty()
    }

    /// The socket, and what was read from it and not taken.
    #[must_use]
    pub fn into_parts(self) -> (Socket, Bytes) {
        let mut inner = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        (inner.socket, inner.inbox.take(usize::MAX))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why no further head came.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the connection ended in the middle of a head")]
    Half,
}

impl Inner {
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.inbox.poll_fill(&mut self.socket, cx)
    }

    /// Says that the body may come, to a caller who waits to hear that (RFC 9110, 10.1.1).
    fn invite(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.owes_continue) {
            // The first bytes of an answer always have room.
            self.socket.try_write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        loop {
            match self.framing.next(&mut self.inbox)? {
                Piece::Data(data) => {
                    // A fault behind this piece is met again by the next.
                    let _ = self.framing.settle(&mut self.inbox);
                    return Poll::Ready(Ok(Some(data)));
                }
                Piece::End => return Poll::Ready(Ok(None)),
                Piece::Wanting => {
                    self.invite().map_err(|_| Broken::Gone)?;
                    if ready!(self.fill(cx)).unwrap_or(0) == 0 {
                        return Poll::Ready(Err(Broken::Gone));
                    }
                }
            }
        }
    }
}

/// How much of a request has come; read by the record and by the connection.
#[derive(Debug, Default)]
pub struct Arrival {
    bytes: AtomicU64,
    complete: AtomicBool,
    gone: AtomicBool,
}

impl Arrival {
    /// A request without a body has arrived with its head.
    #[must_use]
    pub fn of(framing: &Framing) -> Self {
        Self { complete: AtomicBool::new(framing.is_past()), ..Self::default() }
    }

    /// Bytes of the body so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The whole request is here: whatever comes now is not part of it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// The caller left before the whole request was here. Nobody waits for an answer, and the
    /// connection is about to drop whatever works on one.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Counts bytes of the body; `complete` when they are the last.
    pub fn took(&self, bytes: usize, complete: bool) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.complete.store(complete, Ordering::Relaxed);
    }

    /// The caller left in the middle of its request.
    pub fn lost(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// The body of a request that is still on the wire.
#[derive(Debug)]
pub struct Incoming {
    wire: Arc<Wire>,
    arrived: Arc<Arrival>,
}

impl Incoming {
    #[must_use]
    pub fn new(wire: Arc<Wire>, arrived: Arc<Arrival>) -> Self {
        Self { wire, arrived }
    }
}

/// No more of a caller's body can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the caller left in the middle of its body")]
    Gone,
    #[error(transparent)]
    Framing(#[from] BadFraming),
    #[error("the body is not what its stream announced")]
    Stream,
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut inner = self.wire.inner();
        let piece = ready!(inner.poll_piece(cx));
        match &piece {
            Ok(data) => {
                let bytes = data.as_ref().map_or(0, Bytes::len);
                self.arrived.took(bytes, inner.framing.is_past());
            }
            Err(Broken::Gone) => self.arrived.lost(),
            Err(Broken::Framing(_) | Broken::Stream) => {}
        }
        Poll::Ready(piece.map(|data| data.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.wire.inner().framing.is_past()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.wire.inner().framing.length();
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
