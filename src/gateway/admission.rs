//! What a request is worth to the limits, before it is sent on.

use std::time::Instant;

use jiff::Timestamp;

use super::Visit;
use crate::access::Permit;
use crate::call::Call;
use crate::config::{Bounds, Change};
use crate::limit::{Ask, Entered, Limits, Plan, Ticket};
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
    record.accounts(Account::open(live.ledger.as_ref(), &permit, call));
    let bound = most_allowed(&permit);
    let model = record.line.model.as_deref();
    let is_full = || live.ledger.as_ref().is_some_and(|ledger| ledger.is_full());
    let ask = || Ask { ledger_full: is_full(), ..asked(call, model, bound) };
    live.limits.admit(state.plan(), permit, entered, ask)
}

/// What a request would be asked for by the limits, while the ledger has room.
pub(super) fn supposed<'a>(permit: &Permit, call: &Call<'_>, model: Option<&'a str>) -> Ask<'a> {
    asked(call, model, most_allowed(permit))
}

fn asked<'a>(call: &Call<'_>, model: Option<&'a str>, bound: Option<u64>) -> Ask<'a> {
    Ask {
        class: call.asked.class(),
        model,
        tokens_held: held(call, bound),
        now: Instant::now(),
        wall: Timestamp::now(),
        ledger_full: false,
    }
}

/// Brings the counts of the day and the month up to what the ledger knows.
///
/// # Errors
/// Where it cannot be read: a limit must not begin anew.
pub fn recall(limits: &Limits, store: &Store, plan: &Plan) -> Result<(), StoreError> {
    let wall = Timestamp::now();
    let (day, month) = Limits::wants_since(plan, wall);
    let (day, month) = (store.spent_since(day)?, store.spent_since(month)?);
    limits.restore(plan, wall, &day, &month);
    Ok(())
}

/// The prompt, with the most that was asked for; nothing for who asked for no end.
fn held(call: &Call<'_>, bound: Option<u64>) -> u64 {
    let asked = call.reading.asked_maximum().unwrap_or_default();
    let answer = bound.map_or(asked, |bound| asked.min(bound)).min(MOST_HELD);
    (answer + call.reading.prompt_estimate()).min(MOST_HELD)
}

/// What the policy makes of a longer answer.
fn most_allowed(permit: &Permit) -> Option<u64> {
    let changes = &permit.reach().rule().policy.changes;
    let bound = changes.iter().find_map(|(name, change)| match change {
        Change::Clamp(Bounds { max: Some(max), .. }) if name == "num_predict" => Some(*max),
        Change::Clamp(_) | Change::Drop | Change::Force(_) | Change::Loaded => None,
    });
    // A fraction is cut off.
    bound.map(|bound| bound as u64)
}
