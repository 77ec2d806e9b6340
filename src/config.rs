//! The file, the environment and the flags: text in, a checked [`Config`] out, all problems at once.
//!
//! A flag stands over a variable, a variable over the file, the file over the default. Past this
//! room nothing means "default" any more.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;
use jiff::tz::TimeZone;

mod backends;
mod file;
mod keys;
mod limits;
mod listen;
mod models;
mod policy;
mod names;
mod prices;
mod problems;
mod reference;
mod roles;
mod rules;
mod values;
mod written;
mod zone;

pub use backends::{
    Alias, Aliases, AtOnce, Backend, BackendKind, NamedBackends, NamedModel, Priority, Weight,
    is_link_local,
};
pub use keys::{Key, Kind, reference};
pub use limits::{Allowance, Limit, Measure, Per, no_measure};
pub use listen::ListenAddr;
pub use models::{BadModelName, ModelName, ModelPattern, Models};
pub use names::{fault_of_name, fault_of_note};
pub use policy::{Bounds, Change, Policy};
pub use prices::{Price, Prices, Spent};
pub use problems::{Problem, Problems};
pub use reference::markdown_reference;
pub use roles::{Pattern, Role, Roles};
pub use rules::{FileKey, Group, Opening, Rule, expiry, key_digest};
pub use values::{BackendUrl, BadUrl, duration};

use keys::{Named, VARIABLE};
use problems::{Found, Place, Source};
use written::{Form, Written};

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "portcullis.toml";
const CONFIG_VARIABLE: &str = "PORTCULLIS_CONFIG";

/// A configuration that was read without a problem.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: Vec<ListenAddr>,
    /// Plain HTTP beside TLS, which sends browsers there.
    pub redirect_listen: Option<ListenAddr>,
    /// Where the admin API listens.
    pub admin: Option<ListenAddr>,
    /// One at least.
    pub backends: Vec<Backend>,
    pub aliases: Vec<Alias>,
    pub htpasswd: Option<PathBuf>,
    pub api_keys: Option<PathBuf>,
    pub authorized_keys: Option<PathBuf>,
    /// What survives a restart is kept there.
    pub data_dir: Option<PathBuf>,
    pub path_keys: bool,
    pub weak_hashes: WeakHashes,
    pub credential_headers: Vec<HeaderName>,
    /// 0 is off.
    pub failed_attempts_per_minute: u32,
    pub roles: Roles,
    pub extra_endpoints: Vec<ExtraEndpoint>,
    /// A forbidden model looks like one that is not there.
    pub hide_models: bool,
    pub groups: Vec<Group>,
    /// The first that matches counts.
    pub rules: Vec<Rule>,
    pub keys: Vec<FileKey>,
    /// All that match count at once.
    pub limits: Vec<Limit>,
    /// What models cost.
    pub prices: Prices,
    pub public_url: Option<String>,
    pub help_url: Option<String>,
    pub contact: Option<String>,
    pub trusted_proxies: Vec<IpNet>,
    pub proxy_protocol_from: Vec<IpNet>,
    pub max_connections: u32,
    /// 0 is off.
    pub max_connections_per_address: u32,
    /// Bytes of one request body; blobs have no limit.
    pub max_body: u64,
    /// Bytes of all request bodies at once.
    pub max_body_memory: u64,
    pub h2c: bool,
    pub log_format: LogFormat,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
    /// How long a request waits for its turn.
    pub queue_timeout: Duration,
    /// How often a streamed answer that has not begun says that there will be one; 0 is off.
    pub heartbeat: Duration,
    /// Whose hours, days and months are counted.
    pub time_zone: TimeZone,
    pub ledger: LedgerMode,
    /// How long rows of usage are kept.
    pub keep: Duration,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls: Tls,
    pub cors: Cors,
    pub traces: Traces,
    pub timeouts: Timeouts,
}

/// Where spans of requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// `None` is nowhere.
    pub endpoint: Option<BackendUrl>,
    /// Of so many requests one is traced, unless its caller says.
    pub sample: u32,
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

/// What a row of usage has to survive when the last bytes of its answer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerMode {
    /// The end of the process, however it ends.
    Journal,
    /// The end of the machine too.
    Durable,
}

/// An endpoint outside the table that users may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraEndpoint {
    pub method: Method,
    pub path: String,
}

