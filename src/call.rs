//! Request to [`Call`]: the strict reading of its head, and its body, whole or passing through.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header;
use http::request::Parts;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::api::{Asked, Field, ModelIn, Stream};
use crate::http1::{Arrival, Due};
use crate::incoming::Incoming;
use crate::reject::Reject;

mod beginning;
mod head;
mod packed;
pub mod reading;
mod rename;
pub mod rewrite;
mod usage_wish;

pub use head::{MAX_HEADER_BYTES, MAX_HEADERS, strict};

use reading::Reading;
use rewrite::Edit;

/// After the grace a body has to come at this many bytes a second.
const SLOWEST_BODY: u64 = 500;
/// Memory for bodies that come packed is taken in steps.
const UNPACKED_STEP: u64 = 256 * 1024;
/// Unit of the memory that bodies share: a semaphore counts to 2^61 at most, but takes 2^32 at once.
const MEMORY_UNIT: u64 = 1024;

/// Longer bodies are read aside, because that takes more than a millisecond.
const READ_AT_ONCE: usize = 1024 * 1024;

const BROKEN_BODY: Reject = Reject::BadBody("the body broke off or is not framed right");

/// A request that is understood: where it goes and what goes with it.
#[derive(Debug)]
pub struct Call<'a> {
    pub asked: Asked,
    pub parts: &'a Parts,
    pub body: Outgoing,
    /// What the body says, as far as its endpoint needs one.
    pub reading: Reading,
    /// The name that was written, where it was replaced.
    alias: Option<Box<str>>,
}

/// A body that is for the gate itself, of at most so many bytes.
///
/// # Errors
/// As for any body: 400, 408, 413, 503.
pub async fn own_body(
    body: Incoming,
    most: u64,
    bounds: &BodyBounds,
    arrived: &Arrival,
) -> Result<Bytes, Reject> {
    let bounds = bounds.with(most, bounds.grace);
    let taken = whole(body, &bounds, arrived).await?;
    Ok(taken.whole().cloned().unwrap_or_default())
}

/// The bounds of bodies, shared by all requests.
#[derive(Debug, Clone)]
pub struct BodyBounds {
    pub max: u64,
    pub grace: Duration,
    memory: Arc<Semaphore>,
}

impl BodyBounds {
    #[must_use]
    pub fn new(max: u64, memory: u64, grace: Duration) -> Self {
        let units = usize::try_from(memory / MEMORY_UNIT).unwrap_or(Semaphore::MAX_PERMITS);
        let memory = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self { max, grace, memory }
    }

    /// Other bounds on the same memory.
    #[must_use]
    pub fn with(&self, max: u64, grace: Duration) -> Self {
        Self { max, grace, memory: Arc::clone(&self.memory) }
    }

    fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Reject> {
        let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX);
        let memory = Arc::clone(&self.memory).try_acquire_many_owned(units);
        memory.map_err(|_| Reject::Overloaded("the memory for request bodies is used up"))
    }
}

impl<'a> Call<'a> {
    /// Takes the body: a blob's passes through, every other is read whole now, before a backend is
    /// asked, so that a caller who leaves is noticed and an unsent request can be sent elsewhere.
    /// Where the endpoint needs it, the body is unpacked and understood.
    ///
    /// # Errors
    /// 400, 408, 413, 415, 503.
    pub async fn take(
        asked: Asked,
        parts: &'a Parts,
        body: Incoming,
        bounds: &BodyBounds,
        arrived: Arc<Arrival>,
    ) -> Result<Self, Reject> {
        let (body, reading) = if body.is_end_stream() {
            (Outgoing::empty(), Reading::default())
        } else if asked.is_upload() {
            let passing = Box::new(Passing::new(body, bounds.grace, arrived));
            (Outgoing(Inner::Passing(passing)), Reading::default())
        } else {
            // Boxed, so that requests without a body stay small.
            Box::pin(read(body, &asked, parts, bounds, &arrived)).await?
        };
        Ok(Self { asked, parts, body, reading, alias: None })
    }

    /// A call with a body that is here already.
    ///
    /// # Errors
    /// As [`Call::take`].
    pub async fn with(
        asked: Asked,
        parts: &'a Parts,
        data: Bytes,
        bounds: &BodyBounds,
    ) -> Result<Self, Reject> {
        let body = Outgoing(Inner::Whole { data, memory: None, unpacked: false });
        let (body, reading) = understood(body, &asked, parts, bounds).await?;
        Ok(Self { asked, parts, body, reading, alias: None })
    }

