//! Answers that begin while their requests wait.

use std::sync::Arc;
use std::time::Duration;

use portcullis::config::Config;
use portcullis::limit::End;
use tokio::sync::Notify;

use super::{
    BERT, Caller, DONE, Held, House, ask, asks, at_most, chat, chunk, stream_head, until,
    wait_in_line,
};
use crate::house::{Backend, KEY, Step, ok_json};
use crate::http2::{self, Client};

const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";
const BEAT: Duration = Duration::from_millis(40);
const BEATS: &str = "   ";
const COMMENTS: &str = ":\n\n:\n\n:\n\n";

fn with_beats(config: &mut Config) {
    config.heartbeat = BEAT;
    config.h2c = true;
}

/// A house before one that says this, and not before it is told to.
async fn saying(late: impl Into<Vec<u8>>) -> (House, Backend, Arc<Notify>) {
    let (late, now) = (late.into(), Arc::new(Notify::new()));
    let waits = Arc::clone(&now);
    let steps = move |_: &_| vec![Step::Wait(Arc::clone(&waits)), Step::Send(late.clone())];
    let backend = Backend::scripted(steps).await;
    let house = House::with(&backend, |config, _| with_beats(config)).await;
    (house, backend, now)
}

fn stream(kind: &str, text: &str) -> String {
    stream_head(kind) + &chunk(text) + "0\r\n\r\n"
}

const EVENTS: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#;

