//! A call and a lease to an answer: header hygiene, timeouts, the retry rule.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tokio::time::sleep_until;

use crate::call::{Call, Outgoing, Upload};
use crate::client_addr::ClientAddr;
use crate::limit::Ticket;
use crate::pool::{Connection, Failed, Lease};
use crate::record::RequestId;
use crate::reject::{REQUEST_ID, Reject};

/// A model server has no reason for more interim answers than this.
const MOST_INTERIM: usize = 20;
const TOO_MANY: &str = "too many interim answers";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// How requests leave, from the configuration.
#[derive(Debug)]
pub struct Forwarding {
    pub first_byte: Duration,
    pub preserve_host: bool,
    /// The `Host` of the backend: a loopback Ollama answers 403 to any other [ollama
    /// server/routes.go allowedHostsMiddleware].
    pub host: HeaderValue,
    /// `Authorization` for the backend, in place of the caller's.
    pub backend_key: Option<HeaderValue>,
    /// Further headers that carry callers' keys.
    pub key_headers: Vec<HeaderName>,
    /// Names this gate in `Via`, to meet itself again.
    pub via: HeaderValue,
}

impl Forwarding {
    /// # Errors
    /// 508 for a request that this very gate sent: `upstream` leads back to it.
    pub fn refuse_loop(&self, headers: &HeaderMap) -> Result<(), Reject> {
        let mut hops = headers
            .get_all(header::VIA)
            .iter()
            .flat_map(|via| via.as_bytes().split(|b| *b == b','))
            .map(<[u8]>::trim_ascii);
        match hops.any(|hop| hop == self.via.as_bytes()) {
            true => Err(Reject::LoopDetected),
            false => Ok(()),
        }
    }
}

/// Who asked, as the backend may know it.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub client: ClientAddr,
    pub id: RequestId,
}

/// An answer's head and where its body comes from.
#[derive(Debug)]
pub struct Answered {
    pub response: Response<Incoming>,
    pub connection: Connection,
}

/// Sends the call. It goes out a second time only if nothing of it went out the first time.
///
/// # Errors
/// 502, 503, 504, and what broke the caller's own upload.
pub async fn send(
    call: Call,
    _admitted: &Ticket,
    lease: &Lease,
    rules: &Forwarding,
    origin: Origin,
) -> Result<Answered, Reject> {
    let upload = call.body.upload();
    let interim = Arc::new(AtomicUsize::new(0));
    let mut request = outbound(call, rules, origin)?;
    let count = Arc::clone(&interim);
    hyper::ext::on_informational(&mut request, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut kept = lease.kept(Instant::now());
    loop {
        let fresh = kept.is_none();
        let mut connection = match kept.take() {
            Some(kept) => kept,
            None => lease.connect().await?,
        };
        let patience = Patience { first_byte: rules.first_byte, upload: &upload };
        let answer = tokio::select! {
            biased;
            answer = connection.exchange(request) => answer,
            () = too_many(&interim) => return Err(Reject::BackendFailed(TOO_MANY.into())),
            () = patience.run_out() => return Err(Reject::BackendTimeout),
        };
        match answer {
            // They may all have come at once.
            Ok(_) if interim.load(Ordering::Relaxed) > MOST_INTERIM => {
                return Err(Reject::BackendFailed(TOO_MANY.into()));
            }
            Ok(response) => return Ok(Answered { response: inbound(response)?, connection }),
            Err(Failed::NotBegun(_)) if fresh => {
                return Err(Reject::BackendFailed("it ended the connection at once".into()));
            }
            Err(Failed::NotBegun(unsent)) => request = *unsent,
            Err(Failed::Broken(error)) => {
                let own = upload.and_then(|upload| upload.fault());
                return Err(own.unwrap_or_else(|| Reject::BackendFailed(Box::new(error))));
            }
        }
    }
}

/// Looks whenever the exchange has moved.
fn too_many(interim: &AtomicUsize) -> impl Future<Output = ()> + '_ {
    poll_fn(|_| match interim.load(Ordering::Relaxed) > MOST_INTERIM {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
}

/// The wait for an answer's first byte; while an upload moves, the clock has not started.
struct Patience<'a> {
    first_byte: Duration,
    upload: &'a Option<Arc<Upload>>,
}

impl Patience<'_> {
    async fn run_out(self) {
        let mut deadline = tokio::time::Instant::now() + self.first_byte;
        loop {
            sleep_until(deadline).await;
            let moved = self.upload.as_ref().map(|upload| upload.moved() + self.first_byte);
            match moved {
                Some(later) if later > deadline => deadline = later,
                _ => return,
            }
        }
    }
}

