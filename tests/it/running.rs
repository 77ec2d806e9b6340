//! Who runs and who waits, as the gate tells it; ending a request wherever it is; taking out a backend.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis::config::{AtOnce, Pattern, Role, Roles};
use portcullis::store::{RowsQuery, Store, UsageEntry, UsageFilter};
use serde_json::{Value, json};

use crate::house::{
    Answer, Backend, Caller, House, PATIENCE, SOON, Step, chunk, ok_json, stream_head, until,
};

const TOKEN: &str = "{\"model\":\"m\",\"message\":{\"content\":\"a\"},\"done\":false}\n";

/// Works on one request at a time, and on each until the gate hangs up: of the model `silent` without a
/// word, of others it has begun to answer.
async fn busy_backend() -> Backend {
    Backend::scripted(|seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        if body.contains("silent") {
            return vec![Step::AwaitClose];
        }
        if body.contains("short") {
            return vec![Step::Send(ok_json("{\"done\":true}").into())];
        }
        let begins = stream_head("application/x-ndjson") + &chunk(TOKEN) + &chunk(TOKEN);
        vec![Step::Send(begins.into()), Step::AwaitClose]
    })
    .await
}

async fn house(backend: &Backend) -> House {
    House::with(backend, |config, folder| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.data_dir = Some(folder.path().join("data"));
        config.backends[0].parallel = NonZeroU32::new(1).map(AtOnce::AtMost);
        let keys = ["boss", "eye", "anna", "bert"].map(|name| format!("key-of-{name} # {name}\n"));
        std::fs::write(folder.path().join("api_keys.txt"), keys.concat()).unwrap();
        let named = vec![(Pattern::new("boss"), Role::Admin), (Pattern::new("eye"), Role::Viewer)];
        config.roles = Roles::new(Role::User, named);
    })
    .await
}

