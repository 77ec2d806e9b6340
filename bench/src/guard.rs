//! Instructions for one request and one streamed chunk, counted by callgrind and held against the
//! stored figures: no clock is involved, so a busy machine gives the same answer.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};

use crate::peer::credentials::signature;
use crate::peer::{Id, Kind, Login, Peer, Settings};

mod backend;

use backend::Backend;

/// `bench guard`
#[derive(Debug, clap::Args)]
pub(crate) struct GuardArgs {
    /// The gate's program: the release build
    #[arg(long, value_name = "PATH", default_value = "target/release/portcullis")]
    portcullis: PathBuf,
    /// Store the figures found as the ones to hold
    #[arg(long)]
    bless: bool,
    /// How far a figure may be off, up or down, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    tolerance: f64,
    /// Where the figures are stored
    #[arg(long, value_name = "FILE", default_value = "bench/instructions.txt")]
    stored: PathBuf,
}

/// Counts, prints a table, and compares or stores. True when every figure holds.
///
/// # Errors
/// Valgrind or the gate is missing or fails, or an answer is wrong.
pub(crate) fn run(args: &GuardArgs) -> anyhow::Result<bool> {
    let version = Command::new("valgrind").arg("--version").output();
    ensure!(version.is_ok_and(|said| said.status.success()), "valgrind is missing: install it");
    let found = count(&args.portcullis)?;
    let made_with = made_with();
    let stored = if args.bless {
        fs::write(&args.stored, Stored::text(&made_with, &found))
            .with_context(|| format!("cannot write {}", args.stored.display()))?;
        Stored { made_with: made_with.clone(), figures: Vec::new() }
    } else {
        Stored::read(&args.stored)?
    };
    let mut holds = true;
    say(&format!("{:<16} {:>12} {:>12} {:>9}", "instructions", "now", "stored", "change"))?;
    for (name, figure) in &found {
        let line = match stored.of(name) {
            Some(old) => {
                let change = 100.0 * (*figure as f64 - old as f64) / old as f64;
                let within = change.abs() <= args.tolerance;
                holds &= within;
                let mark = if within { "" } else { "  NOT WITHIN THE TOLERANCE" };
                format!("{name:<16} {figure:>12} {old:>12} {change:>+8.1}%{mark}")
            }
            None if args.bless => format!("{name:<16} {figure:>12} {:>12}", "now stored"),
            None => {
                holds = false;
                format!("{name:<16} {figure:>12} {:>12}", "none")
            }
        };
        say(&line)?;
    }
    if !holds {
        say(
            "More: look for what was added (callgrind_annotate). Less, or meant: bench guard --bless.",
        )?;
        if stored.made_with != made_with {
            say(&format!("The stored ones are for {}; this is {made_with}.", stored.made_with))?;
        }
    }
    Ok(holds)
}

/// The stored figures, each a line `name figure` below comments.
struct Stored {
    made_with: String,
    figures: Vec<(String, u64)>,
}

impl Stored {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!("cannot read {}; `bench guard --bless` makes it", path.display())
        })?;
        let made_with = text.lines().find_map(|line| line.strip_prefix(MADE_WITH));
        let mut figures = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let parts = line.rsplit_once(' ').and_then(|(name, n)| Some((name, n.parse().ok()?)));
            let Some((name, figure)) = parts else { bail!("not understood: {line}") };
            figures.push((name.trim().to_owned(), figure));
        }
        Ok(Self { made_with: made_with.unwrap_or("?").to_owned(), figures })
    }

    fn of(&self, name: &str) -> Option<u64> {
        self.figures.iter().find(|(stored, _)| stored == name).map(|(_, figure)| *figure)
    }

    fn text(made_with: &str, found: &[(&str, u64)]) -> String {
        let mut text = format!(
            "# Instructions of the gate for one request with a key, for one where three rules were asked\n\
             # whose it is, for one with a password that was verified before, for one that is signed, for\n\
             # one streamed chunk, and for one of an answer that is counted by its length alone.\n\
             # `bench guard --bless` writes this.\n\
             {MADE_WITH}{made_with}\n"
        );
        for (name, figure) in found {
            text.push_str(&format!("{name} {figure}\n"));
        }
        text
    }
}

const MADE_WITH: &str = "# made with ";

