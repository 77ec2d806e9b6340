//! The forms of values: addresses, durations, sizes, endpoints, origins.

use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use http::Method;
use http::uri::Uri;

use super::ExtraEndpoint;

/// Where a backend answers, over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendUrl {
    /// Without the brackets of IPv6.
    pub host: String,
    pub port: u16,
}

impl BackendUrl {
    /// Host and port as a `Host` header has them (RFC 9110, 7.2); the port of HTTP is left out.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { host, port } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == 80 { host } else { format!("{host}:{port}") }
    }
}

/// What is wrong with a backend's address; never repeats it, for it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("not an address; write it as http://127.0.0.1:11434")]
    NoUrl,
    #[error("https to a backend is not yet known to this version; use http on a private network")]
    Https,
    #[error("it must begin with http://")]
    Scheme,
    #[error("a login in the address is not sent; put the backend's key in `backend.key_file`")]
    UserInfo,
    #[error("only scheme, host and port; leave out what follows, paths are the caller's")]
    Path,
}

impl FromStr for BackendUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let uri: Uri = text.parse().map_err(|_| BadUrl::NoUrl)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(BadUrl::Https),
            _ => return Err(BadUrl::Scheme),
        }
        let authority = uri.authority().ok_or(BadUrl::NoUrl)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::UserInfo);
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(BadUrl::Path);
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bare.is_some_and(|bare| bare.parse::<Ipv6Addr>().is_err()) || host.is_empty() {
            return Err(BadUrl::NoUrl);
        }
        // `host:` and `host:99999` have no port that can be read.
        let tail = authority.as_str().get(host.len()..).unwrap_or_default();
        if !tail.is_empty() && authority.port_u16().is_none() {
            return Err(BadUrl::NoUrl);
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self { host: bare.unwrap_or(host).to_owned(), port })
    }
}

pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    if text.starts_with("unix:") {
        return Err("sockets of the file system are not yet known to this version".to_owned());
    }
    text.parse()
        .map_err(|_| format!("{text:?} is not ADDRESS:PORT; write it as 0.0.0.0:8880 or [::]:8880"))
}

/// `500ms`, `10s`, `2m`, `1h`, `400d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let number = number.parse::<u64>().ok().filter(|_| millis > 0);
    let whole = number.and_then(|number| number.checked_mul(millis));
    // Clocks add to it; a century is long enough.
    let whole = whole.filter(|whole| *whole <= 100 * 365 * 86_400_000);
    whole.map(Duration::from_millis).ok_or_else(|| {
        format!("{text:?} is not a duration; write it as 500ms, 10s, 2m, 1h or 400d")
    })
}

/// `100MiB`, `1GiB`, `64KiB`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes <= 1 << 50).ok_or_else(|| {
        format!("{text:?} is not a size; write it as 64KiB, 100MiB, 1GiB or in bytes")
    })
}

/// `GET /api/x`.
pub(super) fn endpoint(text: &str) -> Result<ExtraEndpoint, String> {
    let wrong = || format!("{text:?} is not an endpoint; write it as \"GET /api/x\"");
    let (method, path) = text.split_once(' ').ok_or_else(wrong)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| wrong())?;
    let letters = method.as_str().bytes().all(|b| b.is_ascii_uppercase());
    if !letters || matches!(method, Method::CONNECT | Method::TRACE) {
        return Err(format!("{method} is not a method that can be opened"));
    }
    let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~:@".contains(&b));
    let dots = path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."));
    if !path.starts_with('/') || !plain || dots {
        return Err(wrong());
    }
    Ok(ExtraEndpoint { method, path: path.to_owned() })
}

/// Scheme, host and port, as a browser sends them.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let bare = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .or_else(|| text.split_once("://").map(|(_, rest)| rest));
    match bare {
        Some(host) if !host.is_empty() && !host.contains(['/', ' ', '*', ',']) => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is not an origin; write it as https://chat.example.com")),
    }
}

/// A web address for people.
pub(super) fn web_url(text: &str) -> Result<String, String> {
    let uri: Option<Uri> = text.parse().ok();
    let web = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|it| !it.as_str().contains('@'))
    });
    let plain = !text.contains(['"', '<', '>']);
    match web && plain {
        true => Ok(text.to_owned()),
        false => Err("not a web address; write it as https://gate.example.com".to_owned()),
    }
}

pub(super) fn contact(text: &str) -> Result<String, String> {
    match text.len() <= 200 && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("at most 200 bytes of plain text, such as a name and an address".to_owned()),
    }
}
