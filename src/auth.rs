//! Credentials to an [`Identity`]: passwords, keys and signatures, all at once on one port.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::client_addr::ClientAddr;
use crate::config::{Config, Pattern, Role, Roles, WeakHashes};
use crate::live_file::{LiveFile, Report};
use crate::reject::{Challenges, Reject};
use crate::tls::ClientCertificate;

pub mod api_keys;
mod brake;
mod crypt_des;
mod crypt_md5;
mod grant;
pub mod htpasswd;
mod lines;
mod passwords;
pub mod signature;
pub mod stored_hash;

pub use grant::Grant;
pub(crate) use lines::fault_of_name;

use api_keys::ApiKeys;
use brake::{Brake, Braked, Charge};
use grant::{FileKeys, Front};
use htpasswd::Htpasswd;
use passwords::{Passwords, Verdict};
use signature::{AuthorizedKeys, Endpoints, Replays, SignatureFault, Signed};

const WRONG: &str = "the user name, password or key is not right";
const WRONG_TIME: &str =
    "the signature's time is more than 300 s off; set this machine's clock right";
const NO_NAME: &str = "the certificate names nobody who can be known here: its subject has to have one CN, \
     without a / and without control characters";
const NOT_ENROLLED: &str = "this machine's key is not enrolled here; give its line in ~/.ollama/id_ed25519.pub \
     to whoever runs this gate";

/// What a caller is called; made and cloned without an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    Given(Arc<str>),
    /// `key-` and eight hex digits of the digest, of a key without a name.
    OfKey([u8; 12]),
}

impl Name {
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Given(name) => name,
            Self::OfKey(name) => std::str::from_utf8(name).unwrap_or_default(),
        }
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self::Given(name.into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks. Only this room makes one.
#[derive(Debug, Clone)]
pub struct Identity {
    name: Name,
    /// With the user behind it, of a front end that asks for one.
    whole: Option<Name>,
    role: Role,
    credential: Credential,
    endpoints: Endpoints,
    grant: Option<Arc<Grant>>,
}

impl Identity {
    /// Whose limits and usage this is: `NAME`, or `NAME/USER` for a front end's user.
    #[must_use]
    pub fn name(&self) -> &Name {
        self.whole.as_ref().unwrap_or(&self.name)
    }

    /// Whose credential it is, and so whose rules count.
    #[must_use]
    pub fn account(&self) -> &Name {
        &self.name
    }

    /// What the key is good for, of a key with conditions of its own.
    #[must_use]
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.grant.as_ref()
    }

    /// Whether it came with a key of this id or name.
    #[must_use]
    pub fn holds(&self, key: &Pattern) -> bool {
        self.grant.as_ref().is_some_and(|grant| {
            key.matches(&grant.key_name) || (!grant.key_id.is_empty() && key.matches(&grant.key_id))
        })
    }

    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    #[must_use]
    pub fn credential(&self) -> Credential {
        self.credential
    }

    /// Whether the credential is good for this API path.
    #[must_use]
    pub fn may_ask(&self, path: &str) -> bool {
        self.endpoints.allow(path)
    }
}

/// What a caller identified by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    Password,
    Key,
    Signature,
    Certificate,
}

impl Credential {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Certificate => "certificate",
        }
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything in a request that may identify its caller.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    pub headers: &'a HeaderMap,
    /// From `/k/KEY/…`, decoded.
    pub path_key: Option<&'a [u8]>,
    pub method: &'a str,
    /// The API path, without the key.
    pub path: &'a str,
    /// The query's `ts`, seconds since 1970, with a signature.
    pub ts: Option<&'a str>,
    /// What the connection was opened with.
    pub certificate: Option<&'a ClientCertificate>,
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What survives a reload: failures counted, passwords verified, signatures seen.
#[derive(Debug)]
pub struct Memory {
    brake: Arc<Brake>,
    passwords: Passwords,
    replays: Replays,
}

impl Memory {
    /// # Errors
    /// Where the system has no random numbers to give.
    pub fn new(cores: usize) -> Result<Self, getrandom::Error> {
        Ok(Self {
            brake: Arc::default(),
            passwords: Passwords::new(cores)?,
            replays: Replays::default(),
        })
    }
}

/// The door: the files of one configuration.
#[derive(Debug)]
pub struct Auth {
    files: Files,
    key_headers: Vec<HeaderName>,
    failures_per_minute: u32,
    roles: Roles,
    certificates_log_in: bool,
    keys: FileKeys,
    fronts: Vec<Front>,
}

/// The credential files; kept over a reload where they are the same, so that the last good content
/// is kept too.
#[derive(Debug, Clone)]
pub struct Files {
    weak: WeakHashes,
    htpasswd: Option<Arc<LiveFile<Htpasswd>>>,
    api_keys: Option<Arc<LiveFile<ApiKeys>>>,
    authorized_keys: Option<Arc<LiveFile<AuthorizedKeys>>>,
}

