//! Calls that several backends answer together.

use http::{HeaderValue, Response, header};

use super::{Served, State, lists};
use crate::call::Call;
use crate::forward::{self, Origin};
use crate::limit::Ticket;
use crate::meter::Gathered;
use crate::pool::List;
use crate::reject::Reject;

const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// What several backends are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Several {
    List(List),
    /// To be done at each.
    Each,
}

impl Several {
    /// `None` for what one backend answers, as nearly everything.
    pub(super) fn of(state: &State, admitted: &Ticket, call: &Call<'_>) -> Option<Self> {
        let pool = state.pool();
        if pool.backends().len() < 2 {
            return None;
        }
        let list = List::of(&call.asked).filter(|list| pool.lists_together(*list));
        let each = || pool.goes_to_each(admitted.permit(), call).then_some(Self::Each);
        list.map(Self::List).or_else(each)
    }

    /// # Errors
    /// 502, 503, 504 where no backend tells; 401 for a key that was taken away meanwhile.
    pub(super) async fn served(
        self,
        state: &State,
        (call, admitted): (Call<'_>, Ticket),
        origin: Origin<'_>,
    ) -> Result<Served, Reject> {
        match self {
            Self::List(list) => lists::merged(state, list, &call, admitted).await.map(Served::Own),
            Self::Each => {
                let leases = state.pool().each(&admitted, &call).await;
                let names: Vec<_> = leases.iter().map(|it| &**it.backend().name()).collect();
                origin.record.leaves_for(&names.join("+").into());
                let asked = forward::to_each(call, leases, state.forwarding(), &origin)?;
                let gathered = Gathered::of(asked, admitted, state.idle());
                let mut response = Response::new(Box::new(gathered));
                response.headers_mut().insert(header::CONTENT_TYPE, NDJSON);
                Ok(Served::Gathered(response))
            }
        }
    }
}
