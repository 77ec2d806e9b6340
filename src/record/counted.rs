//! What the metrics count of a line.

use super::{Line, Outcome};
use crate::metrics::{Ended, Ending};

impl Line {
    pub(super) fn counted(&self) -> Ended {
        Ended {
            operation: self.operation,
            status: self.status,
            ending: match self.outcome {
                Outcome::Done => Ending::Done,
                Outcome::ClientGone => Ending::ClientGone,
                Outcome::BackendFailed => Ending::BackendFailed,
                Outcome::BackendTimeout => Ending::BackendTimeout,
                Outcome::Drained => Ending::Drained,
                Outcome::Stopped => Ending::Stopped,
                Outcome::Refused(code) => Ending::Refused(code),
            },
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            queue: self.queue,
            first_byte: self.first_byte,
            total: self.total,
        }
    }
}
