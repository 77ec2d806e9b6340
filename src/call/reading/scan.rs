//! JSON in one pass over its bytes (RFC 8259), without a tree or a copy.

use std::borrow::Cow;
use std::ops::Range;

use crate::reject::Reject;

/// Values within values; Ollama's reader takes 10,000, no request has ten.
pub(super) const MAX_DEPTH: usize = 128;

const NOT_JSON: Reject = Reject::BadBody("the body is not JSON");
const TOO_DEEP: Reject = Reject::BadBody("the body has values more than 128 deep in one another");

/// Where something stands in a body. Empty for what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Bodies of 4 GiB and more are not read.
    pub(super) fn new(start: usize, end: usize) -> Self {
        let at = |it| u32::try_from(it).unwrap_or(u32::MAX);
        Self { start: at(start), end: at(end) }
    }

    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Flag,
    Number,
    Text,
    /// With anything in it, or with nothing.
    List(bool),
    Object(bool),
}

/// A value that was passed: what it is, and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passed {
    pub(super) kind: Kind,
    pub(super) span: Span,
}

/// A place in a text that goes forward only.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next byte that is no blank.
    pub(super) fn peek(&mut self) -> Option<u8> {
        let rest = self.rest();
        let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\n' | b'\r' | b'\t')).count();
        self.at += blanks;
        rest.get(blanks).copied()
    }

    fn take(&mut self, byte: u8) -> Result<(), Reject> {
        match self.peek() {
            Some(next) if next == byte => {
                self.at += 1;
                Ok(())
            }
            _ => Err(NOT_JSON),
        }
    }

    /// Nothing but blanks may follow the value: a reader behind us may stop after the first.
    pub(super) fn end(&mut self) -> Result<(), Reject> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(Reject::BadBody("something follows the JSON value in the body")),
        }
    }

    /// An object, member by member; `member` passes the value. Says whether there were any.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Span) -> Result<(), Reject>,
    ) -> Result<bool, Reject> {
        self.take(b'{')?;
        self.descend()?;
        let mut any = false;
        while any || self.peek() != Some(b'}') {
            if self.peek() != Some(b'"') {
                return Err(NOT_JSON);
            }
            let key = self.string()?;
            self.take(b':')?;
            member(self, key)?;
            any = true;
            if self.peek() != Some(b',') {
                break;
            }
            self.at += 1;
        }
        self.take(b'}')?;
        self.depth -= 1;
        Ok(any)
    }

    /// A list, item by item; `item` passes the value. Says whether there were any.
    pub(super) fn list(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), Reject>,
    ) -> Result<bool, Reject> {
        self.take(b'[')?;
        self.descend()?;
        let mut any = false;
        while any || self.peek() != Some(b']') {
            item(self)?;
            any = true;
            if self.peek() != Some(b',') {
                break;
            }
            self.at += 1;
        }
        self.take(b']')?;
        self.depth -= 1;
        Ok(any)
    }

    fn descend(&mut self) -> Result<(), Reject> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(TOO_DEEP) } else { Ok(()) }
    }

    /// Any value, whatever is in it.
    pub(super) fn pass(&mut self) -> Result<Passed, Reject> {
        let first = self.peek().ok_or(NOT_JSON)?;
        let start = self.at;
        let kind = match first {
            b'"' => self.string().map(|_| Kind::Text)?,
            b'{' => Kind::Object(self.object(|scanner, _| scanner.pass().map(drop))?),
            b'[' => Kind::List(self.list(|scanner| scanner.pass().map(drop))?),
            b't' => self.word(b"true").map(|()| Kind::Flag)?,
            b'f' => self.word(b"false").map(|()| Kind::Flag)?,
            b'n' => self.word(b"null").map(|()| Kind::Null)?,
            _ => self.number().map(|()| Kind::Number)?,
        };
        Ok(Passed { kind, span: Span::new(start, self.at) })
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Reject> {
        if !self.rest().starts_with(word) {
            return Err(NOT_JSON);
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), Reject> {
        let rest = self.rest();
        let digits =
            |from: usize| rest.iter().skip(from).take_while(|b| b.is_ascii_digit()).count();
        let mut at = usize::from(rest.first() == Some(&b'-'));
        let whole = digits(at);
        if whole == 0 || (whole > 1 && rest.get(at) == Some(&b'0')) {
            return Err(NOT_JSON);
        }
        at += whole;
        if rest.get(at) == Some(&b'.') {
            let fraction = digits(at + 1);
            if fraction == 0 {
                return Err(NOT_JSON);
            }
            at += 1 + fraction;
        }
        if matches!(rest.get(at), Some(b'e' | b'E')) {
            at += 1 + usize::from(matches!(rest.get(at + 1), Some(b'+' | b'-')));
            let exponent = digits(at);
            if exponent == 0 {
                return Err(NOT_JSON);
            }
            at += exponent;
        }
        self.at += at;
        Ok(())
    }

    /// A string at its quotation mark. The span is what stands between its two.
    pub(super) fn string(&mut self) -> Result<Span, Reject> {
        self.at += 1;
        let start = self.at;
        loop {
            let rest = self.rest();
            let plain = memchr::memchr2(b'"', b'\\', rest).ok_or(NOT_JSON)?;
            let (before, after) = rest.split_at(plain);
            // The whole run is looked at, because that is what the processor does many bytes at once.
            if before.iter().fold(false, |bad, byte| bad | (*byte < b' ')) {
                return Err(NOT_JSON);
            }
            self.at += plain;
            if after.first() == Some(&b'"') {
                let span = Span::new(start, self.at);
                self.at += 1;
                return Ok(span);
            }
            self.at += escape(after).ok_or(NOT_JSON)?;
        }
    }

    /// What stands there, as it is written.
    pub(super) fn written(&self, span: Span) -> &'a str {
        self.text.get(span.range()).unwrap_or_default()
    }
}

