//! Sums against a slow count of the same rows; a year of them; rows, reloads and retention.

use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use rusqlite::params;

use super::super::UsageRow;
use super::super::fold::Group;
use super::super::journal::record;
use super::super::usage::RowsQuery;
use super::*;

struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> Store {
        Store::open(self.folder.path()).unwrap()
    }
}

fn row(number: u32) -> UsageRow {
    UsageRow::example(number)
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn entry(row: &UsageRow) -> UsageEntry {
    let mut bytes = Vec::new();
    record::write(row, &mut bytes);
    record::read(&bytes).unwrap().0
}

/// Brings rows into the store as the ledger does.
fn fold(store: &Store, rows: &[UsageRow], zone: &str) {
    let rows = rows.iter().map(|row| (1, entry(row))).collect();
    let segment = format!("usage-{:?}.journal", Instant::now());
    let group = Group { segment, from: 0, rows };
    let calendar = Calendar::new(TimeZone::get(zone).unwrap());
    store.write(move |transaction| fold::fold(transaction, &group, &calendar)).unwrap();
}

fn timed(number: u32, time: Timestamp) -> UsageRow {
    UsageRow { time: SystemTime::from(time), ..row(number) }
}

fn query(by: &[By], since: &str, until: &str, zone: &str) -> UsageQuery {
    UsageQuery {
        by: by.to_vec(),
        since: at(since),
        until: at(until),
        zone: TimeZone::get(zone).unwrap(),
        only: UsageFilter::default(),
    }
}

fn rows_query() -> RowsQuery {
    RowsQuery {
        since: Timestamp::UNIX_EPOCH,
        until: Timestamp::MAX,
        only: UsageFilter::default(),
        before: None,
        limit: 1000,
    }
}

fn columns(sums: &[UsageSum]) -> Vec<(String, u64)> {
    let line = |sum: &UsageSum| {
        let columns: Vec<_> = sum.columns.iter().map(|it| it.as_deref().unwrap_or("-")).collect();
        (columns.join(" "), sum.tally.requests)
    };
    sums.iter().map(line).collect()
}

#[test]
fn days_and_hours_are_those_of_the_zone() {
    let room = Room::new();
    let store = room.store();
    // In Berlin the 25th of October 2026 has 25 hours.
    let times = [
        "2026-10-24T21:59:59.999Z",
        "2026-10-24T22:00:00Z",
        "2026-10-25T00:59:59Z",
        "2026-10-25T01:00:00Z",
        "2026-10-25T22:59:59Z",
        "2026-10-25T23:00:00Z",
    ];
    let rows: Vec<_> =
        times.iter().zip(0..).map(|(time, number)| timed(number, at(time))).collect();
    fold(&store, &rows, "Europe/Berlin");
    let days = query(&[By::Day], "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", "Europe/Berlin");
    let told = store.usage(&days).unwrap();
    let expected = [("2026-10-24", 1), ("2026-10-25", 4), ("2026-10-26", 1)];
    assert_eq!(columns(&told), expected.map(|(day, count)| (day.to_owned(), count)));
    let hours = UsageQuery { by: vec![By::Hour], ..days };
    let told = store.usage(&hours).unwrap();
    let expected = [
        ("2026-10-24T23:00+02:00", 1),
        ("2026-10-25T00:00+02:00", 1),
        ("2026-10-25T02:00+01:00", 1),
        ("2026-10-25T02:00+02:00", 1),
        ("2026-10-25T23:00+01:00", 1),
        ("2026-10-26T00:00+01:00", 1),
    ];
    assert_eq!(columns(&told), expected.map(|(hour, count)| (hour.to_owned(), count)));
}

#[test]
fn what_is_asked_for_alone_is_told_and_each_model_by_itself() {
    let room = Room::new();
    let store = room.store();
    let mut rows: Vec<_> = (0..8).map(row).collect();
    rows[1].name = "bert".into();
    rows[2].model = Some("qwen3:8b".to_owned());
    rows[3].key = Some("ci".into());
    rows[4].usage.estimated = true;
    rows[5].usage.cached = Some(4);
    rows[6].model = None;
    // Nobody's model: it is in the rows, and not in the sums.
    rows[7].model = Some("no-such-model".to_owned());
    rows[7].status = 404;
    fold(&store, &rows, "UTC");
    let by_name = query(&[By::Name], "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", "UTC");
    let told = store.usage(&by_name).unwrap();
    assert_eq!(columns(&told), [("anna".to_owned(), 7), ("bert".to_owned(), 1)]);
    let models: Vec<_> =
        told[0].models.iter().map(|(model, tally)| (model.as_deref(), tally.requests)).collect();
    assert_eq!(models, [(None, 2), (Some("gemma3:1b"), 4), (Some("qwen3:8b"), 1)]);
    let whole = told[0].tally;
    assert_eq!((whole.estimated, whole.cached, whole.prompt), (1, 4, 70));
    assert_eq!(whole.backend_time, Duration::from_millis(7 * 800));
    for (only, count) in [
        (UsageFilter { name: Some("bert".to_owned()), ..UsageFilter::default() }, 1),
        (UsageFilter { key: Some("ci".to_owned()), ..UsageFilter::default() }, 1),
        (UsageFilter { model: Some("gemma3:1b".to_owned()), ..UsageFilter::default() }, 5),
        (UsageFilter { model: Some("no-such-model".to_owned()), ..UsageFilter::default() }, 0),
        (UsageFilter { name: Some("carl".to_owned()), ..UsageFilter::default() }, 0),
        (UsageFilter { backend: Some("ollama".to_owned()), ..UsageFilter::default() }, 8),
        (UsageFilter { operation: Some("embed".to_owned()), ..UsageFilter::default() }, 0),
    ] {
        let told = store.usage(&UsageQuery { only: only.clone(), ..by_name.clone() }).unwrap();
        assert_eq!(told.iter().map(|sum| sum.tally.requests).sum::<u64>(), count, "{only:?}");
    }
    let no_such = Some("no-such-model".to_owned());
    let only = UsageFilter { model: no_such, ..UsageFilter::default() };
    assert_eq!(store.usage_rows(&RowsQuery { only, ..rows_query() }).unwrap().len(), 1);
}

#[test]
fn limits_find_what_was_used_since_a_moment() {
    let room = Room::new();
    let store = room.store();
    let rows = (0..48).map(|hour| {
        let time = at("2026-11-23T00:10:00Z") + Duration::from_secs(hour * 3600);
        timed(hour as u32, time)
    });
    fold(&store, &rows.collect::<Vec<_>>(), "Asia/Kolkata");
    // Midnight of the 24th in Kolkata.
    let spent = store.spent_since(at("2026-11-23T18:30:00Z")).unwrap();
    let expected: u64 = (19..48).map(|hour| 10 + hour).sum();
    assert_eq!(spent.len(), 1);
    assert_eq!((spent[0].requests, spent[0].tokens), (29, expected));
    assert_eq!((&*spent[0].name, &*spent[0].operation), ("anna", "chat"));
    assert_eq!(spent[0].model.as_deref(), Some("gemma3:1b"));
    assert_eq!(spent[0].backend_time, 29 * Duration::from_millis(800));
}

#[test]
fn a_lie_about_tokens_does_not_stop_the_sums() {
    let room = Room::new();
    let store = room.store();
    let mut rows: Vec<_> = (0..3000).map(row).collect();
    for row in &mut rows {
        row.usage.prompt = u64::MAX;
        row.usage.cached = Some(u64::MAX);
        row.backend_time = Duration::MAX;
        row.total = Duration::MAX;
    }
    fold(&store, &rows, "UTC");
    let all = query(&[], "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", "UTC");
    let told = store.usage(&all).unwrap();
    assert_eq!(told[0].tally.requests, 3000);
    assert!(told[0].tally.prompt >= 3000 << 32);
}

#[test]
fn rows_of_one_millisecond_with_one_number_are_two_if_their_ids_are() {
    let room = Room::new();
    let store = room.store();
    let twin = UsageRow { id: *b"beef000000000001", ..row(1) };
    fold(&store, &[row(1), twin.clone(), row(1), twin], "UTC");
    let told = store.usage_rows(&rows_query()).unwrap();
    assert_eq!(told.len(), 2);
    assert_ne!(told[0].id, told[1].id);
    assert_eq!(told[0].time, told[1].time);
}

#[test]
fn a_load_is_told_with_who_had_the_model_before() {
    let room = Room::new();
    let store = room.store();
    let options = |text: &str| Some(text.into());
    let load = Some(Duration::from_secs(4));
    let mut rows: Vec<_> = (0..6).map(row).collect();
    rows[0].usage.load = load;
    rows[1].usage.load = Some(Duration::from_millis(80));
    rows[2] = UsageRow { name: "bert".into(), runner_options: options("num_ctx=8192"), ..row(2) };
    rows[2].usage.load = load;
    // Another model, and a request that failed, had nothing to do with it.
    rows[3].model = Some("qwen3:8b".to_owned());
    rows[4].status = 500;
    rows[5].usage.load = load;
    fold(&store, &rows, "UTC");
    let told = store.reloads(&rows_query()).unwrap();
    let line = |reload: &super::super::Reload| {
        let before = reload.before.as_ref();
        (
            reload.entry.name.clone(),
            reload.entry.runner_options.clone(),
            before.map(|before| (before.name.clone(), before.runner_options.clone())),
        )
    };
    let told: Vec<_> = told.iter().map(line).collect();
    let big = Some("num_ctx=8192".to_owned());
    assert_eq!(
        told,
        [
            ("anna".to_owned(), None, Some(("bert".to_owned(), big.clone()))),
            ("bert".to_owned(), big, Some(("anna".to_owned(), None))),
            ("anna".to_owned(), None, None),
        ]
    );
}

#[test]
fn what_is_kept_no_longer_goes_and_its_days_stay() {
    let room = Room::new();
    let store = room.store();
    let now = at("2026-11-24T12:00:00Z");
    let day = |days: u64| now - Duration::from_secs(days * 86400);
    let rows = (0..500).map(|days| timed(days as u32, day(days)));
    fold(&store, &rows.collect::<Vec<_>>(), "UTC");
    let keep = 100 * 86400;
    let prune = |now: i64| {
        let now = store.write(move |it| Ok(fold::age_by(it, now)?)).unwrap();
        while store.write(move |it| Ok(fold::prune(it, now, keep)?)).unwrap() {}
    };
    prune(now.as_second());
    assert_eq!(store.usage_rows(&rows_query()).unwrap().len(), 101);
    let all = query(&[By::Day], "2020-01-01T00:00:00Z", "2027-01-01T00:00:00Z", "UTC");
    assert_eq!(store.usage(&all).unwrap().len(), 500);
    // Also where a range begins within a day whose rows are gone.
    let part = query(&[By::Day], "2025-12-01T18:30:00Z", "2027-01-01T00:00:00Z", "UTC");
    let told = columns(&store.usage(&part).unwrap());
    assert_eq!(told.first(), Some(&("2025-12-01".to_owned(), 1)));
    assert_eq!(told.len(), 359);
    // A clock that is a century ahead takes away a day and no more.
    prune(now.as_second() + 100 * 366 * 86400);
    assert_eq!(store.usage_rows(&rows_query()).unwrap().len(), 100);
    assert_eq!(store.usage(&all).unwrap().len(), 500);
    // Nor does one that is ahead while requests come.
    let ahead = timed(1000, now + Duration::from_secs(2 * 366 * 86400));
    fold(&store, &[ahead], "UTC");
    prune(now.as_second() + 2 * 366 * 86400);
    assert_eq!(store.usage_rows(&rows_query()).unwrap().len(), 100);
    // When it is right again, all is as it was.
    prune(now.as_second());
    prune(now.as_second() + 3600);
    assert_eq!(store.usage_rows(&rows_query()).unwrap().len(), 100);
}

#[test]
fn a_range_that_is_over_has_nothing_of_what_came_after_it() {
    let room = Room::new();
    let store = room.store();
    // The first day of a store, and hours far apart.
    let times = ["2026-11-24T11:20:00Z", "2026-11-24T16:30:00Z"];
    let rows: Vec<_> = times.iter().zip(1..).map(|(time, id)| timed(id, at(time))).collect();
    fold(&store, &rows, "UTC");
    let count = |since: &str, until: &str| {
        let sums = store.usage(&query(&[By::Name], since, until, "UTC")).unwrap();
        sums.iter().map(|sum| sum.tally.requests).sum::<u64>()
    };
    let part = |keeps_rows: bool| {
        assert_eq!(count("2026-11-24T08:00:00Z", "2026-11-24T09:30:00Z"), 0);
        assert_eq!(count("2026-11-17T00:00:00Z", "2026-11-24T10:00:00Z"), 0);
        assert_eq!(count("2026-11-24T12:30:00Z", "2026-11-24T15:30:00Z"), 0);
        assert_eq!(count("2026-11-24T12:30:00Z", "2026-11-24T18:00:00Z"), 1);
        assert_eq!(
            count("2026-11-24T11:30:00Z", "2026-11-24T18:00:00Z"),
            2 - u64::from(keeps_rows)
        );
    };
    part(true);
    let forget = |table: &'static str| {
        store.write(move |it| Ok(it.execute(&format!("DELETE FROM {table}"), [])?)).unwrap();
    };
    // Without its rows an hour counts whole, without its hours a day, and no other one.
    forget("usage");
    part(false);
    forget("usage_hour");
    assert_eq!(count("2026-11-24T18:00:00Z", "2026-11-24T19:00:00Z"), 2);
    assert_eq!(count("2026-11-25T02:00:00Z", "2026-11-25T19:00:00Z"), 0);
}

