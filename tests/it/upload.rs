//! Request bodies: blobs that stream through, everything else that is read whole, and both gone wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::house::{Backend, Caller, House, KEY, Step, find, get, ok_json, post, until};

/// An endpoint whose body is taken whole and not looked into.
const UNREAD: &str = "/api/later";
const BLOB: &str =
    "/api/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The head of a request with the key; `framing` announces its body.
fn head(path: &str, framing: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n{framing}\r\n\r\n")
}

/// What came over a backend's connections, byte for byte, as it comes.
#[derive(Clone, Default)]
struct Arrived(Arc<Mutex<Vec<u8>>>);

impl Arrived {
    fn holds(&self, what: &[u8]) -> bool {
        find(&self.0.lock().unwrap(), what).is_some()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Reads until the other side ends, or `stop` was seen; true for the latter.
    async fn take_from(&self, socket: &mut TcpStream, stop: &[u8]) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if !stop.is_empty() && self.holds(stop) {
                return true;
            }
            match socket.read(&mut buffer).await {
                Ok(read) if read > 0 => self.0.lock().unwrap().extend_from_slice(&buffer[..read]),
                _ => return false,
            }
        }
    }
}

/// Takes everything and answers once `stop` came.
async fn taking(stop: &'static [u8], answer: String) -> (Backend, Arrived) {
    let arrived = Arrived::default();
    let shared = arrived.clone();
    let backend = Backend::raw(move |mut socket, _| {
        let (arrived, answer) = (shared.clone(), answer.clone());
        async move {
            if arrived.take_from(&mut socket, stop).await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, answer.as_bytes()).await;
                arrived.take_from(&mut socket, b"").await;
            }
        }
    })
    .await;
    (backend, arrived)
}

