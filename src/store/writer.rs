//! The one who writes: a thread with the only connection that changes anything.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
}

impl Writer {
    pub(super) fn start(
        file: PathBuf,
        opened: FileId,
        connection: Connection,
    ) -> Result<Self, StoreError> {
        let (jobs, queue) = sync_channel(QUEUE);
        let hand = Hand { file, opened, connection: Some(connection) };
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work(hand, &queue))
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
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
        wait.recv().map_err(|_| gone())?
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
    /// Put away after the disk failed: what it believes to have written may not be there.
    connection: Option<Connection>,
}

impl Hand {
    fn transact<T>(
        &mut self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.opened.still_at(&self.file)?;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.file)?,
        };
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
        match &done {
            Err(StoreError::Disk(_) | StoreError::Corrupt { .. } | StoreError::Full) => {}
            Ok(_) | Err(_) => self.connection = Some(connection),
        }
        done
    }
}
