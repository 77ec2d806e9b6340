//! What answers came to: those of a real Ollama and of other servers as they were recorded, and
//! any others against a slow and simple reading of the same bytes.

use std::time::Duration;

use bytes::Bytes;
use portcullis::meter::{Counts, Reader, Sieve};
use portcullis::store::Usage;
use proptest::prelude::*;
use serde_json::Value;

const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";
const JSON: &str = "application/json; charset=utf-8";
/// What is taken for the prompt where the answer does not tell.
pub const GUESS: u64 = 77;

/// A recorded answer: file, operation, type, and what the server counted.
#[derive(Clone, Copy)]
pub struct Recorded {
    pub name: &'static str,
    pub answer: &'static str,
    pub operation: &'static str,
    pub content_type: &'static str,
    pub tokens: (u64, u64),
    pub estimated: bool,
}

macro_rules! recorded {
    ($name:literal, $operation:literal, $type:expr, $tokens:expr) => {
        recorded!($name, $operation, $type, $tokens, false)
    };
    ($name:literal, $operation:literal, $type:expr, $tokens:expr, $estimated:expr) => {
        Recorded {
            name: $name,
            answer: include_str!(concat!("answers/", $name)),
            operation: $operation,
            content_type: $type,
            tokens: $tokens,
            estimated: $estimated,
        }
    };
}

/// Without `llamacpp`, `vllm` or `lmstudio` in its name one is Ollama's, 0.20. Those that think are written
/// in its forms: no model that is small enough for a test does.
#[rustfmt::skip]
pub fn recorded() -> Vec<Recorded> {
    vec![
        recorded!("generate.stream.ndjson", "generate", NDJSON, (10, 12)),
        recorded!("generate.whole.json", "generate", JSON, (10, 12)),
        recorded!("generate_logprobs.stream.ndjson", "generate", NDJSON, (10, 12)),
        recorded!("load.whole.json", "generate", JSON, (0, 0)),
        recorded!("unload.whole.json", "generate", JSON, (0, 0)),
        recorded!("chat.stream.ndjson", "chat", NDJSON, (21, 12)),
        recorded!("chat.whole.json", "chat", JSON, (21, 12)),
        recorded!("chat_tools.stream.ndjson", "chat", NDJSON, (100, 12)),
        recorded!("chat_tools.whole.json", "chat", JSON, (100, 12)),
        recorded!("chat_thinking.stream.ndjson", "chat", NDJSON, (151, 6)),
        recorded!("chat_completions_thinking.stream.sse", "chat_completions", SSE, (151, 6)),
        recorded!("messages_thinking.stream.sse", "messages", SSE, (151, 6)),
        recorded!("responses_thinking.stream.sse", "responses", SSE, (151, 6)),
        recorded!("chat_completions.stream.sse", "chat_completions", SSE, (GUESS, 12), true),
        recorded!("chat_completions_usage.stream.sse", "chat_completions", SSE, (21, 12)),
        recorded!("chat_completions.whole.json", "chat_completions", JSON, (21, 12)),
        recorded!("completions.stream.sse", "completions", SSE, (GUESS, 12), true),
        recorded!("completions_usage.stream.sse", "completions", SSE, (10, 12)),
        recorded!("completions.whole.json", "completions", JSON, (10, 12)),
        recorded!("responses.stream.sse", "responses", SSE, (10, 12)),
        recorded!("responses.whole.json", "responses", JSON, (10, 12)),
        recorded!("messages.stream.sse", "messages", SSE, (21, 12)),
        recorded!("messages.whole.json", "messages", JSON, (21, 12)),
        recorded!("embed.whole.json", "embed", JSON, (16, 0)),
        recorded!("embeddings.whole.json", "embeddings", JSON, (GUESS, 0), true),
        recorded!("v1_embeddings.whole.json", "v1_embeddings", JSON, (10, 0)),
        recorded!("chat_completions.llamacpp.sse", "chat_completions", SSE, (47, 3)),
        recorded!("chat_completions.vllm.sse", "chat_completions", SSE, (31, 4)),
        recorded!("chat_completions.lmstudio.json", "chat_completions", JSON, (24, 9)),
        recorded!("messages.llamacpp.sse", "messages", SSE, (40, 2)),
    ]
}

