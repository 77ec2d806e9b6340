//! What hyper lets through without telling: a fragment in the target, and a length beside a transfer
//! coding.
//!
//! hyper drops the one and obeys the coding over the other (RFC 9112, 3.2 and 6.3 allow both); a
//! guard refuses what could be read in two ways. The head is looked at as it passes, and one byte of
//! what is wrong is made a byte that hyper refuses, so that hyper's own parser stays the only one.
//! A head that came together with the request before it is not looked at: then the fragment is
//! dropped and the coding obeyed, which is harmless because what is sent on is built anew.

/// hyper refuses this byte in a target, in a name and in a value.
const REFUSED: u8 = 0;
/// The longest name that is looked for, with its colon.
const LONGEST: usize = "transfer-encoding:".len();

/// How far one head has passed.
#[derive(Debug)]
pub(super) struct Head {
    place: Place,
    /// The beginning of the line under way, as far as it matters.
    start: [u8; LONGEST],
    started: usize,
    length: bool,
    coding: bool,
    preface: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    FirstLine,
    Fields,
    Past,
}

impl Head {
    pub(super) fn awaited() -> Self {
        Self {
            place: Place::FirstLine,
            start: [0; LONGEST],
            started: 0,
            length: false,
            coding: false,
            preface: false,
        }
    }

    /// What came was the preface of HTTP/2, which is not spoken here.
    pub(super) fn is_preface(&self) -> bool {
        self.preface
    }

    /// Looks at the next bytes, and spoils them if they are to be refused.
    pub(super) fn look(&mut self, bytes: &mut [u8]) {
        let mut rest = bytes;
        while self.place != Place::Past && !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            let (line, behind) = rest.split_at_mut(end);
            let whole = line.ends_with(b"\n");
            match self.place {
                Place::FirstLine => self.first_line(line),
                Place::Fields => self.field(line),
                Place::Past => {}
            }
            if whole {
                self.line_ended();
            }
            rest = behind;
        }
    }

    fn first_line(&mut self, line: &mut [u8]) {
        self.note_start(line);
        self.preface |= self.start.starts_with(b"PRI * HTTP/2");
        // The rest of a pipelined head may be taken for a first line, but has no method in front.
        let method = self.start.split(|b| *b == b' ').next().unwrap_or_default();
        let is_request = method.len() < self.started && method.iter().all(u8::is_ascii_uppercase);
        if let Some(hash) = memchr::memchr(b'#', line).filter(|_| is_request)
            && let Some(byte) = line.get_mut(hash)
        {
            *byte = REFUSED;
        }
    }

    fn field(&mut self, line: &mut [u8]) {
        let known = self.started;
        self.note_start(line);
        let name = self.start.get(..self.started).unwrap_or_default();
        let is = |wanted: &[u8]| {
            // Told once, when the colon comes.
            known < wanted.len()
                && name.get(..wanted.len()).is_some_and(|name| name.eq_ignore_ascii_case(wanted))
        };
        let (length, coding) = (is(b"content-length:"), is(b"transfer-encoding:"));
        self.length |= length;
        self.coding |= coding;
        if (length || coding)
            && self.length
            && self.coding
            && let Some(byte) = line.first_mut()
        {
            *byte = REFUSED;
        }
    }

    fn note_start(&mut self, line: &[u8]) {
        let room = self.start.get_mut(self.started..).unwrap_or_default();
        let taken = room.len().min(line.len());
        for (place, byte) in room.iter_mut().zip(line) {
            *place = *byte;
        }
        self.started += taken;
    }

    fn line_ended(&mut self) {
        let line = self.start.get(..self.started).unwrap_or_default();
        let blank = matches!(line, b"\n" | b"\r\n");
        self.place = match self.place {
            // Blank lines before a request line are skipped (RFC 9112, 2.2).
            Place::FirstLine if blank => Place::FirstLine,
            Place::FirstLine => Place::Fields,
            Place::Fields if blank => Place::Past,
            Place::Fields | Place::Past => self.place,
        };
        self.started = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &[u8] = b"POST /api/chat?x HTTP/1.1\r\nHost: a#b\r\nContent-Length: 3\r\n\r\n{#}\
        Transfer-Encoding: chunked\r\n#";

    /// The bytes as they come out, sent in pieces of this many.
    fn passed(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut head = Head::awaited();
        let mut bytes = bytes.to_vec();
        bytes.chunks_mut(piece).for_each(|piece| head.look(piece));
        bytes
    }

    #[test]
    fn a_request_passes_as_it_is_however_it_is_cut() {
        for piece in 1..GOOD.len() {
            assert_eq!(passed(GOOD, piece), GOOD, "{piece}");
        }
    }

    #[test]
    fn a_fragment_is_spoilt_however_it_is_cut() {
        let request = b"\r\nGET /api/tags#/api/delete HTTP/1.1\r\nHost: a\r\n\r\n";
        for piece in 1..request.len() {
            let passed = passed(request, piece);
            assert!(!passed.contains(&b'#') && passed.contains(&REFUSED), "{piece}");
        }
    }

    #[test]
    fn the_rest_of_a_pipelined_head_is_let_pass() {
        let rest = b"ser-Agent: a #1 client\r\nX-Color: #fff\r\n\r\n";
        assert_eq!(passed(rest, rest.len()), rest);
    }

    #[test]
    fn a_length_beside_a_coding_is_spoilt_in_either_order_however_it_is_cut() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "transfer-encoding: chunked\r\nX: y\r\nCONTENT-LENGTH: 5",
            "Content-Length:5\nTransfer-Encoding:chunked",
        ] {
            let request = format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n");
            for piece in 1..request.len() {
                let passed = passed(request.as_bytes(), piece);
                assert_eq!(passed.iter().filter(|b| **b == REFUSED).count(), 1, "{fields} {piece}");
            }
        }
    }

    #[test]
    fn the_preface_of_http_2_is_known_however_it_is_cut() {
        for piece in 1..20 {
            let mut head = Head::awaited();
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                .to_vec()
                .chunks_mut(piece)
                .for_each(|it| head.look(it));
            assert!(head.is_preface(), "{piece}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_looking_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1usize..9) {
            passed(&bytes, piece);
        }
    }
}
