//! The certificate that every proxy shows over TLS, and callers who accept this one and no other.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use mio::net::TcpStream;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct};
use rustls::{Error, SignatureScheme};

/// The certificate's file in a peer's folder.
pub(crate) const CERTIFICATE: &str = "cert.pem";
/// Its key's file.
pub(crate) const KEY: &str = "key.pem";
/// Both in one file, as HAProxy wants them.
pub(crate) const PAIR: &str = "pair.pem";

/// What the certificate is for, and what callers name.
const NAME: &str = "localhost";

/// What callers speak behind the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

/// An ECDSA P-256 key and a certificate of its own, made for one run.
#[derive(Debug)]
pub(crate) struct Identity {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Identity {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])
            .context("no certificate can be made")?;
        Ok(Self {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            der: made.cert.der().clone(),
        })
    }

    /// Puts the files into a peer's folder.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::write(dir.join(CERTIFICATE), &self.certificate)?;
        for (name, text) in
            [(KEY, self.key.clone()), (PAIR, format!("{}{}", self.certificate, self.key))]
        {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    }

    /// A server that shows it, for tests.
    #[cfg(test)]
    pub(crate) fn server(&self, speaks: &[u8]) -> Arc<rustls::ServerConfig> {
        use rustls::pki_types::PrivateKeyDer;
        use rustls::pki_types::pem::PemObject as _;

        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .unwrap();
        config.alpn_protocols = vec![speaks.to_vec()];
        Arc::new(config)
    }

    /// Callers with TLS 1.3 who never resume. All offer the same key exchange and cipher, so that
    /// each proxy has the same to do.
    pub(crate) fn callers(&self, speaks: Speaks) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = CryptoProvider {
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Known(self.der.clone())))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![speaks.name().to_vec()];
        Ok(Arc::new(config))
    }
}

impl Speaks {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Compares the certificate byte by byte. Its signature over the handshake is not verified: that
/// would be the callers' time, of which there is little.
#[derive(Debug)]
struct Known(CertificateDer<'static>);

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *certificate != self.0 {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("callers speak TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The caller's end of a new TLS connection.
pub(crate) fn session(config: &Arc<ClientConfig>) -> anyhow::Result<ClientConnection> {
    Ok(ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?)
}

/// A caller's connection, with TLS or without.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) socket: TcpStream,
    pub(crate) tls: Option<Box<ClientConnection>>,
}

impl Wire {
    /// Sends what the socket takes of it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = self.tls.as_deref_mut() else { return self.socket.write(bytes) };
        let taken = tls.writer().write(bytes)?;
        self.push()?;
        Ok(taken)
    }

    /// Sends what TLS has made and the socket did not take yet.
    pub(crate) fn push(&mut self) -> io::Result<()> {
        let Some(tls) = self.tls.as_deref_mut() else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if must_wait(&error) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What has come; nothing at the connection's end, with a farewell of TLS or without.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = self.tls.as_deref_mut() else { return self.socket.read(buffer) };
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            tls.read_tls(&mut self.socket)?;
            tls.process_new_packets().map_err(io::Error::other)?;
            self.push()?;
        }
    }

    /// Whether the other side agreed to speak this.
    pub(crate) fn agreed(&self, speaks: Speaks) -> bool {
        self.tls.as_deref().is_some_and(|tls| tls.alpn_protocol() == Some(speaks.name()))
    }
}

/// The socket takes or has nothing now, or its connection is still being made.
pub(crate) fn must_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
