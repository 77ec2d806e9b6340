//! One backend: what is known of it, and the kept-alive connections to it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::connection::Connection;
use super::health::{Finding, Fitness, Health};
use super::known::Known;
use super::line::Line;
use super::listed::{Listed, Loaded};
use super::lists::Lists;
use super::own::{LISTED_FOR, LOADED_FOR};
use super::queue::{Intake, Setup};
use super::turn::bound;
use super::{BackendFault, reach};
use crate::config::{self, AtOnce, BackendKind, BackendUrl, Weight};
use crate::socket::Socket;
use crate::tls::BackendTls;

/// Model servers in Python and Node close a kept connection after 5 s; a request sent into that
/// moment is lost.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// A connection that answered so short a time ago has not ended by an idle timer of the other side;
/// then the runtime's word is enough, and a call to the kernel is spared.
const JUST_USED: Duration = Duration::from_millis(1);
/// A name may lead to another machine by now; one that is never idle would stay where it was.
const OLDEST: Duration = Duration::from_secs(60);
/// Idle connections beyond this are closed; more than this many at once are rare in front of a GPU.
const MOST_IDLE: usize = 1024;

/// A backend as one configuration has it; what lives on over a reload is shared with the one before.
#[derive(Debug)]
pub struct Backend {
    name: Arc<str>,
    url: BackendUrl,
    /// For an https address.
    tls: Option<BackendTls>,
    kind: BackendKind,
    weight: Weight,
    parallel: AtOnce,
    models_at_once: AtOnce,
    ask_usage: bool,
    manage: bool,
    tags: Vec<String>,
    /// Its own `Host`: a loopback Ollama answers 403 to any other [ollama server/routes.go
    /// allowedHostsMiddleware].
    host: HeaderValue,
    preserve_host: bool,
    /// Names this gate, so that a question which comes back to it is known.
    via: HeaderValue,
    /// `Authorization`, in place of the caller's.
    key: Option<HeaderValue>,
    setup: Setup,
    pub(super) live: Arc<Live>,
}

/// What a reload that does not change the backend's name and address must not forget.
#[derive(Debug)]
pub(super) struct Live {
    serial: u64,
    idle: Mutex<Vec<(Box<Connection>, Instant)>>,
    /// The last attempt to connect did not fail; of several backends, it is not out.
    up: AtomicBool,
    health: Mutex<Health>,
    probed: Mutex<Option<Instant>>,
    /// Takes no new requests.
    drained: AtomicBool,
    busy: AtomicUsize,
    /// Models in memory, and models that it has.
    pub(super) loaded: Known<Loaded>,
    pub(super) listed: Known<Listed>,
    pub(super) lists: Lists,
    looking: Mutex<JoinSet<()>>,
    /// That something of it cannot be had has been told.
    pub(super) told: AtomicBool,
    line: Arc<Line>,
    /// In the line.
    place: usize,
}

/// A request that shows how its backend is.
#[derive(Debug)]
pub(super) struct Watch {
    began: Instant,
    is_trial: bool,
}

impl Live {
    fn new(line: &Arc<Line>, place: usize) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            idle: Mutex::default(),
            up: AtomicBool::new(true),
            health: Mutex::default(),
            probed: Mutex::default(),
            drained: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            loaded: Known::for_about(LOADED_FOR),
            listed: Known::for_about(LISTED_FOR),
            looking: Mutex::default(),
            told: AtomicBool::new(false),
            lists: Lists::default(),
            place,
            line: Arc::clone(line),
        }
    }

    /// The line is to know whose requests it takes.
    fn tell(&self) {
        self.line.with(|queue, now| {
            // Looked at in here, so that who looks last is who tells last.
            let intake = match self.drained.load(Ordering::Relaxed) {
                true => Intake::Nothing,
                false if self.health().is_in() => Intake::All,
                false => Intake::LastResort,
            };
            queue.set_intake(self.place, intake, now);
        });
    }

    /// The line is to know what is in memory.
    pub(super) fn tell_loaded(&self, loaded: &Loaded) {
        let names: Vec<_> = loaded.iter().map(|(name, _)| name.to_string().into()).collect();
        self.line.with(|queue, now| queue.set_loaded(self.place, &names, now));
    }

    pub(super) fn looking(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was not probed for so long; then it counts as probed now.
    pub(super) fn probe_is_due(&self, every: Duration, now: Instant) -> bool {
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = probed.is_none_or(|last| now.saturating_duration_since(last) >= every);
        if is_due {
            *probed = Some(now);
        }
        is_due
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.line.with(|queue, now| queue.remove(self.place, now));
    }
}

