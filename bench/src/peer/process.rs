//! One measured proxy's processes: started on a core, watched, and ended by the id that we started.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustls::{ClientConfig, StreamOwned};

use crate::tls;

/// A command line and its surroundings.
pub(crate) struct Launch {
    words: Vec<OsString>,
    variables: Vec<(&'static str, OsString)>,
}

impl Launch {
    pub(crate) fn of(under: &[String], program: &Path) -> Self {
        let mut words: Vec<OsString> = under.iter().map(OsString::from).collect();
        words.push(program.into());
        Self { words, variables: Vec::new() }
    }

    pub(crate) fn args<const N: usize>(&mut self, words: [&str; N]) -> &mut Self {
        self.words.extend(words.iter().map(OsString::from));
        self
    }

    pub(crate) fn path(&mut self, path: &Path) -> &mut Self {
        self.words.push(path.into());
        self
    }

    pub(crate) fn env(&mut self, name: &'static str, value: &Path) {
        self.variables.push((name, value.into()));
    }
}

/// A started process and everything that it starts; dropping it ends them all.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it in a process group of its own, with nothing on its standard output and its words
    /// in `log`.
    pub(crate) fn start(launch: &Launch, core: Option<usize>, log: &Path) -> anyhow::Result<Self> {
        let mut words = wrapping(core);
        words.extend(launch.words.iter().cloned());
        let (first, rest) = words.split_first().context("no command")?;
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(first);
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        command.envs(launch.variables.iter().map(|(name, value)| (name, value)));
        let mut running = running();
        let child = command.process_group(0).spawn().context("cannot start it")?;
        running.insert(child.id());
        drop(running);
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until a request is answered with 200.
    pub(crate) fn wait_for_answer(
        &mut self,
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        request: &str,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut last = anyhow!("nothing was tried");
        while began.elapsed() < patience {
            match ask(address, tls, request) {
                Ok(200) => return Ok(()),
                Ok(status @ 500..) => last = anyhow!("it answers {status}"),
                Ok(status) => bail!("it answers {status}{}", self.log_tail()),
                Err(error) => last = error.into(),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended at once ({status}){}", self.log_tail());
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        bail!("no answer in {} s: {last}{}", patience.as_secs(), self.log_tail())
    }

    /// That the socket which answers is ours and not that of a stranger who came first.
    pub(crate) fn check_listener(&self, address: SocketAddr) -> anyhow::Result<()> {
        let table = fs::read_to_string("/proc/net/tcp").context("cannot read /proc/net/tcp")?;
        let inodes = listeners(&table, address);
        let ours = self.tree().into_iter().any(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| inodes.contains(&to))
        });
        if !ours {
            bail!("somebody else listens on {address}{}", self.log_tail());
        }
        Ok(())
    }

    /// The process and its descendants, as they are now.
    pub(crate) fn tree(&self) -> Vec<u32> {
        let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Some((pid, parent_of(pid)?)))
            .collect();
        let mut tree = vec![self.child.id()];
        let mut looked_at = 0;
        while let Some(&above) = tree.get(looked_at) {
            looked_at += 1;
            tree.extend(parents.iter().filter(|(_, up)| *up == above).map(|(pid, _)| *pid));
        }
        tree
    }

    /// The last lines of its log, each on a line of its own below a sentence.
    pub(crate) fn log_tail(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let from = lines.len().saturating_sub(8);
        lines.iter().skip(from).map(|line| format!("\n    {line}")).collect()
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn stop_gently(mut self, patience: Duration) -> anyhow::Result<()> {
        signal("-TERM", self.child.id().to_string());
        let began = Instant::now();
        while began.elapsed() < patience {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        bail!("it does not end when asked to{}", self.log_tail())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let tree = self.tree();
        let mut running = running();
        kill_group(self.child.id());
        running.remove(&self.child.id());
        // waited for under the lock: afterwards the id may be somebody else's
        drop(self.child.wait());
        drop(running);
        // what it had started is init's now, and would take from the next one's time
        let began = Instant::now();
        while tree.iter().any(|pid| is_running(*pid)) && began.elapsed() < GONE_WITHIN {
            thread::park_timeout(Duration::from_millis(1));
        }
    }
}

const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Ends every peer that runs, from a signal handler's thread; none can be started afterwards.
pub(crate) fn stop_all() {
    let running = running();
    running.iter().for_each(|pid| kill_group(*pid));
    // whoever would start one more waits until this program ends
    std::mem::forget(running);
}

/// A folder for one peer, new in each start.
pub(crate) fn own_folder(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let name = name.replace(' ', "-");
    for number in 1..10_000 {
        let folder = dir.join(format!("{name}-{number}"));
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder.canonicalize()?),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", folder.display()));
            }
        }
    }
    bail!("too many folders in {}", dir.display())
}

/// An address that nobody uses now: the bind is exclusive, without `SO_REUSEPORT`.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

pub(crate) fn we_are_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}

