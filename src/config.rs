//! The file, the environment and the flags: text in, a checked [`Config`] out, all problems at once.
//!
//! A flag stands over a variable, a variable over the file, the file over the default. Past this
//! room nothing means "default" any more.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;

mod apply;
mod file;
mod keys;
mod roles;
mod values;

pub use keys::{KEYS, Key, markdown_reference};
pub use roles::{Pattern, Role, Roles};
pub use values::BackendUrl;

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "portcullis.toml";
const VARIABLE: &str = "PORTCULLIS_";
const CONFIG_VARIABLE: &str = "PORTCULLIS_CONFIG";

/// A configuration that was read without a problem.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: Vec<SocketAddr>,
    pub backend: Backend,
    pub htpasswd: Option<PathBuf>,
    pub api_keys: Option<PathBuf>,
    pub authorized_keys: Option<PathBuf>,
    pub path_keys: bool,
    pub weak_hashes: WeakHashes,
    pub credential_headers: Vec<HeaderName>,
    /// 0 is off.
    pub failed_attempts_per_minute: u32,
    pub roles: Roles,
    pub extra_endpoints: Vec<ExtraEndpoint>,
    pub public_url: Option<String>,
    pub help_url: Option<String>,
    pub contact: Option<String>,
    pub trusted_proxies: Vec<IpNet>,
    /// Bytes of one request body; blobs have no limit.
    pub max_body: u64,
    /// Bytes of all request bodies at once.
    pub max_body_memory: u64,
    pub log_format: LogFormat,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
    pub cors: Cors,
    pub timeouts: Timeouts,
}

/// The model server behind the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub name: String,
    pub url: BackendUrl,
    pub key_file: Option<PathBuf>,
    pub preserve_host: bool,
}

/// What to do with password hashes that are quick to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeakHashes {
    Warn,
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// An endpoint outside the table that users may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraEndpoint {
    pub method: Method,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    pub origins: Origins,
}

/// The sites whose pages may read answers; never with a browser's own credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    Any,
    Listed(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    pub first_byte: Duration,
    pub idle: Duration,
    pub header: Duration,
    pub keep_alive: Duration,
    pub body_grace: Duration,
}

impl Config {
    /// The defaults, with no credential source.
    #[must_use]
    pub fn builtin() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 8880))],
            backend: Backend {
                name: "ollama".to_owned(),
                url: BackendUrl { host: "127.0.0.1".to_owned(), port: 11434 },
                key_file: None,
                preserve_host: false,
            },
            htpasswd: None,
            api_keys: None,
            authorized_keys: None,
            path_keys: false,
            weak_hashes: WeakHashes::Warn,
            credential_headers: vec![
                HeaderName::from_static("x-api-key"),
                HeaderName::from_static("api-key"),
            ],
            failed_attempts_per_minute: 10,
            roles: Roles::new(Role::Operator, Vec::new()),
            extra_endpoints: Vec::new(),
            public_url: None,
            help_url: None,
            contact: None,
            trusted_proxies: Vec::new(),
            max_body: 100 << 20,
            max_body_memory: 1 << 30,
            log_format: LogFormat::Text,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            cors: Cors { origins: Origins::Any },
            timeouts: Timeouts {
                connect: Duration::from_secs(10),
                first_byte: Duration::from_secs(600),
                idle: Duration::from_secs(300),
                header: Duration::from_secs(10),
                keep_alive: Duration::from_secs(75),
                body_grace: Duration::from_secs(20),
            },
        }
    }

    fn has_credentials(&self) -> bool {
        self.htpasswd.is_some() || self.api_keys.is_some() || self.authorized_keys.is_some()
    }
}

/// Exactly what was typed: flags by their key, and the whole environment.
#[derive(Debug, Clone, Default)]
pub struct Given {
    pub file: Option<PathBuf>,
    pub flags: Vec<(&'static str, String)>,
    pub env: Vec<(String, String)>,
}

/// What it means.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Problem>,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
}

/// One thing that is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `portcullis.toml:12`, `--listen` or `PORTCULLIS_LISTEN`.
    pub place: String,
    pub says: String,
}

