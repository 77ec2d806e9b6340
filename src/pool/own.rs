//! What the gate itself asks a backend, over connections like those of its callers.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};

use super::health::Finding;
use super::listed::{self, Listed, Loaded};
use super::{Backend, Connection, Failed, Outbound};
use crate::call::Outgoing;
use crate::config::{BackendKind, ModelName};
use crate::reject::Reject;

/// A list that only the gate wants to see is not waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// A list of 100,000 models has less.
const MOST_LISTED: usize = 32 << 20;
/// How long an answer is good for requests that come after it.
pub(super) const LOADED_FOR: Duration = Duration::from_secs(1);
pub(super) const LISTED_FOR: Duration = Duration::from_secs(10);
/// Longer lists are read aside, because that takes more than a millisecond.
const READ_AT_ONCE: usize = 64 * 1024;
/// For an answer that is as short as can be.
const PROBE: Duration = Duration::from_secs(5);

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
            None => self.live.loaded.newest(now, self.tell_loaded(PATIENCE)).await,
        };
        let mut found = loaded.iter().filter(|(name, _)| is_heard && name == model);
        found.find_map(|(_, context)| *context)
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
        let asking = Box::pin(self.tell_listed(PATIENCE));
        let (listed, _) = self.live.listed.newest(now, asking).await;
        listed.as_ref().as_ref().and_then(|names| names.get(&*model)).is_some_and(|it| *it)
    }

    /// The models in memory, of a kind that tells.
    pub(super) async fn tell_loaded(&self, patience: Duration) -> Option<Loaded> {
        match self.kind() {
            BackendKind::Ollama => self.ask("/api/ps", patience, listed::in_memory).await,
            BackendKind::OpenAi => Some(Loaded::new()),
        }
    }

    /// The models that it has.
    pub(super) async fn tell_listed(&self, patience: Duration) -> Option<Listed> {
        let kind = self.kind();
        let read = move |answer: &[u8]| listed::on_disk(answer, kind);
        let path = match kind {
            BackendKind::Ollama => "/api/tags",
            BackendKind::OpenAi => "/v1/models",
        };
        self.ask(path, patience, read).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        path: &str,
        patience: Duration,
        read: impl Fn(&[u8]) -> T + Send + 'static,
    ) -> Option<T> {
        let answer = tokio::time::timeout(patience, self.get(path, patience)).await;
        let answer = match answer.unwrap_or_else(|_| Err("it does not come in time".to_owned())) {
            Ok(answer) => answer,
            Err(why) => {
                self.tell_once(path, &why);
                return None;
            }
        };
        // What is no list is an answer as well.
        if answer.len() <= READ_AT_ONCE {
            return Some(read(&answer));
        }
        // It does not fail but by a panic.
        tokio::task::spawn_blocking(move || read(&answer)).await.ok()
    }

    async fn get(&self, path: &str, patience: Duration) -> Result<Bytes, String> {
        let (status, mut connection) = self.question(path, patience).await?;
        match status {
            StatusCode::OK => {
                let body = connection.whole(patience, MOST_LISTED).await;
                body.map_err(|reject| {
                    let cause = std::error::Error::source(&reject).map(ToString::to_string);
                    cause.unwrap_or_else(|| reject.to_string())
                })
            }
            // It will not say more the next time.
            status if status.is_client_error() => Ok(Bytes::new()),
            status => Err(format!("it is answered {status}")),
        }
    }

    /// Whether it answers at all.
    pub(super) async fn probe(&self) -> Finding {
        let path = match self.kind() {
            BackendKind::Ollama => "/api/version",
            BackendKind::OpenAi => "/v1/models",
        };
        let Ok(Ok(connection)) = tokio::time::timeout(PROBE, self.connect()).await else {
            return Finding::NoConnection;
        };
        let asked = tokio::time::timeout(PROBE, self.question_over(connection, path, PROBE)).await;
        match asked {
            Ok(Ok((status, _))) if !status.is_server_error() => Finding::ProbeAnswered,
            Ok(Ok(_) | Err(_)) | Err(_) => Finding::ProbeFailed,
        }
    }

    async fn question(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<(StatusCode, Box<Connection>), String> {
        let connection = self.connect().await.map_err(|error| error.to_string())?;
        self.question_over(connection, path, patience).await
    }

    async fn question_over(
        &self,
        mut connection: Box<Connection>,
        path: &str,
        patience: Duration,
    ) -> Result<(StatusCode, Box<Connection>), String> {
        let mut head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n", self.url().authority());
        head.push_str("user-agent: portcullis\r\n");
        if let Ok(via) = self.via().to_str() {
            head.push_str(&format!("via: {via}\r\n"));
        }
        if let Some(key) = self.key().and_then(|key| key.to_str().ok()) {
            head.push_str(&format!("authorization: {key}\r\n"));
        }
        head.push_str("connection: close\r\n\r\n");
        let mut request = Outbound::new(Method::GET, head.into_bytes(), Outgoing::empty());
        let answer = connection.exchange(&mut request, patience).await;
        let answer = answer.map_err(|failed| match failed {
            Failed::NotBegun | Failed::Upload => "it ends the connection".to_owned(),
            Failed::Late => "it does not come in time".to_owned(),
            Failed::Broken(cause) => cause.to_string(),
        })?;
        Ok((answer.status, connection))
    }
}
