//! What the gate itself asks a backend, over connections like those of its callers.

use std::collections::HashMap;
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Backend, Connection, Outbound};
use crate::call::Outgoing;
use crate::config::ModelName;
use crate::reject::Reject;

/// A list that only the gate wants to see is not waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// A list of 100,000 models has less.
const MOST_LISTED: usize = 32 << 20;
/// How long an answer is good for requests that come after it.
pub(super) const LOADED_FOR: Duration = Duration::from_secs(1);
pub(super) const LISTED_FOR: Duration = Duration::from_secs(10);

/// Context sizes of the models in memory.
pub(super) type Loaded = Vec<(ModelName, u32)>;
/// Every model, and whether it is a stub of one that runs elsewhere; `None` where no list is kept.
pub(super) type Listed = Option<HashMap<ModelName, bool>>;

impl Connection {
    /// The rest of an answer.
    ///
    /// # Errors
    /// 502 where it breaks off or has more than `most` bytes, 504 after a silence as long as `idle`.
    pub async fn whole(&mut self, idle: Duration, most: usize) -> Result<Bytes, Reject> {
        let mut body = BytesMut::new();
        loop {
            let since = Instant::now();
            let next = poll_fn(|cx| match self.poll_data(cx) {
                Poll::Ready(next) => Poll::Ready(next.map_err(Reject::BackendFailed)),
                Poll::Pending if self.is_due(since + idle, cx) => {
                    Poll::Ready(Err(Reject::BackendTimeout))
                }
                Poll::Pending => Poll::Pending,
            });
            let Some(data) = next.await? else { return Ok(body.freeze()) };
            if body.len() + data.len() > most {
                return Err(Reject::BackendFailed("the answer is larger than it can be".into()));
            }
            body.extend_from_slice(&data);
        }
    }
}

impl Backend {
    /// The context size of this model as it is in memory, or was a second ago; `None` if it is not, or
    /// nothing is heard of it soon.
    pub(super) async fn loaded_context(&self, model: &ModelName) -> Option<u32> {
        let now = Instant::now();
        let (loaded, is_heard) = match self.live.loaded.last(now) {
            Some(said) => said,
            None => self.live.loaded.newest(now, self.ask("/api/ps", contexts)).await,
        };
        let mut found = loaded.iter().filter(|(name, _)| is_heard && name == model);
        found.next().map(|(_, context)| *context)
    }

    /// Whether this is the local name of a model that runs elsewhere. Who does not tell soon is taken
    /// by what it told before.
    pub(super) async fn runs_elsewhere(&self, model: &ModelName) -> bool {
        let now = Instant::now();
        let model = model.without_source();
        if let Some((listed, is_heard)) = self.live.listed.last(now) {
            match listed.as_ref().as_ref().map(|names| names.get(&*model)) {
                Some(Some(is_stub)) => return *is_stub,
                // Where there is no list, or none is told now.
                None => return false,
                Some(None) if !is_heard => return false,
                // It may have come since.
                Some(None) => {}
            }
        }
        // Boxed, because it is seldom needed, and every request would have the room for it.
        let asking = Box::pin(self.ask("/api/tags", stubs));
        let (listed, _) = self.live.listed.newest(now, asking).await;
        listed.as_ref().as_ref().and_then(|names| names.get(&*model)).is_some_and(|it| *it)
    }

    async fn ask<T>(&self, path: &str, read: impl Fn(&Value) -> T) -> Option<T> {
        let answer = tokio::time::timeout(PATIENCE, self.get(path)).await.ok()??;
        // What is no list is an answer as well.
        Some(read(&serde_json::from_slice(&answer).unwrap_or(Value::Null)))
    }

    async fn get(&self, path: &str) -> Option<Bytes> {
        let mut head = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: portcullis\r\n",
            self.url().authority()
        );
        if let Some(key) = self.key() {
            head.push_str(&format!("authorization: {}\r\n", key.to_str().ok()?));
        }
        head.push_str("connection: close\r\n\r\n");
        let mut request = Outbound::new(Method::GET, head.into_bytes(), Outgoing::empty());
        let mut connection = self.connect().await.ok()?;
        let answer = connection.exchange(&mut request, PATIENCE).await.ok()?;
        match answer.status {
            StatusCode::OK => connection.whole(PATIENCE, MOST_LISTED).await.ok(),
            // It will not say more the next time.
            status if status.is_client_error() => Some(Bytes::new()),
            _ => None,
        }
    }
}

/// [ollama api/types.go ProcessModelResponse]
fn contexts(list: &Value) -> Loaded {
    let of_one = |entry: &Value| {
        let context = u32::try_from(entry.get("context_length")?.as_u64()?).ok();
        Some((name_of(entry)?, context.filter(|context| *context > 0)?))
    };
    entries(list).into_iter().flatten().filter_map(of_one).collect()
}

/// [ollama api/types.go ListModelResponse, `remote_host`]
fn stubs(list: &Value) -> Listed {
    let is_stub = |entry: &Value| {
        ["remote_host", "remote_model"].iter().any(|it| entry.get(*it).is_some_and(is_filled))
    };
    let of_one =
        |entry: &Value| Some((name_of(entry)?.without_source().into_owned(), is_stub(entry)));
    Some(entries(list)?.iter().filter_map(of_one).collect())
}

fn entries(list: &Value) -> Option<&Vec<Value>> {
    list.get("models")?.as_array()
}

fn name_of(entry: &Value) -> Option<ModelName> {
    let name = entry.get("model").or_else(|| entry.get("name"))?;
    ModelName::parse(name.as_str()?).ok()
}

fn is_filled(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}
