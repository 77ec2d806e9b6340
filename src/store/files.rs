//! The files of a store: who may touch them, and the stamp that tells other processes of a change.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::Path;

use super::StoreError;
use crate::live_file;

pub(super) const DATABASE: &str = "portcullis.db";
/// Holds the number of the last change of a key; replaced after each.
pub(super) const STAMP: &str = "keys.generation";
/// Held while the schema is looked at and while the stamp is written: one after the other.
const LOCK: &str = "portcullis.lock";
const ROOM: usize = 64 << 10;

/// Which file it is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { device: meta.dev(), inode: meta.ino() })
    }

    pub(super) fn still_at(self, path: &Path) -> Result<(), StoreError> {
        match Self::of(path) {
            Some(now) if now == self => Ok(()),
            Some(_) => Err(StoreError::Replaced { path: path.to_owned() }),
            None => Err(StoreError::Gone { path: path.to_owned() }),
        }
    }
}

/// Makes the folder, private, where it is not there.
pub(super) fn prepare(folder: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| StoreError::Folder {
        path: folder.to_owned(),
        says: if error.kind() == io::ErrorKind::AlreadyExists {
            "a file is in its place".to_owned()
        } else {
            live_file::why_unwritable(folder.parent().unwrap_or(folder), error.kind())
        },
    })
}

/// A store that was there and is not any more must not come back empty and unnoticed.
pub(super) fn refuse_if_lost(folder: &Path) -> Result<(), StoreError> {
    match folder.join(STAMP).symlink_metadata() {
        Ok(_) => Err(StoreError::Gone { path: folder.join(DATABASE) }),
        Err(_) => Ok(()),
    }
}

/// An empty private file that was not there; owned, where we are root, by whoever has the folder.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let create = || -> io::Result<()> {
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).to_owned();
        let file = options.open(path)?;
        give_to_owner(&file, path)
    };
    create().map_err(|error| StoreError::Unreadable {
        path: path.to_owned(),
        says: if error.kind() == io::ErrorKind::AlreadyExists {
            "it is there already, and is not written over".to_owned()
        } else {
            live_file::why_unwritable(path.parent().unwrap_or(path), error.kind())
        },
    })
}

/// What root makes in somebody's folder, that somebody has to be able to write.
pub(super) fn give_to_owner(file: &File, path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let owner = fs::metadata(folder.unwrap_or_else(|| Path::new(".")))?;
    let made = file.metadata()?;
    if made.uid() == 0 && owner.uid() != 0 {
        chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

pub(super) fn refuse_if_open_to_others(file: &Path) -> Result<(), StoreError> {
    let meta = fs::metadata(file).map_err(|error| StoreError::Unreadable {
        path: file.to_owned(),
        says: live_file::why_unreadable(file, &error),
    })?;
    let mode = meta.mode() & 0o777;
    if meta.is_file() && mode & 0o022 != 0 {
        return Err(StoreError::WritableByOthers { path: file.to_owned(), mode });
    }
    Ok(())
}

/// With the owner and the line that repairs it.
pub(super) fn why_unwritable(file: &Path) -> String {
    live_file::why_unwritable(file, io::ErrorKind::PermissionDenied)
}

pub(super) fn sync(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|error| StoreError::Disk(error.to_string()))
}

/// The number that stands in the stamp.
pub(super) fn stamped(folder: &Path) -> Option<u64> {
    fs::read_to_string(folder.join(STAMP)).ok().and_then(|text| read_stamp(&text))
}

pub(super) fn read_stamp(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Replaces the stamp by what `newest` says while nobody else does.
pub(super) fn stamp(
    folder: &Path,
    newest: impl FnOnce() -> Result<u64, StoreError>,
) -> Result<(), StoreError> {
    // An older number must not replace a newer one.
    let _alone = lock(folder)?;
    let number = newest()?;
    let (path, beside) = (folder.join(STAMP), folder.join(".keys.generation.new"));
    let replace = || -> io::Result<()> {
        let options =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
        let mut file = options.open(&beside)?;
        give_to_owner(&file, &beside)?;
        file.write_all(format!("{number}\n").as_bytes())?;
        fs::rename(&beside, &path)
    };
    replace().map_err(|error| failed(folder, &error))
}

/// Whether there is room for more than any one change needs.
pub(super) fn try_room(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join(".room");
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
    let fill = options.open(&path).and_then(|mut file| file.write_all(&[0; ROOM]));
    let removed = fs::remove_file(&path);
    fill.and(removed).map_err(|error| failed(folder, &error))
}

/// Nobody else has it until the file is dropped.
pub(super) fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(LOCK);
    let lock = || -> io::Result<File> {
        let options =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).to_owned();
        let file = options.open(&path)?;
        give_to_owner(&file, &path)?;
        file.lock()?;
        Ok(file)
    };
    lock().map_err(|error| failed(folder, &error))
}

pub(super) fn failed(folder: &Path, error: &io::Error) -> StoreError {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
    let kind = error.kind();
    if kind == StorageFull {
        StoreError::Full
    } else if kind == PermissionDenied || kind == ReadOnlyFilesystem {
        StoreError::ReadOnly(live_file::why_unwritable(folder, kind))
    } else {
        StoreError::Disk(error.to_string())
    }
}
