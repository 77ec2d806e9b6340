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
/// What is remembered at the most; past it the oldest goes.
const MOST: usize = 1000;
const MOST_PER_ADDRESS: usize = 3;
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
        if of_address >= MOST_PER_ADDRESS && !client.is_shared() {
            return None;
        }
        if codes.len() >= MOST {
            let oldest = codes.iter().min_by_key(|(_, knock)| knock.since).map(|(code, _)| *code);
            oldest.and_then(|code| codes.remove(&code));
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
