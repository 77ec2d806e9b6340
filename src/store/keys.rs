//! Managed keys in the store: made, changed and found, each change with its line in the audit trail.

use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, ToSql, Transaction, params, params_from_iter};
use serde_json::{Value, json};

use super::audit::{self, Actor, Event};
use super::key::{
    KeyDetails, KeyForm, KeyId, KeyState, KeyUse, ManagedKey, Rotated, models_from_json,
    models_to_json,
};
use super::secret::Secret;
use super::{Fault, Store, StoreError, files};

/// Most keys of one page.
const MOST: usize = 1000;
const COLUMNS: &str = "id, form, digest, name, owner, role, models, cloud, expires, networks, note, \
     state, created, created_by, rotated_to, overlap_until, used, used_from, limits";

/// The same for the keys in memory, of which nobody asks what for, who made them and when they were used.
const COLUMNS_HELD: &str = "id, form, digest, name, owner, role, models, cloud, expires, networks, '', \
     state, created, '', rotated_to, overlap_until, NULL, NULL, limits, \
     owner IS NULL AND models IS NULL AND cloud IS NULL AND expires IS NULL AND networks IS NULL \
     AND rotated_to IS NULL AND overlap_until IS NULL AND limits = ''";
/// The last of these: whether [`plain_key_of`] sees all, as of most keys; there may be a million.
const PLAIN: usize = 19;

/// Which keys, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyQuery {
    /// Only those that were made after this one.
    pub after: Option<KeyId>,
    /// 1000 at the most.
    pub limit: usize,
    /// Only those of this identity: by owner, or else by name.
    pub identity: Option<String>,
    pub state: Option<KeyState>,
}

/// One page of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPage {
    pub keys: Vec<ManagedKey>,
    /// Where the next page begins, if there is one.
    pub next: Option<KeyId>,
}

/// A row of the table of keys.
#[derive(Debug)]
pub(super) enum Read {
    Key(Box<ManagedKey>),
    /// One that this version does not understand.
    Odd {
        id: String,
        digest: Option<[u8; 32]>,
    },
}

/// What an import came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    pub added: usize,
    /// Keys that were there already, and stay as they are.
    pub known: usize,
}

impl Store {
    /// Makes a key. Its text is in the answer, and nowhere else.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for details that cannot be.
    pub fn create_key(
        &self,
        details: KeyDetails,
        by: &Actor,
    ) -> Result<(ManagedKey, Secret), StoreError> {
        let made = self.create_keys(vec![details], by)?;
        made.into_iter().next().ok_or_else(|| StoreError::Failed("no key was made".to_owned()))
    }

    /// Makes all of them, or none.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for details that cannot be.
    pub fn create_keys(
        &self,
        all: Vec<KeyDetails>,
        by: &Actor,
    ) -> Result<Vec<(ManagedKey, Secret)>, StoreError> {
        let mut made = Vec::with_capacity(all.len());
        for details in all {
            let secret = Secret::draw().map_err(no_chance)?;
            made.push((new_key(KeyForm::Secret, secret.digest(), details, by)?, secret));
        }
        let keys: Vec<_> = made.iter().map(|(key, _)| key.clone()).collect();
        let by = by.clone();
        self.change(move |transaction, generation| {
            keys.iter().try_for_each(|key| insert(transaction, key, generation, ("create", &by)))
        })?;
        Ok(made)
    }

    /// Takes over keys that are known by their digests; those that are there already stay as they
    /// are.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for details that cannot be.
    pub fn import_keys(
        &self,
        all: Vec<([u8; 32], KeyDetails)>,
        by: &Actor,
    ) -> Result<Imported, StoreError> {
        let keys: Vec<_> = all
            .into_iter()
            .map(|(digest, details)| new_key(KeyForm::Secret, digest, details, by))
            .collect::<Result<_, _>>()?;
        let by = by.clone();
        self.change(move |transaction, generation| {
            let mut came = Imported { added: 0, known: 0 };
            for key in &keys {
                if by_digest(transaction, &key.digest)?.is_some() {
                    came.known += 1;
                } else {
                    insert(transaction, key, generation, ("import", &by))?;
                    came.added += 1;
                }
            }
            Ok(came)
        })
    }

