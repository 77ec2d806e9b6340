//! The head of an answer, and how the end of its body is told.

use std::cell::RefCell;
use std::io::Write as _;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, response};

use super::Outbox;

/// How a caller knows where a body ends (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No body goes out, whatever the head says of its length.
    Bodiless,
    Length,
    Chunked,
    /// HTTP/1.0 knows no chunks.
    Close,
}

/// Fields of a backend's answer that are passed on as they came.
#[derive(Debug, Default)]
pub struct FieldLines {
    lines: Vec<u8>,
    /// Where the value of `Content-Type` stands in `lines`.
    kind: Range<usize>,
    has_date: bool,
    has_length: bool,
    is_encoded: bool,
}

impl FieldLines {
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self { lines: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// `value` must be one that a `HeaderValue` may hold.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.has_date |= name.eq_ignore_ascii_case(b"date");
        self.has_length |= name.eq_ignore_ascii_case(b"content-length");
        self.is_encoded |= name.eq_ignore_ascii_case(b"content-encoding")
            && !value.eq_ignore_ascii_case(b"identity");
        push_line(&mut self.lines, name, value);
        if name.eq_ignore_ascii_case(b"content-type") {
            let end = self.lines.len() - 2;
            self.kind = end - value.len()..end;
        }
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        fields_of(&self.lines)
    }

    /// The same as a map, whose values stay where they are.
    #[must_use]
    pub fn into_map(self) -> HeaderMap {
        let lines = Bytes::from(self.lines);
        let mut map = HeaderMap::with_capacity(16);
        for (name, value) in fields_of(&lines) {
            let name = HeaderName::from_bytes(name);
            if let (Ok(name), Ok(value)) =
                (name, HeaderValue::from_maybe_shared(lines.slice_ref(value)))
            {
                // A backend that answered with thousands of fields was refused long ago.
                let _ = map.try_append(name, value);
            }
        }
        map
    }

    #[must_use]
    pub fn has_date(&self) -> bool {
        self.has_date
    }

    #[must_use]
    pub fn has_length(&self) -> bool {
        self.has_length
    }

    /// Its bytes are not what they stand for, by `Content-Encoding`.
    #[must_use]
    pub fn is_encoded(&self) -> bool {
        self.is_encoded
    }

    /// The value of `Content-Type`; empty without one.
    #[must_use]
    pub fn kind(&self) -> &[u8] {
        self.lines.get(self.kind.clone()).unwrap_or_default()
    }
}

fn fields_of(lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut from = 0;
    let lines = memchr::memchr_iter(b'\n', lines).filter_map(move |end| {
        let line = lines.get(from..end);
        from = end + 1;
        line?.strip_suffix(b"\r")
    });
    lines.filter_map(|line| {
        let (name, value) = line.split_at_checked(memchr::memchr(b':', line)?)?;
        Some((name, value.strip_prefix(b": ")?))
    })
}

/// What of a request decides the form of its answer.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub version: Version,
    /// Asked with HEAD.
    pub bodiless: bool,
    /// Another request may follow on the connection.
    pub stays: bool,
}

impl Form {
    #[must_use]
    pub fn of(method: &Method, version: Version, stays: bool) -> Self {
        Self { version, bodiless: *method == Method::HEAD, stays }
    }

    /// Appends a head to `outbox`; `length` is the body's, where that is known. Changes `stays`.
    pub fn push_head(
        &mut self,
        parts: &response::Parts,
        passed: &FieldLines,
        length: Option<u64>,
        outbox: &mut Outbox,
    ) -> Ending {
        let ending = self.ending(parts, length);
        self.stays &= ending != Ending::Close && !says_close(&parts.headers);
        let text = outbox.text();
        push_status(text, self.version, parts.status);
        text.extend_from_slice(&passed.lines);
        push_fields(text, &parts.headers);
        if !passed.has_date {
            push_date(text);
        }
        match (ending, length) {
            _ if passed.has_length => {}
            (Ending::Chunked, _) => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            // An answer to HEAD may leave the length open, and 204 and 304 have none to tell.
            (Ending::Bodiless, None | Some(0)) | (Ending::Close | Ending::Length, None) => {}
            (Ending::Bodiless | Ending::Length | Ending::Close, Some(length)) => {
                // Writing into a vector cannot fail.
                let _ = write!(text, "content-length: {length}\r\n");
            }
        }
        match (self.stays, self.version) {
            (false, _) => text.extend_from_slice(b"connection: close\r\n"),
            (true, Version::HTTP_10) => text.extend_from_slice(b"connection: keep-alive\r\n"),
            (true, _) => {}
        }
        text.extend_from_slice(b"\r\n");
        ending
    }

