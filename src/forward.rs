//! A call and a lease to an answer: header hygiene, timeouts, the retry rule.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use crate::api::{Asked, Class};
use crate::call::{Call, Outgoing};
use crate::client_addr::{ClientAddr, IpText};
use crate::http1::{FieldLines, ResponseHead, push_field};
use crate::limit::Ticket;
use crate::pool::{Backend, Choice, Connection, Failed, Finding, Lease, Outbound, Pool};
use crate::record::Record;
use crate::reject::{REQUEST_ID, Reject};
use crate::traces::{TRACEPARENT, TRACESTATE};

mod each;

pub use each::to_each;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Most heads of requests, in bytes.
const USUAL_HEAD: usize = 768;

/// For what the gate adds to an answer's fields, in bytes.
const ROOM_FOR_OURS: usize = 64;

/// How requests leave, from the configuration.
#[derive(Debug)]
pub struct Forwarding {
    pub first_byte: Duration,
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
#[derive(Debug)]
pub struct Origin<'a> {
    pub client: ClientAddr,
    /// In which the caller asked.
    pub scheme: &'static str,
    pub record: &'a mut Record,
}

/// An answer's head and where its body comes from.
#[derive(Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub fields: FieldLines,
    pub connection: Box<Connection>,
}

/// Sends the call. It goes out a second time only if nothing of it went out the first time: over a new
/// connection, or once to another backend, whose lease then takes the place of `lease` when its turn
/// has come there.
///
/// # Errors
/// 502, 503, 504, what broke the caller's own upload, and 401 for a key that was taken away meanwhile.
pub async fn send(
    call: &mut Call<'_>,
    admitted: &mut Ticket,
    lease: &mut Lease,
    (pool, rules): (&Pool, &Forwarding),
    origin: &mut Origin<'_>,
) -> Result<Answered, Reject> {
    let sent = async {
        let missed = match once(call, (admitted, lease), rules, origin).await {
            Ok(answered) => return Ok(answered),
            Err(missed) => missed,
        };
        let Some(unsent) = missed.unsent else { return Err(missed.reject) };
        call.body = unsent;
        lease.leaves();
        let model = origin.record.model_shown();
        let other = match pool.instead(lease, admitted, call, model).await? {
            Some(Choice::Later(wait)) => {
                origin.record.waits(wait.position());
                // Boxed, because every request would have the room for it.
                let turn = Box::pin(wait.turn(origin.record.line.queue)).await;
                origin.record.waited();
                turn?
            }
            Some(Choice::Now(other)) => Some(other),
            None => None,
        };
        *lease = other.ok_or(missed.reject)?;
        origin.record.leaves_for(lease.backend().name());
        // Boxed, because it is seldom needed.
        let again = Box::pin(once(call, (admitted, lease), rules, origin)).await;
        again.map_err(|missed| missed.reject)
    };
    let sent = admitted.unless_ended(pin!(sent)).await;
    sent.inspect_err(|_| admitted.fail(Instant::now()))
}

/// Why there was no answer.
struct Missed {
    reject: Reject,
    /// The body of a request that never began.
    unsent: Option<Outgoing>,
}

impl From<Reject> for Missed {
    fn from(reject: Reject) -> Self {
        Self { reject, unsent: None }
    }
}

async fn once(
    call: &mut Call<'_>,
    (admitted, lease): (&Ticket, &mut Lease),
    rules: &Forwarding,
    origin: &mut Origin<'_>,
) -> Result<Answered, Missed> {
    let upload = call.body.upload();
    let narrows = admitted.permit().narrows(&call.asked);
    let mut request = outbound(call, narrows, (lease.backend(), rules), origin)?;
    let mut now = Instant::now();
    let mut kept = lease.kept(now);
    loop {
        let fresh = kept.is_none();
        let mut connection = match kept.take() {
            Some(kept) => kept,
            // Boxed, because it is seldom needed and large.
            None => match Box::pin(lease.connect()).await {
                Ok(connection) => {
                    now = Instant::now();
                    connection
                }
                Err(reject @ Reject::NoBackend(_)) => {
                    return Err(Missed { reject, unsent: request.unsent() });
                }
                Err(reject) => return Err(reject.into()),
            },
        };
        origin.record.begins(now);
        admitted.begin(now, origin.record.prompt_estimate());
        let failed = match connection.exchange(&mut request, rules.first_byte).await {
            Ok(head) => {
                let (status, fields) = (head.status, inbound(&head));
                if status.is_success() && may_show_a_slot(call, &head) {
                    lease.answers();
                }
                lease.found(shown_by(status, admitted));
                return Ok(Answered { status, fields, connection });
            }
            Err(failed) => failed,
        };
        return Err(match failed {
            Failed::NotBegun if !fresh => continue,
            Failed::NotBegun => {
                lease.found(Finding::Failure);
                let reject = Reject::BackendFailed("it ended the connection at once".into());
                Missed { reject, unsent: request.unsent() }
            }
            Failed::Late => {
                lease.found(Finding::Silence);
                Reject::BackendTimeout.into()
            }
            Failed::Upload => upload.and_then(|it| it.fault()).unwrap_or(Reject::Internal).into(),
            Failed::Broken(cause) => {
                lease.found(Finding::Failure);
                Reject::BackendFailed(cause).into()
            }
        });
    }
}

