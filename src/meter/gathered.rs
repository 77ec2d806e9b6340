//! What several backends answer to one call: line by line as it comes, each with who said it.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use serde_json::{Map, Value};

use super::Cut;
use super::held::Held;
use crate::call::Outgoing;
use crate::limit::Ticket;
use crate::pool::{Connection, Lease};
use crate::record::{Outcome, Record};
use crate::reject::Reject;

/// No line that tells of progress is as long.
const MOST_LINE: usize = 1 << 20;
/// As much of what is no line of Ollama's is shown.
const MOST_SHOWN: usize = 500;

/// When the first backend had it.
pub type Began = Arc<OnceLock<Instant>>;

type Asking = Pin<Box<dyn Future<Output = Result<Speaking, Reject>> + Send>>;

/// A call that is to be put to several backends.
#[derive(Debug)]
pub struct Questioned {
    pub voices: Vec<Voice>,
    pub began: Began,
    /// Its memory is taken until all have it.
    pub body: Outgoing,
}

/// One backend and its part of the answer.
pub struct Voice {
    name: Arc<str>,
    at: At,
    unread: BytesMut,
    has_spoken: bool,
    /// It answered that it could not, or says so in between.
    has_refused: bool,
    waits_since: Option<Instant>,
}

enum At {
    Asking(Asking),
    Speaking(Speaking),
    Ended,
}

/// An answer whose head has come.
#[derive(Debug)]
pub struct Speaking {
    status: StatusCode,
    connection: Box<Connection>,
    lease: Lease,
}

impl Speaking {
    #[must_use]
    pub fn new(status: StatusCode, connection: Box<Connection>, lease: Lease) -> Self {
        Self { status, connection, lease }
    }
}

/// The answers of all, on their way to the caller.
#[derive(Debug)]
pub struct Gathered {
    questioned: Questioned,
    ticket: Ticket,
    idle: Duration,
    lines: BytesMut,
    has_failed: bool,
    /// The last lines, which wait for the row.
    held: Option<Held>,
}

impl Gathered {
    /// `idle`: the longest silence of a backend between two bytes.
    #[must_use]
    pub fn of(questioned: Questioned, ticket: Ticket, idle: Duration) -> Self {
        let lines = BytesMut::new();
        Self { questioned, ticket, idle, lines, has_failed: false, held: None }
    }

    /// Whether its caller may not go on; then all backends are left.
    pub(super) fn has_to_end(&mut self, record: &mut Record, cx: &Context<'_>) -> bool {
        let Poll::Ready(ended) = self.ticket.poll_ended(cx) else { return false };
        self.questioned.voices.clear();
        record.break_off(&ended);
        true
    }

    pub(super) fn poll(
        &mut self,
        record: &mut Record,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.has_to_end(record, cx) {
            return Poll::Ready(Some(Err(Cut)));
        }
        if self.held.is_some() {
            return self.poll_held(record, cx);
        }
        for voice in &mut self.questioned.voices {
            if let Err(reject) = voice.poll(self.idle, &mut self.lines, cx) {
                tracing::warn!(backend = &*voice.name, "a call to several failed: {reject}");
                self.has_failed = true;
            }
            self.has_failed |= voice.has_refused;
        }
        if let Some(began) = self.questioned.began.get() {
            record.begins(*began);
        }
        let is_over = self.questioned.voices.iter().all(|it| matches!(it.at, At::Ended));
        if is_over {
            record.end(if self.has_failed { Outcome::BackendFailed } else { Outcome::Done });
        }
        let lines = match self.lines.is_empty() {
            true => Bytes::new(),
            false => self.lines.split().freeze(),
        };
        if !lines.is_empty() {
            record.sent(lines.len());
        }
        if is_over && let Some(written) = record.post_untold() {
            self.held = Some(Held::new(lines, written));
            return self.poll_held(record, cx);
        }
        match lines.is_empty() {
            false => Poll::Ready(Some(Ok(lines))),
            true if is_over => Poll::Ready(None),
            true => Poll::Pending,
        }
    }

    fn poll_held(
        &mut self,
        record: &Record,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Cut>>> {
        let Some(held) = &mut self.held else { return Poll::Ready(None) };
        let lines = ready!(held.poll(record, cx));
        self.held = None;
        // Nothing at all is no piece.
        Poll::Ready((!lines.is_empty()).then_some(Ok(lines)))
    }
}

impl Voice {
    #[must_use]
    pub fn new(name: Arc<str>, asking: Asking) -> Self {
        let (unread, at) = (BytesMut::new(), At::Asking(asking));
        Self { name, at, unread, has_spoken: false, has_refused: false, waits_since: None }
    }

