//! What a collector of traces is told, and how a trace goes on behind the gate.

use std::time::Instant;

use portcullis::config::{Role, Roles};
use serde_json::Value;

use crate::house::{Backend, Caller, House, KEY, PATIENCE, Seen, Step, ok_json, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

async fn house(backend: &Backend, collector: &Backend, sample: u32) -> House {
    let endpoint = format!("http://{}", collector.address);
    House::with(backend, |config, _| {
        config.traces.endpoint = Some(endpoint.parse().unwrap());
        config.traces.sample = sample;
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.roles = Roles::new(Role::Admin, Vec::new());
    })
    .await
}

fn chat(fields: &str) -> String {
    let body = r#"{"model":"gemma3","prompt":"a secret question"}"#;
    format!(
        "POST /api/generate HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n{fields}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn traceparent(flags: &str) -> String {
    format!("Traceparent: 00-{TRACE}-00f067aa0ba902b7-{flags}\r\nTracestate: a=1\r\n")
}

/// All spans that a collector has got.
fn spans(requests: &[Seen]) -> Vec<Value> {
    let all = requests.iter().flat_map(|seen| {
        let document: Value = serde_json::from_slice(&seen.body).unwrap();
        document["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
    });
    all.collect()
}

async fn spans_of(collector: &Backend, count: usize) -> Vec<Value> {
    until("spans", || Some(spans(&collector.seen())).filter(|all| all.len() >= count)).await
}

fn attribute(span: &Value, key: &str) -> Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|it| it["key"] == key).unwrap_or_else(|| panic!("{key}: {span}"));
    found["value"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_goes_on_by_way_of_a_span_of_the_gates() {
    let (backend, collector) = (Backend::ok().await, Backend::saying(ok_json("{}")).await);
    let house = house(&backend, &collector, 1_000_000).await;
    // Takes the one of a million that is traced anyway.
    assert_eq!(house.ask(chat("")).await.status, 200);
    assert_eq!(house.ask(chat(&traceparent("01"))).await.status, 200);
    let asked = backend.wait_for_request(2).await;
    assert_eq!(asked.header("tracestate").as_deref(), Some("a=1"));
    assert_eq!(asked.head.matches("traceparent").count(), 1, "{}", asked.head);
    let behind = asked.header("traceparent").unwrap();
    let parts: Vec<_> = behind.split('-').collect();
    assert_eq!((parts[0], parts[1], parts[3]), ("00", TRACE, "01"), "{behind}");

    let spans = spans_of(&collector, 2).await;
    let span = spans.iter().find(|span| span["traceId"] == TRACE).unwrap();
    assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!(span["spanId"], parts[2], "the backend's parent is this span");
    assert_eq!(span["name"], "generate");
    assert_eq!(attribute(span, "http.response.status_code")["intValue"], "200");
    assert_eq!(attribute(span, "gen_ai.request.model")["stringValue"], "gemma3");
    assert_eq!(attribute(span, "portcullis.outcome")["stringValue"], "done");
    let time = |value: &Value| value.as_str().unwrap().parse::<u128>().unwrap();
    let first_byte = span["events"].as_array().unwrap().last().unwrap();
    assert_eq!(first_byte["name"], "first byte");
    let (began, ended) = (time(&span["startTimeUnixNano"]), time(&span["endTimeUnixNano"]));
    assert!(began <= time(&first_byte["timeUnixNano"]), "{span}");
    assert!(time(&first_byte["timeUnixNano"]) <= ended, "{span}");
    for request in collector.seen() {
        assert_eq!(request.line(), "POST /v1/traces HTTP/1.1");
        let all = format!("{}{}", request.head, String::from_utf8(request.body).unwrap());
        assert!(!["secret", KEY, "anna"].iter().any(|it| all.contains(it)), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_to_be_traced_is_passed_on_as_is_and_told_to_nobody() {
    let (backend, collector) = (Backend::ok().await, Backend::saying(ok_json("{}")).await);
    let house = house(&backend, &collector, 1).await;
    assert_eq!(house.ask(chat(&traceparent("00"))).await.status, 200);
    let asked = backend.wait_for_request(1).await;
    let theirs = format!("00-{TRACE}-00f067aa0ba902b7-00");
    assert_eq!(asked.header("traceparent"), Some(theirs));
    let alive = "GET /_portcullis/health HTTP/1.1\r\nHost: gate\r\n\r\n";
    assert_eq!(house.ask(alive).await.status, 200);
    // Told after those before it.
    let malformed = "Traceparent: 00-1-2-3\r\nTracestate: a=1\r\n";
    assert_eq!(house.ask(chat(malformed)).await.status, 200);
    let spans = spans_of(&collector, 1).await;
    assert_eq!(spans.len(), 1, "{spans:?}");
    let asked = backend.wait_for_request(2).await;
    let ours = asked.header("traceparent").unwrap();
    assert!(ours.contains(spans[0]["traceId"].as_str().unwrap()), "{ours}: a new one, not 1-2-3");
    assert_eq!(asked.header("tracestate"), None, "it was about the other one");
    assert!(spans[0].get("parentSpanId").is_none(), "{}", spans[0]);
}

/// Spans that were lost, as the metrics count them.
async fn lost(house: &House) -> usize {
    let mut caller = Caller::connect(house.admin.unwrap()).await;
    let head = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ";
    caller.send(format!("{head}{KEY}\r\n\r\n")).await;
    let answer = caller.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let line = text.lines().find_map(|it| it.strip_prefix("portcullis_traces_lost_spans_total "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_or_is_silent_holds_up_nobody_and_is_counted() {
    let failing = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
    for says in [Some(failing), None] {
        let backend = Backend::ok().await;
        let collector = Backend::scripted(move |_| match says {
            Some(says) => vec![Step::Send(says.into())],
            None => vec![Step::AwaitClose],
        })
        .await;
        let house = house(&backend, &collector, 1).await;
        assert_eq!(house.ask(chat("")).await.status, 200);
        collector.wait_for_request(1).await;
        // Also while it has been asked and has not answered.
        for _ in 0..2 {
            assert_eq!(house.ask(chat("")).await.status, 200);
        }
        // Who is silent is given up after 5 s, one time after the other.
        let wanted = if says.is_some() { 3 } else { 1 };
        spans_of(&collector, wanted).await;
        let started = Instant::now();
        while lost(&house).await < wanted {
            assert!(started.elapsed() < PATIENCE, "{} of {wanted}", lost(&house).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_stranger_there_is_no_trace_whatever_it_asks_for() {
    let (backend, collector) = (Backend::ok().await, Backend::saying(ok_json("{}")).await);
    let house = house(&backend, &collector, 1).await;
    let refused = house.ask(chat(&traceparent("01")).replace(KEY, "wrong")).await;
    assert_eq!(refused.status, 401);
    // A caller is traced, refused or not; told after those before it.
    let odd = chat("").replace("\"prompt\"", "\"model\" ");
    assert_eq!(house.ask(odd).await.status, 400);
    let spans = spans_of(&collector, 1).await;
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!(attribute(&spans[0], "portcullis.outcome")["stringValue"], "refused:ambiguous_body");
}
