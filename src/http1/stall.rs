//! A caller who takes nothing of its answer: waited for, but not for ever.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::{Due, Outbox, Wire};

/// Sends, and gives up when no byte moves for `patience`. While bytes move it costs nothing.
#[derive(Debug)]
pub struct Stall {
    patience: Duration,
    /// Since when sending has come no further than this.
    since: Option<(Instant, (usize, u64))>,
}

impl Stall {
    #[must_use]
    pub fn after(patience: Duration) -> Self {
        Self { patience, since: None }
    }

    /// Sends everything.
    ///
    /// # Errors
    /// What the socket says, or that the caller took nothing for too long; then it is gone.
    pub fn poll_flush(
        &mut self,
        wire: &Wire,
        outbox: &mut Outbox,
        due: &mut Due,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while wire.poll_flush(outbox, cx)?.is_pending() {
            let progress = wire.progress(outbox);
            let since = match self.since {
                Some((since, before)) if before == progress => since,
                Some(_) | None => Instant::now(),
            };
            self.since = Some((since, progress));
            if !due.has_passed(since + self.patience, cx) {
                return Poll::Pending;
            }
            if !wire.nudge(outbox) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        self.since = None;
        Poll::Ready(Ok(()))
    }
}
