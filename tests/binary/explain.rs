//! `explain`: the stages, the words of the refusal, and the exit status.

use std::fs;
use std::time::SystemTime;

use portcullis::store::{Usage, UsageRow};

use super::{House, text, usage};

const RULES: &str = "[groups]\nclass = ['anna']\n[[rule]]\ngroups = ['class']\nmodels = ['gemma3*']\n\
                     policy = { num_ctx = { max = 8192 } }\n\
                     [[alias]]\nname = 'gpt-4o'\nmodel = 'gemma3:1b'\n";

#[test]
fn a_request_is_explained_stage_by_stage() {
    let house = House::new();
    fs::write(house.path("keys"), "a-key # anna\n").unwrap();
    fs::write(
        house.path("portcullis.toml"),
        format!("api_keys = 'keys'\ndata_dir = 'data'\n{RULES}"),
    )
    .unwrap();
    fs::write(house.path("good.json"), r#"{"model":"gemma3:1b","options":{"num_ctx":65536}}"#)
        .unwrap();
    fs::write(house.path("alias.json"), r#"{"model":"gpt-4o"}"#).unwrap();
    fs::write(house.path("bad.json"), r#"{"model":"llama3"}"#).unwrap();
    let chat = |body| house.run(&["explain", "--as", "anna", "POST", "/api/chat", "--body", body]);
    let good = chat("good.json");
    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    for part in
        ["anna, with the role operator", "portcullis.toml:5", "num_ctx: 65536 -> 8192", "passed on"]
    {
        assert!(text(&good).contains(part), "{}", text(&good));
    }
    let alias = chat("alias.json");
    assert_eq!(alias.status.code(), Some(0), "{}", text(&alias));
    assert!(text(&alias).contains("stands for the model gemma3:1b"), "{}", text(&alias));
    let bad = chat("bad.json");
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad));
    for part in [
        "model     allowed are gemma3*",
        "403 model_forbidden: anna may not use llama3",
        "what would allow it: llama3 among the `models`",
    ] {
        assert!(text(&bad).contains(part), "{}", text(&bad));
    }

    let made = house.run(&[
        "key",
        "create",
        "lab",
        "--owner",
        "anna",
        "--models",
        "gemma3:1b",
        "--data-dir",
        "data",
    ]);
    assert!(made.status.success(), "{}", text(&made));
    fs::write(house.path("other.json"), r#"{"model":"gemma3:12b"}"#).unwrap();
    let key = house.run(&["explain", "--key", "lab", "POST", "/api/chat", "--body", "other.json"]);
    assert_eq!(key.status.code(), Some(1), "{}", text(&key));
    assert!(text(&key).contains("allowed are gemma3:1b"), "{}", text(&key));
    let none = house.run(&["explain", "--key", "nobody", "GET", "/api/tags"]);
    assert_eq!(none.status.code(), Some(2), "{}", text(&none));
    assert!(text(&none).contains("no key is called nobody"), "{}", text(&none));
}

#[test]
fn limits_that_bear_on_a_request_are_told_with_what_is_left() {
    let house = House::new();
    fs::write(house.path("keys"), "a-key # anna\n").unwrap();
    let limits = |number: u32| {
        let text = format!(
            "api_keys = 'keys'\ndata_dir = 'data'\n[[rule]]\nrequests_per_minute = 9\n\
             [[limit]]\nper = 'model'\nmodels = ['gemma3*']\ntokens_per_month = {number}\n"
        );
        fs::write(house.path("portcullis.toml"), text).unwrap();
    };
    limits(1000);
    fs::write(house.path("chat.json"), r#"{"model":"gemma3:1b"}"#).unwrap();
    let explain = || {
        let done =
            house.run(&["explain", "--as", "anna", "POST", "/api/chat", "--body", "chat.json"]);
        (done.status.code(), text(&done))
    };
    let (code, says) = explain();
    assert_eq!(code, Some(0), "{says}");
    assert!(says.contains("requests_per_minute is 9 for anna; what is left only"), "{says}");
    let whose = "tokens_per_month is 1000 for all who use gemma3:1b with gemma3*; ";
    assert!(says.contains(&format!("{whose}1000 left")), "{says}");

    let spent = Usage { prompt: 300, completion: 100, ..Usage::default() };
    let row = usage::row(1, "anna", "gemma3:1b", "chat");
    let row = UsageRow { time: SystemTime::now(), usage: spent, ..row };
    usage::fill(&house.path("data"), vec![row]);
    let (code, says) = explain();
    assert_eq!(code, Some(0), "{says}");
    assert!(says.contains(&format!("{whose}600 left")), "{says}");
    limits(400);
    let (code, says) = explain();
    assert_eq!(code, Some(1), "{says}");
    assert!(says.contains("429 quota_exhausted: tokens_per_month is 400"), "{says}");
    let list = house.run(&["explain", "--as", "anna", "GET", "/api/tags"]);
    assert!(text(&list).contains("limits    none"), "{}", text(&list));
}

#[test]
fn where_models_would_be_managed_is_told() {
    let house = House::new();
    fs::write(house.path("keys"), "a-key # anna\nb-key # bert\n").unwrap();
    let backend = |name| format!("[[backend]]\nname = '{name}'\nurl = 'http://127.0.0.1:1'\n");
    let backends = backend("a") + &backend("b") + "manage = true\n";
    let rule = "[[rule]]\nnames = ['bert']\nmodels = 'all'\nmanage = ['a', 'b']\n";
    fs::write(house.path("portcullis.toml"), format!("api_keys = 'keys'\n{backends}{rule}"))
        .unwrap();
    fs::write(house.path("pull.json"), r#"{"model":"gemma3"}"#).unwrap();
    for (who, more, expected) in [
        ("anna", &[][..], "goes to b\n"),
        ("anna", &["--header", "x-portcullis-backend: a"], "goes to a\n"),
        ("anna", &["--header", "x-portcullis-backend: c"], "refused   400 bad_request"),
        ("bert", &[], "goes to each of a, b\n"),
    ] {
        let asked = ["explain", "--as", who, "POST", "/api/pull", "--body", "pull.json"];
        let told = house.run(&[&asked[..], more].concat());
        assert!(text(&told).contains(expected), "{}", text(&told));
    }
}
