//! Managed keys by way of the admin API: what may be sent, field by field, and what is done with it.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Response, StatusCode};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::query::Query;
use super::{Desk, Object, json_answer};
use crate::config::{Allowance, Measure, Models, Role, duration, key_digest, no_measure};
use crate::reject::Reject;
use crate::store::{KeyDetails, KeyId, KeyQuery, KeyState, ManagedKey, Secret};

/// How long a rotated key still counts unless told otherwise, and at most.
const USUAL_OVERLAP: &str = "24h";
const LONGEST_OVERLAP: std::time::Duration = std::time::Duration::from_secs(400 * 24 * 3600);
const MOST_IMPORTED: usize = 10_000;

/// A field that may be left out, be null, or have a value: three things that mean something else.
#[derive(Debug, Default)]
enum Sent<T> {
    #[default]
    Nothing,
    Null,
    Value(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Sent<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Value))
    }
}

impl<T> Sent<T> {
    /// Puts what was sent in the place of what was there.
    fn over<U>(&self, place: &mut Option<U>, kept: impl FnOnce(&T) -> U) {
        match self {
            Self::Nothing => {}
            Self::Null => *place = None,
            Self::Value(value) => *place = Some(kept(value)),
        }
    }
}

/// What a key is good for; nothing else of it can be sent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fields {
    name: Sent<String>,
    owner: Sent<String>,
    role: Sent<Parsed<Role>>,
    models: Sent<ModelsSent>,
    cloud: Sent<bool>,
    expires: Sent<Parsed<Timestamp>>,
    networks: Sent<Vec<Parsed<IpNet>>>,
    limits: Sent<LimitsSent>,
    note: Sent<String>,
}

/// A text that stands for something, with what is wrong with it.
#[derive(Debug)]
struct Parsed<T>(T);

impl<'de, T: Readable> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::read(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

trait Readable: Sized {
    fn read(text: &str) -> Result<Self, String>;
}

impl Readable for Role {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Readable for Timestamp {
    fn read(text: &str) -> Result<Self, String> {
        let expected = "expected a time such as 2027-01-31T00:00:00Z";
        let at: Self = text.parse().map_err(|_| expected.to_owned())?;
        // As the store keeps it.
        Self::from_second(at.as_second()).map_err(|_| expected.to_owned())
    }
}

impl Readable for IpNet {
    fn read(text: &str) -> Result<Self, String> {
        let address = || text.parse::<std::net::IpAddr>().map(Self::from);
        text.parse().or_else(|_| address()).map_err(|_| {
            "expected a network such as 10.0.0.0/8, or an address such as 192.0.2.7".to_owned()
        })
    }
}

/// `"all"`, or a list of patterns.
#[derive(Debug)]
struct ModelsSent(Models);

impl<'de> Deserialize<'de> for ModelsSent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "models have to be \"all\" or a list of patterns")]
        enum Written {
            Word(String),
            Patterns(Vec<String>),
        }
        let wrong = serde::de::Error::custom::<String>;
        match Written::deserialize(deserializer)? {
            Written::Word(word) if word == "all" => Ok(Self(Models::All)),
            Written::Word(_) => {
                Err(wrong("models have to be \"all\" or a list of patterns".into()))
            }
            Written::Patterns(patterns) => {
                let parsed = patterns.iter().map(|pattern| {
                    pattern.parse().map_err(|error| wrong(format!("{pattern:?}: {error}")))
                });
                parsed.collect::<Result<_, _>>().map(|patterns| Self(Models::Only(patterns)))
            }
        }
    }
}

/// Up to here every whole number is a float of its own.
const MOST_EXACT: f64 = 9_007_199_254_740_991.0;

/// Each limit by its name; those that are not there are none.
#[derive(Debug)]
struct LimitsSent(Allowance);

impl<'de> Deserialize<'de> for LimitsSent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = serde::de::Error::custom::<String>;
        let mut allowance = Allowance::default();
        for (name, number) in BTreeMap::<String, serde_json::Number>::deserialize(deserializer)? {
            let measure = Measure::of(&name).ok_or_else(|| wrong(no_measure(&name)))?;
            let number = whole(&number)
                .ok_or_else(|| wrong(format!("{name}: {number} is no whole number")))?;
            allowance.set(measure, number).map_err(|says| wrong(format!("{name}: {says}")))?;
        }
        Ok(Self(allowance))
    }
}

/// In JSON 10.0 is the same number as 10.
fn whole(number: &serde_json::Number) -> Option<u64> {
    let float =
        || number.as_f64().filter(|it| it.fract() == 0.0 && (0.0..=MOST_EXACT).contains(it));
    number.as_u64().or_else(|| float().map(|it| it as u64))
}

