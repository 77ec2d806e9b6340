//! What the gate answers itself: the named list of what needs no login, and what is for callers.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{Door, Live, State, cors, me};
use crate::api::Target;
use crate::auth::Identity;
use crate::reject::Reject;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const OURS: &str = "/_portcullis";

/// Open without a login, and nothing else: the list is here.
///
/// # Errors
/// 404 for a key in the path where those are off, 405.
pub(super) fn to_anybody(
    live: &Live,
    state: &State,
    parts: &Parts,
    target: &Target,
    door: &Door,
) -> Result<Option<Response<Bytes>>, Reject> {
    if let Some(preflight) = cors::preflight(&parts.method, &parts.headers) {
        return Ok(Some(preflight));
    }
    if target.path_key.is_some() && !state.path_keys() {
        return Err(Reject::UnknownEndpoint);
    }
    if target.path == "/" && parts.method == Method::HEAD {
        // The stock CLI begins with this, and shows a refusal's text only for what comes after.
        return Ok(Some(answer(StatusCode::OK, TEXT, Bytes::new())));
    }
    let page = match target.path.as_str() {
        "/_portcullis/health" => json_answer(StatusCode::OK, &json!({"status": "ok"})),
        "/_portcullis/ready" => ready(live, state),
        "/_portcullis/help" => {
            help(state.help_page(door.scheme(), parts.headers.get(header::HOST)))
        }
        _ => return Ok(None),
    };
    only_read(&parts.method)?;
    Ok(Some(page))
}

/// For callers who are known.
///
/// # Errors
/// 404 for what else is asked for below `/_portcullis`, 405.
pub(super) async fn to_callers(
    live: &Live,
    state: &State,
    who: &Identity,
    parts: &Parts,
    target: &Target,
) -> Result<Option<Response<Bytes>>, Reject> {
    match target.path.strip_prefix(OURS) {
        Some("/me") => {
            only_read(&parts.method)?;
            // Boxed, because it is seldom asked for.
            Ok(Some(Box::pin(me::answer(live, state, who)).await))
        }
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Err(Reject::UnknownEndpoint),
        Some(_) | None => Ok(None),
    }
}

fn only_read(method: &Method) -> Result<(), Reject> {
    match *method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Reject::MethodNotAllowed { allow: "GET, HEAD" }),
    }
}

fn ready(live: &Live, state: &State) -> Response<Bytes> {
    let draining = live.draining.load(std::sync::atomic::Ordering::Relaxed);
    let (status, word) = match draining {
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        false => (StatusCode::OK, "ready"),
    };
    let up = state.pool().backends().iter().filter(|it| it.is_up()).count();
    let alarms = alarms(live, state);
    json_answer(status, &json!({"status": word, "backends_up": up, "alarms": alarms}))
}

/// What does not serve as it should.
pub(super) fn alarms(live: &Live, state: &State) -> usize {
    let store = live.memory.managed().is_some_and(|keys| keys.trouble().is_some());
    state.auth().files().alarms()
        + state.tls().map_or(0, |tls| tls.troubles().len())
        + usize::from(store)
        + live.ledger.as_ref().map_or(0, |it| usize::from(it.trouble().is_some()))
}

fn help(page: Bytes) -> Response<Bytes> {
    let mut response = answer(StatusCode::OK, HTML, page);
    let headers = response.headers_mut();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response<Bytes> {
    let mut response = answer(status, JSON, value.to_string().into());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn answer(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