    /// A call that brings nothing along.
    #[must_use]
    pub fn without_body(asked: Asked, parts: &'a Parts) -> Self {
        Self { asked, parts, body: Outgoing::empty(), reading: Reading::default(), alias: None }
    }

    /// The same call for another backend, if its body is here.
    #[must_use]
    pub fn again(&self) -> Self {
        let (asked, body) = (self.asked.clone(), self.body.again());
        Self { asked, parts: self.parts, body, reading: Reading::default(), alias: None }
    }

    /// The model that is asked for, as it was written.
    #[must_use]
    pub fn model(&self) -> Option<Cow<'_, str>> {
        let in_body = || self.reading.model().or_else(|| self.reading.source());
        self.asked.model_in_path().map(Cow::Borrowed).or_else(in_body)
    }

    /// What the body says as it is sent on, after every change.
    #[must_use]
    pub fn as_sent(&self) -> Cow<'_, Reading> {
        match self.body.whole().filter(|_| self.reading.object().is_some()) {
            Some(data) if !self.reading.is_of(data) => {
                let read = Reading::of_json(data, &self.asked);
                read.map_or(Cow::Borrowed(&self.reading), Cow::Owned)
            }
            Some(_) | None => Cow::Borrowed(&self.reading),
        }
    }

    /// The model of a refusal, by the name that was written, and what that stands for.
    #[must_use]
    pub fn as_written(&self, model: &str) -> (String, Option<String>) {
        match &self.alias {
            Some(alias) => (alias.to_string(), Some(model.to_owned())),
            None => (model.to_owned(), None),
        }
    }

    /// Whether the answer is to come piece by piece.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.streams_as() != Stream::No
    }

    /// How the answer is to come.
    #[must_use]
    pub fn streams_as(&self) -> Stream {
        let stream = self.asked.endpoint().map_or(Stream::No, |it| it.stream);
        let is_asked_for = self.reading.stream().unwrap_or(stream == Stream::Ndjson);
        if is_asked_for { stream } else { Stream::No }
    }

    /// Whether a model works for it in a slot of its own.
    #[must_use]
    pub fn takes_a_slot(&self) -> bool {
        self.reading.has_prompt(&self.asked)
    }

    /// Whether its caller says that it has time [OpenAI API reference, `service_tier`].
    #[must_use]
    pub fn is_flexible(&self) -> bool {
        let tier = self.reading.field(Field::ServiceTier).and_then(|it| self.reading.text(it));
        tier.is_some_and(|tier| tier == "flex")
    }

    /// Changes the body that is sent on; the reading goes on telling what the caller sent.
    ///
    /// # Errors
    /// 503 where there is no memory for a second body.
    pub fn edit(&mut self, edits: &[Edit], bounds: &BodyBounds) -> Result<(), Reject> {
        if let Inner::Whole { data, memory, .. } = &mut self.body.0
            && !edits.is_empty()
        {
            let more = bounds.reserve(data.len() as u64)?;
            *data = rewrite::rewrite(data, edits);
            match memory {
                Some(memory) => memory.merge(more),
                None => *memory = Some(more),
            }
        }
        Ok(())
    }
}

async fn read(
    body: Incoming,
    asked: &Asked,
    parts: &Parts,
    bounds: &BodyBounds,
    arrived: &Arrival,
) -> Result<(Outgoing, Reading), Reject> {
    let body = whole(body, bounds, arrived).await?;
    understood(body, asked, parts, bounds).await
}

/// The body as it will be sent on, and what it says.
async fn understood(
    mut body: Outgoing,
    asked: &Asked,
    parts: &Parts,
    bounds: &BodyBounds,
) -> Result<(Outgoing, Reading), Reject> {
    if matches!(asked.model_in(), ModelIn::Nowhere | ModelIn::Path) {
        return Ok((body, Reading::default()));
    }
    let is_perhaps = asked.model_in() == ModelIn::Perhaps;
    // What nobody knows is sent on packed as it came.
    let is_packed = !is_perhaps && is_packed(asked, parts)?;
    let whole = body.whole().map_or(&b""[..], |whole| whole);
    let is_short = whole.len() <= READ_AT_ONCE || asked.model_in() == ModelIn::Form;
    if !is_packed && (is_short || is_perhaps && !reading::may_be_object(whole)) {
        let reading = Reading::of(body.whole().unwrap_or(&Bytes::new()), asked, parts)?;
        return Ok((body, reading));
    }
    let (asked, bounds) = (asked.clone(), bounds.clone());
    let aside = move || {
        if is_packed {
            body.unpack(&bounds)?;
        }
        let reading = Reading::of_json(body.whole().unwrap_or(&Bytes::new()), &asked)?;
        Ok((body, reading))
    };
    // It does not fail but by a panic.
    tokio::task::spawn_blocking(aside).await.unwrap_or(Err(Reject::Internal))
}

