//! One caller's connection: driven, timed, and ended so that the caller can read the last answer.

use std::future::poll_fn;
use std::net::{Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, Version};
use http_body::Body;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::http2::Rewound;
use super::places::Place;
use super::{Entrance, Stage, handshake, http2};
use crate::admin;
use crate::gateway::{Door, Gateway, Link};
use crate::http1::{
    self, Arrival, Due, Ending, FieldLines, Form, HeadError, Malformed, Outbox, RequestHead, Stall,
    Wire,
};
use crate::incoming::Incoming;
use crate::meter::Answer;
use crate::reject::{Challenges, Dialect, Reject, Told};
use crate::socket::Socket;
use crate::tls::{Offer, Protocol};

/// In a drain a connection that stays idle for this long is closed.
pub(super) const DRAIN_IDLE: Duration = Duration::from_secs(2);
/// Unread bytes would turn the last answer into a reset at the caller's (nginx: lingering close).
pub(super) const LINGER: Duration = Duration::from_millis(800);
/// A caller who takes no byte of an answer for this long is gone, whatever its socket says.
pub(super) const STALL: Duration = Duration::from_secs(60);
const MOST_LINGERED: usize = 8 * 1024 * 1024;

/// Most heads of answers, with a short body, in bytes.
const USUAL_HEAD: usize = 768;

/// What a connection may do.
#[derive(Debug)]
pub(super) enum Standing {
    Placed(Place),
    /// It is told that there is no place for it, also where its caller alone has too many.
    Surplus(#[expect(dead_code, reason = "held until the end")] Option<Place>),
}

/// Why a connection came to its end.
#[derive(Debug)]
enum End {
    Closed,
    CallerGone,
    /// Waited long enough for a request.
    Idle,
    /// Part of a head came, and then nothing in time.
    HalfAHead,
    /// Part of a head came, and then the end.
    GoneInAHead,
    Malformed(Malformed),
    /// It begins as HTTP/2, and may.
    Http2,
    /// An answer broke off.
    Cut,
}

/// A connection that was just accepted.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) socket: Socket,
    pub(super) peer: SocketAddr,
    pub(super) standing: Standing,
    pub(super) entrance: Entrance,
    /// A PROXY header stood before it.
    pub(super) is_announced: bool,
}

pub(super) async fn serve(
    newcomer: Newcomer,
    gateway: Arc<Gateway>,
    mut stages: watch::Receiver<Stage>,
) {
    let Newcomer { socket, peer, standing, entrance, is_announced } = newcomer;
    // A socket that is gone already shows at the first read.
    let _ = socket.set_nodelay();
    let offer = match &standing {
        Standing::Placed(_) => Offer::All,
        Standing::Surplus(_) => Offer::Http1,
    };
    let entered = match entrance {
        Entrance::Redirect => Some((socket, Protocol::Http1, Door::Redirect)),
        Entrance::Admin => Some((socket, Protocol::Http1, Door::Admin)),
        Entrance::Main => enter(socket, peer, offer, &gateway, &stages).await,
    };
    let Some((socket, protocol, door)) = entered else { return };
    let link = Link { peer, is_announced, door };
    if protocol == Protocol::Http2 {
        return go_on_by_http2(Rewound::new(Bytes::new(), socket), link, standing, gateway, stages)
            .await;
    }
    let wire = Arc::new(Wire::new(socket));
    let mut due = Due::default();
    let end = {
        let mut draining = pin!(stages.wait_for(|stage| *stage >= Stage::Draining));
        // Registers this task once, to be woken when a drain begins; from then on the gateway knows.
        poll_fn(|cx| Poll::Ready(draining.as_mut().poll(cx).is_ready())).await;
        drive(&wire, &link, &standing, &gateway, &mut due).await
    };
    let at_rest = wire.is_at_rest();
    // The last request is gone, and with it its handle.
    let Some(wire) = Arc::into_inner(wire) else { return };
    let (mut socket, read) = wire.into_parts();
    if matches!(end, End::Http2) {
        let socket = Rewound::new(read, socket);
        return go_on_by_http2(socket, link, standing, gateway, stages).await;
    }
    drop(read);
    if let Some(bytes) = remember(&end, &link, &gateway) {
        // The caller may be gone; then nobody reads it.
        let _ = socket.try_write(&bytes);
    }
    // What broke off is to look broken.
    if !matches!(end, End::Cut) {
        socket.say_goodbye();
    }
    let unread = !at_rest || matches!(end, End::Malformed(_) | End::Cut);
    if unread && !matches!(end, End::CallerGone | End::GoneInAHead) {
        linger(socket).await;
    }
}

