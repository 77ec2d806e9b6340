//! What becomes of requests while a backend fails, is full, goes away, or is no backend at all.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portcullis::config::{AtOnce, ModelName, Pattern, Rule, Weight};
use tokio::sync::Notify;

use super::{alias, before, chat, chats, from, heard, lists, names, scripted, server};
use crate::house::{
    Answer, Backend, Caller, House, Step, chunk, ok_json, post, stream_head, until,
};

const CALLERS: [&str; 3] = ["anna", "bert", "carl"];

fn key_of(name: &str) -> String {
    format!("a-key-of-{name}-for-the-tests")
}

fn keys() -> String {
    CALLERS.map(|name| format!("{} # {name}\n", key_of(name))).concat()
}

/// A conversation of its own for each `text`.
fn chat_of(name: &str, text: impl std::fmt::Display) -> String {
    let body = format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    format!(
        "POST /api/chat HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        key_of(name),
        body.len()
    )
}

fn one_at_a_time() -> Option<AtOnce> {
    NonZeroU32::new(1).map(AtOnce::AtMost)
}

fn is_up(house: &House, name: &str) -> bool {
    house.gateway.state().pool().backend(name).unwrap().is_up()
}

fn queued(house: &House) -> usize {
    house.gateway.state().pool().line().with(|queue, _| queue.queued())
}

async fn in_line(house: &House, count: usize) {
    until("the line", || (queued(house) == count).then_some(())).await;
}