/// Whether the body comes in the one encoding that Ollama takes, where it takes it.
fn is_packed(asked: &Asked, parts: &Parts) -> Result<bool, Reject> {
    let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING) else { return Ok(false) };
    let encoding = encoding.as_bytes().trim_ascii();
    match encoding {
        b"" => Ok(false),
        _ if encoding.eq_ignore_ascii_case(b"identity") => Ok(false),
        _ if encoding.eq_ignore_ascii_case(b"zstd") && asked.takes_zstd() => Ok(true),
        _ if asked.takes_zstd() => Err(Reject::UnsupportedEncoding(
            "the body's Content-Encoding may be zstd, or none; send it plain",
        )),
        _ => Err(Reject::UnsupportedEncoding("this endpoint takes its body plain, in no encoding")),
    }
}

async fn whole(
    mut body: Incoming,
    bounds: &BodyBounds,
    arrived: &Arrival,
) -> Result<Outgoing, Reject> {
    let announced = body.size_hint().exact();
    let too_large = Reject::BodyTooLarge { limit: bounds.max };
    if announced.is_some_and(|bytes| bytes > bounds.max) {
        return Err(too_large);
    }
    let mut memory = bounds.reserve(announced.unwrap_or(0))?;
    let mut pace = Pace::new(bounds.grace);
    let mut read = BytesMut::new();
    loop {
        let frame = tokio::time::timeout_at(pace.deadline(), body.frame()).await;
        let frame = frame.map_err(|_| Reject::RequestTimeout)?;
        let Some(frame) = frame else { break };
        let frame = match frame {
            Ok(frame) => frame,
            Err(_) if arrived.is_gone() => std::future::pending().await,
            Err(_) => return Err(BROKEN_BODY),
        };
        let Ok(data) = frame.into_data() else { continue };
        pace.count(data.len());
        let total = (read.len() + data.len()) as u64;
        if total > bounds.max {
            return Err(too_large);
        }
        if announced == Some(data.len() as u64) {
            return Ok(Outgoing::new(data, Some(memory)));
        }
        if announced.is_none() {
            memory.merge(bounds.reserve(data.len() as u64)?);
        }
        if read.is_empty() {
            // A length that was only announced does not get memory at once.
            let expected = announced.unwrap_or(0).min(1 << 20);
            read.reserve(usize::try_from(expected).unwrap_or(0));
        }
        read.extend_from_slice(&data);
    }
    Ok(Outgoing::new(read.freeze(), Some(memory)))
}

/// When the next byte of a body is due: a grace, then a minimum rate.
#[derive(Debug)]
struct Pace {
    started: Instant,
    grace: Duration,
    bytes: u64,
}

impl Pace {
    fn new(grace: Duration) -> Self {
        Self { started: Instant::now(), grace, bytes: 0 }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn deadline(&self) -> Instant {
        self.started + self.grace + Duration::from_millis(self.bytes * 1000 / SLOWEST_BODY)
    }
}

/// A request body on its way to a backend.
pub struct Outgoing(Inner);

enum Inner {
    /// The memory is given back when the body has been sent.
    Whole {
        data: Bytes,
        memory: Option<OwnedSemaphorePermit>,
        /// It came packed.
        unpacked: bool,
    },
    Passing(Box<Passing>),
}

impl Outgoing {
    #[must_use]
    pub fn empty() -> Self {
        Self::new(Bytes::new(), None)
    }

    /// Of what the gate sends in its own name.
    #[must_use]
    pub fn of(data: Bytes) -> Self {
        Self::new(data, None)
    }

    fn new(data: Bytes, memory: Option<OwnedSemaphorePermit>) -> Self {
        Self(Inner::Whole { data, memory, unpacked: false })
    }

    fn again(&self) -> Self {
        match &self.0 {
            Inner::Whole { data, memory: _, unpacked } => {
                Self(Inner::Whole { data: data.clone(), memory: None, unpacked: *unpacked })
            }
            Inner::Passing(_) => Self::empty(),
        }
    }