async fn go_on_by_http2(
    socket: Rewound<Socket>,
    link: Link,
    standing: Standing,
    gateway: Arc<Gateway>,
    stages: watch::Receiver<Stage>,
) {
    match standing {
        // Boxed, so that it takes no room in the connections that are none of this.
        Standing::Placed(place) => {
            Box::pin(http2::serve(socket, link, place, gateway, stages)).await;
        }
        // Not offered: who has no place is told so in the older way only.
        Standing::Surplus(_) => {}
    }
}

/// Ends when a drain has begun, and whoever said nothing since then has been waited for.
pub(super) async fn idle_in_a_drain(mut stages: watch::Receiver<Stage>) {
    // Whoever could begin a drain is there for as long as its connections.
    let _ = stages.wait_for(|stage| *stage >= Stage::Draining).await;
    sleep(DRAIN_IDLE).await;
}

/// Through TLS where that is spoken; `None` for whoever did not come through.
async fn enter(
    socket: Socket,
    peer: SocketAddr,
    offer: Offer,
    gateway: &Gateway,
    stages: &watch::Receiver<Stage>,
) -> Option<(Socket, Protocol, Door)> {
    let state = gateway.state();
    match (socket, state.tls()) {
        (Socket::Tcp(socket), Some(tls)) => {
            let tls = Arc::clone(tls);
            let limit = state.config().timeouts.header;
            drop(state);
            let enough = idle_in_a_drain(stages.clone());
            let handshake = tls.accept(socket, offer, limit, enough);
            // Boxed, so that a connection without it stays small.
            Box::pin(handshake::open(handshake, peer, gateway)).await
        }
        (socket, _) => Some((socket, Protocol::Http1, Door::Plain)),
    }
}

/// Answers somebody of whom no request was read, leaves the line of it, and ends the connection.
pub(super) async fn refuse_at_the_door(
    mut socket: Socket,
    reject: &Reject,
    peer: SocketAddr,
    gateway: &Gateway,
) {
    let mut record = gateway.record_of(peer);
    let (answer, body) = bare(reject, record.line.id.as_str(), &Door::Plain);
    record.refuse(reject, body);
    drop(record);
    let _ = socket.try_write(&answer);
    linger(socket).await;
}

async fn linger(socket: Socket) {
    let _ = SockRef::from(&socket).shutdown(Shutdown::Write);
    let _ = tokio::time::timeout(LINGER, discard(socket.into_transport())).await;
}

async fn drive(
    wire: &Arc<Wire>,
    link: &Link,
    standing: &Standing,
    gateway: &Arc<Gateway>,
    due: &mut Due,
) -> End {
    let (header, keep_alive, stall, mut h2c) = {
        let state = gateway.state();
        let config = state.config();
        let timeouts = &config.timeouts;
        let is_placed = matches!((&link.door, standing), (Door::Plain, Standing::Placed(_)));
        let h2c = config.h2c && is_placed;
        (timeouts.header, timeouts.keep_alive, timeouts.idle.min(STALL), h2c)
    };
    let mut patience = header;
    loop {
        let mut waiting = Waiting::new(header, patience);
        let head = poll_fn(|cx| waiting.poll(wire, gateway, due, cx)).await;
        let head = match head {
            Ok(head) => head,
            Err(End::Malformed(Malformed::Preface)) if h2c => return End::Http2,
            Err(end) => return end,
        };
        // Only the first bytes of a connection decide.
        h2c = false;
        let mut form = Form::of(&head.parts.method, head.parts.version, head.keeps_alive);
        let arrived = Arc::new(Arrival::of(&head.framing));
        let body = http1::Incoming::new(Arc::clone(wire), Arc::clone(&arrived));
        let response = match standing {
            Standing::Surplus(_) => gateway.turn_away(link, &head.parts, arrived),
            Standing::Placed(_) => {
                let body = Incoming::Http1(body);
                // Boxed, so that a connection between requests and in a stream stays small.
                let handled =
                    Box::pin(gateway.handle(link, head.parts, body, Arc::clone(&arrived)));
                match unless_gone(handled, wire, &arrived).await {
                    Some(response) => response,
                    None => return End::CallerGone,
                }
            }
        };
        match send(response, &mut form, wire, Stall::after(stall), due).await {
            Sent::Whole if form.stays && wire.is_past_body() => {}
            Sent::Whole => return End::Closed,
            Sent::Cut => return End::Cut,
            Sent::ToNobody => return End::CallerGone,
        }
        patience = keep_alive;
    }
}

