//! Credentials to an [`Identity`]: passwords, keys and signatures, all at once on one port.

use std::borrow::Borrow;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::{HeaderMap, HeaderName, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::client_addr::ClientAddr;
use crate::config::{Config, Group, Pattern, Role, Roles, Rule, WeakHashes};
use crate::live_file::{LiveFile, Report};
use crate::reject::{Challenges, Reject};
use crate::store::{Actor, Held, KeyDetails, KeyId, KeyRing, ManagedKey, Secret, StoreError};
use crate::tls::ClientCertificate;

pub mod api_keys;
mod attempt;
mod brake;
mod crypt_des;
mod crypt_md5;
mod grant;
pub mod htpasswd;
mod knocks;
mod lines;
mod passwords;
pub mod signature;
pub mod stored_hash;

pub use crate::store::Grant;
pub use knocks::{Knock, Knocks};
pub(crate) use lines::fault_of_name;

use api_keys::ApiKeys;
use attempt::{Attempt, name_and_password, scheme};
use brake::Brake;
use grant::{FileKeys, Fronts};
use htpasswd::Htpasswd;
use passwords::Passwords;
use signature::{AuthorizedKeys, Endpoints, Replays, Signed};

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

    /// For who keeps it.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        match self {
            Self::Given(name) => Arc::clone(name),
            Self::OfKey(_) => self.as_str().into(),
        }
    }
}

impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Given(name) => name.as_bytes(),
            Self::OfKey(name) => name,
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

    /// The first rule that is about it.
    #[must_use]
    pub fn own_rule<'a, R: Borrow<Rule>>(&self, rules: &'a [R], groups: &[Group]) -> Option<&'a R> {
        rules.iter().find(|rule| self.is_meant_by((*rule).borrow(), groups))
    }

    /// What the rule does not say is about everybody.
    fn is_meant_by(&self, rule: &Rule, groups: &[Group]) -> bool {
        let is_member = |name_of_group: &String| {
            let group = groups.iter().find(|group| group.name == *name_of_group);
            group.iter().flat_map(|group| &group.members).any(|member| member.matches(&self.name))
        };
        matches_any(rule.names.as_deref(), |pattern| pattern.matches(&self.name))
            && matches_any(rule.roles.as_deref(), |role| *role == self.role())
            && matches_any(rule.groups.as_deref(), is_member)
            && matches_any(rule.keys.as_deref(), |key| self.holds(key))
    }

    /// Whether it came with a key of this id or name.
    #[must_use]
    pub fn holds(&self, key: &Pattern) -> bool {
        self.grant.as_ref().is_some_and(|grant| {
            key.matches(&grant.key_name) || grant.key_id.is_some_and(|id| key.matches(id.as_str()))
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

    /// The id of the managed key, if that is how it came.
    #[must_use]
    pub fn managed_key(&self) -> Option<KeyId> {
        self.grant.as_ref()?.key_id
    }

    /// Whether the credential is good for this API path.
    #[must_use]
    pub fn may_ask(&self, path: &str) -> bool {
        self.endpoints.allow(path)
    }
}

/// What is not written matches everybody.
fn matches_any<T>(list: Option<&[T]>, test: impl FnMut(&T) -> bool) -> bool {
    list.is_none_or(|list| list.iter().any(test))
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

/// What survives a reload: failures counted, passwords verified, signatures seen, managed keys.
#[derive(Debug)]
pub struct Memory {
    brake: Arc<Brake>,
    passwords: Passwords,
    replays: Replays,
    managed: Option<Arc<KeyRing>>,
    knocks: Knocks,
    /// The digest of the key that this process wrote for the commands.
    commands: OnceLock<[u8; 32]>,
}

impl Memory {
    /// # Errors
    /// Where the system has no random numbers to give.
    pub fn new(cores: usize) -> Result<Self, getrandom::Error> {
        Ok(Self {
            brake: Arc::default(),
            passwords: Passwords::new(cores)?,
            replays: Replays::default(),
            managed: None,
            knocks: Knocks::default(),
            commands: OnceLock::new(),
        })
    }

    /// With the keys of a store.
    #[must_use]
    pub fn with_keys(self, managed: Arc<KeyRing>) -> Self {
        Self { managed: Some(managed), ..self }
    }

    #[must_use]
    pub fn managed(&self) -> Option<&Arc<KeyRing>> {
        self.managed.as_ref()
    }

    /// Lets in the machine that was told this code. Blocks as the store does.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a code under which nobody waits; the code stays good where the
    /// store did not take the key.
    pub fn enrol(
        &self,
        code: &str,
        details: KeyDetails,
        by: &Actor,
        now: Instant,
    ) -> Result<ManagedKey, StoreError> {
        let nobody = "nobody waits under this code: it is good once, for an hour, and ends with the \
                      gate; let the machine ask again";
        let refused = || StoreError::Refused(nobody.to_owned());
        let ring = self.managed.as_ref().ok_or_else(refused)?;
        let knock = self.knocks.take(code, now).ok_or_else(refused)?;
        let enrolled = ring.store().allow_signing_key(knock.key.digest(), details, by);
        if enrolled.is_err() {
            self.knocks.put_back(code, knock);
        }
        enrolled
    }

    /// From now on this key is good for the admin API, as the admin `cli`.
    pub fn let_commands_in(&self, key: &Secret) {
        // Once a process.
        let _ = self.commands.set(key.digest());
    }

    /// Machines that may be let in.
    #[must_use]
    pub fn knocks(&self) -> &Knocks {
        &self.knocks
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
    fronts: Fronts,
    keys_are_managed: bool,
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
            fronts: Fronts::of(config),
            keys_are_managed: config.data_dir.is_some(),
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
        let who = Attempt::new(self, memory, client, presented, now).run().await?;
        match self.fronts.is_empty() {
            true => Ok(who),
            false => grant::on_behalf(&self.fronts, who, presented.headers),
        }
    }

    fn granted(&self, found: grant::Found, credential: Credential) -> Identity {
        let who = self.identity(found.name, credential);
        let role = found.role.unwrap_or(who.role);
        Identity { role, grant: Some(found.grant), ..who }
    }

    /// Like [`Auth::authenticate`], and the key that was written for the commands is good too.
    ///
    /// # Errors
    /// As [`Auth::authenticate`].
    pub async fn authenticate_for_admin(
        &self,
        memory: &Memory,
        client: ClientAddr,
        presented: Presented<'_>,
        now: Instant,
    ) -> Result<Identity, Reject> {
        let mut authorizations = presented.headers.get_all(header::AUTHORIZATION).iter();
        let only = authorizations.next().filter(|_| authorizations.next().is_none());
        let key = only.and_then(|value| scheme(value.as_bytes(), b"bearer"));
        if let (Some(key), Some(expected)) = (key, memory.commands.get())
            && Sha256::digest(key).as_slice().ct_eq(expected).into()
        {
            let (name, role) = (Name::from("cli"), Role::Admin);
            let who = self.identity(name, Credential::Key);
            return Ok(Identity { role, ..who });
        }
        self.authenticate(memory, client, presented, now).await
    }

    fn identity(&self, name: Name, credential: Credential) -> Identity {
        let named = || self.roles.role_of(name.as_str());
        let role = self.roles.of_everybody().unwrap_or_else(named);
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

    fn bearer(&self, held: &Held, credential: Credential) -> Identity {
        let name = Name::Given(Arc::clone(&held.identity));
        let (role, grant) = (held.role, Arc::clone(&held.grant));
        self.granted(grant::Found { name, role, grant }, credential)
    }

    /// Who would ask with this key; for explanations alone.
    #[must_use]
    pub fn suppose_key(&self, key: &ManagedKey) -> Identity {
        let (name, role) = (key.details.identity().into(), key.details.role);
        let found = grant::Found { name, role, grant: Arc::new(key.clone().into_grant()) };
        self.granted(found, Credential::Key)
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
        self.files.api_keys.is_some() || !self.keys.is_empty() || self.keys_are_managed
    }

    /// Whose password a refused request meant to show, if there is such a user: any other text in that
    /// place may be a password itself.
    #[must_use]
    pub fn meant(&self, headers: &HeaderMap) -> Option<String> {
        let value = headers.get(header::AUTHORIZATION)?;
        let (name, _) = name_and_password(scheme(value.as_bytes(), b"basic")?)?;
        let users = self.files.htpasswd.as_ref()?.last();
        users.get(&name).is_some().then_some(name)
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

/// Reads an `Authorization` value as far as one goes without files; for the fuzzer.
#[doc(hidden)]
#[must_use]
pub fn reads_authorization(value: &[u8]) -> bool {
    let login = scheme(value, b"basic").and_then(name_and_password).is_some();
    login || scheme(value, b"bearer").is_some() || Signed::parse(value).is_some()
}

#[cfg(test)]
mod tests;