impl Files {
    #[must_use]
    pub fn open(config: &Config, before: Option<&Self>) -> Self {
        let weak = config.weak_hashes;
        let old = before.filter(|before| before.weak == weak);
        let htpasswd = config.htpasswd.as_deref().map(|path| {
            reopen(path, old.and_then(|old| old.htpasswd.as_ref()), move |text| {
                Htpasswd::parse(text, weak)
            })
        });
        let api_keys = config
            .api_keys
            .as_deref()
            .map(|path| reopen(path, before.and_then(|old| old.api_keys.as_ref()), ApiKeys::parse));
        let authorized_keys = config.authorized_keys.as_deref().map(|path| {
            reopen(path, before.and_then(|old| old.authorized_keys.as_ref()), AuthorizedKeys::parse)
        });
        Self { weak, htpasswd, api_keys, authorized_keys }
    }

    /// The state of each named file, for `check`, the start and the alarms.
    #[must_use]
    pub fn reports(&self) -> Vec<(&'static str, Report)> {
        let reports = [
            ("htpasswd", self.htpasswd.as_ref().map(|file| file.report())),
            ("api_keys", self.api_keys.as_ref().map(|file| file.report())),
            ("authorized_keys", self.authorized_keys.as_ref().map(|file| file.report())),
        ];
        reports.into_iter().filter_map(|(what, report)| Some((what, report?))).collect()
    }

    /// Files that do not serve as they should.
    #[must_use]
    pub fn alarms(&self) -> usize {
        self.reports().iter().filter(|(_, report)| report.trouble.is_some()).count()
    }

    /// Every name in the files as they were read last, with what it identifies by.
    #[must_use]
    pub fn names(&self) -> Vec<(String, Credential)> {
        let mut names = Vec::new();
        if let Some(file) = &self.htpasswd {
            let last = file.last();
            names.extend(last.names().map(|name| (name.to_owned(), Credential::Password)));
        }
        if let Some(file) = &self.api_keys {
            let last = file.last();
            names.extend(last.names().map(|name| (name.to_string(), Credential::Key)));
        }
        if let Some(file) = &self.authorized_keys {
            let last = file.last();
            names.extend(last.names().map(|name| (name.to_string(), Credential::Signature)));
        }
        names
    }

    /// Looks at every file even if no request does.
    pub async fn tend(&self, now: Instant) {
        if let Some(file) = &self.htpasswd {
            file.tend(now).await;
        }
        if let Some(file) = &self.api_keys {
            file.tend(now).await;
        }
        if let Some(file) = &self.authorized_keys {
            file.tend(now).await;
        }
    }
}

fn reopen<T: Send + Sync + 'static>(
    path: &Path,
    before: Option<&Arc<LiveFile<T>>>,
    parse: impl Fn(&str) -> crate::live_file::Parsed<T> + Send + Sync + 'static,
) -> Arc<LiveFile<T>> {
    match before.filter(|before| before.path() == path) {
        Some(before) => Arc::clone(before),
        None => Arc::new(LiveFile::open(path, parse("").content, parse)),
    }
}

/// One request at the door, and why it was not let in so far.
struct Attempt<'a> {
    auth: &'a Auth,
    memory: &'a Memory,
    client: ClientAddr,
    presented: Presented<'a>,
    now: Instant,
    brought_something: bool,
    password_counted: bool,
    braked: Option<Braked>,
    says: &'static str,
}

impl Auth {
    #[must_use]
    pub fn new(config: &Config, files: Files) -> Self {
        Self {
            files,
            key_headers: config.credential_headers.clone(),
            failures_per_minute: config.failed_attempts_per_minute,
            roles: config.roles.clone(),
            certificates_log_in: config.certificates_log_in(),
            keys: FileKeys::new(&config.keys),
            fronts: Front::of(&config.rules),
        }
    }

    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The first credential that verifies wins, in the order of `Attempt::run`; a request that
    /// fails is one failure. `now` is when the request had been read: every file that was saved
    /// before counts.
    ///
    /// # Errors
    /// 400 for a credential header sent twice, 401, 429 from the brake, 503 from the hash pool.
    pub async fn authenticate(
        &self,
        memory: &Memory,
        client: ClientAddr,
        presented: Presented<'_>,
        now: Instant,
    ) -> Result<Identity, Reject> {
        let attempt = Attempt {
            auth: self,
            memory,
            client,
            presented,
            now,
            brought_something: false,
            password_counted: false,
            braked: None,
            says: WRONG,
        };
        let who = attempt.run().await?;
        match self.fronts.is_empty() {
            true => Ok(who),
            false => grant::on_behalf(&self.fronts, who, presented.headers),
        }
    }

    async fn key(&self, key: &[u8], client: ClientAddr, now: Instant) -> Option<Identity> {
        let key = key.trim_ascii();
        if let Some(file) = &self.files.api_keys
            && let Some(name) = file.current(now).await.find(key)
        {
            return Some(self.identity(name, Credential::Key));
        }
        if self.keys.is_empty() {
            return None;
        }
        let found = self.keys.find(key, client, jiff::Timestamp::now())?;
        Some(self.granted(found, Credential::Key))
    }

    fn granted(&self, found: grant::Found, credential: Credential) -> Identity {
        let who = self.identity(found.name, credential);
        let role = found.role.unwrap_or(who.role);
        Identity { role, grant: Some(found.grant), ..who }
    }

