//! The gate from start to end: reload, drain, and connections that never become a request.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::house::{
    Backend, House, KEY, PASSWORD, PATIENCE, Step, chunk, get, ok_json, post, stream_head, until,
};

const HEALTH: &str = "GET /_portcullis/health HTTP/1.1\r\nHost: g\r\n\r\n";
const READY: &str = "GET /_portcullis/ready HTTP/1.1\r\nHost: g\r\n\r\n";

/// A backend that streams one line, and another when it is told to.
async fn streaming() -> (Backend, Arc<Notify>) {
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let backend = Backend::scripted(move |_| {
        vec![
            Step::Send((stream_head("application/x-ndjson") + &chunk("first\n")).into()),
            Step::Wait(Arc::clone(&waits)),
            Step::Send((chunk("last\n") + "0\r\n\r\n").into()),
        ]
    })
    .await;
    (backend, go_on)
}

/// Begins to end the gate; the notice is the second signal.
fn end(house: &mut House, delay: Duration, timeout: Duration) -> (JoinSet<()>, Arc<Notify>) {
    let server = house.take_server();
    let again = Arc::new(Notify::new());
    let hurry = Arc::clone(&again);
    let mut tasks = JoinSet::new();
    tasks.spawn(
        async move { server.shutdown(delay, timeout, async { hurry.notified().await }).await },
    );
    (tasks, again)
}

async fn ended(mut tasks: JoinSet<()>) {
    tokio::time::timeout(PATIENCE, tasks.join_next()).await.expect("the gate does not end");
}

