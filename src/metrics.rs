//! What is counted, and its text for Prometheus.
//!
//! A request adds to a dozen counters that were there before it, without a lock or an allocation; the
//! rest is found out when somebody asks. Every label has a bounded set of values, which nobody can
//! make grow: at most some 2,000 series in all. People and keys are no labels: who used what is asked
//! of the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::api::{Class, ENDPOINTS};
use crate::reject::CODES;
use crate::store::UsageRow;

mod families;
mod histogram;
mod models;
mod outcome;
mod process;
mod text;

pub use families::{FAMILIES, Family, Kind};
pub use models::MOST_MODELS;
pub use outcome::Outcome;
pub use process::Process;
pub use text::CONTENT_TYPE;

use histogram::Histogram;
use models::Models;
use outcome::OUTCOMES;

/// Beside the operations of the API.
const UNKNOWN: usize = ENDPOINTS.len();
const ADMIN: usize = UNKNOWN + 1;
const NONE: usize = UNKNOWN + 2;
/// How many operations there are.
const OPERATIONS: usize = UNKNOWN + 3;

/// Classes of operations, in the order of [`class_of`].
const CLASSES: [&str; 8] =
    ["health", "inference", "models", "manage", "owner", "unknown", "admin", "none"];
const INFERENCE: usize = 1;

/// Classes of statuses; the first is for callers who left before there was one.
const STATUSES: [&str; 5] = ["none", "2xx", "3xx", "4xx", "5xx"];

/// What is counted of a request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Nothing for who came to no endpoint.
    pub operation: Option<&'static str>,
    /// 0 where none was sent.
    pub status: u16,
    pub outcome: Outcome,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub queue: Duration,
    /// Of a backend's answer.
    pub first_byte: Option<Duration>,
    pub total: Duration,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Metrics {
    /// By operation, outcome and status.
    requests: Box<[AtomicU64]>,
    /// In the order of [`CODES`].
    refusals: [AtomicU64; CODES.len()],
    received: [AtomicU64; CLASSES.len()],
    sent: [AtomicU64; CLASSES.len()],
    total: [Histogram; CLASSES.len()],
    first_byte: [Histogram; CLASSES.len()],
    queue: Histogram,
    first_token: Histogram,
    speed: Histogram,
    models: Models,
}

/// What is true at the moment of asking.
#[derive(Debug, Clone)]
pub struct Gauges {
    pub began: SystemTime,
    pub in_flight: usize,
    pub queued: usize,
    /// Of whoever waits longest.
    pub longest_wait: Duration,
    /// Of whoever is last.
    pub expected_wait: Duration,
    pub is_draining: bool,
    pub alarms: usize,
    pub backends: Vec<BackendGauge>,
    pub files: Vec<FileGauge>,
    /// Each certificate's file, and the seconds that are left.
    pub certificates: Vec<(String, i64)>,
    /// Nothing without a store, here and below.
    pub managed_keys: Option<usize>,
    pub is_store_good: Option<bool>,
    pub waiting_rows: Option<u64>,
    pub lost_rows: Option<u64>,
    pub late_answers: Option<u64>,
    pub lost_lines: u64,
    /// Nothing where nothing is traced.
    pub lost_spans: Option<u64>,
    pub process: Process,
}

/// A backend, now.
#[derive(Debug, Clone)]
pub struct BackendGauge {
    pub name: Arc<str>,
    pub is_up: bool,
    pub is_drained: bool,
    pub busy: usize,
}

/// A credential file, now.
#[derive(Debug, Clone)]
pub struct FileGauge {
    /// The configuration's key for it.
    pub name: &'static str,
    pub is_good: bool,
    pub entries: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = OPERATIONS * OUTCOMES.len() * STATUSES.len();
        Self {
            requests: (0..requests).map(|_| AtomicU64::new(0)).collect(),
            refusals: std::array::from_fn(|_| AtomicU64::new(0)),
            received: std::array::from_fn(|_| AtomicU64::new(0)),
            sent: std::array::from_fn(|_| AtomicU64::new(0)),
            total: std::array::from_fn(|_| Histogram::of_times()),
            first_byte: std::array::from_fn(|_| Histogram::of_times()),
            queue: Histogram::of_times(),
            first_token: Histogram::of_times(),
            speed: Histogram::of_speeds(),
            models: Models::default(),
        }
    }
}

