//! Every managed key in memory, as the next request has to see it, found by digest.
//!
//! A change by whatever process replaces the stamp beside the store; a look at that file, which
//! serves every request that was read before it, tells whether there is something to read. Should the
//! stamp be lost, the store itself is asked once a second.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;

use super::files::{STAMP, read_stamp, stamped};
use super::key::{Grant, KeyFault, KeyForm, KeyId, KeyState, KeyUse, ManagedKey};
use super::keys::Read;
use super::{Store, StoreError};
use crate::config::Role;
use crate::live_file::{LiveFile, Parsed, SAY_AGAIN};

mod by_digest;

use by_digest::{Digest, Keys, read_all, take};

/// A request waits so long for a change that is known to be there.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same while the store fails, or was not read in time.
const LITTLE_PATIENCE: Duration = Duration::from_millis(50);
/// Keys are served as they were read last for so long where there are changes that cannot be read: one of
/// them may say that a key was revoked.
const TRUST: Duration = Duration::from_secs(10);
/// How often it is written when keys were used.
const KEEP_USES: Duration = Duration::from_secs(60);
/// Refused keys are told once in this time each, and so many at once.
const TELL_AGAIN: Duration = Duration::from_secs(60);
const MOST_TOLD: usize = 1000;
/// Keys that are put in their places together at the start.
const BATCH: usize = 1 << 16;

/// What is held of one key.
#[derive(Debug)]
pub struct Held {
    pub grant: Arc<Grant>,
    /// Whom the key stands for.
    pub identity: Arc<str>,
    pub role: Option<Role>,
    id: KeyId,
    form: KeyForm,
    state: KeyState,
    /// Most keys have none, and there may be a million.
    terms: Option<Box<Terms>>,
}

/// Until when, and from where.
#[derive(Debug)]
struct Terms {
    expires: Option<Timestamp>,
    overlap_until: Option<Timestamp>,
    networks: Option<Box<[IpNet]>>,
}

/// What a look for a key came to.
#[derive(Debug, Clone)]
pub enum Finding {
    Good(Arc<Held>),
    /// Known, and lets nobody in; why is for the log.
    Refused(KeyFault),
    Unknown,
    /// There are changes that could not be read in time, and one of them may be about it.
    Unclear,
}

/// See the top of the file.
#[derive(Debug)]
pub struct KeyRing {
    store: Arc<Store>,
    keys: RwLock<Keys>,
    stamp: Arc<LiveFile<u64>>,
    /// Of the changes that were read last.
    generation: AtomicU64,
    /// One look at the store at a time.
    looking: Arc<tokio::sync::Mutex<()>>,
    tending: Arc<tokio::sync::Mutex<()>>,
    uses: Mutex<Uses>,
    doubt: Mutex<Doubt>,
    told: Mutex<HashMap<KeyId, Instant>>,
    trouble: Mutex<Trouble>,
    recall: Recall,
}

/// Brings counts of the day and the month up to what was used before.
type BringUp = dyn Fn(&Store) -> Result<(), StoreError> + Send + Sync;

#[derive(Default)]
struct Recall(Mutex<Option<Arc<BringUp>>>);

#[derive(Debug)]
struct Uses {
    since: HashMap<KeyId, KeyUse>,
    kept: Instant,
}

/// What the stamp says of what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    Newest,
    /// There is a change that could not be read in time.
    Behind,
    /// Without a stamp the store is asked once a second.
    NotStamped,
}

/// What is not known for certain.
#[derive(Debug, Default)]
struct Doubt {
    /// Since when there are changes that could not be read.
    since: Option<Instant>,
    /// Keys that were let in meanwhile.
    let_in: HashMap<Digest, KeyId>,
    /// Those of them that had been revoked.
    revoked: Vec<KeyId>,
}

/// Each goes when its own work is done again; that changes can be written is known to the store.
#[derive(Debug, Default)]
struct Trouble {
    reading: Option<StoreError>,
    stamping: Option<StoreError>,
    /// Rows that are no key that this version understands.
    odd: HashSet<String>,
    said: Option<(StoreError, Instant)>,
}

impl Held {
    fn of(key: ManagedKey) -> Self {
        Self {
            identity: key.details.identity().into(),
            role: key.details.role,
            id: key.id,
            form: key.form,
            state: key.state,
            terms: Terms::of(&key).map(Box::new),
            grant: Arc::new(key.into_grant()),
        }
    }

