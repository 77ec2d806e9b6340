//! The API table: path and method to operation, class, dialect, and where the model is named.
//!
//! Source: ollama server/routes.go, GenerateRoutes, v0.33. The router there (gin) matches the
//! decoded path and the case counts; so a path is decided on here in its decoded form, odd spellings
//! are refused instead of normalised, and what is sent on is rebuilt from what was decided on.

use std::borrow::Cow;
use std::fmt;

use http::Method;

use crate::config::{ExtraEndpoint, Role};
use crate::reject::Reject;

mod fields;

pub use fields::{Field, OPTIONS, RUNNER_OPTIONS, Shape};

/// Longest request target, in bytes.
pub const MAX_TARGET: usize = 8 * 1024;

/// What is below it is not the backend's.
pub const ADMIN: &str = "/api/v1";

/// What an endpoint is for; decides the role that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Health,
    Inference,
    Models,
    Manage,
    /// Acts with the cloud account of the server's owner.
    Owner,
    Unknown,
}

impl Class {
    /// The least role that may use it; `Viewer` has nothing of the backend.
    #[must_use]
    pub fn needs(self) -> Role {
        match self {
            Self::Health | Self::Inference | Self::Models => Role::User,
            Self::Manage | Self::Unknown => Role::Operator,
            Self::Owner => Role::Admin,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Inference => "inference",
            Self::Models => "models",
            Self::Manage => "manage",
            Self::Owner => "owner",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a request names its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelIn {
    Nowhere,
    /// `model`, or the old `name`, of the JSON body.
    Body,
    /// `source` and `destination` of the JSON body.
    BothEnds,
    /// The form field `model`.
    Form,
    /// The last segment of the path.
    Path,
    /// `model` of the body, as JSON or a form: where such endpoints have had it so far.
    Perhaps,
}

/// What the answer is when it streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    No,
    /// One JSON object a line, by default.
    Ndjson,
    /// Server-sent events, when asked with `stream: true`.
    Sse,
}

/// One row of the table. A `*` at the end of `path` stands for one segment.
#[derive(Debug)]
pub struct Endpoint {
    pub methods: &'static [Method],
    pub path: &'static str,
    pub operation: &'static str,
    pub class: Class,
    pub model: ModelIn,
    pub stream: Stream,
}

const GET: &[Method] = &[Method::GET];
const GET_HEAD: &[Method] = &[Method::GET, Method::HEAD];
const POST: &[Method] = &[Method::POST];
const DELETE: &[Method] = &[Method::DELETE];
const HEAD_POST: &[Method] = &[Method::HEAD, Method::POST];

const fn row(
    methods: &'static [Method],
    path: &'static str,
    operation: &'static str,
    class: Class,
    (model, stream): (ModelIn, Stream),
) -> Endpoint {
    Endpoint { methods, path, operation, class, model, stream }
}

const PLAIN: (ModelIn, Stream) = (ModelIn::Nowhere, Stream::No);
const OF_MODEL: (ModelIn, Stream) = (ModelIn::Body, Stream::No);
const NDJSON: (ModelIn, Stream) = (ModelIn::Body, Stream::Ndjson);
const SSE: (ModelIn, Stream) = (ModelIn::Body, Stream::Sse);

/// Every endpoint that is known.
#[rustfmt::skip]
pub static ENDPOINTS: [Endpoint; 30] = [
    row(GET_HEAD,  "/",                        "root",             Class::Health,    PLAIN),
    row(GET_HEAD,  "/api/version",             "version",          Class::Health,    PLAIN),
    row(GET,       "/api/status",              "status",           Class::Health,    PLAIN),
    row(GET_HEAD,  "/api/tags",                "list",             Class::Models,    PLAIN),
    row(GET,       "/api/ps",                  "ps",               Class::Models,    PLAIN),
    row(POST,      "/api/show",                "show",             Class::Models,    OF_MODEL),
    row(POST,      "/api/generate",            "generate",         Class::Inference, NDJSON),
    row(POST,      "/api/chat",                "chat",             Class::Inference, NDJSON),
    row(POST,      "/api/embed",               "embed",            Class::Inference, OF_MODEL),
    row(POST,      "/api/embeddings",          "embeddings",       Class::Inference, OF_MODEL),
    row(POST,      "/api/pull",                "pull",             Class::Manage,    NDJSON),
    row(POST,      "/api/push",                "push",             Class::Manage,    NDJSON),
    row(POST,      "/api/create",              "create",           Class::Manage,    NDJSON),
    row(DELETE,    "/api/delete",              "delete",           Class::Manage,    OF_MODEL),
    row(POST,      "/api/copy",                "copy",             Class::Manage,    (ModelIn::BothEnds, Stream::No)),
    row(HEAD_POST, "/api/blobs/*",             "blob",             Class::Manage,    PLAIN),
    row(POST,      "/api/me",                  "me",               Class::Owner,     PLAIN),
    row(POST,      "/api/signout",             "signout",          Class::Owner,     PLAIN),
    row(DELETE,    "/api/user/keys/*",         "user_key",         Class::Owner,     PLAIN),
    row(POST,      "/api/experimental/web_search", "web_search",   Class::Owner,     PLAIN),
    row(POST,      "/api/experimental/web_fetch",  "web_fetch",    Class::Owner,     PLAIN),
    row(GET,       "/api/experimental/model-recommendations", "recommendations", Class::Models, PLAIN),
    row(POST,      "/v1/chat/completions",     "chat_completions", Class::Inference, SSE),
    row(POST,      "/v1/completions",          "completions",      Class::Inference, SSE),
    row(POST,      "/v1/embeddings",           "v1_embeddings",    Class::Inference, OF_MODEL),
    row(GET,       "/v1/models",               "v1_models",        Class::Models,    PLAIN),
    row(GET,       "/v1/models/*",             "v1_model",         Class::Models,    (ModelIn::Path, Stream::No)),
    row(POST,      "/v1/responses",            "responses",        Class::Inference, SSE),
    row(POST,      "/v1/audio/transcriptions", "transcriptions",   Class::Inference, (ModelIn::Form, Stream::No)),
    row(POST,      "/v1/messages",             "messages",         Class::Inference, SSE),
];

/// Whether an operation, by its name, has a model at work.
#[must_use]
pub fn is_inference(operation: &str) -> bool {
    let is_it = |row: &Endpoint| row.operation == operation && row.class == Class::Inference;
    ENDPOINTS.iter().any(is_it)
}

/// What a caller asks for: an endpoint of the table, or one that is not in it.
#[derive(Debug, Clone)]
pub struct Asked {
    path: Cow<'static, str>,
    endpoint: Option<&'static Endpoint>,
    /// Named in `extra_endpoints`, so users may ask for it.
    extra: bool,
}

impl Asked {
    /// Decides on a canonical path. A known path with another method is 405, whoever asks.
    ///
    /// # Errors
    /// [`Reject::MethodNotAllowed`]; [`Reject::UnknownEndpoint`] for the admin API's.
    pub fn find(method: &Method, path: &str, extra: &[ExtraEndpoint]) -> Result<Self, Reject> {
        if matches!(*method, Method::CONNECT | Method::TRACE) || method.as_str() == "TRACK" {
            return Err(Reject::MethodNotAllowed { allow: "GET, HEAD, POST, DELETE, OPTIONS" });
        }
        let Some(endpoint) = ENDPOINTS.iter().find(|row| row.matches(path)) else {
            if path == ADMIN || path.strip_prefix(ADMIN).is_some_and(|it| it.starts_with('/')) {
                // The admin API has a listener of its own.
                return Err(Reject::UnknownEndpoint);
            }
            let extra = extra.iter().any(|open| open.method == *method && open.path == path);
            return Ok(Self { path: Cow::Owned(path.to_owned()), endpoint: None, extra });
        };
        if !endpoint.methods.contains(method) {
            return Err(Reject::MethodNotAllowed { allow: endpoint.allow() });
        }
        let path = match endpoint.parameter(path) {
            None => Cow::Borrowed(endpoint.path),
            Some(_) => Cow::Owned(path.to_owned()),
        };
        Ok(Self { path, endpoint: Some(endpoint), extra: false })
    }

    /// The path to send on.
    #[must_use]
    pub fn path(&self) -> &Cow<'static, str> {
        &self.path
    }

    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.endpoint.map_or("unknown", |endpoint| endpoint.operation)
    }

