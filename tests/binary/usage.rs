//! What was used, as the command line tells it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use portcullis::config::LedgerMode;
use portcullis::store::{Ledger, LedgerSettings, Store, Usage, UsageRow};
use serde_json::{Value, json};

use super::{House, PATIENCE};

const DATA: [&str; 2] = ["--data-dir", "data"];

pub(super) fn row(number: u64, name: &str, model: &str, operation: &'static str) -> UsageRow {
    UsageRow {
        time: SystemTime::now() - Duration::from_secs(3600 + 60 * (100 - number)),
        id: format!("{number:016x}").into_bytes().try_into().unwrap(),
        client: Some([10, 0, 0, 7].into()),
        name: name.into(),
        key: (name == "anna").then(|| "laptop".into()),
        model: Some(model.to_owned()),
        operation,
        is_inference: operation == "chat",
        backend: "ollama".into(),
        status: 200,
        outcome: "done",
        usage: Usage { prompt: 1000, completion: 500, cached: Some(400), ..Usage::default() },
        runner_options: None,
        bytes_in: 10,
        bytes_out: 20,
        queue: Duration::ZERO,
        first_byte: Some(Duration::from_millis(20)),
        first_token: None,
        total: Duration::from_secs(2),
        backend_time: Duration::from_millis(1500),
    }
}

/// Anna's chats, Bert's with a context of his own that had to be loaded, and a pull.
fn rows() -> Vec<UsageRow> {
    let load = |mut row: UsageRow, options: &str| {
        row.usage.load = Some(Duration::from_secs(12));
        row.runner_options = Some(options.into());
        row
    };
    vec![
        load(row(1, "anna", "gemma3:latest", "chat"), "num_ctx=4096"),
        load(row(2, "bert", "gemma3:latest", "chat"), "num_ctx=65536"),
        row(3, "anna", "qwen3:8b", "chat"),
        row(4, "homeassistant", "gemma3:latest", "pull"),
        UsageRow {
            usage: Usage { estimated: true, ..Usage::default() },
            ..row(5, "=evil()", "no\u{1b}name", "chat")
        },
    ]
}

pub(super) fn fill(folder: &Path, rows: Vec<UsageRow>) {
    let store = Arc::new(Store::open(folder).unwrap());
    let keep = Duration::from_secs(400 * 24 * 3600);
    let settings = LedgerSettings { mode: LedgerMode::Journal, keep, zone: TimeZone::UTC };
    let ledger = Ledger::start(&store, settings).unwrap();
    for row in rows {
        drop(ledger.post(row));
    }
    assert!(ledger.flush(PATIENCE));
}

fn usage(house: &House, arguments: &[&str]) -> (bool, String, String) {
    let out = house.run(&[&["usage"], arguments, &DATA[..]].concat());
    let of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.success(), of(&out.stdout), of(&out.stderr))
}

fn json_of(house: &House, arguments: &[&str]) -> Value {
    let (is_good, told, error) = usage(house, &[arguments, &["--format", "json"]].concat());
    assert!(is_good, "{arguments:?}: {error}");
    serde_json::from_str(&told).unwrap()
}

