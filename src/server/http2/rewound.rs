//! A socket with what was read from it already put back in front, which counts what it moves.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads first what it was made with, then the socket; adds the bytes of reads and writes to `moved`.
#[derive(Debug)]
pub(in crate::server) struct Rewound<S> {
    read: Bytes,
    socket: S,
    moved: Arc<AtomicU64>,
}

impl<S> Rewound<S> {
    pub(in crate::server) fn new(read: Bytes, socket: S) -> Self {
        Self { read, socket, moved: Arc::default() }
    }

    pub(super) fn moved(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moved)
    }

    fn count(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            let before = into.filled().len();
            let read = Pin::new(&mut self.socket).poll_read(cx, into);
            self.count(into.filled().len() - before);
            return read;
        }
        let bytes = self.read.len().min(into.remaining());
        into.put_slice(self.read.get(..bytes).unwrap_or_default());
        self.read.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.count(bytes);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(bytes)) = written {
            self.count(bytes);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_read_comes_first_and_once_whatever_is_asked_for() {
        for at_once in 1..9 {
            let (ours, mut theirs) = tokio::io::duplex(64);
            theirs.write_all(b"socket").await.unwrap();
            let mut rewound = Rewound::new(Bytes::from_static(b"read "), ours);
            let mut came: Vec<u8> = Vec::new();
            while came.len() < 11 {
                let mut bytes = vec![0; at_once];
                let read = rewound.read(&mut bytes).await.unwrap();
                came.extend(&bytes[..read]);
            }
            assert_eq!(came, b"read socket");
            rewound.write_all(b"answer").await.unwrap();
            let mut answer = [0; 6];
            theirs.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"answer");
            let moved = rewound.moved().load(Ordering::Relaxed);
            assert_eq!(moved, 12, "what was read before was not moved again");
        }
    }
}