/// The request as a backend sees it: rebuilt path, our Host, our forwarding headers, and nothing of
/// the caller's that identifies, frames or steers.
fn outbound(call: Call, rules: &Forwarding, origin: Origin) -> Result<Request<Outgoing>, Reject> {
    let Call { asked, parts, body } = call;
    let uri = target(asked.path(), parts.uri.query())?;
    let host = parts.headers.get(header::HOST).cloned();
    let forwarded_for = parts.headers.get_all(&X_FORWARDED_FOR).iter().cloned().collect::<Vec<_>>();
    let mut headers = kept(parts.headers, &rules.key_headers);

    let kept_host = host.as_ref().filter(|_| rules.preserve_host);
    headers.insert(header::HOST, kept_host.unwrap_or(&rules.host).clone());
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    let ip = address(origin.client.ip());
    let through = origin.client.through_proxy();
    for hop in forwarded_for.into_iter().filter(|_| through) {
        headers.append(X_FORWARDED_FOR, hop);
    }
    headers.append(
        X_FORWARDED_FOR,
        if through { address(origin.client.peer().ip()) } else { ip.clone() },
    );
    headers.insert(X_REAL_IP, ip);
    // Behind those that it has come by, so that a way back over others is seen too.
    headers.append(header::VIA, rules.via.clone());
    if let Ok(id) = HeaderValue::from_str(origin.id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(key) = &rules.backend_key {
        headers.insert(header::AUTHORIZATION, key.clone());
    }
    // A body that is empty but announced stays announced: some servers ask for a length.
    if matches!(parts.method, Method::POST | Method::PUT) && body_is_empty(&body) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    Ok(request)
}

fn body_is_empty(body: &Outgoing) -> bool {
    http_body::Body::is_end_stream(body)
}

/// The path that was decided on, and the query without a signature's `ts`.
pub fn target(path: &str, query: Option<&str>) -> Result<Uri, Reject> {
    let mut target = String::with_capacity(path.len() + query.map_or(0, |query| query.len() + 1));
    target.push_str(path);
    let mut mark = '?';
    for pair in query.unwrap_or_default().split('&') {
        if !pair.is_empty() && pair != "ts" && !pair.starts_with("ts=") {
            // Writing into a String cannot fail.
            let _ = write!(target, "{mark}{pair}");
            mark = '&';
        }
    }
    let target = PathAndQuery::from_maybe_shared(Bytes::from(target));
    target.map(Uri::from).map_err(|_| Reject::BadPath("the target cannot be passed on"))
}

fn address(ip: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// The caller's headers that may go on.
fn kept(headers: HeaderMap, key_headers: &[HeaderName]) -> HeaderMap {
    let named = named_by_connection(&headers);
    let mut kept = HeaderMap::with_capacity(headers.len() + 8);
    let mut last = None;
    for (name, value) in headers {
        // A name is told once for all its values.
        last = name.or(last);
        let Some(name) = &last else { continue };
        if !is_dropped(name) && !key_headers.contains(name) && !named.contains(name) {
            kept.append(name, value);
        }
    }
    kept
}

/// Header fields that a `Connection` field names belong to one hop (RFC 9110, 7.6.1).
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&b| b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| *name != header::CONTENT_TYPE)
        .collect()
}

fn is_dropped(name: &HeaderName) -> bool {
    let name = name.as_str();
    is_hop_by_hop(name)
        || matches!(
            name,
            // Credentials.
            "authorization" | "cookie" | "x-api-key" | "api-key"
            // Ours to set.
            | "host" | "content-length" | "expect" | "x-request-id"
            // Answered at the gate; Ollama would answer 403 to an origin that it does not know.
            | "origin" | "referer"
            | "access-control-request-method" | "access-control-request-headers"
            // Where a request comes from is ours to say.
            | "forwarded" | "x-real-ip" | "true-client-ip" | "x-client-ip" | "cf-connecting-ip"
            | "x-cluster-client-ip" | "fastly-client-ip"
            // Another method than the one that was decided on.
            | "x-http-method-override" | "x-http-method" | "x-method-override"
        )
        || ["x-forwarded-", "x-original-", "x-rewrite-", "x-openwebui-", "x-portcullis-", "sec-fetch-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        // A server behind us may take `x_real_ip` for `x-real-ip`.
        || name.contains('_')
}

/// RFC 9110, 7.6.1, and the fields that RFC 7540 adds for an upgrade.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "proxy-connection"
    ) || name.starts_with("proxy-")
}

/// The backend's answer without what belongs to its hop, or to the gate to say.
fn inbound(mut response: Response<Incoming>) -> Result<Response<Incoming>, Reject> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Reject::BackendFailed("switched protocols without being asked".into()));
    }
    let headers = response.headers_mut();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let mut dropped = named_by_connection(headers);
    dropped.retain(|name| *name != header::CONTENT_LENGTH);
    dropped.extend(
        headers
            .keys()
            .filter(|name| {
                let name = name.as_str();
                is_hop_by_hop(name)
                    || matches!(name, "server" | "x-powered-by" | "x-request-id")
                    || name.starts_with("access-control-")
            })
            .cloned(),
    );
    for name in dropped {
        headers.remove(name);
    }
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}