    /// Lets the owner of a signing key in; `digest` is the SHA-256 of the public key as SSH has it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where it is known already, or for details that cannot be.
    pub fn allow_signing_key(
        &self,
        digest: [u8; 32],
        details: KeyDetails,
        by: &Actor,
    ) -> Result<ManagedKey, StoreError> {
        let key = new_key(KeyForm::Signing, digest, details, by)?;
        let (kept, by) = (key.clone(), by.clone());
        self.change(move |transaction, generation| {
            if let Some(known) = by_digest(transaction, &kept.digest)? {
                let says = format!(
                    "this signing key is enrolled already, as {} ({}, {}); `portcullis key enable` \
                     and `key show` tell more",
                    known.details.name,
                    known.id,
                    known.state.as_str()
                );
                return Err(Fault::Asked(StoreError::Refused(says)));
            }
            insert(transaction, &kept, generation, ("allow", &by))
        })?;
        Ok(key)
    }

    /// One page.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn keys(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let limit = query.limit.clamp(1, MOST);
        let sql = format!(
            "SELECT {COLUMNS} FROM key
             WHERE seq > coalesce((SELECT seq FROM key WHERE id = ?1), 0)
               AND (?2 IS NULL OR owner = ?2 OR (owner IS NULL AND name = ?2))
               AND (?3 IS NULL OR state = ?3)
             ORDER BY seq LIMIT ?4"
        );
        let mut keys = self.read(|transaction| {
            let mut statement = transaction.prepare(&sql)?;
            let rows = statement.query_map(
                params![
                    query.after.map(|id| id.to_string()),
                    query.identity,
                    query.state.map(KeyState::as_str),
                    // One more tells whether there is a next page.
                    i64::try_from(limit).unwrap_or(0) + 1,
                ],
                key_of,
            )?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let more = keys.len() > limit;
        keys.truncate(limit);
        Ok(KeyPage { next: keys.last().filter(|_| more).map(|key| key.id), keys })
    }

    /// The key with this id, or else every key of this name, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`] where there is none.
    pub fn find_keys(&self, id_or_name: &str) -> Result<Vec<ManagedKey>, StoreError> {
        let asked = id_or_name.to_owned();
        let keys = self.read(|transaction| {
            let sql = format!(
                "SELECT {COLUMNS} FROM key WHERE id = ?1
                 UNION ALL SELECT {COLUMNS} FROM key
                 WHERE name = ?1 AND NOT EXISTS (SELECT 1 FROM key WHERE id = ?1)"
            );
            let mut statement = transaction.prepare(&sql)?;
            statement.query_map([&asked], key_of)?.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        if keys.is_empty() { Err(StoreError::NoSuchKey(id_or_name.to_owned())) } else { Ok(keys) }
    }

    /// Changes what may be changed; refused for a key that is revoked.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`], or [`StoreError::Refused`] for details that cannot be.
    pub fn change_key(
        &self,
        id: KeyId,
        by: &Actor,
        change: impl FnOnce(&mut KeyDetails) + Send + 'static,
    ) -> Result<ManagedKey, StoreError> {
        self.alter(id, ("change", by), move |key| {
            change(&mut key.details);
            match key.details.fault() {
                Some(fault) => Err(StoreError::Refused(fault)),
                None => Ok(()),
            }
        })
    }

    /// Disables, enables or revokes; what is so already stays, without a line in the trail.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`], or [`StoreError::Refused`] for one that was revoked.
    pub fn set_key_state(
        &self,
        id: KeyId,
        state: KeyState,
        by: &Actor,
    ) -> Result<ManagedKey, StoreError> {
        let action = match state {
            KeyState::Active => "enable",
            KeyState::Disabled => "disable",
            KeyState::Revoked => "revoke",
        };
        self.alter(id, (action, by), move |key| {
            key.state = state;
            Ok(())
        })
    }

    /// Makes a key that takes the place of this one; both count for as long as `overlap`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a key that is not active, was rotated, or signs.
    pub fn rotate_key(
        &self,
        id: KeyId,
        overlap: Duration,
        by: &Actor,
    ) -> Result<(ManagedKey, Secret), StoreError> {
        let secret = Secret::draw().map_err(no_chance)?;
        let (digest, by) = (secret.digest(), by.clone());
        let next = self.change(move |transaction, generation| {
            let mut old = existing(transaction, id)?;
            if let Some(why) = old.why_not_rotated() {
                return Err(Fault::Asked(StoreError::Refused(format!("{id} {why}"))));
            }
            let next = new_key(KeyForm::Secret, digest, old.details.clone(), &by)?;
            insert(transaction, &next, generation, ("create", &by))?;
            let before = old.to_json();
            let overlap_until = after(Timestamp::now(), overlap);
            old.rotated = Some(Rotated { to: next.id, overlap_until });
            update(transaction, &old, generation)?;
            note(transaction, &old, Some(before), ("rotate", &by))?;
            Ok(next)
        })?;
        Ok((next, secret))
    }

    /// Keeps when keys were used last; no change in the sense of the trail.
    pub(super) fn keep_uses(&self, uses: Vec<(KeyId, KeyUse)>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let mut statement = transaction
                .prepare_cached("UPDATE key SET used = ?2, used_from = ?3 WHERE id = ?1")?;
            for (id, KeyUse { at, from }) in uses {
                statement.execute(params![id.as_str(), at.as_second(), from.to_string()])?;
            }
            Ok(())
        })
    }

    /// Every key that changed after generation `since`, handed over one by one without what stands
    /// in no [`COLUMNS_HELD`], and the generation that this is.
    pub(super) fn changed_since(
        &self,
        since: u64,
        mut each: impl FnMut(Read),
    ) -> Result<u64, StoreError> {
        let since = i64::try_from(since).unwrap_or(i64::MAX);
        self.read(|transaction| {
            // All of them are read as they lie; by the index each would be looked for.
            let how = if since == 0 { "NOT INDEXED" } else { "INDEXED BY key_changed" };
            let sql = format!("SELECT {COLUMNS_HELD} FROM key {how} WHERE changed > ?1");
            let mut statement = transaction.prepare(&sql)?;
            let mut rows = statement.query([since])?;
            while let Some(row) = rows.next()? {
                let key = if row.get(PLAIN)? { plain_key_of(row) } else { key_of(row) };
                each(key.map_or_else(|_| odd_row(row), |key| Read::Key(Box::new(key))));
            }
            generation(transaction)
        })
    }

    pub(super) fn count_keys(&self) -> Result<usize, StoreError> {
        let count = self.read(|transaction| {
            transaction.query_row("SELECT count(*) FROM key", [], |row| row.get::<_, i64>(0))
        })?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// The number of the last change of a key.
    pub(super) fn generation(&self) -> Result<u64, StoreError> {
        self.read(generation)
    }

    /// Writes the stamp anew where it does not say what the store does.
    pub(super) fn stamp_if_due(&self) -> Result<(), StoreError> {
        if files::stamped(self.folder()) == Some(self.generation()?) {
            return Ok(());
        }
        files::stamp(self.folder(), || self.generation())
    }

    fn alter(
        &self,
        id: KeyId,
        (action, by): (&'static str, &Actor),
        alter: impl FnOnce(&mut ManagedKey) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<ManagedKey, StoreError> {
        let by = by.clone();
        self.change(move |transaction, generation| {
            let mut key = existing(transaction, id)?;
            let before = key.clone();
            alter(&mut key)?;
            if key == before {
                return Ok(key);
            }
            if before.state == KeyState::Revoked {
                let says = format!("{id} is revoked, which is for ever; make a new key");
                return Err(Fault::Asked(StoreError::Refused(says)));
            }
            update(transaction, &key, generation)?;
            note(transaction, &key, Some(before.to_json()), (action, &by))?;
            Ok(key)
        })
    }

    /// A change of keys: whole, under a generation of its own, and told to other processes.
    pub(super) fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Transaction<'_>, i64) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let done = self.write(move |transaction| {
            let generation = transaction.query_row(
                "UPDATE generation SET number = number + 1 RETURNING number",
                [],
                |row| row.get(0),
            )?;
            change(transaction, generation)
        })?;
        // The change stands; a gate that does not see the stamp asks the store itself in a second.
        if let Err(error) = files::stamp(self.folder(), || self.generation()) {
            tracing::warn!("the change takes a second to be seen: {error}");
        }
        Ok(done)
    }
}

fn no_chance(error: getrandom::Error) -> StoreError {
    StoreError::Failed(format!("the system gives no random numbers: {error}"))
}

fn new_key(
    form: KeyForm,
    digest: [u8; 32],
    details: KeyDetails,
    by: &Actor,
) -> Result<ManagedKey, StoreError> {
    if let Some(fault) = details.fault() {
        return Err(StoreError::Refused(fault));
    }
    Ok(ManagedKey {
        id: KeyId::draw().map_err(no_chance)?,
        form,
        digest,
        details,
        state: KeyState::Active,
        created: whole_second(Timestamp::now()),
        created_by: by.who.clone(),
        rotated: None,
        used: None,
    })
}

/// As the store keeps it.
fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    whole_second(now.checked_add(wait).unwrap_or(Timestamp::MAX))
}

