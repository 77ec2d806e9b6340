//! Requests that wait for their turn at a model server.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::config::{AtOnce, BackendKind, Config, Pattern, Priority, Rule};
use portcullis::pool::queue::Spot;
use tokio::sync::Notify;

use crate::house::{
    Answer, Backend, Caller, House, KEY, SOON, Seen, Step, chunk, stream_head, until,
};

mod early;

const BERT: &str = "a-key-of-bert-for-the-tests";
const DONE: &str = "{\"model\":\"m\",\"done\":true,\"prompt_eval_count\":1,\"eval_count\":1}\n";

/// A backend whose answers begin only when somebody says so, one after the other.
struct Held {
    backend: Backend,
    next: Arc<Notify>,
}

impl Held {
    async fn new() -> Self {
        let next = Arc::new(Notify::new());
        let waits = Arc::clone(&next);
        let backend = Backend::scripted(move |_| {
            let whole = stream_head("application/x-ndjson") + &chunk(DONE) + "0\r\n\r\n";
            vec![Step::Wait(Arc::clone(&waits)), Step::Send(whole.into())]
        })
        .await;
        Self { backend, next }
    }

    async fn house(&self, change: impl FnOnce(&mut Config)) -> House {
        House::with(&self.backend, |config, folder| {
            let keys = format!("{KEY} # anna\n{BERT} # bert\n");
            std::fs::write(folder.path().join("api_keys.txt"), keys).unwrap();
            config.backends[0].parallel = at_most(1);
            change(config);
        })
        .await
    }
}

fn at_most(number: u32) -> Option<AtOnce> {
    NonZeroU32::new(number).map(AtOnce::AtMost)
}

