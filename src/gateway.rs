//! THE PATH, one stage a line; the State snapshot; reload.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::Either;
use http::request::Parts;
use http::{HeaderValue, Response, header};
use jiff::Timestamp;

use crate::access;
use crate::admin::{FailedLogins, Flow};
use crate::api::{Asked, Target};
use crate::auth::{Identity, Memory};
use crate::call::{self, Call};
use crate::client_addr::{ClientAddr, PeerAddr};
use crate::config::Config;
use crate::forward::{self, Origin};
use crate::http1::Arrival;
use crate::incoming::Incoming;
use crate::limit::{Limits, Ticket};
use crate::meter::{Answer, Gathered, Promise};
use crate::pool::Lease;
use crate::record::{Log, Outcome, Record, RequestId, RequestIds};
use crate::reject::Reject;
use crate::store::{KeyRing, Ledger, LedgerSettings, Store, StoreError};
use crate::tls::ClientCertificate;

mod admission;
mod aliases;
mod asker;
mod cors;
mod desk;
mod early;
mod explain;
mod gauges;
mod lists;
mod loaded;
mod login;
mod me;
mod notices;
mod open;
mod redirect;
mod several;
mod state;
mod turn;

pub use admission::{holders, recall};
pub use explain::{Explained, Stage, explain};
pub use state::{State, StateError};

use asker::Asker;
use me::Looks;
use notices::Notices;
use several::Several;

const OUTDATED: &str = "the certificate that this connection began with is not taken any more";
/// A disk that is slow does not hold up the looks at files.
const STORE_PATIENCE: Duration = Duration::from_millis(100);
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// A caller's connection, as the requests over it need to know it.
#[derive(Debug, Clone)]
pub struct Link {
    pub peer: SocketAddr,
    /// A PROXY header said who that is.
    pub is_announced: bool,
    pub door: Door,
}

/// By which door a caller came.
#[derive(Debug, Clone)]
pub enum Door {
    Plain,
    /// Plain HTTP beside TLS: nobody is served, browsers are sent on.
    Redirect,
    /// To look after the gate, in plain HTTP.
    Admin,
    /// With the certificate that the caller showed.
    Tls(Option<ClientCertificate>),
}

impl Door {
    pub(crate) fn scheme(&self) -> &'static str {
        match self {
            Self::Plain | Self::Redirect | Self::Admin => "http",
            Self::Tls(_) => "https",
        }
    }

    /// The caller's certificate, if it still counts.
    ///
    /// # Errors
    /// 401 where a connection needs one, and it does not count any more.
    fn certificate(&self, state: &State) -> Result<Option<&ClientCertificate>, Reject> {
        match self {
            Self::Plain | Self::Redirect | Self::Admin | Self::Tls(None) => Ok(None),
            Self::Tls(Some(certificate)) if state.vouches_for(certificate) => Ok(Some(certificate)),
            Self::Tls(Some(_)) if state.tls().is_some_and(|tls| tls.needs_certificates()) => {
                Err(Reject::BadCredentials(OUTDATED, None))
            }
            Self::Tls(Some(_)) => Ok(None),
        }
    }

    /// A new connection would have to show another certificate, or none.
    fn is_outdated(&self, state: &State) -> bool {
        match self {
            Self::Plain | Self::Redirect | Self::Admin | Self::Tls(None) => false,
            Self::Tls(Some(certificate)) => !state.vouches_for(certificate),
        }
    }
}

/// Everything that lives as long as the process, and the one [`State`] that serves now.
#[derive(Debug)]
pub struct Gateway {
    state: RwLock<Arc<State>>,
    live: Live,
}

/// What a connection is held to.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Connections in all.
    pub most: usize,
    /// Connections from its peer; `None` is any number.
    pub from_it: Option<u32>,
    /// It begins with a PROXY header.
    pub is_announced: bool,
}

