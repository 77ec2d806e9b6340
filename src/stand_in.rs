//! A tiny built-in model server, for `portcullis try` and for the tests: it answers as Ollama does,
//! in a handful of words.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

/// The only model there is.
pub const MODEL: &str = "stand-in:latest";
const WORDS: [&str; 12] = [
    "The",
    " gate",
    " opens",
    " when",
    " a",
    " key",
    " fits,",
    " and",
    " every",
    " word",
    " is",
    " counted.",
];
const MOST_BODY: usize = 1024 * 1024;

/// A running stand-in; dropping it ends it.
#[derive(Debug)]
pub struct StandIn {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl StandIn {
    /// Starts one on a port of 127.0.0.1 that the system gives; a word comes every `pace`.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(pace: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, pace));
        Ok(Self { address, _tasks: tasks })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, pace: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                let service = service_fn(move |request| answer(request, pace));
                let connection = http1::Builder::new()
                    .header_read_timeout(None)
                    .serve_connection(TokioIo::new(socket), service);
                connections.spawn(async move {
                    // A caller who leaves is nothing to a stand-in.
                    let _ = connection.await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    pace: Duration,
) -> Result<Response<Spoken>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MOST_BODY).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let native = asked.get("stream") != Some(&Value::Bool(false));
    let openai = asked.get("stream") == Some(&Value::Bool(true));
    Ok(match (&parts.method, parts.uri.path()) {
        (&Method::GET | &Method::HEAD, "/") => text("Ollama is running"),
        (&Method::GET | &Method::HEAD, "/api/version") => whole(&json!({"version": "0.0.0"})),
        (&Method::GET | &Method::HEAD, "/api/tags") => whole(&json!({"models": [model()]})),
        (&Method::GET, "/api/ps") => whole(&json!({"models": [model()]})),
        (&Method::POST, "/api/show") => whole(&json!({
            "details": {"family": "stand-in"}, "model_info": {}, "capabilities": ["completion"],
        })),
        (&Method::POST, "/api/generate") => said(generate, NDJSON, native, pace),
        (&Method::POST, "/api/chat") => said(chat, NDJSON, native, pace),
        (&Method::POST, "/v1/chat/completions") => {
            let wish = asked.pointer("/stream_options/include_usage");
            let form = if wish == Some(&Value::Bool(true)) { SSE_WITH_USAGE } else { SSE };
            said(openai_chat, form, openai, pace)
        }
        (&Method::POST, "/api/embed") => {
            whole(&json!({"model": MODEL, "embeddings": [[0.1, 0.2, 0.3]], "prompt_eval_count": 1}))
        }
        (&Method::GET, "/v1/models") => whole(&json!({
            "object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "portcullis"}],
        })),
        _ => {
            let mut response = whole(&json!({"error": "the stand-in does not know this endpoint"}));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    })
}

fn model() -> Value {
    json!({
        "name": MODEL, "model": MODEL, "modified_at": "2026-01-01T00:00:00Z", "size": 1,
        "digest": "0".repeat(64), "details": {"format": "words", "family": "stand-in"},
    })
}

/// One word, or the end, in a dialect's form.
type Saying = fn(Option<&str>) -> Value;

fn generate(word: Option<&str>) -> Value {
    match word {
        Some(word) => json!({"model": MODEL, "response": word, "done": false}),
        None => json!({
            "model": MODEL, "response": "", "done": true, "done_reason": "stop",
            "prompt_eval_count": 1, "eval_count": WORDS.len(),
        }),
    }
}

fn chat(word: Option<&str>) -> Value {
    let message = json!({"role": "assistant", "content": word.unwrap_or_default()});
    match word {
        Some(_) => json!({"model": MODEL, "message": message, "done": false}),
        None => json!({
            "model": MODEL, "message": message, "done": true, "done_reason": "stop",
            "prompt_eval_count": 1, "eval_count": WORDS.len(),
        }),
    }
}

fn openai_chat(word: Option<&str>) -> Value {
    let end = word.is_none().then_some("stop");
    let delta = word.map_or(json!({}), |word| json!({"role": "assistant", "content": word}));
    let choices = json!([{"index": 0, "delta": delta, "finish_reason": end}]);
    chunk("chat.completion.chunk", &choices, None)
}

fn chunk(object: &str, choices: &Value, usage: Option<Value>) -> Value {
    let mut chunk = json!({
        "id": "stand-in", "object": object, "created": 0, "model": MODEL, "choices": choices,
    });
    if let (Some(usage), Some(chunk)) = (usage, chunk.as_object_mut()) {
        chunk.insert("usage".to_owned(), usage);
    }
    chunk
}

fn usage() -> Value {
    let words = WORDS.len();
    json!({"prompt_tokens": 1, "completion_tokens": words, "total_tokens": words + 1})
}

#[derive(Clone, Copy)]
struct Form {
    content_type: &'static str,
    before: &'static str,
    after: &'static str,
    end: &'static str,
    /// Tells what it came to in an event of its own.
    tells_usage: bool,
}

const NDJSON: Form = Form {
    content_type: "application/x-ndjson",
    before: "",
    after: "\n",
    end: "",
    tells_usage: false,
};
const SSE: Form = Form {
    content_type: "text/event-stream",
    before: "data: ",
    after: "\n\n",
    end: "data: [DONE]\n\n",
    tells_usage: false,
};
const SSE_WITH_USAGE: Form = Form { tells_usage: true, ..SSE };

fn said(saying: Saying, form: Form, streamed: bool, pace: Duration) -> Response<Spoken> {
    if !streamed {
        return whole(&all_at_once(saying));
    }
    let frame = |said: Value| format!("{}{said}{}", form.before, form.after);
    let mut frames: Vec<String> = WORDS.iter().map(|word| frame(saying(Some(*word)))).collect();
    frames.push(frame(saying(None)));
    if form.tells_usage {
        frames.push(frame(chunk("chat.completion.chunk", &json!([]), Some(usage()))));
    }
    if let Some(last) = frames.last_mut() {
        last.push_str(form.end);
    }
    frames.reverse();
    let frames = frames.into_iter().map(Bytes::from).collect();
    let mut response = Response::new(Spoken { frames, pace, due: None });
    let kind = HeaderValue::from_static(form.content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The whole text in the place where a stream has one word.
fn all_at_once(saying: Saying) -> Value {
    let text = WORDS.concat();
    let mut answer = saying(None);
    for place in ["/response", "/message/content"] {
        if let Some(place) = answer.pointer_mut(place) {
            *place = Value::String(text.clone());
        }
    }
    if answer.get("choices").is_none() {
        return answer;
    }
    let message = json!({"role": "assistant", "content": text});
    let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
    chunk("chat.completion", &choices, Some(usage()))
}

fn whole(value: &Value) -> Response<Spoken> {
    let mut response = text(&value.to_string());
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(text: &str) -> Response<Spoken> {
    let frames = vec![Bytes::from(text.to_owned())];
    Response::new(Spoken { frames, pace: Duration::ZERO, due: None })
}

/// Frames, last one first, each after its pause.
struct Spoken {
    frames: Vec<Bytes>,
    pace: Duration,
    due: Option<Pin<Box<Sleep>>>,
}

impl Body for Spoken {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if !this.pace.is_zero() && !this.frames.is_empty() {
            let due = this.due.get_or_insert_with(|| Box::pin(sleep(this.pace)));
            ready!(due.as_mut().poll(cx));
            this.due = None;
        }
        Poll::Ready(this.frames.pop().map(|frame| Ok(Frame::data(frame))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match (self.pace.is_zero(), self.frames.as_slice()) {
            (true, [only]) => http_body::SizeHint::with_exact(only.len() as u64),
            _ => http_body::SizeHint::default(),
        }
    }
}