fn made_with() -> String {
    let rustc = crate::machine::Machine::here().rustc;
    // without the date and the check sum
    let short: Vec<&str> = rustc.split(' ').take(2).collect();
    format!("{} on {}", short.join(" "), env::consts::ARCH)
}

/// The figures. Two runs each, one with thrice the work: the start, the end and what is
/// done once fall out of the difference.
fn count(portcullis: &Path) -> anyhow::Result<Vec<(&'static str, u64)>> {
    let dir = Folder::new()?;
    let backend = Backend::start().context("the backend does not start")?;
    let bed = Bed { dir: &dir.0, portcullis, backend: &backend };
    let once = |by| Work { by, requests: REQUESTS, chunks: CHUNKS, opaque: false, rules: false };
    let (key, password, signature) = (once(By::Key), once(By::Password), once(By::Signature));
    let ruled = Work { rules: true, ..key };
    let opaque = Work { opaque: true, ..key };
    let more_requests = |work: Work| Work { requests: 3 * REQUESTS, ..work };
    let with_key = bed.instructions(key)?;
    let each = |more: u64, less: u64, times: usize| more.saturating_sub(less) / times as u64;
    Ok(vec![
        ("key path", each(bed.instructions(more_requests(key))?, with_key, 2 * REQUESTS)),
        (
            "ruled key path",
            each(bed.instructions(more_requests(ruled))?, bed.instructions(ruled)?, 2 * REQUESTS),
        ),
        (
            "password path",
            each(
                bed.instructions(more_requests(password))?,
                bed.instructions(password)?,
                2 * REQUESTS,
            ),
        ),
        (
            "signature path",
            each(
                bed.instructions(more_requests(signature))?,
                bed.instructions(signature)?,
                2 * REQUESTS,
            ),
        ),
        (
            "streamed chunk",
            each(bed.instructions(Work { chunks: 3 * CHUNKS, ..key })?, with_key, 2 * CHUNKS),
        ),
        (
            "unread chunk",
            each(
                bed.instructions(Work { chunks: 3 * CHUNKS, ..opaque })?,
                bed.instructions(opaque)?,
                2 * CHUNKS,
            ),
        ),
    ])
}

const REQUESTS: usize = 1000;
const CHUNKS: usize = 2000;

/// What each request shows.
#[derive(Clone, Copy)]
enum By {
    Key,
    Password,
    Signature,
}

#[derive(Clone, Copy)]
struct Work {
    by: By,
    requests: usize,
    chunks: usize,
    /// Of a type that is counted by its length alone.
    opaque: bool,
    /// There are some, and the last is the caller's.
    rules: bool,
}

const RULES: [&str; 3] = [
    "[[rule]]\nnames = [\"anna\", \"s01*\"]\nmodels = [\"small\"]",
    "[[rule]]\nroles = [\"admin\"]",
    "[[rule]]\nroles = [\"user\", \"operator\"]\npolicy = { num_ctx = { max = 8192 } }",
];

struct Bed<'a> {
    dir: &'a Path,
    portcullis: &'a Path,
    backend: &'a Backend,
}

impl Bed<'_> {
    /// All instructions of one life of the gate with that work.
    fn instructions(&self, work: Work) -> anyhow::Result<u64> {
        let out = self.dir.join("callgrind.out");
        let under = [
            "valgrind".to_owned(),
            "--tool=callgrind".to_owned(),
            format!("--callgrind-out-file={}", out.display()),
        ];
        let mut settings = Settings::new(self.backend.address, self.dir, self.portcullis);
        settings.login = match work.by {
            By::Key | By::Signature => Login::Key,
            By::Password => Login::Password,
        };
        settings.under = &under;
        settings.extra = if work.rules { &RULES } else { &[] };
        let gate = Peer::start(Kind::of(Id::Portcullis), &settings)?;
        self.drive(&gate, work).with_context(|| format!("the gate fails{}", gate.log_tail()))?;
        gate.stop_gently(Duration::from_secs(60))?;
        let text = fs::read_to_string(&out).context("callgrind wrote no figures")?;
        fs::remove_file(&out)?;
        let total = text.lines().rev().find_map(|line| line.strip_prefix("totals:"));
        total.and_then(|n| n.trim().parse().ok()).context("callgrind's figures have no total")
    }

    fn drive(&self, gate: &Peer, work: Work) -> anyhow::Result<()> {
        let mut caller = Caller::connect(gate, work.by)?;
        for number in 0..work.requests {
            caller.version(number)?;
        }
        caller.stream(&backend::chat(work.chunks, work.opaque), work.chunks, self.backend)
    }
}