#[test]
fn what_was_used_is_told_by_whatever_columns() {
    let house = House::new();
    fill(&house.path("data"), rows());
    let line = |user: &str, requests: u64, tokens: (u64, u64), seconds: f64| {
        json!({
            "user": user, "requests": requests, "prompt_tokens": tokens.0,
            "completion_tokens": tokens.1, "estimated": u64::from(tokens.0 == 0),
            "backend_seconds": seconds,
        })
    };
    let expected = json!([
        line("=evil()", 1, (0, 0), 1.5),
        line("anna", 2, (2000, 1000), 3.0),
        line("bert", 1, (1000, 500), 1.5),
        line("homeassistant", 1, (1000, 500), 1.5),
    ]);
    assert_eq!(json_of(&house, &[]), expected, "by user unless told otherwise");

    let by = json_of(&house, &["--by", "model,operation", "--since", "24h"]);
    let columns = |it: &Value| format!("{} {} {}", it["model"], it["operation"], it["requests"]);
    let told: Vec<_> = by.as_array().unwrap().iter().map(columns).collect();
    let esc = "\"no\\u001bname\" \"chat\" 1";
    let expected = [
        "\"gemma3:latest\" \"chat\" 2",
        "\"gemma3:latest\" \"pull\" 1",
        esc,
        "\"qwen3:8b\" \"chat\" 1",
    ];
    assert_eq!(told, expected);
    let first = |json: &Value, column: &str| json[0][column].as_str().unwrap().to_owned();
    let day = first(&json_of(&house, &["--by", "day"]), "day");
    assert!(day.parse::<jiff::civil::Date>().is_ok(), "{day}");
    let hour = first(&json_of(&house, &["--by", "hour"]), "hour");
    assert!(hour.ends_with(":00+00:00") && hour.len() == 22, "{hour}");
    fs::write(house.path("portcullis.toml"), "time_zone = 'Asia/Kolkata'\n").unwrap();
    let hour = first(&json_of(&house, &["--by", "hour", "--since", "3h"]), "hour");
    assert!(hour.ends_with(":00+05:30"), "{hour}");
    fs::remove_file(house.path("portcullis.toml")).unwrap();

    for (filter, requests) in [
        (["--name", "anna"], 2),
        (["--key", "laptop"], 2),
        (["--model", "Gemma3"], 3),
        (["--operation", "pull"], 1),
        (["--backend", "ollama"], 5),
        (["--backend", "other"], 0),
        (["--since", "1h"], 0),
    ] {
        let told = json_of(&house, &filter);
        let told = told.as_array().unwrap().iter().map(|it| it["requests"].as_u64().unwrap());
        assert_eq!(told.sum::<u64>(), requests, "{filter:?}");
    }
}

#[test]
fn tables_and_csv_are_safe_to_look_at_and_have_a_sum() {
    let house = House::new();
    fill(&house.path("data"), rows());
    let (_, table, _) = usage(&house, &["--by", "user,model"]);
    assert!(table.contains("PROMPT TOKENS") && !table.contains('\u{1b}'), "{table}");
    let sum = table.lines().last().unwrap();
    assert!(sum.trim_start().starts_with("all") && sum.contains("4,000"), "{table}");
    let (_, csv, _) = usage(&house, &["--by", "user,key", "--format", "csv"]);
    let head = "user,key,requests,prompt_tokens,completion_tokens,estimated,backend_seconds";
    assert_eq!(csv.lines().next(), Some(head));
    assert!(csv.contains("\n'=evil(),,1,") && csv.contains("\nanna,laptop,2,2000,"), "{csv}");
    let (_, none, _) = usage(&house, &["--since", "10m"]);
    assert!(none.starts_with("nothing was used from "), "{none}");
}

#[test]
fn prices_bring_a_money_column_and_tell_what_they_leave_out() {
    let house = House::new();
    fill(&house.path("data"), rows());
    let prices = "[prices]\n\"gemma3*\" = { prompt = 1000, completion = 2000, cached = 500 }\n\
                  \"qwen3*\" = { backend_hour = 2400 }\n";
    fs::write(house.path("portcullis.toml"), prices).unwrap();
    let (_, json, error) = usage(&house, &["--by", "user", "--format", "json"]);
    let told: Value = serde_json::from_str(&json).unwrap();
    let costs: Vec<_> = told.as_array().unwrap().iter().map(|it| it["cost"].clone()).collect();
    // 600 of the prompt for 0.6, 400 cached for 0.2, 500 of the answer for 1.0; 1.5 s for 1.0.
    assert_eq!(costs, [json!(null), json!(2.8), json!(1.8), json!(null)]);
    assert!(error.contains("[prices] says nothing") && error.contains("no"), "{error}");
    assert!(!error.contains('\u{1b}'), "{error:?}");
    let (_, table, _) = usage(&house, &[]);
    assert!(table.lines().last().unwrap().ends_with("4.6000"), "{table}");
}

