//! The proxies that are measured: each one's settings, start, first answer, processes and end.
//!
//! A peer is stopped when its [`Peer`] is dropped; [`stop_all`] does the same for a signal handler.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

pub(crate) mod credentials;
mod find;
mod process;

pub(crate) use process::stop_all;

use crate::tls::{self, Identity, Speaks};
use process::{Launch, Process};

/// The model that every chat names; the one LiteLLM's configuration knows.
pub(crate) const MODEL: &str = "gemma3:1b";

/// A proxy that can be started in front of a backend.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) id: Id,
    /// As the tables and `--peers` have it.
    pub(crate) name: &'static str,
    /// What it checks, for the reader of a table.
    pub(crate) login: &'static str,
    /// Whether the backend's answers come through unchanged, byte for byte.
    pub(crate) exact: bool,
}

/// Which proxy it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Id {
    Portcullis,
    NginxTuned,
    NginxBasic,
    NginxBearer,
    Haproxy,
    CaddyDistro,
    CaddyNewest,
    Litellm,
    Direct,
}

const fn kind(id: Id, name: &'static str, login: &'static str) -> Kind {
    Kind { id, name, login, exact: !matches!(id, Id::Litellm) }
}

/// Every peer, ours first.
pub(crate) static KINDS: [Kind; 9] = [
    kind(Id::Portcullis, "portcullis", "keys and passwords, roles, one line per request"),
    kind(Id::NginxTuned, "nginx tuned", "none, no log"),
    kind(Id::NginxBasic, "nginx guide basic", "passwords, as the guide has it"),
    kind(Id::NginxBearer, "nginx guide bearer", "keys by Lua, as the guide has it"),
    kind(Id::Haproxy, "haproxy", "none, no log"),
    kind(Id::CaddyDistro, "caddy distro", "none, no log"),
    kind(Id::CaddyNewest, "caddy newest", "none, no log"),
    kind(Id::Litellm, "litellm", "one master key, no database"),
    kind(Id::Direct, "direct", "no proxy at all"),
];

impl Kind {
    /// The peer of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// The peer of that identity.
    pub(crate) fn of(id: Id) -> &'static Self {
        let [first, ..] = &KINDS;
        KINDS.iter().find(|kind| kind.id == id).unwrap_or(first)
    }

    /// Its program on this machine, or how to get it. The backend itself needs none.
    pub(crate) fn find(&self, portcullis: &Path) -> Result<PathBuf, String> {
        find::program(self.id, portcullis)
    }

    /// What the program says about its version, in a few words.
    pub(crate) fn version(&self, program: &Path) -> String {
        find::version(self.id, program)
    }
}

/// How the caller of a measure logs in, where a peer offers both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    Key,
    Password,
}

/// How the one user's password is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    /// What `htpasswd` writes when not told otherwise: MD5, a thousand rounds.
    Apr1,
    /// `htpasswd -B -C 10`: about 50 ms of a core for each check.
    Bcrypt10,
}

/// What a peer is started with.
#[derive(Debug, Clone)]
pub(crate) struct Settings<'a> {
    pub(crate) backend: SocketAddr,
    /// Where the peer gets a folder of its own; an existing folder.
    pub(crate) dir: &'a Path,
    /// The gate's program.
    pub(crate) portcullis: &'a Path,
    /// The core it runs on; none leaves that to the system.
    pub(crate) core: Option<usize>,
    /// Lines in the key file; the caller's key is the last one.
    pub(crate) keys: usize,
    /// Keys in the store that `extra` names; where there are any, the caller's key is their last.
    pub(crate) managed: usize,
    /// Requests that the gate's backend may have at once. The other proxies send on whatever comes.
    pub(crate) parallel: usize,
    pub(crate) login: Login,
    pub(crate) hash: Hash,
    /// Shown to callers; none is plain HTTP.
    pub(crate) tls: Option<&'a Identity>,
    /// Further lines of the gate's configuration, such as `failed_attempts_per_minute = 0`.
    pub(crate) extra: &'a [&'a str],
    /// A command to run the program under, such as valgrind with its options.
    pub(crate) under: &'a [String],
}

impl<'a> Settings<'a> {
    /// Two keys, a Bearer login, core 0.
    pub(crate) fn new(backend: SocketAddr, dir: &'a Path, portcullis: &'a Path) -> Self {
        Self {
            backend,
            dir,
            portcullis,
            core: Some(0),
            keys: credentials::IN_FILE,
            managed: 0,
            parallel: 10_000,
            login: Login::Key,
            hash: Hash::Apr1,
            tls: None,
            extra: &[],
            under: &[],
        }
    }
}