/// What stands before the command; each of these becomes the next, so that the id stays ours.
fn wrapping(core: Option<usize>) -> Vec<OsString> {
    let mut words: Vec<String> = Vec::new();
    let (soft, hard) = open_file_limits();
    if soft < OPEN_FILES {
        words.extend(["prlimit".into(), format!("--nofile={}:", hard.min(OPEN_FILES))]);
    }
    // when we are killed ourselves, it ends too
    words.extend(["setpriv", "--pdeathsig", "TERM"].map(Into::into));
    if let Some(core) = core {
        words.extend(["taskset".into(), "-c".into(), core.to_string()]);
    }
    words.into_iter().map(Into::into).collect()
}

/// 4,000 streams are 8,000 descriptors in a proxy; some reserve more than they use.
const OPEN_FILES: u64 = 65_536;

fn open_file_limits() -> (u64, u64) {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut words = line.unwrap_or_default().split_whitespace();
    let mut next = || words.next().map_or(0, |word| word.parse().unwrap_or(u64::MAX));
    (next(), next())
}

/// One request on a connection of its own; gives the answer's status once it is complete.
fn ask(address: SocketAddr, tls: Option<&Arc<ClientConfig>>, request: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let answer = match tls {
        None => exchange(stream, request)?,
        Some(config) => {
            let session = tls::session(config).map_err(io::Error::other)?;
            exchange(StreamOwned::new(session, &mut stream), request)?
        }
    };
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    status.ok_or_else(|| io::Error::other("no HTTP answer"))
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match stream.take(1 << 20).read_to_end(&mut answer) {
        // without the farewell of TLS
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        Ok(_) | Err(_) => Ok(answer),
    }
}

/// The sockets that listen on an address, as /proc/PID/fd names them.
fn listeners(table: &str, address: SocketAddr) -> HashSet<PathBuf> {
    const LISTENING: &str = "0A";
    let port = format!(":{:04X}", address.port());
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter_map(|row| match row.as_slice() {
        [_, local, _, LISTENING, _, _, _, _, _, inode, ..] if local.ends_with(&port) => {
            Some(PathBuf::from(format!("socket:[{inode}]")))
        }
        _ => None,
    })
    .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.split_whitespace().nth(1)?.parse().ok()
}

fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| !fields.trim_start().starts_with(['Z', 'X']))
}

/// The fields from the state on.
fn stat(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name in brackets may hold anything, brackets and blanks too
    text.rsplit_once(')').map(|(_, fields)| fields.to_owned())
}

/// The groups that were started and not yet ended.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_group(pid: u32) {
    signal("-KILL", format!("-{pid}"));
}

fn signal(which: &str, whom: impl AsRef<OsStr>) {
    let mut command = Command::new("kill");
    command.args([which, "--"]).arg(whom).stdin(Stdio::null());
    drop(command.stdout(Stdio::null()).stderr(Stdio::null()).status());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &str) -> Process {
        let mut launch = Launch::of(&[], Path::new("sh"));
        launch.args(["-c", script]);
        let log = std::env::temp_dir().join(format!("bench-{log}-{}", std::process::id()));
        Process::start(&launch, None, &log).unwrap()
    }

    #[test]
    fn a_peer_that_ends_at_once_is_a_sentence_with_the_end_of_its_log() {
        let mut process = shell("echo no such option >&2; exit 3", "ends");
        let address = free_address().unwrap();
        let patience = Duration::from_secs(60);
        let said = process.wait_for_answer(address, None, "", patience).unwrap_err().to_string();
        fs::remove_file(&process.log).unwrap();
        assert!(said.contains("it ended at once (exit status: 3)"), "{said}");
        assert!(said.ends_with("no such option"), "{said}");
    }

    #[test]
    fn what_a_dropped_peer_has_started_ends_too() {
        let process = shell("sleep 300 & sleep 300 & echo >&2; wait", "drops");
        while fs::metadata(&process.log).unwrap().len() == 0 {
            thread::park_timeout(Duration::from_millis(1));
        }
        let tree = process.tree();
        fs::remove_file(&process.log).unwrap();
        assert_eq!(tree.len(), 3);
        drop(process);
        assert!(!tree.into_iter().any(is_running));
    }

    #[test]
    fn a_stranger_on_the_port_is_noticed() {
        let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let process = shell("sleep 300", "stranger");
        let said = process.check_listener(stranger.local_addr().unwrap()).unwrap_err();
        fs::remove_file(&process.log).unwrap();
        assert!(said.to_string().starts_with("somebody else listens"), "{said}");
    }

    #[test]
    fn the_sockets_of_a_port_are_found_in_the_kernels_table() {
        let table = "sl local rem st\n\
            0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 4242 1\n\
            1: 0100007F:1F90 0100007F:0050 01 0:0 0:0 0 0 0 4243 1\n\
            2: 0100007F:1F91 00000000:0000 0A 0:0 0:0 0 0 0 4244 1\n";
        let found = listeners(table, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(found, HashSet::from([PathBuf::from("socket:[4242]")]));
    }
}