async fn asks_for_events(house: &House) -> Caller {
    let mut caller = house.connect().await;
    caller.send(ask(KEY, "/v1/chat/completions", EVENTS)).await;
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_stream_sees_that_it_will_come() {
    let held = Held::new().await;
    let house = held.house(with_beats).await;
    let mut runs = asks(&house, KEY, "runs").await;
    let mut waits = asks(&house, BERT, "waits").await;
    wait_in_line(&house, 1).await;
    for caller in [&mut runs, &mut waits] {
        assert!(caller.sees_content(BEATS).await);
    }
    held.next.notify_one();
    until("the next", || (held.backend.seen().len() == 2).then_some(())).await;
    held.next.notify_one();
    for mut caller in [runs, waits] {
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some(NDJSON));
        assert_eq!(answer.header("server"), Some("portcullis"));
        assert_eq!(answer.text().trim_start_matches(' '), DONE);
        let lines = house.log.wait_for(2).await;
        let id = answer.header("x-request-id").unwrap();
        let line = lines.iter().find(|line| line["id"] == id).unwrap();
        assert_eq!((&line["outcome"], &line["status"]), (&"done".into(), &200.into()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn between_events_it_is_an_empty_comment() {
    let event = "data: {\"choices\":[]}\n\ndata: [DONE]\n\n";
    let (house, _backend, now) = saying(stream(SSE, event)).await;
    let mut caller = asks_for_events(&house).await;
    assert!(caller.sees_content(COMMENTS).await);
    now.notify_one();
    let answer = caller.answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(SSE)));
    assert!(answer.whole && answer.text().replace(":\n\n", "") == event, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_callers_see_it_too() {
    let (house, _backend, now) = saying(stream(NDJSON, DONE)).await;
    let mut client = Client::connect(house.address).await;
    let request = http2::post("/api/chat").body(r#"{"model":"m"}"#).unwrap();
    let mut response = client.asks(request).await;
    assert_eq!(response.headers()["content-type"], NDJSON);
    for _ in 0..3 {
        assert_eq!(http2::next(response.body_mut()).await.unwrap().unwrap(), " ");
    }
    now.notify_one();
    assert_eq!(http2::whole(response).await.text.trim_start_matches(' '), DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_that_is_an_error_within_the_stream() {
    let held = Held::new().await;
    let house = held
        .house(|config| {
            with_beats(config);
            config.queue_timeout = 10 * BEAT;
        })
        .await;
    let _runs = asks(&house, KEY, "runs").await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    let late = asks(&house, BERT, "late").await.answer().await;
    assert_eq!((late.status, late.whole), (200, true), "{late:?}");
    let lines: Vec<_> = late.body.split_inclusive(|byte| *byte == b'\n').collect();
    let error: serde_json::Value = serde_json::from_slice(lines[0]).unwrap();
    assert_eq!((lines.len(), &error["code"]), (1, &"queue_timeout".into()), "{error}");
    let events = asks_for_events(&house).await.answer().await;
    let last = events.text().replace(":\n\n", "");
    let data = last.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    let error: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(error["error"]["code"], "queue_timeout", "{error}");
    for line in house.log.wait_for(2).await {
        assert_eq!((&line["status"], &line["code"]), (&503.into(), &"queue_timeout".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_whole_keeps_its_status_however_long_it_waits() {
    let held = Held::new().await;
    let house = held
        .house(|config| {
            with_beats(config);
            config.queue_timeout = 5 * BEAT;
        })
        .await;
    let _runs = asks(&house, KEY, "runs").await;
    until("the first", || (held.backend.seen().len() == 1).then_some(())).await;
    for (path, body) in [
        ("/api/chat", chat("late").replace("{\"model\"", "{\"stream\":false,\"model\"")),
        ("/v1/chat/completions", chat("late")),
    ] {
        let mut late = house.connect().await;
        late.send(ask(BERT, path, &body)).await;
        let late = late.answer().await;
        assert_eq!(late.status, 503, "{late:?}");
        assert!(late.header("retry-after").is_some() && !late.text().starts_with(' '));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_time_is_as_without_it() {
    let backend = Backend::saying(ok_json("{\"done\":true}")).await;
    let house = House::with(&backend, |config, _| config.heartbeat = Duration::from_secs(60)).await;
    let answer = asks(&house, KEY, "x").await.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"done\":true}"));
    assert_eq!(answer.header("content-length"), Some("13"));
    let refused = asks(&house, "no-key-of-anybody", "x").await.answer().await;
    assert_eq!(refused.status, 401);
}

/// One that runs without a word, and one that waits; both have begun.
async fn two_that_wait() -> (House, Backend, [Caller; 2]) {
    let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let house = House::with(&backend, |config, _| {
        with_beats(config);
        config.backends[0].parallel = at_most(1);
    })
    .await;
    let mut callers = [asks(&house, KEY, "runs").await, asks(&house, KEY, "waits").await];
    for caller in &mut callers {
        assert!(caller.sees_content(BEATS).await);
    }
    (house, backend, callers)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_after_that_leaves_the_queue_and_the_backend() {
    let (house, backend, callers) = two_that_wait().await;
    drop(callers);
    wait_in_line(&house, 0).await;
    for line in house.log.wait_for(2).await {
        assert_eq!(line["outcome"], "client_gone", "{line}");
    }
    backend.wait_for_closed(backend.seen().len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_stopped_after_that_is_told_in_the_stream() {
    let (house, backend, callers) = two_that_wait().await;
    let line = Arc::clone(house.gateway.state().pool().line());
    line.with(|queue, now| queue.seen(now).iter().for_each(|it| it.course.end(End::Stopped)));
    for mut caller in callers {
        let answer = caller.answer().await;
        assert!(answer.whole && answer.code() == "stopped", "{answer:?}");
    }
    backend.wait_for_closed(1).await;
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_other_answer_becomes_the_streams_last_piece() {
    let json = |status: &str, body: &str| ok_json(body).replace("200 OK", status);
    for (late, ndjson, sse) in [
        (
            json("404 Not Found", "{\n\"error\": \"no such\"\r\n}\n"),
            "{ \"error\": \"no such\"  } \n",
            "event: error\ndata: { \"error\": \"no such\"  } \n\n",
        ),
        (json("200 OK", "{\"shown\":1}"), "{\"shown\":1}\n", "data: {\"shown\":1}\n\n"),
    ] {
        let (house, _backend, now) = saying(late).await;
        for (is_sse, beats, expected) in [(false, " ", ndjson), (true, ":\n\n", sse)] {
            let mut caller = match is_sse {
                true => asks_for_events(&house).await,
                false => asks(&house, KEY, "x").await,
            };
            assert!(caller.sees_content(&beats.repeat(3)).await);
            now.notify_one();
            let answer = caller.answer().await;
            assert_eq!((answer.status, answer.whole), (200, true));
            assert_eq!(answer.text().trim_start_matches(beats), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_after_that_says_so_and_is_cut() {
    let half = stream_head(NDJSON) + &chunk("{\"a\":1}\n{\"hal");
    let now = Arc::new(Notify::new());
    let waits = Arc::clone(&now);
    let steps = move |_: &_| {
        vec![Step::Wait(Arc::clone(&waits)), Step::Send(half.clone().into()), Step::Close]
    };
    let backend = Backend::scripted(steps).await;
    let house = House::with(&backend, |config, _| {
        with_beats(config);
        config.backends[0].parallel = at_most(1);
    })
    .await;
    let mut caller = asks(&house, KEY, "x").await;
    assert!(caller.sees_content(BEATS).await);
    now.notify_one();
    let answer = caller.answer().await;
    let text = answer.text();
    assert!(!answer.whole && text.contains("{\"a\":1}\n{\"hal\n{\"error\""), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_would_need_a_head_to_be_understood_are_cut() {
    let packed = ok_json("xxxx").replace("Content-Type", "Content-Encoding: gzip\r\nContent-Type");
    let (house, _backend, now) = saying(packed).await;
    let mut caller = asks(&house, KEY, "x").await;
    assert!(caller.sees_content(BEATS).await);
    now.notify_one();
    let answer = caller.answer().await;
    assert!(!answer.whole && !answer.text().contains('x'), "{answer:?}");
}
