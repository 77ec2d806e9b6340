//! The ledger: a row is in the journal before the answer it is about is over, and in the store soon after.
//!
//! One thread adds to the journal, another one brings what is there into the store. Neither ever
//! holds up who posts a row.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use tracing::{error, info};

use batch::Batch;

use super::calendar::Calendar;
use super::folder::Folder;
use super::journal::{self, Journal, Make, record};
use super::{Store, StoreError, UsageRow};
use crate::config::LedgerMode;

mod batch;

pub use batch::Written;

/// So many rows wait in memory for a journal that cannot be written, before the ledger is full.
pub const MOST_WAITING: usize = 10_000;
/// Those of requests that had begun by then have room as well.
const ROOM: usize = 2 * MOST_WAITING;
/// So much of a journal waits for a store that is away.
const MOST_BYTES: u64 = 256 << 20;
/// Rows of one write.
const AT_ONCE: usize = 512;
/// Where batches follow one another so closely others are about to post as well.
const OFTEN: Duration = Duration::from_micros(250);
/// Between two attempts to write to a journal that could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// How a ledger is kept.
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    pub mode: LedgerMode,
    /// How long rows are kept; sums by days for ten years.
    pub keep: Duration,
    /// Whose hours and days are summed.
    pub zone: TimeZone,
}

/// Takes rows, and loses none that it took but for a journal that is full. Dropping it writes
/// what waits.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What keeps rows from where they belong. None is lost by that yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerTrouble {
    #[error("usage cannot be written to its journal, and waits in memory: {0}")]
    Journal(String),
    #[error("usage cannot be brought into the store, and waits in its journal: {0}")]
    Store(StoreError),
}

impl Ledger {
    /// Begins with what an earlier process left in the journal.
    ///
    /// # Errors
    /// Where the system has no thread to give.
    pub fn start(store: &Arc<Store>, settings: LedgerSettings) -> Result<Self, StoreError> {
        Self::start_on(store, settings, Box::new(journal::make))
    }

    pub(super) fn start_on(
        store: &Arc<Store>,
        settings: LedgerSettings,
        make: Make,
    ) -> Result<Self, StoreError> {
        let LedgerSettings { mode, keep, zone } = settings;
        let shared = Arc::new(Shared::default());
        shared.lock().bytes = journal::size(store.folder());
        let folder = Folder::new(Arc::clone(store), Arc::clone(&shared), Calendar::new(zone), keep);
        spawn("fold", move || folder.run())?;
        let journal = Journal::new(store.folder(), mode == LedgerMode::Durable, make);
        let writer =
            Writer { shared: Arc::clone(&shared), journal, bytes: Vec::new(), batch: None };
        let writer = spawn("ledger", move || writer.run())?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Takes a row. The last bytes of the answer wait for what this gives back, if they do; it has to be
    /// polled or dropped, which wakes the writer.
    pub fn post(&self, row: UsageRow) -> Written {
        Shared::post(&self.shared, row)
    }

    /// Nothing more should be let in that has to be counted.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) >= MOST_WAITING
    }

    /// Rows that are lost since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// An answer goes out whole before its row is in the journal.
    pub fn count_late(&self) {
        self.shared.late.fetch_add(1, Ordering::Relaxed);
    }