async fn asks(house: &House, request: impl AsRef<[u8]>) -> Caller {
    let mut caller = house.connect().await;
    caller.send(request).await;
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_answers_puts_it_out_unless_one_caller_alone_may_have_provoked_it() {
    for (status, callers, puts_out) in [
        (500, &CALLERS[..1], false),
        (500, &CALLERS[..2], true),
        (501, &CALLERS[..], false),
        (502, &CALLERS[..1], true),
        (503, &CALLERS[..1], true),
        (504, &CALLERS[..1], true),
        (508, &CALLERS[..1], true),
    ] {
        let disk = names(&["a"]);
        let head = format!("HTTP/1.1 {status} Oh\r\nContent-Length: 0\r\n\r\n");
        let bad = scripted(&disk, &disk, move |_| vec![Step::Send(head.clone().into())]).await;
        let good = server("good", &disk, &disk).await;
        let house = before(&[("bad", &bad), ("good", &good)], |_, folder| {
            std::fs::write(folder.path().join("api_keys.txt"), keys()).unwrap();
        })
        .await;
        heard(&house).await;
        // Nothing good is to come between.
        house.gateway.state().pool().backend("good").unwrap().drain(true);
        for number in 0..4 {
            let told = house.ask(chat_of(callers[number % callers.len()], number)).await;
            assert_eq!(told.status, status);
        }
        assert_eq!(!is_up(&house, "bad"), puts_out, "{status} to {callers:?}");
        assert_eq!(chats(&good), 0, "nothing is sent twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_nobody_there_waits_its_turn_at_another_that_is_busy() {
    let disk = names(&["a"]);
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let first = server("first", &disk, &disk).await;
    let second = scripted(&disk, &names(&[]), move |_| {
        vec![Step::Wait(Arc::clone(&wait)), Step::Send(ok_json(r#"{"from":"second"}"#).into())]
    })
    .await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        for backend in &mut config.backends {
            backend.parallel = one_at_a_time();
        }
    })
    .await;
    heard(&house).await;
    let state = house.gateway.state();
    let first_has_it = || {
        let model = ModelName::parse("a").unwrap();
        state.pool().backend("x").unwrap().is_loaded(&model)
    };
    until("who has it in memory", || first_has_it().then_some(())).await;
    state.pool().backend("x").unwrap().drain(true);
    let mut runs = asks(&house, chat("a")).await;
    second.wait_for_request(1).await;
    let (_, _gone_first) = first.end().await;
    state.pool().backend("x").unwrap().drain(false);
    let mut waits = Vec::new();
    for count in 1..=3 {
        waits.push(asks(&house, chat("a")).await);
        in_line(&house, count).await;
    }
    // Nobody is counted as being where nobody is.
    assert_eq!(state.pool().backend("x").unwrap().busy(), 0);
    go_on.notify_one();
    assert_eq!(from(&runs.answer().await), "second");
    for caller in &mut waits {
        go_on.notify_one();
        assert_eq!(from(&caller.answer().await), "second");
    }
    assert_eq!(chats(&second), 4);
    let lines = house.log.wait_for(4).await;
    let waited = |line: &&serde_json::Value| line["queue_ms"].as_f64() > Some(0.0);
    assert_eq!(lines.iter().filter(waited).count(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line["backend"] == "y"), "{lines:?}");
    let mut positions: Vec<_> = lines.iter().map(|line| line["position"].as_u64()).collect();
    positions.sort_unstable();
    assert_eq!(positions, [None, Some(1), Some(2), Some(3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_at_another_backend_ends_with_queue_timeout() {
    let disk = names(&["a"]);
    let first = server("first", &disk, &disk).await;
    let second = scripted(&disk, &disk, |_| vec![Step::AwaitClose]).await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.queue_timeout = Duration::from_millis(100);
        config.backends[1].parallel = one_at_a_time();
    })
    .await;
    heard(&house).await;
    let state = house.gateway.state();
    state.pool().backend("x").unwrap().drain(true);
    let _runs = asks(&house, chat("a")).await;
    second.wait_for_request(1).await;
    let (_, _gone_first) = first.end().await;
    state.pool().backend("x").unwrap().drain(false);
    // The first may go to whom nobody knows to be gone; all wait in the end.
    for _ in 0..3 {
        let told = house.ask(chat("a")).await;
        assert_eq!((told.status, told.code().as_str()), (503, "queue_timeout"));
    }
    assert_eq!((queued(&house), chats(&second)), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_backends_two_are_gone_and_nothing_is_sent_more_than_once_again() {
    let disk = names(&["a"]);
    let (first, second) = (server("x", &disk, &disk).await, server("y", &disk, &disk).await);
    let third = server("z", &disk, &disk).await;
    let house = before(&[("x", &first), ("y", &second), ("z", &third)], |_, folder| {
        std::fs::write(folder.path().join("api_keys.txt"), keys()).unwrap();
    })
    .await;
    heard(&house).await;
    let (_, _gone_first) = first.end().await;
    let (_, _gone_second) = second.end().await;
    let mut callers = Vec::new();
    for number in 0..30 {
        callers.push(asks(&house, chat_of(CALLERS[number % 3], number)).await);
    }
    let mut served = 0;
    for mut caller in callers {
        let told = caller.answer().await;
        match told.status {
            200 => served += 1,
            // It met both of those that are gone.
            _ => assert_eq!((told.status, told.code().as_str()), (503, "no_backend")),
        }
    }
    assert_eq!(chats(&third), served);
    assert!(served > 0, "nobody was served");
    assert_eq!(from(&house.ask(chat_of("anna", 31)).await), "z", "by now it is known");
}

/// Two backends, of which the first alone has the model and was put out, and what it does from then on.
async fn out_and_alone(script: fn() -> Vec<Step>, bell: Arc<Notify>) -> (House, [Backend; 2]) {
    let breaks = Arc::new(AtomicBool::new(true));
    let ill = Arc::clone(&breaks);
    let first =
        scripted(&names(&["a"]), &names(&["a"]), move |_| match ill.load(Ordering::Relaxed) {
            true => vec![Step::Reset],
            false => [vec![Step::Wait(Arc::clone(&bell))], script()].concat(),
        })
        .await;
    let second = server("second", &names(&["b"]), &names(&["b"])).await;
    let house = before(&[("x", &first), ("y", &second)], |config, _| {
        config.backends[0].parallel = one_at_a_time();
    })
    .await;
    heard(&house).await;
    while is_up(&house, "x") {
        assert_eq!(house.ask(chat("a")).await.status, 502);
    }
    breaks.store(false, Ordering::Relaxed);
    (house, [first, second])
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_go_nowhere_else_waits_in_line_before_a_backend_that_is_out() {
    let bell = Arc::new(Notify::new());
    let answers = || vec![Step::Send(ok_json(r#"{"from":"first"}"#).into())];
    let (house, [first, second]) = out_and_alone(answers, Arc::clone(&bell)).await;
    let asked = chats(&first);
    let mut callers = vec![asks(&house, chat("a")).await];
    first.wait_for_request(asked + 1).await;
    for count in 1..=4 {
        callers.push(asks(&house, chat("a")).await);
        in_line(&house, count).await;
    }
    assert_eq!(chats(&first), asked + 1, "one at a time");
    for _ in 0..5 {
        bell.notify_one();
        let answered = callers.remove(0).answer().await;
        assert_eq!(from(&answered), "first");
    }
    assert!(is_up(&house, "x"));
    assert_eq!(chats(&second), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_backend_that_is_out_is_told_as_soon_as_it_fails_again() {
    let bell = Arc::new(Notify::new());
    let (house, [first, _second]) = out_and_alone(|| vec![Step::Reset], Arc::clone(&bell)).await;
    let asked = chats(&first);
    let mut tries = asks(&house, chat("a")).await;
    first.wait_for_request(asked + 1).await;
    let mut callers = Vec::new();
    for count in 1..=4 {
        callers.push(asks(&house, chat("a")).await);
        in_line(&house, count).await;
    }
    bell.notify_one();
    assert_eq!(tries.answer().await.status, 502);
    for caller in &mut callers {
        let told = caller.answer().await;
        assert_eq!((told.status, told.code().as_str()), (503, "no_backend"));
        assert!(told.header("retry-after").is_some(), "{}", told.head);
    }
    assert_eq!(chats(&first), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_its_own_backend_is_asked_for_nothing_that_another_has() {
    let disk = names(&["a"]);
    let good = server("good", &disk, &disk).await;
    let house = before(&[("good", &good)], |_, _| {}).await;
    let mut config = house.gateway.state().config().clone();
    let mut own = config.backends[0].clone();
    own.name = "own".to_owned();
    own.url = format!("http://{}", house.address).parse().unwrap();
    // With a key of its own it would be told every list.
    let key = house.file("own-key");
    std::fs::write(&key, crate::house::KEY).unwrap();
    own.key_file = Some(key);
    config.backends.insert(0, own);
    house.gateway.reload(config).unwrap();
    until("it is found out", || (!is_up(&house, "own")).then_some(())).await;
    let model = ModelName::parse("a").unwrap();
    let state = house.gateway.state();
    let has = |name: &str| state.pool().backend(name).unwrap().has(&model);
    until("the other's list", || has("good").filter(|it| *it)).await;
    assert_eq!(has("own"), None, "it told a list that is another's");
    for number in 0..20 {
        let body =
            format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{number}"}}]}}"#);
        assert_eq!(from(&house.ask(post("/api/chat", &body)).await), "good");
    }
}
