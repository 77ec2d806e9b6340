//! What can be shown with time as an argument; whole gates and real saves are in `tests/it/live.rs`.

use std::io::Write;
use std::sync::Mutex;

use super::*;

type Lines = LiveFile<Vec<String>>;

/// Every line is an entry, but for blank ones and those that begin with `bad`.
fn lines(text: &str) -> Parsed<Vec<String>> {
    let is_bad = |line: &str| line.starts_with("bad");
    let content: Vec<_> =
        text.lines().filter(|line| !is_bad(line) && !line.is_empty()).map(str::to_owned).collect();
    let notes = text.lines().enumerate().filter(|(_, line)| is_bad(line)).map(|(number, _)| Note {
        line: number + 1,
        skipped: true,
        says: "bad".to_owned(),
    });
    Parsed { entries: content.len(), content, notes: notes.collect() }
}

fn file(text: &[u8]) -> (tempfile::TempDir, PathBuf, Lines) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, text).unwrap();
    let file = LiveFile::open(&path, Vec::new(), lines);
    (folder, path, file)
}

impl Lines {
    /// A look that takes no time.
    fn look_at(&self, now: Instant) {
        self.look(|| now);
    }
}

fn seen() -> Seen<()> {
    Seen {
        content: Arc::new(()),
        entries: 0,
        notes: Vec::new(),
        digest: [0; 32],
        stamp: None,
        stamp_since: Instant::now(),
        settled: false,
        gone_since: None,
        trouble: None,
        said: None,
    }
}

fn stamp(nanoseconds: i64) -> Stamp {
    let time = (1_700_000_000, nanoseconds);
    Stamp { device: 1, inode: 2, links: 1, size: 3, modified: time, changed: time }
}

#[test]
fn a_stamp_is_trusted_only_when_its_tick_is_over() {
    let start = Instant::now();
    // A fraction of zero looks like a clock that ticks every two seconds.
    for (nanoseconds, grain) in [(123, GRAIN), (0, COARSE_GRAIN)] {
        let mut seen = seen();
        let look = |seen: &mut Seen<()>, stamp, after| {
            let (began, ended) = (start + after, start + after);
            seen.settle(Some(stamp), Span { began, ended });
            seen.settled
        };
        assert!(!look(&mut seen, stamp(nanoseconds), Duration::ZERO));
        assert!(!look(&mut seen, stamp(nanoseconds), grain - Duration::from_millis(1)));
        assert!(look(&mut seen, stamp(nanoseconds), grain));
        let longer = Stamp { size: 4, ..stamp(nanoseconds) };
        assert!(!look(&mut seen, longer, grain), "another stamp begins a tick of its own");
        assert!(look(&mut seen, longer, grain * 2));
    }
}

/// File systems of newer kernels tick whenever somebody looked; this is one that does not.
#[test]
fn a_stamp_that_stayed_the_same_over_a_save_is_not_trusted_within_its_tick() {
    let (_folder, path, file) = file(b"old\n");
    let start = Instant::now();
    file.seen.write().unwrap().stamp_since = start;
    for (text, after) in [("one\n", 0), ("two\n", 20), ("six\n", 49)] {
        file.look_at(start + Duration::from_millis(after));
        fs::write(&path, text).unwrap();
        file.seen.write().unwrap().stamp = Some(Stamp::of(&fs::metadata(&path).unwrap()));
        assert!(file.unchanged().is_none(), "after {after} ms");
        file.look_at(start + Duration::from_millis(after));
        assert_eq!(*file.last(), [text.trim()]);
    }
    // Once the tick is over, the file is not read again.
    file.look_at(start + GRAIN);
    assert!(file.unchanged().is_some());
}

#[test]
fn a_stamp_is_as_old_as_the_end_of_the_look_that_found_it() {
    let (_folder, path, file) = file(b"old\n");
    fs::write(&path, "newer\n").unwrap();
    let (start, ms) = (Instant::now() + COARSE_GRAIN, Duration::from_millis);
    // Held up before the file was asked for its stamp, which may have been saved in between.
    let times = Mutex::new(vec![start + ms(45), start]);
    file.look(|| times.lock().unwrap().pop().unwrap());
    for (after, is_trusted) in [(50, false), (94, false), (95, true)] {
        file.look_at(start + ms(after));
        assert_eq!(file.unchanged().is_some(), is_trusted, "after {after} ms");
    }
}

#[tokio::test]
async fn one_look_serves_whoever_was_read_before_it_and_nobody_else() {
    let (_folder, path, file) = file(b"old\n");
    let file = Arc::new(file);
    file.look_at(Instant::now() + COARSE_GRAIN);
    let read_before = Instant::now();
    assert!(file.unchanged().is_some());
    fs::write(&path, "new\n").unwrap();
    assert_eq!(*file.current(read_before).await, ["old"]);
    assert_eq!(*file.current(Instant::now()).await, ["new"]);
}

