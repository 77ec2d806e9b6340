//! Takes the event out of a stream of OpenAI's for which the caller had not asked.

use std::ops::Range;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

use super::events::{Events, What};
use super::frame::Frame;
use super::scan::Scanner;

/// So much of an event is held back at most, until it is known what it is; then it passes.
const MOST_HELD: usize = 4096;

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));

/// Removes the events that have a usage and no choices; all else passes byte for byte, at once, but
/// for the head of an event of which that is not known yet.
#[derive(Debug, Default)]
pub struct Sieve {
    events: Events,
    scanner: Scanner,
    frame: Frame,
    verdict: Verdict,
    /// The head of the event under way, where it began in an earlier piece.
    held: BytesMut,
    /// The event before was taken out, and with it goes all of its line break.
    removed: bool,
}

/// What is known of the event under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Verdict {
    /// Not a byte of it has come.
    #[default]
    Absent,
    Open,
    Kept,
    Removed,
}

impl Sieve {
    /// The next byte begins an event.
    pub(super) fn is_between(&self) -> bool {
        self.verdict == Verdict::Absent && !self.events.is_after_return()
    }

    /// What of this piece, and of what was held back, goes on; it may be nothing.
    #[must_use]
    pub fn pass(&mut self, piece: Bytes) -> Bytes {
        if self.is_between() && piece.ends_with(b"\n\n") && USAGE.find(&piece).is_none() {
            return piece;
        }
        let mut kept = Kept { head: BytesMut::new(), range: 0..0, piece };
        let piece = kept.piece.clone();
        let (mut begin, mut at) = (0, 0);
        while let Some(rest) = piece.get(at..).filter(|rest| !rest.is_empty()) {
            let is_half = self.verdict == Verdict::Absent && self.events.is_after_return();
            let (used, what) = self.events.next(rest, self.scanner.is_within());
            at += used;
            if is_half && rest.starts_with(b"\n") {
                if !self.removed {
                    kept.push(begin..at);
                }
                begin = at;
                continue;
            }
            let is_over = what == What::EventOver;
            self.judge(&what);
            if self.verdict == Verdict::Kept && !self.held.is_empty() {
                kept.head = std::mem::take(&mut self.held);
            }
            if is_over {
                self.removed = self.verdict == Verdict::Removed;
                match self.removed {
                    true => self.held.clear(),
                    false => kept.push(begin..at),
                }
                begin = at;
                self.verdict = Verdict::Absent;
                self.scanner.reset();
                self.frame = Frame::default();
            }
        }
        self.leave(&mut kept, begin..piece.len());
        kept.finish()
    }

    /// What is still held back where the stream ends.
    #[must_use]
    pub fn finish(&mut self) -> Bytes {
        self.verdict = Verdict::Absent;
        std::mem::take(&mut self.held).freeze()
    }

    fn judge(&mut self, what: &What<'_>) {
        if matches!(self.verdict, Verdict::Kept | Verdict::Removed) {
            return;
        }
        self.verdict = Verdict::Open;
        match what {
            What::Other => {}
            What::Done | What::EventOver => self.verdict = Verdict::Kept,
            What::Data(data) => {
                self.scanner.read(data, &mut self.frame);
                self.verdict = match self.frame.is_usage_alone {
                    Some(true) => Verdict::Removed,
                    Some(false) => Verdict::Kept,
                    None if self.scanner.is_closed() => Verdict::Kept,
                    None => Verdict::Open,
                };
            }
        }
    }

    /// The end of a piece, within an event.
    fn leave(&mut self, kept: &mut Kept, range: Range<usize>) {
        match self.verdict {
            Verdict::Absent => {}
            Verdict::Removed => self.held.clear(),
            Verdict::Kept => kept.push(range),
            Verdict::Open if self.held.len() + range.len() > MOST_HELD => {
                self.verdict = Verdict::Kept;
                if !self.held.is_empty() {
                    kept.head = std::mem::take(&mut self.held);
                }
                kept.push(range);
            }
            Verdict::Open => {
                self.held.extend_from_slice(kept.piece.get(range).unwrap_or_default());
            }
        }
    }
}

/// What goes on of a piece; nothing is copied as long as it stands together.
struct Kept {
    head: BytesMut,
    /// Behind the head.
    range: Range<usize>,
    piece: Bytes,
}

impl Kept {
    fn push(&mut self, range: Range<usize>) {
        if self.range.is_empty() {
            self.range = range;
        } else if self.range.end == range.start {
            self.range.end = range.end;
        } else {
            self.head.extend_from_slice(self.piece.get(self.range.clone()).unwrap_or_default());
            self.range = range;
        }
    }

    fn finish(mut self) -> Bytes {
        if self.head.is_empty() {
            return self.piece.slice(self.range);
        }
        self.head.extend_from_slice(self.piece.get(self.range).unwrap_or_default());
        self.head.freeze()
    }
}

#[cfg(test)]
mod tests;
