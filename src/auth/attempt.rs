//! One request at the door: its credentials, tried one after the other.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::brake::{Braked, Charge};
use super::passwords::Verdict;
use super::signature::{self, SignatureFault, Signed};
use super::{Auth, Credential, Identity, Memory, Name, Presented, fault_of_name};
use crate::client_addr::ClientAddr;
use crate::reject::{KnockCode, Reject};
use crate::store::{Finding, KeyForm, KeyRing, is_miscopied};
use crate::tls::ClientCertificate;

const WRONG: &str = "the user name, password or key is not right";
const WRONG_TIME: &str =
    "the signature's time is more than 300 s off; set this machine's clock right";
const NO_NAME: &str = "the certificate names nobody who can be known here: its subject has to have one CN, \
     without a / and without control characters";
const NOT_ENROLLED: &str = "this machine's key is not enrolled here; give its line in ~/.ollama/id_ed25519.pub \
     to whoever runs this gate";

const MISCOPIED: &str = "the key is not whole, or a letter of it is wrong; copy it again";

/// One request at the door, and why it was not let in so far.
pub(super) struct Attempt<'a> {
    auth: &'a Auth,
    memory: &'a Memory,
    client: ClientAddr,
    presented: Presented<'a>,
    now: Instant,
    brought_something: bool,
    password_counted: bool,
    braked: Option<Braked>,
    says: &'static str,
    code: Option<KnockCode>,
    /// A key may be one that could not be read in time.
    is_unclear: bool,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        auth: &'a Auth,
        memory: &'a Memory,
        client: ClientAddr,
        presented: Presented<'a>,
        now: Instant,
    ) -> Self {
        Self {
            auth,
            memory,
            client,
            presented,
            now,
            brought_something: false,
            password_counted: false,
            braked: None,
            says: WRONG,
            code: None,
            is_unclear: false,
        }
    }

    pub(super) async fn run(mut self) -> Result<Identity, Reject> {
        let Presented { headers, path_key, .. } = self.presented;
        let authorization = single(headers, &header::AUTHORIZATION)?.map(HeaderValue::as_bytes);
        self.brought_something = authorization.is_some() || path_key.is_some();
        if let Some(login) = authorization.and_then(|value| scheme(value, b"basic"))
            // Boxed, because it is large, and every request would have the room for it.
            && let Some(who) = Box::pin(self.basic(login)).await?
        {
            return Ok(who);
        }
        if let Some(key) = authorization.and_then(|value| scheme(value, b"bearer"))
            && let Some(who) = self.key(key).await
        {
            return Ok(who);
        }
        for name in &self.auth.key_headers {
            if let Some(value) = single(headers, name)? {
                self.brought_something = true;
                if let Some(who) = self.key(value.as_bytes()).await {
                    return Ok(who);
                }
            }
        }
        if let Some(signed) = authorization.and_then(Signed::parse)
            && let Some(who) = self.signed(&signed).await
        {
            return Ok(who);
        }
        if let Some(key) = path_key
            && let Some(who) = self.key(key).await
        {
            return Ok(who);
        }
        if let Some(certificate) = self.presented.certificate
            && self.auth.certificates_log_in
            && !self.brought_something
        {
            return self.certified(certificate);
        }
        Err(self.refuse())
    }

    /// A certificate comes with the connection, so it counts only where a request says nothing else:
    /// a wrong key is not made good by it.
    fn certified(&self, certificate: &ClientCertificate) -> Result<Identity, Reject> {
        let name = certificate.common_name().filter(|name| fault_of_name(name).is_none());
        let name = Name::Given(Arc::clone(name.ok_or(Reject::BadCredentials(NO_NAME, None))?));
        Ok(self.auth.identity(name, Credential::Certificate))
    }

    /// One failed request is one failure.
    fn refuse(self) -> Reject {
        if !self.brought_something {
            return Reject::NoCredentials;
        }
        if self.is_unclear {
            return Reject::Overloaded("changes of keys wait to be read");
        }
        let limit = self.auth.failures_per_minute;
        let braked = match self.password_counted {
            true => self.braked,
            false => self.memory.brake.wrong_key(self.client, limit, self.now).err(),
        };
        match braked {
            Some(Braked { retry_after }) => Reject::TooManyFailures { retry_after },
            None => Reject::BadCredentials(self.says, self.code.map(Box::new)),
        }
    }

    /// The file goes first: whoever stands there costs no look at the others.
    async fn key(&mut self, key: &[u8]) -> Option<Identity> {
        let key = Some(key.trim_ascii()).filter(|key| !key.is_empty())?;
        let digest = Sha256::digest(key).into();
        if let Some(file) = &self.auth.files.api_keys
            && let Some(name) = file.current(self.now).await.find_digest(&digest)
        {
            return Some(self.auth.identity(name, Credential::Key));
        }
        if let Some(ring) = &self.memory.managed
            // Boxed, because a key of the file would have the room for it too.
            && let Some(who) = Box::pin(self.managed_key(ring, key, &digest)).await
        {
            return Some(who);
        }
        if self.auth.keys.is_empty() {
            return None;
        }
        let found = self.auth.keys.find(&digest, self.client, Timestamp::now())?;
        Some(self.auth.granted(found, Credential::Key))
    }

    async fn managed_key(
        &mut self,
        ring: &Arc<KeyRing>,
        key: &[u8],
        digest: &[u8; 32],
    ) -> Option<Identity> {
        match ring.find(digest, KeyForm::Secret, self.client.ip(), self.now).await {
            Finding::Good(held) => return Some(self.auth.bearer(&held, Credential::Key)),
            Finding::Unclear => self.is_unclear = true,
            Finding::Unknown if is_miscopied(key) => self.says = MISCOPIED,
            Finding::Unknown | Finding::Refused(_) => {}
        }
        None
    }

    async fn basic(&mut self, login: &[u8]) -> Result<Option<Identity>, Reject> {
        let Some(file) = &self.auth.files.htpasswd else { return Ok(None) };
        let Some((name, password)) = name_and_password(login) else { return Ok(None) };
        let file = file.current(self.now).await;
        let Memory { passwords, brake, .. } = self.memory;
        if passwords.remembers(&file, &name, &password) {
            return Ok(Some(self.auth.identity(name.as_str().into(), Credential::Password)));
        }
        self.password_counted = true;
        let limit = self.auth.failures_per_minute;
        let charge = match Charge::new(brake, self.client, &name, limit, self.now) {
            Ok(charge) => charge,
            Err(braked) => {
                self.braked = Some(braked);
                return Ok(None);
            }
        };
        match passwords.check(&file, &name, &password, charge).await {
            Verdict::Right => {
                Ok(Some(self.auth.identity(name.as_str().into(), Credential::Password)))
            }
            Verdict::Wrong => Ok(None),
            Verdict::Overloaded => Err(Reject::Overloaded("passwords wait to be checked")),
        }
    }

    async fn signed(&mut self, signed: &Signed) -> Option<Identity> {
        let checked = match &self.auth.files.authorized_keys {
            Some(file) => {
                let file = file.current(self.now).await;
                let (asked, now) = (self.signed_for(), unix_now());
                file.check(signed, &asked, self.client.ip(), now, &self.memory.replays)
            }
            None => Err(SignatureFault::UnknownKey),
        };
        let found = match checked {
            Ok(signer) => {
                let who = self.auth.identity(signer.name, Credential::Signature);
                Ok(Identity { endpoints: signer.endpoints, ..who })
            }
            Err(SignatureFault::UnknownKey) => Box::pin(self.managed_signer(signed)).await,
            Err(fault) => Err(fault),
        };
        found
            .map_err(|fault| {
                self.says = match fault {
                    SignatureFault::UnknownKey => NOT_ENROLLED,
                    SignatureFault::BadTime => WRONG_TIME,
                    SignatureFault::BadSignature | SignatureFault::Replayed => WRONG,
                };
            })
            .ok()
    }

    /// A signature that is not of the file. If it is right, and nobody's, its key may be let in later.
    async fn managed_signer(&mut self, signed: &Signed) -> Result<Identity, SignatureFault> {
        let ring = self.memory.managed.as_ref().ok_or(SignatureFault::UnknownKey)?;
        let (client, now) = (self.client.ip(), unix_now());
        let proof = signed.proof(&self.signed_for(), now)?;
        let key = signed.public_key();
        match ring.find(&key.digest(), KeyForm::Signing, client, self.now).await {
            Finding::Good(held) => {
                proof.admit(client, now, &self.memory.replays)?;
                Ok(self.auth.bearer(&held, Credential::Signature))
            }
            Finding::Refused(_) => Err(SignatureFault::BadSignature),
            Finding::Unclear => {
                self.is_unclear = true;
                Err(SignatureFault::UnknownKey)
            }
            Finding::Unknown => {
                self.code = self.memory.knocks.knock(key, self.client, self.now);
                Err(SignatureFault::UnknownKey)
            }
        }
    }

    fn signed_for(&self) -> signature::Asked<'a> {
        let Presented { method, path, ts, .. } = self.presented;
        signature::Asked { method, path, ts: ts.unwrap_or_default() }
    }
}

/// Seconds since 1970.
fn unix_now() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    i64::try_from(unix).unwrap_or(i64::MAX)
}

/// A header that may stand once only: two of them could be read in two ways.
pub(super) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Reject> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(Reject::BadRequest("a credential header may be sent once only")),
    }
}

/// What follows the scheme word, whose case does not matter (RFC 9110, 11.1).
pub(super) fn scheme<'a>(value: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = value.split_at_checked(word.len())?;
    let rest = head.eq_ignore_ascii_case(word).then_some(rest)?;
    (rest.is_empty() || rest.starts_with(b" ")).then(|| rest.trim_ascii())
}

/// RFC 7617: base64 of `name:password`, both UTF-8; the first colon divides.
pub(super) fn name_and_password(login: &[u8]) -> Option<(String, Vec<u8>)> {
    let decoded = STANDARD.decode(login).or_else(|_| STANDARD_NO_PAD.decode(login)).ok()?;
    let colon = memchr::memchr(b':', &decoded)?;
    let (name, rest) = decoded.split_at_checked(colon)?;
    let password = rest.get(1..)?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty() && !password.is_empty()).then(|| (name.to_owned(), password.to_owned()))
}