    #[must_use]
    pub fn class(&self) -> Class {
        self.endpoint.map_or(Class::Unknown, |endpoint| endpoint.class)
    }

    #[must_use]
    pub fn endpoint(&self) -> Option<&'static Endpoint> {
        self.endpoint
    }

    /// Where the request names its model.
    #[must_use]
    pub fn model_in(&self) -> ModelIn {
        self.endpoint.map_or(ModelIn::Perhaps, |endpoint| endpoint.model)
    }

    /// The model in the path, where it stands there.
    #[must_use]
    pub fn model_in_path(&self) -> Option<&str> {
        match self.model_in() {
            ModelIn::Path => self.endpoint?.parameter(&self.path),
            ModelIn::Nowhere
            | ModelIn::Body
            | ModelIn::BothEnds
            | ModelIn::Form
            | ModelIn::Perhaps => None,
        }
    }

    /// Another model in the path, where one stands there. What is no single segment cannot.
    pub fn rename(&mut self, model: &str) {
        let is_segment = !model.is_empty() && !model.contains('/');
        let stem = self.model_in_path().and_then(|old| self.path.strip_suffix(old));
        if let Some(stem) = stem.filter(|_| is_segment) {
            self.path = Cow::Owned(format!("{stem}{model}"));
        }
    }

    /// The least role that may ask for this.
    #[must_use]
    pub fn needs(&self) -> Role {
        if self.extra { Role::User } else { self.class().needs() }
    }

    /// The answer is generated token by token.
    #[must_use]
    pub fn generates(&self) -> bool {
        matches!(
            self.operation(),
            "generate" | "chat" | "chat_completions" | "completions" | "responses" | "messages"
        )
    }

    /// The answer lists models.
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self.operation(), "list" | "ps" | "v1_models")
    }

    /// A model's blob passes through without a limit and without being kept.
    #[must_use]
    pub fn is_upload(&self) -> bool {
        self.operation() == "blob"
    }
}

