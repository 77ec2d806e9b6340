//! What passes, and what does not, wherever the pieces are cut.

use super::*;

const WORD: &str = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" say \\\"usage\\\":{}\"}}]}\n\n";
const EXTRA: &str = "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n";
const FIRST: &str = "data: {\"choices\":[],\"prompt_filter_results\":[{\"a\":{}}]}\n\n";
const RUNNING: &str =
    "data: {\"usage\":{\"prompt_tokens\":1},\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const NULL: &str = "data: {\"choices\":[],\"usage\":null}\n\n";
const COMMENT: &str = ": still here\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// What passes of the stream: in one piece, byte by byte, and in three pieces cut anywhere.
fn sifted(stream: &str) -> String {
    let whole = passed(&[stream]);
    let bytes: Vec<_> = (0..stream.len()).map(|at| &stream[at..=at]).collect();
    assert_eq!(passed(&bytes), whole, "byte by byte");
    for first in 0..=stream.len() {
        for second in (first..=stream.len()).step_by(7) {
            let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
            assert_eq!(passed(&pieces), whole, "cut at {first} and {second}");
        }
    }
    whole
}

fn passed(pieces: &[&str]) -> String {
    let mut sieve = Sieve::default();
    let mut all = Vec::new();
    for piece in pieces {
        all.extend_from_slice(&sieve.pass(Bytes::copy_from_slice(piece.as_bytes())));
        assert!(sieve.held.len() <= MOST_HELD);
    }
    all.extend_from_slice(&sieve.finish());
    String::from_utf8(all).unwrap()
}

#[test]
fn only_the_extra_event_is_taken_out() {
    let stream = [COMMENT, FIRST, WORD, RUNNING, NULL, EXTRA, DONE].concat();
    assert_eq!(sifted(&stream), [COMMENT, FIRST, WORD, RUNNING, NULL, DONE].concat());
    let stream = [WORD, EXTRA, COMMENT, EXTRA].concat();
    assert_eq!(sifted(&stream), [WORD, COMMENT].concat());
    assert_eq!(sifted(EXTRA), "");
}

#[test]
fn line_breaks_of_every_kind_pass_and_go_with_the_event() {
    for end in ["\r\n", "\r"] {
        let stream = [WORD, EXTRA, DONE].concat().replace('\n', end);
        assert_eq!(sifted(&stream), [WORD, DONE].concat().replace('\n', end), "{end:?}");
    }
}

#[test]
fn blanks_an_odd_order_and_several_lines_do_not_hide_it() {
    for extra in [
        "data:{ \"usage\" : {} , \"choices\" : [ ] }\n\n",
        "event: message\nid: 7\ndata: {\"choices\":\ndata: [],\ndata: \"usage\":{}}\n\n",
        ": a comment that belongs to it\ndata: {\"choices\":[],\"usage\":{}}\n\n",
        "data: {\"choices\":[],\"usage\":{},\"usage\":null,\"choices\":[{}]}\n\n",
    ] {
        assert_eq!(sifted(&[WORD, extra, DONE].concat()), [WORD, DONE].concat(), "{extra}");
    }
}

#[test]
fn what_is_no_event_passes() {
    for stream in [
        "",
        "\n\n\n",
        "{\"error\":\"x\"}",
        "data: {\"choices\":[],\"usag",
        "data: {\"choices\":[],\"usage\":\"none\"}\n\n",
        "data: \"choices\" \"usage\"\n\n",
        "data: [{\"choices\":[],\"usage\":{}}]\n\n",
        "data: {\"message\":{\"choices\":[],\"usage\":{}}}\n\n",
        "id: {\"choices\":[],\"usage\":{}}\n\n",
        // Damaged: it was going on already when the rest came.
        "data: {\"choices\":[{}],\"choices\":[],\"usage\":{}}\n\n",
    ] {
        assert_eq!(sifted(stream), stream);
    }
}

#[test]
fn a_head_without_an_end_is_not_held_for_ever() {
    let long = format!("data: {{\"id\":\"{}\",\"choices\":[]", "x".repeat(2 * MOST_HELD));
    for size in [1, 100, 5_000] {
        let pieces: Vec<_> = long.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        let mut sieve = Sieve::default();
        let mut all = Vec::new();
        for piece in pieces {
            all.extend_from_slice(&sieve.pass(piece));
            assert!(sieve.held.len() <= MOST_HELD);
        }
        assert_eq!(all, long.as_bytes(), "pieces of {size}");
    }
}

#[test]
fn a_known_event_is_not_held_till_its_end() {
    let mut sieve = Sieve::default();
    let head = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"a ve");
    assert_eq!(sieve.pass(head.clone()), head);
}

#[test]
fn an_event_in_one_piece_is_not_copied() {
    let mut sieve = Sieve::default();
    let piece = Bytes::from_static(WORD.as_bytes());
    assert_eq!(sieve.pass(piece.clone()).as_ptr(), piece.as_ptr());
    let both = Bytes::from([EXTRA, DONE].concat());
    assert_eq!(sieve.pass(both.clone()).as_ptr(), both[EXTRA.len()..].as_ptr());
}