impl Metrics {
    /// Counts a request that has ended.
    pub fn observe(&self, ended: &Ended) {
        let operation = place_of(ended.operation);
        let class = class_of(operation);
        let status = STATUSES.len().min(usize::from(ended.status / 100)).saturating_sub(1);
        let outcome = ended.outcome.place();
        let place = (operation * OUTCOMES.len() + outcome) * STATUSES.len() + status;
        add(self.requests.get(place), 1);
        if let Outcome::Refused(code) = ended.outcome {
            let known = CODES.iter().position(|known| *known == code);
            add(known.and_then(|place| self.refusals.get(place)), 1);
        }
        add(self.received.get(class), ended.bytes_in);
        add(self.sent.get(class), ended.bytes_out);
        if let Some(total) = self.total.get(class) {
            total.time(ended.total);
        }
        if let (Some(time), Some(times)) = (ended.first_byte, self.first_byte.get(class)) {
            times.time(time);
        }
        if class == INFERENCE {
            self.queue.time(ended.queue);
        }
    }

    /// Counts what a request came to, by its row of the ledger.
    pub fn observe_usage(&self, row: &UsageRow) {
        if !row.is_inference {
            return;
        }
        self.models.observe(row);
        if let Some(first_token) = row.first_token {
            self.first_token.time(first_token);
        }
        if let Some(speed) = speed(row) {
            self.speed.add(speed);
        }
    }

    /// Each counter of requests with its labels.
    fn requests(
        &self,
    ) -> impl Iterator<Item = ((&'static str, &'static str, &'static str), &AtomicU64)> {
        let labels = (0..OPERATIONS).flat_map(|operation| {
            OUTCOMES.iter().flat_map(move |outcome| {
                STATUSES.iter().map(move |status| (name_of(operation), *outcome, *status))
            })
        });
        labels.zip(&self.requests)
    }
}

fn add(counter: Option<&AtomicU64>, by: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// An operation of the table is mostly told by the very text that stands there; comparing addresses
/// takes a handful of instructions.
fn place_of(operation: Option<&'static str>) -> usize {
    let Some(operation) = operation else { return NONE };
    let same = ENDPOINTS.iter().position(|row| std::ptr::eq(row.operation, operation));
    let equal = || ENDPOINTS.iter().position(|row| row.operation == operation);
    // What is neither the table's nor unknown is asked at the admin listener.
    let other = if operation == "unknown" { UNKNOWN } else { ADMIN };
    same.or_else(equal).unwrap_or(other)
}

fn name_of(operation: usize) -> &'static str {
    match ENDPOINTS.get(operation) {
        Some(row) => row.operation,
        None if operation == UNKNOWN => "unknown",
        None if operation == ADMIN => "admin",
        None => "none",
    }
}

/// The place in [`CLASSES`].
fn class_of(operation: usize) -> usize {
    match ENDPOINTS.get(operation).map(|row| row.class) {
        Some(Class::Health) => 0,
        Some(Class::Inference) => INFERENCE,
        Some(Class::Models) => 2,
        Some(Class::Manage) => 3,
        Some(Class::Owner) => 4,
        Some(Class::Unknown) => 5,
        None => 5 + operation - UNKNOWN,
    }
}

/// In thousandths of a token a second; nothing of an answer too short to tell.
fn speed(row: &UsageRow) -> Option<u64> {
    let ours = || row.total.checked_sub(row.first_token?);
    let time = row.usage.generation.or_else(ours)?;
    let micros = u64::try_from(time.as_micros()).ok().filter(|micros| *micros > 0)?;
    let tokens = Some(row.usage.completion).filter(|tokens| *tokens > 1)?;
    Some(tokens.saturating_mul(1_000_000_000) / micros)
}

#[cfg(test)]
mod tests;
