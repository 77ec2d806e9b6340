//! https to a backend: whose word is taken about its certificate; and asking a gate on this machine.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore,
    SignatureScheme, StreamOwned,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::pair::{Fault, certificates};
use super::{MOST_AHEAD, provider};
use crate::socket::{Counted, Socket};

/// Shakes hands with a backend; there is no way back to plain text.
#[derive(Clone)]
pub struct BackendTls {
    connector: TlsConnector,
    name: ServerName<'static>,
    roots: Arc<RootCertStore>,
}

/// Why a backend cannot be asked by https.
#[derive(Debug, thiserror::Error)]
pub enum BackendTlsError {
    #[error("the backend's ca_file: {0}")]
    CaFile(Fault),
    #[error("the certificates in {} are not those of an authority", path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error(
        "this system has no certificates of authorities, so no backend's can be checked; install \
         them (in Debian the package ca-certificates), or name the backend's own as ca_file under \
         [[backend]]"
    )]
    NoAuthorities,
    #[error("{0:?} is no host that a certificate could be made out for")]
    Host(String),
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

impl BackendTls {
    /// For a host whose certificate the authorities in `ca_file` vouch for, or else the system's.
    ///
    /// # Errors
    /// See [`BackendTlsError`].
    pub fn new(host: &str, ca_file: Option<&Path>) -> Result<Self, BackendTlsError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| BackendTlsError::Host(host.to_owned()))?;
        let roots = Arc::new(match ca_file {
            Some(path) => own_authorities(path)?,
            None => system_authorities()?,
        });
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&roots));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: Arc::new(config).into(), name, roots })
    }

    /// For a gate on this machine, whose certificate is made out for another name than its address.
    /// To be asked for nothing that is secret.
    ///
    /// # Errors
    /// See [`BackendTlsError`].
    pub fn unverified(host: &str) -> Result<Self, BackendTlsError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| BackendTlsError::Host(host.to_owned()))?;
        let connector = Arc::new(unverified()?).into();
        Ok(Self { connector, name, roots: Arc::new(RootCertStore::empty()) })
    }

    /// Whether both take the same authorities' word about the same host.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.name == other.name && self.roots.roots == other.roots.roots
    }

    /// # Errors
    /// Where the backend speaks no TLS, or its certificate is not to be trusted.
    pub async fn connect(&self, socket: TcpStream) -> io::Result<Socket> {
        let bounded = |it: &mut ClientConnection| it.set_buffer_limit(Some(MOST_AHEAD));
        let connecting =
            self.connector.connect_with(self.name.clone(), Counted::from(socket), bounded);
        let stream = connecting.await?;
        Ok(Socket::tls(stream.into()))
    }
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendTls").field("name", &self.name).finish_non_exhaustive()
    }
}

fn own_authorities(path: &Path) -> Result<RootCertStore, BackendTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path).map_err(BackendTlsError::CaFile)? {
        roots
            .add(certificate)
            .map_err(|source| BackendTlsError::Authority { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, BackendTlsError> {
    let mut roots = RootCertStore::empty();
    // Systems carry old certificates that nobody reads any more beside those that count.
    let (added, _) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 { Err(BackendTlsError::NoAuthorities) } else { Ok(roots) }
}

/// A conversation with a gate on this machine, whose certificate is made out for another name than
/// the loopback address. To be asked whether it lives, and nothing that is secret.
///
/// # Errors
/// Where TLS cannot be set up; the handshake itself comes with the first byte.
pub fn ask_unverified<S: Read + Write>(
    socket: S,
    host: &str,
) -> io::Result<StreamOwned<ClientConnection, S>> {
    let config = unverified().map_err(io::Error::other)?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(session, socket))
}

fn unverified() -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth())
}

/// Whether the other side ended the conversation for want of a certificate.
#[must_use]
pub fn wants_a_certificate(error: &io::Error) -> bool {
    let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    cause == Some(&alert)
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
