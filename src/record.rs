//! One [`Line`] per request, written when the answer ends, however it ends.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::Method;

use crate::api::{self, Asked};
use crate::auth::{Credential, Identity, Name};
use crate::client_addr::ClientAddr;
use crate::config::{LogFormat, Role};
use crate::http1::Arrival;
use crate::metrics::Metrics;
use crate::reject::{Fault, Reject};
use crate::store::{KeyId, Usage, Written};
use crate::traces::Trace;

mod account;
mod counted;
mod decisions;
mod outlet;
mod text;
mod traced;

pub use crate::metrics::Outcome;
pub use account::Account;
pub use decisions::{Decisions, MOST_DECISIONS};
pub use outlet::Outlet;

use decisions::Refusal;
use text::{json_line, text_line};

/// Most lines, in bytes.
const USUAL_LINE: usize = 512;

/// Zeros that a backend hears before it: some take no id that is no UUID, such as llama-cpp-python's server
/// (`PluginUUIDBase` of starlette-context), which answers 400.
const PADDING: &str = "0000000000000000";

/// Names one request in the log, in `X-Request-Id` and to the backend: 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 16]);

impl RequestId {
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// As backends hear it: 32 hex digits.
    #[must_use]
    pub fn padded(&self) -> [u8; 32] {
        let mut padded = [b'0'; 32];
        padded.iter_mut().skip(PADDING.len()).zip(self.0).for_each(|(digit, b)| *digit = b);
        padded
    }

    /// Also as a backend heard it. `None` for a text that cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix(PADDING).filter(|id| !id.is_empty()).unwrap_or(text);
        let id: [u8; 16] = text.as_bytes().try_into().ok()?;
        id.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b)).then_some(Self(id))
    }

    /// Which request of its process this is.
    fn number(self) -> u32 {
        let digit = |b: u8| u32::from(b & 0xf) + if b > b'9' { 9 } else { 0 };
        self.0.iter().skip(8).fold(0, |number, b| number << 4 | digit(*b))
    }
}

impl From<RequestId> for [u8; 16] {
    fn from(id: RequestId) -> Self {
        id.0
    }
}

/// Draws request ids: random per process, then counting.
#[derive(Debug)]
pub struct RequestIds {
    process: u32,
    next: AtomicU32,
}

impl RequestIds {
    /// # Errors
    /// Where the system has no random numbers to give.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut random = [0; 4];
        getrandom::fill(&mut random)?;
        Ok(Self { process: u32::from_ne_bytes(random), next: AtomicU32::new(0) })
    }

    pub fn draw(&self) -> RequestId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let whole = (u64::from(self.process) << 32) | u64::from(number);
        let mut id = [0; 16];
        for (place, digit) in id.iter_mut().enumerate() {
            let nibble = whole >> (60 - 4 * place) & 0xf;
            *digit = b"0123456789abcdef".get(nibble as usize).copied().unwrap_or(b'0');
        }
        RequestId(id)
    }
}

/// What is written of one request. Never a credential, a query or a body.
#[derive(Debug)]
pub struct Line {
    pub time: SystemTime,
    pub id: RequestId,
    pub client: Option<IpAddr>,
    pub name: Option<Name>,
    pub credential: Option<Credential>,
    pub method: Option<Method>,
    pub path: Cow<'static, str>,
    pub operation: Option<&'static str>,
    pub model: Option<String>,
    pub backend: Option<Arc<str>>,
    pub status: u16,
    pub outcome: Outcome,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub queue: Duration,
    /// Of what waited: how many did when it came, itself among them.
    pub position: Option<usize>,
    pub first_byte: Option<Duration>,
    pub total: Duration,
    /// Not written, but told to whoever asks why.
    role: Option<Role>,
    key: Option<KeyId>,
    refusal: Option<Box<Refusal>>,
}

/// Keeps the line of a request that is under way; dropping it writes the line.
#[derive(Debug)]
pub struct Record {
    pub line: Line,
    /// Of a request that is traced.
    pub trace: Option<Box<Trace>>,
    started: Instant,
    arrived: Arc<Arrival>,
    log: Log,
    ended: bool,
    /// While it waits for its turn.
    waits_since: Option<Instant>,
    /// Of a request that may leave a row of usage.
    account: Option<Box<Account>>,
}

