//! The thread that brings the journal into the store, and takes out of the store what is too old.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};

use super::calendar::Calendar;
use super::fold::{self, Group};
use super::journal;
use super::ledger::Shared;
use super::words::Unused;
use super::{Store, StoreError, UsageEntry, files};

/// Rows are gathered for so long, since each time costs the disk the same.
const GATHER: Duration = Duration::from_secs(1);
/// What other processes left is looked for so often.
const LOOK: Duration = Duration::from_secs(60);
const SLOWEST: Duration = Duration::from_secs(30);
/// Rows of one transaction: whoever changes a key waits for one at the most.
const GROUP: usize = 500;
const PRUNE: Duration = Duration::from_secs(3600);

pub(super) struct Folder {
    store: Arc<Store>,
    shared: Arc<Shared>,
    calendar: Arc<Calendar>,
    keep: Duration,
    /// How far files are folded.
    marks: HashMap<String, u64>,
    /// Files that are gone, and were so at the last look already.
    gone: HashSet<String>,
}

impl Folder {
    pub(super) fn new(
        store: Arc<Store>,
        shared: Arc<Shared>,
        calendar: Calendar,
        keep: Duration,
    ) -> Self {
        Self {
            store,
            shared,
            calendar: Arc::new(calendar),
            keep,
            marks: HashMap::new(),
            gone: HashSet::new(),
        }
    }

    pub(super) fn run(mut self) {
        let (mut is_last, mut pause) = (false, GATHER);
        let mut prune = None;
        loop {
            let done = self.fold_all().and_then(|()| self.prune_if_due(&mut prune));
            let look = if done.is_ok() { LOOK } else { pause };
            pause = if done.is_ok() { GATHER } else { SLOWEST.min(pause * 2) };
            self.tell(done.err());
            if is_last {
                return;
            }
            is_last = self.shared.wait_to_fold(look, pause);
        }
    }

    fn tell(&self, trouble: Option<StoreError>) {
        let says = trouble.clone();
        let mut before = None;
        self.shared.settle(|state| before = std::mem::replace(&mut state.store_trouble, trouble));
        match (before, says) {
            (None, Some(error)) => {
                error!(%error, "usage cannot be brought into the store, and waits in its journal");
            }
            (Some(_), None) => info!("usage goes into the store again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    fn fold_all(&mut self) -> Result<(), StoreError> {
        let folder = self.store.folder().to_owned();
        let (at, written) = {
            let state = self.shared.lock();
            (state.at.clone(), state.written)
        };
        let names = journal::segments(&folder).map_err(|error| files::failed(&folder, &error))?;
        for name in names {
            let good = at.as_ref().filter(|(open, _)| **open == *name).map(|(_, length)| *length);
            self.fold_file(&folder, &name, good)?;
        }
        self.shared.settle(|state| {
            state.folded = state.folded.max(written);
            state.bytes = journal::size(&folder);
        });
        Ok(())
    }

    /// A file of ours up to where it is good; one that nobody writes any more to its end, and away.
    fn fold_file(
        &mut self,
        folder: &Path,
        name: &str,
        good: Option<u64>,
    ) -> Result<(), StoreError> {
        let path = folder.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(files::failed(folder, &error)),
        };
        if good.is_none() {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(()),
                Err(TryLockError::Error(error)) => return Err(files::failed(folder, &error)),
            }
        }
        loop {
            let from = self.marks.get(name).copied().unwrap_or(0);
            let stretch = journal::read(&mut file, from, good);
            let rows = stretch.map_err(|error| files::failed(folder, &error))?.rows;
            if rows.is_empty() {
                break;
            }
            self.fold_rows(name, from, rows)?;
        }
        if good.is_none() {
            self.put_away(&path, name, &mut file)?;
        }
        Ok(())
    }

    fn fold_rows(
        &mut self,
        name: &str,
        mut from: u64,
        rows: Vec<(u64, UsageEntry)>,
    ) -> Result<(), StoreError> {
        let mut rows = rows.into_iter();
        loop {
            let rows: Vec<_> = rows.by_ref().take(GROUP).collect();
            let Some((end, _)) = rows.last() else { return Ok(()) };
            let (end, count) = (*end, rows.len() as u64);
            let group = Group { segment: name.to_owned(), from, rows };
            let calendar = Arc::clone(&self.calendar);
            let folded =
                self.store.write(move |transaction| fold::fold(transaction, &group, &calendar))?;
            self.marks.insert(name.to_owned(), folded);
            if folded != end {
                // It is further than was known; what was read is read again from there.
                return Ok(());
            }
            from = end;
            self.shared.settle(|state| state.folded = state.written.min(state.folded + count));
        }
    }

    /// Everything of it that could be read is in the store.
    fn put_away(&mut self, path: &Path, name: &str, file: &mut File) -> Result<(), StoreError> {
        // All of it: damage may lie before what was folded last.
        let whole = journal::read(file, 0, None).map_err(|error| files::failed(path, &error))?;
        let (torn, damaged) = (whole.torn, whole.damaged);
        if damaged > 0 {
            let aside = path.with_extension("damaged");
            fs::rename(path, &aside).map_err(|error| files::failed(path, &error))?;
            let file = aside.display();
            error!(%file, places = damaged, "the journal of usage is damaged, and rows are lost");
            self.shared.count_lost(damaged);
        } else {
            fs::remove_file(path).map_err(|error| files::failed(path, &error))?;
        }
        if torn > 0 {
            warn!(bytes = torn, "the journal of usage ended in the middle of a row");
        }
        self.marks.remove(name);
        Ok(())
    }

    fn prune_if_due(&mut self, last: &mut Option<Instant>) -> Result<(), StoreError> {
        if last.is_some_and(|last| last.elapsed() < PRUNE) {
            return Ok(());
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.prune(since)?;
        self.forget_gone()?;
        *last = Some(Instant::now());
        Ok(())
    }

    /// Whoever opened a file before it went still has to find out that it is in the store; an hour later
    /// nobody does.
    pub(super) fn forget_gone(&mut self) -> Result<(), StoreError> {
        let marks = self.store.read(fold::marks)?;
        let folder = self.store.folder();
        let names = journal::segments(folder).map_err(|error| files::failed(folder, &error))?;
        let names: HashSet<_> = names.into_iter().collect();
        let (long, lately): (HashSet<_>, _) = marks
            .into_keys()
            .filter(|name| !names.contains(name))
            .partition(|name| self.gone.contains(name));
        self.gone = lately;
        for name in long {
            self.store.write(move |transaction| Ok(fold::forget(transaction, &name)?))?;
        }
        Ok(())
    }

    fn prune(&self, now: Duration) -> Result<(), StoreError> {
        let keep = i64::try_from(self.keep.as_secs()).unwrap_or(i64::MAX);
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let now = self.store.write(move |transaction| Ok(fold::age_by(transaction, now)?))?;
        while !self.shared.is_over() {
            let pruned =
                self.store.write(move |transaction| Ok(fold::prune(transaction, now, keep)?));
            if !pruned? {
                return self.prune_words();
            }
        }
        Ok(())
    }

    fn prune_words(&self) -> Result<(), StoreError> {
        let mut unused = self.store.read(Unused::begin)?;
        while self.store.read(|transaction| unused.look(transaction))? {
            if self.shared.is_over() {
                return Ok(());
            }
        }
        while let Some(forget) = unused.next() {
            // Otherwise the next time will do.
            if !self.store.write(move |transaction| Ok(forget.run(transaction)?))? {
                return Ok(());
            }
        }
        Ok(())
    }
}