    /// Answers that went out whole before their row was in the journal, since the start.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.shared.late.load(Ordering::Relaxed)
    }

    /// Rows that are in memory and not in the journal.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Rows that are in the journal and not in the store.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.shared.lock().lag()
    }

    #[must_use]
    pub fn trouble(&self) -> Option<LedgerTrouble> {
        let state = self.shared.lock();
        let journal = state.journal_trouble.clone().map(LedgerTrouble::Journal);
        journal.or_else(|| state.store_trouble.clone().map(LedgerTrouble::Store))
    }

    /// Waits until what was posted is in the journal, and in the store if that does not hold up; whether
    /// it is in the journal. Blocks.
    #[must_use]
    pub fn flush(&self, patience: Duration) -> bool {
        let ends = Instant::now() + patience;
        let mut state = self.shared.lock();
        state.is_urgent = true;
        state.watchers += 1;
        self.shared.to_fold.notify_all();
        loop {
            let is_written = self.waiting() == 0;
            let is_folded = state.lag() == 0 || state.store_trouble.is_some();
            let left = ends.saturating_duration_since(Instant::now());
            if is_written && is_folded || left.is_zero() {
                state.watchers -= 1;
                return is_written;
            }
            let waited = self.shared.settled.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.posted.notify_all();
        if let Some(writer) = self.writer.take() {
            // A panic of that thread has been told already.
            let _ = writer.join();
        }
        self.shared.to_fold.notify_all();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|error| StoreError::Failed(error.to_string()))
}

/// What the threads and those who post share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    posted: Condvar,
    to_fold: Condvar,
    settled: Condvar,
    waiting: AtomicUsize,
    lost: AtomicU64,
    late: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    queue: Vec<UsageRow>,
    /// Of those in the queue who wait.
    batch: Option<Arc<Batch>>,
    /// When the last batch began.
    began: Option<Instant>,
    /// It has to be woken for what is posted.
    is_asleep: bool,
    is_over: bool,
    has_written_all: bool,
    has_told_of_loss: bool,
    pub(super) is_urgent: bool,
    /// Who waits for all to be settled: to wake them is a call to the kernel, also where nobody waits.
    watchers: usize,
    /// The file of the journal that is being added to, and up to where it is good.
    pub(super) at: Option<(Arc<str>, u64)>,
    /// Of all files of the journal.
    pub(super) bytes: u64,
    /// Rows, since the start.
    pub(super) written: u64,
    pub(super) folded: u64,
    /// Rows of earlier processes.
    pub(super) old: u64,
    journal_trouble: Option<String>,
    pub(super) store_trouble: Option<StoreError>,
}

