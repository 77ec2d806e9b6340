//! What the metrics count of a line.

use super::Line;
use crate::metrics::Ended;

impl Line {
    pub(super) fn counted(&self) -> Ended {
        Ended {
            operation: self.operation,
            status: self.status,
            outcome: self.outcome,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            queue: self.queue,
            first_byte: self.first_byte,
            total: self.total,
        }
    }
}
