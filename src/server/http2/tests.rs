//! A connection over a pipe, in time that only seems to pass.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;

use super::*;
use crate::config::{Config, LogFormat};
use crate::gateway::Door;
use crate::record::Log;
use crate::server::places::Places;

/// The other end of a connection that is served, and what serves it.
fn served() -> (DuplexStream, JoinSet<()>, watch::Sender<Stage>) {
    served_with(&Arc::new(Places::new()))
}

fn served_with(places: &Arc<Places>) -> (DuplexStream, JoinSet<()>, watch::Sender<Stage>) {
    let log = Log::start(io::sink(), LogFormat::Json).unwrap();
    let gateway = Arc::new(Gateway::new(Config::builtin(), log).unwrap());
    let (stage, stages) = watch::channel(Stage::Serving);
    let (ours, theirs) = duplex(64 * 1024);
    let peer = "192.0.2.1:1".parse().unwrap();
    let link = Link { peer, is_announced: false, door: Door::Plain };
    let mut tasks = JoinSet::new();
    let place = places.take(1).unwrap();
    tasks.spawn(serve(Rewound::new(Bytes::new(), ours), link, place, gateway, stages));
    (theirs, tasks, stage)
}

fn health() -> http::Request<()> {
    http::Request::get("http://gate/_portcullis/health").body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_is_given_up_and_the_connection_lives() {
    let (socket, _serving, _stage) = served();
    let mut settings = h2::client::Builder::new();
    settings.initial_window_size(0);
    let (mut client, connection) = settings.handshake::<_, Bytes>(socket).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { connection.await.unwrap() });
    let started = Instant::now();
    let answer = client.send_request(health(), true).unwrap().0.await.unwrap();
    let mut body = answer.into_body();
    let broke = body.data().await.unwrap().unwrap_err();
    assert_eq!(broke.reason(), Some(h2::Reason::CANCEL));
    let waited = started.elapsed();
    assert!((60..65).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(client.send_request(health(), true).unwrap().0.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_file_for_its_backend_is_told_so() {
    // One for the connection, one for its first stream.
    let places = Arc::new(Places::with_room(3));
    let (socket, _serving, _stage) = served_with(&places);
    let mut settings = h2::client::Builder::new();
    settings.initial_window_size(0);
    let (mut client, connection) = settings.handshake::<_, Bytes>(socket).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { connection.await.unwrap() });
    let tags = || http::Request::get("http://gate/api/tags").body(()).unwrap();
    // Each stays until somebody makes room for its body.
    let mut held = Vec::new();
    for (request, status) in [(health(), 200), (health(), 200), (tags(), 503), (health(), 200)] {
        let answer = client.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), status);
        held.push(answer);
    }
    drop(held);
    // Time passes when nothing else is to be done.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let freed = client.send_request(tags(), true).unwrap().0.await.unwrap();
    assert_eq!(freed.status(), 401, "asked for a login, as there is a file");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_vanished_is_found_while_its_stream_is_open() {
    let (mut socket, _serving, _stage) = served();
    let started = Instant::now();
    // No window, and a request for the health page, with fields from the static table and one not.
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    let mut fields = vec![0x82, 0x86, 0x01, 4];
    fields.extend(b"gate");
    fields.extend([0x04, 19]);
    fields.extend(b"/_portcullis/health");
    let head = [0, 0, u8::try_from(fields.len()).unwrap(), 1, 5, 0, 0, 0, 1];
    let said = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &head, &fields].concat();
    socket.write_all(&said).await.unwrap();
    // Reads, but answers nothing.
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard).await.unwrap();
    let waited = started.elapsed();
    // The last that moved is the end of the stream that nobody made room for, after 60 s.
    assert!((120..125).contains(&waited.as_secs()), "{waited:?}");
    assert!(heard.windows(9).any(|at| at == [0, 0, 8, 6, 0, 0, 0, 0, 0]), "a ping");
}

#[tokio::test(start_paused = true)]
async fn who_answers_pings_may_keep_its_stream_for_longer() {
    let (socket, _serving, _stage) = served();
    let mut settings = h2::client::Builder::new();
    settings.initial_window_size(0);
    let (mut client, connection) = settings.handshake::<_, Bytes>(socket).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { connection.await.unwrap() });
    for _ in 0..5 {
        let answer = client.send_request(health(), true).unwrap().0.await.unwrap();
        // Longer than a ping and its answer may take, shorter than a stall.
        tokio::time::sleep(Duration::from_secs(55)).await;
        drop(answer);
    }
    assert_eq!(client.send_request(health(), true).unwrap().0.await.unwrap().status(), 200);
}
