//! All accounts, each found by a number that stands for its limit and for who shares it.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};

use super::account::Account;
use super::period::{Almanac, Period};
use super::plan::Scope;

/// Two numbers under secret keys: nobody can bring two accounts together, and names take no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct AccountId(u64, u64);

pub(super) struct Book {
    secrets: [Secret; 2],
    shelves: [Mutex<Shelf>; SHELVES],
    /// What was known from before, for accounts that nobody has asked for yet.
    carried: Mutex<HashMap<AccountId, (Period, Period)>>,
}

#[cfg(not(loom))]
type Secret = std::collections::hash_map::RandomState;
/// There nothing may be left to chance.
#[cfg(loom)]
type Secret = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

#[derive(Debug, Default)]
struct Shelf {
    accounts: HashMap<AccountId, Arc<Account>>,
    /// At how many the idle ones are looked for.
    tidy_at: usize,
}

const SHELVES: usize = 64;
/// Fewer on a shelf are not worth a look.
const FEW: usize = 256;

impl Book {
    pub(super) fn id(&self, scope: &Scope<'_>) -> AccountId {
        let [first, second] = &self.secrets;
        AccountId(first.hash_one(scope), second.hash_one(scope))
    }

    /// The account, made where there is none.
    pub(super) fn account(&self, id: AccountId, now: Instant, almanac: &Almanac) -> Arc<Account> {
        let mut shelf = self.shelf(id);
        if let Some(account) = shelf.accounts.get(&id) {
            return Arc::clone(account);
        }
        shelf.tidy(now, almanac);
        let known = lock(&self.carried).get(&id).copied();
        let account = known.map_or_else(Account::default, |(day, month)| Account::with(day, month));
        let account = Arc::new(account);
        shelf.accounts.insert(id, Arc::clone(&account));
        account
    }

    /// Takes over what was used before; what is counted already is never made less.
    pub(super) fn carry(&self, sums: HashMap<AccountId, (Period, Period)>) {
        *lock(&self.carried) = sums.clone();
        for (id, (day, month)) in sums {
            let account = self.shelf(id).accounts.get(&id).map(Arc::clone);
            if let Some(account) = account {
                account.open().raise(&day, &month);
            }
        }
    }

    fn shelf(&self, id: AccountId) -> MutexGuard<'_, Shelf> {
        let at = usize::try_from(id.0).unwrap_or_default() % SHELVES;
        // There is one for each remainder.
        let [first, ..] = &self.shelves;
        lock(self.shelves.get(at).unwrap_or(first))
    }
}

impl Shelf {
    /// Forgets who is as if they had never asked, when there are twice as many as the last time.
    fn tidy(&mut self, now: Instant, almanac: &Almanac) {
        if self.accounts.len() < self.tidy_at.max(FEW) {
            return;
        }
        // Who has one now would go on with it.
        let is_needed =
            |it: &Arc<Account>| Arc::strong_count(it) > 1 || !it.open().is_idle(now, almanac);
        self.accounts.retain(|_, account| is_needed(account));
        self.accounts.shrink_to(2 * self.accounts.len());
        self.tidy_at = 2 * self.accounts.len();
    }
}

impl Default for Book {
    fn default() -> Self {
        Self {
            secrets: Default::default(),
            shelves: std::array::from_fn(|_| Mutex::default()),
            carried: Mutex::default(),
        }
    }
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Book(…)")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Book {
        pub(in crate::limit) fn len(&self) -> usize {
            self.shelves.iter().map(|shelf| lock(shelf).accounts.len()).sum()
        }
    }
}