/// Everything that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.0.iter().map(|problem| problem.place.len()).max().unwrap_or(0);
        for (number, Problem { place, says }) in self.0.iter().enumerate() {
            let end = if number + 1 == self.0.len() { "" } else { "\n" };
            write!(f, "{place:<widest$}  {says}{end}")?;
        }
        Ok(())
    }
}

/// Reads everything that was given; a gate without any credential source is a problem.
///
/// # Errors
/// All problems at once.
pub fn load(given: &Given) -> Result<Loaded, Problems> {
    let (loaded, mut problems) = read(given);
    if !loaded.config.has_credentials() {
        problems.push(Problem {
            place: "configuration".to_owned(),
            says:
                "no login is configured, and an open gate is not served: name a users' file with \
                   --htpasswd FILE, keys with --api-keys FILE, or signing keys with \
                   --authorized-keys FILE (`portcullis try` makes its own, for a look)"
                    .to_owned(),
        });
    }
    if problems.is_empty() { Ok(loaded) } else { Err(Problems(problems)) }
}

/// The same for commands that do not serve.
///
/// # Errors
/// All problems at once.
pub fn load_without_credentials(given: &Given) -> Result<Loaded, Problems> {
    let (loaded, problems) = read(given);
    if problems.is_empty() { Ok(loaded) } else { Err(Problems(problems)) }
}

/// A value as it was typed, and where.
#[derive(Debug, Clone)]
struct Typed {
    key: &'static str,
    value: Value,
    place: String,
    /// What relative paths are relative to.
    folder: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    Switch(bool),
    Number(i64),
    List(Vec<String>),
}

fn read(given: &Given) -> (Loaded, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let path = config_file(given);
    let mut typed = Vec::new();
    if let Some(path) = &path {
        typed = file::read(path, &mut problems);
    }
    typed.extend(variables(&given.env, &mut warnings));
    typed.extend(given.flags.iter().filter_map(|(name, text)| {
        let key = keys::find(name)?;
        let place = format!("--{}", name.replace('_', "-"));
        Some(Typed { key: key.name, value: text_as(key, text), place, folder: PathBuf::new() })
    }));
    let mut config = Config::builtin();
    apply::all(&mut config, &typed, &mut problems);
    (Loaded { config, warnings, file: path }, problems)
}

fn config_file(given: &Given) -> Option<PathBuf> {
    let variable = given.env.iter().find(|(name, _)| name == CONFIG_VARIABLE);
    let named = given.file.clone().or_else(|| variable.map(|(_, path)| PathBuf::from(path)));
    named.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()))
}

/// Kubernetes sets `PORTCULLIS_PORT` and the like for a service of that name, so a variable that is
/// not known is only told when it looks like a slip.
fn variables(env: &[(String, String)], warnings: &mut Vec<Problem>) -> Vec<Typed> {
    let ours = env.iter().filter(|(name, _)| name.starts_with(VARIABLE) && name != CONFIG_VARIABLE);
    ours.filter_map(|(name, text)| {
        let key_name = name.strip_prefix(VARIABLE)?.to_ascii_lowercase();
        let Some(key) = keys::find(&key_name).filter(|key| key.has_variable()) else {
            if let Some(near) = keys::nearest(&key_name, 2).filter(|key| key.has_variable()) {
                let says = format!("not known; did you mean {}?", near.variable());
                warnings.push(Problem { place: name.clone(), says });
            }
            return None;
        };
        let value = text_as(key, text);
        Some(Typed { key: key.name, value, place: name.clone(), folder: PathBuf::new() })
    })
    .collect()
}

/// Flags and variables are text; lists in them are separated by commas.
fn text_as(key: &Key, text: &str) -> Value {
    match key.kind {
        keys::Kind::Text => Value::Text(text.to_owned()),
        keys::Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::List(items.map(str::to_owned).collect())
        }
        keys::Kind::Switch => match text {
            "true" => Value::Switch(true),
            "false" => Value::Switch(false),
            _ => Value::Text(text.to_owned()),
        },
        keys::Kind::Number => match text.parse() {
            Ok(number) => Value::Number(number),
            Err(_) => Value::Text(text.to_owned()),
        },
    }
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

#[cfg(test)]
mod tests;
