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
        generation: Some(Duration::from_nanos(8)),
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
