//! Server-sent events as they pass, as far as their data goes (WHATWG HTML, 9.2.6).

const DATA: &[u8] = b"data:";
/// Ends a stream of OpenAI's.
const DONE: &[u8] = b"[DONE]";

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum What<'a> {
    /// Nothing that counts.
    Other,
    /// Data of an event, or a part of it; more of it may come in further lines.
    Data(&'a [u8]),
    /// The end of a stream, in one word.
    Done,
    /// The blank line behind an event.
    EventOver,
}

/// A place in a stream of events.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Events {
    line: Line,
    /// A line break that is two bytes long may be cut in two.
    after_return: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// So many letters of the name `data:` have come.
    Name(usize),
    /// Before the first byte of the data.
    Value,
    /// So many letters of `[DONE]` have come.
    Word(usize),
    Data,
    Ignored,
}

impl Default for Line {
    fn default() -> Self {
        Self::Name(0)
    }
}

impl Events {
    /// At the beginning of a line.
    pub(super) fn is_at_start(&self) -> bool {
        self.line == Line::Name(0) && !self.after_return
    }

    /// In the middle of a line of data.
    pub(super) fn is_in_data(&self) -> bool {
        self.line == Line::Data
    }

    /// Behind the first half of what may be one line break.
    pub(super) fn is_after_return(&self) -> bool {
        self.after_return
    }

    /// Takes what comes next, at least a byte; says how many. `within`: a value goes on from an
    /// earlier line of the event.
    pub(super) fn next<'a>(&mut self, rest: &'a [u8], within: bool) -> (usize, What<'a>) {
        let after_return = std::mem::take(&mut self.after_return);
        match rest.first() {
            Some(b'\n') if after_return => (1, What::Other),
            Some(end @ (b'\n' | b'\r')) => {
                self.after_return = *end == b'\r';
                let was_blank = self.line == Line::Name(0);
                self.line = Line::Name(0);
                let length = if rest.starts_with(b"\r\n") { 2 } else { 1 };
                self.after_return &= rest.len() == 1;
                (length, if was_blank { What::EventOver } else { What::Other })
            }
            Some(_) | None => self.within_line(rest, within),
        }
    }

    fn within_line<'a>(&mut self, rest: &'a [u8], within: bool) -> (usize, What<'a>) {
        let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let segment = rest.get(..end).unwrap_or_default();
        let mut at = 0;
        while let Some(byte) = segment.get(at) {
            self.line = match self.line {
                Line::Name(n) if DATA.get(n) == Some(byte) => match n + 1 == DATA.len() {
                    true => Line::Value,
                    false => Line::Name(n + 1),
                },
                Line::Name(_) | Line::Ignored => {
                    self.line = Line::Ignored;
                    return (end, What::Other);
                }
                Line::Value if *byte == b' ' => Line::Value,
                Line::Value if *byte == b'[' && !within => Line::Word(1),
                Line::Value | Line::Data => {
                    self.line = Line::Data;
                    return (end, What::Data(segment.get(at..).unwrap_or_default()));
                }
                Line::Word(n) if DONE.get(n) == Some(byte) => {
                    if n + 1 == DONE.len() {
                        self.line = Line::Ignored;
                        return (at + 1, What::Done);
                    }
                    Line::Word(n + 1)
                }
                Line::Word(_) => Line::Ignored,
            };
            at += 1;
        }
        (end, What::Other)
    }
}