#[tokio::test]
async fn a_look_goes_on_alone_when_its_caller_has_left() {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    let (_folder, path, _) = file(b"one\n");
    let (go, wait) = mpsc::channel();
    let (wait, at_once, most) =
        (Mutex::new(wait), AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    go.send(()).unwrap();
    let file = Arc::new(LiveFile::open(&path, Vec::new(), move |text| {
        seen.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // The channel ends with the test.
        let _ = wait.lock().unwrap().recv();
        at_once.fetch_sub(1, Ordering::SeqCst);
        lines(text)
    }));
    most.store(0, Ordering::SeqCst);
    for line in ["two\n", "three\n", "four\n"] {
        fs::write(&path, line).unwrap();
        let mut leaving = Box::pin(file.current(Instant::now()));
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(leaving.as_mut().poll(cx)));
        assert!(waits.await.is_pending());
        // Long enough for a look of its own to begin, if it did.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(most.load(Ordering::SeqCst), 1, "looks at once");
    drop(go);
    assert_eq!(*file.current(Instant::now()).await, ["four"]);
}

#[test]
fn a_missing_or_empty_file_closes_after_two_seconds_and_not_before() {
    for trouble in [Trouble::Missing, Trouble::Empty] {
        let go = |path: &Path| match trouble == Trouble::Missing {
            true => fs::remove_file(path).unwrap(),
            false => fs::write(path, "").unwrap(),
        };
        let (_folder, path, file) = file(b"anna\n");
        let start = Instant::now();
        file.look_at(start);
        go(&path);
        for after in [0, 1, 1_000, 1_999] {
            file.look_at(start + Duration::from_millis(after));
            assert_eq!((file.last().len(), file.report().trouble), (1, None), "after {after} ms");
        }
        file.look_at(start + SAVING);
        assert_eq!((file.last().len(), file.report().trouble), (0, Some(trouble.clone())));
        assert_eq!(file.report().entries, 0);
        fs::write(&path, "berta\n").unwrap();
        file.look_at(start + SAVING);
        assert_eq!((file.last().len(), file.report().trouble), (1, None));
        // The two seconds begin anew.
        go(&path);
        file.look_at(start + SAVING);
        assert_eq!(file.last().len(), 1);
    }
}

#[test]
fn a_save_that_goes_from_missing_to_empty_has_two_seconds_in_all() {
    let (_folder, path, file) = file(b"anna\n");
    let start = Instant::now();
    fs::remove_file(&path).unwrap();
    file.look_at(start);
    fs::write(&path, "").unwrap();
    file.look_at(start + SAVING - Duration::from_millis(1));
    assert_eq!(file.last().len(), 1);
    file.look_at(start + SAVING);
    assert_eq!((file.last().len(), file.report().trouble), (0, Some(Trouble::Empty)));
}

#[test]
fn a_file_is_missing_at_once_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file: Lines = LiveFile::open(&folder.path().join("none"), Vec::new(), lines);
    assert_eq!(file.report().trouble, Some(Trouble::Missing));
    assert!(file.last().is_empty());
}

#[test]
fn a_change_is_just_now_for_fifty_milliseconds_before_it_was_read() {
    let started = SystemTime::now();
    let ms = Duration::from_millis;
    let now = started + ms(900);
    let cases = [
        (started - ms(51), false),
        (started - ms(50), false),
        (started - ms(49), true),
        (started, true),
        // Written while it was read, by a reader who was held up.
        (started + ms(500), true),
        (now, true),
        (now + ms(1), false),
        (now + Duration::from_secs(3_600), false),
    ];
    for (modified, expected) in cases {
        assert_eq!(changed_just_now(modified, started, now), expected, "{modified:?}");
    }
}

#[test]
fn half_a_line_waits_only_where_there_is_something_to_serve_meanwhile() {
    let (_folder, path, file) = file(b"no newline");
    assert_eq!(file.last().len(), 1, "at the start there is nothing before it");
    fs::write(&path, "one\ntwo\nthr").unwrap();
    let saved = Instant::now();
    file.look_at(saved);
    if saved.elapsed() < MID_LINE {
        assert_eq!(file.last().len(), 1);
        assert!(file.unchanged().is_none(), "it is looked at again");
    }
    File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    file.look_at(Instant::now());
    assert_eq!(file.last().len(), 3);
}

#[test]
fn each_break_keeps_the_last_good_content_and_names_its_cure() {
    let breaks: [(&[u8], &str); 4] = [
        (b"\xff\xfea\0\n\0", "save it as UTF-8"),
        (b"\xfe\xff\0a\0\n", "save it as UTF-8"),
        (b"a\n\0\n", "write it anew"),
        (b"bad\nbad\n", "portcullis check"),
    ];
    for (bytes, cure) in breaks {
        let (_folder, path, file) = file(b"anna\nberta\n");
        fs::write(&path, bytes).unwrap();
        file.look_at(Instant::now());
        assert_eq!(file.last().len(), 2, "{cure}");
        let trouble = file.report().trouble.unwrap();
        assert!(trouble.is_fault() && trouble.to_string().contains(cure), "{trouble}");
        fs::write(&path, "carla\n").unwrap();
        file.look_at(Instant::now());
        assert_eq!((file.last().len(), file.report().trouble), (1, None));
    }
}