/// A running proxy; dropping it ends all its processes.
pub(crate) struct Peer {
    pub(crate) kind: &'static Kind,
    /// The kind's name at first; a measure that runs one kind twice gives others.
    pub(crate) name: String,
    pub(crate) version: String,
    /// Its program; empty for the backend itself.
    pub(crate) program: PathBuf,
    pub(crate) addr: SocketAddr,
    /// The value of the header; empty where the peer has no login.
    pub(crate) authorization: String,
    /// Whether answers come through byte for byte.
    pub(crate) exact: bool,
    /// From the start of its process to the end of its first answer.
    pub(crate) started_in: Duration,
    process: Option<Process>,
}

impl Peer {
    /// Starts the proxy and waits for its first answer.
    ///
    /// The backend must already answer `GET /api/version`. Call it on a thread that lives longer
    /// than the peer: the kernel ends the peer together with that thread.
    ///
    /// # Errors
    /// The program is missing, ends at once, or does not answer in time; with the end of its log.
    pub(crate) fn start(kind: &'static Kind, settings: &Settings<'_>) -> anyhow::Result<Self> {
        let program = match kind.find(settings.portcullis) {
            Ok(program) => program,
            Err(how) => bail!("{} is missing: {how}", kind.name),
        };
        let authorization = authorization(kind.id, settings);
        let mut peer = Self {
            kind,
            name: kind.name.to_owned(),
            version: kind.version(&program),
            program,
            addr: settings.backend,
            authorization,
            exact: kind.exact,
            started_in: Duration::ZERO,
            process: None,
        };
        if kind.id != Id::Direct {
            peer.launch(settings).with_context(|| format!("{} does not start", kind.name))?;
        }
        Ok(peer)
    }

    /// All its processes, now: the one that was started and everything below it.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.process.as_ref().map(Process::tree).unwrap_or_default()
    }

    /// The last lines that it wrote about itself.
    pub(crate) fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }

    /// Ends it in its own orderly way, and waits until it has ended.
    ///
    /// # Errors
    /// It is still there after that time.
    pub(crate) fn stop_gently(mut self, patience: Duration) -> anyhow::Result<()> {
        match self.process.take() {
            Some(process) => process.stop_gently(patience),
            None => Ok(()),
        }
    }

    fn launch(&mut self, settings: &Settings<'_>) -> anyhow::Result<()> {
        let dir = process::own_folder(settings.dir, self.kind.name)?;
        let wish = Wish { id: self.kind.id, program: &self.program, dir: &dir, settings };
        credentials::write(&dir, settings.keys, settings.hash)?;
        let mut tls = None;
        if let Some(identity) = settings.tls {
            identity.write(&dir)?;
            tls = Some(identity.callers(Speaks::Http1)?);
        }
        self.addr = process::free_address()?;
        let launch = wish.launch(self.addr)?;
        let (first, patience) = (self.first_request(), wish.patience());
        let began = Instant::now();
        let mut process = Process::start(&launch, settings.core, &dir.join("log"))?;
        process.wait_for_answer(self.addr, tls.as_ref(), &first, patience)?;
        self.started_in = began.elapsed();
        process.check_listener(self.addr)?;
        self.process = Some(process);
        Ok(())
    }

    fn first_request(&self) -> String {
        let path = match self.kind.id {
            Id::Litellm => "/health/liveliness",
            Id::Portcullis
            | Id::NginxTuned
            | Id::NginxBasic
            | Id::NginxBearer
            | Id::Haproxy
            | Id::CaddyDistro
            | Id::CaddyNewest
            | Id::Direct => "/api/version",
        };
        let login = match self.authorization.as_str() {
            "" => String::new(),
            value => format!("Authorization: {value}\r\n"),
        };
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{login}Connection: close\r\n\r\n", self.addr)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {}", self.name, self.version, self.addr)
    }
}

fn authorization(id: Id, settings: &Settings<'_>) -> String {
    match (id, settings.login) {
        (Id::Portcullis, Login::Key) | (Id::NginxBearer, _) => {
            credentials::bearer(settings.keys + settings.managed)
        }
        (Id::Portcullis, Login::Password) | (Id::NginxBasic, _) => credentials::basic(),
        (Id::Litellm, _) => format!("Bearer {}", credentials::MASTER_KEY),
        (
            Id::NginxTuned | Id::Haproxy | Id::CaddyDistro | Id::CaddyNewest | Id::Direct,
            Login::Key | Login::Password,
        ) => String::new(),
    }
}

/// Which program shall run, and where its files go.
struct Wish<'a> {
    id: Id,
    program: &'a Path,
    dir: &'a Path,
    settings: &'a Settings<'a>,
}