    /// Puts what has come behind `lines`.
    fn poll(
        &mut self,
        idle: Duration,
        lines: &mut BytesMut,
        cx: &mut Context<'_>,
    ) -> Result<(), Reject> {
        let failed = loop {
            match &mut self.at {
                At::Ended => return Ok(()),
                At::Asking(asking) => match asking.as_mut().poll(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(speaking)) => self.at = At::Speaking(speaking),
                    Poll::Ready(Err(reject)) => break reject,
                },
                At::Speaking(Speaking { connection, status, .. }) => {
                    let status = *status;
                    match connection.poll_data(cx) {
                        Poll::Ready(Ok(Some(data))) => {
                            self.waits_since = None;
                            self.unread.extend_from_slice(&data);
                            self.take_lines(status, lines);
                            if self.unread.len() > MOST_LINE {
                                break Reject::BackendFailed("it sends a line without end".into());
                            }
                            if lines.len() > MOST_LINE {
                                // The caller takes these first.
                                return Ok(());
                            }
                        }
                        Poll::Ready(Ok(None)) => {
                            self.finish(status, lines);
                            return Ok(());
                        }
                        Poll::Ready(Err(cause)) => break Reject::BackendFailed(cause),
                        Poll::Pending => {
                            let since = *self.waits_since.get_or_insert_with(Instant::now);
                            match connection.is_due(since + idle, cx) {
                                true => break Reject::BackendTimeout,
                                false => return Ok(()),
                            }
                        }
                    }
                }
            }
        };
        if let At::Speaking(Speaking { lease, .. }) = std::mem::replace(&mut self.at, At::Ended) {
            lease.broke_off();
        }
        let (error, code) = (failed.says(), failed.row().code);
        push(lines, &self.name, [("error", error.as_str()), ("code", code)]);
        Err(failed)
    }

    fn take_lines(&mut self, status: StatusCode, lines: &mut BytesMut) {
        // An error comes whole, however it is written.
        while status.is_success()
            && let Some(end) = memchr::memchr(b'\n', &self.unread)
        {
            let line = self.unread.split_to(end + 1);
            self.say(status, &line, lines);
        }
    }

    fn finish(&mut self, status: StatusCode, lines: &mut BytesMut) {
        self.has_refused |= !status.is_success();
        let rest = self.unread.split();
        self.say(status, &rest, lines);
        if !self.has_spoken {
            // A model that was copied or deleted is told of by the status alone.
            let said = match status.is_success() {
                true => ("status", "success".to_owned()),
                false => ("error", status.to_string()),
            };
            push(lines, &self.name, [(said.0, said.1.as_str())]);
        }
        if let At::Speaking(speaking) = std::mem::replace(&mut self.at, At::Ended) {
            speaking.lease.give_back(speaking.connection, Instant::now());
        }
    }

    fn say(&mut self, status: StatusCode, written: &[u8], lines: &mut BytesMut) {
        let written = written.trim_ascii();
        if written.is_empty() {
            return;
        }
        self.has_spoken = true;
        if let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(written) {
            // As Ollama says it in the middle of a pull.
            self.has_refused |= fields.contains_key("error");
            return push(lines, &self.name, fields);
        }
        let text = String::from_utf8_lossy(written);
        let text: String = text.chars().take(MOST_SHOWN).collect();
        let key = if status.is_success() { "status" } else { "error" };
        push(lines, &self.name, [(key, text)]);
    }
}

/// One line more; who says it stands first, and nobody else's word of that counts.
fn push<K: Into<String>, V: Into<Value>>(
    lines: &mut BytesMut,
    name: &str,
    fields: impl IntoIterator<Item = (K, V)>,
) {
    let mut line = Map::new();
    line.insert("backend".to_owned(), name.into());
    let fields = fields.into_iter().map(|(key, value)| (key.into(), value.into()));
    line.extend(fields.filter(|(key, _)| key != "backend"));
    lines.extend_from_slice(Value::Object(line).to_string().as_bytes());
    lines.extend_from_slice(b"\n");
}

impl fmt::Debug for Voice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Voice").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_first_who_says_it_whatever_it_says_itself() {
        let mut voice = Voice::new("a".into(), Box::pin(std::future::pending()));
        let mut lines = BytesMut::new();
        voice
            .unread
            .extend_from_slice(b"{\"status\":\"x\",\"backend\":\"liar\",\"n\":1}\n\n[1]\n{\"st");
        voice.take_lines(StatusCode::OK, &mut lines);
        voice.unread.extend_from_slice(b"atus\":\"success\"}");
        voice.finish(StatusCode::OK, &mut lines);
        let expected = "{\"backend\":\"a\",\"status\":\"x\",\"n\":1}\n{\"backend\":\"a\",\"status\":\"[1]\"}\n\
                        {\"backend\":\"a\",\"status\":\"success\"}\n";
        assert_eq!(std::str::from_utf8(&lines).unwrap(), expected);
    }

    #[test]
    fn an_error_is_one_line_and_an_empty_answer_is_its_status() {
        for (status, body, expected) in [
            (StatusCode::NOT_FOUND, "{\n\"error\":\"no\"\n}\n", r#""error":"no""#),
            (StatusCode::BAD_GATEWAY, "<html>\n</html>", r#""error":"<html>\n</html>""#),
            (StatusCode::NOT_FOUND, "", r#""error":"404 Not Found""#),
            (StatusCode::OK, "", r#""status":"success""#),
        ] {
            let mut voice = Voice::new("a".into(), Box::pin(std::future::pending()));
            let mut lines = BytesMut::new();
            voice.unread.extend_from_slice(body.as_bytes());
            voice.take_lines(status, &mut lines);
            voice.finish(status, &mut lines);
            let expected = format!("{{\"backend\":\"a\",{expected}}}\n");
            assert_eq!(std::str::from_utf8(&lines).unwrap(), expected);
        }
    }
}
