//! The head of a message, read strictly: what could be read in two ways is malformed.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use httparse::{Header, Status};

use super::{Framing, Inbox};

/// The longest head that is looked at, in bytes.
pub const MAX_HEAD: usize = 64 * 1024;
/// More fields than a refusal of ours allows, so that it can say so in its own words.
const MOST_FIELDS: usize = 200;
/// Half a head is looked at for garbage only while it is this short, so that one that drips in
/// costs no more than its bytes.
const EAGER: usize = 512;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// A request as far as its head tells.
#[derive(Debug)]
pub struct RequestHead {
    pub parts: Box<Parts>,
    pub framing: Framing,
    /// The caller may send another request behind this one.
    pub keeps_alive: bool,
    /// The caller waits for a 100 before it sends the body (RFC 9110, 10.1.1).
    pub expects_continue: bool,
}

/// A backend's answer as far as its head tells.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub fields: Fields,
    pub framing: Framing,
    pub keeps_alive: bool,
}

/// The fields of a head, left where they came.
#[derive(Debug)]
pub struct Fields {
    head: Bytes,
    places: Vec<Place>,
}

/// Of a name and of its value.
type Place = (Range<u16>, Range<u16>);

impl Fields {
    fn of(parsed: &[Header<'_>], head: Bytes) -> Self {
        let start = head.as_ptr().addr();
        let range = |part: &[u8]| {
            let from = part.as_ptr().addr().wrapping_sub(start);
            // No head is longer than `MAX_HEAD`.
            small(from)..small(from + part.len())
        };
        let places = parsed.iter().map(|it| (range(it.name.as_bytes()), range(it.value)));
        let places = places.collect();
        Self { head, places }
    }

    /// Of the whole head.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.head.len()
    }

    /// Names in whatever case they came, and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let part = |range: &Range<u16>| {
            self.head.get(usize::from(range.start)..usize::from(range.end)).unwrap_or_default()
        };
        self.places.iter().map(move |(name, value)| (part(name), part(value)))
    }

    /// The values of one field; `name` in any case.
    pub fn all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(|it| it.0.eq_ignore_ascii_case(name)).map(|it| it.1)
    }
}

fn small(place: usize) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}

/// A head that is not one of HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the head of the message cannot be read")]
    Head,
    #[error("the target is too long")]
    TargetTooLong,
    #[error("the head is too large")]
    TooLarge,
    #[error("the connection begins as HTTP/2")]
    Preface,
    #[error("the body's length can be read in two ways")]
    Framing,
}

impl RequestHead {
    /// Takes the next head; `None` if it has not come whole.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn take(inbox: &mut Inbox) -> Result<Option<Self>, Malformed> {
        skip_blank_lines(inbox);
        let Some(end) = end_of_head(inbox.held()) else {
            return refuse_early(inbox.held()).map(|()| None);
        };
        if end > MAX_HEAD {
            return Err(too_large(inbox.held()));
        }
        if inbox.held().starts_with(PREFACE) {
            return Err(Malformed::Preface);
        }
        let head = inbox.take(end);
        let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(&head, &mut fields) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) => return Err(Malformed::Head),
            Err(error) => return Err(fault(error)),
        }
        Self::of(&parsed, &head).map(Some)
    }

    fn of(parsed: &httparse::Request<'_, '_>, head: &Bytes) -> Result<Self, Malformed> {
        let mut parts = Box::new(http::Request::new(()).into_parts().0);
        let method = parsed.method.unwrap_or_default();
        parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| Malformed::Head)?;
        parts.uri = target(parsed.path.unwrap_or_default(), head)?;
        parts.version = version(parsed.version);
        parts.headers = fields(parsed.headers, head)?;
        let told = Told::by(parsed.headers);
        Ok(Self {
            framing: told.request_framing(parts.version)?,
            keeps_alive: told.keeps_alive(parts.version),
            expects_continue: parts.version == Version::HTTP_11 && told.expects_continue,
            parts,
        })
    }
}

