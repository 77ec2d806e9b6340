//! What the gate finds in a body is what Ollama's own reader finds there.
//!
//! The reader is gin's, over Go's encoding/json and mime/multipart, with the fields of Ollama's own
//! types: `tests/gin/bodies.go`. `PORTCULLIS_GIN_CASES` sets how many bodies are tried; 1,000,000 with
//! `PORTCULLIS_SLOW=1`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use portcullis::api::{Asked, Field};
use portcullis::call::reading::Reading;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, FailurePersistence, TestRunner};
use serde::Deserialize;
use serde_json::Value;

use crate::gin::{self, cases};

/// What the endpoints are that stand for a kind of types each.
const KINDS: [(&str, &str); 7] = [
    ("native", "/api/chat"),
    ("named", "/api/create"),
    ("copy", "/api/copy"),
    ("openai", "/v1/chat/completions"),
    // Of the fields that are looked at, it has the same.
    ("openai", "/v1/completions"),
    ("responses", "/v1/responses"),
    ("messages", "/v1/messages"),
];

const KEYS: [&str; 26] = [
    "model",
    "model",
    "model",
    "name",
    "from",
    "source",
    "destination",
    "stream",
    "stream",
    "keep_alive",
    "options",
    "options",
    "stream_options",
    "max_tokens",
    "max_output_tokens",
    "tools",
    "tools",
    "tools",
    "include_usage",
    "num_ctx",
    "num_keep",
    "temperature",
    "messages",
    "format",
    "x",
    "",
];

const TEXTS: [&str; 20] = [
    "small",
    "big",
    "Big:LATEST",
    "",
    " ",
    "hf.co/a/b:c",
    "a@sha256:00",
    "x:cloud",
    "5m",
    "-1s",
    "\\u0062ig",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00\\ud800",
    "a\\u0000b",
    "\\\"model\\\":\\\"b\\\"",
    "\u{17f}mall",
    "\u{212a}",
    "\u{e4}\\n",
    "\\/",
];

const ODD: [&str; 36] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "4096",
    "1.5",
    "1e3",
    "1E-2",
    "1e400",
    "-1e400",
    "01",
    "+1",
    "1.",
    ".5",
    "1e",
    "NaN",
    "nul",
    "[]",
    "[1,2]",
    "[\"a\"]",
    "[{}]",
    "{}",
    "{\"a\":1}",
    "[1,]",
    "{,}",
    "\"",
    "\"\\x\"",
    "\"\\u12\"",
    "'a'",
    "\"a\nb\"",
    "tru",
    "12345678901234567890",
    "[[[[\"model\"]]]]",
];

