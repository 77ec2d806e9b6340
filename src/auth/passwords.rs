//! Checking passwords: remembered ones at once, the others aside and a few at a time, unknown names
//! at the price of known ones.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::auth::brake::Charge;
use crate::auth::htpasswd::Htpasswd;
use crate::auth::stored_hash::StoredHash;
use crate::client_addr::{ClientAddr, network};

/// Verified passwords remembered at the most; past it an arbitrary half is forgotten.
const MOST_REMEMBERED: usize = 10_000;
/// Checks that may wait for the pool; past it the answer is 503.
const MOST_WAITING: usize = 64;
/// Of them those from one address.
const MOST_OF_ONE: usize = 16;
/// A hash above this cost does not run on the threads that move bytes.
const SLOW: Duration = Duration::from_millis(1);
/// A tenth of the processor where bytes take all of it (sched(7): a step is a factor of 1.25).
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
/// bcrypt at cost 10 on an old machine: a first guess, replaced by the first measurement.
const FIRST_GUESS: Duration = Duration::from_millis(60);

/// Passwords that were right, by a keyed digest.
struct Verified {
    secret: [u8; 32],
    marks: Mutex<HashSet<[u8; 32]>>,
}

/// What survives a reload: what was verified, and the pool.
pub(crate) struct Passwords {
    verified: Arc<Verified>,
    pool: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    /// Nanoseconds that the costliest hash took lately.
    slowest: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Right,
    Wrong,
    /// The pool's queue is full, or the part of it that one address may fill.
    Overloaded,
}

impl Passwords {
    /// `cores`: hashing never takes the last one.
    pub(crate) fn new(cores: usize) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self {
            verified: Arc::new(Verified { secret, marks: Mutex::default() }),
            pool: Arc::new(Semaphore::new(cores.saturating_sub(1).max(1))),
            waiting: Mutex::default(),
            slowest: AtomicU64::new(nanos(FIRST_GUESS)),
        })
    }

    /// Whether this very password was verified against this very hash before.
    pub(crate) fn remembers(&self, file: &Htpasswd, name: &str, password: &[u8]) -> bool {
        self.verified.remembers(file, name, password)
    }

    /// The slow check. A wrong password and an unknown name take as long as the costliest hash in
    /// the file, so that time does not tell who is in it. A right one is remembered, and its attempt
    /// taken back, also where the caller has left before.
    pub(crate) async fn check(
        &self,
        file: &Arc<Htpasswd>,
        name: &str,
        password: &[u8],
        charge: Charge,
    ) -> Verdict {
        let Some(costliest) = file.costliest().map(StoredHash::cost) else { return Verdict::Wrong };
        let known = file.get(name).map(StoredHash::cost);
        let client = charge.client();
        let (checked, owned) = (Arc::clone(file), (name.to_owned(), password.to_owned()));
        let verified = Arc::clone(&self.verified);
        let work = move || {
            let (name, password) = owned;
            let right = verify(&checked, &name, &password);
            match right {
                true => verified.remember(&checked, &name, &password),
                false => charge.stands(),
            }
            right
        };
        if u128::from(costliest) < SLOW.as_nanos() {
            return if work() { Verdict::Right } else { Verdict::Wrong };
        }
        let Some(place) = Place::take(&self.waiting, client) else { return Verdict::Overloaded };
        let Ok(permit) = Arc::clone(&self.pool).acquire_owned().await else {
            return Verdict::Overloaded;
        };
        let started = Instant::now();
        let Some(verdict) = aside(permit, work) else { return Verdict::Overloaded };
        let right = verdict.await.unwrap_or(false);
        drop(place);
        if right {
            return Verdict::Right;
        }
        self.even_out(started, known.is_none_or(|cost| cost == costliest)).await;
        Verdict::Wrong
    }

    /// Waits until a cheap hash has taken as long as the costliest does.
    async fn even_out(&self, started: Instant, costliest: bool) {
        let took = nanos(started.elapsed());
        let slowest = self.slowest.load(Ordering::Relaxed);
        if costliest {
            // A running mean over about eight checks follows the machine's load.
            let mean = slowest - slowest / 8 + took / 8;
            self.slowest.store(mean, Ordering::Relaxed);
        } else {
            tokio::time::sleep(Duration::from_nanos(slowest.saturating_sub(took))).await;
        }
    }
}

impl Verified {
    fn remembers(&self, file: &Htpasswd, name: &str, password: &[u8]) -> bool {
        let Some(stored) = file.get(name) else { return false };
        let mark = self.mark(name, password, stored);
        self.marks().contains(&mark)
    }

    fn remember(&self, file: &Htpasswd, name: &str, password: &[u8]) {
        let Some(stored) = file.get(name) else { return };
        let mark = self.mark(name, password, stored);
        let mut marks = self.marks();
        if marks.len() >= MOST_REMEMBERED {
            let mut keep = false;
            marks.retain(|_| {
                keep = !keep;
                keep
            });
        }
        marks.insert(mark);
    }

