//! The row about a large upload: how fast, at what cost, and what is held in memory.

use std::time::Duration;

use super::{Bench, Limit, NGINX, Outcome, seconds};
use crate::cost::{self, Cpu};
use crate::load::{Ask, Group, Load, Over, Pace, Want};
use crate::peer::{Id, Peer};
use crate::script::{self, Head};

pub(super) fn upload(bench: &Bench) -> anyhow::Result<Outcome> {
    let length: u64 = if bench.short { 256 << 20 } else { 2 << 30 };
    let size = if bench.short { "256 MiB" } else { "2 GiB" };
    let mut ids = vec![Id::Portcullis, Id::NginxTuned];
    if !bench.short {
        ids.push(Id::Direct);
    }
    let subjects = bench.start(&ids)?;
    let idle: Vec<u64> = subjects.iter().map(|peer| cost::memory(&peer.pids())).collect();
    let idle_of = |peer: &Peer| {
        let at = subjects.iter().position(|one| std::ptr::eq(one, peer));
        at.and_then(|at| idle.get(at)).copied().unwrap_or_default()
    };
    let outcome = Outcome {
        row: "upload",
        title: format!("An upload of {size}"),
        how:
            "One `POST /api/blobs/sha256:…`; the backend compares every byte. The peak is that of \
              the proxy's memory, above what it had before the first upload. Callers and backend \
              share a core: `direct` is the most that they can do."
                .into(),
        against: Some(NGINX.into()),
        ..Outcome::default()
    };
    outcome
        .metrics(&[("MB/s", 0), ("CPU s per GB", 3), ("peak growth MiB", 1)])
        .goal("MB/s ≥ 1.0 × nginx tuned", 0, Limit::TimesAtLeast(1.0, NGINX.into()))
        .goal("CPU per GB ≤ 1.0 × nginx tuned", 1, Limit::TimesAtMost(1.0, NGINX.into()))
        .goal("peak flat: ≤ 16 MiB", 2, Limit::AtMost(16.0))
        .rounds(bench.rounds(3, 2), &subjects, |peer, _| {
            let pids = peer.pids();
            cost::forget_peak(&pids)?;
            let mut load = Load::start(bench.clock, vec![uploading(peer, length)])?;
            let (began, cpu) = (bench.clock.now(), Cpu::of(&pids));
            load.run_until(1, Duration::from_secs(120))?;
            let time = Duration::from_nanos(bench.clock.now() - began);
            let cpu = Cpu::of(&pids).since(&cpu);
            let peak = cost::peak_memory(&pids).saturating_sub(idle_of(peer));
            drop(load);
            let bytes = length as f64;
            Ok(vec![
                bytes / 1e6 / seconds(time),
                seconds(cpu) / (bytes / 1e9),
                peak as f64 / 1024.0,
            ])
        })
}

fn uploading(peer: &Peer, length: u64) -> Group {
    let line = format!("POST {}", script::BLOB);
    let head =
        Head { line: &line, host: peer.addr, authorization: &peer.authorization, close: true };
    Group {
        name: "an upload".into(),
        address: peer.addr,
        callers: 1,
        over: Over::Plain,
        ask: Ask::Upload { head: head.upload(length), length },
        want: Want::Exact(201, Vec::new()),
        // one, and no second one before this is over
        pace: Pace::PerSecond(0.001),
        fresh: true,
        spread: Duration::ZERO,
    }
}
