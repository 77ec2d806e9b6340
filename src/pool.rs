//! The backend: a [`Lease`] on it, and the kept-alive connections to it.
//!
//! A connection is driven by the request that uses it, in the same task: no hand-over between tasks,
//! and dropping the request closes the connection, which is what stops the model.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::call::Outgoing;
use crate::config::BackendUrl;
use crate::limit::Ticket;
use crate::reject::Reject;

/// Model servers in Python and Node close a kept connection after 5 s; a request sent into that
/// moment is lost.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// Idle connections beyond this are closed; more than this many at once are rare in front of a GPU.
const MOST_IDLE: usize = 1024;
/// The largest response head that is believed.
const MAX_RESPONSE_HEAD: usize = 64 * 1024;

/// One backend and its idle connections; survives a reload that does not change it.
#[derive(Debug)]
pub struct Pool {
    name: Arc<str>,
    url: BackendUrl,
    idle: Mutex<Vec<(Connection, Instant)>>,
    /// The last attempt to connect did not fail.
    up: AtomicBool,
    busy: AtomicUsize,
}

/// The right to ask a backend; dropping it frees the place. Only [`Pool::choose`] makes one.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    connect_timeout: Duration,
}

/// One connection to a backend, driven by whoever holds it.
pub struct Connection {
    sender: SendRequest<Outgoing>,
    driver: http1::Connection<TokioIo<Socket>, Outgoing>,
    socket: Socket,
}

impl Pool {
    #[must_use]
    pub fn new(name: &str, url: BackendUrl) -> Self {
        Self {
            name: name.into(),
            url,
            idle: Mutex::default(),
            up: AtomicBool::new(true),
            busy: AtomicUsize::new(0),
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

    /// Whether the last attempt to connect succeeded; true before the first.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
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

    fn take_idle(&self, now: Instant) -> Option<Connection> {
        loop {
            let (connection, since) = self.idle().pop()?;
            if now.duration_since(since) < KEEP_IDLE && connection.is_silent() {
                return Some(connection);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> io::Result<Connection> {
        let socket = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        socket.set_nodelay(true)?;
        let socket = Socket(Arc::new(Mutex::new(socket)));
        let io = TokioIo::new(socket.clone());
        let (sender, driver) = http1::Builder::new()
            .max_header_size(MAX_RESPONSE_HEAD)
            .max_headers(100)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        Ok(Connection { sender, driver, socket })
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
    pub fn kept(&self, now: Instant) -> Option<Connection> {
        self.pool.take_idle(now)
    }

    /// # Errors
    /// [`Reject::NoBackend`] where no connection could be made in time.
    pub async fn connect(&self) -> Result<Connection, Reject> {
        let connected = tokio::time::timeout(self.connect_timeout, self.pool.connect()).await;
        self.pool.up.store(matches!(connected, Ok(Ok(_))), Ordering::Relaxed);
        match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Reject::NoBackend(Box::new(error))),
            Err(late) => Err(Reject::NoBackend(Box::new(late))),
        }
    }

    /// Keeps a connection whose answer has been read whole.
    pub fn give_back(&self, connection: Connection, now: Instant) {
        if !connection.sender.is_ready() {
            return;
        }
        let mut idle = self.pool.idle();
        if idle.len() < MOST_IDLE {
            idle.push((connection, now));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why an exchange gave no answer.
#[derive(Debug)]
pub enum Failed {
    /// Nothing of the request was sent; here it is again.
    NotBegun(Box<Request<Outgoing>>),
    Broken(hyper::Error),
}

impl Connection {
    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// Whether the backend can have begun, see [`Failed`].
    pub async fn exchange(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failed> {
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            // Also when the driver has ended: it leaves the reason with the answer.
            let _ = Pin::new(&mut *driver).poll(cx);
            answer.as_mut().poll(cx)
        })
        .await
        .map_err(|mut refused| match refused.take_message() {
            Some(request) => Failed::NotBegun(Box::new(request)),
            None => Failed::Broken(refused.into_error()),
        })
    }

    /// Moves bytes; to be called after the body of the answer said that it has none.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        // How it ends is told by the body.
        let _ = Pin::new(&mut self.driver).poll(cx);
    }

    /// Asks the kernel, not the runtime, which may not have heard yet: a connection that was closed
    /// or written to while idle is not to be used.
    fn is_silent(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = SockRef::from(&*self.socket.lock()).peek(&mut byte);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            && !self.sender.is_closed()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A socket of which the pool keeps a handle for itself, to ask whether it is silent.
#[derive(Debug, Clone)]
struct Socket(Arc<Mutex<TcpStream>>);

impl Socket {
    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}
