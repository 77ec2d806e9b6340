//! The row about beginning: until the first answer, what it holds when idle, how large it is.

use std::fs;
use std::thread;
use std::time::Duration;

use super::{Bench, Limit, Outcome, seconds};
use crate::cost;
use crate::peer::{Id, Kind, Peer};

pub(super) fn start(bench: &Bench) -> anyhow::Result<Outcome> {
    let mut ids = vec![Id::Portcullis, Id::NginxTuned, Id::Haproxy, Id::CaddyNewest];
    if !bench.short {
        ids.extend([Id::NginxBearer, Id::CaddyDistro]);
    }
    let outcome = Outcome {
        row: "start",
        title: "From the start to the first answer".into(),
        how: "From the start of the process to the end of its first answer; the resident memory \
              of all its processes half a second later; the size of its program (not of the \
              libraries and modules that it loads)."
            .into(),
        ..Outcome::default()
    };
    let kinds: Vec<&Kind> = ids.iter().map(|id| Kind::of(*id)).filter(|it| bench.has(it)).collect();
    let mut outcome = outcome
        .metrics(&[("first answer ms", 1), ("idle RSS MiB", 1), ("program MiB", 1)])
        .goal("first answer ≤ 50 ms", 0, Limit::AtMost(50.0))
        .goal("idle RSS ≤ 15 MiB", 1, Limit::AtMost(15.0))
        .goal("program ≤ 15 MiB", 2, Limit::AtMost(15.0));
    outcome.lines = kinds
        .iter()
        .map(|kind| super::Line { name: kind.name.to_owned(), rounds: Vec::new() })
        .collect();
    for _ in 0..bench.rounds(5, 2) {
        for (kind, line) in kinds.iter().copied().zip(&mut outcome.lines) {
            line.rounds.push(once(bench, kind)?);
        }
    }
    Ok(outcome)
}

fn once(bench: &Bench, kind: &'static Kind) -> anyhow::Result<Vec<f64>> {
    let peer = Peer::start(kind, &bench.settings())?;
    thread::park_timeout(Duration::from_millis(500));
    let mib = |kib: u64| kib as f64 / 1024.0;
    let program = fs::metadata(&peer.program).map_or(0, |about| about.len());
    Ok(vec![
        1000.0 * seconds(peer.started_in),
        mib(cost::memory(&peer.pids())),
        mib(program / 1024),
    ])
}
