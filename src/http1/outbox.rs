//! What is on its way out over a socket: small things gathered, large things not copied.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// A piece up to this size costs less to copy than to hand to the system beside others.
const SMALL: usize = 4 * 1024;
/// Small pieces are gathered up to this size before they have to go.
const FULL: usize = 16 * 1024;
/// Memory that is kept while nothing is on its way.
const KEPT: usize = 1024;

/// Pieces in the order in which they go: gathered text, then at most one large piece with the few
/// bytes that end it.
#[derive(Debug, Default)]
pub struct Outbox {
    text: Vec<u8>,
    large: Bytes,
    behind: &'static [u8],
    sent: usize,
}

impl Outbox {
    /// With room for `bytes` of text.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self::from(Vec::with_capacity(bytes))
    }

    /// Text to append to; nothing may be appended while a large piece waits behind it.
    pub fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    pub fn push(&mut self, data: Bytes) {
        match data.len() <= SMALL {
            true => self.text.extend_from_slice(&data),
            false => self.large = data,
        }
    }

    /// One chunk of a chunked body (RFC 9112, 7.1); nothing for no data, which would end the body.
    pub fn push_chunk(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        push_hex(&mut self.text, data.len());
        self.text.extend_from_slice(b"\r\n");
        self.push(data);
        self.push_behind(b"\r\n");
    }

    /// The end of a chunked body.
    pub fn push_last_chunk(&mut self) {
        match self.large.is_empty() {
            true => self.text.extend_from_slice(b"0\r\n\r\n"),
            false => self.behind = b"\r\n0\r\n\r\n",
        }
    }

    fn push_behind(&mut self, end: &'static [u8]) {
        match self.large.is_empty() {
            true => self.text.extend_from_slice(end),
            false => self.behind = end,
        }
    }

    /// Whether what is in it has to go before more is put in.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.large.is_empty() || !self.behind.is_empty() || self.text.len() >= FULL
    }

    /// Nothing has gone of what is in it, and something is.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.sent == 0 && !self.text.is_empty()
    }

    /// Bytes that have not gone.
    #[must_use]
    pub fn left(&self) -> usize {
        self.text.len() - self.sent + self.large.len() + self.behind.len()
    }

    /// Offers the next bytes to `send`; whether it took any.
    pub fn offer(&mut self, send: impl FnOnce(&[u8]) -> io::Result<usize>) -> bool {
        let text = self.text.get(self.sent..).unwrap_or_default();
        let parts = [text, &self.large, self.behind];
        let Some(next) = parts.into_iter().find(|part| !part.is_empty()) else { return false };
        let taken = send(next).unwrap_or(0);
        self.went(taken);
        taken > 0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.large.is_empty() && self.behind.is_empty()
    }

    /// Sends everything.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_flush(
        &mut self,
        mut socket: impl AsyncWrite + Unpin,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let text = self.text.get(self.sent..).unwrap_or_default();
            let written = if self.large.is_empty() && self.behind.is_empty() {
                ready!(Pin::new(&mut socket).poll_write(cx, text))?
            } else {
                let (large, behind) = (IoSlice::new(&self.large), IoSlice::new(self.behind));
                let slices = [IoSlice::new(text), large, behind];
                ready!(Pin::new(&mut socket).poll_write_vectored(cx, &slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.went(written);
        }
        // Over TLS a piece may still be on its way when it has been taken.
        Pin::new(&mut socket).poll_flush(cx)
    }

    fn went(&mut self, bytes: usize) {
        let of_text = bytes.min(self.text.len() - self.sent);
        self.sent += of_text;
        if self.sent == self.text.len() {
            self.sent = 0;
            self.text.clear();
            self.text.shrink_to(KEPT);
        }
        let rest = bytes - of_text;
        let of_large = rest.min(self.large.len());
        self.large.advance(of_large);
        if self.large.is_empty() {
            self.large = Bytes::new();
        }
        self.behind = self.behind.get(rest - of_large..).unwrap_or_default();
    }
}

impl From<Vec<u8>> for Outbox {
    fn from(text: Vec<u8>) -> Self {
        Self { text, ..Self::default() }
    }
}

fn push_hex(text: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let nibble = number >> (4 * digit) & 0xf;
        text.push(b"0123456789abcdef".get(nibble).copied().unwrap_or(b'0'));
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn a_number_is_written_in_hex() {
        for number in [0, 1, 15, 16, 255, 4096, 65535, 1 << 20, usize::MAX] {
            let mut text = Vec::new();
            push_hex(&mut text, number);
            assert_eq!(text, format!("{number:x}").into_bytes());
        }
    }

    #[tokio::test]
    async fn memory_is_given_back() {
        let mut outbox = Outbox::default();
        outbox.push(vec![1; SMALL].into());
        poll_fn(|cx| outbox.poll_flush(tokio::io::sink(), cx)).await.unwrap();
        assert!(outbox.is_empty() && outbox.text.capacity() <= KEPT);
    }

    async fn drained(outbox: &mut Outbox) -> Vec<u8> {
        let mut got = Vec::new();
        poll_fn(|cx| outbox.poll_flush(&mut got, cx)).await.unwrap();
        got
    }

    #[tokio::test]
    async fn a_chunk_is_framed_whatever_its_size() {
        for size in [1, SMALL, SMALL + 1, 100_000] {
            let (mut outbox, data) = (Outbox::default(), vec![b'x'; size]);
            outbox.push_chunk(Bytes::new());
            assert!(outbox.is_empty());
            outbox.push_chunk(data.clone().into());
            let chunk = [format!("{size:x}\r\n").as_bytes(), &data, b"\r\n"].concat();
            assert_eq!(drained(&mut outbox).await, chunk, "{size}");
            outbox.push_chunk(data.into());
            outbox.push_last_chunk();
            let whole = [&chunk, &b"0\r\n\r\n"[..]].concat();
            assert_eq!(drained(&mut outbox).await, whole, "{size}");
        }
    }

    proptest! {
        #[test]
        fn everything_goes_in_order_however_little_goes_at_once(
            pieces in prop::collection::vec(1usize..9_000, 1..6), room in 1usize..5_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (ours, mut theirs) = tokio::io::duplex(room);
                let wanted: Vec<u8> = pieces.iter().flat_map(|n| vec![*n as u8; *n]).collect();
                let sending = async move {
                    let (mut ours, mut outbox) = (ours, Outbox::default());
                    for piece in pieces {
                        outbox.push(vec![piece as u8; piece].into());
                        if outbox.is_full() {
                            poll_fn(|cx| outbox.poll_flush(&mut ours, cx)).await.unwrap();
                        }
                    }
                    poll_fn(|cx| outbox.poll_flush(&mut ours, cx)).await.unwrap();
                };
                let mut got = Vec::new();
                let (_, read) = tokio::join!(sending, theirs.read_to_end(&mut got));
                read.unwrap();
                assert_eq!(got, wanted);
            });
        }
    }
}
