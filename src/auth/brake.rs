//! The failed-attempt brake: guessing is slow, and nobody can lock out somebody else.
//!
//! A password attempt is counted before it is checked and taken back when it was right, so that a
//! thousand attempts at once are a thousand attempts. Remembered passwords and known keys never ask
//! here.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::client_addr::{ClientAddr, network};

const MINUTE: Duration = Duration::from_secs(60);
/// An address may fail for this many times as many names as one name may fail.
const NAMES_PER_ADDRESS: u32 = 10;
/// What is remembered at the most; past it the oldest half is forgotten.
const MOST_ENTRIES: usize = 100_000;

/// Failures of the last minute, by address and name, by address, and wrong keys by address.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Names by their digest: a caller chooses them, and how long they are.
    pairs: HashMap<(IpAddr, [u8; 32]), Window>,
    addresses: HashMap<IpAddr, Window>,
    keys: HashMap<IpAddr, Window>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    failures: u32,
}

/// Refused by the brake, for so long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Braked {
    pub(crate) retry_after: Duration,
}

/// An attempt that was counted; dropping it takes it back, because it was right or never checked.
#[derive(Debug)]
pub(crate) struct Charge {
    brake: Arc<Brake>,
    client: ClientAddr,
    name: String,
    stands: bool,
}

impl Charge {
    /// See [`Brake::attempt`].
    pub(crate) fn new(
        brake: &Arc<Brake>,
        client: ClientAddr,
        name: &str,
        limit: u32,
        now: Instant,
    ) -> Result<Self, Braked> {
        brake.attempt(client, name, limit, now)?;
        Ok(Self { brake: Arc::clone(brake), client, name: name.to_owned(), stands: false })
    }

    /// From where it came.
    pub(crate) fn client(&self) -> ClientAddr {
        self.client
    }

    /// It was wrong.
    pub(crate) fn stands(mut self) {
        self.stands = true;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if !self.stands {
            self.brake.forgive(self.client, &self.name);
        }
    }
}

impl Brake {
    /// Counts an attempt with a password that is not remembered. `limit` 0 is off.
    fn attempt(
        &self,
        client: ClientAddr,
        name: &str,
        limit: u32,
        now: Instant,
    ) -> Result<(), Braked> {
        if limit == 0 {
            return Ok(());
        }
        let mut counts = self.lock();
        let address = network(client.ip());
        if !client.is_shared() {
            check(&counts.addresses, &address, limit.saturating_mul(NAMES_PER_ADDRESS), now)?;
        }
        let pair = (address, digest(name));
        check(&counts.pairs, &pair, limit, now)?;
        count(&mut counts.pairs, pair, now);
        if !client.is_shared() {
            count(&mut counts.addresses, address, now);
        }
        Ok(())
    }

    /// Takes an attempt back: it was right, or it was never checked.
    fn forgive(&self, client: ClientAddr, name: &str) {
        let mut counts = self.lock();
        let address = network(client.ip());
        if let Some(window) = counts.pairs.get_mut(&(address, digest(name))) {
            window.failures = window.failures.saturating_sub(1);
        }
        if let Some(window) = counts.addresses.get_mut(&address) {
            window.failures = window.failures.saturating_sub(1);
        }
    }

