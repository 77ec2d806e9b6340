//! Keys by their digests, and how a million of them get there.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, mpsc};
use std::thread;

use subtle::ConstantTimeEq;

use super::super::keys::Read;
use super::super::{Store, StoreError};
use super::Held;

pub(super) type Keys = HashMap<Digest, Arc<Held>, BuildHasherDefault<FirstBytes>>;
type Batch = Vec<(Digest, Arc<Held>)>;

/// Compared in constant time. Its first bytes are as good as any hash of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digest(pub(super) [u8; 32]);

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.number());
    }
}

impl Digest {
    fn number(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// The hash of what is a hash already.
#[derive(Debug, Default)]
pub(super) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// Puts a key in its place; one that is not understood lets nobody in any more.
pub(super) fn take(keys: &mut Keys, odd: &mut HashSet<String>, read: Read) {
    match read {
        Read::Key(key) => {
            if !odd.is_empty() {
                odd.remove(key.id.as_str());
            }
            keys.insert(Digest(key.digest), Arc::new(Held::of(*key)));
        }
        Read::Odd { id, digest } => {
            if let Some(digest) = digest {
                keys.remove(&Digest(digest));
            }
            // Its digest may be what is not understood.
            keys.retain(|_, held| held.id.as_str() != id);
            odd.insert(id);
        }
    }
}

/// Puts new keys in their places, in the order of these: of many in any order each would have to wait for
/// memory.
fn fill(keys: &mut Keys, mut batch: Batch) {
    let places = keys.capacity().next_power_of_two() as u64 - 1;
    batch.sort_unstable_by_key(|(digest, _)| digest.number() & places);
    keys.extend(batch);
}

/// Every key of the store, the ids of the odd ones, and the generation that this is. Of a million, one
/// batch of that size is read while the one before is put in its places.
pub(super) fn read_all(
    store: &Store,
    size: usize,
) -> Result<(Keys, HashSet<String>, u64), StoreError> {
    let count = store.count_keys()?;
    let mut keys = Keys::with_capacity_and_hasher(count, BuildHasherDefault::default());
    let mut odd = HashSet::new();
    let generation = thread::scope(|scope| {
        let (full, batches) = mpsc::sync_channel(1);
        scope.spawn(|| batches.into_iter().for_each(|batch| fill(&mut keys, batch)));
        let empty = || Batch::with_capacity(count.min(size));
        let mut batch = empty();
        let generation = store.changed_since(0, |read| match read {
            Read::Key(key) => {
                batch.push((Digest(key.digest), Arc::new(Held::of(*key))));
                if batch.len() == size {
                    // It fails where the other thread panicked, which this one learns at the end.
                    let _ = full.send(std::mem::replace(&mut batch, empty()));
                }
            }
            Read::Odd { id, .. } => drop(odd.insert(id)),
        });
        let _ = full.send(batch);
        generation
    })?;
    Ok((keys, odd, generation))
}

#[cfg(test)]
mod tests {
    use super::super::super::{Actor, DATABASE, KeyDetails};
    use super::*;

    #[test]
    fn every_key_gets_to_its_place_in_however_many_batches() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let by = Actor { who: "cli:anna".to_owned(), client: None };
        let bot = KeyDetails { name: "bot".to_owned(), ..KeyDetails::default() };
        let made = store.create_keys(vec![bot; 9], &by).unwrap();
        let (odd, good) = made.split_first().unwrap();
        let spoil = format!("UPDATE key SET state = 'asleep' WHERE id = '{}'", odd.0.id);
        let other = rusqlite::Connection::open(folder.path().join(DATABASE)).unwrap();
        other.execute_batch(&spoil).unwrap();
        for size in [1, 3, 4, 7, 8, 9] {
            let (keys, odd_ids, generation) = read_all(&store, size).unwrap();
            assert_eq!((keys.len(), generation), (8, store.generation().unwrap()), "{size}");
            let id_at = |digest| keys.get(&Digest(digest)).map(|held| held.id);
            assert!(good.iter().all(|(key, _)| id_at(key.digest) == Some(key.id)), "{size}");
            assert_eq!(odd_ids, [odd.0.id.to_string()].into(), "{size}");
        }
    }
}
