//! One caller's connection: driven, timed, and ended so that the caller can read the last answer.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, sleep_until};

use super::Stage;
use super::wire::{Handle, Remains, Wire};
use crate::call::{Arrival, MAX_HEADER_BYTES, MAX_HEADERS};
use crate::gateway::Gateway;
use crate::meter::{Answer, Cut};
use crate::record::Outcome;
use crate::reject::{Challenges, Dialect, Reject, Told};

/// A refusal of ours can say more than hyper's, so hyper's bounds lie higher.
const HYPER_HEADER_BYTES: usize = 2 * MAX_HEADER_BYTES;
const HYPER_HEADERS: usize = 2 * MAX_HEADERS;
/// In a drain a connection that stays idle for this long is closed.
const DRAIN_IDLE: Duration = Duration::from_secs(2);
/// Unread bytes would turn the last answer into a reset at the caller's (nginx: lingering close).
const LINGER: Duration = Duration::from_millis(800);
const MOST_LINGERED: usize = 8 * 1024 * 1024;

/// Why a connection came to its end.
#[derive(Debug)]
enum End {
    Closed,
    CallerGone,
    /// The deadline for a head, or for the next request, has passed.
    Late,
    Broken(hyper::Error),
}

pub(super) async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    gateway: Arc<Gateway>,
    stages: watch::Receiver<Stage>,
) {
    // A socket that is gone already shows at the first read.
    let _ = socket.set_nodelay(true);
    let wire = Arc::new(Wire::new(socket, Instant::now()));
    let end = drive(&wire, peer, &gateway, stages).await;
    // hyper and the last answer are gone, and with them their handles.
    let Some(wire) = Arc::into_inner(wire) else { return };
    let (socket, remains) = wire.close();
    if let Some(bytes) = remember(&end, remains, peer, &gateway) {
        // The caller may be gone; then nobody reads it.
        let _ = socket.try_write(&bytes);
    }
    let _ = SockRef::from(&socket).shutdown(Shutdown::Write);
    let unread = remains.unread || matches!(end, End::Broken(_));
    if unread && !matches!(end, End::CallerGone) {
        let _ = tokio::time::timeout(LINGER, discard(&socket)).await;
    }
}

async fn drive(
    wire: &Arc<Wire>,
    peer: SocketAddr,
    gateway: &Arc<Gateway>,
    mut stages: watch::Receiver<Stage>,
) -> End {
    let answering = (Arc::clone(gateway), Arc::clone(wire));
    let service = service_fn(move |request: Request<Incoming>| {
        let (gateway, wire) = (Arc::clone(&answering.0), Arc::clone(&answering.1));
        let arrived = Arc::new(Arrival::of(&request));
        wire.begin(Arc::clone(&arrived));
        // Boxed, so that a connection between requests and in a stream stays small.
        Box::pin(async move {
            let response = gateway.handle(peer, request, arrived).await;
            Ok::<_, Infallible>(response.map(|answer| Watched { answer, wire }))
        })
    });
    let hyper = http1::Builder::new()
        .half_close(false)
        .max_header_size(HYPER_HEADER_BYTES)
        .max_headers(HYPER_HEADERS)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(Handle(Arc::clone(wire))), service);
    let timeouts = gateway.state().config().timeouts.clone();
    let due = Box::pin(sleep_until((Instant::now() + timeouts.header).into()));
    let mut driver = Driver {
        hyper,
        wire,
        due,
        due_for_head: None,
        header: timeouts.header,
        keep_alive: timeouts.keep_alive,
    };
    tokio::select! {
        biased;
        end = poll_fn(|cx| driver.poll(cx)) => return end,
        _ = stages.wait_for(|stage| *stage >= Stage::Draining) => {}
    }
    // The next request is still served, with `Connection: close`.
    tokio::select! {
        biased;
        end = poll_fn(|cx| driver.poll(cx)) => return end,
        () = sleep(DRAIN_IDLE) => {}
    }
    Pin::new(&mut driver.hyper).graceful_shutdown();
    poll_fn(|cx| driver.poll(cx)).await
}

/// hyper, and what it does not watch for.
struct Driver<'a, S: HttpService<Incoming>> {
    hyper: http1::Connection<TokioIo<Handle>, S>,
    wire: &'a Wire,
    due: Pin<Box<Sleep>>,
    /// The half head that `due` was set for.
    due_for_head: Option<Instant>,
    header: Duration,
    keep_alive: Duration,
}

impl<S> Driver<'_, S>
where
    S: HttpService<Incoming, ResBody = Watched> + Unpin,
    S::Future: Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.wire.expect_interest();
        match self.hyper.poll_without_shutdown(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(End::Closed),
            Poll::Ready(Err(error)) => return Poll::Ready(End::Broken(error)),
            Poll::Pending => {}
        }
        if self.wire.is_gone(cx) {
            return Poll::Ready(End::CallerGone);
        }
        let half = self.wire.half_since();
        if half.is_some() && half != self.due_for_head {
            self.due_for_head = half;
            self.rearm();
        }
        while self.due.as_mut().poll(cx).is_ready() {
            let deadline = self.wire.deadline(self.header, self.keep_alive);
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Poll::Ready(End::Late);
            }
            self.rearm();
        }
        Poll::Pending
    }

    fn rearm(&mut self) {
        let deadline = self.wire.deadline(self.header, self.keep_alive);
        let deadline = deadline.unwrap_or_else(|| Instant::now() + self.keep_alive);
        self.due.as_mut().reset(deadline.into());
    }
}

/// Leaves a line for what never became a request, and gives the answer to it that hyper did not.
fn remember(end: &End, remains: Remains, peer: SocketAddr, gateway: &Gateway) -> Option<Vec<u8>> {
    let reject = match end {
        End::Broken(error) if error.is_parse() && remains.preface => Some(Reject::BadVersion),
        End::Broken(error) if error.is_parse() => {
            let mut record = gateway.record_of(peer);
            let (status, code) = match remains.last_status {
                Some(414) => (414, "target_too_long"),
                Some(431) => (431, "headers_too_large"),
                _ => (400, "bad_request"),
            };
            record.line.status = status;
            record.end(Outcome::Refused(code));
            return None;
        }
        End::Late if remains.half_a_head => Some(Reject::RequestTimeout),
        End::Closed | End::CallerGone | End::Broken(_) if remains.half_a_head => {
            // The record says client_gone by itself.
            drop(gateway.record_of(peer));
            None
        }
        End::Closed | End::CallerGone | End::Late | End::Broken(_) => None,
    }?;
    let mut record = gateway.record_of(peer);
    let answer = bare(&reject, record.line.id.as_str());
    record.refuse(&reject, answer.len());
    Some(answer)
}

/// A refusal without hyper, which has given up the connection.
fn bare(reject: &Reject, id: &str) -> Vec<u8> {
    let told = Told {
        dialect: Dialect::Native,
        request_id: id,
        signin_url: "",
        challenges: Challenges::default(),
    };
    let response = reject.response(&told);
    let body = response.body();
    let mut bytes = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\nx-request-id: {id}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        response.status(),
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

async fn discard(socket: &TcpStream) {
    let mut bytes = vec![0; 16 * 1024];
    let mut discarded = 0;
    while discarded < MOST_LINGERED && socket.readable().await.is_ok() {
        match socket.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(read) => discarded += read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// An answer that tells its wire when it ends.
struct Watched {
    answer: Answer,
    wire: Arc<Wire>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.wire.end(Instant::now());
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Pin::new(&mut self.get_mut().answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