/// The wait for a request.
struct Waiting {
    since: Instant,
    /// When a part of a head was first seen.
    half_since: Option<Instant>,
    drain_since: Option<Instant>,
    header: Duration,
    patience: Duration,
}

impl Waiting {
    fn new(header: Duration, patience: Duration) -> Self {
        Self { since: Instant::now(), half_since: None, drain_since: None, header, patience }
    }

    fn poll(
        &mut self,
        wire: &Wire,
        gateway: &Gateway,
        due: &mut Due,
        cx: &mut Context<'_>,
    ) -> Poll<Result<RequestHead, End>> {
        match wire.poll_head(cx) {
            Poll::Ready(Ok(Some(head))) => return Poll::Ready(Ok(head)),
            Poll::Ready(Ok(None)) => return Poll::Ready(Err(End::Closed)),
            Poll::Ready(Err(HeadError::Half)) => return Poll::Ready(Err(End::GoneInAHead)),
            Poll::Ready(Err(HeadError::Malformed(why))) => {
                return Poll::Ready(Err(End::Malformed(why)));
            }
            Poll::Pending => {}
        }
        if self.half_since.is_none() && wire.has_half_a_head() {
            self.half_since = Some(Instant::now());
        }
        if self.drain_since.is_none() && gateway.is_draining() {
            self.drain_since = Some(Instant::now());
        }
        match due.has_passed(self.deadline(), cx) {
            false => Poll::Pending,
            true if self.half_since.is_some() => Poll::Ready(Err(End::HalfAHead)),
            true => Poll::Ready(Err(End::Idle)),
        }
    }

    fn deadline(&self) -> Instant {
        let idle = self.since + self.patience;
        match (self.half_since, self.drain_since) {
            (Some(half), _) => half + self.header,
            (None, Some(drain)) => idle.min(drain + DRAIN_IDLE),
            (None, None) => idle,
        }
    }
}

/// `None` when the caller left first; then nobody waits for what was being worked on.
async fn unless_gone<T>(
    mut work: Pin<Box<impl Future<Output = T>>>,
    wire: &Wire,
    arrived: &Arrival,
) -> Option<T> {
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if arrived.is_gone() || wire.is_gone(cx) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// How far an answer went out.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Whole,
    Cut,
    ToNobody,
}

async fn send(
    response: Response<Answer>,
    form: &mut Form,
    wire: &Wire,
    stall: Stall,
    due: &mut Due,
) -> Sent {
    let (parts, mut answer) = response.into_parts();
    let mut outbox = Outbox::with_room(USUAL_HEAD);
    let (fields, length) = (answer.take_fields(), answer.size_hint().exact());
    let ending = form.push_head(&parts, &fields, length, &mut outbox);
    drop((parts, fields));
    let mut sending = Sending { answer, outbox, ending, ended: None, stall };
    if ending == Ending::Bodiless {
        sending.ended = Some(Sent::Whole);
    }
    poll_fn(|cx| sending.poll(wire, due, cx)).await
}

/// An answer on its way out.
struct Sending {
    answer: Answer,
    outbox: Outbox,
    ending: Ending,
    /// How it ends when everything gathered has gone.
    ended: Option<Sent>,
    stall: Stall,
}

