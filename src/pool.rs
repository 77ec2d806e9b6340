//! The backend: a [`Lease`] on it, and the kept-alive connections to it.
//!
//! A connection is driven by the request that uses it, in the same task: no hand-over between tasks,
//! and dropping the request closes the connection, which is what stops the model.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::net::{TcpStream, UnixStream};

use crate::call::Outgoing;
use crate::config::BackendUrl;
use crate::http1::{Due, Framing, Inbox, Outbox, Piece, ResponseHead};
use crate::limit::Ticket;
use crate::reject::{Cause, Reject};
use crate::socket::Socket;
use crate::tls::BackendTls;

mod known;
mod own;

use known::Known;
use own::{LISTED_FOR, LOADED_FOR, Listed, Loaded};

/// Model servers in Python and Node close a kept connection after 5 s; a request sent into that
/// moment is lost.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// A connection that answered so short a time ago has not ended by an idle timer of the other side;
/// then the runtime's word is enough, and a call to the kernel is spared.
const JUST_USED: Duration = Duration::from_millis(1);
/// Idle connections beyond this are closed; more than this many at once are rare in front of a GPU.
const MOST_IDLE: usize = 1024;
/// A model server has no reason for more interim answers than this.
const MOST_INTERIM: usize = 20;

/// One backend and its idle connections; survives a reload that does not change it.
#[derive(Debug)]
pub struct Pool {
    name: Arc<str>,
    url: BackendUrl,
    /// For an https address.
    tls: Option<BackendTls>,
    idle: Mutex<Vec<(Box<Connection>, Instant)>>,
    /// The last attempt to connect did not fail.
    up: AtomicBool,
    busy: AtomicUsize,
    /// Models in memory, and models that it has.
    loaded: Known<Loaded>,
    listed: Known<Listed>,
}

/// The right to ask a backend; dropping it frees the place. Only [`Pool::choose`] makes one.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    connect_timeout: Duration,
}

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
}

impl Pool {
    #[must_use]
    pub fn new(name: &str, url: BackendUrl, tls: Option<BackendTls>) -> Self {
        Self {
            name: name.into(),
            url,
            tls,
            idle: Mutex::default(),
            up: AtomicBool::new(true),
            busy: AtomicUsize::new(0),
            loaded: Known::for_about(LOADED_FOR),
            listed: Known::for_about(LISTED_FOR),
        }
    }

    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    #[must_use]
    pub fn url(&self) -> &BackendUrl {
        &self.url
    }

    #[must_use]
    pub fn tls(&self) -> Option<&BackendTls> {
        self.tls.as_ref()
    }

    /// Whether the last attempt to connect succeeded; true before the first.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Requests that it has.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }

    /// A place at the only backend there is.
    #[must_use]
    pub fn choose(self: &Arc<Self>, _admitted: &Ticket, connect_timeout: Duration) -> Lease {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Lease { pool: Arc::clone(self), connect_timeout }
    }

    /// Closes idle connections that nobody should use any more.
    pub fn tend(&self, now: Instant) {
        let old: Vec<_> = {
            let mut idle = self.idle();
            let (fresh, old) =
                idle.drain(..).partition(|(_, since)| now.duration_since(*since) < KEEP_IDLE);
            *idle = fresh;
            old
        };
        drop(old);
    }

