//! Machines that signed rightly and are not enrolled: each gets a code, by which whoever runs the gate
//! can let it in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::signature::PublicKey;
use crate::client_addr::{ClientAddr, network};
use crate::reject::KnockCode;

/// How long a code is good.
const GOOD_FOR: Duration = Duration::from_secs(3600);
/// What is remembered at the most; past it the oldest goes of the address that has the most.
const MOST: usize = 1000;
const MOST_PER_ADDRESS: usize = 3;
/// Many people seem to come from such an address; past it the oldest of them goes.
const MOST_PER_SHARED_ADDRESS: usize = 100;
/// Without those that look alike.
const LETTERS: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";

/// Codes that are good, and whose they are.
#[derive(Debug, Default)]
pub struct Knocks {
    codes: Mutex<HashMap<KnockCode, Knock>>,
}

/// A machine at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knock {
    pub key: PublicKey,
    pub client: IpAddr,
    since: Instant,
}

impl Knocks {
    /// The code for this key, the same for an hour; `None` where its address has knocked with too
    /// many keys.
    pub(crate) fn knock(
        &self,
        key: PublicKey,
        client: ClientAddr,
        now: Instant,
    ) -> Option<KnockCode> {
        let address = network(client.ip());
        let mut codes = self.lock();
        codes.retain(|_, knock| is_good(knock, now));
        if let Some((code, _)) = codes.iter().find(|(_, knock)| knock.key == key) {
            return Some(*code);
        }
        let of_address = codes.values().filter(|knock| network(knock.client) == address).count();
        match client.is_shared() {
            false if of_address >= MOST_PER_ADDRESS => return None,
            true if of_address >= MOST_PER_SHARED_ADDRESS => forget_oldest(&mut codes, address),
            false | true if codes.len() >= MOST => {
                let most = busiest(&codes).unwrap_or(address);
                forget_oldest(&mut codes, most);
            }
            false | true => {}
        }
        let code = draw()?;
        codes.insert(code, Knock { key, client: client.ip(), since: now });
        Some(code)
    }

    /// Whose code this is, in whatever case and with or without its hyphen; it is good once.
    #[must_use]
    pub fn take(&self, code: &str, now: Instant) -> Option<Knock> {
        let code = parse(code)?;
        self.lock().remove(&code).filter(|knock| is_good(knock, now))
    }

    /// Puts back what was taken and could not be enrolled.
    pub fn put_back(&self, code: &str, knock: Knock) {
        if let Some(code) = parse(code) {
            self.lock().insert(code, knock);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KnockCode, Knock>> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address, or network, with the most codes.
fn busiest(codes: &HashMap<KnockCode, Knock>) -> Option<IpAddr> {
    let mut counts = HashMap::<_, usize>::new();
    for knock in codes.values() {
        *counts.entry(network(knock.client)).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(address, _)| address)
}

fn forget_oldest(codes: &mut HashMap<KnockCode, Knock>, address: IpAddr) {
    let of_address = codes.iter().filter(|(_, knock)| network(knock.client) == address);
    let oldest = of_address.min_by_key(|(_, knock)| knock.since).map(|(code, _)| *code);
    oldest.and_then(|code| codes.remove(&code));
}

fn is_good(knock: &Knock, now: Instant) -> bool {
    now.saturating_duration_since(knock.since) < GOOD_FOR
}

/// 40 bits of chance, as `ABCD-EFGH`; without chance no code.
fn draw() -> Option<KnockCode> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).ok()?;
    let mut letters =
        random.iter().map(|byte| LETTERS.get(usize::from(byte & 31)).copied().unwrap_or(b'2'));
    let mut code = [b'-'; 9];
    for (at, place) in code.iter_mut().enumerate() {
        if at != 4 {
            *place = letters.next()?;
        }
    }
    Some(KnockCode(code))
}

fn parse(text: &str) -> Option<KnockCode> {
    let mut letters: Vec<u8> =
        text.bytes().filter(|b| *b != b'-').map(|b| b.to_ascii_uppercase()).collect();
    if letters.len() != 8 {
        return None;
    }
    letters.insert(4, b'-');
    letters.try_into().ok().map(KnockCode)
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

    fn key(number: u32) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::new(bytes)
    }

