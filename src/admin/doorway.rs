//! What keeps pages of other sites away from the admin API, also in the browser of an admin.

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::access::is_page_of;
use crate::reject::{Denied, Reject, Why};

/// A name that an attacker's own server gives this machine (DNS rebinding) is not one of ours: known
/// are addresses, `localhost`, and the host of `public_url`. What a browser says of the page that asks
/// has to be this listener's own.
///
/// # Errors
/// 421 for a foreign `Host`, 403 for a page of another site.
pub fn only_from_here(headers: &HeaderMap, public_url: Option<&str>) -> Result<(), Reject> {
    if !is_ours(host(headers)?.host(), public_url) {
        return Err(Reject::WrongHost);
    }
    only_own_pages(headers)
}

fn host(headers: &HeaderMap) -> Result<Authority, Reject> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.and_then(|host| host.parse().ok()).ok_or(Reject::WrongHost)
}

/// The half of [`only_from_here`] that holds whatever name this machine has.
///
/// # Errors
/// 403 for a page of another site, 421 without a `Host`.
pub fn only_own_pages(headers: &HeaderMap) -> Result<(), Reject> {
    host(headers)?;
    let site = headers.get_all("sec-fetch-site").iter();
    let mut foreign = site.filter(|site| *site != "same-origin" && *site != "none");
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_own = |origin: &HeaderValue| is_page_of(origin, headers.get(header::HOST));
    if foreign.next().is_none() && origins.all(is_own) {
        return Ok(());
    }
    let name = "a page of another site".to_owned();
    let denied = Denied { operation: "the admin API", name, why: Why::OtherSite };
    Err(Reject::Forbidden(Box::new(denied)))
}

fn is_ours(host: &str, public_url: Option<&str>) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let public = public_url.and_then(|url| url.parse::<http::Uri>().ok());
    let public = public.as_ref().and_then(http::Uri::host);
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok()
        || public.is_some_and(|public| public.eq_ignore_ascii_case(host))
}

/// What every answer of the admin API says to browsers, refusals too.
pub fn with_safe_headers(headers: &mut HeaderMap) {
    const SAFE: [(HeaderName, &str); 6] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; \
             frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in SAFE {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &[(&'static str, &'static str)]) -> Result<(), u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        only_from_here(&headers, Some("https://gate.example.com:8443/x"))
            .map_err(|reject| reject.row().status)
    }

    #[test]
    fn addresses_localhost_and_the_public_name_are_ours() {
        for host in [
            "127.0.0.1:8881",
            "127.0.0.1",
            "[::1]:8881",
            "LocalHost:9000",
            "192.0.2.7:1",
            "GATE.example.com",
        ] {
            assert_eq!(asked(&[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8881",
            "gate.example.com.evil.example",
            "portcullis",
            "",
        ] {
            assert_eq!(asked(&[("host", host)]), Err(421), "{host}");
        }
        assert_eq!(asked(&[]), Err(421));
    }

    #[test]
    fn pages_of_other_sites_are_refused_however_the_browser_says_so() {
        let host = ("host", "localhost:8881");
        for own in [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
            ("origin", "http://localhost:8881"),
            ("origin", "HTTP://LOCALHOST:8881"),
        ] {
            assert_eq!(asked(&[host, own]), Ok(()), "{own:?}");
        }
        for other in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", ""),
            ("origin", "null"),
            ("origin", "http://localhost"),
            ("origin", "http://localhost:3000"),
            ("origin", "http://evil.example"),
            ("origin", "localhost:8881"),
            ("origin", ""),
        ] {
            assert_eq!(asked(&[host, other]), Err(403), "{other:?}");
        }
        let twice = [host, ("origin", "http://localhost:8881"), ("origin", "http://evil.example")];
        assert_eq!(asked(&twice), Err(403));
    }
}