fn small(config: &mut portcullis::config::Config) {
    config.max_body = 1_000;
    config.max_body_memory = 4_096;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_reaches_the_backend_while_it_is_still_being_sent() {
    let piece = "x".repeat(100_000);
    for chunked in [false, true] {
        let (backend, arrived) = taking(b"the-end", ok_json("{}")).await;
        // Far beyond what any other body may have.
        let house = House::with(&backend, |config, _| small(config)).await;
        let mut caller = house.connect().await;
        let framed = |text: &str| match chunked {
            true => format!("{:x}\r\n{text}\r\n", text.len()),
            false => text.to_owned(),
        };
        let length = 20 * (piece.len() + 10) + 7;
        let framing = if chunked {
            "Transfer-Encoding: chunked"
        } else {
            &format!("Content-Length: {length}")
        };
        caller.send(head(BLOB, framing)).await;
        for number in 0..20 {
            let mark = format!("<piece{number:02}>.");
            caller.send(framed(&format!("{piece}{mark}"))).await;
            until("a piece at the backend", || arrived.holds(mark.as_bytes()).then_some(())).await;
        }
        caller.send(framed("the-end")).await;
        if chunked {
            caller.send("0\r\nX-Trailer: 1\r\n\r\n").await;
        }
        assert_eq!(caller.answer().await.status, 200, "chunked: {chunked}");
        let text = arrived.text();
        assert!(!text.contains("X-Trailer"));
        assert_eq!(
            text.matches('x').count() - text[..text.find("\r\n\r\n").unwrap()].matches('x').count(),
            20 * piece.len()
        );
        let sent_length = text.to_lowercase().contains(&format!("content-length: {length}\r\n"));
        assert_eq!(sent_length, !chunked);
        let line = &house.lines().await[0];
        assert_eq!((&line["outcome"], &line["operation"]), (&"done".into(), &"blob".into()));
        assert_eq!(line["bytes_in"], length);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_backend_does_not_take_is_held_back() {
    let hold = Arc::new(Notify::new());
    let release = Arc::clone(&hold);
    let backend = Backend::raw(move |socket, _| {
        let release = Arc::clone(&release);
        async move {
            release.notified().await;
            drop(socket);
        }
    })
    .await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    caller.send(head(BLOB, "Content-Length: 1000000000")).await;
    let (mut sent, mut still) = (0, 0);
    until("the gate to take no more", || {
        match caller.socket.try_write(&[b'x'; 64 * 1024]) {
            Ok(bytes) => (sent, still) = (sent + bytes, 0),
            Err(_) => still += 1,
        }
        (still == 100).then_some(())
    })
    .await;
    assert!(sent < 24_000_000, "{sent} bytes were taken for a backend that does not read");
    hold.notify_one();
    assert_eq!(caller.answer().await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_answers_before_the_end_of_an_upload_is_heard() {
    let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 15\r\n\r\ndigest mismatch";
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let (backend, _) = taking(b"first", refusal.to_owned()).await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(head(BLOB, framing) + "5\r\nfirst\r\n").await;
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (400, "digest mismatch"), "{framing}");
        assert_eq!(answer.header("connection"), Some("close"));
        // The rest of the body could be taken for a request.
        caller.send(get("/api/tags")).await;
        assert!(caller.is_closed().await, "{framing}");
        backend.wait_for_closed(1).await;
        let lines = house.lines().await;
        assert_eq!(lines.len(), 1, "what came behind is no request: {lines:?}");
        assert_eq!((&lines[0]["status"], &lines[0]["outcome"]), (&400.into(), &"done".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_dies_in_an_upload_is_a_502_and_asked_once() {
    for reset in [false, true] {
        let backend = Backend::raw(move |mut socket, _| async move {
            Arrived::default().take_from(&mut socket, b"first").await;
            if reset {
                socket.set_zero_linger().unwrap();
            }
        })
        .await;
        let house = House::new(&backend).await;
        let mut caller = house.connect().await;
        caller.send(head(BLOB, "Content-Length: 1000000") + "first").await;
        let answer = caller.answer().await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "backend_failed"),
            "reset: {reset}"
        );
        assert_eq!(backend.connections().0, 1);
        assert_eq!(house.lines().await[0]["outcome"], "refused:backend_failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_in_an_upload_ends_it_uncleanly_at_the_backend() {
    for (framing, piece) in
        [("Content-Length: 1000000", "first"), ("Transfer-Encoding: chunked", "5\r\nfirst\r\n")]
    {
        for reset in [false, true] {
            let (backend, arrived) = taking(b"never", String::new()).await;
            let house = House::new(&backend).await;
            let mut caller = house.connect().await;
            caller.send(head(BLOB, framing) + piece).await;
            until("the first bytes", || arrived.holds(b"first").then_some(())).await;
            if reset {
                caller.socket.set_zero_linger().unwrap();
            }
            drop(caller);
            backend.wait_for_closed(1).await;
            assert!(
                !arrived.holds(b"\r\n0\r\n\r\n"),
                "half a blob looks whole: {}",
                arrived.text()
            );
            house.log.wait_for(1).await;
            let lines = house.lines().await;
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert_eq!(lines[0]["outcome"], "client_gone", "{framing}, reset: {reset}");
            assert_eq!(lines[0]["bytes_in"], 5);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_too_slowly_is_a_408() {
    for path in [UNREAD, BLOB] {
        let (backend, _) = taking(b"never", String::new()).await;
        let house = House::with(&backend, |config, _| {
            config.timeouts.body_grace = Duration::from_millis(200);
        })
        .await;
        let mut caller = house.connect().await;
        // 50 bytes buy a tenth of a second beyond the grace.
        caller.send(head(path, "Content-Length: 1000000") + &"x".repeat(50)).await;
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"), "{path}");
        assert!(caller.is_closed().await);
        let opened = backend.connections().0;
        assert_eq!(opened, usize::from(path == BLOB));
        backend.wait_for_closed(opened).await;
        let lines = house.lines().await;
        assert_eq!((lines.len(), &lines[0]["outcome"]), (1, &"refused:request_timeout".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_keeps_its_pace_is_taken_however_long_it_takes() {
    for path in [UNREAD, BLOB] {
        let (backend, _) = taking(b"the-end", ok_json("{}")).await;
        let grace = Duration::from_millis(400);
        let house = House::with(&backend, |config, _| config.timeouts.body_grace = grace).await;
        let mut caller = house.connect().await;
        let started = tokio::time::Instant::now();
        caller.send(head(path, "Content-Length: 10007")).await;
        // Ten times the slowest pace, for longer than the grace.
        for _ in 0..10 {
            caller.send("x".repeat(1_000)).await;
            tokio::time::sleep(grace / 4).await;
        }
        caller.send("the-end").await;
        assert!(started.elapsed() > grace);
        assert_eq!(caller.answer().await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_framed_right_is_a_400_and_ends_the_upload_uncleanly() {
    for path in [UNREAD, BLOB] {
        for bad in
            ["xyz\r\n", "-1\r\n", "5\r\nfirstXX5\r\n", "fffffffffffffffff\r\n", "0x1\r\n", "\r\n"]
        {
            let (backend, arrived) = taking(b"never", String::new()).await;
            let house = House::new(&backend).await;
            let mut caller = house.connect().await;
            caller.send(head(path, "Transfer-Encoding: chunked") + "3\r\none\r\n").await;
            caller.send(bad).await;
            let answer = caller.answer().await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (400, "bad_body"),
                "{path} {bad:?}"
            );
            assert!(caller.is_closed().await);
            backend.wait_for_closed(backend.connections().0).await;
            assert!(!arrived.holds(b"\r\n0\r\n\r\n"), "{path} {bad:?}");
            if path != BLOB {
                assert_eq!(backend.connections().0, 0, "{bad:?}");
            }
            let lines = house.lines().await;
            assert_eq!(
                (lines.len(), &lines[0]["outcome"]),
                (1, &"refused:bad_body".into()),
                "{bad:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_at_once_or_at_the_limit() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.max_body = 1_000).await;
    // Announced: refused although not a byte of it has come.
    let answer = house.ask(head(UNREAD, "Content-Length: 1001")).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert!(answer.text().contains("1000 bytes"), "{}", answer.text());
    // Chunked: refused at the limit although no end has come.
    let mut caller = house.connect().await;
    caller.send(head(UNREAD, "Transfer-Encoding: chunked")).await;
    for _ in 0..3 {
        caller.send(format!("190\r\n{}\r\n", "x".repeat(400))).await;
    }
    assert_eq!(caller.answer().await.status, 413);
    assert!(caller.is_closed().await);
    // At the limit it passes, both ways.
    assert_eq!(house.ask(post(UNREAD, &"x".repeat(1_000))).await.status, 200);
    let chunked = format!("3e8\r\n{}\r\n0\r\n\r\n", "x".repeat(1_000));
    assert_eq!(house.ask(head(UNREAD, "Transfer-Encoding: chunked") + &chunked).await.status, 200);
    assert_eq!(backend.seen().len(), 2);
    let lines = house.lines().await;
    let refused = lines.iter().filter(|line| line["outcome"] == "refused:body_too_large").count();
    assert_eq!((lines.len(), refused), (4, 2));
}

/// A caller whose body of 60,000 bytes is on its way.
async fn heavy(house: &House, framing: &str, begun: &str) -> Caller {
    let mut caller = house.connect().await;
    caller.send(head(UNREAD, framing) + begun).await;
    until("a request in flight", || (house.gateway.in_flight() == 1).then_some(())).await;
    caller
}

async fn overloaded(house: &House) -> bool {
    let answer = house.ask(post(UNREAD, &"x".repeat(10_000))).await;
    if answer.status == 503 {
        assert_eq!(answer.code(), "overloaded");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.header("x-should-retry"), Some("true"));
    } else {
        assert_eq!(answer.status, 200);
    }
    answer.status == 503
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_together_have_a_bound_and_give_their_memory_back() {
    let chunk = format!("ea60\r\n{}\r\n", "x".repeat(60_000));
    let ways = [
        ("Content-Length: 60000", "x", "x".repeat(59_999)),
        ("Transfer-Encoding: chunked", &*chunk, "0\r\n\r\n".to_owned()),
    ];
    for (framing, begun, rest) in ways {
        let backend = Backend::ok().await;
        let house = House::with(&backend, |config, _| config.max_body_memory = 64 * 1024).await;
        for leaves in [true, false, true, false] {
            let mut first = heavy(&house, framing, begun).await;
            let started = tokio::time::Instant::now();
            while !overloaded(&house).await {
                assert!(started.elapsed() < Duration::from_secs(20), "{framing}: no bound");
            }
            if leaves {
                drop(first);
            } else {
                first.send(&rest).await;
                assert_eq!(first.answer().await.status, 200);
                drop(first);
            }
            until("nothing in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
            assert!(!overloaded(&house).await, "{framing}: the memory did not come back");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_sent_gives_its_memory_back_before_the_answer() {
    let hold = Arc::new(Notify::new());
    let release = Arc::clone(&hold);
    let backend = Backend::scripted(move |seen| match seen.body.len() {
        60_000 => vec![Step::Wait(Arc::clone(&release)), Step::Send(ok_json("{}").into())],
        _ => vec![Step::Send(ok_json("{}").into())],
    })
    .await;
    let house = House::with(&backend, |config, _| config.max_body_memory = 64 * 1024).await;
    let mut first = house.connect().await;
    first.send(post(UNREAD, &"x".repeat(60_000))).await;
    backend.wait_for_request(1).await;
    let started = tokio::time::Instant::now();
    while overloaded(&house).await {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "a generation holds its prompt's memory"
        );
    }
    hold.notify_one();
    assert_eq!(first.answer().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_may_not_send_is_not_asked_to() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.max_body = 1_000).await;
    let expecting = |path: &str, length: u32, key: &str| {
        head(path, &format!("Expect: 100-continue\r\nContent-Length: {length}")).replace(KEY, key)
    };
    let refused = [
        (expecting(UNREAD, 100, "wrong"), 401),
        (expecting(BLOB, 100, "wrong"), 401),
        (expecting(UNREAD, 1_001, KEY), 413),
        (expecting("/api/me", 100, KEY), 403),
        (expecting("/api/tags", 100, KEY), 405),
    ];
    for (request, status) in refused {
        let mut caller = house.connect().await;
        caller.send(&request).await;
        let all = String::from_utf8(caller.rest().await).unwrap();
        assert!(all.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {all}");
        assert!(!all.contains("HTTP/1.1 100"), "{status}: {all}");
    }
    assert_eq!(backend.connections().0, 0);
    for path in [UNREAD, BLOB] {
        let mut caller = house.connect().await;
        caller.send(expecting(path, 100, KEY)).await;
        assert!(caller.sees("HTTP/1.1 100 Continue\r\n\r\n").await, "{path}");
        caller.send("x".repeat(100)).await;
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}"), "{path}");
        let seen = backend.seen().pop().unwrap();
        assert_eq!((seen.body.len(), seen.header("expect")), (100, None));
    }
}
