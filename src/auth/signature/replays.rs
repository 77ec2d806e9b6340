//! The memory of signatures that were used, as long as their time would still let them in.
//!
//! The stock client's times are whole seconds and Ed25519 gives the same signature for the same
//! text, so a client that asks for the same thing twice in a second sends the same signature twice:
//! a program that embeds documents does so all the time. A plain memory would turn the second
//! request away. So the first use ties a signature to the address that it came from, and from there
//! it may come again, for a few seconds and a bounded number of times. Who has seen a signature on
//! its way can use it neither from elsewhere nor later; who shares the address could have for a few
//! seconds what the owner's own bursts have, which only TLS prevents.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seconds from the first use, by our clock, during which the same address may use it again. A
/// second for the client's clock, the rest for slow networks.
const AGAIN: u64 = 10;
/// Uses of one signature: a second's worth of small embeddings, one after another.
const USES: u32 = 100;
/// Signatures remembered, all together (about 20 MB) …
const MOST: usize = 100_000;
/// … and of one key, so that no signer can fill the memory for the others: 33 a second.
const MOST_OF_A_KEY: usize = 20_000;
/// Seconds between two looks for what may be forgotten.
const SWEEP: u64 = 10;

/// Signatures used within the time that lets them in.
#[derive(Default)]
pub struct Replays {
    seen: Mutex<Seen>,
}

/// One use of a good signature.
pub(super) struct Sight {
    pub(super) key: [u8; 32],
    /// The digest of the key and the signed text. Not the signature itself, so that it would not
    /// matter if a second signature could be made for the same text.
    pub(super) what: [u8; 32],
    pub(super) client: IpAddr,
    /// Seconds since 1970; after it the time alone keeps the signature out.
    pub(super) good_until: i64,
}

#[derive(Default)]
struct Seen {
    uses: HashMap<[u8; 32], Used>,
    of_key: HashMap<[u8; 32], usize>,
    swept: i64,
}

struct Used {
    key: [u8; 32],
    client: IpAddr,
    first: i64,
    good_until: i64,
    count: u32,
}

impl Replays {
    /// Whether this use may pass. `now`: seconds since 1970. A full memory refuses, because
    /// forgetting would let an old signature in.
    pub(super) fn admit(&self, sight: &Sight, now: i64) -> bool {
        let mut seen = self.lock();
        if seen.swept.abs_diff(now) >= SWEEP {
            seen.sweep(now);
        }
        seen.admit(sight, now)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Replays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replays").field("seen", &self.lock().uses.len()).finish()
    }
}

impl Seen {
    fn admit(&mut self, sight: &Sight, now: i64) -> bool {
        if let Some(used) = self.uses.get_mut(&sight.what) {
            let soon = used.first.abs_diff(now) <= AGAIN;
            let again = used.client == sight.client && soon && used.count < USES;
            used.count = used.count.saturating_add(1);
            return again;
        }
        let of_key = self.of_key.entry(sight.key).or_default();
        if self.uses.len() >= MOST || *of_key >= MOST_OF_A_KEY {
            return false;
        }
        *of_key += 1;
        let &Sight { key, what, client, good_until } = sight;
        self.uses.insert(what, Used { key, client, first: now, good_until, count: 1 });
        true
    }

    fn sweep(&mut self, now: i64) {
        self.swept = now;
        self.uses.retain(|_, used| used.good_until >= now);
        self.of_key.clear();
        for used in self.uses.values() {
            *self.of_key.entry(used.key).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn sight(key: u8, what: u32, client: IpAddr, good_until: i64) -> Sight {
        let mut digest = [key; 32];
        digest[..4].copy_from_slice(&what.to_le_bytes());
        Sight { key: [key; 32], what: digest, client, good_until }
    }

    #[test]
    fn the_same_address_may_repeat_itself_for_a_few_seconds() {
        let replays = Replays::default();
        for now in [1000, 1000, 1001, 1010] {
            assert!(replays.admit(&sight(1, 1, HOME, 1300), now), "{now}");
        }
        assert!(!replays.admit(&sight(1, 1, HOME, 1300), 1011));
        assert!(!replays.admit(&sight(1, 1, HOME, 1300), 1300));
    }

    #[test]
    fn another_address_may_not() {
        let replays = Replays::default();
        assert!(replays.admit(&sight(1, 1, HOME, 1300), 1000));
        assert!(!replays.admit(&sight(1, 1, AWAY, 1300), 1000));
        assert!(replays.admit(&sight(1, 1, HOME, 1300), 1000));
        assert!(replays.admit(&sight(1, 2, AWAY, 1300), 1000));
    }

    #[test]
    fn uses_are_bounded() {
        let replays = Replays::default();
        let passed = (0..500).filter(|_| replays.admit(&sight(1, 1, HOME, 1300), 1000)).count();
        assert_eq!(passed, 100);
    }

    #[test]
    fn a_signature_is_remembered_as_long_as_its_time_lets_it_in() {
        let replays = Replays::default();
        // The client's clock is 300 s ahead, so that its signature is good for 600 s.
        assert!(replays.admit(&sight(1, 1, HOME, 1600), 1000));
        for now in [1011, 1300, 1599, 1600] {
            assert!(!replays.admit(&sight(1, 1, HOME, 1600), now), "{now}");
        }
        // By then the time alone keeps it out.
        assert!(replays.admit(&sight(1, 1, HOME, 1600), 1611));
    }

    #[test]
    fn one_signer_cannot_fill_the_memory_for_others() {
        let replays = Replays::default();
        let passed = (0..30_000).filter(|n| replays.admit(&sight(1, *n, HOME, 1300), 1000)).count();
        assert_eq!(passed, MOST_OF_A_KEY);
        assert!(replays.admit(&sight(2, 1, HOME, 1300), 1000));
        // What was let in is still remembered, and what has had its time makes room.
        assert!(!replays.admit(&sight(1, 1, AWAY, 1300), 1100));
        assert!(replays.admit(&sight(1, 99_999, HOME, 1700), 1400));
        assert_eq!(replays.lock().uses.len(), 1);
    }

    #[test]
    fn a_full_memory_refuses() {
        let replays = Replays::default();
        for key in 1..=5 {
            for n in 0..20_000 {
                assert!(replays.admit(&sight(key, n, HOME, 1300), 1000));
            }
        }
        assert!(!replays.admit(&sight(6, 1, HOME, 1300), 1000));
        assert!(!replays.admit(&sight(6, 1, HOME, 1300), 1300));
        assert!(replays.admit(&sight(6, 1, HOME, 1700), 1400));
    }

    #[test]
    fn a_clock_that_is_set_back_lets_nothing_in_twice() {
        let replays = Replays::default();
        assert!(replays.admit(&sight(1, 1, HOME, 1300), 1290));
        assert!(!replays.admit(&sight(1, 1, HOME, 1300), 1100));
        assert!(replays.admit(&sight(1, 2, HOME, 1300), 1100));
    }
}
