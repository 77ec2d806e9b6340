//! One row for every request that a backend began, whoever ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis::stand_in::StandIn;
use portcullis::store::{RowsQuery, Store, UsageEntry, UsageFilter};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

use crate::house::{Backend, House, Step, chunk, get, ok_json, post, stream_head, until};

mod bytes; // the same bytes as came
mod ends; // ends of every kind

const NDJSON: &str = "application/x-ndjson";
const PROMPT: &str = r#"{"model":"Tiny","prompt":"twelve bytes"}"#;
const TOKEN: &str = "{\"model\":\"tiny\",\"response\":\"a\",\"done\":false}\n";
const LAST: &str = "{\"model\":\"tiny\",\"response\":\"\",\"done\":true,\"prompt_eval_count\":5,\
                    \"eval_count\":2,\"load_duration\":1000000}\n";

fn send(text: impl Into<Vec<u8>>) -> Step {
    Step::Send(text.into())
}

/// An answer of two tokens, which ends.
fn whole() -> Vec<Step> {
    let (token, last) = (chunk(TOKEN), chunk(LAST));
    vec![send(stream_head(NDJSON)), send(token.clone()), send(token), send(last), send("0\r\n\r\n")]
}

async fn house(backend: &Backend) -> House {
    House::with(backend, |config, folder| config.data_dir = Some(folder.path().join("data"))).await
}

/// What the folder has, the oldest first.
pub fn rows(house: &House) -> Vec<UsageEntry> {
    let folder = house.gateway.state().config().data_dir.clone().unwrap();
    let store = Store::open_existing(&folder).unwrap();
    let query = RowsQuery {
        since: Timestamp::MIN,
        until: Timestamp::MAX,
        only: UsageFilter::default(),
        before: None,
        limit: 1000,
    };
    let mut rows = store.usage_rows(&query).unwrap();
    rows.reverse();
    rows
}

/// On a machine that stands still for 20 ms an answer goes without its row, and that is counted.
pub async fn rows_in_time(house: &House, count: usize) -> Vec<UsageEntry> {
    let (seen, late) = (rows(house).len(), house.gateway.ledger().unwrap().late());
    assert!(seen == count || late > 0, "{seen} of {count}");
    until("the rows", || Some(rows(house)).filter(|rows| rows.len() == count)).await
}

