//! What ends requests from outside: by the managed key that they came with.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;

use futures_util::task::AtomicWaker;

use crate::store::KeyId;

/// Every request that can be ended.
#[derive(Debug, Default, Clone)]
pub(super) struct Leashes(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    by_key: HashMap<KeyId, Vec<Arc<Knot>>>,
    /// Revoked for ever: whoever was let in just before is not to slip through.
    ended: HashSet<KeyId>,
}

/// One request; dropping it lets it go.
#[derive(Debug)]
pub(super) struct Leash {
    key: KeyId,
    knot: Arc<Knot>,
    leashes: Leashes,
}

#[derive(Debug)]
struct Knot {
    is_cut: AtomicBool,
    /// The one task that works on the request.
    task: AtomicWaker,
}

impl Leashes {
    /// That of a key whose requests were ended is cut already.
    pub(super) fn take(&self, key: KeyId) -> Leash {
        let mut held = self.lock();
        let is_cut = AtomicBool::new(held.ended.contains(&key));
        let knot = Arc::new(Knot { is_cut, task: AtomicWaker::new() });
        held.by_key.entry(key).or_default().push(Arc::clone(&knot));
        drop(held);
        Leash { key, knot, leashes: self.clone() }
    }

    pub(super) fn end(&self, key: KeyId) -> usize {
        let knots = {
            let mut held = self.lock();
            held.ended.insert(key);
            held.by_key.get(&key).cloned().unwrap_or_default()
        };
        for knot in &knots {
            knot.is_cut.store(true, Ordering::Release);
            knot.task.wake();
        }
        knots.len()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leash {
    /// Whether it has to end; if not, its task will be woken when it has.
    pub(super) fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.knot.task.register(cx.waker());
        self.knot.is_cut.load(Ordering::Acquire)
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let mut held = self.leashes.lock();
        if let Some(knots) = held.by_key.get_mut(&self.key) {
            knots.retain(|knot| !Arc::ptr_eq(knot, &self.knot));
            if knots.is_empty() {
                held.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_key_that_was_taken_away_ends_its_own_requests_and_lets_no_new_one_begin() {
        let (leashes, cx) = (Leashes::default(), Context::from_waker(Waker::noop()));
        let (key, other) = ("k00000000001".parse().unwrap(), "k00000000002".parse().unwrap());
        let (first, second) = (leashes.take(key), leashes.take(key));
        let stays = leashes.take(other);
        drop(second);
        assert!(!first.is_cut(&cx));
        assert_eq!(leashes.end(key), 1);
        assert!(first.is_cut(&cx) && !stays.is_cut(&cx));
        assert!(leashes.take(key).is_cut(&cx));
        drop((first, stays));
        assert!(leashes.lock().by_key.is_empty());
    }
}