async fn draining(house: &House) {
    until("the drain", || house.gateway.is_draining().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_drain_the_gate_is_not_ready_but_healthy_and_serves_what_comes() {
    let backend = Backend::ok().await;
    let mut house = House::new(&backend).await;
    let mut kept = house.connect().await;
    kept.send(get("/api/tags")).await;
    assert_eq!(kept.answer().await.header("connection"), None);
    assert_eq!(house.ask(READY).await.status, 200);
    let (tasks, again) = end(&mut house, Duration::from_secs(600), PATIENCE);
    draining(&house).await;
    let ready = house.ask(READY).await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("draining")));
    assert_eq!(house.ask(HEALTH).await.status, 200);
    // A kept connection's next request is served, and is its last.
    kept.send(get("/api/tags")).await;
    let answer = kept.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(kept.is_closed().await);
    // So is a new connection's first.
    let mut new = house.connect().await;
    new.send(get("/api/tags")).await;
    let answer = new.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    again.notify_one();
    ended(tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_drain_an_idle_connection_is_closed_and_the_end_does_not_wait_for_it() {
    let backend = Backend::ok().await;
    let mut house = House::new(&backend).await;
    let (mut kept, mut silent) = (house.connect().await, house.connect().await);
    kept.send(get("/api/tags")).await;
    assert_eq!(kept.answer().await.status, 200);
    let started = Instant::now();
    let (tasks, _again) = end(&mut house, Duration::ZERO, Duration::from_secs(600));
    assert!(kept.is_closed().await && silent.is_closed().await);
    ended(tasks).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?} instead of 2 s", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_finish_in_a_drain_and_new_callers_are_turned_away() {
    let (backend, go_on) = streaming().await;
    let mut house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    assert!(caller.sees_content("first\n").await);
    let (tasks, _again) = end(&mut house, Duration::ZERO, PATIENCE);
    draining(&house).await;
    until("a closed door", || std::net::TcpStream::connect(house.address).err()).await;
    go_on.notify_one();
    let answer = caller.answer().await;
    assert_eq!((answer.whole, answer.text().as_str()), (true, "first\nlast\n"));
    ended(tasks).await;
    let lines = house.log.all();
    assert_eq!((lines.len(), &lines[0]["outcome"]), (1, &"done".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_runs_after_the_drain_is_cut_and_told_as_drained() {
    let backend = Backend::scripted(|_| {
        let begun = stream_head("application/x-ndjson") + &chunk("first\n");
        vec![Step::Send(begun.into()), Step::AwaitClose]
    })
    .await;
    let mut house = House::new(&backend).await;
    let (mut streaming, mut prefill) = (house.connect().await, house.connect().await);
    streaming.send(post("/api/chat", "{}")).await;
    assert!(streaming.sees_content("first\n").await);
    prefill
        .send(format!(
            "POST /api/chat HTTP/1.1\r\nHost: g\r\nX-Api-Key: {KEY}\r\nContent-Length: 9\r\n\r\n"
        ))
        .await;
    until("both in flight", || (house.gateway.in_flight() == 2).then_some(())).await;
    let (tasks, _again) = end(&mut house, Duration::ZERO, Duration::from_millis(200));
    let answer = streaming.answer().await;
    assert_eq!((answer.whole, answer.text().as_str()), (false, "first\n"));
    assert!(prefill.is_closed().await);
    ended(tasks).await;
    backend.wait_for_closed(1).await;
    let lines = house.log.all();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line["outcome"] == "drained"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_in_order() {
    for delay in [Duration::ZERO, Duration::from_secs(600)] {
        let (backend, _go_on) = streaming().await;
        let mut house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(post("/api/chat", "{}")).await;
        assert!(caller.sees_content("first\n").await);
        let (tasks, again) = end(&mut house, delay, Duration::from_secs(600));
        draining(&house).await;
        let started = Instant::now();
        again.notify_one();
        ended(tasks).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(!caller.answer().await.whole);
        assert_eq!(house.log.all()[0]["outcome"], "drained");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_swaps_everything_or_nothing() {
    let (first, second) =
        (Backend::saying(ok_json("[1]")).await, Backend::saying(ok_json("[2]")).await);
    let house = House::new(&first).await;
    let mut caller = house.connect().await;
    let config = house.gateway.state().config().clone();
    // Everything is new, and one part of it cannot be had.
    let mut broken = config.clone();
    broken.backends[0].url = format!("http://{}", second.address).parse().unwrap();
    broken.max_body = 1;
    broken.backends[0].key_file = Some(house.file("no-such-key"));
    let error = house.gateway.reload(broken.clone()).unwrap_err();
    assert!(error.to_string().contains("no-such-key"), "{error}");
    caller.send(post("/api/chat", "{}")).await;
    assert_eq!(caller.answer().await.text(), "[1]");
    // The same without the fault counts with the next request of the same connection.
    broken.backends[0].key_file = None;
    house.gateway.reload(broken).unwrap();
    caller.send(get("/api/tags")).await;
    assert_eq!(caller.answer().await.text(), "[2]");
    caller.send(post("/api/chat", "{}")).await;
    assert_eq!(caller.answer().await.status, 413);
    assert_eq!((first.seen().len(), second.seen().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_runs_on_over_a_reload_with_what_it_began_with() {
    let (backend, go_on) = streaming().await;
    let other = Backend::ok().await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    assert!(caller.sees_content("first\n").await);
    let mut config = house.gateway.state().config().clone();
    config.backends[0].url = format!("http://{}", other.address).parse().unwrap();
    config.api_keys = None;
    config.timeouts.idle = Duration::ZERO;
    for _ in 0..100 {
        house.gateway.reload(config.clone()).unwrap();
    }
    assert_eq!(house.get("/api/tags").await.status, 401, "the keys are gone");
    assert_eq!(house.gateway.in_flight(), 1);
    go_on.notify_one();
    let answer = caller.answer().await;
    assert_eq!((answer.whole, answer.text().as_str()), (true, "first\nlast\n"));
    until("nothing in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_to_the_backend_survive_a_reload_that_does_not_change_it() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    for _ in 0..3 {
        assert_eq!(house.get("/api/tags").await.status, 200);
        house.gateway.reload(house.gateway.state().config().clone()).unwrap();
    }
    assert_eq!(backend.connections().0, 1);
}

fn login(password: &str) -> String {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("anna:{password}"));
    format!("GET /_portcullis/me HTTP/1.1\r\nHost: g\r\nAuthorization: Basic {login}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn verified_passwords_and_counted_failures_survive_a_reload() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.failed_attempts_per_minute = 3).await;
    let mut caller = house.connect().await;
    caller.send(login(PASSWORD)).await;
    assert_eq!(caller.answer().await.status, 200);
    let mut told = Vec::new();
    for _ in 0..4 {
        caller.send(login("wrong")).await;
        told.push(caller.answer().await.status);
    }
    assert_eq!(told, [401, 401, 401, 429]);
    let mut config = house.gateway.state().config().clone();
    config.max_body = 5;
    house.gateway.reload(config).unwrap();
    caller.send(login("wrong")).await;
    assert_eq!(caller.answer().await.status, 429, "the count was forgotten");
    // A password that has to be checked anew would be braked as well.
    caller.send(login(PASSWORD)).await;
    assert_eq!(caller.answer().await.status, 200, "the password was forgotten");
}

/// A gate that waits for a head for a fifth of a second only.
async fn hasty(backend: &Backend) -> House {
    House::with(backend, |config, _| config.timeouts.header = Duration::from_millis(200)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_is_answered_when_its_time_is_over_and_leaves_a_line() {
    let backend = Backend::ok().await;
    for half in
        ["G", "GET /api/tags HTT", "GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Bea"]
    {
        let house = hasty(&backend).await;
        let mut caller = house.connect().await;
        caller.send(half).await;
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"), "{half}");
        assert!(caller.is_closed().await);
        let lines = house.lines().await;
        assert_eq!((lines.len(), &lines[0]["outcome"]), (1, &"refused:request_timeout".into()));
        assert_eq!(lines[0]["client"], "127.0.0.1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_in_has_the_same_time_as_one_that_stops() {
    let backend = Backend::ok().await;
    let house = hasty(&backend).await;
    let mut caller = house.connect().await;
    caller.send("GET /api/tags HTTP/1.1\r\nHost: g\r\n").await;
    let started = Instant::now();
    // A field every 20 ms: each comes long before a timeout that every byte would renew.
    while caller.socket.try_read(&mut [0; 1024]).is_err() {
        caller.send("X-A: 1\r\n").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(started.elapsed() < Duration::from_secs(1), "a drip keeps the connection");
    }
    assert_eq!(house.lines().await[0]["outcome"], "refused:request_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_heads_time_begins_with_its_first_byte() {
    let backend = Backend::ok().await;
    let house = hasty(&backend).await;
    let mut caller = house.connect().await;
    caller.send(get("/api/tags")).await;
    assert_eq!(caller.answer().await.status, 200);
    // Between requests the time for a head does not run.
    tokio::time::sleep(Duration::from_millis(400)).await;
    caller.send(get("/api/tags")).await;
    assert_eq!(caller.answer().await.status, 200);
    caller.send("GET /api").await;
    assert_eq!(caller.answer().await.status, 408);
    assert_eq!(house.lines().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_closed_without_a_line() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.timeouts.header = Duration::from_millis(200);
        config.timeouts.keep_alive = Duration::from_millis(200);
    })
    .await;
    assert!(house.connect().await.is_closed().await);
    let mut kept = house.connect().await;
    kept.send(get("/api/tags")).await;
    assert_eq!(kept.answer().await.status, 200);
    assert!(kept.is_closed().await, "an idle connection stays open for ever");
    drop(house.connect().await);
    assert_eq!(house.lines().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_leaves_one_line() {
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: g\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ];
    let backend = Backend::ok().await;
    for bytes in garbage {
        let house = hasty(&backend).await;
        let mut caller = house.connect().await;
        caller.send(bytes).await;
        assert_eq!(caller.answer().await.status, 400, "{bytes:?}");
        assert!(caller.is_closed().await);
        let lines = house.lines().await;
        assert_eq!(
            (lines.len(), &lines[0]["outcome"]),
            (1, &"refused:bad_request".into()),
            "{bytes:?}"
        );
        assert_eq!(lines[0]["status"], 400);
    }
    assert_eq!(backend.connections().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_whose_caller_leaves_is_a_line_too() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send("GET /api/tags HTTP/1.1\r\nHo").await;
    drop(caller);
    house.log.wait_for(1).await;
    let lines = house.lines().await;
    assert_eq!((lines.len(), &lines[0]["outcome"]), (1, &"client_gone".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preface_of_http_2_is_a_505() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let answer = caller.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (505, "bad_version"));
    assert!(caller.is_closed().await);
    let lines = house.lines().await;
    assert_eq!((lines.len(), &lines[0]["outcome"]), (1, &"refused:bad_version".into()));
}