fn chat(name: &str, model: &str) -> String {
    let body = json!({"model": model, "messages": []}).to_string();
    format!(
        "POST /api/chat HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer key-of-{name}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Asks, and does not wait for an answer.
async fn asks(house: &House, name: &str, model: &str) -> Caller {
    let mut caller = house.connect().await;
    caller.send(chat(name, model)).await;
    caller
}

/// Asks, and has the beginning of an answer.
async fn runs(house: &House, name: &str, model: &str) -> Caller {
    let mut caller = asks(house, name, model).await;
    assert!(caller.sees("\"done\":false").await);
    caller
}

async fn desk_as(house: &House, name: &str, line: &str, body: &str) -> Answer {
    let mut caller = Caller::connect(house.admin.unwrap()).await;
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    caller
        .send(format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key-of-{name}\r\n{kind}\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    caller.answer().await
}

async fn desk(house: &House, line: &str, body: &str) -> Answer {
    desk_as(house, "boss", line, body).await
}

/// The list, once it has so many that run and so many that wait.
async fn listed(house: &House, running: u64, waiting: u64) -> Vec<Value> {
    let began = tokio::time::Instant::now();
    loop {
        let told = desk(house, "GET /api/v1/running", "").await.json();
        if told["running"] == running && told["waiting"] == waiting {
            return told["requests"].as_array().unwrap().clone();
        }
        assert!(began.elapsed() < PATIENCE, "{running} and {waiting}: {told:#}");
    }
}

fn id(request: &Value) -> &str {
    request["id"].as_str().unwrap()
}

async fn stop(house: &House, request: &Value) -> Answer {
    desk(house, &format!("POST /api/v1/running/{}/stop", id(request)), "").await
}

async fn metric(house: &House, name: &str) -> f64 {
    let text = desk(house, "GET /metrics", "").await.text();
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
    line.unwrap_or_else(|| panic!("{name}: {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

async fn me(house: &House, name: &str) -> Value {
    let head = format!(
        "GET /_portcullis/me HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer key-of-{name}\r\n\r\n"
    );
    house.ask(head).await.json()
}

/// How this request ended, by its line in the log.
async fn line_of(house: &House, request: &Value) -> Value {
    let all = || house.log.all().into_iter();
    until("its line", || all().find(|line| line["id"] == request["id"])).await
}

fn rows_of(house: &House, request: &Value) -> Vec<UsageEntry> {
    let store = Store::open_existing(&house.file("data")).unwrap();
    let (since, until) = (Timestamp::MIN, Timestamp::MAX);
    let only = UsageFilter::default();
    let all = store.usage_rows(&RowsQuery { since, until, only, before: None, limit: 1000 });
    let mut all = all.unwrap();
    all.retain(|row| row.id == id(request));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn who_runs_and_who_waits_is_told_to_viewers_and_to_whom_it_concerns() {
    let backend = busy_backend().await;
    let house = house(&backend).await;
    assert_eq!(metric(&house, "portcullis_waiting_requests").await, 0.0);
    let _runs = runs(&house, "anna", "m").await;
    let _first = asks(&house, "bert", "m").await;
    listed(&house, 1, 1).await;
    let _second = asks(&house, "bert", "other").await;
    let all = listed(&house, 1, 2).await;
    let [runs, first, second] = all.as_slice() else { panic!("{all:?}") };
    for (request, name, model, state) in [
        (runs, "anna", "m:latest", "running"),
        (first, "bert", "m:latest", "waiting"),
        (second, "bert", "other:latest", "waiting"),
    ] {
        assert_eq!(request["name"], name, "{request:#}");
        assert_eq!(request["model"], model, "{request:#}");
        assert_eq!(request["state"], state, "{request:#}");
        assert_eq!(request["operation"], "chat");
        assert_eq!(request["class"], "interactive");
        assert_eq!(request["backends"], json!(["ollama"]));
    }
    assert_eq!((&runs["first_byte"], &runs["tokens"]), (&json!(true), &json!(2)), "{runs:#}");
    assert_eq!((&first["position"], &second["position"]), (&json!(1), &json!(2)));
    assert!(second["expected_s"].as_u64() > Some(0), "{second:#}");

    let told = me(&house, "bert").await["waiting"].clone();
    let expected = |it: &Value| {
        json!({"id": it["id"], "model": it["model"], "position": it["position"],
               "expected_s": it["expected_s"]})
    };
    assert_eq!(told, json!([expected(first), expected(second)]));
    assert_eq!(me(&house, "anna").await["waiting"], json!([]), "who runs does not wait");
    assert_eq!(metric(&house, "portcullis_waiting_requests").await, 2.0);
    assert!(metric(&house, "portcullis_longest_wait_seconds").await > 0.0);
    assert!(metric(&house, "portcullis_expected_wait_seconds").await >= 1.0);

    let looks = desk_as(&house, "eye", "GET /api/v1/running?limit=1", "").await.json();
    assert_eq!((&looks["running"], &looks["waiting"]), (&json!(1), &json!(2)), "of all of them");
    assert_eq!(
        looks["requests"].as_array().unwrap().len(),
        1,
        "of the list no more than asked for"
    );
    let looks = desk_as(&house, "eye", "GET /api/v1/backends", "").await.json();
    let one = &looks["backends"][0];
    assert_eq!(one["url"], format!("http://{}", backend.address));
    assert_eq!(
        (&one["up"], &one["drained"], &one["busy"]),
        (&json!(true), &json!(false), &json!(1))
    );
    assert_eq!(one["parallel"], "1 at once (set by parallel)");
    assert_eq!(
        one["models"][0],
        json!({"name": "m:latest", "in_memory": true, "running": 1, "parallel": 1, "parallel_is": "set"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_per_second_are_those_since_the_first_byte() {
    let backend = busy_backend().await;
    let house = house(&backend).await;
    let earliest = Instant::now();
    let _runs = runs(&house, "anna", "m").await;
    let latest = Instant::now();
    assert_eq!(listed(&house, 1, 0).await[0]["tokens_per_second"], Value::Null, "too early to say");
    let began = Instant::now();
    loop {
        let least = latest.elapsed();
        let told = listed(&house, 1, 0).await.remove(0);
        let most = earliest.elapsed();
        if let Some(rate) = told["tokens_per_second"].as_f64() {
            let (slowest, fastest) = (2.0 / most.as_secs_f64(), 2.0 / least.as_secs_f64());
            assert!(rate >= slowest - 0.1 && rate <= fastest + 0.1, "{rate}: {told:#}");
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{told:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_ended_in_the_queue_before_the_first_byte_and_in_the_stream() {
    let backend = busy_backend().await;
    let house = house(&backend).await;
    let mut streams = runs(&house, "anna", "m").await;
    let mut silent = asks(&house, "anna", "silent").await;
    listed(&house, 1, 1).await;
    let mut waits = asks(&house, "bert", "m").await;
    let all = listed(&house, 1, 2).await;
    let by = |name: &str, model: &str| {
        let is_it = |it: &&Value| it["name"] == name && it["model"] == format!("{model}:latest");
        all.iter().find(is_it).unwrap()
    };

    let stopped = stop(&house, by("bert", "m")).await;
    assert_eq!((stopped.status, stopped.json()), (200, json!({"stopped": 1})));
    let told = waits.answer().await;
    assert_eq!((told.status, told.code()), (503, "stopped".into()), "in the queue");
    let line = line_of(&house, by("bert", "m")).await;
    assert_eq!((&line["outcome"], &line["backend"]), (&json!("stopped"), &Value::Null), "{line}");
    assert_eq!(backend.seen().len(), 1, "no backend ever saw it");

    let began = Instant::now();
    assert_eq!(stop(&house, by("anna", "m")).await.status, 200);
    backend.wait_for_closed(1).await;
    assert!(began.elapsed() < SOON, "the backend was told after {:?}", began.elapsed());
    let told = streams.answer().await;
    assert_eq!((told.status, told.whole), (200, false), "in the stream");
    let last = told.text().lines().last().unwrap().to_owned();
    assert!(last.contains("whoever runs this gate ended the request"), "{last}");
    let line = line_of(&house, by("anna", "m")).await;
    assert_eq!((&line["outcome"], &line["status"]), (&json!("stopped"), &json!(200)), "{line}");
    let row = until("its row", || rows_of(&house, by("anna", "m")).into_iter().next()).await;
    assert_eq!(row.usage.completion, 2, "what was made is charged");

    // Its slot was given to the next at once.
    backend.wait_for_request(2).await;
    listed(&house, 1, 0).await;
    assert_eq!(stop(&house, by("anna", "silent")).await.status, 200);
    let told = silent.answer().await;
    assert_eq!((told.status, told.code()), (503, "stopped".into()), "before the first byte");
    backend.wait_for_closed(2).await;
    assert_eq!(line_of(&house, by("anna", "silent")).await["outcome"], "stopped");
    until("its row", || rows_of(&house, by("anna", "silent")).into_iter().next()).await;

    listed(&house, 0, 0).await;
    assert_eq!(house.ask(chat("anna", "short")).await.status, 200, "the slot is free");
    for request in &all {
        assert!(rows_of(&house, request).len() <= 1, "{request}");
    }
    assert!(rows_of(&house, by("bert", "m")).is_empty(), "no backend began it");
    let again = stop(&house, by("anna", "m")).await;
    assert_eq!((again.status, again.code()), (404, "not_found".into()), "it has ended");
    let odd = desk(&house, "POST /api/v1/running/anna/stop", "").await;
    assert_eq!((odd.status, odd.code()), (404, "not_found".into()), "that is no id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_which_nothing_is_taken_is_ended_as_soon() {
    let backend = Backend::scripted(|_| {
        let piece = chunk(&TOKEN.repeat(1000));
        let head = stream_head("application/x-ndjson");
        vec![Step::Send(head.into()), Step::Flood(piece.into(), 1000), Step::AwaitClose]
    })
    .await;
    let house = house(&backend).await;
    let _takes_nothing = asks(&house, "anna", "m").await;
    let mut sent = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = backend.bytes_sent();
        if now > 0 && now == sent {
            break; // every buffer is full
        }
        sent = now;
    }
    let all = listed(&house, 1, 0).await;
    assert_eq!(stop(&house, &all[0]).await.status, 200);
    backend.wait_for_closed(1).await;
    assert_eq!(line_of(&house, &all[0]).await["outcome"], "stopped");
    listed(&house, 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_caller_is_ended_and_nothing_of_another_and_it_is_in_the_trail() {
    let backend = busy_backend().await;
    let house = house(&backend).await;
    let mut callers = vec![runs(&house, "anna", "m").await];
    for _ in 0..3 {
        callers.push(asks(&house, "anna", "m").await);
    }
    let mut other = asks(&house, "bert", "m").await;
    listed(&house, 1, 4).await;
    let line = "POST /api/v1/running/stop";
    let nobody = desk(&house, line, r#"{"name":"carl"}"#).await;
    assert_eq!((nobody.status, nobody.json()), (200, json!({"stopped": 0})));
    let viewer = desk_as(&house, "eye", line, r#"{"name":"anna"}"#).await;
    assert_eq!((viewer.status, viewer.code()), (403, "forbidden".into()));
    let stopped = desk(&house, line, r#"{"name":"anna"}"#).await;
    assert_eq!((stopped.status, stopped.json()), (200, json!({"stopped": 4})));
    let mut told: Vec<_> = Vec::new();
    for caller in &mut callers {
        told.push(caller.answer().await.status);
    }
    assert_eq!(told, [200, 503, 503, 503]);
    assert!(other.sees("\"done\":false").await, "it has its turn now");
    let trail = desk(&house, "GET /api/v1/audit?subject=anna", "").await.json();
    let entry = &trail["entries"][0];
    assert_eq!((&entry["action"], &entry["who"]), (&json!("stop requests"), &json!("boss")));
    assert_eq!(entry["after"], json!({"stopped": 4}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_backend_gets_nothing_new_and_what_runs_there_goes_on() {
    let backend = busy_backend().await;
    let house = house(&backend).await;
    let mut runs = runs(&house, "anna", "m").await;
    let mut waits = asks(&house, "bert", "m").await;
    listed(&house, 1, 1).await;
    let drained = desk(&house, "POST /api/v1/backends/ollama/drain", "").await;
    assert_eq!((drained.status, &drained.json()["drained"]), (200, &json!(true)));
    let told = waits.answer().await;
    assert_eq!((told.status, told.code()), (503, "no_backend".into()), "nobody else has the model");
    let new = house.ask(chat("bert", "short")).await;
    assert_eq!((new.status, new.code()), (503, "no_backend".into()));
    assert_eq!(metric(&house, "portcullis_backend_drained").await, 1.0);
    listed(&house, 1, 0).await;
    let undrained = desk(&house, "POST /api/v1/backends/ollama/undrain", "").await;
    assert_eq!((undrained.status, &undrained.json()["drained"]), (200, &json!(false)));
    assert!(runs.sees("\"done\":false").await, "it runs as before");
    drop(runs);
    assert_eq!(house.ask(chat("bert", "short")).await.status, 200);
    let none = desk(&house, "POST /api/v1/backends/nowhere/drain", "").await;
    assert_eq!((none.status, none.code()), (404, "not_found".into()));
    assert!(none.text().contains("there are ollama"), "{}", none.text());
    let trail = desk(&house, "GET /api/v1/audit?subject=ollama", "").await.json();
    let actions: Vec<_> =
        trail["entries"].as_array().unwrap().iter().map(|it| &it["action"]).collect();
    assert_eq!(actions, ["undrain backend", "drain backend"]);
}
