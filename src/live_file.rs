//! A file whose newest content is always what the next request sees.
//!
//! Each use asks the file system for the file's stamp, or relies on an answer to a question that was
//! put after the request had been read. A stamp that was seen before is trusted only when the content was read at least one
//! grain of the file system's clock after the stamp was first seen: two saves within one tick of that
//! clock leave the same stamp.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

/// File systems that keep nanoseconds take them from a clock that ticks every 1 to 10 ms.
const GRAIN: Duration = Duration::from_millis(50);
/// Those without a fraction keep one (NFSv2, ext3) or two seconds (FAT).
const COARSE_GRAIN: Duration = Duration::from_millis(2_100);
/// A file caught in the middle of a save may be missing or empty for this long.
pub(crate) const SAVING: Duration = Duration::from_secs(2);
/// A writer that saves in pieces may pause for this long within a line.
const MID_LINE: Duration = Duration::from_millis(50);
/// How often an alarm that goes on is said again.
pub(crate) const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What reading a credential file gave.
#[derive(Debug)]
pub struct Parsed<T> {
    pub content: T,
    pub entries: usize,
    pub notes: Vec<Note>,
}

/// One thing to tell the operator about a line; never holds any of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// From 1.
    pub line: usize,
    /// The line does not count.
    pub skipped: bool,
    pub says: String,
}

type Parse<T> = Box<dyn Fn(&str) -> Parsed<T> + Send + Sync>;

/// See the top of the file.
pub struct LiveFile<T> {
    path: PathBuf,
    parse: Parse<T>,
    seen: RwLock<Seen<T>>,
    opened: Instant,
    /// When the file system was asked last and said that the content is the newest: nanoseconds after
    /// `opened`.
    confirmed: AtomicU64,
    /// One look at a time; the others wait for it and then see what it saw.
    looking: Arc<tokio::sync::Mutex<()>>,
}

struct Seen<T> {
    content: Arc<T>,
    entries: usize,
    notes: Vec<Note>,
    digest: [u8; 32],
    /// Of the last look; `None` while there is no file.
    stamp: Option<Stamp>,
    stamp_since: Instant,
    /// The content can be no other as long as the stamp is the same.
    settled: bool,
    gone_since: Option<Instant>,
    trouble: Option<Trouble>,
    said: Option<Instant>,
}

/// Why a file does not serve as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("does not exist; its door is closed until it does")]
    Missing,
    #[error("is empty; its door is closed until it has a line")]
    Empty,
    #[error("has no entry yet; nobody gets in by it")]
    NoEntry,
    #[error("is a directory, not a file; name the file in it")]
    Directory,
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("is UTF-16 text (`>` in Windows PowerShell writes that); save it as UTF-8")]
    Utf16,
    #[error("holds NUL bytes, so it is not a text file; write it anew")]
    Nul,
    #[error("has no line that can be understood; see `portcullis check`")]
    Garbage,
    #[error(
        "was replaced where this process cannot see it (its link count is 0); \
         mount the folder instead of the single file, then restart"
    )]
    Replaced,
}

impl Trouble {
    /// Whether a `check` fails over it.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::NoEntry)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    links: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            links: meta.nlink(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// `None` while there is no file.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|meta| Self::of(&meta))
    }

    /// What was read this long after a stamp was first seen has no other content.
    pub(crate) fn grain(&self) -> Duration {
        if self.modified.1 == 0 && self.changed.1 == 0 { COARSE_GRAIN } else { GRAIN }
    }
}

/// What one look at the file found.
enum Look {
    Gone(Option<Stamp>, Trouble),
    Broken(Option<Stamp>, Trouble),
    Text { stamp: Stamp, text: String, digest: [u8; 32], notes: Vec<Note>, mid_line: bool },
}

/// From before a look to after it. The thread may be held up anywhere in between, so what a look saw
/// for the first time counts from its end, and what it saw again counts up to its beginning.
#[derive(Debug, Clone, Copy)]
struct Span {
    began: Instant,
    ended: Instant,
}

