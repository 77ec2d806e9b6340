//! What is counted by model, for as many models as have a place of their own.
//!
//! A caller chooses the name in a request, so a name counts only once a backend has answered for it,
//! and only so many do: what nobody can make grow cannot be made to fill a monitor's disk.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::store::UsageRow;

/// Models with a place of their own; the others share one.
pub const MOST_MODELS: usize = 40;
/// A longer name shares it too, in bytes.
const LONGEST_NAME: usize = 128;
/// The label of the place that the others share.
pub(super) const OTHER: &str = "other";

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Models {
    /// Filled from the front, and never emptied.
    named: [Place; MOST_MODELS],
    other: Counts,
}

#[derive(Debug, Default)]
struct Place {
    name: OnceLock<Box<str>>,
    counts: Counts,
}

/// Of one model.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: AtomicU64,
    pub(super) estimated: AtomicU64,
    pub(super) prompt: AtomicU64,
    pub(super) completion: AtomicU64,
    pub(super) cached: AtomicU64,
    pub(super) reasoning: AtomicU64,
    /// Microseconds.
    pub(super) backend_time: AtomicU64,
    /// Microseconds.
    pub(super) load_time: AtomicU64,
}

impl Default for Models {
    fn default() -> Self {
        Self { named: std::array::from_fn(|_| Place::default()), other: Counts::default() }
    }
}

impl Models {
    pub(super) fn observe(&self, row: &UsageRow) {
        let name = row.model.as_deref().filter(|name| name.len() <= LONGEST_NAME);
        let is_proof = (200..300).contains(&row.status);
        let counts = name.and_then(|name| self.of(name, is_proof)).unwrap_or(&self.other);
        counts.add(row);
    }

    /// The place of this name; where there is none it gets one if it may.
    fn of(&self, name: &str, may_have_one: bool) -> Option<&Counts> {
        for place in &self.named {
            let taken = match place.name.get() {
                Some(taken) => taken,
                None if may_have_one => place.name.get_or_init(|| name.into()),
                None => return None,
            };
            // Somebody else's name may have come first.
            if **taken == *name {
                return Some(&place.counts);
            }
        }
        None
    }

    /// Those that have been seen, and then all others together.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Counts)> {
        let named =
            self.named.iter().filter_map(|place| Some((&**place.name.get()?, &place.counts)));
        named.chain([(OTHER, &self.other)])
    }
}

impl Counts {
    fn add(&self, row: &UsageRow) {
        let usage = &row.usage;
        let more = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        more(&self.requests, 1);
        more(&self.estimated, u64::from(usage.estimated));
        more(&self.prompt, usage.prompt);
        more(&self.completion, usage.completion);
        more(&self.cached, usage.cached.unwrap_or(0));
        more(&self.reasoning, usage.reasoning.unwrap_or(0));
        more(&self.backend_time, micros(row.backend_time));
        more(&self.load_time, usage.load.map_or(0, micros));
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::row;

    fn named(models: &Models) -> Vec<(String, u64)> {
        let count = |counts: &Counts| counts.requests.load(Ordering::Relaxed);
        models.all().map(|(name, counts)| (name.to_owned(), count(counts))).collect()
    }

    #[test]
    fn a_name_counts_once_a_backend_has_answered_for_it() {
        let models = Models::default();
        models.observe(&UsageRow { status: 404, ..row("no-such-model") });
        models.observe(&row("gemma3:12b"));
        models.observe(&UsageRow { status: 500, ..row("gemma3:12b") });
        models.observe(&UsageRow { model: None, ..row("") });
        models.observe(&row(&"x".repeat(LONGEST_NAME + 1)));
        assert_eq!(named(&models), [("gemma3:12b".to_owned(), 2), (OTHER.to_owned(), 3)]);
    }

    #[test]
    fn whoever_comes_when_all_places_are_taken_shares_one() {
        let models = Models::default();
        for number in 0..10 * MOST_MODELS {
            models.observe(&row(&format!("m{number}")));
        }
        models.observe(&row("m0"));
        let named = named(&models);
        assert_eq!(named.len(), MOST_MODELS + 1);
        assert_eq!(named[0], ("m0".to_owned(), 2));
        assert_eq!(named[MOST_MODELS], (OTHER.to_owned(), 9 * MOST_MODELS as u64));
    }

    #[test]
    fn names_that_come_at_the_same_time_have_a_place_each() {
        let models = Models::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|it| models.observe(&row(&format!("m{it}")))));
            }
        });
        let named = named(&models);
        assert_eq!(named.len(), 21);
        assert!(named.iter().take(20).all(|(_, count)| *count == 4), "{named:?}");
    }
}