impl Endpoint {
    fn matches(&self, path: &str) -> bool {
        self.path == path || self.parameter(path).is_some()
    }

    fn parameter<'a>(&self, path: &'a str) -> Option<&'a str> {
        let segment = path.strip_prefix(self.path.strip_suffix('*')?)?;
        (!segment.is_empty() && !segment.contains('/')).then_some(segment)
    }

    fn allow(&self) -> &'static str {
        match self.methods {
            [Method::GET] => "GET",
            [Method::GET, Method::HEAD] => "GET, HEAD",
            [Method::HEAD, Method::POST] => "HEAD, POST",
            [Method::DELETE] => "DELETE",
            _ => "POST",
        }
    }
}

/// A request target that can be read in one way only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Decoded from `/k/KEY/…`.
    pub path_key: Option<Vec<u8>>,
    /// Decoded; holds nothing that would have to be encoded again.
    pub path: String,
}

impl Target {
    /// Reads the path of an origin-form target (without its query).
    ///
    /// # Errors
    /// [`Reject::BadPath`] for everything that a router behind us could read differently.
    pub fn read(raw: &str) -> Result<Self, Reject> {
        if !raw.starts_with('/') {
            return Err(Reject::BadPath("the path must begin with a slash"));
        }
        let Some((key, rest)) = raw.strip_prefix("/k/").and_then(|rest| rest.split_once('/'))
        else {
            // `/k/KEY` without more: the key is still a key, and must not reach a log or a backend.
            if let Some(key) = raw.strip_prefix("/k/") {
                return Ok(Self { path_key: Some(decode_key(key)?), path: "/".to_owned() });
            }
            let path = canonical(raw)?;
            return if holds_key_later(&path) {
                Err(KEY_LATER)
            } else {
                Ok(Self { path_key: None, path })
            };
        };
        if key.is_empty() {
            return Err(Reject::BadPath("the key in the path is empty"));
        }
        let path = canonical(&format!("/{rest}"))?;
        if path == "/k" || path.starts_with("/k/") {
            // It would go to the backend as part of the path.
            return Err(Reject::BadPath("a key in the path may stand there once only"));
        }
        if holds_key_later(&path) {
            return Err(KEY_LATER);
        }
        Ok(Self { path_key: Some(decode_key(key)?), path })
    }
}