impl<T: Send + Sync + 'static> LiveFile<T> {
    /// Opens the file, whatever state it is in; `empty` serves until it can be read.
    pub fn open(
        path: &Path,
        empty: T,
        parse: impl Fn(&str) -> Parsed<T> + Send + Sync + 'static,
    ) -> Self {
        let now = Instant::now();
        let seen = Seen {
            content: Arc::new(empty),
            entries: 0,
            notes: Vec::new(),
            digest: [0; 32],
            stamp: None,
            stamp_since: now,
            settled: false,
            gone_since: now.checked_sub(SAVING),
            trouble: None,
            said: None,
        };
        let file = Self {
            path: path.to_owned(),
            parse: Box::new(parse),
            seen: RwLock::new(seen),
            opened: now,
            confirmed: AtomicU64::new(0),
            looking: Arc::default(),
        };
        file.look(Instant::now);
        file
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content that was the newest at some time after `since`, when the request had been read.
    /// Reads the file again, away from the threads that move bytes, when it may have changed.
    pub async fn current(self: &Arc<Self>, since: Instant) -> Arc<T> {
        let confirmed = Duration::from_nanos(self.confirmed.load(Ordering::Acquire));
        if self.opened + confirmed > since {
            return self.last();
        }
        match self.unchanged() {
            Some(content) => content,
            // Boxed, because it is seldom needed, and every request would have the room for it.
            None => Box::pin(self.look_again()).await,
        }
    }

    async fn look_again(self: &Arc<Self>) -> Arc<T> {
        let one_at_a_time = Arc::clone(&self.looking).lock_owned().await;
        if let Some(content) = self.unchanged() {
            return content;
        }
        let file = Arc::clone(self);
        // A look that panics leaves the last good content in place.
        let look = move || {
            file.look(Instant::now);
            // Held by the look, not by the request, whose caller may leave.
            drop(one_at_a_time);
        };
        let _ = tokio::task::spawn_blocking(look).await;
        self.last()
    }

    fn unchanged(&self) -> Option<Arc<T>> {
        let asked = self.opened.elapsed().as_nanos();
        let stamp = Stamp::at(&self.path);
        let seen = self.seen();
        (seen.settled && seen.stamp == stamp).then(|| {
            let asked = u64::try_from(asked).unwrap_or(0);
            self.confirmed.fetch_max(asked, Ordering::Release);
            Arc::clone(&seen.content)
        })
    }

    /// The content as it was read last, without another look.
    pub fn last(&self) -> Arc<T> {
        Arc::clone(&self.seen().content)
    }

    /// What the operator should know: trouble, or lines that do not count.
    #[must_use]
    pub fn report(&self) -> Report {
        let seen = self.seen();
        Report {
            path: self.path.clone(),
            entries: seen.entries,
            notes: seen.notes.clone(),
            trouble: seen.trouble.clone(),
        }
    }

    /// Looks even if no request comes, and repeats an alarm that goes on.
    pub async fn tend(self: &Arc<Self>, now: Instant) {
        {
            let mut seen = self.write();
            // What hindered reading, such as a lack of file descriptors, may leave no trace in a
            // stamp when it passes.
            seen.settled &= !matches!(seen.trouble, Some(Trouble::Unreadable(_)));
        }
        self.current(now).await;
        let mut seen = self.write();
        let due = seen.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN);
        if let Some(trouble) = seen.trouble.clone().filter(|trouble| due && trouble.is_fault()) {
            tracing::error!(file = %self.path.display(), "credential file {trouble}");
            seen.said = Some(now);
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Seen<T>> {
        self.seen.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> RwLockReadGuard<'_, Seen<T>> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, clock: impl Fn() -> Instant) {
        let began = clock();
        let look = read(&self.path);
        self.weigh(look, Span { began, ended: clock() });
    }

    fn weigh(&self, look: Look, span: Span) {
        let known = {
            let seen = self.seen();
            matches!(&look, Look::Text { digest, .. } if *digest == seen.digest)
                && seen.trouble.as_ref().is_none_or(|trouble| *trouble == Trouble::Replaced)
                && seen.gone_since.is_none()
        };
        // Parsing a million keys happens outside the lock.
        let parsed = match &look {
            Look::Text { text, .. } if !known => Some((self.parse)(text)),
            Look::Text { .. } | Look::Gone(..) | Look::Broken(..) => None,
        };
        let mut seen = self.write();
        let before = seen.trouble.clone();
        match look {
            Look::Gone(stamp, trouble) => {
                if seen.gone_long(span) {
                    seen.close(stamp, trouble, span, || (self.parse)("").content);
                }
            }
            Look::Broken(stamp, trouble) => {
                seen.settle(stamp, span);
                seen.gone_since = None;
                seen.trouble = Some(trouble);
            }
            Look::Text { mid_line: true, .. } if seen.stamp.is_some() => seen.settled = false,
            Look::Text { stamp, digest, notes, .. } => {
                seen.settle(Some(stamp), span);
                seen.gone_since = None;
                match parsed {
                    Some(parsed) => seen.take(parsed, digest, notes, &self.path),
                    None => seen.trouble = None,
                }
                if stamp.links == 0 {
                    seen.trouble = Some(Trouble::Replaced);
                }
            }
        }
        if seen.trouble != before {
            seen.said = Some(span.ended);
            match &seen.trouble {
                Some(trouble) if trouble.is_fault() => {
                    tracing::error!(file = %self.path.display(), "credential file {trouble}");
                }
                Some(trouble) => {
                    tracing::warn!(file = %self.path.display(), "credential file {trouble}");
                }
                None => {
                    tracing::info!(file = %self.path.display(), "credential file is good again")
                }
            }
        }
    }
}

impl<T> Seen<T> {
    fn settle(&mut self, stamp: Option<Stamp>, span: Span) {
        if self.stamp == stamp {
            let grain = stamp.map_or(GRAIN, |stamp| stamp.grain());
            self.settled = span.began.saturating_duration_since(self.stamp_since) >= grain;
        } else {
            (self.stamp, self.stamp_since, self.settled) = (stamp, span.ended, false);
        }
    }

    /// Whether the file has been missing or empty for longer than a save takes.
    fn gone_long(&mut self, span: Span) -> bool {
        let since = *self.gone_since.get_or_insert(span.ended);
        self.settled = false;
        span.began.saturating_duration_since(since) >= SAVING
    }

    fn close(
        &mut self,
        stamp: Option<Stamp>,
        trouble: Trouble,
        span: Span,
        empty: impl FnOnce() -> T,
    ) {
        self.settle(stamp, span);
        if self.trouble.as_ref() != Some(&trouble) {
            self.content = Arc::new(empty());
            (self.entries, self.digest) = (0, [0; 32]);
            self.notes.clear();
            self.trouble = Some(trouble);
        }
    }

    fn take(&mut self, parsed: Parsed<T>, digest: [u8; 32], mut notes: Vec<Note>, path: &Path) {
        notes.extend(parsed.notes);
        notes.sort_by_key(|note| note.line);
        self.trouble = match parsed.entries {
            0 if notes.iter().any(|note| note.skipped) => Some(Trouble::Garbage),
            0 => Some(Trouble::NoEntry),
            _ => None,
        };
        for note in notes.iter().filter(|note| note.skipped) {
            tracing::warn!(file = %path.display(), line = note.line, "line skipped: {}", note.says);
        }
        self.notes = notes;
        if self.trouble != Some(Trouble::Garbage) {
            self.content = Arc::new(parsed.content);
            self.entries = parsed.entries;
            self.digest = digest;
        }
    }
}

impl<T> fmt::Debug for LiveFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A live file's state in words.
#[derive(Debug, Clone)]
pub struct Report {
    pub path: PathBuf,
    pub entries: usize,
    pub notes: Vec<Note>,
    pub trouble: Option<Trouble>,
}

fn read(path: &Path) -> Look {
    // Before the file is opened: if this thread is held up on the way, half a save stays half a save.
    let started = SystemTime::now();
    match read_settled(path) {
        Ok((meta, _)) if meta.is_dir() => Look::Broken(Some(Stamp::of(&meta)), Trouble::Directory),
        Ok((meta, bytes)) if bytes.is_empty() => Look::Gone(Some(Stamp::of(&meta)), Trouble::Empty),
        Ok((meta, bytes)) => text_of(&meta, &bytes, started),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Look::Gone(None, Trouble::Missing),
        Err(error) => {
            let meta = fs::metadata(path).ok();
            let says = why_unreadable(path, &error);
            Look::Broken(meta.map(|meta| Stamp::of(&meta)), Trouble::Unreadable(says))
        }
    }
}

/// Reads until the file was the same before and after, three times at the most; a writer that is
/// faster than that is looked at again by the next request, because its stamp moves on.
fn read_settled(path: &Path) -> io::Result<(Metadata, Vec<u8>)> {
    let mut tries = 0;
    loop {
        let mut file = File::open(path)?;
        let before = file.metadata()?;
        if before.is_dir() {
            return Ok((before, Vec::new()));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        tries += 1;
        if tries == 3 || Stamp::of(&file.metadata()?) == Stamp::of(&before) {
            return Ok((before, bytes));
        }
    }
}

fn text_of(meta: &Metadata, bytes: &[u8], started: SystemTime) -> Look {
    let stamp = Stamp::of(meta);
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Look::Broken(Some(stamp), Trouble::Utf16);
    }
    if memchr::memchr(0, bytes).is_some() {
        return Look::Broken(Some(stamp), Trouble::Nul);
    }
    let digest = Sha256::digest(bytes).into();
    let (text, notes) = utf8_lines(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes));
    let mid_line = !bytes.ends_with(b"\n")
        && meta.modified().is_ok_and(|at| changed_just_now(at, started, SystemTime::now()));
    Look::Text { stamp, text, digest, notes, mid_line }
}

