//! The ledger: rows that come and are written, and journals with damage.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use jiff::Timestamp;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::super::fold::{self, Group};
use super::super::journal::Paper;
use super::super::usage::{RowsQuery, UsageFilter, UsageQuery};
use super::super::words::Unused;
use super::super::{Usage, files};
use super::*;

mod disks;
mod ends;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

impl Written {
    /// Of a row that is written when what comes with it says so.
    pub(crate) fn pending() -> (impl FnOnce(bool), Self) {
        let batch = Arc::new(Batch::default());
        let written = Self::of(&batch);
        (move |is_written| batch.end(is_written), written)
    }
}

struct Room {
    folder: TempDir,
    fault: Arc<Mutex<Fault>>,
}

/// What the disk of the journal does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// So many bytes go, and no more.
    Full(usize),
    /// Nothing can be taken back either.
    FullAndStuck(usize),
    Broken,
    NotSynced,
}

struct Faulty {
    file: Box<dyn Paper>,
    fault: Arc<Mutex<Fault>>,
}

impl Paper for Faulty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut fault = self.fault.lock().unwrap();
        match &mut *fault {
            Fault::None | Fault::NotSynced => self.file.write(bytes),
            Fault::Full(0) | Fault::FullAndStuck(0) => Err(io::ErrorKind::StorageFull.into()),
            Fault::Full(room) | Fault::FullAndStuck(room) => {
                let written = self.file.write(&bytes[..bytes.len().min(*room)])?;
                *room -= written;
                Ok(written)
            }
            Fault::Broken => Err(io::Error::other("input/output error")),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match *self.fault.lock().unwrap() {
            Fault::NotSynced => Err(io::Error::other("input/output error")),
            Fault::None | Fault::Full(_) | Fault::FullAndStuck(_) | Fault::Broken => {
                self.file.sync()
            }
        }
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        match *self.fault.lock().unwrap() {
            Fault::FullAndStuck(_) => Err(io::Error::other("input/output error")),
            Fault::None | Fault::Full(_) | Fault::Broken | Fault::NotSynced => {
                self.file.cut(length)
            }
        }
    }
}

impl Room {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), fault: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(&self.path()).unwrap())
    }

    fn ledger(&self, store: &Arc<Store>, mode: LedgerMode) -> Ledger {
        let fault = Arc::clone(&self.fault);
        let make: Make = Box::new(move |path| {
            if *fault.lock().unwrap() == Fault::Broken {
                return Err(io::Error::other("input/output error"));
            }
            Ok(Box::new(Faulty { file: journal::make(path)?, fault: Arc::clone(&fault) }))
        });
        Ledger::start_on(store, settings(mode), make).unwrap()
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn journals(&self) -> Vec<PathBuf> {
        let names = journal::segments(&self.path()).unwrap();
        names.into_iter().map(|name| self.path().join(name)).collect()
    }

    /// A journal as a process leaves it that was killed.
    fn leave(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::create_dir_all(self.path()).unwrap();
        let path = self.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn settings(mode: LedgerMode) -> LedgerSettings {
    LedgerSettings { mode, keep: Duration::from_secs(400 * 86400), zone: TimeZone::UTC }
}

fn row(number: u32) -> UsageRow {
    UsageRow::example(number)
}

fn records(numbers: std::ops::Range<u32>) -> Vec<u8> {
    let mut bytes = Vec::new();
    numbers.for_each(|number| record::write(&row(number), &mut bytes));
    bytes
}

fn all() -> UsageQuery {
    UsageQuery {
        by: Vec::new(),
        since: Timestamp::UNIX_EPOCH,
        until: Timestamp::MAX,
        zone: TimeZone::UTC,
        only: UsageFilter::default(),
    }
}

/// Every row's id, also of those that are in the journal.
fn ids(store: &Store) -> Vec<String> {
    let mut query = RowsQuery {
        since: Timestamp::UNIX_EPOCH,
        until: Timestamp::MAX,
        only: UsageFilter::default(),
        before: None,
        limit: 1000,
    };
    let mut ids = Vec::new();
    loop {
        let page = store.usage_rows(&query).unwrap();
        let Some(last) = page.last() else { break };
        query.before = Some(last.place);
        ids.extend(page.into_iter().map(|entry| entry.id));
    }
    ids.reverse();
    ids
}

fn expected(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("cafe0000{number:08x}")).collect()
}

/// Rows and sums are told by the same requests.
#[track_caller]
fn assert_has(store: &Store, numbers: std::ops::Range<u32>) {
    assert_eq!(ids(store), expected(numbers.clone()));
    let sums = store.usage(&all()).unwrap();
    let requests: u64 = sums.iter().map(|sum| sum.tally.requests).sum();
    assert_eq!(requests, numbers.len() as u64);
    let completion: u64 = sums.iter().map(|sum| sum.tally.completion).sum();
    assert_eq!(completion, numbers.map(u64::from).sum::<u64>());
}

fn until(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "it does not come");
        thread::park_timeout(Duration::from_millis(2));
    }
}

async fn soon(written: Written) {
    assert!(tokio::time::timeout(PATIENCE, written).await.unwrap());
}

