//! Ends of every kind: no body, a refusal after the beginning, silence, a false length, a panic.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis::config::BackendKind;

use super::*;

fn delete() -> String {
    post("/api/delete", "{\"model\":\"tiny\"}").replacen("POST", "DELETE", 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_all_head_waits_for_its_row_with_it() {
    let backend = Backend::scripted(|seen| {
        let head = match seen.line().contains("/api/copy") {
            true => "200 OK\r\nContent-Length: 0",
            false => "204 No Content",
        };
        vec![send(format!("HTTP/1.1 {head}\r\n\r\n"))]
    })
    .await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    let copy = post("/api/copy", "{\"source\":\"tiny\",\"destination\":\"other\"}");
    for count in 1..=5 {
        for (at, (asked, status, operation)) in
            [(copy.clone(), 200, "copy"), (delete(), 204, "delete")].into_iter().enumerate()
        {
            caller.send(asked).await;
            assert_eq!(caller.answer().await.status, status);
            let row = rows_in_time(&house, 2 * count - 1 + at).await.pop().unwrap();
            assert_eq!((row.operation.as_str(), row.outcome.as_str()), (operation, "done"));
            assert_eq!((row.status, row.bytes_out, row.usage.tokens()), (status, 0, 0));
        }
    }
}

/// A row that cannot be written is late at once, and only an answer that waits for it finds that out.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_answer_is_it_waits_for_its_row() {
    let backend = Backend::scripted(|seen| match seen.line() {
        line if line.contains("/api/copy") => {
            vec![send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]
        }
        line if line.contains("/api/delete") => vec![send("HTTP/1.1 204 No Content\r\n\r\n")],
        line if line.contains("/api/pull") => vec![send(ok_json("{\"status\":\"success\"}"))],
        line if line.contains("/api/chat") => vec![Step::Reset],
        _ => whole(),
    })
    .await;
    let house = house(&backend).await;
    // There is no journal yet, and nowhere to begin one.
    std::fs::rename(house.file("data"), house.file("aside")).unwrap();
    let ledger = house.gateway.ledger().unwrap();
    let copy = post("/api/copy", "{\"source\":\"tiny\",\"destination\":\"other\"}");
    let pull = post("/api/pull", "{\"model\":\"tiny\"}");
    let chat = post("/api/chat", "{\"model\":\"tiny\"}");
    let all = [copy, delete(), pull, post("/api/generate", PROMPT), chat];
    for (count, asked) in (1..).zip(all) {
        house.ask(&asked).await;
        assert_eq!(ledger.late(), count, "{asked}");
    }
    std::fs::rename(house.file("aside"), house.file("data")).unwrap();
    until("the rows", || Some(rows(&house)).filter(|rows| rows.len() == 5)).await;
    assert_eq!(ledger.lost(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_what_a_backend_began_waits_for_its_row() {
    let backend = Backend::scripted(|_| vec![Step::Reset]).await;
    let house = house(&backend).await;
    assert_eq!(house.ask(post("/api/generate", PROMPT)).await.status, 502);
    let row = rows_in_time(&house, 1).await.pop().unwrap();
    assert_eq!((row.status, row.outcome.as_str()), (502, "backend_failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_falls_silent_in_mid_stream_leaves_a_row_of_what_came() {
    let backend = Backend::scripted(|_| {
        vec![send(stream_head(NDJSON)), send(chunk(TOKEN)), Step::AwaitClose]
    })
    .await;
    let house = House::with(&backend, |config, folder| {
        config.data_dir = Some(folder.path().join("data"));
        config.timeouts.idle = Duration::from_millis(50);
    })
    .await;
    let answer = house.ask(post("/api/generate", PROMPT)).await;
    assert!(!answer.whole && answer.text().contains("backend_timeout"), "{}", answer.text());
    let row = one_row(&house).await;
    assert_eq!((row.outcome.as_str(), row.status), ("backend_timeout", 200));
    assert_eq!((row.usage.completion, row.usage.estimated), (1, true));
    assert!(row.usage.prompt > 0);
}

/// With a limit, whose count is to be as the row has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_lies_about_its_length_is_charged_what_passed() {
    let two = TOKEN.repeat(2);
    for (length, then, whole) in
        [(two.len() + 1000, Step::Close, false), (two.len(), send(LAST), true)]
    {
        let body = two.clone();
        let backend = Backend::scripted(move |_| {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {NDJSON}\r\nContent-Length: {length}\r\n\r\n"
            );
            vec![send(head + &body), then.clone()]
        })
        .await;
        let limits = crate::limits::with_limits("[[rule]]\ntokens_per_day = 1000\n");
        let house = House::with(&backend, |config, folder| {
            limits(config, folder);
            config.data_dir = Some(folder.path().join("data"));
        })
        .await;
        let answer = house.ask(post("/api/generate", PROMPT)).await;
        assert_eq!((answer.whole, answer.text()), (whole, two.clone()));
        let row = one_row(&house).await;
        assert_eq!(row.outcome, if whole { "done" } else { "backend_failed" });
        assert_eq!((row.usage.completion, row.usage.estimated), (2, true));
        let me = house.get("/_portcullis/me").await.json();
        assert_eq!(me["used"]["tokens_per_day"], row.usage.prompt + 2, "{me}");
    }
}

/// Where something else is counted than before, the answer changes: so only where that is wanted.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_asked_for_usage_only_where_its_answer_stays_the_same_or_that_is_wanted() {
    let (ollama, openai) = (BackendKind::Ollama, BackendKind::OpenAi);
    for (kind, path, wanted, is_asked) in [
        (ollama, "/v1/chat/completions", false, true),
        (ollama, "/v1/completions", false, false),
        (ollama, "/v1/completions", true, true),
        (openai, "/v1/chat/completions", false, false),
        (openai, "/v1/chat/completions", true, true),
        (openai, "/v1/completions", true, true),
    ] {
        let words = "data: {\"choices\":[{\"text\":\"a\",\"delta\":{\"content\":\"a\"}}]}\n\n";
        let backend = Backend::scripted(move |seen| {
            let body = String::from_utf8_lossy(&seen.body);
            let usage = match body.contains("\"include_usage\":true") {
                true => "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":9}}\n\n",
                false => "",
            };
            let all = [words, words, usage, "data: [DONE]\n\n"].concat();
            vec![send(stream_head("text/event-stream")), send(chunk(&all)), send("0\r\n\r\n")]
        })
        .await;
        let house = House::with(&backend, |config, folder| {
            config.data_dir = Some(folder.path().join("data"));
            (config.backends[0].kind, config.backends[0].ask_usage) = (kind, wanted);
        })
        .await;
        let body = r#"{"model":"tiny","stream":true,"prompt":"twelve bytes","messages":[]}"#;
        let answer = house.ask(post(path, body)).await;
        let case = format!("{kind:?} {path} {wanted}");
        assert_eq!(answer.text(), format!("{words}{words}data: [DONE]\n\n"), "{case}");
        let row = one_row(&house).await;
        let counts = (row.usage.completion, row.usage.estimated);
        assert_eq!(counts, if is_asked { (9, false) } else { (2, true) }, "{case}");
        assert_eq!(row.usage.prompt == 4, is_asked, "{case}");
    }
}

/// Panics when the gate is to log this, on the way of the request that it is about; once.
struct Trap(&'static str, Arc<AtomicBool>);

impl Write for Trap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let is_it = text.contains(self.0) && !self.1.swap(true, Ordering::Relaxed);
        assert!(!is_it, "a panic, as it was ordered");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Until it is dropped, and for what runs on this thread: the test's own runtime.
fn trap(text: &'static str) -> tracing::subscriber::DefaultGuard {
    let has_sprung = Arc::<AtomicBool>::default();
    let trap = move || Trap(text, Arc::clone(&has_sprung));
    let subscriber = tracing_subscriber::fmt().with_writer(trap).finish();
    tracing::subscriber::set_default(subscriber)
}

#[tokio::test]
async fn a_panic_on_the_path_is_a_500_with_a_line_and_a_row_of_what_a_backend_began() {
    let backend = Backend::scripted(|seen| match seen.line().starts_with("GET ") {
        true => vec![send(ok_json("{\"models\":[{\"model\":\"tiny:latest\"}]}"))],
        false => vec![Step::Reset],
    })
    .await;
    // It is only of one of several that it is said when it fails.
    let house = House::with(&backend, |config, folder| {
        config.data_dir = Some(folder.path().join("data"));
        let mut other = config.backends[0].clone();
        other.name = "other".to_owned();
        config.backends.push(other);
    })
    .await;
    let trapped = trap("gets no more requests");
    let mut asked = 0;
    let answer = loop {
        let answer = house.ask(post("/api/generate", PROMPT)).await;
        asked += 1;
        rows_in_time(&house, asked).await;
        assert!(asked < 10, "{}", answer.text());
        if answer.status != 502 {
            break answer;
        }
    };
    drop(trapped);
    assert_eq!((answer.status, answer.code().as_str()), (500, "internal"));
    assert_eq!(house.gateway.in_flight(), 0);
    let row = rows(&house).pop().unwrap();
    assert_eq!(Some(row.id.as_str()), answer.header("x-request-id"));
    assert_eq!((row.status, row.outcome.as_str()), (500, "internal"));
    assert_eq!(row.usage.tokens(), 0);
    let alive = house.ask("GET /_portcullis/health HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!(alive.status, 200, "others are served");
    let lines = house.lines().await;
    assert_eq!(lines.len(), asked + 1, "{lines:?}");
    assert_eq!(
        (&lines[asked - 1]["status"], &lines[asked - 1]["code"]),
        (&500.into(), &"internal".into())
    );
}

#[tokio::test]
async fn a_panic_in_an_answer_cuts_it_and_leaves_a_line_and_a_row() {
    let backend = Backend::scripted(|_| {
        vec![send(stream_head(NDJSON)), send(chunk(TOKEN)), send("zz\r\n"), Step::AwaitClose]
    })
    .await;
    let house = house(&backend).await;
    let trapped = trap("request failed");
    let answer = house.ask(post("/api/generate", PROMPT)).await;
    assert!(!answer.whole, "{}", answer.text());
    let row = one_row(&house).await;
    drop(trapped);
    assert_eq!((row.outcome.as_str(), row.status), ("backend_failed", 200));
    assert_eq!((row.usage.completion, row.usage.estimated), (1, true));
    until("nothing in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
    backend.wait_for_closed(1).await;
    assert_eq!(house.get("/_portcullis/health").await.status, 200, "others are served");
    assert_eq!(house.lines().await.len(), 2);
}
