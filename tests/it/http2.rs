//! HTTP/2: many streams on one connection, each as whole, as quick and as easily stopped as a
//! connection of HTTP/1.1.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::house::{Backend, House, KEY, PATIENCE, Step, chunk, find, ok_json, stream_head, until};
use crate::ledger;

mod hostile; // who breaks the rules, and who uses them up
mod raw; // frame by frame

const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";
const BLOB: &str =
    "/api/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

async fn house(backend: &Backend) -> House {
    House::with(backend, |config, _| config.h2c = true).await
}

/// A client by the rules.
pub struct Client {
    sends: SendRequest<Bytes>,
    connection: JoinSet<Result<(), h2::Error>>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub async fn over(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sends, connection) = h2::client::handshake(socket).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Self { sends, connection: tasks }
    }

    async fn begin(
        &mut self,
        request: http::request::Builder,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut sends = self.sends.clone().ready().await.unwrap();
        sends.send_request(request.body(()).unwrap(), false).unwrap()
    }

    /// The answer's head and where its body comes from.
    pub async fn asks(&mut self, request: Request<&str>) -> Response<RecvStream> {
        let (parts, body) = request.into_parts();
        let mut sends = self.sends.clone().ready().await.unwrap();
        let request = Request::from_parts(parts, ());
        let (answer, mut stream) = sends.send_request(request, body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
        }
        timeout(PATIENCE, answer).await.expect("no answer").unwrap()
    }

    async fn gets(&mut self, path: &str) -> Whole {
        whole(self.asks(get(path).body("").unwrap()).await).await
    }

    /// Waits until the gate has ended the connection, which the caller would go on with.
    pub async fn is_ended(&mut self) {
        let ended = timeout(PATIENCE, self.connection.join_next()).await;
        ended.expect("it stays").unwrap().unwrap().unwrap();
    }

    /// Waits until the gate has closed the connection.
    async fn ends(mut self) -> Result<(), h2::Error> {
        drop(self.sends);
        timeout(PATIENCE, self.connection.join_next()).await.expect("it stays").unwrap().unwrap()
    }
}

fn builder(method: &str, path: &str) -> http::request::Builder {
    let request = Request::builder().method(method).uri(format!("http://gate{path}"));
    request.header("authorization", format!("Bearer {KEY}"))
}

pub fn get(path: &str) -> http::request::Builder {
    builder("GET", path)
}

pub fn post(path: &str) -> http::request::Builder {
    builder("POST", path)
}

/// An answer that was read to its end, and what ended it if that was no end of its own.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    headers: HeaderMap,
    pub text: String,
    broke: Option<Reason>,
}

impl Whole {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_str(&self.text).unwrap();
        json["code"].as_str().unwrap().to_owned()
    }
}

pub async fn next(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let data = timeout(PATIENCE, body.data()).await.expect("nothing more comes")?;
    if let Ok(data) = &data {
        let _ = body.flow_control().release_capacity(data.len());
    }
    Some(data)
}

pub async fn whole(response: Response<RecvStream>) -> Whole {
    let (parts, mut body) = response.into_parts();
    let (mut text, mut broke) = (Vec::new(), None);
    while let Some(data) = next(&mut body).await {
        match data {
            Ok(data) => text.extend_from_slice(&data),
            Err(error) => {
                broke = Some(error.reason().expect("the whole connection broke"));
                break;
            }
        }
    }
    let text = String::from_utf8(text).unwrap();
    Whole { status: parts.status.as_u16(), headers: parts.headers, text, broke }
}

