//! The strict reading of heads, and the pace of bodies.

use http::Request;
use proptest::prelude::*;

use super::*;
use crate::api::Target;

fn read(uri: &str, headers: &[(&str, &str)]) -> Result<Target, Reject> {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    strict(&request.body(()).unwrap().into_parts().0)
}

fn code(uri: &str, headers: &[(&str, &str)]) -> &'static str {
    read(uri, headers).unwrap_err().row().code
}

#[test]
fn an_ordinary_head_is_read() {
    assert_eq!(read("/api/tags?x", &[("host", "gate:8880")]).unwrap().path, "/api/tags");
    assert_eq!(read("http://Gate/api/tags", &[("host", "gate")]).unwrap().path, "/api/tags");
    assert!(read("/", &[("host", "[::1]:80"), ("transfer-encoding", "Chunked")]).is_ok());
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let host = ("host", "gate");
    for headers in [
        &[][..],
        &[host, host],
        &[("host", "")],
        &[("host", "a b")],
        &[("host", "a/b")],
        &[("host", "a@b")],
        &[host, ("transfer-encoding", ",chunked")],
        &[host, ("transfer-encoding", "chunked, identity")],
        &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        &[host, ("transfer-encoding", "chunked"), ("content-length", "1")],
        &[host, ("content-type", "a"), ("content-type", "b")],
    ] {
        assert_eq!(code("/", headers), "bad_request", "{headers:?}");
    }
    assert_eq!(code("http://other/", &[host]), "wrong_host");
    assert_eq!(code("ftp://gate/", &[host]), "bad_request");
    assert_eq!(code("/", &[host, ("expect", "y 100-continue")]), "bad_expectation");
}

#[test]
fn a_body_has_a_grace_and_then_a_pace() {
    let mut pace = Pace::new(Duration::from_secs(20));
    assert_eq!(pace.deadline() - pace.started, Duration::from_secs(20));
    pace.count(5_000);
    assert_eq!(pace.deadline() - pace.started, Duration::from_secs(30));
}

#[test]
fn the_memory_of_bodies_is_bounded_and_comes_back() {
    let bounds = BodyBounds::new(1 << 20, 10 * 1024, Duration::from_secs(1));
    let first = bounds.reserve(8 * 1024).unwrap();
    let other = bounds.with(5, Duration::from_secs(2));
    assert_eq!(other.reserve(3 * 1024).unwrap_err().row().code, "overloaded");
    drop(first);
    assert!(other.reserve(3 * 1024).is_ok());
    assert!(bounds.reserve(u64::MAX).is_err());
}

#[test]
fn an_edited_body_is_sent_on_and_the_reading_tells_what_came() {
    let body = Bytes::from_static(b"{\"model\":\"m\",\"keep_alive\":-1}");
    let asked = Asked::find(&http::Method::POST, "/api/chat", &[]).unwrap();
    let reading = Reading::of_json(&body, &asked).unwrap();
    let parts = Request::new(()).into_parts().0;
    let body = Outgoing::new(body, None);
    let mut call = Call { asked, parts: &parts, body, reading, alias: None };
    let keep_alive = call.reading.field(Field::KeepAlive).unwrap();
    let edits = [Edit::Replace { value: keep_alive.value, with: "300".to_owned() }];
    let none = BodyBounds::new(1_000, 0, Duration::ZERO);
    assert!(matches!(call.edit(&edits, &none), Err(Reject::Overloaded(_))));
    assert!(call.edit(&[], &none).is_ok(), "what is not changed needs no memory");
    let bounds = BodyBounds::new(1_000, 2_048, Duration::ZERO);
    call.edit(&edits, &bounds).unwrap();
    assert_eq!(call.body.whole().unwrap(), "{\"model\":\"m\",\"keep_alive\":300}");
    assert_eq!(call.body.length(), Some(30));
    assert_eq!(call.reading.number(keep_alive), Some(-1.0));
    assert_eq!(bounds.memory.available_permits(), 1);
    drop(call);
    assert_eq!(bounds.memory.available_permits(), 2);
}

proptest! {
    #[test]
    fn no_host_panics_and_what_passes_is_plain(host in "[ -~]{0,30}") {
        if read("/", &[("host", &host)]).is_ok() {
            prop_assert!(!host.contains(['/', '\\', '@', ' ', '?', '#', '<', '"']));
        }
    }
}

/// The body that is sent on once the backend was asked for its usage; `None` where it was not.
fn asked_for_usage(path: &str, body: &'static str, edits: &[Edit]) -> Option<String> {
    let asked = Asked::find(&http::Method::POST, path, &[]).unwrap();
    let body = Bytes::from_static(body.as_bytes());
    let reading = Reading::of_json(&body, &asked).unwrap();
    let parts = Request::new(()).into_parts().0;
    let body = Outgoing::new(body, None);
    let mut call = Call { asked, parts: &parts, body, reading, alias: None };
    let bounds = BodyBounds::new(1_000, 1 << 20, Duration::ZERO);
    call.edit(edits, &bounds).unwrap();
    let is_asked = call.ask_usage(&["chat_completions"], &bounds);
    let sent = std::str::from_utf8(call.body.whole().unwrap()).unwrap().to_owned();
    is_asked.then_some(sent)
}

#[test]
fn a_backend_is_asked_for_the_usage_of_a_stream_once() {
    let chat = |body| asked_for_usage("/v1/chat/completions", body, &[]);
    for (body, sent) in [
        (
            r#"{"stream":true,"model":"m"}"#,
            r#"{"stream_options":{"include_usage":true},"stream":true,"model":"m"}"#,
        ),
        (
            r#" { "stream" : true , "stream_options" : null }"#,
            r#" { "stream" : true , "stream_options" : {"include_usage":true} }"#,
        ),
        (
            r#"{"stream":true,"stream_options":{}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"x":1,"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{"x":1,"include_usage":true}}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"x":1}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true,"x":1}}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_usage":null}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        ),
    ] {
        assert_eq!(chat(body).as_deref(), Some(sent), "{body}");
    }
    for body in [
        "{}",
        r#"{"stream":false}"#,
        r#"{"stream":null}"#,
        r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
    ] {
        assert_eq!(chat(body), None, "{body}");
    }
    for path in ["/v1/completions", "/v1/messages", "/v1/responses", "/api/chat"] {
        assert_eq!(asked_for_usage(path, r#"{"stream":true}"#, &[]), None, "{path}");
    }
}

#[test]
fn a_body_that_a_policy_changed_is_asked_for_in_the_right_place() {
    let path = "/v1/chat/completions";
    let body = r#"{"max_tokens":9,"stream":true,"stream_options":{"include_usage":false}}"#;
    let asked = Asked::find(&http::Method::POST, path, &[]).unwrap();
    let reading = Reading::of_json(&Bytes::from_static(body.as_bytes()), &asked).unwrap();
    let most = reading.field(Field::MaxTokens).unwrap();
    let edits = [Edit::Replace { value: most.value, with: "100000".to_owned() }];
    assert_eq!(
        asked_for_usage(path, body, &edits).unwrap(),
        r#"{"max_tokens":100000,"stream":true,"stream_options":{"include_usage":true}}"#
    );
}
