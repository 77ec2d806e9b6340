//! A strict reader of HTTP/1.1 answers: what a proxy frames wrongly fails the run.

use anyhow::{Context, bail, ensure};

use crate::script::digits;

/// One answer, fed with bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    at: At,
    /// A line that has not come whole.
    line: Vec<u8>,
    pub(crate) status: u16,
    length: Option<u64>,
    chunked: bool,
    /// The other side will close the connection after this answer.
    pub(crate) close: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Status,
    Field,
    /// The body, so much of it missing.
    Body(u64),
    /// The body, until the connection is closed.
    UntilClose,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    /// The empty line after the last chunk.
    LastLine,
    Done,
}

/// The longest line that a head may have.
const LINE: usize = 8192;

impl Answer {
    /// As new, with its memory kept.
    pub(crate) fn reset(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        *self = Self { line, ..Self::default() };
    }

    pub(crate) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Takes the bytes up to the answer's end, gives its body to `sink`, and tells what is left.
    ///
    /// # Errors
    /// The answer breaks the protocol, or `sink` fails.
    pub(crate) fn feed<'b>(
        &mut self,
        mut bytes: &'b [u8],
        mut sink: impl FnMut(u16, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<&'b [u8]> {
        while !bytes.is_empty() && self.at != At::Done {
            match self.at {
                At::Body(left) => {
                    let (data, rest) = up_to(bytes, left);
                    sink(self.status, data)?;
                    let left = left - data.len() as u64;
                    self.at = if left == 0 { At::Done } else { At::Body(left) };
                    bytes = rest;
                }
                At::Chunk(left) => {
                    let (data, rest) = up_to(bytes, left);
                    sink(self.status, data)?;
                    let left = left - data.len() as u64;
                    self.at = if left == 0 { At::ChunkEnd } else { At::Chunk(left) };
                    bytes = rest;
                }
                At::UntilClose => {
                    sink(self.status, bytes)?;
                    bytes = &[];
                }
                At::Status | At::Field | At::ChunkSize | At::ChunkEnd | At::LastLine => {
                    bytes = self.take_line(bytes)?;
                }
                At::Done => {}
            }
        }
        Ok(bytes)
    }

    /// The connection was closed.
    ///
    /// # Errors
    /// It was closed before the answer's end.
    pub(crate) fn closed(&mut self) -> anyhow::Result<()> {
        if self.at == At::UntilClose {
            self.at = At::Done;
        }
        ensure!(self.at == At::Done, "the connection was closed before the answer's end");
        Ok(())
    }

    fn take_line<'b>(&mut self, bytes: &'b [u8]) -> anyhow::Result<&'b [u8]> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            self.line.extend_from_slice(bytes);
            ensure!(self.line.len() < LINE, "a line too long");
            return Ok(&[]);
        };
        let (line, rest) = bytes.split_at(end + 1);
        if self.line.is_empty() {
            self.understand(line)?;
        } else {
            let mut whole = std::mem::take(&mut self.line);
            whole.extend_from_slice(line);
            self.understand(&whole)?;
            whole.clear();
            self.line = whole;
        }
        Ok(rest)
    }

    fn understand(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let Some(line) = line.strip_suffix(b"\r\n") else {
            bail!("a line without CR: {}", String::from_utf8_lossy(line));
        };
        self.at = match self.at {
            At::Status => {
                self.status = status(line)?;
                At::Field
            }
            At::Field if line.is_empty() => self.body()?,
            At::Field => {
                self.field(line)?;
                At::Field
            }
            At::ChunkSize => match chunk_size(line)? {
                0 => At::LastLine,
                size => At::Chunk(size),
            },
            At::ChunkEnd if line.is_empty() => At::ChunkSize,
            At::LastLine if line.is_empty() => At::Done,
            At::ChunkEnd
            | At::LastLine
            | At::Body(_)
            | At::Chunk(_)
            | At::UntilClose
            | At::Done => {
                bail!("a chunk with a wrong end: {}", String::from_utf8_lossy(line))
            }
        };
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let colon = line.iter().position(|byte| *byte == b':');
        let wrong = || format!("a wrong header line: {}", String::from_utf8_lossy(line));
        let (name, value) = line.split_at(colon.with_context(wrong)?);
        ensure!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic), wrong());
        let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            ensure!(self.length.is_none(), "two lengths");
            self.length = Some(digits(value).with_context(wrong)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            ensure!(value.eq_ignore_ascii_case(b"chunked") && !self.chunked, wrong());
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            self.close |= value.eq_ignore_ascii_case(b"close");
        }
        Ok(())
    }

    fn body(&mut self) -> anyhow::Result<At> {
        ensure!(self.status >= 200, "status {}", self.status);
        Ok(match (self.chunked, self.length) {
            (true, Some(_)) => bail!("an answer with a length and chunks"),
            (true, None) => At::ChunkSize,
            (false, Some(0)) => At::Done,
            (false, Some(length)) => At::Body(length),
            (false, None) => {
                self.close = true;
                At::UntilClose
            }
        })
    }
}

fn up_to(bytes: &[u8], most: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len()))
}

fn status(line: &[u8]) -> anyhow::Result<u16> {
    let code = line.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.split_at_checked(3));
    let status = code.filter(|(_, rest)| rest.is_empty() || rest.starts_with(b" "));
    let number = status.and_then(|(code, _)| u16::try_from(digits(code)?).ok());
    number.with_context(|| format!("no status line: {}", String::from_utf8_lossy(line)))
}

fn chunk_size(line: &[u8]) -> anyhow::Result<u64> {
    let wrong = || format!("no chunk size: {}", String::from_utf8_lossy(line));
    ensure!(!line.is_empty() && line.iter().all(u8::is_ascii_hexdigit), wrong());
    let text = std::str::from_utf8(line)?;
    u64::from_str_radix(text, 16).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<(String, bool, usize)> {
        let mut found = None;
        // whole, and byte by byte: the same must come out
        for size in [text.len(), 1] {
            let (mut answer, mut body, mut left) = (Answer::default(), Vec::new(), 0);
            for piece in text.as_bytes().chunks(size) {
                left += answer
                    .feed(piece, |_, data| {
                        body.extend_from_slice(data);
                        Ok(())
                    })?
                    .len();
            }
            if !answer.is_done() {
                answer.closed()?;
            }
            let now = (String::from_utf8(body)?, answer.close, left);
            assert!(found.as_ref().is_none_or(|before| *before == now));
            found = Some(now);
        }
        found.context("nothing")
    }

    #[test]
    fn the_three_framings_are_read() {
        let length = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        assert_eq!(read(length).unwrap(), ("hi".into(), false, 0));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n";
        assert_eq!(read(chunked).unwrap(), ("hi".into(), false, 0));
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nhi").unwrap(), ("hi".into(), true, 0));
        assert_eq!(read(&format!("{length}xyz")).unwrap(), ("hi".into(), false, 3));
    }

    #[test]
    fn what_is_framed_wrongly_fails() {
        for wrong in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi",
            "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\nhi",
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhi\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
