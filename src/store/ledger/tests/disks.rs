//! Disks that fail, and a store that does not take what it is to take.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::*;

/// Everything posted meanwhile is there, once, after the disk has come to its senses.
#[track_caller]
fn assert_outlives(fault: Fault, mode: LedgerMode) {
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, mode);
    drop(ledger.post(row(0)));
    until(|| ledger.waiting() == 0);
    room.set(fault);
    for number in 1..600 {
        drop(ledger.post(row(number)));
    }
    until(|| matches!(ledger.trouble(), Some(LedgerTrouble::Journal(_))));
    assert!(ledger.waiting() > 0 && !ledger.is_full());
    // Nobody waits for what is not to be expected.
    let mut late = ledger.post(row(600));
    let mut context = Context::from_waker(std::task::Waker::noop());
    assert_eq!(Pin::new(&mut late).poll(&mut context), Poll::Ready(false));
    room.set(Fault::None);
    // It is well a moment after the last one is written.
    until(|| ledger.waiting() == 0 && ledger.trouble().is_none());
    assert!(ledger.flush(PATIENCE));
    assert_eq!((ledger.lag(), ledger.lost()), (0, 0));
    assert_has(&store, 0..601);
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}

#[test]
fn rows_outlive_a_full_disk() {
    // In the head of a record, in the middle of one, and between two.
    for room in [0, 3, 100, records(1..3).len(), 5_000] {
        assert_outlives(Fault::Full(room), LedgerMode::Journal);
    }
}

#[test]
fn rows_outlive_a_full_disk_that_takes_nothing_back() {
    for room in [0, 3, records(1..3).len(), 5_000] {
        assert_outlives(Fault::FullAndStuck(room), LedgerMode::Journal);
    }
}

#[test]
fn rows_outlive_a_broken_disk() {
    assert_outlives(Fault::Broken, LedgerMode::Journal);
}

#[test]
fn a_file_that_was_not_synced_is_not_trusted() {
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Durable);
    drop(ledger.post(row(0)));
    until(|| ledger.waiting() == 0);
    let before: BTreeSet<_> = room.journals().into_iter().collect();
    room.set(Fault::NotSynced);
    drop(ledger.post(row(1)));
    until(|| ledger.trouble().is_some());
    room.set(Fault::None);
    until(|| ledger.waiting() == 0);
    let open = ledger.shared.lock().at.clone().unwrap().0;
    assert!(!before.contains(&room.path().join(&*open)));
    assert_has(&store, 0..2);
    assert_outlives(Fault::NotSynced, LedgerMode::Durable);
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[test]
fn a_full_ledger_says_so_and_counts_what_it_loses() {
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    room.set(Fault::Full(0));
    let mut number = 0;
    let mut post = |ledger: &Ledger| {
        drop(ledger.post(row(number)));
        number += 1;
    };
    while ledger.waiting() < MOST_WAITING {
        assert!(!ledger.is_full());
        post(&ledger);
    }
    assert!(ledger.is_full());
    // Requests that had begun by then.
    while ledger.waiting() < ROOM {
        post(&ledger);
    }
    assert_eq!(ledger.lost(), 0);
    let said = Said::default();
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || (0..7).for_each(|_| post(&ledger)));
    assert_eq!(ledger.lost(), 7);
    assert_eq!(said.text().matches("usage is lost").count(), 1, "{}", said.text());
    room.set(Fault::None);
    until(|| ledger.waiting() == 0);
    assert!(!ledger.is_full());
    drop(ledger);
    assert_eq!(store.usage(&all()).unwrap()[0].tally.requests, ROOM as u64);
}

#[test]
fn a_journal_that_a_store_does_not_take_has_an_end() {
    let room = Room::new();
    let store = room.store();
    // Another process has as much of it, and is alive.
    let path = room.leave("usage-1-1.journal", b"");
    let file = File::options().write(true).open(&path).unwrap();
    file.lock().unwrap();
    file.set_len(MOST_BYTES).unwrap();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    drop(ledger.post(row(0)));
    until(|| ledger.trouble().is_some());
    assert!(ledger.trouble().unwrap().to_string().contains("256 MiB"));
    assert_eq!((ledger.waiting(), ledger.lost()), (1, 0));
    fs::remove_file(&path).unwrap();
    until(|| ledger.waiting() == 0);
    assert_has(&store, 0..1);
}