fn existing(transaction: &Transaction<'_>, id: KeyId) -> Result<ManagedKey, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM key WHERE id = ?1");
    let found = transaction.prepare_cached(&sql)?.query_row([id.as_str()], key_of).optional()?;
    found.ok_or_else(|| Fault::Asked(StoreError::NoSuchKey(id.to_string())))
}

fn by_digest(
    transaction: &Transaction<'_>,
    digest: &[u8; 32],
) -> rusqlite::Result<Option<ManagedKey>> {
    let sql = format!("SELECT {COLUMNS} FROM key WHERE digest = ?1");
    transaction.prepare_cached(&sql)?.query_row([digest.as_slice()], key_of).optional()
}

fn insert(
    transaction: &Transaction<'_>,
    key: &ManagedKey,
    generation: i64,
    (action, by): (&'static str, &Actor),
) -> Result<(), Fault> {
    let row = row_of(key, generation);
    let places: Vec<_> = (1..=row.len()).map(|place| format!("?{place}")).collect();
    let sql = format!("INSERT INTO key ({COLUMNS}, changed) VALUES ({})", places.join(", "));
    transaction.prepare_cached(&sql)?.execute(params_from_iter(row))?;
    note(transaction, key, None, (action, by))?;
    Ok(())
}

/// What stands in [`COLUMNS`], and the change that it comes from.
fn row_of(key: &ManagedKey, generation: i64) -> Vec<Box<dyn ToSql + '_>> {
    let KeyDetails { name, owner, role, models, cloud, expires, networks, limits, note } =
        &key.details;
    let seconds = |at: Option<Timestamp>| Box::new(at.map(Timestamp::as_second));
    vec![
        Box::new(key.id.as_str()),
        Box::new(key.form.as_str()),
        Box::new(key.digest.as_slice()),
        Box::new(name),
        Box::new(owner),
        Box::new(role.map(|role| role.to_string())),
        Box::new(models.as_ref().map(|models| models_to_json(models).to_string())),
        Box::new(cloud),
        seconds(*expires),
        Box::new(networks.as_deref().map(networks_to_json)),
        Box::new(note),
        Box::new(key.state.as_str()),
        seconds(Some(key.created)),
        Box::new(&key.created_by),
        Box::new(key.rotated.map(|it| it.to.to_string())),
        seconds(key.rotated.map(|it| it.overlap_until)),
        seconds(key.used.map(|it| it.at)),
        Box::new(key.used.map(|it| it.from.to_string())),
        Box::new(limits.to_string()),
        Box::new(generation),
    ]
}