impl Fields {
    /// # Errors
    /// 422 where a key could not be so, whatever else it is.
    fn sound(self) -> Result<Self, Reject> {
        let mut details = KeyDetails { name: "x".to_owned(), ..KeyDetails::default() };
        self.onto(&mut details);
        details.fault().map_or(Ok(self), |fault| Err(Reject::Invalid(fault.into())))
    }

    /// Over what is there.
    fn onto(&self, details: &mut KeyDetails) {
        match &self.name {
            Sent::Nothing => {}
            // No key is called so, which is refused.
            Sent::Null => details.name.clear(),
            Sent::Value(name) => details.name.clone_from(name),
        }
        match &self.note {
            Sent::Nothing => {}
            Sent::Null => details.note.clear(),
            Sent::Value(note) => details.note.clone_from(note),
        }
        self.owner.over(&mut details.owner, Clone::clone);
        self.role.over(&mut details.role, |Parsed(role)| *role);
        self.models.over(&mut details.models, |ModelsSent(models)| models.clone());
        self.cloud.over(&mut details.cloud, Clone::clone);
        self.expires.over(&mut details.expires, |Parsed(at)| *at);
        match &self.limits {
            Sent::Nothing => {}
            Sent::Null => details.limits = Allowance::NONE,
            Sent::Value(LimitsSent(limits)) => details.limits = limits.clone(),
        }
        self.networks
            .over(&mut details.networks, |nets| nets.iter().map(|Parsed(net)| *net).collect());
    }

    /// A key that nothing was said of is a user's.
    fn details(self, role: Option<Role>) -> Result<KeyDetails, Reject> {
        let mut details = KeyDetails { role, ..KeyDetails::default() };
        if let Sent::Nothing = self.name {
            return Err(Reject::Invalid("missing field `name`".into()));
        }
        self.sound()?.onto(&mut details);
        Ok(details)
    }
}

/// Keys that are known by their digests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    keys: Vec<Object<Known>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    sha256: String,
    name: String,
}

