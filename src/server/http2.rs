//! One caller's connection over HTTP/2 (RFC 9113): streams accepted, bounded, timed, and ended.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::Builder;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::Stage;
use super::connection::{DRAIN_IDLE, LINGER, STALL, discard};
use super::places::Place;
use crate::api::MAX_TARGET;
use crate::call::{MAX_HEADER_BYTES, MAX_HEADERS};
use crate::gateway::{Gateway, Link};
use crate::http1::Due;
use crate::reject::Reject;

mod rewound;
mod stream;

pub(super) use rewound::Rewound;
use stream::Room;

/// Requests at once on one connection.
const MOST_STREAMS: u32 = 100;
/// Then the caller is asked to open another connection, so that none is kept for ever.
const MOST_REQUESTS: u64 = 10_000;
/// Bytes of a body that a caller may send ahead of its reader: a line of 20 ms is filled at 50 MB/s.
const STREAM_WINDOW: u32 = 1 << 20;
/// For all streams of a connection together, and so the memory that one caller can hold with them.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What unread small frames may cost beyond their bytes: a window filled by frames of 32 bytes, while
/// a slow backend holds up an upload, is honest.
const FRAME_BUDGET: usize = 8 << 20;
/// Bytes of an answer that wait in a stream whose caller does not read.
const SEND_BUFFER: usize = 64 * 1024;
/// Whatever `call` allows is read, so that a head that is too large is refused with a line in the
/// log. HTTP/2 counts 32 bytes for a field beside its own (RFC 9113, 6.5.2), `call` counts 4.
const HEADER_LIST: usize = MAX_HEADER_BYTES + MAX_TARGET + 28 * (MAX_HEADERS + 8);
/// Streams that a caller opened and cancelled before they were looked at.
const MOST_UNSEEN_RESETS: usize = 20;
/// Streams that had to be cancelled because the caller broke the rules in them.
const MOST_FAULTY_STREAMS: usize = 1024;

/// A caller who vanished without a word is found by this.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_DUE: Duration = STALL;
/// Bytes of the question itself (RFC 9113, 6.7).
const PING_FRAME: u64 = 17;

/// Why a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By the rules, or by the caller who left.
    Closed,
    /// Nothing was under way, and the caller knows, or had the time to.
    Idle,
    /// No answer to a ping.
    Dead,
    /// The caller broke the rules, or asked for too much of what costs us.
    Broken,
}

impl End {
    fn of(error: &h2::Error) -> Self {
        match error.is_library() {
            true => Self::Broken,
            false => Self::Closed,
        }
    }
}

