//! A bounded queue in front of a thread that writes, so that a sink that nobody reads delays nobody.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// What waits for a blocked sink; past it items are dropped and counted.
const MOST_WAITING: usize = 8192;
/// A busy gate wakes the thread this often, not once an item.
const GATHER: Duration = Duration::from_millis(10);

/// The sending end; what is posted is written in order, or counted as dropped.
pub struct Outlet<T> {
    queue: SyncSender<Entry<T>>,
    dropped: Arc<AtomicU64>,
}

enum Entry<T> {
    /// Boxed, so that an empty queue is small.
    Item(Box<T>),
    Flush(SyncSender<()>),
}

impl<T: Send + 'static> Outlet<T> {
    /// `format` appends an item's text; it runs on the thread.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(
        name: &'static str,
        sink: impl Write + Send + 'static,
        format: impl Fn(&T, &mut String) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, entries) = sync_channel(MOST_WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write_all(name, &entries, sink, format, &lost))?;
        Ok(Self { queue, dropped })
    }

    /// Never waits.
    pub fn post(&self, item: T) {
        match self.queue.try_send(Entry::Item(Box::new(item))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Items dropped since that was told last.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything posted so far is written, for as long as `patience`.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (done, written) = sync_channel(1);
        let mut entry = Entry::Flush(done);
        while let Err(refused) = self.queue.try_send(entry) {
            match refused {
                TrySendError::Full(back) if Instant::now() < deadline => entry = back,
                // A sink that nobody reads is given up.
                TrySendError::Full(_) | TrySendError::Disconnected(_) => return,
            }
            nap();
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), dropped: Arc::clone(&self.dropped) }
    }
}

impl<T> fmt::Debug for Outlet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

fn write_all<T>(
    name: &'static str,
    entries: &Receiver<Entry<T>>,
    mut sink: impl Write,
    format: impl Fn(&T, &mut String),
    dropped: &AtomicU64,
) {
    let mut text = String::new();
    while let Ok(entry) = entries.recv() {
        let mut flushed = Vec::new();
        let mut take = |entry, text: &mut String| match entry {
            Entry::Item(item) => format(&*item, text),
            Entry::Flush(done) => flushed.push(done),
        };
        take(entry, &mut text);
        gather(entries, &mut text, &mut take);
        // Nobody is left to tell when the sink is broken.
        let _ = sink.write_all(text.as_bytes()).and_then(|()| sink.flush());
        text.clear();
        text.shrink_to(64 * 1024);
        for done in flushed {
            let _ = done.try_send(());
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(outlet = name, lost, "log lines were dropped: nobody reads fast enough");
        }
    }
}

/// Waits a moment for more, so that one wake-up and one write serve many items.
fn gather<T>(
    entries: &Receiver<Entry<T>>,
    text: &mut String,
    take: &mut impl FnMut(Entry<T>, &mut String),
) {
    nap();
    for _ in 0..MOST_WAITING {
        match entries.try_recv() {
            Ok(entry) => take(entry, text),
            Err(_) => return,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread moves no bytes of a request")]
fn nap() {
    std::thread::sleep(GATHER);
}
