//! An answer that begins before anybody has answered, so that nobody on the way gives up waiting.
//!
//! Until there is more to say it says nothing, in the stream's own form: a blank before a line of JSON
//! (RFC 8259, 2), an empty comment between events (HTML, 9.2.6). What comes then can have no status of
//! its own any more: a refusal becomes the stream's error.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep};

use super::{Answer, Cut, Framing};
use crate::api::Stream;

type Work = Pin<Box<dyn Future<Output = Response<Answer>> + Send>>;

/// Given by a request on its way that only has to wait from now on: its answer may begin so.
#[derive(Debug, Default)]
pub struct Promise(OnceLock<(Framing, HeaderMap)>);

impl Promise {
    /// Only a stream may begin early: it has a form for errors of its own.
    pub fn give(&self, stream: Stream, mut headers: HeaderMap) {
        let (framing, kind) = match stream {
            Stream::No => return,
            Stream::Ndjson => (Framing::Ndjson, "application/x-ndjson"),
            Stream::Sse => (Framing::Sse, "text/event-stream"),
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        // The path gives it once.
        let _ = self.0.set((framing, headers));
    }
}

/// The body of such an answer.
pub struct Early {
    framing: Framing,
    beat: Pin<Box<Sleep>>,
    every: Duration,
    turn: Turn,
}

enum Turn {
    /// Nobody has answered.
    Waits(Work),
    /// As it comes.
    Passes(Box<Answer>),
    /// What is not such a stream becomes its last piece.
    Wraps(Wrap),
    Cut,
    Ended,
}

/// An answer of another kind within the stream.
struct Wrap {
    answer: Box<Answer>,
    before: &'static str,
    after: &'static str,
}

impl Early {
    /// What `work` comes to, if it does within `every` or has made no promise; otherwise an answer
    /// that has begun.
    pub async fn unless_answered(
        mut work: Pin<Box<impl Future<Output = Response<Answer>> + Send + 'static>>,
        promise: Arc<Promise>,
        every: Duration,
    ) -> Response<Answer> {
        let mut beat = None;
        let came = std::future::poll_fn(|cx| {
            if let Poll::Ready(response) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            if promise.0.get().is_none() {
                return Poll::Pending;
            }
            beat.get_or_insert_with(|| Box::pin(sleep(every))).as_mut().poll(cx).map(|()| None)
        });
        if let Some(response) = came.await {
            return response;
        }
        let (framing, headers) =
            promise.0.get().cloned().unwrap_or((Framing::Opaque, HeaderMap::new()));
        let beat = Box::pin(sleep(Duration::ZERO));
        let early = Self { framing, beat, every, turn: Turn::Waits(work) };
        let mut response = Response::new(Answer::Early(Box::new(early)));
        *response.headers_mut() = headers;
        response
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            match &mut self.turn {
                Turn::Waits(work) => match work.as_mut().poll(cx) {
                    Poll::Ready(response) => self.turn = self.framing.turn(response),
                    Poll::Pending => return self.poll_beat(cx),
                },
                Turn::Passes(answer) => return poll_data(answer, cx),
                Turn::Wraps(wrap) => match ready!(wrap.poll(cx)) {
                    Some(piece) => return Poll::Ready(Some(piece)),
                    None => self.turn = Turn::Ended,
                },
                Turn::Cut => {
                    self.turn = Turn::Ended;
                    return Poll::Ready(Some(Err(Cut)));
                }
                Turn::Ended => return Poll::Ready(None),
            }
        }
    }

    fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        ready!(self.beat.as_mut().poll(cx));
        self.beat.as_mut().reset(Instant::now() + self.every);
        Poll::Ready(Some(Ok(Bytes::from_static(match self.framing {
            Framing::Sse => b":\n\n",
            Framing::Ndjson | Framing::Opaque => b" ",
        }))))
    }

    pub(super) fn has_to_end(&mut self, cx: &Context<'_>) -> bool {
        match &mut self.turn {
            Turn::Passes(answer) | Turn::Wraps(Wrap { answer, .. }) => answer.has_to_end(cx),
            Turn::Waits(_) | Turn::Cut | Turn::Ended => false,
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match &self.turn {
            Turn::Passes(answer) => answer.is_end_stream(),
            Turn::Ended => true,
            Turn::Waits(_) | Turn::Wraps(_) | Turn::Cut => false,
        }
    }
}

impl Framing {
    fn turn(self, response: Response<Answer>) -> Turn {
        let status = response.status();
        let mut answer = Box::new(response.into_body());
        let fields = answer.take_fields();
        if fields.is_encoded() {
            // Nobody asked for that, and the head that would say so is gone.
            return Turn::Cut;
        }
        if status == StatusCode::OK && Self::of(&fields) == self {
            return Turn::Passes(answer);
        }
        let (before, after) = match self {
            Self::Sse if status.is_success() => ("data: ", "\n\n"),
            Self::Sse => ("event: error\ndata: ", "\n\n"),
            Self::Ndjson | Self::Opaque => ("", "\n"),
        };
        Turn::Wraps(Wrap { answer, before, after })
    }
}

impl Wrap {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let before = std::mem::take(&mut self.before);
        if !before.is_empty() {
            return Poll::Ready(Some(Ok(Bytes::from_static(before.as_bytes()))));
        }
        Poll::Ready(match ready!(poll_data(&mut self.answer, cx)) {
            Some(piece) => Some(piece.map(in_one_line)),
            None => {
                let after = std::mem::take(&mut self.after);
                (!after.is_empty()).then(|| Ok(Bytes::from_static(after.as_bytes())))
            }
        })
    }
}

/// The ends of lines in JSON are between its tokens, where a blank says the same.
fn in_one_line(piece: Bytes) -> Bytes {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if !piece.iter().any(is_end) {
        return piece;
    }
    piece.iter().map(|byte| if is_end(byte) { b' ' } else { *byte }).collect()
}

fn poll_data(answer: &mut Answer, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
    Pin::new(answer).poll_frame(cx).map_ok(|frame| frame.into_data().unwrap_or_default())
}

impl fmt::Debug for Early {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Early").field("framing", &self.framing).finish_non_exhaustive()
    }
}
