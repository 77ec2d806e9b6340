//! The strict reading of a request's head.

use http::request::Parts;
use http::uri::Uri;
use http::{HeaderMap, Version, header};

use crate::api::{MAX_TARGET, Target};
use crate::reject::Reject;

/// Header fields of one request, names and values and their separators.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
pub const MAX_HEADERS: usize = 100;

/// Reads a request's head as strictly as a guard must: whatever could be read in two ways is refused
/// here, if `http1` could read it at all.
///
/// # Errors
/// 400, 414, 417, 421, 431.
pub fn strict(parts: &Parts) -> Result<Target, Reject> {
    let Parts { uri, headers, version, .. } = parts;
    if uri.path_and_query().map_or(0, |target| target.as_str().len()) > MAX_TARGET {
        return Err(Reject::TargetTooLong);
    }
    sizes(headers)?;
    host(uri, headers, *version)?;
    framing(headers, *version)?;
    // In most requests nothing came twice.
    if headers.len() > headers.keys_len() {
        once_only(headers)?;
    }
    if headers
        .get(header::EXPECT)
        .is_some_and(|it| !it.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Reject::BadExpectation);
    }
    Target::read(uri.path())
}

fn once_only(headers: &HeaderMap) -> Result<(), Reject> {
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::EXPECT] {
        if headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Reject::BadRequest("a header that may be sent once only came twice"));
        }
    }
    Ok(())
}

fn sizes(headers: &HeaderMap) -> Result<(), Reject> {
    // Name, colon, blank, value, CR, LF.
    let bytes: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if bytes > MAX_HEADER_BYTES || headers.len() > MAX_HEADERS {
        return Err(Reject::HeadersTooLarge);
    }
    Ok(())
}

/// Exactly one Host in HTTP/1.1 (RFC 9112, 3.2), no more than one in 1.0; an absolute target must
/// name the same host.
fn host(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<(), Reject> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.as_bytes(),
        (None, None) if version == Version::HTTP_10 => b"",
        (None, None) => return Err(Reject::BadRequest("a Host header is needed")),
        _ => return Err(Reject::BadRequest("the Host header was sent twice")),
    };
    if !is_authority(host) || (host.is_empty() && version != Version::HTTP_10) {
        return Err(Reject::BadRequest("the Host header cannot be read"));
    }
    if let Some(authority) = uri.authority() {
        if !uri.scheme_str().is_some_and(|scheme| matches!(scheme, "http" | "https")) {
            return Err(Reject::BadRequest("the target's scheme is not HTTP"));
        }
        if !authority.as_str().as_bytes().eq_ignore_ascii_case(host) {
            return Err(Reject::WrongHost);
        }
    }
    Ok(())
}

/// Host and port, without user information (RFC 3986, 3.2.2).
fn is_authority(host: &[u8]) -> bool {
    host.len() <= 255
        && host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]!$&'()*+,;=%".contains(b))
}

/// `Transfer-Encoding` is exactly `chunked`, once (RFC 9112, 6.1). `http1` frames by the same
/// rules; a head that was read by another version of HTTP is held to them here.
fn framing(headers: &HeaderMap, version: Version) -> Result<(), Reject> {
    if version == Version::HTTP_2 && headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()
    {
        return Err(Reject::BadRequest("the body's length was sent twice"));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(Reject::BadRequest("the transfer coding must be chunked, once"));
    }
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Reject::BadRequest("a length and a transfer coding contradict each other"));
    }
    Ok(())
}