impl ResponseHead {
    /// Takes the next head; `None` if it has not come whole. `asked` with HEAD has no body.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn take(inbox: &mut Inbox, asked: &Method) -> Result<Option<Self>, Malformed> {
        let Some(end) = end_of_head(inbox.held()) else {
            return refuse_early_response(inbox.held()).map(|()| None);
        };
        if end > MAX_HEAD {
            return Err(Malformed::TooLarge);
        }
        let head = inbox.take(end);
        let mut room = [const { MaybeUninit::uninit() }; MOST_ANSWERED];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, &head, &mut room) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) => return Err(Malformed::Head),
            Err(error) => return Err(fault(error)),
        }
        let status = StatusCode::from_u16(parsed.code.unwrap_or_default());
        let status = status.map_err(|_| Malformed::Head)?;
        let version = version(parsed.version);
        let told = Told::by(parsed.headers);
        let framing = told.response_framing(status, asked, version)?;
        let keeps_alive = told.keeps_alive(version) && framing != Framing::UntilClose;
        let fields = Fields::of(parsed.headers, head.clone());
        Ok(Some(Self { status, fields, framing, keeps_alive }))
    }
}

/// A backend has no reason for more fields than this.
const MOST_ANSWERED: usize = 100;

/// Blank lines before a request line are skipped (RFC 9112, 2.2).
fn skip_blank_lines(inbox: &mut Inbox) {
    let held = inbox.held();
    let mut blank = 0;
    loop {
        match held.get(blank..) {
            Some([b'\n', ..]) => blank += 1,
            Some([b'\r', b'\n', ..]) => blank += 2,
            _ => break,
        }
    }
    if blank > 0 {
        inbox.skip(blank);
    }
}

/// Behind the first blank line.
fn end_of_head(held: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', held).find_map(|line_end| match held.get(line_end + 1..) {
        Some([b'\n', ..]) => Some(line_end + 2),
        Some([b'\r', b'\n', ..]) => Some(line_end + 3),
        _ => None,
    })
}

/// What cannot become a head any more is refused before the rest of it comes.
fn refuse_early(held: &[u8]) -> Result<(), Malformed> {
    if held.starts_with(PREFACE) {
        return Err(Malformed::Preface);
    }
    if held.len() >= MAX_HEAD {
        return Err(too_large(held));
    }
    // A hello of TLS may be longer than what is looked at.
    if held.first().is_some_and(|first| !first.is_ascii_graphic()) && !held.starts_with(b"\r") {
        return Err(Malformed::Head);
    }
    if held.len() > EAGER || PREFACE.starts_with(held) {
        return Ok(());
    }
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let parsed = httparse::Request::new(&mut []).parse_with_uninit_headers(held, &mut fields);
    parsed.map(|_| ()).map_err(fault)
}

fn refuse_early_response(held: &[u8]) -> Result<(), Malformed> {
    if held.len() >= MAX_HEAD {
        return Err(Malformed::TooLarge);
    }
    let begins = b"HTTP/1.";
    match held.iter().zip(begins).all(|(came, wanted)| came == wanted) {
        true => Ok(()),
        false => Err(Malformed::Head),
    }
}

fn too_large(held: &[u8]) -> Malformed {
    match memchr::memchr(b'\n', held) {
        Some(end) if end < MAX_HEAD => Malformed::TooLarge,
        _ => Malformed::TargetTooLong,
    }
}

fn fault(error: httparse::Error) -> Malformed {
    match error == httparse::Error::TooManyHeaders {
        true => Malformed::TooLarge,
        false => Malformed::Head,
    }
}

fn version(minor: Option<u8>) -> Version {
    match minor {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    }
}

/// A fragment stays with the client (RFC 9110, 7.1); one that comes could hide what is asked for.
fn target(target: &str, head: &Bytes) -> Result<Uri, Malformed> {
    if target.contains('#') {
        return Err(Malformed::Head);
    }
    if target.len() >= usize::from(u16::MAX) {
        return Err(Malformed::TargetTooLong);
    }
    Uri::from_maybe_shared(head.slice_ref(target.as_bytes())).map_err(|_| Malformed::Head)
}

fn fields(parsed: &[Header<'_>], head: &Bytes) -> Result<HeaderMap, Malformed> {
    let mut headers = HeaderMap::with_capacity(parsed.len() + 2);
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Head)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        headers.append(name, value.map_err(|_| Malformed::Head)?);
    }
    Ok(headers)
}

