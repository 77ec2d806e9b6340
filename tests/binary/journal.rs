//! The journal of usage on disks that are full, fail or are slow: answers go out, and each row is there once.
//!
//! The faults are real, as in `disk.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::disk::{Disk, Fault};
use crate::ledger::rows;
use crate::load::{Model, wait_for};
use crate::managed::Managed;
use crate::{after, skip};

/// A gate with a key, and a model server whose answers end.
struct Bed {
    gate: Managed,
    key: String,
    /// Of every answer that came.
    ids: Vec<String>,
    _model: Model,
}

impl Bed {
    fn new(data: Option<&Path>, config: &str) -> Self {
        let model = Model::start();
        model.ends.store(true, Ordering::SeqCst);
        let upstream = format!("http://{}", model.address);
        let gate = Managed::start_as(data, Some(&upstream), config);
        let (_, key) = gate.desk.made("bot");
        Self { gate, key, ids: Vec::new(), _model: model }
    }

    fn ask(&mut self) {
        let (status, answer) = self.gate.gate.post("/api/chat", &self.key, "{\"model\":\"m\"}");
        assert_eq!(status, 200, "{answer}");
        assert!(answer.ends_with("0\r\n\r\n"), "not to its end: {answer}");
        self.ids.push(after(&answer, "x-request-id: "));
    }

    /// Of the journal that is being written.
    fn journal(&self) -> PathBuf {
        let files = fs::read_dir(&self.gate.desk.data).unwrap().map(|file| file.unwrap().path());
        let mut files = files.filter(|path| path.extension().is_some_and(|it| it == "journal"));
        files.next().unwrap()
    }

    /// What the gate's metrics say of it.
    fn counted(&self, name: &str) -> u64 {
        let (status, told) = self.gate.desk.api("GET /metrics", "");
        assert_eq!(status, 200, "{told}");
        let line = told.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().trim_end_matches(".0").parse().unwrap()
    }

    /// Stops the gate: every answer has its row, once, and no row is lost.
    fn ends(mut self) {
        assert_eq!(self.counted("portcullis_ledger_lost_rows_total"), 0);
        self.gate.gate.signal("TERM");
        assert_eq!(self.gate.gate.wait(), Some(0));
        let mut rows: Vec<_> =
            rows(&self.gate.desk.data).into_iter().map(|(id, _, _)| id).collect();
        rows.sort();
        self.ids.sort();
        assert_eq!(rows, self.ids);
    }
}

#[test]
fn on_a_full_disk_answers_go_out_and_their_rows_follow_when_there_is_room_again() {
    let Some(disk) = Disk::mount() else {
        return skip("no small file system may be mounted, so no journal was on a full one");
    };
    let mut bed = Bed::new(Some(&disk.path().join("data")), "");
    bed.ask();
    assert_eq!(bed.gate.alarms(), 0);
    let full = disk.stays_full();
    // What is left of the journal's last page has room for some.
    for _ in 0..200 {
        bed.ask();
    }
    bed.gate.gate.says("usage cannot be written to its journal");
    assert!(bed.gate.alarms() >= 1, "whoever asks whether it is ready is told");
    drop(full);
    disk.empty();
    bed.gate.gate.says("usage is written again");
    wait_for("no alarm", || bed.gate.alarms() == 0);
    bed.ask();
    bed.ends();
}

#[test]
fn when_the_journal_cannot_be_written_or_flushed_answers_go_out_and_rows_follow() {
    let mut bed = Bed::new(None, "ledger = \"durable\"\n");
    bed.ask();
    for (calls, error) in [("write", "ENOSPC"), ("write", "EIO"), ("fdatasync", "EIO")] {
        let journal = bed.journal();
        let pid = bed.gate.gate.child.id();
        let Some(fault) = Fault::on(pid, calls, &format!("error={error}"), &[&journal]) else {
            return skip("no strace that may trace the gate, so no write of a row failed");
        };
        for _ in 0..5 {
            bed.ask();
        }
        bed.gate.gate.says("usage cannot be written to its journal");
        drop(fault);
        bed.gate.gate.says("usage is written again");
        wait_for("no alarm", || bed.gate.alarms() == 0);
        bed.ask();
    }
    bed.ends();
}

#[test]
fn an_answer_waits_for_a_slow_disk_no_longer_than_it_may_and_is_counted() {
    let mut bed = Bed::new(None, "");
    bed.ask();
    wait_for("the row", || bed.counted("portcullis_ledger_waiting_rows") == 0);
    let journal = bed.journal();
    let length = || fs::metadata(&journal).unwrap().len();
    let (before, late) = (length(), bed.counted("portcullis_ledger_late_answers_total"));
    let pid = bed.gate.gate.child.id();
    let Some(_fault) = Fault::on(pid, "write", "delay_enter=5000000", &[&journal]) else {
        return skip("no strace that may trace the gate, so no disk was slow");
    };
    bed.ask();
    assert_eq!(length(), before, "the answer waited for its row");
    assert_eq!(bed.counted("portcullis_ledger_late_answers_total"), late + 1);
    wait_for("the row", || length() > before);
    bed.ends();
}
