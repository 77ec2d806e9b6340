//! The audit trail: who changed what, and what it was before. It is only ever added to.

use std::net::IpAddr;

use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use serde_json::{Value, json};

use super::{Store, StoreError};

/// Most entries of one page.
const MOST: usize = 1000;
const LONGEST_SUBJECT: usize = 256;
/// The action of what anybody can add to the trail; more than this is not kept, nor for longer.
pub const LOGIN_FAILED: &str = "login failed";
const FAILED_LOGINS: Kept = Kept { most: 10_000, days: 90 };

/// How much of something is kept.
#[derive(Debug, Clone, Copy)]
struct Kept {
    most: i64,
    days: i64,
}

/// On whose behalf something is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// An identity's name, or `cli:` and a user of the machine's.
    pub who: String,
    /// From where; `None` for a command on the machine itself.
    pub client: Option<IpAddr>,
}

/// Something to be kept in the trail that is no change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// One word or two, as `login failed`.
    pub action: &'static str,
    /// What it was about; never a secret.
    pub subject: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// One line of the trail.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// Counts up.
    pub number: u64,
    pub at: Timestamp,
    pub who: String,
    pub client: Option<String>,
    pub action: String,
    pub subject: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl AuditEntry {
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "number": self.number,
            "at": self.at.to_string(),
            "who": self.who,
            "client": self.client,
            "action": self.action,
            "subject": self.subject,
            "before": self.before,
            "after": self.after,
        })
    }
}

/// Which entries, the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only those with a lesser number; `None` begins with the newest.
    pub before: Option<u64>,
    /// 1000 at the most.
    pub limit: usize,
    /// Only those about this.
    pub subject: Option<String>,
}

impl Store {
    /// One page of the trail; the next one begins before its last number.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        let limit = i64::try_from(query.limit.min(MOST)).unwrap_or(0);
        let before = query.before.map_or(i64::MAX, |number| i64::try_from(number).unwrap_or(0));
        let sql = match query.subject {
            Some(_) => {
                "SELECT seq, at, who, client, action, subject, before, after FROM audit
                 WHERE seq < ?1 AND subject = ?3 ORDER BY seq DESC LIMIT ?2"
            }
            None => {
                "SELECT seq, at, who, client, action, subject, before, after FROM audit
                 WHERE seq < ?1 AND ?3 IS NULL ORDER BY seq DESC LIMIT ?2"
            }
        };
        self.read(|transaction| {
            let mut statement = transaction.prepare(sql)?;
            let rows = statement.query_map(params![before, limit, query.subject], entry)?;
            rows.collect()
        })
    }

    /// Adds to the trail what is no change of a key, such as a failed login.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn note(&self, event: Event, by: &Actor) -> Result<(), StoreError> {
        let by = by.clone();
        self.write(move |transaction| {
            add(transaction, &event, &by)?;
            if event.action == LOGIN_FAILED {
                prune(transaction, FAILED_LOGINS, Timestamp::now())?;
            }
            Ok(())
        })
    }
}

/// In the transaction of the change itself: there is none without the other.
pub(super) fn add(
    transaction: &Transaction<'_>,
    event: &Event,
    by: &Actor,
) -> rusqlite::Result<()> {
    let Event { action, subject, before, after } = event;
    let subject: String = subject.chars().take(LONGEST_SUBJECT).collect();
    let text = |value: &Option<Value>| value.as_ref().map(Value::to_string);
    transaction
        .prepare_cached(
            "INSERT INTO audit (at, who, client, action, subject, before, after)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            Timestamp::now().as_millisecond(),
            by.who,
            by.client.map(|client| client.to_string()),
            action,
            subject,
            text(before),
            text(after),
        ])?;
    Ok(())
}

/// Failed logins alone: the schema keeps all else.
fn prune(transaction: &Transaction<'_>, kept: Kept, now: Timestamp) -> rusqlite::Result<()> {
    let oldest = now.as_millisecond() - kept.days * 24 * 3600 * 1000;
    let sql = "DELETE FROM audit WHERE action = 'login failed' AND (at < ?1 OR seq <= (
                   SELECT seq FROM audit WHERE action = 'login failed'
                   ORDER BY seq DESC LIMIT 1 OFFSET ?2))";
    transaction.prepare_cached(sql)?.execute(params![oldest, kept.most])?;
    Ok(())
}

fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok());
    Ok(AuditEntry {
        number: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
        at: Timestamp::from_millisecond(row.get(1)?).unwrap_or_default(),
        who: row.get(2)?,
        client: row.get(3)?,
        action: row.get(4)?,
        subject: row.get(5)?,
        before: json(row.get(6)?),
        after: json(row.get(7)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_logins_are_kept_by_number_and_by_age_and_all_else_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let by = Actor { who: "nobody".to_owned(), client: None };
        let event = |action, subject: String| Event { action, subject, before: None, after: None };
        for number in 0..30 {
            store.note(event(LOGIN_FAILED, number.to_string()), &by).unwrap();
            store.note(event("create", number.to_string()), &by).unwrap();
        }
        let kept = |action: &str| {
            let all = store.audit(&AuditQuery { limit: 1000, ..AuditQuery::default() }).unwrap();
            let of_it = all.into_iter().filter(|entry| entry.action == action);
            of_it.map(|entry| entry.subject).collect::<Vec<_>>()
        };
        let prune_to = |most, days, later: i64| {
            let now = Timestamp::now() + jiff::SignedDuration::from_hours(later * 24);
            let kept = Kept { most, days };
            store.write(move |transaction| Ok(prune(transaction, kept, now)?)).unwrap();
        };
        assert_eq!(kept(LOGIN_FAILED).len(), 30, "few, and young");
        prune_to(10, 90, 0);
        assert_eq!(kept(LOGIN_FAILED), (20..30).rev().map(|it| it.to_string()).collect::<Vec<_>>());
        prune_to(10, 90, 89);
        assert_eq!(kept(LOGIN_FAILED).len(), 10);
        prune_to(10, 90, 91);
        assert!(kept(LOGIN_FAILED).is_empty());
        assert_eq!(kept("create").len(), 30);
        let every = store.write(|transaction| Ok(transaction.execute("DELETE FROM audit", [])?));
        assert!(every.is_err(), "by nobody");
    }
}
