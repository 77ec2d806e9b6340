//! TLS: certificates that are always current, callers' certificates, and https to a backend.
//!
//! The crypto provider is aws-lc-rs and is always handed over, never looked up.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::config::{ClientAuth, Config, PairFiles};
use crate::socket::{Counted, Socket};

mod backend;
mod certificate;
mod pair;
mod self_signed;
mod watched;

pub use backend::{BackendTls, BackendTlsError, ask_unverified, wants_a_certificate};
pub use certificate::ClientCertificate;
pub use pair::Fault;
pub use self_signed::SelfSigned;

use pair::{Authorities, BySni, Pair};
use watched::Watched;

/// What is spoken behind the handshake, in our order of preference.
const PROTOCOLS: [(&[u8], Protocol); 2] =
    [(b"h2", Protocol::Http2), (b"http/1.1", Protocol::Http1)];
/// Plain text that waits to be sent is encrypted ahead up to this many bytes.
const MOST_AHEAD: usize = 32 * 1024;
/// With fewer days left a certificate is told of, at the start and once a day.
pub const FEW_DAYS: i64 = 14;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a caller and the gate agreed to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Also of callers who name none.
    Http1,
    Http2,
}

/// TLS for callers, of one configuration; files that stay the same are kept over a reload.
#[derive(Debug)]
pub struct Tls {
    pairs: Vec<Arc<Watched<Pair>>>,
    authorities: Option<Arc<Watched<Authorities>>>,
    client_auth: ClientAuth,
    tickets: Arc<dyn ProducesTickets>,
    serving: RwLock<Arc<Serving>>,
    days_said: Mutex<Option<Instant>>,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("TLS: {0}")]
    File(Fault),
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
    #[error("the certificates in client_ca cannot be used")]
    Authorities(#[from] rustls::server::VerifierBuilderError),
}

/// What is offered to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    All,
    /// To one who is only told that there is no place.
    Http1,
}

/// A caller behind its handshake.
#[derive(Debug)]
pub struct Accepted {
    pub socket: Socket,
    pub protocol: Protocol,
    pub certificate: Option<ClientCertificate>,
}

/// Why there was no handshake.
#[derive(Debug)]
pub enum Refused {
    /// Came and said nothing.
    Silent,
    /// Plain HTTP on the port of TLS; the socket, to say so.
    PlainHttp(TcpStream),
    Late,
    Failed(io::Error),
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl Tls {
    /// `None` where the configuration names no pair.
    ///
    /// # Errors
    /// What a person has to mend first, see [`TlsError`].
    pub fn new(config: &Config, before: Option<&Self>) -> Result<Option<Self>, TlsError> {
        let pairs = config.tls_pairs();
        if pairs.is_empty() {
            return Ok(None);
        }
        let (now, today) = (Instant::now(), SystemTime::now());
        let open = |files: &PairFiles| {
            let paths = [files.cert.clone(), files.key.clone()];
            let old = before.and_then(|tls| tls.pairs.iter().find(|it| it.paths() == paths));
            match old {
                Some(old) => Ok(Arc::clone(old)),
                None => {
                    let opened = Watched::open(paths.into(), Pair::load, now, today);
                    opened.map(Arc::new).map_err(TlsError::File)
                }
            }
        };
        let pairs = pairs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let tickets = match before {
            Some(before) => Arc::clone(&before.tickets),
            None => aws_lc_rs::Ticketer::new()?,
        };
        let authorities = match (config.tls.client_auth, &config.tls.client_ca) {
            (ClientAuth::Off, _) | (_, None) => None,
            (ClientAuth::Optional | ClientAuth::Required, Some(path)) => {
                let old = before.and_then(|tls| tls.authorities.as_ref());
                Some(match old.filter(|old| old.paths() == [path.clone()]) {
                    Some(old) => Arc::clone(old),
                    None => {
                        let paths = vec![path.clone()];
                        let opened = Watched::open(paths, Authorities::load, now, today);
                        Arc::new(opened.map_err(TlsError::File)?)
                    }
                })
            }
        };
        let client_auth = config.tls.client_auth;
        let serving = serving(&pairs, authorities.as_deref(), client_auth, &tickets)?;
        Ok(Some(Self {
            pairs,
            authorities,
            client_auth,
            tickets,
            serving: RwLock::new(Arc::new(serving)),
            days_said: Mutex::default(),
        }))
    }

    /// Shakes hands with a caller, for as long as `limit` in all. After `enough` nobody waits for one
    /// who has said nothing.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn accept(
        &self,
        socket: TcpStream,
        offer: Offer,
        limit: Duration,
        enough: impl Future<Output = ()>,
    ) -> Result<Accepted, Refused> {
        let shaken = tokio::time::timeout(limit, self.shake_hands(socket, offer, enough)).await;
        shaken.unwrap_or(Err(Refused::Late))
    }