    fn unpack(&mut self, bounds: &BodyBounds) -> Result<(), Reject> {
        let Inner::Whole { data, memory, unpacked } = &mut self.0 else { return Ok(()) };
        let mut held = bounds.reserve(0)?;
        let room = |bytes: usize| {
            let held_bytes = held.num_permits() as u64 * MEMORY_UNIT;
            if bytes as u64 > bounds.max {
                return Err(Reject::BodyTooLarge { limit: bounds.max });
            }
            if bytes as u64 > held_bytes {
                held.merge(bounds.reserve(UNPACKED_STEP.max(bytes as u64 - held_bytes))?);
            }
            Ok(())
        };
        *data = packed::unpacked(data, room)?.into();
        *memory = Some(held);
        *unpacked = true;
        Ok(())
    }

    /// Whether it is sent on without the encoding that it came in.
    #[must_use]
    pub fn is_unpacked(&self) -> bool {
        matches!(self.0, Inner::Whole { unpacked: true, .. })
    }

    /// The body, if it is here.
    #[must_use]
    pub fn whole(&self) -> Option<&Bytes> {
        match &self.0 {
            Inner::Whole { data, .. } => Some(data),
            Inner::Passing(_) => None,
        }
    }

    /// Bytes, where that is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match &self.0 {
            Inner::Whole { data, .. } => Some(data.len() as u64),
            Inner::Passing(passing) => passing.body.size_hint().exact(),
        }
    }

    /// The next bytes of a body that passes through; `None` at its end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        match &mut self.0 {
            Inner::Whole { .. } => Poll::Ready(None),
            Inner::Passing(passing) => passing.poll(cx),
        }
    }

    /// The upload behind this body, if it is one.
    #[must_use]
    pub fn upload(&self) -> Option<Arc<Upload>> {
        match &self.0 {
            Inner::Whole { .. } => None,
            Inner::Passing(passing) => Some(Arc::clone(&passing.upload)),
        }
    }
}

/// What the sender of an upload's answer needs to know of the upload.
#[derive(Debug)]
pub struct Upload {
    started: Instant,
    /// Milliseconds after `started` at which the last byte was taken.
    moved: AtomicU64,
    fault: std::sync::Mutex<Option<Reject>>,
}

impl Upload {
    /// The last time that a byte moved.
    #[must_use]
    pub fn moved(&self) -> Instant {
        self.started + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }

    /// Why the upload itself broke, if it did: then the backend is not to blame.
    #[must_use]
    pub fn fault(&self) -> Option<Reject> {
        self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// A body that is passed through as it comes.
struct Passing {
    body: Incoming,
    pace: Pace,
    due: Due,
    arrived: Arc<Arrival>,
    upload: Arc<Upload>,
}

impl Passing {
    fn new(body: Incoming, grace: Duration, arrived: Arc<Arrival>) -> Self {
        let pace = Pace::new(grace);
        let upload = Upload {
            started: pace.started,
            moved: AtomicU64::new(0),
            fault: std::sync::Mutex::new(None),
        };
        Self { body, pace, due: Due::default(), arrived, upload: Arc::new(upload) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return match self.due.has_passed(self.pace.deadline(), cx) {
                    true => Poll::Ready(Some(Err(self.fail(Reject::RequestTimeout)))),
                    false => Poll::Pending,
                };
            };
            match frame {
                None | Some(Err(_)) if self.arrived.is_gone() => return Poll::Pending,
                None => return Poll::Ready(None),
                Some(Err(_)) => return Poll::Ready(Some(Err(self.fail(BROKEN_BODY)))),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.count(data.len());
                    return Poll::Ready(Some(Ok(data)));
                }
            }
        }
    }

    fn count(&mut self, bytes: usize) {
        self.pace.count(bytes);
        let moved = self.upload.started.elapsed().as_millis();
        self.upload.moved.store(u64::try_from(moved).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn fail(&self, fault: Reject) -> Broken {
        let mut slot = self.upload.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *slot = Some(fault);
        Broken
    }
}

/// The caller's body ended before its end; the reason lies in [`Upload::fault`].
#[derive(Debug, thiserror::Error)]
#[error("the caller's body broke off")]
pub struct Broken;

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Whole { data, .. } => write!(f, "Outgoing({} bytes)", data.len()),
            Inner::Passing(_) => f.write_str("Outgoing(passing)"),
        }
    }
}

#[cfg(test)]
mod tests;
