//! One stream of a connection over HTTP/2: a request handed to the gateway, and its answer sent.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http::{header, response};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::places::More;
use super::Caller;
use crate::http1::{Arrival, FieldLines, with_date};
use crate::incoming::{Incoming, StreamBody};
use crate::meter::Answer;
use crate::reject::REQUEST_ID;

/// Nobody waits for an answer any more, or takes it. Dropping the stream tells the other side.
#[derive(Debug)]
struct Gone;

impl From<h2::Error> for Gone {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

/// Whether there is a file for a stream's connection to the backend.
#[derive(Debug)]
pub(super) enum Room {
    /// The one that every connection has.
    OfItsConnection,
    Own(#[expect(dead_code, reason = "held until the end")] More),
    No,
}

/// Answers one request. When the caller cancels the stream, whatever works on it is dropped.
pub(super) async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    caller: Caller,
    room: Room,
) {
    let Caller { link, gateway, .. } = &caller;
    if poll_fn(|cx| Poll::Ready(respond.poll_reset(cx).is_ready())).await {
        // Cancelled before it was looked at; the record says client_gone by itself.
        drop(gateway.record_of(link.peer));
        return;
    }
    let (mut parts, stream) = request.into_parts();
    name_host(&mut parts);
    let arrived = Arc::new(Arrival::default());
    if let Room::No = room {
        let told = gateway.turn_away(link, &parts, arrived);
        // Who left has been noted by the answer, which is dropped.
        let _: Result<(), Gone> = send(told, &parts.method, &mut respond, caller.stall).await;
        return;
    }
    let mut body_asked_for = Arc::new(AtomicBool::new(false));
    let body = Arc::clone(&body_asked_for);
    let body = StreamBody::new(stream, &parts.headers, Arc::clone(&arrived), body);
    if !parts.headers.contains_key(header::EXPECT) {
        body_asked_for = Arc::default();
    }
    let asked_with = parts.method.clone();
    let response = {
        // Boxed and dropped here, so that a stream keeps only what sending the answer takes.
        let mut handled =
            Box::pin(gateway.handle(link, Box::new(parts), Incoming::Http2(body), arrived));
        poll_fn(|cx| {
            if let Poll::Ready(response) = handled.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            if body_asked_for.swap(false, Ordering::Relaxed) {
                // A caller who does not hear it sends the body anyway, after a while.
                let _ = respond.send_informational(go_on());
            }
            respond.poll_reset(cx).map(|_| None)
        })
        .await
    };
    if let Some(response) = response {
        // Who left has been noted by the answer, which is dropped.
        let _: Result<(), Gone> = send(response, &asked_with, &mut respond, caller.stall).await;
    }
}

/// `:authority` is what `Host` is to HTTP/1.1 (RFC 9113, 8.3.1): where only it came, it is both.
fn name_host(parts: &mut Parts) {
    if let Some(authority) = parts.uri.authority()
        && !parts.headers.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
}

fn go_on() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::CONTINUE;
    response
}

async fn send(
    response: Response<Answer>,
    asked_with: &Method,
    respond: &mut SendResponse<Bytes>,
    stall: Duration,
) -> Result<(), Gone> {
    let (mut parts, mut answer) = response.into_parts();
    let fields = answer.take_fields();
    complete(&mut parts, fields, answer.size_hint().exact());
    let bodiless = *asked_with == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304);
    let ends = bodiless || answer.is_end_stream();
    let stream = respond.send_response(Response::from_parts(parts, ()), ends)?;
    if ends {
        return Ok(());
    }
    let mut sending = Sending { stream, stall };
    loop {
        let frame = poll_fn(|cx| match sending.stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Gone)),
            Poll::Pending => Pin::new(&mut answer).poll_frame(cx).map(Ok),
        });
        match frame.await?.map(|frame| frame.map(http_body::Frame::into_data)) {
            Some(Ok(Ok(data))) => sending.push(data, &mut answer).await?,
            Some(Ok(Err(_))) => {}
            Some(Err(_)) => {
                sending.written().await?;
                // So that nobody takes it for whole.
                sending.stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => sending.stream.send_data(Bytes::new(), true)?,
        }
        if answer.is_end_stream() {
            return Ok(());
        }
    }
}

/// Adds the backend's fields to ours, and what HTTP/2 wants said and not said.
fn complete(parts: &mut response::Parts, passed: FieldLines, length: Option<u64>) {
    let headers = &mut parts.headers;
    // Streams do not close connections, and nothing else is said of one (RFC 9113, 8.2.2).
    headers.remove(header::CONNECTION);
    let (has_date, has_length) = (passed.has_date(), passed.has_length());
    let ours = std::mem::replace(headers, passed.into_map());
    for (name, value) in &ours {
        // A backend that answered with thousands of fields was refused long ago.
        let _ = headers.try_append(name, value.clone());
    }
    if let Some(id) = headers.get_mut(REQUEST_ID) {
        // It never comes again, and would only crowd the table of what may (RFC 7541, 7.1.3).
        id.set_sensitive(true);
    }
    if !has_date && let Ok(date) = with_date(HeaderValue::from_str) {
        headers.insert(header::DATE, date);
    }
    let is_told = has_length || matches!(parts.status.as_u16(), 204 | 304);
    if let Some(length) = length.filter(|_| !is_told) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
}

/// An answer on its way to a caller who may take it slowly, but not never.
struct Sending {
    stream: SendStream<Bytes>,
    stall: Duration,
}

impl Sending {
    /// Hands over data as the caller makes room for it.
    async fn push(&mut self, mut data: Bytes, answer: &mut Answer) -> Result<(), Gone> {
        let ends = answer.is_end_stream();
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            let room = match self.stream.capacity() {
                0 => timeout(self.stall, self.room(answer)).await.map_err(|_| Gone)??,
                room => room,
            };
            let piece = data.split_to(room.min(data.len()));
            self.stream.send_data(piece, ends && data.is_empty())?;
        }
        Ok(())
    }

    async fn room(&mut self, answer: &mut Answer) -> Result<usize, Gone> {
        loop {
            let room = poll_fn(|cx| match answer.has_to_end(cx) {
                true => Poll::Ready(None),
                false => self.stream.poll_capacity(cx),
            });
            match room.await {
                Some(Ok(0)) => {}
                Some(Ok(room)) => return Ok(room),
                Some(Err(_)) | None => return Err(Gone),
            }
        }
    }

    /// Waits until everything handed over is out: a reset would overtake it.
    async fn written(&mut self) -> Result<(), Gone> {
        let (last, is_out) = oneshot::channel();
        self.stream.send_data(Bytes::from_owner(Last(last)), false)?;
        // Sent or given up, it is dropped.
        let _ = timeout(self.stall, is_out).await.map_err(|_| Gone)?;
        Ok(())
    }
}

/// Nothing, behind everything else; its end is told by the channel's.
struct Last(
    #[expect(dead_code, reason = "what matters is when it is dropped")] oneshot::Sender<()>,
);

impl AsRef<[u8]> for Last {
    fn as_ref(&self) -> &[u8] {
        &[]
    }
}