/// What a reload must not forget.
#[derive(Debug)]
struct Live {
    memory: Memory,
    limits: Limits,
    /// Since when they know what was used: of the day and the month.
    recalled: Mutex<Option<(Timestamp, Timestamp)>>,
    log: Log,
    ids: RequestIds,
    draining: AtomicBool,
    notices: Notices,
    failed_logins: FailedLogins,
    /// What was used; there is none without a folder for it.
    ledger: Option<Arc<Ledger>>,
    /// Into what callers used.
    looks: Looks,
    began: Instant,
    /// Of the first socket of the network that callers come in by, whoever opened it.
    port: OnceLock<u16>,
}

impl Live {
    /// What the ledger knows of this day and month counts against the limits of this state, and of keys
    /// that get theirs later.
    fn recall(&self, state: &Arc<State>) -> Result<(), StoreError> {
        let Some(keys) = self.memory.managed() else { return Ok(()) };
        let (limits, recalled) = (self.limits.clone(), Arc::clone(state));
        let bring_up = move |store: &Store| recall(&limits, store, &recalled);
        let wanted = Limits::wants_since(state.plan(), Timestamp::now());
        bring_up(keys.store())?;
        keys.recall_by(bring_up);
        *self.recalled() = Some(wanted);
        Ok(())
    }

    /// The same where another day has begun since, or the clock was set into one: what was used of it
    /// before the start would be forgotten.
    async fn recall_another_day(&self, state: &Arc<State>) {
        let wanted = Limits::wants_since(state.plan(), Timestamp::now());
        let Some(keys) = self.memory.managed().filter(|_| *self.recalled() != Some(wanted)) else {
            return;
        };
        let (limits, store) = (self.limits.clone(), Arc::clone(keys.store()));
        let state = Arc::clone(state);
        let look = tokio::task::spawn_blocking(move || recall(&limits, &store, &state));
        // A store that cannot be read is told of elsewhere, and asked again.
        if let Ok(Ok(())) = look.await {
            *self.recalled() = Some(wanted);
        }
    }

    fn recalled(&self) -> MutexGuard<'_, Option<(Timestamp, Timestamp)>> {
        self.recalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notice(&self, client: ClientAddr, link: &Link, who: &Identity) {
        if let Some(notice) = self.notices.met(client, link, who, || self.began.elapsed()) {
            notice.tell(client.ip());
        }
    }
}