/// A line that is not UTF-8 counts as blank, and is told by its number.
fn utf8_lines(bytes: &[u8]) -> (String, Vec<Note>) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return (text.to_owned(), Vec::new());
    }
    let mut text = String::with_capacity(bytes.len());
    let mut notes = Vec::new();
    for (number, line) in bytes.split(|&b| b == b'\n').enumerate() {
        match std::str::from_utf8(line) {
            Ok(line) => text.push_str(line),
            Err(_) => notes.push(Note {
                line: number + 1,
                skipped: true,
                says: "not UTF-8; save the file as UTF-8".to_owned(),
            }),
        }
        text.push('\n');
    }
    (text, notes)
}

/// A time of change that lies ahead tells nothing: it was set by hand, or by another clock.
fn changed_just_now(modified: SystemTime, started: SystemTime, now: SystemTime) -> bool {
    modified <= now && started.duration_since(modified).map_or(true, |age| age < MID_LINE)
}

/// The user that we run as; `None` where the system does not say.
fn our_user() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|meta| meta.uid())
}

/// One sentence with the file's owner, its mode, our user, and the line that repairs it.
pub(crate) fn why_unreadable(path: &Path, error: &io::Error) -> String {
    why_refused(path, error.kind(), READ)
}

/// The same for a file that is to be written, or a folder in which one is to be made.
pub(crate) fn why_unwritable(path: &Path, kind: io::ErrorKind) -> String {
    why_refused(path, kind, WRITE)
}