    /// Counts a wrong key. The key was looked up already, which costs nothing; past the limit the
    /// caller is only told to go slower.
    pub(crate) fn wrong_key(
        &self,
        client: ClientAddr,
        limit: u32,
        now: Instant,
    ) -> Result<(), Braked> {
        if limit == 0 || client.is_shared() {
            return Ok(());
        }
        let mut counts = self.lock();
        let address = network(client.ip());
        let verdict = check(&counts.keys, &address, limit, now);
        count(&mut counts.keys, address, now);
        verdict
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(name: &str) -> [u8; 32] {
    Sha256::digest(name).into()
}

fn check<K: Hash + Eq>(
    windows: &HashMap<K, Window>,
    key: &K,
    limit: u32,
    now: Instant,
) -> Result<(), Braked> {
    let Some(window) = windows.get(key) else { return Ok(()) };
    let age = now.saturating_duration_since(window.since);
    if window.failures < limit || age >= MINUTE {
        return Ok(());
    }
    Err(Braked { retry_after: MINUTE - age })
}

fn count<K: Hash + Eq>(windows: &mut HashMap<K, Window>, key: K, now: Instant) {
    if windows.len() >= MOST_ENTRIES {
        forget(windows, now);
    }
    let window = windows.entry(key).or_insert(Window { since: now, failures: 0 });
    if now.saturating_duration_since(window.since) >= MINUTE {
        *window = Window { since: now, failures: 0 };
    }
    window.failures = window.failures.saturating_add(1);
}

/// Drops what is over; if that is not half, the oldest too.
fn forget<K: Hash + Eq>(windows: &mut HashMap<K, Window>, now: Instant) {
    let mut keep = MINUTE;
    while windows.len() > MOST_ENTRIES / 2 && !keep.is_zero() {
        windows.retain(|_, window| now.saturating_duration_since(window.since) < keep);
        keep /= 2;
    }
    if windows.len() > MOST_ENTRIES / 2 {
        windows.clear();
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::client_addr::{PeerAddr, TrustedProxies};

    fn client(ip: &str) -> ClientAddr {
        let peer = PeerAddr::new(ip.parse().unwrap());
        TrustedProxies::default().client_addr(peer, &HeaderMap::new())
    }

    fn proxy(ip: &str) -> ClientAddr {
        let net = format!("{ip}/32").parse().unwrap();
        let peer = PeerAddr::new(ip.parse().unwrap());
        TrustedProxies::new(vec![net], None).client_addr(peer, &HeaderMap::new())
    }

    #[test]
    fn the_eleventh_wrong_password_of_a_pair_is_not_checked_until_the_minute_is_over() {
        let (brake, anna, now) = (Brake::default(), client("192.0.2.1"), Instant::now());
        for _ in 0..10 {
            assert_eq!(brake.attempt(anna, "anna", 10, now), Ok(()));
        }
        let later = now + Duration::from_secs(20);
        let refused = brake.attempt(anna, "anna", 10, later).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(40));
        assert_eq!(brake.attempt(anna, "bert", 10, later), Ok(()), "another name");
        assert_eq!(
            brake.attempt(client("192.0.2.2"), "anna", 10, later),
            Ok(()),
            "another address"
        );
        assert_eq!(brake.attempt(anna, "anna", 10, now + MINUTE), Ok(()), "another minute");
    }

    #[test]
    fn an_address_that_tries_many_names_is_stopped() {
        let (brake, from, now) = (Brake::default(), client("192.0.2.1"), Instant::now());
        for n in 0..100 {
            assert_eq!(brake.attempt(from, &format!("name{n}"), 10, now), Ok(()));
        }
        assert!(brake.attempt(from, "one more", 10, now).is_err());
        assert_eq!(brake.attempt(client("192.0.2.2"), "one more", 10, now), Ok(()));
    }

    #[test]
    fn a_right_password_is_no_failure() {
        let (brake, from, now) = (Brake::default(), client("192.0.2.1"), Instant::now());
        for _ in 0..1000 {
            assert_eq!(brake.attempt(from, "anna", 10, now), Ok(()));
            brake.forgive(from, "anna");
        }
    }

    fn gateway(ip: &str) -> ClientAddr {
        let peer = PeerAddr::new(ip.parse().unwrap());
        TrustedProxies::new(Vec::new(), Some(peer.ip())).client_addr(peer, &HeaderMap::new())
    }

    #[test]
    fn a_proxy_and_the_containers_gateway_are_not_counted_as_one_caller() {
        for shared in [proxy("10.0.0.1"), gateway("172.17.0.1")] {
            let (brake, now) = (Brake::default(), Instant::now());
            for n in 0..1000 {
                assert_eq!(brake.attempt(shared, &format!("name{n}"), 10, now), Ok(()));
                assert_eq!(brake.wrong_key(shared, 10, now), Ok(()));
            }
        }
    }

    #[test]
    fn the_eleventh_wrong_key_of_an_address_is_told_to_wait() {
        let (brake, from, now) = (Brake::default(), client("192.0.2.1"), Instant::now());
        for _ in 0..10 {
            assert_eq!(brake.wrong_key(from, 10, now), Ok(()));
        }
        assert!(brake.wrong_key(from, 10, now).is_err());
        assert_eq!(brake.wrong_key(from, 10, now + MINUTE), Ok(()));
        assert_eq!(brake.wrong_key(from, 0, now), Ok(()), "0 is off");
    }

    #[test]
    fn one_ipv6_network_is_one_caller() {
        let (brake, now) = (Brake::default(), Instant::now());
        for n in 0..10 {
            let from = client(&format!("2001:db8:1:2::{n}"));
            assert_eq!(brake.attempt(from, "anna", 10, now), Ok(()));
        }
        assert!(brake.attempt(client("2001:db8:1:2:ffff::"), "anna", 10, now).is_err());
        assert_eq!(brake.attempt(client("2001:db8:1:3::"), "anna", 10, now), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut windows, now) = (HashMap::new(), Instant::now());
        for n in 0..3 * MOST_ENTRIES {
            count(&mut windows, n, now);
            assert!(windows.len() <= MOST_ENTRIES);
        }
    }
}
