//! Portcullis and other proxies, measured side by side.

mod backend;
mod cost;
mod guard;
mod load;
mod machine;
mod measures;
mod peer;
mod report;
mod script;
mod tls;

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Parser as _;

use machine::Machine;
use measures::{Bench, Outcome, ROWS, Row, Table};
use peer::{KINDS, Kind};
use report::Report;
use script::Clock;

/// Measures Portcullis and every other proxy that is here, side by side
#[derive(Debug, clap::Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    measure: Measure,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Hold the instructions of a request and of a streamed chunk against the stored figures
    Guard(guard::GuardArgs),
    /// Measure over TLS and HTTP/2: three minutes, with results of their own
    Tls(Measure),
    /// Measure what rows of usage cost: four minutes, with results of their own
    Ledger(Measure),
    /// Name the rows and the proxies, and how to get those that are not here
    List,
}

#[derive(Debug, clap::Args)]
struct Measure {
    /// Two minutes: the main rows, fewer proxies and rounds
    #[arg(long)]
    short: bool,
    /// Only these rows (see `bench list`)
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these proxies (see `bench list`)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    peers: Vec<String>,
    /// The gate's program; otherwise that of this build, `dist` before `release`
    #[arg(long, value_name = "PATH")]
    portcullis: Option<PathBuf>,
    /// Where the results go; a full run writes bench/RESULTS.md (over TLS
    /// bench/RESULTS-TLS.md, of the ledger bench/RESULTS-LEDGER.md), any other one shows them
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How many rounds each row has
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.task {
        Some(Task::Guard(args)) => guard::run(&args),
        Some(Task::List) => list().map(|()| true),
        Some(Task::Tls(args)) => measure(&args, Table::Tls).map(|()| true),
        Some(Task::Ledger(args)) => measure(&args, Table::Ledger).map(|()| true),
        None => measure(&args.measure, Table::Plain).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // nobody is left to be told when this fails
            drop(writeln!(io::stderr(), "bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn list() -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "rows (* also in the short mode)")?;
    for row in &ROWS {
        let mark = if row.in_short { "*" } else { " " };
        let also = if row.also == row.name { "" } else { row.also };
        let run = match row.table {
            Table::Plain => "",
            Table::Tls => "(bench/run tls)",
            Table::Ledger => "(bench/run ledger)",
        };
        writeln!(out, "  {mark} {} {also}{run}", row.name)?;
    }
    writeln!(out, "proxies")?;
    let portcullis = gate(None);
    for kind in &KINDS {
        match kind.find(&portcullis) {
            Ok(program) => {
                writeln!(out, "    {:<18} {}", kind.name, kind.version(&program))?;
            }
            Err(how) => writeln!(out, "  - {:<18} {how}", kind.name)?,
        }
    }
    Ok(())
}

fn measure(args: &Measure, table: Table) -> anyhow::Result<()> {
    let rows = rows(args, table)?;
    let only = kinds(&args.peers)?;
    let portcullis = gate(args.portcullis.as_deref());
    let out = where_to(args, table)?;
    if let Err(how) = Kind::of(peer::Id::Portcullis).find(&portcullis) {
        bail!("no {} to measure: {how}", portcullis.display());
    }
    let machine = Machine::here();
    let two_cores = machine.cores >= 2;
    place_ourselves(two_cores)?;

    let folder = Folder::new()?;
    end_all_on_a_signal(folder.0.clone())?;
    let clock = Clock::new();
    let bench = Bench {
        clock,
        backend: backend::start(clock).context("the backend does not start")?,
        dir: folder.0.clone(),
        portcullis,
        identity: tls::Identity::new()?,
        short: args.short,
        rounds: args.rounds,
        only,
        core: two_cores.then_some(0),
    };
    let (present, missing) = peers_here(&bench.portcullis);
    for (kind, how) in &missing {
        writeln!(io::stderr(), "without {}: {how}", kind.name)?;
    }
    let outcomes = run(&bench, &rows)?;
    let mode = if args.short { "short" } else { "full" };
    let place = if two_cores {
        "the proxies on core 0, callers and backend on core 1"
    } else {
        "on a machine with a single core: all share it"
    };
    let profile = bench.portcullis.parent().and_then(Path::file_name).unwrap_or_default();
    let manner = format!(
        "The {mode} mode, {place}; Portcullis as the profile `{}` builds it.",
        profile.display()
    );
    let report = Report { table, outcomes: &outcomes, machine: &machine, manner, present, missing };
    let text = report.text();
    match out {
        Some(file) => {
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            writeln!(io::stdout(), "{} is written", file.display())?;
        }
        None => write!(io::stdout(), "{text}")?,
    }
    Ok(())
}

/// A proxy with its version, or with how to get it.
type Told = (&'static Kind, String);

/// The proxies that are here, and those that are not.
fn peers_here(portcullis: &Path) -> (Vec<Told>, Vec<Told>) {
    let (mut present, mut missing) = (Vec::new(), Vec::new());
    for kind in KINDS.iter().filter(|kind| kind.id != peer::Id::Direct) {
        match kind.find(portcullis) {
            Ok(program) => present.push((kind, kind.version(&program))),
            Err(how) => missing.push((kind, how)),
        }
    }
    (present, missing)
}

fn run(bench: &Bench, rows: &[&Row]) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for row in rows {
        let began = Instant::now();
        write!(io::stderr(), "{:<16}", row.name)?;
        outcomes.push((row.run)(bench)?);
        writeln!(io::stderr(), " {:>4.0} s", began.elapsed().as_secs_f64())?;
    }
    Ok(outcomes)
}

fn rows(args: &Measure, table: Table) -> anyhow::Result<Vec<&'static Row>> {
    let named = |row: &Row, name: &String| row.name == name || row.also == name;
    if let Some(wrong) = args.only.iter().find(|name| !ROWS.iter().any(|row| named(row, name))) {
        bail!("there is no row {wrong}; `bench list` names them");
    }
    let wanted = |row: &&Row| {
        if args.only.is_empty() {
            if args.short && table != Table::Ledger { row.in_short } else { row.table == table }
        } else {
            args.only.iter().any(|name| named(row, name))
        }
    };
    Ok(ROWS.iter().filter(wanted).collect())
}

fn kinds(names: &[String]) -> anyhow::Result<Vec<&'static Kind>> {
    let find = |name: &String| {
        Kind::named(name).with_context(|| format!("there is no proxy {name}; see `bench list`"))
    };
    names.iter().map(find).collect()
}

/// The file for the results: none to show them.
fn where_to(args: &Measure, table: Table) -> anyhow::Result<Option<PathBuf>> {
    let whole = !args.short && args.only.is_empty() && args.peers.is_empty();
    if args.out.is_some() || !whole {
        return Ok(args.out.clone());
    }
    let folder = Path::new("bench");
    ensure!(folder.is_dir(), "no folder `bench` for the results here; say --out FILE");
    Ok(Some(folder.join(match table {
        Table::Plain => "RESULTS.md",
        Table::Tls => "RESULTS-TLS.md",
        Table::Ledger => "RESULTS-LEDGER.md",
    })))
}

/// The gate that was named, or the one that was built beside this program.
fn gate(named: Option<&Path>) -> PathBuf {
    if let Some(path) = named {
        return path.to_owned();
    }
    let exe = env::current_exe().unwrap_or_default();
    let built = exe.parent().and_then(Path::parent).unwrap_or(Path::new("target"));
    let candidates = ["dist", "release"].map(|profile| built.join(profile).join("portcullis"));
    let [dist, _] = &candidates;
    candidates.iter().find(|path| path.is_file()).unwrap_or(dist).clone()
}

/// Begins this program anew on the core for callers and backend, with enough open files for 4,000
/// streams on both sides.
fn place_ourselves(two_cores: bool) -> anyhow::Result<()> {
    const PLACED: &str = "PORTCULLIS_BENCH_PLACED";
    if env::var_os(PLACED).is_some() {
        return Ok(());
    }
    let mut words = Vec::new();
    for limit in ["65536:65536", "65536:", "16384:"] {
        let nofile = format!("--nofile={limit}");
        let tried = Command::new("prlimit").args([&nofile, "true"]).output();
        if tried.is_ok_and(|tried| tried.status.success()) {
            words = vec!["prlimit".to_owned(), nofile];
            break;
        }
    }
    if two_cores {
        words.extend(["taskset", "-c", "1"].map(str::to_owned));
    }
    let Some((first, rest)) = words.split_first() else { return Ok(()) };
    let exe = env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(first);
    command.args(rest).arg(exe).args(env::args_os().skip(1)).env(PLACED, "1");
    Err(command.exec()).with_context(|| format!("cannot run {first}"))
}

/// On Ctrl-C and when told to end: no proxy and no file stays.
fn end_all_on_a_signal(folder: PathBuf) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        peer::stop_all();
        drop(fs::remove_dir_all(&folder));
        drop(writeln!(io::stderr(), "\nbench: stopped; there are no results"));
        leave();
    })
    .context("cannot wait for signals")
}

#[expect(clippy::exit, reason = "the main thread is in the middle of a measure")]
fn leave() {
    std::process::exit(130)
}

/// This run's folder, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = env::temp_dir().join(format!("portcullis-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