#[test]
fn what_is_found_in_a_body_is_what_ollamas_reader_finds() {
    let Some(reader) = Reader::start() else { return };
    let reader = RefCell::new(reader);
    let counts = RefCell::new((0_u32, 0_u32, 0_u32, 0_u32));
    let tried = runner(cases()).run(&(0..KINDS.len(), body()), |(kind, body)| {
        let (kind, path) = KINDS[kind];
        let asked = Asked::find(&Method::POST, path, &[]).unwrap();
        let body = Bytes::from(body);
        let reading = match Reading::of_json(&body, &asked) {
            Ok(reading) => reading,
            Err(reject) => {
                counts.borrow_mut().0 += u32::from(reject.row().code == "ambiguous_body");
                return Ok(());
            }
        };
        let theirs = reader.borrow_mut().read(&[kind.as_bytes()], &[&body]);
        let shown = String::from_utf8_lossy(&body).into_owned();
        prop_assert!(theirs.valid || body.is_empty(), "{shown} is no JSON there");
        counts.borrow_mut().1 += 1;
        if !theirs.refused {
            counts.borrow_mut().2 += u32::from(!theirs.model.is_empty());
            counts.borrow_mut().3 += u32::from(theirs.searches);
            agree(kind, &reading, &theirs)
                .map_err(|why| TestCaseError::fail(format!("{why}: {kind} {shown}: {theirs:?}")))?;
        }
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
    let (ambiguous, accepted, named, searching) = *counts.borrow();
    let enough = cases() / 20;
    assert!(ambiguous > enough, "only {ambiguous} bodies were ambiguous");
    assert!(accepted > enough, "only {accepted} bodies were accepted");
    assert!(named > enough, "only {named} bodies named a model");
    assert!(searching > enough / 50, "only {searching} bodies asked for a search");
}

#[test]
fn the_model_of_a_form_is_the_one_that_ollamas_reader_finds() {
    let Some(reader) = Reader::start() else { return };
    let reader = RefCell::new(reader);
    let counts = RefCell::new((0_u32, 0_u32));
    let tried = runner(cases()).run(&form(), |(body, content_type, query)| {
        let bytes = Bytes::from(body.clone());
        let Ok(reading) = Reading::of_form(&bytes, content_type.as_bytes(), Some(&query)) else {
            return Ok(());
        };
        let theirs = reader
            .borrow_mut()
            .read(&[b"form"], &[body.as_bytes(), content_type.as_bytes(), query.as_bytes()]);
        let model = reading.model().unwrap_or_default();
        counts.borrow_mut().0 += 1;
        counts.borrow_mut().1 += u32::from(!model.is_empty());
        prop_assert!(
            theirs.refused || theirs.model == model,
            "{model:?} here, {:?} there: {content_type:?} {query:?} {body:?}",
            theirs.model
        );
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
    let (accepted, named) = *counts.borrow();
    assert!(accepted > cases() / 20 && named > cases() / 50, "{accepted} accepted, {named} named");
}

/// What both readers found.
fn agree(kind: &str, reading: &Reading, theirs: &Theirs) -> Result<(), &'static str> {
    let same =
        |ours: Option<std::borrow::Cow<'_, str>>, theirs: &str| ours.unwrap_or_default() == *theirs;
    let check = |agrees: bool, what| if agrees { Ok(()) } else { Err(what) };
    check(same(reading.model(), &theirs.model), "model")?;
    check(same(reading.source(), &theirs.source), "source")?;
    check(same(reading.destination(), &theirs.destination), "destination")?;
    if !matches!(kind, "named" | "copy") {
        // Ollama's own second reading, for models in the cloud.
        check(theirs.cloud == theirs.model, "the model in the cloud")?;
    }
    match kind {
        "copy" => return Ok(()),
        "openai" => {
            check(Some(reading.stream().unwrap_or(false)) == theirs.stream, "stream")?;
            check(reading.include_usage().unwrap_or(false) == theirs.usage, "usage")?;
            let tokens = reading.field(Field::MaxTokens).and_then(|it| reading.number(it));
            return check(tokens == theirs.max_tokens.map(|it| it as f64), "max_tokens");
        }
        "messages" => {
            check(Some(reading.stream().unwrap_or(false)) == theirs.stream, "stream")?;
            check(reading.searches_the_web() || !theirs.searches, "the search")?;
            let tokens = reading.field(Field::MaxTokens).and_then(|it| reading.number(it));
            let theirs = theirs.max_tokens.map(|it| it as f64);
            return check(tokens.or(Some(0.0)) == theirs, "max_tokens");
        }
        "responses" => {
            check(reading.stream() == theirs.stream, "stream")?;
            let tokens = reading.field(Field::MaxOutputTokens).and_then(|it| reading.number(it));
            return check(tokens == theirs.max_tokens.map(|it| it as f64), "max_output_tokens");
        }
        _ => check(reading.stream() == theirs.stream, "stream")?,
    }
    if kind == "named" {
        return Ok(());
    }
    let keep_alive =
        reading.field(Field::KeepAlive).filter(|it| reading.written(it.value) != "null");
    check(keep_alive.is_some() == theirs.keep_alive.is_some(), "keep_alive")?;
    if let Some(seconds) = keep_alive.and_then(|it| reading.number(it))
        && seconds.abs() < 1e6
    {
        let expected = if seconds < 0.0 { i64::MAX } else { (seconds * 1e9) as i64 };
        check(theirs.keep_alive == Some(expected), "keep_alive's time")?;
    }
    let ours: BTreeMap<_, _> = reading
        .options()
        .iter()
        .map(|it| {
            let value: Value = serde_json::from_str(reading.written(it.value)).unwrap_or_default();
            (reading.name(*it).into_owned(), value.as_f64())
        })
        .collect();
    let theirs: BTreeMap<_, _> =
        theirs.options.iter().flatten().map(|(key, value)| (key.clone(), value.as_f64())).collect();
    check(ours == theirs, "options")
}

/// `tests/gin/bodies.go` says what each field is.
#[derive(Debug, Deserialize)]
struct Theirs {
    valid: bool,
    refused: bool,
    model: String,
    source: String,
    destination: String,
    stream: Option<bool>,
    keep_alive: Option<i64>,
    options: Option<BTreeMap<String, Value>>,
    usage: bool,
    max_tokens: Option<i64>,
    searches: bool,
    cloud: String,
}

/// Ollama's reader in a process of its own.
struct Reader {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reader {
    /// Nothing where there is no Go.
    fn start() -> Option<Self> {
        let mut process = Command::new(gin::program()?)
            .arg("bodies")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the reader does not start");
        let asks = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Some(Self { process, asks, answers })
    }

    fn read(&mut self, plain: &[&[u8]], encoded: &[&[u8]]) -> Theirs {
        let mut line = plain.concat();
        for field in encoded {
            line.push(b'\t');
            line.extend_from_slice(STANDARD.encode(field).as_bytes());
        }
        line.push(b'\n');
        self.asks.write_all(&line).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None::<Box<dyn FailurePersistence>>,
        ..Config::default()
    })
}

/// A key in a spelling that some reader takes for it, or almost.
fn key() -> impl Strategy<Value = String> {
    let bend = (0..32_u8, any::<prop::sample::Index>());
    (select(&KEYS[..]), bend).prop_map(|(key, (bend, at))| {
        if key.is_empty() {
            return key.to_owned();
        }
        let at = at.index(key.len());
        let (before, rest) = key.split_at(at);
        let letter = rest.chars().next().unwrap();
        let behind = &rest[letter.len_utf8()..];
        match (bend, letter) {
            (0, _) => key.to_uppercase(),
            (1, _) => format!("{before}{}{behind}", letter.to_uppercase()),
            (2, _) => format!("{before}\\u{:04x}{behind}", u32::from(letter)),
            (3, 's') => format!("{before}\u{17f}{behind}"),
            (3, 'k') => format!("{before}\\u212a{behind}"),
            (3, 'i') => format!("{before}\u{131}{behind}"),
            (4, _) => format!("{before}\\u{:04X}{behind}", u32::from(letter.to_ascii_uppercase())),
            _ => key.to_owned(),
        }
    })
}

fn text() -> impl Strategy<Value = String> {
    select(&TEXTS[..]).prop_map(|text| format!("\"{text}\""))
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => text(),
        2 => select(&ODD[..12]).prop_map(str::to_owned),
        1 => select(&ODD[..]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            object(inner.clone()),
            proptest::collection::vec(inner, 0..3)
                .prop_map(|items| format!("[{}]", items.join(",")))
        ]
    })
}

fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let blank = "[ \n\t\r]{0,1}";
    proptest::collection::vec((blank, key(), value), 0..5).prop_map(|members| {
        let members: Vec<_> = members
            .iter()
            .map(|(blank, key, value)| format!("{blank}\"{key}\"{blank}:{blank}{value}{blank}"))
            .collect();
        format!("{{{}}}", members.join(","))
    })
}

