//! The row about managed keys: what a million of them cost at the start, in memory and in a request.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::requests::Trial;
use super::{Bench, Limit, Line, Outcome, PORTCULLIS, seconds};
use crate::cost;
use crate::peer::{Id, Kind, Peer, credentials};

const FEW: usize = 2;
const MANY: usize = 1_000_000;

pub(super) fn managed_1m(bench: &Bench) -> anyhow::Result<Outcome> {
    let name = |keys: usize| format!("{PORTCULLIS}, {keys} managed keys");
    let mut outcome = Outcome {
        row: "managed-1m",
        title: format!("{MANY} managed keys"),
        how: "As the small request, with the last key of the store. Each round starts the gate on a \
              store that is there: from the start of the process to the end of its first answer; its \
              memory half a second later, and how much of it is above that with two keys, for each \
              key."
            .into(),
        against: Some(name(FEW)),
        ..Outcome::default()
    }
    .metrics(&[
        ("CPU µs per request", 2),
        ("requests/s", 0),
        ("p99 ms", 2),
        ("first answer ms", 0),
        ("RSS MiB", 1),
        ("bytes per key", 0),
    ])
    .goal("≤ 1.05 × two keys", 0, Limit::TimesAtMost(1.05, name(FEW)))
    .goal("first answer ≤ 2 s", 3, Limit::AtMost(2000.0));
    outcome.goals.iter_mut().for_each(|goal| goal.line = name(MANY));
    if !bench.has(Kind::of(Id::Portcullis)) {
        return Ok(outcome);
    }
    let stores = [Store::new(bench, FEW)?, Store::new(bench, MANY)?];
    outcome.lines = [FEW, MANY].map(|keys| Line { name: name(keys), rounds: Vec::new() }).into();
    for _ in 0..bench.rounds(5, 2) {
        let mut least = None;
        for (store, line) in stores.iter().zip(&mut outcome.lines) {
            let (mut figures, memory) = store.once(bench)?;
            let least = *least.get_or_insert(memory);
            figures.push((1024 * memory.saturating_sub(least)) as f64 / store.keys as f64);
            line.rounds.push(figures);
        }
    }
    Ok(outcome)
}

/// A store with so many keys, and what names it.
struct Store {
    keys: usize,
    setting: String,
}

impl Store {
    fn new(bench: &Bench, keys: usize) -> anyhow::Result<Self> {
        let folder = bench.dir.join(format!("managed-{keys}"));
        let setting = format!("data_dir = \"{}\"", folder.display());
        let store = Self { keys, setting };
        let config = bench.dir.join(format!("managed-{keys}.toml"));
        fs::write(&config, &store.setting)?;
        let list = bench.dir.join(format!("managed-{keys}.txt"));
        credentials::write_keys(&list, credentials::IN_FILE + 1..=credentials::IN_FILE + keys)?;
        let said = Command::new(&bench.portcullis)
            .args(["key", "import", "--config"])
            .args([&config, &list])
            .output()
            .context("keys cannot be imported")?;
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        Ok(store)
    }

    /// The figures but for the last, and KiB of memory.
    fn once(&self, bench: &Bench) -> anyhow::Result<(Vec<f64>, u64)> {
        let mut settings = bench.settings();
        let extra = [self.setting.as_str()];
        settings.extra = &extra;
        settings.managed = self.keys;
        let peer = Peer::start(Kind::of(Id::Portcullis), &settings)?;
        std::thread::park_timeout(Duration::from_millis(500));
        let memory = cost::memory(&peer.pids());
        let asked = Trial::version(&peer).run(bench)?;
        let [cpu, rate, _, p99, ..] = asked.as_slice() else { anyhow::bail!("too few figures") };
        let first = 1000.0 * seconds(peer.started_in);
        let figures = vec![*cpu, *rate, *p99, first, memory as f64 / 1024.0];
        peer.stop_gently(Duration::from_secs(30))?;
        Ok((figures, memory))
    }
}
