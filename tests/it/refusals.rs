//! Each code of the table is provoked by a request, and told once to the caller and once to the log.
//!
//! `tests/rules.rs` looks for each code in these tests; a panic is held off in `src/gateway/tests.rs`.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use portcullis::config::Config;
use tokio::sync::Notify;

use crate::house::{Answer, Backend, House, KEY, Step, get, post};

const SOON: Duration = Duration::from_millis(100);

/// The request is refused with this status and code, and its one line says so too.
async fn refused(house: &House, request: impl AsRef<[u8]>, status: u16, code: &str) -> Answer {
    let lines = house.log.all().len();
    let answer = house.ask(request).await;
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.head);
    let log = house.log.wait_for(lines + 1).await;
    assert_eq!(log[lines]["status"], status, "{}", log[lines]);
    assert_eq!(log[lines]["code"], code, "{}", log[lines]);
    assert_eq!(log[lines]["outcome"], format!("refused:{code}"), "{}", log[lines]);
    answer
}

/// A gate whose backend is not to be asked.
async fn closed(change: impl FnOnce(&mut Config)) -> (House, Backend) {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| change(config)).await;
    (house, backend)
}

fn with_header(header: &str) -> String {
    get("/api/tags").replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused() {
    let (house, backend) = closed(|config| config.max_body = 10).await;
    let absolute = get("/api/tags").replace("GET /", "GET http://other/");
    let chunks = post("/api/chat", "").replace("Content-Length: 0", "Transfer-Encoding: chunked");
    for (request, status, code) in [
        (get("/api/tags").replace("Host: gate\r\n", ""), 400, "bad_request"),
        (get("//api/tags"), 400, "bad_path"),
        (format!("{chunks}zz\r\n"), 400, "bad_body"),
        (post("/api/chat", "[]"), 400, "bad_body"),
        (post("/api/chat", "{\"model\":\"m\"}"), 413, "body_too_large"),
        (get(&format!("/{}", "x".repeat(8 * 1024))), 414, "target_too_long"),
        (with_header("Expect: the unexpected"), 417, "bad_expectation"),
        (absolute, 421, "wrong_host"),
        (with_header(&format!("X: {}", "x".repeat(33 * 1024))), 431, "headers_too_large"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505, "bad_version"),
    ] {
        refused(&house, request, status, code).await;
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_understood_is_refused() {
    let (house, backend) = closed(|_| {}).await;
    let packed =
        post("/api/chat", "{}").replace("Host: gate", "Host: gate\r\nContent-Encoding: gzip");
    for (request, status, code) in [
        (post("/api/chat", "[\"model\"]"), 400, "bad_body"),
        (post("/api/chat", "{\"model\":\"small\",\"Model\":\"big\"}"), 400, "ambiguous_body"),
        (packed, 415, "unsupported_encoding"),
    ] {
        refused(&house, request, status, code).await;
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_or_may_not_is_refused() {
    let (house, backend) = closed(|_| {}).await;
    let stranger = |key: &str| get("/api/tags").replace(KEY, key);
    for (request, status, code) in [
        ("GET /api/tags HTTP/1.1\r\nHost: gate\r\n\r\n".to_owned(), 401, "no_credentials"),
        (stranger("wrong"), 401, "bad_credentials"),
        (post("/api/me", "{}"), 403, "forbidden"),
        (get("/_portcullis/nothing"), 404, "unknown_endpoint"),
        (get("/api/chat"), 405, "method_not_allowed"),
    ] {
        refused(&house, request, status, code).await;
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_told_to_wait() {
    let (house, _backend) = closed(|config| config.failed_attempts_per_minute = 1).await;
    let guess = base64::engine::general_purpose::STANDARD.encode("anna:wrong");
    let guess = get("/api/tags").replace(&format!("Bearer {KEY}"), &format!("Basic {guess}"));
    refused(&house, &guess, 401, "bad_credentials").await;
    let told = refused(&house, &guess, 429, "too_many_failures").await;
    let wait: u64 = told.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    // Nobody else is kept waiting.
    assert_eq!(house.get("/api/tags").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let (house, backend) = closed(|config| config.timeouts.body_grace = SOON).await;
    let half = post("/api/chat", "{\"model\":\"m\"}").replace("\"m\"}", "");
    refused(&house, half, 408, "request_timeout").await;
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_without_memory_for_a_body_says_so() {
    let (house, backend) = closed(|config| config.max_body_memory = 1024).await;
    refused(&house, post("/api/chat", &" ".repeat(2048)), 503, "overloaded").await;
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_the_gates_own_is_not_sent_round_again() {
    let (house, backend) = closed(|_| {}).await;
    assert_eq!(house.get("/api/tags").await.status, 200);
    house.log.wait_for(1).await;
    let via = backend.seen()[0].header("via").unwrap();
    refused(&house, with_header(&format!("Via: {via}")), 508, "loop_detected").await;
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_breaks_off_is_told_as_that() {
    let backend = Backend::scripted(|_| vec![Step::Close]).await;
    let house = House::new(&backend).await;
    refused_by_backend(&house, 502, "backend_failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_there_is_told_as_that() {
    let backend = Backend::ok().await;
    // A port that was free just now.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let house = House::with(&backend, |config, _| {
        config.backends[0].url = format!("http://{nowhere}").parse().unwrap();
    })
    .await;
    refused_by_backend(&house, 503, "no_backend").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_stays_silent_is_told_as_that() {
    let never = Arc::new(Notify::new());
    let backend = Backend::scripted(move |_| vec![Step::Wait(Arc::clone(&never))]).await;
    let house = House::with(&backend, |config, _| config.timeouts.first_byte = SOON).await;
    refused_by_backend(&house, 504, "backend_timeout").await;
}

async fn refused_by_backend(house: &House, status: u16, code: &str) {
    let answer = house.get("/api/tags").await;
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.head);
    let line = &house.log.wait_for(1).await[0];
    assert_eq!(line["code"], code, "{line}");
}