/// Tools, some of which are a search.
fn tools() -> impl Strategy<Value = String> {
    let keys = vec!["type", "type", "name", "Type", "t\\u0079pe", "x"];
    let kinds = vec!["web_search", "web\\u005fsearch_20250305", "custom", "Web_search", "web", ""];
    let member =
        (select(keys), select(kinds)).prop_map(|(key, kind)| format!("\"{key}\":\"{kind}\""));
    let tool =
        proptest::collection::vec(member, 1..3).prop_map(|it| format!("{{{}}}", it.join(",")));
    proptest::collection::vec(tool, 1..3).prop_map(|tools| format!("[{}]", tools.join(", ")))
}

/// A member whose value has the type that its key asks for, mostly.
fn member() -> impl Strategy<Value = String> {
    let number = select(&ODD[3..12]).prop_map(str::to_owned);
    let flag = select(&ODD[..3]).prop_map(str::to_owned);
    (key(), text(), number, flag, object(value()), tools(), value(), 0..32_u8).prop_map(
        |(key, text, number, flag, object, tools, value, any)| {
            let plain = key.to_lowercase();
            let value = match plain.as_str() {
                _ if any == 0 => value,
                "model" | "name" | "from" | "source" | "destination" => text,
                "stream" | "include_usage" => flag,
                "options" | "stream_options" => object,
                "tools" => tools,
                "keep_alive" | "max_tokens" | "max_output_tokens" | "num_ctx" | "num_keep" => {
                    number
                }
                _ => value,
            };
            format!("\"{key}\":{value}")
        },
    )
}

