//! A backend that answers what it must not, and connections that went bad while they were kept.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::house::{Backend, House, Step, get, ok_json, post, stream_head, until};

fn send(text: impl Into<Vec<u8>>) -> Step {
    Step::Send(text.into())
}

fn hostile() -> Vec<(&'static str, Vec<Step>)> {
    let head = "HTTP/1.1 200 OK\r\n";
    let say = |rest: &str| vec![send(format!("{head}{rest}\r\n\r\nhello"))];
    vec![
        ("two lengths", say("Content-Length: 5\r\nContent-Length: 4")),
        ("a list of lengths", say("Content-Length: 5, 4")),
        ("a length that is none", say("Content-Length: five")),
        ("a length below zero", say("Content-Length: -5")),
        ("NUL in a value", say("X-A: a\0b\r\nContent-Length: 5")),
        ("CR in a value", say("X-A: a\rb\r\nContent-Length: 5")),
        ("NUL in a name", say("X\0A: a\r\nContent-Length: 5")),
        ("2 MB of head", say(&format!("X-A: {}\r\nContent-Length: 5", "a".repeat(2_000_000)))),
        (
            "endless heads",
            vec![send(head), Step::Flood(b"X-Again: and again\r\n".to_vec(), 200_000)],
        ),
        ("101 heads", say(&(0..101).map(|n| format!("X-{n}: 1\r\n")).collect::<String>())),
        ("garbage", vec![send(vec![0x16, 3, 1, 0xff, 0xff, b'\r', b'\n', b'\r', b'\n'])]),
        ("another protocol", vec![send("SSH-2.0-OpenSSH_9.2\r\n\r\n")]),
        ("status 1000", vec![send("HTTP/1.1 1000 Odd\r\nContent-Length: 0\r\n\r\n")]),
        ("half a head", vec![send("HTTP/1.1 200 OK\r\nContent-"), Step::Close]),
        ("nothing", vec![Step::Close]),
        ("a reset", vec![Step::Reset]),
        (
            "20,000 interim answers",
            vec![
                Step::Flood(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_vec(), 20_000),
                send(ok_json("[]")),
            ],
        ),
        (
            "an unasked 101",
            vec![send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
            )],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_answer_is_a_502_and_its_connection_is_never_used_again() {
    for (what, steps) in hostile() {
        let backend = Backend::scripted(move |seen| match seen.connection {
            0 => steps.clone(),
            _ => vec![send(ok_json("[]"))],
        })
        .await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(post("/api/chat", "{}")).await;
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "backend_failed"), "{what}");
        assert_eq!(answer.header("link"), None);
        assert_eq!(backend.seen().len(), 1, "{what}: a request that was read is not sent again");
        backend.wait_for_closed(1).await;
        caller.send(get("/api/tags")).await;
        assert_eq!(caller.answer().await.text(), "[]", "{what}");
        assert_eq!(backend.seen()[1].connection, 1, "{what}");
        let lines = house.lines().await;
        assert_eq!(lines.len(), 2, "{what}");
        assert_eq!(lines[0]["outcome"], "refused:backend_failed", "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_beside_chunks_is_stripped() {
    let head = stream_head("application/json");
    let head = head.replace("Transfer-Encoding", "Content-Length: 3\r\nTransfer-Encoding");
    let backend = Backend::saying(head + "5\r\n[1,2]\r\n0\r\n\r\n").await;
    let house = House::new(&backend).await;
    let answer = house.get("/api/tags").await;
    assert_eq!((answer.status, answer.text().as_str(), answer.whole), (200, "[1,2]", true));
    assert_eq!(answer.header("content-length"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_interim_answers_are_borne_and_not_passed_on() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(5);
    let backend = Backend::saying(interim + &ok_json("[]")).await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(get("/api/tags")).await;
    assert!(caller.sees("[]").await);
    let first = caller.sees("HTTP/1.1 200").await;
    let answer = caller.answer().await;
    assert!(first && answer.status == 200 && answer.text() == "[]");
    assert_eq!(answer.header("link"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_surplus_answer_reaches_nobody() {
    let surplus = ok_json("{\"for\":\"somebody else\"}");
    let backend = Backend::scripted(move |seen| match seen.connection {
        0 => vec![send(ok_json("[1]") + &surplus)],
        _ => vec![send(ok_json("[2]"))],
    })
    .await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    for expected in ["[1]", "[2]", "[2]"] {
        caller.send(get("/api/tags")).await;
        assert_eq!(caller.answer().await.text(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_speaks_before_it_is_asked_is_not_believed() {
    let backend = Backend::raw(|mut socket: TcpStream, _| async move {
        let _ = socket.write_all(ok_json("{\"never\":\"asked\"}").as_bytes()).await;
        let _ = socket.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let house = House::new(&backend).await;
    let answer = house.ask(post("/api/chat", "{}")).await;
    // The answer may win the race against the request that it does not answer; HTTP/1.1 cannot tell.
    match answer.status {
        200 => {}
        status => assert_eq!((status, answer.code().as_str()), (502, "backend_failed")),
    }
    assert_eq!(backend.connections().0, 1, "a fresh connection that failed is not tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_went_bad_while_idle_is_never_used() {
    let ends = [
        ("closed", vec![Step::Close]),
        ("reset", vec![Step::Reset]),
        ("written to", vec![send(ok_json("{\"stale\":1}")), Step::AwaitClose]),
        ("written one byte to", vec![send("\n"), Step::AwaitClose]),
    ];
    for (what, end) in ends {
        for round in 0..5 {
            let bad = Arc::new(Notify::new());
            let (waits, end) = (Arc::clone(&bad), end.clone());
            let backend = Backend::scripted(move |seen| match seen.connection {
                0 => {
                    let mut steps = vec![send(ok_json("[1]")), Step::Wait(Arc::clone(&waits))];
                    steps.extend(end.clone());
                    steps
                }
                _ => vec![send(ok_json("[2]"))],
            })
            .await;
            let house = House::new(&backend).await;
            let mut caller = house.connect().await;
            caller.send(get("/api/tags")).await;
            assert_eq!(caller.answer().await.text(), "[1]");
            let sent = backend.bytes_sent();
            bad.notify_one();
            until("the connection to go bad", || {
                (backend.connections().1 == 1 || backend.bytes_sent() > sent).then_some(())
            })
            .await;
            caller.send(post("/api/chat", "{}")).await;
            let answer = caller.answer().await;
            assert_eq!((answer.status, answer.text().as_str()), (200, "[2]"), "{what} {round}");
            let seen = backend.seen();
            assert_eq!((seen.len(), seen[1].connection), (2, 1), "{what} {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_a_backend_has_read_is_not_sent_again() {
    for end in [Step::Close, Step::Reset] {
        let backend = Backend::scripted(move |seen| match seen.line().starts_with("GET") {
            true => vec![send(ok_json("[]"))],
            false => vec![end.clone()],
        })
        .await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        // Once over a fresh connection, once over a kept one.
        for first in [false, true] {
            if first {
                caller.send(get("/api/tags")).await;
                assert_eq!(caller.answer().await.status, 200);
            }
            let before = backend.seen().len();
            caller.send(post("/api/chat", "{}")).await;
            let answer = caller.answer().await;
            assert_eq!((answer.status, answer.code().as_str()), (502, "backend_failed"));
            assert_eq!(backend.seen().len(), before + 1, "kept: {first}");
        }
        let seen = backend.seen();
        assert_eq!(
            seen[2].connection, seen[1].connection,
            "the second went over a kept connection"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_answer_was_not_read_whole_is_not_kept() {
    let backend = Backend::scripted(|seen| match seen.connection {
        0 => {
            vec![send(stream_head("application/x-ndjson")), send("3\r\n{}\n\r\n"), Step::AwaitClose]
        }
        _ => vec![send(ok_json("[2]"))],
    })
    .await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/chat", "{}")).await;
    assert!(caller.sees("{}\n").await);
    drop(caller);
    backend.wait_for_closed(1).await;
    assert_eq!(house.get("/api/tags").await.text(), "[2]");
    assert_eq!(backend.connections().0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_asks_to_close_is_not_asked_again_over_that_connection() {
    let raw = ok_json("[]").replace("Content-Type", "Connection: close\r\nContent-Type");
    let backend = Backend::saying(raw).await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    for _ in 0..3 {
        caller.send(get("/api/tags")).await;
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, None));
    }
    assert_eq!(backend.connections().0, 3);
}
