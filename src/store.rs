//! What survives a restart: managed keys, and who changed what. Nothing outside this room knows what
//! kind of store it is.
//!
//! Every call blocks, for seconds if the disk does: call it where that holds up nobody. The path of a
//! request asks the [`KeyRing`], which has it all in memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

mod audit;
mod calendar;
mod files;
mod fold;
mod folder;
mod journal;
mod key;
mod keys;
mod ledger;
mod ring;
mod row;
mod rows;
mod secret;
mod schema;
mod sums;
mod usage;
mod words;
mod writer;

pub use crate::config::LedgerMode;
pub use audit::{Actor, AuditEntry, AuditQuery, Event, LOGIN_FAILED};
pub use key::{
    Grant, KeyDetails, KeyFault, KeyForm, KeyId, KeyState, KeyUse, ManagedKey, NotAnId, Rotated,
};
pub use keys::{Imported, KeyPage, KeyQuery};
pub use ledger::{Ledger, LedgerSettings, LedgerTrouble, MOST_WAITING, Written};
pub use ring::{Finding, Held, KeyRing};
pub use row::{Usage, UsageRow};
pub use secret::{Secret, is_miscopied};
pub use usage::{
    By, LoadedBy, Reload, RowsQuery, Spent, Tally, UsageEntry, UsageFilter, UsageQuery, UsageSum,
};

use files::{DATABASE, FileId};
use rusqlite::{Connection, OpenFlags, Transaction};
use writer::Writer;

/// A database that another process holds is waited for this long.
const BUSY: Duration = Duration::from_secs(5);

/// One folder's store. Dropping it writes what is still to be written.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    file: PathBuf,
    opened: FileId,
    writer: Writer,
}

/// Why the store does not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("could not make or use the data folder {}: {says}", path.display())]
    Folder { path: PathBuf, says: String },
    #[error("there is no store in {}; `portcullis key create` makes one", path.display())]
    Missing { path: PathBuf },
    #[error("others may write {} (mode {mode:04o}), so it may be anybody's; `chmod 600 {}`", path.display(), path.display())]
    WritableByOthers { path: PathBuf, mode: u32 },
    #[error("cannot open {}: {says}", path.display())]
    Unreadable { path: PathBuf, says: String },
    #[error(
        "{} was written by a newer portcullis (schema {found}, this one knows {known}); start that \
         version again, or restore a backup from before", path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{} is not a store of portcullis", path.display())]
    NotOurs { path: PathBuf },
    #[error(
        "{} is damaged ({says}); stop the gate and restore a backup (`portcullis store backup` \
         makes them)", path.display()
    )]
    Corrupt { path: PathBuf, says: String },
    #[error(
        "{} is gone, and there was one before; restore a backup, or remove keys.generation beside \
         it to begin anew without keys", path.display()
    )]
    Gone { path: PathBuf },
    #[error("{} is not the file that was opened; restart the gate to take the new one", path.display())]
    Replaced { path: PathBuf },
    #[error(
        "keys that this version does not understand let nobody in: {}; revoke them, or start the version \
         that wrote them", ids.join(", ")
    )]
    OddKeys { ids: Vec<String> },
    #[error("another process holds the store; try again")]
    Busy,
    #[error("the disk is full")]
    Full,
    #[error("the store may only be read: {0}")]
    ReadOnly(String),
    #[error("the disk fails: {0}")]
    Disk(String),
    #[error("no key is called {0}")]
    NoSuchKey(String),
    /// The asked cannot be done, whatever the state of the disk; says why.
    #[error("{0}")]
    Refused(String),
    #[error("the store failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// What was asked was wrong, not the store.
    #[must_use]
    pub fn is_askers(&self) -> bool {
        matches!(self, Self::NoSuchKey(_) | Self::Refused(_))
    }
}

