//! A pair for development: a certificate that vouches for itself, for a year.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};

/// Browsers refuse certificates that last for much longer than a year.
const LASTS: Duration = Duration::from_secs(365 * 24 * 3600);
/// Another machine's clock may be behind.
const SINCE: Duration = Duration::from_secs(3600);

/// A certificate and its key, as PEM.
pub struct SelfSigned {
    pub cert: String,
    pub key: String,
}

impl SelfSigned {
    /// For these host names and addresses, at least one.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate, or a system without random numbers.
    pub fn new(names: &[String], today: SystemTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names)?;
        (params.not_before, params.not_after) = ((today - SINCE).into(), (today + LASTS).into());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, "portcullis, for development");
        let cert = params.self_signed(&key)?;
        Ok(Self { cert: cert.pem(), key: key.serialize_pem() })
    }
}

impl std::fmt::Debug for SelfSigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SelfSigned").finish_non_exhaustive()
    }
}