impl Sending {
    fn poll(&mut self, wire: &Wire, due: &mut Due, cx: &mut Context<'_>) -> Poll<Sent> {
        loop {
            let waiting = self.gather(cx).is_pending();
            if waiting && self.goes_as_one() && !wire.is_gone(cx) {
                return Poll::Pending;
            }
            match self.stall.poll_flush(wire, &mut self.outbox, due, cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(Sent::ToNobody),
                Poll::Ready(Ok(())) if let Some(ended) = self.ended => return Poll::Ready(ended),
                Poll::Ready(Ok(())) if !waiting => {}
                Poll::Ready(Ok(())) | Poll::Pending if wire.is_gone(cx) => {
                    return Poll::Ready(Sent::ToNobody);
                }
                Poll::Pending if self.outbox.is_full() && self.answer.has_to_end(cx) => {
                    return Poll::Ready(Sent::ToNobody);
                }
                Poll::Ready(Ok(())) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// A short answer that is here, and waits for its row: its head goes with it, in one write.
    fn goes_as_one(&self) -> bool {
        self.ending == Ending::Length
            && self.outbox.is_untouched()
            && self.answer.waits_for_its_row()
    }

    /// Takes from the answer until that ends, or there is enough to send.
    fn gather(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.ended.is_none() && !self.outbox.is_full() {
            let frame = std::task::ready!(Pin::new(&mut self.answer).poll_frame(cx));
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                Some(Ok(Ok(data))) if self.ending == Ending::Chunked => {
                    self.outbox.push_chunk(data);
                }
                Some(Ok(Ok(data))) => self.outbox.push(data),
                Some(Ok(Err(_))) => {}
                Some(Err(_)) => self.ended = Some(Sent::Cut),
                None => self.end(),
            }
            if self.answer.is_end_stream() {
                self.end();
            }
        }
        Poll::Ready(())
    }

    fn end(&mut self) {
        if self.ended.is_none() {
            self.ended = Some(Sent::Whole);
            if self.ending == Ending::Chunked {
                self.outbox.push_last_chunk();
            }
        }
    }
}

/// Leaves a line for what never became a request, and gives the answer to it.
fn remember(end: &End, link: &Link, gateway: &Gateway) -> Option<Vec<u8>> {
    let reject = match end {
        End::Malformed(why) => malformed(*why),
        End::HalfAHead => Reject::RequestTimeout,
        End::GoneInAHead => {
            // The record says client_gone by itself.
            drop(gateway.record_of(link.peer));
            return None;
        }
        End::Closed | End::CallerGone | End::Idle | End::Cut | End::Http2 => return None,
    };
    let mut record = gateway.record_of(link.peer);
    let (answer, body) = bare(&reject, record.line.id.as_str(), &link.door);
    record.refuse(&reject, body);
    Some(answer)
}

fn malformed(why: Malformed) -> Reject {
    match why {
        Malformed::Head => Reject::BadRequest("the head of the request cannot be read"),
        Malformed::Framing => Reject::BadRequest("the body's length can be read in two ways"),
        Malformed::TargetTooLong => Reject::TargetTooLong,
        Malformed::TooLarge => Reject::HeadersTooLarge,
        Malformed::Preface => Reject::BadVersion,
    }
}

/// A refusal to what never became a request, and the length of its body.
fn bare(reject: &Reject, id: &str, door: &Door) -> (Vec<u8>, usize) {
    let told = Told {
        dialect: Dialect::Native,
        request_id: id,
        signin_url: "",
        challenges: Challenges::default(),
    };
    let (mut parts, body) = reject.response(&told).into_parts();
    if let Ok(id) = id.parse() {
        parts.headers.insert(crate::reject::REQUEST_ID, id);
    }
    if let Door::Admin = door {
        admin::with_safe_headers(&mut parts.headers);
    }
    let mut outbox = Outbox::default();
    let mut form = Form::of(&Method::GET, Version::HTTP_11, false);
    form.push_head(&parts, &FieldLines::default(), Some(body.len() as u64), &mut outbox);
    outbox.text().extend_from_slice(&body);
    (std::mem::take(outbox.text()), body.len())
}

/// Takes what still comes, which nobody wants.
pub(super) async fn discard(mut socket: impl AsyncRead + Unpin) {
    let mut bytes = vec![0; 16 * 1024];
    let mut discarded = 0;
    while discarded < MOST_LINGERED {
        match socket.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(read) => discarded += read,
        }
    }
}