fn reader(operation: &str, content_type: &str) -> Reader {
    Reader::new(Counts::of(operation, 200, content_type.as_bytes()).unwrap(), GUESS)
}

fn read<'a>(
    operation: &str,
    content_type: &str,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Reader {
    let mut reader = reader(operation, content_type);
    for piece in pieces {
        reader.see(piece);
    }
    reader
}

/// The lines or events of an answer, each in a piece of its own, as a server sends them.
fn frames<'a>(content_type: &str, answer: &'a [u8]) -> Vec<&'a [u8]> {
    let end: &[u8] = if content_type == SSE { b"\n\n" } else { b"\n" };
    let mut frames = Vec::new();
    let mut begin = 0;
    for at in 1..=answer.len() {
        if answer[begin..at].ends_with(end) || at == answer.len() {
            frames.push(&answer[begin..at]);
            begin = at;
        }
    }
    frames
}

#[test]
fn recorded_answers_count_what_their_server_counted() {
    for Recorded { name, answer, operation, content_type, tokens, estimated } in recorded() {
        let reader = read(operation, content_type, [answer.as_bytes()]);
        let usage = reader.finish();
        assert_eq!((usage.prompt, usage.completion), tokens, "{name}");
        assert_eq!(usage.estimated, estimated, "{name}");
        assert!(reader.is_over(), "{name}");
        let slow = Slow::of(operation, content_type, answer);
        assert_eq!(usage, slow.usage(), "{name}");
    }
}

#[test]
fn a_recorded_answer_counts_the_same_wherever_it_is_cut_in_two() {
    for Recorded { name, answer, operation, content_type, .. } in recorded() {
        let bytes = answer.as_bytes();
        let usage = read(operation, content_type, [bytes]).finish();
        for at in 0..bytes.len() {
            let (first, second) = bytes.split_at(at);
            let reader = read(operation, content_type, [first, second]);
            assert_eq!(reader.finish(), usage, "{name} cut at {at}");
            assert!(reader.is_over(), "{name} cut at {at}");
        }
        assert_eq!(read(operation, content_type, bytes.chunks(1)).finish(), usage, "{name}");
        let frames = frames(content_type, bytes);
        assert_eq!(read(operation, content_type, frames).finish(), usage, "{name} by frames");
    }
}

/// A stream that is cut short comes to what was produced; so does any beginning of it.
#[test]
fn a_recorded_answer_that_breaks_off_is_charged_what_came() {
    for Recorded { name, answer, operation, content_type, tokens, .. } in recorded() {
        let mut reader = reader(operation, content_type);
        let mut last = 0;
        for byte in answer.as_bytes().chunks(1) {
            let usage = reader.finish();
            assert!(usage.completion >= last && usage.completion <= tokens.1 + 1, "{name}");
            last = usage.completion;
            reader.see(byte);
        }
    }
}

/// A thought, a call and a word are a token each, also where nobody is left to tell of them.
#[test]
fn thoughts_and_calls_of_a_stream_that_breaks_off_are_counted() {
    for Recorded { name, answer, operation, content_type, .. } in recorded() {
        if !name.contains("_thinking") {
            continue;
        }
        let words = answer.find(" rains").unwrap();
        let end = words + answer[words..].find('\n').unwrap();
        let usage = read(operation, content_type, [&answer.as_bytes()[..=end]]).finish();
        assert_eq!((usage.completion, usage.estimated), (6, true), "{name}");
    }
}

