//! What is found in a body, and which bodies are refused.

use http::{Method, Request};
use proptest::prelude::*;

use super::*;

fn asked(path: &str) -> Asked {
    let method = if path == "/api/delete" { Method::DELETE } else { Method::POST };
    Asked::find(&method, path, &[]).unwrap()
}

fn read(path: &str, body: impl AsRef<[u8]>) -> Result<Reading, Reject> {
    Reading::of_json(&Bytes::copy_from_slice(body.as_ref()), &asked(path))
}

fn chat(body: impl AsRef<[u8]>) -> Reading {
    read("/api/chat", body).unwrap()
}

fn code(path: &str, body: impl AsRef<[u8]>) -> &'static str {
    read(path, body).map_or_else(|reject| reject.row().code, |_| "read")
}

fn form(body: &str, content_type: &str, query: Option<&str>) -> Result<Reading, Reject> {
    Reading::of_form(&Bytes::copy_from_slice(body.as_bytes()), content_type.as_bytes(), query)
}

#[test]
fn an_ordinary_chat_is_read() {
    let reading = chat(
        r#" {"model" : "gemma3:1b", "stream":false,"keep_alive":"5m", "messages":[{"role":"user","content":"\"model\":\"x\""}],
            "options":{"num_ctx": 4096, "temperature":1e-1,"stop":["a"]}} "#,
    );
    assert_eq!(reading.model().unwrap(), "gemma3:1b");
    assert_eq!(reading.stream(), Some(false));
    assert_eq!(reading.text(reading.field(Field::KeepAlive).unwrap()).unwrap(), "5m");
    let names: Vec<_> = reading.options().iter().map(|it| reading.name(*it)).collect();
    assert_eq!(names, ["num_ctx", "temperature", "stop"]);
    let context = reading.option("num_ctx").unwrap();
    assert_eq!(reading.number(context), Some(4096.0));
    assert_eq!(reading.written(context.whole), r#""num_ctx": 4096"#);
    assert_eq!(reading.number(reading.option("temperature").unwrap()), Some(0.1));
    assert_eq!(reading.option("num_gpu"), None);
    assert!(!reading.has_images() && !reading.has_tools());
    let object = reading.written(reading.object().unwrap());
    assert!(object.starts_with('{') && object.ends_with('}'));
}

