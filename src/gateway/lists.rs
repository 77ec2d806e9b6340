//! A list of models, read whole and narrowed to what its caller may see.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::{Passed, Served};
use crate::access;
use crate::reject::Reject;

/// A list of 100,000 models has less.
const MOST_BYTES: usize = 32 << 20;

/// The answer as it passes, or read and narrowed first.
///
/// # Errors
/// 502 for an answer that is no list, or breaks off; 504.
pub(super) async fn served(
    passed: Box<Passed>,
    narrows: bool,
    idle: Duration,
) -> Result<Served, Reject> {
    match narrows {
        // Boxed, because it is seldom needed.
        true => Box::pin(narrowed(passed, idle)).await.map(Served::Own),
        false => Ok(Served::Passed(passed)),
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
        StatusCode::OK => access::narrowed(&body, ticket.permit().reach())
            .ok_or_else(|| Reject::BackendFailed("its list of models cannot be read".into()))?,
        // What is no list names no models.
        _ => body,
    };
    let mut response = Response::new(list);
    *response.status_mut() = answered.status;
    for (name, value) in answered.fields.iter() {
        let (name, value) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
        // The length is another one now, and is told by who sends it.
        if let (Ok(name), Ok(value)) = (name, value)
            && name != header::CONTENT_LENGTH
        {
            response.headers_mut().append(name, value);
        }
    }
    Ok(response)
}
