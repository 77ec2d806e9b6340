//! Processes that end anywhere, two at one store, and what they leave.

use super::*;

#[test]
fn what_is_in_the_store_already_does_not_count_twice() {
    let room = Room::new();
    let bytes = records(0..30);
    // Killed behind the transaction and before the file was taken away; then a backup of the store
    // from before is put in its place.
    let path = room.leave("usage-1-1.journal", &bytes);
    let store = room.store();
    let backup = room.folder.path().join("backup.db");
    store.backup(&backup).unwrap();
    for kept in [true, true, false] {
        drop(room.ledger(&store, LedgerMode::Journal));
        until(|| !path.exists());
        assert_has(&store, 0..30);
        fs::write(&path, &bytes).unwrap();
        if !kept {
            let other = Connection::open(room.path().join(files::DATABASE)).unwrap();
            other.execute_batch("DELETE FROM usage_journal").unwrap();
        }
    }
    // The same rows in another file: a write that failed late was made again.
    let again = room.leave("usage-1-2.journal", &bytes);
    drop(room.ledger(&store, LedgerMode::Journal));
    until(|| !again.exists() && !path.exists());
    assert_has(&store, 0..30);
    assert!(backup.exists());
}

/// Who asks opens the journal first and then looks how far it is in the store.
#[test]
fn a_journal_that_goes_while_somebody_reads_it_counts_once() {
    let room = Room::new();
    let store = room.store();
    for name in ["usage-1.journal", "usage-2.journal"] {
        room.leave(name, &records(0..3));
    }
    let read = |journal: journal::Unfolded| {
        let marks = store.read(fold::marks).unwrap();
        let mut rows = 0;
        journal.each(&marks, |_| rows += 1).unwrap();
        rows
    };
    assert_eq!(read(store.unfolded().unwrap()), 6);
    // It has the files from here on, whatever becomes of their names.
    let journal = store.unfolded().unwrap();
    drop(room.ledger(&store, LedgerMode::Journal));
    until(|| room.journals().is_empty());
    assert_eq!(read(journal), 0, "of neither, whichever went last");
    assert_has(&store, 0..3);
}

#[test]
fn how_far_a_file_was_is_forgotten_long_after_it_went() {
    let room = Room::new();
    let store = room.store();
    // One is of a process that ended before it could forget it, the other of one that writes.
    room.leave("usage-1-2.journal", &records(3..4));
    let calendar = Calendar::new(TimeZone::UTC);
    let mut folder = Folder::new(Arc::clone(&store), Arc::default(), calendar, Duration::MAX);
    let marks = || {
        let mut names: Vec<_> = store.read(fold::marks).unwrap().into_keys().collect();
        names.sort();
        names
    };
    for (name, at) in [("usage-1-1.journal", 1), ("usage-1-2.journal", 2)] {
        let mark = move |transaction: &rusqlite::Transaction<'_>| {
            let sql = "INSERT OR REPLACE INTO usage_journal (segment, folded) VALUES (?1, ?2)";
            Ok(transaction.execute(sql, (name, at))?)
        };
        store.write(mark).unwrap();
    }
    folder.forget_gone().unwrap();
    assert_eq!(marks(), ["usage-1-1.journal", "usage-1-2.journal"]);
    folder.forget_gone().unwrap();
    assert_eq!(marks(), ["usage-1-2.journal"], "its file is there");
}

#[test]
fn a_group_that_was_folded_in_part_goes_on_where_it_was() {
    let room = Room::new();
    let path = room.leave("usage-1-1.journal", &records(0..40));
    let store = room.store();
    let part = journal::read(&mut File::open(&path).unwrap(), 0, None).unwrap();
    let rows: Vec<_> = part.rows.into_iter().take(25).collect();
    let group = Group { segment: "usage-1-1.journal".to_owned(), from: 0, rows };
    let calendar = Calendar::new(TimeZone::UTC);
    store.write(move |transaction| fold::fold(transaction, &group, &calendar)).unwrap();
    assert_has(&store, 0..40);
    drop(room.ledger(&store, LedgerMode::Journal));
    until(|| !path.exists());
    assert_has(&store, 0..40);
}

