//! The backends, which of them a request goes to, and a [`Lease`] on it.

use std::hash::RandomState;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::HeaderValue;

use crate::access::Permit;
use crate::call::Call;
use crate::config::{Aliases, Config, ModelName, NamedModel};
use crate::reject::{Allowed, Lack, ModelDenied, Reject};
use crate::tls::BackendTlsError;

mod backend;
mod catalogue;
mod choice;
mod connection;
mod health;
mod known;
pub mod line;
mod listed;
mod lists;
mod managed;
mod own;
mod plain;
pub mod queue;
mod reach;
mod seen;
mod turn;

pub use backend::Backend;
pub use choice::Wanted;
pub use connection::{Connection, Failed, Outbound};
pub use health::Finding;
pub use lists::{Entry, Key, List, Told};
pub use seen::Load;
pub use turn::{Choice, Wait};

use backend::Watch;
use choice::Nobody;
use line::{Held, Line};
use lists::{Change, Made};
use queue::Bounds;

/// How much may wait: of one identity, and in all.
const BOUNDS: Bounds =
    Bounds { of_one: 1000, in_all: 10_000, bytes_of_one: 256 << 20, models_of_one: 16 };

/// Why a backend of a configuration that reads well cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendFault {
    #[error("could not read the backend's key in {}", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the backend's key in {} is not one line of printable text", path.display())]
    KeyText { path: PathBuf },
    #[error("the backend's name {0:?} cannot be sent as a Host")]
    Host(String),
    #[error("requests to backends that were taken out still run; try again when they have ended")]
    Many,
    #[error(transparent)]
    Tls(#[from] BackendTlsError),
}

/// All backends of one configuration.
#[derive(Debug)]
pub struct Pool {
    /// In the order of the file; one at least.
    backends: Vec<Arc<Backend>>,
    aliases: Aliases,
    connect_timeout: Duration,
    queue_timeout: Duration,
    line: Arc<Line>,
    made: Made,
    /// For the digests of conversations; the same over a reload, so that they stay where they are.
    digests: RandomState,
}

/// The right to ask a backend; dropping it frees the place. Only [`Pool::choose`] makes one.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    connect_timeout: Duration,
    /// Of what a backend works for.
    held: Option<Held>,
    /// Among what the backend is busy with.
    is_counted: bool,
    /// Of several backends each request shows how its own is.
    watch: Option<Watch>,
    is_watched: bool,
    /// Of a request after which the backend may have other models.
    change: Option<Change>,
}

impl Pool {
    /// Of the one before it keeps each backend that has not changed, with its connections. `via`
    /// names this gate.
    ///
    /// # Errors
    /// See [`BackendFault`].
    pub fn new(
        config: &Config,
        via: &HeaderValue,
        before: Option<&Self>,
    ) -> Result<Self, BackendFault> {
        let line = before.map_or_else(|| Arc::new(Line::new(BOUNDS)), |it| Arc::clone(&it.line));
        let known = before.map_or_else(Default::default, |before| before.backends.as_slice());
        let backends = config.backends.iter();
        let backends = backends.map(|it| Backend::new(it, known, (&line, via)).map(Arc::new));
        Ok(Self {
            backends: backends.collect::<Result<_, _>>()?,
            aliases: Aliases::new(&config.aliases),
            connect_timeout: config.timeouts.connect,
            queue_timeout: config.queue_timeout,
            line,
            made: Made::default(),
            digests: before.map_or_else(RandomState::new, |before| before.digests.clone()),
        })
    }

    /// From now on this one serves, and no other.
    pub fn serve(&self) {
        for backend in &self.backends {
            backend.serve(self.backends.len() == 1);
        }
    }