#[test]
fn what_a_server_tells_besides_is_kept() {
    let usage = |file: &str| {
        let Recorded { answer, operation, content_type, .. } =
            recorded().into_iter().find(|it| it.name == file).unwrap();
        read(operation, content_type, [answer.as_bytes()]).finish()
    };
    let ollama = usage("chat.whole.json");
    assert_eq!(ollama.load, Some(Duration::from_nanos(3_614_043)));
    assert_eq!(ollama.prefill, Some(Duration::from_nanos(1_117_068)));
    assert_eq!(ollama.generation, Some(Duration::from_nanos(1_108_633)));
    assert_eq!(ollama.total, Some(Duration::from_nanos(11_763_316)));
    let responses = usage("responses.stream.sse");
    assert_eq!((responses.cached, responses.reasoning), (Some(0), Some(0)));
    assert_eq!(usage("responses_thinking.stream.sse").reasoning, Some(3));
    let llama = usage("chat_completions.llamacpp.sse");
    assert_eq!(llama.cached, Some(36));
    assert_eq!(llama.prefill, Some(Duration::from_micros(25_094)));
    assert_eq!(llama.generation, Some(Duration::from_micros(15_500)));
    assert_eq!(llama.total, None);
    let vllm = usage("chat_completions.vllm.sse");
    assert_eq!((vllm.cached, vllm.reasoning), (Some(16), None));
    let studio = usage("chat_completions.lmstudio.json");
    assert_eq!((studio.cached, studio.reasoning), (None, Some(5)));
    assert_eq!(usage("messages.llamacpp.sse").cached, Some(32));
}

#[test]
fn only_the_event_that_nobody_asked_for_leaves_a_recorded_stream() {
    for Recorded { name, answer, .. } in recorded() {
        if !name.starts_with("chat_completions") || !name.ends_with(".sse") {
            continue;
        }
        for line_end in ["\n", "\r\n"] {
            let answer = answer.replace('\n', line_end);
            let between = line_end.repeat(2);
            let is_extra = |event: &&str| event.contains("\"choices\":[]");
            let events = answer.split_inclusive(&between);
            let expected: String = events.filter(|event| !is_extra(event)).collect();
            for at in 0..=answer.len() {
                let (first, second) = answer.as_bytes().split_at(at);
                assert_eq!(sifted([first, second]), expected, "{name} cut at {at}");
            }
            assert_eq!(sifted(answer.as_bytes().chunks(1)), expected, "{name}");
        }
    }
}

fn sifted<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sieve = Sieve::default();
    let mut all = Vec::new();
    for piece in pieces {
        all.extend_from_slice(&sieve.pass(Bytes::copy_from_slice(piece)));
    }
    all.extend_from_slice(&sieve.finish());
    String::from_utf8(all).unwrap()
}

#[test]
fn what_is_not_counted_has_no_reader() {
    for (operation, status, content_type) in [
        ("chat", 404, JSON),
        ("chat", 500, NDJSON),
        ("chat", 304, JSON),
        ("pull", 200, NDJSON),
        ("list", 200, JSON),
        ("unknown", 200, SSE),
    ] {
        let counts = Counts::of(operation, status, content_type.as_bytes());
        assert_eq!(counts, None, "{operation} {status} {content_type}");
    }
    assert!(Counts::of("chat", 200, b"Application/JSON;charset=utf-8").is_some());
}

#[test]
fn what_cannot_be_read_costs_as_much_as_it_is_long_and_is_an_estimate() {
    for (operation, content_type) in
        [("chat", ""), ("chat", "text/html"), ("transcriptions", "application/x-subrip")]
    {
        let counts = Counts::of(operation, 200, content_type.as_bytes()).unwrap();
        let mut reader = Reader::new(counts, 7);
        reader.see(b"1\n00:00:00,000 --> 00:00:02,000\nhello there\n");
        let usage = reader.finish();
        assert_eq!(
            (usage.prompt, usage.completion, usage.estimated),
            (7, 11, true),
            "{content_type}"
        );
    }
}