/// All words, in the order of the alphabet.
fn words(room: &Room) -> Vec<String> {
    let other = Connection::open(room.path().join(files::DATABASE)).unwrap();
    let mut words = other.prepare("SELECT word FROM usage_word ORDER BY word").unwrap();
    let words = words.query_map([], |row| row.get(0)).unwrap();
    words.collect::<rusqlite::Result<_>>().unwrap()
}

/// Folds a row as another process does.
fn fold_one(store: &Store, row: &UsageRow) {
    let mut bytes = Vec::new();
    record::write(row, &mut bytes);
    let (entry, end) = record::read(&bytes).unwrap();
    let segment = format!("usage-{}", entry.id);
    let group = Group { segment, from: 0, rows: vec![(end as u64, entry)] };
    let calendar = Calendar::new(TimeZone::UTC);
    store.write(move |it| fold::fold(it, &group, &calendar)).unwrap();
}

#[test]
fn a_row_comes_out_of_the_store_as_it_went_in() {
    let room = Room::new();
    let store = room.store();
    let time = |millis| Some(Duration::from_millis(millis));
    let told = UsageRow {
        key: Some("bot".into()),
        usage: Usage {
            prompt: 11,
            completion: 12,
            cached: Some(13),
            reasoning: Some(14),
            estimated: true,
            load: time(15),
            prefill: time(16),
            generation: time(17),
            total: time(18),
        },
        runner_options: Some("num_ctx=8192".into()),
        queue: Duration::from_millis(19),
        ..row(1)
    };
    let mut bytes = Vec::new();
    record::write(&told, &mut bytes);
    let (entry, _) = record::read(&bytes).unwrap();
    assert_eq!(entry.usage, told.usage);
    fold_one(&store, &told);
    assert_eq!(store.usage_rows(&every_row(9)).unwrap(), [entry]);
}

fn every_row(limit: usize) -> RowsQuery {
    let (since, until) = (Timestamp::MIN, Timestamp::MAX);
    RowsQuery { since, until, only: UsageFilter::default(), before: None, limit }
}

/// Of a caller who writes what he likes in place of a model's name.
fn of_no_model(number: u32, days_ago: u64) -> UsageRow {
    let time = row(0).time - Duration::from_secs(days_ago * 86400);
    UsageRow { time, model: Some(format!("none{number}")), status: 404, ..row(number) }
}

#[test]
fn a_word_goes_with_the_last_row_that_has_it() {
    let room = Room::new();
    let store = room.store();
    for number in 0..50 {
        fold_one(&store, &of_no_model(number, 500));
    }
    let kept = UsageRow { runner_options: Some("num_ctx=8192".into()), ..of_no_model(49, 0) };
    fold_one(&store, &UsageRow { id: row(99).id, ..kept });
    assert_eq!(words(&room).len(), 50 + 5);
    let _ledger = room.ledger(&store, LedgerMode::Journal);
    until(|| words(&room).len() < 10);
    // The sums of old days have no such model, and all else.
    assert_eq!(words(&room), ["anna", "chat", "done", "none49", "num_ctx=8192", "ollama"]);
    assert_eq!(store.usage(&all()).unwrap()[0].tally.requests, 51);
    let rows = store.usage_rows(&every_row(9)).unwrap();
    assert_eq!((rows.len(), rows[0].model.as_deref()), (1, Some("none49")));
}

#[test]
fn a_word_that_comes_again_while_it_is_looked_for_stays() {
    let room = Room::new();
    let store = room.store();
    let anew = Connection::open(room.path().join(files::DATABASE)).unwrap();
    anew.execute("INSERT INTO usage_word (word) VALUES ('none1'), ('none2')", []).unwrap();
    fold_one(&store, &row(0));
    let find = || {
        let mut unused = store.read(Unused::begin).unwrap();
        while store.read(|it| unused.look(it)).unwrap() {}
        unused.next().unwrap()
    };
    let forget = find();
    fold_one(&store, &of_no_model(1, 0));
    assert!(!store.write(move |it| Ok(forget.run(it)?)).unwrap());
    assert!(words(&room).contains(&"none1".to_owned()));
    let forget = find();
    assert!(store.write(move |it| Ok(forget.run(it)?)).unwrap());
    assert!(words(&room).contains(&"none1".to_owned()));
    assert!(!words(&room).contains(&"none2".to_owned()));
}