#[test]
fn content_that_comes_back_as_it_was_ends_the_alarm() {
    let (_folder, path, file) = file(b"anna\n");
    fs::write(&path, b"\xff\xfe").unwrap();
    file.look_at(Instant::now());
    assert_eq!(file.report().trouble, Some(Trouble::Utf16));
    fs::write(&path, b"anna\n").unwrap();
    file.look_at(Instant::now());
    assert_eq!((file.last().len(), file.report().trouble), (1, None));
}

#[test]
fn a_file_without_an_entry_is_no_fault_but_lets_nobody_in() {
    let (_folder, path, file) = file(b"anna\n");
    fs::write(&path, b"\n\n").unwrap();
    file.look_at(Instant::now());
    assert_eq!((file.last().len(), file.report().trouble), (0, Some(Trouble::NoEntry)));
    file.look_at(Instant::now());
    assert_eq!(file.report().trouble, Some(Trouble::NoEntry), "a second look is no cure");
    assert!(!Trouble::NoEntry.is_fault());
}

#[test]
fn a_bom_is_no_part_of_the_first_line() {
    let (_folder, _, file) = file(b"\xef\xbb\xbfanna\n");
    assert_eq!(*file.last(), ["anna"]);
}

#[test]
fn a_line_that_is_not_utf_8_is_skipped_and_told_by_its_number() {
    let (_folder, _, file) = file(b"anna\nb\xffd\ncarla\nbad\n");
    assert_eq!(*file.last(), ["anna", "carla"]);
    let notes = file.report().notes;
    let told: Vec<_> = notes.iter().map(|note| (note.line, note.skipped)).collect();
    assert_eq!(told, [(2, true), (4, true)]);
}

#[test]
fn a_file_without_a_name_is_told_as_replaced_and_serves_on() {
    let (_folder, path, _) = file(b"anna\n");
    let open = File::open(&path).unwrap();
    let by_number = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
    let file: Lines = LiveFile::open(Path::new(&by_number), Vec::new(), lines);
    assert_eq!(file.report().trouble, None);
    fs::remove_file(&path).unwrap();
    file.look_at(Instant::now());
    assert_eq!((file.last().len(), file.report().trouble), (1, Some(Trouble::Replaced)));
    file.look_at(Instant::now() + COARSE_GRAIN);
    assert_eq!((file.last().len(), file.report().trouble), (1, Some(Trouble::Replaced)));
}

#[test]
fn an_unreadable_file_is_told_with_what_repairs_it() {
    let says = refused(
        Path::new("/etc/keys"),
        io::ErrorKind::PermissionDenied,
        READ,
        (1000, 0o100_600),
        65532,
    );
    assert_eq!(
        says,
        "permission denied: it belongs to user 1000 with mode 0600 and we run as user 65532; \
         repair it with `chown 65532 /etc/keys`"
    );
    for (right, mode, says) in [
        (READ, 0o100_000, "; repair it with `chmod u+r k`"),
        (WRITE, 0o100_400, "; repair it with `chmod u+w k`"),
        // What is so already would be no repair.
        (
            WRITE,
            0o100_600,
            ", so look at the folders that it is in, and at how the disk is mounted",
        ),
    ] {
        let ours = refused(Path::new("k"), io::ErrorKind::PermissionDenied, right, (7, mode), 7);
        assert!(ours.ends_with(says), "{ours}");
    }
}

#[test]
fn modes_that_let_others_in_are_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path, _) = file(b"anna\n");
    let cases = [
        (0o600, None),
        (0o400, None),
        (0o640, None),
        (0o644, Some("everybody on this machine may read it")),
        (0o444, Some("everybody on this machine may read it")),
        (0o664, Some("others may write it")),
        (0o620, Some("others may write it")),
        (0o777, Some("others may write it")),
    ];
    for (mode, expected) in cases {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let warning = mode_warning(&path);
        assert_eq!(warning.is_some(), expected.is_some(), "{mode:o}");
        if let (Some(warning), Some(expected)) = (warning, expected) {
            assert!(warning.contains(expected) && warning.contains("chmod 600"), "{warning}");
        }
    }
}

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn alarms(&self) -> usize {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.matches("is UTF-16 text").count()
    }
}

#[tokio::test]
async fn an_alarm_that_goes_on_is_said_each_minute() {
    let said = Said::default();
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let before = Instant::now();
    let (_folder, _, file) = file(b"\xff\xfea\0");
    let (file, after) = (Arc::new(file), Instant::now());
    assert_eq!(said.alarms(), 1);
    file.tend(before + SAY_AGAIN - Duration::from_millis(1)).await;
    assert_eq!(said.alarms(), 1);
    file.tend(after + SAY_AGAIN).await;
    assert_eq!(said.alarms(), 2);
    file.tend(after + SAY_AGAIN).await;
    assert_eq!(said.alarms(), 2);
}
