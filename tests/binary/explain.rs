//! `explain`: the stages, the words of the refusal, and the exit status.

use std::fs;

use super::{House, text};

const RULES: &str = "[groups]\nclass = ['anna']\n[[rule]]\ngroups = ['class']\nmodels = ['gemma3*']\n\
                     policy = { num_ctx = { max = 8192 } }\n";

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
    fs::write(house.path("bad.json"), r#"{"model":"llama3"}"#).unwrap();
    let chat = |body| house.run(&["explain", "--as", "anna", "POST", "/api/chat", "--body", body]);
    let good = chat("good.json");
    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    for part in
        ["anna, with the role operator", "portcullis.toml:5", "num_ctx: 65536 -> 8192", "passed on"]
    {
        assert!(text(&good).contains(part), "{}", text(&good));
    }
    let bad = chat("bad.json");
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad));
    assert!(text(&bad).contains("403 model_forbidden: anna may not use llama3"), "{}", text(&bad));

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
