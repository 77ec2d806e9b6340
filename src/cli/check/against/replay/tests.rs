//! What limits would have refused, of made-up rows.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::tz::TimeZone;

use super::super::{Bench, Tried};
use super::*;
use crate::access::Rules;
use crate::config::{Given, LedgerMode, load_without_credentials};
use crate::gateway::State;
use crate::store::{Ledger, LedgerSettings, Usage, UsageRow};

const NOON: &str = "2026-11-24T12:00:00Z";
const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

struct Room {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    _ledger: Ledger,
}

impl Room {
    fn new(rows: Vec<UsageRow>) -> Self {
        let keep = 10 * YEAR;
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        let settings = LedgerSettings { mode: LedgerMode::Journal, keep, zone: TimeZone::UTC };
        let ledger = Ledger::start(&store, settings).unwrap();
        for (row, number) in rows.into_iter().zip(0u64..) {
            let id = format!("{number:016x}").into_bytes().try_into().unwrap();
            drop(ledger.post(UsageRow { id, ..row }));
        }
        assert!(ledger.flush(Duration::from_secs(60)));
        Self { folder, store, _ledger: ledger }
    }

    fn tried(&self, text: &str, since: Timestamp) -> Tried {
        let file = self.folder.path().join("portcullis.toml");
        fs::write(&file, text).unwrap();
        let given = Given { file: Some(file), ..Given::default() };
        let state = State::new(load_without_credentials(&given).unwrap().config, None).unwrap();
        let bench = Bench { state: &state, rules: Rules::new(state.config()), store: &self.store };
        let until = since + 2 * YEAR;
        bench.try_all(Period { since, until }).unwrap()
    }

    fn told(&self, text: &str) -> String {
        self.tried(text, at(0)).told()
    }
}

/// So many seconds after noon.
fn at(second: i64) -> Timestamp {
    NOON.parse::<Timestamp>().unwrap() + Duration::from_secs(second.unsigned_abs())
}

/// A chat of one second and 1500 tokens.
fn chat(name: &str, time: Timestamp) -> UsageRow {
    UsageRow {
        time: SystemTime::from(time),
        name: name.into(),
        usage: Usage { prompt: 1000, completion: 500, ..Usage::default() },
        total: Duration::from_secs(1),
        backend_time: Duration::from_secs(1),
        ..UsageRow::example(0)
    }
}

fn chats(name: &str, seconds: impl IntoIterator<Item = i64>) -> Vec<UsageRow> {
    seconds.into_iter().map(|second| chat(name, at(second))).collect()
}

#[test]
fn each_request_is_tried_at_its_own_time() {
    let mut rows = chats("anna", 0..12);
    // One has leaked away by then.
    rows.extend(chats("bert", [0, 1, 2, 3, 4, 12]));
    let room = Room::new(rows);
    let says = "7 of 18 requests would have been refused: 7 chats by anna (rate_limited: \
                requests_per_minute = 5)";
    assert_eq!(room.told("[[limit]]\nrequests_per_minute = 5\n"), says);
    let told = room.told("[[limit]]\nper = 'all'\nmodels = ['gemma*']\nrequests_per_minute = 2\n");
    let says = "requests_per_minute = 2 for everybody together with gemma*)";
    assert!(told.contains(says), "{told}");
    let free = "0 of 18 requests would have been refused";
    assert_eq!(room.told(""), free);
    assert_eq!(room.told("[[limit]]\nnames = ['carla']\nconcurrent = 1\n"), free);
}

#[test]
fn what_is_refused_neither_runs_nor_uses_anything() {
    let mut rows = chats("anna", [0, 5, 12, 22, 31]);
    for row in &mut rows {
        row.total = Duration::from_secs(10);
    }
    let room = Room::new(rows);
    // The one of 5 would have run until 15, that of 22 came as another ended.
    let says = "2 of 5 requests would have been refused: 2 chats by anna (too_many_concurrent: \
                concurrent = 1)";
    assert_eq!(room.told("[[limit]]\nconcurrent = 1\n"), says);
    // One that may not use the model at all leaves the minute to others.
    let mut rows = chats("anna", [0, 1]);
    rows.extend(chats("bert", [2]));
    let limit = "[[limit]]\nper = 'all'\nrequests_per_minute = 1\n";
    let rule = "[[rule]]\nnames = ['anna']\nmodels = ['qwen*']\n";
    let told = Room::new(rows).told(&format!("{rule}{limit}"));
    let says = "2 of 3 requests would have been refused: 2 chats of gemma3:1b by anna \
                (model_forbidden)";
    assert_eq!(told, says);
}

