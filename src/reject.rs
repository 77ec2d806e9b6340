//! Every refusal in one table: status, code, whose fault, what the caller is told, in the caller's
//! dialect.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::config::Measure;

mod denied;
mod examples;
mod limited;
mod queue;
mod remedy;

pub use denied::{Allowed, Denied, Lack, ModelDenied, Why};
pub use examples::one_of_each;
pub use limited::{Again, Left, Limited, Quota};

/// Tells OpenAI's and Anthropic's SDKs whether to try again by themselves.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Above this many seconds of waiting an SDK should not sit and retry by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request that is answered by the gate instead of by a backend.
///
/// `Display` and `source` are for the log; what a caller hears is [`Reject::says`].
#[derive(Debug, thiserror::Error)]
pub enum Reject {
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    #[error("bad path: {0}")]
    BadPath(&'static str),
    #[error("bad body: {0}")]
    BadBody(&'static str),
    #[error("ambiguous body: {0}")]
    AmbiguousBody(&'static str),
    #[error("no credentials")]
    NoCredentials,
    #[error("bad credentials: {0}")]
    BadCredentials(&'static str, Option<Box<KnockCode>>),
    #[error("forbidden: {0}")]
    Forbidden(Box<Denied>),
    #[error("{0}")]
    ModelForbidden(Box<ModelDenied>),
    /// Not there, or hidden.
    #[error("unknown model: {0}")]
    UnknownModel(Box<ModelDenied>),
    #[error("a credential, or a body, over the plain listener beside TLS")]
    TlsRequired,
    #[error("unknown endpoint")]
    UnknownEndpoint,
    #[error("method not allowed")]
    MethodNotAllowed { allow: &'static str },
    #[error("the request did not arrive in time")]
    RequestTimeout,
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: u64 },
    #[error("the target is too long")]
    TargetTooLong,
    #[error("the body's encoding is not understood: {0}")]
    UnsupportedEncoding(&'static str),
    #[error("an expectation other than 100-continue")]
    BadExpectation,
    #[error("the target names another host than the Host header")]
    WrongHost,
    #[error("a body of another kind than JSON")]
    UnsupportedMediaType,
    /// Of the admin API: names what is not there.
    #[error("not found: {0}")]
    NotFound(Box<str>),
    #[error("nothing is kept without a data_dir")]
    NoStore,
    /// It contradicts what is there; says how.
    #[error("conflict: {0}")]
    Conflict(Box<str>),
    /// The body is JSON and asks for what cannot be; says which field, in words that may repeat it.
    #[error("invalid: {0}")]
    Invalid(Box<str>),
    #[error("the store failed")]
    StoreFailed(#[source] Cause),
    #[error("the headers are too large")]
    HeadersTooLarge,
    #[error("too many failed attempts")]
    TooManyFailures { retry_after: Duration },
    /// Of a minute.
    #[error("rate limited: {0}")]
    RateLimited(Box<Limited>),
    /// Of a day or a month.
    #[error("quota exhausted: {0}")]
    QuotaExhausted(Box<Limited>),
    #[error("too many concurrent: {0}")]
    TooManyConcurrent(Box<Limited>),
    #[error("a panic was held off")]
    Internal,
    #[error("an HTTP version that is not spoken here")]
    BadVersion,
    #[error("a request of this gate came back to it")]
    LoopDetected,
    #[error("the backend failed")]
    BackendFailed(#[source] Cause),
    #[error("no backend could be reached")]
    NoBackend(#[source] Cause),
    #[error("overloaded: {0}")]
    Overloaded(&'static str),
    /// As many wait as may; about so long they would.
    #[error("the queue is full")]
    QueueFull { wait: Duration },
    #[error("its turn did not come in time")]
    QueueTimeout { wait: Duration },
    /// Somebody who looks after the gate ended it.
    #[error("stopped")]
    Stopped,
    #[error("the backend stayed silent")]
    BackendTimeout,
}

/// What a machine that is not enrolled is told, so that whoever runs the gate can let it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KnockCode(pub [u8; 9]);

impl KnockCode {
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Why a backend did not answer, for the log.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Whose mistake it was; decides how loud the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Caller,
    Backend,
    Ours,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub status: u16,
    pub code: &'static str,
    pub fault: Fault,
    /// Whether a client may send the same request again by itself.
    pub retry: bool,
}

/// Every code, for the reference and for the tests.
pub const CODES: [&str; 38] = [
    "bad_request",
    "bad_path",
    "bad_body",
    "ambiguous_body",
    "no_credentials",
    "bad_credentials",
    "forbidden",
    "model_forbidden",
    "unknown_model",
    "tls_required",
    "unknown_endpoint",
    "method_not_allowed",
    "request_timeout",
    "body_too_large",
    "target_too_long",
    "unsupported_encoding",
    "bad_expectation",
    "unsupported_media_type",
    "not_found",
    "no_store",
    "conflict",
    "invalid",
    "store_failed",
    "wrong_host",
    "headers_too_large",
    "too_many_failures",
    "rate_limited",
    "quota_exhausted",
    "too_many_concurrent",
    "internal",
    "bad_version",
    "loop_detected",
    "backend_failed",
    "no_backend",
    "overloaded",
    "queue_timeout",
    "stopped",
    "backend_timeout",
];

impl Reject {
    /// The table.
    #[must_use]
    pub fn row(&self) -> Row {
        use Fault::{Backend, Caller, Ours};
        let (status, code, fault, retry) = match self {
            Self::BadRequest(_) => (400, "bad_request", Caller, false),
            Self::BadPath(_) => (400, "bad_path", Caller, false),
            Self::BadBody(_) => (400, "bad_body", Caller, false),
            Self::AmbiguousBody(_) => (400, "ambiguous_body", Caller, false),
            Self::NoCredentials => (401, "no_credentials", Caller, false),
            Self::BadCredentials(..) => (401, "bad_credentials", Caller, false),
            Self::Forbidden(_) => (403, "forbidden", Caller, false),
            Self::ModelForbidden(_) => (403, "model_forbidden", Caller, false),
            Self::UnknownModel(_) => (404, "unknown_model", Caller, false),
            Self::TlsRequired => (403, "tls_required", Caller, false),
            Self::UnknownEndpoint => (404, "unknown_endpoint", Caller, false),
            Self::MethodNotAllowed { .. } => (405, "method_not_allowed", Caller, false),
            Self::RequestTimeout => (408, "request_timeout", Caller, false),
            Self::BodyTooLarge { .. } => (413, "body_too_large", Caller, false),
            Self::TargetTooLong => (414, "target_too_long", Caller, false),
            Self::UnsupportedEncoding(_) => (415, "unsupported_encoding", Caller, false),
            Self::BadExpectation => (417, "bad_expectation", Caller, false),
            Self::UnsupportedMediaType => (415, "unsupported_media_type", Caller, false),
            Self::NotFound(_) => (404, "not_found", Caller, false),
            Self::NoStore => (404, "no_store", Caller, false),
            Self::Conflict(_) => (409, "conflict", Caller, false),
            Self::Invalid(_) => (422, "invalid", Caller, false),
            Self::StoreFailed(_) => (503, "store_failed", Ours, true),
            Self::WrongHost => (421, "wrong_host", Caller, false),
            Self::HeadersTooLarge => (431, "headers_too_large", Caller, false),
            Self::TooManyFailures { .. } => (429, "too_many_failures", Caller, false),
            Self::RateLimited(_) => (429, "rate_limited", Caller, true),
            Self::QuotaExhausted(_) => (429, "quota_exhausted", Caller, false),
            Self::TooManyConcurrent(_) => (429, "too_many_concurrent", Caller, true),
            Self::Internal => (500, "internal", Ours, false),
            Self::BadVersion => (505, "bad_version", Caller, false),
            Self::LoopDetected => (508, "loop_detected", Ours, false),
            Self::BackendFailed(_) => (502, "backend_failed", Backend, true),
            Self::NoBackend(_) => (503, "no_backend", Backend, true),
            Self::Overloaded(_) | Self::QueueFull { .. } => (503, "overloaded", Ours, true),
            Self::QueueTimeout { .. } => (503, "queue_timeout", Ours, false),
            Self::Stopped => (503, "stopped", Caller, false),
            Self::BackendTimeout => (504, "backend_timeout", Backend, true),
        };
        Row { status, code, fault, retry }
    }

    /// Whether the connection ends with this answer: after a request that could be read in two ways
    /// nobody can say where the next one begins.
    #[must_use]
    pub fn closes(&self) -> bool {
        matches!(self.row().status, 400 | 405 | 408 | 413 | 414 | 417 | 421 | 431 | 505)
    }

    /// What the caller is told: never an error's own text.
    #[must_use]
    pub fn says(&self) -> String {
        match self {
            Self::BadRequest(why)
            | Self::BadPath(why)
            | Self::BadBody(why)
            | Self::AmbiguousBody(why)
            | Self::UnsupportedEncoding(why) => (*why).to_owned(),
            Self::NoCredentials => {
                "a login is needed: send `Authorization: Bearer KEY`, or a user name and password"
                    .to_owned()
            }
            Self::BadCredentials(why, None) => (*why).to_owned(),
            Self::BadCredentials(why, Some(code)) => {
                format!("{why}, or tell them the code {}", code.as_str())
            }
            Self::Forbidden(denied) => denied.to_string(),
            Self::ModelForbidden(denied) => denied.to_string(),
            Self::UnknownModel(denied) => denied.missing(),
            Self::TlsRequired => TLS_REQUIRED.to_owned(),
            Self::UnknownEndpoint => "there is no such endpoint here".to_owned(),
            Self::MethodNotAllowed { allow } => format!("this endpoint answers to {allow}"),
            Self::RequestTimeout => "the request body did not arrive in time".to_owned(),
            Self::BodyTooLarge { limit } => {
                format!("the request body is larger than the {limit} bytes allowed here")
            }
            Self::TargetTooLong => "the request target is longer than 8 KiB".to_owned(),
            Self::BadExpectation => "the only expectation met here is 100-continue".to_owned(),
            Self::UnsupportedMediaType => {
                "the body has to be JSON, with `Content-Type: application/json`".to_owned()
            }
            Self::NotFound(why) | Self::Conflict(why) | Self::Invalid(why) => why.to_string(),
            Self::NoStore => {
                "this gate keeps no keys and no audit trail: it was started without a `data_dir`"
                    .to_owned()
            }
            Self::StoreFailed(_) => {
                "the store cannot be used right now; the gate's log has the reason".to_owned()
            }
            Self::WrongHost => "the request names another host than this one".to_owned(),
            Self::HeadersTooLarge => HEADERS_TOO_LARGE.to_owned(),
            Self::TooManyFailures { retry_after } => {
                format!("too many failed logins; try again in {} s", whole_seconds(*retry_after))
            }
            Self::RateLimited(limited)
            | Self::QuotaExhausted(limited)
            | Self::TooManyConcurrent(limited) => limited.to_string(),
            Self::Internal => "something went wrong in the gate; the log has the reason".to_owned(),
            Self::BadVersion => "only HTTP/1.1 and HTTP/1.0 are spoken here".to_owned(),
            Self::LoopDetected => {
                "this gate is its own backend; whoever runs it should look at `upstream`".to_owned()
            }
            Self::BackendFailed(_) => "the model server broke off before answering".to_owned(),
            Self::NoBackend(_) => "the model server cannot be reached right now".to_owned(),
            Self::Overloaded(_) => "the gate has too much to do right now; try again".to_owned(),
            Self::QueueFull { .. } | Self::QueueTimeout { .. } | Self::Stopped => {
                self.says_of_waiting().unwrap_or_default()
            }
            Self::BackendTimeout => "the model server did not answer in time".to_owned(),
        }
    }

    fn code_to_tell(&self) -> Option<&str> {
        let Self::BadCredentials(_, Some(code)) = self else { return None };
        Some(code.as_str())
    }

    /// How long to wait before trying again, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyFailures { retry_after } => Some(*retry_after),
            Self::RateLimited(limited)
            | Self::QuotaExhausted(limited)
            | Self::TooManyConcurrent(limited) => Some(limited.retry_after()),
            Self::NoBackend(_) | Self::StoreFailed(_) => Some(Duration::from_secs(5)),
            Self::Overloaded(_) => Some(Duration::from_secs(1)),
            Self::QueueFull { wait } | Self::QueueTimeout { wait } => {
                Some((*wait).max(Duration::from_secs(1)))
            }
            Self::Stopped => Some(Duration::from_secs(60)),
            Self::BadRequest(_)
            | Self::BadPath(_)
            | Self::BadBody(_)
            | Self::AmbiguousBody(_)
            | Self::NoCredentials
            | Self::BadCredentials(..)
            | Self::Forbidden(_)
            | Self::ModelForbidden(_)
            | Self::UnknownModel(_)
            | Self::TlsRequired
            | Self::UnknownEndpoint
            | Self::MethodNotAllowed { .. }
            | Self::RequestTimeout
            | Self::BodyTooLarge { .. }
            | Self::TargetTooLong
            | Self::UnsupportedEncoding(_)
            | Self::BadExpectation
            | Self::UnsupportedMediaType
            | Self::NotFound(_)
            | Self::NoStore
            | Self::Conflict(_)
            | Self::Invalid(_)
            | Self::WrongHost
            | Self::HeadersTooLarge
            | Self::Internal
            | Self::BadVersion
            | Self::LoopDetected
            | Self::BackendFailed(_)
            | Self::BackendTimeout => None,
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn response(&self, told: &Told<'_>) -> Response<Bytes> {
        let row = self.row();
        // What the CLI prints of a refusal may be the address alone.
        let signin_url = self.code_to_tell().map(|code| format!("{}#{code}", told.signin_url));
        let told = &Told { signin_url: signin_url.as_deref().unwrap_or(told.signin_url), ..*told };
        let body = if let Self::UnknownModel(denied) = self {
            told.dialect.missing(&denied.missing(), told)
        } else {
            told.dialect.error(row, &self.says(), told).to_string()
        };
        let body = Bytes::from(body);
        let mut response = Response::new(body);
        *response.status_mut() =
            StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if let Self::UnknownModel(_) = self {
            headers.insert(header::CONTENT_TYPE, told.dialect.ollamas_type());
            return response;
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let wait = self.retry_after();
        if let Some(wait) = wait {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        let again = row.retry && wait.is_none_or(|wait| wait <= PATIENCE);
        headers
            .insert(SHOULD_RETRY, HeaderValue::from_static(if again { "true" } else { "false" }));
        if let Self::MethodNotAllowed { allow } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if let Self::RateLimited(it) | Self::QuotaExhausted(it) | Self::TooManyConcurrent(it) = self
        {
            it.left.write(headers);
        }
        if row.status == 401 {
            told.challenges.write(headers);
        }
        response
    }
}

/// What a refusal needs to know of the request it answers.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    pub dialect: Dialect,
    pub request_id: &'a str,
    /// Where a person without a login can read on; in native 401 bodies, for the `ollama` CLI. Empty
    /// for nowhere.
    pub signin_url: &'a str,
    pub challenges: Challenges,
}

/// The schemes named in `WWW-Authenticate`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Challenges {
    pub basic: bool,
    pub bearer: bool,
}

impl Challenges {
    fn write(self, headers: &mut http::HeaderMap) {
        if self.basic {
            headers.append(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"portcullis\", charset=\"UTF-8\""),
            );
        }
        if self.bearer {
            headers.append(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"portcullis\""),
            );
        }
    }
}

/// How the caller expects an error to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error":"…"}`: Ollama's own paths [ollama server/routes.go].
    Native,
    /// OpenAI's error object, under `/v1` [ollama openai/openai.go NewError].
    OpenAi,
    /// Anthropic's, under `/v1/messages` [ollama anthropic/anthropic.go NewError].
    Anthropic,
}

impl Dialect {
    /// The dialect of a path, whether or not there is such an endpoint.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let under = |root: &str| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if under("/v1/messages") {
            Self::Anthropic
        } else if under("/v1") {
            Self::OpenAi
        } else {
            Self::Native
        }
    }

    fn error(self, row: Row, says: &str, told: &Told<'_>) -> Value {
        match self {
            // The stock CLI prints `status` for most commands, and `signin_url` for `run`
            // [ollama api/client.go checkError, cmd/cmd.go handleCloudAuthorizationError].
            Self::Native if row.status == 401 && !told.signin_url.is_empty() => json!({
                "error": says,
                "code": row.code,
                "status": format!("{says}; see {}", told.signin_url),
                "signin_url": told.signin_url,
            }),
            Self::Native => json!({"error": says, "code": row.code}),
            Self::OpenAi => json!({"error": {
                "message": says, "type": kind(row.status, "api_error"), "param": null, "code": row.code,
            }}),
            Self::Anthropic => {
                let other = if row.status == 503 { "overloaded_error" } else { "api_error" };
                json!({
                    "type": "error",
                    "error": {"type": kind(row.status, other), "message": says, "code": row.code},
                    "request_id": told.request_id,
                })
            }
        }
    }

    /// Word for word what an Ollama says that has no such model, or a hidden model could be told
    /// from a missing one [ollama openai/openai.go NewError, anthropic/anthropic.go NewError; seen].
    fn missing(self, says: &str, told: &Told<'_>) -> String {
        match self {
            Self::Native => json!({"error": says}).to_string(),
            Self::OpenAi => {
                let error = json!({
                    "message": says, "type": "not_found_error", "param": null, "code": null,
                });
                format!("{}\n", json!({"error": error}))
            }
            Self::Anthropic => {
                let error = json!({"type": "not_found_error", "message": says});
                let id = told.request_id;
                format!("{}\n", json!({"type": "error", "error": error, "request_id": id}))
            }
        }
    }

    fn ollamas_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Native => "application/json; charset=utf-8",
            Self::OpenAi | Self::Anthropic => "application/json",
        })
    }

    /// The last words of a stream that broke after its first byte.
    #[must_use]
    pub fn stream_error(self, row: Row, says: &str, told: &Told<'_>) -> String {
        self.error(row, says, told).to_string()
    }
}

/// The error types that the SDKs of both dialects know by status.
fn kind(status: u16, other: &'static str) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => other,
    }
}

const HEADERS_TOO_LARGE: &str = "the request headers are larger than 32 KiB or more than 100";
const TLS_REQUIRED: &str = "only https is served; begin the address with https://. A password or key \
     that was sent just now has crossed the network in the open: change it";

/// Rounded up: a client that waits exactly this long must not be early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;
