//! What was used, as the admin API tells it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::tz::TimeZone;
use portcullis::config::{LedgerMode, Pattern, Role, Roles};
use portcullis::store::{Ledger, LedgerSettings, Store, Usage, UsageRow};
use serde_json::{Value, json};

use crate::house::{Answer, Backend, Caller, House, PATIENCE};

pub fn row(number: u64, name: &str, operation: &'static str) -> UsageRow {
    UsageRow {
        time: SystemTime::now() - Duration::from_secs(3600 + 60 * (10_000 - number)),
        id: format!("{number:016x}").into_bytes().try_into().unwrap(),
        client: None,
        name: name.into(),
        key: None,
        model: Some("gemma3:latest".to_owned()),
        operation,
        is_inference: operation == "chat",
        backend: "ollama".into(),
        status: 200,
        outcome: "done",
        usage: Usage {
            prompt: 10,
            completion: 5,
            load: (operation == "chat").then_some(Duration::from_secs(2)),
            ..Usage::default()
        },
        runner_options: Some(format!("num_ctx={number}").into()),
        bytes_in: 1,
        bytes_out: 2,
        queue: Duration::ZERO,
        first_byte: None,
        first_token: None,
        total: Duration::from_secs(1),
        backend_time: Duration::from_millis(500),
    }
}

pub fn settings() -> LedgerSettings {
    let keep = Duration::from_secs(400 * 24 * 3600);
    LedgerSettings { mode: LedgerMode::Journal, keep, zone: TimeZone::UTC }
}

/// With these rows in its store, and a key for `boss` and one for `eye`, who may look.
async fn house(backend: &Backend, rows: Vec<UsageRow>) -> House {
    House::with(backend, |config, folder| {
        let data = folder.path().join("data");
        let store = Arc::new(Store::open(&data).unwrap());
        let ledger = Ledger::start(&store, settings()).unwrap();
        for row in rows {
            drop(ledger.post(row));
        }
        assert!(ledger.flush(PATIENCE));
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.data_dir = Some(data);
        let keys = "key-of-boss # boss\nkey-of-eye # eye\n";
        std::fs::write(folder.path().join("api_keys.txt"), keys).unwrap();
        let named = [("boss", Role::Admin), ("eye", Role::Viewer)];
        let named = named.map(|(name, role)| (Pattern::new(name), role)).to_vec();
        config.roles = Roles::new(Role::User, named);
    })
    .await
}

async fn ask(house: &House, path: &str) -> Answer {
    let mut caller = Caller::connect(house.admin.unwrap()).await;
    let head = format!(
        "GET /api/v1/usage{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key-of-eye\r\n\
         Connection: close\r\n\r\n"
    );
    caller.send(head).await;
    caller.answer().await
}