#[test]
fn days_and_months_begin_where_they_began() {
    let day = 24 * 3600;
    let room = Room::new(chats("anna", [0, 10, 20, day, day + 10]));
    let limit = "[[limit]]\ntokens_per_day = 3000\n";
    let says = "1 of 5 requests would have been refused: 1 chat by anna (quota_exhausted: \
                tokens_per_day = 3000)";
    assert_eq!(room.told(limit), says);
    // What was used before in that day counts, and is not tried.
    let told = room.tried(limit, at(15)).told();
    assert!(told.starts_with("1 of 3 requests would"), "{told}");
    let told = room.tried("[[limit]]\ngpu_seconds_per_month = 4\n", at(day)).told();
    assert!(told.starts_with("1 of 2 requests would"), "{told}");
    // Only inference has tokens.
    let pulls = chats("anna", [30, 40]).into_iter().map(|row| UsageRow {
        operation: "pull",
        is_inference: false,
        ..row
    });
    let room = Room::new(pulls.collect());
    assert!(room.told("[[limit]]\ntokens_per_day = 1\n").starts_with("0 of 2"));
}

#[test]
fn users_behind_a_front_end_and_keys_have_their_own() {
    let mut rows = chats("webui/7", [0, 1]);
    rows.extend(chats("webui/8", [0, 1]));
    rows.extend(
        chats("ci", [2, 3]).into_iter().map(|row| UsageRow { key: Some("nightly".into()), ..row }),
    );
    let room = Room::new(rows);
    let limit = "requests_per_minute = 1\n";
    let told = room.told(&format!("[[limit]]\nnames = ['webui']\n{limit}"));
    assert!(told.starts_with("2 of 6 requests"), "{told}");
    assert!(told.contains("1 chat by webui/7 (") && told.contains("1 chat by webui/8 ("), "{told}");
    let told = room.told(&format!("[[limit]]\nper = 'key'\nkeys = ['nightly']\n{limit}"));
    let says = "1 of 6 requests would have been refused: 1 chat by ci (rate_limited: \
                requests_per_minute = 1 for the key nightly)";
    assert_eq!(told, says, "though nobody has that key any more");
    let rule = format!("[[rule]]\nnames = ['ci']\n{limit}");
    assert!(room.told(&rule).starts_with("1 of 6 requests"));
}

#[test]
fn where_rows_are_gone_it_is_told_on_how_many_limits_were_tried() {
    let tried = Tried { requests: 7, rows: Some(3), ..Tried::default() };
    let says = "0 of 7 requests would have been refused; limits were tried on the 3 whose rows are \
                still kept";
    assert_eq!(tried.told(), says);
}

#[test]
fn pages_bring_every_row_once_the_oldest_first() {
    // A crowd of more than a page in two seconds, and long silences around it.
    let crowd =
        (0..2500).map(|number| chat("anna", at(90_000) + Duration::from_micros(number * 800)));
    let lone = [0, 400_000, 30_000_000].map(|second| chat("anna", at(second)));
    let room = Room::new(crowd.chain(lone).collect());
    let period = Period { since: at(0), until: at(30_000_001) };
    let pages: Vec<_> = Pages::new(&room.store, period).map(Result::unwrap).collect();
    let places: Vec<_> = pages.concat().iter().map(|row| row.place).collect();
    assert_eq!(places.len(), 2503);
    assert!(places.is_sorted_by(|one, next| one < next));
    let until = Period { until: at(30_000_000), ..period };
    assert_eq!(Pages::new(&room.store, until).flat_map(Result::unwrap).count(), 2502);
}
