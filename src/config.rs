//! STUB
use http::{HeaderName, Method};
use ipnet::IpNet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
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
    pub failed_attempts_per_minute: u32,
    pub roles: Roles,
    pub extra_endpoints: Vec<ExtraEndpoint>,
    pub public_url: Option<String>,
    pub help_url: Option<String>,
    pub contact: Option<String>,
    pub trusted_proxies: Vec<IpNet>,
    pub max_body: u64,
    pub max_body_memory: u64,
    pub log_format: LogFormat,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
    pub cors: Cors,
    pub timeouts: Timeouts,
}
#[derive(Debug, Clone)]
pub struct Backend {
    pub name: String,
    pub url: BackendUrl,
    pub key_file: Option<PathBuf>,
    pub preserve_host: bool,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendUrl {
    pub host: String,
    pub port: u16,
}
impl BackendUrl {
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraEndpoint {
    pub method: Method,
    pub path: String,
}
#[derive(Debug, Clone)]
pub struct Cors {
    pub origins: Origins,
}
#[derive(Debug, Clone)]
pub enum Origins {
    Any,
    Listed(Vec<String>),
}
#[derive(Debug, Clone)]
pub struct Timeouts {
    pub connect: Duration,
    pub first_byte: Duration,
    pub idle: Duration,
    pub header: Duration,
    pub keep_alive: Duration,
    pub body_grace: Duration,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    User,
    Operator,
    Admin,
}
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}
#[derive(Debug, Clone)]
pub struct Roles;
impl Roles {
    pub fn role_of(&self, _: &str) -> Role {
        Role::Operator
    }
}
impl std::str::FromStr for BackendUrl {
    type Err = std::io::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let s = s.trim_start_matches("http://");
        let (h, p) = s.rsplit_once(':').unwrap_or((s, "80"));
        Ok(Self { host: h.into(), port: p.parse().unwrap_or(80) })
    }
}
#[derive(Debug)]
pub struct Given {
    pub file: Option<PathBuf>,
    pub flags: Vec<(&'static str, String)>,
    pub env: Vec<(String, String)>,
}
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Problem>,
    pub file: Option<PathBuf>,
}
#[derive(Debug)]
pub struct Problem {
    pub place: String,
    pub says: String,
}
#[derive(Debug, thiserror::Error)]
#[error("problems")]
pub struct Problems;
pub fn load(given: &Given) -> Result<Loaded, Problems> {
    let mut config = Config::builtin();
    for (k, v) in &given.flags {
        match *k {
            "listen" => config.listen = v.split(',').map(|a| a.parse().unwrap()).collect(),
            "upstream" => config.backend.url = v.parse().unwrap(),
            "htpasswd" => config.htpasswd = Some(v.into()),
            "api_keys" => config.api_keys = Some(v.into()),
            "authorized_keys" => config.authorized_keys = Some(v.into()),
            _ => {}
        }
    }
    Ok(Loaded { config, warnings: vec![], file: None })
}
pub fn load_without_credentials(given: &Given) -> Result<Loaded, Problems> {
    load(given)
}
impl Config {
    pub fn builtin() -> Self {
        Self {
            listen: vec!["0.0.0.0:8880".parse().unwrap()],
            backend: Backend {
                name: "ollama".into(),
                url: "http://127.0.0.1:11434".parse().unwrap(),
                key_file: None,
                preserve_host: false,
            },
            htpasswd: None,
            api_keys: None,
            authorized_keys: None,
            path_keys: false,
            weak_hashes: WeakHashes::Warn,
            credential_headers: vec!["x-api-key".parse().unwrap(), "api-key".parse().unwrap()],
            failed_attempts_per_minute: 10,
            roles: Roles,
            extra_endpoints: vec![],
            public_url: None,
            help_url: None,
            contact: None,
            trusted_proxies: vec![],
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
}
#[derive(Debug, Clone)]
pub struct Pattern(String);
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl Roles {
    pub fn patterns_matching(&self, _: &str) -> Vec<(Pattern, Role)> {
        vec![]
    }
}
