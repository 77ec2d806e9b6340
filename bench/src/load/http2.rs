//! A caller's HTTP/2 connection (RFC 9113) with several streams: requests as clients write them,
//! and a strict reader of the answers.

use anyhow::{Context, bail, ensure};

use super::check::{Check, Piece};
use super::{State, Tally, Want};

/// The connection's streams and the bytes between two frames.
#[derive(Debug)]
pub(super) struct Http2 {
    streams: Vec<Stream>,
    /// The first request on a connection, and each one after it.
    request: [Vec<u8>; 2],
    body: Vec<u8>,
    next_id: u32,
    /// A frame that has not come whole.
    kept: Vec<u8>,
    /// Bytes of bodies that we may still send, and that we took since the other side was told.
    may_send: usize,
    taken: u32,
    /// The other side takes no more requests.
    leaving: bool,
}

/// One request at a time.
#[derive(Debug, Default)]
struct Stream {
    /// 0 when nothing is under way.
    id: u32,
    has_head: bool,
    asked_at: u64,
    check: Check,
}

/// What a frame is about (RFC 9113, 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// The largest frame that we accept: what the protocol begins with.
const LARGEST: usize = 16_384;
/// What a stream may be sent: more than any answer has.
const STREAM_WINDOW: u32 = 1 << 24;
/// What the connection may be sent, and when it is told of what was taken.
const WINDOW: u32 = 1 << 30;
const TELL_AFTER: u32 = 1 << 28;
/// What both windows begin with.
const FIRST_WINDOW: u32 = 65_535;

impl Http2 {
    /// For a request that is written as HTTP/1.1 has it.
    pub(super) fn new(streams: usize, request: &[u8]) -> anyhow::Result<Self> {
        let (request, body) = translate(request)?;
        Ok(Self {
            streams: (0..streams).map(|_| Stream::default()).collect(),
            request,
            body,
            next_id: 1,
            kept: Vec::new(),
            may_send: FIRST_WINDOW as usize,
            taken: 0,
            leaving: false,
        })
    }

    /// Streams without a request.
    pub(super) fn idle(&self) -> usize {
        self.streams.iter().filter(|stream| stream.id == 0).count()
    }

    /// The other side has asked for another connection, and has answered everything on this one.
    pub(super) fn is_over(&self) -> bool {
        self.leaving && self.idle() == self.streams.len()
    }

    /// Worth waiting for at the end.
    pub(super) fn is_nearly_done(&self) -> bool {
        self.streams.iter().any(|stream| stream.id != 0 && stream.check.tokens() == 0)
    }

    /// As new, for another connection.
    pub(super) fn renew(&mut self) {
        self.kept.clear();
        self.streams.iter_mut().for_each(|stream| stream.id = 0);
        (self.next_id, self.taken, self.leaving) = (1, 0, false);
        self.may_send = FIRST_WINDOW as usize;
    }