/// A right of the owner, as `chmod` has it and as a mode has it.
type Right = (char, u32);
const READ: Right = ('r', 0o400);
const WRITE: Right = ('w', 0o200);

fn why_refused(path: &Path, kind: io::ErrorKind, right: Right) -> String {
    let (Ok(meta), Some(us)) = (fs::metadata(path), our_user()) else {
        return kind.to_string();
    };
    refused(path, kind, right, (meta.uid(), meta.mode()), us)
}

fn refused(
    path: &Path,
    kind: io::ErrorKind,
    (letter, bit): Right,
    (owner, mode): (u32, u32),
    us: u32,
) -> String {
    let path = path.display();
    let mode = mode & 0o7777;
    let repair = if us != 0 && owner != us {
        format!("; repair it with `chown {us} {path}`")
    } else if mode & bit == 0 {
        format!("; repair it with `chmod u+{letter} {path}`")
    } else {
        ", so look at the folders that it is in, and at how the disk is mounted".to_owned()
    };
    format!(
        "{kind}: it belongs to user {owner} with mode {mode:04o} and we run as user {us}{repair}"
    )
}

/// A warning for a credential file that others may read or write; `None` if all is well.
#[must_use]
pub fn mode_warning(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.mode() & 0o777;
    let who = match mode {
        mode if mode & 0o022 != 0 => "others may write it",
        mode if mode & 0o004 != 0 => "everybody on this machine may read it",
        _ => return None,
    };
    Some(format!("mode {mode:04o}: {who}; `chmod 600 {}` keeps it private", path.display()))
}

#[cfg(test)]
mod tests;