    /// Keyed, so that the memory of this process tells no password; the stored hash is in it, so
    /// that a change in the file forgets.
    fn mark(&self, name: &str, password: &[u8], stored: &StoredHash) -> [u8; 32] {
        // HMAC takes keys of any length; the error cannot occur.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.secret) else { return [0; 32] };
        for part in [name.as_bytes(), password, stored.text().as_bytes()] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    fn marks(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").finish_non_exhaustive()
    }
}

/// Hashes on a thread of its own, which steps back for those that move bytes: its start costs little
/// beside a hash. `None` where the system gives no thread.
fn aside(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> bool + Send + 'static,
) -> Option<oneshot::Receiver<bool>> {
    let (told, verdict) = oneshot::channel();
    let work = move || {
        step_back();
        let right = work();
        // Held by the work, not by the request: a caller who leaves frees no processor.
        drop(permit);
        // Nobody waits for the verdict when that caller has left.
        let _ = told.send(right);
    };
    thread::Builder::new().name("hash".to_owned()).spawn(work).ok()?;
    Some(verdict)
}

/// Linux keeps a priority for each thread (setpriority(2), "C library/kernel differences"); elsewhere
/// it would be the whole process that steps back.
fn step_back() {
    #[cfg(target_os = "linux")]
    // Where it is not allowed, hashing goes on as before.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// An unknown name is checked against the costliest hash, whatever that says.
fn verify(file: &Htpasswd, name: &str, password: &[u8]) -> bool {
    let known = file.get(name);
    let Some(stored) = known.or_else(|| file.costliest()) else { return false };
    stored.verify(password) && known.is_some()
}

/// Who waits for the pool, in all and from each network.
#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

/// A place in the queue for the pool, given back on drop.
struct Place<'a> {
    waiting: &'a Mutex<Waiting>,
    network: IpAddr,
}

impl<'a> Place<'a> {
    /// `None` where there is none: whoever floods the gate from one address keeps nobody else out.
    fn take(waiting: &'a Mutex<Waiting>, client: ClientAddr) -> Option<Self> {
        let network = network(client.ip());
        let most = if client.is_shared() { MOST_WAITING } else { MOST_OF_ONE };
        let mut line = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own = line.each.get(&network).copied().unwrap_or(0);
        if line.all >= MOST_WAITING || own >= most {
            return None;
        }
        line.all += 1;
        line.each.insert(network, own + 1);
        Some(Self { waiting, network })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        line.all -= 1;
        let own = line.each.get(&self.network).map_or(0, |own| own - 1);
        match own {
            0 => line.each.remove(&self.network),
            own => line.each.insert(self.network, own),
        };
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use http::HeaderMap;

    use super::*;
    use crate::auth::brake::Brake;
    use crate::client_addr::{ClientAddr, PeerAddr, TrustedProxies};
    use crate::config::WeakHashes;

    /// bcrypt at cost 10 of "open sesame".
    const SLOW: &str = "slow:$2y$10$lGUXsNZkrBe96CgIKGm2EOLcZnPNpnuWPgGpOEkQkKqSvIfN.gKN2\n";

    fn client() -> ClientAddr {
        client_at(1)
    }

    fn client_at(last: u8) -> ClientAddr {
        let peer = PeerAddr::new([192, 0, 2, last].into());
        TrustedProxies::default().client_addr(peer, &HeaderMap::new())
    }

    #[test]
    fn one_address_fills_a_part_of_the_queue_alone() {
        let waiting = Mutex::default();
        let take = |last| Place::take(&waiting, client_at(last));
        let mut first: Vec<_> = (0..MOST_OF_ONE).map(|_| take(1).unwrap()).collect();
        assert!(take(1).is_none() && take(2).is_some());
        first.pop();
        assert!(take(1).is_some());
        let others: Vec<_> = (0..MOST_WAITING).filter_map(|at| take(10 + at as u8)).collect();
        assert_eq!(first.len() + others.len(), MOST_WAITING, "there is an end in all");
        drop((first, others));
        let line = waiting.lock().unwrap();
        assert!(line.all == 0 && line.each.is_empty());
    }

    /// Whether an attempt is still allowed where one failure is too many.
    fn is_free(brake: &Arc<Brake>) -> bool {
        Charge::new(brake, client(), "slow", 1, Instant::now()).is_ok()
    }

    #[tokio::test]
    async fn a_caller_who_does_not_wait_harms_nobody() {
        let file = Arc::new(Htpasswd::parse(SLOW, WeakHashes::Warn).content);
        let (passwords, brake) = (Passwords::new(1).unwrap(), Arc::new(Brake::default()));
        let charge = || Charge::new(&brake, client(), "slow", 9, Instant::now()).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        {
            let mut hashed = Box::pin(passwords.check(&file, "slow", b"open sesame", charge()));
            assert!(hashed.as_mut().poll(&mut cx).is_pending());
            let mut queued = Box::pin(passwords.check(&file, "slow", b"anything", charge()));
            assert!(queued.as_mut().poll(&mut cx).is_pending());
            assert!(!is_free(&brake), "an attempt counts while it is not known to be right");
        }
        let started = Instant::now();
        while !passwords.remembers(&file, "slow", b"open sesame") || !is_free(&brake) {
            assert!(started.elapsed() < Duration::from_secs(60), "nobody remembered it");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let wrong = passwords.check(&file, "slow", b"wrong", charge()).await;
        assert!(wrong == Verdict::Wrong && !is_free(&brake), "what was wrong stands");
    }
}
