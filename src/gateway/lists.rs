//! A list of models, that of all backends, or read whole and narrowed to what its caller may see.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::{Passed, Served, State};
use crate::access;
use crate::call::Call;
use crate::limit::Ticket;
use crate::pool::List;
use crate::reject::Reject;

mod merge;

/// A list of 100,000 models has less.
const MOST_BYTES: usize = 32 << 20;
/// Longer lists are read aside, because that takes more than a millisecond.
const READ_AT_ONCE: usize = 64 << 10;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
/// More entries are put together aside, because that takes more than a millisecond.
const MERGED_AT_ONCE: usize = 200;

/// The list of all backends together, as the caller may see it.
///
/// # Errors
/// 502, 503, 504 where none of them tells.
pub(super) async fn merged(
    state: &State,
    list: List,
    call: &Call<'_>,
    admitted: Ticket,
) -> Result<Response<Bytes>, Reject> {
    let told = state.pool().lists(list).await?;
    let entries: usize = told.iter().map(|(_, told)| told.entries.len()).sum();
    let narrows = admitted.permit().narrows(&call.asked);
    let (pool, is_short) = (Arc::clone(state.pool()), entries <= MERGED_AT_ONCE);
    let made = move || {
        let make = || Bytes::from(merge::merged(list, &told));
        let whole = if is_short { make() } else { pool.made_once(list, &told, make) };
        match narrows {
            true => access::narrowed(&whole, admitted.permit().reach()),
            false => Some(whole),
        }
    };
    let body = match is_short {
        true => made(),
        // It does not fail but by a panic.
        false => tokio::task::spawn_blocking(made).await.ok().flatten(),
    };
    let mut response = Response::new(body.ok_or(Reject::Internal)?);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    Ok(response)
}

/// The answer as it passes, or read and narrowed first.
///
/// # Errors
/// 502 for an answer that is no list, or breaks off; 504.
pub(super) async fn served(
    passed: Passed,
    narrows: bool,
    idle: Duration,
) -> Result<Served, Reject> {
    let passed = Box::new(passed);
    match narrows {
        // Boxed, because it is seldom needed.
        true => Box::pin(narrowed(passed, idle)).await.map(Served::Own),
        false => Ok(Served::Passed(passed)),
    }
}

async fn narrowed_aside(body: Bytes, ticket: Ticket) -> Option<Bytes> {
    let is_short = body.len() <= READ_AT_ONCE;
    let narrowed = move || access::narrowed(&body, ticket.permit().reach());
    match is_short {
        true => narrowed(),
        // It does not fail but by a panic.
        false => tokio::task::spawn_blocking(narrowed).await.ok().flatten(),
    }
}

async fn narrowed(passed: Box<Passed>, idle: Duration) -> Result<Response<Bytes>, Reject> {
    let Passed { answered, ticket, lease, sifts: _ } = *passed;
    let mut connection = answered.connection;
    let body = connection.whole(idle, MOST_BYTES).await?;
    if connection.is_past() {
        lease.give_back(connection, Instant::now());
    }
    let packed = answered.fields.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case(b"content-encoding") && !value.eq_ignore_ascii_case(b"identity")
    });
    let list = match answered.status {
        // A HEAD has no list to narrow.
        _ if body.is_empty() => body,
        status if status.is_success() && (status != StatusCode::OK || packed) => {
            return Err(Reject::BackendFailed(
                "its list of models does not come whole and plain".into(),
            ));
        }
        StatusCode::OK => narrowed_aside(body, ticket)
            .await
            .ok_or_else(|| Reject::BackendFailed("its list of models cannot be read".into()))?,
        // What is no list names no models.
        _ => body,
    };
    let mut response = Response::new(list);
    *response.status_mut() = answered.status;
    for (name, value) in answered.fields.iter() {
        let (name, value) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
        // The length is another one now, and both are told by who sends it.
        if let (Ok(name), Ok(value)) = (name, value)
            && ![header::CONTENT_LENGTH, header::DATE].contains(&name)
        {
            response.headers_mut().append(name, value);
        }
    }
    Ok(response)
}
