//! What was used, as it is asked for: sums by whatever columns, and the rows themselves.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Usage;

/// A column to sum by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    Name,
    Key,
    Model,
    Backend,
    Operation,
    Day,
    Hour,
}

/// Only what is exactly so; `None` is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFilter {
    pub name: Option<String>,
    pub key: Option<String>,
    pub model: Option<String>,
    pub backend: Option<String>,
    pub operation: Option<String>,
}

/// Which sums.
#[derive(Debug, Clone)]
pub struct UsageQuery {
    pub by: Vec<By>,
    /// The first moment.
    pub since: Timestamp,
    /// The first moment after it.
    pub until: Timestamp,
    /// Whose days and hours they are.
    pub zone: TimeZone,
    pub only: UsageFilter,
}

/// What some requests came to together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub requests: u64,
    /// Requests whose tokens are an estimate.
    pub estimated: u64,
    pub prompt: u64,
    pub completion: u64,
    pub cached: u64,
    pub reasoning: u64,
    pub backend_time: Duration,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSum {
    /// The value of each column of `by`, in its order: a day as `2026-11-24`, an hour as
    /// `2026-11-24T13:00+01:00`. `None` where requests have none, as a key.
    pub columns: Vec<Option<String>>,
    pub tally: Tally,
    /// The same by model, for the price.
    pub models: Vec<(Option<String>, Tally)>,
}

/// Which rows, the newest first.
#[derive(Debug, Clone)]
pub struct RowsQuery {
    pub since: Timestamp,
    pub until: Timestamp,
    pub only: UsageFilter,
    /// Only those before this place; `None` begins with the newest.
    pub before: Option<u64>,
    /// 1000 at the most.
    pub limit: usize,
}

/// One row as it is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageEntry {
    /// Where it stands: the next page begins before the last one's.
    pub place: u64,
    pub id: String,
    /// To the millisecond.
    pub time: Timestamp,
    pub client: Option<IpAddr>,
    pub name: String,
    pub key: Option<String>,
    pub model: Option<String>,
    pub operation: String,
    pub is_inference: bool,
    pub backend: String,
    pub status: u16,
    pub outcome: String,
    pub usage: Usage,
    pub runner_options: Option<String>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub queue: Duration,
    pub first_byte: Option<Duration>,
    pub first_token: Option<Duration>,
    pub total: Duration,
    pub backend_time: Duration,
}

/// A model was loaded, as far as the backend says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// The request that had to wait for it.
    pub entry: UsageEntry,
    /// The request before it to the same model of the same backend, if there was one.
    pub before: Option<LoadedBy>,
}

/// What a model had been loaded with, as its last request had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedBy {
    pub name: String,
    pub time: Timestamp,
    pub runner_options: Option<String>,
}

/// What counts against limits by the calendar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    pub name: String,
    pub key: Option<String>,
    pub model: Option<String>,
    pub operation: String,
    pub requests: u64,
    /// Of prompt and completion.
    pub tokens: u64,
    pub backend_time: Duration,
}

impl By {
    pub const ALL: [Self; 7] =
        [Self::Name, Self::Key, Self::Model, Self::Backend, Self::Operation, Self::Day, Self::Hour];

    /// As it is written, and as the column is called.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "user",
            Self::Key => "key",
            Self::Model => "model",
            Self::Backend => "backend",
            Self::Operation => "operation",
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|by| by.as_str() == text).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.into_iter().map(Self::as_str).collect();
            format!("{text:?} is none of {}", all.join(", "))
        })
    }
}

impl Tally {
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }

    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.estimated = self.estimated.saturating_add(other.estimated);
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.completion = self.completion.saturating_add(other.completion);
        self.cached = self.cached.saturating_add(other.cached);
        self.reasoning = self.reasoning.saturating_add(other.reasoning);
        self.backend_time = self.backend_time.saturating_add(other.backend_time);
    }
}

impl UsageFilter {
    pub(super) fn of(&self, by: By) -> Option<&str> {
        match by {
            By::Name => self.name.as_deref(),
            By::Key => self.key.as_deref(),
            By::Model => self.model.as_deref(),
            By::Backend => self.backend.as_deref(),
            By::Operation => self.operation.as_deref(),
            By::Day | By::Hour => None,
        }
    }
}

impl UsageEntry {
    pub(super) fn tally(&self) -> Tally {
        let Usage { prompt, completion, cached, reasoning, estimated, .. } = self.usage;
        Tally {
            requests: 1,
            estimated: u64::from(estimated),
            prompt,
            completion,
            cached: cached.unwrap_or(0),
            reasoning: reasoning.unwrap_or(0),
            backend_time: self.backend_time,
        }
    }

    /// Names of models that there are not have no end, and sums of them tell nothing.
    #[must_use]
    pub fn summed_model(&self) -> Option<&str> {
        self.model.as_deref().filter(|_| self.status != 404)
    }
}

/// Later ones, in milliseconds since 1970, are taken for it.
pub(super) const LAST_MOMENT: i64 = (1 << 43) - 1;
/// Of the request's id, to tell rows of one millisecond apart.
pub(super) const NUMBER_BITS: u32 = 20;

/// Where the rows of a moment begin.
pub(super) fn place_at(millisecond: i64) -> i64 {
    millisecond.clamp(0, LAST_MOMENT) << NUMBER_BITS
}