impl Gateway {
    /// # Errors
    /// What [`State::new`] says, or a system without random numbers.
    pub fn new(config: Config, log: Log) -> Result<Self, StateError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut memory = Memory::new(cores)?;
        let mut ledger = None;
        if let Some(folder) = &config.data_dir {
            let store = Arc::new(Store::open(folder)?);
            ledger = Some(Arc::new(Ledger::start(&store, ledger_settings(&config))?));
            memory = memory.with_keys(Arc::new(KeyRing::open(store)?));
        }
        let live = Live {
            memory,
            limits: Limits::default(),
            recalled: Mutex::default(),
            log,
            ids: RequestIds::new()?,
            draining: AtomicBool::new(false),
            notices: Notices::default(),
            failed_logins: FailedLogins::default(),
            ledger,
            looks: Looks::default(),
            began: Instant::now(),
            port: OnceLock::new(),
        };
        let state = Arc::new(State::new(config, None)?);
        live.recall(&state)?;
        Ok(Self { state: RwLock::new(state), live })
    }

    /// Answers one request. It always answers, and always leaves exactly one line.
    // No `async fn`: it would have a room of its own for the request, and thousands wait.
    pub fn handle(
        self: &Arc<Self>,
        link: &Link,
        parts: Box<Parts>,
        body: Incoming,
        arrived: Arc<Arrival>,
    ) -> impl Future<Output = Response<Answer>> {
        let (state, request) = (self.state(), (parts, body, arrived));
        match state.config().heartbeat {
            Duration::ZERO => Either::Left(self.answer(state, link, request, None)),
            // Boxed, because it is off for most.
            every => Either::Right(Box::pin(early::answer(self, state, link, request, every))),
        }
    }

    async fn answer(
        &self,
        state: Arc<State>,
        link: &Link,
        (parts, body, arrived): Request,
        promise: Option<&Promise>,
    ) -> Response<Answer> {
        let id = self.live.ids.draw();
        let mut record = self.open(id, Arc::clone(&arrived));
        if self.in_flight() > 0 {
            // Whoever came at the same time is read first; then one look at a file is enough for all.
            tokio::task::yield_now().await;
        }
        let asker = Asker { state: &state, parts: &parts, door: &link.door };
        let visit = Visit { live: &self.live, state: &state, link, promise };
        let came = if let Door::Admin = link.door {
            // Boxed, because everybody else's request would have the room for it.
            held_off(Box::pin(visit.administer(&parts, body, &arrived, &mut record)).as_mut()).await
        } else {
            held_off(pin!(visit.serve(&parts, body, Arc::clone(&arrived), &mut record))).await
        };
        // Given away whole: looked at here, it would have its room for as long as a request waits.
        let (mut response, mut closes) = asker.respond(came, record);
        asker.finish(&mut response, id);
        closes |= link.door.is_outdated(&state);
        if closes || self.is_draining() || !arrived.is_complete() {
            // What is left of an unread body could be taken for the next request.
            response.headers_mut().insert(header::CONNECTION, CLOSE);
        }
        match response.body_mut().settle_if_over() {
            None => response,
            // Boxed, because it is seldom needed.
            Some(row) => Box::pin(Answer::behind(row, response)).await,
        }
    }

    /// Answers one request of a caller for whom there is no place: what needs no login, and to all
    /// else that there is none.
    pub fn turn_away(&self, link: &Link, parts: &Parts, arrived: Arc<Arrival>) -> Response<Answer> {
        let state = self.state();
        let id = self.live.ids.draw();
        let mut record = self.open(id, arrived);
        let asker = Asker { state: &state, parts, door: &link.door };
        let client = state.proxies().client_addr(PeerAddr::new(link.peer.ip()), &parts.headers);
        record.opened(client, &parts.method, parts.uri.path());
        let open = match link.door {
            Door::Admin => Ok(None),
            Door::Plain | Door::Redirect | Door::Tls(_) => call::strict(parts).and_then(|target| {
                open::to_anybody(&self.live, &state, parts, &target, &link.door)
            }),
        };
        let mut response = match open {
            Ok(Some(answer)) => own(answer, record),
            Ok(None) => asker.refuse(&Reject::Overloaded("all connections are taken"), record),
            Err(reject) => asker.refuse(&reject, record),
        };
        asker.finish(&mut response, id);
        response.headers_mut().insert(header::CONNECTION, CLOSE);
        response
    }

    /// What a connection from this peer is held to.
    #[must_use]
    pub fn terms_for(&self, peer: PeerAddr) -> Terms {
        let state = self.state();
        let config = state.config();
        let from_it = Some(config.max_connections_per_address)
            .filter(|most| *most > 0 && !state.proxies().is_shared(peer.ip()));
        Terms {
            most: usize::try_from(config.max_connections).unwrap_or(usize::MAX),
            from_it,
            is_announced: config.proxy_protocol_from.iter().any(|net| net.contains(&peer.ip())),
        }
    }

    /// Whether a connection by this door would have to begin anew: its certificate does not count any more.
    #[must_use]
    pub fn is_outdated(&self, door: &Door) -> bool {
        matches!(door, Door::Tls(Some(_))) && door.is_outdated(&self.state())
    }

    /// Tells by which port callers come in; it stays so while the process lives.
    pub fn listens_at(&self, port: u16) {
        // Said twice, the first is what a redirect names.
        let _ = self.live.port.set(port);
    }

    /// The snapshot that serves now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the state whole, or not at all; requests under way keep theirs.
    ///
    /// # Errors
    /// What [`State::new`] says; the old state serves on.
    pub fn reload(&self, config: Config) -> Result<(), StateError> {
        let next = Arc::new(State::new(config, Some(&self.state()))?);
        self.live.recall(&next)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        next.pool().serve();
        Ok(())
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.live.draining.load(Ordering::Relaxed)
    }

    /// From now on `/_portcullis/ready` says 503 and answers say `Connection: close`.
    pub fn drain(&self) {
        self.live.draining.store(true, Ordering::Relaxed);
    }

    /// Waits until what is to be written is written, for as long as `patience`. Blocks.
    pub fn flush(&self, patience: Duration) {
        self.live.log.flush(patience);
        if let Some(ledger) = &self.live.ledger
            && !ledger.flush(patience)
        {
            tracing::error!("usage of {} requests could not be written", ledger.waiting());
        }
    }

    #[must_use]
    pub fn log(&self) -> &Log {
        &self.live.log
    }

    /// Opens the record of what arrived on a connection but never became a request.
    #[must_use]
    pub fn record_of(&self, peer: SocketAddr) -> Box<Record> {
        let mut record = self.open(self.live.ids.draw(), Arc::new(Arrival::default()));
        record.line.client = Some(PeerAddr::new(peer.ip()).ip());
        record
    }

    fn open(&self, id: RequestId, arrived: Arc<Arrival>) -> Box<Record> {
        Box::new(Record::open(self.live.log.clone(), id, arrived))
    }

    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.live.limits.in_flight()
    }

    /// What survives a reload, for who else has to do with it than requests.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.live.memory
    }

    /// Keys that were made by `portcullis key`, where there is a folder for them.
    #[must_use]
    pub fn managed(&self) -> Option<&Arc<KeyRing>> {
        self.live.memory.managed()
    }

    /// What was used, where there is a folder for it.
    #[must_use]
    pub fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.live.ledger.as_ref()
    }

    /// To be called about once a second: files are looked at, old connections closed.
    pub async fn tend(&self) {
        let state = self.state();
        let now = Instant::now();
        state.auth().files().tend(now).await;
        if let Some(keys) = self.managed() {
            // What waits for the disk goes on by itself.
            let _ = tokio::time::timeout(STORE_PATIENCE, keys.tend(now)).await;
            for key in keys.found_revoked() {
                self.live.limits.end(key);
            }
            let noted = self.keep_failed_logins(now);
            let _ = tokio::time::timeout(STORE_PATIENCE, noted).await;
            self.live.recall_another_day(&state).await;
        }
        state.pool().tend(now);
        if let Some(tracer) = state.tracer() {
            tracer.tend();
        }
        if let Some(tls) = state.tls().cloned() {
            // When the look begins, not when it is asked for.
            let look = move || tls.tend(Instant::now(), SystemTime::now());
            // A look that panics leaves what was good last in place.
            let _ = tokio::task::spawn_blocking(look).await;
        }
    }
}

