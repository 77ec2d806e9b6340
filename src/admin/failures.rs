//! Failed logins of the admin API for the audit trail, gathered so that a flood of them does not fill
//! the store.

use std::collections::HashMap;
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

/// What failed since the last time that it was written.
#[derive(Debug, Default)]
pub struct FailedLogins(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    since: Option<Instant>,
    /// Beyond the first, which has been written.
    by_address: HashMap<IpAddr, (IpAddr, u64)>,
    others: u64,
}

/// What is to be written, and from where it came.
pub(crate) type Note = (Event, Actor);

impl FailedLogins {
    /// Counts one; what is to be written now, if it is the first of its address.
    pub fn count(&self, client: ClientAddr, code: &'static str, now: Instant) -> Option<Note> {
        let mut gathered = self.lock();
        gathered.since.get_or_insert(now);
        let is_full = gathered.by_address.len() >= MOST_ADDRESSES;
        match gathered.by_address.get_mut(&network(client.ip())) {
            Some((_, more)) => *more += 1,
            None if is_full => gathered.others += 1,
            None => {
                gathered.by_address.insert(network(client.ip()), (client.ip(), 0));
                return Some(note(Some(client.ip()), json!({"code": code})));
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
        let more = by_address.into_values().filter(|(_, more)| *more > 0);
        let mut notes: Vec<_> =
            more.map(|(client, more)| note(Some(client), json!({"more": more}))).collect();
        if others > 0 {
            notes.push(note(None, json!({"more": others, "from": "other addresses"})));
        }
        notes
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was presented is never in it: it may be somebody's password with one letter wrong.
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
                lines += usize::from(failed.count(from(0xc000_0000 + number), "x", now).is_some());
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
        assert!(failed.count(from(1), "x", now + GATHER).is_some(), "a new minute");
    }
}
