//! How a line is written: for people, and as JSON.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::Method;
use serde::Serialize;

use super::{Line, Outcome};
use crate::auth::{Credential, Name};
use crate::client_addr::IpText;

/// Longest text of a caller's that a line repeats, in bytes.
pub(super) const LONGEST_TEXT: usize = 256;

#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    id: &'a str,
    client: Option<IpAddr>,
    name: Option<&'a str>,
    credential: Option<&'a str>,
    method: Option<&'a str>,
    path: &'a str,
    operation: Option<&'a str>,
    model: Option<&'a str>,
    backend: Option<&'a str>,
    status: u16,
    code: Option<&'a str>,
    outcome: String,
    bytes_in: u64,
    bytes_out: u64,
    queue_ms: f64,
    first_byte_ms: Option<f64>,
    total_ms: f64,
    position: Option<usize>,
}

pub(super) fn json_line(line: &Line, out: &mut Vec<u8>) {
    let json = JsonLine {
        time: rfc3339(line.time),
        id: line.id.as_str(),
        client: line.client,
        name: line.name.as_ref().map(|it| short(it.as_str())),
        credential: line.credential.map(Credential::as_str),
        method: line.method.as_ref().map(|it| short(it.as_str())),
        path: short(&line.path),
        operation: line.operation,
        model: line.model.as_deref().map(short),
        backend: line.backend.as_deref(),
        status: line.status,
        code: line.outcome.code(),
        outcome: line.outcome.to_string(),
        bytes_in: line.bytes_in,
        bytes_out: line.bytes_out,
        queue_ms: millis(line.queue),
        first_byte_ms: line.first_byte.map(millis),
        total_ms: millis(line.total),
        position: line.position,
    };
    // Strings, numbers and nulls always serialize.
    let _ = serde_json::to_writer(&mut *out, &json);
    out.push(b'\n');
}

pub(super) fn text_line(line: &Line, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    push_time(line.time, out);
    word(line.id.as_bytes(), out);
    match line.client {
        Some(client) => word(IpText::from(client).as_bytes(), out),
        None => word(b"-", out),
    }
    match &line.name {
        Some(Name::Given(name)) => plain(name, out),
        Some(Name::OfKey(name)) => word(name, out),
        None => word(b"-", out),
    }
    word(line.credential.map_or("-", Credential::as_str).as_bytes(), out);
    plain(line.method.as_ref().map_or("-", Method::as_str), out);
    plain(&line.path, out);
    word(line.operation.unwrap_or("-").as_bytes(), out);
    plain(line.model.as_deref().unwrap_or("-"), out);
    plain(line.backend.as_deref().unwrap_or("-"), out);
    word(digits.format(line.status).as_bytes(), out);
    word(line.outcome.code().unwrap_or("-").as_bytes(), out);
    word(line.outcome.kind().as_bytes(), out);
    if let Outcome::Refused(code) = line.outcome {
        out.push(b':');
        out.extend_from_slice(code.as_bytes());
    }
    out.extend_from_slice(b" in=");
    out.extend_from_slice(digits.format(line.bytes_in).as_bytes());
    out.extend_from_slice(b" out=");
    out.extend_from_slice(digits.format(line.bytes_out).as_bytes());
    push_millis(b" queue=", Some(line.queue), out);
    push_millis(b" first=", line.first_byte, out);
    push_millis(b" total=", Some(line.total), out);
    if let Some(position) = line.position {
        out.extend_from_slice(b" position=");
        out.extend_from_slice(digits.format(position).as_bytes());
    }
    out.push(b'\n');
}

/// A word that holds nothing to escape.
fn word(value: &[u8], out: &mut Vec<u8>) {
    out.push(b' ');
    out.extend_from_slice(value);
}

/// One word: what would break a line or a column, or a terminal, is escaped.
fn plain(value: &str, out: &mut Vec<u8>) {
    let value = short(value);
    if value.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return word(value.as_bytes(), out);
    }
    out.push(b' ');
    for c in value.chars() {
        // Writing into a vector cannot fail.
        let _ = match c == ' ' || c == '\\' || c.is_control() {
            true => write!(out, "{}", c.escape_unicode()),
            false => write!(out, "{c}"),
        };
    }
}

/// With one decimal.
fn push_millis(field: &[u8], time: Option<Duration>, out: &mut Vec<u8>) {
    out.extend_from_slice(field);
    let Some(time) = time else { return out.push(b'-') };
    let tenths = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).saturating_add(50) / 100;
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(digits.format(tenths / 10).as_bytes());
    out.extend_from_slice(&[b'.', b'0' + (tenths % 10) as u8, b'm', b's']);
}

pub(super) fn short(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    let mut text = Vec::new();
    push_time(time, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// RFC 3339 with milliseconds; what stands before those is worked out once a second and thread.
fn push_time(time: SystemTime, out: &mut Vec<u8>) {
    thread_local! {
        static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != time.as_second() {
            *second = time.as_second();
            *text = format!("{time:.0}");
        }
        out.extend_from_slice(text.trim_end_matches('Z').as_bytes());
    });
    let mut digits = itoa::Buffer::new();
    // Never less than three digits, of which the first goes.
    let millis = digits.format(1_000 + time.subsec_millisecond().max(0));
    out.push(b'.');
    out.extend_from_slice(millis.get(1..).unwrap_or_default().as_bytes());
    out.push(b'Z');
}

pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
