//! What the gate itself asks a backend, over connections like those of its callers.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method};
use serde_json::Value;

use super::{Connection, Outbound, Pool};
use crate::call::Outgoing;
use crate::config::ModelName;
use crate::reject::Reject;

/// A list that only the gate wants to see is not waited for.
const PATIENCE: Duration = Duration::from_millis(250);
const MOST_LOADED: usize = 1 << 20;

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

impl Pool {
    /// The context size of this model as it is in memory [ollama api/types.go
    /// ProcessModelResponse]; `None` if it is not, or nothing is heard of it soon.
    pub async fn loaded_context(
        &self,
        model: &ModelName,
        key: Option<&HeaderValue>,
    ) -> Option<u32> {
        let answer = tokio::time::timeout(PATIENCE, self.get("/api/ps", key));
        let list: Value = serde_json::from_slice(&answer.await.ok()??).ok()?;
        let is_it = |entry: &&Value| {
            let name = entry.get("model").or_else(|| entry.get("name")).and_then(Value::as_str);
            name.and_then(|name| ModelName::parse(name).ok()).is_some_and(|name| name == *model)
        };
        let entry = list.get("models")?.as_array()?.iter().find(is_it)?;
        let context = entry.get("context_length")?.as_u64()?;
        u32::try_from(context).ok().filter(|context| *context > 0)
    }

    async fn get(&self, path: &str, key: Option<&HeaderValue>) -> Option<Bytes> {
        let mut head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n", self.url.authority());
        if let Some(key) = key {
            head.push_str(&format!("authorization: {}\r\n", key.to_str().ok()?));
        }
        head.push_str("connection: close\r\n\r\n");
        let mut request = Outbound::new(Method::GET, head.into_bytes(), Outgoing::empty());
        let mut connection = self.connect().await.ok()?;
        let answer = connection.exchange(&mut request, PATIENCE).await.ok()?;
        if !answer.status.is_success() {
            return None;
        }
        connection.whole(PATIENCE, MOST_LOADED).await.ok()
    }
}