/// Whether an answer that begins well may be a model's work. What was to come in pieces and is here at
/// once is not: a prompt that is only shown, a model that is only loaded.
fn may_show_a_slot(call: &Call<'_>, head: &ResponseHead) -> bool {
    !call.streams() || head.framing.length().is_none()
}

/// 508 comes of a way that leads back to a gate.
fn shown_by(status: StatusCode, admitted: &Ticket) -> Finding {
    match status.as_u16() {
        500 => {
            let mut hasher = DefaultHasher::new();
            admitted.permit().who().name().as_str().hash(&mut hasher);
            Finding::Error { to: hasher.finish() }
        }
        502..=504 | 508 => Finding::Failure,
        _ => Finding::Answer,
    }
}

/// The request as a backend sees it: rebuilt path, our Host, our forwarding headers, and nothing of
/// the caller's that identifies, frames or steers.
fn outbound(
    call: &mut Call<'_>,
    narrows: bool,
    (backend, rules): (&Backend, &Forwarding),
    origin: &Origin<'_>,
) -> Result<Outbound, Reject> {
    let body = std::mem::replace(&mut call.body, Outgoing::empty());
    let Call { asked, parts, .. } = &*call;
    let mut head = Vec::with_capacity(USUAL_HEAD);
    head.extend_from_slice(parts.method.as_str().as_bytes());
    head.push(b' ');
    push_target(&mut head, asked, parts.uri.query())?;
    head.extend_from_slice(b" HTTP/1.1\r\n");
    push_ours(&mut head, &parts.headers, backend, origin);
    let mut named = named_by_connection(&parts.headers);
    named.extend(body.is_unpacked().then_some(header::CONTENT_ENCODING));
    // What is to be counted has to be read.
    let is_counted = asked.class() == Class::Inference;
    named.extend(is_counted.then_some(header::ACCEPT_ENCODING));
    if let Some(trace) = &origin.record.trace {
        named.push(TRACEPARENT);
        named.extend(trace.context.begins().then_some(TRACESTATE));
    }
    push_kept(&mut head, &parts.headers, &rules.key_headers, &named, narrows);
    // Behind those that it has come by, so that a way back over others is seen too.
    push_field(&mut head, &header::VIA, rules.via.as_bytes());
    push_length(&mut head, &parts.method, &body);
    head.extend_from_slice(b"\r\n");
    Ok(Outbound::new(parts.method.clone(), head, body))
}

/// What the backend hears from the gate.
fn push_ours(head: &mut Vec<u8>, theirs: &HeaderMap, backend: &Backend, origin: &Origin<'_>) {
    let host = theirs.get(header::HOST);
    let kept_host = host.filter(|_| backend.preserves_host());
    push_field(head, &header::HOST, kept_host.unwrap_or(backend.host()).as_bytes());
    if let Some(host) = host {
        push_field(head, &X_FORWARDED_HOST, host.as_bytes());
    }
    push_field(head, &X_FORWARDED_PROTO, origin.scheme.as_bytes());
    let client = IpText::from(origin.client.ip());
    if origin.client.through_proxy() {
        if !theirs.contains_key(&X_FORWARDED_FOR) {
            // It was `Forwarded` that named the client.
            push_field(head, &X_FORWARDED_FOR, client.as_bytes());
        }
        for hop in theirs.get_all(&X_FORWARDED_FOR) {
            push_field(head, &X_FORWARDED_FOR, hop.as_bytes());
        }
        let peer = IpText::from(origin.client.peer().ip());
        push_field(head, &X_FORWARDED_FOR, peer.as_bytes());
    } else {
        push_field(head, &X_FORWARDED_FOR, client.as_bytes());
    }
    push_field(head, &X_REAL_IP, client.as_bytes());
    push_field(head, &REQUEST_ID, &origin.record.line.id.padded());
    if let Some(trace) = &origin.record.trace {
        push_field(head, &TRACEPARENT, trace.context.header().as_bytes());
    }
    if let Some(key) = backend.key() {
        push_field(head, &header::AUTHORIZATION, key.as_bytes());
    }
}

