//! How the model that is asked for is loaded, where a policy wants to know it.

use crate::access::{Entry, Ground};
use crate::call::Call;
use crate::config::ModelName;

use super::State;

/// What a policy needs to know beside the call; the backend is asked only where one wants to.
pub(super) async fn ground<'a>(state: &'a State, entry: &Entry, call: &Call<'_>) -> Ground<'a> {
    let asked = call.model().filter(|_| entry.asks_for_loaded());
    let model = asked.and_then(|model| ModelName::parse(&model).ok());
    let loaded_context = match model {
        Some(model) => Box::pin(state.pool().loaded_context(&model, state.backend_key())).await,
        None => None,
    };
    Ground { bounds: state.bounds(), loaded_context }
}