impl Store {
    /// Opens the store of a folder, and makes both where there are none yet.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is repaired, replaced or begun anew by itself.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        files::prepare(folder)?;
        let file = folder.join(DATABASE);
        if FileId::of(&file).is_none() {
            files::refuse_if_lost(folder)?;
            files::create(&file)?;
        }
        Self::open_file(folder, file)
    }

    /// Opens a store that is there.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where there is none.
    pub fn open_existing(folder: &Path) -> Result<Self, StoreError> {
        let file = folder.join(DATABASE);
        if FileId::of(&file).is_none() {
            files::refuse_if_lost(folder)?;
            return Err(StoreError::Missing { path: folder.to_owned() });
        }
        Self::open_file(folder, file)
    }

    /// Opens a store that is there, unless that would bring it up to this version: then the gate that has
    /// it open could not open it again.
    ///
    /// # Errors
    /// As [`Store::open_existing`], and for a store that an older version wrote.
    pub fn open_current(folder: &Path) -> Result<Self, StoreError> {
        let file = folder.join(DATABASE);
        if FileId::of(&file).is_some() && !schema::is_current(&connect(&file)?, &file)? {
            let says = "an older version wrote this store; the next start of the gate brings it up";
            return Err(StoreError::Refused(says.to_owned()));
        }
        Self::open_existing(folder)
    }

    /// How many keys a folder's store has, without bringing it up to this version.
    ///
    /// # Errors
    /// What [`Store::open_existing`] would say.
    pub fn inspect(folder: &Path) -> Result<u64, StoreError> {
        let file = folder.join(DATABASE);
        if FileId::of(&file).is_none() {
            files::refuse_if_lost(folder)?;
            return Err(StoreError::Missing { path: folder.to_owned() });
        }
        files::refuse_if_open_to_others(&file)?;
        let connection = connect(&file)?;
        if schema::found(&connection, &file)? == 0 {
            return Ok(0);
        }
        let count =
            connection.query_row("SELECT count(*) FROM key", [], |row| row.get::<_, i64>(0));
        count.map(i64::unsigned_abs).map_err(|error| because(&file, &error))
    }

    fn open_file(folder: &Path, file: PathBuf) -> Result<Self, StoreError> {
        files::refuse_if_open_to_others(&file)?;
        // The first change of an empty file does not wait for another one's.
        let alone = files::lock(folder)?;
        let mut connection = connect(&file)?;
        schema::migrate(&mut connection, &file)?;
        drop(alone);
        let opened = FileId::of(&file).ok_or_else(|| StoreError::Gone { path: file.clone() })?;
        let writer = Writer::start(file.clone(), opened, connection)?;
        let store = Self { folder: folder.to_owned(), file, opened, writer };
        store.stamp_if_due()?;
        Ok(store)
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is wrong with the file that was opened, if it can be seen from outside.
    ///
    /// # Errors
    /// [`StoreError::Gone`] or [`StoreError::Replaced`].
    pub fn look(&self) -> Result<(), StoreError> {
        self.opened.still_at(&self.file)
    }

    /// A whole copy as of now, in one file that did not exist before, private.
    ///
    /// # Errors
    /// Where the file exists or cannot be written.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.look()?;
        files::create(to)?;
        let copied = connect(&self.file).and_then(|connection| {
            let to = to.to_string_lossy();
            connection.execute("VACUUM INTO ?1", [&*to]).map_err(|error| self.because(&error))
        });
        if copied.is_err() {
            // Half a backup is worse than none.
            let _ = std::fs::remove_file(to);
        }
        copied.map(drop).and_then(|()| files::sync(to))
    }

    /// Reads everything; what is damaged, in words.
    ///
    /// # Errors
    /// Where it cannot be read at all.
    pub fn check(&self) -> Result<Vec<String>, StoreError> {
        self.look()?;
        let connection = self.reader()?;
        let check = || -> rusqlite::Result<Vec<String>> {
            let mut statement = connection.prepare("PRAGMA integrity_check(20)")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        };
        let told = check().map_err(|error| self.because(&error))?;
        Ok(told.into_iter().filter(|line| line != "ok").collect())
    }

    /// A connection of its own, which never waits for the writer.
    fn reader(&self) -> Result<Connection, StoreError> {
        self.look()?;
        let connection = connect(&self.file)?;
        connection.pragma_update(None, "query_only", true).map_err(|e| self.because(&e))?;
        Ok(connection)
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = self.reader()?;
        let read = || -> rusqlite::Result<T> {
            let transaction = connection.transaction()?;
            read(&transaction)
        };
        read().map_err(|error| self.because(&error))
    }

    /// Whole or not at all, one after the other.
    fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.write(write)
    }

    /// Why the last change could not be written, until one can.
    #[must_use]
    pub fn trouble_of_writing(&self) -> Option<StoreError> {
        self.writer.trouble()
    }

    /// Whether changes can be written, found out by writing: a new number for the same keys. Where
    /// only a little goes in, the next change would not.
    fn try_to_write(&self) -> Result<(), StoreError> {
        files::try_room(&self.folder)?;
        self.change(|_, _| Ok(()))
    }

    fn because(&self, error: &rusqlite::Error) -> StoreError {
        because(&self.file, error)
    }
}

/// What ends a transaction: the asker's mistake, or the store's.
#[derive(Debug)]
enum Fault {
    Asked(StoreError),
    Store(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Asked(error)
    }
}

/// Without creating anything.
fn connect(file: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(file, flags).map_err(|error| because(file, &error))?;
    let prepare = || -> rusqlite::Result<()> {
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)
    };
    prepare().map_err(|error| because(file, &error))?;
    Ok(connection)
}

fn because(file: &Path, error: &rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode as Code;
    let says = error.to_string();
    let path = file.to_owned();
    match error.sqlite_error_code() {
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => StoreError::Busy,
        Some(Code::DiskFull) => StoreError::Full,
        Some(Code::ReadOnly) => StoreError::ReadOnly(files::why_unwritable(file)),
        Some(Code::SystemIoFailure) => StoreError::Disk(says),
        Some(Code::DatabaseCorrupt) => StoreError::Corrupt { path, says },
        Some(Code::NotADatabase) => StoreError::NotOurs { path },
        Some(Code::CannotOpen | Code::PermissionDenied) => {
            StoreError::Unreadable { says: files::why_unwritable(file), path }
        }
        Some(_) | None => StoreError::Failed(says),
    }
}

#[cfg(test)]
mod tests;
