//! What a request is worth to the limits, before it is sent on.

use std::collections::HashMap;
use std::time::Instant;

use jiff::Timestamp;

use super::{State, Visit};
use crate::access::Permit;
use crate::auth::{Auth, Identity};
use crate::call::Call;
use crate::call::reading::Reading;
use crate::limit::{Ask, Entered, Limits, Ticket};
use crate::record::{Account, Record};
use crate::reject::Reject;
use crate::store::{Store, StoreError};

/// No model makes as many; sums of these do not overflow.
const MOST_HELD: u64 = 1 << 32;

/// Opens the account of what this will cost, and takes what it needs of every limit.
///
/// # Errors
/// See [`crate::limit::Limits::admit`].
pub(super) fn ticket(
    Visit { live, state, .. }: &Visit<'_>,
    (permit, entered): (Permit, Entered),
    call: &Call<'_>,
    record: &mut Record,
) -> Result<Ticket, Reject> {
    let sent = call.as_sent();
    record.accounts(Account::open(live.ledger.as_ref(), &permit, (call, &sent)));
    let model = record.line.model.as_deref();
    let is_full = || live.ledger.as_ref().is_some_and(|ledger| ledger.is_full());
    let ask = || Ask { ledger_full: is_full(), ..asked(call, &sent, model) };
    live.limits.admit(state.plan(), permit, entered, ask)
}

/// What a request would be asked for by the limits, while the ledger has room.
pub(super) fn supposed<'a>(call: &Call<'_>, model: Option<&'a str>) -> Ask<'a> {
    asked(call, &call.as_sent(), model)
}

fn asked<'a>(call: &Call<'_>, sent: &Reading, model: Option<&'a str>) -> Ask<'a> {
    Ask {
        class: call.asked.class(),
        model,
        tokens_held: held(sent),
        now: Instant::now(),
        wall: Timestamp::now(),
        ledger_full: false,
    }
}

/// Brings the counts of the day and the month up to what the ledger knows.
///
/// # Errors
/// Where it cannot be read: a limit must not begin anew.
pub fn recall(limits: &Limits, store: &Store, state: &State) -> Result<(), StoreError> {
    let (plan, wall) = (state.plan(), Timestamp::now());
    let (day, month) = Limits::wants_since(plan, wall);
    let (day, month) = (store.spent_since(day)?, store.spent_since(month)?);
    limits.restore(plan, wall, (&day, &month), holders(store, state.auth()))
}

/// Says who asked, of a row of usage with an account and the name of a key: each key of this name that
/// the account has or had, with its role and its id as they are now. Each is looked for once.
pub fn holders<'a>(
    store: &'a Store,
    auth: &'a Auth,
) -> impl FnMut(&str, &str) -> Result<Vec<Identity>, StoreError> + 'a {
    let mut known = HashMap::new();
    move |account, key| {
        let asked = (account.to_owned(), key.to_owned());
        if let Some(known) = known.get(&asked) {
            return Ok(Vec::clone(known));
        }
        let held = keys_of(store, auth, account, key)?;
        known.insert(asked, held.clone());
        Ok(held)
    }
}

fn keys_of(
    store: &Store,
    auth: &Auth,
    account: &str,
    key: &str,
) -> Result<Vec<Identity>, StoreError> {
    let keys = match store.find_keys(key) {
        Ok(keys) => keys,
        Err(error) if error.is_askers() => Vec::new(),
        Err(error) => return Err(error),
    };
    let theirs = keys.iter().filter(|it| it.details.identity() == account);
    let mut holders: Vec<_> = theirs.map(|key| auth.suppose_key(key)).collect();
    let by_file = Some(auth.suppose(key)).filter(|it| it.account().as_str() == account);
    holders.extend(by_file.filter(|it| it.grant().is_some()));
    Ok(holders)
}

/// The prompt, with the most that was asked for; nothing for who asked for no end.
fn held(sent: &Reading) -> u64 {
    let answer = sent.asked_maximum().unwrap_or_default().min(MOST_HELD);
    (answer + sent.prompt_estimate()).min(MOST_HELD)
}