impl Record {
    /// Opens the record of a request that has just been read.
    #[must_use]
    pub fn open(log: Log, id: RequestId, arrived: Arc<Arrival>) -> Self {
        let line = Line { time: SystemTime::now(), id, ..Line::default() };
        let started = Instant::now();
        Self {
            line,
            trace: None,
            started,
            arrived,
            log,
            ended: false,
            waits_since: None,
            account: None,
        }
    }

    pub fn opened(&mut self, client: ClientAddr, method: &Method, path: &str) {
        self.line.client = Some(client.ip());
        self.line.method = Some(method.clone());
        self.line.path = api::loggable(path);
    }

    pub fn met(&mut self, who: &Identity) {
        self.line.name = Some(who.name().clone());
        self.line.credential = Some(who.credential());
        self.line.role = Some(who.role());
        self.line.key = who.managed_key();
    }

    pub fn asked(&mut self, asked: &Asked) {
        self.line.operation = Some(asked.operation());
        self.line.path = asked.path().clone();
    }

    /// The model that is asked for, as it was written.
    pub fn names(&mut self, model: Option<Cow<'_, str>>) {
        self.line.model = model.map(Cow::into_owned);
    }

    pub fn leaves_for(&mut self, backend: &Arc<str>) {
        self.line.backend = Some(Arc::clone(backend));
    }

    /// From here on it waits for its turn; see [`Line::position`].
    pub fn waits(&mut self, position: usize) {
        self.line.position.get_or_insert(position);
        self.waits_since = Some(Instant::now());
    }

    /// Its turn has come, or it waits no longer.
    pub fn waited(&mut self) {
        if let Some(since) = self.waits_since.take() {
            self.line.queue += since.elapsed();
        }
    }

    /// The model as Ollama shows it, of a request that a model works on.
    #[must_use]
    pub fn model_shown(&self) -> Option<&str> {
        self.account.as_ref()?.model()
    }

    /// From here on the request may leave a row of usage.
    pub fn accounts(&mut self, account: Option<Box<Account>>) {
        self.account = account;
    }

    /// A backend has it now.
    pub fn begins(&mut self, now: Instant) {
        if let Some(account) = &mut self.account {
            account.begins(now);
        }
    }

    /// The first of what a model made has come.
    pub fn first_token(&mut self) {
        if let Some(account) = &mut self.account {
            let after = self.started.elapsed();
            self.line.first_byte.get_or_insert(after);
            account.first_token(after);
        }
    }

    /// Tokens of the prompt as they are estimated, where a model is to be at work on it.
    #[must_use]
    pub fn prompt_estimate(&self) -> Option<u64> {
        self.account.as_ref()?.prompt_estimate()
    }

    /// How long a backend has had it.
    #[must_use]
    pub fn backend_time(&self) -> Duration {
        self.account.as_ref().map_or(Duration::ZERO, |account| account.backend_time())
    }

    /// Posts the row, once: `outcome` is that of the answer, which may be over before its line is.
    pub fn post(&mut self, outcome: Outcome, usage: Usage) -> Option<Written> {
        let account = self.account.as_mut()?;
        let (total, bytes_in) = (self.started.elapsed(), self.arrived.bytes());
        let end = account::End { outcome, usage, total, bytes_in };
        let row = account.close(&self.line, end)?;
        self.log.shared.metrics.observe_usage(&row);
        account.post(row)
    }

    /// Posts the row of what no answer of a model told of, once.
    pub fn post_untold(&mut self) -> Option<Written> {
        let outcome = self.outcome();
        let usage = self.account.as_ref()?.untold(outcome)?;
        self.post(outcome, usage)
    }

    /// The answer goes out whole before its row is written.
    pub fn count_late(&self) {
        if let Some(account) = &self.account {
            account.count_late();
        }
    }

