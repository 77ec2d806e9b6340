//! Questions to a server, over the same connections as the gate's own.

use std::future::poll_fn;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde_json::Value;

use crate::call::Outgoing;
use crate::config::BackendUrl;
use crate::http1::ResponseHead;
use crate::pool::{Backend, Connection, Failed, Outbound};
use crate::record::Chain;
use crate::reject::Reject;
use crate::tls::{BackendTls, BackendTlsError, wants_a_certificate};

/// A list of very many models is shorter.
const MOST_READ: usize = 8 * 1024 * 1024;

/// A server, and how it is asked.
pub(super) struct Probe {
    backend: Arc<Backend>,
    host: String,
    key: Option<HeaderValue>,
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    #[error("no connection")]
    NoConnection(#[source] io::Error),
    #[error("nothing came within {}", Seconds(*.0))]
    Late(Duration),
    #[error("it closed the connection without an answer")]
    Closed,
    #[error("it wants a certificate first")]
    WantsCertificate,
    #[error("that is not HTTP: {0}")]
    NoHttp(String),
}

/// An answer that came whole.
pub(super) struct Reply {
    pub(super) head: ResponseHead,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub(super) fn field(&self, name: &str) -> Option<String> {
        let value = self.head.fields.all(name.as_bytes()).next()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// `Null` where the body is no JSON.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The error that Ollama tells in its body, or the status.
    pub(super) fn error(&self) -> String {
        match self.json().get("error").and_then(Value::as_str) {
            Some(error) => format!("{}: {}", self.status(), printable(error)),
            None => self.status().to_string(),
        }
    }
}

impl Probe {
    /// On this machine, to be asked for nothing that takes a login.
    pub(super) fn at(address: SocketAddr, patience: Duration) -> Self {
        let url = BackendUrl::Http { host: address.ip().to_string(), port: address.port() };
        Self::over(Backend::plain("doctor", url, None), patience)
    }

    /// The same over TLS, whoever the certificate is made out for.
    pub(super) fn over_tls_at(
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Self, BackendTlsError> {
        let host = address.ip().to_string();
        let tls = BackendTls::unverified(&host)?;
        let url = BackendUrl::Https { host, port: address.port() };
        Ok(Self::over(Backend::plain("doctor", url, Some(tls)), patience))
    }

    fn over(server: Backend, patience: Duration) -> Self {
        Self::of_backend(&Arc::new(server), patience)
    }

    /// The backend, as the gate asks it: over its connections, under its name, with its key.
    pub(super) fn of_backend(backend: &Arc<Backend>, patience: Duration) -> Self {
        let (backend, host, key) =
            (Arc::clone(backend), backend.url().authority(), backend.key().cloned());
        Self { backend, host, key, patience }
    }

    /// The same server under another name.
    pub(super) fn as_host(&self, host: &str) -> Self {
        let (backend, key) = (Arc::clone(&self.backend), self.key.clone());
        Self { backend, host: host.to_owned(), key, patience: self.patience }
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    pub(super) async fn connect(&self) -> Result<Box<Connection>, Silence> {
        let connected = tokio::time::timeout(self.patience, self.backend.connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(Silence::NoConnection)
    }

    pub(super) async fn get(&self, path: &str) -> Result<Reply, Silence> {
        let connection = self.connect().await?;
        let answer = self.send(connection, path, None, self.patience).await?;
        answer.whole(self.patience).await
    }

    /// Sends, and waits for the answer's head for so long.
    pub(super) async fn post(
        &self,
        path: &str,
        body: &Value,
        first_byte: Duration,
    ) -> Result<Coming, Silence> {
        let connection = self.connect().await?;
        self.send(connection, path, Some(body), first_byte).await
    }

    async fn send(
        &self,
        mut connection: Box<Connection>,
        path: &str,
        body: Option<&Value>,
        first_byte: Duration,
    ) -> Result<Coming, Silence> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let request = self.request(&method, path, body).map_err(Silence::NoConnection)?;
        let mut request = Outbound::new(method, request, Outgoing::empty());
        match connection.exchange(&mut request, first_byte).await {
            Ok(head) => Ok(Coming { head, connection }),
            Err(Failed::NotBegun | Failed::Upload) => Err(Silence::Closed),
            Err(Failed::Late) => Err(Silence::Late(first_byte)),
            Err(Failed::Broken(cause)) => Err(broken(&*cause)),
        }
    }

    /// Head and body: the body is short, and known from the beginning.
    fn request(&self, method: &Method, path: &str, body: Option<&Value>) -> io::Result<Vec<u8>> {
        let mut request = Vec::new();
        write!(request, "{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.host)?;
        request.extend_from_slice(b"user-agent: portcullis-doctor\r\nconnection: close\r\n");
        if let Some(key) = &self.key {
            request.extend_from_slice(b"authorization: ");
            request.extend_from_slice(key.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        if !body.is_empty() {
            write!(
                request,
                "content-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            )?;
        }
        write!(request, "\r\n{body}")?;
        Ok(request)
    }
}

fn broken(cause: &(dyn std::error::Error + 'static)) -> Silence {
    match cause.downcast_ref::<io::Error>() {
        Some(error) if wants_a_certificate(error) => Silence::WantsCertificate,
        Some(_) => Silence::Closed,
        None => Silence::NoHttp(Chain(cause).to_string()),
    }
}

/// An answer whose body is still to come.
pub(super) struct Coming {
    pub(super) head: ResponseHead,
    connection: Box<Connection>,
}

impl Coming {
    /// The next piece of the body; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Silence> {
        poll_fn(|cx| self.connection.poll_data(cx)).await.map_err(|cause| broken(&*cause))
    }

    /// The rest of it, if that comes in time.
    pub(super) async fn whole(mut self, patience: Duration) -> Result<Reply, Silence> {
        let read = tokio::time::timeout(patience, self.connection.whole(patience, MOST_READ)).await;
        match read {
            Ok(Ok(body)) => Ok(Reply { head: self.head, body }),
            Ok(Err(Reject::BackendFailed(cause))) => Err(broken(&*cause)),
            // All else that is said of a body is that it is late.
            Ok(Err(_)) | Err(_) => Err(Silence::Late(patience)),
        }
    }
}

/// A duration as a person says it.
pub(super) struct Seconds(pub(super) Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            _ if seconds < 0.01 => write!(f, "{:.1} ms", seconds * 1000.0),
            _ if seconds < 1.0 => write!(f, "{:.0} ms", seconds * 1000.0),
            _ => write!(f, "{seconds:.1} s"),
        }
    }
}

/// What a server says goes to a terminal, which obeys control characters.
pub(super) fn printable(text: &str) -> String {
    let start = text.chars().take(200);
    start.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn since(started: Instant) -> Seconds {
    Seconds(started.elapsed())
}