#[test]
fn what_was_read_from_a_cache_is_beside_the_prompt_in_one_dialect_alone() {
    let numbers = r#""cache_read_input_tokens":80,"cache_creation_input_tokens":10"#;
    for (operation, answer, prompt) in [
        (
            "messages",
            format!(r#"{{"usage":{{"input_tokens":100,{numbers},"output_tokens":5}}}}"#),
            190,
        ),
        (
            "chat_completions",
            format!(r#"{{"usage":{{"prompt_tokens":100,"completion_tokens":5,{numbers}}}}}"#),
            100,
        ),
    ] {
        let mut reader = Reader::new(Counts::of(operation, 200, JSON.as_bytes()).unwrap(), 7);
        reader.see(answer.as_bytes());
        let usage = reader.finish();
        assert_eq!((usage.prompt, usage.cached), (prompt, Some(80)), "{operation}");
    }
}

#[test]
fn a_line_of_eight_megabytes_is_read_without_being_kept() {
    let text = "a \\\"usage\\\" ".repeat(8_000_000 / 12);
    let usage = r#""usage":{"prompt_tokens":3,"completion_tokens":4}"#;
    for (operation, content_type, answer) in [
        (
            "generate",
            NDJSON,
            format!(
                "{{\"response\":\"{text}\",\"done\":false}}\n\
                 {{\"done\":true,\"prompt_eval_count\":3,\"eval_count\":4}}\n"
            ),
        ),
        (
            "chat_completions",
            SSE,
            format!(
                "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n\
                 data: {{\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n"
            ),
        ),
        (
            "chat_completions",
            JSON,
            format!("{{\"choices\":[{{\"message\":{{\"content\":\"{text}\"}}}}],{usage}}}"),
        ),
    ] {
        let mut reader = reader(operation, content_type);
        let measured = allocation_counter::measure(|| {
            for piece in answer.as_bytes().chunks(60_000) {
                reader.see(piece);
            }
        });
        assert_eq!(measured.count_total, 0, "{content_type}");
        let usage = reader.finish();
        assert_eq!((usage.prompt, usage.completion), (3, 4), "{content_type}");
        assert!(!usage.estimated && reader.is_over(), "{content_type}");
    }
}

#[test]
fn a_transcription_is_an_estimate() {
    let reader = read("transcriptions", JSON, [&br#"{"text":"twelve bytes"}"#[..]]);
    assert_eq!((reader.finish().completion, reader.finish().estimated), (3, true));
    let reader = read("transcriptions", "text/plain; charset=utf-8", [&b"four"[..], b"more"]);
    assert_eq!((reader.finish().completion, reader.finish().estimated), (2, true));
}

// ---- the slow and simple reading ---------------------------------------------------------------

/// All of an answer, read by `serde_json`.
struct Slow {
    operation: String,
    is_stream: bool,
    frames: Vec<Value>,
    done: bool,
}

impl Slow {
    fn of(operation: &str, content_type: &str, answer: &str) -> Self {
        let answer = answer.strip_prefix('\u{feff}').unwrap_or(answer);
        let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
        let mut done = false;
        let frames = match content_type {
            NDJSON => answer.split('\n').filter_map(parse).collect(),
            SSE => {
                let plain = answer.replace("\r\n", "\n").replace('\r', "\n");
                let mut frames = Vec::new();
                for event in plain.split("\n\n") {
                    let data = event.lines().filter_map(|line| line.strip_prefix("data:"));
                    let data: Vec<_> = data.map(str::trim_start).collect();
                    let data = data.join("\n");
                    if data == "[DONE]" {
                        done = true;
                        break;
                    }
                    frames.extend(parse(&data));
                }
                frames
            }
            _ => parse(answer).into_iter().collect(),
        };
        Self { operation: operation.to_owned(), is_stream: content_type != JSON, frames, done }
    }

    fn usage(&self) -> Usage {
        match self.operation.as_str() {
            "generate" | "chat" => self.ollama(),
            "embed" | "embeddings" | "v1_embeddings" => self.embeddings(),
            _ => self.other(),
        }
    }

    fn ollama(&self) -> Usage {
        let chunks = self.frames.iter().filter(|it| has_text(it)).count() as u64;
        let Some(last) = self.frames.iter().find(|it| it["done"] == true) else {
            return Usage {
                estimated: true,
                prompt: GUESS,
                completion: chunks,
                ..Usage::default()
            };
        };
        let count = |key: &str| token(&last[key]);
        let is_absent = |key: &str| last[key].is_null();
        let time = |key: &str| nanoseconds(&last[key]);
        let is_nothing = chunks == 0 && is_absent("eval_count");
        let mut usage = Usage {
            load: time("load_duration"),
            prefill: time("prompt_eval_duration"),
            generation: time("eval_duration"),
            total: time("total_duration"),
            ..Usage::default()
        };
        usage.prompt = count("prompt_eval_count").unwrap_or_else(|| {
            let is_zero = is_nothing && is_absent("prompt_eval_count");
            usage.estimated |= !is_zero;
            if is_zero { 0 } else { GUESS }
        });
        usage.completion = match count("eval_count") {
            Some(tokens) if tokens > 0 || chunks == 0 || !self.is_stream => tokens,
            None if is_nothing => 0,
            _ => {
                usage.estimated = true;
                if self.is_stream { chunks } else { self.text_bytes().div_ceil(4) }
            }
        };
        usage
    }

    /// Of one answer in one piece.
    fn text_bytes(&self) -> u64 {
        let text = |value: &Value| value.as_str().map_or(0, raw_length) as u64;
        self.frames
            .iter()
            .map(|it| {
                text(&it["response"]) + text(&it["thinking"]) + text(&it["message"]["content"])
            })
            .sum()
    }

    fn embeddings(&self) -> Usage {
        let told = self.frames.iter().find_map(|frame| {
            token(&frame["usage"]["prompt_tokens"]).or_else(|| token(&frame["prompt_eval_count"]))
        });
        let time = |key: &str| self.frames.iter().find_map(|it| nanoseconds(&it[key]));
        Usage {
            prompt: told.unwrap_or(GUESS),
            estimated: told.is_none(),
            load: time("load_duration"),
            prefill: time("prompt_eval_duration"),
            generation: time("eval_duration"),
            total: time("total_duration"),
            ..Usage::default()
        }
    }

    /// The dialects that have a `usage`.
    fn other(&self) -> Usage {
        let mut told = Told { is_settled: self.done, ..Told::default() };
        self.frames.iter().for_each(|frame| told.take(frame, self));
        let timings = self.frames.iter().rfind(|it| it["timings"].is_object());
        let timings = timings.map_or(&Value::Null, |it| &it["timings"]);
        let cached = token(&timings["cache_n"]);
        let timed = token(&timings["prompt_n"]).map(|it| it + cached.unwrap_or(0));
        let time = |key: &str| Duration::try_from_secs_f64(timings[key].as_f64()? / 1000.0).ok();
        let mut usage = Usage {
            reasoning: told.reasoning,
            estimated: !told.is_settled,
            prefill: time("prompt_ms"),
            generation: time("predicted_ms"),
            ..Usage::default()
        };
        usage.prompt = match told.prompt.or(timed) {
            Some(tokens) if told.is_settled || tokens > 0 => tokens,
            _ => {
                usage.estimated = true;
                GUESS
            }
        };
        let is_trusted =
            |tokens| told.is_settled && (tokens > 0 || told.chunks == 0 || !self.is_stream);
        usage.completion = match told.completion.or(token(&timings["predicted_n"])) {
            Some(tokens) if is_trusted(tokens) => tokens,
            tokens => {
                usage.estimated = true;
                let whole = self.choice_bytes().div_ceil(4);
                let produced = if self.is_stream { told.chunks } else { whole };
                tokens.unwrap_or(0).max(produced)
            }
        };
        usage.cached = told.cached.or(cached).map(|it| it.min(usage.prompt));
        usage
    }

    fn choice_bytes(&self) -> u64 {
        let text = |value: &Value| value.as_str().map_or(0, raw_length) as u64;
        let choices = self.frames.iter().filter_map(|it| it["choices"].as_array()).flatten();
        choices.map(|it| text(&it["text"]) + text(&it["message"]["content"])).sum()
    }
}

/// What the `usage` of all frames tells.
#[derive(Default)]
struct Told {
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: Option<u64>,
    reasoning: Option<u64>,
    is_settled: bool,
    chunks: u64,
}

impl Told {
    fn take(&mut self, frame: &Value, answer: &Slow) {
        self.chunks += u64::from(has_text(frame));
        let kind = frame["type"].as_str().unwrap_or_default();
        let mut usage = ["/usage", "/response/usage", "/message/usage"]
            .into_iter()
            .filter_map(|path| frame.pointer(path).filter(|it| it.is_object()));
        let Some(usage) = usage.next() else { return };
        let of = |keys: [&'static str; 2]| keys.into_iter().find(|key| !usage[*key].is_null());
        let inner =
            |keys: [&str; 2], name: &str| keys.into_iter().find_map(|key| token(&usage[key][name]));
        let keeps = answer.operation == "messages";
        let read = of(["prompt_tokens", "input_tokens"]);
        let beside = token(&usage["cache_read_input_tokens"]);
        if !keeps || read.is_some() {
            let tokens = read.and_then(|key| token(&usage[key]));
            self.prompt = tokens.map(|it| it + beside.unwrap_or(0));
        }
        let wrote = of(["completion_tokens", "output_tokens"]);
        if !keeps || wrote.is_some() {
            self.completion = wrote.and_then(|key| token(&usage[key]));
        }
        let cached = inner(["prompt_tokens_details", "input_tokens_details"], "cached_tokens");
        if !keeps || beside.is_some() {
            self.cached = cached.or(beside);
        }
        let details = ["completion_tokens_details", "output_tokens_details"];
        self.reasoning = inner(details, "reasoning_tokens");
        self.is_settled |= match answer.operation.as_str() {
            _ if !answer.is_stream => true,
            "messages" => kind != "message_start",
            "responses" => kind.starts_with("response.completed"),
            _ => frame["choices"] == Value::Array(vec![]),
        };
    }
}

fn token(value: &Value) -> Option<u64> {
    value.as_u64().filter(|count| *count <= u64::from(u32::MAX))
}

/// More than 52 days is nonsense.
fn nanoseconds(value: &Value) -> Option<Duration> {
    value.as_u64().filter(|count| *count <= 1 << 52).map(Duration::from_nanos)
}

fn raw_length(text: &str) -> usize {
    Value::from(text).to_string().len() - 2
}

/// Whether a frame holds something that the model wrote.
fn has_text(frame: &Value) -> bool {
    let filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let calls = |value: &Value| value.as_array().is_some_and(|calls| !calls.is_empty());
    let adds = |it: &Value| {
        ["content", "reasoning", "reasoning_content", "refusal", "partial_json", "text", "thinking"]
            .iter()
            .any(|key| filled(&it[key]))
            || calls(&it["tool_calls"])
    };
    let choices = frame["choices"].as_array();
    filled(&frame["response"])
        || filled(&frame["thinking"])
        || filled(&frame["delta"])
        || adds(&frame["delta"])
        || filled(&frame["message"]["content"])
        || filled(&frame["message"]["thinking"])
        || calls(&frame["message"]["tool_calls"])
        || choices
            .into_iter()
            .flatten()
            .any(|it| filled(&it["text"]) || adds(&it["delta"]) || adds(&it["message"]))
}

// ---- any answers -------------------------------------------------------------------------------

/// A count as a server may write it, rightly or not.
fn count() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (0..5_000_u64).prop_map(|it| it.to_string()),
        1 => prop::sample::select(vec![
            "-1", "1e308", "\"7\"", "null", "7.0", "7e0", "[7]", "{\"a\":7}", "true", "\"\"",
            "18446744073709551615", "18446744073709551616", "4294967295", "4294967296",
        ])
        .prop_map(str::to_owned),
    ]
}

fn text() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        "",
        " word",
        "\",\"usage\":{\"prompt_tokens\":666},\"x\":\"",
        "{\"done\":true,\"eval_count\":666}",
        "data: [DONE]\n\n",
        "\\\\\\",
        "ünï\u{1F600}",
        "\u{0}\u{1b}\n",
    ]);
    prop_oneof![3 => odd.prop_map(str::to_owned), 1 => ".{0,12}"]
        .prop_map(|it| Value::from(it).to_string())
}

