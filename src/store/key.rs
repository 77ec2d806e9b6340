//! A managed key: what is kept of it, and what it lets its bearer do.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::secret::push_base62;
use crate::config::{Allowance, Models, Role, fault_of_name, fault_of_note};

const MOST_MODELS: usize = 1000;
const MOST_NETWORKS: usize = 1000;

/// Names a key where its name is not enough: `k` and eleven base62 digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 12]);

impl KeyId {
    /// # Errors
    /// Where the system has no random numbers to give.
    pub(super) fn draw() -> Result<Self, getrandom::Error> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        let mut text = "k".to_owned();
        push_base62(random, 11, &mut text);
        Ok(text.parse().unwrap_or(Self(*b"k00000000000")))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for KeyId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let bytes: [u8; 12] = text.as_bytes().try_into().map_err(|_| NotAnId)?;
        let [b'k', rest @ ..] = bytes else { return Err(NotAnId) };
        rest.iter().all(u8::is_ascii_alphanumeric).then_some(Self(bytes)).ok_or(NotAnId)
    }
}

/// The text cannot be a key's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key's id is k and eleven letters and digits")]
pub struct NotAnId;

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a key is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyForm {
    /// As a text, in a header or in the path.
    Secret,
    /// As the signature of a stock `ollama`; the digest is that of the public key.
    Signing,
}

impl KeyForm {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Signing => "signing",
        }
    }

    pub(super) fn of(text: &str) -> Option<Self> {
        [Self::Secret, Self::Signing].into_iter().find(|form| form.as_str() == text)
    }
}

/// Whether a key counts. Revoked is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Active,
    Disabled,
    Revoked,
}

impl KeyState {
    pub const ALL: [Self; 3] = [Self::Active, Self::Disabled, Self::Revoked];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Revoked => "revoked",
        }
    }

    /// `None` for a word that is no state.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Why a key that is known lets nobody in; for the log, not for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFault {
    Disabled,
    Revoked,
    Expired,
    /// Another took its place, and the time of both is over.
    Rotated,
    WrongNetwork,
}

impl KeyFault {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Rotated => "rotated",
            Self::WrongNetwork => "wrong network",
        }
    }
}

/// What is decided about a key when it is made, and may be changed later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyDetails {
    pub name: String,
    /// The identity, if that is not the name.
    pub owner: Option<String>,
    /// `None`: by `[roles]`, as for a key in the file.
    pub role: Option<Role>,
    /// Of the models that rules allow; `None` is all of them. Never an empty list.
    pub models: Option<Models>,
    pub cloud: Option<bool>,
    pub expires: Option<Timestamp>,
    /// `None`: from anywhere. Never an empty list.
    pub networks: Option<Vec<IpNet>>,
    pub limits: Allowance,
    pub note: String,
}

impl KeyDetails {
    /// What the bearer is called.
    #[must_use]
    pub fn identity(&self) -> &str {
        self.owner.as_deref().unwrap_or(&self.name)
    }

    /// Why there cannot be such a key.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if let Some(fault) = fault_of_name(&self.name) {
            return Some(format!("{:?} cannot be a key's name: {fault}", self.name));
        }
        if let Some((owner, fault)) =
            self.owner.as_ref().and_then(|owner| Some((owner, fault_of_name(owner)?)))
        {
            return Some(format!("{owner:?} cannot be an owner: {fault}"));
        }
        if let Some(fault) = fault_of_note(&self.note) {
            return Some(fault.to_owned());
        }
        self.fault_of_models().or_else(|| self.fault_of_networks())
    }

    fn fault_of_models(&self) -> Option<String> {
        let Some(Models::Only(models)) = &self.models else { return None };
        (models.is_empty() || models.len() > MOST_MODELS)
            .then(|| "models are 1 to 1000 patterns; `*` alone is every model".to_owned())
    }

    fn fault_of_networks(&self) -> Option<String> {
        let networks = self.networks.as_ref()?;
        (networks.is_empty() || networks.len() > MOST_NETWORKS).then(|| {
            "networks are 1 to 1000, such as 10.0.0.0/8; leave them out for any".to_owned()
        })
    }

    /// For the audit trail, the API and scripts; holds no secret.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "owner": self.owner,
            "role": self.role.map(|role| role.to_string()),
            "models": self.models.as_ref().map(models_to_json),
            "cloud": self.cloud,
            "expires": self.expires.map(|at| at.to_string()),
            "networks": self.networks.as_ref().map(|nets| {
                nets.iter().map(ToString::to_string).collect::<Vec<_>>()
            }),
            "limits": limits_to_json(&self.limits),
            "note": self.note,
        })
    }
}