#[tokio::test]
async fn a_row_that_is_written_counts_at_once_and_goes_into_the_store() {
    for mode in [LedgerMode::Journal, LedgerMode::Durable] {
        let room = Room::new();
        let store = room.store();
        let ledger = room.ledger(&store, mode);
        for number in 0..50 {
            soon(ledger.post(row(number))).await;
            assert_eq!(ids(&store).len(), number as usize + 1);
        }
        assert_has(&store, 0..50);
        assert!(ledger.flush(PATIENCE));
        assert_eq!((ledger.lag(), ledger.waiting(), ledger.lost()), (0, 0, 0));
        assert_eq!(ledger.trouble(), None);
        assert_has(&store, 0..50);
        drop(ledger);
        // Whoever has folded everything takes the file away.
        until(|| room.journals().is_empty());
        assert_has(&store, 0..50);
    }
}

#[test]
fn a_row_that_nobody_waits_for_is_written_too() {
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    for number in 0..5000 {
        drop(ledger.post(row(number)));
    }
    drop(ledger);
    assert_has(&store, 0..5000);
    assert_has(&Store::open_existing(&room.path()).unwrap(), 0..5000);
}

#[test]
fn a_journal_cut_at_any_byte_has_every_row_before_it_once() {
    let whole = records(0..4);
    let ends: Vec<usize> = (1..=4).map(|count| records(0..count).len()).collect();
    let before = |length: usize| ends.iter().filter(|end| **end <= length).count();
    for length in 0..=whole.len() {
        let room = Room::new();
        let path = room.leave("usage-1-1.journal", &whole[..length]);
        let read = journal::read(&mut File::open(path).unwrap(), 0, None).unwrap();
        assert_eq!(read.rows.len(), before(length));
        let end = before(length).checked_sub(1).map_or(0, |last| ends[last]);
        assert_eq!(read.torn, (length - end) as u64);
    }
    for length in (0..=whole.len()).step_by(61) {
        let room = Room::new();
        let path = room.leave("usage-1-1.journal", &whole[..length]);
        let store = room.store();
        let count = before(length) as u32;
        assert_has(&store, 0..count);
        let ledger = room.ledger(&store, LedgerMode::Journal);
        until(|| !path.exists());
        assert_has(&store, 0..count);
        drop(ledger);
    }
}

#[test]
fn what_is_no_record_of_ours_is_no_row() {
    for (name, tail) in [
        ("zeros", vec![0; 4096]),
        ("a length of everything", vec![0xff; 64]),
        ("a text", b"a text that somebody appended, long enough to be one".to_vec()),
        ("a record with one bit turned", {
            let mut record = records(2..3);
            *record.last_mut().unwrap() ^= 1;
            record
        }),
    ] {
        let room = Room::new();
        let path = room.leave("usage-1-1.journal", &[records(0..2), tail].concat());
        let store = room.store();
        let _ledger = room.ledger(&store, LedgerMode::Journal);
        until(|| !path.exists());
        assert_eq!(ids(&store), expected(0..2), "{name}");
        assert!(path.with_extension("damaged").exists(), "{name}");
    }
}

#[test]
fn a_damaged_journal_is_put_aside_and_not_away() {
    let room = Room::new();
    let mut bytes = records(0..3_000);
    assert!((bytes.len() as u64) < journal::SEGMENT);
    let broken = records(0..100).len();
    bytes[broken + 20] ^= 1;
    let path = room.leave("usage-1-1.journal", &bytes);
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    until(|| ledger.lost() == 1);
    assert!(!path.exists());
    assert_eq!(ids(&store), [expected(0..100), expected(101..3_000)].concat());
    assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bytes);
}

#[test]
fn damage_is_no_tear_whatever_byte_of_a_row_it_hits() {
    let (whole, begins, ends) = (records(0..4), records(0..1).len(), records(0..2).len());
    let room = Room::new();
    for at in begins..ends {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let path = room.leave("usage-1-1.journal", &bytes);
        let read = journal::read(&mut File::open(&path).unwrap(), 0, None).unwrap();
        let ids: Vec<_> = read.rows.into_iter().map(|(_, entry)| entry.id).collect();
        assert_eq!(ids, [expected(0..1), expected(2..4)].concat(), "byte {at}");
        assert_eq!((read.torn, read.damaged), (0, 1), "byte {at}");
        // What was written behind it was not torn off, though the last row is.
        bytes.pop();
        let path = room.leave("usage-1-1.journal", &bytes);
        let read = journal::read(&mut File::open(&path).unwrap(), 0, None).unwrap();
        assert_eq!((read.rows.len(), read.damaged), (2, 1), "byte {at}");
        assert!(read.torn > 0, "byte {at}");
    }
}

#[test]
fn damage_before_what_was_folded_last_keeps_the_file_too() {
    let room = Room::new();
    let mut bytes = records(0..4);
    bytes[records(0..1).len() + 20] ^= 1;
    let store = room.store();
    let path = room.leave("usage-1-1.journal", &bytes);
    // A process that was killed between folding and putting away.
    let read = journal::read(&mut File::open(&path).unwrap(), 0, None).unwrap();
    let group = Group { segment: "usage-1-1.journal".to_owned(), from: 0, rows: read.rows };
    let calendar = Calendar::new(TimeZone::UTC);
    store.write(move |it| fold::fold(it, &group, &calendar)).unwrap();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    until(|| ledger.lost() == 1);
    assert_eq!(ids(&store), [expected(0..1), expected(2..4)].concat());
    assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bytes);
}
