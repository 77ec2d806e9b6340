//! What the backend says of the model that is asked for, where that has to be known.

use crate::access::{self, Chosen, Entry, Ground};
use crate::api::Class;
use crate::call::Call;
use crate::reject::Reject;

use super::State;

/// The model, if it may be used, and what is to be known beside it. The backend is asked only where
/// that matters, and only of such a model.
///
/// # Errors
/// As [`access::choose`].
pub(super) async fn ground<'a>(
    state: &'a State,
    entry: Entry,
    call: &Call<'_>,
) -> Result<(Chosen, Ground<'a>), Reject> {
    let chosen = access::choose(entry, call)?;
    let mut ground = Ground { bounds: state.bounds(), loaded_context: None, runs_elsewhere: false };
    let Some(model) = chosen.model().filter(|_| call.asked.class() == Class::Inference) else {
        return Ok((chosen, ground));
    };
    let pool = state.pool();
    if !chosen.reach().may_use_cloud() {
        ground.runs_elsewhere = pool.runs_elsewhere(model).await;
    }
    if chosen.asks_for_loaded() && !ground.runs_elsewhere {
        ground.loaded_context = Box::pin(pool.loaded_context(model)).await;
    }
    Ok((chosen, ground))
}
