//! Answers as they pass: token by token, broken off by either side, too slow, too fast.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use portcullis::config::AtOnce;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::house::{
    Backend, House, KEY, SOON, Step, chunk, find, get, ok_json, post, stream_head, until,
};

const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";

fn send(text: impl Into<Vec<u8>>) -> Step {
    Step::Send(text.into())
}

/// What is true of every caller who left: the backend is told soon, nothing stays taken, and there
/// is one line.
async fn left_behind(house: House, backend: &Backend, closed: usize) -> serde_json::Value {
    let started = Instant::now();
    backend.wait_for_closed(closed).await;
    assert!(started.elapsed() < SOON, "the backend was told after {:?}", started.elapsed());
    until("no request in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
    house.log.wait_for(1).await;
    let lines = house.lines().await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["outcome"], "client_gone");
    assert_eq!(lines[0]["name"], "anna");
    lines[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_before_the_first_byte_frees_the_backend() {
    let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    backend.wait_for_request(1).await;
    drop(caller);
    let line = left_behind(house, &backend, 1).await;
    assert_eq!((&line["status"], &line["bytes_out"]), (&0.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_resets_before_the_first_byte_frees_the_backend() {
    let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    backend.wait_for_request(1).await;
    caller.socket.set_zero_linger().unwrap();
    drop(caller);
    left_behind(house, &backend, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_in_mid_stream_frees_the_backend() {
    let backend = Backend::scripted(|_| {
        vec![send(stream_head(NDJSON)), send(chunk("{\"n\":1}\n")), Step::AwaitClose]
    })
    .await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    assert!(caller.sees("{\"n\":1}").await);
    drop(caller);
    let line = left_behind(house, &backend, 1).await;
    assert_eq!((&line["status"], &line["bytes_out"]), (&200.into(), &8.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_behind_the_request_does_not_hide_that_its_caller_left() {
    for behind in ["G".to_owned(), "\r\n".to_owned(), get("/api/tags"), "x".repeat(20_000)] {
        let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(post("/api/chat", "{}") + &behind).await;
        backend.wait_for_request(1).await;
        drop(caller);
        left_behind(house, &backend, 1).await;
        assert_eq!(backend.seen().len(), 1, "the request behind was sent on after its caller left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_behind_the_request_in_mid_stream_does_not_hide_that_its_caller_left() {
    for behind in ["G".to_owned(), get("/api/tags")] {
        let backend = Backend::scripted(|_| {
            vec![send(stream_head(NDJSON)), send(chunk("{}\n")), Step::AwaitClose]
        })
        .await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(post("/api/chat", "{}")).await;
        assert!(caller.sees("{}\n").await);
        caller.send(&behind).await;
        drop(caller);
        left_behind(house, &backend, 1).await;
        assert_eq!(backend.seen().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_while_sending_never_reaches_the_backend() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let bodies =
        ["Content-Length: 100\r\n\r\n{\"half\":", "Transfer-Encoding: chunked\r\n\r\n8\r\n{\"half"];
    for body in bodies {
        let mut caller = house.connect().await;
        let head = format!("POST /api/chat HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n");
        caller.send(head + body).await;
        until("a request in flight", || (house.gateway.in_flight() == 1).then_some(())).await;
        drop(caller);
        until("no request in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
    }
    house.log.wait_for(2).await;
    let lines = house.lines().await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line["outcome"] == "client_gone"), "{lines:?}");
    assert_eq!(backend.connections().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_one_packet_are_answered_in_order() {
    let backend =
        Backend::scripted(|seen| vec![send(ok_json(&format!("{:?}", seen.line())))]).await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    let body = "{\"long\":\"".to_owned() + &"x".repeat(70_000) + "\"}";
    caller.send(get("/api/tags") + &post("/api/chat", &body) + &get("/api/ps")).await;
    for line in ["GET /api/tags", "POST /api/chat", "GET /api/ps"] {
        assert_eq!(caller.answer().await.text(), format!("\"{line} HTTP/1.1\""));
    }
    assert_eq!(backend.seen()[1].body, body.as_bytes());
    assert_eq!(house.log.wait_for(3).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_reaches_the_caller_before_the_next_is_made() {
    for (path, kind) in [("/api/chat", NDJSON), ("/v1/chat/completions", SSE)] {
        let next = Arc::new(Notify::new());
        let made = Arc::clone(&next);
        let backend = Backend::scripted(move |_| {
            let mut steps = vec![send(stream_head(kind))];
            for k in 0..50 {
                steps.extend([send(chunk(&format!("<{k}>"))), Step::Wait(Arc::clone(&made))]);
            }
            steps.push(send("0\r\n\r\n"));
            steps
        })
        .await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(post(path, "{}")).await;
        for k in 0..50 {
            assert!(caller.sees(&format!("<{k}>")).await, "token {k} was held back");
            next.notify_one();
        }
        let answer = caller.answer().await;
        assert!(answer.whole);
        assert_eq!(answer.text(), (0..50).map(|k| format!("<{k}>")).collect::<String>());
        assert_eq!(house.lines().await[0]["outcome"], "done");
    }
}

/// Bytes without a pattern that a shifted or repeated piece would keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_pass_byte_for_byte_in_chunks_of_every_size() {
    for (size, length) in [(1, 5_000), (8_192, 3_000_000), (65_537, 3_000_000)] {
        let body = noise(length);
        let mut raw = stream_head("application/octet-stream").into_bytes();
        for piece in body.chunks(size) {
            raw.extend(format!("{:x}\r\n", piece.len()).bytes());
            raw.extend(piece);
            raw.extend(b"\r\n");
        }
        raw.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
        let backend = Backend::saying(raw).await;
        let house = House::new(&backend).await;
        let answer = house.ask(post("/api/chat", "{}")).await;
        assert!(answer.whole && answer.body == body, "chunks of {size}");
        assert_eq!(house.lines().await[0]["bytes_out"], length);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_three_megabytes_pass_byte_for_byte_both_ways() {
    let body = noise(3_000_000);
    let mut raw = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n".to_vec();
    raw.extend(&body);
    let backend = Backend::saying(raw).await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    let head = "POST /api/later HTTP/1.1\r\nHost: g\r\nX-Api-Key: ".to_owned() + KEY;
    caller.send(head + "\r\nContent-Length: 3000000\r\n\r\n").await;
    caller.send(&body).await;
    let answer = caller.answer().await;
    assert!(answer.whole && answer.body == body);
    assert_eq!(answer.header("content-length"), Some("3000000"));
    assert!(backend.seen()[0].body == body);
    let line = &house.lines().await[0];
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&3_000_000.into(), &3_000_000.into()));
}

/// How a backend dies in the middle of a stream.
fn deaths() -> [(&'static str, Vec<Step>); 4] {
    [
        ("reset", vec![Step::Reset]),
        ("end without the last chunk", vec![Step::Close]),
        ("a chunk that is none", vec![send("zz\r\nxx\r\n"), Step::AwaitClose]),
        ("half a chunk", vec![send("fff\r\n"), Step::Close]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_broke_ends_in_its_dialects_error_and_never_cleanly() {
    let cases = [
        ("/api/chat", NDJSON, "{\"a\":1}\n", "{\"a\":1}\n{\"a\":1}\n{\"a\":1}\n"),
        (
            "/api/chat",
            NDJSON,
            "{\"a\":1}\n{\"hal",
            "{\"a\":1}\n{\"hal{\"a\":1}\n{\"hal{\"a\":1}\n{\"hal\n",
        ),
        (
            "/v1/chat/completions",
            SSE,
            "data: 1\n\n",
            "data: 1\n\ndata: 1\n\ndata: 1\n\nevent: error\ndata: ",
        ),
        (
            "/v1/messages",
            SSE,
            "data: 1\n\n",
            "data: 1\n\ndata: 1\n\ndata: 1\n\nevent: error\ndata: ",
        ),
        ("/v1/messages", SSE, "data: 1\n", "data: 1\ndata: 1\ndata: 1\n\n\nevent: error\ndata: "),
    ];
    for (how, death) in deaths() {
        for (path, kind, piece, before) in cases {
            let death = death.clone();
            let seen = Arc::new(Notify::new());
            let waits = Arc::clone(&seen);
            let backend = Backend::scripted(move |_| {
                let mut steps = vec![send(stream_head(kind))];
                steps.extend((0..3).map(|_| send(chunk(piece))));
                steps.push(Step::Wait(Arc::clone(&waits)));
                steps.extend(death.clone());
                steps
            })
            .await;
            let house = House::new(&backend).await;
            let mut caller = house.connect().await;
            caller.send(post(path, "{}")).await;
            // A reset throws away what the gate has not read yet.
            assert!(caller.sees_content(&piece.repeat(3)).await);
            seen.notify_one();
            let answer = caller.answer().await;
            assert_eq!(answer.status, 200);
            assert!(!answer.whole, "{how}, {path}: a broken answer ended like a whole one");
            let text = answer.text();
            let error = text.strip_prefix(before).unwrap_or_else(|| panic!("{how}: {text:?}"));
            assert!(error.ends_with(if kind == SSE { "\n\n" } else { "\n" }), "{error:?}");
            let error: serde_json::Value = serde_json::from_str(error).unwrap();
            let code = error.get("code").or_else(|| error.pointer("/error/code"));
            assert_eq!(code.unwrap(), "backend_failed", "{how}, {path}");
            if path == "/v1/messages" {
                assert_eq!(error["type"], "error");
            }
            assert!(caller.is_closed().await);
            let lines = house.lines().await;
            assert_eq!((lines.len(), &lines[0]["outcome"]), (1, &"backend_failed".into()), "{how}");
            assert_eq!(lines[0]["status"], 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_a_length_that_comes_short_is_only_cut() {
    for death in [Step::Close, Step::Reset] {
        let seen = Arc::new(Notify::new());
        let waits = Arc::clone(&seen);
        let backend = Backend::scripted(move |_| {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {NDJSON}\r\nContent-Length: 100\r\n\r\n");
            vec![send(head + "{\"half\":"), Step::Wait(Arc::clone(&waits)), death.clone()]
        })
        .await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(post("/api/chat", "{}")).await;
        assert!(caller.sees("{\"half\":").await);
        seen.notify_one();
        let answer = caller.answer().await;
        assert_eq!((answer.whole, answer.text().as_str()), (false, "{\"half\":"));
        assert_eq!(answer.header("content-length"), Some("100"));
        assert_eq!(house.lines().await[0]["outcome"], "backend_failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_backend_is_told_at_once_and_forgotten_when_it_comes() {
    // Bound but not listening: nobody else gets the port, and nobody is there.
    let place = TcpSocket::new_v4().unwrap();
    place.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", place.local_addr().unwrap());
    let nobody = Backend::ok().await;
    let house =
        House::with(&nobody, |config, _| config.backends[0].url = url.parse().unwrap()).await;
    let mut caller = house.connect().await;
    for (path, pointer) in [("/api/chat", "/code"), ("/v1/chat/completions", "/error/code")] {
        caller.send(post(path, "{}")).await;
        let answer = caller.answer().await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json().pointer(pointer).unwrap(), "no_backend");
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        assert_eq!(answer.header("x-should-retry"), Some("true"));
    }
    assert_eq!(house.get("/_portcullis/ready").await.json()["backends_up"], 0);
    let listener = place.listen(16).unwrap();
    caller.send(get("/api/tags")).await;
    let (socket, _) = listener.accept().await.unwrap();
    until("the request", || socket.try_read(&mut [0; 4096]).ok()).await;
    until("room", || socket.try_write(ok_json("[]").as_bytes()).ok()).await;
    assert_eq!(caller.answer().await.text(), "[]");
    assert_eq!(house.get("/_portcullis/ready").await.json()["backends_up"], 1);
    let lines = house.lines().await;
    assert_eq!(lines[0]["outcome"], "refused:no_backend");
    assert_eq!(lines[0]["backend"], "ollama");
}

/// An address where a connection is neither made nor refused, while what comes with it is kept.
async fn taking_nobody() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let place = TcpSocket::new_v4().unwrap();
    place.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = place.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // A full queue lets further callers wait without an answer.
    let mut queue = Vec::new();
    for _ in 0..64 {
        let connecting = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(300), connecting).await {
            Ok(socket) => queue.push(socket.unwrap()),
            Err(_) => break,
        }
    }
    (address, (listener, queue))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_while_the_gate_connects_frees_the_slot() {
    let (address, _full) = taking_nobody().await;
    let nobody = Backend::ok().await;
    let house = House::with(&nobody, |config, _| {
        config.backends[0].url = format!("http://{address}").parse().unwrap();
        config.backends[0].parallel = NonZeroU32::new(1).map(AtOnce::AtMost);
    })
    .await;
    let line = Arc::clone(house.gateway.state().pool().line());
    let counts = || line.with(|queue, now| (queue.seen(now).len(), queue.queued()));
    let mut callers = Vec::new();
    for expected in [(1, 0), (2, 1)] {
        let mut caller = house.connect().await;
        caller.send(post("/api/chat", "{\"model\":\"m\"}")).await;
        until("its place", || (counts() == expected).then_some(())).await;
        callers.push(caller);
    }
    for expected in [(1, 0), (0, 0)] {
        let left = Instant::now();
        drop(callers.remove(0));
        until("the slot", || (counts() == expected).then_some(())).await;
        assert!(left.elapsed() < SOON, "the slot was free after {:?}", left.elapsed());
    }
    let lines = house.log.wait_for(2).await;
    assert!(lines.iter().all(|line| line["outcome"] == "client_gone"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_takes_no_connection_is_given_up() {
    let (address, _full) = taking_nobody().await;
    let nobody = Backend::ok().await;
    let house = House::with(&nobody, |config, _| {
        config.backends[0].url = format!("http://{address}").parse().unwrap();
        config.timeouts.connect = Duration::from_millis(200);
    })
    .await;
    let answer = house.ask(post("/api/chat", "{}")).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_backend"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_backend_is_given_up() {
    let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let house = House::with(&backend, |config, _| {
        config.timeouts.first_byte = Duration::from_millis(200);
    })
    .await;
    let answer = house.ask(post("/api/chat", "{}")).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "backend_timeout"));
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    backend.wait_for_closed(1).await;
    assert_eq!(backend.seen().len(), 1, "a generation is not repeatable");
    assert_eq!(house.lines().await[0]["outcome"], "refused:backend_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_falls_silent_is_cut_but_a_slow_one_is_not() {
    let next = Arc::new(Notify::new());
    let slow = Arc::clone(&next);
    let backend = Backend::scripted(move |_| {
        let mut steps = vec![send(stream_head(NDJSON))];
        for _ in 0..7 {
            steps.extend([send(chunk("{}\n")), Step::Wait(Arc::clone(&slow))]);
        }
        steps.extend([send(chunk("{}\n")), Step::AwaitClose]);
        steps
    })
    .await;
    let idle = Duration::from_millis(500);
    let house = House::with(&backend, |config, _| config.timeouts.idle = idle).await;
    let mut caller = house.connect().await;
    let started = Instant::now();
    caller.send(post("/api/chat", "{}")).await;
    for seen in 1..=7 {
        assert!(caller.sees_content(&"{}\n".repeat(seen)).await, "cut between slow bytes");
        // A token every fifth of the limit, for longer than the limit in all.
        tokio::time::sleep(idle / 5).await;
        next.notify_one();
    }
    let answer = caller.answer().await;
    assert!(started.elapsed() > idle * 2, "cut {:?} after the start", started.elapsed());
    assert!(!answer.whole);
    let text = answer.text();
    let error = text.strip_prefix(&"{}\n".repeat(8)).unwrap_or_else(|| panic!("{text:?}"));
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(error).unwrap()["code"],
        "backend_timeout"
    );
    backend.wait_for_closed(1).await;
    assert_eq!(house.lines().await[0]["outcome"], "backend_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_backend_back() {
    const PIECE: usize = 64 * 1024;
    let backend = Backend::scripted(|_| {
        let piece = format!("{PIECE:x}\r\n{}\r\n", "x".repeat(PIECE));
        vec![send(stream_head(NDJSON)), Step::Flood(piece.into_bytes(), 4800), send("0\r\n\r\n")]
    })
    .await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    assert!(caller.sees("xxx").await);
    let (mut before, mut still) = (0, 0);
    let taken = until("the flood to stand still", || {
        let sent = backend.bytes_sent();
        still = if sent == before { still + 1 } else { 0 };
        before = sent;
        (still == 100).then_some(sent)
    })
    .await;
    assert!(taken < 16_000_000, "{taken} bytes were taken for a caller who does not read");
    drop(caller);
    left_behind(house, &backend, 1).await;
}

/// A gate that gives up a caller who takes nothing for as long, and an answer without an end.
async fn flooding(stall: Duration) -> (Backend, House) {
    let backend = Backend::scripted(|_| {
        let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        vec![send(stream_head(NDJSON)), Step::Flood(piece.into_bytes(), usize::MAX)]
    })
    .await;
    let house = House::with(&backend, |config, _| config.timeouts.idle = stall).await;
    (backend, house)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_takes_nothing_is_given_up() {
    let (backend, house) = flooding(Duration::from_millis(300)).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    assert!(caller.sees("xxx").await);
    // The caller stays, and reads no more.
    backend.wait_for_closed(1).await;
    left_behind(house, &backend, 1).await;
    assert!(!caller.answer().await.whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_takes_little_is_served_on() {
    let stall = Duration::from_millis(500);
    let (backend, house) = flooding(stall).await;
    let socket = TcpSocket::new_v4().unwrap();
    // The window opens again after a few of the sips below.
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut caller = socket.connect(house.address).await.unwrap();
    caller.write_all(post("/api/chat", "{}").as_bytes()).await.unwrap();
    let (started, mut sip) = (Instant::now(), vec![0; 8 * 1024]);
    while started.elapsed() < 5 * stall {
        tokio::time::sleep(stall / 20).await;
        assert!(caller.read(&mut sip).await.is_ok_and(|read| read > 0), "{:?}", started.elapsed());
    }
    assert_eq!(backend.connections(), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_http_1_0_gets_the_bytes_without_chunks() {
    let streamed = stream_head(NDJSON) + &chunk("{}\n") + &chunk("[]\n") + "0\r\n\r\n";
    for (raw, body) in [(streamed, "{}\n[]\n"), (ok_json("[1]"), "[1]")] {
        let backend = Backend::saying(raw).await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(format!("GET /api/tags HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n")).await;
        let all = caller.rest().await;
        let end = find(&all, b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
        assert!(head.starts_with("http/1.0 200 ") || head.starts_with("http/1.1 200 "), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert_eq!(&all[end..], body.as_bytes());
        assert_eq!(house.lines().await[0]["outcome"], "done");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_keep_their_framing_and_their_connection() {
    let cases = [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Some("7")),
    ];
    for (method, raw, length) in cases {
        let backend = Backend::saying(raw).await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        let request = get("/api/tags").replace("GET", method);
        // What follows would be out of step if a byte too many or too few had come.
        for round in 0..3 {
            caller.send(&request).await;
            let answer = caller.answer_to(method).await;
            assert!(answer.whole, "{raw} {round}");
            assert_eq!(answer.header("content-length"), length, "{raw}");
            assert_eq!(answer.header("transfer-encoding"), None, "{raw}");
            assert!(raw.contains(&format!(" {} ", answer.status)));
        }
        assert_eq!(backend.connections().0, 1, "{method} {raw}");
        let lines = house.lines().await;
        assert!(
            lines.len() == 3 && lines.iter().all(|line| line["outcome"] == "done"),
            "{lines:?}"
        );
        assert!(lines.iter().all(|line| line["bytes_out"] == 0), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_with_its_connection_is_passed_whole() {
    let raw = format!("HTTP/1.0 200 OK\r\nContent-Type: {NDJSON}\r\n\r\n{{}}\n");
    let backend = Backend::scripted(move |_| vec![send(raw.clone()), Step::Close]).await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    for _ in 0..2 {
        caller.send(get("/api/tags")).await;
        let answer = caller.answer().await;
        assert_eq!((answer.whole, answer.text().as_str()), (true, "{}\n"));
    }
    assert_eq!(backend.connections().0, 2);
    assert!(house.lines().await.iter().all(|line| line["outcome"] == "done"));
}
