//! CORS, answered at the gate: the backend never hears of origins.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use crate::config::{Cors, Origins};

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, DELETE");
/// What the browser clients of all three dialects send; the SDKs' `x-stainless-*` are granted as
/// they are asked for.
const ALWAYS: &str = "authorization, content-type, x-api-key, api-key, anthropic-version";
const ANY: HeaderValue = HeaderValue::from_static("*");

/// A page's leave to read an answer; never with credentials of the browser's own.
#[derive(Debug)]
pub(super) struct Granted {
    origin: HeaderValue,
}

impl Granted {
    /// `None` where the request comes from no page, or from one that is not listed.
    pub(super) fn to(headers: &HeaderMap, cors: &Cors) -> Option<Self> {
        let origin = headers.get(header::ORIGIN)?;
        match &cors.origins {
            Origins::Any => Some(Self { origin: ANY }),
            Origins::Listed(origins) => origins
                .iter()
                .any(|listed| listed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
                .then(|| Self { origin: origin.clone() }),
        }
    }

    pub(super) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
        if self.origin != ANY {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(SHOWN));
    }
}

/// What of our answers a page may read: why not, when again, and how much is left.
const SHOWN: &str = "x-request-id, retry-after, www-authenticate, x-portcullis-policy, \
                     x-ratelimit-limit-requests, x-ratelimit-remaining-requests, \
                     x-ratelimit-reset-requests, x-ratelimit-limit-tokens, \
                     x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// A preflight asks with OPTIONS for leave to send what it names (Fetch, 4.9).
pub(super) fn preflight(method: &Method, headers: &HeaderMap) -> Option<Response<Bytes>> {
    let asks = *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !asks {
        return None;
    }
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let granted = response.headers_mut();
    granted.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    granted.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(headers));
    granted.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    Some(response)
}

fn allowed_headers(headers: &HeaderMap) -> HeaderValue {
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let asked = asked.and_then(|asked| asked.to_str().ok()).unwrap_or_default();
    let names = asked.split(',').map(str::trim).filter(|name| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    let all: Vec<_> = std::iter::once(ALWAYS).chain(names).collect();
    HeaderValue::from_str(&all.join(", ")).unwrap_or(HeaderValue::from_static(ALWAYS))
}
