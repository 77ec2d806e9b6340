//! Callers against the backend, and against servers that answer wrongly.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::thread;

use super::*;
use crate::backend;
use crate::script::{Chat, Head};
use crate::tls::Identity;

fn group(address: SocketAddr, line: &str, want: Want) -> Group {
    let head = Head { line, host: address, authorization: "", close: false };
    let ask = match &want {
        Want::Stream(chat) => Ask::Same(head.json(&chat.body())),
        Want::Exact(..) | Want::Containing(..) | Want::Status(_) => Ask::Same(head.alone()),
    };
    Group {
        name: "a caller".into(),
        address,
        callers: 3,
        over: Over::Plain,
        ask,
        want,
        pace: Pace::Closed,
        fresh: false,
        spread: Duration::ZERO,
    }
}

fn version(address: SocketAddr, body: &str) -> Group {
    group(address, "GET /api/version", Want::Exact(200, body.as_bytes().to_vec()))
}

fn run(clock: Clock, group: Group) -> anyhow::Result<Tally> {
    let mut load = Load::start(clock, vec![group])?;
    load.run_until(20, Duration::from_secs(30))?;
    let tally = load.take().pop().context("no tally")?;
    load.finish()?;
    Ok(tally)
}

/// Answers each connection's first request with these bytes, and closes it.
fn answering(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // a caller that has given up is no fault of this side
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(bytes);
        }
    });
    address
}

fn fault(group: Group) -> String {
    format!("{:#}", run(Clock::new(), group).err().unwrap())
}

#[test]
fn requests_on_kept_and_on_new_connections_are_answered() {
    let clock = Clock::new();
    let backend = backend::start(clock).unwrap();
    for close in [false, true] {
        let head =
            Head { line: "GET /api/version", host: backend, authorization: "", close }.alone();
        let group =
            Group { fresh: close, ask: Ask::Same(head), ..version(backend, script::VERSION) };
        assert!(run(clock, group).unwrap().answers >= 20);
    }
}

#[test]
fn a_streams_tokens_are_counted_and_timed() {
    let clock = Clock::new();
    let backend = backend::start(clock).unwrap();
    let chat = Chat { tokens: 5, pace: 1000 };
    let tally = run(clock, group(backend, "POST /api/chat", Want::Stream(chat))).unwrap();
    assert!(tally.tokens >= 5 * tally.answers && tally.first.count() >= 20);
    assert!(tally.latency.millis(0.0) >= 4.9, "five tokens, each a millisecond after the last");
}

#[test]
fn an_upload_arrives_whole_and_one_with_a_wrong_length_is_noticed() {
    let clock = Clock::new();
    let backend = backend::start(clock).unwrap();
    let upload = |said: u64, length: u64, close: bool| {
        let line = format!("POST {}", script::BLOB);
        let head = Head { line: &line, host: backend, authorization: "", close }.upload(said);
        Group {
            ask: Ask::Upload { head, length },
            want: Want::Exact(201, Vec::new()),
            fresh: close,
            ..version(backend, "")
        }
    };
    for close in [false, true] {
        assert!(run(clock, upload(3_000_000, 3_000_000, close)).unwrap().answers >= 20);
    }
    assert!(run(clock, upload(2_000_000, 3_000_000, true)).is_err());
}

#[test]
fn a_pace_is_kept() {
    let clock = Clock::new();
    let backend = backend::start(clock).unwrap();
    let group = Group { pace: Pace::PerSecond(100.0), ..version(backend, script::VERSION) };
    let mut load = Load::start(clock, vec![group]).unwrap();
    load.run_for(Duration::from_millis(500)).unwrap();
    let answers = load.take().pop().unwrap().answers;
    // never more than were due; fewer only on a machine that is busy
    assert!((10..=51).contains(&answers), "{answers}");
}

#[test]
fn what_is_wrong_fails_the_run() {
    let backend = backend::start(Clock::new()).unwrap();
    assert!(fault(version(backend, "{\"version\":\"0.20.1\"}")).contains("a wrong body"));
    let refused = fault(group(backend, "GET /api/tags", Want::Status(200)));
    assert!(refused.contains("status 400"), "{refused}");

    let cut = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{");
    assert!(fault(group(cut, "GET /", Want::Status(200))).contains("before the answer's end"));
    let unsaid = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let unsaid = fault(group(unsaid, "GET /", Want::Status(200)));
    assert!(!unsaid.is_empty(), "a close that was not announced");
    let more = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab");
    assert!(fault(group(more, "GET /", Want::Status(200))).contains("after the answer"));
    let short = answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na");
    let short = fault(group(short, "GET /", Want::Exact(200, b"ab".to_vec())));
    assert!(short.contains("too short"), "{short}");
}

#[test]
fn a_token_that_is_lost_or_from_the_future_fails_the_run() {
    let chat = Chat { tokens: 3, pace: 1000 };
    let heard = |numbers: &[u64], now: u64| -> anyhow::Result<()> {
        let want = Want::Stream(chat);
        let (mut check, mut body) = (Check::default(), Vec::new());
        check.begin(100);
        for number in numbers {
            chat.line(*number, script::Times { sent: 300, got: 200 }, &mut body);
        }
        // pieces that end anywhere in a line
        for data in body.chunks(70) {
            check.take(&want, Piece { status: 200, data, now }, &mut Tally::default())?;
        }
        check.end(&want, 200)
    };
    heard(&[1, 2, 3], 400).unwrap();
    for lost in [&[1, 3][..], &[1, 2], &[2, 3], &[1, 2, 2, 3], &[1, 2, 3, 3]] {
        assert!(heard(lost, 400).is_err(), "{lost:?}");
    }
    assert!(heard(&[1, 2, 3], 299).is_err());
}

/// Shows this certificate, speaks that, and answers each connection's first request with these bytes.
fn answering_over_tls(identity: &Identity, speaks: &'static [u8], bytes: &[u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (config, bytes) = (identity.server(speaks), bytes.to_vec());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            // a caller that refuses the certificate is no fault of this side
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(&bytes);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    address
}

#[test]
fn over_tls_answers_count_and_another_certificate_or_protocol_does_not() {
    let (identity, other) = (Identity::new().unwrap(), Identity::new().unwrap());
    let body = script::VERSION;
    let bytes = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let address = answering_over_tls(&identity, b"http/1.1", bytes.as_bytes());
    let over = |identity: &Identity, speaks| {
        let config = identity.callers(speaks).unwrap();
        let over = match speaks {
            Speaks::Http1 => Over::Tls(config),
            Speaks::Http2 => Over::Http2(config, 2),
        };
        Group { over, fresh: true, ..version(address, body) }
    };
    assert!(run(Clock::new(), over(&identity, Speaks::Http1)).unwrap().answers >= 20);
    let refused = fault(over(&other, Speaks::Http1));
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    assert!(!fault(over(&identity, Speaks::Http2)).is_empty());
}
