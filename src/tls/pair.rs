//! A certificate with its key, the authorities of callers' certificates, and what can be wrong with
//! their files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use sha2::{Digest, Sha256};

use super::certificate::{Facts, date, days_between, unix};
use super::watched::Content;
use crate::live_file::why_unreadable;

/// What is wrong with a file of TLS, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("{} cannot be read: {says}", path.display())]
    Unreadable { path: PathBuf, says: String },
    #[error(
        "{} has no certificate in it that can be read; it begins with -----BEGIN CERTIFICATE-----, \
         the gate's own first, then those of the authorities between", path.display()
    )]
    NoCertificate { path: PathBuf },
    #[error(
        "{} has no private key in it that can be read; it begins with -----BEGIN PRIVATE KEY-----",
        path.display()
    )]
    NoKey { path: PathBuf },
    #[error(
        "the key in {} is encrypted with a passphrase; decrypt it with `openssl pkey -in {} -out \
         FILE`", path.display(), path.display()
    )]
    Encrypted { path: PathBuf },
    #[error("the key in {} is of a kind that is not known here; RSA of 2048 bits and more, P-256, P-384, P-521 and Ed25519 are", path.display())]
    KindOfKey { path: PathBuf },
    #[error(
        "the key in {} is not that of the first certificate in {}; name the two that were made \
         together", key.display(), cert.display()
    )]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error("others may write the key in {} (mode {mode:04o}), so it may be anybody's; `chmod 600 {}`", path.display(), path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("the certificate in {} expired at {at}; callers will not accept it", path.display())]
    Expired { path: PathBuf, at: String },
    #[error("the certificate in {} is good only from {at} on, or the clock of this machine is wrong", path.display())]
    TooEarly { path: PathBuf, at: String },
}

/// A certificate, those of the authorities behind it, and its key.
#[derive(Debug)]
pub(super) struct Pair {
    certified: Arc<CertifiedKey>,
    facts: Facts,
    path: PathBuf,
    /// Of everything in it.
    digest: [u8; 32],
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Content for Pair {
    fn fault(&self, today: SystemTime) -> Option<Fault> {
        let (Facts { not_before, not_after, .. }, now) = (&self.facts, unix(today));
        let path = self.path.clone();
        if now > *not_after {
            Some(Fault::Expired { path, at: date(*not_after) })
        } else if now < *not_before {
            Some(Fault::TooEarly { path, at: date(*not_before) })
        } else {
            None
        }
    }
}

impl Pair {
    /// From the paths of a certificate and of its key.
    pub(super) fn load(paths: &[PathBuf]) -> Result<Self, Fault> {
        let [cert, key] = paths else { return Err(Fault::NoKey { path: PathBuf::new() }) };
        let chain = certificates(cert)?;
        let facts = chain.first().and_then(|first| Facts::read(first));
        let facts = facts.ok_or_else(|| Fault::NoCertificate { path: cert.clone() })?;
        let secret = private_key(key)?;
        let mut digest = Sha256::new();
        chain.iter().for_each(|der| digest.update(der));
        digest.update(secret.secret_der());
        let signing = super::provider().key_provider.load_private_key(secret);
        let signing = signing.map_err(|_| Fault::KindOfKey { path: key.clone() })?;
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(Fault::Mismatch { cert: cert.clone(), key: key.clone() }),
        }
        let (certified, digest) = (Arc::new(certified), digest.finalize().into());
        Ok(Self { certified, facts, path: cert.clone(), digest })
    }

    /// Negative when it has expired.
    pub(super) fn days_left(&self, today: SystemTime) -> i64 {
        days_between(unix(today), self.facts.not_after)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.facts.names
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Fault> {
    let mode = fs::metadata(path).map_or(0, |meta| meta.mode()) & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Fault::Writable { path: path.to_owned(), mode });
    }
    let text = read(path)?;
    let encrypted = |what: &[u8]| memchr::memmem::find(&text, what).is_some();
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(_) if encrypted(b"BEGIN ENCRYPTED") || encrypted(b"Proc-Type: 4,ENCRYPTED") => {
            Err(Fault::Encrypted { path: path.to_owned() })
        }
        Err(_) => Err(Fault::NoKey { path: path.to_owned() }),
    }
}

/// At least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let text = read(path)?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(Fault::NoCertificate { path: path.to_owned() }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let mut text = fs::read(path).map_err(|error| {
        let is_folder = error.kind() == io::ErrorKind::IsADirectory;
        let says = match is_folder {
            true => "it is a folder; name the file in it".to_owned(),
            false => why_unreadable(path, &error),
        };
        Fault::Unreadable { path: path.to_owned(), says }
    })?;
    // Some editors begin a file with a mark of its encoding.
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    Ok(text)
}

/// Chooses by the host that a caller names; the first pair is for whoever names none that is known.
#[derive(Debug)]
pub(super) struct BySni(pub(super) Vec<Arc<Pair>>);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let known = hello.server_name().and_then(|host| {
            let named = |pair: &&Arc<Pair>| pair.facts.is_for(host);
            // Of two for one name, one that this caller can check.
            let checks = |pair: &&Arc<Pair>| {
                pair.certified.key.choose_scheme(hello.signature_schemes()).is_some()
            };
            let mut pairs = self.0.iter().filter(named);
            pairs.clone().find(checks).or_else(|| pairs.next())
        });
        known.or_else(|| self.0.first()).map(|pair| Arc::clone(&pair.certified))
    }
}

/// Whose word is taken about callers' certificates.
#[derive(Debug)]
pub(super) struct Authorities {
    roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Content for Authorities {
    fn fault(&self, _today: SystemTime) -> Option<Fault> {
        None
    }
}

impl Authorities {
    /// From the path of their certificates.
    pub(super) fn load(paths: &[PathBuf]) -> Result<Self, Fault> {
        let path = paths.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
        let certificates = certificates(path)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            let added = roots.add(certificate.clone());
            added.map_err(|_| Fault::NoCertificate { path: path.to_owned() })?;
        }
        Ok(Self { roots: Arc::new(roots), certificates })
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}
