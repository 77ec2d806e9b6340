//! Rows about streamed chats: how late a token is, what it costs, and what a stream holds.

use std::time::Duration;

use super::{Bench, Limit, NGINX, Outcome, head, micros, seconds};
use crate::cost::{self, Cpu};
use crate::load::{Ask, Group, Histogram, Load, Over, Pace, Want};
use crate::peer::{Hash, Id, Login, Peer, credentials};
use crate::script::{self, Chat, Head};

const DIRECT: &str = "direct";

/// Thirty tokens, 50 ms apart.
const CHAT: Chat = Chat { tokens: 30, pace: 50_000 };

pub(super) fn first_token_1(bench: &Bench) -> anyhow::Result<Outcome> {
    first_token(bench, "first-token-1", 1)
}

pub(super) fn first_token_200(bench: &Bench) -> anyhow::Result<Outcome> {
    first_token(bench, "first-token-200", 200)
}

fn first_token(bench: &Bench, row: &'static str, streams: usize) -> anyhow::Result<Outcome> {
    let mut ids = vec![Id::Portcullis, Id::NginxTuned, Id::Direct];
    if !bench.short {
        ids.extend([Id::NginxBearer, Id::Haproxy, Id::CaddyNewest]);
    }
    let above = |most| Limit::AboveAtMost(most, DIRECT.into());
    let outcome = Outcome {
        row,
        title: format!("How late tokens are, {streams} at a time"),
        how: "Streamed chats of 30 tokens, 50 ms apart: from the sending of a token to its \
              arrival, by the time written in it; both ways: with the way of the request to the \
              backend. `direct` is what the measuring itself adds, and is taken off for the goal."
            .into(),
        ..Outcome::default()
    };
    outcome
        .metrics(&[
            ("first token p50 ms", 3),
            ("first token p99 ms", 3),
            ("both ways p50 ms", 3),
            ("both ways p99 ms", 3),
            ("each token p50 ms", 3),
            ("each token p99 ms", 3),
        ])
        .goal("first token p50 ≤ 0.2 ms added", 0, above(0.2))
        .goal("first token p99 ≤ 1 ms added", 1, above(1.0))
        .rounds(bench.rounds(3, 2), &bench.start(&ids)?, |peer, _| {
            let mut load = Load::start(bench.clock, vec![streaming(peer, streams, CHAT)])?;
            load.run_for(Duration::from_millis(1700))?;
            load.take();
            load.run_for(bench.millis(4000, 2000))?;
            let tally = load.take().pop().unwrap_or_default();
            load.finish()?;
            anyhow::ensure!(tally.first.count() > 0, "no stream began");
            let of = |one: &Histogram| [one.millis(0.5), one.millis(0.99)];
            Ok([&tally.first, &tally.both_ways, &tally.token].map(of).concat())
        })
}

pub(super) const CHUNK_METRICS: [(&str, usize); 6] = [
    ("CPU µs per chunk", 2),
    ("KiB per stream", 1),
    ("each token p50 ms", 2),
    ("each token p99 ms", 2),
    ("tokens/s", 0),
    ("load's core busy %", 0),
];

pub(super) fn chunk(bench: &Bench) -> anyhow::Result<Outcome> {
    const STREAMS: usize = 4000;
    let mut ids = vec![Id::Portcullis, Id::NginxTuned];
    if !bench.short {
        ids.extend([Id::Haproxy, Id::CaddyNewest]);
    }
    let subjects = bench.start(&ids)?;
    // before any stream, so that what is kept after a round counts in the next ones too
    let idle: Vec<u64> = subjects.iter().map(|peer| cost::memory(&peer.pids())).collect();
    let idle_of = |peer: &Peer| {
        let at = subjects.iter().position(|one| std::ptr::eq(one, peer));
        at.and_then(|at| idle.get(at)).copied().unwrap_or_default()
    };
    let outcome = Outcome {
        row: "chunk",
        title: "4,000 streams".into(),
        how: "4,000 streamed chats at once, each with 5 tokens a second: the processor's time for \
              a token, and how much the proxy's memory has grown since it was started, divided by \
              4,000."
            .into(),
        against: Some(NGINX.into()),
        ..Outcome::default()
    };
    outcome
        .metrics(&CHUNK_METRICS)
        .goal("≤ 1.0 × nginx tuned per chunk", 0, Limit::TimesAtMost(1.0, NGINX.into()))
        .goal("≤ 20 KiB per stream", 1, Limit::AtMost(20.0))
        .goal("≤ 13 KiB per stream", 1, Limit::AtMost(13.0))
        .rounds(bench.rounds(3, 2), &subjects, |peer, _| {
            let mut group = streaming(peer, STREAMS, LONG);
            group.spread = bench.millis(2000, 1500);
            let times = [bench.millis(3000, 2000), bench.millis(4000, 3000)];
            hold(bench, peer, group, idle_of(peer), times)
        })
}

/// Longer than a round, so that none ends in it.
pub(super) const LONG: Chat = Chat { tokens: 1000, pace: 200_000 };

