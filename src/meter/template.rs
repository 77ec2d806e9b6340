//! Knows the next frame by the last: in a stream of tokens they differ in the token alone, and in
//! the digits of when it came.

use super::frame::{Filling, Frame, Hole, MOST_HOLES};

/// A usual frame without its text.
const ROOM: usize = BLOCKS * BLOCK;
/// So many bytes are compared at once.
const BLOCK: usize = 32;
const BLOCKS: usize = 12;

/// Where the processor reads them best.
#[derive(Debug, Clone, Copy)]
#[repr(align(16))]
struct Blocks([[u8; BLOCK]; BLOCKS]);

/// A line with the end that it usually has, without the text of the model.
#[derive(Debug)]
pub(super) struct Template {
    /// What stands before the text, from the first block; what stands behind it, up to the end of
    /// the last; and left of that once more the last bytes before the text, which end no block.
    same: Blocks,
    /// The bits of `same` that are the same in the next; of a digit those that make it one.
    mask: Blocks,
    /// Bytes before the text.
    head: u16,
    /// Bytes behind it, with the end of the line.
    tail: u16,
    head_blocks: u8,
    tail_blocks: u8,
    line_end: u8,
    /// None where nothing has been learnt.
    cut_count: u8,
    cuts: [Hole; MOST_HOLES],
}

impl Default for Template {
    fn default() -> Self {
        Self {
            same: Blocks([[0; BLOCK]; BLOCKS]),
            mask: Blocks([[0; BLOCK]; BLOCKS]),
            head: 0,
            tail: 0,
            head_blocks: 0,
            tail_blocks: 0,
            line_end: 0,
            cut_count: 0,
            cuts: [Hole::NONE; MOST_HOLES],
        }
    }
}

impl Template {
    /// A line has been learnt.
    pub(super) fn is_some(&self) -> bool {
        self.cut_count > 0
    }

    /// Whether these bytes are one whole line like the last one and its end, with another text and
    /// other digits of the same number.
    #[inline]
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        self.fits(bytes).is_some()
    }

    #[inline]
    fn fits(&self, bytes: &[u8]) -> Option<()> {
        let (head, tail) = (usize::from(self.head_blocks), usize::from(self.tail_blocks));
        let (begin, end) = (usize::from(self.head), bytes.len().checked_sub(self.tail.into())?);
        let before = bytes.get(..begin)?;
        let (blocks, last) = (before.as_chunks().0.get(..head)?, before.last_chunk()?);
        let behind = bytes.get(bytes.len().checked_sub(tail * BLOCK)?..)?.as_chunks().0;
        let (same, mask) = (self.same.0.get(..head)?, self.mask.0.get(..head)?);
        let left = (BLOCKS - 1).checked_sub(tail)?;
        let (last_same, tail_same) = self.same.0.get(left..)?.split_first()?;
        let (last_mask, tail_mask) = self.mask.0.get(left..)?.split_first()?;
        let mut other = compare([0; BLOCK], last, last_same, last_mask);
        for ((it, same), mask) in blocks.iter().zip(same).zip(mask) {
            other = compare(other, it, same, mask);
        }
        for ((it, same), mask) in behind.iter().zip(tail_same).zip(tail_mask) {
            other = compare(other, it, same, mask);
        }
        if other != [0; BLOCK] {
            return None;
        }
        // Most tokens are short, and what stands behind begins with the mark that ends them.
        let length = end.checked_sub(begin)?;
        if let (1..=8, Some(eight)) = (length, bytes.get(begin..)?.first_chunk())
            && marks(u64::from_le_bytes(*eight)) << (64 - 8 * length) == 0
        {
            return Some(());
        }
        (length > 0 && text(bytes, begin)? == end).then_some(())
    }

    /// The length of the line that these bytes begin with, if it is like the last one and says
    /// nothing but another text.
    pub(super) fn matches(&mut self, bytes: &[u8]) -> Option<usize> {
        let cuts = self.cuts.get(..usize::from(self.cut_count)).filter(|cuts| !cuts.is_empty())?;
        let mut holes = [Hole::NONE; MOST_HOLES];
        let (mut from, mut at, mut left_out) = (0, 0, 0);
        for (cut, hole) in cuts.iter().zip(&mut holes) {
            let same = self.part(from, cut.begin)?;
            let begin = at + same.len();
            let end = cut.filling.end(bytes, begin).filter(|end| *end > begin)?;
            if bytes.get(at..begin)? != same {
                return None;
            }
            *hole = Hole { begin, end, filling: cut.filling };
            if cut.filling == Filling::Text {
                left_out = end - begin;
            }
            (from, at) = (cut.end, end);
        }
        let length = usize::from(self.head + self.tail) - usize::from(self.line_end);
        let same = self.part(from, length)?;
        let end = at + same.len();
        if bytes.get(at..end)? != same {
            return None;
        }
        // Of a fraction that ends in zeros they are left out: most are as long as the longest.
        if end - left_out > length {
            self.relearn(bytes.get(..end)?, holes);
        }
        Some(end)
    }

    /// Learns a whole line; the frame that it holds begins `shift` bytes behind its beginning.
    pub(super) fn learn(&mut self, line: &[u8], shift: usize, frame: &Frame, line_end: &[u8]) {
        let Some(holes) = frame.holes() else { return };
        let mut shifted = [Hole::NONE; MOST_HOLES];
        for (hole, to) in holes.iter().zip(&mut shifted) {
            *to = Hole { begin: shift + hole.begin, end: shift + hole.end, ..*hole };
        }
        let holes = shifted.get(..holes.len()).unwrap_or_default();
        self.fill(line, holes, line_end);
    }

    fn relearn(&mut self, line: &[u8], holes: [Hole; MOST_HOLES]) {
        let all = self.same;
        let line_end = all.0.as_flattened().get(ROOM - usize::from(self.line_end)..);
        let holes = holes.get(..usize::from(self.cut_count)).unwrap_or_default();
        self.fill(line, holes, line_end.unwrap_or_default());
    }

    fn fill(&mut self, line: &[u8], holes: &[Hole], line_end: &[u8]) {
        self.cut_count = 0;
        if self.take(line, holes, line_end).is_some() {
            self.cut_count = u8::try_from(holes.len()).unwrap_or(0);
        }
    }

    fn take(&mut self, line: &[u8], holes: &[Hole], line_end: &[u8]) -> Option<()> {
        let text = holes.iter().find(|hole| hole.filling == Filling::Text)?;
        let (before, behind) = (line.get(..text.begin)?, line.get(text.end..)?);
        let tail = behind.len() + line_end.len();
        let (head_blocks, tail_blocks) = (before.len() / BLOCK, tail.div_ceil(BLOCK));
        // One more that is not whole, and the last bytes once more.
        if head_blocks + tail_blocks + 2 > BLOCKS {
            return None;
        }
        self.head = u16::try_from(before.len()).ok()?;
        self.tail = u16::try_from(tail).ok()?;
        self.head_blocks = u8::try_from(head_blocks).ok()?;
        self.tail_blocks = u8::try_from(tail_blocks).ok()?;
        self.line_end = u8::try_from(line_end.len()).ok()?;
        self.mask = Blocks([[0; BLOCK]; BLOCKS]);
        let (same, mask) = (self.same.0.as_flattened_mut(), self.mask.0.as_flattened_mut());
        same.get_mut(..before.len())?.copy_from_slice(before);
        mask.get_mut(..before.len())?.fill(0xff);
        mask.get_mut(ROOM - tail..)?.fill(0xff);
        let (last, end) = same.get_mut(ROOM - tail..)?.split_at_mut_checked(behind.len())?;
        last.copy_from_slice(behind);
        end.copy_from_slice(line_end);
        for (hole, cut) in holes.iter().zip(&mut self.cuts) {
            let is_behind = hole.begin >= text.end;
            let left_out = if is_behind { text.end - text.begin } else { 0 };
            *cut = Hole { begin: hole.begin - left_out, end: hole.end - left_out, ..*hole };
            if hole == text {
                cut.end = cut.begin;
                continue;
            }
            let shift = if is_behind { ROOM - tail - before.len() } else { 0 };
            let place = cut.begin + shift..cut.end + shift;
            let digits = same.get(place.clone())?.iter().zip(mask.get_mut(place)?);
            for (_, mask) in digits.filter(|(byte, _)| byte.is_ascii_digit()) {
                // The six others that have these bits end neither a string nor a number.
                *mask = 0xf0;
            }
        }
        let (left, right) = (before.len().checked_sub(BLOCK)?, before.len());
        let last = ROOM - (tail_blocks + 1) * BLOCK;
        same.copy_within(left..right, last);
        mask.copy_within(left..right, last);
        Some(())
    }

    /// Of the line without its text, from here to there: on one side of the text.
    fn part(&self, from: usize, to: usize) -> Option<&[u8]> {
        let (head, tail) = (usize::from(self.head), usize::from(self.tail));
        let shift = if to > head { ROOM - tail - head } else { 0 };
        self.same.0.as_flattened().get(from + shift..to + shift)
    }
}

