//! Failed logins of the admin API for the audit trail, gathered so that a flood of them does not fill
//! the store.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client_addr::{ClientAddr, network};
use crate::store::{Actor, Event, LOGIN_FAILED};

/// Each address has a line at once, and one more with the count when this is over.
const GATHER: Duration = Duration::from_secs(60);
/// Addresses with a line of their own in that time; the others share one.
const MOST_ADDRESSES: usize = 16;

/// Users whose passwords were tried, that the line of an address names.
const MOST_NAMES: usize = 8;

/// What failed since the last time that it was written.
#[derive(Debug, Default)]
pub struct FailedLogins(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    since: Option<Instant>,
    by_address: HashMap<IpAddr, More>,
    others: u64,
}

/// What one address failed at beyond the first, which has been written.
#[derive(Debug)]
struct More {
    client: IpAddr,
    count: u64,
    names: BTreeSet<String>,
}

/// What is to be written, and from where it came.
pub(crate) type Note = (Event, Actor);

impl FailedLogins {
    /// Counts one, with the user whose password it was to be; what is to be written now, if it is the
    /// first of its address.
    pub fn count(
        &self,
        client: ClientAddr,
        code: &'static str,
        name: Option<String>,
        now: Instant,
    ) -> Option<Note> {
        let mut gathered = self.lock();
        gathered.since.get_or_insert(now);
        let is_full = gathered.by_address.len() >= MOST_ADDRESSES;
        match gathered.by_address.get_mut(&network(client.ip())) {
            Some(more) => {
                more.count += 1;
                let is_new = more.names.len() < MOST_NAMES;
                more.names.extend(name.filter(|_| is_new));
            }
            None if is_full => gathered.others += 1,
            None => {
                let client = client.ip();
                let more = More { client, count: 0, names: BTreeSet::new() };
                gathered.by_address.insert(network(client), more);
                let after = match name {
                    Some(name) => json!({"code": code, "name": name}),
                    None => json!({"code": code}),
                };
                return Some(note(Some(client), after));
            }
        }
        None
    }

    /// What has come together since, when it is time.
    pub fn due(&self, now: Instant) -> Vec<Note> {
        let mut gathered = self.lock();
        let is_due = |since| now.saturating_duration_since(since) >= GATHER;
        if !gathered.since.is_some_and(is_due) {
            return Vec::new();
        }
        let Gathered { by_address, others, .. } = std::mem::take(&mut *gathered);
        let more = by_address.into_values().filter(|more| more.count > 0);
        let mut notes: Vec<_> = more.map(More::into_note).collect();
        if others > 0 {
            notes.push(note(None, json!({"more": others, "from": "other addresses"})));
        }
        notes
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl More {
    fn into_note(self) -> Note {
        let Self { client, count, names } = self;
        let after = match names.is_empty() {
            true => json!({"more": count}),
            false => json!({"more": count, "names": names}),
        };
        note(Some(client), after)
    }
}

/// Who asked is nobody, whatever was claimed. What was presented is never in it: it may be somebody's
/// password with one letter wrong.
fn note(client: Option<IpAddr>, after: serde_json::Value) -> Note {
    let subject = "the admin API".to_owned();
    let event = Event { action: LOGIN_FAILED, subject, before: None, after: Some(after) };
    (event, Actor { who: "nobody".to_owned(), client })
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::client_addr::{PeerAddr, TrustedProxies};

    fn from(number: u32) -> ClientAddr {
        let peer = PeerAddr::new(IpAddr::V4(number.into()));
        TrustedProxies::default().client_addr(peer, &HeaderMap::new())
    }

    #[test]
    fn a_flood_is_a_few_lines_a_minute_and_none_is_forgotten() {
        let (failed, now) = (FailedLogins::default(), Instant::now());
        let mut lines = 0;
        for number in 0..1000 {
            for _ in 0..5 {
                let client = from(0xc000_0000 + number);
                lines += usize::from(failed.count(client, "x", None, now).is_some());
            }
        }
        assert_eq!(lines, MOST_ADDRESSES);
        assert!(failed.due(now).is_empty(), "too early");
        let due = failed.due(now + GATHER);
        assert_eq!(due.len(), MOST_ADDRESSES + 1);
        let counted = |(event, _): &Note| event.after.as_ref().unwrap()["more"].as_u64().unwrap();
        let more: u64 = due.iter().map(counted).sum();
        assert_eq!(more + lines as u64, 5000);
        assert!(failed.due(now + GATHER * 2).is_empty(), "told twice");
        assert!(failed.count(from(1), "x", None, now + GATHER).is_some(), "a new minute");
    }

    #[test]
    fn users_whose_passwords_were_tried_are_named_and_not_without_end() {
        let (failed, now) = (FailedLogins::default(), Instant::now());
        let user = |number: u32| Some(format!("user{number}"));
        let (first, actor) = failed.count(from(1), "x", user(0), now).unwrap();
        assert_eq!(first.after.unwrap(), json!({"code": "x", "name": "user0"}));
        assert_eq!(actor.who, "nobody");
        for number in 0..2000 {
            assert!(failed.count(from(1), "x", user(number / 2), now).is_none());
        }
        assert!(failed.count(from(2), "x", None, now).is_some());
        failed.count(from(2), "x", None, now);
        let due = failed.due(now + GATHER);
        let after = |number| {
            let of = |(_, actor): &&Note| actor.client == Some(from(number).ip());
            due.iter().find(of).unwrap().0.after.clone().unwrap()
        };
        let names: Vec<_> = (0..8).filter_map(user).collect();
        assert_eq!(after(1), json!({"more": 2000, "names": names}));
        assert_eq!(after(2), json!({"more": 1}));
    }
}