/// One line, of a caller who left, and nothing that still runs.
async fn left_behind(house: House, backend: &Backend, closed: usize) {
    backend.wait_for_closed(closed).await;
    until("no request in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
    house.log.wait_for(closed).await;
    let lines = house.lines().await;
    assert_eq!(lines.len(), closed, "{lines:?}");
    for line in lines {
        assert_eq!((&line["outcome"], &line["name"]), (&"client_gone".into(), &"anna".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_passed_on_and_answered_as_over_http_1_1() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let mut client = Client::connect(house.address).await;
    let answer = client.gets("/api/tags?x=1").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "{\"ok\":true}"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("content-length"), Some("11"));
    assert_eq!(answer.header("server"), Some("portcullis"));
    assert!(httpdate::parse_http_date(answer.header("date").unwrap()).is_ok());

    let request = post("/api/chat").header("cookie", "a=1").header("cookie", "b=2");
    let answer = whole(client.asks(request.body("{\"model\":\"m\"}").unwrap()).await).await;
    assert_eq!(answer.status, 200);
    let seen = backend.seen();
    assert_eq!(seen[0].line(), "GET /api/tags?x=1 HTTP/1.1");
    assert_eq!(seen[0].header("host"), Some(backend.address.to_string()));
    assert_eq!(seen[0].header("x-forwarded-host").as_deref(), Some("gate"));
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[1].header("cookie"), None);
    assert_eq!(seen[1].body, b"{\"model\":\"m\"}");
    assert_eq!(seen[1].header("content-length").as_deref(), Some("13"));
    assert_eq!(backend.connections().0, 1, "the backend's connection is kept");

    let lines = house.lines().await;
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["outcome"], "done");
    assert_eq!((&lines[1]["bytes_in"], &lines[1]["bytes_out"]), (&13.into(), &11.into()));
    assert_eq!(answer.header("x-request-id"), lines[1]["id"].as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_1_goes_on_beside_it() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    assert_eq!(house.get("/api/tags").await.status, 200);
    assert_eq!(Client::connect(house.address).await.gets("/api/tags").await.status, 200);
    // Only the first bytes of a connection decide.
    let mut caller = house.connect().await;
    caller.send(crate::house::get("/api/tags")).await;
    assert_eq!(caller.answer().await.status, 200);
    caller.send(raw::PREFACE).await;
    assert_eq!(caller.answer().await.status, 505);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_the_backends_connection_stays_there_and_odd_bytes_do_no_harm() {
    let fields: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n\
        Keep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Authenticate: Basic\r\nTE: x\r\n\
        Trailer: x\r\nX_Odd.Name!: caf\xe9\tx\r\nX-Empty:\r\nX-Two: 1\r\nX-Two: 2\r\n\
        Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Late: 1\r\n\r\n";
    let backend = Backend::saying(fields).await;
    let house = house(&backend).await;
    let answer = Client::connect(house.address).await.gets("/api/tags").await;
    assert_eq!((answer.status, answer.text.as_str(), answer.broke), (200, "ok", None));
    let names: Vec<_> = answer.headers.keys().map(|name| name.as_str().to_owned()).collect();
    let passed = ["x_odd.name!", "x-empty", "x-two", "x-request-id", "server", "date"];
    assert_eq!(names, passed);
    assert_eq!(answer.headers["x_odd.name!"].as_bytes(), b"caf\xe9\tx");
    assert_eq!(answer.headers.get_all("x-two").iter().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_pass_one_by_one_on_many_streams_at_once() {
    let go_on: Vec<_> = (0..100).map(|_| Arc::new(Notify::new())).collect();
    let waits = go_on.clone();
    let backend = Backend::scripted(move |seen| {
        let number = std::str::from_utf8(&seen.body).unwrap().to_owned();
        let wait = Arc::clone(&waits[number.parse::<usize>().unwrap()]);
        vec![
            Step::Send((stream_head(NDJSON) + &chunk(&format!("first {number}\n"))).into()),
            Step::Wait(wait),
            Step::Send((chunk(&format!("last {number}\n")) + "0\r\n\r\n").into()),
        ]
    })
    .await;
    let house = house(&backend).await;
    let mut client = Client::connect(house.address).await;
    let mut bodies = Vec::new();
    for number in 0..100 {
        let text = number.to_string();
        let mut body =
            client.asks(post("/api/later").body(text.as_str()).unwrap()).await.into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), format!("first {number}\n"));
        bodies.push(body);
    }
    for (number, mut body) in bodies.into_iter().enumerate().rev() {
        go_on[number].notify_one();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), format!("last {number}\n"));
        assert!(next(&mut body).await.is_none());
    }
    assert!(house.lines().await.iter().all(|line| line["outcome"] == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cancelled_frees_its_backend_and_no_other() {
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let backend = Backend::scripted(move |seen| match seen.body.as_slice() {
        b"silent" => vec![Step::AwaitClose],
        b"streams" => {
            vec![Step::Send((stream_head(NDJSON) + &chunk("{}\n")).into()), Step::AwaitClose]
        }
        _ => vec![Step::Wait(Arc::clone(&waits)), Step::Send(ok_json("{}").into())],
    })
    .await;
    let house = house(&backend).await;
    let mut client = Client::connect(house.address).await;
    let (other, mut stream) = client.begin(post("/api/later")).await;
    stream.send_data("stays".into(), true).unwrap();
    backend.wait_for_request(1).await;
    // Before the first byte, and with the body on its way.
    for (closed, ends) in [(1, true), (1, false)] {
        let (answer, mut stream) = client.begin(post("/api/later")).await;
        stream.send_data("silent".into(), ends).unwrap();
        if ends {
            backend.wait_for_request(2).await;
        } else {
            until("a request in flight", || (house.gateway.in_flight() == 2).then_some(())).await;
        }
        stream.send_reset(Reason::CANCEL);
        drop(answer);
        backend.wait_for_closed(closed).await;
        until("one in flight", || (house.gateway.in_flight() == 1).then_some(())).await;
    }
    // In mid-stream.
    let mut body = client.asks(post("/api/later").body("streams").unwrap()).await.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "{}\n");
    drop(body);
    backend.wait_for_closed(2).await;
    let lines = house.log.wait_for(3).await;
    assert!(lines.iter().all(|line| line["outcome"] == "client_gone" && line["name"] == "anna"));
    // The first one has not noticed anything.
    go_on.notify_one();
    let answer = whole(timeout(PATIENCE, other).await.unwrap().unwrap()).await;
    assert_eq!(answer.text, "{}");
    assert_eq!(house.lines().await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stream_leaves_a_row_before_its_end_whole_or_cancelled_with_a_body_or_without() {
    let token = "{\"response\":\"a\",\"done\":false}\n";
    let last = "{\"response\":\"\",\"done\":true,\"prompt_eval_count\":5,\"eval_count\":2}\n";
    let backend = Backend::scripted(move |seen| {
        let begins = stream_head(NDJSON) + &chunk(token);
        match (seen.line(), seen.body.as_slice()) {
            (line, _) if line.contains("/api/copy") => {
                vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec())]
            }
            (_, body) if find(body, b"stays").is_some() => {
                vec![Step::Send(begins.into()), Step::AwaitClose]
            }
            _ => vec![Step::Send((begins + &chunk(token) + &chunk(last) + "0\r\n\r\n").into())],
        }
    })
    .await;
    let house = House::with(&backend, |config, folder| {
        config.h2c = true;
        config.data_dir = Some(folder.path().join("data"));
    })
    .await;
    let mut client = Client::connect(house.address).await;
    for count in 1..=10 {
        let body = "{\"model\":\"tiny\"}";
        let answer = whole(client.asks(post("/api/generate").body(body).unwrap()).await).await;
        assert_eq!(answer.text, token.repeat(2) + last);
        let row = ledger::rows_in_time(&house, 2 * count - 1).await.pop().unwrap();
        assert_eq!(answer.header("x-request-id"), Some(row.id.as_str()));
        assert_eq!((row.usage.prompt, row.usage.completion, row.usage.estimated), (5, 2, false));
        assert_eq!((row.status, row.outcome.as_str()), (200, "done"));
        let body = "{\"source\":\"tiny\",\"destination\":\"b\"}";
        let answer = whole(client.asks(post("/api/copy").body(body).unwrap()).await).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, ""));
        ledger::rows_in_time(&house, 2 * count).await;
    }
    let stays = post("/api/generate").body("{\"model\":\"tiny\",\"prompt\":\"stays\"}").unwrap();
    let mut body = client.asks(stays).await.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), token);
    drop(body);
    let cancelled = || ledger::rows(&house).into_iter().find(|it| it.outcome == "client_gone");
    let row = until("a row of the cancelled one", cancelled).await;
    assert_eq!((row.usage.completion, row.usage.estimated), (1, true));
    assert_eq!(ledger::rows(&house).len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_frees_the_backends_of_all_its_streams() {
    for resets in [false, true] {
        let backend = Backend::scripted(|_| {
            vec![Step::Send((stream_head(NDJSON) + &chunk("{}\n")).into()), Step::AwaitClose]
        })
        .await;
        let house = house(&backend).await;
        let mut peer = raw::Peer::connect(house.address).await;
        for stream in [1, 3, 5] {
            peer.send(raw::asks(stream, &raw::request("POST", "/api/chat"))).await;
            backend.wait_for_request(stream as usize / 2 + 1).await;
        }
        if resets {
            peer.socket.set_zero_linger().unwrap();
        }
        drop(peer);
        left_behind(house, &backend, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_says_so_in_its_dialect_and_is_reset() {
    let said = "{\"error\":\"the model server broke off before answering\",";
    for (kind, sent, error, path) in [
        (NDJSON, "{\"n\":1}\n", format!("{{\"n\":1}}\n{said}"), "/api/chat"),
        (NDJSON, "{\"n\":", format!("{{\"n\":\n{said}"), "/api/chat"),
        (SSE, "data: {", "data: {\n\nevent: error\ndata: {".to_owned(), "/v1/chat/completions"),
        ("text/plain", "half", "half".to_owned(), "/api/chat"),
    ] {
        for end in [Step::Close, Step::Reset] {
            let first = Arc::new(Notify::new());
            let waits = Arc::clone(&first);
            let steps = stream_head(kind) + &chunk(sent);
            let backend = Backend::scripted(move |_| {
                vec![Step::Send(steps.clone().into()), Step::Wait(Arc::clone(&waits)), end.clone()]
            })
            .await;
            let house = house(&backend).await;
            let mut client = Client::connect(house.address).await;
            let (parts, mut body) = client.asks(post(path).body("{}").unwrap()).await.into_parts();
            let came = next(&mut body).await.unwrap().unwrap();
            first.notify_one();
            let rest = whole(Response::from_parts(parts, body)).await;
            let text = String::from_utf8(came.to_vec()).unwrap() + &rest.text;
            assert!(text.starts_with(&error), "{kind}: {text:?}");
            assert_eq!(rest.broke, Some(Reason::INTERNAL_ERROR), "{kind}");
            assert_eq!(house.lines().await[0]["outcome"], "backend_failed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_shorter_than_it_said_is_reset_and_the_connection_lives() {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort";
    let backend = Backend::scripted(move |seen| match seen.connection {
        0 => vec![Step::Send(short.into()), Step::Close],
        _ => vec![Step::Send(ok_json("{}").into())],
    })
    .await;
    let house = house(&backend).await;
    let mut client = Client::connect(house.address).await;
    let answer = client.gets("/api/tags").await;
    assert_eq!(answer.broke, Some(Reason::INTERNAL_ERROR));
    assert_eq!(client.gets("/api/tags").await.text, "{}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_broken_streams_waits_for_a_caller_without_room_and_goes_whole() {
    let backend = Backend::scripted(|_| {
        vec![Step::Send((stream_head(NDJSON) + &chunk(&"x".repeat(100_000))).into()), Step::Close]
    })
    .await;
    let house = house(&backend).await;
    let mut peer = raw::Peer::connect(house.address).await;
    peer.send(raw::asks(1, &raw::request("POST", "/api/chat"))).await;
    let mut text = Vec::new();
    while text.len() < 65_535 {
        let frame = peer.next().await.unwrap();
        assert_ne!(frame.kind, raw::RST_STREAM);
        if frame.kind == raw::DATA {
            text.extend(frame.payload);
        }
    }
    // Window by window, the last words in small pieces.
    for room in [34_465u32, 10, 10, 500] {
        for stream in [0, 1] {
            peer.send(raw::frame(raw::WINDOW_UPDATE, 0, stream, &room.to_be_bytes())).await;
        }
    }
    let reason = loop {
        let frame = peer.next().await.unwrap();
        match frame.kind {
            raw::DATA => text.extend(frame.payload),
            raw::RST_STREAM => break raw::code(&frame.payload),
            _ => {}
        }
    };
    let text = String::from_utf8(text).unwrap();
    let last = text.trim_start_matches('x');
    assert!(last.starts_with("\n{\"error\":") && last.ends_with("}\n"), "{last:?}");
    assert_eq!(reason, u32::from(Reason::INTERNAL_ERROR));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_frees_its_backend_when_it_is_cancelled_or_stalls() {
    let long = "x".repeat(1 << 20);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    for idle in [Duration::from_secs(300), Duration::from_millis(200)] {
        let backend = Backend::saying(answer.clone()).await;
        let house = House::with(&backend, |config, _| {
            (config.h2c, config.timeouts.idle) = (true, idle);
        })
        .await;
        let mut peer = raw::Peer::connect(house.address).await;
        peer.send(raw::asks(1, &raw::request("POST", "/api/chat"))).await;
        let mut came = 0;
        while came < 65_535 {
            let frame = peer.next().await.unwrap();
            came += if frame.kind == raw::DATA { frame.payload.len() } else { 0 };
        }
        if idle > PATIENCE {
            let cancel = u32::from(Reason::CANCEL).to_be_bytes();
            peer.send(raw::frame(raw::RST_STREAM, 0, 1, &cancel)).await;
        } else {
            let end = raw::End::Reset(u32::from(Reason::CANCEL));
            assert_eq!(peer.end_of(1).await, end);
        }
        backend.wait_for_closed(1).await;
        peer.send(raw::frame(raw::WINDOW_UPDATE, 0, 0, &[0, 0, 0xff, 0xff])).await;
        assert!(peer.is_alive(3).await);
        let lines = house.log.wait_for(2).await;
        assert_eq!(lines[0]["outcome"], "client_gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_end_with_their_head() {
    let backend = Backend::scripted(|seen| {
        vec![Step::Send(match seen.line() {
            line if line.starts_with("HEAD") => {
                "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n".into()
            }
            line if line.contains("copy") => "HTTP/1.1 204 No Content\r\n\r\n".into(),
            line if line.contains("ps") => "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n".into(),
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
        })]
    })
    .await;
    let house = house(&backend).await;
    let mut client = Client::connect(house.address).await;
    for (method, path, status, length) in [
        ("HEAD", "/api/tags", 200, Some("7")),
        ("POST", "/api/copy", 204, None),
        ("GET", "/api/ps", 304, None),
        ("GET", "/api/version", 200, Some("0")),
        ("HEAD", "/", 200, Some("0")),
    ] {
        let answer = client.asks(builder(method, path).body("").unwrap()).await;
        assert!(answer.body().is_end_stream(), "{method} {path}");
        let answer = whole(answer).await;
        assert_eq!((answer.status, answer.text.as_str()), (status, ""), "{method} {path}");
        assert_eq!(answer.header("content-length"), length, "{method} {path}");
    }
    // On kept connections, so that nothing of an answer was left on one.
    assert_eq!(backend.connections(), (1, 0));
    assert!(house.lines().await.iter().all(|line| line["outcome"] == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_before_the_body_need_not_send_it() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        (config.h2c, config.max_body, config.max_body_memory) = (true, 1_000, 4_096);
    })
    .await;
    let mut client = Client::connect(house.address).await;
    let nobody = Request::builder().method("POST").uri("http://gate/api/chat");
    for (request, status, code) in [
        (nobody, 401, "no_credentials"),
        (post("/api/chat").header("content-length", "1001"), 413, "body_too_large"),
        (post("/api/nothing/of/the/kind/"), 400, "bad_path"),
    ] {
        let (answer, mut stream) = client.begin(request).await;
        // Much more than the window of a stream would let through unread.
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        let reason = timeout(PATIENCE, std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
        assert_eq!(reason.unwrap().unwrap(), Reason::NO_ERROR, "{code}");
        let answer = whole(answer).await;
        assert_eq!((answer.status, answer.code()), (status, code.to_owned()));
        assert_eq!(answer.header("connection"), None);
    }
    // The same when it turns out on the way that there is too much.
    let (answer, mut stream) = client.begin(post("/api/chat")).await;
    stream.send_data("x".repeat(1_001).into(), false).unwrap();
    let answer = whole(timeout(PATIENCE, answer).await.unwrap().unwrap()).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert_eq!(client.gets("/api/tags").await.status, 200, "the connection lives on");
    assert_eq!(backend.seen().len(), 1);
    assert_eq!(house.lines().await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_whether_to_go_on_is_told_after_the_login() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let expecting = |key: &'static str| {
        let mut fields = raw::request("POST", "/api/chat");
        fields[4].1 = key;
        fields.extend([("expect", "100-continue"), ("content-length", "2")]);
        raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &raw::block(&fields))
    };
    let mut peer = raw::Peer::connect(house.address).await;
    peer.send(expecting("Bearer a-key-for-the-tests")).await;
    let first = peer.answer_on(1).await;
    assert_eq!(first, (100, false));
    peer.send(raw::frame(raw::DATA, raw::END_STREAM, 1, b"{}")).await;
    assert_eq!(peer.answer_on(1).await, (200, false));
    assert_eq!(backend.wait_for_request(1).await.header("expect"), None);

    let mut stranger = raw::Peer::connect(house.address).await;
    stranger.send(expecting("Bearer not-a-key")).await;
    assert_eq!(stranger.answer_on(1).await, (401, false));
}

/// A backend that takes nothing of what is sent to it until it is told to, then everything, and
/// answers when `stop` has come.
async fn slow(stop: &'static [u8], taken: Arc<Mutex<Vec<u8>>>, begin: Arc<Notify>) -> Backend {
    Backend::raw(move |mut socket, _| {
        let (taken, begin) = (Arc::clone(&taken), Arc::clone(&begin));
        async move {
            begin.notified().await;
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read) = socket.read(&mut buffer).await
                && read > 0
            {
                let mut taken = taken.lock().unwrap();
                taken.extend_from_slice(&buffer[..read]);
                let last = taken.len().saturating_sub(read + stop.len());
                if find(&taken[last..], stop).is_some() {
                    break;
                }
            }
            let _ = socket.write_all(ok_json("{}").as_bytes()).await;
            let _ = socket.read(&mut buffer).await;
        }
    })
    .await
}

async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap()?;
        stream.send_data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_passes_as_fast_as_the_backend_takes_it_and_no_faster() {
    let (taken, begin) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::new(Notify::new()));
    let backend = slow(b"the-end", Arc::clone(&taken), Arc::clone(&begin)).await;
    let house = house(&backend).await;
    let mut client = Client::connect(house.address).await;
    let size = 64 << 20;
    let request = post(BLOB).header("content-length", (size + 7).to_string());
    let (answer, mut stream) = client.begin(request).await;
    let sent = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&sent);
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        for _ in 0..size >> 20 {
            send_all(&mut stream, piece.clone()).await.unwrap();
            *counted.lock().unwrap() += piece.len();
        }
        stream.send_data("the-end".into(), true).unwrap();
    });
    // What two sockets and one window hold, and not the whole of it.
    let stood = {
        let mut last = (0, tokio::time::Instant::now());
        until("the upload to stand still", || {
            let now = *sent.lock().unwrap();
            if now != last.0 {
                last = (now, tokio::time::Instant::now());
            }
            (last.1.elapsed() > Duration::from_secs(1)).then_some(now)
        })
        .await
    };
    assert!(stood < 32 << 20, "{stood} bytes went ahead of a backend that takes nothing");
    begin.notify_one();
    let answer = whole(timeout(PATIENCE, answer).await.unwrap().unwrap()).await;
    assert_eq!(answer.status, 200);
    timeout(PATIENCE, sending.join_next()).await.unwrap().unwrap().unwrap();
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    let head = find(&taken, b"\r\n\r\n").unwrap() + 4;
    assert_eq!(taken.len() - head, size + 7);
    let head = String::from_utf8_lossy(&taken[..head]).to_lowercase();
    assert!(head.contains(&format!("content-length: {}\r\n", size + 7)));
    assert_eq!(house.lines().await[0]["bytes_in"], size + 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_upload_in_small_frames_lives_also_before_a_slow_backend() {
    const PIECES: usize = (4 << 20) / 32;
    let (taken, begin) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::new(Notify::new()));
    let backend = slow(b"0\r\n\r\n", Arc::clone(&taken), Arc::clone(&begin)).await;
    let house = house(&backend).await;
    let mut peer = raw::Peer::connect(house.address).await;
    // So that its settings hold.
    assert!(peer.is_alive(1).await);
    let head = raw::block(&raw::request("POST", BLOB));
    peer.send(raw::frame(raw::HEADERS, raw::END_HEADERS, 3, &head)).await;
    until("the upload in flight", || (house.gateway.in_flight() == 1).then_some(())).await;
    // First a window full of frames of 32 bytes while nobody takes them, then as there is room.
    let piece = raw::frame(raw::DATA, 0, 3, &[b'x'; 32]);
    let (mut left, mut room) = (PIECES, 1 << 20);
    loop {
        let pieces = left.min(room / 32);
        assert_eq!(peer.flood(&piece.repeat(pieces)).await, None);
        (left, room) = (left - pieces, room - pieces * 32);
        begin.notify_one();
        if left == 0 {
            break;
        }
        let more = peer.next().await.unwrap();
        assert!(!matches!(more.kind, raw::RST_STREAM | raw::GOAWAY), "{left} {more:?}");
        if (more.kind, more.stream) == (raw::WINDOW_UPDATE, 3) {
            room += raw::code(&more.payload) as usize;
        }
    }
    peer.send(raw::frame(raw::DATA, raw::END_STREAM, 3, b"")).await;
    assert_eq!(peer.end_of(3).await, raw::End::Answered(200));
    assert_eq!(house.lines().await[1]["bytes_in"], PIECES * 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_goodbye_serves_what_runs_and_closes_the_idle() {
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let backend = Backend::scripted(move |_| {
        vec![
            Step::Send((stream_head(NDJSON) + &chunk("first\n")).into()),
            Step::Wait(Arc::clone(&waits)),
            Step::Send((chunk("last\n") + "0\r\n\r\n").into()),
        ]
    })
    .await;
    let mut house = house(&backend).await;
    let mut idle = Client::connect(house.address).await;
    assert_eq!(idle.gets("/_portcullis/health").await.status, 200);
    // Says nothing more, not even that it heard the goodbye.
    let mut mute = raw::Peer::connect(house.address).await;
    assert!(mute.is_alive(1).await);
    let mut busy = Client::connect(house.address).await;
    let (parts, mut body) = busy.asks(post("/api/chat").body("{}").unwrap()).await.into_parts();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "first\n");
    let server = house.take_server();
    let mut ending = JoinSet::new();
    ending.spawn(async move {
        server.shutdown(Duration::ZERO, PATIENCE, std::future::pending()).await;
    });
    idle.ends().await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, mute.socket.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(
        find(&rest, &raw::frame(raw::GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]))
            .is_some()
    );
    go_on.notify_one();
    let rest = whole(Response::from_parts(parts, body)).await;
    assert_eq!((rest.text.as_str(), rest.broke), ("last\n", None));
    busy.ends().await.unwrap();
    timeout(PATIENCE, ending.join_next()).await.unwrap().unwrap().unwrap();
    assert!(house.log.all().iter().all(|line| line["outcome"] == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_patience_streams_are_cut_with_a_line_each() {
    let backend = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let house = house(&backend).await;
    let mut client = Client::connect(house.address).await;
    let mut answers = Vec::new();
    for number in 1..=3 {
        let (answer, mut stream) = client.begin(post("/api/chat")).await;
        stream.send_data("{}".into(), true).unwrap();
        backend.wait_for_request(number).await;
        answers.push(answer);
    }
    let lines = house.lines().await;
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line["outcome"] == "drained"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_for_nothing_is_closed() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| {
        config.h2c = true;
        config.timeouts.header = Duration::from_millis(100);
        config.timeouts.keep_alive = Duration::from_millis(200);
    })
    .await;
    // Begins and stops: in the preface, behind it, behind the settings, in a request's head.
    let half_a_head = raw::frame(raw::HEADERS, 0, 1, &raw::block(&raw::request("GET", "/")));
    let settings = raw::frame(raw::SETTINGS, 0, 0, &[]);
    for said in [
        raw::PREFACE[..17].to_vec(),
        raw::PREFACE.to_vec(),
        [raw::PREFACE, &settings].concat(),
        [raw::PREFACE, &settings, &half_a_head].concat(),
    ] {
        let mut peer = raw::Peer::silent(house.address).await;
        peer.send(&said).await;
        assert!(peer.end_of_connection().await.is_the_connections());
    }
    // After its last request.
    let mut client = Client::connect(house.address).await;
    assert_eq!(client.gets("/api/tags").await.status, 200);
    client.ends().await.unwrap();
    // Not while one is under way.
    let waits = Backend::scripted(|_| vec![Step::AwaitClose]).await;
    let url = format!("http://{}", waits.address).parse().unwrap();
    let mut config = house.gateway.state().config().clone();
    config.backends[0].url = url;
    house.gateway.reload(config).unwrap();
    let mut client = Client::connect(house.address).await;
    let (answer, mut stream) = client.begin(post("/api/chat")).await;
    stream.send_data("{}".into(), true).unwrap();
    waits.wait_for_request(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(waits.connections(), (1, 0));
    drop((answer, stream));
    waits.wait_for_closed(1).await;
}
