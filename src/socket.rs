//! One socket, of whatever kind: what reads and writes need not know which.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connection to a caller or to a backend.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Hands a call on to the kind of socket that it is.
macro_rules! each {
    ($socket:expr, $it:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($it) => $call,
            Socket::Unix($it) => $call,
        }
    };
}

impl Socket {
    /// Small pieces go at once.
    ///
    /// # Errors
    /// What the system says; a socket that is gone already shows at the first read, too.
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Writes what can be written without waiting, and tells how much that was.
    ///
    /// # Errors
    /// What the socket says; `WouldBlock` where there is no room.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, it => it.try_write(bytes))
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
        }
    }

    /// Nothing has come that was not read, and the other side has not closed. Asks the kernel, not the
    /// runtime, which may not have heard yet.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        would_block(&self.peek())
    }

    /// The same as far as the runtime has heard, which costs no call to the kernel.
    #[must_use]
    pub fn seems_silent(&self) -> bool {
        would_block(&each!(self, it => it.try_io(Interest::READABLE, || self.peek())))
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
        each!(self, it => it.as_fd())
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
        each!(self.get_mut(), it => Pin::new(it).poll_write(cx, bytes))
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), it => Pin::new(it).poll_write_vectored(cx, pieces))
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), it => Pin::new(it).poll_flush(cx))
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
            each!(&ours, it => it.readable().await).unwrap();
            assert!(!ours.seems_silent());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        for (ours, theirs) in [tcp().await, (ours.into(), theirs.into())] {
            drop(theirs);
            assert!(!ours.is_silent());
        }
    }

    impl Socket {
        async fn writable_once(&self) {
            each!(self, it => it.writable().await).unwrap();
        }
    }
}