/// One connection, one request at a time, every byte checked.
struct Caller {
    reader: BufReader<TcpStream>,
    login: String,
    host: SocketAddr,
    by: By,
    began: u64,
}

impl Caller {
    fn connect(gate: &Peer, by: By) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(gate.addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let login = login(gate.addr, &gate.authorization);
        let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(Self { reader: BufReader::new(stream), login, host: gate.addr, by, began })
    }

    fn version(&mut self, number: usize) -> anyhow::Result<()> {
        let (target, login) = match self.by {
            By::Key | By::Password => ("/api/version".to_owned(), self.login.clone()),
            By::Signature => {
                // One signature may be shown a hundred times, and its time may be off by 300 s.
                let ts = self.began - number as u64 / 50;
                let target = format!("/api/version?ts={ts}");
                let login = login(self.host, &signature(&target)?);
                (target, login)
            }
        };
        self.send(&format!("GET {target} HTTP/1.1\r\n{login}\r\n"))?;
        let head = self.head()?;
        let wanted = format!("content-length: {}", backend::VERSION.len());
        ensure!(head.contains(&wanted), "a wrong head: {head:?}");
        let mut body = vec![0; backend::VERSION.len()];
        self.reader.read_exact(&mut body)?;
        ensure!(body == backend::VERSION.as_bytes(), "a wrong body");
        Ok(())
    }

    fn stream(&mut self, body: &str, chunks: usize, backend: &Backend) -> anyhow::Result<()> {
        self.send(&format!(
            "POST /api/chat HTTP/1.1\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.login,
            body.len()
        ))?;
        let head = self.head()?;
        let chunked = head.iter().any(|field| field == "transfer-encoding: chunked");
        ensure!(chunked, "a stream that is not chunked: {head:?}");
        for number in 1..=chunks {
            backend.next.send(())?;
            let chunk = self.chunk()?;
            ensure!(chunk == backend::line(number, chunks).as_bytes(), "chunk {number} is wrong");
        }
        ensure!(self.chunk()?.is_empty(), "more than was asked for");
        Ok(())
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.reader.get_mut().write_all(text.as_bytes())
    }

    /// The fields of an answer's head, in small letters.
    fn head(&mut self) -> anyhow::Result<Vec<String>> {
        let status = self.line()?;
        ensure!(status.starts_with("HTTP/1.1 200 "), "a wrong status: {status}");
        let mut fields = Vec::new();
        loop {
            let field = self.line()?;
            if field.is_empty() {
                return Ok(fields);
            }
            fields.push(field.to_ascii_lowercase());
        }
    }

    fn chunk(&mut self) -> anyhow::Result<Vec<u8>> {
        let size = self.line()?;
        let size = usize::from_str_radix(&size, 16).with_context(|| format!("no size: {size}"))?;
        let mut data = vec![0; size + 2];
        self.reader.read_exact(&mut data)?;
        ensure!(data.ends_with(b"\r\n"), "a chunk without its end");
        data.truncate(size);
        Ok(data)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let Some(text) = line.strip_suffix("\r\n") else { bail!("the connection ended: {line:?}") };
        Ok(text.to_owned())
    }
}

fn login(host: SocketAddr, authorization: &str) -> String {
    format!("Host: {host}\r\nAuthorization: {authorization}\r\n")
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = env::temp_dir().join(format!("bench-guard-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_figures_are_read_as_they_were_written() {
        let file = env::temp_dir().join(format!("bench-stored-{}", std::process::id()));
        fs::write(&file, Stored::text("rustc 1.95.0 on x86_64", &[("key path", 88_000)])).unwrap();
        let stored = Stored::read(&file);
        fs::remove_file(&file).unwrap();
        let stored = stored.unwrap();
        assert_eq!(stored.of("key path"), Some(88_000));
        assert_eq!(stored.of("another"), None);
        assert_eq!(stored.made_with, "rustc 1.95.0 on x86_64");
    }
}
