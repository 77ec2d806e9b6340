//! What a collector of traces is told of a request (OpenTelemetry, by OTLP over HTTP in JSON).
//!
//! A room of its own, because both the record, which knows how a request went, and the request that
//! goes on to a backend, which names the trace, stand on it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::task::JoinSet;

use crate::call::Outgoing;
use crate::config::BackendUrl;
use crate::pool::{Backend, Outbound};
use crate::tls::BackendTls;

mod context;
mod span;

pub use context::{Context, TRACEPARENT, TRACESTATE};
pub use span::Span;

/// Spans that wait for a collector that does not answer; past them they are dropped and counted.
const MOST_WAITING: usize = 2_048;
/// Spans in one request to the collector.
const MOST_AT_ONCE: usize = 512;
const PATIENCE: Duration = Duration::from_secs(5);
/// What a collector says is of no interest beyond its status.
const MOST_ANSWER: usize = 64 * 1024;

/// Where spans go; survives a reload that does not change it.
#[derive(Debug)]
pub struct Tracer {
    collector: Backend,
    /// Of so many requests one is traced, where the caller has not decided that.
    one_in: u32,
    met: AtomicU32,
    waiting: Mutex<VecDeque<Span>>,
    lost: AtomicU64,
    /// The collector failed last time, and that has been said.
    is_failing: AtomicBool,
    sending: Mutex<JoinSet<()>>,
}

/// One request that is traced.
#[derive(Debug)]
pub struct Trace {
    tracer: Arc<Tracer>,
    pub context: Context,
}

impl Tracer {
    #[must_use]
    pub fn new(url: BackendUrl, tls: Option<BackendTls>, one_in: u32) -> Self {
        Self {
            collector: Backend::plain("traces", url, tls),
            one_in,
            met: AtomicU32::new(0),
            waiting: Mutex::default(),
            lost: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
            sending: Mutex::default(),
        }
    }

    /// Whether it was made for this.
    #[must_use]
    pub fn is_for(&self, url: &BackendUrl, one_in: u32) -> bool {
        self.collector.url() == url && self.one_in == one_in
    }

    /// A caller who is traced already decides whether this request is; of the others one in so many.
    #[must_use]
    pub fn begin(self: &Arc<Self>, headers: &HeaderMap) -> Option<Box<Trace>> {
        let context = match Context::read(headers) {
            Some(theirs) if theirs.is_sampled() => theirs.child(),
            Some(_) => return None,
            None if self.met.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.one_in) => {
                Context::draw()
            }
            None => return None,
        };
        // Without random numbers there is no trace.
        let context = context.ok()?;
        Some(Box::new(Trace { tracer: Arc::clone(self), context }))
    }

    /// Spans that were dropped, because the collector does not take them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// To be called about once a second: what waits is sent, aside.
    pub fn tend(self: &Arc<Self>) {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        while sending.try_join_next().is_some() {}
        if sending.is_empty() && !self.waiting().is_empty() {
            let tracer = Arc::downgrade(self);
            sending.spawn(async move {
                while let Some(tracer) = tracer.upgrade()
                    && tracer.send_some().await
                {}
            });
        }
    }

    /// Whether there may be more to send.
    async fn send_some(&self) -> bool {
        let some: Vec<_> = {
            let mut waiting = self.waiting();
            let most = waiting.len().min(MOST_AT_ONCE);
            waiting.drain(..most).collect()
        };
        if some.is_empty() {
            return false;
        }
        let sent = tokio::time::timeout(PATIENCE, self.send(span::document(&some))).await;
        let why = match sent {
            Ok(Ok(())) => {
                self.is_failing.store(false, Ordering::Relaxed);
                return true;
            }
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        self.lost.fetch_add(some.len() as u64, Ordering::Relaxed);
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(lost = some.len(), "the collector of traces does not take them: {why}");
        }
        false
    }

    async fn send(&self, document: String) -> Result<(), String> {
        let host = self.collector.url().authority();
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            document.len()
        );
        let body = Outgoing::of(Bytes::from(document));
        let mut request = Outbound::new(Method::POST, head.into_bytes(), body);
        let mut connection = self.collector.connect().await.map_err(|error| error.to_string())?;
        let head = connection.exchange(&mut request, PATIENCE).await;
        let head = head.map_err(|_| "it broke off".to_owned())?;
        if !head.status.is_success() {
            return Err(format!("it answers {}", head.status));
        }
        // Read to the end, so that it is not cut off while it answers.
        let _ = connection.whole(PATIENCE, MOST_ANSWER).await;
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Span>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trace {
    /// Gives the span away, to be sent.
    pub fn post(&self, span: Span) {
        let mut waiting = self.tracer.waiting();
        if waiting.len() < MOST_WAITING {
            waiting.push_back(span);
        } else {
            self.tracer.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
