//! One configuration in the form in which requests use it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use crate::access::{Provenance, Rules};
use crate::auth::{Auth, Files};
use crate::call::BodyBounds;
use crate::client_addr::{TrustedProxies, container_gateway};
use crate::config::{BackendUrl, Config, Cors, ExtraEndpoint, Traces};
use crate::forward::Forwarding;
use crate::limit::Plan;
use crate::pool::{BackendFault, Pool};
use crate::store::StoreError;
use crate::tls::{BackendTls, BackendTlsError, ClientCertificate, Tls, TlsError};
use crate::traces::Tracer;

const HELP: &str = include_str!("help.html");
const HELP_PATH: &str = "/_portcullis/help";

/// Why a configuration that reads well cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
    #[error(transparent)]
    Backend(#[from] BackendFault),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    BackendTls(#[from] BackendTlsError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A snapshot: a request sees one of these from its beginning to its end.
#[derive(Debug)]
pub struct State {
    config: Config,
    auth: Auth,
    rules: Rules,
    plan: Plan,
    tls: Option<Arc<Tls>>,
    proxies: TrustedProxies,
    bounds: BodyBounds,
    pool: Arc<Pool>,
    forwarding: Forwarding,
    tracer: Option<Arc<Tracer>>,
    /// The address is still to be put in.
    help_page: String,
}

impl State {
    /// What the state before knows of files, connections and memory in use is taken over where the
    /// configuration of it is the same.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn new(config: Config, before: Option<&Self>) -> Result<Self, StateError> {
        let files = Files::open(&config, before.map(|before| before.auth.files()));
        let tls = Tls::new(&config, before.and_then(|before| before.tls.as_deref()))?;
        let forwarding = forwarding(&config, before)?;
        let pool = Pool::new(&config, &forwarding.via, before.map(|before| &*before.pool))?;
        let (max, memory) = (config.max_body, config.max_body_memory);
        let grace = config.timeouts.body_grace;
        let bounds = match before.filter(|before| before.config.max_body_memory == memory) {
            Some(before) => before.bounds.with(max, grace),
            None => BodyBounds::new(max, memory, grace),
        };
        Ok(Self {
            auth: Auth::new(&config, files),
            rules: Rules::new(&config),
            plan: Plan::new(&config),
            tls: tls.map(Arc::new),
            proxies: TrustedProxies::new(config.trusted_proxies.clone(), container_gateway()),
            bounds,
            pool: Arc::new(pool),
            forwarding,
            tracer: tracer(&config.traces, before.and_then(|before| before.tracer.as_ref()))?,
            help_page: help_page(&config),
            config,
        })
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    #[must_use]
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The limits.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// `None` where the gate speaks plain HTTP.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// Whether the certificate of a kept connection is still taken; asked for each request.
    pub(super) fn vouches_for(&self, certificate: &ClientCertificate) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.vouches_for(certificate, SystemTime::now()))
    }

    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(super) fn proxies(&self) -> &TrustedProxies {
        &self.proxies
    }

    pub(super) fn bounds(&self) -> &BodyBounds {
        &self.bounds
    }

    pub(super) fn forwarding(&self) -> &Forwarding {
        &self.forwarding
    }

    /// The way out: which backends there are, and how requests leave for them.
    pub(super) fn way(&self) -> (&Pool, &Forwarding) {
        (&self.pool, &self.forwarding)
    }

    /// `None` where nothing is traced.
    pub(super) fn tracer(&self) -> Option<&Arc<Tracer>> {
        self.tracer.as_ref()
    }

    pub(super) fn cors(&self) -> &Cors {
        &self.config.cors
    }

    pub(super) fn extra_endpoints(&self) -> &[ExtraEndpoint] {
        &self.config.extra_endpoints
    }

    pub(super) fn path_keys(&self) -> bool {
        self.config.path_keys
    }

    pub(super) fn idle(&self) -> Duration {
        self.config.timeouts.idle
    }

    /// With the address under which people reach this gate, or else under which the caller did.
    pub(super) fn help_page(&self, scheme: &str, host: Option<&HeaderValue>) -> Bytes {
        self.help_page.replace("{{base}}", &escaped(&self.base(scheme, host))).into()
    }

    pub(super) fn provenance<'a>(&'a self, parts: &'a Parts) -> Provenance<'a> {
        Provenance { method: &parts.method, headers: &parts.headers, cors: &self.config.cors }
    }

    /// Where the stock CLI sends a person without a login.
    pub(super) fn signin_url(&self, scheme: &str, host: Option<&HeaderValue>) -> String {
        match &self.config.help_url {
            Some(help) => help.clone(),
            None => self.base(scheme, host) + HELP_PATH,
        }
    }

    fn base(&self, scheme: &str, host: Option<&HeaderValue>) -> String {
        if let Some(public) = &self.config.public_url {
            return public.trim_end_matches('/').to_owned();
        }
        let host = host.and_then(|host| host.to_str().ok());
        host.map_or_else(String::new, |host| format!("{scheme}://{host}"))
    }
}

/// The one before, with what waits in it, where nothing of it has changed.
fn tracer(
    traces: &Traces,
    before: Option<&Arc<Tracer>>,
) -> Result<Option<Arc<Tracer>>, BackendTlsError> {
    let Some(url) = &traces.endpoint else { return Ok(None) };
    if let Some(before) = before.filter(|before| before.is_for(url, traces.sample)) {
        return Ok(Some(Arc::clone(before)));
    }
    let tls = match url {
        BackendUrl::Https { host, .. } => Some(BackendTls::new(host, None)?),
        BackendUrl::Http { .. } | BackendUrl::Unix(_) => None,
    };
    Ok(Some(Arc::new(Tracer::new(url.clone(), tls, traces.sample))))
}

fn forwarding(config: &Config, before: Option<&State>) -> Result<Forwarding, StateError> {
    let via = match before {
        Some(before) => before.forwarding.via.clone(),
        None => new_via()?,
    };
    Ok(Forwarding { first_byte: config.timeouts.first_byte, key_headers: kept_back(config), via })
}

/// Headers that carry callers' keys, or say for whom a front end asks.
fn kept_back(config: &Config) -> Vec<HeaderName> {
    let users = config.rules.iter().filter_map(|rule| rule.acts_for.clone());
    config.credential_headers.iter().cloned().chain(users).collect()
}

/// Random, so that two gates in a row are two gates.
fn new_via() -> Result<HeaderValue, StateError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    let via = format!("1.1 portcullis-{:016x}", u64::from_ne_bytes(random));
    Ok(HeaderValue::from_str(&via).unwrap_or(HeaderValue::from_static("1.1 portcullis")))
}

fn help_page(config: &Config) -> String {
    let contact = config.contact.as_deref().unwrap_or("whoever runs this server");
    HELP.replace("{{contact}}", &escaped(contact))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
