//! Keys with conditions of their own, and callers who ask for somebody else.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use jiff::Timestamp;

use super::attempt::single;
use super::{Identity, Name};
use crate::client_addr::ClientAddr;
use crate::config::{Config, FileKey, Group, Role, Rule};
use crate::reject::Reject;
use crate::store::Grant;

/// Longest name of a user that a front end may ask for, in bytes.
const LONGEST_USER: usize = 128;

/// The keys of the configuration, found by digest.
#[derive(Default)]
pub(super) struct FileKeys(HashMap<[u8; 32], (FileKey, Arc<Grant>)>);

impl FileKeys {
    pub(super) fn new(keys: &[FileKey]) -> Self {
        let entry = |key: &FileKey| {
            let grant = Grant {
                key_id: None,
                key_name: key.name.clone(),
                models: key.models.clone(),
                cloud: key.cloud,
                allowance: key.allowance.clone(),
            };
            (key.digest, (key.clone(), Arc::new(grant)))
        };
        Self(keys.iter().map(entry).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key, if it counts now and from there. The map's time tells something about stored
    /// digests only, of which no key can be made.
    pub(super) fn find(
        &self,
        digest: &[u8; 32],
        from: ClientAddr,
        now: Timestamp,
    ) -> Option<Found> {
        let (key, grant) = self.0.get(digest)?;
        let fault = if key.expires.is_some_and(|expires| expires <= now) {
            Some("expired")
        } else if !is_within(&key.networks, from) {
            Some("used from another network than it is for")
        } else {
            None
        };
        if let Some(fault) = fault {
            tracing::info!(key = key.name, client = %from.ip(), "a key was not taken: {fault}");
            return None;
        }
        Some(Found::of(key, grant))
    }

    pub(super) fn of_name(&self, name: &str) -> Option<Found> {
        let (key, grant) = self.0.values().find(|(key, _)| key.name == name)?;
        Some(Found::of(key, grant))
    }
}

impl fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileKeys({})", self.0.len())
    }
}

/// Whose a key is.
pub(super) struct Found {
    pub(super) name: Name,
    /// In place of what `[roles]` says.
    pub(super) role: Option<Role>,
    pub(super) grant: Arc<Grant>,
}

impl Found {
    fn of(key: &FileKey, grant: &Arc<Grant>) -> Self {
        let owner = key.owner.as_deref().unwrap_or(&key.name);
        Self { name: Name::from(owner), role: key.role, grant: Arc::clone(grant) }
    }
}

/// An empty list is anywhere.
fn is_within(networks: &[IpNet], from: ClientAddr) -> bool {
    networks.is_empty() || networks.iter().any(|net| net.contains(&from.ip()))
}

/// The rules up to the last that lets a front end say for whom it asks; none, where none does.
#[derive(Debug, Clone)]
pub(super) struct Fronts {
    rules: Vec<Rule>,
    groups: Vec<Group>,
}

impl Fronts {
    pub(super) fn of(config: &Config) -> Self {
        let last = config.rules.iter().rposition(|rule| rule.acts_for.is_some());
        let rules = last.and_then(|last| config.rules.get(..=last)).unwrap_or_default();
        Self { rules: rules.to_vec(), groups: config.groups.clone() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The header that the caller's own rule names: the first that is about it.
    fn header_of(&self, who: &Identity) -> Option<&HeaderName> {
        who.own_rule(&self.rules, &self.groups).and_then(|rule| rule.acts_for.as_ref())
    }
}

/// The same caller, with the name of the user that it asks for behind its own.
pub(super) fn on_behalf(
    fronts: &Fronts,
    who: Identity,
    headers: &HeaderMap,
) -> Result<Identity, Reject> {
    let Some(header) = fronts.header_of(&who) else { return Ok(who) };
    let Some(user) = single(headers, header)? else { return Ok(who) };
    let user = user.to_str().ok().filter(|user| is_user(user));
    let user = user.ok_or(Reject::BadRequest(
        "the user that is asked for has 1 to 128 printable characters, without a / and without blanks",
    ))?;
    let whole = format!("{}/{user}", who.account());
    Ok(Identity { whole: Some(Name::Given(whole.into())), ..who })
}

/// With a `/` one front end's user could be spelt like another's.
fn is_user(user: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'/';
    (1..=LONGEST_USER).contains(&user.len()) && user.bytes().all(plain)
}
