//! How the model that is asked for is loaded, where a policy wants to know it.

use crate::access::{Entry, Ground};
use crate::api::Class;
use crate::call::Call;
use crate::config::ModelName;

use super::State;

/// What a policy needs to know beside the call; the backend is asked only where one wants to.
pub(super) async fn ground<'a>(state: &'a State, entry: &Entry, call: &Call<'_>) -> Ground<'a> {
    let is_asked = || call.asked.class() == Class::Inference && entry.asks_for_loaded();
    let asked = call.model().filter(|_| is_asked());
    let model = asked.and_then(|model| ModelName::parse(&model).ok());
    let loaded_context = match model {
        Some(model) => Box::pin(state.pool().loaded_context(&model, state.backend_key())).await,
        None => None,
    };
    Ground { bounds: state.bounds(), loaded_context }
}