    fn ending(&self, parts: &response::Parts, length: Option<u64>) -> Ending {
        if self.bodiless || matches!(parts.status.as_u16(), 204 | 304) {
            Ending::Bodiless
        } else if length.is_some() {
            Ending::Length
        } else if self.version == Version::HTTP_10 {
            Ending::Close
        } else {
            Ending::Chunked
        }
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get(header::CONNECTION).is_some_and(|it| it.as_bytes() == b"close")
}

fn push_status(text: &mut Vec<u8>, version: Version, status: StatusCode) {
    text.extend_from_slice(match version {
        Version::HTTP_10 => b"HTTP/1.0 ",
        _ => b"HTTP/1.1 ",
    });
    text.extend_from_slice(status.as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    text.extend_from_slice(b"\r\n");
}

/// All fields but those that belong to the connection.
fn push_fields(text: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        if *name != header::CONNECTION && *name != header::TRANSFER_ENCODING {
            push_field(text, name, value.as_bytes());
        }
    }
}

/// Appends one field; `value` must be one that a `HeaderValue` may hold.
pub fn push_field(text: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    push_line(text, name.as_str().as_bytes(), value);
}

fn push_line(text: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    text.reserve(name.len() + value.len() + 4);
    text.extend_from_slice(name);
    text.extend_from_slice(b": ");
    text.extend_from_slice(value);
    text.extend_from_slice(b"\r\n");
}

fn push_date(text: &mut Vec<u8>) {
    with_date(|date| push_line(text, b"date", date.as_bytes()));
}

/// The value of `Date` (RFC 9110, 6.6.1), worked out once a second and thread.
pub fn with_date<T>(tell: impl FnOnce(&str) -> T) -> T {
    thread_local! {
        static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    NOW.with_borrow_mut(|(second, date)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            *date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(*second));
        }
        tell(date)
    })
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn head(
        form: &mut Form,
        status: u16,
        passed: &[(&str, &str)],
        length: Option<u64>,
    ) -> (String, Ending) {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = StatusCode::from_u16(status).unwrap();
        parts.headers.insert("x-own", HeaderValue::from_static("1"));
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("x"));
        let mut fields = FieldLines::default();
        for (name, value) in passed {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        let mut outbox = Outbox::default();
        let ending = form.push_head(&parts, &fields, length, &mut outbox);
        (String::from_utf8(outbox.text().clone()).unwrap(), ending)
    }

    #[test]
    fn the_end_of_a_body_is_told_as_the_caller_understands_it() {
        let get = Form::of(&Method::GET, Version::HTTP_11, true);
        let head_request = Form::of(&Method::HEAD, Version::HTTP_11, true);
        let old = Form::of(&Method::GET, Version::HTTP_10, true);
        for (mut form, status, length, ending, line, stays) in [
            (get, 200, Some(5), Ending::Length, "content-length: 5", true),
            (get, 200, Some(0), Ending::Length, "content-length: 0", true),
            (get, 200, None, Ending::Chunked, "transfer-encoding: chunked", true),
            (get, 204, Some(0), Ending::Bodiless, "", true),
            (get, 304, None, Ending::Bodiless, "", true),
            (head_request, 200, Some(5), Ending::Bodiless, "content-length: 5", true),
            (head_request, 200, None, Ending::Bodiless, "", true),
            (
                old,
                200,
                Some(5),
                Ending::Length,
                "content-length: 5\r\nconnection: keep-alive",
                true,
            ),
            (old, 200, None, Ending::Close, "connection: close", false),
        ] {
            let (text, was) = head(&mut form, status, &[("Date", "now")], length);
            assert_eq!((was, form.stays), (ending, stays), "{text}");
            let version = if form.version == Version::HTTP_10 { "1.0" } else { "1.1" };
            let reason = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap();
            let line = if line.is_empty() { String::new() } else { format!("{line}\r\n") };
            let top = format!("HTTP/{version} {status} {reason}\r\nDate: now\r\nx-own: 1\r\n");
            assert_eq!(text, format!("{top}{line}\r\n"));
        }
    }

    #[test]
    fn what_was_passed_is_not_said_again() {
        let mut form = Form::of(&Method::HEAD, Version::HTTP_11, false);
        let passed = [("X-A", "1"), ("X-A", "2"), ("Content-Length", "7"), ("DATE", "now")];
        let (text, ending) = head(&mut form, 299, &passed, Some(0));
        assert_eq!(
            text,
            "HTTP/1.1 299 \r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 7\r\nDATE: now\r\n\
             x-own: 1\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(ending, Ending::Bodiless);
    }

    #[test]
    fn the_kind_of_an_answer_is_found_among_its_fields() {
        let mut passed = FieldLines::default();
        assert_eq!(passed.kind(), b"");
        for (name, value) in [("X", "1"), ("Content-TYPE", "text/plain"), ("Y", "2")] {
            passed.push(name.as_bytes(), value.as_bytes());
        }
        assert_eq!(passed.kind(), b"text/plain");
    }

    #[test]
    fn what_was_passed_can_be_read_again() {
        let fields = [("X-A", "1"), ("x", ""), ("Y", "a: b"), ("Z", "caf\u{e9}: \t")];
        let mut passed = FieldLines::default();
        assert_eq!(passed.iter().count(), 0);
        for (name, value) in fields {
            passed.push(name.as_bytes(), value.as_bytes());
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let read: Vec<_> = passed.iter().map(|it| (text(it.0), text(it.1))).collect();
        assert_eq!(read, fields.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(!passed.has_date() && !passed.has_length());
        passed.push(b"DATE", b"now");
        passed.push(b"content-Length", b"1");
        assert!(passed.has_date() && passed.has_length() && !passed.is_encoded());
        passed.push(b"content-encoding", b"Identity");
        assert!(!passed.is_encoded());
        passed.push(b"Content-Encoding", b"gzip");
        assert!(passed.is_encoded());
        let map = passed.into_map();
        assert_eq!(map.len(), 8);
        assert_eq!(map.get_all("x-a").iter().count(), 1);
        assert_eq!(
            (map["y"].as_bytes(), map["z"].as_bytes()),
            (&b"a: b"[..], "caf\u{e9}: \t".as_bytes())
        );
        let encodings: Vec<_> = map.get_all("content-encoding").iter().collect();
        assert_eq!(encodings, ["Identity", "gzip"]);
    }

    #[test]
    fn an_answer_without_a_date_gets_todays() {
        let mut form = Form::of(&Method::GET, Version::HTTP_11, true);
        let (text, _) = head(&mut form, 200, &[], None);
        let date = text.lines().find_map(|line| line.strip_prefix("date: ")).unwrap();
        let date = httpdate::parse_http_date(date).unwrap();
        assert!(date.elapsed().unwrap() < Duration::from_secs(60));
    }
}