fn networks_to_json(networks: &[IpNet]) -> String {
    json!(networks.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string()
}

/// Writes the whole row: there is one who writes, and what it read before stands there still.
fn update(
    transaction: &Transaction<'_>,
    key: &ManagedKey,
    generation: i64,
) -> rusqlite::Result<()> {
    let columns = COLUMNS.split(", ").chain(["changed"]).enumerate();
    let places: Vec<_> = columns.map(|(at, name)| format!("{name} = ?{}", at + 1)).collect();
    let sql = format!("UPDATE key SET {} WHERE id = ?1", places.join(", "));
    transaction.prepare_cached(&sql)?.execute(params_from_iter(row_of(key, generation)))?;
    Ok(())
}

fn note(
    transaction: &Transaction<'_>,
    key: &ManagedKey,
    before: Option<Value>,
    (action, by): (&'static str, &Actor),
) -> rusqlite::Result<()> {
    let subject = format!("key {}", key.id);
    audit::add(transaction, &Event { action, subject, before, after: Some(key.to_json()) }, by)
}

fn generation(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let number =
        transaction.query_row("SELECT number FROM generation", [], |row| row.get::<_, i64>(0))?;
    Ok(u64::try_from(number).unwrap_or_default())
}

/// A row that this version does not understand is no key that lets anybody in.
fn key_of(row: &Row<'_>) -> rusqlite::Result<ManagedKey> {
    let (text, required) = (|at| text(row, at), |at| required(row, at));
    let time = |at| time(row, at);
    let list = |at| -> rusqlite::Result<Option<Vec<String>>> {
        text(at)?.map(|text| serde_json::from_str(text).map_err(|_| odd(at))).transpose()
    };
    let models = text(6)?.map(|text| {
        let json = serde_json::from_str(text).map_err(|_| odd(6))?;
        models_from_json(&json).ok_or_else(|| odd(6))
    });
    let networks = list(9)?.map(|nets| nets.iter().map(|net| net.parse()).collect());
    let (to, overlap_until) = (text(14)?, time(15)?);
    let (at, from) = (time(16)?, text(17)?);
    let plain = plain_key_of(row)?;
    Ok(ManagedKey {
        details: KeyDetails {
            owner: text(4)?.map(str::to_owned),
            models: models.transpose()?,
            cloud: row.get(7)?,
            expires: time(8)?,
            networks: networks.transpose().map_err(|_| odd(9))?,
            limits: required(18)?.parse().map_err(|_| odd(18))?,
            note: required(10)?.to_owned(),
            ..plain.details
        },
        created_by: required(13)?.to_owned(),
        rotated: match (to, overlap_until) {
            (Some(to), Some(overlap_until)) => {
                Some(Rotated { to: to.parse().map_err(|_| odd(14))?, overlap_until })
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(odd(14)),
        },
        used: at.zip(from).and_then(|(at, from)| Some(KeyUse { at, from: from.parse().ok()? })),
        ..plain
    })
}

/// A key as if it had no terms of its own.
fn plain_key_of(row: &Row<'_>) -> rusqlite::Result<ManagedKey> {
    Ok(ManagedKey {
        id: required(row, 0)?.parse().map_err(|_| odd(0))?,
        form: KeyForm::of(required(row, 1)?).ok_or_else(|| odd(1))?,
        digest: row.get(2)?,
        details: KeyDetails {
            name: required(row, 3)?.to_owned(),
            role: text(row, 5)?.map(str::parse).transpose().map_err(|_| odd(5))?,
            ..KeyDetails::default()
        },
        state: KeyState::of(required(row, 11)?).ok_or_else(|| odd(11))?,
        created: time(row, 12)?.ok_or_else(|| odd(12))?,
        created_by: String::new(),
        rotated: None,
        used: None,
    })
}

fn text<'a>(row: &'a Row<'_>, at: usize) -> rusqlite::Result<Option<&'a str>> {
    row.get_ref(at)?.as_str_or_null().map_err(|_| odd(at))
}

fn required<'a>(row: &'a Row<'_>, at: usize) -> rusqlite::Result<&'a str> {
    text(row, at)?.ok_or_else(|| odd(at))
}

fn time(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Timestamp>> {
    let second: Option<i64> = row.get(at)?;
    second.map(|second| Timestamp::from_second(second).map_err(|_| odd(at))).transpose()
}

/// One bad row is no reason not to see the others.
fn odd_row(row: &Row<'_>) -> Read {
    let text = row.get_ref(0).ok().and_then(|id| id.as_bytes().ok());
    let id = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
    Read::Odd { id, digest: row.get(2).ok() }
}

fn odd(column: usize) -> rusqlite::Error {
    let says = "a key's row holds what this version does not understand";
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, says.into())
}