/// Serves a connection whose first bytes are those of HTTP/2, or that agreed on it before.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: Rewound<S>,
    link: Link,
    place: Place,
    gateway: Arc<Gateway>,
    mut stages: watch::Receiver<Stage>,
) {
    let stall = gateway.state().config().timeouts.idle.min(STALL);
    let peer = link.peer;
    let caller = Caller { link: Arc::new(link), gateway: Arc::clone(&gateway), stall };
    let end = {
        let mut draining = pin!(stages.wait_for(|stage| *stage >= Stage::Draining));
        // Registers this task once, to be woken when a drain begins; from then on the gateway knows.
        poll_fn(|cx| Poll::Ready(draining.as_mut().poll(cx).is_ready())).await;
        drive(&mut socket, caller, place).await
    };
    if end == End::Broken {
        let reason = Reject::BadRequest("the connection broke the rules of HTTP/2");
        gateway.record_of(peer).refuse(&reason, 0);
    }
    match end {
        // Bytes that came and were not read would take our last words from the caller.
        End::Closed | End::Broken => {
            let _ = timeout(LINGER, discard(&mut socket)).await;
        }
        End::Idle | End::Dead => {}
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut Rewound<S>,
    caller: Caller,
    place: Place,
) -> End {
    let started = Instant::now();
    let (header, keep_alive) = {
        let state = caller.gateway.state();
        (state.config().timeouts.header, state.config().timeouts.keep_alive)
    };
    let moved = socket.moved();
    let mut h2 = match timeout_at(started + header, settings().handshake(socket)).await {
        Ok(Ok(h2)) => h2,
        Ok(Err(error)) => return End::of(&error),
        Err(_) => return End::Idle,
    };
    let pulse =
        h2.ping_pong().map(|pings| Pulse { pings, sent: None, last: started, moved, seen: 0 });
    let mut connection = Connection {
        h2,
        streams: FuturesUnordered::new(),
        caller,
        place,
        pulse,
        due: Due::default(),
        requests: 0,
        is_outdated: false,
        idle_since: Some(started),
        leaving_since: None,
        patience: header,
        keep_alive,
    };
    poll_fn(|cx| connection.poll(cx)).await
}

fn settings() -> Builder {
    let mut settings = Builder::new();
    settings
        .max_concurrent_streams(MOST_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(FRAME_BUDGET)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(HEADER_LIST).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MOST_UNSEEN_RESETS)
        .max_local_error_reset_streams(Some(MOST_FAULTY_STREAMS));
    settings
}

/// Who is at the other end, for each of its requests.
#[derive(Debug, Clone)]
struct Caller {
    link: Arc<Link>,
    gateway: Arc<Gateway>,
    /// How long it may take nothing of an answer that is there for it.
    stall: Duration,
}

/// A connection under way, with everything that answers its requests, in one task: what is ready at
/// the same time leaves in one write, and ends with the connection.
struct Connection<S> {
    h2: h2::server::Connection<S, Bytes>,
    streams: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>,
    caller: Caller,
    place: Place,
    pulse: Option<Pulse>,
    due: Due,
    requests: u64,
    /// It began with a certificate that does not count any more.
    is_outdated: bool,
    /// Since when no request is under way.
    idle_since: Option<Instant>,
    /// Since when the caller was told to send no more requests.
    leaving_since: Option<Instant>,
    /// For the next request to come.
    patience: Duration,
    keep_alive: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            while let Poll::Ready(Some(())) = self.streams.poll_next_unpin(cx) {}
            // What they said leaves together.
            let before = self.requests;
            if let Poll::Ready(end) = self.accept(cx) {
                // Who asked and left at once has a line all the same.
                while let Poll::Ready(Some(())) = self.streams.poll_next_unpin(cx) {}
                return Poll::Ready(end);
            }
            if self.requests > before {
                continue;
            }
            let now = Instant::now();
            // What was handed over may still be on its way.
            let is_idle = self.streams.is_empty() && !self.h2.has_streams();
            if is_idle && self.idle_since.is_none() {
                self.idle_since = Some(now);
                self.patience = self.keep_alive;
            }
            let retires = self.requests >= MOST_REQUESTS
                || self.is_outdated
                || self.caller.gateway.is_draining();
            if retires && self.leaving_since.is_none() {
                self.leave(now);
                continue;
            }
            match self.wait(now, cx) {
                Poll::Ready(Some(end)) => return Poll::Ready(end),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Moves frames both ways, and begins what is asked for.
    fn accept(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            match ready!(self.h2.poll_accept(cx)) {
                Some(Ok((request, respond))) => {
                    self.requests += 1;
                    self.idle_since = None;
                    let caller = self.caller.clone();
                    self.is_outdated |= caller.gateway.is_outdated(&caller.link.door);
                    let room = self.room();
                    self.streams.push(Box::pin(stream::answer(request, respond, caller, room)));
                }
                Some(Err(error)) => return Poll::Ready(End::of(&error)),
                None => return Poll::Ready(End::Closed),
            }
        }
    }

    /// For the next stream's connection to the backend.
    fn room(&self) -> Room {
        if self.streams.is_empty() {
            return Room::OfItsConnection;
        }
        if let Some(more) = self.place.more() {
            return Room::Own(more);
        }
        let Caller { gateway, link, .. } = &self.caller;
        if gateway.log().overload().is_due(std::time::Instant::now()) {
            let client = link.peer.ip();
            tracing::warn!(%client, "no files are left for more streams; callers are told 503");
        }
        Room::No
    }

    /// Says that no further request is wanted. Those that are on their way already are served.
    fn leave(&mut self, now: Instant) {
        self.h2.graceful_shutdown();
        self.leaving_since = Some(now);
    }

    /// Until something has to be done about the time that has passed.
    fn wait(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if let Some(pulse) = &mut self.pulse
            && !pulse.is_felt(now, cx)
        {
            return Poll::Ready(Some(End::Dead));
        }
        let idle = self.idle_since.map(|idle| match self.leaving_since {
            None => idle + self.patience,
            Some(leaving) => idle.max(leaving) + DRAIN_IDLE,
        });
        let pulse = self.pulse.as_ref().map(Pulse::deadline);
        let Some(deadline) = idle.into_iter().chain(pulse).min() else { return Poll::Pending };
        if !self.due.has_passed(deadline, cx) {
            return Poll::Pending;
        }
        if idle.is_some_and(|idle| idle <= now) {
            if self.leaving_since.is_some() {
                return Poll::Ready(Some(End::Idle));
            }
            self.leave(now);
        }
        Poll::Ready(None)
    }
}

/// Asks now and then whether somebody is still there.
struct Pulse {
    pings: PingPong,
    sent: Option<Instant>,
    /// The last answer.
    last: Instant,
    /// Bytes that the connection has moved, and how many of them were known when the answer was last
    /// waited for: it stands behind whatever a slow reader has still to take.
    moved: Arc<AtomicU64>,
    seen: u64,
}

impl Pulse {
    fn is_felt(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        if let Some(sent) = self.sent {
            match self.pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => (self.sent, self.last) = (None, now),
                Poll::Ready(Err(_)) => return false,
                Poll::Pending => {
                    let moved = self.moved.load(Ordering::Relaxed);
                    if moved > self.seen {
                        (self.seen, self.sent) = (moved, Some(now));
                        return true;
                    }
                    return now < sent + PONG_DUE;
                }
            }
        }
        if now >= self.last + PING_EVERY {
            self.sent = Some(now);
            self.seen = self.moved.load(Ordering::Relaxed) + PING_FRAME;
            return self.pings.send_ping(Ping::opaque()).is_ok()
                && self.pings.poll_pong(cx).is_pending();
        }
        true
    }

    fn deadline(&self) -> Instant {
        self.sent.map_or(self.last + PING_EVERY, |sent| sent + PONG_DUE)
    }
}

#[cfg(test)]
mod tests;
