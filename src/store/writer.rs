//! The one who writes: a thread with the only connection that changes anything.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::files::FileId;
use super::{Fault, StoreError, because, connect};

/// Who writes waits for the answer, so that there are never many.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce(&mut Hand) + Send>;

pub(super) struct Writer {
    /// `None` only while it is being dropped.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Why the last change could not be written, until one can.
    trouble: Mutex<Option<StoreError>>,
}

impl Writer {
    pub(super) fn start(
        file: PathBuf,
        opened: FileId,
        connection: Connection,
    ) -> Result<Self, StoreError> {
        let (jobs, queue) = sync_channel(QUEUE);
        let hand = Hand { file, opened, connection, is_doubted: false };
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work(hand, &queue))
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), trouble: Mutex::default() })
    }

    pub(super) fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, wait) = sync_channel(1);
        let job: Job = Box::new(move |hand| {
            // Whoever asked may be gone.
            let _ = done.send(hand.transact(write));
        });
        let gone = || StoreError::Failed("the store's thread has ended".to_owned());
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        let done = wait.recv().map_err(|_| gone())?;
        self.note(done.as_ref().err());
        done
    }

    pub(super) fn trouble(&self) -> Option<StoreError> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who asked for what cannot be, or came while another process wrote, learned nothing of the disk.
    fn note(&self, error: Option<&StoreError>) {
        if error.is_some_and(|error| error.is_askers() || *error == StoreError::Busy) {
            return;
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = error.cloned();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A job that panicked was told to whoever asked for it.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

fn work(mut hand: Hand, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        job(&mut hand);
    }
}

/// What the thread writes with.
struct Hand {
    file: PathBuf,
    opened: FileId,
    connection: Connection,
    /// The disk failed: what the connection believes to have written may not be there.
    is_doubted: bool,
}

impl Hand {
    fn transact<T>(
        &mut self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.opened.still_at(&self.file)?;
        if self.is_doubted {
            // The old one is open until then: by the last to leave, what failed half-way would be
            // found in the log later as if it were whole.
            self.connection = connect(&self.file)?;
            self.is_doubted = false;
        }
        let connection = &mut self.connection;
        let transact = || -> Result<T, Fault> {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = write(&transaction)?;
            transaction.commit()?;
            Ok(done)
        };
        let done = match transact() {
            Ok(done) => Ok(done),
            Err(Fault::Asked(error)) => Err(error),
            Err(Fault::Store(error)) => Err(because(&self.file, &error)),
        };
        self.is_doubted = matches!(done, Err(StoreError::Disk(_) | StoreError::Corrupt { .. }));
        done
    }
}