#[test]
fn a_changed_zone_counts_nothing_twice() {
    let room = Room::new();
    let store = room.store();
    let begins = at("2026-06-01T00:30:00Z");
    let hours = |range: std::ops::Range<u64>| -> Vec<_> {
        let time = |hour: u64| begins + Duration::from_secs(hour * 3600);
        range.map(|hour| timed(hour as u32, time(hour))).collect()
    };
    fold(&store, &hours(0..1500), "America/New_York");
    fold(&store, &hours(1500..3000), "Asia/Tokyo");
    for zone in ["America/New_York", "Asia/Tokyo", "UTC"] {
        let days = query(&[By::Day], "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", zone);
        let told = store.usage(&days).unwrap();
        assert_eq!(told.iter().map(|sum| sum.tally.requests).sum::<u64>(), 3000);
        let by_hours = store.usage(&UsageQuery { by: vec![By::Hour], ..days }).unwrap();
        assert_eq!(by_hours.iter().map(|sum| sum.tally.requests).sum::<u64>(), 3000);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sums_are_what_a_slow_count_of_the_rows_says(
        rows in prop::collection::vec((0u64..200 * 86400, 0usize..3, 0usize..3), 1..200),
        from in 0u64..210 * 86400,
        length in 0u64..210 * 86400,
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
        folded in 0usize..200,
        by in prop::sample::subsequence(By::ALL.to_vec(), 0..4),
    ) {
        let begins = at("2026-02-01T00:00:00Z");
        let time = |second: u64| begins + Duration::from_secs(second);
        let names = ["anna", "bert", "carl"];
        let models = [Some("gemma3:1b"), Some("qwen3:8b"), None];
        let rows: Vec<_> = rows.iter().zip(0..).map(|((second, name, model), number)| UsageRow {
            name: names[*name].into(),
            model: models[*model].map(str::to_owned),
            ..timed(number, time(*second))
        }).collect();
        let room = Room::new();
        let store = room.store();
        let (first, rest) = rows.split_at(folded.min(rows.len()));
        fold(&store, first, zone);
        // What is not in the store yet is in the journal.
        let mut bytes = Vec::new();
        rest.iter().for_each(|row| record::write(row, &mut bytes));
        std::fs::write(room.folder.path().join("usage-1-1.journal"), bytes).unwrap();
        let query = UsageQuery {
            by,
            since: time(from),
            until: time(from + length),
            zone: TimeZone::get(zone).unwrap(),
            only: UsageFilter::default(),
        };
        let mut slow = Sums::new(&query);
        rows.iter().for_each(|row| slow.add_entry(&entry(row)));
        prop_assert_eq!(store.usage(&query).unwrap(), slow.told().unwrap());
    }
}

/// As a year of many requests a day leaves them: 40 names with five models each.
#[test]
fn a_year_is_summed_from_its_days() {
    let room = Room::new();
    let store = room.store();
    fold(&store, &[row(0), row(1)], "UTC");
    let day = 86_400;
    let last = at("2026-11-24T00:00:00Z").as_second();
    store
        .write(move |transaction| {
            let mut insert = transaction.prepare(
                "WITH RECURSIVE n(value) AS (SELECT 100 UNION ALL SELECT value + 1 FROM n
                 WHERE value < 139), m(value) AS (SELECT 500 UNION ALL SELECT value + 1 FROM m
                 WHERE value < 504)
                 INSERT INTO usage_day SELECT ?1, n.value, 0, m.value, 4, 5, 667, 0, 9, 9, 0, 0, 9
                 FROM n, m",
            )?;
            for days in 1..=365 {
                insert.execute([last - days * day])?;
            }
            transaction.execute(
                "WITH RECURSIVE n(value) AS (SELECT 100 UNION ALL SELECT value + 1 FROM n
                 WHERE value < 504) INSERT INTO usage_word SELECT value, 'w' || value FROM n",
                params![],
            )?;
            // As if hours were there from the beginning.
            transaction.execute(
                "INSERT INTO usage_hour SELECT min(start), name, key, model, operation, backend,
                 667, 0, 9, 9, 0, 0, 9 FROM usage_day WHERE name >= 100 GROUP BY 2, 3, 4, 5, 6",
                params![],
            )?;
            Ok(())
        })
        .unwrap();
    for by in [&[][..], &[By::Name], &[By::Model], &[By::Day], &[By::Day, By::Name]] {
        let year = query(by, "2025-11-24T00:00:00Z", "2026-11-25T00:00:00Z", "UTC");
        let sums = store.usage(&year).unwrap();
        let requests: u64 = sums.iter().map(|sum| sum.tally.requests).sum();
        assert_eq!(requests, 365 * 40 * 5 * 667 + 2);
    }
}
