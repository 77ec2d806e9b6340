//! Which backends may have a request, the best one first; pure.

use std::sync::Arc;

use super::Backend;
use crate::api::Class;
use crate::call::Call;
use crate::config::{BackendKind, ModelName};
use crate::limit::Ticket;
use crate::reject::Reject;

/// What decides to which backend a request goes.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub class: Class,
    /// As it was decided on.
    pub path: &'a str,
    pub model: Option<&'a ModelName>,
}

impl<'a> Wanted<'a> {
    pub(super) fn of(admitted: &'a Ticket, call: &'a Call<'_>) -> Self {
        Self {
            class: call.asked.class(),
            path: call.asked.path(),
            model: admitted.permit().model(),
        }
    }

    /// Whether a backend of this kind has the endpoint at all.
    #[must_use]
    pub fn is_for(&self, kind: BackendKind) -> bool {
        match kind {
            BackendKind::Ollama => true,
            BackendKind::OpenAi => self.path.starts_with("/v1/"),
        }
    }
}

/// Those that may have it.
///
/// # Errors
/// 404 for a model that none has.
pub(super) fn candidates(
    backends: &[Arc<Backend>],
    wanted: &Wanted<'_>,
) -> Result<Vec<Arc<Backend>>, Reject> {
    let mut able: Vec<_> = backends
        .iter()
        .filter(|it| wanted.is_for(it.kind()) && !it.is_drained())
        .cloned()
        .collect();
    able.sort_by_key(|it| (!it.is_up(), it.busy()));
    Ok(able)
}