    /// How it has ended, as far as is known.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.ended || !self.log.is_cutting() {
            true => self.line.outcome,
            false => Outcome::Drained,
        }
    }

    /// Whoever forgets this is taken for a caller who left.
    pub fn end(&mut self, outcome: Outcome) {
        if !self.ended {
            self.line.outcome = outcome;
            self.ended = true;
        }
    }

    pub fn refuse(&mut self, reject: &Reject, bytes: usize) {
        let row = reject.row();
        self.line.status = row.status;
        self.line.bytes_out = bytes as u64;
        self.line.refusal = Some(Box::new(Refusal::of(reject)));
        self.end(match matches!(reject, Reject::Stopped) {
            true => Outcome::Stopped,
            false => Outcome::Refused(row.code),
        });
        say(reject, self.line.id, &self.log);
    }

    /// The answer broke after its first byte, when the status had gone already.
    pub fn break_off(&mut self, reject: &Reject) {
        let row = reject.row();
        self.end(match (row.fault, row.code) {
            (_, "backend_timeout") => Outcome::BackendTimeout,
            (_, "bad_credentials" | "stopped") => Outcome::Stopped,
            (Fault::Ours, code) => Outcome::Refused(code),
            (Fault::Backend | Fault::Caller, _) => Outcome::BackendFailed,
        });
        say(reject, self.line.id, &self.log);
    }

    /// Counts a chunk on its way to the caller.
    pub fn sent(&mut self, bytes: usize) {
        self.line.bytes_out += bytes as u64;
        if self.line.first_byte.is_none() {
            self.line.first_byte = Some(self.started.elapsed());
        }
    }

    /// When the request had been read.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }
}

/// Callers' mistakes have their line; what a backend or we did wrong is told with its causes. A gate
/// that has too much to do does not write more for it.
fn say(reject: &Reject, id: RequestId, log: &Log) {
    let row = reject.row();
    if matches!(reject, Reject::Overloaded(_)) && !log.overload().is_due(Instant::now()) {
        return;
    }
    let id = id.as_str();
    match row.fault {
        Fault::Caller => {}
        Fault::Backend => {
            tracing::warn!(id, code = row.code, "request failed: {}", Chain(reject));
        }
        Fault::Ours => tracing::error!(id, code = row.code, "request failed: {}", Chain(reject)),
    }
}

/// An error and its sources, in one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.line.outcome = self.outcome();
        // Nobody is left to wait for it.
        drop(self.post_untold());
        self.waited();
        self.line.total = self.started.elapsed();
        self.line.bytes_in = self.arrived.bytes();
        self.log.post(&self.line);
        self.log.shared.metrics.observe(&self.line.counted());
        if let Some(trace) = &self.trace {
            traced::post(&self.line, trace);
        }
        self.log.shared.decisions.keep(&mut self.line);
    }
}

/// Where lines go.
#[derive(Debug, Clone)]
pub struct Log {
    lines: Outlet,
    write: fn(&Line, &mut Vec<u8>),
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    cutting: AtomicBool,
    overload: Seldom,
    decisions: Decisions,
    metrics: Arc<Metrics>,
}

/// Something that is told once a second at most, however often it happens.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether to tell it now.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1));
        if due {
            *last = Some(now);
        }
        due
    }
}

impl Log {
    /// Starts the thread that writes lines to `sink`.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(sink: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let write: fn(&Line, &mut Vec<u8>) = match format {
            LogFormat::Text => text_line,
            LogFormat::Json => json_line,
        };
        let lines = Outlet::start("log", sink)?;
        Ok(Self { lines, write, shared: Arc::default() })
    }

    fn post(&self, line: &Line) {
        let mut text = Vec::with_capacity(USUAL_LINE);
        (self.write)(line, &mut text);
        self.lines.post(&text);
    }

    /// From now on an answer that breaks off was cut by us.
    pub fn cut(&self) {
        self.shared.cutting.store(true, Ordering::Relaxed);
    }

    fn is_cutting(&self) -> bool {
        self.shared.cutting.load(Ordering::Relaxed)
    }

    /// That there is too much to do, whatever it is too much for.
    #[must_use]
    pub fn overload(&self) -> &Seldom {
        &self.shared.overload
    }

    /// What was decided of late.
    #[must_use]
    pub fn decisions(&self) -> &Decisions {
        &self.shared.decisions
    }

    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Lines that were dropped because nobody read them fast enough.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lines.lost()
    }

    /// Waits until everything posted so far is written, for as long as `patience`.
    pub fn flush(&self, patience: Duration) {
        self.lines.flush(patience);
    }
}

impl Default for Line {
    fn default() -> Self {
        Self {
            time: SystemTime::UNIX_EPOCH,
            id: RequestId([b'0'; 16]),
            client: None,
            name: None,
            credential: None,
            method: None,
            path: Cow::Borrowed("-"),
            operation: None,
            model: None,
            backend: None,
            status: 0,
            outcome: Outcome::ClientGone,
            bytes_in: 0,
            bytes_out: 0,
            queue: Duration::ZERO,
            position: None,
            first_byte: None,
            total: Duration::ZERO,
            role: None,
            key: None,
            refusal: None,
        }
    }
}

#[cfg(test)]
mod tests;
