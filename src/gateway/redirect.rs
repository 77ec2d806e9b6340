//! Plain HTTP beside TLS: browsers are sent on to https, and a credential is told that it was seen.

use bytes::Bytes;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Response, StatusCode, Uri, header};

use super::{Live, State};
use crate::api::Target;
use crate::reject::Reject;

/// # Errors
/// 403 for a request that brought a credential, which has now crossed the network in the open, and
/// for one that would carry its body over it once more each time.
pub(super) fn answer(
    live: &Live,
    state: &State,
    parts: &Parts,
    target: &Target,
) -> Result<Response<Bytes>, Reject> {
    let Parts { method, uri, headers, .. } = parts;
    let credential = target.path_key.is_some()
        || headers.contains_key(header::AUTHORIZATION)
        || headers.contains_key(header::PROXY_AUTHORIZATION)
        || state.auth().key_headers().iter().any(|name| headers.contains_key(name));
    if credential || !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Reject::TlsRequired);
    }
    let authority = authority(live, state, headers.get(header::HOST));
    let authority = authority.ok_or(Reject::BadRequest("a Host header is needed"))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let location = HeaderValue::from_str(&format!("https://{authority}{path}"));
    let location = location.map_err(|_| Reject::BadPath("the target cannot be passed on"))?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// Under which people reach the gate: as it is configured, or else as this caller did, at the port
/// of TLS.
fn authority(live: &Live, state: &State, host: Option<&HeaderValue>) -> Option<String> {
    let public_url = state.config().public_url.as_ref();
    let public: Option<Uri> = public_url.and_then(|url| url.parse().ok());
    if let Some(public) = public.filter(|url| url.scheme_str() == Some("https")) {
        return public.authority().map(ToString::to_string);
    }
    let host: Authority = host?.to_str().ok()?.parse().ok()?;
    match live.port.get() {
        None | Some(443) => Some(host.host().to_owned()),
        Some(port) => Some(format!("{}:{port}", host.host())),
    }
}
