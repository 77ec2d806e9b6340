//! The journal: rows on their way into the store, each with a checksum, in files that are only added to.
//!
//! Each process adds to a file of its own, and holds its lock until it takes another one. Names are drawn,
//! and never come again. Nothing is ever added behind what could not be written whole.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::files::give_to_owner;
use super::usage::UsageEntry;

pub(super) mod record;

const FIRST: &str = "usage-";
const LAST: &str = ".journal";
/// A file that has grown this far is followed by another one.
pub(super) const SEGMENT: u64 = 1 << 20;

/// One file as it is written. Another one stands in for it where tests need a disk that fails.
pub(super) trait Paper: Send {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    fn sync(&mut self) -> io::Result<()>;
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Paper for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.seek(SeekFrom::Start(length)).map(drop)
    }
}

/// Makes the paper for a path.
pub(super) type Make = Box<dyn FnMut(&Path) -> io::Result<Box<dyn Paper>> + Send>;

/// The end of the journal that this process writes.
pub(super) struct Journal {
    folder: PathBuf,
    make: Make,
    /// Whether what is written has to be on the disk.
    is_durable: bool,
    open: Option<Open>,
}

struct Open {
    name: Arc<str>,
    paper: Box<dyn Paper>,
    /// Up to here it is good.
    length: u64,
}

impl Journal {
    pub(super) fn new(folder: &Path, is_durable: bool, make: Make) -> Self {
        Self { folder: folder.to_owned(), make, is_durable, open: None }
    }

    /// All of it or nothing, as far as the disk lets us.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_none_or(|open| open.length >= SEGMENT) {
            self.open = None;
            self.open = Some(self.begin()?);
        }
        let Some(open) = &mut self.open else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let written = open.write(bytes);
        if let Err(error) = written {
            // What comes behind half a record would not be found again.
            if open.paper.cut(open.length).is_err() {
                self.open = None;
            }
            return Err(error);
        }
        if self.is_durable
            && let Err(error) = open.paper.sync()
        {
            // What the system says of this file from now on means nothing.
            let _ = open.paper.cut(open.length);
            self.open = None;
            return Err(error);
        }
        open.length += bytes.len() as u64;
        Ok(())
    }

    /// What is being added to, and up to where it is good.
    pub(super) fn at(&self) -> Option<(Arc<str>, u64)> {
        self.open.as_ref().map(|open| (Arc::clone(&open.name), open.length))
    }

    /// Of all files, also those of others.
    pub(super) fn size(&self) -> u64 {
        size(&self.folder)
    }

    /// Nothing more is added to this file.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    fn begin(&mut self) -> io::Result<Open> {
        let mut name = draw_name()?;
        let mut made = (self.make)(&self.folder.join(&name));
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
            name = draw_name()?;
            made = (self.make)(&self.folder.join(&name));
        }
        let paper = made?;
        if self.is_durable {
            File::open(&self.folder)?.sync_all()?;
        }
        Ok(Open { name: name.into(), paper, length: 0 })
    }
}

fn draw_name() -> io::Result<String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let random = u32::from_ne_bytes(random);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{FIRST}{:010}-{random:08x}{LAST}", since.as_secs()))
}

impl Open {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.paper.write(bytes) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A new private file, locked.
pub(super) fn make(path: &Path) -> io::Result<Box<dyn Paper>> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    give_to_owner(&file, path)?;
    match file.try_lock() {
        Ok(()) if file.metadata()?.nlink() > 0 => Ok(Box::new(file)),
        // Another process took it for one that nobody writes any more: it was empty, and goes.
        Ok(()) | Err(TryLockError::WouldBlock) => Err(io::Error::from(io::ErrorKind::ResourceBusy)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The names of all files of the journal, the oldest first.
pub(super) fn segments(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().filter(|name| is_segment(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_segment(name: &str) -> bool {
    name.starts_with(FIRST) && Path::new(name).extension() == Some(OsStr::new("journal"))
}

/// How many bytes all files of the journal have.
pub(super) fn size(folder: &Path) -> u64 {
    let names = segments(folder).unwrap_or_default();
    let size = |name: &String| fs::metadata(folder.join(name)).map_or(0, |meta| meta.len());
    names.iter().map(size).sum()
}

/// Some records of a file, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    /// Each with where it ends.
    pub(super) rows: Vec<(u64, UsageEntry)>,
    /// Bytes of a record at the end that was not written whole.
    pub(super) torn: u64,
    /// Stretches between good records, or behind the last, that are none: each was one row at least.
    pub(super) damaged: u64,
}

/// The records from one place to another, or to the end.
pub(super) fn read(file: &mut File, from: u64, to: Option<u64>) -> io::Result<Stretch> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    let most = to.map_or(u64::MAX, |to| to.saturating_sub(from));
    file.take(most).read_to_end(&mut bytes)?;
    let (mut stretch, mut rest, mut end) = (Stretch::default(), bytes.as_slice(), from);
    while !rest.is_empty() {
        let Some((entry, length)) = record::read(rest) else {
            let skipped = next_good(rest);
            match skipped {
                None if record::is_cut(rest) => stretch.torn = rest.len() as u64,
                None | Some(_) => stretch.damaged += 1,
            }
            let skipped = skipped.unwrap_or(rest.len());
            rest = rest.get(skipped..).unwrap_or_default();
            end += skipped as u64;
            continue;
        };
        rest = rest.get(length..).unwrap_or_default();
        end += length as u64;
        stretch.rows.push((end, entry));
    }
    Ok(stretch)
}

/// How far it is to the next good record. Where the broken one says it ends comes first: what a caller
/// wrote into its texts is not looked at then.
fn next_good(bytes: &[u8]) -> Option<usize> {
    let is_good = |at: &usize| bytes.get(*at..).is_some_and(|rest| record::read(rest).is_some());
    record::length(bytes).into_iter().chain(1..bytes.len()).find(is_good)
}

/// What is in the journal and not yet in the store. The files are opened before the store is asked how far
/// they are in it: those that are folded and gone in the meantime can still be read.
pub(super) struct Unfolded {
    files: Vec<(String, File)>,
}

impl Unfolded {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for name in segments(folder)? {
            match File::open(folder.join(&name)) {
                Ok(file) => files.push((name, file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { files })
    }

    pub(super) fn each(
        self,
        marks: &HashMap<String, u64>,
        mut see: impl FnMut(UsageEntry),
    ) -> io::Result<()> {
        for (name, mut file) in self.files {
            let from = marks.get(&name).copied().unwrap_or(0);
            for (_, entry) in read(&mut file, from, None)?.rows {
                see(entry);
            }
        }
        Ok(())
    }
}
