//! Several backends that answer together: lists made of theirs, and calls that manage models.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis::config::{BackendKind, Config, Models, NamedBackends, Rule};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::house::{
    Answer, Backend, Caller, House, KEY, Seen, Step, chunk, get, ok_json, post, stream_head, until,
};
use crate::ledger;

/// A gate before these, under the names a, b, c.
async fn before(backends: &[&Backend], change: impl FnOnce(&mut Config)) -> House {
    House::with(backends[0], |config, _| {
        let one = config.backends.remove(0);
        for (name, backend) in ["a", "b", "c", "d"].iter().zip(backends) {
            let mut one = one.clone();
            one.name = (*name).to_owned();
            one.url = format!("http://{}", backend.address).parse().unwrap();
            config.backends.push(one);
        }
        change(config);
    })
    .await
}

fn path(seen: &Seen) -> String {
    seen.line().split(' ').nth(1).unwrap().to_owned()
}

fn model(name: &str, modified_at: &str) -> Value {
    json!({"name": name, "model": name, "modified_at": modified_at, "size": 1})
}

/// An Ollama with these models, all of them in memory.
async fn ollama(models: Vec<Value>, version: &'static str) -> Backend {
    Backend::scripted(move |seen| {
        let ids: Vec<_> = models.iter().map(|it| json!({"id": it["name"], "created": 1})).collect();
        let body = match path(seen).as_str() {
            "/api/tags" | "/api/ps" => json!({"models": models}),
            "/v1/models" => json!({"object": "list", "data": ids}),
            "/api/version" => json!({"version": version}),
            _ => json!({"status": "success"}),
        };
        vec![Step::Send(ok_json(&body.to_string()).into())]
    })
    .await
}

/// What becomes of requests for lists; to all else it says success.
async fn listing(script: impl Fn() -> Vec<Step> + Send + Sync + 'static) -> Backend {
    Backend::scripted(move |seen| match path(seen).as_str() {
        "/api/tags" | "/api/ps" | "/v1/models" | "/api/version" => script(),
        _ => vec![Step::Send(ok_json("{\"status\":\"success\"}").into())],
    })
    .await
}

fn sends(body: &str) -> Vec<Step> {
    vec![Step::Send(ok_json(body).into())]
}

fn listed(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{} {}", answer.head, answer.text());
    let list = answer.json();
    let models = list["models"].as_array().or(list["data"].as_array()).unwrap();
    let name = |it: &Value| it["name"].as_str().or(it["id"].as_str()).unwrap().to_owned();
    models.iter().map(name).collect()
}

fn managed_by(manage: Vec<NamedBackends>) -> Vec<Rule> {
    vec![Rule { cloud: true, manage, ..Rule::default() }]
}

