//! What is read from a certificate: its time, its names, whose it is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: i64 = 24 * 3600;

/// The facts of a certificate that the gate decides by.
#[derive(Debug)]
pub(super) struct Facts {
    /// Host names in lower case, patterns such as `*.example.com`, and addresses.
    pub(super) names: Vec<String>,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

impl Facts {
    pub(super) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|it| it.value.general_names.iter()).into_iter().flatten();
        Some(Self {
            names: names.filter_map(host).collect(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    /// Whether it is made out for this host; a `*` stands for one label (RFC 6125, 6.4.3).
    pub(super) fn is_for(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(rest) => parent == Some(rest),
            None => name == host,
        })
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some(name.to_ascii_lowercase());
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
}

/// A caller's certificate, which an authority of `client_ca` vouches for.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    common_name: Option<Arc<str>>,
    /// Seconds since 1970.
    not_after: i64,
    /// Whose word was taken about it.
    roots: Arc<RootCertStore>,
}

impl ClientCertificate {
    pub(super) fn read(der: &CertificateDer<'_>, roots: &Arc<RootCertStore>) -> Self {
        let parsed = X509Certificate::from_der(der).ok();
        let not_after = parsed.as_ref().map(|(_, it)| it.validity().not_after.timestamp());
        let common_name = parsed.and_then(|(_, certificate)| {
            let mut names = certificate.subject().iter_common_name();
            let only = names.next().filter(|_| names.next().is_none())?;
            only.as_str().ok().map(Arc::from)
        });
        // One that cannot be read has no time.
        Self { common_name, not_after: not_after.unwrap_or(0), roots: Arc::clone(roots) }
    }

    pub(super) fn is_good(&self, roots: &Arc<RootCertStore>, today: SystemTime) -> bool {
        Arc::ptr_eq(&self.roots, roots) && unix(today) <= self.not_after
    }

    /// The one CN of its subject; `None` where there is none, or two, which could be read in two
    /// ways.
    #[must_use]
    pub fn common_name(&self) -> Option<&Arc<str>> {
        self.common_name.as_ref()
    }
}

/// Whole days from one time to another, in seconds since 1970.
pub(super) fn days_between(from: i64, to: i64) -> i64 {
    (to - from).div_euclid(DAY)
}

pub(super) fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// As a person writes it.
pub(super) fn date(unix: i64) -> String {
    jiff::Timestamp::from_second(unix).map_or_else(|_| unix.to_string(), |at| at.to_string())
}