    fn take_idle(&self, now: Instant) -> Option<Box<Connection>> {
        loop {
            let (connection, since) = self.idle().pop()?;
            let idle = now.duration_since(since);
            let is_silent = match idle < JUST_USED {
                true => connection.socket.seems_silent(),
                false => connection.socket.is_silent(),
            };
            if idle < KEEP_IDLE && is_silent {
                return Some(connection);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Box<Connection>, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection, for whoever asks in the gate's own name; a caller's request needs a [`Lease`].
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(&self) -> io::Result<Box<Connection>> {
        let socket = match (&self.url, &self.tls) {
            (BackendUrl::Unix(path), _) => Socket::from(UnixStream::connect(path).await?),
            (BackendUrl::Http { host, port }, _) => {
                Socket::from(TcpStream::connect((host.as_str(), *port)).await?)
            }
            (BackendUrl::Https { host, port }, Some(tls)) => {
                let socket = TcpStream::connect((host.as_str(), *port)).await?;
                // Boxed, so that requests to other backends stay small.
                Box::pin(tls.connect(socket)).await?
            }
            (BackendUrl::Https { .. }, None) => return Err(io::ErrorKind::Unsupported.into()),
        };
        socket.set_nodelay()?;
        Ok(Box::new(Connection {
            socket,
            inbox: Inbox::default(),
            framing: Framing::NOTHING,
            stays: false,
            due: Due::default(),
        }))
    }
}

impl Lease {
    #[must_use]
    pub fn backend(&self) -> &Arc<str> {
        &self.pool.name
    }

    #[must_use]
    pub fn url(&self) -> &BackendUrl {
        &self.pool.url
    }

    /// A kept connection that is known to be open and silent; `None` if there is none.
    #[must_use]
    pub fn kept(&self, now: Instant) -> Option<Box<Connection>> {
        self.pool.take_idle(now)
    }

    /// # Errors
    /// [`Reject::NoBackend`] where no connection could be made in time, and [`Reject::Overloaded`]
    /// where we could not even try.
    pub async fn connect(&self) -> Result<Box<Connection>, Reject> {
        let connected = tokio::time::timeout(self.connect_timeout, self.pool.connect()).await;
        let up = &self.pool.up;
        match connected {
            // Says nothing about the backend.
            Ok(Err(error)) if is_out_of_files(&error) => {
                return Err(Reject::Overloaded("no file is left for a connection to the backend"));
            }
            Ok(Ok(_)) => up.store(true, Ordering::Relaxed),
            Ok(Err(_)) | Err(_) => up.store(false, Ordering::Relaxed),
        }
        match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Reject::NoBackend(Box::new(error))),
            Err(late) => Err(Reject::NoBackend(Box::new(late))),
        }
    }

    /// Keeps a connection whose answer has been read whole.
    pub fn give_back(&self, connection: Box<Connection>, now: Instant) {
        if !connection.is_reusable() {
            return;
        }
        let mut idle = self.pool.idle();
        if idle.len() < MOST_IDLE {
            idle.push((connection, now));
        }
    }
}

/// Of ours, or of the whole system (errno(3); the same numbers everywhere).
fn is_out_of_files(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.busy.fetch_sub(1, Ordering::Relaxed);
    }
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
}

impl Outbound {
    /// `head` tells the length of `body`, or that it comes in chunks, if its length is unknown.
    #[must_use]
    pub fn new(method: Method, head: Vec<u8>, body: Outgoing) -> Self {
        let mut outbox = Outbox::from(head);
        let whole = body.whole().cloned();
        let (is_chunked, is_gathered) = (body.length().is_none(), whole.is_some());
        outbox.push(whole.unwrap_or_default());
        Self { method, outbox, body, is_chunked, is_gathered, has_begun: false }
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
            match ready!(self.body.poll_data(cx)).transpose()? {
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
    pub fn left(&self) -> Option<u64> {
        self.framing.length()
    }

    /// The answer has been read whole.
    #[must_use]
    pub fn is_past(&self) -> bool {
        self.framing.is_past()
    }

    /// Whether `deadline` has passed; otherwise the task is woken when it has.
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

    fn is_reusable(&self) -> bool {
        self.stays && self.framing.is_past() && self.inbox.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_without_files_does_not_blame_the_backend() {
        let folder = tempfile::tempdir().unwrap();
        let refused = std::os::unix::net::UnixStream::connect(folder.path().join("nothing"));
        assert!(!is_out_of_files(&refused.unwrap_err()));
        for number in [23, 24] {
            let error = io::Error::from_raw_os_error(number);
            assert!(is_out_of_files(&error), "{error}");
            assert!(error.to_string().contains("open files"), "{error}");
        }
    }
}