    fn fault(&self, client: IpAddr, now: Timestamp) -> Option<KeyFault> {
        match self.state {
            KeyState::Disabled => Some(KeyFault::Disabled),
            KeyState::Revoked => Some(KeyFault::Revoked),
            KeyState::Active => self.terms.as_ref()?.fault(client, now),
        }
    }
}

impl Terms {
    fn of(key: &ManagedKey) -> Option<Self> {
        let terms = Self {
            expires: key.details.expires,
            overlap_until: key.rotated.map(|rotated| rotated.overlap_until),
            networks: key.details.networks.as_deref().map(Box::from),
        };
        let is_any =
            terms.expires.is_some() || terms.overlap_until.is_some() || terms.networks.is_some();
        is_any.then_some(terms)
    }

    fn fault(&self, client: IpAddr, now: Timestamp) -> Option<KeyFault> {
        let is_over = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
        let is_outside =
            |nets: &[IpNet]| !nets.iter().any(|net| net.contains(&client.to_canonical()));
        if is_over(self.expires) {
            Some(KeyFault::Expired)
        } else if is_over(self.overlap_until) {
            Some(KeyFault::Rotated)
        } else if self.networks.as_deref().is_some_and(is_outside) {
            Some(KeyFault::WrongNetwork)
        } else {
            None
        }
    }
}

impl Trouble {
    /// The stamp cannot be written, or there are rows that are no keys.
    fn of_the_rest(&self) -> Option<StoreError> {
        let mut ids: Vec<_> = self.odd.iter().cloned().collect();
        ids.sort();
        self.stamping.clone().or_else(|| (!ids.is_empty()).then_some(StoreError::OddKeys { ids }))
    }
}

