//! One connection to a backend, and a request over it.
//!
//! It is driven by the request that uses it, in the same task: no hand-over between tasks, and
//! dropping the request closes the connection, which is what stops the model.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::call::Outgoing;
use crate::http1::{Due, Framing, Inbox, Outbox, Piece, ResponseHead};
use crate::reject::Cause;
use crate::socket::Socket;

/// A model server has no reason for more interim answers than this.
const MOST_INTERIM: usize = 20;

/// One connection to a backend, driven by whoever holds it.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    inbox: Inbox,
    /// Of the answer that is being read.
    framing: Framing,
    /// Another request may follow that answer.
    stays: bool,
    due: Due,
    opened: Instant,
}

/// A request as it goes over the wire; nothing of it is lost until a byte of it has gone.
#[derive(Debug)]
pub struct Outbound {
    method: Method,
    /// The head, and behind it what is there of the body.
    outbox: Outbox,
    /// What is still to come of the body; or the memory of a whole one, until it has gone.
    body: Outgoing,
    is_chunked: bool,
    is_gathered: bool,
    has_begun: bool,
    /// Something of a body that passes through was taken, and would be lost.
    has_taken: bool,
}

impl Outbound {
    /// `head` tells the length of `body`, or that it comes in chunks, if its length is unknown.
    #[must_use]
    pub fn new(method: Method, head: Vec<u8>, body: Outgoing) -> Self {
        let mut outbox = Outbox::from(head);
        let whole = body.whole().cloned();
        let (is_chunked, is_gathered) = (body.length().is_none(), whole.is_some());
        outbox.push(whole.unwrap_or_default());
        Self { method, outbox, body, is_chunked, is_gathered, has_begun: false, has_taken: false }
    }

    /// The body again, of a request of which nothing has gone.
    #[must_use]
    pub fn unsent(self) -> Option<Outgoing> {
        (!self.has_begun && !self.has_taken).then_some(self.body)
    }

