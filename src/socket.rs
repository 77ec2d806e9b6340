//! One socket, of whatever kind: what reads and writes need not know which.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

mod counted;

pub use counted::Counted;

/// What one record of TLS holds (RFC 8446, 5.1). More is not handed over at once: after a write that
/// failed the other side then has nothing of it that it could read.
const RECORD: usize = 16 * 1024;

/// A connection to a caller or to a backend.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed: it is a hundred times as large as the others.
    Tls(Box<TlsStream<Counted>>),
}

/// Hands a call on to the kind of socket that it is.
macro_rules! each {
    ($socket:expr, $it:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($it) => $call,
            Socket::Unix($it) => $call,
            Socket::Tls($it) => $call,
        }
    };
}

impl Socket {
    #[must_use]
    pub fn tls(stream: TlsStream<Counted>) -> Self {
        Self::Tls(Box::new(stream))
    }

    /// Small pieces go at once.
    ///
    /// # Errors
    /// What the system says; a socket that is gone already shows at the first read, too.
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nodelay(true),
            Self::Unix(_) => Ok(()),
            Self::Tls(it) => it.get_ref().0.socket.set_nodelay(true),
        }
    }

    /// Writes what can be written without waiting, and tells how much that was.
    ///
    /// # Errors
    /// What the socket says; `WouldBlock` where there is no room.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(it) => it.try_write(bytes),
            Self::Unix(it) => it.try_write(bytes),
            Self::Tls(_) => {
                let mut nobody = Context::from_waker(Waker::noop());
                let written = Pin::new(&mut *self).poll_write(&mut nobody, bytes);
                // What does not leave now leaves with what is written next.
                let _ = Pin::new(self).poll_flush(&mut nobody);
                match written {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Sends as much as there is room for. The system tells of room only when a good part of its
    /// buffer is free (Linux: a third), and to take that much may take a slow reader long; so this asks
    /// the kernel, not the runtime.
    ///
    /// # Errors
    /// What the socket says; `WouldBlock` where there is no room.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => SockRef::from(self).send(bytes),
            // Its bytes go out as records, which only the session can make: see `send_records_now`.
            Self::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// The same for what a session of TLS holds; whether any of it went.
    pub fn send_records_now(&mut self) -> bool {
        let Self::Tls(it) = self else { return false };
        match &mut **it {
            TlsStream::Client(it) => {
                let (below, session) = it.get_mut();
                below.send_now(|socket| session.write_tls(socket))
            }
            TlsStream::Server(it) => {
                let (below, session) = it.get_mut();
                below.send_now(|socket| session.write_tls(socket))
            }
        }
    }

    /// Bytes that have gone as records of TLS, which takes in more than has gone; elsewhere what was
    /// taken has gone, and this tells nothing.
    #[must_use]
    pub fn records_sent(&self) -> u64 {
        match self {
            Self::Tcp(_) | Self::Unix(_) => 0,
            Self::Tls(it) => it.get_ref().0.written,
        }
    }

    /// Nothing has come that was not read, and the other side has not closed. Asks the kernel, not the
    /// runtime, which may not have heard yet.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.has_nothing_decrypted() && would_block(&self.peek())
    }

    /// Says that this was all, where closing does not say so: over TLS the other side could not tell
    /// the end from a cut (RFC 8446, 6.1).
    pub fn say_goodbye(&mut self) {
        if let Self::Tls(it) = self {
            // If it does not leave now, the other side takes nothing.
            let _ = Pin::new(it).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// What lies under TLS, to take in what still comes without making sense of it.
    #[must_use]
    pub fn into_transport(self) -> Self {
        match self {
            Self::Tcp(_) | Self::Unix(_) => self,
            Self::Tls(it) => match *it {
                TlsStream::Client(it) => Self::Tcp(it.into_inner().0.socket),
                TlsStream::Server(it) => Self::Tcp(it.into_inner().0.socket),
            },
        }
    }

    /// The same as far as the runtime has heard, which costs no call to the kernel.
    #[must_use]
    pub fn seems_silent(&self) -> bool {
        let peeked = match self {
            Self::Tcp(it) => it.try_io(Interest::READABLE, || self.peek()),
            Self::Unix(it) => it.try_io(Interest::READABLE, || self.peek()),
            Self::Tls(it) => it.get_ref().0.socket.try_io(Interest::READABLE, || self.peek()),
        };
        self.has_nothing_decrypted() && would_block(&peeked)
    }

    /// No bytes of a record, and no goodbye, were read ahead and are still to be taken.
    fn has_nothing_decrypted(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => true,
            Self::Tls(it) => it.get_ref().1.wants_read(),
        }
    }

    fn peek(&self) -> io::Result<usize> {
        SockRef::from(self).peek(&mut [MaybeUninit::uninit()])
    }
}

fn would_block(peeked: &io::Result<usize>) -> bool {
    peeked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(socket)
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(socket)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(it) => it.as_fd(),
            Self::Unix(it) => it.as_fd(),
            Self::Tls(it) => it.get_ref().0.socket.as_fd(),
        }
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), it => Pin::new(it).poll_read(cx, into))
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(it) => Pin::new(it).poll_write(cx, bytes),
            Self::Unix(it) => Pin::new(it).poll_write(cx, bytes),
            Self::Tls(it) => {
                let record = bytes.get(..RECORD).unwrap_or(bytes);
                Pin::new(it).poll_write(cx, record)
            }
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(it) => Pin::new(it).poll_write_vectored(cx, pieces),
            Self::Unix(it) => Pin::new(it).poll_write_vectored(cx, pieces),
            Self::Tls(it) => {
                let mut room = RECORD;
                let record = pieces.iter().map(|piece| {
                    let part = piece.get(..room).unwrap_or(piece);
                    room -= part.len();
                    IoSlice::new(part)
                });
                Pin::new(it).poll_write_vectored(cx, &record.collect::<Vec<_>>())
            }
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // These hold nothing back.
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(it) => Pin::new(it).poll_flush(cx),
        }
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), it => Pin::new(it).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn tcp() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.unwrap().into(), theirs.unwrap().0.into())
    }

    #[tokio::test]
    async fn every_kind_carries_bytes_both_ways_and_the_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for (mut ours, mut theirs) in [tcp().await, (ours.into(), theirs.into())] {
            ours.set_nodelay().unwrap();
            // Fills in what the runtime knows about the socket.
            ours.writable_once().await;
            assert_eq!(ours.try_write(b"ab").unwrap(), 2);
            let pieces = [IoSlice::new(b"c"), IoSlice::new(b""), IoSlice::new(b"d")];
            assert_eq!(ours.write_vectored(&pieces).await.unwrap(), 2);
            ours.shutdown().await.unwrap();
            let mut came = String::new();
            theirs.read_to_string(&mut came).await.unwrap();
            assert_eq!(came, "abcd");
            theirs.write_all(b"e").await.unwrap();
            assert_eq!(ours.read_u8().await.unwrap(), b'e');
        }
    }

    #[tokio::test]
    async fn a_socket_is_silent_until_something_came_or_it_was_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for (ours, mut theirs) in [tcp().await, (ours.into(), theirs.into())] {
            assert!(ours.is_silent() && ours.seems_silent());
            theirs.write_all(b"x").await.unwrap();
            assert!(!ours.is_silent());
            ours.readable_once().await;
            assert!(!ours.seems_silent());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        for (ours, theirs) in [tcp().await, (ours.into(), theirs.into())] {
            drop(theirs);
            assert!(!ours.is_silent());
        }
    }

    impl Socket {
        async fn readable_once(&self) {
            match self {
                Self::Tcp(it) => it.readable().await.unwrap(),
                Self::Unix(it) => it.readable().await.unwrap(),
                Self::Tls(it) => it.get_ref().0.socket.readable().await.unwrap(),
            }
        }

        async fn writable_once(&self) {
            match self {
                Self::Tcp(it) => it.writable().await.unwrap(),
                Self::Unix(it) => it.writable().await.unwrap(),
                Self::Tls(it) => it.get_ref().0.socket.writable().await.unwrap(),
            }
        }
    }
}
