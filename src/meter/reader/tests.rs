//! What is counted, in every dialect, wherever the pieces are cut.

use super::*;

const NDJSON: &[u8] = b"application/x-ndjson";
const SSE: &[u8] = b"text/event-stream; charset=utf-8";

fn reader(operation: &str, content_type: &[u8]) -> Reader {
    Reader::new(Counts::of(operation, 200, content_type).unwrap(), 99)
}

/// The usage, which has to be the same for one piece, for single bytes and for two pieces cut
/// anywhere; and whether the answer was over.
fn counted(operation: &str, content_type: &[u8], answer: &str) -> (Usage, bool) {
    let mut whole = reader(operation, content_type);
    whole.see(answer.as_bytes());
    let usage = whole.finish();
    let mut bytes = reader(operation, content_type);
    for byte in answer.as_bytes().chunks(1) {
        bytes.see(byte);
    }
    assert_eq!((bytes.finish(), bytes.is_over()), (usage.clone(), whole.is_over()), "by bytes");
    for at in 0..answer.len() {
        let mut split = reader(operation, content_type);
        let (first, second) = answer.as_bytes().split_at(at);
        split.see(first);
        split.see(second);
        assert_eq!(split.finish(), usage, "cut at {at}");
        assert_eq!(split.has_begun(), whole.has_begun(), "cut at {at}");
    }
    (usage, whole.is_over())
}

fn tokens(prompt: u64, completion: u64) -> Usage {
    Usage { prompt, completion, ..Usage::default() }
}

fn estimate(prompt: u64, completion: u64) -> Usage {
    Usage { prompt, completion, estimated: true, ..Usage::default() }
}

#[test]
fn lines_are_counted() {
    let words: String = (0..5)
        .map(|n| format!("{{\"model\":\"m\",\"created_at\":\"2026-01-01T00:00:0{n}.{n}Z\",\"response\":\" wo\\\"rd{n}\",\"done\":false}}\n"))
        .collect();
    let end = r#"{"model":"m","created_at":"x","response":"","done":true,"done_reason":"stop","context":[1,2,3],"total_duration":9,"load_duration":7,"prompt_eval_count":12,"prompt_eval_duration":1,"eval_count":6,"eval_duration":8}"#;
    let usage = Usage {
        load: Some(Duration::from_nanos(7)),
        prefill: Some(Duration::from_nanos(1)),
        generation: Some(Duration::from_nanos(8)),
        total: Some(Duration::from_nanos(9)),
        ..tokens(12, 6)
    };
    assert_eq!(counted("generate", NDJSON, &format!("{words}{end}\n")), (usage.clone(), true));
    // The last line break may be missing.
    assert_eq!(counted("generate", NDJSON, &format!("{words}{end}")), (usage, true));
    assert_eq!(counted("generate", NDJSON, &words), (estimate(99, 5), false));
    assert_eq!(
        counted("generate", NDJSON, &format!("{words}{{\"error\":\"x\"}}\n")),
        (estimate(99, 5), true)
    );
}

#[test]
fn events_are_counted() {
    let words: String = (0..5)
        .map(|n| format!("data: {{\"id\":\"c\",\"created\":17000{n},\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" {n}\"}},\"finish_reason\":null}}]}}\n\n"))
        .collect();
    let finish = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"stop\"}]}\n\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":6,\"total_tokens\":18}}\n\n";
    let done = "data: [DONE]\n\n";
    let all = format!("{words}{finish}{usage}{done}");
    assert_eq!(counted("chat_completions", SSE, &all), (tokens(12, 6), true));
    let all = format!("{words}{finish}{done}");
    assert_eq!(counted("chat_completions", SSE, &all), (estimate(99, 5), true));
    assert_eq!(counted("chat_completions", SSE, &words), (estimate(99, 5), false));
}

#[test]
fn an_error_among_events_leaves_what_was_made() {
    let chat = r#"data: {"choices":[{"index":0,"delta":{"content":" a"}}]}"#;
    let message = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
                   \"delta\":{\"type\":\"text_delta\",\"text\":\" a\"}}";
    let response = "event: response.output_text.delta\n\
                    data: {\"type\":\"response.output_text.delta\",\"delta\":\" a\"}";
    let error = r#"{"type":"error","error":{"type":"api_error","message":"gone","usage":{"prompt_tokens":7,"completion_tokens":7}}}"#;
    for (operation, word, form) in [
        ("chat_completions", chat, "data: "),
        ("messages", message, "event: error\ndata: "),
        ("responses", response, "event: error\ndata: "),
    ] {
        let broken = format!("{word}\n\n{word}\n\n{form}{error}\n\n");
        assert_eq!(counted(operation, SSE, &broken).0, estimate(99, 2), "{operation}");
    }
}

#[test]
fn what_stands_behind_a_value_in_its_line_is_none_wherever_it_is_cut() {
    let broken = "data: {\"type\":\"conte\"}event: message_delta\n\
                  data: {\"type\":\"message_delta\",\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}\n\n";
    assert_eq!(counted("messages", SSE, broken).0, tokens(3, 2));
}

const WORD: &str = r#"{"model":"m","created_at":"2026-01-01T00:00:00.123456Z","message":{"role":"assistant","content":" one"},"done":false}"#;

/// Whether each of these lines, in a piece of its own behind two usual ones, is a usual token; the
/// count has to be what single bytes come to.
fn usual(lines: &[&str]) -> Vec<bool> {
    let lines: Vec<_> = [WORD, WORD].iter().chain(lines).map(|it| format!("{it}\n")).collect();
    let mut reader = reader("chat", NDJSON);
    let seen: Vec<bool> = lines.iter().map(|line| reader.see(line.as_bytes())).collect();
    assert_eq!(seen[..2], [false, true]);
    assert_eq!(reader.finish(), counted("chat", NDJSON, &lines.concat()).0, "{lines:?}");
    seen[2..].to_vec()
}

#[test]
fn a_token_with_another_text_and_another_moment_is_known_at_once() {
    for text in ["a", " seven..", r"\n\n", r#" \"b\\"#, r"\u003c", "\u{4f60}\u{597d}, \u{4f60}"] {
        let line = WORD.replace(" one", text).replace("00:00.123456", "12:34.567890");
        assert_eq!(usual(&[&line]), [true], "{text}");
    }
    // Zeros at the end of a fraction are left out; the longest is what is usual.
    let (short, long) = (WORD.replace("3456Z", "Z"), WORD.replace("3456Z", "3456789Z"));
    assert_eq!(usual(&[&short, WORD, &long, &long, WORD]), [false, true, false, true, false]);
}

#[test]
fn what_is_not_another_text_is_read_in_full() {
    for line in [
        WORD.replace(" one", ""),
        WORD.replace("false", "true"),
        WORD.replace(" one", r#"a","thinking":"b"#),
        WORD.replace(" one", r#"a","role":"b"#),
        WORD.replace(" one", "a\nb"),
        WORD.replace(" one", "a\\\nb"),
        WORD.replace(" one", r"a\"),
        WORD.replace(" one", r#"a"#) + " ",
        WORD.replace("123456", "12\n456"),
        WORD.replace("123456", r#"12"456"#),
        WORD.replace("content", "another"),
        r#"{"error":"the runner has gone"}"#.to_owned(),
    ] {
        assert_eq!(usual(&[&line]), [false], "{line}");
    }
}
