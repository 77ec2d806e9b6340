//! How a line is written: for people, and as JSON.

use std::cell::RefCell;
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

pub(super) fn json_line(line: &Line, out: &mut String) {
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
    out.push_str(&serde_json::to_string(&json).unwrap_or_default());
    out.push('\n');
}

pub(super) fn text_line(line: &Line, out: &mut String) {
    let mut digits = itoa::Buffer::new();
    push_time(line.time, out);
    word(line.id.as_str(), out);
    match line.client {
        Some(client) => word(IpText::from(client).as_str(), out),
        None => word("-", out),
    }
    plain(line.name.as_ref().map_or("-", Name::as_str), out);
    word(line.credential.map_or("-", Credential::as_str), out);
    plain(line.method.as_ref().map_or("-", Method::as_str), out);
    plain(&line.path, out);
    word(line.operation.unwrap_or("-"), out);
    plain(line.model.as_deref().unwrap_or("-"), out);
    plain(line.backend.as_deref().unwrap_or("-"), out);
    word(digits.format(line.status), out);
    word(line.outcome.code().unwrap_or("-"), out);
    word(line.outcome.kind(), out);
    if let Outcome::Refused(code) = line.outcome {
        out.push(':');
        out.push_str(code);
    }
    out.push_str(" in=");
    out.push_str(digits.format(line.bytes_in));
    out.push_str(" out=");
    out.push_str(digits.format(line.bytes_out));
    push_millis(" queue=", Some(line.queue), out);
    push_millis(" first=", line.first_byte, out);
    push_millis(" total=", Some(line.total), out);
    if let Some(position) = line.position {
        out.push_str(" position=");
        out.push_str(digits.format(position));
    }
    out.push('\n');
}

/// A word that holds nothing to escape.
fn word(value: &str, out: &mut String) {
    out.push(' ');
    out.push_str(value);
}

/// One word: what would break a line or a column, or a terminal, is escaped.
fn plain(value: &str, out: &mut String) {
    out.push(' ');
    let value = short(value);
    if value.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        out.push_str(value);
        return;
    }
    for c in value.chars() {
        if c == ' ' || c == '\\' || c.is_control() {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
}

/// With one decimal.
fn push_millis(field: &str, time: Option<Duration>, out: &mut String) {
    out.push_str(field);
    let Some(time) = time else {
        out.push('-');
        return;
    };
    let tenths = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).saturating_add(50) / 100;
    let mut digits = itoa::Buffer::new();
    out.push_str(digits.format(tenths / 10));
    out.push('.');
    out.push_str(digits.format(tenths % 10));
    out.push_str("ms");
}

pub(super) fn short(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    let mut text = String::new();
    push_time(time, &mut text);
    text
}

/// RFC 3339 with milliseconds; what stands before those is worked out once a second and thread.
pub(super) fn push_time(time: SystemTime, out: &mut String) {
    thread_local! {
        static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != time.as_second() {
            *second = time.as_second();
            *text = format!("{time:.0}");
        }
        out.push_str(text.trim_end_matches('Z'));
    });
    let mut digits = itoa::Buffer::new();
    // Never less than three digits, of which the first goes.
    let millis = digits.format(1_000 + time.subsec_millisecond().max(0));
    out.push('.');
    out.push_str(millis.get(1..).unwrap_or_default());
    out.push('Z');
}

pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