fn limits_to_json(limits: &Allowance) -> Value {
    limits.iter().map(|(measure, number)| (measure.as_str().to_owned(), json!(number))).collect()
}

/// `"all"`, or a list of patterns.
pub(super) fn models_to_json(models: &Models) -> Value {
    match models {
        Models::All => json!("all"),
        Models::Only(patterns) => patterns.iter().map(ToString::to_string).collect(),
    }
}

/// The same read back; `None` for what is neither.
pub(super) fn models_from_json(json: &Value) -> Option<Models> {
    match json {
        Value::String(all) if all == "all" => Some(Models::All),
        Value::Array(patterns) => {
            let parsed = patterns.iter().map(|it| it.as_str()?.parse().ok());
            parsed.collect::<Option<_>>().map(Models::Only)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            None
        }
    }
}

/// One key as the store has it. Its text is not known any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedKey {
    pub id: KeyId,
    pub form: KeyForm,
    /// Its first 8 hex digits tell which key this is to whoever has it.
    pub digest: [u8; 32],
    pub details: KeyDetails,
    pub state: KeyState,
    pub created: Timestamp,
    pub created_by: String,
    /// The key that takes its place, and until when both count.
    pub rotated: Option<Rotated>,
    pub used: Option<KeyUse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    pub to: KeyId,
    pub overlap_until: Timestamp,
}

/// When a key let somebody in last, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUse {
    pub at: Timestamp,
    pub from: std::net::IpAddr,
}

impl ManagedKey {
    /// Why none can take its place, as is said behind its id.
    pub(super) fn why_not_rotated(&self) -> Option<&'static str> {
        let is_over = || self.details.expires.is_some_and(|at| at <= Timestamp::now());
        match (self.form, self.state, self.rotated) {
            (KeyForm::Signing, _, _) => Some("is the key of a machine, which makes its own"),
            (KeyForm::Secret, KeyState::Disabled, _) => Some("is disabled; `key enable` it first"),
            (KeyForm::Secret, KeyState::Revoked, _) => Some("is revoked; make a new key"),
            (KeyForm::Secret, KeyState::Active, Some(_)) => {
                Some("was rotated before; rotate the one that took its place")
            }
            // The new one would be born so.
            (KeyForm::Secret, KeyState::Active, None) if is_over() => {
                Some("has expired; `key change` gives it another day with --expires")
            }
            (KeyForm::Secret, KeyState::Active, None) => None,
        }
    }

    /// Why it lets nobody in at this time, whatever the network.
    #[must_use]
    pub fn fault_at(&self, now: Timestamp) -> Option<KeyFault> {
        match self.state {
            KeyState::Disabled => Some(KeyFault::Disabled),
            KeyState::Revoked => Some(KeyFault::Revoked),
            KeyState::Active if self.details.expires.is_some_and(|at| at <= now) => {
                Some(KeyFault::Expired)
            }
            KeyState::Active => {
                let over = self.rotated.is_some_and(|rotated| rotated.overlap_until <= now);
                over.then_some(KeyFault::Rotated)
            }
        }
    }

    /// For the audit trail, the API and scripts; holds no secret.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "id": self.id.as_str(),
            "form": self.form.as_str(),
            "state": self.state.as_str(),
        });
        let rest = json!({
            "created": self.created.to_string(),
            "created_by": self.created_by,
            "rotated_to": self.rotated.map(|it| it.to.to_string()),
            "overlap_until": self.rotated.map(|it| it.overlap_until.to_string()),
            "used": self.used.map(|it| it.at.to_string()),
            "used_from": self.used.map(|it| it.from.to_string()),
            "fingerprint": self.fingerprint(),
        });
        if let (Value::Object(json), Value::Object(details), Value::Object(rest)) =
            (&mut json, self.details.to_json(), rest)
        {
            json.extend(details);
            json.extend(rest);
        }
        json
    }

    /// What it is good for.
    #[must_use]
    pub fn into_grant(self) -> Grant {
        Grant {
            key_id: Some(self.id),
            key_name: self.details.name,
            models: self.details.models,
            cloud: self.details.cloud,
            allowance: self.details.limits,
        }
    }

    /// The first 8 hex digits of the digest.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a key with conditions of its own is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Of a managed key; one of the configuration has none.
    pub key_id: Option<KeyId>,
    pub key_name: String,
    /// Of the models that rules allow; `None` is all of them.
    pub models: Option<Models>,
    /// `Some(false)` takes models in the cloud away.
    pub cloud: Option<bool>,
    /// How much it may have, beside what its owner may.
    pub allowance: Allowance,
}