/// The length of an escape.
fn escape(text: &[u8]) -> Option<usize> {
    match text.get(1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(2),
        b'u' => text.get(2..6)?.iter().all(u8::is_ascii_hexdigit).then_some(6),
        _ => None,
    }
}

/// The text between the marks of a string that was passed. Half of a surrogate pair becomes
/// U+FFFD, as for Go.
pub(super) fn decode(written: &str) -> Cow<'_, str> {
    let first = memchr::memchr(b'\\', written.as_bytes());
    let Some(first) = first else { return Cow::Borrowed(written) };
    let mut text = String::with_capacity(written.len());
    text.push_str(written.get(..first).unwrap_or_default());
    let mut rest = written.get(first..).unwrap_or_default();
    while let Some(at) = rest.find('\\') {
        text.push_str(rest.get(..at).unwrap_or_default());
        let (decoded, length) = decoded(rest.get(at..).unwrap_or_default());
        text.push(decoded);
        rest = rest.get(at + length..).unwrap_or_default();
    }
    text.push_str(rest);
    Cow::Owned(text)
}

fn decoded(escape: &str) -> (char, usize) {
    let short = match escape.as_bytes().get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unicode(escape),
        Some(other) => char::from(*other),
        None => char::REPLACEMENT_CHARACTER,
    };
    (short, 2)
}

fn unicode(escape: &str) -> (char, usize) {
    let unit = |from: usize| {
        let digits = escape.get(from..from + 4)?;
        let is_one = escape.get(from - 2..from) == Some("\\u");
        is_one.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
    };
    let first = unit(2).unwrap_or(0xFFFD);
    let pair = unit(8).and_then(|second| {
        char::decode_utf16([first, second]).next()?.ok().filter(|it| *it > '\u{ffff}')
    });
    match pair {
        Some(both) => (both, 12),
        None => (char::from_u32(first.into()).unwrap_or(char::REPLACEMENT_CHARACTER), 6),
    }
}

/// Whether Go takes a key for this name, which is ASCII in lower case [encoding/json/fold.go].
pub(super) fn is_folded(key: &str, name: &str) -> bool {
    match key.is_ascii() {
        true => key.eq_ignore_ascii_case(name),
        false => key.chars().map(folded).eq(name.chars()),
    }
}

/// A number that keys share whose letters differ in case only.
pub(super) fn fold_hash(key: &str) -> u64 {
    let mix =
        |hash: u64, letter: u32| (hash ^ u64::from(letter)).wrapping_mul(0x0000_0100_0000_01b3);
    let begin = 0xcbf2_9ce4_8422_2325;
    match key.is_ascii() {
        true => key.bytes().map(|b| b.to_ascii_lowercase().into()).fold(begin, mix),
        false => key.chars().map(|letter| folded(letter).into()).fold(begin, mix),
    }
}

/// Simple case folding: of one letter to one letter.
fn folded(letter: char) -> char {
    if letter.is_ascii() {
        return letter.to_ascii_lowercase();
    }
    let upper = only(letter.to_uppercase()).unwrap_or(letter);
    let lower = only(upper.to_lowercase()).unwrap_or(upper);
    // The dotless i has a capital letter, but is not folded.
    let is_alone = lower.is_ascii() && !matches!(letter, '\u{17f}' | '\u{212a}');
    if is_alone { letter } else { lower }
}

fn only(mut letters: impl Iterator<Item = char>) -> Option<char> {
    let first = letters.next()?;
    letters.next().is_none().then_some(first)
}
