//! A deadline that moves with every byte: the timer is set again only when it comes too early.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer for deadlines that are moved often and met seldom. Moving one costs nothing.
#[derive(Debug, Default)]
pub struct Due(Option<Pin<Box<Sleep>>>);

impl Due {
    /// Whether the deadline has passed; otherwise the task is woken when it has.
    pub fn has_passed(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return true;
            }
            sleep.as_mut().reset(deadline);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    async fn passed(due: &mut Due, deadline: Instant) {
        poll_fn(|cx| match due.has_passed(deadline, cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    #[tokio::test]
    async fn a_deadline_may_move_both_ways() {
        let mut due = Due::default();
        let start = Instant::now();
        for seconds in [100, 30, 50] {
            let deadline = start + Duration::from_secs(seconds);
            let looked = poll_fn(|cx| Poll::Ready(due.has_passed(deadline, cx))).await;
            assert!(!looked, "{seconds}");
        }
        let soon = start + Duration::from_millis(20);
        passed(&mut due, soon).await;
        assert!(Instant::now() >= soon);
        passed(&mut due, start).await;
        let later = Instant::now() + Duration::from_millis(20);
        passed(&mut due, later).await;
        assert!(Instant::now() >= later);
    }
}
