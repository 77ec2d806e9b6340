//! Each row of the table: what is asked of whom, and what comes out round by round.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

mod bodies;
mod encrypted;
mod ledger;
mod managed;
mod requests;
mod start;
mod streams;
mod upload;
mod waiting;
mod year;

use crate::cost;
use crate::peer::{Id, Kind, Peer, Settings};
use crate::script::{Clock, Head};
use crate::tls::Identity;

/// What all measures have in common.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) clock: Clock,
    pub(crate) backend: SocketAddr,
    /// Of this run, for the peers' files.
    pub(crate) dir: PathBuf,
    pub(crate) portcullis: PathBuf,
    /// What every proxy shows over TLS.
    pub(crate) identity: Identity,
    pub(crate) short: bool,
    pub(crate) rounds: Option<usize>,
    /// Only these, when there are any.
    pub(crate) only: Vec<&'static Kind>,
    /// The proxies' core; none when there is only one for everything.
    pub(crate) core: Option<usize>,
}

/// One measure.
pub(crate) struct Row {
    /// As `--only` has it.
    pub(crate) name: &'static str,
    /// Another name for it: two figures of one run.
    pub(crate) also: &'static str,
    pub(crate) table: Table,
    /// Part of the short mode too.
    pub(crate) in_short: bool,
    pub(crate) run: fn(&Bench) -> anyhow::Result<Outcome>,
}

/// Which run a row is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Plain,
    /// A run of its own: both together take too long.
    Tls,
    /// Ours with a ledger beside ours without.
    Ledger,
}

/// Every row, in the order of the tables.
pub(crate) static ROWS: [Row; 28] = [
    row("get", true, requests::get),
    row("post-chat", true, requests::post_chat),
    row("keys-10k", true, requests::keys_10k),
    row("keys-1m", false, requests::keys_1m),
    row("managed-1m", false, managed::managed_1m),
    row("basic", true, requests::basic),
    row("throughput", false, requests::throughput),
    row("first-token-1", false, streams::first_token_1),
    row("first-token-200", true, streams::first_token_200),
    Row { also: "memory-per-stream", ..row("chunk", true, streams::chunk) },
    row("wrong-passwords", false, streams::wrong_passwords),
    row("waiting", false, waiting::waiting),
    row("upload", true, upload::upload),
    row("bodies", true, bodies::bodies),
    row("close", true, requests::close),
    row("start", true, start::start),
    row("direct", true, requests::direct),
    Row { table: Table::Tls, ..row("handshake", false, encrypted::handshake) },
    Row { table: Table::Tls, ..row("tls-get", false, encrypted::tls_get) },
    Row { table: Table::Tls, ..row("h2-get", true, encrypted::h2_get) },
    Row { table: Table::Tls, ..row("tls-chunk", false, encrypted::tls_chunk) },
    Row { table: Table::Tls, ..row("h2-chunk", false, encrypted::h2_chunk) },
    Row { table: Table::Ledger, ..row("answer-end-1", false, ledger::answer_end_1) },
    Row { table: Table::Ledger, ..row("answer-end-200", false, ledger::answer_end_200) },
    Row { table: Table::Ledger, ..row("row-cpu", false, ledger::row_cpu) },
    Row { table: Table::Ledger, ..row("row-cpu-1000", false, ledger::row_cpu_1000) },
    Row { table: Table::Ledger, ..row("metered-streams", false, ledger::metered_streams) },
    Row { table: Table::Ledger, ..row("year", false, year::year) },
];

const fn row(
    name: &'static str,
    in_short: bool,
    run: fn(&Bench) -> anyhow::Result<Outcome>,
) -> Row {
    Row { name, also: name, table: Table::Plain, in_short, run }
}

/// What a row gave.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) row: &'static str,
    pub(crate) title: String,
    /// How it was measured, in a sentence or two.
    pub(crate) how: String,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) lines: Vec<Line>,
    /// Against which line the ratio of the first metric is, where there is one.
    pub(crate) against: Option<String>,
    pub(crate) goals: Vec<Goal>,
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) digits: usize,
}