    /// In the order of the file.
    #[must_use]
    #[inline]
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    #[must_use]
    pub fn backend(&self, name: &str) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|backend| **backend.name() == *name)
    }

    #[must_use]
    #[inline]
    pub fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// Who runs and who waits.
    #[must_use]
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Who may have it, the best first. Where that is not known, those that could tell are asked first.
    async fn candidates(&self, wanted: &Wanted<'_>) -> Result<Vec<Arc<Backend>>, Nobody> {
        let now = Instant::now();
        let known = choice::candidates(&self.backends, wanted, now);
        let is_unclear = match &known {
            Ok(candidates) => candidates.iter().any(|it| it.is_unheard(now)),
            Err(Nobody::HasIt) => true,
            Err(Nobody::Speaks | Nobody::IsThere) => false,
        };
        if !is_unclear || self.takes_everything() {
            return known;
        }
        self.look_again(now).await;
        choice::candidates(&self.backends, wanted, now)
    }

    /// Whether it makes no difference which backend has what.
    fn takes_everything(&self) -> bool {
        self.backends.len() == 1 && !self.aliases.have_choices()
    }

    async fn look_again(&self, now: Instant) {
        let looks = self.backends.iter().filter(|it| it.is_up()).map(|it| it.look_again(now));
        join_all(looks).await;
    }

    /// What an alias stands for at this moment: the first that a backend has which takes requests, or
    /// else the first that any has. Of what no backend told the first is as good as any.
    pub async fn stands_for<'a>(&self, models: &'a [NamedModel]) -> Option<&'a NamedModel> {
        let [first, _, ..] = models else { return models.first() };
        let now = Instant::now();
        let is_told = |it: &Arc<Backend>| it.has(&first.name).is_some();
        if !self.backends.iter().filter(|it| it.is_up()).all(is_told) {
            self.look_again(now).await;
        }
        let had = |model: &&NamedModel, takes: fn(&Backend) -> bool| {
            self.backends.iter().any(|it| takes(it) && it.has(&model.name) == Some(true))
        };
        let takes = |it: &Backend| it.is_up() && !it.is_drained();
        models
            .iter()
            .find(|model| had(model, takes))
            .or_else(|| models.iter().find(|model| had(model, |_| true)))
            .or(Some(first))
    }

    /// To be called about once a second.
    pub fn tend(&self, now: Instant) {
        for backend in &self.backends {
            backend.tend(now);
            // Which models share the memory is asked while somebody waits for it.
            if !self.takes_everything() || self.line.with(|queue, _| queue.queued() > 0) {
                backend.look(now, self.backends.len() > 1);
            }
        }
        self.line.with(|queue, now| queue.tend(now));
    }

    /// The context size of this model as it is in memory; the least, where several backends have it so.
    pub async fn loaded_context(&self, model: &ModelName) -> Option<u32> {
        if let [only] = self.backends.as_slice() {
            return only.loaded_context(model).await;
        }
        let may_have = |it: &&Arc<Backend>| it.is_up() && it.has(model) != Some(false);
        let asked = self.backends.iter().filter(may_have).map(|it| it.loaded_context(model));
        join_all(asked).await.into_iter().flatten().min()
    }

    /// Whether any backend has this as the local name of a model that runs elsewhere.
    pub async fn runs_elsewhere(&self, model: &ModelName) -> bool {
        if let [only] = self.backends.as_slice() {
            return only.runs_elsewhere(model).await;
        }
        let told = || self.backends.iter().filter_map(|it| it.is_stub(model));
        if told().next().is_none() {
            Box::pin(self.look_again(Instant::now())).await;
        }
        told().any(|is_stub| is_stub)
    }
}

fn refusal(nobody: Nobody, permit: &Permit, call: &Call<'_>) -> Reject {
    match (nobody, call.model()) {
        (Nobody::IsThere, _) => Reject::NoBackend("all that could are in maintenance".into()),
        (Nobody::Speaks, None) => Reject::UnknownEndpoint,
        (Nobody::Speaks | Nobody::HasIt, model) => {
            let (model, stands_for) = call.as_written(&model.unwrap_or_default());
            Reject::UnknownModel(Box::new(ModelDenied {
                operation: call.asked.operation(),
                model,
                stands_for,
                who: permit.who().name().to_string(),
                lack: Lack::Backend,
                allowed: Allowed::default(),
            }))
        }
    }
}