#[test]
fn two_processes_write_beside_each_other_and_each_ends_its_own() {
    let room = Room::new();
    let (old, new) = (room.store(), room.store());
    let (first, second) =
        (room.ledger(&old, LedgerMode::Journal), room.ledger(&new, LedgerMode::Journal));
    for number in 0..3000 {
        let ledger = if number % 2 == 0 { &first } else { &second };
        drop(ledger.post(row(number)));
    }
    assert!(first.flush(PATIENCE) && second.flush(PATIENCE));
    drop(first);
    assert_has(&new, 0..3000);
    drop(second);
    until(|| room.journals().is_empty());
    assert_has(&old, 0..3000);
}

/// In its own child process: tells every row that is written, until it is killed.
fn write_until_killed(folder: &Path, round: u32) {
    let store = Arc::new(Store::open(folder).unwrap());
    let ledger = Ledger::start(&store, settings(LedgerMode::Journal)).unwrap();
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed) as u32;
                    let id = format!("{round:08x}{number:08x}");
                    let row = UsageRow {
                        id: id.clone().into_bytes().try_into().unwrap(),
                        ..row(round * 1_000_000 + number)
                    };
                    runtime.block_on(ledger.post(row));
                    println!("row {id}");
                }
            });
        }
    });
}

/// `PORTCULLIS_TEST_KILLS` says how often; the child is this test as well.
#[test]
fn a_row_that_was_told_as_written_is_there_once_whenever_the_process_is_killed() {
    const CHILD: &str = "PORTCULLIS_TEST_LEDGER";
    const NAME: &str =
        "a_row_that_was_told_as_written_is_there_once_whenever_the_process_is_killed";
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse::<u32>().ok());
    if let Some(folder) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&folder), number("PORTCULLIS_TEST_ROUND").unwrap());
    }
    let room = Room::new();
    let mut told = Vec::new();
    for round in 0..number("PORTCULLIS_TEST_KILLS").unwrap_or(4) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("store::ledger::tests::ends::{NAME}"), "--nocapture"])
            .env(CHILD, room.path())
            .env("PORTCULLIS_TEST_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut ids = lines.filter_map(|line| {
            line.split_once("row ").map(|(_, id)| id.get(..16).unwrap_or_default().to_owned())
        });
        // Sooner and later, also in the middle of folding.
        told.extend(ids.by_ref().take(300 + 1700 * (round as usize % 4)));
        child.kill().unwrap();
        child.wait().unwrap();
        told.extend(ids.filter(|id| id.len() == 16));
    }
    let store = room.store();
    let has_all = |found: Vec<String>| {
        let once: BTreeSet<_> = found.iter().cloned().collect();
        assert_eq!(once.len(), found.len(), "a row is there twice");
        let missing: Vec<_> = told.iter().filter(|id| !once.contains(*id)).collect();
        assert!(missing.is_empty(), "{missing:?} of {}", told.len());
        assert!(told.len() > 300);
    };
    has_all(ids(&store));
    drop(room.ledger(&store, LedgerMode::Journal));
    until(|| room.journals().is_empty());
    has_all(ids(&store));
    let requests: u64 = store.usage(&all()).unwrap().iter().map(|it| it.tally.requests).sum();
    assert_eq!(requests, ids(&store).len() as u64);
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}

