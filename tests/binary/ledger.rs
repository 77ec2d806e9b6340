//! The ledger through the worst: the process killed while answers stream.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis::store::{RowsQuery, Store, UsageFilter};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::load::{Model, ends_whole, stream_with};
use crate::{Gate, House, KEY, PATIENCE, after, tell};

const STREAMS: usize = 40;
const BEAT: Duration = Duration::from_millis(2);
/// Tokens of every prompt.
const PROMPT: u64 = 3;

/// `PORTCULLIS_SLOW=1` for the fifty rounds of the promise, each after another pause.
fn rounds() -> u64 {
    std::env::var_os("PORTCULLIS_SLOW").map_or(3, |_| 50)
}

#[test]
fn what_was_received_whole_has_its_row_though_the_gate_was_killed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        let mut model = JoinSet::new();
        model.spawn(serve_model(listener));
        let house = House::new();
        std::fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
        limit(&house, u64::from(u32::MAX));
        let (whole, month) = (Arc::new(Mutex::new(HashMap::new())), this_month());
        for round in 0..rounds() {
            let before = whole.lock().unwrap().len();
            let mut gate = start(&house, &upstream);
            assert_has_used(&gate, &whole, &month);
            let address: SocketAddr = gate.address.parse().unwrap();
            let mut callers = JoinSet::new();
            for _ in 0..STREAMS {
                callers.spawn(ask_until_it_ends(address, Arc::clone(&whole)));
            }
            let began = Instant::now();
            while whole.lock().unwrap().len() < before + STREAMS {
                assert!(began.elapsed() < PATIENCE, "no answers come");
                sleep(BEAT).await;
            }
            sleep(Duration::from_millis(round * 7 % 50)).await;
            gate.child.kill().unwrap();
            gate.child.wait().unwrap();
            while callers.join_next().await.is_some() {}
        }
        let gate = start(&house, &upstream);
        let used = assert_has_used(&gate, &whole, &month);
        drop(gate);
        limit(&house, used.max(1));
        let refused = start(&house, &upstream).post("/api/generate", KEY, "{\"model\":\"tiny\"}");
        if this_month() == month {
            assert!(refused.0 == 429 && refused.1.contains("quota_exhausted"), "{}", refused.1);
        }
        let whole = whole.lock().unwrap();
        let rows = rows(&house.path("data"));
        let ids: HashSet<_> = rows.iter().map(|row| row.0.as_str()).collect();
        assert_eq!(ids.len(), rows.len(), "a row is there twice");
        let missing = whole.keys().filter(|id| !ids.contains(id.as_str())).count();
        assert_eq!(missing, 0, "of {} answers received whole", whole.len());
        for (id, tokens, outcome) in &rows {
            if whole.contains_key(id) {
                assert_eq!((*tokens, outcome.as_str()), (whole[id], "done"), "{id}");
            }
        }
        let (answers, rows) = (whole.len(), rows.len());
        tell(&format!("killed {} times: {answers} answers whole, {rows} rows", rounds()));
    });
}

fn limit(house: &House, number: u64) {
    let limit = format!("[[rule]]\ntokens_per_month = {number}\n");
    std::fs::write(house.path("portcullis.toml"), limit).unwrap();
}

/// As limits count it.
fn this_month() -> String {
    Timestamp::now().strftime("%Y-%m").to_string()
}

/// What a caller has used counts after the kill as before it, of every answer that came whole.
fn assert_has_used(gate: &Gate, whole: &Mutex<HashMap<String, u64>>, month: &str) -> u64 {
    let (_, me) = gate.get("/_portcullis/me", Some(KEY));
    let me: Value = serde_json::from_str(me.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let used = me["used"]["tokens_per_month"].as_u64().unwrap();
    let least: u64 = whole.lock().unwrap().values().map(|tokens| tokens + PROMPT).sum();
    assert!(used >= least || this_month() != month, "{used} of {least}");
    used
}

fn start(house: &House, upstream: &str) -> Gate {
    let mut gate = Gate::start(house.command(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--api-keys",
        "keys",
        "--data-dir",
        "data",
        "--upstream",
        upstream,
    ]));
    gate.address = after(&gate.says("listening"), "address=");
    gate
}