/// `usage`, with members that stand twice now and then.
fn usage() -> impl Strategy<Value = String> {
    (count(), count(), count(), prop::option::of(count())).prop_map(|(a, b, c, twice)| {
        let twice = twice.map_or(String::new(), |it| format!(",\"completion_tokens\":{it}"));
        format!(
            r#"{{"x":{{"prompt_tokens":1}},"prompt_tokens":{a},"completion_tokens":{b}{twice},"prompt_tokens_details":{{"y":[],"cached_tokens":{c}}}}}"#
        )
    })
}

fn chunk() -> impl Strategy<Value = String> {
    let delta = text().prop_map(|text| {
        format!(r#"{{"id":"c","created":17,"choices":[{{"index":0,"delta":{{"content":{text}}},"finish_reason":null}}]}}"#)
    });
    let running = (text(), usage()).prop_map(|(text, usage)| {
        format!(r#"{{"usage":{usage}, "choices":[{{"index":0,"text":{text}}}]}}"#)
    });
    let none = text().prop_map(|text| {
        format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{{"a":{text}}}]}}}}],"usage":null}}"#)
    });
    let twice = (usage(), usage())
        .prop_map(|(a, b)| format!("{{\"usage\":{a},\t\"usage\":{b},\"choices\":[]}}"));
    let extra = usage().prop_map(|it| format!(r#"{{"choices":[],"usage":{it}}}"#));
    let broken = Just("{\"choices\":[{\"delta\":{\"content\":\"half".to_owned());
    prop_oneof![8 => delta, 2 => running, 1 => none, 1 => twice, 2 => extra, 1 => broken]
}

fn line() -> impl Strategy<Value = String> {
    let word = (text(), 0..999_u32).prop_map(|(text, n)| {
        format!(r#"{{"model":"m","created_at":"2026-{n}","response":{text},"done":false}}"#)
    });
    let chat = text().prop_map(|text| {
        format!(r#"{{"message":{{"role":"assistant","content":{text}}},"done":false}}"#)
    });
    let odd =
        prop::sample::select(vec!["", "{}", "[1,\"]\"]", "7", "{\"done\":", "\"text\"", "nul"])
            .prop_map(str::to_owned);
    prop_oneof![6 => word, 3 => chat, 1 => odd]
}

fn last_line() -> impl Strategy<Value = String> {
    (count(), count(), 0..9_u64).prop_map(|(a, b, c)| {
        format!(
            r#"{{"response":"","done":false,"done":true,"context":[1,2],"prompt_eval_count":{a},"eval_count":{b},"prompt_eval_duration":{b},"eval_duration":{c},"total_duration":{a}}}"#
        )
    })
}

/// The pieces of an answer, cut by these lengths over and over.
fn cut<'a>(mut answer: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if answer.is_empty() {
            break;
        }
        let (piece, rest) = answer.split_at((*length).min(answer.len()));
        pieces.push(piece);
        answer = rest;
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_lines_count_as_a_slow_reader_counts_them(
        lines in prop::collection::vec(line(), 0..12),
        last in prop::option::of(last_line()),
        end in prop::sample::select(vec!["\n", "\r\n"]),
        mark in any::<bool>(),
        lengths in prop::collection::vec(1..90_usize, 1..6),
    ) {
        let mark = if mark { "\u{feff}" } else { "" };
        let answer = format!("{mark}{}{end}{}", lines.join(end), last.unwrap_or_default());
        let slow = Slow::of("generate", NDJSON, &answer).usage();
        let reader = read("generate", NDJSON, cut(answer.as_bytes(), &lengths));
        prop_assert_eq!(&reader.finish(), &slow, "{}", answer);
        let reader = read("generate", NDJSON, frames(NDJSON, answer.as_bytes()));
        prop_assert_eq!(reader.finish(), slow, "{}", answer);
    }

    #[test]
    fn any_events_count_as_a_slow_reader_counts_them(
        chunks in prop::collection::vec(chunk(), 0..12),
        done in any::<bool>(),
        end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        name in prop::sample::select(vec!["data: ", "data:", ": ping\n\ndata: ", "event: x\ndata: "]),
        mark in any::<bool>(),
        lengths in prop::collection::vec(1..90_usize, 1..6),
    ) {
        let mark = if mark { "\u{feff}" } else { "" };
        let events: String = chunks.iter().map(|it| format!("{name}{it}\n\n")).collect();
        let mut answer = mark.to_owned() + &events;
        if done {
            answer.push_str("data: [DONE]\n\n");
        }
        let answer = answer.replace('\n', end);
        let reader = read("chat_completions", SSE, cut(answer.as_bytes(), &lengths));
        let slow = Slow::of("chat_completions", SSE, &answer);
        prop_assert_eq!(reader.is_over(), slow.done);
        prop_assert_eq!(reader.finish(), slow.usage(), "{}", answer);
        let reader = read("chat_completions", SSE, frames(SSE, answer.as_bytes()));
        prop_assert_eq!(reader.finish(), slow.usage(), "{}", answer);
    }

    #[test]
    fn any_whole_answer_counts_as_a_slow_reader_counts_it(
        text in text(),
        usage in usage(),
        before in any::<bool>(),
        pretty in any::<bool>(),
        mark in any::<bool>(),
        lengths in prop::collection::vec(1..90_usize, 1..6),
    ) {
        let mark = if mark { "\u{feff}" } else { "" };
        let choices = format!(r#""choices":[{{"message":{{"content":{text}}}}}]"#);
        let usage = format!(r#""usage":{usage}"#);
        let (first, second) = if before { (&usage, &choices) } else { (&choices, &usage) };
        let blank = if pretty { "\n  " } else { "" };
        let answer = format!("{mark}{{{blank}{first},{blank}{second}{blank}}}");
        let reader = read("chat_completions", JSON, cut(answer.as_bytes(), &lengths));
        let slow = Slow::of("chat_completions", JSON, &answer);
        prop_assert_eq!(reader.finish(), slow.usage(), "{}", answer);
    }

    #[test]
    fn a_damaged_answer_counts_the_same_however_it_comes(
        which in any::<prop::sample::Index>(),
        damages in prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize, "[{}\\[\\]\":,\\\\\r\n a0-]{0,6}"), 0..6),
        lengths in prop::collection::vec(1..900_usize, 1..6),
    ) {
        let all = recorded();
        let Recorded { answer, operation, content_type, .. } = which.get(&all);
        let mut answer = answer.as_bytes().to_vec();
        for (at, length, instead) in damages {
            let begin = at.index(answer.len());
            let end = (begin + length).min(answer.len());
            answer.splice(begin..end, instead.bytes());
        }
        let whole = read(operation, content_type, [answer.as_slice()]);
        let pieces = read(operation, content_type, cut(&answer, &lengths));
        prop_assert_eq!(pieces.finish(), whole.finish(), "{}", String::from_utf8_lossy(&answer));
        prop_assert_eq!(pieces.is_over(), whole.is_over());
        let frames = read(operation, content_type, frames(content_type, &answer));
        prop_assert_eq!(frames.finish(), whole.finish(), "{}", String::from_utf8_lossy(&answer));
        let in_one = sifted([answer.as_slice()]);
        prop_assert_eq!(sifted(cut(&answer, &lengths)), in_one);
    }

    #[test]
    fn bytes_that_are_no_answer_harm_nobody(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        lengths in prop::collection::vec(1..90_usize, 1..6),
    ) {
        for (operation, content_type) in
            [("chat", NDJSON), ("chat", JSON), ("messages", SSE), ("embed", JSON)]
        {
            let whole = read(operation, content_type, [bytes.as_slice()]).finish();
            prop_assert_eq!(read(operation, content_type, cut(&bytes, &lengths)).finish(), whole);
        }
        let mut sieve = Sieve::default();
        let mut all: Vec<u8> = Vec::new();
        for piece in cut(&bytes, &lengths) {
            all.extend_from_slice(&sieve.pass(Bytes::copy_from_slice(piece)));
        }
        all.extend_from_slice(&sieve.finish());
        prop_assert_eq!(all, bytes);
    }
}