impl State {
    pub(super) fn lag(&self) -> u64 {
        self.written.saturating_sub(self.folded) + self.old
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(this: &Arc<Self>, row: UsageRow) -> Written {
        let mut state = this.lock();
        if state.is_over || this.waiting.load(Ordering::Relaxed) >= ROOM {
            let is_first = !std::mem::replace(&mut state.has_told_of_loss, true);
            drop(state);
            this.lost.fetch_add(1, Ordering::Relaxed);
            if is_first {
                error!(rows = ROOM, "usage is lost: its journal cannot be written, memory is full");
            }
            return Written::default();
        }
        this.waiting.fetch_add(1, Ordering::Relaxed);
        state.queue.push(row);
        match (&state.journal_trouble, &state.batch) {
            // There is no telling how long it would have to be waited for. It looks again by itself.
            (Some(_), _) => Written::default(),
            (None, Some(batch)) => Written::of(batch),
            (None, None) => {
                let (batch, now) = (Arc::default(), Instant::now());
                state.batch = Some(Arc::clone(&batch));
                let before = state.began.replace(now);
                let gathers = before.is_some_and(|before| now - before < OFTEN);
                Written::leading(&batch, this, gathers)
            }
        }
    }

    fn wake_writer(&self) {
        let is_asleep = std::mem::take(&mut self.lock().is_asleep);
        if is_asleep {
            self.posted.notify_one();
        }
    }

    /// Adds what was posted to what is left; whether there is anything to do, now or later.
    fn take(&self, rows: &mut Vec<UsageRow>, batch: &mut Option<Arc<Batch>>) -> bool {
        let mut state = self.lock();
        if rows.is_empty() {
            while state.queue.is_empty() && !state.is_over {
                state.is_asleep = true;
                state = self.posted.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut state.queue, rows);
        } else {
            let again = |state: &mut State| !state.is_over;
            let waited = self.posted.wait_timeout_while(state, AGAIN, again);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            rows.append(&mut state.queue);
        }
        *batch = state.batch.take();
        !rows.is_empty()
    }

    /// Waits for something to fold, and then for more of it; whether this is the last time.
    pub(super) fn wait_to_fold(&self, look: Duration, gather: Duration) -> bool {
        let idle = |state: &mut State| !state.has_written_all && !state.is_urgent;
        let none = |state: &mut State| idle(state) && state.lag() == 0;
        let waited = self.to_fold.wait_timeout_while(self.lock(), look, none);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let mut state = if waited.timed_out() {
            state
        } else {
            let waited = self.to_fold.wait_timeout_while(state, gather, idle);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        state.is_urgent = false;
        state.has_written_all
    }

    pub(super) fn count_lost(&self, rows: u64) {
        self.lost.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    pub(super) fn settle(&self, settle: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        settle(&mut state);
        let is_watched = state.watchers > 0;
        drop(state);
        if is_watched {
            self.settled.notify_all();
        }
    }
}

/// The thread that adds to the journal.
struct Writer {
    shared: Arc<Shared>,
    journal: Journal,
    bytes: Vec<u8>,
    batch: Option<Arc<Batch>>,
}

impl Writer {
    fn run(mut self) {
        let mut rows = Vec::new();
        while self.shared.take(&mut rows, &mut self.batch) {
            if let Err(error) = self.write(&mut rows) {
                self.fail(&error);
                if self.shared.is_over() {
                    self.lose(&rows);
                    break;
                }
            }
        }
        self.journal.close();
        let mut state = self.shared.lock();
        state.at = None;
        state.has_written_all = true;
        drop(state);
        self.shared.to_fold.notify_all();
    }

    /// Leaves what could not be written.
    fn write(&mut self, rows: &mut Vec<UsageRow>) -> io::Result<()> {
        while !rows.is_empty() {
            let count = rows.len().min(AT_ONCE);
            self.bytes.clear();
            for row in rows.iter().take(count) {
                record::write(row, &mut self.bytes);
            }
            let length = self.bytes.len() as u64;
            if self.shared.lock().bytes + length > MOST_BYTES && self.is_long(length) {
                let says = format!("it has {} MiB, which the store is to take", MOST_BYTES >> 20);
                return Err(io::Error::other(says));
            }
            let appended = self.journal.append(&self.bytes);
            let mut state = self.shared.lock();
            state.at = self.journal.at();
            appended?;
            let was_idle = state.lag() == 0;
            state.written += count as u64;
            state.bytes += length;
            drop(state);
            rows.drain(..count);
            self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
            if was_idle {
                self.shared.to_fold.notify_one();
            }
        }
        if let Some(batch) = self.batch.take() {
            batch.end(true);
        }
        let mut state = self.shared.lock();
        state.has_told_of_loss = false;
        let was_trouble = state.journal_trouble.take().is_some();
        let is_watched = state.watchers > 0;
        drop(state);
        if is_watched {
            self.shared.settled.notify_all();
        }
        if was_trouble {
            info!(lost = self.shared.lost.load(Ordering::Relaxed), "usage is written again");
        }
        Ok(())
    }

    /// Looks again, for others take away what they have folded.
    fn is_long(&self, length: u64) -> bool {
        let bytes = self.journal.size();
        self.shared.lock().bytes = bytes;
        bytes + length > MOST_BYTES
    }

    fn fail(&mut self, error: &io::Error) {
        let says = error.to_string();
        let before = self.shared.lock().journal_trouble.replace(says.clone());
        if let Some(batch) = self.batch.take() {
            batch.end(false);
        }
        if before.as_ref() != Some(&says) {
            error!(error = says, "usage cannot be written to its journal, and waits in memory");
        }
    }

    fn lose(&self, rows: &[UsageRow]) {
        let left = self.shared.lock().queue.len() + rows.len();
        self.shared.lost.fetch_add(left as u64, Ordering::Relaxed);
        error!(rows = left, "usage is lost: its journal could not be written to the end");
    }
}

#[cfg(test)]
mod tests;