    fn poll_send(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<Sent> {
        loop {
            let waiting = match self.poll_gather(cx) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(_)) => return Poll::Ready(Sent::BodyBroke),
                Poll::Pending => true,
            };
            let flushed = self.outbox.poll_flush(&mut *socket, cx);
            self.has_begun |= !self.outbox.is_untouched();
            if ready!(flushed).is_err() {
                return Poll::Ready(Sent::Cut);
            }
            if self.is_gathered {
                // The memory is free for another's body.
                self.body = Outgoing::empty();
                return Poll::Ready(Sent::Whole);
            }
            if waiting {
                return Poll::Pending;
            }
        }
    }

    /// Takes from the body until that ends, or there is enough to send.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        while !self.is_gathered && !self.outbox.is_full() {
            let data = ready!(self.body.poll_data(cx)).transpose()?;
            self.has_taken = true;
            match data {
                Some(data) if self.is_chunked => self.outbox.push_chunk(data),
                Some(data) => self.outbox.push(data),
                None => {
                    self.is_gathered = true;
                    if self.is_chunked {
                        self.outbox.push_last_chunk();
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// How far a request has gone out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Partly,
    Whole,
    /// The backend takes no more; it may have answered all the same.
    Cut,
    BodyBroke,
}

/// Why an exchange gave no answer.
#[derive(Debug)]
pub enum Failed {
    /// Nothing of the request was sent; it can be sent elsewhere.
    NotBegun,
    /// The first byte of the answer did not come in time.
    Late,
    /// The caller's upload broke off.
    Upload,
    Broken(Cause),
}

impl Connection {
    #[inline]
    pub(super) fn over(socket: Socket) -> Self {
        Self {
            socket,
            inbox: Inbox::default(),
            framing: Framing::NOTHING,
            stays: false,
            due: Due::default(),
            opened: Instant::now(),
        }
    }

    /// Whether nothing has come over it since its answer; of one that was `just_used` the runtime's
    /// word is taken.
    #[inline]
    pub(super) fn is_silent(&self, just_used: bool) -> bool {
        match just_used {
            true => self.socket.seems_silent(),
            false => self.socket.is_silent(),
        }
    }

    /// Sends a request and waits for the head of its answer, for as long as `first_byte` after the
    /// last byte that an upload moved.
    ///
    /// # Errors
    /// Whether the backend can have begun, see [`Failed`].
    pub async fn exchange(
        &mut self,
        request: &mut Outbound,
        first_byte: Duration,
    ) -> Result<ResponseHead, Failed> {
        let started = tokio::time::Instant::now();
        let upload = request.body.upload();
        let (mut sent, mut interim) = (Sent::Partly, 0);
        let head = poll_fn(|cx| {
            if sent == Sent::Partly
                && let Poll::Ready(now) = request.poll_send(&mut self.socket, cx)
            {
                sent = now;
                match now {
                    Sent::BodyBroke => return Poll::Ready(Err(Failed::Upload)),
                    Sent::Cut if !request.has_begun => return Poll::Ready(Err(Failed::NotBegun)),
                    Sent::Partly | Sent::Whole | Sent::Cut => {}
                }
            }
            if let Poll::Ready(head) = self.poll_head(&request.method, &mut interim, cx) {
                return Poll::Ready(head.map_err(Failed::Broken));
            }
            let moved = upload.as_ref().map_or(started, |upload| upload.moved().max(started));
            match self.due.has_passed(moved + first_byte, cx) {
                true => Poll::Ready(Err(Failed::Late)),
                false => Poll::Pending,
            }
        })
        .await?;
        self.framing = head.framing;
        // An answer that did not wait for the whole request leaves the rest of it unsent.
        self.stays = head.keeps_alive && sent == Sent::Whole;
        Ok(head)
    }

    /// The head of the final answer; what may come before that is only counted.
    fn poll_head(
        &mut self,
        asked: &Method,
        interim: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Cause>> {
        loop {
            match ResponseHead::take(&mut self.inbox, asked)? {
                Some(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    return Poll::Ready(Err("switched protocols without being asked".into()));
                }
                Some(head) if head.status.is_informational() => *interim += 1,
                Some(head) => return Poll::Ready(Ok(head)),
                None => ready!(self.poll_fill(cx))?,
            }
            if *interim > MOST_INTERIM {
                return Poll::Ready(Err("too many interim answers".into()));
            }
        }
    }

    /// The next bytes of the answer's body; `None` at its end.
    ///
    /// # Errors
    /// Where the backend breaks off, or frames its answer wrongly.
    #[inline]
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cause>> {
        loop {
            match self.framing.next(&mut self.inbox)? {
                Piece::Data(data) => {
                    // A fault behind this piece is met again by the next.
                    let _ = self.framing.settle(&mut self.inbox);
                    return Poll::Ready(Ok(Some(data)));
                }
                Piece::End => return Poll::Ready(Ok(None)),
                Piece::Wanting if self.framing == Framing::UntilClose => {
                    // Over TLS a cut is an error, and only a goodbye is an end (RFC 8446, 6.1).
                    if ready!(self.inbox.poll_fill(&mut self.socket, cx))? == 0 {
                        self.stays = false;
                        self.framing = Framing::NOTHING;
                    }
                }
                Piece::Wanting => ready!(self.poll_fill(cx))?,
            }
        }
    }

    /// Bytes of the answer's body that are still to come, where that is known.
    #[must_use]
    #[inline]
    pub fn left(&self) -> Option<u64> {
        self.framing.length()
    }

    /// The answer has been read whole.
    #[must_use]
    #[inline]
    pub fn is_past(&self) -> bool {
        self.framing.is_past()
    }

    /// Whether `deadline` has passed; otherwise the task is woken when it has.
    #[inline]
    pub fn is_due(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        self.due.has_passed(deadline.into(), cx)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.inbox.poll_fill(&mut self.socket, cx))? {
            0 => {
                self.stays = false;
                Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    #[inline]
    pub(super) fn is_older(&self, than: Duration, now: Instant) -> bool {
        now > self.opened + than
    }

    #[inline]
    pub(super) fn is_reusable(&self) -> bool {
        self.stays && self.framing.is_past() && self.inbox.is_empty()
    }
}