fn ledger_settings(config: &Config) -> LedgerSettings {
    let zone = config.time_zone.clone();
    LedgerSettings { mode: config.ledger, keep: config.keep, zone }
}

/// One request on its way.
struct Visit<'a> {
    live: &'a Live,
    state: &'a State,
    link: &'a Link,
    /// Where the answer may begin before it is there.
    promise: Option<&'a Promise>,
}

/// As it came in.
type Request = (Box<Parts>, Incoming, Arc<Arrival>);

/// What the path came to.
enum Served {
    Own(Response<Bytes>),
    Flowing(Response<Box<Flow>>),
    Passed(Box<Passed>),
    /// Of several backends.
    Gathered(Response<Box<Gathered>>),
}

/// A backend's answer, and what has to live as long as it.
struct Passed {
    answered: forward::Answered,
    ticket: Ticket,
    lease: Lease,
    /// The backend was asked for an event that the caller does not expect.
    sifts: bool,
}

impl Visit<'_> {
    /// THE PATH.
    async fn serve(
        &self,
        parts: &Parts,
        body: Incoming,
        arrived: Arc<Arrival>,
        record: &mut Record,
    ) -> Result<Served, Reject> {
        let Self { live, state, link: Link { peer, door, .. }, .. } = self;
        let client = state.proxies().client_addr(PeerAddr::new(peer.ip()), &parts.headers);
        record.opened(client, &parts.method, parts.uri.path());
        // In a block, and the login in a box: who waits has no room for what it was decided by.
        let mut call;
        let mut ticket = {
            let target = call::strict(parts)?;
            if let Some(answer) = self.to_anybody(parts, &target)? {
                return Ok(Served::Own(answer));
            }
            let who = Box::pin(self.login(parts, &target, client, record)).await?;
            if let Some(answer) = open::to_callers(live, state, &who, parts, &target).await? {
                return Ok(Served::Own(answer));
            }
            let asked = Asked::find(&parts.method, &target.path, state.extra_endpoints())?;
            record.asked(&asked);
            let entry = access::admit(state.rules(), who, &asked, state.provenance(parts))?;
            let entered = live.limits.enter(&entry, record.line.id.into(), asked.operation());
            call = Call::take(asked, parts, body, state.bounds(), arrived).await?;
            aliases::replace(state, &mut call).await?;
            record.names(call.model());
            let (chosen, ground) = loaded::ground(state, entry, &call).await?;
            let permit = access::authorize(chosen, &mut call, &ground)?;
            admission::ticket(self, (permit, entered), &call, record)?
        };
        if let Some(several) = Several::of(state, &ticket, &call) {
            let origin = Origin { client, scheme: door.scheme(), record };
            return Box::pin(several.served(state, (call, ticket), origin)).await;
        }
        let mut lease = turn::taken(self, (parts, &call), &ticket, record).await?;
        let sifts = call.ask_usage(lease.backend().tells_usage_in(), state.bounds());
        record.leaves_for(lease.backend().name());
        let narrows = ticket.permit().narrows(&call.asked);
        let from = &mut Origin { client, scheme: door.scheme(), record };
        let answered = forward::send(&mut call, &mut ticket, &mut lease, state.way(), from).await?;
        lists::served(Passed { answered, ticket, lease, sifts }, narrows, state.idle()).await
    }

    /// What is answered before anybody asks who it is.
    fn to_anybody(
        &self,
        parts: &Parts,
        target: &Target,
    ) -> Result<Option<Response<Bytes>>, Reject> {
        let Self { live, state, link: Link { door, .. }, .. } = self;
        state.forwarding().refuse_loop(&parts.headers)?;
        match door {
            Door::Redirect => redirect::answer(live, state, parts, target).map(Some),
            Door::Plain | Door::Tls(_) => open::to_anybody(live, state, parts, target, door),
            // Has a path of its own, where nobody is answered.
            Door::Admin => Err(Reject::UnknownEndpoint),
        }
    }

    fn met(&self, client: ClientAddr, who: &Identity, parts: &Parts, record: &mut Record) {
        record.met(who);
        // Strangers would decide what is kept of them.
        record.trace = self.state.tracer().and_then(|tracer| tracer.begin(&parts.headers));
        self.live.notice(client, self.link, who);
    }
}

fn own(answer: Response<Bytes>, mut record: Box<Record>) -> Response<Answer> {
    record.line.status = answer.status().as_u16();
    record.line.bytes_out = answer.body().len() as u64;
    record.end(Outcome::Done);
    answer.map(|data| Answer::Own { data, record: Some(record) })
}

/// A panic in one request is that request's 500; everybody else is served on.
async fn held_off<T>(
    mut path: Pin<&mut impl Future<Output = Result<T, Reject>>>,
) -> Result<T, Reject> {
    poll_fn(|cx| {
        let step = AssertUnwindSafe(|| path.as_mut().poll(cx));
        std::panic::catch_unwind(step).unwrap_or(Poll::Ready(Err(Reject::Internal)))
    })
    .await
}

#[cfg(test)]
mod tests;