/// A body: mostly an object of such members, sometimes broken, or with something around it.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let whole = proptest::collection::vec(member(), 0..6)
        .prop_map(|members| format!("{{{}}}", members.join(", ")));
    let around =
        select(vec!["", "", "", "", " ", "\n", "{}", "x", "\0", "\u{feff}", "{\"model\":\"b\"}"]);
    let bent = (whole, around.clone(), around, any::<prop::sample::Index>(), any::<u8>(), 0..12_u8);
    bent.prop_map(|(whole, before, behind, at, byte, bend)| {
        let before = if bend == 0 { before } else { "" };
        let behind = if bend <= 1 { behind } else { "" };
        let mut body = format!("{before}{whole}{behind}").into_bytes();
        let at = at.index(body.len());
        match bend {
            2 => body.truncate(at),
            3 => body[at] = byte,
            _ => {}
        }
        body
    })
}

/// What makes up a form: what is usual, and what some reader may take for something else.
const NAMES: [&[&str]; 2] = [
    &["name=\"model\"", "name=\"language\"", "name=\"file\"; filename=\"a\""],
    &[
        "name=\"model\"",
        "name=\"model\"",
        "name=model",
        "name=\"Model\"",
        "name=\"file\"",
        "name=\"language\"",
        "name*=utf-8''model",
        "name=\"mo\\del\"",
        "NAME=\"model\"",
        "filename=\"x\"; name=\"model\"",
        "name=\"file\"; filename=\"a;name=\\\"model\\\"\"",
        "name=\"a\"; name=\"model\"",
        "name=\"\"",
        "name = \"model\"",
        "name= model",
        "name=\u{a0}model",
        "name=model ",
        "name=model;\u{2003}filename=a",
        "name=model@x",
        "name=\"model\";",
    ],
];
const LINES: [&[&str]; 2] = [
    &[""],
    &[
        "",
        "",
        "",
        "",
        "\r\nContent-Type: text/plain",
        "\r\nContent-Transfer-Encoding: quoted-printable",
        "\r\nContent-Transfer-Encoding: binary",
        "\r\n folded",
        "\r\nX: y",
        "\r\ncontent-disposition: form-data; name=\"model\"",
    ],
];
const VALUES: [&[&str]; 2] = [
    &["small", "big"],
    &[
        "small",
        "big",
        "",
        "a=62",
        "\r\n",
        "--X",
        "\r\n--X",
        "\n--X\r\n",
        "\r\n--Xy",
        "\u{e4}",
        "a\r\nb",
        "\r\n--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nbig",
    ],
];
const ENDS: [&[&str]; 2] = [&["--X--\r\n"], &["--X--", "--X-", "--X--x", "--X--\r\n--X--", ""]];
const TYPES: [&[&str]; 2] = [
    &["multipart/form-data; boundary=X"],
    &[
        "multipart/form-data; boundary=X",
        "multipart/form-data; boundary=X",
        "multipart/form-data;boundary=\"X\"",
        "Multipart/Form-Data; BOUNDARY=X; charset=utf-8",
        "multipart/form-data; boundary=X; boundary=Y",
        "multipart/form-data; boundary*=utf-8''X",
        "multipart/mixed; boundary=X",
        "multipart/form-data; boundary=\"\\X\"",
        "",
    ],
];
const QUERIES: [&[&str]; 2] =
    [&[""], &["", "", "", "a=b", "model=big", "mod%65l=big", "a;model=big", "Model=big", "model"]];

/// A part of a form.
fn part() -> impl Strategy<Value = String> {
    (seldom(NAMES), seldom(LINES), seldom(VALUES)).prop_map(|(name, line, value)| {
        format!("--X\r\nContent-Disposition: form-data; {name}{line}\r\n\r\n{value}\r\n")
    })
}

/// A form, its Content-Type and a query.
fn form() -> impl Strategy<Value = (String, String, String)> {
    let bends = vec!["", "\r\n", "\n", "-", " ", "\"", ";", "X"];
    let bend = (any::<prop::sample::Index>(), select(bends), 0..12_u8);
    let parts = proptest::collection::vec(part(), 0..4);
    (parts, seldom(ENDS), seldom(TYPES), seldom(QUERIES), bend).prop_map(
        |(parts, end, kind, query, (at, extra, bend))| {
            let mut body = format!("{}{end}", parts.concat());
            if bend == 0 && !body.is_empty() {
                let mut at = at.index(body.len());
                while !body.is_char_boundary(at) {
                    at -= 1;
                }
                body.insert_str(at, extra);
            }
            (body, kind.to_owned(), query.to_owned())
        },
    )
}

/// One of the first, or sometimes of the others.
fn seldom([usual, odd]: [&'static [&'static str]; 2]) -> impl Strategy<Value = &'static str> {
    prop_oneof![7 => select(usual), 1 => select(odd)]
}
