//! How many connections there may be at once: in all, from one address, and with the files that the
//! system gives.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client_addr::PeerAddr;

/// Files for everything but connections that have a place: listeners, the runtime, credential files,
/// the log, and connections that are turned away.
const OTHER_FILES: u64 = 40;
/// A caller's own, and the one to the backend.
const FILES_EACH: usize = 2;

/// Connections that are open now; survives a reload.
#[derive(Debug)]
pub(super) struct Places {
    taken: AtomicUsize,
    /// Open files that they may come to.
    files: AtomicUsize,
    /// So many the system's limit has room for.
    room: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, u32>>,
}

/// The right to one connection; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: Option<IpAddr>,
}

/// The right to one more file: a connection over HTTP/2 may ask many backends at once.
#[derive(Debug)]
pub(super) struct More(Arc<Places>);

impl Places {
    pub(super) fn new() -> Self {
        Self::with_room(room())
    }

    pub(super) fn with_room(files: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            files: AtomicUsize::new(0),
            room: AtomicUsize::new(files),
            by_address: Mutex::default(),
        }
    }

    /// Looks at the system's limit again, which may be changed from outside.
    pub(super) fn look(&self) {
        self.room.store(room(), Ordering::Relaxed);
    }

    /// `None` where `most` are taken, or there would be no file for it.
    pub(super) fn take(self: &Arc<Self>, most: usize) -> Option<Place> {
        let more = |taken: usize| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        if !self.take_files(FILES_EACH) {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place { places: Arc::clone(self), address: None })
    }

    fn take_files(&self, count: usize) -> bool {
        let room = self.room.load(Ordering::Relaxed);
        let more = |files: usize| files.checked_add(count).filter(|files| *files <= room);
        self.files.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn by_address(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// `None` where there would be no file for it.
    pub(super) fn more(&self) -> Option<More> {
        self.places.take_files(1).then(|| More(Arc::clone(&self.places)))
    }

    /// Counts it for an address; whether that has no more than `most` then.
    pub(super) fn count_for(&mut self, peer: PeerAddr, most: u32) -> bool {
        let address = peer.network();
        let mut by_address = self.places.by_address();
        let count = by_address.entry(address).or_default();
        if *count >= most {
            return false;
        }
        *count += 1;
        self.address = Some(address);
        true
    }
}

impl Drop for More {
    fn drop(&mut self) {
        self.0.files.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
        self.places.files.fetch_sub(FILES_EACH, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut by_address = self.places.by_address();
        if let Some(count) = by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&address);
            }
        }
    }
}

/// Files for connections that the limit of open files has room for now; one always is.
fn room() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = files.saturating_sub(OTHER_FILES);
    usize::try_from(room).unwrap_or(usize::MAX).max(FILES_EACH)
}

/// So many connections have a place with this limit of open files.
#[must_use]
pub fn connections_with(files: u64) -> u64 {
    files.saturating_sub(OTHER_FILES) / FILES_EACH as u64
}

/// The limit of open files that so many connections take.
#[must_use]
pub fn files_for(connections: u64) -> u64 {
    connections.saturating_mul(FILES_EACH as u64).saturating_add(OTHER_FILES)
}

/// Asks the system for as many open files as it allows us.
///
/// # Errors
/// Where that is too few for `most` connections: for how many it is enough.
pub fn make_room(most: usize) -> Result<(), usize> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // What is not given is not there; the count below tells.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let room = room() / FILES_EACH;
    if room < most { Err(room) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> PeerAddr {
        PeerAddr::new(text.parse().unwrap())
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let places = Arc::new(Places::new());
        let (first, second) = (places.take(2), places.take(2));
        assert!(first.is_some() && second.is_some() && places.take(2).is_none());
        drop(first);
        assert!(places.take(2).is_some());
        drop(second);
        assert_eq!(places.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn there_is_no_place_without_a_file_for_it() {
        let places = Arc::new(Places::with_room(3));
        let only = places.take(10_000).unwrap();
        assert!(places.take(10_000).is_none());
        drop(only);
        assert!(places.take(10_000).is_some());
    }

    #[test]
    fn a_connection_that_asks_much_at_once_takes_what_others_would_have() {
        let places = Arc::new(Places::with_room(4));
        let first = places.take(10_000).unwrap();
        let more = [first.more(), first.more()];
        assert!(more.iter().all(Option::is_some) && first.more().is_none());
        assert!(places.take(10_000).is_none());
        drop(more);
        assert!(places.take(10_000).is_some());
        drop(first);
        assert_eq!(places.files.load(Ordering::Relaxed), 0);
        assert_eq!(places.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_address_has_its_own_count_and_a_network_of_ipv6_is_one() {
        let places = Arc::new(Places::new());
        let mut held: Vec<_> = (0..4).map(|_| places.take(9).unwrap()).collect();
        assert!(held[0].count_for(peer("2001:db8::1"), 2));
        assert!(held[1].count_for(peer("2001:db8::ffff:1"), 2));
        assert!(!held[2].count_for(peer("2001:db8::2"), 2));
        assert!(held[2].count_for(peer("192.0.2.1"), 2));
        assert!(held[3].count_for(peer("::ffff:192.0.2.1"), 2));
        drop(held);
        assert!(places.by_address().is_empty());
    }
}