/// After the line, because whoever left is not waited for.
async fn one_row(house: &House) -> UsageEntry {
    house.log.wait_for(1).await;
    let rows = until("a row", || Some(rows(house)).filter(|rows| !rows.is_empty())).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_came_whole_has_its_row_before_its_end_is_told() {
    let backend = Backend::scripted(|_| whole()).await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    for count in 1..=20 {
        caller.send(post("/api/generate", PROMPT)).await;
        let answer = caller.answer().await;
        let rows = rows_in_time(&house, count).await;
        let row = rows.last().unwrap();
        assert_eq!(row.id, answer.header("x-request-id").unwrap());
        assert_eq!((row.usage.prompt, row.usage.completion, row.usage.estimated), (5, 2, false));
    }
    let row = rows(&house).remove(0);
    assert_eq!((row.name.as_str(), row.model.as_deref()), ("anna", Some("tiny:latest")));
    assert_eq!(
        (row.operation.as_str(), row.status, row.outcome.as_str()),
        ("generate", 200, "done")
    );
    assert_eq!(row.bytes_in, PROMPT.len() as u64);
    assert_eq!(row.bytes_out, (2 * TOKEN.len() + LAST.len()) as u64);
    assert!(row.is_inference && row.first_token.is_some() && row.first_byte <= row.first_token);
    assert!(row.backend_time <= row.total && row.usage.load == Some(Duration::from_millis(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_answer_goes_with_its_head_though_it_waits_for_its_row() {
    let answer = r#"{"model":"tiny","response":"a","done":true,"eval_count":2}"#;
    let backend = Backend::saying(ok_json(answer)).await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    let mut buffer = [0; 4096];
    for _ in 0..20 {
        caller.send(post("/api/generate", PROMPT)).await;
        let read = caller.socket.read(&mut buffer).await.unwrap();
        let came = std::str::from_utf8(&buffer[..read]).unwrap();
        assert!(came.starts_with("HTTP/1.1 200 ") && came.ends_with(answer), "{came}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_line_waits_for_the_row_though_the_answer_has_not_ended() {
    let backend = Backend::scripted(|_| {
        vec![send(stream_head(NDJSON)), send(chunk(TOKEN)), send(chunk(LAST)), Step::AwaitClose]
    })
    .await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/generate", PROMPT)).await;
    assert!(caller.sees_content("\"done\":true").await);
    rows_in_time(&house, 1).await;
    drop(caller);
    let row = one_row(&house).await;
    assert_eq!((row.outcome.as_str(), row.usage.completion), ("done", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_is_charged_what_was_made() {
    let backend = Backend::scripted(|_| {
        let (first, second) = (send(chunk(TOKEN)), send(chunk(TOKEN)));
        vec![send(stream_head(NDJSON)), first, second, Step::AwaitClose]
    })
    .await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/generate", PROMPT)).await;
    assert!(caller.sees_content(&TOKEN.repeat(2)).await);
    drop(caller);
    let row = one_row(&house).await;
    assert_eq!((row.outcome.as_str(), row.status), ("client_gone", 200));
    assert_eq!((row.usage.completion, row.usage.estimated), (2, true));
    assert!(row.usage.prompt > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_before_the_first_byte_has_a_row() {
    let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/generate", PROMPT)).await;
    backend.wait_for_request(1).await;
    drop(caller);
    let row = one_row(&house).await;
    assert_eq!((row.outcome.as_str(), row.status), ("client_gone", 0));
    assert_eq!((row.usage.completion, row.usage.estimated), (0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_packed_though_nobody_asked_for_it_is_estimated_by_its_length() {
    let backend = Backend::scripted(|_| {
        // Its bytes do not matter; what looks like an end in them is none.
        let packed = LAST.repeat(40);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
                    Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n";
        vec![send(head), send(chunk(&packed)), send("0\r\n\r\n")]
    })
    .await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    let asked = post("/api/generate", PROMPT).replace("Host", "Accept-Encoding: gzip\r\nHost");
    caller.send(asked).await;
    let answer = caller.answer().await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert!(!backend.seen()[0].head.to_lowercase().contains("accept-encoding"));
    let row = one_row(&house).await;
    let length = 40 * LAST.len() as u64;
    assert_eq!((row.usage.completion, row.usage.estimated), (length.div_ceil(4), true));
    assert!(row.usage.prompt > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_breaks_off_leaves_a_row() {
    let backend =
        Backend::scripted(|_| vec![send(stream_head(NDJSON)), send(chunk(TOKEN)), Step::Reset])
            .await;
    let house = house(&backend).await;
    house.ask(post("/api/generate", PROMPT)).await;
    let row = one_row(&house).await;
    assert_eq!((row.outcome.as_str(), row.usage.completion), ("backend_failed", 1));
    assert!(row.usage.estimated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_never_answers_leaves_a_row_without_tokens() {
    let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let house = House::with(&backend, |config, folder| {
        config.data_dir = Some(folder.path().join("data"));
        config.timeouts.first_byte = Duration::from_millis(50);
    })
    .await;
    let answer = house.ask(post("/api/generate", PROMPT)).await;
    let row = one_row(&house).await;
    assert_eq!((answer.status, row.status, row.outcome.as_str()), (504, 504, "backend_timeout"));
    assert_eq!(row.usage.tokens(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_a_shutdown_cuts_leaves_a_row() {
    let backend = Backend::scripted(|_| {
        vec![send(stream_head(NDJSON)), send(chunk(TOKEN)), Step::AwaitClose]
    })
    .await;
    let mut house = house(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/api/generate", PROMPT)).await;
    assert!(caller.sees_content(TOKEN).await);
    let server = house.take_server();
    server.shutdown(Duration::ZERO, Duration::ZERO, std::future::pending()).await;
    let rows = rows(&house);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0].outcome.as_str(), rows[0].usage.completion), ("drained", 1));
}

/// What a store costs that is held: nothing. The promise is 50 ms; a busy machine gets ten times as much.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_store_that_another_process_holds() {
    let backend = Backend::scripted(|_| whole()).await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    let other = rusqlite::Connection::open(house.file("data").join("portcullis.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    for _ in 0..20 {
        let began = Instant::now();
        caller.send(post("/api/generate", PROMPT)).await;
        assert!(caller.answer().await.whole);
        caller.send(get("/_portcullis/me")).await;
        assert_eq!(caller.answer().await.status, 200);
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    }
    let ledger = house.gateway.ledger().unwrap();
    until("rows in the journal", || (ledger.waiting() == 0).then_some(())).await;
    assert_eq!((ledger.lag(), ledger.lost()), (20, 0));
    other.execute_batch("COMMIT").unwrap();
    until("rows in the store", || (ledger.lag() == 0).then_some(())).await;
    assert_eq!(rows(&house).len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_backend_began_leaves_no_row_and_neither_do_lists() {
    let backend = Backend::scripted(|_| vec![send(ok_json("{\"models\":[]}"))]).await;
    let house = house(&backend).await;
    assert_eq!(house.get("/api/tags").await.status, 200);
    assert_eq!(house.get("/api/version").await.status, 200);
    assert_eq!(house.ask(post("/api/generate", "{\"model\":1}")).await.status, 400);
    let gone = House::with(&backend, |config, folder| {
        config.data_dir = Some(folder.path().join("data"));
        config.backends[0].url = "http://127.0.0.1:1".parse().unwrap();
    })
    .await;
    assert_eq!(gone.ask(post("/api/generate", PROMPT)).await.code(), "no_backend");
    gone.log.wait_for(1).await;
    house.log.wait_for(3).await;
    assert_eq!((rows(&house), rows(&gone)), (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn management_and_errors_leave_rows_without_tokens() {
    let backend = Backend::scripted(|seen| match seen.line().contains("/api/pull") {
        true => vec![
            send(stream_head(NDJSON)),
            send(chunk("{\"status\":\"success\",\"eval_count\":9}\n")),
            send("0\r\n\r\n"),
        ],
        false => vec![send(
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n\
             {\"error\":\"no\"}",
        )],
    })
    .await;
    let house = house(&backend).await;
    assert_eq!(house.ask(post("/api/pull", "{\"model\":\"tiny\"}")).await.status, 200);
    assert_eq!(house.ask(post("/api/generate", PROMPT)).await.status, 404);
    let rows = until("two rows", || Some(rows(&house)).filter(|rows| rows.len() == 2)).await;
    let [pull, failed] = &rows[..] else { unreachable!() };
    assert_eq!(
        (pull.operation.as_str(), pull.is_inference, pull.usage.tokens()),
        ("pull", false, 0)
    );
    assert_eq!((failed.status, failed.outcome.as_str(), failed.usage.tokens()), (404, "done", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_one_piece_has_its_row_before_its_last_byte() {
    let body = r#"{"choices":[{"message":{"content":"usage: {}"}}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}"#;
    let hold = Arc::new(Notify::new());
    let gate = Arc::clone(&hold);
    let backend = Backend::scripted(move |_| {
        let (head, rest) = body.split_at(20);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{head}",
            body.len()
        );
        vec![send(head), Step::Wait(Arc::clone(&gate)), send(rest)]
    })
    .await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    caller.send(post("/v1/chat/completions", r#"{"model":"tiny","messages":[]}"#)).await;
    assert!(caller.sees("{\"choices\"").await);
    assert_eq!(rows(&house), vec![]);
    hold.notify_one();
    assert_eq!(caller.answer().await.text(), body);
    let rows = rows_in_time(&house, 1).await;
    assert_eq!((rows[0].usage.prompt, rows[0].usage.completion), (7, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_of_openais_is_counted_though_its_caller_did_not_ask_and_does_not_see_it() {
    let words = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":1}}\n\n";
    let done = "data: [DONE]\n\n";
    let backend = Backend::scripted(move |seen| {
        assert!(String::from_utf8_lossy(&seen.body).contains("\"include_usage\":true"));
        let head = stream_head("text/event-stream");
        let all = [words, usage, done].map(|it| send(chunk(it)));
        [vec![send(head)], all.to_vec(), vec![send("0\r\n\r\n")]].concat()
    })
    .await;
    let house = house(&backend).await;
    for (at, (ask, sees)) in [
        ("", false),
        (",\"stream_options\":{\"include_usage\":false}", false),
        (",\"stream_options\":{\"include_usage\":true}", true),
    ]
    .into_iter()
    .enumerate()
    {
        let body = format!("{{\"model\":\"tiny\",\"stream\":true,\"messages\":[]{ask}}}");
        let mut caller = house.connect().await;
        caller.send(post("/v1/chat/completions", &body)).await;
        let answer = caller.answer().await;
        let expected = [words, if sees { usage } else { "" }, done].concat();
        assert_eq!(answer.text(), expected, "{ask}");
        let row = rows_in_time(&house, at + 1).await.pop().unwrap();
        assert_eq!(Some(row.id.as_str()), answer.header("x-request-id"));
        assert_eq!((row.usage.prompt, row.usage.completion, row.usage.estimated), (4, 1, false));
        assert_eq!(row.bytes_out, expected.len() as u64);
    }
}

/// The built-in model server tells what it came to as Ollama does.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_stand_in_says_is_counted_as_it_tells() {
    let stand_in = StandIn::start(Duration::ZERO).await.unwrap();
    let unused = Backend::ok().await;
    let house = House::with(&unused, |config, folder| {
        config.data_dir = Some(folder.path().join("data"));
        config.backends[0].url = format!("http://{}", stand_in.address()).parse().unwrap();
    })
    .await;
    let wish = r#","stream_options":{"include_usage":true}"#;
    for (count, (more, sees)) in [("", false), (wish, true)].into_iter().enumerate() {
        let body = format!(r#"{{"model":"{}","stream":true{more}}}"#, portcullis::stand_in::MODEL);
        let answer = house.ask(post("/v1/chat/completions", &body)).await;
        assert_eq!(answer.text().contains("\"usage\""), sees, "{}", answer.text());
        let row = rows_in_time(&house, count + 1).await.pop().unwrap();
        let usage = (row.usage.prompt, row.usage.completion, row.usage.estimated);
        assert_eq!(usage, (1, 12, false));
    }
}

/// What comes to the caller of these pieces of a stream that was asked for its usage.
async fn sifted(pieces: Vec<String>) -> String {
    let backend = Backend::scripted(move |seen| {
        assert!(!seen.head.to_ascii_lowercase().contains("accept-encoding"), "{}", seen.head);
        let pieces = pieces.iter().map(|piece| chunk(piece)).collect::<String>();
        vec![send(stream_head("text/event-stream") + &pieces + "0\r\n\r\n")]
    })
    .await;
    let house = house(&backend).await;
    let body = "{\"model\":\"tiny\",\"stream\":true,\"messages\":[]}";
    let asked = post("/v1/chat/completions", body);
    let asked = asked.replacen("Host:", "Accept-Encoding: gzip\r\nHost:", 1);
    let mut caller = house.connect().await;
    caller.send(asked).await;
    let answer = caller.answer().await;
    assert!(answer.whole, "{}", answer.text());
    answer.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_sifted_ends_with_all_that_was_held_back() {
    for rest in [": bye\n", "data: {\"choices\"", "data: {\"id\":1}\n"] {
        let words = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".to_owned();
        assert_eq!(sifted(vec![words.clone(), rest.to_owned()]).await, words + rest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_great_many_pieces_of_which_nothing_is_left_do_no_harm() {
    let usage = "data: {\"choices\":[],\"usage\":{}";
    let pieces = std::iter::once(usage.to_owned()).chain((0..100_000).map(|_| " ".to_owned()));
    assert_eq!(sifted(pieces.chain(["}\n\n".to_owned()]).collect()).await, "");
}
