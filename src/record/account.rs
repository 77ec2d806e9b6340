//! The row of usage that a request leaves, kept until it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::text::short;
use super::{Line, Outcome};
use crate::access::Permit;
use crate::api::Class;
use crate::auth::Name;
use crate::call::Call;
use crate::call::reading::Reading;
use crate::config::ModelName;
use crate::store::{Ledger, Usage, UsageRow, Written};

/// What a row says beyond the line. There is one for every request that may leave a row.
#[derive(Debug)]
pub struct Account {
    /// Where the row goes; nowhere without a store.
    ledger: Option<Arc<Ledger>>,
    key: Option<Arc<str>>,
    model: Option<String>,
    is_inference: bool,
    runner_options: Option<Box<str>>,
    /// Tokens of the prompt, for an answer that does not come to tell.
    prompt: u64,
    /// When a backend had it; without that there is no row.
    began: Option<Instant>,
    first_token: Option<Duration>,
    is_closed: bool,
}

impl Account {
    /// `None` where no row is kept of such requests. `sent`: what the body says as a backend gets it, which
    /// is what loads a model anew.
    #[must_use]
    pub fn open(
        ledger: Option<&Arc<Ledger>>,
        permit: &Permit,
        (call, sent): (&Call<'_>, &Reading),
    ) -> Option<Box<Self>> {
        let is_inference = match call.asked.class() {
            Class::Inference => true,
            Class::Manage => false,
            Class::Health | Class::Models | Class::Owner | Class::Unknown => return None,
        };
        let key = permit.who().grant().map(|grant| Arc::from(grant.key_name.as_str()));
        Some(Box::new(Self {
            ledger: ledger.map(Arc::clone),
            key,
            model: permit
                .model()
                .map(ModelName::to_text)
                .or_else(|| call.model().map(|model| shown(&model))),
            is_inference,
            runner_options: sent.runner_options(),
            prompt: sent.prompt_estimate(),
            began: None,
            first_token: None,
            is_closed: false,
        }))
    }

    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref().filter(|_| self.is_inference)
    }

    pub(super) fn begins(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    pub(super) fn backend_time(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub(super) fn first_token(&mut self, after: Duration) {
        self.first_token.get_or_insert(after);
    }

    pub(super) fn prompt_estimate(&self) -> Option<u64> {
        self.is_inference.then_some(self.prompt)
    }

    /// What a request comes to that ended before an answer told; `None` if it was told.
    pub(super) fn untold(&self, outcome: Outcome) -> Option<Usage> {
        if self.is_closed {
            return None;
        }
        Some(match outcome {
            // The backend was at work on the prompt.
            Outcome::ClientGone | Outcome::Drained | Outcome::Stopped if self.is_inference => {
                Usage { prompt: self.prompt, estimated: true, ..Usage::default() }
            }
            Outcome::Done
            | Outcome::ClientGone
            | Outcome::BackendFailed
            | Outcome::BackendTimeout
            | Outcome::Drained
            | Outcome::Stopped
            | Outcome::Refused(_) => Usage::default(),
        })
    }

    /// The row, once, of what a backend began.
    pub(super) fn close(&mut self, line: &Line, end: End) -> Option<UsageRow> {
        let is_closed = std::mem::replace(&mut self.is_closed, true);
        (self.began.is_some() && !is_closed).then(|| self.row(line, end))
    }

    pub(super) fn post(&self, row: UsageRow) -> Option<Written> {
        Some(self.ledger.as_ref()?.post(row))
    }

    pub(super) fn count_late(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.count_late();
        }
    }

    fn row(&self, line: &Line, end: End) -> UsageRow {
        UsageRow {
            time: line.time,
            id: line.id.0,
            client: line.client,
            name: line.name.as_ref().map_or_else(|| "-".into(), Name::shared),
            key: self.key.clone(),
            model: self.model.clone(),
            operation: line.operation.unwrap_or("-"),
            is_inference: self.is_inference,
            backend: line.backend.clone().unwrap_or_else(|| "-".into()),
            status: line.status,
            outcome: end.outcome.code().unwrap_or_else(|| end.outcome.kind()),
            usage: end.usage,
            runner_options: self.runner_options.clone(),
            bytes_in: end.bytes_in,
            bytes_out: line.bytes_out,
            queue: line.queue,
            first_byte: line.first_byte,
            first_token: self.first_token,
            total: end.total,
            backend_time: self.backend_time(),
        }
    }
}

/// What is known at the end only.
pub(super) struct End {
    pub outcome: Outcome,
    pub usage: Usage,
    pub total: Duration,
    pub bytes_in: u64,
}

/// As Ollama shows it; what is no name is kept as it was written.
fn shown(name: &str) -> String {
    ModelName::parse(name).map_or_else(|_| short(name).to_owned(), |it| it.to_text())
}
