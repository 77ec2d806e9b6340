//! One request on its way, as whoever looks after the gate sees it and may end it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

use crate::auth::Name;

/// See the top of the file; shared by the request and by who keeps lists of requests.
#[derive(Debug)]
pub struct Course {
    /// Names it in the log.
    pub id: [u8; 16],
    pub who: Name,
    pub operation: &'static str,
    end: AtomicU8,
    /// Of the answer so far.
    tokens: AtomicU64,
    /// The one task that works on it.
    task: AtomicWaker,
}

/// Why a request has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its key was taken away.
    Revoked,
    /// Somebody who looks after the gate said so.
    Stopped,
}

const REVOKED: u8 = 1;
const STOPPED: u8 = 2;

impl Course {
    #[must_use]
    pub fn new(id: [u8; 16], who: Name, operation: &'static str) -> Self {
        Self {
            id,
            who,
            operation,
            end: AtomicU8::new(0),
            tokens: AtomicU64::new(0),
            task: AtomicWaker::new(),
        }
    }

    /// Ends the request at its next step, which is at once; the first word counts.
    pub fn end(&self, why: End) {
        let why = match why {
            End::Revoked => REVOKED,
            End::Stopped => STOPPED,
        };
        // Whoever was first has woken the task.
        let _ = self.end.compare_exchange(0, why, Ordering::AcqRel, Ordering::Acquire);
        self.task.wake();
    }

    /// Whether it has to end; if not, its task will be woken when it has.
    pub fn ended(&self, cx: &Context<'_>) -> Option<End> {
        self.task.register(cx.waker());
        match self.end.load(Ordering::Acquire) {
            REVOKED => Some(End::Revoked),
            STOPPED => Some(End::Stopped),
            _ => None,
        }
    }

    /// Tokens of the answer so far; only its own task counts.
    pub fn counts(&self, tokens: u64) {
        self.tokens.store(tokens, Ordering::Relaxed);
    }

    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn the_first_reason_to_end_stays() {
        let course = Course::new([b'0'; 16], "anna".into(), "chat");
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(course.ended(&cx), None);
        course.end(End::Stopped);
        course.end(End::Revoked);
        assert_eq!(course.ended(&cx), Some(End::Stopped));
    }
}
