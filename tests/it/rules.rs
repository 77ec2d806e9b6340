//! Who may use which model: rules, lists, parameters, and front ends that ask for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use http::Method;
use portcullis::api::{ENDPOINTS, Endpoint, ModelIn};
use portcullis::config::{Config, Given, Role, Roles, load};
use serde_json::{Value, json};

use crate::events::events;
use crate::house::{Answer, Backend, House, KEY, PASSWORD, ok_json, until};

/// The blocks of a configuration that are about rules.
fn with_rules(text: &str) -> impl FnOnce(&mut Config, &tempfile::TempDir) + use<> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    std::fs::write(&file, format!("api_keys = 'k'\n{text}")).unwrap();
    let read = load(&Given { file: Some(file), ..Given::default() });
    let read = read.unwrap_or_else(|told| panic!("{told}")).config;
    move |config, _| {
        config.rules = read.rules;
        config.groups = read.groups;
        config.keys = read.keys;
        config.hide_models = read.hide_models;
        config.roles = read.roles;
    }
}

fn request(method: &str, path: &str, login: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: {login}\r\n{headers}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn bearer() -> String {
    format!("Bearer {KEY}")
}

fn basic() -> String {
    let pair = format!("anna:{PASSWORD}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

async fn post(house: &House, path: &str, body: &str) -> Answer {
    house.ask(request("POST", path, &bearer(), "", body)).await
}

/// A rule for anna with two patterns.
const TWO: &str = "[[rule]]\nnames = ['anna']\nmodels = ['small*', 'hf.co/acme/*']\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_model_outside_the_rule_is_refused_however_it_is_spelt() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules(TWO)).await;
    for model in [
        "big",
        "BIG",
        " big",
        "big:latest",
        "library/big",
        "registry.ollama.ai/library/big:latest",
        "hf.co/other/small",
        "xsmall",
        "big@sha256:1",
        "b\\u0069g",
        "big:small",
    ] {
        for path in
            ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages", "/api/show"]
        {
            let answer = post(&house, path, &format!("{{\"model\":\"{model}\"}}")).await;
            let told = (answer.status, answer.code());
            assert!(
                told == (403, "model_forbidden".to_owned()) || told == (400, "bad_body".to_owned()),
                "{path} {model}: {told:?}"
            );
        }
    }
    assert!(backend.seen().is_empty());
    let answer = post(&house, "/api/chat", r#"{"model":"big"}"#).await;
    assert_eq!(answer.json()["error"], "anna may not use big; allowed are small*, hf.co/acme/*");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_within_the_rule_passes_byte_for_byte() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules(TWO)).await;
    for (at, body) in [
        r#"{"model":"small"}"#,
        r#"{ "model" : "SMALL:1b" , "x":[1,  2] }"#,
        r#"{"name":"registry.ollama.ai/library/small:latest"}"#,
        r#"{"model":"hf.co/acme/thing:q4"}"#,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(post(&house, "/api/show", body).await.status, 200, "{body}");
        assert_eq!(backend.seen()[at].body, body.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_use_every_model_has_to_name_one() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules(TWO)).await;
    for (path, body) in [
        ("/api/generate", "{}"),
        ("/api/generate", ""),
        ("/api/generate", r#"{"model":null}"#),
        ("/api/generate", r#"{"model":["big"]}"#),
        ("/api/generate", r#"{"model":7}"#),
        ("/api/copy", r#"{"source":"small"}"#),
        ("/api/copy", r#"{"destination":"small"}"#),
    ] {
        let answer = post(&house, path, body).await;
        assert_eq!((answer.status, answer.code()), (400, "bad_body".to_owned()), "{body}");
    }
    assert!(backend.seen().is_empty());
    let everybody = House::new(&backend).await;
    assert_eq!(post(&everybody, "/api/generate", "{}").await.status, 200, "the backend's to say");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_copy_and_what_a_model_is_made_from_are_looked_at() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules(TWO)).await;
    for (path, body, status) in [
        ("/api/copy", r#"{"source":"small","destination":"small2"}"#, 200),
        ("/api/copy", r#"{"source":"big","destination":"small"}"#, 403),
        ("/api/copy", r#"{"source":"small","destination":"big"}"#, 403),
        ("/api/create", r#"{"model":"small3","from":"small"}"#, 200),
        ("/api/create", r#"{"model":"small3","from":"big"}"#, 403),
        ("/api/create", r#"{"model":"big2","from":"small"}"#, 403),
    ] {
        assert_eq!(post(&house, path, body).await.status, status, "{body}");
    }
    let (path, no) = ("/v1/models/big", request("GET", "/v1/models/big", &bearer(), "", ""));
    assert_eq!(house.ask(no).await.status, 403, "{path}");
    assert_eq!(house.get("/v1/models/small:1b").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_in_the_cloud_need_a_word_of_their_own() {
    let cloud = r#"{"model":"gpt-oss:120b-cloud"}"#;
    for (rules, status) in [
        ("", 403),
        ("[[rule]]\nmodels = 'all'\n", 403),
        ("[[rule]]\nmodels = 'all'\ncloud = true\n", 200),
        ("[roles]\nadmin = ['anna']\n", 200),
        ("[[rule]]\nmodels = ['gpt-oss:*']\n", 403),
    ] {
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(rules)).await;
        for path in ["/api/chat", "/v1/responses", "/v1/embeddings", "/api/pull"] {
            assert_eq!(post(&house, path, cloud).await.status, status, "{rules} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_configuration_may_have_less_of_the_cloud_than_its_rule_and_never_more() {
    let cloud = r#"{"model":"gpt-oss:120b-cloud"}"#;
    for (rule, key, status) in [
        (true, "", 200),
        (true, "cloud = true\n", 200),
        (true, "cloud = false\n", 403),
        (false, "cloud = true\n", 403),
    ] {
        let digest = sha256("second-key");
        let rules =
            format!("[[key]]\nname = 'lab'\nsha256 = '{digest}'\n{key}[[rule]]\ncloud = {rule}\n");
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(&rules)).await;
        let ask = request("POST", "/api/chat", "Bearer second-key", "", cloud);
        assert_eq!(house.ask(ask).await.status, status, "{rules}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_of_a_model_in_the_cloud_cannot_be_made_without_that_word() {
    let stub = r#"{"model":"mine","from":"gpt-oss:120b","remote_host":"https://ollama.com"}"#;
    let plain = r#"{"model":"mine","from":"small","remote_host":""}"#;
    for (rules, body, status) in [
        ("[[rule]]\nmodels = 'all'\n", stub, 403),
        ("[[rule]]\nmodels = 'all'\ncloud = true\n", stub, 200),
        ("[[rule]]\nmodels = 'all'\n", plain, 200),
    ] {
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(rules)).await;
        assert_eq!(post(&house, "/api/create", body).await.status, status, "{rules} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_of_models_are_for_whom_all_models_are() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let by =
        |field: &str| format!("{{\"model\":\"small2\",\"{field}\":{{\"m.gguf\":\"{digest}\"}}}}");
    let blob = |method: &str| request(method, &format!("/api/blobs/{digest}"), &bearer(), "", "");
    for (rules, status) in [
        (TWO.to_owned(), 403),
        (format!("hide_models = true\n{TWO}"), 403),
        ("[[rule]]\nmodels = 'all'\n".to_owned(), 200),
    ] {
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(&rules)).await;
        for field in ["files", "adapters", "draft_files", "f\\u0069les"] {
            let answer = post(&house, "/api/create", &by(field)).await;
            assert_eq!(answer.status, status, "{rules} {field} {}", answer.text());
            if status == 403 {
                assert_eq!(answer.code(), "model_forbidden", "{field}");
            }
        }
        for method in ["HEAD", "POST"] {
            let mut caller = house.connect().await;
            caller.send(blob(method)).await;
            assert_eq!(caller.answer_to(method).await.status, status, "{rules} {method}");
        }
        assert_eq!(backend.seen().is_empty(), status == 403);
        let none = r#"{"model":"small2","from":"small","files":{ },"adapters":null}"#;
        assert_eq!(post(&house, "/api/create", none).await.status, 200, "{rules}");
        assert_eq!(post(&house, "/api/create", &by("Files")).await.status, 400, "{rules}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_search_on_the_owners_account_needs_the_word_for_the_cloud() {
    let search =
        r#"{"model":"m","max_tokens":9,"tools":[{"name":"f"},{"Type":"web_search_20250305"}]}"#;
    let plain = r#"{"model":"m","max_tokens":9,"tools":[{"type":"custom","name":"web_search"}]}"#;
    for (rules, body, status) in
        [("", search, 403), ("[[rule]]\ncloud = true\n", search, 200), ("", plain, 200)]
    {
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(rules)).await;
        let answer = post(&house, "/v1/messages", body).await;
        assert_eq!(answer.status, status, "{rules} {body}");
        assert!(status == 200 || answer.text().contains("`cloud = true`"), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_of_a_front_end_goes_no_further_whoever_sends_it() {
    let backend = Backend::ok().await;
    let rules = "[[rule]]\nnames = ['ui']\nacts_for = 'x-remote-user'\n";
    let house = House::with(&backend, with_rules(rules)).await;
    let ask =
        request("POST", "/api/chat", &bearer(), "X-Remote-User: admin\r\n", r#"{"model":"m"}"#);
    assert_eq!(house.ask(ask).await.status, 200);
    assert_eq!(backend.seen()[0].header("x-remote-user"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_endpoint_is_no_way_round_a_rule_about_models() {
    for (rules, status) in [
        (TWO.to_owned(), 403),
        (format!("{TWO}endpoints = ['/v1/images/*', 'inference']\n"), 200),
        ("[[rule]]\nmodels = 'all'\n".to_owned(), 200),
    ] {
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(&rules)).await;
        let answer = post(&house, "/v1/images/generations", r#"{"model":"big"}"#).await;
        assert_eq!(answer.status, status, "{rules}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_endpoint_is_no_way_into_the_cloud() {
    let cloud = r#"{"model":"gpt-oss:120b-cloud"}"#;
    let part =
        "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngpt-oss:cloud\r\n--x--\r\n";
    let (form, packed) =
        ("Content-Type: multipart/form-data; boundary=x\r\n", "Content-Encoding: zstd\r\n");
    for (headers, body, status) in [
        ("", cloud, 403),
        (form, cloud, 403),
        ("", "\n {\"\\u006dodel\":\"gpt-oss:cloud\"}", 403),
        (form, part, 403),
        ("", "{\"model\":\"small\",\"Model\":\"gpt-oss:cloud\"}", 400),
        ("", "{\"model\":\"gpt-oss:cloud\"} and more", 400),
        ("", "{\"model\":[\"gpt-oss:cloud\"]}", 400),
        (packed, "\u{28}packed", 400),
        ("Content-Type: application/x-www-form-urlencoded\r\n", "a=b&mode%6c=gpt-oss:cloud", 400),
        ("", r#"{"model":"small"}"#, 200),
        ("", r#"{"name":"whatever it is"}"#, 200),
        ("Content-Type: audio/wav\r\n", "RIFF", 200),
        ("", "", 200),
    ] {
        for path in ["/v1/images/generations", "/v1/images/edits", "/api/next"] {
            let backend = Backend::ok().await;
            let house = House::with(&backend, with_rules("")).await;
            let ask = |path| request("POST", path, &bearer(), headers, body);
            let answer = house.ask(ask(path)).await;
            assert_eq!(answer.status, status, "{path} {headers} {body} {}", answer.text());
            assert_eq!(backend.seen().len(), usize::from(status == 200));
            let cloud = House::with(&backend, with_rules("[[rule]]\ncloud = true\n")).await;
            assert_eq!(cloud.ask(ask(path)).await.status, 200, "{path} {headers} {body}");
            assert_eq!(backend.seen().last().unwrap().body, body.as_bytes());
        }
    }
    let backend = Backend::ok().await;
    let opened = format!("{TWO}endpoints = ['/v1/images/*']\n");
    let house = House::with(&backend, with_rules(&opened)).await;
    let answer = post(&house, "/v1/images/generations", cloud).await;
    assert_eq!((answer.status, answer.code()), (403, "model_forbidden".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_of_an_unknown_endpoint_is_read_as_well() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules("")).await;
    let image = "A".repeat(2 << 20);
    for (tail, status) in [(r#""model":"x:cloud"}"#, 403), (r#""model":"x"}"#, 200), ("", 400)] {
        let body = format!("{{\"image\":\"{image}\",{tail}");
        assert_eq!(post(&house, "/v1/images/edits", &body).await.status, status, "{tail}");
    }
}

const TAGS: &str = r#"{"models":[{"name":"small:1b","model":"small:1b","size":1.50},{"name":"big:latest","model":"big:latest"},{"name":"small:1b","model":"big"},{"size":3},{"name":"stub","model":"stub","remote_host":"https://ollama.com"}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_only_what_may_be_used() {
    let list = r#"{"object":"list","data":[{"id":"big","object":"model"},{"id":"small","object":"model"}]}"#;
    let backend = Backend::scripted(move |seen| {
        let body = if seen.line().contains("/v1/") { list } else { TAGS };
        vec![crate::house::Step::Send(ok_json(body).into_bytes())]
    })
    .await;
    let house = House::with(&backend, with_rules(TWO)).await;
    for path in ["/api/tags", "/api/ps"] {
        let models = house.get(path).await.json();
        let models = models["models"].as_array().unwrap();
        assert_eq!(models.len(), 1, "{models:?}");
        assert_eq!(models[0]["name"], "small:1b");
        assert_eq!(models[0]["size"], 1.5);
    }
    let v1 = house.get("/v1/models").await.json();
    assert_eq!(v1, json!({"object": "list", "data": [{"id": "small", "object": "model"}]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_see_all_gets_the_list_byte_for_byte() {
    let backend = Backend::saying(ok_json(TAGS)).await;
    let rules = with_rules("[[rule]]\nmodels = 'all'\ncloud = true\n");
    let house = House::with(&backend, rules).await;
    assert_eq!(house.get("/api/tags").await.text(), TAGS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_narrowed_comes_whole_and_plain_or_not_at_all() {
    let asking = "Range: bytes=30-\r\nIf-None-Match: \"1\"\r\nIf-Range: \"1\"\r\nA-IM: feed\r\n\
                  Accept-Encoding: gzip\r\nAccept: */*\r\n";
    for (status, fields, expected) in [
        ("200 OK", "", 200),
        ("200 OK", "Content-Encoding: identity\r\n", 200),
        ("200 OK", "Content-Encoding: gzip\r\n", 502),
        ("206 Partial Content", "Content-Range: bytes 0-9/99\r\n", 502),
        ("203 Non-Authoritative Information", "", 502),
        ("226 IM Used", "", 502),
        ("404 Not Found", "", 404),
    ] {
        let length = TAGS.len();
        let answer = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n{TAGS}");
        let backend = Backend::saying(answer).await;
        let house = House::with(&backend, with_rules(TWO)).await;
        let told = house.ask(request("GET", "/api/tags", &bearer(), asking, "")).await;
        assert_eq!(told.status, expected, "{status} {fields}");
        if expected == 502 {
            assert_eq!(told.code(), "backend_failed", "{status} {fields}");
        }
        let head = backend.seen()[0].head.to_lowercase();
        for field in ["range:", "if-none-match:", "if-range:", "a-im:", "accept-encoding:"] {
            assert!(!head.contains(field), "{head}");
        }
        assert!(head.contains("accept: */*"), "{head}");
        // Whoever may see all gets what was asked for.
        let all = House::new(&backend).await;
        all.ask(request("GET", "/api/tags", &bearer(), asking, "")).await;
        let head = backend.seen()[1].head.to_lowercase();
        assert!(head.contains("range: bytes=30-") && head.contains("accept-encoding: gzip"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_read_is_not_passed_on_unread() {
    for body in ["no json", "[]", r#"{"models":{"big":1}}"#] {
        let backend = Backend::saying(ok_json(body)).await;
        let house = House::with(&backend, with_rules(TWO)).await;
        let answer = house.get("/api/tags").await;
        assert_eq!((answer.status, answer.code()), (502, "backend_failed".to_owned()), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_model_looks_like_a_missing_one() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules(&format!("hide_models = true\n{TWO}"))).await;
    let answer = post(&house, "/api/chat", r#"{"model":"big"}"#).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (404, r#"{"error":"model 'big' not found"}"#)
    );
    let lines = house.lines().await;
    assert_eq!(lines[0]["code"], "unknown_model");
    assert_eq!(lines[0]["model"], "big");
}

/// What the policy makes of a body, and what it says of it.
async fn changed(policy: &str, path: &str, body: &str) -> (String, Option<String>) {
    let backend = Backend::ok().await;
    let rules = with_rules(&format!("[[rule]]\npolicy = {{ {policy} }}\n"));
    let house = House::with(&backend, rules).await;
    let answer = post(&house, path, body).await;
    assert_eq!(answer.status, 200, "{policy} {body}: {}", answer.text());
    let seen = backend.seen().remove(0);
    let length: usize = seen.header("content-length").unwrap().parse().unwrap();
    assert_eq!(length, seen.body.len());
    let told = answer.header("x-portcullis-policy").map(str::to_owned);
    (String::from_utf8(seen.body).unwrap(), told)
}

/// Policy, path, body, what is sent on, and what is told of it.
const CHANGES: [(&str, &str, &str, &str, Option<&str>); 25] = [
    (
        "num_ctx = { max = 8192 }",
        "/api/chat",
        r#"{ "model":"m", "options": {"num_ctx": 65536 , "seed":1}}"#,
        r#"{ "model":"m", "options": {"num_ctx": 8192 , "seed":1}}"#,
        Some("num_ctx: 65536 -> 8192"),
    ),
    (
        "num_ctx = { max = 8192 }",
        "/api/chat",
        r#"{"model":"m","options":{"num_ctx":4096}}"#,
        r#"{"model":"m","options":{"num_ctx":4096}}"#,
        None,
    ),
    ("num_ctx = { max = 8192 }", "/api/chat", r#"{"model":"m"}"#, r#"{"model":"m"}"#, None),
    ("num_ctx = { max = 8192 }", "/v1/embeddings", r#"{"model":"m"}"#, r#"{"model":"m"}"#, None),
    (
        "keep_alive = 'drop'",
        "/api/generate",
        r#"{"model":"m","keep_alive":-1}"#,
        r#"{"model":"m"}"#,
        Some("keep_alive: -1 -> dropped"),
    ),
    (
        "keep_alive = { max = '10m' }",
        "/api/generate",
        r#"{"keep_alive":"1h30m","model":"m"}"#,
        r#"{"keep_alive":600,"model":"m"}"#,
        Some("keep_alive: \"1h30m\" -> 600"),
    ),
    (
        "keep_alive = { max = '10m' }",
        "/api/generate",
        r#"{"keep_alive":-1,"model":"m"}"#,
        r#"{"keep_alive":600,"model":"m"}"#,
        Some("keep_alive: -1 -> 600"),
    ),
    (
        "num_predict = { max = 100 }",
        "/v1/chat/completions",
        r#"{"model":"m","max_tokens":5000}"#,
        r#"{"model":"m","max_tokens":100}"#,
        Some("max_tokens: 5000 -> 100"),
    ),
    (
        "num_predict = { max = 100 }",
        "/v1/responses",
        r#"{"model":"m","max_output_tokens":0}"#,
        r#"{"model":"m","max_output_tokens":100}"#,
        Some("max_output_tokens: 0 -> 100"),
    ),
    (
        "n = { max = 1 }",
        "/v1/completions",
        r#"{"model":"m","n":9}"#,
        r#"{"model":"m","n":1}"#,
        Some("n: 9 -> 1"),
    ),
    (
        "temperature = { force = 0 }",
        "/api/chat",
        r#"{"model":"m","options":{"temperature":2}}"#,
        r#"{"model":"m","options":{"temperature":0}}"#,
        Some("temperature: 2 -> 0"),
    ),
    (
        "temperature = { force = 0 }",
        "/api/chat",
        r#"{"model":"m"}"#,
        r#"{"options":{"temperature":0},"model":"m"}"#,
        Some("temperature: unset -> 0"),
    ),
    (
        "temperature = { force = 0.5 }",
        "/api/generate",
        r#"{"model":"m","options":{"seed":1}}"#,
        r#"{"model":"m","options":{"temperature":0.5,"seed":1}}"#,
        Some("temperature: unset -> 0.5"),
    ),
    (
        "temperature = { force = 0 }",
        "/api/chat",
        r#"{"model":"m","options":{"temperature":0}}"#,
        r#"{"model":"m","options":{"temperature":0}}"#,
        None,
    ),
    (
        "keep_alive = { force = '5m' }",
        "/api/chat",
        r#"{"model":"m"}"#,
        r#"{"keep_alive":"5m","model":"m"}"#,
        Some("keep_alive: unset -> \"5m\""),
    ),
    (
        "num_predict = { force = 10 }",
        "/v1/chat/completions",
        r#"{"model":"m"}"#,
        r#"{"max_tokens":10,"model":"m"}"#,
        Some("max_tokens: unset -> 10"),
    ),
    (
        "n = { force = 1 }",
        "/v1/completions",
        r#"{"model":"m"}"#,
        r#"{"n":1,"model":"m"}"#,
        Some("n: unset -> 1"),
    ),
    (
        "num_ctx = { min = 4096 }",
        "/api/chat",
        r#"{"model":"m","options":{"num_ctx":512}}"#,
        r#"{"model":"m","options":{"num_ctx":4096}}"#,
        Some("num_ctx: 512 -> 4096"),
    ),
    (
        "num_ctx = { min = 4096, max = 8192 }",
        "/api/chat",
        r#"{"model":"m","options":{"num_ctx":6000}}"#,
        r#"{"model":"m","options":{"num_ctx":6000}}"#,
        None,
    ),
    ("num_ctx = { min = 4096 }", "/api/chat", r#"{"model":"m"}"#, r#"{"model":"m"}"#, None),
    (
        "keep_alive = { min = '5m' }",
        "/api/embed",
        r#"{"model":"m","keep_alive":0}"#,
        r#"{"model":"m","keep_alive":300}"#,
        Some("keep_alive: 0 -> 300"),
    ),
    (
        "num_predict = { min = 16 }",
        "/v1/messages",
        r#"{"model":"m","max_tokens":1}"#,
        r#"{"model":"m","max_tokens":16}"#,
        Some("max_tokens: 1 -> 16"),
    ),
    (
        "num_gpu = 'drop'",
        "/api/generate",
        r#"{"model":"m","options":{"num_gpu":0,"seed":1}}"#,
        r#"{"model":"m","options":{"seed":1}}"#,
        Some("num_gpu: 0 -> dropped"),
    ),
    (
        "n = { max = 1 }",
        "/v1/chat/completions",
        r#"{"model":"m","n":1,"n_cmpl":8}"#,
        r#"{"model":"m","n":1,"n_cmpl":1}"#,
        Some("n_cmpl: 8 -> 1"),
    ),
    (
        "num_gpu = { min = 1, max = 99 }",
        "/api/embed",
        r#"{"model":"m","options":{"num_gpu":0}}"#,
        r#"{"model":"m","options":{"num_gpu":1}}"#,
        Some("num_gpu: 0 -> 1"),
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_changes_those_values_alone_and_tells() {
    for (policy, path, body, expected, told) in CHANGES {
        let (sent, says) = changed(policy, path, body).await;
        assert_eq!(sent, expected, "{policy} {path}");
        assert_eq!(says.as_deref(), told, "{policy} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_answer_cannot_be_passed_by_saying_nothing() {
    for (path, body, at) in [
        ("/api/chat", r#"{"model":"m"}"#, "/options/num_predict"),
        ("/api/chat", r#"{"model":"m","options":{}}"#, "/options/num_predict"),
        ("/api/chat", r#"{"model":"m","options":null}"#, "/options/num_predict"),
        ("/api/chat", r#"{"model":"m","options":{"num_predict":-1}}"#, "/options/num_predict"),
        ("/api/chat", r#"{"model":"m","options":{"num_predict":null}}"#, "/options/num_predict"),
        ("/v1/chat/completions", r#"{"model":"m"}"#, "/max_tokens"),
        (
            "/v1/chat/completions",
            r#"{"model":"m","max_completion_tokens":1e9}"#,
            "/max_completion_tokens",
        ),
        ("/v1/chat/completions", r#"{"model":"m","max_completion_tokens":1}"#, "/max_tokens"),
        // llama.cpp takes it before the others.
        ("/v1/chat/completions", r#"{"model":"m","max_tokens":1,"n_predict":1e6}"#, "/n_predict"),
        ("/v1/completions", r#"{"model":"m","n_predict":-1}"#, "/n_predict"),
        ("/api/chat", r#"{"model":"m","options":{"num_predict":0.5}}"#, "/options/num_predict"),
        ("/v1/completions", r#"{"model":"m","max_tokens":null}"#, "/max_tokens"),
        ("/v1/responses", r#"{"model":"m"}"#, "/max_output_tokens"),
        ("/v1/messages", r#"{"model":"m"}"#, "/max_tokens"),
    ] {
        let (sent, _) = changed("num_predict = { max = 100 }", path, body).await;
        let sent: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(sent.pointer(at), Some(&json!(100)), "{path} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_tools_and_what_cannot_be_compared_are_refused() {
    let backend = Backend::ok().await;
    let rules =
        "[[rule]]\npolicy = { images = 'refuse', tools = 'refuse', num_ctx = { max = 1 } }\n";
    let house = House::with(&backend, with_rules(rules)).await;
    for (path, body, status) in [
        ("/api/chat", r#"{"model":"m","messages":[{"role":"user","images":["aGk="]}]}"#, 403),
        ("/api/generate", r#"{"model":"m","images":["aGk="]}"#, 403),
        ("/api/generate", r#"{"model":"m","images":[]}"#, 200),
        (
            "/v1/chat/completions",
            r#"{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:x"}}]}]}"#,
            403,
        ),
        ("/api/chat", r#"{"model":"m","tools":[{"type":"function"}]}"#, 403),
        ("/v1/chat/completions", r#"{"model":"m","tools":[{"type":"function"}]}"#, 403),
        ("/v1/responses", r#"{"model":"m","input":"x","tools":[{"type":"function"}]}"#, 403),
        ("/v1/messages", r#"{"model":"m","tools":[{"name":"f"}],"messages":[]}"#, 403),
        ("/v1/messages", r#"{"model":"m","messages":[{"content":[{"type":"image"}]}]}"#, 403),
        ("/v1/chat/completions", r#"{"model":"m","tools":[]}"#, 200),
        ("/v1/chat/completions", r#"{"model":"m","functions":[{"name":"f"}]}"#, 403),
        (
            "/v1/completions",
            r#"{"model":"m","prompt":[{"prompt_string":"x","multimodal_data":["aGk="]}]}"#,
            403,
        ),
        ("/v1/completions", r#"{"model":"m","prompt":["x",[1,2]]}"#, 200),
        ("/v1/messages", r#"{"model":"m","messages":[{"content":"an image, a tool"}]}"#, 200),
        ("/api/chat", r#"{"model":"m","options":{"num_ctx":"99999"}}"#, 400),
        ("/api/chat", r#"{"model":"m","options":{"num_ctx":[99999]}}"#, 400),
    ] {
        assert_eq!(post(&house, path, body).await.status, status, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_context_of_the_loaded_model_stands_in_for_a_smaller_one() {
    let loaded = r#"{"models":[{"name":"m:latest","model":"m:latest","context_length":8192}]}"#;
    for (body, expected) in [
        (r#"{"model":"m"}"#, json!(8192)),
        (r#"{"model":"m","options":{"num_ctx":4096}}"#, json!(8192)),
        (r#"{"model":"m","options":{"num_ctx":16384}}"#, json!(16384)),
        (r#"{"model":"other"}"#, Value::Null),
    ] {
        let backend = Backend::scripted(move |seen| {
            let body = if seen.line().contains("/api/ps") { loaded } else { "{}" };
            vec![crate::house::Step::Send(ok_json(body).into_bytes())]
        })
        .await;
        let rules = with_rules("[[rule]]\npolicy = { num_ctx = 'loaded' }\n");
        let house = House::with(&backend, rules).await;
        assert_eq!(post(&house, "/api/chat", body).await.status, 200);
        let seen = backend.seen();
        let sent: Value = serde_json::from_slice(&seen.last().unwrap().body).unwrap();
        let context = sent.pointer("/options/num_ctx").cloned().unwrap_or(Value::Null);
        assert_eq!(context, expected, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_model_is_loaded_is_asked_once_and_not_for_whom_is_refused() {
    let loaded = r#"{"models":[{"name":"m:latest","model":"m:latest","context_length":8192}]}"#;
    let backend = Backend::scripted(move |seen| {
        let body = if seen.line().contains("/api/ps") { loaded } else { "{}" };
        vec![crate::house::Step::Send(ok_json(body).into_bytes())]
    })
    .await;
    let rules = "[[rule]]\nmodels = ['m']\ncloud = true\npolicy = { num_ctx = 'loaded' }\n";
    let house = House::with(&backend, with_rules(rules)).await;
    assert_eq!(post(&house, "/api/chat", r#"{"model":"other"}"#).await.status, 403);
    assert!(backend.asked_by_the_gate().is_empty());
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let address = house.address;
        callers.spawn(async move {
            let mut caller = crate::house::Caller::connect(address).await;
            let ask = request("POST", "/api/chat", &bearer(), "", r#"{"model":"m"}"#);
            caller.send(ask).await;
            assert_eq!(caller.answer().await.status, 200);
        });
    }
    callers.join_all().await;
    let asked = backend.asked_by_the_gate().len();
    assert!((1..20).contains(&asked), "{asked}");
    for seen in backend.seen() {
        assert_eq!(seen.body, br#"{"options":{"num_ctx":8192},"model":"m"}"#);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_under_a_plain_name_is_in_the_cloud() {
    let pulled = Arc::new(AtomicBool::new(false));
    let is_there = Arc::clone(&pulled);
    let backend = Backend::scripted(move |seen| {
        let late =
            r#"{"name":"late","remote_model":"x:1t","remote_host":"https://ollama.com:443"}"#;
        let more =
            if is_there.load(Ordering::Relaxed) { format!(",{late}") } else { String::new() };
        let body = match seen.line().contains("/api/tags") {
            true => TAGS.replacen("]}", &format!("{more}]}}"), 1),
            false => "{}".to_owned(),
        };
        vec![crate::house::Step::Send(ok_json(&body).into_bytes())]
    })
    .await;
    let house = House::with(&backend, with_rules("[[rule]]\nmodels = 'all'\n")).await;
    let ask = async |path, model| {
        let answer = post(&house, path, &format!("{{\"model\":\"{model}\"}}")).await;
        let code = if answer.status == 200 { String::new() } else { answer.code() };
        (answer.status, code)
    };
    let (good, no) = ((200, String::new()), (403, "model_forbidden".to_owned()));
    for path in
        ["/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/responses"]
    {
        for stub in ["stub", "STUB:latest", "library/stub", "stub:local"] {
            let told = ask(path, stub).await;
            assert_eq!(told, no, "{path} {stub}");
        }
        assert_eq!(ask(path, "big").await, good);
    }
    assert_eq!(backend.asked_by_the_gate().len(), 1, "they are remembered");
    assert!(backend.seen().iter().all(|seen| !seen.body.windows(4).any(|it| it == b"stub")));
    pulled.store(true, Ordering::Relaxed);
    assert_eq!(ask("/api/chat", "late").await, no, "one that has just come");
    // Whoever may use the cloud is not asked about.
    let all = House::with(&backend, with_rules("[[rule]]\ncloud = true\n")).await;
    assert_eq!(post(&all, "/api/chat", r#"{"model":"stub"}"#).await.status, 200);
    assert_eq!(backend.asked_by_the_gate().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_lists_no_models_serves_on() {
    for list in [
        "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 500 Oh No\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nno json",
        "",
    ] {
        let backend = Backend::scripted(move |seen| {
            if !seen.line().contains("/api/tags") {
                return vec![crate::house::Step::Send(ok_json("{}").into_bytes())];
            }
            match list {
                "" => vec![crate::house::Step::AwaitClose],
                list => vec![crate::house::Step::Send(list.into())],
            }
        })
        .await;
        let house = House::with(&backend, with_rules("")).await;
        for _ in 0..3 {
            assert_eq!(post(&house, "/api/chat", r#"{"model":"m"}"#).await.status, 200, "{list}");
        }
        assert_eq!(backend.asked_by_the_gate().len(), 1, "{list}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_may_open_some_endpoints_only() {
    let backend = Backend::ok().await;
    let rules = "[[rule]]\nendpoints = ['inference', '/api/tags']\n";
    let house = House::with(&backend, with_rules(rules)).await;
    assert_eq!(post(&house, "/api/chat", r#"{"model":"m"}"#).await.status, 200);
    for (path, status) in [("/api/tags", 200), ("/api/version", 200), ("/api/ps", 403)] {
        assert_eq!(house.get(path).await.status, status, "{path}");
    }
    assert_eq!(post(&house, "/api/pull", r#"{"model":"m"}"#).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_roles_and_keys_choose_the_rule() {
    let digest = sha256("second-key");
    let rules = format!(
        "[groups]\nstudents = ['s*', 'anna']\n[roles]\nadmin = ['boss']\n\
         [[key]]\nname = 'lab'\nowner = 'boss'\nsha256 = '{digest}'\nmodels = ['small*', 'big*']\n\
         [[rule]]\nkeys = ['lab']\nmodels = ['big*', 'huge*']\n\
         [[rule]]\ngroups = ['students']\nmodels = ['small*']\n\
         [[rule]]\nroles = ['admin']\nmodels = []\n"
    );
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules(&rules)).await;
    let ask = async |login: &str, model: &str| {
        let body = format!("{{\"model\":\"{model}\"}}");
        house.ask(request("POST", "/api/chat", login, "", &body)).await.status
    };
    assert_eq!(ask(&bearer(), "small").await, 200);
    assert_eq!(ask(&basic(), "small").await, 200);
    assert_eq!(ask(&bearer(), "big").await, 403);
    // The key has fewer rights than its rule, and the rule fewer than the key.
    assert_eq!(ask("Bearer second-key", "big").await, 200);
    assert_eq!(ask("Bearer second-key", "small").await, 403);
    assert_eq!(ask("Bearer second-key", "huge").await, 403);
    let me = async |login: &str| {
        let me = house.ask(request("GET", "/_portcullis/me", login, "", "")).await.json();
        (me["models"].clone(), me["key_models"].clone())
    };
    assert_eq!(me(&bearer()).await, (json!(["small*"]), Value::Null));
    let both = (json!(["big*", "huge*"]), json!(["small*", "big*"]));
    assert_eq!(me("Bearer second-key").await, both);
    // What is said to be allowed would be.
    let small = r#"{"model":"small"}"#;
    let refused = house.ask(request("POST", "/api/chat", "Bearer second-key", "", small)).await;
    let says = "boss may not use small; allowed are those of big*, huge* (the rule's) that are among \
                small*, big* (the key's) as well";
    assert_eq!(refused.json()["error"], says);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_rule_and_a_key_the_narrower_list_is_told_alone() {
    let digest = sha256("second-key");
    for (rule, key, told) in [
        ("'all'", "['small*']", json!(["small*"])),
        ("['small*', 'big*']", "'all'", json!(["small*", "big*"])),
        ("['small*', 'big*']", "['small:1b']", json!(["small:1b"])),
        ("['small:1b']", "['small*', 'big*']", json!(["small:1b"])),
        ("'all'", "'all'", json!("all")),
    ] {
        let rules = format!(
            "[[key]]\nname = 'lab'\nsha256 = '{digest}'\nmodels = {key}\n[[rule]]\nmodels = {rule}\n"
        );
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(&rules)).await;
        let me = request("GET", "/_portcullis/me", "Bearer second-key", "", "");
        let me = house.ask(me).await.json();
        assert_eq!((&me["models"], me.get("key_models")), (&told, None), "{rules}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_configuration_counts_until_it_expires_and_from_where_it_may() {
    let events = events();
    for (name, more, fault) in [
        ("lab", "", None),
        ("lasting", "expires = '2999-01-01'\n", None),
        ("old", "expires = '2020-01-01'\n", Some("expired")),
        ("local", "networks = ['127.0.0.0/8']\n", None),
        (
            "elsewhere",
            "networks = ['10.0.0.0/8']\n",
            Some("used from another network than it is for"),
        ),
    ] {
        let digest = sha256("second-key");
        let rules = format!("[[key]]\nname = '{name}'\nrole = 'user'\nsha256 = '{digest}'\n{more}");
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(&rules)).await;
        let request = request("GET", "/_portcullis/me", "Bearer second-key", "", "");
        let answer = house.ask(request).await;
        let told = (answer.status, answer.json()["name"].clone(), answer.json()["role"].clone());
        let Some(fault) = fault else {
            assert_eq!(told, (200, json!(name), json!("user")), "{more}");
            continue;
        };
        // Only whoever runs the gate hears what is wrong.
        assert_eq!((answer.status, answer.code()), (401, "bad_credentials".to_owned()), "{more}");
        assert!(!answer.text().contains(fault), "{}", answer.text());
        let line = format!("a key was not taken: {fault} key=\"{name}\" client=127.0.0.1");
        until(&line, || events.text().contains(&line).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_end_asks_for_its_users_and_nobody_else_may() {
    let digest = sha256("webui-key");
    let rules = format!(
        "[[key]]\nname = 'openwebui'\nsha256 = '{digest}'\n\
         [[rule]]\nnames = ['openwebui']\nacts_for = 'x-openwebui-user-id'\nmodels = ['small*']\n\
         [[rule]]\nnames = ['anna']\nmodels = 'all'\n"
    );
    let backend = Backend::ok().await;
    let house = House::with(&backend, with_rules(&rules)).await;
    let name = async |login: &str, headers: &str| {
        let request = request("GET", "/_portcullis/me", login, headers, "");
        let answer = house.ask(request).await;
        (answer.status, answer.json()["name"].as_str().map(str::to_owned))
    };
    let (webui, anna) = ("Bearer webui-key", bearer());
    let user = "X-OpenWebUI-User-Id: 4f2-a\r\n";
    assert_eq!(name(webui, user).await, (200, Some("openwebui/4f2-a".to_owned())));
    assert_eq!(name(webui, "").await, (200, Some("openwebui".to_owned())));
    assert_eq!(name(&anna, user).await, (200, Some("anna".to_owned())));
    for odd in ["a/b", "", "a b", "\u{e4}", &"x".repeat(129)] {
        let answer = name(webui, &format!("X-OpenWebUI-User-Id: {odd}\r\n")).await;
        assert_eq!(answer.0, 400, "{odd:?}");
    }
    assert_eq!(name(webui, &format!("{user}{user}")).await.0, 400);
    // Never more rights than the key, and the header goes no further.
    let ask = request("POST", "/api/chat", webui, user, r#"{"model":"big"}"#);
    assert_eq!(house.ask(ask).await.status, 403);
    let ask = request("POST", "/api/chat", webui, user, r#"{"model":"small"}"#);
    assert_eq!(house.ask(ask).await.status, 200);
    assert_eq!(backend.seen()[0].header("x-openwebui-user-id"), None);
    let lines = house.lines().await;
    assert_eq!(lines.last().unwrap()["name"], "openwebui/4f2-a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_end_asks_for_its_users_by_the_rule_that_is_its_own() {
    let front = "acts_for = 'x-user'\n";
    for (rules, name) in [
        (format!("[[rule]]\nnames = ['anna']\n{front}"), "anna/u"),
        (format!("[[rule]]\nnames = ['anna']\n[[rule]]\nnames = ['anna']\n{front}"), "anna"),
        (format!("[[rule]]\nroles = ['operator']\n[[rule]]\nnames = ['anna']\n{front}"), "anna"),
        (format!("[[rule]]\nnames = ['anna']\nroles = ['admin']\n{front}"), "anna"),
        (format!("[[rule]]\nnames = ['anna']\nroles = ['operator']\n{front}"), "anna/u"),
        (
            format!("[groups]\ng = ['bert']\n[[rule]]\nnames = ['anna']\ngroups = ['g']\n{front}"),
            "anna",
        ),
        (
            format!("[groups]\ng = ['a*']\n[[rule]]\nnames = ['anna']\ngroups = ['g']\n{front}"),
            "anna/u",
        ),
        (format!("[[rule]]\nkeys = ['lab']\n[[rule]]\nnames = ['anna']\n{front}"), "anna/u"),
    ] {
        let backend = Backend::ok().await;
        let house = House::with(&backend, with_rules(&rules)).await;
        let ask = request("GET", "/_portcullis/me", &bearer(), "X-User: u\r\n", "");
        assert_eq!(house.ask(ask).await.json()["name"], name, "{rules}");
    }
}

fn sha256(key: &str) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// Who asks, in the matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Nobody,
    User,
    /// With a rule for two models.
    Narrow,
    Operator,
    Admin,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Passes,
    /// Answered by the gate itself, whoever asks.
    Own,
    Refused(u16, &'static str),
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_for_every_kind_of_caller() {
    for who in [Who::Nobody, Who::User, Who::Narrow, Who::Operator, Who::Admin] {
        let backend = Backend::ok().await;
        let house = House::with(&backend, |config, folder| {
            let rules = if who == Who::Narrow { TWO } else { "" };
            with_rules(rules)(config, folder);
            config.failed_attempts_per_minute = 0;
            config.roles = Roles::new(
                match who {
                    Who::Nobody | Who::User | Who::Narrow => Role::User,
                    Who::Operator => Role::Operator,
                    Who::Admin => Role::Admin,
                },
                Vec::new(),
            );
        })
        .await;
        let each = ENDPOINTS.iter().flat_map(|row| row.methods.iter().map(move |it| (row, it)));
        for (row, method) in each {
            for model in ["big", "small"] {
                let before = backend.seen().len();
                let mut caller = house.connect().await;
                caller.send(asked(row, method, who, model)).await;
                let answer = caller.answer_to(method.as_str()).await;
                let fate = fate(row, method, who, model);
                let told = format!("{who:?} {method} {} {model}: {}", row.path, answer.text());
                let went_on: Vec<_> =
                    backend.seen()[before..].iter().map(|seen| seen.line().to_owned()).collect();
                let expected = match fate {
                    Fate::Passes => {
                        vec![format!("{method} {} HTTP/1.1", row.path.replace('*', model))]
                    }
                    Fate::Own | Fate::Refused(..) => Vec::new(),
                };
                assert_eq!(went_on, expected, "{told}");
                let Fate::Refused(status, code) = fate else {
                    assert_eq!(answer.status, 200, "{told}");
                    continue;
                };
                assert_eq!(answer.status, status, "{told}");
                assert!(method == Method::HEAD || answer.code() == code, "{told}");
            }
        }
    }
}

fn asked(row: &Endpoint, method: &Method, who: Who, model: &str) -> String {
    let path = row.path.replace('*', model);
    let login = if who == Who::Nobody { "none".to_owned() } else { bearer() };
    let (kind, body) = match row.model {
        ModelIn::Body => ("", format!("{{\"model\":\"{model}\"}}")),
        ModelIn::BothEnds => {
            ("", format!("{{\"source\":\"{model}\",\"destination\":\"{model}\"}}"))
        }
        ModelIn::Form => (
            "Content-Type: multipart/form-data; boundary=x\r\n",
            format!(
                "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--x--\r\n"
            ),
        ),
        ModelIn::Nowhere | ModelIn::Path | ModelIn::Perhaps => ("", String::new()),
    };
    request(method.as_str(), &path, &login, kind, &body)
}

fn fate(row: &Endpoint, method: &Method, who: Who, model: &str) -> Fate {
    if row.path == "/" && *method == Method::HEAD {
        return Fate::Own;
    }
    let held = match who {
        Who::Nobody => return Fate::Refused(401, "bad_credentials"),
        Who::User | Who::Narrow => Role::User,
        Who::Operator => Role::Operator,
        Who::Admin => Role::Admin,
    };
    if held < row.class.needs() {
        return Fate::Refused(403, "forbidden");
    }
    let bars = who == Who::Narrow && row.model != ModelIn::Nowhere && model == "big";
    if bars { Fate::Refused(403, "model_forbidden") } else { Fate::Passes }
}
