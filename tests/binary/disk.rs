//! A disk that is full or fails under managed keys: told in words, survived, and over when it is over.
//!
//! The faults are real: a small file system that is filled, and system calls that strace makes fail.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use crate::managed::Managed;
use crate::{House, PROGRAM, skip, text};

/// How often room that was given back is taken again.
const AGAIN: Duration = Duration::from_millis(10);

/// A file system of its own with a megabyte of room.
pub(crate) struct Disk {
    folder: TempDir,
}

impl Disk {
    pub(crate) fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(folder.path());
        let mounted = is_done(&mut mount);
        mounted.then_some(Self { folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Until what this gives back is dropped: the store's own log gives room back now and then.
    pub(crate) fn stays_full(&self) -> Full {
        let path = self.folder.path().join("filler");
        fill(&path);
        let (ends, is_over) = channel::<()>();
        let filling = thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = is_over.recv_timeout(AGAIN) {
                fill(&path);
            }
        });
        Full { ends: Some(ends), filling: Some(filling) }
    }

    pub(crate) fn empty(&self) {
        fs::remove_file(self.folder.path().join("filler")).unwrap();
    }
}

fn fill(path: &Path) {
    // Where not even the name has room, it is full.
    let Ok(mut filler) = File::options().create(true).append(true).open(path) else { return };
    while filler.write_all(&[0; 512]).is_ok() {}
}

/// Keeps a disk full.
pub(crate) struct Full {
    ends: Option<Sender<()>>,
    filling: Option<JoinHandle<()>>,
}

impl Drop for Full {
    fn drop(&mut self) {
        drop(self.ends.take());
        self.filling.take().map(JoinHandle::join).transpose().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        is_done(Command::new("umount").arg("--lazy").arg(self.folder.path()));
    }
}

fn is_done(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn on_a_full_disk_keys_serve_and_changes_are_refused_in_words_until_there_is_room_again() {
    let Some(disk) = Disk::mount() else {
        return skip("no small file system may be mounted, so none was filled");
    };
    let mut gate = Managed::start(Some(&disk.path().join("data")), None);
    let (_, bot) = gate.desk.made("bot");
    assert_eq!((gate.me(&bot), gate.alarms()), (200, 0));
    let full = disk.stays_full();

    let (status, told) = gate.desk.api("POST /api/v1/keys", "{\"name\":\"late\"}");
    assert!(status == 503 && told.contains("store_failed"), "{told}");
    gate.gate.says("no change can be kept: the disk is full");
    assert_eq!(gate.alarms(), 1);
    let out = gate.desk.run(&["key", "create", "late"]);
    assert!(!out.status.success() && out.stdout.is_empty(), "{}", text(&out));
    assert!(text(&out).contains("the disk is full"), "{}", text(&out));
    // Who is known is known, and a stranger is told so and not to come again.
    assert_eq!((gate.me(&bot), gate.me("pc_nobody")), (200, 401));

    drop(full);
    disk.empty();
    gate.gate.says("the store is good again");
    assert_eq!(gate.alarms(), 0);
    let late = gate.desk.done(&["key", "create", "late"]);
    assert_eq!((gate.me(&bot), gate.me(&late)), (200, 200));
    assert_eq!(gate.desk.names(), ["bot", "late"]);
    gate.gate.signal("TERM");
    assert_eq!(gate.gate.wait(), Some(0));
    assert!(gate.desk.done(&["key", "show", "bot"]).contains("from 127.0.0.1"));
    gate.desk.done(&["store", "check"]);
}

/// Calls of a running process that fail or take their time, until it is dropped.
pub(crate) struct Fault {
    strace: Child,
    /// Open, because strace ends when nobody takes its words.
    _words: BufReader<ChildStderr>,
}

impl Fault {
    /// `what` happens to these calls on these files, in strace's words: `error=EIO`.
    pub(crate) fn on(pid: u32, calls: &str, what: &str, files: &[&Path]) -> Option<Self> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]);
        strace.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")]);
        for file in files {
            strace.arg("-P").arg(file);
        }
        let mut strace = strace.stderr(Stdio::piped()).spawn().ok()?;
        let mut words = BufReader::new(strace.stderr.take().unwrap());
        let is_on =
            words.by_ref().lines().map_while(Result::ok).any(|line| line.contains("attached"));
        let fault = Self { strace, _words: words };
        is_on.then_some(fault)
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let stop = format!("kill -s INT {}", self.strace.id());
        let _ = Command::new("sh").args(["-c", &stop]).status();
        // By then it has let the process go.
        let _ = self.strace.wait();
    }
}

