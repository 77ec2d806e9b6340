//! Files that are read together: what was good last serves until what is there now is good too.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::pair::Fault;
use crate::live_file::{SAVING, SAY_AGAIN, Stamp};

/// What can be read from such files.
pub(super) trait Content: PartialEq {
    /// Why it should not serve at this time, though it can be read.
    fn fault(&self, today: SystemTime) -> Option<Fault>;
}

type Load<T> = fn(&[PathBuf]) -> Result<T, Fault>;

/// See the top of the file.
pub(super) struct Watched<T> {
    paths: Vec<PathBuf>,
    load: Load<T>,
    seen: Mutex<Seen<T>>,
}

struct Seen<T> {
    good: Arc<T>,
    stamps: Vec<Option<Stamp>>,
    stamps_since: Instant,
    /// What is good was read from files with these stamps, and can be no other.
    settled: bool,
    /// What is there now cannot serve.
    failing: Option<(Instant, Fault)>,
    trouble: Option<Fault>,
    said: Option<Instant>,
    /// The latest look; one that comes out of order does not undo it.
    looked: Instant,
}

impl<T: Content> Watched<T> {
    /// Reads for the first time. What can be read serves, even if its time is over: whether to go on
    /// is for the other side to say. That is an alarm all the same.
    ///
    /// # Errors
    /// Where the files cannot be read, or do not belong together.
    pub(super) fn open(
        paths: Vec<PathBuf>,
        load: Load<T>,
        now: Instant,
        today: SystemTime,
    ) -> Result<Self, Fault> {
        let stamps = stamps(&paths);
        let good = Arc::new(load(&paths)?);
        let trouble = good.fault(today);
        let seen = Seen {
            good,
            stamps,
            stamps_since: now,
            settled: false,
            failing: None,
            trouble,
            said: None,
            looked: now,
        };
        Ok(Self { paths, load, seen: Mutex::new(seen) })
    }

    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The first file's.
    pub(super) fn name(&self) -> String {
        self.paths.first().map(|path| path.display().to_string()).unwrap_or_default()
    }

    pub(super) fn good(&self) -> Arc<T> {
        Arc::clone(&self.seen().good)
    }

    pub(super) fn trouble(&self) -> Option<Fault> {
        self.seen().trouble.clone()
    }

    /// Looks whether the files have changed; true when something else serves from now on. Repeats an
    /// alarm that goes on.
    pub(super) fn look(&self, now: Instant, today: SystemTime) -> bool {
        let mut seen = self.seen();
        let now = now.max(seen.looked);
        seen.looked = now;
        let replaced = self.read_again(&mut seen, now, today);
        let failing = seen.failing.as_ref();
        // A save in several steps is no fault.
        let lasting = failing.filter(|(since, _)| now.saturating_duration_since(*since) >= SAVING);
        let lasting = lasting.map(|(_, fault)| fault.clone());
        let trouble = lasting.or_else(|| seen.good.fault(today));
        let changed = trouble != seen.trouble;
        let due = seen.said.is_none_or(|at| now.saturating_duration_since(at) >= SAY_AGAIN);
        match &trouble {
            Some(fault) if changed || due => {
                seen.said = Some(now);
                tracing::error!("TLS: {fault}; what was good last is served on");
            }
            None if changed => tracing::info!(file = self.name(), "TLS: all is well again"),
            Some(_) | None => {}
        }
        seen.trouble = trouble;
        replaced
    }

    fn read_again(&self, seen: &mut Seen<T>, now: Instant, today: SystemTime) -> bool {
        let stamps = stamps(&self.paths);
        if stamps != seen.stamps {
            // What changes now may still be written: it is read when it has come to rest.
            (seen.stamps, seen.stamps_since, seen.settled) = (stamps, now, false);
            return false;
        }
        let grain = stamps.iter().flatten().map(Stamp::grain).max().unwrap_or(Duration::ZERO);
        let at_rest = now.saturating_duration_since(seen.stamps_since) >= grain;
        // What hindered reading may leave no trace in a stamp when it passes.
        if !at_rest || (seen.settled && seen.failing.is_none()) {
            return false;
        }
        let read = (self.load)(&self.paths);
        if self::stamps(&self.paths) != seen.stamps {
            return false;
        }
        seen.settled = true;
        let fault = match read {
            Ok(new) if new == *seen.good => None,
            Ok(new) => match new.fault(today) {
                Some(fault) => Some(fault),
                None => {
                    seen.good = Arc::new(new);
                    seen.failing = None;
                    return true;
                }
            },
            Err(fault) => Some(fault),
        };
        let since = seen.failing.take().map_or(now, |(since, _)| since);
        seen.failing = fault.map(|fault| (since, fault));
        false
    }

    fn seen(&self) -> MutexGuard<'_, Seen<T>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("paths", &self.paths).finish_non_exhaustive()
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| Stamp::at(path)).collect()
}
