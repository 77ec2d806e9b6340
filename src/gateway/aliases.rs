//! Aliases: another name for a model, replaced before anybody looks at which model it is.

use super::State;
use crate::api::Class;
use crate::call::Call;
use crate::config::ModelName;
use crate::reject::Reject;

/// Puts the model's own name in the place of an alias, where something is asked of the model. Whoever
/// copies or deletes means the name that is written.
///
/// # Errors
/// 503 where there is no memory for a second body.
pub(super) async fn replace(state: &State, call: &mut Call<'_>) -> Result<(), Reject> {
    let is_use = matches!(call.asked.class(), Class::Inference | Class::Models);
    if state.pool().aliases().is_empty() || !is_use {
        return Ok(());
    }
    // Boxed, so that requests where there are none stay small.
    Box::pin(replaced(state, call)).await
}

async fn replaced(state: &State, call: &mut Call<'_>) -> Result<(), Reject> {
    let Some(asked) = call.model().and_then(|it| ModelName::parse(&it).ok()) else { return Ok(()) };
    let Some(models) = state.pool().aliases().find(&asked) else { return Ok(()) };
    match state.pool().stands_for(models).await {
        Some(model) if model.name != *asked.without_source() => {
            call.rename(&model.text, state.bounds()).await
        }
        Some(_) | None => Ok(()),
    }
}
