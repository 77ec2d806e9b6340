//! The head of an answer, and how the end of its body is told.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header, response};

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
        length: Option<u64>,
        outbox: &mut Outbox,
    ) -> Ending {
        let ending = self.ending(parts, length);
        self.stays &= ending != Ending::Close && !says_close(&parts.headers);
        let text = outbox.text();
        push_status(text, self.version, parts.status);
        push_fields(text, &parts.headers, parts.status);
        match (ending, length) {
            _ if parts.headers.contains_key(header::CONTENT_LENGTH) => {}
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
fn push_fields(text: &mut Vec<u8>, headers: &HeaderMap, status: StatusCode) {
    for (name, value) in headers {
        let lengthless = *name == header::CONTENT_LENGTH && status == StatusCode::NO_CONTENT;
        if *name != header::CONNECTION && *name != header::TRANSFER_ENCODING && !lengthless {
            push_field(text, name, value.as_bytes());
        }
    }
    if !headers.contains_key(header::DATE) {
        text.extend_from_slice(b"date: ");
        push_date(text);
        text.extend_from_slice(b"\r\n");
    }
}

/// Appends one field; `value` must be one that a `HeaderValue` may hold.
pub fn push_field(text: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    text.extend_from_slice(name.as_str().as_bytes());
    text.extend_from_slice(b": ");
    text.extend_from_slice(value);
    text.extend_from_slice(b"\r\n");
}

/// The date in its fixed form (RFC 9110, 5.6.7), worked out once a second and thread.
fn push_date(text: &mut Vec<u8>) {
    thread_local! {
        static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    NOW.with_borrow_mut(|(second, date)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            *date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(*second));
        }
        text.extend_from_slice(date.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Response};

    use super::*;

    fn head(form: &mut Form, parts: &response::Parts, length: Option<u64>) -> (String, Ending) {
        let mut outbox = Outbox::default();
        let ending = form.push_head(parts, length, &mut outbox);
        (String::from_utf8(outbox.text().clone()).unwrap(), ending)
    }

    fn parts(status: u16, fields: &[(&'static str, &'static str)]) -> response::Parts {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields {
            parts.headers.append(*name, HeaderValue::from_static(value));
        }
        parts
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
            let (text, was) = head(&mut form, &parts(status, &[("date", "now")]), length);
            assert_eq!((was, form.stays), (ending, stays), "{text}");
            let version = if form.version == Version::HTTP_10 { "1.0" } else { "1.1" };
            let reason = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap();
            let line = if line.is_empty() { String::new() } else { format!("{line}\r\n") };
            assert_eq!(
                text,
                format!("HTTP/{version} {status} {reason}\r\ndate: now\r\n{line}\r\n")
            );
        }
    }

    #[test]
    fn what_belongs_to_a_connection_is_said_once_and_by_us() {
        let mut form = Form::of(&Method::GET, Version::HTTP_11, true);
        let fields = [
            ("content-length", "5"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("date", "now"),
        ];
        let (text, ending) = head(&mut form, &parts(299, &fields), Some(5));
        assert_eq!(
            text,
            "HTTP/1.1 299 \r\ncontent-length: 5\r\nx-a: 1\r\nx-a: 2\r\ndate: now\r\n\
             connection: close\r\n\r\n"
        );
        assert_eq!((ending, form.stays), (Ending::Length, false));
        let (text, _) = head(&mut form, &parts(204, &fields), Some(5));
        assert!(!text.contains("content-length"), "{text}");
    }

    #[test]
    fn an_answer_without_a_date_gets_todays() {
        let mut form = Form::of(&Method::GET, Version::HTTP_11, true);
        let (text, _) = head(&mut form, &parts(200, &[]), None);
        let date = text.lines().find_map(|line| line.strip_prefix("date: ")).unwrap();
        let date = httpdate::parse_http_date(date).unwrap();
        assert!(date.elapsed().unwrap() < Duration::from_secs(60));
    }
}
