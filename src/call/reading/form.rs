//! A form (RFC 7578) of which one field is looked for, wherever it stands.

use std::ops::Range;

use memchr::memmem;

use super::Reading;
use super::scan::{Span, is_folded};
use crate::reject::Reject;

/// Longest boundary (RFC 2046, 5.1.1), and most bytes that the header of one part may have.
const MAX_BOUNDARY: usize = 70;
const MAX_HEADER: usize = 8 * 1024;

const NO_FORM: Reject = Reject::BadBody("this endpoint takes multipart/form-data with a boundary");
const BROKEN: Reject = Reject::BadBody("the form in the body cannot be read");
const TWO_MODELS: Reject = Reject::AmbiguousBody("the form names a model more than once");

impl Reading {
    /// Where the model stands in a form.
    pub(in crate::call) fn form_model(&self) -> Option<Span> {
        self.found()?.form_model
    }
}

/// The value of the field `model`.
///
/// # Errors
/// 400 for a form that could be read in two ways, or not at all.
pub(super) fn model(body: &[u8], content_type: &[u8]) -> Result<Option<Span>, Reject> {
    let boundary = boundary(content_type).ok_or(NO_FORM)?;
    let mut found = None;
    for part in parts(body, boundary)? {
        let bytes = body.get(part.clone()).unwrap_or_default();
        let end =
            memmem::find(bytes.get(..bytes.len().min(MAX_HEADER)).unwrap_or_default(), b"\r\n\r\n");
        let end = end.ok_or(BROKEN)?;
        let header = std::str::from_utf8(bytes.get(..end).unwrap_or_default());
        let Disposition { name, has_file } = disposition(header.map_err(|_| BROKEN)?)?;
        if !is_folded(name, "model") {
            continue;
        }
        if name != "model" || has_file {
            return Err(Reject::AmbiguousBody("the form's field `model` is not a plain one"));
        }
        if found.is_some() {
            return Err(TWO_MODELS);
        }
        let value = part.start + end + 4..part.end;
        let text = std::str::from_utf8(body.get(value.clone()).unwrap_or_default());
        text.map_err(|_| Reject::BadBody("the form's field `model` is not UTF-8"))?;
        found = Some(Span::new(value.start, value.end));
    }
    Ok(found)
}

/// # Errors
/// 400 for a query that names a model: Go's `FormValue` would prefer it to the form's.
pub(super) fn no_model_in(query: Option<&str>) -> Result<(), Reject> {
    let pairs = query.unwrap_or_default().split(['&', ';']);
    for name in pairs.map(|pair| pair.split('=').next().unwrap_or_default()) {
        if is_folded(&unescaped(name), "model") {
            return Err(Reject::AmbiguousBody("the model belongs into the form, not the address"));
        }
    }
    Ok(())
}

fn unescaped(name: &str) -> String {
    let mut bytes = name.bytes();
    let mut plain = Vec::with_capacity(name.len());
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let decoded = (byte == b'%').then(|| Some(digit()? * 16 + digit()?)).flatten();
        plain.push(decoded.and_then(|it| u8::try_from(it).ok()).unwrap_or(byte));
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// The boundary of `multipart/form-data; boundary=…`, with no parameter that changes how it is read.
fn boundary(content_type: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(content_type).ok()?;
    let mut parameters = text.split(';');
    let kind = parameters.next()?.trim_matches([' ', '\t']);
    if !kind.eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut boundary = None;
    for parameter in parameters {
        let (name, value) = parameter.split_once('=')?;
        let name = name.trim_matches([' ', '\t']);
        let value = value.trim_matches([' ', '\t']);
        if name.eq_ignore_ascii_case("boundary") {
            if boundary.is_some() {
                return None;
            }
            boundary = Some(unquoted(value)?);
        } else if !name.eq_ignore_ascii_case("charset") {
            return None;
        }
    }
    let is_one = |it: &&str| {
        (1..=MAX_BOUNDARY).contains(&it.len())
            && it.bytes().all(|b| b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&b))
    };
    boundary.filter(is_one)
}

fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        // RFC 2045, 5.1: these need quotation marks.
        None => (!value.contains(['(', ')', ',', '/', ':', '=', '?', '"'])).then_some(value),
    }
}

/// What stands between the boundaries, headers included. Each place that could be taken for a
/// boundary has to be one.
fn parts(body: &[u8], boundary: &str) -> Result<Vec<Range<usize>>, Reject> {
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    let mut start = None;
    for at in memmem::find_iter(body, delimiter.as_bytes()) {
        let behind = at + delimiter.len();
        let is_at_line = at == 0 || body.get(..at).is_some_and(|it| it.ends_with(b"\r\n"));
        // What stands before the first one is for nobody.
        if !is_at_line || (start.is_none() && at != 0) {
            return Err(BROKEN);
        }
        if let Some(start) = start {
            parts.push(start..at - 2);
        }
        match body.get(behind..).unwrap_or_default() {
            b"--" | b"--\r\n" if start.is_some() => return Ok(parts),
            [b'\r', b'\n', ..] => start = Some(behind + 2),
            _ => return Err(BROKEN),
        }
        if parts.len() > MAX_PARTS {
            return Err(BROKEN);
        }
    }
    Err(BROKEN)
}

/// More fields than any transcription has.
const MAX_PARTS: usize = 128;

struct Disposition<'a> {
    name: &'a str,
    has_file: bool,
}

/// The name of a part, from header lines that everybody reads alike.
fn disposition(header: &str) -> Result<Disposition<'_>, Reject> {
    let mut found = None;
    for line in header.split("\r\n") {
        let (name, value) = line.split_once(':').ok_or(BROKEN)?;
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if name.is_empty() || !name.bytes().all(is_token) || value.contains(['\r', '\n', '\0']) {
            return Err(BROKEN);
        }
        let value = value.trim_matches([' ', '\t']);
        if name.eq_ignore_ascii_case("content-transfer-encoding") {
            // Go would decode the part.
            let is_plain =
                ["binary", "8bit", "7bit"].iter().any(|it| value.eq_ignore_ascii_case(it));
            if !is_plain {
                return Err(BROKEN);
            }
        }
        if name.eq_ignore_ascii_case("content-disposition") {
            if found.is_some() {
                return Err(BROKEN);
            }
            found = Some(parameters(value).ok_or(BROKEN)?);
        }
    }
    found.ok_or(BROKEN)
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `form-data; name="…"; filename="…"`. A mark within a value would have to be escaped, and readers
/// differ in how.
fn parameters(value: &str) -> Option<Disposition<'_>> {
    let (kind, mut rest) = value.split_once(';')?;
    if !kind.trim_matches([' ', '\t']).eq_ignore_ascii_case("form-data") {
        return None;
    }
    let (mut name, mut has_file) = (None, false);
    loop {
        let (key, behind) = rest.split_once('=')?;
        let key = key.trim_matches([' ', '\t']);
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => {
                let (value, behind) = behind.split_at(behind.find(';').unwrap_or(behind.len()));
                // What is no token, such as one behind a blank, is cut or trimmed by some.
                let value = value.trim_end_matches([' ', '\t']);
                (Some(value).filter(|it| !it.is_empty() && it.bytes().all(is_token))?, behind)
            }
        };
        if value.ends_with('\\') || value.contains('"') {
            return None;
        }
        match () {
            () if key.eq_ignore_ascii_case("name") && name.is_none() && !value.contains('\\') => {
                name = Some(value);
            }
            () if key.eq_ignore_ascii_case("filename") && !has_file => has_file = true,
            // The same once more, in another spelling (RFC 5987).
            () if key.eq_ignore_ascii_case("filename*") => has_file = true,
            () => return None,
        }
        let behind = behind.trim_matches([' ', '\t']);
        match behind.strip_prefix(';') {
            Some(more) => rest = more,
            None if behind.is_empty() => break,
            None => return None,
        }
    }
    name.map(|name| Disposition { name, has_file })
}