const KEY_LATER: Reject =
    Reject::BadPath("a key in the path stands first, as in /k/KEY/v1, also before /v1");

/// A base URL with the key behind `/v1`, which would be told to the backend. A model may be called so.
fn holds_key_later(path: &str) -> bool {
    // Of each request, so it is no search.
    let mut later = path.as_bytes().windows(3).skip(1);
    later.any(|it| matches!(it, b"/k/" | b"/K/")) && !path.starts_with("/v1/models/")
}

/// The path behind the keys in the path, as it came: what may be written to a log. It also finds
/// the key of somebody who wrote a slash too many, twice `/k/KEY`, or a capital letter, and is
/// refused.
#[must_use]
pub fn without_key(raw: &str) -> &str {
    let mut path = raw;
    while let Some(key) = path.trim_start_matches('/').strip_prefix(['k', 'K'])
        && let Some(key) = key.strip_prefix('/')
    {
        let key = key.trim_start_matches('/');
        path = key.find('/').and_then(|slash| key.get(slash..)).unwrap_or("/");
    }
    path
}

/// What may be written to a log of a path as it came. One that is spelt oddly may hide a key where
/// nobody looks for one, so that of it only the segments are shown that the table has.
#[must_use]
pub fn loggable(raw: &str) -> Cow<'static, str> {
    let path = without_key(raw);
    if let Some(row) = ENDPOINTS.iter().find(|row| row.path == path) {
        return Cow::Borrowed(row.path);
    }
    let is_plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~:@".contains(&b));
    // A managed key that somebody took for its id, or one that does not stand first.
    let holds_a_key = ["/pc_", "/k/", "/K/"].into_iter().any(|mark| path.contains(mark));
    if is_plain && !holds_a_key {
        return Cow::Owned(path.to_owned());
    }
    let known = |segment: &str| {
        segment.is_empty()
            || ENDPOINTS.iter().any(|row| row.path.split('/').any(|it| it == segment))
    };
    let shown: Vec<_> =
        path.split('/').map(|segment| if known(segment) { segment } else { "…" }).collect();
    shown.join("/").into()
}

/// A key may hold any byte, so here every escape is decoded.
/// # Errors
/// [`Reject::BadPath`] for a `%` without two hex digits.
pub fn decode_key(key: &str) -> Result<Vec<u8>, Reject> {
    let mut bytes = key.bytes();
    let mut decoded = Vec::with_capacity(key.len());
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { escaped(&mut bytes)? } else { byte };
        decoded.push(byte);
    }
    Ok(decoded)
}

fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, Reject> {
    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
    match (digit(), digit()) {
        (Some(high), Some(low)) => u8::try_from(high * 16 + low).map_err(|_| BAD_ESCAPE),
        _ => Err(BAD_ESCAPE),
    }
}

const BAD_ESCAPE: Reject = Reject::BadPath("a % in the path is not followed by two hex digits");

/// Decodes escapes that cannot change what a path means and refuses all others, dot segments, empty
/// segments, and bytes that do not belong into a path (RFC 3986, 3.3 and 6.2.2).
fn canonical(raw: &str) -> Result<String, Reject> {
    // Most callers ask for a path as the table spells it.
    if ENDPOINTS.iter().any(|row| row.path == raw) {
        return Ok(raw.to_owned());
    }
    let mut path = String::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let byte = escaped(&mut bytes)?;
            if !b":@!$&'()*+,=".contains(&byte) {
                return Err(Reject::BadPath("this character may not be escaped in a path"));
            }
            path.push(char::from(byte));
        } else if byte.is_ascii_alphanumeric() || b"/-._~:@!$&'()*+,=".contains(&byte) {
            path.push(char::from(byte));
        } else {
            return Err(Reject::BadPath("the path holds a character that is not allowed"));
        }
    }
    let segments = path.strip_prefix('/').unwrap_or(&path);
    if path != "/" && segments.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(Reject::BadPath("the path has an empty or a dot segment"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