fn ask(key: &str, path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn chat(text: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#)
}

async fn asks(house: &House, key: &str, text: &str) -> Caller {
    let mut caller = house.connect().await;
    caller.send(ask(key, "/api/chat", &chat(text))).await;
    caller
}

fn waiting(house: &House) -> usize {
    house.gateway.state().pool().line().with(|queue, _| queue.queued())
}

/// Until so many wait.
async fn wait_in_line(house: &House, count: usize) {
    until("the line", || (waiting(house) == count).then_some(())).await;
}

fn told(seen: &[Seen]) -> Vec<String> {
    let text = |seen: &Seen| {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        body["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    seen.iter().map(text).collect()
}

async fn answered(mut caller: Caller) -> Answer {
    let answer = caller.answer().await;
    assert!(answer.status != 200 || answer.whole, "{answer:?}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_many_requests_open_does_not_keep_another_waiting() {
    let held = Held::new().await;
    let house = held.house(|_| {}).await;
    let mut callers = vec![asks(&house, KEY, "anna 0").await];
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    for number in 1..5 {
        callers.push(asks(&house, KEY, &format!("anna {number}")).await);
        wait_in_line(&house, number).await;
    }
    callers.push(asks(&house, BERT, "bert").await);
    wait_in_line(&house, 5).await;
    for ended in 1..=6 {
        held.next.notify_one();
        let reached = ended.min(5) + 1;
        until("the next", || (held.backend.seen().len() == reached.min(6)).then_some(())).await;
        assert!(waiting(&house) <= 6 - reached.min(6));
    }
    for caller in callers {
        assert_eq!(answered(caller).await.status, 200);
    }
    assert_eq!(told(&held.backend.seen())[..2], ["anna 0", "bert"]);
    let lines = house.lines().await;
    let waited = |line: &serde_json::Value| line["queue_ms"].as_f64().unwrap() > 0.0;
    assert_eq!(lines.iter().filter(|line| waited(line)).count(), 5, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_names_no_model_waits_as_well_where_a_server_has_one() {
    let held = Held::new().await;
    let house = held.house(|config| config.backends[0].kind = BackendKind::OpenAi).await;
    let asks = async || {
        let mut caller = house.connect().await;
        caller.send(ask(KEY, "/v1/chat/completions", r#"{"messages":[]}"#)).await;
        caller
    };
    let first = asks().await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let second = asks().await;
    wait_in_line(&house, 1).await;
    for caller in [first, second] {
        held.next.notify_one();
        assert_eq!(answered(caller).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_in_the_queue_is_gone_from_it_and_no_backend_hears_of_it() {
    let held = Held::new().await;
    let house = held.house(|_| {}).await;
    let runs = asks(&house, KEY, "runs").await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let leaves = asks(&house, KEY, "leaves").await;
    wait_in_line(&house, 1).await;
    let left = Instant::now();
    drop(leaves);
    wait_in_line(&house, 0).await;
    assert!(left.elapsed() < SOON, "it was gone after {:?}", left.elapsed());
    let lines = house.log.wait_for(1).await;
    assert_eq!(lines[0]["outcome"], "client_gone");
    assert!(lines[0]["queue_ms"].as_f64().unwrap() > 0.0, "{}", lines[0]);
    assert_eq!(lines[0]["position"], 1);
    held.next.notify_one();
    assert_eq!(answered(runs).await.status, 200);
    assert_eq!(held.backend.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_a_model_works_frees_the_slot_for_the_next() {
    let held = Held::new().await;
    let house = held.house(|_| {}).await;
    let leaves = asks(&house, KEY, "leaves").await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let next = asks(&house, BERT, "next").await;
    wait_in_line(&house, 1).await;
    let left = Instant::now();
    drop(leaves);
    until("the next", || (held.backend.seen().len() == 2).then_some(())).await;
    assert!(left.elapsed() < SOON, "the slot was free after {:?}", left.elapsed());
    // One of them is of the request that nobody reads any more.
    held.next.notify_waiters();
    held.next.notify_one();
    assert_eq!(answered(next).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_queue_timeout_a_caller_is_told_how_long_it_would_be() {
    let held = Held::new().await;
    let house = held.house(|config| config.queue_timeout = Duration::from_millis(50)).await;
    let runs = asks(&house, KEY, "runs").await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let late = answered(asks(&house, BERT, "late").await).await;
    assert_eq!((late.status, late.code().as_str()), (503, "queue_timeout"));
    assert!(late.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(late.header("x-should-retry"), Some("false"));
    assert_eq!(waiting(&house), 0);
    let lines = house.log.wait_for(1).await;
    assert!(lines[0]["queue_ms"].as_f64().unwrap() >= 50.0, "{}", lines[0]);
    held.next.notify_one();
    assert_eq!(answered(runs).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_who_wait_one_more_is_told_so_at_once() {
    let held = Held::new().await;
    let house = held.house(|_| {}).await;
    let line = Arc::clone(house.gateway.state().pool().line());
    let _runs = asks(&house, KEY, "runs").await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let mut crowd = Vec::new();
    for number in 1..=1000 {
        crowd.push(asks(&house, KEY, "waits").await);
        if number % 100 == 0 {
            wait_in_line(&house, number).await;
        }
    }
    let refused = answered(asks(&house, KEY, "one more").await).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "overloaded"));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 1000);
    let other = asks(&house, BERT, "another's").await;
    wait_in_line(&house, 1001).await;
    let seen = line.with(|queue, now| queue.seen(now));
    let spot = seen.iter().find(|it| it.course.who.as_str() == "bert").unwrap().spot;
    assert!(matches!(spot, Spot::Waits { position: 1 | 2, .. }), "{spot:?}");
    drop((crowd, other));
    wait_in_line(&house, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_time_says_so_and_lets_the_others_pass() {
    let held = Held::new().await;
    let house = held.house(|_| {}).await;
    let mut callers = vec![asks(&house, KEY, "runs").await];
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let flex =
        r#"{"model":"m","service_tier":"flex","messages":[{"role":"user","content":"flex"}]}"#;
    let mut has_time = house.connect().await;
    has_time.send(ask(BERT, "/v1/chat/completions", flex)).await;
    wait_in_line(&house, 1).await;
    callers.push(asks(&house, KEY, "urgent").await);
    wait_in_line(&house, 2).await;
    for reached in [2, 3, 3] {
        held.next.notify_one();
        until("the next", || (held.backend.seen().len() == reached).then_some(())).await;
    }
    for caller in callers {
        assert_eq!(answered(caller).await.status, 200);
    }
    assert_eq!(answered(has_time).await.status, 200);
    assert_eq!(told(&held.backend.seen()), ["runs", "urgent", "flex"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_says_whose_requests_are_less_urgent() {
    let held = Held::new().await;
    let house = held
        .house(|config| {
            let names = Some(vec![Pattern::new("bert")]);
            let priority = Priority::Batch;
            // Who may use cloud models, of him the gate asks no question of its own.
            let batch = Rule { names, priority, cloud: true, ..Rule::default() };
            config.rules.insert(0, batch);
        })
        .await;
    let first = asks(&house, KEY, "runs").await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let batch = asks(&house, BERT, "batch").await;
    wait_in_line(&house, 1).await;
    let urgent = asks(&house, KEY, "urgent").await;
    wait_in_line(&house, 2).await;
    for reached in [2, 3, 3] {
        held.next.notify_one();
        until("the next", || (held.backend.seen().len() == reached).then_some(())).await;
    }
    for caller in [first, batch, urgent] {
        assert_eq!(answered(caller).await.status, 200);
    }
    assert_eq!(told(&held.backend.seen()), ["runs", "urgent", "batch"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_other_models_side_by_side_do_not_wait() {
    let backend = Backend::scripted(|seen| match seen.line().starts_with("POST") {
        true => vec![Step::AwaitClose],
        false => vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec())],
    })
    .await;
    let house = House::with(&backend, |config, _| {
        config.backends[0].parallel = at_most(1);
        config.backends[0].models_at_once = at_most(2);
    })
    .await;
    let _first = asks(&house, KEY, "runs").await;
    until("the first", || (backend.seen().len() == 1).then_some(())).await;
    assert_eq!(house.get("/api/version").await.status, 200);
    let mut other = house.connect().await;
    other.send(ask(KEY, "/api/generate", r#"{"model":"n","prompt":"x"}"#)).await;
    until("the other model", || (backend.seen().len() == 3).then_some(())).await;
    let _waits = asks(&house, KEY, "waits").await;
    wait_in_line(&house, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_run_at_once_is_learned_from_first_bytes() {
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let backend = Backend::scripted(move |_| {
        let begun = stream_head("application/x-ndjson") + &chunk("{\"model\":\"m\"}\n");
        vec![Step::Send(begun.into()), Step::Wait(Arc::clone(&waits)), Step::Close]
    })
    .await;
    let house = House::with(&backend, |config, _| config.backends[0].parallel = Some(AtOnce::Auto));
    let house = house.await;
    let mut callers = Vec::new();
    for _ in 0..6 {
        callers.push(asks(&house, KEY, "streams").await);
    }
    let learned =
        || house.gateway.state().pool().line().with(|queue, _| queue.parallel(0, "m:latest"));
    // The first try succeeds at once, the next comes a while after it.
    until("two at once", || learned().filter(|(number, _)| *number >= 2)).await;
    assert_eq!(learned().map(|(_, is_learned)| is_learned), Some(true));
    go_on.notify_waiters();
}

/// A backend with one stream that does not end, and what it says to all else.
async fn streams_beside(other: &'static str) -> (Backend, House, Arc<Notify>, Caller) {
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let backend = Backend::scripted(move |seen| {
        if !String::from_utf8_lossy(&seen.body).contains("streams") {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
            return vec![Step::Send(format!("{head}{}\r\n\r\n{other}", other.len()).into())];
        }
        let begun = stream_head("application/x-ndjson") + &chunk("{\"model\":\"m\"}\n");
        let ended = chunk(DONE) + "0\r\n\r\n";
        vec![Step::Send(begun.into()), Step::Wait(Arc::clone(&waits)), Step::Send(ended.into())]
    })
    .await;
    let house = House::with(&backend, |config, _| config.backends[0].parallel = Some(AtOnce::Auto));
    let house = house.await;
    let first = asks(&house, KEY, "streams").await;
    until("the first", || (backend.seen().len() == 1).then_some(())).await;
    (backend, house, go_on, first)
}

fn learned(house: &House) -> usize {
    let line = Arc::clone(house.gateway.state().pool().line());
    line.with(|queue, _| queue.parallel(0, "m:latest")).unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_only_loads_a_model_waits_and_shows_no_slot() {
    let (backend, house, go_on, first) = streams_beside("{\"done_reason\":\"load\"}").await;
    let mut callers = Vec::new();
    for (path, body) in [
        ("/api/chat", r#"{"model":"m","messages":[]}"#),
        ("/api/generate", r#"{"model":"m"}"#),
        ("/v1/completions", r#"{"model":"m","prompt":"","stream":true}"#),
    ] {
        let mut caller = house.connect().await;
        caller.send(ask(KEY, path, body)).await;
        callers.push(caller);
        wait_in_line(&house, callers.len()).await;
    }
    assert_eq!(backend.seen().len(), 1);
    go_on.notify_one();
    for caller in callers.into_iter().chain([first]) {
        assert_eq!(answered(caller).await.status, 200);
    }
    assert_eq!(learned(&house), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_answered_whole_shows_no_slot() {
    let (_backend, house, go_on, first) = streams_beside("{\"_debug_info\":{}}").await;
    // It is tried beside the first, and was no model's work.
    assert_eq!(answered(asks(&house, KEY, "shown").await).await.status, 200);
    assert_eq!(learned(&house), 1);
    go_on.notify_one();
    assert_eq!(answered(first).await.status, 200);
}