/// What the fields of a head tell of its body and of the connection.
#[derive(Debug, Default)]
struct Told<'a> {
    lengths: Single<'a>,
    codings: Single<'a>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

/// The first value of a field, and whether there are more.
#[derive(Debug, Default)]
struct Single<'a> {
    first: Option<&'a [u8]>,
    more: bool,
}

impl<'a> Single<'a> {
    fn push(&mut self, value: &'a [u8]) {
        self.more |= self.first.is_some();
        self.first.get_or_insert(value);
    }
}

impl<'a> Told<'a> {
    fn by(fields: &[Header<'a>]) -> Self {
        let mut told = Self::default();
        for Header { name, value } in fields {
            // Most names differ in their length already.
            match name.len() {
                14 if name.eq_ignore_ascii_case("content-length") => told.lengths.push(value),
                17 if name.eq_ignore_ascii_case("transfer-encoding") => told.codings.push(value),
                10 if name.eq_ignore_ascii_case("connection") => {
                    for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                        told.close |= option.eq_ignore_ascii_case(b"close");
                        told.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                6 if name.eq_ignore_ascii_case("expect") => {
                    told.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
                }
                _ => {}
            }
        }
        told
    }

    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }

    /// RFC 9112, 6.3; a length beside a coding, two lengths, and every coding but one `chunked` are
    /// errors.
    fn request_framing(&self, version: Version) -> Result<Framing, Malformed> {
        match (self.codings.first.is_some(), self.length()?) {
            (false, length) => Ok(length.map_or(Framing::NOTHING, Framing::Length)),
            (true, None) if version == Version::HTTP_11 && self.is_chunked() => {
                Ok(Framing::CHUNKED)
            }
            (true, _) => Err(Malformed::Framing),
        }
    }

    /// RFC 9112, 6.3; a length beside `chunked` does not count.
    fn response_framing(
        &self,
        status: StatusCode,
        asked: &Method,
        version: Version,
    ) -> Result<Framing, Malformed> {
        let length = self.length()?;
        let bodiless = status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || *asked == Method::HEAD;
        match self.codings.first {
            _ if bodiless => Ok(Framing::NOTHING),
            Some(_) if version == Version::HTTP_11 && self.is_chunked() => Ok(Framing::CHUNKED),
            Some(_) => Err(Malformed::Framing),
            None => Ok(length.map_or(Framing::UntilClose, Framing::Length)),
        }
    }

    fn is_chunked(&self) -> bool {
        let coding = self.codings.first.unwrap_or_default();
        !self.codings.more && coding.trim_ascii().eq_ignore_ascii_case(b"chunked")
    }

    /// One number of digits only; the same number twice is not believed either.
    fn length(&self) -> Result<Option<u64>, Malformed> {
        let Some(digits) = self.lengths.first else { return Ok(None) };
        if self.lengths.more || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Malformed::Framing);
        }
        let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        length.map(Some).ok_or(Malformed::Framing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(bytes: &[u8]) -> Result<Option<RequestHead>, Malformed> {
        RequestHead::take(&mut Inbox::from(bytes))
    }

    fn response(bytes: &str) -> Result<Option<ResponseHead>, Malformed> {
        ResponseHead::take(&mut Inbox::from(bytes.as_bytes()), &Method::GET)
    }

    #[test]
    fn a_head_is_taken_and_what_follows_stays() {
        let bytes = b"\r\nPOST /api/chat?x HTTP/1.1\r\nHost: a#b\r\nContent-Length: 3\r\n\r\n{#}";
        let mut inbox = Inbox::from(&bytes[..]);
        let head = RequestHead::take(&mut inbox).unwrap().unwrap();
        assert_eq!((head.parts.method, head.parts.uri.path()), (Method::POST, "/api/chat"));
        assert_eq!((head.framing, head.keeps_alive), (Framing::Length(3), true));
        assert_eq!(inbox.held(), b"{#}");
        for short in 0..bytes.len() - 3 {
            assert!(request(&bytes[..short]).unwrap().is_none(), "{short}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: +5",
            "Content-Length: 5,5",
            "Content-Length: 0x5",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: \x0bchunked",
            "Content-Length : 5",
            "X: 1\r\n folded",
            "X: a\0b",
        ] {
            let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            assert!(request(bytes.as_bytes()).is_err(), "{fields:?}");
        }
        for line in ["GET /a#b HTTP/1.1", "GET  / HTTP/1.1", "GET / HTTP/1.2", "G\0T / HTTP/1.1"] {
            assert!(request(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()).is_err(), "{line:?}");
        }
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(request(old).unwrap_err(), Malformed::Framing);
    }

    #[test]
    fn garbage_and_too_much_are_refused_before_their_end() {
        assert_eq!(request(b"\x16\x03\x01").unwrap_err(), Malformed::Head);
        let hello = [b"\x16\x03\x01", &[b'a'; 3 * EAGER][..]].concat();
        assert_eq!(request(&hello).unwrap_err(), Malformed::Head);
        assert_eq!(request(b"PRI * HTTP/2.0\r\n\r\nSM").unwrap_err(), Malformed::Preface);
        let line = [b"GET /", &[b'a'; MAX_HEAD][..]].concat();
        assert_eq!(request(&line).unwrap_err(), Malformed::TargetTooLong);
        let field = [b"GET / HTTP/1.1\r\nX: ", &[b'a'; MAX_HEAD][..]].concat();
        assert_eq!(request(&field).unwrap_err(), Malformed::TooLarge);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: 1\r\n".repeat(MOST_FIELDS + 1));
        assert_eq!(request(many.as_bytes()).unwrap_err(), Malformed::TooLarge);
    }

    #[test]
    fn the_end_of_a_connection_is_as_it_was_agreed() {
        for (version, option, kept) in [
            ("1.1", "", true),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let bytes = format!("GET / HTTP/{version}\r\n{option}\r\n");
            assert_eq!(request(bytes.as_bytes()).unwrap().unwrap().keeps_alive, kept, "{bytes}");
        }
    }

    #[test]
    fn an_answer_ends_where_its_head_says() {
        let framing = |head: &str| response(head).map(|head| head.unwrap().framing);
        let ok = "HTTP/1.1 200 OK\r\n";
        assert_eq!(framing(&format!("{ok}Content-Length: 5\r\n\r\n")), Ok(Framing::Length(5)));
        let both = format!("{ok}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(framing(&both), Ok(Framing::CHUNKED));
        assert_eq!(framing(&format!("{ok}\r\n")), Ok(Framing::UntilClose));
        assert_eq!(framing("HTTP/1.1 204 No\r\n\r\n"), Ok(Framing::NOTHING));
        assert_eq!(framing("HTTP/1.1 304\r\nContent-Length: 5\r\n\r\n"), Ok(Framing::NOTHING));
        assert!(framing(&format!("{ok}Content-Length: 5, 4\r\n\r\n")).is_err());
        assert!(framing(&format!("{ok}Transfer-Encoding: gzip, chunked\r\n\r\n")).is_err());
        assert!(response("SSH-2.0").is_err() && response("HTTP/1.").unwrap().is_none());
    }

    #[test]
    fn the_fields_of_an_answer_are_as_they_came() {
        let head = "HTTP/1.1 200 OK\r\nX-One:  1 \r\nx-TWO:\r\nX-one: 3\r\n\r\n";
        let head = response(head).unwrap().unwrap();
        let fields: Vec<_> = head.fields.iter().collect();
        assert_eq!(fields, [(&b"X-One"[..], &b"1"[..]), (b"x-TWO", b""), (b"X-one", b"3")]);
        assert_eq!(head.fields.all(b"x-ONE").collect::<Vec<_>>(), [b"1", b"3"]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = request(&bytes);
            let _ = ResponseHead::take(&mut Inbox::from(&bytes[..]), &Method::GET);
        }

        #[test]
        fn what_is_read_was_there(
            path in "/[a-z/]{0,20}", name in "[A-Za-z-]{1,12}", value in "[ -~]{0,20}",
        ) {
            let bytes = format!("GET {path} HTTP/1.1\r\nX-{name}: {value}\r\n\r\n");
            let head = request(bytes.as_bytes()).unwrap().unwrap();
            prop_assert_eq!(head.parts.uri.path(), &path);
            let read = head.parts.headers.get(format!("x-{name}")).unwrap();
            prop_assert_eq!(read.as_bytes(), value.trim_matches(' ').as_bytes());
        }
    }
}
