//! Any answer, in any pieces, counts the same as in one; and the sieve takes nothing but whole events.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::meter::{Counts, Reader, Sieve};

const KINDS: [(&str, &[u8]); 14] = [
    ("generate", b"application/x-ndjson"),
    ("chat", b"application/x-ndjson"),
    ("chat", b"application/json"),
    ("chat_completions", b"text/event-stream"),
    ("completions", b"text/event-stream"),
    ("responses", b"text/event-stream"),
    ("messages", b"text/event-stream"),
    ("embed", b"application/json"),
    ("chat_completions", b"application/json"),
    ("completions", b"application/json"),
    ("responses", b"application/json"),
    ("messages", b"application/json"),
    ("v1_embeddings", b"application/json"),
    ("transcriptions", b"text/plain"),
];

fuzz_target!(|input: (u8, Vec<u8>, &[u8])| {
    let (kind, lengths, answer) = input;
    if answer.len() > 4096 {
        // So much of an event may be held back.
        return;
    }
    let (operation, content_type) = KINDS[usize::from(kind) % KINDS.len()];
    let counts = Counts::of(operation, 200, content_type).unwrap();
    let mut whole = Reader::new(counts, 7);
    whole.see(answer);
    let mut pieces = Reader::new(counts, 7);
    let mut sieve = Sieve::default();
    let mut sifted = Vec::new();
    let mut rest = answer;
    for length in lengths.iter().copied().chain(std::iter::repeat(64)) {
        if rest.is_empty() {
            break;
        }
        let (piece, next) = rest.split_at(usize::from(length).min(rest.len()));
        pieces.see(piece);
        sifted.extend_from_slice(&sieve.pass(Bytes::copy_from_slice(piece)));
        rest = next;
    }
    sifted.extend_from_slice(&sieve.finish());
    assert_eq!(pieces.finish(), whole.finish());
    assert_eq!(pieces.is_over(), whole.is_over());
    let mut at_once = Sieve::default();
    let mut expected = at_once.pass(Bytes::copy_from_slice(answer)).to_vec();
    expected.extend_from_slice(&at_once.finish());
    assert_eq!(sifted, expected);
    if !answer.windows(5).any(|it| it == b"usage") {
        assert_eq!(sifted, answer);
    }
});
