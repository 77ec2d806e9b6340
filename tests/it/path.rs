//! The way of an ordinary request.

use crate::house::{Backend, House, KEY, PASSWORD, get, post};
use base64::Engine;

#[tokio::test(flavor = "multi_thread")]
async fn a_known_caller_gets_the_backends_answer_byte_for_byte() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let answer = house.ask(post("/api/chat", "{\"model\":\"m\"}")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}"));
    let seen = backend.wait_for_request(1).await;
    assert_eq!(seen.line(), "POST /api/chat HTTP/1.1");
    assert_eq!(seen.body, b"{\"model\":\"m\"}");
    let line = &house.log.wait_for(1).await[0];
    assert_eq!(line["name"], "anna");
    assert_eq!(line["outcome"], "done");
    assert_eq!(line["operation"], "chat");
    assert_eq!(line["bytes_in"], 13);
    assert_eq!(line["bytes_out"], 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_the_backend_serves_many_requests() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let mut caller = house.connect().await;
    for _ in 0..5 {
        caller.send(get("/api/tags")).await;
        assert_eq!(caller.answer().await.status, 200);
    }
    assert_eq!(backend.connections().0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_carrier_of_a_credential_lets_its_owner_in() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.path_keys = true).await;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("anna:{PASSWORD}"));
    let carriers = [
        format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n\r\n"),
        format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: bEaReR   {KEY}\r\n\r\n"),
        format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Basic {basic}\r\n\r\n"),
        format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nX-API-Key: {KEY}\r\n\r\n"),
        format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nApi-Key: {KEY}\r\n\r\n"),
        format!("GET /k/{KEY}/api/tags HTTP/1.1\r\nHost: g\r\n\r\n"),
    ];
    for carrier in &carriers {
        assert_eq!(house.ask(carrier).await.status, 200, "{carrier}");
    }
    for seen in backend.seen() {
        assert_eq!(seen.line(), "GET /api/tags HTTP/1.1");
        assert!(!seen.head.contains(KEY) && !seen.head.contains(&basic), "{}", seen.head);
    }
    let log = house.log.wait_for(carriers.len()).await;
    assert!(log.iter().all(|line| line["name"] == "anna"));
    assert!(!house.log.text().contains(KEY));
}