impl Wish<'_> {
    fn patience(&self) -> Duration {
        // LiteLLM imports for many seconds on one core; a million keys take a while under valgrind
        let slow = self.id == Id::Litellm || !self.settings.under.is_empty();
        Duration::from_secs(if slow { 180 } else { 30 })
    }

    fn launch(&self, listen: SocketAddr) -> anyhow::Result<Launch> {
        let mut launch = Launch::of(self.settings.under, self.program);
        match self.id {
            Id::Portcullis => self.portcullis(&mut launch, listen)?,
            Id::NginxTuned => {
                let text = self.either(NGINX_TUNED, NGINX_TLS);
                self.nginx(&mut launch, listen, text)?;
            }
            Id::NginxBasic => self.nginx(&mut launch, listen, NGINX_BASIC)?,
            Id::NginxBearer => self.nginx(&mut launch, listen, NGINX_BEARER)?,
            Id::Haproxy => {
                let file = self.config("haproxy.cfg", self.either(HAPROXY, HAPROXY_TLS), listen)?;
                launch.args(["-db", "-f"]).path(&file);
            }
            Id::CaddyDistro | Id::CaddyNewest => {
                let file = self.config("Caddyfile", self.either(CADDY, CADDY_TLS), listen)?;
                launch.args(["run", "--adapter", "caddyfile", "--config"]).path(&file);
                for name in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
                    launch.env(name, self.dir);
                }
            }
            Id::Litellm => self.litellm(&mut launch, listen)?,
            Id::Direct => bail!("the backend itself is not started here"),
        }
        Ok(launch)
    }

    fn either(&self, plain: &'static str, tls: &'static str) -> &'static str {
        if self.settings.tls.is_some() { tls } else { plain }
    }

    fn portcullis(&self, launch: &mut Launch, listen: SocketAddr) -> anyhow::Result<()> {
        let config = self.dir.join("portcullis.toml");
        let mut lines = self.settings.extra.join("\n");
        lines.push('\n');
        if self.settings.tls.is_some() {
            lines.push_str(&format!("tls_cert = \"{}\"\n", tls::CERTIFICATE));
            lines.push_str(&format!("tls_key = \"{}\"\n", tls::KEY));
        }
        lines.push_str(&format!(
            "[[backend]]\nurl = \"http://{}\"\nparallel = {}\nmodels_at_once = 10000\n",
            self.settings.backend, self.settings.parallel
        ));
        fs::write(&config, lines)?;
        launch.args(["serve", "--config"]).path(&config);
        launch.args(["--listen", &listen.to_string()]);
        launch.args(["--api-keys"]).path(&self.dir.join(credentials::KEYS));
        launch.args(["--htpasswd"]).path(&self.dir.join(credentials::USERS));
        launch.args(["--authorized-keys"]).path(&self.dir.join(credentials::SIGNERS));
        Ok(())
    }

    fn nginx(&self, launch: &mut Launch, listen: SocketAddr, text: &str) -> anyhow::Result<()> {
        let file = self.config("nginx.conf", text, listen)?;
        let mut globals = format!("daemon off; pid {}/nginx.pid;", self.dir.display());
        if process::we_are_root() {
            // otherwise the worker becomes a user who cannot read this folder
            globals.push_str(" user root;");
        }
        if self.id == Id::NginxBearer {
            for module in find::lua_modules(self.program).unwrap_or_default() {
                globals.push_str(&format!(" load_module {};", module.display()));
            }
        }
        launch.args(["-e", "stderr", "-p"]).path(self.dir).args(["-c"]).path(&file);
        launch.args(["-g", &globals]);
        Ok(())
    }

    fn litellm(&self, launch: &mut Launch, listen: SocketAddr) -> anyhow::Result<()> {
        let file = self.config("litellm.yaml", LITELLM, listen)?;
        launch.args(["--config"]).path(&file).args(["--host", "127.0.0.1", "--num_workers", "1"]);
        launch.args(["--port", &listen.port().to_string()]);
        launch.args(["--telemetry", "False"]);
        launch.env("HOME", self.dir);
        // it would fetch its price list over the network at every start
        launch.env("LITELLM_LOCAL_MODEL_COST_MAP", Path::new("True"));
        Ok(())
    }

    fn config(&self, name: &str, text: &str, listen: SocketAddr) -> anyhow::Result<PathBuf> {
        let file = self.dir.join(name);
        let filled = text
            .replace("{listen}", &listen.to_string())
            .replace("{port}", &listen.port().to_string())
            .replace("{backend}", &self.settings.backend.to_string())
            .replace("{dir}", &self.dir.display().to_string())
            .replace("{master_key}", credentials::MASTER_KEY)
            .replace("{model}", MODEL);
        fs::write(&file, filled).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

const NGINX_TUNED: &str = include_str!("../peers/nginx-tuned.conf");
const NGINX_TLS: &str = include_str!("../peers/nginx-tls.conf");
const NGINX_BASIC: &str = include_str!("../peers/nginx-guide-basic.conf");
const NGINX_BEARER: &str = include_str!("../peers/nginx-guide-bearer.conf");
const HAPROXY: &str = include_str!("../peers/haproxy.cfg");
const HAPROXY_TLS: &str = include_str!("../peers/haproxy-tls.cfg");
const CADDY: &str = include_str!("../peers/Caddyfile");
const CADDY_TLS: &str = include_str!("../peers/Caddyfile-tls");
const LITELLM: &str = include_str!("../peers/litellm.yaml");