impl Backend {
    /// The one before lives on in it where name and address are the same.
    ///
    /// # Errors
    /// Where a file that it names cannot be used.
    pub(super) fn new(
        written: &config::Backend,
        before: &[Arc<Self>],
        (line, via): (&Arc<Line>, &HeaderValue),
    ) -> Result<Self, BackendFault> {
        let tls = match &written.url {
            BackendUrl::Https { host, .. } => {
                Some(BackendTls::new(host, written.ca_file.as_deref())?)
            }
            BackendUrl::Http { .. } | BackendUrl::Unix(_) => None,
        };
        let host = written.url.authority();
        let host = HeaderValue::from_str(&host).map_err(|_| BackendFault::Host(host))?;
        let key = written.key_file.as_ref().map(key).transpose()?;
        let same = before.iter().find(|before| before.is_at(written, tls.as_ref()));
        let setup = Setup {
            weight: written.weight.thousandths(),
            parallel: bound(written.parallel()),
            models_at_once: bound(written.models_at_once()),
        };
        let live = match same {
            Some(before) => Arc::clone(&before.live),
            None => {
                let place = line.with(|queue, _| queue.add(&setup));
                Arc::new(Live::new(line, place.ok_or(BackendFault::Many)?))
            }
        };
        Ok(Self {
            name: same.map_or_else(|| written.name.as_str().into(), |it| Arc::clone(&it.name)),
            url: written.url.clone(),
            tls,
            kind: written.kind,
            weight: written.weight,
            parallel: written.parallel(),
            models_at_once: written.models_at_once(),
            ask_usage: written.ask_usage,
            manage: written.manage,
            tags: written.tags.clone(),
            host,
            preserve_host: written.preserve_host,
            via: via.clone(),
            key,
            setup,
            live,
        })
    }

    /// From now on it serves as it is configured here. Where it is alone nothing tells whether it is
    /// well, so it counts as well.
    pub(super) fn serve(&self, is_alone: bool) {
        let live = &self.live;
        live.line.with(|queue, now| queue.change(live.place, &self.setup, now));
        if is_alone {
            *live.health() = Health::default();
        }
        live.tell();
    }

    /// A server that the gate itself has to do with, without a place in the configuration.
    #[must_use]
    pub fn plain(name: &str, url: BackendUrl, tls: Option<BackendTls>) -> Self {
        let line = Arc::new(Line::new(super::BOUNDS));
        let setup = Setup { weight: 1000, parallel: Some(usize::MAX), models_at_once: None };
        // In a line of its own there is room.
        let place = line.with(|queue, _| queue.add(&setup)).unwrap_or_default();
        // Of what no header can hold the server will not know its name.
        let host = HeaderValue::from_str(&url.authority());
        Self {
            name: name.into(),
            url,
            tls,
            kind: BackendKind::Ollama,
            weight: Weight::default(),
            parallel: AtOnce::Unbounded,
            models_at_once: AtOnce::Unbounded,
            ask_usage: false,
            manage: false,
            tags: Vec::new(),
            host: host.unwrap_or(HeaderValue::from_static("localhost")),
            preserve_host: false,
            via: HeaderValue::from_static("1.1 portcullis"),
            key: None,
            live: Arc::new(Live::new(&line, place)),
            setup,
        }
    }