/// One proxy's figures: those of each round, in the order of the metrics.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) rounds: Vec<Vec<f64>>,
}

/// What a line has to reach.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) what: &'static str,
    pub(crate) line: String,
    pub(crate) metric: usize,
    pub(crate) limit: Limit,
}

/// Compared by the median over the rounds.
#[derive(Debug, Clone)]
pub(crate) enum Limit {
    /// The figure itself.
    AtMost(f64),
    /// Of the ratio to another line's figure, round by round.
    TimesAtMost(f64, String),
    TimesAtLeast(f64, String),
    /// Of the difference to another line's figure, round by round.
    AboveAtMost(f64, String),
}

const PORTCULLIS: &str = "portcullis";
const NGINX: &str = "nginx tuned";

impl Bench {
    fn settings(&self) -> Settings<'_> {
        let mut settings = Settings::new(self.backend, &self.dir, &self.portcullis);
        settings.core = self.core;
        settings
    }

    /// Starts those of these peers that are on this machine and wanted.
    fn start(&self, ids: &[Id]) -> anyhow::Result<Vec<Peer>> {
        self.start_with(ids, &self.settings())
    }

    fn start_with(&self, ids: &[Id], settings: &Settings<'_>) -> anyhow::Result<Vec<Peer>> {
        let kinds = ids.iter().map(|id| Kind::of(*id)).filter(|kind| self.has(kind));
        kinds.map(|kind| Peer::start(kind, settings)).collect()
    }

    /// Whether a peer is wanted and here.
    pub(crate) fn has(&self, kind: &Kind) -> bool {
        let wanted = self.only.is_empty() || self.only.iter().any(|one| one.id == kind.id);
        wanted && kind.find(&self.portcullis).is_ok()
    }

    /// How many rounds: the first for the full mode, the second for the short one.
    fn rounds(&self, full: usize, short: usize) -> usize {
        self.rounds.unwrap_or(if self.short { short } else { full })
    }

    fn millis(&self, full: u64, short: u64) -> Duration {
        Duration::from_millis(if self.short { short } else { full })
    }
}

impl Outcome {
    fn metrics(mut self, metrics: &[(&'static str, usize)]) -> Self {
        self.metrics =
            metrics.iter().map(|(name, digits)| Metric { name, digits: *digits }).collect();
        self
    }

    fn goal(mut self, what: &'static str, metric: usize, limit: Limit) -> Self {
        self.goals.push(Goal { what, line: PORTCULLIS.to_owned(), metric, limit });
        self
    }

    /// Measures every subject in each round, in an order that changes from round to round.
    fn rounds(
        mut self,
        rounds: usize,
        subjects: &[Peer],
        mut measure: impl FnMut(&Peer, usize) -> anyhow::Result<Vec<f64>>,
    ) -> anyhow::Result<Self> {
        let line = |peer: &Peer| Line { name: peer.name.clone(), rounds: Vec::new() };
        self.lines = subjects.iter().map(line).collect();
        for round in 0..rounds {
            let first = round % subjects.len().max(1);
            let order = (0..subjects.len()).map(|at| (first + at) % subjects.len());
            for at in order {
                let (Some(peer), Some(line)) = (subjects.get(at), self.lines.get_mut(at)) else {
                    continue;
                };
                let figures = measure(peer, round).with_context(|| {
                    format!("{}, {}, round {}{}", self.row, peer.name, round + 1, peer.log_tail())
                })?;
                line.rounds.push(figures);
                // what it has to tidy up is not to disturb the next one
                cost::settle(&peer.pids());
            }
        }
        Ok(self)
    }
}

/// The small request to a peer.
fn head(peer: &Peer) -> Head<'_> {
    Head {
        line: "GET /api/version",
        host: peer.addr,
        authorization: &peer.authorization,
        close: false,
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