/// How to revoke.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Revocation {
    /// Also end what runs.
    now: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rotation {
    overlap: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admission {
    name: String,
}

type Answer = Result<Response<Bytes>, Reject>;

pub(super) async fn list(desk: Desk<'_>, query: &Query) -> Answer {
    let after = query.text("after").map(|id| id.parse::<KeyId>());
    let after = after.transpose().map_err(|error| Reject::Invalid(error.to_string().into()))?;
    let state = query.text("state").map(|state| KeyState::of(state).ok_or(()));
    let state = state
        .transpose()
        .map_err(|()| Reject::Invalid("`state` has to be active, disabled or revoked".into()))?;
    let identity = query.text("identity").map(str::to_owned);
    let asked = KeyQuery { after, limit: query.limit()?, identity, state };
    let page = desk.with_store(move |store| store.keys(&asked)).await?;
    let keys: Vec<_> = page.keys.iter().map(ManagedKey::to_json).collect();
    let next = page.next.map(|id| id.to_string());
    Ok(json_answer(StatusCode::OK, &json!({"keys": keys, "next": next})))
}

pub(super) async fn create(desk: Desk<'_>, fields: Fields) -> Answer {
    let (details, by) = (fields.details(Some(Role::User))?, desk.by());
    let made = desk.with_store(move |store| store.create_key(details, &by)).await?;
    Ok(shown_once(&made))
}

/// Whoever has them goes on using them, with the role of a key in the file.
pub(super) async fn import(desk: Desk<'_>, Import { keys }: Import) -> Answer {
    if keys.len() > MOST_IMPORTED {
        let says = format!("{MOST_IMPORTED} keys at most in one import");
        return Err(Reject::Invalid(says.into()));
    }
    let known = |Object(Known { sha256, name })| {
        let digest = key_digest(&sha256)
            .map_err(|says| Reject::Invalid(format!("`sha256`: {says}").into()))?;
        let details = KeyDetails { name, ..KeyDetails::default() };
        match details.fault() {
            Some(fault) => Err(Reject::Invalid(fault.into())),
            None => Ok((digest, details)),
        }
    };
    let all = keys.into_iter().map(known).collect::<Result<Vec<_>, _>>()?;
    let by = desk.by();
    let came = desk.with_store(move |store| store.import_keys(all, &by)).await?;
    Ok(json_answer(StatusCode::OK, &json!({"added": came.added, "known": came.known})))
}

pub(super) async fn show(desk: Desk<'_>, id: &str) -> Answer {
    let id = key_id(id)?;
    let found = desk.with_store(move |store| store.find_keys(id.as_str())).await?;
    let key = found.first().ok_or_else(|| no_key(id.as_str()))?;
    Ok(json_answer(StatusCode::OK, &key.to_json()))
}

pub(super) async fn change(desk: Desk<'_>, id: &str, fields: Fields) -> Answer {
    let (id, by, fields) = (key_id(id)?, desk.by(), fields.sound()?);
    let change = move |details: &mut KeyDetails| fields.onto(details);
    let key = desk.with_store(move |store| store.change_key(id, &by, change)).await?;
    Ok(json_answer(StatusCode::OK, &key.to_json()))
}

pub(super) async fn set_state(desk: Desk<'_>, id: &str, state: KeyState) -> Answer {
    let (id, by) = (key_id(id)?, desk.by());
    let key = desk.with_store(move |store| store.set_key_state(id, state, &by)).await?;
    Ok(json_answer(StatusCode::OK, &key.to_json()))
}

pub(super) async fn revoke(desk: Desk<'_>, id: &str, asked: Revocation) -> Answer {
    let (id, by) = (key_id(id)?, desk.by());
    let key = desk.with_store(move |store| store.set_key_state(id, KeyState::Revoked, &by)).await?;
    let ended = if asked.now { desk.limits.end(id) } else { 0 };
    Ok(json_answer(StatusCode::OK, &with(key.to_json(), "ended", json!(ended))))
}

pub(super) async fn rotate(desk: Desk<'_>, id: &str, asked: Rotation) -> Answer {
    let (id, by) = (key_id(id)?, desk.by());
    let overlap = asked.overlap.as_deref().unwrap_or(USUAL_OVERLAP);
    let overlap =
        duration(overlap).map_err(|why| Reject::Invalid(format!("`overlap`: {why}").into()))?;
    if overlap > LONGEST_OVERLAP {
        return Err(Reject::Invalid("`overlap` is 400d at most".into()));
    }
    let made = desk.with_store(move |store| store.rotate_key(id, overlap, &by)).await?;
    Ok(shown_once(&made))
}

/// Enrols the key of a machine that was told a code; the code is good once.
pub(super) async fn allow(desk: Desk<'_>, code: &str, asked: Admission) -> Answer {
    // By [roles], as for a machine in the file.
    let details = KeyDetails { name: asked.name, ..KeyDetails::default() };
    if let Some(fault) = details.fault() {
        return Err(Reject::Invalid(fault.into()));
    }
    desk.store()?;
    let knocks = desk.memory.knocks();
    let knock = knocks.take(code, desk.now).ok_or_else(|| {
        let says = "no machine was told this code in the last hour, or it has been let in";
        Reject::NotFound(says.into())
    })?;
    let (by, digest) = (desk.by(), knock.key.digest());
    let done = desk.with_store(move |store| store.allow_signing_key(digest, details, &by)).await;
    if done.is_err() {
        knocks.put_back(code, knock);
    }
    Ok(json_answer(StatusCode::CREATED, &done?.to_json()))
}

fn shown_once((key, secret): &(ManagedKey, Secret)) -> Response<Bytes> {
    let json = with(key.to_json(), "secret", json!(secret.as_str()));
    json_answer(StatusCode::CREATED, &json)
}

fn with(mut json: Value, field: &str, value: Value) -> Value {
    if let Value::Object(json) = &mut json {
        json.insert(field.to_owned(), value);
    }
    json
}

/// An id, and nothing but one: names are for people.
fn key_id(text: &str) -> Result<KeyId, Reject> {
    // It may be the key itself, which nobody should read in a log.
    text.parse()
        .map_err(|_| Reject::NotFound("that is no key's id; the list of keys tells them".into()))
}

fn no_key(id: &str) -> Reject {
    Reject::NotFound(format!("no key has the id {id}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_whole_number_however_json_writes_it() {
        let read = |text: &str| serde_json::from_str::<LimitsSent>(text).map(|it| it.0);
        for text in ["10", "10.0", "1e1"] {
            let limits = read(&format!("{{\"concurrent\":{text}}}")).unwrap();
            assert_eq!(limits.get(Measure::Concurrent), Some(10), "{text}");
        }
        for text in ["10.5", "-1.0", "1e300", "\"10\"", "null"] {
            assert!(read(&format!("{{\"concurrent\":{text}}}")).is_err(), "{text}");
        }
    }
}
