//! The forms of values: addresses, durations, sizes, endpoints, origins.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::uri::{Authority, Uri};
use http::{HeaderName, Method};
use ipnet::IpNet;

use super::problems::shown;
use super::{ExtraEndpoint, ListenAddr};

/// Where a backend answers, and how; a host is without the brackets of IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendUrl {
    Http {
        host: String,
        port: u16,
    },
    Https {
        host: String,
        port: u16,
    },
    /// Plain HTTP over a socket on this machine.
    Unix(PathBuf),
}

impl BackendUrl {
    /// Host and port as a `Host` header has them (RFC 9110, 7.2); the scheme's own port is left out.
    #[must_use]
    pub fn authority(&self) -> String {
        let (host, port, usual) = match self {
            Self::Http { host, port } => (host, *port, 80),
            Self::Https { host, port } => (host, *port, 443),
            Self::Unix(_) => return "localhost".to_owned(),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if port == usual { host } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { .. } => write!(f, "http://{}", self.authority()),
            Self::Https { .. } => write!(f, "https://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What is wrong with a backend's address; never repeats it, for it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("not an address; write it as http://127.0.0.1:11434")]
    NoUrl,
    #[error("it must begin with http://, https:// or unix:, as in http://127.0.0.1:11434")]
    Scheme,
    #[error("a socket's path begins at the root, as in unix:/run/ollama.sock")]
    UnixPath,
    #[error(
        "a login in the address is not sent; put the backend's key into a file and name it as key_file under [[backend]]"
    )]
    UserInfo,
    #[error("only scheme, host and port; leave out what follows, for the path is the caller's")]
    Path,
}

impl FromStr for BackendUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if let Some(path) = text.strip_prefix("unix:") {
            let whole = path.len() > 1 && path.starts_with('/') && !path.contains('\0');
            return whole.then(|| Self::Unix(path.into())).ok_or(BadUrl::UnixPath);
        }
        let uri: Uri = text.parse().map_err(|_| BadUrl::NoUrl)?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(BadUrl::Scheme),
        };
        let authority = uri.authority().ok_or(BadUrl::NoUrl)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::UserInfo);
        }
        if uri.path() != "/" || uri.query().is_some() || text.contains('#') {
            return Err(BadUrl::Path);
        }
        let (host, port) = host_and_port(authority).ok_or(BadUrl::NoUrl)?;
        let (host, port) = (host.to_owned(), port.unwrap_or(if secure { 443 } else { 80 }));
        match (port, secure) {
            (0, _) => Err(BadUrl::NoUrl),
            (port, false) => Ok(Self::Http { host, port }),
            (port, true) => Ok(Self::Https { host, port }),
        }
    }
}

/// `http` lets more through than names and addresses, and a port that is no number.
fn host_and_port(authority: &Authority) -> Option<(&str, Option<u16>)> {
    let host = authority.host();
    let port = match authority.as_str().get(host.len()..)? {
        "" => None,
        rest => Some(rest.strip_prefix(':')?.parse().ok()?),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(bare) = bare {
        bare.parse::<Ipv6Addr>().ok()?;
        return Some((bare, port));
    }
    let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    (!host.is_empty() && host.bytes().all(name)).then_some((host, port))
}

/// An address to listen on.
pub(super) fn listen(text: &str) -> Result<ListenAddr, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        // The system has room for 107 bytes (unix(7)).
        if path.is_empty() || path.len() > 107 || path.contains('\0') {
            return Err("a Unix socket needs a path of 1 to 107 bytes, as in unix:/run/gate.sock"
                .to_owned());
        }
        return Ok(ListenAddr::Unix(path.into()));
    }
    let ip = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>();
    text.parse().map(ListenAddr::Tcp).map_err(|_| match (ip(text), text.rsplit_once(':')) {
        (Ok(IpAddr::V4(ip)), _) => format!("{text:?} has no port; write it as {ip}:8880"),
        (Ok(IpAddr::V6(ip)), _) => format!("{text:?} has no port; write it as [{ip}]:8880"),
        (Err(_), Some(("" | "*", port))) if port.parse::<u16>().is_ok() => {
            format!("{text:?} has no address; write 0.0.0.0:{port} for every network of this machine, 127.0.0.1:{port} for this machine alone")
        }
        (Err(_), _) => format!(
            "{} is not ADDRESS:PORT; write it as 0.0.0.0:8880 or [::]:8880, names are not looked up here",
            shown(text)
        ),
    })
}

/// `500ms`, `10s`, `2m`, `1h`, `400d`.
///
/// # Errors
/// What is wrong with it, and how it is written.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text);
    let millis = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let whole = millis.and_then(|millis: u64| number.parse::<u64>().ok()?.checked_mul(millis));
    if let Some(millis) = whole {
        return Ok(Duration::from_millis(millis));
    }
    let advice = "write it as 500ms, 10s, 2m, 1h or 400d";
    Err(match (unit, number) {
        ("", number) if !number.is_empty() => format!("{number} of what? {advice}"),
        _ => format!("{} is not a duration; {advice}", shown(text)),
    })
}

/// `100MiB`, `1GiB`, `64KiB`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text);
    let shift = match unit {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.ok_or_else(|| {
        let advice = "write it as 64KiB, 100MiB, 1GiB, or in bytes";
        match unit.to_ascii_uppercase().as_str() {
            "K" | "KB" | "KIB" | "M" | "MB" | "MIB" | "G" | "GB" | "GIB" => {
                format!("{} is in a unit that means two things or none; {advice}", shown(text))
            }
            _ => format!("{} is not a size; {advice}", shown(text)),
        }
    })
}

