//! Rows about the ledger: what its rows of usage add to an answer, to the processor's time and to
//! the memory.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::streams::{CHUNK_METRICS, LONG, hold, streaming};
use super::{Bench, Limit, Line, Outcome, head, seconds};
use crate::cost;
use crate::load::{Ask, Group, Histogram, Load, Over, Pace, Want};
use crate::peer::{Id, Peer};
use crate::script::{self, Chat, Head};

const NO_LEDGER: &str = "no data_dir";
const JOURNAL: &str = "journal";
const DURABLE: &str = "durable";

/// The gate without a store, with one, and with one that waits for the disk.
const LEDGERS: [(&str, &[&str]); 3] = [
    (NO_LEDGER, &[]),
    (JOURNAL, &["data_dir = \"data\""]),
    (DURABLE, &["data_dir = \"data\"", "ledger = \"durable\""]),
];

/// The threads that write the journal, and those that bring it into the store.
const WRITING: [&str; 1] = ["ledger"];
const FOLDING: [&str; 2] = ["fold", "store"];

/// Longer than rows are gathered before they go into the store.
const QUIET: Duration = Duration::from_millis(1500);

fn gates(bench: &Bench, names: &[&str]) -> anyhow::Result<Vec<Peer>> {
    let mut gates = Vec::new();
    for (name, extra) in LEDGERS.iter().filter(|(name, _)| names.contains(name)) {
        let mut settings = bench.settings();
        settings.extra = extra;
        let mut started = bench.start_with(&[Id::Portcullis], &settings)?;
        started.iter_mut().for_each(|peer| peer.name = (*name).to_owned());
        gates.append(&mut started);
    }
    Ok(gates)
}

