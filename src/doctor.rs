//! A look at the whole installation from outside: the backend, the gate, the machine, and who can go
//! round the gate. It only asks; it changes nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use crate::config::{BackendUrl, Config, ListenAddr};
use crate::gateway::State;

mod backend;
mod gate;
mod generation;
mod machine;
mod network;
mod probe;

pub use network::OwnAddress;

/// How bad it is; a [`Verdict::Fail`] is something that does not work, or that lets strangers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
    /// It could not be looked at; the finding says why.
    Skip,
}

impl Verdict {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub verdict: Verdict,
    pub what: &'static str,
    pub found: String,
    /// In plain words; nothing where nothing is to be done.
    pub advice: Option<String>,
}

impl Finding {
    #[must_use]
    pub fn new(verdict: Verdict, what: &'static str, found: impl Into<String>) -> Self {
        Self { verdict, what, found: found.into(), advice: None }
    }

    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, what, found)
    }

    fn warn(what: &'static str, found: impl Into<String>) -> Self {
        Self::new(Verdict::Warn, what, found)
    }

    fn fail(what: &'static str, found: impl Into<String>) -> Self {
        Self::new(Verdict::Fail, what, found)
    }

    fn skip(what: &'static str, found: impl Into<String>) -> Self {
        Self::new(Verdict::Skip, what, found)
    }

    #[must_use]
    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// Findings about one part of the installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub title: String,
    pub findings: Vec<Finding>,
}

/// What is looked at.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What would serve: its configuration, its way to the backend and the key for that.
    pub state: &'a State,
    /// Where the gate is to be asked; `None` where its address is not known before it starts.
    pub gate: Option<SocketAddr>,
    /// May be loaded if it is not; without one only a model that is loaded is asked.
    pub model: Option<&'a str>,
    /// Of this machine, without loopback.
    pub addresses: Vec<OwnAddress>,
    /// Of the container that we run in; `None` outside one.
    pub container_gateway: Option<IpAddr>,
    /// For an answer that needs no model.
    pub patience: Duration,
}

impl Subject<'_> {
    fn config(&self) -> &Config {
        self.state.config()
    }

    /// Where the gate listens for other machines, or for this one.
    fn listens(&self) -> impl Iterator<Item = SocketAddr> {
        self.config().listen.iter().filter_map(ListenAddr::tcp)
    }

    /// Hosts and ports of the backends, but for those on a socket's file.
    fn backends_at(&self) -> impl Iterator<Item = (&str, u16)> {
        self.config().backends.iter().filter_map(|backend| match &backend.url {
            BackendUrl::Http { host, port } | BackendUrl::Https { host, port } => {
                Some((host.as_str(), *port))
            }
            BackendUrl::Unix(_) => None,
        })
    }

    fn scheme(&self) -> &'static str {
        if self.state.tls().is_some() { "https" } else { "http" }
    }
}

/// Looks at everything, and hands over each section as soon as it is known.
pub async fn examine(subject: &Subject<'_>, mut tell: impl FnMut(Section)) {
    let title = |what: &str, at: &dyn fmt::Display| format!("{what}  {at}");
    let mut dates = Vec::new();
    for backend in subject.state.pool().backends() {
        let seen = backend::examine(subject, backend).await;
        let who = match subject.state.pool().backends().len() {
            1 => "backend".to_owned(),
            _ => format!("backend {}", backend.name()),
        };
        tell(Section { title: title(&who, backend.url()), findings: seen.findings });
        dates.push((format!("the {who}"), seen.date));
    }

    let gate = gate::examine(subject).await;
    let scheme = subject.scheme();
    let at =
        subject.gate.map_or_else(|| "not known".to_owned(), |gate| format!("{scheme}://{gate}"));
    tell(Section { title: title("gate", &at), findings: gate.findings });

    dates.push(("the gate".to_owned(), gate.date));
    let signs = subject.config().authorized_keys.is_some();
    let files = machine::open_files(subject.gate, subject.config().max_connections);
    let findings = vec![machine::clock(SystemTime::now(), &dates, signs), files];
    tell(Section { title: "this machine".to_owned(), findings });

    let findings = network::examine(subject).await;
    tell(Section { title: "who can reach what".to_owned(), findings });
}

/// What a part of the installation showed, and the `Date` of its answers.
#[derive(Debug, Default)]
struct Seen {
    findings: Vec<Finding>,
    date: Option<String>,
}
