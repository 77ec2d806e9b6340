//! The row about the queue: what a request takes while it waits, and what its turn costs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::Context;

use super::requests::Trial;
use super::{Bench, Limit, Line, Outcome, PORTCULLIS, head};
use crate::cost;
use crate::load::{Ask, Want};
use crate::peer::{Id, Kind, Peer, Settings, credentials};
use crate::script::{self, Head};

/// Nearly as many as may wait; this program has two open files for each of them.
const CROWD: usize = 8_000;
const FEW: usize = 64;
/// Identities: of one, a thousand requests may wait.
const KEYS: usize = 16;

const AT_ONCE: &str = "all at once";
const IN_TURN: &str = "one at a time";

pub(super) fn waiting(bench: &Bench) -> anyhow::Result<Outcome> {
    let few = format!("{FEW} callers, {IN_TURN}");
    let mut outcome = Outcome {
        row: "waiting",
        title: format!("{CROWD} requests in the queue"),
        how: format!(
            "A small chat that is answered at once, of {KEYS} callers with as many connections each, \
             which ask again as soon as they are answered: where the backend may have all of them, and \
             where it may have one (`parallel = 1`), so that all others wait. Memory: what the gate \
             grows by for each connection after one small request on it, and while there is a chat on \
             each that a backend works on, or that waits; in a process of its own each time."
        ),
        ..Outcome::default()
    }
    .metrics(&[
        ("CPU µs per request", 2),
        ("requests/s", 0),
        ("KiB per idle connection", 2),
        ("KiB with a request", 2),
    ]);
    let [at_once, crowd] = [AT_ONCE, IN_TURN].map(|how| format!("{CROWD} callers, {how}"));
    outcome = outcome
        .goal("≤ 2 KiB more than at a backend", 3, Limit::AboveAtMost(2.0, at_once))
        .goal("≤ 2 × as among few", 0, Limit::TimesAtMost(2.0, few));
    outcome.goals.iter_mut().for_each(|goal| goal.line.clone_from(&crowd));
    if !bench.has(Kind::of(Id::Portcullis)) {
        return Ok(outcome);
    }
    let subjects = [(FEW, AT_ONCE), (FEW, IN_TURN), (CROWD, AT_ONCE), (CROWD, IN_TURN)];
    let line =
        |(callers, how)| Line { name: format!("{callers} callers, {how}"), rounds: Vec::new() };
    outcome.lines = subjects.map(line).into();
    for round in 0..bench.rounds(3, 1) {
        for ((callers, how), line) in subjects.into_iter().zip(&mut outcome.lines) {
            let figures = once(bench, callers, how == IN_TURN);
            line.rounds
                .push(figures.with_context(|| format!("{}, round {}", line.name, round + 1))?);
        }
    }
    Ok(outcome)
}

fn once(bench: &Bench, callers: usize, in_turn: bool) -> anyhow::Result<Vec<f64>> {
    let mut settings = bench.settings();
    settings.extra = &["max_connections = 20000"];
    settings.keys = KEYS;
    settings.parallel = if in_turn { 1 } else { callers };
    let peer = gate(&settings)?;
    let mut trial = Trial::version(&peer);
    let host = peer.addr;
    trial.ask = Some(Ask::Numbered(Box::new(move |number| {
        let key = credentials::bearer(1 + number as usize % KEYS);
        let head = Head { line: "POST /api/chat", host, authorization: &key, close: false };
        head.json(&script::chat())
    })));
    trial.want = Want::Exact(200, script::chat_answer().into_bytes());
    trial.callers = callers;
    let asked = trial.run(bench)?;
    let [cpu, rate, ..] = asked.as_slice() else { anyhow::bail!("too few figures") };
    let mut figures = vec![*cpu, *rate];
    // its connections to the backend would be too many beside those that follow
    drop(peer);
    if callers == CROWD {
        figures.push(held(&settings, |peer, _| idle(peer))?);
        figures.push(held(&settings, asking)?);
    }
    Ok(figures)
}

fn gate(settings: &Settings<'_>) -> anyhow::Result<Peer> {
    Peer::start(Kind::of(Id::Portcullis), settings)
}

/// What the gate's memory grows by for each of these connections, in KiB.
fn held(
    settings: &Settings<'_>,
    connect: impl Fn(&Peer, usize) -> anyhow::Result<TcpStream>,
) -> anyhow::Result<f64> {
    let peer = gate(settings)?;
    let before = cost::memory(&peer.pids());
    let connections: anyhow::Result<Vec<_>> = (0..CROWD).map(|at| connect(&peer, at)).collect();
    let connections = connections?;
    cost::settle(&peer.pids());
    let memory = cost::memory(&peer.pids()).saturating_sub(before);
    drop(connections);
    Ok(memory as f64 / CROWD as f64)
}

/// A chat whose answer is long in coming.
fn asking(peer: &Peer, number: usize) -> anyhow::Result<TcpStream> {
    let key = credentials::bearer(1 + number % KEYS);
    let chat = script::Chat { tokens: 2, pace: 600_000_000 };
    let head = Head { line: "POST /api/chat", authorization: &key, ..head(peer) };
    let mut stream = TcpStream::connect(peer.addr)?;
    stream.write_all(&head.json(&chat.body()))?;
    Ok(stream)
}

fn idle(peer: &Peer) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(peer.addr)?;
    stream.write_all(&head(peer).alone())?;
    let mut answer = Vec::new();
    while !answer.ends_with(script::VERSION.as_bytes()) {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer)?;
        anyhow::ensure!(count > 0, "{PORTCULLIS} hung up");
        answer.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    Ok(stream)
}
