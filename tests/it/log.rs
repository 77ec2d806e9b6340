//! One line per request, and no secret in any of them.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};

use base64::Engine;
use portcullis::config::{Config, LogFormat};
use portcullis::gateway::Gateway;
use portcullis::record::Log;
use portcullis::server::Server;

use crate::house::{Backend, Caller, House, KEY, PASSWORD, Step, get, post};

/// A word that must turn up nowhere.
const CANARY: &str = "canary";

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_prompt_turns_up_in_a_line_an_error_or_at_the_backend() {
    let basic = |login: &str| base64::engine::general_purpose::STANDARD.encode(login);
    for path_keys in [false, true] {
        let backend = Backend::saying(format!(
            "HTTP/1.1 200 OK\r\nX-Own: {CANARY}\r\nContent-Length: 6\r\n\r\n{CANARY}"
        ))
        .await;
        let house = House::with(&backend, |config, _| {
            config.path_keys = path_keys;
            config.failed_attempts_per_minute = 0;
        })
        .await;
        let encoded = basic(&format!("anna:{CANARY}"));
        let refused = [
            format!("GET /api/tags?key={CANARY} HTTP/1.1\r\nHost: g\r\nCookie: {CANARY}\r\n\r\n"),
            format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {CANARY}\r\n\r\n"),
            format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Basic {encoded}\r\n\r\n"),
            format!("GET /api/tags HTTP/1.1\r\nHost: g\r\nX-Api-Key: {CANARY}\r\n\r\n"),
            format!(
                "GET /api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: {CANARY}:{CANARY}\r\n\r\n"
            ),
            format!("GET /k/{CANARY}/api/tags HTTP/1.1\r\nHost: g\r\n\r\n"),
            format!("GET /k/{CANARY} HTTP/1.1\r\nHost: g\r\n\r\n"),
            format!("GET /k/{CANARY}/%zz HTTP/1.1\r\nHost: g\r\n\r\n"),
            format!("GET http://user:{CANARY}@g/api/tags HTTP/1.1\r\nHost: g\r\n\r\n"),
            format!("GET /api/tags HTTP/1.1\r\nHost: {CANARY}@g\r\n\r\n"),
            format!("POST /api/later HTTP/1.1\r\nHost: g\r\nContent-Length: 6\r\n\r\n{CANARY}"),
            format!("GARBAGE {CANARY}\r\n\r\n"),
        ];
        for request in &refused {
            let mut caller = house.connect().await;
            caller.send(request).await;
            let answer = caller.answer().await;
            assert!((400..500).contains(&answer.status), "{request}: {}", answer.status);
            // What a caller sent in its Host comes back to itself alone, as the way to the help page.
            assert!(!answer.text().contains(CANARY), "{request}: {}", answer.text());
        }
        assert!(backend.seen().is_empty());
        let served = format!("/api/later?secret={CANARY}");
        assert_eq!(house.ask(post(&served, CANARY)).await.status, 200);
        let log = house.log.wait_for(refused.len() + 1).await;
        assert_eq!(log.len(), refused.len() + 1, "one line a request");
        let text = house.log.text();
        for secret in [CANARY, &encoded, KEY, PASSWORD] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_leaves_exactly_one_line_however_it_ends() {
    let backend = Backend::scripted(|seen| match seen.body.as_slice() {
        b"break" => {
            vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_vec()), Step::Close]
        }
        b"fail" => vec![Step::Close],
        b"hang" => vec![Step::AwaitClose],
        _ => vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())],
    })
    .await;
    let house = House::new(&backend).await;
    let rounds = 20;
    for round in 1..=rounds {
        assert_eq!(house.ask(post("/api/later", "fine")).await.status, 200);
        assert!(!house.ask(post("/api/later", "break")).await.whole);
        assert_eq!(house.ask(post("/api/later", "fail")).await.status, 502);
        assert_eq!(house.get("/api//tags").await.status, 400);
        assert_eq!(house.ask("GET / HTTP/1.1\r\nHost: g\r\n\r\n").await.status, 401);
        let mut leaver = house.connect().await;
        leaver.send(post("/api/later", "hang")).await;
        let hung = backend.wait_for_request(round * 4).await;
        assert_eq!(hung.body, b"hang");
        drop(leaver);
        house.log.wait_for(round * 6).await;
    }
    let log = house.log.wait_for(rounds * 6).await;
    assert_eq!(log.len(), rounds * 6);
    let count = |outcome: &str| log.iter().filter(|line| line["outcome"] == outcome).count();
    for outcome in [
        "done",
        "backend_failed",
        "refused:backend_failed",
        "refused:bad_path",
        "refused:no_credentials",
        "client_gone",
    ] {
        assert_eq!(count(outcome), rounds, "{outcome}");
    }
    let ids: std::collections::HashSet<_> = log.iter().map(|line| line["id"].to_string()).collect();
    assert_eq!(ids.len(), log.len(), "each has an id of its own");
}

/// A sink that takes nothing until it is opened.
#[derive(Clone, Default)]
struct Blocked(Arc<(Mutex<bool>, Condvar)>);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_delays_no_request() {
    let backend = Backend::ok().await;
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, format!("{KEY}\n")).unwrap();
    let mut config = Config::builtin();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.api_keys = Some(keys);
    config.backends[0].url = format!("http://{}", backend.address).parse().unwrap();
    let sink = Blocked::default();
    let log = Log::start(sink.clone(), LogFormat::Text).unwrap();
    let listeners = Server::bind(&config.listen).unwrap();
    let gateway = Arc::new(Gateway::new(config, log).unwrap());
    let server = Server::start(listeners, &gateway);
    let mut caller = Caller::connect(server.addresses()[0]).await;
    // More than the queue holds.
    for _ in 0..10_000 {
        caller.send(get("/_portcullis/me")).await;
        assert_eq!(caller.answer().await.status, 200);
    }
    *sink.0.0.lock().unwrap() = true;
    sink.0.1.notify_all();
}