/// The caller's headers that may go on.
fn push_kept(
    head: &mut Vec<u8>,
    theirs: &HeaderMap,
    key_headers: &[HeaderName],
    named: &[HeaderName],
    narrows: bool,
) {
    for (name, value) in theirs {
        let is_kept = !is_dropped(name) && !key_headers.contains(name) && !named.contains(name);
        if is_kept && !(narrows && asks_for_less(name)) {
            push_field(head, name, value.as_bytes());
        }
    }
}

/// A list that is narrowed here has to come whole, and plain.
fn asks_for_less(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "range" | "accept-encoding" | "a-im") || name.starts_with("if-")
}

/// A body that is empty but announced stays announced: some servers ask for a length.
fn push_length(head: &mut Vec<u8>, method: &Method, body: &Outgoing) {
    let _ = match body.length() {
        None => head.write_all(b"transfer-encoding: chunked\r\n"),
        Some(0) if !matches!(*method, Method::POST | Method::PUT) => Ok(()),
        // Writing into a vector cannot fail.
        Some(length) => write!(head, "content-length: {length}\r\n"),
    };
}

/// The target to ask for; a path out of the table needs no second look.
fn push_target(head: &mut Vec<u8>, asked: &Asked, query: Option<&str>) -> Result<(), Reject> {
    match (asked.path(), query) {
        (Cow::Borrowed(path), None) => head.extend_from_slice(path.as_bytes()),
        (path, query) => {
            let target = target(path, query)?;
            let target = target.path_and_query().map_or("/", PathAndQuery::as_str);
            head.extend_from_slice(target.as_bytes());
        }
    }
    Ok(())
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
    HOP_BY_HOP.contains(&name)
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
        || ["proxy-", "x-forwarded-", "x-original-", "x-rewrite-", "x-openwebui-", "x-portcullis-", "sec-fetch-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        // A server behind us may take `x_real_ip` for `x-real-ip`.
        || name.contains('_')
}

/// RFC 9110, 7.6.1, and the fields that RFC 7540 adds for an upgrade; `proxy-*` too.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "proxy-connection",
];

/// The fields of a backend's answer without what belongs to its hop, or to the gate to say.
fn inbound(head: &ResponseHead) -> FieldLines {
    let named: Vec<_> = head
        .fields
        .all(b"connection")
        .flat_map(|line| line.split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    // Beside a transfer coding a length does not count, nor where nothing may follow.
    let lengthless = head.status == StatusCode::NO_CONTENT
        || head.fields.all(b"transfer-encoding").next().is_some();
    let mut passed = FieldLines::with_room(head.fields.bytes() + ROOM_FOR_OURS);
    for (name, value) in head.fields.iter() {
        let is_length = name.eq_ignore_ascii_case(b"content-length");
        let is_named = || named.iter().any(|it| it.eq_ignore_ascii_case(name));
        let dropped = if is_length { lengthless } else { is_kept_from_callers(name) || is_named() };
        if !dropped {
            passed.push(name, value);
        }
    }
    passed
}

fn is_kept_from_callers(name: &[u8]) -> bool {
    let is = |it: &&str| name.eq_ignore_ascii_case(it.as_bytes());
    let begins = |prefix: &[u8]| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    ["server", "x-powered-by", "x-request-id"].iter().any(is)
        || HOP_BY_HOP.iter().any(is)
        || begins(b"proxy-")
        || begins(b"access-control-")
        // What a policy did and what is left is the gate's word; another gate behind it has its own.
        || begins(b"x-portcullis-")
        || begins(b"x-ratelimit-")
}