/// Id, tokens and outcome of every row, after the store was found whole.
pub(crate) fn rows(data: &Path) -> Vec<(String, u64, String)> {
    let store = Store::open_existing(data).unwrap();
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
    let mut rows = Vec::new();
    let mut query = RowsQuery {
        since: Timestamp::MIN,
        until: Timestamp::MAX,
        only: UsageFilter::default(),
        before: None,
        limit: 1000,
    };
    loop {
        let page = store.usage_rows(&query).unwrap();
        let Some(last) = page.last() else { return rows };
        query.before = Some(last.place);
        rows.extend(page.into_iter().map(|row| (row.id, row.usage.completion, row.outcome)));
    }
}

/// Answers every request with a few tokens and a count of them that is another each time.
async fn serve_model(listener: TcpListener) {
    let mut answers = JoinSet::new();
    let mut count = 0_usize;
    while let Ok((socket, _)) = listener.accept().await {
        count += 1;
        answers.spawn(async move {
            // The gate may be gone at any time.
            let _ = answer(socket, count).await;
        });
    }
}

async fn answer(mut socket: TcpStream, seed: usize) -> std::io::Result<()> {
    for count in seed.. {
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            if socket.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        socket.write_all(head.as_bytes()).await?;
        for _ in 0..count % 7 {
            let line = "{\"model\":\"tiny\",\"response\":\"a\",\"done\":false}\n";
            socket.write_all(chunk(line).as_bytes()).await?;
            sleep(BEAT).await;
        }
        let line = format!(
            "{{\"model\":\"tiny\",\"response\":\"\",\"done\":true,\"prompt_eval_count\":{PROMPT},\
             \"eval_count\":{count}}}\n"
        );
        socket.write_all(chunk(&line).as_bytes()).await?;
        socket.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

fn chunk(line: &str) -> String {
    format!("{:x}\r\n{line}\r\n", line.len())
}

/// One request after the other over one connection; an answer counts as soon as its last line came,
/// as it does for a client that reads lines.
async fn ask_until_it_ends(address: SocketAddr, whole: Arc<Mutex<HashMap<String, u64>>>) {
    let Ok(mut socket) = TcpStream::connect(address).await else { return };
    let body = "{\"model\":\"tiny\",\"prompt\":\"hello\"}";
    let request = format!(
        "POST /api/generate HTTP/1.1\r\nHost: gate\r\nX-Api-Key: {KEY}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    while socket.write_all(request.as_bytes()).await.is_ok() {
        let mut answer = Vec::new();
        while !answer.ends_with(b"0\r\n\r\n") {
            match socket.read_buf(&mut answer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return note(&answer, &whole),
            }
        }
        note(&answer, &whole);
    }
}

fn note(answer: &[u8], whole: &Mutex<HashMap<String, u64>>) {
    let text = String::from_utf8_lossy(answer);
    let last = text.lines().find(|line| line.contains("\"done\":true") && line.ends_with('}'));
    if let Some(last) = last {
        let tokens = last.split("\"eval_count\":").nth(1).unwrap().trim_end_matches('}');
        let id = text.split("x-request-id: ").nth(1).unwrap().lines().next().unwrap();
        let before = whole.lock().unwrap().insert(id.to_owned(), tokens.parse().unwrap());
        assert_eq!(before, None, "an id was drawn twice");
    }
}

#[test]
fn a_stop_leaves_a_row_of_what_ended_in_time_and_of_what_it_cut() {
    for (again, outcome) in [(false, "done"), (true, "drained")] {
        let (house, model) = (House::new(), Model::start());
        std::fs::write(house.path("keys"), format!("{KEY} # anna\n")).unwrap();
        let mut gate = start(&house, &format!("http://{}", model.address));
        let running = stream_with(KEY, gate.address.parse().unwrap());
        gate.signal("TERM");
        gate.says("stopping");
        if again {
            gate.signal("TERM");
        } else {
            model.ends.store(true, Ordering::SeqCst);
        }
        assert_eq!(ends_whole(running), !again);
        assert_eq!(gate.wait(), Some(0));
        let outcomes: Vec<_> =
            rows(&house.path("data")).into_iter().map(|(_, _, outcome)| outcome).collect();
        assert_eq!(outcomes, [outcome]);
    }
}