    fn identity(&self, name: Name, credential: Credential) -> Identity {
        let role = self.roles.role_of(name.as_str());
        let endpoints = Endpoints::All;
        Identity { name, whole: None, role, credential, endpoints, grant: None }
    }

    /// Who would ask under this name, with whatever credential; for explanations alone.
    #[must_use]
    pub fn suppose(&self, name: &str) -> Identity {
        match self.keys.of_name(name) {
            Some(found) => self.granted(found, Credential::Key),
            None => self.identity(name.into(), Credential::Key),
        }
    }

    /// The schemes to name in a 401: only `Bearer` where a browser's dialog would open over
    /// somebody's web page, or where the caller showed that it does not mean a password.
    #[must_use]
    pub fn challenges(&self, headers: &HeaderMap) -> Challenges {
        let from_script = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "cors");
        let other_scheme = headers
            .get(header::AUTHORIZATION)
            .is_some_and(|value| scheme(value.as_bytes(), b"basic").is_none())
            || self.key_headers.iter().any(|name| headers.contains_key(name));
        let basic = self.files.htpasswd.is_some() && !from_script && !other_scheme;
        Challenges { basic, bearer: !basic || self.has_keys() }
    }

    fn has_keys(&self) -> bool {
        self.files.api_keys.is_some() || !self.keys.is_empty()
    }

    /// Whether the request carries a password, for the rule about other sites' pages.
    #[must_use]
    pub fn carries_password(headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION);
        value.is_some_and(|value| scheme(value.as_bytes(), b"basic").is_some())
    }

    /// The header names that may carry a key, to be stripped before a request is passed on.
    #[must_use]
    pub fn key_headers(&self) -> &[HeaderName] {
        &self.key_headers
    }
}

impl Attempt<'_> {
    async fn run(mut self) -> Result<Identity, Reject> {
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
            && let Some(who) = self.auth.key(key, self.client, self.now).await
        {
            return Ok(who);
        }
        for name in &self.auth.key_headers {
            if let Some(value) = single(headers, name)? {
                self.brought_something = true;
                if let Some(who) = self.auth.key(value.as_bytes(), self.client, self.now).await {
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
            && let Some(who) = self.auth.key(key, self.client, self.now).await
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
        let name = Name::Given(Arc::clone(name.ok_or(Reject::BadCredentials(NO_NAME))?));
        Ok(self.auth.identity(name, Credential::Certificate))
    }

    /// One failed request is one failure.
    fn refuse(self) -> Reject {
        if !self.brought_something {
            return Reject::NoCredentials;
        }
        let limit = self.auth.failures_per_minute;
        let braked = match self.password_counted {
            true => self.braked,
            false => self.memory.brake.wrong_key(self.client, limit, self.now).err(),
        };
        match braked {
            Some(Braked { retry_after }) => Reject::TooManyFailures { retry_after },
            None => Reject::BadCredentials(self.says),
        }
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
        let file = self.auth.files.authorized_keys.as_ref()?.current(self.now).await;
        let Presented { method, path, ts, .. } = self.presented;
        let asked = signature::Asked { method, path, ts: ts.unwrap_or_default() };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let unix = i64::try_from(unix).unwrap_or(i64::MAX);
        match file.check(signed, &asked, self.client.ip(), unix, &self.memory.replays) {
            Ok(signer) => {
                let who = self.auth.identity(signer.name.clone(), Credential::Signature);
                Some(Identity { endpoints: signer.endpoints, ..who })
            }
            Err(fault) => {
                self.says = match fault {
                    SignatureFault::UnknownKey => NOT_ENROLLED,
                    SignatureFault::BadTime => WRONG_TIME,
                    SignatureFault::BadSignature | SignatureFault::Replayed => WRONG,
                };
                None
            }
        }
    }
}

/// A header that may stand once only: two of them could be read in two ways.
fn single<'a>(
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
fn scheme<'a>(value: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = value.split_at_checked(word.len())?;
    let rest = head.eq_ignore_ascii_case(word).then_some(rest)?;
    (rest.is_empty() || rest.starts_with(b" ")).then(|| rest.trim_ascii())
}

/// RFC 7617: base64 of `name:password`, both UTF-8; the first colon divides.
fn name_and_password(login: &[u8]) -> Option<(String, Vec<u8>)> {
    let decoded = STANDARD.decode(login).or_else(|_| STANDARD_NO_PAD.decode(login)).ok()?;
    let colon = memchr::memchr(b':', &decoded)?;
    let (name, rest) = decoded.split_at_checked(colon)?;
    let password = rest.get(1..)?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty() && !password.is_empty()).then(|| (name.to_owned(), password.to_owned()))
}

/// Reads an `Authorization` value as far as one goes without files; for the fuzzer.
#[doc(hidden)]
#[must_use]
pub fn reads_authorization(value: &[u8]) -> bool {
    let login = scheme(value, b"basic").and_then(name_and_password).is_some();
    login || scheme(value, b"bearer").is_some() || Signed::parse(value).is_some()
}

#[cfg(test)]
mod tests;
