//! The row about asking: how long `portcullis usage` needs for a year of a million rows a day.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use rusqlite::{Connection, params};

use super::{Bench, Limit, Line, Outcome, seconds};
use crate::peer::{Id, Kind, Peer};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Each of them asks each model a thousand times a day.
const USERS: i64 = 200;
const MODELS: i64 = 5;
const REQUESTS: i64 = 1000;
/// Rows of a million a day are so many milliseconds apart.
const APART: f64 = 86.4;

const ASKED: [(&str, &[&str]); 5] = [
    ("by user, 365 days", &["--by", "user", "--since", "365d"]),
    ("by model, 365 days", &["--by", "model", "--since", "365d"]),
    ("by day, 365 days", &["--by", "day", "--since", "365d"]),
    ("by day and user, 365 days", &["--by", "day,user", "--since", "365d"]),
    ("by user, 30 days", &["--by", "user", "--since", "30d"]),
];

pub(super) fn year(bench: &Bench) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome {
        row: "year",
        title: "A year of a million rows a day".into(),
        how: format!(
            "`portcullis usage`, from its start to its end, over sums as {USERS} users with \
             {MODELS} models and a million requests a day leave them: by days for a year, by hours \
             for two months and at the beginning of the year, and the single rows of the hours in \
             which the year begins and ends."
        ),
        ..Outcome::default()
    }
    .metrics(&[("ms", 0), ("lines", 0)]);
    for (name, _) in ASKED.iter().take(4) {
        outcome = outcome.goal("≤ 1 s", 0, Limit::AtMost(1000.0));
        if let Some(goal) = outcome.goals.last_mut() {
            goal.line = (*name).to_owned();
        }
    }
    let Some(store) = Asked::new(bench)? else { return Ok(outcome) };
    let line = |(name, _): &(&str, _)| Line { name: (*name).to_owned(), rounds: Vec::new() };
    outcome.lines = ASKED.iter().map(line).collect();
    for _ in 0..bench.rounds(3, 1) {
        for ((_, words), line) in ASKED.iter().zip(&mut outcome.lines) {
            line.rounds.push(store.ask(words)?);
        }
    }
    Ok(outcome)
}

/// A store with a year in it, and the program that is asked.
struct Asked {
    program: PathBuf,
    config: PathBuf,
}

impl Asked {
    /// None where the program cannot be asked.
    fn new(bench: &Bench) -> anyhow::Result<Option<Self>> {
        let program = bench.portcullis.clone();
        let knows = Command::new(&program).args(["usage", "--help"]).output()?;
        if !knows.status.success() {
            return Ok(None);
        }
        let folder = bench.dir.join("year");
        let says = format!("data_dir = \"{}\"\ntime_zone = \"UTC\"\n", folder.display());
        let config = bench.dir.join("year.toml");
        fs::write(&config, &says)?;
        let lines: Vec<&str> = says.lines().collect();
        let mut settings = bench.settings();
        settings.extra = &lines;
        // the schema is the gate's own
        Peer::start(Kind::of(Id::Portcullis), &settings)?.stop_gently(Duration::from_secs(30))?;
        fill(&folder.join("portcullis.db")).context("the store cannot be filled")?;
        Ok(Some(Self { program, config }))
    }

    fn ask(&self, words: &[&str]) -> anyhow::Result<Vec<f64>> {
        let mut command = Command::new(&self.program);
        command.arg("usage").args(words).args(["--format", "csv", "--config"]).arg(&self.config);
        let began = Instant::now();
        let said = command.output()?;
        let time = began.elapsed();
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let lines = said.stdout.iter().filter(|byte| **byte == b'\n').count();
        ensure!(lines > MODELS as usize, "{}", String::from_utf8_lossy(&said.stdout));
        Ok(vec![1000.0 * seconds(time), lines as f64])
    }
}

fn fill(database: &Path) -> anyhow::Result<()> {
    let mut connection = Connection::open(database)?;
    let transaction = connection.transaction()?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let today = now / DAY * DAY;
    let mut word = transaction.prepare("INSERT INTO usage_word VALUES (?1, ?2)")?;
    for user in 0..USERS {
        word.execute(params![FIRST_USER + user, format!("user-{user}")])?;
    }
    for model in 0..MODELS {
        word.execute(params![FIRST_MODEL + model, format!("model-{model}:8b")])?;
    }
    for (number, text) in
        [(OPERATION, "chat-bench"), (BACKEND, "backend-bench"), (DONE, "done-bench")]
    {
        word.execute(params![number, text])?;
    }
    let sums = |table: &str| {
        format!(
            "WITH RECURSIVE u(n) AS (SELECT {FIRST_USER} UNION ALL SELECT n + 1 FROM u WHERE
             n + 1 < {FIRST_USER} + {USERS}), m(n) AS (SELECT {FIRST_MODEL} UNION ALL SELECT n + 1
             FROM m WHERE n + 1 < {FIRST_MODEL} + {MODELS}) INSERT INTO {table}
             SELECT ?1, u.n, 0, m.n, {OPERATION}, {BACKEND}, ?2, 0, 12 * ?2, 300 * ?2, 0, 0,
             4000000 * ?2 FROM u, m"
        )
    };
    let mut by_day = transaction.prepare(&sums("usage_day"))?;
    let mut by_hour = transaction.prepare(&sums("usage_hour"))?;
    for day in 0..=366 {
        by_day.execute([today - day * DAY, REQUESTS])?;
        let has_hours = !(62..364).contains(&day);
        for hour in (0..24).filter(|_| has_hours) {
            by_hour.execute([today - day * DAY + hour * HOUR, REQUESTS / 24])?;
        }
    }
    let mut row = transaction.prepare(&format!(
        "INSERT INTO usage (place, id, name, key, model, operation, backend, inference, status,
         outcome, options, prompt, completion, estimated, generation, bytes_in, bytes_out, queue,
         first_byte, first_token, total, backend_time)
         VALUES (?1, ?2, ?3, 0, ?4, {OPERATION}, {BACKEND}, 1, 200, {DONE}, 0, 12, 300, 0, 4000000,
         200, 60000, 0, 50000, 60000, 4100000, 4000000)"
    ))?;
    for hour in [now - 365 * DAY, now].map(|second| second / HOUR * HOUR) {
        for number in 0..(HOUR as f64 * 1000.0 / APART) as i64 {
            let place = (hour * 1000 + (number as f64 * APART) as i64) << 20;
            let (user, model) = (FIRST_USER + number % USERS, FIRST_MODEL + number % MODELS);
            row.execute(params![place, format!("r{number:07}"), user, model])?;
        }
    }
    drop((word, by_day, by_hour, row));
    transaction.commit()?;
    Ok(())
}

const FIRST_USER: i64 = 100_000;
const FIRST_MODEL: i64 = 200_000;
const OPERATION: i64 = 300_000;
const BACKEND: i64 = 300_001;
const DONE: i64 = 300_002;

#[cfg(test)]
mod tests {
    use portcullis::store::Store;

    use super::*;

    #[test]
    fn a_store_of_todays_schema_can_be_filled() {
        let folder = std::env::temp_dir().join(format!("bench-year-{}", std::process::id()));
        drop(Store::open(&folder).unwrap());
        fill(&folder.join("portcullis.db")).unwrap();
        assert_eq!(Store::open(&folder).unwrap().check().unwrap(), Vec::<String>::new());
        fs::remove_dir_all(&folder).unwrap();
    }
}