fn number_and_unit(text: &str) -> (&str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start_matches(' '))
}

/// `GET /api/x`.
pub(super) fn endpoint(text: &str) -> Result<ExtraEndpoint, String> {
    const ADVICE: &str = "write it as \"GET /api/x\"";
    let wrong = |what: &str| Err(format!("{} {what}; {ADVICE}", shown(text)));
    let Some((method, path)) = text.split_once(' ') else {
        return wrong("is not a method and a path");
    };
    let upper = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
    let method = match Method::from_bytes(method.as_bytes()) {
        Ok(method) if upper => method,
        Ok(_) | Err(_) => return wrong("does not begin with a method in capitals"),
    };
    if matches!(method, Method::CONNECT | Method::TRACE) || method.as_str() == "TRACK" {
        return Err(format!("{method} is for nobody; take this endpoint out"));
    }
    // Requests are compared in the canonical form, which has nothing else in it.
    let plain =
        path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~:@!$&'()*+,=".contains(&b));
    let Some(segments) = path.strip_prefix('/').filter(|_| plain) else {
        return wrong(
            "has a path that is not one: plain characters after a slash, without a query",
        );
    };
    if segments.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return wrong("has an empty or a dot segment, and such requests are refused");
    }
    if matches!(segments.split('/').next(), Some("_portcullis" | "k")) {
        return Err("/_portcullis and /k are the gate's own; take this endpoint out".to_owned());
    }
    Ok(ExtraEndpoint { method, path: path.to_owned() })
}

/// A header that may carry a key.
pub(super) fn header(name: &str) -> Result<HeaderName, String> {
    let header: HeaderName = name
        .parse()
        .map_err(|_| format!("{} is not a header's name; write it as x-api-key", shown(name)))?;
    // What a connection or another rule of the gate already has a meaning for.
    const TAKEN: [&str; 17] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "origin",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-request-id",
    ];
    let taken = TAKEN.contains(&header.as_str()) || header.as_str().starts_with("x-forwarded-");
    if taken {
        Err(format!("{header} has a meaning of its own and cannot carry a key"))
    } else {
        Ok(header)
    }
}

/// A network or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(one).ok_or_else(|| {
        format!("{} is not a network; write it as 10.0.0.0/8 or 192.0.2.1", shown(text))
    })
}

/// Scheme, host and port, in the form in which a browser sends them (RFC 6454, 6.2).
pub(super) fn origin(text: &str) -> Result<String, String> {
    let wrong =
        |what: &str| Err(format!("{} {what}; write it as https://chat.example.com", shown(text)));
    let Some((scheme, rest)) = text.split_once("://") else {
        return wrong("is not an origin");
    };
    if rest.contains(['/', '?', '#']) {
        return wrong("goes on after the host, and a browser's Origin does not");
    }
    if rest.contains('*') {
        return wrong("has a *, which only stands alone and for every site");
    }
    let scheme_is = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    let authority = rest.parse::<Authority>().ok().filter(|it| !it.as_str().contains('@'));
    let Some((host, port)) = authority.as_ref().and_then(host_and_port) else {
        return wrong("is not an origin");
    };
    if scheme.is_empty() || !scheme.bytes().all(scheme_is) {
        return wrong("is not an origin");
    }
    let scheme = scheme.to_ascii_lowercase();
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_ascii_lowercase() };
    Ok(match (scheme.as_str(), port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => format!("{scheme}://{host}"),
        (_, Some(port)) => format!("{scheme}://{host}:{port}"),
    })
}

/// A page for people.
pub(super) fn web_page(text: &str) -> Result<String, String> {
    const ADVICE: &str = "write it as https://gate.example.com";
    let uri: Option<Uri> = text.parse().ok();
    let Some(uri) = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https"))) else {
        return Err(format!("{} is not a web address; {ADVICE}", shown(text)));
    };
    let authority = uri.authority();
    if authority.is_none_or(|it| it.as_str().contains('@') || host_and_port(it).is_none()) {
        return Err(format!("this has no plain host, or a login in it; {ADVICE}"));
    }
    // It is printed in terminals and stands in a page.
    if !text.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\".contains(&b)) {
        return Err(format!("a web address is plain ASCII, all else is escaped; {ADVICE}"));
    }
    Ok(text.to_owned())
}

/// The gate's own address, to which paths are added.
pub(super) fn web_base(text: &str) -> Result<String, String> {
    let text = web_page(text)?;
    if text.contains(['?', '#']) {
        return Err("paths are added to this address; leave out the query".to_owned());
    }
    Ok(text)
}

/// Whom to ask, in a sentence at most.
pub(super) fn contact(text: &str) -> Result<String, String> {
    if text.chars().count() > 200 {
        return Err("at most 200 characters, such as a name and where to find it".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("one line of plain text, without control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// What a backend is called in the log.
pub(super) fn backend_name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
        return Err(
            "1 to 64 letters, digits, dots, hyphens and underscores, as \"gpu-1\"".to_owned()
        );
    }
    Ok(text.to_owned())
}

/// The path is OTLP's own.
pub(super) fn collector(text: &str) -> Result<BackendUrl, String> {
    let url = text.strip_suffix("/v1/traces").unwrap_or(text);
    // Not repeated: it may hold a password.
    url.parse().map_err(|_| {
        "not the address of a collector; expected one such as \"http://127.0.0.1:4318\"".to_owned()
    })
}

#[cfg(test)]
mod tests;
