//! Peers that break the rules of HTTP/2, or use them against the gate: each ends alone.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, PING, PRIORITY, Peer,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, asks, block, code, frame, request,
};
use super::{BLOB, house};
use crate::house::{Backend, KEY, Step, ok_json, until};

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What a test may take beyond what it should.
const ROOM: u64 = 5;
const MIB: u64 = 1 << 20;
/// Streams of a flood, and at how many of them at the latest its connection ends.
const FLOOD: u32 = 60_000;
const ENOUGH: u32 = 2_000;

/// What is odd about a request that has the key and is ordinary otherwise.
#[derive(Debug)]
enum Change {
    With(&'static [(&'static str, &'static str)]),
    /// Another value in one of its fields.
    But(usize, &'static str),
    First(&'static str, &'static str),
    All(&'static [(&'static str, &'static str)]),
}

impl Change {
    fn fields(&self) -> Vec<(&'static str, &'static str)> {
        let mut fields = request("GET", "/api/tags");
        match *self {
            Self::With(more) => fields.extend(more),
            Self::But(at, value) => fields[at].1 = value,
            Self::First(name, value) => fields.insert(0, (name, value)),
            Self::All(all) => fields = [all, &fields[4..]].concat(),
        }
        fields
    }
}

const RESET: End = End::Reset(PROTOCOL_ERROR);
const REFUSED: End = End::Answered(400);

static TWO_READINGS: &[(Change, End)] = &[
    (Change::With(&[("x-a", "1\r\nx-b: 2")]), RESET),
    (Change::With(&[("x-a", "1\nx-b: 2")]), RESET),
    (Change::With(&[("x-a", "1\r")]), RESET),
    (Change::With(&[("x-a", "1\0")]), RESET),
    (Change::With(&[("X-A", "1")]), RESET),
    (Change::With(&[("x a", "1")]), RESET),
    (Change::With(&[("x-a:", "1")]), RESET),
    (Change::With(&[("", "1")]), RESET),
    (Change::With(&[("connection", "close")]), RESET),
    (Change::With(&[("transfer-encoding", "chunked")]), RESET),
    (Change::With(&[("upgrade", "websocket")]), RESET),
    (Change::With(&[("keep-alive", "1")]), RESET),
    (Change::With(&[("proxy-connection", "close")]), RESET),
    (Change::With(&[("te", "gzip")]), RESET),
    (Change::With(&[("te", "trailers, chunked")]), RESET),
    (Change::With(&[("host", "other")]), End::Answered(421)),
    (Change::With(&[("host", "gate:80")]), End::Answered(421)),
    (Change::With(&[("host", "gate"), ("host", "other")]), REFUSED),
    (Change::With(&[("host", "gate"), ("host", "gate")]), REFUSED),
    (Change::But(2, "anna@gate"), REFUSED),
    (Change::But(2, "gate/x"), RESET),
    (Change::But(2, "gate other"), RESET),
    (Change::But(3, "api/tags"), RESET),
    (Change::But(3, ""), RESET),
    (Change::But(3, "*"), REFUSED),
    (Change::But(3, "http://other/api/tags"), RESET),
    (Change::But(3, "//api/tags"), REFUSED),
    (Change::But(3, "/api/../api/tags"), REFUSED),
    (Change::But(3, "/api/%74ags"), REFUSED),
    (Change::But(3, "/api/tags HTTP/1.1\r\nx: 1"), RESET),
    (Change::But(3, "/api/tags\0"), RESET),
    (Change::But(1, "http://gate/api/pull?"), RESET),
    (Change::But(1, "ftp"), REFUSED),
    (Change::But(1, ""), REFUSED),
    (Change::But(0, "GET /api/pull HTTP/1.1"), RESET),
    (Change::But(0, "get"), End::Answered(405)),
    (Change::But(0, "TRACE"), End::Answered(405)),
    (Change::With(&[(":path", "/api/pull")]), RESET),
    (Change::With(&[(":status", "200")]), RESET),
    (Change::With(&[(":x", "1")]), RESET),
    (Change::First(":path", "/api/pull"), RESET),
    (Change::First(":method", "POST"), RESET),
    (Change::First(":scheme", "https"), RESET),
    (Change::First(":authority", "other"), RESET),
    (Change::All(&[(":method", "GET"), (":scheme", "http"), (":path", "/api/tags")]), REFUSED),
    (Change::All(&[(":method", "CONNECT"), (":authority", "gate:1")]), REFUSED),
    (
        Change::All(&[
            (":protocol", "websocket"),
            (":method", "CONNECT"),
            (":scheme", "http"),
            (":authority", "gate"),
            (":path", "/api/tags"),
        ]),
        RESET,
    ),
    (Change::With(&[("authorization", "Bearer other")]), REFUSED),
    (Change::With(&[("expect", "a-miracle")]), End::Answered(417)),
    (Change::With(&[("content-length", "5,5")]), RESET),
    (Change::With(&[("content-length", "+5")]), RESET),
    (Change::With(&[("content-length", "-1")]), RESET),
    (Change::With(&[("content-length", "5")]), RESET),
    (Change::With(&[("content-length", "0"), ("content-length", "0")]), REFUSED),
    (Change::With(&[("content-length", "0"), ("content-length", "7")]), RESET),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_in_two_ways_is_not_passed_on() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    for (change, end) in TWO_READINGS {
        let mut peer = Peer::connect(house.address).await;
        peer.send(asks(1, &change.fields())).await;
        let was = peer.end_of(1).await;
        if *end == RESET && was == End::GoAway(PROTOCOL_ERROR) {
            // A field that is none at all shows before it is known whose it is.
            continue;
        }
        assert_eq!(was, *end, "{change:?}");
        assert!(peer.is_alive(3).await, "the stream ends, the connection lives: {change:?}");
    }
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    // And what is odd but plain passes.
    for change in [
        Change::With(&[("te", "trailers")]),
        Change::With(&[("host", "gate")]),
        Change::But(1, "https"),
        Change::All(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/api/tags"),
            ("host", "g"),
        ]),
    ] {
        let mut peer = Peer::connect(house.address).await;
        peer.send(asks(1, &change.fields())).await;
        assert_eq!(peer.end_of(1).await, End::Answered(200), "{change:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_as_long_as_announced_never_counts_as_whole() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    for (path, sent) in
        [("/api/chat", "1234"), ("/api/chat", "123456"), (BLOB, "1234"), (BLOB, "123456")]
    {
        let closed = backend.connections();
        let fields = [request("POST", path), vec![("content-length", "5")]].concat();
        let mut peer = Peer::connect(house.address).await;
        peer.send(frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
        until("the request in flight", || (house.gateway.in_flight() == 1).then_some(())).await;
        let (first, last) = sent.split_at(2);
        peer.send(frame(DATA, 0, 1, first.as_bytes())).await;
        peer.send(frame(DATA, END_STREAM, 1, last.as_bytes())).await;
        assert_eq!(peer.end_of(1).await, End::Reset(PROTOCOL_ERROR), "{path} {sent}");
        until("no request in flight", || (house.gateway.in_flight() == 0).then_some(())).await;
        let opened = backend.connections().0;
        until("no backend at work", || (backend.connections().1 == opened).then_some(())).await;
        assert!(path == BLOB || opened == closed.0, "it is read whole before a backend is asked");
        assert!(peer.is_alive(3).await);
    }
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    let lines = house.lines().await;
    let chats: Vec<_> = lines.iter().filter(|line| line["path"] != "/_portcullis/health").collect();
    assert_eq!(chats.len(), 4, "{chats:?}");
    for line in chats {
        // A stream that h2 has reset may be seen to be gone before what is wrong with its body is.
        let is_told = line["outcome"] == "refused:bad_body";
        assert!(is_told || line["path"] == BLOB && line["outcome"] == "client_gone", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_too_many_is_refused_and_the_others_live() {
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let backend = Backend::scripted(move |_| {
        vec![Step::Wait(Arc::clone(&waits)), Step::Send(ok_json("{}").into())]
    })
    .await;
    let house = house(&backend).await;
    let mut peer = Peer::connect(house.address).await;
    for number in 0..101 {
        peer.send(asks(2 * number + 1, &request("GET", "/api/tags"))).await;
    }
    assert_eq!(peer.end_of(201).await, End::Reset(REFUSED_STREAM));
    backend.wait_for_request(100).await;
    for _ in 0..100 {
        go_on.notify_one();
    }
    let mut ended = 0;
    while ended < 100 {
        let frame = peer.next().await.unwrap();
        assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
        ended += u32::from(frame.kind == DATA && frame.flags & END_STREAM != 0);
    }
    assert_eq!(backend.seen().len(), 100);
    assert!(house.lines().await.iter().all(|line| line["outcome"] == "done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_ten_thousand_requests_a_connection_is_retired_and_none_is_lost() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let mut peer = Peer::connect(house.address).await;
    peer.send(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())).await;
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "gate"),
        (":path", "/_portcullis/health"),
    ];
    // The client goes on until it hears of the end, and a little longer.
    let (mut asked, mut answered, mut goodbye) = (0u32, 0u32, None);
    loop {
        while asked - answered < 50 && goodbye.is_none_or(|at| asked < at + 10) {
            peer.send(asks(2 * asked + 1, &fields)).await;
            asked += 1;
        }
        let Some(frame) = peer.next().await else { break };
        match frame.kind {
            GOAWAY => {
                assert_eq!(code(&frame.payload[4..]), 0);
                goodbye = goodbye.or(Some(asked));
            }
            RST_STREAM => panic!("lost: {frame:?} of {asked}"),
            DATA if frame.flags & END_STREAM != 0 => answered += 1,
            _ => {}
        }
    }
    assert!((9_000..12_000).contains(&goodbye.unwrap()), "{goodbye:?}");
    // What was sent after the last word may be sent again elsewhere; all before it was answered.
    assert!(answered >= goodbye.unwrap(), "{answered} of {asked}, {goodbye:?}");
    assert!(Peer::connect(house.address).await.is_alive(1).await);
}

/// The real executable, whose memory is its own.
struct Gate {
    program: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Gate {
    async fn before(backend: &Backend) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("keys"), format!("{KEY} # anna\n")).unwrap();
        let config = format!(
            "listen = ['127.0.0.1:0']\nupstream = 'http://{}'\napi_keys = 'keys'\nh2c = true\n",
            backend.address
        );
        std::fs::write(path("portcullis.toml"), config).unwrap();
        let program = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["serve", "--config"])
            .arg(path("portcullis.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("said")).unwrap())
            .spawn()
            .unwrap();
        let said = path("said");
        let address = until("an address", || {
            let text = std::fs::read_to_string(&said).unwrap();
            let (_, rest) = text.split_once("listening address=")?;
            rest.split_once(' ')?.0.parse().ok()
        })
        .await;
        Self { program, address, folder }
    }

    /// Bytes in memory; only Linux tells them of another process.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.program.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024)
    }

    /// What it has had of the processor.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.program.id()));
        let stat = stat.unwrap_or_default();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = fields.get(11..13).unwrap_or_default().iter();
        // A hundred ticks a second, everywhere.
        Duration::from_millis(ticks.map(|it| it.parse::<u64>().unwrap() * 10).sum())
    }

    /// Everybody else is served, and no more memory is held than `growth` beyond what was.
    async fn is_well(&self, before: u64, growth: u64, what: &str) {
        let mut other = Peer::connect(self.address).await;
        assert!(other.is_served(1).await, "{what}: others are not served");
        // The allocator gives back what nobody uses, but not at once.
        let most = before + ROOM * growth;
        until(&format!("{what}: to be back at {most} bytes of memory"), || {
            (self.memory() <= most).then_some(())
        })
        .await;
    }

    /// Bytes of what the operator reads beside the lines of requests.
    fn said(&self) -> u64 {
        std::fs::metadata(self.folder.path().join("said")).unwrap().len()
    }

    /// After a first round of ordinary requests, which fill what is kept.
    async fn warm(&self) -> u64 {
        for _ in 0..10 {
            assert!(Peer::connect(self.address).await.is_served(1).await);
        }
        self.memory()
    }
}

/// A whole request whose head may be too long for one frame.
fn in_frames(stream: u32, block: &[u8]) -> Vec<u8> {
    let pieces: Vec<_> = block.chunks(16_000).collect();
    let frames = pieces.iter().enumerate().map(|(at, piece)| {
        let kind = if at == 0 { HEADERS } else { CONTINUATION };
        let last = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
        frame(kind, last | if at == 0 { END_STREAM } else { 0 }, stream, piece)
    });
    frames.collect::<Vec<_>>().concat()
}

fn numbers(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 2 * number + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_end_their_connection_and_start_next_to_nothing() {
    let backend = Backend::ok().await;
    let gate = Gate::before(&backend).await;
    let before = gate.warm().await;
    let known = request("POST", "/api/chat");
    for fields in [&known[..4], &known[..]] {
        let mut pairs = Vec::new();
        for stream in numbers(FLOOD) {
            pairs.extend(asks(stream, fields));
            pairs.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
        }
        let mut peer = Peer::connect(gate.address).await;
        let end = match peer.flood(&pairs).await {
            Some(end) => end,
            None => peer.end_of_connection().await,
        };
        assert!(matches!(end, End::GoAway(ENHANCE_YOUR_CALM) | End::Closed), "{end:?}");
        let last = peer.last_seen;
        assert!(last.is_none_or(|last| last / 2 <= ROOM as u32 * ENOUGH), "only after {last:?}");
        gate.is_well(before, 8 * MIB, "rapid resets").await;
    }
    let started = backend.seen().iter().filter(|seen| seen.line().starts_with("POST")).count();
    assert!(started <= 200, "{started} requests were begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_make_the_gate_reset_them_end_their_connection() {
    let backend = Backend::ok().await;
    let gate = Gate::before(&backend).await;
    let before = gate.warm().await;
    let fields = request("POST", "/api/chat");
    let opens = |stream| frame(HEADERS, END_HEADERS, stream, &block(&fields));
    // No room at all, too much room, data behind the end, and a length that is not kept.
    type Way = fn(u32) -> Vec<u8>;
    let ways: [(&str, Way); 4] = [
        ("no room", |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4])),
        ("too much room", |stream| frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())),
        ("behind the end", |stream| {
            [frame(DATA, END_STREAM, stream, b""), frame(DATA, 0, stream, b"x")].concat()
        }),
        ("priority of itself", |stream| {
            frame(PRIORITY, 0, stream, &[stream.to_be_bytes().as_slice(), &[0]].concat())
        }),
    ];
    for (what, way) in ways {
        let mut all = Vec::new();
        for stream in numbers(FLOOD) {
            all.extend(opens(stream));
            all.extend(way(stream));
        }
        let mut peer = Peer::connect(gate.address).await;
        let end = match peer.flood(&all).await {
            Some(end) => end,
            None => peer.end_of_connection().await,
        };
        assert!(end.is_the_connections(), "{what}: {end:?}");
        let last = peer.last_seen;
        assert!(last.is_none_or(|last| last / 2 <= ROOM as u32 * ENOUGH), "{what}: {last:?}");
        gate.is_well(before, 8 * MIB, what).await;
    }
    let begun = backend.seen().iter().filter(|seen| seen.line().starts_with("POST")).count();
    assert_eq!(begun, 0, "none of them was whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_small_frames_end_or_cost_nothing() {
    let backend = Backend::ok().await;
    let gate = Gate::before(&backend).await;
    let before = gate.warm().await;
    let open = |path| frame(HEADERS, END_HEADERS, 1, &block(&request("POST", path)));
    let chat = open("/api/chat");
    let none: Vec<u8> = Vec::new();
    let half = frame(HEADERS, 0, 1, &block(&request("GET", "/api/tags")));
    for (what, first, flooding) in [
        ("empty data", &chat, frame(DATA, 0, 1, b"")),
        ("padded data", &chat, frame(DATA, 8, 1, &[255; 256])),
        ("data of one byte", &chat, frame(DATA, 0, 1, b"x")),
        ("pings", &none, frame(PING, 0, 0, &[0; 8])),
        ("acknowledged pings", &none, frame(PING, 1, 0, &[0; 8])),
        ("settings", &none, frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("acknowledged settings", &none, frame(SETTINGS, 1, 0, &[])),
        ("priorities", &none, frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        ("room", &none, frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("room of a stream", &chat, frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())),
        ("unknown frames", &none, frame(0x42, 0, 0, b"what?")),
        ("resets of one stream", &chat, frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())),
        ("continuations", &half, frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))),
        ("empty continuations", &half, frame(CONTINUATION, 0, 1, &[])),
        (
            "long continuations",
            &half,
            frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(1_000))])),
        ),
    ] {
        let mut peer = Peer::connect(gate.address).await;
        peer.send(first).await;
        let spent = gate.cpu();
        let end = peer.flood(&flooding.repeat(200_000)).await;
        // Some are no fault, and the connection goes on; a head has an end.
        let end = match what.contains("continuations") {
            true => Some(end.unwrap_or(peer.end_of_connection().await)),
            false => end,
        };
        assert!(end.is_none_or(End::is_the_connections), "{what}: {end:?}");
        let spent = gate.cpu() - spent;
        assert!(spent <= ROOM as u32 * Duration::from_secs(1), "{what}: {spent:?} of work");
        gate.is_well(before, 4 * MIB, what).await;
        // The start says less than two thousand.
        assert!(gate.said() < 10_000, "{what}: the operator is told of each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_are_told_so_and_the_connection_lives() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let mut peer = Peer::connect(house.address).await;
    let long = "y".repeat(70_000);
    let path = format!("/api/tags?{}", "z".repeat(9_000));
    let many: Vec<_> = (0..150).map(|number| format!("x-{number}")).collect();
    let many = many.iter().map(|name| (name.as_str(), "1")).collect::<Vec<_>>();
    let tags = request("GET", "/api/tags");
    for (stream, fields, status) in [
        (1, [&tags[..], &[("x", &long)]].concat(), 431),
        (5, request("GET", &path), 414),
        (9, [&tags[..], &many].concat(), 431),
    ] {
        peer.send(in_frames(stream, &block(&fields))).await;
        assert_eq!(peer.end_of(stream).await, End::Answered(status));
        assert!(peer.is_alive(stream + 2).await);
    }
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_unpack_to_much_are_refused_before_they_are_held() {
    let backend = Backend::ok().await;
    let gate = Gate::before(&backend).await;
    let before = gate.warm().await;
    // One field of 4,000 bytes goes into the table, and is meant 4,000 times with a byte each.
    let mut bomb = block(&request("GET", "/api/tags"));
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'y'; 4_000]);
    bomb.extend([0x80 | 62; 4_000]);
    let table = frame(SETTINGS, 0, 0, &[]);
    for round in 0..3 {
        let mut peer = Peer::silent(gate.address).await;
        peer.send([super::raw::PREFACE, &table].concat()).await;
        // Not answered: the streams stay as long as they may.
        let all: Vec<_> = numbers(100)
            .flat_map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb))
            .collect();
        let _ = peer.flood(&all).await;
        gate.is_well(before, 8 * MIB, &format!("round {round}")).await;
    }
    assert_eq!(backend.seen().iter().filter(|seen| seen.head.contains("yyyy")).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_give_no_room_hold_little_and_let_go_when_they_leave() {
    let answer = "x".repeat(1 << 20);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
    let backend = Backend::scripted(move |seen| match seen.line().starts_with("POST") {
        true => vec![Step::Send((head.clone() + &answer).into())],
        false => vec![Step::Send(ok_json("{}").into())],
    })
    .await;
    let gate = Gate::before(&backend).await;
    let before = gate.warm().await;
    let mut besiegers = Vec::new();
    for _ in 0..3 {
        let mut peer = Peer::connect(gate.address).await;
        peer.send(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
        // Much in the head of each request, too.
        let long = "y".repeat(8_000);
        let fields = [request("POST", "/api/chat"), vec![("x", &long), ("z", &long)]].concat();
        for stream in numbers(100) {
            peer.send(asks(stream, &fields)).await;
        }
        besiegers.push(peer);
    }
    until("every siege at the backend", || (backend.seen().len() >= 310).then_some(())).await;
    // A piece of 128 KiB each, and what the head takes.
    gate.is_well(before, 300 * 160 * 1024, "a siege").await;
    let opened = backend.connections().0;
    drop(besiegers);
    until("the backends to be free", || (opened - backend.connections().1 <= 2).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_ended_with_a_line_and_nobody_else_notices() {
    let backend = Backend::ok().await;
    let house = house(&backend).await;
    let mut other = Peer::connect(house.address).await;
    assert!(other.is_alive(1).await);
    let settings = frame(SETTINGS, 0, 0, &[]);
    for (number, garbage) in [
        frame(DATA, 0, 0, b"x"),
        frame(DATA, 0, 7, b"x"),
        frame(HEADERS, END_HEADERS, 2, &block(&request("GET", "/"))),
        frame(HEADERS, END_HEADERS, 1, &[0xff; 40]),
        frame(SETTINGS, 0, 0, &[0; 5]),
        frame(SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]),
        frame(PING, 0, 1, &[0; 8]),
        frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        frame(CONTINUATION, END_HEADERS, 1, b""),
        frame(5, END_HEADERS, 1, &[0; 4]),
        [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 100]].concat(),
        b"GET / HTTP/1.1\r\nHost: gate\r\n\r\n".repeat(10),
    ]
    .into_iter()
    .enumerate()
    {
        let mut peer = Peer::silent(house.address).await;
        peer.send([super::raw::PREFACE, &settings, &garbage].concat()).await;
        assert!(peer.end_of_connection().await.is_the_connections(), "{garbage:?}");
        let lines = house.log.wait_for(number + 2).await;
        assert_eq!(lines[number + 1]["outcome"], "refused:bad_request", "{garbage:?}");
    }
    assert!(other.is_alive(3).await);
    assert!(backend.seen().is_empty());
}
