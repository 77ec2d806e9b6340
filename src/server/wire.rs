//! A caller's socket, watched: who is there, since when it is silent, and what came too early.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::head::Head;
use crate::call::Arrival;

/// Bytes that may be read aside behind a request that is being answered; a caller who sends more
/// than this ahead is noticed at the next write only.
const MOST_ASIDE: usize = 64 * 1024;

/// One caller's socket, shared by hyper, the answer and the connection's driver: all one task.
#[derive(Debug)]
pub(super) struct Wire(Mutex<Watch>);

#[derive(Debug)]
struct Watch {
    socket: TcpStream,
    /// The request being answered.
    current: Option<Arc<Arrival>>,
    /// Since when nothing is being answered.
    idle_since: Instant,
    /// When the first byte of a head came that is not complete yet.
    head_since: Option<Instant>,
    answered_any: bool,
    /// An answer went out before its request's body had been read: the last one here.
    body_unread: bool,
    /// hyper waits for bytes, so it will notice a caller who leaves.
    wanted: bool,
    aside: Vec<u8>,
    taken: usize,
    head: Head,
    /// The status that went out last; after a head that hyper could not read it is hyper's own.
    last_status: Option<u16>,
}

/// What a connection has to show when nothing more will come of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remains {
    pub(super) half_a_head: bool,
    pub(super) last_status: Option<u16>,
    pub(super) preface: bool,
    /// Bytes may still come that nobody will read.
    pub(super) unread: bool,
}

impl Wire {
    pub(super) fn new(socket: TcpStream, now: Instant) -> Self {
        Self(Mutex::new(Watch {
            socket,
            current: None,
            idle_since: now,
            head_since: None,
            answered_any: false,
            body_unread: false,
            wanted: false,
            aside: Vec::new(),
            taken: 0,
            head: Head::awaited(),
            last_status: None,
        }))
    }

    /// A head is complete; its request is being answered from now on.
    pub(super) fn begin(&self, arrived: Arc<Arrival>) {
        let mut watch = self.watch();
        watch.current = Some(arrived);
        watch.head_since = None;
        watch.answered_any = true;
    }

    /// The answer's last byte has been handed over.
    pub(super) fn end(&self, now: Instant) {
        let mut watch = self.watch();
        let whole = watch.current.take().is_none_or(|arrived| arrived.is_complete());
        watch.body_unread |= !whole;
        watch.idle_since = now;
        watch.head = Head::awaited();
    }

    /// Before hyper is polled.
    pub(super) fn expect_interest(&self) {
        self.watch().wanted = false;
    }

    /// Looks for a caller who left, where hyper does not: it stops reading while a byte that came
    /// too early lies in its buffer.
    pub(super) fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        let mut watch = self.watch();
        if watch.current.as_ref().is_some_and(|arrived| arrived.is_gone()) {
            return true;
        }
        let whole = watch.current.as_ref().is_some_and(|arrived| arrived.is_complete());
        if !whole || watch.wanted {
            return false;
        }
        while watch.aside.len() < MOST_ASIDE {
            let mut bytes = [0; 4096];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut watch.socket).poll_read(cx, &mut buffer) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    watch.aside.extend_from_slice(buffer.filled());
                }
                Poll::Ready(Ok(()) | Err(_)) => return true,
            }
        }
        false
    }

    /// When this connection has waited long enough, if nothing changes until then.
    pub(super) fn deadline(&self, header: Duration, keep_alive: Duration) -> Option<Instant> {
        let watch = self.watch();
        match (&watch.current, watch.head_since) {
            (Some(_), _) => None,
            (None, Some(since)) => Some(since + header),
            (None, None) if watch.answered_any => Some(watch.idle_since + keep_alive),
            (None, None) => Some(watch.idle_since + header),
        }
    }

    /// When half a head came.
    pub(super) fn half_since(&self) -> Option<Instant> {
        self.watch().head_since
    }

    /// The socket, and what is left to say on it.
    pub(super) fn close(self) -> (TcpStream, Remains) {
        let watch = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let unread = watch.current.as_ref().is_some_and(|arrived| !arrived.is_complete());
        let half_a_head = watch.head_since.is_some();
        let remains = Remains {
            half_a_head,
            last_status: watch.last_status,
            preface: watch.head.is_preface(),
            unread: unread || watch.body_unread || half_a_head || watch.aside.len() > watch.taken,
        };
        (watch.socket, remains)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    fn leave(&self) {
        if let Some(arrived) = &self.current {
            arrived.leave();
        }
    }

    fn take_aside(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let bytes = self.aside.get(self.taken..).unwrap_or_default();
        if bytes.is_empty() {
            return false;
        }
        let room = bytes.len().min(buffer.remaining());
        buffer.put_slice(bytes.get(..room).unwrap_or_default());
        self.taken += room;
        if self.taken == self.aside.len() {
            (self.aside, self.taken) = (Vec::new(), 0);
        }
        true
    }

    fn look(&mut self, bytes: &mut [u8]) {
        // What comes after an unread body is the rest of that body.
        if self.current.is_none() && !self.body_unread && !bytes.is_empty() {
            self.head_since.get_or_insert_with(Instant::now);
            self.head.look(bytes);
        }
    }

    fn look_at_answer(&mut self, slices: &[io::IoSlice<'_>]) {
        let first = slices.first().map(|slice| &**slice).unwrap_or_default();
        if self.current.is_none() && first.starts_with(b"HTTP/1.") {
            let status = first.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
            self.last_status = status.and_then(|digits| digits.parse().ok());
        }
    }
}

/// hyper's handle on a [`Wire`].
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Wire>);

impl AsyncRead for Handle {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut watch = self.0.watch();
        let before = buffer.filled().len();
        if !watch.take_aside(buffer) {
            match Pin::new(&mut watch.socket).poll_read(cx, buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                Poll::Ready(ended) => {
                    watch.leave();
                    return Poll::Ready(ended);
                }
                Poll::Pending => {
                    watch.wanted = true;
                    return Poll::Pending;
                }
            }
        }
        watch.look(buffer.filled_mut().get_mut(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Handle {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut watch = self.0.watch();
        watch.look_at_answer(slices);
        Pin::new(&mut watch.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.watch().socket).poll_shutdown(cx)
    }
}
