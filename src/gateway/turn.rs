//! A request's turn: which backend, and when.

use std::pin::pin;

use http::request::Parts;

use super::{Visit, early};
use crate::call::Call;
use crate::limit::Ticket;
use crate::pool::{Choice, Lease};
use crate::record::Record;
use crate::reject::Reject;

/// A place at a backend, when there is one; who may not go on waits no longer. From here on a stream may
/// begin early.
///
/// # Errors
/// As [`crate::pool::Pool::choose`] and [`crate::pool::Wait::turn`], and where the request has to end.
pub(super) async fn taken(
    visit: &Visit<'_>,
    (parts, call): (&Parts, &Call<'_>),
    ticket: &Ticket,
    record: &mut Record,
) -> Result<Lease, Reject> {
    early::allow(visit, parts, ticket, call, record.line.id);
    let pool = visit.state.pool();
    let mut choice = pool.choose(ticket, call, record.model_shown()).await?;
    loop {
        let wait = match choice {
            Choice::Now(lease) => return Ok(lease),
            Choice::Later(wait) => wait,
        };
        record.waits(wait.position());
        let turn = wait.turn(record.line.queue);
        // Boxed, because every request would have the room for it.
        let turn = Box::pin(async { ticket.unless_ended(pin!(turn)).await }).await;
        record.waited();
        if let Some(lease) = turn? {
            return Ok(lease);
        }
        choice = Box::pin(pool.choose_again(ticket, call, record.model_shown())).await?;
    }
}
