//! Knows the next frame by the last: in a stream of tokens they differ in the token alone.

use super::frame::{Filling, Frame, Hole, MOST_HOLES};

/// What stands around the holes of a usual frame.
const ROOM: usize = 384;
/// Most tokens are that short.
const SHORT: usize = 16;

/// A line without its holes.
#[derive(Debug)]
pub(super) struct Template {
    bytes: [u8; ROOM],
    length: u16,
    /// Where in `bytes` something is left out, and what.
    cuts: [(u16, Filling); MOST_HOLES],
    cut_count: u8,
}

impl Default for Template {
    fn default() -> Self {
        let cuts = [(0, Filling::Digits); MOST_HOLES];
        Self { bytes: [0; ROOM], length: 0, cuts, cut_count: 0 }
    }
}

impl Template {
    /// The length of the line that these bytes begin with, if it is like the last one and says
    /// nothing but another text.
    pub(super) fn matches(&self, bytes: &[u8]) -> Option<usize> {
        let cuts = self.cuts.get(..usize::from(self.cut_count)).filter(|cuts| !cuts.is_empty())?;
        let (mut from, mut rest) = (0, bytes);
        for (cut, filling) in cuts {
            let cut = usize::from(*cut);
            rest = rest.strip_prefix(self.bytes.get(from..cut)?)?;
            rest = rest.get(filling.length(rest)?..)?;
            from = cut;
        }
        rest = rest.strip_prefix(self.bytes.get(from..usize::from(self.length))?)?;
        Some(bytes.len() - rest.len())
    }

    /// Learns a whole line; the frame that it holds begins `shift` bytes behind its beginning.
    pub(super) fn learn(&mut self, line: &[u8], shift: usize, frame: &Frame) {
        let Some(holes) = frame.holes() else { return };
        self.cut_count = 0;
        self.length = 0;
        if self.fill(line, shift, holes).is_none() {
            self.cut_count = 0;
        }
    }

    fn fill(&mut self, line: &[u8], shift: usize, holes: &[Hole]) -> Option<()> {
        let mut from = 0;
        for (hole, cut) in holes.iter().zip(&mut self.cuts) {
            let literal = line.get(from..shift + hole.begin)?;
            let length = usize::from(self.length);
            let end = length + literal.len();
            self.bytes.get_mut(length..end)?.copy_from_slice(literal);
            self.length = u16::try_from(end).ok()?;
            *cut = (self.length, hole.filling);
            from = shift + hole.end;
        }
        let literal = line.get(from..)?;
        let length = usize::from(self.length);
        let end = length + literal.len();
        self.bytes.get_mut(length..end)?.copy_from_slice(literal);
        self.length = u16::try_from(end).ok()?;
        self.cut_count = u8::try_from(holes.len()).ok()?;
        Some(())
    }
}

impl Filling {
    /// How much of these bytes fills a hole.
    fn length(self, bytes: &[u8]) -> Option<usize> {
        let length = match self {
            Self::Text => text(bytes)?,
            Self::Stamp => {
                let end = memchr::memchr2(b'"', b'\\', bytes)?;
                return (bytes.get(end) == Some(&b'"')).then_some(end);
            }
            Self::Digits => digits(bytes)?,
        };
        (length > 0).then_some(length)
    }
}

/// Up to the first byte that is no digit. A moment is ten of them, so that eight are looked at at once.
fn digits(bytes: &[u8]) -> Option<usize> {
    const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    const DIGITS: u64 = 0x3030_3030_3030_3030;
    const PAST_NINE: u64 = 0x0606_0606_0606_0606;
    let eight = bytes.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
    let are_digits = eight & HIGH == DIGITS && eight.wrapping_add(PAST_NINE) & HIGH == DIGITS;
    let begin = if are_digits { 8 } else { 0 };
    let end = bytes.get(begin..)?.iter().position(|b| !b.is_ascii_digit())?;
    Some(begin + end)
}

/// Up to the mark that ends a string. Most are shorter than what it takes to call for help.
fn text(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..SHORT).unwrap_or(bytes);
    let short = head.iter().position(|b| matches!(b, b'"' | b'\\'));
    if let Some(end) = short
        && bytes.get(end) == Some(&b'"')
    {
        return Some(end);
    }
    let mut at = short.unwrap_or(head.len());
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        match bytes.get(at) {
            Some(b'"') => return Some(at),
            _ => at += 2,
        }
    }
}
