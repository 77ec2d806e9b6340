//! The end of an answer, which waits until the row of its request is written.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Timeout, timeout};

use crate::record::Record;
use crate::store::Written;

/// The longest that an answer's last bytes wait for its row.
const PATIENCE: Duration = Duration::from_millis(20);

/// Goes when the row is written, or that takes too long.
#[derive(Debug)]
pub(super) struct Held {
    data: Bytes,
    written: Pin<Box<Timeout<Written>>>,
}

impl Held {
    pub(super) fn new(data: Bytes, written: Written) -> Self {
        Self { data, written: Box::pin(timeout(PATIENCE, written)) }
    }

    pub(super) fn poll(&mut self, record: &Record, cx: &mut Context<'_>) -> Poll<Bytes> {
        // Late or not, the caller waits no longer.
        if !matches!(ready!(self.written.as_mut().poll(cx)), Ok(true)) {
            record.count_late();
        }
        Poll::Ready(std::mem::take(&mut self.data))
    }

    /// Waits for it.
    pub(super) async fn ends(mut self, record: &mut Record) {
        poll_fn(|cx| self.poll(record, cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;
    use crate::config::LogFormat;
    use crate::http1::Arrival;
    use crate::record::{Log, RequestIds};

    const BYTES: Bytes = Bytes::from_static(b"the last");

    fn record() -> Record {
        let log = Log::start(std::io::sink(), LogFormat::Json).unwrap();
        Record::open(log, RequestIds::new().unwrap().draw(), Arc::new(Arrival::default()))
    }

    fn poll(held: &mut Held, record: &Record) -> Poll<Bytes> {
        held.poll(record, &mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_bytes_go_with_the_row_or_when_that_takes_too_long() {
        let record = record();
        let (end, written) = Written::pending();
        let mut held = Held::new(BYTES, written);
        assert_eq!(poll(&mut held, &record), Poll::Pending);
        end(true);
        assert_eq!(poll(&mut held, &record), Poll::Ready(BYTES));

        let (_end, written) = Written::pending();
        let mut held = Held::new(BYTES, written);
        assert_eq!(poll(&mut held, &record), Poll::Pending);
        advance(PATIENCE - Duration::from_millis(1)).await;
        assert_eq!(poll(&mut held, &record), Poll::Pending);
        advance(Duration::from_millis(2)).await;
        assert_eq!(poll(&mut held, &record), Poll::Ready(BYTES));

        // What cannot be written now is not waited for.
        let (end, written) = Written::pending();
        end(false);
        assert_eq!(poll(&mut Held::new(BYTES, written), &record), Poll::Ready(BYTES));
    }
}