#[test]
fn loads_are_told_with_whose_options_were_the_cause() {
    let house = House::new();
    fill(&house.path("data"), rows());
    let told = json_of(&house, &["--reloads"]);
    assert_eq!(told.as_array().unwrap().len(), 2, "{told}");
    let newest = &told[0];
    for (field, value) in [
        ("user", json!("bert")),
        ("model", json!("gemma3:latest")),
        ("load_seconds", json!(12.0)),
        ("options", json!("num_ctx=65536")),
        ("cause", json!("options")),
        ("before_user", json!("anna")),
        ("before_options", json!("num_ctx=4096")),
    ] {
        assert_eq!(newest[field], value, "{newest}");
    }
    assert_eq!(told[1]["cause"], "first");
    let (_, table, _) = usage(&house, &["--reloads"]);
    let sum = "2 loads, 24 s in all; 1 because of options: 1 by bert";
    assert_eq!(table.lines().last(), Some(sum), "{table}");
    assert_eq!(json_of(&house, &["--reloads", "--name", "anna"]).as_array().unwrap().len(), 1);
}

#[test]
fn slips_are_told_with_what_to_write() {
    let house = House::new();
    let (is_good, _, error) = usage(&house, &[]);
    assert!(!is_good && error.contains("there is no store"), "{error}");
    fill(&house.path("data"), Vec::new());
    for (arguments, word) in [
        (&["--by", "users"][..], "user, key, model"),
        (&["--since", "last week"], "2026-11-01"),
        (&["--since", "1h", "--until", "2h"], "ends before it begins"),
        (&["--format", "xml"], "table, json or csv"),
        (&["--reloads", "--by", "user"], "cannot be used with"),
    ] {
        let (is_good, told, error) = usage(&house, arguments);
        assert!(!is_good && told.is_empty() && error.contains(word), "{arguments:?}: {error}");
    }
    let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
    assert_eq!(json_of(&house, &["--since", &today, "--until", &today]), json!([]));
}

#[test]
fn check_tells_what_a_configuration_would_have_refused() {
    let house = House::new();
    let pulls = (10..22).map(|number| row(number, "homeassistant", "gemma3:latest", "pull"));
    fill(&house.path("data"), rows().into_iter().chain(pulls).collect());
    let check = |text: &str, since: &str| {
        fs::write(house.path("portcullis.toml"), format!("data_dir = 'data'\n{text}")).unwrap();
        let out = house.run(&["check", "--against-usage", since]);
        (out.status.success(), String::from_utf8(out.stdout).unwrap())
    };
    let (is_good, told) = check("", "7d");
    assert!(is_good && told.contains("ok       usage: 0 of 17 requests would"), "{told}");
    let (is_good, told) = check("default_role = 'user'\n", "7d");
    let line =
        "warning  usage: 13 of 17 requests would have been refused: 13 pulls by homeassistant";
    assert!(is_good && told.contains(line), "{told}");
    let rules = "[roles]\nviewer = ['bert']\n[[rule]]\nmodels = ['gemma3*']\n";
    let (_, told) = check(rules, "7d");
    assert!(told.contains("usage: 2 of 17 requests"), "{told}");
    assert!(told.contains("1 chat of qwen3:8b by anna (model_forbidden)"), "{told}");
    assert!(told.contains("1 chat by bert (forbidden)"), "{told}");
    let (is_good, told) =
        check("[[limit]]\nnames = ['home*']\nrequests_per_minute = 1\nconcurrent = 1\n", "7d");
    assert!(is_good && told.contains("usage: 0 of 17 requests"), "one a minute: {told}");
    // Four chats within as many minutes: even if midnight is between them, a day has two.
    let (_, told) = check("[[limit]]\nper = 'all'\ngpu_seconds_per_day = 1\n", "7d");
    let line = "(quota_exhausted: gpu_seconds_per_day = 1 for everybody together)";
    assert!(told.contains(line), "{told}");
    let prices = "[prices]\n'gemma*' = { prompt = 1 }\n'llama*' = { prompt = 1 }\n";
    let (_, told) = check(prices, "1m");
    assert!(told.contains("usage: 0 of 0 requests"), "{told}");
    assert!(told.contains("no model that was used is called llama*"), "{told}");
    assert!(!told.contains("called gemma*"), "{told}");
    let limits = "[[limit]]\nmodels = ['gemma3', 'lama*']\ntokens_per_day = 1000000\n\
                  [[limit]]\nconcurrent = 1000\n";
    let (is_good, told) = check(limits, "1m");
    assert!(is_good && told.matches("no model that was used").count() == 1, "{told}");
    assert!(told.contains(": no model that was used is called lama*"), "{told}");
    let (is_good, told) = check("", "soon");
    assert!(!is_good && told.contains("--against-usage: since: write it as 7d"), "{told}");
}
