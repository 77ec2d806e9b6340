//! A bounded buffer in front of a thread that writes, so that a sink that nobody reads delays
//! nobody.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that wait for a blocked sink; past them lines are dropped and counted.
const MOST_WAITING: usize = 2 * 1024 * 1024;
/// A busy gate wakes the thread this often, not once a line.
const GATHER: Duration = Duration::from_millis(10);
/// Memory that is kept while nothing waits.
const KEPT: usize = 64 * 1024;

/// The sending end; what is posted is written in order, or counted as dropped.
#[derive(Clone)]
pub struct Outlet(Arc<Open>);

/// Dropping the last one ends the thread.
struct Open(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    came: Condvar,
    went: Condvar,
    dropped: AtomicU64,
    /// Of those, the ones that have been told of.
    told: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    /// Posts so far, and those of them that have been written.
    posted: u64,
    written: u64,
    closed: bool,
}

impl Outlet {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(name: &'static str, sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write_all(name, &theirs, sink))?;
        Ok(Self(Arc::new(Open(shared))))
    }

    /// Never waits for the sink. All of `text` is kept, or nothing.
    pub fn post(&self, text: &[u8]) {
        let shared = &self.0.0;
        let mut waiting = shared.waiting();
        if waiting.text.len() + text.len() > MOST_WAITING {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = waiting.text.is_empty();
        waiting.text.extend_from_slice(text);
        waiting.posted += 1;
        drop(waiting);
        if first {
            shared.came.notify_one();
        }
    }

    /// Posts dropped since that was told last.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.0.untold()
    }

    /// Posts dropped so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything posted so far is written, for as long as `patience`.
    pub fn flush(&self, patience: Duration) {
        let waiting = self.0.0.waiting();
        let posted = waiting.posted;
        // A sink that nobody reads is given up.
        let _ = self.0.0.went.wait_timeout_while(waiting, patience, |it| it.written < posted);
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("dropped", &self.0.0.dropped).finish_non_exhaustive()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.waiting().closed = true;
        self.0.came.notify_one();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for text and swaps it into `text`; the posts so far, or `None` at the end.
    fn take(&self, text: &mut Vec<u8>) -> Option<u64> {
        let waiting = self.waiting();
        let nothing = |it: &mut Waiting| it.text.is_empty() && !it.closed;
        let waiting = self.came.wait_while(waiting, nothing);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut waiting.text, text);
        (!text.is_empty()).then_some(waiting.posted)
    }

    fn untold(&self) -> u64 {
        let dropped = self.dropped.load(Ordering::Relaxed);
        dropped.saturating_sub(self.told.load(Ordering::Relaxed))
    }

    fn wrote(&self, posts: u64) {
        self.waiting().written = posts;
        self.went.notify_all();
    }
}

fn write_all(name: &'static str, shared: &Shared, mut sink: impl Write) {
    let mut text = Vec::new();
    while let Some(posts) = shared.take(&mut text) {
        // Nobody is left to tell when the sink is broken.
        let _ = sink.write_all(&text).and_then(|()| sink.flush());
        text.clear();
        text.shrink_to(KEPT);
        let wrote = Instant::now();
        shared.wrote(posts);
        let lost = shared.untold();
        if lost > 0 {
            shared.told.fetch_add(lost, Ordering::Relaxed);
            tracing::warn!(outlet = name, lost, "log lines were dropped: nobody reads fast enough");
        }
        // So that one wake-up and one write serve many lines.
        nap(GATHER.saturating_sub(wrote.elapsed()));
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread moves no bytes of a request")]
fn nap(time: Duration) {
    std::thread::sleep(time);
}
