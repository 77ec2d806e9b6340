//! Where a body ends: by its length, by its last chunk, or with its connection (RFC 9112, 6).

use bytes::Bytes;

use super::Inbox;

/// The longest line of a chunk's size with its extension, or of a trailer field, in bytes.
const LONGEST_LINE: usize = 4 * 1024;
/// Extensions and trailers of one body together; they are dropped, so nobody needs more.
const MOST_DROPPED: usize = 16 * 1024;

/// How much of a body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    /// What is expected next, and bytes of extensions and trailers so far.
    Chunked(Chunk, usize),
    UntilClose,
}

/// The place in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    Size,
    Data(u64),
    /// The line end behind data.
    DataEnd,
    Trailers,
    Past,
}

/// The next step of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    /// More has to be read first.
    Wanting,
    End,
}

/// A body that breaks the rules of its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not framed as HTTP/1.1 frames one: {0}")]
pub struct BadFraming(&'static str);

impl Framing {
    pub const CHUNKED: Self = Self::Chunked(Chunk::Size, 0);
    pub const NOTHING: Self = Self::Length(0);

    /// Nothing is to come any more.
    #[must_use]
    pub fn is_past(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Past, _))
    }

    /// The bytes still to come, where that is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(..) | Self::UntilClose => None,
        }
    }

    /// Takes what is there of the body. Never more than one chunk at a time.
    ///
    /// # Errors
    /// Where a chunk is not framed right; nothing behind that can be believed.
    pub fn next(&mut self, inbox: &mut Inbox) -> Result<Piece, BadFraming> {
        match self {
            Self::Length(0) => Ok(Piece::End),
            Self::Length(left) => Ok(data(left, inbox)),
            Self::UntilClose if inbox.is_empty() => Ok(Piece::Wanting),
            Self::UntilClose => Ok(Piece::Data(inbox.take(usize::MAX))),
            Self::Chunked(chunk, dropped) => chunked(chunk, dropped, inbox),
        }
    }

    /// Goes over what is left behind the last data, if it is there already.
    ///
    /// # Errors
    /// As [`Framing::next`].
    pub fn settle(&mut self, inbox: &mut Inbox) -> Result<(), BadFraming> {
        if let Self::Chunked(chunk, dropped) = self
            && *chunk == Chunk::Size
            && inbox.held().starts_with(b"0")
        {
            while matches!(chunk, Chunk::Size | Chunk::Trailers) {
                if step(chunk, dropped, inbox)?.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn data(left: &mut u64, inbox: &mut Inbox) -> Piece {
    if inbox.is_empty() {
        return Piece::Wanting;
    }
    let data = inbox.take(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= data.len() as u64;
    Piece::Data(data)
}

fn chunked(chunk: &mut Chunk, dropped: &mut usize, inbox: &mut Inbox) -> Result<Piece, BadFraming> {
    loop {
        match chunk {
            Chunk::Past => return Ok(Piece::End),
            Chunk::Data(left) => {
                let piece = data(left, inbox);
                if *left == 0 {
                    *chunk = Chunk::DataEnd;
                }
                if *chunk == Chunk::DataEnd && inbox.held().starts_with(b"\r\n") {
                    inbox.skip(2);
                    *chunk = Chunk::Size;
                }
                return Ok(piece);
            }
            Chunk::Size | Chunk::DataEnd | Chunk::Trailers if inbox.is_empty() => {
                return Ok(Piece::Wanting);
            }
            Chunk::Size | Chunk::DataEnd | Chunk::Trailers => {
                if step(chunk, dropped, inbox)?.is_none() {
                    return Ok(Piece::Wanting);
                }
            }
        }
    }
}

/// Goes over one line; `None` if it has not come whole.
fn step(
    chunk: &mut Chunk,
    dropped: &mut usize,
    inbox: &mut Inbox,
) -> Result<Option<()>, BadFraming> {
    let Some(line) = whole_line(inbox)? else { return Ok(None) };
    let taken = line.len() + 2;
    *chunk = match chunk {
        Chunk::DataEnd if line.is_empty() => Chunk::Size,
        Chunk::DataEnd => return Err(BadFraming("a chunk is longer than its size")),
        Chunk::Size => {
            let (size, extension) = size_of(line)?;
            *dropped += extension;
            if size == 0 { Chunk::Trailers } else { Chunk::Data(size) }
        }
        Chunk::Trailers if line.is_empty() => Chunk::Past,
        Chunk::Trailers => {
            *dropped += taken;
            Chunk::Trailers
        }
        Chunk::Data(_) | Chunk::Past => return Ok(None),
    };
    if *dropped > MOST_DROPPED {
        return Err(BadFraming("too many extensions or trailers"));
    }
    inbox.skip(taken);
    Ok(Some(()))
}

/// A line without its end, which has to be CR LF: what ends a line only for some ends it for nobody.
fn whole_line(inbox: &Inbox) -> Result<Option<&[u8]>, BadFraming> {
    let held = inbox.held();
    let looked_at = held.get(..LONGEST_LINE).unwrap_or(held);
    let Some(end) = memchr::memchr2(b'\n', b'\r', looked_at) else {
        return match held.len() >= LONGEST_LINE {
            true => Err(BadFraming("a line is too long")),
            false => Ok(None),
        };
    };
    match held.get(end..) {
        Some([b'\r', b'\n', ..]) => Ok(held.get(..end)),
        Some([b'\r']) => Ok(None),
        _ => Err(BadFraming("a line does not end as it must")),
    }
}

/// Hex digits, then perhaps an extension, which is dropped; and the extension's length.
fn size_of(line: &[u8]) -> Result<(u64, usize), BadFraming> {
    let digit = |b: &u8| char::from(*b).to_digit(16);
    let digits = line.iter().map_while(digit).count();
    let (digits, extension) = line.split_at(digits);
    if !(1..=15).contains(&digits.len()) {
        return Err(BadFraming("a chunk's size is not a number"));
    }
    let size = digits.iter().filter_map(digit).fold(0, |size, digit| size << 4 | u64::from(digit));
    let blank = extension.trim_ascii_start();
    if !blank.is_empty() && !blank.starts_with(b";") {
        return Err(BadFraming("something other than an extension follows a chunk's size"));
    }
    Ok((size, extension.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The body and what is left behind it, read with the bytes coming in pieces of `piece`.
    fn read(
        mut framing: Framing,
        bytes: &[u8],
        piece: usize,
    ) -> Result<(Vec<u8>, Vec<u8>), String> {
        let (mut body, mut inbox) = (Vec::new(), Inbox::default());
        let mut pieces = bytes.chunks(piece);
        loop {
            match framing.next(&mut inbox).map_err(|bad| bad.to_string())? {
                Piece::Data(data) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                    framing.settle(&mut inbox).map_err(|bad| bad.to_string())?;
                }
                Piece::End => {
                    assert!(framing.is_past());
                    let mut rest = inbox.held().to_vec();
                    rest.extend(pieces.flatten());
                    return Ok((body, rest));
                }
                Piece::Wanting => {
                    let Some(next) = pieces.next() else { return Err("short".to_owned()) };
                    let held = [inbox.held(), next].concat();
                    inbox = Inbox::from(&held[..]);
                }
            }
        }
    }

    #[test]
    fn a_body_ends_at_its_end_however_it_is_cut() {
        let chunked = b"5\r\nhello\r\n00A; x=\"y\"\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\nNEXT";
        for piece in 1..chunked.len() {
            let (body, rest) = read(Framing::CHUNKED, chunked, piece).unwrap();
            assert_eq!((&body[..], &rest[..]), (&b"hello0123456789"[..], &b"NEXT"[..]), "{piece}");
            let (body, rest) = read(Framing::Length(7), b"1234567NEXT", piece).unwrap();
            assert_eq!((&body[..], &rest[..]), (&b"1234567"[..], &b"NEXT"[..]), "{piece}");
        }
    }

    #[test]
    fn a_body_that_is_framed_wrong_is_refused_however_it_is_cut() {
        for bad in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello\r0\r\n\r\n",
            "5\r\nhello!\r\n0\r\n\r\n",
            "\r\nhello\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 x\r\nhello\r\n0\r\n\r\n",
            "5,5\r\nhello\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nhello",
            "10000000000000000\r\nhello",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "0\r\nX: 1\n\r\n",
            "g\r\n",
        ] {
            for piece in 1..bad.len() {
                let told = read(Framing::CHUNKED, bad.as_bytes(), piece).unwrap_err();
                assert!(told.starts_with("the body is not framed"), "{bad:?} {piece}: {told}");
            }
        }
    }

    #[test]
    fn what_is_dropped_is_bounded() {
        let long = format!("5;{}", "x".repeat(LONGEST_LINE));
        let many = "1;12345678\r\nx\r\n".repeat(MOST_DROPPED / 8) + "0\r\n\r\n";
        let trailers = "0\r\n".to_owned() + &"X-Trailer: 1\r\n".repeat(MOST_DROPPED / 8) + "\r\n";
        for bytes in [long, many, trailers] {
            assert_ne!(read(Framing::CHUNKED, bytes.as_bytes(), 1000).unwrap_err(), "short");
        }
    }

    #[test]
    fn the_end_is_known_with_the_last_data_when_it_came_along() {
        let mut inbox = Inbox::from(&b"2\r\nok\r\n0\r\n\r\n"[..]);
        let mut framing = Framing::CHUNKED;
        assert_eq!(framing.next(&mut inbox).unwrap(), Piece::Data("ok".into()));
        framing.settle(&mut inbox).unwrap();
        assert!(framing.is_past() && inbox.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_none_is_made_up(
            bytes in prop::collection::vec(prop::sample::select(b"0123afx;\r\n X".to_vec()), 0..80),
            piece in 1usize..9,
        ) {
            if let Ok((body, rest)) = read(Framing::CHUNKED, &bytes, piece) {
                prop_assert!(body.len() + rest.len() <= bytes.len());
                prop_assert!(bytes.ends_with(&rest));
            }
        }

        #[test]
        fn chunks_of_every_size_come_back_as_they_were(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
            piece in 1usize..600,
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(format!("{:X}\r\n", chunk.len()).bytes());
                bytes.extend(chunk.iter().chain(b"\r\n"));
            }
            bytes.extend(b"0\r\n\r\nrest");
            let (body, rest) = read(Framing::CHUNKED, &bytes, piece).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(rest, b"rest");
        }
    }
}