/// TLS for callers, beside the first pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    pub pairs: Vec<PairFiles>,
    pub client_ca: Option<PathBuf>,
    pub client_auth: ClientAuth,
    pub client_cert_login: bool,
}

/// A certificate's file and that of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Whether callers show certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuth {
    #[default]
    Off,
    /// Who shows one must show a good one.
    Optional,
    Required,
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
            listen: vec![ListenAddr::Tcp(SocketAddr::from(([0, 0, 0, 0], 8880)))],
            redirect_listen: None,
            admin: Some(ADMIN),
            backends: vec![Backend::builtin()],
            aliases: Vec::new(),
            htpasswd: None,
            api_keys: None,
            authorized_keys: None,
            data_dir: None,
            path_keys: false,
            weak_hashes: WeakHashes::Warn,
            credential_headers: vec![
                HeaderName::from_static("x-api-key"),
                HeaderName::from_static("api-key"),
            ],
            failed_attempts_per_minute: 10,
            roles: Roles::new(Role::Operator, Vec::new()),
            extra_endpoints: Vec::new(),
            hide_models: false,
            groups: Vec::new(),
            rules: Vec::new(),
            keys: Vec::new(),
            limits: Vec::new(),
            prices: Prices::default(),
            public_url: None,
            help_url: None,
            contact: None,
            trusted_proxies: Vec::new(),
            proxy_protocol_from: Vec::new(),
            max_connections: 10_000,
            max_connections_per_address: 0,
            max_body: 100 << 20,
            max_body_memory: 1 << 30,
            h2c: false,
            log_format: LogFormat::Text,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            queue_timeout: Duration::from_secs(300),
            heartbeat: Duration::ZERO,
            time_zone: TimeZone::UTC,
            ledger: LedgerMode::Journal,
            keep: Duration::from_secs(400 * 24 * 3600),
            tls_cert: None,
            tls_key: None,
            tls: Tls::default(),
            cors: Cors { origins: Origins::Any },
            traces: Traces { endpoint: None, sample: 1 },
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

    /// One backend there, and none beside it.
    pub fn set_upstream(&mut self, url: BackendUrl) {
        self.backends = vec![Backend { url, ..Backend::builtin() }];
    }

    /// Every certificate with its key; the first is for callers who name no host, or an unknown one.
    #[must_use]
    pub fn tls_pairs(&self) -> Vec<PairFiles> {
        let first = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(PairFiles { cert: cert.clone(), key: key.clone() }),
            (_, None) | (None, _) => None,
        };
        first.into_iter().chain(self.tls.pairs.iter().cloned()).collect()
    }

    /// Whether the name in a caller's certificate may be its login.
    #[must_use]
    pub fn certificates_log_in(&self) -> bool {
        self.tls.client_cert_login && self.tls.client_auth != ClientAuth::Off
    }

    /// Whether anybody can log in at all.
    ///
    /// # Errors
    /// Says what to do where no credential source is named.
    pub fn check_credentials(&self) -> Result<(), Problem> {
        let file =
            self.htpasswd.is_some() || self.api_keys.is_some() || self.authorized_keys.is_some();
        let keys = !self.keys.is_empty() || self.data_dir.is_some();
        if file || keys || self.certificates_log_in() {
            return Ok(());
        }
        Err(Problem {
            place: "configuration".to_owned(),
            says:
                "no login is configured, and an open gate is not served: name a users' file with \
                   --htpasswd FILE, keys with --api-keys FILE, signing keys with \
                   --authorized-keys FILE, or a folder for managed keys with --data-dir DIR \
                   (`portcullis try` makes its own, for a look)"
                    .to_owned(),
        })
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

/// Reads everything that was given; a gate without any credential source is a problem.
///
/// # Errors
/// All problems at once.
pub fn load(given: &Given) -> Result<Loaded, Problems> {
    let Reading { loaded, mut problems, halves, login_is_unclear } = read(given);
    problems.extend(halves);
    if let (Err(problem), false) = (loaded.config.check_credentials(), login_is_unclear) {
        problems.push(problem);
    }
    if problems.is_empty() { Ok(loaded) } else { Err(Problems(problems)) }
}

/// The same for commands that do not serve.
///
/// # Errors
/// All problems at once.
pub fn load_without_credentials(given: &Given) -> Result<Loaded, Problems> {
    let Reading { loaded, problems, .. } = read(given);
    if problems.is_empty() { Ok(loaded) } else { Err(Problems(problems)) }
}

/// Everything that could be read, and what could not.
struct Reading {
    loaded: Loaded,
    problems: Vec<Problem>,
    /// Keys that mean nothing without others that are not there.
    halves: Vec<Problem>,
    /// A login may have been meant by what could not be read.
    login_is_unclear: bool,
}

fn read(given: &Given) -> Reading {
    let file = config_file(given);
    let contents = file.as_deref().map(file::read).unwrap_or_default();
    let mut draft = Draft {
        config: Config::builtin(),
        written: contents.written,
        found: contents.found,
        halves: Found::default(),
        warnings: Found::default(),
        login_is_unclear: contents.is_partial,
    };
    for (number, (name, text)) in given.env.iter().enumerate() {
        draft.variable(number, name, text);
    }
    for (number, (name, text)) in given.flags.iter().enumerate() {
        draft.flag(number, name, text);
    }
    draft.apply();
    let Draft { config, found, halves, warnings, login_is_unclear, .. } = draft;
    let loaded = Loaded { config, warnings: warnings.sorted(), file };
    Reading { loaded, problems: found.sorted(), halves: halves.sorted(), login_is_unclear }
}

fn config_file(given: &Given) -> Option<PathBuf> {
    let variable =
        given.env.iter().find(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty());
    let named = given.file.clone().or_else(|| variable.map(|(_, path)| PathBuf::from(path)));
    // A link that leads nowhere is a mistake to tell, not a file that is not there.
    let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
    named.or_else(|| Some(Path::new(DEFAULT_FILE).to_owned()).filter(is_there))
}

/// A configuration in the making.
struct Draft {
    config: Config,
    written: Vec<Written>,
    found: Found,
    halves: Found,
    warnings: Found,
    login_is_unclear: bool,
}

impl Draft {
    /// Kubernetes sets `PORTCULLIS_PORT` and the like for a service of that name, so a variable
    /// that is not known is only told when it looks like a slip.
    fn variable(&mut self, number: usize, name: &str, text: &str) {
        let Some(key) = name.strip_prefix(VARIABLE) else { return };
        let place = Place::new(Source::Variable, number, name.to_owned());
        let key = key.to_ascii_lowercase();
        match Named::find(&key).filter(|known| known.variable().as_deref() == Some(name)) {
            Some(Named::Known(key)) => self.text(key, text, place),
            Some(Named::Later(_)) => self.found.add(place, file::not_yet("this variable")),
            None => {
                let near = Named::nearest(&key, 2).and_then(Named::variable);
                if let Some(near) = near.filter(|_| name != CONFIG_VARIABLE) {
                    let says = format!("is not known and has no effect; did you mean {near}?");
                    self.warnings.add(place, says);
                }
            }
        }
    }

    fn flag(&mut self, number: usize, name: &str, text: &str) {
        let place = Place::new(Source::Flag, number, format!("--{}", name.replace('_', "-")));
        match Named::find(name) {
            Some(Named::Known(key)) => self.text(key, text, place),
            Some(Named::Later(_)) => self.found.add(place, file::not_yet("this flag")),
            None => self.found.add(place, "there is no such flag"),
        }
    }

    fn text(&mut self, key: &'static Key, text: &str, place: Place) {
        match Form::of_text(text, key.kind, &place) {
            Ok(form) => self.written.push(Written { key, form, place, folder: PathBuf::new() }),
            Err(says) => self.found.add(place, says),
        }
    }

    /// In the order of the places: the last one stands, and of two that contradict each other the
    /// second is told.
    fn apply(&mut self) {
        let mut written = std::mem::take(&mut self.written);
        written.sort_by(|a, b| a.place.cmp(&b.place));
        let mut places = BTreeMap::new();
        for value in written {
            match (value.key.set)(&mut self.config, &value) {
                Ok(()) => {
                    places.insert(value.key.name, value.place);
                }
                Err(wrong) => {
                    self.login_is_unclear |= LOGINS.contains(&value.key.name);
                    self.found.extend(wrong.about(&value.name()));
                }
            }
        }
        self.body_fits(&places);
        self.proxies_are_few(&places);
        self.tls_is_whole(&places);
        self.rules_make_sense();
    }

    fn rules_make_sense(&mut self) {
        // Behind what is wrong with a line itself.
        let place = |shown| Place::new(Source::File, usize::MAX, shown);
        // Of what could not be read nobody knows what it would have said.
        let faults = |config| {
            [backends::faults(config), rules::faults(config), limits::faults(config)].concat()
        };
        let faults = if self.found.is_empty() { faults(&self.config) } else { Vec::new() };
        for (shown, says) in faults {
            self.found.add(place(shown), says);
        }
        let warnings = [rules::overlaps(&self.config), limits::pointless(&self.config)].concat();
        for (shown, says) in warnings {
            self.warnings.add(place(shown), says);
        }
    }

    fn body_fits(&mut self, places: &BTreeMap<&str, Place>) {
        let Config { max_body, max_body_memory, .. } = self.config;
        let place = places.get("max_body").max(places.get("max_body_memory"));
        if let Some(place) = place.filter(|_| max_body > max_body_memory) {
            let says = format!(
                "max_body ({max_body} bytes) is more than max_body_memory ({max_body_memory}), so \
                 that such a body would never be read; raise the one or lower the other"
            );
            self.found.add(place.clone(), says);
        }
    }

    fn proxies_are_few(&mut self, places: &BTreeMap<&str, Place>) {
        let everybody = self.config.trusted_proxies.iter().any(|net| net.prefix_len() == 0);
        if let Some(place) = places.get("trusted_proxies").filter(|_| everybody) {
            let says = "with this network every caller may claim to come from any address; name the \
                        proxies' own";
            self.warnings.extend(Found::one(place, says).about("trusted_proxies"));
        }
    }
}

impl Draft {
    /// Keys that mean nothing without each other.
    fn tls_is_whole(&mut self, places: &BTreeMap<&str, Place>) {
        let Config { tls_cert, tls_key, tls, redirect_listen, .. } = &self.config;
        let speaks = !self.config.tls_pairs().is_empty();
        let (asks, ca) = (tls.client_auth != ClientAuth::Off, tls.client_ca.is_some());
        let halves = [
            (
                "tls_cert",
                tls_cert.is_some() && tls_key.is_none(),
                "is one half; name its key as tls_key",
            ),
            (
                "tls_key",
                tls_key.is_some() && tls_cert.is_none(),
                "is one half; name its certificate as tls_cert",
            ),
            (
                "redirect_listen",
                redirect_listen.is_some() && !speaks,
                "leads to TLS, and there is none; name tls_cert and tls_key",
            ),
            (
                "tls.client_auth",
                asks && !ca,
                "needs client_ca, the authorities whose word is taken about callers' certificates",
            ),
            (
                "tls.client_auth",
                asks && !speaks,
                "needs TLS, and there is none; name tls_cert and tls_key",
            ),
            (
                "tls.client_ca",
                ca && !asks,
                "has no effect while client_auth is \"off\"; write \"optional\" or \"required\"",
            ),
            (
                "tls.client_cert_login",
                tls.client_cert_login && !asks,
                "needs client_auth to be \"optional\" or \"required\"",
            ),
            (
                "backend.ca_file",
                backends::has_stray_ca(&self.config),
                "is about an https:// address, and the backend's is not one",
            ),
        ];
        for (key, wrong, says) in halves {
            if let Some(place) = places.get(key).filter(|_| wrong) {
                self.halves.extend(Found::one(place, says).about(key));
            }
        }
        let any = |it: &ListenAddr| matches!(it, ListenAddr::Tcp(it) if it.port() == 0);
        let same =
            redirect_listen.as_ref().is_some_and(|it| !any(it) && self.config.listen.contains(it));
        if let Some(place) = places.get("redirect_listen").filter(|_| same) {
            let says = "is an address of `listen` too; plain HTTP needs a port of its own";
            self.halves.extend(Found::one(place, says).about("redirect_listen"));
        }
    }
}

/// Where the admin API listens unless told otherwise: not on the network.
pub const ADMIN: ListenAddr =
    ListenAddr::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8881));

/// The sources of credentials, of which a gate needs one.
const LOGINS: [&str; 4] = ["htpasswd", "api_keys", "authorized_keys", "data_dir"];

#[cfg(test)]
mod tests;
