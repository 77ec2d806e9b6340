//! What is written, byte for byte, and answers that are right, in pieces, and wrong.

use std::time::Duration;

use super::*;
use crate::load::{Ask, Group, Over, Pace};
use crate::script::{Chat, Head, Times};

const CHAT: Chat = Chat { tokens: 2, pace: 1000 };

fn state(want: Want) -> State {
    let group = Group {
        name: String::new(),
        address: "127.0.0.1:1".parse().unwrap(),
        callers: 1,
        over: Over::Plain,
        ask: Ask::Same(Vec::new()),
        want,
        pace: Pace::Closed,
        fresh: false,
        spread: Duration::ZERO,
    };
    let (idle, waiting) = Default::default();
    State { group, tally: Tally::default(), asked: 0, idle, waiting, ending: false }
}

fn get() -> Vec<u8> {
    let host = "127.0.0.1:1".parse().unwrap();
    Head { line: "GET /a", host, authorization: "Bearer k", close: false }.alone()
}

/// A connection that has asked on that many streams.
fn asking(streams: usize) -> Http2 {
    let mut http2 = Http2::new(streams, &get()).unwrap();
    for _ in 0..streams {
        assert!(http2.ask(100, &mut Vec::new()).unwrap());
    }
    http2
}

fn answer(id: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame(kind::HEADERS, END_HEADERS, id, &[0x88, 0x5c], &mut bytes);
    frame(kind::DATA, END_STREAM, id, body, &mut bytes);
    bytes
}

fn hear(http2: &mut Http2, want: Want, bytes: &[u8]) -> anyhow::Result<(Tally, Vec<u8>)> {
    let (mut state, mut out) = (state(want), Vec::new());
    state.ending = true;
    http2.take_in(bytes, &mut state, 400, &mut out)?;
    Ok((state.tally, out))
}

fn fault(bytes: &[u8]) -> String {
    let heard = hear(&mut asking(1), Want::Exact(200, b"hi".to_vec()), bytes);
    format!("{:#}", heard.err().unwrap())
}

#[test]
fn the_first_request_fills_the_table_and_the_later_ones_point_to_it() {
    let ([first, later], body) = translate(&get()).unwrap();
    assert_eq!(later, [0x82, 0x87, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
    assert!(first.starts_with(b"\x82\x87\x44\x02/a\x41\x0b127.0.0.1:1\x7a\x05bench\x53\x03*/*"));
    assert!(first.ends_with(b"\x57\x08Bearer k") && body.is_empty());
    let host = "127.0.0.1:1".parse().unwrap();
    let head = Head { line: "POST /api/chat", host, authorization: "", close: false };
    let (_, body) = translate(&head.json(&CHAT.body())).unwrap();
    assert_eq!(body, CHAT.body().as_bytes());
    assert!(translate(b"PUT / HTTP/1.1\r\n\r\n").is_err());
}

#[test]
fn answers_are_counted_in_any_order_and_in_any_pieces() {
    let bytes = [answer(3, b"hi"), answer(1, b"hi")].concat();
    for size in 1..bytes.len() {
        let (mut http2, mut answers) = (asking(2), 0);
        for piece in bytes.chunks(size) {
            let want = Want::Exact(200, b"hi".to_vec());
            answers += hear(&mut http2, want, piece).unwrap().0.answers;
        }
        assert_eq!((answers, http2.idle()), (2, 2), "pieces of {size}");
    }
}

#[test]
fn a_stream_that_is_over_begins_another_until_the_other_side_wants_none() {
    let mut http2 = asking(1);
    let mut state = state(Want::Exact(200, b"hi".to_vec()));
    let mut out = Vec::new();
    http2.take_in(&answer(1, b"hi"), &mut state, 400, &mut out).unwrap();
    assert_eq!((http2.idle(), out.get(5..9)), (0, Some(&[0, 0, 0, 3][..])));
    let mut farewell = Vec::new();
    frame(kind::GOAWAY, 0, 0, &[0x7f, 255, 255, 255, 0, 0, 0, 0], &mut farewell);
    http2.take_in(&farewell, &mut state, 400, &mut out).unwrap();
    assert!(!http2.is_over(), "one is under way");
    http2.take_in(&answer(3, b"hi"), &mut state, 400, &mut out).unwrap();
    assert!(http2.is_over() && state.tally.answers == 2);
    http2.renew();
    assert!(http2.ask(400, &mut out).unwrap());
}

#[test]
fn what_the_other_side_says_of_the_connection_is_answered() {
    let mut bytes = Vec::new();
    frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100], &mut bytes);
    frame(kind::PING, 0, 0, b"12345678", &mut bytes);
    let (_, out) = hear(&mut asking(1), Want::Status(200), &bytes).unwrap();
    let mut due = Vec::new();
    frame(kind::SETTINGS, ACK, 0, &[], &mut due);
    frame(kind::PING, ACK, 0, b"12345678", &mut due);
    assert_eq!(out, due);
}

#[test]
fn what_is_wrong_fails_the_run() {
    assert!(fault(&answer(1, b"ho")).contains("a wrong body"));
    assert!(fault(&answer(1, b"h")).contains("too short"));
    assert!(fault(&answer(5, b"hi")).contains("stream 5 is not open"));
    let one = |kind, flags, id, payload: &[u8]| {
        let mut bytes = Vec::new();
        frame(kind, flags, id, payload, &mut bytes);
        fault(&bytes)
    };
    // 404
    assert!(one(kind::HEADERS, END_HEADERS, 1, &[0x8d]).contains("other than 200"));
    assert!(one(kind::HEADERS, 0, 1, &[0x88]).contains("in pieces"));
    assert!(one(kind::DATA, 0, 1, b"hi").contains("before its head"));
    assert!(one(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]).contains("reset: 8"));
    assert!(one(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 11]).contains("code 11"));
    assert!(one(kind::GOAWAY, 0, 0, &[0; 8]).contains("not looked at"));
    assert!(one(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]).contains("streams at most"));
    assert!(one(kind::CONTINUATION, 0, 1, &[]).contains("kind 9"));
}

#[test]
fn a_token_that_is_lost_fails_the_run() {
    let heard = |numbers: &[u64]| {
        let mut body = Vec::new();
        for number in numbers {
            CHAT.line(*number, Times { sent: 300, got: 200 }, &mut body);
        }
        hear(&mut asking(1), Want::Stream(CHAT), &answer(1, &body))
    };
    assert_eq!(heard(&[1, 2]).unwrap().0.tokens, 2);
    for lost in [&[1][..], &[2], &[2, 1], &[1, 2, 2]] {
        assert!(heard(lost).is_err(), "{lost:?}");
    }
}