    /// Writes a request that is due since then, unless the other side takes none any more.
    pub(super) fn ask(&mut self, since: u64, out: &mut Vec<u8>) -> anyhow::Result<bool> {
        if self.leaving {
            return Ok(false);
        }
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == 0) else {
            return Ok(false);
        };
        let is_first = self.next_id == 1;
        if is_first {
            greet(out);
        }
        (stream.id, stream.has_head, stream.asked_at) = (self.next_id, false, since);
        stream.check.begin(since);
        self.next_id += 2;
        let [first, later] = &self.request;
        let block = if is_first { first } else { later };
        let end = if self.body.is_empty() { END_STREAM } else { 0 };
        frame(kind::HEADERS, END_HEADERS | end, stream.id, block, out);
        if !self.body.is_empty() {
            let left = self.may_send.checked_sub(self.body.len());
            self.may_send = left.context("the other side takes no more bodies")?;
            frame(kind::DATA, END_STREAM, stream.id, &self.body, out);
        }
        Ok(true)
    }

    /// Takes what has come, and writes what it calls for; further requests too.
    pub(super) fn take_in(
        &mut self,
        bytes: &[u8],
        state: &mut State,
        now: u64,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        if self.kept.is_empty() {
            let rest = self.take_frames(bytes, state, now, out)?;
            self.kept.extend_from_slice(rest);
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.kept);
        whole.extend_from_slice(bytes);
        let left = self.take_frames(&whole, state, now, out)?.len();
        whole.drain(..whole.len() - left);
        self.kept = whole;
        Ok(())
    }

    /// Gives back what is not a whole frame.
    fn take_frames<'b>(
        &mut self,
        mut bytes: &'b [u8],
        state: &mut State,
        now: u64,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<&'b [u8]> {
        while let Some((head, rest)) = bytes.split_at_checked(HEAD) {
            let [a, b, c, kind, flags, id @ ..] = head else { break };
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            ensure!(length <= LARGEST, "a frame of {length} bytes");
            let Some((payload, after)) = rest.split_at_checked(length) else { break };
            let id = number(id)? & 0x7fff_ffff;
            let frame = Frame { kind: *kind, flags: *flags, id, payload };
            if self.take_frame(frame, state, now, out)? && !state.ending {
                state.asked += 1;
                self.ask(now, out)?;
            }
            bytes = after;
        }
        Ok(bytes)
    }

    /// True when an answer is complete.
    fn take_frame(
        &mut self,
        frame: Frame<'_>,
        state: &mut State,
        now: u64,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<bool> {
        let Frame { kind, flags, id, payload } = frame;
        match kind {
            kind::DATA | kind::HEADERS => return self.take_part(&frame, state, now, out),
            kind::RST_STREAM => {
                let open = self.streams.iter().any(|stream| stream.id == id);
                ensure!(!open, "a stream was reset: {}", number(payload)?);
            }
            kind::SETTINGS if flags & ACK == 0 => {
                self.look_at_settings(payload)?;
                self::frame(kind::SETTINGS, ACK, 0, &[], out);
            }
            kind::PING if flags & ACK == 0 => self::frame(kind::PING, ACK, 0, payload, out),
            kind::GOAWAY => self.go_away(payload)?,
            kind::WINDOW_UPDATE if id == 0 => self.may_send += number(payload)? as usize,
            kind::PUSH_PROMISE | kind::CONTINUATION => bail!("a frame of kind {kind}"),
            _ => {}
        }
        Ok(false)
    }

    fn take_part(
        &mut self,
        frame: &Frame<'_>,
        state: &mut State,
        now: u64,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<bool> {
        let State { group, tally, .. } = state;
        let stream = self.streams.iter_mut().find(|stream| stream.id == frame.id);
        let stream = stream.with_context(|| format!("stream {} is not open", frame.id))?;
        if frame.kind == kind::HEADERS {
            stream.take_head(frame)?;
        } else {
            ensure!(stream.has_head, "a body before its head");
            let piece = Piece { status: 200, data: frame.content()?, now };
            stream.check.take(&group.want, piece, tally)?;
            self.taken += frame.payload.len() as u32;
        }
        let is_complete = frame.flags & END_STREAM != 0;
        if is_complete {
            stream.end(&group.want, tally, now)?;
        }
        if self.taken >= TELL_AFTER {
            self::frame(kind::WINDOW_UPDATE, 0, 0, &self.taken.to_be_bytes(), out);
            self.taken = 0;
        }
        Ok(is_complete)
    }

    fn look_at_settings(&self, payload: &[u8]) -> anyhow::Result<()> {
        for setting in payload.chunks_exact(6) {
            let (name, value) = setting.split_at(2);
            match (name, number(value)?) {
                // ours is as large as it may be when nothing is said
                ([0, 1], size) => ensure!(size >= 4096, "a header table of {size} bytes"),
                ([0, 3], most) => {
                    let wanted = self.streams.len();
                    ensure!(most as usize >= wanted, "{most} streams at most, not {wanted}");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn go_away(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let (last, rest) = payload.split_at_checked(4).context("a short farewell")?;
        let (last, code) = (number(last)?, number(rest.get(..4).unwrap_or_default())?);
        ensure!(code == 0, "the connection was ended with code {code}");
        let unseen = self.streams.iter().any(|stream| stream.id > last);
        ensure!(!unseen, "requests after {last} were not looked at");
        self.leaving = true;
        Ok(())
    }
}

impl Stream {
    fn take_head(&mut self, frame: &Frame<'_>) -> anyhow::Result<()> {
        ensure!(frame.flags & END_HEADERS != 0, "a head in pieces");
        if self.has_head {
            ensure!(frame.flags & END_STREAM != 0, "fields after the body that do not end it");
            return Ok(());
        }
        self.has_head = true;
        let mut block = frame.content()?;
        // a change of the table's size may come first (RFC 7541, 6.3)
        while let [first @ 0x20..=0x3f, rest @ ..] = block {
            let more = if *first == 0x3f {
                1 + rest.iter().take_while(|byte| **byte >= 0x80).count()
            } else {
                0
            };
            block = rest.get(more..).unwrap_or_default();
        }
        // `:status: 200` has a number of its own, which everybody uses
        ensure!(block.first() == Some(&0x88), "a status other than 200: {block:02x?}");
        Ok(())
    }

    fn end(&mut self, want: &Want, tally: &mut Tally, now: u64) -> anyhow::Result<()> {
        self.check.end(want, 200)?;
        self.id = 0;
        tally.answers += 1;
        tally.latency.add(now.saturating_sub(self.asked_at));
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    id: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Without padding and priority.
    fn content(&self) -> anyhow::Result<&'a [u8]> {
        let mut content = self.payload;
        if self.flags & PADDED != 0 {
            let (padding, rest) = content.split_first().context("no padding")?;
            let length = rest.len().checked_sub(usize::from(*padding)).context("padding")?;
            content = rest.get(..length).unwrap_or_default();
        }
        if self.kind == kind::HEADERS && self.flags & PRIORITY != 0 {
            content = content.get(5..).context("no priority")?;
        }
        Ok(content)
    }
}

fn number(bytes: &[u8]) -> anyhow::Result<u32> {
    Ok(u32::from_be_bytes(bytes.try_into().context("a frame of a wrong length")?))
}

fn greet(out: &mut Vec<u8>) {
    out.extend_from_slice(PREFACE);
    let mut settings = vec![0, 2, 0, 0, 0, 0, 0, 4]; // no pushes; the streams' window
    settings.extend_from_slice(&STREAM_WINDOW.to_be_bytes());
    frame(kind::SETTINGS, 0, 0, &settings, out);
    frame(kind::WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes(), out);
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8], out: &mut Vec<u8>) {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The header blocks of the first and of a later request, and the body. As clients do it, the first
/// fills the table with what the later ones point to.
fn translate(request: &[u8]) -> anyhow::Result<([Vec<u8>; 2], Vec<u8>)> {
    let end = request.windows(4).position(|four| four == b"\r\n\r\n").context("no request")?;
    let (head, body) = request.split_at(end + 4);
    let mut lines = std::str::from_utf8(head)?.trim_end().split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let method = match words.next() {
        Some("GET") => 0x82,
        Some("POST") => 0x83,
        other => bail!("no method {other:?} here"),
    };
    let mut fields = vec![(4, words.next().unwrap_or_default())];
    for line in lines {
        let (name, value) = line.split_once(": ").context("no field")?;
        // its number in the table that everybody has (RFC 7541, appendix A)
        let known = match name.to_ascii_lowercase().as_str() {
            "host" => 1,
            "accept" => 19,
            "authorization" => 23,
            "content-length" => 28,
            "content-type" => 31,
            "user-agent" => 58,
            other => bail!("no field {other} here"),
        };
        fields.push((known, value));
    }
    // :scheme https
    let (mut first, mut later) = (vec![method, 0x87], vec![method, 0x87]);
    // pseudo-header fields stand before the others: `Host` is the first that Head writes
    for (at, (known, value)) in fields.iter().enumerate() {
        ensure!(value.len() < 127, "a value too long");
        first.extend_from_slice(&[0x40 | known, value.len() as u8]);
        first.extend_from_slice(value.as_bytes());
        // the newest field has the number 62
        later.push(0x80 | (62 + fields.len() - 1 - at) as u8);
    }
    Ok(([first, later], body.to_vec()))
}

#[cfg(test)]
mod tests;