impl KeyRing {
    /// Reads every key.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn open(store: Arc<Store>) -> Result<Self, StoreError> {
        let (keys, odd, generation) = read_all(&store, BATCH)?;
        let stamp = LiveFile::open(&store.folder().join(STAMP), 0, |text| {
            let number = read_stamp(text);
            Parsed {
                entries: usize::from(number.is_some()),
                content: number.unwrap_or_default(),
                notes: Vec::new(),
            }
        });
        Ok(Self {
            store,
            keys: RwLock::new(keys),
            stamp: Arc::new(stamp),
            generation: AtomicU64::new(generation),
            looking: Arc::default(),
            tending: Arc::default(),
            uses: Mutex::new(Uses { since: HashMap::new(), kept: Instant::now() }),
            told: Mutex::default(),
            doubt: Mutex::default(),
            trouble: Mutex::new(Trouble { odd, ..Trouble::default() }),
            recall: Recall::default(),
        })
    }

    /// What has to be done before a limit on a day or a month counts that a key has not had so far.
    pub fn recall_by(
        &self,
        recall: impl Fn(&Store) -> Result<(), StoreError> + Send + Sync + 'static,
    ) {
        *lock(&self.recall.0) = Some(Arc::new(recall));
    }

    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Keys of every state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why the store does not do what it should, if it does not.
    #[must_use]
    pub fn trouble(&self) -> Option<StoreError> {
        let reading = lock(&self.trouble).reading.clone();
        let writing = || self.store.trouble_of_writing();
        reading.or_else(writing).or_else(|| lock(&self.trouble).of_the_rest())
    }

    /// Keys that were let in while changes could not be read, and had been revoked; each once.
    #[must_use]
    pub fn found_revoked(&self) -> Vec<KeyId> {
        std::mem::take(&mut lock(&self.doubt).revoked)
    }

    /// Looks for a key as every change made before `since` left it, which is when the request had
    /// been read. A key that lets its bearer in was used.
    pub async fn find(
        self: &Arc<Self>,
        digest: &[u8; 32],
        form: KeyForm,
        client: IpAddr,
        since: Instant,
    ) -> Finding {
        let certainty = self.is_newest(since).await;
        let held = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.get(&Digest(*digest)).map(Arc::clone)
        };
        let doubt = self.doubted_for(certainty, since);
        let Some(held) = held.filter(|held| held.form == form) else {
            return if doubt.is_none() { Finding::Unknown } else { Finding::Unclear };
        };
        let now = Timestamp::now();
        if let Some(why) = held.fault(client, now) {
            self.tell(&held, why, client);
            return Finding::Refused(why);
        }
        match doubt {
            Some(long) if long > TRUST => return Finding::Unclear,
            Some(_) => drop(lock(&self.doubt).let_in.insert(Digest(*digest), held.id)),
            None => {}
        }
        lock(&self.uses).since.insert(held.id, KeyUse { at: now, from: client });
        Finding::Good(held)
    }

    /// Once a second: what no request asks about, and what can wait. Nothing, while the time before
    /// still waits for the disk.
    pub async fn tend(self: &Arc<Self>, now: Instant) {
        let Ok(one_at_a_time) = Arc::clone(&self.tending).try_lock_owned() else { return };
        let ring = Arc::clone(self);
        let work = move || {
            ring.read_changes();
            ring.doubt_unless_stamped(now);
            ring.heal_stamp();
            // Whether there is room again is learned by writing.
            let is_well =
                ring.store.trouble_of_writing().is_none() || ring.store.try_to_write().is_ok();
            if is_well && now.saturating_duration_since(lock(&ring.uses).kept) >= KEEP_USES {
                ring.keep_uses(now);
            }
            ring.say_trouble(now);
            drop(one_at_a_time);
        };
        // What panics leaves the keys as they were.
        let _ = tokio::task::spawn_blocking(work).await;
    }

    /// Writes when keys were used last; what cannot be written is tried again later. Blocks.
    pub fn keep_uses(&self, now: Instant) {
        let uses = {
            let mut uses = lock(&self.uses);
            uses.kept = now;
            std::mem::take(&mut uses.since)
        };
        if uses.is_empty() {
            return;
        }
        let all = uses.iter().map(|(id, used)| (*id, *used)).collect();
        if self.store.keep_uses(all).is_err() {
            let mut later = lock(&self.uses);
            for (id, used) in uses {
                later.since.entry(id).or_insert(used);
            }
        }
    }

    /// Whether every change made before `since` is known here, after having waited for the store if
    /// need be.
    async fn is_newest(self: &Arc<Self>, since: Instant) -> Certainty {
        let newest = *self.stamp.current(since).await;
        if !self.knows(newest) {
            // Boxed, because it is seldom needed, and every request would have the room for it.
            let _ = tokio::time::timeout(self.patience(), Box::pin(self.catch_up(newest))).await;
        }
        match (self.knows(newest), newest) {
            (true, 0) => Certainty::NotStamped,
            (true, _) => Certainty::Newest,
            (false, _) => Certainty::Behind,
        }
    }

    /// The first to meet a store that does not answer waits for it; whoever comes after does not.
    fn patience(&self) -> Duration {
        let is_in_doubt =
            lock(&self.doubt).since.is_some() || lock(&self.trouble).reading.is_some();
        if is_in_doubt { LITTLE_PATIENCE } else { PATIENCE }
    }

    fn knows(&self, newest: u64) -> bool {
        self.generation.load(Ordering::Acquire) >= newest
    }

    async fn catch_up(self: &Arc<Self>, newest: u64) {
        let one_at_a_time = Arc::clone(&self.looking).lock_owned().await;
        if self.knows(newest) {
            return;
        }
        let ring = Arc::clone(self);
        let look = move || {
            ring.read_changes();
            // Held by the look, not by the request, whose patience ends.
            drop(one_at_a_time);
        };
        let _ = tokio::task::spawn_blocking(look).await;
    }

    fn read_changes(&self) {
        let known = self.generation.load(Ordering::Acquire);
        let mut changed = Vec::new();
        let read = self.store.changed_since(known, |read| changed.push(read));
        match read.and_then(|generation| self.recall_for(&changed).map(|()| generation)) {
            Ok(generation) => {
                let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
                // Two looks may end in another order than they began.
                if self.generation.load(Ordering::Acquire) <= generation {
                    let mut trouble = lock(&self.trouble);
                    changed.into_iter().for_each(|read| take(&mut keys, &mut trouble.odd, read));
                    self.generation.store(generation, Ordering::Release);
                }
                self.settle(&keys);
                drop(keys);
                lock(&self.trouble).reading = None;
            }
            Err(error) => lock(&self.trouble).reading = Some(error),
        }
    }

    fn recall_for(&self, changed: &[Read]) -> Result<(), StoreError> {
        let recall = lock(&self.recall.0).as_ref().map(Arc::clone);
        let Some(recall) = recall else { return Ok(()) };
        let is_wanted = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            changed.iter().any(|read| is_newly_limited(&keys, read))
        };
        if is_wanted { recall(&self.store) } else { Ok(()) }
    }

    /// How long there have been changes that cannot be read; `None` if there are none.
    fn doubted_for(&self, certainty: Certainty, now: Instant) -> Option<Duration> {
        if certainty == Certainty::Newest {
            return None;
        }
        let mut doubt = lock(&self.doubt);
        if certainty == Certainty::Behind {
            doubt.since.get_or_insert(now);
        }
        doubt.since.map(|since| now.saturating_duration_since(since))
    }

    /// A store that cannot be read may hold changes, unless the stamp says that it does not.
    fn doubt_unless_stamped(&self, now: Instant) {
        if lock(&self.trouble).reading.is_none() {
            return;
        }
        let stamp = stamped(self.store.folder()).filter(|newest| *newest > 0);
        let is_newest = stamp.is_some_and(|newest| self.knows(newest));
        let mut doubt = lock(&self.doubt);
        doubt.since = if is_newest { None } else { doubt.since.or(Some(now)) };
    }

    /// All changes are known, and so what became of the keys that were let in before they were.
    fn settle(&self, keys: &Keys) {
        let mut doubt = lock(&self.doubt);
        doubt.since = None;
        let is_revoked =
            |digest: &Digest| keys.get(digest).is_none_or(|held| held.state == KeyState::Revoked);
        let let_in = std::mem::take(&mut doubt.let_in);
        let revoked = let_in.into_iter().filter(|(digest, _)| is_revoked(digest));
        doubt.revoked.extend(revoked.map(|(_, id)| id));
    }

    /// Whoever changed a key may have ended before it wrote the stamp.
    fn heal_stamp(&self) {
        if lock(&self.trouble).reading.is_none() {
            let healed = self.store.stamp_if_due();
            lock(&self.trouble).stamping = healed.err();
        }
    }

    fn say_trouble(&self, now: Instant) {
        let found = self.trouble();
        let mut trouble = lock(&self.trouble);
        let Some(error) = found else {
            if trouble.said.take().is_some() {
                tracing::info!("the store is good again");
            }
            return;
        };
        let is_said = |(said, at): &(StoreError, Instant)| {
            *said == error && now.saturating_duration_since(*at) < SAY_AGAIN
        };
        if trouble.said.as_ref().is_some_and(is_said) {
            return;
        }
        match (&error, &trouble.reading) {
            (StoreError::OddKeys { .. }, _) => tracing::error!("{error}"),
            (_, Some(_)) => tracing::error!("keys are served as they were read last: {error}"),
            (_, None) => tracing::error!("keys are served, but no change can be kept: {error}"),
        }
        trouble.said = Some((error, now));
    }

    /// The caller hears only that it is not let in; whoever runs the gate hears why.
    fn tell(&self, held: &Held, why: KeyFault, client: IpAddr) {
        let now = Instant::now();
        {
            let mut told = lock(&self.told);
            if told.len() >= MOST_TOLD {
                told.retain(|_, at| now.saturating_duration_since(*at) < TELL_AGAIN);
            }
            let is_recent = |at: &Instant| now.saturating_duration_since(*at) < TELL_AGAIN;
            if told.get(&held.id).is_some_and(is_recent) || told.len() >= MOST_TOLD {
                return;
            }
            told.insert(held.id, now);
        }
        let (key, name, why) = (held.id.as_str(), held.grant.key_name.as_str(), why.as_str());
        tracing::warn!(key, name, why, %client, "a managed key was refused");
    }
}

/// By the calendar; a new key may go on where another of its name was.
fn is_newly_limited(keys: &Keys, read: &Read) -> bool {
    let Read::Key(key) = read else { return false };
    let before = keys.get(&Digest(key.digest)).map(|held| &held.grant.allowance);
    let is_new = |measure| before.is_none_or(|before| before.get(measure).is_none());
    key.details.limits.iter().any(|(measure, _)| measure.is_by_calendar() && is_new(measure))
}

impl fmt::Debug for Recall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recall")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