async fn told(house: &House, path: &str) -> Value {
    let answer = ask(house, path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_told_by_columns_as_json_and_as_csv() {
    let backend = Backend::ok().await;
    let rows = vec![row(1, "anna", "chat"), row(2, "anna", "chat"), row(3, "bert", "pull")];
    let house = house(&backend, rows).await;
    let expected = json!([
        {"user": "anna", "requests": 2, "prompt_tokens": 20, "completion_tokens": 10, "estimated": 0, "backend_seconds": 1.0},
        {"user": "bert", "requests": 1, "prompt_tokens": 10, "completion_tokens": 5, "estimated": 0, "backend_seconds": 0.5},
    ]);
    assert_eq!(told(&house, "").await, expected);
    let by = told(&house, "?by=operation,day&name=anna&since=30d&until=2100-01-01").await;
    assert_eq!((by[0]["operation"].clone(), by[0]["requests"].clone()), (json!("chat"), json!(2)));
    assert!(by[1].is_null() && by[0]["day"].is_string(), "{by}");
    assert_eq!(told(&house, "?until=2001-01-01").await, json!([]), "before it begins");
    assert_eq!(told(&house, "?model=Gemma3&operation=pull").await.as_array().unwrap().len(), 1);
    let csv = ask(&house, "?format=csv").await;
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    assert!(
        csv.text().starts_with("user,requests,") && csv.text().ends_with("\nbert,1,10,5,0,0.500\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_loads_are_told_page_by_page_each_once() {
    let backend = Backend::ok().await;
    let rows: Vec<_> = (0..25).map(|number| row(number, "anna", "chat")).collect();
    let house = house(&backend, rows).await;
    for (path, list) in [("/rows", "rows"), ("/reloads", "reloads")] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = told(&house, &format!("{path}?limit=10{after}")).await;
            seen.extend(page[list].as_array().unwrap().clone());
            match page["next"].as_u64() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        let options: Vec<_> = seen.iter().map(|it| it["options"].as_str().unwrap()).collect();
        let expected: Vec<_> = (0..25).rev().map(|number| format!("num_ctx={number}")).collect();
        assert_eq!(options, expected, "{path}: the newest first, none twice");
    }
    let newest = &told(&house, "/reloads?limit=1").await["reloads"][0];
    assert_eq!(
        (newest["cause"].clone(), newest["before_options"].clone()),
        (json!("options"), json!("num_ctx=23"))
    );
    let row = &told(&house, "/rows?limit=1").await["rows"][0];
    assert_eq!(
        (row["id"].clone(), row["total_ms"].clone()),
        (json!(format!("{:016x}", 24)), json!(1000.0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_told_by_its_parameter() {
    let backend = Backend::ok().await;
    let house = house(&backend, Vec::new()).await;
    for (path, word) in [
        ("?by=users", "user, key, model"),
        ("?by=", "by: "),
        ("?since=soon", "since: write it as 7d"),
        ("?until=soon", "until: write it"),
        ("?format=table", "json or csv"),
        ("?user=anna", "only by, since"),
        ("?limit=3", "only by, since"),
        ("/rows?limit=0", "1 to 999"),
        ("/rows?after=-1", "whole number"),
        ("/rows?by=user", "only since"),
        ("/reloads?format=x", "json or csv"),
    ] {
        let answer = ask(&house, path).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid".into()), "{path}");
        assert!(answer.text().contains(word), "{path}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rows_flow_as_csv_each_once_and_are_one_line_of_the_log() {
    let backend = Backend::ok().await;
    let rows: Vec<_> = (0..2_500).map(|number| row(number, "anna", "chat")).collect();
    let house = house(&backend, rows).await;
    let answer = ask(&house, "/rows?format=csv").await;
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    let text = answer.text();
    let last = |line: &str| line.rsplit(',').next().unwrap().to_owned();
    let options: Vec<_> = text.lines().skip(1).map(last).collect();
    let expected: Vec<_> = (0..2_500).rev().map(|number| format!("num_ctx={number}")).collect();
    assert_eq!(options, expected, "the newest first, none twice");
    let page = ask(&house, "/rows?format=csv&limit=10").await;
    assert_eq!(page.text().lines().count(), 11);
    let lines = house.lines().await;
    let is_it = |line: &Value| line["operation"] == "list_usage" && line["bytes_out"] == text.len();
    let line = lines.iter().find(|line| is_it(line)).unwrap();
    assert_eq!((line["outcome"].clone(), line["status"].clone()), (json!("done"), json!(200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_in_the_middle_cuts_the_answer() {
    let backend = Backend::ok().await;
    // More than fits into the buffers on the way, so that it waits for its reader.
    let rows = (0..9_000).map(|number| UsageRow {
        runner_options: Some("x".repeat(3000).into()),
        ..row(number, "anna", "chat")
    });
    let house = house(&backend, rows.collect()).await;
    let mut caller = Caller::connect(house.admin.unwrap()).await;
    caller
        .send("GET /api/v1/usage/rows?format=csv HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key-of-eye\r\n\r\n")
        .await;
    assert!(caller.sees_content("time,id,client").await);
    std::fs::remove_file(house.file("data").join("portcullis.db")).unwrap();
    let rest = caller.rest().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "nobody takes it for whole");
    let lines = house.lines().await;
    assert!(
        lines.iter().any(|line| line["operation"] == "list_usage" && line["outcome"] != "done")
    );
}