/// Adds the bits of the mask that differ.
#[inline]
fn compare(
    mut other: [u8; BLOCK],
    it: &[u8; BLOCK],
    same: &[u8; BLOCK],
    mask: &[u8; BLOCK],
) -> [u8; BLOCK] {
    for (((other, byte), same), mask) in other.iter_mut().zip(it).zip(same).zip(mask) {
        *other |= (byte ^ same) & mask;
    }
    other
}

impl Filling {
    /// Where what fills a hole ends.
    fn end(self, bytes: &[u8], begin: usize) -> Option<usize> {
        match self {
            Self::Text => text(bytes, begin),
            Self::Stamp => {
                let end = mark(bytes, begin)?;
                (bytes.get(end) == Some(&b'"')).then_some(end)
            }
            Self::Digits => {
                let rest = bytes.get(begin..)?;
                Some(begin + rest.iter().position(|b| !b.is_ascii_digit())?)
            }
        }
    }
}

/// Up to the mark that ends a string; `None` for one that a line break ends.
#[inline]
fn text(bytes: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin;
    loop {
        at = mark(bytes, at)?;
        match bytes.get(at..)? {
            [b'"', ..] => return Some(at),
            [b'\\', byte, ..] if *byte >= b' ' => at += 2,
            _ => return None,
        }
    }
}

/// Where the next byte is that does not stand for itself in a string.
#[inline]
fn mark(bytes: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin;
    while let Some(eight) = bytes.get(at..)?.first_chunk() {
        let marks = marks(u64::from_le_bytes(*eight));
        if marks != 0 {
            return Some(at + marks.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    Some(at + rest.iter().position(|b| matches!(b, 0..b' ' | b'"' | b'\\'))?)
}

/// The high bit of the first byte that is a control character, a quotation mark or a backslash, and
/// maybe of bytes behind it.
fn marks(eight: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let less = |bytes: u64, than: u8| bytes.wrapping_sub(EACH * u64::from(than)) & !bytes;
    let quote = less(eight ^ (EACH * u64::from(b'"')), 1);
    let backslash = less(eight ^ (EACH * u64::from(b'\\')), 1);
    (less(eight, b' ') | quote | backslash) & EACH << 7
}