#[test]
fn when_writing_or_flushing_fails_the_asker_hears_it_nothing_is_half_done_and_it_heals() {
    let mut gate = Managed::start(None, None);
    let (id, bot) = gate.desk.made("bot");
    let mut names = vec!["bot".to_owned()];
    let file = gate.desk.data.join("portcullis.db");
    let log = gate.desk.data.join("portcullis.db-wal");
    for (at, (calls, error, says)) in [
        ("pwrite64", "ENOSPC", "the disk is full"),
        ("pwrite64", "EIO", "the disk fails"),
        ("fsync,fdatasync", "EIO", "the disk fails"),
    ]
    .into_iter()
    .enumerate()
    {
        let pid = gate.gate.child.id();
        let Some(fault) = Fault::on(pid, calls, &format!("error={error}"), &[&file, &log]) else {
            return skip("no strace that may trace the gate, so no call of it failed");
        };
        for (line, body) in [
            ("POST /api/v1/keys".to_owned(), "{\"name\":\"lost\"}"),
            (format!("POST /api/v1/keys/{id}/rotate"), ""),
            (format!("POST /api/v1/keys/{id}/revoke"), "{\"now\":true}"),
        ] {
            let (status, told) = gate.desk.api(&line, body);
            assert!(status == 503 && told.contains("store_failed"), "{calls} {line}: {told}");
        }
        gate.gate.says(&format!("no change can be kept: {says}"));
        assert_eq!((gate.me(&bot), gate.me("pc_nobody"), gate.alarms()), (200, 401, 1), "{calls}");
        drop(fault);
        gate.gate.says("the store is good again");
        assert_eq!(gate.alarms(), 0);
        // What was told to have failed did not happen after all.
        assert_eq!(gate.desk.names(), names, "{calls} {error}");
        let name = format!("late{at}");
        let (_, late) = gate.desk.made(&name);
        names.push(name);
        assert_eq!((gate.me(&bot), gate.me(&late)), (200, 200));
    }
    gate.gate.signal("KILL");
    assert_eq!(gate.gate.wait(), None);
    gate.desk.done(&["store", "check"]);
    assert_eq!(gate.desk.names(), names);
}

/// `portcullis key create NAME` with the `when`th of these calls failing; whether one did, and the
/// key if it was told.
fn create_with(
    gate: &Managed,
    name: &str,
    calls: &str,
    fault: &str,
    when: usize,
) -> (bool, String) {
    let house = House::new();
    let log = house.path("log");
    let mut strace = Command::new("strace");
    strace.arg("-f").arg("-o").arg(&log).args(["-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:{fault}:when={when}")]);
    strace.args([&*PROGRAM, "key", "create", name, "--data-dir"]).arg(&gate.desk.data);
    let out = strace.output().unwrap();
    let log = fs::read_to_string(log).unwrap();
    let told = String::from_utf8(out.stdout.clone()).unwrap().trim_end().to_owned();
    // What is killed behind its last word has said it all the same.
    let is_killed = log.contains("killed by");
    assert!(is_killed || out.status.success() != told.is_empty(), "{calls} {when}: {}", text(&out));
    (is_killed || log.contains("(INJECTED)"), told)
}

#[test]
fn whichever_write_of_a_command_fails_or_is_its_last_a_key_that_was_told_works_and_the_store_is_whole()
 {
    let can = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        return skip("no strace that may trace, so no write of a command failed");
    }
    let gate = Managed::start(None, None);
    for (calls, fault) in [
        ("pwrite64", "error=EIO"),
        ("pwrite64", "error=ENOSPC"),
        ("fsync,fdatasync", "error=EIO"),
        ("write", "signal=KILL"),
        ("pwrite64", "signal=KILL"),
        ("fsync,fdatasync", "signal=KILL"),
    ] {
        let mut tried = 0;
        loop {
            let name = format!("n{tried}");
            let (did_fail, told) = create_with(&gate, &name, calls, fault, tried + 1);
            if !told.is_empty() {
                // The stamp may be what failed; then the gate looks by itself in a second.
                crate::load::wait_for("the key", || gate.me(&told) == 200);
            }
            gate.desk.done(&["store", "check"]);
            if !did_fail {
                break;
            }
            tried += 1;
            assert!(tried < 200, "{calls} {fault}: it has no end");
        }
        assert!(tried >= 1, "{calls} {fault}: nothing failed");
    }
    assert_eq!(gate.alarms(), 0);
}