    async fn shake_hands(
        &self,
        socket: TcpStream,
        offer: Offer,
        enough: impl Future<Output = ()>,
    ) -> Result<Accepted, Refused> {
        let mut first = [0];
        let peeked = tokio::select! {
            biased;
            peeked = socket.peek(&mut first) => peeked,
            () = enough => return Err(Refused::Silent),
        };
        match peeked {
            Ok(0) => return Err(Refused::Silent),
            Ok(_) if first.iter().all(u8::is_ascii_uppercase) => {
                return Err(Refused::PlainHttp(socket));
            }
            Ok(_) => {}
            Err(error) => return Err(Refused::Failed(error)),
        }
        let serving = self.serving();
        let config = match offer {
            Offer::All => Arc::clone(&serving.config),
            Offer::Http1 => {
                let mut config = ServerConfig::clone(&serving.config);
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Arc::new(config)
            }
        };
        let acceptor = TlsAcceptor::from(config);
        let socket = Counted::from(socket);
        let accepting = acceptor.accept_with(socket, |it| it.set_buffer_limit(Some(MOST_AHEAD)));
        let stream = accepting.await.map_err(Refused::Failed)?;
        let (_, session) = stream.get_ref();
        let agreed = PROTOCOLS.iter().find(|(name, _)| session.alpn_protocol() == Some(name));
        let protocol = agreed.map_or(Protocol::Http1, |(_, protocol)| *protocol);
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let roots = serving.roots.as_ref();
        let certificate = certificate.zip(roots);
        let certificate = certificate.map(|(it, roots)| ClientCertificate::read(it, roots));
        Ok(Accepted { socket: Socket::tls(stream.into()), protocol, certificate })
    }

    /// To be called about once a second: files that changed are taken, and alarms repeated.
    pub fn tend(&self, now: Instant, today: SystemTime) {
        let mut changed = Vec::new();
        for pair in &self.pairs {
            if pair.look(now, today) {
                changed.push(pair);
            }
        }
        let authorities = self.authorities.as_deref();
        let other_authorities = authorities.is_some_and(|it| it.look(now, today));
        if !changed.is_empty() || other_authorities {
            match serving(&self.pairs, authorities, self.client_auth, &self.tickets) {
                Ok(next) => {
                    *self.serving.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
                }
                Err(error) => tracing::error!(%error, "the new certificates cannot be served"),
            }
        }
        for pair in changed {
            say_days(pair, today, "certificate replaced");
        }
        let mut said = self.days_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_some_and(|said| now.saturating_duration_since(said) >= DAY) {
            *said = Some(now);
            for pair in self.pairs.iter().filter(|pair| few(pair.good().days_left(today))) {
                say_days(pair, today, "certificate");
            }
        }
    }

    /// Says what is served, when that begins.
    pub fn announce(&self, now: Instant, today: SystemTime) {
        *self.days_said.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        for pair in &self.pairs {
            say_days(pair, today, "certificate");
        }
    }

    /// Each file that does not serve as it should.
    #[must_use]
    pub fn troubles(&self) -> Vec<Fault> {
        let pairs = self.pairs.iter().filter_map(|pair| pair.trouble());
        pairs.chain(self.authorities.iter().filter_map(|it| it.trouble())).collect()
    }

    /// Each pair's certificate file, the names in it, and the days that are left.
    #[must_use]
    pub fn certificates(&self, today: SystemTime) -> Vec<(String, Vec<String>, i64)> {
        let each = |pair: &Arc<Watched<Pair>>| {
            let good = pair.good();
            (pair.name(), good.names().to_vec(), good.days_left(today))
        };
        self.pairs.iter().map(each).collect()
    }

    /// Whether a certificate that a connection began with would still let one begin: its time is not
    /// over, and its authorities are those of now.
    #[must_use]
    pub fn vouches_for(&self, certificate: &ClientCertificate, today: SystemTime) -> bool {
        let serving = self.serving();
        serving.roots.as_ref().is_some_and(|roots| certificate.is_good(roots, today))
    }

    /// Whether each connection needs a certificate.
    #[must_use]
    pub fn needs_certificates(&self) -> bool {
        self.client_auth == ClientAuth::Required
    }

    fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.serving.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What handshakes are done by, and whose word they take about callers' certificates.
#[derive(Debug)]
struct Serving {
    config: Arc<ServerConfig>,
    roots: Option<Arc<RootCertStore>>,
}

fn few(days: i64) -> bool {
    days < FEW_DAYS
}

fn say_days(pair: &Watched<Pair>, today: SystemTime, what: &str) {
    let good = pair.good();
    let (days_left, file, names) = (good.days_left(today), pair.name(), good.names().join(" "));
    match few(days_left) {
        false => tracing::info!(file, names, days_left, "{what}"),
        true => tracing::warn!(file, names, days_left, "{what}: it expires soon, renew it"),
    }
}

fn serving(
    pairs: &[Arc<Watched<Pair>>],
    authorities: Option<&Watched<Authorities>>,
    client_auth: ClientAuth,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Serving, TlsError> {
    let authorities = authorities.map(Watched::good);
    let roots = authorities.as_ref().map(|it| Arc::clone(it.roots()));
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = match &roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let roots = Arc::clone(roots);
            // Done on the threads that move bytes: a chain is 64 KiB at the most, its signatures are
            // checked from an authority of ours downwards, at most 100 of them, by keys of at most
            // 8,192 bits; and a caller's own signature only when its chain is good.
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match client_auth {
                ClientAuth::Required => verifier,
                ClientAuth::Off | ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let pairs = pairs.iter().map(|pair| pair.good()).collect();
    let mut config = builder.with_cert_resolver(Arc::new(BySni(pairs)));
    config.alpn_protocols = PROTOCOLS.iter().map(|(name, _)| name.to_vec()).collect();
    // A session that is taken up again is not asked for its certificate again, which may have
    // expired since, or its authority been taken out: with certificates each handshake is whole.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match roots {
        None => config.ticketer = Arc::clone(tickets),
        Some(_) => config.send_tls13_tickets = 0,
    }
    Ok(Serving { config: Arc::new(config), roots })
}