#[test]
fn what_is_not_there_is_not_found() {
    for body in ["", "{}", " {\n} ", r#"{"model":null,"stream":null,"options":null,"tools":null}"#]
    {
        let reading = chat(body);
        assert_eq!(reading.model(), None, "{body}");
        assert_eq!((reading.stream(), reading.include_usage()), (None, None), "{body}");
        assert!(reading.options().is_empty() && !reading.has_tools(), "{body}");
    }
    assert_eq!(chat(r#"{"model":""}"#).model(), None);
    assert!(chat(r#"{"options":null}"#).field(Field::Options).is_some());
}

#[test]
fn the_old_name_stands_in_for_the_model() {
    let model = |body: &str| read("/api/show", body).unwrap().model().map(Cow::into_owned);
    assert_eq!(model(r#"{"name":"a"}"#).unwrap(), "a");
    assert_eq!(model(r#"{"name":"","model":"a"}"#).unwrap(), "a");
    assert_eq!(model(r#"{"name":"a","model":""}"#).unwrap(), "a");
    assert_eq!(model(r#"{"name":"a","model":null}"#).unwrap(), "a");
    assert_eq!(model(r#"{"name":"a","model":"\u0061"}"#).unwrap(), "a");
    assert_eq!(code("/api/show", r#"{"name":"a","model":"b"}"#), "ambiguous_body");
    // Elsewhere it means nothing.
    assert_eq!(read("/api/chat", r#"{"name":["a"]}"#).unwrap().model(), None);
}

#[test]
fn both_ends_of_a_copy_are_read() {
    let reading = read("/api/copy", r#"{"source":"a","destination":"b"}"#).unwrap();
    assert_eq!(
        (reading.source().unwrap(), reading.destination().unwrap()),
        ("a".into(), "b".into())
    );
    let reading = read("/api/create", r#"{"model":"a","from":"b","files":{"f":"d"}}"#).unwrap();
    assert_eq!((reading.model().unwrap(), reading.source().unwrap()), ("a".into(), "b".into()));
}

#[test]
fn limits_of_the_other_dialects_are_read() {
    let body = r#"{"model":"m","max_tokens":1,"max_completion_tokens":2,"n":3,
        "stream_options":{"include_usage":true,"x":{"include_usage":false}},"tools":[{}]}"#;
    let reading = read("/v1/chat/completions", body).unwrap();
    let number = |field| reading.number(reading.field(field).unwrap()).unwrap();
    assert_eq!(number(Field::MaxTokens), 1.0);
    assert_eq!(number(Field::MaxCompletionTokens), 2.0);
    assert_eq!(number(Field::N), 3.0);
    assert_eq!(reading.include_usage(), Some(true));
    assert!(reading.has_tools());
    let reading = read("/v1/responses", r#"{"max_output_tokens":5,"input":"x"}"#).unwrap();
    assert!(reading.field(Field::MaxOutputTokens).is_some());
}

#[test]
fn a_body_that_can_be_read_in_two_ways_is_refused() {
    for body in [
        r#"{"model":"a","model":"b"}"#,
        r#"{"model":"a","Model":"b"}"#,
        r#"{"model":"a","\u006dodel":"b"}"#,
        r#"{"MODEL":"a"}"#,
        r#"{"\u004dodel":"a"}"#,
        "{\"\u{17f}tream\":true}",
        r#"{"\u017ftream":true}"#,
        "{\"\u{212a}eep_alive\":0}",
        r#"{"options":{},"Options":{}}"#,
        r#"{"options":{"num_ctx":1,"num_ctx":2}}"#,
        r#"{"options":{"num_ctx":1,"NUM_CTX":2}}"#,
        r#"{"options":{"Num_Ctx":1}}"#,
        "{\"options\":{\"num_\u{212a}eep\":1,\"num_keep\":1}}",
        r#"{"options":{"other":1,"OTHER":2}}"#,
        r#"{"unknown":1,"Unknown":2}"#,
        "{\"\u{e4}\":1,\"\u{c4}\":2}",
        "{\"\u{3c3}\":1,\"\u{3c2}\":2}",
    ] {
        assert_eq!(code("/api/chat", body), "ambiguous_body", "{body}");
    }
    for options in [r#"{"include_usage":true,"Include_Usage":false}"#, r#"{"INCLUDE_USAGE":true}"#]
    {
        let body = format!(r#"{{"stream_options":{options}}}"#);
        assert_eq!(code("/v1/chat/completions", body), "ambiguous_body", "{options}");
    }
    // Neither means the field, for anybody; nor does what is deeper count.
    for body in [
        "{\"mode\u{131}\":1}",
        r#"{"model ":1,"model":"a"}"#,
        r#"{"messages":[{"model":"a","Model":"b"}]}"#,
        r#"{"options":{"x":{"num_ctx":1,"num_ctx":2}}}"#,
    ] {
        assert_eq!(code("/api/chat", body), "read", "{body}");
    }
}

#[test]
fn a_wrong_type_of_what_is_looked_at_is_refused() {
    for body in [
        r#"{"model":["a"]}"#,
        r#"{"model":1}"#,
        r#"{"model":{"a":1}}"#,
        r#"{"model":true}"#,
        r#"{"stream":"true"}"#,
        r#"{"stream":0}"#,
        r#"{"keep_alive":true}"#,
        r#"{"keep_alive":1e400}"#,
        r#"{"options":[]}"#,
        r#"{"options":"{}"}"#,
        r#"{"options":{"num_ctx":1e400}}"#,
        r#"{"options":{"num_ctx":-1e400}}"#,
        r#"{"tools":{}}"#,
        r#"{"messages":{}}"#,
    ] {
        assert_eq!(code("/api/chat", body), "bad_body", "{body}");
    }
    for body in [
        r#"{"max_tokens":"100"}"#,
        r#"{"max_tokens":1e400}"#,
        r#"{"n":[1]}"#,
        r#"{"stream_options":true}"#,
        r#"{"stream_options":{"include_usage":1}}"#,
    ] {
        assert_eq!(code("/v1/chat/completions", body), "bad_body", "{body}");
    }
    // What nobody looks at may be anything.
    assert_eq!(code("/api/chat", r#"{"x":1e400,"format":{"type":["a"]}}"#), "read");
}

#[test]
fn what_is_no_json_object_is_refused() {
    for body in [
        " ",
        "null",
        "[]",
        "\"a\"",
        "1",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{,}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":1.}",
        "{\"a\":1e}",
        "{\"a\":-}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":nul}",
        "{\"a\":truee}",
        "{\"a\":[1,]}",
        "{\"a\":[1 2]}",
        "{\"a\":[}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\u{1}\"}",
        "{\"a\":\"b}",
        "{\"a\":\"\\\"}",
        "{}{}",
        "{} x",
        "{}\0",
        "\u{feff}{}",
        "{}//",
        "/**/{}",
        "{\"model\":\"a\"}{\"model\":\"b\"}",
        "{\"a\"\u{a0}:1}",
        "{\"a\":\u{c}1}",
    ] {
        assert_eq!(code("/api/chat", body), "bad_body", "{body:?}");
    }
    for body in [&b"{\"a\":\"\xff\"}"[..], b"{\"\xc0\xaf\":1}", b"{\"a\":\"\xed\xa0\x80\"}"] {
        assert_eq!(code("/api/chat", body), "bad_body", "{body:?}");
    }
}

#[test]
fn nesting_has_a_bound_and_so_have_members() {
    let deep = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert_eq!(code("/api/chat", deep(127)), "read");
    assert_eq!(code("/api/chat", deep(128)), "bad_body");
    assert_eq!(code("/api/chat", format!("{{\"a\":{}", "{\"a\":[".repeat(100_000))), "bad_body");
    let wide = |members: usize| {
        let members: Vec<_> = (0..members).map(|it| format!("\"k{it}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    assert_eq!(code("/api/chat", wide(128)), "read");
    assert_eq!(code("/api/chat", wide(129)), "bad_body");
    assert_eq!(code("/api/chat", format!("{{\"options\":{}}}", wide(129))), "bad_body");
    assert_eq!(code("/api/chat", format!("{{\"format\":{}}}", wide(1000))), "read");
}

#[test]
fn odd_names_of_models_come_out_as_they_are() {
    let long = "x".repeat(10_000);
    for (written, model) in [
        (r"a\u0000b", "a\0b"),
        (r"\ud83d\ude00", "\u{1f600}"),
        (r"\ud800", "\u{fffd}"),
        (r"\ud800\u0041", "\u{fffd}A"),
        (r"\udc00\ud800x", "\u{fffd}\u{fffd}x"),
        (r"\/\\\b\f\n\r\t\x22".replace("\\x22", "\\\"").as_str(), "/\\\u{8}\u{c}\n\r\t\""),
        (" Gemma3:LATEST ", " Gemma3:LATEST "),
        ("hf.co/a/b:c@sha256:00", "hf.co/a/b:c@sha256:00"),
        ("\u{e4}", "\u{e4}"),
        (&long, &long),
    ] {
        let reading = chat(format!("{{\"model\":\"{written}\"}}"));
        assert_eq!(reading.model().unwrap(), model);
    }
}

#[test]
fn images_are_found_wherever_the_endpoints_find_them() {
    let images = |path: &str, body: &str| read(path, body).unwrap().has_images();
    for (path, body) in [
        ("/api/generate", r#"{"images":["aGk="]}"#),
        ("/api/chat", r#"{"messages":[{"content":"x"},{"images":["aGk="]}]}"#),
        ("/api/chat", r#"{"messages":[{"Images":["aGk="]}]}"#),
        ("/api/chat", "{\"messages\":[{\"image\u{17f}\":[\"aGk=\"]}]}"),
        ("/api/create", r#"{"messages":[{"images":["aGk="]}]}"#),
        ("/v1/chat/completions", r#"{"messages":[{"content":[{"type":"image_url"}]}]}"#),
        ("/v1/chat/completions", r#"{"messages":[{"content":[{"image_url":{"url":"data:"}}]}]}"#),
        ("/v1/chat/completions", r#"{"messages":[{"Content":[{"\u0074ype":"image\u005furl"}]}]}"#),
        ("/v1/messages", r#"{"messages":[{"content":[{"type":"text"},{"type":"image"}]}]}"#),
        (
            "/v1/messages",
            r#"{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image"}]}]}]}"#,
        ),
        ("/v1/messages", r#"{"messages":[{"content":[{"type":"text","Type":"image"}]}]}"#),
        ("/v1/responses", r#"{"input":[{"content":[{"type":"input_image"}]}]}"#),
        ("/v1/responses", r#"{"input":[{"type":"input_image","image_url":"data:"}]}"#),
        (
            "/v1/responses",
            r#"{"input":[{"type":"function_call_output","output":[{"type":"input_image"}]}]}"#,
        ),
    ] {
        assert!(images(path, body), "{path} {body}");
    }
    for (path, body) in [
        ("/api/generate", r#"{"images":[]}"#),
        ("/api/generate", r#"{"images":null}"#),
        ("/api/chat", r#"{"messages":[{"images":[]},{"content":"images image_url"}]}"#),
        (
            "/api/chat",
            r#"{"messages":[{"tool_calls":[{"function":{"arguments":{"images":["x"]}}}]}]}"#,
        ),
        ("/v1/chat/completions", r#"{"messages":[{"content":[{"type":"text","text":"image"}]}]}"#),
        ("/v1/responses", r#"{"input":"image_url"}"#),
        (
            "/v1/chat/completions",
            r#"{"tools":[{"function":{"parameters":{"properties":{"image_url":{"type":"image"}}}}}]}"#,
        ),
    ] {
        assert!(!images(path, body), "{path} {body}");
    }
}

#[test]
fn only_a_body_that_is_needed_is_looked_at() {
    let parts = Request::new(()).into_parts().0;
    let body = Bytes::from_static(b"no JSON");
    for path in ["/api/me", "/api/blobs/sha256:0", "/api/unknown", "/api/experimental/web_search"] {
        assert!(Reading::of(&body, &asked(path), &parts).is_ok(), "{path}");
    }
    for path in
        ["/api/chat", "/api/copy", "/api/delete", "/v1/messages", "/v1/audio/transcriptions"]
    {
        assert!(Reading::of(&body, &asked(path), &parts).is_err(), "{path}");
    }
}

const FORM: &str = "multipart/form-data; boundary=X";

fn part(disposition: &str, value: &str) -> String {
    format!("--X\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n")
}

fn form_code(body: &str, content_type: &str, query: Option<&str>) -> &'static str {
    form(body, content_type, query).map_or_else(|reject| reject.row().code, |_| "read")
}

#[test]
fn the_model_of_a_form_is_found_wherever_it_stands() {
    let file = "--X\r\ncontent-disposition: form-data; name=\"file\"; filename=\"C:\\a model.wav\"\r\n\
                Content-Type: audio/wav\r\n\r\n\0\r\n\r\n\"name=\"model\"\r\n--Y\r\n\r\n";
    let model = part("name=\"model\"", "whisper");
    for (body, expected) in [
        (format!("{model}{file}--X--\r\n"), Some("whisper")),
        (format!("{file}{model}--X--"), Some("whisper")),
        (format!("{file}{}--X--\r\n", part("name=model", "")), None),
        (format!("{file}--X--\r\n"), None),
        (format!("{}{model}--X--\r\n", part("name=\"language\"", "model")), Some("whisper")),
    ] {
        let reading = form(&body, FORM, Some("a=b")).unwrap();
        assert_eq!(reading.model().as_deref(), expected, "{body}");
        assert!(reading.object().is_none());
    }
    for content_type in
        ["Multipart/Form-Data;boundary=\"X\"", "multipart/form-data; charset=utf-8; boundary=X"]
    {
        assert!(form(&format!("{model}--X--\r\n"), content_type, None).is_ok(), "{content_type}");
    }
}

#[test]
fn a_form_that_can_be_read_in_two_ways_is_refused() {
    let model = part("name=\"model\"", "a");
    let whole = format!("{model}--X--\r\n");
    assert_eq!(form_code(&whole, FORM, None), "read");
    for body in [
        format!("{model}{model}--X--\r\n"),
        format!("{model}{}--X--\r\n", part("name=\"Model\"", "b")),
        format!("{}--X--\r\n", part("name=\"MODEL\"", "b")),
        format!("{}--X--\r\n", part("name=\"model\"; filename=\"a\"", "b")),
        format!("{}--X--\r\n", part("name=\"model\"; filename*=utf-8''a", "b")),
    ] {
        assert_eq!(form_code(&body, FORM, None), "ambiguous_body", "{body}");
    }
    for query in ["model=b", "a=b&mod%65l=b", "model", "MODEL=b", "a;model=b", "%6d%6f%64%65%6c=b"]
    {
        assert_eq!(form_code(&whole, FORM, Some(query)), "ambiguous_body", "{query}");
    }
}

#[test]
fn what_is_no_form_is_refused() {
    let model = part("name=\"model\"", "a");
    let whole = format!("{model}--X--\r\n");
    let header = |lines: &str| format!("--X\r\n{lines}\r\n\r\nb\r\n--X--\r\n");
    let disposition = "Content-Disposition: form-data; name=\"model\"";
    for body in [
        model.clone(),
        format!("{model}--X-"),
        format!("{model}--X--trailing"),
        format!("{model}--X--\r\n{whole}"),
        format!("preamble\r\n{whole}"),
        format!("\r\n{whole}"),
        whole.replace("\r\n", "\n"),
        whole.replace("--X\r\n", "--X \r\n"),
        whole.replace("--X\r\n", "--X\n"),
        format!("{}--X--\r\n", part("name=\"file\"", "a--X\r\n")),
        format!("{}--X--\r\n", part("name=\"file\"", "a\r\n--Xy")),
        format!("{}--X--\r\n", part("name=\"file\"", "a\n--X\r\n")),
        format!("{}--X--\r\n", part("name=\"a\"; name=\"model\"", "b")),
        format!("{}--X--\r\n", part("name*=utf-8''model", "b")),
        format!("{}--X--\r\n", part("name*0=mo; name*1=del", "b")),
        format!("{}--X--\r\n", part("name=\"mo\\del\"", "b")),
        format!("{}--X--\r\n", part("name=\"a\\\"; name=\"model\"", "b")),
        format!("{}--X--\r\n", part("filename=\"x\"", "b")),
        format!("{}--X--\r\n", part("name= model", "b")),
        format!("{}--X--\r\n", part("name=\u{a0}model", "b")),
        format!("{}--X--\r\n", part("name= \"model\"", "b")),
        format!("{}--X--\r\n", part("name=mo\u{e9}del", "b")),
        format!("{}--X--\r\n", part("name=", "b")),
        "--X\r\n\r\nb\r\n--X--\r\n".to_owned(),
        header("Content-Type: text/plain"),
        header(&format!("{disposition}\r\nContent-Transfer-Encoding: quoted-printable")),
        header(&format!("{disposition}\r\n{disposition}")),
        header("Content-Disposition: form-data;\r\n name=\"model\""),
        header("Content-Disposition : form-data; name=\"model\""),
        header(&format!("X: a\nb\r\n{disposition}")),
        header("Content-Disposition: attachment; name=\"model\""),
        "x".repeat(20_000),
    ] {
        assert_eq!(form_code(&body, FORM, None), "bad_body", "{body}");
    }
    for content_type in [
        "",
        "application/json",
        "multipart/mixed; boundary=X",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=X; boundary=Y",
        "multipart/form-data; boundary*=X",
        "multipart/form-data; boundary=\"X",
        "multipart/form-data; boundary=X y",
        "multipart/form-data, multipart/form-data; boundary=X",
    ] {
        assert_eq!(form_code(&whole, content_type, None), "bad_body", "{content_type}");
    }
}

proptest! {
    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200), path in 0..4_usize) {
        let path = ["/api/chat", "/api/copy", "/v1/responses", "/api/create"][path];
        let _ = read(path, &body);
        let _ = form(&String::from_utf8_lossy(&body), FORM, None);
    }

    #[test]
    fn what_is_read_is_json_and_what_is_json_is_read(text in "[\\[\\]{}:,\"\\\\a0-9.eE+u \n-]{0,40}") {
        let body = format!("{{\"a\":{text}}}");
        let theirs = serde_json::from_str::<serde_json::Value>(&body);
        match read("/api/chat", &body) {
            Ok(_) => prop_assert!(is_json(&theirs), "{body}"),
            Err(Reject::AmbiguousBody(_)) => {}
            Err(_) => prop_assert!(theirs.is_err(), "{body}"),
        }
    }
}

/// Numbers of any size, and half surrogates, are JSON.
fn is_json(theirs: &Result<serde_json::Value, serde_json::Error>) -> bool {
    theirs.as_ref().map_or_else(
        |error| {
            let says = error.to_string();
            says.contains("out of range")
                || says.contains("surrogate")
                || says.contains("hex escape")
        },
        |_| true,
    )
}

#[test]
fn images_are_not_of_the_prompt() {
    let long = "A".repeat(1000);
    for (path, body) in [
        ("/api/generate", format!(r#"{{"prompt":"hi","images":["{long}"]}}"#)),
        ("/api/chat", format!(r#"{{"messages":[{{"content":"hi","images":["{long}"]}}]}}"#)),
        (
            "/v1/chat/completions",
            format!(
                r#"{{"messages":[{{"content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{long}"}}}}]}}]}}"#
            ),
        ),
        (
            "/v1/responses",
            format!(
                r#"{{"input":[{{"content":[{{"type":"input_image","image_url":"data:,{long}"}}]}}]}}"#
            ),
        ),
        (
            "/v1/messages",
            format!(
                r#"{{"messages":[{{"content":[{{"source":{{"type":"base64","data":"{long}"}},"type":"image"}}]}}]}}"#
            ),
        ),
    ] {
        let reading = read(path, &body).unwrap();
        let kept = body.len() as u64 - reading.prompt_bytes();
        assert!(reading.has_images() && (1000..1060).contains(&kept), "{path}: {kept}");
    }
    let body = format!(r#"{{"messages":[{{"content":"{long}","source":{{"a":"{long}"}}}}]}}"#);
    assert_eq!(chat(&body).prompt_bytes(), body.len() as u64);
    assert_eq!(chat("").prompt_bytes(), 0);
}

#[test]
fn the_asked_maximum_is_found_in_every_dialect() {
    let most = |path, body| read(path, body).unwrap().asked_maximum();
    assert_eq!(most("/api/chat", r#"{"options":{"num_predict":7}}"#), Some(7));
    assert_eq!(most("/api/generate", r#"{"options":{"num_predict":7.9}}"#), Some(7));
    assert_eq!(most("/v1/completions", r#"{"max_tokens":7,"n":3}"#), Some(21));
    assert_eq!(
        most("/v1/chat/completions", r#"{"max_tokens":7,"max_completion_tokens":9}"#),
        Some(9)
    );
    assert_eq!(most("/v1/responses", r#"{"max_output_tokens":7}"#), Some(7));
    assert_eq!(most("/v1/messages", r#"{"max_tokens":7}"#), Some(7));
    assert_eq!(most("/v1/messages", r#"{"max_tokens":1e300}"#), Some(u64::MAX));
    for body in ["{}", r#"{"options":{}}"#, r#"{"options":{"num_predict":-1}}"#] {
        assert_eq!(most("/api/chat", body), None, "{body}");
    }
    assert_eq!(most("/v1/chat/completions", r#"{"max_tokens":0}"#), None);
    assert_eq!(most("/v1/chat/completions", r#"{"max_tokens":null}"#), None);
}

#[test]
fn what_may_load_a_model_anew_is_told_and_nothing_else() {
    let told = |body: &str| chat(body).runner_options().map(String::from);
    assert_eq!(
        told(
            r#"{"options":{"num_gpu":0,"temperature":1,"stop":["a"],"num_ctx":8192,"use_mmap":true}}"#
        )
        .as_deref(),
        Some("num_ctx=8192 num_gpu=0 use_mmap=true")
    );
    assert_eq!(told(r#"{"shift":false}"#).as_deref(), Some("shift=false"));
    let both = told(r#"{"shift":true,"options":{"num_ctx":8192}}"#);
    assert_eq!(both.as_deref(), Some("num_ctx=8192 shift=true"));
    for body in [
        "{}",
        r#"{"options":{"temperature":1}}"#,
        r#"{"shift":null,"truncate":true,"options":{"shift":true}}"#,
        r#"{"options":{"num_ctx":"8192","num_gpu":null,"num_batch":[1],"main_gpu":{}}}"#,
        r#"{"options":{"num_ctx":0.00000000000000000000000000001}}"#,
    ] {
        assert_eq!(told(body), None, "{body}");
    }
}

#[test]
fn without_a_prompt_there_is_nothing_to_read() {
    for (path, body, has_prompt) in [
        ("/api/generate", r#"{"model":"m"}"#, false),
        ("/api/generate", r#"{"prompt":""}"#, false),
        ("/api/generate", r#"{"prompt":null}"#, false),
        ("/api/generate", r#"{"prompt":" "}"#, true),
        ("/api/chat", "", false),
        ("/api/chat", r#"{"prompt":"x"}"#, false),
        ("/api/chat", r#"{"messages": [ ]}"#, false),
        ("/api/chat", r#"{"messages":[{"role":"user","content":""}]}"#, true),
        ("/v1/completions", r#"{"prompt":[]}"#, false),
        ("/v1/completions", r#"{"prompt":[[1,2]]}"#, true),
        ("/api/embed", r#"{"model":"m"}"#, true),
    ] {
        let reading = read(path, body).unwrap();
        assert_eq!(reading.has_prompt(&asked(path)), has_prompt, "{path} {body}");
    }
}
