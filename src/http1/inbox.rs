//! Bytes that came over a socket and were not taken yet.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// Room for one read; what is larger comes in several.
const ROOM: usize = 128 * 1024;
/// A read of this size is worth more than the copy that landing costs.
const BULK: usize = 8 * 1024;

thread_local! {
    /// What is read lands here first: a connection that waits for bytes holds no memory for them.
    static LANDING: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into());
}

/// Holds memory only while it holds bytes.
#[derive(Debug, Default)]
pub struct Inbox {
    held: BytesMut,
    /// The last read was large, so the next one goes straight to where it is kept.
    bulk: bool,
}

impl Inbox {
    /// Reads once; `Ok(0)` is the end.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_fill(
        &mut self,
        mut socket: impl AsyncRead + Unpin,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.bulk {
            self.held.reserve(ROOM);
            let read = pin!(socket.read_buf(&mut self.held)).poll(cx);
            if self.held.is_empty() {
                self.held = BytesMut::new();
            }
            let read = ready!(read)?;
            self.bulk = read >= BULK;
            return Poll::Ready(Ok(read));
        }
        LANDING.with_borrow_mut(|landing| {
            let mut landing = ReadBuf::new(landing);
            ready!(Pin::new(&mut socket).poll_read(cx, &mut landing))?;
            let came = landing.filled();
            self.held.extend_from_slice(came);
            self.bulk = came.len() >= BULK;
            Poll::Ready(Ok(came.len()))
        })
    }

    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Takes the first `bytes`, or all if there are fewer.
    pub fn take(&mut self, bytes: usize) -> Bytes {
        if bytes >= self.held.len() {
            return std::mem::take(&mut self.held).freeze();
        }
        self.held.split_to(bytes).freeze()
    }

    pub fn skip(&mut self, bytes: usize) {
        self.held.advance(bytes.min(self.held.len()));
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

impl From<&[u8]> for Inbox {
    fn from(bytes: &[u8]) -> Self {
        Self { held: bytes.into(), bulk: false }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn what_came_is_taken_in_order_and_then_nothing_is_held() {
        let mut inbox = Inbox::default();
        let mut socket = io::Cursor::new(b"abcdef");
        assert_eq!(poll_fn(|cx| inbox.poll_fill(&mut socket, cx)).await.unwrap(), 6);
        assert_eq!((inbox.take(2), inbox.held()), (Bytes::from("ab"), &b"cdef"[..]));
        inbox.skip(1);
        assert_eq!(inbox.take(99), "def");
        assert_eq!((inbox.is_empty(), inbox.held.capacity()), (true, 0));
        assert_eq!(poll_fn(|cx| inbox.poll_fill(&mut socket, cx)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn much_comes_as_it_was_sent() {
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut socket = io::Cursor::new(&sent);
        let (mut inbox, mut got) = (Inbox::default(), Vec::new());
        while poll_fn(|cx| inbox.poll_fill(&mut socket, cx)).await.unwrap() > 0 {
            got.extend_from_slice(&inbox.take(usize::MAX));
        }
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn whoever_waits_for_more_of_much_holds_nothing() {
        let (mut ours, mut theirs) = tokio::io::duplex(ROOM);
        tokio::io::AsyncWriteExt::write_all(&mut theirs, &[1; BULK]).await.unwrap();
        let mut inbox = Inbox::default();
        assert_eq!(poll_fn(|cx| inbox.poll_fill(&mut ours, cx)).await.unwrap(), BULK);
        assert!(inbox.bulk && inbox.take(BULK).len() == BULK);
        let waits = poll_fn(|cx| Poll::Ready(inbox.poll_fill(&mut ours, cx).is_pending())).await;
        assert!(waits && inbox.held.capacity() == 0);
    }
}