impl Lease {
    /// The first byte of the answer came.
    pub fn answers(&self) {
        if let Some(held) = &self.held {
            held.first_byte();
        }
    }

    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// A kept connection that is known to be open and silent; `None` if there is none.
    #[must_use]
    pub fn kept(&self, now: Instant) -> Option<Box<Connection>> {
        self.backend.take_idle(now)
    }

    /// # Errors
    /// [`Reject::NoBackend`] where no connection could be made in time, and [`Reject::Overloaded`]
    /// where we could not even try.
    pub async fn connect(&mut self) -> Result<Box<Connection>, Reject> {
        let connected = tokio::time::timeout(self.connect_timeout, self.backend.connect()).await;
        match connected {
            // Says nothing about the backend.
            Ok(Err(error)) if is_out_of_files(&error) => {
                return Err(Reject::Overloaded("no file is left for a connection to the backend"));
            }
            Ok(Ok(_)) => self.backend.set_up(true),
            Ok(Err(_)) | Err(_) => {
                self.backend.set_up(false);
                self.found(Finding::NoConnection);
            }
        }
        match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Reject::NoBackend(Box::new(error))),
            Err(late) => Err(Reject::NoBackend(Box::new(late))),
        }
    }

    /// Tells what became of the request, once.
    #[inline]
    pub fn found(&mut self, finding: Finding) {
        if let Some(watch) = self.watch.take() {
            self.backend.unwatch(&watch, Some(finding));
        }
    }

    /// The backend is done with the request, however long the caller takes for the answer.
    pub fn frees_its_slot(&mut self) {
        self.held = None;
    }

    /// The backend will have nothing to do with the request.
    pub fn leaves(&mut self) {
        self.held = None;
        if std::mem::take(&mut self.is_counted) {
            self.backend.end();
        }
    }

    /// Keeps a connection whose answer has been read whole.
    pub fn give_back(&self, connection: Box<Connection>, now: Instant) {
        if self.is_watched {
            self.backend.find(Finding::Whole);
        }
        self.backend.keep(connection, now);
    }

    /// The answer ended before its end, and it was not the caller's doing.
    pub fn broke_off(&self) {
        if self.is_watched {
            self.backend.find(Finding::BrokeOff);
        }
    }
}

/// Of ours, or of the whole system (errno(3); the same numbers everywhere).
fn is_out_of_files(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leaves();
        if let Some(watch) = self.watch.take() {
            self.backend.unwatch(&watch, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::call::Outgoing;

    #[tokio::test]
    async fn a_connection_that_is_never_idle_is_kept_for_a_minute() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let backend = Backend::plain("a", url, None);
        for (age, is_kept) in [(0, true), (55, true), (65, false)] {
            let answers = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                socket
            };
            let asks = async {
                let mut connection = backend.connect().await.unwrap();
                let head = b"GET / HTTP/1.1\r\n\r\n".to_vec();
                let mut request = Outbound::new(Method::GET, head, Outgoing::empty());
                connection.exchange(&mut request, Duration::from_secs(20)).await.unwrap();
                connection
            };
            let (_socket, connection) = tokio::join!(answers, asks);
            let now = Instant::now() + Duration::from_secs(age);
            backend.keep(connection, now);
            assert_eq!(backend.take_idle(now).is_some(), is_kept, "after {age} s");
        }
    }

    #[test]
    fn a_gate_without_files_does_not_blame_the_backend() {
        let folder = tempfile::tempdir().unwrap();
        let refused = std::os::unix::net::UnixStream::connect(folder.path().join("nothing"));
        assert!(!is_out_of_files(&refused.unwrap_err()));
        for number in [23, 24] {
            let error = io::Error::from_raw_os_error(number);
            assert!(is_out_of_files(&error), "{error}");
            assert!(error.to_string().contains("open files"), "{error}");
        }
    }
}