    fn is_at(&self, written: &config::Backend, tls: Option<&BackendTls>) -> bool {
        let same_tls = match (tls, self.tls.as_ref()) {
            (Some(tls), Some(before)) => tls.is_like(before),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.url == written.url && *self.name == *written.name && same_tls
    }

    #[must_use]
    #[inline]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Another for each backend that was ever set up, and the same over a reload that keeps it.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.live.serial
    }

    #[must_use]
    pub fn url(&self) -> &BackendUrl {
        &self.url
    }

    #[must_use]
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    #[must_use]
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// Which of the line's backends it is.
    pub(super) fn place(&self) -> usize {
        self.live.place
    }

    /// As far as is known it works.
    pub(super) fn is_in(&self) -> bool {
        self.live.health().is_in()
    }

    /// Requests of one model at once.
    #[must_use]
    pub fn parallel(&self) -> AtOnce {
        self.parallel
    }

    #[must_use]
    pub fn models_at_once(&self) -> AtOnce {
        self.models_at_once
    }

    /// The operations in whose streams it is asked to tell usage. Ollama's chat loses nothing by it.
    #[must_use]
    pub fn tells_usage_in(&self) -> &'static [&'static str] {
        match (self.ask_usage, self.kind) {
            (true, _) => &["chat_completions", "completions"],
            (false, BackendKind::Ollama) => &["chat_completions"],
            (false, BackendKind::OpenAi) => &[],
        }
    }

    /// Management calls that name no backend go there.
    #[must_use]
    pub fn manages(&self) -> bool {
        self.manage
    }

    #[must_use]
    pub fn tags(&self) -> &[String] {
        &self.tags
    }

    /// Its own `Host`.
    #[must_use]
    #[inline]
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Whether it is told the caller's `Host` instead.
    #[must_use]
    #[inline]
    pub fn preserves_host(&self) -> bool {
        self.preserve_host
    }

    /// How questions of the gate's own name it.
    pub(super) fn via(&self) -> &HeaderValue {
        &self.via
    }

    /// `Authorization` for it, if it wants one.
    #[must_use]
    #[inline]
    pub fn key(&self) -> Option<&HeaderValue> {
        self.key.as_ref()
    }

    /// Whether the last attempt to connect succeeded; true before the first.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.live.up.load(Ordering::Relaxed)
    }

    /// Whether requests go to it, and how many beside others.
    pub(super) fn fitness(&self, now: Instant) -> Fitness {
        self.live.health().fitness(now)
    }

    pub(super) fn wants_probe(&self, now: Instant) -> bool {
        self.live.health().wants_probe(now)
    }

    /// What was found out about it, aside from requests.
    pub(super) fn find(&self, finding: Finding) {
        self.judge(finding, |health, now, chance| health.find(finding, now, chance));
    }

    /// A request begins there, which is watched.
    pub(super) fn watch(&self) -> Watch {
        let began = Instant::now();
        Watch { began, is_trial: self.live.health().begin(began) }
    }

    /// The same for the one request that shows how it is; `None` where another one is on its way.
    pub(super) fn try_out(&self) -> Option<Watch> {
        let began = Instant::now();
        let begins = self.live.health().begin_trial(began);
        begins.then_some(Watch { began, is_trial: true })
    }

    /// What became of a request that was watched.
    pub(super) fn unwatch(&self, watch: &Watch, finding: Option<Finding>) {
        match finding {
            Some(finding) => self.judge(finding, |health, now, chance| {
                health.end(finding, watch.began, now, chance);
            }),
            None => self.live.health().leave(watch.is_trial, Instant::now()),
        }
    }

    fn judge(&self, finding: Finding, find: impl FnOnce(&mut Health, Instant, u32)) {
        // Without chance several gates come at once, which is no fault.
        let chance = if finding.is_good() { 0 } else { getrandom::u32().unwrap_or(0) };
        let (was_in, is_in, is_up) = {
            let mut health = self.live.health();
            let was_in = health.is_in();
            find(&mut health, Instant::now(), chance);
            (was_in, health.is_in(), health.is_up())
        };
        self.live.up.store(is_up, Ordering::Relaxed);
        if was_in == is_in {
            if !is_in && !finding.is_good() {
                self.live.line.with(|queue, _| queue.turn_away(self.live.place));
            }
            return;
        }
        let backend = &*self.name;
        match is_in {
            true => tracing::info!(backend, "is back, and gets its share again little by little"),
            false => tracing::warn!(backend, "gets no more requests for a while: {finding}"),
        }
        self.live.tell();
    }

    pub(super) fn set_up(&self, up: bool) {
        self.live.up.store(up, Ordering::Relaxed);
    }

    /// Whether it takes no new requests, for maintenance.
    #[must_use]
    #[inline]
    pub fn is_drained(&self) -> bool {
        self.live.drained.load(Ordering::Relaxed)
    }

    /// Whether there is no request that it would not get.
    #[inline]
    pub(super) fn takes_anything(&self) -> bool {
        self.kind == BackendKind::Ollama && !self.is_drained()
    }

    /// For maintenance: from now on it gets no new requests, or gets them again. What runs ends by itself.
    pub fn drain(&self, drained: bool) {
        self.live.drained.store(drained, Ordering::Relaxed);
        self.live.tell();
    }

    /// Requests that it has.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.live.busy.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn begin(&self) {
        self.live.busy.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn end(&self) {
        self.live.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// Closes idle connections that nobody should use any more.
    pub fn tend(&self, now: Instant) {
        let old: Vec<_> = {
            let mut idle = self.idle();
            let (fresh, old) =
                idle.drain(..).partition(|(_, since)| now.duration_since(*since) < KEEP_IDLE);
            *idle = fresh;
            old
        };
        drop(old);
    }

    #[inline]
    pub(super) fn take_idle(&self, now: Instant) -> Option<Box<Connection>> {
        loop {
            let (connection, since) = self.idle().pop()?;
            let is_silent = connection.is_silent(now < since + JUST_USED);
            if is_silent && now < since + KEEP_IDLE {
                return Some(connection);
            }
        }
    }

    #[inline]
    pub(super) fn keep(&self, connection: Box<Connection>, now: Instant) {
        if !connection.is_reusable() || connection.is_older(OLDEST, now) {
            return;
        }
        let mut idle = self.idle();
        if idle.len() < MOST_IDLE {
            idle.push((connection, now));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Box<Connection>, Instant)>> {
        self.live.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection, for whoever asks in the gate's own name; a caller's request needs a
    /// [`Lease`](super::Lease).
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(&self) -> io::Result<Box<Connection>> {
        let socket = match (&self.url, &self.tls) {
            (BackendUrl::Unix(path), _) => Socket::from(UnixStream::connect(path).await?),
            (BackendUrl::Http { host, port }, _) => Socket::from(reach::reach(host, *port).await?),
            (BackendUrl::Https { host, port }, Some(tls)) => {
                let socket = reach::reach(host, *port).await?;
                // Boxed, so that requests to other backends stay small.
                Box::pin(tls.connect(socket)).await?
            }
            (BackendUrl::Https { .. }, None) => return Err(io::ErrorKind::Unsupported.into()),
        };
        socket.set_nodelay()?;
        Ok(Box::new(Connection::over(socket)))
    }
}

fn key(path: &PathBuf) -> Result<HeaderValue, BackendFault> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| BackendFault::Key { path: path.clone(), source })?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
        .map_err(|_| BackendFault::KeyText { path: path.clone() })?;
    value.set_sensitive(true);
    Ok(value)
}