    #[test]
    fn a_code_is_good_once_for_an_hour_and_in_any_case() {
        let (knocks, home, now) = (Knocks::default(), client("192.0.2.1"), Instant::now());
        let code = knocks.knock(key(1), home, now).unwrap();
        assert_eq!(knocks.knock(key(1), home, now), Some(code), "the same machine");
        assert_ne!(knocks.knock(key(2), home, now), Some(code));
        let lower = code.as_str().to_lowercase().replace('-', "");
        let knock = knocks.take(&lower, now).unwrap();
        assert_eq!((knock.key, knock.client), (key(1), home.ip()));
        assert_eq!(knocks.take(code.as_str(), now), None, "taken");
        knocks.put_back(code.as_str(), knock);
        assert_eq!(knocks.take(code.as_str(), now + GOOD_FOR), None, "an hour later");
        for wrong in ["", "ABCD", "ABCD-EFGH", "ABCD-EFGH-J", "ÄÄÄÄ"] {
            assert_eq!(knocks.take(wrong, now), None, "{wrong}");
        }
    }

    #[test]
    fn a_flood_from_an_address_that_many_share_costs_nobody_else_the_code() {
        let proxy = "192.0.2.9".parse().unwrap();
        let proxies = TrustedProxies::new(Vec::new(), Some(proxy));
        let shared = proxies.client_addr(PeerAddr::new(proxy), &HeaderMap::new());
        assert!(shared.is_shared());
        let (knocks, now) = (Knocks::default(), Instant::now());
        let home = knocks.knock(key(1), client("198.51.100.1"), now).unwrap();
        let later = |number: u32| now + Duration::from_millis(u64::from(number));
        for number in 10..5010 {
            assert!(knocks.knock(key(number), shared, later(number)).is_some());
            assert!(knocks.lock().len() <= MOST_PER_SHARED_ADDRESS + 1, "{number}");
        }
        assert_eq!(knocks.knock(key(1), client("198.51.100.1"), now), Some(home));
        // Nor where many addresses fill the rest: the one with the most gives way.
        for number in 6000..6899_u32 {
            let [_, _, c, d] = number.to_be_bytes();
            assert!(
                knocks
                    .knock(key(number), client(&format!("10.0.{c}.{d}")), later(number))
                    .is_some()
            );
        }
        assert_eq!(knocks.lock().len(), MOST);
        for number in 7000..7003 {
            let one = client("203.0.113.1");
            assert!(knocks.knock(key(number), one, later(number)).is_some());
        }
        assert_eq!(knocks.knock(key(1), client("198.51.100.1"), now), Some(home));
        let of_shared = knocks.lock().values().filter(|knock| knock.client == proxy).count();
        assert_eq!(of_shared, MOST_PER_SHARED_ADDRESS - 3);
    }

    #[test]
    fn what_is_remembered_is_bounded_by_address_and_in_all() {
        let (knocks, now) = (Knocks::default(), Instant::now());
        let home = client("2001:db8::1");
        for number in 0..3 {
            assert!(knocks.knock(key(number), home, now).is_some());
        }
        let neighbour = client("2001:db8::2");
        assert_eq!(knocks.knock(key(3), neighbour, now), None, "of one household");
        let later = now + GOOD_FOR;
        assert!(knocks.knock(key(3), neighbour, later).is_some(), "an hour later");
        for number in 10..2010_u32 {
            let [_, b, c, d] = number.to_be_bytes();
            let client = client(&format!("10.{b}.{c}.{d}"));
            assert!(knocks.knock(key(number), client, later).is_some());
            assert!(knocks.lock().len() <= MOST);
        }
    }
}
