//! What ends requests from outside: by the managed key that they came with.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};

use super::course::{Course, End};
use crate::store::KeyId;

/// Every request that can be ended.
#[derive(Debug, Default, Clone)]
pub(super) struct Leashes(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    by_key: HashMap<KeyId, Vec<Arc<Course>>>,
    /// Revoked for ever: whoever was let in just before is not to slip through.
    ended: HashSet<KeyId>,
}

/// One request; dropping it lets it go.
#[derive(Debug)]
pub(super) struct Leash {
    key: KeyId,
    course: Arc<Course>,
    leashes: Leashes,
}

impl Leashes {
    /// That of a key whose requests were ended is cut already.
    pub(super) fn take(&self, key: KeyId, course: &Arc<Course>) -> Leash {
        let mut held = self.lock();
        if held.ended.contains(&key) {
            course.end(End::Revoked);
        }
        held.by_key.entry(key).or_default().push(Arc::clone(course));
        drop(held);
        Leash { key, course: Arc::clone(course), leashes: self.clone() }
    }

    pub(super) fn end(&self, key: KeyId) -> usize {
        let courses = {
            let mut held = self.lock();
            held.ended.insert(key);
            held.by_key.get(&key).cloned().unwrap_or_default()
        };
        for course in &courses {
            course.end(End::Revoked);
        }
        courses.len()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let mut held = self.leashes.lock();
        if let Some(courses) = held.by_key.get_mut(&self.key) {
            courses.retain(|course| !Arc::ptr_eq(course, &self.course));
            if courses.is_empty() {
                held.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_key_that_was_taken_away_ends_its_own_requests_and_lets_no_new_one_begin() {
        let leashes = Leashes::default();
        let (key, other) = ("k00000000001".parse().unwrap(), "k00000000002".parse().unwrap());
        let take = |key| leashes.take(key, &Arc::new(Course::new([0; 16], "anna".into(), "chat")));
        let is_cut = |leash: &Leash| {
            leash.course.ended(&Context::from_waker(Waker::noop())) == Some(End::Revoked)
        };
        let (first, second) = (take(key), take(key));
        let stays = take(other);
        drop(second);
        assert!(!is_cut(&first));
        assert_eq!(leashes.end(key), 1);
        assert!(is_cut(&first) && !is_cut(&stays));
        assert!(is_cut(&take(key)));
        drop((first, stays));
        assert!(leashes.lock().by_key.is_empty());
    }
}