proptest! {
    #[test]
    fn a_row_is_read_as_it_was_written(
        texts in prop::collection::vec("\\PC{0,80}", 5),
        numbers in prop::collection::vec(any::<u32>(), 12),
        options in prop::collection::vec(prop::option::of(any::<u32>()), 8),
        (status, is_inference, estimated) in (any::<u16>(), any::<bool>(), any::<bool>()),
        client in prop::option::of(any::<std::net::IpAddr>()),
    ) {
        let time = |number: u32| Duration::from_micros(number.into());
        let count = |number: Option<u32>| number.map(u64::from);
        let row = UsageRow {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(u64::from(numbers[0]) * 300),
            client,
            name: texts[0].as_str().into(),
            key: options[0].map(|_| texts[1].as_str().into()),
            model: options[1].map(|_| texts[2].clone()),
            backend: texts[3].as_str().into(),
            runner_options: options[2].map(|_| texts[4].as_str().into()),
            is_inference,
            status,
            usage: Usage {
                prompt: numbers[1].into(),
                completion: numbers[2].into(),
                cached: count(options[3]),
                reasoning: count(options[4]),
                estimated,
                load: options[5].map(time),
                prefill: options[6].map(time),
                generation: options[0].map(time),
                total: options[7].map(time),
            },
            bytes_in: u64::from(numbers[3]) << 20,
            bytes_out: numbers[4].into(),
            queue: time(numbers[5]),
            first_byte: options[1].map(time),
            first_token: options[2].map(time),
            total: time(numbers[6]),
            backend_time: time(numbers[7]),
            ..row(numbers[8])
        };
        let mut bytes = Vec::new();
        record::write(&row, &mut bytes);
        let (entry, length) = record::read(&bytes).unwrap();
        prop_assert_eq!(length, bytes.len());
        prop_assert_eq!(SystemTime::from(entry.time), row.time);
        prop_assert_eq!(entry.place & 0xf_ffff, u64::from(numbers[8]) & 0xf_ffff);
        let cut = |text: &str| text[..text.floor_char_boundary(256)].to_owned();
        prop_assert_eq!(entry.id.as_bytes(), &row.id[..]);
        prop_assert_eq!(&entry.name, &cut(&row.name));
        prop_assert_eq!(&entry.key, &row.key.as_deref().map(cut));
        prop_assert_eq!(&entry.model, &row.model.as_deref().map(cut));
        prop_assert_eq!(&entry.backend, &cut(&row.backend));
        prop_assert_eq!(&entry.runner_options, &row.runner_options.as_deref().map(cut));
        prop_assert_eq!((entry.client, entry.status), (row.client, row.status));
        prop_assert_eq!((&*entry.operation, &*entry.outcome), (row.operation, row.outcome));
        prop_assert_eq!(entry.is_inference, row.is_inference);
        prop_assert_eq!(entry.usage, row.usage);
        prop_assert_eq!((entry.bytes_in, entry.bytes_out), (row.bytes_in, row.bytes_out));
        prop_assert_eq!((entry.queue, entry.total), (row.queue, row.total));
        prop_assert_eq!(entry.backend_time, row.backend_time);
        prop_assert_eq!(entry.first_byte, row.first_byte);
        prop_assert_eq!(entry.first_token, row.first_token);
    }

    #[test]
    fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some((_, length)) = record::read(&bytes) {
            prop_assert!(length <= bytes.len());
        }
        // With a good checksum, so that the fields are looked at.
        let whole = checked(&bytes);
        if let Some((_, length)) = record::read(&whole) {
            prop_assert!(length <= whole.len());
        }
    }
}

fn checked(fields: &[u8]) -> Vec<u8> {
    let length = u32::try_from(fields.len()).unwrap().to_le_bytes();
    [&length[..], &crc32fast::hash(fields).to_le_bytes(), fields].concat()
}

#[test]
fn a_row_of_the_first_version_is_read() {
    let mut bytes = Vec::new();
    record::write(&row(7), &mut bytes);
    let (now, _) = record::read(&bytes).unwrap();
    // It ended before the two times that are missing here, too.
    let (version, rest) = bytes[8..bytes.len() - 2].split_first().unwrap();
    assert_eq!((*version, &bytes[bytes.len() - 2..]), (2, &[0, 0][..]));
    let older = checked(&[&[1], rest].concat());
    assert_eq!(record::read(&older), Some((now, older.len())));
    assert_eq!(record::read(&checked(&[&[3], rest].concat())), None, "of a version to come");
}
