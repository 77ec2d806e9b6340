//! A request's turn: which backend, and when.

use std::pin::pin;

use super::State;
use crate::call::Call;
use crate::limit::Ticket;
use crate::pool::{Choice, Lease};
use crate::record::Record;
use crate::reject::Reject;

/// A place at a backend, when there is one; who may not go on waits no longer.
///
/// # Errors
/// As [`crate::pool::Pool::choose`] and [`crate::pool::Wait::turn`], and where the request has to end.
pub(super) async fn taken(
    state: &State,
    ticket: &Ticket,
    call: &Call<'_>,
    record: &mut Record,
) -> Result<Lease, Reject> {
    let wait = match state.pool().choose(ticket, call, record.model_shown()).await? {
        Choice::Now(lease) => return Ok(lease),
        Choice::Later(wait) => wait,
    };
    record.waits();
    // Boxed, because every request would have the room for it.
    let turn = Box::pin(async { ticket.unless_ended(pin!(wait.turn())).await }).await;
    record.waited();
    turn
}