/// What many endless chats cost while they are open, in the order of [`CHUNK_METRICS`]. `idle`
/// is the proxy's memory before the first stream; the times are until all are open, and measured.
pub(super) fn hold(
    bench: &Bench,
    peer: &Peer,
    group: Group,
    idle: u64,
    [opening, window]: [Duration; 2],
) -> anyhow::Result<Vec<f64>> {
    let streams = (group.callers * group.over.streams()) as f64;
    let Want::Stream(Chat { pace, .. }) = group.want else { anyhow::bail!("no streamed chat") };
    let mut load = Load::start(bench.clock, vec![group])?;
    load.run_for(opening)?;
    load.take();
    let (began, cpu, own) = (bench.clock.now(), Cpu::of(&peer.pids()), Cpu::of_us());
    load.run_for(window)?;
    let time = seconds(Duration::from_nanos(bench.clock.now() - began));
    let (cpu, own) = (Cpu::of(&peer.pids()).since(&cpu), Cpu::of_us().since(&own));
    let memory = cost::memory(&peer.pids()).saturating_sub(idle);
    let tally = load.take().pop().unwrap_or_default();
    load.finish()?;
    let due = time * streams * 1e6 / pace as f64;
    let came = tally.tokens as f64;
    let busy = |cpu| 100.0 * seconds(cpu) / time;
    anyhow::ensure!(
        came > 0.95 * due,
        "only {came} of {due:.0} tokens came in time; the proxy was busy for {:.0} % of it, the \
         load for {:.0} %",
        busy(cpu),
        busy(own),
    );
    Ok(vec![
        micros(cpu) / came,
        memory as f64 / streams,
        tally.token.millis(0.5),
        tally.token.millis(0.99),
        came / time,
        busy(own),
    ])
}

/// Without the brake, or the tenth wrong password would be the last that is hashed.
const NO_BRAKE: [&str; 1] = ["failed_attempts_per_minute = 0"];

pub(super) fn wrong_passwords(bench: &Bench) -> anyhow::Result<Outcome> {
    let mut settings = bench.settings();
    settings.hash = Hash::Bcrypt10;
    settings.login = Login::Key;
    settings.extra = &NO_BRAKE;
    let subjects = bench.start_with(&[Id::Portcullis, Id::NginxBasic], &settings)?;
    let outcome = Outcome {
        row: "wrong-passwords",
        title: "While somebody guesses passwords".into(),
        how: "20 streamed chats with 50 ms tokens and, with a valid login, small requests (50 a \
              second with a key; 2 a second with a password at nginx, where each one is hashed); \
              then the same while 20 wrong passwords a second arrive whose hash is bcrypt with \
              cost 10. Added: the second p99 minus the first. The brake on failed attempts is off, \
              so that each one is hashed."
            .into(),
        ..Outcome::default()
    };
    outcome
        .metrics(&[
            ("added to tokens p99 ms", 2),
            ("added to requests p99 ms", 2),
            ("tokens p99 ms", 2),
            ("requests p99 ms", 2),
            ("refused/s", 1),
        ])
        .goal("≤ 2 ms added to tokens", 0, Limit::AtMost(2.0))
        .goal("≤ 2 ms added to requests", 1, Limit::AtMost(2.0))
        .rounds(bench.rounds(2, 1), &subjects, |peer, round| {
            let quiet = guesses(bench, peer, None)?;
            let loud = guesses(bench, peer, Some(round))?;
            Ok(vec![
                loud.tokens - quiet.tokens,
                loud.requests - quiet.requests,
                loud.tokens,
                loud.requests,
                loud.refused,
            ])
        })
}

/// 99th percentiles in ms, and refusals a second.
struct Guesses {
    tokens: f64,
    requests: f64,
    refused: f64,
}

fn guesses(bench: &Bench, peer: &Peer, round: Option<usize>) -> anyhow::Result<Guesses> {
    let head = head(peer);
    let (address, spread) = (peer.addr, Duration::ZERO);
    // these begin before the guessing and go on through it
    let mut groups = vec![streaming(peer, 20, Chat { tokens: 1000, pace: 50_000 })];
    let rate = if peer.kind.id == Id::NginxBasic { 2.0 } else { 50.0 };
    groups.push(Group {
        name: "a request with a valid login".into(),
        address,
        callers: 20,
        over: Over::Plain,
        ask: Ask::Same(head.alone()),
        want: Want::Exact(200, script::VERSION.as_bytes().to_vec()),
        pace: Pace::PerSecond(rate),
        fresh: false,
        spread,
    });
    let mut load = Load::start(bench.clock, groups)?;
    load.run_for(Duration::from_secs(2))?;
    if let Some(round) = round {
        let host = peer.addr;
        let wrong = move |number: u64| {
            // never the same twice: an answer that is remembered would cost nothing
            let authorization = credentials::wrong_basic(1_000_000 * round as u64 + number);
            Head { line: "GET /api/version", host, authorization: &authorization, close: false }
                .alone()
        };
        load.add(Group {
            name: "a wrong password".into(),
            address,
            callers: 200,
            over: Over::Plain,
            ask: Ask::Numbered(Box::new(wrong)),
            want: Want::Status(401),
            pace: Pace::PerSecond(20.0),
            fresh: false,
            spread,
        });
        load.run_for(Duration::from_millis(500))?;
    }
    load.take();
    let began = bench.clock.now();
    load.run_for(bench.millis(6000, 3000))?;
    let time = seconds(Duration::from_nanos(bench.clock.now() - began));
    let tallies = load.take();
    load.finish()?;
    let of = |at: usize| tallies.get(at).cloned().unwrap_or_default();
    Ok(Guesses {
        tokens: of(0).token.millis(0.99),
        requests: of(1).latency.millis(0.99),
        refused: of(2).answers as f64 / time,
    })
}

/// Callers who begin a streamed chat again as soon as one ends.
pub(super) fn streaming(peer: &Peer, callers: usize, chat: Chat) -> Group {
    let whole = Duration::from_micros(chat.tokens * chat.pace);
    Group {
        name: "a streamed chat".into(),
        address: peer.addr,
        callers,
        over: Over::Plain,
        ask: Ask::Same(Head { line: "POST /api/chat", ..head(peer) }.json(&chat.body())),
        want: Want::Stream(chat),
        pace: Pace::Closed,
        fresh: false,
        spread: whole.min(Duration::from_millis(1500)),
    }
}