trait Goals {
    /// A goal of the line of that name, above the gate that keeps no rows.
    fn added(self, line: &str, what: &'static str, metric: usize, most: f64) -> Self;
}

impl Goals for Outcome {
    fn added(self, line: &str, what: &'static str, metric: usize, most: f64) -> Self {
        let mut outcome = self.goal(what, metric, Limit::AboveAtMost(most, NO_LEDGER.into()));
        if let Some(goal) = outcome.goals.last_mut() {
            goal.line = line.to_owned();
        }
        outcome
    }
}

pub(super) fn answer_end_1(bench: &Bench) -> anyhow::Result<Outcome> {
    let chat = Chat { tokens: 3, pace: 3_000 };
    let how = "Streamed chats of 3 tokens, 3 ms apart, one after the other: most rows go to the \
               journal by themselves.";
    let outcome = Outcome { row: "answer-end-1", how: how.into(), ..Outcome::default() };
    answer_end(bench, outcome, 1, chat)
}

pub(super) fn answer_end_200(bench: &Bench) -> anyhow::Result<Outcome> {
    let chat = Chat { tokens: 10, pace: 20_000 };
    let how = "Streamed chats of 10 tokens, 20 ms apart, 200 at once: about 900 answers end in a \
               second.";
    let outcome = Outcome { row: "answer-end-200", how: how.into(), ..Outcome::default() };
    answer_end(bench, outcome, 200, chat)
}

fn answer_end(
    bench: &Bench,
    mut outcome: Outcome,
    streams: usize,
    chat: Chat,
) -> anyhow::Result<Outcome> {
    outcome.title = format!("How late an answer's last token is, {streams} at a time");
    outcome.how.push_str(
        " From the sending of a token to its arrival, by the time written in it. The last one \
         waits for its row, but no longer than 20 ms: a slower disk does not show in it. `the disk` is \
         what the same folder needs to write 256 bytes to the end of a file and wait for the disk, \
         measured beside it.",
    );
    let mut outcome = outcome
        .metrics(&[
            ("last token p50 ms", 3),
            ("last token p99 ms", 3),
            ("first token p50 ms", 3),
            ("first token p99 ms", 3),
            ("answers/s", 0),
        ])
        .added(JOURNAL, "journal: last token p50 ≤ 0.2 ms added", 0, 0.2)
        .added(JOURNAL, "journal: last token p99 ≤ 2 ms added", 1, 2.0)
        .added(JOURNAL, "journal: first token p50: nothing (≤ 0.02 ms) added", 2, 0.02)
        .added(DURABLE, "durable: last token p99 ≤ 20 ms added", 1, 20.0)
        .added(DURABLE, "durable: first token p50: nothing (≤ 0.02 ms) added", 2, 0.02);
    let mut alone = Line { name: "the disk".into(), rounds: Vec::new() };
    let gates = gates(bench, &[NO_LEDGER, JOURNAL, DURABLE])?;
    outcome = outcome.rounds(bench.rounds(5, 2), &gates, |peer, _| {
        if peer.name == DURABLE {
            let [p50, p99] = percentiles(&disk(&bench.dir)?);
            alone.rounds.push(vec![p50, p99]);
        }
        ends(bench, peer, streams, chat)
    })?;
    outcome.lines.push(alone);
    Ok(outcome)
}

fn ends(bench: &Bench, peer: &Peer, streams: usize, chat: Chat) -> anyhow::Result<Vec<f64>> {
    let mut load = Load::start(bench.clock, vec![streaming(peer, streams, chat)])?;
    load.run_for(Duration::from_millis(500))?;
    load.take();
    let began = bench.clock.now();
    load.run_for(bench.millis(2500, 1500))?;
    let time = seconds(Duration::from_nanos(bench.clock.now() - began));
    let tally = load.take().pop().unwrap_or_default();
    load.finish()?;
    anyhow::ensure!(tally.last.count() > 0, "no stream ended");
    let mut figures = [&tally.last, &tally.first].map(percentiles).concat();
    figures.push(tally.answers as f64 / time);
    Ok(figures)
}

/// What the disk itself needs.
fn disk(dir: &Path) -> anyhow::Result<Histogram> {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("disk"))?;
    let mut times = Histogram::default();
    for _ in 0..200 {
        let began = Instant::now();
        file.write_all(&[b'x'; 256])?;
        file.sync_data()?;
        times.add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(times)
}

fn percentiles(of: &Histogram) -> [f64; 2] {
    [of.millis(0.5), of.millis(0.99)]
}

pub(super) fn row_cpu(bench: &Bench) -> anyhow::Result<Outcome> {
    let how = "`POST /api/chat`, not streamed, on 64 kept connections, each asking again as soon \
               as it is answered: all that a core can do, and rows in the store behind it.";
    let outcome = row_costs(bench, "row-cpu", "What a row costs at full speed", how, Pace::Closed)?;
    Ok(outcome.added(JOURNAL, "≤ 6 µs added", 0, 6.0))
}

pub(super) fn row_cpu_1000(bench: &Bench) -> anyhow::Result<Outcome> {
    let how = "The same chat, a thousand in a second: nearly every row wakes the thread that \
               writes the journal. Between two of them the core sleeps, and most of the time of a \
               request and of a row is what it takes to wake up: there is no goal.";
    let title = "What a row costs at a thousand in a second";
    row_costs(bench, "row-cpu-1000", title, how, Pace::PerSecond(1000.0))
}

fn row_costs(
    bench: &Bench,
    row: &'static str,
    title: &str,
    how: &str,
    pace: Pace,
) -> anyhow::Result<Outcome> {
    let outcome = Outcome {
        row,
        title: title.into(),
        how: format!(
            "{how} The processor's time counts until every row is in the store, long after the \
             answer; of it: that of the thread which writes the journal, and of those which bring \
             it into the store."
        ),
        ..Outcome::default()
    };
    outcome
        .metrics(&[
            ("CPU µs per request", 2),
            ("of it journal", 2),
            ("of it store", 2),
            ("requests/s", 0),
            ("p50 ms", 3),
            ("p99 ms", 3),
        ])
        .rounds(bench.rounds(3, 1), &gates(bench, &[NO_LEDGER, JOURNAL])?, |peer, _| {
            row_cost(bench, peer, pace)
        })
}

fn row_cost(bench: &Bench, peer: &Peer, pace: Pace) -> anyhow::Result<Vec<f64>> {
    let pids = peer.pids();
    let threads = || cost::of_threads(&pids, [&WRITING, &FOLDING]);
    let ([wrote, folded], all) = threads();
    let mut load = Load::start(bench.clock, vec![chats(peer, pace)])?;
    let began = bench.clock.now();
    load.run_for(bench.millis(4000, 2000))?;
    let time = seconds(Duration::from_nanos(bench.clock.now() - began));
    let tally = load.take().pop().unwrap_or_default();
    load.finish()?;
    anyhow::ensure!(cost::is_idle_for(&pids, QUIET), "the store does not come to an end");
    let ([writes, folds], total) = threads();
    let each = |now: u64, before: u64| {
        now.saturating_sub(before) as f64 / 1000.0 / tally.answers.max(1) as f64
    };
    Ok(vec![
        each(total, all),
        each(writes, wrote),
        each(folds, folded),
        tally.answers as f64 / time,
        tally.latency.millis(0.5),
        tally.latency.millis(0.99),
    ])
}

/// The chat that is answered at once.
fn chats(peer: &Peer, pace: Pace) -> Group {
    Group {
        name: "a chat".into(),
        address: peer.addr,
        callers: 64,
        over: Over::Plain,
        ask: Ask::Same(Head { line: "POST /api/chat", ..head(peer) }.json(&script::chat())),
        want: Want::Exact(200, script::chat_answer().into_bytes()),
        pace,
        fresh: false,
        spread: Duration::ZERO,
    }
}

pub(super) fn metered_streams(bench: &Bench) -> anyhow::Result<Outcome> {
    const STREAMS: usize = 4000;
    let gates = gates(bench, &[NO_LEDGER, JOURNAL])?;
    // before any stream, so that what is kept after a round counts in the next ones too
    let idle: Vec<u64> = gates.iter().map(|peer| cost::memory(&peer.pids())).collect();
    let idle_of = |peer: &Peer| {
        let at = gates.iter().position(|one| std::ptr::eq(one, peer));
        at.and_then(|at| idle.get(at)).copied().unwrap_or_default()
    };
    let outcome = Outcome {
        row: "metered-streams",
        title: "4,000 streams that leave rows".into(),
        how:
            "As the row `chunk`: 4,000 streamed chats at once, each with 5 tokens a second. All of \
              them break off in the end, which is a row as well."
                .into(),
        against: Some(NO_LEDGER.into()),
        ..Outcome::default()
    };
    let mut outcome = outcome
        .metrics(&CHUNK_METRICS)
        .goal("≤ 20 KiB per stream", 1, Limit::AtMost(20.0))
        .goal("≤ 13 KiB per stream", 1, Limit::AtMost(13.0))
        .goal("CPU per chunk ≤ 1.03 × no data_dir", 0, Limit::TimesAtMost(1.03, NO_LEDGER.into()));
    outcome.goals.iter_mut().for_each(|goal| goal.line = JOURNAL.to_owned());
    outcome.rounds(bench.rounds(4, 1), &gates, |peer, _| {
        let mut group = streaming(peer, STREAMS, LONG);
        group.spread = bench.millis(2000, 1500);
        let times = [bench.millis(3000, 2000), bench.millis(4000, 3000)];
        let figures = hold(bench, peer, group, idle_of(peer), times);
        // four thousand rows at once go into the store
        cost::is_idle_for(&peer.pids(), QUIET);
        figures
    })
}
