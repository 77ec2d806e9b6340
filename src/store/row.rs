//! What one request came to: a row of the ledger.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Tokens, and what the backend said of its time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: u64,
    pub completion: u64,
    /// Of the prompt, what the backend had worked out before; where it says so.
    pub cached: Option<u64>,
    /// Of the completion, what the caller does not see; where it says so.
    pub reasoning: Option<u64>,
    /// Counted by us, because the backend did not say, or not all of it.
    pub estimated: bool,
    /// How long it took to load the model; where it says so.
    pub load: Option<Duration>,
    /// How long it read the prompt; where it says so.
    pub prefill: Option<Duration>,
    /// How long it generated; where it says so.
    pub generation: Option<Duration>,
    /// How long it took by its own clock, with its own queue; where it says so.
    pub total: Option<Duration>,
}

/// One request that a backend began. Never a credential, a prompt or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// When the request had been read.
    pub time: SystemTime,
    /// The request's, 16 hex digits: a row is known by it.
    pub id: [u8; 16],
    pub client: Option<IpAddr>,
    /// The account: of a name, or of whom a front end asked for.
    pub name: Arc<str>,
    /// How a key is called, for who came with one that has a name of its own.
    pub key: Option<Arc<str>>,
    /// As Ollama shows it, whatever its spelling in the request; as it was written where that is no name.
    pub model: Option<String>,
    pub operation: &'static str,
    /// Generation, embedding and the like; management otherwise.
    pub is_inference: bool,
    pub backend: Arc<str>,
    pub status: u16,
    /// As in the log, without the code of a refusal.
    pub outcome: &'static str,
    pub usage: Usage,
    /// What was asked of the runner that may load the model anew: `num_ctx=8192 num_gpu=0`.
    pub runner_options: Option<Box<str>>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// How long it waited for its turn.
    pub queue: Duration,
    pub first_byte: Option<Duration>,
    pub first_token: Option<Duration>,
    pub total: Duration,
    /// From when a backend had it until the end.
    pub backend_time: Duration,
}

impl Usage {
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl UsageRow {
        /// A chat of Anna's in a short row of them from 2026-11-24T12:00:00Z on, for tests.
        pub(crate) fn example(number: u32) -> Self {
            let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_521_600);
            Self {
                time: noon + Duration::from_millis(u64::from(number) * 7),
                id: format!("cafe0000{number:08x}").into_bytes().try_into().unwrap(),
                client: Some("192.0.2.7".parse().unwrap()),
                name: "anna".into(),
                key: None,
                model: Some("gemma3:1b".to_owned()),
                operation: "chat",
                is_inference: true,
                backend: "ollama".into(),
                status: 200,
                outcome: "done",
                usage: Usage { prompt: 10, completion: u64::from(number), ..Usage::default() },
                runner_options: None,
                bytes_in: 100,
                bytes_out: 2000,
                queue: Duration::ZERO,
                first_byte: Some(Duration::from_millis(20)),
                first_token: Some(Duration::from_millis(30)),
                total: Duration::from_millis(900),
                backend_time: Duration::from_millis(800),
            }
        }
    }
}
