//! An answer that begins while its request still waits, where the configuration asks for it.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Response};

use super::asker::{Asker, tell_of};
use super::{Gateway, Link, Request, State, Visit};
use crate::call::Call;
use crate::limit::Ticket;
use crate::meter::{Answer, Early, Promise};
use crate::record::RequestId;

/// As [`Gateway::handle`]; what has not answered after `every`, and may begin early, does.
pub(super) async fn answer(
    gateway: &Arc<Gateway>,
    state: Arc<State>,
    link: &Link,
    request: Request,
    every: Duration,
) -> Response<Answer> {
    let promise = Arc::new(Promise::default());
    let (gateway, link, promised) = (Arc::clone(gateway), link.clone(), Arc::clone(&promise));
    let work = async move { gateway.answer(state, &link, request, Some(&promised)).await };
    Early::unless_answered(Box::pin(work), promise, every).await
}

/// From here on the answer may begin: the request is let through and only has to wait.
pub(super) fn allow(
    visit: &Visit<'_>,
    parts: &Parts,
    ticket: &Ticket,
    call: &Call<'_>,
    id: RequestId,
) {
    let Some(promise) = visit.promise else { return };
    let mut headers = HeaderMap::new();
    tell_of(ticket, &mut headers);
    let asker = Asker { state: visit.state, parts, door: &visit.link.door };
    asker.sign(&mut headers, id);
    promise.give(call.streams_as(), headers);
}