#[test]
fn a_store_that_another_process_holds_holds_up_nobody() {
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    let other = Connection::open(room.path().join(files::DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for number in 0..300 {
        drop(ledger.post(row(number)));
    }
    until(|| ledger.waiting() == 0);
    assert_has(&store, 0..300);
    until(|| matches!(ledger.trouble(), Some(LedgerTrouble::Store(StoreError::Busy))));
    assert_eq!((ledger.lag(), ledger.lost()), (300, 0));
    other.execute_batch("COMMIT").unwrap();
    until(|| {
        assert!(ledger.flush(PATIENCE));
        ledger.lag() == 0
    });
    assert_has(&store, 0..300);
}

#[test]
fn a_store_that_is_away_is_not_begun_anew() {
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    let (file, away) = (room.path().join(files::DATABASE), room.path().join("away"));
    fs::rename(&file, &away).unwrap();
    for number in 0..20 {
        drop(ledger.post(row(number)));
    }
    until(|| matches!(ledger.trouble(), Some(LedgerTrouble::Store(StoreError::Gone { .. }))));
    assert!(!file.exists());
    fs::rename(&away, &file).unwrap();
    until(|| {
        assert!(ledger.flush(PATIENCE));
        ledger.lag() == 0
    });
    // It looks for what is too old before it says so.
    until(|| ledger.trouble().is_none());
    assert_has(&store, 0..20);
}

#[test]
fn rows_wait_for_a_store_that_was_damaged_and_go_into_the_backup_that_takes_its_place() {
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    for number in 0..20 {
        drop(ledger.post(row(number)));
    }
    assert!(ledger.flush(PATIENCE));
    let backup = room.folder.path().join("backup.db");
    store.backup(&backup).unwrap();
    let file = room.path().join(files::DATABASE);
    let beside = ["portcullis.db-wal", "portcullis.db-shm"].map(|name| room.path().join(name));
    // After a change of somebody else's all of it is read anew.
    let other = Connection::open(&file).unwrap();
    other.execute("INSERT INTO usage_word (word) VALUES ('another')", []).unwrap();
    drop(other);
    for path in [&file, &beside[0]] {
        // In place: it is the same file.
        fs::write(path, vec![0xa5; fs::read(path).unwrap().len()]).unwrap();
    }
    for number in 20..40 {
        drop(ledger.post(row(number)));
    }
    until(|| matches!(ledger.trouble(), Some(LedgerTrouble::Store(_))));
    let told = ledger.trouble().unwrap().to_string();
    assert!(told.contains("is damaged") || told.contains("is not a store"), "{told}");
    assert_eq!((ledger.waiting(), ledger.lag(), ledger.lost()), (0, 20, 0));
    drop((ledger, store));
    assert_ne!(fs::metadata(&file).unwrap().len(), 0, "nothing is begun anew");
    fs::rename(&backup, &file).unwrap();
    beside.iter().filter(|path| path.exists()).for_each(|path| fs::remove_file(path).unwrap());
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    assert!(ledger.flush(PATIENCE));
    assert_has(&store, 0..40);
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}

#[test]
fn keys_are_changed_while_rows_come() {
    use crate::store::{Actor, KeyDetails};
    let room = Room::new();
    let store = room.store();
    let ledger = room.ledger(&store, LedgerMode::Journal);
    thread::scope(|scope| {
        scope.spawn(|| (0..6000).for_each(|number| drop(ledger.post(row(number)))));
        let by = Actor { who: "cli:anna".to_owned(), client: None };
        for number in 0..10 {
            let details = KeyDetails { name: format!("bot{number}"), ..KeyDetails::default() };
            store.create_key(details, &by).unwrap();
        }
    });
    assert!(ledger.flush(PATIENCE));
    assert_has(&store, 0..6000);
    assert_eq!(store.count_keys().unwrap(), 10);
}
