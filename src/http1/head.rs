//! The head of a message, read strictly: what could be read in two ways is malformed.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
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
    pub parts: Parts,
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
    pub headers: HeaderMap,
    pub framing: Framing,
    pub keeps_alive: bool,
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
        let (mut parts, ()) = http::Request::new(()).into_parts();
        let method = parsed.method.unwrap_or_default();
        parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| Malformed::Head)?;
        parts.uri = target(parsed.path.unwrap_or_default(), head)?;
        parts.version = version(parsed.version);
        parts.headers = fields(parsed.headers, head)?;
        let framing = request_framing(&parts.headers, parts.version)?;
        let expectation = parts.headers.get(header::EXPECT).map(HeaderValue::as_bytes);
        Ok(Self {
            framing,
            keeps_alive: keeps_alive(&parts.headers, parts.version),
            expects_continue: parts.version == Version::HTTP_11
                && expectation.is_some_and(|it| it.eq_ignore_ascii_case(b"100-continue")),
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
        let headers = fields(parsed.headers, &head)?;
        let version = version(parsed.version);
        let framing = response_framing(&headers, status, asked, version)?;
        let keeps_alive = keeps_alive(&headers, version) && framing != Framing::UntilClose;
        Ok(Some(Self { status, headers, framing, keeps_alive }))
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

/// RFC 9112, 6.3; a length beside a coding, two lengths, and every coding but one `chunked` are
/// errors.
fn request_framing(headers: &HeaderMap, version: Version) -> Result<Framing, Malformed> {
    match (headers.contains_key(header::TRANSFER_ENCODING), length(headers)?) {
        (false, length) => Ok(length.map_or(Framing::NOTHING, Framing::Length)),
        (true, None) if version == Version::HTTP_11 && is_chunked(headers) => Ok(Framing::CHUNKED),
        (true, _) => Err(Malformed::Framing),
    }
}

/// RFC 9112, 6.3; a length beside `chunked` does not count.
fn response_framing(
    headers: &HeaderMap,
    status: StatusCode,
    asked: &Method,
    version: Version,
) -> Result<Framing, Malformed> {
    let length = length(headers)?;
    let bodiless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || *asked == Method::HEAD;
    if bodiless {
        return Ok(Framing::NOTHING);
    }
    match headers.contains_key(header::TRANSFER_ENCODING) {
        true if version == Version::HTTP_11 && is_chunked(headers) => Ok(Framing::CHUNKED),
        true => Err(Malformed::Framing),
        false => Ok(length.map_or(Framing::UntilClose, Framing::Length)),
    }
}

fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next().map(HeaderValue::as_bytes).unwrap_or_default();
    codings.next().is_none() && coding.trim_ascii().eq_ignore_ascii_case(b"chunked")
}

/// One number of digits only; the same number twice is not believed either.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    let digits = length.as_bytes();
    if lengths.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Framing);
    }
    let length = length.to_str().ok().and_then(|digits| digits.parse::<u64>().ok());
    length.map(Some).ok_or(Malformed::Framing)
}

fn keeps_alive(headers: &HeaderMap, version: Version) -> bool {
    let says = |word: &[u8]| {
        headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|b| *b == b','))
            .any(|option| option.trim_ascii().eq_ignore_ascii_case(word))
    };
    match version {
        Version::HTTP_11 => !says(b"close"),
        _ => says(b"keep-alive") && !says(b"close"),
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