fn each(names: &[&str]) -> Vec<NamedBackends> {
    names.iter().map(|name| NamedBackends::Name((*name).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_made_of_those_of_all_backends() {
    let old = model("gemma3:12b", "2025-01-01T00:00:00Z");
    let mut new = model("Gemma3:12b", "2026-01-01T00:00:00+02:00");
    new["size"] = json!(2);
    let first = ollama(vec![old, model("qwen3:latest", "2024-01-01T00:00:00Z")], "0.10.1").await;
    let second = ollama(vec![new], "0.9.3").await;
    let cpp = listing(|| sends(r#"{"data":[{"id":"phi4","created":9}]}"#)).await;
    let house = before(&[&first, &second, &cpp], |config| {
        config.backends[2].kind = BackendKind::OpenAi;
    })
    .await;
    let tags = house.get("/api/tags").await;
    assert_eq!(listed(&tags), ["Gemma3:12b", "qwen3:latest"]);
    assert_eq!(tags.json()["models"][0]["size"], 2);
    assert_eq!(tags.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(listed(&house.get("/v1/models").await), ["phi4", "gemma3:12b", "qwen3:latest"]);
    let running = house.get("/api/ps").await.json();
    let places = running["models"].as_array().unwrap();
    let places: Vec<_> = places.iter().map(|it| it["backend"].as_str().unwrap()).collect();
    assert_eq!(places, ["a", "a", "b"]);
    assert_eq!(house.get("/api/version").await.json(), json!({"version": "0.9.3"}));
    let mut caller = house.connect().await;
    caller.send(get("/api/tags").replace("GET", "HEAD")).await;
    let head = caller.answer_to("HEAD").await;
    assert_eq!(head.header("content-length"), tags.header("content-length"));
    assert!(cpp.asked_by_the_gate().iter().all(|it| path(it) == "/v1/models"));
    assert!(first.seen().is_empty(), "the gate asks in its own name");
    let lines = house.lines().await;
    assert_eq!(lines.len(), 5);
    for line in lines {
        assert!(line["backend"].is_null() && line["outcome"] == "done", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_several_is_narrowed_to_what_may_be_used() {
    let first = ollama(vec![model("gemma3:12b", ""), model("qwen3:latest", "")], "1").await;
    let second = ollama(vec![model("gemma3:27b", ""), model("phi4:latest", "")], "1").await;
    let house = before(&[&first, &second], |config| {
        let models = Models::Only(vec!["gemma3*".parse().unwrap()]);
        config.rules = vec![Rule { models, ..Rule::default() }];
    })
    .await;
    for path in ["/api/tags", "/api/ps", "/v1/models"] {
        assert_eq!(listed(&house.get(path).await), ["gemma3:12b", "gemma3:27b"], "{path}");
    }
    assert_eq!(house.get("/api/version").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_dead_or_talks_nonsense_is_filled_from_its_last_list() {
    let is_well = Arc::new(AtomicBool::new(true));
    let ill = |name: &'static str, illness: fn() -> Vec<Step>| {
        let is_well = Arc::clone(&is_well);
        let body = json!({"models": [model(name, "")], "version": "1"}).to_string();
        listing(move || if is_well.load(Ordering::Relaxed) { sends(&body) } else { illness() })
    };
    let silent = ill("silent:latest", || vec![Step::AwaitClose]).await;
    let dead = ill("dead:latest", || vec![Step::Reset]).await;
    let web = ill("web:latest", || sends("<html>not a model server</html>")).await;
    let well = ollama(vec![model("well:latest", "")], "2").await;
    let house = before(&[&silent, &dead, &web, &well], |_| {}).await;
    let all = ["silent:latest", "dead:latest", "web:latest", "well:latest"];
    assert_eq!(listed(&house.get("/api/tags").await), all);
    is_well.store(false, Ordering::Relaxed);
    let began = Instant::now();
    assert_eq!(listed(&house.get("/api/tags").await), all);
    // 250 ms are promised; a busy machine gets five times as much.
    assert!(began.elapsed() < Duration::from_millis(1250), "{:?}", began.elapsed());
    // Of what was never told there is nothing to fill in.
    assert_eq!(house.get("/api/version").await.json(), json!({"version": "2"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_backends_are_asked_for_a_list_before_any_has_answered() {
    let bells: Arc<Vec<Notify>> = Arc::new((0..3).map(|_| Notify::new()).collect());
    let asked = Arc::new(AtomicUsize::new(0));
    let mut backends = Vec::new();
    for (number, name) in ["a:latest", "b:latest", "c:latest"].into_iter().enumerate() {
        let (bells, asked) = (Arc::clone(&bells), Arc::clone(&asked));
        let backend = Backend::raw(move |socket, _| {
            let (bells, asked) = (Arc::clone(&bells), Arc::clone(&asked));
            async move {
                let mut caller = Caller::over(socket);
                if caller.sees("GET /v1/models").await {
                    if asked.fetch_add(1, Ordering::Relaxed) == 2 {
                        bells.iter().for_each(Notify::notify_one);
                    }
                    bells[number].notified().await;
                    caller.send(ok_json(&json!({"data": [{"id": name}]}).to_string())).await;
                }
                caller.rest().await;
            }
        });
        backends.push(backend.await);
    }
    let house = before(&backends.iter().collect::<Vec<_>>(), |_| {}).await;
    assert_eq!(listed(&house.get("/v1/models").await), ["a:latest", "b:latest", "c:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_backend_tells_the_caller_hears_why() {
    let web = listing(|| sends("<html>")).await;
    let other = listing(|| vec![Step::Send(b"no HTTP\r\n\r\n".to_vec()), Step::Close]).await;
    let house = before(&[&web, &other], |_| {}).await;
    let answer = house.get("/api/tags").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "backend_failed"));
    let house = before(&[&web, &other], |config| {
        config.backends[0].url = "http://127.0.0.1:1".parse().unwrap();
        config.backends[1].url = "http://127.0.0.1:1".parse().unwrap();
    })
    .await;
    let answer = house.get("/v1/models").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_backend"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_with_a_hundred_thousand_hostile_names_is_listed_like_others() {
    let name = |n: usize| match n % 4 {
        0 => format!("m{n}:latest"),
        1 => format!("\\u0000<script>{n}</script>\\\"\\n"),
        2 => format!("../../{n}/%00/\\ud83d\\ude00"),
        _ => format!("{}{n}", "x".repeat(200)),
    };
    let entries: Vec<_> = (0..100_000)
        .map(|n| format!(r#"{{"name":"{}","size":[[{{"a":{{}}}}]]}}"#, name(n)))
        .collect();
    let body = format!(r#"{{"models":[{}]}}"#, entries.join(","));
    let hostile = listing(move || sends(&body)).await;
    let modest = ollama(vec![model("gemma3:latest", "2026-01-01T00:00:00Z")], "1").await;
    let house = before(&[&hostile, &modest], |_| {}).await;
    // Whether it is told at once depends on the machine.
    let mut names = listed(&house.get("/api/tags").await);
    while names.len() == 1 {
        names = listed(&house.get("/api/tags").await);
    }
    assert_eq!(names.len(), 100_001);
    assert_eq!(names[0], "gemma3:latest");
    assert!(names.contains(&"\0<script>1</script>\"\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_backend_its_own_list_is_forwarded() {
    let body = "{ \"models\" : [ {\"name\":\"a\"}, {\"name\":\"a\"} ], \"more\": 1 }";
    let backend = listing(move || sends(body)).await;
    let house = House::new(&backend).await;
    assert_eq!(house.get("/api/tags").await.text(), body);
    assert_eq!(house.log.wait_for(1).await[0]["backend"], "ollama");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_made_through_the_gate_is_in_the_next_list_also_of_who_is_slow() {
    let (is_there, told) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
    let (there, tells) = (Arc::clone(&is_there), Arc::clone(&told));
    let slow = Backend::scripted(move |seen| match path(seen).as_str() {
        "/api/delete" => {
            there.store(false, Ordering::Relaxed);
            vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec())]
        }
        "/api/tags" if there.load(Ordering::Relaxed) => {
            sends(&json!({"models": [model("gone:latest", "")]}).to_string())
        }
        "/api/tags" => {
            vec![Step::Wait(Arc::clone(&tells)), Step::Send(ok_json("{\"models\":[]}").into())]
        }
        _ => sends("{\"models\":[]}"),
    })
    .await;
    let other = ollama(vec![model("other:latest", "")], "1").await;
    let house = before(&[&slow, &other], |_| {}).await;
    assert_eq!(listed(&house.get("/api/tags").await), ["gone:latest", "other:latest"]);
    let body = r#"{"model":"gone"}"#;
    let delete = post("/api/delete", body).replacen("POST", "DELETE", 1);
    assert_eq!(house.ask(delete).await.status, 200);
    let mut caller = house.connect().await;
    caller.send(get("/api/tags")).await;
    // Longer than the gate waits for lists that have not changed.
    tokio::time::sleep(Duration::from_millis(350)).await;
    told.notify_waiters();
    assert_eq!(listed(&caller.answer().await), ["other:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn show_goes_to_who_has_the_model() {
    let first = ollama(vec![model("gemma3:latest", "")], "1").await;
    let second = ollama(vec![model("qwen3:latest", "")], "1").await;
    let house = before(&[&first, &second], |_| {}).await;
    assert_eq!(house.ask(post("/api/show", r#"{"model":"qwen3"}"#)).await.status, 200);
    assert_eq!(house.log.wait_for(1).await[0]["backend"], "b");
    assert_eq!(house.ask(post("/api/show", r#"{"model":"gemma3"}"#)).await.status, 200);
    assert_eq!(house.log.wait_for(2).await[1]["backend"], "a");
    assert_eq!(house.get("/v1/models/qwen3").await.status, 200);
    assert_eq!(house.log.wait_for(3).await[2]["backend"], "b");
}

/// The lines of an answer that several made, in the order of their names.
fn by_backend(answer: &Answer) -> Vec<Value> {
    let mut lines: Vec<Value> =
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["backend"].to_string());
    lines
}

/// A pull with more headers.
fn pull(headers: &str) -> String {
    let body = r#"{"model":"phi4"}"#;
    format!(
        "POST /api/pull HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n{headers}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn two() -> (Backend, Backend) {
    (
        ollama(vec![model("gemma3:latest", "")], "1").await,
        ollama(vec![model("qwen3:latest", "")], "1").await,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_manages_models_goes_to_who_is_named_or_else_to_who_is_to_manage() {
    let (first, second) = two().await;
    let cpp = listing(|| sends("{\"data\":[]}")).await;
    let kinds = |config: &mut Config| config.backends[0].kind = BackendKind::OpenAi;
    let house = before(&[&cpp, &first, &second], kinds).await;
    assert_eq!(house.ask(pull("")).await.status, 200);
    assert_eq!(house.log.wait_for(1).await[0]["backend"], "b");
    assert_eq!(house.ask(pull("X-Portcullis-Backend: c\r\n")).await.status, 200);
    assert_eq!(house.log.wait_for(2).await[1]["backend"], "c");
    assert_eq!(second.seen()[0].header("x-portcullis-backend"), None);
    for (headers, code) in [
        ("x-portcullis-backend: nobody\r\n", "bad_request"),
        // Has no such call.
        ("x-portcullis-backend: a\r\n", "bad_request"),
        ("x-portcullis-backend: b\r\nx-portcullis-backend: b\r\n", "bad_request"),
    ] {
        let answer = house.ask(pull(headers)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{headers}");
    }
    assert!(cpp.seen().is_empty());
    let house = before(&[&cpp], |config| config.backends[0].kind = BackendKind::OpenAi).await;
    assert_eq!(house.ask(pull("")).await.status, 404);
    assert_eq!(house.log.wait_for(1).await[0]["outcome"], "refused:unknown_model");
    assert!(cpp.seen().is_empty());
    let house = before(&[&first, &second], |config| config.backends[1].manage = true).await;
    assert_eq!(house.ask(pull("")).await.status, 200);
    assert_eq!(house.log.wait_for(1).await[0]["backend"], "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_maintenance_models_are_managed_only_by_who_names_the_backend() {
    let (first, second) = two().await;
    let house = before(&[&first, &second], |_| {}).await;
    house.gateway.state().pool().backend("a").unwrap().drain(true);
    let answer = house.ask(pull("")).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_backend"));
    house.log.wait_for(1).await;
    assert!(!first.seen().iter().chain(&second.seen()).any(|seen| path(seen) == "/api/pull"));
    assert_eq!(house.ask(pull("x-portcullis-backend: a\r\n")).await.status, 200);
    assert_eq!(house.log.wait_for(2).await[1]["backend"], "a");
    let house = before(&[&first, &second], |config| {
        config.rules = managed_by(each(&["a", "b"]));
    })
    .await;
    house.gateway.state().pool().backend("b").unwrap().drain(true);
    let answer = house.ask(pull("")).await;
    let lines = by_backend(&answer);
    assert_eq!(lines[0], json!({"backend": "a", "status": "success"}));
    assert_eq!((&lines[1]["backend"], &lines[1]["code"]), (&json!("b"), &json!("no_backend")));
    assert!(!second.seen().iter().any(|seen| path(seen) == "/api/pull"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backend_is_named_as_one_of_several() {
    let backend = ollama(vec![], "1").await;
    let house = House::new(&backend).await;
    assert_eq!(house.ask(pull("x-portcullis-backend: ollama\r\n")).await.status, 200);
    assert_eq!(house.ask(pull("x-portcullis-backend: other\r\n")).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_copied_or_pushed_is_so_where_it_is() {
    let (first, second) = two().await;
    let house = before(&[&first, &second], |_| {}).await;
    let delete = |model: &str| {
        post("/api/delete", &format!(r#"{{"model":"{model}"}}"#)).replacen("POST", "DELETE", 1)
    };
    let copy = post("/api/copy", r#"{"source":"qwen3","destination":"mine"}"#);
    let wanted = [
        (delete("qwen3"), "b"),
        (delete("gemma3"), "a"),
        // Says itself that it is not there.
        (delete("nowhere"), "a"),
        (copy, "b"),
        (post("/api/push", r#"{"model":"qwen3"}"#), "b"),
    ];
    for (at, (request, place)) in wanted.iter().enumerate() {
        assert_eq!(house.ask(request).await.status, 200, "{request}");
        assert_eq!(house.log.wait_for(at + 1).await[at]["backend"], *place, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_has_models_managed_on_several_backends_and_each_line_says_on_which() {
    let go = Arc::new(Notify::new());
    let goes = Arc::clone(&go);
    let first = Backend::scripted(move |seen| match path(seen).as_str() {
        "/api/pull" => vec![
            Step::Send(stream_head("application/x-ndjson").into()),
            Step::Send(chunk("{\"status\":\"pulling manifest\"}\n{\"sta").into()),
            Step::Wait(Arc::clone(&goes)),
            Step::Send(chunk("tus\":\"success\"}\n").into()),
            Step::Send(b"0\r\n\r\n".to_vec()),
        ],
        _ => sends("{\"models\":[]}"),
    })
    .await;
    let second = Backend::scripted(|seen| match path(seen).as_str() {
        "/api/pull" => {
            let says = "{\"error\":\"no space left\"}";
            let head = "HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\nContent-Length: ";
            vec![Step::Send(format!("{head}{}\r\n\r\n{says}", says.len()).into())]
        }
        _ => sends("{\"models\":[]}"),
    })
    .await;
    let third = listing(|| sends("{\"models\":[]}")).await;
    let house = before(&[&first, &second, &third], |config| {
        config.backends[0].tags = vec!["lab".to_owned()];
        let lab = NamedBackends::Tag("lab".to_owned());
        config.rules = managed_by([vec![lab], each(&["b"])].concat());
    })
    .await;
    let mut caller = house.connect().await;
    caller.send(pull("")).await;
    assert!(caller.sees_content("no space left").await);
    assert!(caller.sees_content("pulling manifest").await);
    go.notify_one();
    let answer = caller.answer().await;
    assert!(answer.whole && answer.status == 200, "{}", answer.head);
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let text = answer.text();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            r#"{"backend":"a","status":"pulling manifest"}"#,
            r#"{"backend":"a","status":"success"}"#,
            r#"{"backend":"b","error":"no space left"}"#,
        ]
    );
    let line = &house.log.wait_for(1).await[0];
    assert_eq!((&line["backend"], &line["outcome"]), (&json!("a+b"), &json!("backend_failed")));
    // The rule is also a bound.
    let answer = house.ask(pull("x-portcullis-backend: c\r\n")).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"));
    assert_eq!(house.ask(pull("x-portcullis-backend: b\r\n")).await.status, 500);
    assert!(third.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_several_leaves_one_row_before_its_last_line_goes() {
    let (first, second) = two().await;
    let data = tempfile::tempdir().unwrap();
    let house = before(&[&first, &second], |config| {
        config.data_dir = Some(data.path().join("data"));
        config.rules = managed_by(each(&["a", "b"]));
    })
    .await;
    // A row that cannot be written is late, and only an answer that waits for it finds that out.
    let (folder, aside) = (data.path().join("data"), data.path().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    assert!(house.ask(pull("")).await.whole);
    let counts = house.gateway.ledger().unwrap();
    assert_eq!(counts.late(), 1);
    std::fs::rename(&aside, &folder).unwrap();
    until("the journal", || (counts.waiting() == 0).then_some(())).await;
    let mut caller = house.connect().await;
    for count in 2..=5 {
        caller.send(pull("")).await;
        let answer = caller.answer().await;
        assert!(answer.whole && answer.text().lines().count() == 2, "{}", answer.text());
        let row = ledger::rows_in_time(&house, count).await.pop().unwrap();
        assert_eq!((row.operation.as_str(), row.backend.as_str()), ("pull", "a+b"));
        assert_eq!((row.outcome.as_str(), row.status, row.usage.tokens()), ("done", 200, 0));
        assert_eq!(row.bytes_out, answer.body.len() as u64);
        assert!(row.backend_time > Duration::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_that_cannot_be_reached_is_a_line_of_the_answer() {
    let (first, second) = two().await;
    let house = before(&[&first, &second], |config| {
        config.backends[1].url = "http://127.0.0.1:1".parse().unwrap();
        config.rules = managed_by(each(&["a", "b"]));
    })
    .await;
    let answer = house.ask(pull("")).await;
    let lines = by_backend(&answer);
    assert_eq!(lines[0], json!({"backend": "a", "status": "success"}));
    assert_eq!((&lines[1]["backend"], &lines[1]["code"]), (&json!("b"), &json!("no_backend")));
    assert_eq!(house.log.wait_for(1).await[0]["outcome"], "backend_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_ends_it_on_every_backend() {
    let pulling = || {
        Backend::scripted(|seen| match path(seen).as_str() {
            "/api/pull" => vec![
                Step::Send(stream_head("application/x-ndjson").into()),
                Step::Send(chunk("{\"status\":\"pulling\"}\n").into()),
                Step::AwaitClose,
            ],
            _ => sends("{\"models\":[]}"),
        })
    };
    let (first, second) = (pulling().await, pulling().await);
    let house = before(&[&first, &second], |config| {
        config.rules = managed_by(each(&["a", "b"]));
    })
    .await;
    let mut caller = house.connect().await;
    caller.send(pull("")).await;
    assert!(caller.sees_content("\"backend\":\"a\"").await);
    assert!(caller.sees_content("\"backend\":\"b\"").await);
    drop(caller);
    let line = &house.log.wait_for(1).await[0];
    assert_eq!((&line["backend"], &line["outcome"]), (&json!("a+b"), &json!("client_gone")));
    for backend in [&first, &second] {
        backend.wait_for_closed(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_and_what_is_made_of_them_go_to_one_backend() {
    let (first, second) = two().await;
    let house = before(&[&first, &second], |config| {
        config.rules = managed_by(each(&["b", "a"]));
    })
    .await;
    let digest = format!("sha256:{}", "a".repeat(64));
    let blob = post(&format!("/api/blobs/{digest}"), "GGUF");
    assert_eq!(house.ask(blob).await.status, 200);
    let create = format!(r#"{{"model":"mine","files":{{"a.gguf":"{digest}"}}}}"#);
    assert_eq!(house.ask(post("/api/create", &create)).await.status, 200);
    let lines = house.log.wait_for(2).await;
    assert_eq!((&lines[0]["backend"], &lines[1]["backend"]), (&json!("a"), &json!("a")));
    assert!(second.seen().is_empty());
    // Of a model that is there nothing else is needed.
    let answer = house.ask(post("/api/create", r#"{"model":"mine","from":"gemma3"}"#)).await;
    assert_eq!(answer.text().lines().count(), 2);
}
